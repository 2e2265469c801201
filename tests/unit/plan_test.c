#include "client/plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/rng.h"
#include "tests/unit/testing.h"

#define GIB ((uint64_t)1 << 30)

static const struct model_shape llama_8b = {.layers = 32,
                                            .heads = 32,
                                            .kv_heads = 8,
                                            .head_dim = 128,
                                            .hidden = 4096,
                                            .ffn = 14336,
                                            .vocab = 128256,
                                            .context = 8192,
                                            .dtype = DTYPE_BF16};
static const struct model_shape mistral_7b = {.layers = 32,
                                              .heads = 32,
                                              .kv_heads = 8,
                                              .head_dim = 128,
                                              .hidden = 4096,
                                              .ffn = 14336,
                                              .vocab = 32000,
                                              .context = 32768,
                                              .window = 4096,
                                              .dtype = DTYPE_BF16};

static struct plan_options options_of(const struct model_shape *s)
{
    return (struct plan_options){.shape = *s,
                                 .kv_share = 0.9,
                                 .chunk = 512,
                                 .batch = 128,
                                 .flops_share = 0.5,
                                 .bandwidth_share = 0.7,
                                 .use = 0.7};
}

/* docs/deploy.md's example. */
static struct plan_options example(void)
{
    struct plan_options o = options_of(&llama_8b);
    o.memory_bytes = 80 * GIB;
    o.reserve_bytes = GIB;
    o.requests_per_second = 10;
    o.prompt_tokens = 2000;
    o.output_tokens = 400;
    o.prefill_rate = 20000;
    o.decode_step_ns = 25 * NS_PER_MS;
    return o;
}

static void parameters_and_kv_are_those_that_are_known(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t layers, heads, kv_heads, head_dim, hidden, ffn, vocab;
        bool tied;
        enum dtype dtype;
        uint64_t parameters, token_bytes;
    } rows[] = {
        /* as their publishers count them; 2 x layers x kv heads x head dim x bytes */
        {"Llama 3 8B", 32, 32, 8, 128, 4096, 14336, 128256, false, DTYPE_BF16, 8030261248, 131072},
        {"Llama 3 70B", 80, 64, 8, 128, 8192, 28672, 128256, false, DTYPE_BF16, 70553706496,
         327680},
        {"Llama 3.2 1B, tied", 16, 32, 8, 64, 2048, 8192, 128256, true, DTYPE_BF16, 1235814400,
         32768},
        {"Llama 2 7B, MHA", 32, 32, 32, 128, 4096, 11008, 32000, false, DTYPE_BF16, 6738415616,
         524288},
        {"Llama 2 70B", 80, 64, 8, 128, 8192, 28672, 32000, false, DTYPE_BF16, 68976648192, 327680},
        {"Llama 3.1 405B", 126, 128, 8, 128, 16384, 53248, 128256, false, DTYPE_BF16, 405853388800,
         516096},
        {"Mistral 7B", 32, 32, 8, 128, 4096, 14336, 32000, false, DTYPE_BF16, 7241732096, 131072},
        {"Mistral Nemo, heads not hidden", 40, 32, 8, 128, 5120, 14336, 131072, false, DTYPE_BF16,
         12247782400, 163840},
        {"TinyLlama, fp32", 22, 32, 4, 64, 2048, 5632, 32000, false, DTYPE_F32, 1100048384, 45056},
        {"Qwen 2.5 7B, its 129,024 biases left out", 28, 28, 4, 128, 3584, 18944, 152064, false,
         DTYPE_BF16, 7615616512 - 129024, 57344},
        /* by hand: 2 x 10 x 4 + 3 x (4 x (4 + 2 x 2) + 4 x 4 + 3 x 4 x 8) + 3 x 2 x 4 + 4 */
        {"MQA, fp32", 3, 2, 1, 2, 4, 8, 10, false, DTYPE_F32, 540, 48},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct model_shape s = {.layers = rows[i].layers,
                                .heads = rows[i].heads,
                                .kv_heads = rows[i].kv_heads,
                                .head_dim = rows[i].head_dim,
                                .hidden = rows[i].hidden,
                                .ffn = rows[i].ffn,
                                .vocab = rows[i].vocab,
                                .tied = rows[i].tied,
                                .dtype = rows[i].dtype};
        struct plan_options o = options_of(&s);
        struct plan p;
        assert_ok(plan_make(&p, &o));
        if (p.parameters.total != rows[i].parameters || p.token_bytes != rows[i].token_bytes ||
            p.block_bytes != BLOCK_TOKENS * rows[i].token_bytes)
            fail_msg("%s: %llu parameters, %zu bytes a token", rows[i].name,
                     (unsigned long long)p.parameters.total, p.token_bytes);
    }
}

static void biases_are_counted(void **state)
{
    (void)state;
    struct model_shape s = llama_8b;
    uint64_t plain = plan_parameters_of(&s).total;
    s.attention_bias = true; /* q 4096, k and v 1024 each, o 4096 */
    assert_int_equal(plan_parameters_of(&s).total - plain, 32 * (4096 + 2048 + 4096));
    s.attention_bias = false;
    s.mlp_bias = true;
    assert_int_equal(plan_parameters_of(&s).total - plain, 32 * (2 * 14336 + 4096));
}

static void a_request_holds_whole_blocks_and_no_more_than_its_window(void **state)
{
    (void)state;
    static const struct {
        uint32_t tokens, window, blocks;
    } rows[] = {
        {1, 0, 1},
        {16, 0, 1},
        {17, 0, 2},
        {2400, 0, 150},
        {100, 1, 1},
        {100, 2, 2},
        {100, 17, 2},
        {100, 18, 3},
        {16, 4096, 1},
        {4096, 4096, 256},
        {4112, 4096, 257},
        {32768, 4096, 257},
        {UINT32_MAX, 0, 1u << 28},
        {UINT32_MAX, UINT32_MAX, 1u << 28},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(blocks_held(rows[i].tokens, rows[i].window), rows[i].blocks);
    for (uint32_t window = 1; window < 70; window++) { /* where the window ends, at its worst */
        uint32_t most = 0;
        for (uint32_t end = window; end < window + 64; end++) {
            uint32_t n = blocks_between(BLOCK_TOKENS, end - window, end);
            if (n > most) most = n;
        }
        assert_int_equal(blocks_held(1000, window), most);
    }
}

static void a_pool_is_what_weights_buffers_and_reserve_leave(void **state)
{
    (void)state;
    struct plan_options o = example();
    struct plan p;
    assert_ok(plan_make(&p, &o));
    /* bf16, but 65 norms of 4096 numbers in fp32 */
    uint64_t weights = 2 * (8030261248 - 65 * 4096) + 4 * 65 * 4096;
    assert_int_equal(p.weights_bytes, weights);
    /* rows 520: x fp32, normed, q k v, attended, gate and up, gated; 40 outputs; rope; 104 slots */
    uint64_t buffers = (uint64_t)520 * (4096 * 4 + 2 * (4096 + 6144 + 4096 + 3 * 14336)) +
                       (uint64_t)40 * 4 * (4096 + 128256) + 8192 * 128 * 4 +
                       (uint64_t)104 * 4 * 128256;
    assert_int_equal(p.prefill_pool.buffers_bytes, buffers);
    uint64_t left = 79 * GIB - weights - buffers;
    assert_int_equal(p.prefill_pool.blocks_count, (uint64_t)((double)left * 0.9) >> 21);
    assert_int_equal(p.decode_pool.pool_bytes, p.decode_pool.blocks_count << 21);
    assert_int_equal(p.contiguous_count, p.decode_pool.blocks_count / 512);
}

static void on_cpus_a_tied_output_matrix_is_packed_beside_the_embedding(void **state)
{
    (void)state;
    struct model_shape s = llama_8b;
    struct plan on_gpu, on_cpu;
    s.tied = true;
    struct plan_options o = options_of(&s);
    assert_ok(plan_make(&on_gpu, &o));
    o.on_cpu = true;
    assert_ok(plan_make(&on_cpu, &o));
    assert_int_equal(on_cpu.weights_bytes - on_gpu.weights_bytes, (uint64_t)2 * 4096 * 128256);
}

static void lengths_tell_blocks_waste_and_how_many_fit(void **state)
{
    (void)state;
    struct plan_options o = options_of(&mistral_7b);
    struct plan p;
    o.memory_bytes = 80 * GIB;
    o.prompt_tokens = 3000;
    o.output_tokens = 7;
    assert_ok(plan_make(&p, &o));
    static const struct {
        uint32_t tokens, blocks, empty;
    } rows[] = {{512, 32, 0},
                {2048, 128, 0},
                {3007, 188, 1},
                {8192, 257, 0},
                {32768, 257, 0}}; /* the window's */
    assert_int_equal(p.lengths_count, sizeof rows / sizeof rows[0]);
    for (size_t i = 0; i < p.lengths_count; i++) {
        const struct plan_length *l = &p.length[i];
        assert_int_equal(l->tokens, rows[i].tokens);
        assert_int_equal(l->blocks_count, rows[i].blocks);
        assert_int_equal(l->empty_tokens, rows[i].empty);
        assert_int_equal(l->bytes, rows[i].blocks * (uint64_t)2 << 20);
        assert_int_equal(l->requests_count, p.decode_pool.blocks_count / rows[i].blocks);
        assert_int_equal(l->told, rows[i].tokens == 3007);
    }
}

static void the_example_of_the_pages_gives_its_figures(void **state)
{
    (void)state;
    struct plan_options o = example();
    struct plan p;
    assert_ok(plan_make(&p, &o));
    assert_float_equal(p.prefill.offered, 1.0, 1e-9);
    assert_int_equal(p.prefill.nodes_count, 2);
    assert_float_equal(p.prefill.wait_s, 0.1 / 3 / 2, 1e-9); /* Erlang C of 1 at 2 is 1/3 */
    assert_float_equal(p.decode.used_batch, 89.6, 1e-9);
    assert_float_equal(p.decode.offered, 100.0 / 128, 1e-9);
    assert_int_equal(p.decode.nodes_count, 2);
    assert_int_equal(p.decode.batch, 50);
    assert_int_equal(p.decode.mean_blocks, 138); /* 2200 tokens: half of the last one is empty */
    assert_float_equal(p.decode.transfer_rate, 10.0 * 125 * (2 << 20), 1);
    o.prompt_tokens = 300;
    o.output_tokens = 800;
    assert_ok(plan_make(&p, &o));
    assert_int_equal(p.prefill.nodes_count, 1);
    assert_int_equal(p.decode.nodes_count, 3);
}

static void cached_tokens_need_no_prefill(void **state)
{
    (void)state;
    struct plan_options o = example();
    struct plan p;
    o.cached_share = 0.75;
    assert_ok(plan_make(&p, &o));
    assert_int_equal(p.prefill.computed_tokens, 500);
    assert_int_equal(p.prefill.nodes_count, 1);
    o.cached_share = 1; /* the last token is computed all the same */
    assert_ok(plan_make(&p, &o));
    assert_int_equal(p.prefill.computed_tokens, 1);
}

static void a_tighter_ttft_takes_more_prefill_nodes(void **state)
{
    (void)state;
    struct plan_options o = example();
    struct plan p;
    uint32_t before = 0;
    static const uint32_t limits_ms[] = {1000, 300, 200, 120, 101};
    for (size_t i = 0; i < sizeof limits_ms / sizeof limits_ms[0]; i++) {
        o.ttft_ns = limits_ms[i] * NS_PER_MS;
        assert_ok(plan_make(&p, &o));
        assert_true(p.prefill.nodes_count >= before);
        assert_true(p.prefill.wait_99_s + p.prefill.prompt_s <= limits_ms[i] * 1e-3);
        before = p.prefill.nodes_count;
    }
    assert_true(before > 2);
    o.ttft_ns = 100 * NS_PER_MS; /* the prompt alone */
    assert_int_equal(plan_make(&p, &o), ERR_INVALID);
    assert_non_null(strstr(err_text(), "however many nodes"));
}

static void a_batch_is_bounded_by_setting_step_or_memory(void **state)
{
    (void)state;
    struct plan_options o = example();
    struct plan p;
    o.decode_step_ns = 0;
    o.bandwidth = 3.35e12;
    assert_ok(plan_make(&p, &o));
    assert_int_equal(p.decode.bound, PLAN_BY_SETTING);
    /* layers and lm_head in bf16, KV of 2200 tokens for each: bytes over 0.7 of the bandwidth */
    double weights =
        2.0 * (32 * (4096.0 * 6144 + 4096 * 4096 + 3 * 4096 * 14336) + 128256.0 * 4096);
    double step_s = (weights + 128 * 2200 * 131072.0) / (0.7 * 3.35e12);
    assert_float_equal(plan_step_s(&p, 128), step_s, 1e-9);
    o.itl_ns = 15 * NS_PER_MS;
    assert_ok(plan_make(&p, &o));
    assert_int_equal(p.decode.bound, PLAN_BY_ITL);
    uint32_t wanted = (uint32_t)((0.015 * 0.7 * 3.35e12 - weights) / (2200 * 131072.0));
    assert_int_equal(p.decode.batch_max, wanted);
    o.memory_bytes = 24 * GIB;
    o.itl_ns = 0;
    assert_ok(plan_make(&p, &o));
    assert_int_equal(p.decode.bound, PLAN_BY_MEMORY);
    assert_int_equal(p.decode.batch_max, p.decode_pool.blocks_count / 138);
    o.flops = 1e13; /* so slow that computing is what takes time */
    assert_ok(plan_make(&p, &o));
    assert_true(plan_step_s(&p, 128) > step_s);
    o.itl_ns = NS_PER_MS;
    assert_int_equal(plan_make(&p, &o), ERR_INVALID);
    assert_non_null(strstr(err_text(), "--itl"));
}

static void prefill_is_estimated_by_flops_or_by_reading_weights(void **state)
{
    (void)state;
    struct plan_options o = example();
    struct plan p;
    o.prefill_rate = 0;
    o.flops = 989e12;
    assert_ok(plan_make(&p, &o));
    double layers = 32 * (4096.0 * 6144 + 4096 * 4096 + 3 * 4096 * 14336);
    double token = 2 * layers + 4.0 * 32 * 4096 * 1000.5; /* keys: the mean of 1 ... 2000 */
    assert_float_equal(p.prefill.flops_per_token / token, 1, 1e-12);
    assert_float_equal(p.prefill.rate * token / (989e12 * 0.5), 1, 1e-12);
    o.bandwidth = 1e10; /* each chunk reads all layers */
    assert_ok(plan_make(&p, &o));
    assert_float_equal(p.prefill.rate * 2 * layers / (512 * 0.7 * 1e10), 1, 1e-12);
}

static void keys_that_tokens_attend_to(void **state)
{
    (void)state;
    for (uint32_t window = 0; window < 12; window++)
        for (uint32_t first = 0; first < 15; first++)
            for (uint32_t end = first + 1; end < 16; end++) {
                double sum = 0;
                for (uint32_t t = first; t < end; t++)
                    sum += window && t + 1 > window ? window : t + 1;
                assert_float_equal(plan_mean_keys(first, end, window), sum / (end - first), 1e-9);
            }
    assert_float_equal(plan_mean_keys(9, 9, 0), 9, 0);
    assert_float_equal(plan_mean_keys(9, 9, 4), 4, 0);
}

/* A queue of equal prompts before c nodes, arrivals as a Poisson process. */
static struct plan_wait simulate(uint32_t c, double a)
{
    enum { ARRIVALS = 200000, BINS = 4000 };
    static uint32_t bin[BINS];
    double now = 0, sum = 0, free_at[16] = {0};
    memset(bin, 0, sizeof bin);
    for (uint32_t i = 0; i < ARRIVALS; i++) {
        now -= log(1 - (double)rng_unit(rng_draw(5, 0, i).word[0])) / a;
        uint32_t next = i % c; /* equal prompts leave in turn */
        double begin = free_at[next] > now ? free_at[next] : now;
        free_at[next] = begin + 1;
        sum += begin - now;
        uint32_t at = (uint32_t)((begin - now) * 100);
        bin[at < BINS ? at : BINS - 1]++;
    }
    struct plan_wait w = {.mean = sum / ARRIVALS};
    for (uint32_t i = 0, seen = 0; i < BINS && (seen += bin[i]) < ARRIVALS * 0.99; i++)
        w.p99 = (i + 1) / 100.0;
    return w;
}

static void waits_are_about_those_of_a_simulated_queue(void **state)
{
    (void)state;
    static const struct {
        uint32_t c;
        double use;
    } rows[] = {{1, 0.5}, {1, 0.7}, {1, 0.9}, {2, 0.7}, {4, 0.7}, {8, 0.8}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double a = rows[i].use * rows[i].c;
        struct plan_wait told = plan_wait_of(rows[i].c, a, 1), seen = simulate(rows[i].c, a);
        if (fabs(told.mean - seen.mean) > 0.15 * seen.mean + 0.01 || told.p99 < 0.95 * seen.p99 ||
            told.p99 > 1.5 * seen.p99 + 0.1)
            fail_msg("%u nodes at %.2f: mean %.3f, p99 %.2f; seen %.3f, %.2f", rows[i].c,
                     rows[i].use, told.mean, told.p99, seen.mean, seen.p99);
    }
}

/* Llama 3.1 8B on a GPU of 24 GiB; what is said to fit does, at P and at D. */
static void a_context_that_does_not_fit_is_told_one_that_does(void **state)
{
    (void)state;
    struct plan_options o = options_of(&llama_8b);
    struct plan p;
    unsigned tokens = 0;
    o.shape.context = 131072;
    o.memory_bytes = 24 * GIB;
    o.reserve_bytes = GIB;
    assert_int_equal(plan_make(&p, &o), ERR_MEMORY);
    const char *said = strstr(err_text(), "lower --context: ");
    assert_non_null(said);
    assert_int_equal(sscanf(said, "lower --context: %u tokens fit", &tokens), 1);
    /* 24 - 1 GiB less 15.0 GiB of weights and 0.35 of buffers, nine tenths of it, 128 KiB a token */
    assert_in_range(tokens, 56000, 57300);
    o.shape.context = tokens;
    assert_ok(plan_make(&p, &o));
    assert_true(p.contiguous_count == 1);
}

/* Llama 2 7B is stored in fp16: what nodes compute it in takes twice the memory. */
static void what_fits_in_bf16_alone_is_told_so(void **state)
{
    (void)state;
    struct plan_options o = options_of(&mistral_7b);
    struct plan p;
    o.memory_bytes = 24 * GIB;
    o.shape.dtype = DTYPE_F32;
    assert_int_equal(plan_make(&p, &o), ERR_MEMORY);
    assert_non_null(strstr(err_text(), "smaller --reserve, or --dtype bf16"));
    o.shape.dtype = DTYPE_BF16;
    assert_ok(plan_make(&p, &o));
}

static void what_is_missing_or_cannot_be_is_said(void **state)
{
    (void)state;
    const struct plan_options good = example();
    struct plan_options o[12];
    struct plan p;
    for (size_t i = 0; i < 12; i++)
        o[i] = good;
    o[0].shape = (struct model_shape){0};
    o[1].shape.hidden = 0;
    o[2].shape.heads = 30;
    o[3].memory_bytes = 16 * GIB;
    o[4].prompt_tokens = 0;
    o[5].output_tokens = 8000;
    o[6].prefill_rate = 0;
    o[7].decode_step_ns = 0;
    o[8].requests_per_second = 1e6;
    o[9].prefill_rate = 1e12, o[9].requests_per_second = 1e6;
    o[10].shape.head_dim = 127;
    o[11].shape.head_dim = 0;
    static const struct {
        enum err e;
        const char *said;
    } wanted[] = {
        {ERR_INVALID, "--model DIR"},
        {ERR_INVALID, "--memory needs --hidden"},
        {ERR_INVALID, "30 heads are no multiple of 8"},
        {ERR_MEMORY, "KV of one context of 8192 tokens 1024 MiB"},
        {ERR_INVALID, "--prompt-tokens"},
        {ERR_INVALID, "more than the context of 8192"},
        {ERR_INVALID, "--prefill-rate"},
        {ERR_INVALID, "--decode-step"},
        {ERR_INVALID, "more than 65536 prefill nodes"},
        {ERR_INVALID, "more than 65536 decode nodes"},
        {ERR_INVALID, "must be even"},
        {ERR_INVALID, "the size of a head is not known"},
    };
    for (size_t i = 0; i < 12; i++) {
        enum err e = plan_make(&p, &o[i]);
        if (e != wanted[i].e || !strstr(err_text(), wanted[i].said))
            fail_msg("row %zu gave %d, \"%s\"", i, e, err_text());
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parameters_and_kv_are_those_that_are_known),
        cmocka_unit_test(biases_are_counted),
        cmocka_unit_test(a_request_holds_whole_blocks_and_no_more_than_its_window),
        cmocka_unit_test(a_pool_is_what_weights_buffers_and_reserve_leave),
        cmocka_unit_test(on_cpus_a_tied_output_matrix_is_packed_beside_the_embedding),
        cmocka_unit_test(lengths_tell_blocks_waste_and_how_many_fit),
        cmocka_unit_test(the_example_of_the_pages_gives_its_figures),
        cmocka_unit_test(cached_tokens_need_no_prefill),
        cmocka_unit_test(a_tighter_ttft_takes_more_prefill_nodes),
        cmocka_unit_test(a_batch_is_bounded_by_setting_step_or_memory),
        cmocka_unit_test(prefill_is_estimated_by_flops_or_by_reading_weights),
        cmocka_unit_test(keys_that_tokens_attend_to),
        cmocka_unit_test(waits_are_about_those_of_a_simulated_queue),
        cmocka_unit_test(a_context_that_does_not_fit_is_told_one_that_does),
        cmocka_unit_test(what_fits_in_bf16_alone_is_told_so),
        cmocka_unit_test(what_is_missing_or_cannot_be_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
