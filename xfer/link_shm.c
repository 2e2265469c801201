/* Two rings in one memfd, one per direction, and a unix socket whose end-of-file is the peer's
 * death.
 *
 *     dialler                                            listener
 *       connect to the abstract name, which is told with the host's boot id
 *       SETUP {sizes} + memfd (sealed)  ------------->     checks seals and sizes, attaches,
 *       a nonce lies in the memory                         reads the nonce there
 *       connected if it is the nonce    <-------------     ECHO {nonce}; connected
 *       one byte = "look at your rings" <------------>     the same
 *
 * So the link is used only when both really see the same memory, whatever namespaces they live in.
 * The seals keep the file from shrinking: access beyond its end would be a SIGBUS. hugetlb files
 * are turned away for the same reason. Doorbells are bytes on the socket and not eventfds, because
 * a socket can be written without blocking (MSG_DONTWAIT) whatever the peer does to the flags they
 * share. Both sides must run as the same user: an abstract name has no permissions. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/mem.h"
#include "xfer/ring.h"
#include "xfer/same_user.h"

enum {
    CONTROL_BYTES = 4096,
    RING_BYTES_DEFAULT = 8 << 20,
    RING_BYTES_MIN = 1 << 16,
    FRAMES_IN_RING_MIN = 4,
    SETUP_MAGIC = 0x31534b54, /* "TKS1" */
    BACKLOG = 64,
    BELLS_PER_POLL = 64,
};
#define RING_BYTES_MAX (1ull << 30)
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct setup {
    uint32_t magic, version;
    uint64_t ring_bytes;
};

struct control {
    uint64_t nonce[2];
    struct ring_control ring[2]; /* from the dialler, from the listener */
};
_Static_assert(sizeof(struct control) <= CONTROL_BYTES, "the control page is one page");

struct shm_link {
    struct kv_link base;
    int fd;
    bool dialler, connected, ended;
    enum err dead;
    char dead_text[96];
    uint32_t frame_bytes_max;
    uint64_t nonce[2];
    struct control *control;
    struct ring in, out;
};

struct shm_listener {
    struct kv_listener base;
    int fd;
    struct kv_link_options options;
    char address[KV_LINK_ADDRESS_MAX];
};

static struct shm_link *shm(const struct kv_link *link)
{
    return (struct shm_link *)link;
}

static enum err die(struct shm_link *s, enum err e, const char *text)
{
    if (s->dead == OK) {
        s->dead = e;
        snprintf(s->dead_text, sizeof s->dead_text, "%s", text);
    }
    return err_set(s->dead, "%s", s->dead_text);
}

static uint64_t ring_bytes_for(const struct kv_link_options *o)
{
    uint64_t wanted = o->ring_bytes ? o->ring_bytes : RING_BYTES_DEFAULT;
    uint64_t least = FRAMES_IN_RING_MIN * ((uint64_t)o->frame_bytes_max + 16);
    uint64_t size = RING_BYTES_MIN;
    while (size < RING_BYTES_MAX && (size < wanted || size < least))
        size *= 2;
    return size;
}

/* 32 hex digits; the same for all processes of one running kernel. */
static enum err boot_id(char id[33])
{
    char text[64];
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text) : -1;
    if (fd >= 0) close(fd);
    size_t digits = 0;
    for (ssize_t i = 0; i < n && digits < 32; i++)
        if (isxdigit((unsigned char)text[i])) id[digits++] = text[i];
    id[digits] = 0;
    return digits == 32 ? OK : err_set(ERR_UNSUPPORTED, "no boot id: shm links are off");
}

static socklen_t abstract_name(struct sockaddr_un *un, const char *name)
{
    *un = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t room = sizeof un->sun_path - 1;
    size_t n = (size_t)snprintf(un->sun_path + 1, room, "tandem-kv-%s", name);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (n < room ? n : room - 1));
}

static void shm_close(struct kv_link *link)
{
    if (!link) return;
    struct shm_link *s = shm(link);
    ring_unmap(&s->in);
    ring_unmap(&s->out);
    if (s->control) munmap(s->control, CONTROL_BYTES);
    if (s->fd >= 0) close(s->fd);
    mem_free(s);
}

/* Takes fd over, also when it fails. */
static enum err link_new(struct shm_link **out, int fd, bool dialler,
                         const struct kv_link_options *options)
{
    struct shm_link *s = mem_new(sizeof *s);
    *out = s;
    if (!s) {
        close(fd);
        return ERR_MEMORY;
    }
    s->base.ops = &kv_link_shm;
    s->fd = fd;
    s->dialler = dialler;
    s->frame_bytes_max = options->frame_bytes_max;
    return OK;
}

static enum err map_all(struct shm_link *s, int memfd, uint64_t ring_bytes)
{
    enum err e;
    void *page = mmap(NULL, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (page == MAP_FAILED) return err_set(ERR_IO, "shm link: mmap: %s", strerror(errno));
    s->control = page;
    struct ring *from_dialler = s->dialler ? &s->out : &s->in;
    struct ring *from_listener = s->dialler ? &s->in : &s->out;
    e = ring_map(from_dialler, memfd, CONTROL_BYTES, ring_bytes, &s->control->ring[0],
                 s->frame_bytes_max);
    if (e != OK) return e;
    return ring_map(from_listener, memfd, CONTROL_BYTES + ring_bytes, ring_bytes,
                    &s->control->ring[1], s->frame_bytes_max);
}

static enum err send_setup(int fd, int memfd, uint64_t ring_bytes)
{
    struct setup setup = {SETUP_MAGIC, KV_LINK_VERSION, ring_bytes};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.head = {.cmsg_len = CMSG_LEN(sizeof(int)),
                          .cmsg_level = SOL_SOCKET,
                          .cmsg_type = SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.head), &memfd, sizeof memfd);
    struct iovec iov = {&setup, sizeof setup};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control.bytes};
    if (sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof setup) return OK;
    return err_set(ERR_PEER, "shm link: %s", strerror(errno));
}

/* Makes the memory, attaches it and offers it to the other side. */
static enum err offer_memory(struct shm_link *s, uint64_t ring_bytes)
{
    enum err e;
    int memfd = memfd_create("tandem-kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memfd < 0) return err_set(ERR_IO, "memfd_create: %s", strerror(errno));
    if (ftruncate(memfd, (off_t)(CONTROL_BYTES + 2 * ring_bytes)) != 0 ||
        fcntl(memfd, F_ADD_SEALS, SEALS) != 0 ||
        getrandom(s->nonce, sizeof s->nonce, 0) != (ssize_t)sizeof s->nonce) {
        e = err_set(ERR_IO, "shm link: %s", strerror(errno));
    } else if ((e = map_all(s, memfd, ring_bytes)) == OK) {
        memcpy(s->control->nonce, s->nonce, sizeof s->nonce);
        for (int i = 0; i < 2; i++) /* the first frame wakes its reader */
            atomic_store(&s->control->ring[i].reader_sleeps, 1);
        e = send_setup(s->fd, memfd, ring_bytes);
    }
    close(memfd);
    return e;
}

static enum err shm_dial(struct kv_link **link, const char *address,
                         const struct kv_link_options *options)
{
    char id[33];
    enum err e;
    struct sockaddr_un un;
    *link = NULL;
    if ((e = boot_id(id)) != OK) return e;
    if (strncmp(address, "shm:", 4) != 0 || strncmp(address + 4, id, 32) != 0 || address[36] != '-')
        return err_set(ERR_UNSUPPORTED, "%.48s is not on this host", address);
    socklen_t size = abstract_name(&un, address + 37);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return err_set(ERR_IO, "socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&un, size) != 0) {
        e = err_set(ERR_PEER, "connect %s: %s", address, strerror(errno));
        close(fd);
        return e;
    }
    struct shm_link *s;
    if ((e = link_new(&s, fd, true, options)) != OK) return e;
    if ((e = link_same_user(fd, "shm")) != OK ||
        (e = offer_memory(s, ring_bytes_for(options))) != OK) {
        shm_close(&s->base);
        return e;
    }
    *link = &s->base;
    return OK;
}

/* ERR_FORMAT if the memory is not what we can safely read. */
static enum err check_memory(const struct shm_link *s, const struct setup *setup, int memfd)
{
    struct stat st;
    struct statfs fs;
    uint64_t size = setup->ring_bytes;
    if (setup->magic != SETUP_MAGIC || setup->version != KV_LINK_VERSION)
        return err_set(ERR_FORMAT, "shm link: version %u, magic %x", setup->version, setup->magic);
    if (size < RING_BYTES_MIN || size > RING_BYTES_MAX || (size & (size - 1)) != 0 ||
        size < FRAMES_IN_RING_MIN * ((uint64_t)s->frame_bytes_max + 16))
        return err_set(ERR_FORMAT, "shm link: rings of %llu bytes", (unsigned long long)size);
    if (fstatfs(memfd, &fs) != 0 || fs.f_type != TMPFS_MAGIC)
        return err_set(ERR_FORMAT, "shm link: no memfd");
    int seals = fcntl(memfd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return err_set(ERR_FORMAT, "shm link: the memory may shrink");
    if (fstat(memfd, &st) != 0 || (uint64_t)st.st_size != CONTROL_BYTES + 2 * size)
        return err_set(ERR_FORMAT, "shm link: the memory has the wrong size");
    return OK;
}

/* The one fd of a SETUP message; -1 and every fd closed if it is anything else. */
static int take_fd(struct msghdr *message)
{
    int fd = -1;
    uint32_t count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        for (size_t at = CMSG_LEN(0); at + sizeof fd <= c->cmsg_len; at += sizeof fd, count++) {
            if (count > 0) close(fd);
            memcpy(&fd, (char *)c + at, sizeof fd);
        }
    }
    if (count == 1 && !(message->msg_flags & (MSG_CTRUNC | MSG_TRUNC))) return fd;
    if (count > 0) close(fd);
    return -1;
}

static enum err accept_memory(struct shm_link *s)
{
    struct setup setup = {0};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec iov = {&setup, sizeof setup};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t n = recvmsg(s->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return ERR_AGAIN;
    if (n <= 0) return err_set(ERR_PEER, "shm link: closed by the other side");
    int memfd = take_fd(&message);
    enum err e = memfd < 0 || n != (ssize_t)sizeof setup ? err_set(ERR_FORMAT, "shm link: no setup")
                                                         : check_memory(s, &setup, memfd);
    if (e == OK) e = map_all(s, memfd, setup.ring_bytes);
    if (memfd >= 0) close(memfd);
    if (e != OK) return e;
    memcpy(s->nonce, s->control->nonce, sizeof s->nonce);
    if (send(s->fd, s->nonce, sizeof s->nonce, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return err_set(ERR_PEER, "shm link: %s", strerror(errno));
    return OK;
}

static enum err await_echo(struct shm_link *s)
{
    uint64_t echo[2] = {0};
    ssize_t n = recv(s->fd, echo, sizeof echo, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return ERR_AGAIN;
    if (n <= 0) return err_set(ERR_PEER, "shm link: closed by the other side");
    if (n != (ssize_t)sizeof echo || memcmp(echo, s->nonce, sizeof echo) != 0)
        return err_set(ERR_FORMAT, "shm link: the other side sees other memory");
    return OK;
}

/* Takes the doorbells off the socket. */
static enum err take_bells(struct shm_link *s)
{
    char bell[16];
    for (int i = 0; i < BELLS_PER_POLL; i++) {
        ssize_t n = recv(s->fd, bell, sizeof bell, MSG_DONTWAIT);
        if (n > 0) continue;
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return OK;
        s->ended = true; /* what lies in the ring may still be read */
        return OK;
    }
    return OK;
}

static void ring_bell(struct shm_link *s)
{
    /* A full socket holds unread bells, so the other side will look anyway. */
    (void)!send(s->fd, "!", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static enum err shm_poll(struct kv_link *link)
{
    struct shm_link *s = shm(link);
    if (s->dead != OK) return die(s, s->dead, "");
    if (s->connected) return take_bells(s);
    enum err e = s->dialler ? await_echo(s) : accept_memory(s);
    if (e == ERR_AGAIN) return e;
    if (e != OK) return die(s, e, err_text());
    s->connected = true;
    return OK;
}

static enum err shm_send(struct kv_link *link, const struct kv_piece *pieces, uint32_t pieces_count)
{
    struct shm_link *s = shm(link);
    if (s->dead != OK) return die(s, s->dead, "");
    if (!s->connected) return ERR_AGAIN;
    if (s->ended) return die(s, ERR_PEER, "shm link: closed by the other side");
    enum err e = ring_write(&s->out, pieces, pieces_count);
    if (e == ERR_AGAIN) return e;
    if (e != OK) return die(s, e, err_text());
    if (ring_reader_sleeps(&s->out)) ring_bell(s);
    return OK;
}

static enum err shm_receive(struct kv_link *link, const void **bytes, size_t *size)
{
    struct shm_link *s = shm(link);
    if (s->dead != OK) return die(s, s->dead, "");
    if (!s->connected) return ERR_AGAIN;
    enum err e = ring_read(&s->in, bytes, size);
    if (e == ERR_AGAIN && s->ended) return die(s, ERR_PEER, "shm link: closed by the other side");
    return e == OK || e == ERR_AGAIN ? e : die(s, e, err_text());
}

static void shm_release(struct kv_link *link)
{
    struct shm_link *s = shm(link);
    ring_release(&s->in);
    if (ring_writer_waits(&s->in)) ring_bell(s);
}

static void shm_unlisten(struct kv_listener *listener)
{
    struct shm_listener *l = (struct shm_listener *)listener;
    if (!l) return;
    if (l->fd >= 0) close(l->fd);
    mem_free(l);
}

static enum err shm_listen(struct kv_listener **out, const char *where,
                           const struct kv_link_options *options)
{
    (void)where; /* a name of its own is made */
    char id[33], name[17];
    uint64_t random;
    struct sockaddr_un un;
    enum err e;
    *out = NULL;
    if ((e = boot_id(id)) != OK) return e;
    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
        return err_set(ERR_IO, "getrandom: %s", strerror(errno));
    struct shm_listener *l = mem_new(sizeof *l);
    if (!l) return ERR_MEMORY;
    l->base.ops = &kv_link_shm;
    l->options = *options;
    snprintf(name, sizeof name, "%016llx", (unsigned long long)random);
    snprintf(l->address, sizeof l->address, "shm:%s-%s", id, name);
    socklen_t size = abstract_name(&un, name);
    l->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || bind(l->fd, (struct sockaddr *)&un, size) != 0 ||
        listen(l->fd, BACKLOG) != 0) {
        e = err_set(ERR_IO, "shm link: %s", strerror(errno));
        shm_unlisten(&l->base);
        return e;
    }
    *out = &l->base;
    return OK;
}

static enum err shm_accept(struct kv_listener *listener, struct kv_link **link)
{
    struct shm_listener *l = (struct shm_listener *)listener;
    struct shm_link *s;
    enum err e;
    *link = NULL;
    int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED
                   ? ERR_AGAIN
                   : err_set(ERR_IO, "accept: %s", strerror(errno));
    if ((e = link_same_user(fd, "shm")) != OK) {
        close(fd);
        return e;
    }
    if ((e = link_new(&s, fd, false, &l->options)) != OK) return e;
    *link = &s->base;
    return OK;
}

static const char *shm_address(const struct kv_listener *listener)
{
    return ((const struct shm_listener *)listener)->address;
}

static int shm_listener_fd(const struct kv_listener *listener)
{
    return ((const struct shm_listener *)listener)->fd;
}

static int shm_fd(const struct kv_link *link)
{
    return shm(link)->fd;
}

static struct kv_link_facts shm_facts(const struct kv_link *link)
{
    return (struct kv_link_facts){.window_bytes = shm(link)->in.size_bytes / 2};
}

const struct kv_link_ops kv_link_shm = {
    .name = "shm",
    .version = KV_LINK_VERSION,
    .listen = shm_listen,
    .unlisten = shm_unlisten,
    .address = shm_address,
    .listener_fd = shm_listener_fd,
    .accept = shm_accept,
    .dial = shm_dial,
    .fd = shm_fd,
    .facts = shm_facts,
    .poll = shm_poll,
    .send = shm_send,
    .receive = shm_receive,
    .release = shm_release,
    .close = shm_close,
};
