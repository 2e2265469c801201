#include "tests/fake/transport_memory.h"

#include <string.h>

#include "common/mem.h"
#include "tests/fake/link_memory.h"

enum { ENDS_MAX = 64, DEVICES = 8 };

struct operation {
    uint32_t slot;
    size_t bytes;
};

/* Slots that both ends of a placed transport know. */
struct slots {
    int holders;
    uint8_t bytes[];
};

struct end {
    struct transport base;
    struct transport_options options;
    uint32_t id;
    struct end *other; /* joined, and not closed */
    struct slots *slots;
    bool joins;
    uint32_t looked, asked;
    uint64_t begun, ended;
    struct operation operation[TRANSPORT_SLOTS_MAX]; /* by number */
};

struct transport_memory_knobs transport_memory_knobs;
struct transport_memory_counts transport_memory_counts;

static struct end *ends[ENDS_MAX];
static uint32_t next_id = 1;
static int posted_count[DEVICES][2];

void transport_memory_reset(void)
{
    transport_memory_knobs = (struct transport_memory_knobs){0};
    transport_memory_counts = (struct transport_memory_counts){0};
}

static struct end *end_of(const struct transport *t)
{
    return (struct end *)t;
}

static int *posted(const struct end *x)
{
    return &posted_count[x->options.device_index % DEVICES][x->options.dialler];
}

static void slots_drop(struct slots *s)
{
    if (s && --s->holders == 0) mem_free(s);
}

static enum err slots_new(struct end *x)
{
    size_t bytes = (size_t)x->options.slots_count * x->options.slot_bytes;
    x->slots = mem_new(sizeof *x->slots + bytes);
    if (!x->slots) return ERR_MEMORY;
    x->slots->holders = 1;
    return OK;
}

static enum err memory_open(struct transport **t, const struct transport_options *options,
                            const struct transport_ops *ops)
{
    uint32_t i = 0;
    *t = NULL;
    if (transport_memory_knobs.fail_opens > 0) {
        transport_memory_knobs.fail_opens--;
        return err_set(ERR_DEVICE, "no device today");
    }
    while (i < ENDS_MAX && ends[i])
        i++;
    if (i == ENDS_MAX) return err_set(ERR_FULL, "%u transports in memory", i);
    struct end *x = mem_new(sizeof *x);
    if (!x) return ERR_MEMORY;
    x->base.ops = ops;
    x->options = *options;
    x->id = next_id++;
    if ((ops->posted || !options->dialler) && slots_new(x) != OK) {
        mem_free(x);
        return ERR_MEMORY;
    }
    ends[i] = x;
    transport_memory_counts.open++;
    *t = &x->base;
    return OK;
}

static enum err posted_open(struct transport **t, const struct transport_options *options)
{
    return memory_open(t, options, &transport_memory_posted);
}
static enum err placed_open(struct transport **t, const struct transport_options *options)
{
    return memory_open(t, options, &transport_memory_placed);
}

static enum err memory_opened(struct transport *t, uint8_t bytes[TRANSPORT_OFFER_MAX], size_t *size)
{
    if (end_of(t)->looked++ < transport_memory_knobs.opens_after) return ERR_AGAIN;
    if (transport_memory_knobs.fail_openeds > 0) {
        transport_memory_knobs.fail_openeds--;
        return err_set(ERR_MEMORY, "no memory today");
    }
    memcpy(bytes, &end_of(t)->id, *size = sizeof end_of(t)->id);
    return OK;
}

/* The one that was offered an id finds the other. */
static enum err memory_join(struct transport *t, const uint8_t *bytes, size_t size)
{
    struct end *x = end_of(t);
    uint32_t id;
    x->joins = true;
    if (size == 0) return OK;
    if (size != sizeof id) return err_set(ERR_FORMAT, "an id of %zu bytes", size);
    memcpy(&id, bytes, size);
    for (uint32_t i = 0; i < ENDS_MAX; i++) {
        if (!ends[i] || ends[i]->id != id) continue;
        x->other = ends[i];
        ends[i]->other = x;
    }
    if (!x->other) return err_set(ERR_PEER, "nobody has the id %u", id);
    CHECK(x->other->options.slots_count == x->options.slots_count &&
          x->other->options.slot_bytes == x->options.slot_bytes);
    if (x->slots) return OK;
    x->slots = x->other->slots;
    x->slots->holders++;
    return OK;
}

static enum err memory_joined(struct transport *t)
{
    struct end *x = end_of(t);
    CHECK(x->joins);
    if (x->asked++ < transport_memory_knobs.joins_after) return ERR_AGAIN;
    if (transport_memory_knobs.fail_joins > 0) {
        transport_memory_knobs.fail_joins--;
        return err_set(ERR_DEVICE, "it does not connect");
    }
    return x->other && x->other->joins ? OK : ERR_AGAIN;
}

static int memory_fd(const struct transport *t)
{
    (void)t;
    return -1;
}

static void *memory_slot(const struct transport *t, uint32_t i)
{
    struct end *x = end_of(t);
    CHECK(i < x->options.slots_count);
    return x->slots->bytes + (size_t)i * x->options.slot_bytes;
}

static enum err memory_begin(struct transport *t, uint32_t slot, size_t bytes)
{
    struct end *x = end_of(t);
    CHECK(slot < x->options.slots_count && bytes > 0 && bytes <= x->options.slot_bytes);
    if (transport_memory_knobs.fail_begin && x->begun == transport_memory_knobs.fail_begin)
        return err_set(ERR_DEVICE, "it does not begin");
    uint64_t number = x->begun++;
    x->operation[number % TRANSPORT_SLOTS_MAX] = (struct operation){slot, bytes};
    if (!t->ops->posted) return OK;
    CHECK(++*posted(x) == 1); /* turns */
    if (!x->other || x->other->begun <= number) return OK;
    const struct operation *o = &x->other->operation[number % TRANSPORT_SLOTS_MAX];
    CHECK(o->slot == slot && o->bytes == bytes);
    struct end *from = x->options.dialler ? x : x->other, *to = from->other;
    memcpy(memory_slot(&to->base, slot), memory_slot(&from->base, slot), bytes);
    return OK;
}

static enum err memory_ended(struct transport *t, uint32_t *slot)
{
    struct end *x = end_of(t);
    uint64_t number = x->ended;
    if (number == x->begun) return ERR_AGAIN;
    if (transport_memory_knobs.hang_from && number >= transport_memory_knobs.hang_from)
        return ERR_AGAIN;
    if (transport_memory_knobs.break_at && number == transport_memory_knobs.break_at)
        return err_set(ERR_DEVICE, "operation %llu failed", (unsigned long long)number);
    if (t->ops->posted && (!x->other || x->other->begun <= number)) return ERR_AGAIN; /* for ever */
    x->ended++;
    if (t->ops->posted) --*posted(x);
    *slot = x->operation[number % TRANSPORT_SLOTS_MAX].slot;
    return OK;
}

static void memory_close(struct transport *t, enum transport_end end)
{
    struct end *x = end_of(t);
    if (!t) return;
    if (x->other) x->other->other = NULL;
    if (t->ops->posted) *posted(x) -= (int)(x->begun - x->ended);
    for (uint32_t i = 0; i < ENDS_MAX; i++)
        if (ends[i] == x) ends[i] = NULL;
    CHECK(end == TRANSPORT_BROKEN || x->begun == x->ended);
    transport_memory_counts.open--;
    transport_memory_counts.drained += end == TRANSPORT_DRAINED;
    transport_memory_counts.broken += end == TRANSPORT_BROKEN;
    slots_drop(x->slots);
    mem_free(x);
}

const struct transport_ops transport_memory_posted = {
    .name = "memory-posted",
    .posted = true,
    .dialler_offers = true,
    .open = posted_open,
    .opened = memory_opened,
    .join = memory_join,
    .joined = memory_joined,
    .fd = memory_fd,
    .slot = memory_slot,
    .begin = memory_begin,
    .ended = memory_ended,
    .close = memory_close,
};

const struct transport_ops transport_memory_placed = {
    .name = "memory-placed",
    .acceptor_offers = true,
    .open = placed_open,
    .opened = memory_opened,
    .join = memory_join,
    .joined = memory_joined,
    .fd = memory_fd,
    .slot = memory_slot,
    .begin = memory_begin,
    .ended = memory_ended,
    .close = memory_close,
};

static struct device_link_kind posted_kind = {&kv_link_memory_posted, &transport_memory_posted,
                                              &kv_link_memory, NULL};
static struct device_link_kind placed_kind = {&kv_link_memory_placed, &transport_memory_placed,
                                              &kv_link_memory, NULL};

void transport_memory_set_times(const struct dslink_times *times)
{
    posted_kind.times = placed_kind.times = times;
}

DEVICE_LINK_THUNKS(posted, &posted_kind)
DEVICE_LINK_THUNKS(placed, &placed_kind)
const struct kv_link_ops kv_link_memory_posted = DEVICE_LINK_OPS("memory-posted", posted);
const struct kv_link_ops kv_link_memory_placed = DEVICE_LINK_OPS("memory-placed", placed);

static struct device_link_kind tcp_kind = {&kv_link_posted_tcp, &transport_memory_posted,
                                           &kv_link_tcp, NULL};
static struct device_link_kind shm_kind = {&kv_link_placed_shm, &transport_memory_placed,
                                           &kv_link_shm, NULL};
DEVICE_LINK_THUNKS(over_tcp, &tcp_kind)
DEVICE_LINK_THUNKS(over_shm, &shm_kind)
const struct kv_link_ops kv_link_posted_tcp = DEVICE_LINK_OPS("posted-tcp", over_tcp);
const struct kv_link_ops kv_link_placed_shm = DEVICE_LINK_OPS("placed-shm", over_shm);
