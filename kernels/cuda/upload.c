#include "kernels/cuda/upload.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/plant.h"
#include "kernels/cuda/check.h"
#include "kernels/numbers.h"
#include "kernels/workers.h"

enum { BUFFERS = 2, AHEAD_PIECES = 4 };

/* A copying thread's own. */
struct lane {
    cudaStream_t stream;
    struct {
        unsigned char *bytes;
        cudaEvent_t copied; /* recorded behind the buffer's last copy */
    } buffer[BUFFERS];
    uint32_t next; /* buffer */
    enum err e;    /* its thread's first error, with its text: both go to the caller */
    char text[ERR_TEXT_MAX];
};

/* One upload_add. */
struct piecework {
    unsigned char *device;
    const unsigned char *source;
    enum dtype dtype, source_dtype;
    size_t count, piece_count; /* elements */
    size_t pieces;
    _Atomic size_t next;
};

struct upload {
    struct upload_options options;
    struct workers *workers;
    struct lane lane[UPLOAD_THREADS_MAX];
    struct piecework work;
    _Atomic bool failed;
    enum err e;
    char text[ERR_TEXT_MAX];
    uint64_t bytes_done, begun_ns, told_ns, told_bytes;
};

static enum err lane_open(struct lane *l, size_t buffer_bytes)
{
    enum err e = cuda_check(cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking),
                            "a stream for weights");
    for (int i = 0; i < BUFFERS && e == OK; i++) {
        e = cuda_check(
            cudaHostAlloc((void **)&l->buffer[i].bytes, buffer_bytes, cudaHostAllocDefault),
            "pinned memory for weights");
        if (e == OK)
            e = cuda_check(cudaEventCreateWithFlags(&l->buffer[i].copied, cudaEventDisableTiming),
                           "an event for weights");
    }
    return e;
}

static void lane_close(struct lane *l)
{
    if (l->stream && !PLANTED("lane_not_waited_for")) cudaStreamSynchronize(l->stream);
    for (int i = 0; i < BUFFERS; i++) {
        if (l->buffer[i].copied) cudaEventDestroy(l->buffer[i].copied);
        if (l->buffer[i].bytes) cudaFreeHost(l->buffer[i].bytes);
    }
    if (l->stream) cudaStreamDestroy(l->stream);
}

enum err upload_new(struct upload **out, const struct upload_options *options)
{
    enum err e;
    *out = NULL;
    CHECK(options->threads >= 1 && options->threads <= UPLOAD_THREADS_MAX);
    CHECK(options->buffer_bytes > 0 && options->buffer_bytes % 64 == 0);
    struct upload *u = mem_new(sizeof *u);
    if (!u) return ERR_MEMORY;
    u->options = *options;
    u->begun_ns = u->told_ns = clock_now_ns();
    if ((e = workers_new(&u->workers, options->threads, NULL)) != OK) goto fail;
    for (uint32_t i = 0; i < options->threads; i++)
        if ((e = lane_open(&u->lane[i], options->buffer_bytes)) != OK) goto fail;
    *out = u;
    return OK;
fail:
    upload_free(u);
    return e;
}

void upload_free(struct upload *u)
{
    if (!u) return;
    workers_free(u->workers);
    for (uint32_t i = 0; i < u->options.threads; i++)
        lane_close(&u->lane[i]);
    mem_free(u);
}

/* Element i of unaligned memory. */
static float load(const unsigned char *from, enum dtype dtype, size_t i)
{
    float f;
    uint16_t h;
    if (dtype == DTYPE_F32) {
        memcpy(&f, from + i * sizeof f, sizeof f);
        return f;
    }
    memcpy(&h, from + i * sizeof h, sizeof h);
    return dtype == DTYPE_BF16 ? f32_from_bf16(h) : f32_from_f16(h);
}

/* The branches on dtype are outside of the loops, so that each loop is one conversion. */
static void convert(void *to, enum dtype dtype, const unsigned char *from, enum dtype from_dtype,
                    size_t count)
{
    float *wide = to;
    uint16_t *half = to;
    if (dtype == from_dtype) {
        memcpy(to, from, count * dtype_bytes(dtype));
    } else if (dtype == DTYPE_F32 && from_dtype == DTYPE_BF16) {
        for (size_t i = 0; i < count; i++)
            wide[i] = load(from, DTYPE_BF16, i);
    } else if (dtype == DTYPE_F32) {
        for (size_t i = 0; i < count; i++)
            wide[i] = load(from, DTYPE_F16, i);
    } else if (from_dtype == DTYPE_F32) {
        for (size_t i = 0; i < count; i++)
            half[i] = bf16_from_f32(load(from, DTYPE_F32, i));
    } else {
        for (size_t i = 0; i < count; i++)
            half[i] = bf16_from_f32(load(from, DTYPE_F16, i));
    }
}

/* Asks for the pages of a piece that will be read soon. A hint: whether it helps is not looked at. */
static void read_ahead(const unsigned char *from, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = (uintptr_t)from / page * page;
    madvise((void *)first, (size_t)((uintptr_t)from + bytes - first), MADV_WILLNEED);
}

static enum err copy_piece(struct lane *l, const struct piecework *w, size_t piece)
{
    size_t first = piece * w->piece_count, left = w->count - first,
           ahead = AHEAD_PIECES * w->piece_count;
    size_t count = left < w->piece_count ? left : w->piece_count;
    size_t source_bytes = dtype_bytes(w->source_dtype), bytes = dtype_bytes(w->dtype);
    const unsigned char *from = w->source + first * source_bytes;
    uint32_t i = l->next++ % BUFFERS;
    enum err e;
    if (left > ahead + count) read_ahead(from + ahead * source_bytes, count * source_bytes);
    if (!PLANTED("upload_not_waited_for") &&
        (e = cuda_check(cudaEventSynchronize(l->buffer[i].copied), "copying weights")) != OK)
        return e;
    convert(l->buffer[i].bytes, w->dtype, from, w->source_dtype, count);
    e = cuda_check(cudaMemcpyAsync(w->device + first * bytes, l->buffer[i].bytes, count * bytes,
                                   cudaMemcpyHostToDevice, l->stream),
                   "copying weights");
    if (e != OK) return e;
    return cuda_check(cudaEventRecord(l->buffer[i].copied, l->stream), "copying weights");
}

static void copy_pieces(void *ctx, uint32_t index)
{
    struct upload *u = ctx;
    struct lane *l = &u->lane[index];
    l->e = cuda_device_use(u->options.device_index);
    while (l->e == OK && !atomic_load(&u->failed)) {
        size_t piece = atomic_fetch_add(&u->work.next, 1);
        if (piece >= u->work.pieces) return;
        l->e = copy_piece(l, &u->work, piece);
    }
    if (l->e == OK) return;
    memcpy(l->text, err_text(), sizeof l->text);
    atomic_store(&u->failed, true);
}

/* Keeps the first error: it is said again by every call behind it. */
static enum err keep(struct upload *u, enum err e, const char *text)
{
    if (u->e == OK && e != OK) {
        memcpy(u->text, text, sizeof u->text);
        u->e = e;
        atomic_store(&u->failed, true);
    }
    return u->e == OK ? OK : err_set(u->e, "%s", u->text);
}

static void tell(struct upload *u, bool at_end)
{
    uint64_t now = clock_now_ns();
    if (!u->options.progress || u->told_bytes == u->bytes_done) return;
    if (!at_end && now - u->told_ns < u->options.progress_ns) return;
    u->told_ns = now;
    u->told_bytes = u->bytes_done;
    u->options.progress(u->options.ctx, u->bytes_done, now - u->begun_ns);
}

enum err upload_add(struct upload *u, void *device, enum dtype dtype, const void *source,
                    enum dtype source_dtype, size_t count)
{
    CHECK(dtype == DTYPE_F32 || dtype == DTYPE_BF16);
    size_t piece_count = u->options.buffer_bytes / dtype_bytes(dtype);
    size_t pieces = (count + piece_count - 1) / piece_count;
    uint32_t threads = pieces < u->options.threads ? (uint32_t)pieces : u->options.threads;
    if (u->e != OK) return keep(u, OK, NULL);
    if (count == 0) return OK;
    u->work = (struct piecework){.device = device,
                                 .source = source,
                                 .dtype = dtype,
                                 .source_dtype = source_dtype,
                                 .count = count,
                                 .piece_count = piece_count,
                                 .pieces = pieces};
    workers_run(u->workers, threads, copy_pieces, u);
    for (uint32_t i = 0; i < threads; i++)
        if (u->lane[i].e != OK) keep(u, u->lane[i].e, u->lane[i].text);
    u->bytes_done += count * dtype_bytes(dtype);
    tell(u, false);
    return keep(u, OK, NULL);
}

enum err upload_finish(struct upload *u)
{
    for (uint32_t i = 0; i < u->options.threads; i++) {
        enum err e = cuda_check(cudaStreamSynchronize(u->lane[i].stream), "copying weights");
        if (e != OK) keep(u, e, err_text());
    }
    if (u->e == OK) tell(u, true);
    return keep(u, OK, NULL);
}
