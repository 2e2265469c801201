#include "client/model_shape.h"

#include <glob.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"

static const struct family {
    const char *architecture;
    bool window_used; /* "sliding_window" means something */
} families[] = {
    {"LlamaForCausalLM", false},
    {"MistralForCausalLM", true},
};
enum { FAMILIES_COUNT = sizeof families / sizeof families[0] };

/* ---- config.json ---- */

struct source {
    const char *path;
    json_t *json;
};

static json_t *get(const struct source *s, const char *key)
{
    json_t *v = json_object_get(s->json, key);
    return json_is_null(v) ? NULL : v;
}

/* A whole number from 1 to `most`; `otherwise` if the key is absent, and 0 there: it must not be. */
static enum err get_count(const struct source *s, const char *key, uint32_t most,
                          uint32_t otherwise, uint32_t *out)
{
    json_t *v = get(s, key);
    *out = otherwise;
    if (!v && otherwise == 0) return err_set(ERR_FORMAT, "%s: \"%s\" is missing", s->path, key);
    if (!v) return OK;
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < 1 || n > most)
        return err_set(ERR_FORMAT, "%s: \"%s\" is no whole number from 1 to %u", s->path, key,
                       most);
    *out = (uint32_t)n;
    return OK;
}

static enum err get_flag(const struct source *s, const char *key, bool *out)
{
    json_t *v = get(s, key);
    if (v && !json_is_boolean(v))
        return err_set(ERR_FORMAT, "%s: \"%s\" is neither true nor false", s->path, key);
    *out = json_is_true(v);
    return OK;
}

static enum err parse_family(const struct source *s, const struct family **family)
{
    char known[256] = "";
    const char *name = json_string_value(json_array_get(get(s, "architectures"), 0));
    if (!name) return err_set(ERR_FORMAT, "%s: \"architectures\" names none", s->path);
    for (int i = 0; i < FAMILIES_COUNT; i++) {
        size_t n = strlen(known);
        *family = &families[i];
        if (strcmp(name, families[i].architecture) == 0) return OK;
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", families[i].architecture);
    }
    return err_set(ERR_UNSUPPORTED,
                   "%s: architecture \"%.64s\" is not known; these are: %s. One of the same form "
                   "can be told by numbers: --layers, --kv-heads, --head-dim ...",
                   s->path, name, known);
}

/* What weights are stored in; newer files say "dtype". Absent: fp32. */
static enum err parse_dtype(const struct source *s, enum dtype *out)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } known[] = {
        {"float32", DTYPE_F32},
        {"float16", DTYPE_F16},
        {"bfloat16", DTYPE_BF16},
    };
    json_t *v = get(s, "torch_dtype") ? get(s, "torch_dtype") : get(s, "dtype");
    const char *name = v ? json_string_value(v) : "float32";
    for (size_t i = 0; name && i < sizeof known / sizeof known[0]; i++) {
        *out = known[i].dtype;
        if (strcmp(name, known[i].name) == 0) return OK;
    }
    return err_set(ERR_UNSUPPORTED,
                   "%s: \"torch_dtype\" \"%.32s\" is not supported; these are: float32, float16, "
                   "bfloat16",
                   s->path, name ? name : "(no string)");
}

static enum err parse_heads(const struct source *s, struct model_shape *m)
{
    enum err e;
    if ((e = get_count(s, "num_attention_heads", SHAPE_HEADS_MAX, 0, &m->heads)) != OK) return e;
    if ((e = get_count(s, "num_key_value_heads", SHAPE_HEADS_MAX, m->heads, &m->kv_heads)) != OK)
        return e;
    if (m->heads % m->kv_heads != 0)
        return err_set(
            ERR_FORMAT,
            "%s: \"num_attention_heads\" %u is no multiple of \"num_key_value_heads\" %u", s->path,
            m->heads, m->kv_heads);
    if (!get(s, "head_dim") && m->hidden % m->heads != 0)
        return err_set(ERR_FORMAT,
                       "%s: without \"head_dim\", \"hidden_size\" %u must be a multiple of "
                       "\"num_attention_heads\" %u",
                       s->path, m->hidden, m->heads);
    return get_count(s, "head_dim", SHAPE_HEAD_DIM_MAX, m->hidden / m->heads, &m->head_dim);
}

static enum err parse_counts(const struct source *s, struct model_shape *m)
{
    const struct {
        const char *key;
        uint32_t most, otherwise, *out;
    } rows[] = {
        {"num_hidden_layers", SHAPE_LAYERS_MAX, 0, &m->layers},
        {"hidden_size", SHAPE_WIDTH_MAX, 0, &m->hidden},
        {"intermediate_size", SHAPE_WIDTH_MAX, 0, &m->ffn},
        {"vocab_size", SHAPE_VOCAB_MAX, 0, &m->vocab},
        {"max_position_embeddings", SHAPE_CONTEXT_MAX, 2048, &m->context},
    };
    enum err e = OK;
    for (size_t i = 0; e == OK && i < sizeof rows / sizeof rows[0]; i++)
        e = get_count(s, rows[i].key, rows[i].most, rows[i].otherwise, rows[i].out);
    return e;
}

static enum err parse_config(const struct source *s, struct model_shape *m)
{
    const struct family *family;
    enum err e;
    if ((e = parse_family(s, &family)) != OK) return e;
    m->architecture = family->architecture;
    if (get(s, "quantization_config"))
        return err_set(ERR_UNSUPPORTED,
                       "%s: \"quantization_config\": quantized weights are not supported", s->path);
    if ((e = parse_counts(s, m)) != OK || (e = parse_heads(s, m)) != OK) return e;
    if (family->window_used && get(s, "sliding_window") &&
        (e = get_count(s, "sliding_window", SHAPE_CONTEXT_MAX, 0, &m->window)) != OK)
        return e;
    if ((e = get_flag(s, "tie_word_embeddings", &m->tied)) != OK) return e;
    if ((e = get_flag(s, "attention_bias", &m->attention_bias)) != OK) return e;
    if ((e = get_flag(s, "mlp_bias", &m->mlp_bias)) != OK) return e;
    return parse_dtype(s, &m->dtype);
}

static enum err parse_object(json_t **json, const char *path, const void *bytes, size_t size)
{
    json_error_t error;
    *json = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error);
    if (!*json) return err_set(ERR_FORMAT, "%s: %s (line %d)", path, error.text, error.line);
    if (json_is_object(*json)) return OK;
    json_decref(*json);
    *json = NULL;
    return err_set(ERR_FORMAT, "%s: no JSON object", path);
}

enum err model_shape_parse(struct model_shape *shape, const char *path, const char *text,
                           size_t size)
{
    struct source s = {path, NULL};
    *shape = (struct model_shape){0};
    if (size > SHAPE_CONFIG_BYTES_MAX)
        return err_set(ERR_FORMAT, "%s: %zu bytes, at most %d", path, size, SHAPE_CONFIG_BYTES_MAX);
    enum err e = parse_object(&s.json, path, text, size);
    if (e == OK) e = parse_config(&s, shape);
    json_decref(s.json);
    return e;
}

enum err model_shape_load(struct model_shape *shape, const char *dir)
{
    char path[PATH_MAX];
    struct file_map map;
    if (snprintf(path, sizeof path, "%s/config.json", dir) >= (int)sizeof path)
        return err_set(ERR_INVALID, "%.64s...: the path is too long", dir);
    enum err e = file_map_open(&map, path);
    if (e != OK) return e;
    e = model_shape_parse(shape, path, (const char *)map.data, map.size_bytes);
    file_map_close(&map);
    return e;
}

/* ---- the headers of .safetensors ---- */

static bool multiply(uint64_t *product, json_t *dim)
{
    json_int_t n = json_integer_value(dim);
    return json_is_integer(dim) && n >= 0 &&
           !__builtin_mul_overflow(*product, (uint64_t)n, product);
}

static enum dtype dtype_of(const char *name)
{
    if (!name) return DTYPE_NONE;
    return strcmp(name, "F32") == 0    ? DTYPE_F32
           : strcmp(name, "F16") == 0  ? DTYPE_F16
           : strcmp(name, "BF16") == 0 ? DTYPE_BF16
                                       : DTYPE_NONE;
}

static enum err add_tensor(struct model_files *f, const char *path, const char *name, json_t *t)
{
    uint64_t elements = 1, bytes;
    json_t *shape = json_object_get(t, "shape"), *dim;
    size_t i;
    enum dtype dtype = dtype_of(json_string_value(json_object_get(t, "dtype")));
    bool good = dtype != DTYPE_NONE && json_is_array(shape);
    json_array_foreach(shape, i, dim) good = good && multiply(&elements, dim);
    if (!good || __builtin_mul_overflow(elements, dtype_bytes(dtype), &bytes) ||
        __builtin_add_overflow(f->bytes, bytes, &f->bytes))
        return err_set(ERR_FORMAT, "%s: tensor \"%.160s\" has no shape of F32, F16 or BF16", path,
                       name);
    f->parameters += elements;
    if (strcmp(name, "model.embed_tokens.weight") == 0) f->dtype = dtype;
    return OK;
}

enum err model_files_parse(struct model_files *files, const char *path, const unsigned char *bytes,
                           size_t size)
{
    uint64_t header = 0;
    json_t *json, *tensor;
    const char *name;
    for (int i = 7; i >= 0 && size >= 8; i--)
        header = header << 8 | bytes[i];
    if (size < 8 || header > size - 8 || header > SHAPE_HEADER_BYTES_MAX)
        return err_set(ERR_FORMAT, "%s: no .safetensors file: its header does not fit in", path);
    enum err e = parse_object(&json, path, bytes + 8, header);
    if (e != OK) return e;
    json_object_foreach(json, name, tensor)
    {
        if (e == OK && strcmp(name, "__metadata__") != 0) e = add_tensor(files, path, name, tensor);
    }
    json_decref(json);
    files->files_count++;
    return e;
}

static enum err load_files(struct model_files *files, const glob_t *found)
{
    enum err e = OK;
    if (found->gl_pathc > SHAPE_FILES_MAX)
        return err_set(ERR_FORMAT, "%s and others: %zu files, at most %d", found->gl_pathv[0],
                       found->gl_pathc, SHAPE_FILES_MAX);
    for (size_t i = 0; e == OK && i < found->gl_pathc; i++) {
        struct file_map map;
        if ((e = file_map_open(&map, found->gl_pathv[i])) != OK) return e;
        e = model_files_parse(files, found->gl_pathv[i], map.data, map.size_bytes);
        file_map_close(&map);
    }
    return e;
}

/* One file, or a set of several: never both, as exporters may leave the same tensors twice. */
enum err model_files_load(struct model_files *files, const char *dir)
{
    static const char *const patterns[] = {"model.safetensors", "model-*-of-*.safetensors"};
    char path[2 * PATH_MAX], escaped[PATH_MAX];
    size_t n = 0;
    *files = (struct model_files){0};
    for (const char *c = dir; *c && n < sizeof escaped - 2; c++) {
        if (strchr("\\*?[", *c)) escaped[n++] = '\\';
        escaped[n++] = *c;
    }
    escaped[n] = '\0';
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0] && files->files_count == 0; i++) {
        glob_t found;
        snprintf(path, sizeof path, "%s/%s", escaped, patterns[i]);
        int failed = glob(path, 0, NULL, &found);
        if (failed == GLOB_NOMATCH) continue;
        if (failed) return err_set(ERR_IO, "%s: the folder cannot be read", dir);
        enum err e = load_files(files, &found);
        globfree(&found);
        if (e != OK) return e;
    }
    return OK;
}
