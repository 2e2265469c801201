/* msg_copy: a message with all that it points to, into another arena; by the table of msg_fields.h. */
#include <string.h>

#include "common/hash.h"
#include "proto/msg_fields.h"

/* Replaces the pointer of a field by one to a copy of what it points to. */
static enum err copy_array(const struct field *f, char *c, struct arena *a, size_t item_bytes)
{
    uint32_t count;
    const void *items;
    memcpy(&count, c + f->c_count, sizeof count);
    memcpy(&items, c + f->c, sizeof items);
    if (!items) return OK;
    items = arena_copy(a, items, count * item_bytes);
    memcpy(c + f->c, &items, sizeof items);
    return items ? OK : ERR_MEMORY;
}

static enum err copy_string(const char **s, struct arena *a)
{
    *s = !*s || !**s ? "" : arena_copy(a, *s, strlen(*s));
    return *s ? OK : ERR_MEMORY;
}

static enum err copy_strings(const struct field *f, char *c, struct arena *a)
{
    enum err e = copy_array(f, c, a, sizeof(char *));
    const char **items;
    uint32_t count;
    memcpy(&items, c + f->c, sizeof items);
    memcpy(&count, c + f->c_count, sizeof count);
    for (uint32_t i = 0; i < count && e == OK; i++)
        e = copy_string(&items[i], a);
    return e;
}

static enum err copy_runs(const struct field *f, char *c, struct arena *a)
{
    enum err e = copy_array(f, c, a, sizeof(struct token_run));
    struct msg_tokens *m = (void *)c;
    struct token_run *runs = (struct token_run *)m->runs;
    for (uint32_t i = 0; i < m->runs_count && e == OK; i++) {
        runs[i].tokens =
            arena_copy(a, runs[i].tokens, runs[i].tokens_count * sizeof *runs[i].tokens);
        if (!runs[i].tokens) e = ERR_MEMORY;
    }
    return e;
}

static enum err copy_fields(const struct part *p, char *c, struct arena *a);

static enum err copy_field(const struct field *f, char *c, struct arena *a)
{
    enum err e;
    const char *text;
    switch (f->type) {
    case FIELD_NAME:
    case FIELD_STRING:
    case FIELD_PROSE:
        memcpy(&text, c + f->c, sizeof text);
        e = copy_string(&text, a);
        memcpy(c + f->c, &text, sizeof text);
        return e;
    case FIELD_BYTES: return copy_array(f, c, a, 1);
    case FIELD_FLOATS: return copy_array(f, c, a, sizeof(float));
    case FIELD_IDS: return copy_array(f, c, a, sizeof(uint32_t));
    case FIELD_HASHES: return copy_array(f, c, a, sizeof(uint64_t));
    case FIELD_STRINGS: return copy_strings(f, c, a);
    case FIELD_BIAS: return copy_array(f, c, a, sizeof(struct logit_bias));
    case FIELD_KEYS: return copy_array(f, c, a, sizeof(struct job_key));
    case FIELD_TOKENS: return copy_array(f, c, a, sizeof(struct token_info));
    case FIELD_RUNS: return copy_runs(f, c, a);
    case FIELD_PART: return copy_fields(f->part, c + f->c, a);
    default: return OK; /* copied with the struct */
    }
}

static enum err copy_fields(const struct part *p, char *c, struct arena *a)
{
    enum err e = OK;
    for (uint32_t i = 0; i < p->fields_count && e == OK; i++)
        e = copy_field(&p->fields[i], c, a);
    return e;
}

enum err msg_copy(const struct msg *from, struct arena *arena, struct msg *to)
{
    const struct part *part = msg_part(from->kind);
    *to = *from;
    return copy_fields(part, (char *)to + part->c, arena);
}

uint64_t job_key_hash(struct job_key key)
{
    return hash64(&key, sizeof key); /* four numbers without padding */
}
