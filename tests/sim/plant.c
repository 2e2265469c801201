#include "common/plant.h"

#include <stddef.h>
#include <string.h>

static const char *planted;

void plant_set(const char *name)
{
    planted = name;
}

bool plant_is(const char *name)
{
    return planted && strcmp(planted, name) == 0;
}
