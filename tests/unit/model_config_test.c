#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/model_config.h"
#include "engine/rope.h"
#include "tests/unit/testing.h"

/* A good config; `more` is put behind, and replaces nothing, so a case that wants another value gives
 * a whole one. */
#define BASE                                                                                       \
    "\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":96,"        \
    "\"num_hidden_layers\":2,\"num_attention_heads\":8,\"vocab_size\":100"
#define WITH(more) "{" BASE "," more "}"
#define SHAPE(hidden, heads)                                                                       \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"intermediate_size\":96,\"vocab_size\":100,"       \
    "\"num_hidden_layers\":2,\"hidden_size\":" hidden ",\"num_attention_heads\":" heads

static enum err parse(struct model_config *c, const char *text)
{
    return model_config_parse(c, "dir/config.json", text, strlen(text));
}

static void what_is_not_said_has_the_usual_value(void **state)
{
    struct model_config c;
    (void)state;
    assert_ok(parse(&c, "{" BASE "}"));
    assert_int_equal(c.kv_heads, 8);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.context_max, 2048);
    assert_int_equal(c.rope.kind, ROPE_PLAIN);
    assert_true(c.rope.theta == 10000.0);
    assert_true(c.norm_eps == 1e-6f);
    assert_false(c.tied || c.attention_bias || c.mlp_bias);
    assert_int_equal(c.eos_count, 0);
}

static void a_byte_order_mark_is_not_of_the_file(void **state)
{
    struct model_config c;
    (void)state;
    assert_ok(parse(&c, "\xEF\xBB\xBF{" BASE "}"));
    assert_int_equal(c.kv_heads, 8);
}

static void what_is_said_is_read(void **state)
{
    struct model_config c;
    (void)state;
    assert_ok(parse(&c, WITH("\"num_key_value_heads\":2,\"head_dim\":24,\"rope_theta\":5e5,"
                             "\"max_position_embeddings\":4096,\"rms_norm_eps\":1e-5,"
                             "\"tie_word_embeddings\":true,\"attention_bias\":true,"
                             "\"mlp_bias\":true,\"eos_token_id\":[7,8],\"sliding_window\":16,"
                             "\"hidden_act\":\"silu\",\"rope_scaling\":null")));
    assert_int_equal(model_qkv_width(&c), (8 + 2 * 2) * 24);
    assert_int_equal(c.context_max, 4096);
    assert_true(c.tied && c.attention_bias && c.mlp_bias);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos[1], 8);
    assert_int_equal(c.window, 0); /* Llama ignores it */
}

static void a_mistral_has_a_window_unless_it_is_null(void **state)
{
    static const char shape[] =
        "{\"architectures\":[\"MistralForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":96,"
        "\"num_hidden_layers\":2,\"num_attention_heads\":8,\"vocab_size\":100";
    static const struct {
        const char *more;
        uint32_t window;
    } cases[] = {{",\"sliding_window\":4096}", 4096}, {",\"sliding_window\":null}", 0}, {"}", 0}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[512];
        struct model_config c;
        snprintf(text, sizeof text, "%s%s", shape, cases[i].more);
        assert_ok(parse(&c, text));
        assert_int_equal(c.window, cases[i].window);
    }
    struct model_config c;
    char text[512];
    snprintf(text, sizeof text, "%s,\"sliding_window\":0}", shape);
    assert_int_equal(parse(&c, text), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "\"sliding_window\" is 0"));
}

static void rope_settings_are_read_in_either_place(void **state)
{
    struct model_config old, new;
    (void)state;
#define LLAMA3                                                                                     \
    "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"                             \
    "\"original_max_position_embeddings\":8192"
    assert_ok(parse(
        &old, WITH("\"rope_theta\":500000.0,\"rope_scaling\":{\"type\":\"llama3\"," LLAMA3 "}")));
    assert_ok(parse(&new, WITH("\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":"
                               "500000.0," LLAMA3 "}")));
    assert_int_equal(old.rope.kind, ROPE_LLAMA3);
    assert_int_equal(rope_hash(&old.rope, 32), rope_hash(&new.rope, 32));
    assert_ok(parse(&new, WITH("\"rope_parameters\":{\"rope_type\":\"default\"}")));
    assert_int_equal(new.rope.kind, ROPE_PLAIN);
    assert_ok(parse(&new, WITH("\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4}")));
    assert_int_equal(new.rope.kind, ROPE_LINEAR);
    assert_true(rope_frequency(&new.rope, 8, 3) == pow(10000.0, -3.0 / 8) / 4);
}

static void a_bad_config_is_an_error_that_names_the_key(void **state)
{
    const struct {
        const char *text;
        enum err wanted;
        const char *said;
    } row[] = {
        {"", ERR_FORMAT, "config.json"},
        {"[]", ERR_FORMAT, "no JSON object"},
        {"{\"vocab_size\":1,\"vocab_size\":1}", ERR_FORMAT, "duplicate"},
        {"{}", ERR_FORMAT, "\"architectures\""},
        {"{\"architectures\":[\"FooForCausalLM\"]}", ERR_UNSUPPORTED, "these are: LlamaFor"},
        {"{\"architectures\":[\"LlamaForCausalLM\"]}", ERR_FORMAT, "\"hidden_size\" is missing"},
        {SHAPE("0", "8") "}", ERR_FORMAT, "\"hidden_size\" is 0"},
        {SHAPE("64.5", "8") "}", ERR_FORMAT, "\"hidden_size\" is no whole number"},
        {SHAPE("99999999999", "8") "}", ERR_FORMAT, "\"hidden_size\" is 99999999999, allowed"},
        {SHAPE("64", "7") "}", ERR_FORMAT, "multiple"},
        {SHAPE("64", "8") ",\"num_key_value_heads\":3}", ERR_FORMAT, "num_key_value_heads"},
        {SHAPE("72", "8") "}", ERR_UNSUPPORTED, "\"head_dim\" is 9"},
        {WITH("\"head_dim\":7"), ERR_UNSUPPORTED, "\"head_dim\" is 7"},
        {SHAPE("4096", "2") "}", ERR_UNSUPPORTED, "\"head_dim\" is 2048"},
        {WITH("\"hidden_act\":\"gelu\""), ERR_UNSUPPORTED, "\"hidden_act\" is \"gelu\""},
        {WITH("\"quantization_config\":{}"), ERR_UNSUPPORTED, "quantization_config"},
        {WITH("\"partial_rotary_factor\":0.5"), ERR_UNSUPPORTED, "partial_rotary_factor"},
        {WITH("\"rope_parameters\":{\"partial_rotary_factor\":0.5}"), ERR_UNSUPPORTED,
         "partial_rotary_factor"},
        {WITH("\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}"), ERR_UNSUPPORTED,
         "\"dynamic\" depends on the total length"},
        {WITH("\"rope_scaling\":{\"type\":\"longrope\"}"), ERR_UNSUPPORTED, "\"longrope\""},
        {WITH("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}"), ERR_UNSUPPORTED, "\"yarn\""},
        {WITH("\"rope_scaling\":{\"type\":\"linear\"}"), ERR_FORMAT, "\"factor\" is missing"},
        {WITH("\"rope_scaling\":{\"type\":\"linear\",\"factor\":-1}"), ERR_FORMAT, "\"factor\""},
        {WITH("\"rope_scaling\":7"), ERR_FORMAT, "\"rope_scaling\" is no object"},
        {WITH("\"rope_theta\":\"x\""), ERR_FORMAT, "\"rope_theta\""},
        {WITH("\"tie_word_embeddings\":1"), ERR_FORMAT, "\"tie_word_embeddings\""},
        {WITH("\"eos_token_id\":100"), ERR_FORMAT, "\"eos_token_id\""},
        {WITH("\"eos_token_id\":[1,null]"), ERR_FORMAT, "\"eos_token_id\""},
        {WITH("\"eos_token_id\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"), ERR_FORMAT, "more than 16"},
        {WITH("\"max_position_embeddings\":0"), ERR_FORMAT, "max_position_embeddings"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct model_config c;
        enum err e = parse(&c, row[i].text);
        if (e != row[i].wanted || !strstr(err_text(), row[i].said) ||
            !strstr(err_text(), "dir/config.json"))
            fail_msg("%s: %s \"%s\"", row[i].text, err_name(e), err_text());
    }
}

static void generation_config_has_the_last_word_on_the_end(void **state)
{
    const char *ids = "{\"eos_token_id\":[5,6,7]}", *none = "{\"temperature\":1}";
    struct model_config c;
    (void)state;
    assert_ok(parse(&c, WITH("\"eos_token_id\":2")));
    assert_ok(model_generation_parse(&c, "g", none, strlen(none)));
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(c.eos[0], 2);
    assert_ok(model_generation_parse(&c, "g", ids, strlen(ids)));
    assert_int_equal(c.eos_count, 3);
    assert_int_equal(c.eos[2], 7);
}

static void angles_do_not_depend_on_the_length_of_the_table(void **state)
{
    enum { HALF = 3, LONG = 1000, SHORT = 300 };
    static float cos_long[LONG * HALF], sin_long[LONG * HALF], cos_short[SHORT * HALF],
        sin_short[SHORT * HALF];
    struct rope_config r = {.kind = ROPE_PLAIN, .theta = 10000.0};
    (void)state;
    rope_fill(&r, HALF, LONG, cos_long, sin_long);
    rope_fill(&r, HALF, SHORT, cos_short, sin_short);
    assert_memory_equal(cos_long, cos_short, sizeof cos_short);
    assert_memory_equal(sin_long, sin_short, sizeof sin_short);
    for (uint32_t p = 0; p < LONG; p++)
        for (uint32_t i = 0; i < HALF; i++) {
            double angle = p * pow(10000.0, -(double)i / HALF);
            assert_true(fabs((double)cos_long[p * HALF + i] - cos(angle)) < 6e-8);
            assert_true(fabs((double)sin_long[p * HALF + i] - sin(angle)) < 6e-8);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_said_has_the_usual_value),
        cmocka_unit_test(a_byte_order_mark_is_not_of_the_file),
        cmocka_unit_test(what_is_said_is_read),
        cmocka_unit_test(a_mistral_has_a_window_unless_it_is_null),
        cmocka_unit_test(rope_settings_are_read_in_either_place),
        cmocka_unit_test(a_bad_config_is_an_error_that_names_the_key),
        cmocka_unit_test(generation_config_has_the_last_word_on_the_end),
        cmocka_unit_test(angles_do_not_depend_on_the_length_of_the_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
