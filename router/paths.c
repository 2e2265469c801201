/* paths: the links from a node to others, as it tells of them (MSG_LINK); for status only. */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "router/state.h"

enum { PATHS_MAX = 256 }; /* of one node */

const struct path *path_to(const struct node *from, const char *address)
{
    for (struct list_link *l = from->paths.next; l != &from->paths; l = l->next) {
        const struct path *p = list_member(l, struct path, place);
        if (strcmp(p->address, address) == 0) return p;
    }
    return NULL;
}

/* The address's entry, a new one, or that of the one told of longest ago; NULL: no memory. */
static struct path *place_for(struct node *n, const char *address)
{
    struct path *p = (struct path *)path_to(n, address);
    if (!p && n->paths_count == PATHS_MAX) p = list_member(n->paths.next, struct path, place);
    if (p) {
        list_remove(&p->place);
    } else {
        if (!(p = mem_new(sizeof *p))) return NULL;
        n->paths_count++;
    }
    list_push_back(&n->paths, &p->place);
    return p;
}

void path_on_link(uint64_t now_ns, struct node *n, const struct msg_link *m)
{
    struct path *p = place_for(n, m->address ? m->address : "");
    if (!p) return; /* told again with the link's next change */
    uint64_t ago_ns = m->failed_ms * NS_PER_MS;
    snprintf(p->address, sizeof p->address, "%s", m->address ? m->address : "");
    snprintf(p->state, sizeof p->state, "%s", m->state);
    snprintf(p->reason, sizeof p->reason, "%s", m->reason ? m->reason : "");
    p->tickets = m->tickets;
    p->bytes = m->bytes;
    p->rate = m->rate;
    p->failed_ns = m->failed_ms == 0 ? 0 : ago_ns < now_ns ? now_ns - ago_ns : 1;
}

void paths_free(struct node *n)
{
    struct list_link *l;
    while ((l = list_pop_front(&n->paths)))
        mem_free(list_member(l, struct path, place));
}
