/* The policy of tandem-decode: a large batch, short chunks for the prompts that it computes itself.
 * Constant: any thread. */
#ifndef TANDEM_DECODE_NODE_POLICY_H
#define TANDEM_DECODE_NODE_POLICY_H

#include "node/policy.h"

extern const struct node_policy decode_policy;

#endif
