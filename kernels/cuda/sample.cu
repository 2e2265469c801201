/* sample: a token for each output row, the same bits as engine/sampler.c gives: all arithmetic is that
 * of common/draw.h, and all that is summed is integers, so that neither the order of threads nor that
 * of atomics matters. Compiled with -fmad=false.
 *
 * Three kernels: `adjust` and `weigh` take a row in chunks, one block each, and leave each chunk's best
 * token and masses, and the row's tallies by the first digit of the rank keys. `choose` has one block a
 * row: it finds the last token that a filter keeps, digit by digit, then the token at which the walk
 * stops. The logits are read twice, and by `choose`, where the row asks for it: once for each filter
 * (more often if more than LIST_KEYS tokens share a digit), once for the sums of what is kept, twice
 * for the likeliest tokens. All logits equal is what takes longest. Registers are of sm_90. */
#include "common/draw.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/eight.cuh"
#include "kernels/cuda/kernels.h"

namespace {

enum {
    CHUNK = 4096, /* tokens */
    CHUNK_THREADS = 256,
    ROW_THREADS = 1024, /* of choose */
    SMALL_ROW_THREADS = 128,
    SMALL_ROW_TOKENS = 2 * CHUNK, /* up to which those do */
    COUNT_THREADS = 256,
    LIST_KEYS = 8192, /* as few tokens with the same digits are listed instead of looked for */
    DIGIT_BITS = 11,
    DIGITS = 1 << DIGIT_BITS,
    FIRST_SHIFT = 64 - DIGIT_BITS,
};

/* What the kernels of one draw leave for each other, by row; in cuda_draw's scratch. */
struct draw_room {
    uint64_t *best;       /* [rows][chunks] the best rank key */
    uint64_t *mass;       /* [rows][chunks] of the tokens that are kept; of all before a filter */
    uint64_t *log_mass;   /* [rows][chunks] of all at temperature 1 */
    uint64_t *digit_mass; /* [rows][DIGITS] by the first digit */
    uint64_t *list;       /* [rows][LIST_KEYS] */
    uint32_t *digit_count;
    float *adjusted; /* [rows][chunks x CHUNK] logits after bias and penalties; NaN at the end */
    uint32_t chunks;
};

/* One row of it, and how its slot draws. */
struct draw_row {
    uint64_t *best, *mass, *log_mass, *digit_mass, *list;
    uint32_t *digit_count;
    float *adjusted;
    uint32_t chunks, vocab, slot, index;
    struct cuda_sampling how;
};

__device__ struct draw_row row_of(const struct draw_room &room, const struct cuda_slots &slots,
                                  const struct cuda_batch &batch, uint32_t row)
{
    struct draw_row r;
    r.best = room.best + (size_t)row * room.chunks;
    r.mass = room.mass + (size_t)row * room.chunks;
    r.log_mass = room.log_mass + (size_t)row * room.chunks;
    r.digit_mass = room.digit_mass + (size_t)row * DIGITS;
    r.list = room.list + (size_t)row * LIST_KEYS;
    r.digit_count = room.digit_count + (size_t)row * DIGITS;
    r.adjusted = room.adjusted + (size_t)row * room.chunks * CHUNK;
    r.chunks = room.chunks;
    r.vocab = slots.vocab_count;
    r.slot = batch.slot[batch.output_row[row]];
    r.index = slots.index[r.slot];
    r.how = slots.sampling[r.slot];
    return r;
}

__device__ bool by_count(const struct draw_row &r)
{
    return r.how.top_k > 0 && r.how.top_k < r.vocab;
}
__device__ bool by_mass(const struct draw_row &r)
{
    return r.how.top_p < 1.0f;
}
__device__ uint32_t tops_count(const struct draw_row &r)
{
    if (!r.how.logprobs) return 0;
    return r.how.tops_count < r.vocab ? r.how.tops_count : r.vocab;
}

/* The row's best rank key and logit, and the factor of the exponent; 0 if nothing is drawn. */
struct draw_best {
    uint64_t key;
    float top, scale;
};
__device__ struct draw_best best_of(const struct draw_row &r)
{
    struct draw_best b = {0, 0.0f, 0.0f};
    for (uint32_t c = 0; c < r.chunks; c++)
        b.key = r.best[c] > b.key ? r.best[c] : b.key;
    b.top = draw_key_logit(b.key);
    bool finite = b.top - b.top == 0.0f;
    if (r.how.temperature != 0.0f && finite) b.scale = 1.0f / r.how.temperature;
    return b;
}
/* 1 / temperature is above 0 for every temperature. */
__device__ bool greedy(const struct draw_best &b)
{
    return b.scale == 0.0f;
}

/* visit(logit, id) for the adjusted logits first … end - 1, multiples of CHUNK. */
template <typename Visit>
__device__ __forceinline__ void visit_tokens(const float *adjusted, uint32_t first, uint32_t end,
                                             Visit visit)
{
    uint32_t step = blockDim.x * EIGHT;
    for (uint32_t at = first + threadIdx.x * EIGHT; at < end; at += 2 * step) {
        struct eight a, b;
        bool both = at + step < end;
        eight_load(&a, adjusted + at);
        if (both) eight_load(&b, adjusted + at + step);
        for (uint32_t i = 0; i < EIGHT; i++)
            visit(a.v[i], at + i);
        for (uint32_t i = 0; both && i < EIGHT; i++)
            visit(b.v[i], at + step + i);
    }
}

__device__ __forceinline__ uint64_t shuffle_wide(uint64_t v, uint32_t lane)
{
    return (uint64_t)shuffle((uint32_t)(v >> 32), lane) << 32 | shuffle((uint32_t)v, lane);
}
__device__ __forceinline__ uint64_t warp_sum_wide(uint64_t v)
{
    for (uint32_t mask = WARP_LANES / 2; mask > 0; mask /= 2)
        v += shuffle_wide(v, threadIdx.x % WARP_LANES ^ mask);
    return v;
}
__device__ __forceinline__ uint64_t warp_max_wide(uint64_t v)
{
    for (uint32_t mask = WARP_LANES / 2; mask > 0; mask /= 2) {
        uint64_t other = shuffle_wide(v, threadIdx.x % WARP_LANES ^ mask);
        v = other > v ? other : v;
    }
    return v;
}

/* Tallies by digit in shared memory. A mass is added in halves, with a carry: shared memory has
 * atomics of 32 bits. */
struct digit_tallies {
    uint32_t *low, *high, *count; /* [DIGITS] */
};
__device__ struct digit_tallies take_tallies(struct shared_memory *shared)
{
    struct digit_tallies t;
    t.low = shared_take<uint32_t>(shared, DIGITS);
    t.high = shared_take<uint32_t>(shared, DIGITS);
    t.count = shared_take<uint32_t>(shared, DIGITS);
    return t;
}
constexpr uint32_t tallies_bytes = 3 * shared_bytes<uint32_t>(DIGITS);

__device__ void clear_tallies(const struct digit_tallies &t)
{
    for (uint32_t d = threadIdx.x; d < DIGITS + PLANTED("tally_too_far"); d += blockDim.x)
        t.low[d] = t.high[d] = t.count[d] = 0;
    if (!PLANTED("tallies_no_barrier")) block_sync();
}
__device__ __forceinline__ uint32_t digit_of(uint64_t key, uint32_t shift)
{
    return (uint32_t)(key >> shift) & (DIGITS - 1);
}
__device__ __forceinline__ void tally(const struct digit_tallies &t, uint32_t digit, uint64_t mass)
{
    uint32_t low = (uint32_t)mass, high = (uint32_t)(mass >> 32);
    if (low && atomic_add(&t.low[digit], low) > UINT32_MAX - low) high++;
    if (high) atomic_add(&t.high[digit], high);
    atomic_add(&t.count[digit], 1u);
}
__device__ __forceinline__ uint64_t mass_at(const struct digit_tallies &t, uint32_t digit)
{
    return (uint64_t)t.high[digit] << 32 | t.low[digit];
}

/* Equals adjust and best_of in engine/sampler.c for one chunk of a row, whose tallies it clears. A
 * row's bytes: vocab x 4 read, the same written, and vocab x 4 counts read with penalties. 16.1 KiB
 * shared, 29 registers. */
__global__ void __launch_bounds__(CHUNK_THREADS)
    adjust_kernel(struct draw_room room, const float *logits, struct cuda_slots slots,
                  struct cuda_batch batch)
{
    grid_wait();
    struct shared_memory shared;
    float *chunk = shared_take<float>(&shared, CHUNK);
    uint64_t *best = shared_take<uint64_t>(&shared, CHUNK_THREADS / WARP_LANES);
    uint32_t row = blockIdx.y, first = blockIdx.x * CHUNK;
    if (row >= *batch.outputs_live) return;
    struct draw_row r = row_of(room, slots, batch, row);
    const float *from = logits + (size_t)row * r.vocab;
    const uint32_t *counts = slots.counts + (size_t)r.slot * r.vocab;
    const struct logit_bias *bias = slots.bias + (size_t)r.slot * JOB_BIAS_MAX;
    for (uint32_t d = first / CHUNK * CHUNK_THREADS + threadIdx.x; d < DIGITS;
         d += gridDim.x * CHUNK_THREADS) {
        r.digit_mass[d] = 0;
        r.digit_count[d] = 0;
    }
    for (uint32_t i = threadIdx.x; i < CHUNK; i += CHUNK_THREADS)
        chunk[i] = first + i < r.vocab ? from[first + i] : draw_float_of(0x7fc00000u);
    block_sync();
    /* A token may be named several times: the thread of its first place adds all, in their order. */
    for (uint32_t i = threadIdx.x; i < r.how.bias_count; i += CHUNK_THREADS) {
        uint32_t token = bias[i].token, before = 0;
        if (token / CHUNK != blockIdx.x) continue;
        while (bias[before].token != token)
            before++;
        for (uint32_t j = i; before == i && j < r.how.bias_count; j++)
            if (bias[j].token == token) chunk[token % CHUNK] += bias[j].bias;
    }
    block_sync();
    uint64_t key = 0;
    for (uint32_t i = threadIdx.x; i < CHUNK; i += CHUNK_THREADS) {
        uint32_t id = first + i, count = r.how.penalties && id < r.vocab ? counts[id] : 0;
        float logit = chunk[i];
        if (count)
            logit = draw_penalised(logit, count, r.how.repetition_penalty, r.how.presence_penalty,
                                   r.how.frequency_penalty);
        r.adjusted[id] = logit;
        uint64_t own = draw_key(logit, id);
        key = own > key ? own : key;
    }
    key = warp_max_wide(key);
    if (threadIdx.x % WARP_LANES == 0) best[threadIdx.x / WARP_LANES] = key;
    if (!PLANTED("best_no_barrier")) block_sync();
    for (uint32_t w = 0; w < CHUNK_THREADS / WARP_LANES; w++)
        key = best[w] > key ? best[w] : key;
    if (threadIdx.x == 0) r.best[blockIdx.x] = key;
}

/* Equals weigh, sum_stretches and tally_first in engine/sampler.c for one chunk of a row. Reads vocab x
 * 4 bytes a row; one exponential a token, two with log-probabilities at a temperature; nothing for
 * greedy rows without log-probabilities. 24.1 KiB shared, 40 registers. */
__global__ void __launch_bounds__(CHUNK_THREADS)
    weigh_kernel(struct draw_room room, struct cuda_slots slots, struct cuda_batch batch)
{
    grid_wait();
    struct shared_memory shared;
    struct digit_tallies tallies = take_tallies(&shared);
    uint64_t *sums = shared_take<uint64_t>(&shared, 2);
    uint32_t row = blockIdx.y, first = blockIdx.x * CHUNK;
    if (row >= *batch.outputs_live) return;
    struct draw_row r = row_of(room, slots, batch, row);
    struct draw_best best = best_of(r);
    bool filtered = !greedy(best) && (by_count(r) || by_mass(r));
    bool tallied = filtered || tops_count(r) > 0;
    if (greedy(best) && !r.how.logprobs) return;
    if (threadIdx.x < 2) sums[threadIdx.x] = 0;
    clear_tallies(tallies);
    uint64_t mass = 0, log_mass = 0;
    visit_tokens(r.adjusted, first, first + CHUNK, [&](float logit, uint32_t id) {
        float weight = draw_exp((logit - best.top) * best.scale);
        if (tallied) tally(tallies, digit_of(draw_key(logit, id), FIRST_SHIFT), draw_mass(weight));
        if (filtered || weight >= r.how.min_p) mass += draw_mass(weight);
        if (r.how.logprobs) log_mass += draw_mass(draw_exp(logit - best.top));
    });
    mass = warp_sum_wide(mass);
    log_mass = warp_sum_wide(log_mass);
    if (threadIdx.x % WARP_LANES == 0) {
        atomic_add(&sums[0], mass);
        atomic_add(&sums[1], log_mass);
    }
    block_sync();
    if (threadIdx.x == 0) r.mass[blockIdx.x] = sums[0];
    if (threadIdx.x == 0) r.log_mass[blockIdx.x] = sums[1];
    for (uint32_t d = threadIdx.x; tallied && d < DIGITS; d += CHUNK_THREADS) {
        if (tallies.count[d] == 0) continue;
        atomic_add(&r.digit_count[d], tallies.count[d]);
        atomic_add(&r.digit_mass[d], mass_at(tallies, d));
    }
}

/* --- choose: one block a row --- */

struct found {
    uint32_t index;
    struct draw_tally above, own;
};

struct choose_shared {
    struct digit_tallies tallies;
    struct draw_tally *warp; /* [warps] sums */
    struct found *found;
    uint64_t *top;     /* [JOB_TOPS_MAX] keys */
    uint32_t *counted; /* [1] */
};

__device__ struct choose_shared take_choose(struct shared_memory *shared)
{
    struct choose_shared s;
    s.tallies = take_tallies(shared);
    s.warp = shared_take<struct draw_tally>(shared, ROW_THREADS / WARP_LANES);
    s.found = shared_take<struct found>(shared, 1);
    s.top = shared_take<uint64_t>(shared, JOB_TOPS_MAX);
    s.counted = shared_take<uint32_t>(shared, 1);
    return s;
}
constexpr uint32_t choose_bytes = tallies_bytes +
                                  shared_bytes<struct draw_tally>(ROW_THREADS / WARP_LANES) +
                                  shared_bytes<struct found>(1) +
                                  shared_bytes<uint64_t>(JOB_TOPS_MAX) + shared_bytes<uint32_t>(1);

__device__ __forceinline__ struct draw_tally both(struct draw_tally a, struct draw_tally b)
{
    return {a.mass + b.mass, a.count + b.count};
}
__device__ __forceinline__ bool reaches(struct draw_tally have, struct draw_tally want)
{
    return have.mass >= want.mass || have.count >= want.count;
}

/* What the threads before this one have together. */
__device__ __forceinline__ struct draw_tally sum_before(const struct choose_shared &s,
                                                        struct draw_tally mine)
{
    uint32_t lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
    struct draw_tally with = mine;
    for (uint32_t step = 1; step < WARP_LANES; step *= 2) {
        struct draw_tally left = {shuffle_wide(with.mass, (lane - step) % WARP_LANES),
                                  shuffle_wide(with.count, (lane - step) % WARP_LANES)};
        if (lane >= step) with = both(with, left);
    }
    if (lane == WARP_LANES - 1) s.warp[warp] = with;
    if (!PLANTED("draw_sums_no_barrier")) block_sync();
    struct draw_tally before = {with.mass - mine.mass, with.count - mine.count};
    for (uint32_t w = 0; w < warp; w++)
        before = both(before, s.warp[w]);
    return before;
}

/* The first of n items with which the sum comes to what is wanted, in mass or in count; item(i) is its
 * tally. All together have it. All threads get the answer. */
template <typename Item>
__device__ __forceinline__ struct found find_item(const struct choose_shared &s, uint32_t n,
                                                  struct draw_tally want, Item item)
{
    uint32_t per = divide_up(n, blockDim.x), first = threadIdx.x * per;
    uint32_t end = first + per < n ? first + per : n;
    struct draw_tally mine = {0, 0};
    for (uint32_t i = first; i < end; i++)
        mine = both(mine, item(i));
    struct draw_tally before = sum_before(s, mine);
    if (!reaches(before, want) && reaches(both(before, mine), want)) {
        uint32_t i = first;
        struct draw_tally own = item(i);
        while (!reaches(both(before, own), want)) {
            before = both(before, own);
            own = item(++i);
        }
        *s.found = {i, before, own};
    }
    block_sync();
    return *s.found;
}

/* Tallies the keys that agree with `key` above `shift_before`, by their digit at `shift`. They are in
 * the list if `listed`; else they are looked for, and listed if `list`. */
__device__ void tally_alike(const struct choose_shared &s, const struct draw_row &r,
                            const struct draw_best &best, uint64_t key, uint32_t shift_before,
                            uint32_t shift, uint32_t listed, bool list)
{
    auto look = [&](uint64_t k) {
        if (k >> shift_before != key >> shift_before) return;
        float weight = draw_exp((draw_key_logit(k) - best.top) * best.scale);
        tally(s.tallies, digit_of(k, shift), draw_mass(weight));
        if (list) r.list[atomic_add(s.counted, 1u)] = k;
    };
    if (threadIdx.x == 0) *s.counted = 0;
    clear_tallies(s.tallies);
    if (listed)
        for (uint32_t i = threadIdx.x; i < listed; i += blockDim.x)
            look(r.list[i]);
    else
        visit_tokens(r.adjusted, 0, r.chunks * CHUNK,
                     [&](float logit, uint32_t id) { look(draw_key(logit, id)); });
    block_sync();
}

/* As last_of_best in engine/sampler.c. */
__device__ uint64_t last_of_best(const struct choose_shared &s, const struct draw_row &r,
                                 const struct draw_best &best, struct draw_tally want,
                                 uint64_t *mass)
{
    uint32_t shift = FIRST_SHIFT, listed = 0;
    struct found f = find_item(
        s, DIGITS, want, [&](uint32_t i) -> struct draw_tally {
            return {r.digit_mass[DIGITS - 1 - i], r.digit_count[DIGITS - 1 - i]};
        });
    uint64_t key = (uint64_t)(DIGITS - 1 - f.index) << shift;
    *mass = f.above.mass + f.own.mass;
    while (f.own.count > 1) { /* keys that differ in a later digit */
        uint32_t before = shift;
        bool list = !listed && f.own.count <= LIST_KEYS;
        shift = shift > DIGIT_BITS ? shift - DIGIT_BITS : 0;
        tally_alike(s, r, best, key, before, shift, listed, list);
        if (list) listed = (uint32_t)f.own.count;
        want = {want.mass - f.above.mass, want.count - f.above.count};
        *mass -= f.own.mass;
        f = find_item(
            s, DIGITS, want, [&](uint32_t i) -> struct draw_tally {
                return {mass_at(s.tallies, DIGITS - 1 - i), s.tallies.count[DIGITS - 1 - i]};
            });
        *mass += f.above.mass + f.own.mass;
        key |= (uint64_t)(DIGITS - 1 - f.index) << shift;
    }
    return key;
}

__device__ uint64_t sum_of(const uint64_t *v, uint32_t n)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += v[i];
    return sum;
}

/* As find_cut in engine/sampler.c. */
__device__ uint64_t find_cut(const struct choose_shared &s, const struct draw_row &r,
                             const struct draw_best &best)
{
    uint64_t key = 0, mass = sum_of(r.mass, r.chunks);
    if (by_count(r)) key = last_of_best(s, r, best, {UINT64_MAX, r.how.top_k}, &mass);
    if (by_mass(r) && mass > 0)
        key = last_of_best(s, r, best, {draw_top_mass(r.how.top_p, mass), UINT64_MAX}, &mass);
    return key;
}

/* The masses of the chunks after the filters, a warp a chunk. */
__device__ void sum_kept(const struct draw_row &r, const struct draw_best &best, uint64_t cut)
{
    uint32_t warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    for (uint32_t c = warp; c < r.chunks; c += blockDim.x / WARP_LANES) {
        uint64_t mass = 0;
        for (uint32_t i = lane * EIGHT; i < CHUNK; i += WARP_LANES * EIGHT) {
            struct eight e;
            eight_load(&e, r.adjusted + c * CHUNK + i);
            for (uint32_t j = 0; j < EIGHT; j++) {
                if (draw_key(e.v[j], c * CHUNK + i + j) < cut) continue;
                float weight = draw_exp((e.v[j] - best.top) * best.scale);
                if (weight >= r.how.min_p) mass += draw_mass(weight);
            }
        }
        mass = warp_sum_wide(mass);
        if (lane == 0) r.mass[c] = mass;
    }
    block_sync();
}

/* As draw in engine/sampler.c. */
__device__ uint32_t draw(const struct choose_shared &s, const struct draw_row &r,
                         const struct draw_best &best)
{
    uint64_t cut = 0, bits = draw_bits(r.how.seed, r.how.choice, r.index);
    if (by_count(r) || by_mass(r)) {
        cut = find_cut(s, r, best);
        sum_kept(r, best, cut);
    }
    uint64_t total = sum_of(r.mass, r.chunks);
    if (total == 0) return draw_key_id(best.key);
    /* The running sum exceeds a target: it comes to one more. */
    struct draw_tally want = {draw_part_of(bits, total) + 1, UINT64_MAX};
    struct found chunk = find_item(
        s, r.chunks, want, [&](uint32_t c) -> struct draw_tally {
            return {r.mass[c], 0};
        });
    uint32_t first = chunk.index * CHUNK;
    want.mass -= chunk.above.mass;
    struct found token = find_item(
        s, CHUNK, want, [&](uint32_t i) -> struct draw_tally {
            float logit = r.adjusted[first + i];
            float weight = draw_exp((logit - best.top) * best.scale);
            bool kept = draw_key(logit, first + i) >= cut && weight >= r.how.min_p;
            return {kept ? draw_mass(weight) : 0, 0};
        });
    return first + token.index;
}

/* As report in engine/sampler.c. */
__device__ void report(const struct choose_shared &s, const struct draw_row &r,
                       const struct draw_best &best, struct token_info *out)
{
    uint64_t mass = sum_of(r.log_mass, r.chunks);
    uint32_t tops = tops_count(r), i = threadIdx.x;
    double base = draw_log_base(best.top, mass);
    if (i == 0) out->logprob = draw_logprob(r.adjusted[out->token], base);
    if (tops == 0) return;
    uint64_t cut = last_of_best(s, r, best, {UINT64_MAX, tops}, &mass);
    if (i == 0) *s.counted = 0;
    block_sync();
    visit_tokens(r.adjusted, 0, r.chunks * CHUNK, [&](float logit, uint32_t id) {
        uint64_t key = draw_key(logit, id);
        if (key >= cut) s.top[atomic_add(s.counted, 1u)] = key;
    });
    block_sync();
    if (i == 0) out->tops_count = tops;
    if (i >= tops) return;
    uint32_t better = 0, token = draw_key_id(s.top[i]);
    for (uint32_t j = 0; j < tops; j++)
        better += s.top[j] > s.top[i];
    out->top[better] = {token, draw_logprob(r.adjusted[token], base)};
}

/* Equals sampler_draw and what slot_draw does after it, in engine/. Reads 20 bytes a chunk for greedy
 * rows, 16 KiB more for rows without filters; vocab x 4 bytes for each pass of a filter and for the
 * sums of what it keeps, 24 KiB of tallies for each filter. 25 KiB shared, 64 registers. */
__global__ void __launch_bounds__(ROW_THREADS)
    choose_kernel(struct token_info *result, struct draw_room room, struct cuda_slots slots,
                  struct cuda_batch batch)
{
    grid_wait();
    struct shared_memory shared;
    struct choose_shared s = take_choose(&shared);
    uint32_t row = blockIdx.x;
    if (row >= *batch.outputs_live) return;
    struct draw_row r = row_of(room, slots, batch, row);
    struct draw_best best = best_of(r);
    struct token_info *out = result + row;
    uint32_t token = greedy(best) ? draw_key_id(best.key) : draw(s, r, best);
    if (threadIdx.x < JOB_TOPS_MAX) out->top[threadIdx.x] = {0, 0.0f};
    if (threadIdx.x == 0) {
        out->token = token;
        out->logprob = draw_float_of(0x7fc00000u);
        out->tops_count = 0;
    }
    if (r.how.logprobs) report(s, r, best, out);
    if (threadIdx.x > 0) return;
    slots.index[r.slot] = r.index + 1;
    slots.last[r.slot] = token;
    if (r.how.penalties) slots.counts[(size_t)r.slot * r.vocab + token]++;
}

/* --- scores --- */

/* The log-probability of one token of each row, as common/draw.h has it: a block a row. Reads vocab x 4
 * bytes twice, the second time from the L2 cache; one exponential a token. 512 bytes shared, 32
 * registers. */
__global__ void __launch_bounds__(ROW_THREADS)
    logprobs_kernel(float *out, const float *logits, const uint32_t *token, uint32_t vocab)
{
    grid_wait();
    struct shared_memory shared;
    uint64_t *best = shared_take<uint64_t>(&shared, ROW_THREADS / WARP_LANES);
    uint64_t *sums = shared_take<uint64_t>(&shared, ROW_THREADS / WARP_LANES);
    const float *row = logits + (size_t)blockIdx.x * vocab;
    uint32_t warps = blockDim.x / WARP_LANES, warp = threadIdx.x / WARP_LANES;
    uint64_t key = 0, mass = 0;
    for (uint32_t i = threadIdx.x; i < vocab; i += blockDim.x) {
        uint64_t own = draw_key(row[i], i);
        key = own > key ? own : key;
    }
    key = warp_max_wide(key);
    if (threadIdx.x % WARP_LANES == 0) best[warp] = key;
    if (!PLANTED("score_best_no_barrier")) block_sync();
    for (uint32_t w = 0; w < warps; w++)
        key = best[w] > key ? best[w] : key;
    float top = draw_key_logit(key);
    for (uint32_t i = threadIdx.x; i < vocab; i += blockDim.x)
        mass += draw_mass(draw_exp(row[i] - top));
    mass = warp_sum_wide(mass);
    if (threadIdx.x % WARP_LANES == 0) sums[warp] = mass;
    if (!PLANTED("score_sums_no_barrier")) block_sync();
    if (threadIdx.x > 0) return;
    for (uint32_t w = 1; w < warps; w++)
        mass += sums[w];
    out[blockIdx.x] = draw_logprob(row[token[blockIdx.x]], draw_log_base(top, mass));
}

/* --- counts --- */

/* Equals the first half of the counting in slot_make (engine/slot.c): 4 bytes read, 4 written a token.
 * Tokens that come twice are written twice with the same. No shared memory, 10 registers. */
__global__ void __launch_bounds__(COUNT_THREADS)
    mark_kernel(uint32_t *counts, const uint32_t *prompt, uint32_t prompt_count)
{
    grid_wait();
    uint32_t i = blockIdx.x * COUNT_THREADS + threadIdx.x;
    if (i < prompt_count) store_alike(&counts[prompt[i]], DRAW_IN_PROMPT);
}

/* Equals the other half. No shared memory, 10 registers. */
__global__ void __launch_bounds__(COUNT_THREADS)
    count_kernel(uint32_t *counts, const uint32_t *forwarded, uint32_t forwarded_count)
{
    grid_wait();
    uint32_t i = blockIdx.x * COUNT_THREADS + threadIdx.x;
    if (i < forwarded_count) atomic_add(&counts[forwarded[i]], 1u);
}

uint32_t chunks_of(uint32_t vocab_count)
{
    return divide_up(vocab_count, CHUNK);
}

uint32_t row_threads(uint32_t vocab_count)
{
    return vocab_count <= SMALL_ROW_TOKENS ? SMALL_ROW_THREADS : ROW_THREADS;
}

/* The next piece of scratch, aligned to 256 bytes. */
template <typename T> T *piece(char **at, size_t count)
{
    T *p = (T *)*at;
    *at += (count * sizeof(T) + 255) / 256 * 256;
    return p;
}

/* Cuts scratch; returns its end. */
char *cut_room(struct draw_room *room, char *at, uint32_t vocab_count, size_t rows)
{
    uint32_t chunks = chunks_of(vocab_count);
    room->chunks = chunks;
    room->best = piece<uint64_t>(&at, rows * chunks);
    room->mass = piece<uint64_t>(&at, rows * chunks);
    room->log_mass = piece<uint64_t>(&at, rows * chunks);
    room->digit_mass = piece<uint64_t>(&at, rows * DIGITS);
    room->list = piece<uint64_t>(&at, rows * LIST_KEYS);
    room->digit_count = piece<uint32_t>(&at, rows * DIGITS);
    room->adjusted = piece<float>(&at, rows * chunks * CHUNK);
    return at;
}

} // namespace

cudaError_t cuda_slot_count(cudaStream_t stream, const struct cuda_slots *s, uint32_t slot,
                            const uint32_t *prompt, uint32_t prompt_count,
                            const uint32_t *forwarded, uint32_t forwarded_count)
{
    uint32_t *counts = s->counts + (size_t)slot * s->vocab_count;
    cudaError_t c = cudaMemsetAsync(counts, 0, s->vocab_count * sizeof *counts, stream);
    if (c != cudaSuccess) return c;
    if (prompt_count > 0)
        LAUNCH(mark_kernel, divide_up(prompt_count, COUNT_THREADS), COUNT_THREADS, 0, stream,
               counts, prompt, prompt_count);
    if (forwarded_count > 0)
        LAUNCH(count_kernel, divide_up(forwarded_count, COUNT_THREADS), COUNT_THREADS, 0, stream,
               counts, forwarded, forwarded_count);
    return cudaPeekAtLastError();
}

size_t cuda_draw_scratch(uint32_t vocab_count, uint32_t outputs)
{
    struct draw_room room;
    char *none = NULL;
    return (size_t)(cut_room(&room, none, vocab_count, outputs) - none);
}

cudaError_t cuda_draw(cudaStream_t stream, struct token_info *result, const float *logits,
                      const struct cuda_slots *s, const struct cuda_batch *batch, uint32_t outputs,
                      void *scratch)
{
    struct draw_room room;
    cut_room(&room, (char *)scratch, s->vocab_count, outputs);
    if (outputs == 0) return cudaSuccess;
    dim3 chunks(room.chunks, outputs);
    uint32_t threads = row_threads(s->vocab_count);
    LAUNCH(adjust_kernel, chunks, CHUNK_THREADS,
           shared_bytes<float>(CHUNK) + shared_bytes<uint64_t>(CHUNK_THREADS / WARP_LANES), stream,
           room, logits, *s, *batch);
    LAUNCH(weigh_kernel, chunks, CHUNK_THREADS, tallies_bytes + shared_bytes<uint64_t>(2), stream,
           room, *s, *batch);
    LAUNCH(choose_kernel, outputs, threads, choose_bytes, stream, result, room, *s, *batch);
    return cudaPeekAtLastError();
}

cudaError_t cuda_logprobs(cudaStream_t stream, float *out, const float *logits,
                          const uint32_t *token, uint32_t rows, uint32_t vocab_count)
{
    if (rows == 0) return cudaSuccess;
    LAUNCH(logprobs_kernel, rows, row_threads(vocab_count),
           2 * shared_bytes<uint64_t>(ROW_THREADS / WARP_LANES), stream, out, logits, token,
           vocab_count);
    return cudaPeekAtLastError();
}
