#include "client/warm_plan.h"

#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

enum err warm_plan_add(struct warm_plan *p, struct sequence *q)
{
    if (p->count == p->capacity) {
        uint32_t capacity = p->capacity ? 2 * p->capacity : 256;
        struct warm_item *grown = mem_resize(p->item, capacity, sizeof *grown);
        if (!grown) return ERR_MEMORY;
        p->item = grown;
        p->capacity = capacity;
    }
    p->item[p->count++] = (struct warm_item){
        .sequence = *q, .owner = WARM_NONE, .first_waiting = WARM_NONE, .next_waiting = WARM_NONE};
    p->bytes += q->count * (q->tokens ? sizeof *q->tokens : 1) + (q->id ? strlen(q->id) : 0);
    *q = (struct sequence){0};
    return OK;
}

/* How much two begin with; a text and ids never begin alike. */
static size_t common(const struct sequence *a, const struct sequence *b)
{
    size_t n = 0, end = a->count < b->count ? a->count : b->count;
    if ((a->tokens != NULL) != (b->tokens != NULL)) return 0;
    if (a->tokens)
        while (n < end && a->tokens[n] == b->tokens[n])
            n++;
    else
        while (n < end && a->text[n] == b->text[n])
            n++;
    return n;
}

static int compare(const void *left, const void *right)
{
    const struct sequence *a = &((const struct warm_item *)left)->sequence;
    const struct sequence *b = &((const struct warm_item *)right)->sequence;
    if ((a->tokens != NULL) != (b->tokens != NULL)) return a->tokens ? 1 : -1;
    size_t n = common(a, b);
    if (n < a->count && n < b->count) {
        uint32_t x = a->tokens ? a->tokens[n] : (unsigned char)a->text[n];
        uint32_t y = b->tokens ? b->tokens[n] : (unsigned char)b->text[n];
        return x < y ? -1 : 1;
    }
    if (a->count != b->count) return a->count < b->count ? -1 : 1;
    return a->line < b->line ? -1 : a->line > b->line;
}

/* Neighbours that begin alike: [first, …] all share `shared`. */
struct run {
    uint32_t first;
    size_t shared;
};

/* The first of all that share as much with item i as the one before it does. `runs` is a stack of those
 * that reach up to the item before, what they share ascending. */
static uint32_t find_owner(struct warm_plan *p, uint32_t i, struct run *runs, uint32_t *runs_count)
{
    const struct sequence *q = &p->item[i].sequence;
    uint32_t first = i - 1, n = *runs_count;
    size_t shared = common(&p->item[i - 1].sequence, q);
    for (; n > 0 && runs[n - 1].shared >= shared; n--)
        first = runs[n - 1].first;
    runs[n] = (struct run){first, shared};
    *runs_count = n + 1;
    size_t enough = q->tokens ? WARM_SHARED_TOKENS : WARM_SHARED_BYTES;
    p->item[i].duplicate = shared == q->count && p->item[i - 1].sequence.count == q->count;
    return shared >= enough || p->item[i].duplicate ? first : WARM_NONE;
}

static void wait_for(struct warm_plan *p, uint32_t i, uint32_t owner)
{
    /* Of its equals the first is worked on. */
    if (p->item[i].duplicate) owner = p->item[i - 1].duplicate ? p->item[i - 1].owner : i - 1;
    p->item[i].owner = owner;
    if (owner == WARM_NONE) return;
    p->item[i].next_waiting = p->item[owner].first_waiting;
    p->item[owner].first_waiting = i;
}

enum err warm_plan_make(struct warm_plan *p)
{
    enum err e = heap_reserve(&p->ready, p->count);
    struct run *runs = mem_array(p->count ? p->count : 1, sizeof *runs);
    uint32_t runs_count = 0;
    if (e != OK || !runs) {
        mem_free(runs);
        return ERR_MEMORY;
    }
    if (p->count > 1) qsort(p->item, p->count, sizeof *p->item, compare);
    for (uint32_t i = 1; i < p->count; i++)
        wait_for(p, i, find_owner(p, i, runs, &runs_count));
    for (uint32_t i = 0; i < p->count; i++)
        if (p->item[i].owner == WARM_NONE) heap_move(&p->ready, &p->item[i].ready, i);
    mem_free(runs);
    return OK;
}

enum err warm_plan_next(struct warm_plan *p, uint32_t *index)
{
    struct heap_entry *first = heap_first(&p->ready);
    if (p->given_count == p->count) return ERR_NOT_FOUND;
    if (!first) return ERR_AGAIN;
    *index = (uint32_t)first->key;
    heap_remove(&p->ready, first);
    p->given_count++;
    return OK;
}

void warm_plan_done(struct warm_plan *p, uint32_t index)
{
    for (uint32_t i = p->item[index].first_waiting; i != WARM_NONE; i = p->item[i].next_waiting)
        heap_move(&p->ready, &p->item[i].ready, i); /* room was reserved */
}

void warm_plan_clear(struct warm_plan *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        sequence_free(&p->item[i].sequence);
    mem_free(p->item);
    heap_fini(&p->ready);
    *p = (struct warm_plan){0};
}
