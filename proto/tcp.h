/* tcp: plain non-blocking TCP sockets by "HOST:PORT" or "[V6]:PORT", for lifelines.
 *
 *     if ((e = tcp_listen("127.0.0.1:0", &fd, bound)) != OK) return e;    // bound: the real port
 *     if ((e = tcp_dial("127.0.0.1:5702", &fd)) != OK) return e;          // connecting
 *     ... fd is writable:  if ((e = tcp_connected(fd)) != OK) ...
 *
 * Rules: the caller closes fd. A host that is a name is looked up, which may block: use numbers.
 * Any thread. */
#ifndef TANDEM_PROTO_TCP_H
#define TANDEM_PROTO_TCP_H

#include "common/err.h"

#define TCP_ADDRESS_TEXT 128

/* ERR_INVALID: no address. ERR_IO: the system's reason. */
enum err tcp_listen(const char *address, int *fd, char bound[TCP_ADDRESS_TEXT]);
/* ERR_PEER: refused at once. */
enum err tcp_dial(const char *address, int *fd);
/* `address` for somebody who reached its owner at `dialled` ("tcp://HOST:PORT"): a host of 0.0.0.0,
 * [::] or * is replaced by that one's. */
void tcp_fill_host(const char *address, const char *dialled, char out[TCP_ADDRESS_TEXT]);
/* `address`, to be listened on and told to others: a host of 0.0.0.0, [::] or *, which nobody can dial, becomes
 * the one that this host has towards `dialled` ("tcp://HOST:PORT"). ERR_INVALID, ERR_IO: there is no way. */
enum err tcp_own_host(const char *address, const char *dialled, char out[TCP_ADDRESS_TEXT]);
enum err tcp_connected(int fd); /* OK or ERR_PEER, once it is writable */

#endif
