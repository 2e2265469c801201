/* cores: where the processes of a benchmark run, so that what is measured is not what they take from each other.
 *
 *     cores_use(0);                            // this process and all that it starts from now on
 *     cores_first_in_line();                   // as root: before what else runs on the machine
 *     struct process *p = cluster_spawn(...);
 *     cores_put_first(p->pid);                 // the same for a child with a session of its own
 *
 * Rules: what the system refuses is said on stderr and left. Owner: the program's main thread. */
#ifndef TANDEM_TESTS_BENCH_CORES_H
#define TANDEM_TESTS_BENCH_CORES_H

#include <sys/types.h>

void cores_use(unsigned core);
void cores_first_in_line(void);
/* Nothing, unless this process is first in line. */
void cores_put_first(pid_t child);

#endif
