#include "tests/fake/link_memory.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/list.h"
#include "common/mem.h"

enum { BYTES_DEFAULT = 1 << 20, SLOT_ALIGNMENT = 256 };

struct memory_frame {
    struct list_link link;
    void *payload; /* the receiver's slot; NULL: none */
    size_t payload_bytes, size;
    unsigned char bytes[];
};

struct memory_link {
    struct kv_link base;
    struct memory_link *other;  /* NULL: it has closed */
    struct list_link waiting;   /* in a listener's queue, not yet accepted */
    struct memory_listener *of; /* that has accepted it, if it is still there */
    struct list_link in;        /* frames */
    uint64_t in_bytes, in_bytes_max;
    uint32_t frame_bytes_max;
    int event;
    uint32_t slots_count, slot_bytes; /* 0: none */
    uint32_t payloads_count;          /* in `in` */
    void *slot;                       /* to be filled */
    bool accepted, full, dead; /* full: wants to be woken when the other side has taken something */
};

struct memory_listener {
    struct kv_listener base;
    char address[KV_LINK_ADDRESS_MAX];
    struct list_link waiting;
    int event;
    uint32_t links_max, links_count; /* accepted; links_max 0: no limit */
};

static struct memory_listener *names[LINK_MEMORY_NAMES_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int enter(void)
{
    pthread_mutex_lock(&lock);
    return 0;
}
static void leave(int *held)
{
    (void)held;
    pthread_mutex_unlock(&lock);
}
/* Until the end of the function. */
#define LOCKED int held __attribute__((cleanup(leave), unused)) = enter()

static struct memory_link *memory(const struct kv_link *link)
{
    return (struct memory_link *)link;
}

static void wake(int event)
{
    (void)!eventfd_write(event, 1);
}

static void quiet(int event)
{
    eventfd_t value;
    (void)!eventfd_read(event, &value);
}

static enum err gone(struct memory_link *m)
{
    m->dead = true;
    return err_set(ERR_PEER, "memory link: closed by the other side");
}

static struct memory_link *half_new(const struct kv_link_options *o, const struct kv_link_ops *ops)
{
    struct memory_link *m = mem_new(sizeof *m);
    if (!m) return NULL;
    m->base.ops = ops;
    if (ops->slot) {
        m->slots_count = o->slots_count;
        m->slot_bytes = o->slot_bytes;
    }
    m->frame_bytes_max = o->frame_bytes_max;
    m->in_bytes_max = o->ring_bytes ? o->ring_bytes : BYTES_DEFAULT;
    if (m->in_bytes_max < 2ull * o->frame_bytes_max) m->in_bytes_max = 2ull * o->frame_bytes_max;
    list_init(&m->waiting);
    list_init(&m->in);
    m->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (m->event >= 0) return m;
    err_set(ERR_IO, "no eventfd");
    mem_free(m);
    return NULL;
}

static void frame_free(struct memory_frame *f)
{
    mem_free(f->payload);
    mem_free(f);
}

static void half_free(struct memory_link *m)
{
    struct list_link *l;
    if (m->other) {
        m->other->other = NULL;
        wake(m->other->event);
        if (!list_empty(&m->other->waiting)) { /* never accepted: nobody else will close it */
            list_remove(&m->other->waiting);
            half_free(m->other);
        }
    }
    while ((l = list_pop_front(&m->in)))
        frame_free(list_member(l, struct memory_frame, link));
    for (uint32_t i = 0; i < LINK_MEMORY_NAMES_MAX; i++)
        if (m->of && names[i] == m->of) m->of->links_count--;
    mem_free(m->slot);
    close(m->event);
    mem_free(m);
}

static void memory_close(struct kv_link *link)
{
    LOCKED;
    if (link) half_free(memory(link));
}

static enum err listen_as(struct kv_listener **out, const char *where,
                          const struct kv_link_options *options, const struct kv_link_ops *ops)
{
    LOCKED;
    *out = NULL;
    uint32_t i = 0;
    while (i < LINK_MEMORY_NAMES_MAX && names[i])
        i++;
    if (i == LINK_MEMORY_NAMES_MAX) return err_set(ERR_FULL, "%u memory listeners", i);
    struct memory_listener *l = mem_new(sizeof *l);
    if (!l) return ERR_MEMORY;
    l->base.ops = ops;
    l->links_max = ops->slot ? options->links_max : 0;
    snprintf(l->address, sizeof l->address, "%s:%s", ops->name, where);
    list_init(&l->waiting);
    l->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    names[i] = l;
    *out = &l->base;
    return OK;
}

static enum err memory_listen(struct kv_listener **out, const char *where,
                              const struct kv_link_options *options)
{
    return listen_as(out, where, options, &kv_link_memory);
}

static enum err slots_listen(struct kv_listener **out, const char *where,
                             const struct kv_link_options *options)
{
    return listen_as(out, where, options, &kv_link_slots);
}

static void memory_unlisten(struct kv_listener *listener)
{
    struct memory_listener *l = (struct memory_listener *)listener;
    struct list_link *w;
    LOCKED;
    if (!l) return;
    while ((w = list_pop_front(&l->waiting)))
        half_free(list_member(w, struct memory_link, waiting));
    for (uint32_t i = 0; i < LINK_MEMORY_NAMES_MAX; i++)
        if (names[i] == l) names[i] = NULL;
    close(l->event);
    mem_free(l);
}

static const char *memory_address(const struct kv_listener *listener)
{
    return ((const struct memory_listener *)listener)->address;
}

static int memory_listener_fd(const struct kv_listener *listener)
{
    return ((const struct memory_listener *)listener)->event;
}

static enum err memory_accept(struct kv_listener *listener, struct kv_link **link)
{
    struct memory_listener *l = (struct memory_listener *)listener;
    LOCKED;
    struct list_link *w = list_pop_front(&l->waiting);
    *link = NULL;
    if (!w) {
        quiet(l->event);
        return ERR_AGAIN;
    }
    struct memory_link *m = list_member(w, struct memory_link, waiting);
    if (l->links_max > 0 && l->links_count == l->links_max) {
        half_free(m);
        return err_set(ERR_FULL, "memory link: %u are open", l->links_max);
    }
    m->of = l;
    l->links_count++;
    m->accepted = m->other->accepted = true;
    wake(m->event);
    wake(m->other->event);
    *link = &m->base;
    return OK;
}

static enum err dial_as(struct kv_link **link, const char *address,
                        const struct kv_link_options *options, const struct kv_link_ops *ops)
{
    struct memory_listener *found = NULL;
    size_t n = strlen(ops->name);
    LOCKED;
    *link = NULL;
    if (strncmp(address, ops->name, n) != 0 || address[n] != ':')
        return err_set(ERR_UNSUPPORTED, "%.32s is no address of %s", address, ops->name);
    for (uint32_t i = 0; i < LINK_MEMORY_NAMES_MAX; i++)
        if (names[i] && strcmp(names[i]->address, address) == 0) found = names[i];
    if (!found) return err_set(ERR_PEER, "nobody is at %.64s", address);
    struct memory_link *near = half_new(options, ops);
    struct memory_link *far = near ? half_new(options, ops) : NULL;
    if (!far) {
        if (near) half_free(near);
        return ERR_MEMORY;
    }
    near->other = far;
    far->other = near;
    list_push_back(&found->waiting, &far->waiting);
    wake(found->event);
    *link = &near->base;
    return OK;
}

static enum err memory_dial(struct kv_link **link, const char *address,
                            const struct kv_link_options *options)
{
    return dial_as(link, address, options, &kv_link_memory);
}

static enum err slots_dial(struct kv_link **link, const char *address,
                           const struct kv_link_options *options)
{
    return dial_as(link, address, options, &kv_link_slots);
}

static int memory_fd(const struct kv_link *link)
{
    return memory(link)->event;
}

static struct kv_link_facts memory_facts(const struct kv_link *link)
{
    const struct memory_link *m = memory(link);
    uint64_t slots_bytes = (uint64_t)m->slots_count * m->slot_bytes;
    return (struct kv_link_facts){.window_bytes = slots_bytes ? slots_bytes : m->in_bytes_max / 2,
                                  .slot_bytes = m->slot_bytes};
}

static enum err memory_poll(struct kv_link *link)
{
    struct memory_link *m = memory(link);
    LOCKED;
    if (m->dead || (!m->other && !m->accepted)) return gone(m);
    if (m->other) quiet(m->event); /* an end stays to be seen */
    return m->accepted ? OK : ERR_AGAIN;
}

/* Takes the payload over if all goes well. */
static enum err send_frame(struct memory_link *m, const struct kv_piece *pieces,
                           uint32_t pieces_count, void *payload, size_t payload_bytes)
{
    struct memory_link *to = m->other;
    size_t size = kv_pieces_bytes(pieces, pieces_count), at = 0;
    struct memory_frame *f = mem_new(sizeof *f + size);
    if (!f) return ERR_MEMORY;
    f->size = size;
    f->payload = payload;
    f->payload_bytes = payload_bytes;
    for (uint32_t i = 0; i < pieces_count; i++) {
        if (pieces[i].size > 0) memcpy(f->bytes + at, pieces[i].bytes, pieces[i].size);
        at += pieces[i].size;
    }
    list_push_back(&to->in, &f->link);
    to->in_bytes += size;
    to->payloads_count += payload != NULL;
    wake(to->event);
    return OK;
}

static enum err memory_send(struct kv_link *link, const struct kv_piece *pieces,
                            uint32_t pieces_count)
{
    struct memory_link *m = memory(link);
    size_t size = kv_pieces_bytes(pieces, pieces_count);
    LOCKED;
    CHECK(size <= m->frame_bytes_max && pieces_count <= KV_LINK_PIECES_MAX);
    if (m->dead || !m->other) return gone(m);
    m->full = m->accepted && m->other->in_bytes + size > m->other->in_bytes_max;
    if (!m->accepted || m->full) return ERR_AGAIN;
    return send_frame(m, pieces, pieces_count, NULL, 0);
}

static enum err slots_slot(struct kv_link *link, void **slot)
{
    struct memory_link *m = memory(link);
    LOCKED;
    if (m->dead || !m->other) return gone(m);
    m->full = m->other->payloads_count == m->other->slots_count ||
              m->other->in_bytes + m->frame_bytes_max > m->other->in_bytes_max;
    if (m->full) return ERR_AGAIN;
    if (!m->slot) m->slot = mem_aligned(m->slot_bytes, SLOT_ALIGNMENT);
    *slot = m->slot;
    return m->slot ? OK : ERR_MEMORY;
}

static enum err slots_send_slot(struct kv_link *link, const void *head, size_t head_bytes,
                                size_t payload_bytes)
{
    struct memory_link *m = memory(link);
    const struct kv_piece piece = {head, head_bytes};
    LOCKED;
    CHECK(m->slot && payload_bytes > 0 && payload_bytes <= m->slot_bytes);
    if (m->dead || !m->other) return gone(m);
    enum err e = send_frame(m, &piece, 1, m->slot, payload_bytes);
    if (e == OK) m->slot = NULL;
    return e;
}

static const void *slots_payload(const struct kv_link *link, size_t *payload_bytes)
{
    const struct memory_link *m = memory(link);
    LOCKED;
    const struct memory_frame *f = list_member(m->in.next, struct memory_frame, link);
    *payload_bytes = f->payload_bytes;
    return f->payload;
}

static enum err memory_receive(struct kv_link *link, const void **bytes, size_t *size)
{
    struct memory_link *m = memory(link);
    LOCKED;
    if (m->dead) return gone(m);
    if (list_empty(&m->in)) return m->other ? ERR_AGAIN : gone(m);
    const struct memory_frame *f = list_member(m->in.next, struct memory_frame, link);
    *bytes = f->bytes;
    *size = f->size;
    return OK;
}

static void memory_release(struct kv_link *link)
{
    struct memory_link *m = memory(link);
    LOCKED;
    struct memory_frame *f = list_member(list_pop_front(&m->in), struct memory_frame, link);
    m->in_bytes -= f->size;
    m->payloads_count -= f->payload != NULL;
    frame_free(f);
    if (m->other && m->other->full) wake(m->other->event);
}

const struct kv_link_ops kv_link_memory = {
    .name = "memory",
    .version = KV_LINK_VERSION,
    .listen = memory_listen,
    .unlisten = memory_unlisten,
    .address = memory_address,
    .listener_fd = memory_listener_fd,
    .accept = memory_accept,
    .dial = memory_dial,
    .fd = memory_fd,
    .facts = memory_facts,
    .poll = memory_poll,
    .send = memory_send,
    .receive = memory_receive,
    .release = memory_release,
    .close = memory_close,
};

const struct kv_link_ops kv_link_slots = {
    .name = "slots",
    .version = KV_LINK_VERSION,
    .listen = slots_listen,
    .unlisten = memory_unlisten,
    .address = memory_address,
    .listener_fd = memory_listener_fd,
    .accept = memory_accept,
    .dial = slots_dial,
    .fd = memory_fd,
    .facts = memory_facts,
    .poll = memory_poll,
    .send = memory_send,
    .receive = memory_receive,
    .release = memory_release,
    .close = memory_close,
    .slot = slots_slot,
    .send_slot = slots_send_slot,
    .payload = slots_payload,
};
