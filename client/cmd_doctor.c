/* tandem doctor: what is wrong with a cluster, running or saved, why it thinks so, and what to do. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cmd.h"
#include "client/doctor.h"
#include "client/sample.h"
#include "client/show.h"

enum { COLUMNS = 100, INDENT = 7 };

struct options {
    const char *from;
    bool json;
    uint64_t apart_ns;
};

static const struct setting rows[] = {
    SETTING_STRING(
        struct options, from, "from", NULL,
        "a file of tandem kv --save, or what status --json printed, instead of a running "
        "cluster; -: stdin"),
    SETTING_BOOL(struct options, json, "json", "false", "print what was found as JSON"),
    SETTING_DURATION(struct options, apart_ns, "apart", "3s", 0, 3600 * NS_PER_S,
                     "time between two looks at a running cluster, for rates"),
};

/* Words in lines of at most COLUMNS, all but the first begin with INDENT blanks. */
static void print_wrapped(const char *label, const char *text)
{
    size_t column = (size_t)printf("   %-4s", label);
    while (*text) {
        size_t length = strcspn(text, " ");
        if (column + 1 + length > COLUMNS && column > INDENT) {
            printf("\n%*s", INDENT, "");
            column = INDENT;
        }
        column += (size_t)printf("%s%.*s", column > INDENT ? " " : "", (int)length, text);
        text += length;
        text += *text == ' ';
    }
    putchar('\n');
}

static void print_findings(const struct facts *f, const struct diagnosis *d)
{
    char a[SHOW_TEXT];
    for (size_t i = 0; i < d->findings_count; i++) {
        const struct finding *x = &d->finding[i];
        printf("%s%s [%s]\n", x->trouble ? "" : "note: ", x->what, x->rule);
        print_wrapped("why", x->why);
        print_wrapped("do", x->advice);
    }
    if (d->dropped > 0) printf("and %zu findings more\n", d->dropped);
    if (d->findings_count > 0) return;
    printf("nothing wrong was found: %zu node%s, looked at ", f->nodes_count,
           f->nodes_count == 1 ? "" : "s");
    if (f->seconds > 0)
        printf("for %s by %zu rules\n", show_time(f->seconds, a), doctor_rules_count());
    else
        printf("once (what changes with time shows in two looks: tandem kv --save)\n");
}

static void print_json(const struct facts *f, const struct diagnosis *d)
{
    json_t *list = json_array(), *checked = json_array();
    for (size_t i = 0; i < d->findings_count; i++) {
        const struct finding *x = &d->finding[i];
        json_array_append_new(list,
                              json_pack("{s:s,s:s,s:s,s:s,s:s,s:s}", "rule", x->rule, "severity",
                                        x->trouble ? "trouble" : "note", "node", x->about, "what",
                                        x->what, "why", x->why, "do", x->advice));
    }
    for (size_t i = 0; i < doctor_rules_count(); i++)
        json_array_append_new(checked, json_string(doctor_rule(i)));
    json_t *root = json_pack("{s:b,s:f,s:I,s:o,s:o}", "healthy", !doctor_found_trouble(d),
                             "seconds", f->seconds, "nodes", (json_int_t)f->nodes_count, "findings",
                             list, "checked", checked);
    char *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(6));
    printf("%s\n", text ? text : "{}");
    free(text);
    json_decref(root);
}

static int say_failed(const struct options *o)
{
    const char *from = !o->from ? "the cluster" : strcmp(o->from, "-") == 0 ? "stdin" : o->from;
    fprintf(stderr, "tandem doctor: %s: %s\n", from, err_text());
    return CMD_FAILED;
}

static int examine(const struct options *o, const json_t *samples)
{
    struct facts f;
    struct diagnosis d;
    if (facts_read(&f, samples) != OK) return say_failed(o);
    doctor_examine(&f, &d);
    if (o->json)
        print_json(&f, &d);
    else
        print_findings(&f, &d);
    facts_fini(&f);
    return doctor_found_trouble(&d) ? CMD_FAILED : CMD_DONE;
}

static int get_samples(const struct options *o, const struct cmd_router *router, json_t **samples)
{
    if (!o->from) return sample_take("doctor", router, o->apart_ns, samples);
    return sample_load(samples, o->from) == OK ? CMD_DONE : say_failed(o);
}

int cmd_doctor(int argc, char **argv)
{
    struct options o = {0};
    struct cmd_router router;
    const struct settings_table own = {rows, COUNT_OF(rows), &o};
    const struct settings_program about = {
        .name = "tandem doctor",
        .about = "Looks at a cluster and says what is wrong, why it thinks so and what to do; exit "
                 "code 1 if anything is."};
    struct settings s;
    json_t *samples = NULL;
    int code;
    if (!cmd_settings(&s, &about, &own, &router, argc, argv, &code)) return code;
    code = get_samples(&o, &router, &samples);
    if (code == CMD_DONE) code = examine(&o, samples);
    json_decref(samples);
    settings_fini(&s);
    return code;
}
