#include "tests/bench/shapes.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/tiny_model.h"

#define FOLDER TANDEM_BINARY_DIR "/bench-models"
#define CACHE FOLDER "/cache"

static const struct tiny_shape shape_s = {.hidden = 1024,
                                          .layers = 24,
                                          .heads = 16,
                                          .kv_heads = 8,
                                          .head_dim = 64,
                                          .ffn = 2816,
                                          .vocab = 50257,
                                          .context = 8192,
                                          .dtype = DTYPE_BF16,
                                          .seed = 1};
static const struct tiny_shape shape_m = {.hidden = 512,
                                          .layers = 8,
                                          .heads = 8,
                                          .kv_heads = 4,
                                          .head_dim = 64,
                                          .ffn = 1408,
                                          .vocab = 8192,
                                          .context = 8192,
                                          .dtype = DTYPE_BF16,
                                          .seed = 2};

static void must(int failed, const char *what)
{
    if (!failed) return;
    perror(what);
    exit(1);
}

/* It appears under its name when it is whole. */
static void make_model(const char *path, const struct tiny_shape *shape)
{
    char dir[] = FOLDER "/being-made-XXXXXX";
    fprintf(stderr, "making %s\n", path);
    must(!mkdtemp(dir), dir);
    tiny_model_write(dir, shape);
    must(rename(dir, path), path);
}

static const char *model(const char *path, const char *weights, const struct tiny_shape *shape)
{
    mkdir(FOLDER, 0755);
    if (access(weights, R_OK) != 0) make_model(path, shape);
    return path;
}

const char *shape_s_model(void)
{
    return model(FOLDER "/shape-s", FOLDER "/shape-s/model.safetensors", &shape_s);
}

const char *shape_m_model(void)
{
    return model(FOLDER "/shape-m", FOLDER "/shape-m/model.safetensors", &shape_m);
}

const char *shapes_cache(void)
{
    mkdir(FOLDER, 0755);
    mkdir(CACHE, 0755);
    return CACHE;
}
