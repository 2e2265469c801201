/* A ring under a mutex and an eventfd. `rung` says that the eventfd has been written and not yet
 * read: the sender that finds it false rings, the receiver that finds the ring empty clears it.
 * Both happen under the mutex, so no wake-up is lost and none is sent twice. */
#include "common/mailbox.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"

struct mailbox {
    pthread_mutex_t lock;
    int fd;
    bool rung, closed;
    size_t message_bytes;
    uint32_t messages_max, first, count;
    unsigned char *slots;
};

enum err mailbox_new(struct mailbox **out, size_t message_bytes, uint32_t messages_max)
{
    enum err e = ERR_MEMORY;
    *out = NULL;
    CHECK(message_bytes > 0 && messages_max > 0);
    struct mailbox *m = mem_new(sizeof *m);
    if (!m) return ERR_MEMORY;
    m->message_bytes = message_bytes;
    m->messages_max = messages_max;
    m->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->fd < 0) {
        e = err_set(ERR_IO, "eventfd: %s", strerror(errno));
        goto fail;
    }
    m->slots = mem_array(messages_max, message_bytes);
    if (!m->slots) goto fail;
    pthread_mutex_init(&m->lock, NULL);
    *out = m;
    return OK;
fail:
    if (m->fd >= 0) close(m->fd);
    mem_free(m);
    return e;
}

void mailbox_free(struct mailbox *m)
{
    if (!m) return;
    pthread_mutex_destroy(&m->lock);
    close(m->fd);
    mem_free(m->slots);
    mem_free(m);
}

static void ring(struct mailbox *m)
{
    if (m->rung) return;
    m->rung = true;
    uint64_t one = 1;
    CHECK(write(m->fd, &one, sizeof one) == sizeof one); /* fails only on overflow */
}

static void silence(struct mailbox *m)
{
    if (!m->rung) return;
    m->rung = false;
    uint64_t count;
    CHECK(read(m->fd, &count, sizeof count) == sizeof count);
}

enum err mailbox_send(struct mailbox *m, const void *message)
{
    enum err e = OK;
    pthread_mutex_lock(&m->lock);
    if (m->closed) {
        e = ERR_CANCELLED;
    } else if (m->count == m->messages_max) {
        e = ERR_FULL;
    } else {
        uint64_t at = ((uint64_t)m->first + m->count) % m->messages_max;
        memcpy(m->slots + at * m->message_bytes, message, m->message_bytes);
        m->count++;
        ring(m);
    }
    pthread_mutex_unlock(&m->lock);
    if (e == ERR_FULL) return err_set(e, "mailbox full: %u messages wait", m->messages_max);
    if (e == ERR_CANCELLED) return err_set(e, "mailbox closed");
    return OK;
}

enum err mailbox_receive(struct mailbox *m, void *message)
{
    enum err e = OK;
    pthread_mutex_lock(&m->lock);
    if (m->count > 0) {
        memcpy(message, m->slots + m->first * m->message_bytes, m->message_bytes);
        m->first = (m->first + 1) % m->messages_max;
        m->count--;
    } else if (m->closed) {
        e = ERR_CANCELLED;
    } else {
        silence(m);
        e = ERR_AGAIN;
    }
    pthread_mutex_unlock(&m->lock);
    return e;
}

enum err mailbox_wait(struct mailbox *m, void *message, uint64_t timeout_ns)
{
    uint64_t now_ns = clock_now_ns();
    uint64_t deadline_ns = timeout_ns > TIME_NEVER - now_ns ? TIME_NEVER : now_ns + timeout_ns;
    for (;;) {
        enum err e = mailbox_receive(m, message);
        if (e != ERR_AGAIN) return e;
        now_ns = clock_now_ns();
        if (now_ns >= deadline_ns) return ERR_TIMEOUT;
        uint64_t left_ns = deadline_ns - now_ns;
        struct timespec left = {.tv_sec = (time_t)(left_ns / NS_PER_S),
                                .tv_nsec = (long)(left_ns % NS_PER_S)};
        struct pollfd p = {.fd = m->fd, .events = POLLIN};
        ppoll(&p, 1, deadline_ns == TIME_NEVER ? NULL : &left, NULL); /* EINTR: around again */
    }
}

void mailbox_close(struct mailbox *m)
{
    pthread_mutex_lock(&m->lock);
    m->closed = true;
    ring(m);
    pthread_mutex_unlock(&m->lock);
}

int mailbox_fd(const struct mailbox *m)
{
    return m->fd;
}
