#include "common/failpoint.h"

#ifdef TANDEM_FAILPOINTS

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

/* What the environment asks for; point is empty when it asks for nothing. */
static struct {
    char point[48], action[16];
    unsigned at;
} wanted;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_uint hits;

static void read_environment(void)
{
    const char *text = getenv("TANDEM_FAILPOINT");
    if (!text) return;
    if (sscanf(text, "%47[A-Za-z_]=%15[a-z0-9:]@%u", wanted.point, wanted.action, &wanted.at) == 3)
        return;
    fprintf(stderr, "TANDEM_FAILPOINT: \"%s\" is not POINT=ACTION@TIME\n", text);
    exit(2);
}

static bool is_wanted(const char *prefix, const char *name)
{
    size_t n = strlen(prefix);
    if (strncmp(wanted.point, prefix, n) != 0) return false;
    return strcmp(wanted.point + n + (n > 0 && wanted.point[n] == '_'), name) == 0;
}

void failpoint_hit(const char *prefix, const char *name)
{
    pthread_once(&once, read_environment);
    if (!wanted.point[0] || !is_wanted(prefix, name)) return;
    if (atomic_fetch_add(&hits, 1) + 1 != wanted.at) return;
    log_warn("failpoint", "point=%s action=%s", wanted.point, wanted.action);
    if (strcmp(wanted.action, "crash") == 0) kill(getpid(), SIGKILL);
    if (strcmp(wanted.action, "stop") == 0) raise(SIGSTOP); /* this thread goes no step further */
    if (strncmp(wanted.action, "delay:", 6) == 0) {
        long ms = strtol(wanted.action + 6, NULL, 10);
        nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
    }
}

#else
typedef int failpoint_is_not_built; /* a file has something in it */
#endif
