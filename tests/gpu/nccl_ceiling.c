/* What NCCL carries from one process to another at most: ncclSend and ncclRecv of pieces, one after the
 * other, with nothing around them. A program of its own, since it does not start where NCCL is missing.
 * JSON last.
 *
 *     nccl_ceiling [--devices P,D] [--kib N] [--pieces N] [--rounds N] */
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdbool.h>
#include <time.h>

#include "common/clock.h"
#include "tests/bench/figures.h"
#include "tests/gpu/pair.h"

struct rank {
    const struct pair *p;
    ncclComm_t comm;
    cudaStream_t stream;
    void *memory;
};

static void must(const struct pair *p, cudaError_t e, const char *what)
{
    if (e != cudaSuccess) pair_fail(p, what, cudaGetErrorString(e));
}
#define MUST(call) must(p, call, #call)

/* Until NCCL has done what it answered "in progress" to. */
static void finish(struct rank *r, ncclResult_t result, const char *what)
{
    while (result == ncclInProgress) {
        ncclResult_t asked = ncclCommGetAsyncError(r->comm, &result);
        if (asked != ncclSuccess) result = asked;
        if (result == ncclInProgress) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    if (result != ncclSuccess) pair_fail(r->p, what, ncclGetErrorString(result));
}

static void join(struct rank *r, const struct pair *p, ncclUniqueId id, int number)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    *r = (struct rank){.p = p};
    MUST(cudaSetDevice((int)p->device));
    MUST(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking));
    MUST(cudaMalloc(&r->memory, p->options->piece_bytes));
    finish(r, ncclCommInitRankConfig(&r->comm, 2, id, number, &config), "ncclCommInitRankConfig");
}

static void round_of(struct rank *r, bool sends)
{
    const struct pair *p = r->p;
    for (uint32_t i = 0; i < p->options->pieces; i++)
        if (sends)
            finish(r, ncclSend(r->memory, p->options->piece_bytes, ncclInt8, 1, r->comm, r->stream),
                   "ncclSend");
        else
            finish(r, ncclRecv(r->memory, p->options->piece_bytes, ncclInt8, 0, r->comm, r->stream),
                   "ncclRecv");
    MUST(cudaStreamSynchronize(r->stream));
}

static void leave(struct rank *r)
{
    const struct pair *p = r->p;
    finish(r, ncclCommFinalize(r->comm), "ncclCommFinalize");
    ncclCommDestroy(r->comm);
    MUST(cudaFree(r->memory));
}

static double nccl_send(const struct pair *p)
{
    struct rank r;
    ncclUniqueId id;
    double best = 0;
    if (ncclGetUniqueId(&id) != ncclSuccess) pair_fail(p, "ncclGetUniqueId", "failed");
    pair_say(p, &id, sizeof id);
    join(&r, p, id, 0);
    for (uint32_t i = 0; i <= p->options->rounds; i++) { /* the first one connects */
        uint64_t began_ns = clock_now_ns();
        round_of(&r, true);
        double rate = pair_rate(p, began_ns);
        if (i > 0 && rate > best) best = rate;
    }
    leave(&r);
    return best;
}

static void nccl_receive(const struct pair *p)
{
    struct rank r;
    ncclUniqueId id;
    pair_hear(p, &id, sizeof id);
    join(&r, p, id, 1);
    for (uint32_t i = 0; i <= p->options->rounds; i++)
        round_of(&r, false);
    leave(&r);
}

int main(int argc, char **argv)
{
    const struct pair_options o = pair_arguments(argc, argv);
    pair_measure("nccl", &o, nccl_send, nccl_receive);
    figures_end();
    return 0;
}
