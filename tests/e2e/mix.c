#include "tests/e2e/mix.h"

#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "tests/e2e/cluster.h"

enum { VOCAB_FIRST = 8, VOCAB_COUNT = 1016 }; /* of the demo model, without its special tokens */
enum {
    TALKS = 6,
    LONGS = 6,
    DOCUMENTS = 3,
    SAMPLED = 2,
    ENCODED = 4,
    DOCUMENT = 400,
    CLIENTS = 16
};

/* Texts: a number names one, and the same number the same text. */
enum { TEXT_PINNED = 1, TEXT_LONG = 2, TEXT_DOCUMENT = 10, TEXT_OWN = 100 };

/* An ask that is being made: the i-th of its kind. */
struct draft {
    const struct mix *mix;
    uint32_t turn, i;
    struct ask *ask;
    uint32_t *tokens; /* of its prompt */
};

static void add(struct draft *d, const uint32_t *tokens, uint32_t count)
{
    assert_true(d->ask->tokens_count + count <= MIX_PROMPT_MAX);
    memcpy(d->tokens + d->ask->tokens_count, tokens, count * sizeof *tokens);
    d->ask->tokens_count += count;
}

static void say(struct draft *d, uint32_t text, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t word = rng_draw(d->mix->seed, text, i).word[0];
        add(d, &(uint32_t){VOCAB_FIRST + rng_below(word, VOCAB_COUNT)}, 1);
    }
}

static uint32_t some(const struct draft *d, uint32_t bound)
{
    return rng_below(rng_draw(d->ask->seed, 5000 + d->turn, d->i).word[0], bound);
}

/* What was asked before, what was answered, and a little more. */
static void make_talk(struct draft *d)
{
    static const char *const tenants[] = {MIX_TENANT, "iron", NULL};
    d->ask->tenant = tenants[d->i % 3];
    d->ask->temperature = d->i % 2 ? 0.8f : 0;
    d->ask->max_tokens = 24 + some(d, 40);
    d->ask->ignore_eos = true;
    if (d->turn == 0) {
        if (d->i % 3 == 0) say(d, TEXT_PINNED, MIX_PINNED);
        say(d, TEXT_OWN + d->i, 40 + d->i * 9);
        return;
    }
    const struct ask *asked = &d->mix->ask[d->turn - 1][d->i];
    const struct outcome *answered =
        &d->mix->wanted->stream[(d->turn - 1) * MIX_ASKS + d->i]->choice[0];
    add(d, asked->tokens, asked->tokens_count);
    add(d, answered->tokens, answered->tokens_count);
    say(d, TEXT_OWN + 10 * d->turn + d->i, 6 + d->i);
}

static void make_long(struct draft *d)
{
    say(d, TEXT_LONG, 64);
    say(d, TEXT_OWN + 100 + 10 * d->turn + d->i, 20);
    d->ask->max_tokens = 260 + some(d, 120);
    d->ask->ignore_eos = true;
    d->ask->temperature = d->i % 2 ? 1 : 0;
    d->ask->priority = (int32_t)d->i - 3;
    d->ask->repetition_penalty = d->i == 3 ? 1.2f : 0;
}

/* Each is asked for twice: one of them sees only the end of it. */
static void make_document(struct draft *d)
{
    uint32_t which = d->i % DOCUMENTS;
    say(d, TEXT_DOCUMENT + which, DOCUMENT);
    say(d, TEXT_OWN + 200 + d->turn, 16);
    d->ask->max_tokens = 24;
    d->ask->ignore_eos = true;
    d->ask->tenant = which == 2 ? "iron" : NULL;
    if (d->i >= DOCUMENTS) return;
    d->ask->kv_window = 64;
    d->ask->kv_sinks = 16;
}

static void make_samples(struct draft *d)
{
    say(d, TEXT_OWN + 300 + d->i, 30 + 10 * d->turn + 5 * d->i);
    d->ask->choices = 4;
    d->ask->temperature = 1;
    d->ask->max_tokens = 30;
}

static void make_encoded(struct draft *d)
{
    static const enum tandem_kind kinds[ENCODED] = {TANDEM_SCORE, TANDEM_SCORE, TANDEM_EMBED_LAST,
                                                    TANDEM_EMBED_MEAN};
    say(d, TEXT_DOCUMENT + d->i % DOCUMENTS, 300);
    say(d, TEXT_OWN + 400 + d->turn, 1 + some(d, 60));
    d->ask->kind = kinds[d->i];
    d->ask->want_logprobs = false;
    d->ask->tenant = d->i == 0 ? "iron" : NULL;
}

static void make_turn(struct mix *m, uint32_t turn)
{
    static const struct {
        uint32_t count;
        void (*make)(struct draft *d);
    } kinds[] = {{TALKS, make_talk},
                 {LONGS, make_long},
                 {2 * DOCUMENTS, make_document},
                 {SAMPLED, make_samples},
                 {ENCODED, make_encoded}};
    uint32_t n = 0;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (uint32_t i = 0; i < kinds[k].count; i++, n++) {
            struct draft d = {m, turn, i, &m->ask[turn][n], m->prompt[turn][n]};
            *d.ask = (struct ask){.tokens = d.tokens,
                                  .seed = m->seed * 1000 + turn * MIX_ASKS + n,
                                  .want_logprobs = true};
            kinds[k].make(&d);
        }
    assert_int_equal(n, MIX_ASKS);
}

void mix_pinned(const struct mix *m, uint32_t tokens[MIX_PINNED])
{
    memcpy(tokens, m->ask[0][0].tokens, MIX_PINNED * sizeof *tokens);
}

void mix_start(const struct mix *m, uint32_t turn, struct streams *s)
{
    for (uint32_t i = 0; i < MIX_ASKS; i++)
        streams_start(s, i % CLIENTS, &m->ask[turn][i]);
}

void mix_expect(const struct mix *m, uint32_t turn, const struct streams *s)
{
    for (uint32_t i = 0; i < MIX_ASKS; i++) {
        const struct stream *got = s->stream[s->count - MIX_ASKS + i];
        stream_expect_done(got);
        stream_expect_equal(got, m->wanted->stream[turn * MIX_ASKS + i]);
        assert_int_equal(got->kv_window, got->ask.kv_window);
    }
}

struct mix *mix_new(uint64_t seed)
{
    struct mix *m = mem_new(sizeof *m);
    assert_non_null(m);
    m->seed = seed;
    struct cluster *c = cluster_new(cluster_demo_model());
    cluster_start(c, 0, 1, "--prefix-index 0 --forks=false", "--prefix-cache=false");
    m->wanted = streams_new(c->addresses);
    for (uint32_t turn = 0; turn < MIX_TURNS; turn++) {
        make_turn(m, turn);
        mix_start(m, turn, m->wanted);
        streams_run(m->wanted);
        for (uint32_t i = 0; i < MIX_ASKS; i++)
            stream_expect_done(m->wanted->stream[turn * MIX_ASKS + i]);
    }
    cluster_stop(c);
    cluster_free(c);
    return m;
}

void mix_free(struct mix *m)
{
    if (!m) return;
    streams_free(m->wanted);
    mem_free(m);
}
