/* fake_nccl: the knobs of the stand-in NCCL (README.md says what it is).
 *
 *     fake_nccl_knobs()->in_progress_ms = 5;
 *     fake_nccl_knobs()->fail_call = "ncclSend"; fake_nccl_knobs()->fail_at = 2;   // the second one
 *
 * Rules: tests in one process write to the knobs while no other thread calls; processes of a cluster
 * are told by TANDEM_FAKE_NCCL="in_progress_ms=5,one_at_a_time=1". */
#ifndef TANDEM_FAKE_NCCL_FAKE_NCCL_H
#define TANDEM_FAKE_NCCL_FAKE_NCCL_H

#include <stdint.h>

struct fake_nccl_knobs {
    /* This function fails at its fail_at-th call (from 1), once, with this ncclResult_t (0:
     * ncclInternalError). Also what goes on behind ncclInProgress: "init", "launch", "finalize". */
    const char *fail_call;
    uint32_t fail_at;
    int fail_with;
    uint32_t in_progress_ms; /* inits, launches and finalizes take so long; launches else no time */
    uint32_t init_ms;        /* inits take so much longer */
    uint32_t loud_death;     /* a peer's death is ncclRemoteError; else nothing tells of it */
    uint32_t init_hangs;     /* inits never end by themselves */
    uint32_t abort_hangs;    /* ncclCommAbort stops nothing and never returns */
    /* an operation begins when the device's last one, of any comm, is over */
    uint32_t one_at_a_time;
    uint32_t same_gpu;             /* two ranks may be on one GPU of one host */
    uint32_t register_unsupported; /* ncclMemAlloc and ncclCommRegister are ncclInvalidUsage */
    uint32_t version;              /* what ncclGetVersion says; 0: 22809 */
};
struct fake_nccl_knobs *fake_nccl_knobs(void);

/* Between tests of one process, before fake_reset: ends everything and forgets the knobs. Returns how
 * many communicators, unique ids and registrations nobody had used up. No other thread may be in a
 * call, but for one that hangs in ncclCommAbort. */
uint32_t fake_nccl_reset(void);
/* Operations that are under way on streams. */
uint32_t fake_nccl_moving(void);
/* Unique ids that hold a thread: made here, and not yet used by both ranks. */
uint32_t fake_nccl_ids(void);
/* Devices of which one has the turn (one_at_a_time). */
uint32_t fake_nccl_turns(void);

#endif
