#include "common/tenant_weights.h"

#include <stdlib.h>
#include <string.h>

/* One "NAME=WEIGHT" of so many bytes. */
static enum err parse_weight(const char *part, int bytes, struct tenant_weight *out)
{
    const char *equals = memchr(part, '=', (size_t)bytes);
    char number[8] = "", *end = number;
    long weight = 0;
    int name_bytes = equals ? (int)(equals - part) : 0, digits = bytes - name_bytes - 1;
    if (equals && digits > 0 && digits < (int)sizeof number) {
        memcpy(number, equals + 1, (size_t)digits);
        weight = strtol(number, &end, 10);
    }
    if (name_bytes < 1 || name_bytes > TENANT_NAME_MAX || *end || weight < 1 ||
        weight > TENANT_WEIGHT_MAX)
        return err_set(
            ERR_INVALID,
            "\"%.*s\" is not NAME=WEIGHT: a tenant's name of 1 to %d bytes and a number of "
            "1 to %d",
            bytes, part, TENANT_NAME_MAX, TENANT_WEIGHT_MAX);
    memcpy(out->tenant, part, (size_t)name_bytes);
    out->tenant[name_bytes] = '\0';
    out->weight = (uint32_t)weight;
    return OK;
}

enum err tenant_weights_parse(const char *text, struct tenant_weight weights[TENANT_WEIGHTS_MAX],
                              uint32_t *count)
{
    enum err e;
    *count = 0;
    for (const char *at = text; at && *at;) {
        int bytes = (int)strcspn(at, ",");
        if (*count == TENANT_WEIGHTS_MAX)
            return err_set(ERR_INVALID, "more than %d tenants have a weight", TENANT_WEIGHTS_MAX);
        if ((e = parse_weight(at, bytes, &weights[*count])) != OK) return e;
        ++*count;
        at += bytes;
        at += *at == ',';
    }
    return OK;
}

uint32_t tenant_weight_of(const struct tenant_weight *weights, uint32_t count, const char *tenant)
{
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(weights[i].tenant, tenant) == 0) return weights[i].weight;
    return 1;
}
