/* CUDA IPC as a transport, between two processes on the stand-in runtime. The child dials. */
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/cuda_rig.h"
#include "xfer/device/ipc.h"

enum { SLOTS = 3, SLOT_BYTES = 5000, WAIT_MS = 10000 };

static const struct transport_ops *const ops = &transport_ipc;

struct world {
    struct transport *acceptor;
    pid_t child;
    int line; /* to the child */
};

static struct transport *open_side(bool dialler)
{
    struct transport_options o = {
        .slots_count = SLOTS, .slot_bytes = SLOT_BYTES, .dialler = dialler, .interface = ""};
    struct transport *t;
    return ops->open(&t, &o) == OK ? t : NULL;
}

static enum err join_fully(struct transport *t)
{
    enum err e;
    for (int i = 0; (e = ops->joined(t)) == ERR_AGAIN && i < WAIT_MS; i++)
        poll(NULL, 0, 1);
    return e;
}

static enum err open_fully(struct transport *t, uint8_t offer[TRANSPORT_OFFER_MAX], size_t *size)
{
    enum err e;
    for (int i = 0; (e = ops->opened(t, offer, size)) == ERR_AGAIN && i < WAIT_MS; i++)
        poll(NULL, 0, 1);
    return e;
}

static size_t pattern(unsigned char bytes[SLOT_BYTES], uint32_t slot)
{
    for (size_t i = 0; i < SLOT_BYTES; i++)
        bytes[i] = (unsigned char)(i * 3 + slot * 17);
    return SLOT_BYTES;
}

/* The child: joins by the offer that comes over the line, does as told by single bytes: 'w' fills all slots,
 * 'c' closes. Answers each with the same byte; its status is 0 when the line ends. */
static void serve(int line)
{
    uint8_t offer[TRANSPORT_OFFER_MAX];
    unsigned char bytes[SLOT_BYTES];
    char order;
    ssize_t size = recv(line, offer, sizeof offer, 0);
    struct transport *t = open_side(true);
    bool good = size > 0 && t && ops->join(t, offer, (size_t)size) == OK && join_fully(t) == OK;
    if (send(line, good ? "y" : "n", 1, 0) != 1) _exit(2);
    while (recv(line, &order, 1, 0) == 1) {
        for (uint32_t i = 0; i < SLOTS && order == 'w'; i++) {
            uint32_t slot = SLOTS;
            size_t n = pattern(bytes, i);
            if (cudaMemcpy(ops->slot(t, i), bytes, n, cudaMemcpyHostToDevice) != cudaSuccess ||
                cudaDeviceSynchronize() != cudaSuccess || /* who reads does not wait for it */
                ops->begin(t, i, n) != OK || ops->ended(t, &slot) != OK || slot != i)
                _exit(3);
        }
        if (order == 'c') {
            ops->close(t, TRANSPORT_DRAINED);
            t = NULL;
            while (ipc_held_count() > 0) /* until it has let the slots go */
                poll(NULL, 0, 1);
        }
        if (send(line, &order, 1, 0) != 1) _exit(4);
    }
    _exit(0);
}

static void order(const struct world *w, char what)
{
    char answer = 0;
    assert_int_equal(send(w->line, &what, 1, 0), 1);
    assert_int_equal(recv(w->line, &answer, 1, 0), 1);
    assert_int_equal(answer, what);
}

/* The acceptor here, a joined dialler in a child. */
static void open_world(struct world *w)
{
    int line[2];
    uint8_t offer[TRANSPORT_OFFER_MAX];
    size_t size;
    char answer = 0;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, line), 0);
    w->child = fork();
    if (w->child == 0) {
        close(line[0]);
        serve(line[1]);
    }
    close(line[1]);
    w->line = line[0];
    w->acceptor = open_side(false);
    assert_non_null(w->acceptor);
    assert_ok(open_fully(w->acceptor, offer, &size));
    assert_ok(ops->join(w->acceptor, NULL, 0));
    assert_int_equal(send(w->line, offer, size, 0), size);
    assert_ok(join_fully(w->acceptor));
    assert_int_equal(recv(w->line, &answer, 1, 0), 1);
    assert_int_equal(answer, 'y');
}

static void end_child(struct world *w)
{
    int status;
    close(w->line);
    assert_int_equal(waitpid(w->child, &status, 0), w->child);
    assert_int_equal(status, 0);
}

/* Until what was closed is taken down, but for `left`. */
static void await_held(uint32_t left)
{
    for (int i = 0; ipc_held_count() > left && i < WAIT_MS; i++)
        poll(NULL, 0, 1);
    assert_int_equal(ipc_held_count(), left);
}

static size_t memory_used(void)
{
    size_t free_bytes = 0, total = 0;
    assert_cuda(cudaMemGetInfo(&free_bytes, &total));
    return total - free_bytes;
}

static void what_the_dialler_gathers_is_in_the_acceptors_slots(void **state)
{
    (void)state;
    struct world w;
    unsigned char want[SLOT_BYTES], got[SLOT_BYTES];
    open_world(&w);
    order(&w, 'w');
    for (uint32_t i = 0; i < SLOTS; i++) {
        pattern(want, i);
        assert_int_equal((uintptr_t)ops->slot(w.acceptor, i) % 256, 0);
        assert_cuda(cudaMemcpy(got, ops->slot(w.acceptor, i), SLOT_BYTES, cudaMemcpyDeviceToHost));
        assert_memory_equal(got, want, SLOT_BYTES);
    }
    order(&w, 'c');
    ops->close(w.acceptor, TRANSPORT_DRAINED);
    await_held(0);
    assert_int_equal(memory_used(), 0);
    end_child(&w);
}

static void slots_stay_until_the_dialler_has_let_them_go(void **state)
{
    (void)state;
    struct world w;
    open_world(&w);
    size_t used = memory_used();
    ops->close(w.acceptor, TRANSPORT_BROKEN);
    assert_int_equal(memory_used(), used);
    order(&w, 'w'); /* as a stopped process does that goes on later: hurts nobody */
    order(&w, 'c');
    struct transport *next = open_side(false);
    await_held(1);                      /* the other one's are no longer mapped */
    ops->close(next, TRANSPORT_BROKEN); /* nobody came to this one */
    await_held(0);
    assert_int_equal(memory_used(), 0);
    end_child(&w);
}

static void slots_of_a_killed_dialler_come_back(void **state)
{
    (void)state;
    struct world w;
    int status;
    open_world(&w);
    ops->close(w.acceptor, TRANSPORT_BROKEN);
    kill(w.child, SIGKILL);
    assert_int_equal(waitpid(w.child, &status, 0), w.child);
    close(w.line);
    while (ipc_held_count() > 0) { /* a while after its death, when it is looked at */
        ops->close(open_side(false), TRANSPORT_BROKEN);
        for (int i = 0; ipc_held_count() > 0 && i < 20; i++)
            poll(NULL, 0, 1);
    }
    await_held(0);
    assert_int_equal(memory_used(), 0);
}

static void offers_that_are_none_are_refused(void **state)
{
    (void)state;
    uint8_t offer[TRANSPORT_OFFER_MAX] = {0};
    size_t size;
    struct transport *a = open_side(false), *d = open_side(true);
    assert_non_null(a);
    assert_non_null(d);
    assert_ok(open_fully(a, offer, &size));
    assert_int_equal(ops->join(d, offer, size - 1), ERR_FORMAT);
    offer[size - 1] ^= 1;
    assert_int_equal(ops->join(d, offer, size), ERR_PEER); /* nobody has that name */
    ops->close(d, TRANSPORT_BROKEN);

    d = open_side(true); /* one process cannot map its own */
    assert_ok(open_fully(a, offer, &size));
    assert_ok(ops->join(d, offer, size));
    assert_ok(join_fully(a));
    assert_int_equal(join_fully(d), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_text(), "cudaErrorDeviceUninitialized"));
    ops->close(d, TRANSPORT_BROKEN);
    await_held(1); /* it has told that it maps nothing */
    ops->close(a, TRANSPORT_BROKEN);
    await_held(0);
    assert_int_equal(memory_used(), 0);
}

/* Opens the door after all, so that who waits in vain fails instead of hanging. */
struct watch {
    struct door door;
    atomic_bool closed;
    bool late;
};
static void *open_late(void *arg)
{
    struct watch *w = arg;
    for (int i = 0; !atomic_load(&w->closed) && i < WAIT_MS / 5; i++)
        poll(NULL, 0, 1);
    w->late = !atomic_load(&w->closed);
    open_door(&w->door);
    return NULL;
}

/* Giving memory back may wait for all that runs on the device, for a kernel of NCCL whose peer has died,
 * say: which only the thread that closes links would end. */
static void closing_waits_for_nothing_that_the_device_does(void **state)
{
    (void)state;
    struct watch watch = {.door = DOOR};
    struct world w;
    pthread_t thread;
    open_world(&w);
    order(&w, 'c');
    fake_knobs()->free_waits = true;
    cudaStream_t stream = new_stream();
    put_door(stream, &watch.door);
    assert_int_equal(pthread_create(&thread, NULL, open_late, &watch), 0);
    ops->close(w.acceptor, TRANSPORT_DRAINED);
    atomic_store(&watch.closed, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_false(watch.late);
    await_held(0);
    assert_cuda(cudaStreamDestroy(stream));
    end_child(&w);
}

static void slots_are_made_and_mapped_on_a_thread_that_nobody_waits_for(void **state)
{
    (void)state;
    uint8_t offer[TRANSPORT_OFFER_MAX];
    size_t size;
    fake_knobs()->ipc_same_process = true;
    for (int mapped = 0; mapped < 2; mapped++) { /* or closed before they were */
        struct transport *a, *d = open_side(true);
        fake_hold("cudaMalloc");
        assert_non_null(a = open_side(false));
        for (int i = 0; i < 3; i++)
            assert_int_equal(ops->opened(a, offer, &size), ERR_AGAIN);
        fake_hold("cudaIpcOpenMemHandle");
        assert_ok(open_fully(a, offer, &size));
        assert_ok(ops->join(a, NULL, 0));
        assert_ok(ops->join(d, offer, size));
        assert_ok(join_fully(a));
        for (int i = 0; i < 3; i++)
            assert_int_equal(ops->joined(d), ERR_AGAIN);
        if (mapped) fake_hold(NULL);
        if (mapped) assert_ok(join_fully(d));
        ops->close(d, TRANSPORT_BROKEN);
        if (!mapped) assert_int_equal(ipc_held_count(), 2);
        fake_hold(NULL);
        await_held(1);
        ops->close(a, TRANSPORT_BROKEN);
        await_held(0);
        assert_int_equal(memory_used(), 0);
    }
}

/* Whoever is on the host can read the socket's name, and call before the dialler does. */
static void a_stranger_takes_no_dialers_place(void **state)
{
    (void)state;
    enum { NOBODY = 65534 };
    uint8_t offer[TRANSPORT_OFFER_MAX];
    size_t size;
    int line[2], status;
    char byte;
    if (geteuid() != 0) skip();
    struct transport *a = open_side(false);
    assert_non_null(a);
    assert_ok(open_fully(a, offer, &size));
    assert_ok(ops->join(a, NULL, 0));
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, line), 0);
    pid_t stranger = fork();
    if (stranger == 0) {
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        uint64_t name[2];
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        memcpy(name, offer + size - sizeof name, sizeof name);
        int n = snprintf(un.sun_path + 1, sizeof un.sun_path - 1, "tandem-ipc-%016llx%016llx",
                         (unsigned long long)name[0], (unsigned long long)name[1]);
        if (setresuid(NOBODY, NOBODY, NOBODY) != 0) _exit(2);
        socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
        if (connect(fd, (struct sockaddr *)&un, bytes) != 0) _exit(3);
        if (send(line[1], "c", 1, 0) != 1) _exit(4);
        _exit(recv(fd, &byte, 1, 0) == 0 ? 0 : 5); /* sent away, without a byte */
    }
    assert_int_equal(recv(line[0], &byte, 1, 0), 1);
    assert_int_equal(ops->joined(a), ERR_AGAIN);
    assert_int_equal(waitpid(stranger, &status, 0), stranger);
    assert_int_equal(status, 0);
    close(line[0]);
    close(line[1]);
    ops->close(a, TRANSPORT_BROKEN);
    await_held(0);
}

static void a_call_that_fails_is_told_and_costs_nothing(void **state)
{
    (void)state;
    fake_knobs()->fail_call = "cudaMalloc";
    fake_knobs()->fail_at = 1;
    fake_knobs()->fail_with = cudaErrorMemoryAllocation;
    uint8_t offer[TRANSPORT_OFFER_MAX];
    size_t size;
    struct transport *t = open_side(false);
    assert_int_equal(open_fully(t, offer, &size), ERR_MEMORY);
    assert_non_null(strstr(err_text(), "memory for slots"));
    ops->close(t, TRANSPORT_BROKEN);
    fake_knobs()->fail_call = "cudaIpcGetMemHandle";
    fake_knobs()->fail_with = cudaErrorNotSupported;
    t = open_side(false);
    assert_int_equal(open_fully(t, offer, &size), ERR_UNSUPPORTED);
    ops->close(t, TRANSPORT_BROKEN);
    await_held(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_the_dialler_gathers_is_in_the_acceptors_slots),
        TEST(slots_stay_until_the_dialler_has_let_them_go),
        TEST(slots_of_a_killed_dialler_come_back),
        TEST(offers_that_are_none_are_refused),
        TEST(closing_waits_for_nothing_that_the_device_does),
        TEST(slots_are_made_and_mapped_on_a_thread_that_nobody_waits_for),
        TEST(a_stranger_takes_no_dialers_place),
        TEST(a_call_that_fails_is_told_and_costs_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
