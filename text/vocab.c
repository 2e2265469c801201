#include "text/vocab.h"

#include <string.h>
#include <xxhash.h>

#include "common/mem.h"
#include "text/tokenizer.h"

enum err vocab_init(struct vocab *v, size_t strings_count, size_t bytes_count, uint32_t ids_end)
{
    *v = (struct vocab){0};
    size_t slots = 16;
    while (slots < strings_count * 2)
        slots *= 2;
    v->bytes = mem_array(bytes_count, 1);
    v->entry = mem_array(strings_count, sizeof *v->entry);
    v->slot = mem_array(slots, sizeof *v->slot);
    v->by_id = mem_array(ids_end, sizeof *v->by_id);
    if (!v->bytes || !v->entry || !v->slot || !v->by_id) {
        vocab_fini(v);
        return ERR_MEMORY;
    }
    v->bytes_capacity = bytes_count;
    v->entries_capacity = strings_count;
    v->slot_mask = slots - 1;
    v->ids_end = ids_end;
    return OK;
}

void vocab_fini(struct vocab *v)
{
    mem_free(v->by_id);
    mem_free(v->slot);
    mem_free(v->entry);
    mem_free(v->bytes);
    *v = (struct vocab){0};
}

/* The slot that holds the string, or the free one where it belongs. */
static size_t find_slot(const struct vocab *v, const char *string, size_t length)
{
    size_t at = XXH3_64bits(string, length) & v->slot_mask;
    for (; v->slot[at]; at = (at + 1) & v->slot_mask) {
        const struct vocab_entry *x = &v->entry[v->slot[at] - 1];
        if (x->length == length && memcmp(v->bytes + x->start, string, length) == 0) break;
    }
    return at;
}

void vocab_add(struct vocab *v, const char *string, size_t length, uint32_t id)
{
    CHECK(id < v->ids_end);
    size_t at = find_slot(v, string, length);
    if (v->slot[at] == 0) {
        CHECK(v->entries_count < v->entries_capacity);
        CHECK(length <= v->bytes_capacity - v->bytes_count);
        v->entry[v->entries_count++] =
            (struct vocab_entry){(uint32_t)v->bytes_count, (uint32_t)length, id};
        memcpy(v->bytes + v->bytes_count, string, length);
        v->bytes_count += length;
        v->slot[at] = (uint32_t)v->entries_count;
    }
    v->entry[v->slot[at] - 1].id = id;
    v->by_id[id] = v->slot[at];
}

uint32_t vocab_find(const struct vocab *v, const char *string, size_t length)
{
    size_t at = find_slot(v, string, length);
    return v->slot[at] ? v->entry[v->slot[at] - 1].id : TOKEN_NONE;
}

bool vocab_string(const struct vocab *v, uint32_t id, const char **string, size_t *length)
{
    if (id >= v->ids_end || v->by_id[id] == 0) return false;
    const struct vocab_entry *x = &v->entry[v->by_id[id] - 1];
    *string = v->bytes + x->start;
    *length = x->length;
    return true;
}
