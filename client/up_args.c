#include "client/up_args.h"

#include <string.h>

#include "common/address.h"
#include "common/cpus.h"

#define KV_SHARE 0.9 /* of a GPU, for all nodes on it */

/* The text of one more item, of which its errors are kept; the items point into it once it is whole. */
static struct buf *next(struct up_args *a)
{
    CHECK(a->count < UP_ARGS_MAX); /* more than there are settings to tell */
    if (a->count > 0) buf_add(&a->text, "", 1);
    a->at[a->count++] = a->text.size;
    return &a->text;
}

/* The name of the index-th of "a|b|c". */
static void add_choice(struct up_args *a, const char *setting, const char *choices, int index)
{
    while (index-- > 0)
        choices = strchr(choices, '|') + 1;
    buf_printf(next(a), "--%s=%.*s", setting, (int)strcspn(choices, "|"), choices);
}

/* The i-th of all processes listens i ports higher; a port of the system's choice it chooses itself. */
static void add_metrics(struct up_args *a, const char *address, uint32_t i)
{
    char host[ADDRESS_HOST_MAX];
    uint16_t port;
    if (!address) return;
    CHECK(address_split(address, host, &port) == OK); /* it was checked */
    buf_printf(next(a), strchr(host, ':') ? "--metrics=[%s]:%u" : "--metrics=%s:%u", host,
               port ? port + i : 0);
}

/* Named by role and number, so that a node finds what it had before. */
static void add_tiers(struct up_args *a, const struct up_options *o, const char *name)
{
    if (o->kv_host_bytes)
        buf_printf(next(a), "--kv-host-bytes=%llu", (unsigned long long)o->kv_host_bytes);
    if (o->kv_redis) buf_printf(next(a), "--kv-redis=%s", o->kv_redis);
    if (o->kv_redis_user) buf_printf(next(a), "--kv-redis-user=%s", o->kv_redis_user);
    if (o->kv_redis_password) buf_printf(next(a), "--kv-redis-password=%s", o->kv_redis_password);
    if (!o->kv_disk) return;
    const char *role = name[0] == 'd' ? "decode" : "prefill";
    buf_printf(next(a), "--kv-disk=%s/%s-%s", o->kv_disk, role, name + 1);
    buf_printf(next(a), "--kv-disk-bytes=%llu", (unsigned long long)o->kv_disk_bytes);
}

static void add_place(struct up_args *a, const struct placement *place)
{
    char cpus[4096]; /* a list cut short would be none */
    if (place->threads) buf_printf(next(a), "--threads=%u", place->threads);
    if (!place->own) return;
    cpus_print(&place->cpus, cpus, sizeof cpus);
    buf_printf(next(a), "--cpus=%s", cpus);
}

static void add_node(struct up_args *a, const struct up_options *o, const struct up_child *c)
{
    buf_printf(next(a), "--router=%s", c->nodes);
    buf_printf(next(a), "--device=%s", c->node->device);
    if (c->sharers > 1) buf_printf(next(a), "--kv-share=%.3f", KV_SHARE / c->sharers);
    add_choice(a, "link", UP_LINKS, o->link);
    add_tiers(a, o, c->name);
    add_place(a, &c->node->place);
    if (o->blocks) buf_printf(next(a), "--blocks=%lld", (long long)o->blocks);
    if (o->dry_run) buf_add_string(next(a), "--dry-run");
}

static void add_router(struct up_args *a, const struct up_child *c)
{
    buf_printf(next(a), "--listen-clients=%s", c->clients);
    buf_printf(next(a), "--listen-nodes=%s", c->nodes);
}

enum err up_args_make(struct up_args *a, const struct up_options *o, const struct up_child *c)
{
    *a = (struct up_args){0};
    buf_add_string(next(a), c->program);
    buf_printf(next(a), "--model=%s", c->model);
    buf_printf(next(a), "--name=%s", c->name);
    add_choice(a, "log-level", UP_LOG_LEVELS, o->log_level);
    buf_printf(next(a), "--trusted-network=%s", o->trusted_network ? "true" : "false");
    add_metrics(a, o->metrics, c->number);
    if (c->node)
        add_node(a, o, c);
    else
        add_router(a, c);
    for (uint32_t i = 0; a->text.error == OK && i < a->count; i++)
        a->item[i] = a->text.data + a->at[i];
    return a->text.error;
}

void up_args_fini(struct up_args *a)
{
    buf_fini(&a->text);
}
