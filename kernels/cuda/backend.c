#include "kernels/cuda/backend.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/plant.h"

#define GIB (1024.0 * 1024.0 * 1024.0)
#define NUMERICS_CUDA 0x7463756400000000u /* "tcud"; below: rules version, device class, mode */

enum {
    NUMERICS_VERSION = 1,
    UPLOAD_THREADS = 8,
    UPLOAD_BUFFER_BYTES = 8 << 20,
};

void backend_keep(struct backend *b, enum err e)
{
    if (e == OK || b->status != OK) return;
    b->status = e;
    memcpy(b->text, err_text(), sizeof b->text);
}

void backend_check(struct backend *b, cudaError_t c, const char *what)
{
    if (c != cudaSuccess) backend_keep(b, cuda_check(c, what));
}

void backend_enter(struct backend *b)
{
    backend_keep(b, cuda_device_use(b->device.index));
}

/* The failure that was kept, with its text. */
static enum err backend_status(const struct backend *b)
{
    return b->status == OK ? OK : err_set(b->status, "%s", b->text);
}

/* Pinned memory. */

enum err stage_open(struct stage *s, size_t bytes)
{
    enum err e;
    e = cuda_check(cudaHostAlloc((void **)&s->bytes, bytes, cudaHostAllocDefault), "pinned memory");
    if (e != OK) return e;
    return cuda_check(cudaEventCreateWithFlags(&s->copied, cudaEventDisableTiming), "an event");
}

void stage_close(struct stage *s)
{
    if (s->copied) cudaEventDestroy(s->copied);
    if (s->bytes) cudaFreeHost(s->bytes);
}

void stage_take(struct backend *b, struct stage *s)
{
    if (PLANTED("stage_not_waited_for")) return;
    backend_check(b, cudaEventSynchronize(s->copied), "waiting for a copy");
}

void stage_copy(struct backend *b, void *device, const struct stage *s, size_t offset, size_t bytes)
{
    if (bytes == 0) return;
    backend_check(
        b, cudaMemcpyAsync(device, s->bytes + offset, bytes, cudaMemcpyHostToDevice, b->stream),
        "a copy to the device");
}

void stage_done(struct backend *b, const struct stage *s)
{
    backend_check(b, cudaEventRecord(s->copied, b->stream), "an event");
}

/* Opening. */

static void cuda_close(struct backend *b)
{
    if (!b) return;
    if (b->stream)
        cudaSetDevice((int)b->device.index); /* not cuda_check: why open failed is said */
    if (b->stream && !PLANTED("close_not_waited_for")) cudaStreamSynchronize(b->stream);
    upload_free(b->upload);
    mover_close(&b->mover);
    lane_close(&b->lane);
    slots_close(b);
    step_close(b);
    lt_free(b->lt);
    if (b->attend_scratch) cudaFree(b->attend_scratch);
    for (int i = 0; i < MARKS; i++)
        if (b->mark[i]) cudaEventDestroy(b->mark[i]);
    if (b->stream) cudaStreamDestroy(b->stream);
    mem_free(b);
}

static enum err check_options(const struct backend_options *o)
{
    const struct backend_limits *l = &o->limits;
    if (o->dtype != DTYPE_F32 && o->dtype != DTYPE_BF16)
        return err_set(ERR_INVALID, "cuda: a model computes in fp32 or bf16");
    if (l->rows_max < 1 || l->sequences_max < 1 || l->slots_count < 1 || l->vocab_count < 1)
        return err_set(ERR_INVALID, "cuda: room for at least one row, sequence, slot and token");
    if (l->rows_max > LT_ROWS_MAX)
        return err_set(ERR_INVALID, "cuda: at most %d rows in a step", LT_ROWS_MAX);
    return OK;
}

static struct backend_facts make_facts(const struct backend *b)
{
    uint32_t bytes = dtype_bytes(b->options.dtype);
    uint64_t class =
        (uint64_t)b->device.major << 8 | b->device.minor << 4 | b->options.deterministic;
    return (struct backend_facts){.path = "cuda",
                                  .device = b->device.name,
                                  .queue_depth = QUEUE_DEPTH,
                                  .operand_bytes = bytes,
                                  .product_bytes = bytes,
                                  .kv_layout = KV_LAYOUT_CUDA,
                                  .threads = 1,
                                  .windows = true,
                                  .draws = true,
                                  .numerics =
                                      NUMERICS_CUDA | (uint64_t)NUMERICS_VERSION << 16 | class};
}

static enum err cuda_open(struct backend **out, const struct backend_options *options)
{
    enum err e;
    *out = NULL;
    if ((e = check_options(options)) != OK) return e;
    struct backend *b = mem_new(sizeof *b);
    if (!b) return ERR_MEMORY;
    b->options = *options;
    if ((e = cuda_device_open(options->device_index, &b->device)) != OK) goto fail;
    b->facts = make_facts(b);
    e = cuda_check(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), "a stream");
    for (int i = 0; i < MARKS && e == OK; i++)
        e = cuda_check(cudaEventCreateWithFlags(&b->mark[i], cudaEventDisableTiming), "an event");
    if (e != OK) goto fail;
    if (options->dtype == DTYPE_BF16 && !options->deterministic &&
        (e = lt_new(&b->lt, b->stream)) != OK)
        goto fail;
    if ((e = step_open(b)) != OK || (e = slots_open(b)) != OK ||
        (e = mover_open(&b->mover)) != OK || (e = lane_open(&b->lane)) != OK)
        goto fail;
    *out = b;
    return OK;
fail:
    cuda_close(b);
    return e;
}

static enum err cuda_pci_address(uint32_t index, char *text, size_t size)
{
    cudaError_t c = cudaDeviceGetPCIBusId(text, (int)size, (int)index);
    return cuda_check(c, "the device's PCI address");
}

static const struct backend_facts *cuda_facts(const struct backend *b)
{
    return &b->facts;
}

/* Memory. */

static void *cuda_alloc(struct backend *b, size_t bytes)
{
    void *p;
    if (cuda_device_use(b->device.index) != OK) return NULL;
    return cuda_take(&p, bytes, "an allocation") == OK ? p : NULL;
}

static void cuda_free(struct backend *b, void *p)
{
    (void)b;
    if (p) cudaFree(p);
}

static void *cuda_host_alloc(struct backend *b, size_t bytes)
{
    void *p = NULL;
    if (cuda_device_use(b->device.index) != OK) return NULL;
    if (cuda_check(cudaHostAlloc(&p, bytes ? bytes : 1, cudaHostAllocPortable), "pinned memory") !=
        OK)
        return NULL;
    memset(p, 0, bytes);
    return p;
}

static void cuda_host_free(struct backend *b, void *p)
{
    (void)b;
    if (p) cudaFreeHost(p);
}

static uint64_t cuda_memory_free(struct backend *b)
{
    size_t free_bytes = 0, total = 0;
    if (cuda_device_use(b->device.index) != OK) return 0;
    return cuda_check(cudaMemGetInfo(&free_bytes, &total), "free memory") == OK ? free_bytes : 0;
}

/* Behind everything enqueued, and done when it returns. */
static enum err copy(struct backend *b, void *to, const void *from, size_t bytes,
                     enum cudaMemcpyKind kind)
{
    backend_enter(b);
    if (!backend_ok(b)) return backend_status(b);
    if (bytes > 0) backend_check(b, cudaMemcpyAsync(to, from, bytes, kind, b->stream), "a copy");
    if (!PLANTED("copy_not_waited_for"))
        backend_check(b, cudaStreamSynchronize(b->stream), "a copy");
    return backend_status(b);
}

static enum err cuda_write(struct backend *b, void *device, const void *host, size_t bytes)
{
    return copy(b, device, host, bytes, cudaMemcpyHostToDevice);
}

static enum err cuda_read(struct backend *b, void *host, const void *device, size_t bytes)
{
    return copy(b, host, device, bytes, cudaMemcpyDeviceToHost);
}

static void cuda_fetch(struct backend *b, void *host, const void *device, size_t bytes)
{
    if (!backend_ok(b) || bytes == 0) return;
    cudaStream_t stream = PLANTED("fetch_on_another_stream") ? b->mover.stream : b->stream;
    backend_check(b, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream),
                  "fetching");
}

/* Weights. */

static void tell_upload(void *ctx, uint64_t bytes_done, uint64_t elapsed_ns)
{
    (void)ctx;
    double gib = (double)bytes_done / GIB, seconds = (double)elapsed_ns / (double)NS_PER_S;
    log_info("weights_copied", "mib=%.1f seconds=%.2f gib_s=%.2f", gib * 1024, seconds,
             seconds > 0 ? gib / seconds : 0.0);
}

static enum err cuda_weight_write(struct backend *b, void *device, enum dtype dtype,
                                  const void *source, enum dtype source_dtype, size_t count)
{
    enum err e = cuda_device_use(b->device.index);
    if (e != OK) return e;
    if (!b->upload) {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        const struct upload_options o = {.device_index = b->options.device_index,
                                         .threads = cpus < 1                ? 1
                                                    : cpus < UPLOAD_THREADS ? (uint32_t)cpus
                                                                            : UPLOAD_THREADS,
                                         .buffer_bytes = UPLOAD_BUFFER_BYTES,
                                         .progress = tell_upload,
                                         .progress_ns = NS_PER_S};
        if ((e = upload_new(&b->upload, &o)) != OK) return e;
    }
    return upload_add(b->upload, device, dtype, source, source_dtype, count);
}

/* Marks. */

static uint64_t cuda_mark(struct backend *b)
{
    cudaStream_t stream = PLANTED("mark_on_another_stream") ? b->mover.stream : b->stream;
    b->marks++;
    if (backend_ok(b))
        backend_check(b, cudaEventRecord(b->mark[b->marks % MARKS], stream), "a mark");
    return b->marks;
}

/* Whether the event's work is done; a failure of the device is kept. */
static bool is_done(struct backend *b, cudaEvent_t event)
{
    cudaError_t c = cudaEventQuery(event);
    if (c == cudaErrorNotReady) {
        cudaGetLastError(); /* the next launch must not be blamed for it */
        return false;
    }
    backend_check(b, c, "a step");
    return true;
}

/* A mark that is so old that its event was taken for a later one is reached when the oldest that still
 * has its own is. */
static enum err cuda_wait(struct backend *b, uint64_t mark, uint64_t timeout_ns)
{
    CHECK(mark >= 1 && mark <= b->marks);
    if (!backend_ok(b)) return backend_status(b);
    if (mark <= b->reached) return OK;
    if (mark + MARKS <= b->marks) mark = b->marks - MARKS + 1;
    cudaEvent_t event = b->mark[mark % MARKS];
    if (timeout_ns == TIME_NEVER)
        backend_check(b, cudaEventSynchronize(event), "a step");
    else if (!is_done(b, event)) {
        uint64_t until = clock_now_ns() + timeout_ns;
        do {
            if (clock_now_ns() >= until) return ERR_TIMEOUT;
            sched_yield();
        } while (!is_done(b, event));
    }
    if (backend_ok(b)) b->reached = mark;
    return backend_status(b);
}

static enum err cuda_sync(struct backend *b)
{
    backend_enter(b);
    if (b->upload) {
        backend_keep(b, upload_finish(b->upload));
        upload_free(b->upload);
        b->upload = NULL;
    }
    backend_check(b, cudaStreamSynchronize(b->stream), "the device"); /* also after a failure */
    if (backend_ok(b)) b->reached = b->marks;
    return backend_status(b);
}

const struct backend_ops cuda_backend_ops = {
    .abi = BACKEND_ABI,
    .name = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .facts = cuda_facts,
    .pci_address = cuda_pci_address,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .memory_free = cuda_memory_free,
    .write = cuda_write,
    .read = cuda_read,
    .fetch = cuda_fetch,
    .weight_write = cuda_weight_write,
    .prepare = op_prepare,
    .record = cuda_record,
    .step = cuda_step,
    .embed = op_embed,
    .rms_norm = op_rms_norm,
    .matmul = op_matmul,
    .rope_append = op_rope_append,
    .attend = op_attend,
    .silu_mul = op_silu_mul,
    .gather = op_gather,
    .logprobs = cuda_logprobs_of,
    .slot_make = cuda_slot_make,
    .draw = cuda_draw_outputs,
    .block_copy = op_block_copy,
    .kv_read = cuda_kv_read,
    .kv_write = cuda_kv_write,
    .kv_gather = cuda_kv_to_slot,
    .kv_scatter = cuda_kv_from_slot,
    .block_read = cuda_block_read,
    .block_write = cuda_block_write,
    .mark = cuda_mark,
    .wait = cuda_wait,
    .sync = cuda_sync,
};
