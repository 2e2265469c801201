#include "common/model_config.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "common/json.h"

static const struct model_family families[] = {
    /* architecture       window_used */
    {"LlamaForCausalLM", false},
    {"MistralForCausalLM", true},
};
enum { FAMILIES_COUNT = sizeof families / sizeof families[0] };

/* The object that is being read, for messages. */
struct source {
    const char *path;
    json_t *json;
};

/* The value of a key, NULL if it is absent or null. */
static json_t *get(const struct source *s, const char *key)
{
    json_t *v = json_object_get(s->json, key);
    return json_is_null(v) ? NULL : v;
}

struct range {
    const char *key;
    uint32_t low, high;
};

/* A whole number within its range; `otherwise` if the key is absent, and 0 there: it must not be. */
static enum err get_count(const struct source *s, struct range r, uint32_t otherwise, uint32_t *out)
{
    json_t *v = get(s, r.key);
    if (!v && otherwise == 0) return err_set(ERR_FORMAT, "%s: \"%s\" is missing", s->path, r.key);
    *out = otherwise;
    if (!v) return OK;
    if (!json_is_integer(v))
        return err_set(ERR_FORMAT, "%s: \"%s\" is no whole number", s->path, r.key);
    json_int_t n = json_integer_value(v);
    if (n < r.low || n > r.high)
        return err_set(ERR_FORMAT, "%s: \"%s\" is %lld, allowed is %u to %u", s->path, r.key,
                       (long long)n, r.low, r.high);
    *out = (uint32_t)n;
    return OK;
}

/* A number above 0, within reason; `otherwise` if the key is absent, and 0 there: it must not be. */
static enum err get_positive(const struct source *s, const char *key, double otherwise, double *out)
{
    json_t *v = get(s, key);
    if (!v && otherwise == 0) return err_set(ERR_FORMAT, "%s: \"%s\" is missing", s->path, key);
    *out = v ? json_number_value(v) : otherwise;
    if (*out >= 1e-30 && *out <= 1e30) return OK;
    return err_set(ERR_FORMAT, "%s: \"%s\" is no number from 1e-30 to 1e30", s->path, key);
}

static enum err get_flag(const struct source *s, const char *key, bool *out)
{
    json_t *v = get(s, key);
    if (v && !json_is_boolean(v))
        return err_set(ERR_FORMAT, "%s: \"%s\" is neither true nor false", s->path, key);
    *out = json_is_true(v);
    return OK;
}

static enum err parse_family(const struct source *s, struct model_config *c)
{
    json_t *list = get(s, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (json_array_size(list) != 1 || !name)
        return err_set(ERR_FORMAT, "%s: \"architectures\" is no list of one name", s->path);
    for (int i = 0; i < FAMILIES_COUNT; i++)
        if (strcmp(name, families[i].architecture) == 0) c->family = &families[i];
    if (c->family) return OK;
    char known[256] = "";
    for (int i = 0; i < FAMILIES_COUNT; i++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", families[i].architecture);
    }
    return err_set(ERR_UNSUPPORTED, "%s: architecture \"%.64s\" is not supported; these are: %s",
                   s->path, name, known);
}

/* Settings that would change the arithmetic in ways that are not built: refused unless they are at
 * the value that changes nothing. */
static enum err refuse_unknown(const struct source *s)
{
    const char *act = json_string_value(get(s, "hidden_act"));
    if (get(s, "hidden_act") && (!act || strcmp(act, "silu") != 0))
        return err_set(ERR_UNSUPPORTED, "%s: \"hidden_act\" is \"%.32s\", supported is silu",
                       s->path, act ? act : "no string");
    if (get(s, "quantization_config"))
        return err_set(ERR_UNSUPPORTED,
                       "%s: \"quantization_config\": quantized weights are not supported", s->path);
    json_t *part = get(s, "partial_rotary_factor");
    if (part && json_number_value(part) != 1.0)
        return err_set(ERR_UNSUPPORTED,
                       "%s: \"partial_rotary_factor\" other than 1 is not supported", s->path);
    return OK;
}

static enum err parse_shape(const struct source *s, struct model_config *c)
{
    enum err e;
    struct range hidden = {"hidden_size", 1, MODEL_WIDTH_MAX};
    struct range ffn = {"intermediate_size", 1, MODEL_WIDTH_MAX};
    struct range layers = {"num_hidden_layers", 1, MODEL_LAYERS_MAX};
    struct range heads = {"num_attention_heads", 1, MODEL_HEADS_MAX};
    struct range kv_heads = {"num_key_value_heads", 1, MODEL_HEADS_MAX};
    struct range head_dim = {"head_dim", 1, MODEL_HEAD_DIM_MAX};
    struct range vocab = {"vocab_size", 1, MODEL_VOCAB_MAX};
    struct range context = {"max_position_embeddings", 1, MODEL_CONTEXT_MAX};
    if ((e = get_count(s, hidden, 0, &c->hidden)) != OK) return e;
    if ((e = get_count(s, ffn, 0, &c->ffn)) != OK) return e;
    if ((e = get_count(s, layers, 0, &c->layers_count)) != OK) return e;
    if ((e = get_count(s, heads, 0, &c->heads)) != OK) return e;
    if ((e = get_count(s, kv_heads, c->heads, &c->kv_heads)) != OK) return e;
    if (c->heads % c->kv_heads != 0)
        return err_set(ERR_FORMAT,
                       "%s: \"num_attention_heads\" %u is no multiple of "
                       "\"num_key_value_heads\" %u",
                       s->path, c->heads, c->kv_heads);
    if (!get(s, "head_dim") && c->hidden % c->heads != 0)
        return err_set(ERR_FORMAT,
                       "%s: without \"head_dim\", \"hidden_size\" %u must be a multiple of "
                       "\"num_attention_heads\" %u",
                       s->path, c->hidden, c->heads);
    uint32_t derived = c->hidden >= c->heads ? c->hidden / c->heads : 1;
    if ((e = get_count(s, head_dim, derived, &c->head_dim)) != OK) return e;
    if (c->head_dim % 2 != 0 || c->head_dim > MODEL_HEAD_DIM_MAX)
        return err_set(ERR_UNSUPPORTED,
                       "%s: \"head_dim\" is %u; rotary positions turn pairs, so it must be even "
                       "and at most %d",
                       s->path, c->head_dim, MODEL_HEAD_DIM_MAX);
    if ((e = get_count(s, vocab, 0, &c->vocab_count)) != OK) return e;
    return get_count(s, context, 2048, &c->context_max);
}

/* The kind's name is "rope_type", "type" in older files. */
static enum err parse_rope_kind(const struct source *s, struct rope_config *r)
{
    const char *name = json_string_value(get(s, "rope_type"));
    if (!name) name = json_string_value(get(s, "type"));
    if (!name || strcmp(name, "default") == 0)
        r->kind = ROPE_PLAIN;
    else if (strcmp(name, "linear") == 0)
        r->kind = ROPE_LINEAR;
    else if (strcmp(name, "llama3") == 0)
        r->kind = ROPE_LLAMA3;
    else if (strcmp(name, "dynamic") == 0 || strcmp(name, "longrope") == 0)
        return err_set(ERR_UNSUPPORTED,
                       "%s: rope type \"%s\" depends on the total length of a text, so cached KV "
                       "could not be shared; supported are default, linear, llama3",
                       s->path, name);
    else
        return err_set(
            ERR_UNSUPPORTED,
            "%s: rope type \"%.32s\" is not supported; these are: default, linear, llama3", s->path,
            name);
    return OK;
}

static enum err parse_rope_scaling(const struct source *s, struct rope_config *r)
{
    enum err e = parse_rope_kind(s, r);
    if (e != OK || r->kind == ROPE_PLAIN) return e;
    if ((e = get_positive(s, "factor", 0, &r->factor)) != OK || r->kind == ROPE_LINEAR) return e;
    if ((e = get_positive(s, "low_freq_factor", 0, &r->low_factor)) != OK) return e;
    if ((e = get_positive(s, "high_freq_factor", 0, &r->high_factor)) != OK) return e;
    if (r->high_factor <= r->low_factor)
        return err_set(ERR_FORMAT, "%s: \"high_freq_factor\" is not above \"low_freq_factor\"",
                       s->path);
    return get_positive(s, "original_max_position_embeddings", 0, &r->original_positions);
}

/* "rope_theta" and "rope_scaling" beside the other settings, or since transformers 5 all of them
 * in "rope_parameters". */
static enum err parse_rope(const struct source *s, struct rope_config *r)
{
    enum err e;
    json_t *all = get(s, "rope_parameters"), *scaling = get(s, "rope_scaling");
    if ((all && !json_is_object(all)) || (scaling && !json_is_object(scaling)))
        return err_set(ERR_FORMAT, "%s: \"%s\" is no object", s->path,
                       all ? "rope_parameters" : "rope_scaling");
    if ((e = get_positive(s, "rope_theta", 10000.0, &r->theta)) != OK) return e;
    if (!all && !scaling) return OK;
    struct source inner = {s->path, all ? all : scaling};
    if (all && (e = get_positive(&inner, "rope_theta", r->theta, &r->theta)) != OK) return e;
    if (get(&inner, "partial_rotary_factor")) return refuse_unknown(&inner);
    return parse_rope_scaling(&inner, r);
}

static enum err add_eos(const struct source *s, struct model_config *c, const json_t *id)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) >= c->vocab_count)
        return err_set(ERR_FORMAT, "%s: \"eos_token_id\" has something that is no id below %u",
                       s->path, c->vocab_count);
    if (c->eos_count == MODEL_EOS_MAX)
        return err_set(ERR_FORMAT, "%s: \"eos_token_id\" has more than %d ids", s->path,
                       MODEL_EOS_MAX);
    c->eos[c->eos_count++] = (uint32_t)json_integer_value(id);
    return OK;
}

/* One id or a list; absent: what is there stays. */
static enum err parse_eos(const struct source *s, struct model_config *c)
{
    enum err e;
    json_t *ids = get(s, "eos_token_id");
    if (!ids) return OK;
    c->eos_count = 0;
    if (!json_is_array(ids)) return add_eos(s, c, ids);
    for (size_t i = 0; i < json_array_size(ids); i++)
        if ((e = add_eos(s, c, json_array_get(ids, i))) != OK) return e;
    return OK;
}

static enum err parse_window(const struct source *s, struct model_config *c)
{
    struct range r = {"sliding_window", 1, MODEL_CONTEXT_MAX};
    if (!c->family->window_used || !get(s, r.key)) return OK;
    return get_count(s, r, 0, &c->window);
}

static enum err parse_all(const struct source *s, struct model_config *c)
{
    enum err e;
    double eps;
    if ((e = parse_family(s, c)) != OK) return e;
    if ((e = refuse_unknown(s)) != OK) return e;
    if ((e = parse_shape(s, c)) != OK) return e;
    if ((e = get_positive(s, "rms_norm_eps", 1e-6, &eps)) != OK) return e;
    c->norm_eps = (float)eps;
    if ((e = parse_rope(s, &c->rope)) != OK) return e;
    if ((e = parse_window(s, c)) != OK) return e;
    if ((e = get_flag(s, "tie_word_embeddings", &c->tied)) != OK) return e;
    if ((e = get_flag(s, "attention_bias", &c->attention_bias)) != OK) return e;
    if ((e = get_flag(s, "mlp_bias", &c->mlp_bias)) != OK) return e;
    return parse_eos(s, c);
}

static enum err load_object(json_t **json, const char *path, const char *text, size_t size)
{
    *json = NULL;
    if (size > MODEL_CONFIG_BYTES_MAX)
        return err_set(ERR_FORMAT, "%s: %zu bytes, at most %d", path, size, MODEL_CONFIG_BYTES_MAX);
    return json_object_parse(json, path, text, size);
}

enum err model_config_parse(struct model_config *c, const char *path, const char *text, size_t size)
{
    struct source s = {path, NULL};
    *c = (struct model_config){0};
    enum err e = load_object(&s.json, path, text, size);
    if (e == OK) e = parse_all(&s, c);
    json_decref(s.json);
    return e;
}

enum err model_generation_parse(struct model_config *c, const char *path, const char *text,
                                size_t size)
{
    struct source s = {path, NULL};
    enum err e = load_object(&s.json, path, text, size);
    if (e == OK) e = parse_eos(&s, c);
    json_decref(s.json);
    return e;
}

enum err model_config_load(struct model_config *c, const char *dir)
{
    char path[PATH_MAX];
    struct file_map map;
    enum err e;
    if (snprintf(path, sizeof path, "%s/generation_config.json", dir) >= (int)sizeof path)
        return err_set(ERR_INVALID, "%.64s...: the path is too long", dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    if ((e = file_map_open(&map, path)) != OK) return e;
    e = model_config_parse(c, path, (const char *)map.data, map.size_bytes);
    file_map_close(&map);
    if (e != OK) return e;
    snprintf(path, sizeof path, "%s/generation_config.json", dir);
    e = file_map_open(&map, path);
    if (e == ERR_NOT_FOUND) return OK; /* it is optional */
    if (e != OK) return e;
    e = model_generation_parse(c, path, (const char *)map.data, map.size_bytes);
    file_map_close(&map);
    return e;
}
