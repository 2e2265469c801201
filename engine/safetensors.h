/* safetensors: the tensors of a model directory, found by name in mapped files.
 *
 *     struct tensors t;
 *     if ((e = tensors_open(&t, dir)) != OK) return e;        // model.safetensors, or a sharded set
 *     const struct tensor *w = tensors_find(&t, "lm_head.weight");       // NULL: there is none
 *     if (!w) return err_set(ERR_FORMAT, "%s: ...", t.dir);
 *     use(w->data, w->bytes);                                 // in the map: until tensors_close
 *     tensors_close(&t);
 *
 * A file is
 *
 *     offset  size  meaning
 *     0       8     header_bytes, little-endian
 *     8       h     JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and __metadata__
 *     8 + h         the data; offsets count from here
 *
 * Rules: a file that passes has every byte of its data in exactly one tensor (no gap, no overlap, no
 * rest), and each tensor's shape times its type's size equals its bytes. Everything else is an error
 * that names file and tensor. Numbers from the file are checked before anything is allocated or
 * added up; memory in use is bounded by the header's own size, and that by the file's.
 * The data is not aligned by the format: see tensor_aligned.
 * Owner: one thread. */
#ifndef TANDEM_ENGINE_SAFETENSORS_H
#define TANDEM_ENGINE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/file.h"
#include "common/geometry.h"

enum {
    TENSOR_DIMS_MAX = 8,
    TENSOR_FILES_MAX = 1024,
    TENSORS_MAX = 1 << 20,                  /* of a whole model */
    SAFETENSORS_HEADER_BYTES_MAX = 1 << 24, /* the largest published models need 1 MiB */
};

struct tensor {
    char *name;
    const unsigned char *data;
    uint64_t bytes;
    uint64_t dim[TENSOR_DIMS_MAX];
    uint32_t dims_count;
    uint32_t file_index; /* in tensors.file */
    enum dtype dtype;
};

struct tensor_file {
    char *path;
    struct file_map map;
};

struct tensors {
    char *dir;
    struct tensor_file *file; /* in the order of their names */
    uint32_t files_count;
    struct tensor *tensor; /* in the order of their names */
    uint32_t tensors_count, tensors_room;
};

enum err tensors_open(struct tensors *t, const char *dir);
void tensors_close(struct tensors *t); /* a zeroed or closed one is allowed */
const struct tensor *tensors_find(const struct tensors *t, const char *name);
/* ERR_FORMAT for a tensor that is not there, with the file, or the directory if there are several. */
enum err tensors_missing(const struct tensors *t, const char *name);

/* The parser alone, for one file's bytes that stay the caller's: adds its tensors to `t` under
 * `file_index`, unsorted. */
enum err tensors_parse(struct tensors *t, const char *path, const unsigned char *bytes,
                       size_t size_bytes, uint32_t file_index);

/* Whether elements may be read through a pointer of their type. */
static inline bool tensor_aligned(const struct tensor *t)
{
    return (uintptr_t)t->data % dtype_bytes(t->dtype) == 0;
}
/* "[32, 64] BF16" into text, for messages. */
enum { TENSOR_TEXT = 200 };
const char *tensor_describe(const struct tensor *t, char text[TENSOR_TEXT]);

#endif
