/* sequences: prompts from a file or stdin, one a line: text, or JSON with "prompt" or "tokens".
 *
 *     struct sequences *s;
 *     struct sequence q;
 *     if (sequences_open(&s, "-", SEQUENCES_TEXT) != OK) ...
 *     while ((e = sequences_next(s, &q)) == OK) { ... q.text or q.tokens ...; sequence_free(&q); }
 *     if (e != ERR_NOT_FOUND) ...       // sequence_print_place says which one, the text why; free it too
 *     sequences_close(s);
 *
 * Rules: ERR_FORMAT is of one line, of which line and id are told, and the next call goes on behind it; ERR_IO is
 * of the file, and final.
 * A line is at most SEQUENCE_BYTES_MAX, so that a file without line ends takes no more memory than that.
 * A byte order mark is not of the first line. An empty line is a sequence of no bytes; the caller says what that means. Owner: the thread that reads. */
#ifndef TANDEM_CLIENT_SEQUENCES_H
#define TANDEM_CLIENT_SEQUENCES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"

enum { SEQUENCE_BYTES_MAX = 16 << 20 };

enum sequences_format { SEQUENCES_AUTO, SEQUENCES_TEXT, SEQUENCES_JSONL };
/* As SETTING_CHOICE has them. AUTO: JSONL if the file's name ends so, else text. */
#define SEQUENCES_FORMATS "auto|text|jsonl"

struct sequence {
    uint64_t line; /* from 1; 0: not of a file */
    uint64_t tag;  /* its user's own */
    char *text;    /* one of the two: a zero byte is behind it */
    uint32_t *tokens;
    size_t count; /* bytes of the text, or tokens */
    char *id;     /* the line's own "id", as JSON; NULL: it has none */
};

bool sequences_are_json(const char *path); /* by its name, as AUTO takes it */
struct sequences;
enum err sequences_open(struct sequences **s, const char *path, enum sequences_format format);
void sequences_close(struct sequences *s); /* NULL is allowed */
/* ERR_AGAIN: the next line is not there yet (a pipe). ERR_NOT_FOUND: there is no more. */
enum err sequences_next(struct sequences *s, struct sequence *out);
void sequence_free(struct sequence *q);
/* "line 3 (id 7): "; nothing of one that is of no file. */
void sequence_print_place(const struct sequence *q, FILE *out);

#endif
