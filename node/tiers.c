#include "node/tiers.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/address.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/mem.h"
#include "kv/tier_entry.h"

enum {
    OPS_MAX = 128,            /* the core has fewer under way (NODE_LOADS_MAX + NODE_STORES_MAX) */
    EVENTS_MAX = 2 * OPS_MAX, /* of one that is taken back there are two */
    BREAKER_FAILURES = 3,
    PASSWORD_MAX = 512,
};

static bool is_told(const char *text)
{
    return text && text[0];
}

static bool any(const struct node_tiers_options *o)
{
    return o->host_bytes > 0 || is_told(o->disk) || is_told(o->redis);
}

static enum err check_redis(const struct node_tiers_options *o, bool trusted_network)
{
    char host[ADDRESS_HOST_MAX];
    uint16_t port;
    enum err e;
    if (is_told(o->redis_user) && !is_told(o->redis_password_file))
        return err_set(ERR_INVALID, "--kv-redis-user needs --kv-redis-password");
    if (!is_told(o->redis) || strncmp(o->redis, "unix:", 5) == 0) return OK;
    if ((e = address_split(o->redis, host, &port)) != OK) return err_prefix(e, "--kv-redis");
    if (trusted_network || address_is_loopback(o->redis)) return OK;
    return err_set(ERR_INVALID,
                   "--kv-redis %s is beyond loopback, and prompts' KV goes there as it is: say "
                   "--trusted-network if nobody else reaches it",
                   o->redis);
}

enum err node_tiers_check(const struct node_tiers_options *o, bool prefix_cache,
                          bool trusted_network)
{
    if (any(o) && !prefix_cache)
        return err_set(ERR_INVALID,
                       "--kv-host-bytes, --kv-disk and --kv-redis keep what the prefix "
                       "cache knows: they need --prefix-cache");
    return check_redis(o, trusted_network);
}

/* ---- a block's bytes ---- */

static enum err read_block(void *ctx, uint32_t block, void *host)
{
    return engine_block_read(ctx, block, host);
}
static enum err write_block(void *ctx, uint32_t block, const void *host)
{
    return engine_block_write(ctx, block, host);
}

/* On the tier thread. */
static void on_event(void *ctx, const struct kv_tier_event *event)
{
    struct node_tiers *t = ctx;
    enum err e = mailbox_send(t->events, event);
    CHECK(e == OK || e == ERR_CANCELLED); /* it has room for all ops */
    if (e != OK) mem_free(event->news);
}

/* ---- life ---- */

static enum err add(struct kv_tiers_options *k, const char *name,
                    const struct kv_tier_options *options)
{
    k->tier[k->tiers_count].options = *options;
    return kv_tier_find(name, &k->tier[k->tiers_count++].ops);
}

/* The file's first and only line. */
static enum err read_password(const char *path, char **password)
{
    struct file_map map;
    enum err e = file_map_open(&map, path);
    if (e != OK) return err_prefix(e, "--kv-redis-password");
    size_t n = map.size_bytes;
    if (n > 0 && map.data[n - 1] == '\n') n--;
    if (n > 0 && map.data[n - 1] == '\r') n--;
    if (n == 0 || n > PASSWORD_MAX || memchr(map.data, 0, n) || memchr(map.data, '\n', n))
        e = err_set(ERR_INVALID, "--kv-redis-password %s: it must be one line of 1 to %d bytes",
                    path, PASSWORD_MAX);
    else if (!(*password = mem_new(n + 1)))
        e = ERR_MEMORY;
    else
        memcpy(*password, map.data, n);
    file_map_close(&map);
    return e;
}

/* The fastest first. */
static enum err add_all(struct kv_tiers_options *k, const struct node_tiers_options *o,
                        const char *password)
{
    enum err e = OK;
    if (o->host_bytes > 0)
        e = add(k, "memory", &(struct kv_tier_options){.bytes_max = o->host_bytes});
    /* A limit of file sizes (LimitFSIZE= of a unit) is a full disk, and no end of the process. */
    if (is_told(o->disk)) signal(SIGXFSZ, SIG_IGN);
    if (e == OK && is_told(o->disk))
        e = add(k, "disk", &(struct kv_tier_options){.where = o->disk, .bytes_max = o->disk_bytes});
    if (e == OK && is_told(o->redis))
        e = add(k, "redis",
                &(struct kv_tier_options){.where = o->redis,
                                          .ttl_ns = o->redis_ttl_ns,
                                          .user = is_told(o->redis_user) ? o->redis_user : NULL,
                                          .password = password});
    return e;
}

static enum err check_host(const struct node_tiers_options *o, const struct engine *engine)
{
    if (o->host_bytes == 0 || !engine_kv_host(engine)) return OK;
    return err_set(ERR_INVALID,
                   "--kv-host-bytes is for pools on a GPU: this one is in host memory, so "
                   "give it the bytes with --kv-bytes");
}

struct id128 node_tiers_space(const struct engine_facts *f)
{
    const struct kv_part part = kv_part_told(&f->geometry, (struct kv_part){0}); /* all of it */
    return kv_tier_space(f->model_fingerprint, f->numerics_id, &f->geometry, &part);
}

enum err node_tiers_open(struct node_tiers *t, const struct node_tiers_options *o,
                         struct engine *engine)
{
    enum err e;
    *t = (struct node_tiers){.engine = engine};
    if (!any(o)) return OK;
    if ((e = check_host(o, engine)) != OK) return e;
    const struct engine_facts *f = engine_facts(engine);
    if (!engine_kv_host(engine)) {
        t->staging = engine_host_alloc(engine, kv_tiers_staging_bytes(&f->geometry));
        if (!t->staging) return ERR_MEMORY;
    }
    struct kv_tiers_options k = {
        .geometry = f->geometry,
        .space = node_tiers_space(f),
        .bytes = {engine, read_block, write_block},
        .deadline_ns = o->deadline_ns,
        .breaker_failures = BREAKER_FAILURES,
        .ops_max = OPS_MAX,
        .blocks_max = blocks_for_tokens(f->context_max),
        .staging = t->staging,
    };
    if (is_told(o->redis_password_file) &&
        (e = read_password(o->redis_password_file, &t->password)) != OK)
        return e;
    if ((e = add_all(&k, o, t->password)) != OK) return e;
    if ((e = mailbox_new(&t->events, sizeof(struct kv_tier_event), EVENTS_MAX)) != OK) return e;
    if ((e = kv_tiers_open(&t->tiers, &k, on_event, t)) != OK) return e;
    for (uint32_t i = 0; i < k.tiers_count; i++)
        log_info("kv_tier", "tier=%s where=%s bytes=%llu deadline_ms=%llu", k.tier[i].ops->name,
                 k.tier[i].options.where ? k.tier[i].options.where : "",
                 (unsigned long long)k.tier[i].options.bytes_max,
                 (unsigned long long)(o->deadline_ns / NS_PER_MS));
    return OK;
}

enum err node_tiers_start(struct node_tiers *t)
{
    if (!t->tiers) return OK;
    enum err e = kv_tiers_start(t->tiers);
    t->started = e == OK;
    return e;
}

void node_tiers_stop(struct node_tiers *t)
{
    if (t->events) mailbox_close(t->events);
    if (t->started && kv_tiers_stop(t->tiers) != OK) {
        log_error("kv_tier_stuck_at_end", "reason=\"%s\" note=\"ends the process\"", err_text());
        _exit(EXIT_FAILURE);
    }
    t->started = false;
}

void node_tiers_close(struct node_tiers *t)
{
    struct kv_tier_event event;
    bool closed = kv_tiers_close(t->tiers);
    while (t->events && mailbox_receive(t->events, &event) == OK)
        kv_tier_event_free(&event);
    mailbox_free(t->events);
    if (t->staging) engine_host_free(t->engine, t->staging);
    if (closed) mem_free(t->password);
    *t = (struct node_tiers){0};
}
