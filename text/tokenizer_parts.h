/* tokenizer_parts: the inside of a tokenizer, for the files of text/ that work on its parts.
 * Owner: immutable, any thread. */
#ifndef TANDEM_TEXT_TOKENIZER_PARTS_H
#define TANDEM_TEXT_TOKENIZER_PARTS_H

#include "text/added.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/postprocessor.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"

/* A text's way: added tokens as written, normalizer, added tokens normalized, pre-tokenizer, model,
 * post-processor; and back: the tokens' strings through the decoder. */
struct tokenizer {
    struct bpe model;
    struct normalizer normalizer;
    struct added added;
    struct pretokenizer pretokenizer;
    struct postprocessor postprocessor;
    struct decoder decoder;
    uint32_t ids_end;
    uint32_t bos, eos;
};

/* The string of a token that the decoder gets; false: there is no such id. */
bool tokenizer_string(const struct tokenizer *t, uint32_t id, const char **string, size_t *length);

#endif
