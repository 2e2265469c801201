#include "client/plan.h"

#include "engine/engine.h"
#include "tests/unit/testing.h"

#define DEMO_MODEL TANDEM_SOURCE_DIR "/examples/demo_model/model"

/* The packed file begins with a header and aligns its parts: a few bytes for each. */
static void an_engine_has_the_weights_and_blocks_that_were_reckoned(void **state)
{
    (void)state;
    const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F32};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        struct plan_options o = {.on_cpu = true};
        struct plan p;
        assert_ok(model_shape_load(&o.shape, DEMO_MODEL));
        o.shape.dtype = dtypes[i];
        assert_ok(plan_make(&p, &o));
        struct engine *engine;
        const struct engine_options options = {
            .model_dir = DEMO_MODEL,
            .backend = "cpu",
            .dtype = dtypes[i],
            .threads = 1,
            .limits = {.sequences_max = 1, .rows_max = 16, .table_max = 512},
            .slots_count = 1,
            .cache_dir = "",
            .blocks_count = 2};
        assert_ok(engine_open(&engine, &options));
        const struct engine_facts *f = engine_facts(engine);
        assert_in_range(f->weights_bytes, p.weights_bytes, p.weights_bytes * 101 / 100);
        assert_int_equal(kv_block_bytes(&f->geometry), p.block_bytes);
        assert_int_equal(f->geometry.block_tokens, BLOCK_TOKENS);
        assert_true(kv_geometry_equal(&f->geometry, &p.geometry));
        engine_close(engine);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_engine_has_the_weights_and_blocks_that_were_reckoned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
