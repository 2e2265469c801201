#include "text/pieces.h"

#include "common/mem.h"
#include "text/tokenizer.h"

static enum err add(struct pieces *p, struct piece piece)
{
    if (p->pieces_count == p->pieces_capacity) {
        size_t capacity = p->pieces_capacity ? p->pieces_capacity * 2 : 16;
        struct piece *grown = mem_resize(p->piece, capacity, sizeof *grown);
        if (!grown) return ERR_MEMORY;
        p->piece = grown;
        p->pieces_capacity = capacity;
    }
    p->piece[p->pieces_count++] = piece;
    return OK;
}

enum err pieces_cut(struct pieces *p, size_t start, size_t length, bool first)
{
    if (length == 0) return OK;
    struct piece piece = {(uint32_t)start, (uint32_t)length, TOKEN_NONE, first};
    return add(p, piece);
}

enum err pieces_token(struct pieces *p, uint32_t id)
{
    return add(p, (struct piece){.id = id});
}

enum err pieces_end(struct pieces *p, size_t start, bool first)
{
    if (p->text.size > PIECES_TEXT_MAX)
        return err_set(ERR_INVALID, "the text grows beyond %zu bytes when normalized",
                       PIECES_TEXT_MAX);
    return pieces_cut(p, start, p->text.size - start, first);
}

enum err pieces_whole(struct pieces *p, const char *text, size_t length)
{
    enum err e = buf_add(&p->text, text, length);
    return e == OK ? pieces_end(p, 0, true) : e;
}

void pieces_clear(struct pieces *p)
{
    buf_clear(&p->text);
    p->pieces_count = 0;
}

void pieces_swap(struct pieces *a, struct pieces *b)
{
    struct pieces c = *a;
    *a = *b;
    *b = c;
}

void pieces_fini(struct pieces *p)
{
    buf_fini(&p->text);
    mem_free(p->piece);
    *p = (struct pieces){0};
}
