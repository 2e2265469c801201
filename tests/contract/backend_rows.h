/* backend_rows: rows and matrices on any device, from floats and back to floats.
 *
 *     float *x = random_rounded(&random, count, dtype);
 *     void *device = rows_put(&subject, ROWS_OPERAND, x, count);
 *     ... the device's ops ...
 *     float *got = rows_get(&subject, ROWS_PRODUCT, out, count);     // waits for the device
 *     assert_near(got, want, count, rows_narrow(&subject, ROWS_PRODUCT), 1e-5, "what");
 *     mem_free(got), subject.ops->free(subject.b, device);
 *
 * Rules: a row has the width that the device's facts say for its kind, two bytes or four. What is returned
 * is the caller's. Owner: the test's thread. */
#ifndef TANDEM_TESTS_BACKEND_ROWS_H
#define TANDEM_TESTS_BACKEND_ROWS_H

#include "tests/contract/backend_testing.h"

bool rows_narrow(const struct subject *s, enum row_kind kind);
void *rows_alloc(const struct subject *s, enum row_kind kind, size_t count);
void *rows_put(const struct subject *s, enum row_kind kind, const float *x, size_t count);
float *rows_get(const struct subject *s, enum row_kind kind, const void *p, size_t count);
float *random_rounded(struct random *r, size_t count, enum dtype dtype);

struct matrix matrix_put(const struct subject *s, uint32_t n, uint32_t k, enum dtype dtype,
                         const float *w);
void matrix_free(const struct subject *s, struct matrix *m);

/* Within the rounding of the type plus an error that grows with the sum's magnitude. */
void assert_near(const float *got, const float *want, size_t count, bool narrow, double slack,
                 const char *what);

#endif
