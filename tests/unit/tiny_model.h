/* tiny_model: random Llama and Mistral models of a few kilobytes, for tests.
 *
 *     char dir[SCRATCH_BYTES];
 *     struct tiny_shape shape = TINY_SHAPE;
 *     scratch_make(dir);
 *     tiny_model_write(dir, &shape);                   // config.json and model.safetensors
 *
 *     struct tiny_tensor list[TINY_TENSORS_MAX];       // or with something wrong in it:
 *     uint32_t count = tiny_tensors(&shape, list);
 *     list[3].dim[0]++;
 *     tiny_tensors_write(dir, "model.safetensors", list, count, shape.seed);
 *     scratch_remove(dir);
 *
 * Weights are a pure function of name, shape and seed, scaled so that logits neither vanish nor
 * saturate. What fails here fails the test. Owner: the test's thread. */
#ifndef TANDEM_TESTS_TINY_MODEL_H
#define TANDEM_TESTS_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/geometry.h"

enum { TINY_TENSORS_MAX = 384, TINY_NAME_BYTES = 96 };

struct tiny_shape {
    uint32_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab, context;
    bool tied, attention_bias, mlp_bias;
    enum dtype dtype;
    uint64_t seed;
    uint32_t window; /* not 0: a Mistral with this one */
};
#define TINY_SHAPE                                                                                 \
    {                                                                                              \
        .hidden = 16, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 4, .ffn = 24,            \
        .vocab = 40, .context = 128, .dtype = DTYPE_F32, .seed = 1                                 \
    }

struct tiny_tensor {
    char name[TINY_NAME_BYTES];
    uint32_t dim[2], dims_count;
    enum dtype dtype;
};

uint32_t tiny_tensors(const struct tiny_shape *shape, struct tiny_tensor list[TINY_TENSORS_MAX]);
void tiny_tensors_write(const char *dir, const char *file, const struct tiny_tensor *list,
                        uint32_t count, uint64_t seed);
void tiny_config_write(const char *dir, const struct tiny_shape *shape);
void tiny_model_write(const char *dir, const struct tiny_shape *shape);

#endif
