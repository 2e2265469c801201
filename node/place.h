/* place: where on the host a node's threads and memory are. Found once, before anything is opened, so that
 * all threads and memory that follow are there.
 *
 *     struct node_place place;
 *     struct node_place_options o = {.device = "cuda:1", .cpus = told, .numa = NODE_NUMA_AUTO};
 *     node_place_find(&place, &o);          // binds this thread and its memory, says so in the log
 *     engine.cpus = place.engine;
 *     node_place_bind(&place, &place.link); // before a thread is started that shall be there
 *
 * Rules: nothing here fails a start: what the kernel refuses, or hwloc cannot read, is one warning, and the
 * node runs where it is put. Nobody is bound to the CPUs of a topology that is not this host's.
 * Owner: the thread that opens the node, before others run: environment variables are set. */
#ifndef TANDEM_NODE_PLACE_H
#define TANDEM_NODE_PLACE_H

#include "common/cpus.h"
#include "common/placement.h"

enum { NODE_NUMA_OFF = -2, NODE_NUMA_AUTO = -1 }; /* or the kernel's number of one */

struct node_place_options {
    const char *device;         /* "cpu", "cuda:1" */
    const char *nccl_interface; /* NULL or "": NCCL is told the one near the GPU */
    cpu_set_t cpus;             /* told for it alone; empty: none were */
    int32_t numa; /* memory's; auto: the GPU's or that of `cpus`. Else also where the threads are
                         * that were not told a place */
};

struct node_place {
    bool bound;                   /* this host's CPUs: binding makes sense */
    cpu_set_t engine, link, loop; /* empty: anywhere */
    int32_t numa;                 /* -1: anywhere */
    char pci[TOPOLOGY_PCI_TEXT];  /* of the GPU; "" */
    char cpus[CPUS_TEXT];         /* of the node, for people; "": anywhere */
    char nics[PLACEMENT_TEXT];    /* near the GPU; "" */
};

void node_place_find(struct node_place *place, const struct node_place_options *options);
/* The calling thread goes there; nothing if the set is empty. */
void node_place_bind(const struct node_place *place, const cpu_set_t *cpus);

/* "auto", "off" or a number; ERR_INVALID. */
enum err node_numa_parse(const char *text, int32_t *numa);

#endif
