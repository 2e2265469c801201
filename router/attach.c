/* attach: which choices a node has, and the sums of them that the scheduler and the heartbeats use. */
#include <stdio.h>

#include "router/state.h"

void node_live_add(struct node *n, const struct choice *c)
{
    n->live_count++;
    n->live_hash += job_key_hash(choice_key(c));
}

static void node_live_remove(struct node *n, const struct choice *c)
{
    n->live_count--;
    n->live_hash -= job_key_hash(choice_key(c));
}

uint32_t choice_tokens(const struct choice *c)
{
    return c->request->prompt_count + c->generated_count;
}

void node_attach_prefill(struct choice *c, struct node *n, uint32_t tokens)
{
    c->prefill = n;
    c->prefill_told = false;
    c->window_held = tokens;
    n->sched.outstanding_tokens += c->window_held;
    if (c->under_share) n->sched.outstanding_under += c->window_held;
    list_push_back(&n->choices_prefill, &c->at_prefill);
    snprintf(c->prefill_name, sizeof c->prefill_name, "%s", n->hello.name);
}

void node_release_window(struct router_core *core, struct choice *c)
{
    if (!c->prefill || !c->window_held) return;
    c->prefill->sched.outstanding_tokens -= c->window_held;
    if (c->under_share) c->prefill->sched.outstanding_under -= c->window_held;
    c->window_held = 0;
    core->dispatch_wanted |= core->window_wanted;
}

void node_detach_prefill(struct router_core *core, struct choice *c)
{
    if (!c->prefill) return;
    node_release_window(core, c);
    if (c->prefill_told) node_live_remove(c->prefill, c);
    if (c->backfill) backfill_leave(c);
    list_remove(&c->at_prefill);
    c->prefill = NULL;
}

struct kv_window choice_window(const struct choice *c, struct kv_window of_model)
{
    const struct msg_submit *s = &c->request->submit;
    return s->kv_window ? (struct kv_window){s->kv_window, s->kv_sinks} : of_model;
}

void node_hold_blocks(struct choice *c)
{
    struct kv_window window = choice_window(c, (struct kv_window){c->decode->hello.kv_window, 0});
    uint32_t blocks = kv_window_blocks_kept(window, choice_tokens(c));
    uint32_t shared = c->fork ? fork_shared_blocks(c->request->prompt_count, window) : 0;
    blocks -= shared < blocks ? shared : blocks;
    c->decode->sched.blocks_used += blocks - c->blocks_held;
    c->blocks_held = blocks;
}

void node_attach_decode(struct choice *c, struct node *n)
{
    c->decode = n;
    c->blocks_held = 0;
    node_hold_blocks(c);
    n->sched.running++;
    node_live_add(n, c);
    list_push_back(&n->choices_decode, &c->at_decode);
    snprintf(c->decode_name, sizeof c->decode_name, "%s", n->hello.name);
}

void node_detach_decode(struct router_core *core, struct choice *c)
{
    if (!c->decode) return;
    c->decode->sched.blocks_used -= c->blocks_held;
    c->decode->sched.running--;
    c->blocks_held = 0;
    node_live_remove(c->decode, c);
    list_remove(&c->at_decode);
    c->decode = NULL;
    core->dispatch_wanted = true;
}

static void send_cancel(struct router_core *core, struct node *n, const struct choice *c,
                        const char *reason)
{
    struct msg m = {.kind = MSG_CANCEL, .cancel = {choice_key(c), reason}};
    registry_send(core, n->peer, &m);
}

/* Both nodes let go of this attempt; whatever they still say of it is dropped. */
void choice_cancel_nodes(struct router_core *core, struct choice *c, const char *reason)
{
    if (c->prefill && c->prefill_told) send_cancel(core, c->prefill, c, reason);
    if (c->decode) send_cancel(core, c->decode, c, reason);
    node_detach_prefill(core, c);
    node_detach_decode(core, c);
}
