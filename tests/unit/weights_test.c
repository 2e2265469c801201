/* Weights are held together by config.json, and the cache file that keeps them packed is never
 * trusted further than its sums reach. */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "common/log.h"
#include "common/mem.h"
#include "engine/fingerprint.h"
#include "engine/weights.h"
#include "tests/unit/testing.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

struct fixture {
    char dir[SCRATCH_BYTES], cache[SCRATCH_BYTES + 16];
    struct tiny_shape shape;
    struct model_config config;
    struct tensors tensors;
    const struct backend_ops *ops;
    struct backend *backend;
    struct weights weights;
};

static int setup(void **state)
{
    struct fixture *f = mem_new(sizeof *f);
    *state = f;
    f->shape = (struct tiny_shape)TINY_SHAPE;
    scratch_make(f->dir);
    snprintf(f->cache, sizeof f->cache, "%s/cache", f->dir);
    tiny_model_write(f->dir, &f->shape);
    assert_ok(backend_find("cpu-c", &f->ops));
    assert_ok(f->ops->open(&f->backend, &(struct backend_options){.threads = 1}));
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    weights_close(&f->weights);
    f->ops->close(f->backend);
    scratch_remove(f->dir);
    mem_free(f);
    return 0;
}

/* What engine_open does, up to the weights. */
static enum err load(struct fixture *f, const char *cache_dir, enum dtype dtype)
{
    char made[CACHE_DIR_BYTES];
    struct weights_options o = {.ops = f->ops,
                                .backend = f->backend,
                                .config = &f->config,
                                .tensors = &f->tensors,
                                .dtype = dtype};
    enum err e;
    weights_close(&f->weights);
    if (cache_dir) {
        cache_dir_find(made, cache_dir);
        o.cache_dir = *made ? made : NULL;
    }
    if ((e = model_config_load(&f->config, f->dir)) != OK) return e;
    if ((e = tensors_open(&f->tensors, f->dir)) != OK) return e;
    if ((e = model_fingerprint(&o.model, &f->tensors, o.cache_dir)) == OK)
        e = weights_open(&f->weights, &o);
    tensors_close(&f->tensors);
    return e;
}

static void a_model_whose_tensors_do_not_fit_is_an_error_that_names_one(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *tensor, *renamed;
        uint32_t rows_more, columns_more;
        const char *said;
    } row[] = {
        {"model.norm.weight", "model.norm.wait", 0, 0,
         "model.safetensors: tensor \"model.norm.weight\" is missing"},
        {"lm_head.weight", "x", 0, 0, "\"lm_head.weight\" is missing"},
        {"model.layers.1.mlp.up_proj.weight", "x", 0, 0, "up_proj.weight\" is missing"},
        {"model.embed_tokens.weight", NULL, 1, 0,
         "is [41, 16] F32, by config.json it should be [40"},
        {"model.layers.0.self_attn.k_proj.weight", NULL, 0, 1, "is [8, 17] F32"},
        {"model.layers.1.input_layernorm.weight", NULL, 1, 0, "is [17] F32"},
    };
    struct tiny_tensor list[TINY_TENSORS_MAX];
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        uint32_t count = tiny_tensors(&f->shape, list);
        for (uint32_t t = 0; t < count; t++) {
            if (strcmp(list[t].name, row[i].tensor) != 0) continue;
            if (row[i].renamed) snprintf(list[t].name, sizeof list[t].name, "%s", row[i].renamed);
            list[t].dim[0] += row[i].rows_more;
            list[t].dim[1] += row[i].columns_more;
        }
        tiny_tensors_write(f->dir, "model.safetensors", list, count, 1);
        assert_int_equal(load(f, NULL, DTYPE_F32), ERR_FORMAT);
        if (!strstr(err_text(), row[i].said) || !strstr(err_text(), f->dir))
            fail_msg("%s: \"%s\"", row[i].tensor, err_text());
    }
}

static void a_tensor_too_many_is_an_error_unless_it_says_nothing(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *name;
        enum err wanted;
    } row[] = {
        {"model.layers.0.self_attn.rotary_emb.inv_freq", OK},
        {"lm_head.weight", OK}, /* tied below */
        {"model.layers.2.input_layernorm.weight", ERR_FORMAT},
        {"model.layers.0.self_attn.q_proj.bias", ERR_FORMAT},
        {"", ERR_FORMAT},
    };
    struct tiny_tensor list[TINY_TENSORS_MAX];
    f->shape.tied = true;
    tiny_config_write(f->dir, &f->shape);
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        uint32_t count = tiny_tensors(&f->shape, list);
        list[count] = (struct tiny_tensor){.dim = {4}, .dims_count = 1, .dtype = DTYPE_F32};
        snprintf(list[count].name, sizeof list[count].name, "%s", row[i].name);
        tiny_tensors_write(f->dir, "model.safetensors", list, count + 1, 1);
        assert_int_equal(load(f, NULL, DTYPE_F32), row[i].wanted);
        if (row[i].wanted != OK) assert_non_null(strstr(err_text(), "belongs to no part"));
    }
}

static void data_that_does_not_lie_evenly_packs_the_same(void **state)
{
    struct fixture *f = *state;
    char path[PATH_MAX];
    struct file_map map;
    snprintf(path, sizeof path, "%s/model.safetensors", f->dir);
    assert_ok(load(f, NULL, DTYPE_BF16));
    size_t size = f->weights.file.size_bytes;
    unsigned char *even = mem_new(size);
    memcpy(even, f->weights.file.bytes, size);

    assert_ok(file_map_open(&map, path)); /* the same file with one blank more in its header */
    unsigned char *odd = mem_new(map.size_bytes + 1);
    uint64_t header_bytes;
    memcpy(&header_bytes, map.data, 8);
    uint64_t longer = header_bytes + 1;
    memcpy(odd, &longer, 8);
    memcpy(odd + 8, map.data + 8, header_bytes);
    odd[8 + header_bytes] = ' ';
    memcpy(odd + 9 + header_bytes, map.data + 8 + header_bytes, map.size_bytes - 8 - header_bytes);
    scratch_write(f->dir, "model.safetensors", odd, map.size_bytes + 1);
    file_map_close(&map);

    assert_ok(load(f, NULL, DTYPE_BF16));
    assert_int_equal(f->weights.file.size_bytes, size);
    assert_memory_equal(f->weights.file.bytes, even, size);
    mem_free(odd);
    mem_free(even);
}

/* The one file in the cache that ends so. */
static void find_cached(const struct fixture *f, const char *ending, char path[PATH_MAX])
{
    DIR *d = opendir(f->cache);
    uint32_t found = 0;
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d));) {
        const char *dot = strrchr(entry->d_name, '.');
        if (!dot || strcmp(dot, ending) != 0) continue;
        snprintf(path, PATH_MAX, "%s/%s", f->cache, entry->d_name);
        found++;
    }
    closedir(d);
    assert_int_equal(found, 1);
}

static void the_second_start_maps_what_the_first_one_packed(void **state)
{
    struct fixture *f = *state;
    assert_ok(load(f, f->cache, DTYPE_BF16));
    assert_false(f->weights.cache_hit);
    assert_ok(load(f, f->cache, DTYPE_BF16));
    assert_true(f->weights.cache_hit);
    assert_ok(load(f, f->cache, DTYPE_F32)); /* another form */
    assert_false(f->weights.cache_hit);
    assert_ok(load(f, f->cache, DTYPE_F32));
    assert_true(f->weights.cache_hit);
}

static void other_weights_under_the_same_name_are_packed_anew(void **state)
{
    struct fixture *f = *state;
    assert_ok(load(f, f->cache, DTYPE_F32));
    f->shape.seed++;
    tiny_model_write(f->dir, &f->shape); /* the same size; other time, other contents */
    assert_ok(load(f, f->cache, DTYPE_F32));
    assert_false(f->weights.cache_hit);
}

static void a_damaged_cache_is_packed_anew(void **state)
{
    struct fixture *f = *state;
    char path[PATH_MAX];
    assert_ok(load(f, f->cache, DTYPE_F32));
    find_cached(f, ".pack", path);
    off_t size = (off_t)f->weights.file.size_bytes;
    static const long places[] = {0, 8, 12, 16, 24, 32, 36, 40, 48, 56, 64, 72, 500, -1};
    log_setup(LOG_OFF, NULL);
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        FILE *file = fopen(path, "r+b");
        assert_non_null(file);
        assert_int_equal(fseek(file, places[i], places[i] < 0 ? SEEK_END : SEEK_SET), 0);
        int byte = fgetc(file);
        assert_int_equal(fseek(file, -1, SEEK_CUR), 0);
        fputc(byte ^ 1, file);
        fclose(file);
        assert_ok(load(f, f->cache, DTYPE_F32));
        if (f->weights.cache_hit) fail_msg("a flipped bit at %ld went unseen", places[i]);
        assert_ok(load(f, f->cache, DTYPE_F32));
        assert_true(f->weights.cache_hit);
    }
    const off_t sizes[] = {0, 1, 63, 64, 200, size - 1, size + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        weights_close(&f->weights);
        assert_int_equal(truncate(path, sizes[i]), 0);
        assert_ok(load(f, f->cache, DTYPE_F32));
        if (f->weights.cache_hit) fail_msg("a file of %lld bytes was taken", (long long)sizes[i]);
    }
    log_setup(LOG_INFO, NULL);
}

static void a_damaged_note_is_only_a_slower_start(void **state)
{
    struct fixture *f = *state;
    char path[PATH_MAX];
    assert_ok(load(f, f->cache, DTYPE_F32));
    find_cached(f, ".model", path);
    static const off_t sizes[] = {0, 7, 31, 40};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        assert_int_equal(truncate(path, sizes[i]), 0);
        assert_ok(load(f, f->cache, DTYPE_F32));
        assert_true(f->weights.cache_hit); /* the contents still have their name */
    }
}

static void a_cache_that_cannot_be_written_is_done_without(void **state)
{
    struct fixture *f = *state;
    char path[PATH_MAX];
    log_setup(LOG_OFF, NULL);
    scratch_write(f->dir, "file", "", 0);
    snprintf(path, sizeof path, "%s/file/below", f->dir);
    assert_ok(load(f, path, DTYPE_F32));
    assert_false(f->weights.file.in_file);
    assert_ok(load(f, f->cache, DTYPE_F32));
    find_cached(f, ".pack", path);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0); /* neither readable nor replaceable */
    assert_ok(load(f, f->cache, DTYPE_F32));
    assert_false(f->weights.file.in_file);
    log_setup(LOG_INFO, NULL);
}

static void two_copies_of_a_model_have_one_name(void **state)
{
    struct fixture *f = *state;
    struct id128 here, there;
    char copy[SCRATCH_BYTES];
    scratch_make(copy);
    tiny_model_write(copy, &f->shape);
    assert_ok(tensors_open(&f->tensors, f->dir));
    assert_ok(model_fingerprint(&here, &f->tensors, NULL));
    tensors_close(&f->tensors);
    assert_ok(tensors_open(&f->tensors, copy));
    assert_ok(model_fingerprint(&there, &f->tensors, NULL));
    tensors_close(&f->tensors);
    assert_true(id128_equal(here, there));
    f->shape.context++;
    tiny_config_write(copy, &f->shape);
    assert_ok(tensors_open(&f->tensors, copy));
    assert_ok(model_fingerprint(&there, &f->tensors, NULL));
    tensors_close(&f->tensors);
    assert_false(id128_equal(here, there));
    scratch_remove(copy);
}

int main(void)
{
#define WITH_MODEL(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_MODEL(a_model_whose_tensors_do_not_fit_is_an_error_that_names_one),
        WITH_MODEL(a_tensor_too_many_is_an_error_unless_it_says_nothing),
        WITH_MODEL(data_that_does_not_lie_evenly_packs_the_same),
        WITH_MODEL(the_second_start_maps_what_the_first_one_packed),
        WITH_MODEL(other_weights_under_the_same_name_are_packed_anew),
        WITH_MODEL(a_damaged_cache_is_packed_anew),
        WITH_MODEL(a_damaged_note_is_only_a_slower_start),
        WITH_MODEL(a_cache_that_cannot_be_written_is_done_without),
        WITH_MODEL(two_copies_of_a_model_have_one_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
