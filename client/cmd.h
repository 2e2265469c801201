/* cmd: what the verbs of the `tandem` command share. Each verb is a function that gets its own argv
 * (argv[0] is the verb) and returns the exit code; cmd_main.c has the table.
 *
 * Rules: --json prints one JSON value and nothing else on stdout; prose and errors go to stderr.
 * Owner: the process's only thread. */
#ifndef TANDEM_CLIENT_CMD_H
#define TANDEM_CLIENT_CMD_H

#include <jansson.h>
#include <signal.h>

#include "client/tandem.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/settings.h"

enum cmd_exit { CMD_DONE = 0, CMD_FAILED = 1, CMD_USAGE = 2, CMD_NO_ROUTER = 3 };

int cmd_generate(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_explain(int argc, char **argv);
int cmd_drain(int argc, char **argv);
int cmd_kv(int argc, char **argv);
int cmd_pin(int argc, char **argv);
int cmd_unpin(int argc, char **argv);
int cmd_pins(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_detokenize(int argc, char **argv);
int cmd_up(int argc, char **argv);
int cmd_score(int argc, char **argv);
int cmd_embed(int argc, char **argv);
int cmd_warm(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_sim(int argc, char **argv);

/* Whole milliseconds, one at least of what is not 0. */
static inline uint32_t cmd_ms(uint64_t ns)
{
    return (uint32_t)((ns + NS_PER_MS - 1) / NS_PER_MS);
}

/* Settings of every verb that talks to a router. */
struct cmd_router {
    const char *router;
    uint64_t patience_ns;
};

/* settings_main of a verb, once in a process: its own settings and, where it has a `router`, those. Of `about` the
 * verb gives its name, args and what it does. */
bool cmd_settings(struct settings *s, const struct settings_program *about,
                  const struct settings_table *own, struct cmd_router *router, int argc,
                  char **argv, int *code);

/* NULL: said on stderr, leave with CMD_USAGE. */
struct tandem *cmd_connect(const struct cmd_router *options);
/* Prints "tandem VERB: text" and gives the exit code that belongs to the status. */
int cmd_fail(const char *verb, enum tandem_status status, const char *text);

/* From then on SIGINT and SIGTERM do no more than count. */
extern volatile sig_atomic_t cmd_interrupts;
void cmd_catch_interrupts(void);

/* Asks the router one question and waits for the answer. */
typedef enum tandem_status cmd_question_fn(struct tandem *t, const char *argument,
                                           tandem_answer_fn *fn, void *ctx);
cmd_question_fn cmd_question_status; /* without an argument */
/* CMD_DONE with the answer in `text`, and in *answer, which is the caller's to free; or the exit code after the
 * error was said, and no *answer. */
int cmd_ask(const char *verb, const struct cmd_router *options, cmd_question_fn *question,
            const char *argument, struct buf *text, json_t **answer);

/* All of stdin if `argument` is "-", without a byte order mark, else the argument itself, into `text`. */
enum err cmd_read_text(const char *argument, struct buf *text);
/* Ids as "1,2 3" or "[1, 2, 3]". ERR_INVALID that names the place. The caller frees *ids. */
enum err cmd_parse_ids(const char *text, uint32_t **ids, size_t *count);
/* ERR_INVALID: no request could name it. Said before the first of many is made. */
enum err cmd_check_tenant(const char *name);

#endif
