/* A directory (kv/disk_home.h) of files of slots (kv/disk_values.h) with an index (kv/disk_index.h).
 *
 * While it is open the index is in memory too (kv/slots.h), and LMDB's is only written: a value that goes is
 * dropped from it before its slot is written, and a new one is entered after that. So whatever instruction
 * was the last one of a process, a slot that the index names has what it had. After a power loss the kernel
 * may have written any of it and not the rest; then an entry's header and checksum say what is right.
 * What was used, not stored, is told to the index with the next change, or once USED_MAX are waiting.
 *
 * What cannot be trusted is emptied and begun anew, at open and later: a damaged index or meta, values of
 * another model. A disk that is full at open is looked at again by each put. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "kv/disk_home.h"
#include "kv/disk_index.h"
#include "kv/disk_values.h"
#include "kv/slots.h"
#include "kv/tier.h"
#include "kv/tier_entry.h"

enum { BATCH = 16, USED_MAX = 256, TOLD_PART = 8 };
#define FULL_NS (10 * NS_PER_S)

struct kv_tier {
    struct disk_home home;
    char index_path[PATH_MAX + 8];
    struct id128 space;
    size_t value_bytes;
    uint32_t slots_count;
    /* NULL: not begun, as there is no room for them */
    struct kv_slots *slots;
    struct disk_index *index;
    struct disk_values *values;
    uint64_t *stamp; /* [slots_count] of its last use */
    uint64_t stamp_next;
    uint32_t used[USED_MAX], used_count; /* whose stamps the index does not know yet */
    uint64_t full_until_ns;              /* the disk was full: no new room is asked for before */
    struct kv_tier_stats stats;
    void (*on_gone)(void *ctx, struct id128 key);
    void *gone_ctx;
};

static void say_gone(const struct kv_tier *t, struct id128 key)
{
    if (t->on_gone) t->on_gone(t->gone_ctx, key);
}

/* --- the index: what it says goes into memory, what changes goes out --- */

struct loaded {
    struct disk_index_change *entry;
    size_t count, room;
};

static enum err load_one(void *ctx, const struct disk_index_change *entry)
{
    struct loaded *l = ctx;
    if (l->count == l->room) {
        size_t room = l->room ? 2 * l->room : 1024;
        struct disk_index_change *more = mem_resize(l->entry, room, sizeof *more);
        if (!more) return ERR_MEMORY;
        l->entry = more;
        l->room = room;
    }
    l->entry[l->count++] = *entry;
    return OK;
}

static int by_stamp(const void *a, const void *b)
{
    const struct disk_index_change *x = a, *y = b;
    if (x->stamp != y->stamp) return x->stamp < y->stamp ? -1 : 1;
    return memcmp(&x->key, &y->key, sizeof x->key);
}

/* Sorted ones. Of two keys in one slot the later is likelier to be there; the other, and those in slots
 * that there are not (any more), are dropped. */
static enum err take_loaded(struct kv_tier *t, const struct loaded *l)
{
    struct disk_index_change drop[BATCH];
    uint32_t drops = 0, *owner = mem_array(t->slots_count, sizeof *owner);
    enum err e = owner ? OK : ERR_MEMORY;
    for (size_t i = 0; e == OK && i < l->count; i++)
        if (l->entry[i].slot < t->slots_count) owner[l->entry[i].slot] = (uint32_t)i;
    for (size_t i = 0; e == OK && i < l->count; i++) {
        const struct disk_index_change *entry = &l->entry[i];
        if (entry->slot < t->slots_count && owner[entry->slot] == i) {
            kv_slots_put(t->slots, entry->slot, entry->key);
            t->stamp[entry->slot] = entry->stamp;
            continue;
        }
        drop[drops++] = (struct disk_index_change){entry->key, DISK_INDEX_DROP, 0};
        if (drops < BATCH) continue;
        e = disk_index_update(t->index, drop, drops);
        drops = 0;
    }
    if (e == OK) e = disk_index_update(t->index, drop, drops);
    mem_free(owner);
    return e;
}

static enum err load(struct kv_tier *t)
{
    struct loaded l = {.count = 0};
    enum err e = disk_index_load(t->index, load_one, &l);
    if (e == OK && l.count > 0) {
        qsort(l.entry, l.count, sizeof *l.entry, by_stamp);
        uint64_t last = l.entry[l.count - 1].stamp;
        if (last >= UINT64_MAX / 2)
            e = err_set(ERR_FORMAT, "index: a stamp beyond all");
        else
            t->stamp_next = last + 1;
    }
    if (e == OK) e = take_loaded(t, &l);
    mem_free(l.entry);
    return e;
}

static void end(struct kv_tier *t)
{
    disk_index_close(t->index);
    disk_values_close(t->values);
    kv_slots_free(t->slots);
    mem_free(t->stamp);
    t->index = NULL;
    t->values = NULL;
    t->slots = NULL;
    t->stamp = NULL;
    t->used_count = 0;
    t->stamp_next = 1;
}

static enum err begin_once(struct kv_tier *t)
{
    struct disk_meta meta = {.space = t->space, .value_bytes = t->value_bytes};
    enum err e = disk_home_settle(&t->home, &meta, t->slots_count, &t->stats.emptied);
    if (e != OK) return e;
    t->stamp = mem_array(t->slots_count, sizeof *t->stamp);
    if (!t->stamp) return ERR_MEMORY;
    if ((e = kv_slots_new(&t->slots, t->slots_count)) != OK) return e;
    e = disk_values_open(&t->values, t->home.dir_fd, t->value_bytes, (uint32_t)meta.segment_slots,
                         t->slots_count);
    if (e == OK) e = disk_index_open(&t->index, t->index_path, t->slots_count);
    return e == OK ? load(t) : e;
}

static enum err begin(struct kv_tier *t)
{
    enum err e = begin_once(t);
    if (e == ERR_FORMAT) {
        end(t);
        t->stats.emptied = "its index was damaged";
        e = disk_home_empty(&t->home);
        if (e == OK) e = begin_once(t);
    }
    if (e != OK) end(t);
    return e;
}

/* After an index could not be used any more. */
static enum err begin_anew(struct kv_tier *t)
{
    uint32_t slot;
    while ((slot = kv_slots_oldest(t->slots)) != KV_SLOT_NONE) {
        say_gone(t, kv_slots_key(t->slots, slot));
        kv_slots_remove(t->slots, slot);
    }
    end(t);
    t->stats.emptied = "its index was damaged while it was open";
    enum err e = disk_home_empty(&t->home);
    return e == OK ? begin(t) : e;
}

/* The stamps that wait are told along; what is not told is a matter of order only. */
static enum err tell(struct kv_tier *t, const struct disk_index_change *change, uint32_t count)
{
    struct disk_index_change all[BATCH + USED_MAX];
    if (count > 0) memcpy(all, change, count * sizeof *change);
    for (uint32_t i = 0; i < t->used_count; i++) {
        uint32_t slot = t->used[i];
        if (t->stamp[slot] == 0) continue; /* free again, or told already by `change` */
        all[count++] =
            (struct disk_index_change){kv_slots_key(t->slots, slot), slot, t->stamp[slot]};
    }
    t->used_count = 0;
    return disk_index_update(t->index, all, count);
}

static enum err used(struct kv_tier *t, uint32_t slot, uint64_t stamp)
{
    t->stamp[slot] = stamp;
    t->used[t->used_count++] = slot;
    return t->used_count == USED_MAX ? tell(t, NULL, 0) : OK;
}

/* A prefix is of use from its first block on, so of one call's keys the first is to go last: their stamps
 * descend, and so they are put into the order of use. */
static void order_uses(struct kv_tier *t, const struct id128 *keys, uint32_t count)
{
    while (t->slots && count-- > 0) {
        uint32_t slot = kv_slots_find(t->slots, keys[count]);
        if (slot != KV_SLOT_NONE) kv_slots_touch(t->slots, slot);
    }
}

static void forget(struct kv_tier *t, uint32_t slot)
{
    kv_slots_remove(t->slots, slot);
    t->stamp[slot] = 0;
}

/* --- operations --- */

static enum err late(const struct kv_tier *t)
{
    return err_set(ERR_TIMEOUT, "disk tier %s: the deadline is over", t->home.where);
}

/* What the index said of the last change. One that cannot be used any more costs all that was kept. */
static enum err settled(struct kv_tier *t, enum err e)
{
    if (e != ERR_FORMAT) return e;
    if ((e = begin_anew(t)) != OK) return e;
    return err_set(ERR_IO, "disk tier %s: its index was damaged: emptied", t->home.where);
}

static enum err disk_has(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         uint64_t deadline_ns, uint32_t *found)
{
    (void)deadline_ns;
    *found = 0;
    while (t->slots && *found < count && kv_slots_find(t->slots, keys[*found]) != KV_SLOT_NONE)
        ++*found;
    return OK;
}

/* The index is told of those of which it knows nothing for an eighth of the store, or a prompt's beginning, which all
 * its ops touch, would be written for each of them. */
static enum err disk_touch(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                           uint64_t deadline_ns)
{
    (void)deadline_ns;
    enum err e = OK;
    uint64_t stamp = t->stamp_next + count;
    if (!t->slots) return OK;
    t->stamp_next = stamp + 1;
    for (uint32_t i = 0; i < count && e == OK; i++) {
        uint32_t slot = kv_slots_find(t->slots, keys[i]);
        if (slot != KV_SLOT_NONE && stamp - t->stamp[slot] > t->slots_count / TOLD_PART)
            e = used(t, slot, stamp - i);
    }
    order_uses(t, keys, count);
    return settled(t, e);
}

static enum err drop(struct kv_tier *t, uint32_t slot)
{
    struct disk_index_change change = {kv_slots_key(t->slots, slot), DISK_INDEX_DROP, 0};
    forget(t, slot);
    say_gone(t, change.key);
    t->stats.removed++;
    return tell(t, &change, 1);
}

static enum err disk_get(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         void *const *values, uint64_t deadline_ns, uint32_t *got)
{
    enum err e = OK;
    uint64_t stamp = t->stamp_next + count;
    *got = 0;
    if (!t->slots) return OK;
    t->stamp_next = stamp + 1;
    while (e == OK && *got < count) {
        uint32_t slot = kv_slots_find(t->slots, keys[*got]);
        if (slot == KV_SLOT_NONE) break;
        if (clock_now_ns() >= deadline_ns) {
            e = late(t);
            break;
        }
        if (disk_values_read(t->values, slot, values[*got]) != OK ||
            !kv_tier_entry_sound(values[*got], t->value_bytes, t->space, keys[*got])) {
            e = drop(t, slot);
            break;
        }
        e = used(t, slot, stamp - *got);
        ++*got;
    }
    order_uses(t, keys, *got);
    return settled(t, e);
}

/* --- put --- */

/* What becomes of some keys of one call: BATCH at a time, so that what has to go first is told to the index
 * in one change, and what has come in another. */
struct plan {
    uint32_t slot[BATCH]; /* KV_SLOT_NONE: nothing to write */
    struct disk_index_change change[BATCH];
    uint32_t count, changes;
    struct {
        struct id128 key;
        uint64_t stamp;
        uint32_t slot;
    } victim[BATCH]; /* whom the first changes drop */
    uint32_t victims;
};

/* A slot for a new value, taken; KV_SLOT_NONE: there is none. Who has to go goes into the plan's changes.
 * Nobody whose stamp is of this call goes. */
static uint32_t room(struct kv_tier *t, struct plan *plan, uint64_t call_stamp)
{
    uint32_t slot = kv_slots_free_first(t->slots);
    if (slot != KV_SLOT_NONE && clock_now_ns() >= t->full_until_ns) {
        if (disk_values_ready(t->values, slot) == OK) {
            kv_slots_take(t->slots, slot);
            return slot;
        }
        t->full_until_ns = clock_now_ns() + FULL_NS;
    }
    slot = kv_slots_oldest(t->slots);
    if (slot == KV_SLOT_NONE || t->stamp[slot] >= call_stamp) return KV_SLOT_NONE;
    struct id128 key = kv_slots_key(t->slots, slot);
    plan->change[plan->changes++] = (struct disk_index_change){key, DISK_INDEX_DROP, 0};
    plan->victim[plan->victims].key = key;
    plan->victim[plan->victims].stamp = t->stamp[slot];
    plan->victim[plan->victims++].slot = slot;
    forget(t, slot);
    t->stats.evicted++;
    kv_slots_take(t->slots, slot);
    return slot;
}

/* The index could not be told: nothing has changed, and nobody has gone. */
static void undo_plan(struct kv_tier *t, const struct plan *plan)
{
    for (uint32_t i = 0; i < plan->count; i++)
        if (plan->slot[i] != KV_SLOT_NONE) kv_slots_give_back(t->slots, plan->slot[i]);
    for (uint32_t i = 0; i < plan->victims; i++) {
        kv_slots_put(t->slots, plan->victim[i].slot, plan->victim[i].key);
        t->stamp[plan->victim[i].slot] = plan->victim[i].stamp;
        t->stats.evicted--;
    }
}

static bool planned(const struct id128 *keys, uint32_t i)
{
    for (uint32_t j = 0; j < i; j++)
        if (id128_equal(keys[i], keys[j])) return true;
    return false;
}

/* Those that are there count as used, the others get slots; up to the first for which there is none.
 * stamp: of the first key. */
static enum err make_plan(struct kv_tier *t, struct plan *plan, const struct id128 *keys,
                          uint32_t count, uint64_t stamp, uint64_t call_stamp)
{
    enum err e = OK;
    *plan = (struct plan){.count = 0};
    for (uint32_t i = 0; i < count && e == OK; i++) {
        uint32_t slot = kv_slots_find(t->slots, keys[i]);
        plan->slot[i] = KV_SLOT_NONE;
        if (slot == KV_SLOT_NONE) continue;
        kv_slots_touch(t->slots, slot);
        e = used(t, slot, stamp - i);
    }
    for (; plan->count < count && e == OK; plan->count++) {
        uint32_t i = plan->count;
        if (kv_slots_find(t->slots, keys[i]) != KV_SLOT_NONE || planned(keys, i)) continue;
        plan->slot[i] = room(t, plan, call_stamp);
        if (plan->slot[i] == KV_SLOT_NONE) return OK;
    }
    return e;
}

/* Of the leading values that were written the keys are entered; *kept counts them. The slots of the others
 * are free again. */
static enum err write_plan(struct kv_tier *t, struct plan *plan, const struct id128 *keys,
                           const void *const *values, uint64_t stamp, uint64_t deadline_ns,
                           uint32_t *kept)
{
    enum err e = OK;
    uint32_t i = 0;
    plan->changes = 0;
    for (; i < plan->count && e == OK; i++) {
        uint32_t slot = plan->slot[i];
        if (slot == KV_SLOT_NONE) continue;
        e = clock_now_ns() >= deadline_ns ? late(t) : disk_values_write(t->values, slot, values[i]);
        if (e != OK) break;
        kv_slots_put(t->slots, slot, keys[i]);
        t->stamp[slot] = stamp - i;
        plan->change[plan->changes++] = (struct disk_index_change){keys[i], slot, stamp - i};
    }
    *kept = i;
    if (e == ERR_FULL) t->full_until_ns = clock_now_ns() + FULL_NS;
    for (; i < plan->count; i++)
        if (plan->slot[i] != KV_SLOT_NONE) kv_slots_give_back(t->slots, plan->slot[i]);
    return e;
}

static enum err put_batch(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                          const void *const *values, uint64_t stamp, uint64_t call_stamp,
                          uint64_t deadline_ns, uint32_t *kept)
{
    struct plan plan;
    *kept = 0;
    enum err planning = make_plan(t, &plan, keys, count, stamp, call_stamp);
    enum err e = planning;
    if (e == OK && plan.changes > 0) e = tell(t, plan.change, plan.changes);
    if (e != OK) {
        undo_plan(t, &plan);
        return e;
    }
    for (uint32_t i = 0; i < plan.victims; i++)
        say_gone(t, plan.victim[i].key);
    e = write_plan(t, &plan, keys, values, stamp, deadline_ns, kept);
    enum err told = plan.changes > 0 ? tell(t, plan.change, plan.changes) : OK;
    if (told != OK) return told;
    if (e == OK && plan.count < count)
        return err_set(ERR_FULL, "disk tier %s: no room for %u more values", t->home.where,
                       count - plan.count);
    return e;
}

static enum err disk_put(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         const void *const *values, uint64_t deadline_ns, uint32_t *kept)
{
    enum err e = OK;
    *kept = 0;
    if (!t->slots && clock_now_ns() >= t->full_until_ns && (e = begin(t)) != OK)
        t->full_until_ns = clock_now_ns() + FULL_NS;
    if (!t->slots)
        return e != OK ? e : err_set(ERR_FULL, "disk tier %s: the disk is full", t->home.where);
    uint64_t call_stamp = t->stamp_next, stamp = call_stamp + count;
    t->stamp_next = stamp + 1;
    while (*kept < count && e == OK) {
        uint32_t here = count - *kept < BATCH ? count - *kept : BATCH, done;
        e = put_batch(t, keys + *kept, here, values + *kept, stamp - *kept, call_stamp, deadline_ns,
                      &done);
        *kept += done;
    }
    if (e == ERR_FORMAT) *kept = 0;
    order_uses(t, keys, *kept);
    return settled(t, e);
}

static enum err disk_remove(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                            uint64_t deadline_ns)
{
    (void)deadline_ns;
    enum err e = OK;
    for (uint32_t i = 0; t->slots && i < count && e == OK; i++) {
        uint32_t slot = kv_slots_find(t->slots, keys[i]);
        if (slot != KV_SLOT_NONE) e = settled(t, drop(t, slot));
    }
    return e;
}

static void disk_stats(const struct kv_tier *t, struct kv_tier_stats *stats)
{
    *stats = t->stats;
    if (!t->slots) return;
    stats->entries_count = kv_slots_used(t->slots);
    stats->bytes =
        stats->entries_count * DISK_SLOT_BYTES(t->value_bytes) + disk_index_bytes(t->slots_count);
}

/* --- open, close --- */

static void disk_close(struct kv_tier *t)
{
    if (!t) return;
    if (t->index && t->used_count > 0) tell(t, NULL, 0);
    end(t);
    disk_home_leave(&t->home);
    mem_free(t);
}

static enum err size(struct kv_tier *t, const struct kv_tier_options *o)
{
    uint64_t index = disk_index_bytes(0) + 4096; /* rounded up to a page */
    uint64_t least = index + DISK_SLOT_BYTES(o->value_bytes) + DISK_INDEX_RECORD;
    if (o->value_bytes == 0 || o->bytes_max < least)
        return err_set(
            ERR_INVALID,
            "disk tier %s: %llu bytes (--kv-disk-bytes) are too few: one of this model's "
            "blocks and its index take %llu (%lluM)",
            t->home.where, (unsigned long long)o->bytes_max, (unsigned long long)least,
            (unsigned long long)((least + (1 << 20) - 1) >> 20));
    uint64_t slots = (o->bytes_max - index) / (DISK_SLOT_BYTES(o->value_bytes) + DISK_INDEX_RECORD);
    t->slots_count = slots < KV_SLOTS_MAX ? (uint32_t)slots : KV_SLOTS_MAX;
    t->value_bytes = o->value_bytes;
    t->space = o->space;
    return OK;
}

static enum err disk_open(struct kv_tier **out, const struct kv_tier_options *options)
{
    *out = NULL;
    if (!options->where || !*options->where || strlen(options->where) >= PATH_MAX)
        return err_set(ERR_INVALID, "disk tier: which directory?");
    struct kv_tier *t = mem_new(sizeof *t);
    if (!t) return ERR_MEMORY;
    disk_home_init(&t->home, options->where);
    t->stamp_next = 1;
    t->on_gone = options->on_gone;
    t->gone_ctx = options->gone_ctx;
    snprintf(t->index_path, sizeof t->index_path, "%s/index", options->where);
    enum err e = size(t, options);
    if (e == OK) e = disk_home_take(&t->home);
    if (e == OK) e = begin(t);
    if (e == ERR_FULL) { /* by and by there may be room */
        t->full_until_ns = clock_now_ns() + FULL_NS;
        e = OK;
    }
    if (e != OK) {
        disk_close(t);
        return e;
    }
    *out = t;
    return OK;
}

static uint32_t disk_list(const struct kv_tier *t, uint32_t *place, struct id128 *keys,
                          uint32_t room)
{
    if (t->slots) return kv_slots_list(t->slots, place, keys, room);
    *place = KV_TIER_LIST_END;
    return 0;
}

const struct kv_tier_ops kv_tier_disk = {"disk",     disk_open,    disk_close,  disk_has,
                                         disk_get,   disk_put,     disk_remove, disk_stats,
                                         disk_touch, KV_TIER_DISK, disk_list};
