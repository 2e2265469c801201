/* ports: everything that a process listens on, and ways to be a bad guest there.
 *
 *     struct port port[PORTS_MAX];
 *     uint32_t count = ports_of(pid, port);          // TCP ports and abstract unix sockets
 *     int fd = port_connect(&port[0]);               // -1: refused
 *     port_send(fd, bytes, size);                    // as much as it takes without waiting
 *
 * Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_PORTS_H
#define TANDEM_TESTS_E2E_PORTS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { PORTS_MAX = 16 };

struct port {
    uint16_t tcp;   /* of 127.0.0.1; 0: a unix socket */
    int type;       /* SOCK_STREAM or SOCK_SEQPACKET */
    char name[108]; /* of the unix socket, abstract */
};

uint32_t ports_of(pid_t pid, struct port port[PORTS_MAX]);
int port_connect(const struct port *port);
void port_send(int fd, const void *bytes, size_t size);
uint16_t port_unused(void); /* a TCP port that nobody listens on */

#endif
