#include "proto/wire.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "common/mem.h"
#include "proto/msg.h"

struct wire_line {
    _Atomic size_t bytes;
    _Atomic uint32_t holders; /* its owner and each message that ZeroMQ has */
};

struct parcel { /* one message on its way out; ZeroMQ's thread gives it back */
    struct wire_line *line;
    size_t size;
    char bytes[];
};

struct wire {
    void *context, *socket;
    enum wire_side side;
    int fd;
    bool holds, holds_first; /* `received`, `first` are open */
    zmq_msg_t received, first;
    char address[MSG_ADDRESS_MAX * 2];
};

/* ---- lines ---- */

struct wire_line *wire_line_new(void)
{
    struct wire_line *line = mem_new(sizeof *line);
    if (line) atomic_init(&line->holders, 1);
    return line;
}

void wire_line_free(struct wire_line *line)
{
    if (line && atomic_fetch_sub(&line->holders, 1) == 1) mem_free(line);
}

static void parcel_free(void *bytes, void *parcel)
{
    struct parcel *p = parcel;
    (void)bytes;
    atomic_fetch_sub(&p->line->bytes, p->size + sizeof *p);
    wire_line_free(p->line);
    mem_free(p);
}

static struct parcel *parcel_new(struct wire_line *line, const void *bytes, size_t size)
{
    struct parcel *p = mem_new(sizeof *p + size);
    if (!p) return NULL;
    p->line = line;
    p->size = size;
    memcpy(p->bytes, bytes, size);
    atomic_fetch_add(&line->bytes, size + sizeof *p);
    atomic_fetch_add(&line->holders, 1);
    return p;
}

/* ---- opening ---- */

static enum err set_options(struct wire *w)
{
    const struct {
        int option, value;
    } options[] = {
        {ZMQ_LINGER, 0},
        {ZMQ_SNDHWM, 0}, /* bytes are counted by the line instead */
        {ZMQ_RCVHWM, WIRE_RECEIVE_QUEUE},
        {ZMQ_HANDSHAKE_IVL, WIRE_HANDSHAKE_MS},
        {ZMQ_HEARTBEAT_IVL, WIRE_HEARTBEAT_MS},
        {ZMQ_HEARTBEAT_TIMEOUT, WIRE_DEAD_MS},
        {ZMQ_RECONNECT_IVL, 100},
        {ZMQ_RECONNECT_IVL_MAX, 1000},
        {ZMQ_CONNECT_TIMEOUT, WIRE_HANDSHAKE_MS},
        {ZMQ_BACKLOG, 512},
        {w->side == WIRE_LISTEN ? ZMQ_ROUTER_MANDATORY : ZMQ_IMMEDIATE, 1},
    };
    int64_t bytes_max = MSG_BYTES_MAX;
    bool ok = zmq_setsockopt(w->socket, ZMQ_MAXMSGSIZE, &bytes_max, sizeof bytes_max) == 0;
    for (size_t i = 0; i < sizeof options / sizeof options[0] && ok; i++)
        ok = zmq_setsockopt(w->socket, options[i].option, &options[i].value, sizeof(int)) == 0;
    return ok ? OK : err_set(ERR_IO, "ZeroMQ refuses an option: %s", zmq_strerror(errno));
}

static enum err connect_or_bind(struct wire *w, const char *address)
{
    bool listen = w->side == WIRE_LISTEN;
    int rc = listen ? zmq_bind(w->socket, address) : zmq_connect(w->socket, address);
    if (rc == 0) return OK;
    if (errno == EADDRINUSE)
        return err_set(ERR_IO, "%s is occupied by another program: end it or choose another port",
                       address);
    if (errno == EINVAL)
        return err_set(ERR_INVALID, "%s is no address: write tcp://HOST:PORT", address);
    return err_set(ERR_IO, "cannot %s %s: %s", listen ? "listen on" : "dial", address,
                   zmq_strerror(errno));
}

static enum err open_socket(struct wire *w, const char *address)
{
    enum err e;
    size_t size = sizeof w->fd, address_size = sizeof w->address;
    w->context = zmq_ctx_new();
    if (!w->context) return err_set(ERR_IO, "no ZeroMQ context: %s", zmq_strerror(errno));
    w->socket = zmq_socket(w->context, w->side == WIRE_LISTEN ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!w->socket) return err_set(ERR_IO, "no ZeroMQ socket: %s", zmq_strerror(errno));
    if ((e = set_options(w)) != OK) return e;
    if ((e = connect_or_bind(w, address)) != OK) return e;
    if (zmq_getsockopt(w->socket, ZMQ_FD, &w->fd, &size) != 0 ||
        zmq_getsockopt(w->socket, ZMQ_LAST_ENDPOINT, w->address, &address_size) != 0)
        return err_set(ERR_IO, "%s: %s", address, zmq_strerror(errno));
    return OK;
}

/* tcp://HOST:PORT with a port of digits up to 65535; ZeroMQ itself takes more and guesses. */
static bool is_address(const char *address)
{
    const char *colon = strrchr(address, ':');
    if (strncmp(address, "tcp://", 6) != 0 || strlen(address) > MSG_ADDRESS_MAX) return false;
    if (colon <= address + 6) return false;
    size_t digits = strspn(colon + 1, "0123456789");
    return digits >= 1 && digits <= 5 && colon[1 + digits] == '\0' && atoi(colon + 1) <= UINT16_MAX;
}

enum err wire_check_address(const char *address)
{
    if (is_address(address)) return OK;
    return err_set(ERR_INVALID, "\"%.*s\" is no address: write tcp://HOST:PORT", MSG_ADDRESS_MAX,
                   address);
}

enum err wire_open(struct wire **out, enum wire_side side, const char *address)
{
    enum err e = wire_check_address(address);
    if (e != OK) return e;
    struct wire *w = mem_new(sizeof *w);
    if (!w) return ERR_MEMORY;
    w->side = side;
    if ((e = open_socket(w, address)) != OK) {
        wire_close(w, 0);
        return e;
    }
    *out = w;
    return OK;
}

static void drop_first(struct wire *w)
{
    if (w->holds_first) zmq_msg_close(&w->first);
    w->holds_first = false;
}

void wire_close(struct wire *w, int linger_ms)
{
    if (!w) return;
    if (w->holds) zmq_msg_close(&w->received);
    drop_first(w);
    if (w->socket) {
        zmq_setsockopt(w->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
        zmq_close(w->socket);
    }
    while (w->context && zmq_ctx_term(w->context) != 0 && errno == EINTR)
        ;
    mem_free(w);
}

int wire_fd(const struct wire *w)
{
    return w->fd;
}

const char *wire_address(const struct wire *w)
{
    return w->address;
}

bool wire_readable(struct wire *w)
{
    int events = 0;
    size_t size = sizeof events;
    if (zmq_getsockopt(w->socket, ZMQ_EVENTS, &events, &size) != 0) return false;
    return events & ZMQ_POLLIN || (w->holds_first && events & ZMQ_POLLOUT);
}

/* ---- sending ---- */

static enum err send_failed(void)
{
    if (errno == EHOSTUNREACH || errno == EAGAIN)
        return err_set(ERR_PEER, "not connected"); /* there is no high-water mark to be at */
    return err_set(ERR_IO, "ZeroMQ does not send: %s", zmq_strerror(errno));
}

static enum err pack(struct wire_line *line, const void *bytes, size_t size, zmq_msg_t *m)
{
    if (atomic_load(&line->bytes) + size > WIRE_QUEUE_BYTES_MAX)
        return err_set(ERR_FULL, "more than %d MiB wait for a peer", WIRE_QUEUE_BYTES_MAX >> 20);
    struct parcel *p = parcel_new(line, bytes, size);
    if (!p) return ERR_MEMORY;
    if (zmq_msg_init_data(m, p->bytes, size, parcel_free, p) == 0) return OK;
    parcel_free(p->bytes, p);
    return err_set(ERR_MEMORY, "out of memory in ZeroMQ");
}

enum err wire_send(struct wire *w, const struct wire_name *to, struct wire_line *line,
                   const void *bytes, size_t size)
{
    zmq_msg_t m;
    CHECK((w->side == WIRE_LISTEN) == (to != NULL));
    enum err e = pack(line, bytes, size, &m);
    if (e != OK) return e;
    bool sent =
        (!to || zmq_send(w->socket, to->bytes, to->size, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0) &&
        zmq_msg_send(&m, w->socket, ZMQ_DONTWAIT) >= 0;
    if (sent) return OK;
    e = send_failed();
    zmq_msg_close(&m);
    return e;
}

static void try_first(struct wire *w)
{
    if (w->holds_first && zmq_msg_send(&w->first, w->socket, ZMQ_DONTWAIT) >= 0)
        w->holds_first = false; /* it is ZeroMQ's now */
}

enum err wire_send_first(struct wire *w, struct wire_line *line, const void *bytes, size_t size)
{
    CHECK(w->side == WIRE_DIAL);
    drop_first(w);
    enum err e = pack(line, bytes, size, &w->first);
    if (e != OK) return e;
    w->holds_first = true;
    try_first(w);
    return OK;
}

/* ---- receiving ---- */

/* The next part into w->received; false: there is none now. */
static bool next_part(struct wire *w)
{
    if (w->holds) zmq_msg_close(&w->received);
    zmq_msg_init(&w->received);
    w->holds = true;
    while (zmq_msg_recv(&w->received, w->socket, ZMQ_DONTWAIT) < 0)
        if (errno != EINTR) return false;
    return true;
}

static enum err odd_form(struct wire *w)
{
    while (zmq_msg_more(&w->received) && next_part(w))
        ; /* all parts of one message are there, or none */
    return err_set(ERR_FORMAT, "a message of an unexpected number of parts");
}

enum err wire_receive(struct wire *w, struct wire_name *from, const void **bytes, size_t *size)
{
    try_first(w);
    if (!next_part(w)) return ERR_AGAIN;
    if (w->side == WIRE_LISTEN) {
        size_t n = zmq_msg_size(&w->received);
        if (n == 0 || n > sizeof from->bytes || !zmq_msg_more(&w->received)) return odd_form(w);
        from->size = (unsigned char)n;
        memcpy(from->bytes, zmq_msg_data(&w->received), n);
        if (!next_part(w)) return ERR_AGAIN;
    }
    if (zmq_msg_more(&w->received)) return odd_form(w);
    *bytes = zmq_msg_data(&w->received);
    *size = zmq_msg_size(&w->received);
    return OK;
}
