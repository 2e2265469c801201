/* kv_tier_job: an op of kv/tiers.h while it is under way: its own copy of tokens and blocks, the names of the
 * prompt's blocks, and how far it has come.
 *
 *     struct kv_tier_job *job = kv_tier_job_new(&op);              // the loop thread
 *     kv_tier_job_name(job, space);                                // the tier thread, and all else
 *     const struct id128 *keys = kv_tier_job_keys(job, 0);         // of op.first_block …
 *     if (kv_tier_job_touch(job)) { ... a block of it ...; kv_tier_job_leave(job); }
 *     kv_tier_job_event(job, now_ns, &event);
 *     kv_tier_job_free(job);
 *
 * Rules: one allocation, at the beginning. Owner: who posts it, then the tier thread; `held` is of both. */
#ifndef TANDEM_KV_TIER_JOB_H
#define TANDEM_KV_TIER_JOB_H

#include "kv/tier_entry.h"
#include "kv/tiers.h"

/* Whose an op's blocks are: a tier's call may never return, and the node needs them. */
enum kv_tier_held {
    KV_TIER_UNUSED,
    KV_TIER_POSTED,  /* may be taken back: nobody touches its blocks now */
    KV_TIER_TOUCHED, /* a block is being read or written */
    KV_TIER_TAKEN    /* taken back: its blocks are not to be touched, and its event was given */
};

struct kv_tier_job {
    struct kv_tier_job *next; /* the thread's */
    struct kv_tier_op op;     /* its pointers point behind this struct */
    /* [names_count] of the prompt's blocks from its start, by kv_tier_job_name; LIST: none. */
    struct id128 *key;
    unsigned char (*digest)[KV_TIER_DIGEST_BYTES];
    uint32_t names_count;
    bool named;
    uint32_t known, end_block; /* LOAD with a window: blocks that the node has; the result */
    uint32_t done;             /* STORE: blocks that some tier holds */
    bool more;                 /* LOAD: as in the event */
    /* LOAD: behind the prompt's first block of which this tier had a wrong entry; 0: it had none. */
    uint32_t unsure[KV_TIERS_MAX];
    uint64_t bytes;
    uint32_t place;         /* among those that were posted */
    _Atomic uint32_t *held; /* enum kv_tier_held of that place; NULL: nobody takes it back */
};

struct kv_tier_job *kv_tier_job_new(const struct kv_tier_op *op); /* NULL: no memory */
void kv_tier_job_free(struct kv_tier_job *job);
void kv_tier_job_name(struct kv_tier_job *job, struct id128 space);
/* Of a job that is over, or goes no further. */
void kv_tier_job_event(const struct kv_tier_job *job, uint64_t now_ns, struct kv_tier_event *event);
bool kv_tier_job_touch(const struct kv_tier_job *job); /* false: it was taken back */
void kv_tier_job_leave(const struct kv_tier_job *job);

static inline bool kv_tier_job_has_window(const struct kv_tier_op *op)
{
    return op->kind == KV_TIER_LOAD && op->window.tokens > 0;
}
/* The keys from block op.first_block + i on. */
static inline const struct id128 *kv_tier_job_keys(const struct kv_tier_job *job, uint32_t i)
{
    return &job->key[job->op.first_block + i];
}
/* Of that block. */
struct kv_tier_name kv_tier_job_name_of(const struct kv_tier_job *job, uint32_t i);

#endif
