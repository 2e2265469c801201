/* The calls of the stand-in NCCL: knobs, communicators and what becomes of them. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/fake/cuda/fake.h"
#include "tests/fake/nccl/inside.h"

struct fake_nccl_state fake_nccl = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .changed = PTHREAD_COND_INITIALIZER,
};

static struct {
    pthread_mutex_t lock;
    char text[400]; /* the process's, whoever asks */
} last_error = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* --- what is said --- */

static void say(const char *kind, const char *format, va_list args)
{
    char text[512];
    pthread_mutex_lock(&last_error.lock);
    vsnprintf(last_error.text, sizeof last_error.text, format, args);
    int n = snprintf(text, sizeof text, "fake nccl: %s%s\n", kind, last_error.text);
    pthread_mutex_unlock(&last_error.lock);
    if (write(STDERR_FILENO, text, (size_t)n) < 0) /* one write: lines of processes do not mix */
        return;
}

void fake_nccl_say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say("", format, args);
    va_end(args);
}

void fake_nccl_fault(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say("fault: ", format, args);
    va_end(args);
    fake_fault("from NCCL, see the line before");
}

const char *ncclGetErrorString(ncclResult_t result)
{
    static const char *const text[ncclNumResults] = {
        [ncclSuccess] = "no error",
        [ncclUnhandledCudaError] = "unhandled cuda error",
        [ncclSystemError] = "unhandled system error",
        [ncclInternalError] = "internal error",
        [ncclInvalidArgument] = "invalid argument",
        [ncclInvalidUsage] = "invalid usage",
        [ncclRemoteError] = "remote process exited or there was a network error",
        [ncclInProgress] = "NCCL operation in progress",
    };
    return (unsigned)result < ncclNumResults ? text[result] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    static _Thread_local char copy[sizeof last_error.text];
    (void)comm;
    pthread_mutex_lock(&last_error.lock);
    strcpy(copy, last_error.text);
    pthread_mutex_unlock(&last_error.lock);
    return copy;
}

/* --- knobs --- */

static void set_knob(struct fake_nccl_knobs *k, const char *name, const char *value)
{
    uint32_t number = (uint32_t)strtoul(value, NULL, 0);
    const struct {
        const char *name;
        uint32_t *at;
    } numbers[] = {
        {"fail_at", &k->fail_at},
        {"in_progress_ms", &k->in_progress_ms},
        {"loud_death", &k->loud_death},
        {"init_ms", &k->init_ms},
        {"init_hangs", &k->init_hangs},
        {"abort_hangs", &k->abort_hangs},
        {"one_at_a_time", &k->one_at_a_time},
        {"same_gpu", &k->same_gpu},
        {"register_unsupported", &k->register_unsupported},
        {"version", &k->version},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (strcmp(name, numbers[i].name) == 0) {
            *numbers[i].at = number;
            return;
        }
    if (strcmp(name, "fail_call") == 0)
        k->fail_call = value;
    else if (strcmp(name, "fail_with") == 0)
        k->fail_with = (int)number;
    else
        fake_nccl_say("TANDEM_FAKE_NCCL has no \"%s\"", name);
}

/* The text is kept for the life of the process: fail_call points into it. Lock held. */
static struct fake_nccl_knobs *knobs_locked(void)
{
    static char text[512];
    const char *set = getenv("TANDEM_FAKE_NCCL");
    char *rest = NULL;
    if (fake_nccl.knobs_read) return &fake_nccl.knobs;
    fake_nccl.knobs_read = true;
    snprintf(text, sizeof text, "%s", set ? set : "");
    for (char *part = strtok_r(text, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        char *value = strchr(part, '=');
        if (value) *value++ = '\0';
        set_knob(&fake_nccl.knobs, part, value ? value : "");
    }
    return &fake_nccl.knobs;
}

struct fake_nccl_knobs *fake_nccl_knobs(void)
{
    pthread_mutex_lock(&fake_nccl.lock);
    struct fake_nccl_knobs *k = knobs_locked();
    pthread_mutex_unlock(&fake_nccl.lock);
    return k;
}

ncclResult_t fake_nccl_knob_error(const char *call)
{
    struct fake_nccl_knobs *k = knobs_locked();
    if (k->fail_call != fake_nccl.fail_seen || k->fail_at != fake_nccl.fail_seen_at) {
        fake_nccl.fail_seen = k->fail_call;
        fake_nccl.fail_seen_at = k->fail_at;
        fake_nccl.fail_calls = 0;
    }
    if (!k->fail_call || strcmp(k->fail_call, call) != 0) return ncclSuccess;
    if (++fake_nccl.fail_calls != k->fail_at) return ncclSuccess;
    fake_nccl_say("%s fails, as the knobs want", call);
    k->fail_call = NULL;
    return k->fail_with ? (ncclResult_t)k->fail_with : ncclInternalError;
}

/* --- calls --- */

static ncclResult_t enter(const char *call)
{
    pthread_mutex_lock(&fake_nccl.lock);
    return fake_nccl_knob_error(call);
}

static ncclResult_t leave(ncclResult_t r)
{
    pthread_mutex_unlock(&fake_nccl.lock);
    return r;
}

/* A fault found under the lock. */
static ncclResult_t fault(const char *call, const char *what)
{
    pthread_mutex_unlock(&fake_nccl.lock);
    fake_nccl_fault("%s: %s", call, what);
    pthread_mutex_lock(&fake_nccl.lock);
    return ncclInvalidArgument;
}

/* The real library reads memory that it freed. */
static ncclResult_t check_comm(const char *call, ncclComm_t comm)
{
    for (struct ncclComm *c = fake_nccl.comms; c; c = c->next)
        if (c == comm && c->live) return ncclSuccess;
    return fault(call, "this communicator was aborted or destroyed, or never made");
}

static ncclResult_t enter_with(const char *call, ncclComm_t comm)
{
    ncclResult_t r = enter(call);
    return r == ncclSuccess ? check_comm(call, comm) : r;
}

/* Most calls want the one before to have come to its end. */
static ncclResult_t check_ready(const char *call, const struct ncclComm *comm)
{
    if (comm->state == ncclSuccess && !comm->finalized) return ncclSuccess;
    fake_nccl_say("%s: %s", call,
                  comm->state == ncclInProgress ? "an earlier call is in progress"
                  : comm->finalized             ? "the communicator is finalized"
                                                : "the communicator has failed");
    return comm->state == ncclSuccess || comm->state == ncclInProgress ? ncclInvalidArgument
                                                                       : comm->state;
}

ncclResult_t ncclGetVersion(int *version)
{
    ncclResult_t r = enter("ncclGetVersion");
    uint32_t set = knobs_locked()->version;
    if (r == ncclSuccess) *version = set ? (int)set : NCCL_VERSION_CODE;
    return leave(r);
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    ncclResult_t r = enter("ncclGetUniqueId");
    if (r == ncclSuccess) r = fake_nccl_listen(id);
    return leave(r);
}

/* --- what goes on behind ncclInProgress --- */

struct job {
    struct ncclComm *comm;
    const char *name;
    ncclResult_t (*run)(struct job *j); /* without the lock; ncclInProgress: stopped */
    struct fake_move *move;
};

static void *job_main(void *arg)
{
    struct job *j = arg;
    ncclResult_t r;
    fake_nccl_sleep(j->comm, fake_nccl_knobs()->in_progress_ms);
    pthread_mutex_lock(&fake_nccl.lock);
    r = fake_nccl_knob_error(j->name);
    pthread_mutex_unlock(&fake_nccl.lock);
    if (r == ncclSuccess || j->move) { /* a launch that fails has to let go of its move */
        ncclResult_t ran = j->run(j);
        if (r == ncclSuccess) r = ran;
    }
    pthread_mutex_lock(&fake_nccl.lock);
    if (j->comm->state == ncclInProgress) j->comm->state = r;
    j->comm->jobs_count--;
    fake_nccl.jobs_count--;
    fake_nccl_drop(j->comm);
    pthread_cond_broadcast(&fake_nccl.changed);
    pthread_mutex_unlock(&fake_nccl.lock);
    free(j);
    return NULL;
}

/* Lock held; ncclInProgress: it is under way. */
static ncclResult_t start(const struct job *wanted)
{
    pthread_t thread;
    struct job *j = malloc(sizeof *j);
    if (!j) return ncclSystemError;
    *j = *wanted;
    j->comm->state = ncclInProgress;
    j->comm->refs++;
    j->comm->jobs_count++;
    fake_nccl.jobs_count++;
    fake_nccl.threads_of = getpid();
    if (pthread_create(&thread, NULL, job_main, j) != 0) abort();
    pthread_detach(thread);
    return ncclInProgress;
}

/* --- communicators --- */

void fake_nccl_drop(struct ncclComm *comm)
{
    if (--comm->refs > 0) return;
    struct ncclComm **at = &fake_nccl.comms;
    while (*at != comm)
        at = &(*at)->next;
    *at = comm->next;
    while (comm->registrations) {
        struct fake_registration *r = comm->registrations;
        comm->registrations = r->next;
        free(r);
    }
    if (comm->fd >= 0) close(comm->fd);
    close(comm->wake_fd);
    free(comm);
}

void fake_nccl_stop(struct ncclComm *comm)
{
    const uint64_t one = 1;
    comm->stop = true;
    if (write(comm->wake_fd, &one, sizeof one) < 0) abort();
    pthread_cond_broadcast(&fake_nccl.changed);
}

static ncclResult_t run_init(struct job *j)
{
    const struct fake_nccl_knobs *k = fake_nccl_knobs();
    fake_nccl_sleep(j->comm, k->init_hangs ? UINT32_MAX : k->init_ms);
    return fake_nccl_meet(j->comm);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    static const char call[] = "ncclCommInitRankConfig";
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return ncclUnhandledCudaError;
    ncclResult_t r = enter(call);
    if (r != ncclSuccess) return leave(r);
    if (ranks != 2 || rank < 0 || rank >= ranks || config->blocking != 0) {
        fake_nccl_say("%s: only pairs, and only non-blocking ones", call);
        return leave(ncclInvalidArgument);
    }
    struct ncclComm *c = calloc(1, sizeof *c);
    if (!c) return leave(ncclSystemError);
    *c = (struct ncclComm){.next = fake_nccl.comms,
                           .live = true,
                           .refs = 1,
                           .rank = rank,
                           .device = device,
                           .id = id,
                           .fd = -1,
                           .wake_fd = eventfd(0, EFD_CLOEXEC)};
    if (c->wake_fd < 0) abort();
    fake_nccl.comms = c;
    *comm = c;
    return leave(start(&(struct job){.comm = c, .name = "init", .run = run_init}));
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    ncclResult_t r = enter_with("ncclCommGetAsyncError", comm);
    if (r == ncclSuccess) *state = comm->state;
    return leave(r);
}

/* When what this side launched has ended, and the other side is there too. */
static ncclResult_t run_finalize(struct job *j)
{
    struct fake_meeting theirs, mine = {.mark = FAKE_FINAL, .number = j->comm->operations};
    pthread_mutex_lock(&fake_nccl.lock);
    while (j->comm->moving_count > 0 && !j->comm->stop)
        pthread_cond_wait(&fake_nccl.changed, &fake_nccl.lock);
    pthread_mutex_unlock(&fake_nccl.lock);
    return fake_nccl_exchange(j->comm, &mine, &theirs) ? ncclSuccess : ncclInProgress;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    static const char call[] = "ncclCommFinalize";
    ncclResult_t r = enter_with(call, comm);
    if (r == ncclSuccess) r = check_ready(call, comm);
    if (r != ncclSuccess) return leave(r);
    comm->finalized = true;
    return leave(start(&(struct job){.comm = comm, .name = "finalize", .run = run_finalize}));
}

/* Blocks until nothing of it is under way. */
static void end(struct ncclComm *comm)
{
    comm->live = false;
    fake_nccl_stop(comm);
    while (comm->jobs_count > 0 || comm->moving_count > 0)
        pthread_cond_wait(&fake_nccl.changed, &fake_nccl.lock);
    fake_nccl_drop(comm);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    static const char call[] = "ncclCommDestroy";
    ncclResult_t r = enter_with(call, comm);
    if (r != ncclSuccess) return leave(r);
    if (comm->moving_count > 0) fault(call, "operations are under way; it would not return");
    end(comm);
    return leave(ncclSuccess);
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    ncclResult_t r = enter_with("ncclCommAbort", comm);
    if (r != ncclSuccess) return leave(r);
    if (knobs_locked()->abort_hangs) {
        leave(ncclSuccess);
        for (;;)
            pause();
    }
    end(comm);
    return leave(ncclSuccess);
}

/* --- memory --- */

ncclResult_t ncclMemAlloc(void **memory, size_t size)
{
    ncclResult_t r = enter("ncclMemAlloc");
    if (r == ncclSuccess && knobs_locked()->register_unsupported) r = ncclInvalidUsage;
    leave(r);
    if (r != ncclSuccess) return r;
    return cudaMalloc(memory, size) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclMemFree(void *memory)
{
    ncclResult_t r = leave(enter("ncclMemFree"));
    if (r != ncclSuccess) return r;
    return cudaFree(memory) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclCommRegister(ncclComm_t comm, void *memory, size_t size, void **handle)
{
    static const char call[] = "ncclCommRegister";
    ncclResult_t r = enter_with(call, comm);
    if (r == ncclSuccess) r = check_ready(call, comm);
    if (r == ncclSuccess && knobs_locked()->register_unsupported) r = ncclInvalidUsage;
    if (r != ncclSuccess) return leave(r);
    struct fake_registration *g = calloc(1, sizeof *g);
    if (!g) return leave(ncclSystemError);
    *g = (struct fake_registration){.next = comm->registrations, .memory = memory, .size = size};
    comm->registrations = g;
    *handle = g;
    return leave(ncclSuccess);
}

ncclResult_t ncclCommDeregister(ncclComm_t comm, void *handle)
{
    static const char call[] = "ncclCommDeregister";
    ncclResult_t r = enter_with(call, comm);
    if (r != ncclSuccess) return leave(r);
    for (struct fake_registration **at = &comm->registrations; *at; at = &(*at)->next) {
        struct fake_registration *g = *at;
        if (g != handle) continue;
        *at = g->next;
        free(g);
        return leave(ncclSuccess);
    }
    return leave(fault(call, "no registration of this communicator"));
}

/* --- operations --- */

static ncclResult_t run_launch(struct job *j)
{
    return fake_nccl_move_launch(j->move);
}

/* The first operation of a pair makes its connections, for which the other side has to come too. */
static ncclResult_t run_warm(struct job *j)
{
    struct fake_meeting theirs, mine = {.mark = FAKE_WARM};
    bool warm = fake_nccl_exchange(j->comm, &mine, &theirs);
    ncclResult_t r = fake_nccl_move_launch(j->move);
    return warm ? r : ncclInProgress;
}

static ncclResult_t move(const char *call, ncclDataType_t type, int peer,
                         const struct fake_move *wanted)
{
    struct ncclComm *comm = wanted->comm;
    ncclResult_t r = enter_with(call, comm);
    if (r == ncclSuccess) r = check_ready(call, comm);
    if (r == ncclSuccess && (peer != 1 - comm->rank || (type != ncclInt8 && type != ncclUint8))) {
        fake_nccl_say("%s: a peer other than the other one, or a type other than bytes", call);
        r = ncclInvalidArgument;
    }
    leave(r);
    if (r == ncclSuccess) r = fake_nccl_move_check(wanted);
    if (r != ncclSuccess) return r;
    pthread_mutex_lock(&fake_nccl.lock);
    struct fake_move *m = fake_nccl_move_new(wanted);
    struct job j = {.comm = comm, .name = "launch", .move = m};
    j.run = comm->warm ? run_launch : run_warm;
    comm->warm = true;
    return leave(start(&j));
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    return move("ncclSend", type, peer,
                &(struct fake_move){.comm = comm,
                                    .mark = FAKE_SEND,
                                    .memory = (char *)from,
                                    .bytes = count,
                                    .stream = stream});
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return move(
        "ncclRecv", type, peer,
        &(struct fake_move){
            .comm = comm, .mark = FAKE_RECEIVE, .memory = to, .bytes = count, .stream = stream});
}

uint32_t fake_nccl_moving(void)
{
    pthread_mutex_lock(&fake_nccl.lock);
    uint32_t count = fake_nccl.moving_count;
    pthread_mutex_unlock(&fake_nccl.lock);
    return count;
}

uint32_t fake_nccl_ids(void)
{
    pthread_mutex_lock(&fake_nccl.lock);
    uint32_t count = fake_nccl.ids_count;
    pthread_mutex_unlock(&fake_nccl.lock);
    return count;
}

uint32_t fake_nccl_turns(void)
{
    uint32_t count = 0;
    pthread_mutex_lock(&fake_nccl.lock);
    for (int i = 0; i < FAKE_NCCL_DEVICES_MAX; i++)
        count += fake_nccl.turn[i] != NULL;
    pthread_mutex_unlock(&fake_nccl.lock);
    return count;
}

/* --- the end --- */

uint32_t fake_nccl_reset(void)
{
    uint32_t left = 0;
    pthread_mutex_lock(&fake_nccl.lock);
    for (struct ncclComm *c = fake_nccl.comms; c; c = c->next) {
        for (struct fake_registration *g = c->registrations; g; g = g->next)
            left++;
        left += c->live;
        fake_nccl_stop(c);
    }
    while (fake_nccl.jobs_count > 0 || fake_nccl.moving_count > 0)
        pthread_cond_wait(&fake_nccl.changed, &fake_nccl.lock);
    for (struct ncclComm *c = fake_nccl.comms, *next; c; c = next) {
        next = c->next;
        if (c->live) fake_nccl_drop(c);
    }
    while (fake_nccl.listeners) {
        struct fake_listener *l = fake_nccl.listeners;
        fake_nccl.listeners = l->next;
        close(l->fd);
        free(l);
        left++;
    }
    fake_nccl.ids_count = 0;
    fake_nccl.knobs = (struct fake_nccl_knobs){0};
    fake_nccl.knobs_read = false;
    fake_nccl.fail_seen = NULL;
    pthread_mutex_unlock(&fake_nccl.lock);
    return left;
}

/* Before the streams' threads are waited for: at a process's end a GPU's work ends too. A forked child
 * has no threads. */
__attribute__((destructor)) static void stop_at_end(void)
{
    if (fake_nccl.threads_of == getpid()) fake_nccl_reset();
}
