#include "text/stop.h"

#include <stdint.h>
#include <string.h>

#include "common/buf.h"
#include "common/mem.h"
#include "common/utf8.h"

/* One string as a Knuth-Morris-Pratt automaton: `matched` bytes of it end the text so far. */
struct needle {
    char *text;
    size_t length, matched;
    uint16_t *back; /* back[n]: the longest proper beginning of text[0, n) that also ends it */
};

struct stop {
    struct needle needle[STOP_STRINGS_MAX];
    size_t needles_count;
    struct buf held; /* the end of the text, which could be the beginning of a stop string */
    struct buf shown;
    int hit;
};

static enum err needle_init(struct needle *n, const struct stop_string *s, size_t index)
{
    if (s->length == 0 || s->length > STOP_LENGTH_MAX)
        return err_set(ERR_INVALID, "stop string %zu has %zu bytes, 1 to %d are allowed", index,
                       s->length, STOP_LENGTH_MAX);
    if (utf8_check(s->text, s->length) != s->length)
        return err_set(ERR_INVALID, "stop string %zu is not UTF-8", index);
    n->text = mem_new(s->length);
    n->back = mem_array(s->length + 1, sizeof *n->back);
    if (!n->text || !n->back) return ERR_MEMORY;
    memcpy(n->text, s->text, s->length);
    n->length = s->length;
    for (size_t i = 1, k = 0; i < n->length; i++) {
        while (k > 0 && n->text[k] != n->text[i])
            k = n->back[k];
        if (n->text[k] == n->text[i]) k++;
        n->back[i + 1] = (uint16_t)k;
    }
    return OK;
}

enum err stop_new(struct stop **out, const struct stop_string *strings, size_t strings_count)
{
    if (strings_count > STOP_STRINGS_MAX)
        return err_set(ERR_INVALID, "%zu stop strings, at most %d", strings_count,
                       STOP_STRINGS_MAX);
    struct stop *s = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    s->hit = STOP_NONE;
    enum err e = OK;
    for (size_t i = 0; e == OK && i < strings_count; i++) {
        s->needles_count++;
        e = needle_init(&s->needle[i], &strings[i], i);
    }
    if (e == OK)
        *out = s;
    else
        stop_free(s);
    return e;
}

void stop_free(struct stop *s)
{
    if (!s) return;
    for (size_t i = 0; i < s->needles_count; i++) {
        mem_free(s->needle[i].text);
        mem_free(s->needle[i].back);
    }
    buf_fini(&s->held);
    buf_fini(&s->shown);
    mem_free(s);
}

static void needle_step(struct needle *n, char c)
{
    while (n->matched > 0 && n->text[n->matched] != c)
        n->matched = n->back[n->matched];
    if (n->text[n->matched] == c) n->matched++;
}

/* One byte of text: the longest string that it completes, STOP_NONE; *pending: how many bytes of
 * the text's end could be a beginning. */
static int step(struct stop *s, char c, size_t *pending)
{
    int hit = STOP_NONE;
    *pending = 0;
    for (size_t i = 0; i < s->needles_count; i++) {
        struct needle *n = &s->needle[i];
        needle_step(n, c);
        if (n->matched > *pending) *pending = n->matched;
        if (n->matched == n->length && (hit == STOP_NONE || n->length > s->needle[hit].length))
            hit = (int)i;
    }
    return hit;
}

static void hand_out(const struct stop *s, struct stop_shown *shown)
{
    shown->length = s->shown.size;
    shown->text = shown->length ? s->shown.data : "";
    shown->hit = s->hit;
}

enum err stop_push(struct stop *s, const char *text, size_t length, struct stop_shown *shown)
{
    buf_clear(&s->shown);
    if (s->hit != STOP_NONE) {
        hand_out(s, shown);
        return OK;
    }
    /* All memory first, so that a failure leaves the matcher as it was. */
    s->held.error = OK;
    enum err e = buf_reserve(&s->shown, s->held.size + length);
    if (e == OK) e = buf_reserve(&s->held, STOP_LENGTH_MAX);
    if (e != OK) return e;
    struct buf *out = &s->shown;
    CHECK(buf_add(out, s->held.data, s->held.size) == OK);
    size_t pending = s->held.size, hit_length = 0;
    for (size_t i = 0; i < length && s->hit == STOP_NONE; i++) {
        s->hit = step(s, text[i], &pending);
        CHECK(buf_add(out, text + i, 1) == OK);
    }
    if (s->hit != STOP_NONE) hit_length = s->needle[s->hit].length;
    buf_clear(&s->held);
    if (s->hit == STOP_NONE)
        CHECK(buf_add(&s->held, out->data + out->size - pending, pending) == OK);
    buf_cut(out, out->size - (s->hit == STOP_NONE ? pending : hit_length));
    hand_out(s, shown);
    return OK;
}

void stop_finish(struct stop *s, struct stop_shown *shown)
{
    buf_clear(&s->shown);
    struct buf text = s->shown;
    s->shown = s->held;
    s->held = text;
    for (size_t i = 0; i < s->needles_count; i++)
        s->needle[i].matched = 0;
    hand_out(s, shown);
}
