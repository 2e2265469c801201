/* libtandem when memory runs out: the n-th allocation fails, for all n over the life of a connection and a
 * request. The fake router is another process, whose memory is its own. */
#include "tests/unit/testing.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/tandem.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "tests/unit/fake_router.h"

struct told {
    uint32_t tokens;
    size_t values_count;
    int ended;
    enum tandem_status status;
    bool answered;
};

static void on_event(void *ctx, const struct tandem_event *e)
{
    struct told *told = ctx;
    if (e->kind == TANDEM_EVENT_TOKENS) {
        assert_int_equal(e->index, told->tokens); /* no gap, no repetition */
        told->tokens += (uint32_t)e->tokens_count;
    }
    if (e->kind != TANDEM_EVENT_DONE && e->kind != TANDEM_EVENT_ERROR) return;
    told->ended++;
    told->status = e->status;
    told->values_count = e->values_count;
}

static void on_answer(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    struct told *told = ctx;
    (void)status, (void)text, (void)bytes;
    told->answered = true;
}

static enum tandem_status fill_and_submit(struct tandem_request *r, enum tandem_kind kind)
{
    enum tandem_status s;
    if ((s = tandem_set_text(r, "some", 4)) != TANDEM_OK) return s;
    if ((s = tandem_add_stop(r, "never")) != TANDEM_OK) return s;
    if ((s = tandem_add_stop_id(r, 3)) != TANDEM_OK) return s;
    if ((s = tandem_add_bias(r, 4, 0.5f)) != TANDEM_OK) return s;
    if ((s = tandem_set_tenant(r, "one")) != TANDEM_OK) return s;
    tandem_set_max_tokens(r, 12);
    tandem_set_kind(r, kind);
    return tandem_submit(r);
}

/* True: all that was begun was told its end, in time. */
static bool wait_for_the_end(struct tandem *t, const struct told *told, bool asked)
{
    uint64_t end_ns = clock_now_ns() + 30 * NS_PER_S;
    while (!told->ended || (asked && !told->answered)) {
        if (clock_now_ns() > end_ns) return false;
        tandem_wait(t, 1000);
    }
    return true;
}

/* One connection with one request and one question. */
static enum tandem_status a_life(const char *address, enum tandem_kind kind)
{
    struct tandem *t;
    struct told told = {0};
    enum tandem_status s = tandem_open(&t, address);
    if (s != TANDEM_OK) return s;
    tandem_set_patience(t, 300); /* a lost greeting is repeated after a second: not waited for */
    struct tandem_request *r = tandem_request_new(t, on_event, &told);
    s = r ? fill_and_submit(r, kind) : TANDEM_MEMORY;
    if (s == TANDEM_OK) {
        bool asked = tandem_query_status(t, on_answer, &told) == TANDEM_OK;
        if (!wait_for_the_end(t, &told, asked)) fail_msg("a request ended in silence");
        assert_int_equal(told.ended, 1);
        s = told.status;
        if (s == TANDEM_OK) assert_int_equal(told.tokens, kind == TANDEM_GENERATE ? 12 : 0);
        if (s == TANDEM_OK) assert_int_equal(told.values_count, kind == TANDEM_GENERATE ? 0 : 3);
    }
    tandem_request_free(r);
    tandem_close(t);
    return s;
}

static pid_t router_start(char *address, size_t size)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        log_setup(LOG_OFF, NULL);
        struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
        const char *own = fake_router_address(r);
        if (write(ends[1], own, strlen(own) + 1) < 0) _exit(1);
        for (;;)
            pause();
    }
    ssize_t n = read(ends[0], address, size);
    assert_true(n > 0);
    close(ends[0]);
    close(ends[1]);
    return pid;
}

static void every_failing_allocation_is_an_error_and_ends_no_request_in_silence(void **state)
{
    (void)state;
    char address[128];
    uint32_t errors = 0;
    log_setup(LOG_OFF, NULL);
    pid_t router = router_start(address, sizeof address);
    for (enum tandem_kind kind = TANDEM_GENERATE; kind <= TANDEM_SCORE; kind++) {
        bool failed = true;
        for (uint64_t n = 1; failed; n++) {
            uint64_t before = mem_count();
            mem_fail_at(n);
            errors += a_life(address, kind) != TANDEM_OK;
            failed = mem_count() - before >= n;
            mem_fail_at(0);
            assert_true(n < 500);
        }
    }
    assert_true(errors > 10);
    kill(router, SIGKILL);
    waitpid(router, NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_failing_allocation_is_an_error_and_ends_no_request_in_silence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
