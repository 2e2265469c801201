/* body_matmul: out = x w, over the vector of the file that includes this.
 *
 * Every output is one accumulator that takes k in ascending order (G1). A tile holds up to
 * VEC_TILE_ROWS x VEC_TILE_VECS of them in registers; how many rows a tile has changes which
 * outputs share a load, never the chain of one. A panel of weights stays in the L2 cache while the
 * tiles of an item pass over it; where it is too deep for that, k is taken in blocks and the fp32
 * accumulators rest in `spill` in between. Few tiles are done with a panel before memory brought the
 * next: their blocks are so short that one and the next fit in the nearest cache. */

enum { LINE_BYTES = 64 };
enum { PANEL_LINES = PANEL * sizeof(float) / LINE_BYTES }; /* per k: an fp32 or a pair of bf16 */
enum { K_BLOCK = 2048, K_BLOCK_FEW = 64 };                 /* 512 KiB, 16 KiB of a panel */
enum { TILES_FEW = 3 };

struct tile {
    const struct matmul_args *a;
    uint32_t row, column; /* the first of each */
    uint32_t k_first, k_last;
    bool opens, closes;   /* the first, the last block of k */
    float *spill;         /* [rows][PANEL] at this tile */
    const char *ahead;    /* weights to ask for meanwhile */
    uint32_t ahead_lines; /* of them, per k */
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
    for (uint32_t k = t->k_first; k < t->k_last; k++) {
        for (uint32_t i = 0; i < t->ahead_lines; i++, ahead += LINE_BYTES)
            vec_prefetch(ahead);
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
    for (uint32_t k = t->k_first; k < t->k_last; k++) {
        for (uint32_t i = 0; i < t->ahead_lines; i++, ahead += LINE_BYTES)
            vec_prefetch(ahead);
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

/* How many lines per k tile i of `tiles` asks for. Of many tiles the first reads the block from
 * memory, and the next ones ask for one line each, as more would get in the way of their own loads. Of
 * few, all ask for an equal part: memory never rests, and the first finds its block in the cache. One
 * alone only reads, which the processor foresees. */
static uint32_t lines_ahead(uint32_t i, uint32_t tiles)
{
    if (tiles > TILES_FEW) return i > 0 && i <= PANEL_LINES;
    return tiles > 1 ? (PANEL_LINES + tiles - 1 - i) / tiles : 0;
}

/* The tiles of one panel and block of k. While they compute they ask for the weights behind the block;
 * behind the last panel in vain, which does no harm. */
static void matmul_tiles(struct tile *t, uint32_t column, uint32_t row, uint32_t rows, float *spill)
{
    const struct matmul_args *a = t->a;
    const size_t deep = a->w.dtype == DTYPE_BF16 ? ((size_t)a->w.k + 1) / 2 : a->w.k;
    const char *next = (const char *)a->w.packed;
    next += (column / PANEL * deep + t->k_last) * PANEL * sizeof(float);
    uint32_t tiles = (rows + VEC_TILE_ROWS - 1) / VEC_TILE_ROWS;
    for (uint32_t i = 0, r = 0, count; i < tiles; i++, r += count) {
        count = (rows - r + tiles - i - 1) / (tiles - i); /* even tiles: 8 is 4 + 4, not 6 + 2 */
        t->ahead_lines = lines_ahead(i, tiles);
        t->ahead = next;
        next += (size_t)t->ahead_lines * LINE_BYTES * (t->k_last - t->k_first);
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
    const uint32_t deep = a->w.dtype == DTYPE_BF16 ? (a->w.k + 1) / 2 : a->w.k;
    const bool few = rows > VEC_TILE_ROWS && rows <= TILES_FEW * VEC_TILE_ROWS;
    const uint32_t block = few ? K_BLOCK_FEW : K_BLOCK;
    for (uint32_t k = 0; k < deep; k += block) {
        struct tile t = {a, .k_first = k, .k_last = deep - k < block ? deep : k + block};
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
