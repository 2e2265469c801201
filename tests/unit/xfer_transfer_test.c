/* kv_xfer as a node sees it, between two objects of one process, over every link. */
#include "tests/unit/xfer_nodes.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "xfer/frame.h"

static const char *const link_name[] = {"shm", "tcp"};

struct pair {
    struct node p, d;
};

static void pair_start(struct pair *w, struct xfer_options p, struct xfer_options d)
{
    node_start(&w->p, p);
    node_start(&w->d, d);
}

static void pair_stop(struct pair *w)
{
    node_stop(&w->p);
    node_stop(&w->d);
}

static void each_link(void (*body)(struct pair *, const char *))
{
    for (size_t i = 0; i < 2; i++) {
        struct pair w;
        pair_start(&w, node_options(), node_options());
        body(&w, link_name[i]);
        pair_stop(&w);
    }
}

static void run(struct pair *w, const struct travel *t, uint32_t chunk_tokens)
{
    travel_expect(t, &w->d);
    travel_open(t, &w->p, xfer_addresses(w->d.x));
    travel_push_all(t, &w->p, chunk_tokens);
    travel_commit(t, &w->p, 42);
}

static void assert_done(struct pair *w, const struct travel *t)
{
    struct xfer_event at_d = node_wait(&w->d, t->ticket), at_p = node_wait(&w->p, t->ticket);
    assert_event(&at_d, XFER_COMMITTED, OK);
    assert_event(&at_p, XFER_DONE, OK);
    assert_true(at_p.pushes_count > 0);
    for (uint32_t i = 1; i < at_p.pushes_count && at_p.pushes_count <= XFER_PUSHES_TOLD; i++)
        assert_true(at_p.sent_us[i] >= at_p.sent_us[i - 1]);
    assert_int_equal(at_d.first.token, 42);
    assert_int_equal(at_d.first.tops_count, 1);
    assert_int_equal(at_d.first.top[0].token, 42);
    assert_int_equal(at_d.finish, FINISH_LENGTH);
    assert_true(at_d.first.logprob == -0.5f);
    if (t->link) assert_string_equal(at_d.link, t->link);
    assert_string_equal(at_p.link, at_d.link);
    assert_true(at_p.bytes >= t->blocks_count * kv_block_bytes(&w->p.geometry));
    assert_true(at_d.began_ns > 0 && at_d.began_ns <= at_d.ended_ns);
    assert_arrived(t, &w->p, &w->d);
}

static void every_block_arrives(struct pair *w, const char *link)
{
    struct {
        uint32_t first, end, chunk;
    } row[] = {{0, 16, 16},   {0, 1, 16},      {0, 100, 32},
               {64, 100, 16}, {480, 497, 512}, {0, 1024, 64}};
    for (uint32_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct travel t = travel_new(i + 1, row[i].first, row[i].end, link);
        for (uint32_t b = 0; b < NODE_BLOCKS; b++) {
            node_fill(&w->p, b, i);
            node_fill(&w->d, b, 1000 + i);
        }
        struct node before = {.geometry = w->d.geometry};
        size_t bytes = NODE_BLOCKS * kv_block_bytes(&w->d.geometry);
        before.kv = mem_new(bytes);
        memcpy(before.kv, w->d.kv, bytes);
        run(w, &t, row[i].chunk);
        assert_done(w, &t);
        for (uint32_t b = 0; b < t.blocks_count; b++) /* and nothing but its blocks was written */
            memcpy(node_layer(&before, t.to[b], 0), node_layer(&w->d, t.to[b], 0),
                   kv_block_bytes(&w->d.geometry));
        assert_memory_equal(before.kv, w->d.kv, bytes);
        mem_free(before.kv);
    }
    struct xfer_stats stats;
    xfer_stats(w->p.x, &stats);
    assert_int_equal(stats.tickets_live, 0);
}

static void whole_and_partial_prompts_and_deltas_arrive(void **state)
{
    (void)state;
    each_link(every_block_arrives);
}

static void fill_all(struct pair *w, uint64_t seed)
{
    for (uint32_t b = 0; b < NODE_BLOCKS; b++)
        node_fill(&w->p, b, seed);
}

/* More than the link's credit lets out at once, in frames as long as they get. */
static void a_slow_window_lets_all_through(void **state)
{
    (void)state;
    struct xfer_options o = node_options();
    o.geometry.kv_heads = 8;
    o.geometry.head_dim = 64; /* 64 KiB a layer and block, 4 blocks a frame */
    o.ring_bytes = 1;         /* raised to what four frames need */
    for (size_t i = 0; i < 2; i++) {
        struct pair w;
        pair_start(&w, o, o);
        fill_all(&w, 3);
        struct travel t = travel_new(1, 0, NODE_BLOCKS * BLOCK_TOKENS - 3, link_name[i]);
        run(&w, &t, 160);
        assert_done(&w, &t);
        pair_stop(&w);
    }
}

static void spoiled_frames_are_sent_again(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct xfer_options o = node_options();
        o.corrupt_every = 25; /* of 39 frames: one, and not the one that takes its place */
        struct pair w;
        pair_start(&w, o, node_options());
        fill_all(&w, 5);
        struct travel t = travel_new(1, 0, 200, link_name[i]);
        run(&w, &t, 16);
        assert_done(&w, &t);
        struct xfer_stats stats;
        struct travel last = travel_new(2, 0, 16, link_name[i]); /* stats are told after a turn */
        run(&w, &last, 16);
        assert_done(&w, &last);
        xfer_stats(w.d.x, &stats);
        assert_int_equal(stats.frames_refused, 1);
        pair_stop(&w);
    }
}

static void a_transfer_that_is_always_spoiled_fails(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct xfer_options o = node_options();
        o.corrupt_every = 1;
        struct pair w;
        pair_start(&w, o, node_options());
        struct travel t = travel_new(1, 0, 40, link_name[i]);
        run(&w, &t, 16);
        struct xfer_event at_d = node_wait(&w.d, t.ticket), at_p = node_wait(&w.p, t.ticket);
        assert_event(&at_d, XFER_FAILED, ERR_FORMAT);
        assert_event(&at_p, XFER_FAILED, ERR_FORMAT);
        pair_stop(&w);
    }
}

static void a_ticket_nobody_expects_fails(struct pair *w, const char *link)
{
    struct travel t = travel_new(9, 0, 64, link);
    travel_open(&t, &w->p, xfer_addresses(w->d.x));
    travel_push_all(&t, &w->p, 16);
    struct xfer_event e = node_wait(&w->p, t.ticket);
    assert_event(&e, XFER_FAILED, ERR_NOT_FOUND);
}
static void unknown_tickets_fail_at_the_sender(void **state)
{
    (void)state;
    each_link(a_ticket_nobody_expects_fails);
}

static void both_sides_stop_at_their_deadlines(struct pair *w, const char *link)
{
    struct travel alone = travel_new(1, 0, 64, link), half = travel_new(2, 0, 64, link);
    alone.deadline_ns = half.deadline_ns = clock_now_ns() + 20 * NS_PER_MS;
    travel_expect(&alone, &w->d);
    travel_expect(&half, &w->d);
    travel_open(&half, &w->p, xfer_addresses(w->d.x));
    travel_push(&half, &w->p, 0, 0, 32);
    struct xfer_event e = node_wait(&w->d, alone.ticket);
    assert_event(&e, XFER_FAILED, ERR_TIMEOUT);
    e = node_wait(&w->d, half.ticket);
    assert_event(&e, XFER_FAILED, ERR_TIMEOUT);
    e = node_wait(&w->p, half.ticket);
    assert_event(&e, XFER_FAILED, ERR_TIMEOUT);
}
static void deadlines_end_what_waits(void **state)
{
    (void)state;
    each_link(both_sides_stop_at_their_deadlines);
}

static void cancel_and_release_reach_the_other_side(struct pair *w, const char *link)
{
    struct travel a = travel_new(1, 0, 64, link), b = travel_new(2, 0, 64, link);
    travel_expect(&a, &w->d);
    travel_expect(&b, &w->d);
    travel_open(&a, &w->p, xfer_addresses(w->d.x));
    travel_open(&b, &w->p, xfer_addresses(w->d.x));
    travel_push(&a, &w->p, 0, 0, 64);
    travel_push(&b, &w->p, 0, 0, 64);
    struct travel done = travel_new(3, 0, 16, link); /* what was sent before it has arrived */
    run(w, &done, 16);
    assert_done(w, &done);
    travel_end(&a, &w->p, XFER_CANCEL);
    travel_end(&a, &w->p, XFER_CANCEL);
    travel_end(&b, &w->d, XFER_RELEASE);
    struct xfer_event e = node_wait(&w->p, a.ticket);
    assert_event(&e, XFER_CANCELLED, OK);
    e = node_wait(&w->d, a.ticket);
    assert_event(&e, XFER_FAILED, ERR_CANCELLED);
    e = node_wait(&w->d, b.ticket);
    assert_event(&e, XFER_RELEASED, OK);
    e = node_wait(&w->p, b.ticket);
    assert_event(&e, XFER_FAILED, ERR_CANCELLED);
}
static void either_side_can_end_a_ticket(void **state)
{
    (void)state;
    each_link(cancel_and_release_reach_the_other_side);
}

static void stopping_fails_every_live_ticket(struct pair *w, const char *link)
{
    struct travel t[6];
    for (uint32_t i = 0; i < 6; i++) {
        t[i] = travel_new(i + 1, 0, 16, link);
        travel_expect(&t[i], &w->d);
        if (i % 2) travel_open(&t[i], &w->p, xfer_addresses(w->d.x));
        if (i % 3) continue;
        if (i % 2) travel_push(&t[i], &w->p, 1, 0, 16);
    }
    xfer_stop(w->d.x);
    for (uint32_t i = 0; i < 6; i++) {
        struct xfer_event e = node_wait(&w->d, t[i].ticket);
        assert_event(&e, XFER_FAILED, ERR_CANCELLED);
        if (i % 2 == 0) continue;
        e = node_wait(&w->p, t[i].ticket); /* told so, or the link broke, or it never stood */
        assert_int_equal(e.kind, XFER_FAILED);
        assert_true(e.error == ERR_CANCELLED || e.error == ERR_PEER || e.error == ERR_NOT_FOUND);
    }
    assert_int_equal(xfer_post(w->d.x, &(struct xfer_op){.kind = XFER_RELEASE, .ticket = {1, 1}}),
                     ERR_CANCELLED);
}
static void a_stopped_node_leaves_no_ticket_open(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct pair w;
        pair_start(&w, node_options(), node_options());
        stopping_fails_every_live_ticket(&w, link_name[i]);
        xfer_close(w.d.x);
        mem_free(w.d.kv);
        node_stop(&w.p);
    }
}

static void shm_gives_way_to_tcp(void **state)
{
    (void)state;
    struct pair w;
    pair_start(&w, node_options(), node_options());
    const struct xfer_addresses *own = xfer_addresses(w.d.x);
    assert_int_equal(own->count, 2);
    struct xfer_addresses gone = *own, elsewhere = *own, unknown = *own;
    gone.address[0][strlen(gone.address[0]) - 1] ^= 1; /* nobody has that name */
    elsewhere.address[0][4] ^= 1;                      /* another boot id */
    strcpy(unknown.address[0], "carrier-pigeon:7");
    const struct xfer_addresses *row[] = {&gone, &elsewhere, &unknown};
    for (uint32_t i = 0; i < 3; i++) {
        struct travel t = travel_new(i + 1, 0, 40, "");
        travel_expect(&t, &w.d);
        travel_open(&t, &w.p, row[i]);
        travel_push_all(&t, &w.p, 64);
        travel_commit(&t, &w.p, 42);
        t.link = "tcp";
        assert_done(&w, &t);
    }
    struct travel best = travel_new(10, 0, 40, NULL);
    run(&w, &best, 64);
    best.link = "shm";
    assert_done(&w, &best);
    pair_stop(&w);
}

static void an_unreachable_receiver_is_an_error(void **state)
{
    (void)state;
    struct pair w;
    pair_start(&w, node_options(), node_options());
    struct xfer_addresses gone = *xfer_addresses(w.d.x), empty = {0}, names = {.count = 1};
    strcpy(names.address[0], "tcp:not.numeric.example:1");
    node_stop(&w.d);
    const struct xfer_addresses *to[] = {&gone, &gone, &gone, &empty, &names};
    const char *link[] = {"shm", "tcp", "nccl", "", ""};
    enum err error[] = {ERR_PEER, ERR_PEER, ERR_INVALID, ERR_INVALID, ERR_INVALID};
    for (uint32_t i = 0; i < 5; i++) {
        struct travel t = travel_new(i + 1, 0, 16, link[i]);
        travel_open(&t, &w.p, to[i]);
        struct xfer_event e = node_wait(&w.p, t.ticket);
        assert_event(&e, XFER_FAILED, error[i]);
    }
    node_stop(&w.p);
}

static void a_different_kv_is_refused_with_both_shapes(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct xfer_options o = node_options();
        o.geometry.layers_count++;
        struct pair w;
        pair_start(&w, o, node_options());
        struct travel t = travel_new(1, 0, 16, link_name[i]);
        travel_open(&t, &w.p, xfer_addresses(w.d.x));
        struct xfer_event e = node_wait(&w.p, t.ticket);
        assert_event(&e, XFER_FAILED, ERR_INVALID);
        assert_non_null(strstr(e.text, "4 layers"));
        assert_non_null(strstr(e.text, "3 x 2 x 8"));
        pair_stop(&w);
    }
}

static void a_node_can_send_to_itself(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct node n;
        node_start(&n, node_options());
        struct travel t = travel_new(1, 0, 160, link_name[i]);
        for (uint32_t b = 0; b < t.blocks_count; b++) {
            t.to[b] = 32 + b;
            node_fill(&n, t.from[b], 8);
        }
        travel_expect(&t, &n);
        travel_open(&t, &n, xfer_addresses(n.x));
        travel_push_all(&t, &n, 32);
        travel_commit(&t, &n, 1);
        while (node_events_of(&n, t.ticket) < 2)
            sched_yield();
        assert_arrived(&t, &n, &n);
        node_stop(&n);
    }
}

static void ops_that_break_the_rules_are_refused(void **state)
{
    (void)state;
    struct node n;
    node_start(&n, node_options());
    uint32_t blocks[3] = {1, 2, NODE_BLOCKS};
    struct xfer_addresses endless = {.count = 1}, many = {.count = XFER_ADDRESSES_MAX + 1};
    memset(endless.address[0], 'x', XFER_ADDRESS_BYTES_MAX);
    struct id128 id = {1, 2};
    const struct xfer_addresses *none = xfer_addresses(n.x);
    struct xfer_op row[] = {
        {.kind = XFER_EXPECT, .tokens_end = 16, .blocks = blocks, .blocks_count = 1},
        {XFER_EXPECT, id, 8, 16, blocks, 1},
        {XFER_EXPECT, id, 16, 16, blocks, 0},
        {XFER_EXPECT, id, 0, JOB_TOKENS_MAX + 1, blocks, 1},
        {XFER_EXPECT, id, 0, 33, blocks, 2},
        {XFER_EXPECT, id, 0, 33, blocks, 3}, /* no such block */
        {XFER_PUSH, id, 0, 16, blocks, 1, .layer = 3},
        {XFER_PUSH, id, 0, 16, blocks, 2},
        {XFER_OPEN, id, 0, 16},
        {XFER_OPEN, id, 0, 16, .addresses = &endless},
        {XFER_OPEN, id, 0, 16, .addresses = &many},
        {XFER_OPEN, id, 0, 16, .addresses = none, .link = "carrier-pigeon"},
        {XFER_COMMIT, id, .first = {.tops_count = JOB_TOPS_MAX + 1}},
        {.kind = (enum xfer_op_kind)77, .ticket = id},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        if (xfer_post(n.x, &row[i]) != ERR_INVALID) fail_msg("row %zu", i);
    struct xfer_stats stats;
    xfer_stats(n.x, &stats);
    assert_int_equal(stats.tickets_live, 0);
    node_stop(&n);
    assert_int_equal(n.events_count, 0);
}

static void pushes_that_do_not_fit_the_ticket_fail_it(struct pair *w, const char *link)
{
    for (uint32_t i = 0; i < 5; i++) {
        struct travel t = travel_new(i + 1, 16, 64, link);
        travel_expect(&t, &w->d);
        travel_open(&t, &w->p, xfer_addresses(w->d.x));
        struct travel wrong = t;
        wrong.tokens_first = i == 0 ? 0 : 16;
        if (i == 0) travel_push(&wrong, &w->p, 0, 0, 32);  /* before its first token */
        if (i == 1) travel_push(&wrong, &w->p, 0, 16, 80); /* beyond its last one */
        if (i == 2) travel_push(&wrong, &w->p, 0, 16, 40); /* half a block in the middle */
        if (i == 3) travel_commit(&wrong, &w->p, 1);       /* nothing was pushed */
        if (i == 4) {
            travel_push_all(&t, &w->p, 64);
            travel_push(&wrong, &w->p, 0, 16, 32); /* once more */
        }
        struct xfer_event e = node_wait(&w->p, t.ticket);
        assert_event(&e, XFER_FAILED, ERR_INVALID);
        travel_end(&t, &w->d, XFER_RELEASE); /* it may not have heard of the ticket */
        node_wait(&w->d, t.ticket);
    }
}
static void a_sender_keeps_to_what_it_opened(void **state)
{
    (void)state;
    each_link(pushes_that_do_not_fit_the_ticket_fail_it);
}

static void a_full_ticket_table_is_an_error_until_one_ends(void **state)
{
    (void)state;
    struct xfer_options o = node_options();
    o.tickets_max = 2;
    struct node d;
    node_start(&d, o);
    struct travel t[3];
    for (uint32_t i = 0; i < 3; i++)
        t[i] = travel_new(i + 1, 0, 16, NULL);
    travel_expect(&t[0], &d);
    travel_expect(&t[1], &d);
    struct xfer_op third = {XFER_EXPECT, t[2].ticket, 0, 16, t[2].to, 1};
    assert_int_equal(xfer_post(d.x, &third), ERR_FULL);
    travel_end(&t[0], &d, XFER_RELEASE);
    node_wait(&d, t[0].ticket);
    travel_expect(&t[2], &d);
    travel_end(&t[1], &d, XFER_RELEASE);
    node_wait(&d, t[1].ticket);
    travel_expect(&t[2], &d); /* the same ticket again: the second one fails, at once */
    struct xfer_event e = node_wait(&d, t[2].ticket);
    assert_event(&e, XFER_FAILED, ERR_DUPLICATE);
    xfer_stop(d.x);
    assert_int_equal(node_events_of(&d, t[2].ticket), 2);
    xfer_close(d.x);
    mem_free(d.kv);
}

/* A stranger at the tcp port says these bytes; the link must be closed upon them. */
static int stranger(const struct node *d, const void *bytes, size_t size)
{
    const char *address = xfer_addresses(d->x)->address[1];
    struct sockaddr_in in = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(send(fd, bytes, size, MSG_NOSIGNAL), size);
    return fd;
}

static size_t add_frame(uint8_t *bytes, size_t at, const struct frame *f)
{
    size_t n = frame_print(f, bytes + at + 4);
    memcpy(bytes + at, &(uint32_t){(uint32_t)n}, 4);
    return at + 4 + n;
}

static bool closed_by_peer(int fd)
{
    char drop[512];
    struct timeval limit = {.tv_sec = WAIT_S};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ssize_t n;
    while ((n = recv(fd, drop, sizeof drop, 0)) > 0) /* its HELLO, perhaps */
        continue;
    return n == 0 || errno == ECONNRESET;
}

static void garbage_costs_the_stranger_his_link_and_nobody_else(void **state)
{
    (void)state;
    struct pair w;
    pair_start(&w, node_options(), node_options());
    fill_all(&w, 4);
    struct frame hello = {.kind = FRAME_HELLO,
                          .incarnation = {3, 4},
                          .geometry = small_geometry,
                          .part = {0, 3, 0, 2}};
    struct frame open = {.kind = FRAME_OPEN, .ticket = {8, 8}, .tokens_end = 16};
    struct frame credit = {.kind = FRAME_CREDIT, .window_bytes = 100};
    struct frame done = {.kind = FRAME_DONE, .ticket = {0x7e57, 1}};
    struct frame other = hello;
    other.geometry.head_dim = 4;
    struct {
        const struct frame *frame[3];
        const char *text;
    } row[] = {
        {{NULL}, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"}, /* a size of 542 MB */
        {{NULL}, "\x04\1\1\1\1\1\1\1\1"},
        {{&open}, ""},           /* before HELLO */
        {{&credit}, ""},         /* before HELLO */
        {{&hello, &hello}, ""},  /* twice */
        {{&hello, &credit}, ""}, /* from the wrong side */
        {{&hello, &done, &hello}, ""},
        {{&other}, ""},
    };
    struct travel t = travel_new(1, 0, 500, "tcp");
    travel_expect(&t, &w.d);
    travel_open(&t, &w.p, xfer_addresses(w.d.x));
    travel_push(&t, &w.p, 0, 0, 160);
    int silent = stranger(&w.d, "\x30", 1);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        uint8_t bytes[1024];
        size_t n = strlen(row[i].text);
        memcpy(bytes, row[i].text, n);
        if (n > 0) bytes[n++] = 0;
        for (int f = 0; f < 3 && row[i].frame[f]; f++)
            n = add_frame(bytes, n, row[i].frame[f]);
        int fd = stranger(&w.d, bytes, n);
        if (!closed_by_peer(fd)) fail_msg("row %zu: the link is still open", i);
        close(fd);
    }
    travel_push(&t, &w.p, 0, 160, 500);
    for (uint32_t layer = 1; layer < 3; layer++)
        travel_push(&t, &w.p, layer, 0, 500);
    travel_commit(&t, &w.p, 42);
    assert_done(&w, &t);
    close(silent);
    pair_stop(&w);
}

static void a_failed_allocation_at_the_start_is_an_error(void **state)
{
    (void)state;
    static uint8_t kv[16];
    struct xfer_options o = node_options();
    o.kv_base = kv; /* never touched: no ticket comes */
    for (uint64_t n = 1;; n++) {
        struct xfer *x;
        mem_fail_at(n);
        enum err e = xfer_open(&x, &o, node_on_event, NULL);
        mem_fail_at(0);
        xfer_close(x);
        if (e == OK) break;
        if (e != ERR_MEMORY) fail_msg("allocation %d: %s", (int)n, err_name(e));
        assert_null(x);
    }
}

/* A pool in memory that only its device may touch, on either side or on both; with a ring so small
 * that frames wait, and with spoiled ones. */
static void pools_on_devices_take_part(void **state)
{
    (void)state;
    for (uint32_t kind = 0; kind < 6; kind++) {
        struct xfer_options p = node_options(), d = node_options();
        struct pair w;
        p.geometry.layout = kind % 3 != 1 ? KV_LAYOUT_CUDA : KV_LAYOUT_CPU;
        d.geometry.layout = kind % 3 != 0 ? KV_LAYOUT_CUDA : KV_LAYOUT_CPU;
        p.ring_bytes = d.ring_bytes = 1;
        p.corrupt_every = kind >= 3 ? 25 : 0;
        pair_start(&w, p, d);
        fill_all(&w, 11);
        struct travel t = travel_new(1, 0, 200, link_name[kind % 2]);
        run(&w, &t, 16);
        assert_done(&w, &t);
        pair_stop(&w);
    }
}

static void a_device_that_fails_ends_the_transfer_on_both_sides(void **state)
{
    (void)state;
    for (int side = 0; side < 2; side++) {
        struct xfer_options o = node_options();
        struct pair w;
        o.geometry.layout = KV_LAYOUT_CUDA;
        node_start_device(&w.p, o, side == 0 ? 5 : 0);
        node_start_device(&w.d, o, side == 1 ? 5 : 0);
        fill_all(&w, 13);
        struct travel t = travel_new(1, 0, 200, link_name[side]);
        run(&w, &t, 16);
        struct xfer_event at_d = node_wait(&w.d, t.ticket), at_p = node_wait(&w.p, t.ticket);
        assert_int_equal(at_d.kind, XFER_FAILED);
        assert_int_equal(at_p.kind, XFER_FAILED);
        assert_non_null(strstr(side == 0 ? at_p.text : at_d.text, "a broken device"));
        pair_stop(&w);
    }
}

static void settings_that_cannot_work_are_refused(void **state)
{
    (void)state;
    static uint8_t kv[16];
    struct xfer_options good = node_options(), row[10];
    struct xfer *x;
    good.kv_base = kv;
    for (int i = 0; i < 10; i++)
        row[i] = good;
    row[0].geometry.layers_count = 0;
    row[1].geometry.kv_heads = 0;
    row[2].geometry.block_tokens = 24;
    row[3].kv_base = NULL;
    row[4].blocks_count = 0;
    row[5].tickets_max = 0;
    row[6].listen[1].where = "nowhere";
    row[7].geometry.block_tokens = 0;
    row[8].part = (struct kv_part){.layers_first = 2, .layers_all = 4};
    row[9].part = (struct kv_part){.heads_first = UINT32_MAX, .heads_all = 4};
    for (int i = 0; i < 10; i++) {
        if (xfer_open(&x, &row[i], node_on_event, NULL) != ERR_INVALID) fail_msg("row %d", i);
        assert_null(x);
    }
}

/* Twenty transfers at a time, each with a fate of its own; every one ends once on each side, and
 * what is committed is right. */
enum { FATES = 20, FATE_TOKENS = 48 };
enum fate { FATE_DONE, FATE_CANCEL, FATE_RELEASE, FATE_DEADLINE_P, FATE_DEADLINE_D, FATES_COUNT };

struct life {
    struct travel t;
    enum fate fate;
    uint32_t steps_left; /* before the fate strikes */
    uint32_t pushed, committed, ended;
};

static void life_step(struct pair *w, struct life *l)
{
    if (l->ended) return;
    if (l->steps_left-- == 0 && l->fate != FATE_DONE) {
        l->ended = 1;
        if (l->fate == FATE_CANCEL) travel_end(&l->t, &w->p, XFER_CANCEL);
        if (l->fate == FATE_RELEASE) travel_end(&l->t, &w->d, XFER_RELEASE);
    } else if (l->pushed < 9) { /* 3 layers x 3 chunks */
        uint32_t chunk = l->pushed / 3 * 16;
        travel_push(&l->t, &w->p, l->pushed % 3, chunk, chunk + 16);
        l->pushed++;
    } else {
        travel_commit(&l->t, &w->p, 42);
        l->ended = 1;
    }
}

static void life_begin(struct pair *w, struct life *l, uint32_t i, struct rng_block r,
                       const char *link)
{
    *l = (struct life){.t = travel_new(1000 + i, 0, FATE_TOKENS, link),
                       .fate = rng_below(r.word[0], FATES_COUNT),
                       .steps_left = rng_below(r.word[1], 12)};
    for (uint32_t b = 0; b < 3; b++) {
        l->t.from[b] = i % FATES * 3 + b;
        l->t.to[b] = i % FATES * 3 + 2 - b;
    }
    uint64_t soon = clock_now_ns() + rng_below(r.word[2], 3) * NS_PER_MS, late = l->t.deadline_ns;
    l->t.deadline_ns = l->fate == FATE_DEADLINE_D ? soon : late;
    travel_expect(&l->t, &w->d);
    l->t.deadline_ns = l->fate == FATE_DEADLINE_P ? soon : late;
    travel_open(&l->t, &w->p, xfer_addresses(w->d.x));
}

static void life_check(struct pair *w, const struct life *l)
{
    struct xfer_event at_p = node_wait(&w->p, l->t.ticket);
    if (at_p.kind != XFER_DONE) travel_end(&l->t, &w->d, XFER_RELEASE); /* if it heard of nothing */
    struct xfer_event at_d = node_wait(&w->d, l->t.ticket);
    if (at_d.kind == XFER_COMMITTED) {
        assert_arrived(&l->t, &w->p, &w->d);
        assert_true(at_p.kind == XFER_DONE || at_p.kind == XFER_CANCELLED ||
                    at_p.kind == XFER_FAILED);
    } else {
        assert_int_not_equal(at_p.kind, XFER_DONE);
    }
    if (l->fate == FATE_DONE) assert_event(&at_d, XFER_COMMITTED, OK);
}

static void every_fate_ends_once(struct pair *w, const char *link)
{
    fill_all(w, 77);
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct life life[FATES];
        w->p.events_count = w->d.events_count = 0;
        for (uint32_t i = 0; i < FATES; i++)
            life_begin(w, &life[i], (uint32_t)seed * 100 + i, rng_draw(seed, 1, i), link);
        for (uint32_t step = 0; step < FATES * 40; step++)
            life_step(w, &life[rng_below(rng_draw(seed, 2, step).word[0], FATES)]);
        for (uint32_t i = 0; i < FATES; i++) { /* whoever was drawn too rarely */
            while (!life[i].ended)
                life_step(w, &life[i]);
            if (life[i].fate == FATE_DEADLINE_P || life[i].fate == FATE_DEADLINE_D)
                travel_end(&life[i].t, &w->p, XFER_CANCEL);
        }
        for (uint32_t i = 0; i < FATES; i++)
            life_check(w, &life[i]);
        for (uint32_t i = 0; i < FATES; i++) {
            assert_int_equal(node_events_of(&w->p, life[i].t.ticket), 1);
            assert_int_equal(node_events_of(&w->d, life[i].t.ticket), 1);
        }
    }
}
static void random_fates_end_every_ticket_once(void **state)
{
    (void)state;
    each_link(every_fate_ends_once);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_and_partial_prompts_and_deltas_arrive),
        cmocka_unit_test(a_slow_window_lets_all_through),
        cmocka_unit_test(spoiled_frames_are_sent_again),
        cmocka_unit_test(a_transfer_that_is_always_spoiled_fails),
        cmocka_unit_test(unknown_tickets_fail_at_the_sender),
        cmocka_unit_test(deadlines_end_what_waits),
        cmocka_unit_test(either_side_can_end_a_ticket),
        cmocka_unit_test(a_stopped_node_leaves_no_ticket_open),
        cmocka_unit_test(shm_gives_way_to_tcp),
        cmocka_unit_test(an_unreachable_receiver_is_an_error),
        cmocka_unit_test(a_different_kv_is_refused_with_both_shapes),
        cmocka_unit_test(a_node_can_send_to_itself),
        cmocka_unit_test(ops_that_break_the_rules_are_refused),
        cmocka_unit_test(a_sender_keeps_to_what_it_opened),
        cmocka_unit_test(a_full_ticket_table_is_an_error_until_one_ends),
        cmocka_unit_test(garbage_costs_the_stranger_his_link_and_nobody_else),
        cmocka_unit_test(a_failed_allocation_at_the_start_is_an_error),
        cmocka_unit_test(pools_on_devices_take_part),
        cmocka_unit_test(a_device_that_fails_ends_the_transfer_on_both_sides),
        cmocka_unit_test(settings_that_cannot_work_are_refused),
        cmocka_unit_test(random_fates_end_every_ticket_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
