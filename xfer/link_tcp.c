/* One TCP connection. On the wire each frame has its size in front: 4 bytes, little-endian.
 *
 * What the kernel does not take of a frame is copied aside, so that `send` never keeps the caller's
 * pieces; nothing more is taken until that rest has gone. Incoming bytes are read in large pieces
 * into a buffer that starts small, so that a stranger who connects and says nothing costs
 * little. */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/byte_order.h"
#include "common/mem.h"
#include "xfer/link.h"

enum {
    PREFIX_BYTES = 4,
    IN_BYTES_FIRST = 64 << 10,
    WINDOW_BYTES = 4 << 20,
    BACKLOG = 64,
    UNANSWERED_MS = 10000, /* bytes on the way without an answer for so long: the host has gone */
};

/* Bytes [first, end) of data are waiting. */
struct store {
    uint8_t *data;
    size_t capacity, first, end;
};

struct tcp_link {
    struct kv_link base;
    int fd, epoll; /* epoll: watches fd, and is what the caller watches */
    bool connecting, wants_out, ended;
    enum err dead; /* OK: it lives */
    char dead_text[96];
    uint32_t frame_bytes_max;
    struct store in, out;
    size_t in_frame_bytes; /* of the frame that receive has handed out, with its prefix */
};

struct tcp_listener {
    struct kv_listener base;
    int fd;
    struct kv_link_options options;
    char address[KV_LINK_ADDRESS_MAX];
};

static struct tcp_link *tcp(const struct kv_link *link)
{
    return (struct tcp_link *)link;
}

static enum err die(struct tcp_link *t, enum err e, const char *what, int error)
{
    if (t->dead == OK) {
        t->dead = e;
        snprintf(t->dead_text, sizeof t->dead_text, "tcp link: %s%s%s", what, error ? ": " : "",
                 error ? strerror(error) : "");
    }
    return err_set(t->dead, "%s", t->dead_text);
}

static size_t store_bytes(const struct store *s)
{
    return s->end - s->first;
}

/* Room for `more` bytes behind the waiting ones, which may move to the front. */
static enum err store_reserve(struct store *s, size_t more)
{
    size_t have = store_bytes(s);
    if (s->capacity - s->end >= more) return OK;
    if (have > 0 && s->first > 0) memmove(s->data, s->data + s->first, have);
    s->first = 0;
    s->end = have;
    if (s->capacity - s->end >= more) return OK;
    uint8_t *grown = mem_resize(s->data, have + more, 1);
    if (!grown) return ERR_MEMORY;
    s->data = grown;
    s->capacity = have + more;
    return OK;
}

/* "127.0.0.1:80", "[::1]:80", "host:80" */
static enum err resolve(const char *where, int flags, struct addrinfo **found)
{
    char host[KV_LINK_ADDRESS_MAX];
    const char *colon = strrchr(where, ':');
    size_t n = colon ? (size_t)(colon - where) : 0;
    if (n == 0 || n >= sizeof host || !colon[1])
        return err_set(ERR_INVALID, "\"%s\" is no HOST:PORT", where);
    if (where[0] == '[' && where[n - 1] == ']') {
        where++;
        n -= 2;
    }
    memcpy(host, where, n);
    host[n] = 0;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    int rc = getaddrinfo(host, colon + 1, &hints, found);
    return rc == 0 ? OK : err_set(ERR_INVALID, "address %s: %s", where, gai_strerror(rc));
}

static enum err watch(struct tcp_link *t, bool out)
{
    if (out == t->wants_out) return OK;
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0)};
    if (epoll_ctl(t->epoll, EPOLL_CTL_MOD, t->fd, &event) != 0)
        return die(t, ERR_IO, "epoll_ctl", errno);
    t->wants_out = out;
    return OK;
}

static void tcp_close(struct kv_link *link)
{
    if (!link) return;
    struct tcp_link *t = tcp(link);
    if (t->epoll >= 0) close(t->epoll);
    if (t->fd >= 0) close(t->fd);
    mem_free(t->in.data);
    mem_free(t->out.data);
    mem_free(t);
}

/* Takes fd over, also when it fails. */
static enum err link_new(struct kv_link **out, int fd, bool connecting,
                         const struct kv_link_options *options)
{
    struct tcp_link *t = mem_new(sizeof *t);
    if (!t) {
        close(fd);
        return ERR_MEMORY;
    }
    int on = 1, unanswered_ms = UNANSWERED_MS;
    *t = (struct tcp_link){.base.ops = &kv_link_tcp,
                           .fd = fd,
                           .connecting = connecting,
                           .wants_out = true,
                           .frame_bytes_max = options->frame_bytes_max};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT};
    t->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (t->epoll < 0 || epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &event) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms) != 0) {
        enum err e = err_set(ERR_IO, "tcp link: %s", strerror(errno));
        tcp_close(&t->base);
        return e;
    }
    *out = &t->base;
    return OK;
}

static enum err tcp_dial(struct kv_link **link, const char *address,
                         const struct kv_link_options *options)
{
    struct addrinfo *found = NULL;
    enum err e;
    *link = NULL;
    if (strncmp(address, "tcp:", 4) != 0)
        return err_set(ERR_UNSUPPORTED, "%.32s is no tcp address", address);
    if ((e = resolve(address + 4, AI_NUMERICHOST | AI_NUMERICSERV, &found)) != OK) return e;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        e = err_set(ERR_IO, "socket: %s", strerror(errno));
    } else if (connect(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS) {
        e = err_set(ERR_PEER, "connect %s: %s", address, strerror(errno));
        close(fd);
    } else {
        e = link_new(link, fd, true, options);
    }
    freeaddrinfo(found);
    return e;
}

static enum err finish_connecting(struct tcp_link *t)
{
    struct pollfd p = {.fd = t->fd, .events = POLLOUT};
    int error = 0;
    socklen_t size = sizeof error;
    if (poll(&p, 1, 0) == 0) return ERR_AGAIN;
    if (getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    if (error != 0) return die(t, ERR_PEER, "connect", error);
    t->connecting = false;
    return OK;
}

/* Writes what was put aside. OK: nothing is left. */
static enum err flush(struct tcp_link *t)
{
    while (store_bytes(&t->out) > 0) {
        ssize_t n = send(t->fd, t->out.data + t->out.first, store_bytes(&t->out), MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return ERR_AGAIN;
        if (n < 0) return die(t, ERR_PEER, "send", errno);
        t->out.first += (size_t)n;
    }
    t->out.first = t->out.end = 0;
    return OK;
}

static enum err tcp_poll(struct kv_link *link)
{
    struct tcp_link *t = tcp(link);
    enum err e;
    if (t->dead != OK) return die(t, t->dead, "", 0);
    if (t->connecting && (e = finish_connecting(t)) != OK) return e;
    e = flush(t);
    if (e != OK && e != ERR_AGAIN) return e;
    return watch(t, e == ERR_AGAIN);
}

/* What is left of the pieces after the first `sent` bytes goes into t->out. */
static enum err put_aside(struct tcp_link *t, const struct iovec *iov, uint32_t count, size_t sent,
                          size_t total)
{
    if (store_reserve(&t->out, total - sent) != OK)
        return die(t, ERR_MEMORY, "no memory for the rest of a frame", 0);
    for (uint32_t i = 0; i < count; i++) {
        size_t skip = sent < iov[i].iov_len ? sent : iov[i].iov_len;
        size_t n = iov[i].iov_len - skip;
        if (n > 0) memcpy(t->out.data + t->out.end, (uint8_t *)iov[i].iov_base + skip, n);
        t->out.end += n;
        sent -= skip;
    }
    return watch(t, true);
}

static enum err tcp_send(struct kv_link *link, const struct kv_piece *pieces, uint32_t pieces_count)
{
    struct tcp_link *t = tcp(link);
    struct iovec iov[KV_LINK_PIECES_MAX + 1];
    size_t size = kv_pieces_bytes(pieces, pieces_count), total = size + PREFIX_BYTES;
    uint8_t prefix[PREFIX_BYTES];
    CHECK(size <= t->frame_bytes_max && pieces_count <= KV_LINK_PIECES_MAX);
    le32_put(prefix, (uint32_t)size);
    enum err e = t->dead != OK ? die(t, t->dead, "", 0) : t->connecting ? ERR_AGAIN : flush(t);
    if (e == ERR_AGAIN && !t->connecting && watch(t, true) != OK) return t->dead;
    if (e != OK) return e;
    iov[0] = (struct iovec){prefix, sizeof prefix};
    for (uint32_t i = 0; i < pieces_count; i++)
        iov[i + 1] = (struct iovec){(void *)pieces[i].bytes, pieces[i].size};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = pieces_count + 1};
    ssize_t n;
    do {
        n = sendmsg(t->fd, &message, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) return watch(t, true) == OK ? ERR_AGAIN : t->dead;
    if (n < 0) return die(t, ERR_PEER, "send", errno);
    return (size_t)n == total ? OK : put_aside(t, iov, pieces_count + 1, (size_t)n, total);
}

/* Whether a whole frame is waiting; ERR_MORE: at least *wanted further bytes are needed. */
static enum err frame_ready(struct tcp_link *t, size_t *wanted)
{
    size_t have = store_bytes(&t->in);
    *wanted = PREFIX_BYTES;
    if (have < PREFIX_BYTES) return ERR_MORE;
    uint32_t size = le32_get(t->in.data + t->in.first);
    if (size > t->frame_bytes_max) return die(t, ERR_FORMAT, "a frame longer than agreed", 0);
    t->in_frame_bytes = PREFIX_BYTES + (size_t)size;
    if (have >= t->in_frame_bytes) return OK;
    *wanted = t->in_frame_bytes - have;
    return ERR_MORE;
}

static enum err read_more(struct tcp_link *t, size_t wanted)
{
    if (t->ended) return die(t, ERR_PEER, "closed by the other side", 0);
    if (wanted < IN_BYTES_FIRST) wanted = IN_BYTES_FIRST;
    if (store_reserve(&t->in, wanted) != OK) return die(t, ERR_MEMORY, "no memory to receive", 0);
    ssize_t n;
    do {
        n = recv(t->fd, t->in.data + t->in.end, t->in.capacity - t->in.end, 0);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) return ERR_AGAIN;
    if (n < 0) return die(t, ERR_PEER, "receive", errno);
    if (n == 0) t->ended = true;
    t->in.end += (size_t)n;
    return OK;
}

static enum err tcp_receive(struct kv_link *link, const void **bytes, size_t *size)
{
    struct tcp_link *t = tcp(link);
    size_t wanted;
    enum err e = t->dead != OK ? die(t, t->dead, "", 0) : t->connecting ? ERR_AGAIN : OK;
    if (e != OK) return e;
    while ((e = frame_ready(t, &wanted)) == ERR_MORE)
        if ((e = read_more(t, wanted)) != OK) return e;
    if (e != OK) return e;
    *bytes = t->in.data + t->in.first + PREFIX_BYTES;
    *size = t->in_frame_bytes - PREFIX_BYTES;
    return OK;
}

static void tcp_release(struct kv_link *link)
{
    struct tcp_link *t = tcp(link);
    t->in.first += t->in_frame_bytes;
    t->in_frame_bytes = 0;
    if (t->in.first == t->in.end) t->in.first = t->in.end = 0;
}

/* A listener on all interfaces is told to others by the first address that is not loopback. */
static void outside_address(struct sockaddr_storage *address)
{
    struct ifaddrs *all, *i;
    if (address->ss_family != AF_INET || getifaddrs(&all) != 0) return;
    struct sockaddr_in *in = (struct sockaddr_in *)address;
    in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (i = all; i; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET) continue;
        struct in_addr own = ((struct sockaddr_in *)i->ifa_addr)->sin_addr;
        if (ntohl(own.s_addr) >> 24 == 127) continue;
        in->sin_addr = own;
        break;
    }
    freeifaddrs(all);
}

static enum err print_address(struct tcp_listener *l)
{
    struct sockaddr_storage bound = {0};
    socklen_t size = sizeof bound;
    char host[KV_LINK_ADDRESS_MAX - 16], port[8];
    if (getsockname(l->fd, (struct sockaddr *)&bound, &size) != 0)
        return err_set(ERR_IO, "getsockname: %s", strerror(errno));
    if (bound.ss_family == AF_INET && !((struct sockaddr_in *)&bound)->sin_addr.s_addr)
        outside_address(&bound);
    if (getnameinfo((struct sockaddr *)&bound, size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return err_set(ERR_IO, "an address without numbers");
    const char *format = bound.ss_family == AF_INET6 ? "tcp:[%s]:%s" : "tcp:%s:%s";
    snprintf(l->address, sizeof l->address, format, host, port);
    return OK;
}

static void tcp_unlisten(struct kv_listener *listener)
{
    struct tcp_listener *l = (struct tcp_listener *)listener;
    if (!l) return;
    if (l->fd >= 0) close(l->fd);
    mem_free(l);
}

static enum err tcp_listen(struct kv_listener **out, const char *where,
                           const struct kv_link_options *options)
{
    struct addrinfo *found = NULL;
    enum err e;
    int on = 1;
    *out = NULL;
    if ((e = resolve(where, AI_PASSIVE, &found)) != OK) return e;
    struct tcp_listener *l = mem_new(sizeof *l);
    if (!l) {
        freeaddrinfo(found);
        return ERR_MEMORY;
    }
    l->base.ops = &kv_link_tcp;
    l->options = *options;
    l->fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(l->fd, found->ai_addr, found->ai_addrlen) != 0 || listen(l->fd, BACKLOG) != 0)
        e = err_set(ERR_IO, "cannot listen at %s: %s", where, strerror(errno));
    else
        e = print_address(l);
    freeaddrinfo(found);
    if (e != OK) {
        tcp_unlisten(&l->base);
        return e;
    }
    *out = &l->base;
    return OK;
}

static enum err tcp_accept(struct kv_listener *listener, struct kv_link **link)
{
    struct tcp_listener *l = (struct tcp_listener *)listener;
    *link = NULL;
    int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) return link_new(link, fd, false, &l->options);
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return ERR_AGAIN;
    return err_set(ERR_IO, "accept: %s", strerror(errno));
}

static const char *tcp_address(const struct kv_listener *listener)
{
    return ((const struct tcp_listener *)listener)->address;
}

static int tcp_listener_fd(const struct kv_listener *listener)
{
    return ((const struct tcp_listener *)listener)->fd;
}

static int tcp_fd(const struct kv_link *link)
{
    return tcp(link)->epoll;
}

static struct kv_link_facts tcp_facts(const struct kv_link *link)
{
    uint64_t two_frames = 2ull * tcp(link)->frame_bytes_max;
    return (struct kv_link_facts){.window_bytes =
                                      WINDOW_BYTES > two_frames ? WINDOW_BYTES : two_frames};
}

const struct kv_link_ops kv_link_tcp = {
    .name = "tcp",
    .version = KV_LINK_VERSION,
    .listen = tcp_listen,
    .unlisten = tcp_unlisten,
    .address = tcp_address,
    .listener_fd = tcp_listener_fd,
    .accept = tcp_accept,
    .dial = tcp_dial,
    .fd = tcp_fd,
    .facts = tcp_facts,
    .poll = tcp_poll,
    .send = tcp_send,
    .receive = tcp_receive,
    .release = tcp_release,
    .close = tcp_close,
};
