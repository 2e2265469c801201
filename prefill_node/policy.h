/* The policy of tandem-prefill: long chunks, few sequences, a window of two steps. Constant: any thread. */
#ifndef TANDEM_PREFILL_NODE_POLICY_H
#define TANDEM_PREFILL_NODE_POLICY_H

#include "node/policy.h"

extern const struct node_policy prefill_policy;

#endif
