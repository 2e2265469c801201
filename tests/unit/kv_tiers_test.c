/* The tier thread's work against tiers that are slow, dead, full or lie, on a clock of the test's; then the
 * thread itself. */
#include "tests/unit/testing.h"

#include <pthread.h>
#include <semaphore.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mailbox.h"
#include "common/mem.h"
#include "common/prefix_hash.h"
#include "kv/breaker.h"
#include "kv/tier_entry.h"
#include "kv/tier_work.h"

enum { BLOCKS = 64, VALUES_MAX = 128, DEADLINE_MS = 20 };

static const struct kv_geometry geometry = {2, 1, 4, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_F32};
static const struct id128 space = {11, 12};

/* ---- the test's clock, pool and tiers ---- */

static _Atomic uint64_t clock_ns; /* a thread may read it */
static uint64_t clock_of(void *ctx)
{
    (void)ctx;
    return clock_ns;
}

static unsigned char *pool; /* [BLOCKS][block bytes] */
static uint32_t pool_writes;

static enum err pool_read(void *ctx, uint32_t block, void *host)
{
    (void)ctx;
    memcpy(host, pool + block * kv_block_bytes(&geometry), kv_block_bytes(&geometry));
    return OK;
}
static enum err pool_write(void *ctx, uint32_t block, const void *host)
{
    (void)ctx;
    memcpy(pool + block * kv_block_bytes(&geometry), host, kv_block_bytes(&geometry));
    pool_writes++;
    return OK;
}

/* One per index, as its options' `where` says: they outlive what opened them. */
static struct fake {
    struct {
        struct id128 key;
        char *value;
    } entry[VALUES_MAX];
    uint32_t count, largest_get, open_calls, has_calls, get_calls, put_calls, removed;
    uint64_t call_ns, value_ns;                /* what a call takes, and each value of it */
    enum err broken;                           /* what each call says */
    bool full, lies_of_key, lies_of_kv, loses; /* loses: says that it has what it does not give */
    sem_t *hangs, *hung; /* get and put wait for the one, and post the other before */
    size_t value_bytes;
} fake[KV_TIERS_MAX];

static struct fake *fake_of(struct kv_tier *t)
{
    return (struct fake *)(void *)t;
}
static uint32_t fake_find(const struct fake *f, struct id128 key)
{
    uint32_t i = 0;
    while (i < f->count && !id128_equal(f->entry[i].key, key))
        i++;
    return i;
}
static enum err fake_open(struct kv_tier **tier, const struct kv_tier_options *o)
{
    struct fake *f = &fake[o->where[0] - '0'];
    f->open_calls++;
    if (f->broken == ERR_INVALID || f->broken == ERR_IO)
        return err_set(f->broken, "cannot be opened");
    f->value_bytes = o->value_bytes;
    *tier = (struct kv_tier *)(void *)f;
    return OK;
}
static void fake_close(struct kv_tier *t)
{
    (void)t;
}
static enum err fake_call(struct fake *f)
{
    clock_ns += f->call_ns;
    return f->broken == OK ? OK : err_set(f->broken, "planted");
}
static void fake_hang(struct fake *f)
{
    sem_t *hangs = f->hangs;
    if (!hangs) return;
    sem_post(f->hung);
    sem_wait(hangs);
}
static enum err fake_has(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         uint64_t deadline_ns, uint32_t *found)
{
    struct fake *f = fake_of(t);
    (void)deadline_ns;
    f->has_calls++;
    *found = 0;
    enum err e = fake_call(f);
    while (e == OK && *found < count && fake_find(f, keys[*found]) < f->count)
        ++*found;
    return e;
}
static enum err fake_get(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         void *const *values, uint64_t deadline_ns, uint32_t *got)
{
    struct fake *f = fake_of(t);
    f->get_calls++;
    if (count > f->largest_get) f->largest_get = count;
    fake_hang(f);
    *got = 0;
    enum err e = fake_call(f);
    if (f->loses) return e;
    for (; e == OK && *got < count; ++*got) {
        uint32_t at = fake_find(f, keys[*got]);
        if (at == f->count) break;
        clock_ns += f->value_ns;
        if (clock_ns > deadline_ns) return err_set(ERR_TIMEOUT, "late");
        if (f->lies_of_key) at = (at + 1) % f->count;
        memcpy(values[*got], f->entry[at].value, f->value_bytes);
        if (f->lies_of_kv) ((char *)values[*got])[f->value_bytes - 1] ^= 1;
    }
    return e;
}
static enum err fake_put(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         const void *const *values, uint64_t deadline_ns, uint32_t *kept)
{
    struct fake *f = fake_of(t);
    (void)deadline_ns;
    f->put_calls++;
    fake_hang(f);
    *kept = 0;
    enum err e = fake_call(f);
    if (e == OK && f->full) return err_set(ERR_FULL, "planted: full");
    for (; e == OK && *kept < count; ++*kept) {
        if (fake_find(f, keys[*kept]) < f->count) continue;
        clock_ns += f->value_ns;
        assert_true(f->count < VALUES_MAX);
        f->entry[f->count].key = keys[*kept];
        f->entry[f->count].value = mem_new(f->value_bytes);
        memcpy(f->entry[f->count++].value, values[*kept], f->value_bytes);
    }
    return e;
}
static enum err fake_remove(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                            uint64_t deadline_ns)
{
    struct fake *f = fake_of(t);
    (void)deadline_ns;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = fake_find(f, keys[i]);
        if (at == f->count) continue;
        mem_free(f->entry[at].value);
        f->entry[at] = f->entry[--f->count];
        f->removed++;
    }
    return fake_call(f);
}
static void fake_stats(const struct kv_tier *t, struct kv_tier_stats *stats)
{
    const struct fake *f = (const struct fake *)(const void *)t;
    *stats = (struct kv_tier_stats){.entries_count = f->count, .removed = f->removed};
}
static const struct kv_tier_ops fake_ops = {"fake",   fake_open, fake_close,  fake_has,
                                            fake_get, fake_put,  fake_remove, fake_stats};

/* ---- prompts ---- */

static struct kv_tier_work *work;
static uint32_t tokens[BLOCKS * BLOCK_TOKENS], numbers[BLOCKS];

static struct kv_tiers_options options_of(uint32_t tiers_count)
{
    static const char *const where[] = {"0", "1", "2"};
    struct kv_tiers_options o = {.geometry = geometry,
                                 .space = space,
                                 .bytes = {NULL, pool_read, pool_write},
                                 .tiers_count = tiers_count,
                                 .deadline_ns = DEADLINE_MS * NS_PER_MS,
                                 .breaker_failures = 3,
                                 .ops_max = 16,
                                 .blocks_max = BLOCKS,
                                 .now_ns = clock_of};
    for (uint32_t i = 0; i < tiers_count; i++) {
        o.tier[i].ops = &fake_ops;
        o.tier[i].options.where = where[i];
    }
    return o;
}

static int begin(void **state)
{
    (void)state;
    log_setup(LOG_OFF, NULL);
    clock_ns = 100 * NS_PER_S;
    pool = mem_aligned(BLOCKS * kv_block_bytes(&geometry), 64);
    for (size_t i = 0; i < BLOCKS * kv_block_bytes(&geometry); i++)
        pool[i] = (unsigned char)(i * 7 + i / kv_block_bytes(&geometry));
    for (uint32_t i = 0; i < BLOCKS * BLOCK_TOKENS; i++)
        tokens[i] = i * 31 + 5;
    for (uint32_t i = 0; i < BLOCKS; i++)
        numbers[i] = i;
    pool_writes = 0;
    return 0;
}

static int finish(void **state)
{
    (void)state;
    kv_tier_work_free(work);
    work = NULL;
    for (uint32_t i = 0; i < KV_TIERS_MAX; i++)
        for (uint32_t k = 0; k < fake[i].count; k++)
            mem_free(fake[i].entry[k].value);
    memset(fake, 0, sizeof fake);
    mem_free(pool);
    return 0;
}

static void open_tiers(uint32_t tiers_count)
{
    struct kv_tiers_options o = options_of(tiers_count);
    assert_int_equal(kv_tier_work_new(&work, &o), OK);
}

static struct kv_tier_op op_of(enum kv_tier_op_kind kind, uint32_t first, uint32_t count,
                               const uint32_t *blocks)
{
    return (struct kv_tier_op){.kind = kind,
                               .id = 77,
                               .salt = 3,
                               .tokens = tokens,
                               .first_block = first,
                               .blocks = blocks,
                               .count = count,
                               .posted_ns = clock_ns};
}

enum { HEARD_MAX = 256 };
static struct kv_tier_news heard[HEARD_MAX]; /* with the last op */
static uint32_t heard_count;

static struct kv_tier_event do_op(const struct kv_tier_op *op)
{
    struct kv_tier_event event;
    struct kv_tier_job *job = kv_tier_job_new(op);
    assert_non_null(job);
    if (op->kind == KV_TIER_LOAD)
        kv_tier_work_load(work, job, &event);
    else if (op->kind == KV_TIER_LIST)
        kv_tier_work_list(work, job, &event);
    else
        while (!kv_tier_work_store(work, job, &event))
            ;
    kv_tier_job_free(job);
    heard_count = event.news_count;
    assert_true(heard_count <= HEARD_MAX && !event.news_lost);
    if (heard_count > 0) memcpy(heard, event.news, heard_count * sizeof *heard);
    kv_tier_event_free(&event);
    assert_int_equal(event.id, 77);
    assert_int_equal(event.kind, op->kind);
    assert_int_equal(event.ended_ns, clock_ns);
    return event;
}
static struct kv_tier_event store(uint32_t first, uint32_t count)
{
    struct kv_tier_op op = op_of(KV_TIER_STORE, first, count, numbers + first);
    return do_op(&op);
}
/* Blocks first … of the prompt into the upper half of the pool. */
static struct kv_tier_event load(uint32_t first, uint32_t count)
{
    struct kv_tier_op op = op_of(KV_TIER_LOAD, first, count, numbers + 32);
    return do_op(&op);
}
static struct kv_tier_row row(uint32_t i)
{
    struct kv_tiers_stats stats;
    kv_tier_work_stats(work, &stats);
    return stats.row[i];
}
static void assert_loaded(uint32_t first, uint32_t count)
{
    size_t bytes = kv_block_bytes(&geometry);
    assert_memory_equal(pool + 32 * bytes, pool + first * bytes, count * bytes);
}

/* ---- what is promised ---- */

static void what_was_stored_is_loaded_bit_by_bit(void **state)
{
    (void)state;
    open_tiers(1);
    assert_int_equal(store(0, 20).count, 20);
    assert_int_equal(load(0, 20).count, 20);
    assert_loaded(0, 20);
    struct kv_tier_event e = load(5, 15); /* behind blocks that the node has */
    assert_int_equal(e.count, 15);
    assert_int_equal(e.from[0], 15);
    assert_int_equal(e.bytes, 15 * kv_tier_entry_bytes(&geometry));
    assert_loaded(5, 15);
    assert_int_equal(row(0).hits, 35);
    assert_int_equal(row(0).kept.entries_count, 20);
}

static void another_tenant_finds_nothing(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 4);
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 4, numbers + 32);
    op.salt = 4;
    assert_int_equal(do_op(&op).count, 0);
    assert_int_equal(row(0).misses, 4);
}

static void a_run_ends_where_no_tier_goes_on(void **state)
{
    (void)state;
    open_tiers(3);
    fake[1].broken = fake[2].broken = ERR_PEER;
    store(0, 4);
    fake[0].broken = ERR_PEER, fake[1].broken = OK;
    store(4, 3);
    fake[1].broken = ERR_PEER, fake[2].broken = OK;
    store(7, 2);
    store(10, 2); /* block 9 is nowhere */
    fake[0].broken = fake[1].broken = OK;
    struct kv_tier_event e = load(0, 12);
    assert_int_equal(e.count, 9);
    assert_int_equal(e.from[0], 4);
    assert_int_equal(e.from[1], 3);
    assert_int_equal(e.from[2], 2);
    assert_loaded(0, 9);
}

/* Of the first `end` blocks what a window of 40 tokens wants: the last three, and the sinks. */
static struct kv_tier_event load_window(uint32_t known, uint32_t end, uint32_t sinks)
{
    struct kv_tier_op op = op_of(KV_TIER_LOAD, known, 0, numbers + 32);
    op.window = (struct kv_window){40, sinks * BLOCK_TOKENS};
    op.end_block = end;
    op.count = kv_tier_op_places(op.window, end);
    struct kv_tier_event e = do_op(&op);
    assert_int_equal(e.count > 0, e.end_block > 0);
    return e;
}

static void a_window_is_loaded_where_it_is_whole(void **state)
{
    (void)state;
    static const struct {
        uint32_t end, known, sinks, want, filled;
    } row[] = {
        {20, 0, 0, 12, 3}, {12, 0, 0, 12, 3},  {11, 0, 0, 11, 3}, {28, 0, 0, 25, 3},
        {20, 12, 0, 0, 0}, {20, 11, 0, 12, 3}, {28, 0, 2, 25, 5}, {4, 0, 2, 4, 4},
        {2, 0, 2, 2, 2},   {1, 0, 0, 1, 1},    {24, 0, 0, 12, 3},
    };
    open_tiers(2);
    fake[1].broken = ERR_PEER;
    store(0, 11);
    store(14, 2); /* too short for a window */
    store(22, 1);
    fake[0].broken = ERR_PEER, fake[1].broken = OK;
    clock_ns += 100 * NS_PER_S;
    store(11, 1);
    store(23, 2);
    fake[0].broken = OK;
    clock_ns += 100 * NS_PER_S;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct kv_tier_event e = load_window(row[i].known, row[i].end, row[i].sinks);
        assert_int_equal(e.end_block, row[i].want);
        assert_int_equal(e.count, row[i].filled);
        uint32_t sinks = row[i].sinks < e.count ? row[i].sinks : e.count;
        size_t bytes = kv_block_bytes(&geometry);
        assert_memory_equal(pool + 32 * bytes, pool, sinks * bytes);
        assert_memory_equal(pool + (32 + sinks) * bytes,
                            pool + (e.end_block - (e.count - sinks)) * bytes,
                            (e.count - sinks) * bytes);
    }
    fake[0].loses = true; /* half a window is none */
    assert_int_equal(load_window(0, 28, 0).end_block, 0);
}

static void each_tier_gets_what_it_lacks(void **state)
{
    (void)state;
    open_tiers(2);
    fake[1].full = true;
    assert_int_equal(store(0, 6).count, 6);
    assert_int_equal(fake[1].count, 0);
    fake[1].full = false;
    clock_ns += NS_PER_S;
    assert_int_equal(store(0, 8).count, 8);
    assert_int_equal(fake[0].count, 8);
    assert_int_equal(fake[1].count, 8);
    uint32_t puts = fake[0].put_calls;
    assert_int_equal(store(0, 8).count, 8); /* all there: nothing is read, nothing put */
    assert_int_equal(fake[0].put_calls, puts);
}

static void a_wrong_entry_is_a_miss_and_removed(void **state)
{
    (void)state;
    for (int lie = 0; lie < 2; lie++) {
        open_tiers(1);
        store(0, 5);
        fake[0].lies_of_key = lie == 0;
        fake[0].lies_of_kv = lie == 1;
        pool_writes = 0;
        assert_int_equal(load(0, 5).count, 0);
        assert_int_equal(pool_writes, 0);
        assert_int_equal(row(0).wrong, 1);
        assert_int_equal(fake[0].removed, 1);
        fake[0].lies_of_key = fake[0].lies_of_kv = false;
        assert_int_equal(load(0, 5).count, 0); /* the first one is gone */
        finish(NULL);
        begin(NULL);
    }
}

static void behind_a_wrong_entry_the_next_tier_is_asked(void **state)
{
    (void)state;
    open_tiers(2);
    store(0, 5);
    fake[0].lies_of_kv = true;
    struct kv_tier_event e = load(0, 5);
    assert_int_equal(e.count, 5);
    assert_int_equal(e.from[1], 5);
    assert_loaded(0, 5);
}

static void what_it_says_and_does_not_give_is_a_miss(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 5);
    fake[0].loses = true;
    assert_int_equal(load(0, 5).count, 0);
    assert_int_equal(fake[0].get_calls, 1);
}

static void a_load_ends_at_its_deadline_with_what_is_there(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 16);
    fake[0].value_ns = 4 * NS_PER_MS;
    uint64_t began_ns = clock_ns;
    struct kv_tier_event e = load(0, 16);
    assert_int_equal(e.count, 4);
    assert_true(clock_ns <= began_ns + DEADLINE_MS * NS_PER_MS);
    assert_loaded(0, 4);
    assert_true(e.more);
    assert_int_equal(row(0).late, 1);
    assert_false(row(0).broken);
    fake[0].largest_get = 0;
    e = load(4, 12); /* it is asked for one at a time now, and is late for none */
    assert_int_equal(fake[0].largest_get, 1);
    assert_int_equal(e.count, 4);
    assert_true(e.more);
    assert_int_equal(row(0).late, 1);
    fake[0].value_ns = 1;
    e = load(0, 20);
    assert_int_equal(e.count, 16);
    assert_false(e.more); /* that was all */
}

static void a_prompt_with_time_to_spare_is_loaded_longer(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 16);
    fake[0].value_ns = 4 * NS_PER_MS;
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 16, numbers + 32);
    op.posted_ns += 40 * NS_PER_MS; /* as who has got so much of it already */
    struct kv_tier_event e = do_op(&op);
    assert_int_equal(e.count, 14);
    assert_true(e.more);
    assert_true(e.ended_ns <= op.posted_ns + DEADLINE_MS * NS_PER_MS);
}

static void a_load_whose_time_is_over_touches_no_tier(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 4);
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 4, numbers + 32);
    uint32_t calls = fake[0].has_calls;
    clock_ns += DEADLINE_MS * NS_PER_MS;
    assert_int_equal(do_op(&op).count, 0);
    assert_int_equal(fake[0].has_calls, calls);
    struct kv_tiers_stats stats;
    kv_tier_work_stats(work, &stats);
    assert_int_equal(stats.loads_late, 1);
}

static void a_tier_slower_than_computing_is_not_read(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 16);
    fake[0].value_ns = NS_PER_MS;
    load(0, 4); /* measures: 1 ms a block */
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 4, numbers + 32);
    uint32_t gets = fake[0].get_calls;
    op.token_ns = 1000; /* 16 us a block */
    assert_int_equal(do_op(&op).count, 0);
    assert_int_equal(fake[0].get_calls, gets);
    assert_int_equal(row(0).not_worth, 4);
    op.token_ns = 100000;
    op.posted_ns = clock_ns;
    assert_int_equal(do_op(&op).count, 4);
    op.token_ns = 1000; /* now and then it is tried: it may have become faster */
    fake[0].value_ns = 100;
    uint32_t tries = 0;
    do {
        op.posted_ns = clock_ns;
        tries++;
    } while (do_op(&op).count == 0 && tries < 100);
    assert_int_equal(tries, 32);
}

static void a_dead_tier_is_left_alone_and_comes_back(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 4);
    fake[0].broken = ERR_TIMEOUT;
    for (int i = 0; i < 3; i++)
        assert_int_equal(load(0, 4).count, 0);
    assert_true(row(0).broken);
    assert_int_equal(row(0).failures, 3);
    uint32_t calls = fake[0].has_calls;
    for (int i = 0; i < 50; i++)
        load(0, 4);
    assert_int_equal(fake[0].has_calls, calls);
    clock_ns += NS_PER_S;
    load(0, 4); /* one try */
    load(0, 4);
    assert_int_equal(fake[0].has_calls, calls + 1);
    fake[0].broken = OK;
    clock_ns += NS_PER_S;
    assert_int_equal(load(0, 4).count, 0); /* it waits twice as long now */
    clock_ns += NS_PER_S;
    assert_int_equal(load(0, 4).count, 4);
    assert_false(row(0).broken);
}

static void a_full_tier_is_still_read(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 4);
    fake[0].full = true;
    assert_int_equal(store(4, 4).count, 0);
    assert_true(row(0).broken);
    uint32_t puts = fake[0].put_calls;
    assert_int_equal(store(4, 4).count, 0);
    assert_int_equal(fake[0].put_calls, puts);
    assert_int_equal(load(0, 8).count, 4);
}

static void a_tier_that_cannot_be_opened_is_said_by_name(void **state)
{
    (void)state;
    struct kv_tiers_options o = options_of(2);
    fake[1].broken = ERR_INVALID;
    assert_int_equal(kv_tier_work_new(&work, &o), ERR_INVALID);
    assert_non_null(strstr(err_text(), "fake"));
    assert_null(work);
    o.tiers_count = 0;
    assert_int_equal(kv_tier_work_new(&work, &o), ERR_INVALID);
}

static void a_tier_that_is_not_usable_is_done_without(void **state)
{
    (void)state;
    fake[0].broken = ERR_IO;
    open_tiers(2);
    assert_int_equal(store(0, 4).count, 4);
    assert_int_equal(load(0, 4).count, 4);
    assert_true(row(0).broken);
    assert_int_equal(fake[0].has_calls, 0);
    assert_int_equal(row(1).hits, 4);
}

static void what_could_not_be_opened_is_tried_again(void **state)
{
    (void)state;
    fake[0].broken = ERR_IO;
    open_tiers(2);
    uint64_t pause_ns = NS_PER_S;
    for (uint32_t i = 1; i < 9; i++) {
        assert_int_equal(kv_tier_work_reopen_in(work), pause_ns);
        clock_ns += pause_ns - 1;
        kv_tier_work_reopen(work);
        assert_int_equal(fake[0].open_calls, i);
        clock_ns++;
        fake[0].broken = i % 2 ? ERR_IO : ERR_INVALID; /* whatever it says now */
        if (i == 8) fake[0].broken = OK;
        kv_tier_work_reopen(work);
        assert_int_equal(fake[0].open_calls, i + 1);
        pause_ns = 2 * pause_ns < 60 * NS_PER_S ? 2 * pause_ns : 60 * NS_PER_S;
    }
    assert_int_equal(kv_tier_work_reopen_in(work), TIME_NEVER);
    assert_int_equal(fake[1].open_calls, 1);
    assert_false(row(0).broken);
    struct kv_tier_op op = op_of(KV_TIER_STORE, 0, 4, numbers);
    struct kv_tier_job *job = kv_tier_job_new(&op);
    struct kv_tier_event e;
    assert_true(kv_tier_work_store(work, job, &e));
    assert_true(e.news_lost); /* it may have something that routers were never told of */
    kv_tier_event_free(&e);
    kv_tier_job_free(job);
    assert_int_equal(load(0, 4).from[0], 4);
}

static void reading_is_worth_it_when_it_is_faster_than_computing(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes, rate, open_ns;
        uint32_t tokens, token_ns;
        bool worth;
    } cases[] = {
        {1000, 0, 0, 1, 1, true},                   /* not measured: tried */
        {1000, 1, 0, 1, 0, true},                   /* nobody knows what computing takes */
        {1000000, 1000000000, 0, 16, 100000, true}, /* 1 ms against 1.6 */
        {1000000, 1000000000, 0, 16, 60000, false}, /* against 0.96 */
        {1000000, 1000000000, NS_PER_MS, 16, 100000, false},
        {UINT64_MAX / 2, 1, 0, UINT32_MAX, UINT32_MAX, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(kv_tiers_worth(cases[i].bytes, cases[i].rate, cases[i].open_ns,
                                        cases[i].tokens, cases[i].token_ns),
                         cases[i].worth);
}

static void a_breaker_waits_longer_each_time_up_to_a_minute(void **state)
{
    (void)state;
    struct kv_breaker b = {.failures_max = 2};
    uint64_t now_ns = NS_PER_S, pause_ns = NS_PER_S;
    assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_SAME);
    assert_int_equal(kv_breaker_note(&b, true, now_ns), KV_BREAKER_SAME);
    assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_SAME); /* in a row, that is */
    assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_BROKE);
    for (int i = 0; i < 10; i++) {
        assert_false(kv_breaker_lets(&b, now_ns + pause_ns - 1));
        assert_true(kv_breaker_lets(&b, now_ns + pause_ns));
        now_ns += pause_ns;
        assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_SAME);
        pause_ns = 2 * pause_ns < 60 * NS_PER_S ? 2 * pause_ns : 60 * NS_PER_S;
    }
    assert_int_equal(kv_breaker_note(&b, true, now_ns), KV_BREAKER_BACK);
    assert_true(kv_breaker_lets(&b, now_ns));
    assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_SAME);
}

/* ---- news ---- */

/* The prompt's blocks as routers know them. */
static void make_hashes(uint64_t hashes[BLOCKS])
{
    prefix_hash_chain(3, tokens, BLOCKS, hashes);
}

static uint32_t heard_of(uint64_t hash, bool is_gone)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < heard_count; i++)
        n += heard[i].hash == hash && heard[i].gone == is_gone;
    return n;
}

static void open_memory_tier(uint32_t values)
{
    struct kv_tiers_options o = options_of(1);
    clock_ns =
        clock_now_ns() + 1000 * NS_PER_S; /* for a tier that has the real one, all is in time */
    o.tier[0].ops = &kv_tier_memory;
    o.tier[0].options.bytes_max = values * (kv_tier_entry_bytes(&geometry) + 48);
    assert_int_equal(kv_tier_work_new(&work, &o), OK);
}

static void what_comes_and_goes_is_said_by_the_names_that_routers_know(void **state)
{
    (void)state;
    uint64_t hashes[BLOCKS];
    make_hashes(hashes);
    open_memory_tier(8);
    assert_int_equal(store(0, 6).count, 6);
    assert_int_equal(heard_count, 6);
    for (uint32_t i = 0; i < 6; i++) {
        assert_true(heard[i].hash == hashes[i] && !heard[i].gone);
        assert_int_equal(heard[i].kind, KV_TIER_HOST);
    }
    assert_int_equal(store(6, 6).count, 6);
    for (uint32_t i = 0; i < 12; i++) {
        assert_int_equal(heard_of(hashes[i], false), i >= 6);
        assert_int_equal(heard_of(hashes[i], true), i >= 2 && i < 6); /* of one op the last first */
    }
    assert_int_equal(load(0, 2).count, 2);
    assert_int_equal(heard_count, 0);
}

static void all_that_local_tiers_have_is_listed(void **state)
{
    (void)state;
    uint64_t hashes[BLOCKS];
    make_hashes(hashes);
    open_memory_tier(20);
    store(0, 12);
    struct kv_tier_op op = {.kind = KV_TIER_LIST, .id = 77};
    assert_int_equal(do_op(&op).place == KV_TIER_PLACE_END, true);
    assert_int_equal(heard_count, 12);
    for (uint32_t i = 0; i < 12; i++)
        assert_int_equal(heard_of(hashes[i], false), 1);
    op.place = (uint64_t)7 << 32 | 5; /* no such tier: from an earlier life */
    assert_int_equal(do_op(&op).place == KV_TIER_PLACE_END, true);
    assert_int_equal(heard_count, 0);
}

static void a_block_is_expected_to_take_what_was_measured(void **state)
{
    (void)state;
    struct kv_tiers_stats stats;
    open_memory_tier(20);
    store(0, 12);
    kv_tier_work_stats(work, &stats);
    assert_true(stats.block_ns[KV_TIER_HOST] > 0); /* a usual one */
    assert_int_equal(stats.block_ns[KV_TIER_DISK], 0);
    load(0, 12); /* on a clock that stands still: no time at all */
    kv_tier_work_stats(work, &stats);
    assert_int_equal(stats.block_ns[KV_TIER_HOST], 1);
}

/* ---- the thread ---- */

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
    while (kv_tiers_stop(h->tiers) != OK)
        ;
    kv_tiers_close(h->tiers);
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
        ROW(what_was_stored_is_loaded_bit_by_bit),
        ROW(another_tenant_finds_nothing),
        ROW(what_comes_and_goes_is_said_by_the_names_that_routers_know),
        ROW(all_that_local_tiers_have_is_listed),
        ROW(a_block_is_expected_to_take_what_was_measured),
        ROW(a_run_ends_where_no_tier_goes_on),
        ROW(a_window_is_loaded_where_it_is_whole),
        ROW(each_tier_gets_what_it_lacks),
        ROW(a_wrong_entry_is_a_miss_and_removed),
        ROW(behind_a_wrong_entry_the_next_tier_is_asked),
        ROW(what_it_says_and_does_not_give_is_a_miss),
        ROW(a_load_ends_at_its_deadline_with_what_is_there),
        ROW(a_prompt_with_time_to_spare_is_loaded_longer),
        ROW(a_load_whose_time_is_over_touches_no_tier),
        ROW(a_tier_slower_than_computing_is_not_read),
        ROW(a_dead_tier_is_left_alone_and_comes_back),
        ROW(a_full_tier_is_still_read),
        ROW(a_tier_that_cannot_be_opened_is_said_by_name),
        ROW(a_tier_that_is_not_usable_is_done_without),
        ROW(what_could_not_be_opened_is_tried_again),
        ROW(reading_is_worth_it_when_it_is_faster_than_computing),
        ROW(a_breaker_waits_longer_each_time_up_to_a_minute),
        ROW(each_op_ends_in_one_event_and_loads_go_first),
        ROW(ops_of_a_tier_that_is_stuck_are_taken_back),
        ROW(the_end_does_not_wait_for_a_tier_that_is_stuck),
        ROW(what_waits_at_the_end_ends_with_none),
        ROW(stores_are_refused_before_loads),
        ROW(every_failing_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
