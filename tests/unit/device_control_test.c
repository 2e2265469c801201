#include "tests/unit/testing.h"

#include <string.h>

#include "xfer/device/control.h"

static const uint8_t some[CONTROL_HEAD_MAX] = {1, 2, 3, 4, 5, 6, 7};

static const struct control samples[] = {
    {.kind = CONTROL_OPEN,
     .epoch = 1,
     .slots_count = 3,
     .slot_bytes = 4096,
     .device_index = 7,
     .name = "nccl"},
    {.kind = CONTROL_ACCEPT, .epoch = 2, .slots_count = 8, .slot_bytes = UINT32_MAX},
    {.kind = CONTROL_ACCEPT,
     .epoch = 2,
     .slots_count = 1,
     .slot_bytes = 1,
     .bytes = some,
     .size = 5},
    {.kind = CONTROL_OFFER, .epoch = 3, .bytes = some, .size = TRANSPORT_OFFER_MAX},
    {.kind = CONTROL_WARM, .epoch = UINT32_MAX},
    {.kind = CONTROL_READY, .epoch = 1},
    {.kind = CONTROL_PUSH, .epoch = 1, .number = 1, .slot = 7, .payload_bytes = 1},
    {.kind = CONTROL_PUSH,
     .epoch = 1,
     .number = ~0ull,
     .slot = 0,
     .payload_bytes = 77,
     .bytes = some,
     .size = CONTROL_HEAD_MAX},
    {.kind = CONTROL_GRANT, .epoch = 1, .slots_mask = 0x81},
    {.kind = CONTROL_DRAIN, .epoch = 1},
    {.kind = CONTROL_DRAINED, .epoch = 1},
    {.kind = CONTROL_ABORT, .epoch = 1, .error = ERR_TIMEOUT, .final = true, .text = "too late"},
    {.kind = CONTROL_ABORT, .epoch = 1, .error = ERR_DEVICE},
};
enum { SAMPLES = sizeof samples / sizeof *samples };

static void what_is_printed_is_read_back(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        uint8_t bytes[CONTROL_BYTES_MAX];
        struct control m;
        size_t size = control_print(&samples[i], bytes);
        assert_true(size <= CONTROL_BYTES_MAX);
        assert_ok(control_parse(bytes, size, &m));
        assert_int_equal(m.size, samples[i].size);
        if (m.size > 0) assert_memory_equal(m.bytes, samples[i].bytes, m.size);
        m.bytes = samples[i].bytes;
        assert_memory_equal(&m, &samples[i], sizeof m);
    }
}

static void a_frame_follows_its_header(void **state)
{
    (void)state;
    uint8_t bytes[CONTROL_HEADER_BYTES + 3] = {0};
    struct control m;
    assert_int_equal(control_frame_header(2, bytes), CONTROL_HEADER_BYTES);
    memcpy(bytes + CONTROL_HEADER_BYTES, "abc", 3);
    assert_ok(control_parse(bytes, sizeof bytes, &m));
    assert_int_equal(m.kind, CONTROL_FRAME);
    assert_int_equal(m.epoch, 2);
    assert_int_equal(m.size, 3);
    assert_memory_equal(m.bytes, "abc", 3);
}

static void every_shorter_message_is_refused_or_a_whole_one(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        uint8_t bytes[CONTROL_BYTES_MAX];
        size_t size = control_print(&samples[i], bytes);
        bool text = samples[i].kind == CONTROL_ABORT;
        size_t fixed = size - (text ? strlen(samples[i].text) : samples[i].size);
        for (size_t cut = 0; cut < size; cut++) {
            uint8_t *exact = malloc(cut + 1); /* a sanitizer sees what is read behind the end */
            struct control m;
            memcpy(exact, bytes, cut);
            assert_int_equal(control_parse(exact, cut, &m), cut < fixed ? ERR_FORMAT : OK);
            free(exact);
        }
    }
}

static void longer_messages_are_refused(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        uint8_t bytes[CONTROL_BYTES_MAX + 600] = {0};
        struct control m;
        control_print(&samples[i], bytes);
        assert_int_equal(control_parse(bytes, sizeof bytes, &m), ERR_FORMAT);
    }
}

static void wrong_fields_are_refused(void **state)
{
    (void)state;
    static const struct {
        int sample;
        size_t at;
        uint8_t value;
    } row[] = {
        {0, 0, 'x'},  {0, 4, 0},   {0, 4, CONTROL_KINDS},
        {0, 4, 255},  {0, 5, 1},   {0, 7, 1},
        {0, 12, 1},   {4, 15, 1},  {0, 16, 0},
        {0, 16, 9},   {0, 19, 1},  {0, 28, 1},
        {0, 47, 'x'}, {1, 16, 0},  {6, 16, 0},
        {6, 24, 8},   {6, 28, 0},  {8, 17, 1},
        {11, 16, 0},  {11, 16, 1}, {11, 16, 200},
        {11, 20, 2},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        uint8_t bytes[CONTROL_BYTES_MAX];
        struct control m;
        size_t size = control_print(&samples[row[i].sample], bytes);
        bytes[row[i].at] = row[i].value;
        if (control_parse(bytes, size, &m) != ERR_FORMAT) fail_msg("row %zu was taken", i);
    }
    uint8_t no_epoch[CONTROL_BYTES_MAX];
    struct control m, wrong = {.kind = CONTROL_WARM};
    size_t size = control_print(&wrong, no_epoch);
    assert_int_equal(control_parse(no_epoch, size, &m), ERR_FORMAT);
}

static void a_reason_is_made_printable(void **state)
{
    (void)state;
    uint8_t bytes[CONTROL_BYTES_MAX];
    struct control m;
    size_t size = control_print(&samples[11], bytes);
    bytes[24] = '\n';
    bytes[25] = 0;
    assert_ok(control_parse(bytes, size, &m));
    assert_string_equal(m.text, "??o late");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_printed_is_read_back),
        cmocka_unit_test(a_frame_follows_its_header),
        cmocka_unit_test(every_shorter_message_is_refused_or_a_whole_one),
        cmocka_unit_test(longer_messages_are_refused),
        cmocka_unit_test(wrong_fields_are_refused),
        cmocka_unit_test(a_reason_is_made_printable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
