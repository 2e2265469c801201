/* status: what errors and ends are called for the user of libtandem. */
#include "client/internal.h"

enum tandem_status status_of(enum err e)
{
    switch (e) {
    case OK: return TANDEM_OK;
    case ERR_FULL:
    case ERR_AGAIN: return TANDEM_OVERLOADED;
    case ERR_NOT_FOUND: return TANDEM_NOT_FOUND;
    case ERR_INVALID:
    case ERR_DUPLICATE: return TANDEM_INVALID;
    case ERR_UNSUPPORTED: return TANDEM_UNSUPPORTED;
    case ERR_MEMORY: return TANDEM_MEMORY;
    case ERR_TIMEOUT: return TANDEM_TIMEOUT;
    case ERR_CANCELLED: return TANDEM_CANCELLED;
    default: return TANDEM_FAILED;
    }
}

const char *tandem_error_text(void)
{
    return err_text();
}

const char *tandem_status_name(enum tandem_status status)
{
    static const char *const names[] = {"ok",        "invalid",   "overloaded", "unsupported",
                                        "not_found", "no_router", "timeout",    "cancelled",
                                        "memory",    "failed"};
    return status <= TANDEM_FAILED ? names[status] : "?";
}

const char *tandem_finish_name(enum tandem_finish finish)
{
    static const char *const names[] = {"none", "stop", "length", "cancelled", "error"};
    return finish <= TANDEM_FINISH_ERROR ? names[finish] : "?";
}
