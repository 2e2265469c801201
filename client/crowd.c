#include "client/crowd.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"

enum { RETRY_MS = 20 }; /* at least, where the cluster has no room */

struct slot {
    struct crowd *crowd;
    struct crowd_item item;
    struct tandem_request *request; /* NULL: it ended, or waits for retry_ns */
    uint64_t retry_ns;              /* TIME_NEVER: not waiting */
    bool over;
};

struct crowd {
    struct tandem *t;
    const struct crowd_work *work;
    struct slot *slot;
    uint32_t slots_count;
    uint32_t *order; /* of slots: those in use, [0, count), as they were given; then the others */
    uint32_t count;
    bool exhausted;
    struct crowd_end end;
};

static void fail(struct crowd *c, enum tandem_status status, const char *reason)
{
    if (c->end.status != TANDEM_OK) return;
    c->end.status = status;
    snprintf(c->end.reason, sizeof c->end.reason, "%s", reason);
}

static bool copy_values(struct crowd_item *item, const struct tandem_event *e)
{
    size_t n = e->values_count;
    if (n == 0) return true;
    item->values = mem_array(n, sizeof *item->values);
    if (e->value_tokens) item->value_tokens = mem_array(n, sizeof *item->value_tokens);
    if (!item->values || (e->value_tokens && !item->value_tokens)) return false;
    memcpy(item->values, e->values, n * sizeof *item->values);
    if (e->value_tokens) memcpy(item->value_tokens, e->value_tokens, n * sizeof *e->value_tokens);
    return true;
}

static void on_end(struct slot *s, const struct tandem_event *e)
{
    struct crowd_item *item = &s->item;
    item->end = *e;
    snprintf(item->id, sizeof item->id, "%s", e->id);
    snprintf(item->reason, sizeof item->reason, "%s", e->reason);
    snprintf(item->prefill_node, sizeof item->prefill_node, "%s", e->prefill_node);
    if (!copy_values(item, e)) fail(s->crowd, TANDEM_MEMORY, "out of memory for a result");
    item->end.id = item->id;
    item->end.reason = item->reason;
    item->end.prefill_node = item->prefill_node;
    item->end.decode_node = "";
    item->end.values = item->values;
    item->end.value_tokens = item->value_tokens;
    s->over = true;
}

static void on_event(void *ctx, const struct tandem_event *e)
{
    struct slot *s = ctx;
    if (e->kind != TANDEM_EVENT_DONE && e->kind != TANDEM_EVENT_ERROR) return;
    if (e->status == TANDEM_OVERLOADED) {
        s->retry_ns =
            clock_now_ns() + (e->retry_ms > RETRY_MS ? e->retry_ms : RETRY_MS) * NS_PER_MS;
    } else if (e->status == TANDEM_NO_ROUTER) {
        fail(s->crowd, e->status, e->reason);
    } else {
        on_end(s, e);
    }
    tandem_request_free(s->request);
    s->request = NULL;
}

static struct tandem_event error_of(enum tandem_status status, const char *reason)
{
    return (struct tandem_event){.kind = TANDEM_EVENT_ERROR,
                                 .id = "",
                                 .prefill_node = "",
                                 .finish = TANDEM_FINISH_ERROR,
                                 .status = status,
                                 .reason = reason};
}

/* What is wrong with the sequence itself is its own end. */
static void submit(struct crowd *c, struct slot *s)
{
    const struct sequence *q = &s->item.sequence;
    enum tandem_status status = TANDEM_MEMORY;
    s->retry_ns = TIME_NEVER;
    s->request = tandem_request_new(c->t, on_event, s);
    if (s->request)
        status = q->tokens ? tandem_set_tokens(s->request, q->tokens, q->count)
                           : tandem_set_text(s->request, q->text, q->count);
    if (status == TANDEM_OK) status = c->work->prepare(c->work->ctx, s->request, q);
    if (status == TANDEM_OK) status = tandem_submit(s->request);
    if (status == TANDEM_OK) return;
    struct tandem_event e = error_of(status, tandem_error_text());
    on_event(s, &e);
}

static void take_more(struct crowd *c)
{
    while (!c->exhausted && c->end.status == TANDEM_OK && c->count < c->slots_count) {
        struct slot *s = &c->slot[c->order[c->count]];
        *s = (struct slot){.crowd = c, .retry_ns = TIME_NEVER};
        enum err e = c->work->next(c->work->ctx, &s->item.sequence);
        c->exhausted = e == ERR_NOT_FOUND;
        if (e != OK && e != ERR_AGAIN && e != ERR_FORMAT && !c->exhausted)
            fail(c, TANDEM_INVALID, err_text());
        if (e != OK && e != ERR_FORMAT) return;
        c->count++;
        struct tandem_event bad = error_of(TANDEM_INVALID, err_text());
        if (e == ERR_FORMAT)
            on_end(s, &bad);
        else
            submit(c, s);
    }
}

static void clear(struct slot *s)
{
    tandem_request_free(s->request);
    s->request = NULL;
    sequence_free(&s->item.sequence);
    mem_free(s->item.values);
    mem_free(s->item.value_tokens);
    s->item.values = NULL;
    s->item.value_tokens = NULL;
}

/* Tells what has ended, and gives its slots back; true: there was any. */
static bool tell(struct crowd *c)
{
    uint32_t kept = 0, told = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t index = c->order[i];
        struct slot *s = &c->slot[index];
        if (s->over && (kept == 0 || c->work->any_order)) {
            c->work->done(c->work->ctx, &s->item);
            clear(s);
            told++;
            continue;
        }
        c->order[i] = c->order[kept];
        c->order[kept++] = index;
    }
    c->count = kept;
    return told > 0;
}

static void try_again(struct crowd *c)
{
    uint64_t now_ns = clock_now_ns();
    for (uint32_t i = 0; i < c->count; i++) {
        struct slot *s = &c->slot[c->order[i]];
        if (s->retry_ns <= now_ns) submit(c, s);
    }
}

static bool make_slots(struct crowd *c)
{
    c->slot = mem_array(c->slots_count, sizeof *c->slot);
    c->order = mem_array(c->slots_count, sizeof *c->order);
    for (uint32_t i = 0; c->order && i < c->slots_count; i++)
        c->order[i] = i;
    return c->slot && c->order;
}

struct crowd_end crowd_run(struct tandem *t, const struct crowd_work *work, uint32_t in_flight)
{
    enum { TICK_MS = 50 }; /* a signal, or a retry, is seen so late */
    struct crowd c = {.t = t, .work = work, .slots_count = in_flight};
    if (!make_slots(&c)) fail(&c, TANDEM_MEMORY, err_text());
    while (c.end.status == TANDEM_OK) {
        if (work->stop && *work->stop) fail(&c, TANDEM_CANCELLED, "interrupted");
        take_more(&c);
        if (c.count == 0 && c.exhausted) break;
        if (!tell(&c)) tandem_wait(t, TICK_MS);
        try_again(&c);
        if (work->tick) work->tick(work->ctx);
    }
    for (uint32_t i = 0; i < c.count; i++)
        clear(&c.slot[c.order[i]]);
    mem_free(c.slot);
    mem_free(c.order);
    return c.end;
}
