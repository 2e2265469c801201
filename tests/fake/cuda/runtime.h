/* runtime: what the files of the stand-in CUDA runtime share; for them and cublaslt.c only.
 *
 *     cudaError_t cudaSomething(…)
 *     {
 *         cudaError_t e = fake_enter("cudaSomething", FAKE_UNSAFE);
 *         if (e == cudaSuccess) e = …;                      // under the lock
 *         return fake_leave(e);
 *     }
 *
 * Rules: one lock for everything; it is held from fake_enter to fake_leave, by a stream's thread
 * while it looks at its queue, and never while work runs. Handles and freed addresses stay known
 * until fake_reset, so that a stale one is found and not mistaken for a newer one. Memory is plain
 * calloc: common/mem.h counts the allocations of what is tested. */
#ifndef TANDEM_FAKE_CUDA_RUNTIME_H
#define TANDEM_FAKE_CUDA_RUNTIME_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/fake/cuda/fake.h"

enum {
    FAKE_DEVICES_MAX = 16,
    FAKE_PAGE = 4096,
    FAKE_ALIGN = 256,
    FAKE_POISON = 0xff, /* NaN as bf16, fp16 and fp32; out of range as an index */
};

/* --- the state --- */

struct fake_capture;
struct fake_state {
    pthread_mutex_t lock;
    pthread_cond_t finished; /* a piece of work ended: for those who wait on streams and events */
    uint32_t waiting_count;
    struct fake_knobs knobs;
    bool knobs_read;
    const char *fail_seen; /* the knobs for which fail_calls were counted */
    uint32_t fail_seen_at, fail_calls;
    cudaError_t sick;  /* sticky; cudaSuccess: healthy */
    uint64_t epoch;    /* of fake_reset: what threads remember of an earlier one is void */
    uint64_t random;   /* state of fake_random */
    uint64_t captures; /* ids of captures so far */
    pid_t threads_of;  /* the process that has the streams' threads */
    struct fake_handle *handles;
    cudaStream_t default_stream[FAKE_DEVICES_MAX]; /* NULL: no call has used it */
    struct fake_capture *capture;                  /* those under way */
    uint64_t used_bytes[FAKE_DEVICES_MAX];
};
extern struct fake_state fake;

/* What a thread has of its own. */
struct fake_thread {
    uint64_t epoch;
    cudaError_t last;
    int device;
    enum cudaStreamCaptureMode capture_mode;
    bool in_host_function;
    const char *work; /* the name of what runs on this stream thread */
};
struct fake_thread *fake_thread(void);

enum {
    FAKE_UNSAFE = 1, /* refused while a capture forbids it, and spoils that capture */
    /* refused by any capture on the thread's device, whoever's and of whatever mode */
    FAKE_WHOLE_DEVICE = 2,
    FAKE_NO_STREAM = 4, /* by captures of streams that calls without one would wait for */
};
/* Takes the lock; any error is the call's result. */
cudaError_t fake_enter(const char *call, unsigned rules);
/* Keeps an error as this thread's last, gives the lock back. */
cudaError_t fake_leave(cudaError_t e);
/* Whether the knobs want this call to fail; the error they want. Lock held. */
cudaError_t fake_knob_error(const char *call);
/* A line on stderr; with the lock, a fault as fake_fault makes it. Returns the sticky error. */
void fake_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
cudaError_t fake_fault_locked(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t fake_random(void); /* lock held */
void *fake_zeroed(size_t size);
int fake_devices_count(void);
uint32_t fake_processor_shared_bytes(void);
bool fake_own_handles(void);
bool fake_free_waits(void);
uint64_t fake_device_bytes(void);
const char *fake_devices_pci(void);

/* --- handles --- */

enum fake_kind {
    FAKE_STREAM = 0x7a51,
    FAKE_EVENT,
    FAKE_GRAPH,
    FAKE_EXEC,
    FAKE_BLAS, /* cublaslt.c */
    FAKE_BLAS_DESC,
    FAKE_BLAS_LAYOUT,
    FAKE_BLAS_PREFERENCE,
};
struct fake_handle {
    enum fake_kind kind;
    bool live;
    struct fake_handle *next;
};
void *fake_handle_new(enum fake_kind kind, size_t size);
/* cudaErrorInvalidResourceHandle for NULL or another kind; a destroyed one is a fault. */
cudaError_t fake_handle_check(const void *handle, enum fake_kind kind, const char *call);

/* --- work --- */

struct fake_task {
    uint32_t refs; /* by a queue, a graph, an executable graph; under the lock */
    const char *name;
    fake_work_fn *run, *release;
    void *arg;
};
struct fake_task *fake_task_new(const char *name, fake_work_fn *run, fake_work_fn *release,
                                void *arg);
void fake_task_drop(struct fake_task *task);

/* One recording of an event: done when its stream has come to it. */
struct fake_moment {
    uint32_t refs;
    bool done;
    uint64_t at_ns;
};
void fake_moment_drop(struct fake_moment *m);

/* A set of node numbers. */
struct fake_nodes {
    uint32_t *at;
    uint32_t count;
};
void fake_nodes_add(struct fake_nodes *to, const struct fake_nodes *more);
void fake_nodes_clear(struct fake_nodes *n);

struct fake_work; /* runtime_stream.c */
struct CUstream_st {
    struct fake_handle handle;
    int device;
    bool blocking; /* made without cudaStreamNonBlocking: calls without a stream wait for it */
    pthread_t thread;
    pthread_cond_t arrived;
    struct fake_work *first, **end;
    uint64_t pushed, finished;
    bool closing;
    struct fake_capture *capture; /* NULL: work is run, not recorded */
    struct fake_nodes tail;       /* nodes that the next recorded one comes after */
};
struct CUevent_st {
    struct fake_handle handle;
    int device;
    unsigned flags;
    struct fake_moment *moment; /* the newest; NULL: never recorded */
    uint64_t capture;           /* id of the capture that recorded it last; 0: none */
    struct fake_nodes captured;
};

/* Until all that has been given to the device's streams is over. */
void fake_device_wait(int device);
/* The default stream is an error: whatever used it would wait where it should not. */
cudaError_t fake_stream_check(cudaStream_t stream, const char *call);
/* Behind the work that is there, or into the capture. Takes over the caller's reference. */
cudaError_t fake_stream_push(cudaStream_t stream, struct fake_task *task);
/* The stream goes on when the moment is done; a moment that is done when the stream comes there. */
void fake_stream_push_wait(cudaStream_t stream, struct fake_moment *m);
struct fake_moment *fake_stream_push_record(cudaStream_t stream);
/* Until all that was pushed so far has ended. Gives the lock up meanwhile. */
void fake_stream_wait(cudaStream_t stream);
/* That of the thread's device for calls without a stream; NULL: there is no thread for it. */
cudaStream_t fake_default_stream(void);
void fake_default_stream_wait(void); /* as cudaFree does, among all that it waits for */
/* Destroys every stream when its work has ended. Gives the lock up meanwhile. */
void fake_streams_stop(void);
void fake_event_fini(cudaEvent_t event);

/* --- captures (runtime_graph.c) --- */

/* cudaSuccess, or what a call that `rules` calls unsafe returns now; it ends the capture. */
cudaError_t fake_capture_forbids(unsigned rules);
/* Work for a captured stream becomes a node. Takes over the caller's reference. */
cudaError_t fake_capture_push(cudaStream_t stream, struct fake_task *task);
cudaError_t fake_capture_record(cudaStream_t stream, cudaEvent_t event);
cudaError_t fake_capture_wait(cudaStream_t stream, cudaEvent_t event);
/* A call that no captured stream or event can have: its capture is invalid from now on. */
cudaError_t fake_capture_spoil(struct fake_capture *capture, cudaError_t e);
struct fake_capture *fake_capture_of(uint64_t id);
void fake_graph_fini(struct fake_handle *handle);
void fake_captures_end(void);

/* --- memory (runtime_memory.c) --- */

enum fake_memory_kind { FAKE_DEVICE, FAKE_PINNED, FAKE_REGISTERED };
struct fake_memory {
    uintptr_t at;
    size_t size; /* as asked for */
    enum fake_memory_kind kind;
    int device;
    bool live;
    uint64_t id;
    char *map; /* with its guard pages; NULL: registered */
    size_t map_size;
    int shared_file; /* of a piece that other processes may open, or of theirs; 0: none */
    bool opened;     /* another process's */
};
/* The memory that holds the address, freed memory too; NULL: ordinary host memory. */
const struct fake_memory *fake_memory_find(const void *p);
/* One live piece of device memory that holds all the bytes? Checked when work is queued, … */
cudaError_t fake_memory_check(const char *call, const void *p, size_t bytes, bool device);
/* … and when it runs: a piece freed meanwhile is a fault. False: do not touch it. */
bool fake_memory_alive(const char *work, const void *p, size_t bytes);
/* The piece that begins there and is live; NULL: none does. */
struct fake_memory *fake_memory_at(const void *p);
/* An address range with guard pages around `inner` bytes of this file, which the piece takes over. */
cudaError_t fake_memory_map(struct fake_memory *m, size_t inner, int file);
cudaError_t fake_memory_unmap(struct fake_memory *m, const char *call);
/* Whether another process has this piece open. */
bool fake_memory_lent(const struct fake_memory *m);
/* Frees all of it; returns how many pieces were live. */
uint32_t fake_memory_reset(void);
/* A stream's thread has a stack of its own on which a fault can be told. */
void *fake_memory_watch_thread(void);
void fake_memory_unwatch_thread(void *stack);

#endif
