/* weights: a model's tensors in the form that a backend computes with.
 *
 *     struct weights w;
 *     struct weights_options o = {.ops = ops, .backend = b, .config = &c, .tensors = &t,
 *                                 .model = fingerprint, .dtype = DTYPE_BF16, .cache_dir = dir};
 *     if ((e = weights_open(&w, &o)) != OK) return e;         // said: file, tensor, shape wanted
 *     ops->matmul(b, qkv, ROWS_PRODUCT, x, &w.layer[l].qkv, w.layer[l].qkv_bias, NULL, rows);
 *     weights_close(&w);
 *
 * q, k and v are one matrix, gate and up are one: a product over one input is one call. Every tensor
 * of the files is used or known to be superfluous; a missing, misshapen or unknown one is an error.
 *
 * Rules: with dtype BF16 every weight is rounded to bf16 once, norms and biases too, and those are
 * kept as fp32 numbers. The packed form comes from the cache if it is there (pack_file.h), else it
 * is made and left there; the tensors are not needed after weights_open. Backends that do not pack
 * get the tensors streamed from the files' maps.
 * Owner: the thread that opened it; read-only from then on. */
#ifndef TANDEM_ENGINE_WEIGHTS_H
#define TANDEM_ENGINE_WEIGHTS_H

#include <stdbool.h>

#include "common/err.h"
#include "common/id.h"
#include "common/model_config.h"
#include "engine/pack_file.h"
#include "engine/safetensors.h"
#include "kernels/backend.h"

struct layer_weights {
    const float *attention_norm; /* [hidden] */
    struct matrix qkv;           /* [(heads + 2 kv_heads) x head_dim][hidden] */
    const float *qkv_bias;       /* NULL: none; so are the other biases */
    struct matrix out;           /* [hidden][heads x head_dim] */
    const float *out_bias;
    const float *mlp_norm; /* [hidden] */
    struct matrix gate_up; /* [2 ffn][hidden] */
    const float *gate_up_bias;
    struct matrix down; /* [hidden][ffn] */
    const float *down_bias;
};

struct weights {
    const void *embedding; /* [vocab][hidden] in `dtype`, row-major */
    enum dtype dtype;      /* of embedding and matrices */
    struct layer_weights *layer;
    const float *norm;     /* [hidden] */
    struct matrix lm_head; /* [vocab][hidden] */

    uint64_t bytes;         /* of all sections */
    double flops_per_token; /* of the matrices */
    bool cache_hit;
    struct pack_file file; /* of backends that pack */
    void *device;          /* of the others: all sections; its ops and backend */
    const struct backend_ops *ops;
    struct backend *backend;
};

struct weights_options {
    const struct backend_ops *ops;
    struct backend *backend;
    const struct model_config *config;
    const struct tensors *tensors;
    struct id128 model;
    enum dtype dtype;      /* F32 or BF16 */
    const char *cache_dir; /* NULL: none, pack into memory */
};

/* Whether these are the tensors that the model should have. None is read: large files take minutes. */
enum err weights_check(const struct model_config *config, const struct tensors *tensors);

enum err weights_open(struct weights *w, const struct weights_options *options);
void weights_close(struct weights *w); /* a zeroed or closed one is allowed */

/* What a model computes in when nobody says: bf16 if its embedding is bf16, else fp32. */
enum err weights_dtype(enum dtype *out, const struct tensors *t);

#endif
