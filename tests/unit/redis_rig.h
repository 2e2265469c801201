/* redis_rig: a real server of a test's own, on a socket in a directory of its own: the program that
 * TANDEM_REDIS_SERVER names, else redis-server or valkey-server.
 *
 *     struct redis_rig redis;
 *     if (!redis_rig_start(&redis, dir, (const char *[]){"--maxmemory", "4mb", NULL})) skip();
 *     ... options.where = redis.where ...                   // "unix:DIR/redis.sock"
 *     redis_rig_signal(&redis, SIGSTOP);
 *     redis_rig_stop(&redis);
 *
 * Rules: start returns when the server answers, and false, with a line, where none is installed or it does not
 * start within ten seconds. No data are kept on disk, and no TCP port is opened. Owner: one thread. */
#ifndef TANDEM_TESTS_REDIS_RIG_H
#define TANDEM_TESTS_REDIS_RIG_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

struct redis_rig {
    pid_t pid;
    char where[PATH_MAX + 32];
};

/* more: further arguments, ended by NULL; or NULL. */
bool redis_rig_start(struct redis_rig *rig, const char *dir, const char *const *more);
/* A command past the back of who uses it ("PING\r\n"), its answer as text. */
void redis_rig_tell(const struct redis_rig *rig, const char *command, char *reply, size_t size);
void redis_rig_signal(struct redis_rig *rig, int signal);
void redis_rig_stop(struct redis_rig *rig); /* SIGKILL; also one that was never started */

#endif
