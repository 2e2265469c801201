/* tandem-router: takes requests from clients and has them computed by prefill and decode nodes. */
#include <stdio.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/settings.h"
#include "router/shell.h"

struct options {
    const char *name, *model, *listen_clients, *listen_nodes, *listen_lifeline, *metrics;
    const char *tenant_weights, *salt_key;
    bool trusted_network, exact, kv_words, forks;
    int disaggregate, backfill, log_level;
    int64_t tenant_reserve;
    int64_t requests_max, history_max, deaths_max, lone_deaths_max;
    uint64_t prefix_index;
    uint64_t queued_tokens_max, queue_timeout_ns, stall_timeout_ns, heartbeat_ns, dead_ns, hung_ns;
};

static const struct setting rows[] = {
    SETTING_STRING(struct options, name, "name", "r0", "name of this router in logs and status"),
    SETTING_STRING(struct options, model, "model", NULL,
                   "model directory, for its tokenizer; without it prompts must be token ids"),
    SETTING_STRING(struct options, listen_clients, "listen-clients", "tcp://127.0.0.1:5700",
                   "address for clients"),
    SETTING_STRING(struct options, listen_nodes, "listen-nodes", "tcp://127.0.0.1:5701",
                   "address for prefill and decode nodes"),
    SETTING_STRING(struct options, listen_lifeline, "listen-lifeline", "127.0.0.1:0",
                   "HOST:PORT for lifelines, whose end tells that a process died; port 0: any"),
    SETTING_STRING(
        struct options, metrics, "metrics", NULL,
        "HOST:PORT of the HTTP pages /metrics, /healthz, /readyz; port 0: any; unset: off"),
    SETTING_BOOL(struct options, trusted_network, "trusted-network", "false",
                 "allow addresses beyond loopback: nothing is encrypted or authenticated"),
    SETTING_CHOICE(struct options, disaggregate, "disaggregate", "auto|always|never", "auto",
                   "prefill on a node of its own: when it pays, always, or never"),
    SETTING_BOOL(struct options, exact, "exact", "true",
                 "take only nodes whose results have the same bits (docs/numerics.md, G6)"),
    SETTING_BOOL(struct options, kv_words, "kv-words", "true",
                 "show clients the first words of cached prompts, whosever they are (tandem kv)"),
    SETTING_CHOICE(struct options, backfill, "backfill", "auto|always|never", "auto",
                   "bring what a decode node has of a prompt to the prefill node that computes "
                   "the rest: when it pays, always, or never"),
    SETTING_BOOL(struct options, forks, "forks", "true",
                 "the samples of a request share their prompt's KV on a decode node"),
    SETTING_INT(struct options, requests_max, "requests-max", "4096", 1, 1000000,
                "requests in the system at once; beyond it they are refused at the door"),
    SETTING_SIZE(struct options, queued_tokens_max, "queued-tokens-max", "4M", 1, 1e12,
                 "prompt tokens that may wait; beyond it requests are refused at the door"),
    SETTING_SIZE(struct options, prefix_index, "prefix-index", "1M", 0, 1e9,
                 "cached blocks of all nodes that the router knows of, 24 bytes each; 0: it places "
                 "requests without that"),
    SETTING_INT(struct options, history_max, "history-max", "1024", 1, 1000000,
                "ended requests remembered for explain"),
    SETTING_INT(struct options, deaths_max, "deaths-max", "3", 1, 100,
                "a request under which so many nodes died ends with an error"),
    SETTING_INT(struct options, lone_deaths_max, "lone-deaths-max", "2", 1, 100,
                "the same for nodes that had no other request: it may be what kills them"),
    SETTING_DURATION(struct options, queue_timeout_ns, "queue-timeout", "60s", NS_PER_MS,
                     3600 * NS_PER_S, "a request that no node could take in this time fails"),
    SETTING_DURATION(struct options, stall_timeout_ns, "stall-timeout", "120s", NS_PER_MS,
                     3600 * NS_PER_S, "a request that nobody spoke of for so long is tried again"),
    SETTING_DURATION(struct options, heartbeat_ns, "heartbeat", "200ms", NS_PER_MS, 60 * NS_PER_S,
                     "time between signs of life"),
    SETTING_DURATION(struct options, dead_ns, "dead-after", "3s", NS_PER_MS, 600 * NS_PER_S,
                     "a peer that was silent for so long is dead"),
    SETTING_DURATION(
        struct options, hung_ns, "hung-after", "10s", NS_PER_MS, 3600 * NS_PER_S,
        "a node that is busy without progress for so long, and for 20 of its usual steps, is dead"),
    SETTING_STRING(struct options, tenant_weights, "tenant-weights", NULL,
                   "NAME=WEIGHT,...: shares of tenants that are not 1 (docs/kv-memory.md)"),
    SETTING_INT(struct options, tenant_reserve, "tenant-reserve", "12", 0, 90,
                "percent of a decode node that tenants above their share leave free for others"),
    SETTING_STRING(
        struct options, salt_key, "salt-key", NULL,
        "file of secret bytes, of all routers the same: without it who knows this program "
        "can compute what tells tenants' prefixes apart"),
    SETTING_CHOICE(struct options, log_level, "log-level", "debug|info|warn|error|off", "info",
                   "lowest level of the lines on stderr"),
};

/* What the file holds, whatever its form. */
static enum err read_salt_key(const char *path, uint64_t key[2])
{
    enum { KEY_BYTES_MIN = 16 };
    struct file_map map;
    enum err e = file_map_open(&map, path);
    if (e != OK) return e;
    if (map.size_bytes < KEY_BYTES_MIN)
        e = err_set(ERR_INVALID,
                    "%s has %zu bytes, a salt key has at least %d: head -c 32 /dev/urandom", path,
                    map.size_bytes, KEY_BYTES_MIN);
    struct id128 hash = hash128(map.data, map.size_bytes);
    key[0] = hash.hi;
    key[1] = hash.lo;
    file_map_close(&map);
    return e;
}

static enum err tenant_options(const struct options *o, struct router_config *config)
{
    enum err e = tenant_weights_parse(o->tenant_weights, config->weights, &config->weights_count);
    if (e != OK) return err_prefix(e, "tenant-weights");
    config->tenant_reserve_percent = (uint32_t)o->tenant_reserve;
    return o->salt_key ? read_salt_key(o->salt_key, config->salt_key) : OK;
}

static struct router_options shell_options(const struct options *o)
{
    struct router_options s = {.name = o->name,
                               .model_dir = o->model,
                               .listen_clients = o->listen_clients,
                               .listen_nodes = o->listen_nodes,
                               .listen_lifeline = o->listen_lifeline,
                               .metrics = o->metrics,
                               .trusted_network = o->trusted_network,
                               .config = ROUTER_CONFIG_DEFAULT};
    s.config.disaggregate = (enum disaggregate)o->disaggregate;
    s.config.exact = o->exact;
    s.config.kv_words = o->kv_words;
    s.config.backfill = (enum backfill_mode)o->backfill;
    s.config.forks = o->forks;
    s.config.prefix_index = o->prefix_index;
    s.config.requests_max = (uint32_t)o->requests_max;
    s.config.queued_tokens_max = o->queued_tokens_max;
    s.config.history_max = (uint32_t)o->history_max;
    s.config.deaths_max = (uint32_t)o->deaths_max;
    s.config.lone_deaths_max = (uint32_t)o->lone_deaths_max;
    s.config.queue_timeout_ns = o->queue_timeout_ns;
    s.config.stall_timeout_ns = o->stall_timeout_ns;
    s.config.hung_ns = o->hung_ns;
    s.config.session.heartbeat_ns = o->heartbeat_ns;
    s.config.session.dead_ns = o->dead_ns;
    return s;
}

int main(int argc, char **argv)
{
    struct options o;
    const struct settings_table tables[] = {{rows, COUNT_OF(rows), &o}};
    const struct settings_program program = {
        .name = "tandem-router",
        .about = "Takes requests from clients and has them computed by prefill and decode nodes.",
        .section = "router",
        .tables = tables,
        .tables_count = COUNT_OF(tables)};
    struct settings settings;
    struct router_shell *shell = NULL;
    int status;
    if (!settings_main(&settings, &program, argc, argv, &status)) return status;
    log_setup((enum log_level)o.log_level, o.name);
    struct router_options options = shell_options(&o);
    enum err e = tenant_options(&o, &options.config);
    if (e == OK) e = router_options_check(&options);
    status = e == OK ? 1 : 2;
    if (e == OK) e = router_shell_open(&shell, &options);
    if (e == OK) {
        const char *metrics = router_shell_metrics(shell);
        printf("ready clients=%s nodes=%s%s%s\n", router_shell_clients(shell),
               router_shell_nodes(shell), metrics ? " metrics=" : "", metrics ? metrics : "");
        fflush(stdout);
        e = router_shell_run(shell);
    }
    if (e != OK) fprintf(stderr, "tandem-router: %s\n", err_text());
    router_shell_close(shell);
    settings_fini(&settings);
    return e == OK ? 0 : status;
}
