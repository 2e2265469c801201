/* fiber: stacks that one thread switches between, a few nanoseconds a switch.
 *
 *     struct fiber self, *other = fiber_new(64 << 10, body, arg);
 *     fiber_adopt(&self);               // the calling thread's own stack
 *     fiber_switch(&self, other);       // body(arg) runs until it switches to &self
 *     fiber_free(other);                // in whatever state it is
 *
 * Rules: a body never returns, it switches away for good. A fiber that nobody runs may be continued by
 * another thread. A stack ends at a guard page. The address sanitizer is told of every switch; under the
 * thread sanitizer, to which a switch is microseconds, what runs on fibers is not instrumented.
 * A fault is an access that the hardware refuses: while a thread has its fault stack set, the handler
 * of SIGSEGV and SIGBUS asks `fiber_fault_fn`; it may have the thread go on in `landing` instead. */
#ifndef TANDEM_FAKE_CUDA_FIBER_H
#define TANDEM_FAKE_CUDA_FIBER_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

typedef void fiber_run_fn(void *arg);

struct fiber {
    void *saved; /* where the registers lie while it does not run */
    fiber_run_fn *run;
    void *arg;
    void *stack; /* lowest byte; NULL: a thread's own */
    size_t stack_bytes;
    /* for the address sanitizer */
    void *fake_stack;
    const void *bottom;
    size_t bottom_bytes;
};

/* NULL if there is no memory. */
struct fiber *fiber_new(size_t stack_bytes, fiber_run_fn *run, void *arg);
void fiber_free(struct fiber *f);
void fiber_adopt(struct fiber *f);
void fiber_switch(struct fiber *from, struct fiber *to);
/* Is `at` in the guard page under the stack? */
bool fiber_overflow(const struct fiber *f, const void *at);

/* What the thread goes on with, on an empty piece of stack; NULL: not ours, the fault takes its
 * course. It runs in the signal handler. */
typedef void fiber_landing_fn(void);
typedef fiber_landing_fn *fiber_fault_fn(const void *at, bool write);

/* Faults of the calling thread go to `fault` until fiber_faults_end. `stack` serves both the handler
 * and the landing. */
enum { FIBER_FAULT_STACK_BYTES = 128 << 10 };
void fiber_faults_begin(fiber_fault_fn *fault, void *stack, stack_t *saved);
void fiber_faults_end(const stack_t *saved);

#endif
