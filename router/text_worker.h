/* text_worker: the router's text thread: long prompts become ids without holding up the loop.
 *
 *     struct text_worker *w;
 *     if ((e = text_worker_start(&w, tokenizer, queue_max)) != OK) return e;
 *     text_worker_ask(w, request_id, text, bytes);               // copied; loop thread
 *     ... when text_worker_fd(w) is readable, on the loop thread ...
 *     while (text_worker_answer(w, &a) == OK) { use(&a); mem_free(a.ids); }
 *     text_worker_stop(w);
 *
 * Rules: each question gets one answer, in order. The tokenizer outlives the worker.
 * Owner: the loop thread calls; the worker's own thread only encodes. */
#ifndef TANDEM_ROUTER_TEXT_WORKER_H
#define TANDEM_ROUTER_TEXT_WORKER_H

#include "common/id.h"
#include "text/tokenizer.h"

struct text_worker;

struct text_answer {
    struct id128 job;
    enum err error;
    char reason[160];
    uint32_t *ids; /* the receiver's to free */
    uint32_t ids_count;
};

enum err text_worker_start(struct text_worker **w, const struct tokenizer *t, uint32_t queue_max);
/* ERR_FULL: queue_max questions are waiting. */
enum err text_worker_ask(struct text_worker *w, struct id128 job, const char *text, uint32_t bytes);
enum err text_worker_answer(struct text_worker *w, struct text_answer *answer);
int text_worker_fd(const struct text_worker *w);
void text_worker_stop(struct text_worker *w); /* NULL is allowed */

#endif
