#include "engine/sampler.h"

#include <math.h>
#include <string.h>

#include "common/mem.h"

enum {
    LANES = 16,      /* maxima by index mod 16 */
    STRETCH = 1024,  /* the draw skips the vocabulary by so many tokens */
    DIGIT_BITS = 11, /* of a rank key: the first one is sign, exponent and two bits */
    DIGITS = 1 << DIGIT_BITS,
    KEY_BITS = 64,
};

/* The best token: highest logit, then lowest id; 0 if all are NaN. */
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

/* Bias and penalties. */

static const float *adjust(struct sampler *s, const struct sampler_ask *ask)
{
    const struct sampling *p = ask->sampling;
    bool penalties = sampling_needs_counts(p);
    if (p->bias_count == 0 && !penalties) return ask->logits;
    memcpy(s->adjusted, ask->logits, s->vocab_count * sizeof *s->adjusted);
    for (uint32_t i = 0; i < p->bias_count; i++)
        s->adjusted[p->bias[i].token] += p->bias[i].bias;
    for (uint32_t i = 0; penalties && i < s->vocab_count; i++)
        if (ask->counts[i])
            s->adjusted[i] = draw_penalised(s->adjusted[i], ask->counts[i], p->repetition_penalty,
                                            p->presence_penalty, p->frequency_penalty);
    return s->adjusted;
}

/* Filters. */

static uint32_t digit_of(uint64_t key, uint32_t shift)
{
    return (uint32_t)(key >> shift) & (DIGITS - 1);
}

static void tally(struct draw_tally *digit, uint64_t key, float weight, uint32_t shift)
{
    struct draw_tally *t = &digit[digit_of(key, shift)];
    t->mass += draw_mass(weight);
    t->count++;
}

static void tally_first(struct sampler *s, const float *logits)
{
    memset(s->digit, 0, DIGITS * sizeof *s->digit);
    for (uint32_t i = 0; i < s->vocab_count; i++)
        tally(s->digit, draw_key(logits[i], i), s->weight[i], KEY_BITS - DIGIT_BITS);
}

/* The digit, from the highest down, with which `above` (all higher ones) comes to `want`: its mass or
 * its count. */
static uint32_t pick(const struct draw_tally *digit, struct draw_tally want,
                     struct draw_tally *above)
{
    uint32_t d = DIGITS - 1;
    while (above->mass + digit[d].mass < want.mass && above->count + digit[d].count < want.count) {
        above->mass += digit[d].mass;
        above->count += digit[d].count;
        d--;
    }
    return d;
}

/* Moves the keys of the tokens with this first digit into s->key. */
static uint32_t list_first(struct sampler *s, const float *logits, uint32_t digit)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->vocab_count; i++) {
        uint64_t key = draw_key(logits[i], i);
        if (digit_of(key, KEY_BITS - DIGIT_BITS) == digit) s->key[n++] = key;
    }
    return n;
}

/* Keeps those of key[0 … n) with this digit. */
static uint32_t list_next(struct sampler *s, uint32_t n, uint32_t digit, uint32_t shift)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++)
        if (digit_of(s->key[i], shift) == digit) s->key[kept++] = s->key[i];
    return kept;
}

/* The lowest rank key of the fewest best tokens that have the mass or the count that is wanted (all
 * together have it); *mass is theirs. After tally_first. */
static uint64_t last_of_best(struct sampler *s, const float *logits, struct draw_tally want,
                             uint64_t *mass)
{
    struct draw_tally above = {0}, *digit = s->digit, *next = s->digit + DIGITS;
    uint32_t shift = KEY_BITS - DIGIT_BITS, d = pick(digit, want, &above), n = 0;
    uint64_t key = (uint64_t)d << shift;
    while (digit[d].count > 1) { /* whose keys differ in a later digit */
        n = digit == next ? list_next(s, n, d, shift) : list_first(s, logits, d);
        digit = next;
        shift = shift > DIGIT_BITS ? shift - DIGIT_BITS : 0;
        memset(digit, 0, DIGITS * sizeof *digit);
        for (uint32_t i = 0; i < n; i++)
            tally(digit, s->key[i], s->weight[draw_key_id(s->key[i])], shift);
        d = pick(digit, want, &above);
        key |= (uint64_t)d << shift;
    }
    *mass = above.mass + digit[d].mass;
    return key;
}

/* What top_k, then top_p, then min_p leave. */
static struct draw_cut find_cut(struct sampler *s, const float *logits, const struct sampling *p)
{
    bool by_count = p->top_k > 0 && p->top_k < s->vocab_count, by_mass = p->top_p < 1.0f;
    struct draw_cut cut = {.weight_min = p->min_p};
    uint64_t mass = 0;
    if (by_count || by_mass) tally_first(s, logits);
    if (by_count) {
        struct draw_tally want = {.mass = UINT64_MAX, .count = p->top_k};
        cut.key = last_of_best(s, logits, want, &mass);
    }
    if (by_mass) {
        for (uint32_t d = 0; !by_count && d < DIGITS; d++)
            mass += s->digit[d].mass;
        struct draw_tally want = {.mass = draw_top_mass(p->top_p, mass), .count = UINT64_MAX};
        if (mass > 0) cut.key = last_of_best(s, logits, want, &mass);
    }
    return cut;
}

/* The draw. */

static void drop(struct sampler *s, const float *logits, struct draw_cut cut)
{
    float lowest = draw_key_logit(cut.key); /* NaN, which nothing is below, if all are kept */
    uint32_t last = draw_key_id(cut.key);
    for (uint32_t i = 0; i < s->vocab_count; i++) {
        bool beyond = logits[i] < lowest || (logits[i] == lowest && i > last);
        s->weight[i] = beyond || s->weight[i] < cut.weight_min ? 0 : s->weight[i];
    }
}

/* The mass of all, and of each stretch in s->stretch. */
static uint64_t sum_stretches(struct sampler *s)
{
    uint64_t total = 0;
    for (uint32_t first = 0; first < s->vocab_count; first += STRETCH) {
        uint32_t rest = s->vocab_count - first, end = first + (rest < STRETCH ? rest : STRETCH);
        uint64_t sum = 0;
        for (uint32_t i = first; i < end; i++)
            sum += draw_mass(s->weight[i]);
        s->stretch[first / STRETCH] = sum;
        total += sum;
    }
    return total;
}

/* The first token at which the masses so far exceed `target`, which is below their total. */
static uint32_t walk(const struct sampler *s, uint64_t target)
{
    uint32_t i = 0;
    for (; target >= s->stretch[i / STRETCH]; i += STRETCH)
        target -= s->stretch[i / STRETCH];
    for (; target >= draw_mass(s->weight[i]); i++)
        target -= draw_mass(s->weight[i]);
    return i;
}

static void weigh(struct sampler *s, const float *logits, float top, float scale)
{
    for (uint32_t i = 0; i < s->vocab_count; i++)
        s->weight[i] = draw_exp((logits[i] - top) * scale);
}

static uint32_t draw(struct sampler *s, const struct sampler_ask *ask, const float *logits,
                     uint32_t best)
{
    const struct sampling *p = ask->sampling;
    weigh(s, logits, logits[best], 1.0f / p->temperature);
    struct draw_cut cut = find_cut(s, logits, p);
    if (cut.key > 0 || cut.weight_min > 0) drop(s, logits, cut);
    uint64_t total = sum_stretches(s);
    uint64_t bits = draw_bits(p->seed, ask->choice, ask->index);
    return total > 0 ? walk(s, draw_part_of(bits, total)) : best;
}

/* Log-probabilities. */

/* The best `want` tokens in order; insertion into a short list, whose last one most fail to beat. */
static uint32_t top_keys(uint64_t *list, uint32_t want, const float *logits, uint32_t vocab)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab && want > 0; i++) {
        uint64_t key = draw_key(logits[i], i);
        if (n == want && key < list[n - 1]) continue;
        uint32_t at = n < want ? n++ : n - 1;
        for (; at > 0 && list[at - 1] < key; at--)
            list[at] = list[at - 1];
        list[at] = key;
    }
    return n;
}

static double log_base(struct sampler *s, const float *logits, uint32_t best)
{
    weigh(s, logits, logits[best], 1);
    return draw_log_base(logits[best], sum_stretches(s));
}

static void report(struct sampler *s, const struct sampling *p, const float *logits, uint32_t best,
                   struct token_info *out)
{
    uint64_t list[JOB_TOPS_MAX];
    double base = log_base(s, logits, best);
    out->logprob = draw_logprob(logits[out->token], base);
    out->tops_count = top_keys(list, p->tops_count, logits, s->vocab_count);
    for (uint32_t i = 0; i < out->tops_count; i++) {
        out->top[i].token = draw_key_id(list[i]);
        out->top[i].logprob = draw_logprob(logits[out->top[i].token], base);
    }
}

void sampler_draw(struct sampler *s, const struct sampler_ask *ask, struct token_info *out)
{
    const float *logits = adjust(s, ask);
    uint32_t best = best_of(logits, s->vocab_count);
    bool greedy = ask->sampling->temperature == 0 || !isfinite(logits[best]);
    *out = (struct token_info){.logprob = NAN};
    out->token = greedy ? best : draw(s, ask, logits, best);
    if (ask->sampling->logprobs) report(s, ask->sampling, logits, best, out);
}

enum err sampler_init(struct sampler *s, uint32_t vocab_count)
{
    *s = (struct sampler){.vocab_count = vocab_count,
                          .adjusted = mem_array(vocab_count, sizeof *s->adjusted),
                          .weight = mem_array(vocab_count, sizeof *s->weight),
                          .key = mem_array(vocab_count, sizeof *s->key),
                          .stretch = mem_array(vocab_count / STRETCH + 1, sizeof *s->stretch),
                          .digit = mem_array((size_t)2 * DIGITS, sizeof *s->digit)};
    if (s->adjusted && s->weight && s->key && s->stretch && s->digit) return OK;
    sampler_fini(s);
    return ERR_MEMORY;
}

void sampler_fini(struct sampler *s)
{
    mem_free(s->adjusted);
    mem_free(s->weight);
    mem_free(s->key);
    mem_free(s->stretch);
    mem_free(s->digit);
    *s = (struct sampler){0};
}
