/* Several links to one node, on virtual time: which one a ticket gets, what follows when one breaks,
 * and what is told of them. The links themselves are the test's. */
#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "xfer/core.h"

enum { EVENTS = 64, ROWS = 256, TOKENS = 40, WINDOW = 1 << 20 };
#define HANDSHAKE NS_PER_S
#define IDLE (100 * NS_PER_S)
#define DEADLINE (1000 * NS_PER_S)
#define RETRY NS_PER_S

enum way { NCCL, SHM, TCP, WAYS };
static const struct kv_geometry geometry = {2, 1, 2, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_F32};
static const struct kv_part all = {0, 2, 0, 1};
static const char *const name[WAYS] = {"nccl", "shm", "tcp"};

/* P's core; the other side is what the test says for it. */
struct world {
    struct xfer_core *core;
    struct xfer_addresses addresses;
    struct xfer_session *session[WAYS]; /* dialled and not closed */
    uint32_t dials[WAYS];
    struct xfer_event event[EVENTS];
    uint32_t events_count;
    struct xfer_link_row row[ROWS];
    uint32_t rows_count;
    uint64_t now;
};

static void world_new(struct world *w)
{
    const struct xfer_core_options o = {.geometry = geometry,
                                        .tickets_max = 64,
                                        .handshake_ns = HANDSHAKE,
                                        .idle_close_ns = IDLE,
                                        .retry_ns = RETRY,
                                        .tell_every_ns = NS_PER_S};
    memset(w, 0, sizeof *w);
    w->addresses = (struct xfer_addresses){WAYS, {"nccl:x", "shm:x", "tcp:1.2.3.4:5"}};
    w->now = NS_PER_S;
    assert_ok(xfer_core_new(&w->core, &o));
}

static enum way way_of(const struct world *w, const struct xfer_session *s)
{
    for (enum way i = 0; i < WAYS; i++)
        if (w->session[i] == s) return i;
    fail_msg("an unknown session");
    return WAYS;
}

static void act(struct world *w)
{
    struct xfer_action a;
    while (xfer_core_next(w->core, &a)) {
        if (a.kind == XFER_ACT_EVENT) {
            assert_true(w->events_count < EVENTS);
            w->event[w->events_count++] = a.event;
        } else if (a.kind == XFER_ACT_LINK) {
            assert_true(w->rows_count < ROWS);
            w->row[w->rows_count++] = a.link;
        } else if (a.kind == XFER_ACT_DIAL) {
            for (enum way i = 0; i < WAYS; i++) {
                if (strncmp(a.address, name[i], strlen(name[i])) != 0) continue;
                assert_null(w->session[i]); /* one at a time */
                w->session[i] = a.session;
                w->dials[i]++;
            }
        } else {
            w->session[way_of(w, a.session)] = NULL;
            xfer_core_closed(a.session);
        }
    }
}

static struct id128 ticket(uint64_t n)
{
    return (struct id128){7, n};
}

static void op(struct world *w, enum xfer_op_kind kind, uint64_t n, const char *link)
{
    static const uint32_t blocks[] = {0, 1, 2};
    struct xfer_message m;
    struct xfer_op o = {.kind = kind,
                        .ticket = ticket(n),
                        .tokens_end = TOKENS,
                        .blocks = blocks,
                        .blocks_count = 3,
                        .addresses = &w->addresses,
                        .link = link,
                        .deadline_ns = DEADLINE};
    assert_ok(xfer_message_new(&o, &geometry, 3, &m));
    xfer_core_op(w->core, &m, w->now);
    act(w);
}

static void hear(struct world *w, enum way way, struct frame f)
{
    struct xfer_store store;
    assert_ok(xfer_core_frame(w->core, w->session[way], &f, w->now, &store));
    act(w);
}

/* The link stands and its other side has greeted. */
static void make_ready(struct world *w, enum way way)
{
    struct xfer_send send;
    const struct kv_link_facts facts = {WINDOW, way == NCCL ? 1 << 16 : 0};
    assert_non_null(w->session[way]);
    xfer_core_connected(w->core, w->session[way], name[way], &facts, w->now);
    assert_true(xfer_core_wants(w->core, w->session[way], &send));
    xfer_core_sent(w->core, w->session[way], &send, w->now);
    hear(w, way,
         (struct frame){
             .kind = FRAME_HELLO, .geometry = geometry, .part = all, .window_bytes = WINDOW});
}

/* Ticket 1 travels over shm, and nccl has got ready meanwhile. */
static void world_with_both(struct world *w)
{
    world_new(w);
    op(w, XFER_OPEN, 1, NULL);
    make_ready(w, SHM);
    make_ready(w, NCCL);
}

static void lose(struct world *w, enum way way, enum err e, const char *why)
{
    assert_non_null(w->session[way]);
    xfer_core_lost(w->core, w->session[way], e, why, w->now);
    act(w);
}

static void pass(struct world *w, uint64_t ns)
{
    w->now += ns;
    xfer_core_timer(w->core, w->now);
    act(w);
}

/* The session has said OPEN for this ticket: it travels there. */
static void assert_over(struct world *w, enum way way, uint64_t n)
{
    struct xfer_send send;
    if (!w->session[way] || !xfer_core_wants(w->core, w->session[way], &send))
        fail_msg("nothing is said over %s", name[way]);
    assert_int_equal(send.frame.kind, FRAME_OPEN);
    assert_true(id128_equal(send.frame.ticket, ticket(n)));
    xfer_core_sent(w->core, w->session[way], &send, w->now);
}

static const struct xfer_event *ended(const struct world *w, uint64_t n)
{
    for (uint32_t i = 0; i < w->events_count; i++)
        if (id128_equal(w->event[i].ticket, ticket(n))) return &w->event[i];
    return NULL;
}

static void assert_failed(const struct world *w, uint64_t n, enum err e, const char *text)
{
    const struct xfer_event *v = ended(w, n);
    if (!v || v->kind != XFER_FAILED || v->error != e || !strstr(v->text, text))
        fail_msg("ticket %d: %s \"%s\"", (int)n, v ? err_name(v->error) : "-", v ? v->text : "");
}

static void assert_dials(const struct world *w, uint32_t nccl, uint32_t shm, uint32_t tcp)
{
    if (w->dials[NCCL] != nccl || w->dials[SHM] != shm || w->dials[TCP] != tcp)
        fail_msg("dials: %u %u %u", w->dials[NCCL], w->dials[SHM], w->dials[TCP]);
}

/* Each layer of a ticket's tokens. */
static void push_all(struct world *w, uint64_t n)
{
    for (uint32_t layer = 0; layer < geometry.layers_count; layer++) {
        static const uint32_t blocks[] = {0, 1, 2};
        struct xfer_op o = {.kind = XFER_PUSH,
                            .ticket = ticket(n),
                            .tokens_end = TOKENS,
                            .blocks = blocks,
                            .blocks_count = 3,
                            .layer = layer};
        struct xfer_message m;
        assert_ok(xfer_message_new(&o, &geometry, 3, &m));
        xfer_core_op(w->core, &m, w->now);
    }
}

/* The whole of a ticket over a link that is ready. */
static void deliver(struct world *w, enum way way, uint64_t n)
{
    struct xfer_send send;
    push_all(w, n);
    op(w, XFER_COMMIT, n, NULL);
    while (xfer_core_wants(w->core, w->session[way], &send))
        xfer_core_sent(w->core, w->session[way], &send, w->now);
    hear(w, way, (struct frame){.kind = FRAME_DONE, .ticket = ticket(n)});
    assert_int_equal(ended(w, n)->kind, XFER_DONE);
    assert_string_equal(ended(w, n)->link, name[way]);
}

/* What was told last of a link; tells first what there is. */
static const struct xfer_link_row *told(struct world *w, enum way way)
{
    pass(w, NS_PER_S);
    for (uint32_t i = w->rows_count; i-- > 0;)
        if (strcmp(w->row[i].address, w->addresses.address[way]) == 0) return &w->row[i];
    fail_msg("nothing was told of %s", name[way]);
    return NULL;
}

static void traffic_begins_on_what_is_ready_first(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    op(&w, XFER_OPEN, 1, NULL);
    assert_dials(&w, 1, 1, 0); /* the slow one in the background, the best quick one */
    make_ready(&w, SHM);
    assert_over(&w, SHM, 1);
    op(&w, XFER_OPEN, 2, NULL);
    assert_over(&w, SHM, 2);
    make_ready(&w, NCCL);
    op(&w, XFER_OPEN, 3, NULL);
    assert_over(&w, NCCL, 3);
    deliver(&w, SHM, 1); /* what is under way stays where it is */
    deliver(&w, NCCL, 3);
    assert_dials(&w, 1, 1, 0);
    xfer_core_free(w.core);
}

static void a_slow_link_has_more_time(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    op(&w, XFER_OPEN, 1, NULL);
    pass(&w, HANDSHAKE);
    assert_non_null(w.session[NCCL]);
    assert_null(w.session[SHM]);
    assert_dials(&w, 1, 1, 1);
    pass(&w, 5 * HANDSHAKE);
    assert_null(w.session[NCCL]);
    assert_failed(&w, 1, ERR_TIMEOUT, "no connection");
    xfer_core_free(w.core);
}

static void the_next_attempt_goes_over_another_link(void **state)
{
    (void)state;
    struct world w;
    world_with_both(&w);
    op(&w, XFER_OPEN, 2, NULL);
    assert_over(&w, NCCL, 2);
    lose(&w, NCCL, ERR_PEER, "the network broke");
    assert_failed(&w, 2, ERR_PEER, "the network broke");
    assert_null(ended(&w, 1)); /* over shm, which is well */
    op(&w, XFER_OPEN, 3, NULL);
    assert_dials(&w, 1, 1, 0);
    assert_over(&w, SHM, 1);
    assert_over(&w, SHM, 3);
    xfer_core_free(w.core);
}

static void a_broken_link_comes_back_after_its_back_off(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    w.addresses.count = 3;
    uint64_t n = 1;
    op(&w, XFER_OPEN, n, NULL);
    lose(&w, NCCL, ERR_PEER, "no plugin there");
    make_ready(&w, SHM);
    for (uint32_t tries = 1; tries < 4; tries++) { /* 1, 2, 4 times RETRY */
        w.now += (RETRY << (tries - 1)) - 1;
        op(&w, XFER_OPEN, ++n, NULL);
        assert_dials(&w, tries, 1, 0);
        w.now += 1;
        op(&w, XFER_OPEN, ++n, NULL);
        assert_dials(&w, tries + 1, 1, 0);
        if (tries < 3) lose(&w, NCCL, ERR_PEER, "still none");
    }
    make_ready(&w, NCCL);
    op(&w, XFER_OPEN, ++n, NULL);
    assert_over(&w, NCCL, n);
    deliver(&w, NCCL, n); /* it is well again: the next back-off is the first */
    lose(&w, NCCL, ERR_PEER, "gone");
    w.now += RETRY;
    op(&w, XFER_OPEN, ++n, NULL);
    assert_dials(&w, 5, 1, 0);
    xfer_core_free(w.core);
}

static void a_link_that_only_stands_does_not_shorten_its_back_off(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    op(&w, XFER_OPEN, 1, "nccl");
    make_ready(&w, NCCL);
    lose(&w, NCCL, ERR_PEER, "broke");
    w.now += RETRY;
    op(&w, XFER_OPEN, 2, "nccl");
    make_ready(&w, NCCL);
    lose(&w, NCCL, ERR_PEER, "broke");
    op(&w, XFER_OPEN, 3, NULL); /* shm is made; nccl only when 2 x RETRY have passed */
    w.now += RETRY;
    op(&w, XFER_OPEN, 4, NULL);
    assert_dials(&w, 2, 1, 0);
    w.now += RETRY;
    op(&w, XFER_OPEN, 5, NULL);
    assert_dials(&w, 3, 1, 0);
    xfer_core_free(w.core);
}

static void with_nothing_left_a_ticket_fails_at_once_and_the_next_one_tries_again(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    for (uint32_t n = 1; n <= 2; n++) {
        op(&w, XFER_OPEN, n, NULL);
        lose(&w, SHM, ERR_UNSUPPORTED, "another host");
        lose(&w, NCCL, ERR_PEER, "no device");
        assert_null(ended(&w, n));
        lose(&w, TCP, ERR_PEER, "nobody there");
        assert_failed(&w, n, ERR_PEER, "nobody there");
        assert_dials(&w, n, n, n);
    }
    op(&w, XFER_OPEN, 3, "ipc");
    assert_failed(&w, 3, ERR_INVALID, "no address");
    xfer_core_free(w.core);
}

/* Shared memory between two hosts, say: that is no failure, and hardly worth a second try. */
static void a_link_that_is_not_for_these_two_is_told_as_that(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    op(&w, XFER_OPEN, 1, NULL);
    lose(&w, SHM, ERR_UNSUPPORTED, "another host");
    make_ready(&w, TCP);
    assert_over(&w, TCP, 1);
    assert_int_equal(told(&w, SHM)->state, XFER_LINK_UNFIT);
    assert_string_equal(told(&w, SHM)->reason, "another host");
    pass(&w, 50 * NS_PER_S);
    op(&w, XFER_OPEN, 2, NULL);
    assert_int_equal(w.dials[SHM], 1);
    pass(&w, 10 * NS_PER_S);
    op(&w, XFER_OPEN, 3, NULL);
    assert_int_equal(w.dials[SHM], 2);
    xfer_core_free(w.core);
}

static void a_forced_link_is_the_only_one(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    op(&w, XFER_OPEN, 1, "tcp");
    assert_dials(&w, 0, 0, 1);
    op(&w, XFER_OPEN, 2, NULL);
    assert_dials(&w, 1, 1, 1);
    make_ready(&w, SHM); /* not for the first ticket */
    assert_over(&w, SHM, 2);
    lose(&w, TCP, ERR_PEER, "refused");
    assert_failed(&w, 1, ERR_PEER, "refused");
    xfer_core_free(w.core);
}

static void a_silent_link_is_left_for_another(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    op(&w, XFER_OPEN, 1, NULL);
    make_ready(&w, SHM);
    assert_over(&w, SHM, 1);
    lose(&w, NCCL, ERR_PEER, "no device");
    pass(&w, DEADLINE);
    assert_failed(&w, 1, ERR_TIMEOUT, "deadline");
    struct xfer_session *silent = w.session[SHM];
    w.session[SHM] = NULL;
    op(&w, XFER_OPEN, 2, NULL);
    assert_dials(&w, 2, 1, 1);
    w.session[SHM] = silent;
    xfer_core_free(w.core);
}

static void kv_that_differs_is_said_by_the_ticket_that_waits(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    w.addresses.count = 1;
    op(&w, XFER_OPEN, 1, NULL);
    struct xfer_send send;
    xfer_core_connected(w.core, w.session[NCCL], "nccl",
                        &(struct kv_link_facts){.window_bytes = WINDOW, .slot_bytes = 1 << 16},
                        w.now);
    assert_true(xfer_core_wants(w.core, w.session[NCCL], &send));
    xfer_core_sent(w.core, w.session[NCCL], &send, w.now);
    struct frame other = {.kind = FRAME_HELLO, .geometry = geometry, .part = all};
    other.geometry.layers_count = other.part.layers_all = 5;
    hear(&w, NCCL, other);
    assert_true(xfer_core_wants(w.core, w.session[NCCL], &send)); /* FAIL */
    xfer_core_sent(w.core, w.session[NCCL], &send, w.now);
    act(&w);
    assert_failed(&w, 1, ERR_INVALID, "5 layers");
    xfer_core_free(w.core);
}

static void slots_too_short_for_a_block_are_no_link(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    op(&w, XFER_OPEN, 1, "nccl");
    xfer_core_connected(w.core, w.session[NCCL], "nccl",
                        &(struct kv_link_facts){.window_bytes = WINDOW, .slot_bytes = 100}, w.now);
    act(&w);
    assert_failed(&w, 1, ERR_INVALID, "shorter");
    assert_null(w.session[NCCL]);
    xfer_core_free(w.core);
}

static void idle_links_are_closed_and_made_again_without_a_failure(void **state)
{
    (void)state;
    struct world w;
    world_with_both(&w);
    assert_over(&w, SHM, 1);
    deliver(&w, SHM, 1);
    pass(&w, IDLE);
    assert_null(w.session[SHM]);
    assert_null(w.session[NCCL]);
    assert_int_equal(told(&w, SHM)->state, XFER_LINK_IDLE);
    assert_int_equal(told(&w, SHM)->failed_ns, 0);
    op(&w, XFER_OPEN, 2, NULL);
    assert_dials(&w, 2, 2, 0);
    xfer_core_free(w.core);
}

static void a_full_table_gives_up_the_oldest_idle_link(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    w.addresses.count = 1;
    struct xfer_session *of[XFER_SESSIONS_MAX];
    for (uint32_t i = 0; i < XFER_SESSIONS_MAX; i++) { /* as many nodes */
        snprintf(w.addresses.address[0], XFER_ADDRESS_BYTES_MAX, "nccl:%u", i);
        op(&w, XFER_OPEN, i + 1, NULL);
        make_ready(&w, NCCL);
        of[i] = w.session[NCCL];
        w.session[NCCL] = NULL;
        w.now++;
        if (i != 7 && i != 9) continue;
        struct xfer_message m = {.kind = XFER_CANCEL, .ticket = ticket(i + 1)};
        xfer_core_op(w.core, &m, w.now);
        w.session[NCCL] = of[i];
        act(&w);
        w.session[NCCL] = NULL;
    }
    strcpy(w.addresses.address[0], "shm:new");
    struct xfer_message m;
    struct xfer_op o = {.kind = XFER_OPEN,
                        .ticket = ticket(1000),
                        .tokens_end = 16,
                        .addresses = &w.addresses,
                        .deadline_ns = DEADLINE};
    assert_ok(xfer_message_new(&o, &geometry, 3, &m));
    xfer_core_op(w.core, &m, w.now);
    w.session[NCCL] = of[7]; /* the one that act() sees closed */
    act(&w);
    assert_null(w.session[NCCL]);
    assert_non_null(w.session[SHM]);
    xfer_core_free(w.core);
}

static void take_back(struct world *w, enum way way)
{
    hear(w, way, (struct frame){.kind = FRAME_FAIL, .error = ERR_FULL, .text = "making room"});
}

static void a_link_whose_place_is_wanted_back_has_not_failed(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    w.addresses.count = 1;
    op(&w, XFER_OPEN, 1, NULL);
    make_ready(&w, NCCL);
    assert_over(&w, NCCL, 1);
    deliver(&w, NCCL, 1);
    take_back(&w, NCCL);
    assert_null(w.session[NCCL]);
    assert_int_equal(told(&w, NCCL)->state, XFER_LINK_IDLE);
    assert_int_equal(told(&w, NCCL)->failed_ns, 0);
    for (uint32_t i = 0; i < 4; i++) { /* and again and again, with a ticket that crosses it */
        if (i == 0) op(&w, XFER_OPEN, 2, NULL);
        assert_dials(&w, 2 + i, 0, 0);
        make_ready(&w, NCCL);
        assert_over(&w, NCCL, 2);
        assert_null(ended(&w, 2));
        take_back(&w, NCCL);
    }
    assert_failed(&w, 2, ERR_FULL, "making room"); /* there is an end to it */
    assert_dials(&w, 5, 0, 0);
    assert_int_equal(told(&w, NCCL)->state, XFER_LINK_BROKEN);
    xfer_core_free(w.core);
}

static void who_is_turned_away_keeps_its_other_links(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    op(&w, XFER_OPEN, 1, NULL);
    make_ready(&w, NCCL);
    assert_over(&w, NCCL, 1);
    deliver(&w, NCCL, 1);
    struct xfer_session *idle = w.session[NCCL];
    w.session[NCCL] = NULL;
    w.addresses.count = 1;
    strcpy(w.addresses.address[0], "nccl:full");
    op(&w, XFER_OPEN, 2, NULL);
    lose(&w, NCCL, ERR_FULL, "turned away"); /* it would be closed by an unknown name */
    assert_failed(&w, 2, ERR_FULL, "turned away");
    w.session[NCCL] = idle;
    xfer_core_crowded(w.core, "nccl", w.now); /* that is of this side */
    act(&w);
    assert_null(w.session[NCCL]);
    xfer_core_free(w.core);
}

static void nodes_that_are_not_in_use_are_forgotten(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    w.addresses.count = 1;
    for (uint32_t i = 0; i < 2 * XFER_PEERS_MAX; i++) {
        snprintf(w.addresses.address[0], XFER_ADDRESS_BYTES_MAX, "tcp:%u", i);
        op(&w, XFER_OPEN, i + 1, NULL);
        lose(&w, TCP, ERR_PEER, "nobody there");
        assert_failed(&w, i + 1, ERR_PEER, "nobody there");
        w.events_count = w.rows_count = 0;
        pass(&w, NS_PER_S);
    }
    xfer_core_free(w.core);
}

/* A whole ticket whose payload is granted back after `ns`. */
static void carry(struct world *w, enum way way, uint64_t n, uint64_t ns)
{
    struct xfer_send send;
    uint64_t bytes = 0;
    op(w, XFER_OPEN, n, name[way]);
    push_all(w, n);
    op(w, XFER_COMMIT, n, NULL);
    while (xfer_core_wants(w->core, w->session[way], &send)) {
        bytes += send.blocks_count * kv_layer_bytes(&geometry);
        xfer_core_sent(w->core, w->session[way], &send, w->now);
    }
    w->now += ns;
    hear(w, way, (struct frame){.kind = FRAME_CREDIT, .window_bytes = bytes});
    hear(w, way, (struct frame){.kind = FRAME_DONE, .ticket = ticket(n)});
    w->now += NS_PER_MS; /* idle: it does not count */
}

/* A megabyte in tickets of 1536 bytes, each in `ns`. */
static void measure(struct world *w, enum way way, uint64_t *n, uint64_t ns)
{
    for (uint32_t bytes = 0; bytes < 1 << 20; bytes += 1536) {
        w->events_count = 0;
        carry(w, way, ++*n, ns);
    }
}

static void the_faster_link_by_measurement_gets_the_tickets(void **state)
{
    (void)state;
    struct world w;
    uint64_t n = 100;
    world_with_both(&w);
    assert_over(&w, SHM, 1);
    measure(&w, SHM, &n, 1536); /* 1 GB/s */
    measure(&w, NCCL, &n, 3 * 1536);
    assert_int_equal(told(&w, SHM)->rate, NS_PER_S);
    assert_in_range(told(&w, NCCL)->rate, NS_PER_S / 3 - 1, NS_PER_S / 3 + 1);
    op(&w, XFER_OPEN, 2, NULL);
    assert_over(&w, SHM, 2);
    w.now += 61 * NS_PER_S; /* what is known is old: the better kind is tried again */
    op(&w, XFER_OPEN, 3, NULL);
    assert_over(&w, NCCL, 3);
    measure(&w, NCCL, &n, 1536 / 2);
    assert_int_equal(told(&w, NCCL)->rate, 2 * NS_PER_S);
    xfer_core_free(w.core);
}

static void what_is_told_is_the_change_and_not_too_often(void **state)
{
    (void)state;
    struct world w;
    world_new(&w);
    op(&w, XFER_OPEN, 1, NULL);
    assert_int_equal(xfer_core_wake_at(w.core), w.now);
    xfer_core_timer(w.core, w.now);
    act(&w);
    assert_int_equal(w.rows_count, 2); /* nccl and shm are being made */
    make_ready(&w, SHM);
    lose(&w, NCCL, ERR_PEER, "no device");
    assert_over(&w, SHM, 1);
    assert_int_equal(xfer_core_wake_at(w.core), w.now + NS_PER_S);
    deliver(&w, SHM, 1);
    assert_int_equal(w.rows_count, 2);
    const struct xfer_link_row *row = told(&w, SHM);
    assert_int_equal(w.rows_count, 4);
    assert_int_equal(row->state, XFER_LINK_READY);
    assert_int_equal(row->bytes, 2 * 3 * kv_layer_bytes(&geometry));
    assert_int_equal(row->tickets_count, 0);
    row = told(&w, NCCL);
    assert_int_equal(row->state, XFER_LINK_BROKEN);
    assert_string_equal(row->reason, "no device");
    assert_true(row->failed_ns > 0);
    pass(&w, 10 * NS_PER_S);
    assert_int_equal(w.rows_count, 4); /* nothing has changed */
    xfer_core_free(w.core);
}

static void failing_allocations_lose_no_ticket(void **state)
{
    (void)state;
    for (uint64_t at = 1; at <= 4; at++) { /* the peer, the sessions */
        struct world w;
        struct xfer_message m;
        world_new(&w);
        struct xfer_op o = {.kind = XFER_OPEN,
                            .ticket = ticket(1),
                            .tokens_end = 16,
                            .addresses = &w.addresses,
                            .deadline_ns = DEADLINE};
        assert_ok(xfer_message_new(&o, &geometry, 3, &m));
        mem_fail_at(at);
        xfer_core_op(w.core, &m, w.now);
        mem_fail_at(0);
        act(&w);
        if (at == 1) assert_failed(&w, 1, ERR_MEMORY, "");
        if (at > 1) assert_null(ended(&w, 1)); /* another link is made */
        xfer_core_free(w.core);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(traffic_begins_on_what_is_ready_first),
        cmocka_unit_test(a_slow_link_has_more_time),
        cmocka_unit_test(the_next_attempt_goes_over_another_link),
        cmocka_unit_test(a_broken_link_comes_back_after_its_back_off),
        cmocka_unit_test(a_link_that_only_stands_does_not_shorten_its_back_off),
        cmocka_unit_test(with_nothing_left_a_ticket_fails_at_once_and_the_next_one_tries_again),
        cmocka_unit_test(a_link_that_is_not_for_these_two_is_told_as_that),
        cmocka_unit_test(a_forced_link_is_the_only_one),
        cmocka_unit_test(a_silent_link_is_left_for_another),
        cmocka_unit_test(kv_that_differs_is_said_by_the_ticket_that_waits),
        cmocka_unit_test(slots_too_short_for_a_block_are_no_link),
        cmocka_unit_test(idle_links_are_closed_and_made_again_without_a_failure),
        cmocka_unit_test(a_full_table_gives_up_the_oldest_idle_link),
        cmocka_unit_test(a_link_whose_place_is_wanted_back_has_not_failed),
        cmocka_unit_test(who_is_turned_away_keeps_its_other_links),
        cmocka_unit_test(nodes_that_are_not_in_use_are_forgotten),
        cmocka_unit_test(the_faster_link_by_measurement_gets_the_tickets),
        cmocka_unit_test(what_is_told_is_the_change_and_not_too_often),
        cmocka_unit_test(failing_allocations_lose_no_ticket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
