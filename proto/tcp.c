#include "proto/tcp.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Splits at the last colon; brackets of an IPv6 address are dropped. */
static enum err split(const char *address, char host[TCP_ADDRESS_TEXT], const char **port)
{
    const char *colon = strrchr(address, ':');
    size_t n = colon ? (size_t)(colon - address) : 0;
    if (n == 0 || n >= TCP_ADDRESS_TEXT || !colon[1])
        return err_set(ERR_INVALID, "\"%.100s\" is no address: write HOST:PORT", address);
    if (n > 2 && address[0] == '[' && address[n - 1] == ']') {
        address++;
        n -= 2;
    }
    memcpy(host, address, n);
    host[n] = '\0';
    *port = colon + 1;
    return OK;
}

/* ":PORT" of an address that is any of a host's; NULL: it is one. */
static const char *port_of_anywhere(const char *address)
{
    static const char *const anywhere[] = {"0.0.0.0:", "[::]:", "*:"};
    for (size_t i = 0; i < sizeof anywhere / sizeof *anywhere; i++)
        if (strncmp(address, anywhere[i], strlen(anywhere[i])) == 0) return strrchr(address, ':');
    return NULL;
}

static const char *without_scheme(const char *address)
{
    return strncmp(address, "tcp://", 6) == 0 ? address + 6 : address;
}

void tcp_fill_host(const char *address, const char *dialled, char out[TCP_ADDRESS_TEXT])
{
    const char *host = without_scheme(dialled), *colon = strrchr(host, ':');
    const char *port = port_of_anywhere(address);
    if (port && colon > host)
        snprintf(out, TCP_ADDRESS_TEXT, "%.*s%s", (int)(colon - host), host, port);
    else
        snprintf(out, TCP_ADDRESS_TEXT, "%s", address);
}

static enum err resolve(const char *address, int flags, struct addrinfo **found)
{
    char host[TCP_ADDRESS_TEXT];
    const char *port = NULL;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    enum err e = split(address, host, &port);
    if (e != OK) return e;
    hints.ai_flags = flags | AI_NUMERICSERV | AI_NUMERICHOST;
    int rc = getaddrinfo(host, port, &hints, found);
    if (rc == EAI_NONAME) {
        hints.ai_flags &= ~AI_NUMERICHOST;
        rc = getaddrinfo(host, port, &hints, found);
    }
    return rc == 0 ? OK : err_set(ERR_INVALID, "%s: %s", address, gai_strerror(rc));
}

static enum err open_socket(const struct addrinfo *a, int *fd)
{
    int one = 1;
    *fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (*fd < 0) return err_set(ERR_IO, "no socket: %s", strerror(errno));
    setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(*fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    return OK;
}

/* Its own address; with `port_wanted`, ":PORT", for its port. */
static enum err print_bound(int fd, const char *port_wanted, char bound[TCP_ADDRESS_TEXT])
{
    struct sockaddr_storage a;
    socklen_t size = sizeof a;
    char host[64], port[16];
    if (getsockname(fd, (struct sockaddr *)&a, &size) != 0 ||
        getnameinfo((struct sockaddr *)&a, size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return err_set(ERR_IO, "a socket without an address: %s", strerror(errno));
    snprintf(bound, TCP_ADDRESS_TEXT, a.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host,
             port_wanted ? port_wanted + 1 : port);
    return OK;
}

enum err tcp_own_host(const char *address, const char *dialled, char out[TCP_ADDRESS_TEXT])
{
    struct addrinfo *found;
    const char *port = port_of_anywhere(address);
    snprintf(out, TCP_ADDRESS_TEXT, "%s", address);
    if (!port) return OK;
    enum err e = resolve(without_scheme(dialled), 0, &found);
    if (e != OK) return e;
    /* A datagram socket says what it would send from and sends nothing. */
    int fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) != 0)
        e = err_set(ERR_IO, "no way to %s: %s", dialled, strerror(errno));
    else
        e = print_bound(fd, port, out);
    if (fd >= 0) close(fd);
    freeaddrinfo(found);
    return e;
}

enum err tcp_listen(const char *address, int *fd, char bound[TCP_ADDRESS_TEXT])
{
    struct addrinfo *found;
    int one = 1;
    enum err e = resolve(address, AI_PASSIVE, &found);
    if (e != OK) return e;
    *fd = -1;
    if ((e = open_socket(found, fd)) == OK) {
        setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(*fd, found->ai_addr, found->ai_addrlen) != 0 || listen(*fd, 256) != 0)
            e = err_set(ERR_IO, "cannot listen on %s: %s%s", address, strerror(errno),
                        errno == EADDRINUSE ? ": end the other program or choose another port"
                                            : "");
        else
            e = print_bound(*fd, NULL, bound);
    }
    freeaddrinfo(found);
    if (e != OK && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    return e;
}

enum err tcp_dial(const char *address, int *fd)
{
    struct addrinfo *found;
    enum err e = resolve(address, 0, &found);
    if (e != OK) return e;
    *fd = -1;
    e = open_socket(found, fd);
    if (e == OK && connect(*fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS) {
        e = err_set(ERR_PEER, "cannot connect to %s: %s", address, strerror(errno));
        close(*fd);
        *fd = -1;
    }
    freeaddrinfo(found);
    return e;
}

enum err tcp_connected(int fd)
{
    int problem = 0;
    socklen_t size = sizeof problem;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &problem, &size) != 0) problem = errno;
    return problem == 0 ? OK : err_set(ERR_PEER, "cannot connect: %s", strerror(problem));
}
