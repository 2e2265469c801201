/* body_attend: softmax(q k) v over the paged KV, over the vector of the file that includes this.
 *
 * An item is up to ATTEND_QUERIES queries, (row, head) pairs that share a kv head and with it every
 * load of K and V; or those of one row and several kv heads, which lie behind each other. It walks
 * the tiles (TILE_TOKENS tokens, four blocks) upward; each query folds exactly its own tiles and, at
 * both ends of its range, exactly its own tokens: what other queries or stale memory are in the same
 * tile never enters its chain (A2, A3).
 *
 * With sinks a row's tokens have two parts, which it walks one after the other: what lies between is in
 * neither.
 *
 * Scores are computed along: lanes are tokens, one query after the other, so that K needs no
 * horizontal sums; or, where enough queries come together, across: lanes are the queries, so that
 * maxima and sums need none either. The chain of a score and the tree of a sum are the same, so
 * which one ran never shows.
 *
 * A bf16 pool is multiplied in pairs: K in pairs of dimensions, V in pairs of tokens, with the
 * probabilities rounded to bf16. An fp32 pool is multiplied in fp32, and always along. */

enum {
    DIM_MAX = BACKEND_HEAD_DIM_MAX,
    TILE_BLOCKS = 4,
    TILE_TOKENS = TILE_BLOCKS * BLOCK_TOKENS,
    ACROSS_MIN = 9, /* queries of a kv head: below, lanes would be left empty */
};

struct attend_item {
    const struct attend_args *a;
    const struct batch_sequence *sequence;
    uint32_t kv_head, kv_heads;          /* several only where all queries are of one row */
    uint32_t query_first, queries_count; /* query i is head i % group of row i / group */
    uint32_t head_queries;               /* queries of one kv head */
    size_t head_bytes;                   /* from one kv head's K or V to the next one's */
    uint32_t first[ATTEND_QUERIES];      /* its first token; ascending */
    uint32_t end[ATTEND_QUERIES];        /* behind its last token; ascending */
    size_t stride;                       /* of the rows of out: head_dim, rounded up to 16 */
    bool bf16, across;
    _Alignas(64) float largest[ATTEND_QUERIES];
    _Alignas(64) float sum[ATTEND_QUERIES];
    _Alignas(64) float q[ATTEND_QUERIES * DIM_MAX]; /* [dim / 2][queries][2] of the pool's dtype */
    /* A tile's scores, then fp32 probabilities: along [queries][tokens], across the other way */
    _Alignas(64) float score[ATTEND_QUERIES * TILE_TOKENS];
    /* Probabilities in bf16. Along [queries][tokens], across [tokens / 2][queries][2] */
    _Alignas(64) uint16_t weight[ATTEND_QUERIES * TILE_TOKENS];
    _Alignas(64) float out[ATTEND_QUERIES * DIM_MAX];
};

struct attend_tile {
    const char *k[TILE_BLOCKS], *v[TILE_BLOCKS]; /* of the item's first kv head */
    const char *ahead[TILE_BLOCKS];              /* the next tile's K; V where there is none */
    uint32_t token;                              /* its first */
    uint32_t block_first,
        block_end;       /* blocks that some query has tokens in: the others may not be there */
    uint32_t begin, end; /* queries with tokens in it: they are consecutive */
    bool whole;          /* all queries take all of its tokens */
};

/* How much of [first, first + count) lies below `at`. */
static inline uint32_t part_below(uint32_t at, uint32_t first, uint32_t count)
{
    return at <= first ? 0 : at - first < count ? at - first : count;
}
/* A query's tokens in the tile, counted from the tile's first. */
static inline uint32_t tile_from(const struct attend_item *it, const struct attend_tile *t,
                                 uint32_t query)
{
    return part_below(it->first[query], t->token, TILE_TOKENS);
}
static inline uint32_t tile_to(const struct attend_item *it, const struct attend_tile *t,
                               uint32_t query)
{
    return part_below(it->end[query], t->token, TILE_TOKENS);
}

/* Where the kv head of a query begins, behind the item's first. */
static inline size_t head_offset(const struct attend_item *it, uint32_t query)
{
    return query / it->head_queries * it->head_bytes;
}
/* Behind the last query of the same kv head, `end` at most. */
static inline uint32_t head_end(const struct attend_item *it, uint32_t query, uint32_t end)
{
    uint32_t next = (query / it->head_queries + 1) * it->head_queries;
    return next < end ? next : end;
}

/* What to ask for while K or V of a kv head is read: the same of the next head, behind the last one what
 * comes then, V or the next tile's K. All have as many bytes. */
struct ahead {
    const char *const *from;
    size_t at;
};
static inline struct ahead ahead_of(const struct attend_item *it, size_t head_at,
                                    const char *const *same, const char *const *then)
{
    size_t next = head_at + it->head_bytes;
    if (next < it->kv_heads * it->head_bytes) return (struct ahead){same, next};
    return (struct ahead){then, 0};
}

/* --- scores --- */

/* `queries` queries against `blocks` blocks, along the tokens. */
static inline __attribute__((always_inline)) void score_bf16(struct attend_item *it,
                                                             const struct attend_tile *t,
                                                             uint32_t block, uint32_t blocks,
                                                             uint32_t query, uint32_t queries)
{
    const size_t head_at = head_offset(it, query);
    const struct ahead ahead = ahead_of(it, head_at, t->k, t->v);
    struct vec sum[TILE_BLOCKS][VEC_SCORE_ROWS];
    for (uint32_t n = 0; n < blocks; n++)
        for (uint32_t j = 0; j < queries; j++)
            sum[n][j] = vec_set1(0);
    const uint16_t *q = (const uint16_t *)it->q + 2 * query;
    for (uint32_t i = 0; i < it->a->shape.head_dim / 2; i++, q += 2 * ATTEND_QUERIES)
        for (uint32_t n = 0; n < blocks; n++) {
            struct pairs tokens = pairs_load(t->k[block + n] + head_at + (size_t)i * 64);
            vec_prefetch(ahead.from[block + n] + ahead.at + (size_t)i * 64);
            for (uint32_t j = 0; j < queries; j++)
                sum[n][j] = vec_dot2(sum[n][j], pairs_set1(q + 2 * j), tokens);
        }
    struct vec scale = vec_set1(it->a->shape.scale);
    for (uint32_t n = 0; n < blocks; n++)
        for (uint32_t j = 0; j < queries; j++)
            vec_store(it->score + (query + j) * TILE_TOKENS + (block + n) * 16,
                      vec_mul(sum[n][j], scale));
}

static inline __attribute__((always_inline)) void score_f32(struct attend_item *it,
                                                            const struct attend_tile *t,
                                                            uint32_t block, uint32_t query,
                                                            uint32_t queries)
{
    struct vec sum[VEC_SCORE_ROWS];
    for (uint32_t j = 0; j < queries; j++)
        sum[j] = vec_set1(0);
    const float *q = it->q + 2 * query;
    const float *k = (const float *)(const void *)(t->k[block] + head_offset(it, query));
    for (uint32_t i = 0; i < it->a->shape.head_dim / 2; i++, q += 2 * ATTEND_QUERIES) {
        struct vec even, odd;
        vec_load_split(k + (size_t)i * 32, &even, &odd);
        for (uint32_t j = 0; j < queries; j++)
            sum[j] =
                vec_fma(vec_set1(q[2 * j]), even, vec_fma(vec_set1(q[2 * j + 1]), odd, sum[j]));
    }
    struct vec scale = vec_set1(it->a->shape.scale);
    for (uint32_t j = 0; j < queries; j++)
        vec_store(it->score + (query + j) * TILE_TOKENS + block * 16, vec_mul(sum[j], scale));
}

/* Queries [query, end), of one kv head. */
static void score_head(struct attend_item *it, const struct attend_tile *t, uint32_t query,
                       uint32_t end)
{
    const uint32_t begin = query;
    if (it->bf16 && t->block_end - t->block_first == TILE_BLOCKS) {
        for (; end - query >= 2; query += 2)
            score_bf16(it, t, 0, TILE_BLOCKS, query, 2);
        if (query < end) score_bf16(it, t, 0, TILE_BLOCKS, query, 1);
        return;
    }
    for (uint32_t n = t->block_first; n < t->block_end; n++) {
        query = begin;
        for (; end - query >= VEC_SCORE_ROWS; query += VEC_SCORE_ROWS)
            it->bf16 ? score_bf16(it, t, n, 1, query, VEC_SCORE_ROWS)
                     : score_f32(it, t, n, query, VEC_SCORE_ROWS);
        for (; query < end; query++)
            it->bf16 ? score_bf16(it, t, n, 1, query, 1) : score_f32(it, t, n, query, 1);
    }
}

static void score_along(struct attend_item *it, const struct attend_tile *t)
{
    for (uint32_t query = t->begin, end; query < t->end; query = end) {
        end = head_end(it, query, t->end);
        score_head(it, t, query, end);
    }
}

/* All queries against `VEC_ACROSS` tokens at a time, across. */
static void score_across(struct attend_item *it, const struct attend_tile *t)
{
    struct vec scale = vec_set1(it->a->shape.scale);
    uint32_t end = t->block_end * BLOCK_TOKENS;
    for (uint32_t token = t->block_first * BLOCK_TOKENS; token < end; token += VEC_ACROSS) {
        struct vec sum[VEC_ACROSS];
        for (uint32_t j = 0; j < VEC_ACROSS; j++)
            sum[j] = vec_set1(0);
        const uint16_t *k = (const uint16_t *)(const void *)t->k[token / BLOCK_TOKENS];
        const uint16_t *q = (const uint16_t *)it->q;
        k += 2 * (token % BLOCK_TOKENS);
        for (uint32_t i = 0; i < it->a->shape.head_dim / 2; i++, k += 32, q += 32) {
            struct pairs queries = pairs_load(q);
            for (uint32_t j = 0; j < VEC_ACROSS; j++)
                sum[j] = vec_dot2(sum[j], queries, pairs_set1(k + 2 * j));
        }
        for (uint32_t j = 0; j < VEC_ACROSS; j++)
            vec_store(it->score + (token + j) * 16, vec_mul(sum[j], scale));
    }
}

/* --- probabilities: scores become them relative to each query's largest score so far; `rescale` is
 * what the query's earlier sums shrink by (A4) --- */

/* Lanes outside of the query's range become `other`. */
static inline struct vec own_lanes(struct vec v, uint32_t from, uint32_t to, uint32_t block,
                                   struct vec other)
{
    return vec_keep(v, part_below(from, block * 16, 16), part_below(to, block * 16, 16), other);
}

/* The query's scores of the tile, `whole`: all of them are its own. */
static inline __attribute__((always_inline)) float
tile_largest(const struct attend_item *it, const struct attend_tile *t, uint32_t query, bool whole)
{
    const struct vec low = vec_set1(-INFINITY);
    const uint32_t from = whole ? 0 : tile_from(it, t, query);
    const uint32_t to = whole ? TILE_TOKENS : tile_to(it, t, query);
    struct vec most = low;
    for (uint32_t n = from / BLOCK_TOKENS; n * BLOCK_TOKENS < to; n++) {
        struct vec s = vec_load(it->score + query * TILE_TOKENS + n * 16);
        most = vec_max(whole ? s : own_lanes(s, from, to, n, low), most);
    }
    return vec_largest(most);
}

/* Its probabilities, and their sum. */
static inline __attribute__((always_inline)) float
tile_weights(struct attend_item *it, const struct attend_tile *t, uint32_t query, bool whole)
{
    const struct vec zero = vec_set1(0), largest = vec_set1(it->largest[query]);
    const uint32_t begin = whole ? 0 : t->block_first, end = whole ? TILE_BLOCKS : t->block_end;
    const uint32_t from = whole ? 0 : tile_from(it, t, query);
    const uint32_t to = whole ? TILE_TOKENS : tile_to(it, t, query);
    struct vec sum = zero;
    for (uint32_t n = begin; n < end; n++) {
        uint32_t at = query * TILE_TOKENS + n * 16;
        struct vec p = vec_exp(vec_sub(vec_load(it->score + at), largest));
        if (!whole) p = own_lanes(p, from, to, n, zero);
        sum = vec_add(sum, p);
        if (it->bf16)
            vec_store_bf16(it->weight + at, p, 16);
        else
            vec_store(it->score + at, p);
    }
    return vec_sum(sum);
}

static inline __attribute__((always_inline)) void
softmax_along_form(struct attend_item *it, const struct attend_tile *t, float *rescale, bool whole)
{
    _Alignas(64) float sums[ATTEND_QUERIES] = {0};
    struct vec before = vec_load(it->largest);
    for (uint32_t j = t->begin; j < t->end; j++) {
        float largest = tile_largest(it, t, j, whole);
        if (largest > it->largest[j]) it->largest[j] = largest;
    }
    struct vec factor = vec_exp(vec_sub(before, vec_load(it->largest)));
    vec_store(rescale, factor);
    for (uint32_t j = t->begin; j < t->end; j++)
        sums[j] = tile_weights(it, t, j, whole);
    vec_store(it->sum, vec_fma(vec_load(it->sum), factor, vec_load(sums)));
}

static void softmax_along(struct attend_item *it, const struct attend_tile *t, float *rescale)
{
    if (t->whole)
        softmax_along_form(it, t, rescale, true);
    else
        softmax_along_form(it, t, rescale, false);
}

/* The queries that take a token: those that began and did not end. Tokens are asked for upward. */
struct own_queries {
    uint32_t first, end;
};
static inline void own_queries_at(struct own_queries *own, const struct attend_item *it,
                                  uint32_t token)
{
    while (own->first < it->queries_count && it->end[own->first] <= token)
        own->first++;
    while (own->end < it->queries_count && it->first[own->end] <= token)
        own->end++;
}

static inline __attribute__((always_inline)) void
softmax_across_form(struct attend_item *it, const struct attend_tile *t, float *rescale, bool whole)
{
    const struct vec low = vec_set1(-INFINITY), zero = vec_set1(0);
    const uint32_t begin = t->block_first * BLOCK_TOKENS, end = t->block_end * BLOCK_TOKENS;
    struct own_queries own = {0};
    struct vec before = vec_load(it->largest), largest = before, sum[BLOCK_TOKENS];
    for (uint32_t i = begin; i < end; i++) {
        struct vec s = vec_load(it->score + i * 16);
        if (!whole) own_queries_at(&own, it, t->token + i);
        largest = vec_max(whole ? s : vec_keep(s, own.first, own.end, low), largest);
    }
    struct vec factor = vec_exp(vec_sub(before, largest));
    vec_store(it->largest, largest);
    vec_store(rescale, factor);
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
        sum[i] = zero;
    own = (struct own_queries){0};
    for (uint32_t pair = begin; pair < end; pair += 2) {
        struct vec p[2];
        for (uint32_t i = 0; i < 2; i++) {
            p[i] = vec_exp(vec_sub(vec_load(it->score + (pair + i) * 16), largest));
            if (!whole) own_queries_at(&own, it, t->token + pair + i);
            if (!whole) p[i] = vec_keep(p[i], own.first, own.end, zero);
            uint32_t at = (pair + i) % BLOCK_TOKENS;
            sum[at] = vec_add(sum[at], p[i]);
        }
        vec_store_pairs(it->weight + pair * 16, p[0], p[1]);
    }
    for (uint32_t half = BLOCK_TOKENS / 2; half > 0; half /= 2) /* the tree of vec_sum */
        for (uint32_t i = 0; i < half; i++)
            sum[i] = vec_add(sum[i], sum[i + half]);
    vec_store(it->sum, vec_fma(vec_load(it->sum), factor, sum[0]));
}

static void softmax_across(struct attend_item *it, const struct attend_tile *t, float *rescale)
{
    if (t->whole)
        softmax_across_form(it, t, rescale, true);
    else
        softmax_across_form(it, t, rescale, false);
}

/* --- out = out * rescale + p v --- */

enum weigh_form { WEIGH_F32, WEIGH_ALONG, WEIGH_ACROSS };

/* Some queries over tokens [from, to) of the tile, for `vecs` vectors of dimensions from d on. With
 * `edges` from and to may be odd: the other half of a pair is selected away. */
static inline __attribute__((always_inline)) void
weigh_part(struct attend_item *it, const struct attend_tile *t, uint32_t query, uint32_t queries,
           uint32_t from, uint32_t to, const float *rescale, uint32_t d, uint32_t vecs,
           enum weigh_form form, bool edges)
{
    const uint32_t dim = it->a->shape.head_dim, unit = form == WEIGH_F32 ? 1 : 2;
    const size_t head_at = form == WEIGH_ACROSS ? 0 : head_offset(it, query);
    const struct ahead ahead = ahead_of(it, head_at, t->v, t->ahead);
    float *out = it->out + query * it->stride + d;
    struct vec sum[VEC_WEIGH_ROWS][VEC_WEIGH_VECS];
    for (uint32_t j = 0; j < queries; j++)
        for (uint32_t c = 0; c < vecs; c++)
            sum[j][c] =
                vec_mul(vec_load(out + j * it->stride + c * 16), vec_set1(rescale[query + j]));
    for (uint32_t token = from / unit * unit; token < to; token += unit) {
        const char *block = t->v[token / BLOCK_TOKENS] + head_at;
        const uint32_t at = token % BLOCK_TOKENS * dim + unit * d;
        if (form == WEIGH_F32) {
            const float *p = it->score + query * TILE_TOKENS + token;
            const float *wide = (const float *)(const void *)block + at;
            for (uint32_t c = 0; c < vecs; c++) {
                struct vec v = vec_load_some(wide + c * 16, dim - d - c * 16);
                for (uint32_t j = 0; j < queries; j++)
                    sum[j][c] = vec_fma(vec_set1(p[j * TILE_TOKENS]), v, sum[j][c]);
            }
            continue;
        }
        const uint16_t *p = form == WEIGH_ALONG ? it->weight + query * TILE_TOKENS + token
                                                : it->weight + token * ATTEND_QUERIES + query * 2;
        const uint16_t *narrow = (const uint16_t *)(const void *)block + at;
        struct pairs v[VEC_WEIGH_VECS];
        for (uint32_t c = 0; c < vecs; c++) {
            v[c] = vecs > 1 ? pairs_load(narrow + c * 32) : pairs_load_some(narrow, dim - d);
            if (edges) v[c] = pairs_keep(v[c], token >= from, token + 1 < to);
            if (form == WEIGH_ALONG)
                vec_prefetch(ahead.from[token / BLOCK_TOKENS] + ahead.at + (at + c * 32) * 2);
        }
        for (uint32_t j = 0; j < queries; j++) {
            struct pairs weight = pairs_set1(p + j * (form == WEIGH_ALONG ? TILE_TOKENS : 2));
            for (uint32_t c = 0; c < vecs; c++)
                sum[j][c] = vec_dot2(sum[j][c], weight, v[c]);
        }
    }
    for (uint32_t j = 0; j < queries; j++)
        for (uint32_t c = 0; c < vecs; c++)
            vec_store(out + j * it->stride + c * 16, sum[j][c]);
}

static inline __attribute__((always_inline)) void
weigh(struct attend_item *it, const struct attend_tile *t, uint32_t query, uint32_t queries,
      uint32_t from, uint32_t to, const float *rescale, enum weigh_form form, bool edges)
{
    uint32_t d = 0;
    for (; d + 16 * VEC_WEIGH_VECS <= it->a->shape.head_dim; d += 16 * VEC_WEIGH_VECS)
        weigh_part(it, t, query, queries, from, to, rescale, d, VEC_WEIGH_VECS, form, edges);
    for (; d < it->stride; d += 16)
        weigh_part(it, t, query, queries, from, to, rescale, d, 1, form, edges);
}

/* `queries` queries: together the whole pairs that all take, before and behind these each alone. */
static inline __attribute__((always_inline)) void weigh_group(struct attend_item *it,
                                                              const struct attend_tile *t,
                                                              uint32_t query, uint32_t queries,
                                                              float *rescale, enum weigh_form form)
{
    uint32_t first = 0, end = TILE_TOKENS;
    if (t->whole) { /* the same, without looking for the ends */
        weigh(it, t, query, queries, 0, TILE_TOKENS, rescale, form, false);
        return;
    }
    for (uint32_t j = query; j < query + queries; j++) {
        uint32_t from = (tile_from(it, t, j) + 1) / 2 * 2, to = tile_to(it, t, j) / 2 * 2;
        first = from > first ? from : first;
        end = to < end ? to : end;
    }
    end = end > first ? end : first;
    for (uint32_t j = query; j < query + queries; j++) {
        uint32_t from = tile_from(it, t, j), to = tile_to(it, t, j);
        if (from >= first) continue;
        weigh(it, t, j, 1, from, to < first ? to : first, rescale, form, true);
        rescale[j] = 1;
    }
    weigh(it, t, query, queries, first, end, rescale, form, false);
    for (uint32_t j = query; j < query + queries; j++) {
        uint32_t to = tile_to(it, t, j);
        rescale[j] = 1;
        if (to > end) weigh(it, t, j, 1, end, to, rescale, form, true);
    }
}

static inline __attribute__((always_inline)) void weigh_form(struct attend_item *it,
                                                             const struct attend_tile *t,
                                                             float *rescale, enum weigh_form form)
{
    for (uint32_t query = t->begin, end; query < t->end; query = end) {
        end = head_end(it, query, t->end);
        for (; end - query >= VEC_WEIGH_ROWS; query += VEC_WEIGH_ROWS)
            weigh_group(it, t, query, VEC_WEIGH_ROWS, rescale, form);
        for (; end - query >= 2; query += 2)
            weigh_group(it, t, query, 2, rescale, form);
        if (query < end) weigh_group(it, t, query, 1, rescale, form);
    }
}

static void attend_weigh(struct attend_item *it, const struct attend_tile *t, float *rescale)
{
    if (!it->bf16)
        weigh_form(it, t, rescale, WEIGH_F32);
    else if (it->across)
        weigh_form(it, t, rescale, WEIGH_ACROSS);
    else
        weigh_form(it, t, rescale, WEIGH_ALONG);
}

/* --- the walk --- */

static void tile_open(struct attend_tile *t, const struct attend_item *it, uint32_t token)
{
    const struct attend_args *a = it->a;
    const struct kv_geometry *g = &a->kv.geometry;
    const uint32_t *table = a->batch->table + it->sequence->table_first + token / BLOCK_TOKENS;
    uint32_t last = it->queries_count - 1;
    *t = (struct attend_tile){.token = token, .end = it->queries_count};
    t->block_first = tile_from(it, t, 0) / BLOCK_TOKENS;
    t->block_end = blocks_for_tokens(tile_to(it, t, last));
    t->whole = tile_to(it, t, 0) == TILE_TOKENS && tile_from(it, t, last) == 0;
    for (uint32_t n = t->block_first; n < t->block_end; n++) {
        t->k[n] = (const char *)a->kv.base + table[n] * kv_block_bytes(g) +
                  a->layer * kv_layer_bytes(g) + it->kv_head * it->head_bytes;
        t->v[n] = t->ahead[n] = t->k[n] + kv_part_bytes(g);
    }
    while (tile_to(it, t, t->begin) == 0)
        t->begin++;
    while (tile_from(it, t, t->end - 1) == TILE_TOKENS)
        t->end--;
}

static void attend_walk(struct attend_item *it)
{
    uint32_t end = it->end[it->queries_count - 1];
    struct attend_tile tile[2];
    uint32_t token = it->first[0] / TILE_TOKENS * TILE_TOKENS;
    tile_open(&tile[0], it, token);
    for (uint32_t i = 0; token < end; i ^= 1) {
        _Alignas(64) float rescale[ATTEND_QUERIES];
        struct attend_tile *t = &tile[i], *next = &tile[i ^ 1];
        token += TILE_TOKENS;
        if (token < end) {
            tile_open(next, it, token);
            for (uint32_t n = next->block_first; n < next->block_end; n++)
                t->ahead[n] = next->k[n];
        }
        if (it->across) {
            score_across(it, t);
            softmax_across(it, t, rescale);
        } else {
            score_along(it, t);
            softmax_along(it, t, rescale);
        }
        attend_weigh(it, t, rescale);
    }
}

static const float *attend_query(const struct attend_item *it, uint32_t j, size_t *out_row,
                                 uint32_t *out_column)
{
    const struct attend_args *a = it->a;
    uint32_t group = a->shape.heads / a->shape.kv_heads, query = it->query_first + j;
    uint32_t row = it->kv_heads > 1 ? 0 : query / group;
    uint32_t head = it->kv_head * group + (it->kv_heads > 1 ? query : query % group);
    row += it->sequence->row_first;
    *out_row = row;
    *out_column = head * a->shape.head_dim;
    return a->q + *out_row * a->q_stride + *out_column;
}

static void attend_open(struct attend_item *it)
{
    const struct attend_args *a = it->a;
    uint32_t dim = a->shape.head_dim;
    uint16_t rounded[DIM_MAX];
    it->bf16 = a->kv.geometry.dtype == DTYPE_BF16;
    it->across = it->bf16 && it->head_queries >= ACROSS_MIN;
    for (uint32_t j = 0; j < ATTEND_QUERIES; j++) {
        it->largest[j] = -FLT_MAX; /* finite, so that no difference of maxima is NaN */
        it->sum[j] = 0;
        if (j >= it->queries_count) continue;
        size_t row;
        uint32_t column;
        const float *q = attend_query(it, j, &row, &column);
        for (uint32_t d = 0; d < dim; d += 16)
            vec_store_bf16(rounded + d, vec_load_some(q + d, dim - d), dim - d);
        for (uint32_t d = 0; d < dim; d += 2) {
            uint32_t at = (d / 2 * ATTEND_QUERIES + j) * 2;
            if (it->bf16)
                memcpy((uint16_t *)it->q + at, rounded + d, 2 * sizeof *rounded);
            else
                memcpy(it->q + at, q + d, 2 * sizeof *q);
        }
        memset(it->out + j * it->stride, 0, it->stride * sizeof *it->out);
    }
}

static struct kv_window attend_window(const struct attend_item *it)
{
    if (it->sequence->window.tokens) return it->sequence->window;
    return (struct kv_window){it->a->batch->window, 0};
}

/* Each query's tokens [from, to) that it sees; a query that has none there gets none. */
static void attend_bound(struct attend_item *it, struct kv_window w, uint32_t from, uint32_t to)
{
    uint32_t group = it->a->shape.heads / it->a->shape.kv_heads;
    for (uint32_t j = 0; j < it->queries_count; j++) {
        uint32_t row = it->kv_heads > 1 ? 0 : (it->query_first + j) / group;
        uint32_t position = it->sequence->position + row;
        uint32_t first = from > 0 || w.sinks == 0 ? kv_window_first(w, position) : 0;
        uint32_t end = position + 1 < to ? position + 1 : to;
        it->first[j] = first > from ? first : from;
        it->end[j] = end > from ? end : from;
    }
}

static void attend_all(struct attend_item *it)
{
    struct kv_window w = attend_window(it);
    if (w.sinks > 0) {
        attend_bound(it, w, 0, w.sinks);
        attend_walk(it);
    }
    attend_bound(it, w, w.sinks, UINT32_MAX);
    if (it->end[it->queries_count - 1] > w.sinks) attend_walk(it);
}

static void attend_close(struct attend_item *it)
{
    uint32_t dim = it->a->shape.head_dim;
    for (uint32_t j = 0; j < it->queries_count; j++) {
        size_t row;
        uint32_t column;
        attend_query(it, j, &row, &column);
        struct vec scale = vec_set1(1.0f / it->sum[j]);
        for (uint32_t d = 0; d < dim; d += 16)
            operand_store(&it->a->out, row, column + d,
                          vec_mul(vec_load(it->out + j * it->stride + d), scale), dim - d);
    }
}

/* Item `own` of its sequence. */
static void attend_begin(struct attend_item *it, uint32_t own)
{
    const struct attend_args *a = it->a;
    const struct attend_shape *s = &a->shape;
    uint32_t groups = attend_groups(it->sequence, s);
    uint32_t together = it->sequence->rows_count == 1 ? a->together : 1;
    uint32_t queries = it->sequence->rows_count * (s->heads / s->kv_heads);
    it->kv_head = own / groups * together;
    it->kv_heads = s->kv_heads - it->kv_head < together ? s->kv_heads - it->kv_head : together;
    it->query_first = own % groups * ATTEND_QUERIES;
    queries -= it->query_first;
    it->head_queries = queries < ATTEND_QUERIES ? queries : ATTEND_QUERIES;
    it->queries_count = it->head_queries * it->kv_heads;
}

static void attend(const void *args, uint32_t first, uint32_t last)
{
    const struct attend_args *a = args;
    struct attend_item it;
    it.a = a;
    it.stride = (a->shape.head_dim + 15) / 16 * 16;
    it.head_bytes = kv_part_bytes(&a->kv.geometry) / a->kv.geometry.kv_heads;
    uint32_t item = 0;
    for (uint32_t i = 0; i < a->batch->sequences_count && item < last; i++) {
        it.sequence = &a->batch->sequence[i];
        uint32_t items = attend_items(it.sequence, a);
        uint32_t own = item < first ? first - item : 0;
        for (; own < items && item + own < last; own++) {
            attend_begin(&it, own);
            attend_open(&it);
            attend_all(&it);
            attend_close(&it);
        }
        item += items;
    }
}
