#include "fiber.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

/* --- the address sanitizer must know which stack is in use --- */

#ifdef __SANITIZE_ADDRESS__
void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *bytes);
void __asan_unpoison_memory_region(void const volatile *at, size_t bytes);

static __thread struct fiber *came_from;

static void leaving(struct fiber *from, struct fiber *to)
{
    came_from = from;
    __sanitizer_start_switch_fiber(&from->fake_stack, to->bottom, to->bottom_bytes);
}
/* On the new stack; a thread's own stack makes itself known when it is left first. */
static void arrived(struct fiber *at)
{
    __sanitizer_finish_switch_fiber(at->fake_stack, &came_from->bottom, &came_from->bottom_bytes);
}
/* A stack may be given up in the midst of calls. */
static void forget(struct fiber *f)
{
    __asan_unpoison_memory_region(f->stack, f->stack_bytes);
}
#else
static inline void leaving(struct fiber *from, struct fiber *to)
{
    (void)from;
    (void)to;
}
static inline void arrived(struct fiber *at)
{
    (void)at;
}
static void forget(struct fiber *f)
{
    (void)f;
}
#endif

/* --- the switch --- */

static __attribute__((noreturn, used)) void fiber_main(struct fiber *f)
{
    arrived(f);
    f->run(f->arg);
    abort(); /* a body returned */
}

#if defined(__x86_64__)
/* The six registers that a call keeps go onto the old stack and come from the new one. What
 * changes the rounding mode would have to be saved too; nothing here does. */
void fiber_swap(void **saved, void *next);
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden fiber_swap\n"
        ".globl fiber_swap\n"
        ".type fiber_swap, @function\n"
        "fiber_swap:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size fiber_swap, . - fiber_swap\n"
        ".hidden fiber_start\n"
        ".globl fiber_start\n"
        ".type fiber_start, @function\n"
        "fiber_start:\n" /* the first return of a new fiber */
        "    movq %r12, %rdi\n"
        "    xorl %ebp, %ebp\n"
        "    call fiber_main\n"
        "    ud2\n"
        ".size fiber_start, . - fiber_start\n");
void fiber_start(void);

/* `top` is a multiple of 16 and stays so at the call of fiber_main. */
static bool prepare(struct fiber *f, unsigned char *top)
{
    void **at = (void **)top;
    *--at = NULL;
    *--at = NULL;
    *--at = (void *)fiber_start;
    *--at = NULL; /* rbp */
    *--at = NULL; /* rbx */
    *--at = f;    /* r12 */
    at -= 3;      /* r13, r14, r15 */
    memset(at, 0, 3 * sizeof *at);
    f->saved = at;
    return true;
}
static void release(struct fiber *f)
{
    (void)f;
}
static inline void swap(struct fiber *from, struct fiber *to)
{
    fiber_swap(&from->saved, to->saved);
}
#else
/* Elsewhere a switch costs a system call for the signal mask. */
static void start(unsigned high, unsigned low)
{
    fiber_main((struct fiber *)(((uintptr_t)high << 16 << 16) | low));
}
static bool prepare(struct fiber *f, unsigned char *top)
{
    ucontext_t *context = calloc(1, sizeof *context);
    if (!context) return false;
    getcontext(context);
    context->uc_stack.ss_sp = f->stack;
    context->uc_stack.ss_size = (size_t)(top - (unsigned char *)f->stack);
    makecontext(context, (void (*)(void))start, 2, (unsigned)((uintptr_t)f >> 16 >> 16),
                (unsigned)(uintptr_t)f);
    f->saved = context;
    return true;
}
static void release(struct fiber *f)
{
    free(f->saved);
}
static void swap(struct fiber *from, struct fiber *to)
{
    ucontext_t own; /* of a thread's own stack: it lies there as long as it is needed */
    if (!from->stack) from->saved = &own;
    swapcontext(from->saved, to->saved);
}
#endif

void fiber_switch(struct fiber *from, struct fiber *to)
{
    leaving(from, to);
    swap(from, to);
    arrived(from);
}

/* --- stacks --- */

struct fiber *fiber_new(size_t stack_bytes, fiber_run_fn *run, void *arg)
{
    static unsigned colour;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *at = mmap(NULL, page + stack_bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return NULL;
    struct fiber *f = calloc(1, sizeof *f);
    if (!f || mprotect(at, page, PROT_NONE) != 0) goto fail;
    f->run = run;
    f->arg = arg;
    f->stack = at + page;
    f->stack_bytes = stack_bytes;
    f->bottom = f->stack;
    f->bottom_bytes = stack_bytes;
    /* The same frames of all fibers would fall on the same lines of the cache. */
    size_t skip = (__atomic_fetch_add(&colour, 1, __ATOMIC_RELAXED) % 13) * 320;
    if (prepare(f, at + page + stack_bytes - skip)) return f;
    forget(f);
fail:
    free(f);
    munmap(at, page + stack_bytes);
    return NULL;
}

void fiber_free(struct fiber *f)
{
    if (!f) return;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    forget(f);
    release(f);
    munmap((unsigned char *)f->stack - page, page + f->stack_bytes);
    free(f);
}

void fiber_adopt(struct fiber *f)
{
    *f = (struct fiber){0};
}

bool fiber_overflow(const struct fiber *f, const void *at)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const unsigned char *low = f->stack, *p = at;
    return low && p < low && p >= low - page;
}

/* --- faults --- */

static __thread fiber_fault_fn *fault_of_thread;
static __thread unsigned char *landing_stack; /* one byte behind it */
static struct sigaction before[2];

/* Has the thread go on in `landing` when the handler returns. */
static bool divert(ucontext_t *context, fiber_landing_fn *landing)
{
    uintptr_t top = (uintptr_t)landing_stack;
#if defined(__x86_64__)
    context->uc_mcontext.gregs[REG_RSP] = (greg_t)(top - 8); /* as if just called */
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)landing;
    return true;
#elif defined(__aarch64__)
    context->uc_mcontext.sp = top;
    context->uc_mcontext.pc = (uintptr_t)landing;
    return true;
#else
    (void)context;
    (void)landing;
    (void)top;
    return false;
#endif
}

static bool was_write(const ucontext_t *context)
{
#if defined(__x86_64__)
    return context->uc_mcontext.gregs[REG_ERR] & 2;
#else
    (void)context;
    return false;
#endif
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    fiber_landing_fn *landing =
        fault_of_thread ? fault_of_thread(info->si_addr, was_write(context)) : NULL;
    static __thread const void *passed_on;
    if (landing && divert(context, landing)) return;
    /* Not ours: the instruction faults again and meets who was here before. Had that one been here
     * before us and after us, it would send it back. */
    if (passed_on == info->si_addr)
        signal(number, SIG_DFL);
    else
        sigaction(number, &before[number == SIGBUS], NULL);
    passed_on = info->si_addr;
}

/* Who set a handler of its own since the last time is asked after us again. */
static void install(int number)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct sigaction own = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK}, now;
    sigemptyset(&own.sa_mask);
    pthread_mutex_lock(&lock);
    sigaction(number, NULL, &now);
    if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != on_fault) {
        before[number == SIGBUS] = now;
        sigaction(number, &own, NULL);
    }
    pthread_mutex_unlock(&lock);
}

/* A plugin may be unloaded. */
static __attribute__((destructor)) void uninstall(void)
{
    static const int numbers[] = {SIGSEGV, SIGBUS};
    for (int i = 0; i < 2; i++) {
        struct sigaction now;
        sigaction(numbers[i], NULL, &now);
        if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_fault)
            sigaction(numbers[i], &before[i], NULL);
    }
}

void fiber_faults_begin(fiber_fault_fn *fault, void *stack, stack_t *saved)
{
    install(SIGSEGV);
    install(SIGBUS);
    /* The upper half is for the landing, which runs when the handler has returned. */
    stack_t own = {.ss_sp = stack, .ss_size = FIBER_FAULT_STACK_BYTES / 2};
    sigaltstack(&own, saved);
    landing_stack = (unsigned char *)stack + FIBER_FAULT_STACK_BYTES;
    fault_of_thread = fault;
}

void fiber_faults_end(const stack_t *saved)
{
    fault_of_thread = NULL;
    sigaltstack(saved, NULL);
}
