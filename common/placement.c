#include "common/placement.h"

#include <stdio.h>
#include <string.h>

#include "common/cpus.h"

/* ---- cores ---- */

struct cores { /* of a host, while they are given out */
    const struct topology *host;
    cpu_set_t left; /* allowed and nobody's yet */
};

static cpu_set_t of_core(const struct cores *c, uint32_t core, const cpu_set_t *near)
{
    cpu_set_t cpus;
    CPU_AND(&cpus, &c->host->core[core].cpus, &c->left);
    if (near) CPU_AND(&cpus, &cpus, near);
    return cpus;
}

/* Cores with something left, near (NULL: anywhere). */
static uint32_t count_cores(const struct cores *c, const cpu_set_t *near)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->host->cores_count; i++) {
        cpu_set_t cpus = of_core(c, i, near);
        count += CPU_COUNT(&cpus) > 0;
    }
    return count;
}

/* The first `count` cores in the host's order. */
static cpu_set_t take_cores(struct cores *c, const cpu_set_t *near, uint32_t count)
{
    cpu_set_t taken;
    CPU_ZERO(&taken);
    for (uint32_t i = 0; i < c->host->cores_count && count > 0; i++) {
        cpu_set_t cpus = of_core(c, i, near);
        if (CPU_COUNT(&cpus) == 0) continue;
        CPU_OR(&taken, &taken, &cpus);
        count--;
    }
    CPU_XOR(&c->left, &c->left, &taken);
    return taken;
}

/* `count` CPUs of the set, from different cores as long as there are any. */
static cpu_set_t spread(const struct topology *host, const cpu_set_t *set, uint32_t count)
{
    cpu_set_t left = *set, taken;
    CPU_ZERO(&taken);
    while (count > 0 && CPU_COUNT(&left) > 0)
        for (uint32_t i = 0; i < host->cores_count && count > 0; i++) {
            cpu_set_t cpus;
            CPU_AND(&cpus, &host->core[i].cpus, &left);
            int cpu = cpus_nth(&cpus, 0);
            if (cpu < 0) continue;
            CPU_SET(cpu, &taken);
            CPU_CLR(cpu, &left);
            count--;
        }
    return taken;
}

/* The next `count` CPUs, core by core. */
static cpu_set_t take_cpus(struct cores *c, uint32_t count)
{
    cpu_set_t taken;
    CPU_ZERO(&taken);
    for (uint32_t i = 0; i < c->host->cores_count && count > 0; i++) {
        cpu_set_t cpus = of_core(c, i, NULL);
        for (; count > 0 && CPU_COUNT(&cpus) > 0; count--) {
            int cpu = cpus_nth(&cpus, 0);
            CPU_CLR(cpu, &cpus);
            CPU_CLR(cpu, &c->left);
            CPU_SET(cpu, &taken);
        }
    }
    return taken;
}

/* ---- nodes on GPUs ---- */

static cpu_set_t near_gpu(const struct topology *host, const cpu_set_t *allowed, int32_t gpu)
{
    cpu_set_t near;
    CPU_AND(&near, &host->gpu[gpu].cpus, allowed);
    return near;
}

/* How many nodes have GPUs near exactly these CPUs. */
static uint32_t count_neighbours(const struct topology *host, const cpu_set_t *allowed,
                                 const struct placement_want *want, uint32_t count,
                                 const cpu_set_t *near)
{
    uint32_t neighbours = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (want[i].gpu < 0) continue;
        cpu_set_t cpus = near_gpu(host, allowed, want[i].gpu);
        neighbours += CPU_EQUAL(&cpus, near) != 0;
    }
    return neighbours;
}

/* `beside`: so many nodes on CPUs want some, too. */
static void place_on_gpus(struct cores *c, const cpu_set_t *allowed,
                          const struct placement_want *want, uint32_t count, uint32_t beside,
                          struct placement *place)
{
    const struct topology *host = c->host;
    cpu_set_t all = c->left;
    for (uint32_t i = 0; i < count; i++) {
        struct placement *p = &place[i];
        if (want[i].gpu < 0) continue;
        cpu_set_t near = near_gpu(host, allowed, want[i].gpu);
        struct cores whole = {host, all};
        uint32_t share = count_cores(&whole, &near);
        share /= count_neighbours(host, allowed, want, count, &near) + beside;
        if (beside > 0 && share > PLACEMENT_CORES_BESIDE) share = PLACEMENT_CORES_BESIDE;
        p->own = share > 0 && count_cores(c, &near) >= share;
        p->cpus = p->own ? take_cores(c, &near, share) : near;
        p->numa = host->gpu[want[i].gpu].numa;
    }
}

/* ---- nodes on CPUs ---- */

static void place_on_cpus(struct cores *c, const struct placement_want *want, uint32_t count,
                          uint32_t cpu_nodes, struct placement *place)
{
    uint32_t cpus = (uint32_t)CPU_COUNT(&c->left), threads = 0;
    uint32_t share = cpus / cpu_nodes > 0 ? cpus / cpu_nodes : 1;
    uint32_t cores_share = count_cores(c, NULL) / cpu_nodes;
    for (uint32_t i = 0; i < count; i++) {
        if (want[i].gpu != PLACEMENT_ON_CPU) continue;
        place[i].threads = want[i].threads ? want[i].threads : share;
        threads += place[i].threads;
    }
    if (threads > cpus) return;
    bool whole = true; /* every node's threads fit on its share of whole cores */
    struct cores rest = *c;
    for (uint32_t i = 0; i < count; i++) {
        if (want[i].gpu != PLACEMENT_ON_CPU) continue;
        cpu_set_t own = take_cores(&rest, NULL, cores_share);
        if ((uint32_t)CPU_COUNT(&own) < place[i].threads) whole = false;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct placement *p = &place[i];
        if (want[i].gpu != PLACEMENT_ON_CPU) continue;
        p->own = true;
        if (whole) {
            cpu_set_t own = take_cores(c, NULL, cores_share);
            p->cpus = spread(c->host, &own, p->threads);
        } else {
            p->cpus = take_cpus(c, p->threads);
        }
        p->numa = topology_numa_of(c->host, &p->cpus);
    }
}

void placement_make(const struct topology *host, const cpu_set_t *allowed,
                    const struct placement_want *want, uint32_t count, struct placement *place)
{
    struct cores cores = {.host = host};
    uint32_t cpu_nodes = 0;
    CPU_AND(&cores.left, allowed, &host->cpus);
    cpu_set_t usable = cores.left;
    for (uint32_t i = 0; i < count; i++) {
        place[i] = (struct placement){.numa = -1};
        cpu_nodes += want[i].gpu == PLACEMENT_ON_CPU;
    }
    place_on_gpus(&cores, &usable, want, count, cpu_nodes, place);
    if (cpu_nodes > 0) place_on_cpus(&cores, want, count, cpu_nodes, place);
    for (uint32_t i = 0; i < count; i++)
        if (want[i].gpu != PLACEMENT_GPU_UNKNOWN)
            placement_choose_nics(host, want[i].gpu, &place[i]);
}

void placement_split(const struct topology *host, const struct placement *place, cpu_set_t *engine,
                     cpu_set_t *link, cpu_set_t *loop)
{
    struct cores cores = {host, place->cpus};
    *engine = *link = *loop = place->cpus;
    if (!place->own || count_cores(&cores, NULL) < 3) return;
    *engine = take_cores(&cores, NULL, 1);
    *link = take_cores(&cores, NULL, 1);
    *loop = cores.left;
}

/* ---- network cards ---- */

/* Lower is better; UINT32_MAX: not to be used. */
static uint32_t nic_cost(const struct topology *host, int32_t gpu, int32_t numa, uint32_t nic)
{
    const uint32_t no_rdma = 1u << 24, far = WAY_HOST * 256u, near = WAY_NUMA * 256u;
    const struct topology_nic *n = &host->nic[nic];
    if (n->down || (!n->rdma[0] && !n->net[0])) return UINT32_MAX;
    uint32_t cost = n->rdma[0] ? 0 : no_rdma;
    if (gpu >= 0) return cost + host->gpu[gpu].nic_distance[nic];
    return cost + (numa < 0 || n->numa == numa ? near : far);
}

void placement_choose_nics(const struct topology *host, int32_t gpu, struct placement *place)
{
    uint32_t best = UINT32_MAX;
    place->nics_count = 0;
    for (uint32_t i = 0; i < host->nics_count; i++) {
        uint32_t cost = nic_cost(host, gpu, place->numa, i);
        if (cost == UINT32_MAX || cost > best) continue;
        if (cost < best) place->nics_count = 0;
        best = cost;
        if (place->nics_count < PLACEMENT_NICS_MAX) place->nic[place->nics_count++] = i;
    }
}

void placement_print_nics(const struct topology *host, const struct placement *place, char *text,
                          size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < place->nics_count; i++) {
        const struct topology_nic *n = &host->nic[place->nic[i]];
        const char *name = n->rdma[0] ? n->rdma : n->net;
        size_t need = strlen(name) + (used > 0);
        if (used + need >= size) return;
        used += (size_t)snprintf(text + used, size - used, "%s%s", used > 0 ? "," : "", name);
    }
}
