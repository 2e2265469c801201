#include "tests/unit/tiny_model.h"

#include <stdio.h>
#include <string.h>

#include "common/buf.h"
#include "common/hash.h"
#include "common/rng.h"
#include "kernels/numbers.h"
#include "tests/unit/scratch.h"
#include "tests/unit/testing.h"

static void add(struct tiny_tensor *list, uint32_t *count, enum dtype dtype, const char *prefix,
                const char *name, uint32_t rows, uint32_t columns)
{
    struct tiny_tensor *t = &list[(*count)++];
    assert_true(*count <= TINY_TENSORS_MAX);
    snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    t->dim[0] = rows;
    t->dim[1] = columns;
    t->dims_count = columns ? 2 : 1;
    t->dtype = dtype;
}

static void add_layer(const struct tiny_shape *s, struct tiny_tensor *list, uint32_t *n,
                      uint32_t layer)
{
    char p[64];
    enum dtype d = s->dtype;
    uint32_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, h = s->hidden;
    snprintf(p, sizeof p, "model.layers.%u.", layer);
    add(list, n, d, p, "input_layernorm.weight", h, 0);
    add(list, n, d, p, "self_attn.q_proj.weight", q, h);
    add(list, n, d, p, "self_attn.k_proj.weight", kv, h);
    add(list, n, d, p, "self_attn.v_proj.weight", kv, h);
    add(list, n, d, p, "self_attn.o_proj.weight", h, q);
    add(list, n, d, p, "post_attention_layernorm.weight", h, 0);
    add(list, n, d, p, "mlp.gate_proj.weight", s->ffn, h);
    add(list, n, d, p, "mlp.up_proj.weight", s->ffn, h);
    add(list, n, d, p, "mlp.down_proj.weight", h, s->ffn);
    if (s->attention_bias) {
        add(list, n, d, p, "self_attn.q_proj.bias", q, 0);
        add(list, n, d, p, "self_attn.k_proj.bias", kv, 0);
        add(list, n, d, p, "self_attn.v_proj.bias", kv, 0);
        add(list, n, d, p, "self_attn.o_proj.bias", h, 0);
    }
    if (s->mlp_bias) {
        add(list, n, d, p, "mlp.gate_proj.bias", s->ffn, 0);
        add(list, n, d, p, "mlp.up_proj.bias", s->ffn, 0);
        add(list, n, d, p, "mlp.down_proj.bias", h, 0);
    }
}

uint32_t tiny_tensors(const struct tiny_shape *s, struct tiny_tensor list[TINY_TENSORS_MAX])
{
    uint32_t count = 0;
    add(list, &count, s->dtype, "", "model.embed_tokens.weight", s->vocab, s->hidden);
    for (uint32_t l = 0; l < s->layers; l++)
        add_layer(s, list, &count, l);
    add(list, &count, s->dtype, "", "model.norm.weight", s->hidden, 0);
    if (!s->tied) add(list, &count, s->dtype, "", "lm_head.weight", s->vocab, s->hidden);
    return count;
}

static uint64_t elements(const struct tiny_tensor *t)
{
    return (uint64_t)t->dim[0] * (t->dims_count == 2 ? t->dim[1] : 1);
}

/* Uniform; norms around 1, matrices such that a product keeps its input's size, small biases. */
static void add_values(struct buf *b, const struct tiny_tensor *t, uint64_t seed)
{
    uint64_t stream = hash64(t->name, strlen(t->name)) ^ seed;
    float scale = t->dims_count == 1 ? 0.5f : 3.0f / (float)t->dim[1];
    float centre = strstr(t->name, "norm") ? 1.0f : 0.0f;
    if (t->dims_count == 2) scale = strstr(t->name, "embed") ? 1.5f : scale * 2;
    for (uint64_t i = 0; i < elements(t); i++) {
        struct rng_block r = rng_draw(stream, 0, i);
        float v = centre + scale * (2 * rng_unit(r.word[0]) - 1);
        uint16_t half = bf16_from_f32(v);
        if (t->dtype == DTYPE_F16)
            half = (uint16_t)(0x3000 | (r.word[1] & 0x83ff)); /* +-1/8 … 1/4 */
        buf_add(b, t->dtype == DTYPE_F32 ? (const void *)&v : &half, dtype_bytes(t->dtype));
    }
}

void tiny_tensors_write(const char *dir, const char *file, const struct tiny_tensor *list,
                        uint32_t count, uint64_t seed)
{
    static const char *const names[] = {"NONE", "F32", "F16", "BF16"};
    struct buf header = {0}, out = {0};
    uint64_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t end = at + elements(&list[i]) * dtype_bytes(list[i].dtype);
        buf_printf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", i ? "," : "{", list[i].name,
                   names[list[i].dtype], list[i].dim[0]);
        if (list[i].dims_count == 2) buf_printf(&header, ",%u", list[i].dim[1]);
        buf_printf(&header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                   (unsigned long long)end);
        at = end;
    }
    buf_add(&header, count ? "}" : "{}", count ? 1 : 2);
    while (header.size % 8 != 0)
        buf_add(&header, " ", 1);
    uint64_t header_bytes = header.size;
    buf_add(&out, &header_bytes, sizeof header_bytes);
    buf_add(&out, header.data, header.size);
    for (uint32_t i = 0; i < count; i++)
        add_values(&out, &list[i], seed);
    assert_ok(out.error);
    scratch_write(dir, file, out.data, out.size);
    buf_fini(&header);
    buf_fini(&out);
}

void tiny_config_write(const char *dir, const struct tiny_shape *s)
{
    struct buf b = {0};
    buf_printf(&b,
               "{\"architectures\":[\"%s\"],\"hidden_size\":%u,"
               "\"num_hidden_layers\":%u,\"num_attention_heads\":%u,\"num_key_value_heads\":%u,"
               "\"head_dim\":%u,\"intermediate_size\":%u,\"vocab_size\":%u,"
               "\"max_position_embeddings\":%u,\"tie_word_embeddings\":%s,"
               "\"attention_bias\":%s,\"mlp_bias\":%s,\"eos_token_id\":%u,\"rms_norm_eps\":1e-5",
               s->window ? "MistralForCausalLM" : "LlamaForCausalLM", s->hidden, s->layers,
               s->heads, s->kv_heads, s->head_dim, s->ffn, s->vocab, s->context,
               s->tied ? "true" : "false", s->attention_bias ? "true" : "false",
               s->mlp_bias ? "true" : "false", s->vocab > 2 ? 2 : 0);
    if (s->window) buf_printf(&b, ",\"sliding_window\":%u", s->window);
    buf_add_string(&b, "}");
    assert_ok(b.error);
    scratch_write(dir, "config.json", b.data, b.size);
    buf_fini(&b);
}

void tiny_model_write(const char *dir, const struct tiny_shape *shape)
{
    struct tiny_tensor list[TINY_TENSORS_MAX];
    tiny_config_write(dir, shape);
    tiny_tensors_write(dir, "model.safetensors", list, tiny_tensors(shape, list), shape->seed);
}
