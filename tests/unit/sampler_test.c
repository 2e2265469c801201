#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "engine/sampler.h"
#include "tests/unit/testing.h"

enum { VOCAB = 9000 };

struct fixture {
    struct sampler sampler;
    float logits[VOCAB];
    uint32_t counts[VOCAB];
    struct sampling how;
};

static int setup(void **state)
{
    struct fixture *f = mem_new(sizeof *f);
    *state = f;
    f->how = (struct sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 7};
    return f ? sampler_init(&f->sampler, VOCAB) : ERR_MEMORY;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    sampler_fini(&f->sampler);
    mem_free(f);
    return 0;
}

static struct token_info draw_at(struct fixture *f, uint32_t index)
{
    struct token_info info;
    struct sampler_ask ask = {
        .logits = f->logits, .sampling = &f->how, .counts = f->counts, .choice = 1, .index = index};
    sampler_draw(&f->sampler, &ask, &info);
    return info;
}

/* Roughly normal, with spread; steps of 1/8, so that many are equal. */
static void random_logits(struct fixture *f, uint64_t seed, float spread)
{
    for (uint32_t i = 0; i < VOCAB; i++) {
        struct rng_block r = rng_draw(seed, 99, i);
        float sum = 0;
        for (int k = 0; k < 4; k++)
            sum += rng_unit(r.word[k]) - 0.5f;
        f->logits[i] = roundf(sum * spread * 8) / 8;
    }
}

static void greedy_takes_the_highest_and_of_equals_the_first(void **state)
{
    struct fixture *f = *state;
    f->how.temperature = 0;
    assert_int_equal(draw_at(f, 0).token, 0); /* all are 0 */
    for (uint32_t at = VOCAB; at-- > 0;) {
        f->logits[at] = 2;
        assert_int_equal(draw_at(f, 0).token, at);
    }
    f->logits[3] = NAN;
    f->logits[0] = -INFINITY;
    f->logits[9] = 3;
    assert_int_equal(draw_at(f, 0).token, 9);
    assert_true(isnan(draw_at(f, 0).logprob));
}

static void a_row_without_a_finite_logit_still_gives_a_token(void **state)
{
    struct fixture *f = *state;
    const float broken[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        for (uint32_t j = 0; j < VOCAB; j++)
            f->logits[j] = broken[i];
        f->how.top_p = 0.5f;
        f->how.logprobs = true;
        f->how.tops_count = 3;
        assert_int_equal(draw_at(f, 0).token, 0);
    }
}

/* The slow way: sort everything, then walk. */

struct ranked {
    double logit, weight;
    uint32_t id;
};

static int by_rank(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Probability of each token, after all filters. */
static void reference(const struct fixture *f, double p[VOCAB])
{
    static struct ranked list[VOCAB];
    const struct sampling *how = &f->how;
    double total = 0, kept_mass = 0, mass = 0;
    uint32_t kept = VOCAB;
    for (uint32_t i = 0; i < VOCAB; i++)
        list[i] = (struct ranked){(double)f->logits[i], 0, i};
    qsort(list, VOCAB, sizeof list[0], by_rank);
    for (uint32_t i = 0; i < VOCAB; i++)
        list[i].weight = exp((list[i].logit - list[0].logit) / (double)how->temperature);
    if (how->top_k > 0 && how->top_k < kept) kept = how->top_k;
    for (uint32_t i = 0; i < kept; i++)
        total += list[i].weight;
    if (how->top_p < 1)
        for (uint32_t i = 0, all = kept; i < all; i++) {
            kept = i + 1;
            if ((mass += list[i].weight) >= (double)how->top_p * total) break;
        }
    memset(p, 0, VOCAB * sizeof *p);
    for (uint32_t i = 0; i < kept; i++)
        if (list[i].weight >= (double)how->min_p) kept_mass += p[list[i].id] = list[i].weight;
    for (uint32_t i = 0; i < VOCAB; i++)
        p[i] /= kept_mass;
}

static void draws_follow_the_distribution_of_the_filters(void **state)
{
    static const struct {
        float temperature, top_p, min_p, spread;
        uint32_t top_k;
    } row[] = {
        {1, 1, 0, 8, 0},       {1, 1, 0, 8, 1},        {1, 1, 0, 8, 10},
        {0.7f, 0.9f, 0, 8, 0}, {1.5f, 0.5f, 0, 20, 0}, {1, 0.999f, 0, 8, 0},
        {1, 0, 0, 8, 0},       {1, 1, 0.1f, 8, 0},     {1, 0.95f, 0.02f, 12, 40},
        {100, 1, 0, 8, 7},     {100, 0.3f, 0, 8, 0},   {0.01f, 0.9f, 0, 8, 50},
        {1, 1, 1, 8, 0},       {1, 0.9f, 0, 0, 0},     {1, 1, 0, 0, VOCAB - 1},
        {1e-38f, 1, 0, 8, 0},  {1, 0.9f, 0, 8, VOCAB}, {1, 0.5f, 0.5f, 400, 3},
    };
    enum { DRAWS = 1500 };
    struct fixture *f = *state;
    static double p[VOCAB];
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        uint32_t count[VOCAB] = {0};
        random_logits(f, i, row[i].spread);
        f->how.temperature = row[i].temperature;
        f->how.top_p = row[i].top_p;
        f->how.min_p = row[i].min_p;
        f->how.top_k = row[i].top_k;
        reference(f, p);
        for (uint32_t n = 0; n < DRAWS; n++) {
            uint32_t token = draw_at(f, n).token;
            if (p[token] == 0) fail_msg("case %zu: token %u was filtered out", i, token);
            count[token]++;
        }
        for (uint32_t t = 0; t < VOCAB; t++) { /* within 6 standard deviations */
            double bound = 6 * sqrt(p[t] * (1 - p[t]) / DRAWS) + 3.0 / DRAWS;
            if (fabs(count[t] / (double)DRAWS - p[t]) > bound)
                fail_msg("case %zu: token %u came %u times, p %g", i, t, count[t], p[t]);
        }
    }
}

/* The same filters and the same walk on a sorted list, with the arithmetic of common/draw.h: the order
 * of sums and how the last token is found make no difference, not even of a bit. */

static int by_key_down(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x > *y ? -1 : *x < *y;
}

static uint32_t drawn_slowly(const struct fixture *f, uint32_t index)
{
    static uint64_t key[VOCAB], mass[VOCAB];
    const struct sampling *how = &f->how;
    uint32_t kept = VOCAB, best;
    uint64_t total = 0, sum = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        key[i] = draw_key(f->logits[i], i);
    qsort(key, VOCAB, sizeof key[0], by_key_down);
    best = draw_key_id(key[0]);
    if (!isfinite(f->logits[best])) return best;
    float top = f->logits[best], scale = 1.0f / how->temperature;
    if (how->top_k > 0 && how->top_k < VOCAB) kept = how->top_k;
    for (uint32_t i = 0; i < kept; i++)
        total += draw_mass(draw_exp((f->logits[draw_key_id(key[i])] - top) * scale));
    uint64_t wanted = how->top_p < 1 ? draw_top_mass(how->top_p, total) : UINT64_MAX;
    memset(mass, 0, sizeof mass);
    total = 0;
    for (uint32_t i = 0; i < kept && sum < wanted; i++) {
        float weight = draw_exp((f->logits[draw_key_id(key[i])] - top) * scale);
        sum += draw_mass(weight);
        if (weight < how->min_p) continue;
        mass[draw_key_id(key[i])] = draw_mass(weight);
        total += draw_mass(weight);
    }
    uint64_t target = draw_part_of(draw_bits(how->seed, 1, index), total);
    for (uint32_t i = 0; i < VOCAB; i++) {
        if (target < mass[i]) return i;
        target -= mass[i];
    }
    return best;
}

static void a_sorted_list_gives_the_same_token(void **state)
{
    static const float temperature[] = {1, 0.3f, 5, 1e-40f, 100},
                       top_p[] = {1, 0.9f, 0.5f, 0, 0.9999999f}, min_p[] = {0, 0, 0.01f, 1},
                       spread[] = {0, 8, 40, 1e38f},
                       odd[] = {NAN, INFINITY, -INFINITY, -0.0f, 1e-40f, 3e38f, -3e38f};
    static const uint32_t top_k[] = {0, 0, 1, 2, 50, 4000, VOCAB - 1, VOCAB, VOCAB + 1};
    struct fixture *f = *state;
#define ONE_OF(list, word) (list)[rng_below(word, sizeof(list) / sizeof(list)[0])]
    for (uint32_t n = 0; n < 150; n++) {
        struct rng_block r = rng_draw(n, 1, 0), q = rng_draw(n, 2, 0);
        random_logits(f, n, ONE_OF(spread, r.word[0]));
        for (uint32_t i = q.word[0] % 3 ? 0 : 20; i-- > 0;) {
            struct rng_block o = rng_draw(n, 3, i);
            if (o.word[0] % 5) f->logits[rng_below(o.word[1], VOCAB)] = ONE_OF(odd, o.word[2]);
        }
        f->how.seed = n;
        f->how.temperature = ONE_OF(temperature, r.word[1]);
        f->how.top_p = ONE_OF(top_p, r.word[2]);
        f->how.min_p = ONE_OF(min_p, r.word[3]);
        f->how.top_k = ONE_OF(top_k, q.word[1]);
        uint32_t got = draw_at(f, n).token, wanted = drawn_slowly(f, n);
        if (got != wanted) fail_msg("case %u: token %u, not %u", n, got, wanted);
    }
}

static void a_draw_depends_on_seed_choice_and_index_only(void **state)
{
    struct fixture *f = *state;
    uint32_t first[64], differ = 0;
    random_logits(f, 1, 8);
    for (uint32_t i = 0; i < 64; i++)
        first[i] = draw_at(f, i).token;
    for (uint32_t i = 64; i-- > 0;)
        assert_int_equal(draw_at(f, i).token, first[i]);
    f->how.seed++;
    for (uint32_t i = 0; i < 64; i++)
        differ += draw_at(f, i).token != first[i];
    assert_true(differ > 32);
}

static void bias_and_penalties_come_before_everything_else(void **state)
{
    struct fixture *f = *state;
    struct logit_bias bias[] = {{20, 5}, {21, -100}};
    f->how.temperature = 0;
    f->logits[10] = 4;
    f->logits[21] = 50;
    f->how.bias = bias;
    f->how.bias_count = 2;
    assert_int_equal(draw_at(f, 0).token, 20);

    f->how.bias_count = 1; /* 21 has 50 again */
    f->counts[21] = DRAW_IN_PROMPT;
    f->how.repetition_penalty = 20; /* 2.5 */
    assert_int_equal(draw_at(f, 0).token, 20);
    f->how.repetition_penalty = 1;
    f->how.presence_penalty = 2; /* not for prompt tokens */
    assert_int_equal(draw_at(f, 0).token, 21);
    f->counts[21] = DRAW_IN_PROMPT | 30;
    f->how.frequency_penalty = 1.5f; /* 50 - 2 - 45 = 3 */
    assert_int_equal(draw_at(f, 0).token, 20);
    f->counts[20] = 1; /* 5 - 2 - 1.5 */
    assert_int_equal(draw_at(f, 0).token, 10);

    f->how.presence_penalty = f->how.frequency_penalty = 0;
    f->how.bias_count = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        f->logits[i] = -1;
    for (uint32_t i = 0; i < VOCAB; i++)
        f->counts[i] = i != 77;
    f->how.repetition_penalty = 2; /* makes negative ones more so */
    assert_int_equal(draw_at(f, 0).token, 77);
}

static void log_probabilities_are_those_of_the_model(void **state)
{
    struct fixture *f = *state;
    double total = 0;
    random_logits(f, 5, 30);
    for (uint32_t i = 0; i < VOCAB; i++)
        total += exp((double)f->logits[i]);
    f->how = (struct sampling){.temperature = 2,
                               .top_k = 3,
                               .top_p = 1,
                               .repetition_penalty = 1,
                               .logprobs = true,
                               .tops_count = JOB_TOPS_MAX};
    struct token_info info = draw_at(f, 0);
    double wanted = (double)f->logits[info.token] - log(total);
    assert_true(fabs((double)info.logprob - wanted) < 1e-5);
    assert_int_equal(info.tops_count, JOB_TOPS_MAX);
    for (uint32_t i = 0; i < JOB_TOPS_MAX; i++) {
        uint32_t better = 0, id = info.top[i].token; /* its rank, counted */
        for (uint32_t j = 0; j < VOCAB; j++)
            better += f->logits[j] > f->logits[id] || (f->logits[j] == f->logits[id] && j < id);
        assert_int_equal(better, i);
        assert_true(fabs((double)info.top[i].logprob - ((double)f->logits[id] - log(total))) <
                    1e-5);
    }
}

static void a_draw_allocates_nothing(void **state)
{
    struct fixture *f = *state;
    random_logits(f, 2, 8);
    f->how.top_p = 0.9f;
    f->how.top_k = 100;
    f->how.logprobs = true;
    f->how.tops_count = 5;
    f->how.presence_penalty = 1;
    uint64_t before = mem_count();
    for (uint32_t i = 0; i < 10; i++)
        draw_at(f, i);
    assert_int_equal(mem_count(), before);
}

static void a_failed_allocation_leaves_nothing(void **state)
{
    struct sampler s;
    (void)state;
    for (uint64_t n = 1; n <= 5; n++) {
        mem_fail_at(n);
        assert_int_equal(sampler_init(&s, 10), ERR_MEMORY);
        mem_fail_at(0);
        assert_null(s.key);
    }
}

int main(void)
{
#define WITH_FIXTURE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_FIXTURE(greedy_takes_the_highest_and_of_equals_the_first),
        WITH_FIXTURE(a_row_without_a_finite_logit_still_gives_a_token),
        WITH_FIXTURE(draws_follow_the_distribution_of_the_filters),
        WITH_FIXTURE(a_sorted_list_gives_the_same_token),
        WITH_FIXTURE(a_draw_depends_on_seed_choice_and_index_only),
        WITH_FIXTURE(bias_and_penalties_come_before_everything_else),
        WITH_FIXTURE(log_probabilities_are_those_of_the_model),
        WITH_FIXTURE(a_draw_allocates_nothing),
        cmocka_unit_test(a_failed_allocation_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
