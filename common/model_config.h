/* model_config: a model's shape, read from config.json and generation_config.json.
 *
 *     struct model_config c;
 *     if ((e = model_config_load(&c, dir)) != OK) return e;      // said: file, key, value, allowed
 *     uint32_t qkv = model_qkv_width(&c);
 *
 * Rules: what comes out is checked: every count is at least 1 and within the limits below, so that
 * products of two of them fit 64 bits easily; head_dim is even and heads a multiple of kv_heads. A
 * setting that would change the arithmetic and is not known here is refused by its name, never
 * ignored. A plain value: nothing to free.
 *
 * Families differ in few points, and those are columns of one table in model_config.c: adding one is
 * a row there (and what its row says that nobody said before, in engine/weights.c and engine/forward.c).
 * Any thread. */
#ifndef TANDEM_COMMON_MODEL_CONFIG_H
#define TANDEM_COMMON_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum {
    MODEL_LAYERS_MAX = 1024,
    MODEL_WIDTH_MAX = 1 << 20, /* hidden, ffn, heads x head_dim */
    MODEL_HEADS_MAX = 1024,
    MODEL_HEAD_DIM_MAX = 256, /* even */
    MODEL_VOCAB_MAX = 1 << 22,
    MODEL_CONTEXT_MAX = 1 << 24,
    MODEL_EOS_MAX = 16,
    MODEL_CONFIG_BYTES_MAX = 1 << 20,
};

enum rope_kind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };

/* Rotary positions: pair i of a head turns by position x frequency(i). */
struct rope_config {
    enum rope_kind kind;
    double theta;
    double factor;                  /* LINEAR, LLAMA3 */
    double low_factor, high_factor; /* LLAMA3 */
    double original_positions;      /* LLAMA3: the context that it was first trained on */
};

/* What sets one family of models apart from the others. */
struct model_family {
    const char *architecture; /* as config.json's "architectures" has it */
    bool window_used;         /* "sliding_window" means something */
};

struct model_config {
    const struct model_family *family;
    uint32_t hidden, layers_count, heads, kv_heads, head_dim, ffn;
    uint32_t vocab_count, context_max;
    uint32_t window; /* attend to the last `window` tokens only; 0: all */
    float norm_eps;
    struct rope_config rope;
    bool tied;           /* lm_head is the embedding */
    bool attention_bias; /* on q, k, v and o */
    bool mlp_bias;       /* on gate, up and down */
    uint32_t eos[MODEL_EOS_MAX];
    uint32_t eos_count;
};

enum err model_config_load(struct model_config *c, const char *dir);

/* The two parsers alone; `path` is for messages. The second replaces c->eos if it names any. */
enum err model_config_parse(struct model_config *c, const char *path, const char *text,
                            size_t size);
enum err model_generation_parse(struct model_config *c, const char *path, const char *text,
                                size_t size);

static inline uint32_t model_q_width(const struct model_config *c)
{
    return c->heads * c->head_dim;
}
static inline uint32_t model_kv_width(const struct model_config *c)
{
    return c->kv_heads * c->head_dim;
}
/* Columns of the fused product: q, then k, then v. */
static inline uint32_t model_qkv_width(const struct model_config *c)
{
    return model_q_width(c) + 2 * model_kv_width(c);
}

#endif
