/* The transport of two processes on one host: CUDA IPC. The acceptor's slots are device memory that the
 * dialler maps, and gathers its payloads into; so nothing is posted, and a frame has arrived when it is
 * announced. The acceptor's pool is never mapped: what comes late from a stopped process lands in a slot.
 *
 *     acceptor                                          dialler
 *       slots, their handle, an abstract socket
 *       offer {handle, name} ------------------------->   connects to the socket
 *       accepts, sends a byte, is joined -------------->   maps the slots, is joined
 *       close: frees the slots when the dialler has       close: unmaps, then sends a byte
 *       let them go
 *
 * Freeing memory that another process has mapped is not defined, and a stopped dialler may still write.
 * So slots whose dialler has not let them go are kept, by `lent` below, and looked at whenever a link is
 * opened or closed. The connection ends with the process whatever becomes of it, and needs no common process
 * ids; what else the process had is taken down in no particular order, hence the grace. */
#include <cuda_runtime_api.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/list.h"
#include "common/mem.h"
#include "common/plant.h"
#include "xfer/device/ipc.h"
#include "xfer/device/reaper.h"
#include "xfer/same_user.h"

/* CUDA carves small allocations out of larger blocks, and a handle shares the block: with whole ones the
 * dialler sees nothing else. */
enum { LENT_MAX = 64, SLOT_ALIGN = 256, WHOLE_BYTES = 2 << 20, BACKLOG = 16 };
#define GRACE_NS NS_PER_S /* from the end of a connection that ended without a word */

struct ipc_offer {
    cudaIpcMemHandle_t handle;
    uint64_t name[2];
};
_Static_assert(sizeof(struct ipc_offer) <= TRANSPORT_OFFER_MAX, "an offer holds it");

struct ipc {
    struct transport base;
    struct reaper_work work;
    struct transport_options options;
    struct list_link lent;
    int listener, connection; /* negative: none */
    uint64_t name[2];
    cudaIpcMemHandle_t handle; /* of the acceptor's slots */
    uint64_t gone_ns;          /* acceptor: the connection has ended; 0: not yet */
    char *slots;               /* the acceptor's own, the dialler's view of them */
    bool maps;                 /* dialler: the slots are being mapped, or are */
    bool begun;
    uint32_t slot;
};

/* Closed by the acceptor, and perhaps still mapped by the dialler. The link thread's. */
static struct list_link lent;
static uint32_t lent_count;
static atomic_uint held_count; /* all of them, and what is being taken down */

uint32_t ipc_held_count(void)
{
    return atomic_load(&held_count);
}

/* From one slot to the next, whatever was agreed with the other side: kernels read whole vectors. */
static size_t slot_stride(const struct ipc *t)
{
    return ((size_t)t->options.slot_bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
}

static struct ipc *ipc(const struct transport *t)
{
    return (struct ipc *)t;
}

/* What no further try would change: no way between the devices, or namespaces between the processes. */
static bool is_for_good(cudaError_t c)
{
    return c == cudaErrorNotSupported || c == cudaErrorPeerAccessUnsupported ||
           c == cudaErrorTooManyPeers || c == cudaErrorDeviceUninitialized ||
           c == cudaErrorInvalidDevice || c == cudaErrorNotPermitted;
}

static enum err check(cudaError_t c, const char *what)
{
    if (c == cudaSuccess) return OK;
    cudaGetLastError();
    enum err e = c == cudaErrorMemoryAllocation ? ERR_MEMORY
                 : is_for_good(c)               ? ERR_UNSUPPORTED
                                                : ERR_DEVICE;
    return err_set(e, "ipc link: %s: %s: %s", what, cudaGetErrorName(c), cudaGetErrorString(c));
}

static socklen_t socket_name(struct sockaddr_un *un, const uint64_t name[2])
{
    *un = (struct sockaddr_un){.sun_family = AF_UNIX};
    int n = snprintf(un->sun_path + 1, sizeof un->sun_path - 1, "tandem-ipc-%016llx%016llx",
                     (unsigned long long)name[0], (unsigned long long)name[1]);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

/* --- the acceptor's memory --- */

/* ERR_AGAIN: the dialler has not come yet. Anybody on the host can read the socket's name and call: who is
 * of another user is sent away. */
static enum err take_connection(struct ipc *t)
{
    while (t->connection < 0) {
        int fd = accept4(t->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED
                       ? ERR_AGAIN
                       : err_set(ERR_IO, "ipc link: %s", strerror(errno));
        if (link_same_user(fd, "ipc") == OK || PLANTED("ipc_takes_any_caller"))
            t->connection = fd;
        else
            close(fd);
    }
    if (send(t->connection, "!", 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1) return OK;
    return err_set(ERR_PEER, "ipc link: %s", strerror(errno));
}

/* No process maps the slots any more, or ever did: who was not accepted had no byte. */
static bool is_back(struct ipc *t)
{
    char byte;
    uint64_t now_ns = clock_now_ns();
    if (t->connection < 0) return true;
    if (t->gone_ns == 0) {
        ssize_t n = recv(t->connection, &byte, 1, MSG_DONTWAIT);
        if (n > 0) return true;
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
        t->gone_ns = now_ns;
    }
    return now_ns - t->gone_ns >= GRACE_NS;
}

static void unmap(struct ipc *t)
{
    bool unmapped = !t->slots || cudaIpcCloseMemHandle(t->slots) == cudaSuccess;
    if (unmapped && t->connection >= 0)
        (void)!send(t->connection, ".", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* On the reaper's thread, since both wait for whatever the device is doing. */
static void give_back(void *arg)
{
    struct ipc *t = arg;
    reaper_frees(&t->work);
    if (cudaSetDevice((int)t->options.device_index) == cudaSuccess) {
        if (t->options.dialler)
            unmap(t);
        else if (t->slots)
            cudaFree(t->slots);
    }
    cudaGetLastError();
}

static void forget(void *arg)
{
    struct ipc *t = arg;
    if (t->listener >= 0) close(t->listener);
    if (t->connection >= 0) close(t->connection);
    mem_free(t);
    atomic_fetch_sub(&held_count, 1);
}

static void take_down(struct ipc *t)
{
    if (!PLANTED("ipc_frees_on_the_link_thread") && !PLANTED("ipc_slots_freed_early")) {
        reaper_start(&t->work);
        return;
    }
    give_back(t);
    forget(t);
}

static void sweep(void)
{
    if (!lent.next) list_init(&lent);
    for (struct list_link *l = lent.next, *next; l != &lent; l = next) {
        struct ipc *t = list_member(l, struct ipc, lent);
        next = l->next;
        if (!is_back(t)) continue;
        list_remove(l);
        lent_count--;
        take_down(t);
    }
}

static enum err listen_for_dialler(struct ipc *t)
{
    struct sockaddr_un un;
    if (getrandom(t->name, sizeof t->name, 0) != (ssize_t)sizeof t->name)
        return err_set(ERR_IO, "getrandom: %s", strerror(errno));
    t->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (t->listener < 0) return err_set(ERR_IO, "socket: %s", strerror(errno));
    socklen_t size = socket_name(&un, t->name);
    if (bind(t->listener, (struct sockaddr *)&un, size) != 0 || listen(t->listener, BACKLOG) != 0)
        return err_set(ERR_IO, "ipc link: %s", strerror(errno));
    return OK;
}

/* On the reaper's thread, as mapping them: both may wait for whatever the device is doing. */
static enum err make_slots(void *arg)
{
    struct ipc *t = arg;
    size_t bytes = t->options.slots_count * slot_stride(t);
    if (!PLANTED("ipc_slots_beside_others"))
        bytes = (bytes + WHOLE_BYTES - 1) / WHOLE_BYTES * WHOLE_BYTES;
    enum err e = check(cudaSetDevice((int)t->options.device_index), "the device");
    if (e == OK) e = check(cudaMalloc((void **)&t->slots, bytes), "memory for slots");
    if (e == OK) e = check(cudaIpcGetMemHandle(&t->handle, t->slots), "a handle of the slots");
    return e;
}

static enum err map_slots(void *arg)
{
    struct ipc *t = arg;
    enum err e = check(cudaSetDevice((int)t->options.device_index), "the device");
    if (e != OK) return e;
    return check(
        cudaIpcOpenMemHandle((void **)&t->slots, t->handle, cudaIpcMemLazyEnablePeerAccess),
        "mapping the other side's slots");
}

static void ipc_close(struct transport *transport, enum transport_end end)
{
    struct ipc *t = ipc(transport);
    (void)end; /* the connection tells more than what the two have agreed on */
    if (!t) return;
    sweep();
    if (t->options.dialler || is_back(t) || PLANTED("ipc_slots_freed_early")) {
        take_down(t);
        return;
    }
    list_push_back(&lent, &t->lent);
    lent_count++;
}

/* --- both sides --- */

static enum err ipc_open(struct transport **out, const struct transport_options *options)
{
    struct ipc *t = mem_new(sizeof *t);
    enum err e = OK;
    *out = NULL;
    sweep();
    if (!t) return ERR_MEMORY;
    *t = (struct ipc){.base.ops = &transport_ipc,
                      .work = {.set_up = options->dialler ? map_slots : make_slots,
                               .run = give_back,
                               .done = forget,
                               .arg = t},
                      .options = *options,
                      .listener = -1,
                      .connection = -1};
    list_init(&t->lent);
    snprintf(t->work.peer, sizeof t->work.peer, "%s", options->peer ? options->peer : "unknown");
    atomic_fetch_add(&held_count, 1);
    if (!options->dialler && lent_count >= LENT_MAX)
        e = err_set(ERR_FULL, "ipc link: the slots of %d closed links are still mapped by others",
                    LENT_MAX);
    if (!options->dialler && e == OK) e = listen_for_dialler(t);
    if (e != OK) {
        take_down(t);
        return e;
    }
    if (!options->dialler) reaper_set_up(&t->work);
    *out = &t->base;
    return OK;
}

static enum err ipc_opened(struct transport *transport, uint8_t bytes[TRANSPORT_OFFER_MAX],
                           size_t *size)
{
    struct ipc *t = ipc(transport);
    enum err e = reaper_looked(&t->work);
    if (e != OK) return e;
    struct ipc_offer offer = {.handle = t->handle, .name = {t->name[0], t->name[1]}};
    memcpy(bytes, &offer, sizeof offer);
    *size = sizeof offer;
    return OK;
}

static enum err ipc_join(struct transport *transport, const uint8_t *bytes, size_t size)
{
    struct ipc *t = ipc(transport);
    struct ipc_offer offer;
    struct sockaddr_un un;
    if (!t->options.dialler) return OK; /* it is the dialler's to come */
    if (size != sizeof offer) return err_set(ERR_FORMAT, "ipc link: an offer of %zu bytes", size);
    memcpy(&offer, bytes, sizeof offer);
    t->connection = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (t->connection < 0) return err_set(ERR_IO, "socket: %s", strerror(errno));
    socklen_t name = socket_name(&un, offer.name);
    if (connect(t->connection, (struct sockaddr *)&un, name) != 0)
        return err_set(ERR_PEER, "ipc link: connect: %s", strerror(errno));
    t->handle = offer.handle;
    return link_same_user(t->connection, "ipc");
}

/* The dialler may map when the acceptor has told that it is there. */
static enum err may_map(struct ipc *t)
{
    char byte;
    ssize_t n = recv(t->connection, &byte, 1, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return ERR_AGAIN;
    return n == 1 ? OK : err_set(ERR_PEER, "ipc link: closed by the other side");
}

static enum err ipc_joined(struct transport *transport)
{
    struct ipc *t = ipc(transport);
    enum err e;
    if (!t->options.dialler) return take_connection(t);
    if (t->maps) return reaper_looked(&t->work);
    if ((e = may_map(t)) != OK) return e;
    t->maps = true;
    reaper_set_up(&t->work);
    return reaper_looked(&t->work);
}

static int ipc_fd(const struct transport *transport)
{
    (void)transport;
    return -1; /* it waits for its own memory, and for the dialler to come */
}

static void *ipc_slot(const struct transport *transport, uint32_t i)
{
    const struct ipc *t = ipc(transport);
    return t->slots + i * slot_stride(t);
}

static enum err ipc_begin(struct transport *transport, uint32_t slot, size_t bytes)
{
    struct ipc *t = ipc(transport);
    (void)bytes;
    t->begun = true;
    t->slot = slot;
    return OK;
}

static enum err ipc_ended(struct transport *transport, uint32_t *slot)
{
    struct ipc *t = ipc(transport);
    if (!t->begun) return ERR_AGAIN;
    t->begun = false;
    *slot = t->slot;
    return OK;
}

const struct transport_ops transport_ipc = {
    .name = "ipc",
    .acceptor_offers = true,
    .open = ipc_open,
    .opened = ipc_opened,
    .join = ipc_join,
    .joined = ipc_joined,
    .fd = ipc_fd,
    .slot = ipc_slot,
    .begin = ipc_begin,
    .ended = ipc_ended,
    .close = ipc_close,
};
