/* placement: which CPUs, NUMA node and network cards each node of a host gets: pure functions over a
 * struct topology.
 *
 *     struct placement_want want[] = {{.gpu = 0}, {.gpu = 4}, {.gpu = PLACEMENT_ON_CPU}};
 *     struct placement place[3];
 *     placement_make(host, &allowed, want, 3, place);
 *     ... place[0].cpus: near GPU 0, and nobody else's ...
 *     placement_split(host, &place[0], &engine, &link, &loop);
 *
 * Rules: nodes on GPUs are served first: those whose GPUs are near the same cores share these evenly,
 * also with nodes on CPUs if there are any; beside these, four cores are enough. Nodes on CPUs share out
 * what is left, in cores that stand together. Where there are fewer cores than nodes, none of these is
 * given cores of its own. The same facts give the same places; nothing is read or bound here. Any thread. */
#ifndef TANDEM_COMMON_PLACEMENT_H
#define TANDEM_COMMON_PLACEMENT_H

#include "common/topology.h"

enum {
    PLACEMENT_NICS_MAX = 4,
    PLACEMENT_CORES_BESIDE = 4, /* of a node on a GPU, where others run on CPUs */
    PLACEMENT_TEXT = 128,
};
#define PLACEMENT_ON_CPU (-1)
#define PLACEMENT_GPU_UNKNOWN (-2) /* not to be found in the topology: anywhere */

struct placement_want {
    int32_t gpu;      /* index in the topology, or one of the two above */
    uint32_t threads; /* on CPUs: that compute; 0: an even share */
};
struct placement {
    bool own;         /* nobody else has its CPUs */
    cpu_set_t cpus;   /* empty: anywhere */
    int32_t numa;     /* for its memory; -1: anywhere */
    uint32_t threads; /* on CPUs: that compute, one on each of `cpus` if that is not empty */
    uint32_t nic[PLACEMENT_NICS_MAX]; /* indices: the nearest of the best kind */
    uint32_t nics_count;
};

/* `allowed` CPUs are those that the nodes may use at all. */
void placement_make(const struct topology *host, const cpu_set_t *allowed,
                    const struct placement_want *want, uint32_t count, struct placement *place);
/* Of a node on a GPU with CPUs of its own: a core for the engine's thread, one for the link's, the others
 * for the loop and the rest. All three get all of `place` if that has fewer than three cores. */
void placement_split(const struct topology *host, const struct placement *place, cpu_set_t *engine,
                     cpu_set_t *link, cpu_set_t *loop);
/* Fills place->nic for a GPU, or for place->numa where gpu is PLACEMENT_ON_CPU: cards with RDMA before
 * others, those that are up only, the nearest ones. */
void placement_choose_nics(const struct topology *host, int32_t gpu, struct placement *place);
/* "mlx5_0,mlx5_1", or the names of network interfaces. */
void placement_print_nics(const struct topology *host, const struct placement *place, char *text,
                          size_t size);

#endif
