/* Streams: whole characters only, and together the decoded text. */
#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "text/stream.h"

/* Ids are the positions in the vocabulary. */
#define SPM_VOCAB                                                                                  \
    "{\"<unk>\":0,\"<s>\":1,\"\u2581the\":2,\"\u2581\":3,\"cat\":4,\"<0xF0>\":5,\"<0x9F>\":6,"     \
    "\"<0x98>\":7,\"<0x80>\":8,\"<0x41>\":9}"
#define SPM_DECODER                                                                                \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"          \
    "\"\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"              \
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"
/* The bytes F0 9F 98 80 as GPT-2 writes them, and E9 alone. */
#define BYTES_VOCAB                                                                                \
    "{\"\u00f0\u0141\":0,\"\u013a\":1,\"\u0122\":2,\"a\":3,\"\u0120b\":4,\"\u00e9\":5,"            \
    "\"<s>\":6}"
#define BYTES_DECODER                                                                              \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}"

static struct tokenizer *make(const char *vocab, const char *decoder, int special)
{
    char json[2048];
    int n = snprintf(json, sizeof json,
                     "{\"added_tokens\":[{\"id\":%d,\"content\":\"<s>\",\"single_word\":false,"
                     "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],"
                     "\"decoder\":%s,\"model\":{\"type\":\"BPE\",\"vocab\":%s,\"merges\":[]}}",
                     special, decoder, vocab);
    struct tokenizer *t;
    struct tokenizer_source s = {.name = "test", .json = json, .json_length = (size_t)n};
    if (tokenizer_open_bytes(&t, &s) != OK) fail_msg("%s", err_text());
    return t;
}

struct row {
    unsigned flags;
    uint32_t ids[8];
    size_t ids_count;
    const char *pieces[9]; /* what each token gives, and the end; NULL: nothing */
};

static void check(const struct tokenizer *t, const struct row *r)
{
    struct stream *s;
    const char *text;
    size_t length;
    assert_ok(stream_new(&s, t, r->flags));
    for (int round = 0; round < 2; round++) /* after the end a stream is as new */
        for (size_t i = 0; i <= r->ids_count; i++) {
            const char *want = r->pieces[i] ? r->pieces[i] : "";
            if (i < r->ids_count)
                assert_ok(stream_push(s, r->ids[i], &text, &length));
            else
                assert_ok(stream_finish(s, &text, &length));
            if (length != strlen(want) || memcmp(text, want, length) != 0)
                fail_msg("token %zu gave \"%.*s\", not \"%s\"", i, (int)length, text, want);
        }
    stream_free(s);
}

#define REPLACED "\xEF\xBF\xBD"
#define SMILE "\xF0\x9F\x98\x80"

static void characters_come_whole_from_byte_level_tokens(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {0, {3, 4}, 2, {"a", " b"}},
        {0, {0, 1, 2, 3}, 4, {NULL, NULL, SMILE, "a"}},
        {0, {0, 1, 3}, 3, {NULL, NULL, REPLACED "a"}},
        {0, {0}, 1, {NULL, REPLACED}},
        {0, {1, 5, 3}, 3, {REPLACED, NULL, REPLACED "a"}},
        {0, {3, 6, 4}, 3, {"a", "<s>", " b"}},
        {STREAM_SKIP_SPECIAL, {3, 6, 4}, 3, {"a", NULL, " b"}},
        {STREAM_SKIP_SPECIAL, {0, 6, 1, 2}, 4, {NULL, NULL, NULL, SMILE}},
        {0, {3, 77, 4000000000u}, 3, {"a"}},
        {0, {0}, 0, {NULL}},
    };
    struct tokenizer *t = make(BYTES_VOCAB, BYTES_DECODER, 6);
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        check(t, &rows[i]);
    tokenizer_close(t);
}

static void sentencepiece_text_loses_its_first_blank_only(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {0, {2, 4, 2}, 3, {"the", "cat", " the"}},
        {STREAM_CONTINUES, {2, 4, 2}, 3, {" the", "cat", " the"}},
        {0, {3, 2}, 2, {NULL, " the"}},
        {STREAM_SKIP_SPECIAL, {1, 2}, 2, {NULL, "the"}},
        {0, {1, 2}, 2, {"<s>", " the"}},
    };
    struct tokenizer *t = make(SPM_VOCAB, SPM_DECODER, 1);
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        check(t, &rows[i]);
    tokenizer_close(t);
}

/* As the reference has it: a run is text as a whole, or U+FFFD for each byte. */
static void a_run_of_byte_tokens_is_decided_at_its_end(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {0, {5, 6, 7, 8, 4}, 5, {NULL, NULL, NULL, NULL, SMILE "cat"}},
        {0, {9, 5, 6, 7, 8}, 5, {NULL, NULL, NULL, NULL, NULL, "A" SMILE}},
        {0, {9, 5, 4}, 3, {NULL, NULL, REPLACED REPLACED "cat"}},
        {0, {8}, 1, {NULL, REPLACED}},
    };
    struct tokenizer *t = make(SPM_VOCAB, SPM_DECODER, 1);
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        check(t, &rows[i]);
    tokenizer_close(t);
}

static void every_decoder_streams(void **state)
{
    (void)state;
    static const struct {
        const char *decoder;
        struct row row;
    } rows[] = {
        {"null", {0, {4, 2, 4}, 3, {"cat", " \u2581the", " cat"}}},
        {"{\"type\":\"Metaspace\",\"replacement\":\"\u2581\",\"prepend_scheme\":\"always\"}",
         {0, {2, 2}, 2, {"the", " the"}}},
        {"{\"type\":\"Metaspace\",\"replacement\":\"\u2581\",\"prepend_scheme\":\"never\"}",
         {0, {2, 2}, 2, {" the", " the"}}},
        {"{\"type\":\"Metaspace\",\"replacement\":\"\u2581\"}",
         {STREAM_CONTINUES, {2, 2}, 2, {" the", " the"}}},
        {"{\"type\":\"BPEDecoder\",\"suffix\":\"t\"}", {0, {4, 4}, 2, {NULL, "ca ", "ca"}}},
        {"{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Replace\","
         "\"pattern\":{\"String\":\"tcat\"},\"content\":\"-\"}]}",
         {0, {4, 4, 4}, 3, {"ca", "-", "ca", "t"}}},
        {"{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Strip\","
         "\"content\":\"t\",\"start\":1,\"stop\":1}]}",
         {0, {4, 4}, 2, {"ca", "tca"}}},
        {"{\"type\":\"Strip\",\"content\":\"c\",\"start\":2,\"stop\":0}",
         {0, {4, 4}, 2, {"at", "at"}}},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[ct]\"},\"content\":\"x\"}",
         {0, {4, 4}, 2, {"xax", "xax"}}},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct tokenizer *t = make(SPM_VOCAB, rows[i].decoder, 1);
        check(t, &rows[i].row);
        tokenizer_close(t);
    }
}

static void a_warm_stream_allocates_nothing(void **state)
{
    (void)state;
    struct tokenizer *t = make(SPM_VOCAB, SPM_DECODER, 1);
    struct stream *s;
    const char *text;
    size_t length;
    assert_ok(stream_new(&s, t, 0));
    for (uint32_t i = 0; i < 100; i++)
        assert_ok(stream_push(s, i % 10, &text, &length));
    uint64_t before = mem_count();
    for (uint32_t i = 0; i < 1000; i++)
        assert_ok(stream_push(s, i % 10, &text, &length));
    assert_int_equal(mem_count(), before);
    stream_free(s);
    tokenizer_close(t);
}

static void every_failed_allocation_is_an_error(void **state)
{
    (void)state;
    struct tokenizer *t = make(SPM_VOCAB, SPM_DECODER, 1);
    static const uint32_t ids[] = {2, 5, 6, 7, 8, 4, 9};
    bool whole = false;
    for (uint64_t n = 1; !whole; n++) {
        struct stream *s = NULL;
        const char *text;
        size_t length;
        assert_in_range(n, 1, 200);
        mem_fail_at(n);
        enum err e = stream_new(&s, t, 0);
        for (size_t i = 0; e == OK && i < COUNT_OF(ids); i++)
            e = stream_push(s, ids[i], &text, &length);
        if (e == OK) e = stream_finish(s, &text, &length);
        mem_fail_at(0);
        assert_true(e == OK || e == ERR_MEMORY);
        whole = e == OK;
        stream_free(s);
    }
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(characters_come_whole_from_byte_level_tokens),
        cmocka_unit_test(sentencepiece_text_loses_its_first_blank_only),
        cmocka_unit_test(a_run_of_byte_tokens_is_decided_at_its_end),
        cmocka_unit_test(every_decoder_streams),
        cmocka_unit_test(a_warm_stream_allocates_nothing),
        cmocka_unit_test(every_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
