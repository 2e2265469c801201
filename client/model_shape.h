/* model_shape: what a model's files say about its size, for planning, without its numbers.
 *
 *     struct model_shape shape;
 *     struct model_files files;
 *     if ((e = model_shape_load(&shape, dir)) != OK) return e;        // said: file, key, value, allowed
 *     if ((e = model_files_load(&files, dir)) != OK) return e;        // all zero: no files with tensors
 *
 * Rules: of a .safetensors file only the header is read. A family whose tensors are not known here is
 * refused by its name, as nodes do. Zero in a shape is what was not said; what came from a file has
 * everything but window. Any thread. */
#ifndef TANDEM_CLIENT_MODEL_SHAPE_H
#define TANDEM_CLIENT_MODEL_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/geometry.h"

enum {
    SHAPE_LAYERS_MAX = 1024,
    SHAPE_WIDTH_MAX = 1 << 20,
    SHAPE_HEADS_MAX = 1024,
    SHAPE_HEAD_DIM_MAX = 1024,
    SHAPE_VOCAB_MAX = 1 << 22,
    SHAPE_CONTEXT_MAX = 1 << 24,
    SHAPE_FILES_MAX = 1024,
    SHAPE_HEADER_BYTES_MAX = 1 << 24,
};

struct model_shape {
    const char *architecture; /* a constant; NULL: told by numbers */
    uint32_t layers, heads, kv_heads, head_dim, hidden, ffn, vocab, context;
    uint32_t window; /* tokens that attention looks back; 0: all */
    bool tied;       /* lm_head is the embedding */
    bool attention_bias, mlp_bias;
    enum dtype dtype; /* of the weights in the files */
};

/* What the headers of a directory's .safetensors files add up to. */
struct model_files {
    uint32_t files_count;
    uint64_t parameters, bytes;
    enum dtype dtype; /* of the embedding */
};

enum err model_shape_load(struct model_shape *shape, const char *dir);
enum err model_files_load(struct model_files *files, const char *dir);

/* The parsers alone; `path` is for messages. The second adds the tensors of one file. */
enum err model_shape_parse(struct model_shape *shape, const char *path, const char *text,
                           size_t size);
enum err model_files_parse(struct model_files *files, const char *path, const unsigned char *bytes,
                           size_t size);

#endif
