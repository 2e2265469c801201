/* waits: how long requests waited for nodes, and for which: since the router began, for status. The queue
 * waits for what its first request waits for. */
#include "common/clock.h"
#include "router/state.h"

static void settle(struct queue_waits *w, uint64_t now_ns)
{
    if (w->blocked_by != SCHED_PICKED) w->blocked_ns[w->blocked_by] += now_ns - w->since_ns;
    w->since_ns = now_ns;
}

void waits_note_blocked(struct router_core *core, uint64_t now_ns, enum sched_answer by)
{
    settle(&core->waits, now_ns);
    core->waits.blocked_by = by;
}

void waits_note_picked(struct router_core *core, uint64_t since_ns, uint64_t now_ns)
{
    core->waits.picked++;
    core->waits.waited_ns += now_ns - since_ns;
}

void waits_now(const struct router_core *core, uint64_t now_ns, struct queue_waits *waits)
{
    *waits = core->waits;
    if (core->queue.count > 0) settle(waits, now_ns);
}
