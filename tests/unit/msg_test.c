#include "tests/unit/testing.h"

#include <math.h>
#include <string.h>

#include "common/rng.h"
#include "proto/cluster.pb-c.h"
#include "proto/msg.h"
#include "tests/unit/msg_random.h"

enum { ROUNDS = 60 };

static void for_each_kind(void (*check)(struct msg_random *r, const struct msg *m))
{
    struct msg_random r = {.seed = 3};
    for (int round = 0; round < ROUNDS; round++)
        for (int kind = MSG_NONE + 1; kind < MSG_KINDS; kind++) {
            struct msg m = msg_random(&r, kind);
            check(&r, &m);
            arena_reset(&r.arena);
        }
    arena_fini(&r.arena);
}

static void expect_same(const struct msg *a, const struct msg *b)
{
    const char *name = msg_difference(a, b);
    if (name) fail_msg("%s: %s differs", msg_kind_name(a->kind), name);
}

static void round_trip(struct msg_random *r, const struct msg *m)
{
    (void)r;
    struct buf out = {0};
    struct arena arena = {.limit_bytes = MSG_BYTES_MAX};
    struct msg back;
    assert_ok(buf_add(&out, "before", 6));
    assert_ok(msg_encode(m, &out));
    assert_memory_equal(out.data, "before", 6);
    assert_int_equal(out.data[out.size], 0);
    if (msg_decode(out.data + 6, out.size - 6, &arena, &back) != OK)
        fail_msg("%s: %s", msg_kind_name(m->kind), err_text());
    expect_same(m, &back);
    arena_fini(&arena);
    buf_fini(&out);
}

static void every_message_comes_back_as_it_went(void **state)
{
    (void)state;
    for_each_kind(round_trip);
}

static void copy_outlives(struct msg_random *r, const struct msg *m)
{
    struct arena arena = {0};
    struct msg_random again = {.seed = r->seed, .drawn = r->drawn};
    struct msg copy, first = msg_random(r, m->kind);
    assert_ok(msg_copy(&first, &arena, &copy));
    arena_fini(&r->arena); /* what the copy was made of is gone */
    struct msg twin = msg_random(&again, m->kind);
    expect_same(&twin, &copy);
    arena_fini(&again.arena);
    arena_fini(&arena);
}

static void a_copy_does_not_need_the_original(void **state)
{
    (void)state;
    for_each_kind(copy_outlives);
}

static void no_allocation_when_warm(struct msg_random *r, const struct msg *m)
{
    (void)r;
    struct buf out = {0};
    assert_ok(msg_encode(m, &out));
    size_t size = out.size;
    buf_clear(&out);
    uint64_t allocations = mem_count();
    assert_ok(msg_encode(m, &out));
    assert_true(mem_count() == allocations);
    assert_int_equal(out.size, size);
    buf_fini(&out);
}

static void a_buffer_that_has_grown_is_not_allocated_again(void **state)
{
    (void)state;
    for_each_kind(no_allocation_when_warm);
}

/* Decodes bytes that lie in a block of exactly their size, so that a sanitizer sees each step over
 * the end; what comes out must be encodable again. */
static enum err decode_exact(const char *bytes, size_t size)
{
    struct arena arena = {.limit_bytes = 4 << 20};
    struct msg m;
    char *exact = mem_new(size);
    if (size) memcpy(exact, bytes, size);
    enum err e = msg_decode(exact, size, &arena, &m);
    if (e == OK) {
        struct buf again = {0};
        if (msg_encode(&m, &again) != OK) fail_msg("decoded, not encodable: %s", err_text());
        buf_fini(&again);
    } else {
        struct msg left = {.kind = m.kind, .envelope = m.envelope};
        if (m.kind == MSG_SUBMIT) left.submit.ref = m.submit.ref;
        if (m.kind == MSG_QUERY) left.query.ref = m.query.ref;
        if (m.kind == MSG_PIN) left.pin.ref = m.pin.ref;
        assert_memory_equal(&left, &m, sizeof m);
        assert_string_not_equal(err_text(), "");
    }
    mem_free(exact);
    arena_fini(&arena);
    return e;
}

static void damage(struct msg_random *r, const struct msg *m)
{
    struct buf out = {0};
    assert_ok(msg_encode(m, &out));
    for (int i = 0; i < 20 && out.size > 0; i++) {
        struct rng_block b = rng_draw(r->seed, 9, r->drawn++);
        decode_exact(out.data, rng_below(b.word[0], (uint32_t)out.size));
        size_t at = rng_below(b.word[1], (uint32_t)(out.size < 64 || i % 2 ? out.size : 64));
        char kept = out.data[at];
        out.data[at] ^= (char)(1 << b.word[2] % 8);
        decode_exact(out.data, out.size);
        out.data[at] = kept;
    }
    buf_fini(&out);
}

static void damaged_bytes_are_an_error_or_another_message_never_worse(void **state)
{
    (void)state;
    struct msg_random r = {.seed = 17};
    for (int round = 0; round < 12; round++)
        for (int kind = MSG_NONE + 1; kind < MSG_KINDS; kind++) {
            struct msg m = msg_random(&r, kind);
            damage(&r, &m);
            arena_reset(&r.arena);
        }
    arena_fini(&r.arena);
}

static void failing_allocations_are_errors(void **state)
{
    (void)state;
    struct msg_random r = {.seed = 5};
    struct msg m = msg_random(&r, MSG_TOKENS), back;
    for (uint64_t n = 1;; n++) {
        struct buf out = {0};
        struct arena arena = {0};
        mem_fail_at(n);
        enum err e = msg_encode(&m, &out);
        if (e == OK) e = msg_decode(out.data, out.size, &arena, &back);
        if (e == OK) e = msg_copy(&m, &arena, &back);
        mem_fail_at(0);
        arena_fini(&arena);
        buf_fini(&out);
        if (e == OK) break;
        assert_true(n < 100);
    }
    arena_fini(&r.arena);
}

/* ---- the limits, one step inside and one beyond ---- */

static enum err encode_only(const struct msg *m)
{
    struct buf out = {0};
    enum err e = msg_encode(m, &out);
    buf_fini(&out);
    return e;
}

static struct msg plain_submit(void)
{
    static const uint32_t one[] = {1};
    return (struct msg){.kind = MSG_SUBMIT,
                        .submit = {.choices = 1, .tokens = one, .tokens_count = 1}};
}

static void numbers_at_their_limits_pass_and_beyond_are_named(void **state)
{
    (void)state;
    struct msg m = plain_submit();
    m.submit.choices = JOB_CHOICES_MAX;
    m.submit.tokens_max = JOB_TOKENS_MAX;
    assert_ok(encode_only(&m));
    m.submit.choices++;
    assert_int_equal(encode_only(&m), ERR_INVALID);
    assert_string_equal(err_text(), "submit: choices is 129, allowed is 1 to 128");
    m.submit.choices = 0;
    assert_int_equal(encode_only(&m), ERR_INVALID);
    m = plain_submit();
    m.submit.tokens_max = JOB_TOKENS_MAX + 1;
    assert_int_equal(encode_only(&m), ERR_INVALID);
    m = plain_submit();
    m.submit.sampling.temperature = NAN;
    assert_int_equal(encode_only(&m), ERR_INVALID);
    m.submit.sampling.temperature = INFINITY;
    assert_int_equal(encode_only(&m), ERR_INVALID);
    m = (struct msg){.kind = MSG_CANCEL, .cancel = {.key = {{1, 2}, CHOICE_ALL, 3}}};
    assert_ok(encode_only(&m));
    m.cancel.key.choice = JOB_CHOICES_MAX;
    assert_int_equal(encode_only(&m), ERR_INVALID);
    m = (struct msg){.kind = MSG_FINISHED, .finished = {.finish = FINISH_NONE}};
    assert_int_equal(encode_only(&m), ERR_INVALID);
}

static void arrays_and_strings_at_their_limits_pass_and_beyond_do_not(void **state)
{
    (void)state;
    static uint32_t ids[JOB_STOP_IDS_MAX + 1];
    static struct job_key keys[MSG_LIVE_MAX + 1];
    static struct token_info tokens[MSG_TOKENS_MAX + 1];
    struct msg m = plain_submit();
    m.submit.stop_ids = ids;
    m.submit.stop_ids_count = JOB_STOP_IDS_MAX;
    assert_ok(encode_only(&m));
    m.submit.stop_ids_count++;
    assert_int_equal(encode_only(&m), ERR_INVALID);

    m = (struct msg){.kind = MSG_LIVE, .live = {.keys = keys, .keys_count = MSG_LIVE_MAX}};
    assert_ok(encode_only(&m));
    m.live.keys_count++;
    assert_int_equal(encode_only(&m), ERR_INVALID);

    static uint64_t hashes[MSG_BLOCKS_MAX + 1];
    static uint32_t what[MSG_BLOCKS_MAX + 1];
    m = (struct msg){
        .kind = MSG_BLOCKS,
        .blocks = {1, false, hashes, what, MSG_BLOCKS_MAX, MSG_BLOCKS_MAX},
    };
    assert_ok(encode_only(&m));
    what[0] = BLOCK_GONE + TIERS - 1;
    assert_ok(encode_only(&m));
    what[0]++;
    assert_int_equal(encode_only(&m), ERR_INVALID);
    what[0] = 0;
    m.blocks.what_count--;
    assert_int_equal(encode_only(&m), ERR_INVALID);
    m.blocks.what_count = ++m.blocks.hashes_count;
    assert_int_equal(encode_only(&m), ERR_INVALID);

    struct token_run runs[2] = {{.tokens = tokens, .tokens_count = MSG_TOKENS_MAX - 1},
                                {.tokens = tokens, .tokens_count = 1}};
    m = (struct msg){.kind = MSG_TOKENS, .tokens = {runs, 2}};
    assert_ok(encode_only(&m));
    runs[1].tokens_count++;
    assert_int_equal(encode_only(&m), ERR_INVALID);

    char stop[JOB_STOP_STRING_BYTES_MAX + 2];
    const char *stops[] = {stop};
    memset(stop, '\n', sizeof stop);
    stop[JOB_STOP_STRING_BYTES_MAX] = '\0';
    m = plain_submit();
    m.submit.stop = stops;
    m.submit.stop_count = 1;
    assert_ok(encode_only(&m));
    stop[JOB_STOP_STRING_BYTES_MAX] = '\n';
    stop[JOB_STOP_STRING_BYTES_MAX + 1] = '\0';
    assert_int_equal(encode_only(&m), ERR_INVALID);
    stop[0] = '\0';
    assert_int_equal(encode_only(&m), ERR_INVALID);
}

static void names_have_their_letters_only(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum err e;
    } rows[] = {{"p0", OK},           {"A-z_0.9", OK},      {"", ERR_INVALID},
                {"a b", ERR_INVALID}, {"a/b", ERR_INVALID}, {"\xc3\xa9", ERR_INVALID},
                {"a\n", ERR_INVALID}, {NULL, ERR_INVALID}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct msg m = {.kind = MSG_HELLO, .hello = {.role = ROLE_DECODE, .name = rows[i].name}};
        assert_int_equal(encode_only(&m), rows[i].e);
    }
}

static void strings_are_utf8_without_control_characters(void **state)
{
    (void)state;
    static const struct {
        const char *tenant;
        enum err e;
    } rows[] = {{"", OK},
                {"a b/\xc3\xa9", OK},
                {"a\tb", ERR_INVALID},
                {"\x7f", ERR_INVALID},
                {"\xff", ERR_INVALID},
                {"a\xc3", ERR_INVALID}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct msg m = plain_submit();
        m.submit.tenant = rows[i].tenant;
        assert_int_equal(encode_only(&m), rows[i].e);
    }
}

/* It ends up in JSON, whoever sent it. */
static void prose_that_is_no_utf8_becomes_some(void **state)
{
    (void)state;
    struct msg m = {.kind = MSG_REFUSE, .refuse = {"a\xff\xc3\xa9 \xe2\x82"}}, back;
    struct buf out = {0};
    struct arena arena = {0};
    assert_ok(msg_encode(&m, &out));
    assert_ok(msg_decode(out.data, out.size, &arena, &back));
    assert_string_equal(back.refuse.reason, "a?\xc3\xa9 ??");
    arena_fini(&arena);
    buf_fini(&out);
}

static void prose_is_cut_at_a_character_and_loses_its_control_characters(void **state)
{
    (void)state;
    char reason[MSG_TEXT_MAX + 8];
    memset(reason, 'a', sizeof reason);
    memcpy(reason + MSG_TEXT_MAX - 1, "\xc3\xa9", 2); /* would be cut in its middle */
    reason[sizeof reason - 1] = '\0';
    reason[3] = '\n';
    struct msg m = {.kind = MSG_REFUSE, .refuse = {reason}}, back;
    struct buf out = {0};
    struct arena arena = {0};
    assert_ok(msg_encode(&m, &out));
    assert_ok(msg_decode(out.data, out.size, &arena, &back));
    assert_int_equal(strlen(back.refuse.reason), MSG_TEXT_MAX - 1);
    assert_int_equal(back.refuse.reason[3], ' ');
    arena_fini(&arena);
    buf_fini(&out);
}

static void a_prompt_is_text_or_ids_and_text_may_be_empty(void **state)
{
    (void)state;
    struct msg m = plain_submit(), back;
    struct buf out = {0};
    struct arena arena = {0};
    m.submit.text = "both";
    m.submit.text_bytes = 4;
    assert_int_equal(encode_only(&m), ERR_INVALID);
    m.submit.tokens_count = 0;
    m.submit.text_bytes = 0;
    assert_ok(msg_encode(&m, &out));
    assert_ok(msg_decode(out.data, out.size, &arena, &back));
    assert_string_equal(back.submit.text, "");
    arena_fini(&arena);
    buf_fini(&out);
}

static void received_tokens_are_told_apart_by_their_counts(void **state)
{
    (void)state;
    static const struct {
        uint32_t choices, received, counts_count, counts[3];
        bool fits;
    } rows[] = {
        {1, 3, 0, {0}, true},
        {1, 3, 1, {3}, true},
        {2, 3, 2, {0, 3}, true},
        {2, 0, 2, {0, 0}, true},
        {2, 3, 0, {0}, false},
        {2, 3, 1, {3}, false},
        {2, 3, 2, {1, 1}, false},
        {2, 3, 2, {3, 1}, false},
        {1, 3, 2, {0, 3}, false},
        {2, 3, 3, {1, 1, 1}, false},
        {3, 3, 3, {1, UINT32_MAX, 3}, false},
    };
    static const uint32_t received[3] = {7, 8, 9};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct msg m = plain_submit();
        m.submit.choices = rows[i].choices;
        m.submit.received = received;
        m.submit.received_count = rows[i].received;
        m.submit.received_counts = rows[i].counts;
        m.submit.received_counts_count = rows[i].counts_count;
        assert_int_equal(encode_only(&m), rows[i].fits ? OK : ERR_INVALID);
    }
}

/* ---- what no msg_encode would write ---- */

static enum err decode_wire(Tandem__Envelope *envelope)
{
    unsigned char bytes[4096];
    assert_true(tandem__envelope__get_packed_size(envelope) <= sizeof bytes);
    return decode_exact((char *)bytes, tandem__envelope__pack(envelope, bytes));
}

static void results_are_whole_parts_of_numbers_that_are_at_most_1(void **state)
{
    (void)state;
    static float values[MSG_VALUES_MAX + 1];
    static const uint32_t tokens[3] = {7, 8, 9};
    static const struct {
        uint32_t index, total, values_count, tokens_count;
        float first;
        enum err e;
    } rows[] = {
        {0, 3, 3, 3, -1, OK},
        {2, 5, 3, 0, 1, OK},
        {0, 0, 0, 0, 0, OK},
        {0, 2, 2, 0, -INFINITY, OK},
        {0, MSG_VALUES_MAX, MSG_VALUES_MAX, 0, 0, OK},
        {0, JOB_TOKENS_MAX, MSG_VALUES_MAX + 1, 0, 0, ERR_INVALID},
        {0, JOB_TOKENS_MAX + 1, 3, 0, 0, ERR_INVALID},
        {3, 5, 3, 0, 0, ERR_INVALID}, /* beyond the end */
        {6, 5, 0, 0, 0, ERR_INVALID},
        {0, 3, 3, 2, 0, ERR_INVALID}, /* tokens that belong to some */
        {0, 3, 3, 0, 1.25f, ERR_INVALID},
        {0, 3, 3, 0, NAN, ERR_INVALID},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        values[0] = rows[i].first;
        struct msg m = {.kind = MSG_ENCODED,
                        .encoded = {.index = rows[i].index,
                                    .total = rows[i].total,
                                    .values = values,
                                    .values_count = rows[i].values_count,
                                    .tokens = tokens,
                                    .tokens_count = rows[i].tokens_count}};
        if (encode_only(&m) != rows[i].e) fail_msg("row %zu: %s", i, err_text());
    }
}

static void other_versions_kinds_and_missing_parts_are_errors(void **state)
{
    (void)state;
    Tandem__Bye bye = TANDEM__BYE__INIT;
    Tandem__Envelope e = TANDEM__ENVELOPE__INIT;
    e.version = MSG_VERSION;
    assert_int_equal(decode_wire(&e), ERR_UNSUPPORTED); /* no body */
    e.body_case = TANDEM__ENVELOPE__BODY_BYE;
    e.bye = &bye;
    assert_ok(decode_wire(&e));
    e.version++;
    assert_int_equal(decode_wire(&e), ERR_UNSUPPORTED);
    e.version = MSG_VERSION;
    Tandem__Resend resend = TANDEM__RESEND__INIT;
    e.body_case = TANDEM__ENVELOPE__BODY_RESEND;
    e.resend = &resend;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    assert_string_equal(err_text(), "resend: key is missing");
    assert_int_equal(decode_exact("", 0), ERR_UNSUPPORTED);
    assert_int_equal(decode_exact("\xff\xff\xff", 3), ERR_FORMAT);
}

static void columns_of_different_lengths_are_errors(void **state)
{
    (void)state;
    uint32_t three[] = {1, 1, 1}, too_many[] = {2, 1, 1}, huge[] = {UINT32_MAX, 1, 1};
    uint64_t wide[] = {1, 2, 3};
    float floats[] = {-1, -2, NAN};
    Tandem__KeyColumns keys = TANDEM__KEY_COLUMNS__INIT;
    Tandem__TokenColumns t = TANDEM__TOKEN_COLUMNS__INIT;
    Tandem__Tokens tokens = TANDEM__TOKENS__INIT;
    Tandem__Envelope e = TANDEM__ENVELOPE__INIT;
    e.version = MSG_VERSION;
    e.body_case = TANDEM__ENVELOPE__BODY_TOKENS;
    e.tokens = &tokens;
    assert_ok(decode_wire(&e)); /* no runs */
    keys = (Tandem__KeyColumns){keys.base, 3, wide, 3, wide, 3, three, 3, three};
    tokens.keys = &keys;
    assert_int_equal(decode_wire(&e), ERR_FORMAT); /* keys without tokens */
    t.n_tokens = 3;
    t.tokens = three;
    tokens.tokens = &t;
    tokens.n_index = tokens.n_count = 3;
    tokens.index = tokens.count = three;
    assert_ok(decode_wire(&e));
    tokens.count = too_many;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    tokens.count = huge;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    tokens.count = three;
    tokens.index = huge;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    tokens.index = three;
    tokens.n_index = 2;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    tokens.n_index = 3;
    keys.n_lo = 2;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    keys.n_lo = 3;
    t.n_logprobs = 2;
    t.logprobs = floats;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    t.n_logprobs = 3;
    assert_ok(decode_wire(&e)); /* NaN: not asked for */
    t.n_tops = t.n_top_tokens = t.n_top_logprobs = 3;
    t.tops = t.top_tokens = three;
    t.top_logprobs = floats;
    assert_int_equal(decode_wire(&e), ERR_FORMAT); /* NaN among the likeliest */
    floats[2] = -3;
    assert_ok(decode_wire(&e));
    t.tops = huge;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    t.tops = too_many;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    t.tops = three;
    t.n_tops = 2;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);

    Tandem__Blocks blocks = TANDEM__BLOCKS__INIT;
    e.body_case = TANDEM__ENVELOPE__BODY_BLOCKS;
    e.blocks = &blocks;
    assert_ok(decode_wire(&e)); /* no news */
    blocks = (Tandem__Blocks){blocks.base, 1, false, 3, wide, 3, three};
    assert_ok(decode_wire(&e));
    blocks.n_what = 2;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
    blocks.n_what = 3;
    blocks.what = huge;
    assert_int_equal(decode_wire(&e), ERR_FORMAT);
}

static void a_message_that_would_need_too_much_memory_is_refused(void **state)
{
    (void)state;
    static struct token_info tokens[MSG_TOKENS_MAX]; /* 172 bytes each; one on the wire */
    struct token_run run = {.tokens = tokens, .tokens_count = MSG_TOKENS_MAX};
    struct msg m = {.kind = MSG_TOKENS, .tokens = {&run, 1}}, back;
    struct buf out = {0};
    struct arena small = {.limit_bytes = 1 << 20};
    for (size_t i = 0; i < MSG_TOKENS_MAX; i++)
        tokens[i].logprob = NAN;
    assert_ok(msg_encode(&m, &out));
    assert_true(out.size < 2 * MSG_TOKENS_MAX);
    assert_int_not_equal(msg_decode(out.data, out.size, &small, &back), OK);
    assert_true(small.held_bytes <= 1 << 20);
    char *large = mem_new(MSG_BYTES_MAX + 1);
    assert_int_equal(msg_decode(large, MSG_BYTES_MAX + 1, &small, &back), ERR_FORMAT);
    mem_free(large);
    arena_fini(&small);
    buf_fini(&out);
}

static void keys_hash_apart_in_each_of_their_numbers(void **state)
{
    (void)state;
    struct job_key k = {{1, 2}, 3, 4},
                   others[] = {{{2, 2}, 3, 4}, {{1, 3}, 3, 4}, {{1, 2}, 4, 4}, {{1, 2}, 3, 5}};
    assert_true(job_key_hash(k) == job_key_hash((struct job_key){{1, 2}, 3, 4}));
    for (int i = 0; i < 4; i++)
        assert_true(job_key_hash(k) != job_key_hash(others[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_message_comes_back_as_it_went),
        cmocka_unit_test(a_copy_does_not_need_the_original),
        cmocka_unit_test(a_buffer_that_has_grown_is_not_allocated_again),
        cmocka_unit_test(damaged_bytes_are_an_error_or_another_message_never_worse),
        cmocka_unit_test(failing_allocations_are_errors),
        cmocka_unit_test(numbers_at_their_limits_pass_and_beyond_are_named),
        cmocka_unit_test(arrays_and_strings_at_their_limits_pass_and_beyond_do_not),
        cmocka_unit_test(names_have_their_letters_only),
        cmocka_unit_test(strings_are_utf8_without_control_characters),
        cmocka_unit_test(prose_that_is_no_utf8_becomes_some),
        cmocka_unit_test(prose_is_cut_at_a_character_and_loses_its_control_characters),
        cmocka_unit_test(a_prompt_is_text_or_ids_and_text_may_be_empty),
        cmocka_unit_test(received_tokens_are_told_apart_by_their_counts),
        cmocka_unit_test(results_are_whole_parts_of_numbers_that_are_at_most_1),
        cmocka_unit_test(other_versions_kinds_and_missing_parts_are_errors),
        cmocka_unit_test(columns_of_different_lengths_are_errors),
        cmocka_unit_test(a_message_that_would_need_too_much_memory_is_refused),
        cmocka_unit_test(keys_hash_apart_in_each_of_their_numbers),
    };
    return cmocka_run_group_tests_name("msg", tests, NULL, NULL);
}
