/* engine: one model on one device, run step by step on a thread of its own.
 *
 *     struct engine *engine;
 *     struct engine_options o = {.model_dir = dir, .threads = 2, ...};
 *     if ((e = engine_open(&engine, &o)) != OK) return e;   // loads and checks everything
 *     e = engine_run(engine, step);                         // tests and tools: on this thread
 *
 *     e = engine_start(engine, on_event, ctx);              // nodes: the engine's thread begins
 *     e = engine_submit(engine, step);                      // any number up to 64; run in order
 *     ... on_event(ctx, &event) is called ON THE ENGINE THREAD: put it into a mailbox, return ...
 *     engine_stop(engine);                                  // cancels what runs, joins the thread
 *     engine_close(engine);
 *
 * Rules: between engine_start and engine_stop only engine_submit, engine_progress and the read-only
 * getters may be called, from the loop thread. Every submitted step gets exactly one STEP_DONE,
 * also at engine_stop (ERR_CANCELLED). After engine_open a token costs no allocation. A step's rows
 * are its sequences' rows in their order, without gaps; a step that breaks this or the limits is a
 * bug of its maker and ends the process (CHECK), before it could write into another's KV. */
#ifndef TANDEM_ENGINE_ENGINE_H
#define TANDEM_ENGINE_ENGINE_H

#include "common/geometry.h"
#include "common/id.h"
#include "engine/step.h"
#include "kernels/backend.h"

struct engine;

struct engine_options {
    const char *model_dir;
    const char *cache_dir; /* packed weights; NULL: TANDEM_CACHE, XDG_CACHE_HOME/tandem,
                            * ~/.cache/tandem. "none": pack into memory */
    const char *backend;   /* see backend_find, "cuda:1": the second of its devices; NULL: "cpu" */
    bool deterministic;    /* kernels/backend.h */
    enum dtype dtype;      /* DTYPE_NONE: the file's (fp16 files compute in fp32) */
    uint32_t threads;      /* 0: all CPUs that the process may use */
    cpu_set_t cpus;        /* compute thread i is pinned to the i-th of these; empty: no pinning */
    uint32_t blocks_count; /* KV pool; 0: as many as kv_bytes holds */
    uint64_t kv_bytes; /* used when blocks_count is 0; 0 too: kv_share of what is free on a device
                           * that tells it, else room for one full context, at least 64 MiB */
    double kv_share;   /* 0: 0.9 */
    uint32_t context_max; /* 0: the model's max_position_embeddings; never above it */
    struct step_limits limits;
    uint32_t slots_count;
};

/* What the rest of the node needs to know of the model; lives as long as the engine. */
struct engine_facts {
    struct id128 model_fingerprint; /* of config and weights: equal on all nodes of a cluster */
    uint64_t numerics_id;           /* docs/numerics.md, G6 */
    struct kv_geometry geometry;
    uint32_t blocks_count, context_max, vocab_count, hidden, window;
    struct step_limits limits;
    uint32_t slots_count;
    uint32_t queue_depth;
    const uint32_t *eos; /* ids from generation_config.json or config.json */
    uint32_t eos_count;
    const char *model_name; /* the directory's last component */
    const char *device;     /* "cpu-avx512 x2" */
    uint32_t device_index;  /* of "cuda:1": 1 */
    bool kv_windows;        /* a sequence may have a window of its own (engine/step.h) */
    bool kv_slots;          /* engine_kv_gather and engine_kv_scatter are there */
    uint64_t weights_bytes;
    uint64_t load_ns;       /* what engine_open took */
    uint64_t weights_ns;    /* of that, for the weights: until they were copied, packed or mapped */
    bool cache_hit;         /* packed weights were mapped, not made */
    double flops_per_token; /* forward pass without attention; for predictions */
};

typedef void engine_event_fn(void *ctx, const struct engine_event *event);

enum err engine_open(struct engine **engine, const struct engine_options *options);
void engine_close(struct engine *engine); /* NULL is allowed */
/* ERR_INVALID: no backend is called so. What this host lacks for one, engine_open says. */
enum err engine_check_backend(const char *backend);
/* Opens it for a moment, without a model: what this host lacks for it, as engine_open says it. */
enum err engine_try_backend(const char *backend);
/* Where the device that engine_open would take is on the PCI bus, in `size` bytes (16 do); "": nowhere,
 * for the CPUs. */
enum err engine_pci_address(const char *backend, char *text, size_t size);
const struct engine_facts *engine_facts(const struct engine *engine);
/* KV memory: links read and write blocks of it that the loop thread gave them. NULL where it is on a
 * device: then one thread, the link's, may call engine_kv_read and engine_kv_write: one layer of some
 * blocks to and from host memory (engine_host_alloc's is fastest) in the order `layout`. */
void *engine_kv_host(const struct engine *engine);
enum err engine_kv_read(struct engine *engine, uint32_t layer, const uint32_t *blocks,
                        uint32_t blocks_count, uint32_t layout, void *host);
enum err engine_kv_write(struct engine *engine, uint32_t layer, const uint32_t *blocks,
                         uint32_t blocks_count, uint32_t layout, const void *host);
/* The same between the pool and a link's slot in device memory (kernels/backend.h, kv_gather); only where
 * engine_facts says kv_slots. */
enum err engine_kv_gather(struct engine *engine, uint32_t layer, const uint32_t *blocks,
                          uint32_t blocks_count, uint32_t layout, void *slot, uint64_t *hash);
enum err engine_kv_scatter(struct engine *engine, uint32_t layer, const uint32_t *blocks,
                           uint32_t blocks_count, uint32_t layout, const void *slot,
                           uint64_t *hash);

/* A whole block, all layers, in the pool's own order: for one more thread, the tiers'. Wherever the pool
 * is. */
enum err engine_block_read(struct engine *engine, uint32_t block, void *host);
enum err engine_block_write(struct engine *engine, uint32_t block, const void *host);

void *engine_host_alloc(struct engine *engine, size_t bytes);
void engine_host_free(struct engine *engine, void *p);
const struct kv_view *engine_kv(const struct engine *engine); /* tests and tools */

/* Runs one step on the calling thread. */
enum err engine_run(struct engine *engine, struct step *step);
/* Logits of the last row of sequence i after engine_run, [vocab], host memory until the next run;
 * NULL if the step did not sample it, or wanted more than tokens of any sequence. */
const float *engine_logits(const struct engine *engine, uint32_t sequence);
/* engine_run, and logits of every row into logits [rows_count][vocab]. For goldens and scoring. */
enum err engine_run_scored(struct engine *engine, struct step *step, float *logits);

enum err engine_start(struct engine *engine, engine_event_fn *on_event, void *ctx);
enum err engine_submit(struct engine *engine, struct step *step); /* ERR_FULL beyond 64 queued */
void engine_stop(struct engine *engine);
/* Counts up by one per layer that is not replayed and per step: a busy engine whose progress stands
 * still is hung. Any thread. */
uint64_t engine_progress(const struct engine *engine);

#endif
