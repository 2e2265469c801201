/* links: clusters over one link between nodes, on one GPU or two, with the prompts that link_bench.c sends.
 *
 *     struct links l = {.link = "nccl", .device = "cuda", .shape = links_shape_find("1b"), .model = dir};
 *     links_open(&l, "");                                          // a router that always hands over
 *     struct process *p = links_node(&l, PROGRAM_PREFILL, "");     // on gpu[0], decode nodes on gpu[1]
 *     ... streams to l.cluster->addresses ...
 *     links_close(&l);
 *
 * Rules: as tests/e2e/cluster.h has them; what goes wrong ends the program. Where all nodes share a GPU they
 * get the environment of one_gpu.h. Owner: the program's only thread. */
#ifndef TANDEM_TESTS_GPU_LINKS_H
#define TANDEM_TESTS_GPU_LINKS_H

#include "tests/e2e/cluster.h"
#include "tests/e2e/streams.h"

#include "tests/gpu/model.h"

enum { LINKS_PROMPT_MAX = 8192, LINKS_STREAMS_MAX = 8 };

struct links_shape {
    const char *name;
    bool demo;                        /* the demo model; others have random weights (model.h) */
    uint32_t token_first, tokens_all; /* prompts are drawn from these */
    uint32_t prompt, prompt_long, prompt_short;
    uint32_t rounds;  /* hand-overs of a figure */
    uint32_t prompts; /* of a slowdown, of a rate */
    uint32_t streams, stream_tokens, compared_tokens, recovered_tokens;
    const char *node_args, *prefill_args;
};

struct links {
    const struct links_shape *shape;
    const char *link, *device, *model;
    uint32_t gpu[2]; /* of prefill, of decode nodes */
    struct cluster *cluster;
    uint32_t prompts_made;
    uint32_t prompt[LINKS_PROMPT_MAX];
};

const struct links_shape *links_shape_find(const char *name); /* NULL: no such name */

void links_open(struct links *l, const char *router_args);
struct process *links_node(struct links *l, enum program program, const char *args);
void links_close(struct links *l);

/* Tokens that no prompt before had. The ask points to memory that the next one has again. */
struct ask links_ask(struct links *l, uint32_t prompt_tokens, uint32_t max_tokens);
/* To its end, while the other streams are served. */
struct stream *links_ask_once(struct streams *s, uint32_t client, const struct ask *ask);
/* As many streams as the shape has, when all of them run. */
void links_start_streams(struct links *l, struct streams *s);
bool links_one_ended(const struct links *l, const struct streams *s);

/* What the router knows of a hand-over when the prefill node's last word of it is there. */
struct links_told {
    double prefill_ms; /* computing */
    double tail_ms;    /* from the end of the last layer until the KV is known to be there */
    double moving_ms;  /* from the end of the first layer until then */
};
struct links_told links_told(struct links *l, const struct stream *stream);
/* KV that this prefill node has sent so far; fails if it went over another link than l's. */
double links_bytes(struct links *l, const struct process *prefill);
/* Bytes a second of the pair's only link, as tandem status has it; 0: none yet. */
double links_told_rate(struct links *l, const struct process *prefill);

#endif
