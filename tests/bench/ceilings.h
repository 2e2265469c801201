/* ceilings: what the machine can do at most: dot products in registers, and reading memory.
 *
 *     struct ceilings c;
 *     ceilings_init(&c, threads);
 *     ceilings_measure(&c);            // beside every group of figures; the best ever seen counts
 *     double share = ceilings_share(&c, macs, bytes, seconds);
 *     ceilings_fini(&c);
 *
 * Rules: what is missing ends the program. Its threads sleep between measurements. Owner: the program's
 * main thread. */
#ifndef TANDEM_TESTS_BENCH_CEILINGS_H
#define TANDEM_TESTS_BENCH_CEILINGS_H

#include <stdint.h>

struct workers;

struct ceilings {
    uint32_t threads;
    double peak_macs_s, read_bytes_s;
    struct workers *workers;
    char *memory;
    double seen; /* keeps the compiler from dropping the loops */
};

void ceilings_init(struct ceilings *c, uint32_t threads);
void ceilings_measure(struct ceilings *c);
void ceilings_fini(struct ceilings *c);
/* The time that the ceilings allow for so many multiply-adds on so many bytes, over the time taken: 1 is
 * the roofline. */
double ceilings_share(const struct ceilings *c, double macs, double bytes, double seconds);

#endif
