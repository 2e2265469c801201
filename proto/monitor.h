/* monitor: the HTTP port of one process for orchestrators and Prometheus (docs/metrics.md).
 *
 *     static const struct monitor_pages pages = {print_metrics, say_missing};
 *     struct monitor *m;
 *     if ((e = monitor_open(&m, loop, "127.0.0.1:9100", &pages, ctx)) != OK) return e;
 *     ... loop_run: GET /metrics, /healthz and /readyz are answered at monitor_address(m) ...
 *     monitor_close(m);                                    // before loop_free
 *
 * Rules: served on the loop thread, so that /healthz tells that the loop turns; a page is made anew for
 * each request and must take much less than a millisecond. One request per connection, of which only
 * the first line has a meaning: methods other than GET and HEAD get 405, other paths 404, what is no
 * HTTP 400, more than MONITOR_REQUEST_BYTES 431. A connection ends MONITOR_GUEST_NS after it
 * began, whatever it does, and of more than MONITOR_GUESTS_MAX the oldest ends, so that no guest keeps
 * the next one out. SIGPIPE is ignored from the first monitor on. Owner: the loop thread. */
#ifndef TANDEM_PROTO_MONITOR_H
#define TANDEM_PROTO_MONITOR_H

#include "common/buf.h"
#include "proto/loop.h"

enum { MONITOR_GUESTS_MAX = 32, MONITOR_REQUEST_BYTES = 8192 };
#define MONITOR_GUEST_NS (10 * NS_PER_S)

struct monitor_pages {
    enum err (*metrics)(void *ctx, uint64_t now_ns, struct buf *page);
    /* NULL: it can serve; else one line that says what is missing, which lives until the next call. */
    const char *(*missing)(void *ctx, uint64_t now_ns);
    uint64_t guest_ns; /* a connection's time; 0: MONITOR_GUEST_NS */
};

struct monitor;

/* `address` is HOST:PORT, port 0: any. ERR_INVALID: no address. ERR_IO: the system's reason. */
enum err monitor_open(struct monitor **monitor, struct loop *loop, const char *address,
                      const struct monitor_pages *pages, void *ctx);
const char *monitor_address(const struct monitor *monitor); /* the port is resolved */
void monitor_close(struct monitor *monitor);                /* NULL is allowed */

#endif
