/* disk_faults: what the kernel is asked of files, made to fail or to be the last thing that a process does.
 *
 *     disk_faults = (struct disk_faults){.call = DISK_WRITE, .nth = 3, .error = ENOSPC};
 *     ...                                           // the third write from now fails, and all after it
 *     disk_faults = (struct disk_faults){.call = DISK_WRITE, .nth = 9, .kill_after_bytes = 1000};
 *     ...                                           // the ninth writes so many bytes, then SIGKILL
 *     disk_faults = (struct disk_faults){0};        // all is well again
 *
 * The program that links this has its own pread, pwrite, pwritev and fallocate, which its libraries (LMDB)
 * take too. Owner: one thread; not for programs that have several which use files. */
#ifndef TANDEM_TESTS_DISK_FAULTS_H
#define TANDEM_TESTS_DISK_FAULTS_H

#include <stdint.h>

enum disk_call { DISK_NONE, DISK_READ, DISK_WRITE, DISK_RESERVE };

struct disk_faults {
    enum disk_call call;
    uint32_t nth;              /* 1: the next one */
    int error;                 /* errno; 0: the process is killed */
    uint64_t kill_after_bytes; /* of the write that is the last */
};

extern struct disk_faults disk_faults;

#endif
