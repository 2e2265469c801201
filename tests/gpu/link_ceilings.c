/* What can be carried between two processes at most, for the links between nodes: the plain way of each,
 * with nothing around it (NCCL's: nccl_ceiling.c). JSON last.
 *
 *     link_ceilings [--devices P,D] [--kib N] [--pieces N] [--rounds N]
 *
 * shm is memcpy into memory that both map, tcp a stream over loopback, ipc copies from a device's memory into
 * what the other process has allocated on its own. Each piece has N KiB; the best round counts. */
#include <arpa/inet.h>
#include <cuda_runtime_api.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "tests/bench/figures.h"
#include "tests/gpu/pair.h"

/* One round to get warm. */
static double best_round(const struct pair *p, void round(const struct pair *p, void *ctx),
                         void *ctx)
{
    double best = 0;
    for (uint32_t i = 0; i <= p->options->rounds; i++) {
        uint64_t began_ns = clock_now_ns();
        round(p, ctx);
        double rate = pair_rate(p, began_ns);
        if (i > 0 && rate > best) best = rate;
    }
    return best;
}

static uint8_t *host_memory(const struct pair *p)
{
    uint8_t *memory = mem_aligned(p->options->piece_bytes, 4096);
    if (!memory) pair_fail(p, "memory", "none");
    memset(memory, 1, p->options->piece_bytes);
    return memory;
}

/* --- shm --- */

struct shm_memory {
    uint8_t *from, *to;
};

static void shm_round(const struct pair *p, void *ctx)
{
    struct shm_memory *m = ctx;
    for (uint32_t i = 0; i < p->options->pieces; i++)
        memcpy(m->to, m->from, p->options->piece_bytes);
}

static double shm_send(const struct pair *p)
{
    struct shm_memory m = {.from = host_memory(p)};
    m.to = mmap(NULL, p->options->piece_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                -1, 0);
    if (m.to == MAP_FAILED) pair_fail(p, "mmap", strerror(errno));
    return best_round(p, shm_round, &m);
}

static void shm_receive(const struct pair *p)
{
    (void)p;
}

/* --- tcp --- */

struct tcp_stream {
    int fd;
    uint8_t *memory;
};

static void tcp_round(const struct pair *p, void *ctx)
{
    struct tcp_stream *s = ctx;
    char all_there;
    for (uint32_t i = 0; i < p->options->pieces; i++)
        for (uint64_t at = 0; at < p->options->piece_bytes;) {
            ssize_t n = send(s->fd, s->memory + at, p->options->piece_bytes - at, MSG_NOSIGNAL);
            if (n <= 0) pair_fail(p, "send", strerror(errno));
            at += (uint64_t)n;
        }
    pair_hear(p, &all_there, 1);
}

static double tcp_send(const struct pair *p)
{
    struct tcp_stream s = {.fd = socket(AF_INET, SOCK_STREAM, 0), .memory = host_memory(p)};
    struct sockaddr_in to;
    pair_hear(p, &to, sizeof to);
    if (connect(s.fd, (struct sockaddr *)&to, sizeof to) != 0)
        pair_fail(p, "connect", strerror(errno));
    setsockopt(s.fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    return best_round(p, tcp_round, &s);
}

static void tcp_receive(const struct pair *p)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&here, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&here, &size) != 0)
        pair_fail(p, "listen", strerror(errno));
    pair_say(p, &here, sizeof here);
    int fd = accept(listener, NULL, NULL);
    uint8_t *memory = host_memory(p);
    uint64_t left = p->options->piece_bytes * p->options->pieces;
    for (uint64_t got = 0;;) {
        ssize_t n = recv(fd, memory, p->options->piece_bytes, 0);
        if (n <= 0) return;
        got += (uint64_t)n;
        if (got < left) continue;
        got -= left;
        pair_say(p, "1", 1);
    }
}

/* --- ipc --- */

struct ipc_copy {
    void *from, *to;
    cudaStream_t stream;
};

static void must(const struct pair *p, cudaError_t e, const char *what)
{
    if (e != cudaSuccess) pair_fail(p, what, cudaGetErrorString(e));
}
#define MUST(call) must(p, call, #call)

static void ipc_round(const struct pair *p, void *ctx)
{
    struct ipc_copy *c = ctx;
    for (uint32_t i = 0; i < p->options->pieces; i++)
        MUST(
            cudaMemcpyAsync(c->to, c->from, p->options->piece_bytes, cudaMemcpyDefault, c->stream));
    MUST(cudaStreamSynchronize(c->stream));
}

static double ipc_send(const struct pair *p)
{
    struct ipc_copy c;
    cudaIpcMemHandle_t handle;
    MUST(cudaSetDevice((int)p->device));
    MUST(cudaMalloc(&c.from, p->options->piece_bytes));
    MUST(cudaMemset(c.from, 1, p->options->piece_bytes));
    MUST(cudaStreamCreateWithFlags(&c.stream, cudaStreamNonBlocking));
    pair_hear(p, &handle, sizeof handle);
    MUST(cudaIpcOpenMemHandle(&c.to, handle, cudaIpcMemLazyEnablePeerAccess));
    double best = best_round(p, ipc_round, &c);
    MUST(cudaIpcCloseMemHandle(c.to));
    pair_say(p, "1", 1);
    return best;
}

static void ipc_receive(const struct pair *p)
{
    void *memory;
    char done;
    cudaIpcMemHandle_t handle;
    MUST(cudaSetDevice((int)p->device));
    size_t whole = 2 << 20; /* what a handle shares at least */
    MUST(cudaMalloc(&memory, (p->options->piece_bytes + whole - 1) / whole * whole));
    MUST(cudaIpcGetMemHandle(&handle, memory));
    pair_say(p, &handle, sizeof handle);
    pair_hear(p, &done, 1);
    MUST(cudaFree(memory));
}

int main(int argc, char **argv)
{
    const struct pair_options o = pair_arguments(argc, argv);
    pair_measure("shm", &o, shm_send, shm_receive);
    pair_measure("tcp", &o, tcp_send, tcp_receive);
    pair_measure("ipc", &o, ipc_send, ipc_receive);
    figures_end();
    return 0;
}
