#include "tests/golden/fixture.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "tests/unit/testing.h"

const char *fixture_source_dir = TANDEM_SOURCE_DIR;
const char *const *fixture_backends;
uint32_t fixture_longest = UINT32_MAX;

const void *take(struct cursor *c, size_t size)
{
    assert_true((size_t)(c->end - c->at) >= size);
    const void *p = c->at;
    c->at += size;
    return p;
}

uint32_t take_u32(struct cursor *c)
{
    uint32_t v;
    memcpy(&v, take(c, sizeof v), sizeof v);
    return v;
}

float take_f32(struct cursor *c)
{
    float v;
    memcpy(&v, take(c, sizeof v), sizeof v);
    return v;
}

void fixture_arguments(int argc, char **argv)
{
    static const char *one[2];
    if (argc > 1) one[0] = argv[1];
    fixture_backends = argc > 1 ? one : backend_names();
    if (argc > 2) fixture_longest = (uint32_t)strtoul(argv[2], NULL, 10);
    if (getenv("TANDEM_SOURCE_DIR")) fixture_source_dir = getenv("TANDEM_SOURCE_DIR");
}

void fixture_open(struct engine **engine, struct step **step, const struct engine_options *options)
{
    if (engine_open(engine, options) != OK)
        fail_msg("%s on %s: %s", options->model_dir, options->backend, err_text());
    assert_ok(step_new(step, &options->limits));
}

static void on_each_backend(const char *path, const char *label, struct fixture *f,
                            const char *magic, fixture_fn *compare)
{
    struct file_map map;
    if (file_map_open(&map, path) != OK) return; /* not every model has every file */
    for (const char *const *b = fixture_backends; *b; b++) {
        char text[2 * NAME_MAX];
        struct cursor c = {map.data, map.data + map.size_bytes};
        snprintf(text, sizeof text, "%s on %s", label, *b);
        f->label = text;
        f->backend = *b;
        f->best_path = b == fixture_backends;
        assert_memory_equal(take(&c, 8), magic, 8);
        compare(f, &c);
        assert_true(c.at == c.end);
    }
    file_map_close(&map);
}

static int is_name(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

void fixture_each(const char *prefix, const char *magic, fixture_fn *compare)
{
    static const char *const dtypes[] = {"fp32", "bf16"};
    char data[PATH_MAX], model_dir[PATH_MAX + NAME_MAX + 8], path[PATH_MAX + 2 * NAME_MAX];
    struct dirent **list;
    snprintf(data, sizeof data, "%s/tests/golden/data", fixture_source_dir);
    int count = scandir(data, &list, is_name, alphasort);
    assert_true(count > 0);
    for (int i = 0; i < count; i++) {
        struct stat st;
        const char *name = list[i]->d_name;
        snprintf(model_dir, sizeof model_dir, "%s/%s/model", data, name);
        if (stat(model_dir, &st) != 0)
            snprintf(model_dir, sizeof model_dir, "%s/examples/demo_model/model",
                     fixture_source_dir);
        for (int bf16 = 0; bf16 < 2; bf16++) {
            char label[NAME_MAX + 8];
            struct fixture f = {.model_dir = model_dir, .dtype = bf16 ? DTYPE_BF16 : DTYPE_F32};
            snprintf(label, sizeof label, "%s %s", name, dtypes[bf16]);
            snprintf(path, sizeof path, "%s/%s/%s%s.bin", data, name, prefix, dtypes[bf16]);
            on_each_backend(path, label, &f, magic, compare);
        }
        free(list[i]);
    }
    free(list);
}
