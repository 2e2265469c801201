/* up_args: the settings of `tandem up`, and what it tells each of its children on the command line.
 *
 *     struct up_args args;
 *     const struct up_child child = {.program = "/usr/bin/tandem-decode", .name = "d0", .number = 2,
 *                                    .node = &plan.node[1], .sharers = 1, …};
 *     if ((e = up_args_make(&args, &options, &child)) == OK) execv(args.item[0], args.item);
 *     up_args_fini(&args);
 *
 * Rules: a child finds what it had before by its name. Nothing is looked up, nothing is decided: addresses
 * were checked, places are the plan's. The items are the args' own. Any thread. */
#ifndef TANDEM_CLIENT_UP_ARGS_H
#define TANDEM_CLIENT_UP_ARGS_H

#include "client/up_plan.h"
#include "common/buf.h"

struct up_options {
    const char *model, *zmq, *nodes, *metrics, *device, *prefill_gpus, *decode_gpus;
    const char *kv_disk, *kv_redis, *kv_redis_user, *kv_redis_password;
    uint64_t kv_disk_bytes, kv_host_bytes;
    int link, log_level;
    bool trusted_network, dry_run, json;
    int64_t prefill, decode, threads, blocks;
};

#define UP_LINKS "auto|shm|tcp|nccl|ipc"
#define UP_LOG_LEVELS "debug|info|warn|error|off"

struct up_child {
    const char *program, *model;
    const char *clients, *nodes; /* addresses that the router has, or is to have */
    const char *name;            /* "r0", "p0", "d0" */
    uint32_t number;             /* among all children, for ports that follow each other */
    const struct up_node *node;  /* NULL: the router */
    uint32_t sharers;            /* nodes on its device, itself too */
};

enum { UP_ARGS_MAX = 32 };
struct up_args {
    char *item[UP_ARGS_MAX + 1]; /* NULL behind the last one */
    uint32_t count;
    size_t at[UP_ARGS_MAX]; /* in text */
    struct buf text;
};

/* ERR_MEMORY. To be freed also then. */
enum err up_args_make(struct up_args *args, const struct up_options *options,
                      const struct up_child *child);
void up_args_fini(struct up_args *args);

#endif
