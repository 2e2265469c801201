#include "client/sample.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static int ask(const char *verb, const struct cmd_router *router, cmd_question_fn *question,
               json_t *sample, const char *name)
{
    struct buf text = {0};
    json_t *answer;
    int code = cmd_ask(verb, router, question, "", &text, &answer);
    if (answer) json_object_set_new(sample, name, answer);
    buf_fini(&text);
    return code;
}

static void wait_for(uint64_t ns)
{
    struct timespec left = {(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        continue;
}

int sample_take(const char *verb, const struct cmd_router *router, uint64_t apart_ns,
                json_t **samples)
{
    json_t *list = json_array();
    int code = CMD_DONE;
    for (int i = 0; i < 2 && code == CMD_DONE; i++) {
        json_t *sample = json_object();
        if (i > 0) wait_for(apart_ns);
        code = ask(verb, router, cmd_question_status, sample, "status");
        if (code == CMD_DONE) code = ask(verb, router, tandem_query_kv, sample, "kv");
        json_array_append_new(list, sample);
    }
    *samples = json_pack("{s:o}", "samples", list);
    if (code == CMD_DONE && *samples) return CMD_DONE;
    json_decref(*samples);
    return code != CMD_DONE ? code : cmd_fail(verb, TANDEM_MEMORY, "out of memory");
}

/* What is no list of samples is one of them, or an answer alone. */
static json_t *wrap(json_t *root)
{
    if (json_is_array(json_object_get(root, "samples"))) return root;
    if (json_object_get(root, "status") || json_object_get(root, "kv"))
        return json_pack("{s:[o]}", "samples", root);
    const char *kind = json_is_object(json_object_get(root, "router")) ? "status" : "kv";
    return json_pack("{s:[{s:o}]}", "samples", kind, root);
}

static enum err parse(json_t **samples, FILE *f)
{
    json_error_t error;
    int c = fgetc(f);
    if (c == 0xEF && fgetc(f) == 0xBB && fgetc(f) == 0xBF) c = fgetc(f); /* a byte order mark */
    while (c == ' ' || c == '\t' || c == '\r' || c == '\n')
        c = fgetc(f);
    if (ferror(f)) return err_set(ERR_IO, "%s", strerror(errno));
    if (c == EOF) return err_set(ERR_FORMAT, "it is empty");
    ungetc(c, f);
    json_t *root = json_loadf(f, JSON_REJECT_DUPLICATES, &error);
    if (!root) return err_set(ERR_FORMAT, "no JSON: line %d: %s", error.line, error.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(ERR_FORMAT, "no JSON object");
    }
    *samples = wrap(root);
    return *samples ? OK : ERR_MEMORY;
}

enum err sample_load(json_t **samples, const char *path)
{
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (!f) return err_set(ERR_IO, "%s", strerror(errno));
    enum err e = parse(samples, f);
    if (f != stdin) fclose(f);
    return e;
}
