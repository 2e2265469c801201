/* The tier thread: what becomes of ops that are posted to it, and of those that a tier never ends. */
#include "tests/unit/tiers_rig.h"

#include <pthread.h>
#include <string.h>

#include "common/mailbox.h"
#include "common/mem.h"

static void mail_event(void *ctx, const struct kv_tier_event *event)
{
    assert_int_equal(mailbox_send(ctx, event), OK);
}

static struct kv_tiers *open_thread(struct mailbox **events, const struct kv_tiers_options *o)
{
    struct kv_tiers *tiers;
    assert_int_equal(mailbox_new(events, sizeof(struct kv_tier_event), 64), OK);
    assert_int_equal(kv_tiers_open(&tiers, o, mail_event, *events), OK);
    return tiers;
}

static void each_op_ends_in_one_event_and_loads_go_first(void **state)
{
    (void)state;
    struct kv_tiers_options o = options_of(1);
    struct mailbox *events;
    struct kv_tiers *tiers = open_thread(&events, &o);
    struct kv_tier_op op = op_of(KV_TIER_STORE, 0, 4, numbers);
    struct kv_tier_event e;
    for (op.id = 1; op.id <= 4; op.id++)
        assert_int_equal(kv_tiers_post(tiers, &op), OK);
    op.kind = KV_TIER_LOAD;
    op.blocks = numbers + 32;
    for (; op.id <= 6; op.id++)
        assert_int_equal(kv_tiers_post(tiers, &op), OK);
    assert_int_equal(kv_tiers_start(tiers), OK);
    static const uint64_t order[] = {5, 6, 1, 2, 3, 4};
    for (int i = 0; i < 6; i++) {
        assert_int_equal(mailbox_wait(events, &e, 20 * NS_PER_S), OK);
        kv_tier_event_free(&e);
        assert_int_equal(e.id, order[i]);
        assert_int_equal(e.count, e.kind == KV_TIER_LOAD ? 0 : 4);
    }
    kv_tiers_stop(tiers);
    assert_int_equal(mailbox_receive(events, &e), ERR_AGAIN);
    assert_int_equal(kv_tiers_post(tiers, &op), ERR_CANCELLED);
    struct kv_tiers_stats stats;
    kv_tiers_stats(tiers, &stats);
    assert_int_equal(stats.row[0].kept.entries_count, 4);
    kv_tiers_close(tiers);
    mailbox_free(events);
}

/* One load of a run that is damaged from its first block on, and what is computed is stored at once. */
static void a_damaged_run_is_whole_after_one_load(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 20);
    struct kv_tiers_options o = options_of(1);
    struct mailbox *events;
    struct kv_tiers *tiers = open_thread(&events, &o);
    fake[0].drops = 20;
    for (uint64_t id = 1; id <= 3; id++) {
        bool is_load = id != 2;
        struct kv_tier_op op =
            op_of(is_load ? KV_TIER_LOAD : KV_TIER_STORE, 0, 20, is_load ? numbers + 32 : numbers);
        struct kv_tier_event e;
        op.id = id;
        assert_int_equal(kv_tiers_post(tiers, &op), OK);
        if (id == 1) assert_int_equal(kv_tiers_start(tiers), OK);
        assert_int_equal(mailbox_wait(events, &e, 20 * NS_PER_S), OK);
        kv_tier_event_free(&e);
        assert_int_equal(e.count, id == 1 ? 0 : 20);
    }
    kv_tiers_stop(tiers);
    assert_int_equal(fake[0].removed, 20);
    assert_loaded(0, 20);
    kv_tiers_close(tiers);
    mailbox_free(events);
}

static uint32_t events_count(struct mailbox *events)
{
    struct kv_tier_event e;
    uint32_t n = 0;
    for (; mailbox_receive(events, &e) == OK; n++) {
        assert_int_equal(e.count, 0);
        kv_tier_event_free(&e);
    }
    return n;
}

/* One that hangs in its first call, and what it was opened with. */
struct hanging {
    struct kv_tiers *tiers;
    struct mailbox *events;
    sem_t hangs, hung;
};

static void open_hanging(struct hanging *h, enum kv_tier_op_kind kind)
{
    struct kv_tiers_options o = options_of(2);
    struct kv_tier_op op = op_of(kind, 0, 4, kind == KV_TIER_LOAD ? numbers + 32 : numbers);
    o.stop_ns = NS_PER_MS;
    sem_init(&h->hangs, 0, 0);
    sem_init(&h->hung, 0, 0);
    h->tiers = open_thread(&h->events, &o);
    fake[0].hangs = &h->hangs, fake[0].hung = &h->hung;
    for (op.id = 1; op.id <= 2; op.id++)
        assert_int_equal(kv_tiers_post(h->tiers, &op), OK);
    assert_int_equal(kv_tiers_start(h->tiers), OK);
    sem_wait(&h->hung);
}

static void release(struct hanging *h)
{
    fake[0].hangs = NULL;
    sem_post(&h->hangs);
}

static void close_hanging(struct hanging *h)
{
    struct kv_tier_event e;
    while (kv_tiers_stop(h->tiers) != OK)
        ;
    kv_tiers_close(h->tiers);
    while (mailbox_receive(h->events, &e) == OK)
        kv_tier_event_free(&e);
    mailbox_free(h->events);
    sem_destroy(&h->hangs);
    sem_destroy(&h->hung);
}

static void ops_of_a_tier_that_is_stuck_are_taken_back(void **state)
{
    (void)state;
    for (int kind = KV_TIER_LOAD; kind <= KV_TIER_STORE; kind++) {
        struct hanging h;
        struct kv_tiers_stats stats;
        if (kind == KV_TIER_LOAD) { /* what a LOAD would find */
            open_tiers(1);
            store(0, 4);
        }
        open_hanging(&h, kind);
        clock_ns += KV_TIERS_STUCK_NS - 1;
        kv_tiers_watch(h.tiers, &stats);
        assert_int_equal(stats.row[0].stuck_ns, 0);
        assert_int_equal(events_count(h.events), 0);
        clock_ns += 1;
        pool_writes = 0;
        kv_tiers_watch(h.tiers, &stats);
        assert_int_equal(stats.row[0].stuck_ns, KV_TIERS_STUCK_NS);
        assert_true(stats.row[0].broken && !stats.row[1].broken);
        assert_string_equal(stats.calling, "fake");
        assert_int_equal(stats.block_ns[KV_TIER_HOST], 0);
        assert_int_equal(events_count(h.events),
                         2); /* the one that hangs, and who waits behind it */
        kv_tiers_watch(h.tiers, &stats);
        assert_int_equal(events_count(h.events), 0);
        struct kv_tier_op op = op_of(KV_TIER_STORE, 8, 4, numbers + 8);
        assert_int_equal(kv_tiers_post(h.tiers, &op), ERR_AGAIN);
        release(&h);
        do
            kv_tiers_watch(h.tiers, &stats);
        while (stats.row[0].stuck_ns > 0);
        op.id = 9;
        assert_int_equal(kv_tiers_post(h.tiers, &op), OK);
        struct kv_tier_event e;
        do { /* of those that were taken back there is news at most */
            assert_int_equal(mailbox_wait(h.events, &e, 20 * NS_PER_S), OK);
            kv_tier_event_free(&e);
            assert_true(e.id == 0 || e.id == 9);
        } while (e.id == 0);
        assert_int_equal(e.count, 4);
        assert_int_equal(pool_writes, 0); /* they are others' now */
        kv_tiers_stats(h.tiers, &stats);
        assert_true(stats.row[0].broken); /* the breaker's: it is left alone at once */
        close_hanging(&h);
        finish(NULL);
        begin(NULL);
    }
}

static void the_end_does_not_wait_for_a_tier_that_is_stuck(void **state)
{
    (void)state;
    struct hanging h;
    open_hanging(&h, KV_TIER_STORE);
    assert_int_equal(kv_tiers_stop(h.tiers), ERR_TIMEOUT);
    assert_non_null(strstr(err_text(), "tier fake: a call has not returned"));
    release(&h);
    close_hanging(&h);
}

static void open_with_one_that_hangs(struct hanging *h)
{
    struct kv_tiers_options o = options_of(2);
    o.open_ns = o.stop_ns = NS_PER_MS;
    sem_init(&h->hangs, 0, 0);
    sem_init(&h->hung, 0, 0);
    fake[0].hangs = &h->hangs, fake[0].hung = &h->hung;
    h->tiers = open_thread(&h->events, &o);
    sem_wait(&h->hung);
}

static void ends_with(struct hanging *h, enum kv_tier_op_kind kind, uint32_t count)
{
    struct kv_tier_event e;
    struct kv_tier_op op = op_of(kind, 0, 4, kind == KV_TIER_LOAD ? numbers + 32 : numbers);
    assert_int_equal(kv_tiers_post(h->tiers, &op), OK);
    assert_int_equal(mailbox_wait(h->events, &e, 20 * NS_PER_S), OK);
    assert_int_equal(e.count, count);
    kv_tier_event_free(&e);
}

static void a_tier_that_hangs_when_it_is_opened_keeps_nobody_waiting(void **state)
{
    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        struct hanging h;
        struct kv_tiers_stats stats;
        open_with_one_that_hangs(&h);
        assert_int_equal(kv_tiers_start(h.tiers), OK);
        kv_tiers_watch(h.tiers, &stats);
        assert_string_equal(stats.calling, "fake");
        assert_true(stats.row[0].broken && !stats.row[1].broken);
        ends_with(&h, KV_TIER_STORE, 4); /* the other one has it */
        clock_ns += KV_TIERS_STUCK_NS;
        kv_tiers_watch(h.tiers, &stats);
        assert_int_equal(stats.row[0].stuck_ns, KV_TIERS_STUCK_NS);
        assert_int_equal(stats.stuck_ns, 0);
        assert_true(stats.block_ns[KV_TIER_HOST] > 0);
        ends_with(&h, KV_TIER_LOAD, 4);
        kv_tiers_watch(h.tiers, &stats);
        assert_int_equal(stats.row[0].kept.entries_count, 0);
        assert_int_equal(stats.row[1].hits, 4);

        if (fails) fake[0].broken = ERR_INVALID;
        release(&h);
        do
            kv_tiers_watch(h.tiers, &stats);
        while (stats.calling);
        ends_with(&h, KV_TIER_STORE, 4);
        kv_tiers_stats(h.tiers, &stats);
        assert_int_equal(stats.row[0].kept.entries_count, fails ? 0 : 4);
        assert_int_equal(stats.row[1].kept.entries_count, 4);
        assert_true(stats.row[0].broken == fails);
        assert_int_equal(stats.row[0].stuck_ns, 0);
        close_hanging(&h);
        finish(NULL);
        begin(NULL);
    }
}

static void nor_does_it_at_the_end(void **state)
{
    (void)state;
    struct hanging h;
    open_with_one_that_hangs(&h);
    assert_int_equal(kv_tiers_stop(h.tiers), ERR_TIMEOUT);
    assert_non_null(strstr(err_text(), "tier fake: a call has not returned"));
    release(&h);
    close_hanging(&h);
}

static void a_tier_that_cannot_be_opened_is_an_error(void **state)
{
    (void)state;
    struct kv_tiers_options o = options_of(2);
    struct kv_tiers *tiers;
    fake[1].broken = ERR_INVALID;
    assert_int_equal(kv_tiers_open(&tiers, &o, mail_event, NULL), ERR_INVALID);
    assert_non_null(strstr(err_text(), "fake: cannot be opened"));
    assert_null(tiers);
}

static void what_waits_at_the_end_ends_with_none(void **state)
{
    (void)state;
    struct kv_tiers_options o = options_of(1);
    struct mailbox *events;
    struct kv_tiers *tiers = open_thread(&events, &o);
    struct kv_tier_op op = op_of(KV_TIER_STORE, 0, 4, numbers);
    struct kv_tier_event e;
    assert_int_equal(kv_tiers_post(tiers, &op), OK);
    kv_tiers_stop(tiers); /* it never began */
    assert_int_equal(mailbox_receive(events, &e), OK);
    assert_int_equal(e.count, 0);
    assert_int_equal(mailbox_receive(events, &e), ERR_AGAIN);
    kv_tiers_close(tiers);
    mailbox_free(events);
}

static void stores_are_refused_before_loads(void **state)
{
    (void)state;
    struct kv_tiers_options o = options_of(1);
    struct mailbox *events;
    struct kv_tiers *tiers = open_thread(&events, &o);
    struct kv_tier_op op = op_of(KV_TIER_STORE, 0, 4, numbers);
    struct kv_tiers_stats stats;
    for (uint32_t i = 0; i < o.ops_max / 2; i++)
        assert_int_equal(kv_tiers_post(tiers, &op), OK);
    assert_int_equal(kv_tiers_post(tiers, &op), ERR_FULL);
    op.kind = KV_TIER_LOAD;
    for (uint32_t i = o.ops_max / 2; i < o.ops_max; i++)
        assert_int_equal(kv_tiers_post(tiers, &op), OK);
    assert_int_equal(kv_tiers_post(tiers, &op), ERR_FULL);
    op.count = 0;
    assert_int_equal(kv_tiers_post(tiers, &op), ERR_INVALID);
    op.count = BLOCKS + 1;
    assert_int_equal(kv_tiers_post(tiers, &op), ERR_INVALID);
    kv_tiers_stats(tiers, &stats);
    assert_int_equal(stats.stores_dropped, 1);
    kv_tiers_stop(tiers);
    kv_tiers_close(tiers);
    mailbox_free(events);
}

static void every_failing_allocation_is_an_error(void **state)
{
    (void)state;
    struct kv_tiers_options o = options_of(2);
    for (uint64_t n = 1;; n++) {
        struct kv_tiers *tiers;
        mem_fail_at(n);
        enum err e = kv_tiers_open(&tiers, &o, mail_event, NULL);
        mem_fail_at(0);
        if (e == OK) {
            assert_true(n > 4);
            kv_tiers_close(tiers);
            return;
        }
        assert_int_equal(e, ERR_MEMORY);
    }
}

int main(void)
{
#define ROW(name) cmocka_unit_test_setup_teardown(name, begin, finish)
    const struct CMUnitTest tests[] = {
        ROW(each_op_ends_in_one_event_and_loads_go_first),
        ROW(a_damaged_run_is_whole_after_one_load),
        ROW(ops_of_a_tier_that_is_stuck_are_taken_back),
        ROW(the_end_does_not_wait_for_a_tier_that_is_stuck),
        ROW(a_tier_that_hangs_when_it_is_opened_keeps_nobody_waiting),
        ROW(nor_does_it_at_the_end),
        ROW(a_tier_that_cannot_be_opened_is_an_error),
        ROW(what_waits_at_the_end_ends_with_none),
        ROW(stores_are_refused_before_loads),
        ROW(every_failing_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
