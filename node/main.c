#include "node/main.h"

#include <stdio.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/settings.h"
#include "node/shell.h"

struct options {
    const char *model, *name, *device, *cpus, *numa, *cache_dir, *listen_kv, *metrics;
    const char *nccl_interface, *nccl_listen, *kv_events, *kv_events_replay, *kv_events_topic;
    struct setting_list routers;
    bool trusted_network, prefix_cache, deterministic, dry_run;
    double kv_share;
    int dtype, link, evict, preempted, kv_events_form, log_level;
    int64_t tenant_quota;
    int64_t threads, blocks_count, context_max, chunk_tokens, sequences_max, device_links;
    uint64_t kv_bytes, link_retry_ns, heartbeat_ns, dead_ns, reserve_timeout_ns, prefix_wait_ns;
    uint64_t evict_ttl_ns, kv_host_bytes, kv_disk_bytes, kv_redis_ttl_ns, kv_tier_deadline_ns;
    const char *kv_disk, *kv_redis, *kv_redis_user, *kv_redis_password;
};

static const struct setting rows[] = {
    SETTING_STRING(struct options, model, "model", NULL,
                   "model directory (config.json, *.safetensors)"),
    SETTING_LIST(struct options, routers, "router",
                 "a router's address for nodes; repeat for several (tcp://127.0.0.1:5701)"),
    SETTING_STRING(struct options, name, "name", NULL,
                   "name of this node, unique in the cluster (role and process id)"),
    SETTING_STRING(struct options, device, "device", "cpu",
                   "cpu: the best path of this machine; cpu-c, cpu-avx2, cpu-avx512 force one; "
                   "cuda or cuda:N: GPU N"),
    SETTING_INT(
        struct options, threads, "threads", "0", 0, 1024,
        "compute threads; 0: one for each of cpus, or for each CPU that the process may use"),
    SETTING_STRING(
        struct options, cpus, "cpus", NULL,
        "CPUs for this node alone, like 0-7,16: a compute thread is pinned to each; on a "
        "GPU engine, link and loop share them out (near the GPU, and not pinned)"),
    SETTING_STRING(
        struct options, numa, "numa", "auto",
        "NUMA node of its memory, and of threads that cpus does not place: a number, off, "
        "or auto: the GPU's, or that of cpus"),
    SETTING_CHOICE(struct options, dtype, "dtype", "auto|fp32|bf16", "auto",
                   "type of weights and KV; auto: the file's"),
    SETTING_STRING(struct options, cache_dir, "cache-dir", NULL,
                   "where packed weights are kept; none: nowhere (TANDEM_CACHE, ~/.cache/tandem)"),
    SETTING_INT(struct options, blocks_count, "blocks", "0", 0, 1e9,
                "KV pool in blocks of 16 tokens; 0: as many as kv-bytes holds"),
    SETTING_SIZE(struct options, kv_bytes, "kv-bytes", "0", 0, 1e15,
                 "KV pool in bytes; 0: one full context, at least 64M; on a GPU: kv-share"),
    SETTING_DOUBLE(struct options, kv_share, "kv-share", "0.9", 0.01, 1,
                   "KV pool on a GPU: this share of the memory that weights and buffers leave"),
    SETTING_BOOL(struct options, deterministic, "deterministic", "false",
                 "on a GPU: a request's bits do not depend on the others in its steps (slower)"),
    SETTING_INT(struct options, context_max, "context", "0", 0, 1 << 24,
                "longest sequence in tokens; 0: the model's"),
    SETTING_INT(struct options, chunk_tokens, "chunk", "0", 0, 65536,
                "prompt tokens computed in one step; 0: the role's (prefill 512, decode 64)"),
    SETTING_INT(struct options, sequences_max, "batch", "0", 0, 1024,
                "sequences decoded in one step; 0: the role's (prefill 8, decode 32)"),
    SETTING_BOOL(struct options, prefix_cache, "prefix-cache", "true",
                 "keep blocks of ended sequences for prompts that begin alike"),
    SETTING_CHOICE(struct options, evict, "evict", EVICT_POLICIES, "lfu",
                   "which of them go first when the pool is full (docs/kv-memory.md)"),
    SETTING_INT(struct options, tenant_quota, "tenant-quota", "100", 1, 100,
                "percent of the pool that one tenant may have cached (docs/kv-memory.md)"),
    SETTING_DURATION(struct options, evict_ttl_ns, "evict-ttl", "5m", NS_PER_MS,
                     24 * 3600 * NS_PER_S,
                     "with --evict ttl: blocks go when nobody used them for so long"),
    SETTING_CHOICE(
        struct options, preempted, "preempted", "auto|recompute|hand-back", "auto",
        "sequences that made room for others: computed again here, or by a prefill node"),
    SETTING_SIZE(struct options, kv_host_bytes, "kv-host-bytes", "0", 0, 1e15,
                 "on a GPU: host memory for blocks that the pool lets go of; 0: none"),
    SETTING_STRING(struct options, kv_disk, "kv-disk", NULL,
                   "directory, for this node alone, that keeps blocks over restarts; unset: off"),
    SETTING_SIZE(struct options, kv_disk_bytes, "kv-disk-bytes", "16G", 16 << 20, 1e15,
                 "what kv-disk holds at most; the blocks used least recently go first"),
    SETTING_STRING(struct options, kv_redis, "kv-redis", NULL,
                   "HOST:PORT or unix:PATH of a Redis or Valkey server that nodes share blocks "
                   "through; unset: off"),
    SETTING_STRING(struct options, kv_redis_user, "kv-redis-user", NULL,
                   "user of that server; unset: its default one"),
    SETTING_STRING(struct options, kv_redis_password, "kv-redis-password", NULL,
                   "file that has the password for it, in one line; unset: none"),
    SETTING_DURATION(struct options, kv_redis_ttl_ns, "kv-redis-ttl", "0", 0,
                     365 * 24 * 3600 * NS_PER_S,
                     "blocks in it that nobody reads for so long go; 0: as the server is set up"),
    SETTING_DURATION(struct options, kv_tier_deadline_ns, "kv-tier-deadline", "20ms", NS_PER_MS,
                     60 * NS_PER_S,
                     "for what these hold a prompt waits so much longer than computing what came "
                     "would have taken, at most, and computes the rest"),
    SETTING_CHOICE(struct options, link, "link", OWN_LINKS, "auto",
                   "how KV travels between nodes; auto: the best that both have, by what was "
                   "measured; nccl and ipc: from GPU to GPU"),
    SETTING_STRING(struct options, nccl_interface, "nccl-interface", "",
                   "network interface of NCCL's own connections, as NCCL_SOCKET_IFNAME names it; "
                   "none: lo, or what NCCL chooses on a trusted network"),
    SETTING_STRING(struct options, nccl_listen, "nccl-listen", "",
                   "HOST:PORT where links over NCCL are set up; none: listen-kv's host, any port"),
    SETTING_INT(struct options, device_links, "device-links", "32", 1, 256,
                "links over nccl or ipc open at once, each with some 64M of the GPU's memory; "
                "beyond it the one used least recently makes room"),
    SETTING_DURATION(struct options, link_retry_ns, "link-retry", "1s", NS_PER_MS, 60 * NS_PER_S,
                     "a link that broke is tried again after so long, then twice as long each "
                     "time up to 60 times that; others carry meanwhile"),
    SETTING_STRING(
        struct options, listen_kv, "listen-kv", "127.0.0.1:0",
        "HOST:PORT of the tcp link; 0.0.0.0: the address that faces the router; port 0: any"),
    SETTING_STRING(
        struct options, metrics, "metrics", NULL,
        "HOST:PORT of the HTTP pages /metrics, /healthz, /readyz; port 0: any; unset: off"),
    SETTING_STRING(struct options, kv_events, "kv-events", NULL,
                   "tcp://HOST:PORT where what enters and leaves the cache is published in vLLM's "
                   "form, token ids included (docs/kv-memory.md); port 0: any; unset: off"),
    SETTING_STRING(struct options, kv_events_replay, "kv-events-replay", NULL,
                   "tcp://HOST:PORT where those who missed some of it ask for them; unset: off"),
    SETTING_CHOICE(struct options, kv_events_form, "kv-events-form", "array|map", "array",
                   "how events are written: array, as vLLM did up to 0.23, which routers take; "
                   "map, as it and SGLang do since"),
    SETTING_STRING(struct options, kv_events_topic, "kv-events-topic", NULL,
                   "their topic, for readers that insist on one; unset: kv@NAME@MODEL"),
    SETTING_BOOL(struct options, trusted_network, "trusted-network", "false",
                 "allow addresses beyond loopback: nothing is encrypted or authenticated"),
    SETTING_DURATION(struct options, heartbeat_ns, "heartbeat", "200ms", NS_PER_MS, 60 * NS_PER_S,
                     "time between signs of life"),
    SETTING_DURATION(struct options, dead_ns, "dead-after", "3s", NS_PER_MS, 600 * NS_PER_S,
                     "a router that was silent for so long is dead"),
    SETTING_DURATION(struct options, reserve_timeout_ns, "reserve-timeout", "30s", NS_PER_MS,
                     3600 * NS_PER_S, "a job for which nothing happened in this time fails"),
    SETTING_DURATION(struct options, prefix_wait_ns, "prefix-wait", "2s", 0, 600 * NS_PER_S,
                     "how long a prompt waits for a prefix that another one computes"),
    SETTING_BOOL(struct options, dry_run, "dry-run", "false",
                 "look at the settings and at the device, say what is wrong, and start nothing"),
    SETTING_CHOICE(struct options, log_level, "log-level", "debug|info|warn|error|off", "info",
                   "lowest level of the lines on stderr"),
};

static uint32_t or_policy(int64_t told, uint32_t policys)
{
    return told > 0 ? (uint32_t)told : policys;
}

static struct node_options shell_options(const struct options *o, const struct node_policy *policy)
{
    static const char *const default_router[] = {"tcp://127.0.0.1:5701"};
    static const enum dtype dtypes[] = {DTYPE_NONE, DTYPE_F32, DTYPE_BF16};
    bool routers_given = o->routers.count > 0;
    struct node_options s = {
        .policy = policy,
        .name = o->name,
        .routers = routers_given ? o->routers.item : default_router,
        .routers_count = routers_given ? (uint32_t)o->routers.count : 1,
        .metrics = o->metrics,
        .kv_events = o->kv_events,
        .kv_events_replay = o->kv_events_replay,
        .kv_events_form = o->kv_events_form,
        .kv_events_topic = o->kv_events_topic,
        .links = {.link = (enum own_link)o->link,
                  .listen_kv = o->listen_kv,
                  .nccl_interface = o->nccl_interface,
                  .nccl_listen = o->nccl_listen,
                  .device_links_max = (uint32_t)o->device_links,
                  .retry_ns = o->link_retry_ns},
        .cpus = o->cpus,
        .numa = o->numa,
        .trusted_network = o->trusted_network,
        .prefix_cache = o->prefix_cache,
        .preempted = (enum preempted)o->preempted,
        .evict = {.policy = (enum evict_policy)o->evict,
                  .ttl_ns = o->evict_ttl_ns,
                  .tenant_percent_max = o->tenant_quota < 100 ? (uint32_t)o->tenant_quota : 0},
        .tiers = {.host_bytes = o->kv_host_bytes,
                  .disk = o->kv_disk,
                  .disk_bytes = o->kv_disk_bytes,
                  .redis = o->kv_redis,
                  .redis_user = o->kv_redis_user,
                  .redis_password_file = o->kv_redis_password,
                  .redis_ttl_ns = o->kv_redis_ttl_ns,
                  .deadline_ns = o->kv_tier_deadline_ns},
        .engine = {.model_dir = o->model,
                   .cache_dir = o->cache_dir,
                   .backend = o->device,
                   .dtype = dtypes[o->dtype],
                   .threads = (uint32_t)o->threads,
                   .blocks_count = (uint32_t)o->blocks_count,
                   .kv_bytes = o->kv_bytes,
                   .kv_share = o->kv_share,
                   .deterministic = o->deterministic,
                   .context_max = (uint32_t)o->context_max},
        .chunk_tokens = or_policy(o->chunk_tokens, policy->chunk_tokens),
        .sequences_max = or_policy(o->sequences_max, policy->sequences_max),
        .session = SESSION_LIMITS_DEFAULT,
        .reserve_timeout_ns = o->reserve_timeout_ns,
        .prefix_wait_ns = o->prefix_wait_ns,
    };
    s.session.heartbeat_ns = o->heartbeat_ns;
    s.session.dead_ns = o->dead_ns;
    return s;
}

static int run(const struct node_options *options, bool dry_run)
{
    struct node_shell *shell = NULL;
    int status = 2;
    enum err e = node_options_check(options);
    if (e == OK) {
        status = 1;
        e = dry_run ? engine_try_backend(options->engine.backend)
                    : node_shell_open(&shell, options);
    }
    if (e == OK && !dry_run) e = node_shell_run(shell);
    if (e != OK) fprintf(stderr, "%s: %s\n", options->policy->program, err_text());
    node_shell_close(shell);
    return e == OK ? 0 : status;
}

int node_main(const struct node_policy *policy, int argc, char **argv)
{
    struct options o = {0};
    char name[64];
    const struct settings_table tables[] = {{rows, COUNT_OF(rows), &o}};
    const struct settings_program program = {.name = policy->program,
                                             .about = policy->about,
                                             .section = policy->section,
                                             .tables = tables,
                                             .tables_count = COUNT_OF(tables)};
    struct settings settings;
    int status;
    if (!settings_main(&settings, &program, argc, argv, &status)) return status;
    snprintf(name, sizeof name, "%s-%d", policy->name, (int)getpid());
    if (!o.name) o.name = name;
    log_setup((enum log_level)o.log_level, o.name);
    if (!o.model) {
        fprintf(stderr, "%s: --model is not given: the directory of the model to serve\n",
                policy->program);
        status = 2;
    } else {
        struct node_options options = shell_options(&o, policy);
        status = run(&options, o.dry_run);
    }
    settings_fini(&settings);
    return status;
}
