/* vocab: the strings of a model's vocabulary and their ids.
 *
 *     struct vocab v = {0};
 *     if ((e = vocab_init(&v, strings_count, bytes_count, ids_end)) != OK) return e;
 *     vocab_add(&v, string, length, id);                // strings_count times
 *     id = vocab_find(&v, string, length);                              // TOKEN_NONE: not there
 *     vocab_fini(&v);
 *
 * Rules: sizes are known before; adding more is a broken promise. Ids are below
 * TOKENIZER_IDS_MAX, not all need a string. A string that is added twice keeps its last id; of two
 * strings with one id the last gives the id its text.
 * Owner: whoever fills it, immutable afterwards. */
#ifndef TANDEM_TEXT_VOCAB_H
#define TANDEM_TEXT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct vocab_entry {
    uint32_t start, length, id;
};

struct vocab {
    char *bytes;
    size_t bytes_count, bytes_capacity;
    struct vocab_entry *entry;
    size_t entries_count, entries_capacity;
    uint32_t *slot; /* hash table of entry indices + 1, 0: free */
    size_t slot_mask;
    uint32_t *by_id; /* entry index + 1 of each id, 0: none */
    uint32_t ids_end;
};

enum err vocab_init(struct vocab *v, size_t strings_count, size_t bytes_count, uint32_t ids_end);
void vocab_fini(struct vocab *v);
void vocab_add(struct vocab *v, const char *string, size_t length, uint32_t id);
uint32_t vocab_find(const struct vocab *v, const char *string, size_t length);
bool vocab_string(const struct vocab *v, uint32_t id, const char **string, size_t *length);

#endif
