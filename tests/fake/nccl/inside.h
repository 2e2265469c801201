/* inside: what the files of the stand-in NCCL share.
 *
 * Rules: one lock for everything, never held while something waits for a peer. The CUDA runtime's may
 * be held when it is taken, not the other way round. What waits for a peer is a job's thread (init,
 * launch, finalize) or a stream's (operations); each holds its communicator, and gives up when `stop`
 * is set, of which wake_fd tells. Memory is plain calloc: common/mem.h counts what is tested. */
#ifndef TANDEM_FAKE_NCCL_INSIDE_H
#define TANDEM_FAKE_NCCL_INSIDE_H

#include <nccl.h>
#include <pthread.h>
#include <stdbool.h>

#include "tests/fake/nccl/fake_nccl.h"

enum { FAKE_NCCL_DEVICES_MAX = 16 };

struct fake_registration {
    struct fake_registration *next;
    void *memory;
    size_t size;
};

struct ncclComm {
    struct ncclComm *next;
    bool live; /* neither aborted nor destroyed */
    uint32_t refs;
    int rank, device;
    ncclUniqueId id;
    ncclResult_t state; /* what ncclCommGetAsyncError says */
    bool finalized, stop;
    int fd, wake_fd; /* to the peer; -1: not yet */
    bool warm;       /* both have begun their first operation */
    uint64_t operations;
    uint32_t jobs_count, moving_count;
    struct fake_registration *registrations;
};

struct fake_listener {
    struct fake_listener *next;
    ncclUniqueId id;
    int fd;
};

struct fake_nccl_state {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct fake_nccl_knobs knobs;
    bool knobs_read;
    const char *fail_seen;
    uint32_t fail_seen_at, fail_calls;
    uint32_t moving_count, jobs_count, ids_count;
    struct ncclComm *comms, *turn[FAKE_NCCL_DEVICES_MAX];
    struct fake_listener *listeners;
    uint64_t ids;
    int threads_of; /* the process that has the jobs' threads */
};
extern struct fake_nccl_state fake_nccl;

/* --- nccl.c --- */

/* A line on stderr and what ncclGetLastError says; a fault also makes the device sick. */
void fake_nccl_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fake_nccl_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Whether the knobs want this call to fail, and how. Lock held. */
ncclResult_t fake_nccl_knob_error(const char *call);
void fake_nccl_drop(struct ncclComm *comm); /* a reference; lock held */
/* What waits for this communicator's peer gives up. Lock held. */
void fake_nccl_stop(struct ncclComm *comm);

/* --- wire.c --- */

ncclResult_t fake_nccl_listen(ncclUniqueId *id); /* lock held */
/* Until both are there; ncclInProgress: stopped. Lock not held. */
ncclResult_t fake_nccl_meet(struct ncclComm *comm);

enum fake_mark { FAKE_SEND = 1, FAKE_RECEIVE, FAKE_WARM, FAKE_FINAL };
struct fake_meeting {
    uint32_t magic, mark;
    uint64_t number, bytes;
    uint64_t registered; /* 1: what it moves, with the communicator */
};
/* Tells the peer what this side does and waits for what that side does; false: stopped. Dead peers
 * are waited for until then. */
bool fake_nccl_exchange(struct ncclComm *comm, const struct fake_meeting *mine,
                        struct fake_meeting *theirs);
bool fake_nccl_put(struct ncclComm *comm, const void *bytes, size_t size);
bool fake_nccl_get(struct ncclComm *comm, void *bytes, size_t size);
void fake_nccl_sleep(struct ncclComm *comm, uint32_t ms); /* or until it is stopped */

/* --- move.c --- */

struct fake_move {
    struct ncclComm *comm;
    enum fake_mark mark;
    char *memory;
    size_t bytes;
    uint64_t number;
    cudaStream_t stream;
};
/* Whether memory and stream are what they should be. Lock not held. */
ncclResult_t fake_nccl_move_check(const struct fake_move *move);
/* The next operation of its communicator. Lock held. */
struct fake_move *fake_nccl_move_new(const struct fake_move *move);
/* Puts it on its stream. Lock not held. */
ncclResult_t fake_nccl_move_launch(struct fake_move *move);

#endif
