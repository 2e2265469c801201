#include "client/sequences.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/job.h"
#include "common/mem.h"
#include "common/utf8.h"

struct sequences {
    int fd;
    const char *path;
    bool jsonl, ended;
    char piece[65536]; /* read and not yet looked at: [at, end) */
    size_t at, end;
    uint64_t line, bytes; /* bytes: of the line that is being read */
    struct buf text;      /* of the line, as far as it is here */
};

bool sequences_are_json(const char *path)
{
    static const char end[] = ".jsonl";
    size_t n = strlen(path), m = sizeof end - 1;
    return n >= m && strcmp(path + n - m, end) == 0;
}

enum err sequences_open(struct sequences **out, const char *path, enum sequences_format format)
{
    struct sequences *s = *out = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    s->path = path;
    s->jsonl = format == SEQUENCES_JSONL || (format == SEQUENCES_AUTO && sequences_are_json(path));
    s->fd = strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (s->fd >= 0 && (fstat(s->fd, &about) != 0 || !S_ISDIR(about.st_mode))) return OK;
    enum err e = err_set(ERR_IO, "%s: %s", path, strerror(s->fd < 0 ? errno : EISDIR));
    *out = NULL;
    sequences_close(s);
    return e;
}

void sequences_close(struct sequences *s)
{
    if (!s) return;
    if (s->fd > STDIN_FILENO) close(s->fd);
    buf_fini(&s->text);
    mem_free(s);
}

static enum err fill(struct sequences *s)
{
    struct pollfd p = {s->fd, POLLIN, 0};
    if (poll(&p, 1, 0) <= 0) return ERR_AGAIN; /* nobody has written any yet */
    ssize_t n = read(s->fd, s->piece, sizeof s->piece);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return ERR_AGAIN;
    if (n < 0) return err_set(ERR_IO, "%s: %s", s->path, strerror(errno));
    s->at = 0;
    s->end = (size_t)n;
    s->ended = n == 0;
    return OK;
}

/* Takes what is there of the line; true: all of it is. Of one that is too long nothing more is kept. */
static bool take_piece(struct sequences *s)
{
    const char *from = s->piece + s->at, *eol;
    size_t left = s->end - s->at;
    eol = left > 0 ? memchr(from, '\n', left) : NULL;
    size_t n = eol ? (size_t)(eol - from) : left;
    s->at += n + (eol != NULL);
    s->bytes += n + (eol != NULL);
    if (s->bytes <= SEQUENCE_BYTES_MAX) buf_add(&s->text, from, n);
    return eol || (s->ended && s->bytes > 0);
}

static enum err read_line(struct sequences *s)
{
    enum err e;
    if (s->bytes == 0) buf_clear(&s->text);
    while (!take_piece(s)) {
        if (s->ended) return ERR_NOT_FOUND;
        if ((e = fill(s)) != OK) return e;
    }
    bool too_long = s->bytes > SEQUENCE_BYTES_MAX;
    s->bytes = 0;
    s->line++;
    if (s->text.error != OK) return s->text.error;
    if (too_long) return err_set(ERR_FORMAT, "longer than %d bytes", SEQUENCE_BYTES_MAX);
    if (s->text.size > 0 && s->text.data[s->text.size - 1] == '\r') s->text.size--;
    if (s->line == 1) buf_drop(&s->text, utf8_mark(s->text.data, s->text.size));
    return OK;
}

static enum err take_text(struct sequence *out, const char *text, size_t bytes)
{
    if (!(out->text = mem_new(bytes + 1))) return ERR_MEMORY;
    if (bytes > 0) memcpy(out->text, text, bytes);
    out->count = bytes;
    return OK;
}

static enum err take_tokens(struct sequence *out, const json_t *list)
{
    size_t n = json_array_size(list);
    if (n == 0 || n > JOB_TOKENS_MAX)
        return err_set(ERR_FORMAT, "\"tokens\" has %zu ids, allowed is 1 to %d", n, JOB_TOKENS_MAX);
    if (!(out->tokens = mem_array(n, sizeof *out->tokens))) return ERR_MEMORY;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(list, i);
        json_int_t v = json_integer_value(id);
        if (!json_is_integer(id) || v < 0 || v > UINT32_MAX)
            return err_set(ERR_FORMAT, "entry %zu of \"tokens\" is no token id", i);
        out->tokens[i] = (uint32_t)v;
    }
    out->count = n;
    return OK;
}

/* So that whoever has the file finds its results by it. */
static enum err take_id(struct sequence *out, const json_t *id)
{
    if (!id || json_is_null(id)) return OK;
    if (!json_is_string(id) && !json_is_number(id))
        return err_set(ERR_FORMAT, "\"id\" is neither a string nor a number");
    size_t n = json_dumpb(id, NULL, 0, JSON_ENCODE_ANY);
    if (n == 0 || !(out->id = mem_new(n + 1))) return ERR_MEMORY;
    json_dumpb(id, out->id, n, JSON_ENCODE_ANY);
    return OK;
}

static enum err take_prompt(struct sequence *out, const json_t *o)
{
    const json_t *prompt = json_object_get(o, "prompt"), *tokens = json_object_get(o, "tokens");
    if (json_is_string(prompt) && !tokens)
        return take_text(out, json_string_value(prompt), json_string_length(prompt));
    if (json_is_array(tokens) && !prompt) return take_tokens(out, tokens);
    return err_set(ERR_FORMAT,
                   "give \"prompt\" as a string or \"tokens\" as an array, one of them");
}

static enum err take_json(const struct sequences *s, struct sequence *out)
{
    json_error_t why;
    const char *text = s->text.data ? s->text.data : "";
    if (strspn(text, " \t\r") >= s->text.size) return take_text(out, "", 0);
    json_t *o = json_loadb(text, s->text.size, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
    enum err e = OK;
    if (!json_is_object(o))
        e = err_set(ERR_FORMAT, "no JSON object: %s", o ? "another value" : why.text);
    if (e == OK) e = take_id(out, json_object_get(o, "id"));
    if (e == OK) e = take_prompt(out, o);
    json_decref(o);
    return e;
}

static void drop_prompt(struct sequence *q)
{
    mem_free(q->text);
    mem_free(q->tokens);
    q->text = NULL;
    q->tokens = NULL;
}

enum err sequences_next(struct sequences *s, struct sequence *out)
{
    *out = (struct sequence){0};
    enum err e = read_line(s);
    if (e == OK) e = s->jsonl ? take_json(s, out) : take_text(out, s->text.data, s->text.size);
    if (e == OK || e == ERR_FORMAT) out->line = s->line;
    if (e == OK) return OK;
    drop_prompt(out);
    if (e != ERR_FORMAT) sequence_free(out);
    return e;
}

void sequence_free(struct sequence *q)
{
    drop_prompt(q);
    mem_free(q->id);
    *q = (struct sequence){0};
}

void sequence_print_place(const struct sequence *q, FILE *out)
{
    if (q->line) fprintf(out, "line %" PRIu64, q->line);
    if (q->id) fprintf(out, " (id %s)", q->id);
    if (q->line) fprintf(out, ": ");
}
