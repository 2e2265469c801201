#include "router/fair.h"

#include <stdio.h>
#include <string.h>

#include "common/mem.h"

void fair_init(struct fair *f)
{
    *f = (struct fair){0};
    list_init(&f->resting);
    list_init(&f->idle);
}

static void tenant_free(struct fair *f, struct fair_tenant *t)
{
    CHECK(t->queue.count == 0);
    map_remove(&f->tenants, map_key(t->salt));
    heap_remove(&f->turns, &t->turn);
    list_remove(&t->rest);
    heap_fini(&t->queue);
    mem_free(t);
}

void fair_fini(struct fair *f)
{
    struct fair_tenant *t;
    for (struct map_cursor c = {0}; (t = map_next(&f->tenants, &c)) != NULL;
         c = (struct map_cursor){0})
        tenant_free(f, t);
    map_fini(&f->tenants);
    heap_fini(&f->turns);
}

/* Active: something waits or runs. */
static bool is_active(const struct fair_tenant *t)
{
    return t->waiting > 0 || t->running > 0;
}

static void count_active(struct fair *f, const struct fair_tenant *t, bool before)
{
    bool after = is_active(t);
    if (after && !before) f->weights_active += t->weight;
    if (before && !after) f->weights_active -= t->weight;
}

static struct fair_tenant *tenant_new(struct fair *f, const char *name, uint64_t salt)
{
    struct fair_tenant *t = mem_new(sizeof *t);
    if (!t) return NULL;
    snprintf(t->name, sizeof t->name, "%s", name);
    t->salt = salt;
    list_init(&t->rest);
    if (heap_reserve(&f->turns, f->tenants.count + 1) != OK ||
        map_put(&f->tenants, map_key(salt), t) != OK) {
        mem_free(t);
        return NULL;
    }
    return t;
}

struct fair_tenant *fair_join(struct fair *f, const char *name, uint64_t salt, uint32_t weight)
{
    struct fair_tenant *t = map_get(&f->tenants, map_key(salt));
    if (!t && !(t = tenant_new(f, name, salt))) return NULL;
    if (t->live++ > 0) return t;
    if (!list_empty(&t->rest)) f->idle_count--;
    list_remove(&t->rest);
    t->weight = weight;
    return t;
}

void fair_leave(struct fair *f, struct fair_tenant *t)
{
    CHECK(t->live > 0);
    if (--t->live > 0) return;
    CHECK(!is_active(t));
    list_push_back(&f->idle, &t->rest);
    if (++f->idle_count <= FAIR_IDLE_MAX) return;
    f->idle_count--;
    tenant_free(f, list_member(f->idle.next, struct fair_tenant, rest));
}

enum err fair_reserve(struct fair_tenant *t, uint32_t entries)
{
    enum err e = heap_reserve(&t->queue, (size_t)t->reserved + entries);
    if (e == OK) t->reserved += entries;
    return e;
}

void fair_unreserve(struct fair_tenant *t, uint32_t entries)
{
    CHECK(t->reserved >= entries);
    t->reserved -= entries;
}

void fair_put_back(struct fair *f, struct fair_tenant *t, struct heap_entry *entry)
{
    enum err e = heap_move(&t->queue, entry, entry->key);
    CHECK(e == OK); /* room was reserved, and with the tenant for its turn */
    if (!t->resting && !heap_holds(&t->turn)) heap_move(&f->turns, &t->turn, t->virtual_time);
}

void fair_queue(struct fair *f, struct fair_tenant *t, struct heap_entry *entry, uint64_t key)
{
    bool before = is_active(t);
    if (t->waiting++ == 0 && t->virtual_time < f->now) t->virtual_time = f->now;
    entry->key = key;
    fair_put_back(f, t, entry);
    count_active(f, t, before);
}

void fair_pass(struct fair *f, struct fair_tenant *t, struct heap_entry *entry)
{
    heap_remove(&t->queue, entry);
    if (t->queue.count == 0) heap_remove(&f->turns, &t->turn);
}

void fair_unqueue(struct fair *f, struct fair_tenant *t, struct heap_entry *entry)
{
    fair_pass(f, t, entry);
    t->waiting--;
    count_active(f, t, true);
}

struct fair_tenant *fair_next(const struct fair *f)
{
    struct heap_entry *first = heap_first(&f->turns);
    return first ? list_member(first, struct fair_tenant, turn) : NULL;
}

void fair_rest(struct fair *f, struct fair_tenant *t)
{
    heap_remove(&f->turns, &t->turn);
    list_push_back(&f->resting, &t->rest);
    t->resting = true;
}

void fair_wake(struct fair *f)
{
    for (struct list_link *l; (l = list_pop_front(&f->resting)) != NULL;) {
        struct fair_tenant *t = list_member(l, struct fair_tenant, rest);
        t->resting = false;
        if (t->queue.count > 0) heap_move(&f->turns, &t->turn, t->virtual_time);
    }
}

void fair_start(struct fair *f, struct fair_tenant *t)
{
    bool before = is_active(t);
    if (t->virtual_time > f->now) f->now = t->virtual_time;
    t->running++;
    f->running++;
    count_active(f, t, before);
}

void fair_end(struct fair *f, struct fair_tenant *t)
{
    CHECK(t->running > 0);
    t->running--;
    f->running--;
    count_active(f, t, true);
}

static void set_time(struct fair *f, struct fair_tenant *t, uint64_t virtual_time)
{
    t->virtual_time = virtual_time;
    if (heap_holds(&t->turn)) heap_move(&f->turns, &t->turn, virtual_time);
}

void fair_charge(struct fair *f, struct fair_tenant *t, uint64_t cost)
{
    set_time(f, t, t->virtual_time + cost * FAIR_UNIT / t->weight);
}

void fair_refund(struct fair *f, struct fair_tenant *t, uint64_t cost)
{
    uint64_t back = cost * FAIR_UNIT / t->weight;
    set_time(f, t, t->virtual_time > back ? t->virtual_time - back : 0);
}

bool fair_alone(const struct fair *f)
{
    return f->tenants.count == 0 || (f->tenants.count == 1 && map_get(&f->tenants, map_key(0)));
}

bool fair_over(const struct fair *f, const struct fair_tenant *t)
{
    if (fair_alone(f)) return false;
    uint64_t weights = f->weights_active + (is_active(t) ? 0 : t->weight) + 1;
    return t->running * weights > (uint64_t)t->weight * f->running;
}

void fair_audit(const struct fair *f)
{
    struct fair_tenant *t;
    uint64_t weights = 0;
    uint32_t running = 0, idle = 0;
    for (struct map_cursor c = {0}; (t = map_next(&f->tenants, &c)) != NULL;) {
        CHECK(t->queue.count == t->waiting && t->weight > 0);
        CHECK(t->waiting + t->running <= t->reserved);
        CHECK(heap_holds(&t->turn) == (t->queue.count > 0 && !t->resting));
        CHECK(!heap_holds(&t->turn) || t->turn.key == t->virtual_time);
        weights += is_active(t) ? t->weight : 0;
        running += t->running;
        idle += t->live == 0;
    }
    CHECK(weights == f->weights_active && running == f->running && idle == f->idle_count);
    CHECK(idle <= FAIR_IDLE_MAX);
}
