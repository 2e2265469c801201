/* kv_slots: keys are found, the oldest is the oldest, and nothing is lost or found twice. */
#include "tests/unit/testing.h"

#include "common/rng.h"
#include "kv/slots.h"

static struct id128 key_of(uint32_t n)
{
    return (struct id128){n * 0x100000001u, n};
}

static void free_slots_are_given_from_the_lowest(void **state)
{
    (void)state;
    struct kv_slots *s;
    assert_ok(kv_slots_new(&s, 3));
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(kv_slots_free_first(s), i);
        kv_slots_put(s, i, key_of(i));
    }
    assert_int_equal(kv_slots_free_first(s), KV_SLOT_NONE);
    kv_slots_remove(s, 1);
    assert_int_equal(kv_slots_free_first(s), 1);
    kv_slots_take(s, 1);
    assert_int_equal(kv_slots_free_first(s), KV_SLOT_NONE);
    assert_int_equal(kv_slots_used(s), 2);
    kv_slots_give_back(s, 1);
    assert_int_equal(kv_slots_free_first(s), 1);
    kv_slots_free(s);
}

/* What is used, the oldest first. */
struct model {
    uint32_t key[64], slot[64], count;
};

static void model_forget(struct model *m, uint32_t i)
{
    m->count--;
    for (; i < m->count; i++) {
        m->key[i] = m->key[i + 1];
        m->slot[i] = m->slot[i + 1];
    }
}

static uint32_t model_find(const struct model *m, uint32_t key)
{
    for (uint32_t i = 0; i < m->count; i++)
        if (m->key[i] == key) return i;
    return KV_SLOT_NONE;
}

static void random_use(struct kv_slots *s, struct model *m, uint32_t slots_count, uint32_t step)
{
    struct rng_block r = rng_draw(5, slots_count, step);
    uint32_t key = rng_below(r.word[0], slots_count * 2), i = model_find(m, key);
    uint32_t at = kv_slots_find(s, key_of(key));
    assert_int_equal(at, i == KV_SLOT_NONE ? KV_SLOT_NONE : m->slot[i]);
    if (at != KV_SLOT_NONE && r.word[1] % 4 == 0) {
        kv_slots_remove(s, at);
        model_forget(m, i);
        return;
    }
    if (at != KV_SLOT_NONE) {
        kv_slots_touch(s, at);
        model_forget(m, i);
    } else if ((at = kv_slots_free_first(s)) == KV_SLOT_NONE) {
        at = kv_slots_oldest(s);
        assert_int_equal(at, m->slot[0]);
        assert_true(id128_equal(kv_slots_key(s, at), key_of(m->key[0])));
        kv_slots_remove(s, at);
        model_forget(m, 0);
    }
    if (i == KV_SLOT_NONE) kv_slots_put(s, at, key_of(key));
    m->key[m->count] = key;
    m->slot[m->count++] = at;
}

static void random_uses_agree_with_a_naive_model(void **state)
{
    (void)state;
    for (uint32_t slots_count = 1; slots_count <= 40; slots_count += 13) {
        struct kv_slots *s;
        struct model m = {.count = 0};
        assert_ok(kv_slots_new(&s, slots_count));
        for (uint32_t step = 0; step < 20000; step++) {
            random_use(s, &m, slots_count, step);
            assert_int_equal(kv_slots_used(s), m.count);
            assert_int_equal(kv_slots_oldest(s), m.count ? m.slot[0] : KV_SLOT_NONE);
        }
        kv_slots_free(s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(free_slots_are_given_from_the_lowest),
        cmocka_unit_test(random_uses_agree_with_a_naive_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
