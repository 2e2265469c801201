#include "tests/unit/cmd_rig.h"

#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARGS_MAX = 24 };

const char *tandem;

struct running start_into(const char *path, const char *const *args, const char *input)
{
    int in[2], out[2], err[2];
    const char *argv[ARGS_MAX] = {tandem};
    for (int i = 0; args[i]; i++)
        argv[i + 1] = args[i];
    assert_true(pipe(in) == 0 && pipe(out) == 0 && pipe(err) == 0);
    struct running r = {fork(), out[0], err[0]};
    if (r.pid == 0) {
        dup2(in[0], 0);
        dup2(path ? open(path, O_WRONLY) : out[1], 1);
        dup2(err[1], 2);
        close(in[1]);
        execv(tandem, (char *const *)argv);
        _exit(127);
    }
    assert_int_equal(write(in[1], input, strlen(input)), strlen(input));
    close(in[0]), close(in[1]), close(out[1]), close(err[1]);
    return r;
}

struct running start(const char *const *args, const char *input)
{
    return start_into(NULL, args, input);
}

static void read_all(int fd, char *text, size_t size)
{
    size_t used = 0;
    ssize_t n;
    while (used < size - 1 && (n = read(fd, text + used, size - 1 - used)) > 0)
        used += (size_t)n;
    text[used] = '\0';
    close(fd);
}

struct result finish(struct running r)
{
    struct result x;
    int status;
    read_all(r.out, x.out, sizeof x.out);
    read_all(r.err, x.err, sizeof x.err);
    assert_int_equal(waitpid(r.pid, &status, 0), r.pid);
    x.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return x;
}
