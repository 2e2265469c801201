/* own_links: the links that a node listens on itself, and the transfer (xfer/xfer.h) over them, made of what
 * its settings say. How the links to others do is the core's (links.c).
 *
 *     struct own_links links = {0};
 *     if ((e = own_links_check(&options, trusted)) != OK) return e;            // wrong usage
 *     const struct own_links_at at = {&options, router, trusted};
 *     if ((e = own_links_open(&links, &at, engine)) != OK) goto fail;          // listens; addresses known
 *     xfer_start(links.xfer); ... events come into links.events, rows into links.rows ...
 * fail:
 *     own_links_stop(&links); own_links_close(&links);
 *
 * Rules: what is told to other nodes has a host that they can dial. tcp must work, or the one link that is
 * forced; without others the node does. NCCL's own connections stay on this host unless the network is
 * trusted. Between start and stop the link thread reads and writes blocks of the pool that ops name. What a
 * failed open leaves is closed like the rest. Strings of the options live until close.
 * Owner: the loop thread; the link thread posts into the mailboxes. */
#ifndef TANDEM_NODE_OWN_LINKS_H
#define TANDEM_NODE_OWN_LINKS_H

#include "common/mailbox.h"
#include "engine/engine.h"
#include "proto/tcp.h"
#include "xfer/xfer.h"

enum own_link { OWN_LINK_AUTO, OWN_LINK_SHM, OWN_LINK_TCP, OWN_LINK_NCCL, OWN_LINK_IPC };
#define OWN_LINKS "auto|shm|tcp|nccl|ipc" /* the names, for settings */

struct own_links_options {
    enum own_link link;         /* the only one; auto: all that there may be */
    const char *listen_kv;      /* "HOST:PORT" of the tcp link */
    const char *nccl_interface; /* NULL or "": lo; on a trusted network NCCL chooses */
    const char *nccl_listen;    /* "HOST:PORT" where its links are set up; NULL or "": listen_kv's
                                   host, any port */
    uint32_t device_links_max;  /* nccl, ipc: open at once; 0: 32 */
    uint64_t retry_ns;
};

/* Where a node is. */
struct own_links_at {
    const struct own_links_options *options;
    const char *router;   /* "tcp://HOST:PORT": others reach this host as it does */
    bool trusted_network; /* else what listens must be loopback */
};

struct own_links {
    struct xfer *xfer;
    struct mailbox *events;                  /* struct xfer_event */
    struct mailbox *rows;                    /* struct xfer_link_row */
    const char *address[XFER_ADDRESSES_MAX]; /* for other nodes; of xfer */
    uint32_t addresses_count;
    struct engine *engine;
    void *staging; /* of the link thread, where the pool is on a device */
};

/* ERR_INVALID that names the setting. */
enum err own_links_check(const struct own_links_options *options, bool trusted_network);
/* What NCCL is told of its network interface, of options that were checked; "": it chooses. */
const char *own_links_interface(const struct own_links_options *options, bool trusted_network);
const char *own_link_name(enum own_link link); /* auto: "" */

/* Addresses to listen at, as others dial them; ERR_INVALID, ERR_IO name the setting. */
struct own_links_where {
    char kv[TCP_ADDRESS_TEXT];
    char control[TCP_ADDRESS_TEXT]; /* of nccl, beside the tcp link's own port */
};
enum err own_links_find(const struct own_links_at *at, struct own_links_where *where);
/* What to listen on, the one preferred first; returns how many. device_slots: the pool's device has slots of
 * device links. What is listened at are strings of `where`. */
uint32_t own_links_choose(const struct own_links_options *options, bool device_slots,
                          const struct own_links_where *where,
                          struct xfer_listen listen[XFER_ADDRESSES_MAX]);

enum err own_links_open(struct own_links *l, const struct own_links_at *at, struct engine *engine);
void own_links_stop(struct own_links *l);  /* what is still said is for nobody; joins the thread */
void own_links_close(struct own_links *l); /* before the engine */

#endif
