#include "kv/tier_rows.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

enum { CHUNK_BYTES = 4 << 20 }; /* of values that go at once, or one */

/* ---- news ---- */

void tier_row_tell(struct tier_row *r, struct id128 key, bool gone)
{
    struct kv_tier_work *w = r->work;
    if (w->news_count == NEWS_MAX) {
        w->news_lost = true;
        return;
    }
    w->news[w->news_count++] = (struct kv_tier_news){kv_tier_key_hash(key), r->ops->kind, gone};
}

/* What goes while it is opened, perhaps on another thread, nobody was told of. */
static void on_gone(void *ctx, struct id128 key)
{
    struct tier_row *r = ctx;
    if (r->tier) tier_row_tell(r, key, true);
}

void tier_rows_take_news(struct kv_tier_work *w, struct kv_tier_event *event)
{
    size_t bytes = w->news_count * sizeof *w->news;
    event->news = bytes > 0 ? mem_new(bytes) : NULL;
    if (event->news) {
        memcpy(event->news, w->news, bytes);
        event->news_count = w->news_count;
    }
    event->news_lost = w->news_lost || (bytes > 0 && !event->news);
    w->news_count = 0;
    w->news_lost = false;
}

void kv_tier_event_free(struct kv_tier_event *event)
{
    mem_free(event->news);
    event->news = NULL;
    event->news_count = 0;
}

/* ---- calls, and how they end ---- */

uint64_t kv_tier_work_now(const struct kv_tier_work *w)
{
    return w->options.now_ns ? w->options.now_ns(w->options.now_ctx) : clock_now_ns();
}

void tier_row_note_wrong(struct tier_row *r, uint64_t wrong)
{
    uint64_t before = atomic_load(&r->counts.wrong);
    if (wrong <= before) return;
    if (before == 0)
        log_warn("kv_tier_wrong_entry", "tier=%s note=\"removed; counted from now on\"",
                 r->ops->name);
    atomic_store(&r->counts.wrong, wrong);
}

void tier_row_publish(struct tier_row *r)
{
    struct kv_tier_stats kept = {0};
    if (!r->tier) return;
    r->ops->stats(r->tier, &kept);
    if (kept.emptied && kept.emptied != r->emptied)
        log_warn("kv_tier_emptied", "tier=%s reason=\"%s\"", r->ops->name, kept.emptied);
    r->emptied = kept.emptied;
    atomic_store(&r->counts.entries_count, kept.entries_count);
    atomic_store(&r->counts.bytes, kept.bytes);
    atomic_store(&r->counts.evicted, kept.evicted);
    atomic_store(&r->counts.removed, kept.removed);
    tier_row_note_wrong(r, kept.removed); /* nothing else is removed */
    atomic_store(&r->counts.broken, r->read.pause_ns > 0 || r->write.pause_ns > 0);
}

void tier_row_called(struct tier_row *r)
{
    struct kv_tier_work *w = r->work;
    atomic_store(&w->called_row, (uint32_t)(r - w->row));
    atomic_store(&w->called_ns, kv_tier_work_now(w));
}

enum err tier_row_returned(struct tier_row *r, struct kv_breaker *b, enum err e)
{
    struct kv_tier_work *w = r->work;
    uint64_t took_ns = kv_tier_work_now(w) - atomic_exchange(&w->called_ns, 0);
    if (!b || took_ns < KV_TIERS_STUCK_NS) return e;
    b->failures = b->failures_max;
    return err_set(ERR_PEER, "a call took %llu ms", (unsigned long long)(took_ns / NS_PER_MS));
}

void tier_row_note(struct kv_tier_work *w, struct tier_row *r, struct kv_breaker *b, enum err e)
{
    const char *doing = b == &r->read ? "read" : "write";
    uint64_t now_ns = kv_tier_work_now(w), broke_ns = b->broke_ns;
    if (e != OK) atomic_fetch_add(&r->counts.failures, 1);
    if (e == ERR_FULL) b->failures = b->failures_max; /* sure, and not over in a moment */
    switch (kv_breaker_note(b, e == OK, now_ns)) {
    case KV_BREAKER_BROKE:
        log_warn("kv_tier_broken",
                 "tier=%s doing=%s error=%s reason=\"%s\" note=\"left alone, tried "
                 "again later\"",
                 r->ops->name, doing, err_name(e), err_text());
        break;
    case KV_BREAKER_BACK:
        log_info("kv_tier_back", "tier=%s doing=%s after_ms=%llu", r->ops->name, doing,
                 (unsigned long long)((now_ns - broke_ns) / NS_PER_MS));
        break;
    case KV_BREAKER_SAME: break;
    }
}

/* ---- opening ---- */

static void call_open(struct tier_row *r)
{
    r->fresh = NULL;
    r->fresh_error = r->ops->open(&r->fresh, &r->options);
    if (r->fresh_error != OK) snprintf(r->fresh_text, sizeof r->fresh_text, "%s", err_text());
}

/* What call_open has left. */
static enum err take_fresh(struct kv_tier_work *w, struct tier_row *r)
{
    bool ok = r->fresh_error == OK;
    r->tier = ok ? r->fresh : NULL;
    kv_breaker_note(&r->open, ok, kv_tier_work_now(w));
    atomic_store(&r->counts.broken, !ok);
    tier_row_publish(r);
    return ok ? OK : err_set(r->fresh_error, "%s", r->fresh_text);
}

static void make_rows(struct kv_tier_work *w)
{
    for (uint32_t i = 0; i < w->options.tiers_count; i++) {
        struct tier_row *r = &w->row[i];
        r->options = w->options.tier[i].options;
        r->options.value_bytes = w->value_bytes;
        r->options.space = w->options.space;
        r->options.on_gone = on_gone;
        r->options.gone_ctx = r;
        r->ops = w->options.tier[i].ops;
        r->work = w;
        r->opening = true;
        r->open.failures_max = 1;
        r->read.failures_max = r->write.failures_max = w->options.breaker_failures;
        atomic_store(&r->counts.broken, true);
    }
}

void kv_tier_work_open(struct kv_tier_work *w, uint32_t row)
{
    struct tier_row *r = &w->row[row];
    atomic_store(&r->counts.opening_ns, kv_tier_work_now(w));
    call_open(r);
}

enum err kv_tier_work_opened(struct kv_tier_work *w, uint32_t row, bool late)
{
    struct tier_row *r = &w->row[row];
    atomic_store(&r->counts.opening_ns, 0);
    r->opening = false;
    enum err e = take_fresh(w, r);
    if (late && e == OK) w->news_lost = true; /* routers do not know what it has */
    return e;
}

void kv_tier_work_reopen(struct kv_tier_work *w)
{
    for (uint32_t i = 0; i < w->options.tiers_count; i++) {
        struct tier_row *r = &w->row[i];
        uint64_t now_ns = kv_tier_work_now(w), broke_ns = r->open.broke_ns;
        if (r->tier || r->opening || !kv_breaker_lets(&r->open, now_ns)) continue;
        tier_row_called(r);
        call_open(r);
        tier_row_returned(r, NULL, OK);
        if (take_fresh(w, r) != OK) continue;
        w->news_lost = true;
        log_info("kv_tier_back", "tier=%s doing=open after_ms=%llu", r->ops->name,
                 (unsigned long long)((now_ns - broke_ns) / NS_PER_MS));
    }
}

uint64_t kv_tier_work_reopen_in(const struct kv_tier_work *w)
{
    uint64_t now_ns = kv_tier_work_now(w), at_ns = TIME_NEVER;
    for (uint32_t i = 0; i < w->options.tiers_count; i++) {
        const struct tier_row *r = &w->row[i];
        if (!r->tier && !r->opening && r->open.until_ns < at_ns) at_ns = r->open.until_ns;
    }
    return at_ns == TIME_NEVER ? TIME_NEVER : at_ns > now_ns ? at_ns - now_ns : 0;
}

/* ---- the work ---- */

size_t kv_tiers_staging_bytes(const struct kv_geometry *geometry)
{
    size_t value_bytes = kv_tier_entry_bytes(geometry);
    size_t chunk = CHUNK_BYTES / value_bytes;
    return value_bytes * (chunk == 0 ? 1 : chunk < CHUNK_MAX ? chunk : CHUNK_MAX);
}

enum err kv_tier_work_new(struct kv_tier_work **out, const struct kv_tiers_options *options)
{
    *out = NULL;
    const struct kv_tiers_options *o = options;
    if (o->tiers_count == 0 || o->tiers_count > KV_TIERS_MAX || o->deadline_ns == 0 ||
        o->breaker_failures == 0)
        return err_set(ERR_INVALID, "%u tiers (1 to %d), deadline and failures must be at least 1",
                       o->tiers_count, KV_TIERS_MAX);
    if (sodium_init() < 0)
        return err_set(ERR_IO, "libsodium cannot be used"); /* its fastest code */
    struct kv_tier_work *w = mem_new(sizeof *w);
    if (!w) return ERR_MEMORY;
    size_t staging_bytes = kv_tiers_staging_bytes(&o->geometry);
    w->options = *o;
    w->value_bytes = kv_tier_entry_bytes(&o->geometry);
    w->chunk = (uint32_t)(staging_bytes / w->value_bytes);
    w->staging = o->staging ? o->staging : (w->own_staging = mem_aligned(staging_bytes, 64));
    for (uint32_t i = 0; w->staging && i < w->chunk; i++)
        w->value[i] = w->staging + i * w->value_bytes;
    make_rows(w);
    if (!w->staging) {
        kv_tier_work_free(w);
        return ERR_MEMORY;
    }
    *out = w;
    return OK;
}

void kv_tier_work_close(struct kv_tier_work *w)
{
    for (uint32_t i = 0; i < w->options.tiers_count; i++) {
        struct tier_row *r = &w->row[i];
        if (!r->tier) continue;
        tier_row_called(r);
        r->ops->close(r->tier);
        tier_row_returned(r, NULL, OK);
        r->tier = NULL;
    }
}

void kv_tier_work_free(struct kv_tier_work *w)
{
    if (!w) return;
    kv_tier_work_close(w);
    mem_free(w->own_staging);
    mem_free(w);
}

/* ---- how they do ---- */

static uint32_t block_ns(const struct kv_tier_work *w, const struct tier_counts *c,
                         enum kv_tier_kind kind)
{
    static const uint64_t usual_rate[] = {
        [KV_TIER_HOST] = 8000000000, [KV_TIER_DISK] = 1000000000, [KV_TIER_SHARED] = 500000000};
    uint64_t rate = atomic_load(&c->read_rate);
    if (rate == 0) rate = usual_rate[kind];
    double ns = (double)w->value_bytes * NS_PER_S / (double)rate;
    return atomic_load(&c->broken) ? 0 : ns < 1 ? 1 : ns < 1e9 ? (uint32_t)ns : 1000000000;
}

void kv_tier_work_stats(const struct kv_tier_work *w, struct kv_tiers_stats *stats)
{
    *stats = (struct kv_tiers_stats){.rows_count = w->options.tiers_count,
                                     .loads_late = atomic_load(&w->loads_late)};
    uint64_t now_ns = kv_tier_work_now(w);
    for (uint32_t i = 0; i < stats->rows_count; i++) {
        const struct tier_counts *c = &w->row[i].counts;
        uint64_t opening_ns = atomic_load(&c->opening_ns);
        stats->row[i] = (struct kv_tier_row){
            .name = w->row[i].ops->name,
            .kind = w->row[i].ops->kind,
            .kept = {atomic_load(&c->entries_count), atomic_load(&c->bytes),
                     atomic_load(&c->evicted), atomic_load(&c->removed)},
            .hits = atomic_load(&c->hits),
            .misses = atomic_load(&c->misses),
            .not_worth = atomic_load(&c->not_worth),
            .late = atomic_load(&c->late),
            .failures = atomic_load(&c->failures),
            .wrong = atomic_load(&c->wrong),
            .read_bytes = atomic_load(&c->read_bytes),
            .written_bytes = atomic_load(&c->written_bytes),
            .read_rate = atomic_load(&c->read_rate),
            .write_rate = atomic_load(&c->write_rate),
            .broken = atomic_load(&c->broken),
        };
        stats->block_ns[w->row[i].ops->kind] = block_ns(w, c, w->row[i].ops->kind);
        if (opening_ns == 0) continue;
        stats->calling = w->row[i].ops->name;
        if (now_ns >= opening_ns + KV_TIERS_STUCK_NS) stats->row[i].stuck_ns = now_ns - opening_ns;
    }
    uint32_t row = atomic_load(&w->called_row);
    uint64_t since_ns = atomic_load(&w->called_ns);
    if (since_ns == 0) return;
    stats->calling = w->row[row].ops->name;
    if (now_ns < since_ns + KV_TIERS_STUCK_NS) return;
    stats->stuck_ns = stats->row[row].stuck_ns = now_ns - since_ns;
    stats->row[row].broken = true;
    memset(stats->block_ns, 0, sizeof stats->block_ns); /* the others wait for it */
}
