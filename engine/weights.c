#include "engine/weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "kernels/numbers.h"

/* A part is one section of the packed file: what the backend gets as one pointer. The plan lists all
 * parts in one order: the model's own, then each layer's. Sources are stacked by rows. */

enum part_kind { PART_NONE, PART_VECTOR, PART_TABLE, PART_MATRIX };
enum { MODEL_EMBEDDING, MODEL_NORM, MODEL_LM_HEAD, MODEL_PARTS };
enum {
    LAYER_ATTENTION_NORM,
    LAYER_QKV,
    LAYER_QKV_BIAS,
    LAYER_OUT,
    LAYER_OUT_BIAS,
    LAYER_MLP_NORM,
    LAYER_GATE_UP,
    LAYER_GATE_UP_BIAS,
    LAYER_DOWN,
    LAYER_DOWN_BIAS,
    LAYER_PARTS
};
enum { SOURCES_MAX = 3 };

struct part {
    enum part_kind kind;
    uint32_t n, k; /* rows and columns; a vector has k 1 */
    const struct tensor *source[SOURCES_MAX];
    uint32_t sources_count;
};

struct plan {
    const struct weights_options *o;
    struct part *part;
    uint32_t parts_count;
    bool *used; /* [tensors_count] */
};

/* One tensor as the next rows of a part: [rows][k], or [rows] for a vector. */
static enum err add_source(struct plan *plan, struct part *part, const char *name, uint32_t rows)
{
    const struct tensors *all = plan->o->tensors;
    const struct tensor *t = tensors_find(all, name);
    if (!t) return tensors_missing(all, name);
    struct tensor wanted = {
        .dim = {rows, part->k}, .dims_count = part->kind == PART_VECTOR ? 1 : 2, .dtype = t->dtype};
    char is[TENSOR_TEXT], should_be[TENSOR_TEXT];
    if (t->dims_count != wanted.dims_count ||
        memcmp(t->dim, wanted.dim, t->dims_count * sizeof *t->dim) != 0)
        return err_set(ERR_FORMAT, "%s: tensor \"%s\" is %s, by config.json it should be %s",
                       all->file[t->file_index].path, name, tensor_describe(t, is),
                       tensor_describe(&wanted, should_be));
    plan->used[t - all->tensor] = true;
    part->source[part->sources_count++] = t;
    part->n += rows;
    return OK;
}

static enum err plan_model(struct plan *plan)
{
    const struct model_config *c = plan->o->config;
    struct part *part = plan->part;
    enum err e;
    part[MODEL_EMBEDDING] = (struct part){.kind = PART_TABLE, .k = c->hidden};
    part[MODEL_NORM] = (struct part){.kind = PART_VECTOR, .k = 1};
    part[MODEL_LM_HEAD] = (struct part){.kind = PART_MATRIX, .k = c->hidden};
    if ((e = add_source(plan, &part[MODEL_EMBEDDING], "model.embed_tokens.weight",
                        c->vocab_count)) != OK)
        return e;
    if ((e = add_source(plan, &part[MODEL_NORM], "model.norm.weight", c->hidden)) != OK) return e;
    return add_source(plan, &part[MODEL_LM_HEAD],
                      c->tied ? "model.embed_tokens.weight" : "lm_head.weight", c->vocab_count);
}

/* Which tensors make up each part of a layer, by the names that Hugging Face gives them. */
static enum err plan_layer(struct plan *plan, uint32_t layer)
{
    const struct model_config *c = plan->o->config;
    uint32_t hidden = c->hidden, q = model_q_width(c), kv = model_kv_width(c), ffn = c->ffn;
    bool ab = c->attention_bias, mb = c->mlp_bias;
    const struct {
        int part;
        enum part_kind kind;
        bool there;
        uint32_t rows, k;
        const char *name;
    } row[] = {
        {LAYER_ATTENTION_NORM, PART_VECTOR, true, hidden, 1, "input_layernorm.weight"},
        {LAYER_QKV, PART_MATRIX, true, q, hidden, "self_attn.q_proj.weight"},
        {LAYER_QKV, PART_MATRIX, true, kv, hidden, "self_attn.k_proj.weight"},
        {LAYER_QKV, PART_MATRIX, true, kv, hidden, "self_attn.v_proj.weight"},
        {LAYER_QKV_BIAS, PART_VECTOR, ab, q, 1, "self_attn.q_proj.bias"},
        {LAYER_QKV_BIAS, PART_VECTOR, ab, kv, 1, "self_attn.k_proj.bias"},
        {LAYER_QKV_BIAS, PART_VECTOR, ab, kv, 1, "self_attn.v_proj.bias"},
        {LAYER_OUT, PART_MATRIX, true, hidden, q, "self_attn.o_proj.weight"},
        {LAYER_OUT_BIAS, PART_VECTOR, ab, hidden, 1, "self_attn.o_proj.bias"},
        {LAYER_MLP_NORM, PART_VECTOR, true, hidden, 1, "post_attention_layernorm.weight"},
        {LAYER_GATE_UP, PART_MATRIX, true, ffn, hidden, "mlp.gate_proj.weight"},
        {LAYER_GATE_UP, PART_MATRIX, true, ffn, hidden, "mlp.up_proj.weight"},
        {LAYER_GATE_UP_BIAS, PART_VECTOR, mb, ffn, 1, "mlp.gate_proj.bias"},
        {LAYER_GATE_UP_BIAS, PART_VECTOR, mb, ffn, 1, "mlp.up_proj.bias"},
        {LAYER_DOWN, PART_MATRIX, true, hidden, ffn, "mlp.down_proj.weight"},
        {LAYER_DOWN_BIAS, PART_VECTOR, mb, hidden, 1, "mlp.down_proj.bias"},
    };
    struct part *part = plan->part + MODEL_PARTS + (size_t)layer * LAYER_PARTS;
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        char name[96];
        if (!row[i].there) continue;
        part[row[i].part].kind = row[i].kind;
        part[row[i].part].k = row[i].k;
        snprintf(name, sizeof name, "model.layers.%" PRIu32 ".%s", layer, row[i].name);
        enum err e = add_source(plan, &part[row[i].part], name, row[i].rows);
        if (e != OK) return e;
    }
    return OK;
}

/* Tensors that old or careless exporters leave in a file and that say nothing new. */
static bool is_superfluous(const struct model_config *c, const char *name)
{
    const char *end = strstr(name, ".self_attn.rotary_emb.inv_freq");
    if (c->tied && strcmp(name, "lm_head.weight") == 0) return true;
    return end && strcmp(end, ".self_attn.rotary_emb.inv_freq") == 0;
}

static enum err check_all_used(const struct plan *plan)
{
    const struct tensors *all = plan->o->tensors;
    for (uint32_t i = 0; i < all->tensors_count; i++)
        if (!plan->used[i] && !is_superfluous(plan->o->config, all->tensor[i].name))
            return err_set(ERR_FORMAT, "%s: tensor \"%.160s\" belongs to no part of a %s",
                           all->file[all->tensor[i].file_index].path, all->tensor[i].name,
                           plan->o->config->family->architecture);
    return OK;
}

static enum err plan_all(struct plan *plan)
{
    enum err e;
    const struct weights_options *o = plan->o;
    plan->parts_count = MODEL_PARTS + o->config->layers_count * LAYER_PARTS;
    plan->part = mem_array(plan->parts_count, sizeof *plan->part);
    plan->used = mem_array(o->tensors->tensors_count, sizeof *plan->used);
    if (!plan->part || !plan->used) return ERR_MEMORY;
    if ((e = plan_model(plan)) != OK) return e;
    for (uint32_t l = 0; l < o->config->layers_count; l++)
        if ((e = plan_layer(plan, l)) != OK) return e;
    return check_all_used(plan);
}

/* Else matrices stay as they are in the files, row by row, and go straight to the device. */
static bool packs(const struct weights_options *o)
{
    return o->ops->facts(o->backend)->weight_layout != 0;
}

/* The output matrix is the embedding: row by row they are the same bytes. */
static bool is_tied(const struct plan *plan)
{
    return plan->part[MODEL_LM_HEAD].source[0] == plan->part[MODEL_EMBEDDING].source[0];
}

static uint64_t part_bytes(const struct plan *plan, const struct part *p)
{
    switch (p->kind) {
    case PART_VECTOR: return (uint64_t)p->n * sizeof(float);
    case PART_TABLE: return (uint64_t)p->n * p->k * dtype_bytes(plan->o->dtype);
    case PART_MATRIX:
        return packs(plan->o) ? plan->o->ops->pack_bytes(p->n, p->k, plan->o->dtype)
                              : (uint64_t)p->n * p->k * dtype_bytes(plan->o->dtype);
    case PART_NONE: break;
    }
    return 0;
}

/* Packing. */

static float element(const unsigned char *at, enum dtype dtype)
{
    uint16_t half;
    float f;
    if (dtype == DTYPE_F32) {
        memcpy(&f, at, sizeof f);
        return f;
    }
    memcpy(&half, at, sizeof half);
    return dtype == DTYPE_BF16 ? f32_from_bf16(half) : f32_from_f16(half);
}

/* Row `row` of the part, counted through its sources, as fp32. */
static void copy_row(float *to, const struct part *p, uint32_t row)
{
    uint32_t s = 0;
    for (; row >= p->source[s]->dim[0]; s++)
        row -= (uint32_t)p->source[s]->dim[0];
    uint32_t size = dtype_bytes(p->source[s]->dtype);
    const unsigned char *from = p->source[s]->data + (size_t)row * p->k * size;
    for (uint32_t i = 0; i < p->k; i++)
        to[i] = element(from + (size_t)i * size, p->source[s]->dtype);
}

/* Sources go to the backend as they lie in the map, or row by row if they do not lie evenly. */
static void pack_matrix(const struct weights_options *o, const struct part *p, void *to,
                        float *staging)
{
    uint32_t first = 0;
    for (uint32_t s = 0; s < p->sources_count; s++) {
        const struct tensor *t = p->source[s];
        uint32_t rows = (uint32_t)t->dim[0], slow_rows = tensor_aligned(t) ? 0 : rows;
        if (slow_rows == 0)
            o->ops->pack_rows(to, p->n, p->k, o->dtype, t->data, t->dtype, first, rows);
        for (uint32_t r = 0; r < slow_rows; r++) {
            copy_row(staging, p, first + r);
            o->ops->pack_rows(to, p->n, p->k, o->dtype, staging, DTYPE_F32, first + r, 1);
        }
        first += rows;
    }
}

static void pack_table(enum dtype dtype, const struct part *p, void *to, float *staging)
{
    for (uint32_t r = 0; r < p->n; r++) {
        uint16_t *half = (uint16_t *)to + (size_t)r * p->k;
        copy_row(dtype == DTYPE_F32 ? (float *)to + (size_t)r * p->k : staging, p, r);
        for (uint32_t i = 0; dtype == DTYPE_BF16 && i < p->k; i++)
            half[i] = bf16_from_f32(staging[i]);
    }
}

static void pack_vector(enum dtype dtype, const struct part *p, float *to)
{
    for (uint32_t r = 0; r < p->n; r++) {
        copy_row(&to[r], p, r);
        if (dtype == DTYPE_BF16) to[r] = f32_from_bf16(bf16_from_f32(to[r]));
    }
}

static enum err pack_all(const struct plan *plan, const struct pack_want *want,
                         unsigned char *bytes)
{
    uint32_t k_max = 1;
    for (uint32_t i = 0; i < plan->parts_count; i++)
        if (plan->part[i].k > k_max) k_max = plan->part[i].k;
    float *staging = mem_array(k_max, sizeof *staging);
    if (!staging) return ERR_MEMORY;
    for (uint32_t i = 0; i < plan->parts_count; i++) {
        const struct part *p = &plan->part[i];
        void *to = bytes + want->section[i].offset;
        if (p->kind == PART_MATRIX) pack_matrix(plan->o, p, to, staging);
        if (p->kind == PART_TABLE) pack_table(plan->o->dtype, p, to, staging);
        if (p->kind == PART_VECTOR) pack_vector(plan->o->dtype, p, to);
    }
    mem_free(staging);
    return OK;
}

static enum err pack_into(struct weights *w, const struct plan *plan, const char *path,
                          const struct pack_want *want)
{
    enum err e = pack_file_create(&w->file, path, want);
    if (e != OK) return e;
    if ((e = pack_all(plan, want, w->file.bytes)) == OK) e = pack_file_seal(&w->file, want);
    if (e != OK) pack_file_close(&w->file);
    return e;
}

/* From the cache, else packed into it, else packed into memory. */
static enum err obtain(struct weights *w, const struct plan *plan, const struct pack_want *want)
{
    char path[PATH_MAX], hex[ID128_TEXT];
    const char *dir = plan->o->cache_dir;
    if (!dir) return pack_into(w, plan, NULL, want);
    id128_print(want->model, hex);
    snprintf(path, sizeof path, "%s/%s-%" PRIu32 "-%s.pack", dir, hex, want->layout,
             want->dtype == DTYPE_BF16 ? "bf16" : "fp32");
    enum err e = pack_file_map(&w->file, path, want);
    w->cache_hit = e == OK;
    if (e == OK) return OK;
    if (e != ERR_NOT_FOUND) log_warn("packed_weights_refused", "reason=\"%s\"", err_text());
    e = pack_into(w, plan, path, want);
    if (e == OK || e == ERR_MEMORY) return e;
    log_warn("packed_weights_not_written", "reason=\"%s\"", err_text());
    return pack_into(w, plan, NULL, want);
}

/* Streaming, for backends that do not pack. */

static enum err stream_part(const struct weights_options *o, const struct part *p,
                            unsigned char *device)
{
    enum err e = OK;
    for (uint32_t s = 0; e == OK && s < p->sources_count; s++) {
        const struct tensor *t = p->source[s];
        size_t count = (size_t)t->dim[0] * p->k;
        e = o->ops->weight_write(o->backend, device, o->dtype, t->data, t->dtype, count);
        device += count * dtype_bytes(o->dtype);
    }
    return e;
}

/* Norms and biases are few: through host memory, where they are rounded. */
static enum err write_vector(const struct weights_options *o, const struct part *p,
                             unsigned char *device)
{
    float *host = mem_array(p->n, sizeof *host);
    if (!host) return ERR_MEMORY;
    pack_vector(o->dtype, p, host);
    enum err e = o->ops->write(o->backend, device, host, p->n * sizeof *host);
    mem_free(host);
    return e;
}

static enum err stream_all(struct weights *w, const struct plan *plan, const struct pack_want *want)
{
    const struct weights_options *o = plan->o;
    enum err e = OK;
    w->ops = o->ops;
    w->backend = o->backend;
    if (!(w->device = o->ops->alloc(o->backend, want->file_bytes)))
        return err_set(ERR_MEMORY, "the weights (%llu bytes) do not fit on the device: %s",
                       (unsigned long long)want->file_bytes, err_text());
    for (uint32_t i = 0; e == OK && i < plan->parts_count; i++) {
        const struct part *p = &plan->part[i];
        unsigned char *to = (unsigned char *)w->device + want->section[i].offset;
        if (p->kind == PART_NONE || (i == MODEL_LM_HEAD && is_tied(plan))) continue;
        e = p->kind == PART_VECTOR ? write_vector(o, p, to) : stream_part(o, p, to);
    }
    return e == OK ? o->ops->sync(o->backend) : e;
}

/* Pointers. */

struct binder {
    const struct plan *plan;
    const struct pack_want *want;
    const unsigned char *device; /* where the sections are for the backend */
};

static const void *bind(const struct binder *b, uint32_t part)
{
    return b->plan->part[part].kind == PART_NONE ? NULL : b->device + b->want->section[part].offset;
}

static struct matrix bind_matrix(const struct binder *b, uint32_t part)
{
    const struct part *p = &b->plan->part[part];
    return (struct matrix){bind(b, part), p->n, p->k, b->plan->o->dtype};
}

static enum err bind_all(struct weights *w, const struct plan *plan, const struct pack_want *want)
{
    const struct weights_options *o = plan->o;
    const void *device = w->device;
    enum err e = OK;
    if (!device) e = o->ops->weight_place(o->backend, w->file.bytes, w->file.size_bytes, &device);
    if (e != OK) return e;
    struct binder b = {plan, want, device};
    w->dtype = o->dtype;
    w->embedding = bind(&b, MODEL_EMBEDDING);
    w->norm = bind(&b, MODEL_NORM);
    w->lm_head = bind_matrix(&b, MODEL_LM_HEAD);
    if (!packs(o) && is_tied(plan)) w->lm_head.packed = w->embedding;
    if (!(w->layer = mem_array(o->config->layers_count, sizeof *w->layer))) return ERR_MEMORY;
    for (uint32_t l = 0; l < o->config->layers_count; l++) {
        uint32_t at = MODEL_PARTS + l * LAYER_PARTS;
        w->layer[l] = (struct layer_weights){
            .attention_norm = bind(&b, at + LAYER_ATTENTION_NORM),
            .qkv = bind_matrix(&b, at + LAYER_QKV),
            .qkv_bias = bind(&b, at + LAYER_QKV_BIAS),
            .out = bind_matrix(&b, at + LAYER_OUT),
            .out_bias = bind(&b, at + LAYER_OUT_BIAS),
            .mlp_norm = bind(&b, at + LAYER_MLP_NORM),
            .gate_up = bind_matrix(&b, at + LAYER_GATE_UP),
            .gate_up_bias = bind(&b, at + LAYER_GATE_UP_BIAS),
            .down = bind_matrix(&b, at + LAYER_DOWN),
            .down_bias = bind(&b, at + LAYER_DOWN_BIAS),
        };
    }
    return OK;
}

enum err weights_check(const struct model_config *config, const struct tensors *tensors)
{
    struct weights_options o = {.config = config, .tensors = tensors};
    struct plan plan = {.o = &o};
    enum err e = plan_all(&plan);
    mem_free(plan.part);
    mem_free(plan.used);
    return e;
}

enum err weights_open(struct weights *w, const struct weights_options *o)
{
    struct plan plan = {.o = o};
    struct pack_want want = {
        .model = o->model, .layout = o->ops->facts(o->backend)->weight_layout, .dtype = o->dtype};
    *w = (struct weights){.file.write.fd = -1};
    enum err e = plan_all(&plan);
    if (e != OK) goto done;
    e = ERR_MEMORY;
    if (!(want.section = mem_array(plan.parts_count, sizeof *want.section))) goto done;
    want.sections_count = plan.parts_count;
    for (uint32_t i = 0; i < plan.parts_count; i++) {
        const struct part *p = &plan.part[i];
        want.section[i].bytes = part_bytes(&plan, p);
        if (!packs(o) && i == MODEL_LM_HEAD && is_tied(&plan)) want.section[i].bytes = 0;
        w->bytes += want.section[i].bytes;
        if (p->kind == PART_MATRIX) w->flops_per_token += 2.0 * p->n * p->k;
    }
    if ((e = pack_want_place(&want)) != OK) goto done;
    e = packs(o) ? obtain(w, &plan, &want) : stream_all(w, &plan, &want);
    if (e != OK) goto done;
    e = bind_all(w, &plan, &want);
done:
    mem_free(want.section);
    mem_free(plan.part);
    mem_free(plan.used);
    if (e != OK) weights_close(w);
    return e;
}

void weights_close(struct weights *w)
{
    mem_free(w->layer);
    pack_file_close(&w->file);
    if (w->device) w->ops->free(w->backend, w->device);
    *w = (struct weights){.file.write.fd = -1};
}

enum err weights_dtype(enum dtype *out, const struct tensors *t)
{
    const struct tensor *embedding = tensors_find(t, "model.embed_tokens.weight");
    if (!embedding) return tensors_missing(t, "model.embed_tokens.weight");
    *out = embedding->dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    return OK;
}
