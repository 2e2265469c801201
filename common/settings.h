/* settings: one table of names, types, ranges, defaults and help, filled into a plain struct from the
 * config file (YAML), then TANDEM_NAME, then --name. Help and docs/settings.md come from the table.
 *
 *     struct node_options { const char *listen; int64_t chunk_tokens; uint64_t heartbeat_ns; bool drain; };
 *     static const struct setting rows[] = {
 *         SETTING_STRING(struct node_options, listen, "listen", "tcp://127.0.0.1:5701", "address for nodes"),
 *         SETTING_INT(struct node_options, chunk_tokens, "chunk-tokens", "512", 1, 8192, "tokens of a step"),
 *         SETTING_DURATION(struct node_options, heartbeat_ns, "heartbeat", "200ms", NS_PER_MS, NS_PER_S, "..."),
 *     };
 *     struct node_options o;
 *     const struct settings_table tables[] = {{rows, COUNT_OF(rows), &o}};
 *     const struct settings_program program = {
 *         .name = "tandem-prefill", .about = "computes KV caches", .section = "prefill",
 *         .tables = tables, .tables_count = 1};
 *     struct settings s;
 *     int status;
 *     if (!settings_main(&s, &program, argc, argv, &status)) return status;   // help: 0, wrong use: 2
 *     ... s.args[0 .. s.args_count) ...
 *     settings_fini(&s);                           // strings in the struct are gone after this
 *
 * Rules: a later source wins; a list is replaced, not extended, by a later source, and each --name
 * adds one item. Everything wrong is ERR_INVALID (a file: also ERR_NOT_FOUND, ERR_IO, ERR_FORMAT) with a
 * text that names the setting, where it stood, its value and what is allowed. Flags may stand as --name,
 * --name=value, --no-name. A config file's top level holds settings, and mappings named like a section
 * (router:, prefill:, decode:, tandem:) whose settings only that program reads, and which count more. At the top
 * level, and in tandem:, which all verbs read, a program passes over what it has not but another one has.
 * Owner: one thread, before others start. */
#ifndef TANDEM_COMMON_SETTINGS_H
#define TANDEM_COMMON_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/mem.h"

enum setting_type {
    SETTING_TYPE_BOOL,
    SETTING_TYPE_INT,
    SETTING_TYPE_SIZE,     /* bytes: 4096, 64K, 64KiB, 1.5G; powers of 1024 */
    SETTING_TYPE_DURATION, /* ns: 20us, 200ms, 1.5s, 2m, 1h */
    SETTING_TYPE_DOUBLE,
    SETTING_TYPE_STRING,
    SETTING_TYPE_CHOICE, /* index into "a|b|c" */
    SETTING_TYPE_LIST,
};

enum { SETTING_LIST_MAX = 64, SETTING_FILE_BYTES_MAX = 1 << 20 };

struct setting_list {
    const char **item;
    size_t count;
};

/* Made with the macros below, which check the field's type. */
struct setting {
    const char *name;
    enum setting_type type;
    size_t offset;        /* of the field */
    const char *fallback; /* the default, as it would be typed; NULL: zero */
    double min, max;      /* of numbers, sizes and durations; exact up to 2^53 */
    const char *choices;  /* "a|b|c" */
    const char *help;
};

#define SETTING_FIELD(s, f, type) offsetof(s, f) + 0 * _Generic(((s *)0)->f, type : 0)
#define SETTING_BOOL(s, f, name, fallback, help)                                                   \
    {                                                                                              \
        name, SETTING_TYPE_BOOL, SETTING_FIELD(s, f, bool), fallback, 0, 0, NULL, help             \
    }
#define SETTING_INT(s, f, name, fallback, min, max, help)                                          \
    {                                                                                              \
        name, SETTING_TYPE_INT, SETTING_FIELD(s, f, int64_t), fallback, (double)(min),             \
            (double)(max), NULL, help                                                              \
    }
#define SETTING_SIZE(s, f, name, fallback, min, max, help)                                         \
    {                                                                                              \
        name, SETTING_TYPE_SIZE, SETTING_FIELD(s, f, uint64_t), fallback, (double)(min),           \
            (double)(max), NULL, help                                                              \
    }
#define SETTING_DURATION(s, f, name, fallback, min, max, help)                                     \
    {                                                                                              \
        name, SETTING_TYPE_DURATION, SETTING_FIELD(s, f, uint64_t), fallback, (double)(min),       \
            (double)(max), NULL, help                                                              \
    }
#define SETTING_DOUBLE(s, f, name, fallback, min, max, help)                                       \
    {                                                                                              \
        name, SETTING_TYPE_DOUBLE, SETTING_FIELD(s, f, double), fallback, (double)(min),           \
            (double)(max), NULL, help                                                              \
    }
#define SETTING_STRING(s, f, name, fallback, help)                                                 \
    {                                                                                              \
        name, SETTING_TYPE_STRING, SETTING_FIELD(s, f, const char *), fallback, 0, 0, NULL, help   \
    }
#define SETTING_CHOICE(s, f, name, choices, fallback, help)                                        \
    {                                                                                              \
        name, SETTING_TYPE_CHOICE, SETTING_FIELD(s, f, int), fallback, 0, 0, choices, help         \
    }
#define SETTING_LIST(s, f, name, help)                                                             \
    {                                                                                              \
        name, SETTING_TYPE_LIST, SETTING_FIELD(s, f, struct setting_list), NULL, 0, 0, NULL, help  \
    }

struct settings_table {
    const struct setting *rows;
    size_t rows_count;
    void *values; /* the struct that the rows' fields are in */
};

struct settings_program {
    const char *name;    /* as typed: "tandem generate" */
    const char *args;    /* in the usage line: "[PROMPT|-]"; NULL: none */
    const char *about;   /* one or two sentences */
    const char *section; /* of the config file; NULL: no --config */
    size_t args_min, args_max;
    const struct settings_table *tables;
    size_t tables_count;
};

enum setting_source {
    SETTING_BY_DEFAULT,
    SETTING_BY_FILE,
    SETTING_BY_ENVIRONMENT,
    SETTING_BY_ARGUMENT
};

struct settings {
    const struct settings_program *program;
    const char **args; /* what is no setting, in order */
    size_t args_count;
    bool help, help_markdown, version; /* asked for; then nothing else was checked */
    /* private */
    unsigned char *sources; /* enum setting_source of each row of each table */
    const char *config_path;
    struct arena arena;
};

/* Fills the tables' structs. argv[0] is skipped. After an error, s needs no settings_fini. */
enum err settings_read(struct settings *s, const struct settings_program *program, int argc,
                       char **argv);
void settings_fini(struct settings *s);
/* settings_read for main(): prints help to stdout or the error to stderr. False: leave with *status. */
bool settings_main(struct settings *s, const struct settings_program *program, int argc,
                   char **argv, int *status);
/* Where a setting's value came from. The name must be in a table. */
enum setting_source settings_source(const struct settings *s, const char *name);

void settings_help(const struct settings_program *program, struct buf *out);
void settings_markdown(const struct settings_program *program, struct buf *out);

/* Zero, NULL or false in the row's field. */
void setting_clear(const struct setting *row, void *values);
/* One value from text into the field of a row; `where` is how errors call it, "--chunk-tokens". */
enum err setting_parse(const struct setting *row, const char *where, const char *text, void *values,
                       struct arena *strings);
/* "1 ... 8192", "shm|tcp", "true|false"; for help and errors. */
void setting_range(const struct setting *row, char *out, size_t out_bytes);

#endif
