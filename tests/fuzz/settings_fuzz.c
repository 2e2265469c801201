/* Config files: any bytes are read or refused with a text, and no value leaves its range. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/settings.h"

struct values {
    bool flag;
    int64_t count;
    uint64_t bytes, wait_ns;
    double share;
    const char *text;
    int choice;
    struct setting_list list;
};

static const struct setting rows[] = {
    SETTING_BOOL(struct values, flag, "flag", "false", ""),
    SETTING_INT(struct values, count, "count", "2", -3, 64, ""),
    SETTING_SIZE(struct values, bytes, "bytes", "64K", 1, 1e12, ""),
    SETTING_DURATION(struct values, wait_ns, "wait", "1s", 1, 1e12, ""),
    SETTING_DOUBLE(struct values, share, "share", "0.5", 0, 1, ""),
    SETTING_STRING(struct values, text, "text", "", ""),
    SETTING_CHOICE(struct values, choice, "choice", "a|b|c", "a", ""),
    SETTING_LIST(struct values, list, "list", ""),
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct values v;
    const struct settings_table table = {rows, COUNT_OF(rows), &v};
    const struct settings_program program = {
        .name = "fuzz", .section = "router", .tables = &table, .tables_count = 1};
    char argument[64];
    int fd = memfd_create("config", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    snprintf(argument, sizeof argument, "--config=/proc/self/fd/%d", fd);
    char *argv[] = {argument, argument};
    struct settings s;
    if (settings_read(&s, &program, 2, argv) == OK) {
        CHECK(v.count >= -3 && v.count <= 64);
        CHECK(v.bytes >= 1 && v.wait_ns >= 1 && v.share >= 0 && v.share <= 1);
        CHECK(v.choice >= 0 && v.choice < 3 && v.list.count <= SETTING_LIST_MAX);
        CHECK(v.text && strlen(v.text) <= size);
        settings_fini(&s);
    } else {
        CHECK(err_text()[0] != '\0');
    }
    close(fd);
    return 0;
}
