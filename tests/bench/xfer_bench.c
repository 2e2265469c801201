/* The hand-over between two processes on this host: from the push of the last layer to the commit
 * on D, for a prompt of 1024 tokens in the bf16 KV of a model with 24 layers of 8 x 64, and how
 * fast KV flows, beside what memcpy reaches in the same run. */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/mailbox.h"
#include "common/mem.h"
#include "tests/bench/figures.h"
#include "xfer/xfer.h"

enum { TOKENS = 1024, BLOCKS = TOKENS / BLOCK_TOKENS, ROUNDS = 60, WARM_UP = 5, FLOW_ROUNDS = 20 };

static const struct kv_geometry geometry = {24, 8, 64, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_BF16};

struct node {
    struct xfer *x;
    struct mailbox *events;
    uint8_t *kv;
};

/* What D tells P's process of each ticket: CLOCK_MONOTONIC is one clock for the host. */
struct report {
    enum xfer_event_kind kind;
    uint64_t ended_ns;
};

static void on_event(void *ctx, const struct xfer_event *event)
{
    struct node *n = ctx;
    CHECK(mailbox_send(n->events, event) == OK);
}

static void node_open(struct node *n)
{
    n->kv = mem_aligned(BLOCKS * kv_block_bytes(&geometry), 64);
    CHECK(n->kv && mailbox_new(&n->events, sizeof(struct xfer_event), 64) == OK);
    memset(n->kv, 1, BLOCKS * kv_block_bytes(&geometry));
    struct xfer_options o = {
        .geometry = geometry,
        .kv_base = n->kv,
        .blocks_count = BLOCKS,
        .listen = {{.name = "shm", .where = ""}, {.name = "tcp", .where = "127.0.0.1:0"}},
        .listen_count = 2,
        .tickets_max = 16};
    CHECK(xfer_open(&n->x, &o, on_event, n) == OK && xfer_start(n->x) == OK);
}

static void node_close(struct node *n)
{
    xfer_stop(n->x);
    xfer_close(n->x);
    mailbox_free(n->events);
    mem_free(n->kv);
}

static void post(struct node *n, struct xfer_op op)
{
    uint32_t blocks[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++)
        blocks[i] = i;
    op.blocks = blocks;
    op.blocks_count = BLOCKS;
    op.tokens_end = TOKENS;
    op.deadline_ns = clock_now_ns() + 60 * NS_PER_S;
    CHECK(xfer_post(n->x, &op) == OK);
}

/* D: expects the tickets whose numbers come in, tells how each ended. */
static void receive(int in, int out)
{
    struct node d;
    struct id128 ticket;
    struct xfer_event event;
    node_open(&d);
    CHECK(write(out, xfer_addresses(d.x), sizeof(struct xfer_addresses)) > 0);
    while (read(in, &ticket, sizeof ticket) == (ssize_t)sizeof ticket) {
        post(&d, (struct xfer_op){.kind = XFER_EXPECT, .ticket = ticket});
        CHECK(write(out, "1", 1) == 1);
        CHECK(mailbox_wait(d.events, &event, TIME_NEVER) == OK);
        struct report report = {event.kind, event.ended_ns};
        CHECK(write(out, &report, sizeof report) == (ssize_t)sizeof report);
    }
    node_close(&d);
}

struct lane {
    struct node *p;
    int to_d, from_d;
    struct xfer_addresses to;
    const char *link;
    uint64_t next_ticket;
};

static void read_all(int fd, void *bytes, size_t size)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = read(fd, (char *)bytes + got, size - got);
        CHECK(n > 0);
        got += (size_t)n;
    }
}

static void push(struct lane *l, struct id128 ticket, uint32_t first_layer, uint32_t end_layer)
{
    for (uint32_t layer = first_layer; layer < end_layer; layer++)
        post(l->p, (struct xfer_op){.kind = XFER_PUSH, .ticket = ticket, .layer = layer});
}

static void expect_and_open(struct lane *l, struct id128 ticket)
{
    char ready;
    CHECK(write(l->to_d, &ticket, sizeof ticket) == (ssize_t)sizeof ticket);
    read_all(l->from_d, &ready, 1);
    post(l->p, (struct xfer_op){
                   .kind = XFER_OPEN, .ticket = ticket, .addresses = &l->to, .link = l->link});
}

static uint64_t finish(struct lane *l)
{
    struct report report;
    struct xfer_event event;
    read_all(l->from_d, &report, sizeof report);
    CHECK(report.kind == XFER_COMMITTED);
    CHECK(mailbox_wait(l->p->events, &event, TIME_NEVER) == OK && event.kind == XFER_DONE);
    CHECK(strcmp(event.link, l->link) == 0);
    return report.ended_ns;
}

/* All layers but the last have long gone when the last one is pushed, as after a prefill. */
static uint64_t hand_over_ns(struct lane *l)
{
    struct id128 ticket = {1, ++l->next_ticket};
    struct xfer_stats stats;
    xfer_stats(l->p->x, &stats);
    uint64_t gone = stats.sent_bytes +
                    (geometry.layers_count - 1) * BLOCKS * (uint64_t)kv_layer_bytes(&geometry);
    expect_and_open(l, ticket);
    push(l, ticket, 0, geometry.layers_count - 1);
    do {
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        xfer_stats(l->p->x, &stats);
    } while (stats.sent_bytes < gone);
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    uint64_t began_ns = clock_now_ns();
    push(l, ticket, geometry.layers_count - 1, geometry.layers_count);
    post(l->p, (struct xfer_op){.kind = XFER_COMMIT, .ticket = ticket});
    return finish(l) - began_ns;
}

/* Bytes per ns of a whole prompt's KV at once. */
static double flow(struct lane *l)
{
    struct id128 ticket = {2, ++l->next_ticket};
    expect_and_open(l, ticket);
    uint64_t began_ns = clock_now_ns();
    push(l, ticket, 0, geometry.layers_count);
    post(l->p, (struct xfer_op){.kind = XFER_COMMIT, .ticket = ticket});
    return (double)(BLOCKS * kv_block_bytes(&geometry)) / (double)(finish(l) - began_ns);
}

static void measure(struct lane *l, const char *link)
{
    struct samples latency_us = {0};
    double bytes_per_ns = 0;
    l->link = link;
    for (int i = 0; i < WARM_UP + ROUNDS; i++) {
        uint64_t ns = hand_over_ns(l);
        if (i >= WARM_UP) samples_add(&latency_us, (double)ns / 1e3);
    }
    for (int i = 0; i < FLOW_ROUNDS; i++) {
        double now = flow(l);
        if (now > bytes_per_ns) bytes_per_ns = now;
    }
    printf("\"%s_last_layer_p50_us\":%.1f,\"%s_last_layer_p99_us\":%.1f,\"%s_gb_s\":%.2f,", link,
           samples_at(&latency_us, 0.5), link, samples_at(&latency_us, 0.99), link, bytes_per_ns);
    samples_free(&latency_us);
}

/* The best of some rounds over a prompt's KV. */
static void measure_memory(const struct node *p)
{
    size_t bytes = BLOCKS * kv_block_bytes(&geometry);
    uint8_t *copy = mem_aligned(bytes, 64);
    uint64_t copy_ns = UINT64_MAX, hash_ns = UINT64_MAX;
    CHECK(copy);
    for (int i = 0; i < FLOW_ROUNDS; i++) {
        uint64_t t0 = clock_now_ns();
        memcpy(copy, p->kv, bytes);
        uint64_t t1 = clock_now_ns();
        copy[0] ^= (uint8_t)hash64(copy, bytes);
        uint64_t t2 = clock_now_ns();
        if (t1 - t0 < copy_ns) copy_ns = t1 - t0;
        if (t2 - t1 < hash_ns) hash_ns = t2 - t1;
    }
    printf("\"memcpy_gb_s\":%.2f,\"xxh3_gb_s\":%.2f,\"layer_kb\":%.0f}\n",
           (double)bytes / (double)copy_ns, (double)bytes / (double)hash_ns,
           (double)(BLOCKS * kv_layer_bytes(&geometry)) / 1e3);
    mem_free(copy);
}

int main(void)
{
    int down[2], up[2];
    struct node p;
    CHECK(pipe(down) == 0 && pipe(up) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(down[1]);
        close(up[0]);
        receive(down[0], up[1]);
        return 0;
    }
    close(down[0]);
    close(up[1]);
    node_open(&p);
    struct lane l = {.p = &p, .to_d = down[1], .from_d = up[0]};
    read_all(l.from_d, &l.to, sizeof l.to);
    printf("{");
    measure(&l, "shm");
    measure(&l, "tcp");
    measure_memory(&p);
    close(l.to_d);
    waitpid(pid, NULL, 0);
    node_close(&p);
    return 0;
}
