#include "node/place.h"

#include <ifaddrs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/log.h"
#include "common/mem.h"
#include "engine/engine.h"

enum err node_numa_parse(const char *text, int32_t *numa)
{
    char *end;
    *numa = strcmp(text, "auto") == 0 ? NODE_NUMA_AUTO : NODE_NUMA_OFF;
    if (strcmp(text, "auto") == 0 || strcmp(text, "off") == 0) return OK;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 0 || value > 1023)
        return err_set(ERR_INVALID, "--numa \"%s\": auto, off or a number from 0 to 1023", text);
    *numa = (int32_t)value;
    return OK;
}

void node_place_bind(const struct node_place *place, const cpu_set_t *cpus)
{
    if (!place->bound || CPU_COUNT(cpus) == 0) return;
    if (cpus_bind(cpus) != OK) log_warn("cpus_not_bound", "reason=\"%s\"", err_text());
}

static void bind_memory(const struct node_place *place, const struct topology *host)
{
    if (!place->bound || place->numa < 0 || host->numas_count < 2) return;
    if (topology_bind_memory(place->numa) != OK)
        log_warn("memory_not_bound", "reason=\"%s\"", err_text());
}

/* ---- network cards ---- */

static bool has_address(const char *interface)
{
    struct ifaddrs *all;
    bool found = false;
    if (getifaddrs(&all) != 0) return false;
    for (const struct ifaddrs *a = all; a && !found; a = a->ifa_next)
        found = a->ifa_addr && strcmp(a->ifa_name, interface) == 0 &&
                (a->ifa_addr->sa_family == AF_INET || a->ifa_addr->sa_family == AF_INET6);
    freeifaddrs(all);
    return found;
}

/* NCCL takes the cards near the GPU, unless the user has told it which. */
static void tell_nccl(const struct topology *host, const struct placement *p, const char *nics,
                      const char *interface)
{
    char value[PLACEMENT_TEXT + 2];
    if (!host->this_host || p->nics_count == 0) return;
    const struct topology_nic *first = &host->nic[p->nic[0]];
    const char *name = first->rdma[0] ? "NCCL_IB_HCA" : "NCCL_SOCKET_IFNAME";
    if (getenv("NCCL_IB_HCA") || getenv("NCCL_SOCKET_IFNAME") || getenv("NCCL_NET")) {
        log_info("nccl_card_told", "near=%s by=environment", nics);
        return;
    }
    bool told = interface && *interface;
    if (!first->rdma[0] && (told || p->nics_count > 1 || !has_address(first->net))) return;
    snprintf(value, sizeof value, "=%s", nics);
    if (setenv(name, value, 0) == 0) log_info("nccl_card_chosen", "%s=\"%s\"", name, value);
}

/* ---- where ---- */

static int32_t gpu_index(const struct topology *host, const char *pci)
{
    const struct topology_gpu *gpu = topology_gpu_at(host, pci);
    if (gpu) return (int32_t)(gpu - host->gpu);
    log_info("gpu_not_in_topology", "pci=%s", pci);
    return PLACEMENT_GPU_UNKNOWN;
}

static cpu_set_t cpus_of_numa(const struct topology *host, int32_t numa, const cpu_set_t *allowed)
{
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (uint32_t i = 0; i < host->numas_count && numa >= 0; i++)
        if (host->numa[i].numa == numa) CPU_AND(&cpus, &host->numa[i].cpus, allowed);
    return cpus;
}

/* Engine, link and loop apart where the CPUs are nobody else's, all over them where they may be. */
static void place_on_gpu(struct node_place *place, const struct topology *host,
                         const struct node_place_options *o, const cpu_set_t *allowed)
{
    struct placement p = {.own = CPU_COUNT(&o->cpus) > 0, .cpus = o->cpus, .numa = o->numa};
    int32_t gpu = gpu_index(host, place->pci);
    bool automatic = o->numa == NODE_NUMA_AUTO;
    if (automatic && gpu >= 0) p.numa = host->gpu[gpu].numa;
    if (automatic && p.numa < 0) p.numa = topology_numa_of(host, &p.cpus);
    if (!p.own && automatic && gpu >= 0) CPU_AND(&p.cpus, &host->gpu[gpu].cpus, allowed);
    if (!p.own && !automatic) p.cpus = cpus_of_numa(host, p.numa, allowed);
    placement_split(host, &p, &place->engine, &place->link, &place->loop);
    if (CPU_EQUAL(&place->engine, &place->loop)) CPU_ZERO(&place->engine); /* pins to one */
    place->numa = p.numa;
    cpus_print(&p.cpus, place->cpus, sizeof place->cpus);
    if (gpu >= 0) placement_choose_nics(host, gpu, &p);
    placement_print_nics(host, &p, place->nics, sizeof place->nics);
    tell_nccl(host, &p, place->nics, o->nccl_interface);
    node_place_bind(place, &p.cpus);
}

/* Compute threads are pinned to what was told; the others stay near them. */
static void place_on_cpu(struct node_place *place, const struct topology *host,
                         const struct node_place_options *o, const cpu_set_t *allowed)
{
    place->numa = o->numa == NODE_NUMA_AUTO ? topology_numa_of(host, &o->cpus) : o->numa;
    place->engine = o->cpus;
    if (host->numas_count > 1) place->link = cpus_of_numa(host, place->numa, allowed);
    place->loop = place->link;
    const cpu_set_t *all = CPU_COUNT(&o->cpus) > 0 ? &o->cpus : &place->loop;
    cpus_print(all, place->cpus, sizeof place->cpus);
    node_place_bind(place, &place->loop);
}

void node_place_find(struct node_place *place, const struct node_place_options *o)
{
    struct topology *host;
    cpu_set_t allowed;
    *place = (struct node_place){.engine = o->cpus, .numa = -1};
    if (engine_pci_address(o->device, place->pci, sizeof place->pci) != OK)
        place->pci[0] = '\0'; /* opening the device says what is wrong with it */
    for (char *c = place->pci; *c; c++)
        if (*c >= 'A' && *c <= 'F') *c += 'a' - 'A';
    if (!place->pci[0] && CPU_COUNT(&o->cpus) == 0 && o->numa < 0) return;
    if (topology_read(place->pci[0] ? TOPOLOGY_DEVICES : TOPOLOGY_CPUS, &host) != OK) {
        log_warn("topology_unknown", "reason=\"%s\"", err_text());
        return;
    }
    place->bound = host->this_host;
    cpus_allowed(&allowed);
    if (!host->this_host) allowed = host->cpus;
    if (place->pci[0])
        place_on_gpu(place, host, o, &allowed);
    else
        place_on_cpu(place, host, o, &allowed);
    if (place->numa < 0) place->numa = -1; /* off, too */
    if (!place->bound) CPU_ZERO(&place->engine);
    bind_memory(place, host);
    log_info("node_placed", "pci=%s numa=%d cpus=%s cards=%s", place->pci, place->numa,
             place->cpus[0] ? place->cpus : "any", place->nics);
    mem_free(host);
}
