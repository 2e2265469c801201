#include "common/address.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

static enum err wrong(const char *address)
{
    return err_set(ERR_INVALID,
                   "address \"%s\": it must look like 127.0.0.1:5700, [::1]:5700 or "
                   "tcp://HOST:PORT",
                   address);
}

enum err address_split(const char *address, char host[ADDRESS_HOST_MAX], uint16_t *port)
{
    const char *start = strncmp(address, "tcp://", 6) == 0 ? address + 6 : address;
    const char *colon = strrchr(start, ':');
    if (!colon || colon == start) return wrong(address);
    char *end;
    if (colon[1] < '0' || colon[1] > '9') return wrong(address);
    unsigned long number = strtoul(colon + 1, &end, 10);
    if (*end != '\0' || number > UINT16_MAX) return wrong(address);
    size_t length = (size_t)(colon - start);
    if (start[0] == '[') {
        if (start[length - 1] != ']') return wrong(address);
        start++;
        length -= 2;
    } else if (memchr(start, ':', length)) {
        return wrong(address); /* an IPv6 address needs its brackets */
    }
    if (length == 0 || length >= ADDRESS_HOST_MAX) return wrong(address);
    memcpy(host, start, length);
    host[length] = '\0';
    *port = (uint16_t)number;
    return OK;
}

bool address_is_loopback(const char *address)
{
    char host[ADDRESS_HOST_MAX];
    uint16_t port;
    struct in_addr v4;
    struct in6_addr v6;
    if (address_split(address, host, &port) != OK) return false;
    if (strcmp(host, "localhost") == 0) return true;
    if (inet_pton(AF_INET, host, &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}
