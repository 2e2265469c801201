/* pretokenizer: cuts a text into the pieces that the model sees one by one, as tokenizer.json's
 * "pre_tokenizer" says.
 *
 *     struct pretokenizer t;
 *     if ((e = pretokenizer_init(&t, &at, json)) != OK) return e;        // NULL or null: one piece
 *     if ((e = pretokenizer_apply(&t, scratch, &pieces, &spare)) != OK) return e;
 *
 * Known: Sequence, ByteLevel, Split, Metaspace, Digits, Whitespace, WhitespaceSplit, Punctuation,
 * CharDelimiterSplit, BertPreTokenizer, FixedLength.
 * Rules: immutable after init. `spare` is memory that the steps write to; its content is lost.
 * Owner: the tokenizer. */
#ifndef TANDEM_TEXT_PRETOKENIZER_H
#define TANDEM_TEXT_PRETOKENIZER_H

#include "common/err.h"
#include "text/pattern.h"
#include "text/pieces.h"
#include "text/place.h"

#define PRETOKENIZER_STEPS_MAX 64

struct pretokenizer_step;

struct pretokenizer {
    struct pretokenizer_step *step;
    size_t steps_count;
};

enum err pretokenizer_init(struct pretokenizer *t, const struct place *at, const json_t *json);
void pretokenizer_fini(struct pretokenizer *t);
enum err pretokenizer_apply(const struct pretokenizer *t, struct pattern_scratch *scratch,
                            struct pieces *p, struct pieces *spare);

#endif
