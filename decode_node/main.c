/* tandem-decode: generates tokens from KV caches that prefill nodes push. */
#include "decode_node/policy.h"
#include "node/main.h"

int main(int argc, char **argv)
{
    return node_main(&decode_policy, argc, argv);
}
