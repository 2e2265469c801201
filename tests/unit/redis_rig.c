#include "tests/unit/redis_rig.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/err.h"

/* -1: nobody answers. */
static ssize_t ask(const char *path, const char *command, char *reply, size_t size)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    ssize_t length = (ssize_t)strlen(command), n = -1;
    if (strlen(path) >= sizeof name.sun_path) return -1;
    strcpy(name.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && connect(fd, (struct sockaddr *)&name, sizeof name) == 0 &&
              write(fd, command, (size_t)length) == length;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (ok && poll(&p, 1, 1000) == 1) n = read(fd, reply, size - 1);
    if (n >= 0) reply[n] = '\0';
    if (fd >= 0) close(fd);
    return n;
}

/* An error (NOAUTH) is an answer too. */
static bool answers(const char *path)
{
    char reply[64];
    return ask(path, "PING\r\n", reply, sizeof reply) > 0;
}

static void run(const char *socket_path, const char *dir, const char *const *more)
{
    const char *args[32] = {
        "redis-server", "--port", "0",           "--unixsocket", socket_path, "--save",   "",
        "--dir",        dir,      "--daemonize", "no",           "--logfile", "redis.log"};
    size_t count = 13;
    while (more && *more && count < 31)
        args[count++] = *more++;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char *const names[] = {getenv("TANDEM_REDIS_SERVER"), "redis-server", "valkey-server"};
    for (size_t i = names[0] ? 0 : 1; i < (names[0] ? 1 : 3); i++)
        execvp(names[i], (char *const *)(uintptr_t)args);
    _exit(127);
}

bool redis_rig_start(struct redis_rig *rig, const char *dir, const char *const *more)
{
    snprintf(rig->where, sizeof rig->where, "unix:%.*s/redis.sock", PATH_MAX, dir);
    rig->pid = fork();
    CHECK(rig->pid >= 0);
    if (rig->pid == 0) run(rig->where + 5, dir, more);
    uint64_t until_ns = clock_now_ns() + 10 * NS_PER_S;
    while (clock_now_ns() < until_ns) {
        if (answers(rig->where + 5)) return true;
        if (waitpid(rig->pid, NULL, WNOHANG) == rig->pid) {
            rig->pid = 0;
            break;
        }
        poll(NULL, 0, 5);
    }
    redis_rig_stop(rig);
    fprintf(stderr, "no redis-server that starts is installed: what needs one is skipped\n");
    return false;
}

void redis_rig_tell(const struct redis_rig *rig, const char *command, char *reply, size_t size)
{
    CHECK(ask(rig->where + 5, command, reply, size) > 0);
}

void redis_rig_signal(struct redis_rig *rig, int signal)
{
    CHECK(rig->pid > 0 && kill(rig->pid, signal) == 0);
}

void redis_rig_stop(struct redis_rig *rig)
{
    if (rig->pid <= 0) return;
    kill(rig->pid, SIGKILL);
    waitpid(rig->pid, NULL, 0);
    rig->pid = 0;
}
