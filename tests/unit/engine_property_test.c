/* The promise of docs/numerics.md, on whole models: a token's logits and its KV are the same bits
 * whatever the batch, chunking, threads, block placement and instruction set, fresh, behind a cached
 * prefix or after a preemption, with a window or without, whether or not what has left it is still there.
 *
 * Each round makes a random model and a few texts, some beginning alike. The portable C path runs
 * every text alone, in one step: that is the reference. Then each path runs all texts in random
 * company over a pool that was poisoned with NaN, and every row of logits and every token's KV is
 * compared by memcmp. TANDEM_TEST_SEED replays the round that a failure names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "engine/engine.h"
#include "tests/unit/testing.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

enum {
    ROUNDS = 12,
    TEXTS = 4,
    TOKENS_MAX = 90,
    ROWS_MAX = TOKENS_MAX,
    TABLE_MAX = (TOKENS_MAX + BLOCK_TOKENS - 1) / BLOCK_TOKENS,
    BLOCKS = TEXTS * TABLE_MAX + 3,
    GONE = INT32_MAX, /* for a block that has left the window: nobody may look there */
};

struct text {
    uint32_t tokens[TOKENS_MAX], count;
    float *logits;     /* [count][vocab], the reference's */
    unsigned char *kv; /* [count][token_bytes], the same */
};

static struct {
    uint32_t preemptions, shared_blocks, gone_blocks;
} met; /* in all rounds */

/* A text on its way through the engine under test. */
struct live {
    uint32_t position; /* tokens in the pool */
    uint32_t table[TABLE_MAX], table_count;
};

struct round {
    uint64_t seed, draws;
    char dir[SCRATCH_BYTES], label[160];
    struct tiny_shape shape;
    enum dtype dtype;
    struct text text[TEXTS];
    struct live live[TEXTS];
    uint32_t holders[BLOCKS];
    struct kv_window window,
        own; /* of the model or of each sequence alone; then the latter is `own` */
    struct engine *engine;
    struct step *step;
    float *logits; /* [ROWS_MAX][vocab] */
    uint32_t preemptions;
};

static uint32_t below(struct round *r, uint32_t bound)
{
    return rng_below(rng_draw(r->seed, 5, r->draws++).word[0], bound);
}

/* Reading the pool. */

static size_t token_bytes(const struct kv_geometry *g)
{
    return (size_t)g->layers_count * g->kv_heads * g->head_dim * 2 * dtype_bytes(g->dtype);
}

/* One token's K and V of all layers and heads, in one canonical order. */
static void read_token(const struct kv_view *kv, uint32_t block, uint32_t place, unsigned char *to)
{
    const struct kv_geometry *g = &kv->geometry;
    size_t e = dtype_bytes(g->dtype), half = g->head_dim / 2;
    const unsigned char *layer = (unsigned char *)kv->base + block * kv_block_bytes(g);
    for (uint32_t l = 0; l < g->layers_count; l++, layer += kv_layer_bytes(g))
        for (size_t h = 0; h < g->kv_heads; h++) {
            for (size_t i = 0; i < half; i++, to += 2 * e)
                memcpy(to, layer + ((h * half + i) * BLOCK_TOKENS + place) * 2 * e, 2 * e);
            /* V of fp32 is [16][head_dim], of bf16 [16 / 2][head_dim][2] (docs/numerics.md, A7). */
            uint32_t wide = g->dtype == DTYPE_BF16 ? 2 : 1;
            const unsigned char *v = layer + kv_part_bytes(g) +
                                     (h * BLOCK_TOKENS + place / wide * wide) * g->head_dim * e;
            for (size_t i = 0; i < g->head_dim; i++, to += e)
                memcpy(to, v + (i * wide + place % wide) * e, e);
        }
}

/* The engine of one path, its pool poisoned. */
static void open_engine(struct round *r, const char *backend, uint32_t threads)
{
    struct engine_options o = {.model_dir = r->dir,
                               .cache_dir = "none",
                               .backend = backend,
                               .dtype = r->dtype,
                               .threads = threads,
                               .blocks_count = BLOCKS,
                               .limits = {TEXTS, ROWS_MAX, TEXTS * TABLE_MAX},
                               .slots_count = TEXTS};
    if (engine_open(&r->engine, &o) != OK) fail_msg("%s: %s", r->label, err_text());
    assert_ok(step_new(&r->step, &o.limits));
    const struct kv_view *kv = engine_kv(r->engine);
    memset(kv->base, 0xff, kv->blocks_count * kv_block_bytes(&kv->geometry)); /* NaN in any dtype */
    memset(r->holders, 0, sizeof r->holders);
    memset(r->live, 0, sizeof r->live);
}

static void close_engine(struct round *r)
{
    step_free(r->step);
    engine_close(r->engine);
}

/* Blocks: random free ones; a full one may serve several texts. */

static uint32_t take_block(struct round *r)
{
    uint32_t b = below(r, BLOCKS);
    while (r->holders[b] > 0)
        b = (b + 1) % BLOCKS;
    r->holders[b]++;
    return b;
}

static void drop_block(struct round *r, uint32_t *block)
{
    const struct kv_view *kv = engine_kv(r->engine);
    size_t bytes = kv_block_bytes(&kv->geometry);
    if (*block != GONE && --r->holders[*block] == 0)
        memset((unsigned char *)kv->base + *block * bytes, 0xff, bytes);
    *block = GONE;
}

static void drop_blocks(struct round *r, struct live *live)
{
    for (uint32_t i = 0; i < live->table_count; i++)
        drop_block(r, &live->table[i]);
    *live = (struct live){0};
}

/* Some that no row will see any more. */
static void drop_what_left_the_window(struct round *r, struct live *live)
{
    uint32_t gone = kv_window_gone(r->window, live->position) / BLOCK_TOKENS;
    for (uint32_t i = r->window.sinks / BLOCK_TOKENS; r->window.tokens && i < gone; i++)
        if (live->table[i] != GONE && below(r, 3) > 0) {
            drop_block(r, &live->table[i]);
            met.gone_blocks++;
        }
}

/* What rows from there on see of the text is all there. */
static bool has_what_is_seen(const struct round *r, const struct live *live, uint32_t position)
{
    uint32_t sinks = r->window.sinks / BLOCK_TOKENS;
    uint32_t gone = r->window.tokens ? kv_window_gone(r->window, position) / BLOCK_TOKENS : 0;
    for (uint32_t i = 0; i < position / BLOCK_TOKENS; i++)
        if ((i < sinks || i >= gone) && live->table[i] == GONE) return false;
    return true;
}

/* A text that begins anew may take full blocks from one that begins alike, any number of them. */
static void share_prefix(struct round *r, uint32_t to)
{
    uint32_t from = below(r, TEXTS), alike = 0;
    const struct text *a = &r->text[from], *b = &r->text[to];
    if (from == to || below(r, 4) == 0) return;
    while (alike < r->live[from].position && alike + 1 < b->count &&
           a->tokens[alike] == b->tokens[alike])
        alike++;
    uint32_t blocks = below(r, alike / BLOCK_TOKENS + 1);
    if (!has_what_is_seen(r, &r->live[from], blocks * BLOCK_TOKENS)) return;
    for (uint32_t i = 0; i < blocks; i++) {
        uint32_t block = r->live[to].table[i] = r->live[from].table[i];
        if (block != GONE) r->holders[block]++;
    }
    r->live[to].table_count = blocks;
    r->live[to].position = blocks * BLOCK_TOKENS;
    met.shared_blocks += blocks;
}

static void add_rows(struct round *r, uint32_t index, uint32_t rows)
{
    struct step *s = r->step;
    struct live *live = &r->live[index];
    static const struct job job = {.sampling = {.top_p = 1, .repetition_penalty = 1}};
    while (live->table_count < blocks_for_tokens(live->position + rows))
        live->table[live->table_count++] = take_block(r);
    struct step_sequence *sequence = step_add(s, index, live->position, rows);
    sequence->setup = &job;
    sequence->window = r->own;
    memcpy(s->tokens + s->rows_count, r->text[index].tokens + live->position,
           rows * sizeof *s->tokens);
    memcpy(s->table + s->table_count, live->table, live->table_count * sizeof *s->table);
    s->rows_count += rows;
    s->table_count += live->table_count;
}

/* Like nodes do: one token, a chunk, or all that is left. */
static uint32_t pick_rows(struct round *r, uint32_t left, uint32_t room)
{
    uint32_t kind = below(r, 4), rows = kind == 0 ? 1 : kind == 1 ? left : 1 + below(r, left);
    return rows < room ? rows : room;
}

static void compare_rows(struct round *r)
{
    size_t row_bytes = r->shape.vocab * sizeof(float);
    for (uint32_t i = 0; i < r->step->sequences_count; i++) {
        const struct step_sequence *q = &r->step->sequence[i];
        const struct text *text = &r->text[q->slot];
        for (uint32_t n = 0; n < q->rows_count; n++)
            if (memcmp(r->logits + (size_t)(q->row_first + n) * r->shape.vocab,
                       text->logits + (size_t)(q->position + n) * r->shape.vocab, row_bytes) != 0)
                fail_msg("%s: logits of text %u, token %u, row %u of a step of %u", r->label,
                         q->slot, q->position + n, q->row_first + n, r->step->rows_count);
        r->live[q->slot].position += q->rows_count;
        drop_what_left_the_window(r, &r->live[q->slot]);
    }
}

/* One step of random company; false when all texts are through. */
static bool run_some(struct round *r)
{
    struct step *s = r->step;
    s->id++;
    step_clear(s);
    uint32_t first = below(r, TEXTS), done = 0;
    for (uint32_t n = 0; n < TEXTS; n++) {
        uint32_t i = (first + n) % TEXTS;
        struct live *live = &r->live[i];
        if (live->position > 0 && below(r, 12) == 0 && r->preemptions < 3 * TEXTS) {
            drop_blocks(r, live);
            r->preemptions++;
            met.preemptions++;
        }
        if (live->position == 0) share_prefix(r, i);
        uint32_t left = r->text[i].count - live->position, room = ROWS_MAX - s->rows_count;
        done += left == 0;
        if (left > 0 && room > 0 && below(r, 3) > 0) add_rows(r, i, pick_rows(r, left, room));
    }
    if (s->rows_count == 0) return done < TEXTS;
    assert_ok(engine_run_scored(r->engine, s, r->logits));
    compare_rows(r);
    return true;
}

static void compare_pool(struct round *r)
{
    const struct kv_view *kv = engine_kv(r->engine);
    size_t bytes = token_bytes(&kv->geometry);
    unsigned char *got = mem_new(bytes);
    for (uint32_t i = 0; i < TEXTS; i++)
        for (uint32_t t = 0; t < r->text[i].count; t++) {
            if (r->live[i].table[t / BLOCK_TOKENS] == GONE) continue;
            read_token(kv, r->live[i].table[t / BLOCK_TOKENS], t % BLOCK_TOKENS, got);
            if (memcmp(got, r->text[i].kv + t * bytes, bytes) != 0)
                fail_msg("%s: KV of text %u, token %u", r->label, i, t);
        }
    mem_free(got);
}

/* Rounds. */

static void random_shape(struct round *r)
{
    static const uint32_t groups[] = {1, 1, 2, 3, 4};
    struct tiny_shape *s = &r->shape;
    s->kv_heads = 1 + below(r, 3);
    s->heads = s->kv_heads * groups[below(r, 5)];
    s->head_dim = 2 + 2 * below(r, 24);
    s->hidden = 1 + below(r, 150);
    s->ffn = 1 + below(r, 200);
    s->layers = 1 + below(r, 3);
    s->vocab = 2 + below(r, 150);
    s->context = TOKENS_MAX + below(r, 100);
    s->tied = below(r, 2);
    s->attention_bias = below(r, 3) == 0;
    s->mlp_bias = below(r, 3) == 0;
    s->dtype = below(r, 2) ? DTYPE_BF16 : DTYPE_F32;
    s->seed = r->seed;
    if (r->seed % 3 != 0) r->window.tokens = 1 + below(r, TOKENS_MAX);
    if (r->seed % 3 == 1) s->window = r->window.tokens; /* the model's */
    if (r->seed % 3 == 2) {
        r->window.sinks = below(r, 3) * BLOCK_TOKENS;
        r->own = r->window;
    }
    r->dtype = below(r, 2) ? DTYPE_BF16 : DTYPE_F32;
}

/* Half of the texts begin like the first one. */
static void random_texts(struct round *r)
{
    for (uint32_t i = 0; i < TEXTS; i++) {
        struct text *t = &r->text[i];
        uint32_t alike = i % 2 ? below(r, r->text[0].count + 1) : 0;
        t->count = 1 + below(r, TOKENS_MAX);
        for (uint32_t n = 0; n < t->count; n++)
            t->tokens[n] = n < alike ? r->text[0].tokens[n] : below(r, r->shape.vocab);
    }
}

/* Each text alone and at once, by portable C. */
static void make_reference(struct round *r)
{
    for (uint32_t i = 0; i < TEXTS; i++) {
        struct text *t = &r->text[i];
        open_engine(r, "cpu-c", 1);
        const struct kv_view *kv = engine_kv(r->engine);
        size_t bytes = token_bytes(&kv->geometry);
        t->logits = mem_array((size_t)t->count * r->shape.vocab, sizeof *t->logits);
        t->kv = mem_array(t->count, bytes);
        add_rows(r, i, t->count);
        assert_ok(engine_run_scored(r->engine, r->step, t->logits));
        for (uint32_t n = 0; n < t->count; n++)
            read_token(kv, r->live[i].table[n / BLOCK_TOKENS], n % BLOCK_TOKENS, t->kv + n * bytes);
        for (size_t n = 0; n < (size_t)t->count * r->shape.vocab; n++)
            assert_true(t->logits[n] == t->logits[n]); /* no poison came through */
        close_engine(r);
    }
}

static void run_round(uint64_t seed)
{
    struct round *r = mem_new(sizeof *r);
    r->seed = seed;
    scratch_make(r->dir);
    random_shape(r);
    random_texts(r);
    tiny_model_write(r->dir, &r->shape);
    r->logits = mem_array((size_t)ROWS_MAX * r->shape.vocab, sizeof *r->logits);
    make_reference(r);
    for (const char *const *backend = backend_names(); *backend; backend++) {
        uint32_t threads = 1 + below(r, 3);
        snprintf(r->label, sizeof r->label, "TANDEM_TEST_SEED=%llu, %s, %u threads, %s",
                 (unsigned long long)seed, *backend, threads,
                 r->dtype == DTYPE_F32 ? "fp32" : "bf16");
        open_engine(r, *backend, threads);
        r->preemptions = 0;
        while (run_some(r))
            ;
        compare_pool(r);
        close_engine(r);
    }
    for (uint32_t i = 0; i < TEXTS; i++) {
        mem_free(r->text[i].logits);
        mem_free(r->text[i].kv);
    }
    scratch_remove(r->dir);
    mem_free(r->logits);
    mem_free(r);
}

static void bits_do_not_depend_on_company(void **state)
{
    const char *seed = getenv("TANDEM_TEST_SEED"), *rounds = getenv("TANDEM_TEST_ROUNDS");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 1;
    uint64_t count = rounds ? strtoull(rounds, NULL, 10) : seed ? 1 : ROUNDS;
    (void)state;
    for (uint64_t i = 0; i < count; i++)
        run_round(first + i);
    if (count >= ROUNDS) assert_true(met.preemptions && met.shared_blocks && met.gone_blocks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_do_not_depend_on_company),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
