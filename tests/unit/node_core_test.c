#include "tests/unit/testing.h"

#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "tests/unit/node_rig.h"

/* Most tests have one node; `p` pushes to `d` where there are two. */
static struct rig p, d;

static const char *const shm[] = {"shm:d"};

static struct msg reserve(const struct job *job, bool local)
{
    return (struct msg){.kind = MSG_RESERVE, .reserve = {*job, local}};
}
static struct msg prefill(const struct job *job, struct id128 ticket, uint32_t held_tokens)
{
    return (struct msg){.kind = MSG_PREFILL,
                        .prefill = {.job = *job,
                                    .ticket = ticket,
                                    .held_tokens = held_tokens,
                                    .decode_node = "d",
                                    .addresses = shm,
                                    .addresses_count = id128_is_none(ticket) ? 0 : 1}};
}
static void tell(struct rig *r, struct msg m)
{
    rig_tell(r, 0, &m);
}
static void acknowledge(struct rig *r, const struct job *job)
{
    tell(r, (struct msg){.kind = MSG_FINISHED_ACK, .finished_ack = {job->key}});
}
static void cancel(struct rig *r, struct job_key key)
{
    tell(r, (struct msg){.kind = MSG_CANCEL, .cancel = {key, "told to"}});
}

static void one(struct rig *r, const struct rig_options *o)
{
    rig_new(r, o);
    rig_join(r, 0);
}
static void pair(const struct rig_options *prefill_node, const struct rig_options *decode_node)
{
    one(&p, prefill_node);
    one(&d, decode_node);
    p.other = &d;
}
static void free_pair(void)
{
    rig_free(&p);
    rig_free(&d);
}

static struct node_counts counts(const struct rig *r)
{
    struct node_counts n;
    node_core_counts(r->core, &n);
    return n;
}

static void assert_failed(const struct rig *r, enum err error, bool retryable)
{
    const struct msg *m = rig_said(r, MSG_FAILED);
    assert_non_null(m);
    assert_int_equal(m->failed.error, error);
    assert_int_equal(m->failed.retryable, retryable);
    assert_true(strlen(m->failed.reason) > 0);
}

/* Both of them through to the last token; the stream, the end and the early first token are right. */
static void serve(const struct job *job)
{
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    tell(&d, reserve(job, false));
    const struct msg *m = rig_said(&d, MSG_RESERVED);
    assert_non_null(m);
    assert_true(job_key_equal(m->reserved.key, job->key));
    tell(&p, prefill(job, m->reserved.ticket, m->reserved.held_tokens));
    rig_run(&p);
    uint32_t n = rig_expect(job, d.config.context_max, want, &finish);
    assert_int_equal(rig_stream(&d, job->key, got), n);
    assert_memory_equal(got, want, n * sizeof *got);
    assert_int_equal(rig_said(&p, MSG_FIRST)->first.token.token, want[0]);
    assert_true(job_key_equal(rig_said(&p, MSG_PREFILLED)->prefilled.key, job->key));
    const struct msg *end = rig_said(&d, MSG_FINISHED);
    assert_non_null(end);
    assert_true(job_key_equal(end->finished.key, job->key));
    assert_int_equal(end->finished.finish, finish);
    assert_int_equal(end->finished.tokens_count, n);
    acknowledge(&d, job);
}

static void a_node_greets_joins_and_beats(void **state)
{
    (void)state;
    rig_new(&d, &(struct rig_options){.role = ROLE_DECODE, .routers_count = 2});
    assert_int_equal(rig_said_count(&d, MSG_HELLO), 2);
    assert_string_equal(rig_said(&d, MSG_HELLO)->hello.name, "n0");
    rig_join(&d, 0);
    assert_int_equal(d.lifelines_dialled, 1);
    rig_forget(&d);
    rig_advance(&d, NS_PER_S);
    assert_int_equal(rig_said_count(&d, MSG_HEARTBEAT), 5);
    assert_int_equal(rig_said(&d, MSG_HEARTBEAT)->heartbeat.load.blocks_free, 64);
    rig_free(&d);
    assert_int_equal(d.lifelines_dropped, 1);
}

static void a_request_goes_through_both_nodes(void **state)
{
    (void)state;
    static const struct {
        uint32_t count, chunk, depth;
    } cases[] = {{1, 32, 1},  {15, 32, 1},  {16, 32, 1}, {17, 7, 1},  {100, 1, 1},
                 {100, 7, 1}, {100, 16, 2}, {97, 64, 2}, {112, 33, 3}};
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pair(&(struct rig_options){.role = ROLE_PREFILL,
                                   .chunk_tokens = cases[i].chunk,
                                   .steps_in_flight = cases[i].depth},
             &(struct rig_options){.role = ROLE_DECODE, .steps_in_flight = cases[i].depth});
        struct job job = rig_job(i, &(struct rig_prompt){i, 0, 0, cases[i].count, 40});
        serve(&job);
        free_pair();
    }
}

static void only_the_part_that_decode_lacks_travels(void **state)
{
    (void)state;
    pair(&(struct rig_options){.role = ROLE_PREFILL}, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 9, 64, 70, 5});
    struct job b = rig_job(2, &(struct rig_prompt){2, 9, 64, 90, 5});
    serve(&a);
    assert_int_equal(rig_said(&d, MSG_RESERVED)->reserved.held_tokens, 0);
    rig_forget(&d);
    serve(&b);
    assert_int_equal(rig_said(&d, MSG_RESERVED)->reserved.held_tokens, 64);
    assert_int_equal(rig_said(&p, MSG_PREFILLED)->prefilled.cached_tokens, 64);
    free_pair();
}

static void what_prefill_has_cached_is_pushed_too(void **state)
{
    (void)state;
    pair(&(struct rig_options){.role = ROLE_PREFILL},
         &(struct rig_options){.role = ROLE_DECODE, .no_prefix_cache = true});
    struct job a = rig_job(1, &(struct rig_prompt){1, 9, 64, 70, 5});
    struct job b = rig_job(2, &(struct rig_prompt){2, 9, 64, 90, 5});
    serve(&a);
    rig_forget(&d);
    uint64_t before = counts(&p).prompt_tokens;
    serve(&b);
    assert_int_equal(counts(&p).prompt_tokens - before, 90 - 64);
    free_pair();
}

static void a_prefill_without_ticket_ends_with_its_first_token(void **state)
{
    (void)state;
    uint32_t want[RIG_STREAM_MAX];
    enum finish finish;
    one(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 1});
    tell(&p, prefill(&job, ID128_NONE, 0));
    rig_run(&p);
    rig_expect(&job, 400, want, &finish);
    assert_int_equal(rig_said(&p, MSG_FIRST)->first.token.token, want[0]);
    assert_int_equal(rig_said(&p, MSG_FIRST)->first.index, 0);
    assert_int_equal(rig_said(&p, MSG_FINISHED)->finished.finish, FINISH_LENGTH);
    assert_int_equal(rig_said(&p, MSG_FINISHED)->finished.tokens_count, 1);
    assert_null(rig_said(&p, MSG_PREFILLED));
    assert_int_equal(counts(&p).jobs_live, 1);
    acknowledge(&p, &job);
    assert_int_equal(counts(&p).jobs_live, 0);

    rig_forget(&p); /* no token at all: only the cache is warmed */
    job = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 0});
    tell(&p, prefill(&job, ID128_NONE, 0));
    rig_run(&p);
    assert_null(rig_said(&p, MSG_FIRST));
    assert_int_equal(rig_said(&p, MSG_FINISHED)->finished.tokens_count, 0);
    assert_int_equal(counts(&p).blocks.cached, 6);
    rig_free(&p);
}

static void an_unacknowledged_end_is_told_again_and_given_up(void **state)
{
    (void)state;
    one(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 20, 1});
    tell(&p, prefill(&job, ID128_NONE, 0));
    rig_run(&p);
    for (uint32_t s = 0; s < 70; s++) { /* the router lives, and says so */
        rig_advance(&p, NS_PER_S);
        tell(&p, (struct msg){.kind = MSG_HEARTBEAT});
    }
    assert_in_range(rig_said_count(&p, MSG_FINISHED), 50, 61);
    assert_int_equal(counts(&p).jobs_live, 0);
    rig_free(&p);
}

static void decode_prefills_a_local_job_itself(void **state)
{
    (void)state;
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    one(&d, &(struct rig_options){.role = ROLE_DECODE, .chunk_tokens = 7});
    struct job job = rig_job(3, &(struct rig_prompt){3, 0, 0, 50, 30});
    tell(&d, reserve(&job, true));
    rig_run(&d);
    uint32_t n = rig_expect(&job, 400, want, &finish);
    assert_int_equal(rig_stream(&d, job.key, got), n);
    assert_memory_equal(got, want, n * sizeof *got);
    assert_true(id128_is_none(rig_said(&d, MSG_RESERVED)->reserved.ticket));
    assert_int_equal(rig_said(&d, MSG_FINISHED)->finished.finish, finish);
    rig_free(&d);
}

static void a_later_attempt_goes_on_at_the_next_index(void **state)
{
    (void)state;
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(4, &(struct rig_prompt){4, 0, 0, 50, 30});
    uint32_t n = rig_expect(&job, 400, want, &finish);
    assert_true(n > 5);
    job.key.attempt = 1;
    job.forwarded = want;
    job.forwarded_count = 5;
    tell(&d, reserve(&job, true));
    rig_run(&d);
    memcpy(got, want, 5 * sizeof *got);
    const struct msg *m = rig_said(&d, MSG_FINISHED);
    assert_int_equal(m->finished.tokens_count, n);
    for (uint32_t i = 0; i < d.said_count; i++)
        if (d.said[i].m.kind == MSG_TOKENS) {
            assert_int_equal(d.said[i].m.tokens.runs[0].index, 5);
            break;
        }
    memset(got, 0, sizeof got);
    tell(&d, (struct msg){.kind = MSG_RESEND, .resend = {job.key, 7}});
    m = rig_said(&d, MSG_TOKENS);
    assert_int_equal(m->tokens.runs[0].index, 7);
    assert_int_equal(m->tokens.runs[0].tokens_count, n - 7);
    for (uint32_t i = 7; i < n; i++)
        assert_int_equal(m->tokens.runs[0].tokens[i - 7].token, want[i]);
    rig_free(&d);
}

static void a_commit_with_a_finish_reason_never_runs(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    tell(&d, reserve(&job, false));
    struct id128 ticket = rig_said(&d, MSG_RESERVED)->reserved.ticket;
    rig_link(&d);
    d.ticket[0].live = false;
    rig_post_event(&d, &(struct xfer_event){.kind = XFER_COMMITTED,
                                            .ticket = ticket,
                                            .first = {.token = RIG_STOP, .logprob = NAN},
                                            .finish = FINISH_STOP});
    rig_run(&d);
    assert_int_equal(d.steps_done, 0);
    assert_int_equal(rig_said(&d, MSG_TOKENS)->tokens.runs[0].tokens[0].token, RIG_STOP);
    assert_int_equal(rig_said(&d, MSG_FINISHED)->finished.finish, FINISH_STOP);
    rig_free(&d);
}

static void a_commit_with_a_foreign_token_fails_the_attempt(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    tell(&d, reserve(&job, false));
    struct id128 ticket = rig_said(&d, MSG_RESERVED)->reserved.ticket;
    rig_link(&d);
    d.ticket[0].live = false;
    rig_post_event(&d, &(struct xfer_event){.kind = XFER_COMMITTED,
                                            .ticket = ticket,
                                            .first = {.token = RIG_VOCAB}});
    rig_run(&d);
    assert_failed(&d, ERR_FORMAT, true);
    rig_free(&d);
}

static void a_full_pool_refuses_and_an_impossible_request_is_told_why(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 8});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 64, 20});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 64, 20});
    struct job c = rig_job(3, &(struct rig_prompt){3, 0, 0, 64, 300});
    tell(&d, reserve(&a, false));
    assert_non_null(rig_said(&d, MSG_RESERVED));
    assert_int_equal(counts(&d).blocks.reserved, 5);
    tell(&d, reserve(&b, false));
    assert_failed(&d, ERR_FULL, true);
    assert_int_equal(counts(&d).blocks.reserved, 5);
    tell(&d, reserve(&c, false));
    assert_failed(&d, ERR_INVALID, false);
    assert_non_null(strstr(rig_said(&d, MSG_FAILED)->failed.reason, "23 KV blocks"));
    assert_non_null(strstr(rig_said(&d, MSG_FAILED)->failed.reason, "has 8"));
    cancel(&d, a.key);
    rig_run(&d);
    tell(&d, reserve(&b, false)); /* refused is not ended: the same key may come again */
    assert_true(job_key_equal(rig_said(&d, MSG_RESERVED)->reserved.key, b.key));
    rig_free(&d);
}

static void wrong_jobs_are_refused_by_name(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE, .context_max = 100});
    uint32_t foreign[] = {1, RIG_VOCAB};
    struct job good = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct {
        struct job job;
        const char *word;
    } cases[6];
    for (uint32_t i = 0; i < 6; i++)
        cases[i].job = good;
    cases[0].job.prompt_count = 0, cases[0].word = "empty";
    cases[1].job.prompt_count = 101, cases[1].word = "context";
    cases[2].job.prompt = foreign, cases[2].job.prompt_count = 2, cases[2].word = "vocabulary";
    cases[3].job.tokens_max = 0, cases[3].word = "max_tokens";
    cases[4].job.sampling.top_p = NAN, cases[4].word = "top_p";
    cases[5].job.key.choice = JOB_CHOICES_MAX, cases[5].word = "choice";
    for (uint32_t i = 0; i < 6; i++) {
        rig_forget(&d);
        tell(&d, reserve(&cases[i].job, i % 2));
        assert_failed(&d, ERR_INVALID, false);
        assert_non_null(strstr(rig_said(&d, MSG_FAILED)->failed.reason, cases[i].word));
    }
    static const char *const none[] = {""};
    struct msg m = prefill(&good, (struct id128){7, 7}, 8); /* not a multiple of 16 */
    tell(&d, m);
    assert_failed(&d, ERR_INVALID, false);
    m.prefill.held_tokens = 64; /* more than there is */
    rig_forget(&d);
    tell(&d, m);
    assert_failed(&d, ERR_INVALID, false);
    m.prefill.held_tokens = 0;
    m.prefill.addresses = none;
    m.prefill.addresses_count = 0;
    rig_forget(&d);
    tell(&d, m);
    assert_failed(&d, ERR_INVALID, false);
    assert_int_equal(counts(&d).jobs_live, 0);
    rig_free(&d);
}

static void a_repeated_reserve_gets_the_same_answer(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    tell(&d, reserve(&job, false));
    struct id128 ticket = rig_said(&d, MSG_RESERVED)->reserved.ticket;
    rig_forget(&d);
    tell(&d, reserve(&job, false));
    assert_true(id128_equal(rig_said(&d, MSG_RESERVED)->reserved.ticket, ticket));
    assert_int_equal(counts(&d).jobs_live, 1);
    rig_free(&d);
}

static void a_later_attempt_ends_an_older_one_and_not_the_reverse(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30}), older = job;
    older.key.attempt = 4;
    tell(&d, reserve(&older, false));
    job.key.attempt = 5;
    tell(&d, reserve(&job, false));
    assert_failed(&d, ERR_STALE, false);
    assert_true(job_key_equal(rig_said(&d, MSG_FAILED)->failed.key, older.key));
    assert_true(job_key_equal(rig_said(&d, MSG_RESERVED)->reserved.key, job.key));
    rig_forget(&d);
    tell(&d, reserve(&older, false));
    assert_failed(&d, ERR_STALE, false);
    assert_null(rig_said(&d, MSG_RESERVED));
    assert_int_equal(counts(&d).jobs_live, 1);
    rig_free(&d);
}

static void a_cancelled_request_cannot_begin_late(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job_key all = {job.key.request, CHOICE_ALL, 3};
    cancel(&d, all);
    for (uint32_t attempt = 0; attempt < 5; attempt++) {
        rig_forget(&d);
        job.key.attempt = attempt;
        job.key.choice = attempt;
        tell(&d, reserve(&job, attempt % 2));
        if (attempt <= 3)
            assert_failed(&d, ERR_STALE, false);
        else
            assert_int_equal(counts(&d).jobs_live, 1);
    }
    cancel(&d, (struct job_key){job.key.request, 4, 4});
    rig_run(&d);
    rig_forget(&d);
    tell(&d, reserve(&job, false));
    assert_failed(&d, ERR_STALE, false);
    rig_free(&d);
}

/* How far the two nodes come before the cancel: so many moves of steps and links. */
static void a_cancel_at_any_moment_frees_everything(void **state)
{
    (void)state;
    for (uint32_t moves = 0; moves < 60; moves++) {
        pair(&(struct rig_options){.role = ROLE_PREFILL, .chunk_tokens = 16},
             &(struct rig_options){.role = ROLE_DECODE});
        struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
        tell(&d, reserve(&job, false));
        const struct msg *m = rig_said(&d, MSG_RESERVED);
        tell(&p, prefill(&job, m->reserved.ticket, 0));
        for (uint32_t i = 0; i < moves; i++)
            if (!rig_link(&p) && !rig_link(&d) && !rig_step_layers(&p, i % 2) && !rig_step(&p) &&
                !rig_event(&p) && !rig_event(&d))
                rig_step(&d);
        cancel(&p, job.key);
        cancel(&d, job.key);
        assert_int_equal(counts(&p).jobs_live + counts(&d).jobs_live, 0);
        rig_run(&p);
        struct node_counts n = counts(&d);
        assert_int_equal(n.blocks.free + n.blocks.cached, n.blocks.total);
        n = counts(&p);
        assert_int_equal(n.blocks.free + n.blocks.cached, n.blocks.total);
        free_pair();
    }
}

static void a_cancelled_step_hurts_nobody_else(void **state)
{
    (void)state;
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    one(&d, &(struct rig_options){.role = ROLE_DECODE, .chunk_tokens = 200});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    tell(&d, reserve(&a, true)); /* its step begins at once, alone */
    tell(&d, reserve(&b, true));
    rig_step(&d); /* from here on both share one */
    cancel(&d, a.key);
    assert_false(atomic_load(&d.step[0]->cancel));
    rig_run(&d);
    uint32_t n = rig_expect(&b, 400, want, &finish);
    assert_int_equal(rig_stream(&d, b.key, got), n);
    assert_memory_equal(got, want, n * sizeof *got);
    tell(&d, reserve(&(struct job){0}, true));
    struct job c = rig_job(3, &(struct rig_prompt){3, 0, 0, 50, 30});
    tell(&d, reserve(&c, true));
    cancel(&d, c.key);
    assert_true(atomic_load(&d.step[0]->cancel));
    assert_true(counts(&d).blocks.active > 0); /* the step names them until it has ended */
    rig_free(&d);
}

static void a_lost_router_takes_its_jobs_with_it(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE, .routers_count = 2});
    rig_join(&d, 1);
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    struct msg m = reserve(&a, false);
    rig_tell(&d, 0, &m);
    m = reserve(&b, true);
    rig_tell(&d, 1, &m);
    node_core_on_lifeline(d.core, d.now_ns, (struct peer){1}, false);
    node_core_audit(d.core);
    assert_int_equal(counts(&d).jobs_live, 1);
    rig_run(&d);
    assert_non_null(rig_said(&d, MSG_FINISHED)); /* the other router's goes on */
    rig_forget(&d);
    rig_advance(&d, NS_PER_S);
    assert_non_null(rig_said(&d, MSG_HELLO)); /* and the lost one is greeted again */
    rig_free(&d);
}

static void a_silent_router_takes_its_jobs_with_it(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    tell(&d, reserve(&a, false));
    rig_advance(&d, 4 * NS_PER_S);
    assert_int_equal(counts(&d).jobs_live, 0);
    rig_free(&d);
}

static void live_router(struct rig *r, uint32_t seconds)
{
    for (uint32_t s = 0; s < seconds; s++) {
        rig_advance(r, NS_PER_S);
        struct node_counts n = counts(r);
        (void)n;
        tell(r, (struct msg){.kind = MSG_HEARTBEAT});
    }
}

static void a_reservation_whose_kv_does_not_come_fails_in_time(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE, .reserve_timeout_ns = 5 * NS_PER_S});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    tell(&d, reserve(&a, false));
    live_router(&d, 4);
    assert_null(rig_said(&d, MSG_FAILED));
    live_router(&d, 2);
    assert_failed(&d, ERR_TIMEOUT, true);
    rig_free(&d);
}

static void a_request_past_its_deadline_ends(void **state)
{
    (void)state;
    one(&p, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 6});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 90, 1});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 90, 1});
    tell(&p, prefill(&a, ID128_NONE, 0));
    struct msg m = prefill(&b, ID128_NONE, 0); /* waits: all blocks are a's */
    m.envelope.remaining_ms = 1500;
    tell(&p, m);
    assert_int_equal(counts(&p).waiting, 2);
    live_router(&p, 1);
    assert_null(rig_said(&p, MSG_FAILED));
    live_router(&p, 1);
    assert_failed(&p, ERR_TIMEOUT, false);
    rig_free(&p);
}

static void a_prompt_starts_only_with_all_its_blocks(void **state)
{
    (void)state;
    one(&p, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 8, .chunk_tokens = 200});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 80, 1});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 80, 1});
    struct job c = rig_job(3, &(struct rig_prompt){3, 0, 0, 16, 1});
    tell(&p, prefill(&a, ID128_NONE, 0));
    tell(&p, prefill(&b, ID128_NONE, 0));
    tell(&p, prefill(&c, ID128_NONE, 0)); /* would fit, and does not overtake b */
    assert_int_equal(counts(&p).blocks.active, 5);
    rig_step(&p);
    assert_int_equal(p.step[0]->sequences_count, 2); /* then b, by eviction, and c with it */
    rig_run(&p);
    assert_int_equal(rig_said_count(&p, MSG_FINISHED), 3);
    rig_free(&p);
}

static void prompts_share_a_step_in_order_of_priority_and_age(void **state)
{
    (void)state;
    one(&p, &(struct rig_options){.role = ROLE_PREFILL, .chunk_tokens = 50});
    struct job first = rig_job(1, &(struct rig_prompt){1, 0, 0, 20, 1});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 30, 1});
    struct job c = rig_job(3, &(struct rig_prompt){3, 0, 0, 30, 1});
    struct job urgent = rig_job(4, &(struct rig_prompt){4, 0, 0, 30, 1});
    urgent.priority = -1;
    tell(&p, prefill(&first, ID128_NONE, 0));
    tell(&p, prefill(&b, ID128_NONE, 0));
    tell(&p, prefill(&c, ID128_NONE, 0));
    tell(&p, prefill(&urgent, ID128_NONE, 0));
    rig_step(&p);
    struct step *step = p.step[0];
    assert_int_equal(step->sequences_count, 2);
    assert_int_equal(step->sequence[0].rows_count, 30);
    assert_memory_equal(&step->tokens[0], urgent.prompt, 30 * sizeof(uint32_t));
    assert_int_equal(step->sequence[1].rows_count, 20);
    assert_memory_equal(&step->tokens[30], b.prompt, 20 * sizeof(uint32_t));
    rig_free(&p);
}

static void a_prefix_being_computed_is_waited_for(void **state)
{
    (void)state;
    one(&p, &(struct rig_options){.role = ROLE_PREFILL, .chunk_tokens = 32});
    struct job a = rig_job(1, &(struct rig_prompt){1, 5, 96, 100, 1});
    struct job b = rig_job(2, &(struct rig_prompt){2, 5, 96, 120, 1});
    tell(&p, prefill(&a, ID128_NONE, 0));
    tell(&p, prefill(&b, ID128_NONE, 0));
    rig_run(&p);
    assert_int_equal(counts(&p).prompt_tokens, 100 + 120 - 96);
    rig_free(&p);
}

static void waiting_for_a_prefix_is_bounded(void **state)
{
    (void)state;
    one(&p, &(struct rig_options){
                .role = ROLE_PREFILL, .chunk_tokens = 48, .prefix_wait_ns = NS_PER_S / 2});
    struct job a = rig_job(1, &(struct rig_prompt){1, 5, 96, 100, 1});
    struct job b = rig_job(2, &(struct rig_prompt){2, 5, 96, 120, 1});
    tell(&p, prefill(&a, ID128_NONE, 0));
    tell(&p, prefill(&b, ID128_NONE, 0));
    rig_advance(&p, NS_PER_S);
    rig_step(&p);
    rig_step(&p);
    assert_int_equal(p.step[0]->sequences_count, 2);
    rig_free(&p);
}

static void a_short_pool_preempts_the_youngest_and_no_stream_breaks(void **state)
{
    (void)state;
    for (uint32_t depth = 1; depth <= 3; depth++) {
        one(&d, &(struct rig_options){.role = ROLE_DECODE,
                                      .blocks_count = 16,
                                      .steps_in_flight = depth,
                                      .chunk_tokens = 40});
        struct job job[4];
        for (uint32_t i = 0; i < 4; i++) {
            job[i] = rig_job(i, &(struct rig_prompt){i, 0, 0, 40, 120});
            job[i].stop_ids_count = 0;
            tell(&d, reserve(&job[i], true));
        }
        rig_run(&d);
        assert_true(counts(&d).preemptions > 0);
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
            enum finish finish;
            uint32_t n = rig_expect(&job[i], 400, want, &finish);
            assert_int_equal(rig_stream(&d, job[i].key, got), n);
            assert_memory_equal(got, want, n * sizeof *got);
        }
        for (uint32_t i = 0; i < d.said_count; i++) /* the oldest one ends first */
            if (d.said[i].m.kind == MSG_FINISHED) {
                assert_true(job_key_equal(d.said[i].m.finished.key, job[0].key));
                break;
            }
        rig_free(&d);
    }
}

static void live_sets_that_differ_for_long_are_compared(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    tell(&d, reserve(&a, false));
    tell(&d, reserve(&b, false));
    struct msg beat = {
        .kind = MSG_HEARTBEAT,
        .heartbeat = {.live_count = 2, .live_hash = job_key_hash(a.key) + job_key_hash(b.key)}};
    for (uint32_t i = 0; i < 5; i++)
        tell(&d, beat);
    assert_null(rig_said(&d, MSG_LIVE));
    beat.heartbeat.live_hash++;
    tell(&d, beat);
    tell(&d, beat);
    assert_null(rig_said(&d, MSG_LIVE));
    tell(&d, beat);
    assert_int_equal(rig_said(&d, MSG_LIVE)->live.keys_count, 2);
    assert_true(rig_said(&d, MSG_LIVE)->live.answer);
    struct job_key keys[] = {b.key, {{9, 9}, 0, 0}};
    rig_forget(&d);
    tell(&d, (struct msg){.kind = MSG_LIVE, .live = {true, keys, 2}});
    assert_int_equal(counts(&d).jobs_live, 1); /* a is unknown to the router: over */
    assert_failed(&d, ERR_NOT_FOUND, true);    /* the other one is unknown here */
    assert_true(job_key_equal(rig_said(&d, MSG_FAILED)->failed.key, keys[1]));
    assert_int_equal(rig_said(&d, MSG_LIVE)->live.keys_count, 1);
    assert_false(rig_said(&d, MSG_LIVE)->live.answer);
    rig_free(&d);
}

static void a_draining_node_finishes_what_it_has_and_leaves(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    tell(&d, reserve(&a, true));
    tell(&d, (struct msg){.kind = MSG_DRAIN});
    assert_true(rig_said(&d, MSG_HEARTBEAT)->heartbeat.draining);
    tell(&d, reserve(&b, true));
    assert_failed(&d, ERR_FULL, true);
    assert_string_equal(rig_said(&d, MSG_FAILED)->failed.reason, "draining");
    rig_run(&d);
    assert_non_null(rig_said(&d, MSG_FINISHED));
    assert_false(d.left);
    acknowledge(&d, &a);
    assert_true(d.left);
    assert_non_null(rig_said(&d, MSG_DRAINED));
    rig_free(&d);

    rig_new(&d, &(struct rig_options){.role = ROLE_DECODE}); /* nothing to finish, nobody to tell */
    node_core_drain(d.core, d.now_ns);
    assert_true(d.left);
    rig_free(&d);
}

static void a_sick_device_fails_everything_and_the_node_leaves(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    tell(&d, reserve(&a, true));
    tell(&d, reserve(&b, false));
    rig_step_done(&d, ERR_DEVICE);
    assert_int_equal(rig_said_count(&d, MSG_FAILED), 2);
    assert_failed(&d, ERR_DEVICE, true);
    rig_run(&d);
    assert_true(d.left);
    rig_free(&d);
}

static void a_process_that_slept_too_long_begins_a_new_life(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    tell(&d, reserve(&a, true));
    rig_forget(&d);
    d.now_ns += 10 * NS_PER_S;
    node_core_reborn(d.core, d.now_ns, 77);
    assert_int_equal(counts(&d).jobs_live, 0);
    assert_null(rig_said(&d, MSG_HEARTBEAT));
    assert_int_equal(rig_said(&d, MSG_HELLO)->envelope.from, 77);
    tell(&d, reserve(&a, true)); /* in the old session: for nobody */
    assert_int_equal(counts(&d).jobs_live, 0);
    rig_free(&d);
}

static void a_transfer_that_fails_fails_the_job_on_both_sides(void **state)
{
    (void)state;
    pair(&(struct rig_options){.role = ROLE_PREFILL}, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    tell(&d, reserve(&job, false));
    tell(&p, prefill(&job, rig_said(&d, MSG_RESERVED)->reserved.ticket, 0));
    rig_link(&d);
    rig_link(&p);
    for (struct rig *r = &p; r; r = r == &p ? &d : NULL) {
        r->ticket[0].live = false;
        rig_post_event(r, &(struct xfer_event){.kind = XFER_FAILED,
                                               .ticket = r->ticket[0].id,
                                               .error = ERR_PEER,
                                               .text = "the other side is gone"});
        rig_event(r);
        assert_failed(r, ERR_PEER, true);
        assert_string_equal(rig_said(r, MSG_FAILED)->failed.reason, "the other side is gone");
    }
    free_pair();
}

static void a_busy_ticket_is_refused(void **state)
{
    (void)state;
    one(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    tell(&p, prefill(&a, (struct id128){3, 3}, 0));
    tell(&p, prefill(&b, (struct id128){3, 3}, 0));
    assert_failed(&p, ERR_INVALID, false);
    rig_free(&p);
}

static void log_probabilities_are_kept_for_a_resend(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    job.sampling.logprobs = true;
    job.sampling.tops_count = 2;
    tell(&d, reserve(&job, false));
    struct id128 ticket = rig_said(&d, MSG_RESERVED)->reserved.ticket;
    rig_link(&d);
    d.ticket[0].live = false;
    struct xfer_event e = {.kind = XFER_COMMITTED, .ticket = ticket};
    e.first = (struct token_info){.token = 3, .logprob = -1.5f, .tops_count = 2};
    e.first.top[0].token = 3, e.first.top[0].logprob = -1.5f;
    e.first.top[1].token = 8, e.first.top[1].logprob = -2.5f;
    rig_post_event(&d, &e);
    rig_event(&d);
    tell(&d, (struct msg){.kind = MSG_RESEND, .resend = {job.key, 0}});
    const struct token_info *t = &rig_said(&d, MSG_TOKENS)->tokens.runs[0].tokens[0];
    assert_true(t->logprob == -1.5f);
    assert_int_equal(t->tops_count, 2);
    assert_int_equal(t->top[1].token, 8);
    assert_true(t->top[1].logprob == -2.5f);
    rig_free(&d);
}

static void every_failing_allocation_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct node_out out = {0};
    struct node_core *core;
    enum err e = ERR_MEMORY;
    uint32_t n = 1;
    for (; e != OK; n++) {
        mem_fail_at(n);
        e = node_core_new(&core, &d.config, &out);
        assert_true(e == OK || (e == ERR_MEMORY && !core));
    }
    mem_fail_at(0);
    assert_true(n > 20);
    node_core_free(core);
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    mem_fail_at(1); /* a job's own memory: refused, and elsewhere it may run */
    struct msg m = reserve(&job, true);
    m.envelope = (struct envelope){1, RIG_ROUTER_LIFE, d.life, 0};
    node_core_on_message(d.core, d.now_ns, (struct peer){1}, &m);
    mem_fail_at(0);
    assert_int_equal(counts(&d).jobs_live, 0);
    rig_free(&d);
}

static void a_node_without_room_for_prompts_does_not_start(void **state)
{
    (void)state;
    struct node_out out = {0};
    struct node_core *core;
    one(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct node_config wrong = d.config;
    wrong.limits.sequences_max = wrong.sequences_max;
    assert_int_equal(node_core_new(&core, &wrong, &out), ERR_INVALID);
    wrong = d.config;
    wrong.limits.table_max = 3;
    assert_int_equal(node_core_new(&core, &wrong, &out), ERR_INVALID);
    wrong = d.config;
    wrong.routers_count = 0;
    assert_int_equal(node_core_new(&core, &wrong, &out), ERR_INVALID);
    rig_free(&d);
}

int main(void)
{
    log_setup(LOG_OFF, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_node_greets_joins_and_beats),
        cmocka_unit_test(a_request_goes_through_both_nodes),
        cmocka_unit_test(only_the_part_that_decode_lacks_travels),
        cmocka_unit_test(what_prefill_has_cached_is_pushed_too),
        cmocka_unit_test(a_prefill_without_ticket_ends_with_its_first_token),
        cmocka_unit_test(an_unacknowledged_end_is_told_again_and_given_up),
        cmocka_unit_test(decode_prefills_a_local_job_itself),
        cmocka_unit_test(a_later_attempt_goes_on_at_the_next_index),
        cmocka_unit_test(a_commit_with_a_finish_reason_never_runs),
        cmocka_unit_test(a_commit_with_a_foreign_token_fails_the_attempt),
        cmocka_unit_test(a_full_pool_refuses_and_an_impossible_request_is_told_why),
        cmocka_unit_test(wrong_jobs_are_refused_by_name),
        cmocka_unit_test(a_repeated_reserve_gets_the_same_answer),
        cmocka_unit_test(a_later_attempt_ends_an_older_one_and_not_the_reverse),
        cmocka_unit_test(a_cancelled_request_cannot_begin_late),
        cmocka_unit_test(a_cancel_at_any_moment_frees_everything),
        cmocka_unit_test(a_cancelled_step_hurts_nobody_else),
        cmocka_unit_test(a_lost_router_takes_its_jobs_with_it),
        cmocka_unit_test(a_silent_router_takes_its_jobs_with_it),
        cmocka_unit_test(a_reservation_whose_kv_does_not_come_fails_in_time),
        cmocka_unit_test(a_request_past_its_deadline_ends),
        cmocka_unit_test(a_prompt_starts_only_with_all_its_blocks),
        cmocka_unit_test(prompts_share_a_step_in_order_of_priority_and_age),
        cmocka_unit_test(a_prefix_being_computed_is_waited_for),
        cmocka_unit_test(waiting_for_a_prefix_is_bounded),
        cmocka_unit_test(a_short_pool_preempts_the_youngest_and_no_stream_breaks),
        cmocka_unit_test(live_sets_that_differ_for_long_are_compared),
        cmocka_unit_test(a_draining_node_finishes_what_it_has_and_leaves),
        cmocka_unit_test(a_sick_device_fails_everything_and_the_node_leaves),
        cmocka_unit_test(a_process_that_slept_too_long_begins_a_new_life),
        cmocka_unit_test(a_transfer_that_fails_fails_the_job_on_both_sides),
        cmocka_unit_test(a_busy_ticket_is_refused),
        cmocka_unit_test(log_probabilities_are_kept_for_a_resend),
        cmocka_unit_test(every_failing_allocation_is_an_error_and_leaks_nothing),
        cmocka_unit_test(a_node_without_room_for_prompts_does_not_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
