/* Peers: which of the links to a node a sender's ticket gets.
 *
 * A peer is a set of addresses; each is a way with at most one session that takes new tickets. A ticket
 * that is opened goes over the best ready session at once (choose.c), else it waits for the first that
 * gets ready, and stays on the session it got. A way whose session broke is left alone for a back-off;
 * a ticket tries each way once. With no way left it fails with what the last one said. */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "xfer/core_state.h"

enum { SAMPLE_BYTES = 1 << 20 };

const char *way_address(const struct xfer_way *way)
{
    return way->peer->addresses.address[way - way->peer->way];
}

/* ---- what the node is told ---- */

void way_changed(struct xfer_core *core, struct xfer_way *way, uint64_t now_ns)
{
    if (!way || core->options.tell_every_ns == 0 || !list_empty(&way->changed)) return;
    list_push_back(&core->changed, &way->changed);
    if (core->tell_ns != TIME_NEVER) return;
    uint64_t next_ns = core->told_ns + core->options.tell_every_ns;
    core->tell_ns = next_ns > now_ns ? next_ns : now_ns;
}

static enum xfer_link_state state_of(const struct xfer_way *way)
{
    if (way->session)
        return way->session->state == SESSION_READY ? XFER_LINK_READY : XFER_LINK_MAKING;
    if (way->retry_ns == 0) return XFER_LINK_IDLE;
    return way->error == ERR_UNSUPPORTED ? XFER_LINK_UNFIT : XFER_LINK_BROKEN;
}

struct xfer_link_row way_row(const struct xfer_way *way)
{
    struct xfer_link_row row = {
        .state = state_of(way),
        .tickets_count = way->session ? way->session->live_count : 0,
        .bytes = way->bytes,
        .rate = way->rate,
        .failed_ns = way->failed_ns,
    };
    strcpy(row.address, way_address(way));
    strcpy(row.reason, way->reason);
    return row;
}

/* ---- measuring ----
 *
 * A receiver grants credit again when it has taken in what credit_after says, so what flies beyond that is
 * under way for certain. The link is busy from when a burst begins, that is, when a frame is sent after
 * there was nothing to send and no more than that flew, to the last grant for it; what was granted in that
 * time, less what flew before, is what the link has carried. */

void rate_sent(struct xfer_core *core, struct xfer_session *s, uint64_t bytes, uint64_t now_ns)
{
    struct rate_meter *m = &s->meter;
    uint64_t window_bytes =
        s->credit_bytes + bytes + m->flying_bytes; /* it was taken off already */
    if (m->dry && m->flying_bytes <= credit_after(window_bytes)) {
        m->from_ns = now_ns;
        m->base_bytes = m->flying_bytes;
    }
    m->dry = false;
    m->flying_bytes += bytes;
    if (!s->way) return;
    s->way->bytes += bytes;
    way_changed(core, s->way, now_ns);
}

void rate_credited(struct xfer_core *core, struct xfer_session *s, uint64_t bytes, uint64_t now_ns)
{
    struct rate_meter *m = &s->meter;
    if (bytes > m->flying_bytes) bytes = m->flying_bytes;
    uint64_t old_bytes = bytes < m->base_bytes ? bytes : m->base_bytes;
    m->flying_bytes -= bytes;
    m->base_bytes -= old_bytes;
    m->bytes += bytes - old_bytes;
    if (bytes > old_bytes) m->busy_ns += now_ns - m->from_ns;
    m->from_ns = now_ns;
    if (m->bytes < SAMPLE_BYTES || m->busy_ns == 0) return;
    uint64_t rate = (uint64_t)((double)m->bytes * 1e9 / (double)m->busy_ns);
    m->bytes = m->busy_ns = 0;
    struct xfer_way *way = s->way;
    if (!way) return;
    bool stale = way->rate == 0 || now_ns >= way->rated_ns + LINK_STALE_NS;
    way->rate = stale ? rate : (3 * way->rate + rate) / 4;
    way->rated_ns = now_ns;
    way_changed(core, way, now_ns);
}

/* ---- peers ---- */

static bool same_addresses(const struct xfer_addresses *a, const struct xfer_addresses *b)
{
    if (a->count != b->count) return false;
    for (uint32_t i = 0; i < a->count; i++)
        if (strcmp(a->address[i], b->address[i]) != 0) return false;
    return true;
}

static void peer_free(struct xfer_core *core, struct xfer_peer *p)
{
    for (uint32_t i = 0; i < p->addresses.count; i++)
        list_remove(&p->way[i].changed);
    list_remove(&p->all);
    core->peers_count--;
    mem_free(p);
}

static bool in_use(const struct xfer_peer *p)
{
    if (!list_empty(&p->waiting)) return true;
    for (uint32_t i = 0; i < p->addresses.count; i++)
        if (p->way[i].session) return true;
    return false;
}

/* Forgets the peer that was not in use for longest: each one in use has a session, of which there are
 * fewer. */
static void peer_forget(struct xfer_core *core)
{
    struct list_link *l = core->peers.next;
    while (l != &core->peers && in_use(list_member(l, struct xfer_peer, all)))
        l = l->next;
    CHECK(l != &core->peers);
    peer_free(core, list_member(l, struct xfer_peer, all));
}

static struct xfer_peer *peer_new(struct xfer_core *core, const struct xfer_addresses *addresses)
{
    if (core->peers_count == XFER_PEERS_MAX) peer_forget(core);
    struct xfer_peer *p = mem_new(sizeof *p);
    if (!p) return NULL;
    list_init(&p->waiting);
    p->addresses = *addresses;
    for (uint32_t i = 0; i < addresses->count; i++) {
        p->way[i].trait = link_trait(addresses->address[i]);
        p->way[i].peer = p;
        list_init(&p->way[i].changed);
    }
    list_push_back(&core->peers, &p->all);
    core->peers_count++;
    return p;
}

static struct xfer_peer *peer_for(struct xfer_core *core, const struct xfer_addresses *addresses)
{
    for (struct list_link *l = core->peers.previous; l != &core->peers; l = l->previous) {
        struct xfer_peer *p = list_member(l, struct xfer_peer, all);
        if (!same_addresses(&p->addresses, addresses)) continue;
        list_remove(&p->all);
        list_push_back(&core->peers, &p->all);
        return p;
    }
    return peer_new(core, addresses);
}

void peers_free(struct xfer_core *core)
{
    while (!list_empty(&core->peers))
        peer_free(core, list_member(core->peers.next, struct xfer_peer, all));
}

/* ---- tickets ---- */

static bool is_wanted(const struct xfer_ticket *t, const char *address)
{
    size_t n = strlen(t->link_wanted);
    return n == 0 || (strncmp(address, t->link_wanted, n) == 0 && address[n] == ':');
}

static void fill_views(const struct xfer_peer *p, const struct xfer_ticket *t,
                       struct link_view view[XFER_ADDRESSES_MAX])
{
    for (uint32_t i = 0; i < p->addresses.count; i++) {
        const struct xfer_way *w = &p->way[i];
        enum xfer_link_state state = state_of(w);
        view[i] = (struct link_view){
            .trait = w->trait,
            .state = state == XFER_LINK_READY    ? LINK_READY
                     : state == XFER_LINK_MAKING ? LINK_MAKING
                                                 : LINK_NONE,
            .barred = !is_wanted(t, way_address(w)) || (!w->session && w->failed > t->asked),
            .rate = w->rate,
            .rated_ns = w->rated_ns,
            .retry_ns = w->retry_ns,
        };
    }
}

static void way_failed(struct xfer_core *core, struct xfer_way *w, enum err e, const char *text,
                       uint64_t now_ns)
{
    w->failed = ++core->order;
    w->failed_ns = now_ns;
    w->error = e;
    snprintf(w->reason, sizeof w->reason, "%s", text);
    uint64_t last_ns = e == ERR_UNSUPPORTED ? UINT64_MAX : w->backoff_ns; /* the longest at once */
    w->backoff_ns = link_backoff(last_ns, core->options.retry_ns);
    w->retry_ns = now_ns + w->backoff_ns;
    way_changed(core, w, now_ns);
}

static void dial_ways(struct xfer_core *core, struct xfer_peer *p, uint32_t bits, uint64_t now_ns)
{
    for (uint32_t i = 0; i < p->addresses.count; i++) {
        if (!(bits >> i & 1)) continue;
        p->way[i].session = session_dial(core, &p->way[i], now_ns);
        if (p->way[i].session)
            way_changed(core, &p->way[i], now_ns);
        else
            way_failed(core, &p->way[i],
                       core->sessions_count == XFER_SESSIONS_MAX ? ERR_FULL : ERR_MEMORY,
                       err_text(), now_ns);
    }
}

/* Nothing is left to try: what the way said that failed last. */
static void fail(struct xfer_core *core, const struct xfer_peer *p, struct xfer_ticket *t,
                 uint64_t now_ns)
{
    enum err e = ERR_INVALID;
    const char *text = "the receiver has no address for this link";
    uint64_t last = t->asked;
    for (uint32_t i = 0; i < p->addresses.count; i++) {
        const struct xfer_way *w = &p->way[i];
        if (w->failed <= last || !is_wanted(t, way_address(w))) continue;
        last = w->failed;
        e = w->error;
        text = w->reason;
    }
    ticket_end(core, t, XFER_FAILED, e, text, 0, now_ns);
}

/* Gives a waiting ticket its session, or what it waits for. Each turn that changes nothing bars a way. */
static void place(struct xfer_core *core, struct xfer_peer *p, struct xfer_ticket *t,
                  uint64_t now_ns)
{
    struct link_view view[XFER_ADDRESSES_MAX];
    struct link_choice c;
    do {
        fill_views(p, t, view);
        c = link_choose(view, p->addresses.count, now_ns);
        if (c.use != LINK_VIEWS_MAX) {
            ticket_join(core, t, p->way[c.use].session, now_ns);
            t->state = TICKET_SENDING;
            ticket_wake(t);
        }
        dial_ways(core, p, c.dial, now_ns);
    } while (c.use == LINK_VIEWS_MAX && c.dial != 0);
    if (c.use == LINK_VIEWS_MAX && !c.wait) fail(core, p, t, now_ns);
}

static void place_all(struct xfer_core *core, struct xfer_peer *p, uint64_t now_ns)
{
    for (struct list_link *l = p->waiting.next, *next; l != &p->waiting; l = next) {
        next = l->next;
        place(core, p, list_member(l, struct xfer_ticket, in_session), now_ns);
    }
}

void peer_open(struct xfer_core *core, struct xfer_ticket *t, uint64_t now_ns)
{
    struct xfer_peer *p = peer_for(core, &t->addresses);
    if (!p) {
        ticket_end(core, t, XFER_FAILED, ERR_MEMORY, err_text(), 0, now_ns);
        return;
    }
    t->asked = ++core->order;
    list_push_back(&p->waiting, &t->in_session);
    place(core, p, t, now_ns);
}

void peer_ready(struct xfer_core *core, struct xfer_way *way, uint64_t now_ns)
{
    way->retry_ns = 0;
    way_changed(core, way, now_ns);
    place_all(core, way->peer, now_ns);
}

void way_delivered(struct xfer_way *way)
{
    if (way) way->backoff_ns = 0;
}

void peer_detach(struct xfer_core *core, struct xfer_session *s, enum err e, const char *text,
                 uint64_t now_ns)
{
    struct xfer_way *way = s->way;
    way->session = NULL;
    s->way = NULL;
    if (e == OK) { /* nobody waits for it; it may have gone to make room while others are placed */
        way_changed(core, way, now_ns);
        return;
    }
    way_failed(core, way, e, text, now_ns);
    place_all(core, way->peer, now_ns);
}
