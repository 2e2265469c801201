#include "tests/fake/link_memory.h"

#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/list.h"
#include "common/mem.h"

enum { BYTES_DEFAULT = 1 << 20 };

struct memory_frame {
    struct list_link link;
    size_t size;
    unsigned char bytes[];
};

struct memory_link {
    struct kv_link base;
    struct memory_link *other; /* NULL: it has closed */
    struct list_link waiting;  /* in a listener's queue, not yet accepted */
    struct list_link in;       /* frames */
    uint64_t in_bytes, in_bytes_max;
    uint32_t frame_bytes_max;
    int event;
    bool accepted, full, dead; /* full: wants to be woken when the other side has taken something */
};

struct memory_listener {
    struct kv_listener base;
    char address[KV_LINK_ADDRESS_MAX];
    struct list_link waiting;
    int event;
};

static struct memory_listener *names[LINK_MEMORY_NAMES_MAX];

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

static struct memory_link *half_new(const struct kv_link_options *o)
{
    struct memory_link *m = mem_new(sizeof *m);
    if (!m) return NULL;
    m->base.ops = &kv_link_memory;
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

static void memory_close(struct kv_link *link)
{
    struct list_link *l;
    if (!link) return;
    struct memory_link *m = memory(link);
    if (m->other) {
        m->other->other = NULL;
        wake(m->other->event);
        if (!list_empty(&m->other->waiting)) { /* never accepted: nobody else will close it */
            list_remove(&m->other->waiting);
            memory_close(&m->other->base);
        }
    }
    while ((l = list_pop_front(&m->in)))
        mem_free(list_member(l, struct memory_frame, link));
    close(m->event);
    mem_free(m);
}

static enum err memory_listen(struct kv_listener **out, const char *where,
                              const struct kv_link_options *options)
{
    (void)options;
    *out = NULL;
    uint32_t i = 0;
    while (i < LINK_MEMORY_NAMES_MAX && names[i])
        i++;
    if (i == LINK_MEMORY_NAMES_MAX) return err_set(ERR_FULL, "%u memory listeners", i);
    struct memory_listener *l = mem_new(sizeof *l);
    if (!l) return ERR_MEMORY;
    l->base.ops = &kv_link_memory;
    snprintf(l->address, sizeof l->address, "memory:%s", where);
    list_init(&l->waiting);
    l->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    names[i] = l;
    *out = &l->base;
    return OK;
}

static void memory_unlisten(struct kv_listener *listener)
{
    struct memory_listener *l = (struct memory_listener *)listener;
    struct list_link *w;
    if (!l) return;
    while ((w = list_pop_front(&l->waiting)))
        memory_close(&list_member(w, struct memory_link, waiting)->base);
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
    struct list_link *w = list_pop_front(&l->waiting);
    *link = NULL;
    if (!w) {
        quiet(l->event);
        return ERR_AGAIN;
    }
    struct memory_link *m = list_member(w, struct memory_link, waiting);
    m->accepted = m->other->accepted = true;
    wake(m->event);
    wake(m->other->event);
    *link = &m->base;
    return OK;
}

static enum err memory_dial(struct kv_link **link, const char *address,
                            const struct kv_link_options *options)
{
    struct memory_listener *found = NULL;
    *link = NULL;
    if (strncmp(address, "memory:", 7) != 0)
        return err_set(ERR_UNSUPPORTED, "%.32s is no memory address", address);
    for (uint32_t i = 0; i < LINK_MEMORY_NAMES_MAX; i++)
        if (names[i] && strcmp(names[i]->address, address) == 0) found = names[i];
    if (!found) return err_set(ERR_PEER, "nobody is at %.64s", address);
    struct memory_link *near = half_new(options), *far = near ? half_new(options) : NULL;
    if (!far) {
        if (near) memory_close(&near->base);
        return ERR_MEMORY;
    }
    near->other = far;
    far->other = near;
    list_push_back(&found->waiting, &far->waiting);
    wake(found->event);
    *link = &near->base;
    return OK;
}

static int memory_fd(const struct kv_link *link)
{
    return memory(link)->event;
}

static struct kv_link_facts memory_facts(const struct kv_link *link)
{
    return (struct kv_link_facts){.window_bytes = memory(link)->in_bytes_max / 2};
}

static enum err memory_poll(struct kv_link *link)
{
    struct memory_link *m = memory(link);
    if (m->dead || (!m->other && !m->accepted)) return gone(m);
    if (m->other) quiet(m->event); /* an end stays to be seen */
    return m->accepted ? OK : ERR_AGAIN;
}

static enum err memory_send(struct kv_link *link, const struct kv_piece *pieces,
                            uint32_t pieces_count)
{
    struct memory_link *m = memory(link), *to = m->other;
    size_t size = kv_pieces_bytes(pieces, pieces_count), at = 0;
    CHECK(size <= m->frame_bytes_max && pieces_count <= KV_LINK_PIECES_MAX);
    if (m->dead || !to) return gone(m);
    m->full = m->accepted && to->in_bytes + size > to->in_bytes_max;
    if (!m->accepted || m->full) return ERR_AGAIN;
    struct memory_frame *f = mem_new(sizeof *f + size);
    if (!f) return ERR_MEMORY;
    f->size = size;
    for (uint32_t i = 0; i < pieces_count; i++) {
        if (pieces[i].size > 0) memcpy(f->bytes + at, pieces[i].bytes, pieces[i].size);
        at += pieces[i].size;
    }
    list_push_back(&to->in, &f->link);
    to->in_bytes += size;
    wake(to->event);
    return OK;
}

static enum err memory_receive(struct kv_link *link, const void **bytes, size_t *size)
{
    struct memory_link *m = memory(link);
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
    struct memory_frame *f = list_member(list_pop_front(&m->in), struct memory_frame, link);
    m->in_bytes -= f->size;
    mem_free(f);
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
