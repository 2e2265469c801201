/* What a hand-over between two threads costs: one message at a time there and back, and a stream. */
#include <pthread.h>
#include <stdio.h>

#include "common/clock.h"
#include "common/mailbox.h"
#include "tests/bench/figures.h"

enum { ROUNDS = 20000, STREAM = 1000000, DEPTH = 1024 };

struct pair {
    struct mailbox *there, *back;
};

static void *echo(void *arg)
{
    struct pair *p = arg;
    uint64_t message;
    while (mailbox_wait(p->there, &message, TIME_NEVER) == OK)
        mailbox_send(p->back, &message);
    return NULL;
}

static void *pour(void *arg)
{
    struct pair *p = arg;
    for (uint64_t i = 0; i < STREAM; i++)
        while (mailbox_send(p->back, &i) == ERR_FULL)
            sched_yield();
    return NULL;
}

int main(void)
{
    struct samples round_trips_us = {0};
    struct pair p;
    pthread_t thread;
    uint64_t message = 0;
    CHECK(mailbox_new(&p.there, sizeof message, DEPTH) == OK);
    CHECK(mailbox_new(&p.back, sizeof message, DEPTH) == OK);
    pthread_create(&thread, NULL, echo, &p);
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t began_ns = clock_now_ns();
        mailbox_send(p.there, &message);
        mailbox_wait(p.back, &message, TIME_NEVER);
        samples_add(&round_trips_us, (double)(clock_now_ns() - began_ns) / 1e3);
    }
    mailbox_close(p.there);
    pthread_join(thread, NULL);

    uint64_t began_ns = clock_now_ns();
    pthread_create(&thread, NULL, pour, &p);
    for (int i = 0; i < STREAM; i++)
        mailbox_wait(p.back, &message, TIME_NEVER);
    double seconds = (double)(clock_now_ns() - began_ns) / 1e9;
    pthread_join(thread, NULL);
    printf("{\"round_trip_p50_us\":%.1f,\"round_trip_p99_us\":%.1f,\"messages_per_s\":%.0f}\n",
           samples_at(&round_trips_us, 0.5), samples_at(&round_trips_us, 0.99), STREAM / seconds);
    samples_free(&round_trips_us);
    mailbox_free(p.there);
    mailbox_free(p.back);
    return 0;
}
