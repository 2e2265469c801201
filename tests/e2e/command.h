/* command: a program of build/bin run to its end, with what it printed.
 *
 *     struct command r;
 *     command_run(&r, "tandem", "status --json --router %s", address);
 *     assert_int_equal(r.status, 0); ... r.out, r.err ...
 *
 * Rules: arguments are split at blanks. It is killed, and the test fails, after COMMAND_WAIT_MS.
 * Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_COMMAND_H
#define TANDEM_TESTS_E2E_COMMAND_H

#include "tests/unit/testing.h"

enum { COMMAND_WAIT_MS = 120000 * PATIENCE, COMMAND_TEXT_MAX = 16384 };

struct command {
    int status;              /* exit status, or 256 + the signal */
    int pid, out_fd, err_fd; /* while it runs */
    char out[COMMAND_TEXT_MAX], err[COMMAND_TEXT_MAX];
};

void command_run(struct command *r, const char *program, const char *args, ...)
    __attribute__((format(printf, 3, 4)));

/* The same in two, for what happens in between. */
void command_start(struct command *r, const char *program, const char *args, ...)
    __attribute__((format(printf, 3, 4)));
void command_wait(struct command *r);

#endif
