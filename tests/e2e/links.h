/* links: the links of a cluster as `tandem status` shows them, and what nodes on the emulator need: a model
 * that is small enough for it, and folders of plugins.
 *
 *     struct cluster *c = cluster_new(links_model());         // made when first asked for
 *     links_use_plugins(rig->cluster, "cuda nccl");           // nodes started from now on find these
 *     links_await(rig->cluster, &(struct link_wish){.kind = "nccl", .ready = true, .bytes = 1}, &row);
 *     links_use_plugins(NULL, "");                            // all of the build's again
 *
 *     links_model_remove();                                   // in the group's teardown
 *
 * A wish is met by a link that has all that it names. Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_LINKS_H
#define TANDEM_TESTS_E2E_LINKS_H

#include "tests/e2e/cluster.h"

/* Nodes on the emulator. */
#define LINKS_CUDA                                                                                 \
    "--device cuda --deterministic --threads 1 --blocks 64 --context 512 --batch 4 --chunk 16 "

struct link_row {
    char from[16], to[16], kind[8], state[12], reason[192];
    uint64_t bytes, rate;
};

struct link_wish {
    const char *kind, *from, *to; /* NULL: any */
    const char *reason;           /* a part of it; NULL: any */
    bool ready;                   /* it stands */
    uint64_t bytes;               /* so many at least */
};

bool links_find(const json_t *status, const struct link_wish *wish, struct link_row *row);
void links_await(struct cluster *c, const struct link_wish *wish, struct link_row *row);

/* Cuts every shm link to the node; how many there were. Skips the test where sockets of another process cannot
 * be had. */
uint32_t links_cut_shm(const struct process *node);

/* Of random weights, with the demo model's tokenizer. Its asks say ignore_eos. */
const char *links_model(void);
void links_model_remove(void);

void links_use_plugins(const struct cluster *c, const char *names); /* c NULL: all */

#endif
