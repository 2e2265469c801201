/* body_rows: the ops that take one row at a time, over the vector of the file that includes this.
 * Loops run to the end of a row in steps of 16 lanes; the last step takes fewer lanes through the
 * same code, never through a scalar cousin. */

#define EXP_LOWEST (-87.0f)  /* keeps 2^n and the product normal numbers */
#define EXP_HIGHEST 89.0f    /* n = 128, whose 2^n has the bits of infinity */
#define EXP_BIAS 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */

/* e^x within 2 ulp; e^-87 below that, infinity from 88.4 on; exactly 1 for 0; NaN stays NaN. x = n ln 2 + r, then a
 * polynomial of degree 6, fitted for the least relative error over |r| <= ln 2 / 2. */
static inline struct vec vec_exp(struct vec x)
{
    x = vec_max(vec_set1(EXP_LOWEST), x);
    x = vec_min(vec_set1(EXP_HIGHEST), x);
    struct vec biased = vec_fma(x, vec_set1(0x1.715476p+0f), vec_set1(EXP_BIAS));
    struct vec n = vec_sub(biased, vec_set1(EXP_BIAS));
    struct vec r = vec_fnma(n, vec_set1(0x1.62e4p-1f), x);
    r = vec_fnma(n, vec_set1(0x1.7f7d1cp-20f), r);
    struct vec p = vec_set1(0x1.6a23ccp-10f);
    p = vec_fma(p, r, vec_set1(0x1.123a2p-7f));
    p = vec_fma(p, r, vec_set1(0x1.5558f2p-5f));
    p = vec_fma(p, r, vec_set1(0x1.555492p-3f));
    p = vec_fma(p, r, vec_set1(0x1.fffffcp-2f));
    p = vec_fma(p, r, vec_set1(1.0f));
    p = vec_fma(p, r, vec_set1(1.0f));
    return vec_mul(p, vec_exp2_of_biased(biased));
}

/* Up to 16 lanes of an operand row, from element `at` on. */
static inline __attribute__((always_inline)) void
operand_store(const struct operand_rows *rows, size_t row, uint32_t at, struct vec v, uint32_t left)
{
    if (rows->bf16)
        vec_store_bf16((uint16_t *)rows->at + row * rows->stride + at, v, left);
    else
        vec_store_some((float *)rows->at + row * rows->stride + at, v, left);
}

static void rms_norm(const void *args, uint32_t first, uint32_t last)
{
    const struct norm_args *a = args;
    for (uint32_t row = first; row < last; row++) {
        const float *x = a->x + row * a->x_stride;
        struct vec squares = vec_set1(0);
        for (uint32_t i = 0; i < a->dim; i += 16) {
            struct vec v = vec_load_some(x + i, a->dim - i);
            squares = vec_fma(v, v, squares);
        }
        float mean = vec_sum(squares) / (float)a->dim;
        struct vec scale = vec_set1(1.0f / sqrtf(mean + a->eps));
        for (uint32_t i = 0; i < a->dim; i += 16) {
            uint32_t left = a->dim - i;
            struct vec v = vec_mul(vec_load_some(x + i, left), scale);
            v = vec_mul(v, vec_load_some(a->weight + i, left));
            operand_store(&a->out, row, i, v, left);
        }
    }
}

static void round_rows(const void *args, uint32_t first, uint32_t last)
{
    const struct round_args *a = args;
    for (uint32_t row = first; row < last; row++) {
        const float *x = a->x + row * a->x_stride;
        uint16_t *out = a->out + row * a->out_stride;
        for (uint32_t i = 0; i < a->k; i += 16)
            vec_store_bf16(out + i, vec_load_some(x + i, a->k - i), a->k - i);
        if (a->k % 2) out[a->k] = 0;
    }
}

static inline __attribute__((always_inline)) struct vec vec_silu(struct vec v)
{
    return vec_div(v, vec_add(vec_set1(1.0f), vec_exp(vec_sub(vec_set1(0), v))));
}

static void silu_mul(const void *args, uint32_t first, uint32_t last)
{
    const struct silu_args *a = args;
    for (uint32_t row = first; row < last; row++) {
        const float *gate = a->gate_up + row * a->stride, *up = gate + a->dim;
        for (uint32_t i = 0; i < a->dim; i += 16) {
            uint32_t left = a->dim - i;
            struct vec s = vec_silu(vec_load_some(gate + i, left));
            operand_store(&a->out, row, i, vec_mul(s, vec_load_some(up + i, left)), left);
        }
    }
}

/* The highest that is a number; -infinity if none is. */
static float row_top(const float *logits, uint32_t count)
{
    const struct vec none = vec_set1(-INFINITY);
    struct vec top = none;
    for (uint32_t i = 0; i < count; i += 16) {
        uint32_t left = count - i < 16 ? count - i : 16;
        top = vec_max(vec_keep(vec_load_some(logits + i, left), 0, left, none), top);
    }
    return vec_largest(top);
}

/* Masses are whole numbers: a loop over them is the same in any width. Denormals, which are zero here,
 * are too small to change a mass or a logarithm. */
static void logprobs(const void *args, uint32_t first, uint32_t last)
{
    const struct logprobs_args *a = args;
    for (uint32_t row = first; row < last; row++) {
        const float *logits = a->logits + (size_t)row * a->vocab;
        float top = row_top(logits, a->vocab);
        uint64_t mass = 0;
        for (uint32_t i = 0; i < a->vocab; i++)
            mass += draw_mass(draw_exp(logits[i] - top));
        a->out[row] = draw_logprob(logits[a->token[row]], draw_log_base(top, mass));
    }
}

/* Rotates the pairs (i, i + half) of one head in place. */
static inline void rope_rotate(float *x, const float *cos, const float *sin, uint32_t half)
{
    for (uint32_t i = 0; i < half; i += 16) {
        uint32_t left = half - i;
        struct vec c = vec_load_some(cos + i, left), s = vec_load_some(sin + i, left);
        struct vec low = vec_load_some(x + i, left), high = vec_load_some(x + half + i, left);
        struct vec low_turned = vec_fnma(high, s, vec_mul(low, c));
        struct vec high_turned = vec_fma(low, s, vec_mul(high, c));
        vec_store_some(x + i, low_turned, left);
        vec_store_some(x + half + i, high_turned, left);
    }
}

/* k as [dim / 2][16 tokens][2], v as [16 / 2][dim][2] in bf16 and [16][dim] in fp32, at token `at` of
 * the block (A7). Another thread may append the other token of a pair at the same time. */
static inline void kv_put_bf16(uint16_t *k_to, uint16_t *v_to, const float *k, const float *v,
                               uint32_t at, uint32_t dim)
{
    uint16_t rounded[BACKEND_HEAD_DIM_MAX];
    v_to += at / 2 * dim * 2;
    for (uint32_t i = 0; i < dim; i += 16) {
        vec_store_bf16(rounded + i, vec_load_some(k + i, dim - i), dim - i);
        vec_store_half(v_to + i * 2, vec_load_some(v + i, dim - i), at % 2, dim - i);
    }
    for (uint32_t i = 0; i < dim; i += 2)
        memcpy(k_to + (i / 2 * BLOCK_TOKENS + at) * 2, rounded + i, 2 * sizeof *rounded);
}
static inline void kv_put_f32(float *k_to, float *v_to, const float *k, const float *v, uint32_t at,
                              uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i += 2)
        memcpy(k_to + (i / 2 * BLOCK_TOKENS + at) * 2, k + i, 2 * sizeof *k);
    memcpy(v_to + at * dim, v, dim * sizeof *v);
}

static void rope_row(const struct rope_args *a, float *row, uint32_t position, uint32_t block)
{
    const struct attend_shape *s = &a->shape;
    const struct kv_geometry *g = &a->kv.geometry;
    uint32_t dim = s->head_dim, half = a->rope.half_dim;
    const float *cos = a->rope.cos + (size_t)position * half;
    const float *sin = a->rope.sin + (size_t)position * half;
    char *k_part = (char *)a->kv.base + block * kv_block_bytes(g) + a->layer * kv_layer_bytes(g);
    char *v_part = k_part + kv_part_bytes(g);
    size_t head_bytes = kv_part_bytes(g) / s->kv_heads;
    for (uint32_t h = 0; h < s->heads + s->kv_heads; h++)
        rope_rotate(row + (size_t)h * dim, cos, sin, half);
    for (uint32_t h = 0; h < s->kv_heads; h++) {
        const float *k = row + ((size_t)s->heads + h) * dim, *v = k + (size_t)s->kv_heads * dim;
        void *k_to = k_part + h * head_bytes, *v_to = v_part + h * head_bytes;
        if (g->dtype == DTYPE_BF16)
            kv_put_bf16(k_to, v_to, k, v, position % BLOCK_TOKENS, dim);
        else
            kv_put_f32(k_to, v_to, k, v, position % BLOCK_TOKENS, dim);
    }
}

static void rope_append(const void *args, uint32_t first, uint32_t last)
{
    const struct rope_args *a = args;
    for (uint32_t i = 0; i < a->batch->sequences_count; i++) {
        const struct batch_sequence *s = &a->batch->sequence[i];
        uint32_t begin = s->row_first < first ? first : s->row_first;
        uint32_t end = s->row_first + s->rows_count < last ? s->row_first + s->rows_count : last;
        for (uint32_t row = begin; row < end; row++) {
            uint32_t position = s->position + (row - s->row_first);
            uint32_t block = a->batch->table[s->table_first + position / BLOCK_TOKENS];
            rope_row(a, a->qkv + row * a->stride, position, block);
        }
    }
}
