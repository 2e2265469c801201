#include "proto/msg_fields.h"

#include <math.h>
#include <string.h>

#include "common/utf8.h"

/* Each table stands between a definition of C (the struct of msg.h or job.h) and W (protobuf-c's). */
#define ROW(type, c_name, w_name, min, max)                                                        \
    {                                                                                              \
#c_name, type, offsetof(C, c_name), 0, offsetof(W, w_name), 0, min, max, NULL              \
    }
#define ROW_COUNTED(type, f, count, min, max)                                                      \
    {                                                                                              \
#f, type, offsetof(C, f), offsetof(C, count), offsetof(W, f), 0, min, max, NULL            \
    }
#define ROW_ARRAY(type, f, count, min, max)                                                        \
    {                                                                                              \
#f, type, offsetof(C, f), offsetof(C, count), offsetof(W, f), offsetof(W, n_##f), min,     \
            max, NULL                                                                              \
    }
#define ROW_PART(f, required, p)                                                                   \
    {                                                                                              \
#f, FIELD_PART, offsetof(C, f), 0, offsetof(W, f), 0, required, 0, p                       \
    }

#define ANY UINT32_MAX
#define TOKENS_MAX JOB_TOKENS_MAX
#define BOOL(f) ROW(FIELD_BOOL, f, f, 0, 1)
#define U32(f, max) ROW(FIELD_U32, f, f, 0, max)
#define I32(f) ROW(FIELD_I32, f, f, 0, ANY)
#define U64(f) ROW(FIELD_U64, f, f, 0, ANY)
#define FLOAT(f) ROW(FIELD_FLOAT, f, f, 0, ANY)
#define ENUM(f, min, max) ROW(FIELD_ENUM, f, f, min, max)
#define NAME(f, min) ROW(FIELD_NAME, f, f, min, MSG_NAME_MAX)
#define STRING(f, max) ROW(FIELD_STRING, f, f, 0, max)
#define PROSE(f, max) ROW(FIELD_PROSE, f, f, 0, max)
#define BYTES(f) ROW_COUNTED(FIELD_BYTES, f, f##_bytes, 0, MSG_BYTES_MAX)
#define IDS(f, max) ROW_ARRAY(FIELD_IDS, f, f##_count, 0, max)
#define FLOATS(f, max) ROW_ARRAY(FIELD_FLOATS, f, f##_count, 0, max)
#define HASHES(f, max) ROW_ARRAY(FIELD_HASHES, f, f##_count, 0, max)
#define STRINGS(f, bytes, max) ROW_ARRAY(FIELD_STRINGS, f, f##_count, bytes, max)
#define ID(f) ROW(FIELD_ID, f, f, 0, 0)
#define KEY(f) ROW_PART(f, 1, &key_part)

#define PART(p, w, rows)                                                                           \
    static const struct part p##_part = {#p, &w, rows, sizeof rows / sizeof rows[0], 0}

#define C struct job_key
#define W Tandem__Key
static const struct field key_rows[] = {
    ROW(FIELD_U64, request.hi, hi, 0, ANY),
    ROW(FIELD_U64, request.lo, lo, 0, ANY),
    ROW(FIELD_CHOICE, choice, choice, 0, ANY),
    U32(attempt, ANY),
};
PART(key, tandem__key__descriptor, key_rows);
#undef C
#undef W

#define C struct kv_geometry
#define W Tandem__Geometry
/* The bounds keep the product of all, the bytes of a block, far below 2^64. */
static const struct field geometry_rows[] = {
    U32(layers_count, 4096), U32(kv_heads, 4096), U32(head_dim, 4096),
    U32(block_tokens, 4096), U32(layout, 255),    ENUM(dtype, DTYPE_NONE, DTYPE_BF16),
};
PART(geometry, tandem__geometry__descriptor, geometry_rows);
#undef C
#undef W

#define C struct node_load
#define W Tandem__Load
static const struct field load_rows[] = {
    U32(blocks_total, ANY),
    U32(blocks_free, ANY),
    U32(blocks_reserved, ANY),
    U32(blocks_active, ANY),
    U32(blocks_cached, ANY),
    U32(blocks_transfer, ANY),
    U32(running, ANY),
    U32(waiting, ANY),
    U32(waiting_tokens, ANY),
    U32(step_us, ANY),
    U32(token_ns, ANY),
    U32(slow_callbacks, ANY),
    U64(held_tokens),
    U64(wasted_slots),
    U64(contiguous_slots),
    U64(held_tokens_peak),
    U64(wasted_slots_peak),
    U64(contiguous_slots_peak),
    U64(forks),
    U64(fork_shared_blocks),
    U64(fork_copied_blocks),
    U64(preemptions),
    U64(returned_cached_tokens),
    U64(returned_computed_tokens),
    U64(handed_back),
    U32(host_block_ns, ANY),
    U32(disk_block_ns, ANY),
    U32(shared_block_ns, ANY),
    U32(tiers_broken, 7),
};
PART(load, tandem__load__descriptor, load_rows);
#undef C
#undef W

#define C struct sampling
#define W Tandem__Sampling
static const struct field sampling_rows[] = {
    FLOAT(temperature),
    U32(top_k, ANY),
    FLOAT(top_p),
    FLOAT(min_p),
    FLOAT(repetition_penalty),
    FLOAT(presence_penalty),
    FLOAT(frequency_penalty),
    U64(seed),
    BOOL(logprobs),
    U32(tops_count, JOB_TOPS_MAX),
    ROW_COUNTED(FIELD_BIAS, bias, bias_count, 0, JOB_BIAS_MAX),
};
PART(sampling, tandem__sampling__descriptor, sampling_rows);
#undef C
#undef W

#define C struct job
#define W Tandem__Job
static const struct field job_rows[] = {
    KEY(key),
    IDS(prompt, TOKENS_MAX),
    IDS(forwarded, TOKENS_MAX),
    U32(tokens_max, TOKENS_MAX),
    U32(tokens_min, TOKENS_MAX),
    IDS(stop_ids, JOB_STOP_IDS_MAX),
    ROW_PART(sampling, 1, &sampling_part),
    I32(priority),
    U64(tenant_salt),
    ENUM(kind, JOB_GENERATE, JOB_KINDS - 1),
    U32(age_ms, ANY),
    U32(preemptions, ANY),
    U32(kv_window, TOKENS_MAX),
    U32(kv_sinks, TOKENS_MAX),
    U64(tenant),
    U32(tenant_weight, ANY),
    U32(fair_lead, ANY),
    BOOL(cached_only),
};
PART(job, tandem__job__descriptor, job_rows);
#undef C
#undef W

#define C struct request_timing
#define W Tandem__Timing
static const struct field timing_rows[] = {
    U64(queue), U64(prefill), U64(transfer_tail), U64(ttft), U64(decode), U64(total),
};
PART(timing, tandem__timing__descriptor, timing_rows);
#undef C
#undef W

#define C struct msg_hello
#define W Tandem__Hello
static const struct field hello_rows[] = {
    ENUM(role, ROLE_PREFILL, ROLE_CLIENT),
    NAME(name, 1),
    PROSE(host, MSG_ADDRESS_MAX),
    PROSE(device, MSG_ADDRESS_MAX),
    PROSE(model, MSG_TEXT_MAX),
    U32(pid, ANY),
    ID(model_fingerprint),
    U64(numerics_id),
    ROW_PART(geometry, 0, &geometry_part),
    U32(vocab, 1u << 24),
    U32(context_max, TOKENS_MAX),
    U32(sequences_max, ANY),
    U32(window_tokens, ANY),
    U32(blocks_total, ANY),
    IDS(eos, JOB_STOP_IDS_MAX),
    STRINGS(addresses, MSG_ADDRESS_MAX, MSG_ADDRESSES_MAX),
    PROSE(pci, MSG_NAME_MAX),
    U32(numa, 65536),
    PROSE(cpus, MSG_TEXT_MAX),
    PROSE(cards, MSG_ADDRESS_MAX),
    U32(kv_window, ANY),
    U32(kv_ahead, ANY),
    ID(tokenizer_hash),
};
#undef C
#undef W

#define C struct msg_welcome
#define W Tandem__Welcome
static const struct field welcome_rows[] = {
    NAME(name, 1),     STRING(lifeline, MSG_ADDRESS_MAX), ID(lifeline_key), U32(heartbeat_ms, ANY),
    U32(dead_ms, ANY),
};
#undef C
#undef W

#define C struct msg_refuse
#define W Tandem__Refuse
static const struct field refuse_rows[] = {PROSE(reason, MSG_TEXT_MAX)};
#undef C
#undef W

#define C struct msg_heartbeat
#define W Tandem__Heartbeat
static const struct field heartbeat_rows[] = {
    BOOL(busy),     U64(progress),  U32(live_count, ANY),
    U64(live_hash), BOOL(draining), ROW_PART(load, 0, &load_part),
};
#undef C
#undef W

#define C struct msg_live
#define W Tandem__Live
static const struct field live_rows[] = {
    BOOL(answer),
    ROW_COUNTED(FIELD_KEYS, keys, keys_count, 0, MSG_LIVE_MAX),
};
#undef C
#undef W

#define C struct msg_reserve
#define W Tandem__Reserve
static const struct field reserve_rows[] = {ROW_PART(job, 1, &job_part), BOOL(local), BOOL(fork),
                                            U32(sibling, JOB_CHOICES_MAX)};
#undef C
#undef W

#define C struct msg_reserved
#define W Tandem__Reserved
static const struct field reserved_rows[] = {KEY(key), ID(ticket), U32(held_tokens, TOKENS_MAX)};
#undef C
#undef W

#define C struct msg_prefill
#define W Tandem__Prefill
static const struct field prefill_rows[] = {
    ROW_PART(job, 1, &job_part),
    ID(ticket),
    U32(held_tokens, TOKENS_MAX),
    STRINGS(addresses, MSG_ADDRESS_MAX, MSG_ADDRESSES_MAX),
};
#undef C
#undef W

#define C struct msg_first
#define W Tandem__First
static const struct field first_rows[] = {
    KEY(key),
    U32(index, TOKENS_MAX),
    ROW(FIELD_TOKEN, token, token, 1, 1),
    U32(cached_tokens, TOKENS_MAX),
    U64(queued_us),
    U64(compute_us),
};
#undef C
#undef W

#define C struct msg_prefilled
#define W Tandem__Prefilled
static const struct field prefilled_rows[] = {
    KEY(key),
    U32(cached_tokens, TOKENS_MAX),
    U64(queued_us),
    U64(compute_us),
    U64(transfer_tail_us),
    U64(transfer_bytes),
    NAME(link, 0),
    IDS(push_layer, MSG_PUSHES_MAX),
    IDS(push_computed_us, MSG_PUSHES_MAX),
    IDS(push_sent_us, MSG_PUSHES_MAX),
};
#undef C
#undef W

#define C struct msg_tokens
static const struct field tokens_rows[] = {
    {"runs", FIELD_RUNS, offsetof(C, runs), offsetof(C, runs_count), 0, 0, 0, MSG_PARTS_MAX, NULL},
};
#undef C

#define C struct msg_finished
#define W Tandem__Finished
static const struct field finished_rows[] = {
    KEY(key),
    ENUM(finish, FINISH_STOP, FINISH_ERROR),
    U32(tokens_count, TOKENS_MAX),
    U32(cached_tokens, TOKENS_MAX),
    U64(queued_us),
    U64(compute_us),
};
#undef C
#undef W

#define C struct msg_key
#define W Tandem__FinishedAck
static const struct field finished_ack_rows[] = {KEY(key)};
#undef C
#undef W

#define C struct msg_failed
#define W Tandem__Failed
static const struct field failed_rows[] = {
    KEY(key),
    ENUM(error, ERR_AGAIN, ERR_DEVICE),
    BOOL(retryable),
    PROSE(reason, MSG_TEXT_MAX),
};
#undef C
#undef W

#define C struct msg_cancel
#define W Tandem__Cancel
static const struct field cancel_rows[] = {KEY(key), PROSE(reason, MSG_TEXT_MAX)};
#undef C
#undef W

#define C struct msg_link
#define W Tandem__Link
static const struct field link_rows[] = {
    STRING(address, MSG_ADDRESS_MAX),
    NAME(state, 1),
    U32(tickets, ANY),
    U64(bytes),
    U64(rate),
    U64(failed_ms),
    PROSE(reason, MSG_TEXT_MAX),
};
#undef C
#undef W

#define C struct msg_blocks
#define W Tandem__Blocks
static const struct field blocks_rows[] = {
    U64(number),
    BOOL(cleared),
    HASHES(hashes, MSG_BLOCKS_MAX),
    IDS(what, MSG_BLOCKS_MAX),
};
#undef C
#undef W

#define C struct msg_resend
#define W Tandem__Resend
static const struct field resend_rows[] = {KEY(key), U32(from, TOKENS_MAX)};
#undef C
#undef W

#define C struct msg_submit
#define W Tandem__Submit
static const struct field submit_rows[] = {
    U64(ref),
    ID(id),
    U32(attempt, ANY),
    BYTES(text),
    IDS(tokens, TOKENS_MAX),
    ROW(FIELD_U32, choices, choices, 1, JOB_CHOICES_MAX),
    BOOL(seed_given),
    ROW_PART(sampling, 1, &sampling_part),
    U32(tokens_max, TOKENS_MAX),
    U32(tokens_min, TOKENS_MAX),
    BOOL(ignore_eos),
    IDS(stop_ids, JOB_STOP_IDS_MAX),
    STRINGS(stop, JOB_STOP_STRING_BYTES_MAX, JOB_STOP_STRINGS_MAX),
    BOOL(want_text),
    BOOL(echo_special),
    I32(priority),
    STRING(tenant, MSG_NAME_MAX),
    U32(deadline_ms, ANY),
    IDS(received, TOKENS_MAX),
    IDS(received_counts, JOB_CHOICES_MAX),
    ENUM(kind, JOB_GENERATE, JOB_KINDS - 1),
    U32(kv_window, TOKENS_MAX),
    U32(kv_sinks, TOKENS_MAX),
};
#undef C
#undef W

#define C struct msg_encoded
#define W Tandem__Encoded
static const struct field encoded_rows[] = {
    KEY(key),
    U32(index, TOKENS_MAX),
    U32(total, TOKENS_MAX),
    FLOATS(values, MSG_VALUES_MAX),
    IDS(tokens, MSG_VALUES_MAX),
};
#undef C
#undef W

#define C struct msg_accepted
#define W Tandem__Accepted
static const struct field accepted_rows[] = {
    U64(ref),
    ID(id),
    U64(seed),
    U32(prompt_tokens, TOKENS_MAX),
};
#undef C
#undef W

#define C struct msg_rejected
#define W Tandem__Rejected
static const struct field rejected_rows[] = {
    U64(ref),
    ENUM(error, ERR_AGAIN, ERR_DEVICE),
    U32(retry_ms, ANY),
    PROSE(reason, MSG_TEXT_MAX),
};
#undef C
#undef W

#define C struct msg_output
#define W Tandem__Output
static const struct field output_rows[] = {
    ID(id),
    U32(choice, JOB_CHOICES_MAX - 1),
    U32(index, TOKENS_MAX),
    ROW_COUNTED(FIELD_TOKENS, tokens, tokens_count, 0, MSG_TOKENS_MAX),
    BYTES(text),
    ENUM(finish, FINISH_NONE, FINISH_LENGTH),
};
#undef C
#undef W

#define C struct msg_done
#define W Tandem__Done
static const struct field done_rows[] = {
    ID(id),
    U32(choice, JOB_CHOICES_MAX - 1),
    ENUM(finish, FINISH_STOP, FINISH_ERROR),
    ENUM(error, OK, ERR_DEVICE),
    PROSE(reason, MSG_TEXT_MAX),
    U32(prompt_tokens, TOKENS_MAX),
    U32(completion_tokens, TOKENS_MAX),
    U32(cached_tokens, TOKENS_MAX),
    U32(attempts, ANY),
    ROW_PART(timing, 0, &timing_part),
    NAME(prefill_node, 0),
    NAME(decode_node, 0),
    U32(kv_window, TOKENS_MAX),
    U32(kv_sinks, TOKENS_MAX),
    BOOL(inexact),
};
#undef C
#undef W

#define C struct msg_query
#define W Tandem__Query
static const struct field query_rows[] = {
    U64(ref),
    ENUM(query, QUERY_STATUS, QUERY_KV),
    STRING(argument, MSG_NAME_MAX),
};
#undef C
#undef W

#define C struct msg_pin
#define W Tandem__Pin
static const struct field pin_rows[] = {
    U64(ref),      BOOL(remove),
    NAME(name, 1), STRING(tenant, MSG_NAME_MAX),
    BYTES(text),   IDS(tokens, TOKENS_MAX),
    U64(salt),
};
#undef C
#undef W

#define C struct msg_pinned
#define W Tandem__Pinned
static const struct field pinned_rows[] = {
    NAME(name, 1),
    STRING(tenant, MSG_NAME_MAX),
    U32(blocks, ANY),
};
#undef C
#undef W

#define C struct msg_answer
#define W Tandem__Answer
static const struct field answer_rows[] = {U64(ref), ENUM(error, OK, ERR_DEVICE), BYTES(text)};
#undef C
#undef W

#define MESSAGE(kind, f, w)                                                                        \
    [kind] = {#f, &tandem__##w##__descriptor, f##_rows, sizeof f##_rows / sizeof f##_rows[0],      \
              offsetof(struct msg, f)}

static const struct part messages[MSG_KINDS] = {
    MESSAGE(MSG_HELLO, hello, hello),
    MESSAGE(MSG_WELCOME, welcome, welcome),
    MESSAGE(MSG_REFUSE, refuse, refuse),
    MESSAGE(MSG_HEARTBEAT, heartbeat, heartbeat),
    MESSAGE(MSG_LIVE, live, live),
    [MSG_BYE] = {"bye", &tandem__bye__descriptor, NULL, 0, 0},
    MESSAGE(MSG_RESERVE, reserve, reserve),
    MESSAGE(MSG_RESERVED, reserved, reserved),
    MESSAGE(MSG_PREFILL, prefill, prefill),
    MESSAGE(MSG_FIRST, first, first),
    MESSAGE(MSG_PREFILLED, prefilled, prefilled),
    MESSAGE(MSG_TOKENS, tokens, tokens),
    MESSAGE(MSG_FINISHED, finished, finished),
    MESSAGE(MSG_FINISHED_ACK, finished_ack, finished_ack),
    MESSAGE(MSG_FAILED, failed, failed),
    MESSAGE(MSG_CANCEL, cancel, cancel),
    MESSAGE(MSG_RESEND, resend, resend),
    [MSG_DRAIN] = {"drain", &tandem__drain__descriptor, NULL, 0, 0},
    [MSG_DRAINED] = {"drained", &tandem__drained__descriptor, NULL, 0, 0},
    MESSAGE(MSG_SUBMIT, submit, submit),
    MESSAGE(MSG_ACCEPTED, accepted, accepted),
    MESSAGE(MSG_REJECTED, rejected, rejected),
    MESSAGE(MSG_OUTPUT, output, output),
    MESSAGE(MSG_DONE, done, done),
    MESSAGE(MSG_QUERY, query, query),
    MESSAGE(MSG_ANSWER, answer, answer),
    MESSAGE(MSG_LINK, link, link),
    MESSAGE(MSG_ENCODED, encoded, encoded),
    MESSAGE(MSG_BLOCKS, blocks, blocks),
    MESSAGE(MSG_PIN, pin, pin),
    MESSAGE(MSG_PINNED, pinned, pinned),
};

const struct part *msg_part(enum msg_kind kind)
{
    CHECK(kind > MSG_NONE && kind < MSG_KINDS);
    return &messages[kind];
}

const char *msg_kind_name(enum msg_kind kind)
{
    return kind > MSG_NONE && kind < MSG_KINDS ? messages[kind].name : "none";
}

static enum err check_number(const struct field *f, uint64_t value, enum err bad)
{
    if (value >= f->min && value <= f->max) return OK;
    return err_set(bad, "%s is %llu, allowed is %u to %u", f->name, (unsigned long long)value,
                   f->min, f->max);
}

enum err field_copy_number(const struct field *f, const char *from, char *to, enum err bad)
{
    uint32_t u32;
    float number;
    switch (f->type) {
    case FIELD_U64: memcpy(to, from, sizeof(uint64_t)); return OK;
    case FIELD_FLOAT:
        memcpy(&number, from, sizeof number);
        memcpy(to, from, sizeof number);
        return isfinite(number) ? OK : err_set(bad, "%s is not a number", f->name);
    default: /* U32, I32, ENUM, CHOICE */
        memcpy(&u32, from, sizeof u32);
        memcpy(to, from, sizeof u32);
        if (f->type == FIELD_I32) return OK;
        return f->type == FIELD_CHOICE ? field_check_choice(u32, bad) : check_number(f, u32, bad);
    }
}

static bool is_name(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '.' ||
           c == '_' || c == '-';
}

enum err field_check_string(const struct field *f, const char *s, enum err bad)
{
    size_t n = strnlen(s, (size_t)f->max + 1);
    if (n < f->min || n > f->max)
        return err_set(bad, "%s has %s%zu bytes, allowed is %u to %u", f->name,
                       n > f->max ? "at least " : "", n, f->min, f->max);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (f->type == FIELD_NAME ? !is_name(c) : c < 0x20 || c == 0x7f)
            return err_set(bad, "%s has the byte 0x%02x at %zu, %s", f->name, c, i,
                           f->type == FIELD_NAME ? "allowed are letters, digits, '.', '_' and '-'"
                                                 : "control characters are not allowed");
    }
    size_t valid = f->type == FIELD_STRING ? utf8_check(s, n) : n;
    if (valid < n) return err_set(bad, "%s is not UTF-8 at byte %zu", f->name, valid);
    return OK;
}

enum err field_check_items(const struct field *f, char *const *items, size_t count, enum err bad)
{
    if (count > f->max)
        return err_set(bad, "%s has %zu entries, at most %u", f->name, count, f->max);
    for (size_t i = 0; i < count; i++) {
        size_t n = items[i] ? strnlen(items[i], (size_t)f->min + 1) : 0;
        if (n == 0 || n > f->min)
            return err_set(bad, "%s %zu is %s, allowed is 1 to %u bytes", f->name, i,
                           n == 0 ? "empty" : "too long", f->min);
    }
    return OK;
}

enum err field_check_floats(const struct field *f, const float *v, size_t count, enum err bad)
{
    for (size_t i = 0; i < count; i++)
        if (!(v[i] <= 1.0f))
            return err_set(bad, "%s %zu is %g, at most 1", f->name, i, (double)v[i]);
    return OK;
}

enum err field_check_choice(uint32_t choice, enum err bad)
{
    if (choice < JOB_CHOICES_MAX || choice == CHOICE_ALL) return OK;
    return err_set(bad, "choice is %u, at most %d", choice, JOB_CHOICES_MAX - 1);
}

enum err field_check_token(const struct token_info *t, enum err bad)
{
    if (t->tops_count > JOB_TOPS_MAX)
        return err_set(bad, "a token with %u likeliest tokens, at most %d", t->tops_count,
                       JOB_TOPS_MAX);
    if (t->logprob > 1.0f) /* NaN: not asked for; minus infinity happens */
        return err_set(bad, "a log-probability of %g", (double)t->logprob);
    for (uint32_t i = 0; i < t->tops_count; i++)
        if (!(t->top[i].logprob <= 1.0f))
            return err_set(bad, "a log-probability of %g", (double)t->top[i].logprob);
    return OK;
}

static enum err check_received(const struct msg_submit *s, enum err bad)
{
    uint64_t sum = 0;
    uint32_t counts = s->received_counts_count;
    for (uint32_t i = 0; i < counts; i++)
        sum += s->received_counts[i];
    if (counts ? counts == s->choices : !s->received_count || s->choices == 1)
        if (counts == 0 || sum == s->received_count) return OK;
    return err_set(bad, "%u received tokens of %u choices, told apart by %u counts of %llu in all",
                   s->received_count, s->choices, counts, (unsigned long long)sum);
}

static enum err check_encoded(const struct msg_encoded *m, enum err bad)
{
    bool whole = m->index <= m->total && m->values_count <= m->total - m->index;
    if (whole && (m->tokens_count == 0 || m->tokens_count == m->values_count)) return OK;
    return err_set(bad, "%u numbers from %u on of %u, for %u tokens", m->values_count, m->index,
                   m->total, m->tokens_count);
}

static enum err check_blocks(const struct msg_blocks *b, enum err bad)
{
    if (b->hashes_count != b->what_count)
        return err_set(bad, "columns of %u and %u blocks", b->hashes_count, b->what_count);
    for (uint32_t i = 0; i < b->what_count; i++)
        if (b->what[i] >= BLOCK_GONE + TIERS)
            return err_set(bad, "what is %u, below %d is allowed", b->what[i], BLOCK_GONE + TIERS);
    return OK;
}

enum err msg_check_whole(const struct msg *m, enum err bad)
{
    const struct msg_prefilled *p = &m->prefilled;
    if (m->kind == MSG_PREFILLED && (p->push_layer_count != p->push_computed_us_count ||
                                     p->push_layer_count != p->push_sent_us_count))
        return err_set(bad, "columns of %u, %u and %u pushes", p->push_layer_count,
                       p->push_computed_us_count, p->push_sent_us_count);
    if (m->kind == MSG_BLOCKS) return check_blocks(&m->blocks, bad);
    if (m->kind == MSG_SUBMIT && m->submit.tokens_count && m->submit.text_bytes)
        return err_set(bad, "a prompt both as text and as token ids: give one of the two");
    if (m->kind == MSG_ENCODED) return check_encoded(&m->encoded, bad);
    return m->kind == MSG_SUBMIT ? check_received(&m->submit, bad) : OK;
}
