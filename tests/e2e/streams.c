#include "tests/e2e/streams.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/utf8.h"

struct streams *streams_new(const char *addresses)
{
    struct streams *s = mem_new(sizeof *s);
    assert_non_null(s);
    snprintf(s->addresses, sizeof s->addresses, "%s", addresses);
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    assert_true(s->epoll_fd >= 0);
    return s;
}

static void outcome_fini(struct outcome *o)
{
    mem_free(o->tokens);
    mem_free(o->logprobs);
    mem_free(o->arrived_ns);
    buf_fini(&o->text);
}

void streams_free(struct streams *s)
{
    if (!s) return;
    for (uint32_t i = 0; i < s->count; i++) {
        tandem_request_free(s->stream[i]->request);
        mem_free(s->stream[i]->values);
        for (uint32_t c = 0; c < CHOICES_MAX; c++)
            outcome_fini(&s->stream[i]->choice[c]);
        mem_free(s->stream[i]);
    }
    for (uint32_t i = 0; i < STREAMS_CLIENTS_MAX; i++)
        tandem_close(s->client[i]);
    close(s->epoll_fd);
    mem_free(s);
}

/* ---- events ---- */

static void on_tokens(struct stream *stream, struct outcome *o, const struct tandem_event *event)
{
    assert_int_equal(event->index, o->tokens_count);
    assert_true(event->tokens_count > 0);
    uint32_t count = o->tokens_count + (uint32_t)event->tokens_count;
    if (count > o->tokens_capacity) {
        o->tokens_capacity = count * 2;
        o->tokens = mem_resize(o->tokens, o->tokens_capacity, sizeof *o->tokens);
        o->logprobs = mem_resize(o->logprobs, o->tokens_capacity, sizeof *o->logprobs);
        o->arrived_ns = mem_resize(o->arrived_ns, o->tokens_capacity, sizeof *o->arrived_ns);
        assert_true(o->tokens && o->logprobs && o->arrived_ns);
    }
    uint64_t now_ns = clock_now_ns();
    for (size_t i = 0; i < event->tokens_count; i++) {
        o->tokens[o->tokens_count + i] = event->tokens[i].token;
        o->logprobs[o->tokens_count + i] = event->tokens[i].logprob;
        o->arrived_ns[o->tokens_count + i] = now_ns;
        if (stream->ask.want_logprobs) {
            assert_true(event->tokens[i].logprob <= 0.0f);
            assert_int_equal(event->tokens[i].tops_count, stream->ask.tops);
        }
    }
    o->tokens_count = count;
    stream->tokens_count += (uint32_t)event->tokens_count;
    stream->streams->tokens_count += event->tokens_count;
    if (stream->ask.cancel_at && stream->tokens_count >= stream->ask.cancel_at)
        tandem_cancel(stream->request);
}

static void keep_values(struct stream *stream, const struct tandem_event *event)
{
    stream->values = mem_array(event->values_count, sizeof *stream->values);
    assert_non_null(stream->values);
    stream->values_count = event->values_count;
    memcpy(stream->values, event->values, event->values_count * sizeof *stream->values);
}

static void on_end(struct stream *stream, struct outcome *o, const struct tandem_event *event)
{
    o->ended = true;
    o->finish = event->finish;
    o->status = event->kind == TANDEM_EVENT_ERROR ? event->status : TANDEM_OK;
    snprintf(o->reason, sizeof o->reason, "%s", event->reason ? event->reason : "");
    stream->cached_tokens = event->cached_tokens;
    stream->attempts = event->attempts;
    stream->kv_window = event->kv_window;
    stream->kv_sinks = event->kv_sinks;
    stream->timing = event->timing;
    if (event->values_count > 0) keep_values(stream, event);
    if (event->choice == 0) { /* others may be forks of it, which no P computed */
        snprintf(stream->prefill_node, sizeof stream->prefill_node, "%s",
                 event->prefill_node ? event->prefill_node : "");
        snprintf(stream->decode_node, sizeof stream->decode_node, "%s",
                 event->decode_node ? event->decode_node : "");
    }
    if (event->kind == TANDEM_EVENT_DONE)
        assert_int_equal(event->completion_tokens, o->tokens_count);
    if (event->choices_left > 0) return;
    stream->ended = true;
    stream->streams->ended_count++;
}

static void on_event(void *ctx, const struct tandem_event *event)
{
    struct stream *stream = ctx;
    assert_false(stream->ended);
    assert_true(event->choice < stream->choices_count);
    struct outcome *o = &stream->choice[event->choice];
    assert_false(o->ended && event->kind != TANDEM_EVENT_ACCEPTED);
    switch (event->kind) {
    case TANDEM_EVENT_ACCEPTED:
        stream->accepted = true;
        stream->prompt_tokens = event->prompt_tokens;
        snprintf(stream->id, sizeof stream->id, "%s", event->id);
        break;
    case TANDEM_EVENT_TOKENS: on_tokens(stream, o, event); break;
    case TANDEM_EVENT_TEXT:
        assert_int_equal(utf8_check(event->text, event->text_bytes), event->text_bytes);
        assert_int_equal(buf_add(&o->text, event->text, event->text_bytes), OK);
        break;
    case TANDEM_EVENT_DONE:
    case TANDEM_EVENT_ERROR: on_end(stream, o, event); break;
    }
}

/* ---- clients and requests ---- */

static struct tandem *client_of(struct streams *s, uint32_t number)
{
    assert_true(number < STREAMS_CLIENTS_MAX);
    struct tandem *t = s->client[number];
    if (t) return t;
    assert_int_equal(tandem_open(&t, s->addresses), TANDEM_OK);
    tandem_set_patience(t, STREAMS_WAIT_MS);
    struct epoll_event watch = {.events = EPOLLIN, .data.u32 = number};
    assert_int_equal(epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, tandem_fd(t), &watch), 0);
    return s->client[number] = t;
}

static void fill_request(struct tandem_request *r, const struct ask *ask)
{
    if (ask->text)
        assert_int_equal(tandem_set_text(r, ask->text, strlen(ask->text)), TANDEM_OK);
    else
        assert_int_equal(tandem_set_tokens(r, ask->tokens, ask->tokens_count), TANDEM_OK);
    if (ask->max_tokens) tandem_set_max_tokens(r, ask->max_tokens);
    if (ask->choices) tandem_set_choices(r, ask->choices);
    if (ask->top_p > 0) tandem_set_top_p(r, ask->top_p);
    if (ask->repetition_penalty > 0) tandem_set_repetition_penalty(r, ask->repetition_penalty);
    if (ask->want_logprobs) tandem_set_logprobs(r, ask->tops);
    if (ask->stop) assert_int_equal(tandem_add_stop(r, ask->stop), TANDEM_OK);
    tandem_set_min_tokens(r, ask->min_tokens);
    tandem_set_temperature(r, ask->temperature);
    tandem_set_top_k(r, ask->top_k);
    tandem_set_min_p(r, ask->min_p);
    tandem_set_presence_penalty(r, ask->presence_penalty);
    tandem_set_frequency_penalty(r, ask->frequency_penalty);
    tandem_set_seed(r, ask->seed);
    tandem_set_kv_window(r, ask->kv_window, ask->kv_sinks);
    tandem_set_ignore_eos(r, ask->ignore_eos);
    tandem_set_priority(r, ask->priority);
    tandem_set_kind(r, ask->kind);
    if (ask->tenant) tandem_set_tenant(r, ask->tenant);
    tandem_set_want_text(r, !ask->no_text);
}

struct stream *streams_start(struct streams *s, uint32_t client, const struct ask *ask)
{
    struct stream *stream = mem_new(sizeof *stream);
    assert_non_null(stream);
    assert_true(s->count < STREAMS_MAX);
    s->stream[s->count++] = stream;
    stream->streams = s;
    stream->ask = *ask;
    stream->choices_count = ask->choices ? ask->choices : 1;
    assert_true(stream->choices_count <= CHOICES_MAX);
    stream->request = tandem_request_new(client_of(s, client), on_event, stream);
    assert_non_null(stream->request);
    fill_request(stream->request, ask);
    stream->submitted_ns = clock_now_ns();
    if (tandem_submit(stream->request) != TANDEM_OK)
        fail_msg("not submitted: %s", tandem_error_text());
    return stream;
}

/* ---- the loop ---- */

bool streams_turn(struct streams *s, int wait_ms)
{
    struct epoll_event event[STREAMS_CLIENTS_MAX];
    int n = epoll_wait(s->epoll_fd, event, STREAMS_CLIENTS_MAX, wait_ms);
    assert_true(n >= 0 || errno == EINTR);
    for (int i = 0; i < n; i++)
        tandem_process(s->client[event[i].data.u32]);
    return n > 0;
}

static void fail_late(const struct streams *s, const char *what)
{
    for (uint32_t i = 0; i < s->count; i++) {
        const struct stream *stream = s->stream[i];
        if (!stream->ended)
            print_error("stream %u (%s): accepted %d, %u tokens\n", i, stream->id, stream->accepted,
                        stream->tokens_count);
    }
    fail_msg("not in %d ms: %s", STREAMS_WAIT_MS, what);
}

void streams_run_until(struct streams *s, bool holds(void *ctx), void *ctx, const char *what)
{
    uint64_t until_ns = clock_now_ns() + STREAMS_WAIT_MS * NS_PER_MS;
    while (!holds(ctx)) {
        uint64_t now_ns = clock_now_ns();
        if (now_ns >= until_ns) fail_late(s, what);
        if (s->ended_count == s->count) fail_msg("all streams have ended, but not: %s", what);
        streams_turn(s, (int)((until_ns - now_ns) / NS_PER_MS) + 1);
    }
}

static bool all_ended(void *ctx)
{
    const struct streams *s = ctx;
    return s->ended_count == s->count;
}

void streams_run(struct streams *s)
{
    streams_run_until(s, all_ended, s, "all streams end");
}

struct tokens_wanted {
    const struct stream *stream;
    uint32_t tokens_count;
};

static bool has_tokens(void *ctx)
{
    const struct tokens_wanted *w = ctx;
    return w->stream->tokens_count >= w->tokens_count;
}

void streams_until_tokens(struct stream *stream, uint32_t tokens_count)
{
    struct tokens_wanted wanted = {stream, tokens_count};
    streams_run_until(stream->streams, has_tokens, &wanted, "so many tokens");
}

struct stream *streams_ask(struct streams *s, const struct ask *ask)
{
    struct stream *stream = streams_start(s, 0, ask);
    streams_run(s);
    return stream;
}

/* ---- comparing ---- */

void stream_expect_done(const struct stream *stream)
{
    for (uint32_t i = 0; i < stream->choices_count; i++) {
        const struct outcome *o = &stream->choice[i];
        if (!o->ended) fail_msg("choice %u has not ended", i);
        if (o->finish != TANDEM_FINISH_STOP && o->finish != TANDEM_FINISH_LENGTH)
            fail_msg("choice %u ended with %s after %u tokens: %s: %s", i,
                     tandem_finish_name(o->finish), o->tokens_count, tandem_status_name(o->status),
                     o->reason);
    }
}

static bool outcome_differs(const struct outcome *a, const struct outcome *b, char *why,
                            size_t why_bytes)
{
    for (uint32_t i = 0; i < a->tokens_count && i < b->tokens_count; i++)
        if (a->tokens[i] != b->tokens[i] ||
            memcmp(&a->logprobs[i], &b->logprobs[i], sizeof(float)) != 0) {
            snprintf(why, why_bytes, "token %u is %u (%.9g) instead of %u (%.9g)", i, a->tokens[i],
                     (double)a->logprobs[i], b->tokens[i], (double)b->logprobs[i]);
            return true;
        }
    if (a->tokens_count != b->tokens_count || a->finish != b->finish) {
        snprintf(why, why_bytes, "%u tokens, %s (%s) instead of %u, %s", a->tokens_count,
                 tandem_finish_name(a->finish), a->reason, b->tokens_count,
                 tandem_finish_name(b->finish));
        return true;
    }
    if (a->text.size != b->text.size ||
        (a->text.size && memcmp(a->text.data, b->text.data, a->text.size) != 0)) {
        snprintf(why, why_bytes, "text \"%s\" instead of \"%s\"", a->text.data, b->text.data);
        return true;
    }
    return false;
}

bool stream_differs(const struct stream *stream, const struct stream *wanted, char *why,
                    size_t why_bytes)
{
    assert_int_equal(stream->choices_count, wanted->choices_count);
    size_t bytes = wanted->values_count * sizeof *wanted->values;
    if (stream->values_count != wanted->values_count ||
        (bytes && memcmp(stream->values, wanted->values, bytes) != 0)) {
        snprintf(why, why_bytes, "%zu values that are not the %zu wanted", stream->values_count,
                 wanted->values_count);
        return true;
    }
    for (uint32_t i = 0; i < stream->choices_count; i++)
        if (outcome_differs(&stream->choice[i], &wanted->choice[i], why, why_bytes)) return true;
    return false;
}

void stream_expect_equal(const struct stream *stream, const struct stream *wanted)
{
    char why[512];
    if (stream_differs(stream, wanted, why, sizeof why))
        fail_msg("%s (attempts %u, %s, %s): %s", stream->id, stream->attempts, stream->prefill_node,
                 stream->decode_node, why);
}
