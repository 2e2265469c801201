/* decoder: the texts of tokens, one by one, to the text they make together, as tokenizer.json's
 * "decoder" says.
 *
 *     struct decoder d;
 *     if ((e = decoder_init(&d, &at, json)) != OK) return e;      // NULL or null: blanks between tokens
 *     struct decoding x = {0};
 *     if ((e = decoding_begin(&x, &d, continues)) != OK) return e;
 *     for each token: if ((e = decoding_push(&x, token, length)) != OK) break;   // appends to x.out
 *     e = decoding_end(&x);                                       // appends what was held back
 *     decoding_fini(&x);
 *
 * The reference runs its steps over the list of all tokens; here every step takes tokens as they
 * come and hands on what is decided. Behind Fuse or ByteLevel there is one token only, and the
 * steps there take it in fragments.
 *
 * Known: Sequence, ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace, BPEDecoder.
 * Rules: x.out has whole characters only. `continues`: what is done to the first token of a text is
 * not done. A run of byte tokens is decided when it ends, or at DECODER_RUN_MAX bytes.
 * Owner: the decoder is immutable after init; a decoding belongs to one thread. */
#ifndef TANDEM_TEXT_DECODER_H
#define TANDEM_TEXT_DECODER_H

#include <stdbool.h>

#include "common/buf.h"
#include "common/err.h"
#include "text/pattern.h"
#include "text/place.h"

#define DECODER_STEPS_MAX 32
#define DECODER_RUN_MAX ((size_t)1 << 20)
#define DECODER_STRIP_MAX 1024

struct decoder_step;

struct decoder {
    struct decoder_step *step;
    size_t steps_count;
    bool has_regex;
};

struct decoding_step;

struct decoding {
    const struct decoder *decoder;
    struct decoding_step *step;
    struct pattern_scratch *scratch;
    struct buf out; /* what came since its reader cleared it */
};

enum err decoder_init(struct decoder *d, const struct place *at, const json_t *json);
void decoder_fini(struct decoder *d);

enum err decoding_begin(struct decoding *x, const struct decoder *d, bool continues);
enum err decoding_push(struct decoding *x, const char *token, size_t length);
enum err decoding_end(struct decoding *x);
/* Ready for another text; what came, and the memory, stay. */
void decoding_reset(struct decoding *x, bool continues);
void decoding_fini(struct decoding *x);

#endif
