/* flood: what a tenant that asks for little waits, alone and beside one that asks without end, in virtual time.
 *
 * Client 0 asks for something every 400 ms or so. The others keep SIM_REQUESTS_MAX requests each in the
 * system, with prompts that nobody had before, many times what the nodes can take. A step takes
 * layer_ns for each layer, and twice that with 64 rows, as where weights have to be read for each step. A prompt is
 * some chunks long, so waiting for the step that runs is a part of it. Of long answers the gap behind the first token,
 * which waits for the step that D runs, is less than one in a hundred; of short ones it is their 99th percentile. */
#include <stdio.h>
#include <stdlib.h>

#include "common/mem.h"
#include "tests/sim/sim.h"

enum { LIGHT_PROMPT = 64, HEAVY_PROMPT = 115, HEAVY_TOKENS = 70, BATCH = 16 };
#define LIGHT_EVERY_NS (400 * NS_PER_MS)
#define RATIO_MAX 1.5

void flood_build(struct sim *s, uint32_t *prefills, uint32_t *decodes)
{
    s->routers_count = *prefills = *decodes = 1;
    s->clients_count = s->options.flood == SIM_FLOOD_BESIDE ? SIM_CLIENTS_MAX : 1;
    s->chunk = 16;
    s->batch = BATCH;
    s->steps = s->options.flood_steps; /* a prompt waits for as many */
    s->tenants = s->tenant_percent_max = 0;
    s->rows_free = 64;
    s->window = 0;
    s->blocks = 2 * BATCH * SIM_CONTEXT / BLOCK_TOKENS;
    s->net_ns = 100 * NS_PER_US;
    s->jitter_ns = 50 * NS_PER_US;
    s->op_ns = 20 * NS_PER_US;
    s->layer_ns = NS_PER_MS;
    s->duplicate_percent = s->slow_percent = s->news_lost_percent = 0;
    s->prefix_cache = true;
    s->tiers = SIM_TIERS_NONE;
    s->disaggregate = DISAGGREGATE_ALWAYS;
    s->faults_end_ns = 0;
}

static bool is_light(const struct sim *s, const struct sim_proc *p)
{
    return p == &s->proc[s->procs_count - s->clients_count];
}

const char *flood_tenant(const struct sim *s, const struct sim_proc *p)
{
    return !s->options.flood ? NULL : is_light(s, p) ? "light" : "heavy";
}

static void make_prompt(const struct sim_proc *p, uint32_t index, struct sim_request *r)
{
    uint32_t name = (p->index * SIM_REQUESTS_MAX + index) * 1000 + r->rounds;
    for (uint32_t i = 0; i < r->prompt_count; i++)
        r->prompt[i] = 1 + (i < 4 ? name >> (5 * i) & 31 : name * 13 + i * 5) % (SIM_VOCAB - 1);
    r->choice[0] = (struct sim_choice){0};
    client_make_oracle(r, 0);
}

void flood_make(struct sim *s, const struct sim_proc *p, uint32_t index, struct sim_request *r)
{
    bool light = is_light(s, p);
    r->prompt_count = light ? LIGHT_PROMPT : HEAVY_PROMPT - sim_draw(s, 40);
    r->tokens_max = light ? s->options.flood_tokens : HEAVY_TOKENS - sim_draw(s, 30);
    r->tokens_min = r->tokens_max;
    r->seed = s->options.seed * 7 + index;
    r->choices_count = 1;
    r->submit_ns = s->now_ns;
    if (light) r->submit_ns += (index + 2) * LIGHT_EVERY_NS + sim_draw_ns(s, 0, 20 * NS_PER_MS);
    r->cancel_ns = TIME_NEVER;
    make_prompt(p, index, r);
}

void flood_heard(struct sim *s, const struct sim_proc *p, struct sim_request *r, uint32_t tokens)
{
    struct sim_flood_times *t = s->totals->flood;
    uint64_t waited_ns = s->now_ns - r->heard_ns;
    bool first = r->choice[0].got_count == tokens;
    r->heard_ns = s->now_ns;
    if (tokens == 0) return;
    *(is_light(s, p) ? &t->light_tokens : &t->others_tokens) += tokens;
    if (!is_light(s, p)) return;
    if (first && t->firsts_count < SIM_FLOOD_TIMES_MAX) t->first_ns[t->firsts_count++] = waited_ns;
    if (!first && t->gaps_count < SIM_FLOOD_TIMES_MAX) t->gap_ns[t->gaps_count++] = waited_ns;
}

bool flood_again(struct sim *s, const struct sim_proc *p, struct sim_request *r)
{
    struct sim_flood_times *t = s->totals->flood;
    const struct sim_proc *light = &s->proc[s->procs_count - s->clients_count];
    *(is_light(s, p) ? &t->light_requests : &t->others_requests) += 1;
    if (is_light(s, p) || client_is_done(light->client)) return false;
    r->rounds++;
    r->id = ID128_NONE;
    r->attempt = 0;
    r->submit_ns = s->now_ns;
    make_prompt(p, (uint32_t)(r - p->client->request), r);
    return true;
}

/* ---- the comparison ---- */

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double p99_ms(uint64_t *ns, uint32_t count)
{
    CHECK(count > 0);
    qsort(ns, count, sizeof *ns, by_size);
    return (double)ns[(uint64_t)count * 99 / 100] / (double)NS_PER_MS;
}

static struct sim_flood_times *run(uint64_t first, uint64_t count, struct sim_options options)
{
    struct sim_totals totals = {.flood = mem_new(sizeof *totals.flood)};
    CHECK(totals.flood);
    for (options.seed = first; options.seed < first + count; options.seed++)
        sim_run(&options, &totals);
    totals.flood->held_steps = totals.held_steps;
    return totals.flood;
}

static bool compare(const char *name, double alone_ms, double beside_ms)
{
    printf("%s p99: alone %.2f ms, beside the flood %.2f ms, %.2f times\n", name, alone_ms,
           beside_ms, beside_ms / alone_ms);
    if (beside_ms <= RATIO_MAX * alone_ms) return true;
    fprintf(stderr, "%s is more than %.1f times what it is alone\n", name, RATIO_MAX);
    return false;
}

static bool compare_with(uint64_t first, uint64_t count, struct sim_options options)
{
    options.flood = SIM_FLOOD_ALONE;
    struct sim_flood_times *alone = run(first, count, options);
    options.flood = SIM_FLOOD_BESIDE;
    struct sim_flood_times *beside = run(first, count, options);
    printf("%llu seeds, answers of %u tokens, %u steps in flight at most: %u requests of the "
           "tenant that asks for little, %u of the one that floods, with %llu and %llu tokens; "
           "%llu steps held\n",
           (unsigned long long)count, options.flood_tokens, options.flood_steps,
           beside->light_requests, beside->others_requests,
           (unsigned long long)beside->light_tokens, (unsigned long long)beside->others_tokens,
           (unsigned long long)beside->held_steps);
    bool right = compare("time to first token", p99_ms(alone->first_ns, alone->firsts_count),
                         p99_ms(beside->first_ns, beside->firsts_count));
    right &= compare("time between tokens", p99_ms(alone->gap_ns, alone->gaps_count),
                     p99_ms(beside->gap_ns, beside->gaps_count));
    if (beside->others_tokens < 4 * beside->light_tokens) {
        fprintf(stderr, "that was no flood\n");
        right = false;
    }
    if (beside->held_steps == 0 || alone->held_steps > 0) {
        fprintf(stderr, "no step was held beside the flood, or one without it\n");
        right = false;
    }
    mem_free(alone);
    mem_free(beside);
    return right;
}

bool flood_compare(uint64_t first, uint64_t count)
{
    static const struct sim_options ways[] = {
        {.flood_tokens = 120, .flood_steps = 1},
        {.flood_tokens = 120, .flood_steps = 2}, /* as GPUs have */
        {.flood_tokens = 40, .flood_steps = 1},
        {.flood_tokens = 40, .flood_steps = 2},
        {.flood_tokens = 20, .flood_steps = 1},
    };
    bool right = true;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        right &= compare_with(first, count, ways[i]);
    return right;
}
