/* mem: heap memory that can be counted and made to fail, and an arena for what dies together.
 *
 *     struct thing *t = mem_new(sizeof *t);             // zeroed; NULL: ERR_MEMORY is set
 *     if (!t) return ERR_MEMORY;
 *     uint32_t *ids = mem_array(count, sizeof *ids);    // zeroed; overflow of the product is NULL
 *     mem_free(ids);
 *
 *     struct arena a = {0};
 *     char *name = arena_copy(&a, text, length);
 *     arena_reset(&a);                                   // everything at once; the chunk stays
 *     arena_fini(&a);
 *
 * Rules: all of the project's own heap memory comes from here, so that tests can count
 * allocations (mem_count) and make the n-th fail (mem_fail_at). Thread-safe except the arena, which
 * belongs to one thread. */
#ifndef TANDEM_COMMON_MEM_H
#define TANDEM_COMMON_MEM_H

#include <stddef.h>
#include <stdint.h>

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

void *mem_new(size_t size);
void *mem_array(size_t count, size_t size);
/* mem_array for what is looked at in no order: in huge pages where there are any and it is large, so that a look
 * misses the caches once and the page tables not at all. */
void *mem_table(size_t count, size_t size);
/* Grows or shrinks to count x size bytes, new bytes undefined; NULL leaves `p` as it was. */
void *mem_resize(void *p, size_t count, size_t size);
/* Zeroed memory aligned to `align` (a power of two, at least 8); freed with mem_free.
 * Aligned to 2 MiB it asks for huge pages. */
void *mem_aligned(size_t size, size_t align);
char *mem_copy_string(const char *s);
void mem_free(void *p);

/* For tests: how many allocations this process has made; make the n-th from now fail (0: none). */
uint64_t mem_count(void);
void mem_fail_at(uint64_t n);

struct arena_chunk;
struct arena {
    struct arena_chunk *chunk; /* the newest; older ones behind it */
    size_t limit_bytes;        /* 0: none. Beyond it arena_take returns NULL */
    size_t held_bytes;
};
/* Zeroed, aligned to 16. NULL: ERR_MEMORY is set. */
void *arena_take(struct arena *a, size_t size);
void *arena_copy(struct arena *a, const void *bytes, size_t size); /* a zero byte is put behind */
void arena_reset(struct arena *a);
void arena_fini(struct arena *a);

#endif
