#include "tests/e2e/tiered.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tests/e2e/command.h"
#include "tests/e2e/page.h"
#include "tests/unit/exposition.h"
#include "tests/unit/scratch.h"

char prompt[PROMPTS][PROMPT_MAX];
struct ask ask[PROMPTS];
struct streams *wanted;

static void make_prompts(void)
{
    static const char *const lines[] = {"What, must our mouths be cold?",  "All lost! to prayers!",
                                        "The king and prince at prayers!", "Let's assist them,",
                                        "For our case is as theirs.",      "I'm out of patience."};
    for (uint32_t i = 0; i < PROMPTS; i++) {
        size_t n = 0;
        for (uint32_t k = 0; k < 36; k++)
            n += (size_t)snprintf(prompt[i] + n, PROMPT_MAX - n, "%u %s\n", i * 31 + k,
                                  lines[(i + k * (i + 1)) % 6]);
        ask[i] = (struct ask){.text = prompt[i],
                              .max_tokens = 12,
                              .temperature = i % 2 ? 0.8f : 0,
                              .seed = 40 + i,
                              .want_logprobs = true};
    }
}

int tiered_learn(void **state)
{
    (void)state;
    make_prompts();
    struct cluster *c = cluster_new(cluster_demo_model());
    cluster_start(c, 1, 1, ALWAYS, "");
    wanted = streams_new(c->addresses);
    for (uint32_t i = 0; i < PROMPTS; i++)
        streams_start(wanted, 0, &ask[i]);
    streams_run(wanted);
    cluster_stop(c);
    cluster_free(c);
    return 0;
}

int tiered_forget(void **state)
{
    (void)state;
    streams_free(wanted);
    return 0;
}

struct bench bench;

int tiered_set_up(void **state)
{
    rig_setup(state);
    bench = (struct bench){.rig = *state};
    scratch_make(bench.folder);
    return 0;
}

int tiered_tear_down(void **state)
{
    rig_teardown(state);
    redis_rig_stop(&bench.redis);
    scratch_remove(bench.folder);
    return 0;
}

void start(const char *decode_args)
{
    struct cluster *c = bench.rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(c, ALWAYS);
    cluster_node(c, PROGRAM_DECODE, decode_args);
}

struct process *start_prefill(const char *format, ...)
{
    char args[2 * PATH_MAX];
    va_list list;
    va_start(list, format);
    vsnprintf(args, sizeof args, format, list);
    va_end(list);
    struct process *p = cluster_node(bench.rig->cluster, PROGRAM_PREFILL, args);
    cluster_await_nodes(bench.rig->cluster);
    if (!bench.rig->streams) rig_connect(bench.rig);
    return p;
}

double value_of(const struct process *p, const char *series)
{
    static char text[PAGE_MAX];
    assert_int_equal(page_get(p->metrics, "/metrics", text), 200);
    struct exposition *x = exposition_read(text);
    double value = exposition_value(x, series);
    exposition_free(x);
    return value;
}

struct stream *asks(uint32_t i)
{
    struct stream *s = streams_start(bench.rig->streams, 0, &ask[i]);
    streams_run(bench.rig->streams);
    stream_expect_equal(s, wanted->stream[i]);
    return s;
}

uint32_t whole_of(const struct stream *s)
{
    return (s->prompt_tokens - 1) / 16 * 16;
}

static struct process *watched;

static bool nothing_is_held(struct cluster *c, json_t *status)
{
    (void)c, (void)status;
    return value_of(watched, "tandem_node_kv_blocks{state=\"transfer\"}") == 0;
}

void await_unheld(struct process *p)
{
    watched = p;
    cluster_await(bench.rig->cluster, nothing_is_held, "no block to be held for a tier");
}

void await_stored(struct process *p)
{
    cluster_await_idle(bench.rig->cluster);
    await_unheld(p);
}

uint32_t logged(const struct process *p, const char *text)
{
    static char line[4096];
    uint32_t n = 0;
    FILE *f = fopen(p->log, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        n += strstr(line, text) != NULL;
    fclose(f);
    return n;
}

void expect_diagnosed(const char *what)
{
    struct command r;
    command_run(&r, "tandem", "doctor --json --apart 100ms --router %s",
                bench.rig->cluster->addresses);
    if (!strstr(r.out, what)) fail_msg("no \"%s\" in %s%s", what, r.out, r.err);
}

bool start_redis(const char *const *more)
{
    if (redis_rig_start(&bench.redis, bench.folder, more)) return true;
    skip();
    return false;
}
