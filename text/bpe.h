/* bpe: the byte pair encoding model: one piece of text to token ids.
 *
 *     struct bpe m;
 *     if ((e = bpe_init(&m, &at, json)) != OK) return e;        // the "model" of tokenizer.json
 *     struct bpe_scratch s = {0};
 *     if ((e = bpe_encode(&m, &s, piece, length, &ids)) != OK) return e;    // appends to ids
 *     bpe_scratch_fini(&s);
 *     bpe_fini(&m);
 *
 * A piece starts as one symbol per character (a character that is not in the vocabulary as one per
 * byte, where the model says byte_fallback, else as unk_token, else as nothing). Then the
 * neighbours whose merge ranks first become one symbol, the leftmost first, until none is left: a
 * heap of pairs, in which pairs that no longer stand are skipped when they come up. So a piece of n
 * characters takes n log n, a megabyte of one letter included. Where no merge at all joins a token
 * that ends in one character with a token that begins with the next, the piece is cut: SentencePiece
 * models see a whole text as one piece, and its words fit the processor's caches one by one.
 *
 * Rules: immutable after bpe_init; the scratch belongs to one thread at a time and keeps its memory.
 * Owner: the tokenizer. */
#ifndef TANDEM_TEXT_BPE_H
#define TANDEM_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"
#include "text/place.h"
#include "text/vocab.h"

#define BPE_JOINS_BITS 18 /* size of the filter of characters that some merge joins: 32 KiB */
#define BPE_CHARS 0x800   /* characters whose id is looked up in an array: those of up to 2 bytes */

struct bpe_merge {
    uint32_t left, right; /* left == TOKEN_NONE: a free slot */
    uint32_t rank, id;
};

struct bpe {
    struct vocab vocab;
    struct bpe_merge *merge; /* hash table by (left, right) */
    size_t merge_mask;
    uint64_t *joins; /* bit set: a merge may join characters of this hash; NULL: never cut */
    uint32_t char_id[BPE_CHARS]; /* of a character alone, TOKEN_NONE: not in the vocabulary */
    uint32_t byte_id[256];       /* of <0x00> to <0xFF> */
    char *unk, *prefix, *suffix; /* suffix: end_of_word_suffix; NULL: none */
    uint32_t unk_id;
    bool fuse_unk, byte_fallback, ignore_merges;
};

struct id_list {
    uint32_t *id;
    size_t count, capacity;
};
enum err id_list_add(struct id_list *l, uint32_t id);

struct bpe_symbol {
    uint32_t id; /* TOKEN_NONE: merged into the one before */
    uint32_t previous, next;
};

struct bpe_pair {   /* a pair that could be merged */
    uint64_t order; /* rank in the upper half, position in the lower */
    uint32_t id;
};

struct bpe_scratch {
    struct bpe_symbol *symbol;
    size_t symbols_count, symbols_capacity;
    struct bpe_pair *heap;
    size_t heap_count, heap_capacity;
    struct buf text; /* a character with its prefix and suffix */
};

enum err bpe_init(struct bpe *m, const struct place *at, const json_t *model);
void bpe_fini(struct bpe *m);
enum err bpe_encode(const struct bpe *m, struct bpe_scratch *s, const char *text, size_t length,
                    struct id_list *ids);
void bpe_scratch_fini(struct bpe_scratch *s);

#endif
