/* Device memory and pinned host memory of the stand-in: host memory of its own mapping, between
 * pages that nothing may touch. A piece ends at the page behind it as far as the alignment allows;
 * what lies between its size and there keeps the poison, which is looked at when it is freed. The
 * addresses of freed pieces are not used again before fake_reset, so that a stale pointer faults. */
#include "tests/fake/cuda/runtime.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum {
    POISON_FILE_BYTES =
        4 << 20, /* larger pieces map poisoned pages, which cost nothing until written */
    SIGNAL_STACK_BYTES = 64 << 10,
    /* Before and behind a piece: wide, since an emulated grid's blocks come in any order, and the
     * first to go too far may go much too far. */
    GUARD_BYTES = 1 << 20,
};

/* Sorted by address; live and freed pieces. */
static struct {
    struct fake_memory *at;
    uint32_t count, room;
    uint64_t ids;
    int poison_file; /* 0: not made yet */
} pieces;

static size_t round_up(size_t size, size_t to)
{
    return (size + to - 1) / to * to;
}

/* The first piece that begins behind p. */
static uint32_t piece_behind(uintptr_t p)
{
    uint32_t low = 0, high = pieces.count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (pieces.at[middle].at > p)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static struct fake_memory *piece_of(const void *p)
{
    uint32_t i = piece_behind((uintptr_t)p);
    if (i == 0) return NULL;
    struct fake_memory *m = &pieces.at[i - 1];
    size_t size = m->size ? m->size : 1;
    return (uintptr_t)p - m->at < size ? m : NULL;
}

const struct fake_memory *fake_memory_find(const void *p)
{
    return piece_of(p);
}

static void add_piece(const struct fake_memory *m)
{
    if (pieces.count == pieces.room) {
        pieces.room = pieces.room ? 2 * pieces.room : 64;
        pieces.at = realloc(pieces.at, pieces.room * sizeof *pieces.at);
        if (!pieces.at) abort();
    }
    uint32_t i = piece_behind(m->at);
    memmove(&pieces.at[i + 1], &pieces.at[i], (pieces.count - i) * sizeof *pieces.at);
    pieces.at[i] = *m;
    pieces.count++;
}

static void remove_piece(struct fake_memory *m)
{
    uint32_t i = (uint32_t)(m - pieces.at);
    pieces.count--;
    memmove(m, m + 1, (pieces.count - i) * sizeof *m);
}

/* --- faults that the guard pages show --- */

static struct sigaction older_segv, older_bus;

/* The piece whose mapping, guard pages included, holds the address. */
static const struct fake_memory *piece_near(uintptr_t p)
{
    for (uint32_t i = 0; i < pieces.count; i++) {
        const struct fake_memory *m = &pieces.at[i];
        if (m->map && p - (uintptr_t)m->map < m->map_size) return m;
    }
    return NULL;
}

/* Lock held. */
static bool say_address(uintptr_t p, char *text, size_t size)
{
    const struct fake_memory *m = piece_near(p);
    if (!m) return false;
    const char *kind = m->kind == FAKE_DEVICE ? "device" : "pinned";
    if (!m->live)
        snprintf(text, size, "%#zx in %s memory that was freed (%zu bytes at %#zx)", (size_t)p,
                 kind, m->size, (size_t)m->at);
    else if (p < m->at)
        snprintf(text, size, "%#zx, %zu bytes before %s memory (%zu bytes at %#zx)", (size_t)p,
                 (size_t)(m->at - p), kind, m->size, (size_t)m->at);
    else
        snprintf(text, size, "%#zx, %zu bytes behind the end of %s memory (%zu bytes at %#zx)",
                 (size_t)p, (size_t)(p - m->at - m->size), kind, m->size, (size_t)m->at);
    return true;
}

bool fake_say_address(const void *at, char *text, size_t size)
{
    pthread_mutex_lock(&fake.lock);
    bool known = say_address((uintptr_t)at, text, size);
    pthread_mutex_unlock(&fake.lock);
    return known;
}

bool fake_is_device(const void *at)
{
    uintptr_t page = (uintptr_t)at / 4096 * 4096;
    pthread_mutex_lock(&fake.lock);
    uint32_t i = piece_behind(page + 4095);
    const struct fake_memory *m = i > 0 ? &pieces.at[i - 1] : NULL;
    bool is = m && m->live && m->kind == FAKE_DEVICE && m->at + m->size > page;
    pthread_mutex_unlock(&fake.lock);
    return is;
}

static void tell_fault(uintptr_t p)
{
    const char *work = fake_thread()->work;
    char where[200];
    if (pthread_mutex_trylock(&fake.lock) != 0) return; /* this thread may have it */
    if (say_address(p, where, sizeof where))
        fake_say("fault: %s touched %s", work ? work : "the host", where);
    pthread_mutex_unlock(&fake.lock);
}

/* Says what was touched; then it is the turn of who was here before. The emulator's handler moves the
 * thread elsewhere; it may have this one as its own older one, so it is called and not put back. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    const struct sigaction *older = number == SIGSEGV ? &older_segv : &older_bus;
    ucontext_t *now = context, then = *now;
    tell_fault((uintptr_t)info->si_addr);
    if (!(older->sa_flags & SA_SIGINFO)) {
        sigaction(number, older, NULL);
        return;
    }
    older->sa_sigaction(number, info, context);
    if (memcmp(&then.uc_mcontext, &now->uc_mcontext, sizeof then.uc_mcontext) == 0)
        signal(number, SIG_DFL); /* the instruction faults again, for the last time */
}

/* Once in each process: a test's framework may put its own handler over it. */
static void watch_faults(void)
{
    static pid_t watched;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    if (watched == getpid()) return;
    watched = getpid();
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &older_segv);
    sigaction(SIGBUS, &action, &older_bus);
}

static void unwatch_signal(int number, const struct sigaction *older)
{
    struct sigaction now;
    sigaction(number, NULL, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault) sigaction(number, older, NULL);
}

/* A plugin may be unloaded. */
__attribute__((destructor)) static void unwatch_faults(void)
{
    unwatch_signal(SIGSEGV, &older_segv);
    unwatch_signal(SIGBUS, &older_bus);
}

void *fake_memory_watch_thread(void)
{
    stack_t now;
    if (sigaltstack(NULL, &now) != 0 || !(now.ss_flags & SS_DISABLE))
        return NULL; /* a sanitizer has given it one */
    void *stack = fake_zeroed(SIGNAL_STACK_BYTES);
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = SIGNAL_STACK_BYTES}, NULL);
    return stack;
}

void fake_memory_unwatch_thread(void *stack)
{
    if (stack) sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL);
    free(stack);
}

/* --- mappings --- */

static int poison_file(void)
{
    if (pieces.poison_file > 0) return pieces.poison_file;
    int fd = memfd_create("fake-cuda-poison", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, POISON_FILE_BYTES) != 0) abort();
    void *p = mmap(NULL, POISON_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) abort();
    memset(p, FAKE_POISON, POISON_FILE_BYTES);
    munmap(p, POISON_FILE_BYTES);
    pieces.poison_file = fd;
    return fd;
}

/* Makes [from, from + bytes) usable and full of poison. */
static bool map_poison(char *from, size_t bytes)
{
    if (bytes < POISON_FILE_BYTES) {
        if (mprotect(from, bytes, PROT_READ | PROT_WRITE) != 0) return false;
        memset(from, FAKE_POISON, bytes);
        return true;
    }
    for (size_t done = 0; done < bytes; done += POISON_FILE_BYTES) {
        size_t part = bytes - done < POISON_FILE_BYTES ? bytes - done : POISON_FILE_BYTES;
        if (mmap(from + done, part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
                 poison_file(), 0) == MAP_FAILED)
            return false;
    }
    return true;
}

static cudaError_t allocate(void **memory, size_t size, enum fake_memory_kind kind)
{
    size_t used = round_up(size, FAKE_ALIGN), inner = round_up(used, FAKE_PAGE);
    struct fake_memory m = {.size = size, .kind = kind, .live = true, .id = ++pieces.ids};
    m.device = fake_thread()->device;
    m.map_size = inner + 2 * GUARD_BYTES;
    m.map = mmap(NULL, m.map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m.map == MAP_FAILED) return cudaErrorMemoryAllocation;
    if (!map_poison(m.map + GUARD_BYTES, inner)) {
        munmap(m.map, m.map_size);
        return cudaErrorMemoryAllocation;
    }
    m.at = (uintptr_t)m.map + GUARD_BYTES + inner - used;
    watch_faults();
    add_piece(&m);
    *memory = (void *)m.at;
    return cudaSuccess;
}

static bool is_poison(uintptr_t from, uintptr_t to)
{
    for (const unsigned char *p = (const unsigned char *)from; p < (const unsigned char *)to; p++)
        if (*p != FAKE_POISON) return false;
    return true;
}

/* The bytes around the piece that share its pages. */
static bool rim_is_whole(const struct fake_memory *m)
{
    uintptr_t first = (uintptr_t)m->map + GUARD_BYTES;
    return is_poison(first, m->at) &&
           is_poison(m->at + m->size, m->at + round_up(m->size, FAKE_ALIGN));
}

static cudaError_t release(struct fake_memory *m, const char *call)
{
    cudaError_t e = cudaSuccess;
    if (!rim_is_whole(m))
        e = fake_fault_locked("%s: something wrote beyond the %zu bytes at %#zx", call, m->size,
                              (size_t)m->at);
    if (fake_memory_lent(m))
        e = fake_fault_locked("%s: another process still has %p open", call, (void *)m->at);
    if (m->kind == FAKE_DEVICE && !m->opened)
        fake.used_bytes[m->device] -= round_up(m->size, FAKE_ALIGN);
    if (m->shared_file > 0) close(m->shared_file);
    m->shared_file = 0;
    m->live = false;
    mmap(m->map, m->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
    return e;
}

struct fake_memory *fake_memory_at(const void *p)
{
    struct fake_memory *m = piece_of(p);
    return m && m->live && m->at == (uintptr_t)p ? m : NULL;
}

cudaError_t fake_memory_map(struct fake_memory *m, size_t inner, int file)
{
    m->map_size = inner + 2 * GUARD_BYTES;
    m->map = mmap(NULL, m->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->map == MAP_FAILED) return cudaErrorMemoryAllocation;
    if (mmap(m->map + GUARD_BYTES, inner, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file,
             0) == MAP_FAILED) {
        munmap(m->map, m->map_size);
        return cudaErrorMemoryAllocation;
    }
    m->at = (uintptr_t)m->map + GUARD_BYTES + inner - round_up(m->size, FAKE_ALIGN);
    m->live = true;
    m->id = ++pieces.ids;
    m->shared_file = file;
    watch_faults();
    add_piece(m);
    return cudaSuccess;
}

cudaError_t fake_memory_unmap(struct fake_memory *m, const char *call)
{
    return release(m, call);
}

uint32_t fake_memory_reset(void)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < pieces.count; i++) {
        struct fake_memory *m = &pieces.at[i];
        left += m->live;
        if (m->live && m->map && !rim_is_whole(m))
            fake_say("fault: something wrote beyond the %zu bytes at %#zx", m->size, (size_t)m->at);
        if (m->map) munmap(m->map, m->map_size);
        if (m->shared_file > 0) close(m->shared_file);
    }
    free(pieces.at);
    if (pieces.poison_file > 0) close(pieces.poison_file);
    memset(&pieces, 0, sizeof pieces);
    memset(fake.used_bytes, 0, sizeof fake.used_bytes);
    return left;
}

/* --- calls --- */

static cudaError_t free_piece(void *memory, enum fake_memory_kind kind, const char *call)
{
    if (!memory) return cudaSuccess;
    struct fake_memory *m = piece_of(memory);
    if (!m || m->kind != kind || m->at != (uintptr_t)memory || m->opened)
        return fake_fault_locked("%s: %p is nothing that it can free", call, memory);
    if (!m->live) return fake_fault_locked("%s: %p was freed before", call, memory);
    return release(m, call);
}

cudaError_t cudaMalloc(void **memory, size_t size)
{
    cudaError_t e = fake_enter("cudaMalloc", FAKE_UNSAFE);
    uint64_t *used = &fake.used_bytes[fake_thread()->device], total = fake_device_bytes();
    size_t bytes = round_up(size, FAKE_ALIGN);
    if (e != cudaSuccess) return fake_leave(e);
    *memory = NULL;
    if (size == 0) return fake_leave(cudaSuccess);
    if (bytes < size || *used > total || bytes > total - *used)
        return fake_leave(cudaErrorMemoryAllocation);
    e = allocate(memory, size, FAKE_DEVICE);
    if (e == cudaSuccess) *used += bytes;
    return fake_leave(e);
}

cudaError_t cudaFree(void *memory)
{
    cudaError_t e = fake_enter("cudaFree", FAKE_UNSAFE);
    if (e == cudaSuccess) fake_default_stream_wait();
    if (e == cudaSuccess && memory && fake_free_waits()) fake_device_wait(fake_thread()->device);
    if (e == cudaSuccess) e = free_piece(memory, FAKE_DEVICE, "cudaFree");
    return fake_leave(e);
}

static cudaError_t allocate_pinned(void **memory, size_t size, const char *call)
{
    cudaError_t e = fake_enter(call, FAKE_UNSAFE);
    if (e != cudaSuccess) return fake_leave(e);
    *memory = NULL;
    if (size > 0) e = allocate(memory, size, FAKE_PINNED);
    return fake_leave(e);
}

cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned flags)
{
    (void)flags;
    return allocate_pinned(memory, size, "cudaHostAlloc");
}

cudaError_t cudaMallocHost(void **memory, size_t size)
{
    return allocate_pinned(memory, size, "cudaMallocHost");
}

cudaError_t cudaFreeHost(void *memory)
{
    cudaError_t e = fake_enter("cudaFreeHost", FAKE_UNSAFE);
    if (e == cudaSuccess) fake_default_stream_wait();
    if (e == cudaSuccess) e = free_piece(memory, FAKE_PINNED, "cudaFreeHost");
    return fake_leave(e);
}

/* Whether a piece lies in the range, or reaches into it. */
static bool range_is_taken(uintptr_t from, size_t size)
{
    uint32_t i = piece_behind(from + size - 1);
    return i > 0 && pieces.at[i - 1].at + pieces.at[i - 1].size > from;
}

cudaError_t cudaHostRegister(void *memory, size_t size, unsigned flags)
{
    cudaError_t e = fake_enter("cudaHostRegister", FAKE_UNSAFE);
    (void)flags;
    if (e == cudaSuccess && (!memory || size == 0)) e = cudaErrorInvalidValue;
    if (e == cudaSuccess && range_is_taken((uintptr_t)memory, size))
        e = cudaErrorHostMemoryAlreadyRegistered;
    if (e == cudaSuccess)
        add_piece(&(struct fake_memory){.at = (uintptr_t)memory,
                                        .size = size,
                                        .kind = FAKE_REGISTERED,
                                        .device = fake_thread()->device,
                                        .live = true,
                                        .id = ++pieces.ids});
    return fake_leave(e);
}

cudaError_t cudaHostUnregister(void *memory)
{
    cudaError_t e = fake_enter("cudaHostUnregister", FAKE_UNSAFE);
    struct fake_memory *m = piece_of(memory);
    if (e == cudaSuccess && (!m || m->kind != FAKE_REGISTERED || m->at != (uintptr_t)memory))
        e = cudaErrorHostMemoryNotRegistered;
    if (e == cudaSuccess) remove_piece(m);
    return fake_leave(e);
}

cudaError_t cudaHostGetDevicePointer(void **device_memory, void *memory, unsigned flags)
{
    cudaError_t e = fake_enter("cudaHostGetDevicePointer", 0);
    const struct fake_memory *m = piece_of(memory);
    (void)flags;
    if (e == cudaSuccess && (!m || !m->live || m->kind == FAKE_DEVICE)) e = cudaErrorInvalidValue;
    if (e == cudaSuccess) *device_memory = memory;
    return fake_leave(e);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p)
{
    cudaError_t e = fake_enter("cudaPointerGetAttributes", 0);
    const struct fake_memory *m = piece_of(p);
    if (e != cudaSuccess) return fake_leave(e);
    *attributes = (struct cudaPointerAttributes){.device = -2, .hostPointer = (void *)p};
    if (m && m->live) {
        bool device = m->kind == FAKE_DEVICE;
        attributes->type = device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
        attributes->device = m->device;
        attributes->devicePointer = (void *)p;
        if (device) attributes->hostPointer = NULL;
    }
    return fake_leave(cudaSuccess);
}

/* --- for work --- */

cudaError_t fake_memory_check(const char *call, const void *p, size_t bytes, bool device)
{
    const struct fake_memory *m = piece_of(p);
    if (bytes == 0) return cudaSuccess;
    if (m && !m->live) return fake_fault_locked("%s: %p lies in memory that was freed", call, p);
    if (device != (m && m->kind == FAKE_DEVICE)) {
        fake_say("%s: %p is %s device memory", call, p, device ? "not" : "");
        return cudaErrorInvalidValue;
    }
    if (m && bytes > m->size - ((uintptr_t)p - m->at)) {
        fake_say("%s: %zu bytes from %p go beyond its %zu bytes at %#zx", call, bytes, p, m->size,
                 (size_t)m->at);
        return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

bool fake_memory_alive(const char *work, const void *p, size_t bytes)
{
    const struct fake_memory *m = piece_of(p);
    if (bytes == 0 || !m || m->live) return true;
    fake_fault_locked("%s: %p was freed before its stream came to it", work, p);
    return false;
}
