/* resp: a connection to a server of the Redis protocol on which nothing waits beyond a deadline.
 *
 *     struct resp *c;
 *     if ((e = resp_open(&c, &(struct resp_options){"cache.internal:6379", user, password, n})) != OK) return e;
 *     resp_begin(c);
 *     resp_command(c, 2, (const char *[]){"EXISTS", key});          // any number of them: one round trip
 *     if ((e = resp_send(c, deadline_ns)) != OK) return e;
 *     struct resp_reply r;
 *     e = resp_reply(c, &r, NULL, deadline_ns);                     // one for each command, in order
 *     resp_close(c);
 *
 * The first resp_send connects. What goes wrong with the connection, a deadline above all, ends it, since
 * nobody knows what the next bytes would answer; it is made anew by a later resp_send, not before a pause
 * that doubles from RESP_PAUSE_NS to RESP_PAUSE_MAX_NS as long as nothing is answered. A reply that is an
 * error of the server's leaves the connection as it is.
 *
 * Rules: names are looked up once, in resp_open; it alone may take longer. A reply has at most
 * `value_bytes` and RESP_SLACK more: who sends more speaks something else. Replies are parsed by hiredis.
 * Owner: one thread. */
#ifndef TANDEM_KV_RESP_H
#define TANDEM_KV_RESP_H

#include <stddef.h>
#include <stdint.h>

#include "common/clock.h"
#include "common/err.h"

#define RESP_PAUSE_NS (100 * NS_PER_MS)
#define RESP_PAUSE_MAX_NS (5 * NS_PER_S)
enum { RESP_SLACK = 4096, RESP_TEXT_MAX = 160 };

struct resp;

enum resp_kind { RESP_NIL, RESP_INTEGER, RESP_BYTES, RESP_STATUS, RESP_ERROR, RESP_OTHER };

struct resp_reply {
    enum resp_kind kind;
    int64_t integer;
    size_t bytes;             /* RESP_BYTES: how many it had */
    char text[RESP_TEXT_MAX]; /* RESP_STATUS, RESP_ERROR: printable, cut */
};

struct resp_options {
    const char *where;           /* "HOST:PORT" or "unix:PATH" */
    const char *user, *password; /* both NULL: nobody logs in; user NULL: the default one */
    size_t value_bytes;
};
/* Strings are copied. ERR_INVALID, ERR_IO: no such host, ERR_MEMORY. */
enum err resp_open(struct resp **c, const struct resp_options *options);
void resp_close(struct resp *c); /* NULL is allowed */

/* Forgets the commands that were not sent. */
void resp_begin(struct resp *c);
void resp_command(struct resp *c, int count, const char *const *words);
/* "SET key value [PX ttl_ms]", of value_bytes; the value is not copied and must stay until resp_send. At most
 * RESP_VALUES_MAX of them. */
enum { RESP_VALUES_MAX = 32 };
void resp_set(struct resp *c, const char *key, const void *value, uint64_t ttl_ms);
/* ERR_PEER, ERR_TIMEOUT, ERR_MEMORY. */
enum err resp_send(struct resp *c, uint64_t deadline_ns);
/* into: where a RESP_BYTES of at most value_bytes goes; NULL: nowhere. */
enum err resp_reply(struct resp *c, struct resp_reply *reply, void *into, uint64_t deadline_ns);

#endif
