/* Tombstones: jobs that are over on this node, so that a message that comes late cannot begin them
 * again. The youngest tombstones_max are kept; a late message of an older one is a job that its router
 * does not know, which the comparison of live sets ends. */
#include "node/state.h"

#include "common/plant.h"

static struct tombstone *find(const struct node_core *c, struct id128 request, uint32_t choice)
{
    struct tombstone *t = map_get(&c->tombs, job_map_key(request, choice));
    return t && id128_equal(t->request, request) && t->choice == choice ? t : NULL;
}

void tomb_put(struct node_core *c, uint64_t now_ns, struct job_key key)
{
    struct tombstone *t = find(c, key.request, key.choice);
    if (t) {
        if (t->attempt < key.attempt) t->attempt = key.attempt;
        t->since_ns = now_ns;
        return;
    }
    t = &c->tomb[c->tomb_next];
    c->tomb_next = (c->tomb_next + 1) % c->config.tombstones_max;
    if (t->used) map_remove(&c->tombs, job_map_key(t->request, t->choice));
    *t = (struct tombstone){key.request, key.choice, key.attempt, now_ns, true};
    /* Two keys of one hash: the younger one is not kept. */
    t->used = map_put(&c->tombs, job_map_key(key.request, key.choice), t) == OK;
}

bool tomb_covers(const struct node_core *c, struct job_key key)
{
    if (PLANTED("no_tombstone")) return false;
    const struct tombstone *one = find(c, key.request, key.choice);
    const struct tombstone *all = find(c, key.request, CHOICE_ALL);
    return (one && key.attempt <= one->attempt) || (all && key.attempt <= all->attempt);
}

bool tomb_fresh(const struct node_core *c, struct job_key key, uint64_t now_ns, uint64_t within_ns)
{
    const struct tombstone *t = find(c, key.request, key.choice);
    return t && key.attempt == t->attempt && now_ns - t->since_ns < within_ns;
}
