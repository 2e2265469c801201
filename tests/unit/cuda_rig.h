/* cuda_rig: what the tests of the stand-in CUDA share: handles made and checked, a door in a stream,
 * a kernel whose order shows. For cmocka tests; everything is inline. Owner: the test's thread. */
#ifndef TANDEM_TESTS_CUDA_RIG_H
#define TANDEM_TESTS_CUDA_RIG_H

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "tests/fake/cuda/fake.h"
#include "tests/unit/testing.h"

#define assert_cuda(expression) assert_int_equal((expression), cudaSuccess)

static inline int reset(void **state)
{
    (void)state;
    fake_reset();
    return 0;
}

/* Each test destroys what it made. */
static inline int check_nothing_is_left(void **state)
{
    (void)state;
    return fake_reset() == 0 ? 0 : -1;
}

static inline cudaStream_t new_stream(void)
{
    cudaStream_t s = NULL;
    assert_cuda(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
}

static inline cudaEvent_t new_event(void)
{
    cudaEvent_t v = NULL;
    assert_cuda(cudaEventCreateWithFlags(&v, cudaEventDisableTiming));
    return v;
}

static inline void *new_memory(size_t size)
{
    void *p = NULL;
    assert_cuda(cudaMalloc(&p, size));
    assert_non_null(p);
    return p;
}

/* A door in a stream: what is behind it waits until the test opens it. */
struct door {
    pthread_mutex_t lock;
    pthread_cond_t opened;
    bool open;
};

static inline void wait_at_door(void *arg)
{
    struct door *d = arg;
    pthread_mutex_lock(&d->lock);
    while (!d->open)
        pthread_cond_wait(&d->opened, &d->lock);
    pthread_mutex_unlock(&d->lock);
}

static inline void open_door(struct door *d)
{
    pthread_mutex_lock(&d->lock);
    d->open = true;
    pthread_cond_broadcast(&d->opened);
    pthread_mutex_unlock(&d->lock);
}

#define DOOR                                                                                       \
    {                                                                                              \
        .lock = PTHREAD_MUTEX_INITIALIZER, .opened = PTHREAD_COND_INITIALIZER                      \
    }

static inline void put_door(cudaStream_t stream, struct door *d)
{
    assert_cuda(cudaLaunchHostFunc(stream, wait_at_door, d));
}

/* A kernel: appends its digit to a number. */
struct step {
    uint64_t *number;
    uint64_t digit;
};

static inline void run_step(void *arg)
{
    struct step *s = arg;
    *s->number = *s->number * 10 + s->digit;
}

static inline void launch_step(cudaStream_t stream, uint64_t *number, uint64_t digit)
{
    struct step *s = malloc(sizeof *s);
    *s = (struct step){.number = number, .digit = digit};
    fake_enqueue(stream, "step_kernel", run_step, free, s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, reset, check_nothing_is_left)

#endif
