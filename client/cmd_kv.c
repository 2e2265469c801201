/* tandem kv: what the nodes cache, and how well that does. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "client/cmd.h"
#include "client/kv_show.h"
#include "client/sample.h"

struct options {
    const char *node, *save, *plot;
    bool json;
    uint64_t apart_ns;
};

static const struct setting rows[] = {
    SETTING_STRING(struct options, node, "node", "", "of this node only"),
    SETTING_BOOL(struct options, json, "json", "false", "print the router's answer as it is"),
    SETTING_STRING(struct options, save, "save", NULL,
                   "write status and KV, two samples of both, to this file for tandem doctor"),
    SETTING_DURATION(struct options, apart_ns, "apart", "2s", 0, 3600 * NS_PER_S,
                     "time between the two samples of --save"),
    SETTING_STRING(struct options, plot, "plot", NULL,
                   "draw the histograms of age and size into this SVG file"),
};

static int say_failed(const char *path)
{
    fprintf(stderr, "tandem kv: %s: %s\n", path, strerror(errno));
    return CMD_FAILED;
}

static int plot(const char *path, const json_t *answer)
{
    FILE *f = fopen(path, "w");
    if (!f) return say_failed(path);
    kv_plot(f, answer);
    bool failed = ferror(f) != 0;
    return fclose(f) != 0 || failed ? say_failed(path) : CMD_DONE;
}

static int show(const struct options *o, const struct buf *text, const json_t *answer)
{
    if (o->json)
        printf("%s\n", text->data);
    else
        kv_show(stdout, answer);
    return o->plot ? plot(o->plot, answer) : CMD_DONE;
}

/* The last sample is what is shown too. */
static int save(const struct options *o, const struct cmd_router *router)
{
    json_t *samples;
    int code = sample_take("kv", router, o->apart_ns, &samples);
    if (code != CMD_DONE) return code;
    if (json_dump_file(samples, o->save, JSON_COMPACT) != 0) code = say_failed(o->save);
    json_decref(samples);
    return code;
}

int cmd_kv(int argc, char **argv)
{
    struct options o = {0};
    struct cmd_router router;
    const struct settings_table own = {rows, COUNT_OF(rows), &o};
    const struct settings_program about = {
        .name = "tandem kv",
        .about = "What the nodes cache: blocks by state, the biggest shared prefixes, hit rates, "
                 "ages and sizes, tenants."};
    struct settings s;
    struct buf text = {0};
    json_t *answer = NULL;
    int code;
    if (!cmd_settings(&s, &about, &own, &router, argc, argv, &code)) return code;
    code = o.save ? save(&o, &router) : CMD_DONE;
    if (code == CMD_DONE) code = cmd_ask("kv", &router, tandem_query_kv, o.node, &text, &answer);
    if (code == CMD_DONE) code = show(&o, &text, answer);
    json_decref(answer);
    buf_fini(&text);
    settings_fini(&s);
    return code;
}
