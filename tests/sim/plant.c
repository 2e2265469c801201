#include "common/plant.h"

#include <stdlib.h>
#include <string.h>

static const char *planted;

__attribute__((constructor)) static void plant_from_environment(void)
{
    planted = getenv("TANDEM_PLANT");
}

void plant_set(const char *name)
{
    planted = name;
}

bool plant_is(const char *name)
{
    return planted && strcmp(planted, name) == 0;
}
