/* err: what can go wrong, as few values as callers can act on, and one sentence that says why.
 *
 *     if (size < 8) return err_set(ERR_FORMAT, "%s: %zu bytes, a header has 8", path, size);
 *     ...
 *     if ((e = weights_open(&w, path)) != OK) {
 *         log_error("model_refused", "reason=\"%s\"", err_text());
 *         return e;
 *     }
 *
 * Rules: the place that knows the cause calls err_set once; everyone above returns the code
 * unchanged. A border (request, file, peer) may put its name in front with err_prefix. The text
 * belongs to the thread and lives until its next err_set: copy it before work changes thread.
 * CHECK states the program's own promises and stays on in release; it never depends on input,
 * peers, files, memory or the device. */
#ifndef TANDEM_COMMON_ERR_H
#define TANDEM_COMMON_ERR_H

enum err {
    OK = 0,
    ERR_AGAIN,       /* not yet: ask again when something has happened */
    ERR_MORE,        /* come back with more bytes */
    ERR_FULL,        /* no room: evict, wait or refuse */
    ERR_STALE,       /* the id, ticket or epoch is of an earlier life */
    ERR_DUPLICATE,   /* known already: counted, harmless */
    ERR_STATE,       /* not allowed in this state: the peer's fault */
    ERR_NOT_FOUND,   /* no such file, key, request, node */
    ERR_INVALID,     /* the caller's argument, setting or request is wrong */
    ERR_FORMAT,      /* bytes from a file or a peer are not what they should be */
    ERR_UNSUPPORTED, /* understood, and not offered */
    ERR_MEMORY,      /* an allocation failed */
    ERR_IO,          /* the operating system said no */
    ERR_PEER,        /* the other side is gone */
    ERR_TIMEOUT,     /* a deadline passed */
    ERR_CANCELLED,   /* somebody asked for the end */
    ERR_DEVICE,      /* the accelerator or its plugin failed */
};

#define ERR_TEXT_MAX 512

/* Keeps the formatted text for this thread and returns `e`. */
enum err err_set(enum err e, const char *format, ...) __attribute__((format(printf, 2, 3)));
#ifdef __clang_analyzer__ /* it must see that the value comes back unchanged */
#define err_set(e, ...) (err_set((e), __VA_ARGS__), (e))
#endif
/* Puts "prefix: " in front of this thread's text and returns `e`; does nothing for OK. */
enum err err_prefix(enum err e, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The text of this thread's last err_set, "" if there was none. */
const char *err_text(void);
/* "ERR_FULL" and so on, for logs. */
const char *err_name(enum err e);

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (__builtin_expect(!(cond), 0)) check_failed(#cond, __FILE__, __LINE__);                 \
    } while (0)
__attribute__((noreturn)) void check_failed(const char *cond, const char *file, int line);

#endif
