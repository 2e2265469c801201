/* shared: a block's shared memory and the async copies into it. Each piece lies in a slot of its own,
 *
 *     | … | canary | piece | < 16 bytes of canary | guard page |
 *
 * so that what is read or written behind it faults at once, what is written just before it is found at
 * the next barrier, and what was never written is not a number. */
#include "tests/fake/cuda/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

bool shared_open(struct machine *m)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    m->slot_bytes = (SHARED_MAX + CANARY_BYTES + page - 1) / page * page;
    m->slot_stride = m->slot_bytes + page;
    m->slots = mmap(NULL, PIECES_MAX * m->slot_stride, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->slots == MAP_FAILED) {
        m->slots = NULL;
        return false;
    }
    for (int i = 0; i < PIECES_MAX; i++)
        mprotect(m->slots + i * m->slot_stride + m->slot_bytes, page, PROT_NONE);
    return true;
}

void shared_close(struct machine *m)
{
    if (m->slots) munmap(m->slots, PIECES_MAX * m->slot_stride);
    m->slots = NULL;
}

void shared_reset(struct machine *m)
{
    m->pieces_count = 0;
}

/* `at` is a multiple of 16, `bytes` any number. */
static void poison(void *at, size_t bytes)
{
    const uint32_t word = POISON;
    unsigned char *p = at;
    for (; bytes >= 4; bytes -= 4, p += 4)
        memcpy(p, &word, 4);
    memcpy(p, &word, bytes);
}

static unsigned char *slot_end(const struct machine *m, uint32_t piece)
{
    return m->slots + piece * m->slot_stride + m->slot_bytes;
}

static void piece_new(struct machine *m, uint32_t offset, size_t bytes, uint32_t reserved)
{
    if (m->pieces_count == PIECES_MAX)
        machine_fault("takes more than %d pieces of shared memory", PIECES_MAX);
    if ((uint64_t)offset + reserved > m->launch->shared_bytes || bytes > reserved)
        machine_fault("takes %llu bytes of shared memory, launched with %u",
                      (unsigned long long)offset + (bytes > reserved ? bytes : reserved),
                      m->launch->shared_bytes);
    unsigned char *end = slot_end(m, m->pieces_count);
    unsigned char *at = end - (bytes + 15) / 16 * 16;
    m->piece[m->pieces_count++] = (struct piece){.at = at, .bytes = bytes, .offset = offset};
    poison(at - CANARY_BYTES, (size_t)(end - at) + CANARY_BYTES);
}

void *emulator_shared_take(uint32_t piece, uint32_t offset, size_t bytes, uint32_t reserved)
{
    struct machine *m = machine;
    if (piece == m->pieces_count) piece_new(m, offset, bytes, reserved);
    const struct piece *p = &m->piece[piece];
    if (piece >= m->pieces_count || p->offset != offset || p->bytes != bytes)
        machine_fault("takes %zu bytes at %u as shared piece %u, another thread of the block took "
                      "%zu at %u",
                      bytes, offset, piece, p->bytes, p->offset);
    return p->at;
}

/* Whole words of the pattern, and the pattern's first bytes at the end. */
static bool poisoned(const unsigned char *at, size_t bytes)
{
    const uint32_t word = POISON;
    for (; bytes >= 4; bytes -= 4, at += 4)
        if (memcmp(at, &word, 4) != 0) return false;
    return memcmp(at, &word, bytes) == 0;
}

/* What follows a piece within 16 bytes goes on with the pattern that began at its front. */
static bool poisoned_behind(const struct piece *p)
{
    const uint32_t word = POISON;
    unsigned char pattern[4];
    memcpy(pattern, &word, 4);
    for (size_t i = p->bytes; i % 16 != 0; i++)
        if (p->at[i] != pattern[i % 4]) return false;
    return true;
}

void shared_check(struct machine *m)
{
    for (uint32_t i = 0; i < m->pieces_count; i++) {
        const struct piece *p = &m->piece[i];
        if (!poisoned(p->at - CANARY_BYTES, CANARY_BYTES))
            machine_fault("a thread of the block wrote before shared piece %u (%zu bytes)", i,
                          p->bytes);
        if (!poisoned_behind(p))
            machine_fault("a thread of the block wrote behind shared piece %u (%zu bytes)", i,
                          p->bytes);
    }
}

const struct piece *shared_piece(const struct machine *m, const void *at, size_t bytes)
{
    for (uint32_t i = 0; i < m->pieces_count; i++) {
        const struct piece *p = &m->piece[i];
        const unsigned char *from = at;
        if (from >= p->at && from + bytes <= p->at + p->bytes) return p;
    }
    return NULL;
}

bool shared_say(const struct machine *m, const void *at, char *text, size_t text_bytes)
{
    const unsigned char *byte = at;
    if (byte < m->slots || byte >= m->slots + PIECES_MAX * m->slot_stride) return false;
    uint32_t i = (uint32_t)((size_t)(byte - m->slots) / m->slot_stride);
    if (i >= m->pieces_count) {
        snprintf(text, text_bytes, "shared memory that is not taken");
        return true;
    }
    const struct piece *p = &m->piece[i];
    if (byte < p->at)
        snprintf(text, text_bytes, "%zu bytes before shared piece %u (%zu bytes)",
                 (size_t)(p->at - byte), i, p->bytes);
    else if (byte >= p->at + p->bytes)
        snprintf(text, text_bytes, "%zu bytes behind the end of shared piece %u (%zu bytes)",
                 (size_t)(byte - (p->at + p->bytes)), i, p->bytes);
    else
        snprintf(text, text_bytes, "byte %zu of shared piece %u", (size_t)(byte - p->at), i);
    return true;
}

/* --- async copies --- */

static void aligned(const char *what, const void *at)
{
    if ((uintptr_t)at % 16 != 0) machine_fault("%s: %p is not aligned to 16", what, at);
}

/* The 16 bytes are no numbers until the wait. Reading starts now, so that a bad source is found here,
 * and ends at the wait, so that a source that changes meanwhile is found too. */
void emulator_copy_async(void *shared, const void *from, bool valid)
{
    struct machine *m = machine;
    struct thread *t = &m->thread[m->current];
    if (!t->waited) machine_fault("copy_async before grid_wait");
    aligned("copy_async to", shared);
    aligned("copy_async from", from);
    if (!shared_piece(m, shared, 16)) {
        char where[160] = "no shared memory";
        shared_say(m, shared, where, sizeof where);
        machine_fault("copy_async to %s", where);
    }
    if (valid && races_touch) races_touch(from, 16, RACES_READ);
    if (valid) {
        (void)((const volatile unsigned char *)from)[0];
        (void)((const volatile unsigned char *)from)[15];
    }
    if (t->copies_count == t->copies_capacity) {
        uint32_t capacity = t->copies_capacity ? 2 * t->copies_capacity : 16;
        struct copy *copies = realloc(t->copies, capacity * sizeof *copies);
        if (!copies) machine_fault("no memory for copies under way");
        t->copies = copies;
        t->copies_capacity = capacity;
    }
    t->copies[t->copies_count++] =
        (struct copy){.to = shared, .from = valid ? from : NULL, .group = t->groups_closed};
    poison(shared, 16);
}

void emulator_copy_commit(void)
{
    machine->thread[machine->current].groups_closed++;
}

/* Copies are listed in the order of their groups; those of the group that is still open stay. */
void emulator_copy_wait(uint32_t groups)
{
    struct thread *t = &machine->thread[machine->current];
    uint32_t done = 0;
    for (; done < t->copies_count && t->copies[done].group + groups < t->groups_closed; done++) {
        const struct copy *c = &t->copies[done];
        if (c->from)
            memcpy(c->to, c->from, 16);
        else
            memset(c->to, 0, 16);
    }
    t->copies_count -= done;
    if (done == 0) return; /* there may be no list at all */
    memmove(t->copies, t->copies + done, t->copies_count * sizeof *t->copies);
}

uint4 emulator_load_once(const void *from)
{
    uint4 v;
    aligned("load_once from", from);
    if (races_touch) races_touch(from, 16, RACES_READ_ONLY);
    memcpy(&v, from, 16);
    return v;
}
