/* Values in host memory, for nodes whose pool is a device's: one arena of slots, mapped at once and given
 * by the kernel as it is touched, in huge pages where it has some. */
#include <string.h>
#include <sys/mman.h>

#include "common/clock.h"
#include "common/mem.h"
#include "kv/slots.h"
#include "kv/tier.h"

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

struct kv_tier {
    struct kv_slots *slots;
    char *arena; /* [slots_count][value_bytes] */
    size_t arena_bytes, value_bytes;
    uint32_t slots_count;
    struct kv_tier_stats stats;
    void (*on_gone)(void *ctx, struct id128 key);
    void *gone_ctx;
};

static void memory_close(struct kv_tier *t)
{
    if (!t) return;
    if (t->arena) munmap(t->arena, t->arena_bytes);
    kv_slots_free(t->slots);
    mem_free(t);
}

static enum err memory_map(struct kv_tier *t)
{
    t->arena_bytes = t->slots_count * t->value_bytes;
    void *p = mmap(NULL, t->arena_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return err_set(ERR_MEMORY, "memory tier: no %zu bytes of address space", t->arena_bytes);
    t->arena = p;
    if (t->arena_bytes >= HUGE_PAGE_BYTES) madvise(p, t->arena_bytes, MADV_HUGEPAGE);
    return OK;
}

static enum err memory_open(struct kv_tier **out, const struct kv_tier_options *options)
{
    *out = NULL;
    size_t each = options->value_bytes + KV_SLOTS_BYTES;
    uint64_t slots = options->value_bytes > 0 ? options->bytes_max / each : 0;
    if (slots == 0)
        return err_set(ERR_INVALID, "memory tier: %llu bytes, one value takes %zu",
                       (unsigned long long)options->bytes_max, each);
    struct kv_tier *t = mem_new(sizeof *t);
    if (!t) return ERR_MEMORY;
    t->slots_count = slots < KV_SLOTS_MAX ? (uint32_t)slots : KV_SLOTS_MAX;
    t->value_bytes = options->value_bytes;
    t->on_gone = options->on_gone;
    t->gone_ctx = options->gone_ctx;
    enum err e = kv_slots_new(&t->slots, t->slots_count);
    if (e == OK) e = memory_map(t);
    if (e != OK) {
        memory_close(t);
        return e;
    }
    *out = t;
    return OK;
}

static enum err memory_has(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                           uint64_t deadline_ns, uint32_t *found)
{
    (void)deadline_ns;
    *found = 0;
    while (*found < count && kv_slots_find(t->slots, keys[*found]) != KV_SLOT_NONE)
        ++*found;
    return OK;
}

static enum err late(void)
{
    return err_set(ERR_TIMEOUT, "memory tier: the deadline is over");
}

/* A prefix is of use from its first block on, so of one call's keys the first is to go last. */
static void memory_used(struct kv_tier *t, const struct id128 *keys, uint32_t count)
{
    while (count-- > 0)
        kv_slots_touch(t->slots, kv_slots_find(t->slots, keys[count]));
}

static enum err memory_touch(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                             uint64_t deadline_ns)
{
    (void)deadline_ns;
    while (count-- > 0) {
        uint32_t at = kv_slots_find(t->slots, keys[count]);
        if (at != KV_SLOT_NONE) kv_slots_touch(t->slots, at);
    }
    return OK;
}

static enum err memory_get(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                           void *const *values, uint64_t deadline_ns, uint32_t *got)
{
    enum err e = OK;
    for (*got = 0; *got < count; ++*got) {
        uint32_t at = kv_slots_find(t->slots, keys[*got]);
        if (at == KV_SLOT_NONE) break;
        if (clock_now_ns() >= deadline_ns) {
            e = late();
            break;
        }
        memcpy(values[*got], t->arena + at * t->value_bytes, t->value_bytes);
    }
    memory_used(t, keys, *got);
    return e;
}

static void memory_drop(struct kv_tier *t, uint32_t at)
{
    struct id128 key = kv_slots_key(t->slots, at);
    kv_slots_remove(t->slots, at);
    if (t->on_gone) t->on_gone(t->gone_ctx, key);
}

/* A free slot, or the oldest one's. */
static uint32_t memory_room(struct kv_tier *t)
{
    uint32_t at = kv_slots_free_first(t->slots);
    if (at != KV_SLOT_NONE) return at;
    at = kv_slots_oldest(t->slots);
    memory_drop(t, at);
    t->stats.evicted++;
    return at;
}

static enum err memory_put_all(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                               const void *const *values, uint64_t deadline_ns, uint32_t *kept)
{
    for (*kept = 0; *kept < count; ++*kept) {
        if (*kept == t->slots_count) /* the next one would evict the first */
            return err_set(ERR_FULL, "memory tier: %u values, it holds %u", count, t->slots_count);
        if (clock_now_ns() >= deadline_ns) return late();
        uint32_t at = kv_slots_find(t->slots, keys[*kept]);
        if (at != KV_SLOT_NONE) {
            kv_slots_touch(t->slots, at);
            continue;
        }
        at = memory_room(t);
        memcpy(t->arena + at * t->value_bytes, values[*kept], t->value_bytes);
        kv_slots_put(t->slots, at, keys[*kept]);
    }
    return OK;
}

static enum err memory_put(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                           const void *const *values, uint64_t deadline_ns, uint32_t *kept)
{
    enum err e = memory_put_all(t, keys, count, values, deadline_ns, kept);
    memory_used(t, keys, *kept);
    return e;
}

static enum err memory_remove(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                              uint64_t deadline_ns)
{
    (void)deadline_ns;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = kv_slots_find(t->slots, keys[i]);
        if (at == KV_SLOT_NONE) continue;
        memory_drop(t, at);
        t->stats.removed++;
    }
    return OK;
}

static void memory_stats(const struct kv_tier *t, struct kv_tier_stats *stats)
{
    *stats = t->stats;
    stats->entries_count = kv_slots_used(t->slots);
    stats->bytes = stats->entries_count * (t->value_bytes + KV_SLOTS_BYTES);
}

static uint32_t memory_list(const struct kv_tier *t, uint32_t *place, struct id128 *keys,
                            uint32_t room)
{
    return kv_slots_list(t->slots, place, keys, room);
}

const struct kv_tier_ops kv_tier_memory = {"memory",     memory_open,  memory_close,  memory_has,
                                           memory_get,   memory_put,   memory_remove, memory_stats,
                                           memory_touch, KV_TIER_HOST, memory_list};
