/* node main: settings, then a shell until it leaves; the main function of both node programs.
 * Owner: the main thread. */
#ifndef TANDEM_NODE_MAIN_H
#define TANDEM_NODE_MAIN_H

#include "node/policy.h"

/* Exit status: 0 drained, 1 failed or stopped before all jobs had ended, 2 wrong usage. */
int node_main(const struct node_policy *policy, int argc, char **argv);

#endif
