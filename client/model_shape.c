#include "client/model_shape.h"

#include <glob.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/byte_order.h"
#include "common/file.h"
#include "common/json.h"
#include "common/model_config.h"

/* ---- config.json ---- */

/* What weights are stored in; newer files say "dtype". Absent: fp32. */
static enum err parse_dtype(const json_t *config, const char *path, enum dtype *out)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } known[] = {
        {"float32", DTYPE_F32},
        {"float16", DTYPE_F16},
        {"bfloat16", DTYPE_BF16},
    };
    const json_t *v = json_object_get(config, "torch_dtype");
    if (!v || json_is_null(v)) v = json_object_get(config, "dtype");
    const char *name = v && !json_is_null(v) ? json_string_value(v) : "float32";
    for (size_t i = 0; name && i < sizeof known / sizeof known[0]; i++) {
        *out = known[i].dtype;
        if (strcmp(name, known[i].name) == 0) return OK;
    }
    return err_set(ERR_UNSUPPORTED,
                   "%s: \"torch_dtype\" \"%.32s\" is not supported; these are: float32, float16, "
                   "bfloat16",
                   path, name ? name : "(no string)");
}

static struct model_shape shape_of(const struct model_config *c)
{
    return (struct model_shape){.architecture = c->family->architecture,
                                .layers = c->layers_count,
                                .heads = c->heads,
                                .kv_heads = c->kv_heads,
                                .head_dim = c->head_dim,
                                .hidden = c->hidden,
                                .ffn = c->ffn,
                                .vocab = c->vocab_count,
                                .context = c->context_max,
                                .window = c->window,
                                .tied = c->tied,
                                .attention_bias = c->attention_bias,
                                .mlp_bias = c->mlp_bias};
}

/* As nodes read it, and what weights are stored in, which they take from the files. */
enum err model_shape_parse(struct model_shape *shape, const char *path, const char *text,
                           size_t size)
{
    struct model_config c;
    json_t *json;
    *shape = (struct model_shape){0};
    enum err e = model_config_parse(&c, path, text, size);
    if (e != OK) return e;
    *shape = shape_of(&c);
    if ((e = json_object_parse(&json, path, text, size)) != OK) return e;
    e = parse_dtype(json, path, &shape->dtype);
    json_decref(json);
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
    uint64_t header = size >= 8 ? le64_get(bytes) : UINT64_MAX;
    json_t *json, *tensor;
    const char *name;
    if (header > SHAPE_HEADER_BYTES_MAX || header > size - 8)
        return err_set(ERR_FORMAT, "%s: no .safetensors file: its header does not fit in", path);
    enum err e = json_object_parse(&json, path, bytes + 8, header);
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
