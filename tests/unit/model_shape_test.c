#include "client/model_shape.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/testing.h"

#define NUMBERS                                                                                    \
    "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,\"vocab_size\":100,"     \
    "\"num_attention_heads\":4"
#define LLAMA "{\"architectures\":[\"LlamaForCausalLM\"]," NUMBERS

static enum err parse(struct model_shape *s, const char *text)
{
    return model_shape_parse(s, "config.json", text, strlen(text));
}

static void a_shape_is_read_with_its_defaults(void **state)
{
    (void)state;
    struct model_shape s;
    assert_ok(parse(&s, LLAMA "}"));
    assert_string_equal(s.architecture, "LlamaForCausalLM");
    assert_int_equal(s.layers, 2);
    assert_int_equal(s.kv_heads, 4); /* those of attention */
    assert_int_equal(s.head_dim, 16);
    assert_int_equal(s.context, 2048);
    assert_int_equal(s.window, 0);
    assert_int_equal(s.dtype, DTYPE_F32);
    assert_false(s.tied || s.attention_bias || s.mlp_bias);
    assert_ok(parse(&s, LLAMA ",\"num_key_value_heads\":1,\"head_dim\":32,\"dtype\":\"bfloat16\","
                              "\"tie_word_embeddings\":true,\"attention_bias\":true}"));
    assert_int_equal(s.kv_heads, 1);
    assert_int_equal(s.head_dim, 32);
    assert_int_equal(s.dtype, DTYPE_BF16);
    assert_true(s.tied && s.attention_bias);
}

static void a_window_counts_only_where_the_family_has_one(void **state)
{
    (void)state;
    struct model_shape s;
    assert_ok(parse(&s, LLAMA ",\"sliding_window\":512}"));
    assert_int_equal(s.window, 0);
    assert_ok(parse(
        &s, "{\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":512," NUMBERS "}"));
    assert_int_equal(s.window, 512);
    assert_ok(parse(
        &s, "{\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":null," NUMBERS "}"));
    assert_int_equal(s.window, 0);
}

/* As tests/unit/model_config_test.c says of each key. */
static void what_is_wrong_in_a_config_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *said;
        enum err e;
    } rows[] = {
        {"", "config.json", ERR_FORMAT},
        {"{}", "\"architectures\" is no list of one name", ERR_FORMAT},
        {"{\"architectures\":[\"GPT2LMHeadModel\"]}",
         "\"GPT2LMHeadModel\" is not supported; these are: LlamaForCausalLM, MistralForCausalLM",
         ERR_UNSUPPORTED},
        {LLAMA ",\"torch_dtype\":\"int8\"}", "\"int8\" is not supported", ERR_UNSUPPORTED},
        {LLAMA ",\"torch_dtype\":8}", "\"torch_dtype\"", ERR_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct model_shape s;
        enum err e = parse(&s, rows[i].text);
        if (e != rows[i].e || !strstr(err_text(), rows[i].said))
            fail_msg("%s\ngave %d, \"%s\"", rows[i].text, e, err_text());
    }
}

/* A header's text as a file with nothing behind it. */
static size_t file_of(const char *header, unsigned char *bytes)
{
    uint64_t n = strlen(header);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(n >> 8 * i);
    memcpy(bytes + 8, header, n);
    return 8 + n;
}

static void headers_add_up(void **state)
{
    (void)state;
    struct model_files f = {0};
    unsigned char bytes[512];
    size_t n = file_of("{\"__metadata__\":{\"format\":\"pt\"},"
                       "\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[10,4]},"
                       "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[4]}}",
                       bytes);
    assert_ok(model_files_parse(&f, "a", bytes, n));
    n = file_of("{\"x\":{\"dtype\":\"F16\",\"shape\":[3,3]}}", bytes);
    assert_ok(model_files_parse(&f, "b", bytes, n));
    assert_int_equal(f.files_count, 2);
    assert_int_equal(f.parameters, 40 + 4 + 9);
    assert_int_equal(f.bytes, 80 + 16 + 18);
    assert_int_equal(f.dtype, DTYPE_BF16);
}

static void a_bad_header_is_an_error(void **state)
{
    (void)state;
    static const char *const headers[] = {
        "",
        "[]",
        "{\"x\":1}",
        "{\"x\":{\"dtype\":\"I64\",\"shape\":[1]}}",
        "{\"x\":{\"dtype\":\"F32\"}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[-1]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[1.5]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296]}}",
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[4294967296,1073741824]}}",
    };
    unsigned char bytes[256];
    struct model_files f = {0};
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        size_t n = file_of(headers[i], bytes);
        if (model_files_parse(&f, "a", bytes, n) != ERR_FORMAT) fail_msg("%s passed", headers[i]);
    }
    size_t n = file_of("{}", bytes);
    for (size_t cut = 0; cut < n; cut++)
        assert_int_equal(model_files_parse(&f, "a", bytes, cut), ERR_FORMAT);
}

static void the_demo_model_has_the_parameters_of_its_files(void **state)
{
    (void)state;
    const char *dir = TANDEM_SOURCE_DIR "/examples/demo_model/model";
    struct model_shape s;
    struct model_files f;
    assert_ok(model_shape_load(&s, dir));
    assert_ok(model_files_load(&f, dir));
    assert_true(s.tied);
    assert_int_equal(f.files_count, 1);
    assert_int_equal(f.bytes, 2 * f.parameters);
    assert_int_equal(f.dtype, DTYPE_BF16);
}

static void a_folder_without_a_model_is_said(void **state)
{
    (void)state;
    char dir[] = "/tmp/model_shape_[x].XXXXXX", path[64];
    struct model_shape s;
    struct model_files f;
    unsigned char bytes[64];
    assert_non_null(mkdtemp(dir));
    assert_int_equal(model_shape_load(&s, dir), ERR_NOT_FOUND);
    assert_ok(model_files_load(&f, dir));
    assert_int_equal(f.files_count, 0);
    snprintf(path, sizeof path, "%s/model.safetensors", dir); /* the folder's name is no pattern */
    FILE *out = fopen(path, "w");
    size_t n = file_of("{}", bytes);
    assert_true(out && fwrite(bytes, 1, n, out) == n && fclose(out) == 0);
    assert_ok(model_files_load(&f, dir));
    assert_int_equal(f.files_count, 1);
    assert_true(unlink(path) == 0 && rmdir(dir) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_shape_is_read_with_its_defaults),
        cmocka_unit_test(a_window_counts_only_where_the_family_has_one),
        cmocka_unit_test(what_is_wrong_in_a_config_is_named),
        cmocka_unit_test(headers_add_up),
        cmocka_unit_test(a_bad_header_is_an_error),
        cmocka_unit_test(the_demo_model_has_the_parameters_of_its_files),
        cmocka_unit_test(a_folder_without_a_model_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
