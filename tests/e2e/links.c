#include "tests/e2e/links.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

/* ---- what status shows ---- */

static void copy_text(char *to, size_t to_bytes, const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    snprintf(to, to_bytes, "%s", text ? text : "");
}

static uint64_t number(const json_t *object, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(object, name));
}

static struct link_row read_row(const json_t *link)
{
    struct link_row row = {.bytes = number(link, "bytes"), .rate = number(link, "rate")};
    copy_text(row.from, sizeof row.from, link, "from");
    copy_text(row.to, sizeof row.to, link, "to");
    copy_text(row.kind, sizeof row.kind, link, "kind");
    copy_text(row.state, sizeof row.state, link, "state");
    copy_text(row.reason, sizeof row.reason, link, "reason");
    return row;
}

static bool meets(const struct link_row *row, const struct link_wish *wish)
{
    return (!wish->kind || strcmp(wish->kind, row->kind) == 0) &&
           (!wish->from || strcmp(wish->from, row->from) == 0) &&
           (!wish->to || strcmp(wish->to, row->to) == 0) &&
           (!wish->reason || strstr(row->reason, wish->reason)) &&
           (!wish->ready || strcmp(row->state, "ready") == 0) && row->bytes >= wish->bytes;
}

bool links_find(const json_t *status, const struct link_wish *wish, struct link_row *row)
{
    size_t i;
    json_t *link;
    json_array_foreach(json_object_get(status, "paths"), i, link)
    {
        *row = read_row(link);
        if (meets(row, wish)) return true;
    }
    return false;
}

static const struct link_wish *wished;
static struct link_row found;

static bool is_there(struct cluster *c, json_t *status)
{
    (void)c;
    return links_find(status, wished, &found);
}

void links_await(struct cluster *c, const struct link_wish *wish, struct link_row *row)
{
    char what[256];
    snprintf(what, sizeof what, "a link %s from %s to %s%s with %llu bytes because of \"%s\"",
             wish->kind ? wish->kind : "", wish->from ? wish->from : "any",
             wish->to ? wish->to : "any", wish->ready ? " that stands," : "",
             (unsigned long long)wish->bytes, wish->reason ? wish->reason : "");
    wished = wish;
    cluster_await(c, is_there, what);
    if (row) *row = found;
}

/* ---- what breaks ---- */

/* A socket of an shm link that a node has accepted. */
static bool is_shm_link(int fd)
{
    struct sockaddr_un name = {0};
    socklen_t name_bytes = sizeof name, flag_bytes = sizeof(int);
    int listens = 1;
    return getsockname(fd, (struct sockaddr *)&name, &name_bytes) == 0 &&
           name.sun_family == AF_UNIX && name.sun_path[0] == '\0' &&
           strncmp(name.sun_path + 1, "tandem-kv-", 10) == 0 &&
           getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &flag_bytes) == 0 && !listens;
}

uint32_t links_cut_shm(const struct process *node)
{
    char path[64];
    uint32_t cut = 0;
    int process = (int)syscall(SYS_pidfd_open, node->pid, 0);
    assert_true(process >= 0);
    snprintf(path, sizeof path, "/proc/%d/fd", (int)node->pid);
    DIR *fds = opendir(path);
    assert_non_null(fds);
    for (struct dirent *entry; (entry = readdir(fds));) {
        int fd = (int)syscall(SYS_pidfd_getfd, process, atoi(entry->d_name), 0);
        if (entry->d_name[0] == '.') continue;
        if (fd < 0) {
            print_message("sockets of another process cannot be had here\n");
            skip();
        }
        if (is_shm_link(fd) && shutdown(fd, SHUT_RDWR) == 0) cut++;
        close(fd);
    }
    closedir(fds);
    close(process);
    return cut;
}

/* ---- model and plugins ---- */

static char model[SCRATCH_BYTES];

const char *links_model(void)
{
    static const struct tiny_shape shape = {.hidden = 64,
                                            .layers = 4,
                                            .heads = 4,
                                            .kv_heads = 2,
                                            .head_dim = 32,
                                            .ffn = 96,
                                            .vocab = 1024,
                                            .context = 512,
                                            .tied = true,
                                            .dtype = DTYPE_BF16,
                                            .seed = 1};
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json"};
    char from[PATH_MAX], to[PATH_MAX];
    if (model[0]) return model;
    scratch_make(model);
    tiny_model_write(model, &shape);
    for (size_t i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/%s", cluster_demo_model(), files[i]);
        snprintf(to, sizeof to, "%s/%s", model, files[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    return model;
}

void links_model_remove(void)
{
    if (model[0]) scratch_remove(model);
    model[0] = '\0';
}

void links_use_plugins(const struct cluster *c, const char *names)
{
    char copy[64], from[PATH_MAX], to[PATH_MAX], *rest = NULL;
    if (!c) {
        setenv("TANDEM_PLUGIN_DIR", TANDEM_FAKE_DIR, 1);
        return;
    }
    snprintf(copy, sizeof copy, "%s", names);
    for (char *name = strtok_r(copy, " ", &rest); name; name = strtok_r(NULL, " ", &rest)) {
        snprintf(from, sizeof from, "%s/libtandem_%s.so", TANDEM_FAKE_DIR, name);
        snprintf(to, sizeof to, "%s/libtandem_%s.so", c->folder, name);
        assert_true(symlink(from, to) == 0 || errno == EEXIST);
    }
    setenv("TANDEM_PLUGIN_DIR", c->folder, 1);
}
