/* The path for AVX-512 with bf16 dot products. */
#define CPU_TABLE cpu_avx512_kernels
#define CPU_NAME "cpu-avx512"
#include "kernels/vec_avx512.h"
#include "kernels/body.h"
