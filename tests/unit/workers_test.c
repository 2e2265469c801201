#include "tests/unit/testing.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/mem.h"
#include "kernels/workers.h"

enum { THREADS = 4 };

struct tally {
    _Atomic uint32_t calls[THREADS];
    uint32_t written[THREADS]; /* plain: workers_run orders them */
};

static void tally_add(void *ctx, uint32_t index)
{
    struct tally *t = ctx;
    atomic_fetch_add(&t->calls[index], 1);
    t->written[index] += index + 1;
}

static void every_index_runs_once_and_is_seen_by_the_caller(void **state)
{
    (void)state;
    struct workers *w;
    struct tally t = {0};
    uint32_t want[THREADS] = {0};
    assert_ok(workers_new(&w, THREADS, NULL));
    for (uint32_t round = 0; round < 300; round++) {
        uint32_t threads = 1 + round % THREADS;
        workers_run(w, threads, tally_add, &t);
        for (uint32_t i = 0; i < threads; i++)
            want[i] += i + 1;
        for (uint32_t i = 0; i < THREADS; i++)
            assert_int_equal(t.written[i], want[i]);
        for (uint32_t i = 0; i < THREADS; i++)
            assert_int_equal(t.calls[i] * (i + 1), want[i]);
    }
    workers_free(w);
}

static void sleep_longer_than_the_spin(void *ctx, uint32_t index)
{
    struct timespec t = {.tv_nsec = 20 * WORKERS_SPIN_NS};
    nanosleep(&t, NULL);
    tally_add(ctx, index);
}

/* Both kinds of waiting, in the workers and in the caller. */
static void who_sleeps_is_woken(void **state)
{
    (void)state;
    struct workers *w;
    struct tally t = {0};
    assert_ok(workers_new(&w, THREADS, NULL));
    for (uint32_t round = 0; round < 10; round++)
        workers_run(w, 2, round % 2 ? tally_add : sleep_longer_than_the_spin, &t);
    workers_run(w, THREADS, tally_add, &t); /* the others slept all the while */
    assert_int_equal(t.calls[1], 11);
    assert_int_equal(t.calls[THREADS - 1], 1);
    workers_free(w);
}

static void tell_cpu(void *ctx, uint32_t index)
{
    int *cpu = ctx;
    cpu[index] = sched_getcpu();
}

static void threads_are_pinned_in_turn_where_there_are_cpus(void **state)
{
    (void)state;
    cpu_set_t here, set;
    struct workers *w;
    assert_int_equal(sched_getaffinity(0, sizeof here, &here), 0);
    int first = 0, cpu[3] = {-1, -1, -1};
    while (!CPU_ISSET(first, &here))
        first++;
    CPU_ZERO(&set);
    CPU_SET(first, &set);
    assert_ok(workers_new(&w, 3, &set));
    workers_run(w, 3, tell_cpu, cpu);
    assert_int_equal(cpu[1], first);
    assert_int_equal(cpu[2], first);
    workers_free(w);
    CPU_ZERO(&set);
    CPU_SET(900, &set); /* not here: a warning, and the threads run anywhere */
    assert_ok(workers_new(&w, 3, &set));
    workers_run(w, 3, tell_cpu, cpu);
    workers_free(w);
}

static void bad_numbers_and_failing_allocations_leave_nothing_behind(void **state)
{
    (void)state;
    struct workers *w;
    assert_int_equal(workers_new(&w, 0, NULL), ERR_INVALID);
    assert_int_equal(workers_new(&w, WORKERS_MAX + 1, NULL), ERR_INVALID);
    for (uint64_t nth = 1; nth <= 2; nth++) {
        mem_fail_at(nth);
        assert_int_equal(workers_new(&w, 2, NULL), ERR_MEMORY);
        assert_null(w);
    }
    mem_fail_at(0);
    workers_free(NULL);
}

static void a_piece_is_half_of_what_is_left_and_never_too_long(void **state)
{
    static const struct {
        uint32_t left, most, piece;
    } rows[] = {
        {100, 100, 50}, {100, 10, 10},      {1, 100, 1},
        {3, 100, 2},    {UINT32_MAX, 7, 7}, {UINT32_MAX, UINT32_MAX, UINT32_MAX / 2 + 1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(workers_piece(rows[i].left, rows[i].most), rows[i].piece);
}

/* As the kernel's struct of sched_getattr(2) lies in memory; the slice is its "runtime". */
struct attr {
    uint32_t size, policy;
    uint64_t flags;
    uint32_t nice, priority;
    uint64_t slice_ns, rest[2];
};

static struct attr attr_of_this_thread(void)
{
    struct attr attr;
    assert_int_equal(syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0), 0);
    return attr;
}

static void *offer_twice(void *arg)
{
    struct attr *attr = arg;
    attr[0] = attr_of_this_thread();
    workers_offer_core();
    workers_offer_core();
    attr[1] = attr_of_this_thread();
    return NULL;
}

/* A yield gives up a slice, so that it should be short. */
static void who_offers_its_core_has_short_slices_and_all_else_as_before(void **state)
{
    (void)state;
    struct attr attr[2];
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, offer_twice, attr), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(attr[1].policy, attr[0].policy);
    assert_int_equal(attr[1].nice, attr[0].nice);
    if (attr[0].slice_ns == 0) skip(); /* a kernel before 6.12 has no slices to ask for */
    assert_int_equal(attr[1].slice_ns, WORKERS_SLICE_NS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_index_runs_once_and_is_seen_by_the_caller),
        cmocka_unit_test(who_sleeps_is_woken),
        cmocka_unit_test(threads_are_pinned_in_turn_where_there_are_cpus),
        cmocka_unit_test(a_piece_is_half_of_what_is_left_and_never_too_long),
        cmocka_unit_test(who_offers_its_core_has_short_slices_and_all_else_as_before),
        cmocka_unit_test(bad_numbers_and_failing_allocations_leave_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
