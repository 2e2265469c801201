#include "kv/tier_job.h"

#include <stdatomic.h>
#include <string.h>

#include "common/mem.h"

struct kv_tier_job *kv_tier_job_new(const struct kv_tier_op *op)
{
    bool window = kv_tier_job_has_window(op);
    uint32_t end = window ? op->end_block : op->first_block + op->count;
    uint32_t tokens_count = end * BLOCK_TOKENS;
    size_t names_bytes = end * (sizeof(struct id128) + KV_TIER_DIGEST_BYTES);
    struct kv_tier_job *job =
        mem_new(sizeof *job + names_bytes + (tokens_count + op->count) * sizeof(uint32_t));
    if (!job) return NULL;
    job->op = *op;
    job->key = (struct id128 *)(job + 1);
    job->digest = (unsigned char(*)[KV_TIER_DIGEST_BYTES])(job->key + end);
    uint32_t *ids = (uint32_t *)(void *)(job->digest + end);
    if (tokens_count > 0) memcpy(ids, op->tokens, tokens_count * sizeof *ids); /* LIST has none */
    if (op->count > 0) memcpy(ids + tokens_count, op->blocks, op->count * sizeof *ids);
    job->op.tokens = ids;
    job->op.blocks = ids + tokens_count;
    job->names_count = end;
    job->known = op->first_block;
    if (window) job->op.first_block = 0;
    return job;
}

void kv_tier_job_free(struct kv_tier_job *job)
{
    mem_free(job);
}

void kv_tier_job_name(struct kv_tier_job *job, struct id128 space)
{
    if (job->named) return;
    struct kv_tier_name name = kv_tier_name(space, job->op.salt);
    for (uint32_t i = 0; i < job->names_count; i++) {
        name = kv_tier_name_next(&name, job->op.tokens + (size_t)i * BLOCK_TOKENS);
        job->key[i] = name.key;
        memcpy(job->digest[i], name.digest, sizeof name.digest);
    }
    job->named = true;
}

struct kv_tier_name kv_tier_job_name_of(const struct kv_tier_job *job, uint32_t i)
{
    struct kv_tier_name name = {.key = job->key[job->op.first_block + i]};
    memcpy(name.digest, job->digest[job->op.first_block + i], sizeof name.digest);
    return name;
}

void kv_tier_job_event(const struct kv_tier_job *job, uint64_t now_ns, struct kv_tier_event *event)
{
    *event = (struct kv_tier_event){.id = job->op.id,
                                    .kind = job->op.kind,
                                    .count = job->done,
                                    .bytes = job->bytes,
                                    .ended_ns = now_ns,
                                    .end_block = job->end_block,
                                    .more = job->more};
}

bool kv_tier_job_touch(const struct kv_tier_job *job)
{
    uint32_t posted = KV_TIER_POSTED;
    return !job->held || atomic_compare_exchange_strong(job->held, &posted, KV_TIER_TOUCHED);
}

void kv_tier_job_leave(const struct kv_tier_job *job)
{
    if (job->held) atomic_store(job->held, KV_TIER_POSTED);
}
