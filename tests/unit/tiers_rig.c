#include "tests/unit/tiers_rig.h"

#include <string.h>

#include "common/log.h"
#include "common/mem.h"

const struct kv_geometry geometry = {2, 1, 4, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_F32};
static const struct id128 space = {11, 12};

/* ---- the test's clock, pool and tiers ---- */

_Atomic uint64_t clock_ns;
static uint64_t clock_of(void *ctx)
{
    (void)ctx;
    return clock_ns;
}

unsigned char *pool;
uint32_t pool_writes;

static enum err pool_read(void *ctx, uint32_t block, void *host)
{
    (void)ctx;
    memcpy(host, pool + block * kv_block_bytes(&geometry), kv_block_bytes(&geometry));
    return OK;
}
static enum err pool_write(void *ctx, uint32_t block, const void *host)
{
    (void)ctx;
    memcpy(pool + block * kv_block_bytes(&geometry), host, kv_block_bytes(&geometry));
    pool_writes++;
    return OK;
}

struct fake fake[KV_TIERS_MAX];

static struct fake *fake_of(struct kv_tier *t)
{
    return (struct fake *)(void *)t;
}
static uint32_t fake_find(const struct fake *f, struct id128 key)
{
    uint32_t i = 0;
    while (i < f->count && !id128_equal(f->entry[i].key, key))
        i++;
    return i;
}
static void fake_hang(struct fake *f)
{
    sem_t *hangs = f->hangs;
    if (!hangs) return;
    sem_post(f->hung);
    sem_wait(hangs);
}
static enum err fake_open(struct kv_tier **tier, const struct kv_tier_options *o)
{
    struct fake *f = &fake[o->where[0] - '0'];
    f->open_calls++;
    fake_hang(f);
    if (f->broken == ERR_INVALID || f->broken == ERR_IO)
        return err_set(f->broken, "cannot be opened");
    f->value_bytes = o->value_bytes;
    *tier = (struct kv_tier *)(void *)f;
    return OK;
}
static void fake_close(struct kv_tier *t)
{
    (void)t;
}
static enum err fake_call(struct fake *f)
{
    clock_ns += f->call_ns;
    return f->broken == OK ? OK : err_set(f->broken, "planted");
}
static enum err fake_has(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         uint64_t deadline_ns, uint32_t *found)
{
    struct fake *f = fake_of(t);
    (void)deadline_ns;
    f->has_calls++;
    *found = 0;
    enum err e = fake_call(f);
    while (e == OK && *found < count && fake_find(f, keys[*found]) < f->count)
        ++*found;
    return e;
}
static void fake_drop(struct fake *f, uint32_t at)
{
    mem_free(f->entry[at].value);
    f->entry[at] = f->entry[--f->count];
    f->removed++;
}
static enum err fake_get(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         void *const *values, uint64_t deadline_ns, uint32_t *got)
{
    struct fake *f = fake_of(t);
    f->get_calls++;
    if (count > f->largest_get) f->largest_get = count;
    fake_hang(f);
    *got = 0;
    enum err e = fake_call(f);
    if (f->loses) return e;
    for (; e == OK && *got < count; ++*got) {
        uint32_t at = fake_find(f, keys[*got]);
        if (at == f->count) break;
        clock_ns += f->value_ns;
        if (clock_ns > deadline_ns) return err_set(ERR_TIMEOUT, "late");
        if (f->drops > 0) {
            f->drops--;
            fake_drop(f, at);
            break;
        }
        if (f->lies_of_key) at = (at + 1) % f->count;
        memcpy(values[*got], f->entry[at].value, f->value_bytes);
        if (f->lies_of_kv) ((char *)values[*got])[f->value_bytes - 1] ^= 1;
    }
    return e;
}
static enum err fake_put(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                         const void *const *values, uint64_t deadline_ns, uint32_t *kept)
{
    struct fake *f = fake_of(t);
    (void)deadline_ns;
    f->put_calls++;
    if (count > f->largest_put) f->largest_put = count;
    fake_hang(f);
    *kept = 0;
    enum err e = fake_call(f);
    if (e == OK && f->full) return err_set(ERR_FULL, "planted: full");
    for (; e == OK && *kept < count; ++*kept) {
        if (fake_find(f, keys[*kept]) < f->count) continue;
        clock_ns += f->value_ns;
        assert_true(f->count < VALUES_MAX);
        f->entry[f->count].key = keys[*kept];
        f->entry[f->count].value = mem_new(f->value_bytes);
        memcpy(f->entry[f->count++].value, values[*kept], f->value_bytes);
    }
    return e;
}
static enum err fake_remove(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                            uint64_t deadline_ns)
{
    struct fake *f = fake_of(t);
    (void)deadline_ns;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = fake_find(f, keys[i]);
        if (at < f->count) fake_drop(f, at);
    }
    return fake_call(f);
}
static void fake_stats(const struct kv_tier *t, struct kv_tier_stats *stats)
{
    const struct fake *f = (const struct fake *)(const void *)t;
    *stats = (struct kv_tier_stats){.entries_count = f->count, .removed = f->removed};
}
static enum err fake_touch(struct kv_tier *t, const struct id128 *keys, uint32_t count,
                           uint64_t deadline_ns)
{
    (void)t, (void)keys, (void)count, (void)deadline_ns;
    return OK;
}
static const struct kv_tier_ops fake_ops = {"fake",   fake_open,   fake_close, fake_has,  fake_get,
                                            fake_put, fake_remove, fake_stats, fake_touch};

/* ---- prompts ---- */

struct kv_tier_work *work;
uint32_t prompt[BLOCKS * BLOCK_TOKENS], numbers[BLOCKS];

struct kv_tiers_options options_of(uint32_t tiers_count)
{
    static const char *const where[] = {"0", "1", "2"};
    struct kv_tiers_options o = {.geometry = geometry,
                                 .space = space,
                                 .bytes = {NULL, pool_read, pool_write},
                                 .tiers_count = tiers_count,
                                 .deadline_ns = DEADLINE_MS * NS_PER_MS,
                                 .breaker_failures = 3,
                                 .ops_max = 16,
                                 .blocks_max = BLOCKS,
                                 .now_ns = clock_of};
    for (uint32_t i = 0; i < tiers_count; i++) {
        o.tier[i].ops = &fake_ops;
        o.tier[i].options.where = where[i];
    }
    return o;
}

int begin(void **state)
{
    (void)state;
    log_setup(LOG_OFF, NULL);
    clock_ns = 100 * NS_PER_S;
    pool = mem_aligned(BLOCKS * kv_block_bytes(&geometry), 64);
    for (size_t i = 0; i < BLOCKS * kv_block_bytes(&geometry); i++)
        pool[i] = (unsigned char)(i * 7 + i / kv_block_bytes(&geometry));
    for (uint32_t i = 0; i < BLOCKS * BLOCK_TOKENS; i++)
        prompt[i] = i * 31 + 5;
    for (uint32_t i = 0; i < BLOCKS; i++)
        numbers[i] = i;
    pool_writes = 0;
    return 0;
}

int finish(void **state)
{
    (void)state;
    kv_tier_work_free(work);
    work = NULL;
    for (uint32_t i = 0; i < KV_TIERS_MAX; i++)
        for (uint32_t k = 0; k < fake[i].count; k++)
            mem_free(fake[i].entry[k].value);
    memset(fake, 0, sizeof fake);
    mem_free(pool);
    return 0;
}

enum err open_work(const struct kv_tiers_options *options)
{
    enum err e = kv_tier_work_new(&work, options);
    if (e != OK) return e;
    for (uint32_t i = 0; i < options->tiers_count && (e == OK || e == ERR_IO); i++) {
        kv_tier_work_open(work, i);
        e = kv_tier_work_opened(work, i, false);
    }
    if (e == OK || e == ERR_IO) return OK;
    kv_tier_work_free(work);
    work = NULL;
    return e;
}

void open_tiers(uint32_t tiers_count)
{
    struct kv_tiers_options o = options_of(tiers_count);
    assert_int_equal(open_work(&o), OK);
}

struct kv_tier_op op_of(enum kv_tier_op_kind kind, uint32_t first, uint32_t count,
                        const uint32_t *blocks)
{
    return (struct kv_tier_op){.kind = kind,
                               .id = 77,
                               .salt = 3,
                               .tokens = prompt,
                               .first_block = first,
                               .blocks = blocks,
                               .count = count,
                               .posted_ns = clock_ns};
}

struct kv_tier_news heard[HEARD_MAX];
uint32_t heard_count;

struct kv_tier_event do_op(const struct kv_tier_op *op)
{
    struct kv_tier_event event;
    struct kv_tier_job *job = kv_tier_job_new(op);
    assert_non_null(job);
    if (op->kind == KV_TIER_LOAD)
        kv_tier_work_load(work, job, &event);
    else if (op->kind == KV_TIER_LIST)
        kv_tier_work_list(work, job, &event);
    else
        while (!kv_tier_work_store(work, job, &event))
            ;
    kv_tier_work_used(work, job);
    kv_tier_job_free(job);
    heard_count = event.news_count;
    assert_true(heard_count <= HEARD_MAX && !event.news_lost);
    if (heard_count > 0) memcpy(heard, event.news, heard_count * sizeof *heard);
    kv_tier_event_free(&event);
    assert_int_equal(event.id, 77);
    assert_int_equal(event.kind, op->kind);
    assert_int_equal(event.ended_ns, clock_ns);
    return event;
}
struct kv_tier_event store(uint32_t first, uint32_t count)
{
    struct kv_tier_op op = op_of(KV_TIER_STORE, first, count, numbers + first);
    return do_op(&op);
}
struct kv_tier_event load(uint32_t first, uint32_t count)
{
    struct kv_tier_op op = op_of(KV_TIER_LOAD, first, count, numbers + 32);
    return do_op(&op);
}
struct kv_tier_row row(uint32_t i)
{
    struct kv_tiers_stats stats;
    kv_tier_work_stats(work, &stats);
    return stats.row[i];
}
void assert_loaded(uint32_t first, uint32_t count)
{
    size_t bytes = kv_block_bytes(&geometry);
    assert_memory_equal(pool + 32 * bytes, pool + first * bytes, count * bytes);
}
