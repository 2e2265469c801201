/* Streams of the stand-in: a queue and a thread each. An event is the moment at which a stream came
 * to its record; recording it again makes a new moment, so that those who wait for the older one
 * are not touched. On a sick device queues go on, but nothing in them is run. */
#include "tests/fake/cuda/runtime.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum work_kind { WORK_TASK, WORK_RECORD, WORK_WAIT };
struct fake_work {
    struct fake_work *next;
    enum work_kind kind;
    struct fake_task *task;
    struct fake_moment *moment;
    uint32_t delay_us;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- tasks, moments --- */

struct fake_task *fake_task_new(const char *name, fake_work_fn *run, fake_work_fn *release,
                                void *arg)
{
    struct fake_task *t = fake_zeroed(sizeof *t);
    *t = (struct fake_task){.refs = 1, .name = name, .run = run, .release = release, .arg = arg};
    return t;
}

void fake_task_drop(struct fake_task *task)
{
    if (--task->refs > 0) return;
    if (task->release) task->release(task->arg);
    free(task);
}

static struct fake_moment *moment_hold(struct fake_moment *m)
{
    m->refs++;
    return m;
}

void fake_moment_drop(struct fake_moment *m)
{
    if (m && --m->refs == 0) free(m);
}

/* --- a stream's thread --- */

static void wait_for_something(void)
{
    fake.waiting_count++;
    pthread_cond_wait(&fake.finished, &fake.lock);
    fake.waiting_count--;
}

static void run_task(const struct fake_work *w)
{
    struct fake_thread *t = fake_thread();
    bool sick = fake.sick != cudaSuccess;
    pthread_mutex_unlock(&fake.lock);
    if (w->delay_us) usleep(w->delay_us);
    t->work = w->task->name;
    if (!sick) w->task->run(w->task->arg);
    t->work = NULL;
    pthread_mutex_lock(&fake.lock);
}

static void do_work(const struct fake_work *w)
{
    switch (w->kind) {
    case WORK_TASK: run_task(w); break;
    case WORK_RECORD:
        w->moment->done = true;
        w->moment->at_ns = now_ns();
        break;
    case WORK_WAIT:
        while (!w->moment->done)
            wait_for_something();
        break;
    }
}

static void *stream_main(void *arg)
{
    cudaStream_t s = arg;
    void *fault_stack = fake_memory_watch_thread();
    pthread_mutex_lock(&fake.lock);
    for (;;) {
        while (!s->first && !s->closing)
            pthread_cond_wait(&s->arrived, &fake.lock);
        struct fake_work *w = s->first;
        if (!w) break;
        do_work(w);
        if (!(s->first = w->next)) s->end = &s->first;
        s->finished++;
        if (w->task) fake_task_drop(w->task);
        fake_moment_drop(w->moment);
        free(w);
        if (fake.waiting_count > 0) pthread_cond_broadcast(&fake.finished);
    }
    pthread_mutex_unlock(&fake.lock);
    fake_memory_unwatch_thread(fault_stack);
    return NULL;
}

/* --- queues --- */

static void push(cudaStream_t s, const struct fake_work *work)
{
    struct fake_work *w = fake_zeroed(sizeof *w);
    *w = *work;
    *s->end = w;
    s->end = &w->next;
    s->pushed++;
    pthread_cond_signal(&s->arrived);
}

cudaError_t fake_stream_push(cudaStream_t s, struct fake_task *task)
{
    if (s->capture) return fake_capture_push(s, task);
    uint32_t delay_us = fake.knobs.stream_delay_us;
    if (delay_us > 0 && fake.knobs.seed) delay_us = (uint32_t)(fake_random() % (2 * delay_us));
    push(s, &(struct fake_work){.kind = WORK_TASK, .task = task, .delay_us = delay_us});
    return cudaSuccess;
}

void fake_stream_push_wait(cudaStream_t s, struct fake_moment *m)
{
    if (m && !m->done) push(s, &(struct fake_work){.kind = WORK_WAIT, .moment = moment_hold(m)});
}

struct fake_moment *fake_stream_push_record(cudaStream_t s)
{
    struct fake_moment *m = fake_zeroed(sizeof *m);
    m->refs = 1;
    push(s, &(struct fake_work){.kind = WORK_RECORD, .moment = moment_hold(m)});
    return m;
}

void fake_stream_wait(cudaStream_t s)
{
    uint64_t pushed = s->pushed;
    while (s->finished < pushed)
        wait_for_something();
}

cudaError_t fake_stream_check(cudaStream_t stream, const char *call)
{
    if (!stream) {
        fake_say("%s: on the default stream, which nothing here may use", call);
        return cudaErrorInvalidResourceHandle;
    }
    return fake_handle_check(stream, FAKE_STREAM, call);
}

/* --- streams --- */

static cudaError_t open_stream(cudaStream_t *stream)
{
    if (fake.threads_of != getpid()) memset(fake.default_stream, 0, sizeof fake.default_stream);
    cudaStream_t s = fake_handle_new(FAKE_STREAM, sizeof *s);
    s->device = fake_thread()->device;
    s->end = &s->first;
    pthread_cond_init(&s->arrived, NULL);
    if (pthread_create(&s->thread, NULL, stream_main, s) != 0) {
        s->handle = (struct fake_handle){.next = s->handle.next};
        return cudaErrorMemoryAllocation;
    }
    fake.threads_of = getpid();
    *stream = s;
    return cudaSuccess;
}

static cudaError_t create_stream(cudaStream_t *stream, unsigned flags)
{
    cudaError_t e = flags > cudaStreamNonBlocking ? cudaErrorInvalidValue : open_stream(stream);
    if (e == cudaSuccess) (*stream)->blocking = flags == cudaStreamDefault;
    return e;
}

cudaStream_t fake_default_stream(void)
{
    cudaStream_t *own = &fake.default_stream[fake_thread()->device];
    if (*own && fake.threads_of == getpid()) return *own;
    if (open_stream(own) != cudaSuccess) return *own = NULL;
    (*own)->handle.live = false; /* nobody has to destroy it */
    return *own;
}

void fake_default_stream_wait(void)
{
    cudaStream_t own = fake.default_stream[fake_thread()->device];
    if (own && fake.threads_of == getpid()) fake_stream_wait(own);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    cudaError_t e = fake_enter("cudaStreamCreateWithFlags", 0);
    if (e == cudaSuccess) e = create_stream(stream, flags);
    return fake_leave(e);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    cudaError_t e = fake_enter("cudaStreamCreate", 0);
    if (e == cudaSuccess) e = create_stream(stream, cudaStreamDefault);
    return fake_leave(e);
}

/* Priorities are clamped by the real runtime, and mean nothing here. */
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    cudaError_t e = fake_enter("cudaStreamCreateWithPriority", 0);
    (void)priority;
    if (e == cudaSuccess) e = create_stream(stream, flags);
    return fake_leave(e);
}

static void close_stream(cudaStream_t s)
{
    s->handle.live = false;
    s->closing = true;
    pthread_cond_signal(&s->arrived);
}

/* What is queued is still run, as by the real runtime; the thread ends behind it. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    static const char call[] = "cudaStreamDestroy";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess && stream->capture) e = fake_capture_spoil(stream->capture, cudaSuccess);
    if (e == cudaSuccess) close_stream(stream);
    return fake_leave(e);
}

void fake_streams_stop(void)
{
    for (struct fake_handle *h = fake.handles; h; h = h->next)
        if (h->kind == FAKE_STREAM) close_stream((cudaStream_t)h);
    for (struct fake_handle *h = fake.handles; h; h = h->next) {
        cudaStream_t s = (cudaStream_t)h;
        if (h->kind != FAKE_STREAM) continue;
        pthread_mutex_unlock(&fake.lock);
        pthread_join(s->thread, NULL);
        pthread_mutex_lock(&fake.lock);
        pthread_cond_destroy(&s->arrived);
        fake_nodes_clear(&s->tail);
    }
}

/* A thread must not outlive the code that it runs: at the process's end, or when a plugin that holds
 * this library is closed. A forked child has the queues but not their threads. */
__attribute__((destructor)) static void stop_at_end(void)
{
    if (fake.threads_of == getpid()) fake_reset();
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    static const char call[] = "cudaStreamQuery";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess && stream->capture)
        e = fake_capture_spoil(stream->capture, cudaErrorStreamCaptureUnsupported);
    if (e == cudaSuccess && stream->finished < stream->pushed) e = cudaErrorNotReady;
    return fake_leave(e);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    static const char call[] = "cudaStreamSynchronize";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess && stream->capture)
        e = fake_capture_spoil(stream->capture, cudaErrorStreamCaptureUnsupported);
    if (e == cudaSuccess) {
        fake_stream_wait(stream);
        e = fake.sick;
    }
    return fake_leave(e);
}

/* --- work --- */

static cudaError_t launch(cudaStream_t stream, struct fake_task *task)
{
    cudaError_t e = fake_enter("cudaLaunchKernel", 0);
    if (e == cudaSuccess) e = fake_knob_error(task->name);
    if (e == cudaSuccess) e = fake_stream_check(stream, task->name);
    if (e == cudaSuccess && stream->device != fake_thread()->device) {
        fake_say("%s: the stream is of device %d, the thread's device is %d", task->name,
                 stream->device, fake_thread()->device);
        e = cudaErrorInvalidResourceHandle;
    }
    if (e == cudaSuccess) return fake_leave(fake_stream_push(stream, task));
    fake_task_drop(task);
    return fake_leave(e);
}

void fake_enqueue(cudaStream_t stream, const char *name, fake_work_fn *run, fake_work_fn *release,
                  void *arg)
{
    launch(stream, fake_task_new(name, run, release, arg));
}

struct host_function {
    cudaHostFn_t function;
    void *arg;
};

static void run_host_function(void *arg)
{
    struct host_function *f = arg;
    fake_thread()->in_host_function = true;
    f->function(f->arg);
    fake_thread()->in_host_function = false;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *arg)
{
    static const char call[] = "cudaLaunchHostFunc";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess) {
        struct host_function *f = fake_zeroed(sizeof *f);
        *f = (struct host_function){.function = function, .arg = arg};
        e = fake_stream_push(stream, fake_task_new(call, run_host_function, free, f));
    }
    return fake_leave(e);
}

/* --- events --- */

static cudaError_t create_event(cudaEvent_t *event, unsigned flags)
{
    if (flags > (cudaEventBlockingSync | cudaEventDisableTiming)) return cudaErrorInvalidValue;
    cudaEvent_t v = fake_handle_new(FAKE_EVENT, sizeof *v);
    v->device = fake_thread()->device;
    v->flags = flags;
    *event = v;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    cudaError_t e = fake_enter("cudaEventCreate", 0);
    if (e == cudaSuccess) e = create_event(event, cudaEventDefault);
    return fake_leave(e);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    cudaError_t e = fake_enter("cudaEventCreateWithFlags", 0);
    if (e == cudaSuccess) e = create_event(event, flags);
    return fake_leave(e);
}

void fake_event_fini(cudaEvent_t event)
{
    fake_moment_drop(event->moment);
    event->moment = NULL;
    fake_nodes_clear(&event->captured);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    static const char call[] = "cudaEventDestroy";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_handle_check(event, FAKE_EVENT, call);
    if (e == cudaSuccess) {
        fake_event_fini(event);
        event->handle.live = false;
    }
    return fake_leave(e);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    static const char call[] = "cudaEventRecord";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_handle_check(event, FAKE_EVENT, call);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess && stream->device != event->device) {
        fake_say("%s: the stream and the event are of different devices", call);
        e = cudaErrorInvalidResourceHandle;
    }
    if (e != cudaSuccess) return fake_leave(e);
    if (stream->capture) return fake_leave(fake_capture_record(stream, event));
    fake_event_fini(event);
    event->capture = 0;
    event->moment = fake_stream_push_record(stream);
    return fake_leave(cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    static const char call[] = "cudaStreamWaitEvent";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess) e = fake_handle_check(event, FAKE_EVENT, call);
    if (e == cudaSuccess && flags != 0) e = cudaErrorInvalidValue;
    if (e != cudaSuccess) return fake_leave(e);
    if (stream->capture || event->capture) return fake_leave(fake_capture_wait(stream, event));
    fake_stream_push_wait(stream, event->moment);
    return fake_leave(cudaSuccess);
}

/* An event that was recorded in a capture has no time. */
static cudaError_t check_event(cudaEvent_t event, const char *call)
{
    cudaError_t e = fake_handle_check(event, FAKE_EVENT, call);
    if (e == cudaSuccess && event->capture)
        e = fake_capture_spoil(fake_capture_of(event->capture), cudaErrorCapturedEvent);
    return e;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    static const char call[] = "cudaEventQuery";
    cudaError_t e = fake_enter(call, FAKE_UNSAFE);
    if (e == cudaSuccess) e = check_event(event, call);
    if (e == cudaSuccess && event->moment && !event->moment->done) e = cudaErrorNotReady;
    return fake_leave(e);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    static const char call[] = "cudaEventSynchronize";
    cudaError_t e = fake_enter(call, FAKE_UNSAFE);
    if (e == cudaSuccess) e = check_event(event, call);
    if (e == cudaSuccess && event->moment) {
        struct fake_moment *m = moment_hold(event->moment);
        while (!m->done)
            wait_for_something();
        fake_moment_drop(m);
        e = fake.sick;
    }
    return fake_leave(e);
}

static cudaError_t elapsed(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    const struct fake_moment *from = start->moment, *to = end->moment;
    if (!from || !to || ((start->flags | end->flags) & cudaEventDisableTiming))
        return cudaErrorInvalidResourceHandle;
    if (!from->done || !to->done) return cudaErrorNotReady;
    *ms = (float)((double)(int64_t)(to->at_ns - from->at_ns) * 1e-6);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    static const char call[] = "cudaEventElapsedTime";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = check_event(start, call);
    if (e == cudaSuccess) e = check_event(end, call);
    if (e == cudaSuccess) e = elapsed(ms, start, end);
    return fake_leave(e);
}
