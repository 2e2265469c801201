/* tandem: the command. One table of verbs; a file per verb. */
#include <stdio.h>
#include <string.h>

#include "client/cmd.h"
#include "common/file.h"
#include "common/log.h"

static const struct verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} verbs[] = {
    {"up", cmd_up, "a cluster on this host, in the foreground"},
    {"generate", cmd_generate, "continue a prompt; text streams to stdout"},
    {"score", cmd_score, "log-probabilities of a text's tokens, and its perplexity"},
    {"embed", cmd_embed, "a text as a vector: its pooled hidden states"},
    {"warm", cmd_warm, "prefill a file's lines, so that their KV is cached"},
    {"status", cmd_status, "nodes, queues and links"},
    {"pin", cmd_pin, "have all nodes keep a prompt cached, under a name"},
    {"unpin", cmd_unpin, "let it go again"},
    {"pins", cmd_pins, "what is pinned, and where"},
    {"kv", cmd_kv, "what the nodes cache, and how well that does"},
    {"doctor", cmd_doctor, "what is wrong with a cluster, why, and what to do"},
    {"explain", cmd_explain, "where the time of one request went"},
    {"drain", cmd_drain, "let a node, or the whole cluster, finish and leave"},
    {"plan", cmd_plan, "memory and nodes that a model and a load need, offline"},
    {"sim", cmd_sim, "replay a trace through the prefix cache, by policy and pool size"},
    {"tokenize", cmd_tokenize, "text to token ids, offline"},
    {"detokenize", cmd_detokenize, "token ids to text, offline"},
};

static void print_help(FILE *out)
{
    fprintf(out, "usage: tandem VERB [SETTINGS] [ARGUMENTS]\n\n");
    for (size_t i = 0; i < COUNT_OF(verbs); i++)
        fprintf(out, "  %-12s %s\n", verbs[i].name, verbs[i].help);
    fprintf(out,
            "\n`tandem help VERB` lists a verb's settings. Exit codes: 0 done, 1 the request or\n"
            "check failed, 2 wrong usage, 3 no router reachable.\n");
}

/* What a full disk took is not done. */
static int close_output(int code)
{
    if (file_close_stdout() == OK) return code;
    fprintf(stderr, "tandem: %s\n", err_text());
    return code == CMD_DONE ? CMD_FAILED : code;
}

static const struct verb *verb_of(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(verbs); i++)
        if (strcmp(name, verbs[i].name) == 0) return &verbs[i];
    return NULL;
}

static int unknown(const char *name)
{
    if (name[0]) fprintf(stderr, "tandem: \"%s\" is no verb\n\n", name);
    print_help(stderr);
    return CMD_USAGE;
}

/* Of all, or of the verb behind it. */
static int help(int argc, char **argv)
{
    const struct verb *verb = argc > 2 ? verb_of(argv[2]) : NULL;
    if (argc > 2 && !verb) return unknown(argv[2]);
    if (verb) return verb->run(2, (char *[]){argv[2], (char[]){"--help"}, NULL});
    print_help(stdout);
    return CMD_DONE;
}

static int run(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    const struct verb *verb = verb_of(name);
    if (verb) return verb->run(argc - 1, argv + 1);
    if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return help(argc, argv);
    if (strcmp(name, "--version") == 0) {
        printf("tandem %s\n", TANDEM_VERSION);
        return CMD_DONE;
    }
    return unknown(name);
}

int main(int argc, char **argv)
{
    log_setup(LOG_WARN, "tandem");
    return close_output(run(argc, argv));
}
