/* KV between nodes that hold different parts of a model, in blocks of different sizes: every number of it
 * tells its layer, head, token and place, so that what arrives is compared number by number. */
#include "tests/unit/xfer_nodes.h"

#include "tests/unit/kv_place.h"

enum { MODEL_LAYERS = 4, MODEL_HEADS = 8, DIM = 4 };

static const char *const link_name[] = {"shm", "tcp"};

/* What one node holds; zero: the whole model in blocks of 16 tokens. */
struct holds {
    uint32_t layers_first, layers_count, heads_first, heads_count, block_tokens;
    enum dtype dtype;
    uint32_t layout;
    uint32_t corrupt_every;
};

struct holder {
    struct node node;
    struct kv_part part;
};

static void holder_start(struct holder *h, struct holds what)
{
    struct xfer_options o = node_options();
    if (what.layers_count == 0) what.layers_count = MODEL_LAYERS;
    if (what.heads_count == 0) what.heads_count = MODEL_HEADS;
    o.geometry = (struct kv_geometry){
        .layers_count = what.layers_count,
        .kv_heads = what.heads_count,
        .head_dim = DIM,
        .block_tokens = what.block_tokens ? what.block_tokens : BLOCK_TOKENS,
        .layout = what.layout ? what.layout : KV_LAYOUT_CPU,
        .dtype = what.dtype ? what.dtype : DTYPE_BF16,
    };
    o.part = h->part =
        (struct kv_part){what.layers_first, MODEL_LAYERS, what.heads_first, MODEL_HEADS};
    o.corrupt_every = what.corrupt_every;
    node_start(&h->node, o);
}

/* A request's KV from tokens_first on; block i of it is at block(i) of each pool. */
struct trip {
    struct id128 ticket;
    uint32_t tokens_first, tokens_end;
    const char *link;
};

static struct trip trip_new(uint64_t number, uint32_t first, uint32_t end, int link)
{
    return (struct trip){{0x9a27, number}, first, end, link_name[link % 2]};
}

static uint32_t blocks_of(const struct holder *h, const struct trip *t, uint32_t first,
                          uint32_t end, uint32_t blocks[NODE_BLOCKS])
{
    uint32_t tokens = h->node.geometry.block_tokens, skipped = first / tokens;
    uint32_t count = blocks_between(tokens, first, end);
    skipped -= t->tokens_first / tokens;
    for (uint32_t i = 0; i < count; i++)
        blocks[i] = (7 + (i + skipped) * 37) % NODE_BLOCKS;
    return count;
}

static uint32_t number_of(uint32_t layer, uint32_t head, uint32_t token, uint32_t dim, bool v)
{
    uint32_t n = (((layer * MODEL_HEADS + head) * 1024 + token) * DIM + dim) * 2 + v;
    return n * 2654435761u >> 8 | 1; /* never 0 */
}

/* Calls `body` with each number of the tokens in the holder's pool. */
static void each_number(struct holder *h, const struct trip *t,
                        void (*body)(uint8_t *there, uint32_t number, size_t size))
{
    const struct kv_geometry *g = &h->node.geometry;
    uint32_t blocks[NODE_BLOCKS], size = dtype_bytes(g->dtype);
    blocks_of(h, t, t->tokens_first, t->tokens_end, blocks);
    for (uint32_t layer = 0; layer < g->layers_count; layer++)
        for (uint32_t token = t->tokens_first; token < t->tokens_end; token++) {
            uint32_t block = token / g->block_tokens - t->tokens_first / g->block_tokens;
            uint8_t *bytes = node_layer(&h->node, blocks[block], layer);
            for (uint32_t i = 0; i < g->kv_heads * DIM * 2; i++) {
                uint32_t head = i / 2 / DIM, dim = i / 2 % DIM;
                body(bytes + size * kv_place(g, i % 2, head, token % g->block_tokens, dim),
                     number_of(h->part.layers_first + layer, h->part.heads_first + head, token, dim,
                               i % 2),
                     size);
            }
        }
}

static void write_number(uint8_t *there, uint32_t number, size_t size)
{
    memcpy(there, &number, size);
}
static void assert_number(uint8_t *there, uint32_t number, size_t size)
{
    if (memcmp(there, &number, size) != 0) fail_msg("a wrong number has arrived");
}
static void clear_number(uint8_t *there, uint32_t number, size_t size)
{
    (void)number;
    memset(there, 0, size);
}

/* All that belongs to the trip is there, and nothing else was written but the rest of its last 16 tokens. */
static void assert_whole(struct holder *d, const struct trip *t)
{
    struct trip padded = *t;
    each_number(d, t, assert_number);
    padded.tokens_end = blocks_for_tokens(t->tokens_end) * BLOCK_TOKENS;
    each_number(d, &padded, clear_number);
    for (size_t i = 0; i < NODE_BLOCKS * kv_block_bytes(&d->node.geometry); i++)
        if (d->node.kv[i] != 0) fail_msg("byte %zu of the pool was written", i);
}

static void expect(struct holder *d, const struct trip *t)
{
    uint32_t blocks[NODE_BLOCKS];
    struct xfer_op op = {.kind = XFER_EXPECT,
                         .ticket = t->ticket,
                         .tokens_first = t->tokens_first,
                         .tokens_end = t->tokens_end,
                         .blocks = blocks,
                         .deadline_ns = clock_now_ns() + WAIT_S * NS_PER_S};
    op.blocks_count = blocks_of(d, t, t->tokens_first, t->tokens_end, blocks);
    memset(d->node.kv, 0, NODE_BLOCKS * kv_block_bytes(&d->node.geometry));
    assert_ok(xfer_post(d->node.x, &op));
}

static void open_to(struct holder *p, const struct trip *t, const struct holder *d)
{
    struct xfer_op op = {.kind = XFER_OPEN,
                         .ticket = t->ticket,
                         .tokens_first = t->tokens_first,
                         .tokens_end = t->tokens_end,
                         .addresses = xfer_addresses(d->node.x),
                         .link = t->link,
                         .deadline_ns = clock_now_ns() + WAIT_S * NS_PER_S};
    each_number(p, t, write_number);
    assert_ok(xfer_post(p->node.x, &op));
}

/* All of its layers of these tokens. */
static void push(struct holder *p, const struct trip *t, uint32_t first, uint32_t end)
{
    uint32_t blocks[NODE_BLOCKS];
    struct xfer_op op = {.kind = XFER_PUSH,
                         .ticket = t->ticket,
                         .tokens_first = first,
                         .tokens_end = end,
                         .blocks = blocks};
    op.blocks_count = blocks_of(p, t, first, end, blocks);
    for (op.layer = 0; op.layer < p->node.geometry.layers_count; op.layer++)
        assert_ok(xfer_post(p->node.x, &op));
}

static void commit(struct holder *p, const struct trip *t, uint32_t token)
{
    struct xfer_op op = {
        .kind = XFER_COMMIT, .ticket = t->ticket, .first = {.token = token}, .finish = FINISH_STOP};
    assert_ok(xfer_post(p->node.x, &op));
}

static void send_all(struct holder *p, const struct trip *t, const struct holder *d)
{
    enum { CHUNK = 80 };
    open_to(p, t, d);
    for (uint32_t at = t->tokens_first; at < t->tokens_end; at += CHUNK)
        push(p, t, at, at + CHUNK < t->tokens_end ? at + CHUNK : t->tokens_end);
    commit(p, t, 42);
}

static void assert_final(struct holder *h, const struct trip *t, enum xfer_event_kind kind,
                         enum err error)
{
    struct xfer_event event = node_wait(&h->node, t->ticket);
    assert_event(&event, kind, error);
    assert_int_equal(node_events_of(&h->node, t->ticket), 1);
    if (kind == XFER_COMMITTED) assert_int_equal(event.first.token, 42);
}

static void assert_text(struct holder *h, const struct trip *t, const char *part)
{
    struct xfer_event event = node_wait(&h->node, t->ticket);
    if (!strstr(event.text, part)) fail_msg("\"%s\" has no \"%s\"", event.text, part);
}

static void run_trip(struct holder *p, const struct trip *t, struct holder *d)
{
    expect(d, t);
    send_all(p, t, d);
    assert_final(d, t, XFER_COMMITTED, OK);
    assert_final(p, t, XFER_DONE, OK);
    assert_whole(d, t);
}

static void blocks_of_any_size_meet(void **state)
{
    (void)state;
    const uint32_t size[] = {16, 32, 48};
    const uint32_t tokens[][2] = {{0, 16}, {0, 200}, {16, 100}, {80, 81}, {48, 250}};
    for (int i = 0; i < 18; i++) {
        enum dtype dtype = i % 2 ? DTYPE_F32 : DTYPE_BF16;
        struct holder p, d;
        holder_start(&p, (struct holds){.block_tokens = size[i % 3], .dtype = dtype});
        holder_start(&d, (struct holds){.block_tokens = size[i / 3 % 3], .dtype = dtype});
        for (uint32_t n = 0; n < sizeof tokens / sizeof *tokens; n++) {
            struct trip t = trip_new(n + 1, tokens[n][0], tokens[n][1], i);
            run_trip(&p, &t, &d);
        }
        node_stop(&p.node);
        node_stop(&d.node);
    }
}

/* One sender, receivers of a part each: a ticket to each of them. */
static void assert_spreads(struct holds from, struct holds to_a, struct holds to_b, int link)
{
    struct holder p, a, b;
    holder_start(&p, from);
    holder_start(&a, to_a);
    holder_start(&b, to_b);
    struct trip ta = trip_new(1, 16, 300, link), tb = trip_new(2, 16, 300, link);
    expect(&a, &ta);
    expect(&b, &tb);
    send_all(&p, &ta, &a);
    send_all(&p, &tb, &b);
    assert_final(&a, &ta, XFER_COMMITTED, OK);
    assert_final(&b, &tb, XFER_COMMITTED, OK);
    assert_final(&p, &ta, XFER_DONE, OK);
    assert_final(&p, &tb, XFER_DONE, OK);
    assert_whole(&a, &ta);
    assert_whole(&b, &tb);
    struct xfer_event at_p = node_wait(&p.node, ta.ticket), at_a = node_wait(&a.node, ta.ticket);
    assert_int_equal(at_p.bytes, at_a.bytes);
    assert_int_equal(at_a.bytes, 18 * kv_block_bytes(&a.node.geometry) * BLOCK_TOKENS /
                                     a.node.geometry.block_tokens); /* no more than its part */
    node_stop(&p.node);
    node_stop(&a.node);
    node_stop(&b.node);
}

static void one_sender_feeds_receivers_of_half_the_heads(void **state)
{
    (void)state;
    for (int link = 0; link < 2; link++)
        assert_spreads((struct holds){0}, (struct holds){.heads_count = 4},
                       (struct holds){.heads_first = 4, .heads_count = 4, .block_tokens = 48},
                       link);
}

static void one_sender_feeds_receivers_of_half_the_layers(void **state)
{
    (void)state;
    for (int link = 0; link < 2; link++)
        assert_spreads((struct holds){.block_tokens = 32}, (struct holds){.layers_count = 2},
                       (struct holds){.layers_first = 2, .layers_count = 2, .block_tokens = 32},
                       link);
}

static void parts_that_do_not_meet_are_refused(void **state)
{
    (void)state;
    static const struct {
        struct holds p, d;
        const char *text;
    } row[] = {
        {{.heads_count = 4}, {.heads_first = 4, .heads_count = 4}, "heads 0 to 4 there"},
        {{.layers_first = 2, .layers_count = 2}, {.layers_count = 2}, "layers 2 to 4"},
        {{.dtype = DTYPE_F32}, {.heads_count = 4}, "KV differs"},
        {{.layout = KV_LAYOUT_CUDA}, {.heads_count = 4}, "whole blocks only"},
        {{.heads_count = 4}, {.layout = KV_LAYOUT_CUDA}, "whole blocks only"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct holder p, d;
        holder_start(&p, row[i].p);
        holder_start(&d, row[i].d);
        struct trip t = trip_new(1, 0, 64, (int)i);
        expect(&d, &t);
        send_all(&p, &t, &d);
        assert_final(&p, &t, XFER_FAILED, ERR_INVALID);
        assert_text(&p, &t, row[i].text);
        node_stop(&p.node);
        node_stop(&d.node);
        assert_final(&d, &t, XFER_FAILED, ERR_CANCELLED);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_of_any_size_meet),
        cmocka_unit_test(one_sender_feeds_receivers_of_half_the_heads),
        cmocka_unit_test(one_sender_feeds_receivers_of_half_the_layers),
        cmocka_unit_test(parts_that_do_not_meet_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
