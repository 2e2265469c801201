/* kv_xfer as a node sees it, between two objects of one process, over every link. */
#include "tests/unit/xfer_nodes.h"

static const char *const link_name[] = {"shm", "tcp"};

struct pair {
    struct node p, d;
};

static void pair_start(struct pair *w, struct xfer_options p, struct xfer_options d)
{
    node_start(&w->p, p);
    node_start(&w->d, d);
}

static void pair_stop(struct pair *w)
{
    node_stop(&w->p);
    node_stop(&w->d);
}

static void each_link(void (*body)(struct pair *, const char *))
{
    for (size_t i = 0; i < 2; i++) {
        struct pair w;
        pair_start(&w, node_options(), node_options());
        body(&w, link_name[i]);
        pair_stop(&w);
    }
}

static void run(struct pair *w, const struct travel *t, uint32_t chunk_tokens)
{
    travel_expect(t, &w->d);
    travel_open(t, &w->p, xfer_addresses(w->d.x));
    travel_push_all(t, &w->p, chunk_tokens);
    travel_commit(t, &w->p, 42);
}

static void assert_done(struct pair *w, const struct travel *t)
{
    struct xfer_event at_d = node_wait(&w->d, t->ticket), at_p = node_wait(&w->p, t->ticket);
    assert_event(&at_d, XFER_COMMITTED, OK);
    assert_event(&at_p, XFER_DONE, OK);
    assert_int_equal(at_d.first.token, 42);
    assert_int_equal(at_d.first.tops_count, 1);
    assert_int_equal(at_d.first.top[0].token, 42);
    assert_int_equal(at_d.finish, FINISH_LENGTH);
    assert_true(at_d.first.logprob == -0.5f);
    if (t->link) assert_string_equal(at_d.link, t->link);
    assert_string_equal(at_p.link, at_d.link);
    assert_true(at_p.bytes >= t->blocks_count * kv_block_bytes(&w->p.geometry));
    assert_true(at_d.began_ns > 0 && at_d.began_ns <= at_d.ended_ns);
    assert_arrived(t, &w->p, &w->d);
}

static void every_block_arrives(struct pair *w, const char *link)
{
    struct {
        uint32_t first, end, chunk;
    } row[] = {{0, 16, 16},   {0, 1, 16},      {0, 100, 32},
               {64, 100, 16}, {480, 497, 512}, {0, 1024, 64}};
    for (uint32_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct travel t = travel_new(i + 1, row[i].first, row[i].end, link);
        for (uint32_t b = 0; b < NODE_BLOCKS; b++) {
            node_fill(&w->p, b, i);
            node_fill(&w->d, b, 1000 + i);
        }
        struct node before = {.geometry = w->d.geometry};
        size_t bytes = NODE_BLOCKS * kv_block_bytes(&w->d.geometry);
        before.kv = mem_new(bytes);
        memcpy(before.kv, w->d.kv, bytes);
        run(w, &t, row[i].chunk);
        assert_done(w, &t);
        for (uint32_t b = 0; b < t.blocks_count; b++) /* and nothing but its blocks was written */
            memcpy(node_layer(&before, t.to[b], 0), node_layer(&w->d, t.to[b], 0),
                   kv_block_bytes(&w->d.geometry));
        assert_memory_equal(before.kv, w->d.kv, bytes);
        mem_free(before.kv);
    }
    struct xfer_stats stats;
    xfer_stats(w->p.x, &stats);
    assert_int_equal(stats.tickets_live, 0);
}

static void whole_and_partial_prompts_and_deltas_arrive(void **state)
{
    (void)state;
    each_link(every_block_arrives);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_and_partial_prompts_and_deltas_arrive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
