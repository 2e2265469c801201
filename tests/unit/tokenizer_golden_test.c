/* Tokenizers against what the reference says: the vectors of the shared data, where they are there,
 * and the project's own fixture, which tests/golden/tokenizer_random.py made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

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

/* The numbers of a line; returns the start of the next line. */
static const char *take_ids(const char *line, uint32_t *ids, size_t *count)
{
    *count = 0;
    while (*line && *line != '\n') {
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
    assert_int_equal(tokenizer_encode(t, text, length, flags, &ids, &count), OK);
    if (count != want_count || memcmp(ids, want, count * sizeof *ids) != 0)
        fail_msg("\"%.*s\": %zu ids differ from the reference's %zu", (int)length, text, count,
                 want_count);
    mem_free(ids);
}

static char *decode(const struct tokenizer *t, unsigned flags, const uint32_t *ids, size_t count,
                    size_t *length)
{
    char *text;
    assert_int_equal(tokenizer_decode(t, ids, count, flags, &text, length), OK);
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
    assert_int_equal(stream_new(&s, t, flags), OK);
    for (size_t i = 0; i <= count; i++) {
        enum err e = i < count ? stream_push(s, ids[i], &text, &n) : stream_finish(s, &text, &n);
        assert_int_equal(e, OK);
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

int main(void)
{
    static struct vectors v[] = {
        {"gpt2", "gpt-2"}, {"llama3", "llama-bpe"}, {"llama2", "llama-spm"},
        {"phi3", "phi-3"}, {"qwen2", "qwen2"},
    };
    const struct CMUnitTest tests[] = {
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
