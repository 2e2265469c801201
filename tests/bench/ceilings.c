#include "tests/bench/ceilings.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/clock.h"
#include "common/mem.h"
#include "kernels/workers.h"

enum { HUGE_PAGE_BYTES = 2 << 20, READ_BYTES = 192 << 20, PEAK_LOOPS = 40000, CHAINS = 24 };
enum { PEAK_ROUNDS = 200, READ_ROUNDS = 12, TURN_ROUNDS = 5 }; /* 0.1, 5 and 0.2 ms each */
enum { TURNS = 1000 };

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) static float peak_bf16(void)
{
    __m512 sum[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = (__m512bh)_mm512_setzero_si512();
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (int loop = 0; loop < PEAK_LOOPS; loop++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    }
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    return _mm512_reduce_add_ps(sum[0]);
}
__attribute__((target("avx2,fma"))) static float peak_fma(void)
{
    enum { OWN = CHAINS / 2 };
    __m256 sum[OWN], a = _mm256_set1_ps(0.5f), total = _mm256_setzero_ps();
    for (int i = 0; i < OWN; i++)
        sum[i] = _mm256_set1_ps((float)i);
    for (int loop = 0; loop < PEAK_LOOPS; loop++) {
#pragma GCC unroll 12
        for (int i = 0; i < OWN; i++)
            sum[i] = _mm256_fmadd_ps(sum[i], a, a);
    }
    for (int i = 0; i < OWN; i++)
        total = _mm256_add_ps(total, sum[i]);
    return _mm256_cvtss_f32(total);
}
static bool has_bf16(void)
{
    return __builtin_cpu_supports("avx512bf16");
}
static double peak_macs(void)
{
    return has_bf16() ? (double)PEAK_LOOPS * CHAINS * 32 : (double)PEAK_LOOPS * CHAINS / 2 * 8;
}
static void peak_work(void *ctx, uint32_t index)
{
    float got = has_bf16() ? peak_bf16() : peak_fma();
    if (index == 0) ((struct ceilings *)ctx)->seen += (double)got;
}

__attribute__((target("avx512f"))) static uint64_t read_wide(const char *p, size_t bytes)
{
    enum { LINES = 4, AHEAD_BYTES = 4096 };
    __m512i sum[LINES] = {0};
    for (size_t at = 0; at < bytes; at += LINES * 64)
        for (int i = 0; i < LINES; i++) {
            const char *line = p + at + i * 64;
            _mm_prefetch(line + AHEAD_BYTES, _MM_HINT_T0);
            sum[i] = _mm512_or_si512(sum[i], _mm512_load_si512(line));
        }
    for (int i = 1; i < LINES; i++)
        sum[0] = _mm512_or_si512(sum[0], sum[i]);
    return (uint64_t)_mm512_reduce_or_epi64(sum[0]);
}
#else
static double peak_macs(void)
{
    return 1;
}
static void peak_work(void *ctx, uint32_t index)
{
    (void)ctx, (void)index;
}
#endif

static uint64_t read_narrow(const char *p, size_t bytes)
{
    const uint64_t *word = (const void *)p;
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes / sizeof *word; i++)
        sum |= word[i];
    return sum;
}
static void read_work(void *ctx, uint32_t index)
{
    struct ceilings *c = ctx;
    size_t part = READ_BYTES / c->threads / 4096 * 4096;
    uint64_t got;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        got = read_wide(c->memory + index * part, part);
    else
#endif
        got = read_narrow(c->memory + index * part, part);
    if (index == 0) c->seen += (double)got;
}
/* Two threads count in turn: the line goes over TURNS times. */
static void turn_work(void *ctx, uint32_t index)
{
    struct ceilings *c = ctx;
    for (uint32_t i = index; index < 2 && i < TURNS; i += 2) {
        while (atomic_load_explicit(c->turn, memory_order_acquire) != i) {
        }
        atomic_store_explicit(c->turn, i + 1 == TURNS ? 0 : i + 1, memory_order_release);
    }
}
static double best_seconds(struct ceilings *c, workers_fn *fn, int rounds)
{
    uint64_t best_ns = UINT64_MAX;
    for (int i = 0; i < rounds; i++) {
        uint64_t began_ns = clock_now_ns();
        workers_run(c->workers, c->threads, fn, c);
        uint64_t took_ns = clock_now_ns() - began_ns;
        if (took_ns < best_ns) best_ns = took_ns;
    }
    return (double)best_ns / NS_PER_S;
}

void ceilings_init(struct ceilings *c, uint32_t threads)
{
    *c = (struct ceilings){.threads = threads};
    if (workers_new(&c->workers, threads, NULL) != OK ||
        !(c->turn = mem_aligned(sizeof *c->turn, 64)) ||
        !(c->memory = mem_aligned(READ_BYTES, HUGE_PAGE_BYTES))) {
        fprintf(stderr, "ceilings: %s\n", err_text());
        exit(1);
    }
    memset(c->memory, 1, READ_BYTES);
}

struct ceiling ceilings_measure(struct ceilings *c)
{
    struct ceiling now = {
        .peak_macs_s = peak_macs() * c->threads / best_seconds(c, peak_work, PEAK_ROUNDS),
        .read_bytes_s = (double)READ_BYTES / best_seconds(c, read_work, READ_ROUNDS)};
    if (c->threads > 1) now.line_ns = best_seconds(c, turn_work, TURN_ROUNDS) / TURNS * NS_PER_S;
    if (now.peak_macs_s > c->peak_macs_s) c->peak_macs_s = now.peak_macs_s;
    if (now.read_bytes_s > c->read_bytes_s) c->read_bytes_s = now.read_bytes_s;
    return now;
}

void ceilings_fini(struct ceilings *c)
{
    workers_free(c->workers);
    mem_free(c->memory);
    mem_free(c->turn);
}

struct ceiling ceiling_higher(struct ceiling a, struct ceiling b)
{
    if (b.peak_macs_s > a.peak_macs_s) a.peak_macs_s = b.peak_macs_s;
    if (b.read_bytes_s > a.read_bytes_s) a.read_bytes_s = b.read_bytes_s;
    return a;
}

double ceiling_share(struct ceiling c, double macs, double bytes, double seconds)
{
    double compute = macs / c.peak_macs_s, read = bytes / c.read_bytes_s;
    return (compute > read ? compute : read) / seconds;
}

double ceilings_share(const struct ceilings *c, double macs, double bytes, double seconds)
{
    struct ceiling best = {c->peak_macs_s, c->read_bytes_s, 0};
    return ceiling_share(best, macs, bytes, seconds);
}
