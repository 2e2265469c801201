/* The transport over NCCL, on the stand-ins of tests/fake: both ends in this process, on devices 0 and 1,
 * or the acceptor in another one, which is this program again. */
#include "tests/unit/nccl_pair.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/mem.h"
#include "tests/fake/cuda/fake.h"
#include "tests/fake/nccl/fake_nccl.h"
#include "xfer/device/backoff.h"
#include "xfer/device/reaper.h"

enum { CHILD_S = 5 };
enum { LATE_US = 10000 }; /* of a transfer: no loaded host is later each time */

/* --- what it is for --- */

static void bytes_are_there_when_their_operation_has_ended(void **state)
{
    static const size_t sizes[] = {1, 4096, SLOT_BYTES, 77, 65536};
    static const struct {
        uint32_t in_progress_ms, stream_delay_us, register_unsupported, one_at_a_time;
    } cases[] = {{0, 0, 0, 0}, {2, 0, 0, 0}, {0, LATE_US, 0, 1}, {1, LATE_US, 1, 0}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct pair p;
        start(state);
        fake_nccl_knobs()->in_progress_ms = cases[c].in_progress_ms;
        fake_nccl_knobs()->register_unsupported = cases[c].register_unsupported;
        fake_nccl_knobs()->one_at_a_time = cases[c].one_at_a_time;
        assert_ok(open_pair(&p));
        assert_ok(join_pair(&p));
        for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            fill(p.end[0], i % SLOTS, sizes[i], i);
            fake_knobs()->stream_delay_us = cases[c].stream_delay_us;
            assert_ok(move(&p, i % SLOTS, sizes[i]));
            fake_knobs()->stream_delay_us = 0; /* who looks is not late */
            assert_came(&p, i % SLOTS, sizes[i]);
        }
        close_pair(&p, TRANSPORT_DRAINED);
        assert_int_equal(finish(state), 0);
    }
}

static void several_operations_end_in_the_order_of_begin(void **state)
{
    static const uint32_t order[SLOTS] = {2, 0, 1};
    struct pair p;
    (void)state;
    fake_nccl_knobs()->in_progress_ms = 1;
    assert_ok(open_pair(&p));
    assert_ok(join_pair(&p));
    for (uint32_t i = 0; i < SLOTS; i++) {
        fill(p.end[0], order[i], 1000 + i, i);
        assert_ok(ops->begin(p.end[0], order[i], 1000 + i));
    }
    for (uint32_t i = 0; i < SLOTS; i++)
        assert_ok(ops->begin(p.end[1], order[i], 1000 + i));
    for (uint32_t i = 0; i < SLOTS; i++) {
        assert_ok(end_both(&p, order[i]));
        assert_came(&p, order[i], 1000 + i);
    }
    close_pair(&p, TRANSPORT_DRAINED);
}

/* --- what fails --- */

static enum err whole_life(struct pair *p)
{
    enum err e;
    if ((e = open_pair(p)) != OK) return e;
    if ((e = join_pair(p)) != OK) return e;
    for (uint32_t i = 0; i < 2; i++)
        if ((e = move(p, i, 5000)) != OK) return e;
    return OK;
}

static void every_call_that_fails_is_told(void **state)
{
    static const struct {
        const char *call;
        uint32_t at;
        int with;
        const char *says;
    } cases[] = {
        {"ncclGetVersion", 1, 0, "nccl: its version: internal error"},
        {"ncclGetVersion", 2, 0, "nccl: its version"},
        {"ncclGetVersion", 4, 0, "nccl: its version"},
        {"ncclGetVersion", 5, 0, "nccl: its version"},
        {"ncclGetUniqueId", 1, ncclSystemError, "nccl: a unique id: unhandled system error"},
        {"ncclCommInitRankConfig", 1, 0, "nccl: a communicator"},
        {"ncclCommInitRankConfig", 2, ncclInvalidUsage, "a communicator: invalid usage"},
        {"init", 1, ncclSystemError, "nccl: connecting: unhandled system error"},
        {"init", 2, ncclRemoteError, "nccl: connecting: remote process exited"},
        {"ncclCommGetAsyncError", 1, 0, "nccl: connecting: internal error"},
        {"ncclSend", 1, 0, "nccl: a send"},
        {"ncclSend", 2, 0, "nccl: a send"},
        {"ncclRecv", 2, 0, "nccl: a receive"},
        {"launch", 1, ncclUnhandledCudaError, "launching a transfer: unhandled cuda error"},
        {"cudaSetDevice", 1, 1, "cuda: the device: cudaErrorInvalidValue"},
        {"cudaDeviceGetStreamPriorityRange", 1, 1, "cuda: priorities of streams"},
        {"cudaStreamCreateWithPriority", 1, 2, "cuda: a stream: cudaErrorMemoryAllocation"},
        {"cudaLaunchHostFunc", 1, 1, "cuda: the end of a transfer"},
        {"cudaStreamQuery", 1, 1, "cuda: a transfer"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool cuda = strncmp(cases[i].call, "cuda", 4) == 0;
        struct pair p;
        start(state);
        if (cuda) {
            fake_knobs()->fail_call = cases[i].call;
            fake_knobs()->fail_at = cases[i].at;
            fake_knobs()->fail_with = cases[i].with;
        } else {
            fake_nccl_knobs()->fail_call = cases[i].call;
            fake_nccl_knobs()->fail_at = cases[i].at;
            fake_nccl_knobs()->fail_with = cases[i].with;
        }
        assert_int_not_equal(whole_life(&p), OK);
        if (!strstr(err_text(), cases[i].says)) fail_msg("%s: %s", cases[i].call, err_text());
        close_pair(&p, TRANSPORT_BROKEN);
        cudaGetLastError();
        fake_nccl_reset(); /* an id that nobody used, say */
        assert_int_equal(finish(state), 0);
    }
}

static void what_can_be_done_without_is_done_without(void **state)
{
    static const char *const calls[] = {"ncclMemAlloc", "ncclCommDeregister", "ncclCommFinalize",
                                        "finalize"};
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        struct pair p;
        start(state);
        fake_nccl_knobs()->fail_call = calls[i];
        fake_nccl_knobs()->fail_at = 1;
        assert_ok(whole_life(&p));
        close_pair(&p, TRANSPORT_DRAINED);
        cudaGetLastError();
        fake_nccl_reset();
        assert_int_equal(finish(state), 0);
    }
}

static void memory_that_is_short_is_told(void **state)
{
    struct transport *t;
    struct offer o;
    (void)state;
    fake_knobs()->device_bytes = 2 * SLOT_BYTES;
    assert_ok(open_end(&t, true));
    assert_int_equal(make_offer(t, &o), ERR_MEMORY);
    assert_non_null(strstr(err_text(), "staging slots"));
    close_pair(&(struct pair){.end = {t}}, TRANSPORT_BROKEN);
    mem_fail_at(1);
    assert_int_equal(open_end(&t, true), ERR_MEMORY);
    mem_fail_at(0);
    close_pair(&(struct pair){0}, TRANSPORT_BROKEN);
    cudaGetLastError();
}

static void an_environment_that_makes_calls_wait_is_refused(void **state)
{
    static const char *const names[] = {"NCCL_COMM_BLOCKING", "CUDA_LAUNCH_BLOCKING"};
    struct transport *t;
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        setenv(names[i], "1", 1);
        assert_int_equal(open_end(&t, true), ERR_UNSUPPORTED);
        assert_non_null(strstr(err_text(), names[i]));
        unsetenv(names[i]);
    }
    fake_nccl_knobs()->version = 21805;
    assert_int_equal(open_end(&t, true), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_text(), "NCCL 2.19 or later is needed"));
}

static void the_interface_that_is_told_is_the_one(void **state)
{
    struct transport *t;
    (void)state;
    for (int i = 0; i < 2; i++) { /* "lo" where the network is not to be trusted, for one */
        setenv("NCCL_SOCKET_IFNAME", "mine", 1);
        assert_ok(ops->open(&t, &(struct transport_options){.slots_count = 1,
                                                            .slot_bytes = 100,
                                                            .interface = i == 0 ? "ib0" : ""}));
        assert_string_equal(getenv("NCCL_SOCKET_IFNAME"), i == 0 ? "ib0" : "mine");
        close_pair(&(struct pair){.end = {t}}, TRANSPORT_BROKEN);
    }
    unsetenv("NCCL_SOCKET_IFNAME");
}

static void an_offer_that_is_none_is_refused(void **state)
{
    struct pair p = {0};
    (void)state;
    assert_ok(open_end(&p.end[0], true));
    assert_ok(open_end(&p.end[1], false));
    for (int i = 0; i < 2; i++) { /* the dialler's to the acceptor, and the other way round */
        struct transport *other = p.end[1 - i];
        struct offer o;
        assert_ok(make_offer(p.end[i], &o));
        assert_int_equal(o.size, i == 0 ? 136 : 8);
        assert_int_equal(ops->join(other, o.bytes, o.size - 1), ERR_FORMAT);
        assert_int_equal(ops->join(other, o.bytes, o.size + 1), ERR_FORMAT);
        assert_int_equal(ops->join(other, NULL, 0), ERR_FORMAT);
        o.bytes[4] = 2;
        assert_int_equal(ops->join(other, o.bytes, o.size), ERR_FORMAT);
        o.bytes[4] = 1;
        o.bytes[0]++;
        assert_int_equal(ops->join(other, o.bytes, o.size), ERR_UNSUPPORTED);
        assert_non_null(strstr(err_text(), "code 22810, this side 22809"));
    }
    close_pair(&p, TRANSPORT_BROKEN);
    fake_nccl_reset(); /* the id */
}

/* The other one's ncclMemAlloc has failed: NCCL leaves it undefined what becomes of a pair of which one has
 * registered its slots. The stand-in finds that. */
static void slots_are_registered_by_both_or_by_none(void **state)
{
    for (uint32_t i = 1; i <= 2; i++) {
        struct pair p;
        start(state);
        fake_nccl_knobs()->fail_call = "ncclMemAlloc";
        fake_nccl_knobs()->fail_at = i;
        assert_ok(whole_life(&p));
        close_pair(&p, TRANSPORT_DRAINED);
        assert_int_equal(finish(state), 0);
    }
}

static void two_ranks_on_one_gpu_are_refused_for_good(void **state)
{
    struct pair p;
    enum err e;
    (void)state;
    fake_knobs()->devices = 1;
    for (int i = 0; i < 2; i++) {
        struct transport_options o = {
            .slots_count = 1, .slot_bytes = 100, .dialler = i == 0, .peer = "d0"};
        assert_ok(ops->open(&p.end[i], &o));
    }
    struct offer of[2];
    assert_ok(make_offer(p.end[0], &of[0]));
    assert_ok(make_offer(p.end[1], &of[1]));
    assert_ok(ops->join(p.end[0], of[1].bytes, of[1].size));
    assert_ok(ops->join(p.end[1], of[0].bytes, of[0].size));
    p.joined[0] = p.joined[1] = false;
    e = join_pair(&p);
    assert_int_equal(e, ERR_UNSUPPORTED);
    assert_non_null(strstr(err_text(), "Duplicate GPU"));
    close_pair(&p, TRANSPORT_BROKEN);
}

/* --- what takes long --- */

/* Taking memory waits for whatever the device is doing: other pairs go on meanwhile, and whoever is set up may
 * be closed. */
static void memory_is_taken_on_a_thread_that_nobody_waits_for(void **state)
{
    struct transport *late[2];
    size_t before, after, total;
    struct pair p;
    struct offer o;
    (void)state;
    assert_ok(open_pair(&p));
    assert_ok(join_pair(&p));
    assert_int_equal(cudaMemGetInfo(&before, &total), 0);
    for (uint32_t without = 0; without < 2; without++) {
        fake_nccl_knobs()->register_unsupported = without; /* ncclMemAlloc, or cudaMalloc */
        fake_hold("cudaMalloc");
        assert_ok(open_end(&late[0], false));
        assert_ok(open_end(&late[1], false));
        for (uint32_t i = 0; i < 3; i++) {
            assert_int_equal(ops->opened(late[0], o.bytes, &o.size), ERR_AGAIN);
            assert_ok(move(&p, i, 100));
        }
        ops->close(late[1], TRANSPORT_BROKEN);
        assert_int_equal(nccl_held_count(), 4);
        fake_hold(NULL);
        assert_ok(make_offer(late[0], &o));
        ops->close(late[0], TRANSPORT_BROKEN);
        while (nccl_held_count() > 2)
            usleep(500);
    }
    assert_int_equal(cudaMemGetInfo(&after, &total), 0);
    assert_int_equal(before, after);
    close_pair(&p, TRANSPORT_DRAINED);
}

/* The longest interval that a timer of this process is set to; 0: all are off. */
static uint64_t timer_ns(void)
{
    uint64_t longest = 0;
    for (int fd = 0; fd < 256; fd++) {
        char path[64], line[128];
        unsigned long long seconds, ns;
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
        FILE *info = fopen(path, "re");
        while (info && fgets(line, sizeof line, info))
            if (sscanf(line, "it_interval: (%llu, %llu)", &seconds, &ns) == 2)
                longest = ns > longest ? ns : longest;
        if (info) fclose(info);
    }
    return longest;
}

/* What takes NCCL long to launch is looked at ever more seldom, and nothing when it is over. */
static void a_slow_launch_costs_few_looks(void **state)
{
    struct pair p;
    uint32_t slot;
    (void)state;
    assert_ok(open_pair(&p));
    assert_ok(join_pair(&p));
    assert_ok(move(&p, 0, 10));
    assert_int_equal(timer_ns(), 0);
    fake_nccl_knobs()->in_progress_ms = 200;
    assert_ok(ops->begin(p.end[0], 1, 10));
    usleep(3 * BACKOFF_NS_MAX / 1000);
    assert_int_equal(ops->ended(p.end[0], &slot), ERR_AGAIN);
    assert_true(timer_ns() >= BACKOFF_NS_MAX);
    assert_ok(ops->begin(p.end[1], 1, 10));
    assert_ok(end_both(&p, 1));
    assert_int_equal(timer_ns(), 0);
    fake_nccl_knobs()->in_progress_ms = 0;
    close_pair(&p, TRANSPORT_DRAINED);
}

/* --- peers that are not there --- */

static void slots_are_freed_when_the_abort_has_returned(void **state)
{
    size_t before, after, total;
    struct pair p;
    (void)state;
    assert_int_equal(cudaMemGetInfo(&before, &total), 0);
    assert_ok(open_pair(&p));
    assert_ok(join_pair(&p));
    assert_ok(move(&p, 0, 10)); /* connections are made; what comes now is launched at once */
    assert_ok(ops->begin(p.end[0], 1, 4000));
    assert_int_equal(fake_nccl_moving(), 1); /* a send without its receive */
    ops->close(p.end[0], TRANSPORT_BROKEN);
    while (nccl_held_count() > 1)
        usleep(500);
    assert_int_equal(fake_nccl_moving(), 0);
    p.end[0] = NULL;
    close_pair(&p, TRANSPORT_DRAINED); /* finalizing without the peer ends in an abort */
    assert_int_equal(cudaMemGetInfo(&after, &total), 0);
    assert_int_equal(before, after);
}

static void what_never_connects_can_be_closed(void **state)
{
    struct pair p;
    (void)state;
    fake_nccl_knobs()->init_hangs = 1;
    assert_ok(open_pair(&p));
    assert_int_equal(ops->joined(p.end[0]), ERR_AGAIN);
    close_pair(&p, TRANSPORT_BROKEN);
    fake_nccl_reset(); /* the id */
}

static void what_is_taken_down_counts_until_its_memory_is_free(void **state)
{
    const struct transport_options o = {.slots_count = 1, .slot_bytes = 100, .links_max = 2};
    struct transport *t[3];
    (void)state;
    assert_ok(ops->open(&t[0], &o));
    assert_ok(ops->open(&t[1], &o));
    assert_int_equal(ops->open(&t[2], &o), ERR_FULL);
    ops->close(t[1], TRANSPORT_BROKEN);
    while (ops->open(&t[2], &o) == ERR_FULL)
        usleep(500);
    assert_int_equal(nccl_held_count(), 2);
    close_pair(&(struct pair){.end = {t[0], t[2]}}, TRANSPORT_BROKEN);
}

static void pairs_used_in_different_orders_stand_still(void **state)
{
    struct pair a, b;
    uint32_t slot;
    (void)state;
    assert_ok(open_pair(&a));
    assert_ok(join_pair(&a));
    assert_ok(move(&a, 0, 10));
    assert_ok(open_pair(&b));
    assert_ok(join_pair(&b));
    assert_ok(move(&b, 0, 10));
    fake_nccl_knobs()->one_at_a_time = 1;
    assert_ok(ops->begin(a.end[0], 1, 10)); /* device 0: first a, device 1: first b */
    assert_ok(ops->begin(b.end[1], 1, 10));
    while (fake_nccl_turns() < 2)
        usleep(500);
    assert_ok(ops->begin(b.end[0], 1, 10));
    assert_ok(ops->begin(a.end[1], 1, 10));
    assert_int_equal(ops->ended(a.end[0], &slot), ERR_AGAIN);
    assert_int_equal(fake_nccl_moving(), 4);
    ops->close(a.end[0], TRANSPORT_BROKEN);
    ops->close(a.end[1], TRANSPORT_BROKEN);
    assert_ok(end_both(&b, 1));
    close_pair(&b, TRANSPORT_DRAINED);
}

/* --- in another process --- */

enum { CHILD_FD = 3 };

/* An acceptor that takes its offer from CHILD_FD, moves one operation and tells when it has begun the
 * next. */
static int child_accepts(void)
{
    uint8_t offer[TRANSPORT_OFFER_MAX];
    struct pair p = {0};
    uint32_t slot;
    fake_knobs()->devices = 2;
    ssize_t size = read(CHILD_FD, offer, sizeof offer);
    struct offer own;
    if (size <= 0 || open_end(&p.end[1], false) != OK || make_offer(p.end[1], &own) != OK) return 2;
    if (ops->join(p.end[1], offer, (size_t)size) != OK) return 2;
    while (ops->joined(p.end[1]) == ERR_AGAIN)
        wait_for(&p);
    if (ops->begin(p.end[1], 0, 1000) != OK) return 2;
    while (ops->ended(p.end[1], &slot) == ERR_AGAIN)
        wait_for(&p);
    if (write(CHILD_FD, "", 1) != 1) return 2;
    for (;;)
        pause();
}

/* Its communicator is never connected, and its abort never returns. */
static int child_hangs(void)
{
    struct pair p = {0};
    struct offer o;
    alarm(CHILD_S);
    setenv("TANDEM_ABORT_MS", "50", 1);
    fake_nccl_knobs()->abort_hangs = 1;
    if (open_end(&p.end[0], true) != OK || make_offer(p.end[0], &o) != OK) return 2;
    if (join_alone(p.end[0], true) != OK) return 2;
    ops->close(p.end[0], TRANSPORT_BROKEN);
    if (write(CHILD_FD, "closed", 6) != 6) return 2;
    for (;;)
        pause();
}

static void wait_for_byte(void *arg)
{
    char byte;
    (void)arg;
    if (write(CHILD_FD, "b", 1) != 1 || read(CHILD_FD, &byte, 1) != 1) _exit(2);
}
static void leave(void *arg)
{
    (void)arg;
    _exit(0);
}

/* Dials until it is refused; who should come never does. One registration that fails, by the way, changes
 * what is offered from then on. */
static int child_tries(void)
{
    uint32_t tries = 0;
    alarm(CHILD_S * 4);
    fake_nccl_knobs()->init_hangs = 1;
    for (;; tries++) {
        struct transport *t;
        struct offer o;
        if (open_end(&t, true) != OK) return 2;
        enum err e = make_offer(t, &o);
        if (e == OK && join_alone(t, true) != OK) return 3;
        ops->close(t, TRANSPORT_BROKEN);
        while (nccl_held_count() > 0)
            usleep(500);
        if (e == OK && tries < 2u * NCCL_IDS_PENDING_MAX) continue;
        if (fake_nccl_ids() != NCCL_IDS_PENDING_MAX || tries != NCCL_IDS_PENDING_MAX) return 4;
        return e == ERR_UNSUPPORTED && strstr(err_text(), "start this node again") ? 0 : 5;
    }
}

/* NCCL reads its own files when it is first asked for something, and sets the environment by them. */
static int child_is_told_late(void)
{
    struct pair p = {0};
    struct offer o;
    alarm(CHILD_S);
    fake_knobs()->devices = 2;
    if (open_end(&p.end[0], true) != OK || make_offer(p.end[0], &o) != OK) return 2;
    setenv("NCCL_COMM_BLOCKING", "1", 1);
    if (join_alone(p.end[0], true) != ERR_UNSUPPORTED) return 3;
    close_pair(&p, TRANSPORT_BROKEN);
    return 0;
}

/* The first try fails to register and says so, the second one does without. */
static int child_cannot_register(void)
{
    struct pair p;
    alarm(CHILD_S);
    fake_knobs()->devices = 2;
    fake_nccl_knobs()->fail_call = "ncclCommRegister";
    fake_nccl_knobs()->fail_at = 1;
    if (open_pair(&p) != OK || join_pair(&p) == OK) return 2;
    if (!strstr(err_text(), "registering the slots")) return 3;
    close_pair(&p, TRANSPORT_BROKEN);
    if (whole_life(&p) != OK) return 4;
    close_pair(&p, TRANSPORT_DRAINED);
    return cudaPeekAtLastError() == cudaSuccess ? 0 : 5;
}

/* What it closes has its memory freed when the device is done with other work, which lasts for longer than
 * an abort may. */
static void wait_long(void *arg)
{
    (void)arg;
    usleep(150000);
}
static void forget_nothing(void *arg)
{
    (void)arg;
}
static int child_frees(void)
{
    struct transport *t;
    cudaStream_t stream;
    alarm(CHILD_S);
    setenv("TANDEM_ABORT_MS", "50", 1);
    fake_knobs()->free_waits = true;
    fake_nccl_knobs()->register_unsupported = 1; /* cudaFree then */
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return 2;
    if (open_end(&t, true) != OK) return 3;
    fake_enqueue(stream, "other", wait_long, forget_nothing, NULL);
    ops->close(t, TRANSPORT_BROKEN);
    while (nccl_held_count() > 0)
        usleep(500);
    return 0;
}

/* Takes down what returns when it is told to. */
static int child_waits(void)
{
    struct reaper_work work = {.run = wait_for_byte, .done = leave};
    alarm(CHILD_S);
    if (setenv("TANDEM_ABORT_MS", "200", 1) != 0) return 2;
    reaper_start(&work);
    for (;;)
        pause();
}

/* Ends while a communicator is taken down. */
static int child_exits(void)
{
    struct pair p;
    alarm(CHILD_S);
    fake_knobs()->devices = 2;
    if (open_pair(&p) != OK || join_pair(&p) != OK) return 2;
    ops->close(p.end[0], TRANSPORT_DRAINED);
    ops->close(p.end[1], TRANSPORT_DRAINED);
    exit(0);
}

static pid_t start_child(const char *role, int *fd)
{
    int both[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, both), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(both[1], CHILD_FD);
        dup2(CHILD_FD, STDERR_FILENO);
        unsetenv("TANDEM_TEST");
        execl("/proc/self/exe", "nccl_transport_test", role, (char *)NULL);
        _exit(127);
    }
    close(both[1]);
    *fd = both[0];
    return child;
}

/* What the child says until it closes its end. */
static void read_all(int fd, char *text, size_t size)
{
    size_t used = 0;
    ssize_t n;
    while (used < size - 1 && (n = read(fd, text + used, size - 1 - used)) > 0)
        used += (size_t)n;
    text[used] = '\0';
    close(fd);
}

static void a_peer_that_is_killed_leaves_an_operation_that_is_aborted(void **state)
{
    (void)state;
    for (uint32_t loud = 0; loud < 2; loud++) {
        struct offer offer;
        struct pair p = {0};
        uint32_t slot;
        int fd, status;
        char byte = 1;
        start(NULL);
        fake_nccl_knobs()->loud_death = loud;
        pid_t child = start_child("accepts", &fd);
        assert_ok(open_end(&p.end[0], true));
        assert_ok(make_offer(p.end[0], &offer));
        assert_int_equal(write(fd, offer.bytes, offer.size), offer.size);
        assert_ok(join_alone(p.end[0], true));
        enum err e;
        while ((e = ops->joined(p.end[0])) == ERR_AGAIN)
            wait_for(&p);
        assert_ok(e);
        assert_ok(ops->begin(p.end[0], 0, 1000));
        while ((e = ops->ended(p.end[0], &slot)) == ERR_AGAIN)
            wait_for(&p);
        assert_ok(e);
        while (byte != 0) /* before it, the lines that the child logs */
            assert_int_equal(read(fd, &byte, 1), 1);
        assert_ok(ops->begin(p.end[0], 1, 1000));
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        close(fd);
        while ((e = ops->ended(p.end[0], &slot)) == ERR_AGAIN && loud)
            wait_for(&p);
        assert_int_equal(e, loud ? ERR_PEER : ERR_AGAIN);
        assert_int_equal(fake_nccl_moving(), 1);
        close_pair(&p, TRANSPORT_BROKEN);
        assert_int_equal(fake_nccl_moving(), 0);
        assert_int_equal(finish(NULL), 0);
    }
}

static void an_abort_that_hangs_ends_the_process(void **state)
{
    char said[2000];
    int fd, status;
    (void)state;
    pid_t child = start_child("hangs", &fd);
    read_all(fd, said, sizeof said);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), REAPER_EXIT);
    assert_non_null(strstr(said, "closed"));
    assert_non_null(strstr(said, "link_abort_hangs peer=d0"));
}

static void a_process_that_was_stopped_has_not_waited(void **state)
{
    int fd, status;
    char byte;
    (void)state;
    pid_t child = start_child("waits", &fd);
    assert_int_equal(read(fd, &byte, 1), 1);
    kill(child, SIGSTOP);
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    assert_true(WIFSTOPPED(status));
    usleep(300000); /* longer than it may take */
    assert_int_equal(write(fd, "", 1), 1);
    kill(child, SIGCONT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(fd);
}

/* These change what the process does from then on. */
static void in_a_process_of_its_own(const char *role)
{
    char said[2000];
    int fd, status;
    pid_t child = start_child(role, &fd);
    while (read(fd, said, sizeof said) > 0)
        continue;
    close(fd);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}
static void tries_that_come_to_nothing_have_an_end(void **state)
{
    (void)state;
    in_a_process_of_its_own("tries");
}
static void nccls_own_files_make_no_call_wait(void **state)
{
    (void)state;
    in_a_process_of_its_own("told_late");
}
static void a_registration_that_fails_is_done_without(void **state)
{
    (void)state;
    in_a_process_of_its_own("cannot_register");
}

static void memory_that_waits_for_other_links_is_waited_for(void **state)
{
    (void)state;
    in_a_process_of_its_own("frees");
}

static void a_process_that_exits_waits_for_what_is_taken_down(void **state)
{
    char said[2000];
    int fd, status;
    (void)state;
    pid_t child = start_child("exits", &fd);
    read_all(fd, said, sizeof said);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_null(strstr(said, "fault"));
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "accepts") == 0) return child_accepts();
    if (argc > 1 && strcmp(argv[1], "hangs") == 0) return child_hangs();
    if (argc > 1 && strcmp(argv[1], "waits") == 0) return child_waits();
    if (argc > 1 && strcmp(argv[1], "exits") == 0) return child_exits();
    if (argc > 1 && strcmp(argv[1], "frees") == 0) return child_frees();
    if (argc > 1 && strcmp(argv[1], "tries") == 0) return child_tries();
    if (argc > 1 && strcmp(argv[1], "told_late") == 0) return child_is_told_late();
    if (argc > 1 && strcmp(argv[1], "cannot_register") == 0) return child_cannot_register();
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, finish)
    const struct CMUnitTest tests[] = {
        TEST(bytes_are_there_when_their_operation_has_ended),
        TEST(several_operations_end_in_the_order_of_begin),
        TEST(every_call_that_fails_is_told),
        TEST(what_can_be_done_without_is_done_without),
        TEST(memory_that_is_short_is_told),
        TEST(an_environment_that_makes_calls_wait_is_refused),
        TEST(the_interface_that_is_told_is_the_one),
        TEST(an_offer_that_is_none_is_refused),
        TEST(slots_are_registered_by_both_or_by_none),
        TEST(two_ranks_on_one_gpu_are_refused_for_good),
        TEST(memory_that_waits_for_other_links_is_waited_for),
        TEST(tries_that_come_to_nothing_have_an_end),
        TEST(nccls_own_files_make_no_call_wait),
        TEST(a_registration_that_fails_is_done_without),
        TEST(memory_is_taken_on_a_thread_that_nobody_waits_for),
        TEST(a_slow_launch_costs_few_looks),
        TEST(slots_are_freed_when_the_abort_has_returned),
        TEST(what_never_connects_can_be_closed),
        TEST(what_is_taken_down_counts_until_its_memory_is_free),
        TEST(pairs_used_in_different_orders_stand_still),
        TEST(a_peer_that_is_killed_leaves_an_operation_that_is_aborted),
        TEST(an_abort_that_hangs_ends_the_process),
        TEST(a_process_that_was_stopped_has_not_waited),
        TEST(a_process_that_exits_waits_for_what_is_taken_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
