/* keyed_hash: SipHash-2-4 (Aumasson and Bernstein, 2012), for names that others choose: who does not know
 * the key cannot find two of one hash, nor one for a given hash.
 *
 *     static const uint64_t key[2] = {...};                  // secret
 *     uint64_t salt = keyed_hash(key, name, strlen(name));
 *
 * Rules: pure; values are the same on every machine and may be stored and sent. Any thread. */
#ifndef TANDEM_COMMON_KEYED_HASH_H
#define TANDEM_COMMON_KEYED_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t keyed_hash(const uint64_t key[2], const void *bytes, size_t size);

#endif
