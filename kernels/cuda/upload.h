/* upload: weights on their way from mapped files to device memory.
 *
 *     struct upload_options o = {.device_index = 0, .threads = 4, .buffer_bytes = 8 << 20};
 *     if ((e = upload_new(&u, &o)) != OK) return e;
 *     e = upload_add(u, device, DTYPE_BF16, tensor->data, DTYPE_F16, count);   // … for each tensor
 *     if ((e = upload_finish(u)) != OK) return e;                              // all of it is there
 *     upload_free(u);
 *
 * A tensor goes in pieces; each of some threads reads pieces from the map (page faults, and conversion
 * where the types differ) into one of its two pinned buffers while the other is copied on the
 * thread's own stream. One thread's memcpy does about 8 GB/s, PCIe 5 about 50: hence several.
 *
 * Rules: the source may have any alignment and must stay until upload_add returns; the device memory
 * belongs to the upload until upload_finish. The first error is kept and ends all work behind it.
 * Owner: one thread calls, the copying ones stay inside. */
#ifndef TANDEM_KERNELS_CUDA_UPLOAD_H
#define TANDEM_KERNELS_CUDA_UPLOAD_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/geometry.h"

enum { UPLOAD_THREADS_MAX = 16 };

/* From upload_add and upload_finish: at most once each progress_ns, and at the end; each time more. */
typedef void upload_progress_fn(void *ctx, uint64_t bytes_done, uint64_t elapsed_ns);

struct upload_options {
    uint32_t device_index;
    uint32_t threads;             /* 1 to UPLOAD_THREADS_MAX */
    size_t buffer_bytes;          /* of each of two a thread; a multiple of 64 */
    upload_progress_fn *progress; /* NULL: none */
    uint64_t progress_ns;
    void *ctx;
};

struct upload;
enum err upload_new(struct upload **u, const struct upload_options *options);
void upload_free(struct upload *u); /* NULL is allowed; waits for copies in flight */

/* `count` elements of source_dtype to device memory as dtype. bf16 rounds to nearest even. */
enum err upload_add(struct upload *u, void *device, enum dtype dtype, const void *source,
                    enum dtype source_dtype, size_t count);
enum err upload_finish(struct upload *u); /* may be followed by more */

#endif
