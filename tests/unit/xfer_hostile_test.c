/* Links against peers that break every rule: a raw socket on the other side. */
#include "tests/unit/testing.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/rng.h"
#include "xfer/ring.h"

enum { FRAME_MAX = 1000, WAIT_MS = 10000, RING = 1 << 16, CONTROL = 4096 };
static const struct kv_link_options options = {.frame_bytes_max = FRAME_MAX, .ring_bytes = RING};

static bool readable(int fd, int wait_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, wait_ms) == 1;
}

static struct kv_link *accept_next(struct kv_listener *l)
{
    struct kv_link *link;
    assert_true(readable(l->ops->listener_fd(l), WAIT_MS));
    assert_ok(l->ops->accept(l, &link));
    return link;
}

/* Until it is neither connecting nor without a frame. */
static enum err first_answer(struct kv_link *link)
{
    const void *bytes;
    size_t size;
    enum err e;
    for (;;) {
        e = link->ops->poll(link);
        if (e == OK) e = link->ops->receive(link, &bytes, &size);
        if (e != ERR_AGAIN) return e;
        assert_true(readable(link->ops->fd(link), WAIT_MS));
    }
}

/* ---- tcp ---- */

static int tcp_stranger(struct kv_listener *l)
{
    struct sockaddr_in in = {.sin_family = AF_INET,
                             .sin_port =
                                 htons((uint16_t)atoi(strrchr(l->ops->address(l), ':') + 1)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof in), 0);
    return fd;
}

static void tcp_sizes_are_believed_up_to_the_longest_frame(void **state)
{
    (void)state;
    struct kv_listener *l;
    uint32_t size[] = {FRAME_MAX, FRAME_MAX + 1, UINT32_MAX, 0x20544547};
    assert_ok(kv_link_tcp.listen(&l, "127.0.0.1:0", &options));
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        unsigned char bytes[4 + FRAME_MAX] = {0};
        int fd = tcp_stranger(l);
        struct kv_link *link = accept_next(l);
        memcpy(bytes, &size[i], 4);
        assert_int_equal(send(fd, bytes, sizeof bytes, 0), sizeof bytes);
        assert_int_equal(first_answer(link), size[i] <= FRAME_MAX ? OK : ERR_FORMAT);
        kv_link_tcp.close(link);
        close(fd);
    }
    kv_link_tcp.unlisten(l);
}

static void a_torn_tcp_frame_is_no_frame(void **state)
{
    (void)state;
    struct kv_listener *l;
    assert_ok(kv_link_tcp.listen(&l, "127.0.0.1:0", &options));
    for (int sent = 0; sent < 9; sent++) {
        int fd = tcp_stranger(l);
        struct kv_link *link = accept_next(l);
        for (int i = 0; i < sent; i++) /* byte by byte */
            assert_int_equal(send(fd, &(char){i == 0 ? 6 : 0}, 1, 0), 1);
        close(fd);
        assert_int_equal(first_answer(link), ERR_PEER);
        assert_non_null(strstr(err_text(), "closed"));
        kv_link_tcp.close(link);
    }
    kv_link_tcp.unlisten(l);
}

static void tcp_listens_only_where_it_can(void **state)
{
    (void)state;
    struct kv_listener *l, *second;
    const char *row[] = {"", ":", "127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:abc"};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        assert_int_equal(kv_link_tcp.listen(&l, row[i], &options), ERR_INVALID);
        assert_null(l);
    }
    assert_ok(kv_link_tcp.listen(&l, "127.0.0.1:0", &options));
    const char *taken = kv_link_tcp.address(l) + 4;
    assert_int_equal(kv_link_tcp.listen(&second, taken, &options), ERR_IO);
    assert_non_null(strstr(err_text(), taken));
    kv_link_tcp.unlisten(l);
    assert_ok(kv_link_tcp.listen(&l, "0.0.0.0:0", &options)); /* tells a real address */
    assert_null(strstr(kv_link_tcp.address(l), "0.0.0.0"));
    kv_link_tcp.unlisten(l);
}

/* ---- shm ---- */

struct setup {
    uint32_t magic, version;
    uint64_t ring_bytes;
};
static const struct setup good_setup = {0x31534b54, KV_LINK_VERSION, RING};

static int shm_stranger(struct kv_listener *l)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    const char *name = strrchr(l->ops->address(l), '-') + 1;
    int n = snprintf(un.sun_path + 1, sizeof un.sun_path - 1, "tandem-kv-%s", name);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    assert_int_equal(connect(fd, (struct sockaddr *)&un, size), 0);
    return fd;
}

static void send_fds(int fd, const void *bytes, size_t size, const int *fds, size_t fds_count)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control = {.head = {.cmsg_len = CMSG_LEN(fds_count * sizeof(int)),
                          .cmsg_level = SOL_SOCKET,
                          .cmsg_type = SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.head), fds, fds_count * sizeof(int));
    struct iovec iov = {(void *)bytes, size};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fds_count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fds_count * sizeof(int));
    }
    assert_int_equal(sendmsg(fd, &message, 0), size);
}

static int memory_of(uint64_t bytes, int seals)
{
    int fd = memfd_create("stranger", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    if (seals) assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static uint32_t open_fds(void)
{
    uint32_t count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void only_memory_that_cannot_shrink_is_attached(void **state)
{
    (void)state;
    uint64_t right = CONTROL + 2 * RING;
    int sealed = memory_of(right, F_SEAL_SHRINK), open_one = memory_of(right, 0);
    int grows = memory_of(right, F_SEAL_GROW), small = memory_of(right - 1, F_SEAL_SHRINK);
    int large = memory_of(right + 4096, F_SEAL_SHRINK), null = open("/dev/null", O_RDWR);
    struct setup magic = good_setup, version = good_setup, odd = good_setup, huge = good_setup,
                 tiny = good_setup;
    magic.magic++;
    version.version++;
    odd.ring_bytes = RING + 4096;
    huge.ring_bytes = 1ull << 62;
    tiny.ring_bytes = 4096;
    struct {
        struct setup setup;
        size_t size;
        int fd[5];
        size_t fds_count;
        enum err error;
    } row[] = {
        {good_setup, sizeof good_setup, {sealed}, 1, ERR_AGAIN}, /* attached: no frame yet */
        {good_setup, sizeof good_setup, {0}, 0, ERR_FORMAT},
        {good_setup, sizeof good_setup, {sealed, sealed}, 2, ERR_FORMAT},
        {good_setup, sizeof good_setup, {sealed, null, null, null, null}, 5, ERR_FORMAT},
        {good_setup, 7, {sealed}, 1, ERR_FORMAT},
        {good_setup, sizeof good_setup, {open_one}, 1, ERR_FORMAT},
        {good_setup, sizeof good_setup, {grows}, 1, ERR_FORMAT},
        {good_setup, sizeof good_setup, {small}, 1, ERR_FORMAT},
        {good_setup, sizeof good_setup, {large}, 1, ERR_FORMAT},
        {good_setup, sizeof good_setup, {null}, 1, ERR_FORMAT},
        {magic, sizeof magic, {sealed}, 1, ERR_FORMAT},
        {version, sizeof version, {sealed}, 1, ERR_FORMAT},
        {odd, sizeof odd, {sealed}, 1, ERR_FORMAT},
        {huge, sizeof huge, {sealed}, 1, ERR_FORMAT},
        {tiny, sizeof tiny, {sealed}, 1, ERR_FORMAT},
    };
    struct kv_listener *l;
    assert_ok(kv_link_shm.listen(&l, "", &options));
    uint32_t fds_before = open_fds();
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        int fd = shm_stranger(l);
        struct kv_link *link = accept_next(l);
        assert_int_equal(kv_link_shm.poll(link), ERR_AGAIN);
        send_fds(fd, &row[i].setup, row[i].size, row[i].fd, row[i].fds_count);
        assert_true(readable(kv_link_shm.fd(link), WAIT_MS));
        enum err e = kv_link_shm.poll(link);
        const void *bytes;
        size_t size;
        if (e == OK) e = kv_link_shm.receive(link, &bytes, &size);
        if (e != row[i].error) fail_msg("row %zu: %s %s", i, err_name(e), err_text());
        kv_link_shm.close(link);
        close(fd);
        assert_int_equal(open_fds(), fds_before); /* what was passed along is closed */
    }
    kv_link_shm.unlisten(l);
    int all[] = {sealed, open_one, grows, small, large, null};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        close(all[i]);
}

/* A stranger with memory attached, and the link that attached it. */
struct attached {
    struct kv_listener *listener;
    struct kv_link *link;
    int socket, memory;
    uint8_t *map;
    struct ring_control *to_link, *from_link;
};

static void attach(struct attached *a)
{
    uint64_t nonce[2];
    assert_ok(kv_link_shm.listen(&a->listener, "", &options));
    a->socket = shm_stranger(a->listener);
    a->link = accept_next(a->listener);
    a->memory = memory_of(CONTROL + 2 * RING, F_SEAL_SHRINK);
    a->map = mmap(NULL, CONTROL + 2 * RING, PROT_READ | PROT_WRITE, MAP_SHARED, a->memory, 0);
    assert_true(a->map != MAP_FAILED);
    a->to_link = (struct ring_control *)(void *)(a->map + 64); /* behind the nonce */
    a->from_link = a->to_link + 1;
    send_fds(a->socket, &good_setup, sizeof good_setup, &a->memory, 1);
    assert_true(readable(kv_link_shm.fd(a->link), WAIT_MS));
    assert_ok(kv_link_shm.poll(a->link));
    assert_int_equal(recv(a->socket, nonce, sizeof nonce, 0), sizeof nonce);
}

static void detach(struct attached *a)
{
    kv_link_shm.close(a->link);
    kv_link_shm.unlisten(a->listener);
    munmap(a->map, CONTROL + 2 * RING);
    close(a->socket);
    close(a->memory);
}

static void put_record(struct attached *a, uint64_t at, uint64_t head)
{
    memcpy(a->map + CONTROL + at, &head, sizeof head);
}

static void indices_and_sizes_of_a_writer_are_checked(void **state)
{
    (void)state;
    struct {
        uint64_t head, record;
        enum err error;
    } row[] = {
        {16, 3, OK},
        {8, 0, OK},
        {8, 1, ERR_FORMAT}, /* more than was written */
        {16, 9, ERR_FORMAT},
        {4, 0, ERR_FORMAT}, /* not even a size */
        {2048, FRAME_MAX + 1, ERR_FORMAT},
        {2048, UINT64_MAX, ERR_FORMAT},
        {2048, 1ull << 32 | 3, ERR_FORMAT}, /* where zeros belong */
        {RING + 8, 3, ERR_FORMAT},          /* more than the ring holds */
        {UINT64_MAX, 3, ERR_FORMAT},        /* behind its start */
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct attached a;
        const void *bytes;
        size_t size;
        attach(&a);
        put_record(&a, 0, row[i].record);
        atomic_store(&a.to_link->head, row[i].head);
        enum err e = kv_link_shm.receive(a.link, &bytes, &size);
        if (e != row[i].error) fail_msg("row %zu: %s", i, err_name(e));
        if (e != OK) assert_int_equal(kv_link_shm.poll(a.link), ERR_FORMAT); /* for ever */
        detach(&a);
    }
}

static void indices_of_a_reader_are_checked(void **state)
{
    (void)state;
    struct kv_piece piece = {"four", 4};
    struct attached a;
    attach(&a);
    assert_ok(kv_link_shm.send(a.link, &piece, 1));
    atomic_store(&a.from_link->tail, 17); /* 16 were written */
    assert_int_equal(kv_link_shm.send(a.link, &piece, 1), ERR_FORMAT);
    detach(&a);
}

/* Whatever the stranger writes, at whatever moment: an error or a frame of a sane size. */
static void random_indices_harm_nobody(void **state)
{
    (void)state;
    for (uint32_t run = 0; run < 40; run++) {
        struct attached a;
        struct kv_piece piece = {"0123456789", 10};
        attach(&a);
        for (uint32_t step = 0; step < 60; step++) {
            struct rng_block r = rng_draw(run, 3, step);
            const void *bytes;
            size_t size;
            uint64_t head =
                r.word[3] % 3 ? (uint64_t)step * 24 : (uint64_t)r.word[0] << r.word[1] % 33;
            put_record(&a, step * 24 % RING, r.word[2] % 4 ? 16 : r.word[1]);
            atomic_store(&a.to_link->head, head);
            if (r.word[2] % 5 == 0) atomic_store(&a.from_link->tail, r.word[1] % 100);
            if (kv_link_shm.receive(a.link, &bytes, &size) == OK) {
                assert_true(size <= FRAME_MAX);
                volatile uint8_t last = size ? ((const uint8_t *)bytes)[size - 1] : 0;
                (void)last;
                kv_link_shm.release(a.link);
            }
            enum err e = kv_link_shm.send(a.link, &piece, 1);
            assert_true(e == OK || e == ERR_AGAIN || e == ERR_FORMAT);
        }
        detach(&a);
    }
}

/* A listener of ours that is asked by a dialler and echoes the wrong thing. */
static void a_dialler_uses_no_memory_that_the_other_side_does_not_see(void **state)
{
    (void)state;
    struct kv_listener *real;
    assert_ok(kv_link_shm.listen(&real, "", &options)); /* for its boot id */
    char address[KV_LINK_ADDRESS_MAX];
    snprintf(address, sizeof address, "%.36s-test-%d", kv_link_shm.address(real), (int)getpid());
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int n = snprintf(un.sun_path + 1, sizeof un.sun_path - 1, "tandem-kv-test-%d", (int)getpid());
    int server = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    assert_int_equal(bind(server, (struct sockaddr *)&un, size), 0);
    assert_int_equal(listen(server, 4), 0);
    size_t echo_bytes[] = {16, 5, 0};
    enum err error[] = {ERR_FORMAT, ERR_FORMAT, ERR_PEER};
    for (int i = 0; i < 3; i++) {
        struct kv_link *link;
        assert_ok(kv_link_shm.dial(&link, address, &options));
        int fd = accept(server, NULL, NULL);
        assert_true(fd >= 0);
        assert_int_equal(kv_link_shm.poll(link), ERR_AGAIN);
        if (echo_bytes[i] > 0)
            assert_int_equal(send(fd, "sixteen bytes!!!", echo_bytes[i], 0), echo_bytes[i]);
        if (echo_bytes[i] == 0) close(fd);
        assert_true(readable(kv_link_shm.fd(link), WAIT_MS));
        assert_int_equal(kv_link_shm.poll(link), error[i]);
        kv_link_shm.close(link);
        if (echo_bytes[i] > 0) close(fd);
    }
    close(server);
    kv_link_shm.unlisten(real);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tcp_sizes_are_believed_up_to_the_longest_frame),
        cmocka_unit_test(a_torn_tcp_frame_is_no_frame),
        cmocka_unit_test(tcp_listens_only_where_it_can),
        cmocka_unit_test(only_memory_that_cannot_shrink_is_attached),
        cmocka_unit_test(indices_and_sizes_of_a_writer_are_checked),
        cmocka_unit_test(indices_of_a_reader_are_checked),
        cmocka_unit_test(random_indices_harm_nobody),
        cmocka_unit_test(a_dialler_uses_no_memory_that_the_other_side_does_not_see),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
