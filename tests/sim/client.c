/* client: submits requests, resumes them through another router when one is lost, and holds every
 * stream against the tokens of an undisturbed run. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/sim/sim.h"

#define TICK_NS (20 * NS_PER_MS)

/* What the model gives for these tokens, computed from the tokens alone. */
static uint32_t oracle_token(const struct sim_request *r, uint32_t choice)
{
    const struct sim_choice *c = &r->choice[choice];
    uint64_t sum = 0;
    uint32_t total = r->prompt_count + c->want_count;
    for (uint32_t at = 0; at < total; at++) {
        uint32_t t = at < r->prompt_count ? r->prompt[at] : c->want[at - r->prompt_count];
        for (uint32_t l = 0; l < SIM_LAYERS && device_sees(r->window, total - 1, at); l++)
            sum = device_fold(sum, device_content(t, at, l));
    }
    return device_token(r->seed, choice, c->want_count, sum);
}

void client_make_oracle(struct sim_request *r, uint32_t choice)
{
    static const uint32_t eos[1] = {SIM_EOS};
    struct sim_choice *c = &r->choice[choice];
    struct job job = {.prompt_count = r->prompt_count,
                      .tokens_max = r->tokens_max,
                      .tokens_min = r->tokens_min,
                      .stop_ids = eos,
                      .stop_ids_count = 1};
    c->want_finish = r->tokens_max == 0 ? FINISH_LENGTH : FINISH_NONE;
    while (c->want_finish == FINISH_NONE) {
        uint32_t t = oracle_token(r, choice);
        c->want[c->want_count++] = t;
        c->want_finish = job_finish(&job, c->want_count - 1, t, SIM_CONTEXT);
    }
}

/* The same of one that scores or embeds. */
static void make_values(struct sim_request *r)
{
    double hidden[SIM_HIDDEN] = {0}, squares = 0;
    if (r->kind == JOB_GENERATE) return;
    r->want_values_count = r->kind == JOB_SCORE ? r->prompt_count - 1 : SIM_HIDDEN;
    for (uint32_t at = 0; at < r->prompt_count; at++) {
        bool last = at + 1 == r->prompt_count;
        uint64_t sum = 0;
        for (uint32_t t = 0; t <= at; t++)
            for (uint32_t l = 0; l < SIM_LAYERS && device_sees(r->window, at, t); l++)
                sum = device_fold(sum, device_content(r->prompt[t], t, l));
        if (r->kind == JOB_SCORE && !last)
            r->want_values[at] = device_score(sum, r->prompt[at + 1]);
        for (uint32_t i = 0; i < SIM_HIDDEN && (last || r->kind == JOB_EMBED_MEAN); i++)
            hidden[i] += device_hidden(sum, i);
    }
    for (uint32_t i = 0; i < SIM_HIDDEN; i++)
        squares += hidden[i] * hidden[i];
    for (uint32_t i = 0; i < SIM_HIDDEN && r->kind != JOB_SCORE; i++)
        r->want_values[i] = (float)(hidden[i] / sqrt(squares));
}

/* Some want no token: only the KV, or a result of the prompt's rows. */
static void make_kind(struct sim *s, struct sim_request *r)
{
    if (sim_draw(s, 6)) return;
    r->kind = sim_draw(s, JOB_KINDS);
    r->tokens_max = r->tokens_min = 0;
    if (r->prompt_count == 1) r->prompt[r->prompt_count++] = 1;
    make_values(r);
}

/* Most of its context is generated, by some without an early end. */
static void make_long(struct sim *s, struct sim_request *r)
{
    r->prompt_count = 1 + sim_draw(s, SIM_CONTEXT - SIM_TOKENS_MAX);
    r->tokens_max = SIM_TOKENS_MAX - sim_draw(s, SIM_TOKENS_MAX / 2);
    r->tokens_min = sim_draw(s, 2) ? r->tokens_max : 0;
}

/* Some ask for less than all KV, where the model has no window; not drawn, so that it shifts nothing. */
static void make_window(const struct sim *s, struct sim_request *r)
{
    uint32_t roll = (uint32_t)(r->seed % 997);
    if (s->window == 0 && roll % 6 == 0)
        r->asked = (struct kv_window){1 + roll % 90, roll % 4 * BLOCK_TOKENS};
    r->window = r->asked.tokens ? r->asked : (struct kv_window){s->window, 0};
}

/* Each client's requests are of all tenants, and of none; not drawn either. */
static void make_tenant(const struct sim *s, struct sim_request *r)
{
    static const char *const names[] = {NULL, "t1", "t2", "t3"};
    r->tenant = names[r->seed / 3 % (s->tenants + 1)];
}

/* Some are a later turn: a request of before with its answer, and something new; not drawn either. */
static void make_turn(const struct sim *s, struct sim_request *r, const struct sim_request *before)
{
    const struct sim_choice *answer = before ? &before->choice[0] : NULL;
    if (!before || before->kind != JOB_GENERATE || s->options.pressure || r->seed % 3) return;
    uint32_t known = before->prompt_count + answer->want_count, end = known + 1 + r->seed % 17;
    if (end > SIM_PROMPT_MAX) return;
    memcpy(r->prompt, before->prompt, before->prompt_count * sizeof *r->prompt);
    memcpy(r->prompt + before->prompt_count, answer->want, answer->want_count * sizeof *r->prompt);
    for (uint32_t i = known; i < end; i++)
        r->prompt[i] = 1 + (uint32_t)(r->seed * 3 + i * 5) % (SIM_VOCAB - 1);
    r->prompt_count = end;
    r->tenant = before->tenant;
    r->submit_ns = before->submit_ns + (r->seed % 5 + 1) * 200 * NS_PER_MS;
}

/* Prompts begin with one of three texts, so that prefixes are shared. */
static void make_request(struct sim *s, struct sim_proc *p, uint32_t index, struct sim_request *r)
{
    if (s->options.flood) {
        flood_make(s, p, index, r);
        return;
    }
    uint32_t family = sim_draw(s, 3), own = sim_draw(s, 1000);
    uint32_t common = sim_draw(s, 80);
    r->prompt_count = 1 + sim_draw(s, SIM_PROMPT_MAX);
    for (uint32_t i = 0; i < r->prompt_count; i++)
        r->prompt[i] = 1 + (i < common ? family * 31 + i * 7 : own * 13 + i * 5) % (SIM_VOCAB - 1);
    r->tokens_max = sim_draw(s, 8) ? 1 + sim_draw(s, SIM_TOKENS_USUAL) : 1;
    r->tokens_min = sim_draw(s, 4) ? 0 : sim_draw(s, 10);
    if (s->options.pressure) make_long(s, r);
    r->seed = s->options.seed * 7 + sim_draw(s, 1000);
    make_window(s, r);
    make_tenant(s, r);
    r->priority = (int32_t)sim_draw(s, 3) - 1;
    r->submit_ns = s->now_ns + sim_draw_ns(s, 0, sim_draw(s, 2) ? 3 * NS_PER_S : NS_PER_S / 20);
    r->cancel_ns = sim_draw(s, 10) ? TIME_NEVER : r->submit_ns + sim_draw_ns(s, 0, NS_PER_S);
    if (s->options.faults && sim_draw(s, 12) == 0) r->deadline_ms = 1 + sim_draw(s, 400);
    make_turn(s, r, index > 0 ? r - 1 : NULL);
    make_kind(s, r);
    r->choices_count =
        r->kind != JOB_GENERATE || sim_draw(s, 3) ? 1 : 1 + sim_draw(s, SIM_CHOICES_MAX);
    for (uint32_t i = 0; i < r->choices_count; i++)
        client_make_oracle(r, i);
}

static void greet(struct sim *s, struct sim_proc *p);
static void give_up_router(struct sim *s, struct sim_proc *p);

void client_open(struct sim *s, struct sim_proc *p)
{
    struct sim_client *c = p->client;
    struct session_limits limits = SESSION_LIMITS_DEFAULT;
    limits.lifeline_ns = 0;
    if (c->requests_count == 0) {
        c->requests_count = 2 + sim_draw(s, sim_draw(s, 2) ? 8 : SIM_REQUESTS_MAX - 2);
        if (s->options.flood) c->requests_count = SIM_REQUESTS_MAX;
        for (uint32_t i = 0; i < c->requests_count; i++)
            make_request(s, p, i, &c->request[i]);
    }
    c->router = sim_draw(s, s->routers_count);
    session_init(&c->session, SESSION_DIALER, ++s->incarnations * 1000, &limits);
    session_start(&c->session, s->now_ns);
    greet(s, p);
    client_on_timer(s, p);
}

static void greet(struct sim *s, struct sim_proc *p)
{
    struct msg m = {.kind = MSG_HELLO,
                    .hello = {.role = ROLE_CLIENT,
                              .name = p->name,
                              .host = "sim",
                              .device = "",
                              .model = "",
                              .pid = 1}};
    m.envelope = session_envelope(&p->client->session);
    sim_send(s, p, sim_router(s, p->client->router), &m);
}

static void send(struct sim *s, struct sim_proc *p, struct msg *m)
{
    m->envelope = session_envelope(&p->client->session);
    sim_send(s, p, sim_router(s, p->client->router), m);
}

/* Some seeds have tenants; not drawn, so that it shifts nothing. */
static const char *tenant_of(const struct sim *s, const struct sim_proc *p,
                             const struct sim_request *r)
{
    static const char *const names[] = {"", "a", "b", "c"};
    const char *tenant = flood_tenant(s, p);
    if (tenant) return tenant;
    return s->options.seed % 8 == 5 ? names[r->seed % 4] : "";
}

static void submit(struct sim *s, struct sim_proc *p, struct sim_request *r)
{
    uint32_t got[SIM_CHOICES_MAX * SIM_TOKENS_MAX], counts[SIM_CHOICES_MAX], total = 0;
    for (uint32_t i = 0; i < r->choices_count; i++) {
        const struct sim_choice *c = &r->choice[i];
        counts[i] = c->got_count;
        memcpy(got + total, c->got, c->got_count * sizeof *got);
        total += c->got_count;
    }
    struct msg m = {.kind = MSG_SUBMIT,
                    .submit = {.ref = ++p->client->ref,
                               .id = r->id,
                               .attempt = r->attempt,
                               .tokens = r->prompt,
                               .tokens_count = r->prompt_count,
                               .choices = r->choices_count,
                               .seed_given = true,
                               .tokens_max = r->tokens_max,
                               .tokens_min = r->tokens_min,
                               .priority = r->priority,
                               .tenant = r->tenant,
                               .kind = r->kind,
                               .kv_window = r->asked.tokens,
                               .kv_sinks = r->asked.sinks,
                               .deadline_ms = r->deadline_ms,
                               .received = got,
                               .received_count = total,
                               .received_counts = counts,
                               .received_counts_count = total ? r->choices_count : 0,
                               .sampling = {.top_p = 1, .repetition_penalty = 1, .seed = r->seed}}};
    m.submit.tenant = tenant_of(s, p, r);
    r->sent_ns = r->heard_ns = s->now_ns;
    r->ref = m.submit.ref;
    r->state = REQ_SENT;
    r->values_count = 0;
    send(s, p, &m);
}

static struct sim_request *by_id(struct sim_client *c, struct id128 id)
{
    for (uint32_t i = 0; i < c->requests_count; i++)
        if (c->request[i].state >= REQ_ACCEPTED && id128_equal(c->request[i].id, id))
            return &c->request[i];
    return NULL;
}

static struct sim_request *by_ref(struct sim_client *c, uint64_t ref)
{
    for (uint32_t i = 0; i < c->requests_count; i++)
        if (c->request[i].state == REQ_SENT && c->request[i].ref == ref) return &c->request[i];
    return NULL;
}

/* One of its choices, or what is left of all. */
static void end(struct sim *s, struct sim_request *r, struct sim_choice *c, enum finish finish,
                const char *reason)
{
    uint32_t ended = 0;
    c->ended = true;
    c->finish = finish;
    snprintf(r->reason, sizeof r->reason, "%.127s", reason);
    if (finish == FINISH_ERROR && reason[0] == '\0') sim_fail(s, "an error without a reason");
    for (uint32_t i = 0; i < r->choices_count; i++)
        ended += r->choice[i].ended;
    if (ended == r->choices_count) r->state = REQ_ENDED;
}

static void on_output(struct sim *s, struct sim_proc *p, const struct msg_output *o)
{
    struct sim_request *r = by_id(p->client, o->id);
    if (!r || r->state == REQ_ENDED) return; /* of a life that was given up */
    if (o->choice >= r->choices_count) sim_fail(s, "a choice that was not asked for");
    struct sim_choice *c = &r->choice[o->choice];
    if (c->ended) return;
    if (o->index > c->got_count) { /* what lay between was lost in a cut that nobody has seen yet */
        give_up_router(s, p);
        return;
    }
    if (o->index < c->got_count) sim_fail(s, "index %u was forwarded twice", o->index);
    for (uint32_t i = 0; i < o->tokens_count; i++) {
        if (c->got_count >= c->want_count) sim_fail(s, "more tokens than there should be");
        if (o->tokens[i].token != c->want[c->got_count])
            sim_fail(s, "a wrong token at index %u of choice %u of a prompt of %u", c->got_count,
                     o->choice, r->prompt_count);
        c->got[c->got_count++] = o->tokens[i].token;
    }
    if (s->options.flood) flood_heard(s, p, r, o->tokens_count);
}

static void on_encoded(struct sim *s, struct sim_proc *p, const struct msg_encoded *m)
{
    struct sim_request *r = by_id(p->client, m->key.request);
    if (!r || r->state == REQ_ENDED) return;
    if (m->index > r->values_count) {
        give_up_router(s, p);
        return;
    }
    if (m->index < r->values_count) sim_fail(s, "number %u was told twice", m->index);
    if (m->total != r->want_values_count) sim_fail(s, "a result of %u numbers", m->total);
    if (memcmp(m->values, r->want_values + m->index, m->values_count * sizeof *m->values) != 0)
        sim_fail(s, "a wrong number from %u on, of %s", m->index, job_kind_name(r->kind));
    r->values_count += m->values_count;
}

static void on_done(struct sim *s, struct sim_proc *p, const struct msg_done *d)
{
    struct sim_request *r = by_id(p->client, d->id);
    if (!r || r->state == REQ_ENDED) return;
    if (d->choice >= r->choices_count) sim_fail(s, "the end of a choice that was not asked for");
    struct sim_choice *c = &r->choice[d->choice];
    bool natural = d->finish == FINISH_STOP || d->finish == FINISH_LENGTH;
    if (c->ended) return;
    if (natural &&
        d->completion_tokens > c->got_count) { /* the last ones were lost in a cut, too */
        give_up_router(s, p);
        return;
    }
    if (natural && (c->got_count != c->want_count || d->finish != c->want_finish))
        sim_fail(s, "ended by %d with %u tokens, wanted %d with %u", d->finish, c->got_count,
                 c->want_finish, c->want_count);
    if (natural && r->values_count != r->want_values_count)
        sim_fail(s, "ended with %u numbers, wanted %u", r->values_count, r->want_values_count);
    if (d->finish == FINISH_CANCELLED && !r->cancelled) sim_fail(s, "cancelled by nobody");
    if (d->finish == FINISH_NONE) sim_fail(s, "an end without a finish");
    end(s, r, c, d->finish, d->reason);
    if (s->options.flood && r->state == REQ_ENDED && flood_again(s, p, r)) r->state = REQ_IDLE;
}

static void on_rejected(struct sim *s, struct sim_client *c, const struct msg_rejected *m)
{
    struct sim_request *r = by_ref(c, m->ref);
    if (!r) return;
    if (m->error == ERR_FULL || m->error == ERR_DUPLICATE) {
        r->state = REQ_IDLE;
        r->submit_ns = s->now_ns + (m->retry_ms + 10) * NS_PER_MS;
    } else {
        sim_fail(s, "rejected: %s", m->reason);
    }
}

void client_on_message(struct sim *s, struct sim_proc *p, uint32_t router, const struct msg *m)
{
    struct sim_client *c = p->client;
    if (router != c->router) return;
    enum session_verdict v = session_on_message(&c->session, s->now_ns, m);
    if (v == SESSION_BECAME_DOWN) client_on_lost(s, p, router);
    if (v != SESSION_DELIVER) return;
    sim_trace(s, "%s <- r%u %s", p->name, router, msg_kind_name(m->kind));
    if (m->kind == MSG_ACCEPTED) {
        struct sim_request *r = by_ref(c, m->accepted.ref);
        if (!r) return;
        r->state = REQ_ACCEPTED;
        r->id = m->accepted.id;
    } else if (m->kind == MSG_REJECTED) {
        on_rejected(s, c, &m->rejected);
    } else if (m->kind == MSG_OUTPUT) {
        on_output(s, p, &m->output);
    } else if (m->kind == MSG_ENCODED) {
        on_encoded(s, p, &m->encoded);
    } else if (m->kind == MSG_DONE) {
        on_done(s, p, &m->done);
    }
}

/* What was accepted goes on elsewhere, behind the tokens that are here; what was not is sent anew. */
static void give_up_router(struct sim *s, struct sim_proc *p)
{
    struct sim_client *c = p->client;
    for (uint32_t i = 0; i < c->requests_count; i++) {
        struct sim_request *r = &c->request[i];
        if (r->state != REQ_SENT && r->state != REQ_ACCEPTED) continue;
        r->state = REQ_IDLE;
        r->attempt += id128_is_none(r->id) ? 0 : 1000;
        r->submit_ns = s->now_ns;
    }
    c->router = (c->router + 1) % s->routers_count;
    session_reset(&c->session, ++s->incarnations * 1000);
    session_start(&c->session, s->now_ns);
    greet(s, p);
}

void client_on_lost(struct sim *s, struct sim_proc *p, uint32_t router)
{
    struct sim_client *c = p->client;
    if (router != c->router) return;
    if (c->session.state == SESSION_UP) session_on_lifeline(&c->session, s->now_ns, false);
    if (c->session.state == SESSION_DOWN) give_up_router(s, p);
}

static void act(struct sim *s, struct sim_proc *p, struct sim_request *r)
{
    if (r->state == REQ_IDLE && s->now_ns >= r->submit_ns && !r->cancelled) submit(s, p, r);
    for (uint32_t i = 0; r->state == REQ_IDLE && r->cancelled && i < r->choices_count; i++)
        if (!r->choice[i].ended) end(s, r, &r->choice[i], FINISH_CANCELLED, "never sent again");
    if (s->now_ns < r->cancel_ns || r->cancelled || r->state != REQ_ACCEPTED) return;
    struct msg m = {.kind = MSG_CANCEL, .cancel = {{r->id, CHOICE_ALL, UINT32_MAX}, "user"}};
    r->cancelled = true;
    send(s, p, &m);
}

void client_on_timer(struct sim *s, struct sim_proc *p)
{
    struct sim_client *c = p->client;
    struct session_due due = session_on_timer(&c->session, s->now_ns);
    if (due.died) give_up_router(s, p);
    if (due.hello) greet(s, p);
    if (due.heartbeat) {
        struct msg m = {.kind = MSG_HEARTBEAT};
        send(s, p, &m);
    }
    for (uint32_t i = 0; i < c->requests_count && c->session.state == SESSION_UP; i++)
        act(s, p, &c->request[i]);
    sim_wake_at(p, s->now_ns + TICK_NS);
}

bool client_is_done(const struct sim_client *c)
{
    for (uint32_t i = 0; i < c->requests_count; i++)
        if (c->request[i].state != REQ_ENDED) return false;
    return true;
}

void client_check(struct sim *s, const struct sim_client *c)
{
    for (uint32_t i = 0; i < c->requests_count; i++) {
        const struct sim_request *r = &c->request[i];
        s->totals->requests++;
        for (uint32_t k = 0; k < r->choices_count; k++) {
            const struct sim_choice *choice = &r->choice[k];
            s->totals->tokens += choice->got_count;
            s->totals->errors += choice->finish == FINISH_ERROR;
            s->totals->cancelled += choice->finish == FINISH_CANCELLED;
            if (choice->finish != FINISH_ERROR) continue;
            if (!s->options.faults) sim_fail(s, "an error without a fault: %s", r->reason);
            sim_trace(s, "error: %s", r->reason);
        }
    }
}
