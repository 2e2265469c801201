/* tiered: a cluster of one decode node and some prefill nodes with tiers, whose streams are compared with those of a
 * cluster without.
 *
 *     cmocka_unit_test_setup_teardown(test, tiered_set_up, tiered_tear_down)     // each test
 *     cmocka_run_group_tests(tests, tiered_learn, tiered_forget)                 // learns what streams must be
 *
 *     start("");                                                                 // in a test: router and D
 *     struct process *p = start_prefill(PAGES PATIENT "--kv-disk %s", bench.folder);
 *     asks(0);                                                                   // equal, or it fails
 *     await_stored(p);
 *
 * Owner: the test's thread. */
#ifndef TANDEM_TESTS_E2E_TIERED_H
#define TANDEM_TESTS_E2E_TIERED_H

#include "tests/e2e/rig.h"

#include <limits.h>

#include "tests/unit/redis_rig.h"

enum { PROMPTS = 10, PROMPT_MAX = 2048 };

/* What a tier is to bring must not come from the decode node. */
#define ALWAYS "--disaggregate always --backfill never"
#define PAGES "--metrics 127.0.0.1:0 "
#define PATIENT "--kv-tier-deadline 20s " /* what is there is used, however busy the machine is */

struct bench {
    struct rig *rig;
    char folder[PATH_MAX];
    struct redis_rig redis;
};
extern struct bench bench;
extern struct ask ask[PROMPTS];
extern char prompt[PROMPTS][PROMPT_MAX];
extern struct streams *wanted; /* of each prompt */

int tiered_learn(void **state);
int tiered_forget(void **state);
int tiered_set_up(void **state);
int tiered_tear_down(void **state);

void start(const char *decode_args);
struct process *start_prefill(const char *format, ...);
bool start_redis(const char *const *more); /* false: there is none, and the test is skipped */

double value_of(const struct process *p, const char *series); /* on its page */
uint32_t logged(const struct process *p, const char *text);   /* lines with it */
void expect_diagnosed(const char *what);                      /* by the doctor */
/* Asks prompt i; the stream is that of the cluster without tiers. */
struct stream *asks(uint32_t i);
/* All but what a prompt always computes: its last token, and what shares a block with it. */
uint32_t whole_of(const struct stream *s);
/* Until all that was computed lies in its tiers. */
void await_stored(struct process *p);
void await_unheld(struct process *p); /* until no block is held for them */

#endif
