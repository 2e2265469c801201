/* Tokenizer files: any bytes are a tokenizer or refused with a text; what is a tokenizer encodes and
 * decodes, as a stream and whole with the same result. Behind a zero byte the input is the text. */
#include <stdint.h>
#include <string.h>

#include "common/mem.h"
#include "text/stream.h"
#include "text/tokenizer.h"

#define TEXT_MAX 512

static void check_stream(const struct tokenizer *t, const uint32_t *ids, size_t count,
                         const char *whole, size_t length)
{
    struct stream *s;
    const char *text;
    size_t n, done = 0;
    CHECK(stream_new(&s, t, 0) == OK);
    for (size_t i = 0; i <= count; i++) {
        enum err e = i < count ? stream_push(s, ids[i], &text, &n) : stream_finish(s, &text, &n);
        if (e != OK) break;
        CHECK(n <= length - done && memcmp(whole + done, text, n) == 0);
        done += n;
        if (i == count) CHECK(done == length);
    }
    stream_free(s);
}

static void round_trip(const struct tokenizer *t, const char *text, size_t length, unsigned flags)
{
    uint32_t *ids;
    size_t count, back_length;
    char *back;
    if (tokenizer_encode(t, text, length, flags, &ids, &count) != OK) return;
    if (tokenizer_decode(t, ids, count, 0, &back, &back_length) == OK) {
        check_stream(t, ids, count, back, back_length);
        mem_free(back);
    }
    mem_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] =
        " Hello  world, it's 12345!\n\n caf\xC3\xA9 \xE4\xBD\xA0\xE5\xA5\xBD "
        "\xF0\x9F\x98\x80<s>the</s>\t\x01";
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    size_t json_length = end ? (size_t)(end - data) : size;
    struct tokenizer_source source = {
        .name = "fuzz", .json = (const char *)data, .json_length = json_length};
    struct tokenizer *t;
    if (tokenizer_open_bytes(&t, &source) != OK) {
        CHECK(err_text()[0]);
        return 0;
    }
    round_trip(t, text, sizeof text - 1, TOKENIZER_ADD_SPECIAL);
    if (end) {
        size_t length = size - json_length - 1;
        round_trip(t, (const char *)end + 1, length < TEXT_MAX ? length : TEXT_MAX,
                   TOKENIZER_PLAIN_SPECIAL);
    }
    tokenizer_close(t);
    return 0;
}
