/* body_attend: softmax(q k) v over the paged KV, over the vector of the file that includes this.
 *
 * An item is up to ATTEND_QUERIES queries, (row, head) pairs that share a kv head and with it every
 * load of K and V. It walks the tiles (blocks of 16 tokens) upward; lanes of a score are tokens, so
 * that K needs no horizontal sums, lanes of the result are dimensions. Each query folds exactly its
 * own tiles and, at both ends of its range, exactly its own tokens: what other queries or stale
 * memory are in the same tile never enters its chain (A2, A3). */

enum { DIM_MAX = BACKEND_HEAD_DIM_MAX };

struct attend_item {
    const struct attend_args *a;
    const struct batch_sequence *sequence;
    uint32_t kv_head;
    uint32_t query_first, queries_count; /* query i is head i % group of row i / group */
    uint32_t first[ATTEND_QUERIES];      /* its first token */
    uint32_t end[ATTEND_QUERIES];        /* behind its last token */
    float largest[ATTEND_QUERIES], sum[ATTEND_QUERIES];
    _Alignas(64) float score[ATTEND_QUERIES][16];
    size_t stride; /* of the rows below: head_dim, rounded up to 16 */
    _Alignas(64) float q[ATTEND_QUERIES * DIM_MAX]; /* as the chain takes it: fp32, or bf16 pairs */
    _Alignas(64) float v[BLOCK_TOKENS * DIM_MAX];   /* the tile's V, widened */
    _Alignas(64) float out[ATTEND_QUERIES * DIM_MAX];
};

/* Queries of one tile: those with tokens in it are consecutive. */
struct attend_tile {
    const void *k, *v;
    uint32_t token; /* the tile's first */
    uint32_t begin, end;
};

static inline uint32_t lane_first(const struct attend_item *it, uint32_t query, uint32_t token)
{
    return it->first[query] > token ? it->first[query] - token : 0;
}
static inline uint32_t lane_end(const struct attend_item *it, uint32_t query, uint32_t token)
{
    uint32_t end = it->end[query];
    return end > token + BLOCK_TOKENS ? BLOCK_TOKENS : end > token ? end - token : 0;
}

static inline __attribute__((always_inline)) void
score_bf16(struct attend_item *it, const void *k_tile, uint32_t query, uint32_t queries)
{
    const uint32_t *k = k_tile;
    struct vec sum[ATTEND_QUERIES];
    for (uint32_t j = 0; j < queries; j++)
        sum[j] = vec_set1(0);
    for (uint32_t i = 0; i < it->a->shape.head_dim / 2; i++) {
        struct pairs tokens = pairs_load(k + (size_t)i * 16);
        for (uint32_t j = 0; j < queries; j++) {
            const uint16_t *q = (const uint16_t *)(it->q + (query + j) * it->stride) + 2 * i;
            sum[j] = vec_dot2(sum[j], pairs_set1(q), tokens);
        }
    }
    struct vec scale = vec_set1(it->a->shape.scale);
    for (uint32_t j = 0; j < queries; j++)
        vec_store(it->score[query + j], vec_mul(sum[j], scale));
}

static inline __attribute__((always_inline)) void
score_f32(struct attend_item *it, const void *k_tile, uint32_t query, uint32_t queries)
{
    const float *k = k_tile;
    struct vec sum[ATTEND_QUERIES];
    for (uint32_t j = 0; j < queries; j++)
        sum[j] = vec_set1(0);
    for (uint32_t i = 0; i < it->a->shape.head_dim / 2; i++) {
        struct vec even, odd;
        vec_load_split(k + (size_t)i * 32, &even, &odd);
        for (uint32_t j = 0; j < queries; j++) {
            const float *q = it->q + (query + j) * it->stride + 2 * i;
            sum[j] = vec_fma(vec_set1(q[0]), even, vec_fma(vec_set1(q[1]), odd, sum[j]));
        }
    }
    struct vec scale = vec_set1(it->a->shape.scale);
    for (uint32_t j = 0; j < queries; j++)
        vec_store(it->score[query + j], vec_mul(sum[j], scale));
}

static void attend_score(struct attend_item *it, const struct attend_tile *t)
{
    bool bf16 = it->a->kv.geometry.dtype == DTYPE_BF16;
#define SCORE(count)                                                                               \
    while (t->end - query >= (count)) {                                                            \
        if (bf16)                                                                                  \
            score_bf16(it, t->k, query, count);                                                    \
        else                                                                                       \
            score_f32(it, t->k, query, count);                                                     \
        query += (count);                                                                          \
    }
    uint32_t query = t->begin;
    if (VEC_SCORE_ROWS >= 16) SCORE(16)
    if (VEC_SCORE_ROWS >= 8) SCORE(8)
    SCORE(4)
    SCORE(2)
    SCORE(1)
#undef SCORE
}

/* Turns the tile's scores into probabilities relative to each query's largest score so far;
 * `rescale` is what the query's earlier sums shrink by (A4). */
static void attend_softmax(struct attend_item *it, const struct attend_tile *t, float *rescale)
{
    _Alignas(64) float sum[ATTEND_QUERIES] = {0};
    const struct vec low = vec_set1(-INFINITY), zero = vec_set1(0);
    struct vec before = vec_load(it->largest);
    for (uint32_t j = t->begin; j < t->end; j++) {
        struct vec s = vec_load(it->score[j]);
        uint32_t from = lane_first(it, j, t->token), to = lane_end(it, j, t->token);
        float largest = vec_largest(vec_keep(s, from, to, low));
        if (largest > it->largest[j]) it->largest[j] = largest;
    }
    struct vec factor = vec_exp(vec_sub(before, vec_load(it->largest)));
    vec_store(rescale, factor);
    for (uint32_t j = t->begin; j < t->end; j++) {
        struct vec s = vec_load(it->score[j]);
        uint32_t from = lane_first(it, j, t->token), to = lane_end(it, j, t->token);
        struct vec p = vec_exp(vec_sub(s, vec_set1(it->largest[j])));
        p = vec_keep(p, from, to, zero);
        vec_store(it->score[j], p);
        sum[j] = vec_sum(p);
    }
    vec_store(it->sum, vec_fma(vec_load(it->sum), factor, vec_load(sum)));
}

/* out = out * rescale + p v over tokens [from, to), for queries that share the range and for `vecs`
 * vectors of dimensions from d on. */
static inline __attribute__((always_inline)) void weigh_part(struct attend_item *it, uint32_t query,
                                                             uint32_t queries, const float *rescale,
                                                             uint32_t from, uint32_t to, uint32_t d,
                                                             uint32_t vecs)
{
    float *out = it->out + query * it->stride + d;
    struct vec sum[VEC_WEIGH_ROWS][VEC_WEIGH_VECS];
    for (uint32_t j = 0; j < queries; j++)
        for (uint32_t c = 0; c < vecs; c++) {
            struct vec old = vec_load(out + j * it->stride + c * 16);
            sum[j][c] = vec_mul(old, vec_set1(rescale[query + j]));
        }
    for (uint32_t token = from; token < to; token++) {
        struct vec v[VEC_WEIGH_VECS];
        for (uint32_t c = 0; c < vecs; c++)
            v[c] = vec_load(it->v + token * it->stride + d + c * 16);
        for (uint32_t j = 0; j < queries; j++) {
            struct vec p = vec_set1(it->score[query + j][token]);
            for (uint32_t c = 0; c < vecs; c++)
                sum[j][c] = vec_fma(p, v[c], sum[j][c]);
        }
    }
    for (uint32_t j = 0; j < queries; j++)
        for (uint32_t c = 0; c < vecs; c++)
            vec_store(out + j * it->stride + c * 16, sum[j][c]);
}

static inline __attribute__((always_inline)) void weigh(struct attend_item *it, uint32_t query,
                                                        uint32_t queries, const float *rescale,
                                                        uint32_t from, uint32_t to)
{
    uint32_t d = 0;
    for (; d + 16 * VEC_WEIGH_VECS <= it->stride; d += 16 * VEC_WEIGH_VECS)
        weigh_part(it, query, queries, rescale, from, to, d, VEC_WEIGH_VECS);
    for (; d < it->stride; d += 16)
        weigh_part(it, query, queries, rescale, from, to, d, 1);
}

static void attend_weigh(struct attend_item *it, const struct attend_tile *t, const float *rescale)
{
    for (uint32_t j = t->begin, count; j < t->end; j += count) {
        uint32_t from = lane_first(it, j, t->token), to = lane_end(it, j, t->token);
        for (count = 1; count < VEC_WEIGH_ROWS && j + count < t->end; count++)
            if (lane_first(it, j + count, t->token) != from ||
                lane_end(it, j + count, t->token) != to)
                break;
        if (count < VEC_WEIGH_ROWS) count = 1;
        if (count == 1)
            weigh(it, j, 1, rescale, from, to);
        else
            weigh(it, j, VEC_WEIGH_ROWS, rescale, from, to);
    }
}

static void attend_widen(struct attend_item *it, const struct attend_tile *t)
{
    uint32_t dim = it->a->shape.head_dim;
    bool bf16 = it->a->kv.geometry.dtype == DTYPE_BF16;
    for (uint32_t token = 0; token < BLOCK_TOKENS; token++)
        for (uint32_t d = 0; d < dim; d += 16) {
            size_t at = (size_t)token * dim + d;
            struct vec v = bf16 ? vec_load_bf16((const uint16_t *)t->v + at, dim - d)
                                : vec_load_some((const float *)t->v + at, dim - d);
            vec_store(it->v + token * it->stride + d, v);
        }
}

static void attend_fold(struct attend_item *it, uint32_t tile)
{
    const struct attend_args *a = it->a;
    const struct kv_geometry *g = &a->kv.geometry;
    uint32_t block = a->batch->table[it->sequence->table_first + tile];
    size_t head_bytes = kv_part_bytes(g) / g->kv_heads;
    const char *k = (const char *)a->kv.base + block * kv_block_bytes(g) +
                    a->layer * kv_layer_bytes(g) + it->kv_head * head_bytes;
    struct attend_tile t = {k, k + kv_part_bytes(g), tile * BLOCK_TOKENS, 0, it->queries_count};
    while (lane_end(it, t.begin, t.token) == 0)
        t.begin++;
    while (lane_first(it, t.end - 1, t.token) >= BLOCK_TOKENS)
        t.end--;
    _Alignas(64) float rescale[ATTEND_QUERIES];
    attend_score(it, &t);
    attend_softmax(it, &t, rescale);
    attend_widen(it, &t);
    attend_weigh(it, &t, rescale);
}

static const float *attend_query(const struct attend_item *it, uint32_t j, size_t *out_at)
{
    const struct attend_args *a = it->a;
    uint32_t group = a->shape.heads / a->shape.kv_heads, query = it->query_first + j;
    uint32_t row = it->sequence->row_first + query / group;
    size_t column = ((size_t)it->kv_head * group + query % group) * a->shape.head_dim;
    *out_at = row * a->out_stride + column;
    return a->q + row * a->q_stride + column;
}

static void attend_open(struct attend_item *it)
{
    const struct attend_args *a = it->a;
    uint32_t dim = a->shape.head_dim, group = a->shape.heads / a->shape.kv_heads;
    for (uint32_t j = 0; j < ATTEND_QUERIES; j++) {
        it->largest[j] = -FLT_MAX; /* finite, so that no difference of maxima is NaN */
        it->sum[j] = 0;
        if (j >= it->queries_count) continue;
        uint32_t position = it->sequence->position + (it->query_first + j) / group;
        uint32_t window = a->batch->window;
        it->end[j] = position + 1;
        it->first[j] = window && position >= window ? position - window + 1 : 0;
        size_t unused;
        const float *q = attend_query(it, j, &unused);
        for (uint32_t d = 0; d < dim; d += 16) {
            struct vec v = vec_load_some(q + d, dim - d);
            if (a->kv.geometry.dtype == DTYPE_BF16)
                vec_store_bf16((uint16_t *)(it->q + j * it->stride) + d, v, dim - d);
            else
                vec_store(it->q + j * it->stride + d, v);
        }
        memset(it->out + j * it->stride, 0, it->stride * sizeof *it->out);
    }
}

static void attend_close(struct attend_item *it)
{
    uint32_t dim = it->a->shape.head_dim;
    for (uint32_t j = 0; j < it->queries_count; j++) {
        size_t at;
        attend_query(it, j, &at);
        struct vec scale = vec_set1(1.0f / it->sum[j]);
        for (uint32_t d = 0; d < dim; d += 16)
            vec_store_some(it->a->out + at + d,
                           vec_mul(vec_load(it->out + j * it->stride + d), scale), dim - d);
    }
}

static void attend(const void *args, uint32_t first, uint32_t last)
{
    const struct attend_args *a = args;
    struct attend_item it;
    it.a = a;
    it.stride = (a->shape.head_dim + 15) / 16 * 16;
    uint32_t item = 0;
    for (uint32_t i = 0; i < a->batch->sequences_count && item < last; i++) {
        it.sequence = &a->batch->sequence[i];
        uint32_t queries = it.sequence->rows_count * (a->shape.heads / a->shape.kv_heads);
        uint32_t items = attend_groups(it.sequence, &a->shape) * a->shape.kv_heads;
        uint32_t own = item < first ? first - item : 0;
        for (; own < items && item + own < last; own++) {
            it.kv_head = own % a->shape.kv_heads;
            it.query_first = own / a->shape.kv_heads * ATTEND_QUERIES;
            it.queries_count = queries - it.query_first < ATTEND_QUERIES ? queries - it.query_first
                                                                         : ATTEND_QUERIES;
            attend_open(&it);
            for (uint32_t tile = it.first[0] / BLOCK_TOKENS;
                 tile * BLOCK_TOKENS < it.end[it.queries_count - 1]; tile++)
                attend_fold(&it, tile);
            attend_close(&it);
        }
        item += items;
    }
}
