/* figures: what a benchmark measured: samples and their percentiles, and the JSON object at its end.
 *
 *     struct samples gaps = {0};
 *     samples_add(&gaps, seconds * 1e3);
 *     figure("itl_p99_ms", samples_at(&gaps, 0.99));       // also a line on stderr, for people
 *     samples_free(&gaps);
 *     figures_end();                                       // the last line of stdout
 *
 * Rules: memory that is not there ends the program. Owner: the program's main thread. */
#ifndef TANDEM_TESTS_BENCH_FIGURES_H
#define TANDEM_TESTS_BENCH_FIGURES_H

#include <stdint.h>

struct samples {
    double *value;
    uint32_t count, capacity;
};

void samples_add(struct samples *s, double value);
/* The least value that `share` of the samples do not exceed; 0 of none. Sorts them. */
double samples_at(struct samples *s, double share);
void samples_free(struct samples *s);

void figure(const char *name, double value);
/* With the name as by printf. */
void figure_print(double value, const char *format, ...) __attribute__((format(printf, 2, 3)));
void figures_end(void);

#endif
