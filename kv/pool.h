/* kv_pool: the fixed set of KV blocks of one node, and who holds each of them. Numbers only: the
 * bytes belong to the engine (engine_kv), block id i is block number i there.
 *
 *     struct kv_pool *pool;
 *     if ((e = kv_pool_new(&pool, blocks_count)) != OK) return e;
 *     struct block_id b;
 *     if ((e = kv_pool_take(pool, HOLD_RESERVE, &b)) != OK) return e;  // ERR_FULL: evict or refuse
 *     kv_pool_hold(pool, b, HOLD_TRANSFER);                    // the transfer writes it
 *     kv_pool_move(pool, b, HOLD_RESERVE, HOLD_SEQUENCE);      // committed: the sequence runs
 *     kv_pool_drop(pool, b, HOLD_TRANSFER);
 *     kv_pool_drop(pool, b, HOLD_SEQUENCE);                    // the last owner has let go: free
 *
 * Rules: nothing is allocated after kv_pool_new. A block is free only when every hold of every kind
 * has been dropped. Dropping a hold that does not exist is a CHECK: only the node's own code holds
 * blocks. Each block is in exactly one state, so free + reserved + active + cached + transfer ==
 * total at all times. take, hold, move and drop are O(1).
 * Owner: the loop thread. The engine and link threads see block numbers in steps and ops, never
 * the pool. */
#ifndef TANDEM_KV_POOL_H
#define TANDEM_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

struct block_id {
    uint32_t v;
};
#define BLOCK_NONE ((struct block_id){UINT32_MAX})

/* Why a block is held. Its state is the first of these that has a hold: SEQUENCE or STEP: active;
 * RESERVE: reserved; TRANSFER: transfer; CACHE: cached; none: free. */
enum hold {
    HOLD_SEQUENCE, /* a running (or waiting, half-computed) sequence's block table */
    HOLD_STEP,     /* a submitted step names it */
    HOLD_RESERVE,  /* a sequence whose KV is still to arrive */
    HOLD_TRANSFER, /* a transfer or tier operation reads or writes it */
    HOLD_CACHE,    /* the prefix cache knows it by its tokens */
    HOLD_KINDS
};

struct kv_pool;

struct kv_pool_counts {
    uint32_t total, free, reserved, active, cached, transfer;
};

enum err kv_pool_new(struct kv_pool **pool, uint32_t blocks_count);
void kv_pool_free(struct kv_pool *pool); /* NULL is allowed */

/* A free block with one hold; ERR_FULL without a text if there is none: that is no error yet. The
 * block freed longest ago comes first, so that a stale id is noticed. */
enum err kv_pool_take(struct kv_pool *pool, enum hold kind, struct block_id *block);
void kv_pool_hold(struct kv_pool *pool, struct block_id block, enum hold kind);
void kv_pool_drop(struct kv_pool *pool, struct block_id block, enum hold kind);
void kv_pool_move(struct kv_pool *pool, struct block_id block, enum hold from, enum hold to);

uint32_t kv_pool_holds(const struct kv_pool *pool, struct block_id block, enum hold kind);
/* Holds of all kinds together. */
uint32_t kv_pool_holds_all(const struct kv_pool *pool, struct block_id block);
/* Goes up each time the block becomes free. */
uint32_t kv_pool_generation(const struct kv_pool *pool, struct block_id block);
struct kv_pool_counts kv_pool_counts(const struct kv_pool *pool);

/* The blocks in state cached, in the order in which their last other holder let go: what the prefix
 * cache evicts from. A parked block stays cached but is passed over until it is unparked, which
 * makes it the first one, or until somebody has held it and let go again. BLOCK_NONE: there is
 * none. */
struct block_id kv_pool_idle_first(const struct kv_pool *pool);
struct block_id kv_pool_parked_first(const struct kv_pool *pool);
void kv_pool_park(struct kv_pool *pool, struct block_id block);   /* cached blocks only */
void kv_pool_unpark(struct kv_pool *pool, struct block_id block); /* nothing if it is not parked */

/* O(blocks): counts every state anew and CHECKs it against the running counts. Tests, simulator. */
void kv_pool_audit(const struct kv_pool *pool);

#endif
