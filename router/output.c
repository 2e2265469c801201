/* output: what a client gets of a choice: tokens with their text, and the end. */
#include "router/state.h"

void output_send(struct router_core *core, struct choice *c, uint32_t index,
                 const struct token_info *tokens, uint32_t count, enum finish finish)
{
    struct request *r = c->request;
    if (!r->client || (count == 0 && core->text.size == 0)) return;
    struct msg m = {.kind = MSG_OUTPUT,
                    .output = {.id = r->id,
                               .choice = c->index,
                               .index = index,
                               .tokens = tokens,
                               .tokens_count = count,
                               .text = core->text.data,
                               .text_bytes = (uint32_t)core->text.size,
                               .finish = finish}};
    registry_send(core, r->client->peer, &m);
}

static enum err add_text(struct router_core *core, struct choice *c, const char *text,
                         size_t length, bool *stopped)
{
    struct stop_shown shown = {text, length, STOP_NONE};
    enum err e = c->stop ? stop_push(c->stop, text, length, &shown) : OK;
    *stopped = e == OK && shown.hit != STOP_NONE;
    if (e != OK || !c->request->submit.want_text) return e;
    return buf_add(&core->text, shown.text, shown.length);
}

enum err output_add_token(struct router_core *core, struct choice *c, uint32_t token, bool *stopped)
{
    const char *text;
    size_t length;
    if (!c->stream) return OK;
    enum err e = stream_push(c->stream, token, &text, &length);
    return e == OK ? add_text(core, c, text, length, stopped) : e;
}

/* What stream and stop string matcher still hold back belongs to the text when it ends by itself. */
enum err output_flush(struct router_core *core, struct choice *c)
{
    enum err e;
    const char *text;
    size_t length;
    bool stopped;
    struct stop_shown shown;
    buf_clear(&core->text);
    if (!c->stream) return OK;
    if ((e = stream_finish(c->stream, &text, &length)) != OK) return e;
    if ((e = add_text(core, c, text, length, &stopped)) != OK) return e;
    if (!stopped && c->stop) {
        stop_finish(c->stop, &shown);
        if (c->request->submit.want_text &&
            (e = buf_add(&core->text, shown.text, shown.length)) != OK)
            return e;
    }
    output_send(core, c, c->generated_count, NULL, 0, FINISH_NONE);
    return OK;
}

void output_done(struct router_core *core, struct choice *c)
{
    struct request *r = c->request;
    if (!r->client) return;
    struct msg m = {.kind = MSG_DONE,
                    .done = {.id = r->id,
                             .choice = c->index,
                             .finish = c->finish,
                             .error = c->error,
                             .reason = c->reason,
                             .prompt_tokens = r->prompt_count,
                             .completion_tokens = c->generated_count,
                             .cached_tokens = c->cached_tokens,
                             .attempts = c->attempt + 1,
                             .timing = c->timing,
                             .prefill_node = c->prefill_name,
                             .decode_node = c->decode_name,
                             .kv_window = r->submit.kv_window,
                             .kv_sinks = r->submit.kv_sinks,
                             .inexact = core->cluster.inexact}};
    registry_send(core, r->client->peer, &m);
}
