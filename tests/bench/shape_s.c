#include "tests/bench/shape_s.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/tiny_model.h"

#define FOLDER TANDEM_BINARY_DIR "/bench-models"
#define MODEL FOLDER "/shape-s"
#define CACHE FOLDER "/cache"

static const struct tiny_shape shape = {.hidden = 1024,
                                        .layers = 24,
                                        .heads = 16,
                                        .kv_heads = 8,
                                        .head_dim = 64,
                                        .ffn = 2816,
                                        .vocab = 50257,
                                        .context = 8192,
                                        .dtype = DTYPE_BF16,
                                        .seed = 1};

static void must(int failed, const char *what)
{
    if (!failed) return;
    perror(what);
    exit(1);
}

/* It appears under its name when it is whole. */
static void make_model(void)
{
    char dir[] = FOLDER "/being-made-XXXXXX";
    fprintf(stderr, "making the model of shape S in %s\n", FOLDER);
    must(!mkdtemp(dir), dir);
    tiny_model_write(dir, &shape);
    must(rename(dir, MODEL), MODEL);
}

const char *shape_s_model(void)
{
    mkdir(FOLDER, 0755);
    if (access(MODEL "/model.safetensors", R_OK) != 0) make_model();
    return MODEL;
}

const char *shape_s_cache(void)
{
    mkdir(FOLDER, 0755);
    mkdir(CACHE, 0755);
    return CACHE;
}
