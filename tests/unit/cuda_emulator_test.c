/* The kernel emulator: each primitive of device.cuh against a plain computation, and each kind of
 * mistake found. Launches run at once, on the thread of the test. */
#include "tests/unit/testing.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "tests/fake/cuda/emulator_kernels.h"
#include "tests/fake/cuda/fake.h"

/* A fault throws its fibers away, and the sanitizer takes long to make new ones. */
#if defined(__SANITIZE_ADDRESS__)
enum { SEEDS = 8 };
#else
enum { SEEDS = 32 };
#endif

/* --- the runtime's side: a stream that is always idle --- */

static char fault[1024];
static struct fake_knobs knobs;
static int runs; /* of each launch, as a graph would have */

void fake_enqueue(cudaStream_t stream, const char *name, fake_work_fn *run, fake_work_fn *release,
                  void *arg)
{
    (void)stream;
    (void)name;
    for (int i = 0; i < runs; i++)
        run(arg);
    release(arg);
}
void fake_fault(const char *text)
{
    snprintf(fault, sizeof fault, "%s", text);
}
bool fake_say_address(const void *at, char *text, size_t size)
{
    (void)at;
    (void)text;
    (void)size;
    return false;
}
/* What is memory of the device, where that matters: whole pages. */
static _Alignas(4096) uint32_t device_words[1024];
bool fake_is_device(const void *at)
{
    return (uintptr_t)at / 4096 == (uintptr_t)device_words / 4096;
}
struct fake_knobs *fake_knobs(void)
{
    return &knobs;
}

static int begin(void **state)
{
    (void)state;
    knobs = (struct fake_knobs){0};
    fault[0] = 0;
    runs = 1;
    return 0;
}

static void assert_clean(void)
{
    if (fault[0]) fail_msg("seed %d: %s", (int)knobs.seed, fault);
}

static float *numbers(float *x, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        x[i] = (float)(i * 37 % 101) - 50;
    return x;
}

/* --- launches --- */

static void threads_and_blocks_know_their_places(void **state)
{
    (void)state;
    enum { BLOCKS = 7, THREADS = 96 };
    uint4 out[BLOCKS * THREADS];
    for (knobs.seed = 0; knobs.seed < 4; knobs.seed++) {
        memset(out, 0xff, sizeof out);
        run_places(out, BLOCKS, THREADS);
        assert_clean();
        for (uint32_t i = 0; i < BLOCKS * THREADS; i++) {
            assert_int_equal(out[i].x, i % THREADS);
            assert_int_equal(out[i].y, i / THREADS);
            assert_int_equal(out[i].z, THREADS);
            assert_int_equal(out[i].w, BLOCKS);
        }
    }
}

static void every_block_of_a_deep_grid_runs_once(void **state)
{
    (void)state;
    static const struct dim3 grids[] = {{1, 1, 1}, {3, 4, 5}, {1, 6, 1}, {2, 2, 16}};
    uint4 out[64 * 33];
    for (size_t g = 0; g < sizeof grids / sizeof *grids; g++) {
        uint32_t blocks = grids[g].x * grids[g].y * grids[g].z;
        memset(out, 0xff, sizeof out);
        run_places_deep(out, grids[g], 33);
        assert_clean();
        for (uint32_t i = 0; i < blocks * 33; i++)
            assert_int_equal(out[i].y, i / 33);
    }
}

static void a_launch_converts_its_arguments_like_a_call(void **state)
{
    (void)state;
    float in[300], out[301];
    numbers(in, 300);
    for (int add = 0; add < 2; add++) {
        out[300] = 17;
        run_scale(out, in, 300.0, add);
        assert_clean();
        for (int i = 0; i < 300; i++)
            assert_true(out[i] == in[i] * 3 + (add ? 3 : 0));
        assert_true(out[300] == 17);
    }
}

static void a_launch_beyond_the_device_is_a_fault(void **state)
{
    (void)state;
    const struct {
        struct dim3 grid, block;
        size_t shared_bytes;
        const char *says;
    } cases[] = {
        {{1, 1, 1}, {1024, 1, 1}, 48 << 10, NULL},
        {{1, 1, 1}, {1025, 1, 1}, 0, "1 to 1024 threads"},
        {{1, 1, 1}, {0, 1, 1}, 0, "1 to 1024 threads"},
        {{1, 1, 1}, {32, 2, 1}, 0, "one dimension"},
        {{0, 1, 1}, {32, 1, 1}, 0, "not empty"},
        {{1, 0, 1}, {32, 1, 1}, 0, "not empty"},
        {{1, 65536, 1}, {32, 1, 1}, 0, "65535"},
        {{1, 1, 1}, {32, 1, 1}, (48 << 10) + 1, "cudaFuncSetAttribute"},
        {{1, 1, 1}, {32, 1, 1}, (163 << 10) + 1, "at most 163 KiB"},
        {{1, 1, 1}, {32, 1, 1}, (size_t)1 << 33, "at most 163 KiB"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fault[0] = 0;
        run_empty(cases[i].grid, cases[i].block, cases[i].shared_bytes);
        if (!cases[i].says) {
            assert_clean();
            continue;
        }
        if (!strstr(fault, cases[i].says) || !strstr(fault, "empty_kernel"))
            fail_msg("case %d: \"%s\"", (int)i, fault);
    }
    fault[0] = 0;
    run_much_shared(163 << 10);
    assert_clean();
}

/* --- primitives --- */

static void a_warp_exchanges_and_reduces(void **state)
{
    (void)state;
    float in[32], sum = 0, max = -INFINITY;
    numbers(in, 32);
    uint32_t ballot = 0;
    for (int i = 0; i < 32; i++) {
        sum += in[i]; /* whole numbers: any order */
        max = fmaxf(max, in[i]);
        ballot |= (uint32_t)(in[i] > 0) << i;
    }
    for (knobs.seed = 0; knobs.seed < 4; knobs.seed++) {
        struct warp_out out;
        run_warp(&out, in);
        assert_clean();
        for (uint32_t i = 0; i < 32; i++) {
            assert_int_equal(out.shuffled[i], (i + 5) % 32 * 3);
            assert_int_equal(out.shuffled_xor[i], (i ^ 9) * 7);
            assert_int_equal(out.ballot[i], ballot);
            assert_true(out.sum[i] == sum);
            assert_true(out.max[i] == max);
        }
    }
}

static void atomics_count_every_thread(void **state)
{
    (void)state;
    uint32_t sum = 5;
    uint64_t wide_sum = 0;
    run_atomics(&sum, &wide_sum, 16);
    assert_clean();
    assert_int_equal(sum, 5 + 1024 * 1023 / 2);
    assert_true(wide_sum == (uint64_t)(1024 * 1023 / 2) << 20);
}

static uint16_t bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (uint16_t)(bits >> 16);
}
static float wide(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static void matrices_are_multiplied_in_order(void **state)
{
    (void)state;
    uint16_t a[16][16], b[16][8], b_across[8][16];
    float d[16][8], wanted[16][8];
    for (int across = 0; across < 2; across++) {
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < 16; k++)
                a[i][k] = bf16(sinf((float)(i * 16 + k)));
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                b_across[j][k] = b[k][j] = bf16(cosf((float)(k * 8 + j)) * 3);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                float sum = d[i][j] = (float)(i - j) / 7;
                for (int k = 0; k < 16; k++)
                    sum = fmaf(wide(a[i][k]), wide(b[k][j]), sum);
                wanted[i][j] = sum;
            }
        run_mma(&d[0][0], &a[0][0], across ? &b_across[0][0] : &b[0][0], across);
        assert_clean();
        assert_memory_equal(d, wanted, sizeof d);
    }
}

static void numbers_are_rounded_as_on_the_device(void **state)
{
    (void)state;
    const uint32_t nan = 0xffc00001, half_even = 0x3f808000, half_odd = 0x3f818000;
    const uint32_t above = 0x3f808001, largest = 0x7f7fffff, small = 0x00000001;
    float in[] = {0,   -INFINITY, 3, 1, -1, 0.5f, 4, 126, -126.5f, 128,
                  NAN, 0,         0, 0, 0,  0,    0, 2,   1e-30f,  1e30f};
    const uint32_t bits[] = {nan, half_even, half_odd, above, largest, small};
    memcpy(&in[10], bits, sizeof bits);
    enum { COUNT = sizeof in / sizeof *in };
    uint32_t pairs[COUNT];
    float exp2[COUNT];
    run_numbers(pairs, exp2, in, COUNT);
    assert_clean();
    static const uint16_t rounded[] = {0x7fff, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0x0000};
    for (int i = 0; i < 6; i++)
        assert_int_equal(pairs[10 + i] & 0xffff, rounded[i]);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(pairs[i] >> 16, pairs[(i + 1) % COUNT] & 0xffff);
    assert_true(exp2[0] == 1 && exp2[1] == 0 && exp2[2] == 8 && isinf(exp2[9]) && isnan(exp2[10]));
    assert_true(exp2[8] == 0); /* subnormal: flushed */
}

static void loads_are_whole(void **state)
{
    (void)state;
    static _Alignas(16) uint32_t in[128], out[128];
    for (uint32_t i = 0; i < 128; i++)
        in[i] = i * i;
    run_load_once(out, in);
    assert_clean();
    assert_memory_equal(in, out, sizeof in);
}

/* --- right kernels, and such as something is missing from --- */

enum { SUM_BLOCKS = 3, SUM_THREADS = 128 };

static bool block_sum_is_right(enum planted planted)
{
    float in[SUM_BLOCKS * SUM_THREADS], out[SUM_BLOCKS * SUM_THREADS];
    numbers(in, SUM_BLOCKS * SUM_THREADS);
    memset(out, 0, sizeof out);
    run_block_sum(out, in, SUM_BLOCKS, SUM_THREADS, planted);
    for (int b = 0; b < SUM_BLOCKS; b++) {
        float sum = 0;
        for (int i = 0; i < SUM_THREADS; i++)
            sum += in[b * SUM_THREADS + i] * 6;
        for (int i = 0; i < SUM_THREADS; i++)
            if (!(out[b * SUM_THREADS + i] == sum)) return false;
    }
    return true;
}

static bool warp_turn_is_right(enum planted planted)
{
    uint32_t in[64], out[64] = {0};
    for (uint32_t i = 0; i < 64; i++)
        in[i] = i + 1;
    run_warp_turn(out, in, 64, planted);
    for (uint32_t i = 0; i < 64; i++)
        if (out[i] != in[i ^ 31]) return false;
    return true;
}

static bool copied_is_right(enum planted planted)
{
    enum { THREADS = 64, STAGES = 5, COUNT = STAGES * THREADS * 4, VALID = COUNT - 24 };
    _Alignas(16) float in[COUNT];
    float out[COUNT] = {0};
    numbers(in, COUNT);
    run_copied(out, in, COUNT, VALID, THREADS, planted);
    for (uint32_t i = 0; i < COUNT; i++)
        if (!(out[i ^ 4] == (i < VALID ? in[i] : 0))) return false;
    return true;
}

static void right_kernels_are_right_with_every_seed(void **state)
{
    (void)state;
    for (knobs.seed = 0; knobs.seed < SEEDS; knobs.seed++) {
        assert_true(block_sum_is_right(PLANT_NOTHING));
        assert_clean();
        assert_true(warp_turn_is_right(PLANT_NOTHING));
        assert_clean();
        assert_true(copied_is_right(PLANT_NOTHING));
        assert_clean();
    }
}

static void what_is_missing_shows(void **state)
{
    (void)state;
    static const struct {
        bool (*right)(enum planted planted);
        enum planted planted;
        const char *says;   /* NULL: a wrong result */
        int seeds_at_least; /* of SEEDS on which it is found */
    } cases[] = {
        {block_sum_is_right, PLANT_NO_BARRIER_AFTER_WRITE, NULL, SEEDS},
        {block_sum_is_right, PLANT_NO_BARRIER_BEFORE_REUSE, NULL, SEEDS / 2},
        {block_sum_is_right, PLANT_READ_BEHIND, "reads 0 bytes behind the end of shared piece 0",
         SEEDS},
        {block_sum_is_right, PLANT_WRITE_BEHIND, "0 bytes behind the end of shared piece 0", SEEDS},
        {block_sum_is_right, PLANT_WRITE_BEFORE, "wrote before shared piece 0", SEEDS},
        {block_sum_is_right, PLANT_WRITE_INTO_GAP, "wrote behind shared piece 1", SEEDS},
        {warp_turn_is_right, PLANT_NO_WARP_SYNC, NULL, SEEDS},
        {copied_is_right, PLANT_NO_COPY_WAIT, NULL, SEEDS},
        {copied_is_right, PLANT_WAIT_FOR_TOO_FEW, NULL, SEEDS},
        {copied_is_right, PLANT_NO_BARRIER_AFTER_COPY, NULL, SEEDS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int found = 0;
        for (knobs.seed = 0; knobs.seed < SEEDS; knobs.seed++) {
            fault[0] = 0;
            bool right = cases[i].right(cases[i].planted);
            if (cases[i].says)
                found += strstr(fault, cases[i].says) != NULL;
            else
                found += !right && !fault[0];
        }
        if (found < cases[i].seeds_at_least)
            fail_msg("case %d: found on %d seeds of %d; %s", (int)i, found, SEEDS, fault);
    }
}

static void a_seed_can_be_replayed(void **state)
{
    (void)state;
    enum { BLOCKS = 3, THREADS = 64 };
    static const struct {
        uint64_t seed;
        int runs;
    } cases[] = {{11, 1}, {11, 1}, {12, 1}, {11, 2}};
    uint32_t out[4][BLOCKS * THREADS];
    for (int i = 0; i < 4; i++) {
        knobs.seed = cases[i].seed;
        runs = cases[i].runs;
        run_order(out[i], BLOCKS, THREADS);
        assert_clean();
    }
    assert_memory_equal(out[0], out[1], sizeof out[0]);
    assert_memory_not_equal(out[0], out[2], sizeof out[0]);
    assert_memory_equal(out[2], out[3], sizeof out[0]); /* the second run has the next seed */
}

/* --- faults --- */

static void mistakes_are_faults_with_a_text(void **state)
{
    (void)state;
    static const struct {
        uint32_t threads;
        const char *says[3];
    } cases[BAD_KINDS] = {
        [BAD_RETURN_BEFORE_BARRIER] = {64, {"63 of 64 threads wait in block_sync", "thread 5 of"}},
        [BAD_TWO_BARRIERS] = {64, {"waits in block_sync (emulator_kernels.cu:", "others in"}},
        [BAD_ENDLESS] = {32, {"65537th time", "block_sync (emulator_kernels.cu:"}},
        [BAD_HALF_WARP] = {32, {"16 lanes of warp 0 wait in warp_ballot", "waits in block_sync"}},
        [BAD_LANE_RETURNED] = {64, {"31 lanes", "thread 7 of 64", "this one has returned"}},
        [BAD_TWO_WARP_FUNCTIONS] = {32, {"shuffle (", "warp_ballot ("}},
        [BAD_HALF_BLOCK] = {16, {"16 lanes of warp 0", "this one does not exist"}},
        [BAD_UNLIKE_PIECES] = {32, {"another thread of the block took"}},
        [BAD_TOO_MUCH_TAKEN] = {32, {"takes 4224 bytes of shared memory, launched with 4096"}},
        [BAD_TOO_MANY_PIECES] = {32, {"pieces of shared memory"}},
        [BAD_ADDRESS] = {32, {"nobody's memory"}},
        [BAD_STACK] = {32, {"the end of its stack"}},
        [BAD_COPY_UNALIGNED] = {32, {"copy_async to", "not aligned to 16"}},
        [BAD_COPY_OUTSIDE] = {32, {"copy_async to 0 bytes behind the end of shared piece 0"}},
        [BAD_COPY_LEFT] = {32, {"thread 3 of 32", "returns with 1 copies under way"}},
        [BAD_MATRIX_OUTSIDE] = {32, {"load_matrices from no shared memory"}},
        [BAD_MATRIX_UNALIGNED] = {32, {"load_matrices", "not aligned to 16"}},
        [BAD_LOAD_UNALIGNED] = {32, {"load_once from", "not aligned to 16"}},
        [BAD_NO_GRID_WAIT] = {32, {"thread 9 of 32", "returns without a grid_wait"}},
#ifdef TANDEM_ALIGNMENT_FAULTS
        [BAD_VECTOR_UNALIGNED] = {32, {"emulator_kernels.cu:", "not aligned to 16"}},
        [BAD_PAIR_UNALIGNED] = {32, {"emulator_kernels.cu:", "not aligned to 8"}},
#endif
    };
    static _Alignas(16) uint32_t in[64], out[64];
    for (int seed = 0; seed < SEEDS / 8; seed++) {
        knobs.seed = (uint64_t)seed;
        for (int bad = 0; bad < BAD_KINDS; bad++) {
            if (!cases[bad].threads) continue; /* no faults in this build */
            fault[0] = 0;
            run_bad((enum bad)bad, out, in, cases[bad].threads);
            for (int i = 0; i < 3 && cases[bad].says[i]; i++)
                if (!strstr(fault, cases[bad].says[i]) || !strstr(fault, "bad_kernel: block ("))
                    fail_msg("case %d, seed %d: \"%s\" is not in \"%s\"", bad, seed,
                             cases[bad].says[i], fault);
        }
    }
    fault[0] = 0; /* and the next launch is as good as new */
    assert_true(block_sum_is_right(PLANT_NOTHING));
    assert_clean();
}

/* Whatever the values, and whichever block comes first. */
static void blocks_in_each_others_way_are_a_fault(void **state)
{
    (void)state;
    static const char *const says[RACE_KINDS] = {
        [RACE_WRITES] = "has written",
        [RACE_READS_OTHERS] = ", which block (",
        [RACE_READS_SUM] = ", which ",
        [RACE_WRITES_SUM] = ", which ",
        [RACE_COPIES_OTHERS] = ", which block (",
        [RACE_BEFORE_WAIT] = "before grid_wait",
        [RACE_ONCE_AND_WRITE] = "has read by load_once",
        [RACE_WRITE_AND_ONCE] = "has written",
    };
#ifndef TANDEM_RACES
    skip();
#endif
    for (knobs.seed = 0; knobs.seed < SEEDS; knobs.seed++)
        for (int race = 0; race < RACE_KINDS; race++) {
            fault[0] = 0;
            run_race((enum race)race, device_words);
            if (says[race] ? !strstr(fault, says[race]) : fault[0])
                fail_msg("case %d, seed %d: \"%s\"", race, (int)knobs.seed, fault);
        }
}

/* Streams run their work on threads of their own. */
static void *sums_of_a_stream(void *wrong)
{
    for (int i = 0; i < 20; i++)
        if (!block_sum_is_right(PLANT_NOTHING) || !copied_is_right(PLANT_NOTHING))
            *(bool *)wrong = true;
    return NULL;
}

static void grids_run_at_the_same_time(void **state)
{
    (void)state;
    enum { STREAMS = 4 };
    pthread_t stream[STREAMS];
    bool wrong[STREAMS] = {false};
    for (int i = 0; i < STREAMS; i++)
        assert_int_equal(pthread_create(&stream[i], NULL, sums_of_a_stream, &wrong[i]), 0);
    for (int i = 0; i < STREAMS; i++)
        assert_int_equal(pthread_join(stream[i], NULL), 0);
    assert_clean();
    for (int i = 0; i < STREAMS; i++)
        assert_false(wrong[i]);
}

/* The barriers and sums of the largest block; its time is what a switch costs. */
static void a_thousand_threads_meet_again_and_again(void **state)
{
    (void)state;
    enum { BLOCKS = 2, THREADS = 1024, ROUNDS = 20 };
    static float out[BLOCKS * THREADS];
    run_switches(out, BLOCKS, THREADS, ROUNDS);
    assert_clean();
    for (int i = 0; i < BLOCKS * THREADS; i++)
        assert_true(out[i] == 32 * ROUNDS * (ROUNDS - 1) / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(threads_and_blocks_know_their_places, begin),
        cmocka_unit_test_setup(every_block_of_a_deep_grid_runs_once, begin),
        cmocka_unit_test_setup(a_launch_converts_its_arguments_like_a_call, begin),
        cmocka_unit_test_setup(a_launch_beyond_the_device_is_a_fault, begin),
        cmocka_unit_test_setup(a_warp_exchanges_and_reduces, begin),
        cmocka_unit_test_setup(atomics_count_every_thread, begin),
        cmocka_unit_test_setup(matrices_are_multiplied_in_order, begin),
        cmocka_unit_test_setup(numbers_are_rounded_as_on_the_device, begin),
        cmocka_unit_test_setup(loads_are_whole, begin),
        cmocka_unit_test_setup(right_kernels_are_right_with_every_seed, begin),
        cmocka_unit_test_setup(what_is_missing_shows, begin),
        cmocka_unit_test_setup(a_seed_can_be_replayed, begin),
        cmocka_unit_test_setup(mistakes_are_faults_with_a_text, begin),
        cmocka_unit_test_setup(blocks_in_each_others_way_are_a_fault, begin),
        cmocka_unit_test_setup(grids_run_at_the_same_time, begin),
        cmocka_unit_test_setup(a_thousand_threads_meet_again_and_again, begin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
