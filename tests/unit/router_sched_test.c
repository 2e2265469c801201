#include "tests/unit/testing.h"

#include "router/sched.h"

#define NS_PER_MS 1000000ull

/* Prefill nodes P(outstanding, window, token_ns), decode nodes D(running, used, free). All have link 1;
 * PL, DL have the given ones. */
#define P(out, window, ns)                                                                         \
    {                                                                                              \
        .role = ROLE_PREFILL, .open = true, .outstanding_tokens = out, .window_tokens = window,    \
        .token_ns = ns, .sequences_max = 8, .blocks_total = 100, .links = {                        \
            1                                                                                      \
        }                                                                                          \
    }
#define D(run, used, left)                                                                         \
    {                                                                                              \
        .role = ROLE_DECODE, .open = true, .running = run, .sequences_max = 8,                     \
        .blocks_used = used, .blocks_free = left, .blocks_total = 100, .token_ns = 1000,           \
        .links = {                                                                                 \
            1                                                                                      \
        }                                                                                          \
    }
#define PL(out, ...)                                                                               \
    {                                                                                              \
        .role = ROLE_PREFILL, .open = true, .outstanding_tokens = out, .window_tokens = 100,       \
        .sequences_max = 8, .blocks_total = 100, .links = {                                        \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define DL(run, ...)                                                                               \
    {                                                                                              \
        .role = ROLE_DECODE, .open = true, .running = run, .sequences_max = 8, .blocks_free = 100, \
        .blocks_total = 100, .token_ns = 1000, .links = {                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

#define BIG(run, used, left)                                                                       \
    {                                                                                              \
        .role = ROLE_DECODE, .open = true, .running = run, .sequences_max = 8,                     \
        .blocks_used = used, .blocks_free = left, .blocks_total = 200, .token_ns = 1000,           \
        .links = {                                                                                 \
            1                                                                                      \
        }                                                                                          \
    }

struct row {
    const char *what;
    struct sched_node node[4];
    struct sched_job job;
    enum disaggregate disaggregate;
    enum sched_answer answer;
    struct sched_pair pair;
};

#define NONE SCHED_NODE_NONE

static const struct row rows[] = {
    {"a pool smaller than the prompt is no prefill node for it",
     {P(0, 100, 0), D(0, 0, 100)},
     {1700, 100, false, 100},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 1, false}},
    {"without a prefill node that could hold the prompt it is computed where it is decoded",
     {P(0, 100, 0), BIG(0, 0, 200)},
     {1700, 101, false, 101},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {NONE, 1, true}},
    {"a decode node whose pool is smaller than the whole request is passed over",
     {P(0, 100, 0), D(0, 0, 100), BIG(5, 100, 50)},
     {10, 1, false, 101},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 2, false}},
    {"a request larger than every pool",
     {P(0, 100, 0), D(0, 0, 100), D(0, 0, 100)},
     {10, 1, false, 101},
     DISAGGREGATE_ALWAYS,
     SCHED_NEVER,
     {0, NONE, false}},
    {"an empty cluster has no nodes",
     {{0}},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_NO_NODES,
     {NONE, NONE, false}},
    {"one of each",
     {P(0, 100, 0), D(0, 0, 100)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 1, false}},
    {"ties go to the lower index",
     {P(0, 100, 0), P(0, 100, 0), D(0, 0, 100), D(0, 0, 100)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 2, false}},
    {"the least work in time, not in tokens",
     {P(20, 200, 50), P(40, 200, 10), D(0, 0, 100)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {1, 2, false}},
    {"a closed window is passed over",
     {P(95, 100, 1), P(5, 100, 9), D(0, 0, 100)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {1, 2, false}},
    {"an idle node takes a prompt longer than its window",
     {P(0, 100, 1), D(0, 0, 100)},
     {5000, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 1, false}},
    {"all windows closed",
     {P(95, 100, 1), D(0, 0, 100)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_NO_PREFILL,
     {NONE, 1, false}},
    {"the emptier batch",
     {P(0, 100, 0), D(3, 0, 100), D(2, 90, 10)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 2, false}},
    {"at equal load the more memory",
     {P(0, 100, 0), D(2, 50, 50), D(2, 10, 90)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 2, false}},
    {"other routers' use counts",
     {P(0, 100, 0), D(0, 0, 3), D(5, 0, 50)},
     {99, 7, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 2, false}},
    {"no memory anywhere",
     {P(0, 100, 0), D(0, 95, 100), D(0, 0, 6)},
     {99, 7, false},
     DISAGGREGATE_ALWAYS,
     SCHED_NO_DECODE,
     {NONE, NONE, false}},
    {"exactly enough memory is enough",
     {P(0, 100, 0), D(0, 93, 100)},
     {99, 7, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 1, false}},
    {"a full batch",
     {P(0, 100, 0), D(8, 0, 100)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_NO_DECODE,
     {NONE, NONE, false}},
    {"prefill only needs no D",
     {P(0, 100, 0)},
     {10, 1, true},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, NONE, false}},
    {"no D for what must be decoded",
     {P(0, 100, 0)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_NO_NODES,
     {NONE, NONE, false}},
    {"without P, D does it all",
     {D(0, 0, 100)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {NONE, 0, true}},
    {"without P, D does what draws no token as P would",
     {D(3, 0, 100), D(1, 0, 100)},
     {10, 1, true, 1, 0, true},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, NONE, false}},
    {"but not while P is there",
     {D(0, 0, 100), P(90, 100, 0)},
     {20, 1, true, 1, 0, true},
     DISAGGREGATE_ALWAYS,
     SCHED_NO_PREFILL,
     {NONE, NONE, false}},
    {"what draws no token and fits nowhere is told so",
     {D(0, 0, 100), P(0, 100, 0)},
     {1700, 101, true, 101, 0, true},
     DISAGGREGATE_ALWAYS,
     SCHED_NEVER,
     {NONE, NONE, false}},
    {"without P, D does prefill-only jobs too",
     {D(0, 0, 100)},
     {10, 1, true},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {NONE, 0, true}},
    {"short prompts stay on an idle D",
     {P(0, 100, 0), D(0, 0, 100)},
     {10, 1, false},
     DISAGGREGATE_AUTO,
     SCHED_PICKED,
     {NONE, 1, true}},
    {"unless many streams would wait",
     {P(0, 100, 0), D(7, 0, 100)},
     {200, 1, false},
     DISAGGREGATE_AUTO,
     SCHED_NO_PREFILL,
     {NONE, 1, false}},
    {"long prompts never stay",
     {P(0, 9999, 0), D(0, 0, 100)},
     {1000, 1, false},
     DISAGGREGATE_AUTO,
     SCHED_PICKED,
     {0, 1, false}},
    {"of two busy prefill nodes the one with a link to the decode node",
     {PL(10, 1, 2), PL(20, 3, 4), DL(0, 5, 4)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {1, 2, false}},
    {"a decode node without a link to the free prefill node is passed over",
     {PL(95, 1), PL(0, 2), DL(0, 1), DL(3, 2)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {1, 3, false}},
    {"a decode node that no prefill node has a link to is passed over, too",
     {PL(0, 2), DL(0, 1), DL(3, 2)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {0, 2, false}},
    {"it prefills itself while they are busy",
     {PL(95, 2), DL(0, 1), DL(3, 2)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {NONE, 1, true}},
    {"where no prefill node has a link to a decode node it is as if there were none",
     {PL(0, 1), DL(0, 2)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_PICKED,
     {NONE, 1, true}},
    {"one whose prefill nodes are busy waits for them, whatever others have",
     {PL(95, 1), PL(0, 2), DL(0, 1)},
     {10, 1, false},
     DISAGGREGATE_ALWAYS,
     SCHED_NO_PREFILL,
     {NONE, 2, false}},
    {"never means never",
     {P(0, 100, 0), D(0, 0, 100)},
     {90, 1, false},
     DISAGGREGATE_NEVER,
     SCHED_PICKED,
     {NONE, 1, true}},
};

static void picks_as_the_table_says(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct row *r = &rows[i];
        const struct sched_node *nodes[4];
        uint32_t count = 0;
        for (; count < 4 && r->node[count].role != ROLE_NONE; count++)
            nodes[count] = &r->node[count];
        struct sched_node busy[2];
        if (r->answer ==
            SCHED_NO_PREFILL) { /* P's window must be closed for the row to be about it */
            busy[0] = *nodes[0];
            busy[0].outstanding_tokens = busy[0].window_tokens;
            nodes[0] = &busy[0];
        }
        struct sched_rules rules = {r->disaggregate, 1 * NS_PER_MS / 2};
        struct sched_pair pair;
        enum sched_answer a = sched_pick_pair(nodes, count, &r->job, &rules, 5, &pair);
        if (a != r->answer) fail_msg("%s: answer %d, wanted %d", r->what, a, r->answer);
        if (a != SCHED_PICKED) continue;
        if (pair.prefill != r->pair.prefill || pair.decode != r->pair.decode ||
            pair.local != r->pair.local)
            fail_msg("%s: picked (%u, %u, %d)", r->what, pair.prefill, pair.decode, pair.local);
    }
}

static void closed_nodes_are_never_picked(void **state)
{
    (void)state;
    struct sched_node p = P(0, 100, 0), d = D(0, 0, 100);
    const struct sched_node *nodes[] = {&p, &d};
    struct sched_job job = {10, 1, false};
    struct sched_rules rules = {DISAGGREGATE_ALWAYS, 0};
    struct sched_pair pair;
    d.open = false;
    assert_int_equal(sched_pick_pair(nodes, 2, &job, &rules, 5, &pair), SCHED_NO_NODES);
    d.open = true;
    p.open = false;
    assert_int_equal(sched_pick_pair(nodes, 2, &job, &rules, 5, &pair), SCHED_PICKED);
    assert_true(pair.local);
}

static void a_node_that_refused_is_asked_again_later(void **state)
{
    (void)state;
    struct sched_node p = P(0, 100, 0), d = D(0, 0, 100);
    const struct sched_node *nodes[] = {&p, &d};
    struct sched_job job = {10, 1, false};
    struct sched_rules rules = {DISAGGREGATE_ALWAYS, 0};
    struct sched_pair pair;
    d.full_until_ns = 100;
    assert_int_equal(sched_pick_pair(nodes, 2, &job, &rules, 99, &pair), SCHED_NO_DECODE);
    assert_int_equal(sched_pick_pair(nodes, 2, &job, &rules, 100, &pair), SCHED_PICKED);
}

#define MIB (1ull << 20)

/* Nodes 0 and 1 prefill, 2 and 3 decode, each on the host of its letter; a prompt of 100 tokens, 1 us each,
 * has 100 MiB of KV. */
static const struct {
    const char *what;
    uint64_t host[4];
    uint64_t mib_per_s[2][2];        /* from 0 and 1 to 2 and 3; 0: never tried */
    uint32_t outstanding[2], run[2]; /* of the two that prefill, of the two that decode */
    uint32_t free[2];                /* blocks */
    struct sched_pair pair;
} links[] = {
    {"nothing is known", {1, 1, 1, 1}, {{0, 0}, {0, 0}}, {0, 0}, {0, 0}, {9, 9}, {0, 2}},
    {"the fastest of all pairs",
     {1, 1, 1, 1},
     {{1000, 1000}, {1000, 1001}},
     {0, 0},
     {0, 0},
     {9, 9},
     {1, 3}},
    {"a slower pair's memory does not help it",
     {1, 1, 1, 1},
     {{100, 1000}, {100, 1000}},
     {0, 0},
     {0, 0},
     {99, 9},
     {0, 3}},
    {"equally fast ones are told apart by memory",
     {1, 1, 1, 1},
     {{1000, 1000}, {1000, 1000}},
     {0, 0},
     {0, 0},
     {9, 99},
     {0, 3}},
    {"what was never tried is tried",
     {1, 1, 1, 1},
     {{90000, 90000}, {90000, 0}},
     {0, 0},
     {0, 0},
     {9, 9},
     {1, 3}},
    {"of what was never tried, one host before two",
     {1, 2, 3, 1},
     {{0, 0}, {0, 0}},
     {0, 0},
     {0, 0},
     {9, 9},
     {0, 3}},
    {"one that was tried on its host comes after one that was not on another",
     {1, 2, 1, 2},
     {{90000, 0}, {0, 90000}},
     {0, 0},
     {0, 0},
     {9, 9},
     {1, 2}},
    {"time that a busy node takes counts against its link",
     {1, 1, 1, 1},
     {{10000, 10000}, {9000, 9000}}, /* 10.0 and 11.1 ms */
     {1200, 0},                      /* 1.2 ms */
     {0, 0},
     {9, 9},
     {1, 2}},
    {"and a busy node with a much faster link is waited for",
     {1, 1, 1, 1},
     {{10000, 10000}, {8000, 8000}}, /* 10.0 and 12.5 ms */
     {1200, 0},
     {0, 0},
     {9, 9},
     {0, 2}},
    {"an emptier batch outweighs a link",
     {1, 1, 1, 1},
     {{10000, 1}, {10000, 1}},
     {0, 0},
     {1, 0},
     {9, 9},
     {0, 3}},
};

static void of_equal_pairs_the_faster_wins(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++) {
        struct sched_node node[4] = {P(0, 2000, 1000), P(0, 2000, 1000), D(0, 0, 0), D(0, 0, 0)};
        struct sched_rate rates[2][4] = {0};
        const struct sched_node *nodes[4];
        struct sched_job job = {
            .tokens = 100, .blocks = 7, .blocks_full = 8, .kv_bytes = 100 * MIB};
        struct sched_rules rules = {DISAGGREGATE_ALWAYS, 0};
        struct sched_pair pair;
        for (int k = 0; k < 4; k++) {
            nodes[k] = &node[k];
            node[k].host = links[i].host[k];
        }
        for (int k = 0; k < 2; k++) {
            node[k].rates = rates[k];
            node[k].outstanding_tokens = links[i].outstanding[k];
            rates[k][2].bytes_per_s = links[i].mib_per_s[k][0] * MIB;
            rates[k][3].bytes_per_s = links[i].mib_per_s[k][1] * MIB;
            node[2 + k].running = links[i].run[k];
            node[2 + k].blocks_free = links[i].free[k];
        }
        assert_int_equal(sched_pick_pair(nodes, 4, &job, &rules, 5, &pair), SCHED_PICKED);
        if (pair.prefill != links[i].pair.prefill || pair.decode != links[i].pair.decode)
            fail_msg("%s: picked (%u, %u)", links[i].what, pair.prefill, pair.decode);
    }
}

/* Nodes 0 and 1 prefill, 2 and 3 decode, all at 1 us a token; a prompt of 1000 tokens, KV of which
 * travels at 1 token a microsecond once it was tried; a hand-over takes 500 us. */
static const struct {
    const char *what;
    uint32_t cached[4], outstanding[2], run[2];
    bool no_rate_of_decode; /* D's never computed a prompt, nor did P 0 */
    struct sched_pair pair;
    uint32_t load_us[4]; /* of what is cached, from tiers */
    bool no_rate;        /* nor did P 1 */
} prefixes[] = {
    {"a prompt that nobody knows goes as before",
     {0, 0, 0, 0},
     {0, 0},
     {1, 0},
     false,
     {0, 3, false}},
    {"to the prefill node that holds the most of it",
     {16, 512, 0, 0},
     {0, 0},
     {0, 0},
     false,
     {1, 2, false}},
    {"unless more than that waits there", {0, 512, 0, 0}, {0, 600}, {0, 0}, false, {0, 2, false}},
    {"and to it if less than that waits", {0, 512, 0, 0}, {0, 500}, {0, 0}, false, {1, 2, false}},
    {"what D holds need not travel", {0, 0, 0, 496}, {0, 0}, {0, 0}, false, {NONE, 3, true}},
    {"a later turn goes where its KV is and is computed there",
     {512, 512, 0, 992},
     {0, 0},
     {0, 3},
     false,
     {NONE, 3, true}},
    {"a D that never computed a prompt is taken to be like the others",
     {512, 512, 0, 992},
     {0, 0},
     {0, 3},
     true,
     {NONE, 3, true}},
    {"nor is a P that nobody knows of yet taken to need no time at all",
     {0, 512, 0, 0},
     {0, 0},
     {0, 0},
     true,
     {1, 2, false}},
    {"but not when its new part is long: then only what D has not travels",
     {160, 160, 160, 160},
     {0, 0},
     {0, 0},
     false,
     {0, 2, false}},
    {"a fuller batch outweighs a small prefix",
     {0, 0, 0, 16},
     {0, 0},
     {0, 7},
     false,
     {0, 2, false}},
    {"a long prefix outweighs some streams",
     {0, 0, 0, 960},
     {0, 0},
     {0, 2},
     false,
     {NONE, 3, true}},
    {"of two that hold it all the emptier one",
     {0, 0, 992, 992},
     {0, 0},
     {2, 1},
     false,
     {NONE, 3, true}},
    {"what lies in a tier is worth what reading it leaves",
     {0, 512, 0, 0},
     {0, 0},
     {0, 0},
     false,
     {1, 2, false},
     {0, 400, 0, 0}},
    {"and goes elsewhere when that is nothing",
     {0, 512, 0, 0},
     {0, 0},
     {0, 0},
     false,
     {0, 2, false},
     {0, 600, 0, 0}},
    {"a pool is better than a disk",
     {512, 512, 0, 0},
     {0, 0},
     {0, 0},
     false,
     {1, 2, false},
     {10, 0, 0, 0}},
    {"where no speed is known, reading is taken to be faster than computing",
     {0, 512, 0, 0},
     {0, 0},
     {0, 0},
     true,
     {1, 2, false},
     {0, 400, 0, 0},
     true},
    {"a D that would read longer than P computes leaves that to P",
     {0, 0, 0, 992},
     {0, 0},
     {0, 0},
     false,
     {0, 3, false},
     {0, 0, 0, 3000}},
    {"more than the whole prompt is not believed",
     {0, 0, 0, 100000},
     {0, 0},
     {0, 0},
     false,
     {NONE, 3, true}},
};

struct prefix_world {
    struct sched_node node[4];
    struct sched_rate rates[2][4];
    const struct sched_node *nodes[4];
};

static void prefix_world(struct prefix_world *w)
{
    *w = (struct prefix_world){
        .node = {P(0, 2000, 1000), P(0, 2000, 1000), D(0, 0, 100), D(0, 0, 100)}};
    for (int k = 0; k < 4; k++)
        w->nodes[k] = &w->node[k];
    for (int k = 0; k < 2; k++) {
        w->node[k].rates = w->rates[k];
        w->rates[k][2].bytes_per_s = w->rates[k][3].bytes_per_s = 1000 * MIB;
    }
}

static void pairs_are_chosen_by_what_nodes_hold(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        struct prefix_world w;
        prefix_world(&w);
        for (int k = 0; k < 2; k++) {
            w.node[k].outstanding_tokens = prefixes[i].outstanding[k];
            w.node[2 + k].running = prefixes[i].run[k];
            if (prefixes[i].no_rate_of_decode) w.node[2 + k].token_ns = w.node[0].token_ns = 0;
        }
        if (prefixes[i].no_rate) w.node[1].token_ns = 0;
        uint32_t load_ns[4];
        for (int k = 0; k < 4; k++)
            load_ns[k] = prefixes[i].load_us[k] * 1000;
        struct sched_job job = {.tokens = 1000,
                                .blocks = 63,
                                .blocks_full = 64,
                                .kv_bytes = MIB,
                                .cached = prefixes[i].cached,
                                .load_ns = load_ns};
        struct sched_rules rules = {DISAGGREGATE_AUTO, NS_PER_MS / 2};
        struct sched_pair pair;
        assert_int_equal(sched_pick_pair(w.nodes, 4, &job, &rules, 5, &pair), SCHED_PICKED);
        if (pair.prefill != prefixes[i].pair.prefill || pair.decode != prefixes[i].pair.decode ||
            pair.local != prefixes[i].pair.local)
            fail_msg("%s: picked (%u, %u, %d)", prefixes[i].what, pair.prefill, pair.decode,
                     pair.local);
    }
}

static void a_pair_that_was_never_tried_does_not_outdo_a_prefix(void **state)
{
    (void)state;
    static const uint32_t cached[4] = {0, 0, 512, 0};
    struct prefix_world w;
    prefix_world(&w);
    w.rates[0][3].bytes_per_s = w.rates[1][3].bytes_per_s = 0;
    struct sched_job job = {.tokens = 1000,
                            .blocks = 63,
                            .blocks_full = 64,
                            .kv_bytes = MIB,
                            .cached = cached,
                            .usual_bytes_per_s = 1000 * MIB};
    struct sched_rules rules = {DISAGGREGATE_ALWAYS, NS_PER_MS};
    struct sched_pair pair;
    assert_int_equal(sched_pick_pair(w.nodes, 4, &job, &rules, 5, &pair), SCHED_PICKED);
    assert_int_equal(pair.decode, 2);
    job.cached = NULL; /* with nothing to lose it is tried */
    assert_int_equal(sched_pick_pair(w.nodes, 4, &job, &rules, 5, &pair), SCHED_PICKED);
    assert_int_equal(pair.decode, 3);
}

static void always_and_never_hold_for_what_is_cached_too(void **state)
{
    (void)state;
    static const uint32_t cached[4] = {0, 0, 0, 992};
    struct prefix_world w;
    prefix_world(&w);
    struct sched_job job = {
        .tokens = 1000, .blocks = 63, .blocks_full = 64, .kv_bytes = MIB, .cached = cached};
    struct sched_rules always = {DISAGGREGATE_ALWAYS, NS_PER_MS}, never = {DISAGGREGATE_NEVER, 0};
    struct sched_pair pair;
    assert_int_equal(sched_pick_pair(w.nodes, 4, &job, &always, 5, &pair), SCHED_PICKED);
    assert_false(pair.local);
    assert_int_equal(pair.decode, 3);
    job.cached = NULL;
    assert_int_equal(sched_pick_pair(w.nodes, 4, &job, &never, 5, &pair), SCHED_PICKED);
    assert_true(pair.local);
}

static void what_is_cached_fits_into_a_nearly_full_window(void **state)
{
    (void)state;
    static const uint32_t cached[4] = {992, 0, 0, 0};
    struct prefix_world w;
    prefix_world(&w);
    w.node[0].outstanding_tokens = w.node[1].outstanding_tokens = 1990;
    struct sched_job job = {.tokens = 1000, .blocks = 63, .blocks_full = 64};
    struct sched_rules rules = {DISAGGREGATE_ALWAYS, 0};
    struct sched_pair pair;
    assert_int_equal(sched_pick_pair(w.nodes, 4, &job, &rules, 5, &pair), SCHED_NO_PREFILL);
    job.cached = cached;
    assert_int_equal(sched_pick_pair(w.nodes, 4, &job, &rules, 5, &pair), SCHED_PICKED);
    assert_int_equal(pair.prefill, 0);
}

/* All prompts share 512 tokens that one P and one D hold at first; whoever has had the prompt holds them
 * afterwards. Streams last long: each D keeps what it was given. */
static void a_hot_prefix_does_not_draw_all_load_to_one_node(void **state)
{
    (void)state;
    enum { JOBS = 14 };
    struct prefix_world w;
    prefix_world(&w);
    uint32_t cached[4] = {512, 0, 512, 0}, given[4] = {0};
    struct sched_job job = {
        .tokens = 1000, .blocks = 1, .blocks_full = 2, .kv_bytes = MIB, .cached = cached};
    struct sched_rules rules = {DISAGGREGATE_AUTO, NS_PER_MS / 2};
    for (int i = 0; i < JOBS; i++) {
        struct sched_pair pair;
        assert_int_equal(sched_pick_pair(w.nodes, 4, &job, &rules, 5, &pair), SCHED_PICKED);
        given[pair.decode]++;
        w.node[pair.decode].running++;
        cached[pair.decode] = 512;
        if (pair.local) continue;
        given[pair.prefill]++;
        cached[pair.prefill] = 512;
        w.node[pair.prefill].outstanding_tokens += sched_left(&job, pair.prefill);
        for (int k = 0; k < 2; k++) { /* in the meantime each computes 300 tokens */
            uint32_t *left = &w.node[k].outstanding_tokens;
            *left -= *left < 300 ? *left : 300;
        }
    }
    assert_true(given[0] >= 2 && given[1] >= 2);
    assert_true(given[2] >= JOBS / 2 - 1 && given[3] >= JOBS / 2 - 1);
}

/* A window of 100 tokens: 7 blocks, and the 64 tokens ahead; the prompt has 1000. */
static void a_prompt_with_a_window_fits_pools_far_smaller_than_it(void **state)
{
    static const struct {
        uint32_t blocks_p, blocks_d;
        enum sched_answer answer;
        bool local;
    } cases[] = {
        {12, 12, SCHED_PICKED, false}, {11, 12, SCHED_PICKED, true}, {12, 11, SCHED_NEVER, false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sched_node node[2] = {P(0, 2000, 1000), D(0, 0, 9)};
        const struct sched_node *nodes[2] = {&node[0], &node[1]};
        struct sched_job job = {.tokens = 1000,
                                .window = {100, 0},
                                .blocks = kv_window_blocks_kept((struct kv_window){100, 0}, 1000),
                                .blocks_full = 70};
        struct sched_pair pair;
        node[0].kv_ahead = node[1].kv_ahead = 64;
        node[0].blocks_total = cases[i].blocks_p;
        node[1].blocks_total = cases[i].blocks_d;
        enum sched_answer a = sched_pick_pair(nodes, 2, &job, &(struct sched_rules){0}, 5, &pair);
        assert_int_equal(a, cases[i].answer);
        if (a == SCHED_PICKED) assert_int_equal(pair.local, cases[i].local);
    }
}

static void a_rate_is_that_of_recent_transfers_and_large_ones_count_more(void **state)
{
    (void)state;
    struct sched_rate rate = {.bytes_per_s = 77}; /* taken for it until now */
    sched_rate_add(&rate, 1000, 1000);
    assert_int_equal(rate.bytes_per_s, 1000000000);
    sched_rate_add(&rate, 1, 1000); /* small, and kept waiting by other things */
    assert_in_range(rate.bytes_per_s, 400000000, 500000000);
    sched_rate_add(&rate, 1000000, 1000000);
    assert_in_range(rate.bytes_per_s, 990000000, 1000000000);
    for (int i = 0; i < 100; i++)
        sched_rate_add(&rate, 1000, 1000000);
    assert_in_range(rate.bytes_per_s, 1000000, 1100000);
    rate = (struct sched_rate){0};
    sched_rate_add(&rate, 1, UINT64_MAX / 16); /* never 0: it was tried */
    assert_int_equal(rate.bytes_per_s, 1);
    rate = (struct sched_rate){0};
    sched_rate_add(&rate, UINT64_MAX / 16, 0);
    assert_true(rate.bytes_per_s > 1000000000);
}

static void nodes_share_a_link_of_one_kind_and_for_shm_of_one_host(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b;
        bool same;
    } pairs[] = {
        {"tcp:10.0.0.1:5", "tcp:10.0.0.2:7", true}, {"shm:f00d-p0.1", "shm:f00d-d0.2", true},
        {"shm:f00d-p0.1", "shm:beef-p0.1", false},  {"shm:tcp-x", "tcp:x", false},
        {"tcp:10.0.0.1:5", "nccl:1", false},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        assert_int_equal(sched_link(pairs[i].a) == sched_link(pairs[i].b), pairs[i].same);
}

static void waiting_outweighs_any_priority(void **state)
{
    (void)state;
    assert_true(sched_queue_key(5, 0) < sched_queue_key(6, 0));
    assert_true(sched_queue_key(6, -1) < sched_queue_key(5, 0));
    assert_true(sched_queue_key(0, 1) < sched_queue_key(SCHED_LEVEL_NS + 1, 0));
    assert_true(sched_queue_key(0, INT32_MAX) <
                sched_queue_key(SCHED_LEVEL_NS * 2 * SCHED_PRIORITY_MAX + 1, INT32_MIN));
}

/* A percentage of few places is less than one. */
static void some_place_is_kept_however_few_there_are(void **state)
{
    (void)state;
    const struct {
        struct sched_node node;
        uint32_t keep_percent;
        bool room;
    } row[] = {
        {D(7, 0, 100), 0, true},   {D(7, 0, 100), 1, false}, {D(6, 0, 100), 12, true},
        {D(7, 0, 100), 12, false}, {D(0, 0, 100), 90, true}, {D(4, 0, 10), 9, true},
        {D(4, 0, 9), 9, false},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct sched_job job = {.tokens = 16,
                                .blocks = 1,
                                .blocks_full = 1,
                                .over_share = true,
                                .keep_percent = row[i].keep_percent};
        if (sched_has_room(&row[i].node, &job, 1) != row[i].room) fail_msg("row %zu", i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(some_place_is_kept_however_few_there_are),
        cmocka_unit_test(picks_as_the_table_says),
        cmocka_unit_test(closed_nodes_are_never_picked),
        cmocka_unit_test(a_node_that_refused_is_asked_again_later),
        cmocka_unit_test(of_equal_pairs_the_faster_wins),
        cmocka_unit_test(a_prompt_with_a_window_fits_pools_far_smaller_than_it),
        cmocka_unit_test(a_rate_is_that_of_recent_transfers_and_large_ones_count_more),
        cmocka_unit_test(nodes_share_a_link_of_one_kind_and_for_shm_of_one_host),
        cmocka_unit_test(waiting_outweighs_any_priority),
        cmocka_unit_test(pairs_are_chosen_by_what_nodes_hold),
        cmocka_unit_test(a_pair_that_was_never_tried_does_not_outdo_a_prefix),
        cmocka_unit_test(always_and_never_hold_for_what_is_cached_too),
        cmocka_unit_test(what_is_cached_fits_into_a_nearly_full_window),
        cmocka_unit_test(a_hot_prefix_does_not_draw_all_load_to_one_node),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
