/* ceilings: what the machine can do at most: dot products in registers, and reading memory.
 *
 *     struct ceilings c;
 *     ceilings_init(&c, threads);
 *     ceilings_measure(&c);            // beside every group of figures; the best ever seen counts
 *     double share = ceilings_share(&c, macs, bytes, seconds);
 *
 *     struct ceiling before = ceilings_measure(&c);   // or, where they move while one measures:
 *     …                                               // a round of 0.1 s, which took `seconds`
 *     struct ceiling behind = ceilings_measure(&c);   // of each round, against its own ceilings
 *     double share = ceiling_share(ceiling_higher(before, behind), macs, bytes, seconds);
 *     ceilings_fini(&c);
 *
 * On a virtual machine the host may move its cores: two that share a last-level cache also share its
 * path to memory, two that do not have one each, and lines go from one to the other more slowly.
 * `line_ns` tells which of both it was; one thread has none.
 *
 * Rules: what is missing ends the program. Its threads sleep between measurements. Owner: the program's
 * main thread. */
#ifndef TANDEM_TESTS_BENCH_CEILINGS_H
#define TANDEM_TESTS_BENCH_CEILINGS_H

#include <stdint.h>

struct workers;

struct ceiling {
    double peak_macs_s, read_bytes_s;
    double line_ns; /* until another thread sees what one wrote */
};

struct ceilings {
    uint32_t threads;
    double peak_macs_s, read_bytes_s; /* the best ever seen */
    struct workers *workers;
    char *memory;
    _Atomic uint32_t *turn; /* counts up to and fro */
    double seen;            /* keeps the compiler from dropping the loops */
};

void ceilings_init(struct ceilings *c, uint32_t threads);
struct ceiling ceilings_measure(struct ceilings *c); /* 0.1 s */
void ceilings_fini(struct ceilings *c);
/* The time that the ceilings allow for so many multiply-adds on so many bytes, over the time taken: 1 is
 * the roofline. */
double ceilings_share(const struct ceilings *c, double macs, double bytes, double seconds);

struct ceiling ceiling_higher(struct ceiling a, struct ceiling b);
double ceiling_share(struct ceiling c, double macs, double bytes, double seconds);

#endif
