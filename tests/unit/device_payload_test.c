#include "tests/unit/testing.h"

#include <string.h>

#include "common/hash.h"
#include "common/mem.h"
#include "xfer/device_payload.h"

enum { LAYERS = 2, BLOCKS = 4, BYTES = 8, LAYOUT = 7 };
static const uint32_t both[] = {3, 1};

/* A device whose pool is seen only by its functions. */
struct device {
    uint8_t pool[LAYERS][BLOCKS][BYTES];
    uint32_t writes_count;
    enum err error;
};

static enum err copy(struct device *d, uint32_t layer, const uint32_t *blocks,
                     uint32_t blocks_count, uint32_t layout, uint8_t *to, const uint8_t *from)
{
    assert_true(layer < LAYERS && layout == LAYOUT);
    for (uint32_t i = 0; i < blocks_count && d->error == OK; i++) {
        uint8_t *block = d->pool[layer][blocks[i]];
        if (to)
            memcpy(to + i * BYTES, block, BYTES);
        else
            memcpy(block, from + i * BYTES, BYTES);
        d->writes_count += !to;
    }
    return d->error;
}
static enum err read(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                     uint32_t layout, void *host)
{
    return copy(ctx, layer, blocks, blocks_count, layout, host, NULL);
}
static enum err write(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                      uint32_t layout, const void *host)
{
    return copy(ctx, layer, blocks, blocks_count, layout, NULL, host);
}
static enum err gather(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                       uint32_t layout, void *slot, uint64_t *hash)
{
    enum err e = copy(ctx, layer, blocks, blocks_count, layout, slot, NULL);
    *hash = hash64(slot, blocks_count * BYTES);
    return e;
}
static enum err scatter(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                        uint32_t layout, const void *slot, uint64_t *hash)
{
    *hash = hash64(slot, blocks_count * BYTES);
    return copy(ctx, layer, blocks, blocks_count, layout, NULL, slot);
}

struct rig {
    struct device device;
    uint8_t staging[BLOCKS * BYTES];
    struct device_pool pool; /* of the model's layers 5 and 6 */
};

static void setup(struct rig *r)
{
    *r = (struct rig){0};
    for (size_t i = 0; i < sizeof r->device.pool; i++)
        ((uint8_t *)r->device.pool)[i] = (uint8_t)i;
    r->pool = (struct device_pool){.device = {.ctx = &r->device,
                                              .read = read,
                                              .write = write,
                                              .gather = gather,
                                              .scatter = scatter,
                                              .staging = r->staging},
                                   .layer_bytes = BYTES,
                                   .layers_first = 5};
}

static struct xfer_send send_of(uint32_t layer)
{
    return (struct xfer_send){
        .frame = {.range = {.layer = layer}}, .blocks = both, .blocks_count = 2};
}
static struct xfer_store store_of(uint32_t layer, uint64_t hash)
{
    return (struct xfer_store){
        .range = {.layer = layer}, .blocks = both, .blocks_count = 2, .hash = hash};
}

/* Whether blocks 3 and 1 of the second layer have these bytes. */
static void assert_blocks(const struct rig *r, const uint8_t *first, const uint8_t *second)
{
    assert_memory_equal(r->device.pool[1][3], first, BYTES);
    assert_memory_equal(r->device.pool[1][1], second, BYTES);
}

static void what_leaves_is_hashed_on_either_way(void **state)
{
    (void)state;
    struct rig r;
    struct kv_piece piece;
    uint8_t slot[2 * BYTES];
    setup(&r);
    struct xfer_send send = send_of(6);
    assert_ok(device_payload_gather(&r.pool, &send, LAYOUT, &piece));
    assert_int_equal(piece.size, 2 * BYTES);
    assert_blocks(&r, piece.bytes, (const uint8_t *)piece.bytes + BYTES);
    uint64_t hash = send.frame.hash;
    assert_true(hash == hash64(piece.bytes, piece.size));
    send = send_of(6);
    assert_ok(device_payload_gather_slot(&r.pool, &send, LAYOUT, slot));
    assert_memory_equal(slot, piece.bytes, sizeof slot);
    assert_true(send.frame.hash == hash);
}

static void what_arrives_is_written_where_it_belongs(void **state)
{
    (void)state;
    const uint8_t payload[] = "0123456789abcde";
    for (int slotted = 0; slotted < 2; slotted++) {
        struct rig r;
        bool good = false;
        setup(&r);
        struct xfer_store store = store_of(6, hash64(payload, sizeof payload));
        assert_ok(slotted ? device_payload_store_slot(&r.pool, &store, LAYOUT, payload, &good)
                          : device_payload_store(&r.pool, &store, payload, LAYOUT, &good));
        assert_true(good);
        assert_blocks(&r, payload, payload + BYTES);
    }
}

static void a_wrong_checksum_is_said_and_written_nowhere_by_way_of_the_host(void **state)
{
    (void)state;
    const uint8_t payload[] = "0123456789abcde";
    struct rig r;
    bool good = true;
    setup(&r);
    struct xfer_store store = store_of(6, hash64(payload, sizeof payload) ^ 1);
    assert_ok(device_payload_store(&r.pool, &store, payload, LAYOUT, &good));
    assert_false(good);
    assert_int_equal(r.device.writes_count, 0);
    good = true;
    assert_ok(device_payload_store_slot(&r.pool, &store, LAYOUT, payload, &good));
    assert_false(good);
}

static void what_is_verified_is_not_written_again(void **state)
{
    (void)state;
    const uint8_t payload[] = "0123456789abcde";
    struct rig r;
    bool good = false;
    setup(&r);
    uint8_t before[BYTES];
    memcpy(before, r.device.pool[1][3], BYTES);
    const uint64_t verified = 1ull << 9; /* its first 16 tokens are the ticket's tenth */
    struct xfer_store store = store_of(6, hash64(payload, sizeof payload));
    store.verified = &verified;
    store.verified_first = 9;
    store.unit_bits = 1;
    assert_ok(device_payload_store(&r.pool, &store, payload, LAYOUT, &good));
    assert_true(good);
    assert_int_equal(r.device.writes_count, 1);
    assert_blocks(&r, before, payload + BYTES);
}

static void a_device_that_fails_ends_the_link(void **state)
{
    (void)state;
    const uint8_t payload[] = "0123456789abcde";
    struct rig r;
    struct kv_piece piece;
    uint8_t slot[2 * BYTES] = {0};
    bool good = true;
    setup(&r);
    r.device.error = ERR_DEVICE;
    struct xfer_send send = send_of(5);
    struct xfer_store store = store_of(5, hash64(payload, sizeof payload));
    assert_int_equal(device_payload_gather(&r.pool, &send, LAYOUT, &piece), ERR_DEVICE);
    assert_int_equal(device_payload_gather_slot(&r.pool, &send, LAYOUT, slot), ERR_DEVICE);
    assert_int_equal(device_payload_store(&r.pool, &store, payload, LAYOUT, &good), ERR_DEVICE);
    assert_int_equal(device_payload_store_slot(&r.pool, &store, LAYOUT, payload, &good),
                     ERR_DEVICE);
    assert_false(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_leaves_is_hashed_on_either_way),
        cmocka_unit_test(what_arrives_is_written_where_it_belongs),
        cmocka_unit_test(a_wrong_checksum_is_said_and_written_nowhere_by_way_of_the_host),
        cmocka_unit_test(what_is_verified_is_not_written_again),
        cmocka_unit_test(a_device_that_fails_ends_the_link),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
