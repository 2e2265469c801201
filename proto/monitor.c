/* monitor: three pages, on libevent's listener and bufferevents. Its evhttp has no limit of connections
 * and none of their time, and here are no headers to understand.
 *
 * A guest: its request comes, up to the empty line; the answer goes; then our side is shut down, and what
 * still comes is thrown away until it hangs up, since closing before that could take the answer with it. */
#include "proto/monitor.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/listener.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/list.h"
#include "common/log.h"
#include "common/mem.h"
#include "proto/tcp.h"

enum { BACKLOG = 16, PAGE_BYTES_MAX = 4 << 20 };
#define DEAF_NS (100 * NS_PER_MS)

struct guest {
    struct monitor *monitor;
    struct bufferevent *io;
    struct list_link link;
    uint64_t deadline_ns;
    bool answered, hung_up;
};

struct monitor {
    struct loop *loop;
    struct loop_timer *timer; /* at the first guest's deadline, or when guests are let in again */
    struct evconnlistener *listener;
    const struct monitor_pages *pages;
    void *ctx;
    uint64_t guest_ns;
    uint64_t deaf_until_ns; /* no guest is let in; 0: all are */
    struct buf page, head;
    const char *type;        /* of the page */
    struct list_link guests; /* the oldest first */
    uint32_t guests_count;
    char address[TCP_ADDRESS_TEXT];
};

/* ---- pages ---- */

enum method { METHOD_GET, METHOD_HEAD, METHOD_OTHER };

struct request {
    enum method method;
    const char *path;
    size_t path_size;
};

/* "GET /metrics?x HTTP/1.1"; false: it is none. */
static bool parse(const char *line, size_t size, struct request *r)
{
    const char *end = line + size, *blank = memchr(line, ' ', size);
    if (!blank || blank == line) return false;
    const char *target = blank + 1, *after = memchr(target, ' ', (size_t)(end - target));
    if (!after || (size_t)(end - after) < 8 || memcmp(after, " HTTP/1.", 8) != 0) return false;
    const char *query = memchr(target, '?', (size_t)(after - target));
    size_t method_size = (size_t)(blank - line);
    r->method = METHOD_OTHER;
    if (method_size == 3 && memcmp(line, "GET", 3) == 0) r->method = METHOD_GET;
    if (method_size == 4 && memcmp(line, "HEAD", 4) == 0) r->method = METHOD_HEAD;
    r->path = target;
    r->path_size = (size_t)((query ? query : after) - target);
    return true;
}

static const char *reason_of(int code)
{
    switch (code) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 431: return "Request Header Fields Too Large";
    case 503: return "Service Unavailable";
    default: return "Internal Server Error";
    }
}

static int line_page(struct monitor *m, int code, const char *line)
{
    m->type = "text/plain; charset=utf-8";
    buf_clear(&m->page);
    return buf_printf(&m->page, "%s\n", line) == OK ? code : 500;
}

static int metrics_page(struct monitor *m, uint64_t now_ns)
{
    m->type = "text/plain; version=0.0.4; charset=utf-8";
    buf_clear(&m->page);
    if (m->pages->metrics(m->ctx, now_ns, &m->page) == OK) return 200;
    return line_page(m, 500, err_text());
}

static int health_page(struct monitor *m, uint64_t now_ns)
{
    (void)now_ns;
    return line_page(m, 200, "ok");
}

static int readiness_page(struct monitor *m, uint64_t now_ns)
{
    const char *missing = m->pages->missing(m->ctx, now_ns);
    return line_page(m, missing ? 503 : 200, missing ? missing : "ok");
}

/* Makes the page; the status. */
static int make_page(struct monitor *m, uint64_t now_ns, const struct request *r)
{
    static const struct {
        const char *path;
        int (*make)(struct monitor *m, uint64_t now_ns);
    } pages[] = {
        {"/metrics", metrics_page}, {"/healthz", health_page}, {"/readyz", readiness_page}};
    for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++) {
        if (strlen(pages[i].path) != r->path_size || memcmp(pages[i].path, r->path, r->path_size))
            continue;
        if (r->method == METHOD_OTHER) return line_page(m, 405, "only GET and HEAD");
        return pages[i].make(m, now_ns);
    }
    return line_page(m, 404, "there are /metrics, /healthz and /readyz");
}

/* ---- guests ---- */

static void set_timer(struct monitor *m)
{
    uint64_t when_ns = TIME_NEVER;
    if (!list_empty(&m->guests))
        when_ns = list_member(m->guests.next, struct guest, link)->deadline_ns;
    if (m->deaf_until_ns > 0 && m->deaf_until_ns < when_ns) when_ns = m->deaf_until_ns;
    loop_timer_set(m->timer, when_ns);
}

static void guest_free(struct guest *g)
{
    list_remove(&g->link);
    g->monitor->guests_count--;
    bufferevent_free(g->io); /* closes it */
    mem_free(g);
}

static void end_oldest(struct monitor *m)
{
    if (!list_empty(&m->guests)) guest_free(list_member(m->guests.next, struct guest, link));
}

/* m->page with its head; what cannot be put there ends with the guest's time. */
static void answer(struct guest *g, int code, bool body)
{
    struct monitor *m = g->monitor;
    buf_clear(&m->head);
    buf_printf(&m->head,
               "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
               "Cache-Control: no-store\r\n%sConnection: close\r\n\r\n",
               code, reason_of(code), m->type, m->page.size,
               code == 405 ? "Allow: GET, HEAD\r\n" : "");
    g->answered = true;
    if (m->head.error != OK || m->page.error != OK) return;
    bufferevent_write(g->io, m->head.data, m->head.size);
    if (body) bufferevent_write(g->io, m->page.data, m->page.size);
}

static void read_request(struct guest *g, uint64_t now_ns)
{
    struct request r = {.method = METHOD_GET};
    struct evbuffer *in = bufferevent_get_input(g->io);
    struct evbuffer_ptr end = evbuffer_search(in, "\r\n\r\n", 4, NULL);
    size_t size = evbuffer_get_length(in);
    if (end.pos < 0 && size < MONITOR_REQUEST_BYTES) return; /* there is more to come */
    if (end.pos < 0) {
        answer(g, line_page(g->monitor, 431, "the request is too long"), true);
        return;
    }
    const char *text = (const char *)evbuffer_pullup(in, end.pos + 4);
    const char *line_end = text ? memmem(text, (size_t)end.pos + 4, "\r\n", 2) : NULL;
    if (line_end && parse(text, (size_t)(line_end - text), &r))
        answer(g, make_page(g->monitor, now_ns, &r), r.method != METHOD_HEAD);
    else
        answer(g, line_page(g->monitor, 400, "no request of HTTP/1"), true);
}

static void on_read(struct bufferevent *io, void *arg)
{
    struct guest *g = arg;
    uint64_t now_ns = loop_callback_begin(g->monitor->loop);
    struct evbuffer *in = bufferevent_get_input(io);
    if (!g->answered) read_request(g, now_ns);
    if (g->answered) evbuffer_drain(in, evbuffer_get_length(in));
    loop_callback_end(g->monitor->loop);
}

static void on_written(struct bufferevent *io, void *arg)
{
    struct guest *g = arg;
    if (g->hung_up)
        guest_free(g);
    else
        shutdown(bufferevent_getfd(io), SHUT_WR);
}

static void on_end(struct bufferevent *io, short what, void *arg)
{
    struct guest *g = arg;
    bool writes = g->answered && evbuffer_get_length(bufferevent_get_output(io)) > 0;
    g->hung_up = true;
    if (!(what & BEV_EVENT_EOF) || !writes) guest_free(g);
}

static void on_accept(struct evconnlistener *listener, int fd, struct sockaddr *from, int from_size,
                      void *arg)
{
    struct monitor *m = arg;
    uint64_t now_ns = loop_callback_begin(m->loop);
    (void)listener, (void)from, (void)from_size;
    if (m->guests_count == MONITOR_GUESTS_MAX) end_oldest(m);
    struct guest *g = mem_new(sizeof *g);
    struct bufferevent *io =
        g ? bufferevent_socket_new(loop_base(m->loop), fd, BEV_OPT_CLOSE_ON_FREE) : NULL;
    if (io) {
        *g = (struct guest){.monitor = m, .io = io, .deadline_ns = now_ns + m->guest_ns};
        list_init(&g->link);
        list_push_back(&m->guests, &g->link);
        m->guests_count++;
        bufferevent_setcb(io, on_read, on_written, on_end, g);
        bufferevent_setwatermark(io, EV_READ, 0, MONITOR_REQUEST_BYTES);
        bufferevent_enable(io, EV_READ);
        set_timer(m);
    } else {
        mem_free(g);
        close(fd);
    }
    loop_callback_end(m->loop);
}

/* Most likely there are no file descriptors left. Who waits to be let in would be told of at once, again
 * and again: nobody is asked for a while. */
static void on_accept_error(struct evconnlistener *listener, void *arg)
{
    struct monitor *m = arg;
    uint64_t now_ns = loop_callback_begin(m->loop);
    end_oldest(m);
    evconnlistener_disable(listener);
    m->deaf_until_ns = now_ns + DEAF_NS;
    set_timer(m);
    loop_callback_end(m->loop);
}

static void on_timer(void *ctx, uint64_t now_ns)
{
    struct monitor *m = ctx;
    if (m->deaf_until_ns > 0 && m->deaf_until_ns <= now_ns) {
        m->deaf_until_ns = 0;
        evconnlistener_enable(m->listener);
    }
    while (!list_empty(&m->guests) &&
           list_member(m->guests.next, struct guest, link)->deadline_ns <= now_ns)
        end_oldest(m);
    set_timer(m);
}

/* ---- life ---- */

static enum err listen_at(struct monitor *m, const char *address)
{
    int fd;
    enum err e = tcp_listen(address, &fd, m->address);
    if (e != OK) return e;
    m->listener = evconnlistener_new(loop_base(m->loop), on_accept, m,
                                     LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, BACKLOG, fd);
    if (!m->listener) {
        close(fd);
        return err_set(ERR_MEMORY, "out of memory for %s", address);
    }
    evconnlistener_set_error_cb(m->listener, on_accept_error);
    return OK;
}

enum err monitor_open(struct monitor **monitor, struct loop *loop, const char *address,
                      const struct monitor_pages *pages, void *ctx)
{
    enum err e;
    *monitor = NULL;
    struct monitor *m = mem_new(sizeof *m);
    if (!m) return ERR_MEMORY;
    m->loop = loop;
    m->pages = pages;
    m->ctx = ctx;
    m->guest_ns = pages->guest_ns ? pages->guest_ns : MONITOR_GUEST_NS;
    m->page.limit_bytes = PAGE_BYTES_MAX;
    list_init(&m->guests);
    signal(SIGPIPE, SIG_IGN); /* a guest may be gone when its answer is written */
    if ((e = loop_timer_new(loop, on_timer, m, &m->timer)) != OK) goto fail;
    if ((e = listen_at(m, address)) != OK) goto fail;
    log_info("metrics_listens", "address=%s", m->address);
    *monitor = m;
    return OK;
fail:
    monitor_close(m);
    return e;
}

const char *monitor_address(const struct monitor *m)
{
    return m->address;
}

void monitor_close(struct monitor *m)
{
    if (!m) return;
    while (!list_empty(&m->guests))
        end_oldest(m);
    if (m->listener) evconnlistener_free(m->listener);
    loop_timer_free(m->timer);
    buf_fini(&m->page);
    buf_fini(&m->head);
    mem_free(m);
}
