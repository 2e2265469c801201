#include "client/timeline.h"

#include <stdbool.h>
#include <string.h>

#include "client/show.h"

enum {
    SPANS_MAX = 64, /* an event opens one at most, and the tail is one more */
    EVENTS_MAX = SPANS_MAX / 2,
    BAR_COLUMNS = 40
};

struct span {
    char what[48];
    double from_ms, to_ms;
    double computing_ms; /* of a prefill, as the node counted it */
};

struct timeline {
    struct span span[SPANS_MAX];
    size_t count;
    struct span *open; /* the last one, or NULL */
    char decode[40];
    double end_ms;
};

static void close_span(struct timeline *t, double at_ms)
{
    if (t->open) t->open->to_ms = at_ms;
    t->open = NULL;
}

static void open_span(struct timeline *t, double at_ms, const char *what, const char *node)
{
    close_span(t, at_ms);
    if (t->count == SPANS_MAX) return;
    struct span *s = t->open = &t->span[t->count++];
    *s = (struct span){.from_ms = at_ms, .to_ms = at_ms};
    snprintf(s->what, sizeof s->what, "%s%s%.36s", what, node[0] ? " " : "", node);
}

static bool open_is(const struct timeline *t, const char *what)
{
    return t->open && strncmp(t->open->what, what, strlen(what)) == 0;
}

/* Tokens come from one node alone from now on. Without an own prefill it was part of what the decode
 * node was asked for. */
static void begin_decode(struct timeline *t, double at_ms)
{
    if (open_is(t, "decode")) return;
    if (open_is(t, "reserve"))
        snprintf(t->open->what, sizeof t->open->what, "prefill %s", t->decode);
    open_span(t, at_ms, "decode", t->decode);
}

static void end_of_prefill(struct timeline *t, double at_ms, const json_t *timing)
{
    double tail_ms = show_real(timing, "transfer_tail");
    for (size_t i = t->count; i-- > 0;)
        if (strncmp(t->span[i].what, "prefill", 7) == 0) {
            t->span[i].computing_ms = show_real(timing, "prefill");
            break;
        }
    if (tail_ms <= 0 || t->count == SPANS_MAX) return;
    struct span tail = {"transfer tail", at_ms > tail_ms ? at_ms - tail_ms : 0, at_ms, 0};
    struct span *place = &t->span[t->count];
    if (t->open) { /* it stays the last */
        place = t->open++;
        *t->open = *place;
    }
    *place = tail;
    t->count++;
}

static void on_event(struct timeline *t, const json_t *event, const json_t *timing)
{
    const char *what = show_text(event, "event"), *node = show_text(event, "node");
    double at_ms = show_real(event, "at_ms");
    if (strcmp(what, "queued") == 0) {
        if (t->count == 0 && at_ms > 0) open_span(t, 0, "tokenize", "");
        open_span(t, at_ms, "queue", "");
    } else if (strcmp(what, "reserve") == 0) {
        snprintf(t->decode, sizeof t->decode, "%.36s", node);
        open_span(t, at_ms, what, node);
    } else if (strcmp(what, "prefill") == 0 || strcmp(what, "backfill") == 0) {
        open_span(t, at_ms, what, node);
    } else if (strcmp(what, "first") == 0 || strcmp(what, "stream") == 0) {
        begin_decode(t, at_ms);
    } else if (strcmp(what, "prefilled") == 0) {
        end_of_prefill(t, at_ms, timing);
    } else if (strcmp(what, "lost") == 0 || strcmp(what, "failed") == 0) {
        open_span(t, at_ms, what, node);
        close_span(t, at_ms);
    } else if (strcmp(what, "ended") == 0) {
        close_span(t, at_ms);
    }
}

/* In columns; outside data may lie anywhere. */
static int column_of(const struct timeline *t, double at_ms)
{
    if (!(at_ms > 0) || t->end_ms <= 0) return 0;
    return at_ms < t->end_ms ? (int)(at_ms / t->end_ms * BAR_COLUMNS + 0.5) : BAR_COLUMNS;
}

static void print_span(FILE *out, const struct timeline *t, const struct span *s)
{
    int first = column_of(t, s->from_ms), last = column_of(t, s->to_ms);
    if (first == BAR_COLUMNS) first--; /* the shortest one is seen too */
    fprintf(out, "  %-20s %10.2f %10.2f  %*s", s->what, s->from_ms, s->to_ms - s->from_ms, first,
            "");
    do
        fputc('#', out);
    while (++first < last);
    fputc('\n', out);
    if (s->computing_ms > 0)
        fprintf(out, "    %-18s %10s %10.2f\n", "of it computing", "", s->computing_ms);
}

static void print_head(FILE *out, const json_t *choice)
{
    const json_t *timing = json_object_get(choice, "timing_ms");
    long long tokens = json_integer_value(json_object_get(choice, "completion_tokens"));
    long long attempts = json_integer_value(json_object_get(choice, "attempts"));
    long long cached = json_integer_value(json_object_get(choice, "cached_tokens"));
    const char *finish = show_text(choice, "finish_reason"), *reason = show_text(choice, "reason");
    fprintf(out, "choice %lld: %lld tokens, %s",
            (long long)json_integer_value(json_object_get(choice, "choice")), tokens,
            finish[0] ? finish : show_text(choice, "state"));
    if (reason[0]) fprintf(out, " (%s)", reason);
    if (show_real(timing, "ttft") > 0)
        fprintf(out, "; the first after %.2f ms", show_real(timing, "ttft"));
    if (tokens > 1 && show_real(timing, "decode") > 0)
        fprintf(out, ", then one every %.2f ms",
                show_real(timing, "decode") / (double)(tokens - 1));
    if (cached > 0) fprintf(out, "; %lld prompt tokens were cached", cached);
    if (attempts > 1) fprintf(out, "; %lld attempts", attempts);
    fputc('\n', out);
}

void timeline_print(FILE *out, const json_t *choice)
{
    const json_t *timing = json_object_get(choice, "timing_ms");
    const json_t *events = json_object_get(choice, "events");
    struct timeline t = {.count = 0};
    double last_ms = 0;
    size_t prefilled = EVENTS_MAX; /* the last one: timing_ms is of that attempt */
    print_head(out, choice);
    if (show_text(choice, "waiting")[0])
        fprintf(out, "  waiting: %s\n", show_text(choice, "waiting"));
    for (size_t i = 0; i < json_array_size(events) && i < EVENTS_MAX; i++)
        if (strcmp(show_text(json_array_get(events, i), "event"), "prefilled") == 0) prefilled = i;
    for (size_t i = 0; i < json_array_size(events) && i < EVENTS_MAX; i++) {
        const json_t *event = json_array_get(events, i);
        if (show_real(event, "at_ms") > last_ms) last_ms = show_real(event, "at_ms");
        on_event(&t, event, i == prefilled ? timing : NULL);
    }
    t.end_ms = show_real(timing, "total") > 0 ? show_real(timing, "total") : last_ms;
    close_span(&t, t.end_ms);
    if (t.count == 0) return;
    fprintf(out, "  %-20s %10s %10s\n", "", "from ms", "took ms");
    for (size_t i = 0; i < t.count; i++)
        print_span(out, &t, &t.span[i]);
    fprintf(out, "  %-20s %10.2f %10.2f\n", "all", 0.0, t.end_ms);
}
