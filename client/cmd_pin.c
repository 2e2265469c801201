/* tandem pin, unpin, pins: prompts that stay cached under a name. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "client/cmd.h"
#include "client/show.h"
#include "common/file.h"
#include "common/mem.h"
#include "common/utf8.h"

struct options {
    const char *tenant, *text, *tokens;
    bool json;
};

static const struct setting pin_rows[] = {
    SETTING_STRING(struct options, tenant, "tenant", "", "whose requests find it"),
    SETTING_STRING(struct options, text, "text", NULL, "the prompt itself, in place of FILE"),
    SETTING_STRING(struct options, tokens, "tokens", NULL,
                   "its token ids: 1,2,3; in place of FILE"),
    SETTING_BOOL(struct options, json, "json", "false", "print the router's answer as it is"),
};
static const struct setting unpin_rows[] = {
    SETTING_STRING(struct options, tenant, "tenant", "", "whose it is"),
    SETTING_BOOL(struct options, json, "json", "false", "print the router's answer as it is"),
};
static const struct setting pins_rows[] = {
    SETTING_BOOL(struct options, json, "json", "false", "print the list as JSON"),
};

/* What is asked, with what it points to. */
struct question {
    struct tandem_pin pin;
    bool remove;
};
static struct question question; /* one a process: cmd_ask hands on a name only */

static enum tandem_status ask(struct tandem *t, const char *name, tandem_answer_fn *fn, void *ctx)
{
    question.pin.name = name;
    if (question.remove) return tandem_unpin(t, name, question.pin.tenant, fn, ctx);
    return tandem_pin(t, &question.pin, fn, ctx);
}

static enum err read_prompt(const struct options *o, const char *file, struct buf *text,
                            uint32_t **ids)
{
    struct file_map map;
    enum err e;
    if ((file != NULL) + (o->text != NULL) + (o->tokens != NULL) != 1)
        return err_set(ERR_INVALID, "give the prompt once: FILE, - for stdin, --text or --tokens");
    if (o->tokens) return cmd_parse_ids(o->tokens, ids, &question.pin.tokens_count);
    if (o->text || strcmp(file, "-") == 0) return cmd_read_text(o->text ? o->text : "-", text);
    if ((e = file_map_open(&map, file)) != OK) return e;
    size_t mark = utf8_mark(map.data, map.size_bytes);
    e = buf_add(text, map.data + mark, map.size_bytes - mark);
    file_map_close(&map);
    return e;
}

int cmd_pin(int argc, char **argv)
{
    struct options o = {0};
    struct cmd_router router;
    const struct settings_table own = {pin_rows, COUNT_OF(pin_rows), &o};
    const struct settings_program about = {
        .name = "tandem pin",
        .args = "NAME [FILE|-]",
        .about = "Has all nodes compute a prompt once and keep its KV cached until tandem unpin: a "
                 "system prompt, say. Another one of that name takes its place.",
        .args_min = 1,
        .args_max = 2};
    struct settings s;
    struct buf text = {0}, answer = {0};
    json_t *json;
    uint32_t *ids = NULL;
    int status;
    if (!cmd_settings(&s, &about, &own, &router, argc, argv, &status)) return status;
    enum err e = read_prompt(&o, s.args_count > 1 ? s.args[1] : NULL, &text, &ids);
    question.pin.tenant = o.tenant;
    question.pin.text = text.data;
    question.pin.text_bytes = text.size;
    question.pin.tokens = ids;
    if (e != OK) {
        fprintf(stderr, "tandem pin: %s\n", err_text());
        status = e == ERR_INVALID ? CMD_USAGE : CMD_FAILED;
    } else {
        status = cmd_ask("pin", &router, ask, s.args[0], &answer, &json);
        if (status == CMD_DONE && o.json)
            printf("%s\n", answer.data);
        else if (status == CMD_DONE)
            printf("%s: %lld tokens, %lld blocks; %lld nodes were asked, tandem pins tells what "
                   "they hold\n",
                   s.args[0], show_count(json, "tokens"), show_count(json, "blocks"),
                   show_count(json, "nodes"));
        json_decref(json);
    }
    mem_free(ids);
    buf_fini(&text);
    buf_fini(&answer);
    settings_fini(&s);
    return status;
}

int cmd_unpin(int argc, char **argv)
{
    struct options o = {0};
    struct cmd_router router;
    const struct settings_table own = {unpin_rows, COUNT_OF(unpin_rows), &o};
    const struct settings_program about = {.name = "tandem unpin",
                                           .args = "NAME",
                                           .about = "Lets go of a prompt that was pinned.",
                                           .args_min = 1,
                                           .args_max = 1};
    struct settings s;
    struct buf answer = {0};
    json_t *json;
    int status;
    if (!cmd_settings(&s, &about, &own, &router, argc, argv, &status)) return status;
    question.remove = true;
    question.pin.tenant = o.tenant;
    status = cmd_ask("unpin", &router, ask, s.args[0], &answer, &json);
    if (status == CMD_DONE && o.json) printf("%s\n", answer.data);
    json_decref(json);
    buf_fini(&answer);
    settings_fini(&s);
    return status;
}

/* "sys          tenant a  1200 tokens  75 blocks  p0 75  p1 75  d0 12" */
static void show_pin(json_t *pin)
{
    size_t i;
    json_t *node;
    const char *tenant = show_text(pin, "tenant");
    printf("%-16s%s%s  %lld tokens  %lld blocks", show_text(pin, "name"),
           tenant[0] ? "  tenant " : "", tenant, show_count(pin, "tokens"),
           show_count(pin, "blocks"));
    json_array_foreach(json_object_get(pin, "nodes"), i, node)
        printf("  %s %lld", show_text(node, "node"), show_count(node, "blocks"));
    putchar('\n');
}

int cmd_pins(int argc, char **argv)
{
    struct options o = {0};
    struct cmd_router router;
    const struct settings_table own = {pins_rows, COUNT_OF(pins_rows), &o};
    const struct settings_program about = {
        .name = "tandem pins",
        .about = "The prompts that are pinned, and how many blocks of each the nodes hold."};
    struct settings s;
    struct buf answer = {0};
    size_t i;
    json_t *json, *pin;
    int status;
    if (!cmd_settings(&s, &about, &own, &router, argc, argv, &status)) return status;
    status = cmd_ask("pins", &router, cmd_question_status, "", &answer, &json);
    json_t *pins = json_object_get(json, "pins");
    if (status == CMD_DONE && json_array_size(pins) == 0)
        puts(o.json ? "[]" : "nothing is pinned");
    else if (status == CMD_DONE && o.json)
        json_dumpf(pins, stdout, JSON_COMPACT), putchar('\n');
    else
        json_array_foreach(pins, i, pin) show_pin(pin);
    json_decref(json);
    buf_fini(&answer);
    settings_fini(&s);
    return status;
}
