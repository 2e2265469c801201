#include "client/up_plan.h"

#include <stdlib.h>
#include <string.h>

#include "common/cpus.h"
#include "common/mem.h"

/* The GPU that CUDA shows as `index`; -1: nobody can tell from here. */
static int32_t shown_gpu(uint32_t index)
{
    const char *order = getenv("CUDA_DEVICE_ORDER"), *at = getenv("CUDA_VISIBLE_DEVICES");
    if (order && strcmp(order, "PCI_BUS_ID") != 0) return -1;
    if (!at) return (int32_t)index;
    for (;; at++) {
        char *end;
        unsigned long gpu = strtoul(at, &end, 10);
        if (end == at || (*end != ',' && *end != '\0') || gpu > 1023) return -1;
        if (index-- == 0) return (int32_t)gpu;
        if (*end == '\0') return -1;
        at = end;
    }
}

static int32_t gpu_of(const struct up_plan *plan, const char *device)
{
    if (strncmp(device, "cuda", 4) != 0) return PLACEMENT_ON_CPU;
    int32_t gpu = shown_gpu(device[4] == ':' ? (uint32_t)atoi(device + 5) : 0);
    return gpu >= 0 && (uint32_t)gpu < plan->host->gpus_count ? gpu : PLACEMENT_GPU_UNKNOWN;
}

/* Without a topology CPUs are shared out by number alone. */
static void share_threads(struct up_plan *plan, const cpu_set_t *allowed)
{
    uint32_t share = (uint32_t)CPU_COUNT(allowed) / plan->count;
    for (uint32_t i = 0; i < plan->count; i++) {
        struct up_node *n = &plan->node[i];
        n->place = (struct placement){.numa = -1};
        n->place.threads = n->threads ? n->threads : share > 0 ? share : 1;
    }
}

enum err up_plan_make(struct up_plan *plan)
{
    struct placement_want want[UP_NODES_MAX];
    struct placement place[UP_NODES_MAX];
    cpu_set_t allowed;
    enum err e = topology_read(TOPOLOGY_DEVICES, &plan->host);
    cpus_allowed(&allowed);
    if (e == ERR_MEMORY) return e;
    if (e != OK) {
        share_threads(plan, &allowed);
        return OK;
    }
    if (!plan->host->this_host) allowed = plan->host->cpus;
    for (uint32_t i = 0; i < plan->count; i++) {
        struct up_node *n = &plan->node[i];
        want[i] = (struct placement_want){gpu_of(plan, n->device), n->threads};
        n->known = want[i].gpu >= 0 ? plan->host->gpu[want[i].gpu].pci : "";
    }
    placement_make(plan->host, &allowed, want, plan->count, place);
    for (uint32_t i = 0; i < plan->count; i++)
        plan->node[i].place = place[i];
    if (setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 0) != 0) return ERR_MEMORY;
    return OK;
}

/* ---- what people see ---- */

static const char *plural(uint32_t count)
{
    return count == 1 ? "" : "s";
}

static void print_host(const struct topology *t, FILE *out)
{
    fprintf(out,
            "%s: %u package%s, %u NUMA node%s, %u core%s, %d CPUs, %u GPU%s, %u network card%s\n",
            t->this_host ? "this host" : "a host that is not this one", t->packages_count,
            plural(t->packages_count), t->numas_count, plural(t->numas_count), t->cores_count,
            plural(t->cores_count), CPU_COUNT(&t->cpus), t->gpus_count, plural(t->gpus_count),
            t->nics_count, plural(t->nics_count));
    for (uint32_t i = 0; i < t->gpus_count; i++)
        fprintf(out, "  gpu %-2u %s  numa %d\n", i, t->gpu[i].pci, t->gpu[i].numa);
    for (uint32_t i = 0; i < t->nics_count; i++) {
        const struct topology_nic *n = &t->nic[i];
        fprintf(out, "  card   %s  numa %d  %s %s%s%s%s\n", n->pci, n->numa,
                n->infiniband ? "infiniband"
                : n->rdma[0]  ? "roce"
                              : "ethernet",
                n->rdma[0] ? n->rdma : n->net, n->rdma[0] && n->net[0] ? " " : "",
                n->rdma[0] ? n->net : "", n->down ? " (down)" : "");
    }
}

static void print_node(const struct topology *t, const struct up_node *n, FILE *out)
{
    char cpus[CPUS_TEXT], nics[PLACEMENT_TEXT];
    const struct placement *p = &n->place;
    cpus_print(&p->cpus, cpus, sizeof cpus);
    fprintf(out, "  %-4s on %s", n->name, n->device);
    if (n->known && n->known[0]) fprintf(out, "  %s", n->known);
    if (p->numa >= 0) fprintf(out, "  numa %d", p->numa);
    fprintf(out, "  cpus %s", !cpus[0] ? "any" : cpus);
    if (cpus[0] && !p->own) fprintf(out, " (shared)");
    if (p->threads) fprintf(out, "  threads %u", p->threads);
    if (t) placement_print_nics(t, p, nics, sizeof nics);
    if (t && n->known && n->known[0] && nics[0])
        fprintf(out, "  card %s (%s)", nics,
                topology_way_name(topology_gpu_at(t, n->known)->nic_distance[p->nic[0]]));
    fputc('\n', out);
}

void up_plan_print(const struct up_plan *plan, FILE *out)
{
    if (plan->host)
        print_host(plan->host, out);
    else
        fprintf(out, "this host's topology is not known: %s\n", err_text());
    for (uint32_t i = 0; i < plan->count; i++)
        print_node(plan->host, &plan->node[i], out);
    fflush(out);
}

json_t *up_plan_event(const struct up_node *n)
{
    char cpus[CPUS_TEXT];
    const struct placement *p = &n->place;
    cpus_print(&p->cpus, cpus, sizeof cpus);
    return json_pack("{s:s, s:s, s:s, s:s*, s:o*, s:s*, s:o*, s:o*}", "event", "plan", "node",
                     n->name, "device", n->device, "pci", n->known && n->known[0] ? n->known : NULL,
                     "numa", p->numa >= 0 ? json_integer(p->numa) : NULL, "cpus",
                     cpus[0] ? cpus : NULL, "own", cpus[0] ? json_boolean(p->own) : NULL, "threads",
                     p->threads ? json_integer(p->threads) : NULL);
}

void up_plan_fini(struct up_plan *plan)
{
    mem_free(plan->host);
    plan->host = NULL;
}
