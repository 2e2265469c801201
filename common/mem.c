#include "common/mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/err.h"

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

static _Atomic uint64_t allocations;
static _Atomic uint64_t fail_at; /* the value of `allocations` that fails, 0: none */

static int may_allocate(size_t size)
{
    uint64_t n = atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed) + 1;
    if (n != atomic_load_explicit(&fail_at, memory_order_relaxed)) return 1;
    err_set(ERR_MEMORY, "out of memory: %zu bytes (made to fail)", size);
    return 0;
}

static void *or_error(void *p, size_t size)
{
    if (!p) err_set(ERR_MEMORY, "out of memory: %zu bytes", size);
    return p;
}

void *mem_new(size_t size)
{
    if (!may_allocate(size)) return NULL;
    return or_error(calloc(1, size ? size : 1), size);
}

void *mem_array(size_t count, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(count, size, &total)) {
        err_set(ERR_MEMORY, "out of memory: %zu x %zu bytes", count, size);
        return NULL;
    }
    return mem_new(total);
}

void *mem_table(size_t count, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(count, size, &total) || total < HUGE_PAGE_BYTES)
        return mem_array(count, size);
    return mem_aligned(total, HUGE_PAGE_BYTES);
}

void *mem_resize(void *p, size_t count, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(count, size, &total)) {
        err_set(ERR_MEMORY, "out of memory: %zu x %zu bytes", count, size);
        return NULL;
    }
    if (!may_allocate(total)) return NULL;
    return or_error(realloc(p, total ? total : 1), total);
}

void *mem_aligned(size_t size, size_t align)
{
    if (!may_allocate(size)) return NULL;
    void *p = NULL;
    if (posix_memalign(&p, align < sizeof(void *) ? sizeof(void *) : align, size ? size : 1) != 0)
        p = NULL;
    if (p && align >= HUGE_PAGE_BYTES) madvise(p, size, MADV_HUGEPAGE); /* before it is touched */
    if (p) memset(p, 0, size);
    return or_error(p, size);
}

char *mem_copy_string(const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = mem_new(n);
    if (copy) memcpy(copy, s, n);
    return copy;
}

void mem_free(void *p)
{
    free(p);
}

uint64_t mem_count(void)
{
    return atomic_load_explicit(&allocations, memory_order_relaxed);
}

void mem_fail_at(uint64_t n)
{
    uint64_t now = atomic_load_explicit(&allocations, memory_order_relaxed);
    atomic_store_explicit(&fail_at, n ? now + n : 0, memory_order_relaxed);
}

struct arena_chunk {
    struct arena_chunk *older;
    size_t size_bytes, used_bytes;
    _Alignas(16) unsigned char bytes[];
};

#define ARENA_CHUNK_MIN 4096

void *arena_take(struct arena *a, size_t size)
{
    if (size > SIZE_MAX / 4) {
        err_set(ERR_MEMORY, "out of memory: %zu bytes", size);
        return NULL;
    }
    size_t want = (size + 15) & ~(size_t)15;
    struct arena_chunk *c = a->chunk;
    if (!c || c->size_bytes - c->used_bytes < want) {
        size_t grow = c ? c->size_bytes * 2 : ARENA_CHUNK_MIN;
        if (grow < want) grow = want;
        if (a->limit_bytes && a->held_bytes + want > a->limit_bytes) {
            err_set(ERR_FULL, "more than %zu bytes for one message", a->limit_bytes);
            return NULL;
        }
        if (a->limit_bytes && a->held_bytes + grow > a->limit_bytes)
            grow = a->limit_bytes - a->held_bytes;
        c = mem_new(sizeof *c + grow);
        if (!c) return NULL;
        c->older = a->chunk;
        c->size_bytes = grow;
        a->held_bytes += grow;
        a->chunk = c;
    }
    void *p = c->bytes + c->used_bytes;
    c->used_bytes += want;
    memset(p, 0, want);
    return p;
}

void *arena_copy(struct arena *a, const void *bytes, size_t size)
{
    char *p = arena_take(a, size + 1);
    if (p && size) memcpy(p, bytes, size);
    return p;
}

void arena_reset(struct arena *a)
{
    struct arena_chunk *c = a->chunk;
    if (!c) return;
    for (struct arena_chunk *older = c->older, *next; older; older = next) {
        next = older->older;
        a->held_bytes -= older->size_bytes;
        mem_free(older);
    }
    c->older = NULL;
    c->used_bytes = 0;
}

void arena_fini(struct arena *a)
{
    for (struct arena_chunk *c = a->chunk, *next; c; c = next) {
        next = c->older;
        mem_free(c);
    }
    *a = (struct arena){0};
}
