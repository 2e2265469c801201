#include "tests/e2e/command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/testing.h"

enum { ARGS_MAX = 64, LINE_MAX = 8192 };

static void become(char *const *args, int out_fd, int err_fd)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (dup2(nothing, 0) < 0 || dup2(out_fd, 1) < 0 || dup2(err_fd, 2) < 0) _exit(126);
    execv(args[0], args);
    _exit(127);
}

static void read_back(int fd, char text[COMMAND_TEXT_MAX])
{
    ssize_t n = pread(fd, text, COMMAND_TEXT_MAX - 1, 0);
    assert_true(n >= 0);
    text[n] = '\0';
    close(fd);
}

static int await_end(pid_t pid, const char *line)
{
    struct pollfd end = {.fd = pidfd_open(pid, 0), .events = POLLIN};
    int status, n;
    assert_true(end.fd >= 0);
    do
        n = poll(&end, 1, COMMAND_WAIT_MS);
    while (n < 0 && errno == EINTR);
    close(end.fd);
    if (n == 0) kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (n == 0) fail_msg("not ended in %d ms: %s", COMMAND_WAIT_MS, line);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

void command_run(struct command *r, const char *program, const char *args, ...)
{
    char path[LINE_MAX], line[LINE_MAX], split[LINE_MAX], *arg[ARGS_MAX + 1] = {path}, *rest = NULL;
    uint32_t count = 1;
    va_list list;
    va_start(list, args);
    vsnprintf(line, sizeof line, args, list);
    va_end(list);
    snprintf(path, sizeof path, "%s/%s", TANDEM_BIN_DIR, program);
    memcpy(split, line, sizeof split);
    for (char *word = strtok_r(split, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        assert_true(count < ARGS_MAX);
        arg[count++] = word;
    }
    int out = memfd_create("out", MFD_CLOEXEC), err = memfd_create("err", MFD_CLOEXEC);
    assert_true(out >= 0 && err >= 0);
    pid_t pid = fork();
    if (pid == 0) become(arg, out, err);
    assert_true(pid > 0);
    r->status = await_end(pid, line);
    read_back(out, r->out);
    read_back(err, r->err);
}
