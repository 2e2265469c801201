#include "xfer/device/control.h"

#include <string.h>

#include "common/byte_order.h"

static const uint8_t magic[4] = {'T', 'D', 'L', '1'};

enum { FIXED_MAX = 48 };

/* Per kind: bytes before the variable part, and the longest variable part. */
static const struct shape {
    const char *name;
    uint16_t fixed_bytes;
    uint16_t more_max;
} shapes[CONTROL_KINDS] = {
    [0] = {"?", 0, 0},
    [CONTROL_OPEN] = {"OPEN", 48, 0},
    [CONTROL_ACCEPT] = {"ACCEPT", 24, TRANSPORT_OFFER_MAX},
    [CONTROL_OFFER] = {"OFFER", 16, TRANSPORT_OFFER_MAX},
    [CONTROL_WARM] = {"WARM", 16, 0},
    [CONTROL_READY] = {"READY", 16, 0},
    [CONTROL_PUSH] = {"PUSH", 32, CONTROL_HEAD_MAX},
    [CONTROL_FRAME] = {"FRAME", 16, 0}, /* as long as the control channel allows */
    [CONTROL_GRANT] = {"GRANT", 20, 0},
    [CONTROL_DRAIN] = {"DRAIN", 16, 0},
    [CONTROL_DRAINED] = {"DRAINED", 16, 0},
    [CONTROL_ABORT] = {"ABORT", 24, CONTROL_TEXT_MAX - 1},
};

const char *control_name(enum control_kind kind)
{
    return shapes[kind > 0 && kind < CONTROL_KINDS ? kind : 0].name;
}

static enum err bad(const struct control *m, const char *what, uint64_t value)
{
    return err_set(ERR_FORMAT, "control message %s: %s is %llu", control_name(m->kind), what,
                   (unsigned long long)value);
}

static void take_text(struct control *m)
{
    memcpy(m->text, m->bytes, m->size);
    for (size_t i = 0; i < m->size; i++)
        if (m->text[i] < ' ' || m->text[i] > '~') m->text[i] = '?';
    m->bytes = NULL;
    m->size = 0;
}

static enum err parse_fields(const uint8_t *p, struct control *m)
{
    switch (m->kind) {
    case CONTROL_OPEN:
    case CONTROL_ACCEPT:
        m->slots_count = le32_get(p + 16);
        m->slot_bytes = le32_get(p + 20);
        if (m->slots_count == 0 || m->slots_count > TRANSPORT_SLOTS_MAX)
            return bad(m, "slots_count", m->slots_count);
        if (m->slot_bytes == 0) return bad(m, "slot_bytes", 0);
        if (m->kind == CONTROL_ACCEPT) return OK;
        m->device_index = le32_get(p + 24);
        if (le32_get(p + 28) != 0) return bad(m, "a zero", le32_get(p + 28));
        memcpy(m->name, p + 32, CONTROL_NAME_MAX);
        return m->name[CONTROL_NAME_MAX - 1] == 0 ? OK : bad(m, "the name's end", 1);
    case CONTROL_PUSH:
        m->number = le64_get(p + 16);
        m->slot = le32_get(p + 24);
        m->payload_bytes = le32_get(p + 28);
        if (m->number == 0) return bad(m, "number", 0);
        if (m->slot >= TRANSPORT_SLOTS_MAX) return bad(m, "slot", m->slot);
        return m->payload_bytes > 0 ? OK : bad(m, "payload_bytes", 0);
    case CONTROL_GRANT:
        m->slots_mask = le32_get(p + 16);
        return m->slots_mask != 0 && m->slots_mask < 1u << TRANSPORT_SLOTS_MAX
                   ? OK
                   : bad(m, "slots_mask", m->slots_mask);
    case CONTROL_ABORT:
        if (le32_get(p + 16) <= ERR_AGAIN || le32_get(p + 16) > ERR_DEVICE)
            return bad(m, "error", le32_get(p + 16));
        if (le32_get(p + 20) > 1) return bad(m, "final", le32_get(p + 20));
        m->error = (enum err)le32_get(p + 16);
        m->final = le32_get(p + 20) == 1;
        take_text(m);
        return OK;
    default: return OK;
    }
}

enum err control_parse(const void *bytes, size_t size, struct control *m)
{
    uint8_t fixed[FIXED_MAX] = {0};
    *m = (struct control){0};
    memcpy(fixed, bytes, size < FIXED_MAX ? size : FIXED_MAX);
    if (size < CONTROL_HEADER_BYTES || memcmp(fixed, magic, sizeof magic) != 0)
        return err_set(ERR_FORMAT, "%zu bytes that are no control message of version 1", size);
    uint8_t kind = fixed[4];
    if (kind == 0 || kind >= CONTROL_KINDS) return bad(m, "kind", kind);
    m->kind = (enum control_kind)kind;
    m->epoch = le32_get(fixed + 8);
    if (fixed[5] || fixed[6] || fixed[7] || le32_get(fixed + 12) != 0) return bad(m, "a zero", 1);
    if (m->epoch == 0) return bad(m, "epoch", 0);
    const struct shape *s = &shapes[kind];
    if (size < s->fixed_bytes) return bad(m, "its size", size);
    m->bytes = (const uint8_t *)bytes + s->fixed_bytes;
    m->size = size - s->fixed_bytes;
    if (m->size > s->more_max && m->kind != CONTROL_FRAME) return bad(m, "its size", size);
    return parse_fields(fixed, m);
}

static void print_header(uint8_t *p, enum control_kind kind, uint32_t epoch)
{
    memset(p, 0, CONTROL_HEADER_BYTES);
    memcpy(p, magic, sizeof magic);
    p[4] = (uint8_t)kind;
    le32_put(p + 8, epoch);
}

size_t control_frame_header(uint32_t epoch, uint8_t header[CONTROL_HEADER_BYTES])
{
    print_header(header, CONTROL_FRAME, epoch);
    return CONTROL_HEADER_BYTES;
}

size_t control_print(const struct control *m, uint8_t *p)
{
    const struct shape *s = &shapes[m->kind];
    const void *more = m->kind == CONTROL_ABORT ? (const void *)m->text : m->bytes;
    size_t more_bytes = m->kind == CONTROL_ABORT ? strlen(m->text) : m->size;
    CHECK(m->kind != CONTROL_FRAME && more_bytes <= s->more_max);
    print_header(p, m->kind, m->epoch);
    switch (m->kind) {
    case CONTROL_OPEN:
    case CONTROL_ACCEPT:
        le32_put(p + 16, m->slots_count);
        le32_put(p + 20, m->slot_bytes);
        if (m->kind == CONTROL_ACCEPT) break;
        le32_put(p + 24, m->device_index);
        le32_put(p + 28, 0);
        memcpy(p + 32, m->name, CONTROL_NAME_MAX);
        break;
    case CONTROL_PUSH:
        le64_put(p + 16, m->number);
        le32_put(p + 24, m->slot);
        le32_put(p + 28, m->payload_bytes);
        break;
    case CONTROL_GRANT: le32_put(p + 16, m->slots_mask); break;
    case CONTROL_ABORT:
        le32_put(p + 16, m->error);
        le32_put(p + 20, m->final);
        break;
    default: break;
    }
    if (more_bytes > 0) memcpy(p + s->fixed_bytes, more, more_bytes);
    return s->fixed_bytes + more_bytes;
}
