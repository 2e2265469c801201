/* tandem up: a cluster on this host. Starts router, prefill and decode nodes from the folder of its own
 * binary and stays in the foreground.
 *
 *     STARTING  the router, then, when it has said its addresses, the nodes; a child that dies ends it
 *     READY     all have said ready; a child that dies is reported and started again after a pause
 *     DRAINING  Ctrl-C: the router is asked to drain and sends the nodes home; whoever is late gets
 *               SIGTERM, then SIGKILL; a second Ctrl-C goes to the last step
 *
 * Children are in process groups of their own, so that Ctrl-C reaches only us, and die with us. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/cmd.h"
#include "client/up_args.h"
#include "common/address.h"
#include "proto/loop.h"

enum {
    GPUS_MAX = 64,
    CHILDREN_MAX = UP_NODES_MAX + 1, /* the router is the first */
    RESTART_MS = 1000,
    LONG_START_MS = 5000,
    NODES_LEAVE_MS = 5000, /* after the router has left */
    TERM_MS = 3000,        /* from SIGTERM to SIGKILL */
    SIGNAL_TWICE_MS = 200  /* one Ctrl-C may come twice: from the terminal and from who runs us */
};

static const struct setting rows[] = {
    SETTING_STRING(struct up_options, model, "model", NULL,
                   "model directory (the demo model that comes with tandem)"),
    SETTING_INT(struct up_options, prefill, "prefill", "1", 0, 64, "prefill nodes"),
    SETTING_INT(struct up_options, decode, "decode", "1", 1, 64, "decode nodes"),
    SETTING_STRING(struct up_options, zmq, "zmq", "tcp://127.0.0.1:5700",
                   "address for clients; port 0: any"),
    SETTING_STRING(struct up_options, nodes, "nodes", "tcp://127.0.0.1:0",
                   "address for nodes, also of other hosts; port 0: any"),
    SETTING_STRING(
        struct up_options, metrics, "metrics", NULL,
        "HOST:PORT of the router's /metrics, /healthz, /readyz; the nodes, prefill first, "
        "get the next ports; port 0: any for each; unset: off"),
    SETTING_STRING(struct up_options, device, "device", "cpu",
                   "where nodes compute: cpu or cuda (tandem-decode --help has all)"),
    SETTING_STRING(struct up_options, prefill_gpus, "prefill-gpus", NULL,
                   "with --device cuda: numbers of GPUs, like 0,1, with a prefill node on each"),
    SETTING_STRING(struct up_options, decode_gpus, "decode-gpus", NULL,
                   "the same for decode nodes; without lists all nodes share GPU 0"),
    SETTING_INT(struct up_options, threads, "threads", "0", 0, 1024,
                "compute threads of each node; 0: the CPUs are shared out evenly"),
    SETTING_INT(struct up_options, blocks, "blocks", "0", 0, 1e9,
                "KV pool of each node in blocks of 16 tokens; 0: the node's default"),
    SETTING_SIZE(struct up_options, kv_host_bytes, "kv-host-bytes", "0", 0, 1e15,
                 "on GPUs: host memory of each node for blocks that its pool lets go of"),
    SETTING_STRING(struct up_options, kv_disk, "kv-disk", NULL,
                   "directory that keeps blocks over restarts: prefill-0, decode-0 … in it are the "
                   "nodes' own; unset: off"),
    SETTING_SIZE(struct up_options, kv_disk_bytes, "kv-disk-bytes", "16G", 16 << 20, 1e15,
                 "what each node keeps there at most"),
    SETTING_STRING(struct up_options, kv_redis, "kv-redis", NULL,
                   "HOST:PORT or unix:PATH of a Redis or Valkey server that all nodes share blocks "
                   "through; unset: off"),
    SETTING_STRING(struct up_options, kv_redis_user, "kv-redis-user", NULL,
                   "user of that server; unset: its default one"),
    SETTING_STRING(struct up_options, kv_redis_password, "kv-redis-password", NULL,
                   "file that has the password for it, in one line; unset: none"),
    SETTING_CHOICE(struct up_options, link, "link", UP_LINKS, "auto", "how KV travels"),
    SETTING_BOOL(struct up_options, trusted_network, "trusted-network", "false",
                 "allow addresses beyond loopback: whoever reaches them may submit and join"),
    SETTING_BOOL(struct up_options, dry_run, "dry-run", "false",
                 "print this host's topology and where each node would be, say what they lack, "
                 "and start nothing"),
    SETTING_BOOL(struct up_options, json, "json", "false",
                 "print what happens as JSON, an object in each line (docs/interfaces.md)"),
    SETTING_CHOICE(struct up_options, log_level, "log-level", UP_LOG_LEVELS, "warn",
                   "lowest level of the processes' log lines on stderr"),
};

enum state { STARTING, READY, DRAINING };

struct child {
    struct up *up;
    const char *program; /* "tandem-router" */
    char name[16];
    const struct up_node *node; /* NULL: the router */
    uint32_t sharers;           /* nodes on its device, itself too */
    pid_t pid;                  /* 0: does not run */
    int out_fd;
    struct loop_watch *out;
    char line[512]; /* what it says on stdout, up to the end of a line */
    size_t line_bytes;
    bool ready;
    struct loop_timer *restart;
};

struct up {
    const struct up_options *options;
    struct loop *loop;
    enum state state;
    char folder[PATH_MAX], model[PATH_MAX];
    char clients[160], nodes[160], metrics[160]; /* once the router has said them */
    struct child child[CHILDREN_MAX];
    uint32_t children_count, prefill_count, decode_count;
    struct up_plan plan;                      /* of the nodes: all children but the first */
    uint32_t gpu[2][GPUS_MAX], gpus_count[2]; /* listed for prefill, for decode */
    uint64_t began_ns, signalled_ns;
    struct loop_timer *deadline; /* of DRAINING */
    struct loop_timer *long_start;
    uint32_t pressure; /* 0: asked the router, 1: SIGTERM to all, 2: SIGKILL */
    int code;
};

/* With --json: one event in a line; it takes the object. */
static void tell(const struct up *up, json_t *event)
{
    if (up->options->json && event) {
        json_dumpf(event, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
        putchar('\n');
        fflush(stdout);
    }
    json_decref(event);
}

static double seconds_so_far(const struct up *up)
{
    return (double)((clock_now_ns() - up->began_ns) / NS_PER_MS) / 1e3;
}

/* ---- one child ---- */

/* Between fork and exec: only what is safe there. */
static _Noreturn void become(struct up_args *a, int out_fd, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, STDIN_FILENO);
    dup2(out_fd, STDOUT_FILENO);
    if (getppid() == parent) execv(a->item[0], a->item); /* else it died before prctl */
    _exit(127);
}

static void on_child_says(void *ctx, uint64_t now_ns, unsigned events);

static enum err child_args(const struct child *c, struct up_args *args)
{
    const struct up *up = c->up;
    char program[PATH_MAX + 32];
    snprintf(program, sizeof program, "%s/%s", up->folder, c->program);
    if (access(program, X_OK) != 0)
        return err_set(ERR_NOT_FOUND, "%s: %s", program, strerror(errno));
    const struct up_child child = {.program = program,
                                   .model = up->model,
                                   .clients = up->clients,
                                   .nodes = up->nodes,
                                   .name = c->name,
                                   .number = (uint32_t)(c - up->child),
                                   .node = c->node,
                                   .sharers = c->sharers};
    return up_args_make(args, up->options, &child);
}

static enum err child_start(struct child *c)
{
    int ends[2];
    struct up_args args = {0};
    pid_t self = getpid();
    enum err e = child_args(c, &args);
    if (e != OK) goto done;
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        e = err_set(ERR_IO, "no pipe: %s", strerror(errno));
        goto done;
    }
    c->pid = fork();
    if (c->pid == 0) {
        fcntl(ends[1], F_SETFL, 0);
        become(&args, ends[1], self);
    }
    close(ends[1]);
    if (c->pid < 0) {
        c->pid = 0;
        close(ends[0]);
        e = err_set(ERR_IO, "cannot start %s: %s", c->program, strerror(errno));
        goto done;
    }
    c->out_fd = ends[0];
    c->ready = false;
    c->line_bytes = 0;
    e = loop_watch(c->up->loop, c->out_fd, LOOP_READ, on_child_says, c, &c->out);
done:
    up_args_fini(&args);
    return e;
}

static void close_out(struct child *c)
{
    loop_watch_free(c->out);
    c->out = NULL;
    if (c->out_fd >= 0) close(c->out_fd);
    c->out_fd = -1;
}

static void kill_children(struct up *up, int number)
{
    for (uint32_t i = 0; i < up->children_count; i++)
        if (up->child[i].pid > 0) kill(up->child[i].pid, number);
}

static uint32_t running_count(const struct up *up)
{
    uint32_t running = 0;
    for (uint32_t i = 0; i < up->children_count; i++)
        running += up->child[i].pid > 0;
    return running;
}

/* ---- draining ---- */

static void set_deadline(struct up *up, uint64_t ms)
{
    loop_timer_set(up->deadline, loop_now_ns(up->loop) + ms * NS_PER_MS);
}

static void drain(struct up *up)
{
    struct child *router = &up->child[0];
    for (uint32_t i = 0; i < up->children_count; i++)
        if (up->child[i].restart) loop_timer_set(up->child[i].restart, TIME_NEVER);
    if (running_count(up) == 0) {
        loop_stop(up->loop);
        return;
    }
    up->state = DRAINING;
    tell(up, json_pack("{s:s}", "event", "draining"));
    if (router->pid > 0 && router->ready) { /* for as long as requests run: no deadline */
        for (uint32_t i = 1; i < up->children_count;
             i++) /* it would find no router to send it home */
            if (up->child[i].pid > 0 && !up->child[i].ready) kill(up->child[i].pid, SIGTERM);
        kill(router->pid, SIGTERM);
        return;
    }
    up->pressure = 1;
    kill_children(up, SIGTERM);
    set_deadline(up, TERM_MS);
}

/* A step harder. */
static void press(struct up *up)
{
    up->pressure++;
    fprintf(stderr, "tandem up: %u processes have not left, %s\n", running_count(up),
            up->pressure == 1 ? "asking them again" : "killing them");
    kill_children(up, up->pressure == 1 ? SIGTERM : SIGKILL);
    set_deadline(up, TERM_MS);
}

static void on_deadline(void *ctx, uint64_t now_ns)
{
    (void)now_ns;
    press(ctx);
}

static void on_signal(void *ctx, uint64_t now_ns, int number)
{
    struct up *up = ctx;
    (void)number;
    if (up->state != DRAINING) {
        fprintf(stderr, "tandem up: draining; Ctrl-C again to end at once\n");
        up->signalled_ns = now_ns;
        drain(up);
        return;
    }
    if (now_ns - up->signalled_ns < SIGNAL_TWICE_MS * NS_PER_MS) return;
    up->pressure = 1;
    press(up);
}

static void fail(struct up *up, int code)
{
    up->code = code;
    if (up->state != DRAINING) drain(up);
}

/* ---- what children say and how they end ---- */

static void start_or_fail(struct child *c)
{
    if (child_start(c) == OK) return;
    fprintf(stderr, "tandem up: %s\n", err_text());
    fail(c->up, CMD_FAILED);
}

static void become_ready(struct up *up)
{
    for (uint32_t i = 0; i < up->children_count; i++)
        if (!up->child[i].ready) return;
    if (up->state != STARTING) return;
    up->state = READY;
    if (!up->options->json) {
        printf("ready clients=%s nodes=%s%s%s\n", up->clients, up->nodes,
               up->metrics[0] ? " metrics=" : "", up->metrics);
        fflush(stdout);
    }
    tell(up, json_pack("{s:s, s:s, s:s, s:s*, s:i, s:i, s:f}", "event", "ready", "clients",
                       up->clients, "nodes", up->nodes, "metrics",
                       up->metrics[0] ? up->metrics : NULL, "prefill", (int)up->prefill_count,
                       "decode", (int)up->decode_count, "seconds", seconds_so_far(up)));
    fprintf(stderr,
            "tandem up: %u prefill and %u decode nodes are ready after %.2f s; Ctrl-C drains. "
            "Try:\n    tandem generate --router %s \"Once upon a time\"\n",
            up->prefill_count, up->decode_count, seconds_so_far(up), up->clients);
}

/* Large models load for minutes. No bar: the children write to the same terminal. */
static void on_long_start(void *ctx, uint64_t now_ns)
{
    struct up *up = ctx;
    uint32_t ready = 0;
    if (up->state != STARTING) return;
    json_t *missing = json_array();
    for (uint32_t i = 0; i < up->children_count; i++) {
        ready += up->child[i].ready;
        if (!up->child[i].ready) json_array_append_new(missing, json_string(up->child[i].name));
    }
    fprintf(stderr, "tandem up: %u of %u processes are ready after %.0f s\n", ready,
            up->children_count, seconds_so_far(up));
    tell(up, json_pack("{s:s, s:o*, s:f}", "event", "waiting", "for", missing, "seconds",
                       seconds_so_far(up)));
    loop_timer_set(up->long_start, now_ns + LONG_START_MS * NS_PER_MS);
}

/* "ready clients=ADDRESS nodes=ADDRESS" of the router, "ready name=NAME" of a node. */
static void on_line(struct child *c, const char *line)
{
    struct up *up = c->up;
    char clients[160], nodes[160], metrics[160] = "";
    if (strncmp(line, "ready", 5) != 0) return;
    c->ready = true;
    tell(up, json_pack("{s:s, s:s, s:i}", "event", "process_ready", "process", c->name, "pid",
                       (int)c->pid));
    if (c == &up->child[0]) {
        if (sscanf(line, "ready clients=%159s nodes=%159s metrics=%159s", clients, nodes, metrics) <
            2)
            return;
        memcpy(up->clients, clients, sizeof clients);
        memcpy(up->nodes, nodes, sizeof nodes);
        memcpy(up->metrics, metrics, sizeof metrics);
        for (uint32_t i = 1; i < up->children_count && up->state == STARTING; i++)
            if (up->child[i].pid == 0) start_or_fail(&up->child[i]);
    }
    become_ready(up);
}

static void on_child_says(void *ctx, uint64_t now_ns, unsigned events)
{
    struct child *c = ctx;
    (void)now_ns, (void)events;
    ssize_t n = read(c->out_fd, c->line + c->line_bytes, sizeof c->line - 1 - c->line_bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        close_out(c);
        return;
    }
    c->line_bytes += (size_t)n;
    c->line[c->line_bytes] = '\0';
    for (char *end; (end = strchr(c->line, '\n'));) {
        *end = '\0';
        on_line(c, c->line);
        size_t used = (size_t)(end + 1 - c->line);
        c->line_bytes -= used;
        memmove(c->line, end + 1, c->line_bytes + 1);
    }
    if (c->line_bytes == sizeof c->line - 1) c->line_bytes = 0; /* no line of ours is so long */
}

static void say_how(const struct child *c, pid_t pid, int status)
{
    if (WIFSIGNALED(status))
        fprintf(stderr, "tandem up: %s (%s, pid %d) was killed by signal %d\n", c->name, c->program,
                (int)pid, WTERMSIG(status));
    else if (WEXITSTATUS(status) == 0)
        fprintf(stderr, "tandem up: %s (%s, pid %d) has left\n", c->name, c->program, (int)pid);
    else
        fprintf(stderr, "tandem up: %s (%s, pid %d) ended with status %d\n", c->name, c->program,
                (int)pid, WEXITSTATUS(status));
}

static void on_death(struct child *c, pid_t pid, int status)
{
    struct up *up = c->up;
    close_out(c);
    bool was_ready = c->ready;
    bool asked = up->state == DRAINING && !was_ready && WIFSIGNALED(status) &&
                 WTERMSIG(status) == SIGTERM; /* before it could listen to that */
    bool clean = asked || (WIFEXITED(status) && WEXITSTATUS(status) == 0);
    c->ready = false;
    if (!clean || up->state != DRAINING) say_how(c, pid, status);
    tell(up, json_pack("{s:s, s:s, s:i, s:i}", "event", "process_ended", "process", c->name, "pid",
                       (int)pid, WIFSIGNALED(status) ? "signal" : "status",
                       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status)));
    if (up->state == DRAINING) {
        if (!clean && up->code == CMD_DONE) up->code = CMD_FAILED;
        if (c == &up->child[0] && up->pressure == 0) set_deadline(up, NODES_LEAVE_MS);
        if (running_count(up) == 0) loop_stop(up->loop);
        return;
    }
    if (clean && was_ready) { /* drained: by its own signal or by `tandem drain` */
        if (c == &up->child[0] || running_count(up) == 1) drain(up);
        return;
    }
    if (up->state == STARTING || !was_ready) { /* what it was told wrongly, we were */
        bool usage = WIFEXITED(status) && WEXITSTATUS(status) == CMD_USAGE;
        fail(up, usage ? CMD_USAGE : CMD_FAILED);
        return;
    }
    fprintf(stderr, "tandem up: starting %s again\n", c->name);
    loop_timer_set(c->restart, loop_now_ns(up->loop) + RESTART_MS * NS_PER_MS);
}

static void on_restart(void *ctx, uint64_t now_ns)
{
    (void)now_ns;
    start_or_fail(ctx);
}

static void on_child_signal(void *ctx, uint64_t now_ns, int number)
{
    struct up *up = ctx;
    (void)now_ns, (void)number;
    for (uint32_t i = 0; i < up->children_count; i++) {
        struct child *c = &up->child[i];
        int status;
        pid_t pid = c->pid;
        if (pid <= 0 || waitpid(pid, &status, WNOHANG) != pid) continue;
        c->pid = 0;
        on_death(c, pid, status);
    }
}

/* ---- the plan ---- */

/* "0,1" as numbers. */
static enum err read_gpus(const char *name, const char *text, uint32_t *gpu, uint32_t *count)
{
    *count = 0;
    for (const char *at = text; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char *end;
        unsigned long value = strtoul(at, &end, 10);
        if (end == at || (*end != ',' && *end != '\0') || value > 1023 || *count == GPUS_MAX)
            return err_set(ERR_INVALID,
                           "--%s \"%s\": GPUs are given by number, like 0,1 (at most %d)", name,
                           text, GPUS_MAX);
        gpu[(*count)++] = (uint32_t)value;
    }
    return OK;
}

static enum err plan_gpus(struct up *up)
{
    const struct up_options *o = up->options;
    enum err e;
    if (!o->prefill_gpus && !o->decode_gpus) return OK;
    if (strcmp(o->device, "cuda") != 0)
        return err_set(ERR_INVALID, "--prefill-gpus and --decode-gpus go with --device cuda");
    if ((e = read_gpus("prefill-gpus", o->prefill_gpus, up->gpu[0], &up->gpus_count[0])) != OK)
        return e;
    if ((e = read_gpus("decode-gpus", o->decode_gpus, up->gpu[1], &up->gpus_count[1])) != OK)
        return e;
    if (up->gpus_count[1] == 0)
        return err_set(ERR_INVALID, "--prefill-gpus needs --decode-gpus: decode nodes beside them");
    return OK;
}

/* The i-th node of its role; roles without a list share the device that is told. */
static void plan_node(struct up *up, struct child *c, bool decode, uint32_t i)
{
    struct up_node *n = &up->plan.node[up->plan.count++];
    c->node = n;
    c->program = decode ? "tandem-decode" : "tandem-prefill";
    snprintf(c->name, sizeof c->name, "%s%u", decode ? "d" : "p", i);
    memcpy(n->name, c->name, sizeof n->name);
    n->threads = (uint32_t)up->options->threads;
    if (up->gpus_count[decode] > 0)
        snprintf(n->device, sizeof n->device, "cuda:%u", up->gpu[decode][i]);
    else
        snprintf(n->device, sizeof n->device, "%s", up->options->device);
}

static uint32_t count_sharers(const struct up_plan *plan, const struct up_node *node)
{
    uint32_t sharers = 0;
    if (strncmp(node->device, "cuda", 4) != 0) return 0;
    for (uint32_t i = 0; i < plan->count; i++)
        sharers += strcmp(plan->node[i].device, node->device) == 0;
    return sharers;
}

static enum err plan_children(struct up *up)
{
    const struct up_options *o = up->options;
    bool listed = up->gpus_count[1] > 0;
    up->prefill_count = listed ? up->gpus_count[0] : (uint32_t)o->prefill;
    up->decode_count = listed ? up->gpus_count[1] : (uint32_t)o->decode;
    uint32_t nodes = up->prefill_count + up->decode_count;
    for (uint32_t i = 0; i <= nodes; i++) {
        struct child *c = &up->child[up->children_count++];
        bool decode = i > up->prefill_count;
        c->up = up;
        c->out_fd = -1;
        c->program = "tandem-router";
        snprintf(c->name, sizeof c->name, "r0");
        if (i > 0) plan_node(up, c, decode, decode ? i - 1 - up->prefill_count : i - 1);
    }
    for (uint32_t i = 1; i <= nodes; i++)
        up->child[i].sharers = count_sharers(&up->plan, up->child[i].node);
    return up_plan_make(&up->plan);
}

static enum err find_folder(struct up *up)
{
    ssize_t n = readlink("/proc/self/exe", up->folder, sizeof up->folder - 1);
    if (n < 0) return err_set(ERR_IO, "/proc/self/exe: %s", strerror(errno));
    up->folder[n] = '\0';
    char *slash = strrchr(up->folder, '/');
    if (slash) *slash = '\0';
    return OK;
}

/* The given one; else the one that is installed beside us, or the source tree's above build/bin. */
static enum err find_model(struct up *up)
{
    static const char *const places[] = {"../share/tandem/demo_model",
                                         "../../examples/demo_model/model"};
    char path[2 * PATH_MAX];
    if (up->options->model) {
        if (!realpath(up->options->model, up->model))
            return err_set(ERR_NOT_FOUND, "--model %s: %s", up->options->model, strerror(errno));
        return OK;
    }
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        snprintf(path, sizeof path, "%s/%s", up->folder, places[i]);
        if (realpath(path, up->model)) return OK;
    }
    return err_set(ERR_NOT_FOUND, "the demo model is not there: give --model DIR");
}

static enum err check_addresses(const struct up *up)
{
    const struct up_options *o = up->options;
    const struct {
        const char *setting, *address;
    } row[] = {{"--zmq", o->zmq}, {"--nodes", o->nodes}, {"--metrics", o->metrics}};
    uint16_t port = 0;
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        char host[ADDRESS_HOST_MAX];
        enum err e = row[i].address ? address_split(row[i].address, host, &port) : OK;
        if (e != OK) return err_prefix(e, row[i].setting);
    }
    if (!o->metrics || port + up->children_count - 1 <= UINT16_MAX) return OK;
    return err_set(ERR_INVALID, "--metrics %s: %u processes have no ports from there on",
                   o->metrics, up->children_count);
}

static bool is_first_on_its_device(const struct up *up, uint32_t i)
{
    for (uint32_t k = 1; k < i; k++)
        if (strcmp(up->child[k].node->device, up->child[i].node->device) == 0) return false;
    return true;
}

static int try_node(const struct child *c)
{
    struct up_args args = {0};
    pid_t pid;
    int status;
    enum err e = child_args(c, &args);
    int error = e == OK ? posix_spawn(&pid, args.item[0], NULL, NULL, args.item, environ) : 0;
    if (error != 0) e = err_set(ERR_IO, "%s: %s", args.item[0], strerror(error));
    up_args_fini(&args);
    if (e != OK) {
        fprintf(stderr, "tandem up: %s\n", err_text());
        return CMD_FAILED;
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : CMD_FAILED;
}

/* With --dry-run: the nodes' own programs look at their settings and devices, and say what is missing. */
static int try_nodes(const struct up *up)
{
    int code = CMD_DONE;
    for (uint32_t i = 1; i < up->children_count && code == CMD_DONE; i++)
        if (is_first_on_its_device(up, i)) code = try_node(&up->child[i]);
    return code;
}

static enum err make_kv_disk(const struct up_options *o)
{
    if (!o->kv_disk || mkdir(o->kv_disk, 0700) == 0 || errno == EEXIST) return OK;
    return err_set(ERR_IO, "--kv-disk %s: %s", o->kv_disk, strerror(errno));
}

static enum err prepare(struct up *up)
{
    enum err e;
    if ((e = find_folder(up)) != OK || (e = find_model(up)) != OK) return e;
    snprintf(up->clients, sizeof up->clients, "%s", up->options->zmq);
    snprintf(up->nodes, sizeof up->nodes, "%s", up->options->nodes);
    if ((e = plan_gpus(up)) != OK) return e;
    if ((e = plan_children(up)) != OK || (e = check_addresses(up)) != OK) return e;
    if (up->options->dry_run) return OK;
    if ((e = make_kv_disk(up->options)) != OK) return e;
    if ((e = loop_new(&up->loop)) != OK) return e;
    if ((e = loop_timer_new(up->loop, on_deadline, up, &up->deadline)) != OK) return e;
    if ((e = loop_timer_new(up->loop, on_long_start, up, &up->long_start)) != OK) return e;
    loop_timer_set(up->long_start, loop_now_ns(up->loop) + LONG_START_MS * NS_PER_MS);
    for (uint32_t i = 0; i < up->children_count; i++) {
        struct child *c = &up->child[i];
        if ((e = loop_timer_new(up->loop, on_restart, c, &c->restart)) != OK) return e;
    }
    signal(SIGPIPE, SIG_IGN); /* who reads our lines may leave, the cluster stays */
    if ((e = loop_signal(up->loop, SIGINT, on_signal, up)) != OK) return e;
    if ((e = loop_signal(up->loop, SIGTERM, on_signal, up)) != OK) return e;
    return loop_signal(up->loop, SIGCHLD, on_child_signal, up);
}

static void finish(struct up *up)
{
    for (uint32_t i = 0; i < up->children_count; i++) {
        close_out(&up->child[i]);
        if (up->child[i].restart) loop_timer_free(up->child[i].restart);
    }
    if (up->deadline) loop_timer_free(up->deadline);
    if (up->long_start) loop_timer_free(up->long_start);
    loop_free(up->loop);
    up_plan_fini(&up->plan);
}

static int run_up(const struct up_options *o)
{
    struct up *up = mem_new(sizeof *up);
    if (!up) return CMD_FAILED;
    up->options = o;
    up->began_ns = clock_now_ns();
    enum err e = prepare(up);
    if (e == OK && !o->json) up_plan_print(&up->plan, o->dry_run ? stdout : stderr);
    for (uint32_t i = 0; e == OK && o->json && i < up->plan.count; i++)
        tell(up, up_plan_event(&up->plan.node[i]));
    bool elsewhere = up->plan.host && !up->plan.host->this_host;
    if (e == OK && o->dry_run && !elsewhere) up->code = try_nodes(up);
    if (e == OK && !o->dry_run) e = child_start(&up->child[0]);
    if (e == OK) {
        if (!o->dry_run) loop_run(up->loop);
    } else {
        fprintf(stderr, "tandem up: %s\n", err_text());
        up->code = e == ERR_INVALID ? CMD_USAGE : CMD_FAILED;
        kill_children(up, SIGTERM);
    }
    int code = up->code;
    tell(up, json_pack("{s:s, s:i}", "event", "ended", "code", code));
    finish(up);
    mem_free(up);
    return code;
}

int cmd_up(int argc, char **argv)
{
    struct up_options o = {0};
    const struct settings_table own = {rows, COUNT_OF(rows), &o};
    const struct settings_program about = {
        .name = "tandem up",
        .about = "Runs a router, prefill and decode nodes on this host until Ctrl-C, which drains. "
                 "Prints `ready clients=ADDRESS nodes=ADDRESS` when requests can come."};
    struct settings s;
    int code;
    if (!cmd_settings(&s, &about, &own, NULL, argc, argv, &code)) return code;
    code = run_up(&o);
    settings_fini(&s);
    return code;
}
