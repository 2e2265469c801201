/* Device memory of the stand-in that several processes have: when its handle is first asked for, a piece's
 * pages are exchanged for those of a memfd. Who opens it finds the file through /proc and keeps a read
 * lock on it, which ends with the process, so that memory freed too early is found. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fake/cuda/runtime.h"

enum { HANDLE_MAGIC = 0x1bc0fa4e, WHOLE_BYTES = 2 << 20 };

/* What a handle holds. */
struct lent {
    uint32_t magic;
    int32_t pid, file;
    uint64_t size, inner, id;
};
_Static_assert(sizeof(struct lent) <= sizeof(cudaIpcMemHandle_t), "a handle holds it");

static size_t inner_bytes(const struct fake_memory *m)
{
    return ((m->size + FAKE_ALIGN - 1) / FAKE_ALIGN * FAKE_ALIGN + FAKE_PAGE - 1) / FAKE_PAGE *
           FAKE_PAGE;
}

/* The first byte of the piece's pages. */
static char *pages_of(const struct fake_memory *m)
{
    return (char *)(m->at / FAKE_PAGE * FAKE_PAGE);
}

static int lock_file(int file, int command, short kind)
{
    struct flock lock = {.l_type = kind, .l_whence = SEEK_SET, .l_len = 1};
    int rc = fcntl(file, command, &lock);
    return command == F_OFD_GETLK && rc == 0 ? lock.l_type != F_UNLCK : rc;
}

bool fake_memory_lent(const struct fake_memory *m)
{
    return m->shared_file > 0 && !m->opened && lock_file(m->shared_file, F_OFD_GETLK, F_WRLCK) != 0;
}

static cudaError_t share(struct fake_memory *m)
{
    size_t inner = inner_bytes(m);
    char *pages = pages_of(m);
    if (m->shared_file > 0) return cudaSuccess;
    int file = memfd_create("fake-cuda-ipc", MFD_CLOEXEC);
    if (file < 0) return cudaErrorMapBufferObjectFailed;
    if (ftruncate(file, (off_t)inner) != 0 || pwrite(file, pages, inner, 0) != (ssize_t)inner ||
        mmap(pages, inner, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
        close(file);
        return cudaErrorMapBufferObjectFailed;
    }
    m->shared_file = file;
    return cudaSuccess;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *memory)
{
    cudaError_t e = fake_enter("cudaIpcGetMemHandle", FAKE_UNSAFE);
    struct fake_memory *m = fake_memory_at(memory);
    if (e == cudaSuccess && (!m || m->kind != FAKE_DEVICE || m->opened)) e = cudaErrorInvalidValue;
    if (e == cudaSuccess && m->size % WHOLE_BYTES != 0)
        e = fake_fault_locked("cudaIpcGetMemHandle: %zu bytes share 2 MiB with other allocations, "
                              "which would be shared, too",
                              m->size);
    if (e == cudaSuccess) e = share(m);
    if (e == cudaSuccess) {
        struct lent lent = {HANDLE_MAGIC, getpid(), m->shared_file, m->size, inner_bytes(m), m->id};
        memset(handle, 0, sizeof *handle);
        memcpy(handle, &lent, sizeof lent);
    }
    return fake_leave(e);
}

static cudaError_t open_lent(void **memory, const struct lent *lent)
{
    char path[64];
    if (lent->magic != HANDLE_MAGIC) return cudaErrorInvalidValue;
    if (lent->pid == getpid() && !fake_own_handles())
        return cudaErrorDeviceUninitialized; /* as the real one has it */
    snprintf(path, sizeof path, "/proc/%d/fd/%d", lent->pid, lent->file);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return cudaErrorMapBufferObjectFailed;
    struct fake_memory m = {
        .size = lent->size, .kind = FAKE_DEVICE, .device = fake_thread()->device, .opened = true};
    off_t size = lseek(file, 0, SEEK_END);
    cudaError_t e = cudaErrorMapBufferObjectFailed;
    if (size == (off_t)lent->inner && inner_bytes(&m) == lent->inner &&
        lock_file(file, F_OFD_SETLK, F_RDLCK) == 0)
        e = fake_memory_map(&m, lent->inner, file);
    if (e != cudaSuccess) {
        close(file);
        return e;
    }
    *memory = (void *)m.at;
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **memory, cudaIpcMemHandle_t handle, unsigned flags)
{
    cudaError_t e = fake_enter("cudaIpcOpenMemHandle", FAKE_UNSAFE);
    struct lent lent;
    memcpy(&lent, &handle, sizeof lent);
    if (e == cudaSuccess && flags != cudaIpcMemLazyEnablePeerAccess) e = cudaErrorInvalidValue;
    if (e == cudaSuccess) e = open_lent(memory, &lent);
    return fake_leave(e);
}

cudaError_t cudaIpcCloseMemHandle(void *memory)
{
    cudaError_t e = fake_enter("cudaIpcCloseMemHandle", FAKE_UNSAFE);
    if (e == cudaSuccess && fake_free_waits()) fake_device_wait(fake_thread()->device);
    struct fake_memory *m = fake_memory_at(memory);
    if (e == cudaSuccess && (!m || !m->opened)) e = cudaErrorInvalidValue;
    if (e == cudaSuccess) e = fake_memory_unmap(m, "cudaIpcCloseMemHandle");
    return fake_leave(e);
}
