/* tandem-prefill: computes prompts' KV caches and pushes them to decode nodes. */
#include "node/main.h"
#include "prefill_node/policy.h"

int main(int argc, char **argv)
{
    return node_main(&prefill_policy, argc, argv);
}
