/* topology: what of this host decides where a node runs: NUMA nodes, cores, GPUs, network cards, and
 * which of them are near each other. Read with hwloc, kept as plain numbers.
 *
 *     struct topology *host;
 *     if ((e = topology_read(TOPOLOGY_DEVICES, &host)) != OK) return e;
 *     const struct topology_gpu *gpu = topology_gpu_at(host, "0000:17:00.0");   // NULL: not here
 *     ... common/placement.h decides over it ...
 *     mem_free(host);
 *
 * Rules: what the machine has beyond the limits is left out. GPUs and cards stand in the order of their
 * PCI addresses, cores by package and NUMA node. HWLOC_XMLFILE and HWLOC_SYNTHETIC put another machine
 * in this one's place; it is then not `this_host`, and nobody binds anything to it. A struct topology
 * is constant once read. Any thread. */
#ifndef TANDEM_COMMON_TOPOLOGY_H
#define TANDEM_COMMON_TOPOLOGY_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

enum {
    TOPOLOGY_CORES_MAX = CPU_SETSIZE,
    TOPOLOGY_NUMAS_MAX = 64,
    TOPOLOGY_GPUS_MAX = 64,
    TOPOLOGY_NICS_MAX = 64,
    TOPOLOGY_PCI_TEXT = 16, /* "0000:17:00.0", lower case */
    TOPOLOGY_NAME_TEXT = 24,
};

struct topology_core {
    cpu_set_t cpus;
    int32_t numa; /* the kernel's number, here and below; -1: not told */
};
struct topology_numa {
    int32_t numa;
    cpu_set_t cpus;
};

/* How far two PCI devices are from each other: what a transfer between them crosses. Of one value, those
 * with fewer bridges between them are nearer. */
enum topology_way {
    WAY_SWITCH = 1, /* PCI bridges only */
    WAY_NUMA,       /* a host bridge, and nothing outside of its NUMA node */
    WAY_PACKAGE,    /* another NUMA node of one package */
    WAY_HOST        /* between packages */
};
struct topology_gpu {
    char pci[TOPOLOGY_PCI_TEXT];
    cpu_set_t cpus; /* near it */
    int32_t numa;
    uint16_t nic_distance[TOPOLOGY_NICS_MAX]; /* enum topology_way * 256 + bridges */
};
struct topology_nic {
    char pci[TOPOLOGY_PCI_TEXT];
    char rdma[TOPOLOGY_NAME_TEXT]; /* "mlx5_0": speaks InfiniBand or RoCE; "": neither */
    char net[TOPOLOGY_NAME_TEXT];  /* "eth0", "ib0"; "": none */
    bool infiniband;               /* else Ethernet */
    bool down;                     /* told to be: its first port is not active */
    int32_t numa;
};

struct topology {
    bool this_host;
    uint32_t packages_count, cores_count, numas_count, gpus_count, nics_count;
    cpu_set_t cpus;
    struct topology_core core[TOPOLOGY_CORES_MAX];
    struct topology_numa numa[TOPOLOGY_NUMAS_MAX];
    struct topology_gpu gpu[TOPOLOGY_GPUS_MAX];
    struct topology_nic nic[TOPOLOGY_NICS_MAX];
};

/* TOPOLOGY_CPUS: without GPUs and network cards, which take most of the time to find. */
enum topology_parts { TOPOLOGY_CPUS, TOPOLOGY_DEVICES };
/* ERR_UNSUPPORTED: hwloc cannot read it. mem_free ends it. */
enum err topology_read(enum topology_parts parts, struct topology **host);

/* "00000000:17:00.0", "0000:17:00.0" and "17:00.0", in either case, are one address. */
const struct topology_gpu *topology_gpu_at(const struct topology *host, const char *pci);
/* The NUMA node that has all of these CPUs; -1: they are of several, or none. */
int32_t topology_numa_of(const struct topology *host, const cpu_set_t *cpus);
/* "switch", "numa", "package", "host". */
const char *topology_way_name(uint16_t distance);

/* From now on this thread, and those that it starts, take new memory of this NUMA node where it has
 * some. ERR_UNSUPPORTED: the kernel says no. */
enum err topology_bind_memory(int32_t numa);

#endif
