/* Capture and graphs of the stand-in. A captured stream has no queue but a tail: the nodes that its
 * next node comes after. An event recorded in a capture carries the tail to streams that wait for
 * it, which join the capture by that. A launch puts the nodes on its stream one after the other, in
 * the order of recording, or with a seed in any order that the dependencies allow: a dependency that
 * was forgotten shows as a wrong result on some seed. */
#include "tests/fake/cuda/runtime.h"

#include <stdlib.h>

struct CUgraphNode_st {
    struct fake_task *task;
    struct fake_nodes before; /* nodes that must have run */
};

struct graph {
    struct fake_handle handle;
    cudaGraphNode_t node;
    uint32_t count, room;
};
struct CUgraph_st {
    struct graph graph;
};
struct CUgraphExec_st {
    struct graph graph;
    int device;
    struct fake_moment *last; /* the end of its last launch: launches do not overlap */
};

struct fake_capture {
    struct fake_capture *next;
    uint64_t id;
    cudaGraph_t graph;
    cudaStream_t origin;
    enum cudaStreamCaptureMode mode;
    pthread_t owner;
    bool invalid;
};

void fake_nodes_add(struct fake_nodes *to, const struct fake_nodes *more)
{
    if (more->count == 0) return;
    to->at = realloc(to->at, (to->count + more->count) * sizeof *to->at);
    if (!to->at) abort();
    for (uint32_t i = 0; i < more->count; i++) {
        bool known = false;
        for (uint32_t j = 0; j < to->count; j++)
            known |= to->at[j] == more->at[i];
        if (!known) to->at[to->count++] = more->at[i];
    }
}

void fake_nodes_clear(struct fake_nodes *n)
{
    free(n->at);
    *n = (struct fake_nodes){0};
}

/* --- what is forbidden while a stream is captured --- */

struct fake_capture *fake_capture_of(uint64_t id)
{
    struct fake_capture *c = fake.capture;
    while (c && c->id != id)
        c = c->next;
    return c;
}

cudaError_t fake_capture_spoil(struct fake_capture *capture, cudaError_t e)
{
    if (capture) capture->invalid = true;
    return e;
}

/* A thread that has not asked for another mode is held back by its own captures, unless relaxed, and
 * by global ones of all threads. */
static bool holds_back(const struct fake_capture *c)
{
    enum cudaStreamCaptureMode own = fake_thread()->capture_mode;
    bool mine = pthread_equal(c->owner, pthread_self()) && c->mode != cudaStreamCaptureModeRelaxed;
    if (own == cudaStreamCaptureModeRelaxed) return false;
    return mine || (own == cudaStreamCaptureModeGlobal && c->mode == cudaStreamCaptureModeGlobal);
}

cudaError_t fake_capture_forbids(unsigned rules)
{
    cudaError_t e = cudaSuccess;
    for (struct fake_capture *c = fake.capture; c; c = c->next) {
        bool here = (rules & FAKE_WHOLE_DEVICE) && c->origin->device == fake_thread()->device;
        if (here || ((rules & FAKE_UNSAFE) && holds_back(c)))
            e = fake_capture_spoil(c, cudaErrorStreamCaptureUnsupported);
        else if ((rules & FAKE_NO_STREAM) && c->origin->blocking)
            e = fake_capture_spoil(c, cudaErrorStreamCaptureImplicit);
    }
    return e;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    cudaError_t e = fake_enter("cudaThreadExchangeStreamCaptureMode", 0);
    if (e == cudaSuccess && *mode > cudaStreamCaptureModeRelaxed) e = cudaErrorInvalidValue;
    if (e == cudaSuccess) {
        enum cudaStreamCaptureMode older = fake_thread()->capture_mode;
        fake_thread()->capture_mode = *mode;
        *mode = older;
    }
    return fake_leave(e);
}

/* --- recording --- */

static void add_node(struct graph *g, struct fake_task *task, const struct fake_nodes *before)
{
    if (g->count == g->room) {
        g->room = g->room ? 2 * g->room : 32;
        g->node = realloc(g->node, g->room * sizeof *g->node);
        if (!g->node) abort();
    }
    g->node[g->count] = (struct CUgraphNode_st){.task = task};
    fake_nodes_add(&g->node[g->count].before, before);
    g->count++;
}

cudaError_t fake_capture_push(cudaStream_t stream, struct fake_task *task)
{
    struct fake_capture *c = stream->capture;
    if (c->invalid) {
        fake_task_drop(task);
        return cudaErrorStreamCaptureInvalidated;
    }
    uint32_t number = c->graph->graph.count;
    add_node(&c->graph->graph, task, &stream->tail);
    fake_nodes_clear(&stream->tail);
    fake_nodes_add(&stream->tail, &(struct fake_nodes){.at = &number, .count = 1});
    return cudaSuccess;
}

cudaError_t fake_capture_record(cudaStream_t stream, cudaEvent_t event)
{
    if (stream->capture->invalid) return cudaErrorStreamCaptureInvalidated;
    fake_event_fini(event);
    event->capture = stream->capture->id;
    fake_nodes_add(&event->captured, &stream->tail);
    return cudaSuccess;
}

/* One of the two is of a capture. */
cudaError_t fake_capture_wait(cudaStream_t stream, cudaEvent_t event)
{
    struct fake_capture *own = stream->capture, *other = fake_capture_of(event->capture);
    if (own && own->invalid) return cudaErrorStreamCaptureInvalidated;
    if (own && !event->capture) return fake_capture_spoil(own, cudaErrorStreamCaptureIsolation);
    if (!other) return fake_capture_spoil(own, cudaErrorCapturedEvent);
    if (other->invalid) return cudaErrorStreamCaptureInvalidated;
    if (own && own != other) {
        fake_capture_spoil(own, cudaSuccess);
        return fake_capture_spoil(other, cudaErrorStreamCaptureMerge);
    }
    stream->capture = other;
    fake_nodes_add(&stream->tail, &event->captured);
    return cudaSuccess;
}

static cudaError_t begin_capture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    if (mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
    if (stream->capture) return fake_capture_spoil(stream->capture, cudaErrorIllegalState);
    struct fake_capture *c = fake_zeroed(sizeof *c);
    *c = (struct fake_capture){.next = fake.capture,
                               .id = ++fake.captures,
                               .graph = fake_handle_new(FAKE_GRAPH, sizeof *c->graph),
                               .origin = stream,
                               .mode = mode,
                               .owner = pthread_self()};
    c->graph->graph.handle.live = false; /* until it is handed out */
    fake.capture = c;
    stream->capture = c;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    static const char call[] = "cudaStreamBeginCapture";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess) e = begin_capture(stream, mode);
    return fake_leave(e);
}

/* Whether all nodes come before the nodes of `tail`, or are in it. */
static bool is_joined(const struct graph *g, const struct fake_nodes *tail)
{
    bool *seen = fake_zeroed(g->count);
    uint32_t seen_count = 0;
    for (uint32_t i = 0; i < tail->count; i++)
        seen[tail->at[i]] = true;
    for (uint32_t n = g->count; n-- > 0;) { /* a node comes after nodes of lower numbers only */
        if (!seen[n]) continue;
        seen_count++;
        for (uint32_t i = 0; i < g->node[n].before.count; i++)
            seen[g->node[n].before.at[i]] = true;
    }
    free(seen);
    return seen_count == g->count;
}

static void end_capture(struct fake_capture *c)
{
    for (struct fake_handle *h = fake.handles; h; h = h->next) {
        cudaStream_t s = (cudaStream_t)h;
        if (h->kind != FAKE_STREAM || s->capture != c) continue;
        s->capture = NULL;
        fake_nodes_clear(&s->tail);
    }
    struct fake_capture **at = &fake.capture;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    if (!c->graph->graph.handle.live) fake_graph_fini(&c->graph->graph.handle);
    free(c);
}

void fake_captures_end(void)
{
    while (fake.capture)
        end_capture(fake.capture);
}

static cudaError_t check_end(const struct fake_capture *c, cudaStream_t stream)
{
    if (!c) return cudaErrorIllegalState;
    if (c->origin != stream) return cudaErrorStreamCaptureUnmatched;
    if (c->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(c->owner, pthread_self()))
        return cudaErrorStreamCaptureWrongThread;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    static const char call[] = "cudaStreamEndCapture";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e != cudaSuccess) return fake_leave(e);
    *graph = NULL;
    struct fake_capture *c = stream->capture;
    if ((e = check_end(c, stream)) != cudaSuccess) return fake_leave(fake_capture_spoil(c, e));
    if (c->invalid)
        e = cudaErrorStreamCaptureInvalidated;
    else if (!is_joined(&c->graph->graph, &stream->tail))
        e = cudaErrorStreamCaptureUnjoined;
    if (e == cudaSuccess) {
        c->graph->graph.handle.live = true;
        *graph = c->graph;
    }
    end_capture(c);
    return fake_leave(e);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    static const char call[] = "cudaStreamIsCapturing";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e != cudaSuccess) return fake_leave(e);
    *status = !stream->capture           ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return fake_leave(cudaSuccess);
}

/* --- graphs --- */

void fake_graph_fini(struct fake_handle *handle)
{
    struct graph *g = (struct graph *)handle;
    for (uint32_t i = 0; i < g->count; i++) {
        fake_task_drop(g->node[i].task);
        fake_nodes_clear(&g->node[i].before);
    }
    free(g->node);
    g->node = NULL;
    g->count = g->room = 0;
    g->handle.live = false;
    if (handle->kind == FAKE_EXEC) {
        cudaGraphExec_t exec = (cudaGraphExec_t)handle;
        fake_moment_drop(exec->last);
        exec->last = NULL;
    }
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    static const char call[] = "cudaGraphGetNodes";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_handle_check(graph, FAKE_GRAPH, call);
    if (e != cudaSuccess) return fake_leave(e);
    for (size_t i = 0; nodes && i < *count; i++)
        nodes[i] = i < graph->graph.count ? &graph->graph.node[i] : NULL;
    if (!nodes || *count > graph->graph.count) *count = graph->graph.count;
    return fake_leave(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    static const char call[] = "cudaGraphInstantiate";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_handle_check(graph, FAKE_GRAPH, call);
    if (e == cudaSuccess && flags != 0) e = cudaErrorInvalidValue;
    if (e != cudaSuccess) return fake_leave(e);
    cudaGraphExec_t x = fake_handle_new(FAKE_EXEC, sizeof *x);
    x->device = fake_thread()->device;
    for (uint32_t i = 0; i < graph->graph.count; i++) {
        const struct CUgraphNode_st *n = &graph->graph.node[i];
        n->task->refs++;
        add_node(&x->graph, n->task, &n->before);
    }
    *exec = x;
    return fake_leave(cudaSuccess);
}

static cudaError_t destroy(struct fake_handle *handle, enum fake_kind kind, const char *call)
{
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = fake_handle_check(handle, kind, call);
    if (e == cudaSuccess) fake_graph_fini(handle);
    return fake_leave(e);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    return destroy((struct fake_handle *)graph, FAKE_GRAPH, "cudaGraphDestroy");
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    return destroy((struct fake_handle *)exec, FAKE_EXEC, "cudaGraphExecDestroy");
}

static cudaError_t check_launch(cudaGraphExec_t exec, cudaStream_t stream, const char *call)
{
    cudaError_t e = fake_handle_check(exec, FAKE_EXEC, call);
    if (e == cudaSuccess) e = fake_stream_check(stream, call);
    if (e == cudaSuccess && stream->capture) {
        fake_say("%s: a graph inside a graph is not offered here", call);
        e = fake_capture_spoil(stream->capture, cudaErrorStreamCaptureUnsupported);
    }
    return e;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    static const char call[] = "cudaGraphUpload";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = check_launch(exec, stream, call);
    return fake_leave(e);
}

static bool is_ready(const struct CUgraphNode_st *n, const bool *placed)
{
    for (uint32_t i = 0; i < n->before.count; i++)
        if (!placed[n->before.at[i]]) return false;
    return true;
}

/* One of the nodes that are ready, each as likely as the others. */
static uint32_t pick_node(const struct graph *g, const bool *placed)
{
    uint32_t picked = UINT32_MAX, ready_count = 0;
    for (uint32_t n = 0; n < g->count; n++) {
        if (placed[n] || !is_ready(&g->node[n], placed)) continue;
        if (fake_random() % ++ready_count == 0) picked = n;
    }
    return picked;
}

static void push_nodes(const struct graph *g, cudaStream_t stream)
{
    bool *placed = fake_zeroed(g->count);
    for (uint32_t i = 0; i < g->count; i++) {
        uint32_t n = fake.knobs.seed ? pick_node(g, placed) : i; /* recorded in a right order */
        placed[n] = true;
        g->node[n].task->refs++;
        fake_stream_push(stream, g->node[n].task);
    }
    free(placed);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    static const char call[] = "cudaGraphLaunch";
    cudaError_t e = fake_enter(call, 0);
    if (e == cudaSuccess) e = check_launch(exec, stream, call);
    if (e == cudaSuccess && stream->device != exec->device) {
        fake_say("%s: the stream and the graph are of different devices", call);
        e = cudaErrorInvalidValue;
    }
    if (e != cudaSuccess) return fake_leave(e);
    fake_stream_push_wait(stream, exec->last);
    push_nodes(&exec->graph, stream);
    fake_moment_drop(exec->last);
    exec->last = fake_stream_push_record(stream);
    return fake_leave(cudaSuccess);
}
