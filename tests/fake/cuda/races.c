/* races: which block of a running grid has read and written each byte of device memory, for kernels that are
 * compiled with -fsanitize=thread. The compiler then calls a function before each access; here they are, in
 * place of the sanitizer's library.
 *
 * Blocks of a grid run in any order, and nothing but an atomic orders them. So a byte that one block writes is no
 * other block's: each touch that meets another block's, one of both a write, and not both atomic, is a
 * fault, whatever the values and whichever came first. What is read by load_once lies in the read-only
 * cache: no thread of the grid may write it, the reader's own block neither. And nothing of device memory
 * is touched before grid_wait (kernels/cuda/device.cuh).
 *
 * A page of device memory that a grid touches gets a shadow for that grid: who read and who wrote each byte.
 * Memory that is none of the device's (stacks, shared memory, arguments) is left alone. */
#include <stdlib.h>
#include <string.h>

#include "tests/fake/cuda/machine.h"
#include "tests/fake/cuda/races.h"

enum { PAGE_BYTES = 4096, PLACES = 1 << 16 };

/* Who: 0 nobody, a block's number + 1, or MANY; with a mark. */
#define MANY 0x7fffffffu
#define MARK 0x80000000u /* of a writer: atomically; of a reader: through the read-only cache */

struct shadow {
    uint32_t writer[PAGE_BYTES], reader[PAGE_BYTES];
};

struct races {
    uint64_t serial; /* of the grid that the places below are of */
    struct {
        uintptr_t page;
        uint64_t serial;
        struct shadow *shadow; /* NULL: not the device's */
    } place[PLACES];
    uint32_t places_count, shadows_count, shadows_used;
    struct shadow *shadow[PLACES];
};

void races_free(struct races *r)
{
    for (uint32_t i = 0; r && i < r->shadows_count; i++)
        free(r->shadow[i]);
    free(r);
}

static struct races *races_of(struct machine *m)
{
    if (!m->races && !(m->races = calloc(1, sizeof *m->races))) machine_fault("no memory");
    struct races *r = m->races;
    if (r->serial == m->serial) return r;
    r->serial = m->serial;
    r->places_count = r->shadows_used = 0;
    return r;
}

static struct shadow *another_shadow(struct races *r)
{
    if (r->shadows_used == r->shadows_count) {
        if (!(r->shadow[r->shadows_count] = malloc(sizeof(struct shadow))))
            machine_fault("no memory");
        r->shadows_count++;
    }
    struct shadow *s = r->shadow[r->shadows_used++];
    memset(s, 0, sizeof *s);
    return s;
}

/* NULL: the page is not the device's. */
static struct shadow *shadow_of(struct races *r, uintptr_t page)
{
    uint32_t i = (uint32_t)((page * 0x9e3779b97f4a7c15u) >> 48) % PLACES;
    for (; r->place[i].serial == r->serial; i = (i + 1) % PLACES)
        if (r->place[i].page == page) return r->place[i].shadow;
    if (++r->places_count == PLACES) machine_fault("touches more pages than can be looked after");
    r->place[i].page = page;
    r->place[i].serial = r->serial;
    r->place[i].shadow =
        fake_is_device((const void *)(page * PAGE_BYTES)) ? another_shadow(r) : NULL;
    return r->place[i].shadow;
}

static __attribute__((noreturn)) void found(const struct machine *m, const void *at,
                                            enum races_touch kind, uint32_t other, const char *did)
{
    static const char *const does[] = {"reads", "reads by load_once", "writes",
                                       "changes atomically"};
    const uint32_t *g = m->launch->grid;
    uint32_t block = (other & ~MARK) - 1;
    if ((other & ~MARK) == MANY)
        machine_fault("%s %p, which several blocks have %s", does[kind], at, did);
    machine_fault("%s %p, which block (%u, %u, %u) has %s", does[kind], at, block % g[0],
                  block / g[0] % g[1], block / g[0] / g[1], did);
}

static void touch_byte(const struct machine *m, struct shadow *s, const unsigned char *at,
                       enum races_touch kind)
{
    uint32_t i = (uintptr_t)at % PAGE_BYTES, own = m->number + 1;
    uint32_t *writer = &s->writer[i], *reader = &s->reader[i];
    uint32_t wrote = *writer & ~MARK, read = *reader & ~MARK;
    bool both_atomic = kind == RACES_ATOMIC && (*writer & MARK);
    if (wrote && !both_atomic && (wrote != own || kind == RACES_READ_ONLY))
        found(m, at, kind, *writer, "written");
    if (kind == RACES_READ || kind == RACES_READ_ONLY) {
        *reader = (read && read != own ? MANY : own) | (*reader & MARK);
        if (kind == RACES_READ_ONLY) *reader |= MARK;
        return;
    }
    if (*reader & MARK) found(m, at, kind, *reader, "read by load_once");
    if (read && read != own) found(m, at, kind, *reader, "read");
    *writer = (wrote && wrote != own ? MANY : own) | (kind == RACES_ATOMIC ? MARK : 0);
}

static bool within(const void *at, const void *begin, size_t bytes)
{
    return (uintptr_t)at - (uintptr_t)begin < bytes;
}

void races_touch(const void *at, size_t bytes, enum races_touch kind)
{
    struct machine *m = machine;
    if (!m || m->running == &m->main || m->faulted) return;
    if (within(at, m->running->stack, m->running->stack_bytes) ||
        within(at, m->slots, PIECES_MAX * m->slot_stride))
        return;
    struct races *r = races_of(m);
    for (const unsigned char *byte = at; bytes > 0; bytes--, byte++) {
        struct shadow *s = shadow_of(r, (uintptr_t)byte / PAGE_BYTES);
        if (!s) return;
        if (!m->thread[m->current].waited)
            machine_fault("touches device memory, %p, before grid_wait", (const void *)byte);
        touch_byte(m, s, byte, kind);
    }
}

/* --- what the compiler calls --- */

#define TOUCHES(bytes)                                                                             \
    void __tsan_read##bytes(void *at);                                                             \
    void __tsan_write##bytes(void *at);                                                            \
    void __tsan_unaligned_read##bytes(void *at);                                                   \
    void __tsan_unaligned_write##bytes(void *at);                                                  \
    void __tsan_read##bytes(void *at)                                                              \
    {                                                                                              \
        races_touch(at, bytes, RACES_READ);                                                        \
    }                                                                                              \
    void __tsan_write##bytes(void *at)                                                             \
    {                                                                                              \
        races_touch(at, bytes, RACES_WRITE);                                                       \
    }                                                                                              \
    void __tsan_unaligned_read##bytes(void *at)                                                    \
    {                                                                                              \
        races_touch(at, bytes, RACES_READ);                                                        \
    }                                                                                              \
    void __tsan_unaligned_write##bytes(void *at)                                                   \
    {                                                                                              \
        races_touch(at, bytes, RACES_WRITE);                                                       \
    }
TOUCHES(1)
TOUCHES(2)
TOUCHES(4)
TOUCHES(8)
TOUCHES(16)

void __tsan_init(void);
void __tsan_init(void)
{
}
void __tsan_read_range(void *at, size_t bytes);
void __tsan_read_range(void *at, size_t bytes)
{
    races_touch(at, bytes, RACES_READ);
}
void __tsan_write_range(void *at, size_t bytes);
void __tsan_write_range(void *at, size_t bytes)
{
    races_touch(at, bytes, RACES_WRITE);
}

uint32_t __tsan_atomic32_fetch_add(uint32_t *at, uint32_t value, int order);
uint32_t __tsan_atomic32_fetch_add(uint32_t *at, uint32_t value, int order)
{
    (void)order;
    races_touch(at, sizeof *at, RACES_ATOMIC);
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
uint64_t __tsan_atomic64_fetch_add(uint64_t *at, uint64_t value, int order);
uint64_t __tsan_atomic64_fetch_add(uint64_t *at, uint64_t value, int order)
{
    (void)order;
    races_touch(at, sizeof *at, RACES_ATOMIC);
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
void __tsan_atomic32_store(uint32_t *at, uint32_t value, int order);
void __tsan_atomic32_store(uint32_t *at, uint32_t value, int order)
{
    (void)order;
    races_touch(at, sizeof *at, RACES_ATOMIC);
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
}
