#include "tests/unit/disk_faults.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct disk_faults disk_faults;

/* Whether this call is one that fails or is the last. */
static bool struck(enum disk_call call)
{
    if (disk_faults.call != call || disk_faults.nth == 0) return false;
    if (disk_faults.nth == 1) return true;
    disk_faults.nth--;
    return false;
}

static void last_write(int fd, const void *bytes, size_t size, off_t at)
{
    size_t n = disk_faults.kill_after_bytes < size ? disk_faults.kill_after_bytes : size;
    if (n > 0) syscall(SYS_pwrite64, fd, bytes, n, at);
    kill(getpid(), SIGKILL);
}

ssize_t pread(int fd, void *bytes, size_t size, off_t at)
{
    if (!struck(DISK_READ)) return syscall(SYS_pread64, fd, bytes, size, at);
    errno = disk_faults.error;
    return -1;
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at)
{
    if (!struck(DISK_WRITE)) return syscall(SYS_pwrite64, fd, bytes, size, at);
    if (disk_faults.error == 0) last_write(fd, bytes, size, at);
    errno = disk_faults.error;
    return -1;
}

ssize_t pwritev(int fd, const struct iovec *piece, int count, off_t at)
{
    if (!struck(DISK_WRITE)) return syscall(SYS_pwritev, fd, piece, count, at, 0);
    if (disk_faults.error == 0) last_write(fd, piece[0].iov_base, piece[0].iov_len, at);
    errno = disk_faults.error;
    return -1;
}

int fallocate(int fd, int mode, off_t at, off_t bytes)
{
    if (!struck(DISK_RESERVE)) return (int)syscall(SYS_fallocate, fd, mode, at, bytes);
    errno = disk_faults.error;
    return -1;
}

/* The names that 64-bit offsets have on other builds of the libraries. */
ssize_t pread64(int fd, void *bytes, size_t size, off64_t at)
{
    return pread(fd, bytes, size, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at)
{
    return pwrite(fd, bytes, size, at);
}
ssize_t pwritev64(int fd, const struct iovec *piece, int count, off64_t at)
{
    return pwritev(fd, piece, count, at);
}
int fallocate64(int fd, int mode, off64_t at, off64_t bytes)
{
    return fallocate(fd, mode, at, bytes);
}
