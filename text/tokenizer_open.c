/* tokenizer_open: reads tokenizer.json and tokenizer_config.json into a tokenizer. */
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "common/mem.h"
#include "common/utf8.h"
#include "text/tokenizer_parts.h"

/* Deeper nesting than any tokenizer file has is refused by jansson itself (2048 levels). */
static enum err parse(json_t **out, const char *name, const char *bytes, size_t length)
{
    json_error_t why;
    if (length > TOKENIZER_FILE_MAX)
        return err_set(ERR_FORMAT, "%s: %zu bytes, at most %zu", name, length, TOKENIZER_FILE_MAX);
    size_t mark = utf8_mark(bytes, length);
    *out = json_loadb(bytes + mark, length - mark, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
    /* Out of memory is what jansson says nothing about. */
    if (!*out && (!why.text[0] || json_error_code(&why) == json_error_out_of_memory))
        return err_set(ERR_MEMORY, "%s: out of memory", name);
    if (!*out) return err_set(ERR_FORMAT, "%s: line %d: %.200s", name, why.line, why.text);
    struct place at = {.file = name};
    return place_object(&at, *out);
}

static enum err check_version(const struct place *at, const json_t *json)
{
    const char *version;
    size_t length;
    if (!place_has(json, "version")) return OK;
    enum err e = place_string(at, json, "version", &version, &length);
    if (e != OK || strcmp(version, "1.0") == 0) return e;
    return place_error(at, ERR_UNSUPPORTED, "version \"%.40s\"", version);
}

static enum err read_model(struct tokenizer *t, const struct place *at, const json_t *json)
{
    const char *type = "BPE"; /* files of early versions do not say it */
    size_t length;
    const json_t *model = json_object_get(json, "model");
    struct place here = place_field(at, "model");
    enum err e = place_object(&here, model);
    if (e == OK && place_has(model, "type")) e = place_string(&here, model, "type", &type, &length);
    if (e != OK) return e;
    if (strcmp(type, "BPE") != 0)
        return place_error(&here, ERR_UNSUPPORTED, "type \"%.40s\", only BPE is offered", type);
    return bpe_init(&t->model, &here, model);
}

static enum err read_parts(struct tokenizer *t, const struct place *at, const json_t *json)
{
    enum err e = check_version(at, json);
    if (e == OK) e = read_model(t, at, json);
    struct place part = place_field(at, "normalizer");
    if (e == OK) e = normalizer_init(&t->normalizer, &part, json_object_get(json, "normalizer"));
    part = place_field(at, "added_tokens");
    if (e == OK)
        e = added_init(&t->added, &part, json_object_get(json, "added_tokens"), &t->model.vocab);
    if (e == OK) e = added_index(&t->added, &part, &t->normalizer);
    part = place_field(at, "pre_tokenizer");
    if (e == OK)
        e = pretokenizer_init(&t->pretokenizer, &part, json_object_get(json, "pre_tokenizer"));
    part = place_field(at, "post_processor");
    if (e == OK)
        e = postprocessor_init(&t->postprocessor, &part, json_object_get(json, "post_processor"));
    part = place_field(at, "decoder");
    if (e == OK) e = decoder_init(&t->decoder, &part, json_object_get(json, "decoder"));
    t->ids_end = t->added.ids_end;
    return e;
}

/* "bos_token": "<s>" or {"content": "<s>"}; null or missing: none. */
static enum err read_config_token(struct tokenizer *t, const struct place *at, const json_t *json,
                                  const char *key, uint32_t *id)
{
    const char *s;
    size_t length;
    enum err e;
    if (!place_has(json, key)) return OK;
    struct place here = place_field(at, key);
    const json_t *token = json_object_get(json, key);
    if (json_is_object(token))
        e = place_string(&here, token, "content", &s, &length);
    else
        e = place_string(at, json, key, &s, &length);
    if (e == OK) *id = tokenizer_find(t, s, length);
    return e;
}

static enum err read_config(struct tokenizer *t, const char *name, const char *bytes, size_t length)
{
    json_t *json = NULL;
    struct place at = {.file = name};
    enum err e = parse(&json, name, bytes, length);
    if (e == OK) e = read_config_token(t, &at, json, "bos_token", &t->bos);
    if (e == OK) e = read_config_token(t, &at, json, "eos_token", &t->eos);
    json_decref(json);
    return e;
}

static enum err open_named(struct tokenizer **out, const struct tokenizer_source *source,
                           const char *config_name)
{
    json_t *json = NULL;
    struct place at = {.file = source->name};
    struct tokenizer *t = mem_new(sizeof *t);
    if (!t) return ERR_MEMORY;
    t->bos = t->eos = TOKEN_NONE;
    enum err e = parse(&json, source->name, source->json, source->json_length);
    if (e == OK) e = read_parts(t, &at, json);
    if (e == OK && source->config)
        e = read_config(t, config_name, source->config, source->config_length);
    json_decref(json);
    if (e == OK)
        *out = t;
    else
        tokenizer_close(t);
    return e;
}

enum err tokenizer_open_bytes(struct tokenizer **out, const struct tokenizer_source *source)
{
    return open_named(out, source, source->name);
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    decoder_fini(&t->decoder);
    postprocessor_fini(&t->postprocessor);
    pretokenizer_fini(&t->pretokenizer);
    added_fini(&t->added);
    normalizer_fini(&t->normalizer);
    bpe_fini(&t->model);
    mem_free(t);
}

/* ---- files ---- */

static enum err join_path(char *path, size_t size, const char *dir, const char *name)
{
    int n = snprintf(path, size, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= size) return err_set(ERR_INVALID, "%.100s...: too long a path", dir);
    return OK;
}

enum err tokenizer_open(struct tokenizer **out, const char *model_dir)
{
    char path[4096], config_path[4096];
    struct file_map json = {0}, config = {0};
    bool has_config = true;
    enum err e = join_path(path, sizeof path, model_dir, "tokenizer.json");
    if (e == OK) e = join_path(config_path, sizeof config_path, model_dir, "tokenizer_config.json");
    if (e == OK) e = file_map_open(&json, path);
    if (e == OK && (e = file_map_open(&config, config_path)) == ERR_NOT_FOUND) {
        has_config = false;
        e = OK;
    }
    if (e == OK) {
        struct tokenizer_source source = {path, (const char *)json.data, json.size_bytes,
                                          has_config ? (const char *)config.data : NULL,
                                          config.size_bytes};
        e = open_named(out, &source, config_path);
    }
    file_map_close(&config);
    file_map_close(&json);
    return e;
}
