/* Copies of the stand-in: each is a piece of work that reads its source when its stream comes to it.
 * Only a copy from pageable host memory takes the bytes at the call, and one to it waits. Neither
 * is so while a stream is captured: a node reads what is there when the graph runs. */
#include "tests/fake/cuda/runtime.h"

#include <stdlib.h>
#include <string.h>

struct copy {
    void *to;
    const void *from; /* NULL: `byte` everywhere */
    size_t size;
    int byte;
    void *staged; /* the bytes taken at the call, or NULL */
};

static void run_copy(void *arg)
{
    struct copy *c = arg;
    const char *name = fake_thread()->work;
    pthread_mutex_lock(&fake.lock);
    bool alive = fake_memory_alive(name, c->to, c->size) &&
                 (!c->from || c->staged || fake_memory_alive(name, c->from, c->size));
    pthread_mutex_unlock(&fake.lock);
    if (!alive) return;
    if (c->from)
        memmove(c->to, c->staged ? c->staged : c->from, c->size);
    else
        memset(c->to, c->byte, c->size);
}

static void release_copy(void *arg)
{
    struct copy *c = arg;
    free(c->staged);
    free(c);
}

static bool is_device(const void *p)
{
    const struct fake_memory *m = fake_memory_find(p);
    return m && m->kind == FAKE_DEVICE;
}

static cudaError_t check_copy(const char *call, const struct copy *c, enum cudaMemcpyKind kind)
{
    bool to = is_device(c->to), from = is_device(c->from);
    if (kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
    if (kind != cudaMemcpyDefault) {
        to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
        from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    }
    cudaError_t e = fake_memory_check(call, c->to, c->size, to);
    return e == cudaSuccess ? fake_memory_check(call, c->from, c->size, from) : e;
}

static cudaError_t push_copy(cudaStream_t stream, const char *name, const struct copy *copy)
{
    struct copy *c = fake_zeroed(sizeof *c);
    *c = *copy;
    bool live = !stream->capture;
    if (live && c->from && !fake_memory_find(c->from)) {
        c->staged = fake_zeroed(c->size);
        memcpy(c->staged, c->from, c->size);
    }
    bool waits = live && !fake_memory_find(c->to);
    cudaError_t e = fake_stream_push(stream, fake_task_new(name, run_copy, release_copy, c));
    if (e == cudaSuccess && waits) {
        fake_stream_wait(stream);
        e = fake.sick;
    }
    return e;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    static const char call[] = "cudaMemcpyAsync";
    struct copy c = {.to = to, .from = from, .size = size};
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess) e = check_copy(call, &c, kind);
    if (e == cudaSuccess && size > 0) e = push_copy(stream, call, &c);
    return fake_leave(e);
}

cudaError_t cudaMemsetAsync(void *to, int byte, size_t size, cudaStream_t stream)
{
    static const char call[] = "cudaMemsetAsync";
    struct copy c = {.to = to, .size = size, .byte = byte};
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess) e = fake_memory_check(call, to, size, true);
    if (e == cudaSuccess && size > 0) e = push_copy(stream, call, &c);
    return fake_leave(e);
}

/* The calls without a stream go in order on one of their own, whatever other streams do: those made as
 * non-blocking do not wait for it, nor it for them. As the real ones they return before device memory has
 * been written, unless that is from pinned memory; what they read from a device is there. */
static cudaError_t push_default(const char *name, const struct copy *c, bool is_done)
{
    cudaStream_t stream = fake_default_stream();
    if (!stream) return cudaErrorMemoryAllocation;
    cudaError_t e = push_copy(stream, name, c);
    if (e != cudaSuccess || !is_done) return e;
    fake_stream_wait(stream);
    return fake.sick;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
    static const char call[] = "cudaMemcpy";
    struct copy c = {.to = to, .from = from, .size = size};
    cudaError_t e = fake_enter(call, FAKE_UNSAFE | FAKE_NO_STREAM);
    if (e == cudaSuccess) e = check_copy(call, &c, kind);
    bool is_late = is_device(to) && (is_device(from) || !fake_memory_find(from));
    if (e == cudaSuccess && size > 0) e = push_default(call, &c, !is_late);
    return fake_leave(e);
}

cudaError_t cudaMemset(void *to, int byte, size_t size)
{
    static const char call[] = "cudaMemset";
    struct copy c = {.to = to, .size = size, .byte = byte};
    cudaError_t e = fake_enter(call, FAKE_UNSAFE | FAKE_NO_STREAM);
    if (e == cudaSuccess) e = fake_memory_check(call, to, size, true);
    if (e == cudaSuccess && size > 0) e = push_default(call, &c, false);
    return fake_leave(e);
}
