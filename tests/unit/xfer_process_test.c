/* kv_xfer between two processes, one of which dies or freezes in the middle. */
#include "tests/unit/xfer_nodes.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TOKENS = 200, SEED = 12 };

/* The child's end and ours: the parent tells an address, the child how far it is. */
struct family {
    pid_t pid;
    int to_child, from_child;
};

static void must_read(int fd, void *bytes, size_t size)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = read(fd, (char *)bytes + got, size - got);
        if (n <= 0) _exit(9);
        got += (size_t)n;
    }
}

static void must_write(int fd, const void *bytes, size_t size)
{
    if (write(fd, bytes, size) != (ssize_t)size) _exit(9);
}

/* Forks before any thread runs; the child never returns. */
static struct family fork_child(void (*child)(int in, int out, const char *link), const char *link)
{
    int down[2], up[2];
    assert_int_equal(pipe(down), 0);
    assert_int_equal(pipe(up), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(down[1]);
        close(up[0]);
        alarm(WAIT_S); /* it never outlives a parent that failed */
        child(down[0], up[1], link);
        _exit(0);
    }
    close(down[0]);
    close(up[1]);
    return (struct family){pid, down[1], up[0]};
}

static int end_child(struct family *f)
{
    int status = 0;
    close(f->to_child);
    close(f->from_child);
    assert_int_equal(waitpid(f->pid, &status, 0), f->pid);
    return status;
}

static struct travel usual(const char *link)
{
    return travel_new(1, 0, TOKENS, link);
}

/* P: pushes one layer, says so, and goes on when told. */
static void sending_child(int in, int out, const char *link)
{
    static struct node p;
    struct xfer_addresses to;
    struct travel t = usual(link);
    char go;
    node_start(&p, node_options());
    for (uint32_t b = 0; b < NODE_BLOCKS; b++)
        node_fill(&p, b, SEED);
    must_read(in, &to, sizeof to);
    travel_open(&t, &p, &to);
    travel_push(&t, &p, 0, 0, TOKENS);
    must_write(out, "1", 1);
    must_read(in, &go, 1);
    for (uint32_t layer = 1; layer < small_geometry.layers_count; layer++)
        travel_push(&t, &p, layer, 0, TOKENS);
    travel_commit(&t, &p, 42);
    struct xfer_event e = node_wait(&p, t.ticket);
    must_write(out, &e.kind, sizeof e.kind);
    node_stop(&p);
}

/* D: tells its address, expects the ticket, waits. */
static void receiving_child(int in, int out, const char *link)
{
    static struct node d;
    struct travel t = usual(link);
    char go;
    node_start(&d, node_options());
    travel_expect(&t, &d);
    must_write(out, xfer_addresses(d.x), sizeof(struct xfer_addresses));
    must_read(in, &go, 1);
    node_stop(&d);
}

/* Waits until some of the first layer has travelled, so that the blow falls in the middle. On a busy
 * machine the ticket's deadline may come before that: then the blow falls before the beginning. */
static void wait_for_bytes(struct node *n, struct id128 ticket)
{
    struct xfer_stats s;
    for (uint64_t end = clock_now_ns() + WAIT_S * NS_PER_S; clock_now_ns() < end;) {
        xfer_stats(n->x, &s);
        if (s.received_bytes + s.sent_bytes > 0 || node_events_of(n, ticket) > 0) return;
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    fail_msg("nothing travelled");
}

static void start_parent(struct node *d, struct family *f, struct travel *t, const char *link,
                         uint64_t deadline_ns)
{
    char step;
    *t = usual(link);
    t->deadline_ns = deadline_ns;
    node_start(d, node_options());
    travel_expect(t, d);
    must_write(f->to_child, xfer_addresses(d->x), sizeof(struct xfer_addresses));
    must_read(f->from_child, &step, 1);
    wait_for_bytes(d, t->ticket);
}

static void another_process_hands_over(const char *link)
{
    struct family f = fork_child(sending_child, link);
    struct node d, model = {.geometry = small_geometry};
    struct travel t;
    enum xfer_event_kind kind;
    start_parent(&d, &f, &t, link, clock_now_ns() + WAIT_S * NS_PER_S);
    must_write(f.to_child, "1", 1);
    struct xfer_event e = node_wait(&d, t.ticket);
    assert_event(&e, XFER_COMMITTED, OK);
    assert_string_equal(e.link, link);
    must_read(f.from_child, &kind, sizeof kind);
    assert_int_equal(kind, XFER_DONE);
    model.kv = mem_new(NODE_BLOCKS * kv_block_bytes(&small_geometry));
    for (uint32_t b = 0; b < NODE_BLOCKS; b++)
        node_fill(&model, b, SEED);
    assert_arrived(&t, &model, &d);
    mem_free(model.kv);
    assert_int_equal(end_child(&f), 0);
    node_stop(&d);
}

static void a_killed_sender_fails_the_ticket_at_once(const char *link)
{
    struct family f = fork_child(sending_child, link);
    struct node d;
    struct travel t;
    start_parent(&d, &f, &t, link, clock_now_ns() + 1000 * NS_PER_S);
    kill(f.pid, SIGKILL);
    struct xfer_event e = node_wait(&d, t.ticket);
    assert_event(&e, XFER_FAILED, ERR_PEER);
    assert_true(WIFSIGNALED(end_child(&f)));
    node_stop(&d);
}

/* And what it says when it wakes up again reaches nobody's memory. */
static void a_frozen_sender_fails_the_ticket_at_its_deadline(const char *link)
{
    struct family f = fork_child(sending_child, link);
    struct node d;
    struct travel t;
    enum xfer_event_kind kind;
    start_parent(&d, &f, &t, link, clock_now_ns() + 250 * NS_PER_MS);
    kill(f.pid, SIGSTOP);
    struct xfer_event e = node_wait(&d, t.ticket);
    assert_event(&e, XFER_FAILED, ERR_TIMEOUT);
    size_t bytes = NODE_BLOCKS * kv_block_bytes(&small_geometry);
    memset(d.kv, 0x5a, bytes); /* another request's now */
    must_write(f.to_child, "1", 1);
    kill(f.pid, SIGCONT);
    must_read(f.from_child, &kind, sizeof kind);
    assert_int_equal(kind, XFER_FAILED);
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(d.kv[i], 0x5a);
    assert_int_equal(end_child(&f), 0);
    assert_int_equal(node_events_of(&d, t.ticket), 1);
    node_stop(&d);
}

static void lose_receiver(const char *link, int how, uint64_t patience_ns, enum err error)
{
    struct family f = fork_child(receiving_child, link);
    struct node p;
    struct xfer_addresses to;
    struct travel t = usual(link);
    node_start(&p, node_options());
    must_read(f.from_child, &to, sizeof to);
    t.deadline_ns = clock_now_ns() + patience_ns;
    travel_open(&t, &p, &to);
    travel_push(&t, &p, 0, 0, TOKENS);
    wait_for_bytes(&p, t.ticket);
    kill(f.pid, how);
    travel_push(&t, &p, 1, 0, TOKENS);
    travel_push(&t, &p, 2, 0, TOKENS);
    struct xfer_event e = node_wait(&p, t.ticket);
    assert_event(&e, XFER_FAILED, error);
    kill(f.pid, SIGKILL);
    assert_true(WIFSIGNALED(end_child(&f)));
    node_stop(&p);
}

static void a_killed_receiver_fails_the_ticket_at_once(const char *link)
{
    lose_receiver(link, SIGKILL, 1000 * NS_PER_S, ERR_PEER);
}

static void a_frozen_receiver_fails_the_ticket_at_its_deadline(const char *link)
{
    lose_receiver(link, SIGSTOP, 250 * NS_PER_MS, ERR_TIMEOUT);
}

/* cmocka has no parameters: one line per link and promise. */
#define OVER_BOTH(body)                                                                            \
    static void body##_shm(void **state)                                                           \
    {                                                                                              \
        (void)state;                                                                               \
        body("shm");                                                                               \
    }                                                                                              \
    static void body##_tcp(void **state)                                                           \
    {                                                                                              \
        (void)state;                                                                               \
        body("tcp");                                                                               \
    }
OVER_BOTH(another_process_hands_over)
OVER_BOTH(a_killed_sender_fails_the_ticket_at_once)
OVER_BOTH(a_frozen_sender_fails_the_ticket_at_its_deadline)
OVER_BOTH(a_killed_receiver_fails_the_ticket_at_once)
OVER_BOTH(a_frozen_receiver_fails_the_ticket_at_its_deadline)
#define BOTH(body) cmocka_unit_test(body##_shm), cmocka_unit_test(body##_tcp)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(another_process_hands_over),
        BOTH(a_killed_sender_fails_the_ticket_at_once),
        BOTH(a_frozen_sender_fails_the_ticket_at_its_deadline),
        BOTH(a_killed_receiver_fails_the_ticket_at_once),
        BOTH(a_frozen_receiver_fails_the_ticket_at_its_deadline),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
