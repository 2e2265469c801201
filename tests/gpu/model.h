/* model: models with random weights in the shapes that people run, for measuring.
 *
 *     const struct gpu_shape *shape = gpu_shape_find("8b");     // NULL: no such name
 *     gpu_model_write(dir, shape);                               // config.json, model.safetensors
 *
 * Weights repeat a block of random numbers of an odd length: no value matters here, but zeros would cost a
 * device less power than a model does. What fails ends the program. Owner: the program's main thread. */
#ifndef TANDEM_TESTS_GPU_MODEL_H
#define TANDEM_TESTS_GPU_MODEL_H

#include <stdbool.h>

#include "tests/unit/tiny_model.h"

struct gpu_shape {
    const char *name, *about;
    struct tiny_shape model;
    uint32_t prefill[4];   /* prompts measured, ascending; 0 ends them */
    uint32_t context[2];   /* of decodes */
    uint32_t batch[4];     /* of decodes, ascending */
    uint32_t rounds;       /* steps of a decode figure */
    uint32_t product_side; /* of the square product that is the ceiling */
    uint64_t copy_bytes;   /* of the copy that is the other one */
};

const struct gpu_shape *gpu_shape_find(const char *name);
void gpu_model_write(const char *dir, const struct gpu_shape *shape);

#endif
