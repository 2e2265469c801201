/* tandem score and tandem embed: what a text, or each line of a file, is worth to the model, from prefill nodes
 * alone. Lines go out many at a time and their results come in the order of the lines. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/cmd.h"
#include "client/crowd.h"
#include "common/clock.h"
#include "common/mem.h"
#include "common/progress.h"
#include "common/utf8.h"

struct options {
    const char *file, *token_ids, *tenant;
    bool lines, show_tokens, json;
    int format, pool;
    int64_t in_flight, priority;
    uint64_t deadline_ns;
};

#define INPUT_ROWS                                                                                 \
    SETTING_STRING(struct options, file, "file", NULL, "read the text from this file"),            \
        SETTING_BOOL(struct options, lines, "lines", "false",                                      \
                     "each line of the file, or of stdin, is a text of its own"),                  \
        SETTING_CHOICE(struct options, format, "format", SEQUENCES_FORMATS, "auto",                \
                       "of lines: text, or JSON with \"prompt\" or \"tokens\", and an \"id\" for " \
                       "its result; auto: by the "                                                 \
                       "file's name"),                                                             \
        SETTING_STRING(struct options, token_ids, "token-ids", NULL,                               \
                       "the text as token ids, 1,2,3"),                                            \
        SETTING_INT(struct options, in_flight, "in-flight", "64", 1, CROWD_MAX,                    \
                    "texts that are under way at once"),                                           \
        SETTING_INT(struct options, priority, "priority", "0", -1000, 1000, "lower goes first"),   \
        SETTING_STRING(struct options, tenant, "tenant", "",                                       \
                       "prefixes are shared within a tenant only"),                                \
        SETTING_DURATION(struct options, deadline_ns, "deadline", "0s", 0, 3600 * NS_PER_S,        \
                         "of each text: give up after this time; 0: never"),                       \
        SETTING_BOOL(struct options, json, "json", "false",                                        \
                     "print one JSON object (with --lines: an array of them)")

static const struct setting score_rows[] = {
    SETTING_BOOL(struct options, show_tokens, "tokens", "false",
                 "print each token's id and log-probability too"),
    INPUT_ROWS,
};
static const struct setting embed_rows[] = {
    SETTING_CHOICE(struct options, pool, "pool", "last|mean", "last",
                   "the last token's hidden state, or the mean of all"),
    INPUT_ROWS,
};

struct run {
    const char *verb;
    const struct options *options;
    enum tandem_kind kind;
    struct sequences *sequences; /* NULL: one text */
    struct sequence only;
    bool only_taken;
    uint64_t told, failed, ended;
    struct progress progress; /* of lines whose results do not show on the same terminal */
};

/* ---- what goes in ---- */

static enum err take_only(struct run *run, struct sequence *out)
{
    if (run->only_taken) return ERR_NOT_FOUND;
    *out = run->only;
    run->only = (struct sequence){0};
    run->only_taken = true;
    return OK;
}

static enum err next(void *ctx, struct sequence *out)
{
    struct run *run = ctx;
    if (!run->sequences) return take_only(run, out);
    enum err e = sequences_next(run->sequences, out);
    if (e != OK || out->count > 0) return e;
    return err_set(ERR_FORMAT, "is empty: there is nothing to %s", run->verb);
}

static enum tandem_status prepare(void *ctx, struct tandem_request *r, const struct sequence *q)
{
    const struct run *run = ctx;
    (void)q;
    tandem_set_kind(r, run->kind);
    tandem_set_priority(r, (int32_t)run->options->priority);
    tandem_set_deadline(r, cmd_ms(run->options->deadline_ns));
    return tandem_set_tenant(r, run->options->tenant);
}

/* ---- what comes out ---- */

/* JSON has no infinities and no NaN. */
static void add_json_number(struct buf *out, double v)
{
    if (isfinite(v))
        buf_printf(out, "%.9g", v);
    else
        buf_add_string(out, "null");
}

static void add_json_list(struct buf *out, const float *v, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (i) buf_add_string(out, ",");
        add_json_number(out, (double)v[i]);
    }
    buf_add_string(out, "]");
}

static double sum_of(const struct tandem_event *e)
{
    double sum = 0;
    for (size_t i = 0; i < e->values_count; i++)
        sum += (double)e->values[i];
    return sum;
}

static void add_score_json(const struct tandem_event *e, struct buf *out)
{
    double sum = sum_of(e);
    buf_add_string(out, ",\"tokens\":[");
    for (size_t i = 0; i < e->values_count; i++)
        buf_printf(out, "%s%u", i ? "," : "", e->value_tokens[i]);
    buf_add_string(out, "],\"logprobs\":[");
    add_json_list(out, e->values, e->values_count);
    buf_add_string(out, ",\"logprob\":");
    add_json_number(out, sum);
    buf_add_string(out, ",\"perplexity\":");
    add_json_number(out, exp(-sum / (double)e->values_count));
}

static void add_embed_json(const struct run *run, const struct tandem_event *e, struct buf *out)
{
    buf_printf(out, ",\"pool\":\"%s\",\"embedding\":[", run->options->pool ? "mean" : "last");
    add_json_list(out, e->values, e->values_count);
}

static void add_json(const struct run *run, const struct crowd_item *item, struct buf *out)
{
    const struct tandem_event *e = &item->end;
    if (item->sequence.id)
        buf_printf(out, "{\"id\":%s,\"request\":\"%s\"", item->sequence.id, item->id);
    else
        buf_printf(out, "{\"id\":\"%s\"", item->id);
    if (item->sequence.line)
        buf_printf(out, ",\"line\":%llu", (unsigned long long)item->sequence.line);
    if (e->finish == TANDEM_FINISH_ERROR) {
        buf_printf(out, ",\"error\":{\"code\":\"%s\",\"message\":", tandem_status_name(e->status));
        buf_json_string(out, item->reason, strlen(item->reason));
        buf_add_string(out, "}");
    } else if (run->kind == TANDEM_SCORE) {
        add_score_json(e, out);
    } else {
        add_embed_json(run, e, out);
    }
    buf_printf(
        out,
        ",\"usage\":{\"prompt_tokens\":%u,\"cached_tokens\":%u},\"timing_ms\":{\"queue\":%.3f,"
        "\"prefill\":%.3f,\"total\":%.3f},\"nodes\":{\"prefill\":\"%s\"}}",
        e->prompt_tokens, e->cached_tokens, (double)e->timing.queue / 1000,
        (double)e->timing.prefill / 1000, (double)e->timing.total / 1000, item->prefill_node);
}

static void add_score_text(const struct run *run, const struct tandem_event *e, struct buf *out)
{
    double sum = sum_of(e);
    for (size_t i = 0; i < e->values_count && run->options->show_tokens; i++)
        buf_printf(out, "%u %.9g\n", e->value_tokens[i], (double)e->values[i]);
    buf_printf(out, "perplexity %.6g, log-probability %.6g of %zu token%s\n",
               exp(-sum / (double)e->values_count), sum, e->values_count,
               e->values_count == 1 ? "" : "s");
}

static void add_embed_text(const struct tandem_event *e, struct buf *out)
{
    for (size_t i = 0; i < e->values_count; i++)
        buf_printf(out, "%s%.9g", i ? " " : "", (double)e->values[i]);
    buf_add_string(out, "\n");
}

static void say_error(struct run *run, const struct crowd_item *item)
{
    progress_end(&run->progress);
    fprintf(stderr, "tandem %s: ", run->verb);
    sequence_print_place(&item->sequence, stderr);
    fprintf(stderr, "%s\n", item->reason);
}

static void tick(void *ctx)
{
    struct run *run = ctx;
    char text[32];
    fflush(stdout); /* somebody may wait for a result before he gives the next line */
    if (!run->sequences || isatty(STDOUT_FILENO)) return;
    snprintf(text, sizeof text, "%llu lines", (unsigned long long)run->ended);
    progress_show(&run->progress, clock_now_ns(), 0, 0, text);
}

static void done(void *ctx, const struct crowd_item *item)
{
    struct run *run = ctx;
    struct buf out = {0};
    bool failed = item->end.finish == TANDEM_FINISH_ERROR;
    run->ended++;
    run->failed += failed;
    if (failed) say_error(run, item);
    if (run->options->json) {
        buf_add_string(&out, run->told++ ? ",\n" : run->sequences ? "[" : "");
        add_json(run, item, &out);
    } else if (failed) {
        if (run->sequences) buf_add_string(&out, "\n"); /* others stay at their lines' places */
    } else if (run->kind == TANDEM_SCORE) {
        add_score_text(run, &item->end, &out);
    } else {
        add_embed_text(&item->end, &out);
    }
    if (out.size > 0) fwrite(out.data, 1, out.size, stdout);
    buf_fini(&out);
}

/* ---- the command ---- */

static enum err read_file(const char *path, struct buf *text)
{
    char piece[65536];
    size_t n;
    FILE *f = fopen(path, "re");
    buf_add(text, "", 0);
    while (f && (n = fread(piece, 1, sizeof piece, f)) > 0)
        if (text->size + n > SEQUENCE_BYTES_MAX || buf_add(text, piece, n) != OK) break;
    bool read = f && !ferror(f), all = f && feof(f);
    if (f) fclose(f);
    buf_drop(text, utf8_mark(text->data, text->size));
    if (read && all) return text->error;
    if (!read) return err_set(ERR_IO, "%s: %s", path, strerror(errno));
    return err_set(ERR_INVALID, "%s: a text of more than %d bytes", path, SEQUENCE_BYTES_MAX);
}

static enum err read_only(struct run *run, const char *text)
{
    const struct options *o = run->options;
    struct buf all = {0};
    enum err e;
    if (o->token_ids) return cmd_parse_ids(o->token_ids, &run->only.tokens, &run->only.count);
    e = o->file ? read_file(o->file, &all) : cmd_read_text(text, &all);
    run->only.count = all.size;
    if (e == OK && all.size == 0)
        e = err_set(ERR_INVALID, "the text is empty: there is nothing to %s", run->verb);
    if (e == OK && !(run->only.text = buf_take(&all))) e = ERR_MEMORY;
    buf_fini(&all);
    return e;
}

static enum err open_one(struct run *run, const struct settings *s, const char *text)
{
    const char *file = run->options->file;
    if (settings_source(s, "format") == SETTING_BY_ARGUMENT)
        return err_set(ERR_INVALID, "--format is of lines: it goes with --lines");
    if (file && sequences_are_json(file))
        fprintf(stderr, "tandem %s: %s is taken as one text: --lines takes each line of it\n",
                run->verb, file);
    return read_only(run, text);
}

/* The text of the arguments, or the lines. */
static enum err open_input(struct run *run, const struct settings *s)
{
    const struct options *o = run->options;
    const char *text = s->args_count ? s->args[0] : NULL;
    if ((text != NULL) + (o->file != NULL) + (o->token_ids != NULL) != 1)
        return err_set(ERR_INVALID, "give a TEXT, - for stdin, --file FILE, or --token-ids 1,2,3");
    enum err e = cmd_check_tenant(o->tenant);
    if (e != OK) return e;
    if (!o->lines) return open_one(run, s, text);
    if (o->token_ids || (text && strcmp(text, "-") != 0))
        return err_set(ERR_INVALID, "--lines takes --file FILE, or - for stdin");
    return sequences_open(&run->sequences, o->file ? o->file : text,
                          (enum sequences_format)o->format);
}

static int run_all(struct run *run, struct tandem *t)
{
    const struct crowd_work work = {.ctx = run,
                                    .next = next,
                                    .prepare = prepare,
                                    .done = done,
                                    .tick = tick,
                                    .stop = &cmd_interrupts};
    cmd_catch_interrupts();
    progress_begin(&run->progress, stderr, clock_now_ns());
    struct crowd_end end = crowd_run(t, &work, (uint32_t)run->options->in_flight);
    progress_end(&run->progress);
    if (run->options->json && run->sequences) printf("%s]", run->told ? "" : "[");
    if (run->options->json && (run->told || run->sequences)) putchar('\n');
    fflush(stdout);
    if (end.status != TANDEM_OK) return cmd_fail(run->verb, end.status, end.reason);
    return run->failed ? CMD_FAILED : CMD_DONE;
}

static int encode(int argc, char **argv, struct run *run, const struct settings_program *about,
                  const struct setting *rows, size_t rows_count)
{
    struct options o = {0};
    struct cmd_router router;
    const struct settings_table own = {rows, rows_count, &o};
    struct settings s;
    int code;
    if (!cmd_settings(&s, about, &own, &router, argc, argv, &code)) return code;
    run->options = &o;
    if (run->kind != TANDEM_SCORE) run->kind = o.pool ? TANDEM_EMBED_MEAN : TANDEM_EMBED_LAST;
    struct tandem *t = NULL;
    code = CMD_USAGE;
    if (open_input(run, &s) != OK)
        fprintf(stderr, "tandem %s: %s\n", run->verb, err_text());
    else if ((t = cmd_connect(&router)) != NULL)
        code = run_all(run, t);
    tandem_close(t);
    sequences_close(run->sequences);
    sequence_free(&run->only);
    settings_fini(&s);
    return code;
}

int cmd_score(int argc, char **argv)
{
    struct run run = {.verb = "score", .kind = TANDEM_SCORE};
    const struct settings_program about = {
        .name = "tandem score",
        .args = "[TEXT|-]",
        .args_max = 1,
        .about =
            "The log-probability of each token of a text given those before it, and the text's "
            "perplexity."};
    return encode(argc, argv, &run, &about, score_rows, COUNT_OF(score_rows));
}

int cmd_embed(int argc, char **argv)
{
    struct run run = {.verb = "embed", .kind = TANDEM_EMBED_LAST};
    const struct settings_program about = {
        .name = "tandem embed",
        .args = "[TEXT|-]",
        .args_max = 1,
        .about = "The model's hidden states of a text, pooled, as a vector of length 1."};
    return encode(argc, argv, &run, &about, embed_rows, COUNT_OF(embed_rows));
}
