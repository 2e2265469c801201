/* backend_testing: random numbers and opened backends for the contract suite of backend.h.
 * Owner: the test's thread. */
#ifndef TANDEM_TESTS_BACKEND_TESTING_H
#define TANDEM_TESTS_BACKEND_TESTING_H

#include "tests/unit/testing.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "common/draw.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kernels/backend.h"
#include "kernels/numbers.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* With what the backend says: it may be on a machine that nobody can look at afterwards. */
#undef assert_ok
#define assert_ok(expression) assert_ok_at((expression), #expression, __FILE__, __LINE__)
static inline void assert_ok_at(enum err e, const char *what, const char *file, int line)
{
    if (e == OK) return;
    print_error("ERROR: %s: %s\n", what, err_text());
    _fail(file, line);
}

/* The words of one random stream, one after the other. */
struct random {
    uint64_t seed, index;
};
static inline uint32_t random_word(struct random *r)
{
    return rng_draw(r->seed, 0, r->index++).word[0];
}
static inline uint32_t random_below(struct random *r, uint32_t bound)
{
    return rng_below(random_word(r), bound);
}
static inline float random_unit(struct random *r) /* -1 … 1 */
{
    return 2 * rng_unit(random_word(r)) - 1;
}
/* Any bits but infinities and NaN: all sizes of numbers, denormals among them. */
static inline float random_bits(struct random *r)
{
    uint32_t u = random_word(r);
    return f32_from_bits((u & 0x7f800000) == 0x7f800000 ? u ^ 0x01000000 : u);
}
static inline float *random_floats(struct random *r, size_t count)
{
    float *f = mem_array(count, sizeof *f);
    assert_non_null(f);
    for (size_t i = 0; i < count; i++)
        f[i] = random_unit(r);
    return f;
}

/* One opened backend. */
struct subject {
    const struct backend_ops *ops;
    struct backend *b;
};
static inline struct subject subject_open(const char *name, uint32_t threads)
{
    struct subject s;
    struct backend_options options = {.threads = threads};
    assert_ok(backend_find(name, &s.ops));
    assert_ok(s.ops->open(&s.b, &options));
    return s;
}
static inline void subject_close(struct subject *s)
{
    assert_ok(s->ops->sync(s->b));
    s->ops->close(s->b);
}

/* Equal bits, or NaN on both sides: which NaN comes out is not promised. */
static inline bool same_bits(const float *a, const float *b, size_t count)
{
    if (memcmp(a, b, count * sizeof *a) == 0) return true;
    for (size_t i = 0; i < count; i++)
        if (f32_bits(a[i]) != f32_bits(b[i]) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

/* A log-probability by the definition of common/draw.h, one number after the other, with denormals. */
static inline float plain_logprob(const float *logits, uint32_t vocab, uint32_t token)
{
    float top = -INFINITY;
    uint64_t mass = 0;
    for (uint32_t i = 0; i < vocab; i++)
        if (logits[i] > top) top = logits[i];
    for (uint32_t i = 0; i < vocab; i++)
        mass += draw_mass(draw_exp(logits[i] - top));
    return draw_logprob(logits[token], draw_log_base(top, mass));
}

#endif
