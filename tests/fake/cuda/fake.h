/* fake: what the kernel emulator and the stand-in CUDA runtime know of each other, and the knobs that
 * tests turn. Together they are libraries that the CUDA backend links in place of the real ones, on
 * any machine (docs: tests/fake/cuda/README.md).
 *
 *     fake_knobs()->fail_call = "cudaMalloc"; fake_knobs()->fail_at = 3;   // the third one fails
 *
 * Rules: the runtime gives every stream a thread that runs its work in order; device memory is host
 * memory between guard pages that kernels and copies may touch and nobody else looks at. The emulator
 * runs one grid on the calling thread. */
#ifndef TANDEM_FAKE_CUDA_FAKE_H
#define TANDEM_FAKE_CUDA_FAKE_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void fake_work_fn(void *arg);

/* --- the runtime's side --- */

/* Puts work on a stream; if the stream is being captured, into the graph, whose launches then run it
 * any number of times. `release` is called once, when nothing can run it any more. Any error of the
 * arguments is left for cudaPeekAtLastError. */
void fake_enqueue(cudaStream_t stream, const char *name, fake_work_fn *run, fake_work_fn *release,
                  void *arg);
/* Called by work that found a fault (an emulated kernel out of bounds, say): the device is sick from
 * then on, every call returns cudaErrorIllegalAddress (sticky), `text` is printed to stderr. */
void fake_fault(const char *text);
/* Where an address lies that a kernel must not touch, in words; false: nowhere near this runtime's
 * memory. Work may call it in a signal handler. */
bool fake_say_address(const void *at, char *text, size_t size);

/* Whether a piece of live device memory, this process's or another one's, reaches into the page of `at`. */
bool fake_is_device(const void *at);

struct fake_knobs {
    const char *fail_call; /* this function fails at its fail_at-th call (from 1), once */
    uint32_t fail_at;
    int fail_with;            /* cudaError_t; 0: cudaErrorUnknown, sticky */
    uint32_t stream_delay_us; /* every piece of work starts so much later; with a seed, 0 … twice */
    uint64_t device_bytes;    /* what cudaMemGetInfo calls total; 0: 1 GiB */
    uint64_t seed;            /* of fiber and stream order; 0: graphs run as they were recorded */
    uint32_t devices;         /* 0: one */
    const char *pci;          /* addresses of devices, "0000:17:00.0+0000:65:00.0"; NULL: made up */
    bool ipc_same_process;    /* a process may open its own handles, which no real one may */
    bool free_waits;          /* for all streams of the device: cudaFree, cudaIpcCloseMemHandle */
    uint32_t processor_shared_bytes; /* shared memory of a multiprocessor; 0: 228 KiB */
};
/* Read at first use from TANDEM_FAKE_CUDA="fail_call=…,fail_at=…,seed=…", so that processes of a
 * cluster can be told; tests in one process write to it, while no other thread calls. A launch counts
 * as a call of cudaLaunchKernel and of the kernel's name; cublasLt's functions have fail_with as
 * their cublasStatus_t. */
struct fake_knobs *fake_knobs(void);

/* Calls of this function wait until it is taken away (NULL), 5 s at most; other calls go on meanwhile. */
void fake_hold(const char *call);

/* Between tests of one process: waits for all work, destroys everything, forgets a sticky error and
 * the knobs. Returns how many streams, events, graphs and pieces of memory nobody had destroyed.
 * No other thread may be in a call. */
uint32_t fake_reset(void);

/* --- the emulator's side --- */

struct emulator_launch {
    const char *name;
    uint32_t grid[3], block[3];
    uint32_t shared_bytes;
    uint64_t seed;        /* the knob's when it was launched; from there on as a graph repeats it */
    fake_work_fn *thread; /* the kernel's body for one thread */
    void *arg;
};
/* Runs all blocks, each with its threads as fibers, in an order drawn from the seed. Faults (shared
 * memory out of bounds, threads that wait at different barriers, warp functions without all lanes)
 * go to fake_fault with kernel, block and thread. */
void emulator_run(const struct emulator_launch *launch);

#ifdef __cplusplus
}
#endif

#endif
