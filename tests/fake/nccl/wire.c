/* Between the two processes of a communicator: a Unix socket of an abstract name, which is the unique
 * id. Rank 0 is the side that made the id and listens. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/fake/nccl/inside.h"

enum { MAGIC = 0x4c43434e, ADDRESS_BYTES = sizeof(sa_family_t) + 1 + 40 };

/* The name is the first 40 bytes of the id. */
static void address_of(struct sockaddr_un *a, const ncclUniqueId *id)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(a->sun_path + 1, id->internal, ADDRESS_BYTES - sizeof(sa_family_t) - 1);
}

ncclResult_t fake_nccl_listen(ncclUniqueId *id)
{
    struct sockaddr_un a;
    uint64_t random;
    if (getrandom(&random, sizeof random, 0) != sizeof random) return ncclSystemError;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "fake-nccl-%d-%016llx", (int)getpid(),
             (unsigned long long)random);
    struct fake_listener *l = calloc(1, sizeof *l);
    if (!l) return ncclSystemError;
    *l = (struct fake_listener){.next = fake_nccl.listeners, .id = *id};
    address_of(&a, id);
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0 || bind(l->fd, (struct sockaddr *)&a, ADDRESS_BYTES) != 0 ||
        listen(l->fd, 4) != 0) {
        if (l->fd >= 0) close(l->fd);
        free(l);
        return ncclSystemError;
    }
    fake_nccl.listeners = l;
    fake_nccl.ids_count++;
    return ncclSuccess;
}

/* --- waiting --- */

/* False: stopped. fd -1: only that, or the time. */
static bool wait_for(struct ncclComm *comm, int fd, short events, int ms)
{
    struct pollfd p[2] = {{.fd = comm->wake_fd, .events = POLLIN}, {.fd = fd, .events = events}};
    while (poll(p, 2, ms) < 0)
        if (errno != EINTR) abort();
    return p[0].revents == 0;
}

void fake_nccl_sleep(struct ncclComm *comm, uint32_t ms)
{
    if (ms > 0) wait_for(comm, -1, 0, ms == UINT32_MAX ? -1 : (int)ms);
}

/* The peer has gone: kernels spin until they are aborted. */
static bool lost(struct ncclComm *comm)
{
    pthread_mutex_lock(&fake_nccl.lock);
    if (fake_nccl.knobs.loud_death) comm->state = ncclRemoteError;
    pthread_mutex_unlock(&fake_nccl.lock);
    wait_for(comm, -1, 0, -1);
    return false;
}

bool fake_nccl_put(struct ncclComm *comm, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size > 0) {
        if (!wait_for(comm, comm->fd, POLLOUT, -1)) return false;
        ssize_t n = send(comm->fd, at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n < 0) return lost(comm);
        at += n;
        size -= (size_t)n;
    }
    return true;
}

bool fake_nccl_get(struct ncclComm *comm, void *bytes, size_t size)
{
    char *at = bytes;
    while (size > 0) {
        if (!wait_for(comm, comm->fd, POLLIN, -1)) return false;
        ssize_t n = recv(comm->fd, at, size, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n <= 0) return lost(comm);
        at += n;
        size -= (size_t)n;
    }
    return true;
}

bool fake_nccl_exchange(struct ncclComm *comm, const struct fake_meeting *mine,
                        struct fake_meeting *theirs)
{
    static const char *const name[] = {"nothing", "send", "receive", "first operation", "finalize"};
    struct fake_meeting out = *mine;
    out.magic = MAGIC;
    if (!fake_nccl_put(comm, &out, sizeof out)) return false;
    if (!fake_nccl_get(comm, theirs, sizeof *theirs)) return false;
    bool fits = mine->mark == FAKE_SEND      ? theirs->mark == FAKE_RECEIVE
                : mine->mark == FAKE_RECEIVE ? theirs->mark == FAKE_SEND
                                             : theirs->mark == mine->mark;
    if (theirs->magic == MAGIC && fits && theirs->number == mine->number &&
        theirs->bytes == mine->bytes && theirs->registered == mine->registered)
        return true;
    fake_nccl_fault("rank %d: %s %llu of %llu%s bytes meets %s %llu of %llu%s bytes", comm->rank,
                    name[mine->mark], (unsigned long long)mine->number,
                    (unsigned long long)mine->bytes, mine->registered ? " registered" : "",
                    theirs->mark <= FAKE_FINAL ? name[theirs->mark] : "rubbish",
                    (unsigned long long)theirs->number, (unsigned long long)theirs->bytes,
                    theirs->registered ? " registered" : "");
    wait_for(comm, -1, 0, -1);
    return false;
}

/* --- meeting --- */

static int listener_of(const ncclUniqueId *id)
{
    int fd = -1;
    pthread_mutex_lock(&fake_nccl.lock);
    for (struct fake_listener **at = &fake_nccl.listeners; *at; at = &(*at)->next) {
        struct fake_listener *l = *at;
        if (memcmp(&l->id, id, sizeof *id) != 0) continue;
        fd = l->fd;
        *at = l->next;
        free(l);
        break;
    }
    pthread_mutex_unlock(&fake_nccl.lock);
    return fd;
}

static ncclResult_t meet_as_listener(struct ncclComm *comm)
{
    int fd = listener_of(&comm->id);
    if (fd < 0) {
        fake_nccl_say("init: rank 0 is not in the process that made the id");
        return ncclInvalidUsage;
    }
    while (comm->fd < 0 && wait_for(comm, fd, POLLIN, -1))
        comm->fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    close(fd);
    return comm->fd < 0 ? ncclInProgress : ncclSuccess;
}

/* Whoever listens may be late, or gone: it is tried until somebody stops it. */
static ncclResult_t meet_as_caller(struct ncclComm *comm)
{
    struct sockaddr_un a;
    address_of(&a, &comm->id);
    comm->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (comm->fd < 0) return ncclSystemError;
    while (connect(comm->fd, (struct sockaddr *)&a, ADDRESS_BYTES) != 0)
        if (!wait_for(comm, -1, 0, 20)) return ncclInProgress;
    return ncclSuccess;
}

/* What tells GPUs apart: the host as NCCL sees it, and the device there. */
struct place {
    char host[64];
    int device;
};

static struct place place_of(const struct ncclComm *comm)
{
    struct place p = {.device = comm->device};
    const char *told = getenv("NCCL_HOSTID");
    if (told)
        snprintf(p.host, sizeof p.host, "%s", told);
    else
        gethostname(p.host, sizeof p.host - 1);
    return p;
}

ncclResult_t fake_nccl_meet(struct ncclComm *comm)
{
    struct fake_meeting met, mine = {.mark = FAKE_WARM, .number = UINT64_MAX};
    struct place theirs, ours = place_of(comm);
    ncclResult_t r = comm->rank == 0 ? meet_as_listener(comm) : meet_as_caller(comm);
    if (r != ncclSuccess) return r;
    if (!fake_nccl_exchange(comm, &mine, &met)) return ncclInProgress;
    pthread_mutex_lock(&fake_nccl.lock);
    bool same_gpu = fake_nccl.knobs.same_gpu;
    if (comm->rank == 0) fake_nccl.ids_count--;
    pthread_mutex_unlock(&fake_nccl.lock);
    if (!fake_nccl_put(comm, &ours, sizeof ours) || !fake_nccl_get(comm, &theirs, sizeof theirs))
        return ncclInProgress;
    if (same_gpu || memcmp(&ours, &theirs, sizeof ours) != 0) return ncclSuccess;
    fake_nccl_say("Duplicate GPU detected : rank %d and rank %d both on CUDA device %d", comm->rank,
                  1 - comm->rank, comm->device);
    return ncclInvalidUsage;
}
