/* How the links from this node to others do: rows of the link thread, passed on to each router. */
#include <string.h>

#include "node/state.h"

/* The address's row, else a new one, in the place of the one that changed first if all are taken. */
static struct node_link *place_for(struct node_core *c, const char *address)
{
    struct node_link *oldest = c->link;
    for (uint32_t i = 0; i < c->links_count; i++) {
        if (strcmp(c->link[i].row.address, address) == 0) return &c->link[i];
        if (c->link[i].changed < oldest->changed) oldest = &c->link[i];
    }
    return c->links_count < NODE_LINKS_MAX ? &c->link[c->links_count++] : oldest;
}

/* LINK_KINDS: one that is not counted. */
static uint32_t link_kind(const char *address)
{
    static const char *const names[LINK_KINDS] = {"nccl:", "ipc:", "shm:", "tcp:"};
    uint32_t i = 0;
    while (i < LINK_KINDS && strncmp(address, names[i], strlen(names[i])) != 0)
        i++;
    return i;
}

/* What is new since the row that was there before, which may be another link's. */
static void count(struct node_core *c, const struct xfer_link_row *old,
                  const struct xfer_link_row *row)
{
    uint32_t kind = link_kind(row->address);
    bool same = strcmp(old->address, row->address) == 0;
    if (kind == LINK_KINDS) return;
    struct link_counts *n = &c->link_counts[kind];
    n->bytes += row->bytes - (same && old->bytes <= row->bytes ? old->bytes : 0);
    if (row->state != XFER_LINK_UNFIT) n->failures += row->failed_ns != (same ? old->failed_ns : 0);
}

uint32_t links_ready(const struct node_core *c, uint32_t kind)
{
    uint32_t ready = 0;
    for (uint32_t i = 0; i < c->links_count; i++) {
        const struct xfer_link_row *row = &c->link[i].row;
        ready += row->state == XFER_LINK_READY && link_kind(row->address) == kind;
    }
    return ready;
}

void node_core_on_link(struct node_core *c, const struct xfer_link_row *row)
{
    struct node_link *l = place_for(c, row->address);
    count(c, &l->row, row);
    l->row = *row;
    l->changed = ++c->links_changed;
}

/* The first change that the router has not heard of; NULL: it knows all. */
static const struct node_link *next_change(const struct node_core *c, const struct router_link *r)
{
    const struct node_link *next = NULL;
    for (uint32_t i = 0; i < c->links_count; i++) {
        const struct node_link *l = &c->link[i];
        if (l->changed > r->links_told && (!next || l->changed < next->changed)) next = l;
    }
    return next;
}

void links_tell(struct node_core *c, uint64_t now_ns, uint32_t router)
{
    static const char *const names[] = {"idle", "making", "ready", "broken", "unfit"};
    struct router_link *r = &c->router[router];
    const struct node_link *l;
    for (uint32_t n = 0; n < NODE_LINKS_TOLD && (l = next_change(c, r)); n++) {
        const struct xfer_link_row *row = &l->row;
        bool failed = row->failed_ns > 0;
        struct msg m = {
            .kind = MSG_LINK,
            .link = {.address = row->address,
                     .state = names[row->state],
                     .tickets = row->tickets_count,
                     .bytes = row->bytes,
                     .rate = row->rate,
                     .failed_ms = failed ? (now_ns - row->failed_ns) / NS_PER_MS + 1 : 0,
                     .reason = row->reason},
        };
        r->links_told = l->changed;
        say(c, router, &m);
    }
}
