/* pair: two processes that send to each other what a link would carry, for its ceiling.
 *
 *     const struct pair_options o = {.device = {0, 0}, .piece_bytes = 8 << 20, .pieces = 64, .rounds = 5};
 *     pair_measure("tcp", &o, send_pieces, receive_pieces);      // figure tcp_ceiling_gb_s
 *
 * Each side runs in a process of its own. The sender gives the bytes a second of its best round.
 * A side that cannot go on says why and ends (pair_fail): then the figure is not
 * measured, and a line on stderr has the reason. None outlives PAIR_SECONDS_MAX.
 * Owner: the program's main thread. */
#ifndef TANDEM_TESTS_GPU_PAIR_H
#define TANDEM_TESTS_GPU_PAIR_H

#include <stddef.h>
#include <stdint.h>

enum { PAIR_SECONDS_MAX = 60 };

struct pair_options {
    uint32_t device[2]; /* the sender's, the receiver's */
    uint64_t piece_bytes;
    uint32_t pieces; /* of a round */
    uint32_t rounds;
};

/* One side. */
struct pair {
    const char *name;
    const struct pair_options *options;
    uint32_t device;
    int fd; /* to the other side */
};

typedef double pair_send_fn(const struct pair *p);
typedef void pair_receive_fn(const struct pair *p);

void pair_measure(const char *name, const struct pair_options *o, pair_send_fn *send,
                  pair_receive_fn *receive);

void pair_say(const struct pair *p, const void *bytes, size_t size);
void pair_hear(const struct pair *p, void *bytes, size_t size);
void pair_fail(const struct pair *p, const char *what, const char *why) __attribute__((noreturn));

/* Bytes a second of a round that began then. */
double pair_rate(const struct pair *p, uint64_t began_ns);

/* --devices P,D --kib N (of a piece) --pieces N --rounds N; anything else ends the program. */
struct pair_options pair_arguments(int argc, char **argv);

#endif
