#include "tests/unit/testing.h"

#include <string.h>
#include <unistd.h>

#include "common/geometry.h"
#include "common/mem.h"
#include "common/rng.h"
#include "replay/plot.h"
#include "replay/replay.h"

static char path[] = "/tmp/replay-test-XXXXXX";

static enum err read_text(struct trace *t, const char *text)
{
    strcpy(strrchr(path, '-'), "-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    enum err e = trace_read(t, path);
    unlink(path);
    return e;
}

/* Prompts of letters over a few, each letter a block; `more` tokens behind the last whole one. */
struct prompt {
    char name[12];
    uint32_t more;
};

static struct trace trace_of(const struct prompt *prompt, uint32_t count)
{
    struct trace t;
    struct buf text = {0};
    for (uint32_t i = 0; i < count; i++) {
        size_t blocks = strlen(prompt[i].name);
        buf_printf(&text, "{\"timestamp\": %u, \"tokens\": [", i);
        for (size_t k = 0; k < blocks * BLOCK_TOKENS + prompt[i].more; k++)
            buf_printf(&text, "%s%d", k ? "," : "",
                       k / BLOCK_TOKENS < blocks ? prompt[i].name[k / BLOCK_TOKENS] : 0);
        buf_printf(&text, "]}\n");
    }
    assert_ok(read_text(&t, text.data));
    buf_fini(&text);
    return t;
}

static void a_unit_is_its_tokens_and_all_before_them(void **state)
{
    (void)state;
    struct prompt prompt[] = {{"ab", 1}, {"ba", 0}, {"abb", 5}};
    struct trace t = trace_of(prompt, 3);
    uint32_t units[] = {0, 1, 2, 3, 0, 1, 4};
    assert_int_equal(t.units_count, 7);
    assert_memory_equal(t.unit, units, sizeof units);
    assert_int_equal(t.units_known, 5);
    assert_int_equal(t.unit_blocks, 1);
    assert_int_equal(t.tokens_count, 33 + 32 + 53);
    assert_int_equal(t.tokens_max, 53);
    assert_int_equal(t.request[2].unit_first, 4);
    assert_int_equal(t.request[2].at_ns, 2000000);
    trace_free(&t);
}

static void hashes_are_of_512_tokens(void **state)
{
    (void)state;
    struct trace t;
    assert_ok(read_text(&t, "{\"timestamp\": 5, \"input_length\": 600, \"hash_ids\": [7, 9]}\n\n"
                            "{\"timestamp\": 3, \"input_length\": 512, \"hash_ids\": [9]}\n"));
    assert_int_equal(t.unit_blocks, 32);
    assert_int_equal(t.units_known, 3); /* 9 behind 7 is not 9 at the front */
    assert_int_equal(t.request[1].at_ns, t.request[0].at_ns);
    trace_free(&t);
}

static void what_is_malformed_is_an_error_with_its_line(void **state)
{
    (void)state;
    struct {
        const char *text, *says;
    } row[] = {
        {"", "no prompts"},
        {"TIMESTAMP,ContextTokens,GeneratedTokens\n", ":1: a table of lengths"},
        {"{\"tokens\": [1]}\nnonsense\n", ":2: no JSON"},
        {"{\"tokens\": [1], \"tokens\": [2]}\n", ":1: no JSON: duplicate object key"},
        {"{\"tokens\": [1, -2]}\n", "tokens[1] is no token id"},
        {"{\"tokens\": [4294967296]}\n", "tokens[0] is no token id"},
        {"{\"tokens\": [1], \"hash_ids\": [1]}\n", "or both"},
        {"{\"input_length\": 3}\n", "neither"},
        {"\xEF\xBB\xBF{\"input_length\": 3}\n", "neither"},
        {"[1]\n", "neither"},
        {"{\"input_length\": 513, \"hash_ids\": [1]}\n", "1 hash_ids, where 513 tokens have 2"},
        {"{\"input_length\": -1, \"hash_ids\": []}\n", "input_length"},
        {"{\"input_length\": 1, \"hash_ids\": [\"a\"]}\n", "hash_ids[0]"},
        {"{\"tokens\": [1]}\n{\"input_length\": 1, \"hash_ids\": [1]}\n",
         ":2: hash_ids and tokens"},
        {"{\"tokens\": [1], \"timestamp\": \"now\"}\n", "timestamp"},
        {"{\"tokens\": [1], \"tenant\": 5}\n", "tenant"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct trace t;
        assert_int_equal(read_text(&t, row[i].text), ERR_FORMAT);
        if (!strstr(err_text(), row[i].says)) fail_msg("\"%s\": %s", row[i].text, err_text());
        assert_null(t.request);
    }
    struct trace t;
    assert_int_equal(trace_read(&t, "/nonexistent/trace"), ERR_NOT_FOUND);
}

static void a_run_counts_what_it_finds(void **state)
{
    (void)state;
    struct prompt prompt[] = {{"abc", 1}, {"abd", 1}, {"xyzuvw", 9}, {"abc", 1}};
    struct trace t = trace_of(prompt, 4);
    struct replay_result r;
    struct evict_config config = {EVICT_LRU, 0};
    assert_ok(replay_run(&t, &config, 32, NULL, &r));
    assert_int_equal(r.hit_blocks, 2 + 3);
    assert_int_equal(r.new_blocks, 4 + 2 + 7 + 1);
    assert_int_equal(r.evicted_blocks, 0);
    assert_int_equal(r.refused_count, 0);
    assert_ok(replay_run(&t, &config, 6, NULL, &r)); /* the third needs seven */
    assert_int_equal(r.refused_count, 1);
    assert_int_equal(r.hit_blocks, 2 + 3);
    assert_ok(replay_run(&t, &config, 7, NULL, &r));
    assert_int_equal(r.hit_blocks, 2);
    trace_free(&t);
}

static void time_is_that_of_the_trace(void **state)
{
    (void)state;
    struct trace t;
    struct replay_result r;
    assert_ok(read_text(&t, "{\"timestamp\": 0, \"input_length\": 513, \"hash_ids\": [1, 2]}\n"
                            "{\"timestamp\": 10, \"input_length\": 513, \"hash_ids\": [1, 2]}\n"
                            "{\"timestamp\": 31, \"input_length\": 513, \"hash_ids\": [1, 2]}\n"));
    assert_ok(replay_run(&t, &(struct evict_config){EVICT_TTL, 20000000}, 100, NULL, &r));
    assert_int_equal(r.hit_blocks, 32);
    assert_int_equal(r.expired_blocks, 32);
    trace_free(&t);
}

/* Of tenant "small" one prompt again and again, of "big" another one each time, seven for each of those. */
static struct trace two_tenants(bool named)
{
    struct trace t;
    struct buf text = {0};
    for (uint32_t i = 0; i < 80; i++) {
        bool small = i % 8 == 0;
        const char *tenant = !named  ? ""
                             : small ? ", \"tenant\": \"small\""
                                     : ", \"tenant\": \"big\"";
        buf_printf(&text, "{\"input_length\": 513, \"hash_ids\": [%u, 1]%s}\n", small ? 0 : i,
                   tenant);
    }
    assert_ok(read_text(&t, text.data));
    buf_fini(&text);
    return t;
}

static void tenants_have_no_units_in_common(void **state)
{
    (void)state;
    struct trace t;
    assert_ok(read_text(
        &t, "{\"tokens\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}\n"
            "{\"tokens\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16], \"tenant\": \"a\"}\n"
            "{\"tokens\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16], \"tenant\": \"b\"}\n"
            "{\"tokens\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16], \"tenant\": \"a\"}\n"));
    uint32_t units[] = {0, 1, 2, 1};
    assert_memory_equal(t.unit, units, sizeof units);
    assert_int_equal(t.tenants_count, 3);
    assert_string_equal(t.tenant[0].name, "");
    assert_string_equal(t.tenant[1].name, "a");
    assert_int_equal(t.tenant[1].requests_count, 2);
    assert_int_equal(t.tenant[1].tokens_count, 32);
    trace_free(&t);
}

static void a_tenant_with_a_share_keeps_what_it_uses(void **state)
{
    (void)state;
    const struct evict_config lru = {.policy = EVICT_LRU};
    struct replay_result r;
    struct replay_tenant tenants[3] = {0};
    struct trace t = two_tenants(false);
    assert_ok(replay_run(&t, &lru, 128, NULL, &r));
    assert_int_equal(r.hit_blocks, 0); /* seven prompts of others in between */
    trace_free(&t);
    t = two_tenants(true);
    assert_int_equal(t.tenants_count, 3);
    assert_ok(replay_run(&t, &lru, 128, tenants, &r));
    assert_int_equal(tenants[1].hit_blocks, 9 * 32);
    assert_int_equal(tenants[2].hit_blocks, 0);
    assert_int_equal(r.hit_blocks, 9 * 32);
    trace_free(&t);
}

static void weights_and_quotas_are_those_of_nodes(void **state)
{
    (void)state;
    struct replay_result r;
    struct replay_tenant tenants[3] = {0};
    struct trace t = two_tenants(true);
    tenants[2].weight = 1000;
    assert_ok(replay_run(&t, &(struct evict_config){.policy = EVICT_LRU}, 128, tenants, &r));
    assert_int_equal(tenants[1].hit_blocks, 0); /* it has most for its weight, always */
    struct evict_config quota = {.policy = EVICT_LRU, .tenant_percent_max = 40};
    assert_ok(replay_run(&t, &quota, 128, tenants, &r));
    assert_int_equal(tenants[1].hit_blocks, 9 * 32); /* the other one cannot take it all */
    trace_free(&t);
}

/* ---- MIN block by block, looking ahead each time ---- */

enum { PROMPTS = 40, KNOWN_MAX = 256 };

static uint32_t next_use(const struct trace *t, uint32_t after, uint32_t unit)
{
    for (uint32_t i = after + 1; i < t->requests_count; i++)
        for (uint32_t k = 0; k < t->request[i].units_count; k++)
            if (t->unit[t->request[i].unit_first + k] == unit) return i;
    return UINT32_MAX;
}

static uint64_t naive_min(const struct trace *t, uint32_t blocks_count)
{
    uint64_t hits = 0;
    bool cached[KNOWN_MAX] = {0};
    assert_true(t->units_known <= KNOWN_MAX && t->unit_blocks == 1);
    for (uint32_t i = 0; i < t->requests_count; i++) {
        for (uint32_t k = 0; k < t->request[i].units_count; k++) {
            uint32_t unit = t->unit[t->request[i].unit_first + k];
            hits += cached[unit];
            cached[unit] = true;
        }
        while (true) {
            uint32_t count = 0, last = 0, latest = 0;
            for (uint32_t u = 0; u < t->units_known; u++) {
                if (!cached[u]) continue;
                uint32_t next = next_use(t, i, u);
                count++;
                if (next >= latest) last = u, latest = next;
            }
            if (count <= blocks_count) break;
            cached[last] = false;
        }
    }
    return hits;
}

static struct trace random_trace(uint64_t seed)
{
    struct prompt prompt[PROMPTS];
    for (uint32_t i = 0; i < PROMPTS; i++) {
        struct rng_block r = rng_draw(seed, 3, i);
        uint32_t length = 1 + r.word[0] % 8;
        prompt[i] = (struct prompt){.more = 1 + r.word[1] % 15};
        for (uint32_t k = 0; k < length; k++)
            prompt[i].name[k] = (r.word[2] >> 3 * k) % 8 < 5 ? 'a' : 'b';
    }
    return trace_of(prompt, PROMPTS);
}

static void min_is_that_of_one_block_at_a_time(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct trace t = random_trace(seed);
        struct limit *limit;
        assert_ok(limit_new(&limit, &t));
        for (uint32_t blocks = 0; blocks <= 24; blocks += 3)
            assert_int_equal(limit_hits(limit, blocks), naive_min(&t, blocks));
        assert_int_equal(limit_hits(limit, LIMIT_INFINITE), naive_min(&t, KNOWN_MAX));
        limit_free(limit);
        trace_free(&t);
    }
}

static void no_policy_exceeds_min_and_min_no_endless_cache(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct trace t = random_trace(seed);
        struct limit *limit;
        assert_ok(limit_new(&limit, &t));
        uint64_t endless = limit_hits(limit, LIMIT_INFINITE), smaller = 0;
        for (uint32_t blocks = 9; blocks <= KNOWN_MAX; blocks += blocks / 3) {
            uint64_t most = limit_hits(limit, blocks);
            assert_true(most >= smaller && most <= endless);
            smaller = most;
            for (enum evict_policy p = 0; p < EVICT_POLICIES_COUNT; p++) {
                struct replay_result r;
                struct evict_config config = {p, 10000000};
                assert_ok(replay_run(&t, &config, blocks, NULL, &r));
                assert_true(r.hit_blocks <= most && r.refused_count == 0);
                bool all_fits = blocks > t.units_known && p != EVICT_TTL;
                if (all_fits) assert_int_equal(r.hit_blocks, endless);
            }
        }
        limit_free(limit);
        trace_free(&t);
    }
}

static void failed_allocations_are_errors(void **state)
{
    (void)state;
    struct trace t = random_trace(1);
    struct evict_config config = {EVICT_S3FIFO, 0};
    struct replay_result r;
    struct limit *limit;
    uint64_t before = mem_count();
    assert_ok(replay_run(&t, &config, 64, NULL, &r));
    uint64_t run_count = mem_count() - before;
    for (uint64_t n = 1; n <= run_count; n++) {
        mem_fail_at(n);
        assert_int_equal(replay_run(&t, &config, 64, NULL, &r), ERR_MEMORY);
    }
    mem_fail_at(0);
    before = mem_count();
    assert_ok(limit_new(&limit, &t));
    uint64_t limit_count = mem_count() - before;
    limit_free(limit);
    for (uint64_t n = 1; n <= limit_count; n++) {
        mem_fail_at(n);
        assert_int_equal(limit_new(&limit, &t), ERR_MEMORY);
        assert_null(limit);
    }
    mem_fail_at(0);
    trace_free(&t);
}

static void a_plot_escapes_its_text(void **state)
{
    (void)state;
    double x[] = {8}, y[] = {0.5};
    const char *names[] = {"8"};
    struct plot_line line[] = {{"a<b", y, false}, {"most", y, true}};
    struct plot plot = {"T & U", "x", "y", x, names, 1, 2, line};
    struct buf out = {0};
    plot_svg(&plot, &out);
    assert_ok(out.error);
    assert_non_null(strstr(out.data, ">T &amp; U</text>"));
    assert_non_null(strstr(out.data, ">a&lt;b</text>"));
    assert_null(strstr(out.data, "nan"));
    buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_unit_is_its_tokens_and_all_before_them),
        cmocka_unit_test(hashes_are_of_512_tokens),
        cmocka_unit_test(what_is_malformed_is_an_error_with_its_line),
        cmocka_unit_test(a_run_counts_what_it_finds),
        cmocka_unit_test(time_is_that_of_the_trace),
        cmocka_unit_test(tenants_have_no_units_in_common),
        cmocka_unit_test(a_tenant_with_a_share_keeps_what_it_uses),
        cmocka_unit_test(weights_and_quotas_are_those_of_nodes),
        cmocka_unit_test(min_is_that_of_one_block_at_a_time),
        cmocka_unit_test(no_policy_exceeds_min_and_min_no_endless_cache),
        cmocka_unit_test(failed_allocations_are_errors),
        cmocka_unit_test(a_plot_escapes_its_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
