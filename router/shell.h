/* router shell: binds the router core to sockets, the clock, the text thread and signals.
 *
 *     if ((e = router_options_check(&options)) != OK) return e;          // wrong usage
 *     struct router_shell *shell;
 *     if ((e = router_shell_open(&shell, &options)) != OK) return e;   // binds addresses, reads the tokenizer
 *     router_shell_run(shell);                                           // until drained
 *     router_shell_close(shell);
 *
 * Rules: decides nothing. One SIGTERM or SIGINT drains, a second one leaves at once.
 * Owner: the main thread, which becomes the loop thread. */
#ifndef TANDEM_ROUTER_SHELL_H
#define TANDEM_ROUTER_SHELL_H

#include "router/core.h"

struct router_shell;

struct router_options {
    const char *name;
    const char *model_dir;       /* for its tokenizer; NULL: token ids only */
    const char *listen_clients;  /* tcp://HOST:PORT, port 0: any */
    const char *listen_nodes;    /* the same */
    const char *listen_lifeline; /* HOST:PORT */
    const char *metrics;         /* HOST:PORT of the page of metrics; NULL: none */
    bool trusted_network;        /* addresses beyond loopback are allowed */
    struct router_config config; /* limits and rules; names, ids and tokenizer are filled in */
};

/* ERR_INVALID that names the setting. */
enum err router_options_check(const struct router_options *options);
enum err router_shell_open(struct router_shell **shell, const struct router_options *options);
/* Where it can be reached; ports are resolved. */
const char *router_shell_clients(const struct router_shell *shell);
const char *router_shell_nodes(const struct router_shell *shell);
const char *router_shell_metrics(const struct router_shell *shell); /* NULL: nowhere */
/* OK: drained. ERR_CANCELLED: a second signal. */
enum err router_shell_run(struct router_shell *shell);
void router_shell_close(struct router_shell *shell); /* NULL is allowed */

#endif
