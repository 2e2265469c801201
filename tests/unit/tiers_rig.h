/* tiers_rig: a pool and tiers that are slow, dead, full or lie, on a clock of the test's.
 *
 *     open_tiers(2);
 *     fake[1].broken = ERR_PEER;
 *     assert_int_equal(store(0, 20).count, 20);      // blocks 0 … 19 of the prompt
 *     assert_int_equal(load(0, 20).count, 20);       // into the upper half of the pool
 *     assert_loaded(0, 20);
 *
 * Rules: begin and finish stand around each test. An op that is done by hand takes no time but what the fakes
 * say. Owner: the test's thread; a tier thread reads the clock and calls the fakes. */
#ifndef TANDEM_TESTS_TIERS_RIG_H
#define TANDEM_TESTS_TIERS_RIG_H

#include "tests/unit/testing.h"

#include <semaphore.h>
#include <stdbool.h>

#include "common/clock.h"
#include "kv/tier_entry.h"
#include "kv/tier_work.h"

enum { BLOCKS = 64, VALUES_MAX = 128, DEADLINE_MS = 20, HEARD_MAX = 256 };

extern const struct kv_geometry geometry;
extern _Atomic uint64_t clock_ns;
extern unsigned char *pool; /* [BLOCKS][block bytes] */
extern uint32_t pool_writes;
extern uint32_t prompt[BLOCKS * BLOCK_TOKENS], numbers[BLOCKS]; /* the prompt; 0, 1, 2 … */

/* One per index, as its options' `where` says: they outlive what opened them. */
struct fake {
    struct {
        struct id128 key;
        char *value;
    } entry[VALUES_MAX];
    uint32_t count, largest_get, largest_put, open_calls, has_calls, get_calls, put_calls, removed;
    uint32_t drops; /* so many that are asked for it finds damaged itself, as a disk does */
    uint64_t call_ns, value_ns;                /* what a call takes, and each value of it */
    enum err broken;                           /* what each call says */
    bool full, lies_of_key, lies_of_kv, loses; /* loses: says that it has what it does not give */
    sem_t *hangs, *hung; /* open, get and put wait for the one, and post the other before */
    size_t value_bytes;
};
extern struct fake fake[KV_TIERS_MAX];

int begin(void **state);
int finish(void **state);
struct kv_tiers_options options_of(uint32_t tiers_count);
struct kv_tier_op op_of(enum kv_tier_op_kind kind, uint32_t first, uint32_t count,
                        const uint32_t *blocks);

/* The work without a thread. */
extern struct kv_tier_work *work;
extern struct kv_tier_news heard[HEARD_MAX]; /* with the last op */
extern uint32_t heard_count;
enum err open_work(const struct kv_tiers_options *options);
void open_tiers(uint32_t tiers_count);
struct kv_tier_event do_op(const struct kv_tier_op *op);
struct kv_tier_event store(uint32_t first, uint32_t count);
struct kv_tier_event load(uint32_t first, uint32_t count);
struct kv_tier_row row(uint32_t i);
void assert_loaded(uint32_t first, uint32_t count);

#endif
