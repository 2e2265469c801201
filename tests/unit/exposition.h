/* exposition: a page of metrics, read as strictly as Prometheus' text format 0.0.4 and its naming rules
 * allow.
 *
 *     struct exposition *x = exposition_read(page);         // fails the test at what is wrong
 *     exposition_value(x, "tandem_router_nodes{role=\"decode\",state=\"up\"}")   // fails: not there
 *     for (i < x->families_count) x->family[i].name, .type, .help, .labels
 *     exposition_free(x);
 *
 * Rules: each family has HELP, TYPE and then all of its series; counters end in _total, nothing else
 * does; no series comes twice; a histogram's buckets ascend in edge and count, end with +Inf and agree
 * with _count. Owner: the test's thread. */
#ifndef TANDEM_TESTS_UNIT_EXPOSITION_H
#define TANDEM_TESTS_UNIT_EXPOSITION_H

#include "tests/unit/testing.h"

enum { EXPOSITION_NAME = 128, EXPOSITION_TEXT = 256, FAMILIES_MAX = 128, SAMPLES_MAX = 2048 };

struct exposition {
    struct family {
        char name[EXPOSITION_NAME], type[16], help[EXPOSITION_TEXT];
        char labels[EXPOSITION_TEXT]; /* names in order, "role, state"; without le */
        size_t samples_count;
    } family[FAMILIES_MAX];
    struct sample {
        char series[EXPOSITION_TEXT]; /* with its labels */
        double value;
    } sample[SAMPLES_MAX];
    size_t families_count, samples_count;
    /* of the histogram that is being read */
    double edge, bucket;
    size_t buckets_count;
};

struct exposition *exposition_read(const char *page);
double exposition_value(const struct exposition *x, const char *series);
void exposition_free(struct exposition *x);

#endif
