/* tenant_weights: which tenant counts how much, as a setting says it: "NAME=WEIGHT,…".
 *
 *     struct tenant_weight weights[TENANT_WEIGHTS_MAX];
 *     uint32_t count;
 *     if ((e = tenant_weights_parse(text, weights, &count)) != OK) return e;    // names the part that is wrong
 *     uint32_t weight = tenant_weight_of(weights, count, "search");             // 1: it is not among them
 *
 * Rules: nothing is allocated; of a name that is there twice the first counts. Owner: that of the array. */
#ifndef TANDEM_COMMON_TENANT_WEIGHTS_H
#define TANDEM_COMMON_TENANT_WEIGHTS_H

#include <stdint.h>

#include "common/err.h"

enum { TENANT_NAME_MAX = 64, TENANT_WEIGHT_MAX = 1000, TENANT_WEIGHTS_MAX = 64 };

struct tenant_weight {
    char tenant[TENANT_NAME_MAX + 1];
    uint32_t weight; /* 1 … TENANT_WEIGHT_MAX */
};

/* NULL and "" are none. ERR_INVALID otherwise. */
enum err tenant_weights_parse(const char *text, struct tenant_weight weights[TENANT_WEIGHTS_MAX],
                              uint32_t *count);
uint32_t tenant_weight_of(const struct tenant_weight *weights, uint32_t count, const char *tenant);

#endif
