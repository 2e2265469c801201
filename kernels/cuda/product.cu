/* product: bf16 matrix products on tensor cores whose sums do not depend on how many rows there are.
 *
 * k is cut into chunks of 64. Chunk c belongs to split c % 16; a split's chunks are summed in
 * ascending order into one fp32 accumulator, 16 elements per mma, and the splits' sums are added in
 * ascending order. Both kernels below do that: the skinny one gives each split a warp, the tiled one
 * takes the splits one after the other. What differs is which outputs share a load.
 *
 * The weights are operand a of an mma, 16 outputs x 16 of k; x is b, 8 rows. Which k meet in one mma
 * is free as long as both operands agree, so lane (g = lane / 4, t = lane % 4) takes the 16 bytes of
 * k = 8 t … 8 t + 7 of a step of 32 from row g, straight from row-major memory: elements 0 to 3 are
 * its share of the step's first mma, 4 to 7 of the second. Registers are of sm_90.
 *
 * Both equal matmul in kernels/body_matmul.h but for the order of a sum. */
#include "kernels/cuda/product.cuh"

namespace {

enum {
    STEP = 32,   /* of k: two mma */
    CHUNK = 64,  /* of k: two steps, 128 bytes of a row */
    SPLITS = 16, /* or as many as there are chunks, if these are fewer */
    OUTS = 16,   /* outputs of an mma */
    ROWS = 8,    /* rows of an mma */

    SKINNY_THREADS = SPLITS * WARP_LANES,
    SKINNY_STEPS = 4,  /* steps x mma tiles of weights that a warp has under way */
    PARTS_AT_ONCE = 4, /* mma tiles whose splits are merged between two barriers */
    PART_STRIDE = 20,  /* floats from row to row of a part, so that lanes meet in no bank */
    PART_FLOATS = ROWS * PART_STRIDE,

    TILE = 128, /* outputs, and rows, of a block of the tiled kernel */
    TILE_THREADS = 256,
    TILE_STAGES = 3,
    TILE_ELEMENTS = TILE * CHUNK, /* of one operand and stage */
    WARP_OUTS = 4,                /* mma tiles of a warp: 64 outputs x 32 rows */
    WARP_ROWS = 4,
    RESULT_STRIDE = TILE + 4,
    BLOCKS_EARLY = 512, /* more do not begin before the grid before them ends */
    SLICED_ROWS = 64, /* up to here skinny products one after the other are faster than tiles */
};

__host__ __device__ __forceinline__ uint32_t splits_of(uint32_t k)
{
    uint32_t chunks = divide_up(k, CHUNK);
    return chunks < SPLITS ? chunks : (uint32_t)SPLITS;
}

/* d[r] += w x[r] over one step, for several tiles of rows: w0 is of output g, w1 of output g + 8. */
template <uint32_t TILES>
__device__ __forceinline__ void step_mma(float (&d)[TILES][4], uint4 w0, uint4 w1,
                                         const uint4 (&x)[TILES])
{
    uint32_t first[4] = {w0.x, w1.x, w0.y, w1.y}, second[4] = {w0.z, w1.z, w0.w, w1.w};
#pragma unroll
    for (uint32_t r = 0; r < TILES; r++)
        mma_bf16(d[r], first, x[r].x, x[r].y);
#pragma unroll
    for (uint32_t r = 0; r < TILES; r++)
        mma_bf16(d[r], second, x[r].z, x[r].w);
}

/* Eight elements from `at` on, zeros from `left` on; all zeros if not `valid`. WIDE: `at` is a multiple
 * of 16 bytes, so is what is left. ONCE: nobody reads them again. */
template <bool WIDE, bool ONCE>
__device__ __forceinline__ uint4 load_eight(const uint16_t *at, uint32_t left, bool valid)
{
    if (!valid) return make_uint4(0, 0, 0, 0);
    if constexpr (WIDE) {
        return ONCE ? load_once(at) : *(const uint4 *)at;
    } else {
        uint32_t e[8];
#pragma unroll
        for (uint32_t j = 0; j < 8; j++)
            e[j] = j < left ? at[j] : 0;
        return make_uint4(e[0] | e[1] << 16, e[2] | e[3] << 16, e[4] | e[5] << 16,
                          e[6] | e[7] << 16);
    }
}

/* One warp's accumulators of one mma tile as a part: [row][output]. */
__device__ __forceinline__ void part_put(float *part, const float (&d)[4])
{
    uint32_t g = threadIdx.x % WARP_LANES / 4, t = threadIdx.x % 4;
    part[2 * t * PART_STRIDE + g] = d[0];
    part[(2 * t + 1) * PART_STRIDE + g] = d[1];
    part[2 * t * PART_STRIDE + g + 8] = d[2];
    part[(2 * t + 1) * PART_STRIDE + g + 8] = d[3];
}
__device__ __forceinline__ float parts_sum(const float *part, uint32_t parts, uint32_t k)
{
    float sum = 0.0f;
    for (uint32_t s = 0; s < splits_of(k) + PLANTED("skinny_split_too_far"); s++)
        sum += part[s * parts * PART_FLOATS];
    return sum;
}

/* Steps whose loads a thread has under way: eight of 16 bytes of weights where registers allow. */
constexpr __host__ __device__ uint32_t skinny_steps(uint32_t out_tiles, uint32_t row_tiles,
                                                    bool wide)
{
    return !wide ? 1 : SKINNY_STEPS / out_tiles / (out_tiles == 1 && row_tiles == 4 ? 2 : 1);
}
/* Where a split's step is, counted from its first one. */
__device__ __forceinline__ uint32_t step_offset(uint32_t step)
{
    return step / (CHUNK / STEP) * (SPLITS * CHUNK) + step % (CHUNK / STEP) * STEP;
}

/* The first chunks of some outputs' weights go to the L2 cache while the grid before this one still runs:
 * a thread asks for the four sectors of a chunk. */
__device__ __forceinline__ void prefetch_chunks(const struct cuda_product &p, uint32_t out_first,
                                                uint32_t outs, uint32_t chunks)
{
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < outs * chunks; i += SKINNY_THREADS) {
        const uint32_t out = out_first + i / chunks, at = i % chunks * CHUNK;
        const uint16_t *from = (const uint16_t *)p.w + (size_t)out * p.k + at;
#pragma unroll
        for (uint32_t sector = 0; sector < CHUNK; sector += 16)
            if (out < p.n && at + sector < p.k) prefetch(from + sector);
    }
}

/* Up to 32 rows. A block has 16 OUT_TILES outputs of all rows, a warp one split of k; a thread has up
 * to eight independent 16-byte loads of weights under way. Reads n x k x 2 bytes of weights once, x once
 * per block (from the L1 and L2 caches); 2 n k rows flops. 10 KiB shared per tile, at most 40; 64
 * registers for up to eight rows, so that two blocks share a multiprocessor, else up to 120. */
template <uint32_t OUT_TILES, uint32_t ROW_TILES, bool WIDE>
__global__ void __launch_bounds__(SKINNY_THREADS, ROW_TILES == 1 ? 2 : 1)
    skinny_kernel(struct cuda_product p)
{
    const uint32_t at_once = skinny_steps(OUT_TILES, ROW_TILES, WIDE);
    const uint32_t group = divide_up(at_once, CHUNK / STEP); /* chunks of a turn of the loop */
    const uint32_t tiles = OUT_TILES * ROW_TILES;
    const uint32_t parts = tiles < PARTS_AT_ONCE ? tiles : (uint32_t)PARTS_AT_ONCE;
    const uint32_t k = p.k, chunks = divide_up(k, CHUNK), split = threadIdx.x / WARP_LANES;
    const uint32_t g = threadIdx.x % WARP_LANES / 4, t = threadIdx.x % 4;
    const uint32_t out_first = blockIdx.x * OUTS * OUT_TILES;
    const uint16_t *w = (const uint16_t *)p.w + (size_t)(out_first + g) * k;
    const uint16_t *x = (const uint16_t *)p.x + (size_t)g * k;
    struct shared_memory shared;
    float *part = shared_take<float>(&shared, SPLITS * parts * PART_FLOATS);
    if (WIDE && blockIdx.x < BLOCKS_EARLY) prefetch_chunks(p, out_first, OUTS * OUT_TILES, group * SPLITS);
    grid_wait();

    float sum[OUT_TILES][ROW_TILES][4] = {};
    for (uint32_t chunk = split; chunk < chunks; chunk += group * SPLITS) {
        const uint32_t here = chunk * CHUNK + 8 * t; /* of k, this thread's first */
#pragma unroll 1 /* the addresses of a second pass would cost registers */
        for (uint32_t first = 0; first < group * (CHUNK / STEP); first += at_once) {
            uint4 weights[at_once][2 * OUT_TILES], rows[at_once][ROW_TILES];
#pragma unroll
            for (uint32_t i = 0; i < at_once; i++) {
                const uint32_t at = here + step_offset(first + i);
                const uint16_t *x_at = x + at, *w_at = w + at;
#pragma unroll
                for (uint32_t r = 0; r < ROW_TILES; r++, x_at += (size_t)ROWS * k)
                    rows[i][r] =
                        load_eight<WIDE, false>(x_at, k - at, at < k && r * ROWS + g < p.rows);
#pragma unroll
                for (uint32_t o = 0; o < 2 * OUT_TILES; o++, w_at += (size_t)8 * k)
                    weights[i][o] =
                        load_eight<WIDE, true>(w_at, k - at, at < k && out_first + o * 8 + g < p.n);
            }
#pragma unroll
            for (uint32_t i = 0; i < at_once; i++) {
                if (chunk + (first + i) / (CHUNK / STEP) * SPLITS >= chunks) break;
#pragma unroll
                for (uint32_t o = 0; o < OUT_TILES; o++)
                    step_mma<ROW_TILES>(sum[o], weights[i][2 * o], weights[i][2 * o + 1], rows[i]);
            }
        }
    }

#pragma unroll
    for (uint32_t first = 0; first < tiles; first += parts) {
        if (first > 0 && !PLANTED("skinny_parts_no_barrier"))
            block_sync(); /* the parts before have been read */
#pragma unroll
        for (uint32_t i = 0; i < parts; i++)
            part_put(part + (split * parts + i) * PART_FLOATS,
                     sum[(first + i) / ROW_TILES][(first + i) % ROW_TILES]);
        if (!PLANTED("skinny_no_barrier")) block_sync();
        for (uint32_t e = threadIdx.x; e < parts * OUTS * ROWS; e += SKINNY_THREADS) {
            uint32_t i = e / (OUTS * ROWS), row = e / OUTS % ROWS, out = e % OUTS;
            float total = parts_sum(part + i * PART_FLOATS + row * PART_STRIDE + out, parts, k);
            row += (first + i) % ROW_TILES * ROWS;
            out += out_first + (first + i) / ROW_TILES * OUTS;
            if (row < p.rows && out < p.n) product_finish(p, row, out, total);
        }
    }
}

/* Where 16 bytes are in a tile of [128][64]: their place in a row is turned so that the eight lanes
 * that read together, two rows and four places, meet in no bank. */
__device__ __forceinline__ uint32_t tile_place(uint32_t row, uint32_t place)
{
    return row * CHUNK + (place ^ row % 2 * 4) * 8;
}

/* Copies chunk `chunk` of 128 rows of a matrix [rows][k] from row_first on; zeros beyond its edges. */
__device__ __forceinline__ void tile_copy(uint16_t *tile, const uint16_t *from, uint32_t row_first,
                                          uint32_t rows, uint32_t k, uint32_t chunk)
{
    const uint32_t places = CHUNK / 8, pass = TILE_THREADS / places; /* rows copied at a time */
    uint32_t row = threadIdx.x / places, place = threadIdx.x % places;
    uint32_t element = chunk * CHUNK + place * 8;
    const uint16_t *at = from + (size_t)(row_first + row) * k + element;
    tile += tile_place(row, place);
#pragma unroll
    for (uint32_t i = 0; i < TILE; i += pass) {
        bool valid = row_first + row + i < rows && element < k;
        copy_async(tile + i * CHUNK, valid ? at + (size_t)i * k : from, valid);
    }
}

/* sum += w x over one chunk, for this warp's outputs (from `out` on) and rows. */
__device__ __forceinline__ void tile_mma(float (&sum)[WARP_OUTS][WARP_ROWS][4], const uint16_t *w,
                                         const uint16_t *x, uint32_t out, uint32_t row)
{
    uint32_t g = threadIdx.x % WARP_LANES / 4, t = threadIdx.x % 4;
#pragma unroll
    for (uint32_t step = 0; step < CHUNK / STEP; step++) {
        uint4 rows[WARP_ROWS];
#pragma unroll
        for (uint32_t r = 0; r < WARP_ROWS; r++)
            rows[r] = *(const uint4 *)(x + tile_place(row + r * ROWS + g, step * 4 + t));
#pragma unroll
        for (uint32_t o = 0; o < WARP_OUTS; o++) {
            uint4 w0 = *(const uint4 *)(w + tile_place(out + o * OUTS + g, step * 4 + t));
            uint4 w1 = *(const uint4 *)(w + tile_place(out + o * OUTS + 8 + g, step * 4 + t));
            step_mma<WARP_ROWS>(sum[o], w0, w1, rows);
        }
    }
}

/* The i-th chunk in the order of the sums: split 0's chunks, then those of split 1, … */
struct chunk_walk {
    uint32_t split, chunk;
};
__device__ __forceinline__ void walk_on(struct chunk_walk *w, uint32_t chunks)
{
    w->chunk += SPLITS;
    if (w->chunk >= chunks) w->chunk = ++w->split;
}

/* This warp's results to shared memory as [row][output], so that they leave in whole lines. */
__device__ __forceinline__ void result_put(float *result, const float (&d)[WARP_OUTS][WARP_ROWS][4],
                                           uint32_t out, uint32_t row)
{
    uint32_t g = threadIdx.x % WARP_LANES / 4, t = threadIdx.x % 4;
#pragma unroll
    for (uint32_t o = 0; o < WARP_OUTS; o++)
#pragma unroll
        for (uint32_t r = 0; r < WARP_ROWS; r++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                result[(row + r * ROWS + 2 * t + i % 2) * RESULT_STRIDE + out + o * OUTS + g +
                       i / 2 * 8] = d[o][r][i];
}

/* Any rows, k a multiple of 8: 128 x 128 outputs per block, chunks through three stages of shared
 * memory. Reads each operand once per tile of the other, mostly from the L2 cache: per block and chunk
 * 32 KiB for 2 Mflop. 96 KiB shared; 196 registers: 64 of the split under way, 64 of the splits
 * before it. */
__global__ void __launch_bounds__(TILE_THREADS, 1) tiled_kernel(struct cuda_product p)
{
    grid_wait();
    const uint32_t chunks = divide_up(p.k, CHUNK), warp = threadIdx.x / WARP_LANES;
    const uint32_t warp_out = warp / 4 * WARP_OUTS * OUTS, warp_row = warp % 4 * WARP_ROWS * ROWS;
    const uint32_t row_first = blockIdx.x * TILE, out_first = blockIdx.y * TILE;
    struct shared_memory shared;
    uint16_t *stages = shared_take<uint16_t>(&shared, TILE_STAGES * 2 * TILE_ELEMENTS);
    struct chunk_walk next = {0, 0}, now = {0, 0};
    float sum[WARP_OUTS][WARP_ROWS][4] = {}, total[WARP_OUTS][WARP_ROWS][4] = {};

#pragma unroll 1
    for (uint32_t i = 0; i < chunks + TILE_STAGES - 1; i++) {
        if (i >= TILE_STAGES - 1) {
            copy_wait<TILE_STAGES - 2>();
            if (!PLANTED("tiled_no_barrier"))
                block_sync(); /* chunk i - 2 is there; all have done with the one before it */
        }
        if (i < chunks) {
            uint16_t *w = stages + i % TILE_STAGES * 2 * TILE_ELEMENTS, *x = w + TILE_ELEMENTS;
            tile_copy(w, (const uint16_t *)p.w, out_first, p.n, p.k, next.chunk);
            tile_copy(x, (const uint16_t *)p.x, row_first, p.rows, p.k, next.chunk);
            walk_on(&next, chunks);
        }
        copy_commit();
        if (i < TILE_STAGES - 1) continue;
        uint16_t *w = stages + (i - TILE_STAGES + 1) % TILE_STAGES * 2 * TILE_ELEMENTS;
        tile_mma(sum, w, w + TILE_ELEMENTS, warp_out, warp_row);
        if (now.chunk + SPLITS >= chunks) {
#pragma unroll
            for (uint32_t e = 0; e < WARP_OUTS * WARP_ROWS * 4; e++) {
                float &of_split = sum[e / 4 / WARP_ROWS][e / 4 % WARP_ROWS][e % 4];
                float &of_all = total[e / 4 / WARP_ROWS][e / 4 % WARP_ROWS][e % 4];
                of_all += of_split;
                of_split = 0.0f;
            }
        }
        walk_on(&now, chunks);
    }

    copy_wait<0>();
    block_sync(); /* the stages are free */
    float *result = (float *)stages;
    result_put(result, total, warp_out, warp_row);
    block_sync();
    for (uint32_t e = threadIdx.x; e < TILE * TILE; e += TILE_THREADS) {
        uint32_t row = e / TILE, out = e % TILE;
        if (row_first + row < p.rows && out_first + out < p.n)
            product_finish(p, row_first + row, out_first + out, result[row * RESULT_STRIDE + out]);
    }
}

template <uint32_t OUT_TILES, uint32_t ROW_TILES, bool WIDE>
cudaError_t skinny(cudaStream_t stream, const struct cuda_product *p)
{
    uint32_t tiles = OUT_TILES * ROW_TILES;
    uint32_t parts = tiles < PARTS_AT_ONCE ? tiles : (uint32_t)PARTS_AT_ONCE;
    LAUNCH((skinny_kernel<OUT_TILES, ROW_TILES, WIDE>), divide_up(p->n, OUTS * OUT_TILES),
           SKINNY_THREADS, shared_bytes<float>(SPLITS * parts * PART_FLOATS), stream, *p);
    return cudaPeekAtLastError();
}

/* More outputs per block where enough blocks remain to keep all multiprocessors busy: x, which every
 * block reads, is then read less often. */
cudaError_t skinny_by_shape(cudaStream_t stream, const struct cuda_product *p)
{
    if (p->k % 8 != 0) return skinny<1, 4, false>(stream, p);
    if (p->rows <= ROWS)
        return p->n < 8192 ? skinny<1, 1, true>(stream, p) : skinny<2, 1, true>(stream, p);
    if (p->rows <= 2 * ROWS)
        return p->n < 4096 ? skinny<1, 2, true>(stream, p) : skinny<2, 2, true>(stream, p);
    if (p->n < 4096) return skinny<1, 4, true>(stream, p);
    return p->n < 16384 ? skinny<2, 4, true>(stream, p) : skinny<3, 4, true>(stream, p);
}

/* Rows `first` to first + rows - 1 of a product. */
struct cuda_product product_rows(const struct cuda_product *p, uint32_t first, uint32_t rows)
{
    struct cuda_product part = *p;
    size_t out_bytes = p->out_wide ? sizeof(float) : sizeof(uint16_t);
    part.x = (const uint16_t *)p->x + (size_t)first * p->k;
    part.out = (char *)p->out + (size_t)first * p->n * out_bytes;
    if (p->residual) part.residual = p->residual + (size_t)first * p->n;
    part.rows = rows;
    return part;
}

cudaError_t sliced(cudaStream_t stream, const struct cuda_product *p)
{
    for (uint32_t first = 0; first < p->rows; first += CUDA_SKINNY_ROWS) {
        uint32_t left = p->rows - first;
        uint32_t rows = left < CUDA_SKINNY_ROWS ? left : (uint32_t)CUDA_SKINNY_ROWS;
        struct cuda_product part = product_rows(p, first, rows);
        cudaError_t c = skinny_by_shape(stream, &part);
        if (c != cudaSuccess) return c;
    }
    return cudaSuccess;
}

} // namespace

cudaError_t cuda_product_skinny(cudaStream_t stream, const struct cuda_product *p)
{
    if (p->rows == 0 || p->n == 0) return cudaSuccess;
    if (p->dtype == DTYPE_F32) return product_f32(stream, p);
    return sliced(stream, p);
}

cudaError_t cuda_product_fixed(cudaStream_t stream, const struct cuda_product *p)
{
    if (p->rows == 0 || p->n == 0) return cudaSuccess;
    if (p->dtype == DTYPE_F32) return product_f32(stream, p);
    if (p->rows <= SLICED_ROWS || p->k % 8 != 0) return sliced(stream, p);
    uint32_t bytes = shared_bytes<uint16_t>(TILE_STAGES * 2 * TILE_ELEMENTS);
    cudaError_t c =
        cudaFuncSetAttribute(tiled_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (c != cudaSuccess) return c;
    dim3 grid(divide_up(p->rows, TILE), divide_up(p->n, TILE));
    LAUNCH(tiled_kernel, grid, TILE_THREADS, bytes, stream, *p);
    return cudaPeekAtLastError();
}
