/* fixture: what the tests against reference values share: the models of tests/golden/data, the backends, and
 * reading a file with its bounds checked, for one that was cut is a finding too.
 *
 *     fixture_arguments(argc, argv);                      // [BACKEND [LONGEST]]
 *     fixture_each("encode-", "TNDENC01", compare);       // each model's encode-fp32.bin and encode-bf16.bin
 *
 * The data lies in the source tree; TANDEM_SOURCE_DIR in the environment says where that is now.
 * Owner: the test's only thread. */
#ifndef TANDEM_TESTS_GOLDEN_FIXTURE_H
#define TANDEM_TESTS_GOLDEN_FIXTURE_H

#include "engine/engine.h"

struct cursor {
    const unsigned char *at, *end;
};
const void *take(struct cursor *c, size_t size); /* the next `size` bytes, in no alignment */
uint32_t take_u32(struct cursor *c);
float take_f32(struct cursor *c);

/* One file on one backend. */
struct fixture {
    const char *label, *model_dir, *backend;
    enum dtype dtype;
    bool best_path; /* the first of the backends: the others may leave out what takes long */
};
typedef void fixture_fn(const struct fixture *fixture, struct cursor *c);

extern const char *fixture_source_dir;
extern const char *const *fixture_backends; /* ended by NULL, the best first */
extern uint32_t fixture_longest;            /* prompts beyond it are left out */

void fixture_arguments(int argc, char **argv);
/* Calls `compare` for each file of that name, behind its 8 bytes of `magic`; all of it has to be taken. */
void fixture_each(const char *prefix, const char *magic, fixture_fn *compare);
/* Fails the test where it cannot be opened. */
void fixture_open(struct engine **engine, struct step **step, const struct engine_options *options);

#endif
