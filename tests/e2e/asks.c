#include "tests/e2e/asks.h"

#include "common/mem.h"
#include "common/rng.h"
#include "tests/e2e/cluster.h"

enum { VOCAB_FIRST = 8, VOCAB_COUNT = 1016 }; /* of the demo model, without its special tokens */

struct draw {
    uint64_t seed;
    uint32_t stream, index;
};

static uint32_t below(struct draw *d, uint32_t bound)
{
    return rng_below(rng_draw(d->seed, d->stream, d->index++).word[0], bound);
}

static float between(struct draw *d, float low, float high)
{
    return low + (high - low) * rng_unit(rng_draw(d->seed, d->stream, d->index++).word[0]);
}

/* Prompts begin with one of four texts, or are alone. */
static uint32_t fill_prompt(struct draw *d, uint32_t prompt[ASKS_PROMPT_MAX])
{
    static const uint32_t lengths[] = {0, 33, 64, 150, 400};
    uint32_t which = below(d, 5), count = lengths[which], end = count + 1 + below(d, 60);
    struct draw shared = {d->seed, 1000000 + which, 0};
    for (uint32_t i = 0; i < end; i++)
        prompt[i] = VOCAB_FIRST + below(i < count ? &shared : d, VOCAB_COUNT);
    return end;
}

static void fill_sampling(struct draw *d, struct ask *ask)
{
    ask->seed = rng_draw(d->seed, d->stream, d->index++).word[1];
    switch (below(d, 6)) {
    case 0: break; /* greedy */
    case 1:
        ask->want_logprobs = true;
        ask->tops = below(d, 4);
        break;
    case 2:
        ask->temperature = between(d, 0.5f, 1.3f);
        ask->top_p = between(d, 0.7f, 1.0f);
        break;
    case 3:
        ask->temperature = 1;
        ask->top_k = 1 + below(d, 60);
        ask->presence_penalty = between(d, 0, 1);
        ask->frequency_penalty = between(d, 0, 1);
        ask->want_logprobs = true;
        break;
    case 4:
        ask->temperature = between(d, 0.5f, 1.5f);
        ask->min_p = 0.05f;
        ask->repetition_penalty = between(d, 1, 1.5f);
        break;
    case 5:
        ask->temperature = 1;
        ask->choices = 2;
        break;
    }
}

struct asks *asks_new(uint64_t seed, uint32_t count)
{
    static const char *const texts[] = {
        "ROMEO:\n", "First Citizen:\nWe are accounted poor citizens, the patricians good.\n",
        "KING RICHARD III:\nNow is the winter", "\xc3\x89t in Arcadia ego \xe2\x80\x94 "};
    struct asks *a = mem_new(sizeof *a);
    assert_non_null(a);
    *a =
        (struct asks){count, mem_array(count, sizeof *a->ask), mem_array(count, sizeof *a->prompt)};
    assert_true(a->ask && a->prompt);
    for (uint32_t i = 0; i < count; i++) {
        struct draw d = {seed, i, 0};
        struct ask *ask = &a->ask[i];
        ask->tokens = a->prompt[i];
        ask->tokens_count = fill_prompt(&d, a->prompt[i]);
        if (below(&d, 4) == 0) ask->text = texts[below(&d, 4)];
        ask->max_tokens = 20 + below(&d, 300);
        ask->ignore_eos = below(&d, 2) == 0;
        if (below(&d, 8) == 0) ask->stop = "\n\n";
        fill_sampling(&d, ask);
    }
    return a;
}

void asks_free(struct asks *a)
{
    if (!a) return;
    mem_free(a->ask);
    mem_free(a->prompt);
    mem_free(a);
}

void asks_start(const struct asks *a, struct streams *s)
{
    for (uint32_t i = 0; i < a->count; i++)
        streams_start(s, i % STREAMS_CLIENTS_MAX, &a->ask[i]);
}

struct streams *asks_undisturbed(const struct asks *a, const char *node_args)
{
    struct cluster *c = cluster_new(cluster_demo_model());
    cluster_start(c, 1, 1, "--disaggregate always", node_args);
    struct streams *s = streams_new(c->addresses);
    asks_start(a, s);
    streams_run(s);
    for (uint32_t i = 0; i < a->count; i++)
        stream_expect_done(s->stream[i]);
    cluster_stop(c);
    cluster_free(c);
    return s;
}

void asks_expect(const struct asks *a, const struct streams *s, uint32_t first,
                 const struct streams *wanted)
{
    for (uint32_t i = 0; i < a->count; i++) {
        stream_expect_done(s->stream[first + i]);
        stream_expect_equal(s->stream[first + i], wanted->stream[i]);
    }
}
