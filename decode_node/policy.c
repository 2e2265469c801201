#include "decode_node/policy.h"

/* Beside a full batch: as many reservations, whose KV is on the way, and sequences that have ended and
 * wait for the router's word. */
static uint32_t slots(uint32_t sequences_max)
{
    return 3 * sequences_max + 16;
}

/* A router sends prompts here only where that is cheaper than handing over, and counts them then. */
static uint32_t window_tokens(uint32_t chunk_tokens)
{
    return chunk_tokens;
}

const struct node_policy decode_policy = {
    .role = ROLE_DECODE,
    .program = "tandem-decode",
    .about = "Generates tokens from KV caches that prefill nodes push, many streams at once.",
    .section = "decode",
    .name = "decode",
    .chunk_tokens = 64, /* a chunk lengthens the step of every stream in it */
    .sequences_max = 32,
    .prompts_in_step = 8,
    .slots = slots,
    .window_tokens = window_tokens,
};
