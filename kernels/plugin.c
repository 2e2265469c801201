#include "kernels/plugin.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"

#define PLUGIN_FILE "libtandem_cuda.so"
#define PLUGIN_ENTRY "tandem_cuda_backend"

/* log_line takes an enum; the plugin, which has no log.h of its own to agree with, an int. */
static void host_log_line(int level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void host_log_line(int level, const char *event, const char *format, ...)
{
    char text[ERR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log_line((enum log_level)level, event, "%s", text);
}

static const struct plugin_host host = {.abi = BACKEND_ABI,
                                        .err_set = err_set,
                                        .err_text = err_text,
                                        .check_failed = check_failed,
                                        .mem_new = mem_new,
                                        .mem_aligned = mem_aligned,
                                        .mem_free = mem_free,
                                        .log_line = host_log_line};

/* ../lib/tandem/FILE, seen from the program; "" if that is not to be known. */
static void beside_program(char *path, size_t size)
{
    char program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    path[0] = '\0';
    if (length <= 0) return;
    program[length] = '\0';
    char *slash = strrchr(program, '/');
    if (!slash) return;
    *slash = '\0';
    int n = snprintf(path, size, "%s/../lib/tandem/%s", program, PLUGIN_FILE);
    if (n < 0 || (size_t)n >= size) path[0] = '\0';
}

/* Where the plugin is, or its bare name for the loader to find. */
static enum err place(char *path, size_t size)
{
    const char *dir = getenv("TANDEM_PLUGIN_DIR");
    if (dir && *dir) {
        int n = snprintf(path, size, "%s/%s", dir, PLUGIN_FILE);
        if (n < 0 || (size_t)n >= size)
            return err_set(ERR_UNSUPPORTED, "TANDEM_PLUGIN_DIR is too long");
        if (access(path, F_OK) == 0) return OK;
        return err_set(ERR_UNSUPPORTED, "the CUDA plugin is not installed: %s: %s", path,
                       strerror(errno));
    }
    beside_program(path, size);
    if (!*path || access(path, F_OK) != 0) snprintf(path, size, "%s", PLUGIN_FILE);
    return OK;
}

/* What dlerror says, in terms of what the user can do about it. */
static enum err cannot_load(const char *path)
{
    const char *why = dlerror();
    if (!why) why = "no reason given";
    if (!strchr(path, '/') && strncmp(why, PLUGIN_FILE ":", strlen(PLUGIN_FILE ":")) == 0) {
        char beside[PATH_MAX + sizeof PLUGIN_FILE];
        beside_program(beside, sizeof beside);
        return err_set(
            ERR_UNSUPPORTED,
            "the CUDA plugin is not installed: there is no %s, nor %s on the loader's path",
            *beside ? beside : "../lib/tandem", PLUGIN_FILE);
    }
    if (strstr(why, "libcudart") || strstr(why, "libcublasLt"))
        return err_set(ERR_UNSUPPORTED,
                       "the CUDA plugin needs a library of CUDA 13 that is missing: %s", why);
    return err_set(ERR_UNSUPPORTED, "the CUDA plugin cannot be loaded: %s", why);
}

enum err plugin_find(const char *name, const struct backend_ops **ops)
{
    char path[PATH_MAX + sizeof PLUGIN_FILE];
    enum err e;
    if (strcmp(name, "cuda") != 0) return err_set(ERR_NOT_FOUND, "no plugin for \"%s\"", name);
    if ((e = place(path, sizeof path)) != OK) return e;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return cannot_load(path);
    plugin_entry_fn *entry;
    void *symbol = dlsym(library, PLUGIN_ENTRY);
    if (!symbol)
        return err_set(ERR_UNSUPPORTED, "%s is no plugin of tandem: it has no %s", path,
                       PLUGIN_ENTRY);
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast between the two kinds of pointer */
    const struct backend_ops *found = entry(&host);
    if (found->abi != BACKEND_ABI)
        return err_set(ERR_UNSUPPORTED, "%s is of another version: it has ABI %u, this program %u",
                       path, found->abi, BACKEND_ABI);
    *ops = found;
    return OK;
}
