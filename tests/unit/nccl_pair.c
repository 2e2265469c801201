#include "tests/unit/nccl_pair.h"

#include <cuda_runtime_api.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "common/mem.h"
#include "tests/fake/cuda/fake.h"
#include "tests/fake/nccl/fake_nccl.h"

const struct transport_ops *const ops = &transport_nccl;

enum err open_end(struct transport **t, bool dialler)
{
    return ops->open(t, &(struct transport_options){.device_index = dialler ? 0 : 1,
                                                    .slots_count = SLOTS,
                                                    .slot_bytes = SLOT_BYTES,
                                                    .dialler = dialler,
                                                    .peer = dialler ? "d0" : "p0"});
}

enum err make_offer(struct transport *t, struct offer *o)
{
    struct pollfd fd = {.fd = ops->fd(t), .events = POLLIN};
    enum err e;
    while ((e = ops->opened(t, o->bytes, &o->size)) == ERR_AGAIN)
        assert_true(poll(&fd, 1, WAIT_MS) > 0);
    return e;
}

enum err open_pair(struct pair *p)
{
    struct offer of[2];
    enum err e;
    *p = (struct pair){0};
    if ((e = open_end(&p->end[1], false)) != OK) return e;
    if ((e = make_offer(p->end[1], &of[1])) != OK) return e;
    if ((e = open_end(&p->end[0], true)) != OK) return e;
    if ((e = make_offer(p->end[0], &of[0])) != OK) return e;
    if ((e = ops->join(p->end[0], of[1].bytes, of[1].size)) != OK) return e;
    return ops->join(p->end[1], of[0].bytes, of[0].size);
}

enum err join_alone(struct transport *t, bool registers)
{
    const struct offer o = {.bytes = {22809 & 255, 22809 >> 8, 0, 0, registers}, .size = 8};
    return ops->join(t, o.bytes, o.size);
}

void wait_for(const struct pair *p)
{
    struct pollfd fds[2];
    for (int i = 0; i < 2; i++)
        fds[i] = (struct pollfd){.fd = p->end[i] ? ops->fd(p->end[i]) : -1, .events = POLLIN};
    assert_true(poll(fds, 2, WAIT_MS) > 0);
}

enum err join_pair(struct pair *p)
{
    while (!p->joined[0] || !p->joined[1]) {
        for (int i = 0; i < 2; i++) {
            if (p->joined[i]) continue;
            enum err e = ops->joined(p->end[i]);
            if (e != OK && e != ERR_AGAIN) return e;
            p->joined[i] = e == OK;
        }
        if (!p->joined[0] || !p->joined[1]) wait_for(p);
    }
    return OK;
}

enum err end_both(struct pair *p, uint32_t slot)
{
    bool over[2] = {false, false};
    while (!over[0] || !over[1]) {
        for (int i = 0; i < 2; i++) {
            uint32_t ended = UINT32_MAX;
            if (over[i]) continue;
            enum err e = ops->ended(p->end[i], &ended);
            if (e != OK && e != ERR_AGAIN) return e;
            if (e == OK) assert_int_equal(ended, slot);
            over[i] = e == OK;
        }
        if (!over[0] || !over[1]) wait_for(p);
    }
    return OK;
}

void close_pair(struct pair *p, enum transport_end end)
{
    ops->close(p->end[0], end);
    ops->close(p->end[1], end);
    while (nccl_held_count() > 0)
        usleep(500);
}

void fill(struct transport *t, uint32_t slot, size_t bytes, uint32_t number)
{
    uint8_t *host = mem_new(bytes);
    for (size_t i = 0; i < bytes; i++)
        host[i] = (uint8_t)(number * 31 + i * 7 + i / 251);
    assert_int_equal(cudaMemcpy(ops->slot(t, slot), host, bytes, cudaMemcpyHostToDevice), 0);
    assert_int_equal(cudaDeviceSynchronize(), 0); /* other streams do not wait for it */
    mem_free(host);
}

void assert_came(const struct pair *p, uint32_t slot, size_t bytes)
{
    uint8_t *sent = mem_new(bytes), *came = mem_new(bytes);
    assert_int_equal(cudaMemcpy(sent, ops->slot(p->end[0], slot), bytes, cudaMemcpyDeviceToHost),
                     0);
    assert_int_equal(cudaMemcpy(came, ops->slot(p->end[1], slot), bytes, cudaMemcpyDeviceToHost),
                     0);
    assert_memory_equal(sent, came, bytes);
    mem_free(sent);
    mem_free(came);
}

enum err move(struct pair *p, uint32_t slot, size_t bytes)
{
    enum err e;
    if ((e = ops->begin(p->end[0], slot, bytes)) != OK) return e;
    if ((e = ops->begin(p->end[1], slot, bytes)) != OK) return e;
    return end_both(p, slot);
}

int start(void **state)
{
    (void)state;
    fake_knobs()->devices = 2;
    return 0;
}

int finish(void **state)
{
    (void)state;
    bool sick = cudaPeekAtLastError() != cudaSuccess;
    uint32_t nccl_left = fake_nccl_reset(), cuda_left = fake_reset();
    if (sick || nccl_left || cuda_left)
        printf("sick %d, left of NCCL's %u, of CUDA's %u\n", sick, nccl_left, cuda_left);
    return sick || nccl_left || cuda_left;
}
