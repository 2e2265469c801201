/* names: what states and events are called, in logs, for people and in tests. */
#include "router/state.h"

const char *choice_state_name(enum choice_state state)
{
    static const char *const names[CHOICE_STATES] = {
        "tokenizing", "queued", "reserving", "filling", "prefilling", "decoding", "ended"};
    return names[state];
}

const char *choice_event_name(enum choice_event event)
{
    static const char *const names[CHOICE_EVENTS] = {
        "picked",      "too large", "reserved", "backfilled",     "first",         "tokens",
        "encoded",     "prefilled", "finished", "prefill failed", "decode failed", "prefill lost",
        "decode lost", "cancelled", "deadline", "silence"};
    return names[event];
}

const char *trail_name(enum trail_what what)
{
    static const char *const names[] = {
        "submitted", "queued", "reserve", "reserved", "prefill",  "first",     "prefilled",
        "stream",    "lost",   "failed",  "ended",    "backfill", "backfilled"};
    return names[what];
}
