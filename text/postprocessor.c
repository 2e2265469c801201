#include "text/postprocessor.h"

#include <string.h>

#include "common/mem.h"
#include "text/tokenizer.h"

/* Inserts an id in front of `at`. */
static enum err insert(struct id_list *l, size_t at, uint32_t id)
{
    enum err e = id_list_add(l, id);
    if (e != OK) return e;
    memmove(l->id + at + 1, l->id + at, (l->count - 1 - at) * sizeof *l->id);
    l->id[at] = id;
    return OK;
}

/* Processors run from the inside out: a later one's tokens stand outside. `outer` counts those that
 * this processor put in front. */
static enum err add(struct postprocessor *p, const struct place *at, bool in_front, size_t *outer,
                    uint64_t id)
{
    if (p->before.count + p->after.count >= POSTPROCESSOR_IDS_MAX)
        return place_error(at, ERR_UNSUPPORTED, "more than %d tokens", POSTPROCESSOR_IDS_MAX);
    if (!in_front) return id_list_add(&p->after, (uint32_t)id);
    return insert(&p->before, (*outer)++, (uint32_t)id);
}

static enum err add_special(struct postprocessor *p, const struct place *at, const json_t *json,
                            const json_t *piece, bool in_front, size_t *outer)
{
    const char *name;
    size_t length;
    struct place here = place_field(at, "SpecialToken");
    enum err e = place_object(&here, piece);
    if (e == OK) e = place_string(&here, piece, "id", &name, &length);
    if (e != OK) return e;
    const json_t *token = json_object_get(json_object_get(json, "special_tokens"), name);
    const json_t *ids = json_object_get(token, "ids");
    if (!json_is_array(ids))
        return place_error(&here, ERR_FORMAT, "\"%.60s\" is not among the special_tokens", name);
    for (size_t i = 0; e == OK && i < json_array_size(ids); i++) {
        uint64_t id;
        e = place_number(&here, json_array_get(ids, i), TOKENIZER_IDS_MAX - 1, &id);
        if (e == OK) e = add(p, &here, in_front, outer, id);
    }
    return e;
}

static enum err read_template(struct postprocessor *p, const struct place *at, const json_t *json)
{
    struct place single = place_field(at, "single");
    const json_t *list = json_object_get(json, "single");
    bool seen = false;
    size_t outer = 0;
    enum err e = place_array(&single, list);
    for (size_t i = 0; e == OK && i < json_array_size(list); i++) {
        struct place one = place_index(&single, i);
        const json_t *piece = json_array_get(list, i);
        const json_t *sequence = json_object_get(piece, "Sequence");
        const json_t *special = json_object_get(piece, "SpecialToken");
        if (special) {
            e = add_special(p, &one, json, special, !seen, &outer);
            continue;
        }
        const char *name = json_string_value(json_object_get(sequence, "id"));
        if (!name || strcmp(name, "A") != 0)
            return place_error(&one, ERR_FORMAT, "neither a SpecialToken nor the Sequence A");
        if (seen) return place_error(&one, ERR_UNSUPPORTED, "the text twice");
        seen = true;
    }
    if (e == OK && !seen) e = place_error(&single, ERR_UNSUPPORTED, "the text is left out");
    return e;
}

/* {"cls": ["<s>", 0], "sep": ["</s>", 2]} */
static enum err read_pair(const struct place *at, const json_t *json, const char *key, uint64_t *id)
{
    struct place here = place_field(at, key);
    const json_t *pair = json_object_get(json, key);
    enum err e = place_array(&here, pair);
    return e == OK ? place_number(&here, json_array_get(pair, 1), TOKENIZER_IDS_MAX - 1, id) : e;
}

static enum err read_around(struct postprocessor *p, const struct place *at, const json_t *json)
{
    uint64_t cls, sep;
    size_t outer = 0;
    enum err e = read_pair(at, json, "cls", &cls);
    if (e == OK) e = read_pair(at, json, "sep", &sep);
    if (e == OK) e = add(p, at, true, &outer, cls);
    return e == OK ? add(p, at, false, &outer, sep) : e;
}

static enum err read(void *part, const struct place *at, const json_t *json, const char *type)
{
    if (strcmp(type, "ByteLevel") == 0) return OK;
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(part, at, json);
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0)
        return read_around(part, at, json);
    return place_error(at, ERR_UNSUPPORTED, "post-processor \"%.60s\"", type);
}

enum err postprocessor_init(struct postprocessor *p, const struct place *at, const json_t *json)
{
    *p = (struct postprocessor){0};
    if (!json || json_is_null(json)) return OK;
    enum err e = place_steps(at, json, "processors", read, p);
    if (e != OK) postprocessor_fini(p);
    return e;
}

void postprocessor_fini(struct postprocessor *p)
{
    mem_free(p->before.id);
    mem_free(p->after.id);
    *p = (struct postprocessor){0};
}
