/* kv_tier_work: what the tier thread does, one op after the other, without thread and mailbox: kv/tiers.c
 * gives it those, tests a clock of their own.
 *
 *     struct kv_tier_work *work;
 *     if ((e = kv_tier_work_new(&work, &options)) != OK) return e;
 *     kv_tier_work_open(work, 0);                                      // each; any thread: it may hang
 *     if ((e = kv_tier_work_opened(work, 0, false)) != OK) return e;   // from here on one thread
 *     struct kv_tier_job *job = kv_tier_job_new(&op);                  // copies; any thread
 *     struct kv_tier_event event;
 *     kv_tier_work_load(work, job, &event);
 *     while (!kv_tier_work_store(work, job, &event)) ...               // a chunk each: LOADs go between
 *     kv_tier_work_used(work, job);
 *     kv_tier_work_check_rest(work, job);
 *     kv_tier_job_free(job);
 *     kv_tier_work_free(work);
 *
 * Rules: nothing is allocated after kv_tier_work_new but the news of an event. Owner: one thread; stats: any. */
#ifndef TANDEM_KV_TIER_WORK_H
#define TANDEM_KV_TIER_WORK_H

#include "kv/tier_job.h"

struct kv_tier_work;

enum err kv_tier_work_new(struct kv_tier_work **work, const struct kv_tiers_options *options);
/* Opens one of the tiers for the first time, any thread; then, when that has returned, the owner takes it.
 * ERR_IO: it cannot be used now, and kv_tier_work_reopen tries again; ERR_INVALID, ERR_MEMORY. `late`: others work
 * already, and routers were told what they hold. */
void kv_tier_work_open(struct kv_tier_work *work, uint32_t row);
enum err kv_tier_work_opened(struct kv_tier_work *work, uint32_t row, bool late);
void kv_tier_work_free(struct kv_tier_work *work); /* NULL is allowed */
/* The tiers, none of which is being opened; only stats are asked afterwards. */
void kv_tier_work_close(struct kv_tier_work *work);
uint64_t kv_tier_work_now(const struct kv_tier_work *work);
void kv_tier_work_load(struct kv_tier_work *work, struct kv_tier_job *job,
                       struct kv_tier_event *event);
/* True: it is over, and `event` says so. */
bool kv_tier_work_store(struct kv_tier_work *work, struct kv_tier_job *job,
                        struct kv_tier_event *event);
/* Of a job that is over, before it is freed: what it stands for counts as used. */
void kv_tier_work_used(struct kv_tier_work *work, struct kv_tier_job *job);
/* As well, of a LOAD to which a tier gave a wrong entry: what else that tier holds of the prompt behind it is read
 * and checked up to the LOAD's deadline. Else it would be believed, and be stored again one block a LOAD. */
void kv_tier_work_check_rest(struct kv_tier_work *work, const struct kv_tier_job *job);
void kv_tier_work_list(struct kv_tier_work *work, const struct kv_tier_job *job,
                       struct kv_tier_event *event);
/* Tries again to open what could not be opened, each after a pause of 1 s doubling to 60 s. */
void kv_tier_work_reopen(struct kv_tier_work *work);
uint64_t kv_tier_work_reopen_in(const struct kv_tier_work *work); /* ns; TIME_NEVER: all are open */
void kv_tier_work_stats(const struct kv_tier_work *work, struct kv_tiers_stats *stats);

#endif
