#include "node/kv_event_pack.h"

#include <msgpack.h>
#include <string.h>

#include "common/mem.h"

/* Blocks of one event that is not packed yet: the array's length stands before it. */
struct run {
    bool stored, first;
    enum block_tier tier;
    uint64_t parent;
    uint32_t count, tokens_count;
    uint64_t hashes[KV_EVENT_RUN_BLOCKS];
    uint32_t tokens[KV_EVENT_RUN_BLOCKS * BLOCK_TOKENS];
};

struct kv_event_pack {
    struct run run;
    struct buf events;
    uint32_t events_count;
    msgpack_packer packer; /* into events */
};

static int write_buf(void *buf, const char *bytes, size_t size)
{
    return buf_add(buf, bytes, size) == OK ? 0 : -1;
}

enum err kv_event_pack_new(struct kv_event_pack **out)
{
    struct kv_event_pack *p = mem_new(sizeof *p);
    *out = p;
    if (!p) return ERR_MEMORY;
    /* A run that was begun below the limit ends beyond it. */
    p->events.limit_bytes = KV_EVENT_BATCH_BYTES + sizeof p->run * 2;
    msgpack_packer_init(&p->packer, &p->events, write_buf);
    return OK;
}

void kv_event_pack_free(struct kv_event_pack *p)
{
    if (!p) return;
    buf_fini(&p->events);
    mem_free(p);
}

static void put_text(msgpack_packer *k, const char *text)
{
    msgpack_pack_str(k, strlen(text));
    msgpack_pack_str_body(k, text, strlen(text));
}

static const char *medium_of(enum block_tier tier)
{
    static const char *const names[TIERS] = {"GPU", "CPU", "STORAGE", "STORAGE"};
    return names[tier];
}

static void put_hashes(msgpack_packer *k, const struct run *r)
{
    msgpack_pack_array(k, r->count);
    for (uint32_t i = 0; i < r->count; i++)
        msgpack_pack_uint64(k, r->hashes[i]);
}

static void put_stored(msgpack_packer *k, const struct run *r)
{
    msgpack_pack_array(k, 7);
    put_text(k, "BlockStored");
    put_hashes(k, r);
    if (r->first || r->tier != TIER_POOL)
        msgpack_pack_nil(k);
    else
        msgpack_pack_uint64(k, r->parent);
    msgpack_pack_array(k, r->tokens_count);
    for (uint32_t i = 0; i < r->tokens_count; i++)
        msgpack_pack_uint32(k, r->tokens[i]);
    msgpack_pack_uint32(k, BLOCK_TOKENS);
    msgpack_pack_nil(k);
    put_text(k, medium_of(r->tier));
}

static void put_removed(msgpack_packer *k, const struct run *r)
{
    msgpack_pack_array(k, 3);
    put_text(k, "BlockRemoved");
    put_hashes(k, r);
    put_text(k, medium_of(r->tier));
}

static void end_run(struct kv_event_pack *p)
{
    if (p->run.count == 0) return;
    if (p->run.stored)
        put_stored(&p->packer, &p->run);
    else
        put_removed(&p->packer, &p->run);
    p->events_count++;
    p->run.count = p->run.tokens_count = 0;
}

static bool goes_on(const struct run *r, const struct node_block *b)
{
    if (r->count == 0 || r->count == KV_EVENT_RUN_BLOCKS) return false;
    if (r->stored != b->stored || r->tier != b->tier) return false;
    if (!b->stored || b->tier != TIER_POOL) return true;
    return !b->first && b->parent == r->hashes[r->count - 1];
}

void kv_event_pack_add(struct kv_event_pack *p, const struct node_block *b)
{
    struct run *r = &p->run;
    if (!goes_on(r, b)) {
        end_run(p);
        r->stored = b->stored;
        r->tier = b->tier;
        r->first = b->first;
        r->parent = b->parent;
    }
    r->hashes[r->count++] = b->hash;
    if (!b->stored || b->tier != TIER_POOL) return;
    memcpy(r->tokens + r->tokens_count, b->tokens, BLOCK_TOKENS * sizeof *b->tokens);
    r->tokens_count += BLOCK_TOKENS;
}

void kv_event_pack_clear_all(struct kv_event_pack *p)
{
    end_run(p);
    msgpack_pack_array(&p->packer, 1);
    put_text(&p->packer, "AllBlocksCleared");
    p->events_count++;
}

bool kv_event_pack_any(const struct kv_event_pack *p)
{
    return p->events_count > 0 || p->run.count > 0;
}

bool kv_event_pack_full(const struct kv_event_pack *p)
{
    return p->events.size >= KV_EVENT_BATCH_BYTES;
}

enum err kv_event_pack_end(struct kv_event_pack *p, double seconds, struct buf *payload)
{
    msgpack_packer k;
    end_run(p);
    enum err e = p->events.error;
    msgpack_packer_init(&k, payload, write_buf);
    msgpack_pack_array(&k, 3);
    msgpack_pack_double(&k, seconds);
    msgpack_pack_array(&k, p->events_count);
    buf_add(payload, p->events.data, p->events.size);
    msgpack_pack_int(&k, 0);
    buf_clear(&p->events);
    p->events_count = 0;
    return e == OK ? payload->error : e;
}
