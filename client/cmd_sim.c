/* tandem sim: becomes tandem-kvsim from the folder of its own binary. The pool and the policies that it
 * runs are the nodes', which the client has no part of. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/cmd.h"

int cmd_sim(int argc, char **argv)
{
    (void)argc;
    char path[PATH_MAX + 16];
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
    if (n > 0) {
        path[n] = '\0';
        char *slash = strrchr(path, '/');
        strcpy(slash ? slash + 1 : path, "tandem-kvsim");
        execv(path, argv); /* returns only if it failed */
    } else {
        strcpy(path, "/proc/self/exe");
    }
    fprintf(stderr, "tandem sim: %s: %s\n", path, strerror(errno));
    return CMD_FAILED;
}
