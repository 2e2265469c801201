#include "tests/unit/msg_random.h"

#include <math.h>
#include <string.h>

#include "common/rng.h"

static uint32_t below(struct msg_random *r, uint32_t bound)
{
    return rng_below(rng_draw(r->seed, 1, r->drawn++).word[0], bound);
}

static uint32_t r32(struct msg_random *r)
{
    uint32_t v = rng_draw(r->seed, 2, r->drawn++).word[0];
    return v >> below(r, 33) % 32; /* small ones as often as large ones */
}

static uint64_t r64(struct msg_random *r)
{
    return (uint64_t)r32(r) << 32 | r32(r);
}

static bool coin(struct msg_random *r)
{
    return below(r, 2) == 0;
}

static float number(struct msg_random *r)
{
    return (float)(int32_t)r32(r) / 1024.0f;
}

static struct id128 id(struct msg_random *r)
{
    return below(r, 4) ? (struct id128){r64(r), r64(r)} : ID128_NONE;
}

static struct job_key key(struct msg_random *r)
{
    uint32_t choice = below(r, 8) ? below(r, JOB_CHOICES_MAX) : CHOICE_ALL;
    return (struct job_key){{r64(r), r64(r)}, choice, r32(r)};
}

/* Mostly short; now and then as long as is allowed. */
static uint32_t count(struct msg_random *r, uint32_t max)
{
    return below(r, 16) ? below(r, max < 9 ? max + 1 : 9) : max;
}

static const char *string(struct msg_random *r, uint32_t min, uint32_t max)
{
    static const char letters[] = "abcXYZ019._-";
    uint32_t n = count(r, max);
    if (n < min) n = min;
    char *s = arena_take(&r->arena, n + 1);
    for (uint32_t i = 0; i < n; i++)
        s[i] = letters[below(r, sizeof letters - 1)];
    return s;
}

static const char *bytes(struct msg_random *r, uint32_t n)
{
    char *s = arena_take(&r->arena, n + 1);
    for (uint32_t i = 0; i < n; i++)
        s[i] = (char)below(r, 256);
    return s;
}

static const uint32_t *ids(struct msg_random *r, uint32_t n)
{
    uint32_t *v = arena_take(&r->arena, n * sizeof *v);
    for (uint32_t i = 0; i < n; i++)
        v[i] = r32(r);
    return v;
}

static const float *values(struct msg_random *r, uint32_t n)
{
    float *v = arena_take(&r->arena, n * sizeof *v);
    for (uint32_t i = 0; i < n; i++)
        v[i] = below(r, 8) ? -fabsf(number(r)) : -INFINITY;
    return v;
}

static const char *const *strings(struct msg_random *r, uint32_t n, uint32_t max)
{
    const char **v = arena_take(&r->arena, n * sizeof *v);
    for (uint32_t i = 0; i < n; i++)
        v[i] = string(r, 1, max);
    return v;
}

static void fill_token(struct msg_random *r, struct token_info *t, bool logprobs, bool tops)
{
    t->token = r32(r);
    t->logprob = logprobs && below(r, 4) ? -fabsf(number(r)) : NAN;
    t->tops_count = tops ? below(r, JOB_TOPS_MAX + 1) : 0;
    for (uint32_t i = 0; i < t->tops_count; i++) {
        t->top[i].token = r32(r);
        t->top[i].logprob = below(r, 8) ? -fabsf(number(r)) : -INFINITY;
    }
}

static const struct token_info *tokens(struct msg_random *r, uint32_t n)
{
    struct token_info *t = arena_take(&r->arena, n * sizeof *t);
    bool logprobs = coin(r), tops = coin(r);
    for (uint32_t i = 0; i < n; i++)
        fill_token(r, &t[i], logprobs, tops);
    return t;
}

static const struct token_run *runs(struct msg_random *r, uint32_t n)
{
    struct token_run *v = arena_take(&r->arena, n * sizeof *v);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = below(r, 4);
        v[i] = (struct token_run){key(r), below(r, JOB_TOKENS_MAX), tokens(r, c), c};
    }
    return v;
}

static const struct job_key *keys(struct msg_random *r, uint32_t n)
{
    struct job_key *v = arena_take(&r->arena, n * sizeof *v);
    for (uint32_t i = 0; i < n; i++)
        v[i] = key(r);
    return v;
}

static struct sampling sampling(struct msg_random *r)
{
    struct sampling s = {number(r), r32(r),    number(r), number(r), number(r),
                         number(r), number(r), r64(r),    coin(r),   below(r, JOB_TOPS_MAX + 1)};
    s.bias_count = coin(r) ? count(r, 40) : 0;
    struct logit_bias *bias = arena_take(&r->arena, s.bias_count * sizeof *bias);
    for (uint32_t i = 0; i < s.bias_count; i++)
        bias[i] = (struct logit_bias){r32(r), number(r)};
    s.bias = bias;
    return s;
}

static struct job job(struct msg_random *r)
{
    struct job j = {.key = key(r)};
    j.prompt_count = count(r, 5000);
    j.prompt = ids(r, j.prompt_count);
    j.forwarded_count = count(r, 300);
    j.forwarded = ids(r, j.forwarded_count);
    j.tokens_max = below(r, JOB_TOKENS_MAX + 1);
    j.tokens_min = below(r, JOB_TOKENS_MAX + 1);
    j.stop_ids_count = count(r, JOB_STOP_IDS_MAX);
    j.stop_ids = ids(r, j.stop_ids_count);
    j.sampling = sampling(r);
    j.priority = (int32_t)r32(r) * (coin(r) ? -1 : 1);
    j.tenant_salt = r64(r);
    j.kind = below(r, JOB_KINDS);
    j.age_ms = r32(r);
    j.preemptions = r32(r);
    j.cached_only = r32(r) & 1;
    j.kv_window = below(r, JOB_TOKENS_MAX);
    j.kv_sinks = below(r, JOB_TOKENS_MAX);
    j.tenant = r64(r);
    j.tenant_weight = r32(r);
    j.fair_lead = r32(r);
    return j;
}

static struct msg_hello hello(struct msg_random *r)
{
    struct msg_hello h = {.role = ROLE_PREFILL + below(r, 4), .name = string(r, 1, MSG_NAME_MAX)};
    h.host = string(r, 0, MSG_ADDRESS_MAX);
    h.device = string(r, 0, MSG_ADDRESS_MAX);
    h.model = string(r, 0, MSG_TEXT_MAX);
    h.pid = r32(r);
    h.model_fingerprint = id(r);
    h.numerics_id = r64(r);
    h.geometry = (struct kv_geometry){below(r, 4097), below(r, 4097), below(r, 4097),
                                      below(r, 4097), below(r, 256),  below(r, DTYPE_BF16 + 1)};
    h.vocab = below(r, 1 << 24);
    h.context_max = below(r, JOB_TOKENS_MAX);
    h.sequences_max = r32(r);
    h.window_tokens = r32(r);
    h.blocks_total = r32(r);
    h.eos_count = count(r, JOB_STOP_IDS_MAX);
    h.eos = ids(r, h.eos_count);
    h.addresses_count = count(r, MSG_ADDRESSES_MAX);
    h.addresses = strings(r, h.addresses_count, MSG_ADDRESS_MAX);
    h.pci = string(r, 0, MSG_NAME_MAX);
    h.numa = below(r, 65537);
    h.cpus = string(r, 0, MSG_TEXT_MAX);
    h.cards = string(r, 0, MSG_ADDRESS_MAX);
    h.kv_window = r32(r);
    h.kv_ahead = r32(r);
    h.tokenizer_hash = id(r);
    return h;
}

static void received_counts(struct msg_random *r, struct msg_submit *s)
{
    uint32_t *counts = arena_take(&r->arena, s->choices * sizeof *counts);
    uint32_t left = s->received_count;
    for (uint32_t i = 0; i + 1 < s->choices; i++)
        left -= counts[i] = below(r, left + 1);
    counts[s->choices - 1] = left;
    s->received_counts = counts;
    s->received_counts_count = s->choices;
}

static struct msg_submit submit(struct msg_random *r)
{
    struct msg_submit s = {.ref = r64(r), .id = id(r), .attempt = r32(r)};
    if (coin(r)) {
        s.text_bytes = count(r, 3000);
        s.text = bytes(r, s.text_bytes);
    } else {
        s.tokens_count = 1 + count(r, 3000);
        s.tokens = ids(r, s.tokens_count);
    }
    s.choices = 1 + below(r, JOB_CHOICES_MAX);
    s.received_count = coin(r) ? count(r, 500) : 0;
    s.received = ids(r, s.received_count);
    if (s.received_count) received_counts(r, &s);
    s.seed_given = coin(r);
    s.sampling = sampling(r);
    s.tokens_max = below(r, JOB_TOKENS_MAX + 1);
    s.tokens_min = below(r, JOB_TOKENS_MAX + 1);
    s.ignore_eos = coin(r);
    s.stop_ids_count = count(r, JOB_STOP_IDS_MAX);
    s.stop_ids = ids(r, s.stop_ids_count);
    s.stop_count = count(r, JOB_STOP_STRINGS_MAX);
    s.stop = strings(r, s.stop_count, JOB_STOP_STRING_BYTES_MAX);
    s.want_text = coin(r);
    s.echo_special = coin(r);
    s.priority = (int32_t)r32(r) * (coin(r) ? -1 : 1);
    s.tenant = string(r, 0, MSG_NAME_MAX);
    s.deadline_ms = r32(r);
    s.kind = below(r, JOB_KINDS);
    s.kv_window = below(r, JOB_TOKENS_MAX);
    s.kv_sinks = below(r, JOB_TOKENS_MAX);
    return s;
}

static struct msg_done done(struct msg_random *r)
{
    return (struct msg_done){
        .id = id(r),
        .choice = below(r, JOB_CHOICES_MAX),
        .finish = FINISH_STOP + below(r, 4),
        .error = below(r, ERR_DEVICE + 1),
        .reason = string(r, 0, MSG_TEXT_MAX),
        .prompt_tokens = below(r, JOB_TOKENS_MAX),
        .completion_tokens = below(r, JOB_TOKENS_MAX),
        .cached_tokens = below(r, JOB_TOKENS_MAX),
        .attempts = r32(r),
        .timing = {r64(r), r64(r), r64(r), r64(r), r64(r), r64(r)},
        .prefill_node = string(r, 0, MSG_NAME_MAX),
        .decode_node = string(r, 0, MSG_NAME_MAX),
        .kv_window = below(r, JOB_TOKENS_MAX),
        .kv_sinks = below(r, JOB_TOKENS_MAX),
        .inexact = below(r, 2),
    };
}

static struct msg_prefill prefill(struct msg_random *r)
{
    struct msg_prefill p = {job(r), id(r), below(r, JOB_TOKENS_MAX)};
    p.addresses_count = count(r, MSG_ADDRESSES_MAX);
    p.addresses = strings(r, p.addresses_count, MSG_ADDRESS_MAX);
    return p;
}

static struct msg_output output(struct msg_random *r)
{
    struct msg_output o = {.id = id(r), .choice = below(r, JOB_CHOICES_MAX)};
    o.index = below(r, JOB_TOKENS_MAX);
    o.tokens_count = count(r, 700);
    o.tokens = tokens(r, o.tokens_count);
    o.text_bytes = count(r, 2000);
    o.text = bytes(r, o.text_bytes);
    o.finish = below(r, FINISH_LENGTH + 1);
    return o;
}

static struct msg_heartbeat heartbeat(struct msg_random *r)
{
    return (struct msg_heartbeat){
        coin(r),
        r64(r),
        r32(r),
        r64(r),
        coin(r),
        {r32(r), r32(r), r32(r), r32(r), r32(r), r32(r), r32(r), r32(r), r32(r), r32(r), r32(r)}};
}

static void fill_pushes(struct msg_random *r, struct msg_prefilled *m)
{
    uint32_t n = count(r, MSG_PUSHES_MAX);
    m->push_layer_count = m->push_computed_us_count = m->push_sent_us_count = n;
    m->push_layer = ids(r, n);
    m->push_computed_us = ids(r, n);
    m->push_sent_us = ids(r, n);
}

static struct msg_encoded encoded(struct msg_random *r)
{
    struct msg_encoded m = {.key = key(r)};
    m.values_count = count(r, 3000);
    m.values = values(r, m.values_count);
    m.tokens_count = coin(r) ? m.values_count : 0;
    m.tokens = ids(r, m.tokens_count);
    m.index = below(r, 1000);
    m.total = m.index + m.values_count + below(r, 1000);
    return m;
}

static struct msg_blocks blocks(struct msg_random *r)
{
    uint32_t n = count(r, MSG_BLOCKS_MAX);
    uint64_t *hashes = arena_take(&r->arena, n * sizeof *hashes);
    uint32_t *what = arena_take(&r->arena, n * sizeof *what);
    for (uint32_t i = 0; i < n; i++) {
        hashes[i] = r64(r);
        what[i] = below(r, BLOCK_GONE + TIERS);
    }
    return (struct msg_blocks){r64(r), coin(r), hashes, what, n, n};
}

static struct msg_pin pin(struct msg_random *r)
{
    struct msg_pin m = {.ref = r64(r), .remove = coin(r), .salt = r64(r)};
    m.name = string(r, 1, MSG_NAME_MAX);
    m.tenant = string(r, 0, MSG_NAME_MAX);
    m.text_bytes = count(r, 3000);
    m.text = bytes(r, m.text_bytes);
    m.tokens_count = count(r, 3000);
    m.tokens = ids(r, m.tokens_count);
    return m;
}

struct msg msg_random(struct msg_random *r, enum msg_kind kind)
{
    struct msg m = {.kind = kind, .envelope = {r64(r), r64(r), r64(r), r32(r)}};
    switch (kind) {
    case MSG_HELLO: m.hello = hello(r); break;
    case MSG_WELCOME:
        m.welcome = (struct msg_welcome){string(r, 1, MSG_NAME_MAX), string(r, 0, MSG_ADDRESS_MAX),
                                         id(r), r32(r), r32(r)};
        break;
    case MSG_REFUSE: m.refuse.reason = string(r, 0, MSG_TEXT_MAX); break;
    case MSG_HEARTBEAT: m.heartbeat = heartbeat(r); break;
    case MSG_LIVE:
        m.live.answer = coin(r);
        m.live.keys_count = count(r, 900);
        m.live.keys = keys(r, m.live.keys_count);
        break;
    case MSG_RESERVE:
        m.reserve = (struct msg_reserve){job(r), coin(r), coin(r), below(r, JOB_CHOICES_MAX)};
        break;
    case MSG_RESERVED:
        m.reserved = (struct msg_reserved){key(r), id(r), below(r, JOB_TOKENS_MAX)};
        break;
    case MSG_PREFILL: m.prefill = prefill(r); break;
    case MSG_FIRST:
        m.first.key = key(r);
        m.first.index = below(r, JOB_TOKENS_MAX);
        fill_token(r, &m.first.token, coin(r), coin(r));
        m.first.cached_tokens = below(r, JOB_TOKENS_MAX);
        m.first.queued_us = r64(r);
        m.first.compute_us = r64(r);
        break;
    case MSG_PREFILLED:
        m.prefilled =
            (struct msg_prefilled){key(r), below(r, JOB_TOKENS_MAX),  r64(r), r64(r), r64(r),
                                   r64(r), string(r, 0, MSG_NAME_MAX)};
        fill_pushes(r, &m.prefilled);
        break;
    case MSG_TOKENS:
        m.tokens.runs_count = count(r, 500);
        m.tokens.runs = runs(r, m.tokens.runs_count);
        break;
    case MSG_FINISHED:
        m.finished = (struct msg_finished){key(r),
                                           FINISH_STOP + below(r, 4),
                                           below(r, JOB_TOKENS_MAX),
                                           below(r, JOB_TOKENS_MAX),
                                           r64(r),
                                           r64(r)};
        break;
    case MSG_FINISHED_ACK: m.finished_ack.key = key(r); break;
    case MSG_FAILED:
        m.failed = (struct msg_failed){key(r), ERR_AGAIN + below(r, ERR_DEVICE), coin(r),
                                       string(r, 0, MSG_TEXT_MAX)};
        break;
    case MSG_CANCEL: m.cancel = (struct msg_cancel){key(r), string(r, 0, MSG_TEXT_MAX)}; break;
    case MSG_LINK:
        m.link = (struct msg_link){string(r, 0, MSG_ADDRESS_MAX),
                                   string(r, 1, MSG_NAME_MAX),
                                   r32(r),
                                   r64(r),
                                   r64(r),
                                   r64(r),
                                   string(r, 0, MSG_TEXT_MAX)};
        break;
    case MSG_ENCODED: m.encoded = encoded(r); break;
    case MSG_BLOCKS: m.blocks = blocks(r); break;
    case MSG_PIN: m.pin = pin(r); break;
    case MSG_PINNED:
        m.pinned =
            (struct msg_pinned){string(r, 1, MSG_NAME_MAX), string(r, 0, MSG_NAME_MAX), r32(r)};
        break;
    case MSG_RESEND: m.resend = (struct msg_resend){key(r), below(r, JOB_TOKENS_MAX)}; break;
    case MSG_SUBMIT: m.submit = submit(r); break;
    case MSG_ACCEPTED:
        m.accepted = (struct msg_accepted){r64(r), id(r), r64(r), below(r, JOB_TOKENS_MAX)};
        break;
    case MSG_REJECTED:
        m.rejected = (struct msg_rejected){r64(r), ERR_AGAIN + below(r, ERR_DEVICE), r32(r),
                                           string(r, 0, MSG_TEXT_MAX)};
        break;
    case MSG_OUTPUT: m.output = output(r); break;
    case MSG_DONE: m.done = done(r); break;
    case MSG_QUERY:
        m.query =
            (struct msg_query){r64(r), QUERY_STATUS + below(r, 4), string(r, 0, MSG_NAME_MAX)};
        break;
    case MSG_ANSWER:
        m.answer.ref = r64(r);
        m.answer.error = below(r, ERR_DEVICE + 1);
        m.answer.text_bytes = count(r, 5000);
        m.answer.text = bytes(r, m.answer.text_bytes);
        break;
    default: break; /* BYE and DRAINED say nothing more */
    }
    return m;
}

/* ---- comparison ---- */

#define SAME(f)                                                                                    \
    do {                                                                                           \
        if (a->f != b->f) return #f;                                                               \
    } while (0)
#define SAME_FLAT(f) /* no padding inside */                                                       \
    do {                                                                                           \
        if (memcmp(&a->f, &b->f, sizeof a->f) != 0) return #f;                                     \
    } while (0)
#define SAME_STRING(f)                                                                             \
    do {                                                                                           \
        if (strcmp(a->f, b->f) != 0) return #f;                                                    \
    } while (0)
#define SAME_ARRAY(f, n)                                                                           \
    do {                                                                                           \
        if (a->n != b->n || (a->n && memcmp(a->f, b->f, a->n * sizeof a->f[0]) != 0)) return #f;   \
    } while (0)
#define SAME_STRINGS(f, n)                                                                         \
    do {                                                                                           \
        SAME(n);                                                                                   \
        for (uint32_t i = 0; i < a->n; i++)                                                        \
            SAME_STRING(f[i]);                                                                     \
    } while (0)
#define SAME_WITH(function, f)                                                                     \
    do {                                                                                           \
        const char *name = function(&a->f, &b->f);                                                 \
        if (name) return name;                                                                     \
    } while (0)

static const char *token_difference(const struct token_info *a, const struct token_info *b)
{
    SAME(token);
    if (!(isnan(a->logprob) && isnan(b->logprob))) SAME(logprob);
    SAME(tops_count);
    for (uint32_t i = 0; i < a->tops_count; i++)
        SAME_FLAT(top[i]);
    return NULL;
}

static const char *sampling_difference(const struct sampling *a, const struct sampling *b)
{
    SAME(temperature);
    SAME(top_k);
    SAME(top_p);
    SAME(min_p);
    SAME(repetition_penalty);
    SAME(presence_penalty);
    SAME(frequency_penalty);
    SAME(seed);
    SAME(logprobs);
    SAME(tops_count);
    SAME_ARRAY(bias, bias_count);
    return NULL;
}

static const char *job_difference(const struct job *a, const struct job *b)
{
    SAME_FLAT(key);
    SAME_ARRAY(prompt, prompt_count);
    SAME_ARRAY(forwarded, forwarded_count);
    SAME(tokens_max);
    SAME(tokens_min);
    SAME_ARRAY(stop_ids, stop_ids_count);
    SAME_WITH(sampling_difference, sampling);
    SAME(priority);
    SAME(tenant_salt);
    SAME(kind);
    SAME(age_ms);
    SAME(preemptions);
    SAME(kv_window);
    SAME(kv_sinks);
    SAME(tenant);
    SAME(tenant_weight);
    SAME(fair_lead);
    return NULL;
}

static const char *hello_difference(const struct msg_hello *a, const struct msg_hello *b)
{
    SAME(role);
    SAME_STRING(name);
    SAME_STRING(host);
    SAME_STRING(device);
    SAME_STRING(model);
    SAME(pid);
    SAME_FLAT(model_fingerprint);
    SAME(numerics_id);
    SAME_FLAT(geometry);
    SAME(vocab);
    SAME(context_max);
    SAME(sequences_max);
    SAME(window_tokens);
    SAME(blocks_total);
    SAME_ARRAY(eos, eos_count);
    SAME_STRINGS(addresses, addresses_count);
    SAME_STRING(pci);
    SAME(numa);
    SAME_STRING(cpus);
    SAME_STRING(cards);
    SAME(kv_window);
    SAME(kv_ahead);
    SAME_FLAT(tokenizer_hash);
    return NULL;
}

static const char *submit_difference(const struct msg_submit *a, const struct msg_submit *b)
{
    SAME(ref);
    SAME_FLAT(id);
    SAME(attempt);
    if (!a->text != !b->text) return "text";
    SAME_ARRAY(text, text_bytes);
    SAME_ARRAY(tokens, tokens_count);
    SAME(choices);
    SAME(seed_given);
    SAME_WITH(sampling_difference, sampling);
    SAME(tokens_max);
    SAME(tokens_min);
    SAME(ignore_eos);
    SAME_ARRAY(stop_ids, stop_ids_count);
    SAME_STRINGS(stop, stop_count);
    SAME(want_text);
    SAME(echo_special);
    SAME(priority);
    SAME_STRING(tenant);
    SAME(deadline_ms);
    SAME_ARRAY(received, received_count);
    SAME_ARRAY(received_counts, received_counts_count);
    SAME(kind);
    SAME(kv_window);
    SAME(kv_sinks);
    return NULL;
}

static const char *done_difference(const struct msg_done *a, const struct msg_done *b)
{
    SAME_FLAT(id);
    SAME(choice);
    SAME(finish);
    SAME(error);
    SAME_STRING(reason);
    SAME(prompt_tokens);
    SAME(completion_tokens);
    SAME(cached_tokens);
    SAME(attempts);
    SAME_FLAT(timing);
    SAME_STRING(prefill_node);
    SAME_STRING(decode_node);
    SAME(kv_window);
    SAME(kv_sinks);
    SAME(inexact);
    return NULL;
}

static const char *prefill_difference(const struct msg_prefill *a, const struct msg_prefill *b)
{
    SAME_WITH(job_difference, job);
    SAME_FLAT(ticket);
    SAME(held_tokens);
    SAME_STRINGS(addresses, addresses_count);
    return NULL;
}

static const char *prefilled_difference(const struct msg_prefilled *a,
                                        const struct msg_prefilled *b)
{
    SAME_FLAT(key);
    SAME(cached_tokens);
    SAME(queued_us);
    SAME(compute_us);
    SAME(transfer_tail_us);
    SAME(transfer_bytes);
    SAME_STRING(link);
    SAME_ARRAY(push_layer, push_layer_count);
    SAME_ARRAY(push_computed_us, push_computed_us_count);
    SAME_ARRAY(push_sent_us, push_sent_us_count);
    return NULL;
}

static const char *tokens_difference(const struct msg_tokens *a, const struct msg_tokens *b)
{
    SAME(runs_count);
    for (uint32_t i = 0; i < a->runs_count; i++) {
        SAME_FLAT(runs[i].key);
        SAME(runs[i].index);
        SAME(runs[i].tokens_count);
        for (uint32_t k = 0; k < a->runs[i].tokens_count; k++)
            SAME_WITH(token_difference, runs[i].tokens[k]);
    }
    return NULL;
}

static const char *output_difference(const struct msg_output *a, const struct msg_output *b)
{
    SAME_FLAT(id);
    SAME(choice);
    SAME(index);
    SAME(tokens_count);
    for (uint32_t i = 0; i < a->tokens_count; i++)
        SAME_WITH(token_difference, tokens[i]);
    SAME_ARRAY(text, text_bytes);
    SAME(finish);
    return NULL;
}

static const char *heartbeat_difference(const struct msg_heartbeat *a,
                                        const struct msg_heartbeat *b)
{
    SAME(busy);
    SAME(progress);
    SAME(live_count);
    SAME(live_hash);
    SAME(draining);
    SAME_FLAT(load);
    return NULL;
}

static const char *small_difference(const struct msg *a, const struct msg *b)
{
    switch (a->kind) {
    case MSG_WELCOME:
        SAME_STRING(welcome.name);
        SAME_STRING(welcome.lifeline);
        SAME_FLAT(welcome.lifeline_key);
        SAME(welcome.heartbeat_ms);
        SAME(welcome.dead_ms);
        return NULL;
    case MSG_REFUSE: SAME_STRING(refuse.reason); return NULL;
    case MSG_LIVE:
        SAME(live.answer);
        SAME_ARRAY(live.keys, live.keys_count);
        return NULL;
    case MSG_RESERVED:
        SAME_FLAT(reserved.key);
        SAME_FLAT(reserved.ticket);
        SAME(reserved.held_tokens);
        return NULL;
    case MSG_FINISHED:
        SAME_FLAT(finished.key);
        SAME(finished.finish);
        SAME(finished.tokens_count);
        SAME(finished.cached_tokens);
        SAME(finished.queued_us);
        SAME(finished.compute_us);
        return NULL;
    case MSG_FINISHED_ACK: SAME_FLAT(finished_ack.key); return NULL;
    case MSG_FAILED:
        SAME_FLAT(failed.key);
        SAME(failed.error);
        SAME(failed.retryable);
        SAME_STRING(failed.reason);
        return NULL;
    case MSG_CANCEL:
        SAME_FLAT(cancel.key);
        SAME_STRING(cancel.reason);
        return NULL;
    case MSG_PIN:
        SAME(pin.ref);
        SAME(pin.remove);
        SAME_STRING(pin.name);
        SAME_STRING(pin.tenant);
        SAME_ARRAY(pin.text, pin.text_bytes);
        SAME_ARRAY(pin.tokens, pin.tokens_count);
        SAME(pin.salt);
        return NULL;
    case MSG_PINNED:
        SAME_STRING(pinned.name);
        SAME_STRING(pinned.tenant);
        SAME(pinned.blocks);
        return NULL;
    case MSG_LINK:
        SAME_STRING(link.address);
        SAME_STRING(link.state);
        SAME(link.tickets);
        SAME(link.bytes);
        SAME(link.rate);
        SAME(link.failed_ms);
        SAME_STRING(link.reason);
        return NULL;
    case MSG_ENCODED:
        SAME_FLAT(encoded.key);
        SAME(encoded.index);
        SAME(encoded.total);
        SAME_ARRAY(encoded.values, encoded.values_count);
        SAME_ARRAY(encoded.tokens, encoded.tokens_count);
        return NULL;
    case MSG_BLOCKS:
        SAME(blocks.number);
        SAME(blocks.cleared);
        SAME_ARRAY(blocks.hashes, blocks.hashes_count);
        SAME_ARRAY(blocks.what, blocks.what_count);
        return NULL;
    case MSG_RESEND:
        SAME_FLAT(resend.key);
        SAME(resend.from);
        return NULL;
    case MSG_ACCEPTED:
        SAME(accepted.ref);
        SAME_FLAT(accepted.id);
        SAME(accepted.seed);
        SAME(accepted.prompt_tokens);
        return NULL;
    case MSG_REJECTED:
        SAME(rejected.ref);
        SAME(rejected.error);
        SAME(rejected.retry_ms);
        SAME_STRING(rejected.reason);
        return NULL;
    case MSG_QUERY:
        SAME(query.ref);
        SAME(query.query);
        SAME_STRING(query.argument);
        return NULL;
    case MSG_ANSWER:
        SAME(answer.ref);
        SAME(answer.error);
        SAME_ARRAY(answer.text, answer.text_bytes);
        return NULL;
    default: return NULL;
    }
}

const char *msg_difference(const struct msg *a, const struct msg *b)
{
    SAME(kind);
    SAME(envelope.epoch);
    SAME(envelope.from);
    SAME(envelope.to);
    SAME(envelope.remaining_ms);
    switch (a->kind) {
    case MSG_HELLO: return hello_difference(&a->hello, &b->hello);
    case MSG_HEARTBEAT: return heartbeat_difference(&a->heartbeat, &b->heartbeat);
    case MSG_RESERVE:
        SAME(reserve.local);
        SAME(reserve.fork);
        SAME(reserve.sibling);
        return job_difference(&a->reserve.job, &b->reserve.job);
    case MSG_PREFILL: return prefill_difference(&a->prefill, &b->prefill);
    case MSG_FIRST:
        SAME_FLAT(first.key);
        SAME(first.index);
        SAME(first.cached_tokens);
        SAME(first.queued_us);
        SAME(first.compute_us);
        return token_difference(&a->first.token, &b->first.token);
    case MSG_PREFILLED: return prefilled_difference(&a->prefilled, &b->prefilled);
    case MSG_TOKENS: return tokens_difference(&a->tokens, &b->tokens);
    case MSG_SUBMIT: return submit_difference(&a->submit, &b->submit);
    case MSG_OUTPUT: return output_difference(&a->output, &b->output);
    case MSG_DONE: return done_difference(&a->done, &b->done);
    default: return small_difference(a, b);
    }
}
