/* Tokenizers against what the reference says: the vectors of the shared data, where they are there,
 * and the project's own fixture, which tests/golden/tokenizer_random.py made. */
#include "tests/unit/testing.h"

#include <glob.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "text/stream.h"
#include "text/tokenizer.h"

static const char *shared_path(char *path, size_t size, const char *name)
{
    const char *dir = getenv("TANDEM_SHARED_DATA");
    snprintf(path, size, "%s/%s", dir ? dir : TANDEM_SOURCE_DIR "/../shared/data", name);
    return path;
}

static char *read_file(const char *path, size_t *length)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *length = (size_t)ftell(f);
    rewind(f);
    char *bytes = malloc(*length + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *length, f), *length);
    bytes[*length] = '\0';
    fclose(f);
    return bytes;
}

static struct tokenizer *open_or_fail(const char *dir)
{
    struct tokenizer *t;
    if (tokenizer_open(&t, dir) != OK) fail_msg("%s", err_text());
    return t;
}

/* The numbers up to a line's or field's end; returns where the next one starts. */
static const char *take_ids(const char *line, uint32_t *ids, size_t *count)
{
    *count = 0;
    while (*line && *line != '\n' && *line != '\t') {
        char *end;
        ids[(*count)++] = (uint32_t)strtoul(line, &end, 10);
        for (line = end; *line == ' ';)
            line++;
    }
    return *line ? line + 1 : line;
}

static void check_encode(const struct tokenizer *t, unsigned flags, const char *text, size_t length,
                         const uint32_t *want, size_t want_count)
{
    uint32_t *ids;
    size_t count;
    assert_ok(tokenizer_encode(t, text, length, flags, &ids, &count));
    if (count != want_count || memcmp(ids, want, count * sizeof *ids) != 0)
        fail_msg("\"%.*s\": %zu ids differ from the reference's %zu", (int)length, text, count,
                 want_count);
    mem_free(ids);
}

static char *decode(const struct tokenizer *t, unsigned flags, const uint32_t *ids, size_t count,
                    size_t *length)
{
    char *text;
    assert_ok(tokenizer_decode(t, ids, count, flags, &text, length));
    return text;
}

/* The stream's pieces together are the decoded text. */
static void check_stream(const struct tokenizer *t, unsigned flags, const uint32_t *ids,
                         size_t count)
{
    size_t length, done = 0, n;
    char *whole = decode(t, flags, ids, count, &length);
    struct stream *s;
    const char *text;
    assert_ok(stream_new(&s, t, flags));
    for (size_t i = 0; i <= count; i++) {
        enum err e = i < count ? stream_push(s, ids[i], &text, &n) : stream_finish(s, &text, &n);
        assert_ok(e);
        assert_true(n <= length - done);
        assert_memory_equal(text, whole + done, n);
        done += n;
    }
    assert_int_equal(done, length);
    stream_free(s);
    mem_free(whole);
}

#define SEPARATOR "\n__ggml_vocab_test__\n"
#define LINE_IDS_MAX 4096

struct vectors {
    const char *model, *vectors;
};

static void gives_the_ids_of_the_shared_vectors(void **state)
{
    const struct vectors *v = *state;
    char path[512], name[128];
    size_t length, out_length;
    snprintf(name, sizeof name, "tokenizers/vectors/%s.inp", v->vectors);
    char *in = read_file(shared_path(path, sizeof path, name), &length);
    if (!in) {
        print_message("%s is not there\n", path);
        skip();
    }
    snprintf(name, sizeof name, "tokenizers/vectors/%s.out", v->vectors);
    char *out = read_file(shared_path(path, sizeof path, name), &out_length);
    assert_non_null(out);
    snprintf(name, sizeof name, "tokenizers/%s", v->model);
    struct tokenizer *t = open_or_fail(shared_path(path, sizeof path, name));
    uint32_t *want = calloc(LINE_IDS_MAX, sizeof *want);
    const char *line = out;
    for (const char *text = in; text;) {
        size_t count;
        const char *end = strstr(text, SEPARATOR);
        line = take_ids(line, want, &count);
        size_t n = end ? (size_t)(end - text) : strlen(text);
        check_encode(t, 0, text, n, want, count);
        check_stream(t, 0, want, count);
        text = end ? end + strlen(SEPARATOR) : NULL;
    }
    free(want);
    tokenizer_close(t);
    free(out);
    free(in);
}

/* ---- the fixture ---- */

struct field {
    const char *text;
    size_t length;
};

/* One of the five fields of a line; *line goes to the next. */
static struct field take_field(const char **line)
{
    size_t n = strcspn(*line, "\t\n");
    struct field f = {*line, n};
    *line += n;
    if (**line) (*line)++;
    return f;
}

static size_t unhex(struct field f, char *out)
{
    for (size_t i = 0; i < f.length / 2; i++) {
        char digits[3] = {f.text[2 * i], f.text[2 * i + 1], '\0'};
        out[i] = (char)strtoul(digits, NULL, 16);
    }
    return f.length / 2;
}

static void check_decode(const struct tokenizer *t, unsigned flags, const uint32_t *ids,
                         size_t count, struct field want, char *scratch)
{
    size_t length, want_length = unhex(want, scratch);
    char *text = decode(t, flags, ids, count, &length);
    if (length != want_length || memcmp(text, scratch, length) != 0)
        fail_msg("decoded \"%s\", the reference \"%.*s\"", text, (int)want_length, scratch);
    mem_free(text);
    check_stream(t, flags, ids, count);
}

static void check_case(const struct tokenizer *t, const char **line, uint32_t *ids, char *scratch)
{
    size_t count;
    struct field text = take_field(line), plain = take_field(line), special = take_field(line);
    struct field kept = take_field(line), skipped = take_field(line);
    if (text.length != 1) {
        size_t length = unhex(text, scratch);
        take_ids(special.text, ids, &count);
        check_encode(t, TOKENIZER_ADD_SPECIAL, scratch, length, ids, count);
        take_ids(plain.text, ids, &count);
        check_encode(t, 0, scratch, length, ids, count);
    }
    take_ids(plain.text, ids, &count);
    check_decode(t, 0, ids, count, kept, scratch);
    check_decode(t, TOKENIZER_SKIP_SPECIAL, ids, count, skipped, scratch);
}

static struct tokenizer *open_file(const char *path)
{
    size_t length;
    char *json = read_file(path, &length);
    assert_non_null(json);
    struct tokenizer *t;
    struct tokenizer_source source = {.name = path, .json = json, .json_length = length};
    if (tokenizer_open_bytes(&t, &source) != OK) fail_msg("%s", err_text());
    free(json);
    return t;
}

static void check_fixture(const char *path)
{
    char json[512];
    size_t length, cases_count = 0;
    char *cases = read_file(path, &length);
    assert_non_null(cases);
    snprintf(json, sizeof json, "%.*s.json", (int)(strlen(path) - strlen(".cases")), path);
    struct tokenizer *t = open_file(json);
    uint32_t *ids = calloc(length + 1, sizeof *ids);
    char *scratch = malloc(length + 1);
    assert_true(ids && scratch);
    for (const char *line = cases; *line; cases_count++) {
        const char *start = line;
        check_case(t, &line, ids, scratch);
        assert_true(line > start);
    }
    assert_true(cases_count > 0);
    free(scratch);
    free(ids);
    tokenizer_close(t);
    free(cases);
}

/* TANDEM_TOKENIZER_CASES: another directory that the same script filled. */
static void gives_what_the_reference_gives_for_every_shape(void **state)
{
    (void)state;
    char pattern[512];
    const char *dir = getenv("TANDEM_TOKENIZER_CASES");
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*.cases",
             dir ? dir : TANDEM_SOURCE_DIR "/tests/golden/tokenizers");
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        print_message("%s\n", found.gl_pathv[i]);
        check_fixture(found.gl_pathv[i]);
    }
    globfree(&found);
}

int main(void)
{
    static struct vectors v[] = {
        {"gpt2", "gpt-2"}, {"llama3", "llama-bpe"}, {"llama2", "llama-spm"},
        {"phi3", "phi-3"}, {"qwen2", "qwen2"},
    };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_what_the_reference_gives_for_every_shape),
        {"gpt2 gives the ids of the shared vectors", gives_the_ids_of_the_shared_vectors, NULL,
         NULL, &v[0]},
        {"llama3 gives the ids of the shared vectors", gives_the_ids_of_the_shared_vectors, NULL,
         NULL, &v[1]},
        {"llama2 gives the ids of the shared vectors", gives_the_ids_of_the_shared_vectors, NULL,
         NULL, &v[2]},
        {"phi3 gives the ids of the shared vectors", gives_the_ids_of_the_shared_vectors, NULL,
         NULL, &v[3]},
        {"qwen2 gives the ids of the shared vectors", gives_the_ids_of_the_shared_vectors, NULL,
         NULL, &v[4]},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
