#include "tests/gpu/links.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/rng.h"
#include "tests/gpu/one_gpu.h"

static const struct links_shape shapes[] = {
    {.name = "8b",
     .token_first = 300,
     .tokens_all = 100000,
     .prompt = 1024,
     .prompt_long = 8192,
     .prompt_short = 64,
     .rounds = 100,
     .prompts = 20,
     .streams = 8,
     .stream_tokens = 2000,
     .compared_tokens = 32,
     .recovered_tokens = 300,
     .node_args = "--context 12288 --blocks 3072",
     .prefill_args = "--chunk 2048"},
    {.name = "1b",
     .token_first = 300,
     .tokens_all = 100000,
     .prompt = 1024,
     .prompt_long = 8192,
     .prompt_short = 64,
     .rounds = 200,
     .prompts = 30,
     .streams = 8,
     .stream_tokens = 4000,
     .compared_tokens = 32,
     .recovered_tokens = 600,
     .node_args = "--context 12288 --blocks 4096",
     .prefill_args = "--chunk 2048"},
    {.name = "demo",
     .demo = true,
     .token_first = 300,
     .tokens_all = 700,
     .prompt = 1024,
     .prompt_long = 4096,
     .prompt_short = 64,
     .rounds = 200,
     .prompts = 30,
     .streams = 8,
     .stream_tokens = 6000,
     .compared_tokens = 64,
     .recovered_tokens = 2000,
     .node_args = "--blocks 8192",
     .prefill_args = "--chunk 2048"},
    {.name = "toy",
     .token_first = 10,
     .tokens_all = 100,
     .prompt = 48,
     .prompt_long = 80,
     .prompt_short = 16,
     .rounds = 2,
     .prompts = 1,
     .streams = 2,
     .stream_tokens = 100,
     .compared_tokens = 4,
     .recovered_tokens = 40,
     .node_args = "--threads 1 --blocks 96 --batch 4",
     .prefill_args = "--chunk 16"},
};

const struct links_shape *links_shape_find(const char *name)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (strcmp(shapes[i].name, name) == 0) return &shapes[i];
    return NULL;
}

void links_open(struct links *l, const char *router_args)
{
    char args[256];
    snprintf(args, sizeof args, "--disaggregate always %s", router_args);
    l->cluster = cluster_new(NULL);
    cluster_router(l->cluster, args);
}

struct process *links_node(struct links *l, enum program program, const char *args)
{
    char all[1024], host[32];
    bool prefill = program == PROGRAM_PREFILL, one_gpu = l->gpu[0] == l->gpu[1];
    char device[32] = "cpu";
    if (strcmp(l->device, "cuda") == 0)
        snprintf(device, sizeof device, "cuda:%u", l->gpu[prefill ? 0 : 1]);
    snprintf(all, sizeof all, "--model %s --cache-dir %s --device %s %s %s %s", l->model,
             l->shape->demo ? l->cluster->folder : l->model, device, l->shape->node_args,
             prefill ? l->shape->prefill_args : "", args);
    snprintf(host, sizeof host, "tandem-%u", l->cluster->count);
    if (one_gpu) one_gpu_environment(host);
    struct process *p = cluster_node(l->cluster, program, all);
    if (one_gpu) one_gpu_environment(NULL);
    cluster_await_nodes(l->cluster);
    return p;
}

void links_close(struct links *l)
{
    cluster_await_idle(l->cluster);
    cluster_stop(l->cluster);
    cluster_free(l->cluster);
    l->cluster = NULL;
}

struct ask links_ask(struct links *l, uint32_t prompt_tokens, uint32_t max_tokens)
{
    l->prompts_made++;
    for (uint32_t i = 0; i < prompt_tokens; i++)
        l->prompt[i] = l->shape->token_first +
                       rng_below(rng_draw(1, l->prompts_made, i).word[0], l->shape->tokens_all);
    return (struct ask){.tokens = l->prompt,
                        .tokens_count = prompt_tokens,
                        .max_tokens = max_tokens,
                        .ignore_eos = true,
                        .no_text = true};
}

struct stream *links_ask_once(struct streams *s, uint32_t client, const struct ask *ask)
{
    struct stream *stream = streams_start(s, client, ask);
    uint64_t until_ns = clock_now_ns() + STREAMS_WAIT_MS * NS_PER_MS;
    while (!stream->ended && clock_now_ns() < until_ns)
        streams_turn(s, 1000);
    stream_expect_done(stream);
    return stream;
}

static bool all_run(void *ctx)
{
    const struct streams *s = ctx;
    for (uint32_t i = 0; i < s->count; i++)
        if (s->stream[i]->tokens_count < 4) return false;
    return true;
}

void links_start_streams(struct links *l, struct streams *s)
{
    for (uint32_t i = 0; i < l->shape->streams; i++) {
        struct ask ask = links_ask(l, l->shape->prompt_short, l->shape->stream_tokens);
        streams_start(s, i, &ask);
    }
    streams_run_until(s, all_run, s, "all streams run");
}

bool links_one_ended(const struct links *l, const struct streams *s)
{
    for (uint32_t i = 0; i < l->shape->streams; i++)
        if (s->stream[i]->ended) return true;
    return false;
}

static double number_of(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

struct links_told links_told(struct links *l, const struct stream *stream)
{
    struct links_told told = {0};
    uint64_t until_ns = clock_now_ns() + CLUSTER_WAIT_MS * NS_PER_MS;
    while (told.tail_ms == 0) { /* the word may come after the last token */
        json_t *explained;
        const json_t *choice = cluster_explain(l->cluster, stream->id, &explained);
        const json_t *timing = json_object_get(choice, "timing_ms");
        const json_t *layers = json_object_get(choice, "layers");
        size_t count = json_array_size(layers);
        told.prefill_ms = number_of(timing, "prefill");
        told.tail_ms = number_of(timing, "transfer_tail");
        told.moving_ms = told.tail_ms;
        if (count > 0)
            told.moving_ms += number_of(json_array_get(layers, count - 1), "computed_ms") -
                              number_of(json_array_get(layers, 0), "computed_ms");
        json_decref(explained);
        if (clock_now_ns() > until_ns) fail_msg("%s was not handed over", stream->id);
    }
    return told;
}

double links_bytes(struct links *l, const struct process *prefill)
{
    size_t i;
    json_t *row, *status = cluster_status(l->cluster);
    double bytes = 0;
    json_array_foreach(json_object_get(status, "links"), i, row)
    {
        const char *kind = json_string_value(json_object_get(row, "kind"));
        if (strcmp(json_string_value(json_object_get(row, "from")), prefill->name) != 0) continue;
        if (kind && strcmp(kind, l->link) != 0)
            fail_msg("%s's KV goes over %s", prefill->name, kind);
        bytes += json_number_value(json_object_get(row, "bytes"));
    }
    json_decref(status);
    return bytes;
}

double links_told_rate(struct links *l, const struct process *prefill)
{
    size_t i;
    json_t *path, *status = cluster_status(l->cluster);
    double rate = 0;
    json_array_foreach(json_object_get(status, "paths"), i, path)
    {
        if (strcmp(json_string_value(json_object_get(path, "from")), prefill->name) == 0)
            rate += number_of(path, "rate");
    }
    json_decref(status);
    return rate;
}
