#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"

enum {
    LANES = 16,     /* partial sums and maxima, by index mod 16 */
    GROUPS = 1024,  /* of tokens, by id mod GROUPS: for a first guess at what top_k keeps */
    STRETCH = 1024, /* the draw skips the vocabulary by so many tokens; a multiple of LANES */
};

/* Arithmetic. */

/* exp(x) for x <= 0, to 2 ulp; 0 below -87 and for NaN; exactly 1 at 0. No branch, no fma, so a
 * loop of it is the same in any vector width. */
static inline float exp_down(float x)
{
    float c = x > -87.0f ? x : -87.0f;
    float n = (c * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds to a whole number */
    float r = c - n * 0.693359375f;                          /* ln 2 in two parts */
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) * (1 << 23);
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x > -87.0f ? p * scale : 0.0f;
}

/* ln(x) for a normal x > 0, to 1e-15. */
static double log_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
    memcpy(&x, &bits, sizeof x); /* 1 <= x < 2 */
    if (x > 1.4142135623730951) {
        x *= 0.5;
        exponent++;
    }
    double s = (x - 1) / (x + 1), s2 = s * s, sum = 0; /* ln x = 2 artanh s, |s| < 0.172 */
    for (int k = 21; k >= 1; k -= 2)
        sum = sum * s2 + 1.0 / k;
    return 2 * s * sum + exponent * 0.6931471805599453;
}

static double add_lanes(const double lane[LANES])
{
    double sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += lane[j];
    return sum;
}

static double sum_of(const float *v, uint32_t count)
{
    double lane[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (uint32_t j = 0; j < LANES; j++)
            lane[j] += (double)v[i + j];
    for (; i < count; i++)
        lane[i % LANES] += (double)v[i];
    return add_lanes(lane);
}

/* The best token: highest logit, then lowest id; 0 if none is above -inf. */
static uint32_t best_of(const float *logits, uint32_t count)
{
    float lane[LANES], best = -INFINITY;
    uint32_t i = 0;
    for (int j = 0; j < LANES; j++)
        lane[j] = -INFINITY;
    for (; i + LANES <= count; i += LANES)
        for (uint32_t j = 0; j < LANES; j++)
            lane[j] = logits[i + j] > lane[j] ? logits[i + j] : lane[j];
    for (; i < count; i++)
        lane[0] = logits[i] > lane[0] ? logits[i] : lane[0];
    for (int j = 0; j < LANES; j++)
        best = lane[j] > best ? lane[j] : best;
    for (i = 0; i < count; i++)
        if (logits[i] == best) return i;
    return 0;
}

/* Greater is better: logit, then lower id. Both zeros are one, NaN is below everything. */
static uint64_t rank_key(float logit, uint32_t id)
{
    float plain = logit + 0.0f;
    uint32_t bits;
    memcpy(&bits, &plain, sizeof bits);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (logit != logit) bits = 0;
    return (uint64_t)bits << 32 | (UINT32_MAX - id);
}
static uint32_t rank_id(uint64_t key)
{
    return UINT32_MAX - (uint32_t)key;
}

/* Bias and penalties. */

bool sampler_needs_counts(const struct sampling *p)
{
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f ||
           p->frequency_penalty != 0.0f;
}

static float penalised(float logit, uint32_t count, const struct sampling *p)
{
    uint32_t generated = count & ~SAMPLER_IN_PROMPT;
    if (count) logit = logit > 0 ? logit / p->repetition_penalty : logit * p->repetition_penalty;
    if (generated) logit = logit - p->presence_penalty - p->frequency_penalty * (float)generated;
    return logit;
}

static const float *adjust(struct sampler *s, const struct sampler_ask *ask)
{
    const struct sampling *p = ask->sampling;
    bool penalties = sampler_needs_counts(p);
    if (p->bias_count == 0 && !penalties) return ask->logits;
    memcpy(s->adjusted, ask->logits, s->vocab_count * sizeof *s->adjusted);
    for (uint32_t i = 0; i < p->bias_count; i++)
        s->adjusted[p->bias[i].token] += p->bias[i].bias;
    for (uint32_t i = 0; penalties && i < s->vocab_count; i++)
        if (ask->counts[i]) s->adjusted[i] = penalised(s->adjusted[i], ask->counts[i], p);
    return s->adjusted;
}

/* Filters. */

/* Brings the best of key[0 … n) to the front, in no order: as few as weigh `mass` (above 0) together,
 * at most `count` (above 0); returns how many. Quickselect; pivots at random places of a fixed
 * sequence, so no order of logits makes it slow on purpose. */
static uint32_t select_best(const struct sampler *s, uint32_t n, uint32_t count, double mass)
{
    uint64_t *key = s->key, place = 0x9e3779b97f4a7c15u;
    uint32_t low = 0, high = n;
    while (low < high) {
        place = place * 6364136223846793005u + 1442695040888963407u;
        uint32_t at = low + rng_below((uint32_t)(place >> 32), high - low), end = low;
        uint64_t pivot = key[at];
        double above = 0;
        key[at] = key[high - 1];
        key[high - 1] = pivot;
        for (uint32_t i = low; i < high - 1; i++) {
            uint64_t k = key[i];
            if (k < pivot) continue;
            above += (double)s->weight[rank_id(k)];
            key[i] = key[end];
            key[end++] = k;
        }
        key[high - 1] = key[end];
        key[end] = pivot;
        if (end - low >= count || above >= mass) { /* enough without the pivot */
            high = end;
            continue;
        }
        above += (double)s->weight[rank_id(pivot)];
        if (end + 1 - low >= count || above >= mass) return end + 1;
        count -= end + 1 - low;
        mass -= above;
        low = end + 1;
    }
    return low;
}

/* Drops the keys from `kept` to `n`. */
static void drop_rest(struct sampler *s, uint32_t kept, uint32_t n)
{
    for (uint32_t i = kept; i < n; i++)
        s->weight[rank_id(s->key[i])] = 0;
}

/* The keys of all tokens that weigh at least `floor`; the others are dropped. */
static uint32_t list_keys(struct sampler *s, const float *logits, float floor)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->vocab_count; i++) {
        if (s->weight[i] > 0 && s->weight[i] >= floor)
            s->key[n++] = rank_key(logits[i], i);
        else
            s->weight[i] = 0;
    }
    return n;
}

static double mass_of_keys(const struct sampler *s, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)s->weight[rank_id(s->key[i])];
    return sum;
}

/* A weight that at least top_k tokens reach: the top_k-th of the maxima of GROUPS groups of tokens.
 * 0 (all tokens are looked at) where that would not save anything. */
static float floor_of_count(struct sampler *s, uint32_t top_k)
{
    float most[GROUPS] = {0}, floor = 2;
    uint32_t i = 0;
    if (top_k > GROUPS / 2 || s->vocab_count < 8 * GROUPS) return 0;
    for (; i + GROUPS <= s->vocab_count; i += GROUPS)
        for (uint32_t j = 0; j < GROUPS; j++)
            most[j] = s->weight[i + j] > most[j] ? s->weight[i + j] : most[j];
    for (uint32_t j = 0; j < GROUPS; j++)
        s->key[j] = rank_key(most[j], j);
    select_best(s, GROUPS, top_k, DBL_MAX);
    for (uint32_t j = 0; j < top_k; j++)
        floor = fminf(floor, most[rank_id(s->key[j])]);
    return floor * 0.999f; /* exp_down is monotone but for its last bits */
}

static void keep_top(struct sampler *s, const float *logits, const struct sampling *p)
{
    bool by_count = p->top_k > 0 && p->top_k < s->vocab_count, by_mass = p->top_p < 1.0f;
    double total = 0;
    float floor = 0;
    if (by_count) {
        floor = floor_of_count(s, p->top_k);
    } else if (by_mass) {
        /* All tokens lighter than (1 - p) total / vocab weigh less than 1 - p together: none of them
         * is among the heaviest that make p. Halved, so that rounding cannot reach it. */
        total = sum_of(s->weight, s->vocab_count);
        floor = (float)((1.0 - (double)p->top_p) * total / s->vocab_count * 0.5);
    }
    uint32_t n = list_keys(s, logits, floor), kept = n;
    if (n == 0) return;
    if (by_count) {
        kept = select_best(s, n, p->top_k, DBL_MAX);
        drop_rest(s, kept, n);
        total = mass_of_keys(s, kept);
    }
    if (by_mass) {
        double mass = (double)p->top_p * total;
        n = kept;
        kept = select_best(s, n, n, mass > 0 ? mass : DBL_MIN);
        drop_rest(s, kept, n);
    }
}

/* The draw. */

/* In [0, 1), and so far below 1 that u x total is below total. */
static double uniform(const struct sampler_ask *ask)
{
    struct rng_block r = rng_draw(ask->sampling->seed, ask->choice, ask->index);
    return (double)(((uint64_t)r.word[0] << 32 | r.word[1]) >> 12) * 0x1p-52;
}

/* The first token of [first, first + count) at which `passed` and the weights so far exceed target.
 * Their sum is known to, up to rounding: else it is the last one that weighs something. */
static uint32_t walk_stretch(const struct sampler *s, uint32_t first, uint32_t count, double passed,
                             double target)
{
    uint32_t last = first;
    for (uint32_t i = first; i < first + count && passed <= target; i++) {
        if (s->weight[i] == 0) continue;
        last = i;
        passed += (double)s->weight[i];
    }
    return last;
}

/* The token at which the running sum of weights passes u x total; `otherwise` if all weigh nothing. */
static uint32_t walk(const struct sampler *s, double u, uint32_t otherwise)
{
    double total = 0, passed = 0;
    uint32_t vocab = s->vocab_count;
    for (uint32_t i = 0; i < vocab; i += STRETCH) {
        s->stretch[i / STRETCH] = sum_of(s->weight + i, vocab - i < STRETCH ? vocab - i : STRETCH);
        total += s->stretch[i / STRETCH];
    }
    for (uint32_t i = 0; i < vocab; i += STRETCH) {
        uint32_t count = vocab - i < STRETCH ? vocab - i : STRETCH;
        double next = passed + s->stretch[i / STRETCH];
        if (next > u * total) return walk_stretch(s, i, count, passed, u * total);
        passed = next;
    }
    return otherwise;
}

static uint32_t draw(struct sampler *s, const struct sampler_ask *ask, const float *logits,
                     uint32_t best)
{
    const struct sampling *p = ask->sampling;
    float top = logits[best], scale = 1.0f / p->temperature;
    for (uint32_t i = 0; i < s->vocab_count; i++)
        s->weight[i] = exp_down((logits[i] - top) * scale);
    if ((p->top_k > 0 && p->top_k < s->vocab_count) || p->top_p < 1.0f) keep_top(s, logits, p);
    for (uint32_t i = 0; p->min_p > 0 && i < s->vocab_count; i++)
        if (s->weight[i] < p->min_p) s->weight[i] = 0; /* the best one weighs 1 */
    return walk(s, uniform(ask), best);
}

/* Log-probabilities. */

static double log_total(const float *logits, uint32_t count, float top)
{
    double lane[LANES] = {0};
    for (uint32_t i = 0; i < count; i++)
        lane[i % LANES] += (double)exp_down(logits[i] - top);
    return log_of(add_lanes(lane));
}

/* The best `want` tokens in order; insertion into a short list, whose last one most fail to beat. */
static uint32_t top_keys(uint64_t *list, uint32_t want, const float *logits, uint32_t vocab)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab && want > 0; i++) {
        uint64_t key = rank_key(logits[i], i);
        if (n == want && key < list[n - 1]) continue;
        uint32_t at = n < want ? n++ : n - 1;
        for (; at > 0 && list[at - 1] < key; at--)
            list[at] = list[at - 1];
        list[at] = key;
    }
    return n;
}

static void report(struct token_info *out, const struct sampling *p, const float *logits,
                   uint32_t vocab, uint32_t best)
{
    uint64_t list[JOB_TOPS_MAX];
    double base = (double)logits[best] + log_total(logits, vocab, logits[best]);
    out->logprob = (float)((double)logits[out->token] - base);
    out->tops_count = top_keys(list, p->tops_count, logits, vocab);
    for (uint32_t i = 0; i < out->tops_count; i++) {
        out->top[i].token = rank_id(list[i]);
        out->top[i].logprob = (float)((double)logits[out->top[i].token] - base);
    }
}

void sampler_draw(struct sampler *s, const struct sampler_ask *ask, struct token_info *out)
{
    const float *logits = adjust(s, ask);
    uint32_t best = best_of(logits, s->vocab_count);
    bool greedy = ask->sampling->temperature == 0 || !isfinite(logits[best]);
    *out = (struct token_info){.logprob = NAN};
    out->token = greedy ? best : draw(s, ask, logits, best);
    if (ask->sampling->logprobs) report(out, ask->sampling, logits, s->vocab_count, best);
}

enum err sampler_init(struct sampler *s, uint32_t vocab_count)
{
    *s = (struct sampler){.vocab_count = vocab_count,
                          .adjusted = mem_array(vocab_count, sizeof *s->adjusted),
                          .weight = mem_array(vocab_count, sizeof *s->weight),
                          .key = mem_array(vocab_count, sizeof *s->key),
                          .stretch = mem_array(vocab_count / STRETCH + 1, sizeof *s->stretch)};
    if (s->adjusted && s->weight && s->key && s->stretch) return OK;
    sampler_fini(s);
    return ERR_MEMORY;
}

void sampler_fini(struct sampler *s)
{
    mem_free(s->adjusted);
    mem_free(s->weight);
    mem_free(s->key);
    mem_free(s->stretch);
    *s = (struct sampler){0};
}
