/* Which link takes the next ticket, and which ones are made: tables of (what is known, answer). */
#include "tests/unit/testing.h"

#include "common/clock.h"
#include "xfer/choose.h"

#define NOW (1000 * NS_PER_S)
#define READY .state = LINK_READY
#define MAKING .state = LINK_MAKING
#define BARRED .barred = true
#define BROKEN .retry_ns = NOW + 1
#define MENDED .retry_ns = NOW
#define RATE(r) .rate = (r), .rated_ns = NOW - 1
#define OLD_RATE(r) .rate = (r), .rated_ns = NOW - LINK_STALE_NS

enum { NONE = LINK_VIEWS_MAX };

/* The kinds of the four views of each row. */
static const char *const kinds[] = {"nccl:a", "shm:b", "tcp:c:1", "tcp:d:1"};

static void each_row_gets_its_answer(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        struct link_view view[4];
        uint32_t use, dial;
        bool wait;
    } rows[] = {
        {"a slow link and the best quick one are made first", {{0}}, NONE, 3, true},
        {"what is being made is waited for", {{MAKING}, {MAKING}}, NONE, 0, true},
        {"the best ready one is used", {{MAKING}, {READY}, {READY}}, 1, 0, true},
        {"and a better one when it is ready", {{READY}, {READY}}, 0, 0, false},
        {"a slow one is made meanwhile", {{0}, {READY}}, 1, 1, true},
        {"a broken one is left alone", {{BROKEN}, {READY}}, 1, 0, false},
        {"its time being over it is made again", {{MENDED}, {BROKEN}, {READY}}, 2, 1, true},
        {"the next quick one steps in", {{BROKEN}, {BROKEN}}, NONE, 4, true},
        {"one quick one at a time", {{BROKEN}, {MAKING}}, NONE, 0, true},
        {"a quick one is made while a worse one carries", {{BARRED}, {0}, {READY}}, 2, 2, true},
        {"nothing but broken ones: the best of them",
         {{BARRED}, {BROKEN}, {BROKEN}, {BROKEN}},
         NONE,
         2,
         true},
        {"but not those tried in vain",
         {{BARRED}, {BARRED, BROKEN}, {BROKEN}, {BROKEN}},
         NONE,
         4,
         true},
        {"nothing is left", {{BARRED}, {BARRED}, {BARRED}, {BARRED}}, NONE, 0, false},
        {"a forced link is not replaced",
         {{BARRED}, {BARRED}, {0}, {BARRED, READY}},
         NONE,
         4,
         true},
        {"clearly slower loses", {{READY, RATE(80)}, {READY, RATE(101)}}, 1, 0, false},
        {"a little slower does not", {{READY, RATE(80)}, {READY, RATE(100)}}, 0, 0, false},
        {"an unmeasured one keeps its place", {{READY, RATE(80)}, {READY}, {READY}}, 0, 0, false},
        {"so does the better one", {{READY}, {READY, RATE(99)}}, 0, 0, false},
        {"slower and not ready: it is not made", {{RATE(10)}, {READY, RATE(99)}}, 1, 0, false},
        {"until its measurement is old", {{OLD_RATE(10)}, {READY, RATE(99)}}, 1, 1, true},
        {"then it is used again", {{READY, OLD_RATE(10)}, {READY, RATE(99)}}, 0, 0, false},
        {"equals: in the peer's order", {{BARRED}, {BARRED}, {READY}, {READY}}, 2, 0, false},
        {"the faster of two equals",
         {{BARRED}, {BARRED}, {READY, RATE(10)}, {READY, RATE(20)}},
         3,
         0,
         false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct link_view view[4];
        for (int k = 0; k < 4; k++) {
            view[k] = rows[i].view[k];
            view[k].trait = link_trait(kinds[k]);
        }
        struct link_choice c = link_choose(view, 4, NOW);
        if (c.use != rows[i].use || c.dial != rows[i].dial || c.wait != rows[i].wait)
            fail_msg("%s: use %u, dial %u, wait %d", rows[i].what, c.use, c.dial, c.wait);
    }
}

static void no_address_is_no_link(void **state)
{
    (void)state;
    struct link_choice c = link_choose(NULL, 0, NOW);
    assert_true(c.use == NONE && c.dial == 0 && !c.wait);
}

static void names_are_known_whole(void **state)
{
    (void)state;
    assert_true(link_trait("nccl:x")->slow && link_trait("ipc")->slow);
    assert_false(link_trait("shm:x")->slow);
    assert_true(link_trait("shm")->merit > link_trait("tcp:1.2.3.4:5")->merit);
    assert_int_equal(link_trait("shmx:y")->merit, 0);
    assert_int_equal(link_trait("")->merit, 0);
}

static void a_back_off_doubles_to_sixty_times(void **state)
{
    (void)state;
    uint64_t expected[] = {1, 2, 4, 8, 16, 32, 60, 60}, ns = 0;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        ns = link_backoff(ns, NS_PER_S);
        assert_int_equal(ns, expected[i] * NS_PER_S);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_row_gets_its_answer),
        cmocka_unit_test(no_address_is_no_link),
        cmocka_unit_test(names_are_known_whole),
        cmocka_unit_test(a_back_off_doubles_to_sixty_times),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
