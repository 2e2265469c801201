#include "tests/unit/router_rig.h"

static void out_send(void *ctx, struct peer peer, const struct msg *m)
{
    struct world *w = ctx;
    assert_true(w->sent_count < SENT_MAX);
    struct sent *s = &w->sent[w->sent_count++];
    s->peer = peer;
    assert_int_equal(msg_copy(m, &w->arena, &s->m), OK);
    if (m->kind == MSG_WELCOME) {
        w->envelope[peer.v].epoch = m->envelope.epoch;
        w->envelope[peer.v].to = m->envelope.from;
    }
}
static void out_wake(void *ctx, uint64_t when_ns)
{
    ((struct world *)ctx)->wake = when_ns;
}
static void out_expect(void *ctx, struct peer peer, struct id128 key)
{
    (void)ctx;
    (void)peer;
    assert_false(id128_is_none(key));
}
static void out_forget(void *ctx, struct peer peer)
{
    ((struct world *)ctx)->forgotten[peer.v]++;
}
static enum err out_tokenize(void *ctx, struct id128 job, const char *text, uint32_t bytes)
{
    struct world *w = ctx;
    w->tokenizing = job;
    assert_true(bytes == strlen(text));
    return w->text_full ? err_set(ERR_FULL, "the text thread is full") : OK;
}
static void out_left(void *ctx)
{
    ((struct world *)ctx)->left = true;
}

void say(struct world *w, uint32_t peer, struct msg m)
{
    m.envelope = w->envelope[peer];
    router_core_on_message(w->core, w->now, (struct peer){peer}, &m);
    router_core_audit(w->core);
}

/* The next message of this kind to this peer since the last look; fails if there is none. */
const struct msg *expect(struct world *w, uint32_t peer, enum msg_kind kind)
{
    for (size_t i = w->read; i < w->sent_count; i++)
        if (w->sent[i].peer.v == peer && w->sent[i].m.kind == kind) {
            w->read = i + 1;
            return &w->sent[i].m;
        }
    fail_msg("no %s was sent to peer %u", msg_kind_name(kind), peer);
    return NULL;
}
bool was_sent(const struct world *w, uint32_t peer, enum msg_kind kind)
{
    for (size_t i = w->read; i < w->sent_count; i++)
        if (w->sent[i].peer.v == peer && w->sent[i].m.kind == kind) return true;
    return false;
}

struct other { /* 0: as the others */
    uint64_t model, numerics;
    struct id128 tokenizer;
};

static void greet(struct world *w, uint32_t peer, enum role role, const char *name,
                  uint32_t context_max, struct other other)
{
    static const uint32_t eos[1] = {99};
    static const char *const addresses[1] = {"tcp:127.0.0.1:1"};
    w->envelope[peer] = (struct envelope){.from = peer + 100};
    struct msg m = {
        .kind = MSG_HELLO,
        .hello = {
            .role = role, .name = name, .host = "h", .device = "d", .model = "m", .pid = peer}};
    if (role != ROLE_CLIENT) {
        m.hello.model_fingerprint = (struct id128){1, 2 + other.model};
        m.hello.numerics_id = 3 + other.numerics;
        m.hello.tokenizer_hash = other.tokenizer;
        m.hello.geometry = (struct kv_geometry){2, 1, 8, 16, KV_LAYOUT_CPU, DTYPE_F32};
        m.hello.vocab = 1024;
        m.hello.context_max = context_max;
        m.hello.sequences_max = 8;
        m.hello.window_tokens = 64;
        m.hello.blocks_total = context_max > 1000 ? context_max : 50;
        m.hello.eos = eos;
        m.hello.eos_count = 1;
        m.hello.addresses = addresses;
        m.hello.addresses_count = 1;
    }
    say(w, peer, m);
}

void hello(struct world *w, uint32_t peer, enum role role, const char *name)
{
    greet(w, peer, role, name, 1000, (struct other){0});
}

void hello_other_model(struct world *w, uint32_t peer, enum role role, const char *name)
{
    greet(w, peer, role, name, 1000, (struct other){.model = 1});
}

void hello_tokenizer(struct world *w, uint32_t peer, struct id128 hash)
{
    greet(w, peer, ROLE_PREFILL, "p0", 1000, (struct other){.tokenizer = hash});
}

void hello_other_numerics(struct world *w, uint32_t peer, enum role role, const char *name)
{
    greet(w, peer, role, name, 1000, (struct other){.numerics = 1});
}

void hello_large(struct world *w, uint32_t peer, uint32_t context_max)
{
    greet(w, peer, ROLE_PREFILL, "large", context_max, (struct other){0});
}

void world_open(struct world *w, const struct router_config *changes)
{
    memset(w, 0, sizeof *w);
    struct router_config config = changes ? *changes : ROUTER_CONFIG_DEFAULT;
    config.name = "r0";
    config.lifeline_address = "";
    config.incarnation = 77;
    config.id_seed = 5;
    config.session.lifeline_ns = 0;
    config.disaggregate = DISAGGREGATE_ALWAYS;
    const struct router_out out = {w,          out_send,     out_wake, out_expect,
                                   out_forget, out_tokenize, out_left};
    w->now = NS_PER_S;
    arena_take(&w->arena, 1 << 18);
    arena_reset(&w->arena); /* room: where allocations fail, the rig's copies must not be those */
    assert_int_equal(router_core_new(&w->core, &config, &out), OK);
    hello(w, CLIENT, ROLE_CLIENT, "c");
    expect(w, CLIENT, MSG_WELCOME);
}
void world_join(struct world *w)
{
    hello(w, P0, ROLE_PREFILL, "p0");
    hello(w, D0, ROLE_DECODE, "d0");
    hello(w, D1, ROLE_DECODE, "d1");
    expect(w, P0, MSG_WELCOME);
    expect(w, D0, MSG_WELCOME);
    expect(w, D1, MSG_WELCOME);
}
void world_open_joined(struct world *w, const struct router_config *changes)
{
    world_open(w, changes);
    world_join(w);
}
void world_close(struct world *w)
{
    router_core_free(w->core);
    arena_fini(&w->arena);
}

const uint32_t prompt[20] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};

struct msg submit_of(uint32_t tokens_max)
{
    return (struct msg){.kind = MSG_SUBMIT,
                        .submit = {.ref = 42,
                                   .tokens = prompt,
                                   .tokens_count = 20,
                                   .choices = 1,
                                   .tokens_max = tokens_max,
                                   .sampling = {.top_p = 1, .repetition_penalty = 1}}};
}
struct id128 submit(struct world *w, uint32_t tokens_max)
{
    say(w, CLIENT, submit_of(tokens_max));
    const struct msg *m = expect(w, CLIENT, MSG_ACCEPTED);
    assert_int_equal(m->accepted.ref, 42);
    assert_int_equal(m->accepted.prompt_tokens, 20);
    return m->accepted.id;
}

struct token_info token(uint32_t id)
{
    return (struct token_info){.token = id, .logprob = NAN};
}
/* D tells tokens[from … to) of a sequence whose token i is 10 + i. */
void tell_tokens(struct world *w, uint32_t peer, struct job_key key, uint32_t from, uint32_t to)
{
    struct token_info tokens[64];
    for (uint32_t i = from; i < to; i++)
        tokens[i - from] = token(10 + i);
    struct token_run run = {key, from, tokens, to - from};
    say(w, peer, (struct msg){.kind = MSG_TOKENS, .tokens = {&run, 1}});
}
void tell_first(struct world *w, uint32_t peer, struct job_key key, uint32_t index)
{
    say(w, peer,
        (struct msg){.kind = MSG_FIRST, .first = {key, index, token(10 + index), 16, 20, 30}});
}
void tell_finished(struct world *w, uint32_t peer, struct job_key key, uint32_t count)
{
    say(w, peer,
        (struct msg){.kind = MSG_FINISHED,
                     .finished = {.key = key, .finish = FINISH_LENGTH, .tokens_count = count}});
}
void tell_prefilled(struct world *w, uint32_t peer, struct job_key key)
{
    say(w, peer, (struct msg){.kind = MSG_PREFILLED, .prefilled = {.key = key, .link = "tcp"}});
}
/* Up to P's PREFILL: the key of the attempt. `d` is the decode node that was asked. */
struct job_key reserve_held(struct world *w, uint32_t d, uint32_t held_tokens)
{
    struct job_key key = expect(w, d, MSG_RESERVE)->reserve.job.key;
    struct id128 ticket = {9, key.attempt + 1};
    say(w, d, (struct msg){.kind = MSG_RESERVED, .reserved = {key, ticket, held_tokens}});
    const struct msg *m = expect(w, P0, MSG_PREFILL);
    assert_true(job_key_equal(m->prefill.job.key, key));
    assert_int_equal(m->prefill.held_tokens, held_tokens);
    assert_true(id128_equal(m->prefill.ticket, ticket));
    assert_string_equal(m->prefill.addresses[0], "tcp:127.0.0.1:1");
    return key;
}
struct job_key reserve(struct world *w, uint32_t d)
{
    return reserve_held(w, d, 16);
}
struct job_key world_open_prefilling(struct world *w, uint32_t tokens_max)
{
    world_open_joined(w, NULL);
    submit(w, tokens_max);
    return reserve(w, D0);
}
/* Collects OUTPUTs and DONE: the client must have got tokens 10, 11, … exactly once and in order. */
const struct msg *expect_stream(struct world *w, uint32_t first, uint32_t count)
{
    uint32_t next = first;
    while (next < count) {
        const struct msg *m = expect(w, CLIENT, MSG_OUTPUT);
        assert_int_equal(m->output.index, next);
        for (uint32_t i = 0; i < m->output.tokens_count; i++)
            assert_int_equal(m->output.tokens[i].token, 10 + next++);
    }
    const struct msg *done = expect(w, CLIENT, MSG_DONE);
    assert_int_equal(next, count);
    return done;
}
void lose(struct world *w, uint32_t peer)
{
    router_core_on_lifeline(w->core, w->now, (struct peer){peer}, true);
    router_core_on_lifeline(w->core, w->now, (struct peer){peer}, false);
    router_core_audit(w->core);
    assert_int_equal(w->forgotten[peer], 1);
}
