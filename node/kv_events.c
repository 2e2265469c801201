#include "node/kv_events.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

#include "common/byte_order.h"
#include "common/log.h"
#include "common/mem.h"
#include "proto/wire.h"

enum {
    TOPIC_BYTES = 2 * MSG_TEXT_MAX,
    NAME_BYTES = 256,            /* of a peer, given by ZeroMQ */
    QUEUE_MAX = 10000,           /* batches that one subscriber may be behind */
    REPLAY_BURST = 64,           /* batches sent in one turn, and requests taken, */
    REPLAY_BURST_BYTES = 1 << 20 /* but no batch after so much */
};
#define REPLAY_AGAIN_NS (1 * NS_PER_MS) /* a full queue is tried again */
#define REPLAY_NS (10 * NS_PER_S)       /* and given up */

struct batch {
    uint64_t number;
    uint32_t size;
    char *bytes;
};

struct kv_events {
    struct loop *loop;
    void *context, *pub, *replay;
    char address[MSG_ADDRESS_MAX * 2], replay_address[MSG_ADDRESS_MAX * 2], topic[TOPIC_BYTES];
    struct kv_event_pack *pack;
    enum kv_event_form form;
    struct loop_timer *flush, *again;
    struct loop_watch *watch;
    struct buf payload;
    uint64_t number; /* of the next batch */

    struct batch *kept; /* [KV_EVENTS_KEPT], a ring */
    uint32_t kept_first, kept_count;
    size_t kept_bytes;
    struct replay {
        uint8_t name[NAME_BYTES];
        size_t name_size;
        uint64_t next, since_ns;
        bool active;
    } asked;
};

/* ---- publishing ---- */

static void forget_oldest(struct kv_events *k)
{
    struct batch *b = &k->kept[k->kept_first];
    k->kept_bytes -= b->size;
    mem_free(b->bytes);
    *b = (struct batch){0};
    k->kept_first = (k->kept_first + 1) % KV_EVENTS_KEPT;
    k->kept_count--;
}

static void keep(struct kv_events *k, uint64_t number)
{
    if (!k->replay) return;
    size_t size = k->payload.size;
    while (k->kept_count == KV_EVENTS_KEPT ||
           (k->kept_count > 0 && k->kept_bytes + size > KV_EVENTS_KEPT_BYTES))
        forget_oldest(k);
    char *bytes = mem_new(size);
    if (!bytes) return; /* whoever asks for it sees that it is missing */
    memcpy(bytes, k->payload.data, size);
    k->kept[(k->kept_first + k->kept_count++) % KV_EVENTS_KEPT] =
        (struct batch){number, (uint32_t)size, bytes};
    k->kept_bytes += size;
}

static uint64_t wall_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void publish(struct kv_events *k)
{
    uint8_t number[8];
    if (!kv_event_pack_any(k->pack)) return;
    buf_clear(&k->payload);
    uint64_t n = k->number++;
    be64_put(number, n);
    if (kv_event_pack_end(k->pack, (double)wall_us() / 1e6, &k->payload) != OK) {
        log_warn("kv_events_lost", "number=%llu reason=\"%s\"", (unsigned long long)n, err_text());
        return; /* a gap in the numbers, like any other loss */
    }
    keep(k, n);
    if (zmq_send(k->pub, k->topic, strlen(k->topic), ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return;
    if (zmq_send(k->pub, number, sizeof number, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return;
    zmq_send(k->pub, k->payload.data, k->payload.size, ZMQ_DONTWAIT);
}

static void on_flush(void *ctx, uint64_t now_ns)
{
    (void)now_ns;
    publish(ctx);
}

void kv_events_add(struct kv_events *k, const struct node_block *block)
{
    if (!kv_event_pack_any(k->pack)) loop_timer_set(k->flush, loop_now_ns(k->loop));
    kv_event_pack_add(k->pack, block);
    if (kv_event_pack_full(k->pack)) publish(k);
}

/* ---- replay ---- */

/* ERR_AGAIN: its queue is full. ERR_PEER: it is gone. */
static enum err send_replay(struct kv_events *k, uint64_t number, const void *bytes, size_t size)
{
    uint8_t n[8];
    be64_put(n, number);
    const struct {
        const void *bytes;
        size_t size;
    } frames[] = {{k->asked.name, k->asked.name_size},
                  {"", 0},
                  {k->topic, size > 0 ? strlen(k->topic) : 0},
                  {n, sizeof n},
                  {bytes, size}};
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++) {
        int more = i + 1 < sizeof frames / sizeof *frames ? ZMQ_SNDMORE : 0;
        if (i == 2 && k->form == KV_EVENT_ARRAY) continue;
        if (zmq_send(k->replay, frames[i].bytes, frames[i].size, more | ZMQ_DONTWAIT) < 0)
            return errno == EAGAIN ? ERR_AGAIN : ERR_PEER;
    }
    return OK;
}

/* The first that is not before this number; NULL: none is kept. */
static const struct batch *kept_from(const struct kv_events *k, uint64_t number)
{
    uint32_t low = 0, high = k->kept_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (k->kept[(k->kept_first + middle) % KV_EVENTS_KEPT].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low < k->kept_count ? &k->kept[(k->kept_first + low) % KV_EVENTS_KEPT] : NULL;
}

/* The next batches for who asked; and the end, after which the next one may ask. */
static enum err go_on_replaying(struct kv_events *k, size_t *sent_bytes)
{
    for (int i = 0; i < REPLAY_BURST; i++) {
        if (*sent_bytes >= REPLAY_BURST_BYTES) break;
        const struct batch *b = kept_from(k, k->asked.next);
        enum err e =
            b ? send_replay(k, b->number, b->bytes, b->size) : send_replay(k, UINT64_MAX, "", 0);
        if (e == ERR_AGAIN) return e;
        if (e != OK || !b) {
            k->asked.active = false;
            return OK;
        }
        k->asked.next = b->number + 1;
        *sent_bytes += b->size;
    }
    return ERR_AGAIN;
}

/* Three frames: who asks, nothing, a number. Anything else is dropped. False: nobody asks. */
static bool take_request(struct kv_events *k, uint64_t now_ns)
{
    uint8_t frame[NAME_BYTES];
    size_t sizes[3] = {0};
    int frames = 0, more = 1;
    size_t more_size = sizeof more;
    struct replay r = {.since_ns = now_ns};
    while (more) {
        int n = zmq_recv(k->replay, frame, sizeof frame, ZMQ_DONTWAIT);
        if (n < 0) return false;
        if (zmq_getsockopt(k->replay, ZMQ_RCVMORE, &more, &more_size) != 0) return false;
        if (frames < 3) sizes[frames] = (size_t)n;
        if (frames == 0 && n <= NAME_BYTES) memcpy(r.name, frame, r.name_size = (size_t)n);
        if (frames == 2 && n == 8) r.next = be64_get(frame);
        frames++;
    }
    r.active = frames == 3 && sizes[0] <= NAME_BYTES && sizes[1] == 0 && sizes[2] == 8;
    k->asked = r;
    return true;
}

static void serve_replay(struct kv_events *k, uint64_t now_ns)
{
    size_t sent_bytes = 0;
    for (int i = 0; i < REPLAY_BURST; i++) {
        if (k->asked.active && now_ns - k->asked.since_ns > REPLAY_NS) k->asked.active = false;
        if (k->asked.active && go_on_replaying(k, &sent_bytes) == ERR_AGAIN) break;
        if (!take_request(k, now_ns)) return;
    }
    loop_timer_set(k->again, now_ns + REPLAY_AGAIN_NS);
}

static void on_readable(void *ctx, uint64_t now_ns, unsigned events)
{
    (void)events;
    struct kv_events *k = ctx;
    if (!k->asked.active) serve_replay(k, now_ns); /* else when that one has ended */
}

static void on_again(void *ctx, uint64_t now_ns)
{
    serve_replay(ctx, now_ns);
}

/* ---- life ---- */

static enum err open_socket(struct kv_events *k, int type, const char *address, void **socket,
                            char bound[MSG_ADDRESS_MAX * 2])
{
    enum err e;
    int linger = 0, queue = QUEUE_MAX, one = 1;
    int64_t bytes_max = NAME_BYTES; /* of what comes in */
    size_t size = MSG_ADDRESS_MAX * 2;
    if ((e = wire_check_address(address)) != OK) return e;
    if (!(*socket = zmq_socket(k->context, type)))
        return err_set(ERR_IO, "no ZeroMQ socket: %s", zmq_strerror(errno));
    bool ok = zmq_setsockopt(*socket, ZMQ_LINGER, &linger, sizeof linger) == 0 &&
              zmq_setsockopt(*socket, ZMQ_SNDHWM, &queue, sizeof queue) == 0 &&
              zmq_setsockopt(*socket, ZMQ_MAXMSGSIZE, &bytes_max, sizeof bytes_max) == 0;
    if (ok && type == ZMQ_ROUTER)
        ok = zmq_setsockopt(*socket, ZMQ_ROUTER_MANDATORY, &one, sizeof one) == 0;
    if (!ok || zmq_bind(*socket, address) != 0 ||
        zmq_getsockopt(*socket, ZMQ_LAST_ENDPOINT, bound, &size) != 0)
        return err_set(ERR_IO, "cannot listen on %s: %s", address, zmq_strerror(errno));
    return OK;
}

static enum err open_replay(struct kv_events *k, const char *address)
{
    enum err e;
    int fd;
    size_t size = sizeof fd;
    if (!(k->kept = mem_array(KV_EVENTS_KEPT, sizeof *k->kept))) return ERR_MEMORY;
    if ((e = open_socket(k, ZMQ_ROUTER, address, &k->replay, k->replay_address)) != OK) return e;
    if (zmq_getsockopt(k->replay, ZMQ_FD, &fd, &size) != 0)
        return err_set(ERR_IO, "%s: %s", address, zmq_strerror(errno));
    if ((e = loop_timer_new(k->loop, on_again, k, &k->again)) != OK) return e;
    return loop_watch(k->loop, fd, LOOP_READ, on_readable, k, &k->watch);
}

static enum err open_all(struct kv_events *k, const struct kv_events_options *o)
{
    enum err e;
    if (!(k->context = zmq_ctx_new()))
        return err_set(ERR_IO, "no ZeroMQ context: %s", zmq_strerror(errno));
    if ((e = open_socket(k, ZMQ_PUB, o->address, &k->pub, k->address)) != OK) return e;
    if (o->replay && (e = open_replay(k, o->replay)) != OK) return e;
    if ((e = kv_event_pack_new(&k->pack, o->form)) != OK) return e;
    return loop_timer_new(k->loop, on_flush, k, &k->flush);
}

enum err kv_events_open(struct kv_events **out, struct loop *loop,
                        const struct kv_events_options *o)
{
    *out = NULL;
    if (o->topic && strlen(o->topic) >= TOPIC_BYTES)
        return err_set(ERR_INVALID, "a topic of %zu bytes: at most %d", strlen(o->topic),
                       TOPIC_BYTES - 1);
    struct kv_events *k = mem_new(sizeof *k);
    if (!k) return ERR_MEMORY;
    k->loop = loop;
    k->form = o->form;
    k->number = wall_us();
    if (o->topic)
        snprintf(k->topic, sizeof k->topic, "%s", o->topic);
    else
        snprintf(k->topic, sizeof k->topic, "kv@%s@%s", o->name, o->model);
    enum err e = open_all(k, o);
    if (e != OK) {
        kv_events_close(k);
        return e;
    }
    kv_event_pack_clear_all(k->pack);
    loop_timer_set(k->flush, loop_now_ns(loop));
    if (k->again) loop_timer_set(k->again, loop_now_ns(loop)); /* what came before the watch */
    log_info("kv_events_listens", "address=%s replay=%s topic=\"%s\"", k->address,
             k->replay_address, k->topic);
    *out = k;
    return OK;
}

void kv_events_close(struct kv_events *k)
{
    if (!k) return;
    if (k->pack && k->pub) publish(k);
    loop_watch_free(k->watch);
    if (k->flush) loop_timer_free(k->flush);
    if (k->again) loop_timer_free(k->again);
    if (k->replay) zmq_close(k->replay);
    if (k->pub) zmq_close(k->pub);
    if (k->context) zmq_ctx_term(k->context);
    while (k->kept_count > 0)
        forget_oldest(k);
    mem_free(k->kept);
    kv_event_pack_free(k->pack);
    buf_fini(&k->payload);
    mem_free(k);
}

const char *kv_events_address(const struct kv_events *k)
{
    return k->address;
}

const char *kv_events_replay(const struct kv_events *k)
{
    return k->replay_address;
}
