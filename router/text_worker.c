#include "router/text_worker.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mailbox.h"
#include "common/mem.h"

struct question {
    struct id128 job;
    char *text;
    uint32_t bytes;
};

struct text_worker {
    const struct tokenizer *tokenizer;
    struct mailbox *in, *out;
    pthread_t thread;
    uint32_t waiting, queue_max; /* asked and not yet answered: so an answer always finds room */
};

static void encode(const struct tokenizer *t, const struct question *q, struct text_answer *a)
{
    size_t count = 0;
    *a = (struct text_answer){.job = q->job};
    a->error = tokenizer_encode(t, q->text, q->bytes, TOKENIZER_ADD_SPECIAL, &a->ids, &count);
    if (a->error != OK)
        snprintf(a->reason, sizeof a->reason, "%s", err_text());
    else
        a->ids_count = (uint32_t)count; /* at most one id a byte and a few: text is bounded */
}

static void *run(void *arg)
{
    struct text_worker *w = arg;
    struct question q;
    struct text_answer a;
    while (mailbox_wait(w->in, &q, TIME_NEVER) == OK) {
        encode(w->tokenizer, &q, &a);
        mem_free(q.text);
        CHECK(mailbox_send(w->out, &a) == OK); /* waiting <= queue_max, and never closed */
    }
    return NULL;
}

enum err text_worker_start(struct text_worker **out, const struct tokenizer *t, uint32_t queue_max)
{
    enum err e = ERR_MEMORY;
    struct text_worker *w = mem_new(sizeof *w);
    if (!w) return ERR_MEMORY;
    w->tokenizer = t;
    w->queue_max = queue_max;
    if ((e = mailbox_new(&w->in, sizeof(struct question), queue_max)) != OK) goto fail;
    if ((e = mailbox_new(&w->out, sizeof(struct text_answer), queue_max)) != OK) goto fail;
    if (pthread_create(&w->thread, NULL, run, w) != 0) {
        e = err_set(ERR_IO, "cannot start the text thread");
        goto fail;
    }
    *out = w;
    return OK;
fail:
    mailbox_free(w->out);
    mailbox_free(w->in);
    mem_free(w);
    return e;
}

enum err text_worker_ask(struct text_worker *w, struct id128 job, const char *text, uint32_t bytes)
{
    struct question q = {job, mem_new((size_t)bytes + 1), bytes};
    if (!q.text) return ERR_MEMORY;
    memcpy(q.text, text, bytes);
    enum err e = w->waiting < w->queue_max ? mailbox_send(w->in, &q) : ERR_FULL;
    if (e != OK) {
        mem_free(q.text);
        return err_set(e, "too many prompts wait for the tokenizer");
    }
    w->waiting++;
    return OK;
}

enum err text_worker_answer(struct text_worker *w, struct text_answer *answer)
{
    enum err e = mailbox_receive(w->out, answer);
    if (e == OK) w->waiting--;
    return e;
}

int text_worker_fd(const struct text_worker *w)
{
    return mailbox_fd(w->out);
}

void text_worker_stop(struct text_worker *w)
{
    if (!w) return;
    struct question q;
    struct text_answer a;
    mailbox_close(w->in);
    pthread_join(w->thread, NULL);
    while (mailbox_receive(w->in, &q) == OK)
        mem_free(q.text);
    while (mailbox_receive(w->out, &a) == OK)
        mem_free(a.ids);
    mailbox_free(w->in);
    mailbox_free(w->out);
    mem_free(w);
}
