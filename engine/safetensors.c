#include "engine/safetensors.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/byte_order.h"
#include "common/mem.h"
#include "common/json.h"

/* Names come from the file: a message shows this much of one. */
#define NAME_SHOWN "%.160s"

static const char *dtype_name(enum dtype t)
{
    static const char *const names[] = {"none", "F32", "F16", "BF16"};
    return names[t];
}

const char *tensor_describe(const struct tensor *t, char text[TENSOR_TEXT])
{
    size_t n = 0;
    text[n++] = '[';
    for (uint32_t i = 0; i < t->dims_count; i++)
        n += (size_t)snprintf(text + n, TENSOR_TEXT - n, "%s%" PRIu64, i ? ", " : "", t->dim[i]);
    snprintf(text + n, TENSOR_TEXT - n, "] %s", dtype_name(t->dtype));
    return text;
}

/* One tensor's entry in the header. */

struct entry {
    const char *path, *name;
    uint64_t data_bytes; /* of the whole file */
};

static enum err refuse(const struct entry *at, const char *what)
{
    return err_set(ERR_FORMAT, "%s: tensor \"" NAME_SHOWN "\": %s", at->path, at->name, what);
}

static enum err parse_dtype(const struct entry *at, const json_t *info, struct tensor *t)
{
    const char *name = json_string_value(json_object_get(info, "dtype"));
    if (!name) return refuse(at, "it has no \"dtype\"");
    for (enum dtype d = DTYPE_F32; d <= DTYPE_BF16; d++)
        if (strcmp(name, dtype_name(d)) == 0) t->dtype = d;
    if (t->dtype != DTYPE_NONE) return OK;
    return err_set(ERR_UNSUPPORTED,
                   "%s: tensor \"" NAME_SHOWN
                   "\": dtype is \"%.16s\", supported are BF16, F16, F32",
                   at->path, at->name, name);
}

/* A number from the file: whole and not negative. */
static bool is_count(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

/* shape x element size in *bytes. */
static enum err parse_shape(const struct entry *at, const json_t *info, struct tensor *t,
                            uint64_t *bytes)
{
    const json_t *shape = json_object_get(info, "shape");
    if (!json_is_array(shape)) return refuse(at, "it has no \"shape\"");
    if (json_array_size(shape) > TENSOR_DIMS_MAX)
        return err_set(ERR_FORMAT, "%s: tensor \"" NAME_SHOWN "\": %zu dimensions, at most %d",
                       at->path, at->name, json_array_size(shape), TENSOR_DIMS_MAX);
    *bytes = dtype_bytes(t->dtype);
    for (size_t i = 0; i < json_array_size(shape); i++) {
        if (!is_count(json_array_get(shape, i), &t->dim[i]))
            return refuse(at, "its \"shape\" has something that is no count");
        if (__builtin_mul_overflow(*bytes, t->dim[i], bytes))
            return refuse(at, "its \"shape\" is larger than any memory");
    }
    t->dims_count = (uint32_t)json_array_size(shape);
    return OK;
}

static enum err parse_offsets(const struct entry *at, const json_t *info, uint64_t *begin,
                              uint64_t *end)
{
    const json_t *offsets = json_object_get(info, "data_offsets");
    if (json_array_size(offsets) != 2 || !is_count(json_array_get(offsets, 0), begin) ||
        !is_count(json_array_get(offsets, 1), end))
        return refuse(at, "it has no \"data_offsets\": [begin, end]");
    if (*begin > *end || *end > at->data_bytes)
        return err_set(ERR_FORMAT,
                       "%s: tensor \"" NAME_SHOWN "\": data_offsets are %" PRIu64 " to %" PRIu64
                       ", the file has %" PRIu64 " bytes of data",
                       at->path, at->name, *begin, *end, at->data_bytes);
    return OK;
}

static enum err parse_tensor(const struct entry *at, const json_t *info, const unsigned char *data,
                             struct tensor *t)
{
    enum err e;
    uint64_t bytes = 0, begin = 0, end = 0;
    if (!json_is_object(info)) return refuse(at, "it is no object");
    if ((e = parse_dtype(at, info, t)) != OK) return e;
    if ((e = parse_shape(at, info, t, &bytes)) != OK) return e;
    if ((e = parse_offsets(at, info, &begin, &end)) != OK) return e;
    char text[TENSOR_TEXT];
    if (bytes != end - begin)
        return err_set(ERR_FORMAT,
                       "%s: tensor \"" NAME_SHOWN "\": %s is %" PRIu64
                       " bytes, data_offsets hold %" PRIu64,
                       at->path, at->name, tensor_describe(t, text), bytes, end - begin);
    t->data = data + begin;
    t->bytes = bytes;
    return OK;
}

/* All tensors of one file. */

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* empty ones first */
}

/* Every byte of the data belongs to exactly one tensor. */
static enum err check_cover(struct tensor *tensor, uint32_t count, const char *path,
                            const unsigned char *data, uint64_t data_bytes)
{
    uint64_t end = 0;
    if (count > 1) qsort(tensor, count, sizeof *tensor, by_place);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t begin = (uint64_t)(tensor[i].data - data);
        if (begin < end)
            return err_set(ERR_FORMAT,
                           "%s: tensor \"" NAME_SHOWN "\" begins at %" PRIu64
                           " and overlaps \"%.100s\", which ends at %" PRIu64,
                           path, tensor[i].name, begin, tensor[i - 1].name, end);
        if (begin > end)
            return err_set(ERR_FORMAT,
                           "%s: tensor \"" NAME_SHOWN "\" begins at %" PRIu64 ", %" PRIu64
                           " bytes before it belong to no tensor",
                           path, tensor[i].name, begin, begin - end);
        end = begin + tensor[i].bytes;
    }
    if (end == data_bytes) return OK;
    return err_set(ERR_FORMAT,
                   "%s: the tensors end at %" PRIu64 ", the file has %" PRIu64 " bytes of data",
                   path, end, data_bytes);
}

static enum err parse_header(json_t **header, const char *path, const unsigned char *bytes,
                             size_t size_bytes, uint64_t *header_bytes)
{
    if (size_bytes < 8)
        return err_set(ERR_FORMAT, "%s: %zu bytes, a safetensors file has at least 8", path,
                       size_bytes);
    *header_bytes = le64_get(bytes);
    if (*header_bytes > size_bytes - 8)
        return err_set(ERR_FORMAT,
                       "%s: the header should have %" PRIu64 " bytes, the file ends after %zu",
                       path, *header_bytes, size_bytes - 8);
    if (*header_bytes > SAFETENSORS_HEADER_BYTES_MAX)
        return err_set(ERR_FORMAT, "%s: the header has %" PRIu64 " bytes, at most %d", path,
                       *header_bytes, SAFETENSORS_HEADER_BYTES_MAX);
    return json_object_parse(header, path, bytes + 8, *header_bytes);
}

/* Room for `more` tensors; a failed growth leaves what is there. */
static enum err reserve(struct tensors *t, size_t more)
{
    size_t need = t->tensors_count + more;
    if (need > TENSORS_MAX)
        return err_set(ERR_FORMAT, "%zu tensors, at most %d", need, TENSORS_MAX);
    if (need <= t->tensors_room) return OK;
    struct tensor *grown = mem_resize(t->tensor, need, sizeof *grown);
    if (!grown) return ERR_MEMORY;
    t->tensor = grown;
    t->tensors_room = (uint32_t)need;
    return OK;
}

static enum err parse_tensors(struct tensors *t, const char *path, json_t *header,
                              const unsigned char *data, uint64_t data_bytes, uint32_t file_index)
{
    enum err e;
    const char *name;
    json_t *info;
    if ((e = reserve(t, json_object_size(header))) != OK) return err_prefix(e, "%s", path);
    json_object_foreach(header, name, info)
    {
        struct entry at = {path, name, data_bytes};
        struct tensor one = {.file_index = file_index};
        if (strcmp(name, "__metadata__") == 0) {
            if (json_is_object(info)) continue;
            return err_set(ERR_FORMAT, "%s: __metadata__ is no object", path);
        }
        if ((e = parse_tensor(&at, info, data, &one)) != OK) return e;
        if (!(one.name = mem_copy_string(name))) return ERR_MEMORY;
        t->tensor[t->tensors_count++] = one;
    }
    return OK;
}

enum err tensors_parse(struct tensors *t, const char *path, const unsigned char *bytes,
                       size_t size_bytes, uint32_t file_index)
{
    uint64_t header_bytes = 0;
    json_t *header = NULL;
    uint32_t first = t->tensors_count;
    enum err e = parse_header(&header, path, bytes, size_bytes, &header_bytes);
    if (e != OK) goto done;
    const unsigned char *data = bytes + 8 + header_bytes;
    uint64_t data_bytes = size_bytes - 8 - header_bytes;
    if ((e = parse_tensors(t, path, header, data, data_bytes, file_index)) != OK) goto done;
    struct tensor *added = t->tensor ? t->tensor + first : NULL;
    e = check_cover(added, t->tensors_count - first, path, data, data_bytes);
done:
    json_decref(header);
    return e;
}

/* The files of a model. */

static char *join(const char *dir, const char *name)
{
    size_t bytes = strlen(dir) + strlen(name) + 2;
    char *path = mem_new(bytes);
    if (path) snprintf(path, bytes, "%s/%s", dir, name);
    return path;
}

/* Opens dir/name as the next file; a name that is there already is that one. */
static enum err add_file(struct tensors *t, const char *name)
{
    struct tensor_file *f = &t->file[t->files_count];
    if (!(f->path = join(t->dir, name))) return ERR_MEMORY;
    t->files_count++;
    enum err e = file_map_open(&f->map, f->path);
    if (e != OK) return e;
    return tensors_parse(t, f->path, f->map.data, f->map.size_bytes, t->files_count - 1);
}

static enum err open_single(struct tensors *t)
{
    if (!(t->file = mem_array(1, sizeof *t->file))) return ERR_MEMORY;
    return add_file(t, "model.safetensors");
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A shard lies beside its index: no folders, no way out. */
static enum err check_shard_name(const char *index_path, const char *tensor, const char *name)
{
    if (!name)
        return err_set(ERR_FORMAT, "%s: tensor \"" NAME_SHOWN "\": no file name", index_path,
                       tensor);
    if (*name == '\0' || *name == '.' || strchr(name, '/') || strlen(name) > NAME_MAX)
        return err_set(ERR_FORMAT,
                       "%s: tensor \"" NAME_SHOWN "\": \"%.64s\" is no file name beside the index",
                       index_path, tensor, name);
    return OK;
}

/* The different file names in the index, sorted; they stay the JSON's. */
static enum err shard_names(const char *index_path, json_t *map, const char ***out, uint32_t *count)
{
    const char *tensor;
    json_t *value;
    size_t n = 0;
    const char **name = mem_array(json_object_size(map), sizeof *name);
    if (!(*out = name)) return ERR_MEMORY;
    json_object_foreach(map, tensor, value)
    {
        enum err e = check_shard_name(index_path, tensor, json_string_value(value));
        if (e != OK) return e;
        name[n++] = json_string_value(value);
    }
    qsort(name, n, sizeof *name, by_text);
    *count = 0;
    for (size_t i = 0; i < n; i++) {
        if (*count > 0 && strcmp(name[*count - 1], name[i]) == 0) continue;
        if (*count == TENSOR_FILES_MAX)
            return err_set(ERR_FORMAT, "%s: more than %d files", index_path, TENSOR_FILES_MAX);
        name[(*count)++] = name[i];
    }
    return OK;
}

static enum err open_shards(struct tensors *t, const char *index_path, json_t *map)
{
    const char **name = NULL;
    uint32_t count = 0;
    enum err e = shard_names(index_path, map, &name, &count);
    if (e == OK && !(t->file = mem_array(count, sizeof *t->file))) e = ERR_MEMORY;
    for (uint32_t i = 0; e == OK && i < count; i++)
        e = add_file(t, name[i]);
    mem_free(name);
    return e;
}

/* Index and shards name the same tensors in the same places. */
static enum err check_index(const struct tensors *t, const char *index_path, json_t *map)
{
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        const struct tensor *w = tensors_find(t, name);
        const char *file = json_string_value(value);
        const char *found = w ? strrchr(t->file[w->file_index].path, '/') + 1 : "no file";
        if (strcmp(found, file) != 0)
            return err_set(ERR_FORMAT,
                           "%s: tensor \"" NAME_SHOWN "\" should be in %.64s, it is in %.64s",
                           index_path, name, file, found);
    }
    for (uint32_t i = 0; i < t->tensors_count; i++)
        if (!json_object_get(map, t->tensor[i].name))
            return err_set(ERR_FORMAT, "%s: tensor \"" NAME_SHOWN "\" is not in the index",
                           t->file[t->tensor[i].file_index].path, t->tensor[i].name);
    return OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

static enum err sort_by_name(struct tensors *t)
{
    if (t->tensors_count > 1) qsort(t->tensor, t->tensors_count, sizeof *t->tensor, by_name);
    for (uint32_t i = 1; i < t->tensors_count; i++)
        if (strcmp(t->tensor[i - 1].name, t->tensor[i].name) == 0)
            return err_set(ERR_FORMAT, "%s: tensor \"" NAME_SHOWN "\" is also in %.200s",
                           t->file[t->tensor[i].file_index].path, t->tensor[i].name,
                           t->file[t->tensor[i - 1].file_index].path);
    return OK;
}

static enum err open_sharded(struct tensors *t, const char *index_path)
{
    json_t *index = NULL;
    struct file_map map;
    enum err e = file_map_open(&map, index_path);
    if (e != OK) return e;
    if (map.size_bytes > SAFETENSORS_HEADER_BYTES_MAX) {
        e = err_set(ERR_FORMAT, "%s: %zu bytes, at most %d", index_path, map.size_bytes,
                    SAFETENSORS_HEADER_BYTES_MAX);
        goto done;
    }
    if ((e = json_object_parse(&index, index_path, map.data, map.size_bytes)) != OK) goto done;
    json_t *names = json_object_get(index, "weight_map");
    if (json_object_size(names) == 0)
        e = err_set(ERR_FORMAT, "%s: it has no \"weight_map\"", index_path);
    else if ((e = open_shards(t, index_path, names)) == OK && (e = sort_by_name(t)) == OK)
        e = check_index(t, index_path, names);
done:
    json_decref(index);
    file_map_close(&map);
    return e;
}

enum err tensors_open(struct tensors *t, const char *dir)
{
    enum err e = ERR_MEMORY;
    char *single = join(dir, "model.safetensors");
    char *index = join(dir, "model.safetensors.index.json");
    *t = (struct tensors){.dir = mem_copy_string(dir)};
    if (!single || !index || !t->dir) goto done;
    if (access(single, F_OK) == 0)
        e = (e = open_single(t)) != OK ? e : sort_by_name(t);
    else if (access(index, F_OK) == 0)
        e = open_sharded(t, index);
    else
        e = err_set(ERR_NOT_FOUND,
                    "%s: neither model.safetensors nor model.safetensors.index.json is there", dir);
done:
    mem_free(single);
    mem_free(index);
    if (e != OK) tensors_close(t);
    return e;
}

void tensors_close(struct tensors *t)
{
    for (uint32_t i = 0; i < t->tensors_count; i++)
        mem_free(t->tensor[i].name);
    for (uint32_t i = 0; i < t->files_count; i++) {
        file_map_close(&t->file[i].map);
        mem_free(t->file[i].path);
    }
    mem_free(t->tensor);
    mem_free(t->file);
    mem_free(t->dir);
    *t = (struct tensors){0};
}

const struct tensor *tensors_find(const struct tensors *t, const char *name)
{
    struct tensor wanted = {.name = (char *)(uintptr_t)name};
    if (t->tensors_count == 0) return NULL;
    return bsearch(&wanted, t->tensor, t->tensors_count, sizeof *t->tensor, by_name);
}

enum err tensors_missing(const struct tensors *t, const char *name)
{
    const char *where = t->files_count == 1 ? t->file[0].path : t->dir;
    return err_set(ERR_FORMAT, "%s: tensor \"%s\" is missing", where, name);
}
