#include "node/kv_event_pack.h"

#include <msgpack.h>
#include <string.h>

#include "common/mem.h"

/* Blocks of one event that is not packed yet: the array's length stands before it. */
struct run {
    bool stored, has_tokens, first;
    enum block_tier tier;
    uint64_t parent;
    uint32_t count, tokens_count;
    uint64_t hashes[KV_EVENT_RUN_BLOCKS];
    uint32_t tokens[KV_EVENT_RUN_BLOCKS * BLOCK_TOKENS];
};

struct kv_event_pack {
    enum kv_event_form form;
    struct run run;
    struct buf events;
    uint32_t events_count;
    msgpack_packer packer; /* into events */
};

static int write_buf(void *buf, const char *bytes, size_t size)
{
    return buf_add(buf, bytes, size) == OK ? 0 : -1;
}

enum err kv_event_pack_new(struct kv_event_pack **out, enum kv_event_form form)
{
    struct kv_event_pack *p = mem_new(sizeof *p);
    *out = p;
    if (!p) return ERR_MEMORY;
    p->form = form;
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

/* A struct with its name, and then its fields in their order; `map_only` is not counted in arrays. */
static void put_event(struct kv_event_pack *p, const char *name, uint32_t fields, uint32_t map_only)
{
    msgpack_packer *k = &p->packer;
    if (p->form == KV_EVENT_ARRAY) {
        msgpack_pack_array(k, 1 + fields);
    } else {
        msgpack_pack_map(k, 1 + fields + map_only);
        put_text(k, "type");
    }
    put_text(k, name);
    p->events_count++;
}

/* What stands before a field's value. */
static void put_field(struct kv_event_pack *p, const char *name)
{
    if (p->form == KV_EVENT_MAP) put_text(&p->packer, name);
}

static void put_hashes(struct kv_event_pack *p)
{
    const struct run *r = &p->run;
    put_field(p, "block_hashes");
    msgpack_pack_array(&p->packer, r->count);
    for (uint32_t i = 0; i < r->count; i++)
        msgpack_pack_uint64(&p->packer, r->hashes[i]);
}

static bool is_storage(enum block_tier tier)
{
    return tier == TIER_DISK || tier == TIER_SHARED;
}

static void put_locality(struct kv_event_pack *p)
{
    if (p->form != KV_EVENT_MAP || !is_storage(p->run.tier)) return;
    put_text(&p->packer, "locality");
    put_text(&p->packer, p->run.tier == TIER_SHARED ? "REMOTE" : "LOCAL");
}

static void put_stored(struct kv_event_pack *p)
{
    const struct run *r = &p->run;
    msgpack_packer *k = &p->packer;
    put_event(p, "BlockStored", 7, is_storage(r->tier));
    put_hashes(p);
    put_field(p, "parent_block_hash");
    if (r->first || !r->has_tokens)
        msgpack_pack_nil(k);
    else
        msgpack_pack_uint64(k, r->parent);
    put_field(p, "token_ids");
    msgpack_pack_array(k, r->tokens_count);
    for (uint32_t i = 0; i < r->tokens_count; i++)
        msgpack_pack_uint32(k, r->tokens[i]);
    put_field(p, "block_size");
    msgpack_pack_uint32(k, BLOCK_TOKENS);
    put_field(p, "lora_id");
    msgpack_pack_nil(k);
    put_field(p, "medium");
    put_text(k, medium_of(r->tier));
    put_field(p, "lora_name");
    msgpack_pack_nil(k);
    put_locality(p);
}

static void put_removed(struct kv_event_pack *p)
{
    put_event(p, "BlockRemoved", 2, is_storage(p->run.tier));
    put_hashes(p);
    put_field(p, "medium");
    put_text(&p->packer, medium_of(p->run.tier));
    put_locality(p);
}

static void end_run(struct kv_event_pack *p)
{
    if (p->run.count == 0) return;
    if (p->run.stored)
        put_stored(p);
    else
        put_removed(p);
    p->run.count = p->run.tokens_count = 0;
}

static bool has_tokens(const struct node_block *b)
{
    return b->stored && b->tokens;
}

static bool goes_on(const struct run *r, const struct node_block *b)
{
    if (r->count == 0 || r->count == KV_EVENT_RUN_BLOCKS) return false;
    if (r->stored != b->stored || r->tier != b->tier || r->has_tokens != has_tokens(b))
        return false;
    return !has_tokens(b) || (!b->first && b->parent == r->hashes[r->count - 1]);
}

void kv_event_pack_add(struct kv_event_pack *p, const struct node_block *b)
{
    struct run *r = &p->run;
    if (!goes_on(r, b)) {
        end_run(p);
        r->stored = b->stored;
        r->has_tokens = has_tokens(b);
        r->tier = b->tier;
        r->first = b->first;
        r->parent = b->parent;
    }
    r->hashes[r->count++] = b->hash;
    if (!has_tokens(b)) return;
    memcpy(r->tokens + r->tokens_count, b->tokens, BLOCK_TOKENS * sizeof *b->tokens);
    r->tokens_count += BLOCK_TOKENS;
}

void kv_event_pack_clear_all(struct kv_event_pack *p)
{
    end_run(p);
    put_event(p, "AllBlocksCleared", 0, 0);
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
