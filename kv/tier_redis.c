/* Values on a server of the Redis protocol, under the keys
 *
 *     tandem:SPACE:KEY      both as 32 hexadecimal digits
 *
 * with a time to live that each use renews. Only plain commands: EXISTS, GETRANGE, SET, PEXPIRE or TOUCH, DEL.
 * GETRANGE because it has a limit: whatever lies under a key, no more than a value and a byte is sent.
 * Several commands go in one round trip; values are few enough at a time that little is sent in vain
 * when the deadline passes. What is not an entry of its key is deleted. */
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "kv/resp.h"
#include "kv/tier.h"
#include "kv/tier_entry.h"

enum { KEYS_AT_ONCE = 256, KEY_TEXT = 7 + 32 + 1 + 32 + 1 };
#define BYTES_AT_ONCE ((size_t)8 << 20)
/* A key's use is told again after so long, or a quarter of its time to live. */
#define TELL_NS (10 * NS_PER_S)
#define TELL_PART 4
enum { TOLD = 4096 }; /* keys that are remembered */

struct told {
    struct id128 key;
    uint64_t at_ns; /* 0: none */
};

struct kv_tier {
    struct resp *server;
    char *where;
    struct id128 space;
    char space_text[ID128_TEXT], range_end[24], ttl[24];
    size_t value_bytes;
    uint32_t values_at_once;
    uint64_t ttl_ms; /* 0: none */
    uint64_t removed, tell_ns;
    struct told told[TOLD]; /* by key: a later one of the same place replaces it */
};

static void redis_close(struct kv_tier *t)
{
    if (!t) return;
    resp_close(t->server);
    mem_free(t->where);
    mem_free(t);
}

static enum err redis_open(struct kv_tier **out, const struct kv_tier_options *options)
{
    *out = NULL;
    if (options->value_bytes == 0) return err_set(ERR_INVALID, "redis tier: values of 0 bytes");
    struct kv_tier *t = mem_new(sizeof *t);
    if (!t) return ERR_MEMORY;
    t->space = options->space;
    t->value_bytes = options->value_bytes;
    size_t at_once = BYTES_AT_ONCE / t->value_bytes;
    t->values_at_once = at_once > RESP_VALUES_MAX ? RESP_VALUES_MAX
                        : at_once > 0             ? (uint32_t)at_once
                                                  : 1;
    t->ttl_ms = (options->ttl_ns + NS_PER_MS - 1) / NS_PER_MS;
    t->tell_ns = options->ttl_ns > 0 && options->ttl_ns / TELL_PART < TELL_NS
                     ? options->ttl_ns / TELL_PART
                     : TELL_NS;
    id128_print(t->space, t->space_text);
    snprintf(t->range_end, sizeof t->range_end, "%zu", t->value_bytes);
    snprintf(t->ttl, sizeof t->ttl, "%llu", (unsigned long long)t->ttl_ms);
    const struct resp_options server = {options->where, options->user, options->password,
                                        t->value_bytes};
    enum err e = resp_open(&t->server, &server);
    if (e == OK && !(t->where = mem_copy_string(options->where))) e = ERR_MEMORY;
    if (e != OK) {
        redis_close(t);
        return e;
    }
    *out = t;
    return OK;
}

static const char *key_text(const struct kv_tier *t, struct id128 key, char text[KEY_TEXT])
{
    char digits[ID128_TEXT];
    id128_print(key, digits);
    snprintf(text, KEY_TEXT, "tandem:%s:%s", t->space_text, digits);
    return text;
}

static enum err refused(const struct kv_tier *t, const struct resp_reply *r)
{
    const char *hint = strncmp(r->text, "NOAUTH", 6) == 0 ? ": it wants --kv-redis-password" : "";
    return err_set(strncmp(r->text, "OOM", 3) == 0 ? ERR_FULL : ERR_PEER,
                   "redis tier %s: the server says: %s%s", t->where, r->text, hint);
}

/* Sends one command for each key; yes[i]: the answer was a number above 0. An error that the server tells ends
 * nothing, as the other answers come all the same; the first one is returned. */
static enum err ask(struct kv_tier *t, const char *command, const char *argument,
                    const struct id128 *keys, uint32_t count, uint64_t deadline_ns, bool *yes)
{
    char key[KEY_TEXT];
    enum err first = OK;
    resp_begin(t->server);
    for (uint32_t i = 0; i < count; i++)
        resp_command(t->server, argument ? 3 : 2,
                     (const char *[]){command, key_text(t, keys[i], key), argument});
    enum err e = resp_send(t->server, deadline_ns);
    for (uint32_t i = 0; e == OK && i < count; i++) {
        struct resp_reply r;
        e = resp_reply(t->server, &r, NULL, deadline_ns);
        if (e != OK) break;
        yes[i] = r.kind == RESP_INTEGER && r.integer > 0;
        if (r.kind == RESP_ERROR && first == OK) first = refused(t, &r);
    }
    return e != OK ? e : first;
}

static enum err redis_has(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                          uint64_t deadline_ns, uint32_t *found)
{
    bool yes[KEYS_AT_ONCE];
    *found = 0;
    while (*found < count) {
        uint32_t here = count - *found < KEYS_AT_ONCE ? count - *found : KEYS_AT_ONCE, i = 0;
        enum err e = ask(t, "EXISTS", NULL, keys + *found, here, deadline_ns, yes);
        if (e != OK) return e;
        while (i < here && yes[i])
            i++;
        *found += i;
        if (i < here) break;
    }
    return OK;
}

static enum err redis_remove(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                             uint64_t deadline_ns)
{
    bool yes[KEYS_AT_ONCE];
    for (uint32_t done = 0; done < count;) {
        uint32_t here = count - done < KEYS_AT_ONCE ? count - done : KEYS_AT_ONCE;
        enum err e = ask(t, "DEL", NULL, keys + done, here, deadline_ns, yes);
        if (e != OK) return e;
        for (uint32_t i = 0; i < here; i++)
            t->removed += yes[i];
        done += here;
    }
    return OK;
}

/* --- what the server was told of --- */

static struct told *told_at(struct kv_tier *t, struct id128 key)
{
    return &t->told[key.lo % TOLD];
}

static bool was_told(struct kv_tier *t, struct id128 key, uint64_t now_ns)
{
    const struct told *p = told_at(t, key);
    return id128_equal(p->key, key) && p->at_ns > 0 && now_ns - p->at_ns < t->tell_ns;
}

static void note_told(struct kv_tier *t, struct id128 key, uint64_t now_ns)
{
    *told_at(t, key) = (struct told){key, now_ns};
}

/* Those that it has are used now. yes[i]: it has it. */
static enum err renew(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                      uint64_t deadline_ns, bool *yes)
{
    return t->ttl_ms > 0 ? ask(t, "PEXPIRE", t->ttl, keys, count, deadline_ns, yes)
                         : ask(t, "TOUCH", NULL, keys, count, deadline_ns, yes);
}

/* --- get --- */

enum answer { ANSWER_NONE, ANSWER_VALUE, ANSWER_WRONG };

/* What a key's GETRANGE is answered. An error of the server's is kept in *refusal, and counts as none. */
static enum err take_value(struct kv_tier *t, struct id128 key, void *value, uint64_t deadline_ns,
                           enum answer *answer, enum err *refusal)
{
    struct resp_reply r;
    *answer = ANSWER_NONE;
    enum err e = resp_reply(t->server, &r, value, deadline_ns);
    if (e != OK) return e;
    bool other = r.kind == RESP_ERROR && strncmp(r.text, "WRONGTYPE", 9) == 0;
    if (r.kind == RESP_ERROR && !other) *refusal = refused(t, &r);
    if (!value || r.kind == RESP_NIL || (r.kind == RESP_BYTES && r.bytes == 0)) return OK;
    if (other || r.kind == RESP_BYTES) *answer = ANSWER_WRONG;
    if (r.kind == RESP_BYTES && r.bytes == t->value_bytes &&
        kv_tier_entry_sound(value, t->value_bytes, t->space, key))
        *answer = ANSWER_VALUE;
    return OK;
}

/* One round trip: the leading values of these keys. *wrong: the one that ended them as it is not right, else
 * `count`. */
static enum err get_some(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         void *const *values, uint64_t deadline_ns, uint32_t *got, uint32_t *wrong)
{
    char key[KEY_TEXT];
    resp_begin(t->server);
    for (uint32_t i = 0; i < count; i++) {
        key_text(t, keys[i], key);
        resp_command(t->server, 4, (const char *[]){"GETRANGE", key, "0", t->range_end});
        if (t->ttl_ms > 0) resp_command(t->server, 3, (const char *[]){"PEXPIRE", key, t->ttl});
    }
    enum err e = resp_send(t->server, deadline_ns), refusal = OK;
    bool leading = true;
    for (uint32_t i = 0; e == OK && i < count; i++) {
        enum answer answer;
        struct resp_reply renewed;
        void *into = leading ? values[i] : NULL;
        e = take_value(t, keys[i], into, deadline_ns, &answer, &refusal);
        *got += answer == ANSWER_VALUE;
        if (answer == ANSWER_VALUE) note_told(t, keys[i], clock_now_ns());
        if (answer == ANSWER_WRONG) *wrong = i;
        leading &= answer == ANSWER_VALUE;
        if (e == OK && t->ttl_ms > 0) e = resp_reply(t->server, &renewed, NULL, deadline_ns);
    }
    return e != OK ? e : refusal;
}

static uint32_t values_at_once(const struct kv_tier *t, uint32_t left)
{
    return left < t->values_at_once ? left : t->values_at_once;
}

static enum err redis_get(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                          void *const *values, uint64_t deadline_ns, uint32_t *got)
{
    enum err e = OK;
    *got = 0;
    while (*got < count && e == OK) {
        uint32_t first = *got, here = values_at_once(t, count - first), some = 0, wrong = here;
        e = get_some(t, keys + first, here, values + first, deadline_ns, &some, &wrong);
        *got += some;
        if (e == OK && wrong < here) e = redis_remove(t, &keys[first + wrong], 1, deadline_ns);
        if (some < here) break;
    }
    return e;
}

/* --- put --- */

/* One round trip for those that it has not. have: [count], is completed. */
static enum err set_some(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         const void *const *values, uint64_t deadline_ns, bool *have)
{
    char key[KEY_TEXT];
    bool asked = false;
    resp_begin(t->server);
    for (uint32_t i = 0; i < count; i++) {
        if (have[i]) continue;
        resp_set(t->server, key_text(t, keys[i], key), values[i], t->ttl_ms);
        asked = true;
    }
    if (!asked) return OK;
    enum err e = resp_send(t->server, deadline_ns), refusal = OK;
    for (uint32_t i = 0; e == OK && i < count; i++) {
        struct resp_reply r;
        if (have[i]) continue;
        if ((e = resp_reply(t->server, &r, NULL, deadline_ns)) != OK) break;
        have[i] = r.kind == RESP_STATUS && strcmp(r.text, "OK") == 0;
        if (r.kind == RESP_ERROR && refusal == OK) refusal = refused(t, &r);
    }
    return e != OK ? e : refusal;
}

static enum err redis_put(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                          const void *const *values, uint64_t deadline_ns, uint32_t *kept)
{
    enum err e = OK;
    *kept = 0;
    while (*kept < count && e == OK) {
        uint32_t first = *kept, here = values_at_once(t, count - first), lead = 0;
        bool have[RESP_VALUES_MAX] = {false};
        e = renew(t, keys + first, here, deadline_ns, have);
        if (e == OK) e = set_some(t, keys + first, here, values + first, deadline_ns, have);
        while (lead < here && have[lead])
            note_told(t, keys[first + lead++], clock_now_ns());
        *kept += lead;
        if (e == OK && lead < here)
            e = err_set(ERR_PEER, "redis tier %s: a value was not taken", t->where);
    }
    return e;
}

/* --- touch --- */

/* Those that it was not told of lately, the first ones, in one round trip. */
static enum err redis_touch(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                            uint64_t deadline_ns)
{
    struct id128 stale[KEYS_AT_ONCE];
    bool yes[KEYS_AT_ONCE];
    uint32_t n = 0;
    uint64_t now_ns = clock_now_ns();
    for (uint32_t i = 0; i < count && n < KEYS_AT_ONCE; i++)
        if (!was_told(t, keys[i], now_ns)) stale[n++] = keys[i];
    if (n == 0) return OK;
    for (uint32_t i = 0; i < n; i++)
        note_told(t, stale[i], now_ns);
    return renew(t, stale, n, deadline_ns, yes);
}

static void redis_stats(const struct kv_tier *t, struct kv_tier_stats *stats)
{
    *stats = (struct kv_tier_stats){.removed = t->removed};
}

/* It is the business of all who share it, and asking for all of it no small one. */
static uint32_t redis_list(const struct kv_tier *t, uint32_t *place, struct id128 *keys,
                           uint32_t room)
{
    (void)t;
    (void)keys;
    (void)room;
    *place = KV_TIER_LIST_END;
    return 0;
}

const struct kv_tier_ops kv_tier_redis = {"redis",     redis_open,     redis_close,  redis_has,
                                          redis_get,   redis_put,      redis_remove, redis_stats,
                                          redis_touch, KV_TIER_SHARED, redis_list};
