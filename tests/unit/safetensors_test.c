#include <stdio.h>
#include <string.h>

#include "common/buf.h"
#include "common/mem.h"
#include "engine/safetensors.h"
#include "tests/unit/testing.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}"
#define TENSOR(dtype, shape, offsets)                                                              \
    "{\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static enum err parse(struct tensors *t, const char *header, uint64_t header_bytes,
                      size_t data_bytes)
{
    struct buf b = {0};
    *t = (struct tensors){0};
    buf_add(&b, &header_bytes, sizeof header_bytes);
    buf_add_string(&b, header);
    for (size_t i = 0; i < data_bytes; i++)
        buf_add(&b, "x", 1);
    assert_ok(b.error);
    /* Exactly as large as the file, so that a sanitizer sees a step beyond. */
    unsigned char *bytes = mem_new(b.size);
    memcpy(bytes, b.data, b.size);
    enum err e = tensors_parse(t, "f.safetensors", bytes, b.size, 0);
    mem_free(bytes);
    buf_fini(&b);
    return e;
}

static void a_good_file_gives_its_tensors(void **state)
{
    struct tensors t;
    const char *header = "{\"__metadata__\":{\"format\":\"pt\"}," A
                         ",\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]}"
                         ",\"empty\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[16,16]}"
                         ",\"scalar\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[22,24]}}  ";
    (void)state;
    assert_ok(parse(&t, header, strlen(header), 24));
    assert_int_equal(t.tensors_count, 4);
    assert_string_equal(t.tensor[0].name, "a"); /* in the order of their places */
    assert_string_equal(t.tensor[1].name, "empty");
    assert_string_equal(t.tensor[2].name, "b");
    assert_int_equal(t.tensor[2].dtype, DTYPE_BF16);
    assert_int_equal(t.tensor[2].bytes, 6);
    assert_int_equal(t.tensor[3].dims_count, 0);
    tensors_close(&t);
}

static void a_bad_file_is_an_error_that_names_file_and_tensor(void **state)
{
    const struct {
        const char *header;
        uint64_t data_bytes;
        enum err wanted;
        const char *said;
    } row[] = {
        {"{\"a\":{}}", 0, ERR_FORMAT, "\"a\": it has no \"dtype\""},
        {"{\"a\":7}", 0, ERR_FORMAT, "\"a\": it is no object"},
        {"[]", 0, ERR_FORMAT, "no JSON object"},
        {"{", 0, ERR_FORMAT, "(line"},
        {"", 0, ERR_FORMAT, "(line"},
        {"{" A "," A "}", 16, ERR_FORMAT, "duplicate"},
        {"{\"__metadata__\":1}", 0, ERR_FORMAT, "__metadata__"},
        {TENSOR("I64", "[1]", "[0,8]"), 8, ERR_UNSUPPORTED, "\"a\": dtype is \"I64\""},
        {TENSOR("f32", "[1]", "[0,4]"), 4, ERR_UNSUPPORTED, "\"f32\""},
        {TENSOR("F32", "{}", "[0,4]"), 4, ERR_FORMAT, "no \"shape\""},
        {TENSOR("F32", "[-1]", "[0,4]"), 4, ERR_FORMAT, "no count"},
        {TENSOR("F32", "[1.0]", "[0,4]"), 4, ERR_FORMAT, "no count"},
        {TENSOR("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, ERR_FORMAT, "9 dimensions"},
        {TENSOR("F32", "[4611686018427387904,4]", "[0,4]"), 4, ERR_FORMAT, "larger than any"},
        {TENSOR("F32", "[9223372036854775807]", "[0,4]"), 4, ERR_FORMAT, "larger than any"},
        {TENSOR("F32", "[99999999999999999999]", "[0,4]"), 4, ERR_FORMAT, "(line"},
        {TENSOR("F32", "[1000000000]", "[0,4000000000]"), 4, ERR_FORMAT, "data_offsets are 0 to"},
        {TENSOR("F32", "[2]", "[0,4]"), 4, ERR_FORMAT, "[2] F32 is 8 bytes"},
        {TENSOR("F32", "[1]", "[0]"), 4, ERR_FORMAT, "data_offsets"},
        {TENSOR("F32", "[1]", "[4,0]"), 4, ERR_FORMAT, "data_offsets are 4 to 0"},
        {TENSOR("F32", "[1]", "[-4,0]"), 4, ERR_FORMAT, "data_offsets"},
        {TENSOR("F32", "[1]", "[4,8]"), 8, ERR_FORMAT, "4 bytes before it belong to no tensor"},
        {TENSOR("F32", "[1]", "[0,4]"), 9, ERR_FORMAT, "the tensors end at 4, the file has 9"},
        {"{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[12,16]}}", 16, ERR_FORMAT,
         "\"b\" begins at 12 and overlaps \"a\""},
        {"{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}", 16,
         ERR_FORMAT, "overlaps"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct tensors t;
        enum err e = parse(&t, row[i].header, strlen(row[i].header), row[i].data_bytes);
        if (e != row[i].wanted || !strstr(err_text(), row[i].said) ||
            !strstr(err_text(), "f.safetensors"))
            fail_msg("%s: %s \"%s\"", row[i].header, err_name(e), err_text());
        tensors_close(&t);
    }
}

static void absurd_sizes_are_refused_without_reading_on(void **state)
{
    const uint64_t sizes[] = {3, 1000, SAFETENSORS_HEADER_BYTES_MAX + 1, UINT64_MAX,
                              UINT64_MAX - 7};
    struct tensors t;
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        assert_int_equal(parse(&t, "{}", sizes[i], 0), ERR_FORMAT);
        tensors_close(&t);
    }
    for (size_t bytes = 0; bytes < 8; bytes++) {
        t = (struct tensors){0};
        assert_int_equal(tensors_parse(&t, "f", (const unsigned char *)"\0\0\0\0\0\0\0", bytes, 0),
                         ERR_FORMAT);
        tensors_close(&t);
    }
}

/* Folders. Each case writes one and says what is wrong with it. */

static void write_tensor(const char *dir, const char *file, const char *name)
{
    struct tiny_tensor t = {.dim = {2, 3}, .dims_count = 2, .dtype = DTYPE_F32};
    snprintf(t.name, sizeof t.name, "%s", name);
    tiny_tensors_write(dir, file, &t, 1, 1);
}

static void write_index(const char *dir, const char *text)
{
    scratch_write(dir, "model.safetensors.index.json", text, strlen(text));
}

static void a_sharded_model_is_one(void **state)
{
    char dir[SCRATCH_BYTES];
    struct tensors t;
    (void)state;
    scratch_make(dir);
    write_tensor(dir, "m2.safetensors", "a");
    write_tensor(dir, "m1.safetensors", "b");
    write_index(dir, "{\"weight_map\":{\"a\":\"m2.safetensors\",\"b\":\"m1.safetensors\"}}");
    assert_ok(tensors_open(&t, dir));
    assert_int_equal(t.files_count, 2);
    assert_string_equal(strrchr(t.file[tensors_find(&t, "a")->file_index].path, '/'),
                        "/m2.safetensors");
    assert_non_null(tensors_find(&t, "b"));
    assert_null(tensors_find(&t, "c"));
    tensors_close(&t);
    tensors_close(&t); /* a second time does nothing */
    scratch_remove(dir);
}

static void a_bad_index_is_an_error_that_names_the_thing(void **state)
{
    const struct {
        const char *index;
        enum err wanted;
        const char *said;
    } row[] = {
        {"{}", ERR_FORMAT, "weight_map"},
        {"{\"weight_map\":[]}", ERR_FORMAT, "weight_map"},
        {"{\"weight_map\":{}}", ERR_FORMAT, "weight_map"},
        {"nonsense", ERR_FORMAT, "index.json"},
        {"{\"weight_map\":{\"a\":1}}", ERR_FORMAT, "\"a\": no file name"},
        {"{\"weight_map\":{\"a\":\"../m.safetensors\"}}", ERR_FORMAT, "no file name beside"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", ERR_FORMAT, "no file name beside"},
        {"{\"weight_map\":{\"a\":\"\"}}", ERR_FORMAT, "no file name beside"},
        {"{\"weight_map\":{\"a\":\"gone.safetensors\"}}", ERR_NOT_FOUND, "gone.safetensors"},
        {"{\"weight_map\":{\"b\":\"m1.safetensors\"}}", ERR_FORMAT, "should be in m1"},
        {"{\"weight_map\":{\"a\":\"m1.safetensors\",\"b\":\"m1.safetensors\"}}", ERR_FORMAT,
         "\"b\" should be in m1.safetensors, it is in no file"},
        {"{\"weight_map\":{\"a\":\"m1.safetensors\",\"x\":\"m2.safetensors\"}}", ERR_FORMAT,
         "is also in"},
        {"{\"weight_map\":{\"a\":\"m1.safetensors\",\"a\":\"m1.safetensors\"}}", ERR_FORMAT,
         "duplicate"},
    };
    char dir[SCRATCH_BYTES];
    (void)state;
    scratch_make(dir);
    write_tensor(dir, "m1.safetensors", "a");
    write_tensor(dir, "m2.safetensors", "a");
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct tensors t;
        write_index(dir, row[i].index);
        enum err e = tensors_open(&t, dir);
        if (e != row[i].wanted || !strstr(err_text(), row[i].said))
            fail_msg("%s: %s \"%s\"", row[i].index, err_name(e), err_text());
    }
    scratch_remove(dir);
}

static void a_folder_without_weights_is_not_found(void **state)
{
    char dir[SCRATCH_BYTES];
    struct tensors t;
    (void)state;
    scratch_make(dir);
    assert_int_equal(tensors_open(&t, dir), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), dir));
    scratch_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_gives_its_tensors),
        cmocka_unit_test(a_bad_file_is_an_error_that_names_file_and_tensor),
        cmocka_unit_test(absurd_sizes_are_refused_without_reading_on),
        cmocka_unit_test(a_sharded_model_is_one),
        cmocka_unit_test(a_bad_index_is_an_error_that_names_the_thing),
        cmocka_unit_test(a_folder_without_weights_is_not_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
