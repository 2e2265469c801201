/* stream: the text of tokens that come one by one.
 *
 *     struct stream *s;
 *     if ((e = stream_new(&s, tokenizer, STREAM_SKIP_SPECIAL)) != OK) return e;
 *     for each id:
 *         if ((e = stream_push(s, id, &text, &length)) != OK) break;   // length may be 0
 *         ... text ...
 *     stream_finish(s, &text, &length);                                // what was held back
 *     stream_free(s);
 *
 * Rules: every piece is whole characters of valid UTF-8. All pieces together, with the one of
 * stream_finish, are what tokenizer_decode gives for all the ids. A tail that could become a
 * character is held back until it is one, or cannot become one (U+FFFD), or the end. With byte
 * fallback a run of byte tokens is held back until the run ends, since the reference decides for
 * the run as a whole whether it is text.
 * STREAM_CONTINUES: the tokens continue a text, so the blank in front of the first one is text;
 * without it the first token opens a text and loses the blank that SentencePiece puts there.
 * The text lives until the next call. The tokenizer outlives the stream. After stream_finish the
 * stream is as new. Once its buffers have grown a token costs no allocation.
 * Owner: one thread. */
#ifndef TANDEM_TEXT_STREAM_H
#define TANDEM_TEXT_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "text/tokenizer.h"

enum stream_flag {
    STREAM_SKIP_SPECIAL = TOKENIZER_SKIP_SPECIAL,
    STREAM_CONTINUES = 8,
};

struct stream;

enum err stream_new(struct stream **out, const struct tokenizer *t, unsigned flags);
void stream_free(struct stream *s); /* NULL is fine */
enum err stream_push(struct stream *s, uint32_t id, const char **text, size_t *length);
enum err stream_finish(struct stream *s, const char **text, size_t *length);

#endif
