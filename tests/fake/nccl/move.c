/* Sends and receives of the stand-in NCCL, as work of streams that lasts until the other side's has
 * been there. */
#include <stdlib.h>
#include <string.h>

#include "tests/fake/cuda/runtime.h"
#include "tests/fake/nccl/inside.h"

enum { CHUNK_BYTES = 64 << 10 };

ncclResult_t fake_nccl_move_check(const struct fake_move *m)
{
    const char *call = m->mark == FAKE_SEND ? "ncclSend" : "ncclRecv";
    pthread_mutex_lock(&fake.lock);
    cudaError_t c = fake.sick;
    if (c == cudaSuccess) c = fake_memory_check(call, m->memory, m->bytes, true);
    if (c == cudaSuccess) c = fake_stream_check(m->stream, call);
    if (c == cudaSuccess && m->stream->device != m->comm->device) {
        fake_say("%s: the stream is of device %d, the communicator of %d", call, m->stream->device,
                 m->comm->device);
        c = cudaErrorInvalidResourceHandle;
    }
    pthread_mutex_unlock(&fake.lock);
    return c == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

struct fake_move *fake_nccl_move_new(const struct fake_move *wanted)
{
    struct fake_move *m = malloc(sizeof *m);
    if (!m) abort();
    *m = *wanted;
    m->number = m->comm->operations++;
    m->comm->refs++;
    m->comm->moving_count++;
    fake_nccl.moving_count++;
    return m;
}

/* --- on the stream --- */

/* One communicator of a device at a time, in no particular order. False: stopped. */
static bool take_turn(struct ncclComm *comm)
{
    struct ncclComm **turn = &fake_nccl.turn[comm->device % FAKE_NCCL_DEVICES_MAX];
    pthread_mutex_lock(&fake_nccl.lock);
    while (fake_nccl.knobs.one_at_a_time && *turn && !comm->stop)
        pthread_cond_wait(&fake_nccl.changed, &fake_nccl.lock);
    bool taken = !comm->stop;
    if (taken && fake_nccl.knobs.one_at_a_time) *turn = comm;
    pthread_mutex_unlock(&fake_nccl.lock);
    return taken;
}

static void give_turn(struct ncclComm *comm)
{
    struct ncclComm **turn = &fake_nccl.turn[comm->device % FAKE_NCCL_DEVICES_MAX];
    pthread_mutex_lock(&fake_nccl.lock);
    if (*turn == comm) *turn = NULL;
    pthread_cond_broadcast(&fake_nccl.changed);
    pthread_mutex_unlock(&fake_nccl.lock);
}

/* False: the memory was freed under the operation, which is said. */
static bool memory_is_there(const struct fake_move *m)
{
    pthread_mutex_lock(&fake.lock);
    bool there =
        fake_memory_alive(m->mark == FAKE_SEND ? "ncclSend" : "ncclRecv", m->memory, m->bytes);
    pthread_mutex_unlock(&fake.lock);
    return there;
}

/* By way of a buffer: whatever touches device memory faults as a kernel would, not as a system call. */
static void move_bytes(const struct fake_move *m)
{
    char *buffer = malloc(CHUNK_BYTES);
    if (!buffer) abort();
    for (size_t at = 0; at < m->bytes; at += CHUNK_BYTES) {
        size_t n = m->bytes - at < CHUNK_BYTES ? m->bytes - at : CHUNK_BYTES;
        if (m->mark == FAKE_SEND) memcpy(buffer, m->memory + at, n);
        if (m->mark == FAKE_SEND ? !fake_nccl_put(m->comm, buffer, n)
                                 : !fake_nccl_get(m->comm, buffer, n))
            break;
        if (m->mark == FAKE_RECEIVE) memcpy(m->memory + at, buffer, n);
    }
    free(buffer);
}

static bool is_registered(const struct fake_move *m)
{
    bool found = false;
    pthread_mutex_lock(&fake_nccl.lock);
    for (const struct fake_registration *g = m->comm->registrations; g && !found; g = g->next)
        found =
            m->memory >= (char *)g->memory && m->memory + m->bytes <= (char *)g->memory + g->size;
    pthread_mutex_unlock(&fake_nccl.lock);
    return found;
}

static void run(void *arg)
{
    struct fake_move *m = arg;
    struct fake_meeting theirs, mine = {.mark = m->mark,
                                        .number = m->number,
                                        .bytes = m->bytes,
                                        .registered = is_registered(m)};
    bool turn = take_turn(m->comm), met = turn && fake_nccl_exchange(m->comm, &mine, &theirs);
    if (memory_is_there(m) && met)
        move_bytes(m); /* the kernel may have begun before it was stopped */
    if (turn) give_turn(m->comm);
}

static void release(void *arg)
{
    struct fake_move *m = arg;
    pthread_mutex_lock(&fake_nccl.lock);
    m->comm->moving_count--;
    fake_nccl.moving_count--;
    fake_nccl_drop(m->comm);
    pthread_cond_broadcast(&fake_nccl.changed);
    pthread_mutex_unlock(&fake_nccl.lock);
    free(m);
}

ncclResult_t fake_nccl_move_launch(struct fake_move *m)
{
    int device = m->comm->device;
    if (cudaSetDevice(device) != cudaSuccess) {
        release(m);
        return ncclUnhandledCudaError;
    }
    cudaGetLastError();
    fake_enqueue(m->stream, "nccl", run, release, m);
    return cudaPeekAtLastError() == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
