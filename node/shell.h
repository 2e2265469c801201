/* node shell: binds a node core to its engine, its links and its routers, on one loop thread.
 *
 *     if ((e = node_options_check(&options)) != OK) return e;         // wrong usage
 *     struct node_shell *shell;
 *     if ((e = node_shell_open(&shell, &options)) != OK) return e;    // loads the model, listens
 *     e = node_shell_run(shell);        // until drained (OK), a second signal, or a sick device
 *     node_shell_close(shell);
 *
 * Rules: decides nothing. SIGTERM and SIGINT drain, a second one stops. Prints "ready name=NAME" to
 * stdout when the first router has taken it in, with " metrics=HOST:PORT" if there is such a page, and
 * " kv-events=tcp://HOST:PORT", " kv-events-replay=tcp://HOST:PORT", if they are published. Strings of the
 * options must live until close.
 * Owner: the thread that runs it; engine and link call back on their own threads, into mailboxes. */
#ifndef TANDEM_NODE_SHELL_H
#define TANDEM_NODE_SHELL_H

#include "engine/engine.h"
#include "kv/evict.h"
#include "node/own_links.h"
#include "node/plan.h"
#include "node/policy.h"
#include "node/tiers.h"
#include "proto/session.h"

struct node_options {
    const struct node_policy *policy;
    const char *name;           /* [A-Za-z0-9._-] */
    const char *const *routers; /* "tcp://HOST:PORT" */
    uint32_t routers_count;
    const char *metrics;                      /* "HOST:PORT" of the page of metrics; NULL: none */
    const char *kv_events, *kv_events_replay; /* "tcp://HOST:PORT" (node/kv_events.h); NULL: none */
    int kv_events_form;                       /* enum kv_event_form */
    const char *kv_events_topic;              /* NULL: as usual */
    struct own_links_options links;
    bool trusted_network; /* else what listens must be loopback */
    const char *cpus;     /* "0-3,8"; NULL: anywhere */
    const char *numa;     /* "auto", "off", a number; NULL: auto */
    bool prefix_cache;
    enum preempted preempted;
    struct evict_config evict;
    struct node_tiers_options tiers;
    struct engine_options engine; /* limits, slots and cpus are the shell's to fill in */
    uint32_t chunk_tokens, sequences_max;
    struct session_limits session;
    uint64_t reserve_timeout_ns, prefix_wait_ns;
};

struct node_shell;

/* ERR_INVALID that names the setting. */
enum err node_options_check(const struct node_options *options);
enum err node_shell_open(struct node_shell **shell, const struct node_options *options);
enum err node_shell_run(struct node_shell *shell);
void node_shell_close(struct node_shell *shell); /* NULL is allowed */

#endif
