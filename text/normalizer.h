/* normalizer: what tokenizer.json's "normalizer" does to a text before it is cut.
 *
 *     struct normalizer n;
 *     if ((e = normalizer_init(&n, &at, json)) != OK) return e;          // NULL or null: nothing
 *     if ((e = normalizer_apply(&n, scratch, text, length, &two)) != OK) return e;
 *     ... two.text, two.length: the result, until the next call ...
 *
 * Known: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip, StripAccents, ByteLevel.
 * Rules: immutable after init; text is valid UTF-8 and stays so.
 * Owner: the tokenizer. */
#ifndef TANDEM_TEXT_NORMALIZER_H
#define TANDEM_TEXT_NORMALIZER_H

#include <stdbool.h>

#include "common/buf.h"
#include "common/err.h"
#include "text/pattern.h"
#include "text/place.h"

#define NORMALIZER_STEPS_MAX 64

struct normalizer_step;

struct normalizer {
    struct normalizer_step *step;
    size_t steps_count;
};

/* Two buffers that take turns, and where the present text is. */
struct normalized {
    struct buf buffer[2];
    const char *text;
    size_t length;
};

enum err normalizer_init(struct normalizer *n, const struct place *at, const json_t *json);
void normalizer_fini(struct normalizer *n);
enum err normalizer_apply(const struct normalizer *n, struct pattern_scratch *scratch,
                          const char *text, size_t length, struct normalized *out);
void normalized_fini(struct normalized *n);

/* Shared with the pre-tokenizers and decoders: "pattern": {"String": ...} or {"Regex": ...}. */
enum err pattern_read(struct pattern *p, const struct place *at, const json_t *object);
/* Appends text with every match replaced. */
enum err pattern_replace(const struct pattern *p, struct pattern_scratch *scratch, const char *text,
                         size_t length, const struct buf *content, struct buf *out);

#endif
