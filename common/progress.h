/* progress: one line on a terminal that says how far something is, where it takes longer than two seconds.
 *
 *     struct progress p;
 *     progress_begin(&p, stderr, clock_now_ns());
 *     progress_show(&p, clock_now_ns(), done, all, "12 of 30 requests");   // as often as you like
 *     progress_end(&p);                          // before anything else is printed there: the line is gone
 *
 * Rules: nothing is written where the file is no terminal. Each line takes the place of the one before, twice
 * a second at most. It belongs to the thread that began it. */
#ifndef TANDEM_COMMON_PROGRESS_H
#define TANDEM_COMMON_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct progress {
    FILE *to; /* the caller's */
    bool screen, shown;
    uint64_t next_ns; /* nothing is shown before */
};

void progress_begin(struct progress *p, FILE *to, uint64_t now_ns);
/* `all` 0: nobody knows how much it is, and there is no bar. */
void progress_show(struct progress *p, uint64_t now_ns, uint64_t done, uint64_t all,
                   const char *text);
void progress_end(struct progress *p);

#endif
