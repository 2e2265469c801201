/* Prefixes over the whole cluster: a conversation's later turns go where their KV is, and no stream shows
 * whether they did. */
#include "tests/e2e/rig.h"

#include <string.h>

enum { TURNS = 3, TALKS = 3, TALK_MAX = 1024 };

/* A conversation: what is asked in each turn begins with all that was said before. */
struct talk {
    uint32_t tokens[TALK_MAX];
    uint32_t count;
};

static void say(struct talk *t, uint32_t seed, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        t->tokens[t->count++] = 3 + (seed * 7919 + i * 104729) % 500;
}

static json_t *index_of(struct rig *rig)
{
    json_t *status = cluster_status(rig->cluster);
    json_t *index = json_incref(json_object_get(json_object_get(status, "router"), "prefix_index"));
    json_decref(status);
    assert_non_null(index);
    return index;
}

static int64_t number_of(struct rig *rig, const char *name)
{
    json_t *index = index_of(rig);
    int64_t n = json_integer_value(json_object_get(index, name));
    json_decref(index);
    return n;
}

/* Nodes tell their news with their turns: a moment later the router has heard of all blocks. */
static int64_t entries_awaited;

static bool has_entries(struct cluster *c, json_t *status)
{
    (void)c;
    const json_t *index = json_object_get(json_object_get(status, "router"), "prefix_index");
    return json_integer_value(json_object_get(index, "entries")) >= entries_awaited;
}

static void await_entries(struct rig *rig, int64_t entries)
{
    entries_awaited = entries;
    cluster_await(rig->cluster, has_entries, "the router to hear of cached blocks");
}

/* All turns of the talks, each answered before the next; streams[turn][talk]. What D has not of a later turn
 * is less than half of what a P has not. */
static void hold_talks(struct rig *rig, bool indexed, struct stream *streams[TURNS][TALKS])
{
    struct talk talk[TALKS] = {0};
    for (uint32_t turn = 0; turn < TURNS; turn++)
        for (uint32_t i = 0; i < TALKS; i++) {
            say(&talk[i], i * 10 + turn, turn == 0 ? 480 : 8);
            struct ask ask = {.tokens = talk[i].tokens,
                              .tokens_count = talk[i].count,
                              .max_tokens = 48,
                              .temperature = 0.8f,
                              .seed = i + 1,
                              .ignore_eos = true};
            int64_t known = number_of(rig, "entries");
            struct stream *s = streams[turn][i] = streams_ask(rig->streams, &ask);
            stream_expect_done(s);
            const struct outcome *o = &s->choice[0];
            memcpy(talk[i].tokens + talk[i].count, o->tokens, o->tokens_count * sizeof *o->tokens);
            talk[i].count += o->tokens_count;
            if (indexed) await_entries(rig, known + 1);
        }
}

/* Each later turn is at the D of the turn before. How many of them D computed by itself, from what it had: all
 * whole blocks of what was said, but the last token's. */
static uint32_t expect_at_their_kv(struct stream *streams[TURNS][TALKS])
{
    uint32_t computed_there = 0;
    for (uint32_t i = 0; i < TALKS; i++)
        for (uint32_t turn = 1; turn < TURNS; turn++) {
            const struct stream *before = streams[turn - 1][i], *s = streams[turn][i];
            uint32_t said = before->prompt_tokens + before->choice[0].tokens_count;
            assert_string_equal(s->decode_node, before->decode_node);
            if (s->prefill_node[0]) continue;
            assert_true(s->cached_tokens + 16 >= said);
            computed_there++;
        }
    return computed_there;
}

static void later_turns_go_where_their_kv_is_and_streams_do_not_show_it(void **state)
{
    static const char *const modes[] = {"--disaggregate auto", "--disaggregate never"};
    struct rig *rig = *state;
    struct stream *with[2][TURNS][TALKS], *without[TURNS][TALKS];
    struct streams *kept[2];
    for (size_t m = 0; m < 2; m++) {
        rig_start(rig, 2, 2, modes[m], "");
        hold_talks(rig, true, with[m]);
        /* With `auto` a P computes what is new wherever D was slow just then. */
        if (m == 1)
            assert_int_equal(expect_at_their_kv(with[m]), TALKS * (TURNS - 1));
        else if (!SANITIZED)
            expect_at_their_kv(with[m]);
        assert_true(number_of(rig, "hits") >= TALKS * (TURNS - 1));
        assert_int_equal(number_of(rig, "false_hits"), 0);
        assert_true(number_of(rig, "bytes") > 0);
        kept[m] = rig->streams; /* they are looked at below */
        rig->streams = NULL;
        rig_finish(rig);
    }
    rig_start(rig, 2, 2, "--disaggregate auto --prefix-index 0", "");
    hold_talks(rig, false, without);
    assert_int_equal(number_of(rig, "lookups"), 0);
    for (uint32_t turn = 0; turn < TURNS; turn++)
        for (uint32_t i = 0; i < TALKS; i++)
            for (size_t m = 0; m < 2; m++)
                stream_expect_equal(with[m][turn][i], without[turn][i]);
    rig_finish(rig);
    for (size_t m = 0; m < 2; m++)
        streams_free(kept[m]);
}

/* Half of the prompts begin alike. None of the nodes gets all of them. */
static void a_common_prefix_does_not_draw_all_requests_to_one_node(void **state)
{
    enum { ASKS = 12 };
    struct rig *rig = *state;
    static struct talk talk[ASKS];
    struct stream *streams[ASKS];
    uint32_t on_first = 0;
    rig_start(rig, 1, 2, "--disaggregate always", "");
    memset(talk, 0, sizeof talk);
    for (uint32_t i = 0; i < ASKS; i++) {
        say(&talk[i], 99, 64);
        say(&talk[i], i, 16);
        struct ask ask = {.tokens = talk[i].tokens,
                          .tokens_count = talk[i].count,
                          .max_tokens = 60,
                          .seed = i,
                          .ignore_eos = true};
        if (i == 0) {
            streams_ask(rig->streams, &ask);
            await_entries(rig, 1);
        }
        streams[i] = streams_start(rig->streams, 0, &ask);
    }
    streams_run(rig->streams);
    for (uint32_t i = 0; i < ASKS; i++) {
        stream_expect_done(streams[i]);
        on_first += strcmp(streams[i]->decode_node, "d0") == 0;
    }
    assert_in_range(on_first, ASKS / 4, ASKS - ASKS / 4);
    assert_true(number_of(rig, "hits") > 0);
    rig_finish(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(later_turns_go_where_their_kv_is_and_streams_do_not_show_it),
        RIG_TEST(a_common_prefix_does_not_draw_all_requests_to_one_node),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
