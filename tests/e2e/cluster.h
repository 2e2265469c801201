/* cluster: the real processes of one cluster under a test: started, watched, killed and ended.
 *
 *     struct cluster *c = cluster_new(cluster_demo_model());
 *     cluster_router(c, "--disaggregate always");
 *     cluster_node(c, PROGRAM_PREFILL, "--threads 1 --link shm");     // p0
 *     struct process *d = cluster_node(c, PROGRAM_DECODE, "--threads 1");
 *     cluster_await_nodes(c);                              // all started are ready and known
 *     ... streams (tests/e2e/streams.h) to c->addresses ...
 *     cluster_kill(d);                                     // -9, reaped
 *     cluster_await_idle(c);                               // no request, no block in use
 *     cluster_stop(c);                                     // drained, every process left with 0
 *     cluster_free(c);                                     // in a teardown: after a failure too
 *
 * Rules: a step that fails fails the test with a line that says what was awaited; cluster_free then
 * finds the cluster not stopped and prints the end of every process's log. Everything has a deadline
 * (CLUSTER_WAIT_MS); nothing sleeps to let others get on. Ports are the system's choice, files live
 * in a folder of their own that cluster_free removes. Processes die with the test, and are ended by
 * their id only. Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_CLUSTER_H
#define TANDEM_TESTS_E2E_CLUSTER_H

#include "tests/unit/testing.h"

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "client/tandem.h"
#include "tests/unit/scratch.h"

enum { CLUSTER_PROCESSES_MAX = 256, CLUSTER_WAIT_MS = 60000 * PATIENCE };

/* PROGRAM_UP: `tandem up`, to clients a router. */
enum program { PROGRAM_ROUTER, PROGRAM_PREFILL, PROGRAM_DECODE, PROGRAM_CLIENT, PROGRAM_UP };

struct process {
    enum program program;
    char name[16];               /* r0, p0, d0, p1, c0, u0 … */
    pid_t pid;                   /* 0: ended and reaped */
    int status;                  /* exit status, or 256 + the signal, once ended */
    bool ready, expendable;      /* expendable: killed by the test, need not leave with 0 */
    int out_fd;                  /* its stdout, until it is ready; else -1 */
    char said[256];              /* of its stdout so far */
    char clients[64], nodes[64]; /* a router's addresses */
    char metrics[64];            /* "": none */
    char log[PATH_MAX];          /* its stderr */
};

struct cluster {
    char folder[SCRATCH_BYTES];
    const char *model; /* NULL: a program has the one that its args tell, a router may have none */
    struct process *process[CLUSTER_PROCESSES_MAX];
    uint32_t count;
    char addresses[512];   /* of all routers, for tandem_open */
    struct tandem *tandem; /* for questions; to all routers */
    bool stopped;
    bool apart; /* each process started from now on gets a session of its own */
    /* ... is a host of its own to NCCL, which takes no two ranks of one on one GPU */
    bool own_hosts;
};

const char *cluster_demo_model(void);
/* A folder or file of the reference data; the test is skipped when it is absent. */
const char *cluster_shared(const char *path);

struct cluster *cluster_new(const char *model);
void cluster_free(struct cluster *c); /* NULL is fine */

/* Starts a program. `args` is split at blanks; --name, --model, --router, --cache-dir and port 0 are
 * given unless they are in it. spawn returns at once; the other two return when it is ready. */
struct process *cluster_spawn(struct cluster *c, enum program program, const char *args);
struct process *cluster_router(struct cluster *c, const char *args);
struct process *cluster_node(struct cluster *c, enum program program, const char *args);
struct process *cluster_up(struct cluster *c, const char *args);
/* This test program again, as `client ADDRESSES`; it prints a line when it is ready. It need not leave
 * by itself. */
struct process *cluster_client(struct cluster *c);
/* One router, and as many nodes as told, all known to it. */
void cluster_start(struct cluster *c, uint32_t prefills, uint32_t decodes, const char *router_args,
                   const char *node_args);

struct process *cluster_process(struct cluster *c, const char *name);

bool process_look(struct process *p);        /* reads what it said: is it ready? Never blocks */
void process_await_ready(struct process *p); /* fails at once if it ends instead */
int process_await_exit(struct process *p);   /* its status */
void process_signal(struct process *p, int number);
bool process_is_stopped(const struct process *p);   /* by SIGSTOP, and not continued */
void process_kill(struct process *p);               /* -9, reaped */
size_t process_peak_bytes(const struct process *p); /* resident, at most until here */
bool process_logged(const struct process *p, const char *text);

size_t cluster_weights_bytes(const struct cluster *c); /* of the packed weights' file */
/* No process has ever had more than its weights, its pool and what all of them may have beside. */
void cluster_expect_memory(const struct cluster *c, size_t pool_bytes);

/* What the first router that answers says of itself; the caller's to json_decref. */
json_t *cluster_status(struct cluster *c);
json_t *cluster_find_node(json_t *status, const char *name); /* borrowed; NULL: not there */
/* The first choice in what the router explains of a request; *explained is the caller's to drop. */
const json_t *cluster_explain(struct cluster *c, const char *request, json_t **explained);
/* Where the first choice of a running request is: the process that prefills or decodes it, and the state
 * that the router has it in. */
struct process *cluster_process_of(struct cluster *c, const char *request, const char *role);
void cluster_state_of(struct cluster *c, const char *request, char *state, size_t state_bytes);
/* Asks again until `holds` says so. */
void cluster_await(struct cluster *c, bool holds(struct cluster *c, json_t *status),
                   const char *what);
void cluster_await_nodes(struct cluster *c); /* every live node is up, and no dead one is */
void cluster_await_idle(struct cluster *c); /* no request; no block active, reserved, in transfer */
void cluster_drain(struct cluster *c, const struct process *node); /* returns when it has left */
void cluster_stop(struct cluster *c);

#endif
