#include "xfer/ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { RECORD_HEAD = 8 };

static uint64_t record_bytes(uint64_t frame_bytes)
{
    return RECORD_HEAD + ((frame_bytes + 7) & ~7ull);
}

enum err ring_map(struct ring *r, int fd, uint64_t offset, uint64_t size_bytes,
                  struct ring_control *control, uint32_t frame_bytes_max)
{
    *r = (struct ring){0};
    uint8_t *room = mmap(NULL, 2 * size_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) return err_set(ERR_IO, "shm link: mmap: %s", strerror(errno));
    for (int half = 0; half < 2; half++) {
        void *at = mmap(room + half * size_bytes, size_bytes, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_FIXED, fd, (off_t)offset);
        if (at != MAP_FAILED) continue;
        enum err e = err_set(ERR_IO, "shm link: mmap: %s", strerror(errno));
        munmap(room, 2 * size_bytes);
        return e;
    }
    *r = (struct ring){.control = control,
                       .bytes = room,
                       .size_bytes = size_bytes,
                       .frame_bytes_max = frame_bytes_max};
    return OK;
}

void ring_unmap(struct ring *r)
{
    if (r->bytes) munmap(r->bytes, 2 * r->size_bytes);
    *r = (struct ring){0};
}

/* Room for a record. A wish to be woken is told before the last look, so that no wake-up is
 * lost. */
static enum err room_for(struct ring *r, uint64_t wanted)
{
    for (int look = 0; look < 2; look++) {
        uint64_t used = r->own - atomic_load(&r->control->tail);
        if (used > r->size_bytes) return err_set(ERR_FORMAT, "shm link: the reader is ahead");
        if (r->size_bytes - used >= wanted) return OK;
        if (look == 0) atomic_store(&r->control->writer_waits, 1);
    }
    return ERR_AGAIN;
}

enum err ring_write(struct ring *r, const struct kv_piece *pieces, uint32_t pieces_count)
{
    size_t size = kv_pieces_bytes(pieces, pieces_count);
    CHECK(size <= r->frame_bytes_max && record_bytes(size) <= r->size_bytes);
    enum err e = room_for(r, record_bytes(size));
    if (e != OK) return e;
    uint8_t *at = r->bytes + (r->own & (r->size_bytes - 1));
    uint64_t head = size; /* and four zeros */
    memcpy(at, &head, RECORD_HEAD);
    at += RECORD_HEAD;
    for (uint32_t i = 0; i < pieces_count; i++) {
        memcpy(at, pieces[i].bytes, pieces[i].size);
        at += pieces[i].size;
    }
    r->own += record_bytes(size);
    atomic_store(&r->control->head, r->own);
    return OK;
}

enum err ring_read(struct ring *r, const void **bytes, size_t *size)
{
    uint64_t used = atomic_load(&r->control->head) - r->own;
    if (used == 0) {
        atomic_store(&r->control->reader_sleeps, 1);
        used = atomic_load(&r->control->head) - r->own;
        if (used == 0) return ERR_AGAIN;
    }
    if (used > r->size_bytes || used < RECORD_HEAD)
        return err_set(ERR_FORMAT, "shm link: the writer claims %llu bytes",
                       (unsigned long long)used);
    const uint8_t *at = r->bytes + (r->own & (r->size_bytes - 1));
    uint64_t frame_bytes = __atomic_load_n((const uint64_t *)(const void *)at, __ATOMIC_RELAXED);
    if (frame_bytes > r->frame_bytes_max || record_bytes(frame_bytes) > used)
        return err_set(ERR_FORMAT, "shm link: a frame of %llu bytes",
                       (unsigned long long)frame_bytes);
    r->record_bytes = record_bytes(frame_bytes);
    *bytes = at + RECORD_HEAD;
    *size = frame_bytes;
    return OK;
}

void ring_release(struct ring *r)
{
    r->own += r->record_bytes;
    r->record_bytes = 0;
    atomic_store(&r->control->tail, r->own);
}

bool ring_reader_sleeps(struct ring *r)
{
    return atomic_load(&r->control->reader_sleeps) &&
           atomic_exchange(&r->control->reader_sleeps, 0);
}

bool ring_writer_waits(struct ring *r)
{
    return atomic_load(&r->control->writer_waits) && atomic_exchange(&r->control->writer_waits, 0);
}
