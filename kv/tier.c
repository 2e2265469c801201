#include "kv/tier.h"

#include <string.h>

enum err kv_tier_find(const char *name, const struct kv_tier_ops **ops)
{
    static const struct kv_tier_ops *const all[] = {&kv_tier_memory, &kv_tier_disk, &kv_tier_redis};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        *ops = all[i];
        if (strcmp(all[i]->name, name) == 0) return OK;
    }
    *ops = NULL;
    return err_set(ERR_NOT_FOUND, "no tier \"%s\": there are memory, disk and redis", name);
}
