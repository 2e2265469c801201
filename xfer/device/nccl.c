/* An operation goes through three steps, since every call of a non-blocking communicator may answer
 * "in progress": it waits for the one before to be launched; NCCL launches it, on a thread of its own and
 * for the first one not before the peer is there too; it runs on the stream. Only when the launch is over
 * does work that is put on the stream come behind it: the host function that rings the bell. The bell's
 * count is the only word on what has ended, so that it never rings for something that is known already.
 *
 * The transport's fd holds that bell and a timer, for what nothing rings for: NCCL's state while it
 * connects or launches, and errors of the device and the network while an operation runs. */
#include "xfer/device/nccl.h"

#include <errno.h>
#include <nccl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "common/byte_order.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/plant.h"
#include "xfer/device/backoff.h"
#include "xfer/device/check.h"
#include "xfer/device/reaper.h"

enum {
    VERSION_MIN = 21900,
    HEAD_BYTES = 8, /* of an offer; the dialler's goes on with the id */
    OFFER_BYTES = HEAD_BYTES + NCCL_UNIQUE_ID_BYTES,
    SLOT_ALIGN = 4096,
    CTAS_MIN = 1, /* few: the multiprocessors are needed to compute */
    CTAS_MAX = 4,
    JOIN_POLL_NS = 1000000, /* also for what is set up */
    ERROR_POLL_NS = 100000000,
    FINALIZE_MS = 500, /* both sides do it at once; a peer that is late meets an abort, unharmed */
};

struct operation {
    uint32_t slot;
    size_t bytes;
};

struct nccl {
    struct transport base;
    struct reaper_work work;
    enum transport_end end;
    bool dialler;
    int device, fd, bell_fd, timer_fd;
    long timer_ns; /* what the timer is set to; 0: off */
    uint32_t slots_count;
    size_t slot_stride, memory_bytes;
    char *memory;
    bool memory_is_ncclmem;
    bool registers; /* as agreed: NCCL wants it of both ranks or of none */
    void *registration;
    ncclUniqueId id;
    bool id_pending; /* not known to have been used by both */
    ncclComm_t comm;
    cudaStream_t stream;
    struct operation ring[TRANSPORT_SLOTS_MAX];
    uint32_t first, count; /* begun and not told as ended */
    uint32_t launched;     /* of them: with the bell behind them */
    uint64_t rung;         /* of these: ended */
    bool launching;        /* the next one is NCCL's to launch */
    uint64_t launch_ns;    /* since then */
};

static atomic_uint held_count;        /* transports with memory */
static atomic_uint ids_pending;       /* unique ids that NCCL may still hold a thread for */
static atomic_bool registering_fails; /* here, as has turned out */

uint32_t nccl_held_count(void)
{
    return atomic_load(&held_count);
}

static struct nccl *of(const struct transport *t)
{
    return (struct nccl *)t;
}

/* --- NCCL's answers --- */

static enum err failed(const struct nccl *t, ncclResult_t r, const char *what)
{
    enum err e = r == ncclRemoteError    ? ERR_PEER
                 : r == ncclSystemError  ? ERR_IO
                 : r == ncclInvalidUsage ? ERR_UNSUPPORTED /* two ranks on one GPU, say */
                                         : ERR_DEVICE;
    const char *more = ncclGetLastError(t ? t->comm : NULL);
    return err_set(e, "nccl: %s: %s%s%.200s", what, ncclGetErrorString(r),
                   more && *more ? ": " : "", more ? more : "");
}

/* For calls that are done or under way when they return. */
static enum err check(const struct nccl *t, ncclResult_t r, const char *what)
{
    return r == ncclSuccess || r == ncclInProgress ? OK : failed(t, r, what);
}

/* ERR_AGAIN: what was called last is under way. */
static enum err look(const struct nccl *t, const char *what)
{
    ncclResult_t state = ncclSuccess;
    ncclResult_t r = ncclCommGetAsyncError(t->comm, &state);
    if (r != ncclSuccess) return failed(t, r, what);
    if (state == ncclInProgress) return ERR_AGAIN;
    return state == ncclSuccess ? OK : failed(t, state, what);
}

static bool is_on(const char *name)
{
    const char *value = getenv(name);
    return value && *value && strcmp(value, "0") != 0;
}

static enum err check_blocking(void)
{
    static const char *const names[] = {"NCCL_COMM_BLOCKING", "CUDA_LAUNCH_BLOCKING"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (is_on(names[i]))
            return err_set(ERR_UNSUPPORTED,
                           "nccl: %s is set: calls would wait for the peer; unset it", names[i]);
    return OK;
}

/* Before the first communicator, since NCCL reads its environment once. Threads of NCCL may be reading it
 * later, so it is written only if it has to be. */
static enum err check_process(const char *interface)
{
    static atomic_flag told = ATOMIC_FLAG_INIT;
    int version = 0;
    ncclResult_t r = ncclGetVersion(&version);
    if (r != ncclSuccess) return failed(NULL, r, "its version");
    if (version < VERSION_MIN)
        return err_set(ERR_UNSUPPORTED, "nccl: version code %d: NCCL 2.19 or later is needed",
                       version);
    enum err e = check_blocking();
    if (e != OK) return e;
    const char *chosen = getenv("NCCL_SOCKET_IFNAME");
    if (interface && *interface && (!chosen || strcmp(chosen, interface) != 0)) {
        setenv("NCCL_SOCKET_IFNAME", interface, 1);
        chosen = interface;
    }
    if (!atomic_flag_test_and_set(&told))
        log_info("nccl_begins", "version=%d interface=%s", version, chosen ? chosen : "any");
    return OK;
}

/* --- open --- */

static enum err watch_fd(int epoll_fd, int fd)
{
    struct epoll_event v = {.events = EPOLLIN};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &v) == 0) return OK;
    return err_set(ERR_IO, "nccl: epoll: %s", strerror(errno));
}

static enum err open_fds(struct nccl *t)
{
    enum err e;
    t->fd = epoll_create1(EPOLL_CLOEXEC);
    t->bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    t->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (t->fd < 0 || t->bell_fd < 0 || t->timer_fd < 0)
        return err_set(ERR_IO, "nccl: file descriptors: %s", strerror(errno));
    if ((e = watch_fd(t->fd, t->bell_fd)) != OK) return e;
    return watch_fd(t->fd, t->timer_fd);
}

static enum err set_timer(struct nccl *t, long ns)
{
    struct itimerspec i = {.it_value = {.tv_nsec = ns}, .it_interval = {.tv_nsec = ns}};
    if (ns == t->timer_ns) return OK;
    if (timerfd_settime(t->timer_fd, 0, &i, NULL) != 0)
        return err_set(ERR_IO, "nccl: a timer: %s", strerror(errno));
    t->timer_ns = ns;
    return OK;
}

static void drain_fds(struct nccl *t)
{
    uint64_t count;
    if (read(t->bell_fd, &count, sizeof count) == sizeof count) t->rung += count;
    if (t->timer_ns > 0 && read(t->timer_fd, &count, sizeof count) < 0 && errno != EAGAIN)
        log_debug("nccl_timer", "error=\"%s\"", strerror(errno));
}

/* NCCL's own allocation can be registered with the network and with NVLink; not all systems offer it. */
static enum err open_memory(struct nccl *t)
{
    void *memory = NULL;
    ncclResult_t r = ncclMemAlloc(&memory, t->memory_bytes);
    t->memory_is_ncclmem = r == ncclSuccess && memory;
    if (t->memory_is_ncclmem) {
        t->memory = memory;
        return OK;
    }
    cudaGetLastError();
    log_debug("nccl_mem_alloc", "result=\"%s\" instead=cudaMalloc", ncclGetErrorString(r));
    enum err e = device_check(cudaMalloc(&memory, t->memory_bytes), "staging slots");
    if (e == OK) t->memory = memory;
    return e;
}

/* Ahead of what computes, whose blocks would else have to end before a transfer starts. */
static enum err open_stream(struct nccl *t)
{
    int least = 0, greatest = 0;
    enum err e =
        device_check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities of streams");
    if (e == OK)
        e = device_check(cudaStreamCreateWithPriority(&t->stream, cudaStreamNonBlocking, greatest),
                         "a stream");
    return e;
}

static enum err set_up(void *arg);
static void take_down(void *arg);
static void forget(void *arg);
static void nccl_close(struct transport *transport, enum transport_end end);

static enum err nccl_open(struct transport **transport, const struct transport_options *o)
{
    enum err e;
    *transport = NULL;
    if (o->slots_count == 0 || o->slots_count > TRANSPORT_SLOTS_MAX || o->slot_bytes == 0)
        return err_set(ERR_INVALID, "nccl: %u slots of %u bytes", o->slots_count, o->slot_bytes);
    if ((e = check_process(o->interface)) != OK) return e;
    if (o->links_max > 0 && atomic_load(&held_count) >= o->links_max)
        return err_set(ERR_FULL,
                       "nccl: %u links hold memory, those that are being aborted included",
                       o->links_max);
    struct nccl *t = mem_new(sizeof *t);
    if (!t) return ERR_MEMORY;
    size_t stride = ((size_t)o->slot_bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
    *t = (struct nccl){.base.ops = &transport_nccl,
                       .work = {.set_up = set_up, .run = take_down, .done = forget, .arg = t},
                       .dialler = o->dialler,
                       .device = (int)o->device_index,
                       .fd = -1,
                       .bell_fd = -1,
                       .timer_fd = -1,
                       .slots_count = o->slots_count,
                       .slot_stride = stride,
                       .memory_bytes = stride * o->slots_count};
    snprintf(t->work.peer, sizeof t->work.peer, "%s", o->peer ? o->peer : "unknown");
    atomic_fetch_add(&held_count, 1);
    if ((e = open_fds(t)) != OK || (e = set_timer(t, JOIN_POLL_NS)) != OK) {
        nccl_close(&t->base, TRANSPORT_BROKEN);
        return e;
    }
    reaper_set_up(&t->work);
    *transport = &t->base;
    return OK;
}

/* --- connecting --- */

static bool would_register(const struct nccl *t)
{
    const char *set = getenv("NCCL_LOCAL_REGISTER");
    return t->memory_is_ncclmem && !atomic_load(&registering_fails) &&
           !(set && strcmp(set, "0") == 0);
}

/* Each id has a thread and a socket of NCCL's, in this process, until both ranks have come to it; if one
 * never does, for good. So there is an end to trying. */
static enum err take_id(struct nccl *t)
{
    if (atomic_load(&ids_pending) >= NCCL_IDS_PENDING_MAX && !PLANTED("ids_without_end"))
        return err_set(
            ERR_UNSUPPORTED,
            "nccl: %d tries to connect came to nothing, and NCCL keeps a thread for each: "
            "mend its network, then start this node again",
            NCCL_IDS_PENDING_MAX);
    ncclResult_t r = ncclGetUniqueId(&t->id);
    if (r != ncclSuccess) return failed(t, r, "a unique id");
    t->id_pending = true;
    atomic_fetch_add(&ids_pending, 1);
    return OK;
}

static void id_used(struct nccl *t)
{
    if (t->id_pending) atomic_fetch_sub(&ids_pending, 1);
    t->id_pending = false;
}

/* On the reaper's thread: each of these may take milliseconds, or wait for the device. */
static enum err set_up(void *arg)
{
    struct nccl *t = arg;
    enum err e;
    if ((e = device_check(cudaSetDevice(t->device), "the device")) != OK) return e;
    if ((e = open_stream(t)) != OK) return e;
    if ((e = open_memory(t)) != OK) return e;
    return t->dialler ? take_id(t) : OK;
}

static enum err nccl_opened(struct transport *transport, uint8_t bytes[TRANSPORT_OFFER_MAX],
                            size_t *size)
{
    struct nccl *t = of(transport);
    int version = 0;
    enum err e;
    drain_fds(t);
    if ((e = reaper_looked(&t->work)) != OK) return e;
    ncclResult_t r = ncclGetVersion(&version);
    if (r != ncclSuccess) return failed(t, r, "its version");
    t->registers = would_register(t);
    le32_put(bytes, (uint32_t)version);
    le32_put(bytes + 4, t->registers);
    if (t->dialler) memcpy(bytes + HEAD_BYTES, t->id.internal, NCCL_UNIQUE_ID_BYTES);
    *size = t->dialler ? OFFER_BYTES : HEAD_BYTES;
    return set_timer(t, 0);
}

static enum err take_offer(struct nccl *t, const uint8_t *bytes, size_t size)
{
    size_t wanted = t->dialler ? HEAD_BYTES : OFFER_BYTES;
    int ours = 0;
    if (size != wanted)
        return err_set(ERR_FORMAT, "nccl: an offer of %zu bytes, it has %zu", size, wanted);
    uint32_t theirs = le32_get(bytes), registers = le32_get(bytes + 4);
    if (registers > 1) return err_set(ERR_FORMAT, "nccl: an offer with %u for a truth", registers);
    ncclResult_t r = ncclGetVersion(&ours);
    if (r != ncclSuccess) return failed(t, r, "its version");
    if (theirs != (uint32_t)ours)
        return err_set(ERR_UNSUPPORTED,
                       "nccl: the peer has NCCL of version code %u, this side %d: both need the "
                       "same",
                       theirs, ours);
    if (!PLANTED("registered_by_one")) t->registers &= registers == 1;
    if (!t->dialler) memcpy(t->id.internal, bytes + HEAD_BYTES, NCCL_UNIQUE_ID_BYTES);
    return OK;
}

static enum err nccl_join(struct transport *transport, const uint8_t *bytes, size_t size)
{
    struct nccl *t = of(transport);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    enum err e;
    if ((e = take_offer(t, bytes, size)) != OK) return e;
    if ((e = check_blocking()) != OK) return e; /* NCCL has read its own files meanwhile */
    if ((e = device_check(cudaSetDevice(t->device), "the device")) != OK) return e;
    config.blocking = 0;
    config.cgaClusterSize = 0;
    config.minCTAs = CTAS_MIN;
    config.maxCTAs = CTAS_MAX;
    ncclResult_t r = ncclCommInitRankConfig(&t->comm, 2, t->id, t->dialler ? 0 : 1, &config);
    if ((e = check(t, r, "a communicator")) != OK) return e;
    return set_timer(t, JOIN_POLL_NS);
}

static enum err nccl_joined(struct transport *transport)
{
    struct nccl *t = of(transport);
    enum err e;
    drain_fds(t);
    e = look(t, "connecting");
    if (e == OK || e == ERR_UNSUPPORTED) id_used(t); /* what is refused was compared by both */
    if (e != OK) return e;
    if ((e = device_check(cudaSetDevice(t->device), "the device")) != OK) return e;
    if (!t->registers) return set_timer(t, 0); /* NCCL copies by way of its own buffers */
    ncclResult_t r = ncclCommRegister(t->comm, t->memory, t->memory_bytes, &t->registration);
    if (r == ncclSuccess) return set_timer(t, 0);
    t->registration = NULL;
    atomic_store(&registering_fails, true); /* the next try is one without */
    return failed(t, r, "registering the slots");
}

static int nccl_fd(const struct transport *transport)
{
    return of(transport)->fd;
}

static void *nccl_slot(const struct transport *transport, uint32_t i)
{
    const struct nccl *t = of(transport);
    return t->memory + i * t->slot_stride;
}

/* --- operations --- */

static struct operation *at(struct nccl *t, uint32_t i)
{
    return &t->ring[(t->first + i) % TRANSPORT_SLOTS_MAX];
}

/* On a thread of CUDA's, which may call neither CUDA nor NCCL. */
static void ring_bell(void *arg)
{
    const struct nccl *t = arg;
    const uint64_t one = 1;
    if (write(t->bell_fd, &one, sizeof one) < 0) /* full: it is readable as it is */
        return;
}

static enum err launch(struct nccl *t, const struct operation *o)
{
    char *slot = nccl_slot(&t->base, o->slot);
    ncclResult_t r = t->dialler ? ncclSend(slot, o->bytes, ncclUint8, 1, t->comm, t->stream)
                                : ncclRecv(slot, o->bytes, ncclUint8, 0, t->comm, t->stream);
    return check(t, r, t->dialler ? "a send" : "a receive");
}

/* Whether NCCL has launched what it was given; ERR_AGAIN: the timer says when to look again. */
static enum err look_at_launch(struct nccl *t)
{
    for (;;) {
        enum err e = look(t, "launching a transfer");
        if (e == ERR_AGAIN && PLANTED("bell_before_launch")) return OK;
        if (e != ERR_AGAIN) return e;
        uint64_t again_ns = PLANTED("launch_polled_fast")
                                ? 50 * NS_PER_US
                                : backoff_ns(clock_now_ns() - t->launch_ns);
        if (again_ns == 0) {
            sched_yield(); /* to NCCL's thread, where there are few cores */
            continue;
        }
        e = set_timer(t, (long)again_ns);
        return e == OK ? ERR_AGAIN : e;
    }
}

/* Takes each operation as far as it goes. */
static enum err advance(struct nccl *t)
{
    enum err e;
    while (t->launched < t->count) {
        const struct operation *o = at(t, t->launched);
        if (!t->launching) {
            if ((e = launch(t, o)) != OK) return e;
            t->launching = true;
            t->launch_ns = clock_now_ns();
        }
        if ((e = look_at_launch(t)) != OK) return e == ERR_AGAIN ? OK : e;
        e = device_check(cudaLaunchHostFunc(t->stream, ring_bell, t), "the end of a transfer");
        if (e != OK) return e;
        t->launching = false;
        t->launched++;
    }
    return set_timer(t, t->count > 0 ? ERROR_POLL_NS : 0);
}

static enum err nccl_begin(struct transport *transport, uint32_t slot, size_t bytes)
{
    struct nccl *t = of(transport);
    enum err e;
    CHECK(slot < t->slots_count && bytes > 0 && bytes <= t->slot_stride);
    CHECK(t->count < TRANSPORT_SLOTS_MAX);
    if ((e = device_check(cudaSetDevice(t->device), "the device")) != OK) return e;
    struct operation *o = at(t, t->count);
    o->slot = slot;
    o->bytes = bytes;
    t->count++;
    return advance(t);
}

/* What would keep the bell from ringing. */
static enum err look_at_all(struct nccl *t)
{
    cudaError_t c = cudaStreamQuery(t->stream);
    if (c == cudaErrorNotReady) cudaGetLastError();
    enum err e = c == cudaErrorNotReady ? OK : device_check(c, "a transfer");
    return e == OK ? look(t, "a transfer") : e;
}

static enum err nccl_ended(struct transport *transport, uint32_t *slot)
{
    struct nccl *t = of(transport);
    enum err e;
    drain_fds(t);
    if (t->count == 0) return ERR_AGAIN;
    if ((e = device_check(cudaSetDevice(t->device), "the device")) != OK) return e;
    if ((e = advance(t)) != OK) return e;
    if (t->launched == 0) return ERR_AGAIN;
    if (t->rung == 0 && !PLANTED("end_not_waited_for")) {
        e = look_at_all(t);
        return e == OK ? ERR_AGAIN : e;
    }
    *slot = at(t, 0)->slot;
    t->rung--;
    t->first = (t->first + 1) % TRANSPORT_SLOTS_MAX;
    t->count--;
    t->launched--;
    return advance(t);
}

/* --- the end, on the reaper's thread --- */

/* Until NCCL has done what it was told; false: it failed, or takes too long. */
static bool wait_done(const struct nccl *t)
{
    uint64_t until_ns = clock_now_ns() + FINALIZE_MS * 1000000ull;
    enum err e;
    while ((e = look(t, "finalizing")) == ERR_AGAIN && clock_now_ns() < until_ns)
        usleep(1000);
    return e == OK;
}

static bool finalize(struct nccl *t)
{
    if (t->registration && ncclCommDeregister(t->comm, t->registration) != ncclSuccess)
        log_debug("nccl_deregister", "peer=%s", t->work.peer);
    ncclResult_t r = ncclCommFinalize(t->comm);
    return (r == ncclSuccess || r == ncclInProgress) && wait_done(t);
}

static void end_communicator(struct nccl *t)
{
    if (!t->comm) return;
    if (t->end == TRANSPORT_DRAINED && t->count == 0 && finalize(t)) {
        ncclResult_t r = ncclCommDestroy(t->comm);
        if (r == ncclSuccess || r == ncclInProgress) return;
        log_warn("link_destroy_failed", "peer=%s result=\"%s\"", t->work.peer,
                 ncclGetErrorString(r));
        return; /* half taken down: not to be touched again */
    }
    ncclResult_t r = ncclCommAbort(t->comm);
    if (r != ncclSuccess && r != ncclInProgress)
        log_warn("link_abort_failed", "peer=%s result=\"%s\"", t->work.peer, ncclGetErrorString(r));
}

static void free_memory(struct nccl *t)
{
    if (!t->memory) return;
    if (t->memory_is_ncclmem)
        ncclMemFree(t->memory);
    else
        cudaFree(t->memory);
    t->memory = NULL;
}

/* What of it fails is left to the device: a sick one takes nothing back. */
static void take_down(void *arg)
{
    struct nccl *t = arg;
    cudaSetDevice(t->device);
    if (PLANTED("slots_freed_before_abort")) free_memory(t);
    end_communicator(t);
    if (t->stream) { /* no kernel writes to the slots, no bell is rung behind this */
        cudaStreamSynchronize(t->stream);
        cudaStreamDestroy(t->stream);
    }
    reaper_frees(&t->work);
    free_memory(t);
    cudaGetLastError();
}

static void close_fd(int fd)
{
    if (fd >= 0) close(fd);
}

static void forget(void *arg)
{
    struct nccl *t = arg;
    close_fd(t->fd);
    close_fd(t->bell_fd);
    close_fd(t->timer_fd);
    mem_free(t);
    atomic_fetch_sub(&held_count, 1);
}

static void nccl_close(struct transport *transport, enum transport_end end)
{
    struct nccl *t = of(transport);
    if (!t) return;
    t->end = end;
    reaper_start(&t->work);
}

const struct transport_ops transport_nccl = {
    .name = "nccl",
    .posted = true,
    .dialler_offers = true,
    .acceptor_offers = true,
    .open = nccl_open,
    .opened = nccl_opened,
    .join = nccl_join,
    .joined = nccl_joined,
    .fd = nccl_fd,
    .slot = nccl_slot,
    .begin = nccl_begin,
    .ended = nccl_ended,
    .close = nccl_close,
};
