#include "tests/gpu/pair.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/bench/figures.h"
#include "tests/gpu/one_gpu.h"

enum { SENDER, RECEIVER };

void pair_fail(const struct pair *p, const char *what, const char *why)
{
    fprintf(stderr, "%s_ceiling_gb_s: not measured: %s: %s\n", p->name, what, why);
    _exit(1);
}

void pair_say(const struct pair *p, const void *bytes, size_t size)
{
    if (send(p->fd, bytes, size, MSG_NOSIGNAL) != (ssize_t)size)
        _exit(1); /* the other one said why */
}

void pair_hear(const struct pair *p, void *bytes, size_t size)
{
    if (recv(p->fd, bytes, size, MSG_WAITALL) != (ssize_t)size) _exit(1);
}

double pair_rate(const struct pair *p, uint64_t began_ns)
{
    double bytes = (double)p->options->piece_bytes * p->options->pieces;
    return bytes * NS_PER_S / (double)(clock_now_ns() - began_ns);
}

static void become(struct pair *p, int side, int result_fd, pair_send_fn *send_all,
                   pair_receive_fn *receive_all)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(PAIR_SECONDS_MAX);
    p->device = p->options->device[side];
    if (p->options->device[SENDER] == p->options->device[RECEIVER])
        one_gpu_environment(side == SENDER ? "sender" : "receiver");
    if (side == SENDER) {
        double bytes_s = send_all(p);
        if (write(result_fd, &bytes_s, sizeof bytes_s) != sizeof bytes_s) _exit(1);
    } else {
        receive_all(p);
    }
    _exit(0);
}

void pair_measure(const char *name, const struct pair_options *o, pair_send_fn *send_all,
                  pair_receive_fn *receive_all)
{
    struct pair p = {.name = name, .options = o};
    int way[2], result[2];
    pid_t pid[2];
    double bytes_s = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, way) != 0 || pipe(result) != 0) {
        perror("pair");
        exit(1);
    }
    for (int side = SENDER; side <= RECEIVER; side++) {
        pid[side] = fork();
        if (pid[side] < 0) perror("fork");
        if (pid[side] != 0) continue;
        close(way[!side]);
        p.fd = way[side];
        become(&p, side, result[1], send_all, receive_all);
    }
    close(way[0]);
    close(way[1]);
    close(result[1]);
    ssize_t got = read(result[0], &bytes_s, sizeof bytes_s);
    close(result[0]);
    for (int side = SENDER, status; side <= RECEIVER; side++) {
        if (pid[side] > 0 && waitpid(pid[side], &status, 0) == pid[side] && WIFSIGNALED(status))
            fprintf(stderr, "%s_ceiling_gb_s: not measured: a side ended with signal %d%s\n", name,
                    WTERMSIG(status), WTERMSIG(status) == SIGALRM ? ", too slow" : "");
    }
    if (got == (ssize_t)sizeof bytes_s) figure_print(bytes_s / 1e9, "%s_ceiling_gb_s", name);
}

struct pair_options pair_arguments(int argc, char **argv)
{
    struct pair_options o = {.piece_bytes = 8 << 20, .pieces = 64, .rounds = 5};
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--devices") == 0 &&
            sscanf(value, "%u,%u", &o.device[SENDER], &o.device[RECEIVER]) == 2)
            continue;
        if (strcmp(argv[i], "--kib") == 0 && atol(value) > 0)
            o.piece_bytes = (uint64_t)atol(value) << 10;
        else if (strcmp(argv[i], "--pieces") == 0 && atol(value) > 0)
            o.pieces = (uint32_t)atol(value);
        else if (strcmp(argv[i], "--rounds") == 0 && atol(value) > 0)
            o.rounds = (uint32_t)atol(value);
        else {
            fprintf(stderr, "usage: %s [--devices P,D] [--kib N] [--pieces N] [--rounds N]\n",
                    argv[0]);
            exit(2);
        }
    }
    return o;
}
