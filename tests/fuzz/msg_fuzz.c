/* Messages from the network: any bytes are a checked message or an error with a text, within the
 * arena's bound; what was taken can be copied, sent on, and then reads the same. */
#include <string.h>

#include "proto/msg.h"

enum { ARENA_BYTES_MAX = 4 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena = {.limit_bytes = ARENA_BYTES_MAX}, copies = {0};
    struct buf first = {0}, second = {0};
    struct msg m, copy, again;
    if (msg_decode(data, size, &arena, &m) == OK) {
        CHECK(msg_copy(&m, &copies, &copy) == OK);
        CHECK(msg_encode(&m, &first) == OK);
        arena_reset(&arena);
        CHECK(msg_encode(&copy, &second) == OK);
        CHECK(first.size == second.size && memcmp(first.data, second.data, first.size) == 0);
        if (msg_decode(first.data, first.size, &arena, &again) == OK) {
            buf_clear(&second);
            CHECK(again.kind == copy.kind && msg_encode(&again, &second) == OK);
            CHECK(first.size == second.size && memcmp(first.data, second.data, first.size) == 0);
        }
    } else {
        CHECK(err_text()[0] != '\0');
    }
    CHECK(arena.held_bytes <= ARENA_BYTES_MAX);
    buf_fini(&first);
    buf_fini(&second);
    arena_fini(&arena);
    arena_fini(&copies);
    return 0;
}
