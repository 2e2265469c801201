/* submit: a request's way in: checked against limits, answered at the door, made into choices. */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/rng.h"
#include "router/state.h"

static uint32_t clamp_u32(uint64_t v, uint32_t low, uint32_t high)
{
    return v < low ? low : v > high ? high : (uint32_t)v;
}

/* When to come again: the time that the prefill nodes need for what is queued. */
static uint32_t retry_ms(const struct router_core *core)
{
    uint64_t token_ns = 0, nodes = 0;
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        if (core->sched[i]->role != ROLE_PREFILL || !core->sched[i]->open) continue;
        token_ns += core->sched[i]->token_ns;
        nodes++;
    }
    if (!nodes) return 1000;
    return clamp_u32(core->queued_tokens * token_ns / (nodes * nodes) / NS_PER_MS, 100, 10000);
}

static enum rejected why_rejected(enum err error)
{
    if (error == ERR_FULL) return REJECTED_OVERLOAD;
    bool invalid = error == ERR_INVALID || error == ERR_FORMAT || error == ERR_UNSUPPORTED;
    return invalid ? REJECTED_INVALID : REJECTED_OTHER;
}

void submit_reject(struct router_core *core, const struct client *client, uint64_t ref,
                   enum err error, const char *reason)
{
    struct msg m = {.kind = MSG_REJECTED,
                    .rejected = {.ref = ref,
                                 .error = error,
                                 .reason = reason,
                                 .retry_ms = error == ERR_FULL ? retry_ms(core) : 0}};
    core->counts.rejected[why_rejected(error)]++;
    registry_send(core, client->peer, &m);
}

/* Overload is answered here, before any work is done. */
static enum err check_door(const struct router_core *core, const struct msg_submit *s)
{
    const struct router_config *config = &core->config;
    if (core->draining) return err_set(ERR_FULL, "the router is draining: ask another one");
    if (core->counts.requests_live >= config->requests_max)
        return err_set(ERR_FULL, "%u requests are in the system, at most %u",
                       core->counts.requests_live, config->requests_max);
    if (core->queued_tokens > config->queued_tokens_max)
        return err_set(ERR_FULL, "%llu prompt tokens are waiting, at most %llu",
                       (unsigned long long)core->queued_tokens,
                       (unsigned long long)config->queued_tokens_max);
    if (core->queued_retries > config->requests_max / ROUTER_RETRIES_PART)
        return err_set(ERR_FULL, "%u requests wait to be tried again", core->queued_retries);
    if (s->choices == 0 || s->choices > JOB_CHOICES_MAX)
        return err_set(ERR_INVALID, "n is %u, allowed is 1 to %d", s->choices, JOB_CHOICES_MAX);
    if ((s->text != NULL) == (s->tokens != NULL))
        return err_set(ERR_INVALID, "give the prompt as text or as token ids, one of the two");
    if (s->kind != JOB_GENERATE && s->choices != 1)
        return err_set(ERR_INVALID, "n is %u: a request to %s has one result", s->choices,
                       job_kind_name(s->kind));
    if (s->kind != JOB_GENERATE && s->text && s->text_bytes == 0)
        return err_set(ERR_INVALID, "the text is empty: there is nothing to %s",
                       job_kind_name(s->kind));
    if (s->attempt > ROUTER_ATTEMPTS_MAX)
        return err_set(ERR_INVALID, "attempt is %u, at most %d", s->attempt, ROUTER_ATTEMPTS_MAX);
    bool needs_text = s->text || s->want_text || s->stop_count > 0;
    if (needs_text && !core->config.tokenizer)
        return err_set(ERR_UNSUPPORTED,
                       "this router has no tokenizer: give token ids, or start it with --model");
    return OK;
}

/* What the client has of a choice; the counts fit, msg_decode saw to it. */
struct received {
    const uint32_t *ids;
    uint32_t count;
};
static struct received received_of(const struct msg_submit *s, uint32_t choice)
{
    struct received r = {s->received, s->received_count};
    if (s->received_counts_count == 0) return r;
    for (uint32_t i = 0; i < choice; i++)
        if (s->received_counts[i] > 0) r.ids += s->received_counts[i];
    r.count = s->received_counts[choice];
    return r;
}

static enum err check_choice(const struct router_core *core, const struct request *r,
                             uint32_t choice)
{
    const struct msg_submit *s = &r->submit;
    static const uint32_t some_tokens[2] = {0}; /* as many as any kind needs */
    struct received received = received_of(s, choice);
    struct job job = {.key = {r->id, 0, 0},
                      .prompt = s->tokens ? s->tokens : some_tokens,
                      .prompt_count = s->tokens ? s->tokens_count : 2,
                      .kind = s->kind,
                      .forwarded = received.ids,
                      .forwarded_count = received.count,
                      .tokens_max = s->tokens_max,
                      .tokens_min = s->tokens_min,
                      .stop_ids = s->stop_ids,
                      .stop_ids_count = s->stop_ids_count,
                      .sampling = s->sampling,
                      .tenant_salt = r->tenant_salt,
                      .kv_window = s->kv_window,
                      .kv_sinks = s->kv_sinks};
    if (received.count > s->tokens_max)
        return err_set(ERR_INVALID, "%u tokens were received of at most %u", received.count,
                       s->tokens_max);
    /* all received and only the end missing: job_check is about jobs with something left to do */
    if (received.count > 0 && received.count == s->tokens_max) job.tokens_max++;
    if (!core->cluster.known) return job_check(&job, UINT32_MAX, UINT32_MAX);
    if (s->kv_window && core->cluster.window.tokens)
        return err_set(ERR_INVALID, "kv_window: this model has a window of its own, of %u tokens",
                       core->cluster.window.tokens);
    return job_check(&job, core->cluster.vocab, core->cluster.context_max);
}

/* Values that do not depend on the prompt's ids; with them, once they are there. */
static enum err check_values(const struct router_core *core, const struct request *r)
{
    enum err e = check_choice(core, r, 0);
    for (uint32_t i = 1; e == OK && i < r->submit.received_counts_count; i++)
        e = check_choice(core, r, i);
    return e;
}

/* What the client has already goes through the stream, so that text goes on where it stopped. */
static enum err replay_text(struct choice *c)
{
    enum err e;
    const char *text;
    size_t length;
    struct stop_shown shown;
    for (uint32_t i = 0; c->stream && i < c->generated_count; i++) {
        if ((e = stream_push(c->stream, c->generated[i], &text, &length)) != OK) return e;
        if (!c->stop) continue;
        if ((e = stop_push(c->stop, text, length, &shown)) != OK) return e;
        c->replay_stopped |= shown.hit != STOP_NONE;
    }
    return OK;
}

static enum err make_text(const struct router_core *core, struct choice *c)
{
    enum err e;
    const struct msg_submit *s = &c->request->submit;
    struct stop_string strings[JOB_STOP_STRINGS_MAX];
    if (!s->want_text && s->stop_count == 0) return OK;
    unsigned flags = STREAM_CONTINUES | (s->echo_special ? 0 : STREAM_SKIP_SPECIAL);
    if ((e = stream_new(&c->stream, core->config.tokenizer, flags)) != OK) return e;
    if (s->stop_count > JOB_STOP_STRINGS_MAX)
        return err_set(ERR_INVALID, "%u stop strings, at most %d", s->stop_count,
                       JOB_STOP_STRINGS_MAX);
    for (uint32_t i = 0; i < s->stop_count; i++)
        strings[i] = (struct stop_string){s->stop[i], strlen(s->stop[i])};
    if (s->stop_count > 0 && (e = stop_new(&c->stop, strings, s->stop_count)) != OK) return e;
    return replay_text(c);
}

static enum err make_choice(const struct router_core *core, struct request *r, uint32_t index)
{
    struct received received = received_of(&r->submit, index);
    struct choice *c = &r->choice[index];
    c->request = r;
    c->index = index;
    c->attempt = r->submit.attempt;
    c->state = CHOICE_TOKENIZING;
    list_init(&c->at_prefill);
    list_init(&c->at_decode);
    list_init(&c->at_backfill);
    if (received.count > 0) {
        c->generated = mem_array(received.count, sizeof *c->generated);
        if (!c->generated) return ERR_MEMORY;
        memcpy(c->generated, received.ids, received.count * sizeof *c->generated);
        c->generated_count = c->generated_capacity = received.count;
    }
    return make_text(core, c);
}

void request_free(struct router_core *core, struct request *r)
{
    if (map_get(&core->requests, r->id) == r) map_remove(&core->requests, r->id);
    if (!id128_is_none(r->text_job)) map_remove(&core->texts, r->text_job);
    list_remove(&r->history);
    list_remove(&r->of_client);
    turns_leave(core, r);
    for (uint32_t i = 0; i < r->choices_count; i++) {
        struct choice *c = &r->choice[i];
        heap_remove(&core->queue, &c->queue);
        heap_remove(&core->timers, &c->timer);
        stream_free(c->stream);
        stop_free(c->stop);
        mem_free(c->generated);
        mem_free(c->pushes);
        result_forget(c);
    }
    mem_free(r->choice);
    arena_fini(&r->arena);
    mem_free(r);
}

void request_forget(struct router_core *core, struct request *r)
{
    core->history_count--;
    for (uint32_t i = 0; i < r->choices_count; i++)
        choice_cancel_nodes(core, &r->choice[i], "forgotten");
    request_free(core, r);
}

void submit_drop(struct router_core *core, struct request *r, enum err error, const char *reason)
{
    submit_reject(core, r->client, r->submit.ref, error, reason);
    core->counts.requests_live--;
    core->counts.choices_live -= r->choices_count;
    request_free(core, r);
}

static uint64_t draw(struct router_core *core, uint32_t stream)
{
    struct rng_block b = rng_draw(core->config.id_seed, stream, core->ids_minted++);
    return (uint64_t)b.word[0] << 32 | b.word[1];
}

struct id128 router_draw_id(struct router_core *core)
{
    struct id128 id = ID128_NONE;
    while (id128_is_none(id))
        id = (struct id128){draw(core, 1), draw(core, 2)};
    return id;
}

static void name_request(struct router_core *core, struct request *r)
{
    r->id = r->submit.id;
    if (id128_is_none(r->id)) r->id = router_draw_id(core);
    if (!r->submit.seed_given) r->submit.sampling.seed = draw(core, 3);
    r->tenant_salt = turns_salt(core, r->submit.tenant);
    if (r->submit.kv_window) { /* its KV is not that of all tokens */
        uint64_t own[] = {r->tenant_salt, r->submit.kv_window, r->submit.kv_sinks};
        r->tenant_salt = hash64(own, sizeof own);
    }
    if (r->tenant_salt != 0) kv_query_note_tenant(core, r->tenant_salt, &r->submit);
}

/* A resumed request may find its earlier life here: an ended one is forgotten, a running one gives way
 * to a higher attempt. */
static enum err make_way(struct router_core *core, uint64_t now_ns, const struct msg_submit *s)
{
    struct request *old = map_get(&core->requests, s->id);
    if (!old) return OK;
    if (old->choices_ended < old->choices_count) {
        const char *why = "resumed by another submission";
        if (s->attempt <= old->choice[0].attempt)
            return err_set(ERR_DUPLICATE, "a request of this id is running: wait for it, or resume "
                                          "it with a higher attempt");
        if (old->choice[0].state == CHOICE_TOKENIZING) {
            submit_drop(core, old, ERR_CANCELLED, why);
            return OK;
        }
        for (uint32_t i = 0; i < old->choices_count; i++)
            choice_end(core, now_ns, &old->choice[i], FINISH_CANCELLED, ERR_CANCELLED, why);
    }
    old = map_get(&core->requests, s->id);
    if (old) request_forget(core, old);
    return OK;
}

static enum err make_request(struct router_core *core, uint64_t now_ns,
                             const struct msg_submit *submit, struct request **out)
{
    enum err e;
    struct msg from = {.kind = MSG_SUBMIT, .submit = *submit}, copy;
    struct request *r = mem_new(sizeof *r);
    if (!r) return ERR_MEMORY;
    list_init(&r->of_client);
    list_init(&r->history);
    if ((e = msg_copy(&from, &r->arena, &copy)) != OK) goto fail;
    r->submit = copy.submit;
    r->kind = submit->kind;
    r->arrived_ns = now_ns;
    r->deadline_ns = submit->deadline_ms ? now_ns + submit->deadline_ms * NS_PER_MS : TIME_NEVER;
    name_request(core, r);
    if ((e = check_values(core, r)) != OK) goto fail;
    if (!(r->choice = mem_array(submit->choices, sizeof *r->choice))) goto no_memory;
    for (; r->choices_count < submit->choices; r->choices_count++)
        if ((e = make_choice(core, r, r->choices_count)) != OK) {
            r->choices_count++; /* free what it has */
            goto fail;
        }
    size_t choices = core->counts.choices_live + submit->choices;
    if ((e = heap_reserve(&core->queue, choices)) != OK) goto fail;
    if ((e = heap_reserve(&core->timers, choices)) != OK) goto fail;
    if ((e = turns_join(core, r)) != OK) goto fail;
    if ((e = map_put(&core->requests, r->id, r)) != OK) goto fail;
    *out = r;
    return OK;
no_memory:
    e = ERR_MEMORY;
fail:
    request_free(core, r);
    return e;
}

/* The ids are there: the last checks, then it is accepted and waits in the queue. */
static void admit(struct router_core *core, uint64_t now_ns, struct request *r)
{
    struct client *client = r->client;
    r->prompt_count = r->submit.tokens_count;
    if (check_values(core, r) != OK) {
        submit_drop(core, r, ERR_INVALID, err_text());
        return;
    }
    r->checked_life = core->cluster.life;
    prefixes_hash(core, r);
    struct msg m = {.kind = MSG_ACCEPTED,
                    .accepted = {.ref = r->submit.ref,
                                 .id = r->id,
                                 .seed = r->submit.sampling.seed,
                                 .prompt_tokens = r->prompt_count}};
    core->counts.accepted++;
    core->counts.prompt_tokens += r->prompt_count;
    registry_send(core, client->peer, &m);
    for (uint32_t i = 0; i < r->choices_count; i++)
        choice_enqueue(core, now_ns, &r->choice[i]);
}

static enum err ask_for_ids(struct router_core *core, struct request *r)
{
    struct id128 job = router_draw_id(core);
    enum err e = map_put(&core->texts, job, r);
    if (e != OK) return e;
    r->text_job = job;
    return core->out.tokenize(core->out.ctx, job, r->submit.text, r->submit.text_bytes);
}

void submit_on_message(struct router_core *core, uint64_t now_ns, struct client *client,
                       const struct msg_submit *submit)
{
    enum err e;
    struct request *r;
    if ((e = check_door(core, submit)) != OK || (e = make_way(core, now_ns, submit)) != OK ||
        (e = make_request(core, now_ns, submit, &r)) != OK) {
        submit_reject(core, client, submit->ref, e, err_text());
        return;
    }
    r->client = client;
    list_push_back(&client->requests, &r->of_client);
    core->counts.requests_live++;
    core->counts.choices_live += r->choices_count;
    if (r->submit.tokens) {
        admit(core, now_ns, r);
        return;
    }
    if ((e = ask_for_ids(core, r)) != OK) {
        submit_drop(core, r, e, err_text());
        return;
    }
    uint64_t when_ns = now_ns + core->config.queue_timeout_ns;
    if (r->deadline_ns < when_ns) when_ns = r->deadline_ns;
    heap_move(&core->timers, &r->choice[0].timer, when_ns); /* room was reserved */
}

void submit_on_timer(struct router_core *core, uint64_t now_ns, struct request *r)
{
    submit_drop(core, r, ERR_TIMEOUT,
                now_ns >= r->deadline_ns ? "its deadline has passed"
                                         : "its prompt was not tokenized in time");
}

void submit_on_tokens(struct router_core *core, uint64_t now_ns, struct id128 job,
                      const uint32_t *ids, uint32_t ids_count, enum err error, const char *reason)
{
    struct request *r = map_remove(&core->texts, job);
    if (!r) return;
    r->text_job = ID128_NONE;
    if (r->choice[0].state != CHOICE_TOKENIZING) return; /* its client has gone meanwhile */
    uint32_t *copy = NULL;
    if (error == OK) {
        copy = arena_take(&r->arena, ids_count * sizeof *ids);
        if (!copy) {
            error = ERR_MEMORY;
            reason = err_text();
        }
    }
    if (error != OK) {
        submit_drop(core, r, error, reason);
        return;
    }
    if (ids_count > 0) memcpy(copy, ids, ids_count * sizeof *ids);
    r->submit.tokens = copy;
    r->submit.tokens_count = ids_count;
    admit(core, now_ns, r);
}
