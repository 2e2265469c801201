/* address: "HOST:PORT" and "tcp://HOST:PORT" as users write them.
 *
 *     char host[ADDRESS_HOST_MAX]; uint16_t port;
 *     if ((e = address_split("tcp://[::1]:5700", host, &port)) != OK) return e;   // "::1", 5700
 *
 * Rules: nothing is looked up. "localhost", 127.0.0.0/8 and ::1 are loopback, nothing else is. Any thread. */
#ifndef TANDEM_COMMON_ADDRESS_H
#define TANDEM_COMMON_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

enum { ADDRESS_HOST_MAX = 256 };

/* ERR_INVALID that says what an address looks like. */
enum err address_split(const char *address, char host[ADDRESS_HOST_MAX], uint16_t *port);
/* False also for what is no address. */
bool address_is_loopback(const char *address);

#endif
