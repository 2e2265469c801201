/* state: the engine from inside, for its own three files: engine.c runs steps, open.c loads and lets go,
 * pool.c has the KV memory. Nobody else includes it.
 *
 * Rules and owner as engine.h tells them: between engine_start and engine_stop all of it is the engine
 * thread's, but for what is atomic, the facts and the pool's memory. */
#ifndef TANDEM_ENGINE_STATE_H
#define TANDEM_ENGINE_STATE_H

#include <pthread.h>

#include "common/mailbox.h"
#include "engine/encode.h"
#include "engine/engine.h"
#include "engine/forward.h"
#include "engine/rope.h"
#include "engine/sampler.h"
#include "engine/slot.h"

enum { FLIGHTS_MAX = 4 };

/* A step that the device has. */
struct flight {
    struct step *step;
    uint64_t began_ns, mark;
    enum err status;          /* of enqueuing it */
    bool taken;               /* its tokens are */
    struct token_info *drawn; /* [sequences_max] host memory, by output; NULL: drawn on the host */
};

struct engine {
    struct engine_options options; /* its strings are not kept */
    struct engine_facts facts;
    char model_name[256], device[64];

    const struct backend_ops *ops;
    struct backend *backend;
    struct model_config config;
    struct weights weights;
    struct rope_table rope;
    struct kv_view kv;
    struct forward forward;
    struct slots slots;
    struct sampler sampler;
    struct encoder encoder;

    /* The step that runs, as the backend wants it: */
    uint32_t *tokens;                /* [rows_max], STEP_TOKEN_LAST replaced if drawn on the host */
    struct batch_sequence *sequence; /* [sequences_max] */
    uint32_t *output_row;            /* [rows_max] rows of the batch whose logits are wanted */
    uint32_t drawn_count;            /* the first of them: those that are sampled */
    int32_t *logits_row;             /* [sequences_max] where a sequence's are, or NO_ROW */
    float *logits;                   /* [sequences_max][vocab] on the host: engine_logits */
    bool sick;                       /* the device failed; so does every step from then on */

    struct flight flight[FLIGHTS_MAX]; /* a ring of facts.queue_depth */
    uint32_t flight_first, flights_count;
    uint64_t ended_ns; /* of the step before */

    pthread_t thread;
    struct mailbox *inbox; /* of struct step *; NULL: not started */
    engine_event_fn *on_event;
    void *on_event_ctx;
    _Atomic bool stopping;
    _Atomic uint64_t progress;
};

/* The KV pool, of the size that the options or what the device has free make it. */
enum err engine_make_pool(struct engine *g);

#endif
