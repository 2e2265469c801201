/* rig: what most tests over processes share: one cluster with the streams to it, ended after each test,
 * and asks with the streams that must come of them, made once.
 *
 *     RIG_TEST(promise),                       // in the table; static void promise(void **state)
 *     struct rig *rig = *state;
 *     rig_start(rig, 1, 2, "", "--link tcp");  // rig->cluster and rig->streams
 *     rig_expect_wanted(rig);                  // all asks, at once, equal the undisturbed ones
 *     rig_finish(rig);                         // idle, stopped, every process left with 0
 *
 * Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_RIG_H
#define TANDEM_TESTS_E2E_RIG_H

#include "tests/e2e/asks.h"
#include "tests/e2e/cluster.h"

struct rig {
    struct cluster *cluster;
    struct streams *streams;
    struct asks asks; /* a lower count: only the first of them */
    const struct streams *wanted;
};

int rig_setup(void **state);
int rig_teardown(void **state);
#define RIG_TEST(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)

/* Group setup: the asks of this seed, and their undisturbed streams. */
int rig_learn(uint64_t seed, uint32_t asks_count);
int rig_forget(void **state);

void rig_start(struct rig *rig, uint32_t prefills, uint32_t decodes, const char *router_args,
               const char *node_args);
/* For a cluster that the test has started: its streams. */
void rig_connect(struct rig *rig);
void rig_expect_wanted(struct rig *rig);
/* The same in two halves: until half of all tokens are here, and what comes behind them. */
void rig_ask_half(struct rig *rig);
void rig_expect_rest(struct rig *rig);
void rig_finish(struct rig *rig); /* streams and cluster are gone */

#endif
