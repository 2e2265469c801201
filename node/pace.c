/* When the next step is planned: as late as keeps the device busy, and sometimes only after a stream that is
 * about to come (plan_begin_ns has the bounds).
 *
 * Who is waited for: the first stream here of a tenant, where others' streams run that came behind more of
 * their own tenant. A flood's streams are never waited for, and where nobody names a tenant nobody is. */
#include "node/state.h"

#include "common/smooth.h"

void pace_init(struct node_core *c)
{
    c->pace.due_ns = TIME_NEVER;
}

void pace_runs(struct node_core *c, uint64_t from_ns)
{
    c->pace.from_ns = from_ns;
}

static bool is_crowded(const struct node_core *c)
{
    for (const struct list_link *l = c->running.next; l != &c->running; l = l->next)
        if (list_member(l, struct sequence, place)->job.fair_lead > 0) return true;
    return false;
}

void pace_arriving(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    struct pace *p = &c->pace;
    s->arriving_ns = now_ns;
    bool light = s->job.fair_lead == 0 && !s->job.cached_only;
    if (!light || p->due_ns != TIME_NEVER || p->arrival_ns == 0 || !is_crowded(c)) return;
    p->awaited = s->ticket;
    p->due_ns = now_ns + p->arrival_ns;
}

void pace_arrived(struct node_core *c, uint64_t now_ns, const struct sequence *s, bool committed)
{
    struct pace *p = &c->pace;
    if (committed && s->arriving_ns != 0)
        p->arrival_ns = smooth(p->arrival_ns, now_ns - s->arriving_ns);
    if (id128_equal(s->ticket, p->awaited)) p->due_ns = TIME_NEVER;
}

bool pace_waits(struct node_core *c, uint64_t now_ns)
{
    struct pace *p = &c->pace;
    bool may = p->due_ns != TIME_NEVER && !list_empty(&c->running) && c->steps_made >= p->again;
    struct plan_pace facts = {p->from_ns, c->flights_busy > 0, c->step_ns, TIME_NEVER};
    uint64_t usual_ns = plan_begin_ns(&facts), begin_ns = usual_ns;
    if (may) {
        facts.due_ns = p->due_ns;
        begin_ns = plan_begin_ns(&facts);
    }
    if (now_ns < begin_ns) {
        p->holding |= now_ns >= usual_ns;
        if (begin_ns < c->wake_ns) c->wake_ns = begin_ns;
        return true;
    }
    if (p->holding) {
        c->counts.held_steps++;
        p->again = c->steps_made + PLAN_HOLD_EVERY;
    }
    p->holding = false;
    return false;
}
