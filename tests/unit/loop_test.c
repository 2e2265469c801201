#include "tests/unit/testing.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/mem.h"
#include "proto/loop.h"

enum { FIRED_MAX = 16 };

struct bench {
    struct loop *loop;
    struct loop_timer *timer[8];
    struct loop_watch *watch;
    int fired[FIRED_MAX], fired_count, wanted;
    uint64_t now_ns[FIRED_MAX];
    int ends[2];
    uint64_t set_ns;
};

struct one { /* the context of timer i */
    struct bench *bench;
    int i;
    void (*then)(struct bench *b);
};

static void fire(void *ctx, uint64_t now_ns)
{
    struct one *o = ctx;
    struct bench *b = o->bench;
    b->now_ns[b->fired_count] = now_ns;
    b->fired[b->fired_count++] = o->i;
    if (o->then) o->then(b);
    if (b->fired_count == b->wanted) loop_stop(b->loop);
}

static void setup(struct bench *b, struct one *ones, int count)
{
    *b = (struct bench){0};
    assert_ok(loop_new(&b->loop));
    for (int i = 0; i < count; i++) {
        ones[i].bench = b;
        ones[i].i = i;
        assert_ok(loop_timer_new(b->loop, fire, &ones[i], &b->timer[i]));
    }
}

static void teardown(struct bench *b)
{
    for (int i = 0; i < 8; i++)
        loop_timer_free(b->timer[i]);
    loop_free(b->loop);
}

static void timers_fire_in_the_order_of_their_times_and_never_early(void **state)
{
    (void)state;
    struct bench b;
    struct one ones[5] = {0};
    setup(&b, ones, 5);
    uint64_t now_ns = clock_now_ns();
    static const int after_ms[] = {3, 1, 1, 2, 0}, order[] = {4, 1, 2, 3, 0};
    for (int i = 0; i < 5; i++)
        loop_timer_set(b.timer[i], now_ns + (uint64_t)after_ms[i] * NS_PER_MS);
    b.wanted = 5;
    loop_run(b.loop);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(b.fired[i], order[i]);
        assert_true(b.now_ns[i] >= now_ns + (uint64_t)after_ms[order[i]] * NS_PER_MS);
    }
    teardown(&b);
}

static void stop_the_next_and_free_the_one_after(struct bench *b)
{
    loop_timer_set(b->timer[1], TIME_NEVER);
    loop_timer_free(b->timer[2]);
    b->timer[2] = NULL;
}

static void free_myself_and_set_another(struct bench *b)
{
    loop_timer_free(b->timer[3]);
    b->timer[3] = NULL;
    loop_timer_set(b->timer[0], 0); /* long due: next turn */
    b->wanted = b->fired_count + 1;
}

static void a_callback_may_stop_free_and_set_any_timer(void **state)
{
    (void)state;
    struct bench b;
    struct one ones[4] = {{.then = stop_the_next_and_free_the_one_after},
                          {0},
                          {0},
                          {.then = free_myself_and_set_another}};
    setup(&b, ones, 4);
    for (int i = 0; i < 4; i++)
        loop_timer_set(b.timer[i], 1);
    /* All are due at once: 0 stops 1 and frees 2; 3 frees itself and sets 0 again. */
    loop_run(b.loop);
    assert_int_equal(b.fired_count, 3);
    assert_int_equal(b.fired[0], 0);
    assert_int_equal(b.fired[1], 3);
    assert_int_equal(b.fired[2], 0);
    teardown(&b);
}

static void on_end(void *ctx, uint64_t now_ns, unsigned events)
{
    struct bench *b = ctx;
    char byte;
    assert_true(now_ns == loop_now_ns(b->loop));
    if (events & LOOP_WRITE) {
        loop_watch_free(b->watch); /* its own; another one takes over */
        assert_ok(loop_watch(b->loop, b->ends[0], LOOP_READ, on_end, b, &b->watch));
        assert_int_equal(write(b->ends[1], "x", 1), 1);
        b->fired[b->fired_count++] = LOOP_WRITE;
        return;
    }
    assert_int_equal(read(b->ends[0], &byte, 1), 1);
    b->fired[b->fired_count++] = LOOP_READ;
    loop_watch_free(b->watch); /* its own */
    loop_stop(b->loop);
}

static void a_watch_tells_what_it_was_asked_and_may_free_itself(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, NULL, 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, b.ends), 0);
    assert_ok(loop_watch(b.loop, b.ends[0], LOOP_WRITE, on_end, &b, &b.watch));
    loop_run(b.loop);
    assert_int_equal(b.fired_count, 2);
    assert_int_equal(b.fired[0], LOOP_WRITE);
    assert_int_equal(b.fired[1], LOOP_READ);
    close(b.ends[0]);
    close(b.ends[1]);
    assert_int_equal(loop_watch(b.loop, -1, LOOP_READ, on_end, &b, &b.watch), ERR_IO);
    teardown(&b);
}

static void on_usr1(void *ctx, uint64_t now_ns, int number)
{
    struct bench *b = ctx;
    assert_true(now_ns > 0);
    b->fired[b->fired_count++] = number;
    loop_stop(b->loop);
}

static void signals_come_from_the_loop(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, NULL, 0);
    assert_ok(loop_signal(b.loop, SIGUSR1, on_usr1, &b));
    raise(SIGUSR1);
    loop_run(b.loop);
    assert_int_equal(b.fired[0], SIGUSR1);
    teardown(&b);
}

static void failures_at_the_start_leave_nothing_behind(void **state)
{
    (void)state;
    struct loop *loop;
    for (uint64_t n = 1; n <= 2; n++) {
        mem_fail_at(n);
        assert_int_equal(loop_new(&loop), ERR_MEMORY);
        mem_fail_at(0);
    }
    struct rlimit kept, none;
    getrlimit(RLIMIT_NOFILE, &kept);
    none = (struct rlimit){0, kept.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    assert_int_equal(loop_new(&loop), ERR_IO);
    setrlimit(RLIMIT_NOFILE, &kept);
    assert_ok(loop_new(&loop));
    assert_int_equal(loop_number(loop), 1);
    assert_int_equal(loop_number(loop), 2);
    loop_free(loop);
    loop_free(NULL);
}

static void take_two_ms(struct bench *b)
{
    uint64_t begin_ns = clock_now_ns();
    (void)b;
    while (clock_now_ns() - begin_ns < 2 * NS_PER_MS)
        continue;
}

static void callbacks_longer_than_a_millisecond_are_counted(void **state)
{
    (void)state;
    struct bench b;
    struct one ones[2] = {{.then = take_two_ms}, {.then = take_two_ms}};
    setup(&b, ones, 2);
    assert_int_equal(loop_slow_callbacks(b.loop), 0);
    loop_timer_set(b.timer[0], 1);
    loop_timer_set(b.timer[1], 1);
    b.wanted = 2;
    loop_run(b.loop);
    assert_int_equal(loop_slow_callbacks(b.loop), 2);
    teardown(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(timers_fire_in_the_order_of_their_times_and_never_early),
        cmocka_unit_test(a_callback_may_stop_free_and_set_any_timer),
        cmocka_unit_test(a_watch_tells_what_it_was_asked_and_may_free_itself),
        cmocka_unit_test(signals_come_from_the_loop),
        cmocka_unit_test(failures_at_the_start_leave_nothing_behind),
        cmocka_unit_test(callbacks_longer_than_a_millisecond_are_counted),
    };
    return cmocka_run_group_tests_name("loop", tests, NULL, NULL);
}
