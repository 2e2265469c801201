/* policy: what makes a node core a prefill or a decode node: how much it takes at once. Pure; the rest
 * of the core is the same for both, and each can do the other's work.
 *
 *     extern const struct node_policy decode_policy;
 *     config.slots_count = policy->slots(batch);
 * Constants: any thread. */
#ifndef TANDEM_NODE_POLICY_H
#define TANDEM_NODE_POLICY_H

#include <stdint.h>

#include "proto/msg.h"

struct node_policy {
    enum role role;
    const char *program, *about;
    const char *section;    /* of the config file */
    const char *name;       /* the node's own, before "-PID" */
    uint32_t chunk_tokens;  /* prompt tokens in one step, unless told */
    uint32_t sequences_max; /* in a decode batch, unless told */
    /* Prompts that may stand in one step beside a full batch. */
    uint32_t prompts_in_step;
    /* Jobs at once: running, reserved, waiting and not yet acknowledged ones. */
    uint32_t (*slots)(uint32_t sequences_max);
    /* Prompt tokens that the node wants outstanding at once, per router; 0: none. */
    uint32_t (*window_tokens)(uint32_t chunk_tokens);
};

#endif
