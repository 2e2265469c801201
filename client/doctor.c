#include "client/doctor.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "client/show.h"
#include "common/geometry.h"

/* From where on a figure is a trouble. */
#define BLOCKED_SHARE 0.25 /* of the time that the queue was held up by one lack */
#define FEW 3              /* preemptions, refusals: fewer are an accident */
#define REGRET_TOKENS 512  /* looked for after their eviction, and … */
#define REGRET_SHARE 0.10  /* … of the tokens looked up */
#define THRASH_SHARE 0.25  /* tokens computed again, of those generated */
#define WASTE_SHARE 0.25   /* of sequences' blocks that are empty */
#define HUNG_S 2.0         /* busy without progress, and … */
#define HUNG_STEPS 20      /* … for so many of its usual steps */
#define SLOW_PER_S 10.0    /* callbacks of a loop beyond 1 ms */
#define CROWD_SHARE 0.8    /* of what runs or is cached: one tenant has nearly all */
#define TIER_SHARE 0.5     /* late, or not worth reading */
#define FULL_BATCH 0.9     /* of its sequences a decode node runs */
#define IDLE_BATCH 0.5     /* below this decode nodes have time to spare */
#define HEADROOM 1.25      /* of what is advised above what is needed */

static struct finding *add(struct diagnosis *d, const char *rule, bool trouble, const char *about)
{
    static struct finding beyond; /* written, never read */
    struct finding *f = &beyond;
    if (d->findings_count < DOCTOR_FINDINGS_MAX)
        f = &d->finding[d->findings_count++];
    else
        d->dropped++;
    *f = (struct finding){.rule = rule, .trouble = trouble};
    snprintf(f->about, sizeof f->about, "%s", about);
    return f;
}

/* Behind what the text has already. */
static void say(char text[DOCTOR_TEXT], const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void say(char text[DOCTOR_TEXT], const char *format, ...)
{
    size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, DOCTOR_TEXT - used, format, args);
    va_end(args);
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static double percent(double part, double whole)
{
    return 100 * share(part, whole);
}

/* A pool of so many blocks, as settings. */
static void say_blocks(char text[DOCTOR_TEXT], const struct facts_node *n, double blocks)
{
    char a[SHOW_TEXT];
    say(text, "--blocks %.0f", ceil(blocks));
    if (n->block_bytes > 0) say(text, " (%s)", show_bytes(ceil(blocks) * n->block_bytes, a));
}

static double blocked_share(const struct facts *f, double blocked_s)
{
    return fmin(1, share(blocked_s, f->seconds)); /* clocks are read one after the other */
}

/* ---- nodes that are not there ---- */

static void check_no_nodes(const struct facts *f, const char *rule, struct diagnosis *d)
{
    size_t decodes = 0;
    char a[SHOW_TEXT];
    for (size_t i = 0; i < f->nodes_count; i++)
        decodes += !f->node[i].prefill && !f->node[i].draining;
    if (!f->has_status || decodes > 0) return;
    struct finding *o = add(d, rule, true, "");
    say(o->what, "no decode node takes requests");
    say(o->why, "%zu nodes have joined router %s, none of them decodes and is not draining",
        f->nodes_count, f->router);
    if (f->queued > 0)
        say(o->why, "; %.0f requests wait, one since %s", f->queued, show_time(f->oldest_s, a));
    say(o->advice,
        "start tandem-decode with --router and the address that the router has for nodes; "
        "its log says if it was refused");
}

static void check_node_silent(const struct facts *f, const char *rule, struct diagnosis *d)
{
    for (size_t i = 0; i < f->nodes_count; i++) {
        const struct facts_node *n = &f->node[i];
        if (!n->silent[0]) continue;
        struct finding *o = add(d, rule, true, n->name);
        say(o->what, "%s does not answer", n->name);
        say(o->why, "asked what it caches it gave no report: %s", n->silent);
        say(o->advice,
            "look at its process (stopped? swapped out? its host overloaded?) and its log; "
            "the router takes it for dead after --dead-after and tries its requests again "
            "elsewhere");
    }
}

static void check_node_hung(const struct facts *f, const char *rule, struct diagnosis *d)
{
    for (size_t i = 0; i < f->nodes_count; i++) {
        const struct facts_node *n = &f->node[i];
        if (n->without_progress_s < HUNG_S || n->without_progress_s < HUNG_STEPS * n->step_s)
            continue;
        struct finding *o = add(d, rule, true, n->name);
        say(o->what, "%s hangs", n->name);
        say(o->why,
            "it is in a step and has computed no layer for %.1f s; a step usually takes %.1f ms",
            n->without_progress_s, n->step_s * 1000);
        say(o->advice,
            "look at the device and at what else runs there; the router gives it up after "
            "--hung-after, a restart is sooner");
    }
}

/* What was before the first look is no trouble of now. */
static void check_requests_fail(const struct facts *f, const char *rule, struct diagnosis *d)
{
    bool now = f->failed > 0 || f->node_deaths > 0, lately = now && f->seconds > 0;
    double failed = now ? f->failed : f->failed_before;
    double deaths = now ? f->node_deaths : f->deaths_before;
    if (failed <= 0 && deaths <= 0) return;
    struct finding *o = add(d, rule, lately, "");
    char a[SHOW_TEXT];
    if (failed > 0)
        say(o->what, lately ? "requests fail" : "requests have failed");
    else
        say(o->what, lately ? "nodes die" : "nodes have died");
    if (lately)
        say(o->why, "in %s ", show_time(f->seconds, a));
    else
        say(o->why, "since the router began ");
    say(o->why, "%.0f samples ended with an error and %.0f nodes went without having been drained",
        failed, deaths);
    if (!lately && f->seconds > 0) say(o->why, ", none in the last %s", show_time(f->seconds, a));
    say(o->advice, "the router's log has each node's end (event node_left) with its reason; "
                   "`tandem explain ID` shows a request's attempts");
}

struct crew { /* nodes of one role that take requests */
    size_t count;
    double running, places;
};

static struct crew crew_of(const struct facts *f, bool prefill)
{
    struct crew c = {0};
    for (size_t i = 0; i < f->nodes_count; i++) {
        const struct facts_node *n = &f->node[i];
        if (n->prefill != prefill || n->draining) continue;
        c.count++;
        c.running += n->running;
        c.places += n->sequences_max;
    }
    return c;
}

/* ---- memory ---- */

static bool turns_away(const struct facts_node *n)
{
    return n->preemptions >= FEW || n->refused_jobs >= FEW;
}

/* The queue is held up by decode nodes whose batches have places. */
static bool blocks_lack(const struct facts *f)
{
    struct crew c = crew_of(f, false);
    bool blocked = blocked_share(f, f->blocked_decode_s) >= BLOCKED_SHARE;
    return blocked && c.running < FULL_BATCH * c.places;
}

static bool is_short_of_memory(const struct facts *f, const struct facts_node *n)
{
    return !n->prefill && !n->draining && (turns_away(n) || blocks_lack(f));
}

/* Blocks for what is there now; where that would fit, for what was there when most was wanted. */
struct wanted {
    double blocks;
    const char *least;
};

static struct wanted wanted_of(const struct facts_node *n)
{
    if (n->blocks_full > n->blocks_total) return (struct wanted){n->blocks_full, ""};
    return (struct wanted){fmax(n->blocks_full_peak, n->blocks_total), "at least "};
}

static void check_pool_too_small(const struct facts *f, const char *rule, struct diagnosis *d)
{
    for (size_t i = 0; i < f->nodes_count; i++) {
        const struct facts_node *n = &f->node[i];
        char a[SHOW_TEXT];
        if (!is_short_of_memory(f, n)) continue;
        struct wanted wanted = wanted_of(n);
        struct finding *o = add(d, rule, true, n->name);
        say(o->what, "the KV pool of %s is too small for the requests that it gets", n->name);
        if (turns_away(n))
            say(o->why,
                "in the last %s %.0f sequences were preempted and %.0f jobs refused for "
                "want of blocks",
                show_time(n->window_s, a), n->preemptions, n->refused_jobs);
        else
            say(o->why,
                "requests wait for room %.0f %% of the time while it runs %.0f of %.0f "
                "sequences",
                100 * blocked_share(f, f->blocked_decode_s), n->running, n->sequences_max);
        if (n->live > 0)
            say(o->why, "; the %.0f sequences there now need %.0f blocks at their full length",
                n->live, n->blocks_full);
        if (wanted.blocks > fmax(n->blocks_full, n->blocks_total))
            say(o->why, "; when most was wanted it needed %.0f blocks", wanted.blocks);
        say(o->why, ", the pool has %.0f", n->blocks_total);
        say(o->advice, "give it %s", wanted.least);
        say_blocks(o->advice, n, HEADROOM * wanted.blocks);
        double each = share(n->blocks_full, n->live);
        double batch = each > 0 ? floor(n->blocks_total / each) : 0;
        if (turns_away(n) && batch >= 1 && batch < n->sequences_max && batch < n->live)
            say(o->advice, ", or let fewer run at once: --batch %.0f", batch);
        say(o->advice, ", or add a decode node; `tandem plan` reckons how many requests fit");
    }
}

/* Says what blocks are not to blame for, where memory is short. */
static void check_fragmentation(const struct facts *f, const char *rule, struct diagnosis *d)
{
    for (size_t i = 0; i < f->nodes_count; i++) {
        const struct facts_node *n = &f->node[i];
        double places = n->held_tokens + n->wasted_slots;
        if (!is_short_of_memory(f, n) || places <= 0) continue;
        bool much = n->wasted_slots >= WASTE_SHARE * places;
        struct finding *o = add(d, rule, false, n->name);
        say(o->what, much ? "sequences so short that their last blocks are much of them"
                          : "fragmentation is not the cause");
        say(o->why,
            "of the blocks that sequences have on %s %.1f %% is empty, never more than one "
            "block of each",
            n->name, percent(n->wasted_slots, places));
        if (n->contiguous_slots > n->held_tokens)
            say(o->why,
                "; one piece of memory each, for the longest it may become, would be %.1f %% "
                "empty",
                percent(n->contiguous_slots - n->held_tokens, n->contiguous_slots));
        say(o->advice,
            much ? "nothing: 16 tokens a block is the least; count blocks, not tokens, when "
                   "sizing the pool"
                 : "nothing: do not look for it there");
    }
}

static void check_preemption_thrash(const struct facts *f, const char *rule, struct diagnosis *d)
{
    for (size_t i = 0; i < f->nodes_count; i++) {
        const struct facts_node *n = &f->node[i];
        char a[SHOW_TEXT];
        if (n->preemptions < FEW || n->recomputed_tokens < THRASH_SHARE * n->generated_tokens)
            continue;
        struct finding *o = add(d, rule, true, n->name);
        double each = share(n->blocks_full, n->live);
        double batch = each > 0 ? floor(n->blocks_total / each) : 0;
        say(o->what, "%s works for sequences that it throws out again", n->name);
        say(o->why,
            "in the last %s %.0f preemptions; %.0f tokens were computed a second time, %.0f "
            "generated",
            show_time(n->window_s, a), n->preemptions, n->recomputed_tokens, n->generated_tokens);
        say(o->advice, "let fewer run at once");
        if (batch >= 1 && batch < n->sequences_max) say(o->advice, ": --batch %.0f", batch);
        say(o->advice, "; or a larger pool: %s", wanted_of(n).least);
        say_blocks(o->advice, n, HEADROOM * wanted_of(n).blocks);
    }
}

static void check_cache_evicted_early(const struct facts *f, const char *rule, struct diagnosis *d)
{
    for (size_t i = 0; i < f->nodes_count; i++) {
        const struct facts_node *n = &f->node[i];
        double again = n->regret_tokens;
        char a[SHOW_TEXT];
        if (again < REGRET_TOKENS || again < REGRET_SHARE * n->queried_tokens) continue;
        struct finding *o = add(d, rule, true, n->name);
        say(o->what, "%s evicts prompts that are asked for again", n->name);
        say(o->why,
            "in the last %s %.0f tokens had to be %s again that had been evicted shortly "
            "before: %.0f %% of those looked up; %.0f %% were found, with them it would be "
            "%.0f %%",
            show_time(n->window_s, a), again, n->prefill ? "computed" : "sent or computed",
            percent(again, n->queried_tokens), percent(n->hit_tokens, n->queried_tokens),
            percent(n->hit_tokens + again, n->queried_tokens));
        say(o->advice, "a larger pool: ");
        double more = fmin(again / BLOCK_TOKENS, 3 * n->blocks_total);
        say_blocks(o->advice, n, n->blocks_total + more);
        say(o->advice,
            ", or a tier behind it; `tandem sim --kv TRACE` shows what sizes and policies "
            "(--evict) would find of your load");
    }
}

/* ---- too few nodes of a kind ---- */

static void say_waits(const struct facts *f, struct finding *o, double blocked_s, const char *whom)
{
    char a[SHOW_TEXT], b[SHOW_TEXT];
    say(o->why, "for %.0f %% of %s the queue was held up by %s", 100 * blocked_share(f, blocked_s),
        show_time(f->seconds, a), whom);
    if (f->picked > 0)
        say(o->why, "; requests that were placed had waited %.0f ms on average",
            1000 * f->waited_s / f->picked);
    if (f->queued > 0)
        say(o->why, "; %.0f wait now, one since %s", f->queued, show_time(f->oldest_s, b));
}

static void check_prefill_short(const struct facts *f, const char *rule, struct diagnosis *d)
{
    double blocked = blocked_share(f, f->blocked_prefill_s);
    struct crew p = crew_of(f, true), c = crew_of(f, false);
    if (blocked < BLOCKED_SHARE) return;
    struct finding *o = add(d, rule, true, "");
    say(o->what, "too few prefill nodes");
    say_waits(f, o, f->blocked_prefill_s, "prefill nodes that were all busy");
    double more = fmax(1, ceil((double)p.count * blocked - 0.01));
    say(o->advice, "add %.0f to the %zu prefill nodes", more, p.count);
    if (c.count > 1 && c.running < IDLE_BATCH * c.places)
        say(o->advice,
            ", or let one of the %zu decode nodes be one: they run %.0f of %.0f sequences", c.count,
            c.running, c.places);
}

static void check_decode_short(const struct facts *f, const char *rule, struct diagnosis *d)
{
    double blocked = blocked_share(f, f->blocked_decode_s);
    struct crew c = crew_of(f, false);
    if (blocked < BLOCKED_SHARE || c.count == 0) return;
    bool batch = c.running >= FULL_BATCH * c.places;
    struct finding *o = add(d, rule, true, "");
    say(o->what, "too little room on the decode nodes");
    say_waits(f, o, f->blocked_decode_s, "decode nodes without room");
    say(o->why, "; they run %.0f of %.0f sequences, so what lacks is %s", c.running, c.places,
        batch ? "places in their batches" : "blocks");
    say(o->advice, batch
                       ? "a larger --batch if their steps are fast enough, or a decode node more"
                       : "larger pools (--blocks, --kv-bytes), or a decode node more; `tandem kv` "
                         "shows what holds the blocks");
}

/* ---- tenants ---- */

static const char *tenant_name(const struct facts_tenant *t)
{
    return t->name[0] ? t->name : "(none)";
}

/* Who has most of what runs or is cached; NULL: there are fewer than two. */
static const struct facts_tenant *first_tenant(const struct facts *f, bool by_blocks, double *all)
{
    const struct facts_tenant *most = NULL;
    *all = 0;
    for (size_t i = 0; i < f->tenants_count; i++) {
        const struct facts_tenant *t = &f->tenant[i];
        double mine = by_blocks ? t->blocks : t->running;
        *all += mine;
        if (!most || mine > (by_blocks ? most->blocks : most->running)) most = t;
    }
    return f->tenants_count < 2 ? NULL : most;
}

static void check_tenant_starved(const struct facts *f, const char *rule, struct diagnosis *d)
{
    double all;
    const struct facts_tenant *most = first_tenant(f, false, &all);
    if (!most || most->running < CROWD_SHARE * all || most->running <= 0) return;
    for (size_t i = 0; i < f->tenants_count; i++) {
        const struct facts_tenant *t = &f->tenant[i];
        bool waited = t->queued > 0 && t->running <= 0 && (f->seconds <= 0 || t->queued_before > 0);
        if (t == most || !waited) continue;
        struct finding *o = add(d, rule, true, "");
        say(o->what, "tenant %s starves while %s is served", tenant_name(t), tenant_name(most));
        say(o->why,
            "%s has %.0f requests waiting and none running, %s %.0f of the %.0f that run; "
            "tokens served meanwhile: %.0f and %.0f; weights %.0f and %.0f",
            tenant_name(t), t->queued, tenant_name(most), most->running, all, t->served,
            most->served, t->weight, most->weight);
        say(o->advice,
            "keep room for tenants below their share: a larger --tenant-reserve of the "
            "router; or give %s more weight: --tenant-weights %s=%.0f",
            tenant_name(t), t->name, t->weight * 2);
    }
}

static void check_tenant_crowds_cache(const struct facts *f, const char *rule, struct diagnosis *d)
{
    double all;
    const struct facts_tenant *most = first_tenant(f, true, &all);
    if (!most || most->blocks <= 0 || most->blocks < CROWD_SHARE * all) return;
    for (size_t i = 0; i < f->tenants_count; i++) {
        const struct facts_tenant *t = &f->tenant[i];
        if (t == most || t->regret_tokens < REGRET_TOKENS ||
            t->regret_tokens < REGRET_SHARE * t->queried_tokens)
            continue;
        struct finding *o = add(d, rule, true, "");
        say(o->what, "tenant %s crowds the prompts of %s out of the caches", tenant_name(most),
            tenant_name(t));
        say(o->why,
            "%s has %.0f %% of the cached blocks; of the %.0f tokens that %s asked for, %.0f "
            "had been evicted shortly before",
            tenant_name(most), percent(most->blocks, all), t->queried_tokens, tenant_name(t),
            t->regret_tokens);
        say(o->advice,
            "bound what one tenant may keep, --tenant-quota of the nodes; look at the weights, "
            "--tenant-weights of the router; pin the prompt that %s begins with; or give the nodes "
            "larger pools",
            tenant_name(t));
    }
}

/* ---- tiers ---- */

/* The setting that it is by. */
static const char *setting_of(const struct facts_tier *t)
{
    bool memory = strcmp(t->name, "memory") == 0;
    return memory ? "--kv-host-bytes" : strcmp(t->name, "disk") == 0 ? "--kv-disk" : "--kv-redis";
}

static void check_tier_broken(const struct facts *f, const char *rule, struct diagnosis *d)
{
    for (size_t i = 0; i < f->nodes_count; i++)
        for (size_t k = 0; k < f->node[i].tiers_count; k++) {
            const struct facts_tier *t = &f->node[i].tier[k];
            bool now = t->broken || t->wrong > 0;
            if (!now && t->wrong_before <= 0) continue;
            struct finding *o = add(d, rule, now, f->node[i].name);
            if (t->stuck_s > 0) {
                say(o->what, "the %s tier of %s hangs", t->name, f->node[i].name);
                say(o->why, "a call of it has not returned for %.0f s", t->stuck_s);
                say(o->advice,
                    "look at what is behind %s, a disk or a file system over the network; "
                    "requests go on without tiers, without this one alone if it never opened, all "
                    "blocks are back in the pool, and it is used again when the call returns",
                    setting_of(t));
            } else if (t->broken) {
                say(o->what, "the %s tier of %s is out of order", t->name, f->node[i].name);
                say(o->why,
                    "it failed so often in a row that it is left alone for a while "
                    "(%.0f calls failed)",
                    t->failures);
                say(o->advice,
                    "look at what is behind %s and at the node's log, which says why; "
                    "requests go on without it, and it is tried again by itself",
                    setting_of(t));
            } else {
                say(o->what, "the %s tier of %s %s what was never put there", t->name,
                    f->node[i].name, now ? "gives" : "gave");
                say(o->why, "%.0f entries failed their check and were removed%s",
                    now ? t->wrong : t->wrong_before, now ? "" : ", none of them just now");
                say(o->advice,
                    "no request has used any of them; look at the disk or server behind "
                    "%s: something else writes there, or it loses data",
                    setting_of(t));
            }
        }
}

/* Blocks of which it was known before that computing is faster than reading. */
static bool is_slower_than_computing(const struct facts_tier *t)
{
    double asked = t->hit_blocks + t->not_worth_blocks;
    return asked >= FACTS_TIER_ASKED && t->not_worth_blocks >= TIER_SHARE * asked;
}

static void check_tier_slow(const struct facts *f, const char *rule, struct diagnosis *d)
{
    for (size_t i = 0; i < f->nodes_count; i++) {
        const struct facts_node *n = &f->node[i];
        bool late =
            n->tier_loads >= FACTS_TIER_ASKED && n->tier_loads_late >= TIER_SHARE * n->tier_loads;
        if (late) {
            struct finding *o = add(d, rule, true, n->name);
            say(o->what, "the tiers of %s answer too late to be of use", n->name);
            say(o->why,
                "of %.0f prompts that asked them %.0f did not wait for the answer longer than "
                "the %.0f ms they may",
                n->tier_loads, n->tier_loads_late, n->tier_deadline_s * 1000);
            say(o->advice,
                "a faster disk or server; or a longer --kv-tier-deadline if prompts that long "
                "would take longer to compute; or do without");
        }
        for (size_t k = 0; k < n->tiers_count; k++) {
            const struct facts_tier *t = &n->tier[k];
            if (!is_slower_than_computing(t)) continue;
            struct finding *o = add(d, rule, true, n->name);
            say(o->what, "the %s tier of %s is slower than computing", t->name, n->name);
            say(o->why,
                "%.0f of %.0f blocks that it has were computed instead, as that was expected to "
                "be sooner: once it answers it reads %.1f MB/s, a block in %.2f ms; computing one "
                "takes %.2f ms",
                t->not_worth_blocks, t->hit_blocks + t->not_worth_blocks, t->read_rate / 1e6,
                1000 * share(n->block_bytes, t->read_rate), 1000 * BLOCK_TOKENS * n->token_s);
            say(o->advice, "a faster disk or server behind %s, or do without it on this node",
                setting_of(t));
        }
    }
}

/* ---- links, loops ---- */

static int link_rank(const char *kind)
{
    static const char *const kinds[] = {"ipc", "nccl", "shm", "tcp"};
    int rank = 0;
    while (rank < 4 && strcmp(kinds[rank], kind) != 0)
        rank++;
    return rank;
}

/* The best ready link of the pair, NULL: none. */
static const struct facts_path *ready_path(const struct facts *f, const struct facts_path *pair)
{
    const struct facts_path *best = NULL;
    for (size_t i = 0; i < f->paths_count; i++) {
        const struct facts_path *p = &f->path[i];
        if (strcmp(p->from, pair->from) || strcmp(p->to, pair->to) || strcmp(p->state, "ready"))
            continue;
        if (!best || link_rank(p->kind) < link_rank(best->kind)) best = p;
    }
    return best;
}

static void check_link_fell_back(const struct facts *f, const char *rule, struct diagnosis *d)
{
    for (size_t i = 0; i < f->paths_count; i++) {
        const struct facts_path *p = &f->path[i], *other = ready_path(f, p);
        if (strcmp(p->state, "broken") != 0) continue;
        if (other && link_rank(other->kind) <= link_rank(p->kind)) continue;
        struct finding *o = add(d, rule, true, p->from);
        if (other)
            say(o->what, "KV from %s to %s goes over %s, as %s is broken", p->from, p->to,
                other->kind, p->kind);
        else
            say(o->what, "no link from %s to %s works: %s is broken", p->from, p->to, p->kind);
        say(o->why, "%s", p->reason[0] ? p->reason : "no reason was told");
        say(o->advice,
            "see docs/links.md for what %s needs; it is tried again by itself "
            "(--link-retry), and --link names the one to use",
            p->kind);
    }
}

static void say_slow(struct diagnosis *d, const char *rule, const char *name, double per_s)
{
    struct finding *o = add(d, rule, true, name);
    say(o->what, "the loop of %s is late", name);
    say(o->why, "%.1f of its callbacks a second took longer than 1 ms", per_s);
    say(o->advice,
        "it shares its CPU with something: give it cores of its own (--cpus), and look at "
        "the host's load");
}

static void check_slow_loop(const struct facts *f, const char *rule, struct diagnosis *d)
{
    if (f->slow_per_s >= SLOW_PER_S) say_slow(d, rule, f->router, f->slow_per_s);
    for (size_t i = 0; i < f->nodes_count; i++)
        if (f->node[i].slow_per_s >= SLOW_PER_S)
            say_slow(d, rule, f->node[i].name, f->node[i].slow_per_s);
}

/* ---- all of them ---- */

typedef void rule_fn(const struct facts *f, const char *rule, struct diagnosis *d);

static const struct {
    const char *name;
    rule_fn *check;
} rules[] = {
    {"no-nodes", check_no_nodes},
    {"node-silent", check_node_silent},
    {"node-hung", check_node_hung},
    {"requests-fail", check_requests_fail},
    {"pool-too-small", check_pool_too_small},
    {"fragmentation", check_fragmentation},
    {"preemption-thrash", check_preemption_thrash},
    {"decode-short", check_decode_short},
    {"prefill-short", check_prefill_short},
    {"cache-evicted-early", check_cache_evicted_early},
    {"tier-broken", check_tier_broken},
    {"tier-slow", check_tier_slow},
    {"tenant-starved", check_tenant_starved},
    {"tenant-crowds-cache", check_tenant_crowds_cache},
    {"link-fell-back", check_link_fell_back},
    {"slow-loop", check_slow_loop},
};

enum { RULES_COUNT = sizeof rules / sizeof rules[0] };

void doctor_examine(const struct facts *facts, struct diagnosis *d)
{
    d->findings_count = d->dropped = 0;
    for (size_t i = 0; i < RULES_COUNT; i++)
        rules[i].check(facts, rules[i].name, d);
}

bool doctor_found_trouble(const struct diagnosis *d)
{
    bool found = d->dropped > 0;
    for (size_t i = 0; i < d->findings_count; i++)
        found |= d->finding[i].trouble;
    return found;
}

size_t doctor_rules_count(void)
{
    return RULES_COUNT;
}

const char *doctor_rule(size_t i)
{
    return rules[i].name;
}
