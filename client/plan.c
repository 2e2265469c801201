#include "client/plan.h"

#include <math.h>
#include <stdio.h>

#include "common/clock.h"

/* What the roles have beside their chunk and batch: sequences of prompts in a step, slots, and P's
 * batch and D's chunk as they are by default (prefill_node/policy.c, decode_node/policy.c). */
enum {
    P_BATCH = 8,
    P_PROMPTS = 32,
    P_SLOTS = 96 + P_BATCH,
    D_CHUNK = 64,
    D_PROMPTS = 8,
    CPU_MLP_ROWS = 512, /* engine/forward.c */
};

/* ---- the model ---- */

struct plan_parameters plan_parameters_of(const struct model_shape *s)
{
    uint64_t q = (uint64_t)s->heads * s->head_dim, kv = (uint64_t)s->kv_heads * s->head_dim;
    uint64_t hidden = s->hidden, layers = s->layers;
    struct plan_parameters p = {
        .embedding = s->vocab * hidden,
        .layers = layers * (hidden * (q + 2 * kv) + q * hidden + 3 * hidden * s->ffn),
        .lm_head = s->vocab * hidden,
        .vectors = layers * 2 * hidden + hidden,
    };
    if (s->attention_bias) p.vectors += layers * (q + 2 * kv + hidden);
    if (s->mlp_bias) p.vectors += layers * (2 * (uint64_t)s->ffn + hidden);
    p.total = p.embedding + p.layers + p.vectors + (s->tied ? 0 : p.lm_head);
    return p;
}

/* On CPUs lm_head is packed, so that it cannot be the embedding's memory. Norms and biases are fp32. */
static uint64_t weights_bytes(const struct plan *p)
{
    const struct plan_parameters *w = &p->parameters;
    const struct plan_options *o = &p->options;
    uint64_t matrices = w->embedding + w->layers;
    if (!o->shape.tied || o->on_cpu) matrices += w->lm_head;
    return matrices * dtype_bytes(o->shape.dtype) + w->vectors * sizeof(float);
}

/* The buffers of the forward pass, rope's table and the slots' token counts. */
static uint64_t buffers_bytes(const struct plan_options *o, uint64_t rows, uint64_t outputs,
                              uint64_t slots)
{
    const struct model_shape *s = &o->shape;
    uint64_t q = (uint64_t)s->heads * s->head_dim, kv = (uint64_t)s->kv_heads * s->head_dim;
    uint64_t element = o->on_cpu ? sizeof(float) : dtype_bytes(s->dtype);
    uint64_t mlp_rows = o->on_cpu && rows > CPU_MLP_ROWS ? CPU_MLP_ROWS : rows;
    uint64_t normed_rows = rows > outputs ? rows : outputs;
    return rows * s->hidden * sizeof(float) + normed_rows * s->hidden * element +
           rows * (2 * q + 2 * kv) * element + mlp_rows * 3 * s->ffn * element +
           outputs * (s->hidden + (uint64_t)s->vocab) * sizeof(float) +
           (uint64_t)s->context * s->head_dim * sizeof(float) + slots * s->vocab * sizeof(float);
}

/* ---- memory ---- */

static void make_pool(const struct plan *p, struct plan_pool *pool)
{
    const struct plan_options *o = &p->options;
    uint64_t taken = p->weights_bytes + pool->buffers_bytes + o->reserve_bytes;
    if (taken < o->memory_bytes)
        pool->blocks_count =
            (uint64_t)((double)(o->memory_bytes - taken) * o->kv_share) / p->block_bytes;
    pool->pool_bytes = pool->blocks_count * p->block_bytes;
}

/* What would help a node that does not fit; a smaller context's buffers are smaller, too. */
static void advise(const struct plan *p, char *text, size_t size)
{
    uint64_t blocks = p->prefill_pool.blocks_count;
    if (blocks > p->decode_pool.blocks_count) blocks = p->decode_pool.blocks_count;
    const char *other = p->options.shape.dtype == DTYPE_F32 ? ", or --dtype bf16" : "";
    if (blocks > 0)
        snprintf(text, size, "lower --context: %llu tokens fit%s",
                 (unsigned long long)blocks * BLOCK_TOKENS, other);
    else
        snprintf(text, size, "give more --memory or a smaller --reserve%s", other);
}

static enum err check_pool(const struct plan *p, const char *role, const struct plan_pool *pool)
{
    const struct plan_options *o = &p->options;
    uint64_t context = blocks_held(o->shape.context, o->shape.window);
    char advice[96];
    if (pool->blocks_count >= context) return OK;
    advise(p, advice, sizeof advice);
    return err_set(ERR_MEMORY,
                   "a %s node does not fit into %llu MiB: weights %llu MiB, buffers %llu MiB, "
                   "reserve %llu MiB, and the KV of one context of %u tokens %llu MiB, which must "
                   "be at most %.0f %% of the rest; %s",
                   role, (unsigned long long)o->memory_bytes >> 20,
                   (unsigned long long)p->weights_bytes >> 20,
                   (unsigned long long)pool->buffers_bytes >> 20,
                   (unsigned long long)o->reserve_bytes >> 20, o->shape.context,
                   (unsigned long long)(context * p->block_bytes) >> 20, o->kv_share * 100, advice);
}

static void add_length(struct plan *p, uint32_t tokens, bool told)
{
    struct plan_length *l = &p->length[p->lengths_count++];
    uint32_t blocks = blocks_held(tokens, p->options.shape.window);
    *l = (struct plan_length){.tokens = tokens,
                              .blocks_count = blocks,
                              .empty_tokens = blocks_for_tokens(tokens) * BLOCK_TOKENS - tokens,
                              .bytes = blocks * (uint64_t)p->block_bytes,
                              .requests_count = p->decode_pool.blocks_count / blocks,
                              .told = told};
}

/* 512, 2048, 8192 ... and the whole context, with the load's own length between them. */
static void make_lengths(struct plan *p)
{
    const struct plan_options *o = &p->options;
    uint32_t context = o->shape.context, told = o->prompt_tokens + o->output_tokens;
    if (told > context) told = 0; /* refused elsewhere if there is a load */
    for (uint32_t tokens = 512, before = 0; before < context; before = tokens, tokens *= 4) {
        if (tokens > context) tokens = context;
        if (told > before && told <= tokens) add_length(p, told, true);
        if (told != tokens) add_length(p, tokens, false);
    }
}

static enum err check_shape(const struct plan_options *o, const char *why, bool context)
{
    const struct model_shape *s = &o->shape;
    const struct {
        const char *name;
        uint32_t value;
    } rows[] = {
        {"--heads", s->heads},
        {"--hidden", s->hidden},
        {"--ffn", s->ffn},
        {"--vocab", s->vocab},
        {"--context", context ? s->context : 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].value == 0)
            return err_set(ERR_INVALID, "%s needs %s, or --model DIR", why, rows[i].name);
    return OK;
}

static enum err make_memory(struct plan *p)
{
    const struct plan_options *o = &p->options;
    enum err e = check_shape(o, "--memory", true);
    if (e != OK) return e;
    p->prefill_pool.buffers_bytes =
        buffers_bytes(o, P_BATCH + (uint64_t)o->chunk, P_BATCH + P_PROMPTS, P_SLOTS);
    p->decode_pool.buffers_bytes = buffers_bytes(o, D_CHUNK + (uint64_t)o->batch,
                                                 o->batch + (uint64_t)D_PROMPTS, 3 * o->batch + 16);
    make_pool(p, &p->prefill_pool);
    make_pool(p, &p->decode_pool);
    if ((e = check_pool(p, "prefill", &p->prefill_pool)) != OK) return e;
    if ((e = check_pool(p, "decode", &p->decode_pool)) != OK) return e;
    p->contiguous_count = p->decode_pool.blocks_count / blocks_for_tokens(o->shape.context);
    make_lengths(p);
    return OK;
}

/* ---- prefill ---- */

double plan_mean_keys(double first, double end, uint32_t window)
{
    double w = window, count = end - first;
    if (count <= 0) return window && end > w ? w : end;
    if (window == 0 || end <= w) return (first + 1 + end) / 2;
    if (first >= w) return w;
    return ((w - first) * (first + 1 + w) / 2 + (end - w) * w) / count;
}

/* Two for each weight, and q k and p v: four for each head's dimension and key. */
static double token_flops(const struct plan *p, double weights, double keys)
{
    const struct model_shape *s = &p->options.shape;
    return 2 * weights + 4.0 * s->layers * s->heads * s->head_dim * keys;
}

struct plan_wait plan_wait_of(uint32_t c, double a, double s)
{
    double blocked = 1; /* Erlang B, then C */
    for (uint32_t k = 1; k <= c; k++)
        blocked = a * blocked / (k + a * blocked);
    double waits = c * blocked / (c - a * (1 - blocked)), over = c - a;
    struct plan_wait w = {.mean = waits * s / over / 2};
    if (waits > 0.01) w.p99 = log(waits / 0.01) * s / over / 2;
    return w;
}

/* The slower of computing a chunk and of reading the weights for it. */
static void estimate_prefill(const struct plan *p, struct plan_prefill *f)
{
    const struct plan_options *o = &p->options;
    double first = o->prompt_tokens - (double)f->computed_tokens, end = o->prompt_tokens;
    double layers = (double)p->parameters.layers;
    f->flops_per_token = token_flops(p, layers, plan_mean_keys(first, end, o->shape.window));
    double token_s = f->flops_per_token / (o->flops * o->flops_share);
    double read_s = 0;
    if (o->bandwidth > 0)
        read_s =
            layers * dtype_bytes(o->shape.dtype) / (o->bandwidth * o->bandwidth_share) / o->chunk;
    f->rate = 1 / (token_s > read_s ? token_s : read_s);
}

static enum err grow_prefill(const struct plan_options *o, struct plan_prefill *f)
{
    double limit_s = (double)o->ttft_ns / NS_PER_S;
    if (limit_s > 0 && f->prompt_s >= limit_s)
        return err_set(ERR_INVALID,
                       "--ttft: computing a prompt of %u tokens alone takes %.0f ms of the %.0f "
                       "ms, however many nodes there are",
                       f->computed_tokens, f->prompt_s * 1e3, limit_s * 1e3);
    double least = ceil(f->offered / o->use - 1e-9);
    for (double c = least < 1 ? 1 : least; c <= PLAN_NODES_MAX; c++) {
        struct plan_wait w = plan_wait_of((uint32_t)c, f->offered, f->prompt_s);
        if (limit_s > 0 && w.p99 + f->prompt_s > limit_s) continue;
        f->nodes_count = (uint32_t)c;
        f->use = f->offered / c;
        f->wait_s = w.mean;
        f->wait_99_s = w.p99;
        return OK;
    }
    return err_set(ERR_INVALID, "this load needs more than %d prefill nodes", PLAN_NODES_MAX);
}

static enum err make_prefill(struct plan *p)
{
    const struct plan_options *o = &p->options;
    struct plan_prefill *f = &p->prefill;
    f->computed_tokens = (uint32_t)ceil(o->prompt_tokens * (1 - o->cached_share));
    if (f->computed_tokens == 0) f->computed_tokens = 1; /* for the first token's logits */
    f->rate = o->prefill_rate;
    if (f->rate == 0 && o->flops == 0)
        return err_set(ERR_INVALID, "a prefill node's speed is not known: give --prefill-rate, or "
                                    "--flops to have it estimated");
    if (f->rate == 0) estimate_prefill(p, f);
    f->prompt_s = f->computed_tokens / f->rate;
    f->offered = o->requests_per_second * f->prompt_s;
    return grow_prefill(o, f);
}

/* ---- decode ---- */

double plan_step_s(const struct plan *p, double batch)
{
    const struct plan_options *o = &p->options;
    if (o->decode_step_ns > 0) return (double)o->decode_step_ns / NS_PER_S;
    double keys = plan_mean_keys(p->decode.mean_tokens, p->decode.mean_tokens, o->shape.window);
    double weights = (double)(p->parameters.layers + p->parameters.lm_head);
    double bytes = weights * dtype_bytes(o->shape.dtype) + batch * keys * (double)p->token_bytes;
    double read_s = bytes / (o->bandwidth * o->bandwidth_share);
    double computed_s = 0;
    if (o->flops > 0)
        computed_s = batch * token_flops(p, weights, keys) / (o->flops * o->flops_share);
    return read_s > computed_s ? read_s : computed_s;
}

/* The largest batch that setting, limit and pool allow, and which of them it is. */
static enum err bound_batch(struct plan *p)
{
    const struct plan_options *o = &p->options;
    struct plan_decode *d = &p->decode;
    double limit_s = (double)o->itl_ns / NS_PER_S;
    d->batch_max = o->batch;
    if (limit_s > 0 && plan_step_s(p, 1) > limit_s)
        return err_set(ERR_INVALID, "--itl: a step takes %.2f ms, more than the limit of %.2f ms",
                       plan_step_s(p, 1) * 1e3, limit_s * 1e3);
    while (limit_s > 0 && d->batch_max > 1 && plan_step_s(p, d->batch_max) > limit_s) {
        d->batch_max--;
        d->bound = PLAN_BY_ITL;
    }
    uint64_t fit = p->decode_pool.blocks_count / d->mean_blocks;
    if (o->memory_bytes == 0 || fit >= d->batch_max) return OK;
    d->batch_max = (uint32_t)fit;
    d->bound = PLAN_BY_MEMORY;
    return OK;
}

/* The smallest batch at which a node gives its part of the tokens. */
static void settle_batch(struct plan *p)
{
    struct plan_decode *d = &p->decode;
    double wanted = d->tokens_rate / d->nodes_count;
    for (d->batch = 1; d->batch < d->batch_max; d->batch++)
        if (d->batch / plan_step_s(p, d->batch) >= wanted * (1 - 1e-9)) break;
    d->step_s = plan_step_s(p, d->batch);
}

static enum err make_decode(struct plan *p)
{
    const struct plan_options *o = &p->options;
    struct plan_decode *d = &p->decode;
    d->mean_tokens = o->prompt_tokens + o->output_tokens / 2.0;
    d->mean_blocks = blocks_held((uint32_t)ceil(d->mean_tokens), o->shape.window);
    d->tokens_rate = o->requests_per_second * o->output_tokens;
    d->transfer_rate = o->requests_per_second * blocks_held(o->prompt_tokens, o->shape.window) *
                       (double)p->block_bytes;
    if (o->decode_step_ns == 0 && o->bandwidth == 0)
        return err_set(ERR_INVALID, "a decode node's speed is not known: give --decode-step, or "
                                    "--bandwidth to have it estimated");
    enum err e = bound_batch(p);
    if (e != OK) return e;
    d->used_batch = o->use * d->batch_max < 1 ? 1 : o->use * d->batch_max;
    d->used_step_s = plan_step_s(p, d->used_batch);
    d->offered = d->tokens_rate * plan_step_s(p, d->batch_max) / d->batch_max;
    double nodes = ceil(d->tokens_rate * d->used_step_s / d->used_batch - 1e-9);
    if (nodes > PLAN_NODES_MAX)
        return err_set(ERR_INVALID, "this load needs more than %d decode nodes", PLAN_NODES_MAX);
    d->nodes_count = nodes < 1 ? 1 : (uint32_t)nodes;
    settle_batch(p);
    return OK;
}

static enum err make_load(struct plan *p)
{
    const struct plan_options *o = &p->options;
    enum err e;
    if (o->prompt_tokens == 0 || o->output_tokens == 0)
        return err_set(ERR_INVALID,
                       "--requests-per-second needs --prompt-tokens and --output-tokens");
    if (o->shape.context > 0 && (uint64_t)o->prompt_tokens + o->output_tokens > o->shape.context)
        return err_set(ERR_INVALID,
                       "%u tokens of prompt and %u of answer are more than the context of %u",
                       o->prompt_tokens, o->output_tokens, o->shape.context);
    bool estimates = o->prefill_rate == 0 || o->decode_step_ns == 0;
    if (estimates && (e = check_shape(o, "estimating a rate", false)) != OK) return e;
    if ((e = make_prefill(p)) != OK) return e;
    return make_decode(p);
}

/* What the sums of KV need. */
static enum err check_kv(const struct model_shape *s)
{
    if (s->layers == 0 || s->kv_heads == 0 || s->head_dim == 0)
        return err_set(ERR_INVALID,
                       "%s is not known: give --model DIR, or numbers, at least "
                       "--layers, --kv-heads and --head-dim",
                       s->layers == 0     ? "how many layers a model has"
                       : s->kv_heads == 0 ? "how many kv heads a model has"
                                          : "the size of a head");
    if (s->head_dim % 2 != 0)
        return err_set(ERR_INVALID,
                       "a head size of %u: rotary positions turn pairs, so it must be even",
                       s->head_dim);
    if (s->heads % s->kv_heads == 0) return OK;
    return err_set(ERR_INVALID, "%u heads are no multiple of %u kv heads", s->heads, s->kv_heads);
}

enum err plan_make(struct plan *p, const struct plan_options *o)
{
    const struct model_shape *s = &o->shape;
    enum err e;
    *p = (struct plan){.options = *o};
    if ((e = check_kv(s)) != OK) return e;
    p->geometry = (struct kv_geometry){.layers_count = s->layers,
                                       .kv_heads = s->kv_heads,
                                       .head_dim = s->head_dim,
                                       .block_tokens = BLOCK_TOKENS,
                                       .layout = o->on_cpu ? KV_LAYOUT_CPU : KV_LAYOUT_CUDA,
                                       .dtype = s->dtype};
    p->token_bytes = kv_token_bytes(&p->geometry);
    p->block_bytes = kv_block_bytes(&p->geometry);
    if (check_shape(o, "", false) == OK) p->parameters = plan_parameters_of(s);
    p->weights_bytes = weights_bytes(p);
    if (o->memory_bytes > 0 && (e = make_memory(p)) != OK) return e;
    return o->requests_per_second > 0 ? make_load(p) : OK;
}
