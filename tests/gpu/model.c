#include "tests/gpu/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "kernels/numbers.h"

enum { BLOCK_ELEMENTS = (1 << 22) + 1 };

static const struct gpu_shape shapes[] = {
    {.name = "8b",
     .about = "Llama 3 8B's shape",
     .model = {.hidden = 4096,
               .layers = 32,
               .heads = 32,
               .kv_heads = 8,
               .head_dim = 128,
               .ffn = 14336,
               .vocab = 128256,
               .context = 40960,
               .dtype = DTYPE_BF16},
     .prefill = {512, 2048, 8192, 32768},
     .context = {1024, 8192},
     .batch = {1, 8, 32, 128},
     .rounds = 64,
     .product_side = 8192,
     .copy_bytes = (uint64_t)4 << 30},
    {.name = "1b",
     .about = "Llama 3.2 1B's shape",
     .model = {.hidden = 2048,
               .layers = 16,
               .heads = 32,
               .kv_heads = 8,
               .head_dim = 64,
               .ffn = 8192,
               .vocab = 128256,
               .context = 40960,
               .tied = true,
               .dtype = DTYPE_BF16},
     .prefill = {512, 2048, 8192, 32768},
     .context = {1024, 8192},
     .batch = {1, 8, 32, 128},
     .rounds = 64,
     .product_side = 8192,
     .copy_bytes = (uint64_t)4 << 30},
    {.name = "toy",
     .about = "a shape for trying the benchmark itself",
     .model = {.hidden = 64,
               .layers = 2,
               .heads = 4,
               .kv_heads = 2,
               .head_dim = 16,
               .ffn = 128,
               .vocab = 128,
               .context = 256,
               .dtype = DTYPE_BF16},
     .prefill = {8, 24},
     .context = {16, 40},
     .batch = {1, 3},
     .rounds = 4,
     .product_side = 64,
     .copy_bytes = 1 << 16},
};

const struct gpu_shape *gpu_shape_find(const char *name)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (strcmp(shapes[i].name, name) == 0) return &shapes[i];
    return NULL;
}

static void must(bool done, const char *what)
{
    if (done) return;
    perror(what);
    exit(1);
}

static uint64_t elements(const struct tiny_tensor *t)
{
    return (uint64_t)t->dim[0] * (t->dims_count > 1 ? t->dim[1] : 1);
}

/* The format: 8 bytes of length, a JSON object of names, types, shapes and offsets, the data. */
static char *make_header(const struct tiny_tensor *list, uint32_t count, uint64_t *size)
{
    const size_t room = (size_t)count * 256 + 64;
    char *text = mem_array(room, 1);
    uint64_t at = 0, used = 0;
    must(text != NULL, "memory");
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bytes = elements(&list[i]) * dtype_bytes(list[i].dtype);
        used +=
            (uint64_t)snprintf(text + used, room - used, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%u",
                               i == 0 ? '{' : ',', list[i].name,
                               list[i].dtype == DTYPE_BF16 ? "BF16" : "F32", list[i].dim[0]);
        if (list[i].dims_count > 1)
            used += (uint64_t)snprintf(text + used, room - used, ",%u", list[i].dim[1]);
        used += (uint64_t)snprintf(text + used, room - used, "],\"data_offsets\":[%llu,%llu]}",
                                   (unsigned long long)at, (unsigned long long)(at + bytes));
        at += bytes;
    }
    text[used++] = '}';
    while (used % 8 != 0)
        text[used++] = ' ';
    *size = used;
    return text;
}

/* bf16 numbers of a size that keeps activations in range, evenly spread around zero. */
static uint16_t *make_block(void)
{
    uint16_t *block = mem_array(BLOCK_ELEMENTS, sizeof *block);
    must(block != NULL, "memory");
    for (uint32_t i = 0; i < BLOCK_ELEMENTS; i += 4) {
        struct rng_block r = rng_draw(1, 2, i);
        for (uint32_t j = 0; j < 4 && i + j < BLOCK_ELEMENTS; j++)
            block[i + j] = bf16_from_f32(0.03f * (2 * rng_unit(r.word[j]) - 1));
    }
    return block;
}

void gpu_model_write(const char *dir, const struct gpu_shape *shape)
{
    static struct tiny_tensor list[TINY_TENSORS_MAX];
    uint32_t count = tiny_tensors(&shape->model, list);
    char path[512];
    uint64_t header_bytes, left = 0;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "wb");
    must(f != NULL, path);
    char *header = make_header(list, count, &header_bytes);
    uint16_t *block = make_block();
    must(fwrite(&header_bytes, 8, 1, f) == 1 && fwrite(header, header_bytes, 1, f) == 1, path);
    for (uint32_t i = 0; i < count; i++)
        left += elements(&list[i]);
    while (left > 0) {
        size_t n = left < BLOCK_ELEMENTS ? (size_t)left : BLOCK_ELEMENTS;
        must(fwrite(block, sizeof *block, n, f) == n, path);
        left -= n;
    }
    must(fclose(f) == 0, path);
    tiny_config_write(dir, &shape->model);
    mem_free(header);
    mem_free(block);
}
