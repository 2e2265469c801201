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
 * total at all times. take, hold, move and drop are O(1), or
 * what the order of eviction takes for a block that becomes its candidate or ceases to be one.
 * Owner: the loop thread. The engine and link threads see block numbers in steps and ops, never
 * the pool. */
#ifndef TANDEM_KV_POOL_H
#define TANDEM_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "kv/evict.h"

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
    uint32_t pinned; /* of the cached ones: not to be evicted */
};

enum err kv_pool_new(struct kv_pool **pool, uint32_t blocks_count);
void kv_pool_free(struct kv_pool *pool); /* NULL is allowed */

/* A free block with one hold; ERR_FULL without a text if there is none: that is no error yet. The
 * block freed longest ago comes first, so that a stale id is noticed. */
enum err kv_pool_take(struct kv_pool *pool, enum hold kind, struct block_id *block);
void kv_pool_hold(struct kv_pool *pool, struct block_id block, enum hold kind);
void kv_pool_drop(struct kv_pool *pool, struct block_id block, enum hold kind);
/* The same for each of them, in order; a block that was not touched for long is waited for once. */
void kv_pool_drop_all(struct kv_pool *pool, const struct block_id *blocks, uint32_t blocks_count,
                      enum hold kind);
void kv_pool_move(struct kv_pool *pool, struct block_id block, enum hold from, enum hold to);

uint32_t kv_pool_holds(const struct kv_pool *pool, struct block_id block, enum hold kind);
/* Holds of all kinds together. */
uint32_t kv_pool_holds_all(const struct kv_pool *pool, struct block_id block);
/* The caller's note on a block that is held; gone when the block becomes free. */
void kv_pool_mark(struct kv_pool *pool, struct block_id block, bool marked);
bool kv_pool_is_marked(const struct kv_pool *pool, struct block_id block);
struct kv_pool_counts kv_pool_counts(const struct kv_pool *pool);

/* Blocks in state cached that are neither parked nor pinned are the candidates of this order from now
 * on, which the prefix cache evicts from. No block may be cached. The order is the caller's; NULL: none
 * any more. */
void kv_pool_order(struct kv_pool *pool, struct evict *order);
/* A parked block, whatever its state, is no candidate: it has cached children. */
void kv_pool_park(struct kv_pool *pool, struct block_id block);
void kv_pool_unpark(struct kv_pool *pool, struct block_id block);
/* Some block that is cached and parked, and not pinned. BLOCK_NONE: there is none. */
struct block_id kv_pool_parked_first(const struct kv_pool *pool);
/* A pinned block is no candidate; pins count. */
void kv_pool_pin(struct kv_pool *pool, struct block_id block);
void kv_pool_unpin(struct kv_pool *pool, struct block_id block);
uint32_t kv_pool_pins(const struct kv_pool *pool, struct block_id block);

/* O(blocks): counts every state anew and CHECKs it against the running counts. Tests, simulator. */
void kv_pool_audit(const struct kv_pool *pool);

#endif
