/* Every slice of blocks of every order and size, against the place of each element by its definition. */
#include "tests/unit/testing.h"

#include <string.h>

#include "tests/unit/kv_place.h"
#include "xfer/slice.h"

enum { HEADS = 3, DIM = 6, UNITS_MAX = 3, TOKENS_MAX = UNITS_MAX * BLOCK_TOKENS };
enum { LAYER_BYTES_MAX = 2 * HEADS * DIM * TOKENS_MAX * 4 };

/* What the payload of a slice is: a block of 16 tokens and of its heads. */
static struct kv_geometry of_payload(const struct kv_geometry *g, const struct slice *s)
{
    struct kv_geometry p = *g;
    p.block_tokens = BLOCK_TOKENS;
    p.kv_heads = s->heads_count;
    return p;
}

/* Copies a slice from `block` to `payload`, or back, element by element. */
static void naive(const struct kv_geometry *g, const struct slice *s, uint8_t *block,
                  uint8_t *payload, bool get)
{
    struct kv_geometry p = of_payload(g, s);
    size_t size = dtype_bytes(g->dtype);
    for (int v = 0; v < 2; v++)
        for (uint32_t head = 0; head < s->heads_count; head++)
            for (uint32_t token = 0; token < BLOCK_TOKENS; token++)
                for (uint32_t dim = 0; dim < DIM; dim++) {
                    uint8_t *there = block + size * kv_place(g, v, s->heads_first + head,
                                                             s->unit * BLOCK_TOKENS + token, dim);
                    uint8_t *here = payload + size * kv_place(&p, v, head, token, dim);
                    memcpy(get ? here : there, get ? there : here, size);
                }
}

static void fill(uint8_t *bytes, size_t size, uint32_t seed)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)((i + seed) * 2654435761u >> 13);
}

static void assert_slice(const struct kv_geometry *g, const struct slice *s)
{
    static uint8_t block[LAYER_BYTES_MAX], wanted_block[LAYER_BYTES_MAX];
    static uint8_t payload[LAYER_BYTES_MAX], wanted[LAYER_BYTES_MAX];
    struct kv_geometry p = of_payload(g, s);
    assert_int_equal(slice_bytes(g, s->heads_count), kv_layer_bytes(&p));
    fill(block, sizeof block, 1);
    memset(payload, 0, sizeof payload);
    memset(wanted, 0, sizeof wanted);
    slice_get(g, block, s, payload);
    naive(g, s, block, wanted, true);
    assert_memory_equal(payload, wanted, sizeof payload); /* and nothing beyond its end */

    fill(payload, sizeof payload, 2);
    memcpy(wanted_block, block, sizeof block);
    slice_put(g, block, s, payload);
    naive(g, s, wanted_block, payload, false);
    assert_memory_equal(block, wanted_block, sizeof block); /* and no other heads or tokens */
}

static void each_slice(void (*body)(const struct kv_geometry *, const struct slice *))
{
    const uint32_t layout[] = {KV_LAYOUT_CPU, KV_LAYOUT_CUDA};
    const enum dtype dtype[] = {DTYPE_F32, DTYPE_BF16};
    for (int i = 0; i < 4; i++)
        for (uint32_t units = 1; units <= UNITS_MAX; units++) {
            struct kv_geometry g = {1,           HEADS, DIM, units * BLOCK_TOKENS, layout[i / 2],
                                    dtype[i % 2]};
            struct slice s;
            for (s.unit = 0; s.unit < units; s.unit++)
                for (s.heads_first = 0; s.heads_first < HEADS; s.heads_first++)
                    for (s.heads_count = 1; s.heads_first + s.heads_count <= HEADS; s.heads_count++)
                        body(&g, &s);
        }
}

static void every_slice_is_copied_as_its_elements_lie(void **state)
{
    (void)state;
    each_slice(assert_slice);
}

static void assert_whole(const struct kv_geometry *g, const struct slice *s)
{
    struct slice_rows k = slice_rows(g, s, false), v = slice_rows(g, s, true);
    bool one = k.heads_count * k.rows_count == 1 && v.heads_count * v.rows_count == 1 &&
               k.offset == 0 && v.offset == k.row_bytes &&
               k.row_bytes + v.row_bytes == kv_layer_bytes(g);
    assert_int_equal(slice_is_whole(g, s), one);
}

static void only_all_heads_of_blocks_of_16_are_one_piece(void **state)
{
    (void)state;
    each_slice(assert_whole);
}

static void heads_that_touch_are_one_row(void **state)
{
    (void)state;
    struct kv_geometry g = {1, 4, DIM, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_F32};
    struct slice_rows r = slice_rows(&g, &(struct slice){0, 1, 2}, true);
    size_t head = BLOCK_TOKENS * DIM * 4;
    assert_int_equal(r.heads_count, 1);
    assert_int_equal(r.row_bytes, 2 * head);
    assert_int_equal(r.offset, 5 * head);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_slice_is_copied_as_its_elements_lie),
        cmocka_unit_test(only_all_heads_of_blocks_of_16_are_one_piece),
        cmocka_unit_test(heads_that_touch_are_one_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
