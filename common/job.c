#include "common/job.h"

static enum err check_float(const char *name, float v, float low, float high)
{
    if (v >= low && v <= high) return OK;
    return err_set(ERR_INVALID, "%s is %g, allowed is %g to %g", name, (double)v, (double)low,
                   (double)high);
}

static enum err check_ids(const char *name, const uint32_t *ids, uint32_t count, uint32_t vocab)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] >= vocab)
            return err_set(ERR_INVALID, "%s %u at place %u, the vocabulary has %u tokens", name,
                           ids[i], i, vocab);
    return OK;
}

static enum err sampling_check(const struct sampling *s, uint32_t vocab)
{
    enum err e;
    if ((e = check_float("temperature", s->temperature, 0.0f, 100.0f)) != OK) return e;
    if ((e = check_float("top_p", s->top_p, 0.0f, 1.0f)) != OK) return e;
    if ((e = check_float("min_p", s->min_p, 0.0f, 1.0f)) != OK) return e;
    if ((e = check_float("repetition_penalty", s->repetition_penalty, 0.01f, 100.0f)) != OK)
        return e;
    if ((e = check_float("presence_penalty", s->presence_penalty, -2.0f, 2.0f)) != OK) return e;
    if ((e = check_float("frequency_penalty", s->frequency_penalty, -2.0f, 2.0f)) != OK) return e;
    if (s->tops_count > JOB_TOPS_MAX)
        return err_set(ERR_INVALID, "top_logprobs is %u, at most %d", s->tops_count, JOB_TOPS_MAX);
    if (s->bias_count > JOB_BIAS_MAX)
        return err_set(ERR_INVALID, "logit_bias has %u entries, at most %d", s->bias_count,
                       JOB_BIAS_MAX);
    for (uint32_t i = 0; i < s->bias_count; i++) {
        if ((e = check_ids("logit_bias token", &s->bias[i].token, 1, vocab)) != OK) return e;
        if ((e = check_float("logit_bias", s->bias[i].bias, -100.0f, 100.0f)) != OK) return e;
    }
    return OK;
}

const char *job_kind_name(enum job_kind kind)
{
    static const char *const names[JOB_KINDS] = {"generate", "score", "embed last", "embed mean"};
    return names[kind];
}

/* Of those that draw nothing. */
static enum err kind_check(const struct job *job)
{
    const char *name;
    if (job->kind == JOB_GENERATE) return OK;
    if (job->kind >= JOB_KINDS)
        return err_set(ERR_INVALID, "kind is %d, at most %d", (int)job->kind, JOB_KINDS - 1);
    name = job_kind_name(job->kind);
    if (job->tokens_max > 0)
        return err_set(ERR_INVALID, "max_tokens is %u: a request to %s draws no token",
                       job->tokens_max, name);
    if (job->key.choice > 0)
        return err_set(ERR_INVALID, "n is above 1: a request to %s has one result", name);
    if (job->kind == JOB_SCORE && job->prompt_count < 2)
        return err_set(ERR_INVALID,
                       "the text has one token: a score needs two at least, for the first "
                       "has none before it");
    return OK;
}

static enum err check_cached_only(const struct job *job)
{
    if (!job->cached_only) return OK;
    if (job->tokens_max == 0 && job->kind == JOB_GENERATE && job->kv_window == 0 &&
        job->prompt_count % BLOCK_TOKENS == 0)
        return OK;
    return err_set(ERR_INVALID, "a job of cached blocks alone has whole ones, and wants no more");
}

static enum err check_window(const struct job *job)
{
    if (job->kv_window == 0)
        return job->kv_sinks == 0 ? OK : err_set(ERR_INVALID, "kv_sinks without a kv_window");
    if (job->kv_window > JOB_TOKENS_MAX)
        return err_set(ERR_INVALID, "kv_window is %u, at most %d", job->kv_window, JOB_TOKENS_MAX);
    if (job->kv_sinks % BLOCK_TOKENS != 0 || job->kv_sinks > JOB_TOKENS_MAX)
        return err_set(ERR_INVALID, "kv_sinks is %u, allowed are multiples of %d up to %d",
                       job->kv_sinks, BLOCK_TOKENS, JOB_TOKENS_MAX);
    if (job->tenant_salt == 0) return err_set(ERR_INVALID, "a kv_window without a salt of its own");
    return OK;
}

enum err job_check(const struct job *job, uint32_t vocab, uint32_t context_max)
{
    enum err e;
    if (id128_is_none(job->key.request)) return err_set(ERR_INVALID, "a request without id");
    if (job->key.choice >= JOB_CHOICES_MAX)
        return err_set(ERR_INVALID, "choice %u, at most %d", job->key.choice, JOB_CHOICES_MAX - 1);
    if (job->prompt_count == 0)
        return err_set(ERR_INVALID, "the prompt is empty: give at least one token");
    uint64_t have = (uint64_t)job->prompt_count + job->forwarded_count;
    if (have > context_max)
        return err_set(ERR_INVALID, "the prompt has %llu tokens, the context is %u",
                       (unsigned long long)have, context_max);
    if (job->tokens_max > JOB_TOKENS_MAX)
        return err_set(ERR_INVALID, "max_tokens is %u, at most %d", job->tokens_max,
                       JOB_TOKENS_MAX);
    if (job->forwarded_count && job->forwarded_count >= job->tokens_max)
        return err_set(ERR_INVALID, "%u tokens were generated of at most %u: nothing is left to do",
                       job->forwarded_count, job->tokens_max);
    if (job->stop_ids_count > JOB_STOP_IDS_MAX)
        return err_set(ERR_INVALID, "%u stop ids, at most %d", job->stop_ids_count,
                       JOB_STOP_IDS_MAX);
    if ((e = kind_check(job)) != OK) return e;
    if ((e = check_window(job)) != OK) return e;
    if ((e = check_cached_only(job)) != OK) return e;
    if ((e = check_ids("prompt token", job->prompt, job->prompt_count, vocab)) != OK) return e;
    if ((e = check_ids("generated token", job->forwarded, job->forwarded_count, vocab)) != OK)
        return e;
    if ((e = check_ids("stop id", job->stop_ids, job->stop_ids_count, vocab)) != OK) return e;
    return sampling_check(&job->sampling, vocab);
}

enum finish job_finish(const struct job *job, uint32_t index, uint32_t token, uint32_t context_max)
{
    if (index + 1 > job->tokens_min)
        for (uint32_t i = 0; i < job->stop_ids_count; i++)
            if (job->stop_ids[i] == token) return FINISH_STOP;
    if (index + 1 >= job->tokens_max) return FINISH_LENGTH;
    if ((uint64_t)job->prompt_count + index + 1 >= context_max) return FINISH_LENGTH;
    return FINISH_NONE;
}
