/* How much KV memory the engine takes on a device, on the stand-in runtime (tests/fake/cuda), which knows to the
 * byte what is free: the share of what weights, buffers and recorded steps leave, in whole blocks. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

#include "engine/engine.h"
#include "tests/fake/cuda/fake.h"
#include "tests/unit/scratch.h"
#include "tests/unit/testing.h"
#include "tests/unit/tiny_model.h"

#define DEVICE_BYTES ((uint64_t)256 << 20)

/* The table is so long that what recorded steps take for themselves shows: some MiB. */
enum { CONTEXT = 16384, TABLE_BLOCKS = 256 * CONTEXT / BLOCK_TOKENS };

static char dir[SCRATCH_BYTES];

static int make_model(void **state)
{
    const struct tiny_shape shape = {.hidden = 64,
                                     .layers = 2,
                                     .heads = 4,
                                     .kv_heads = 2,
                                     .head_dim = 16,
                                     .ffn = 96,
                                     .vocab = 120,
                                     .context = CONTEXT,
                                     .dtype = DTYPE_BF16,
                                     .seed = 3};
    (void)state;
    scratch_make(dir);
    tiny_model_write(dir, &shape);
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    scratch_remove(dir);
    return 0;
}

static int new_device(void **state)
{
    (void)state;
    fake_reset();
    fake_knobs()->device_bytes = DEVICE_BYTES;
    return 0;
}

static int check_nothing_is_left(void **state)
{
    (void)state;
    return fake_reset() == 0 ? 0 : -1;
}

static enum err open_with(struct engine **engine, double share, uint32_t blocks)
{
    const struct engine_options o = {.model_dir = dir,
                                     .cache_dir = "none",
                                     .backend = "cuda",
                                     .threads = 1,
                                     .blocks_count = blocks,
                                     .kv_share = share,
                                     .limits = {4, 16, TABLE_BLOCKS},
                                     .slots_count = 4};
    return engine_open(engine, &o);
}

/* What an engine leaves with a pool of one block, and that one. */
static uint64_t free_beside_pool(uint64_t *block_bytes, uint64_t *weights_bytes)
{
    struct engine *engine;
    size_t free_bytes, total;
    assert_ok(open_with(&engine, 0, 1));
    *block_bytes = kv_block_bytes(&engine_facts(engine)->geometry);
    *weights_bytes = engine_facts(engine)->weights_bytes;
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total), cudaSuccess);
    assert_int_equal(total, DEVICE_BYTES);
    engine_close(engine);
    return free_bytes + *block_bytes;
}

static void the_pool_is_the_share_of_what_is_free(void **state)
{
    static const double shares[] = {0.25, 0.9, 0 /* 0.9 */};
    uint64_t block, weights, all = free_beside_pool(&block, &weights);
    (void)state;
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        struct engine *engine;
        double share = shares[i] > 0 ? shares[i] : 0.9;
        uint64_t wanted = (uint64_t)((double)all * share) / block;
        assert_true(wanted > CONTEXT / BLOCK_TOKENS);
        assert_ok(open_with(&engine, shares[i], 0));
        assert_int_equal(engine_facts(engine)->blocks_count, wanted);
        assert_int_equal(engine_kv(engine)->blocks_count, wanted);
        engine_close(engine);
    }
}

/* One block less than a context needs is refused, as much as it needs is enough. */
static void a_share_too_small_for_a_context_is_told_with_the_sums(void **state)
{
    struct engine *engine;
    char wanted[ERR_TEXT_MAX];
    const uint64_t context = CONTEXT / BLOCK_TOKENS;
    uint64_t block, weights, all = free_beside_pool(&block, &weights);
    double enough = (double)(context * block + 1) / (double)all,
           little = enough - 2.0 / (double)all;
    (void)state;
    assert_ok(open_with(&engine, enough, 0));
    assert_int_equal(engine_facts(engine)->blocks_count, context);
    engine_close(engine);
    assert_int_equal(open_with(&engine, little, 0), ERR_MEMORY);
    snprintf(wanted, sizeof wanted,
             "the device has %llu MiB free after %llu MiB of weights, of which %.0f %% are the "
             "pool's: the KV of one context of %d tokens needs %llu MiB; lower the context or the "
             "limits",
             (unsigned long long)all >> 20, (unsigned long long)weights >> 20, little * 100,
             CONTEXT, (unsigned long long)(context * block) >> 20);
    assert_string_equal(err_text(), wanted);
    assert_true(all >> 20 > 200 && context * block >> 20 >= 4); /* sums that say something */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_pool_is_the_share_of_what_is_free, new_device,
                                        check_nothing_is_left),
        cmocka_unit_test_setup_teardown(a_share_too_small_for_a_context_is_told_with_the_sums,
                                        new_device, check_nothing_is_left),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
