/* Files that tandem warm reads: lines of text or JSON, and what an earlier run has left. Any bytes are sequences
 * or errors with a text; lines that are fine are planned, each with somebody before it to wait for. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/sequences.h"
#include "client/warm_plan.h"
#include "client/warm_state.h"
#include "common/job.h"

static void read_sequences(const char *path, enum sequences_format format)
{
    struct sequences *s;
    struct sequence q;
    struct warm_plan plan = {0};
    uint64_t line = 0;
    uint32_t i, given = 0;
    enum err e;
    CHECK(sequences_open(&s, path, format) == OK);
    while ((e = sequences_next(s, &q)) != ERR_NOT_FOUND) {
        CHECK(e == OK || (e == ERR_FORMAT && err_text()[0]));
        if (e != OK) {
            sequence_free(&q);
            continue;
        }
        CHECK((q.text != NULL) != (q.tokens != NULL) && q.line > line);
        line = q.line;
        CHECK(q.tokens ? q.count <= JOB_TOKENS_MAX : q.text[q.count] == '\0');
        CHECK(warm_plan_add(&plan, &q) == OK);
    }
    CHECK(warm_plan_make(&plan) == OK);
    while ((e = warm_plan_next(&plan, &i)) == OK) {
        CHECK(plan.item[i].owner == WARM_NONE || plan.item[i].owner < i);
        warm_plan_done(&plan, i);
        given++;
    }
    CHECK(e == ERR_NOT_FOUND && given == plan.count);
    warm_plan_clear(&plan);
    sequences_close(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct warm_state state;
    char path[64];
    int fd = memfd_create("lines", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    read_sequences(path, SEQUENCES_TEXT);
    read_sequences(path, SEQUENCES_JSONL);
    if (warm_state_open(&state, path, "f00d") == OK)
        warm_state_close(&state);
    else
        CHECK(err_text()[0] != '\0');
    close(fd);
    return 0;
}
