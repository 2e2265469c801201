/* kv_event_pack: a node's block events in the form in which vLLM publishes its own, for routers and indexers
 * that read that. Pure.
 *
 *     struct kv_event_pack *p;
 *     if ((e = kv_event_pack_new(&p, KV_EVENT_ARRAY)) != OK) return e;
 *     kv_event_pack_add(p, &block);                       // in order; any number
 *     if (kv_event_pack_any(p)) e = kv_event_pack_end(p, seconds, &payload);   // and begins anew
 *
 * A payload is one EventBatch in MessagePack: [ts, [event, ...], data_parallel_rank]. An event is an array with
 * its name in front, as vLLM wrote them up to 0.23, or a map, as it does since 0.24:
 *     ["BlockStored", [block_hash, ...], parent_block_hash, [token_id, ...], block_size, lora_id, medium,
 *      lora_name]
 *     ["BlockRemoved", [block_hash, ...], medium]
 *     ["AllBlocksCleared"]
 *
 *     {"type": "BlockStored", "block_hashes": [...], "parent_block_hash": ..., "token_ids": [...],
 *      "block_size": ..., "lora_id": nil, "medium": ..., "lora_name": nil, "locality": ...}
 *     {"type": "BlockRemoved", "block_hashes": [...], "medium": ..., "locality": ...}
 *     {"type": "AllBlocksCleared"}
 *
 * Hashes are unsigned 64-bit numbers (common/prefix_hash.h); the parent of a prompt's first block is nil.
 * Blocks that follow each other become one event. `medium` is "GPU" for the pool, whatever the device: readers
 * take that for what can be computed on at once; "CPU" is the host tier, "STORAGE" a disk or a shared store.
 * `locality`, of maps with "STORAGE" alone, is "LOCAL" for a disk and "REMOTE" for a shared store.
 * Of a block that a tier has and the prefix cache has not the parent is nil and no token ids are told.
 * lora_id and lora_name are nil, the rank 0.
 *
 * Rules: nothing is allocated once its buffer has grown to what one batch takes, at most
 * KV_EVENT_BATCH_BYTES; whoever adds looks at kv_event_pack_full. Owner: one thread. */
#ifndef TANDEM_NODE_KV_EVENT_PACK_H
#define TANDEM_NODE_KV_EVENT_PACK_H

#include "common/buf.h"
#include "node/core.h"

enum kv_event_form { KV_EVENT_ARRAY, KV_EVENT_MAP }; /* in the order of --kv-events-form */
enum { KV_EVENT_BATCH_BYTES = 1 << 20, KV_EVENT_RUN_BLOCKS = 256 };

struct kv_event_pack;

enum err kv_event_pack_new(struct kv_event_pack **pack, enum kv_event_form form);
void kv_event_pack_free(struct kv_event_pack *pack); /* NULL is allowed */
void kv_event_pack_add(struct kv_event_pack *pack, const struct node_block *block);
void kv_event_pack_clear_all(struct kv_event_pack *pack); /* AllBlocksCleared */
bool kv_event_pack_any(const struct kv_event_pack *pack);
bool kv_event_pack_full(const struct kv_event_pack *pack);
/* The batch, appended to `payload`; the pack is empty afterwards, on an error too. */
enum err kv_event_pack_end(struct kv_event_pack *pack, double seconds, struct buf *payload);

#endif
