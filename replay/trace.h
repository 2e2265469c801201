/* trace: the prompts of a recorded load, as far as a prefix cache tells them apart.
 *
 *     struct trace t;
 *     if ((e = trace_read(&t, path)) != OK) return e;      // said: file, line, reason
 *     for (uint32_t i = 0; i < t.requests_count; i++)
 *         ... t.unit[t.request[i].unit_first + k] is what the k-th unit_blocks blocks hold ...
 *     trace_free(&t);
 *
 * A unit is a number for some tokens together with all that stand before them: equal numbers, equal
 * prefixes. Read are JSON lines, of one of two kinds in a file; timestamps are in ms, and optional:
 *
 *     {"timestamp": 0, "input_length": 6758, "hash_ids": [0, 1, …]}      Mooncake: a unit is 512 tokens
 *     {"timestamp": 0, "tokens": [5, 17, …]}                             a unit is a block of 16
 *
 * A line may name its "tenant". Tenants have no units in common, as they find no blocks of each other's.
 *
 * Rules: units of token ids are told apart by a 64-bit hash of the 16 tokens behind the same unit,
 * tenants by one of their names. What
 * is malformed is an error, nothing is skipped. Owner: one thread until it is read, then read-only. */
#ifndef TANDEM_REPLAY_TRACE_H
#define TANDEM_REPLAY_TRACE_H

#include <stdint.h>

#include "common/err.h"
#include "common/tenant_weights.h"

enum {
    TRACE_REQUESTS_MAX = 1 << 24,
    TRACE_TOKENS_MAX = 1 << 24, /* of one prompt */
    TRACE_UNITS_MAX = 1 << 28,  /* of all prompts */
    TRACE_TENANTS_MAX = 1 << 16,
    TRACE_HASH_TOKENS = 512
};

struct trace_tenant {
    char name[TENANT_NAME_MAX + 1]; /* "": requests that name none */
    uint32_t requests_count;
    uint64_t tokens_count;
};

struct trace_request {
    uint64_t at_ns, unit_first;
    uint32_t tokens_count, units_count;
    uint32_t tenant; /* index */
};

struct trace {
    struct trace_request *request;
    uint32_t *unit;
    uint32_t requests_count, unit_blocks;
    uint32_t units_known; /* units are 0 … units_known - 1 */
    uint64_t units_count, tokens_count;
    uint32_t tokens_max;         /* of one prompt */
    struct trace_tenant *tenant; /* the first: who names none, with or without requests */
    uint32_t tenants_count;
};

enum err trace_read(struct trace *t, const char *path);
void trace_free(struct trace *t);

#endif
