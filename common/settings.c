#include "common/settings.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "common/file.h"

#define NAME_BYTES_MAX 64

/* Of a config file. `shared`: by all verbs of the command. */
static const struct section {
    const char *name;
    bool shared;
} sections[] = {{"router", false}, {"prefill", false}, {"decode", false}, {"tandem", true}};

/* Those of every program, whoever has them. */
static const char *const every_name[] = {
#include "common/setting_names.h"
};

/* A row with the table it is in and its number over all tables. */
struct place {
    const struct setting *row;
    const struct settings_table *table;
    size_t number;
};

static bool place_of(const struct settings_program *program, const char *name, size_t length,
                     struct place *place)
{
    *place = (struct place){0};
    for (size_t t = 0; t < program->tables_count; t++) {
        place->table = &program->tables[t];
        for (size_t r = 0; r < place->table->rows_count; r++, place->number++) {
            place->row = &place->table->rows[r];
            if (strlen(place->row->name) == length && memcmp(place->row->name, name, length) == 0)
                return true;
        }
    }
    return false;
}

static enum err set(struct settings *s, const struct place *p, const char *where, const char *text,
                    enum setting_source source)
{
    /* A stronger source starts a list anew. */
    if (p->row->type == SETTING_TYPE_LIST && s->sources[p->number] != source)
        setting_clear(p->row, p->table->values);
    s->sources[p->number] = (unsigned char)source;
    return setting_parse(p->row, where, text, p->table->values, &s->arena);
}

static enum err read_defaults(struct settings *s)
{
    struct place p = {0};
    for (size_t t = 0; t < s->program->tables_count; t++) {
        p.table = &s->program->tables[t];
        for (size_t r = 0; r < p.table->rows_count; r++, p.number++) {
            p.row = &p.table->rows[r];
            setting_clear(p.row, p.table->values);
            if (!p.row->fallback) continue;
            enum err e = set(s, &p, p.row->name, p.row->fallback, SETTING_BY_DEFAULT);
            if (e != OK) return e;
        }
    }
    return OK;
}

/* ---- the config file ---- */

struct config {
    struct settings *s;
    yaml_document_t document;
    const yaml_node_t *own;        /* the program's section; NULL: not seen */
    const struct section *section; /* that is being read; NULL: the top level */
};

static enum err set_from_node(struct config *c, const struct place *p, const char *where,
                              const yaml_node_t *value)
{
    if (value->type == YAML_SCALAR_NODE)
        return set(c->s, p, where, (const char *)value->data.scalar.value, SETTING_BY_FILE);
    if (value->type != YAML_SEQUENCE_NODE || p->row->type != SETTING_TYPE_LIST)
        return err_set(ERR_INVALID, "%s: one value is expected here", where);
    const yaml_node_item_t *item = value->data.sequence.items.start;
    for (; item < value->data.sequence.items.top; item++) {
        const yaml_node_t *node = yaml_document_get_node(&c->document, *item);
        if (!node || node->type != YAML_SCALAR_NODE)
            return err_set(ERR_INVALID, "%s: a list of texts is expected here", where);
        enum err e = set(c->s, p, where, (const char *)node->data.scalar.value, SETTING_BY_FILE);
        if (e != OK) return e;
    }
    return OK;
}

static const struct section *section_of(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(sections); i++)
        if (strcmp(name, sections[i].name) == 0) return &sections[i];
    return NULL;
}

/* What another program has, where others read too. */
static bool is_for_others(const struct config *c, const char *name)
{
    if (c->section && !c->section->shared) return false;
    for (size_t i = 0; i < COUNT_OF(every_name); i++)
        if (strcmp(name, every_name[i]) == 0) return true;
    return false;
}

/* Those before it are all different, and names of settings: few. */
static bool stands_twice(struct config *c, const yaml_node_t *mapping, const yaml_node_pair_t *pair)
{
    const yaml_node_t *key = yaml_document_get_node(&c->document, pair->key);
    for (const yaml_node_pair_t *p = mapping->data.mapping.pairs.start; p < pair; p++) {
        const yaml_node_t *before = yaml_document_get_node(&c->document, p->key);
        if (strcmp((char *)before->data.scalar.value, (char *)key->data.scalar.value) == 0)
            return true;
    }
    return false;
}

static enum err read_pair(struct config *c, const yaml_node_t *mapping,
                          const yaml_node_pair_t *pair)
{
    const yaml_node_t *key = yaml_document_get_node(&c->document, pair->key);
    const yaml_node_t *value = yaml_document_get_node(&c->document, pair->value);
    char where[NAME_BYTES_MAX + 300];
    struct place p;
    if (!key || !value || key->type != YAML_SCALAR_NODE)
        return err_set(ERR_INVALID, "%s: a setting's name is expected", c->s->config_path);
    const char *name = (const char *)key->data.scalar.value;
    snprintf(where, sizeof where, "%.280s:%zu: %.*s", c->s->config_path, key->start_mark.line + 1,
             NAME_BYTES_MAX, name);
    if (stands_twice(c, mapping, pair)) return err_set(ERR_INVALID, "%s: it stands twice", where);
    if (!c->section && value->type == YAML_MAPPING_NODE && section_of(name)) {
        if (strcmp(name, c->s->program->section) == 0) c->own = value;
        return OK;
    }
    if (!place_of(c->s->program, name, strlen(name), &p)) {
        if (is_for_others(c, name)) return OK;
        return err_set(ERR_INVALID, "%s: no such setting; see %s --help", where,
                       c->s->program->name);
    }
    return set_from_node(c, &p, where, value);
}

static enum err read_mapping(struct config *c, const yaml_node_t *mapping)
{
    const yaml_node_pair_t *pair = mapping->data.mapping.pairs.start;
    for (; pair < mapping->data.mapping.pairs.top; pair++) {
        enum err e = read_pair(c, mapping, pair);
        if (e != OK) return e;
    }
    return OK;
}

static enum err read_document(struct settings *s, yaml_parser_t *parser)
{
    struct config c = {.s = s};
    enum err e = OK;
    if (!yaml_parser_load(parser, &c.document))
        return err_set(ERR_FORMAT, "%s:%zu: %s", s->config_path, parser->problem_mark.line + 1,
                       parser->problem ? parser->problem : "not YAML");
    const yaml_node_t *root = yaml_document_get_root_node(&c.document);
    bool empty = !root || (root->type == YAML_SCALAR_NODE && root->data.scalar.length == 0);
    if (root && root->type == YAML_MAPPING_NODE) {
        e = read_mapping(&c, root);
        c.section = section_of(s->program->section);
        if (e == OK && c.own) e = read_mapping(&c, c.own);
    } else if (!empty) {
        e = err_set(ERR_FORMAT, "%s: not a mapping of settings", s->config_path);
    }
    yaml_document_delete(&c.document);
    return e;
}

static enum err read_file(struct settings *s)
{
    struct file_map map;
    yaml_parser_t parser;
    enum err e = file_map_open(&map, s->config_path);
    if (e != OK) return e;
    if (map.size_bytes > SETTING_FILE_BYTES_MAX) {
        e = err_set(ERR_FORMAT, "%s: %zu bytes, a config file has at most %d", s->config_path,
                    map.size_bytes, SETTING_FILE_BYTES_MAX);
    } else if (!yaml_parser_initialize(&parser)) {
        e = err_set(ERR_MEMORY, "%s: out of memory", s->config_path);
    } else {
        yaml_parser_set_input_string(&parser, map.data, map.size_bytes);
        e = read_document(s, &parser);
        yaml_parser_delete(&parser);
    }
    file_map_close(&map);
    return e;
}

/* ---- the environment ---- */

static void environment_name(const char *name, char out[NAME_BYTES_MAX + 8])
{
    int n = snprintf(out, NAME_BYTES_MAX + 8, "TANDEM_%s", name);
    for (int i = 0; i < n && i < NAME_BYTES_MAX + 7; i++)
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
}

static enum err read_environment(struct settings *s)
{
    struct place p = {0};
    char name[NAME_BYTES_MAX + 8];
    for (size_t t = 0; t < s->program->tables_count; t++) {
        p.table = &s->program->tables[t];
        for (size_t r = 0; r < p.table->rows_count; r++, p.number++) {
            p.row = &p.table->rows[r];
            environment_name(p.row->name, name);
            const char *text = getenv(name);
            if (!text) continue;
            enum err e = set(s, &p, name, text, SETTING_BY_ENVIRONMENT);
            if (e != OK) return e;
        }
    }
    return OK;
}

/* ---- the arguments ---- */

/* "--name=value", "--name value", "--flag", "--no-flag" at argv[*at]; moves *at to what it used. */
static enum err read_argument(struct settings *s, int argc, char **argv, int *at)
{
    const char *name = argv[*at] + 2, *equals = strchr(name, '=');
    const char *value = equals ? equals + 1 : NULL;
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    char where[NAME_BYTES_MAX + 3];
    struct place p;
    snprintf(where, sizeof where, "--%.*s",
             (int)(length < NAME_BYTES_MAX ? length : NAME_BYTES_MAX), name);
    bool found = place_of(s->program, name, length, &p);
    if (!found && !value && length > 3 && memcmp(name, "no-", 3) == 0 &&
        place_of(s->program, name + 3, length - 3, &p) && p.row->type == SETTING_TYPE_BOOL)
        return set(s, &p, where, "false", SETTING_BY_ARGUMENT);
    if (!found)
        return err_set(ERR_INVALID, "%s: no such setting; see %s --help", where, s->program->name);
    if (!value && p.row->type == SETTING_TYPE_BOOL) value = "true";
    if (!value && *at + 1 < argc) value = argv[++*at];
    if (!value) return err_set(ERR_INVALID, "%s: its value is missing", where);
    return set(s, &p, where, value, SETTING_BY_ARGUMENT);
}

static enum err read_arguments(struct settings *s, int argc, char **argv)
{
    bool rest = false; /* behind "--" nothing is a setting */
    for (int i = 1; i < argc; i++) {
        if (rest || argv[i][0] != '-' || argv[i][1] == '\0') {
            s->args[s->args_count++] = argv[i];
        } else if (strcmp(argv[i], "--") == 0) {
            rest = true;
        } else if (argv[i][1] != '-') {
            return err_set(ERR_INVALID, "%.64s: no such setting; see %s --help", argv[i],
                           s->program->name);
        } else if (s->program->section && strncmp(argv[i], "--config", 8) == 0 &&
                   (argv[i][8] == '\0' || argv[i][8] == '=')) {
            i += argv[i][8] == '\0'; /* read by find_config */
        } else {
            enum err e = read_argument(s, argc, argv, &i);
            if (e != OK) return e;
        }
    }
    if (s->args_count < s->program->args_min)
        return err_set(ERR_INVALID, "%s is missing", s->program->args);
    if (s->args_count > s->program->args_max)
        return err_set(ERR_INVALID, "\"%.64s\" is too much; see %s --help",
                       s->args[s->program->args_max], s->program->name);
    return OK;
}

/* --help and --version win over whatever else is there; --config is needed before the other arguments. */
static enum err look_ahead(struct settings *s, int argc, char **argv)
{
    if (s->program->section) s->config_path = getenv("TANDEM_CONFIG");
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) s->help = true;
        if (strcmp(argv[i], "--help-markdown") == 0) s->help_markdown = true;
        if (strcmp(argv[i], "--version") == 0) s->version = true;
        if (!s->program->section) continue;
        if (strncmp(argv[i], "--config=", 9) == 0) s->config_path = argv[i] + 9;
        if (strcmp(argv[i], "--config") != 0) continue;
        if (i + 1 == argc) return err_set(ERR_INVALID, "--config: its value is missing");
        s->config_path = argv[++i];
    }
    return OK;
}

enum err settings_read(struct settings *s, const struct settings_program *program, int argc,
                       char **argv)
{
    size_t rows_count = 0;
    enum err e;
    *s = (struct settings){.program = program};
    for (size_t t = 0; t < program->tables_count; t++)
        rows_count += program->tables[t].rows_count;
    s->sources = arena_take(&s->arena, rows_count + 1);
    s->args = arena_take(&s->arena, ((size_t)argc + 1) * sizeof *s->args);
    if (!s->sources || !s->args) {
        e = ERR_MEMORY;
        goto fail;
    }
    if ((e = look_ahead(s, argc, argv)) != OK) goto fail;
    if (s->help || s->help_markdown || s->version) return OK;
    if ((e = read_defaults(s)) != OK) goto fail;
    if (s->config_path && (e = read_file(s)) != OK) goto fail;
    if ((e = read_environment(s)) != OK) goto fail;
    if ((e = read_arguments(s, argc, argv)) != OK) goto fail;
    return OK;
fail:
    settings_fini(s);
    return e;
}

void settings_fini(struct settings *s)
{
    arena_fini(&s->arena);
    *s = (struct settings){0};
}

enum setting_source settings_source(const struct settings *s, const char *name)
{
    struct place p;
    CHECK(place_of(s->program, name, strlen(name), &p));
    return (enum setting_source)s->sources[p.number];
}

bool settings_main(struct settings *s, const struct settings_program *program, int argc,
                   char **argv, int *status)
{
    file_keep_standard();
    if (settings_read(s, program, argc, argv) != OK) {
        fprintf(stderr, "%s: %s\n", program->name, err_text());
        *status = 2;
        return false;
    }
    if (!s->help && !s->help_markdown && !s->version) return true;
    struct buf out = {0};
    if (s->help)
        settings_help(program, &out);
    else if (s->help_markdown)
        settings_markdown(program, &out);
    else
        buf_printf(&out, "%s %s\n", program->name, TANDEM_VERSION);
    bool written = fwrite(out.data, 1, out.size, stdout) == out.size && fflush(stdout) == 0;
    *status = out.error == OK && written ? 0 : 1;
    buf_fini(&out);
    settings_fini(s);
    return false;
}

/* ---- help ---- */

static const char *type_word(enum setting_type type)
{
    static const char *const words[] = {"",       "N",    "SIZE",   "TIME",
                                        "NUMBER", "TEXT", "CHOICE", "TEXT"};
    return words[type];
}

static void help_row(const struct setting *row, struct buf *out)
{
    char left[NAME_BYTES_MAX + 16], range[128];
    bool on = row->type == SETTING_TYPE_BOOL && row->fallback && strcmp(row->fallback, "true") == 0;
    snprintf(left, sizeof left, "--%s%s %s", on ? "[no-]" : "", row->name, type_word(row->type));
    buf_printf(out, "  %-28s %s", left, row->help);
    setting_range(row, range, sizeof range);
    bool text = row->type == SETTING_TYPE_STRING || row->type == SETTING_TYPE_BOOL;
    if (!text) buf_printf(out, " (%s", row->type == SETTING_TYPE_LIST ? "repeatable" : range);
    if (row->fallback && row->fallback[0])
        buf_printf(out, "%sdefault %s", text ? " (" : "; ", row->fallback);
    if (!text || (row->fallback && row->fallback[0])) buf_add_string(out, ")");
    buf_add_string(out, "\n");
}

void settings_help(const struct settings_program *program, struct buf *out)
{
    buf_printf(out, "%s [SETTING...]%s%s\n\n%s\n\n", program->name, program->args ? " " : "",
               program->args ? program->args : "", program->about);
    for (size_t t = 0; t < program->tables_count; t++)
        for (size_t r = 0; r < program->tables[t].rows_count; r++)
            help_row(&program->tables[t].rows[r], out);
    if (program->section)
        buf_printf(out, "  %-28s %s\n", "--config FILE", "settings as YAML, name: value");
    buf_printf(out, "  %-28s %s\n", "--help", "this text");
    buf_printf(out, "  %-28s %s\n", "--version", "which tandem this is");
    buf_add_string(out, "\nEach may also come from the environment, --some-name as "
                        "TANDEM_SOME_NAME. Arguments win over\nthe environment, the environment "
                        "over the config file.\n");
}

static void markdown_cell(struct buf *out, const char *text)
{
    for (; *text; text++)
        buf_printf(out, *text == '|' ? "\\%c" : "%c", *text);
}

static void markdown_row(const struct setting *row, struct buf *out)
{
    char range[128];
    setting_range(row, range, sizeof range);
    buf_printf(out, "| `%s` | ", row->name);
    markdown_cell(out, range);
    buf_add_string(out, " | ");
    if (row->fallback && row->fallback[0]) {
        buf_add_string(out, "`");
        markdown_cell(out, row->fallback);
        buf_add_string(out, "`");
    }
    buf_add_string(out, " | ");
    markdown_cell(out, row->help);
    buf_add_string(out, " |\n");
}

void settings_markdown(const struct settings_program *program, struct buf *out)
{
    buf_printf(out, "## %s\n\n%s\n\n", program->name, program->about);
    buf_add_string(out, "| setting | range | default | meaning |\n| --- | --- | --- | --- |\n");
    for (size_t t = 0; t < program->tables_count; t++)
        for (size_t r = 0; r < program->tables[t].rows_count; r++)
            markdown_row(&program->tables[t].rows[r], out);
    if (program->section)
        buf_add_string(out, "| `config` | text |  | settings as YAML, name: value |\n");
}
