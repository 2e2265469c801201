/* body_attend: softmax(q k) v over the paged KV, over the vector of the file that includes this.
 *
 * An item is up to ATTEND_QUERIES queries, (row, head) pairs that share a kv head and with it every
 * load of K and V. It walks the tiles (blocks of 16 tokens) upward; each query folds exactly its
 * own tiles and, at both ends of its range, exactly its own tokens: what other queries or stale
 * memory are in the same tile never enters its chain (A2, A3).
 *
 * Scores are computed along: lanes are the tile's tokens, one query after the other, so that K
 * needs no horizontal sums; or, where 16 queries take a whole tile, across: lanes are the queries,
 * so that maxima and sums need none either. The chain of a score and the tree of a sum are the
 * same, so which one ran never shows. */

enum {
    DIM_MAX = BACKEND_HEAD_DIM_MAX,
    TILES_AHEAD = 4, /* scored together where a few queries alone would wait for their chains */
    QUERIES_FEW = 4, /* for so few V is widened as it is used, not once for all */
};

struct attend_item {
    const struct attend_args *a;
    const struct batch_sequence *sequence;
    uint32_t kv_head;
    uint32_t query_first, queries_count; /* query i is head i % group of row i / group */
    uint32_t first[ATTEND_QUERIES];      /* its first token */
    uint32_t end[ATTEND_QUERIES];        /* behind its last token */
    size_t stride;                       /* of the rows of v and out: head_dim, rounded up to 16 */
    _Alignas(64) float largest[ATTEND_QUERIES];
    _Alignas(64) float sum[ATTEND_QUERIES];
    _Alignas(64) float score[TILES_AHEAD][16 * 16];
    _Alignas(64) float q[ATTEND_QUERIES * DIM_MAX]; /* [dim / 2][queries][2] of the pool's dtype */
    _Alignas(64) float v[BLOCK_TOKENS * DIM_MAX];   /* the tile's V, widened */
    _Alignas(64) float out[ATTEND_QUERIES * DIM_MAX];
};

struct attend_tile {
    const char *k, *v;
    uint32_t token;      /* its first */
    uint32_t begin, end; /* queries with tokens in it: they are consecutive */
    bool whole;          /* all queries take all of its tokens */
    float *score;        /* then probabilities: [queries][16 tokens], across the other way round */
};

static inline uint32_t lane_first(const struct attend_item *it, uint32_t query, uint32_t token)
{
    uint32_t first = it->first[query];
    return first >= token + BLOCK_TOKENS ? BLOCK_TOKENS : first > token ? first - token : 0;
}
static inline uint32_t lane_end(const struct attend_item *it, uint32_t query, uint32_t token)
{
    uint32_t end = it->end[query];
    return end > token + BLOCK_TOKENS ? BLOCK_TOKENS : end > token ? end - token : 0;
}

/* --- scores --- */

/* `queries` queries against `tiles` tiles, along the tokens. */
static inline __attribute__((always_inline)) void score_bf16(struct attend_item *it,
                                                             const struct attend_tile *t,
                                                             uint32_t tiles, uint32_t query,
                                                             uint32_t queries)
{
    struct vec sum[TILES_AHEAD][VEC_SCORE_ROWS];
    for (uint32_t n = 0; n < tiles; n++)
        for (uint32_t j = 0; j < queries; j++)
            sum[n][j] = vec_set1(0);
    const uint16_t *q = (const uint16_t *)it->q + 2 * query;
    for (uint32_t i = 0; i < it->a->shape.head_dim / 2; i++, q += 2 * ATTEND_QUERIES)
        for (uint32_t n = 0; n < tiles; n++) {
            struct pairs tokens = pairs_load(t[n].k + (size_t)i * 64);
            vec_prefetch(t[n].v + (size_t)i * 64); /* as many bytes as K; needed next */
            for (uint32_t j = 0; j < queries; j++)
                sum[n][j] = vec_dot2(sum[n][j], pairs_set1(q + 2 * j), tokens);
        }
    struct vec scale = vec_set1(it->a->shape.scale);
    for (uint32_t n = 0; n < tiles; n++)
        for (uint32_t j = 0; j < queries; j++)
            vec_store(t[n].score + (query + j) * 16, vec_mul(sum[n][j], scale));
}

static inline __attribute__((always_inline)) void
score_f32(struct attend_item *it, const struct attend_tile *t, uint32_t query, uint32_t queries)
{
    struct vec sum[VEC_SCORE_ROWS];
    for (uint32_t j = 0; j < queries; j++)
        sum[j] = vec_set1(0);
    const float *q = it->q + 2 * query, *k = (const float *)(const void *)t->k;
    for (uint32_t i = 0; i < it->a->shape.head_dim / 2; i++, q += 2 * ATTEND_QUERIES) {
        struct vec even, odd;
        vec_load_split(k + (size_t)i * 32, &even, &odd);
        for (uint32_t j = 0; j < queries; j++)
            sum[j] =
                vec_fma(vec_set1(q[2 * j]), even, vec_fma(vec_set1(q[2 * j + 1]), odd, sum[j]));
    }
    struct vec scale = vec_set1(it->a->shape.scale);
    for (uint32_t j = 0; j < queries; j++)
        vec_store(t->score + (query + j) * 16, vec_mul(sum[j], scale));
}

static void score_along(struct attend_item *it, const struct attend_tile *t, uint32_t tiles)
{
    bool bf16 = it->a->kv.geometry.dtype == DTYPE_BF16;
    uint32_t query = t->begin, end = t->end;
    if (bf16 && tiles == TILES_AHEAD) {
        for (; end - query >= 2; query += 2)
            score_bf16(it, t, TILES_AHEAD, query, 2);
        if (query < end) score_bf16(it, t, TILES_AHEAD, query, 1);
        return;
    }
    for (uint32_t n = 0; n < tiles; n++) {
        query = t[n].begin;
        for (; end - query >= VEC_SCORE_ROWS; query += VEC_SCORE_ROWS)
            bf16 ? score_bf16(it, t + n, 1, query, VEC_SCORE_ROWS)
                 : score_f32(it, t + n, query, VEC_SCORE_ROWS);
        for (; end - query >= 2; query += 2)
            bf16 ? score_bf16(it, t + n, 1, query, 2) : score_f32(it, t + n, query, 2);
        if (query < end) bf16 ? score_bf16(it, t + n, 1, query, 1) : score_f32(it, t + n, query, 1);
    }
}

/* All queries against `VEC_ACROSS` tokens at a time, across. */
static void score_across(struct attend_item *it, const struct attend_tile *t)
{
    struct vec scale = vec_set1(it->a->shape.scale);
    for (uint32_t token = 0; token < BLOCK_TOKENS; token += VEC_ACROSS) {
        struct vec sum[VEC_ACROSS];
        for (uint32_t j = 0; j < VEC_ACROSS; j++)
            sum[j] = vec_set1(0);
        const uint16_t *k = (const uint16_t *)(const void *)t->k + 2 * token;
        const uint16_t *q = (const uint16_t *)it->q;
        for (uint32_t i = 0; i < it->a->shape.head_dim / 2; i++, k += 32, q += 32) {
            struct pairs queries = pairs_load(q);
            for (uint32_t j = 0; j < VEC_ACROSS; j++)
                sum[j] = vec_dot2(sum[j], queries, pairs_set1(k + 2 * j));
        }
        for (uint32_t j = 0; j < VEC_ACROSS; j++)
            vec_store(t->score + (token + j) * 16, vec_mul(sum[j], scale));
    }
}

/* --- probabilities: scores become them relative to each query's largest score so far; `rescale` is
 * what the query's earlier sums shrink by (A4) --- */

static void softmax_along(struct attend_item *it, const struct attend_tile *t, float *rescale)
{
    _Alignas(64) float sum[ATTEND_QUERIES] = {0};
    const struct vec low = vec_set1(-INFINITY), zero = vec_set1(0);
    struct vec before = vec_load(it->largest);
    for (uint32_t j = t->begin; j < t->end; j++) {
        struct vec s = vec_load(t->score + j * 16);
        uint32_t from = lane_first(it, j, t->token), to = lane_end(it, j, t->token);
        float largest = vec_largest(vec_keep(s, from, to, low));
        if (largest > it->largest[j]) it->largest[j] = largest;
    }
    struct vec factor = vec_exp(vec_sub(before, vec_load(it->largest)));
    vec_store(rescale, factor);
    for (uint32_t j = t->begin; j < t->end; j++) {
        struct vec s = vec_load(t->score + j * 16);
        uint32_t from = lane_first(it, j, t->token), to = lane_end(it, j, t->token);
        struct vec p = vec_exp(vec_sub(s, vec_set1(it->largest[j])));
        p = vec_keep(p, from, to, zero);
        vec_store(t->score + j * 16, p);
        sum[j] = vec_sum(p);
    }
    vec_store(it->sum, vec_fma(vec_load(it->sum), factor, vec_load(sum)));
}

static void softmax_across(struct attend_item *it, const struct attend_tile *t, float *rescale)
{
    struct vec before = vec_load(it->largest), largest = before, p[BLOCK_TOKENS];
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
        largest = vec_max(vec_load(t->score + i * 16), largest);
    struct vec factor = vec_exp(vec_sub(before, largest));
    vec_store(it->largest, largest);
    vec_store(rescale, factor);
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++) {
        p[i] = vec_exp(vec_sub(vec_load(t->score + i * 16), largest));
        vec_store(t->score + i * 16, p[i]);
    }
    for (uint32_t half = BLOCK_TOKENS / 2; half > 0; half /= 2) /* the tree of vec_sum */
        for (uint32_t i = 0; i < half; i++)
            p[i] = vec_add(p[i], p[i + half]);
    vec_store(it->sum, vec_fma(vec_load(it->sum), factor, p[0]));
}

/* --- out = out * rescale + p v --- */

static void attend_widen(struct attend_item *it, const struct attend_tile *t)
{
    uint32_t dim = it->a->shape.head_dim;
    bool bf16 = it->a->kv.geometry.dtype == DTYPE_BF16;
    for (uint32_t token = 0; token < BLOCK_TOKENS; token++)
        for (uint32_t d = 0; d < dim; d += 16) {
            size_t at = (size_t)token * dim + d;
            const void *v = t->v + at * (bf16 ? 2 : 4);
            vec_store(it->v + token * it->stride + d,
                      bf16 ? vec_load_bf16(v, dim - d) : vec_load_some(v, dim - d));
        }
}

/* How V is read (widened before, or bf16 from the pool) and where probabilities lie. */
enum weigh_form { WEIGH_ALONG, WEIGH_ALONG_BF16, WEIGH_ACROSS };

/* For queries that take the same tokens of the tile, and `vecs` vectors of dimensions from d on. */
static inline __attribute__((always_inline)) void
weigh_part(struct attend_item *it, const struct attend_tile *t, uint32_t query, uint32_t queries,
           const float *rescale, uint32_t d, uint32_t vecs, enum weigh_form form)
{
    const size_t query_step = form == WEIGH_ACROSS ? 1 : 16;
    const size_t token_step = form == WEIGH_ACROSS ? ATTEND_QUERIES : 1;
    const uint32_t dim = it->a->shape.head_dim;
    const uint32_t from = lane_first(it, query, t->token), to = lane_end(it, query, t->token);
    const float *p = t->score + from * token_step + query * query_step;
    const float *wide = it->v + from * it->stride + d;
    const uint16_t *narrow = (const uint16_t *)(const void *)t->v + from * dim + d;
    float *out = it->out + query * it->stride + d;
    struct vec sum[VEC_WEIGH_ROWS][VEC_WEIGH_VECS];
    for (uint32_t j = 0; j < queries; j++)
        for (uint32_t c = 0; c < vecs; c++)
            sum[j][c] =
                vec_mul(vec_load(out + j * it->stride + c * 16), vec_set1(rescale[query + j]));
    for (uint32_t left = to - from; left > 0; left--) {
        struct vec v[VEC_WEIGH_VECS];
        for (uint32_t c = 0; c < vecs; c++)
            v[c] = form == WEIGH_ALONG_BF16 ? vec_load_bf16(narrow + c * 16, dim - d - c * 16)
                                            : vec_load(wide + c * 16);
        for (uint32_t j = 0; j < queries; j++)
            for (uint32_t c = 0; c < vecs; c++)
                sum[j][c] = vec_fma(vec_set1(p[j * query_step]), v[c], sum[j][c]);
        p += token_step;
        wide += it->stride;
        narrow += dim;
    }
    for (uint32_t j = 0; j < queries; j++)
        for (uint32_t c = 0; c < vecs; c++)
            vec_store(out + j * it->stride + c * 16, sum[j][c]);
}

static inline __attribute__((always_inline)) void weigh(struct attend_item *it,
                                                        const struct attend_tile *t, uint32_t query,
                                                        uint32_t queries, const float *rescale,
                                                        enum weigh_form form)
{
    uint32_t d = 0;
    for (; d + 16 * VEC_WEIGH_VECS <= it->stride; d += 16 * VEC_WEIGH_VECS)
        weigh_part(it, t, query, queries, rescale, d, VEC_WEIGH_VECS, form);
    for (; d < it->stride; d += 16)
        weigh_part(it, t, query, queries, rescale, d, 1, form);
}

/* Queries that take the same tokens share a pass. */
static inline __attribute__((always_inline)) void weigh_along(struct attend_item *it,
                                                              const struct attend_tile *t,
                                                              const float *rescale,
                                                              enum weigh_form form)
{
    for (uint32_t j = t->begin, same; j < t->end; j += same) {
        uint32_t from = lane_first(it, j, t->token), to = lane_end(it, j, t->token);
        for (same = 1; same < VEC_WEIGH_ROWS && j + same < t->end; same++)
            if (lane_first(it, j + same, t->token) != from ||
                lane_end(it, j + same, t->token) != to)
                break;
        same = same == VEC_WEIGH_ROWS ? same : same >= 2 ? 2 : 1;
        if (same == VEC_WEIGH_ROWS)
            weigh(it, t, j, VEC_WEIGH_ROWS, rescale, form);
        else if (same == 2)
            weigh(it, t, j, 2, rescale, form);
        else
            weigh(it, t, j, 1, rescale, form);
    }
}

static void attend_weigh(struct attend_item *it, const struct attend_tile *t, bool across,
                         const float *rescale)
{
    if (!across && it->queries_count <= QUERIES_FEW && it->a->kv.geometry.dtype == DTYPE_BF16) {
        weigh_along(it, t, rescale, WEIGH_ALONG_BF16);
        return;
    }
    attend_widen(it, t);
    if (!across) weigh_along(it, t, rescale, WEIGH_ALONG);
    for (uint32_t j = 0; across && j < ATTEND_QUERIES; j += VEC_WEIGH_ROWS)
        weigh(it, t, j, VEC_WEIGH_ROWS, rescale, WEIGH_ACROSS);
}

/* --- the walk --- */

static struct attend_tile attend_tile(const struct attend_item *it, uint32_t tile)
{
    const struct attend_args *a = it->a;
    const struct kv_geometry *g = &a->kv.geometry;
    uint32_t block = a->batch->table[it->sequence->table_first + tile];
    struct attend_tile t = {.token = tile * BLOCK_TOKENS, .end = it->queries_count};
    t.k = (const char *)a->kv.base + block * kv_block_bytes(g) + a->layer * kv_layer_bytes(g) +
          it->kv_head * (kv_part_bytes(g) / g->kv_heads);
    t.v = t.k + kv_part_bytes(g);
    while (lane_end(it, t.begin, t.token) == 0)
        t.begin++;
    while (lane_first(it, t.end - 1, t.token) == BLOCK_TOKENS)
        t.end--;
    t.whole = lane_end(it, 0, t.token) == BLOCK_TOKENS &&
              lane_first(it, it->queries_count - 1, t.token) == 0;
    return t;
}

static void attend_fold(struct attend_item *it, struct attend_tile *t, uint32_t tiles)
{
    bool across =
        t->whole && it->queries_count == ATTEND_QUERIES && it->a->kv.geometry.dtype == DTYPE_BF16;
    for (uint32_t n = 0; n < tiles; n++)
        t[n].score = it->score[n];
    if (across)
        score_across(it, t);
    else
        score_along(it, t, tiles);
    for (uint32_t n = 0; n < tiles; n++) {
        _Alignas(64) float rescale[ATTEND_QUERIES];
        if (across)
            softmax_across(it, t, rescale);
        else
            softmax_along(it, t + n, rescale);
        attend_weigh(it, t + n, across, rescale);
    }
}

static void attend_walk(struct attend_item *it)
{
    uint32_t most = it->queries_count <= QUERIES_FEW ? TILES_AHEAD : 1;
    uint32_t end = blocks_for_tokens(it->end[it->queries_count - 1]);
    for (uint32_t tile = it->first[0] / BLOCK_TOKENS, tiles; tile < end; tile += tiles) {
        struct attend_tile t[TILES_AHEAD];
        t[0] = attend_tile(it, tile);
        for (tiles = 1; tiles < most && tile + tiles < end && t[0].whole; tiles++) {
            t[tiles] = attend_tile(it, tile + tiles);
            if (!t[tiles].whole) break; /* goes alone */
        }
        attend_fold(it, t, tiles);
    }
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
    bool bf16 = a->kv.geometry.dtype == DTYPE_BF16;
    uint16_t rounded[DIM_MAX];
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
        for (uint32_t d = 0; d < dim; d += 16)
            vec_store_bf16(rounded + d, vec_load_some(q + d, dim - d), dim - d);
        for (uint32_t d = 0; d < dim; d += 2) {
            uint32_t at = (d / 2 * ATTEND_QUERIES + j) * 2;
            if (bf16)
                memcpy((uint16_t *)it->q + at, rounded + d, 2 * sizeof *rounded);
            else
                memcpy(it->q + at, q + d, 2 * sizeof *q);
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
        uint32_t groups = attend_groups(it.sequence, &a->shape), items = groups * a->shape.kv_heads;
        uint32_t own = item < first ? first - item : 0;
        for (; own < items && item + own < last; own++) {
            it.kv_head = own / groups;
            it.query_first = own % groups * ATTEND_QUERIES;
            it.queries_count = queries - it.query_first < ATTEND_QUERIES ? queries - it.query_first
                                                                         : ATTEND_QUERIES;
            attend_open(&it);
            attend_walk(&it);
            attend_close(&it);
        }
        item += items;
    }
}
