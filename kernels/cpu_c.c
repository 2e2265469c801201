/* The path in portable C: the oracle that the others are held to, bit by bit. */
#define CPU_TABLE cpu_c_kernels
#define CPU_NAME "cpu-c"
#include "kernels/vec_c.h"
#include "kernels/body.h"
