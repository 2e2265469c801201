/* warm_state: which sequences were warmed already, in a file, so that an interrupted run can go on.
 *
 *     struct warm_state s;
 *     if ((e = warm_state_open(&s, path, model)) != OK) ...      // NULL: nothing is kept
 *     id = warm_state_id(tenant, &sequence);
 *     if (!warm_state_has(&s, id)) { ... warm it ...; warm_state_add(&s, id, new_bytes); }
 *     warm_state_save(&s, now_ns, true);
 *     warm_state_close(&s);
 *
 * The file is text: "tandem-warm 1 MODEL", "new_bytes N", then a line of 32 hex digits for each sequence, a hash
 * of its content and tenant. Rules: it is written whole beside itself and renamed, at most every second and
 * less often when it has grown; a run that dies loses what was done since, which is done again.
 * Owner: the thread that sends. */
#ifndef TANDEM_CLIENT_WARM_STATE_H
#define TANDEM_CLIENT_WARM_STATE_H

#include <stdbool.h>

#include "client/sequences.h"
#include "common/id.h"
#include "common/map.h"

struct warm_state {
    const char *path; /* NULL: in memory only */
    char model[64];
    struct map done;
    uint64_t new_bytes; /* of all runs */
    bool changed;
    uint64_t save_ns; /* not before */
};

/* ERR_FORMAT: not such a file. ERR_INVALID: of another model. A file that is not there is made. */
enum err warm_state_open(struct warm_state *s, const char *path, const char *model);
void warm_state_close(struct warm_state *s);
struct id128 warm_state_id(const char *tenant, const struct sequence *q);
bool warm_state_has(const struct warm_state *s, struct id128 id);
enum err warm_state_add(struct warm_state *s, struct id128 id, uint64_t new_bytes);
/* If it has changed and it is time, or `now` is told to. */
enum err warm_state_save(struct warm_state *s, uint64_t now_ns, bool at_once);

#endif
