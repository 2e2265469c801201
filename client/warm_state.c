#include "client/warm_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/buf.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/hash.h"

enum { HEX = 32, COST_SHARE = 20 }; /* saving takes a twentieth of the time at most */

static enum err bad(const char *path)
{
    return err_set(ERR_FORMAT, "%s: no file of tandem warm: remove it, or name another", path);
}

/* The two first lines; *at is behind them. */
static enum err read_head(struct warm_state *s, const char *text, const char **at)
{
    char model[64] = "";
    int end = 0;
    if (sscanf(text, "tandem-warm 1 %63s\nnew_bytes %" SCNu64 "\n%n", model, &s->new_bytes, &end) !=
            2 ||
        end == 0)
        return bad(s->path);
    if (strcmp(model, s->model) != 0)
        return err_set(ERR_INVALID, "%s: of the model %s, the cluster has %s: name another file",
                       s->path, model, s->model);
    *at = text + end;
    return OK;
}

static enum err read_done(struct warm_state *s, const char *at)
{
    struct id128 id;
    for (; *at; at += HEX + 1) {
        if (strnlen(at, HEX + 1) < HEX + 1 || at[HEX] != '\n' || id128_parse(at, HEX, &id) != OK)
            return bad(s->path);
        enum err e = map_put(&s->done, id, s);
        if (e != OK && e != ERR_DUPLICATE) return e;
    }
    return OK;
}

static enum err read_all(struct warm_state *s, const struct file_map *map)
{
    struct buf text = {0};
    const char *at = NULL;
    enum err e = buf_add(&text, map->data, map->size_bytes); /* with a zero byte behind it */
    if (e == OK && (e = read_head(s, text.data, &at)) == OK) e = read_done(s, at);
    buf_fini(&text);
    return e;
}

enum err warm_state_open(struct warm_state *s, const char *path, const char *model)
{
    struct file_map map;
    *s = (struct warm_state){.path = path};
    snprintf(s->model, sizeof s->model, "%s", model);
    if (!path) return OK;
    enum err e = file_map_open(&map, path);
    if (e == ERR_NOT_FOUND) {
        s->changed = true;
        return warm_state_save(s, 0, true); /* what cannot be written is said before the work */
    }
    if (e != OK) return e;
    e = read_all(s, &map);
    file_map_close(&map);
    if (e != OK) warm_state_close(s);
    return e;
}

void warm_state_close(struct warm_state *s)
{
    map_fini(&s->done);
}

struct id128 warm_state_id(const char *tenant, const struct sequence *q)
{
    struct id128 parent = hash_chain(ID128_NONE, tenant, strlen(tenant) + 1);
    parent = hash_chain(parent, q->tokens ? "ids" : "text", 3);
    return q->tokens ? hash_chain(parent, q->tokens, q->count * sizeof *q->tokens)
                     : hash_chain(parent, q->text, q->count);
}

bool warm_state_has(const struct warm_state *s, struct id128 id)
{
    return map_get(&s->done, id) != NULL;
}

enum err warm_state_add(struct warm_state *s, struct id128 id, uint64_t new_bytes)
{
    enum err e = map_put(&s->done, id, s);
    s->new_bytes += new_bytes;
    s->changed = true;
    return e == ERR_DUPLICATE ? OK : e;
}

enum err warm_state_save(struct warm_state *s, uint64_t now_ns, bool at_once)
{
    struct buf out = {0};
    struct map_cursor c = {0};
    if (!s->path || !s->changed || (!at_once && now_ns < s->save_ns)) return OK;
    uint64_t began_ns = clock_now_ns();
    buf_printf(&out, "tandem-warm 1 %s\nnew_bytes %" PRIu64 "\n", s->model, s->new_bytes);
    while (map_next(&s->done, &c)) {
        char text[ID128_TEXT];
        id128_print(c.key, text);
        buf_printf(&out, "%s\n", text);
    }
    enum err e = out.error != OK ? out.error : file_write_whole(s->path, out.data, out.size);
    buf_fini(&out);
    if (e != OK) return e;
    uint64_t cost_ns = clock_now_ns() - began_ns;
    s->changed = false;
    s->save_ns = now_ns + (COST_SHARE * cost_ns > NS_PER_S ? COST_SHARE * cost_ns : NS_PER_S);
    return OK;
}
