#include "tests/e2e/ports.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/unit/testing.h"

enum { SOCKETS_MAX = 4096, TCP_LISTENS = 0x0a, UNIX_LISTENS = 0x10000 };

struct sockets {
    uint32_t count;
    unsigned long inode[SOCKETS_MAX];
};

static void sockets_of(pid_t pid, struct sockets *s)
{
    char path[64], target[64];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (const struct dirent *f; (f = readdir(d));) {
        ssize_t n = readlinkat(dirfd(d), f->d_name, target, sizeof target - 1);
        if (n <= 0 || s->count == SOCKETS_MAX) continue;
        target[n] = '\0';
        if (sscanf(target, "socket:[%lu]", &s->inode[s->count]) == 1) s->count++;
    }
    closedir(d);
}

static bool has(const struct sockets *s, unsigned long inode)
{
    for (uint32_t i = 0; i < s->count; i++)
        if (s->inode[i] == inode) return true;
    return false;
}

static bool read_tcp(const char *line, struct port *port, unsigned long *inode)
{
    unsigned number, state;
    if (sscanf(line, " %*d: %*x:%x %*x:%*x %x %*x:%*x %*x:%*x %*x %*d %*d %lu", &number, &state,
               inode) != 3)
        return false;
    *port = (struct port){.tcp = (uint16_t)number, .type = SOCK_STREAM};
    return state == TCP_LISTENS;
}

static bool read_unix(const char *line, struct port *port, unsigned long *inode)
{
    unsigned flags, type;
    *port = (struct port){.tcp = 0};
    if (sscanf(line, "%*x: %*x %*x %x %x %*x %lu @%107s", &flags, &type, inode, port->name) != 4)
        return false;
    port->type = (int)type;
    return flags & UNIX_LISTENS;
}

uint32_t ports_of(pid_t pid, struct port port[PORTS_MAX])
{
    static struct sockets mine;
    static const char *const tables[] = {"/proc/net/tcp", "/proc/net/unix"};
    char line[512];
    unsigned long inode;
    uint32_t count = 0;
    mine.count = 0;
    sockets_of(pid, &mine);
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen(tables[i], "re");
        assert_non_null(f);
        while (fgets(line, sizeof line, f) && count < PORTS_MAX) {
            bool listens = i == 0 ? read_tcp(line, &port[count], &inode)
                                  : read_unix(line, &port[count], &inode);
            if (listens && has(&mine, inode)) count++;
        }
        fclose(f);
    }
    return count;
}

static int connect_tcp(uint16_t number)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(number), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0) return fd;
    close(fd);
    return -1;
}

static int connect_unix(const struct port *port)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t size = strlen(port->name);
    int fd = socket(AF_UNIX, port->type | SOCK_CLOEXEC, 0);
    memcpy(to.sun_path + 1, port->name, size);
    socklen_t to_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + size);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, to_size) == 0) return fd;
    close(fd);
    return -1;
}

int port_connect(const struct port *port)
{
    int fd = port->tcp ? connect_tcp(port->tcp) : connect_unix(port);
    if (fd >= 0) fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

void port_send(int fd, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size > 0) {
        ssize_t n = send(fd, at, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n <= 0) return; /* it takes no more, or hung up */
        at += n;
        size -= (size_t)n;
    }
}

uint16_t port_unused(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof to;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&to, size), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&to, &size), 0);
    close(fd);
    return ntohs(to.sin_port);
}
