/* What the node core allocates while sequences run: nothing. */
#include "tests/unit/testing.h"

#include "common/log.h"
#include "common/mem.h"
#include "tests/unit/node_rig.h"

static struct rig d;

static void a_token_costs_no_allocation(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 64});
    for (uint32_t id = 1; id <= 3; id++) {
        struct job job =
            rig_job(id, &(struct rig_prompt){.seed = id, .count = 20, .tokens_max = 120});
        job.stop_ids_count = 0;
        rig_reserve(&d, &job, true);
    }
    for (int i = 0; i < 20; i++)
        assert_true(rig_step(&d));
    arena_take(&d.arena, 1 << 20);
    arena_reset(&d.arena); /* room: the rig's own copies of what is said shall not count */
    rig_forget(&d);
    uint64_t tokens = rig_counts(&d).tokens_generated, before = mem_count();
    for (int i = 0; i < 64; i++)
        assert_true(rig_step(&d)); /* blocks are taken on the way */
    assert_int_equal(mem_count() - before, 0);
    assert_true(rig_counts(&d).tokens_generated - tokens >= 3 * 60);
    rig_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_token_costs_no_allocation),
    };
    log_setup(LOG_OFF, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
