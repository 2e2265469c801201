/* xfer_nodes: what the tests of kv_xfer share: nodes with a small pool, a queue of events, and
 * transfers between them. Header only, for one test program each. Owner: the test's thread. */
#ifndef TANDEM_TESTS_XFER_NODES_H
#define TANDEM_TESTS_XFER_NODES_H

#include "tests/unit/testing.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "xfer/xfer.h"

enum { NODE_BLOCKS = 64, NODE_EVENTS = 512, WAIT_S = 20 };

static const struct kv_geometry small_geometry = {
    .layers_count = 3,
    .kv_heads = 2,
    .head_dim = 8,
    .block_tokens = BLOCK_TOKENS,
    .layout = KV_LAYOUT_CPU,
    .dtype = DTYPE_F32,
};

struct node {
    struct xfer *x;
    struct kv_geometry geometry;
    uint8_t *kv;
    void *staging;            /* of a node whose pool is a device's */
    uint32_t device_fails_at; /* its n-th read or write fails; 0: none */
    uint32_t device_calls;    /* blocks that it read and wrote; the link thread counts */
    uint32_t slots_count;     /* payloads that it put into slots or took from them */
    pthread_mutex_t lock;
    pthread_cond_t change;
    struct xfer_event event[NODE_EVENTS];
    uint32_t events_count;
};

static inline void node_on_event(void *ctx, const struct xfer_event *event)
{
    struct node *n = ctx;
    pthread_mutex_lock(&n->lock);
    if (n->events_count < NODE_EVENTS) n->event[n->events_count] = *event;
    n->events_count++;
    pthread_cond_broadcast(&n->change);
    pthread_mutex_unlock(&n->lock);
}

static inline struct xfer_options node_options(void)
{
    return (struct xfer_options){
        .geometry = small_geometry,
        .blocks_count = NODE_BLOCKS,
        .listen = {{.name = "shm", .where = ""}, {.name = "tcp", .where = "127.0.0.1:0"}},
        .listen_count = 2,
        .tickets_max = 64,
    };
}

static inline uint8_t *node_layer(const struct node *n, uint32_t block, uint32_t layer)
{
    return n->kv + block * kv_block_bytes(&n->geometry) + layer * kv_layer_bytes(&n->geometry);
}

/* A device that keeps every byte inverted, and so converts from and to KV_LAYOUT_CPU. */
static inline enum err node_device_copy(struct node *n, uint8_t *to, const uint8_t *from,
                                        uint32_t layout)
{
    if (++n->device_calls == n->device_fails_at) return err_set(ERR_DEVICE, "a broken device");
    for (size_t i = 0; i < kv_layer_bytes(&n->geometry); i++)
        to[i] = layout == KV_LAYOUT_CPU ? (uint8_t)~from[i] : from[i];
    return OK;
}
static inline enum err node_device_read(void *ctx, uint32_t layer, const uint32_t *blocks,
                                        uint32_t blocks_count, uint32_t layout, void *host)
{
    struct node *n = ctx;
    enum err e = OK;
    for (uint32_t i = 0; i < blocks_count && e == OK; i++)
        e = node_device_copy(n, (uint8_t *)host + i * kv_layer_bytes(&n->geometry),
                             node_layer(n, blocks[i], layer), layout);
    return e;
}
static inline enum err node_device_write(void *ctx, uint32_t layer, const uint32_t *blocks,
                                         uint32_t blocks_count, uint32_t layout, const void *host)
{
    struct node *n = ctx;
    enum err e = OK;
    for (uint32_t i = 0; i < blocks_count && e == OK; i++)
        e = node_device_copy(n, node_layer(n, blocks[i], layer),
                             (const uint8_t *)host + i * kv_layer_bytes(&n->geometry), layout);
    return e;
}

/* The same to and from a slot. */
static inline enum err node_device_gather(void *ctx, uint32_t layer, const uint32_t *blocks,
                                          uint32_t blocks_count, uint32_t layout, void *slot,
                                          uint64_t *hash)
{
    struct node *n = ctx;
    enum err e = node_device_read(ctx, layer, blocks, blocks_count, layout, slot);
    *hash = kv_hash(slot, blocks_count * kv_layer_bytes(&n->geometry) / 8);
    n->slots_count++;
    return e;
}
static inline enum err node_device_scatter(void *ctx, uint32_t layer, const uint32_t *blocks,
                                           uint32_t blocks_count, uint32_t layout, const void *slot,
                                           uint64_t *hash)
{
    struct node *n = ctx;
    *hash = kv_hash(slot, blocks_count * kv_layer_bytes(&n->geometry) / 8);
    n->slots_count++;
    return node_device_write(ctx, layer, blocks, blocks_count, layout, slot);
}

static inline void node_start_device(struct node *n, struct xfer_options options,
                                     uint32_t device_fails_at)
{
    memset(n, 0, sizeof *n);
    n->geometry = options.geometry;
    n->device_fails_at = device_fails_at;
    n->kv = mem_aligned(options.blocks_count * kv_block_bytes(&options.geometry), 64);
    assert_non_null(n->kv);
    if (options.geometry.layout == KV_LAYOUT_CUDA)
        options.device = (struct xfer_device){
            .ctx = n,
            .read = node_device_read,
            .write = node_device_write,
            .staging = n->staging = mem_aligned(xfer_staging_bytes(&options.geometry), 64),
            .gather = node_device_gather,
            .scatter = node_device_scatter};
    else
        options.kv_base = n->kv;
    pthread_mutex_init(&n->lock, NULL);
    pthread_cond_init(&n->change, NULL);
    if (xfer_open(&n->x, &options, node_on_event, n) != OK) fail_msg("%s", err_text());
    assert_ok(xfer_start(n->x));
}

static inline void node_start(struct node *n, struct xfer_options options)
{
    node_start_device(n, options, 0);
}

static inline void node_stop(struct node *n)
{
    xfer_stop(n->x);
    xfer_close(n->x);
    mem_free(n->kv);
    mem_free(n->staging); /* its events may still be looked at, under the lock */
}

/* Every byte tells block and layer of its writer. */
static inline void node_fill(struct node *n, uint32_t block, uint64_t seed)
{
    for (uint32_t layer = 0; layer < n->geometry.layers_count; layer++) {
        uint8_t *p = node_layer(n, block, layer);
        for (size_t i = 0; i < kv_layer_bytes(&n->geometry); i += 16) {
            struct rng_block r = rng_draw(seed, block * 64 + layer, i);
            memcpy(p + i, &r, 16);
        }
    }
}

/* The final event of a ticket; the test fails if none comes. */
static inline struct xfer_event node_wait(struct node *n, struct id128 ticket)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    pthread_mutex_lock(&n->lock);
    for (uint32_t seen = 0;;) {
        for (; seen < n->events_count; seen++)
            if (id128_equal(n->event[seen].ticket, ticket)) {
                struct xfer_event found = n->event[seen];
                pthread_mutex_unlock(&n->lock);
                return found;
            }
        if (pthread_cond_timedwait(&n->change, &n->lock, &until) != 0) break;
    }
    pthread_mutex_unlock(&n->lock);
    fail_msg("no event for ticket %llu", (unsigned long long)ticket.lo);
    return (struct xfer_event){0};
}

static inline uint32_t node_events_of(struct node *n, struct id128 ticket)
{
    uint32_t count = 0;
    pthread_mutex_lock(&n->lock);
    assert_true(n->events_count <= NODE_EVENTS);
    for (uint32_t i = 0; i < n->events_count; i++)
        count += id128_equal(n->event[i].ticket, ticket);
    pthread_mutex_unlock(&n->lock);
    return count;
}

/* One request's KV on its way: block i of it is at from[i] on P and goes to to[i] on D. */
struct travel {
    struct id128 ticket;
    uint32_t tokens_first, tokens_end;
    uint32_t blocks_count;
    uint32_t from[NODE_BLOCKS], to[NODE_BLOCKS];
    uint64_t deadline_ns;
    const char *link;
};

static inline void travel_expect(const struct travel *t, struct node *d)
{
    struct xfer_op op = {.kind = XFER_EXPECT,
                         .ticket = t->ticket,
                         .tokens_first = t->tokens_first,
                         .tokens_end = t->tokens_end,
                         .blocks = t->to,
                         .blocks_count = t->blocks_count,
                         .deadline_ns = t->deadline_ns};
    assert_ok(xfer_post(d->x, &op));
}

static inline void travel_open(const struct travel *t, struct node *p,
                               const struct xfer_addresses *to)
{
    struct xfer_op op = {.kind = XFER_OPEN,
                         .ticket = t->ticket,
                         .tokens_first = t->tokens_first,
                         .tokens_end = t->tokens_end,
                         .addresses = to,
                         .link = t->link,
                         .deadline_ns = t->deadline_ns};
    assert_ok(xfer_post(p->x, &op));
}

static inline void travel_push(const struct travel *t, struct node *p, uint32_t layer,
                               uint32_t first, uint32_t end)
{
    struct xfer_op op = {.kind = XFER_PUSH,
                         .ticket = t->ticket,
                         .tokens_first = first,
                         .tokens_end = end,
                         .blocks = t->from + (first - t->tokens_first) / BLOCK_TOKENS,
                         .blocks_count = blocks_for_tokens(end - first),
                         .layer = layer};
    assert_ok(xfer_post(p->x, &op));
}

/* All layers of the chunks that prefill would make of it. */
static inline void travel_push_all(const struct travel *t, struct node *p, uint32_t chunk_tokens)
{
    for (uint32_t at = t->tokens_first; at < t->tokens_end; at += chunk_tokens) {
        uint32_t end = at + chunk_tokens < t->tokens_end ? at + chunk_tokens : t->tokens_end;
        for (uint32_t layer = 0; layer < p->geometry.layers_count; layer++)
            travel_push(t, p, layer, at, end);
    }
}

static inline void travel_commit(const struct travel *t, struct node *p, uint32_t token)
{
    struct xfer_op op = {
        .kind = XFER_COMMIT,
        .ticket = t->ticket,
        .first = {.token = token, .logprob = -0.5f, .tops_count = 1, .top = {{token, -0.5f}}},
        .finish = FINISH_LENGTH};
    assert_ok(xfer_post(p->x, &op));
}

static inline void travel_end(const struct travel *t, struct node *n, enum xfer_op_kind kind)
{
    assert_ok(xfer_post(n->x, &(struct xfer_op){.kind = kind, .ticket = t->ticket}));
}

static inline void assert_arrived(const struct travel *t, const struct node *p,
                                  const struct node *d)
{
    uint8_t inverted = p->geometry.layout == d->geometry.layout ? 0 : 0xff;
    for (uint32_t i = 0; i < t->blocks_count; i++)
        for (size_t byte = 0; byte < kv_block_bytes(&d->geometry); byte++)
            assert_int_equal((uint8_t)(node_layer(p, t->from[i], 0)[byte] ^ inverted),
                             node_layer(d, t->to[i], 0)[byte]);
}

static inline void assert_event(const struct xfer_event *event, enum xfer_event_kind kind,
                                enum err error)
{
    if (event->kind != kind || event->error != error)
        fail_msg("event %d %s \"%s\", not %d %s", event->kind, err_name(event->error), event->text,
                 kind, err_name(error));
}

/* Blocks [first, …) on P in falling order to D in an odd order: none is where it was. */
static inline struct travel travel_new(uint64_t number, uint32_t tokens_first, uint32_t tokens_end,
                                       const char *link)
{
    struct travel t = {.ticket = {0x7e57, number},
                       .tokens_first = tokens_first,
                       .tokens_end = tokens_end,
                       .blocks_count = blocks_for_tokens(tokens_end - tokens_first),
                       .deadline_ns = clock_now_ns() + WAIT_S * NS_PER_S,
                       .link = link};
    for (uint32_t i = 0; i < t.blocks_count; i++) {
        t.from[i] = t.blocks_count - 1 - i;
        t.to[i] = (i * 37 + 5) % NODE_BLOCKS;
    }
    return t;
}

#endif
