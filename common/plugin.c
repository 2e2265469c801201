#include "common/plugin.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ../lib/tandem/FILE, seen from the program; "" if that is not to be known. */
static void beside_program(char *path, size_t size, const char *file)
{
    char program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    path[0] = '\0';
    if (length <= 0) return;
    program[length] = '\0';
    char *slash = strrchr(program, '/');
    if (!slash) return;
    *slash = '\0';
    int n = snprintf(path, size, "%s/../lib/tandem/%s", program, file);
    if (n < 0 || (size_t)n >= size) path[0] = '\0';
}

/* Where the plugin is, or its bare name for the loader to find. */
static enum err place(char *path, size_t size, const struct plugin_kind *kind)
{
    const char *dir = getenv("TANDEM_PLUGIN_DIR");
    if (dir && *dir) {
        int n = snprintf(path, size, "%s/%s", dir, kind->file);
        if (n < 0 || (size_t)n >= size)
            return err_set(ERR_UNSUPPORTED, "TANDEM_PLUGIN_DIR is too long");
        if (access(path, F_OK) == 0) return OK;
        return err_set(ERR_UNSUPPORTED, "the %s plugin is not installed: %s: %s", kind->title, path,
                       strerror(errno));
    }
    beside_program(path, size, kind->file);
    if (!*path || access(path, F_OK) != 0) snprintf(path, size, "%s", kind->file);
    return OK;
}

/* What dlerror says, in terms of what the user can do about it. */
static enum err cannot_load(const struct plugin_library *l, const struct plugin_kind *kind)
{
    const char *why = dlerror();
    size_t name_bytes = strlen(kind->file);
    if (!why) why = "no reason given";
    if (!strchr(l->path, '/') && strncmp(why, kind->file, name_bytes) == 0 &&
        why[name_bytes] == ':') {
        char beside[sizeof l->path];
        beside_program(beside, sizeof beside, kind->file);
        return err_set(
            ERR_UNSUPPORTED,
            "the %s plugin is not installed: there is no %s, nor %s on the loader's path",
            kind->title, *beside ? beside : "../lib/tandem", kind->file);
    }
    for (uint32_t i = 0; i < PLUGIN_NEEDS_MAX && kind->needs[i].library; i++)
        if (strstr(why, kind->needs[i].library))
            return err_set(ERR_UNSUPPORTED, "the %s plugin needs %s that is missing or too old: %s",
                           kind->title, kind->needs[i].what, why);
    return err_set(ERR_UNSUPPORTED, "the %s plugin cannot be loaded: %s", kind->title, why);
}

enum err plugin_load(struct plugin_library *l, const struct plugin_kind *kind)
{
    enum err e;
    if ((e = place(l->path, sizeof l->path, kind)) != OK) return e;
    void *handle = dlopen(l->path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return cannot_load(l, kind);
    void *symbol = dlsym(handle, kind->entry);
    if (!symbol)
        return err_set(ERR_UNSUPPORTED, "%s is no plugin of tandem: it has no %s", l->path,
                       kind->entry);
    memcpy(&l->entry, &symbol, sizeof l->entry); /* ISO C has no cast between the two pointers */
    return OK;
}

enum err plugin_refuse(const struct plugin_library *l, uint32_t found, uint32_t wanted)
{
    return err_set(ERR_UNSUPPORTED, "%s is of another version: it has ABI %u, this program %u",
                   l->path, found, wanted);
}
