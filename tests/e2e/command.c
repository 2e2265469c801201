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

static int await_end(pid_t pid)
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
    if (n == 0) fail_msg("a program has not ended in %d ms", COMMAND_WAIT_MS);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static void start(struct command *r, const char *program, const char *args, va_list list)
{
    char path[LINE_MAX], line[LINE_MAX], *arg[ARGS_MAX + 1] = {path}, *rest = NULL;
    uint32_t count = 1;
    vsnprintf(line, sizeof line, args, list);
    snprintf(path, sizeof path, "%s/%s", TANDEM_BIN_DIR, program);
    for (char *word = strtok_r(line, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        assert_true(count < ARGS_MAX);
        arg[count++] = word;
    }
    r->out_fd = memfd_create("out", MFD_CLOEXEC);
    r->err_fd = memfd_create("err", MFD_CLOEXEC);
    assert_true(r->out_fd >= 0 && r->err_fd >= 0);
    r->pid = fork();
    if (r->pid == 0) become(arg, r->out_fd, r->err_fd);
    assert_true(r->pid > 0);
}

void command_start(struct command *r, const char *program, const char *args, ...)
{
    va_list list;
    va_start(list, args);
    start(r, program, args, list);
    va_end(list);
}

void command_wait(struct command *r)
{
    r->status = await_end(r->pid);
    read_back(r->out_fd, r->out);
    read_back(r->err_fd, r->err);
}

void command_run(struct command *r, const char *program, const char *args, ...)
{
    va_list list;
    va_start(list, args);
    start(r, program, args, list);
    va_end(list);
    command_wait(r);
}
