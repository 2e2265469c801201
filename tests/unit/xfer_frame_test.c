#include "tests/unit/testing.h"

#include <math.h>
#include <string.h>

#include "xfer/frame.h"

static const struct frame samples[] = {
    {.kind = FRAME_HELLO,
     .incarnation = {1, 2},
     .geometry = {3, 4, 5, 16, KV_LAYOUT_CPU, DTYPE_BF16},
     .part = {5, 8, 12, 16},
     .window_bytes = 1ull << 40},
    {.kind = FRAME_OPEN, .ticket = {1, 2}, .tokens_first = 32, .tokens_end = 33},
    {.kind = FRAME_DATA,
     .ticket = {~0ull, ~0ull},
     .range = {7, 16, 100, 4, 2, 2},
     .hash = 0x0123456789abcdef},
    {.kind = FRAME_COMMIT,
     .ticket = {0, 1},
     .first = {.token = 5, .logprob = -1.5f, .tops_count = 2, .top = {{5, -1.5f}, {6, -2.5f}}},
     .finish = FINISH_STOP},
    {.kind = FRAME_COMMIT, .ticket = {9, 9}, .first = {.tops_count = JOB_TOPS_MAX}},
    {.kind = FRAME_REFUSE, .ticket = {4, 0}, .range = {0, 0, JOB_TOKENS_MAX, 0, 1, 0}},
    {.kind = FRAME_CREDIT, .window_bytes = 77},
    {.kind = FRAME_FAIL, .ticket = {4, 0}, .error = ERR_TIMEOUT, .text = "too late"},
    {.kind = FRAME_FAIL, .error = ERR_INVALID},
    {.kind = FRAME_DONE, .ticket = {4, 4}},
};
enum { SAMPLES = sizeof samples / sizeof *samples };

static void what_is_printed_is_read_back(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        uint8_t bytes[FRAME_HEAD_MAX + 10];
        struct frame f, wanted = samples[i];
        size_t size = frame_print(&samples[i], bytes);
        assert_true(size <= FRAME_HEAD_MAX);
        if (wanted.kind == FRAME_DATA) {
            assert_int_equal(size, FRAME_DATA_HEAD);
            wanted.payload = bytes + size;
            wanted.payload_bytes = 10;
            size += 10;
        }
        assert_ok(frame_parse(bytes, size, &f));
        assert_memory_equal(&f, &wanted, sizeof f);
    }
}

static void a_number_that_is_no_number_travels_too(void **state)
{
    (void)state;
    uint8_t bytes[FRAME_HEAD_MAX];
    struct frame f, commit = samples[3];
    commit.first.logprob = NAN;
    assert_ok(frame_parse(bytes, frame_print(&commit, bytes), &f));
    assert_true(isnan(f.first.logprob));
}

static void too_short_and_too_long_frames_are_refused(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        uint8_t bytes[FRAME_HEAD_MAX + 1] = {0};
        struct frame f;
        size_t size = frame_print(&samples[i], bytes);
        for (size_t n = 0; n < size; n++)
            if (frame_parse(bytes, n, &f) != ERR_FORMAT) fail_msg("sample %d, %zu bytes", i, n);
        enum err e = frame_parse(bytes, size + 1, &f);
        assert_int_equal(e, samples[i].kind == FRAME_DATA ? OK : ERR_FORMAT);
    }
}

/* One number of a good frame is replaced. */
static void numbers_out_of_range_are_refused(void **state)
{
    (void)state;
    struct {
        int sample;
        size_t offset, size;
        uint64_t value;
    } row[] = {
        {1, 0, 1, 't'},                 /* magic */
        {1, 4, 1, 0},                   /* kind */
        {1, 4, 1, FRAME_DONE + 1},      /* kind */
        {1, 5, 1, 1},                   /* zeros */
        {0, 60, 4, DTYPE_BF16 + 1},     /* dtype */
        {0, 8, 1, 1},                   /* HELLO with a ticket */
        {0, 64, 4, 6},                  /* layers_first: 3 layers from there are too many */
        {0, 64, 4, UINT32_MAX},         /* layers_first */
        {0, 68, 4, 7},                  /* layers_all */
        {0, 72, 4, 13},                 /* heads_first */
        {0, 76, 4, 15},                 /* heads_all */
        {0, 44, 4, UINT32_MAX},         /* kv_heads */
        {6, 8, 1, 1},                   /* CREDIT with a ticket */
        {1, 24, 4, 33},                 /* tokens_first */
        {1, 28, 4, 32},                 /* tokens_end */
        {1, 28, 4, JOB_TOKENS_MAX + 1}, /* tokens_end */
        {2, 28, 4, 17},                 /* DATA: tokens_first */
        {2, 32, 4, 16},                 /* tokens_end */
        {2, 40, 4, 0},                  /* heads_count */
        {2, 36, 4, UINT32_MAX - 1},     /* heads_first: its end is beyond all numbers */
        {5, 40, 4, 0},                  /* REFUSE: heads_count */
        {2, 44, 4, FRAME_TRIES_MAX},    /* try */
        {5, 44, 4, FRAME_TRIES_MAX},    /* REFUSE: try */
        {3, 32, 4, FINISH_ERROR + 1},   /* finish */
        {3, 36, 4, JOB_TOPS_MAX + 1},   /* tops_count */
        {3, 36, 4, 3},                  /* more tops than there are */
        {3, 36, 4, 1},                  /* fewer */
        {7, 24, 4, OK},                 /* error */
        {7, 24, 4, ERR_DEVICE + 1},     /* error */
        {7, 28, 4, XFER_TEXT_MAX},      /* text_bytes */
        {7, 28, 4, 9},                  /* text_bytes */
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        uint8_t bytes[FRAME_HEAD_MAX];
        struct frame f;
        size_t size = frame_print(&samples[row[i].sample], bytes);
        memcpy(bytes + row[i].offset, &row[i].value, row[i].size);
        if (frame_parse(bytes, size, &f) != ERR_FORMAT) fail_msg("row %zu", i);
        assert_true(err_text()[0] != 0);
    }
}

static void tickets_are_wanted_where_they_belong(void **state)
{
    (void)state;
    for (int i = 0; i < SAMPLES; i++) {
        uint8_t bytes[FRAME_HEAD_MAX];
        struct frame f, none = samples[i];
        none.ticket = ID128_NONE;
        bool may = none.kind == FRAME_HELLO || none.kind == FRAME_CREDIT || none.kind == FRAME_FAIL;
        assert_int_equal(frame_parse(bytes, frame_print(&none, bytes), &f), may ? OK : ERR_FORMAT);
    }
}

static void a_text_is_made_fit_for_a_log_line(void **state)
{
    (void)state;
    uint8_t bytes[FRAME_HEAD_MAX];
    struct frame f, fail = {.kind = FRAME_FAIL, .error = ERR_IO, .text = "a\n\"b\" \x01\xc3"};
    assert_ok(frame_parse(bytes, frame_print(&fail, bytes), &f));
    assert_string_equal(f.text, "a??b? ??");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_printed_is_read_back),
        cmocka_unit_test(a_number_that_is_no_number_travels_too),
        cmocka_unit_test(too_short_and_too_long_frames_are_refused),
        cmocka_unit_test(numbers_out_of_range_are_refused),
        cmocka_unit_test(tickets_are_wanted_where_they_belong),
        cmocka_unit_test(a_text_is_made_fit_for_a_log_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
