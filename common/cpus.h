/* cpus: sets of CPUs (cpu_set_t of sched.h) as text, by rank, and as the place of a thread.
 *
 *     cpu_set_t set;
 *     if ((e = cpus_parse("0-3,8", &set)) != OK) return e;
 *     int cpu = cpus_nth(&set, 4);                       // 8
 *     if (cpus_bind(&set) != OK) log_warn(...);           // this thread, and those that it starts
 *
 * Rules: a set has CPUs below CPU_SETSIZE; a zeroed one is empty and means "anywhere" wherever a thread's
 * place is told. Any thread. */
#ifndef TANDEM_COMMON_CPUS_H
#define TANDEM_COMMON_CPUS_H

#include <sched.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum { CPUS_TEXT = 256 };

/* "0-3,8"; ERR_INVALID. */
enum err cpus_parse(const char *text, cpu_set_t *set);
/* The same back; what has no room becomes "...". */
void cpus_print(const cpu_set_t *set, char *text, size_t size);
/* The n-th from below, counted from 0 and around; -1: the set is empty. */
int cpus_nth(const cpu_set_t *set, uint32_t n);
/* Those that this process may use; all of them where the kernel does not say. */
void cpus_allowed(cpu_set_t *set);
/* Binds the calling thread; ERR_INVALID: none of them is there or allowed. */
enum err cpus_bind(const cpu_set_t *set);

#endif
