/* doctor: what is wrong with a cluster, in words, from facts alone. Each rule is one function with named
 * thresholds; it says what it found, the figures that make it think so, and what to do about it.
 *
 *     struct diagnosis d;
 *     doctor_examine(&facts, &d);
 *     for (i < d.findings_count) ... d.finding[i] ...
 *
 * Rules: pure. A finding is a trouble, or a note that helps to understand one. Nothing is found in a
 * cluster that serves what it is asked for, however much that is. Owner: one thread. */
#ifndef TANDEM_CLIENT_DOCTOR_H
#define TANDEM_CLIENT_DOCTOR_H

#include "client/facts.h"

enum { DOCTOR_FINDINGS_MAX = 64, DOCTOR_TEXT = 512 };

struct finding {
    const char *rule;       /* "pool-too-small" */
    bool trouble;           /* false: a note */
    char about[FACTS_NAME]; /* a node; "": the cluster */
    char what[DOCTOR_TEXT], why[DOCTOR_TEXT], advice[DOCTOR_TEXT];
};

struct diagnosis {
    struct finding finding[DOCTOR_FINDINGS_MAX];
    size_t findings_count;
    size_t dropped; /* beyond DOCTOR_FINDINGS_MAX */
};

void doctor_examine(const struct facts *facts, struct diagnosis *diagnosis);
/* Whether there is a trouble among them. */
bool doctor_found_trouble(const struct diagnosis *diagnosis);
size_t doctor_rules_count(void);
const char *doctor_rule(size_t i); /* its name */

#endif
