/* A LOAD asks the tiers in their order for what is still lacking, and begins anew behind what one of them
 * gave: the blocks of a prompt may lie in several. A STORE goes in chunks of a few MB or less. Values pass through
 * a staging area, where they are checked before a byte goes to the pool, and sealed before one leaves. */
#include "kv/tier_work.h"

#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/smooth.h"
#include "kv/tier_rows.h"

/* A tier that was not worth it so often is tried: it may have become faster. */
#define RETRY_WORTH 32
/* Of a LOAD's deadline this part is left for the way back to the node, so that what was read by then is
 * there before the prompt goes on without it. */
#define RETURN_PART 8
#define STORE_DEADLINES 10
#define STORE_PART 4

/* ---- what is known of a tier ---- */

bool kv_tiers_worth(uint64_t bytes, uint64_t rate, uint64_t open_ns, uint32_t tokens,
                    uint32_t token_ns)
{
    if (rate == 0 || token_ns == 0) return true;
    double read_ns = (double)open_ns + (double)bytes / (double)rate * NS_PER_S;
    return read_ns < (double)tokens * token_ns;
}

static void average(_Atomic uint64_t *of, uint64_t value)
{
    atomic_store(of, smooth(atomic_load(of), value));
}

static void measure(_Atomic uint64_t *rate, uint64_t bytes, uint64_t ns)
{
    if (bytes > 0)
        average(rate, (uint64_t)((double)bytes * NS_PER_S / (double)(ns > 0 ? ns : 1)) | 1);
}

/* ---- LOAD ---- */

struct load {
    struct kv_tier_job *job;
    uint64_t deadline_ns;
    uint32_t lacks[KV_TIERS_MAX]; /* this tier has not this block; UINT32_MAX: not asked */
    uint32_t from[KV_TIERS_MAX];  /* blocks that it gave */
    bool broken;                  /* the pool cannot be written, or not any more */
};

/* An entry that is not what it should be goes. */
static void remove_wrong(struct kv_tier_work *w, struct tier_row *r, const struct id128 *key,
                         uint64_t deadline_ns)
{
    tier_row_note_wrong(r, atomic_load(&r->counts.wrong) + 1);
    if (r->ops->kind == KV_TIER_SHARED) tier_row_tell(r, *key, true);
    tier_row_called(r);
    enum err e = tier_row_returned(r, &r->write, r->ops->remove(r->tier, key, 1, deadline_ns));
    if (e != OK) tier_row_note(w, r, &r->write, e);
}

/* How many of the values that were read for block `first` on are right and in the pool. */
static uint32_t take(struct kv_tier_work *w, struct tier_row *r, struct load *l, uint32_t first,
                     uint32_t got)
{
    const struct kv_tier_job *job = l->job;
    for (uint32_t i = 0; i < got; i++) {
        uint32_t at = first + i;
        struct kv_tier_name name = kv_tier_job_name_of(job, at);
        if (!kv_tier_entry_check(w->value[i], w->value_bytes, w->options.space, &name)) {
            remove_wrong(w, r, kv_tier_job_keys(job, at), l->deadline_ns);
            return i;
        }
        const struct kv_tier_bytes *b = &w->options.bytes;
        l->broken = !kv_tier_job_touch(job);
        if (l->broken) return i;
        enum err e = b->write(b->ctx, job->op.blocks[at], kv_tier_entry_kv(w->value[i]));
        kv_tier_job_leave(job);
        l->broken = e != OK; /* the device says so itself */
        if (l->broken) return i;
    }
    return got;
}

/* So many values at once that they are expected within half of what is left, or one if that is expected in time:
 * who is late with one may lose the others (a server's answer), and what has come counts. */
static uint32_t chunk_of(const struct kv_tier_work *w, const struct tier_row *r, uint64_t left_ns)
{
    double rate = (double)atomic_load(&r->counts.read_rate);
    double n = rate * (double)left_ns / (2.0 * NS_PER_S * (double)w->value_bytes);
    return rate == 0 || n >= w->chunk ? w->chunk : n >= 1 ? (uint32_t)n : n >= 0.5;
}

/* Reads up to `count` blocks from `first` on; returns how many are in the pool. */
static uint32_t read_some(struct kv_tier_work *w, struct tier_row *r, struct load *l,
                          uint32_t first, uint32_t count)
{
    uint32_t done = 0, got, good;
    do {
        uint64_t began_ns = kv_tier_work_now(w);
        uint32_t n = chunk_of(w, r, l->deadline_ns > began_ns ? l->deadline_ns - began_ns : 0);
        if (n == 0 && done > 0) break;
        n = n == 0 ? 1 : n > count - done ? count - done : n;
        got = 0;
        tier_row_called(r);
        enum err e = tier_row_returned(r, &r->read,
                                       r->ops->get(r->tier, kv_tier_job_keys(l->job, first + done),
                                                   n, w->value, l->deadline_ns, &got));
        uint64_t bytes = got * w->value_bytes;
        measure(&r->counts.read_rate, bytes, kv_tier_work_now(w) - began_ns);
        atomic_fetch_add(&r->counts.read_bytes, bytes);
        if (e == ERR_TIMEOUT) atomic_fetch_add(&r->counts.late, 1);
        /* As far as it came in time it did what it can. */
        tier_row_note(w, r, &r->read, e == ERR_TIMEOUT && got > 0 ? OK : e);
        good = take(w, r, l, first + done, got);
        done += good;
        l->job->bytes += good * w->value_bytes;
        l->job->more = e == ERR_TIMEOUT && got > 0 && good == got;
        if (e != OK || got < n || good < got) return done;
    } while (done < count && kv_tier_work_now(w) < l->deadline_ns);
    l->job->more = done < count;
    return done;
}

static bool worth(struct kv_tier_work *w, struct tier_row *r, const struct kv_tier_op *op,
                  uint32_t n)
{
    if (kv_tiers_worth(n * w->value_bytes, atomic_load(&r->counts.read_rate),
                       atomic_load(&r->counts.open_ns), n * BLOCK_TOKENS, op->token_ns)) {
        r->not_worth_now = 0;
        return true;
    }
    atomic_fetch_add(&r->counts.not_worth, n);
    return ++r->not_worth_now % RETRY_WORTH == 0;
}

/* How many of these keys it says it has. */
static enum err ask(struct tier_row *r, struct kv_breaker *b, const struct id128 *keys,
                    uint32_t count, uint64_t deadline_ns, uint32_t *found)
{
    *found = 0;
    tier_row_called(r);
    return tier_row_returned(r, b, r->ops->has(r->tier, keys, count, deadline_ns, found));
}

/* What tier i gives from block `first` on. */
static uint32_t load_from(struct kv_tier_work *w, uint32_t i, struct load *l, uint32_t first)
{
    struct tier_row *r = &w->row[i];
    uint32_t count = l->job->op.count - first, found = 0;
    uint64_t now_ns = kv_tier_work_now(w);
    if (!r->tier || l->lacks[i] == first || !kv_breaker_lets(&r->read, now_ns)) return 0;
    enum err e = ask(r, &r->read, kv_tier_job_keys(l->job, first), count, l->deadline_ns, &found);
    average(&r->counts.open_ns, kv_tier_work_now(w) - now_ns);
    if (e == ERR_TIMEOUT) atomic_fetch_add(&r->counts.late, 1);
    /* That it finds something says nothing of reading it. */
    if (e != OK || found == 0) tier_row_note(w, r, &r->read, e);
    l->lacks[i] = first + found;
    atomic_fetch_add(&r->counts.misses, count - found);
    if (found == 0) return 0;
    if (!worth(w, r, &l->job->op, found)) {
        l->lacks[i] = first; /* as if it had them not */
        return 0;
    }
    uint64_t removed = atomic_load(&r->counts.removed);
    uint32_t done = read_some(w, r, l, first, found);
    l->lacks[i] = first + done;
    tier_row_publish(r);
    if (atomic_load(&r->counts.removed) > removed && l->job->unsure[i] == 0)
        l->job->unsure[i] = l->job->op.first_block + first + done + 1;
    atomic_fetch_add(&r->counts.hits, done);
    for (uint32_t k = 0; k < done && r->ops->kind == KV_TIER_SHARED; k++)
        tier_row_tell(r, *kv_tier_job_keys(l->job, first + k),
                      false); /* others' stores are not told here */
    return done;
}

/* The op's blocks, up to one that no tier gives. */
static void load_run(struct kv_tier_work *w, struct load *l)
{
    struct kv_tier_job *job = l->job;
    bool more = kv_tier_work_now(w) < l->deadline_ns;
    job->done = 0;
    memset(l->lacks, 0xff, sizeof l->lacks);
    while (more && job->done < job->op.count) {
        uint32_t before = job->done;
        for (uint32_t i = 0; i < w->options.tiers_count && job->done == before; i++) {
            uint32_t n = load_from(w, i, l, before);
            l->from[i] += n;
            job->done += n;
        }
        more = job->done > before && !l->broken && kv_tier_work_now(w) < l->deadline_ns;
    }
}

/* How many of the blocks from `first` on the tiers hold together, up to `count`. */
static uint32_t held_run(struct kv_tier_work *w, const struct load *l, uint32_t first,
                         uint32_t count)
{
    uint32_t done = 0, before;
    do {
        before = done;
        for (uint32_t i = 0; i < w->options.tiers_count && done < count; i++) {
            struct tier_row *r = &w->row[i];
            uint32_t found = 0;
            if (!r->tier || !kv_breaker_lets(&r->read, kv_tier_work_now(w))) continue;
            enum err e = ask(r, &r->read, kv_tier_job_keys(l->job, first + done), count - done,
                             l->deadline_ns, &found);
            if (e != OK) tier_row_note(w, r, &r->read, e);
            done += found;
        }
    } while (done > before && done < count && kv_tier_work_now(w) < l->deadline_ns);
    return done;
}

/* The longest start of the prompt whose window they hold; 0: none. A window's blocks are a run, of which one is
 * found at each window's length from the end. */
static uint32_t find_window(struct kv_tier_work *w, const struct load *l)
{
    const struct kv_tier_op *op = &l->job->op;
    uint32_t end = op->end_block, reach = kv_window_reach(op->window);
    uint32_t sinks = op->window.sinks / BLOCK_TOKENS;
    if (sinks > end) sinks = end;
    if (held_run(w, l, 0, sinks) < sinks) return 0;
    for (uint32_t at = end; at > 0 && kv_tier_work_now(w) < l->deadline_ns;) {
        uint32_t above = at;
        at = at > reach ? at - reach : 0;
        uint32_t n = at + held_run(w, l, at, above - at), gone = kv_tier_op_gone(op->window, n);
        if (n > at && (gone >= at || held_run(w, l, gone, at - gone) == at - gone)) return n;
    }
    return 0;
}

/* Blocks [first, end) of the prompt into the places from `place` on. */
static void load_range(struct kv_tier_work *w, struct load *l, uint32_t first, uint32_t end,
                       uint32_t place)
{
    struct kv_tier_job *job = l->job;
    const struct kv_tier_op op = job->op;
    job->op.first_block = first;
    job->op.count = end - first;
    job->op.blocks = op.blocks + place;
    load_run(w, l);
    job->op = op;
}

/* The sinks and the window before the end of n blocks are the places [0, places), which are filled in order. */
static void load_window(struct kv_tier_work *w, struct load *l)
{
    struct kv_tier_job *job = l->job;
    uint32_t filled = job->op.filled, n = filled > 0 ? job->op.end_block : find_window(w, l);
    uint32_t gone = kv_tier_op_gone(job->op.window, n), done = filled;
    uint32_t sinks = job->op.window.sinks / BLOCK_TOKENS, places;
    job->done = 0;
    if (n <= job->known) return; /* the node has as much */
    if (sinks > n) sinks = n;
    places = sinks + n - gone;
    /* Few blocks save computing all of the tokens before them. */
    uint64_t token_ns = (uint64_t)job->op.token_ns * (n - job->known) / places;
    job->op.token_ns = token_ns < UINT32_MAX ? (uint32_t)token_ns : UINT32_MAX;
    if (done < sinks) {
        load_range(w, l, done, sinks, done);
        done += job->done;
    }
    if (done >= sinks && done < places) {
        load_range(w, l, gone + done - sinks, n, done);
        done += job->done;
    }
    bool late = job->more || kv_tier_work_now(w) >= l->deadline_ns;
    job->more = late && done > filled && done < places;
    job->done = done;
    job->end_block = done > 0 ? n : 0;
}

static uint64_t load_deadline(const struct kv_tier_work *w, const struct kv_tier_op *op)
{
    return op->posted_ns + w->options.deadline_ns - w->options.deadline_ns / RETURN_PART;
}

void kv_tier_work_load(struct kv_tier_work *w, struct kv_tier_job *job, struct kv_tier_event *event)
{
    struct load l = {.job = job, .deadline_ns = load_deadline(w, &job->op)};
    if (kv_tier_work_now(w) < l.deadline_ns) {
        kv_tier_job_name(job, w->options.space);
        if (job->op.window.tokens > 0)
            load_window(w, &l);
        else
            load_run(w, &l);
    } else {
        atomic_fetch_add(&w->loads_late, 1);
    }
    for (uint32_t i = 0; i < w->options.tiers_count; i++)
        tier_row_publish(&w->row[i]);
    kv_tier_job_event(job, kv_tier_work_now(w), event);
    if (job->done > 0) memcpy(event->from, l.from, sizeof l.from);
    tier_rows_take_news(w, event);
}

/* How many of `count` keys from block `first` of the prompt on were looked at: at least one, unless it cannot go on. */
static uint32_t check_some(struct kv_tier_work *w, struct tier_row *r,
                           const struct kv_tier_job *job, uint32_t first, uint32_t count,
                           uint64_t deadline_ns)
{
    uint32_t got = 0;
    tier_row_called(r);
    enum err e = tier_row_returned(
        r, &r->read, r->ops->get(r->tier, job->key + first, count, w->value, deadline_ns, &got));
    if (e != OK && e != ERR_TIMEOUT) tier_row_note(w, r, &r->read, e);
    for (uint32_t i = 0; i < got; i++) {
        uint32_t at = first + i - job->op.first_block;
        struct kv_tier_name name = kv_tier_job_name_of(job, at);
        if (!kv_tier_entry_check(w->value[i], w->value_bytes, w->options.space, &name))
            remove_wrong(w, r, &job->key[first + i], deadline_ns);
    }
    return e != OK ? 0 : got < count ? got + 1 : got; /* one that it has not, or has removed now */
}

void kv_tier_work_check_rest(struct kv_tier_work *w, const struct kv_tier_job *job)
{
    uint64_t deadline_ns = load_deadline(w, &job->op), now_ns;
    for (uint32_t i = 0; i < w->options.tiers_count; i++) {
        struct tier_row *r = &w->row[i];
        uint32_t at = job->unsure[i], looked = 1;
        if (at == 0) continue;
        while (looked > 0 && at < job->names_count &&
               (now_ns = kv_tier_work_now(w)) < deadline_ns && kv_breaker_lets(&r->read, now_ns)) {
            uint32_t n = chunk_of(w, r, deadline_ns - now_ns), left = job->names_count - at;
            if (n == 0) break;
            looked = check_some(w, r, job, at, n < left ? n : left, deadline_ns);
            at += looked;
        }
        tier_row_publish(r);
    }
}

/* ---- STORE ---- */

/* How many of the chunk's blocks this tier holds already; all of them, if it is to be left alone. */
static uint32_t held_by(struct kv_tier_work *w, struct tier_row *r, const struct kv_tier_job *job,
                        uint32_t n, uint64_t deadline_ns, bool *asked)
{
    uint32_t found = 0;
    *asked = false;
    if (!r->tier || !kv_breaker_lets(&r->write, kv_tier_work_now(w))) return n;
    enum err e = ask(r, &r->write, kv_tier_job_keys(job, job->done), n, deadline_ns, &found);
    if (e != OK) {
        tier_row_note(w, r, &r->write, e);
        return n;
    }
    *asked = true;
    return found;
}

static uint32_t put(struct kv_tier_work *w, struct tier_row *r, const struct kv_tier_job *job,
                    uint32_t first, uint32_t n, uint64_t deadline_ns)
{
    uint32_t kept = 0;
    uint64_t began_ns = kv_tier_work_now(w);
    tier_row_called(r);
    enum err e =
        tier_row_returned(r, &r->write,
                          r->ops->put(r->tier, kv_tier_job_keys(job, job->done + first), n - first,
                                      (const void *const *)w->value + first, deadline_ns, &kept));
    uint64_t bytes = kept * w->value_bytes;
    measure(&r->counts.write_rate, bytes, kv_tier_work_now(w) - began_ns);
    atomic_fetch_add(&r->counts.written_bytes, bytes);
    tier_row_note(w, r, &r->write, e == ERR_TIMEOUT && kept > 0 ? OK : e);
    return kept;
}

/* Blocks [first, n) of the chunk as entries. */
static enum err seal(struct kv_tier_work *w, const struct kv_tier_job *job, uint32_t first,
                     uint32_t n)
{
    const struct kv_tier_bytes *b = &w->options.bytes;
    for (uint32_t i = first; i < n; i++) {
        uint32_t at = job->done + i;
        if (!kv_tier_job_touch(job)) return err_set(ERR_CANCELLED, "taken back");
        enum err e = b->read(b->ctx, job->op.blocks[at], kv_tier_entry_kv(w->value[i]));
        kv_tier_job_leave(job);
        if (e != OK) return e; /* the device says so itself */
        struct kv_tier_name name = kv_tier_job_name_of(job, at);
        kv_tier_entry_seal(w->value[i], w->value_bytes, w->options.space, &name);
    }
    return OK;
}

/* How many of the chunk's n blocks some tier holds in the end. */
static uint32_t store_chunk(struct kv_tier_work *w, struct kv_tier_job *job, uint32_t n)
{
    uint32_t held[KV_TIERS_MAX], first = n, kept = 0;
    bool asked[KV_TIERS_MAX];
    uint64_t deadline_ns = kv_tier_work_now(w) + STORE_DEADLINES * w->options.deadline_ns;
    for (uint32_t i = 0; i < w->options.tiers_count; i++) {
        held[i] = held_by(w, &w->row[i], job, n, deadline_ns, &asked[i]);
        if (held[i] < first) first = held[i];
    }
    if (seal(w, job, first, n) != OK) return 0;
    for (uint32_t i = 0; i < w->options.tiers_count; i++) {
        struct tier_row *r = &w->row[i];
        uint32_t all = held[i];
        if (!asked[i]) continue;
        if (all < n)
            all += put(w, r, job, held[i], n, deadline_ns);
        else
            tier_row_note(w, r, &r->write, OK);
        for (uint32_t k = 0; k < all; k++)
            tier_row_tell(r, *kv_tier_job_keys(job, job->done + k), false);
        if (all > kept) kept = all;
        job->bytes += (all - held[i]) * w->value_bytes;
        tier_row_publish(r);
    }
    return kept;
}

/* So many blocks at once that, by the rates of all tiers, a LOAD that comes meanwhile loses no more than a part of its
 * deadline. */
static uint32_t store_chunk_of(const struct kv_tier_work *w)
{
    double value_ns = 0;
    for (uint32_t i = 0; i < w->options.tiers_count; i++) {
        uint64_t rate = atomic_load(&w->row[i].counts.write_rate);
        if (rate > 0) value_ns += (double)w->value_bytes * NS_PER_S / (double)rate;
    }
    double n = value_ns > 0 ? (double)w->options.deadline_ns / STORE_PART / value_ns : w->chunk;
    return n >= w->chunk ? w->chunk : n < 1 ? 1 : (uint32_t)n;
}

bool kv_tier_work_store(struct kv_tier_work *w, struct kv_tier_job *job,
                        struct kv_tier_event *event)
{
    kv_tier_job_name(job, w->options.space);
    uint32_t left = job->op.count - job->done, n = store_chunk_of(w);
    if (n > left) n = left;
    uint32_t kept = store_chunk(w, job, n);
    job->done += kept;
    if (kept == n && job->done < job->op.count) return false;
    kv_tier_job_event(job, kv_tier_work_now(w), event);
    tier_rows_take_news(w, event);
    return true;
}

/* ---- what is of use ---- */

/* A prompt's KV is of use from its first block on, and what is behind a block is of none without it: all blocks up
 * to the op's last one are used, those included that the node has and nobody reads here, and the first is
 * to go last. With a window it is of use by its end: the sinks and the window are, as one. */
void kv_tier_work_used(struct kv_tier_work *w, struct kv_tier_job *job)
{
    const struct kv_tier_op *op = &job->op;
    if (!job->named || op->kind == KV_TIER_LIST || job->done == 0) return;
    struct kv_window window = op->kind == KV_TIER_LOAD ? op->window : op->of_use;
    uint32_t end = kv_tier_job_has_window(op) ? job->end_block : op->first_block + job->done;
    uint32_t gone = window.tokens > 0 ? kv_tier_op_gone(window, end) : 0;
    uint32_t sinks = window.sinks / BLOCK_TOKENS < end ? window.sinks / BLOCK_TOKENS : end;
    for (uint32_t i = 0; i < w->options.tiers_count; i++) {
        struct tier_row *r = &w->row[i];
        if (!r->tier || !kv_breaker_lets(&r->write, kv_tier_work_now(w))) continue;
        uint64_t deadline_ns = kv_tier_work_now(w) + w->options.deadline_ns;
        tier_row_called(r);
        enum err e = r->ops->touch(r->tier, job->key + gone, end - gone, deadline_ns);
        if (e == OK && sinks > 0) e = r->ops->touch(r->tier, job->key, sinks, deadline_ns);
        e = tier_row_returned(r, &r->write, e);
        if (e != OK) tier_row_note(w, r, &r->write, e);
    }
}

/* ---- LIST ---- */

void kv_tier_work_list(struct kv_tier_work *w, const struct kv_tier_job *job,
                       struct kv_tier_event *event)
{
    struct id128 keys[KV_TIER_LIST_MAX];
    uint32_t i = (uint32_t)(job->op.place >> 32), place = (uint32_t)job->op.place;
    struct tier_row *r = i < w->options.tiers_count ? &w->row[i] : NULL;
    kv_tier_job_event(job, kv_tier_work_now(w), event);
    uint32_t count = 0;
    if (r && r->tier)
        count = r->ops->list(r->tier, &place, keys, KV_TIER_LIST_MAX);
    else
        place = KV_TIER_LIST_END;
    for (uint32_t k = 0; k < count; k++)
        tier_row_tell(r, keys[k], false);
    if (place != KV_TIER_LIST_END)
        event->place = (uint64_t)i << 32 | place;
    else if (i + 1 < w->options.tiers_count)
        event->place = (uint64_t)(i + 1) << 32;
    else
        event->place = KV_TIER_PLACE_END;
    tier_rows_take_news(w, event);
}
