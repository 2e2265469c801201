#include "tests/unit/testing.h"

#include <dlfcn.h>
#include <errno.h>
#include <msgpack.h>
#include <string.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/prefix_hash.h"
#include "node/kv_event_pack.h"
#include "node/kv_events.h"
#include "node/state.h"
#include "tests/unit/node_rig.h"

/* ---- a payload, read by the library's own unpacker ---- */

struct reader {
    msgpack_unpacked unpacked;
    const msgpack_object_array *batch, *events;
};

static void reader_open(struct reader *r, const void *bytes, size_t size)
{
    size_t read = 0;
    msgpack_unpacked_init(&r->unpacked);
    assert_int_equal(msgpack_unpack_next(&r->unpacked, bytes, size, &read), MSGPACK_UNPACK_SUCCESS);
    assert_int_equal(read, size);
    assert_int_equal(r->unpacked.data.type, MSGPACK_OBJECT_ARRAY);
    r->batch = &r->unpacked.data.via.array;
    assert_int_equal(r->batch->size, 3);
    assert_int_equal(r->batch->ptr[0].type, MSGPACK_OBJECT_FLOAT64);
    assert_int_equal(r->batch->ptr[1].type, MSGPACK_OBJECT_ARRAY);
    assert_int_equal(r->batch->ptr[2].via.u64, 0);
    r->events = &r->batch->ptr[1].via.array;
}

static void reader_close(struct reader *r)
{
    msgpack_unpacked_destroy(&r->unpacked);
}

static bool is_text(const msgpack_object *o, const char *text)
{
    return o->type == MSGPACK_OBJECT_STR && o->via.str.size == strlen(text) &&
           memcmp(o->via.str.ptr, text, o->via.str.size) == 0;
}

static const msgpack_object *in_map(const msgpack_object_map *map, const char *name)
{
    for (uint32_t i = 0; i < map->size; i++)
        if (is_text(&map->ptr[i].key, name)) return &map->ptr[i].val;
    return NULL;
}

/* A field of event i, in either form; NULL: it is not there. */
static const msgpack_object *get(const struct reader *r, uint32_t i, const char *name)
{
    static const char *const stored_names[] = {"type",      "block_hashes", "parent_block_hash",
                                               "token_ids", "block_size",   "lora_id",
                                               "medium",    "lora_name"};
    static const char *const removed_names[] = {"type", "block_hashes", "medium"};
    assert_true(i < r->events->size);
    const msgpack_object *e = &r->events->ptr[i];
    if (e->type == MSGPACK_OBJECT_MAP) return in_map(&e->via.map, name);
    assert_int_equal(e->type, MSGPACK_OBJECT_ARRAY);
    bool stored = is_text(&e->via.array.ptr[0], "BlockStored");
    const char *const *names = stored ? stored_names : removed_names;
    for (uint32_t k = 0; k < e->via.array.size; k++)
        if (strcmp(names[k], name) == 0) return &e->via.array.ptr[k];
    return NULL;
}

static uint32_t fields_count(const struct reader *r, uint32_t i)
{
    const msgpack_object *e = &r->events->ptr[i];
    return e->type == MSGPACK_OBJECT_MAP ? e->via.map.size : e->via.array.size;
}

static bool has_text(const struct reader *r, uint32_t i, const char *name, const char *text)
{
    const msgpack_object *o = get(r, i, name);
    return o && is_text(o, text);
}

static const msgpack_object_array *list(const struct reader *r, uint32_t i, const char *name)
{
    const msgpack_object *o = get(r, i, name);
    assert_true(o && o->type == MSGPACK_OBJECT_ARRAY);
    return &o->via.array;
}

static bool is_nil(const struct reader *r, uint32_t i, const char *name)
{
    const msgpack_object *o = get(r, i, name);
    return o && o->type == MSGPACK_OBJECT_NIL;
}

/* ---- packing ---- */

static struct node_block stored(uint64_t hash, uint64_t parent, const uint32_t *tokens)
{
    return (struct node_block){.stored = true,
                               .tier = TIER_POOL,
                               .hash = hash,
                               .first = parent == 0,
                               .parent = parent,
                               .tokens = tokens};
}

static void expect_events(const struct reader *r, enum kv_event_form form)
{
    bool map = form == KV_EVENT_MAP;
    assert_true(r->batch->ptr[0].via.f64 == 12.5);
    assert_int_equal(r->events->size, 8);
    for (uint32_t i = 0; i < r->events->size; i++)
        assert_int_equal(r->events->ptr[i].type, map ? MSGPACK_OBJECT_MAP : MSGPACK_OBJECT_ARRAY);
    assert_int_equal(fields_count(r, 0), 1);
    assert_true(has_text(r, 0, "type", "AllBlocksCleared"));

    assert_int_equal(fields_count(r, 1), 8);
    assert_true(has_text(r, 1, "type", "BlockStored"));
    assert_int_equal(list(r, 1, "block_hashes")->size, 2);
    assert_true(list(r, 1, "block_hashes")->ptr[0].via.u64 == UINT64_MAX);
    assert_int_equal(list(r, 1, "block_hashes")->ptr[1].via.u64, 11);
    assert_true(is_nil(r, 1, "parent_block_hash"));
    assert_true(is_nil(r, 1, "lora_id") && is_nil(r, 1, "lora_name"));
    assert_int_equal(list(r, 1, "token_ids")->size, 2 * BLOCK_TOKENS);
    assert_int_equal(list(r, 1, "token_ids")->ptr[17].via.u64, 100017);
    assert_int_equal(get(r, 1, "block_size")->via.u64, BLOCK_TOKENS);
    assert_true(has_text(r, 1, "medium", "GPU"));
    assert_null(get(r, 1, "locality"));

    assert_int_equal(get(r, 2, "parent_block_hash")->via.u64, 77);
    assert_int_equal(fields_count(r, 3), 3);
    assert_true(has_text(r, 3, "type", "BlockRemoved") && has_text(r, 3, "medium", "GPU"));
    assert_int_equal(list(r, 3, "block_hashes")->size, 2);
    assert_true(has_text(r, 4, "type", "BlockStored") && has_text(r, 4, "medium", "CPU"));
    assert_true(get(r, 4, "parent_block_hash")->via.u64 == UINT64_MAX && !get(r, 4, "locality"));
    assert_int_equal(list(r, 4, "token_ids")->ptr[15].via.u64, 100031);
    assert_true(has_text(r, 5, "medium", "CPU") && is_nil(r, 5, "parent_block_hash"));
    assert_int_equal(list(r, 5, "token_ids")->size, 0);
    assert_true(has_text(r, 6, "medium", "STORAGE") && has_text(r, 7, "medium", "STORAGE"));
    assert_int_equal(fields_count(r, 7), map ? 4 : 3);
    assert_int_equal(has_text(r, 6, "locality", "LOCAL"), map);
    assert_int_equal(has_text(r, 7, "locality", "REMOTE"), map);
}

static void events_have_vllms_fields(enum kv_event_form form)
{
    struct kv_event_pack *p;
    struct buf payload = {0};
    struct reader r;
    uint32_t tokens[2 * BLOCK_TOKENS];
    for (uint32_t i = 0; i < 2 * BLOCK_TOKENS; i++)
        tokens[i] = 100000 + i;
    const struct node_block blocks[] = {
        stored(UINT64_MAX, 0, tokens),
        stored(11, UINT64_MAX, tokens + BLOCK_TOKENS), /* goes on from there */
        stored(12, 77, tokens),
        {.stored = false, .tier = TIER_POOL, .hash = 12},
        {.stored = false, .tier = TIER_POOL, .hash = 11},
        {true, TIER_HOST, 11, false, UINT64_MAX, tokens + BLOCK_TOKENS},
        {.stored = true, .tier = TIER_HOST, .hash = 12}, /* which the cache has not */
        {.stored = true, .tier = TIER_DISK, .hash = 12},
        {.stored = false, .tier = TIER_SHARED, .hash = 13},
    };
    assert_ok(kv_event_pack_new(&p, form));
    assert_false(kv_event_pack_any(p));
    kv_event_pack_clear_all(p);
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        kv_event_pack_add(p, &blocks[i]);
    assert_true(kv_event_pack_any(p));
    assert_ok(kv_event_pack_end(p, 12.5, &payload));
    assert_false(kv_event_pack_any(p));
    reader_open(&r, payload.data, payload.size);
    expect_events(&r, form);
    reader_close(&r);
    buf_fini(&payload);
    kv_event_pack_free(p);
}

static void events_have_vllms_fields_in_their_order(void **state)
{
    (void)state;
    events_have_vllms_fields(KV_EVENT_ARRAY);
}

static void events_as_maps_have_vllms_names(void **state)
{
    (void)state;
    events_have_vllms_fields(KV_EVENT_MAP);
}

/* Payloads that were decoded, with the values below, by the types that vLLM 0.11, 0.13, 0.17, 0.19 and 0.23 and
 * SGLang 0.5.10 (arrays), vLLM 0.24 and 0.33 and SGLang 0.5.23 (maps) declare for their own events. */
#define HASH_MAX "\xcf\xff\xff\xff\xff\xff\xff\xff\xff"
#define TOKENS                                                                                     \
    "\xdc\x00\x10\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\xce\x00\x01\x86\xa0"
#define BATCH "\x93\xcb\x40\x29\x00\x00\x00\x00\x00\x00\x94"
#define TYPE "\xa4type"
#define BLOCK_HASHES                                                                               \
    "\xac"                                                                                         \
    "block_hashes"
#define BLOCK_SIZE                                                                                 \
    "\xaa"                                                                                         \
    "block_size\x10"
static const char array_bytes[] =
    BATCH "\x91\xb0"
          "AllBlocksCleared"
          "\x98\xab"
          "BlockStored\x91" HASH_MAX "\xcd\x01\x2c" TOKENS "\x10\xc0\xa3GPU\xc0"
          "\x98\xab"
          "BlockStored\x91\x0b\xc0\x90\x10\xc0\xa7STORAGE\xc0"
          "\x93\xac"
          "BlockRemoved\x92" HASH_MAX "\x0b\xa3"
          "CPU\x00";
static const char map_bytes[] =
    BATCH "\x81" TYPE "\xb0"
          "AllBlocksCleared"
          "\x88" TYPE "\xab"
          "BlockStored" BLOCK_HASHES "\x91" HASH_MAX "\xb1parent_block_hash\xcd\x01\x2c"
          "\xa9token_ids" TOKENS BLOCK_SIZE "\xa7lora_id\xc0\xa6medium\xa3GPU\xa9lora_name\xc0"
          "\x89" TYPE "\xab"
          "BlockStored" BLOCK_HASHES "\x91\x0b\xb1parent_block_hash\xc0"
          "\xa9token_ids\x90" BLOCK_SIZE "\xa7lora_id\xc0\xa6medium\xa7STORAGE\xa9lora_name\xc0"
          "\xa8locality\xa5LOCAL"
          "\x83" TYPE "\xac"
          "BlockRemoved" BLOCK_HASHES "\x92" HASH_MAX "\x0b\xa6medium\xa3"
          "CPU\x00";

static void expect_bytes(enum kv_event_form form, const char *want, size_t want_size)
{
    struct kv_event_pack *p;
    struct buf payload = {0};
    uint32_t tokens[BLOCK_TOKENS];
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
        tokens[i] = i + 1 < BLOCK_TOKENS ? i + 1 : 100000;
    const struct node_block blocks[] = {
        stored(UINT64_MAX, 300, tokens),
        {.stored = true, .tier = TIER_DISK, .hash = 11},
        {.stored = false, .tier = TIER_HOST, .hash = UINT64_MAX},
        {.stored = false, .tier = TIER_HOST, .hash = 11},
    };
    assert_ok(kv_event_pack_new(&p, form));
    kv_event_pack_clear_all(p);
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        kv_event_pack_add(p, &blocks[i]);
    assert_ok(kv_event_pack_end(p, 12.5, &payload));
    assert_int_equal(payload.size, want_size);
    assert_memory_equal(payload.data, want, want_size);
    buf_fini(&payload);
    kv_event_pack_free(p);
}

static void the_bytes_are_those_that_vllms_types_decode(void **state)
{
    (void)state;
    expect_bytes(KV_EVENT_ARRAY, array_bytes, sizeof array_bytes - 1);
    expect_bytes(KV_EVENT_MAP, map_bytes, sizeof map_bytes - 1);
}

static void a_batch_is_bounded(enum kv_event_form form)
{
    struct kv_event_pack *p;
    struct buf payload = {0};
    uint32_t tokens[BLOCK_TOKENS] = {0};
    uint64_t hash = 1, allocations = 0;
    memset(tokens, 0xff, sizeof tokens); /* of the longest form */
    assert_ok(kv_event_pack_new(&p, form));
    for (int round = 0; round < 3; round++) {
        if (round == 1) allocations = mem_count();
        buf_clear(&payload);
        while (!kv_event_pack_full(p)) {
            struct node_block b = stored(hash + 1, hash, tokens);
            kv_event_pack_add(p, &b);
            hash++;
        }
        assert_ok(kv_event_pack_end(p, 1, &payload));
        assert_in_range(payload.size, KV_EVENT_BATCH_BYTES, KV_EVENT_BATCH_BYTES * 5 / 4);
    }
    assert_int_equal(mem_count(), allocations);
    buf_fini(&payload);
    kv_event_pack_free(p);
}

static void a_batch_is_bounded_and_costs_no_memory_once_warm(void **state)
{
    (void)state;
    a_batch_is_bounded(KV_EVENT_ARRAY);
    a_batch_is_bounded(KV_EVENT_MAP);
}

/* ---- a node whose events somebody subscribes to ---- */

enum { MIRROR_MAX = 64, TURNS_MAX = 20000, BATCHES_MAX = 1024 };

static struct rig d;

static struct subscriber {
    struct loop *loop;
    struct loop_timer *timer;
    struct kv_events *events;
    void *context, *sub, *replay;
    uint32_t jobs, turns, live_count;
    const char *topic;
    enum kv_event_form form;
    uint64_t first, next; /* the number that came first, and that comes next */
    bool asked, replayed;
    struct {
        uint64_t hash;
        uint32_t tokens[BLOCK_TOKENS];
    } block[MIRROR_MAX]; /* what it takes the node to hold */
    uint32_t count;
} s;

static void on_block(void *rig, const struct node_block *block)
{
    (void)rig;
    kv_events_add(s.events, block);
}

static void remove_hash(uint64_t hash)
{
    for (uint32_t i = 0; i < s.count; i++)
        if (s.block[i].hash == hash) {
            s.block[i] = s.block[--s.count];
            return;
        }
    fail_msg("a block is removed that was never stored");
}

static void on_stored(const struct reader *r, uint32_t at)
{
    const msgpack_object_array *hashes = list(r, at, "block_hashes");
    const msgpack_object_array *tokens = list(r, at, "token_ids");
    bool first = is_nil(r, at, "parent_block_hash");
    uint64_t parent = first ? 0 : get(r, at, "parent_block_hash")->via.u64;
    assert_int_equal(tokens->size, hashes->size * BLOCK_TOKENS);
    for (uint32_t i = 0; i < hashes->size; i++) {
        assert_true(s.count < MIRROR_MAX);
        for (uint32_t t = 0; t < BLOCK_TOKENS; t++)
            s.block[s.count].tokens[t] = (uint32_t)tokens->ptr[i * BLOCK_TOKENS + t].via.u64;
        /* Whoever knows the tokens can tell the hash. */
        parent = prefix_hash_block(parent, s.block[s.count].tokens);
        assert_true(parent == hashes->ptr[i].via.u64);
        s.block[s.count++].hash = parent;
    }
}

static void on_payload(uint64_t number, const void *bytes, size_t size)
{
    struct reader r;
    if (s.first == 0) s.first = s.next = number;
    assert_int_equal(number, s.next++);
    reader_open(&r, bytes, size);
    for (uint32_t i = 0; i < r.events->size; i++) {
        if (has_text(&r, i, "type", "AllBlocksCleared")) {
            s.count = 0;
        } else if (has_text(&r, i, "type", "BlockStored")) {
            on_stored(&r, i);
        } else {
            assert_true(has_text(&r, i, "type", "BlockRemoved"));
            for (uint32_t k = 0; k < list(&r, i, "block_hashes")->size; k++)
                remove_hash(list(&r, i, "block_hashes")->ptr[k].via.u64);
        }
    }
    reader_close(&r);
}

static uint64_t number_of(const zmq_msg_t *m)
{
    uint64_t n = 0;
    const uint8_t *bytes = zmq_msg_data((zmq_msg_t *)m);
    assert_int_equal(zmq_msg_size(m), 8);
    for (int i = 0; i < 8; i++)
        n = n << 8 | bytes[i];
    return n;
}

/* Frames of one message, `count` of them; false: none is there. */
static bool receive(void *socket, zmq_msg_t *frames, int count)
{
    for (int i = 0; i < count; i++) {
        zmq_msg_init(&frames[i]);
        if (zmq_msg_recv(&frames[i], socket, i == 0 ? ZMQ_DONTWAIT : 0) < 0) return false;
        assert_int_equal(zmq_msg_more(&frames[i]), i + 1 < count);
    }
    return true;
}

static void drop(zmq_msg_t *frames, int count)
{
    for (int i = 0; i < count; i++)
        zmq_msg_close(&frames[i]);
}

static void expect_topic(zmq_msg_t *frame, const char *topic)
{
    assert_int_equal(zmq_msg_size(frame), strlen(topic));
    assert_memory_equal(zmq_msg_data(frame), topic, strlen(topic));
}

/* What it missed before it was connected it asks for; then it goes on with what came live. */
static void hear_replay(void)
{
    zmq_msg_t f[4]; /* nothing, for maps the topic, number, payload */
    int count = s.form == KV_EVENT_MAP ? 4 : 3;
    while (receive(s.replay, f, count)) {
        zmq_msg_t *payload = &f[count - 1];
        uint64_t number = number_of(&f[count - 2]);
        bool end = number == UINT64_MAX;
        if (s.form == KV_EVENT_MAP) expect_topic(&f[1], end ? "" : s.topic);
        if (end)
            s.replayed = true;
        else
            on_payload(number, zmq_msg_data(payload), zmq_msg_size(payload));
        drop(f, count);
    }
}

static void hear_live(void)
{
    zmq_msg_t f[3]; /* topic, number, payload */
    while (receive(s.sub, f, 3)) {
        expect_topic(&f[0], s.topic);
        s.live_count++;
        if (s.replayed && number_of(&f[1]) >= s.next)
            on_payload(number_of(&f[1]), zmq_msg_data(&f[2]), zmq_msg_size(&f[2]));
        drop(f, 3);
    }
}

static void ask_for_all(void)
{
    static const uint8_t garbage[5], zero[8];
    zmq_send(s.replay, "", 0, ZMQ_SNDMORE); /* no number: nobody answers */
    zmq_send(s.replay, garbage, sizeof garbage, 0);
    zmq_send(s.replay, "", 0, ZMQ_SNDMORE);
    zmq_send(s.replay, zero, sizeof zero, 0);
    s.asked = true;
}

static void serve(uint32_t id)
{
    struct rig_prompt p = {.seed = id,
                           .family = id % 5,
                           .shared_count = 32,
                           .count = 40 + id % 3 * 16,
                           .tokens_max = 8};
    struct job job = rig_job(id, &p);
    rig_forget(&d);
    rig_reserve(&d, &job, true);
    rig_run(&d);
    rig_acknowledge(&d, job.key);
}

/* Whether it knows the node's cache, block by block and no more than that. */
static bool mirrors(void)
{
    struct kv_prefix_entry e;
    uint32_t cached = 0;
    for (uint32_t i = 0; i < d.config.blocks_count; i++) {
        if (!kv_prefix_look(d.core->cache, (struct block_id){i}, &e)) continue;
        uint32_t k = 0;
        while (k < s.count && s.block[k].hash != e.hash)
            k++;
        if (k == s.count) return false;
        assert_memory_equal(s.block[k].tokens, e.tokens, sizeof s.block[k].tokens);
        cached++;
    }
    return cached > 0 && s.count == cached;
}

static void on_turn(void *ctx, uint64_t now_ns)
{
    (void)ctx;
    assert_true(++s.turns < TURNS_MAX);
    hear_live();
    if (s.live_count > 0 && !s.asked)
        ask_for_all(); /* it is connected: nothing is missed any more */
    if (s.asked) hear_replay();
    bool all = s.replayed && s.jobs >= 40;
    bool quiet = s.asked && !s.replayed; /* nothing new until it knows the old */
    if (!all && !quiet && s.turns % 20 == 0) serve(++s.jobs);
    if (all && mirrors())
        loop_stop(s.loop);
    else
        loop_timer_set(s.timer, now_ns + NS_PER_MS / 10);
}

static void rebuild(enum kv_event_form form, const char *topic)
{
    const struct kv_events_options o = {
        "tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "p0", "tiny", form, topic};
    memset(&s, 0, sizeof s);
    s.topic = topic ? topic : "kv@p0@tiny";
    s.form = form;
    assert_ok(loop_new(&s.loop));
    assert_ok(loop_timer_new(s.loop, on_turn, NULL, &s.timer));
    assert_ok(kv_events_open(&s.events, s.loop, &o));
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 16, .block = on_block});
    s.context = zmq_ctx_new();
    s.sub = zmq_socket(s.context, ZMQ_SUB);
    s.replay = zmq_socket(s.context, ZMQ_DEALER);
    assert_int_equal(zmq_setsockopt(s.sub, ZMQ_SUBSCRIBE, "", 0), 0);
    assert_int_equal(zmq_connect(s.sub, kv_events_address(s.events)), 0);
    assert_int_equal(zmq_connect(s.replay, kv_events_replay(s.events)), 0);
    for (uint32_t i = 0; i < 3; i++)
        serve(++s.jobs); /* before anybody listens */
    loop_timer_set(s.timer, loop_now_ns(s.loop));
    loop_run(s.loop);
    assert_true(s.live_count > 0 && kv_prefix_stats(d.core->cache).evicted_blocks > 0);
    zmq_close(s.sub);
    zmq_close(s.replay);
    zmq_ctx_term(s.context);
    rig_free(&d);
    kv_events_close(s.events);
    loop_timer_free(s.timer);
    loop_free(s.loop);
}

static void a_subscriber_rebuilds_the_cache_from_events_alone(void **state)
{
    (void)state;
    rebuild(KV_EVENT_ARRAY, NULL);
}

/* Whoever has read a node's events takes lower numbers than the last for what it has: a restart is a gap. */
static void a_new_lifes_numbers_are_beyond_the_old_ones(void **state)
{
    (void)state;
    rebuild(KV_EVENT_ARRAY, NULL);
    uint64_t last = s.next - 1;
    rebuild(KV_EVENT_ARRAY, NULL);
    assert_true(s.first > last);
}

static void a_subscriber_rebuilds_it_from_maps_of_another_topic_too(void **state)
{
    (void)state;
    rebuild(KV_EVENT_MAP, "kv-events");
}

/* ---- a replay of much ---- */

enum { REPLAYED_BYTES = 24 << 20, TURN_BYTES_MAX = 5 << 20 };

/* What is given to ZeroMQ is counted on its way. */
static size_t given_bytes;
int zmq_send(void *socket, const void *bytes, size_t size, int flags)
{
    static int (*send)(void *, const void *, size_t, int);
    if (!send) *(void **)&send = dlsym(RTLD_NEXT, "zmq_send");
    given_bytes += size;
    return send(socket, bytes, size, flags);
}

static void on_turn_of_replay(void *ctx, uint64_t now_ns)
{
    (void)ctx;
    assert_true(++s.turns < TURNS_MAX);
    assert_true(given_bytes <= TURN_BYTES_MAX);
    given_bytes = 0;
    if (!s.asked) ask_for_all();
    given_bytes = 0;
    zmq_msg_t f[3];
    while (receive(s.replay, f, 3)) {
        s.replayed |= number_of(&f[1]) == UINT64_MAX;
        drop(f, 3);
    }
    if (s.replayed)
        loop_stop(s.loop);
    else
        loop_timer_set(s.timer, now_ns);
}

static void a_replay_of_much_is_given_away_in_pieces(void **state)
{
    (void)state;
    const struct kv_events_options o = {
        "tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "p0", "m", KV_EVENT_ARRAY, NULL};
    uint32_t tokens[BLOCK_TOKENS];
    memset(&s, 0, sizeof s);
    memset(tokens, 0xff, sizeof tokens);
    assert_ok(loop_new(&s.loop));
    assert_ok(loop_timer_new(s.loop, on_turn_of_replay, NULL, &s.timer));
    assert_ok(kv_events_open(&s.events, s.loop, &o));
    s.context = zmq_ctx_new();
    s.replay = zmq_socket(s.context, ZMQ_DEALER);
    assert_int_equal(zmq_connect(s.replay, kv_events_replay(s.events)), 0);
    given_bytes = 0;
    for (uint64_t hash = 1; given_bytes < REPLAYED_BYTES; hash++) {
        struct node_block b = stored(hash + 1, hash, tokens);
        kv_events_add(s.events, &b);
    }
    given_bytes = 0;
    loop_timer_set(s.timer, loop_now_ns(s.loop));
    loop_run(s.loop);
    zmq_close(s.replay);
    zmq_ctx_term(s.context);
    kv_events_close(s.events);
    loop_timer_free(s.timer);
    loop_free(s.loop);
}

static void addresses_that_cannot_be_are_errors(void **state)
{
    (void)state;
    struct loop *loop;
    struct kv_events *k, *other;
    assert_ok(loop_new(&loop));
    struct kv_events_options o = {"127.0.0.1:5557", NULL, "p0", "m", KV_EVENT_ARRAY, NULL};
    assert_int_equal(kv_events_open(&k, loop, &o), ERR_INVALID);
    o.address = "tcp://127.0.0.1:0";
    o.replay = "nowhere";
    assert_int_equal(kv_events_open(&k, loop, &o), ERR_INVALID);
    o.replay = NULL;
    char topic[4096] = {0};
    memset(topic, 'k', sizeof topic - 1);
    o.topic = topic;
    assert_int_equal(kv_events_open(&k, loop, &o), ERR_INVALID);
    o.topic = NULL;
    assert_ok(kv_events_open(&k, loop, &o));
    o.address = kv_events_address(k);
    assert_int_equal(kv_events_open(&other, loop, &o), ERR_IO); /* it is occupied */
    assert_string_equal(kv_events_replay(k), "");
    kv_events_close(k);
    loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_have_vllms_fields_in_their_order),
        cmocka_unit_test(events_as_maps_have_vllms_names),
        cmocka_unit_test(the_bytes_are_those_that_vllms_types_decode),
        cmocka_unit_test(a_batch_is_bounded_and_costs_no_memory_once_warm),
        cmocka_unit_test(a_subscriber_rebuilds_the_cache_from_events_alone),
        cmocka_unit_test(a_new_lifes_numbers_are_beyond_the_old_ones),
        cmocka_unit_test(a_subscriber_rebuilds_it_from_maps_of_another_topic_too),
        cmocka_unit_test(a_replay_of_much_is_given_away_in_pieces),
        cmocka_unit_test(addresses_that_cannot_be_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
