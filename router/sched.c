#include "router/sched.h"

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"

uint64_t sched_queue_key(uint64_t arrived_ns, int32_t priority)
{
    if (priority > SCHED_PRIORITY_MAX) priority = SCHED_PRIORITY_MAX;
    if (priority < -SCHED_PRIORITY_MAX) priority = -SCHED_PRIORITY_MAX;
    return arrived_ns + (uint64_t)(priority + SCHED_PRIORITY_MAX) * SCHED_LEVEL_NS;
}

const char *sched_waiting_for(enum sched_answer answer)
{
    static const char *const texts[] = {
        [SCHED_PICKED] = "requests before it are not placed yet",
        [SCHED_NO_NODES] = "no decode node is ready",
        [SCHED_NO_PREFILL] = "all prefill nodes are busy",
        [SCHED_NO_DECODE] = "no decode node has room",
        [SCHED_NEVER] = "no decode node is large enough",
    };
    return texts[answer];
}

/* Who has less than a share has a window besides: what the others have sent does not keep it waiting. */
static bool window_open(const struct sched_node *n, const struct sched_job *job, uint32_t tokens)
{
    uint32_t sent = job->under_share ? n->outstanding_under : n->outstanding_tokens;
    return sent == 0 || (uint64_t)sent + tokens <= n->window_tokens;
}

static uint32_t cached_on(const struct sched_job *job, uint32_t node)
{
    uint32_t most = job->tokens > 0 ? job->tokens - 1 : 0; /* the last one's logits are wanted */
    uint32_t cached = job->cached ? job->cached[node] : 0;
    return cached < most ? cached : most;
}

uint32_t sched_left(const struct sched_job *job, uint32_t node)
{
    return job->tokens - cached_on(job, node);
}

static uint64_t load_on(const struct sched_job *job, uint32_t node)
{
    return job->load_ns ? job->load_ns[node] : 0;
}

/* Of the nodes that it is known of; 0: of none. */
static uint32_t usual_token_ns(const struct sched_node *const *nodes, uint32_t count)
{
    uint64_t sum = 0, known = 0;
    for (uint32_t i = 0; i < count; i++)
        if (nodes[i]->open && nodes[i]->token_ns) {
            sum += nodes[i]->token_ns;
            known++;
        }
    return known ? (uint32_t)(sum / known) : 0;
}

/* Time until a prompt sent now would have been computed, in tokens where no speed is known. */
static uint64_t work_ahead(const struct sched_node *n, uint32_t tokens, uint32_t usual_ns)
{
    uint64_t token_ns = n->token_ns ? n->token_ns : usual_ns ? usual_ns : 1;
    return ((uint64_t)n->outstanding_tokens + tokens) * token_ns;
}

static uint32_t blocks_left(const struct sched_node *n)
{
    uint32_t by_us = n->blocks_used < n->blocks_total ? n->blocks_total - n->blocks_used : 0;
    return by_us < n->blocks_free ? by_us : n->blocks_free;
}

uint32_t sched_blocks_at_once(const struct sched_node *n, const struct sched_job *job,
                              uint32_t blocks)
{
    if (job->window.tokens == 0) return blocks;
    return kv_window_blocks(job->window, blocks * BLOCK_TOKENS, n->kv_ahead);
}

/* Whether P could ever compute the prompt. */
static bool prompt_fits(const struct sched_node *n, const struct sched_job *job)
{
    uint32_t blocks = job->window.tokens ? blocks_for_tokens(job->tokens) : job->blocks;
    return n->blocks_total >= sched_blocks_at_once(n, job, blocks);
}

/* Of `all`, what is not for this job, at least one; a node that nobody uses keeps nothing. */
static uint32_t kept(const struct sched_node *n, const struct sched_job *job, uint32_t all)
{
    return n->running > 0 ? (uint32_t)(((uint64_t)all * job->keep_percent + 99) / 100) : 0;
}

/* The most that a job may ask for; 0: there is no place for one more. */
static uint32_t room_for(const struct sched_node *n, const struct sched_job *job, uint64_t now_ns)
{
    uint32_t left = blocks_left(n), keeps = kept(n, job, n->blocks_total);
    bool place = n->running + kept(n, job, n->sequences_max) < n->sequences_max;
    return now_ns >= n->full_until_ns && place && left > keeps ? left - keeps : 0;
}

bool sched_has_room(const struct sched_node *n, const struct sched_job *job, uint64_t now_ns)
{
    uint32_t room = room_for(n, job, now_ns);
    return room > 0 && job->blocks <= room;
}

struct sched_room sched_room(const struct sched_node *const *nodes, uint32_t nodes_count,
                             uint32_t keep_percent, uint64_t now_ns)
{
    const struct sched_job job = {.keep_percent = keep_percent};
    struct sched_room all = {.largest = SCHED_NODE_NONE};
    for (uint32_t i = 0; i < nodes_count; i++) {
        const struct sched_node *n = nodes[i];
        if (!n->open || n->role != ROLE_DECODE) continue;
        uint32_t room = room_for(n, &job, now_ns);
        if (room > all.blocks) all.blocks = room;
        if (all.largest == SCHED_NODE_NONE || n->blocks_total > nodes[all.largest]->blocks_total)
            all.largest = i;
    }
    return all;
}

bool sched_no_room(const struct sched_node *const *nodes, const struct sched_room *room,
                   const struct sched_job *job)
{
    if (job->prefill_only || job->no_token || room->largest == SCHED_NODE_NONE) return false;
    const struct sched_node *n = nodes[room->largest];
    return job->blocks > room->blocks &&
           sched_blocks_at_once(n, job, job->blocks_full) <= n->blocks_total;
}

uint64_t sched_link(const char *address)
{
    bool of_host = strncmp(address, "shm:", 4) == 0 || strncmp(address, "ipc:", 4) == 0;
    uint64_t hash = hash64(address, strcspn(address, of_host ? "-" : ":"));
    return hash ? hash : 1;
}

bool sched_share_link(const struct sched_node *a, const struct sched_node *b)
{
    for (int i = 0; i < MSG_ADDRESSES_MAX && a->links[i]; i++)
        for (int k = 0; k < MSG_ADDRESSES_MAX && b->links[k]; k++)
            if (a->links[i] == b->links[k]) return true;
    return false;
}

void sched_rate_add(struct sched_rate *rate, uint64_t bytes, uint64_t ns)
{
    rate->bytes = rate->bytes - rate->bytes / 8 + bytes;
    rate->ns = rate->ns - rate->ns / 8 + (ns ? ns : 1);
    double per_s = (double)rate->bytes * 1e9 / (double)rate->ns;
    rate->bytes_per_s = per_s < 1 ? 1 : per_s < 1e18 ? (uint64_t)per_s : (uint64_t)1e18;
}

uint64_t sched_transfer_ns(const struct sched_node *const *nodes, const struct sched_node *from,
                           uint32_t to, const struct sched_job *job)
{
    uint64_t per_s = from->rates ? from->rates[to].bytes_per_s : 0;
    if (per_s == 0 && job->cached) per_s = job->usual_bytes_per_s;
    if (per_s == 0) return from->host == nodes[to]->host ? 0 : 1;
    double share = job->tokens ? (double)sched_left(job, to) / (double)job->tokens : 1;
    double ns = (double)job->kv_bytes * share * 1e9 / (double)per_s;
    return 2 + (ns < 1e15 ? (uint64_t)ns : (uint64_t)1e15);
}

/* Bytes of so many of its tokens. */
static uint64_t bytes_of(const struct sched_job *job, uint32_t tokens)
{
    return (uint64_t)((double)job->kv_bytes * (double)tokens / (double)job->tokens);
}

static uint64_t fill_ns(const struct sched_node *from, uint32_t to, uint64_t bytes,
                        const struct sched_rules *rules)
{
    uint64_t per_s = from->rates ? from->rates[to].bytes_per_s : 0;
    double ns = per_s ? (double)bytes * 1e9 / (double)per_s : 0; /* never tried: it is to be */
    return rules->hand_over_ns + (ns < 1e15 ? (uint64_t)ns : (uint64_t)1e15);
}

struct sched_fill sched_fill(const struct sched_node *const *nodes, uint32_t nodes_count,
                             const struct sched_job *job, const struct sched_rules *rules,
                             uint32_t to)
{
    struct sched_fill best = {0};
    const struct sched_node *p = nodes[to];
    bool always = rules->backfill == BACKFILL_ALWAYS;
    if (!job->pooled || rules->backfill == BACKFILL_NEVER || job->window.tokens) return best;
    uint64_t token_ns = p->token_ns ? p->token_ns : usual_token_ns(nodes, nodes_count);
    for (uint32_t i = 0; i < nodes_count; i++) {
        uint32_t there = job->cached[to], has = job->pooled[i];
        if (i == to || has <= there || !nodes[i]->open || !sched_share_link(nodes[i], p)) continue;
        struct sched_fill fill = {has, i};
        fill.fill_ns = fill_ns(nodes[i], to, bytes_of(job, has - there), rules);
        fill.compute_ns = token_ns * (has - there);
        if (!always && fill.fill_ns >= fill.compute_ns) continue;
        /* What is left to compute counts, too. */
        uint64_t cost_ns = fill.fill_ns + token_ns * (job->tokens - has);
        uint64_t best_ns = best.fill_ns + token_ns * (job->tokens - best.tokens);
        if (best.tokens == 0 || cost_ns < best_ns) best = fill;
    }
    return best;
}

/* Nodes of a role that could compute the prompt, whoever would have done so first before the others; those with
 * closed windows are last. */
struct line {
    struct place {
        uint64_t cost_ns; /* until it would be computed there; UINT64_MAX: its window is closed */
        uint32_t index;
    } place[SCHED_NODES_MAX];
    uint32_t count;
};

static bool goes_before(const struct place *a, const struct place *b)
{
    return a->cost_ns != b->cost_ns ? a->cost_ns < b->cost_ns : a->index < b->index;
}

static int compare_places(const void *a, const void *b)
{
    return goes_before(a, b) ? -1 : goes_before(b, a);
}

static void line_up(const struct sched_node *const *nodes, uint32_t nodes_count,
                    const struct sched_job *job, enum role role, struct line *line)
{
    line->count = 0;
    /* One whose speed is not known yet is the first choice, unless there is something to lose. */
    uint32_t usual_ns = job->cached ? usual_token_ns(nodes, nodes_count) : 0;
    for (uint32_t i = 0; i < nodes_count; i++) {
        const struct sched_node *n = nodes[i];
        uint32_t left = sched_left(job, i);
        if (!n->open || n->role != role || !prompt_fits(n, job)) continue;
        uint64_t cost_ns = UINT64_MAX;
        if (window_open(n, job, left)) cost_ns = work_ahead(n, left, usual_ns);
        /* else it is no time */
        if (cost_ns != UINT64_MAX && (n->token_ns || usual_ns)) cost_ns += load_on(job, i);
        line->place[line->count++] = (struct place){cost_ns, i};
    }
    qsort(line->place, line->count, sizeof line->place[0], compare_places);
}

struct prefill_pick {
    uint32_t index;   /* SCHED_NODE_NONE: none has an open window */
    uint64_t cost_ns; /* until the prompt would be computed, and be on D */
    bool any;         /* one could do it, though its window may be closed */
    struct sched_fill fill;
};

/* For the D of index `to`, with a link to it; SCHED_NODE_NONE: for none. */
static struct prefill_pick pick_from(const struct line *line, const struct sched_node *const *nodes,
                                     const struct sched_job *job, uint32_t to)
{
    struct prefill_pick best = {.index = SCHED_NODE_NONE, .cost_ns = UINT64_MAX};
    for (uint32_t i = 0; i < line->count && line->place[i].cost_ns <= best.cost_ns; i++) {
        struct place p = line->place[i];
        if (to != SCHED_NODE_NONE && !sched_share_link(nodes[p.index], nodes[to])) continue;
        best.any = true;
        if (p.cost_ns == UINT64_MAX) break;
        if (to != SCHED_NODE_NONE) p.cost_ns += sched_transfer_ns(nodes, nodes[p.index], to, job);
        if (!goes_before(&p, &(struct place){best.cost_ns, best.index})) continue;
        best.index = p.index;
        best.cost_ns = p.cost_ns;
    }
    return best;
}

/* Negative: a has the emptier batch. */
static int compare_load(const struct sched_node *a, const struct sched_node *b)
{
    uint64_t load_a = (uint64_t)a->running * b->sequences_max;
    uint64_t load_b = (uint64_t)b->running * a->sequences_max;
    return load_a < load_b ? -1 : load_a > load_b;
}

/* What all of the facts come to that an offer is made from. */
struct view {
    const struct sched_node *const *nodes;
    uint32_t count;
    const struct sched_job *job;
    const struct sched_rules *rules;
    uint32_t usual_token_ns;
    bool by_cost; /* a D holds some of the prompt */
    struct line *prefills;
    uint32_t filled; /* whose fill this is; SCHED_NODE_NONE: nobody's */
    struct sched_fill fill;
};

static struct prefill_pick pick_prefill(struct view *v, uint32_t to)
{
    struct prefill_pick p = pick_from(v->prefills, v->nodes, v->job, to);
    if (p.index == SCHED_NODE_NONE) return p;
    if (v->filled != p.index) v->fill = sched_fill(v->nodes, v->count, v->job, v->rules, p.index);
    v->filled = p.index;
    p.fill = v->fill;
    uint64_t saved_ns = p.fill.compute_ns > p.fill.fill_ns ? p.fill.compute_ns - p.fill.fill_ns : 0;
    p.cost_ns -= saved_ns < p.cost_ns ? saved_ns : p.cost_ns;
    return p;
}

static bool some_decode_holds(const struct sched_node *const *nodes, uint32_t count,
                              const struct sched_job *job)
{
    for (uint32_t i = 0; job->cached && i < count; i++)
        if (job->cached[i] > 0 && nodes[i]->role == ROLE_DECODE && nodes[i]->open) return true;
    return false;
}

/* A D, the P for it, and what the two would cost. */
struct offer {
    uint32_t decode; /* SCHED_NODE_NONE: there is none */
    struct prefill_pick prefill;
    bool local, ready; /* ready: it can begin now */
    uint64_t cost_ns;  /* with view.by_cost */
};

/* One that never computed a prompt is taken to be like the others, if that is of use. */
static uint64_t decode_token_ns(const struct view *v, uint32_t d)
{
    if (v->nodes[d]->token_ns || !v->by_cost) return v->nodes[d]->token_ns;
    return v->usual_token_ns;
}

/* Of computing on D what it does not hold, for this request and the streams that wait meanwhile. */
static uint64_t local_ns(const struct view *v, uint32_t d)
{
    return sched_left(v->job, d) * decode_token_ns(v, d) * (1 + (uint64_t)v->nodes[d]->running) +
           load_on(v->job, d);
}

/* What P's way costs beyond computing what D would have to compute too. */
static uint64_t detour_ns(const struct view *v, uint32_t d, const struct prefill_pick *p)
{
    if (p->index == SCHED_NODE_NONE || cached_on(v->job, d) <= cached_on(v->job, p->index))
        return 0;
    uint64_t token_ns = v->nodes[p->index]->token_ns;
    if (token_ns == 0) token_ns = v->usual_token_ns ? v->usual_token_ns : 1;
    uint64_t same_ns = sched_left(v->job, d) * token_ns;
    return p->cost_ns > same_ns ? p->cost_ns - same_ns : 0;
}

static bool cheaper_local(const struct view *v, uint32_t d, const struct prefill_pick *p)
{
    if (v->rules->disaggregate == DISAGGREGATE_ALWAYS) return false;
    if (v->rules->disaggregate == DISAGGREGATE_NEVER) return true;
    return decode_token_ns(v, d) > 0 &&
           local_ns(v, d) < v->rules->hand_over_ns + detour_ns(v, d, p);
}

static uint64_t batch_ns(const struct view *v, uint32_t d)
{
    uint64_t row_ns = decode_token_ns(v, d);
    return v->nodes[d]->running * (uint64_t)SCHED_STREAM_TOKENS * (row_ns ? row_ns : 1);
}

static struct offer offer_of(struct view *v, uint32_t d)
{
    struct offer o = {.decode = d, .prefill = pick_prefill(v, d)};
    bool is_free = o.prefill.index != SCHED_NODE_NONE;
    o.local = !o.prefill.any || cheaper_local(v, d, &o.prefill);
    o.ready = is_free || (v->by_cost && o.local);
    if (!v->by_cost || !o.ready) return o;
    uint64_t remote_ns = o.prefill.cost_ns + v->rules->hand_over_ns;
    o.cost_ns = batch_ns(v, d) + (o.local ? local_ns(v, d) : remote_ns);
    return o;
}

/* Negative: a is to be taken rather than b. 0: the one of the lower index is. */
static int compare_offers(const struct view *v, const struct offer *a, const struct offer *b)
{
    const struct sched_node *node_a = v->nodes[a->decode], *node_b = v->nodes[b->decode];
    uint32_t left_a = blocks_left(node_a), left_b = blocks_left(node_b);
    if (a->ready != b->ready) return a->ready ? -1 : 1;
    if (a->cost_ns != b->cost_ns) return a->cost_ns < b->cost_ns ? -1 : 1;
    uint32_t todo_a = sched_left(v->job, a->decode), todo_b = sched_left(v->job, b->decode);
    if (v->by_cost && todo_a != todo_b) return todo_a < todo_b ? -1 : 1;
    int load = compare_load(node_a, node_b);
    if (load != 0) return load;
    if (a->prefill.cost_ns != b->prefill.cost_ns)
        return a->prefill.cost_ns < b->prefill.cost_ns ? -1 : 1;
    return left_a == left_b ? 0 : left_a > left_b ? -1 : 1;
}

/* The D with room and the P for it. One that a free P has a link to goes before one that must wait or
 * prefill itself. Returns SCHED_PICKED, or why there is no D. */
static enum sched_answer pick_decode(struct view *v, uint64_t now_ns, struct offer *best)
{
    enum sched_answer none = SCHED_NO_NODES;
    *best = (struct offer){.decode = SCHED_NODE_NONE};
    for (uint32_t i = 0; i < v->count; i++) {
        const struct sched_node *n = v->nodes[i];
        if (!n->open || n->role != ROLE_DECODE) continue;
        if (none == SCHED_NO_NODES) none = SCHED_NEVER;
        if (n->blocks_total < sched_blocks_at_once(n, v->job, v->job->blocks_full)) continue;
        none = SCHED_NO_DECODE;
        if (!sched_has_room(n, v->job, now_ns)) continue;
        bool first = best->decode == SCHED_NODE_NONE;
        if (first) line_up(v->nodes, v->count, v->job, ROLE_PREFILL, v->prefills);
        /* Looking for a P takes longer than comparing the batches, which mostly decides. */
        if (!first && !v->by_cost && best->ready && compare_load(n, v->nodes[best->decode]) > 0)
            continue;
        struct offer o = offer_of(v, i);
        if (first || compare_offers(v, &o, best) < 0) *best = o;
    }
    return best->decode == SCHED_NODE_NONE ? none : SCHED_PICKED;
}

static enum sched_answer never(const struct sched_node *const *nodes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (nodes[i]->open) return SCHED_NEVER;
    return SCHED_NO_NODES;
}

enum sched_answer sched_pick_pair(const struct sched_node *const *nodes, uint32_t nodes_count,
                                  const struct sched_job *job, const struct sched_rules *rules,
                                  uint64_t now_ns, struct sched_pair *pair)
{
    struct offer o;
    struct line line;
    struct view v = {.nodes = nodes,
                     .count = nodes_count,
                     .job = job,
                     .rules = rules,
                     .usual_token_ns = usual_token_ns(nodes, nodes_count),
                     .by_cost = some_decode_holds(nodes, nodes_count, job),
                     .prefills = &line,
                     .filled = SCHED_NODE_NONE};
    *pair = (struct sched_pair){.prefill = SCHED_NODE_NONE, .decode = SCHED_NODE_NONE};
    CHECK(nodes_count <= SCHED_NODES_MAX);
    if (job->prefill_only) {
        line_up(nodes, nodes_count, job, ROLE_PREFILL, &line);
        struct prefill_pick alone = pick_prefill(&v, SCHED_NODE_NONE);
        if (alone.any && alone.index == SCHED_NODE_NONE) return SCHED_NO_PREFILL;
        pair->prefill = alone.index;
        pair->fill = alone.fill;
        if (alone.any) return SCHED_PICKED;
    }
    if (job->no_token) {
        line_up(nodes, nodes_count, job, ROLE_DECODE, &line);
        struct prefill_pick d = pick_from(&line, nodes, job, SCHED_NODE_NONE);
        pair->prefill = d.index;
        return d.index != SCHED_NODE_NONE ? SCHED_PICKED
               : d.any                    ? SCHED_NO_DECODE
                                          : never(nodes, nodes_count);
    }
    enum sched_answer a = pick_decode(&v, now_ns, &o);
    if (a != SCHED_PICKED) return a;
    pair->decode = o.decode;
    pair->local = o.local;
    if (pair->local) return SCHED_PICKED;
    if (o.prefill.index == SCHED_NODE_NONE) return SCHED_NO_PREFILL;
    pair->prefill = o.prefill.index;
    pair->fill = o.prefill.fill;
    return SCHED_PICKED;
}
