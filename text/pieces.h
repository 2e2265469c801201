/* pieces: a text on its way to tokens, cut into pieces; some of them are tokens already.
 *
 *     struct pieces p = {0};
 *     if ((e = pieces_whole(&p, text, length)) != OK) return e;
 *     ... a stage reads `p` and writes `q`: pieces_text, pieces_token, pieces_cut ...
 *     pieces_swap(&p, &q);
 *     pieces_fini(&p);
 *
 * Rules: the text of a piece is text.bytes[start, start + length), valid UTF-8; pieces with text are
 * never empty. A stage that only cuts keeps the text and writes new pieces over it. `first` marks
 * a piece that begins where the caller's text began. A text may not grow beyond PIECES_TEXT_MAX.
 * Owner: the call that encodes. */
#ifndef TANDEM_TEXT_PIECES_H
#define TANDEM_TEXT_PIECES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"

#define PIECES_TEXT_MAX ((size_t)512 << 20)

struct piece {
    uint32_t start, length;
    uint32_t id; /* TOKEN_NONE: text */
    bool first;
};

struct pieces {
    struct buf text;
    struct piece *piece;
    size_t pieces_count, pieces_capacity;
};

enum err pieces_whole(struct pieces *p, const char *text, size_t length);
void pieces_clear(struct pieces *p);
void pieces_swap(struct pieces *a, struct pieces *b);
void pieces_fini(struct pieces *p);

/* A piece over text that is there already; empty ones are left out. */
enum err pieces_cut(struct pieces *p, size_t start, size_t length, bool first);
enum err pieces_token(struct pieces *p, uint32_t id);
/* Ends a piece of text that the caller appended to `text` from `start` on. */
enum err pieces_end(struct pieces *p, size_t start, bool first);

#endif
