/* postprocessor: the tokens that tokenizer.json's "post_processor" puts around those of a text.
 *
 *     struct postprocessor p;
 *     if ((e = postprocessor_init(&p, &at, json)) != OK) return e;
 *     ... p.before, the text's ids, p.after ...
 *     postprocessor_fini(&p);
 *
 * Known: Sequence, TemplateProcessing, ByteLevel (which only moves offsets), BertProcessing,
 * RobertaProcessing. A server has single texts only, so "pair" is not read.
 * Rules: immutable after init.
 * Owner: the tokenizer. */
#ifndef TANDEM_TEXT_POSTPROCESSOR_H
#define TANDEM_TEXT_POSTPROCESSOR_H

#include "common/err.h"
#include "text/bpe.h"
#include "text/place.h"

#define POSTPROCESSOR_IDS_MAX 1024 /* on either side */

struct postprocessor {
    struct id_list before, after;
};

enum err postprocessor_init(struct postprocessor *p, const struct place *at, const json_t *json);
void postprocessor_fini(struct postprocessor *p);

#endif
