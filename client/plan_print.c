#include "client/plan_print.h"

#include <inttypes.h>
#include <string.h>

#include "common/clock.h"

enum { TEXT = 48 };

static const char *dtype_text(enum dtype t)
{
    return t == DTYPE_F32 ? "fp32" : t == DTYPE_BF16 ? "bf16" : "fp16";
}

/* "128.0 KiB" */
static const char *size_text(double bytes, char text[TEXT])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t i = 0;
    for (; bytes >= 1024 && i < 4; i++)
        bytes /= 1024;
    snprintf(text, TEXT, i == 0 ? "%.0f %s" : "%.1f %s", bytes, units[i]);
    return text;
}

/* "8,030,261,248" */
static const char *count_text(uint64_t count, char text[TEXT])
{
    char digits[TEXT];
    size_t n = (size_t)snprintf(digits, sizeof digits, "%" PRIu64, count), at = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = '\0';
    return text;
}

/* ---- the model ---- */

static void print_model(const struct plan *p, const struct model_files *files, FILE *out)
{
    const struct model_shape *s = &p->options.shape;
    char a[TEXT], b[TEXT];
    fprintf(out, "model            %s: %u layers, %u kv heads of %u",
            s->architecture ? s->architecture : "by numbers", s->layers, s->kv_heads, s->head_dim);
    if (s->heads) fprintf(out, ", %u heads", s->heads);
    if (s->hidden) fprintf(out, ", hidden %u", s->hidden);
    if (s->ffn) fprintf(out, ", ffn %u", s->ffn);
    if (s->vocab) fprintf(out, ", vocabulary %u%s", s->vocab, s->tied ? " (tied)" : "");
    if (s->context) fprintf(out, ", context %u", s->context);
    if (s->window) fprintf(out, ", window %u", s->window);
    fputc('\n', out);
    if (p->parameters.total > 0)
        fprintf(out, "weights          %s parameters, %s in %s\n",
                count_text(p->parameters.total, a), size_text((double)p->weights_bytes, b),
                dtype_text(s->dtype));
    if (files->files_count > 0)
        fprintf(out, "  in the files   %s parameters, %s in %u file%s%s\n",
                count_text(files->parameters, a), size_text((double)files->bytes, b),
                files->files_count, files->files_count == 1 ? "" : "s",
                files->parameters == p->parameters.total ? "" : ": not those of this shape");
    fprintf(out, "KV of a token    2 x %u layers x %u kv heads x %u x %u bytes = %s bytes (%s)\n",
            s->layers, s->kv_heads, s->head_dim, dtype_bytes(s->dtype),
            count_text(p->token_bytes, a), size_text((double)p->token_bytes, b));
    fprintf(out, "KV of a block    %d tokens: %s\n", BLOCK_TOKENS,
            size_text((double)p->block_bytes, a));
    if (s->window)
        fprintf(
            out,
            "KV of a request  at most %u blocks, %s: the last %u tokens, wherever they begin in "
            "a block; the rest is freed\n",
            blocks_held(UINT32_MAX, s->window),
            size_text((double)blocks_held(UINT32_MAX, s->window) * (double)p->block_bytes, a),
            s->window);
}

/* ---- memory ---- */

static void print_row(FILE *out, const char *what, double prefill, double decode, const char *why)
{
    char a[TEXT], b[TEXT];
    fprintf(out, "  %-22s %12s %12s  %s\n", what, size_text(prefill, a), size_text(decode, b), why);
}

static void print_memory(const struct plan *p, FILE *out)
{
    const struct plan_options *o = &p->options;
    const struct plan_pool *prefill = &p->prefill_pool, *decode = &p->decode_pool;
    double given = (double)o->memory_bytes, weights = (double)p->weights_bytes;
    char why[2 * TEXT], a[TEXT], b[TEXT];
    fprintf(out, "\n%-24s %12s %12s\n", "memory of a node", "P", "D");
    print_row(out, "given", given, given, "--memory");
    print_row(out, "- weights", weights, weights,
              o->on_cpu ? "packed for CPUs" : dtype_text(o->shape.dtype));
    snprintf(why, sizeof why, "steps: P chunk %u, D batch %u", o->chunk, o->batch);
    print_row(out, "- buffers", (double)prefill->buffers_bytes, (double)decode->buffers_bytes, why);
    print_row(out, "- reserve", (double)o->reserve_bytes, (double)o->reserve_bytes,
              o->on_cpu ? "--reserve: the host's other programs; an assumption"
                        : "--reserve: driver, libraries, recorded steps; an assumption");
    snprintf(why, sizeof why, "%.0f %% of the rest (--kv-share), in whole blocks",
             o->kv_share * 100);
    print_row(out, "= KV pool", (double)prefill->pool_bytes, (double)decode->pool_bytes, why);
    fprintf(out, "  %-22s %12s %12s\n", "  in blocks", count_text(prefill->blocks_count, a),
            count_text(decode->blocks_count, b));
    fprintf(out, "  %-22s %12s %12s\n", "  in tokens",
            count_text(prefill->blocks_count * BLOCK_TOKENS, a),
            count_text(decode->blocks_count * BLOCK_TOKENS, b));
    if (o->on_cpu)
        fprintf(out,
                "  on CPUs a node takes this only if told: P --kv-bytes %" PRIu64
                ", D --kv-bytes %" PRIu64 "\n",
                prefill->pool_bytes, decode->pool_bytes);
}

static void print_lengths(const struct plan *p, FILE *out)
{
    char a[TEXT], b[TEXT], c[TEXT];
    fprintf(out, "\nrequests of one length that a D's pool holds at once\n");
    fprintf(out, "  %12s %9s %12s %16s %12s\n", "tokens", "blocks", "KV", "last block empty",
            "requests");
    for (uint32_t i = 0; i < p->lengths_count; i++) {
        const struct plan_length *l = &p->length[i];
        fprintf(out, "  %12s %9u %12s %16u %12s%s\n", count_text(l->tokens, a), l->blocks_count,
                size_text((double)l->bytes, b), l->empty_tokens, count_text(l->requests_count, c),
                l->told ? "  the load's prompt and answer" : "");
    }
    fprintf(out, "  each kept contiguous at the whole context of %s tokens: %s\n",
            count_text(p->options.shape.context, a), count_text(p->contiguous_count, b));
}

/* ---- load ---- */

static void print_prefill(const struct plan *p, FILE *out)
{
    const struct plan_options *o = &p->options;
    const struct plan_prefill *f = &p->prefill;
    char a[TEXT];
    fprintf(out, "\nprefill nodes\n");
    if (o->prefill_rate == 0)
        fprintf(out,
                "  speed            estimated: %.3g flops x %.2f / %.3g flops a token%s = %s "
                "tokens/s\n",
                o->flops, o->flops_share, f->flops_per_token,
                o->bandwidth > 0 ? ", or as weights are read" : "",
                count_text((uint64_t)f->rate, a));
    else
        fprintf(out, "  speed            given: %s tokens/s\n", count_text((uint64_t)f->rate, a));
    fprintf(out, "  one prompt       %u tokens%s / speed = %.1f ms\n", f->computed_tokens,
            f->computed_tokens < o->prompt_tokens ? " that are not cached" : "", f->prompt_s * 1e3);
    fprintf(out, "  wanted           %g/s x %.4g ms = %.2f nodes' work, at most %.0f %% of each\n",
            o->requests_per_second, f->prompt_s * 1e3, f->offered, o->use * 100);
    fprintf(out, "  so               %u P, in use %.0f %%\n", f->nodes_count, f->use * 100);
    fprintf(
        out,
        "  first token      wait (M/D/c) mean %.1f ms, 99th percentile %.1f ms; with the prompt "
        "%.1f ms",
        f->wait_s * 1e3, f->wait_99_s * 1e3, (f->wait_99_s + f->prompt_s) * 1e3);
    if (o->ttft_ns > 0) fprintf(out, ", limit %.1f ms", (double)o->ttft_ns / NS_PER_MS);
    fputc('\n', out);
}

static const char *bound_text(enum plan_bound bound)
{
    return bound == PLAN_BY_ITL ? "--itl" : bound == PLAN_BY_MEMORY ? "memory" : "--batch";
}

static void print_decode(const struct plan *p, FILE *out)
{
    const struct plan_options *o = &p->options;
    const struct plan_decode *d = &p->decode;
    char a[TEXT];
    double full_s = plan_step_s(p, d->batch_max);
    fprintf(out, "\ndecode nodes\n");
    fprintf(out, "  a stream         %u + %u/2 tokens on average: %u blocks, %s\n",
            o->prompt_tokens, o->output_tokens, d->mean_blocks,
            size_text((double)d->mean_blocks * (double)p->block_bytes, a));
    if (o->decode_step_ns > 0)
        fprintf(out, "  a step           given: %.2f ms at batch %u, taken for smaller ones too\n",
                full_s * 1e3, o->batch);
    else
        fprintf(out,
                "  a step           estimated: (weights + batch x KV of a stream) / (%.3g B/s x "
                "%.2f)%s = %.2f ms at batch %u\n",
                o->bandwidth, o->bandwidth_share, o->flops > 0 ? ", or as it is computed" : "",
                full_s * 1e3, d->batch_max);
    fprintf(out, "  batch            at most %u, bounded by %s%s\n", d->batch_max,
            bound_text(d->bound), o->memory_bytes == 0 ? "; memory not looked at (--memory)" : "");
    fprintf(out, "  wanted           %g/s x %u tokens = %.0f tokens/s\n", o->requests_per_second,
            o->output_tokens, d->tokens_rate);
    fprintf(
        out,
        "  one node gives   %.1f streams (%.0f %% of the batch) / %.2f ms = %.0f tokens/s; %.2f "
        "nodes' work at the whole batch\n",
        d->used_batch, o->use * 100, d->used_step_s * 1e3, d->used_batch / d->used_step_s,
        d->offered);
    fprintf(out, "  so               %u D with %u streams each, %.2f ms a token", d->nodes_count,
            d->batch, d->step_s * 1e3);
    if (o->itl_ns > 0) fprintf(out, ", limit %.2f ms", (double)o->itl_ns / NS_PER_MS);
    fprintf(out, "\n\nlink             prompts' KV: %.2f GB/s = %.1f Gb/s from all P to all D\n",
            d->transfer_rate / 1e9, d->transfer_rate * 8 / 1e9);
}

void plan_print(const struct plan *p, const struct model_files *files, FILE *out)
{
    const struct plan_options *o = &p->options;
    print_model(p, files, out);
    if (o->memory_bytes > 0) {
        print_memory(p, out);
        print_lengths(p, out);
    }
    if (o->requests_per_second == 0) return;
    print_prefill(p, out);
    print_decode(p, out);
    if (o->prefill_rate == 0 || o->decode_step_ns == 0)
        fprintf(out,
                "\nSpeeds are estimated from the device's peaks, nothing was measured: measure "
                "and give --prefill-rate and --decode-step.\n");
}

/* ---- JSON ---- */

/* Whole numbers are far below 2^63. */
static json_int_t whole(uint64_t v)
{
    return (json_int_t)v;
}

static json_t *model_json(const struct plan *p, const struct model_files *files)
{
    const struct model_shape *s = &p->options.shape;
    json_t *model =
        json_pack("{s:s?, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s}", "architecture",
                  s->architecture, "layers", whole(s->layers), "heads", whole(s->heads), "kv_heads",
                  whole(s->kv_heads), "head_dim", whole(s->head_dim), "hidden", whole(s->hidden),
                  "ffn", whole(s->ffn), "vocab", whole(s->vocab), "context", whole(s->context),
                  "window", whole(s->window), "tied", s->tied, "dtype", dtype_text(s->dtype));
    if (p->parameters.total > 0)
        json_object_update_new(model,
                               json_pack("{s:I, s:I}", "parameters", whole(p->parameters.total),
                                         "weights_bytes", whole(p->weights_bytes)));
    if (files->files_count > 0)
        json_object_set_new(model, "files",
                            json_pack("{s:I, s:I, s:I}", "count", whole(files->files_count),
                                      "parameters", whole(files->parameters), "bytes",
                                      whole(files->bytes)));
    return model;
}

static json_t *pool_json(const struct plan_pool *pool)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "buffers_bytes", whole(pool->buffers_bytes),
                     "pool_bytes", whole(pool->pool_bytes), "blocks", whole(pool->blocks_count),
                     "tokens", whole(pool->blocks_count * BLOCK_TOKENS));
}

static json_t *memory_json(const struct plan *p)
{
    const struct plan_options *o = &p->options;
    json_t *lengths = json_array();
    for (uint32_t i = 0; i < p->lengths_count; i++) {
        const struct plan_length *l = &p->length[i];
        json_array_append_new(
            lengths, json_pack("{s:I, s:I, s:I, s:I, s:I}", "tokens", whole(l->tokens), "blocks",
                               whole(l->blocks_count), "kv_bytes", whole(l->bytes), "empty_tokens",
                               whole(l->empty_tokens), "requests", whole(l->requests_count)));
    }
    return json_pack("{s:I, s:I, s:f, s:o, s:o, s:o, s:I}", "given_bytes", whole(o->memory_bytes),
                     "reserve_bytes", whole(o->reserve_bytes), "kv_share", o->kv_share, "prefill",
                     pool_json(&p->prefill_pool), "decode", pool_json(&p->decode_pool), "requests",
                     lengths, "contiguous_requests", whole(p->contiguous_count));
}

static json_t *load_json(const struct plan *p)
{
    const struct plan_options *o = &p->options;
    const struct plan_prefill *f = &p->prefill;
    const struct plan_decode *d = &p->decode;
    json_t *prefill = json_pack(
        "{s:I, s:b, s:f, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "nodes", whole(f->nodes_count),
        "estimated", o->prefill_rate == 0, "tokens_per_second", f->rate, "computed_tokens",
        whole(f->computed_tokens), "prompt_ms", f->prompt_s * 1e3, "offered_nodes", f->offered,
        "use", f->use, "wait_mean_ms", f->wait_s * 1e3, "wait_p99_ms", f->wait_99_s * 1e3,
        "ttft_p99_ms", (f->wait_99_s + f->prompt_s) * 1e3);
    json_t *decode = json_pack(
        "{s:I, s:b, s:I, s:s, s:I, s:f, s:I, s:f, s:f}", "nodes", whole(d->nodes_count),
        "estimated", o->decode_step_ns == 0, "batch_max", whole(d->batch_max), "bound_by",
        bound_text(d->bound) + strspn(bound_text(d->bound), "-"), "batch", whole(d->batch),
        "step_ms", d->step_s * 1e3, "blocks_per_stream", whole(d->mean_blocks), "tokens_per_second",
        d->tokens_rate, "offered_nodes", d->offered);
    return json_pack("{s:f, s:I, s:I, s:f, s:f, s:o, s:o, s:f}", "requests_per_second",
                     o->requests_per_second, "prompt_tokens", whole(o->prompt_tokens),
                     "output_tokens", whole(o->output_tokens), "cached_share", o->cached_share,
                     "use_at_most", o->use, "prefill", prefill, "decode", decode,
                     "link_bytes_per_second", d->transfer_rate);
}

json_t *plan_json(const struct plan *p, const struct model_files *files)
{
    json_t *kv = json_pack("{s:I, s:I, s:I}", "token_bytes", whole(p->token_bytes), "block_tokens",
                           whole(BLOCK_TOKENS), "block_bytes", whole(p->block_bytes));
    json_t *all = json_pack("{s:o, s:o}", "model", model_json(p, files), "kv", kv);
    if (p->options.memory_bytes > 0) json_object_set_new(all, "memory", memory_json(p));
    if (p->options.requests_per_second > 0) json_object_set_new(all, "load", load_json(p));
    return all;
}
