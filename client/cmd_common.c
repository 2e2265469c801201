/* What the verbs share (cmd.h). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cmd.h"
#include "common/job.h"
#include "common/utf8.h"
#include "proto/msg.h"

static const struct setting router_rows[] = {
    SETTING_STRING(struct cmd_router, router, "router", "tcp://127.0.0.1:5700",
                   "the router's address for clients; several of one cluster: A,B"),
    SETTING_DURATION(struct cmd_router, patience_ns, "patience", "3s", NS_PER_MS, 3600 * NS_PER_S,
                     "how long to look for a router"),
};

bool cmd_settings(struct settings *s, const struct settings_program *about,
                  const struct settings_table *own, struct cmd_router *router, int argc,
                  char **argv, int *code)
{
    static struct settings_table tables[2]; /* for as long as s */
    static struct settings_program program;
    size_t count = 0;
    if (router)
        tables[count++] = (struct settings_table){router_rows, COUNT_OF(router_rows), router};
    tables[count++] = *own;
    program = *about;
    program.section = "tandem";
    program.tables = tables;
    program.tables_count = count;
    return settings_main(s, &program, argc, argv, code);
}

struct tandem *cmd_connect(const struct cmd_router *options)
{
    struct tandem *t;
    if (tandem_open(&t, options->router) != TANDEM_OK) {
        fprintf(stderr, "tandem: --router: %s\n", tandem_error_text());
        return NULL;
    }
    tandem_set_patience(t, cmd_ms(options->patience_ns));
    return t;
}

int cmd_fail(const char *verb, enum tandem_status status, const char *text)
{
    fprintf(stderr, "tandem %s: %s\n", verb, text);
    if (status == TANDEM_NO_ROUTER)
        fprintf(stderr, "`tandem up` starts a cluster; --router names one.\n");
    return status == TANDEM_NO_ROUTER ? CMD_NO_ROUTER : CMD_FAILED;
}

volatile sig_atomic_t cmd_interrupts;

static void on_interrupt(int number)
{
    (void)number;
    cmd_interrupts++;
}

void cmd_catch_interrupts(void)
{
    const struct sigaction on_int = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &on_int, NULL);
    sigaction(SIGTERM, &on_int, NULL);
}

struct question {
    bool answered;
    enum tandem_status status;
    struct buf *text;
};

static void on_answer(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    struct question *q = ctx;
    q->answered = true;
    q->status = status;
    buf_add(q->text, text, bytes);
}

enum tandem_status cmd_question_status(struct tandem *t, const char *argument, tandem_answer_fn *fn,
                                       void *ctx)
{
    (void)argument;
    return tandem_query_status(t, fn, ctx);
}

int cmd_ask(const char *verb, const struct cmd_router *options, cmd_question_fn *question,
            const char *argument, struct buf *text, json_t **answer)
{
    struct question q = {.text = text};
    json_error_t error;
    *answer = NULL;
    struct tandem *t = cmd_connect(options);
    if (!t) return CMD_USAGE;
    int code = CMD_DONE;
    if (question(t, argument, on_answer, &q) != TANDEM_OK) {
        fprintf(stderr, "tandem %s: %s\n", verb, tandem_error_text());
        code = CMD_USAGE;
    }
    while (code == CMD_DONE && !q.answered)
        tandem_wait(t, -1);
    if (code == CMD_DONE && text->error != OK) code = cmd_fail(verb, TANDEM_MEMORY, err_text());
    if (code == CMD_DONE && q.status != TANDEM_OK)
        code = cmd_fail(verb, q.status, text->size ? text->data : tandem_status_name(q.status));
    tandem_close(t);
    if (code != CMD_DONE) return code;
    if ((*answer = json_loadb(text->data ? text->data : "", text->size, 0, &error)))
        return CMD_DONE;
    fprintf(stderr, "tandem %s: the router's answer is no JSON: %s\n", verb, error.text);
    return CMD_FAILED;
}

enum err cmd_read_text(const char *argument, struct buf *text)
{
    char piece[65536];
    ssize_t n;
    size_t before = text->size;
    if (strcmp(argument, "-") != 0) return buf_add_string(text, argument);
    buf_add(text, "", 0); /* an empty input is an empty text */
    while ((n = read(STDIN_FILENO, piece, sizeof piece)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_set(ERR_IO, "stdin: %s", strerror(errno));
        if (buf_add(text, piece, (size_t)n) != OK) return text->error;
    }
    if (before == 0) buf_drop(text, utf8_mark(text->data, text->size));
    return OK;
}

enum err cmd_parse_ids(const char *text, uint32_t **out, size_t *count)
{
    const char *const separators = " \t\r\n,";
    struct buf ids = {0};
    const char *p = text + strspn(text, " \t\r\n");
    bool bracket = *p == '[';
    p += bracket;
    for (p += strspn(p, separators); *p && !(bracket && *p == ']'); p += strspn(p, separators)) {
        size_t digits = strspn(p, "0123456789");
        char *end;
        unsigned long long v = strtoull(p, &end, 10);
        if (digits == 0 || digits > 10 || v > UINT32_MAX) {
            buf_fini(&ids);
            return err_set(ERR_INVALID, "\"%.20s\" is no token id: write 1,2,3", p);
        }
        uint32_t id = (uint32_t)v;
        buf_add(&ids, &id, sizeof id);
        p = end;
    }
    bool open = bracket && *p != ']';
    if (bracket && !open) p += 1 + strspn(p + 1, " \t\r\n");
    if (ids.error != OK || open || *p) {
        enum err e = ids.error ? ids.error
                     : open    ? err_set(ERR_INVALID, "behind the ids ] is missing")
                               : err_set(ERR_INVALID, "\"%.20s\" behind the ids", p);
        buf_fini(&ids);
        return e;
    }
    *count = ids.size / sizeof **out;
    *out = (uint32_t *)(void *)buf_take(&ids);
    return *out ? OK : ERR_MEMORY;
}

enum err cmd_check_tenant(const char *name)
{
    if (strlen(name) <= MSG_NAME_MAX) return OK;
    return err_set(ERR_INVALID, "a tenant's name has at most %d bytes", MSG_NAME_MAX);
}
