/* tandem plan: how much memory a model's KV takes and how many nodes a load needs, without a cluster. */
#include <stdio.h>
#include <stdlib.h>

#include "client/cmd.h"
#include "client/plan_print.h"

struct options {
    const char *model;
    int64_t layers, heads, kv_heads, head_dim, hidden, ffn, vocab, context, window;
    bool tied, json;
    int dtype, device;
    uint64_t memory_bytes, reserve_bytes;
    double kv_share;
    int64_t chunk, batch;
    double requests_per_second, cached_share;
    int64_t prompt_tokens, output_tokens;
    uint64_t ttft_ns, itl_ns, decode_step_ns;
    double prefill_rate, flops, bandwidth, flops_share, bandwidth_share, use;
};

#define HOUR_NS (3600 * NS_PER_S)
static const struct setting rows[] = {
    SETTING_STRING(struct options, model, "model", NULL,
                   "model directory (config.json, and *.safetensors if they are there)"),
    SETTING_INT(struct options, layers, "layers", "0", 0, SHAPE_LAYERS_MAX,
                "layers; this and the next eight: 0: what --model says"),
    SETTING_INT(struct options, heads, "heads", "0", 0, SHAPE_HEADS_MAX, "attention heads"),
    SETTING_INT(struct options, kv_heads, "kv-heads", "0", 0, SHAPE_HEADS_MAX,
                "heads of K and V: fewer than heads with GQA, 1 with MQA"),
    SETTING_INT(struct options, head_dim, "head-dim", "0", 0, SHAPE_HEAD_DIM_MAX,
                "numbers of a head's K"),
    SETTING_INT(struct options, hidden, "hidden", "0", 0, SHAPE_WIDTH_MAX, "hidden size"),
    SETTING_INT(struct options, ffn, "ffn", "0", 0, SHAPE_WIDTH_MAX, "intermediate size"),
    SETTING_INT(struct options, vocab, "vocab", "0", 0, SHAPE_VOCAB_MAX, "vocabulary"),
    SETTING_INT(struct options, context, "context", "0", 0, SHAPE_CONTEXT_MAX,
                "longest sequence in tokens, as nodes are told: at most the model's"),
    SETTING_INT(struct options, window, "window", "0", 0, SHAPE_CONTEXT_MAX,
                "tokens whose KV a request keeps, of a model with a sliding window"),
    SETTING_BOOL(struct options, tied, "tied", "false",
                 "the output matrix is the embedding; if not given: what --model says"),
    SETTING_CHOICE(struct options, dtype, "dtype", "auto|fp32|bf16", "auto",
                   "type of weights and KV; auto: as nodes take it from the files, else bf16"),
    SETTING_CHOICE(struct options, device, "device", "cuda|cpu", "cuda", "what nodes compute on"),
    SETTING_SIZE(struct options, memory_bytes, "memory", "0", 0, 1e15,
                 "memory of one node's GPU or host, like 80GiB; 0: not looked at"),
    SETTING_SIZE(struct options, reserve_bytes, "reserve", "1G", 0, 1e15,
                 "memory for the driver, its libraries and recorded steps, or the host's other "
                 "programs"),
    SETTING_DOUBLE(struct options, kv_share, "kv-share", "0.9", 0.01, 1,
                   "share of what is left that becomes the KV pool, as nodes are told"),
    SETTING_INT(struct options, chunk, "chunk", "512", 1, 65536,
                "prompt tokens in one step of P, as nodes are told"),
    SETTING_INT(struct options, batch, "batch", "128", 1, PLAN_BATCH_MAX,
                "sequences in one step of D at most, as nodes are told"),
    SETTING_DOUBLE(struct options, requests_per_second, "requests-per-second", "0", 0, 1e6,
                   "the load; 0: none, only memory is looked at"),
    SETTING_INT(struct options, prompt_tokens, "prompt-tokens", "0", 0, SHAPE_CONTEXT_MAX,
                "tokens of a prompt"),
    SETTING_INT(struct options, output_tokens, "output-tokens", "0", 0, SHAPE_CONTEXT_MAX,
                "tokens of an answer"),
    SETTING_DOUBLE(struct options, cached_share, "cached-share", "0", 0, 1,
                   "share of prompts' tokens that are found in prefix caches"),
    SETTING_DURATION(struct options, ttft_ns, "ttft", "0", 0, HOUR_NS,
                     "limit of 99 % of the times to the first token; 0: none"),
    SETTING_DURATION(struct options, itl_ns, "itl", "0", 0, HOUR_NS,
                     "limit of the time between tokens; 0: none"),
    SETTING_DOUBLE(struct options, prefill_rate, "prefill-rate", "0", 0, 1e12,
                   "prompt tokens/s of one P, measured; 0: estimated from --flops"),
    SETTING_DURATION(struct options, decode_step_ns, "decode-step", "0", 0, HOUR_NS,
                     "time of D's step with --batch sequences, measured; 0: estimated from "
                     "--bandwidth"),
    SETTING_DOUBLE(struct options, flops, "flops", "0", 0, 1e21,
                   "peak of one node's device in --dtype, like 989e12"),
    SETTING_DOUBLE(struct options, bandwidth, "bandwidth", "0", 0, 1e18,
                   "peak of its memory in bytes/s, like 3.35e12"),
    SETTING_DOUBLE(struct options, flops_share, "flops-share", "0.5", 0.01, 1,
                   "share of --flops that is taken as reached"),
    SETTING_DOUBLE(struct options, bandwidth_share, "bandwidth-share", "0.7", 0.01, 1,
                   "share of --bandwidth that is taken as reached"),
    SETTING_DOUBLE(struct options, use, "use", "0.7", 0.05, 0.99,
                   "share of P's time and D's batch that the load may fill, for short queues"),
    SETTING_BOOL(struct options, json, "json", "false", "print JSON"),
};

static void tell(uint32_t *number, int64_t told)
{
    if (told > 0) *number = (uint32_t)told;
}

/* What the model says, each number replaced by one that was told. */
static void tell_shape(struct model_shape *s, const struct settings *settings,
                       const struct options *o)
{
    bool other_heads = o->heads > 0 && o->kv_heads == 0 && s->kv_heads == 0;
    tell(&s->layers, o->layers);
    tell(&s->heads, o->heads);
    tell(&s->kv_heads, other_heads ? o->heads : o->kv_heads);
    tell(&s->hidden, o->hidden);
    if (s->head_dim == 0 && s->heads > 0 && s->hidden % s->heads == 0)
        s->head_dim = s->hidden / s->heads;
    tell(&s->head_dim, o->head_dim);
    tell(&s->ffn, o->ffn);
    tell(&s->vocab, o->vocab);
    if (s->context == 0 || o->context <= s->context)
        tell(&s->context, o->context);
    else
        fprintf(stderr,
                "tandem plan: --context %lld is more than the model's %u, which is what nodes take "
                "then, and what is planned with\n",
                (long long)o->context, s->context);
    tell(&s->window, o->window);
    if (settings_source(settings, "tied") != SETTING_BY_DEFAULT) s->tied = o->tied;
}

/* A model that is not bf16 is computed in fp32 (engine/weights.h). */
static enum dtype choose_dtype(const struct options *o, const struct model_shape *s,
                               const struct model_files *files)
{
    static const enum dtype told[] = {DTYPE_NONE, DTYPE_F32, DTYPE_BF16};
    if (told[o->dtype] != DTYPE_NONE) return told[o->dtype];
    enum dtype stored = files->dtype != DTYPE_NONE ? files->dtype : s->dtype;
    return stored == DTYPE_BF16 || stored == DTYPE_NONE ? DTYPE_BF16 : DTYPE_F32;
}

static struct plan_options plan_options_of(const struct options *o, const struct model_shape *s)
{
    return (struct plan_options){.shape = *s,
                                 .on_cpu = o->device == 1,
                                 .memory_bytes = o->memory_bytes,
                                 .reserve_bytes = o->reserve_bytes,
                                 .kv_share = o->kv_share,
                                 .chunk = (uint32_t)o->chunk,
                                 .batch = (uint32_t)o->batch,
                                 .requests_per_second = o->requests_per_second,
                                 .prompt_tokens = (uint32_t)o->prompt_tokens,
                                 .output_tokens = (uint32_t)o->output_tokens,
                                 .cached_share = o->cached_share,
                                 .ttft_ns = o->ttft_ns,
                                 .itl_ns = o->itl_ns,
                                 .prefill_rate = o->prefill_rate,
                                 .decode_step_ns = o->decode_step_ns,
                                 .flops = o->flops,
                                 .bandwidth = o->bandwidth,
                                 .flops_share = o->flops_share,
                                 .bandwidth_share = o->bandwidth_share,
                                 .use = o->use};
}

static enum err show(const struct plan *p, const struct model_files *files, bool as_json)
{
    if (!as_json) {
        plan_print(p, files, stdout);
        return OK;
    }
    json_t *json = plan_json(p, files);
    char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(10)) : NULL;
    if (text) printf("%s\n", text);
    free(text);
    json_decref(json);
    return text ? OK : err_set(ERR_MEMORY, "out of memory");
}

static int run(const struct settings *settings, const struct options *o)
{
    struct model_shape shape = {0};
    struct model_files files = {0};
    struct plan plan;
    enum err e = OK;
    if (o->model && (e = model_shape_load(&shape, o->model)) == OK)
        e = model_files_load(&files, o->model);
    if (e == OK) {
        tell_shape(&shape, settings, o);
        shape.dtype = choose_dtype(o, &shape, &files);
        struct plan_options options = plan_options_of(o, &shape);
        e = plan_make(&plan, &options);
    }
    if (e == OK) e = show(&plan, &files, o->json);
    if (e == OK) return CMD_DONE;
    fprintf(stderr, "tandem plan: %s\n", err_text());
    if (e == ERR_UNSUPPORTED)
        fprintf(stderr, "a model of the same form can be told by numbers instead: --layers, "
                        "--kv-heads, --head-dim ...\n");
    return e == ERR_INVALID ? CMD_USAGE : CMD_FAILED;
}

int cmd_plan(int argc, char **argv)
{
    struct options o = {0};
    const struct settings_table own = {rows, COUNT_OF(rows), &o};
    const struct settings_program about = {
        .name = "tandem plan",
        .about = "How much memory a model's KV takes, how many requests fit into a node, and how "
                 "many prefill and decode nodes a load needs (docs/kv-memory.md)."};
    struct settings s;
    int code;
    if (!cmd_settings(&s, &about, &own, NULL, argc, argv, &code)) return code;
    code = run(&s, &o);
    settings_fini(&s);
    return code;
}
