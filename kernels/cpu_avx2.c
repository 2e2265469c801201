/* The path for AVX2 and FMA. */
#define CPU_TABLE cpu_avx2_kernels
#define CPU_NAME "cpu-avx2"
#include "kernels/vec_avx2.h"
#include "kernels/body.h"
