#include "tests/e2e/page.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/e2e/cluster.h"
#include "tests/e2e/ports.h"
#include "tests/unit/testing.h"

static int dial(const char *address)
{
    unsigned port;
    struct timeval wait = {.tv_sec = CLUSTER_WAIT_MS / 1000};
    assert_int_equal(sscanf(address, "127.0.0.1:%u", &port), 1);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        fail_msg("%s: %s", address, strerror(errno));
    return fd;
}

int page_get(const char *address, const char *path, char text[PAGE_MAX])
{
    char request[256];
    int status, fd = dial(address);
    size_t size = 0;
    ssize_t n;
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, address);
    port_send(fd, request, strlen(request));
    while ((n = recv(fd, text + size, PAGE_MAX - 1 - size, 0)) > 0)
        size += (size_t)n;
    close(fd);
    text[size] = '\0';
    const char *body = strstr(text, "\r\n\r\n");
    if (n != 0 || !body || sscanf(text, "HTTP/1.1 %d ", &status) != 1)
        fail_msg("%s%s: no answer of HTTP: %s", address, path, text);
    memmove(text, body + 4, strlen(body + 4) + 1);
    return status;
}

void page_await(const char *address, const char *path, int status, const char *text)
{
    static char got[PAGE_MAX];
    uint64_t until_ns = clock_now_ns() + CLUSTER_WAIT_MS * NS_PER_MS;
    struct timespec moment = {.tv_nsec = 20000000};
    for (;;) {
        int said = page_get(address, path, got);
        if (said == status && strcmp(got, text) == 0) return;
        if (clock_now_ns() > until_ns)
            fail_msg("%s%s: %d %s instead of %d %s", address, path, said, got, status, text);
        nanosleep(&moment, NULL); /* a page cannot be waited for */
    }
}
