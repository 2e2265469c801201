/* byte_order: numbers in files and on the wire, of whatever order this machine is.
 *
 *     le32_put(bytes, size);            // least significant byte first
 *     size = le32_get(bytes);
 *     be64_put(bytes, number);          // most significant byte first
 *
 * Rules: no alignment is asked for; the caller has seen that the bytes are there. Owner: no state. */
#ifndef TANDEM_COMMON_BYTE_ORDER_H
#define TANDEM_COMMON_BYTE_ORDER_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t le32_get(const void *bytes)
{
    uint32_t v;
    memcpy(&v, bytes, sizeof v);
    return le32toh(v);
}
static inline void le32_put(void *bytes, uint32_t v)
{
    v = htole32(v);
    memcpy(bytes, &v, sizeof v);
}

static inline uint64_t le64_get(const void *bytes)
{
    uint64_t v;
    memcpy(&v, bytes, sizeof v);
    return le64toh(v);
}
static inline void le64_put(void *bytes, uint64_t v)
{
    v = htole64(v);
    memcpy(bytes, &v, sizeof v);
}

static inline uint64_t be64_get(const void *bytes)
{
    uint64_t v;
    memcpy(&v, bytes, sizeof v);
    return be64toh(v);
}
static inline void be64_put(void *bytes, uint64_t v)
{
    v = htobe64(v);
    memcpy(bytes, &v, sizeof v);
}

#endif
