/* tandem generate: one request; text as it comes, or all of it as one JSON value. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/cmd.h"
#include "common/job.h"

struct options {
    int64_t max_tokens, min_tokens, top_k, choices, seed, logprobs, priority, kv_window, kv_sinks;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    uint64_t deadline_ns;
    struct setting_list stop;
    const char *token_ids, *tenant;
    bool json, ignore_eos, summary;
};

static const struct setting rows[] = {
    SETTING_INT(struct options, max_tokens, "max-tokens", "128", 0, JOB_TOKENS_MAX,
                "tokens to generate at most; 0: only prefill the prompt"),
    SETTING_INT(struct options, min_tokens, "min-tokens", "0", 0, JOB_TOKENS_MAX,
                "tokens before it may stop"),
    SETTING_DOUBLE(struct options, temperature, "temperature", "1", 0, 100,
                   "0: always the likeliest token"),
    SETTING_INT(struct options, top_k, "top-k", "0", 0, UINT32_MAX,
                "draw from so many likeliest tokens; 0: all"),
    SETTING_DOUBLE(struct options, top_p, "top-p", "1", 0, 1,
                   "draw from the likeliest tokens of this probability together"),
    SETTING_DOUBLE(struct options, min_p, "min-p", "0", 0, 1,
                   "leave out tokens below this share of the likeliest one's probability"),
    SETTING_DOUBLE(struct options, repetition_penalty, "repetition-penalty", "1", 0.01, 100,
                   "above 1: tokens seen before become less likely"),
    SETTING_DOUBLE(struct options, presence_penalty, "presence-penalty", "0", -2, 2,
                   "taken off once for a generated token"),
    SETTING_DOUBLE(struct options, frequency_penalty, "frequency-penalty", "0", -2, 2,
                   "taken off each time that a token was generated"),
    SETTING_INT(struct options, seed, "seed", "-1", -1, 9007199254740991.0,
                "the same seed gives the same text; -1: one is drawn"),
    SETTING_LIST(struct options, stop, "stop", "end before this text; repeat for several"),
    SETTING_INT(struct options, choices, "n", "1", 1, JOB_CHOICES_MAX,
                "number of continuations; printed one after another when all have ended"),
    SETTING_INT(struct options, logprobs, "logprobs", "-1", -1, JOB_TOPS_MAX,
                "with --json: log-probabilities, and those of so many likeliest tokens; -1: none"),
    SETTING_BOOL(struct options, ignore_eos, "ignore-eos", "false",
                 "go on behind the end-of-sequence token"),
    SETTING_STRING(struct options, token_ids, "token-ids", NULL,
                   "the prompt as token ids, 1,2,3, instead of PROMPT"),
    SETTING_INT(struct options, priority, "priority", "0", -1000, 1000, "lower goes first"),
    SETTING_STRING(struct options, tenant, "tenant", "",
                   "prefixes are shared within a tenant only"),
    SETTING_DURATION(struct options, deadline_ns, "deadline", "0s", 0, 3600 * NS_PER_S,
                     "give up after this time; 0: never"),
    SETTING_INT(struct options, kv_window, "kv-window", "0", 0, JOB_TOKENS_MAX,
                "approximate: attend to the last so many tokens and to the sinks only; 0: to all"),
    SETTING_INT(struct options, kv_sinks, "kv-sinks", "0", 0, JOB_TOKENS_MAX - BLOCK_TOKENS,
                "first tokens that a kv-window keeps, in whole blocks of 16"),
    SETTING_BOOL(struct options, summary, "summary", "false",
                 "counts, times and the id on stderr at the end, also where that is no terminal"),
    SETTING_BOOL(struct options, json, "json", "false",
                 "print one JSON object (with --n above 1: an array of them) at the end"),
};

struct output {                        /* of one choice */
    struct buf text, tokens, logprobs; /* tokens, logprobs: the inside of JSON arrays */
    struct tandem_event end;           /* its strings are copied below */
    char reason[512], prefill_node[72], decode_node[72];
};

struct run {
    const struct options *options;
    struct tandem_request *request;
    struct output output[JOB_CHOICES_MAX];
    char id[40];
    uint64_t ask_ns; /* when to ask why nothing comes; TIME_NEVER: something came, or it was said */
    bool over, streaming, ends_with_newline;
};
#define ASK_NS (1 * NS_PER_S)

/* ---- events ---- */

static void add_logprobs(struct buf *out, const struct tandem_token *t)
{
    buf_printf(out, "%s{\"token\":%u,\"logprob\":%.9g,\"top\":[", out->size ? "," : "", t->token,
               (double)t->logprob);
    for (size_t i = 0; i < t->tops_count; i++)
        buf_printf(out, "%s{\"token\":%u,\"logprob\":%.9g}", i ? "," : "", t->tops[i].token,
                   (double)t->tops[i].logprob);
    buf_add_string(out, "]}");
}

static void on_tokens(struct run *run, const struct tandem_event *e)
{
    struct output *o = &run->output[e->choice];
    run->ask_ns = TIME_NEVER;
    for (size_t i = 0; i < e->tokens_count; i++) {
        buf_printf(&o->tokens, "%s%u", o->tokens.size ? "," : "", e->tokens[i].token);
        if (run->options->logprobs >= 0) add_logprobs(&o->logprobs, &e->tokens[i]);
    }
}

static void on_text(struct run *run, const struct tandem_event *e)
{
    if (!run->streaming) {
        buf_add(&run->output[e->choice].text, e->text, e->text_bytes);
        return;
    }
    fwrite(e->text, 1, e->text_bytes, stdout);
    fflush(stdout);
    run->ends_with_newline = e->text[e->text_bytes - 1] == '\n';
}

static void on_end(struct run *run, const struct tandem_event *e)
{
    struct output *o = &run->output[e->choice];
    o->end = *e;
    snprintf(o->reason, sizeof o->reason, "%s", e->reason);
    snprintf(o->prefill_node, sizeof o->prefill_node, "%s", e->prefill_node);
    snprintf(o->decode_node, sizeof o->decode_node, "%s", e->decode_node);
    snprintf(run->id, sizeof run->id, "%s", e->id);
    run->over = e->choices_left == 0;
}

static void on_event(void *ctx, const struct tandem_event *e)
{
    struct run *run = ctx;
    switch (e->kind) {
    case TANDEM_EVENT_ACCEPTED:
        snprintf(run->id, sizeof run->id, "%s", e->id);
        run->ask_ns = clock_now_ns() + ASK_NS;
        return;
    case TANDEM_EVENT_TOKENS: on_tokens(run, e); return;
    case TANDEM_EVENT_TEXT: on_text(run, e); return;
    case TANDEM_EVENT_DONE:
    case TANDEM_EVENT_ERROR: on_end(run, e); return;
    }
}

/* ---- results ---- */

static double ms(uint64_t us)
{
    return (double)us / 1000.0;
}

static void add_json(const struct run *run, const struct output *o, struct buf *out)
{
    const struct tandem_event *e = &o->end;
    const struct tandem_timing *t = &e->timing;
    buf_printf(out, "{\"id\":\"%s\",\"text\":", run->id);
    buf_json_string(out, o->text.data ? o->text.data : "", o->text.size);
    buf_printf(out, ",\"tokens\":[%s]", o->tokens.size ? o->tokens.data : "");
    if (run->options->logprobs >= 0)
        buf_printf(out, ",\"logprobs\":[%s]", o->logprobs.size ? o->logprobs.data : "");
    buf_printf(out, ",\"finish_reason\":\"%s\"", tandem_finish_name(e->finish));
    if (e->finish == TANDEM_FINISH_ERROR) {
        buf_printf(out, ",\"error\":{\"code\":\"%s\",\"message\":", tandem_status_name(e->status));
        buf_json_string(out, o->reason, strlen(o->reason));
        buf_printf(out, ",\"retry_ms\":%u}", e->retry_ms);
    }
    buf_printf(out,
               ",\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"cached_tokens\":%u}"
               ",\"timing_ms\":{\"queue\":%.3f,\"prefill\":%.3f,\"transfer_tail\":%.3f,"
               "\"ttft\":%.3f,\"decode\":%.3f,\"total\":%.3f}",
               e->prompt_tokens, e->completion_tokens, e->cached_tokens, ms(t->queue),
               ms(t->prefill), ms(t->transfer_tail), ms(t->ttft), ms(t->decode), ms(t->total));
    if (e->kv_window)
        buf_printf(out, ",\"approximate\":{\"kv_window\":%u,\"kv_sinks\":%u}", e->kv_window,
                   e->kv_sinks);
    if (e->inexact) buf_add_string(out, ",\"inexact\":true");
    buf_printf(out, ",\"nodes\":{\"prefill\":\"%s\",\"decode\":\"%s\"}}", o->prefill_node,
               o->decode_node);
}

static void print_json(const struct run *run)
{
    struct buf out = {0};
    int64_t n = run->options->choices;
    for (int64_t i = 0; i < n; i++) {
        buf_add_string(&out, n == 1 ? "" : i == 0 ? "[" : ",");
        add_json(run, &run->output[i], &out);
    }
    buf_add_string(&out, n == 1 ? "\n" : "]\n");
    fwrite(out.data, 1, out.size, stdout);
    buf_fini(&out);
}

static void print_text(const struct run *run)
{
    if (run->streaming) {
        if (isatty(STDOUT_FILENO) && !run->ends_with_newline) putchar('\n');
        return;
    }
    for (int64_t i = 0; i < run->options->choices; i++) {
        const struct buf *text = &run->output[i].text;
        printf("%s== %lld ==\n", i ? "\n" : "", (long long)i);
        fwrite(text->data, 1, text->size, stdout);
        putchar('\n');
    }
}

static void print_summary(const struct run *run)
{
    const struct tandem_event *e = &run->output[0].end;
    if (!run->options->summary && !isatty(STDERR_FILENO)) return;
    fprintf(stderr,
            "%u prompt tokens, %u generated (%s), first after %.1f ms, all in %.1f ms; %s\n",
            e->prompt_tokens, e->completion_tokens, tandem_finish_name(e->finish),
            ms(e->timing.ttft), ms(e->timing.total), run->id);
    if (e->kv_window)
        fprintf(stderr, "approximate: of the KV only %u first and %u last tokens\n", e->kv_sinks,
                e->kv_window);
    if (e->inexact) fprintf(stderr, "inexact: the cluster's nodes have unequal numerics\n");
}

static int print_result(const struct run *run)
{
    int code = CMD_DONE;
    if (run->options->json)
        print_json(run);
    else
        print_text(run);
    fflush(stdout);
    for (int64_t i = 0; i < run->options->choices && code == CMD_DONE; i++) {
        const struct output *o = &run->output[i];
        if (o->end.finish == TANDEM_FINISH_ERROR)
            code = cmd_fail("generate", o->end.status, o->reason);
        else if (o->end.finish == TANDEM_FINISH_CANCELLED)
            code = cmd_fail("generate", TANDEM_CANCELLED, "cancelled");
    }
    if (code == CMD_DONE && !run->options->json) print_summary(run);
    return code;
}

/* ---- the request ---- */

static enum tandem_status set_prompt(struct tandem_request *r, const struct settings *s,
                                     const struct options *o)
{
    struct buf text = {0};
    uint32_t *ids = NULL;
    size_t count = 0;
    enum tandem_status status = TANDEM_INVALID;
    if (o->token_ids) {
        if (cmd_parse_ids(o->token_ids, &ids, &count) == OK)
            status = tandem_set_tokens(r, ids, count);
    } else if (cmd_read_text(s->args[0], &text) == OK) {
        status = tandem_set_text(r, text.data, text.size);
    }
    mem_free(ids);
    buf_fini(&text);
    return status;
}

static enum tandem_status set_all(struct tandem_request *r, const struct settings *s,
                                  const struct options *o)
{
    enum tandem_status status = set_prompt(r, s, o);
    tandem_set_max_tokens(r, (uint32_t)o->max_tokens);
    tandem_set_min_tokens(r, (uint32_t)o->min_tokens);
    tandem_set_kv_window(r, (uint32_t)o->kv_window, (uint32_t)o->kv_sinks);
    tandem_set_choices(r, (uint32_t)o->choices);
    tandem_set_temperature(r, (float)o->temperature);
    tandem_set_top_k(r, (uint32_t)o->top_k);
    tandem_set_top_p(r, (float)o->top_p);
    tandem_set_min_p(r, (float)o->min_p);
    tandem_set_repetition_penalty(r, (float)o->repetition_penalty);
    tandem_set_presence_penalty(r, (float)o->presence_penalty);
    tandem_set_frequency_penalty(r, (float)o->frequency_penalty);
    tandem_set_priority(r, (int32_t)o->priority);
    tandem_set_deadline(r, cmd_ms(o->deadline_ns));
    tandem_set_ignore_eos(r, o->ignore_eos);
    if (o->seed >= 0) tandem_set_seed(r, (uint64_t)o->seed);
    if (o->logprobs >= 0) tandem_set_logprobs(r, (uint32_t)o->logprobs);
    if (status == TANDEM_OK) status = tandem_set_tenant(r, o->tenant);
    for (size_t i = 0; i < o->stop.count && status == TANDEM_OK; i++)
        status = tandem_add_stop(r, o->stop.item[i]);
    return status;
}

/* ---- why nothing comes ---- */

static void on_explained(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    struct run *run = ctx;
    json_t *answer = status == TANDEM_OK ? json_loadb(text, bytes, 0, NULL) : NULL, *choice;
    size_t i;
    json_array_foreach(json_object_get(answer, "choices"), i, choice)
    {
        const char *waiting = json_string_value(json_object_get(choice, "waiting"));
        if (run->ask_ns == TIME_NEVER || !waiting || !waiting[0]) continue;
        fprintf(stderr, "waiting: %s\n", waiting);
        run->ask_ns = TIME_NEVER;
    }
    json_decref(answer);
}

static void ask_why(struct tandem *t, struct run *run)
{
    if (!run->id[0] || clock_now_ns() < run->ask_ns) return;
    run->ask_ns += ASK_NS;
    tandem_query_explain(t, run->id, on_explained, run); /* an error: the stream tells more of it */
}

/* Until it has ended. The first interrupt cancels it, and so does a stdout that takes no more; the second
 * interrupt leaves. */
static int wait_for_end(struct tandem *t, struct run *run)
{
    while (!run->over) {
        tandem_wait(t, 200);
        ask_why(t, run);
        if (cmd_interrupts || ferror(stdout)) tandem_cancel(run->request);
        if (cmd_interrupts > 1) return CMD_FAILED;
    }
    return print_result(run);
}

static int generate(struct tandem *t, const struct settings *s, struct run *run)
{
    const struct options *o = run->options;
    run->request = tandem_request_new(t, on_event, run);
    if (!run->request) return cmd_fail("generate", TANDEM_MEMORY, tandem_error_text());
    if (set_all(run->request, s, o) != TANDEM_OK || tandem_submit(run->request) != TANDEM_OK) {
        fprintf(stderr, "tandem generate: %s\n", tandem_error_text());
        return CMD_USAGE;
    }
    cmd_catch_interrupts();
    return wait_for_end(t, run);
}

/* What can be told from the settings alone. */
static enum err check(const struct settings *s, const struct options *o)
{
    if ((s->args_count == 1) == (o->token_ids != NULL))
        return err_set(ERR_INVALID, "give a PROMPT, - for stdin, or --token-ids 1,2,3");
    if (o->logprobs >= 0 && !o->json && settings_source(s, "logprobs") == SETTING_BY_ARGUMENT)
        return err_set(ERR_INVALID, "--logprobs are printed with --json");
    if (o->kv_sinks > 0 && o->kv_window == 0)
        return err_set(ERR_INVALID, "--kv-sinks %lld needs a --kv-window", (long long)o->kv_sinks);
    if (o->min_tokens <= o->max_tokens) return OK;
    return err_set(ERR_INVALID, "--min-tokens %lld is more than --max-tokens %lld",
                   (long long)o->min_tokens, (long long)o->max_tokens);
}

int cmd_generate(int argc, char **argv)
{
    struct options o = {0};
    struct cmd_router router;
    const struct settings_table own = {rows, COUNT_OF(rows), &o};
    const struct settings_program about = {
        .name = "tandem generate",
        .args = "[PROMPT|-]",
        .about =
            "Continues a prompt; - reads it from stdin. Text streams to stdout. Ctrl-C cancels.",
        .args_max = 1};
    struct settings s;
    int code;
    if (!cmd_settings(&s, &about, &own, &router, argc, argv, &code)) return code;
    if (check(&s, &o) != OK) {
        fprintf(stderr, "tandem generate: %s\n", err_text());
        settings_fini(&s);
        return CMD_USAGE;
    }
    struct tandem *t = cmd_connect(&router);
    struct run *run = mem_new(sizeof *run);
    code = CMD_USAGE;
    if (t && run) {
        run->options = &o;
        run->streaming = !o.json && o.choices == 1;
        code = generate(t, &s, run);
        tandem_request_free(run->request);
        for (int64_t i = 0; i < o.choices; i++) {
            buf_fini(&run->output[i].text);
            buf_fini(&run->output[i].tokens);
            buf_fini(&run->output[i].logprobs);
        }
    }
    tandem_close(t);
    mem_free(run);
    settings_fini(&s);
    return code;
}
