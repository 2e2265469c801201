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
enum { PAGE_BYTES = 4096, PAGE_LINES = 4 }; /* lines that are asked for of the next page */

/* What an item makes of one panel. */
struct panel {
    const struct matmul_args *a;
    uint32_t row, rows, column;
    float *out; /* [rows][out_stride] */
    size_t out_stride;
    float *spill;     /* [rows][PANEL]; may be out, whose stride is PANEL then */
    const char *next; /* the weights that are read after it; they may not be there */
};

struct tile {
    const struct matmul_args *a;
    uint32_t row, column; /* the first of each */
    uint32_t k_first, k_last;
    bool opens, closes; /* the first, the last block of k */
    float *out;         /* at this tile, like spill */
    size_t out_stride;
    float *spill;         /* [rows][PANEL] at this tile */
    const char *ahead;    /* weights to ask for meanwhile */
    uint32_t ahead_lines; /* of them, per k */
};

/* Loops over a tile are unrolled: only then are its sums in registers from the first to the last. */
#define TILE_UNROLL _Pragma("GCC unroll 8")

static inline __attribute__((always_inline)) void tile_load(struct vec sum[][VEC_TILE_VECS],
                                                            const struct tile *t, uint32_t rows)
{
    if (t->opens) {
        TILE_UNROLL
        for (uint32_t r = 0; r < rows; r++)
            TILE_UNROLL
        for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
            sum[r][c] = vec_set1(0);
        return;
    }
    TILE_UNROLL
    for (uint32_t r = 0; r < rows; r++)
        TILE_UNROLL
    for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
        sum[r][c] = vec_load(t->spill + r * PANEL + c * 16);
}

/* Bias, then residual, after the chain. */
static void tile_close(const struct tile *t, uint32_t rows)
{
    const struct matmul_args *a = t->a;
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < VEC_TILE_VECS; c++) {
            uint32_t column = t->column + c * 16;
            if (column >= a->w.n) continue;
            struct vec v = vec_load(t->spill + r * PANEL + c * 16);
            uint32_t left = a->w.n - column;
            if (a->bias) v = vec_add(v, vec_load_some(a->bias + column, left));
            if (a->residual) {
                size_t at = (t->row + r) * a->out_stride + column;
                v = vec_add(v, vec_load_some(a->residual + at, left));
            }
            vec_store_some(t->out + r * t->out_stride + c * 16, v, left);
        }
    }
}

static inline __attribute__((always_inline)) void tile_store(struct vec sum[][VEC_TILE_VECS],
                                                             const struct tile *t, uint32_t rows)
{
    TILE_UNROLL
    for (uint32_t r = 0; r < rows; r++)
        TILE_UNROLL
    for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
        vec_store(t->spill + r * PANEL + c * 16, sum[r][c]);
    if (t->closes) tile_close(t, rows);
}

/* One row reads its weights from memory, which the processor foresees up to the end of a page: at the
 * beginning of a page it asks for that of the next one. */
static inline __attribute__((always_inline)) void page_ask(const void *weights)
{
    const char *at = weights;
    if ((uintptr_t)at % PAGE_BYTES >= PANEL_LINES * LINE_BYTES) return;
    TILE_UNROLL
    for (uint32_t i = 0; i < PAGE_LINES; i++)
        vec_prefetch(at + PAGE_BYTES + i * LINE_BYTES);
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
        for (uint32_t i = 0; rows > 1 && i < t->ahead_lines; i++, ahead += LINE_BYTES)
            vec_prefetch(ahead);
        if (rows == 1) page_ask(w + (size_t)k * PANEL);
        struct pairs column[VEC_TILE_VECS];
        TILE_UNROLL
        for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
            column[c] = pairs_load(w + (size_t)k * PANEL + c * 16);
        TILE_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            struct pairs row = pairs_set1(x + r * a->x_stride + 2 * (size_t)k);
            TILE_UNROLL
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
        for (uint32_t i = 0; rows > 1 && i < t->ahead_lines; i++, ahead += LINE_BYTES)
            vec_prefetch(ahead);
        if (rows == 1) page_ask(w + (size_t)k * PANEL);
        struct vec column[VEC_TILE_VECS];
        TILE_UNROLL
        for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
            column[c] = vec_load(w + (size_t)k * PANEL + c * 16);
        TILE_UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            struct vec row = vec_set1(x[r * a->x_stride + k]);
            TILE_UNROLL
            for (uint32_t c = 0; c < VEC_TILE_VECS; c++)
                sum[r][c] = vec_fma(row, column[c], sum[r][c]);
        }
    }
    tile_store(sum, t, rows);
}

/* One copy of the tile per number of rows, so that its accumulators are registers. */
static inline __attribute__((always_inline)) void tile_run(const struct tile *t, uint32_t rows)
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
 * alone reads, which the processor foresees. */
static uint32_t lines_ahead(uint32_t i, uint32_t tiles)
{
    if (tiles > TILES_FEW) return i > 0 && i <= PANEL_LINES;
    return tiles > 1 ? (PANEL_LINES + tiles - 1 - i) / tiles : 0;
}

static const char *panel_weights(const struct matmul_args *a, uint32_t column)
{
    const size_t deep = a->w.dtype == DTYPE_BF16 ? ((size_t)a->w.k + 1) / 2 : a->w.k;
    return (const char *)a->w.packed + column / PANEL * deep * PANEL * sizeof(float);
}

/* The tiles of one panel and block of k. While they compute they ask for the weights behind the block;
 * behind the last panel in vain, which does no harm. */
static inline __attribute__((always_inline)) void panel_tiles(const struct panel *p, struct tile *t)
{
    const struct matmul_args *a = p->a;
    const char *next = p->next;
    if (!t->closes) next = panel_weights(a, p->column) + (size_t)t->k_last * PANEL * sizeof(float);
    uint32_t tiles = (p->rows + VEC_TILE_ROWS - 1) / VEC_TILE_ROWS;
    for (uint32_t i = 0, r = 0, count; i < tiles; i++, r += count) {
        count = (p->rows - r + tiles - i - 1) / (tiles - i); /* even tiles: 8 is 4 + 4, not 6 + 2 */
        t->ahead_lines = lines_ahead(i, tiles);
        t->ahead = next;
        next += (size_t)t->ahead_lines * LINE_BYTES * (t->k_last - t->k_first);
        for (uint32_t c = 0; c < PANEL && p->column + c < a->w.n; c += 16 * VEC_TILE_VECS) {
            t->row = p->row + r;
            t->column = p->column + c;
            t->out = p->out + r * p->out_stride + c;
            t->spill = p->spill + r * PANEL + c;
            tile_run(t, count);
        }
    }
}

static __attribute__((noinline)) void panel_run(const struct panel *p)
{
    const struct matmul_args *a = p->a;
    const uint32_t deep = a->w.dtype == DTYPE_BF16 ? (a->w.k + 1) / 2 : a->w.k;
    const bool few = p->rows > VEC_TILE_ROWS && p->rows <= TILES_FEW * VEC_TILE_ROWS;
    const uint32_t block = few ? K_BLOCK_FEW : K_BLOCK;
    for (uint32_t k = 0; k < deep; k += block) {
        struct tile t = {a, .k_first = k, .k_last = deep - k < block ? deep : k + block};
        t.out_stride = p->out_stride;
        t.opens = k == 0;
        t.closes = t.k_last == deep;
        panel_tiles(p, &t);
    }
}

/* Rows of item i, of which each block of rows has `panels`. */
static uint32_t item_rows(const struct matmul_args *a, uint32_t i, uint32_t panels, uint32_t *row)
{
    *row = i / panels * a->row_block;
    return a->rows - *row < a->row_block ? a->rows - *row : a->row_block;
}

static void matmul(const void *args, uint32_t first, uint32_t last)
{
    const struct matmul_args *a = args;
    _Alignas(64) float spill[ROW_BLOCK_MAX * PANEL];
    uint32_t panels = (a->w.n + PANEL - 1) / PANEL;
    for (uint32_t i = first; i < last; i++) {
        struct panel p = {a, .column = i % panels * PANEL, .spill = spill};
        p.rows = item_rows(a, i, panels, &p.row);
        p.out = a->out + p.row * a->out_stride + p.column;
        p.out_stride = a->out_stride;
        p.next = panel_weights(a, p.column + PANEL);
        panel_run(&p);
    }
}

/* silu of the front half's panel, times the back half's. Both are still in the nearest cache where a token
 * each of few sequences is computed. */
static void gated(const void *args, uint32_t first, uint32_t last)
{
    const struct gated_args *g = args;
    const struct matmul_args *a = &g->product;
    _Alignas(64) float gate[ROW_BLOCK_MAX * PANEL];
    _Alignas(64) float up[ROW_BLOCK_MAX * PANEL];
    uint32_t half = a->w.n / 2, panels = half / PANEL;
    for (uint32_t i = first; i < last; i++) {
        struct panel p = {a, .column = i % panels * PANEL, .out_stride = PANEL};
        p.rows = item_rows(a, i, panels, &p.row);
        const uint32_t column = p.column;
        p.out = p.spill = gate;
        p.next = panel_weights(a, half + column);
        panel_run(&p);
        p.out = p.spill = up;
        p.column = half + column;
        p.next = panel_weights(a, column + PANEL);
        panel_run(&p);
        for (uint32_t r = 0; r < p.rows; r++)
            for (uint32_t c = 0; c < PANEL; c += 16) {
                struct vec s = vec_silu(vec_load(gate + r * PANEL + c));
                s = vec_mul(s, vec_load(up + r * PANEL + c));
                operand_store(&g->out, p.row + r, column + c, s, 16);
            }
    }
}
