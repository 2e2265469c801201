/* Tokenizers from memory: what opens and what is refused, added tokens, limits, speed of growth. */
#include "tests/unit/testing.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "tests/unit/scratch.h"
#include "text/tokenizer.h"

static enum err open_json(struct tokenizer **t, const char *json)
{
    struct tokenizer_source s = {.name = "t.json", .json = json, .json_length = strlen(json)};
    return tokenizer_open_bytes(t, &s);
}

#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\" \":3,\"<x>\":4},\"merges\":[\"a b\"]"
#define MODEL "\"model\":{\"type\":\"BPE\"," VOCAB "}"
#define TOKEN(id, content, flags)                                                                  \
    "{\"id\":" #id ",\"content\":\"" content "\",\"special\":true," flags "}"
#define NO_FLAGS "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false"

/* The ids, each followed by a blank. */
static void check_ids(const struct tokenizer *t, const char *text, unsigned flags, const char *want)
{
    uint32_t *ids;
    size_t count, length = 0;
    char got[256] = "";
    if (tokenizer_encode(t, text, strlen(text), flags, &ids, &count) != OK)
        fail_msg("\"%s\": %s", text, err_text());
    for (size_t i = 0; i < count; i++)
        length += (size_t)snprintf(got + length, sizeof got - length, "%u ", ids[i]);
    mem_free(ids);
    assert_string_equal(got, want);
}

static void what_is_wrong_in_a_file_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        enum err e;
        const char *says;
    } rows[] = {
        {"", ERR_FORMAT, "t.json: line 1"},
        {"{", ERR_FORMAT, "t.json: line 1"},
        {"[]", ERR_FORMAT, "t.json: an object is wanted, an array"},
        {"{\"a\":\"\xff\"}", ERR_FORMAT, "t.json: line 1"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", ERR_FORMAT,
         "t.json: line 1: duplicate object key"},
        {"{}", ERR_FORMAT, "t.json: model: an object is wanted, nothing"},
        {"\xEF\xBB\xBF{}", ERR_FORMAT, "t.json: model: an object is wanted, nothing"},
        {"{\"version\":\"2.0\"," MODEL "}", ERR_UNSUPPORTED, "version \"2.0\""},
        {"{\"model\":{\"type\":\"Unigram\"}}", ERR_UNSUPPORTED, "t.json: model: type \"Unigram\""},
        {"{\"model\":{\"type\":7}}", ERR_FORMAT, "model.type: a string is wanted, an integer"},
        {"{\"model\":{}}", ERR_FORMAT, "model.vocab: an object is wanted"},
        {"{\"model\":{\"vocab\":{},\"merges\":[]}}", ERR_FORMAT,
         "t.json: model.vocab: a token is wanted, none is there"},
        {"{\"model\":{\"vocab\":{\"a\":0}}}", ERR_FORMAT, "model.merges: an array is wanted"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"c\":0},\"merges\":[]}}", ERR_FORMAT,
         "t.json: model.vocab: \"a\" and \"c\" have one id, 0"},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", ERR_FORMAT,
         "token \"a\": t.json: model.vocab: -1 is not in 0 to 4194303"},
        {"{\"model\":{\"vocab\":{\"a\":4194304},\"merges\":[]}}", ERR_FORMAT, "token \"a\""},
        {"{\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", ERR_FORMAT, "an integer is wanted"},
        {"{\"model\":{\"vocab\":{\"a\":99999999999999999999},\"merges\":[]}}", ERR_FORMAT,
         "t.json"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", ERR_FORMAT,
         "t.json: model.merges[0]: two tokens"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[7]}}", ERR_FORMAT, "model.merges[0]"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", ERR_FORMAT, "model.merges[0]"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a c\"]}}", ERR_FORMAT,
         "token \"c\" is not in the vocabulary"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", ERR_FORMAT,
         "token \"aa\" is not in the vocabulary"},
        {"{\"model\":{\"dropout\":0.1," VOCAB "}}", ERR_UNSUPPORTED, "dropout"},
        {"{\"model\":{\"fuse_unk\":1," VOCAB "}}", ERR_FORMAT, "model.fuse_unk"},
        {"{\"added_tokens\":{}," MODEL "}", ERR_FORMAT, "added_tokens: an array"},
        {"{\"added_tokens\":[{\"id\":1}]," MODEL "}", ERR_FORMAT, "added_tokens[0].content"},
        {"{\"added_tokens\":[{\"id\":-1,\"content\":\"a\"}]," MODEL "}", ERR_FORMAT,
         "added_tokens[0].id"},
        {"{\"normalizer\":{\"type\":\"Precompiled\"}," MODEL "}", ERR_UNSUPPORTED,
         "t.json: normalizer: normalizer \"Precompiled\""},
        {"{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},3]}," MODEL
         "}",
         ERR_FORMAT, "normalizer.normalizers[1]: an object"},
        {"{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"\"}"
         "," MODEL "}",
         ERR_FORMAT, "t.json: normalizer.pattern: regular expression: an unclosed group"},
        {"{\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}," MODEL "}", ERR_UNSUPPORTED,
         "pre-tokenizer \"UnicodeScripts\""},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":"
         "\"Odd\","
         "\"invert\":false}," MODEL "}",
         ERR_FORMAT, "pre_tokenizer: behavior \"Odd\""},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}," MODEL "}",
         ERR_FORMAT, "replacement is not one character"},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"a\",\"add_prefix_space\":"
         "false,\"prepend_scheme\":\"first\"}," MODEL "}",
         ERR_FORMAT, "add_prefix_space"},
        {"{\"post_processor\":{\"type\":\"Odd\"}," MODEL "}", ERR_UNSUPPORTED,
         "post-processor \"Odd\""},
        {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
         "\"id\":"
         "\"<s>\"}}],\"special_tokens\":{}}," MODEL "}",
         ERR_FORMAT,
         "post_processor.single[0].SpecialToken: \"<s>\" is not among the special_tokens"},
        {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":"
         "\"B\"}}],\"special_tokens\":{}}," MODEL "}",
         ERR_FORMAT, "single[0]"},
        {"{\"decoder\":{\"type\":\"CTC\"}," MODEL "}", ERR_UNSUPPORTED, "decoder \"CTC\""},
        {"{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":"
         "\"ByteLevel\"}]}," MODEL "}",
         ERR_UNSUPPORTED, "decoders[1]: this decoder behind Fuse"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct tokenizer *t;
        enum err e = open_json(&t, rows[i].json);
        if (e != rows[i].e || !strstr(err_text(), rows[i].says))
            fail_msg("%s\n%s: %s", rows[i].json, err_name(e), err_text());
    }
}

static void nested_json_is_refused(void **state)
{
    (void)state;
    static const char *const opens[] = {"[", "{\"a\":",
                                        "{\"normalizer\":{\"type\":\"Sequence\","
                                        "\"normalizers\":["};
    size_t size = 200000;
    char *json = malloc(size + 64);
    assert_non_null(json);
    for (size_t i = 0; i < COUNT_OF(opens); i++) {
        size_t length = 0;
        while (length < size) {
            strcpy(json + length, opens[i]);
            length += strlen(opens[i]);
        }
        struct tokenizer *t;
        assert_int_equal(open_json(&t, json), ERR_FORMAT);
    }
    free(json);
}

/* Two of each kind: the depth that is allowed, and one more. */
static void sequences_nest_so_deep_and_no_deeper(void **state)
{
    (void)state;
    for (int depth = 8; depth <= 9; depth++) {
        char json[2048] = "{" MODEL ",\"pre_tokenizer\":";
        for (int i = 0; i < depth; i++)
            strcat(json, "{\"type\":\"Sequence\",\"pretokenizers\":[");
        strcat(json, "{\"type\":\"WhitespaceSplit\"}");
        for (int i = 0; i < depth; i++)
            strcat(json, "]}");
        strcat(json, "}");
        struct tokenizer *t = NULL;
        assert_int_equal(open_json(&t, json), depth == 8 ? OK : ERR_UNSUPPORTED);
        tokenizer_close(depth == 8 ? t : NULL);
    }
}

static void added_tokens_are_found_as_their_flags_say(void **state)
{
    (void)state;
    static const struct {
        const char *flags, *text, *ids;
    } rows[] = {
        {NO_FLAGS, "a<x>b", "0 4 1 "},
        {NO_FLAGS, "a <x> b", "0 3 4 3 1 "},
        {"\"single_word\":false,\"lstrip\":true,\"rstrip\":false,\"normalized\":false", "a <x> b",
         "0 4 3 1 "},
        {"\"single_word\":false,\"lstrip\":false,\"rstrip\":true,\"normalized\":false", "a <x>  b",
         "0 3 4 1 "},
        {"\"single_word\":true,\"lstrip\":false,\"rstrip\":false,\"normalized\":false", "a<x> <x>",
         "0 3 4 "},
        {"\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":true", "a<X>",
         "0 4 "},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char json[1024];
        struct tokenizer *t;
        snprintf(json, sizeof json,
                 "{\"normalizer\":{\"type\":\"Lowercase\"},\"added_tokens\":[{\"id\":4,\"content\":"
                 "\"<x>\",\"special\":true,%s}]," MODEL "}",
                 rows[i].flags);
        if (open_json(&t, json) != OK) fail_msg("%s", err_text());
        check_ids(t, rows[i].text, 0, rows[i].ids);
        tokenizer_close(t);
    }
}

static void new_tokens_are_numbered_behind_the_vocabulary(void **state)
{
    (void)state;
    struct tokenizer *t;
    assert_ok(
        open_json(&t, "{\"added_tokens\":[" TOKEN(4, "<x>", NO_FLAGS) "," TOKEN(
                          90, "<y>", NO_FLAGS) "," TOKEN(7, "<yy>", NO_FLAGS) "]," MODEL "}"));
    check_ids(t, "<y><yy><x>ab", 0, "5 6 4 2 ");
    assert_int_equal(tokenizer_ids_end(t), 7);
    assert_int_equal(tokenizer_find(t, "<yy>", 4), 6);
    assert_int_equal(tokenizer_find(t, "nope", 4), TOKEN_NONE);
    assert_true(tokenizer_is_special(t, 5));
    assert_false(tokenizer_is_special(t, 2));
    assert_false(tokenizer_is_special(t, 90));
    tokenizer_close(t);
}

static void special_tokens_in_a_text_can_be_plain_text(void **state)
{
    (void)state;
    struct tokenizer *t;
    assert_ok(open_json(
        &t, "{\"added_tokens\":[" TOKEN(
                0, "ab", NO_FLAGS) "],"
                                   "\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}}"));
    check_ids(t, "abb", 0, "2 1 ");
    check_ids(t, "abb", TOKENIZER_PLAIN_SPECIAL, "0 1 1 ");
    tokenizer_close(t);
}

static void bos_and_eos_come_from_the_config(void **state)
{
    (void)state;
    static const char json[] = "{\"added_tokens\":[" TOKEN(4, "<x>", NO_FLAGS) "]," MODEL "}";
    static const struct {
        const char *config;
        enum err e;
        uint32_t bos, eos;
    } rows[] = {
        {NULL, OK, TOKEN_NONE, TOKEN_NONE},
        {"{}", OK, TOKEN_NONE, TOKEN_NONE},
        {"{\"bos_token\":null,\"eos_token\":\"<x>\"}", OK, TOKEN_NONE, 4},
        {"{\"bos_token\":{\"content\":\"ab\"},\"eos_token\":\"none\"}", OK, 2, TOKEN_NONE},
        {"{\"bos_token\":7}", ERR_FORMAT, 0, 0},
        {"[]", ERR_FORMAT, 0, 0},
        {"x", ERR_FORMAT, 0, 0},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct tokenizer *t;
        struct tokenizer_source s = {"t.json", json, sizeof json - 1, rows[i].config,
                                     rows[i].config ? strlen(rows[i].config) : 0};
        assert_int_equal(tokenizer_open_bytes(&t, &s), rows[i].e);
        if (rows[i].e != OK) continue;
        assert_int_equal(tokenizer_bos(t), rows[i].bos);
        assert_int_equal(tokenizer_eos(t), rows[i].eos);
        tokenizer_close(t);
    }
}

static void a_directory_without_a_tokenizer_is_named(void **state)
{
    (void)state;
    struct tokenizer *t;
    char dir[SCRATCH_BYTES];
    scratch_make(dir);
    assert_int_equal(tokenizer_open(&t, dir), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "tokenizer.json"));
    scratch_write(dir, "tokenizer.json", "{" MODEL "}", strlen("{" MODEL "}"));
    assert_ok(tokenizer_open(&t, dir));
    tokenizer_close(t);
    scratch_remove(dir);
}

static void text_that_is_no_text_is_refused(void **state)
{
    (void)state;
    struct tokenizer *t;
    uint32_t *ids;
    size_t count;
    assert_ok(open_json(&t, "{" MODEL "}"));
    assert_int_equal(tokenizer_encode(t, "a\xff", 2, 0, &ids, &count), ERR_INVALID);
    assert_string_equal(err_text(), "the text is not UTF-8 at byte 1");
    assert_int_equal(tokenizer_encode(t, "", TOKENIZER_TEXT_MAX + 1, 0, &ids, &count), ERR_INVALID);
    assert_ok(tokenizer_encode(t, "", 0, 0, &ids, &count));
    assert_non_null(ids);
    assert_int_equal(count, 0);
    mem_free(ids);
    tokenizer_close(t);
}

static void merges_that_hold_blanks_are_read(void **state)
{
    (void)state;
    struct tokenizer *t;
    assert_ok(open_json(&t, "{\"model\":{\"vocab\":{\" \":0,\"  \":1,\"   \":2,\"a\":3,"
                            "\" a\":4},\"merges\":[\"   \",\"    \",\"  a\"]}}"));
    check_ids(t, " a   ", 0, "4 1 0 ");
    tokenizer_close(t);
}

/* A quadratic merge of one piece of a megabyte would take hours. */
static void a_megabyte_of_one_letter_is_merged_at_once(void **state)
{
    (void)state;
    size_t length = 1 << 20, count;
    uint32_t *ids;
    struct tokenizer *t;
    char *text = malloc(length);
    assert_non_null(text);
    memset(text, 'a', length);
    assert_ok(open_json(&t, "{\"model\":{\"vocab\":{\"a\":0,\"aa\":1,\"aaaa\":2},\"merges\":"
                            "[\"a a\",\"aa aa\"]}}"));
    assert_ok(tokenizer_encode(t, text, length, 0, &ids, &count));
    assert_int_equal(count, length / 4);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(ids[i], 2);
    mem_free(ids);
    tokenizer_close(t);
    free(text);
}

static const char everything[] = "{\"added_tokens\":[" TOKEN(
    4, "<x>",
    NO_FLAGS) ",{\"id\":5,\"content\":\"AB\",\"special\":false,"
              "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":true}],"
              "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":"
              "\"Lowercase\"},"
              "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"c+\"},\"content\":\" \"}]},"
              "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
              "\"pattern\":"
              "{\"String\":\"b\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":"
              "\"ByteLevel\","
              "\"add_prefix_space\":true}]},"
              "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
              "\"id\":\"<x>\"}}"
              ",{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<x>\":{\"ids\":[4]}}},"
              "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"unk_token\":\"a\"," VOCAB "}}";

static bool json_failed;

static void *json_memory(size_t size)
{
    void *p = mem_new(size);
    if (!p) json_failed = true;
    return p;
}

/* Opening, encoding and decoding with the n-th allocation failing, for every n. jansson takes some
 * failures of its own for a malformed file. */
static void every_failed_allocation_is_an_error(void **state)
{
    (void)state;
    json_malloc_t old_malloc;
    json_free_t old_free;
    json_get_alloc_funcs(&old_malloc, &old_free);
    json_set_alloc_funcs(json_memory, mem_free);
    static const char text[] = "ab cc<x> e\u0301 AB";
    bool whole = false;
    for (uint64_t n = 1; !whole; n++) {
        struct tokenizer *t = NULL;
        uint32_t *ids = NULL;
        char *back = NULL;
        size_t count = 0, length;
        assert_in_range(n, 1, 5000);
        json_failed = false;
        mem_fail_at(n);
        enum err e = open_json(&t, everything);
        if (e == OK) e = tokenizer_encode(t, text, sizeof text - 1, 1, &ids, &count);
        if (e == OK) e = tokenizer_decode(t, ids, count, 0, &back, &length);
        mem_fail_at(0);
        if (e != OK && e != ERR_MEMORY && !(e == ERR_FORMAT && json_failed))
            fail_msg("allocation %d: %s", (int)n, err_text());
        whole = e == OK;
        mem_free(back);
        mem_free(ids);
        tokenizer_close(t);
    }
    json_set_alloc_funcs(old_malloc, old_free);
}

#define THREADS 4

struct reader {
    const struct tokenizer *t;
    const char *text;
    size_t count;
};

static void *read_often(void *argument)
{
    struct reader *r = argument;
    for (int i = 0; i < 50; i++) {
        uint32_t *ids;
        char *back;
        size_t count, length;
        if (tokenizer_encode(r->t, r->text, strlen(r->text), 1, &ids, &count) != OK) return NULL;
        if (tokenizer_decode(r->t, ids, count, 0, &back, &length) == OK) mem_free(back);
        mem_free(ids);
        r->count += count;
    }
    return r;
}

static void threads_share_a_tokenizer(void **state)
{
    (void)state;
    struct tokenizer *t;
    pthread_t thread[THREADS];
    struct reader reader[THREADS];
    if (open_json(&t, everything) != OK) fail_msg("%s", err_text());
    for (int i = 0; i < THREADS; i++) {
        reader[i] = (struct reader){t, "ab ab<x>abAB cb", 0};
        assert_int_equal(pthread_create(&thread[i], NULL, read_often, &reader[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *done;
        assert_int_equal(pthread_join(thread[i], &done), 0);
        assert_non_null(done);
        assert_int_equal(reader[i].count, reader[0].count);
    }
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_wrong_in_a_file_is_named),
        cmocka_unit_test(nested_json_is_refused),
        cmocka_unit_test(sequences_nest_so_deep_and_no_deeper),
        cmocka_unit_test(added_tokens_are_found_as_their_flags_say),
        cmocka_unit_test(new_tokens_are_numbered_behind_the_vocabulary),
        cmocka_unit_test(special_tokens_in_a_text_can_be_plain_text),
        cmocka_unit_test(bos_and_eos_come_from_the_config),
        cmocka_unit_test(a_directory_without_a_tokenizer_is_named),
        cmocka_unit_test(text_that_is_no_text_is_refused),
        cmocka_unit_test(merges_that_hold_blanks_are_read),
        cmocka_unit_test(a_megabyte_of_one_letter_is_merged_at_once),
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(every_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
