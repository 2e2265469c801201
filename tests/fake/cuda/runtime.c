/* The state of the stand-in runtime: knobs, errors, handles, and what every call starts and ends
 * with. */
#include "tests/fake/cuda/runtime.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct fake_state fake = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .finished = PTHREAD_COND_INITIALIZER,
};

void fake_say(const char *format, ...)
{
    char text[512] = "fake cuda: ";
    size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, sizeof text - used - 1, format, args);
    va_end(args);
    used = strlen(text);
    text[used++] = '\n';
    if (write(STDERR_FILENO, text, used) < 0) /* one write: lines of processes do not mix */
        return;
}

void *fake_zeroed(size_t size)
{
    void *p = calloc(1, size ? size : 1);
    if (!p) {
        fake_say("the host has no memory left");
        abort();
    }
    return p;
}

struct fake_thread *fake_thread(void)
{
    static _Thread_local struct fake_thread t;
    uint64_t epoch = __atomic_load_n(&fake.epoch, __ATOMIC_ACQUIRE);
    if (t.epoch != epoch) t = (struct fake_thread){.epoch = epoch};
    return &t;
}

/* --- knobs --- */

static void set_knob(struct fake_knobs *k, const char *name, const char *value)
{
    uint64_t number = strtoull(value, NULL, 0);
    if (!strcmp(name, "fail_call"))
        k->fail_call = value;
    else if (!strcmp(name, "fail_at"))
        k->fail_at = (uint32_t)number;
    else if (!strcmp(name, "fail_with"))
        k->fail_with = (int)number;
    else if (!strcmp(name, "stream_delay_us"))
        k->stream_delay_us = (uint32_t)number;
    else if (!strcmp(name, "device_bytes"))
        k->device_bytes = number;
    else if (!strcmp(name, "seed"))
        k->seed = number;
    else if (!strcmp(name, "devices"))
        k->devices = (uint32_t)number;
    else if (!strcmp(name, "pci"))
        k->pci = value;
    else if (!strcmp(name, "ipc_same_process"))
        k->ipc_same_process = number != 0;
    else if (!strcmp(name, "free_waits"))
        k->free_waits = number != 0;
    else if (!strcmp(name, "processor_shared_bytes"))
        k->processor_shared_bytes = (uint32_t)number;
    else
        fake_say("TANDEM_FAKE_CUDA has no \"%s\"", name);
}

/* The text is kept for the life of the process: fail_call points into it. */
static void read_knobs(struct fake_knobs *k)
{
    static char text[512];
    const char *set = getenv("TANDEM_FAKE_CUDA");
    char *rest = NULL;
    snprintf(text, sizeof text, "%s", set ? set : "");
    for (char *part = strtok_r(text, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        char *value = strchr(part, '=');
        if (value) *value++ = '\0';
        set_knob(k, part, value ? value : "");
    }
}

static struct fake_knobs *knobs_locked(void)
{
    if (!fake.knobs_read) read_knobs(&fake.knobs);
    fake.knobs_read = true;
    return &fake.knobs;
}

struct fake_knobs *fake_knobs(void)
{
    pthread_mutex_lock(&fake.lock);
    struct fake_knobs *k = knobs_locked();
    pthread_mutex_unlock(&fake.lock);
    return k;
}

int fake_devices_count(void)
{
    uint32_t wanted = knobs_locked()->devices;
    if (wanted == 0) return 1;
    return (int)(wanted < FAKE_DEVICES_MAX ? wanted : FAKE_DEVICES_MAX);
}

const char *fake_devices_pci(void)
{
    return knobs_locked()->pci;
}

uint64_t fake_device_bytes(void)
{
    uint64_t bytes = knobs_locked()->device_bytes;
    return bytes ? bytes : 1ull << 30;
}

bool fake_free_waits(void)
{
    return knobs_locked()->free_waits;
}

bool fake_own_handles(void)
{
    return knobs_locked()->ipc_same_process;
}

uint32_t fake_processor_shared_bytes(void)
{
    uint32_t bytes = knobs_locked()->processor_shared_bytes;
    return bytes ? bytes : 228 << 10;
}

/* splitmix64 over the seed. */
uint64_t fake_random(void)
{
    uint64_t z = (fake.random += 0x9e3779b97f4a7c15ull) + knobs_locked()->seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* --- errors --- */

cudaError_t fake_fault_locked(const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fake_say("fault: %s", text);
    if (fake.sick == cudaSuccess) fake.sick = cudaErrorIllegalAddress;
    return fake.sick;
}

void fake_fault(const char *text)
{
    pthread_mutex_lock(&fake.lock);
    fake_fault_locked("%s", text);
    pthread_mutex_unlock(&fake.lock);
}

static bool is_sticky(cudaError_t e)
{
    switch (e) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorUnknown: return true;
    default: return false;
    }
}

cudaError_t fake_knob_error(const char *call)
{
    struct fake_knobs *k = knobs_locked();
    if (k->fail_call != fake.fail_seen || k->fail_at != fake.fail_seen_at) {
        fake.fail_seen = k->fail_call;
        fake.fail_seen_at = k->fail_at;
        fake.fail_calls = 0;
    }
    if (!k->fail_call || strcmp(k->fail_call, call) != 0) return cudaSuccess;
    if (++fake.fail_calls != k->fail_at) return cudaSuccess;
    cudaError_t e = k->fail_with ? (cudaError_t)k->fail_with : cudaErrorUnknown;
    k->fail_call = NULL;
    if (is_sticky(e)) fake.sick = e;
    return e;
}

static const char *_Atomic held;

void fake_hold(const char *call)
{
    atomic_store(&held, call);
}

static void wait_while_held(const char *call)
{
    enum { HELD_MS_MAX = 5000 };
    for (int i = 0; i < HELD_MS_MAX; i++) {
        const char *h = atomic_load(&held);
        if (!h || strcmp(h, call) != 0) return;
        usleep(1000);
    }
}

cudaError_t fake_enter(const char *call, unsigned rules)
{
    wait_while_held(call);
    pthread_mutex_lock(&fake.lock);
    if (fake_thread()->in_host_function) {
        fake_say("%s: called by a host function", call);
        return cudaErrorNotPermitted;
    }
    if (fake.sick != cudaSuccess) return fake.sick;
    cudaError_t e = fake_knob_error(call);
    if (e == cudaSuccess) e = fake_capture_forbids(rules);
    if (e == cudaErrorStreamCaptureUnsupported)
        fake_say("%s: not while a stream is captured", call);
    return e;
}

cudaError_t fake_leave(cudaError_t e)
{
    if (e != cudaSuccess) fake_thread()->last = e;
    pthread_mutex_unlock(&fake.lock);
    return e;
}

static cudaError_t last_error(bool forget)
{
    pthread_mutex_lock(&fake.lock);
    struct fake_thread *t = fake_thread();
    cudaError_t e = fake.sick != cudaSuccess ? fake.sick : t->last;
    if (forget) t->last = cudaSuccess;
    pthread_mutex_unlock(&fake.lock);
    return e;
}

cudaError_t cudaGetLastError(void)
{
    return last_error(true);
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error(false);
}

/* --- handles --- */

void *fake_handle_new(enum fake_kind kind, size_t size)
{
    struct fake_handle *h = fake_zeroed(size);
    *h = (struct fake_handle){.kind = kind, .live = true, .next = fake.handles};
    fake.handles = h;
    return h;
}

cudaError_t fake_handle_check(const void *handle, enum fake_kind kind, const char *call)
{
    static const char *const name[] = {
        "stream",        "event",
        "graph",         "executable graph",
        "blas handle",   "matmul descriptor",
        "matrix layout", "matmul preference",
    };
    const struct fake_handle *h = handle;
    if ((uintptr_t)handle < FAKE_PAGE || h->kind != kind) {
        fake_say("%s: no %s", call, name[kind - FAKE_STREAM]);
        return cudaErrorInvalidResourceHandle;
    }
    if (!h->live)
        return fake_fault_locked("%s: the %s was destroyed", call, name[kind - FAKE_STREAM]);
    return cudaSuccess;
}

static void handle_free(struct fake_handle *h)
{
    if (h->kind == FAKE_EVENT) fake_event_fini((cudaEvent_t)h);
    if (h->kind == FAKE_GRAPH || h->kind == FAKE_EXEC) fake_graph_fini(h);
    free(h);
}

uint32_t fake_reset(void)
{
    uint32_t left = 0;
    pthread_mutex_lock(&fake.lock);
    for (struct fake_handle *h = fake.handles; h; h = h->next)
        left += h->live;
    fake_captures_end();
    fake_streams_stop();
    for (struct fake_handle *h = fake.handles, *next; h; h = next) {
        next = h->next;
        handle_free(h);
    }
    left += fake_memory_reset();
    fake.handles = NULL;
    memset(fake.default_stream, 0, sizeof fake.default_stream);
    fake.sick = cudaSuccess;
    fake.random = 0;
    fake.fail_seen = NULL;
    fake.knobs = (struct fake_knobs){0};
    fake.knobs_read = false;
    __atomic_fetch_add(&fake.epoch, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&fake.lock);
    return left;
}

/* --- what errors are called --- */

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
#define ERROR(error, text)                                                                         \
    {                                                                                              \
        error, #error, text                                                                        \
    }
    ERROR(cudaSuccess, "no error"),
    ERROR(cudaErrorInvalidValue, "invalid argument"),
    ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ERROR(cudaErrorInitializationError, "initialization error"),
    ERROR(cudaErrorCudartUnloading, "driver shutting down"),
    ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR(cudaErrorInsufficientDriver, "the driver is older than the runtime wants"),
    ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR(cudaErrorDeviceUninitialized, "invalid device context"),
    ERROR(cudaErrorMapBufferObjectFailed, "mapping of buffer object failed"),
    ERROR(cudaErrorNoKernelImageForDevice, "no kernel image for this device"),
    ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR(cudaErrorIllegalState, "not allowed in this state"),
    ERROR(cudaErrorNotReady, "device not ready"),
    ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    ERROR(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    ERROR(cudaErrorHostMemoryAlreadyRegistered, "the memory is registered already"),
    ERROR(cudaErrorHostMemoryNotRegistered, "the memory is not registered"),
    ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR(cudaErrorPeerAccessUnsupported, "peer access is not supported between these two devices"),
    ERROR(cudaErrorTooManyPeers, "peer mapping resources exhausted"),
    ERROR(cudaErrorNotPermitted, "operation not permitted"),
    ERROR(cudaErrorNotSupported, "operation not supported"),
    ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR(cudaErrorStreamCaptureInvalidated, "the capture failed before"),
    ERROR(cudaErrorStreamCaptureMerge, "two captures would become one"),
    ERROR(cudaErrorStreamCaptureUnmatched, "not the stream where the capture began"),
    ERROR(cudaErrorStreamCaptureUnjoined, "a forked stream was not joined"),
    ERROR(cudaErrorStreamCaptureIsolation, "waits for work outside the capture"),
    ERROR(cudaErrorStreamCaptureImplicit, "the default stream would depend on the capture"),
    ERROR(cudaErrorCapturedEvent, "the event was recorded in a capture"),
    ERROR(cudaErrorStreamCaptureWrongThread, "the capture began in another thread"),
    ERROR(cudaErrorUnknown, "unknown error"),
#undef ERROR
};

const char *cudaGetErrorName(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (errors[i].error == error) return errors[i].name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (errors[i].error == error) return errors[i].text;
    return "unrecognized error code";
}
