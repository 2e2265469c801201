/* kv_tier_work: what the tier thread does, one op after the other, without thread and mailbox: kv/tiers.c
 * gives it those, tests a clock of their own.
 *
 *     struct kv_tier_work *work;
 *     if ((e = kv_tier_work_new(&work, &options)) != OK) return e;     // opens all tiers
 *     struct kv_tier_job *job = kv_tier_job_new(&op);                  // copies; any thread
 *     struct kv_tier_event event;
 *     kv_tier_work_load(work, job, &event);
 *     while (!kv_tier_work_store(work, job, &event)) ...               // a chunk each: LOADs go between
 *     kv_tier_job_free(job);
 *     kv_tier_work_free(work);
 *
 * Rules: nothing is allocated after kv_tier_work_new but the news of an event. Owner: one thread; stats: any. */
#ifndef TANDEM_KV_TIER_WORK_H
#define TANDEM_KV_TIER_WORK_H

#include "kv/tier_entry.h"
#include "kv/tiers.h"

struct kv_tier_work;

struct kv_tier_job {
    struct kv_tier_job *next; /* the thread's */
    struct kv_tier_op op;     /* its pointers point behind this struct */
    /* [keys_count] of the blocks' keys and, alike, digests; made at first use. */
    struct id128 *key;
    unsigned char (*digest)[KV_TIER_DIGEST_BYTES];
    uint32_t keys_count; /* count, or with a window all blocks */
    bool keyed;
    uint32_t known, end_block; /* LOAD with a window: blocks that the node has; the result */
    uint32_t done;             /* STORE: blocks that some tier holds */
    bool more;                 /* LOAD: as in the event */
    uint64_t bytes;
    uint32_t place;         /* among those that were posted */
    _Atomic uint32_t *held; /* enum kv_tier_held of that place; NULL: nobody takes it back */
};

/* Whose an op's blocks are: a tier's call may never return, and the node needs them. */
enum kv_tier_held {
    KV_TIER_UNUSED,
    KV_TIER_POSTED,  /* may be taken back: nobody touches its blocks now */
    KV_TIER_TOUCHED, /* a block is being read or written */
    KV_TIER_TAKEN    /* taken back: its blocks are not to be touched, and its event was given */
};
bool kv_tier_job_touch(const struct kv_tier_job *job); /* false: it was taken back */
void kv_tier_job_leave(const struct kv_tier_job *job);

struct kv_tier_job *kv_tier_job_new(const struct kv_tier_op *op); /* NULL: no memory */
void kv_tier_job_free(struct kv_tier_job *job);
/* Of a job that is over, or goes no further. */
void kv_tier_job_event(const struct kv_tier_job *job, uint64_t now_ns, struct kv_tier_event *event);

enum err kv_tier_work_new(struct kv_tier_work **work, const struct kv_tiers_options *options);
void kv_tier_work_free(struct kv_tier_work *work);  /* NULL is allowed */
void kv_tier_work_close(struct kv_tier_work *work); /* the tiers; only stats are asked afterwards */
uint64_t kv_tier_work_now(const struct kv_tier_work *work);
void kv_tier_work_load(struct kv_tier_work *work, struct kv_tier_job *job,
                       struct kv_tier_event *event);
/* True: it is over, and `event` says so. */
bool kv_tier_work_store(struct kv_tier_work *work, struct kv_tier_job *job,
                        struct kv_tier_event *event);
void kv_tier_work_list(struct kv_tier_work *work, const struct kv_tier_job *job,
                       struct kv_tier_event *event);
/* Tries again to open what could not be opened, each after a pause of 1 s doubling to 60 s. */
void kv_tier_work_reopen(struct kv_tier_work *work);
uint64_t kv_tier_work_reopen_in(const struct kv_tier_work *work); /* ns; TIME_NEVER: all are open */
void kv_tier_work_stats(const struct kv_tier_work *work, struct kv_tiers_stats *stats);

#endif
