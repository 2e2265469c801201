#include "node/own_links.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/address.h"
#include "common/log.h"
#include "common/mem.h"

enum { ROWS_MAX = 512 };

static const char *const names[] = {"", "shm", "tcp", "nccl", "ipc"};

const char *own_link_name(enum own_link link)
{
    return names[link];
}

/* ---- what the settings say ---- */

static bool is_told(const char *text)
{
    return text && text[0];
}

/* NCCL neither encrypts nor authenticates: without a network to be trusted it stays on this host. A name
 * alone is to NCCL whatever begins so; "=" makes it this one. */
static const char loopback[] = "=lo";
const char *own_links_interface(const struct own_links_options *o, bool trusted_network)
{
    if (trusted_network) return is_told(o->nccl_interface) ? o->nccl_interface : "";
    return is_told(o->nccl_interface) && strcmp(o->nccl_interface, "lo") != 0 ? o->nccl_interface
                                                                              : loopback;
}

static enum err check_kv(const struct own_links_options *o, bool trusted_network)
{
    char host[ADDRESS_HOST_MAX];
    uint16_t port;
    enum err e = address_split(o->listen_kv, host, &port);
    if (e != OK) return err_prefix(e, "--listen-kv");
    bool of_host = o->link == OWN_LINK_SHM || o->link == OWN_LINK_IPC; /* nothing listens there */
    if (of_host || trusted_network || address_is_loopback(o->listen_kv)) return OK;
    return err_set(ERR_INVALID,
                   "--listen-kv %s is beyond loopback, where anybody could read and write "
                   "prompts' KV: listen on 127.0.0.1, or say --trusted-network if nobody else "
                   "reaches it",
                   o->listen_kv);
}

static enum err check_nccl(const struct own_links_options *o, bool trusted_network)
{
    char host[ADDRESS_HOST_MAX];
    uint16_t port;
    enum err e;
    if (is_told(o->nccl_listen) && (e = address_split(o->nccl_listen, host, &port)) != OK)
        return err_prefix(e, "--nccl-listen");
    if (trusted_network) return OK;
    if (is_told(o->nccl_listen) && !address_is_loopback(o->nccl_listen))
        return err_set(ERR_INVALID,
                       "--nccl-listen %s is beyond loopback, where anybody could feed prompts' KV: "
                       "say --trusted-network if nobody else reaches it",
                       o->nccl_listen);
    if (strcmp(own_links_interface(o, false), loopback) != 0)
        return err_set(ERR_INVALID,
                       "--nccl-interface %s is beyond loopback, where NCCL neither encrypts nor "
                       "authenticates: say --trusted-network if nobody else reaches it",
                       o->nccl_interface);
    return OK;
}

enum err own_links_check(const struct own_links_options *o, bool trusted_network)
{
    enum err e = check_kv(o, trusted_network);
    return e == OK ? check_nccl(o, trusted_network) : e;
}

/* ---- which links, and where ---- */

enum err own_links_find(const struct own_links_at *at, struct own_links_where *where)
{
    const struct own_links_options *o = at->options;
    enum err e = tcp_own_host(o->listen_kv, at->router, where->kv);
    if (e != OK) return err_prefix(e, "--listen-kv");
    if (is_told(o->nccl_listen))
        return err_prefix(tcp_own_host(o->nccl_listen, at->router, where->control),
                          "--nccl-listen");
    int host_bytes = (int)(strrchr(where->kv, ':') - where->kv); /* its form was checked */
    snprintf(where->control, sizeof where->control, "%.*s:0", host_bytes, where->kv);
    return OK;
}

uint32_t own_links_choose(const struct own_links_options *o, bool device_slots,
                          const struct own_links_where *where,
                          struct xfer_listen listen[XFER_ADDRESSES_MAX])
{
    static const enum own_link order[] = {OWN_LINK_IPC, OWN_LINK_NCCL, OWN_LINK_SHM, OWN_LINK_TCP};
    uint32_t count = 0;
    for (size_t i = 0; i < COUNT_OF(order); i++) {
        enum own_link link = order[i];
        bool of_device = link == OWN_LINK_IPC || link == OWN_LINK_NCCL;
        if (o->link != OWN_LINK_AUTO ? o->link != link : of_device && !device_slots) continue;
        listen[count++] = (struct xfer_listen){
            .name = names[link],
            .where = link == OWN_LINK_TCP    ? where->kv
                     : link == OWN_LINK_NCCL ? where->control
                                             : "",
            .optional = o->link == OWN_LINK_AUTO && link != OWN_LINK_TCP,
        };
    }
    return count;
}

static void warn_of_nccl(const struct own_links_at *at)
{
    const char *interface = own_links_interface(at->options, at->trusted_network);
    if (!interface[0]) interface = getenv("NCCL_SOCKET_IFNAME");
    log_warn("nccl_traffic_is_open",
             "interface=%s note=\"neither encrypted nor authenticated: the network has to be "
             "trusted\"",
             interface ? interface : "any");
}

/* ---- the pool's bytes: on the link thread ---- */

static enum err read_kv(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                        uint32_t layout, void *host)
{
    return engine_kv_read(ctx, layer, blocks, blocks_count, layout, host);
}
static enum err write_kv(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                         uint32_t layout, const void *host)
{
    return engine_kv_write(ctx, layer, blocks, blocks_count, layout, host);
}

static enum err gather_kv(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                          uint32_t layout, void *slot, uint64_t *hash)
{
    return engine_kv_gather(ctx, layer, blocks, blocks_count, layout, slot, hash);
}
static enum err scatter_kv(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                           uint32_t layout, const void *slot, uint64_t *hash)
{
    return engine_kv_scatter(ctx, layer, blocks, blocks_count, layout, slot, hash);
}

/* A pool that the link thread cannot touch itself. */
static enum err use_device(struct own_links *l, struct xfer_device *device)
{
    const struct engine_facts *f = engine_facts(l->engine);
    l->staging = engine_host_alloc(l->engine, xfer_staging_bytes(&f->geometry));
    if (!l->staging) return ERR_MEMORY;
    *device = (struct xfer_device){.ctx = l->engine,
                                   .read = read_kv,
                                   .write = write_kv,
                                   .staging = l->staging,
                                   .index = f->device_index};
    if (!f->kv_slots) return OK;
    device->gather = gather_kv;
    device->scatter = scatter_kv;
    return OK;
}

/* ---- what the link thread says ---- */

static void on_event(void *ctx, const struct xfer_event *event)
{
    struct own_links *l = ctx;
    enum err e = mailbox_send(l->events, event);
    CHECK(e == OK || e == ERR_CANCELLED); /* it has room for what each ticket says */
}

/* What a full mailbox does not take is said again with the link's next change. */
static void on_link(void *ctx, const struct xfer_link_row *row)
{
    struct own_links *l = ctx;
    (void)mailbox_send(l->rows, row);
}

/* ---- life ---- */

enum err own_links_open(struct own_links *l, const struct own_links_at *at, struct engine *engine)
{
    enum err e;
    const struct own_links_options *o = at->options;
    const struct engine_facts *f = engine_facts(engine);
    struct own_links_where where;
    *l = (struct own_links){.engine = engine};
    struct xfer_options x = {
        .geometry = f->geometry,
        .kv_base = engine_kv_host(engine),
        .blocks_count = f->blocks_count,
        .retry_ns = o->retry_ns,
        .on_link = on_link,
        .interface = own_links_interface(o, at->trusted_network),
        .links_max = o->device_links_max,
        .tickets_max = f->slots_count,
        .arrivals = true,
    };
    if ((e = mailbox_new(&l->events, sizeof(struct xfer_event), 3 * f->slots_count)) != OK)
        return e;
    if ((e = mailbox_new(&l->rows, sizeof(struct xfer_link_row), ROWS_MAX)) != OK) return e;
    if (!x.kv_base && (e = use_device(l, &x.device)) != OK) return e;
    if ((e = own_links_find(at, &where)) != OK) return e;
    x.listen_count = own_links_choose(o, x.device.gather != NULL, &where, x.listen);
    if ((e = xfer_open(&l->xfer, &x, on_event, l)) != OK) return e;
    const struct xfer_addresses *a = xfer_addresses(l->xfer);
    l->addresses_count = a->count;
    for (uint32_t i = 0; i < a->count; i++) {
        l->address[i] = a->address[i];
        if (strncmp(a->address[i], "nccl:", 5) == 0) warn_of_nccl(at);
    }
    return OK;
}

void own_links_stop(struct own_links *l)
{
    if (l->events) mailbox_close(l->events);
    if (l->rows) mailbox_close(l->rows);
    if (l->xfer) xfer_stop(l->xfer);
}

void own_links_close(struct own_links *l)
{
    xfer_close(l->xfer);
    if (l->staging) engine_host_free(l->engine, l->staging);
    mailbox_free(l->events);
    mailbox_free(l->rows);
    *l = (struct own_links){0};
}
