/* emulator: grids, the threads of a block as fibers, and where they wait for one another.
 *
 * A fiber runs until it waits; which one goes on is drawn from the seed, and so is how: any warp, or
 * one warp as far ahead of the others as it gets, or warps in turns. Of two accesses with no barrier
 * between them, either comes first under some seed. A thread that never waits needs no fiber of
 * its own: it runs on that of the thread before it. */
#include "tests/fake/cuda/machine.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* The sanitizer makes frames several times larger. */
#if defined(__SANITIZE_ADDRESS__)
enum { FIBER_STACK_BYTES = 256 << 10 };
#else
enum { FIBER_STACK_BYTES = 64 << 10 };
#endif

__thread struct emulator_place emulator_place __attribute__((tls_model("initial-exec")));
__thread struct machine *machine __attribute__((tls_model("initial-exec")));

/* --- machines: a pool of them, one for each thread that runs a grid --- */

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static struct machine *pool;

static void machine_free(struct machine *m)
{
    for (uint32_t i = 0; i < m->fibers_count; i++)
        fiber_free(m->fiber[i]);
    for (uint32_t i = 0; i < THREADS_MAX; i++)
        free(m->thread[i].copies);
    shared_close(m);
    if (races_free) races_free(m->races);
    if (m->fault_stack) munmap(m->fault_stack, FIBER_FAULT_STACK_BYTES);
    free(m);
}

static struct machine *machine_new(void)
{
    struct machine *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->fault_stack = mmap(NULL, FIBER_FAULT_STACK_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->fault_stack == MAP_FAILED) m->fault_stack = NULL;
    if (m->fault_stack && shared_open(m)) return m;
    machine_free(m);
    return NULL;
}

static struct machine *machine_take(void)
{
    pthread_mutex_lock(&pool_lock);
    struct machine *m = pool;
    if (m) pool = m->next;
    pthread_mutex_unlock(&pool_lock);
    return m ? m : machine_new();
}

static void machine_give(struct machine *m)
{
    if (m->faulted) {
        machine_free(m);
        return;
    }
    pthread_mutex_lock(&pool_lock);
    m->next = pool;
    pool = m;
    pthread_mutex_unlock(&pool_lock);
}

/* A plugin may be unloaded. */
static __attribute__((destructor)) void pool_empty(void)
{
    while (pool) {
        struct machine *m = pool;
        pool = m->next;
        machine_free(m);
    }
}

/* --- faults --- */

static __attribute__((noreturn)) void leave(struct machine *m)
{
    fiber_switch(m->running, &m->main);
    abort(); /* nobody comes back to a fault */
}

static void report(struct machine *m, const char *format, va_list args)
{
    const struct emulator_launch *l = m->launch;
    char what[400];
    vsnprintf(what, sizeof what, format, args);
    snprintf(m->fault, sizeof m->fault,
             "%s: block (%u, %u, %u) of (%u, %u, %u), thread %u of %u, seed %" PRIu64 ": %s",
             l->name, m->block[0], m->block[1], m->block[2], l->grid[0], l->grid[1], l->grid[2],
             m->current, m->threads_count, l->seed, what);
    m->faulted = true;
}

void machine_fault(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    report(machine, format, args);
    va_end(args);
    leave(machine);
}

__attribute__((format(printf, 1, 2))) static void report_now(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    report(machine, format, args);
    va_end(args);
}

static void land(void)
{
    leave(machine);
}

/* In the signal handler; the fault is the kernel's, so no lock is held that this needs. */
static fiber_landing_fn *on_fault(const void *at, bool write)
{
    struct machine *m = machine;
    char where[200];
    if (m->faulted || m->running == &m->main) return NULL;
    if (fiber_overflow(m->running, at))
        snprintf(where, sizeof where, "the end of its stack (%d bytes)", FIBER_STACK_BYTES);
    else if (!shared_say(m, at, where, sizeof where) && !fake_say_address(at, where, sizeof where))
        snprintf(where, sizeof where, "%p, which is nobody's memory or not aligned", at);
    report_now("%s %s", write ? "writes" : "reads", where);
    return land;
}

static const char *const wait_names[] = {
    [WAIT_NONE] = "nothing",           [WAIT_BLOCK] = "block_sync",
    [WAIT_WARP_SYNC] = "warp_sync",    [WAIT_SHUFFLE] = "shuffle",
    [WAIT_BALLOT] = "warp_ballot",     [WAIT_MMA] = "mma_bf16",
    [WAIT_MATRICES] = "load_matrices",
};

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Nobody can go on: some wait for others that wait elsewhere, have returned or never were. */
static __attribute__((noreturn)) void stuck(struct machine *m)
{
    for (uint32_t i = 0; i < m->warps_count; i++) {
        const struct warp *w = &m->warp[i];
        if (!w->at_warp) continue;
        uint32_t missing = ~w->at_warp;
        uint32_t lane = (uint32_t)__builtin_ctz(missing), bit = 1u << lane;
        m->current = i * LANES + lane;
        machine_fault("%d lanes of warp %u wait in %s (%s:%d), this one %s",
                      __builtin_popcount(w->at_warp), i, wait_names[w->wait],
                      base_name(w->line.file), w->line.line,
                      !(w->exists & bit)  ? "does not exist"
                      : w->returned & bit ? "has returned"
                                          : "waits in block_sync");
    }
    for (uint32_t i = 0; i < m->warps_count; i++) {
        if (!m->warp[i].returned) continue;
        m->current = i * LANES + (uint32_t)__builtin_ctz(m->warp[i].returned);
        break;
    }
    machine_fault("%u of %u threads wait in block_sync (%s:%d), this one has returned",
                  m->at_block_count, m->threads_count, base_name(m->block_line.file),
                  m->block_line.line);
}

#ifdef TANDEM_ALIGNMENT_FAULTS
/* What -fsanitize=alignment has kernels call for an address that the device would refuse. */
struct misaligned {
    const char *file;
    uint32_t line, column;
    const void *type;
    unsigned char log_align, kind;
};
void __ubsan_handle_type_mismatch_v1_abort(const struct misaligned *what, uintptr_t at);
void __ubsan_handle_type_mismatch_v1_abort(const struct misaligned *what, uintptr_t at)
{
    if (!machine) abort(); /* not in a kernel */
    machine_fault("%s:%u: %p is not aligned to %u", base_name(what->file), what->line, (void *)at,
                  1u << what->log_align);
}
#endif

/* --- whose turn it is --- */

static uint64_t draw(struct machine *m)
{
    uint64_t x = m->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return m->random = x;
}

static uint64_t mixed(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

/* The first set bit at or above `from`, going round. */
static uint32_t bit_from(uint32_t mask, uint32_t from)
{
    from %= 32;
    uint32_t turned = mask >> from | mask << ((32 - from) % 32);
    return ((uint32_t)__builtin_ctz(turned) + from) % 32;
}

static void set_ready(struct machine *m, uint32_t warp, uint32_t lanes)
{
    m->warp[warp].ready |= lanes;
    m->warps_ready |= 1u << m->turn_of_warp[warp];
}

enum { NOBODY = -1 };

/* Grids run one after the other here; on the device the last one's end would not wait for others. */
void emulator_grid_wait(void)
{
    machine->thread[machine->current].waited = true;
}

/* Takes the thread that goes on out of the ready ones. */
static int pick(struct machine *m)
{
    if (m->warps_ready == 0) return NOBODY;
    uint64_t r = draw(m);
    uint32_t from = m->order == ORDER_ANY     ? (uint32_t)(r >> 8)
                    : m->order == ORDER_AHEAD ? 0
                                              : m->turn_last + 1;
    uint32_t turn = bit_from(m->warps_ready, from);
    uint32_t number = m->warp_at_turn[turn];
    struct warp *w = &m->warp[number];
    uint32_t lane = bit_from(w->ready, (uint32_t)(r >> 32));
    m->turn_last = turn;
    w->ready &= ~(1u << lane);
    if (w->ready == 0) m->warps_ready &= ~(1u << turn);
    return (int)(number * LANES + lane);
}

static __attribute__((noinline)) void enter(struct machine *m, uint32_t thread)
{
    m->current = thread;
    emulator_place.thread = (struct uint3){thread, 0, 0};
}

static void fiber_body(void *arg);

/* A block has no more threads than there is room for. */
static struct fiber *another_fiber(struct machine *m)
{
    struct fiber *f = fiber_new(FIBER_STACK_BYTES, fiber_body, m);
    if (!f) abort();
    return m->fiber[m->fibers_count++] = f;
}

/* From the running fiber to that of `thread`, a new one if it has not begun. */
static void go_to(struct machine *m, uint32_t thread)
{
    struct thread *t = &m->thread[thread];
    struct fiber *from = m->running;
    if (!t->fiber) t->fiber = m->idle_count > 0 ? m->idle[--m->idle_count] : another_fiber(m);
    enter(m, thread);
    m->running = t->fiber;
    fiber_switch(from, t->fiber);
}

/* The running thread waits, or is ready like others. */
static void give_way(struct machine *m)
{
    uint32_t self = m->current;
    int next = pick(m);
    if (next == NOBODY) stuck(m);
    if ((uint32_t)next != self) go_to(m, (uint32_t)next);
}

/* A thread has returned: who runs then. */
static int returned(struct machine *m)
{
    struct warp *w = &m->warp[m->current / LANES];
    w->returned |= 1u << m->current % LANES;
    m->thread[m->current].fiber = NULL;
    m->returned_count++;
    return pick(m);
}

static void fiber_body(void *arg)
{
    struct machine *m = arg;
    for (;;) {
        m->thread[m->current].waited = false;
        m->launch->thread(m->launch->arg);
        if (!m->thread[m->current].waited) machine_fault("returns without a grid_wait");
        if (m->thread[m->current].copies_count > 0)
            machine_fault("returns with %u copies under way", m->thread[m->current].copies_count);
        struct fiber *self = m->running;
        int next = returned(m);
        if (next == NOBODY && m->returned_count < m->threads_count) stuck(m);
        if (next == NOBODY) shared_check(m);
        if (next != NOBODY && !m->thread[next].fiber) { /* it begins where this one ended */
            m->thread[next].fiber = self;
            enter(m, (uint32_t)next);
            continue;
        }
        m->idle[m->idle_count++] = self;
        if (next != NOBODY) {
            go_to(m, (uint32_t)next);
        } else {
            m->running = &m->main;
            fiber_switch(self, &m->main);
        }
    }
}

/* --- blocks and grids --- */

static void block_begin(struct machine *m)
{
    const uint32_t threads = m->threads_count;
    m->warps_count = (threads + LANES - 1) / LANES;
    m->returned_count = m->at_block_count = m->barriers_count = m->warps_ready = 0;
    m->turn_last = 0;
    m->order = (enum order)(draw(m) % ORDERS_COUNT);
    for (uint32_t i = 0; i < m->warps_count; i++) { /* a warp's turn: a shuffled place */
        uint32_t j = (uint32_t)(draw(m) % (i + 1));
        m->warp_at_turn[i] = m->warp_at_turn[j];
        m->warp_at_turn[j] = (uint8_t)i;
    }
    for (uint32_t i = 0; i < m->warps_count; i++)
        m->turn_of_warp[m->warp_at_turn[i]] = (uint8_t)i;
    for (uint32_t i = 0; i < m->warps_count; i++) {
        struct warp *w = &m->warp[i];
        uint32_t lanes = threads - i * LANES;
        w->exists = lanes < LANES ? (1u << lanes) - 1 : UINT32_MAX;
        w->ready = w->returned = w->at_block = w->at_warp = 0;
        set_ready(m, i, w->exists);
    }
    for (uint32_t i = 0; i < threads; i++)
        m->thread[i].copies_count = m->thread[i].groups_closed = 0;
    shared_reset(m);
}

static void block_run(struct machine *m)
{
    block_begin(m);
    emulator_place.block = (struct uint3){m->block[0], m->block[1], m->block[2]};
    go_to(m, (uint32_t)pick(m));
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* All blocks, from a drawn one in steps that reach each. */
static void grid_run(struct machine *m)
{
    const uint32_t *grid = m->launch->grid;
    const uint64_t count = (uint64_t)grid[0] * grid[1] * grid[2];
    uint64_t at = draw(m) % count, step = draw(m) % count | 1;
    while (common_divisor(step, count) != 1)
        step++;
    const uint64_t seed = draw(m);
    for (uint64_t i = 0; i < count && !m->faulted; i++) {
        m->block[0] = (uint32_t)(at % grid[0]);
        m->block[1] = (uint32_t)(at / grid[0] % grid[1]);
        m->block[2] = (uint32_t)(at / grid[0] / grid[1]);
        m->number = (uint32_t)at;
        m->random = mixed(seed + at) | 1;
        block_run(m);
        at = (at + step) % count;
    }
}

static uint64_t launch_seed(const struct emulator_launch *l)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (const char *c = l->name; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 0x100000001b3;
    return mixed(hash + mixed(l->seed + 0x9e3779b97f4a7c15)) | 1;
}

/* What the launch asks for is more than a device has: said in `text`. */
static bool beyond(const struct emulator_launch *l, char *text, size_t text_bytes)
{
    const uint32_t *g = l->grid, *b = l->block;
    const char *what = NULL;
    if (b[0] == 0 || b[0] > THREADS_MAX || b[1] != 1 || b[2] != 1)
        what = "a block has 1 to 1024 threads in one dimension";
    else if (g[0] == 0 || g[1] == 0 || g[2] == 0)
        what = "a grid is not empty";
    else if (g[0] > INT32_MAX || g[1] > 65535 || g[2] > 65535)
        what = "a grid is at most 2147483647 x 65535 x 65535 blocks";
    else if (l->shared_bytes > SHARED_MAX)
        what = "a block has at most 163 KiB of shared memory";
    if (!what) return false;
    snprintf(text, text_bytes,
             "%s: launched with grid (%u, %u, %u), block (%u, %u, %u), %u bytes shared: %s",
             l->name, g[0], g[1], g[2], b[0], b[1], b[2], l->shared_bytes, what);
    return true;
}

void emulator_run(const struct emulator_launch *launch)
{
    static uint64_t serials;
    char text[sizeof((struct machine *)NULL)->fault];
    if (beyond(launch, text, sizeof text)) {
        fake_fault(text);
        return;
    }
    struct machine *m = machine_take();
    if (!m) {
        fake_fault("no memory for the emulator");
        return;
    }
    stack_t signals;
    fiber_adopt(&m->main);
    m->launch = launch;
    m->serial = __atomic_add_fetch(&serials, 1, __ATOMIC_RELAXED);
    m->running = &m->main;
    m->threads_count = launch->block[0];
    m->random = launch_seed(launch);
    emulator_place.block_size = (struct uint3){launch->block[0], 1, 1};
    emulator_place.grid_size = (struct uint3){launch->grid[0], launch->grid[1], launch->grid[2]};
    machine = m;
    fiber_faults_begin(on_fault, m->fault_stack, &signals);
    grid_run(m);
    fiber_faults_end(&signals);
    machine = NULL;
    bool faulted = m->faulted;
    memcpy(text, m->fault, sizeof text);
    machine_give(m);
    if (faulted) fake_fault(text);
}

/* --- waits --- */

static __attribute__((noreturn)) void elsewhere(const char *what, struct emulator_line at,
                                                const char *other, struct emulator_line there)
{
    machine_fault("waits in %s (%s:%d), others in %s (%s:%d)", what, base_name(at.file), at.line,
                  other, base_name(there.file), there.line);
}

static bool same_line(struct emulator_line a, struct emulator_line b)
{
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

void emulator_block_sync(struct emulator_line at)
{
    struct machine *m = machine;
    struct warp *w = &m->warp[m->current / LANES];
    if (m->at_block_count == 0)
        m->block_line = at;
    else if (!same_line(at, m->block_line))
        elsewhere("block_sync", at, "block_sync", m->block_line);
    if (m->at_block_count == 0 && m->barriers_count++ == BARRIERS_MAX)
        machine_fault("waits for the %dth time, in block_sync (%s:%d): the kernel does not end",
                      BARRIERS_MAX + 1, base_name(at.file), at.line);
    w->at_block |= 1u << m->current % LANES;
    if (++m->at_block_count == m->threads_count) {
        shared_check(m);
        m->at_block_count = 0;
        for (uint32_t i = 0; i < m->warps_count; i++) {
            m->warp[i].at_block = 0;
            set_ready(m, i, m->warp[i].exists);
        }
    }
    give_way(m);
}

/* Waits for the whole warp; its last lane does what `together` does for all. */
static void warp_wait(enum wait wait, void *mine, void (*together)(void *const lane[LANES]),
                      struct emulator_line at)
{
    struct machine *m = machine;
    const uint32_t warp = m->current / LANES, lane = m->current % LANES;
    struct warp *w = &m->warp[warp];
    if (w->at_warp == 0) {
        w->wait = wait;
        w->line = at;
    } else if (w->wait != wait || !same_line(at, w->line)) {
        elsewhere(wait_names[wait], at, wait_names[w->wait], w->line);
    }
    w->lane[lane] = mine;
    w->at_warp |= 1u << lane;
    if (w->at_warp == UINT32_MAX) {
        w->at_warp = 0;
        if (together) together(w->lane);
        set_ready(m, warp, UINT32_MAX);
    }
    give_way(m);
}

void emulator_warp_sync(struct emulator_line at)
{
    warp_wait(WAIT_WARP_SYNC, NULL, NULL, at);
}
uint32_t emulator_shuffle(uint32_t value, uint32_t lane, struct emulator_line at)
{
    struct shuffle_lane mine = {.value = value, .from = lane};
    warp_wait(WAIT_SHUFFLE, &mine, twin_shuffle, at);
    return mine.result;
}
uint32_t emulator_ballot(bool condition, struct emulator_line at)
{
    struct ballot_lane mine = {.condition = condition};
    warp_wait(WAIT_BALLOT, &mine, twin_ballot, at);
    return mine.result;
}
void emulator_mma(float *d, const uint32_t *a, uint32_t b0, uint32_t b1, struct emulator_line at)
{
    struct mma_lane mine = {.d = d, .a = a, .b = {b0, b1}};
    warp_wait(WAIT_MMA, &mine, twin_mma, at);
}
void emulator_load_matrices(uint32_t *r, const void *row, bool transposed, struct emulator_line at)
{
    struct matrices_lane mine = {.r = r, .row = row, .transposed = transposed};
    if ((uintptr_t)row % 16 != 0) machine_fault("load_matrices: %p is not aligned to 16", row);
    if (!shared_piece(machine, row, 16)) {
        char where[160] = "no shared memory";
        shared_say(machine, row, where, sizeof where);
        machine_fault("load_matrices from %s", where);
    }
    warp_wait(WAIT_MATRICES, &mine, twin_matrices, at);
}

/* --- launches --- */

/* Which kernels asked for how much shared memory. */
static struct {
    const void *kernel;
    uint32_t bytes;
} asked[256];
static pthread_mutex_t asked_lock = PTHREAD_MUTEX_INITIALIZER;

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute what, int value)
{
    cudaError_t e = cudaErrorInvalidDeviceFunction;
    uint32_t of_processor = fake_knobs()->processor_shared_bytes, most = SHARED_MAX;
    if (of_processor > 0 && of_processor - SHARED_RESERVED < most)
        most = of_processor - SHARED_RESERVED;
    if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (uint32_t)value > most) return cudaErrorInvalidValue;
    pthread_mutex_lock(&asked_lock);
    for (size_t i = 0; kernel && i < sizeof asked / sizeof *asked; i++) {
        if (asked[i].kernel && asked[i].kernel != kernel) continue;
        asked[i].kernel = kernel;
        asked[i].bytes = (uint32_t)value;
        e = cudaSuccess;
        break;
    }
    pthread_mutex_unlock(&asked_lock);
    return e;
}

static uint32_t shared_allowed(const void *kernel)
{
    uint32_t bytes = SHARED_UNASKED_MAX;
    pthread_mutex_lock(&asked_lock);
    for (size_t i = 0; i < sizeof asked / sizeof *asked && asked[i].kernel; i++)
        if (asked[i].kernel == kernel && asked[i].bytes > bytes) bytes = asked[i].bytes;
    pthread_mutex_unlock(&asked_lock);
    return bytes;
}

void *emulator_closure(size_t bytes)
{
    void *closure = aligned_alloc(16, (bytes + 15) / 16 * 16);
    if (!closure) abort();
    return closure;
}

void emulator_enqueue(const struct emulator_launch *launch, const void *kernel, cudaStream_t stream,
                      fake_work_fn *run, void *arg)
{
    char text[400] = "";
    if (!beyond(launch, text, sizeof text) && launch->shared_bytes > SHARED_UNASKED_MAX &&
        launch->shared_bytes > shared_allowed(kernel))
        snprintf(text, sizeof text,
                 "%s: launched with %u bytes shared: more than 48 KiB need cudaFuncSetAttribute",
                 launch->name, launch->shared_bytes);
    if (text[0]) {
        fake_fault(text);
        free(arg);
        return;
    }
    fake_enqueue(stream, launch->name, run, free, arg);
}
