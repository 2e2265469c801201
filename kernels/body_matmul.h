/* body_matmul: out = x w, over the vector of the file that includes this.
 *
 * Every output is one accumulator that takes k in ascending order (G1). A tile holds up to
 * VEC_TILE_ROWS x VEC_TILE_VECS of them in registers; how many rows a tile has changes which
 * outputs share a load, never the chain of one. A panel of weights stays in the L2 cache while the
 * tiles of an item pass over it; where it is too deep for that, k is taken in blocks and the fp32
 * accumulators rest in `spill` in between. */

enum { LINE_BYTES = 64 };
enum { K_BLOCK = 2048 }; /* fp32 or pairs of bf16 per panel column: 512 KiB */

struct tile {
    const struct matmul_args *a;
    uint32_t row, column; /* the first of each */
    uint32_t k_first, k_last;
    bool opens, closes; /* the first, the last block of k */
    float *spill;       /* [rows][PANEL] at this tile */
    const char *ahead;  /* weights to ask for meanwhile, so many bytes per k */
    size_t ahead_step;
};

static inline __attribute__((always_inline)) void tile_load(struct vec sum[][VEC_TILE_VECS],
                                                            const struct tile *t, uint32_t rows)
{
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
            sum[r][c] = t->opens ? vec_set1(0) : vec_load(t->spill + r * PANEL + c * 16);
}

/* Bias, then residual, after the chain; or just the sums if more of k follows. */
static inline __attribute__((always_inline)) void tile_store(struct vec sum[][VEC_TILE_VECS],
                                                             const struct tile *t, uint32_t rows)
{
    const struct matmul_args *a = t->a;
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < VEC_TILE_VECS; c++) {
            uint32_t column = t->column + c * 16;
            struct vec v = sum[r][c];
            if (!t->closes) {
                vec_store(t->spill + r * PANEL + c * 16, v);
                continue;
            }
            if (column >= a->w.n) continue;
            size_t at = (t->row + r) * a->out_stride + column;
            uint32_t left = a->w.n - column;
            if (a->bias) v = vec_add(v, vec_load_some(a->bias + column, left));
            if (a->residual) v = vec_add(v, vec_load_some(a->residual + at, left));
            vec_store_some(a->out + at, v, left);
        }
    }
}

static inline __attribute__((always_inline)) void tile_bf16(const struct tile *t, uint32_t rows)
{
    const struct matmul_args *a = t->a;
    size_t deep = ((size_t)a->w.k + 1) / 2;
    const uint32_t *w =
        (const uint32_t *)a->w.packed + t->column / PANEL * deep * PANEL + t->column % PANEL;
    const uint16_t *x = (const uint16_t *)a->x + t->row * a->x_stride;
    struct vec sum[VEC_TILE_ROWS][VEC_TILE_VECS];
    tile_load(sum, t, rows);
    const char *ahead = t->ahead;
    for (uint32_t k = t->k_first; k < t->k_last; k++, ahead += t->ahead_step) {
        vec_prefetch_far(ahead);
        struct pairs column[VEC_TILE_VECS];
        for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
            column[c] = pairs_load(w + (size_t)k * PANEL + c * 16);
        for (uint32_t r = 0; r < rows; r++) {
            struct pairs row = pairs_set1(x + r * a->x_stride + 2 * (size_t)k);
            for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
                sum[r][c] = vec_dot2(sum[r][c], row, column[c]);
        }
    }
    tile_store(sum, t, rows);
}

static inline __attribute__((always_inline)) void tile_f32(const struct tile *t, uint32_t rows)
{
    const struct matmul_args *a = t->a;
    const float *w =
        (const float *)a->w.packed + (size_t)t->column / PANEL * a->w.k * PANEL + t->column % PANEL;
    const float *x = (const float *)a->x + t->row * a->x_stride;
    struct vec sum[VEC_TILE_ROWS][VEC_TILE_VECS];
    tile_load(sum, t, rows);
    const char *ahead = t->ahead;
    for (uint32_t k = t->k_first; k < t->k_last; k++, ahead += t->ahead_step) {
        vec_prefetch_far(ahead);
        struct vec column[VEC_TILE_VECS];
        for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
            column[c] = vec_load(w + (size_t)k * PANEL + c * 16);
        for (uint32_t r = 0; r < rows; r++) {
            struct vec row = vec_set1(x[r * a->x_stride + k]);
            for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
                sum[r][c] = vec_fma(row, column[c], sum[r][c]);
        }
    }
    tile_store(sum, t, rows);
}

/* One copy of the tile per number of rows, so that its accumulators are registers. */
static void tile_run(const struct tile *t, uint32_t rows)
{
    bool bf16 = t->a->w.dtype == DTYPE_BF16;
#define TILE_CASE(count)                                                                           \
    case count:                                                                                    \
        if (count > VEC_TILE_ROWS) break;                                                          \
        if (bf16)                                                                                  \
            tile_bf16(t, count < VEC_TILE_ROWS ? count : VEC_TILE_ROWS);                           \
        else                                                                                       \
            tile_f32(t, count < VEC_TILE_ROWS ? count : VEC_TILE_ROWS);                            \
        break
    switch (rows) {
        TILE_CASE(1);
        TILE_CASE(2);
        TILE_CASE(3);
        TILE_CASE(4);
        TILE_CASE(5);
        TILE_CASE(6);
    }
#undef TILE_CASE
}

/* The tiles of one panel and block of k. The first reads the panel from memory, the others from the
 * cache: meanwhile they ask for the weights behind it, one line per k each, as more would get in the
 * way of their own loads. Without that, memory would rest while they compute. Behind the last panel
 * they ask in vain, which does no harm. */
static void matmul_tiles(struct tile *t, uint32_t column, uint32_t row, uint32_t rows, float *spill)
{
    const struct matmul_args *a = t->a;
    const size_t deep = a->w.dtype == DTYPE_BF16 ? ((size_t)a->w.k + 1) / 2 : a->w.k;
    const size_t lines = PANEL * sizeof(float) / LINE_BYTES; /* per k */
    const char *next = (const char *)a->w.packed;
    next += (column / PANEL * deep + t->k_last) * PANEL * sizeof(float);
    uint32_t tiles = (rows + VEC_TILE_ROWS - 1) / VEC_TILE_ROWS;
    for (uint32_t i = 0, r = 0, count; i < tiles; i++, r += count) {
        count = (rows - r + tiles - i - 1) / (tiles - i); /* even tiles: 8 is 4 + 4, not 6 + 2 */
        t->ahead_step = i > 0 && i <= lines ? LINE_BYTES : 0;
        t->ahead = next;
        next += t->ahead_step * (t->k_last - t->k_first);
        for (uint32_t c = 0; c < PANEL && column + c < a->w.n; c += 16 * VEC_TILE_VECS) {
            t->row = row + r;
            t->column = column + c;
            t->spill = spill + r * PANEL + c;
            tile_run(t, count);
        }
    }
}

static void matmul_item(const struct matmul_args *a, uint32_t column, uint32_t row, uint32_t rows)
{
    float spill[ROW_BLOCK_MAX * PANEL];
    uint32_t deep = a->w.dtype == DTYPE_BF16 ? (a->w.k + 1) / 2 : a->w.k;
    for (uint32_t k = 0; k < deep; k += K_BLOCK) {
        struct tile t = {a, .k_first = k, .k_last = deep - k < K_BLOCK ? deep : k + K_BLOCK};
        t.opens = k == 0;
        t.closes = t.k_last == deep;
        matmul_tiles(&t, column, row, rows, spill);
    }
}

static void matmul(const void *args, uint32_t first, uint32_t last)
{
    const struct matmul_args *a = args;
    uint32_t panels = (a->w.n + PANEL - 1) / PANEL;
    for (uint32_t i = first; i < last; i++) {
        uint32_t row = i / panels * a->row_block, left = a->rows - row;
        matmul_item(a, i % panels * PANEL, row, left < a->row_block ? left : a->row_block);
    }
}
