/* config.json and generation_config.json: any bytes are refused with a text that names the file, or
 * what comes out is a shape that the rest of the engine may rely on. */
#include <math.h>
#include <string.h>

#include "common/model_config.h"
#include "engine/rope.h"

static void check_config(const struct model_config *c)
{
    CHECK(c->hidden >= 1 && c->hidden <= MODEL_WIDTH_MAX);
    CHECK(c->ffn >= 1 && c->ffn <= MODEL_WIDTH_MAX);
    CHECK(c->layers_count >= 1 && c->layers_count <= MODEL_LAYERS_MAX);
    CHECK(c->heads >= 1 && c->heads <= MODEL_HEADS_MAX);
    CHECK(c->kv_heads >= 1 && c->heads % c->kv_heads == 0);
    CHECK(c->head_dim >= 2 && c->head_dim % 2 == 0 && c->head_dim <= MODEL_HEAD_DIM_MAX);
    CHECK(c->vocab_count >= 1 && c->vocab_count <= MODEL_VOCAB_MAX);
    CHECK(c->context_max >= 1 && c->context_max <= MODEL_CONTEXT_MAX);
    CHECK(c->norm_eps >= 0 && isfinite(c->norm_eps) && c->eos_count <= MODEL_EOS_MAX);
    for (uint32_t i = 0; i < c->eos_count; i++)
        CHECK(c->eos[i] < c->vocab_count);
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        CHECK(isfinite(rope_frequency(&c->rope, c->head_dim / 2, i)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config c, generation = {.vocab_count = 1000};
    if (model_config_parse(&c, "config.json", (const char *)data, size) == OK)
        check_config(&c);
    else
        CHECK(strstr(err_text(), "config.json"));
    if (model_generation_parse(&generation, "gen.json", (const char *)data, size) == OK)
        CHECK(generation.eos_count <= MODEL_EOS_MAX);
    else
        CHECK(strstr(err_text(), "gen.json"));
    return 0;
}
