#include "tests/unit/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/settings.h"

struct values {
    bool verbose, cached;
    int64_t threads;
    uint64_t pool_bytes, heartbeat_ns;
    double share;
    const char *model;
    int link;
    struct setting_list stop;
};
struct other_values {
    int64_t seed;
};

static const struct setting rows[] = {
    SETTING_BOOL(struct values, verbose, "verbose", "false", "say more"),
    SETTING_BOOL(struct values, cached, "cached", "true", "keep it"),
    SETTING_INT(struct values, threads, "threads", "2", 1, 64, "worker threads"),
    SETTING_SIZE(struct values, pool_bytes, "pool-bytes", "64M", 4096, 1e12, "room for KV"),
    SETTING_DURATION(struct values, heartbeat_ns, "heartbeat", "200ms", NS_PER_MS, 10 * NS_PER_S,
                     "time between heartbeats"),
    SETTING_DOUBLE(struct values, share, "share", "0.5", 0, 1, "part of it"),
    SETTING_STRING(struct values, model, "model", "", "model folder"),
    SETTING_CHOICE(struct values, link, "link", "auto|shm|tcp", "auto", "how KV travels"),
    SETTING_LIST(struct values, stop, "stop", "stop string"),
};
static const struct setting other_rows[] = {
    SETTING_INT(struct other_values, seed, "seed", NULL, 0, INT64_MAX, "random seed"),
};

static struct values v;
static struct other_values other;
static const struct settings_table tables[] = {{rows, COUNT_OF(rows), &v},
                                               {other_rows, COUNT_OF(other_rows), &other}};
static const struct settings_program program = {.name = "tandem-prefill",
                                                .args = "[TEXT]",
                                                .about = "About it.",
                                                .section = "prefill",
                                                .args_max = 1,
                                                .tables = tables,
                                                .tables_count = 2};

/* Reads the blank-separated arguments. */
static enum err read_words(struct settings *s, const char *words)
{
    static char line[512];
    char *argv[32] = {(char[]){"tandem-prefill"}};
    int argc = 1;
    snprintf(line, sizeof line, "%s", words);
    for (char *w = strtok(line, " "); w; w = strtok(NULL, " "))
        argv[argc++] = w;
    return settings_read(s, &program, argc, argv);
}

static char config_path[64];

static void write_config(const char *text)
{
    assert_ok(file_write_whole(config_path, text, strlen(text)));
}

static void defaults_hold_when_nothing_is_given(void **state)
{
    (void)state;
    struct settings s;
    other.seed = -1;
    assert_ok(read_words(&s, ""));
    assert_false(v.verbose);
    assert_int_equal(v.threads, 2);
    assert_true(v.pool_bytes == 64 << 20);
    assert_true(v.heartbeat_ns == 200 * NS_PER_MS);
    assert_true(v.share == 0.5);
    assert_string_equal(v.model, "");
    assert_int_equal(v.link, 0);
    assert_int_equal(v.stop.count, 0);
    assert_int_equal(other.seed, 0);
    assert_int_equal(settings_source(&s, "seed"), SETTING_BY_DEFAULT);
    settings_fini(&s);
}

static void arguments_are_read_in_every_form_and_type(void **state)
{
    (void)state;
    struct settings s;
    assert_ok(read_words(&s, "--verbose --threads 3 --pool-bytes=8.5K hello --heartbeat 1.5s "
                             "--share=1e-1 --model m --link shm --stop a --stop b,c --seed 9"));
    assert_true(v.pool_bytes == 8704);
    assert_true(v.heartbeat_ns == 1500 * NS_PER_MS);
    assert_true(v.share == 0.1);
    assert_string_equal(v.model, "m");
    assert_int_equal(v.link, 1);
    assert_int_equal(v.stop.count, 2);
    assert_string_equal(v.stop.item[1], "b,c");
    assert_int_equal(other.seed, 9);
    assert_int_equal(settings_source(&s, "seed"), SETTING_BY_ARGUMENT);
    assert_int_equal(s.args_count, 1);
    assert_string_equal(s.args[0], "hello");
    settings_fini(&s);
    assert_ok(read_words(&s, "--pool-bytes 80GiB"));
    assert_true(v.pool_bytes == (uint64_t)80 << 30);
    settings_fini(&s);
    assert_ok(read_words(&s, "--verbose=on --no-verbose -- --threads"));
    assert_false(v.verbose);
    assert_string_equal(s.args[0], "--threads");
    settings_fini(&s);
    assert_ok(read_words(&s, "-"));
    assert_string_equal(s.args[0], "-");
    settings_fini(&s);
}

static void what_is_wrong_is_named_with_what_is_allowed(void **state)
{
    (void)state;
    static const struct {
        const char *words, *said, *allowed;
    } cases[] = {
        {"--threads 0", "--threads: \"0\" is out of range", "1 ... 64 (default 2)"},
        {"--threads 65", "--threads", "1 ... 64"},
        {"--threads 99999999999999999999", "--threads", "1 ... 64"},
        {"--threads 2x", "is no whole number", "1 ... 64"},
        {"--threads=", "--threads: \"\"", "1 ... 64"},
        {"--threads", "--threads: its value is missing", ""},
        {"--pool-bytes 4095", "--pool-bytes", "4K ..."},
        {"--pool-bytes 64Q", "K, M, G, T", ""},
        {"--pool-bytes 8192iB", "K, M, G, T", ""},
        {"--pool-bytes 64GB", "\"64GB\" has a unit that is none of K, M, G, T", ""},
        {"--heartbeat 5siB", "needs a unit", ""},
        {"--pool-bytes -1M", "out of range", ""},
        {"--heartbeat 5", "needs a unit", "1ms ... 10s"},
        {"--heartbeat 11s", "out of range", "1ms ... 10s"},
        {"--heartbeat s", "is no duration", ""},
        {"--share 1.01", "out of range", "0 ... 1"},
        {"--share nan", "is no number", "0 ... 1"},
        {"--share 0x1", "is no number", "0 ... 1"},
        {"--share 1e999", "is no number", ""},
        {"--link udp", "\"udp\" is none of the choices", "auto|shm|tcp"},
        {"--link auto|shm", "none of the choices", ""},
        {"--verbose=maybe", "neither true nor false", ""},
        {"--no-threads", "--no-threads: no such setting", ""},
        {"--treads 3", "--treads: no such setting", "--help"},
        {"-t 3", "-t: no such setting", ""},
        {"one two", "\"two\" is too much", ""},
        {"--config", "--config: its value is missing", ""},
        {"--config /nonexistent/file", "/nonexistent/file: No such file", ""},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct settings s;
        assert_int_not_equal(read_words(&s, cases[i].words), OK);
        if (!strstr(err_text(), cases[i].said) || !strstr(err_text(), cases[i].allowed))
            fail_msg("%s: said \"%s\"", cases[i].words, err_text());
    }
}

static void a_list_has_a_limit(void **state)
{
    (void)state;
    static char name[] = "--stop", value[] = "x";
    char *argv[2 * SETTING_LIST_MAX + 3] = {value};
    struct settings s;
    for (int i = 0; i <= SETTING_LIST_MAX; i++) {
        argv[1 + 2 * i] = name;
        argv[2 + 2 * i] = value;
    }
    assert_ok(settings_read(&s, &program, 1 + 2 * SETTING_LIST_MAX, argv));
    assert_int_equal(v.stop.count, SETTING_LIST_MAX);
    settings_fini(&s);
    assert_int_equal(settings_read(&s, &program, 3 + 2 * SETTING_LIST_MAX, argv), ERR_INVALID);
}

static void the_file_yields_to_the_environment_and_that_to_arguments(void **state)
{
    (void)state;
    struct settings s;
    char words[128];
    write_config("threads: 3\nshare: 0.25\nmodel: from-file\nstop: [a, 'b: c']\n"
                 "decode:\n  threads: 64\n  whatever: 1\nprefill:\n  link: tcp\n  threads: 5\n");
    setenv("TANDEM_SHARE", "0.75", 1);
    setenv("TANDEM_MODEL", "from-environment", 1);
    setenv("TANDEM_STOP", "e", 1);
    snprintf(words, sizeof words, "--model from-argument --config %s", config_path);
    assert_ok(read_words(&s, words));
    assert_int_equal(v.threads, 5);
    assert_int_equal(v.link, 2);
    assert_true(v.share == 0.75);
    assert_string_equal(v.model, "from-argument");
    assert_int_equal(v.stop.count, 1);
    assert_string_equal(v.stop.item[0], "e");
    assert_int_equal(settings_source(&s, "threads"), SETTING_BY_FILE);
    assert_int_equal(settings_source(&s, "share"), SETTING_BY_ENVIRONMENT);
    settings_fini(&s);
    setenv("TANDEM_SHARE", "2", 1);
    assert_int_equal(read_words(&s, ""), ERR_INVALID);
    assert_non_null(strstr(err_text(), "TANDEM_SHARE: \"2\" is out of range"));
    unsetenv("TANDEM_SHARE");
    unsetenv("TANDEM_MODEL");
    unsetenv("TANDEM_STOP");
    assert_int_equal(setenv("TANDEM_CONFIG", config_path, 1), 0);
    assert_ok(read_words(&s, ""));
    assert_int_equal(v.stop.count, 2);
    assert_string_equal(v.stop.item[1], "b: c");
    settings_fini(&s);
    unsetenv("TANDEM_CONFIG");
}

static void a_file_is_for_all_programs_and_a_section_counts_more(void **state)
{
    (void)state;
    struct settings_program of_verb = program;
    struct settings s;
    char words[128];
    of_verb.section = "tandem";
    write_config("prefill:\n  threads: 5\nthreads: 3\n"
                 "max-tokens: 7\ndead-after: 1s\n" /* of tandem generate; of the others */
                 "tandem:\n  max-tokens: 8\n  share: 0.25\n");
    snprintf(words, sizeof words, "--config %s", config_path);
    assert_ok(read_words(&s, words));
    assert_int_equal(v.threads, 5);
    assert_true(v.share == 0.5);
    settings_fini(&s);
    char *argv[] = {(char[]){"tandem"}, (char[]){"--config"}, config_path};
    assert_ok(settings_read(&s, &of_verb, COUNT_OF(argv), argv));
    assert_int_equal(v.threads, 3);
    assert_true(v.share == 0.25);
    settings_fini(&s);
    write_config("tandem:\n  max-token: 8\n");
    assert_int_equal(settings_read(&s, &of_verb, COUNT_OF(argv), argv), ERR_INVALID);
    assert_non_null(strstr(err_text(), ":2: max-token: no such setting"));
}

static void a_file_may_begin_with_a_byte_order_mark(void **state)
{
    (void)state;
    struct settings s;
    char words[128];
    write_config("\xEF\xBB\xBFthreads: 5\n");
    snprintf(words, sizeof words, "--config %s", config_path);
    assert_ok(read_words(&s, words));
    assert_int_equal(v.threads, 5);
    settings_fini(&s);
}

static void a_bad_file_is_an_error_with_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"threads: 3\nthread: 4\n", ":2: thread: no such setting"},
        {"prefill:\n  max-tokens: 3\n", ":2: max-tokens: no such setting"},
        {"threads: 3\nlink: tcp\nthreads: 3\n", ":3: threads: it stands twice"},
        {"decode:\n  threads: 3\nprefill: {}\ndecode: {}\n", ":4: decode: it stands twice"},
        {"threads: 65\n", ":1: threads: \"65\" is out of range"},
        {"threads: [1, 2]\n", ":1: threads: one value"},
        {"threads: {a: b}\n", ":1: threads: one value"},
        {"stop: [[a]]\n", ":1: stop: a list of texts"},
        {"prefill:\n  prefill:\n    threads: 1\n", ":2: prefill: no such setting"},
        {"gpu:\n  threads: 1\n", ":1: gpu: no such setting"},
        {"- a\n- b\n", "not a mapping"},
        {"just text", "not a mapping"},
        {"[a]: b\n", "a setting's name is expected"},
        {"threads: 'open\n", ":2:"},
        {"\tthreads: 1\n", ":1:"},
        {"a: *nowhere\n", "undefined alias"},
    };
    char words[128];
    snprintf(words, sizeof words, "--config=%s", config_path);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct settings s;
        write_config(cases[i].text);
        assert_int_not_equal(read_words(&s, words), OK);
        if (!strstr(err_text(), cases[i].said)) fail_msg("%s: %s", cases[i].text, err_text());
    }
    struct settings s;
    write_config("# nothing but a comment\n");
    assert_ok(read_words(&s, words));
    settings_fini(&s);
}

static void help_and_markdown_name_every_setting(void **state)
{
    (void)state;
    struct settings s;
    struct buf help = {0}, markdown = {0};
    assert_ok(read_words(&s, "--nonsense --help"));
    assert_true(s.help);
    settings_fini(&s);
    settings_help(&program, &help);
    settings_markdown(&program, &markdown);
    for (size_t t = 0; t < COUNT_OF(tables); t++) {
        for (size_t r = 0; r < tables[t].rows_count; r++) {
            assert_non_null(strstr(help.data, tables[t].rows[r].name));
            assert_non_null(strstr(markdown.data, tables[t].rows[r].name));
        }
    }
    assert_non_null(strstr(help.data, "(1 ... 64; default 2)"));
    assert_non_null(strstr(help.data, "  --[no-]cached ")); /* how it is switched off */
    assert_non_null(
        strstr(markdown.data, "| `link` | auto\\|shm\\|tcp | `auto` | how KV travels |"));
    buf_fini(&help);
    buf_fini(&markdown);
}

static void no_allocation_may_fail_unseen(void **state)
{
    (void)state;
    struct settings s;
    for (uint64_t n = 1; n <= 3; n++) {
        mem_fail_at(n);
        enum err e = read_words(&s, "--model m");
        mem_fail_at(0);
        if (e == OK)
            settings_fini(&s);
        else
            assert_int_equal(e, ERR_MEMORY);
        assert_true(n > 1 || e == ERR_MEMORY);
    }
}

static int make_config(void **state)
{
    (void)state;
    strcpy(config_path, "/tmp/tandem-settings-XXXXXX");
    int fd = mkstemp(config_path);
    return fd < 0 ? -1 : close(fd);
}
static int remove_config(void **state)
{
    (void)state;
    return unlink(config_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_hold_when_nothing_is_given),
        cmocka_unit_test(arguments_are_read_in_every_form_and_type),
        cmocka_unit_test(what_is_wrong_is_named_with_what_is_allowed),
        cmocka_unit_test(a_list_has_a_limit),
        cmocka_unit_test(the_file_yields_to_the_environment_and_that_to_arguments),
        cmocka_unit_test(a_file_is_for_all_programs_and_a_section_counts_more),
        cmocka_unit_test(a_file_may_begin_with_a_byte_order_mark),
        cmocka_unit_test(a_bad_file_is_an_error_with_its_line),
        cmocka_unit_test(help_and_markdown_name_every_setting),
        cmocka_unit_test(no_allocation_may_fail_unseen),
    };
    return cmocka_run_group_tests(tests, make_config, remove_config);
}
