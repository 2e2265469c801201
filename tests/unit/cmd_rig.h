/* cmd_rig: tandem's verbs as processes.
 *
 *     tandem = argv[1];                                      // the program under test
 *     struct result x = RUN("status", "--json");
 *     struct running r = start((const char *const[]){"score", "-", NULL}, "what it reads");
 *     x = finish(r);
 *
 * What fails here fails the test. Owner: the test's thread. */
#ifndef TANDEM_TESTS_UNIT_CMD_RIG_H
#define TANDEM_TESTS_UNIT_CMD_RIG_H

#include "tests/unit/testing.h"

#include <sys/types.h>

#define MODEL TANDEM_SOURCE_DIR "/examples/demo_model/model"

extern const char *tandem;

struct result {
    char out[8192], err[8192];
    int code; /* exit code, -1: killed */
};

struct running {
    pid_t pid;
    int out, err;
};

struct running start(const char *const *args, const char *input);
/* `path`: where its stdout goes; NULL: to us. */
struct running start_into(const char *path, const char *const *args, const char *input);
struct result finish(struct running r);

#define RUN(...) finish(start((const char *const[]){__VA_ARGS__, NULL}, ""))

#endif
