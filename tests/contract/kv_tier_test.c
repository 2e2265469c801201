/* The contract of kv/tier.h, for each tier. The shared store is a server of this test's own on a socket in a
 * temporary directory; where no redis-server is installed its part is skipped, with a line. */
#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kv/tier.h"
#include "tests/unit/redis_rig.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tier_rig.h"

enum { VALUES = 64, SLOTS = 24 };

/* Whose values were said to have gone, by number. */
static bool gone[VALUES];

static void on_gone(void *ctx, struct id128 key)
{
    (void)ctx;
    uint32_t n = 0;
    while (n < VALUES && !id128_equal(rig_key(n), key))
        n++;
    if (n < VALUES) gone[n] = true;
}

struct subject {
    const char *name;
    const struct kv_tier_ops *ops;
    struct kv_tier *tier;
    struct kv_tier_options options;
    char dir[PATH_MAX], where[PATH_MAX + 32];
    struct redis_rig redis;
    unsigned char *room[VALUES]; /* where values are read to */
    unsigned char *value[VALUES];
};

static void reopen(struct subject *s)
{
    s->ops->close(s->tier);
    s->tier = NULL;
    assert_ok(s->ops->open(&s->tier, &s->options));
}

/* bytes_max for exactly SLOTS values; a server's bound is its own business. */
static uint64_t bytes_for_slots(const char *name)
{
    if (strcmp(name, "disk") == 0) return ((uint64_t)8 << 20) + 4096 + SLOTS * (12288 + 192);
    return SLOTS * (RIG_VALUE_BYTES + 48);
}

static bool bounded(const struct subject *s)
{
    return strcmp(s->name, "redis") != 0;
}

static int open_subject(void **state, const char *name)
{
    struct subject *s = mem_new(sizeof *s);
    assert_non_null(s);
    s->name = name;
    assert_ok(kv_tier_find(name, &s->ops));
    assert_string_equal(s->ops->name, name);
    scratch_make(s->dir);
    snprintf(s->where, sizeof s->where, "%.*s/deep/down", PATH_MAX, s->dir);
    bool server = strcmp(name, "redis") == 0;
    if (server) assert_true(redis_rig_start(&s->redis, s->dir, NULL));
    s->options = (struct kv_tier_options){.where = server ? s->redis.where : s->where,
                                          .bytes_max = bytes_for_slots(name),
                                          .value_bytes = RIG_VALUE_BYTES,
                                          .on_gone = on_gone,
                                          .space = rig_space()};
    assert_ok(s->ops->open(&s->tier, &s->options));
    for (uint32_t i = 0; i < VALUES; i++) {
        s->room[i] = mem_aligned(RIG_VALUE_BYTES, 64);
        s->value[i] = mem_aligned(RIG_VALUE_BYTES, 64);
        assert_true(s->room[i] && s->value[i]);
    }
    *state = s;
    return 0;
}

static int open_memory(void **state)
{
    return open_subject(state, "memory");
}
static int open_disk(void **state)
{
    return open_subject(state, "disk");
}

static int open_redis(void **state)
{
    return open_subject(state, "redis");
}

static int close_subject(void **state)
{
    struct subject *s = *state;
    s->ops->close(s->tier);
    redis_rig_stop(&s->redis);
    for (uint32_t i = 0; i < VALUES; i++) {
        mem_free(s->room[i]);
        mem_free(s->value[i]);
    }
    scratch_remove(s->dir);
    mem_free(s);
    return 0;
}

/* --- operations on values by their numbers --- */

static uint64_t soon(void)
{
    return clock_now_ns() + 60 * NS_PER_S;
}

static enum err put_some(struct subject *s, const uint32_t *n, uint32_t count, uint32_t *kept)
{
    struct id128 keys[VALUES];
    const void *values[VALUES];
    for (uint32_t i = 0; i < count; i++) {
        keys[i] = rig_key(n[i]);
        rig_fill(s->value[i], n[i]);
        values[i] = s->value[i];
    }
    return s->ops->put(s->tier, keys, count, values, soon(), kept);
}

static void put(struct subject *s, const uint32_t *n, uint32_t count)
{
    uint32_t kept;
    assert_ok(put_some(s, n, count, &kept));
    assert_int_equal(kept, count);
}

static void put_range(struct subject *s, uint32_t first, uint32_t count)
{
    uint32_t n[VALUES];
    for (uint32_t i = 0; i < count; i++)
        n[i] = first + i;
    put(s, n, count);
}

/* How many of them it says it has: the same number by `has` and by `get`, with the right values. */
static uint32_t get(struct subject *s, const uint32_t *n, uint32_t count)
{
    struct id128 keys[VALUES];
    void *values[VALUES];
    uint32_t found, got;
    for (uint32_t i = 0; i < count; i++) {
        keys[i] = rig_key(n[i]);
        values[i] = s->room[i];
        memset(s->room[i], 0xee, RIG_VALUE_BYTES);
    }
    assert_ok(s->ops->has(s->tier, keys, count, soon(), &found));
    assert_ok(s->ops->get(s->tier, keys, count, values, soon(), &got));
    assert_int_equal(found, got);
    for (uint32_t i = 0; i < got; i++)
        assert_true(rig_is(s->room[i], n[i]));
    return got;
}

static bool has(struct subject *s, uint32_t n)
{
    struct id128 key = rig_key(n);
    uint32_t found;
    assert_ok(s->ops->has(s->tier, &key, 1, soon(), &found));
    return found == 1;
}

static void remove_one(struct subject *s, uint32_t n)
{
    struct id128 key = rig_key(n);
    assert_ok(s->ops->remove(s->tier, &key, 1, soon()));
}

/* --- promises --- */

static void what_was_put_is_got(void **state)
{
    struct subject *s = *state;
    uint32_t n[] = {5, 900, 6, 901};
    assert_int_equal(get(s, n, 4), 0);
    put(s, n, 4);
    assert_int_equal(get(s, n, 4), 4);
    put(s, n, 4); /* again: no error */
    assert_int_equal(get(s, n, 4), 4);
    assert_int_equal(get(s, n, 0), 0);
}

static void only_the_leading_run_counts(void **state)
{
    struct subject *s = *state;
    uint32_t kept[] = {1, 2, 4, 5}, asked[] = {1, 2, 3, 4, 5}, missing[] = {3, 1};
    put(s, kept, 4);
    assert_int_equal(get(s, asked, 5), 2);
    assert_int_equal(get(s, missing, 2), 0);
}

static void what_is_removed_is_gone_and_can_come_back(void **state)
{
    struct subject *s = *state;
    uint32_t n[] = {1, 2, 3};
    put(s, n, 3);
    remove_one(s, 2);
    remove_one(s, 77); /* no error */
    assert_int_equal(get(s, n, 3), 1);
    put(s, n, 3);
    assert_int_equal(get(s, n, 3), 3);
}

static void a_key_named_twice_is_kept_once(void **state)
{
    struct subject *s = *state;
    uint32_t n[] = {8, 9, 8, 8};
    put(s, n, 4);
    assert_int_equal(get(s, n, 4), 4);
    struct kv_tier_stats stats;
    s->ops->stats(s->tier, &stats);
    if (bounded(s)) assert_int_equal(stats.entries_count, 2);
}

static void the_least_recently_used_goes_first(void **state)
{
    struct subject *s = *state;
    for (uint32_t i = 0; i < SLOTS; i++)
        put(s, &i, 1);
    uint32_t used[] = {0, 1}, more[] = {100, 101};
    assert_int_equal(get(s, used, 1), 1); /* read */
    put(s, &used[1], 1);                  /* put again */
    put(s, more, 2);
    assert_true(has(s, 0) && has(s, 1));
    assert_false(has(s, 2) || has(s, 3));
    assert_true(has(s, 4));
}

static void of_one_call_the_first_key_goes_last(void **state)
{
    struct subject *s = *state;
    put_range(s, 0, SLOTS);
    put_range(s, 100, 3);
    assert_true(has(s, 0) && has(s, SLOTS - 4));
    assert_false(has(s, SLOTS - 1) || has(s, SLOTS - 2) || has(s, SLOTS - 3));
}

/* Two calls for one prompt, of which the second is no reason to give up what the first one has. */
static void of_what_is_touched_the_first_key_goes_last(void **state)
{
    struct subject *s = *state;
    struct id128 keys[SLOTS + 1];
    put_range(s, 0, SLOTS / 2);
    put_range(s, SLOTS / 2, SLOTS - SLOTS / 2);
    for (uint32_t i = 0; i < SLOTS; i++)
        keys[i] = rig_key(i);
    keys[SLOTS] = rig_key(5000); /* it has not */
    assert_ok(s->ops->touch(s->tier, keys, SLOTS + 1, soon()));
    put_range(s, 100, 3);
    for (uint32_t i = 0; i < SLOTS; i++)
        assert_int_equal(has(s, i), i < SLOTS - 3);
    assert_ok(s->ops->touch(s->tier, keys + 2, SLOTS - 5, soon()));
    put_range(s, 200, 5); /* 0 and 1, and the three before */
    assert_false(has(s, 0) || has(s, 1) || has(s, 100));
    assert_true(has(s, 2) && has(s, SLOTS - 4));
    assert_ok(s->ops->touch(s->tier, keys, 0, soon()));
}

static void it_never_holds_more_than_it_may(void **state)
{
    struct subject *s = *state;
    struct kv_tier_stats stats;
    for (uint32_t i = 0; i < 10; i++) {
        put_range(s, 10 * i, 10);
        s->ops->stats(s->tier, &stats);
        assert_true(stats.bytes <= s->options.bytes_max);
        assert_int_equal(stats.entries_count, i < 2 ? 10 * (i + 1) : SLOTS);
    }
    assert_int_equal(stats.evicted, 100 - SLOTS);
    assert_int_equal(stats.removed, 0);
}

static void more_values_than_fit_are_kept_from_the_front(void **state)
{
    struct subject *s = *state;
    uint32_t n[SLOTS + 4], kept;
    for (uint32_t i = 0; i < SLOTS + 4; i++)
        n[i] = 1000 + i;
    put_range(s, 0, 5);
    assert_int_equal(put_some(s, n, SLOTS + 4, &kept), ERR_FULL);
    assert_int_equal(kept, SLOTS);
    assert_int_equal(get(s, n, SLOTS + 4), SLOTS);
}

static void a_deadline_that_is_over_ends_calls_at_once(void **state)
{
    struct subject *s = *state;
    uint32_t n[] = {1, 2}, count;
    struct id128 keys[] = {rig_key(1), rig_key(2), rig_key(3)};
    void *values[] = {s->room[0], s->room[1]};
    const void *more[] = {s->value[0]};
    put(s, n, 2);
    assert_int_equal(s->ops->get(s->tier, keys, 2, values, 1, &count), ERR_TIMEOUT);
    assert_int_equal(count, 0);
    assert_int_equal(s->ops->put(s->tier, &keys[2], 1, more, 1, &count), ERR_TIMEOUT);
    assert_int_equal(count, 0);
    assert_false(has(s, 3));
    assert_int_equal(get(s, n, 2), 2);
}

static void what_another_space_kept_is_not_found(void **state)
{
    struct subject *s = *state;
    uint32_t n[] = {1, 2};
    put(s, n, 2);
    struct id128 keys[] = {rig_key(1), rig_key(2)};
    s->options.space.lo++;
    reopen(s);
    uint32_t found;
    assert_ok(s->ops->has(s->tier, keys, 2, soon(), &found));
    assert_int_equal(found, 0);
}

static void it_can_be_opened_again(void **state)
{
    struct subject *s = *state;
    uint32_t n[] = {1, 2, 3};
    put(s, n, 3);
    reopen(s);
    assert_int_equal(get(s, n, 3), strcmp(s->name, "memory") == 0 ? 0 : 3);
    s->ops->close(NULL);
}

static void short_memory_at_open_is_an_error(void **state)
{
    struct subject *s = *state;
    enum err e = ERR_MEMORY;
    uint32_t n[] = {1, 2}, failed = 0;
    s->ops->close(s->tier);
    for (; e != OK; failed++) {
        assert_true(failed < 50);
        mem_fail_at(failed + 1);
        e = s->ops->open(&s->tier, &s->options);
        mem_fail_at(0);
        if (e != OK) {
            assert_int_equal(e, ERR_MEMORY);
            assert_null(s->tier);
        }
    }
    assert_true(failed > 1);
    put(s, n, 2);
    assert_int_equal(get(s, n, 2), 2);
}

static void too_little_room_for_one_is_refused(void **state)
{
    struct subject *s = *state;
    struct kv_tier_options small = s->options;
    struct kv_tier *tier;
    s->ops->close(s->tier);
    s->tier = NULL;
    small.bytes_max = RIG_VALUE_BYTES - 1;
    assert_int_equal(s->ops->open(&tier, &small), ERR_INVALID);
    assert_null(tier);
}

/* --- random operations --- */

/* The numbers that are kept, least recently used first. */
struct model {
    uint32_t n[SLOTS], count;
};

static bool model_forget(struct model *m, uint32_t n)
{
    for (uint32_t i = 0; i < m->count; i++) {
        if (m->n[i] != n) continue;
        memmove(&m->n[i], &m->n[i + 1], (m->count - i - 1) * sizeof *m->n);
        m->count--;
        return true;
    }
    return false;
}

static void model_use(struct model *m, uint32_t n)
{
    if (!model_forget(m, n) && m->count == SLOTS) model_forget(m, m->n[0]);
    m->n[m->count++] = n;
}

static uint32_t model_leading(const struct model *m, const uint32_t *n, uint32_t count)
{
    uint32_t lead = 0;
    for (bool there = true; there && lead < count; lead += there) {
        there = false;
        for (uint32_t i = 0; i < m->count; i++)
            there |= m->n[i] == n[lead];
    }
    return lead;
}

static void random_step(struct subject *s, struct model *m, uint32_t step)
{
    struct rng_block r = rng_draw(17, 0, step);
    uint32_t names = bounded(s) ? 2 * SLOTS : SLOTS, n[6];
    uint32_t count = 1 + rng_below(r.word[0], 6), first = rng_below(r.word[1], names - 6);
    for (uint32_t i = 0; i < count; i++)
        n[i] = first + i;
    switch (r.word[2] % 8) {
    case 0:
        remove_one(s, n[0]);
        model_forget(m, n[0]);
        return;
    case 1:
        if (strcmp(s->name, "memory") != 0 && step % 5 == 0) reopen(s);
        return;
    case 2:
    case 3:
    case 4:
        put(s, n, count);
        for (uint32_t i = 0; i < count; i++) /* all count as used before the first is evicted */
            if (model_forget(m, n[i])) m->n[m->count++] = n[i];
        for (uint32_t i = 0; i < count; i++)
            model_use(m, n[i]);
        break;
    default:
        assert_int_equal(get(s, n, count), model_leading(m, n, count));
        count = model_leading(m, n, count);
    }
    while (count-- > 0)
        model_use(m, n[count]);
}

static void random_operations_agree_with_a_naive_model(void **state)
{
    struct subject *s = *state;
    struct model m = {.count = 0};
    for (uint32_t step = 0; step < 1500; step++)
        random_step(s, &m, step);
    for (uint32_t n = 0; n < 2 * SLOTS; n++)
        assert_int_equal(has(s, n), model_leading(&m, &n, 1));
}

/* By the list: which of the first VALUES values it has. Nothing twice. */
static uint32_t list_all(struct subject *s, bool *listed)
{
    struct id128 keys[5];
    uint32_t place = 0, total = 0;
    memset(listed, 0, VALUES * sizeof *listed);
    while (place != KV_TIER_LIST_END) {
        uint32_t count = s->ops->list(s->tier, &place, keys, 5);
        for (uint32_t i = 0; i < count; i++, total++)
            for (uint32_t n = 0; n < VALUES; n++)
                if (id128_equal(rig_key(n), keys[i])) {
                    assert_false(listed[n]);
                    listed[n] = true;
                }
    }
    return total;
}

static void what_it_has_is_listed_and_what_goes_is_said(void **state)
{
    struct subject *s = *state;
    bool listed[VALUES];
    memset(gone, 0, sizeof gone);
    assert_int_equal(list_all(s, listed), 0);
    put_range(s, 0, 4);
    const uint32_t n = 2;
    struct id128 key = rig_key(n);
    assert_ok(s->ops->remove(s->tier, &key, 1, soon()));
    assert_int_equal(gone[2], bounded(s));
    if (bounded(s))
        for (uint32_t first = 4; first < 2 * SLOTS; first += 4)
            put_range(s, first, 4); /* others are evicted */
    assert_int_equal(list_all(s, listed), bounded(s) ? SLOTS : 0);
    for (uint32_t i = 0; bounded(s) && i < 2 * SLOTS; i++) {
        assert_int_equal(listed[i], !gone[i]);
        assert_int_equal(listed[i], has(s, i) > 0);
    }
}

static void tiers_are_found_by_name(void **state)
{
    (void)state;
    const struct kv_tier_ops *ops;
    assert_int_equal(kv_tier_find("tape", &ops), ERR_NOT_FOUND);
    assert_null(ops);
}

#define PROMISE(test, open) cmocka_unit_test_setup_teardown(test, open, close_subject)
#define PROMISES(open)                                                                             \
    PROMISE(what_was_put_is_got, open), PROMISE(only_the_leading_run_counts, open),                \
        PROMISE(what_is_removed_is_gone_and_can_come_back, open),                                  \
        PROMISE(a_key_named_twice_is_kept_once, open),                                             \
        PROMISE(a_deadline_that_is_over_ends_calls_at_once, open),                                 \
        PROMISE(what_another_space_kept_is_not_found, open),                                       \
        PROMISE(it_can_be_opened_again, open), PROMISE(short_memory_at_open_is_an_error, open),    \
        PROMISE(what_it_has_is_listed_and_what_goes_is_said, open),                                \
        PROMISE(random_operations_agree_with_a_naive_model, open)
/* Of those that have a bound of their own. */
#define BOUNDS(open)                                                                               \
    PROMISE(the_least_recently_used_goes_first, open),                                             \
        PROMISE(of_one_call_the_first_key_goes_last, open),                                        \
        PROMISE(of_what_is_touched_the_first_key_goes_last, open),                                 \
        PROMISE(it_never_holds_more_than_it_may, open),                                            \
        PROMISE(more_values_than_fit_are_kept_from_the_front, open),                               \
        PROMISE(too_little_room_for_one_is_refused, open)

static bool redis_is_there(void)
{
    struct redis_rig rig;
    char dir[PATH_MAX];
    scratch_make(dir);
    bool there = redis_rig_start(&rig, dir, NULL);
    redis_rig_stop(&rig);
    scratch_remove(dir);
    return there;
}

int main(void)
{
    const struct CMUnitTest every[] = {cmocka_unit_test(tiers_are_found_by_name)};
    const struct CMUnitTest memory[] = {PROMISES(open_memory), BOUNDS(open_memory)};
    const struct CMUnitTest disk[] = {PROMISES(open_disk), BOUNDS(open_disk)};
    const struct CMUnitTest redis[] = {PROMISES(open_redis)};
    int failed = cmocka_run_group_tests_name("tiers", every, NULL, NULL);
    failed += cmocka_run_group_tests_name("memory", memory, NULL, NULL);
    failed += cmocka_run_group_tests_name("disk", disk, NULL, NULL);
    if (redis_is_there()) failed += cmocka_run_group_tests_name("redis", redis, NULL, NULL);
    return failed;
}
