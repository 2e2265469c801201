#include "proto/channel.h"

#include <string.h>

#include "common/failpoint.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/map.h"
#include "proto/wire.h"

enum {
    PEERS_MAX = 65536,
    BATCH = 256,                        /* messages per turn, then others get theirs */
    ARENA_BYTES_MAX = 4 * MSG_BYTES_MAX /* of one decoded message */
};

struct member { /* one peer */
    uint32_t number;
    struct wire_line *line;
    struct wire_name name; /* listener only */
};

struct channel {
    struct loop *loop;
    struct wire *wire;
    struct loop_watch *watch;
    struct loop_timer *again; /* more to receive, and the descriptor may not say so */
    struct channel_events events;
    void *ctx;
    struct map by_number, by_name; /* of struct member */
    struct member *other;          /* dialled: the one peer */
    struct arena arena;
    struct buf out;
    struct channel_stats stats;
    uint64_t logged_ns; /* the last line about malformed messages */
    bool dispatching, closed;
};

static struct id128 name_key(const struct wire_name *name)
{
    return hash128(name->bytes, name->size);
}

static void member_free(struct member *m)
{
    wire_line_free(m->line);
    mem_free(m);
}

static struct member *member_new(struct channel *c, uint32_t number, const struct wire_name *name)
{
    struct member *m = mem_new(sizeof *m);
    if (!m) return NULL;
    m->number = number;
    if (name) m->name = *name;
    if (!(m->line = wire_line_new())) goto fail;
    if (map_put(&c->by_number, map_key(m->number), m) != OK) goto fail;
    if (name && map_put(&c->by_name, name_key(name), m) != OK) {
        map_remove(&c->by_number, map_key(m->number));
        goto fail;
    }
    return m;
fail:
    member_free(m);
    return NULL;
}

static struct member *member_find(struct channel *c, const struct wire_name *name)
{
    if (c->other) return c->other;
    struct member *m = map_get(&c->by_name, name_key(name));
    bool same = m && m->name.size == name->size && !memcmp(m->name.bytes, name->bytes, name->size);
    return same ? m : NULL;
}

/* NULL: nobody new can be let in, or two names have one hash, of which the first is served. */
static struct member *member_of(struct channel *c, const struct wire_name *name)
{
    struct member *m = member_find(c, name);
    if (m) return m;
    if (map_get(&c->by_name, name_key(name)) || c->by_name.count >= PEERS_MAX) return NULL;
    return member_new(c, loop_number(c->loop), name);
}

static void count_malformed(struct channel *c, uint64_t now_ns)
{
    c->stats.malformed++;
    if (c->logged_ns != 0 && now_ns - c->logged_ns < NS_PER_S) return;
    c->logged_ns = now_ns;
    log_warn("message_malformed", "address=%s count=%llu reason=\"%s\"", channel_address(c),
             (unsigned long long)c->stats.malformed, err_text());
}

static void tell_malformed(struct channel *c, uint64_t now_ns, const struct wire_name *from,
                           const struct msg *m, enum err e)
{
    struct member *member = member_find(c, from);
    if (member && c->events.malformed)
        c->events.malformed(c->ctx, now_ns, (struct peer){member->number}, m, e, err_text());
}

static void deliver(struct channel *c, uint64_t now_ns, const struct wire_name *from,
                    const void *bytes, size_t size)
{
    struct msg m;
    c->stats.received++;
    c->stats.received_bytes += size;
    arena_reset(&c->arena);
    enum err e = msg_decode(bytes, size, &c->arena, &m);
    if (e != OK) {
        count_malformed(c, now_ns);
        tell_malformed(c, now_ns, from, &m, e);
        return;
    }
    struct member *member = member_of(c, from);
    if (!member) {
        c->stats.refused_full++;
        return;
    }
    FAILPOINT_KIND("got", msg_kind_name(m.kind));
    c->events.message(c->ctx, now_ns, (struct peer){member->number}, &m);
}

static void channel_destroy(struct channel *c)
{
    struct member *m;
    for (struct map_cursor i = {0}; (m = map_next(&c->by_number, &i));)
        member_free(m);
    map_fini(&c->by_number);
    map_fini(&c->by_name);
    loop_watch_free(c->watch);
    loop_timer_free(c->again);
    wire_close(c->wire, WIRE_LINGER_MS);
    arena_fini(&c->arena);
    buf_fini(&c->out);
    mem_free(c);
}

static void receive_all(struct channel *c, uint64_t now_ns)
{
    enum err e = OK;
    struct wire_name from;
    const void *bytes;
    size_t size;
    c->dispatching = true;
    for (int i = 0; i < BATCH && !c->closed; i++) {
        if ((e = wire_receive(c->wire, &from, &bytes, &size)) == ERR_AGAIN) break;
        if (e == OK)
            deliver(c, now_ns, &from, bytes, size);
        else
            count_malformed(c, now_ns);
    }
    c->dispatching = false;
    if (c->closed)
        channel_destroy(c);
    else if (e != ERR_AGAIN)
        loop_timer_set(c->again, now_ns);
}

static void on_readable(void *ctx, uint64_t now_ns, unsigned events)
{
    (void)events;
    receive_all(ctx, now_ns);
}

static void on_again(void *ctx, uint64_t now_ns)
{
    receive_all(ctx, now_ns);
}

/* `peer`: of a dialled channel; PEER_NONE makes a listener. */
static enum err channel_open(struct channel **out, struct loop *loop, struct peer peer,
                             const char *address, const struct channel_events *events, void *ctx)
{
    enum err e;
    bool dial = !peer_equal(peer, PEER_NONE);
    struct channel *c = mem_new(sizeof *c);
    if (!c) return ERR_MEMORY;
    c->loop = loop;
    c->events = *events;
    c->ctx = ctx;
    c->arena.limit_bytes = ARENA_BYTES_MAX;
    if ((e = wire_open(&c->wire, dial ? WIRE_DIAL : WIRE_LISTEN, address)) != OK) goto fail;
    if ((e = loop_timer_new(loop, on_again, c, &c->again)) != OK) goto fail;
    if ((e = loop_watch(loop, wire_fd(c->wire), LOOP_READ, on_readable, c, &c->watch)) != OK)
        goto fail;
    if (dial && !(c->other = member_new(c, peer.v, NULL))) {
        e = ERR_MEMORY;
        goto fail;
    }
    loop_timer_set(c->again, loop_now_ns(loop)); /* what came before the watch was there */
    *out = c;
    return OK;
fail:
    channel_destroy(c);
    return e;
}

enum err channel_listen(struct channel **c, struct loop *loop, const char *address,
                        const struct channel_events *events, void *ctx)
{
    return channel_open(c, loop, PEER_NONE, address, events, ctx);
}

enum err channel_dial(struct channel **c, struct loop *loop, const char *address, struct peer peer,
                      const struct channel_events *events, void *ctx)
{
    CHECK(!peer_equal(peer, PEER_NONE));
    return channel_open(c, loop, peer, address, events, ctx);
}

void channel_close(struct channel *c)
{
    if (!c) return;
    if (c->dispatching)
        c->closed = true; /* receive_all ends it */
    else
        channel_destroy(c);
}

bool channel_has(const struct channel *c, struct peer peer)
{
    return map_get(&c->by_number, map_key(peer.v)) != NULL;
}

enum err channel_send(struct channel *c, struct peer peer, const struct msg *m)
{
    enum err e;
    struct member *to = map_get(&c->by_number, map_key(peer.v));
    if (!to) return err_set(ERR_PEER, "peer %u is gone", peer.v);
    FAILPOINT_KIND("send", msg_kind_name(m->kind));
    buf_clear(&c->out);
    if ((e = msg_encode(m, &c->out)) != OK) return e;
    if (c->other && m->kind == MSG_HELLO) /* is on its way as soon as there is a connection */
        e = wire_send_first(c->wire, to->line, c->out.data, c->out.size);
    else
        e = wire_send(c->wire, c->other ? NULL : &to->name, to->line, c->out.data, c->out.size);
    if (e == ERR_FULL) c->stats.refused_full++;
    if (e == OK) {
        c->stats.sent++;
        c->stats.sent_bytes += c->out.size;
    }
    if (wire_readable(c->wire)) loop_timer_set(c->again, loop_now_ns(c->loop));
    return e;
}

void channel_forget(struct channel *c, struct peer peer)
{
    struct member *m = map_get(&c->by_number, map_key(peer.v));
    if (!m || m == c->other) return;
    map_remove(&c->by_number, map_key(peer.v));
    map_remove(&c->by_name, name_key(&m->name));
    member_free(m);
}

const char *channel_address(const struct channel *c)
{
    return wire_address(c->wire);
}

void channel_stats(const struct channel *c, struct channel_stats *stats)
{
    *stats = c->stats;
}
