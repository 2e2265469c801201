/* body: the kernels of one path. Included once by cpu_c.c, cpu_avx2.c and cpu_avx512.c behind their
 * vec_*.h; CPU_TABLE and CPU_NAME name the result. */
#include <float.h>
#include <math.h>

#include "common/draw.h"
#include "kernels/cpu.h"

#include "kernels/body_rows.h"
#include "kernels/body_matmul.h"
#include "kernels/body_attend.h"

const struct cpu_kernels CPU_TABLE = {
    .name = CPU_NAME,
    .rms_norm = rms_norm,
    .round_rows = round_rows,
    .matmul = matmul,
    .gated = gated,
    .silu_mul = silu_mul,
    .rope_append = rope_append,
    .attend = attend,
    .logprobs = logprobs,
};
