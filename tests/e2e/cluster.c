#include "tests/e2e/cluster.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"

enum { OVERHEAD_BYTES = 64 << 20 }; /* of any process, beside weights and pool */
enum { ARGS_MAX = 64, ARGS_BYTES_MAX = 4096, LOG_TAIL_BYTES = 6000 };

/* ---- where things are ---- */

const char *cluster_demo_model(void)
{
    return TANDEM_SOURCE_DIR "/examples/demo_model/model";
}

const char *cluster_shared(const char *path)
{
    static char full[PATH_MAX];
    const char *root = getenv("TANDEM_SHARED_DATA");
    snprintf(full, sizeof full, "%s/%s", root ? root : TANDEM_SOURCE_DIR "/../shared/data", path);
    if (access(full, R_OK) != 0) {
        print_message("no reference data %s\n", full);
        skip();
    }
    return full;
}

static uint64_t deadline(void)
{
    return clock_now_ns() + CLUSTER_WAIT_MS * NS_PER_MS;
}

static int left_ms(uint64_t deadline_ns)
{
    uint64_t now_ns = clock_now_ns();
    return now_ns >= deadline_ns ? 0 : (int)((deadline_ns - now_ns) / NS_PER_MS) + 1;
}

/* ---- one process ---- */

/* $TANDEM_BIN_DIR goes first: packs that are taken to other machines have programs of their own. */
static const char *program_path(enum program program)
{
    static const char *const names[] = {"tandem-router", "tandem-prefill", "tandem-decode", "",
                                        "tandem"};
    static char path[PATH_MAX];
    const char *folder = getenv("TANDEM_BIN_DIR");
    if (program == PROGRAM_CLIENT) return "/proc/self/exe";
    snprintf(path, sizeof path, "%s/%s", folder ? folder : TANDEM_BIN_DIR, names[program]);
    return path;
}

struct command_line {
    char text[ARGS_BYTES_MAX];
    size_t used;
    char *arg[ARGS_MAX + 1];
    uint32_t count;
};

static void add_arg(struct command_line *l, const char *arg)
{
    size_t size = strlen(arg) + 1;
    assert_true(l->count < ARGS_MAX && l->used + size <= sizeof l->text);
    l->arg[l->count++] = memcpy(l->text + l->used, arg, size);
    l->used += size;
}

static void add_option(struct command_line *l, const char *told, const char *name,
                       const char *value)
{
    if (strstr(told, name)) return; /* the test's word goes first */
    add_arg(l, name);
    add_arg(l, value);
}

static void add_words(struct command_line *l, const char *words)
{
    char copy[ARGS_BYTES_MAX], *rest = NULL;
    assert_true((size_t)snprintf(copy, sizeof copy, "%s", words) < sizeof copy);
    for (char *word = strtok_r(copy, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        add_arg(l, word);
}

static void command_line(struct command_line *l, const struct cluster *c, const struct process *p,
                         const char *args)
{
    add_arg(l, program_path(p->program));
    if (p->program == PROGRAM_CLIENT) {
        add_arg(l, "client");
        add_arg(l, c->addresses);
        return;
    }
    if (p->program == PROGRAM_UP)
        add_arg(l, "up");
    else
        add_option(l, args, "--name", p->name);
    if (c->model) add_option(l, args, "--model", c->model);
    if (p->program == PROGRAM_UP) {
        add_option(l, args, "--zmq", "tcp://127.0.0.1:0");
    } else if (p->program == PROGRAM_ROUTER) {
        add_option(l, args, "--listen-clients", "tcp://127.0.0.1:0");
        add_option(l, args, "--listen-nodes", "tcp://127.0.0.1:0");
        add_option(l, args, "--queue-timeout", "10m"); /* a slow machine is no failure */
    } else {
        add_option(l, args, "--cache-dir", c->folder);
        add_option(l, args, "--threads", "1");
        for (uint32_t i = 0; !strstr(args, "--router") && i < c->count; i++) {
            if (c->process[i]->program != PROGRAM_ROUTER || !c->process[i]->nodes[0]) continue;
            add_arg(l, "--router");
            add_arg(l, c->process[i]->nodes);
        }
    }
    add_words(l, args);
}

/* In the child: nothing but system calls between fork and exec. */
static void become(char *const *args, int out_fd, int log_fd, pid_t parent, bool apart)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(126); /* it died before the line above */
    if (apart) setsid();
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (dup2(nothing, 0) < 0 || dup2(out_fd, 1) < 0 || dup2(log_fd, 2) < 0) _exit(126);
    execv(args[0], args);
    _exit(127);
}

struct process *cluster_spawn(struct cluster *c, enum program program, const char *args)
{
    struct command_line l = {.count = 0};
    struct process *p = mem_new(sizeof *p);
    int out[2];
    assert_non_null(p);
    assert_true(c->count < CLUSTER_PROCESSES_MAX);
    uint32_t number = 0;
    for (uint32_t i = 0; i < c->count; i++)
        number += c->process[i]->program == program;
    p->program = program;
    p->out_fd = -1;
    snprintf(p->name, sizeof p->name, "%c%u", "rpdcu"[program], number);
    snprintf(p->log, sizeof p->log, "%s/%s.log", c->folder, p->name);
    c->process[c->count++] = p;
    command_line(&l, c, p, args);
    int log_fd = open(p->log, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    assert_true(log_fd >= 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    pid_t parent = getpid();
    if (c->own_hosts) setenv("NCCL_HOSTID", p->name, 1);
    p->pid = fork();
    if (p->pid == 0) become(l.arg, out[1], log_fd, parent, c->apart);
    if (c->own_hosts) unsetenv("NCCL_HOSTID");
    close(log_fd);
    close(out[1]);
    p->out_fd = out[0];
    assert_true(p->pid > 0);
    assert_int_equal(fcntl(p->out_fd, F_SETFL, O_NONBLOCK), 0);
    return p;
}

struct process *cluster_process(struct cluster *c, const char *name)
{
    for (uint32_t i = 0; i < c->count; i++)
        if (strcmp(c->process[i]->name, name) == 0) return c->process[i];
    fail_msg("no process \"%s\"", name);
    return NULL;
}

static bool is_router(const struct process *p)
{
    return p->program == PROGRAM_ROUTER || p->program == PROGRAM_UP;
}

static bool heard_ready(struct process *p)
{
    if (!strchr(p->said, '\n')) return false;
    if (p->program == PROGRAM_CLIENT) return true;
    if (is_router(p))
        return sscanf(p->said, "ready clients=%63s nodes=%63s metrics=%63s", p->clients, p->nodes,
                      p->metrics) >= 2;
    sscanf(p->said, "ready name=%*s metrics=%63s", p->metrics);
    return strncmp(p->said, "ready name=", 11) == 0;
}

bool process_look(struct process *p)
{
    size_t size = strlen(p->said);
    while (!p->ready && p->out_fd >= 0) {
        ssize_t n = read(p->out_fd, p->said + size, sizeof p->said - 1 - size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) { /* it ended, or said more than its ready line */
            close(p->out_fd);
            p->out_fd = -1;
            break;
        }
        size += (size_t)n;
        p->said[size] = '\0';
        p->ready = heard_ready(p);
    }
    return p->ready;
}

void process_await_ready(struct process *p)
{
    uint64_t until_ns = deadline();
    while (!process_look(p)) {
        struct pollfd out = {.fd = p->out_fd, .events = POLLIN};
        if (p->out_fd < 0) fail_msg("%s ended instead of becoming ready", p->name);
        if (poll(&out, 1, left_ms(until_ns)) == 0)
            fail_msg("%s did not become ready in %d ms", p->name, CLUSTER_WAIT_MS);
    }
}

static void reap(struct process *p)
{
    int status;
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    p->status = WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
    p->pid = 0;
}

static bool await_exit(struct process *p)
{
    if (p->pid == 0) return true;
    uint64_t until_ns = deadline();
    struct pollfd end = {.fd = pidfd_open(p->pid, 0), .events = POLLIN};
    assert_true(end.fd >= 0);
    int n;
    do
        n = poll(&end, 1, left_ms(until_ns));
    while (n < 0 && errno == EINTR);
    close(end.fd);
    if (n > 0) reap(p);
    return n > 0;
}

int process_await_exit(struct process *p)
{
    if (!await_exit(p)) fail_msg("%s did not end in %d ms", p->name, CLUSTER_WAIT_MS);
    return p->status;
}

void process_signal(struct process *p, int number)
{
    assert_true(p->pid > 0);
    assert_int_equal(kill(p->pid, number), 0);
}

bool process_is_stopped(const struct process *p)
{
    siginfo_t about = {.si_pid = 0};
    assert_int_equal(waitid(P_PID, (id_t)p->pid, &about, WSTOPPED | WEXITED | WNOWAIT | WNOHANG),
                     0);
    return about.si_pid == p->pid && about.si_code == CLD_STOPPED;
}

void process_kill(struct process *p)
{
    p->expendable = true;
    process_signal(p, SIGKILL);
    process_await_exit(p);
}

size_t process_peak_bytes(const struct process *p)
{
    char path[64], line[256];
    size_t kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)p->pid);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %zu", &kib) == 1) break;
    fclose(f);
    assert_true(kib > 0);
    return kib * 1024;
}

static char *read_log(const struct process *p)
{
    FILE *f = fopen(p->log, "re");
    struct stat about;
    if (!f) return NULL;
    char *text = fstat(fileno(f), &about) == 0 ? mem_new((size_t)about.st_size + 1) : NULL;
    if (text) text[fread(text, 1, (size_t)about.st_size, f)] = '\0';
    fclose(f);
    return text;
}

bool process_logged(const struct process *p, const char *text)
{
    char *log = read_log(p);
    bool found = log && strstr(log, text);
    mem_free(log);
    return found;
}

static void print_log(const struct process *p)
{
    char *log = read_log(p);
    size_t size = log ? strlen(log) : 0;
    const char *tail = size > LOG_TAIL_BYTES ? log + size - LOG_TAIL_BYTES : log;
    fprintf(stderr, "---- %s (%s, %d) ----\n%s\n", p->name, p->pid ? "running" : "ended",
            p->pid ? (int)p->pid : p->status, tail ? tail : "no log");
    mem_free(log);
}

/* ---- questions to the routers ---- */

struct answer {
    bool here;
    enum tandem_status status;
    char *text;
};

static void on_answer(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    struct answer *a = ctx;
    (void)bytes;
    a->here = true;
    a->status = status;
    a->text = mem_copy_string(text);
}

static void await_answer(struct cluster *c, struct answer *a, const char *what)
{
    uint64_t until_ns = deadline();
    while (!a->here && left_ms(until_ns) > 0)
        tandem_wait(c->tandem, left_ms(until_ns));
    if (!a->here) fail_msg("no answer in %d ms: %s", CLUSTER_WAIT_MS, what);
    if (a->status != TANDEM_OK)
        fail_msg("%s: %s: %s", what, tandem_status_name(a->status), a->text);
}

static void connect_once(struct cluster *c)
{
    if (c->tandem) return;
    assert_int_equal(tandem_open(&c->tandem, c->addresses), TANDEM_OK);
    tandem_set_patience(c->tandem, CLUSTER_WAIT_MS);
}

json_t *cluster_status(struct cluster *c)
{
    struct answer a = {.here = false};
    connect_once(c);
    assert_int_equal(tandem_query_status(c->tandem, on_answer, &a), TANDEM_OK);
    await_answer(c, &a, "status");
    json_t *status = json_loads(a.text, 0, NULL);
    mem_free(a.text);
    assert_non_null(status);
    return status;
}

const json_t *cluster_explain(struct cluster *c, const char *request, json_t **explained)
{
    struct answer a = {.here = false};
    connect_once(c);
    assert_int_equal(tandem_query_explain(c->tandem, request, on_answer, &a), TANDEM_OK);
    await_answer(c, &a, "explain");
    *explained = json_loads(a.text, 0, NULL);
    mem_free(a.text);
    assert_non_null(*explained);
    return json_array_get(json_object_get(*explained, "choices"), 0);
}

struct process *cluster_process_of(struct cluster *c, const char *request, const char *role)
{
    json_t *explained;
    const json_t *nodes = json_object_get(cluster_explain(c, request, &explained), "nodes");
    const char *name = json_string_value(json_object_get(nodes, role));
    assert_non_null(name);
    struct process *found = cluster_process(c, name);
    json_decref(explained);
    return found;
}

void cluster_state_of(struct cluster *c, const char *request, char *state, size_t state_bytes)
{
    json_t *explained;
    const json_t *choice = cluster_explain(c, request, &explained);
    snprintf(state, state_bytes, "%s", json_string_value(json_object_get(choice, "state")));
    json_decref(explained);
}

json_t *cluster_find_node(json_t *status, const char *name)
{
    size_t i;
    json_t *node;
    json_array_foreach(json_object_get(status, "nodes"), i,
                       node) if (strcmp(json_string_value(json_object_get(node, "name")), name) ==
                                 0) return node;
    return NULL;
}

void cluster_await(struct cluster *c, bool holds(struct cluster *c, json_t *status),
                   const char *what)
{
    uint64_t until_ns = deadline();
    for (;;) {
        json_t *status = cluster_status(c);
        bool now = holds(c, status);
        char *text = now ? NULL : json_dumps(status, JSON_INDENT(1));
        json_decref(status);
        if (now) return;
        if (left_ms(until_ns) == 0) {
            fprintf(stderr, "%s\n", text); /* fail_msg would cut it off */
            fail_msg("not in %d ms: %s", CLUSTER_WAIT_MS, what);
        }
        free(text);
        tandem_wait(c->tandem, 20); /* the answers change with the nodes' heartbeats */
    }
}

static bool nodes_are_known(struct cluster *c, json_t *status)
{
    size_t live = 0, i;
    json_t *node;
    for (uint32_t n = 0; n < c->count; n++) {
        struct process *p = c->process[n];
        bool is_node = p->program == PROGRAM_PREFILL || p->program == PROGRAM_DECODE;
        if (!is_node || p->pid == 0) continue;
        if (!process_look(p) || !cluster_find_node(status, p->name)) return false;
        live++;
    }
    json_array_foreach(json_object_get(status, "nodes"), i,
                       node) if (strcmp(json_string_value(json_object_get(node, "state")), "up") !=
                                 0) return false;
    return json_array_size(json_object_get(status, "nodes")) == live;
}

void cluster_await_nodes(struct cluster *c)
{
    cluster_await(c, nodes_are_known, "exactly the live nodes are up");
}

static json_int_t number(const json_t *object, const char *name)
{
    const json_t *n = json_object_get(object, name);
    assert_true(json_is_integer(n));
    return json_integer_value(n);
}

static bool is_idle(struct cluster *c, json_t *status)
{
    size_t i;
    json_t *node;
    const json_t *router = json_object_get(status, "router");
    (void)c;
    if (number(router, "requests") + number(router, "queued") > 0) return false;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        const json_t *b = json_object_get(node, "blocks"), *load = json_object_get(node, "load");
        json_int_t used = number(b, "reserved") + number(b, "active") + number(b, "transfer");
        if (number(b, "total") == 0 || used > 0) return false;
        if (number(b, "free") + number(b, "cached") != number(b, "total")) return false;
        if (number(load, "running") + number(load, "waiting") > 0) return false;
    }
    return true;
}

void cluster_await_idle(struct cluster *c)
{
    cluster_await(c, is_idle, "no request, and no block active, reserved or in transfer");
}

void cluster_drain(struct cluster *c, const struct process *node)
{
    struct answer a = {.here = false};
    connect_once(c);
    assert_int_equal(tandem_drain(c->tandem, node->name, on_answer, &a), TANDEM_OK);
    await_answer(c, &a, "drain");
    mem_free(a.text);
}

/* ---- the whole ---- */

struct cluster *cluster_new(const char *model)
{
    struct cluster *c = mem_new(sizeof *c);
    assert_non_null(c);
    c->model = model;
    scratch_make(c->folder);
    return c;
}

static struct process *start_router(struct cluster *c, enum program program, const char *args)
{
    struct process *p = cluster_spawn(c, program, args);
    process_await_ready(p);
    size_t used = strlen(c->addresses);
    snprintf(c->addresses + used, sizeof c->addresses - used, "%s%s", used ? "," : "", p->clients);
    return p;
}

struct process *cluster_router(struct cluster *c, const char *args)
{
    return start_router(c, PROGRAM_ROUTER, args);
}
struct process *cluster_up(struct cluster *c, const char *args)
{
    return start_router(c, PROGRAM_UP, args);
}

struct process *cluster_node(struct cluster *c, enum program program, const char *args)
{
    struct process *p = cluster_spawn(c, program, args);
    process_await_ready(p);
    return p;
}

struct process *cluster_client(struct cluster *c)
{
    struct process *p = cluster_spawn(c, PROGRAM_CLIENT, "");
    p->expendable = true;
    process_await_ready(p);
    return p;
}

void cluster_start(struct cluster *c, uint32_t prefills, uint32_t decodes, const char *router_args,
                   const char *node_args)
{
    cluster_router(c, router_args);
    for (uint32_t i = 0; i < prefills; i++)
        cluster_spawn(c, PROGRAM_PREFILL, node_args);
    for (uint32_t i = 0; i < decodes; i++)
        cluster_spawn(c, PROGRAM_DECODE, node_args);
    for (uint32_t i = 0; i < c->count; i++)
        process_await_ready(c->process[i]);
    cluster_await_nodes(c);
}

void cluster_stop(struct cluster *c)
{
    tandem_close(c->tandem); /* a router that leaves waits a second for clients who do not listen */
    c->tandem = NULL;
    for (uint32_t i = 0; i < c->count; i++)
        if (is_router(c->process[i]) && c->process[i]->pid)
            process_signal(c->process[i], SIGTERM); /* drains it; it sends its nodes home */
    for (uint32_t i = 0; i < c->count; i++) {
        struct process *p = c->process[i];
        int status = process_await_exit(p);
        if (!p->expendable && status != 0) fail_msg("%s left with %d", p->name, status);
    }
    c->stopped = true;
}

/* The cache file of packed weights is the largest in the folder. */
size_t cluster_weights_bytes(const struct cluster *c)
{
    size_t largest = 0;
    DIR *d = opendir(c->folder);
    assert_non_null(d);
    for (const struct dirent *f; (f = readdir(d));) {
        struct stat about;
        if (fstatat(dirfd(d), f->d_name, &about, 0) == 0 && S_ISREG(about.st_mode) &&
            (size_t)about.st_size > largest)
            largest = (size_t)about.st_size;
    }
    closedir(d);
    return largest;
}

void cluster_expect_memory(const struct cluster *c, size_t pool_bytes)
{
    if (SANITIZED) return; /* its shadows are larger than the programs */
    size_t weights = cluster_weights_bytes(c);
    for (uint32_t i = 0; i < c->count; i++) {
        const struct process *p = c->process[i];
        if (p->pid == 0) continue;
        size_t limit = OVERHEAD_BYTES;
        if (p->program != PROGRAM_ROUTER) limit += weights + pool_bytes;
        size_t peak = process_peak_bytes(p);
        if (peak > limit) fail_msg("%s: %zu bytes resident, of at most %zu", p->name, peak, limit);
    }
}

static void end_process(struct process *p)
{
    int status;
    if (p->pid > 0 && kill(p->pid, SIGKILL) == 0) waitpid(p->pid, &status, 0);
    if (p->out_fd >= 0) close(p->out_fd);
    mem_free(p);
}

void cluster_free(struct cluster *c)
{
    if (!c) return;
    tandem_close(c->tandem);
    for (uint32_t i = 0; !c->stopped && i < c->count; i++)
        print_log(c->process[i]);
    for (uint32_t i = 0; i < c->count; i++)
        end_process(c->process[i]);
    scratch_remove(c->folder);
    mem_free(c);
}
