#include "tests/sim/links_world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    LINKS_EVER = 20,
    FRAMES = 25, /* of one link */
    STEPS_MAX = 40000,
};
static const uint64_t RUN_END_NS = 40 * NS_PER_S;

static const struct dslink_times times = {
    .open_ns = 50 * MS,
    .join_ns = 120 * MS,
    .warm_ns = 80 * MS,
    .operation_ns = 80 * MS,
    .receive_ns = 30 * MS,
    .drain_ns = 60 * MS,
    .pause_ns = 2 * MS,
};
/* Three tries with all their waits. */
static const uint64_t SETUP_MAX_NS = 3 * (50 + 50 + 120 + 80 + 6 + 60) * MS;

static const struct transport_ops posted = {
    .name = "posted", .posted = true, .dialler_offers = true};
static const struct transport_ops placed = {.name = "placed", .acceptor_offers = true};

struct world *w;

void violated(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "seed %llu, %.3f ms: ", (unsigned long long)w->seed, (double)w->now_ns / 1e6);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

/* ---- the network ---- */

static bool post_mail(struct side *to, const uint8_t *bytes, size_t size)
{
    if (to->gone) return true; /* nobody hears it */
    if (to->count == QUEUE) return false;
    struct mail *m = &to->queue[(to->first + to->count++) % QUEUE];
    uint64_t at_ns = within(chance(5) ? 30 : 2);
    m->at_ns = to->mail_ns = at_ns > to->mail_ns ? at_ns : to->mail_ns;
    m->size = size;
    memcpy(m->bytes, bytes, size);
    return true;
}

/* The other side hears of the end behind all that was said. */
static void hang_up(struct side *x, uint32_t ms)
{
    struct side *y = other(x);
    uint64_t at_ns = within(ms);
    if (y->gone) return;
    if (at_ns < y->mail_ns) at_ns = y->mail_ns;
    if (at_ns < y->lost_ns) y->lost_ns = at_ns;
}

/* ---- one side ---- */

static bool tell(struct side *x, const struct dslink_act *act)
{
    if (x->dialler && (act->tell == CONTROL_PUSH || act->tell == CONTROL_WARM)) {
        bool allowed = dslink_state(x->s) == DSLINK_READY || dslink_state(x->s) == DSLINK_WARMING;
        HOLD(allowed, "an operation is announced in state %s",
             dslink_state_name(dslink_state(x->s)));
    }
    if (w->now_ns < x->lost_ns && !post_mail(other(x), act->bytes, act->size)) return false;
    if (x->dialler) x->told += act->tell == CONTROL_PUSH || act->tell == CONTROL_WARM;
    struct control m;
    if (act->tell == CONTROL_PUSH && !x->link->transport->posted)
        if (control_parse(act->bytes, act->size, &m) == OK) other(x)->slot_busy[m.slot] = true;
    return true;
}

static bool do_act(struct side *x, const struct dslink_act *act)
{
    uint32_t id;
    switch (act->kind) {
    case DSLINK_TELL:
        if (!tell(x, act)) return false;
        break;
    case DSLINK_OPEN:
        if (chance(3)) {
            disturb(x->link);
            dslink_broken(x->s, ERR_DEVICE, "no device", w->now_ns);
            return true;
        }
        endpoint_open(x);
        break;
    case DSLINK_JOIN:
        if (act->size == sizeof id) memcpy(&x->t.their_id, act->bytes, sizeof id);
        x->t.joins = true;
        x->t.join_ns += w->now_ns;
        break;
    case DSLINK_BEGIN: endpoint_begin(x, act); break;
    case DSLINK_CLOSE: endpoint_close(x, act->end); break;
    }
    dslink_done(x->s, act, w->now_ns);
    return true;
}

static bool read_mail(struct side *x)
{
    struct mail *m = &x->queue[x->first];
    bool arrives = x->count > 0 && m->at_ns <= x->lost_ns; /* else it is lost with the channel */
    if (x->held || dslink_state(x->s) == DSLINK_CLOSED) return false;
    if ((arrives ? m->at_ns : x->lost_ns) > w->now_ns) return false;
    if (arrives) {
        x->held = dslink_message(x->s, m->bytes, m->size, w->now_ns) == ERR_AGAIN;
        if (x->held) return true;
        x->first = (x->first + 1) % QUEUE;
        x->count--;
        return true;
    }
    dslink_lost(x->s, ERR_PEER, "the channel is gone", w->now_ns);
    w->totals->lost++;
    return true;
}

static void watch_state(struct side *x)
{
    enum dslink_state state = dslink_state(x->s);
    enum err e = dslink_error(x->s);
    HOLD(e != ERR_STATE && e != ERR_FORMAT, "%s is blamed: %s",
         x->dialler ? "an acceptor" : "a dialler", dslink_error_text(x->s));
    if (state == x->state) return;
    w->totals->ready += state == DSLINK_READY && x->dialler;
    if (state == DSLINK_READY)
        HOLD(w->now_ns - x->made_ns <= SETUP_MAX_NS || x->failed, "READY after too long");
    x->state = state;
    x->state_ns = w->now_ns;
}

/* What can be done at this time; whether something was. */
static bool step(struct side *x)
{
    struct dslink_act act;
    bool any = false;
    if (x->gone || x->device->frozen_until_ns > w->now_ns) return false;
    dslink_timer(x->s, w->now_ns);
    endpoint_take_turn(x);
    for (int i = 0; i < 100 && dslink_next(x->s, &act); i++) {
        HOLD(i < 99, "acts without end");
        if (!do_act(x, &act)) break;
        endpoint_take_turn(x);
        any = true;
    }
    any |= endpoint_ask(x);
    any |= read_mail(x);
    watch_state(x);
    return any;
}

/* ---- the work of both sides' callers ---- */

static bool send_inline(struct side *x)
{
    uint8_t bytes[CONTROL_HEADER_BYTES + sizeof(uint32_t)];
    uint32_t n = x->sent + 1;
    if (!dslink_may_send(x->s) || w->now_ns >= x->lost_ns) return false;
    control_frame_header(dslink_epoch(x->s), bytes);
    memcpy(bytes + CONTROL_HEADER_BYTES, &n, sizeof n);
    return post_mail(other(x), bytes, sizeof bytes);
}

static void write_slot(struct side *x)
{
    if (x->link->transport->posted)
        HOLD(!x->slot_busy[x->slot], "slot %u is written while it is sent", x->slot);
    else
        HOLD(!x->link->side[0].slot_busy[x->slot], "slot %u is written while its frame is held",
             x->slot);
    *endpoint_value(x, x->slot) = x->sent + 1;
}

static void work_of_dialler(struct side *x)
{
    if (x->has_slot) {
        uint32_t n = x->sent + 1;
        x->has_slot = false;
        if (dslink_state(x->s) == DSLINK_READY) {
            write_slot(x);
            x->sent++;
            w->totals->payloads++;
        }
        dslink_send_slot(x->s, &n, sizeof n, 1 + n);
    } else if (x->sent < FRAMES && draw(3) > 0) {
        x->has_slot = dslink_slot(x->s, &x->slot) == OK;
    } else if (x->sent < FRAMES && send_inline(x)) {
        x->sent++;
    }
}

static void work_of_acceptor(struct side *x)
{
    if (draw(4) == 0 && x->sent < FRAMES && send_inline(x)) x->sent++;
}

/* Frames are taken at once and released some time later. */
static void take_frame(struct side *x)
{
    struct dslink_frame f;
    uint32_t n;
    if (!dslink_front(x->s, &f)) return;
    HOLD(f.size == sizeof n, "a frame of %zu bytes", f.size);
    memcpy(&n, f.bytes, sizeof n);
    if (f.in_slot && !x->in_hands) {
        x->in_hands = true;
        HOLD(*endpoint_value(x, f.slot) == n, "frame %u with the payload of %u", n,
             *endpoint_value(x, f.slot));
        x->work_ns = within(8);
        return;
    }
    HOLD(n == x->received + 1, "frame %u comes after %u", n, x->received);
    HOLD(n <= other(x)->sent || other(x)->gone, "frame %u was not sent", n);
    if (f.in_slot) {
        HOLD(f.payload_bytes == 1 + n, "frame %u with %u bytes", n, f.payload_bytes);
        HOLD(*endpoint_value(x, f.slot) == n, "the payload of frame %u changed while it was held",
             n);
        x->slot_busy[f.slot] = x->in_hands = false;
    }
    x->received++;
    w->totals->frames++;
    if (!dslink_release(x->s)) return;
    x->held = false;
    x->first = (x->first + 1) % QUEUE;
    x->count--;
}

/* The caller is done with it. */
static void let_go(struct side *x)
{
    struct dslink_act act;
    if (x->hard_close) {
        dslink_let_go(x->s);
        if (dslink_state(x->s) != DSLINK_CLOSED) {
            dslink_drain(x->s, w->now_ns);
            for (int i = 0; i < 20 && dslink_next(x->s, &act) && act.kind != DSLINK_BEGIN; i++)
                if (!do_act(x, &act)) break;
            dslink_lost(x->s, ERR_CANCELLED, "closed", w->now_ns);
        }
        x->lost_ns = 0;
        while (dslink_next(x->s, &act))
            do_act(x, &act);
    }
    HOLD(!x->t.open, "the session has ended and its transport is open");
    HOLD(w->faults || dslink_error(x->s) == OK, "it fails without a fault: %s",
         dslink_error_text(x->s));
    if (dslink_error(x->s) != OK)
        disturb(x->link); /* perhaps of another link, for want of a turn */
    endpoint_give_turn(x);
    HOLD(x->turn.held == false && list_empty(&x->turn.waiting), "a turn is kept");
    const struct dslink_counts *c = dslink_counts(x->s);
    for (int s = 0; s < DSLINK_STATES; s++)
        for (int e = 0; e < DSLINK_EVENTS; e++)
            w->totals->met[x->dialler][s][e] += c->met[s][e];
    w->totals->stale += c->stale;
    w->totals->late += c->late;
    dslink_free(x->s);
    x->s = NULL;
    x->gone = true;
    hang_up(x, 3);
}

static bool has_work(const struct side *x)
{
    struct dslink_frame f;
    bool sends = x->sent < FRAMES && dslink_state(x->s) == DSLINK_READY;
    return x->has_slot || sends || dslink_front(x->s, &f);
}

/* Whether something was done. */
static bool caller(struct side *x)
{
    if (x->gone || x->device->frozen_until_ns > w->now_ns) return false;
    if (dslink_state(x->s) == DSLINK_CLOSED && !has_work(x) && !x->t.open) {
        x->hard_close = true; /* whatever it still has to tell: best effort */
        let_go(x);
        return true;
    }
    if (x->close_ns <= w->now_ns) {
        x->close_ns = TIME_NEVER;
        disturb(x->link);
        if (x->hard_close)
            let_go(x);
        else
            dslink_drain(x->s, w->now_ns);
        return true;
    }
    if (x->work_ns > w->now_ns || !has_work(x)) return false;
    x->work_ns = within(4);
    take_frame(x);
    if (x->dialler)
        work_of_dialler(x);
    else
        work_of_acceptor(x);
    return true;
}

/* ---- links and faults ---- */

static void make_side(struct link *l, bool dialler)
{
    struct side *x = &l->side[dialler];
    struct dslink_options o = {.dialler = dialler,
                               .transport = l->transport,
                               .slots_count = SLOTS,
                               .slot_bytes = 1000,
                               .times = times};
    *x = (struct side){.link = l,
                       .dialler = dialler,
                       .device = &w->device[l->devices[dialler]],
                       .lost_ns = TIME_NEVER,
                       .close_ns = chance(50) ? within(1500) : TIME_NEVER,
                       .hard_close = draw(2),
                       .made_ns = w->now_ns,
                       .state_ns = w->now_ns,
                       .state = dialler ? DSLINK_OPENING : DSLINK_ACCEPTING,
                       .work_ns = within(5)};
    if (x->close_ns != TIME_NEVER && draw(2)) x->close_ns = within(60); /* while it is set up */
    list_init(&x->turn.waiting);
    CHECK(dslink_new(&x->s, &o) == OK);
    dslink_start(x->s, w->now_ns);
}

static void dial(struct link *l)
{
    for (int side = 0; side < SIDES; side++)
        make_side(l, side);
    l->used = true;
    l->redial_ns = TIME_NEVER;
    w->links_ever++;
    w->totals->links++;
    if (chance(3)) { /* the other process is frozen, or never says a word */
        w->device[l->devices[0]].frozen_until_ns = within(200);
        for (int i = 0; i < w->links_count; i++)
            disturb(&w->link[i]);
    }
}

static void link_ended(struct link *l)
{
    const struct side *d = &l->side[1], *a = &l->side[0];
    HOLD(a->received <= d->sent && d->received <= a->sent, "more frames than were sent");
    if (!d->failed)
        HOLD(a->received == d->sent && d->received == a->sent,
             "frames are missing: %u of %u, %u of %u", a->received, d->sent, d->received, a->sent);
    l->used = false;
    bool again = w->links_ever < LINKS_EVER && w->now_ns < FAULTS_END_NS;
    l->redial_ns = again ? within(100) : TIME_NEVER;
}

/* The process is gone, and a new one in its place. */
static void crash(int device)
{
    w->totals->crashes++;
    for (int i = 0; i < w->links_count; i++)
        for (int side = 0; side < SIDES; side++) {
            struct link *l = &w->link[i];
            struct side *x = &l->side[side];
            if (!l->used || x->gone || x->device != &w->device[device]) continue;
            disturb(l);
            if (x->t.open) endpoint_close(x, TRANSPORT_BROKEN);
            dslink_free(x->s);
            x->s = NULL;
            x->gone = true;
            hang_up(x, draw(4) ? 3 : 300); /* a host that dies says nothing for a while */
        }
    turns_init(&w->device[device].turns);
    w->device[device].frozen_until_ns = 0;
}

static void fault(void)
{
    int device = (int)draw((uint32_t)w->devices_count);
    struct link *l = &w->link[draw((uint32_t)w->links_count)];
    switch (draw(3)) {
    case 0: crash(device); break;
    case 1:
        w->totals->freezes++;
        w->device[device].frozen_until_ns = within(draw(3) ? 20 : 250);
        for (int i = 0; i < w->links_count; i++)
            disturb(&w->link[i]);
        break;
    default: /* the control channel is cut: what is on its way is lost */
        if (!l->used) return;
        disturb(l);
        for (int side = 0; side < SIDES; side++)
            l->side[side].lost_ns = within(10);
    }
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t next_of_side(const struct side *x)
{
    if (x->gone) return TIME_NEVER;
    uint64_t at_ns = earlier(dslink_wake_at(x->s), x->close_ns);
    if (has_work(x)) at_ns = earlier(at_ns, x->work_ns);
    if (dslink_state(x->s) != DSLINK_CLOSED && !x->held) {
        at_ns = earlier(at_ns, x->lost_ns);
        if (x->count > 0) at_ns = earlier(at_ns, x->queue[x->first].at_ns);
    }
    if (dslink_opening(x->s)) at_ns = earlier(at_ns, x->t.open_ns);
    if (x->t.open && x->t.joins && dslink_joining(x->s) && x->t.join_ns > w->now_ns)
        at_ns = earlier(at_ns, x->t.join_ns);
    if (dslink_operating(x->s)) at_ns = earlier(at_ns, x->t.posting[x->t.ended % NUMBERS].end_ns);
    uint64_t thaw_ns = x->device->frozen_until_ns;
    return at_ns > thaw_ns ? at_ns : thaw_ns;
}

static uint64_t next_time(uint64_t fault_ns)
{
    uint64_t at_ns = fault_ns;
    for (int i = 0; i < w->links_count; i++) {
        struct link *l = &w->link[i];
        at_ns = earlier(at_ns, l->redial_ns);
        for (int side = 0; l->used && side < SIDES; side++)
            at_ns = earlier(at_ns, next_of_side(&l->side[side]));
    }
    return at_ns;
}

/* The sessions' own deadlines: nobody stays in a state that waits. */
static void watch_waits(const struct side *x)
{
    uint64_t held_up_ns =
        x->device->frozen_until_ns > x->state_ns ? x->device->frozen_until_ns : x->state_ns;
    enum dslink_state s = x->state;
    if (x->gone || s == DSLINK_READY || s == DSLINK_CLOSED) return;
    HOLD(w->now_ns <= held_up_ns + 125 * MS, "%s waits in state %s",
         x->dialler ? "a dialler" : "an acceptor", dslink_state_name(s));
}

static void settle(void)
{
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < w->links_count; i++) {
            struct link *l = &w->link[i];
            if (l->redial_ns <= w->now_ns) {
                dial(l);
                moved = true;
            }
            if (!l->used) continue;
            for (int side = 0; side < SIDES; side++) {
                while (step(&l->side[side]))
                    moved = true;
                moved |= caller(&l->side[side]);
                watch_waits(&l->side[side]);
            }
            if (l->side[0].gone && l->side[1].gone) link_ended(l);
        }
    }
}

/* All who are READY are to close, in order, once all is sent. */
static void wind_up(void)
{
    for (int i = 0; i < w->links_count; i++) {
        struct link *l = &w->link[i];
        struct side *d = &l->side[1];
        if (!l->used || d->gone || dslink_state(d->s) != DSLINK_READY) continue;
        bool all = d->sent == FRAMES && l->side[0].gone == false &&
                   l->side[0].received == d->sent && d->received == l->side[0].sent &&
                   l->side[0].sent == FRAMES;
        if (all) dslink_drain(d->s, w->now_ns);
    }
}

static bool any_used(void)
{
    for (int i = 0; i < w->links_count; i++)
        if (w->link[i].used || w->link[i].redial_ns != TIME_NEVER) return true;
    return false;
}

void links_run(uint64_t seed, bool faults, struct links_totals *totals)
{
    static struct world world;
    w = &world;
    world = (struct world){.seed = seed, .faults = faults, .totals = totals, .now_ns = NS_PER_S};
    int senders = 1 + (int)draw(3), receivers = 1 + (int)draw(3);
    w->devices_count = senders + receivers;
    w->links_count = 1 + (int)draw(LINKS_MAX);
    for (int i = 0; i < w->devices_count; i++)
        turns_init(&w->device[i].turns);
    for (int i = 0; i < w->links_count; i++) {
        struct link *l = &w->link[i];
        l->transport = draw(4) ? &posted : &placed;
        l->devices[1] = (int)draw((uint32_t)senders);
        l->devices[0] = senders + (int)draw((uint32_t)receivers);
        l->redial_ns = within(50);
    }
    uint64_t fault_ns = faults ? within(500) : TIME_NEVER;
    for (int i = 0;; i++) {
        HOLD(i < STEPS_MAX && w->now_ns < RUN_END_NS, "the run does not end");
        settle();
        wind_up();
        settle();
        if (!any_used()) return;
        uint64_t at_ns = next_time(fault_ns);
        HOLD(at_ns != TIME_NEVER, "all wait for each other for ever");
        if (at_ns > w->now_ns) w->now_ns = at_ns;
        if (fault_ns > w->now_ns) continue;
        fault();
        fault_ns = w->now_ns < FAULTS_END_NS ? within(400) + MS : TIME_NEVER;
    }
}
