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

/* What the sender's blocks hold already. */
static void send_again(struct holder *p, const struct trip *t, const struct holder *d)
{
    enum { CHUNK = 80 };
    open_to(p, t, d);
    for (uint32_t at = t->tokens_first; at < t->tokens_end; at += CHUNK)
        push(p, t, at, at + CHUNK < t->tokens_end ? at + CHUNK : t->tokens_end);
    commit(p, t, 42);
}

static void send_all(struct holder *p, const struct trip *t, const struct holder *d)
{
    each_number(p, t, write_number);
    send_again(p, t, d);
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
    send_again(&p, &tb, &b); /* the link thread may be reading them for the other one */
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

/* Two senders, a part each; `to` gets it all under one ticket. */
struct join {
    struct holder a, b, d;
    struct trip t;
};

static void join_start(struct join *j, struct holds a, struct holds b, struct holds to, int link)
{
    holder_start(&j->a, a);
    holder_start(&j->b, b);
    holder_start(&j->d, to);
    j->t = trip_new(1, 32, 300, link);
    expect(&j->d, &j->t);
}

static void join_stop(struct join *j)
{
    node_stop(&j->a.node);
    node_stop(&j->b.node);
    node_stop(&j->d.node);
}

static void assert_joined(struct join *j)
{
    assert_final(&j->d, &j->t, XFER_COMMITTED, OK);
    assert_final(&j->a, &j->t, XFER_DONE, OK);
    assert_final(&j->b, &j->t, XFER_DONE, OK);
    assert_whole(&j->d, &j->t);
}

static const struct holds low_heads = {.heads_count = 4};
static const struct holds high_heads = {.heads_first = 4, .heads_count = 4, .block_tokens = 32};
static const struct holds everything = {0};

static void senders_of_half_the_heads_fill_one_receiver(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct join j;
        join_start(&j, low_heads, high_heads, (struct holds){.block_tokens = i < 2 ? 16 : 48}, i);
        send_all(&j.a, &j.t, &j.d);
        send_all(&j.b, &j.t, &j.d);
        assert_joined(&j);
        join_stop(&j);
    }
}

static void senders_of_half_the_layers_fill_one_receiver(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct join j;
        join_start(&j, (struct holds){.layers_count = 2},
                   (struct holds){.layers_first = 2, .layers_count = 2}, everything, i);
        send_all(&j.b, &j.t, &j.d);
        send_all(&j.a, &j.t, &j.d);
        assert_joined(&j);
        join_stop(&j);
    }
}

static void heads_that_two_senders_hold_are_written_once(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        struct join j;
        join_start(&j, (struct holds){.heads_count = 6},
                   (struct holds){.heads_first = 2, .heads_count = 6, .block_tokens = 32},
                   (struct holds){.block_tokens = 16 + i / 2 * 16}, i);
        send_all(&j.a, &j.t, &j.d);
        send_all(&j.b, &j.t, &j.d);
        assert_joined(&j);
        join_stop(&j);
    }
}

static void spoiled_ranges_of_one_sender_are_sent_again(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct join j;
        struct holds spoils = low_heads;
        spoils.corrupt_every = 10; /* of 16 frames: one, and not the one that takes its place */
        join_start(&j, spoils, high_heads, everything, i);
        send_all(&j.a, &j.t, &j.d);
        send_all(&j.b, &j.t, &j.d);
        assert_joined(&j);
        xfer_stop(j.d.node.x); /* counts are told after a turn */
        struct xfer_stats stats;
        xfer_stats(j.d.node.x, &stats);
        assert_int_equal(stats.frames_refused, 1);
        join_stop(&j);
    }
}

/* What this sender has posted so far has opened its ticket at the receiver: a ticket that is unknown there
 * goes the same way and is answered. */
static void assert_heard(struct holder *p, const struct holder *d, int link)
{
    static uint64_t number = 1000;
    struct trip unknown = trip_new(++number, 0, 16, link);
    open_to(p, &unknown, d);
    assert_final(p, &unknown, XFER_FAILED, ERR_NOT_FOUND);
}

enum half_end { END_CANCEL, END_DISAGREE, END_GONE, END_RELEASE, HALF_ENDS };

static void end_half(struct join *j, struct holder *p, enum half_end how)
{
    struct xfer_op op = {.kind = XFER_CANCEL, .ticket = j->t.ticket};
    struct holder *at = how == END_RELEASE ? &j->d : p;
    if (how == END_RELEASE) op.kind = XFER_RELEASE;
    if (how == END_GONE) {
        xfer_stop(p->node.x);
    } else if (how == END_DISAGREE) {
        push(p, &j->t, 48, j->t.tokens_end);
        commit(p, &j->t, 41); /* the other one says 42 */
    } else {
        assert_ok(xfer_post(at->node.x, &op));
    }
}

static void what_ends_one_half_ends_the_ticket_everywhere(void **state)
{
    (void)state;
    static const struct {
        enum xfer_event_kind half_kind, whole_kind;
        enum err half_error, error;
    } row[HALF_ENDS] = {
        [END_CANCEL] = {XFER_CANCELLED, XFER_FAILED, OK, ERR_CANCELLED},
        [END_DISAGREE] = {XFER_FAILED, XFER_FAILED, ERR_STATE, ERR_STATE},
        [END_GONE] = {XFER_FAILED, XFER_FAILED, ERR_CANCELLED, ERR_CANCELLED},
        [END_RELEASE] = {XFER_FAILED, XFER_RELEASED, ERR_CANCELLED, OK},
    };
    for (int i = 0; i < HALF_ENDS * 4; i++) {
        enum half_end how = (enum half_end)(i % HALF_ENDS);
        struct join j;
        int link = i / HALF_ENDS;
        join_start(&j, low_heads, high_heads, everything, link);
        struct holder *half = link / 2 ? &j.a : &j.b, *other = link / 2 ? &j.b : &j.a;
        if (link / 2) { /* who ends has opened it first */
            open_to(half, &j.t, &j.d);
            assert_heard(half, &j.d, link);
        }
        send_all(other, &j.t, &j.d);
        assert_heard(other, &j.d, link);
        if (!(link / 2)) open_to(half, &j.t, &j.d);
        push(half, &j.t, 32, 48);
        assert_heard(half, &j.d, link);
        end_half(&j, half, how);
        assert_final(half, &j.t, row[how].half_kind, row[how].half_error);
        assert_final(&j.d, &j.t, row[how].whole_kind, row[how].error);
        assert_final(other, &j.t, XFER_FAILED, how == END_RELEASE ? ERR_CANCELLED : row[how].error);
        join_stop(&j);
    }
}

static void a_second_sender_of_the_same_part_is_turned_away(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct join j;
        struct holder again;
        join_start(&j, low_heads, high_heads, everything, i);
        holder_start(&again, (struct holds){.heads_first = 1, .heads_count = 2});
        send_all(&j.a, &j.t, &j.d);
        assert_heard(&j.a, &j.d, i);
        send_all(&again, &j.t, &j.d);
        assert_final(&again, &j.t, XFER_FAILED, ERR_DUPLICATE);
        send_all(&j.b, &j.t, &j.d);
        assert_joined(&j);
        node_stop(&again.node);
        join_stop(&j);
    }
}

static void a_half_by_itself_is_not_the_whole(void **state)
{
    (void)state;
    struct join j;
    join_start(&j, low_heads, high_heads, everything, 1);
    send_all(&j.a, &j.t, &j.d);
    assert_heard(&j.a, &j.d, 1);
    assert_int_equal(node_events_of(&j.d.node, j.t.ticket), 0);
    send_all(&j.b, &j.t, &j.d);
    assert_joined(&j);
    join_stop(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_of_any_size_meet),
        cmocka_unit_test(one_sender_feeds_receivers_of_half_the_heads),
        cmocka_unit_test(one_sender_feeds_receivers_of_half_the_layers),
        cmocka_unit_test(parts_that_do_not_meet_are_refused),
        cmocka_unit_test(senders_of_half_the_heads_fill_one_receiver),
        cmocka_unit_test(senders_of_half_the_layers_fill_one_receiver),
        cmocka_unit_test(heads_that_two_senders_hold_are_written_once),
        cmocka_unit_test(spoiled_ranges_of_one_sender_are_sent_again),
        cmocka_unit_test(what_ends_one_half_ends_the_ticket_everywhere),
        cmocka_unit_test(a_second_sender_of_the_same_part_is_turned_away),
        cmocka_unit_test(a_half_by_itself_is_not_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
