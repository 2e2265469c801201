#include "tests/unit/testing.h"

#include <stdio.h>

#include "common/mem.h"
#include "common/rng.h"
#include "router/fair.h"

enum { TENANTS = 8, ENTRIES = 64 };

struct item {
    struct heap_entry turn;
    uint32_t cost;
};
struct side {
    struct fair_tenant *tenant;
    struct item item[ENTRIES];
    uint32_t made, served;
    uint64_t cost;
};
struct world {
    struct fair fair;
    struct side side[TENANTS];
};

static void join(struct world *w, uint32_t i, uint32_t weight)
{
    char name[16];
    snprintf(name, sizeof name, "t%u", i);
    w->side[i].tenant = fair_join(&w->fair, name, 100 + i, weight);
    assert_non_null(w->side[i].tenant);
    assert_ok(fair_reserve(w->side[i].tenant, ENTRIES));
}

static void ask(struct world *w, uint32_t i, uint64_t key, uint32_t cost)
{
    struct side *s = &w->side[i];
    struct item *item = s->item;
    while (heap_holds(&item->turn))
        item++;
    assert_true(item < s->item + ENTRIES);
    s->made++;
    *item = (struct item){.cost = cost};
    fair_queue(&w->fair, s->tenant, &item->turn, key);
}

/* Serves one; returns whose it was, UINT32_MAX: nobody waits. */
static uint32_t serve(struct world *w)
{
    struct fair_tenant *t = fair_next(&w->fair);
    if (!t) return UINT32_MAX;
    struct heap_entry *first = heap_first(&t->queue);
    struct item *item = list_member(first, struct item, turn);
    struct side *s = &w->side[t->salt - 100];
    fair_unqueue(&w->fair, t, first);
    fair_start(&w->fair, t);
    fair_charge(&w->fair, t, item->cost);
    fair_end(&w->fair, t);
    s->served++;
    s->cost += item->cost;
    return (uint32_t)(t->salt - 100);
}

static void leave_all(struct world *w)
{
    while (serve(w) != UINT32_MAX)
        continue;
    for (uint32_t i = 0; i < TENANTS; i++) {
        if (!w->side[i].tenant) continue;
        fair_unreserve(w->side[i].tenant, ENTRIES);
        fair_leave(&w->fair, w->side[i].tenant);
    }
    fair_audit(&w->fair);
    fair_fini(&w->fair);
}

static void tokens_are_shared_by_weight(void **state)
{
    (void)state;
    const uint32_t weights[] = {1, 2, 5}, costs[] = {400, 10, 90};
    struct world w = {0};
    fair_init(&w.fair);
    for (uint32_t i = 0; i < 3; i++)
        join(&w, i, weights[i]);
    for (uint32_t step = 0; step < 4000; step++) {
        for (uint32_t i = 0; i < 3; i++)
            while (w.side[i].made - w.side[i].served < 4)
                ask(&w, i, step, costs[i]);
        serve(&w);
        /* While all wait, nobody is ahead by more than the largest request over its weight. */
        for (uint32_t i = 0; i < 3; i++)
            for (uint32_t k = 0; k < 3; k++) {
                double a = (double)w.side[i].cost / weights[i];
                double b = (double)w.side[k].cost / weights[k];
                assert_true(a - b <= 400.0);
            }
    }
    fair_audit(&w.fair);
    leave_all(&w);
}

static void who_was_away_is_next_but_has_no_credit(void **state)
{
    (void)state;
    struct world w = {0};
    fair_init(&w.fair);
    join(&w, 0, 1);
    join(&w, 1, 1);
    for (uint32_t i = 0; i < 40; i++)
        ask(&w, 0, i, 100);
    for (int i = 0; i < 20; i++)
        assert_int_equal(serve(&w), 0);
    for (uint32_t i = 0; i < 10; i++)
        ask(&w, 1, i, 100);
    uint32_t mine = 0;
    assert_int_equal(serve(&w), 1); /* at once */
    for (int i = 0; i < 19; i++)
        mine += serve(&w) == 1;
    assert_in_range(mine, 9, 10); /* and then by turns, though it was owed 2000 tokens' time */
    leave_all(&w);
}

static void a_tenant_that_rests_or_is_passed_over_keeps_its_place(void **state)
{
    (void)state;
    struct world w = {0};
    fair_init(&w.fair);
    for (uint32_t i = 0; i < 3; i++)
        join(&w, i, 1);
    ask(&w, 0, 5, 10);
    ask(&w, 0, 6, 10);
    ask(&w, 1, 1, 10);
    struct fair_tenant *first = fair_next(&w.fair);
    assert_ptr_equal(first, w.side[0].tenant);
    struct heap_entry *head = heap_first(&first->queue);
    fair_pass(&w.fair, first, head);
    assert_ptr_equal(fair_next(&w.fair), first); /* its second one */
    struct heap_entry *second = heap_first(&first->queue);
    fair_pass(&w.fair, first, second);
    assert_ptr_equal(fair_next(&w.fair), w.side[1].tenant);
    fair_put_back(&w.fair, first, head);
    fair_put_back(&w.fair, first, second);
    fair_rest(&w.fair, w.side[1].tenant);
    assert_ptr_equal(fair_next(&w.fair), first);
    assert_ptr_equal(heap_first(&first->queue), head);
    fair_rest(&w.fair, first);
    assert_null(fair_next(&w.fair));
    fair_wake(&w.fair);
    fair_audit(&w.fair);
    uint32_t counts[2] = {0};
    for (int i = 0; i < 3; i++)
        counts[serve(&w)]++;
    assert_int_equal(counts[0], 2);
    leave_all(&w);
}

static void over_its_share_is_who_has_more_places_than_weight(void **state)
{
    (void)state;
    struct world w = {0};
    fair_init(&w.fair);
    struct fair_tenant *unnamed = fair_join(&w.fair, "", 0, 1);
    fair_start(&w.fair, unnamed);
    assert_true(fair_alone(&w.fair));
    assert_false(fair_over(&w.fair, unnamed)); /* there are no others */
    fair_end(&w.fair, unnamed);
    fair_leave(&w.fair, unnamed);
    join(&w, 0, 1);
    fair_start(&w.fair, w.side[0].tenant);
    assert_true(fair_over(&w.fair, w.side[0].tenant)); /* where there are names there may be more */
    join(&w, 1, 3);
    assert_true(fair_over(&w.fair, w.side[0].tenant)); /* the other one may come */
    assert_false(fair_over(&w.fair, w.side[1].tenant));
    for (int i = 0; i < 3; i++)
        fair_start(&w.fair, w.side[1].tenant);
    assert_true(
        fair_over(&w.fair, w.side[0].tenant)); /* 1 of 4 places; its share is 1 of 1 + 3 + 1 */
    fair_start(&w.fair, w.side[1].tenant);
    assert_false(fair_over(&w.fair, w.side[0].tenant));
    assert_true(fair_over(&w.fair, w.side[1].tenant));
    for (int i = 0; i < 4; i++)
        fair_end(&w.fair, w.side[1].tenant);
    fair_end(&w.fair, w.side[0].tenant);
    leave_all(&w);
}

static void a_million_names_cost_no_more_than_those_that_ask(void **state)
{
    (void)state;
    struct world w = {0};
    fair_init(&w.fair);
    join(&w, 0, 1);
    ask(&w, 0, 0, 1);
    for (uint32_t i = 0; i < 1000000; i++) {
        struct fair_tenant *t = fair_join(&w.fair, "x", 1000000 + i, 1);
        assert_non_null(t);
        fair_leave(&w.fair, t);
        assert_true(w.fair.tenants.count <= FAIR_IDLE_MAX + 1);
    }
    fair_audit(&w.fair);
    assert_int_equal(serve(&w), 0);
    leave_all(&w);
}

static void random_turns_are_those_of_a_naive_search(void **state)
{
    (void)state;
    struct world w = {0};
    uint64_t time[TENANTS] = {0}, now = 0;
    fair_init(&w.fair);
    for (uint32_t i = 0; i < TENANTS; i++)
        join(&w, i, 1 + i % 3);
    for (uint32_t step = 0; step < 20000; step++) {
        struct rng_block r = rng_draw(7, 0, step);
        uint32_t i = r.word[1] % TENANTS;
        struct side *s = &w.side[i];
        if (r.word[0] % 2 && s->made - s->served < ENTRIES) {
            if (s->made == s->served && time[i] < now) time[i] = now;
            ask(&w, i, r.word[2] % 8, 1 + r.word[3] % 100);
        } else {
            struct fair_tenant *next = fair_next(&w.fair);
            if (!next) continue;
            uint64_t least = UINT64_MAX;
            for (uint32_t k = 0; k < TENANTS; k++)
                if (w.side[k].made > w.side[k].served && time[k] < least) least = time[k];
            struct item *item = list_member(heap_first(&next->queue), struct item, turn);
            uint64_t cost = item->cost;
            for (size_t n = 0; n < next->queue.count; n++)
                assert_true(next->queue.entry[n]->key >= item->turn.key);
            uint32_t who = serve(&w);
            assert_int_equal(time[who], least);
            now = least > now ? least : now;
            time[who] += cost * FAIR_UNIT / w.side[who].tenant->weight;
        }
        if (step % 64 == 0) fair_audit(&w.fair);
    }
    leave_all(&w);
}

static void without_memory_a_tenant_is_refused(void **state)
{
    (void)state;
    struct fair fair;
    fair_init(&fair);
    for (int n = 1; n <= 3; n++) {
        mem_fail_at(n);
        assert_null(fair_join(&fair, "a", 1, 1));
        mem_fail_at(0);
        assert_int_equal(fair.tenants.count, 0);
        fair_fini(&fair);
        fair_init(&fair);
    }
    struct fair_tenant *t = fair_join(&fair, "a", 1, 1);
    mem_fail_at(1);
    assert_int_equal(fair_reserve(t, 100), ERR_MEMORY);
    mem_fail_at(0);
    assert_ok(fair_reserve(t, 0));
    fair_leave(&fair, t);
    fair_fini(&fair);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_shared_by_weight),
        cmocka_unit_test(who_was_away_is_next_but_has_no_credit),
        cmocka_unit_test(a_tenant_that_rests_or_is_passed_over_keeps_its_place),
        cmocka_unit_test(over_its_share_is_who_has_more_places_than_weight),
        cmocka_unit_test(a_million_names_cost_no_more_than_those_that_ask),
        cmocka_unit_test(random_turns_are_those_of_a_naive_search),
        cmocka_unit_test(without_memory_a_tenant_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
