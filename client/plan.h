/* plan: how much memory a model's KV takes, how many requests fit into a node, and how many prefill (P)
 * and decode (D) nodes a load needs. Sums only: facts in, figures out.
 *
 *     struct plan_options o = {.shape = shape, .memory_bytes = 80ull << 30, ...};
 *     struct plan p;
 *     if ((e = plan_make(&p, &o)) != OK) return e;         // said: what is missing, or does not fit
 *     plan_print(&p, stdout);                              // plan_print.h
 *
 * The sums, all at a share `use` of what there is, so that queues stay short and bursts fit:
 *
 *   memory   (given - reserve - weights - buffers) x kv_share, in blocks, as a node's engine takes it on a GPU
 *   P        Poisson arrivals of equal prompts at c nodes, one prompt at a time each: M/D/c. The wait is
 *            taken as half of M/M/c's (Erlang C), its tail as exp(-2 (c - a) t / s); c grows until
 *            a / c <= use and the wait's 99th percentile plus the prompt's own time is within ttft
 *   D        a batch is bounded by the setting, by the step's time (itl) and by the pool's room for KV of
 *            prompts with half of their answers; then tokens a second over what a node gives at `use` of it
 *
 * Rules: pure; no allocation, no clock. A rate that is not given is estimated from flops and bandwidth: the
 * slower of computing and reading. Nothing here is measured. Any thread. */
#ifndef TANDEM_CLIENT_PLAN_H
#define TANDEM_CLIENT_PLAN_H

#include "client/model_shape.h"

enum { PLAN_NODES_MAX = 65536, PLAN_BATCH_MAX = 1024, PLAN_LENGTHS_MAX = 16 };

struct plan_options {
    struct model_shape shape; /* dtype: what is computed in */
    bool on_cpu;
    uint64_t memory_bytes; /* of one node; 0: not given */
    uint64_t reserve_bytes;
    double kv_share;
    uint32_t chunk, batch; /* of P's steps in tokens, of D's in sequences at most */

    double requests_per_second; /* 0: no load given */
    uint32_t prompt_tokens, output_tokens;
    double cached_share;      /* of a prompt's tokens */
    uint64_t ttft_ns, itl_ns; /* 0: no limit */
    double prefill_rate;      /* tokens/s of a P; 0: estimated */
    uint64_t decode_step_ns;  /* of a D with `batch` sequences; 0: estimated */
    double flops, bandwidth;  /* peaks of one device, per second */
    double flops_share, bandwidth_share;
    double use;
};

struct plan_parameters {
    uint64_t embedding, layers, lm_head; /* matrices; lm_head also if it is the embedding */
    uint64_t vectors;                    /* norms and biases */
    uint64_t total;
};

struct plan_pool { /* a node's memory */
    uint64_t buffers_bytes, pool_bytes, blocks_count;
};

/* Requests of one length. */
struct plan_length {
    uint32_t tokens, blocks_count, empty_tokens; /* of the last block */
    uint64_t bytes, requests_count;
    bool told; /* it is the load's prompt with its answer */
};

struct plan_prefill {
    uint32_t computed_tokens; /* of a prompt, beside what is cached */
    double flops_per_token, rate;
    double prompt_s, offered; /* time of one prompt; nodes' worth of them */
    uint32_t nodes_count;
    double use, wait_s, wait_99_s;
};

enum plan_bound { PLAN_BY_SETTING, PLAN_BY_ITL, PLAN_BY_MEMORY };

struct plan_decode {
    double mean_tokens; /* of a stream: its prompt and half of its answer */
    uint32_t mean_blocks;
    double tokens_rate; /* wanted from all D */
    uint32_t batch_max;
    enum plan_bound bound;
    double used_batch, used_step_s; /* at `use` of it */
    double offered;                 /* nodes' worth, at full batch */
    uint32_t nodes_count, batch;    /* streams on each */
    double step_s;
    double transfer_rate; /* bytes/s of prompts' KV from all P to all D */
};

struct plan {
    struct plan_options options;
    struct kv_geometry geometry;
    size_t token_bytes, block_bytes;
    struct plan_parameters parameters; /* total 0: not known */
    uint64_t weights_bytes;            /* in a node's memory */
    struct plan_pool prefill_pool, decode_pool;
    uint64_t contiguous_count; /* full contexts that fit */
    struct plan_length length[PLAN_LENGTHS_MAX];
    uint32_t lengths_count;
    struct plan_prefill prefill;
    struct plan_decode decode;
};

enum err plan_make(struct plan *p, const struct plan_options *options);

/* The parts. */
struct plan_parameters plan_parameters_of(const struct model_shape *s);
/* Wait in a queue before c servers that take s each, offered `a` servers' worth of arrivals. */
struct plan_wait {
    double mean, p99;
};
struct plan_wait plan_wait_of(uint32_t c, double a, double s);
/* The keys that tokens [first, end) attend to, on average; window 0: all before and itself. */
double plan_mean_keys(double first, double end, uint32_t window);
double plan_step_s(const struct plan *p, double batch);

#endif
