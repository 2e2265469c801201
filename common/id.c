#include "common/id.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

enum err id128_mint(struct id128 *id)
{
    do {
        ssize_t n = getrandom(id, sizeof *id, 0);
        if (n < 0 && errno == EINTR) {
            *id = ID128_NONE;
            continue;
        }
        if (n != sizeof *id) return err_set(ERR_IO, "getrandom: %s", strerror(errno));
    } while (id128_is_none(*id));
    return OK;
}

void id128_print(struct id128 id, char text[ID128_TEXT])
{
    snprintf(text, ID128_TEXT, "%016" PRIx64 "%016" PRIx64, id.hi, id.lo);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

enum err id128_parse(const char *text, size_t length, struct id128 *id)
{
    uint64_t half[2] = {0, 0};
    *id = ID128_NONE;
    if (length != ID128_TEXT - 1)
        return err_set(ERR_INVALID, "an id has 32 hex digits, this has %zu characters", length);
    for (size_t i = 0; i < length; i++) {
        int digit = hex_digit(text[i]);
        if (digit < 0)
            return err_set(ERR_INVALID, "an id has 32 hex digits, character %zu is none", i + 1);
        half[i / 16] = half[i / 16] << 4 | (uint64_t)digit;
    }
    *id = (struct id128){half[0], half[1]};
    return OK;
}
