/* tier_rows: the tiers of a kv_tier_work, from their opening to their end: whether they answer, what they
 * hold and lose, what they have cost. What is read from them and written is kv/tier_work.c's.
 *
 *     struct tier_row *r = &w->row[i];
 *     if (!r->tier || !kv_breaker_lets(&r->read, kv_tier_work_now(w))) continue;
 *     tier_row_called(r);
 *     enum err e = tier_row_returned(r, &r->read, r->ops->get(r->tier, ...));
 *     tier_row_note(w, r, &r->read, e);
 *
 * Rules: each call of a tier is between called and returned: it may not return, and others see since when.
 * Owner: the one thread of the work; counts: any. */
#ifndef TANDEM_KV_TIER_ROWS_H
#define TANDEM_KV_TIER_ROWS_H

#include <stdatomic.h>

#include "kv/breaker.h"
#include "kv/tier_work.h"

enum {
    CHUNK_MAX = 64,  /* values at once */
    NEWS_MAX = 4096, /* of one op: a LIST has a quarter, a STORE two for each block and tier */
};

struct tier_counts {
    _Atomic uint64_t hits, misses, not_worth, late, failures, wrong;
    _Atomic uint64_t read_bytes, written_bytes, read_rate, write_rate, open_ns;
    _Atomic uint64_t entries_count, bytes, evicted, removed;
    _Atomic uint64_t
        opening_ns; /* since when it is being opened for the first time; 0: it is not */
    _Atomic bool broken;
};

struct tier_row {
    const struct kv_tier_ops *ops;
    struct kv_tier_options options;
    struct kv_tier *tier;  /* NULL: it could not be opened yet */
    struct kv_tier *fresh; /* what opening it led to: whose thread opens it, then the owner's */
    enum err fresh_error;
    char fresh_text[ERR_TEXT_MAX];
    bool opening; /* for the first time: not taken yet */
    struct kv_breaker open, read, write;
    struct tier_counts counts;
    uint32_t not_worth_now;
    struct kv_tier_work *work;
    const char *emptied; /* that the log has */
};

struct kv_tier_work {
    struct kv_tiers_options options;
    struct tier_row row[KV_TIERS_MAX];
    size_t value_bytes;
    uint32_t chunk;
    char *staging, *own_staging;
    void *value[CHUNK_MAX];
    struct kv_tier_news news[NEWS_MAX];
    uint32_t news_count;
    bool news_lost;
    _Atomic uint64_t loads_late;
    /* The call of a tier that is under way: of which row, and since when; 0: none. */
    _Atomic uint32_t called_row;
    _Atomic uint64_t called_ns;
};

/* A key came to it, or went. */
void tier_row_tell(struct tier_row *r, struct id128 key, bool gone);
void tier_rows_take_news(struct kv_tier_work *w, struct kv_tier_event *event);
void tier_row_publish(struct tier_row *r); /* what it keeps, into its counts */
/* So many entries were not right: failed their check here, or were found damaged by the tier itself. */
void tier_row_note_wrong(struct tier_row *r, uint64_t wrong);
void tier_row_called(struct tier_row *r);
/* `e`, or that it was stuck, which opens the breaker (NULL: no matter). */
enum err tier_row_returned(struct tier_row *r, struct kv_breaker *b, enum err e);
/* A call has ended so; the text of an error is still there. */
void tier_row_note(struct kv_tier_work *w, struct tier_row *r, struct kv_breaker *b, enum err e);

#endif
