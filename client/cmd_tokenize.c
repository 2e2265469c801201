/* tandem tokenize, detokenize: a model's tokenizer at work, without a cluster. */
#include <stdio.h>
#include <unistd.h>

#include "client/cmd.h"
#include "text/tokenizer.h"

struct options {
    const char *model;
    bool special, json;
};

static const struct setting rows[] = {
    SETTING_STRING(struct options, model, "model", NULL, "model directory (tokenizer.json)"),
    SETTING_BOOL(
        struct options, special, "special", "true",
        "tokenize: add what the model expects around a text, such as BOS; detokenize: show "
        "special tokens"),
    SETTING_BOOL(struct options, json, "json", "false",
                 "print a JSON array of ids, or a JSON string"),
};

typedef enum err convert_fn(const struct tokenizer *t, const struct options *o,
                            const struct buf *in, struct buf *out);

static enum err to_ids(const struct tokenizer *t, const struct options *o, const struct buf *in,
                       struct buf *out)
{
    uint32_t *ids;
    size_t count;
    enum err e = tokenizer_encode(t, in->data, in->size, o->special ? TOKENIZER_ADD_SPECIAL : 0,
                                  &ids, &count);
    if (e != OK) return e;
    if (o->json) buf_add_string(out, "[");
    for (size_t i = 0; i < count; i++)
        buf_printf(out, "%s%u", i == 0 ? "" : o->json ? "," : " ", ids[i]);
    buf_add_string(out, o->json ? "]\n" : "\n");
    mem_free(ids);
    return out->error;
}

/* No error: a model's vocabulary may be padded beyond its tokenizer's, and say such an id. */
static void warn_unknown(const struct tokenizer *t, const uint32_t *ids, size_t count)
{
    uint32_t end = tokenizer_ids_end(t);
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= end) {
            fprintf(stderr, "tandem detokenize: token id %u has no text: the last id is %u\n",
                    ids[i], end - 1);
            return;
        }
}

static enum err to_text(const struct tokenizer *t, const struct options *o, const struct buf *in,
                        struct buf *out)
{
    uint32_t *ids;
    size_t count, length;
    char *text;
    enum err e = cmd_parse_ids(in->data, &ids, &count);
    if (e != OK) return e;
    warn_unknown(t, ids, count);
    e = tokenizer_decode(t, ids, count, o->special ? 0 : TOKENIZER_SKIP_SPECIAL, &text, &length);
    mem_free(ids);
    if (e != OK) return e;
    if (o->json) {
        buf_json_string(out, text, length);
        buf_add_string(out, "\n");
    } else {
        buf_add(out, text, length); /* nothing else, so that it can be compared */
        if (isatty(STDOUT_FILENO)) buf_add_string(out, "\n");
    }
    mem_free(text);
    return out->error;
}

static int convert(const struct settings *s, const struct options *o, convert_fn *fn)
{
    struct tokenizer *t = NULL;
    struct buf in = {0}, out = {0};
    enum err e = tokenizer_open(&t, o->model);
    for (size_t i = 0; i < s->args_count && e == OK; i++) {
        if (i) buf_add_string(&in, " ");
        e = cmd_read_text(s->args[i], &in);
    }
    if (e == OK && s->args_count == 0) e = cmd_read_text("-", &in);
    if (e == OK) e = fn(t, o, &in, &out);
    if (e == OK) fwrite(out.data, 1, out.size, stdout);
    if (e != OK) fprintf(stderr, "%s: %s\n", s->program->name, err_text());
    buf_fini(&in);
    buf_fini(&out);
    tokenizer_close(t);
    if (e == ERR_INVALID && s->args_count > 0) return CMD_USAGE;
    return e == OK ? CMD_DONE : CMD_FAILED;
}

static int run(int argc, char **argv, const char *name, const char *about, const char *args,
               convert_fn *fn)
{
    struct options o = {0};
    const struct settings_table own = {rows, COUNT_OF(rows), &o};
    const struct settings_program verb = {
        .name = name, .args = args, .about = about, .args_max = SIZE_MAX};
    struct settings s;
    int code;
    if (!cmd_settings(&s, &verb, &own, NULL, argc, argv, &code)) return code;
    if (!o.model) {
        fprintf(stderr, "%s: --model DIR is missing: a directory with a tokenizer.json\n", name);
        code = CMD_USAGE;
    } else {
        code = convert(&s, &o, fn);
    }
    settings_fini(&s);
    return code;
}

int cmd_tokenize(int argc, char **argv)
{
    return run(argc, argv, "tandem tokenize",
               "Token ids of a text; - or nothing reads it from stdin.", "[TEXT...|-]", to_ids);
}

int cmd_detokenize(int argc, char **argv)
{
    return run(argc, argv, "tandem detokenize",
               "The text of token ids, separated by blanks or as a JSON array; - or nothing reads "
               "them from stdin.",
               "[IDS...|-]", to_text);
}
