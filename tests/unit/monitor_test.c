#include "tests/unit/testing.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/address.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "proto/monitor.h"

enum { ANSWER_BYTES = 1 << 16 };

struct bench {
    struct loop *loop;
    struct monitor *monitor;
    const char *missing;
    enum err metrics_error;
    int pages_made;
    struct loop_watch *watch;
    int fd;
    size_t wanted_bytes; /* stop when there are as many; 0: at the end of the stream */
    char answer[ANSWER_BYTES];
    size_t size;
    bool ended;
};

static enum err print_metrics(void *ctx, uint64_t now_ns, struct buf *page)
{
    struct bench *b = ctx;
    assert_true(now_ns == loop_now_ns(b->loop) && now_ns > 0);
    b->pages_made++;
    if (b->metrics_error != OK) return err_set(b->metrics_error, "no page today");
    return buf_add_string(page, "some_metric 1\n");
}

static const char *say_missing(void *ctx, uint64_t now_ns)
{
    struct bench *b = ctx;
    (void)now_ns;
    return b->missing;
}

static const struct monitor_pages pages = {print_metrics, say_missing, 0};

static int setup(void **state)
{
    static struct bench b;
    b = (struct bench){.fd = -1};
    assert_ok(loop_new(&b.loop));
    assert_ok(monitor_open(&b.monitor, b.loop, "127.0.0.1:0", &pages, &b));
    *state = &b;
    return 0;
}

static int teardown(void **state)
{
    struct bench *b = *state;
    monitor_close(b->monitor);
    loop_free(b->loop);
    return 0;
}

static int dial(struct bench *b)
{
    char host[ADDRESS_HOST_MAX];
    uint16_t port;
    assert_ok(address_split(monitor_address(b->monitor), host, &port));
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static void on_answer(void *ctx, uint64_t now_ns, unsigned events)
{
    struct bench *b = ctx;
    (void)now_ns, (void)events;
    assert_true(b->size < sizeof b->answer - 1);
    ssize_t n = recv(b->fd, b->answer + b->size, sizeof b->answer - 1 - b->size, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    b->ended = n <= 0; /* it may reset what it did not read to its end */
    b->size += n > 0 ? (size_t)n : 0;
    b->answer[b->size] = '\0';
    if (b->ended || (b->wanted_bytes > 0 && b->size >= b->wanted_bytes)) loop_stop(b->loop);
}

/* Turns until this connection has ended, or said so many bytes. */
static void listen_to(struct bench *b, int fd, size_t wanted_bytes)
{
    b->fd = fd;
    b->wanted_bytes = wanted_bytes;
    b->size = 0;
    b->ended = false;
    assert_ok(loop_watch(b->loop, fd, LOOP_READ, on_answer, b, &b->watch));
    loop_run(b->loop);
    loop_watch_free(b->watch);
}

static const char *ask(struct bench *b, const char *request, size_t size)
{
    int fd = dial(b);
    send(fd, request, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(fd, SHUT_WR);
    listen_to(b, fd, 0);
    close(fd);
    return b->answer;
}

static const char *get(struct bench *b, const char *what)
{
    char request[256];
    int n = snprintf(request, sizeof request, "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                     what);
    int fd = dial(b);
    assert_int_equal(send(fd, request, (size_t)n, 0), n);
    listen_to(b, fd, 0);
    close(fd);
    return b->answer;
}

static void expect(const char *answer, const char *status, const char *body)
{
    const char *got = strstr(answer, "\r\n\r\n");
    if (strncmp(answer, status, strlen(status)) != 0 || !got || strcmp(got + 4, body) != 0)
        fail_msg("%s and \"%s\" expected: %s", status, body, answer);
}

static void each_page_has_its_answer(void **state)
{
    struct bench *b = *state;
    static const struct {
        const char *what, *status, *body;
    } cases[] = {
        {"GET /healthz", "HTTP/1.1 200 OK\r\n", "ok\n"},
        {"GET /readyz", "HTTP/1.1 200 OK\r\n", "ok\n"},
        {"GET /metrics", "HTTP/1.1 200 OK\r\n", "some_metric 1\n"},
        {"GET /metrics?name=a&b=%20", "HTTP/1.1 200 OK\r\n", "some_metric 1\n"},
        {"HEAD /metrics", "HTTP/1.1 200 OK\r\n", ""},
        {"POST /metrics", "HTTP/1.1 405 Method Not Allowed\r\n", "only GET and HEAD\n"},
        {"DELETE /healthz", "HTTP/1.1 405 Method Not Allowed\r\n", "only GET and HEAD\n"},
        {"GET /", "HTTP/1.1 404 Not Found\r\n", "there are /metrics, /healthz and /readyz\n"},
        {"GET /metrics/", "HTTP/1.1 404 Not Found\r\n",
         "there are /metrics, /healthz and /readyz\n"},
        {"GET /../metrics", "HTTP/1.1 404 Not Found\r\n",
         "there are /metrics, /healthz and /readyz\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect(get(b, cases[i].what), cases[i].status, cases[i].body);
    assert_non_null(strstr(get(b, "GET /metrics"), "Content-Type: text/plain; version=0.0.4"));
    assert_non_null(strstr(get(b, "HEAD /metrics"), "Content-Length: 14\r\n"));
    assert_non_null(strstr(get(b, "PUT /metrics"), "Allow: GET, HEAD\r\n"));
}

static void what_is_missing_is_said(void **state)
{
    struct bench *b = *state;
    b->missing = "no decode node is ready";
    expect(get(b, "GET /readyz"), "HTTP/1.1 503 Service Unavailable\r\n",
           "no decode node is ready\n");
    expect(get(b, "GET /healthz"), "HTTP/1.1 200 OK\r\n", "ok\n"); /* it lives all the same */
    b->missing = NULL;
    expect(get(b, "GET /readyz"), "HTTP/1.1 200 OK\r\n", "ok\n");
    b->metrics_error = ERR_MEMORY;
    expect(get(b, "GET /metrics"), "HTTP/1.1 500 Internal Server Error\r\n", "no page today\n");
}

static void garbage_ends_its_connection_and_nothing_else(void **state)
{
    struct bench *b = *state;
    static const struct {
        const char *said, *status; /* "": no answer */
    } cases[] = {
        {"", ""},
        {"GET /metrics HTTP/1.1", ""},
        {"GET /metrics HTTP/1.1\r\n", ""},
        {"\r\n\r\n\r\n", "HTTP/1.1 400 "},
        {" \r\n\r\n", "HTTP/1.1 400 "},
        {"GET\r\n\r\n", "HTTP/1.1 400 "},
        {"GET /metrics\r\n\r\n", "HTTP/1.1 400 "},
        {"GET /metrics \r\n\r\n", "HTTP/1.1 400 "},
        {"GET  HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "},
        {"GET /metrics HTTP/2.0\r\n\r\n", "HTTP/1.1 400 "},
        {"GET /metrics HTTP/1\r\n\r\n", "HTTP/1.1 400 "},
        {" GET /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 400 "},
        {"GET ?/metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "},
        {"get /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 "},
        {"HEADS /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 "},
        {"CONNECT x:1 HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "},
        {"POST /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\nx", "HTTP/1.1 405 "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ask(b, cases[i].said, strlen(cases[i].said));
        if (strncmp(b->answer, cases[i].status, strlen(cases[i].status)) != 0 ||
            (b->size > 0) != (cases[i].status[0] != 0))
            fail_msg("%s: %s", cases[i].said, b->answer);
        assert_true(b->ended && b->pages_made == 0);
    }
    expect(get(b, "GET /metrics"), "HTTP/1.1 200 OK\r\n", "some_metric 1\n");
}

/* What stands behind the request is not read: the answer comes all the same. */
static void a_body_does_not_take_the_answer_with_it(void **state)
{
    struct bench *b = *state;
    static char bytes[1 << 16];
    int n = sprintf(bytes, "POST /metrics HTTP/1.1\r\nContent-Length: 60000\r\n\r\n");
    memset(bytes + n, 'x', 60000);
    expect(ask(b, bytes, (size_t)n + 60000), "HTTP/1.1 405 ", "only GET and HEAD\n");
}

static void a_request_of_the_largest_size_is_answered_and_one_beyond_is_not(void **state)
{
    struct bench *b = *state;
    static const char head[] = "GET /metrics HTTP/1.1\r\nA: ";
    static char request[MONITOR_REQUEST_BYTES + 64];
    for (int beyond = 0; beyond < 2; beyond++) {
        size_t size = sizeof head - 1, fill = MONITOR_REQUEST_BYTES - 4 - size + (size_t)beyond;
        memcpy(request, head, size);
        memset(request + size, 'a', fill);
        memcpy(request + size + fill, "\r\n\r\n", 5);
        ask(b, request, size + fill + 4);
        assert_int_equal(strncmp(b->answer, "HTTP/1.1 200 ", 13) == 0, !beyond);
        assert_int_equal(strncmp(b->answer, "HTTP/1.1 431 ", 13) == 0, beyond);
        assert_int_equal(b->pages_made, 1);
    }
}

static void the_oldest_guest_makes_room_for_the_next(void **state)
{
    struct bench *b = *state;
    int fd[MONITOR_GUESTS_MAX + 8];
    for (int i = 0; i < MONITOR_GUESTS_MAX + 8; i++) {
        fd[i] = dial(b); /* and says nothing */
        expect(get(b, "GET /healthz"), "HTTP/1.1 200 OK\r\n", "ok\n");
    }
    /* While the i-th stood, so did the one that asked: one place less. */
    for (int i = 0; i < 8; i++) {
        listen_to(b, fd[i], 0);
        assert_true(b->ended && b->size == 0);
    }
    char byte;
    assert_int_equal(recv(fd[MONITOR_GUESTS_MAX + 7], &byte, 1, MSG_DONTWAIT), -1);
    assert_int_equal(errno, EAGAIN);
    for (int i = 0; i < MONITOR_GUESTS_MAX + 8; i++)
        close(fd[i]);
    expect(get(b, "GET /healthz"), "HTTP/1.1 200 OK\r\n", "ok\n");
}

static void a_guest_has_its_time_and_no_more(void **state)
{
    struct bench *b = *state;
    static const struct monitor_pages hasty = {print_metrics, say_missing, NS_PER_MS};
    monitor_close(b->monitor);
    assert_ok(monitor_open(&b->monitor, b->loop, "127.0.0.1:0", &hasty, b));
    int fd = dial(b);
    listen_to(b, fd, 0);
    assert_true(b->ended && b->size == 0);
    close(fd);
}

static void it_can_close_while_guests_are_there(void **state)
{
    struct bench *b = *state;
    int fd = dial(b);
    get(b, "GET /healthz"); /* the loop has turned: the first one was accepted */
    monitor_close(b->monitor);
    b->monitor = NULL;
    listen_to(b, fd, 0);
    assert_true(b->ended);
    close(fd);
}

static void failures_at_the_start_are_named_and_leave_nothing_behind(void **state)
{
    struct bench *b = *state;
    struct monitor *second;
    const char *occupied = monitor_address(b->monitor);
    assert_int_equal(monitor_open(&second, b->loop, occupied, &pages, b), ERR_IO);
    assert_null(second);
    assert_non_null(strstr(err_text(), occupied));
    assert_int_equal(monitor_open(&second, b->loop, "nowhere", &pages, b), ERR_INVALID);
    mem_fail_at(1);
    assert_int_equal(monitor_open(&second, b->loop, "127.0.0.1:0", &pages, b), ERR_MEMORY);
    mem_fail_at(0);
    monitor_close(NULL);
}

/* libevent's, too: fails while there are no descriptors left, as it were. */
static bool no_descriptors;
static int accepts;
int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    accepts++;
    if (!no_descriptors) return (int)syscall(SYS_accept4, fd, address, size, flags);
    errno = EMFILE;
    return -1;
}

static void descriptors_come_back(void *ctx, uint64_t now_ns)
{
    (void)ctx, (void)now_ns;
    no_descriptors = false;
}

static void without_descriptors_nobody_is_let_in_for_a_while(void **state)
{
    struct bench *b = *state;
    struct loop_timer *timer;
    assert_ok(loop_timer_new(b->loop, descriptors_come_back, NULL, &timer));
    loop_timer_set(timer, loop_now_ns(b->loop) + 20 * NS_PER_MS);
    no_descriptors = true;
    accepts = 0;
    expect(get(b, "GET /healthz"), "HTTP/1.1 200 OK\r\n", "ok\n");
    assert_false(no_descriptors);
    assert_in_range(accepts, 2, 5); /* and not as often as the loop could turn */
    loop_timer_free(timer);
}

static void a_guest_for_whom_there_is_no_memory_is_sent_away(void **state)
{
    struct bench *b = *state;
    mem_fail_at(2); /* the first one is our own watch */
    ask(b, "GET /healthz HTTP/1.0\r\n\r\n", 25);
    mem_fail_at(0);
    assert_true(b->ended && b->size == 0);
    expect(get(b, "GET /healthz"), "HTTP/1.1 200 OK\r\n", "ok\n");
}

#define MONITOR_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        MONITOR_TEST(each_page_has_its_answer),
        MONITOR_TEST(what_is_missing_is_said),
        MONITOR_TEST(garbage_ends_its_connection_and_nothing_else),
        MONITOR_TEST(a_body_does_not_take_the_answer_with_it),
        MONITOR_TEST(a_request_of_the_largest_size_is_answered_and_one_beyond_is_not),
        MONITOR_TEST(the_oldest_guest_makes_room_for_the_next),
        MONITOR_TEST(a_guest_has_its_time_and_no_more),
        MONITOR_TEST(it_can_close_while_guests_are_there),
        MONITOR_TEST(failures_at_the_start_are_named_and_leave_nothing_behind),
        MONITOR_TEST(without_descriptors_nobody_is_let_in_for_a_while),
        MONITOR_TEST(a_guest_for_whom_there_is_no_memory_is_sent_away),
    };
    log_setup(LOG_OFF, NULL);
    return cmocka_run_group_tests_name("monitor", tests, NULL, NULL);
}
