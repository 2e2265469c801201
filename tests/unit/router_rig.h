/* router_rig: the router core against nodes and clients that a test plays itself.
 *
 *     struct world w;
 *     world_open_joined(&w, NULL);                       // p0, d0 and d1
 *     submit(&w, 4);
 *     struct job_key key = reserve(&w, D0);              // D0 says yes, P0 is told to prefill
 *     tell_tokens(&w, D0, key, 0, 4); tell_finished(&w, D0, key, 4);
 *     expect(&w, CLIENT, MSG_DONE);
 *     world_close(&w);
 *
 * Rules: what the core sends is kept and looked at in order; time is whatever the test says.
 * Owner: the test's thread. */
#ifndef TANDEM_TESTS_UNIT_ROUTER_RIG_H
#define TANDEM_TESTS_UNIT_ROUTER_RIG_H

#include "tests/unit/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "router/core.h"
#include "router/sched.h"

enum { SENT_MAX = 512, PEERS_MAX = 16 + SCHED_NODES_MAX };
#define CLIENT 1
#define P0 2
#define D0 3
#define D1 4
#define P1 5

struct sent {
    struct peer peer;
    struct msg m;
};

struct world {
    struct router_core *core;
    struct arena arena;
    struct sent sent[SENT_MAX];
    size_t sent_count, read; /* what the test has looked at */
    uint64_t now, wake;
    struct envelope envelope[PEERS_MAX]; /* as each played peer must fill it in */
    uint32_t forgotten[PEERS_MAX];
    struct id128 tokenizing; /* the last prompt that the core wanted ids of */
    bool text_full;
    bool left;
};

extern const uint32_t prompt[20];

/* Feeds a message from this peer, then audits. */
void say(struct world *w, uint32_t peer, struct msg m);
/* The next message of this kind to this peer since the last look; fails if there is none. */
const struct msg *expect(struct world *w, uint32_t peer, enum msg_kind kind);
bool was_sent(const struct world *w, uint32_t peer, enum msg_kind kind);
/* A node or client greets. */
void hello(struct world *w, uint32_t peer, enum role role, const char *name);
/* A node that differs from those of hello. */
void hello_other_model(struct world *w, uint32_t peer, enum role role, const char *name);
void hello_other_numerics(struct world *w, uint32_t peer, enum role role, const char *name);
void hello_tokenizer(struct world *w, uint32_t peer, struct id128 hash); /* a prefill node */
/* A prefill node of a longer context, with as many blocks. */
void hello_large(struct world *w, uint32_t peer, uint32_t context_max);
/* A core with one client; `changes` NULL: the defaults, always disaggregated. */
void world_open(struct world *w, const struct router_config *changes);
/* p0, d0 and d1 join. */
void world_join(struct world *w);
void world_open_joined(struct world *w, const struct router_config *changes);
/* The same with a request of so many tokens that d0 has reserved and p0 prefills: its first attempt. */
struct job_key world_open_prefilling(struct world *w, uint32_t tokens_max);
void world_close(struct world *w);
struct msg submit_of(uint32_t tokens_max);
/* A request of `prompt`, accepted. */
struct id128 submit(struct world *w, uint32_t tokens_max);
struct token_info token(uint32_t id);
/* D tells tokens [from, to) of a sequence whose token i is 10 + i. */
void tell_tokens(struct world *w, uint32_t peer, struct job_key key, uint32_t from, uint32_t to);
void tell_first(struct world *w, uint32_t peer, struct job_key key, uint32_t index);
void tell_finished(struct world *w, uint32_t peer, struct job_key key, uint32_t count);
void tell_prefilled(struct world *w, uint32_t peer, struct job_key key);
struct job_key reserve_held(struct world *w, uint32_t d, uint32_t held_tokens);
/* D's answer, up to P's PREFILL: the key of the attempt. */
struct job_key reserve(struct world *w, uint32_t d);
/* Collects OUTPUTs and DONE: tokens 10 + index, each once and in order. */
const struct msg *expect_stream(struct world *w, uint32_t first, uint32_t count);
/* Its lifeline ends. */
void lose(struct world *w, uint32_t peer);

#endif
