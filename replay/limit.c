/* MIN keeps, for each request to come, the blocks that are used next by it. Those are a range of depths of
 * its prompt: requests before it share prefixes with it, a later one that shares less puts its blocks
 * right in front of those kept, and what has to go goes at the end. So a range is two numbers, and a
 * request costs as many steps as its prompt has parts that are used next by different requests. */
#include "common/geometry.h"
#include "common/mem.h"
#include "replay/replay.h"

#define NEVER UINT32_MAX

/* Blocks first … end - 1 of a request's prompt are used next by `next`. */
struct part {
    uint32_t first, end, next;
};

struct kept {
    uint32_t first, end;
};

struct limit {
    uint32_t requests_count;
    struct part *part;   /* of the last request first */
    uint64_t *parts_end; /* [requests_count] of each request, in that order */
    struct kept *kept;   /* by the request that uses them */
    uint64_t *occupied;  /* one bit for each kept that is not empty */
    uint64_t parts_count;
};

static enum err add_part(struct limit *l, uint64_t *capacity, struct part part)
{
    if (l->parts_count == *capacity) {
        uint64_t more = *capacity ? 2 * *capacity : 1024;
        struct part *grown = mem_resize(l->part, more, sizeof *grown);
        if (!grown) return ERR_MEMORY;
        l->part = grown;
        *capacity = more;
    }
    l->part[l->parts_count++] = part;
    return OK;
}

/* From the last request to the first: who uses each of its blocks next. */
static enum err find_parts(struct limit *l, const struct trace *t, uint32_t *next)
{
    enum err e = OK;
    uint64_t capacity = 0;
    for (uint32_t i = t->requests_count; e == OK && i-- > 0;) {
        const struct trace_request *q = &t->request[i];
        struct part part = {0, 0, NEVER};
        for (uint32_t b = 0; e == OK && b < q->tokens_count / BLOCK_TOKENS; b++) {
            uint64_t unit = t->unit[q->unit_first + b / t->unit_blocks];
            uint32_t *n = &next[unit * t->unit_blocks + b % t->unit_blocks];
            if (*n != part.next && part.next != NEVER) e = add_part(l, &capacity, part);
            if (*n != part.next) part = (struct part){b, b, *n};
            part.end = b + 1;
            *n = i;
        }
        if (e == OK && part.next != NEVER) e = add_part(l, &capacity, part);
        l->parts_end[i] = l->parts_count;
    }
    return e;
}

enum err limit_new(struct limit **out, const struct trace *t)
{
    *out = NULL;
    struct limit *l = mem_new(sizeof *l);
    if (!l) return ERR_MEMORY;
    uint64_t blocks_known = (uint64_t)t->units_known * t->unit_blocks;
    uint32_t *next = mem_array(blocks_known, sizeof *next);
    l->requests_count = t->requests_count;
    l->parts_end = mem_array(t->requests_count, sizeof *l->parts_end);
    l->kept = mem_array(t->requests_count, sizeof *l->kept);
    l->occupied = mem_array(t->requests_count / 64 + 1, sizeof *l->occupied);
    enum err e = next && l->parts_end && l->kept && l->occupied ? OK : ERR_MEMORY;
    for (uint64_t i = 0; e == OK && i < blocks_known; i++)
        next[i] = NEVER;
    if (e == OK) e = find_parts(l, t, next);
    mem_free(next);
    if (e != OK) {
        limit_free(l);
        return e;
    }
    *out = l;
    return OK;
}

void limit_free(struct limit *l)
{
    if (!l) return;
    mem_free(l->part);
    mem_free(l->parts_end);
    mem_free(l->kept);
    mem_free(l->occupied);
    mem_free(l);
}

static uint64_t size_of(const struct kept *k)
{
    return k->end - k->first;
}

static void keep(struct limit *l, const struct part *p)
{
    struct kept *k = &l->kept[p->next];
    CHECK(size_of(k) == 0 || k->first == p->end);
    if (size_of(k) == 0) k->end = p->end;
    k->first = p->first;
    l->occupied[p->next / 64] |= UINT64_C(1) << p->next % 64;
}

/* Of the requests that blocks are kept for, the last one. */
static uint32_t last_occupied(const struct limit *l, uint32_t *word)
{
    while (l->occupied[*word] == 0)
        (*word)--;
    return *word * 64 + 63 - (uint32_t)__builtin_clzll(l->occupied[*word]);
}

static uint64_t cut(struct limit *l, uint64_t total, uint64_t blocks_count)
{
    uint32_t word = l->requests_count / 64;
    while (total > blocks_count) {
        uint32_t last = last_occupied(l, &word);
        struct kept *k = &l->kept[last];
        uint64_t less = total - blocks_count < size_of(k) ? total - blocks_count : size_of(k);
        k->end -= (uint32_t)less;
        total -= less;
        if (size_of(k) == 0) l->occupied[last / 64] &= ~(UINT64_C(1) << last % 64);
    }
    return total;
}

uint64_t limit_hits(struct limit *l, uint64_t blocks_count)
{
    uint64_t hits = 0, total = 0;
    for (uint32_t i = 0; i < l->requests_count; i++) {
        struct kept *k = &l->kept[i];
        CHECK(size_of(k) == 0 || k->first == 0);
        hits += size_of(k);
        total -= size_of(k);
        *k = (struct kept){0};
        l->occupied[i / 64] &= ~(UINT64_C(1) << i % 64);
        uint64_t begin = i + 1 < l->requests_count ? l->parts_end[i + 1] : 0;
        for (uint64_t p = begin; p < l->parts_end[i]; p++) {
            keep(l, &l->part[p]);
            total += l->part[p].end - l->part[p].first;
        }
        total = cut(l, total, blocks_count);
    }
    return hits;
}
