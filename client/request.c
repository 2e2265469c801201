/* request: a request from its setters to its last event, and on to another router with what came so far. */
#include <string.h>

#include "client/internal.h"
#include "common/mem.h"

/* ---- building ---- */

struct tandem_request *tandem_request_new(struct tandem *t, tandem_event_fn *fn, void *ctx)
{
    struct tandem_request *r = mem_new(sizeof *r);
    if (!r) return NULL;
    r->t = t;
    r->fn = fn;
    r->ctx = ctx;
    r->deadline_ns = r->resume_by_ns = TIME_NEVER;
    list_init(&r->link);
    r->submit = (struct msg_submit){.choices = 1, .tokens_max = 16, .want_text = true};
    r->submit.sampling = (struct sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    r->submit.stop_ids = r->stop_ids;
    r->submit.sampling.bias = r->bias;
    r->submit.stop = (const char *const *)r->stop;
    r->submit.tenant = r->tenant;
    return r;
}

static void destroy(struct tandem_request *r)
{
    for (uint32_t i = 0; i < r->submit.stop_count; i++)
        mem_free(r->stop[i]);
    for (uint32_t i = 0; i < r->submit.choices && r->choice; i++)
        mem_free(r->choice[i].received);
    values_free(&r->values);
    mem_free(r->text);
    mem_free(r->tokens);
    mem_free(r->choice);
    mem_free(r);
}

static enum tandem_status invalid(const char *what, unsigned long long max)
{
    return status_of(err_set(ERR_INVALID, "%s: at most %llu", what, max));
}

enum tandem_status tandem_set_text(struct tandem_request *r, const char *text, size_t bytes)
{
    if (bytes > MSG_BYTES_MAX / 2) return invalid("bytes of a prompt", MSG_BYTES_MAX / 2);
    char *copy = mem_new(bytes + 1);
    if (!copy) return TANDEM_MEMORY;
    if (bytes) memcpy(copy, text, bytes);
    mem_free(r->text);
    mem_free(r->tokens);
    r->tokens = NULL;
    r->submit.tokens = NULL;
    r->submit.tokens_count = 0;
    r->submit.text = r->text = copy;
    r->submit.text_bytes = (uint32_t)bytes;
    return TANDEM_OK;
}

enum tandem_status tandem_set_tokens(struct tandem_request *r, const uint32_t *ids, size_t count)
{
    if (count == 0) return status_of(err_set(ERR_INVALID, "a prompt of no tokens"));
    if (count > JOB_TOKENS_MAX) return invalid("tokens of a prompt", JOB_TOKENS_MAX);
    uint32_t *copy = mem_array(count, sizeof *copy);
    if (!copy) return TANDEM_MEMORY;
    memcpy(copy, ids, count * sizeof *ids);
    mem_free(r->tokens);
    mem_free(r->text);
    r->text = NULL;
    r->submit.text = NULL;
    r->submit.text_bytes = 0;
    r->submit.tokens = r->tokens = copy;
    r->submit.tokens_count = (uint32_t)count;
    return TANDEM_OK;
}

void tandem_set_kind(struct tandem_request *r, enum tandem_kind kind)
{
    r->submit.kind = (enum job_kind)kind;
}
void tandem_set_max_tokens(struct tandem_request *r, uint32_t n)
{
    r->submit.tokens_max = n;
}
void tandem_set_min_tokens(struct tandem_request *r, uint32_t n)
{
    r->submit.tokens_min = n;
}
void tandem_set_kv_window(struct tandem_request *r, uint32_t window, uint32_t sinks)
{
    r->submit.kv_window = window;
    r->submit.kv_sinks = (sinks + BLOCK_TOKENS - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
}
void tandem_set_choices(struct tandem_request *r, uint32_t n)
{
    r->submit.choices = n;
}
void tandem_set_temperature(struct tandem_request *r, float v)
{
    r->submit.sampling.temperature = v;
}
void tandem_set_top_k(struct tandem_request *r, uint32_t k)
{
    r->submit.sampling.top_k = k;
}
void tandem_set_top_p(struct tandem_request *r, float p)
{
    r->submit.sampling.top_p = p;
}
void tandem_set_min_p(struct tandem_request *r, float p)
{
    r->submit.sampling.min_p = p;
}
void tandem_set_repetition_penalty(struct tandem_request *r, float v)
{
    r->submit.sampling.repetition_penalty = v;
}
void tandem_set_presence_penalty(struct tandem_request *r, float v)
{
    r->submit.sampling.presence_penalty = v;
}
void tandem_set_frequency_penalty(struct tandem_request *r, float v)
{
    r->submit.sampling.frequency_penalty = v;
}
void tandem_set_seed(struct tandem_request *r, uint64_t seed)
{
    r->submit.seed_given = true;
    r->submit.sampling.seed = seed;
}
void tandem_set_logprobs(struct tandem_request *r, uint32_t tops)
{
    r->submit.sampling.logprobs = true;
    r->submit.sampling.tops_count = tops;
}
void tandem_set_ignore_eos(struct tandem_request *r, int ignore)
{
    r->submit.ignore_eos = ignore != 0;
}
void tandem_set_want_text(struct tandem_request *r, int want)
{
    r->submit.want_text = want != 0;
}
void tandem_set_show_special(struct tandem_request *r, int show)
{
    r->submit.echo_special = show != 0;
}
void tandem_set_priority(struct tandem_request *r, int32_t priority)
{
    r->submit.priority = priority;
}
void tandem_set_deadline(struct tandem_request *r, uint32_t ms)
{
    r->submit.deadline_ms = ms;
}

enum tandem_status tandem_set_tenant(struct tandem_request *r, const char *tenant)
{
    size_t n = strlen(tenant);
    if (n > MSG_NAME_MAX)
        return status_of(
            err_set(ERR_INVALID, "a tenant's name has at most %d bytes", MSG_NAME_MAX));
    memcpy(r->tenant, tenant, n + 1);
    return TANDEM_OK;
}

enum tandem_status tandem_add_bias(struct tandem_request *r, uint32_t token, float bias)
{
    if (r->submit.sampling.bias_count == JOB_BIAS_MAX)
        return invalid("entries of logit bias", JOB_BIAS_MAX);
    r->bias[r->submit.sampling.bias_count++] = (struct logit_bias){token, bias};
    return TANDEM_OK;
}

enum tandem_status tandem_add_stop_id(struct tandem_request *r, uint32_t token)
{
    if (r->submit.stop_ids_count == JOB_STOP_IDS_MAX) return invalid("stop ids", JOB_STOP_IDS_MAX);
    r->stop_ids[r->submit.stop_ids_count++] = token;
    return TANDEM_OK;
}

enum tandem_status tandem_add_stop(struct tandem_request *r, const char *text)
{
    if (r->submit.stop_count == JOB_STOP_STRINGS_MAX)
        return invalid("stop strings", JOB_STOP_STRINGS_MAX);
    char *copy = mem_copy_string(text);
    if (!copy) return TANDEM_MEMORY;
    r->stop[r->submit.stop_count++] = copy;
    return TANDEM_OK;
}

/* ---- telling the user ---- */

static struct tandem_event event_of(struct tandem_request *r, enum tandem_event_kind kind,
                                    uint32_t choice)
{
    return (struct tandem_event){
        .kind = kind,
        .request = r,
        .id = r->id_text,
        .choice = choice,
        .text = "",
        .reason = "",
        .prefill_node = "",
        .decode_node = "",
        .seed = r->submit.sampling.seed,
        .prompt_tokens = r->prompt_tokens,
        .completion_tokens = choice < r->submit.choices ? r->choice[choice].received_count : 0,
        .attempts = 1};
}

/* False: the request is gone, freed by its callback. */
static bool tell(struct tandem_request *r, const struct tandem_event *event)
{
    r->callbacks++;
    if (!r->freed) r->fn(r->ctx, event);
    r->callbacks--;
    if (!r->freed) return true;
    if (r->callbacks == 0) destroy(r);
    return false;
}

static void forget(struct tandem_request *r)
{
    struct tandem *t = r->t;
    list_remove(&r->link);
    if (t && map_get(&t->by_id, r->id) == r) map_remove(&t->by_id, r->id);
    if (t && map_get(&t->by_ref, map_key(r->submit.ref)) == r)
        map_remove(&t->by_ref, map_key(r->submit.ref));
    r->state = REQUEST_ENDED;
}

/* Ends one choice with `event`, which gets choices_left. False: the request is gone. */
static bool end_choice(struct tandem_request *r, struct tandem_event *event)
{
    r->choice[event->choice].ended = true;
    event->choices_left = --r->choices_left;
    if (r->choices_left == 0) forget(r);
    return tell(r, event);
}

/* Ends all that still runs. */
static void end_all(struct tandem_request *r, enum tandem_status status, const char *reason,
                    uint32_t retry_ms)
{
    bool cancelled = r->cancelled && status == TANDEM_CANCELLED;
    for (uint32_t i = 0; i < r->submit.choices; i++) {
        if (r->choice[i].ended) continue;
        struct tandem_event e = event_of(r, cancelled ? TANDEM_EVENT_DONE : TANDEM_EVENT_ERROR, i);
        e.finish = cancelled ? TANDEM_FINISH_CANCELLED : TANDEM_FINISH_ERROR;
        e.status = status;
        e.reason = reason;
        e.retry_ms = retry_ms;
        if (!end_choice(r, &e)) return;
    }
}

/* ---- submitting ---- */

/* Looks at the whole request as the wire would, so that what is wrong is said at once. */
static enum err check(struct tandem_request *r)
{
    struct buf wire = {0};
    if (!r->text && !r->tokens) return err_set(ERR_INVALID, "a request without a prompt");
    if (r->submit.kind != JOB_GENERATE) {
        r->submit.tokens_max = r->submit.tokens_min = 0;
        r->submit.want_text = false;
    }
    struct msg m = {.kind = MSG_SUBMIT, .submit = r->submit};
    enum err e = msg_encode(&m, &wire);
    buf_fini(&wire);
    return e;
}

enum tandem_status tandem_submit(struct tandem_request *r)
{
    enum err e;
    struct tandem *t = r->t;
    if (r->state != REQUEST_NEW)
        return status_of(err_set(ERR_INVALID, "a request is submitted once"));
    if (!t || t->closing) return status_of(err_set(ERR_CANCELLED, "the connection is closed"));
    if ((e = check(r)) != OK) return status_of(e);
    if (!(r->choice = mem_array(r->submit.choices, sizeof *r->choice))) return TANDEM_MEMORY;
    r->submit.ref = ++t->next_ref;
    if ((e = map_reserve(&t->by_id, t->by_ref.count + 1)) != OK ||
        (e = map_put(&t->by_ref, map_key(r->submit.ref), r)) != OK) {
        mem_free(r->choice);
        r->choice = NULL;
        return status_of(e);
    }
    if (r->submit.deadline_ms) r->deadline_ns = clock_now_ns() + r->submit.deadline_ms * NS_PER_MS;
    r->choices_left = r->submit.choices;
    r->state = REQUEST_WAITING;
    r->retry_ns = 0;
    list_push_back(&t->requests, &r->link);
    connection_kick(t);
    return TANDEM_OK;
}

static void send_cancel(struct tandem_request *r)
{
    struct msg m = {.kind = MSG_CANCEL,
                    .cancel = {.key = {r->id, CHOICE_ALL, UINT32_MAX}, .reason = "by the client"}};
    connection_send(r->t, &m); /* if it is lost, so is the session, and that ends it too */
}

void tandem_cancel(struct tandem_request *r)
{
    if (r->state == REQUEST_NEW || r->state == REQUEST_ENDED || r->cancelled) return;
    r->cancelled = true;
    if (r->state == REQUEST_RUNNING && connection_is_up(r->t)) send_cancel(r);
    connection_kick(r->t); /* one that waits is ended by requests_pump */
}

void tandem_request_free(struct tandem_request *r)
{
    if (!r) return;
    if (r->state == REQUEST_RUNNING && r->t && connection_is_up(r->t) && !r->cancelled)
        send_cancel(r);
    if (r->state != REQUEST_NEW && r->state != REQUEST_ENDED) forget(r);
    r->freed = true;
    if (r->callbacks == 0) destroy(r);
}

/* ---- what the router says ---- */

void request_on_accepted(struct tandem *t, const struct msg_accepted *m)
{
    struct tandem_request *r = map_get(&t->by_ref, map_key(m->ref));
    if (!r) { /* freed meanwhile */
        struct msg cancel = {.kind = MSG_CANCEL,
                             .cancel = {.key = {m->id, CHOICE_ALL, UINT32_MAX}}};
        connection_send(t, &cancel);
        return;
    }
    if (r->state != REQUEST_SENT) return;
    bool first = id128_is_none(r->id);
    r->state = REQUEST_RUNNING;
    r->resume_by_ns = TIME_NEVER;
    if (first) {
        if (id128_is_none(m->id) || map_put(&t->by_id, m->id, r) != OK) {
            end_all(r, TANDEM_FAILED, "the router gave no id, or one twice", 0);
            return;
        }
        r->id = r->submit.id = m->id;
        id128_print(r->id, r->id_text);
        r->submit.seed_given = true; /* for another router */
        r->submit.sampling.seed = m->seed;
        r->prompt_tokens = m->prompt_tokens;
    }
    if (r->cancelled) send_cancel(r);
    if (!first) return;
    struct tandem_event e = event_of(r, TANDEM_EVENT_ACCEPTED, 0);
    tell(r, &e);
}

void request_on_rejected(struct tandem *t, uint64_t now_ns, const struct msg_rejected *m)
{
    struct tandem_request *r = map_get(&t->by_ref, map_key(m->ref));
    if (!r || r->state != REQUEST_SENT) return;
    bool passing = m->error == ERR_FULL || m->error == ERR_AGAIN || m->error == ERR_PEER;
    if (passing && now_ns < r->resume_by_ns && r->resume_by_ns != TIME_NEVER) {
        uint32_t retry_ms = m->retry_ms > RETRY_MS ? m->retry_ms : RETRY_MS;
        r->state = REQUEST_WAITING; /* it was accepted once: it is worth some patience */
        r->retry_ns = now_ns + retry_ms * NS_PER_MS;
        if (r->retry_ns > r->resume_by_ns) r->retry_ns = r->resume_by_ns;
        return;
    }
    end_all(r, status_of(m->error), m->reason, m->retry_ms);
}

static bool keep_received(struct choice *c, const struct token_info *tokens, uint32_t count)
{
    uint32_t have = c->received_count;
    if (c->received_capacity - have < count) {
        uint32_t want = 2 * (have + count);
        uint32_t *grown = mem_resize(c->received, want, sizeof *grown);
        if (!grown) return false;
        c->received = grown;
        c->received_capacity = want;
    }
    for (uint32_t i = 0; i < count; i++)
        c->received[have + i] = tokens[i].token;
    c->received_count = have + count;
    return true;
}

static struct tandem_token *tokens_for_user(struct tandem *t, const struct token_info *in,
                                            uint32_t count)
{
    struct tandem_token *out = arena_take(&t->arena, count * sizeof *out);
    for (uint32_t i = 0; i < count && out; i++) {
        struct tandem_top *tops = NULL;
        if (in[i].tops_count && !(tops = arena_take(&t->arena, in[i].tops_count * sizeof *tops)))
            return NULL;
        for (uint32_t k = 0; k < in[i].tops_count; k++)
            tops[k] = (struct tandem_top){in[i].top[k].token, in[i].top[k].logprob};
        out[i] = (struct tandem_token){in[i].token, in[i].logprob, tops, in[i].tops_count};
    }
    return out;
}

/* The tokens of `m` that are new. False: the request is gone. */
static bool tell_tokens(struct tandem_request *r, const struct msg_output *m)
{
    struct choice *c = &r->choice[m->choice];
    uint32_t known = c->received_count - m->index, count = m->tokens_count - known;
    const struct token_info *tokens = m->tokens + known;
    struct tandem_event e = event_of(r, TANDEM_EVENT_TOKENS, m->choice);
    e.index = c->received_count;
    e.tokens = tokens_for_user(r->t, tokens, count);
    e.tokens_count = count;
    if (!e.tokens || !keep_received(c, tokens, count)) {
        send_cancel(r);
        end_all(r, TANDEM_MEMORY, "out of memory for the tokens", 0);
        return false;
    }
    c->finish = m->finish;
    e.completion_tokens = c->received_count;
    return tell(r, &e);
}

static void tell_text(struct tandem_request *r, const struct msg_output *m)
{
    struct choice *c = &r->choice[m->choice];
    if (m->tokens_count == 0) { /* text without tokens is the tail: another router tells it again */
        if (c->tail_told) return;
        c->tail_told = true;
    }
    if (m->text_bytes == 0) return;
    struct tandem_event e = event_of(r, TANDEM_EVENT_TEXT, m->choice);
    e.text = m->text;
    e.text_bytes = m->text_bytes;
    tell(r, &e);
}

void request_on_output(struct tandem *t, const struct msg_output *m)
{
    struct tandem_request *r = map_get(&t->by_id, m->id);
    if (!r || r->state != REQUEST_RUNNING || m->choice >= r->submit.choices) return;
    struct choice *c = &r->choice[m->choice];
    if (c->ended) return;
    if (m->index > c->received_count) {
        send_cancel(r);
        end_all(r, TANDEM_FAILED, "the router left out tokens", 0);
        return;
    }
    bool known = m->index + m->tokens_count <= c->received_count;
    if (known && m->tokens_count > 0) return; /* and so is their text */
    if (!known && !tell_tokens(r, m)) return;
    if (r->state == REQUEST_RUNNING && !c->ended) tell_text(r, m);
}

void request_on_encoded(struct tandem *t, const struct msg_encoded *m)
{
    struct tandem_request *r = map_get(&t->by_id, m->key.request);
    if (!r || r->state != REQUEST_RUNNING || m->key.choice != 0 || r->choice[0].ended) return;
    enum err e = r->submit.kind == JOB_GENERATE ? err_set(ERR_FORMAT, "numbers of a text")
                                                : values_add(r, m);
    if (e == OK) return;
    send_cancel(r);
    end_all(r, e == ERR_MEMORY ? TANDEM_MEMORY : TANDEM_FAILED, err_text(), 0);
}

void request_on_done(struct tandem *t, const struct msg_done *m)
{
    struct tandem_request *r = map_get(&t->by_id, m->id);
    if (!r || r->state != REQUEST_RUNNING || m->choice >= r->submit.choices) return;
    if (r->choice[m->choice].ended) return;
    if (m->finish == FINISH_LENGTH && !values_are_whole(r)) {
        end_all(r, TANDEM_FAILED, "the router left out numbers", 0);
        return;
    }
    bool whole = m->finish == FINISH_STOP || m->finish == FINISH_LENGTH;
    if (whole && m->completion_tokens > r->choice[m->choice].received_count) {
        end_all(r, TANDEM_FAILED, "the router left out the last tokens", 0);
        return;
    }
    bool failed = m->finish == FINISH_ERROR;
    struct tandem_event e = event_of(r, failed ? TANDEM_EVENT_ERROR : TANDEM_EVENT_DONE, m->choice);
    e.finish = (enum tandem_finish)m->finish;
    e.status = failed ? m->error == OK ? TANDEM_FAILED : status_of(m->error)
               : m->finish == FINISH_CANCELLED ? TANDEM_CANCELLED
                                               : TANDEM_OK;
    e.reason = m->reason;
    e.prompt_tokens = m->prompt_tokens;
    e.cached_tokens = m->cached_tokens;
    e.attempts = m->attempts;
    e.timing = (struct tandem_timing){m->timing.queue, m->timing.prefill, m->timing.transfer_tail,
                                      m->timing.ttft,  m->timing.decode,  m->timing.total};
    e.prefill_node = m->prefill_node;
    e.decode_node = m->decode_node;
    e.values = r->values.number;
    e.value_tokens = r->values.token;
    e.values_count = r->values.count;
    e.kv_window = m->kv_window;
    e.kv_sinks = m->kv_sinks;
    e.inexact = m->inexact;
    end_choice(r, &e);
}

/* ---- losing a router, and going on ---- */

static void make_resumable(struct tandem_request *r, uint64_t now_ns)
{
    r->submit.attempt += ATTEMPTS_STEP;
    if (r->resume_by_ns == TIME_NEVER) r->resume_by_ns = now_ns + RESUME_MS * NS_PER_MS;
}

void requests_lost(struct tandem *t, uint64_t now_ns)
{
    for (struct list_link *l = t->requests.next; l != &t->requests; l = l->next) {
        struct tandem_request *r = list_member(l, struct tandem_request, link);
        bool was_accepted = !id128_is_none(r->id);
        if (was_accepted && r->state != REQUEST_WAITING) make_resumable(r, now_ns);
        r->state = REQUEST_WAITING;
        r->retry_ns = 0;
    }
}

/* Those that a callback submits meanwhile, behind them in the list, are left. */
void requests_fail(struct tandem *t, enum tandem_status status, const char *reason)
{
    uint64_t last_ref = t->next_ref;
    while (!list_empty(&t->requests)) {
        struct tandem_request *r = list_member(t->requests.next, struct tandem_request, link);
        if (r->submit.ref > last_ref) return;
        end_all(r, status, reason, 0);
    }
}

/* A choice whose router ended between its last token and its DONE. Where text is wanted another one has
 * to say it: the tail of the text may have been held back. NULL: there is none. */
static struct choice *find_complete(struct tandem_request *r)
{
    for (uint32_t i = 0; i < r->submit.choices && !r->submit.want_text; i++)
        if (!r->choice[i].ended && r->choice[i].finish != FINISH_NONE) return &r->choice[i];
    return NULL;
}

static void end_complete(struct tandem_request *r, const struct choice *c)
{
    struct tandem_event e = event_of(r, TANDEM_EVENT_DONE, (uint32_t)(c - r->choice));
    e.finish = (enum tandem_finish)c->finish;
    end_choice(r, &e);
}

/* Each choice goes on behind what was received of it. */
static enum err add_received(struct tandem_request *r, struct msg_submit *s)
{
    struct arena *a = &r->t->arena;
    arena_reset(a); /* no message is being looked at */
    uint32_t *counts = arena_take(a, s->choices * sizeof *counts), at = 0;
    if (!counts) return ERR_MEMORY;
    for (uint32_t i = 0; i < s->choices; i++)
        s->received_count += counts[i] = r->choice[i].received_count;
    uint32_t *all = arena_take(a, s->received_count * sizeof *all);
    if (!all) return ERR_MEMORY;
    for (uint32_t i = 0; i < s->choices; at += counts[i++])
        if (counts[i]) memcpy(all + at, r->choice[i].received, counts[i] * sizeof *all);
    s->received = all;
    s->received_counts = counts;
    s->received_counts_count = s->choices;
    return OK;
}

static enum err send_submit(struct tandem_request *r, uint64_t now_ns)
{
    struct msg m = {.kind = MSG_SUBMIT, .submit = r->submit};
    r->retry_ns = now_ns + RETRY_MS * NS_PER_MS; /* not connected, or a queue or memory is full */
    if (r->deadline_ns != TIME_NEVER) {
        uint64_t left_ms = (r->deadline_ns - now_ns) / NS_PER_MS;
        m.submit.deadline_ms = m.envelope.remaining_ms = left_ms ? (uint32_t)left_ms : 1;
    }
    enum err e = id128_is_none(r->id) ? OK : add_received(r, &m.submit);
    if (e == OK) e = connection_send(r->t, &m);
    if (e == OK) r->state = REQUEST_SENT;
    return e;
}

/* False: a callback was called, so that the list may have changed. */
static bool pump_one(struct tandem_request *r, uint64_t now_ns)
{
    struct choice *complete;
    if (r->state != REQUEST_WAITING) return true;
    if (r->cancelled)
        end_all(r, TANDEM_CANCELLED, "by the client", 0);
    else if (now_ns >= r->deadline_ns)
        end_all(r, TANDEM_TIMEOUT, "its deadline passed while it waited for a router", 0);
    else if ((complete = find_complete(r)) != NULL)
        end_complete(r, complete);
    else if (connection_is_up(r->t) && now_ns >= r->retry_ns &&
             send_submit(r, now_ns) == ERR_INVALID) /* it has more tokens than a message may */
        end_all(r, TANDEM_FAILED, err_text(), 0);
    else
        return true;
    return false;
}

uint64_t requests_pump(struct tandem *t, uint64_t now_ns)
{
    uint64_t wake_ns = TIME_NEVER;
    for (struct list_link *l = t->requests.next; l != &t->requests;) {
        struct tandem_request *r = list_member(l, struct tandem_request, link);
        if (!pump_one(r, now_ns)) {
            l = t->requests.next;
            continue;
        }
        if (r->state == REQUEST_WAITING) {
            uint64_t when_ns = connection_is_up(t) ? r->retry_ns : TIME_NEVER;
            if (r->deadline_ns < when_ns) when_ns = r->deadline_ns;
            if (when_ns < wake_ns) wake_ns = when_ns;
        }
        l = l->next;
    }
    return wake_ns;
}
