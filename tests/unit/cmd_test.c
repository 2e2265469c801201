#include "tests/unit/cmd_rig.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "common/log.h"
#include "common/mem.h"
#include "tests/unit/fake_router.h"
#include "tests/unit/scratch.h"

#define NAME_OF_13 "a-long-tenant"
#define NAME_OF_65 NAME_OF_13 NAME_OF_13 NAME_OF_13 NAME_OF_13 NAME_OF_13

static void wrong_usage_is_said_and_ends_with_2(void **state)
{
    (void)state;
    static const struct {
        const char *args[10], *said;
    } rows[] = {
        {{NULL}, "usage: tandem VERB"},
        {{"frobnicate"}, "\"frobnicate\" is no verb"},
        {{"generate"}, "give a PROMPT, - for stdin, or --token-ids"},
        {{"generate", "--token-ids", "1,2", "text"}, "give a PROMPT"},
        {{"generate", "one", "two"}, ""},
        {{"generate", "--no-such-thing", "x"}, "no-such-thing"},
        {{"generate", "--temperature", "hot", "x"}, "temperature"},
        {{"generate", "--temperature", "101", "x"}, "100"},
        {{"generate", "--max-tokens", "-1", "x"}, "max-tokens"},
        {{"generate", "--seed", "9007199254740993", "x"},
         "9007199254740991"}, /* 2^53 + 1, no double */
        {{"score"}, "give a TEXT, - for stdin, --file FILE, or --token-ids"},
        {{"score", "--token-ids", "1", "x"}, "give a TEXT"},
        {{"score", "--lines", "x"}, "--lines takes --file FILE, or - for stdin"},
        {{"score", "--file", "/nowhere/at/all"}, "/nowhere/at/all"},
        {{"score", ""}, "the text is empty"},
        {{"score", "--tenant", NAME_OF_65, "x"}, "a tenant's name has at most 64 bytes"},
        {{"score", "--lines", "--file", "/tmp"}, "/tmp: Is a directory"},
        {{"warm", "--tenant", NAME_OF_65, "-"}, "a tenant's name has at most 64 bytes"},
        {{"warm", "/nowhere/at/all"}, "/nowhere/at/all"},
        {{"warm", "/tmp"}, "/tmp: Is a directory"},
        {{"embed", "--pool", "first", "x"}, "last|mean"},
        {{"generate", "--token-ids", "1,x,2"}, "\"x,2\" is no token id"},
        {{"generate", "--token-ids", "[1,2"}, "] is missing"},
        {{"generate", "--router", "nowhere", "x"}, "write tcp://HOST:PORT"},
        {{"generate", "--stop", "", "x"}, "stop"},
        {{"generate", "--logprobs", "2", "x"}, "--logprobs are printed with --json"},
        {{"generate", "--kv-sinks", "16", "x"}, "--kv-sinks 16 needs a --kv-window"},
        {{"generate", "--min-tokens", "9", "--max-tokens", "8", "x"},
         "--min-tokens 9 is more than --max-tokens 8"},
        {{"score", "--format", "jsonl", "x"}, "--format is of lines"},
        {{"help", "frobnicate"}, "\"frobnicate\" is no verb"},
        {{"status", "extra"}, ""},
        {{"explain"}, ""},
        {{"tokenize", "x"}, "--model DIR is missing"},
        {{"plan"}, "give --model DIR, or numbers"},
        {{"plan", "--layers=2", "--heads=32", "--hidden=100"}, "the size of a head is not known"},
        {{"plan", "--layers", "2", "--kv-heads", "2", "--head-dim", "64", "--memory", "1G"},
         "--memory needs --heads"},
        {{"plan", "--memory", "80GB"}, "K, M, G, T"},
        {{"plan", "--use", "1"}, "0.05 ... 0.99"},
        {{"up", "--decode", "0"}, "decode"},
        {{"up", "--link", "rdma"}, "auto|shm|tcp|nccl|ipc"},
        {{"up", "--log-level", "loud"}, "debug|info"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct result r = finish(start(rows[i].args, ""));
        if (r.code != 2 || !strstr(r.err, rows[i].said))
            fail_msg("row %zu: code %d, said: %s", i, r.code, r.err);
        assert_string_equal(r.out, "");
    }
}

static void without_a_router_the_code_is_3_and_the_help_names_what_to_do(void **state)
{
    (void)state;
    const char *const nobody[] = {"--router=tcp://127.0.0.1:1", "--patience=60ms"};
    struct result results[] = {RUN("generate", nobody[0], nobody[1], "x"),
                               RUN("generate", nobody[0], nobody[1], "--token-ids", "[1, 2]"),
                               RUN("score", nobody[0], nobody[1], "x"),
                               RUN("status", nobody[0], nobody[1], "--json"),
                               RUN("explain", nobody[0], nobody[1], "abc"),
                               RUN("drain", nobody[0], nobody[1])};
    for (size_t i = 0; i < sizeof results / sizeof results[0]; i++) {
        assert_int_equal(results[i].code, 3);
        assert_non_null(strstr(results[i].err, "tcp://127.0.0.1:1"));
        assert_non_null(strstr(results[i].err, "`tandem up` starts a cluster"));
        assert_string_equal(results[i].out, "");
    }
}

static void score_and_embed_print_what_a_text_is_worth(void **state)
{
    (void)state;
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    const char *address = fake_router_address(r);
    struct result x = RUN("score", "--router", address, "--tokens", "four");
    assert_int_equal(x.code, 0);
    assert_string_equal(x.out, "1 -0.125\n2 -0.25\n3 -0.375\n"
                               "perplexity 1.28403, log-probability -0.75 of 3 tokens\n");
    x = RUN("embed", "--router", address, "--pool", "mean", "--token-ids", "1,2,3");
    assert_int_equal(x.code, 0);
    assert_string_equal(x.out, "-0.125 -0.25 -0.375 -0.5\n");
    x = RUN("score", "--router", address, "--json", "--token-ids", "[4,5]");
    assert_int_equal(x.code, 0);
    json_t *o = json_loads(x.out, 0, NULL);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(o, "tokens"), 0)), 1);
    assert_true(json_real_value(json_object_get(o, "logprob")) == -0.125);
    assert_true(json_real_value(json_object_get(o, "perplexity")) > 1.13);
    json_decref(o);
    fake_router_free(r);
}

static void a_file_of_json_lines_is_not_taken_as_one_text_in_silence(void **state)
{
    (void)state;
    char dir[SCRATCH_BYTES], path[SCRATCH_BYTES + 8];
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    scratch_make(dir);
    scratch_write(dir, "x.jsonl", "{\"prompt\": \"four\"}\n", 19);
    snprintf(path, sizeof path, "%s/x.jsonl", dir);
    struct result x = RUN("score", "--router", fake_router_address(r), "--file", path);
    assert_int_equal(x.code, 0);
    assert_non_null(strstr(x.err, "x.jsonl is taken as one text: --lines takes each line"));
    x = RUN("score", "--router", fake_router_address(r), "--lines", "--file", path);
    assert_string_equal(x.err, "");
    assert_non_null(strstr(x.out, " of 3 tokens"));
    scratch_remove(dir);
    fake_router_free(r);
}

static void a_byte_order_mark_is_no_text(void **state)
{
    (void)state;
    static const char text[] = "\xEF\xBB\xBF"
                               "four";
    char dir[SCRATCH_BYTES], path[SCRATCH_BYTES + 8];
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    const char *address = fake_router_address(r);
    scratch_make(dir);
    scratch_write(dir, "text", text, sizeof text - 1);
    snprintf(path, sizeof path, "%s/text", dir);
    struct result x = RUN("score", "--router", address, "--file", path);
    assert_non_null(strstr(x.out, " of 3 tokens"));
    assert_string_equal(x.err, "");
    const char *const args[] = {"score", "--router", address, "-", NULL};
    x = finish(start(args, text));
    assert_non_null(strstr(x.out, " of 3 tokens"));
    x = RUN("score", "--router", address, text); /* an argument is what it is */
    assert_non_null(strstr(x.out, " of 6 tokens"));
    scratch_remove(dir);
    fake_router_free(r);
}

static void lines_go_out_together_and_come_back_in_order(void **state)
{
    (void)state;
    struct fake_script busy = {.reject = ERR_FULL, .rejects = 3}; /* come again */
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &busy);
    const char *const args[] = {"score", "--router", fake_router_address(r), "--json", "--lines",
                                "-",     NULL};
    struct result x = finish(start(args, "three\n\nfourth\r\nthe last"));
    assert_int_equal(x.code, 1);
    assert_non_null(strstr(x.err, "line 2: is empty"));
    json_t *list = json_loads(x.out, 0, NULL);
    static const int counts[] = {4, 0, 5, 7};
    assert_int_equal(json_array_size(list), 4);
    for (size_t i = 0; i < 4; i++) {
        const json_t *o = json_array_get(list, i), *error = json_object_get(o, "error");
        assert_int_equal(json_integer_value(json_object_get(o, "line")), i + 1);
        assert_int_equal(json_array_size(json_object_get(o, "logprobs")), counts[i]);
        if (counts[i]) continue;
        assert_string_equal(json_string_value(json_object_get(error, "code")), "invalid");
        assert_string_equal(json_string_value(json_object_get(error, "message")),
                            "is empty: there is nothing to score");
    }
    json_decref(list);
    fake_router_free(r);
}

static void a_lines_own_id_comes_back_with_its_result(void **state)
{
    (void)state;
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    const char *const args[] = {"score",    "--router", fake_router_address(r),
                                "--format", "jsonl",    "--json",
                                "--lines",  "-",        NULL};
    struct result x = finish(start(args, "{\"id\": \"a \\\"1\\\"\", \"prompt\": \"three\"}\n"
                                         "{\"id\": 7, \"tokens\": [1, 2, 3]}\n"
                                         "{\"id\": \"bad\", \"prompt\": 3}\n"
                                         "{\"prompt\": \"its own\"}\n"
                                         "{\"id\": [1], \"prompt\": \"three\"}\n"));
    assert_int_equal(x.code, 1);
    json_t *list = json_loads(x.out, 0, NULL);
    assert_int_equal(json_array_size(list), 5);
    const json_t *id[5], *request[5];
    for (size_t i = 0; i < 5; i++) {
        id[i] = json_object_get(json_array_get(list, i), "id");
        request[i] = json_object_get(json_array_get(list, i), "request");
    }
    assert_string_equal(json_string_value(id[0]), "a \"1\"");
    assert_int_equal(json_string_length(request[0]), 32);
    assert_int_equal(json_integer_value(id[1]), 7);
    assert_string_equal(json_string_value(id[2]), "bad");
    assert_int_equal(json_string_length(id[3]), 32);
    assert_null(request[3]);
    assert_non_null(strstr(x.err, "line 3 (id \"bad\"): give \"prompt\" as a string"));
    assert_non_null(strstr(x.err, "line 5: \"id\" is neither a string nor a number"));
    json_decref(list);
    fake_router_free(r);
}

/* So line k of what is printed is of line k of the file. */
static void a_line_without_a_result_leaves_an_empty_one(void **state)
{
    (void)state;
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    const char *const verbs[] = {"embed", "score"};
    for (size_t i = 0; i < 2; i++) {
        const char *const args[] = {verbs[i],  "--router", fake_router_address(r),
                                    "--lines", "-",        NULL};
        struct result x = finish(start(args, "\nthree\n\n\nfourth"));
        const char *line = x.out;
        assert_int_equal(x.code, 1);
        for (size_t n = 0; n < 5; n++, line = strchr(line, '\n') + 1)
            if ((*line == '\n') != (n != 1 && n != 4)) fail_msg("line %zu of:\n%s", n, x.out);
        assert_string_equal(line, "");
    }
    fake_router_free(r);
}

static void results_come_while_more_lines_are_waited_for(void **state)
{
    (void)state;
    char dir[SCRATCH_BYTES], path[SCRATCH_BYTES + 8], text[256];
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    scratch_make(dir);
    snprintf(path, sizeof path, "%s/lines", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    const char *const args[] = {"score", "--router", fake_router_address(r), "--lines", "--file",
                                path,    NULL};
    struct running g = start(args, "");
    int lines = open(path, O_WRONLY);
    for (int i = 0; i < 2; i++) {
        struct pollfd result = {g.out, POLLIN, 0};
        assert_int_equal(write(lines, "four\n", 5), 5);
        assert_int_equal(poll(&result, 1, 10000 * PATIENCE), 1);
        ssize_t n = read(g.out, text, sizeof text);
        assert_true(n > 0 && text[n - 1] == '\n');
    }
    close(lines);
    assert_int_equal(finish(g).code, 0);
    fake_router_free(r);
    scratch_remove(dir);
}

/* 12,000 tokens of -(i + 1) / 8 make a perplexity beyond all numbers. */
static void what_is_no_number_is_null_in_json(void **state)
{
    (void)state;
    char dir[SCRATCH_BYTES], path[SCRATCH_BYTES + 8], text[12001];
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    scratch_make(dir);
    snprintf(path, sizeof path, "%s/out", dir);
    fclose(fopen(path, "w"));
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    const char *const args[] = {"score", "--router", fake_router_address(r), "--json", "-", NULL};
    assert_int_equal(finish(start_into(path, args, text)).code, 0);
    json_t *o = json_load_file(path, 0, NULL);
    assert_true(json_is_null(json_object_get(o, "perplexity")));
    assert_true(json_number_value(json_object_get(o, "logprob")) < -1e6);
    json_decref(o);
    fake_router_free(r);
    scratch_remove(dir);
}

static void generate_streams_exactly_the_text(void **state)
{
    (void)state;
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    struct result x = RUN("generate", "--router", fake_router_address(r), "--max-tokens", "4",
                          "--seed", "9", "prompt");
    assert_int_equal(x.code, 0);
    assert_string_equal(x.out, "0:0 0:1 0:2 0:3 ");
    assert_string_equal(x.err, "");
    x = finish(start((const char *const[]){"generate", "--router", fake_router_address(r),
                                           "--max-tokens", "2", "-", NULL},
                     "from stdin"));
    assert_string_equal(x.out, "0:0 0:1 ");
    x = RUN("generate", "--router", fake_router_address(r), "--max-tokens", "1", "--n", "2", "x");
    assert_string_equal(x.out, "== 0 ==\n0:0 \n\n== 1 ==\n1:0 \n");
    fake_router_free(r);
}

static void generate_json_is_one_object_with_the_promised_names(void **state)
{
    (void)state;
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    struct result x = RUN("generate", "--router", fake_router_address(r), "--max-tokens", "3",
                          "--json", "--logprobs", "1", "prompt");
    assert_int_equal(x.code, 0);
    json_t *o = json_loads(x.out, 0, NULL);
    const char *id, *text, *finish_reason, *prefill, *decode;
    int first, prompt_tokens, completion_tokens, cached_tokens;
    double queue, prefill_ms, tail, ttft, decode_ms, total;
    assert_int_equal(
        json_unpack(
            o, "{s:s,s:s,s:[i,i,i],s:s,s:{s:i,s:i,s:i},s:{s:F,s:F,s:F,s:F,s:F,s:F},s:{s:s,s:s}}",
            "id", &id, "text", &text, "tokens", &first, &first, &first, "finish_reason",
            &finish_reason, "usage", "prompt_tokens", &prompt_tokens, "completion_tokens",
            &completion_tokens, "cached_tokens", &cached_tokens, "timing_ms", "queue", &queue,
            "prefill", &prefill_ms, "transfer_tail", &tail, "ttft", &ttft, "decode", &decode_ms,
            "total", &total, "nodes", "prefill", &prefill, "decode", &decode),
        0);
    assert_string_equal(text, "0:0 0:1 0:2 ");
    assert_string_equal(finish_reason, "length");
    assert_int_equal(first, fake_token(0, 2));
    assert_int_equal(completion_tokens, 3);
    assert_true(ttft == 1.5);
    assert_string_equal(decode, "d0");
    assert_null(json_object_get(o, "inexact"));
    json_decref(o);
    fake_router_free(r);
    r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){.inexact = true});
    x = RUN("generate", "--router", fake_router_address(r), "--max-tokens", "1", "--json", "x");
    o = json_loads(x.out, 0, NULL);
    assert_true(json_is_true(json_object_get(o, "inexact")));
    json_decref(o);
    fake_router_free(r);
}

static void what_is_approximate_is_said_in_json_and_in_the_summary(void **state)
{
    (void)state;
    struct fake_script script = {.kv_window = 64, .kv_sinks = 16};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    struct result x = RUN("generate", "--router", fake_router_address(r), "--max-tokens", "1",
                          "--kv-window", "64", "--kv-sinks", "16", "--json", "x");
    assert_non_null(strstr(x.out, "\"approximate\":{\"kv_window\":64,\"kv_sinks\":16}"));
    x = RUN("generate", "--router", fake_router_address(r), "--max-tokens", "1", "--kv-window",
            "64", "--kv-sinks", "16", "--summary", "x");
    assert_non_null(strstr(x.err, "approximate: of the KV only 16 first and 64 last tokens"));
    fake_router_free(r);
}

/* Of 320 bytes each. What is under way is reckoned with, so that no more go out than the budget has room for. */
static void warm_asks_behind_all_others_for_as_much_as_the_budget_has_room_for(void **state)
{
    (void)state;
    struct fake_script script = {.prompt_tokens = 32,
                                 .answer =
                                     "{\"router\":{\"kv\":{\"model\":\"m\",\"token_bytes\":10}}}"};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    const char *const args[] = {"warm",        "--json", "--router", fake_router_address(r),
                                "--in-flight", "8",      "--budget", "1500",
                                "--tenant",    "acme",   "-",        NULL};
    struct result x = finish(start(args, "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl\nm\n"));
    assert_int_equal(x.code, 0);
    assert_non_null(strstr(x.out, "\"stopped\":\"budget\""));
    assert_non_null(strstr(x.out, "\"bytes\":{\"new\":1600,"));
    fake_router_stop(r);
    const struct fake_seen *seen = fake_router_seen(r);
    assert_int_equal(seen->submits, 5);
    assert_int_equal(seen->tokens_max, 0);
    assert_int_equal(seen->priority, 1000); /* the lowest */
    assert_string_equal(seen->tenant, "acme");
    fake_router_free(r);
}

static void a_rejected_request_ends_with_1_and_says_why(void **state)
{
    (void)state;
    struct fake_script script = {.reject = ERR_FULL};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    struct result x = RUN("generate", "--router", fake_router_address(r), "x");
    assert_int_equal(x.code, 1);
    assert_string_equal(x.out, "");
    assert_non_null(strstr(x.err, "said the script"));
    x = RUN("generate", "--json", "--router", fake_router_address(r), "x");
    assert_int_equal(x.code, 1);
    json_t *o = json_loads(x.out, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(o, "finish_reason")), "error");
    json_decref(o);
    x = RUN("explain", "--router", fake_router_address(r), "abc");
    assert_int_equal(x.code, 1);
    assert_non_null(strstr(x.err, "no such request"));
    x = RUN("status", "--json", "--router", fake_router_address(r));
    assert_int_equal(x.code, 0);
    assert_string_equal(x.out, "{\"fake\":true}\n");
    x = RUN("unpin", "--json", "--router", fake_router_address(r), "rules");
    assert_int_equal(x.code, 0);
    assert_string_equal(x.out, "{\"fake\":true}\n");
    x = RUN("drain", "--json", "--router", fake_router_address(r), "d0");
    assert_int_equal(x.code, 0);
    assert_string_equal(x.err, "");
    json_t *drained = json_loads(x.out, 0, NULL);
    assert_true(json_is_object(drained));
    json_decref(drained);
    fake_router_free(r);
}

/* One after the other. */
static void expect_in_order(const char *out, const char *const *texts)
{
    for (; *texts; texts++) {
        const char *found = strstr(out, *texts);
        if (!found) fail_msg("no \"%s\" in\n%s", *texts, out);
        out = found + strlen(*texts);
    }
}

static json_t *node_row(const char *role, const char *name)
{
    return json_pack("{ss ss}", "role", role, "name", name);
}
static json_t *path_row(const char *to, const char *kind, const char *state, int failed_s,
                        const char *reason)
{
    return json_pack("{ss ss ss ss si ss}", "from", "p0", "to", to, "kind", kind, "state", state,
                     "failed_s", failed_s, "reason", reason);
}

/* However the router tells them; a broken link beside one that is better has not been fallen back from. */
static void status_shows_nodes_and_links_in_order(void **state)
{
    (void)state;
    json_t *answer = json_pack(
        "{s[ooo] s[oooo]}", "nodes", node_row("decode", "d10"), node_row("decode", "d2"),
        node_row("prefill", "p0"), "paths", path_row("d10", "tcp", "ready", -1, ""),
        path_row("d10", "shm", "broken", 3, "it tore"),
        path_row("d2", "nccl", "broken", 4, "too old"), path_row("d2", "ipc", "ready", -1, ""));
    char *text = json_dumps(answer, 0);
    struct fake_script script = {.answer = text};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    struct result x = RUN("status", "--router", fake_router_address(r));
    assert_int_equal(x.code, 0);
    expect_in_order(x.out,
                    (const char *const[]){"\np0 ", "\nd2 ", "\nd10 ", "\nlinks\n", " ipc ",
                                          " nccl ", "0.0  too old (4 s ago)\n", " shm ",
                                          "fell back to tcp: it tore (3 s ago)\n", " tcp ", NULL});
    fake_router_free(r);
    free(text);
    json_decref(answer);
}

static void pins_are_lines_and_none_is_said(void **state)
{
    (void)state;
    static const struct {
        const char *answer, *out, *json;
    } rows[] = {
        {"{\"pins\":[{\"name\":\"sys\",\"tenant\":\"a\",\"tokens\":33,\"blocks\":2,\"nodes\":"
         "[{\"node\":\"p0\",\"blocks\":2}]}]}",
         "sys               tenant a  33 tokens  2 blocks  p0 2\n", "[{\"name\":\"sys\""},
        {"{\"pins\":[]}", "nothing is pinned\n", "[]\n"},
        {"{}", "nothing is pinned\n", "[]\n"}, /* a router that knows no pins */
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct fake_script script = {.answer = rows[i].answer};
        struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
        struct result x = RUN("pins", "--router", fake_router_address(r));
        assert_int_equal(x.code, 0);
        assert_string_equal(x.out, rows[i].out);
        x = RUN("pins", "--json", "--router", fake_router_address(r));
        assert_int_equal(x.code, 0);
        assert_int_equal(strncmp(x.out, rows[i].json, strlen(rows[i].json)), 0);
        fake_router_free(r);
    }
}

/* 0 would be none. */
static void a_deadline_of_less_than_a_millisecond_is_one(void **state)
{
    (void)state;
    static const char *const verbs[] = {"generate", "score"};
    for (size_t i = 0; i < COUNT_OF(verbs); i++) {
        struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
        struct result x =
            RUN(verbs[i], "--router", fake_router_address(r), "--deadline", "1us", "four");
        fake_router_stop(r);
        assert_true(x.code == 1 || fake_router_seen(r)->deadline_ms == 1); /* or it came in time */
        fake_router_free(r);
    }
}

static void an_interrupt_cancels_the_request(void **state)
{
    (void)state;
    struct fake_script script = {.outputs_until_hold = 1};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    struct running g = start((const char *const[]){"generate", "--router", fake_router_address(r),
                                                   "--max-tokens", "50", "x", NULL},
                             "");
    char byte;
    assert_int_equal(read(g.out, &byte, 1), 1); /* it streams */
    assert_int_equal(kill(g.pid, SIGINT), 0);
    struct result x = finish(g);
    assert_int_equal(x.code, 1);
    assert_non_null(strstr(x.err, "cancelled"));
    fake_router_stop(r);
    assert_int_equal(fake_router_seen(r)->cancels, 1);
    fake_router_free(r);
}

/* A full disk: 1, and the reason; a stream that nobody can read any more is cancelled. */
static void what_cannot_be_written_to_stdout_is_a_failure(void **state)
{
    (void)state;
    struct fake_script script = {.outputs_until_hold = 1, .answer = "{\"fake\":true}"};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    const char *const router = fake_router_address(r);
    const char *const rows[][8] = {
        {"generate", "--router", router, "--max-tokens", "50", "x"},
        {"status", "--router", router, "--json"},
        {"status", "--help"},
        {"help"},
        {"tokenize", "--model", MODEL, "x"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct result x = finish(start_into("/dev/full", rows[i], ""));
        if (x.code != 1 || !strstr(x.err, "stdout could not be written"))
            fail_msg("row %zu: code %d, said: %s", i, x.code, x.err);
    }
    fake_router_stop(r);
    assert_int_equal(fake_router_seen(r)->cancels, 1);
    fake_router_free(r);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_usage_is_said_and_ends_with_2),
        cmocka_unit_test(without_a_router_the_code_is_3_and_the_help_names_what_to_do),
        cmocka_unit_test(score_and_embed_print_what_a_text_is_worth),
        cmocka_unit_test(a_file_of_json_lines_is_not_taken_as_one_text_in_silence),
        cmocka_unit_test(a_byte_order_mark_is_no_text),
        cmocka_unit_test(lines_go_out_together_and_come_back_in_order),
        cmocka_unit_test(a_lines_own_id_comes_back_with_its_result),
        cmocka_unit_test(a_line_without_a_result_leaves_an_empty_one),
        cmocka_unit_test(results_come_while_more_lines_are_waited_for),
        cmocka_unit_test(what_is_no_number_is_null_in_json),
        cmocka_unit_test(generate_streams_exactly_the_text),
        cmocka_unit_test(generate_json_is_one_object_with_the_promised_names),
        cmocka_unit_test(what_is_approximate_is_said_in_json_and_in_the_summary),
        cmocka_unit_test(warm_asks_behind_all_others_for_as_much_as_the_budget_has_room_for),
        cmocka_unit_test(a_rejected_request_ends_with_1_and_says_why),
        cmocka_unit_test(status_shows_nodes_and_links_in_order),
        cmocka_unit_test(pins_are_lines_and_none_is_said),
        cmocka_unit_test(a_deadline_of_less_than_a_millisecond_is_one),
        cmocka_unit_test(an_interrupt_cancels_the_request),
        cmocka_unit_test(what_cannot_be_written_to_stdout_is_a_failure),
    };
    log_setup(LOG_OFF, NULL);
    if (argc != 2) return 2;
    tandem = argv[1];
    return cmocka_run_group_tests_name("cmd", tests, NULL, NULL);
}
