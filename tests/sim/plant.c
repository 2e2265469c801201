/* The one bug of this process, and whether seeds find it. */
#include "common/plant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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

int plant_try(const char *name, void (*run)(void *seeds), void *seeds)
{
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        plant_set(name);
        run(seeds);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) return 1;
    printf("%s: %s\n", name, status ? "found" : "not found in these seeds");
    return status ? 0 : 1;
}
