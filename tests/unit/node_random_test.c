/* Two nodes and a router that does whatever is allowed, in any order: reserves, prefills, cancels, loses
 * sessions, repeats messages, lets transfers fail. After each input both cores are audited; every token
 * that is told must be the one of the undisturbed stream; in the end every job has all its tokens and
 * every block is back. A failing seed is named and runs alone with TANDEM_SEED=N. */
#include "tests/unit/testing.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/rng.h"
#include "node/state.h"
#include "tests/unit/node_rig.h"
#include "tests/unit/seeds.h"

enum { SEEDS = 1000, MOVES = 250, JOBS = 10 };

enum stage { TO_DO, ASKED, PREFILLING, ENDED, ACKED, CANCELLED };
static const char *const stage_names[] = {"to do", "asked", "prefilling",
                                          "ended", "acked", "cancelled"};

struct client {
    struct job job;
    enum stage stage;
    bool local, plain, on_d;
    uint32_t choices_count; /* of its request: clients one behind the other */
    uint32_t expect[RIG_STREAM_MAX], expect_count, known_count;
    enum finish finish;
    float values[RIG_STREAM_MAX]; /* of one that scores or embeds */
    uint32_t values_count;
};

static struct rig p, d;
static struct client client[JOBS];
static struct job fill[16]; /* the last ones, of cached blocks of p for d */
static uint64_t fills_count, backfills;
static uint64_t seed, draws, forks, tier_tokens, results, lives;
static uint32_t reached[CANCELLED + 1];
static uint32_t met[SEQ_STATES][SEQ_EVENTS];

static uint32_t below(uint32_t bound)
{
    return rng_below(rng_draw(seed, 7, draws++).word[0], bound);
}
static bool one_in(uint32_t n)
{
    return below(n) == 0;
}
static struct rig *any_node(void)
{
    return below(2) ? &p : &d;
}

/* ---- the router's side of a job ---- */

static struct client *client_of(struct job_key key)
{
    uint64_t i = key.request.lo < JOBS ? key.request.lo + key.choice : JOBS;
    struct client *c = i < JOBS ? &client[i] : NULL;
    return c && job_key_equal(c->job.key, key) ? c : NULL;
}

static void fork_of(struct client *c, uint32_t sibling)
{
    c->local = true;
    rig_say(&d, (struct msg){.kind = MSG_RESERVE, .reserve = {c->job, true, true, sibling}});
}

static void ask(struct client *c)
{
    if (c->values_count == 0 &&
        c->known_count == c->expect_count) { /* only the news of its end was lost */
        c->stage = ACKED;
        return;
    }
    c->local = one_in(4);
    c->job.forwarded = c->expect; /* what is known is right: see tokens() */
    c->job.forwarded_count = c->known_count;
    c->plain = c->job.tokens_max == 0 || c->job.tokens_max == c->known_count + 1;
    c->on_d = c->plain && one_in(3);
    c->job.age_ms = below(500);
    c->job.preemptions = one_in(8) ? below(3) : 0;
    bool fork = c->choices_count > 1 && c->known_count == 0 && !one_in(4);
    if (c->plain)
        rig_prefill(c->on_d ? &d : &p, &c->job, ID128_NONE, 0);
    else if (fork)
        fork_of(c, below(c->choices_count));
    else
        rig_reserve(&d, &c->job, c->local);
    c->stage = ASKED;
}

/* Whatever became of the attempt, the next one goes on where the client stands. */
static void again(struct client *c, bool tell)
{
    struct job_key old = c->job.key;
    c->job.key.attempt++;
    c->stage = TO_DO;
    if (!tell) return; /* then the next attempt or a deadline ends what is left of it */
    rig_cancel(&p, old);
    rig_cancel(&d, old);
}

static void tokens(struct job_key key, uint32_t index, const struct token_info *t, uint32_t count)
{
    struct client *c = client_of(key);
    if (!c) return;
    for (uint32_t i = 0; i < count; i++) {
        assert_true(index + i < c->expect_count);
        assert_int_equal(t[i].token, c->expect[index + i]);
    }
    if (index <= c->known_count && index + count > c->known_count) c->known_count = index + count;
}

static void on_encoded(const struct msg_encoded *m)
{
    const struct client *c = client_of(m->key);
    if (!c) return;
    assert_int_equal(m->total, c->values_count);
    assert_true(m->index + m->values_count <= c->values_count);
    assert_memory_equal(m->values, c->values + m->index, m->values_count * sizeof *m->values);
    results++;
}

/* Whole blocks of a prompt go from p's cache into d's: mostly such as it has. */
static void begin_fill(const struct client *c)
{
    uint32_t blocks = c->job.prompt_count / BLOCK_TOKENS;
    if (blocks == 0 || c->job.kv_window) return;
    uint32_t wanted = 1 + below(blocks);
    if (p.core->cache && !one_in(4))
        wanted =
            kv_prefix_peek(p.core->cache, &(struct kv_prompt){c->job.tenant_salt, c->job.prompt,
                                                              blocks * BLOCK_TOKENS + 1});
    if (wanted == 0) return;
    struct job *f = &fill[fills_count % 16];
    *f = (struct job){.key = {{77, fills_count++}, 0, 0},
                      .prompt = c->job.prompt,
                      .prompt_count = wanted * BLOCK_TOKENS,
                      .cached_only = true,
                      .tenant_salt = c->job.tenant_salt,
                      .sampling = {.top_p = 1, .repetition_penalty = 1}};
    rig_reserve(&d, f, false);
}

static struct job *fill_of(struct job_key key)
{
    struct job *f = &fill[key.request.lo % 16];
    return key.request.hi == 77 && job_key_equal(f->key, key) ? f : NULL;
}

static void end_some_fill(void)
{
    struct job_key key = fill[below(16)].key;
    if (!id128_is_none(key.request)) rig_cancel(any_node(), key);
}

static void on_finished(struct rig *r, const struct msg_finished *m)
{
    struct client *c = client_of(m->key);
    if (fill_of(m->key)) rig_acknowledge(r, m->key);
    if (!c || c->stage == CANCELLED) return;
    assert_int_equal(m->tokens_count, c->expect_count);
    assert_int_equal(m->finish, c->finish);
    assert_int_equal(c->known_count, c->expect_count);
    c->stage = ENDED;
    if (one_in(3)) return; /* it will be told again */
    rig_acknowledge(r, m->key);
    c->stage = ACKED;
}

static void on_reserved(const struct msg_reserved *m)
{
    const struct job *f = fill_of(m->key);
    if (f && !one_in(8)) rig_prefill(&p, f, m->ticket, m->held_tokens);
    struct client *c = client_of(m->key);
    if (!c || c->local || c->stage != ASKED) return;
    assert_true(m->held_tokens % BLOCK_TOKENS == 0);
    c->stage = PREFILLING;
    if (one_in(20)) return; /* lost: the reservation's deadline ends it */
    rig_prefill(&p, &c->job, m->ticket, m->held_tokens);
    if (one_in(8)) rig_prefill(&p, &c->job, m->ticket, m->held_tokens);
}

static void on_failed(const struct msg_failed *m)
{
    struct client *c = client_of(m->key);
    if (!c) return;
    if (m->error == ERR_INVALID) fail_msg("%s", m->reason);
    if (c->stage != CANCELLED && c->stage != ACKED) again(c, !one_in(4));
}

static void watch(struct rig *r)
{
    for (uint32_t i = 0; i < r->said_count; i++) {
        struct msg m = r->said[i].m;
        switch (m.kind) {
        case MSG_RESERVED: on_reserved(&m.reserved); break;
        case MSG_FIRST: tokens(m.first.key, m.first.index, &m.first.token, 1); break;
        case MSG_TOKENS:
            for (uint32_t k = 0; k < m.tokens.runs_count; k++)
                tokens(m.tokens.runs[k].key, m.tokens.runs[k].index, m.tokens.runs[k].tokens,
                       m.tokens.runs[k].tokens_count);
            break;
        case MSG_FINISHED: on_finished(r, &m.finished); break;
        case MSG_ENCODED: on_encoded(&m.encoded); break;
        case MSG_FAILED: on_failed(&m.failed); break;
        default: break;
        }
    }
    rig_forget(r);
}

static void watch_both(void)
{
    while (p.said_count + d.said_count > 0) {
        watch(&p);
        watch(&d);
    }
}

/* ---- moves ---- */

static void beat(struct rig *r)
{
    rig_tell(r, 0, &(struct msg){.kind = MSG_HEARTBEAT});
}

static void pass_time(uint64_t ns)
{
    for (struct rig *r = &p; r; r = r == &p ? &d : NULL) {
        rig_advance(r, ns);
        beat(r);
    }
}

/* Every attempt that this node had is over; the other node learns of some. */
static void forget_jobs_of(const struct rig *r)
{
    for (uint32_t i = 0; i < JOBS; i++) {
        struct client *c = &client[i];
        bool on_p = c->plain ? !c->on_d : c->stage == PREFILLING && !c->local;
        bool has = r == &p ? on_p : !c->plain || c->on_d;
        if (has && c->stage != TO_DO && c->stage < ACKED) again(c, !one_in(3));
    }
}

static void lose(struct rig *r)
{
    rig_lose(r, 0);
    forget_jobs_of(r);
    rig_advance(r, NS_PER_S / 2); /* it greets again */
    rig_join(r, 0);
}

/* It was away for too long: a new life, with what the old one had under way. */
static void bear_again(struct rig *r)
{
    rig_reborn(r);
    forget_jobs_of(r);
    rig_join(r, 0);
    lives++;
}

static void pin_some(struct rig *r)
{
    static const char *const names[] = {"a", "b", "c"};
    const struct job *job = &client[below(JOBS)].job;
    bool remove = one_in(3);
    rig_say(r, (struct msg){.kind = MSG_PIN,
                            .pin = {.name = names[below(3)],
                                    .tenant = "",
                                    .remove = remove,
                                    .tokens = remove ? NULL : job->prompt,
                                    .tokens_count = remove ? 0 : job->prompt_count,
                                    .salt = job->tenant_salt}});
}

static void compare_live(struct rig *r)
{
    rig_tell(r, 0, &(struct msg){.kind = MSG_LIVE, .live = {true, NULL, 0}});
    forget_jobs_of(r);
}

static void fail_transfer(void)
{
    static const enum err errors[] = {ERR_PEER, ERR_TIMEOUT, ERR_FORMAT, ERR_NOT_FOUND};
    struct xfer_event e = {.kind = XFER_FAILED, .error = errors[below(4)], .text = "it broke"};
    for (struct rig *r = &p; r; r = r == &p ? &d : NULL)
        for (uint32_t i = 0; i < RIG_TICKETS_MAX; i++)
            if (r->ticket[i].live) {
                rig_end_ticket(r, &e);
                break;
            }
}

static void nonsense(struct rig *r)
{
    struct job_key key = client[below(JOBS)].job.key;
    key.attempt += below(2);
    struct job job = client[below(JOBS)].job;
    switch (below(6)) {
    case 0: rig_tell(r, 0, &(struct msg){.kind = MSG_RESEND, .resend = {key, below(40)}}); break;
    case 1: rig_tell(r, 0, &(struct msg){.kind = MSG_RESERVED, .reserved = {.key = key}}); break;
    case 2: rig_acknowledge(r, (struct job_key){{3, 3}, 0, 0}); break;
    case 3:
        job.key.request.hi = 99;
        job.prompt_count = below(3) ? 0 : 5000;
        rig_reserve(r, &job, below(2));
        break;
    case 4: /* late, of an attempt that is over */
        if (job.key.attempt == 0) break;
        job.key.attempt--;
        rig_reserve(r, &job, below(2));
        break;
    case 5:
        node_core_on_engine(r->core, r->now_ns, &(struct engine_event){.step_id = 1u << 30});
        node_core_on_xfer(r->core, r->now_ns, &(struct xfer_event){.ticket = {5, 5}});
        break;
    }
}

static void work(struct rig *r)
{
    switch (below(9)) {
    case 0: rig_step_layers(r, below(RIG_LAYERS + 1)); break;
    case 1:
    case 2:
    case 3: rig_step(r); break;
    case 4:
    case 5:
    case 6: rig_link(r); break;
    case 7: rig_event(r); break;
    case 8: rig_tier_some(r, one_in(4) ? below(4) : UINT32_MAX); break;
    }
    node_core_audit(r->core);
}

static void move(void)
{
    struct client *c = &client[below(JOBS)];
    uint32_t roll = below(100);
    if (roll < 70)
        work(any_node());
    else if (roll < 80 && c->stage == TO_DO)
        ask(c);
    else if (roll < 84)
        pass_time(below(1000) * NS_PER_MS);
    else if (roll < 86)
        fail_transfer();
    else if (roll < 90)
        nonsense(any_node());
    else if (roll == 90)
        lose(any_node());
    else if (roll == 91)
        compare_live(any_node());
    else if (roll == 94)
        bear_again(any_node());
    else if (roll == 95)
        p.tier_refuses = !p.tier_refuses;
    else if (roll == 96)
        d.tier_refuses = !d.tier_refuses;
    else if (roll == 97)
        pin_some(any_node());
    else if (roll == 98)
        begin_fill(c);
    else if (roll == 99)
        one_in(3) ? end_some_fill() : begin_fill(c);
    else if (roll == 92 && c->stage < ACKED && c->stage != TO_DO)
        again(c, true);
    else if (roll == 93 && c->stage < ACKED) {
        rig_cancel(&p, (struct job_key){c->job.key.request, CHOICE_ALL, UINT32_MAX});
        rig_cancel(&d, (struct job_key){c->job.key.request, CHOICE_ALL, UINT32_MAX});
        for (uint32_t i = 0; i < JOBS; i++)
            if (id128_equal(client[i].job.key.request, c->job.key.request) &&
                client[i].stage < ACKED)
                client[i].stage = CANCELLED;
    }
    watch_both();
}

/* ---- a run ---- */

static uint32_t choices_of(struct id128 request)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < JOBS; i++)
        n += id128_equal(client[i].job.key.request, request);
    return n;
}

static void begin(void)
{
    uint32_t depth = 1 + below(3), context_max = 200;
    struct rig_options o = {.role = ROLE_PREFILL,
                            .context_max = context_max,
                            .steps_in_flight = depth,
                            .chunk_tokens = 1 + below(60),
                            .blocks_count = 13 + below(30),
                            .reserve_timeout_ns = 2 * NS_PER_S,
                            .window = one_in(3) ? 1 + below(60) : 0,
                            .no_prefix_cache = one_in(5)};
    o.tiers = !o.no_prefix_cache && one_in(2);
    o.tier_deadline_ns = 1 + below(200) * NS_PER_MS;
    o.evict = (struct evict_config){.policy = below(EVICT_POLICIES_COUNT),
                                    .ttl_ns = (1 + below(300)) * NS_PER_MS,
                                    .tenant_percent_max = one_in(3) ? 1 + below(60) : 0};
    rig_new(&p, &o);
    o.role = ROLE_DECODE;
    o.blocks_count = 13 + below(one_in(2) ? 6 : 30);
    o.chunk_tokens = 1 + below(one_in(2) ? 5 : 60); /* prompts that take long may be preempted */
    o.sequences_max = 2 + below(8);
    rig_new(&d, &o);
    p.other = &d;
    rig_join(&p, 0);
    rig_join(&d, 0);
    for (uint32_t i = 0; i < JOBS; i++) {
        struct client *c = &client[i];
        uint32_t count = 1 + below(90);
        *c = (struct client){.job = rig_job(i, &(struct rig_prompt){.seed = (uint32_t)seed + i,
                                                                    .family = below(2),
                                                                    .shared_count = below(count),
                                                                    .count = count,
                                                                    .tokens_max = 1 + below(60)})};
        c->job.priority = (int32_t)below(3) - 1;
        c->job.tenant_salt = below(2);
        c->job.tenant = below(3);
        c->job.tenant_weight = below(3);
        c->job.fair_lead = below(500);
        if (o.window == 0 && one_in(3)) {
            c->job.kv_window = 1 + below(50);
            c->job.kv_sinks = below(3) * BLOCK_TOKENS;
            c->job.tenant_salt = 10 + c->job.kv_window * 100 + c->job.kv_sinks;
        }
        c->job.sampling.logprobs = one_in(4);
        if (one_in(5) && count > 1) {
            c->job.kind = below(JOB_KINDS);
            c->job.tokens_max = 0;
            c->values_count =
                c->job.kind == JOB_GENERATE ? 0 : rig_expect_values(&c->job, c->values);
        }
        bool generates = i > 0 && client[i - 1].job.tokens_max > 0;
        if (generates && one_in(3)) { /* another sample of the request before */
            c->values_count = 0;
            c->job = client[i - 1].job;
            c->job.key.choice++;
        }
        c->finish = FINISH_LENGTH;
        if (c->job.tokens_max > 0)
            c->expect_count = rig_expect(&c->job, context_max, c->expect, &c->finish);
    }
    for (uint32_t i = 0; i < JOBS; i++)
        client[i].choices_count = choices_of(client[i].job.key.request);
}

static bool all_done(void)
{
    for (uint32_t i = 0; i < JOBS; i++)
        if (client[i].stage < ACKED) return false;
    return true;
}

/* Nothing goes wrong any more: then every job ends. */
static void settle(void)
{
    for (uint32_t round = 0; !all_done(); round++) {
        if (round == 400)
            for (uint32_t i = 0; i < JOBS; i++)
                if (client[i].stage < ACKED)
                    fail_msg("job %u is still %s", i, stage_names[client[i].stage]);
        for (uint32_t i = 0; i < JOBS; i++)
            if (client[i].stage == TO_DO) ask(&client[i]);
        rig_run(&p);
        watch_both();
        rig_run(&p);
        watch_both();
        pass_time(NS_PER_S / 2);
        watch_both();
    }
}

static void run_seed(uint64_t n)
{
    seed = n;
    draws = fills_count = 0;
    memset(fill, 0, sizeof fill);
    begin();
    for (uint32_t i = 0; i < MOVES; i++) {
        move();
        for (uint32_t k = 0; k < JOBS; k++)
            reached[client[k].stage]++;
    }
    settle();
    for (uint32_t state = 0; state < SEQ_STATES; state++)
        for (uint32_t event = 0; event < SEQ_EVENTS; event++)
            met[state][event] += p.core->met[state][event] + d.core->met[state][event];
    forks += rig_counts(&d).forks;
    backfills += rig_counts(&d).backfills;
    tier_tokens += rig_counts(&p).tier_loaded_tokens + rig_counts(&d).tier_loaded_tokens;
    rig_free(&p);
    rig_free(&d);
}

/* The entries of the table in node/sequence.c: a test that does not reach one does not test it. */
static void every_entry_of_the_table_was_reached(void **state)
{
    (void)state;
    static const struct {
        enum seq_state state;
        enum seq_event event;
    } entries[] = {
        {SEQ_WAITING, SEQ_EV_START},      {SEQ_PREFILL, SEQ_EV_COMPUTED},
        {SEQ_PREFILL, SEQ_EV_PREEMPT},    {SEQ_HANDOVER, SEQ_EV_DELIVERED},
        {SEQ_RESERVED, SEQ_EV_COMMITTED}, {SEQ_RUNNING, SEQ_EV_ENDED},
        {SEQ_RUNNING, SEQ_EV_PREEMPT},    {SEQ_FINISHED, SEQ_EV_ACK},
        {SEQ_ENDING, SEQ_EV_LET_GO},
    };
    if (getenv("TANDEM_SEED")) skip();
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (met[entries[i].state][entries[i].event] == 0)
            fail_msg("event %d in state %s", entries[i].event, seq_state_name(entries[i].state));
    for (enum seq_state s = SEQ_WAITING; s < SEQ_ENDING; s++)
        for (enum seq_event e = SEQ_EV_TIMER; e <= SEQ_EV_FORGET; e++)
            if (met[s][e] == 0) fail_msg("event %d in state %s", e, seq_state_name(s));
}

static void any_order_of_events_keeps_streams_exact_and_blocks_accounted(void **state)
{
    (void)state;
    bool all = seeds_run(SEEDS, run_seed);
    for (uint32_t i = 0; i <= CANCELLED && all; i++)
        assert_true(reached[i] > 0);
    assert_true(!all || forks > 100);
    assert_true(!all || backfills > 20);
    assert_true(!all || (tier_tokens > 0 && results > 100 && lives > 100));
}

int main(void)
{
    log_setup(LOG_OFF, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(any_order_of_events_keeps_streams_exact_and_blocks_accounted,
                                  seeds_name),
        cmocka_unit_test(every_entry_of_the_table_was_reached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
