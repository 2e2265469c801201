#include "replay/trace.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/clock.h"
#include "common/geometry.h"
#include "common/hash.h"
#include "common/map.h"
#include "common/mem.h"
#include "common/utf8.h"

struct reader {
    struct trace *t;
    struct map known;   /* (unit before + 1, or tenant if none is; what follows it) to 1 + unit */
    struct map tenants; /* hash of a name to 1 + index */
    uint64_t requests_capacity, units_capacity, tenants_capacity;
    uint32_t tokens[BLOCK_TOKENS];
};

static enum err grow(void **array, uint64_t *capacity, uint64_t count, size_t size)
{
    if (count < *capacity) return OK;
    uint64_t more = *capacity ? 2 * *capacity : 1024;
    void *grown = mem_resize(*array, more, size);
    if (!grown) return ERR_MEMORY;
    *array = grown;
    *capacity = more;
    return OK;
}

static enum err add_unit(struct reader *r, struct trace_request *q, uint64_t content)
{
    enum err e;
    struct trace *t = r->t;
    uint64_t before =
        q->units_count ? t->unit[t->units_count - 1] + UINT64_C(1) : (uint64_t)q->tenant << 32;
    struct id128 key = {before, content};
    uintptr_t unit = (uintptr_t)map_get(&r->known, key);
    if (t->units_count == TRACE_UNITS_MAX)
        return err_set(ERR_INVALID, "more than %d parts of prompts", TRACE_UNITS_MAX);
    if (unit == 0) {
        unit = ++t->units_known;
        if ((e = map_put(&r->known, key, (void *)unit)) != OK) return e;
    }
    if ((e = grow((void **)&t->unit, &r->units_capacity, t->units_count, sizeof *t->unit)) != OK)
        return e;
    t->unit[t->units_count++] = (uint32_t)(unit - 1);
    q->units_count++;
    return OK;
}

static bool small_number(const json_t *v, uint64_t max)
{
    return json_is_integer(v) && json_integer_value(v) >= 0 &&
           (uint64_t)json_integer_value(v) <= max;
}

static enum err add_hashes(struct reader *r, struct trace_request *q, const json_t *line,
                           const json_t *ids)
{
    enum err e;
    const json_t *length = json_object_get(line, "input_length");
    if (!small_number(length, TRACE_TOKENS_MAX))
        return err_set(ERR_FORMAT, "input_length is not 0 ... %d", TRACE_TOKENS_MAX);
    q->tokens_count = (uint32_t)json_integer_value(length);
    size_t wanted = (q->tokens_count + TRACE_HASH_TOKENS - 1) / TRACE_HASH_TOKENS;
    if (json_array_size(ids) != wanted)
        return err_set(ERR_FORMAT, "%zu hash_ids, where %u tokens have %zu", json_array_size(ids),
                       q->tokens_count, wanted);
    for (size_t i = 0; i < wanted; i++) {
        const json_t *id = json_array_get(ids, i);
        if (!small_number(id, INT64_MAX)) return err_set(ERR_FORMAT, "hash_ids[%zu] is no hash", i);
        if ((e = add_unit(r, q, (uint64_t)json_integer_value(id))) != OK) return e;
    }
    return OK;
}

static enum err add_tokens(struct reader *r, struct trace_request *q, const json_t *tokens)
{
    enum err e;
    size_t count = json_array_size(tokens);
    if (count > TRACE_TOKENS_MAX)
        return err_set(ERR_FORMAT, "%zu tokens, more than %d", count, TRACE_TOKENS_MAX);
    q->tokens_count = (uint32_t)count;
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(tokens, i);
        if (!small_number(id, UINT32_MAX))
            return err_set(ERR_FORMAT, "tokens[%zu] is no token id", i);
        r->tokens[i % BLOCK_TOKENS] = (uint32_t)json_integer_value(id);
        if ((i + 1) % BLOCK_TOKENS != 0) continue;
        if ((e = add_unit(r, q, hash64(r->tokens, sizeof r->tokens))) != OK) return e;
    }
    return OK;
}

static enum err add_tenant(struct reader *r, const char *name)
{
    enum err e;
    struct trace *t = r->t;
    if (t->tenants_count == TRACE_TENANTS_MAX)
        return err_set(ERR_INVALID, "more than %d tenants", TRACE_TENANTS_MAX);
    e = grow((void **)&t->tenant, &r->tenants_capacity, t->tenants_count, sizeof *t->tenant);
    if (e != OK) return e;
    struct trace_tenant *tenant = &t->tenant[t->tenants_count];
    *tenant = (struct trace_tenant){0};
    snprintf(tenant->name, sizeof tenant->name, "%s", name);
    struct id128 key = map_key(hash64(name, strlen(name)));
    if ((e = map_put(&r->tenants, key, (void *)(uintptr_t)(t->tenants_count + 1))) != OK) return e;
    t->tenants_count++;
    return OK;
}

static enum err find_tenant(struct reader *r, const json_t *value, uint32_t *index)
{
    enum err e;
    const char *name = value ? json_string_value(value) : "";
    if (!name || strlen(name) > TENANT_NAME_MAX)
        return err_set(ERR_FORMAT, "tenant is no name of at most %d bytes", TENANT_NAME_MAX);
    struct id128 key = map_key(hash64(name, strlen(name)));
    if (!map_get(&r->tenants, key) && (e = add_tenant(r, name)) != OK) return e;
    *index = (uint32_t)((uintptr_t)map_get(&r->tenants, key) - 1);
    return OK;
}

static enum err add_request(struct reader *r, const json_t *line)
{
    enum err e;
    struct trace *t = r->t;
    const json_t *ids = json_object_get(line, "hash_ids"), *at = json_object_get(line, "timestamp");
    const json_t *tokens = json_object_get(line, "tokens");
    if (json_is_array(ids) == json_is_array(tokens))
        return err_set(ERR_FORMAT, "neither an array hash_ids nor an array tokens, or both");
    uint32_t unit_blocks = ids ? TRACE_HASH_TOKENS / BLOCK_TOKENS : 1;
    if (t->requests_count > 0 && unit_blocks != t->unit_blocks)
        return err_set(ERR_FORMAT, "hash_ids and tokens in one file");
    t->unit_blocks = unit_blocks;
    if (t->requests_count == TRACE_REQUESTS_MAX)
        return err_set(ERR_INVALID, "more than %d requests", TRACE_REQUESTS_MAX);
    if (at && !(json_is_number(at) && json_number_value(at) >= 0 && json_number_value(at) < 1e12))
        return err_set(ERR_FORMAT, "timestamp is not a number of milliseconds");
    struct trace_request q = {.unit_first = t->units_count};
    if (at) q.at_ns = (uint64_t)(json_number_value(at) * (double)NS_PER_MS);
    if (t->requests_count > 0 && q.at_ns < t->request[t->requests_count - 1].at_ns)
        q.at_ns = t->request[t->requests_count - 1].at_ns; /* time does not go back */
    if ((e = find_tenant(r, json_object_get(line, "tenant"), &q.tenant)) != OK) return e;
    if ((e = ids ? add_hashes(r, &q, line, ids) : add_tokens(r, &q, tokens)) != OK) return e;
    e = grow((void **)&t->request, &r->requests_capacity, t->requests_count, sizeof q);
    if (e != OK) return e;
    t->request[t->requests_count++] = q;
    t->tokens_count += q.tokens_count;
    t->tenant[q.tenant].requests_count++;
    t->tenant[q.tenant].tokens_count += q.tokens_count;
    if (q.tokens_count > t->tokens_max) t->tokens_max = q.tokens_count;
    return OK;
}

static enum err add_line(struct reader *r, const char *text, size_t bytes)
{
    json_error_t at;
    if (strspn(text, " \t\r\n") == bytes) return OK;
    if (strstr(text, "ContextTokens"))
        return err_set(ERR_FORMAT,
                       "a table of lengths: what the prompts have in common is not in it; "
                       "a trace needs hash_ids or tokens");
    json_t *line = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &at);
    if (!line) return err_set(ERR_FORMAT, "no JSON: %s", at.text);
    enum err e = add_request(r, line);
    json_decref(line);
    return e;
}

enum err trace_read(struct trace *t, const char *path)
{
    *t = (struct trace){0};
    struct reader r = {.t = t};
    enum err e = add_tenant(&r, "");
    char *text = NULL;
    size_t capacity = 0;
    ssize_t bytes;
    FILE *file = fopen(path, "r");
    if (!file && e == OK) e = err_set(ERR_NOT_FOUND, "%s: %s", path, strerror(errno));
    for (uint64_t line = 1; e == OK && (bytes = getline(&text, &capacity, file)) >= 0; line++) {
        size_t mark = line == 1 ? utf8_mark(text, (size_t)bytes) : 0;
        if ((e = add_line(&r, text + mark, (size_t)bytes - mark)) == OK) continue;
        char why[256];
        snprintf(why, sizeof why, "%s", err_text());
        e = err_set(e, "%s:%llu: %s", path, (unsigned long long)line, why);
    }
    if (e == OK && ferror(file)) e = err_set(ERR_IO, "%s: %s", path, strerror(errno));
    if (e == OK && t->tokens_count == 0) e = err_set(ERR_FORMAT, "%s: no prompts", path);
    if (file) fclose(file);
    free(text);
    map_fini(&r.known);
    map_fini(&r.tenants);
    if (e != OK) trace_free(t);
    return e;
}

void trace_free(struct trace *t)
{
    mem_free(t->request);
    mem_free(t->unit);
    mem_free(t->tenant);
    *t = (struct trace){0};
}
