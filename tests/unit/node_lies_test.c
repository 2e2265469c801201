/* Routers that say anything about anything to a node: jobs of every kind and shape under few ids, from two routers
 * at once, with tickets and siblings that never were; cancels, resends, acknowledgements, pins, lists; in the words
 * of nodes and clients too. Links end as they like. The node may refuse or fail jobs for it; it stays whole, and
 * when its routers are gone all blocks are back. A failing seed is named and runs alone with TANDEM_SEED=N. */
#include "tests/unit/testing.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/rng.h"
#include "tests/unit/node_rig.h"
#include "tests/unit/seeds.h"

enum { SEEDS = 400, MOVES = 250, ROUTERS = 2, IDS = 5, CONTEXT = 200 };

static struct rig r;
static uint64_t seed, draws, told, finished_count;

static uint32_t below(uint32_t bound)
{
    return rng_below(rng_draw(seed, 8, draws++).word[0], bound);
}
static bool one_in(uint32_t n)
{
    return below(n) == 0;
}
static uint32_t any_number(void)
{
    static const uint32_t edges[] = {0, 1, 15, 16, 17, 32, CONTEXT - 1, CONTEXT, UINT32_MAX};
    return one_in(3) ? edges[below(COUNT_OF(edges))] : below(40);
}
static uint32_t any_router(void)
{
    return below(ROUTERS);
}

static struct job_key any_key(void)
{
    struct job_key key = {{1, 1 + below(IDS)}, below(3), one_in(20) ? UINT32_MAX : below(4)};
    if (one_in(30)) key.request = ID128_NONE;
    if (one_in(30)) key.choice = CHOICE_ALL;
    return key;
}

/* What msg_decode lets through; the node is to look at it. */
static struct job any_job(void)
{
    static const uint32_t odd[2] = {RIG_VOCAB, 3};
    uint32_t count = 1 + below(one_in(8) ? 2 * CONTEXT : 60);
    struct job job = rig_job(below(64), &(struct rig_prompt){.seed = below(3),
                                                             .family = below(2),
                                                             .shared_count = below(count),
                                                             .count = count,
                                                             .tokens_max = 1 + below(20)});
    job.key = any_key();
    job.priority = (int32_t)below(3) - 1;
    job.tenant_salt = below(2);
    job.tenant = below(3);
    job.tenant_weight = any_number();
    job.fair_lead = any_number();
    job.age_ms = any_number();
    job.preemptions = any_number();
    job.cached_only = one_in(8);
    if (one_in(4)) job.tokens_max = any_number();
    if (one_in(8)) job.tokens_min = any_number();
    if (one_in(6)) job.kind = below(JOB_KINDS);
    if (one_in(6)) job.kv_window = any_number();
    if (one_in(6)) job.kv_sinks = any_number();
    if (one_in(4)) {
        job.forwarded = one_in(8) ? odd : job.prompt;
        job.forwarded_count = job.forwarded == odd ? 2 : below(job.prompt_count + 1);
    }
    if (one_in(20)) job.prompt_count = 0;
    return job;
}

static struct msg any_prefill(void)
{
    struct job job = any_job();
    struct id128 ticket = one_in(3) ? ID128_NONE : (struct id128){7, below(8)};
    struct msg m = rig_prefill_msg(&job, ticket, one_in(2) ? 0 : any_number());
    if (one_in(8)) m.prefill.addresses_count = 0;
    return m;
}

static struct msg any_pin(void)
{
    static const char *const names[] = {"a", "b", "c"};
    struct job job = any_job();
    bool remove = one_in(3);
    return (struct msg){.kind = MSG_PIN,
                        .pin = {.name = names[below(3)],
                                .tenant = one_in(4) ? "t" : "",
                                .remove = remove,
                                .tokens = job.prompt,
                                .tokens_count = remove ? 0 : job.prompt_count,
                                .salt = below(2)}};
}

static struct msg any_message(void)
{
    struct job_key key = any_key();
    switch (below(14)) {
    case 0:
    case 1:
    case 2:
        return (struct msg){.kind = MSG_RESERVE,
                            .reserve = {any_job(), one_in(2), one_in(2), below(4)}};
    case 3:
    case 4:
    case 5: return any_prefill();
    case 6: return (struct msg){.kind = MSG_CANCEL, .cancel = {key, one_in(2) ? "" : "so"}};
    case 7: return (struct msg){.kind = MSG_RESEND, .resend = {key, any_number()}};
    case 8: return (struct msg){.kind = MSG_FINISHED_ACK, .finished_ack = {key}};
    case 9: return any_pin();
    case 10: return (struct msg){.kind = MSG_QUERY, .query = {1, 1 + below(QUERY_KV), ""}};
    case 11: return (struct msg){.kind = MSG_BLOCKS, .blocks = {.cleared = one_in(2)}};
    case 12: return (struct msg){.kind = MSG_FINISHED, .finished = {.key = key}};
    default: return (struct msg){.kind = MSG_HEARTBEAT, .heartbeat = {.live_count = below(3)}};
    }
}

static void lie(void)
{
    struct msg m = any_message();
    struct job_key key = any_key();
    if (one_in(20))
        m = (struct msg){.kind = MSG_LIVE,
                         .live = {.answer = one_in(2), .keys = &key, .keys_count = below(2)}};
    if (one_in(8)) m.envelope.remaining_ms = any_number();
    uint32_t router = any_router();
    rig_tell(&r, router, &m);
    if (one_in(6)) rig_tell(&r, one_in(2) ? router : any_router(), &m);
    told++;
}

static bool any_ticket(void)
{
    for (uint32_t i = 0; i < RIG_TICKETS_MAX; i++)
        if (r.ticket[i].live) return true;
    return false;
}

static void end_a_ticket(void)
{
    static const enum err errors[] = {ERR_PEER, ERR_TIMEOUT, ERR_FORMAT, ERR_NOT_FOUND};
    struct xfer_event e = {.kind = XFER_FAILED, .error = errors[below(4)], .text = "it broke"};
    if (r.config.role == ROLE_DECODE && one_in(2))
        e = (struct xfer_event){.kind = XFER_COMMITTED, .first = {.token = below(RIG_VOCAB)}};
    if (any_ticket()) rig_end_ticket(&r, &e);
}

static void work(void)
{
    switch (below(8)) {
    case 0: rig_step_layers(&r, below(RIG_LAYERS + 1)); break;
    case 1:
    case 2: rig_step(&r); break;
    case 3: rig_link(&r); break;
    case 4: rig_event(&r); break;
    case 5: end_a_ticket(); break;
    case 6: rig_tier_some(&r, one_in(4) ? below(4) : UINT32_MAX); break;
    case 7:
        node_core_on_engine(r.core, r.now_ns, &(struct engine_event){.step_id = 1u << 30});
        node_core_on_xfer(r.core, r.now_ns, &(struct xfer_event){.ticket = {5, 5}});
        break;
    }
    node_core_audit(r.core);
}

static void lose(void)
{
    uint32_t router = any_router();
    rig_lose(&r, router);
    rig_advance(&r, NS_PER_S / 2); /* it greets again */
    rig_join(&r, router);
}

static void move(void)
{
    uint32_t roll = below(100);
    if (roll < 45)
        lie();
    else if (roll < 93)
        work();
    else if (roll < 97)
        rig_advance(&r, below(1000) * NS_PER_MS);
    else if (roll < 99)
        lose();
    else {
        rig_reborn(&r);
        for (uint32_t i = 0; i < ROUTERS; i++)
            rig_join(&r, i);
    }
    finished_count += rig_said_count(&r, MSG_FINISHED);
    rig_forget(&r);
}

static void run_seed(uint64_t n)
{
    seed = n;
    draws = 0;
    struct rig_options o = {.role = below(2) ? ROLE_PREFILL : ROLE_DECODE,
                            .routers_count = ROUTERS,
                            .context_max = CONTEXT,
                            .steps_in_flight = 1 + below(3),
                            .chunk_tokens = 1 + below(60),
                            .sequences_max = 2 + below(8),
                            .blocks_count = 13 + below(30),
                            .window = one_in(4) ? 1 + below(60) : 0,
                            .no_prefix_cache = one_in(4)};
    o.tiers = !o.no_prefix_cache && one_in(2);
    rig_new(&r, &o);
    for (uint32_t i = 0; i < ROUTERS; i++)
        rig_join(&r, i);
    for (uint32_t i = 0; i < MOVES; i++)
        move();
    rig_free(&r); /* asserts it */
}

static void whatever_routers_say_the_node_stays_whole(void **state)
{
    (void)state;
    bool all = seeds_run(SEEDS, run_seed);
    assert_true(!all || (told > SEEDS * MOVES / 4 && finished_count > SEEDS));
}

int main(void)
{
    log_setup(LOG_OFF, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(whatever_routers_say_the_node_stays_whole, seeds_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
