/* Nodes that say anything about anything: of jobs that they have, had, or never were given, in any state; clients
 * that submit and cancel requests under any id, their own or another's, living or ended, and ids of prompts that
 * come late, twice, or for nobody. The router may fail requests for it; it stays whole, answers each submission
 * once and ends each choice that it accepted once. A failing seed is named and runs alone with TANDEM_SEED=N. */
#include "tests/unit/router_rig.h"

#include "common/log.h"
#include "common/prefix_hash.h"
#include "common/rng.h"
#include "common/settings.h"
#include "tests/unit/seeds.h"

enum { SEEDS = 3000, MOVES = 150, KEYS = 32, VALUES = 20, REFS = 1024, OTHER = 6 };

static struct world w;
static uint64_t seed, draws;
static struct job_key known[KEYS]; /* that nodes were told of lately */
static uint32_t known_count, said;
static struct id128 jobs[2 * MOVES]; /* prompts of which ids are wanted */
static uint32_t jobs_count;
static struct {
    uint32_t submitted, answered; /* of CLIENT, as what follows; the other one leaves at times */
    uint32_t choices_due, choices_ended, again, over;
    uint32_t asked, told;   /* questions and pins, and answers to them */
    uint32_t choices[REFS]; /* by ref */
} heard;

static uint32_t below(uint32_t bound)
{
    return rng_below(rng_draw(seed, 3, draws++).word[0], bound);
}
static bool one_in(uint32_t n)
{
    return below(n) == 0;
}
static uint32_t any_number(void)
{
    static const uint32_t edges[] = {0, 1, 15, 16, 17, 20, 32, 1u << 20, UINT32_MAX};
    return one_in(3) ? edges[below(COUNT_OF(edges))] : below(24);
}
static uint32_t any_node(void)
{
    return P0 + below(3);
}

/* Of a job that was sent to some node; now and then of the attempt beside it. */
static struct job_key any_key(void)
{
    struct job_key key = {{below(3), 1 + below(3)}, 0, 0};
    if (known_count > 0) key = known[below(known_count < KEYS ? known_count : KEYS)];
    if (one_in(10)) key.attempt += below(3) - 1;
    if (one_in(10)) key.choice = below(3);
    return key;
}

static void hear(const struct msg *m)
{
    heard.answered += m->kind == MSG_ACCEPTED || m->kind == MSG_REJECTED;
    heard.choices_ended += m->kind == MSG_DONE;
    heard.told += m->kind == MSG_ANSWER;
    if (m->kind == MSG_ACCEPTED) heard.choices_due += heard.choices[m->accepted.ref % REFS];
}

static void look(void)
{
    for (size_t i = 0; i < w.sent_count; i++) {
        const struct msg *m = &w.sent[i].m;
        if (w.sent[i].peer.v == CLIENT) hear(m);
        if (m->kind == MSG_RESERVE) known[known_count++ % KEYS] = m->reserve.job.key;
        if (m->kind == MSG_PREFILL) known[known_count++ % KEYS] = m->prefill.job.key;
    }
    w.sent_count = w.read = 0;
    arena_reset(&w.arena);
    if (!id128_is_none(w.tokenizing)) jobs[jobs_count++] = w.tokenizing;
    w.tokenizing = ID128_NONE;
}

static struct token_info any_token(void)
{
    return (struct token_info){.token = below(1024), .logprob = NAN};
}

static void say_blocks(uint32_t node)
{
    uint64_t hashes[4];
    uint32_t what[4], count = below(5);
    for (uint32_t i = 0; i < count; i++) {
        hashes[i] = one_in(2) ? prefix_hash_block(0, prompt) : below(1000);
        what[i] = below(BLOCK_GONE + TIERS);
    }
    static uint64_t number;
    number = one_in(8) ? any_number() : number + 1;
    say(&w, node,
        (struct msg){.kind = MSG_BLOCKS,
                     .blocks = {number, one_in(6), hashes, what, count, count}});
}

static void say_heartbeat(uint32_t node)
{
    say(&w, node,
        (struct msg){.kind = MSG_HEARTBEAT,
                     .heartbeat = {.busy = one_in(2),
                                   .progress = any_number(),
                                   .live_count = below(4),
                                   .live_hash = any_number(),
                                   .load = {.blocks_total = any_number(),
                                            .blocks_free = any_number(),
                                            .running = any_number(),
                                            .waiting_tokens = any_number(),
                                            .step_us = any_number(),
                                            .token_ns = any_number(),
                                            .held_tokens = any_number()}}});
}

static void say_encoded(uint32_t node)
{
    float values[VALUES] = {-1, -2, 0.5f};
    uint32_t index = below(VALUES), count = below(VALUES - index + 1);
    say(&w, node,
        (struct msg){.kind = MSG_ENCODED,
                     .encoded = {.key = any_key(),
                                 .index = index,
                                 .total = one_in(4) ? VALUES + below(9) : index + count,
                                 .values = values,
                                 .values_count = count}});
}

static void lie(uint32_t node)
{
    static const enum err errors[] = {ERR_FULL,  ERR_AGAIN,   ERR_PEER,  ERR_NOT_FOUND,
                                      ERR_STALE, ERR_INVALID, ERR_DEVICE};
    struct token_info tokens[3] = {any_token(), any_token(), any_token()};
    struct job_key key = any_key();
    struct token_run run = {key, any_number() % 64, tokens, below(4)};
    static const char *const answers[] = {"{}", "[[", "{\"prefixes\":7,\"tenants\":[1]}", ""};
    const char *answer = answers[below(COUNT_OF(answers))];
    switch (below(14)) {
    case 0:
        say(&w, node,
            (struct msg){.kind = MSG_RESERVED,
                         .reserved = {key, one_in(3) ? ID128_NONE : (struct id128){1, below(9)},
                                      any_number() / 16 * 16}});
        break;
    case 1:
        say(&w, node,
            (struct msg){.kind = MSG_FIRST,
                         .first = {key, below(3), any_token(), any_number(), 1, 1}});
        break;
    case 2: say(&w, node, (struct msg){.kind = MSG_TOKENS, .tokens = {&run, 1}}); break;
    case 3:
        say(&w, node,
            (struct msg){.kind = MSG_FINISHED,
                         .finished = {.key = key,
                                      .finish = FINISH_STOP + below(3),
                                      .tokens_count = below(6),
                                      .cached_tokens = any_number()}});
        break;
    case 4:
    case 5:
        say(&w, node,
            (struct msg){.kind = MSG_FAILED,
                         .failed = {key, errors[below(COUNT_OF(errors))], one_in(2), "so it is"}});
        break;
    case 6:
        say(&w, node,
            (struct msg){.kind = MSG_PREFILLED,
                         .prefilled = {.key = key,
                                       .cached_tokens = any_number(),
                                       .transfer_tail_us = any_number(),
                                       .transfer_bytes = any_number(),
                                       .link = "tcp"}});
        break;
    case 7: say_blocks(node); break;
    case 8: say_heartbeat(node); break;
    case 9: say_encoded(node); break;
    case 10:
        if (one_in(3))
            say(&w, node,
                (struct msg){.kind = MSG_PIN,
                             .pin = {.name = one_in(4) ? "other" : "sys",
                                     .tenant = "",
                                     .remove = one_in(3),
                                     .tokens = prompt,
                                     .tokens_count = below(21)}});
        say(&w, node,
            (struct msg){.kind = MSG_PINNED,
                         .pinned = {one_in(4) ? "other" : "sys", "", any_number()}});
        break;
    case 11:
        say(&w, node,
            (struct msg){.kind = MSG_LIVE,
                         .live = {.answer = one_in(2), .keys = &key, .keys_count = below(2)}});
        break;
    case 12:
        if (one_in(8)) say(&w, node, (struct msg){.kind = MSG_DRAINED});
        break;
    case 13:
        say(&w, node,
            (struct msg){
                .kind = MSG_ANSWER,
                .answer = {below(6), one_in(4) ? ERR_FULL : OK, answer, (uint32_t)strlen(answer)}});
        break;
    }
    said++;
}

static void submit_by(uint32_t client, struct msg m)
{
    static uint64_t ref;
    m.submit.ref = ++ref;
    heard.choices[ref % REFS] = m.submit.choices;
    heard.submitted += client == CLIENT;
    say(&w, client, m);
}

static void give_as_text(struct msg *m)
{
    m->submit.tokens = NULL;
    m->submit.tokens_count = 0;
    m->submit.text = "x";
    m->submit.text_bytes = 1;
}

static void ask(void)
{
    struct msg m = submit_of(1 + below(5));
    m.submit.tenant = one_in(3) ? "t" : NULL;
    if (one_in(4)) m.submit.choices = 1 + below(3);
    if (one_in(4)) {
        m.submit.kind = below(JOB_KINDS);
        m.submit.tokens_max = 0;
        m.submit.choices = 1;
    }
    if (one_in(4)) give_as_text(&m);
    if (m.submit.kind == JOB_GENERATE && one_in(4)) m.submit.kv_window = 1 + below(20);
    submit_by(CLIENT, m);
}

/* A request that was heard of: one's own or another's, at any time of its life. */
static void ask_again(uint32_t client)
{
    struct job_key key = any_key();
    struct msg m = submit_of(1 + below(5));
    m.submit.id = key.request;
    m.submit.attempt = key.attempt + (one_in(4) ? any_number() : 1000);
    m.submit.choices = 1 + below(2);
    m.submit.received = prompt;
    m.submit.received_count = below(3);
    heard.again++;
    if (one_in(3)) give_as_text(&m);
    submit_by(client, m);
}

static void cancel(uint32_t client)
{
    struct job_key key = any_key();
    if (one_in(2)) key.choice = CHOICE_ALL;
    say(&w, client, (struct msg){.kind = MSG_CANCEL, .cancel = {key, "no more"}});
}

static void leave_and_return(uint32_t client)
{
    router_core_on_lifeline(w.core, w.now, (struct peer){client}, true);
    router_core_on_lifeline(w.core, w.now, (struct peer){client}, false);
    router_core_audit(w.core);
    hello(&w, client, ROLE_CLIENT, "other");
}

static void pin(uint32_t client)
{
    struct msg m = {.kind = MSG_PIN, .pin = {.ref = 1, .name = "sys", .tenant = ""}};
    m.pin.remove = one_in(3);
    if (one_in(2)) {
        m.pin.text = "x";
        m.pin.text_bytes = 1;
    } else {
        m.pin.tokens = prompt;
        m.pin.tokens_count = 20;
    }
    heard.asked += client == CLIENT;
    say(&w, client, m);
}

static void query(uint32_t client)
{
    static const char *const names[] = {"p0", "d0", "nobody"};
    char id[ID128_TEXT];
    struct msg m = {.kind = MSG_QUERY, .query = {.ref = 2, .query = below(QUERY_KV + 1)}};
    id128_print(any_key().request, id);
    m.query.argument = m.query.query == QUERY_STATUS    ? ""
                       : m.query.query == QUERY_EXPLAIN ? id
                                                        : names[below(3)];
    heard.asked += client == CLIENT;
    say(&w, client, m);
}

static void tell_ids(struct id128 job)
{
    router_core_on_tokens(w.core, w.now, job, prompt, 20, one_in(4) ? ERR_FORMAT : OK, "no text");
    router_core_audit(w.core);
}

static void lie_as_client(void)
{
    uint32_t client = one_in(2) ? CLIENT : OTHER;
    switch (below(8)) {
    case 0:
    case 1: ask_again(client); break;
    case 2: cancel(client); break;
    case 3: leave_and_return(OTHER); break;
    case 4:
        say(&w, client, (struct msg){.kind = MSG_FINISHED, .finished = {.key = any_key()}});
        break;
    case 5:
        tell_ids(one_in(4) || jobs_count == 0 ? any_key().request : jobs[below(jobs_count)]);
        break;
    case 6: pin(client); break;
    case 7: query(client); break;
    }
}

/* Any node that msg_decode lets through, in any role, under a name that may be taken. */
static void hello_of_any_kind(uint32_t node)
{
    static const char *const names[] = {"p0", "d0", "d1", "d2"};
    static const char *const addresses[] = {"tcp:127.0.0.1:1", "shm:ab", "", "nccl:x:y"};
    static const uint32_t eos[] = {99, 0, UINT32_MAX};
    bool usual = one_in(2);
    w.envelope[node] = (struct envelope){.from = node + 100 + below(2)};
    say(&w, node,
        (struct msg){
            .kind = MSG_HELLO,
            .hello = {.role = ROLE_PREFILL + below(2),
                      .name = names[below(4)],
                      .host = one_in(2) ? "h" : "",
                      .device = "",
                      .model = "",
                      .pid = below(8),
                      .model_fingerprint = {1, one_in(4) ? below(3) : 2},
                      .numerics_id = one_in(4) ? below(4) : 3,
                      .geometry = usual
                                      ? (struct kv_geometry){2, 1, 8, 16, KV_LAYOUT_CPU, DTYPE_F32}
                                      : (struct kv_geometry){below(2), below(4096), 4096, below(20),
                                                             below(3), DTYPE_NONE + below(3)},
                      .vocab = usual ? 1024 : any_number() % (1 << 24),
                      .context_max = usual ? 1000 : any_number() % (1 << 20),
                      .sequences_max = any_number(),
                      .window_tokens = any_number(),
                      .blocks_total = any_number(),
                      .eos = eos,
                      .eos_count = below(4),
                      .addresses = addresses + below(2),
                      .addresses_count = below(3),
                      .kv_window = one_in(2) ? 0 : any_number(),
                      .kv_ahead = any_number()}});
}

static void rejoin(uint32_t node)
{
    static const char *const names[] = {[P0] = "p0", [D0] = "d0", [D1] = "d1"};
    if (one_in(2)) {
        router_core_on_lifeline(w.core, w.now, (struct peer){node}, true);
        router_core_on_lifeline(w.core, w.now, (struct peer){node}, false);
    }
    if (one_in(3))
        hello_of_any_kind(node);
    else
        hello(&w, node, node == P0 ? ROLE_PREFILL : ROLE_DECODE, names[node]);
}

static void move(void)
{
    uint32_t roll = below(100);
    if (roll < 55)
        lie(any_node());
    else if (roll < 70)
        lie_as_client();
    else if (roll < 85)
        ask();
    else if (roll < 90)
        rejoin(any_node());
    else {
        w.now += below(700) * NS_PER_MS;
        router_core_on_timer(w.core, w.now);
        router_core_audit(w.core);
    }
    look();
}

/* All nodes die, and time passes. */
static void end_all(const struct router_config *config)
{
    struct router_counts c;
    for (uint32_t node = P0; node <= D1; node++) {
        router_core_on_lifeline(w.core, w.now, (struct peer){node}, true);
        router_core_on_lifeline(w.core, w.now, (struct peer){node}, false);
    }
    look();
    while (jobs_count > 0)
        tell_ids(jobs[--jobs_count]);
    look();
    w.now += config->queue_timeout_ns;
    for (int turn = 0; turn < 100; turn++) /* of the loop: a status is made in pieces */
        router_core_on_timer(w.core, w.now);
    router_core_audit(w.core);
    look();
    router_core_counts(w.core, &c);
    assert_int_equal(c.requests_live, 0);
    assert_int_equal(heard.answered, heard.submitted);
    assert_int_equal(heard.choices_ended, heard.choices_due);
    assert_int_equal(heard.told, heard.asked);
    heard.over += heard.choices_ended;
}

static void run_seed(uint64_t n)
{
    static int some_tokenizer; /* it is only asked whether there is one; the test answers for it */
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.tokenizer = (const struct tokenizer *)&some_tokenizer;
    seed = n;
    draws = known_count = jobs_count = 0;
    heard.asked = heard.told = 0;
    heard.submitted = heard.answered = heard.choices_due = heard.choices_ended = 0;
    config.history_max = 1 + below(8);
    config.prefix_index = one_in(2) ? 4096 : 0;
    config.backfill = below(3);
    config.session.dead_ns = 1000 * NS_PER_S;
    world_open_joined(&w, &config);
    hello(&w, OTHER, ROLE_CLIENT, "other");
    look();
    for (uint32_t i = 0; i < MOVES; i++)
        move();
    end_all(&config);
    world_close(&w);
}

static void whatever_nodes_and_clients_say_the_router_stays_whole(void **state)
{
    (void)state;
    seeds_run(SEEDS, run_seed);
    assert_true(said > MOVES / 2 && heard.again > 0 && heard.over > 0);
}

int main(void)
{
    log_setup(LOG_OFF, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(whatever_nodes_and_clients_say_the_router_stays_whole,
                                  seeds_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
