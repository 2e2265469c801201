#include "prefill_node/policy.h"

/* A job's slot is taken until its transfer is confirmed and, for prefill-only jobs, acknowledged: room
 * for what several routers' windows hold in short prompts. */
static uint32_t slots(uint32_t sequences_max)
{
    return 96 + sequences_max;
}

/* One step that runs and one that waits: the device never idles, and what waits longer waits in the
 * router, where it holds no memory. */
static uint32_t window_tokens(uint32_t chunk_tokens)
{
    return 2 * chunk_tokens;
}

const struct node_policy prefill_policy = {
    .role = ROLE_PREFILL,
    .program = "tandem-prefill",
    .about = "Computes prompts' KV caches and pushes them to decode nodes.",
    .section = "prefill",
    .name = "prefill",
    .chunk_tokens = 512,
    .sequences_max = 8,
    .prompts_in_step = 32,
    .slots = slots,
    .window_tokens = window_tokens,
};
