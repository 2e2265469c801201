/* added: the "added_tokens" of tokenizer.json, which are found in a text before the model sees it.
 *
 *     struct added a;
 *     if ((e = added_init(&a, &at, json, &vocab)) != OK) return e;
 *     if ((e = added_index(&a, &normalizer)) != OK) return e;
 *     if ((e = added_split(&a, ADDED_AS_WRITTEN, plain_special, &pieces, &spare)) != OK) return e;
 *     ... normalize ...
 *     if ((e = added_split(&a, ADDED_NORMALIZED, plain_special, &pieces, &spare)) != OK) return e;
 *
 * Rules, as the reference has them: tokens with normalized false are looked for in the text as it
 * came, the others, themselves normalized, in the normalized text. At each place the longest token
 * counts. A token of the model's vocabulary keeps its id there; the others are numbered on in the
 * order of the file, whatever id the file gives them. Of two entries with the same content the first
 * counts. Immutable after added_index.
 * Owner: the tokenizer. */
#ifndef TANDEM_TEXT_ADDED_H
#define TANDEM_TEXT_ADDED_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "text/normalizer.h"
#include "text/pieces.h"
#include "text/place.h"
#include "text/vocab.h"

#define ADDED_LENGTH_MAX 4096 /* bytes of one token */
#define ADDED_TOTAL_MAX ((size_t)16 << 20)

struct added_token {
    char *content;
    size_t length;
    char *form; /* the normalized content, which is what the decoder gets; NULL: the same */
    size_t form_length;
    uint32_t id;
    bool special, single_word, lstrip, rstrip, normalized;
};

struct trie_node {
    uint32_t child, sibling; /* indices, 0: none */
    uint32_t token;          /* index + 1, 0: none ends here */
    unsigned char byte;
};

struct trie {
    struct trie_node *node; /* [0] is the root */
    size_t nodes_count, nodes_capacity;
    uint32_t first[256]; /* the root's children by byte */
};

struct added {
    struct added_token *token;
    size_t tokens_count;
    uint32_t *by_id;  /* of the ids below ids_end: index + 1, 0: not an added token */
    uint32_t ids_end; /* at least the vocabulary's */
    struct trie trie[2];
};

enum added_pass { ADDED_AS_WRITTEN, ADDED_NORMALIZED };

enum err added_init(struct added *a, const struct place *at, const json_t *json,
                    const struct vocab *vocab);
enum err added_index(struct added *a, const struct place *at, const struct normalizer *normalizer);
void added_fini(struct added *a);

/* NULL: no such token. */
const struct added_token *added_find(const struct added *a, const char *content, size_t length);
const struct added_token *added_by_id(const struct added *a, uint32_t id);

/* plain_special: special tokens are left in the text. */
enum err added_split(const struct added *a, enum added_pass pass, bool plain_special,
                     struct pieces *p, struct pieces *spare);

#endif
