/* tandem warm: prefills sequences so that their KV is in the nodes' caches before somebody asks for it. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cmd.h"
#include "client/crowd.h"
#include "client/warm_plan.h"
#include "client/warm_state.h"
#include "common/geometry.h"
#include "common/mem.h"
#include "common/progress.h"

enum { WINDOW_SEQUENCES = 32768, WINDOW_BYTES = 64 << 20 }; /* that are sorted together */

struct options {
    const char *resume, *tenant;
    int format;
    int64_t in_flight, priority;
    uint64_t budget;
    bool json;
};

static const struct setting rows[] = {
    SETTING_CHOICE(
        struct options, format, "format", SEQUENCES_FORMATS, "auto",
        "of lines: text, or JSON with \"prompt\" or \"tokens\"; auto: by the file's name"),
    SETTING_STRING(struct options, resume, "resume", NULL,
                   "a file that keeps what was done; a later run with it goes on there"),
    SETTING_SIZE(
        struct options, budget, "budget", "0", 0, 9007199254740992.0,
        "bytes of new KV after which to stop, of all runs with one --resume file; 0: none"),
    SETTING_INT(struct options, in_flight, "in-flight", "64", 1, CROWD_MAX,
                "sequences that are under way at once"),
    SETTING_INT(struct options, priority, "priority", "1000", -1000, 1000, "lower goes first"),
    SETTING_STRING(struct options, tenant, "tenant", "",
                   "prefixes are shared within a tenant only"),
    SETTING_BOOL(struct options, json, "json", "false", "print one JSON object at the end"),
};

struct tally {
    uint64_t sequences, tokens_new, tokens_shared;
};

struct run {
    const struct options *options;
    struct sequences *source;
    struct warm_plan plan;
    struct warm_state state;
    uint64_t token_bytes, began_ns, told_ns;
    struct progress progress; /* on a terminal; else a line now and then */
    struct tally done;
    uint64_t duplicates, skipped, failed;
    uint32_t in_flight;
    bool read_all, over_budget;
    enum err broken; /* the state file cannot be written: its text is kept */
    char reason[512];
};

/* ---- what goes in ---- */

static void say_bad(struct run *run, const struct sequence *q, const char *reason)
{
    progress_end(&run->progress);
    fprintf(stderr, "tandem warm: ");
    sequence_print_place(q, stderr);
    fprintf(stderr, "%s\n", reason);
    run->failed++;
}

/* One line more for the plan, if it is worth it. */
static enum err take_line(struct run *run)
{
    struct sequence q;
    enum err e = sequences_next(run->source, &q);
    if (e == ERR_NOT_FOUND) run->read_all = true;
    if (e == ERR_FORMAT) {
        say_bad(run, &q, err_text());
        sequence_free(&q);
        return OK;
    }
    if (e != OK) return e;
    if (q.count > 0 && warm_state_has(&run->state, warm_state_id(run->options->tenant, &q)))
        run->skipped++;
    else if (q.count > 0)
        e = warm_plan_add(&run->plan, &q);
    sequence_free(&q); /* an empty line is nothing to warm */
    return e;
}

/* The next window of lines, in the plan's order. ERR_NOT_FOUND: there is none. */
static enum err read_window(struct run *run)
{
    enum err e = OK;
    warm_plan_clear(&run->plan);
    while (e == OK && !run->read_all && !cmd_interrupts && run->plan.count < WINDOW_SEQUENCES &&
           run->plan.bytes < WINDOW_BYTES)
        e = take_line(run);
    if (e == ERR_AGAIN && run->plan.count == 0) return e;
    if (e != OK && e != ERR_NOT_FOUND && e != ERR_AGAIN) return e;
    if (run->plan.count == 0) return ERR_NOT_FOUND;
    return warm_plan_make(&run->plan);
}

static void account(struct run *run, struct warm_item *item, uint32_t tokens, uint32_t shared)
{
    uint32_t whole = tokens / BLOCK_TOKENS * BLOCK_TOKENS; /* what is kept of it */
    uint32_t new = whole > shared ? whole - shared : 0;
    item->tokens = tokens;
    run->done.sequences++;
    run->done.tokens_new += new;
    run->done.tokens_shared += whole - new;
    struct id128 id = warm_state_id(run->options->tenant, &item->sequence);
    if (warm_state_add(&run->state, id, new * run->token_bytes) != OK && run->broken == OK) {
        run->broken = ERR_MEMORY;
        snprintf(run->reason, sizeof run->reason, "%s", err_text());
    }
}

/* Whether what is under way may fill the budget; what it takes is taken for as much as others took. */
static bool budget_is_used(struct run *run)
{
    uint64_t budget = run->options->budget, used = run->state.new_bytes;
    if (budget == 0) return false;
    uint64_t mean = run->done.sequences
                        ? run->done.tokens_new * run->token_bytes / run->done.sequences
                        : budget;
    run->over_budget |= used >= budget;
    return run->over_budget || used + run->in_flight * mean >= budget;
}

static enum err copy_sequence(const struct sequence *from, uint32_t tag, struct sequence *to)
{
    size_t bytes = from->tokens ? from->count * sizeof *from->tokens : from->count + 1;
    void *copy = mem_new(bytes);
    if (!copy) return ERR_MEMORY;
    memcpy(copy, from->tokens ? (const void *)from->tokens : from->text, bytes);
    *to = (struct sequence){.line = from->line, .tag = tag, .count = from->count};
    if (from->tokens)
        to->tokens = copy;
    else
        to->text = copy;
    return OK;
}

static enum err next(void *ctx, struct sequence *out)
{
    struct run *run = ctx;
    uint32_t i;
    enum err e;
    if (run->broken != OK) return err_set(run->broken, "%s", run->reason);
    if (budget_is_used(run)) {
        if (run->in_flight > 0) return ERR_AGAIN;
        if (run->over_budget) return ERR_NOT_FOUND;
    }
    for (;;) {
        e = warm_plan_next(&run->plan, &i);
        if (e == ERR_NOT_FOUND && run->in_flight > 0) return ERR_AGAIN;
        if (e == ERR_NOT_FOUND && (e = read_window(run)) == OK) continue;
        if (e != OK) return e;
        if (!run->plan.item[i].duplicate) break;
        const struct warm_item *same = &run->plan.item[run->plan.item[i].owner];
        run->duplicates++;
        account(run, &run->plan.item[i], same->tokens, same->tokens);
        warm_plan_done(&run->plan, i);
    }
    run->in_flight++;
    return copy_sequence(&run->plan.item[i].sequence, i, out);
}

static enum tandem_status prepare(void *ctx, struct tandem_request *r, const struct sequence *q)
{
    const struct run *run = ctx;
    (void)q;
    tandem_set_max_tokens(r, 0);
    tandem_set_want_text(r, 0);
    tandem_set_priority(r, (int32_t)run->options->priority);
    return tandem_set_tenant(r, run->options->tenant);
}

/* ---- what comes out ---- */

static void print_bytes(char *text, size_t size, uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t u = 0;
    for (; v >= 1024 && u + 1 < COUNT_OF(units); u++)
        v /= 1024;
    snprintf(text, size, u ? "%.1f %s" : "%.0f %s", v, units[u]);
}

static void print_tally(char *text, size_t size, const struct run *run)
{
    char new[32], shared[32];
    const struct tally *d = &run->done;
    print_bytes(new, sizeof new, d->tokens_new * run->token_bytes);
    print_bytes(shared, sizeof shared, d->tokens_shared * run->token_bytes);
    snprintf(text, size,
             "%" PRIu64 " sequence%s, %" PRIu64 " tokens: %" PRIu64 " new (%s), %" PRIu64
             " shared (%s)",
             d->sequences, d->sequences == 1 ? "" : "s", d->tokens_new + d->tokens_shared,
             d->tokens_new, new, d->tokens_shared, shared);
}

static void tick(void *ctx)
{
    struct run *run = ctx;
    char text[256];
    uint64_t now_ns = clock_now_ns();
    if (run->broken == OK && (run->broken = warm_state_save(&run->state, now_ns, false)) != OK)
        snprintf(run->reason, sizeof run->reason, "%s", err_text());
    print_tally(text, sizeof text, run);
    progress_show(&run->progress, now_ns, run->plan.given_count - run->in_flight,
                  run->read_all ? run->plan.count : 0, text);
    if (run->progress.screen || now_ns - run->told_ns < 10 * NS_PER_S) return;
    run->told_ns = now_ns;
    fprintf(stderr, "%s\n", text);
}

static void done(void *ctx, const struct crowd_item *item)
{
    struct run *run = ctx;
    uint32_t i = (uint32_t)item->sequence.tag;
    const struct tandem_event *e = &item->end;
    run->in_flight--;
    if (e->finish == TANDEM_FINISH_ERROR) {
        say_bad(run, &run->plan.item[i].sequence, item->reason);
    } else {
        account(run, &run->plan.item[i], e->prompt_tokens, e->cached_tokens);
    }
    warm_plan_done(&run->plan, i);
}

static void print_json(const struct run *run, const char *stopped)
{
    const struct tally *d = &run->done;
    json_t *o = json_pack(
        "{s:{s:I,s:I,s:I,s:I},s:{s:I,s:I},s:{s:I,s:I,s:I},s:I,s:s,s:f}", "sequences", "done",
        (json_int_t)d->sequences, "duplicates", (json_int_t)run->duplicates, "skipped",
        (json_int_t)run->skipped, "failed", (json_int_t)run->failed, "tokens", "new",
        (json_int_t)d->tokens_new, "shared", (json_int_t)d->tokens_shared, "bytes", "new",
        (json_int_t)(d->tokens_new * run->token_bytes), "shared",
        (json_int_t)(d->tokens_shared * run->token_bytes), "new_of_all_runs",
        (json_int_t)run->state.new_bytes, "token_bytes", (json_int_t)run->token_bytes, "stopped",
        stopped, "seconds", (double)(clock_now_ns() - run->began_ns) / (double)NS_PER_S);
    char *text = json_dumps(o, JSON_COMPACT);
    printf("%s\n", text ? text : "{}");
    fflush(stdout);
    free(text);
    json_decref(o);
}

static int finish(struct run *run, const struct crowd_end *end)
{
    char text[256];
    bool stopped = end->status == TANDEM_CANCELLED;
    if (run->broken == OK && (run->broken = warm_state_save(&run->state, 0, true)) != OK)
        snprintf(run->reason, sizeof run->reason, "%s", err_text());
    print_tally(text, sizeof text, run);
    progress_end(&run->progress);
    fprintf(stderr, "%s\n", text);
    if (run->skipped) fprintf(stderr, "%" PRIu64 " sequences were done before\n", run->skipped);
    if (run->over_budget)
        fprintf(stderr, "the budget is used up: what was not looked at stays cold\n");
    if (stopped)
        fprintf(stderr, "interrupted%s%s\n", run->options->resume ? ": go on with --resume " : "",
                run->options->resume ? run->options->resume : "");
    if (run->options->json)
        print_json(run, stopped ? "interrupted" : run->over_budget ? "budget" : "end");
    if (run->broken != OK) return cmd_fail("warm", TANDEM_FAILED, run->reason);
    if (end->status != TANDEM_OK && !stopped) return cmd_fail("warm", end->status, end->reason);
    return run->failed || stopped ? CMD_FAILED : CMD_DONE;
}

/* ---- the command ---- */

/* Whose KV it will be, and how much a token has. Waits for a node to join. */
static int look(struct run *run, const struct cmd_router *router, char *model, size_t model_size)
{
    uint64_t end_ns = clock_now_ns() + router->patience_ns;
    do {
        struct buf text = {0};
        json_t *o;
        int code = cmd_ask("warm", router, cmd_question_status, "", &text, &o);
        const json_t *kv = json_object_get(json_object_get(o, "router"), "kv");
        const char *name = json_string_value(json_object_get(kv, "model"));
        run->token_bytes = (uint64_t)json_integer_value(json_object_get(kv, "token_bytes"));
        snprintf(model, model_size, "%s", name ? name : "");
        json_decref(o);
        buf_fini(&text);
        if (code != CMD_DONE) return code;
        if (run->token_bytes == 0) usleep(100000);
    } while (run->token_bytes == 0 && clock_now_ns() < end_ns && !cmd_interrupts);
    if (run->token_bytes > 0) return CMD_DONE;
    return cmd_fail("warm", TANDEM_FAILED, "no node has joined the router: start tandem-prefill");
}

static int warm(struct run *run, const struct cmd_router *router, const char *path)
{
    const struct crowd_work work = {.ctx = run,
                                    .next = next,
                                    .prepare = prepare,
                                    .done = done,
                                    .any_order = true,
                                    .tick = tick,
                                    .stop = &cmd_interrupts};
    char model[64];
    cmd_catch_interrupts();
    if (cmd_check_tenant(run->options->tenant) != OK ||
        sequences_open(&run->source, path, (enum sequences_format)run->options->format) != OK) {
        fprintf(stderr, "tandem warm: %s\n", err_text());
        return CMD_USAGE;
    }
    int code = look(run, router, model, sizeof model);
    if (code != CMD_DONE) return code;
    if (warm_state_open(&run->state, run->options->resume, model) != OK)
        return cmd_fail("warm", TANDEM_FAILED, err_text());
    struct tandem *t = cmd_connect(router);
    if (!t) return CMD_USAGE;
    struct crowd_end end = crowd_run(t, &work, (uint32_t)run->options->in_flight);
    tandem_close(t);
    return finish(run, &end);
}

int cmd_warm(int argc, char **argv)
{
    struct options o = {0};
    struct cmd_router router;
    const struct settings_table own = {rows, COUNT_OF(rows), &o};
    const struct settings_program about = {.name = "tandem warm",
                                           .args = "FILE|-",
                                           .about =
                                               "Prefills each line of a file, at low priority, "
                                               "so that its KV is cached. Ctrl-C stops.",
                                           .args_min = 1,
                                           .args_max = 1};
    struct settings s;
    int code;
    if (!cmd_settings(&s, &about, &own, &router, argc, argv, &code)) return code;
    struct run run = {.options = &o, .began_ns = clock_now_ns()};
    run.told_ns = run.began_ns;
    progress_begin(&run.progress, stderr, run.began_ns);
    code = warm(&run, &router, s.args[0]);
    warm_plan_clear(&run.plan);
    warm_state_close(&run.state);
    sequences_close(run.source);
    settings_fini(&s);
    return code;
}
