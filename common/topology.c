#include "common/topology.h"

#include <errno.h>
#include <hwloc.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/mem.h"

enum {
    VENDOR_NVIDIA = 0x10de,
    CLASS_DISPLAY = 0x03, /* the upper byte of a PCI class */
    CLASS_NETWORK = 0x02,
    CLASS_INFINIBAND = 0x0207,
    CLASS_INFINIBAND_OLD = 0x0c06,
    WAY_STEP = 256, /* topology_gpu.nic_distance */
};
#define DRIVER_GPUS "/proc/driver/nvidia/gpus" /* a folder for each that this process may see */

/* ---- CPUs and memory ---- */

static void copy_cpus(hwloc_const_cpuset_t from, cpu_set_t *to)
{
    CPU_ZERO(to);
    if (!from) return;
    for (int cpu = hwloc_bitmap_first(from); cpu >= 0 && cpu < CPU_SETSIZE;
         cpu = hwloc_bitmap_next(from, cpu))
        CPU_SET(cpu, to);
}

static int32_t only_numa(hwloc_const_nodeset_t nodes)
{
    return nodes && hwloc_bitmap_weight(nodes) == 1 ? hwloc_bitmap_first(nodes) : -1;
}

static void read_cores(struct topology *t, hwloc_topology_t h)
{
    hwloc_obj_type_t type =
        hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(h, type, o)) != NULL;) {
        if (t->cores_count == TOPOLOGY_CORES_MAX) return;
        struct topology_core *core = &t->core[t->cores_count++];
        copy_cpus(o->cpuset, &core->cpus);
        core->numa = only_numa(o->nodeset);
        CPU_OR(&t->cpus, &t->cpus, &core->cpus);
    }
}

static void read_numas(struct topology *t, hwloc_topology_t h)
{
    for (hwloc_obj_t o = NULL;
         (o = hwloc_get_next_obj_by_type(h, HWLOC_OBJ_NUMANODE, o)) != NULL;) {
        if (t->numas_count == TOPOLOGY_NUMAS_MAX) return;
        struct topology_numa *numa = &t->numa[t->numas_count++];
        numa->numa = (int32_t)o->os_index;
        copy_cpus(o->cpuset, &numa->cpus);
    }
}

/* ---- PCI devices ---- */

static void print_pci(hwloc_obj_t o, char *text)
{
    const struct hwloc_pcidev_attr_s *a = &o->attr->pcidev;
    snprintf(text, TOPOLOGY_PCI_TEXT, "%04x:%02x:%02x.%01x", a->domain & 0xffff, a->bus,
             a->dev & 0xff, a->func & 0xf);
}

static bool is_gpu(hwloc_obj_t o)
{
    const struct hwloc_pcidev_attr_s *a = &o->attr->pcidev;
    return a->vendor_id == VENDOR_NVIDIA && a->class_id >> 8 == CLASS_DISPLAY;
}

static bool is_nic(hwloc_obj_t o)
{
    uint16_t class = o->attr->pcidev.class_id;
    return class >> 8 == CLASS_NETWORK || class == CLASS_INFINIBAND_OLD;
}

/* In a container the machine shows all of its GPUs and the driver only the container's. */
static bool driver_shows(const struct topology *t, const char *pci)
{
    char path[sizeof DRIVER_GPUS + TOPOLOGY_PCI_TEXT + 1];
    if (!t->this_host || access(DRIVER_GPUS, F_OK) != 0) return true;
    snprintf(path, sizeof path, DRIVER_GPUS "/%s", pci);
    return access(path, F_OK) == 0;
}

static void copy_name(char *to, const char *from)
{
    if (!*to && from) snprintf(to, TOPOLOGY_NAME_TEXT, "%s", from);
}

/* What the kernel calls the card: hwloc hangs these names below the PCI device. */
static void read_names(struct topology_nic *nic, hwloc_obj_t pci)
{
    for (hwloc_obj_t o = pci->io_first_child; o; o = o->next_sibling) {
        if (o->type != HWLOC_OBJ_OS_DEVICE) continue;
        if (o->attr->osdev.type == HWLOC_OBJ_OSDEV_NETWORK) copy_name(nic->net, o->name);
        if (o->attr->osdev.type != HWLOC_OBJ_OSDEV_OPENFABRICS) continue;
        copy_name(nic->rdma, o->name);
        const char *state = hwloc_obj_get_info_by_name(o, "Port1State");
        if (state && atoi(state) != 4) nic->down = true; /* 4: active */
    }
}

static int by_address(const void *a, const void *b)
{
    char text_a[TOPOLOGY_PCI_TEXT], text_b[TOPOLOGY_PCI_TEXT];
    print_pci(*(const hwloc_obj_t *)a, text_a);
    print_pci(*(const hwloc_obj_t *)b, text_b);
    return strcmp(text_a, text_b);
}

static uint32_t find_devices(const struct topology *t, hwloc_topology_t h, bool (*is)(hwloc_obj_t),
                             hwloc_obj_t *objects, uint32_t max)
{
    uint32_t count = 0;
    for (hwloc_obj_t o = NULL; count < max && (o = hwloc_get_next_pcidev(h, o)) != NULL;) {
        char pci[TOPOLOGY_PCI_TEXT];
        print_pci(o, pci);
        if (is(o) && (is != is_gpu || driver_shows(t, pci))) objects[count++] = o;
    }
    qsort(objects, count, sizeof *objects, by_address);
    return count;
}

static void read_gpu(struct topology_gpu *gpu, hwloc_topology_t h, hwloc_obj_t o)
{
    hwloc_obj_t near = hwloc_get_non_io_ancestor_obj(h, o);
    print_pci(o, gpu->pci);
    copy_cpus(near->cpuset, &gpu->cpus);
    gpu->numa = only_numa(near->nodeset);
}

static void read_nic(struct topology_nic *nic, hwloc_topology_t h, hwloc_obj_t o)
{
    uint16_t class = o->attr->pcidev.class_id;
    print_pci(o, nic->pci);
    nic->infiniband = class == CLASS_INFINIBAND || class == CLASS_INFINIBAND_OLD;
    nic->numa = only_numa(hwloc_get_non_io_ancestor_obj(h, o)->nodeset);
    read_names(nic, o);
}

static bool is_io(hwloc_obj_t o)
{
    return o->type == HWLOC_OBJ_BRIDGE || o->type == HWLOC_OBJ_PCI_DEVICE;
}

static uint32_t io_depth(hwloc_obj_t o)
{
    uint32_t depth = 0;
    while (o->parent && is_io(o->parent)) {
        o = o->parent;
        depth++;
    }
    return depth;
}

static bool is_host_bridge(hwloc_obj_t o)
{
    return o->type == HWLOC_OBJ_BRIDGE && o->attr->bridge.upstream_type == HWLOC_OBJ_BRIDGE_HOST;
}

/* Up from both to where they meet. hwloc_get_common_ancestor_obj is not for PCI devices. */
static uint16_t distance_of(hwloc_obj_t a, hwloc_obj_t b)
{
    uint32_t hops = 0, depth_a = io_depth(a), depth_b = io_depth(b);
    for (; depth_a > depth_b; depth_a--, hops++)
        a = a->parent;
    for (; depth_b > depth_a; depth_b--, hops++)
        b = b->parent;
    for (; a != b && is_io(a); hops += 2) {
        a = a->parent;
        b = b->parent;
    }
    enum topology_way way = WAY_SWITCH;
    if (a != b || !is_io(a) || is_host_bridge(a)) {
        while (is_io(a))
            a = a->parent;
        while (is_io(b))
            b = b->parent;
        hwloc_obj_t package = a;
        while (package && package->type != HWLOC_OBJ_PACKAGE)
            package = package->parent;
        way = WAY_HOST;
        if (package && hwloc_bitmap_isincluded(b->cpuset, package->cpuset)) way = WAY_PACKAGE;
        if (only_numa(a->nodeset) >= 0 && only_numa(a->nodeset) == only_numa(b->nodeset))
            way = WAY_NUMA;
    }
    return (uint16_t)(way * WAY_STEP + (hops < WAY_STEP ? hops : WAY_STEP - 1));
}

static void read_devices(struct topology *t, hwloc_topology_t h)
{
    hwloc_obj_t gpus[TOPOLOGY_GPUS_MAX], nics[TOPOLOGY_NICS_MAX];
    t->gpus_count = find_devices(t, h, is_gpu, gpus, TOPOLOGY_GPUS_MAX);
    t->nics_count = find_devices(t, h, is_nic, nics, TOPOLOGY_NICS_MAX);
    for (uint32_t g = 0; g < t->gpus_count; g++)
        read_gpu(&t->gpu[g], h, gpus[g]);
    for (uint32_t n = 0; n < t->nics_count; n++)
        read_nic(&t->nic[n], h, nics[n]);
    for (uint32_t g = 0; g < t->gpus_count; g++)
        for (uint32_t n = 0; n < t->nics_count; n++)
            t->gpu[g].nic_distance[n] = distance_of(gpus[g], nics[n]);
}

/* ---- reading ---- */

static enum err load(hwloc_topology_t h, enum topology_parts parts)
{
    hwloc_topology_set_io_types_filter(h, parts == TOPOLOGY_DEVICES
                                              ? HWLOC_TYPE_FILTER_KEEP_IMPORTANT
                                              : HWLOC_TYPE_FILTER_KEEP_NONE);
    if (parts == TOPOLOGY_DEVICES)
        hwloc_topology_set_type_filter(h, HWLOC_OBJ_BRIDGE, HWLOC_TYPE_FILTER_KEEP_ALL);
    if (hwloc_topology_load(h) == 0) return OK;
    return err_set(ERR_UNSUPPORTED, "hwloc cannot read this host's topology: %s", strerror(errno));
}

enum err topology_read(enum topology_parts parts, struct topology **host)
{
    hwloc_topology_t h;
    enum err e = ERR_MEMORY;
    *host = NULL;
    if (hwloc_topology_init(&h) != 0)
        return err_set(ERR_UNSUPPORTED, "hwloc cannot begin: %s", strerror(errno));
    struct topology *t = mem_new(sizeof *t);
    if (!t || (e = load(h, parts)) != OK) goto fail;
    t->this_host = hwloc_topology_is_thissystem(h) == 1;
    int packages = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_PACKAGE);
    t->packages_count = packages > 0 ? (uint32_t)packages : 1;
    read_cores(t, h);
    read_numas(t, h);
    if (parts == TOPOLOGY_DEVICES) read_devices(t, h);
    hwloc_topology_destroy(h);
    *host = t;
    return OK;
fail:
    hwloc_topology_destroy(h);
    mem_free(t);
    return e;
}

/* ---- asking ---- */

static bool parse_pci(const char *text, unsigned part[4])
{
    int end = 0;
    if (sscanf(text, "%x:%x:%x.%x%n", &part[0], &part[1], &part[2], &part[3], &end) == 4 &&
        text[end] == '\0')
        return true;
    part[0] = 0;
    return sscanf(text, "%x:%x.%x%n", &part[1], &part[2], &part[3], &end) == 3 && text[end] == '\0';
}

const struct topology_gpu *topology_gpu_at(const struct topology *host, const char *pci)
{
    unsigned want[4], have[4];
    if (!parse_pci(pci, want)) return NULL;
    for (uint32_t i = 0; i < host->gpus_count; i++)
        if (parse_pci(host->gpu[i].pci, have) && memcmp(want, have, sizeof want) == 0)
            return &host->gpu[i];
    return NULL;
}

int32_t topology_numa_of(const struct topology *host, const cpu_set_t *cpus)
{
    cpu_set_t both;
    if (CPU_COUNT(cpus) == 0) return -1;
    for (uint32_t i = 0; i < host->numas_count; i++) {
        CPU_AND(&both, cpus, &host->numa[i].cpus);
        if (CPU_EQUAL(&both, cpus)) return host->numa[i].numa;
    }
    return -1;
}

const char *topology_way_name(uint16_t distance)
{
    static const char *const names[] = {"", "switch", "numa", "package", "host"};
    uint32_t way = distance / WAY_STEP;
    return way < sizeof names / sizeof *names ? names[way] : "";
}

enum err topology_bind_memory(int32_t numa)
{
    enum { WORD = 8 * sizeof(unsigned long), WORDS = 1024 / WORD };
    unsigned long mask[WORDS] = {0};
    if (numa < 0 || numa >= 1024) return err_set(ERR_INVALID, "NUMA node %d", numa);
    mask[numa / WORD] |= 1ul << (unsigned)numa % WORD;
    if (syscall(SYS_set_mempolicy, MPOL_PREFERRED, mask, (unsigned long)WORDS * WORD + 1) == 0)
        return OK;
    return err_set(ERR_UNSUPPORTED, "NUMA node %d: %s", numa, strerror(errno));
}
