/* What tandem warm decides: in which order sequences go out, and what is kept of a run. */
#include "tests/unit/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/warm_plan.h"
#include "client/warm_state.h"
#include "common/file.h"
#include "common/mem.h"
#include "common/rng.h"

static struct sequence ids(uint64_t line, const uint32_t *tokens, size_t count)
{
    struct sequence q = {.line = line, .count = count, .tokens = mem_array(count, sizeof *tokens)};
    memcpy(q.tokens, tokens, count * sizeof *tokens);
    return q;
}

static struct sequence text_of(uint64_t line, const char *text)
{
    return (struct sequence){.line = line, .count = strlen(text), .text = mem_copy_string(text)};
}

/* `common` ids of a family, then others of its own. */
static void add(struct warm_plan *p, uint64_t line, uint32_t family, size_t common, uint32_t own,
                size_t count)
{
    uint32_t tokens[256];
    for (uint32_t i = 0; i < count; i++)
        tokens[i] = i < common ? family * 1000 + i : 500000 + own * 1000 + i;
    struct sequence q = ids(line, tokens, count);
    assert_ok(warm_plan_add(p, &q));
}

static uint32_t find(const struct warm_plan *p, uint64_t line)
{
    for (uint32_t i = 0; i < p->count; i++)
        if (p->item[i].sequence.line == line) return i;
    fail_msg("line %llu is not there", (unsigned long long)line);
    return 0;
}

static void what_begins_alike_waits_for_the_first_of_it_alone(void **state)
{
    struct warm_plan p = {0};
    uint32_t i;
    (void)state;
    add(&p, 1, 7, 40, 1, 60); /* 7 …: the first by its ids */
    add(&p, 2, 7, 40, 2, 60);
    add(&p, 3, 9, 40, 3, 60); /* another family */
    add(&p, 4, 7, 40, 4, 60);
    add(&p, 5, 7, 15, 5, 60); /* shares less than a block */
    add(&p, 6, 7, 40, 2, 80); /* line 2's, and more */
    assert_ok(warm_plan_make(&p));
    assert_int_equal(p.item[find(&p, 2)].owner, find(&p, 1));
    assert_int_equal(p.item[find(&p, 4)].owner, find(&p, 1));
    assert_int_equal(p.item[find(&p, 6)].owner, find(&p, 2));
    assert_int_equal(p.item[find(&p, 1)].owner, WARM_NONE);
    assert_int_equal(p.item[find(&p, 3)].owner, WARM_NONE);
    assert_int_equal(p.item[find(&p, 5)].owner, WARM_NONE);
    uint32_t given = 0; /* 1, 3 and 5 go out, the others when their owners are done */
    while (warm_plan_next(&p, &i) == OK)
        given |= 1u << p.item[i].sequence.line;
    assert_int_equal(given, 1u << 1 | 1u << 3 | 1u << 5);
    assert_int_equal(warm_plan_next(&p, &i), ERR_AGAIN);
    warm_plan_done(&p, find(&p, 3));
    assert_int_equal(warm_plan_next(&p, &i), ERR_AGAIN);
    warm_plan_done(&p, find(&p, 1));
    assert_ok(warm_plan_next(&p, &i));
    assert_int_equal(p.item[i].sequence.line, 2);
    assert_ok(warm_plan_next(&p, &i));
    assert_int_equal(p.item[i].sequence.line, 4);
    assert_int_equal(warm_plan_next(&p, &i), ERR_AGAIN);
    warm_plan_done(&p, find(&p, 2));
    assert_ok(warm_plan_next(&p, &i));
    assert_int_equal(p.item[i].sequence.line, 6);
    assert_int_equal(warm_plan_next(&p, &i), ERR_NOT_FOUND);
    warm_plan_clear(&p);
}

static void equals_are_worked_on_once(void **state)
{
    static const char *const lines[] = {"b", "a", "b", "b", "a", "ab"};
    struct warm_plan p = {0};
    uint32_t i, worked = 0, duplicates = 0;
    (void)state;
    for (uint64_t n = 0; n < 6; n++) {
        struct sequence q = text_of(n + 1, lines[n]);
        assert_ok(warm_plan_add(&p, &q));
        assert_null(q.text); /* the plan's now */
    }
    const uint32_t a = 'a';
    struct sequence q = ids(7, &a, 1); /* ids are no text */
    assert_ok(warm_plan_add(&p, &q));
    assert_ok(warm_plan_make(&p));
    while (warm_plan_next(&p, &i) == OK) {
        const struct warm_item *w = &p.item[i];
        if (w->duplicate) {
            const struct warm_item *same = &p.item[w->owner];
            assert_false(same->duplicate);
            assert_string_equal(w->sequence.text, same->sequence.text);
            assert_true(same->sequence.line < w->sequence.line);
            duplicates++;
        } else {
            worked++;
        }
        warm_plan_done(&p, i);
    }
    assert_int_equal(worked, 4);
    assert_int_equal(duplicates, 3);
    warm_plan_clear(&p);
}

/* Against the definition: among all that come before it in order, the first that shares as much with it as
 * any does. */
static void owners_are_those_of_a_search_through_all(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 60; round++) {
        struct warm_plan p = {0};
        for (uint32_t n = 0; n < 40; n++) {
            uint32_t tokens[80], count = 1 + rng_below(rng_draw(round, n, 0).word[0], 80);
            for (uint32_t k = 0; k < count; k++) /* branches at every 10th token */
                tokens[k] = k % 10 ? k : rng_below(rng_draw(round, n, k).word[1], 2);
            struct sequence q = ids(n + 1, tokens, count);
            assert_ok(warm_plan_add(&p, &q));
        }
        assert_ok(warm_plan_make(&p));
        for (uint32_t i = 0; i < p.count; i++) {
            const struct sequence *q = &p.item[i].sequence;
            size_t most = 0;
            uint32_t owner = WARM_NONE;
            bool equal = false;
            for (uint32_t k = 0; k < i; k++) {
                const struct sequence *o = &p.item[k].sequence;
                size_t n = 0;
                while (n < q->count && n < o->count && q->tokens[n] == o->tokens[n])
                    n++;
                bool same = n == q->count && n == o->count;
                if (n > most || (same && !equal)) owner = k;
                if (n > most) most = n;
                equal |= same;
            }
            if (most < WARM_SHARED_TOKENS && !equal) owner = WARM_NONE;
            assert_int_equal(p.item[i].duplicate, equal);
            if (p.item[i].owner != owner) {
                fail_msg("round %u, item %u waits for %u, not for %u", round, i, p.item[i].owner,
                         owner);
            }
        }
        warm_plan_clear(&p);
    }
}

static void failing_allocations_are_errors(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 20; n++) {
        struct warm_plan p = {0};
        struct sequence q = text_of(1, "one");
        mem_fail_at(n);
        enum err e = warm_plan_add(&p, &q);
        if (e == OK) e = warm_plan_make(&p);
        mem_fail_at(0);
        sequence_free(&q);
        warm_plan_clear(&p);
        if (e == OK) return;
        assert_int_equal(e, ERR_MEMORY);
    }
    fail_msg("it never succeeded");
}

/* ---- the state file ---- */

static char folder[64], path[96];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/warm.XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/state", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static void what_was_done_is_known_to_the_next_run(void **state)
{
    struct warm_state s;
    struct sequence a = text_of(1, "one"), b = text_of(9, "two");
    (void)state;
    assert_ok(warm_state_open(&s, path, "f00d"));
    assert_int_equal(access(path, R_OK), 0); /* it can be written: said before the work */
    struct id128 id = warm_state_id("tenant", &a);
    assert_false(warm_state_has(&s, id));
    assert_ok(warm_state_add(&s, id, 1000));
    assert_ok(warm_state_add(&s, id, 0));     /* once more */
    assert_ok(warm_state_save(&s, 0, false)); /* not yet: it was saved a moment ago */
    warm_state_close(&s);
    assert_ok(warm_state_open(&s, path, "f00d"));
    assert_false(warm_state_has(&s, id));
    assert_ok(warm_state_add(&s, id, 1000));
    assert_ok(warm_state_save(&s, 0, true));
    warm_state_close(&s);
    assert_ok(warm_state_open(&s, path, "f00d"));
    assert_true(warm_state_has(&s, id));
    assert_false(warm_state_has(&s, warm_state_id("other", &a))); /* tenants share nothing */
    assert_false(warm_state_has(&s, warm_state_id("tenant", &b)));
    assert_int_equal(s.new_bytes, 1000);
    a.line = 77; /* content counts, not its place */
    assert_true(warm_state_has(&s, warm_state_id("tenant", &a)));
    warm_state_close(&s);
    sequence_free(&a);
    sequence_free(&b);
}

static void another_models_and_damaged_files_are_refused_and_kept(void **state)
{
    static const char id[] = "0123456789abcdef0123456789abcdef\n";
    static const char *const bad[] = {"",
                                      "tandem-warm 2 f00d\nnew_bytes 1\n",
                                      "tandem-warm 1 f00d\nnew_bytes x\n",
                                      "tandem-warm 1 f00d\n",
                                      "tandem-warm 1 f00d\nnew_bytes 1\n0123\n",
                                      "tandem-warm 1 f00d\nnew_bytes 1\n0123456789abcdef",
                                      "\x7f"
                                      "ELF"};
    struct warm_state s;
    char text[256];
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_ok(file_write_whole(path, bad[i], strlen(bad[i])));
        assert_int_equal(warm_state_open(&s, path, "f00d"), ERR_FORMAT);
        assert_non_null(strstr(err_text(), path));
    }
    snprintf(text, sizeof text, "tandem-warm 1 cafe\nnew_bytes 7\n%s", id);
    assert_ok(file_write_whole(path, text, strlen(text)));
    assert_int_equal(warm_state_open(&s, path, "f00d"), ERR_INVALID);
    assert_non_null(strstr(err_text(), "cafe"));
    assert_ok(warm_state_open(&s, path, "cafe"));
    assert_int_equal(s.new_bytes, 7);
    assert_int_equal(s.done.count, 1);
    warm_state_close(&s);
    assert_int_not_equal(warm_state_open(&s, "/nowhere/at/all", "f00d"), OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_begins_alike_waits_for_the_first_of_it_alone),
        cmocka_unit_test(equals_are_worked_on_once),
        cmocka_unit_test(owners_are_those_of_a_search_through_all),
        cmocka_unit_test(failing_allocations_are_errors),
        cmocka_unit_test_setup_teardown(what_was_done_is_known_to_the_next_run, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(another_models_and_damaged_files_are_refused_and_kept,
                                        make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
