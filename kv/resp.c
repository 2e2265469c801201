#include "kv/resp.h"

#include <ctype.h>
#include <errno.h>
#include <hiredis.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/address.h"
#include "common/buf.h"
#include "common/mem.h"

enum { ADDRESSES_MAX = 4, READ_BYTES = 64 << 10 };

struct address {
    struct sockaddr_storage name;
    socklen_t bytes;
};

/* A value stands between two pieces of the text. */
struct value {
    const void *bytes;
    size_t at; /* in the text */
};

struct resp {
    char *where, *user, *password; /* NULL: none */
    struct address address[ADDRESSES_MAX];
    uint32_t addresses_count, address_next;
    int fd; /* -1: not connected */
    redisReader *reader;
    size_t value_bytes;
    struct buf text; /* what is to be sent, without the values */
    struct value value[RESP_VALUES_MAX];
    uint32_t values_count;
    uint64_t pause_ns, retry_ns; /* 0: the last thing that was sent was answered */
    /* What the reader is filling. */
    struct resp_reply *reply;
    void *into;
    char read[READ_BYTES];
};

/* --- replies, as hiredis finds them --- */

/* Parts of arrays, which nobody here asks for, count as nothing. */
static struct resp_reply *reply_of(const redisReadTask *task)
{
    struct resp *c = task->privdata;
    return task->parent ? NULL : c->reply;
}

static void *some(const redisReadTask *task)
{
    return task->privdata; /* hiredis wants an object, of which it looks at nothing */
}

static void *on_string(const redisReadTask *task, char *bytes, size_t size)
{
    struct resp *c = task->privdata;
    struct resp_reply *r = reply_of(task);
    if (!r) return some(task);
    r->bytes = size;
    r->kind = task->type == REDIS_REPLY_ERROR    ? RESP_ERROR
              : task->type == REDIS_REPLY_STATUS ? RESP_STATUS
              : task->type == REDIS_REPLY_STRING ? RESP_BYTES
                                                 : RESP_OTHER;
    if (r->kind == RESP_BYTES && c->into && size <= c->value_bytes) memcpy(c->into, bytes, size);
    if (r->kind != RESP_ERROR && r->kind != RESP_STATUS) return some(task);
    size_t n = size < sizeof r->text ? size : sizeof r->text - 1;
    for (size_t i = 0; i < n; i++)
        r->text[i] = isprint((unsigned char)bytes[i]) && bytes[i] != '"' ? bytes[i] : '?';
    r->text[n] = 0;
    return some(task);
}

#if HIREDIS_MAJOR >= 1
static void *on_array(const redisReadTask *task, size_t count)
#else
static void *on_array(const redisReadTask *task, int count)
#endif
{
    (void)count;
    struct resp_reply *r = reply_of(task);
    if (r) r->kind = RESP_OTHER;
    return some(task);
}

static void *on_integer(const redisReadTask *task, long long integer)
{
    struct resp_reply *r = reply_of(task);
    if (r) r->kind = RESP_INTEGER, r->integer = integer;
    return some(task);
}

static void *on_nil(const redisReadTask *task)
{
    struct resp_reply *r = reply_of(task);
    if (r) r->kind = RESP_NIL;
    return some(task);
}

static void on_free(void *object)
{
    (void)object;
}

static redisReplyObjectFunctions functions = {.createString = on_string,
                                              .createArray = on_array,
                                              .createInteger = on_integer,
                                              .createNil = on_nil,
                                              .freeObject = on_free};

/* --- open, close --- */

static enum err resolve_unix(struct resp *c, const char *path)
{
    struct sockaddr_un *name = (struct sockaddr_un *)&c->address[0].name;
    if (!*path || strlen(path) >= sizeof name->sun_path)
        return err_set(ERR_INVALID, "redis tier: \"%s\": a path of 1 ... %zu bytes", c->where,
                       sizeof name->sun_path - 1);
    name->sun_family = AF_UNIX;
    strcpy(name->sun_path, path);
    c->address[0].bytes = sizeof *name;
    c->addresses_count = 1;
    return OK;
}

static enum err resolve(struct resp *c)
{
    char host[ADDRESS_HOST_MAX], service[8];
    uint16_t port;
    if (strncmp(c->where, "unix:", 5) == 0) return resolve_unix(c, c->where + 5);
    enum err e = address_split(c->where, host, &port);
    if (e != OK) return err_prefix(e, "redis tier");
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    snprintf(service, sizeof service, "%u", port);
    int rc = getaddrinfo(host, service, &hints, &found);
    if (rc != 0)
        return err_set(ERR_IO, "redis tier %s: no such host: %s", c->where, gai_strerror(rc));
    for (struct addrinfo *a = found; a && c->addresses_count < ADDRESSES_MAX; a = a->ai_next) {
        struct address *to = &c->address[c->addresses_count++];
        memcpy(&to->name, a->ai_addr, a->ai_addrlen);
        to->bytes = a->ai_addrlen;
    }
    freeaddrinfo(found);
    return OK;
}

static enum err copy(char **to, const char *from)
{
    *to = from ? mem_copy_string(from) : NULL;
    return from && !*to ? ERR_MEMORY : OK;
}

enum err resp_open(struct resp **out, const struct resp_options *o)
{
    *out = NULL;
    if (!o->where || !*o->where)
        return err_set(ERR_INVALID, "redis tier: which server? HOST:PORT or unix:PATH");
    if (o->user && !o->password)
        return err_set(ERR_INVALID, "redis tier: the user %s has no password", o->user);
    struct resp *c = mem_new(sizeof *c);
    if (!c) return ERR_MEMORY;
    c->fd = -1;
    c->value_bytes = o->value_bytes;
    enum err e = copy(&c->where, o->where);
    if (e == OK) e = copy(&c->user, o->user);
    if (e == OK) e = copy(&c->password, o->password);
    if (e == OK) e = resolve(c);
    if (e != OK) {
        resp_close(c);
        return e;
    }
    *out = c;
    return OK;
}

static void disconnect(struct resp *c)
{
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (c->reader) redisReaderFree(c->reader);
    c->reader = NULL;
}

void resp_close(struct resp *c)
{
    if (!c) return;
    disconnect(c);
    buf_fini(&c->text);
    mem_free(c->where);
    mem_free(c->user);
    mem_free(c->password);
    mem_free(c);
}

/* --- waiting --- */

/* The end of this connection, and a pause before the next. */
static enum err broken(struct resp *c, enum err e, const char *why)
{
    disconnect(c);
    c->pause_ns = c->pause_ns == 0                      ? RESP_PAUSE_NS
                  : c->pause_ns < RESP_PAUSE_MAX_NS / 2 ? 2 * c->pause_ns
                                                        : RESP_PAUSE_MAX_NS;
    c->retry_ns = clock_now_ns() + c->pause_ns;
    return err_set(e, "redis tier %s: %s", c->where, why);
}

static enum err wait_for(struct resp *c, short events, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t now_ns = clock_now_ns();
        if (now_ns >= deadline_ns) return broken(c, ERR_TIMEOUT, "no answer in time");
        uint64_t left_ns = deadline_ns - now_ns;
        struct pollfd p = {.fd = c->fd, .events = events};
        struct timespec t = {(time_t)(left_ns / NS_PER_S), (long)(left_ns % NS_PER_S)};
        int n = ppoll(&p, 1, &t, NULL);
        if (n > 0) return OK;
        if (n < 0 && errno != EINTR) return broken(c, ERR_IO, strerror(errno));
    }
}

/* --- sending --- */

void resp_begin(struct resp *c)
{
    buf_clear(&c->text);
    c->values_count = 0;
}

void resp_command(struct resp *c, int count, const char *const *words)
{
    buf_printf(&c->text, "*%d\r\n", count);
    for (int i = 0; i < count; i++)
        buf_printf(&c->text, "$%zu\r\n%s\r\n", strlen(words[i]), words[i]);
}

void resp_set(struct resp *c, const char *key, const void *value, uint64_t ttl_ms)
{
    CHECK(c->values_count < RESP_VALUES_MAX);
    buf_printf(&c->text, "*%d\r\n$3\r\nSET\r\n$%zu\r\n%s\r\n$%zu\r\n", ttl_ms > 0 ? 5 : 3,
               strlen(key), key, c->value_bytes);
    c->value[c->values_count++] = (struct value){value, c->text.size};
    buf_printf(&c->text, "\r\n");
    if (ttl_ms == 0) return;
    char ttl[24];
    int digits = snprintf(ttl, sizeof ttl, "%llu", (unsigned long long)ttl_ms);
    buf_printf(&c->text, "$2\r\nPX\r\n$%d\r\n%s\r\n", digits, ttl);
}

/* So many bytes of the pieces are sent. */
static void advance(struct iovec **piece, size_t *count, size_t sent)
{
    for (; *count > 0 && sent >= (*piece)->iov_len; ++*piece, --*count)
        sent -= (*piece)->iov_len;
    if (*count == 0) return;
    (*piece)->iov_base = (char *)(*piece)->iov_base + sent;
    (*piece)->iov_len -= sent;
}

static enum err send_pieces(struct resp *c, struct iovec *piece, size_t count, uint64_t deadline_ns)
{
    while (count > 0) {
        struct msghdr m = {.msg_iov = piece, .msg_iovlen = count};
        ssize_t n = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            advance(&piece, &count, (size_t)n);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            enum err e = wait_for(c, POLLOUT, deadline_ns);
            if (e != OK) return e;
        } else if (errno != EINTR) {
            return broken(c, ERR_PEER, strerror(errno));
        }
    }
    return OK;
}

static enum err send_all(struct resp *c, uint64_t deadline_ns)
{
    struct iovec piece[2 * RESP_VALUES_MAX + 1];
    size_t count = 0, done = 0;
    for (uint32_t i = 0; i < c->values_count; i++) {
        piece[count++] = (struct iovec){c->text.data + done, c->value[i].at - done};
        piece[count++] = (struct iovec){(void *)(uintptr_t)c->value[i].bytes, c->value_bytes};
        done = c->value[i].at;
    }
    piece[count++] = (struct iovec){c->text.data + done, c->text.size - done};
    return send_pieces(c, piece, count, deadline_ns);
}

static enum err connected(struct resp *c, uint64_t deadline_ns)
{
    int error = 0, one = 1;
    socklen_t size = sizeof error;
    enum err e = wait_for(c, POLLOUT, deadline_ns);
    if (e != OK) return e;
    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    if (error != 0) return broken(c, ERR_PEER, strerror(error));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* of no use on unix: sockets */
    c->reader = redisReaderCreateWithFunctions(&functions);
    if (!c->reader) return broken(c, ERR_MEMORY, "out of memory");
    c->reader->privdata = c;
    c->reader->maxbuf = 0; /* its buffer is kept between values */
    return OK;
}

static enum err login(struct resp *c, uint64_t deadline_ns)
{
    struct resp_reply r;
    struct buf kept = c->text; /* what the connection is made for */
    uint32_t values_count = c->values_count;
    c->text = (struct buf){0};
    c->values_count = 0;
    if (c->user)
        resp_command(c, 3, (const char *[]){"AUTH", c->user, c->password});
    else
        resp_command(c, 2, (const char *[]){"AUTH", c->password});
    enum err e = c->text.error;
    if (e == OK) e = send_all(c, deadline_ns);
    buf_fini(&c->text);
    c->text = kept;
    c->values_count = values_count;
    if (e == OK) e = resp_reply(c, &r, NULL, deadline_ns);
    if (e == OK && r.kind == RESP_ERROR) return broken(c, ERR_PEER, r.text);
    return e;
}

static enum err make_connection(struct resp *c, uint64_t deadline_ns)
{
    if (c->retry_ns != 0 && clock_now_ns() < c->retry_ns)
        return err_set(ERR_PEER, "redis tier %s: not connected", c->where);
    const struct address *a = &c->address[c->address_next++ % c->addresses_count];
    c->fd = socket(a->name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) return broken(c, ERR_IO, strerror(errno));
    if (connect(c->fd, (const struct sockaddr *)&a->name, a->bytes) != 0 && errno != EINPROGRESS)
        return broken(c, ERR_PEER, strerror(errno));
    enum err e = connected(c, deadline_ns);
    return e == OK && c->password ? login(c, deadline_ns) : e;
}

enum err resp_send(struct resp *c, uint64_t deadline_ns)
{
    if (c->text.error != OK) return c->text.error;
    if (clock_now_ns() >= deadline_ns)
        return err_set(ERR_TIMEOUT, "redis tier %s: the deadline is over", c->where);
    enum err e = c->fd < 0 ? make_connection(c, deadline_ns) : OK;
    return e == OK ? send_all(c, deadline_ns) : e;
}

/* --- reading --- */

static enum err read_more(struct resp *c, uint64_t deadline_ns)
{
    if (c->reader->len - c->reader->pos > c->value_bytes + RESP_SLACK)
        return broken(c, ERR_PEER, "an answer that is longer than any value");
    /* Bytes that never stop coming are as late as none. */
    if (clock_now_ns() >= deadline_ns) return broken(c, ERR_TIMEOUT, "no answer in time");
    for (;;) {
        ssize_t n = recv(c->fd, c->read, sizeof c->read, MSG_DONTWAIT);
        if (n > 0) {
            if (redisReaderFeed(c->reader, c->read, (size_t)n) == REDIS_OK) return OK;
            return broken(c, ERR_MEMORY, "out of memory");
        }
        if (n == 0) return broken(c, ERR_PEER, "the server has ended the connection");
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            enum err e = wait_for(c, POLLIN, deadline_ns);
            if (e != OK) return e;
        } else if (errno != EINTR) {
            return broken(c, ERR_PEER, strerror(errno));
        }
    }
}

enum err resp_reply(struct resp *c, struct resp_reply *reply, void *into, uint64_t deadline_ns)
{
    *reply = (struct resp_reply){.kind = RESP_OTHER};
    CHECK(c->fd >= 0);
    c->reply = reply;
    c->into = into;
    for (;;) {
        void *object = NULL;
        if (redisReaderGetReply(c->reader, &object) != REDIS_OK)
            return broken(c, ERR_PEER, "the server does not speak the Redis protocol");
        if (object) break;
        enum err e = read_more(c, deadline_ns);
        if (e != OK) return e;
    }
    if (reply->kind == RESP_OTHER) return broken(c, ERR_PEER, "an answer to another question");
    c->pause_ns = c->retry_ns = 0;
    return OK;
}
