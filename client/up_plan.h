/* up_plan: where `tandem up` puts its nodes on this host, and how it says so.
 *
 *     struct up_plan plan = {.count = 2, .node = {{"p0", "cuda:0"}, {"d0", "cuda:1"}}};
 *     if ((e = up_plan_make(&plan)) != OK) return e;
 *     up_plan_print(&plan, stderr);
 *     ... plan.node[0].place ...
 *     up_plan_fini(&plan);
 *
 * Rules: "cuda:N" is the N-th GPU by PCI address, of those in CUDA_VISIBLE_DEVICES if these are numbers;
 * CUDA_DEVICE_ORDER is set for the children, so that CUDA counts the same way. Where it cannot be known
 * which GPU a number means, the node is placed nowhere here and finds its place itself.
 * Owner: the main thread of `tandem up`. */
#ifndef TANDEM_CLIENT_UP_PLAN_H
#define TANDEM_CLIENT_UP_PLAN_H

#include <jansson.h>
#include <stdio.h>

#include "common/placement.h"

enum { UP_NODES_MAX = 128 };

struct up_node {
    char name[16], device[32];
    uint32_t threads;  /* told; 0: an even share */
    const char *known; /* its GPU's PCI address, "": not known or none */
    struct placement place;
};
struct up_plan {
    struct topology *host; /* NULL: it cannot be read */
    uint32_t count;
    struct up_node node[UP_NODES_MAX];
};

enum err up_plan_make(struct up_plan *plan);
void up_plan_print(const struct up_plan *plan, FILE *out);
/* What it says of one node, as the event "plan" of --json. NULL: no memory. */
json_t *up_plan_event(const struct up_node *node);
void up_plan_fini(struct up_plan *plan);

#endif
