#include "common/cpus.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number at *at, which moves behind it; -1: none, or one that no set holds. */
static long read_cpu(const char **at)
{
    char *end;
    if (**at < '0' || **at > '9') return -1;
    unsigned long value = strtoul(*at, &end, 10);
    *at = end;
    return value < CPU_SETSIZE ? (long)value : -1;
}

enum err cpus_parse(const char *text, cpu_set_t *set)
{
    const char *at = text;
    CPU_ZERO(set);
    for (;;) {
        long first = read_cpu(&at), last = first;
        if (first >= 0 && *at == '-') {
            at++;
            last = read_cpu(&at);
        }
        if (first < 0 || last < first || (*at != ',' && *at != '\0'))
            return err_set(ERR_INVALID, "\"%s\" is no list of CPUs, like 0-3,8 (below %d)", text,
                           CPU_SETSIZE);
        for (long cpu = first; cpu <= last; cpu++)
            CPU_SET((size_t)cpu, set);
        if (*at++ == '\0') return OK;
    }
}

void cpus_print(const cpu_set_t *set, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, set)) continue;
        char run[32];
        int last = cpu;
        while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, set))
            last++;
        const char *comma = used > 0 ? "," : "";
        int n = last == cpu ? snprintf(run, sizeof run, "%s%d", comma, cpu)
                            : snprintf(run, sizeof run, "%s%d-%d", comma, cpu, last);
        if (used + (size_t)n + sizeof ",..." > size) {
            snprintf(text + used, size - used, "%s...", comma);
            return;
        }
        memcpy(text + used, run, (size_t)n + 1);
        used += (size_t)n;
        cpu = last;
    }
}

int cpus_nth(const cpu_set_t *set, uint32_t n)
{
    uint32_t count = (uint32_t)CPU_COUNT(set);
    if (count == 0) return -1;
    n %= count;
    for (int cpu = 0;; cpu++)
        if (CPU_ISSET(cpu, set) && n-- == 0) return cpu;
}

void cpus_allowed(cpu_set_t *set)
{
    if (sched_getaffinity(0, sizeof *set, set) == 0) return;
    CPU_ZERO(set);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        CPU_SET(cpu, set);
}

enum err cpus_bind(const cpu_set_t *set)
{
    char text[CPUS_TEXT];
    int failed = pthread_setaffinity_np(pthread_self(), sizeof *set, set);
    if (!failed) return OK;
    cpus_print(set, text, sizeof text);
    return err_set(ERR_INVALID, "CPUs %s: %s", text, strerror(failed));
}
