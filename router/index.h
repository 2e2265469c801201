/* index: which node holds which cached block: bounded, approximate, pure data.
 *
 *     struct index *index;
 *     if ((e = index_new(&index, 1 << 20)) != OK) return e;          // cached blocks it has room for
 *     uint16_t n = index_join(index);                                // a node has come
 *     index_add(index, n, hash, TIER_POOL);
 *     index_remove(index, n, hash, TIER_POOL);
 *     index_clear(index, n);                                         // all of the node's, at once
 *     index_match(index, hashes, count, n, &held);                   // how much of this prompt n holds
 *     index_leave(index, n);
 *
 * A hash table of buckets with eight slots; a hash has two buckets to be in, and a slot names up to five
 * nodes that hold the block:
 *
 *     slot, 16 bytes:  | 48 bits of the hash | holder | holder | holder | holder | holder |
 *     holder:          | node, 10 bits | life, 3 bits | in its pool | in its host's memory | on its disk |
 *
 * When both buckets are full, one of their slots makes room: which one is as good as random. A node's life
 * counts up when it leaves or clears, so its holders die without being looked for; dead ones are swept out
 * bit by bit as others are added, and a life only comes again after LIVES of them.
 *
 * Rules: every entry may be wrong (dropped, of a hash that collides, told late, of an earlier life), and
 * whoever acts upon it finds that out and pays with a miss. Add and remove look at sixteen slots, whatever
 * is in there; nothing is allocated after index_new. At most INDEX_HOLDERS_MAX nodes are known for one
 * block. Owner: the router's loop thread. */
#ifndef TANDEM_ROUTER_INDEX_H
#define TANDEM_ROUTER_INDEX_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/geometry.h"
#include "proto/msg.h"

enum {
    INDEX_NODES_MAX = 1024, /* at once */
    INDEX_HOLDERS_MAX = 80, /* two buckets of eight slots with five each */
    INDEX_BLOCKS_MIN = 64,
    INDEX_NONE = INDEX_NODES_MAX
};

struct index;

struct index_stats {
    uint64_t entries;     /* (node, block) pairs; dead ones too, until they are swept */
    uint64_t bytes;       /* that the table takes */
    uint64_t dropped;     /* pairs that made room for others */
    uint64_t added, gone; /* as told */
};

/* Room for about `blocks_max` pairs in slots of their own. */
enum err index_new(struct index **index, uint64_t blocks_max);
void index_free(struct index *index); /* NULL is allowed */

/* INDEX_NONE: there are INDEX_NODES_MAX. A number comes again as late as can be. */
uint16_t index_join(struct index *index);
void index_leave(struct index *index, uint16_t node);
void index_clear(struct index *index, uint16_t node);

void index_add(struct index *index, uint16_t node, uint64_t hash, enum block_tier tier);
void index_remove(struct index *index, uint16_t node, uint64_t hash, enum block_tier tier);

struct index_held {
    uint32_t pool; /* leading blocks in its pool */
    uint32_t host; /* in its pool or its host tier: at least as many */
    uint32_t any;  /* in these or further away: at least as many again */
};
/* Of the prompt whose blocks have these hashes. A node that holds a block holds those before it, so only
 * about log2(count) of them are looked up. */
struct index_held index_match(const struct index *index, uint16_t node, const uint64_t *hashes,
                              uint32_t count);
/* The nodes that have this block, anywhere: bit n % 64 of nodes[n / 64] for node n. */
enum { INDEX_SET_WORDS = INDEX_NODES_MAX / 64 };
struct index_set {
    uint64_t nodes[INDEX_SET_WORDS];
};
struct index_set index_holders(const struct index *index, uint64_t hash);
static inline bool index_set_has(const struct index_set *set, uint16_t node)
{
    return node != INDEX_NONE && set->nodes[node / 64] >> node % 64 & 1;
}
/* index_match of a prompt with a window: up to where the node holds what the window before its end, and the sinks,
 * lie in; the beginning it may have let go of. Looked at are one block of each of the last INDEX_WINDOWS_MAX
 * windows, and where there is one, its run's end and INDEX_SAMPLES of the blocks that are needed. */
enum { INDEX_WINDOWS_MAX = 256, INDEX_SAMPLES = 16 };
struct index_held index_match_window(const struct index *index, uint16_t node,
                                     const uint64_t *hashes, uint32_t count,
                                     struct kv_window window);
struct index_stats index_stats(const struct index *index);

#endif
