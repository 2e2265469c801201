/* kv_xfer over a link whose payloads go from device memory to device memory, which is plain memory here. */
#include "tests/unit/xfer_nodes.h"

#include <sched.h>

#include "tests/fake/link_memory.h"
#include "xfer/frame.h"

struct pair {
    struct node p, d;
};

/* Nodes of devices with slots, shm and tcp. */
static struct xfer_options device_options(const char *name)
{
    struct xfer_options o = node_options();
    o.geometry.layout = KV_LAYOUT_CUDA;
    o.listen[2] = (struct xfer_listen){.name = "slots", .where = name, .ops = &kv_link_slots};
    o.listen_count = 3;
    o.slot_bytes = 32768; /* 16 blocks of a layer */
    o.slots_count = 2;
    return o;
}

static void pair_start(struct pair *w, struct xfer_options p, struct xfer_options d)
{
    node_start(&w->p, p);
    node_start(&w->d, d);
    for (uint32_t b = 0; b < NODE_BLOCKS; b++)
        node_fill(&w->p, b, 3);
}

static void pair_stop(struct pair *w)
{
    node_stop(&w->p);
    node_stop(&w->d);
}

static void begin(struct pair *w, const struct travel *t)
{
    travel_expect(t, &w->d);
    travel_open(t, &w->p, xfer_addresses(w->d.x));
    travel_push_all(t, &w->p, 512);
}

static void assert_done(struct pair *w, const struct travel *t)
{
    struct xfer_event at_d = node_wait(&w->d, t->ticket), at_p = node_wait(&w->p, t->ticket);
    assert_event(&at_d, XFER_COMMITTED, OK);
    assert_event(&at_p, XFER_DONE, OK);
    assert_string_equal(at_p.link, t->link);
    assert_arrived(t, &w->p, &w->d);
}

static void prompts_arrive_whole_through_slots(void **state)
{
    (void)state;
    struct pair w;
    pair_start(&w, device_options("p"), device_options("d"));
    struct travel t = travel_new(1, 0, NODE_BLOCKS * BLOCK_TOKENS - 3, "slots");
    begin(&w, &t);
    travel_commit(&t, &w.p, 42);
    assert_done(&w, &t);
    assert_int_equal(w.p.slots_count, 3 * 4); /* 64 blocks a layer, 16 a slot */
    assert_int_equal(w.d.slots_count, 3 * 4);
    struct travel delta = travel_new(2, 480, 497, "slots");
    begin(&w, &delta);
    travel_commit(&delta, &w.p, 42);
    assert_done(&w, &delta);
    pair_stop(&w);
}

static void a_frame_takes_as_much_as_a_slot_holds(void **state)
{
    (void)state;
    struct {
        uint32_t slot_bytes, frames; /* for 64 blocks of 512 bytes, 3 layers */
    } row[] = {{1, 3 * 64}, {512 * 5 + 511, 3 * 13}, {512 * 64, 3}, {1 << 20, 3}, {0, 3}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct pair w;
        struct xfer_options p = device_options("p"), d = device_options("d");
        p.slot_bytes = d.slot_bytes = row[i].slot_bytes;
        p.geometry.kv_heads = d.geometry.kv_heads = 1;
        p.geometry.head_dim = d.geometry.head_dim = 4;
        pair_start(&w, p, d);
        assert_int_equal(kv_layer_bytes(&w.p.geometry), 512);
        struct travel t = travel_new(1, 0, NODE_BLOCKS * BLOCK_TOKENS, "slots");
        travel_expect(&t, &w.d);
        travel_open(&t, &w.p, xfer_addresses(w.d.x));
        travel_push_all(&t, &w.p, 1024);
        travel_commit(&t, &w.p, 42);
        assert_done(&w, &t);
        assert_int_equal(w.p.slots_count, row[i].frames);
        pair_stop(&w);
    }
}

static void a_spoiled_payload_is_refused_and_sent_again(void **state)
{
    (void)state;
    struct pair w;
    struct xfer_options p = device_options("p");
    p.corrupt_every = 7; /* of 12 frames one */
    pair_start(&w, p, device_options("d"));
    struct travel t = travel_new(1, 0, NODE_BLOCKS * BLOCK_TOKENS, "slots");
    begin(&w, &t);
    travel_commit(&t, &w.p, 42);
    assert_done(&w, &t);
    assert_int_equal(w.p.slots_count, 13);
    pair_stop(&w);
    p.corrupt_every = 1;
    pair_start(&w, p, device_options("d"));
    begin(&w, &t);
    travel_commit(&t, &w.p, 42);
    struct xfer_event at_d = node_wait(&w.d, t.ticket), at_p = node_wait(&w.p, t.ticket);
    assert_event(&at_d, XFER_FAILED, ERR_FORMAT);
    assert_event(&at_p, XFER_FAILED, ERR_FORMAT);
    pair_stop(&w);
}

static void tickets_that_end_in_the_middle_leave_the_slots_to_others(void **state)
{
    (void)state;
    struct pair w;
    pair_start(&w, device_options("p"), device_options("d"));
    for (uint32_t i = 0; i < 40; i++) {
        struct travel t = travel_new(2 * i + 1, 0, (NODE_BLOCKS - 1) * BLOCK_TOKENS, "slots");
        begin(&w, &t);
        if (i % 3 == 0) travel_end(&t, &w.p, XFER_CANCEL);
        if (i % 3 == 1) travel_end(&t, &w.d, XFER_RELEASE);
        if (i % 3 == 2) { /* once something is on its way */
            struct travel first = travel_new(2 * i + 2, 0, 16, "slots");
            first.to[0] = ((NODE_BLOCKS - 1) * 37 + 5) % NODE_BLOCKS; /* the one left */
            begin(&w, &first);
            travel_commit(&first, &w.p, 42);
            assert_done(&w, &first);
            travel_end(&t, &w.p, XFER_CANCEL);
        }
        node_wait(&w.p, t.ticket);
        travel_end(&t, &w.d, XFER_RELEASE); /* if it heard of nothing */
        node_wait(&w.d, t.ticket);
    }
    struct travel last = travel_new(1000, 0, NODE_BLOCKS * BLOCK_TOKENS, "slots");
    begin(&w, &last);
    travel_commit(&last, &w.p, 42);
    assert_done(&w, &last);
    pair_stop(&w);
}

static void links_of_both_sorts_carry_at_once(void **state)
{
    (void)state;
    static const char *const over[] = {"slots", "shm", "tcp"};
    struct pair w;
    struct travel t[12];
    pair_start(&w, device_options("p"), device_options("d"));
    for (uint32_t i = 0; i < 12; i++) {
        t[i] = travel_new(i + 1, 0, 5 * BLOCK_TOKENS, over[i % 3]);
        for (uint32_t b = 0; b < t[i].blocks_count; b++)
            t[i].to[b] = i * 5 + b;
        begin(&w, &t[i]);
    }
    for (uint32_t i = 0; i < 12; i++)
        travel_commit(&t[i], &w.p, 42);
    for (uint32_t i = 0; i < 12; i++)
        assert_done(&w, &t[i]);
    assert_int_equal(w.d.slots_count, 4 * 3);
    pair_stop(&w);
}

/* Who calls second is turned away until the link of the first has been silent for a while. */
static void a_silent_link_makes_room_for_another_node(void **state)
{
    (void)state;
    struct node d, p[2];
    struct xfer_options o = device_options("d");
    o.links_max = 1;
    node_start(&d, o);
    for (int i = 0; i < 2; i++) {
        o = device_options(i == 0 ? "p0" : "p1");
        o.retry_ns = NS_PER_MS;
        node_start(&p[i], o);
    }
    uint64_t n = 0;
    for (int i = 0; i < 2; i++) {
        struct xfer_event e;
        do {
            struct travel t = travel_new(++n, 0, 40, "slots");
            travel_expect(&t, &d);
            travel_open(&t, &p[i], xfer_addresses(d.x));
            travel_push_all(&t, &p[i], 512);
            travel_commit(&t, &p[i], 42);
            e = node_wait(&p[i], t.ticket);
            travel_end(&t, &d, XFER_RELEASE);
            node_wait(&d, t.ticket);
            struct travel pause = travel_new(++n, 0, 40, "slots"); /* nobody opens it */
            pause.deadline_ns = clock_now_ns() + 20 * NS_PER_MS;
            travel_expect(&pause, &d);
            node_wait(&d, pause.ticket);
        } while (i == 1 && e.kind == XFER_FAILED && n < NODE_EVENTS - 2);
        assert_event(&e, XFER_DONE, OK);
    }
    for (int i = 0; i < 2; i++)
        node_stop(&p[i]);
    node_stop(&d);
}

static struct kv_link_ops deaf;
static _Atomic uint32_t accepts_count;

static enum err listen_deaf(struct kv_listener **listener, const char *where,
                            const struct kv_link_options *options)
{
    enum err e = kv_link_memory.listen(listener, where, options);
    if (e == OK) (*listener)->ops = &deaf;
    return e;
}

static enum err never_accept(struct kv_listener *listener, struct kv_link **link)
{
    (void)listener;
    accepts_count++;
    *link = NULL;
    return err_set(ERR_IO, "accept: too many open files");
}

/* The caller stays in the queue, so the listener's fd stays readable. */
static void a_listener_that_cannot_accept_does_not_keep_the_thread_busy(void **state)
{
    (void)state;
    struct node d;
    struct kv_link *link;
    struct xfer_options o = node_options();
    const struct kv_link_options dial = {.frame_bytes_max = 1000};
    deaf = kv_link_memory;
    deaf.listen = listen_deaf;
    deaf.accept = never_accept;
    o.listen[2] = (struct xfer_listen){.name = "memory", .where = "d", .ops = &deaf};
    o.listen_count = 3;
    node_start(&d, o);
    assert_ok(kv_link_memory.dial(&link, "memory:d", &dial));
    struct travel t = travel_new(1, 0, 40, NULL); /* nobody opens it */
    t.deadline_ns = clock_now_ns() + 50 * NS_PER_MS;
    travel_expect(&t, &d);
    node_wait(&d, t.ticket);
    assert_in_range(accepts_count, 1, 20);
    kv_link_memory.close(link);
    node_stop(&d);
}

static void a_device_that_fails_at_a_slot_ends_the_transfer(void **state)
{
    (void)state;
    for (int side = 0; side < 2; side++) {
        struct pair w;
        node_start_device(&w.p, device_options("p"), side == 0 ? 20 : 0);
        node_start_device(&w.d, device_options("d"), side == 1 ? 20 : 0);
        struct travel t = travel_new(1, 0, NODE_BLOCKS * BLOCK_TOKENS, "slots");
        begin(&w, &t);
        travel_commit(&t, &w.p, 42);
        struct xfer_event at_d = node_wait(&w.d, t.ticket), at_p = node_wait(&w.p, t.ticket);
        assert_int_equal(at_d.kind, XFER_FAILED);
        assert_int_equal(at_p.kind, XFER_FAILED);
        assert_non_null(strstr(side == 0 ? at_p.text : at_d.text, "a broken device"));
        struct travel again = travel_new(2, 0, 40, "slots"); /* over a new link */
        begin(&w, &again);
        travel_commit(&again, &w.p, 42);
        struct xfer_event e = node_wait(&w.p, again.ticket);
        assert_event(&e, XFER_DONE, OK);
        pair_stop(&w);
    }
}

static void a_pool_in_host_memory_has_no_such_links(void **state)
{
    (void)state;
    static uint8_t kv[16];
    struct xfer *x;
    struct xfer_options o = node_options();
    o.kv_base = kv;
    o.listen[2] = (struct xfer_listen){.name = "slots", .where = "d", .ops = &kv_link_slots};
    o.listen_count = 3;
    assert_int_equal(xfer_open(&x, &o, node_on_event, NULL), ERR_UNSUPPORTED);
    o.listen[2] = (struct xfer_listen){.name = "nccl", .where = "127.0.0.1:0"};
    assert_int_equal(xfer_open(&x, &o, node_on_event, NULL), ERR_UNSUPPORTED);
    o.listen[2].optional = true; /* then it does without */
    assert_ok(xfer_open(&x, &o, node_on_event, NULL));
    assert_int_equal(xfer_addresses(x)->count, 2);
    xfer_close(x);
}

static void bytes_beside_a_slot_cost_the_link(void **state)
{
    (void)state;
    struct node d;
    struct kv_link *link;
    struct kv_link_options o = {.frame_bytes_max = 100000, .slot_bytes = 8192, .slots_count = 2};
    node_start(&d, device_options("d"));
    for (int row = 0; row < 3; row++) {
        uint8_t head[FRAME_HEAD_MAX + 512] = {0};
        void *slot;
        struct frame hello = {.kind = FRAME_HELLO, .incarnation = {3, 4}, .geometry = d.geometry};
        hello.part = kv_part_told(&d.geometry, hello.part);
        struct frame data = {.kind = FRAME_DATA, .ticket = {8, 8}, .range = {0, 0, 16, 0, 1, 0}};
        assert_ok(kv_link_slots.dial(&link, "slots:d", &o));
        while (kv_link_slots.poll(link) == ERR_AGAIN)
            sched_yield();
        struct kv_piece piece = {head, frame_print(&hello, head)};
        assert_ok(kv_link_slots.send(link, &piece, 1));
        piece.size = frame_print(row == 2 ? &hello : &data, head) + (row == 0 ? 512 : 0);
        if (row == 0) /* in the frame */
            assert_ok(kv_link_slots.send(link, &piece, 1));
        else /* both; a slot where none belongs */
            assert_ok(kv_link_slots.slot(link, &slot));
        if (row > 0)
            assert_ok(kv_link_slots.send_slot(link, head, piece.size + (row == 1 ? 8 : 0), 512));
        const void *bytes;
        size_t size;
        enum err e;
        while ((e = kv_link_slots.receive(link, &bytes, &size)) != ERR_PEER)
            if (e == OK)
                kv_link_slots.release(link); /* its HELLO */
            else
                sched_yield();
        kv_link_slots.close(link);
    }
    node_stop(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_arrive_whole_through_slots),
        cmocka_unit_test(a_frame_takes_as_much_as_a_slot_holds),
        cmocka_unit_test(a_spoiled_payload_is_refused_and_sent_again),
        cmocka_unit_test(tickets_that_end_in_the_middle_leave_the_slots_to_others),
        cmocka_unit_test(links_of_both_sorts_carry_at_once),
        cmocka_unit_test(a_silent_link_makes_room_for_another_node),
        cmocka_unit_test(a_listener_that_cannot_accept_does_not_keep_the_thread_busy),
        cmocka_unit_test(a_device_that_fails_at_a_slot_ends_the_transfer),
        cmocka_unit_test(a_pool_in_host_memory_has_no_such_links),
        cmocka_unit_test(bytes_beside_a_slot_cost_the_link),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
