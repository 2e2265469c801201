#include "tests/unit/testing.h"

#include "common/keyed_hash.h"

/* Of the paper's appendix and of its authors' table: key 00 … 0f, the message 00, 01, 02, … */
static void values_are_those_of_siphash(void **state)
{
    (void)state;
    const uint64_t key[2] = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
    const struct {
        size_t size;
        uint64_t hash;
    } row[] = {
        {0, 0x726fdb47dd0e0e31}, {1, 0x74f839c593dc67fd},  {7, 0xab0200f58b01d137},
        {8, 0x93f5f5799a932462}, {15, 0xa129ca6149be45e5}, {63, 0x958a324ceb064572},
    };
    uint8_t message[64];
    for (uint8_t i = 0; i < sizeof message; i++)
        message[i] = i;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        assert_int_equal(keyed_hash(key, message, row[i].size), row[i].hash);
}

static void another_key_gives_another_hash(void **state)
{
    (void)state;
    const uint64_t keys[][2] = {{0, 0}, {1, 0}, {0, 1}};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < i; k++)
            assert_int_not_equal(keyed_hash(keys[i], "tenant", 6),
                                 keyed_hash(keys[k], "tenant", 6));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_those_of_siphash),
        cmocka_unit_test(another_key_gives_another_hash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
