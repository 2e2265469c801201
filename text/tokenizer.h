/* tokenizer: text to token ids and back, as a model's tokenizer.json says (models of type BPE).
 *
 *     struct tokenizer *t;
 *     if ((e = tokenizer_open(&t, model_dir)) != OK) return e;     // err_text names file and thing
 *     uint32_t *ids;
 *     size_t ids_count;
 *     if ((e = tokenizer_encode(t, text, length, TOKENIZER_ADD_SPECIAL, &ids, &ids_count)) != OK)
 * ... char *back; size_t back_length; if ((e = tokenizer_decode(t, ids, ids_count,
 * TOKENIZER_SKIP_SPECIAL, &back, &back_length)) ... mem_free(back); mem_free(ids);
 *     tokenizer_close(t);
 *
 * Rules: the same ids and the same text as Hugging Face's `tokenizers` gives for the file, except
 * that truncation and padding are not applied (the server has its own limits). What a file asks for
 * and this module does not offer is ERR_UNSUPPORTED at open, what is malformed is ERR_FORMAT; both
 * name the file and the thing. A tokenizer does not change after open: any number of threads may
 * encode and decode with it at once. What encode and decode return belongs to the caller, who frees
 * it with mem_free; it is set on OK only, and never NULL then. Text may contain zero bytes. Input
 * that is not UTF-8 or longer than TOKENIZER_TEXT_MAX is ERR_INVALID. Owner: immutable, any thread.
 */
#ifndef TANDEM_TEXT_TOKENIZER_H
#define TANDEM_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define TOKENIZER_TEXT_MAX ((size_t)64 << 20)  /* bytes of one text to encode */
#define TOKENIZER_FILE_MAX ((size_t)256 << 20) /* bytes of one tokenizer file */
#define TOKENIZER_IDS_MAX (1u << 22)           /* every id of a file is below */
#define TOKEN_NONE UINT32_MAX

struct tokenizer;

/* Reads tokenizer.json of a model directory, and tokenizer_config.json if there is one. */
enum err tokenizer_open(struct tokenizer **out, const char *model_dir);

/* The same from memory; `name` stands for the file in errors. Nothing is kept of the buffers. */
struct tokenizer_source {
    const char *name;
    const char *json; /* tokenizer.json */
    size_t json_length;
    const char *config; /* tokenizer_config.json, NULL: none */
    size_t config_length;
};
enum err tokenizer_open_bytes(struct tokenizer **out, const struct tokenizer_source *source);
void tokenizer_close(struct tokenizer *t); /* NULL is fine */

enum tokenizer_flag {
    TOKENIZER_ADD_SPECIAL = 1,   /* encode: what the post-processor adds around a text (BOS ...) */
    TOKENIZER_PLAIN_SPECIAL = 2, /* encode: "<|im_end|>" in the text is text, not a special token */
    TOKENIZER_SKIP_SPECIAL = 4,  /* decode: special tokens give no text */
};

enum err tokenizer_encode(const struct tokenizer *t, const char *text, size_t length,
                          unsigned flags, uint32_t **ids, size_t *ids_count);

/* A zero byte is put behind the text. Ids without a token give nothing, bytes that are not UTF-8
 * become U+FFFD. */
enum err tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t ids_count,
                          unsigned flags, char **text, size_t *length);

/* All ids are below; some may have no token. The model's vocabulary may be larger (padding). */
uint32_t tokenizer_ids_end(const struct tokenizer *t);
/* bos_token and eos_token of tokenizer_config.json; TOKEN_NONE where it names none. */
uint32_t tokenizer_bos(const struct tokenizer *t);
uint32_t tokenizer_eos(const struct tokenizer *t);
/* The id of a token as the file writes it ("<|im_end|>"), TOKEN_NONE: no such token. */
uint32_t tokenizer_find(const struct tokenizer *t, const char *content, size_t length);
bool tokenizer_is_special(const struct tokenizer *t, uint32_t id);

#endif
