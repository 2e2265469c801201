#include "tests/contract/backend_rows.h"

bool rows_narrow(const struct subject *s, enum row_kind kind)
{
    const struct backend_facts *f = s->ops->facts(s->b);
    return kind != ROWS_STREAM && (kind == ROWS_OPERAND ? f->operand_bytes : f->product_bytes) == 2;
}

void *rows_alloc(const struct subject *s, enum row_kind kind, size_t count)
{
    void *p = s->ops->alloc(s->b, count * (rows_narrow(s, kind) ? 2 : 4));
    assert_non_null(p);
    return p;
}

void *rows_put(const struct subject *s, enum row_kind kind, const float *x, size_t count)
{
    void *p = rows_alloc(s, kind, count);
    uint16_t *half = mem_array(count, sizeof *half);
    for (size_t i = 0; i < count; i++)
        half[i] = bf16_from_f32(x[i]);
    if (rows_narrow(s, kind))
        assert_ok(s->ops->write(s->b, p, half, count * sizeof *half));
    else
        assert_ok(s->ops->write(s->b, p, x, count * sizeof *x));
    mem_free(half);
    return p;
}

float *rows_get(const struct subject *s, enum row_kind kind, const void *p, size_t count)
{
    float *x = mem_array(count, sizeof *x);
    uint16_t *half = mem_array(count, sizeof *half);
    assert_ok(s->ops->sync(s->b));
    if (rows_narrow(s, kind))
        assert_ok(s->ops->read(s->b, half, p, count * sizeof *half));
    else
        assert_ok(s->ops->read(s->b, x, p, count * sizeof *x));
    for (size_t i = 0; i < count && rows_narrow(s, kind); i++)
        x[i] = f32_from_bf16(half[i]);
    mem_free(half);
    return x;
}

float *random_rounded(struct random *r, size_t count, enum dtype dtype)
{
    float *x = random_floats(r, count);
    for (size_t i = 0; i < count && dtype == DTYPE_BF16; i++)
        x[i] = f32_from_bf16(bf16_from_f32(x[i]));
    return x;
}

struct matrix matrix_put(const struct subject *s, uint32_t n, uint32_t k, enum dtype dtype,
                         const float *w)
{
    void *p;
    if (s->ops->facts(s->b)->weight_layout != 0) {
        p = mem_aligned(s->ops->pack_bytes(n, k, dtype), 64);
        s->ops->pack_rows(p, n, k, dtype, w, DTYPE_F32, 0, n);
    } else {
        p = s->ops->alloc(s->b, (size_t)n * k * dtype_bytes(dtype));
        assert_non_null(p);
        assert_ok(s->ops->weight_write(s->b, p, dtype, w, DTYPE_F32, (size_t)n * k));
        assert_ok(s->ops->sync(s->b));
    }
    return (struct matrix){p, n, k, dtype};
}

void matrix_free(const struct subject *s, struct matrix *m)
{
    if (s->ops->facts(s->b)->weight_layout != 0)
        mem_free((void *)(uintptr_t)m->packed);
    else
        s->ops->free(s->b, (void *)(uintptr_t)m->packed);
}

void assert_near(const float *got, const float *want, size_t count, bool narrow, double slack,
                 const char *what)
{
    for (size_t i = 0; i < count; i++) {
        double allowed = slack + fabs((double)want[i]) * (narrow ? 0x1p-7 : 1e-5);
        if (!(fabs((double)got[i] - (double)want[i]) <= allowed))
            fail_msg("%s: element %zu is %g, wanted %g", what, i, (double)got[i], (double)want[i]);
    }
}
