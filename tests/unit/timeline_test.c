#include "client/timeline.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/testing.h"

#define HEAD                                                                                       \
    "\"choice\":0,\"reason\":\"\",\"timing_ms\":{\"queue\":1,\"prefill\":2.5,"                     \
    "\"transfer_tail\":1,\"ttft\":8,\"decode\":32,\"total\":40},"
#define EVENT(at, what, node)                                                                      \
    "{\"at_ms\":" #at ",\"event\":\"" what "\",\"node\":\"" node "\",\"attempt\":0}"
#define TABLE "                          from ms    took ms\n"

static const struct {
    const char *name, *choice, *want;
} rows[] = {
    {"a usual one: the tail overlaps the decode and stands before it",
     "{" HEAD "\"state\":\"ended\",\"finish_reason\":\"length\",\"attempts\":1,"
     "\"completion_tokens\":17,\"events\":[" EVENT(1, "queued", "") "," EVENT(2, "reserve", "d0") "," EVENT(
         3, "reserved",
         "d0") "," EVENT(4, "prefill",
                         "p0") "," EVENT(8, "first",
                                         "p0") "," EVENT(8.5, "prefilled",
                                                         "p0") "," EVENT(10, "stream",
                                                                         "d0") "," EVENT(40,
                                                                                         "ended",
                                                                                         "") "]}",
     "choice 0: 17 tokens, length; the first after 8.00 ms, then one every 2.00 ms\n" TABLE
     "  tokenize                   0.00       1.00  #\n"
     "  queue                      1.00       1.00   #\n"
     "  reserve d0                 2.00       2.00    ##\n"
     "  prefill p0                 4.00       4.00      ####\n"
     "    of it computing                     2.50\n"
     "  transfer tail              7.50       1.00          #\n"
     "  decode d0                  8.00      32.00          ################################\n"
     "  all                        0.00      40.00\n"},
    {"a decode node that prefills for itself",
     "{" HEAD "\"state\":\"ended\",\"finish_reason\":\"stop\",\"attempts\":1,"
     "\"completion_tokens\":1,\"events\":[" EVENT(0, "queued", "") "," EVENT(
         0, "reserve", "d0") "," EVENT(8, "stream", "d0") "," EVENT(40, "ended", "") "]}",
     "choice 0: 1 tokens, stop; the first after 8.00 ms\n" TABLE
     "  queue                      0.00       0.00  #\n"
     "  prefill d0                 0.00       8.00  ########\n"
     "  decode d0                  8.00      32.00          ################################\n"
     "  all                        0.00      40.00\n"},
    {"a node was lost, and it still runs",
     "{" HEAD "\"state\":\"waiting\",\"finish_reason\":\"\",\"attempts\":2,"
     "\"completion_tokens\":5,\"events\":[" EVENT(0, "queued", "") "," EVENT(
         0, "reserve", "d0") "," EVENT(8, "stream",
                                       "d0") "," EVENT(20, "lost",
                                                       "d0") "," EVENT(20, "queued",
                                                                       "") "," EVENT(40, "reserve",
                                                                                     "d1") "]}",
     "choice 0: 5 tokens, waiting; the first after 8.00 ms, then one every 8.00 ms; 2 "
     "attempts\n" TABLE "  queue                      0.00       0.00  #\n"
     "  prefill d0                 0.00       8.00  ########\n"
     "  decode d0                  8.00      12.00          ############\n"
     "  lost d0                   20.00       0.00                      #\n"
     "  queue                     20.00      20.00                      ####################\n"
     "  reserve d1                40.00       0.00                                         #\n"
     "  all                        0.00      40.00\n"},
    {"a second attempt: its times stand at its own prefill",
     "{" HEAD "\"state\":\"ended\",\"finish_reason\":\"stop\",\"attempts\":2,"
     "\"cached_tokens\":16,\"completion_tokens\":1,\"events\":[" EVENT(0, "prefill", "p0") "," EVENT(
         2, "prefilled",
         "p0") "," EVENT(10, "failed",
                         "p0") "," EVENT(10, "prefill",
                                         "p1") "," EVENT(20, "first",
                                                         "p1") "," EVENT(20, "prefilled",
                                                                         "p1") "," EVENT(40,
                                                                                         "ended",
                                                                                         "") "]}",
     "choice 0: 1 tokens, stop; the first after 8.00 ms; 16 prompt tokens were cached; 2 "
     "attempts\n" TABLE "  prefill p0                 0.00      10.00  ##########\n"
     "  failed p0                 10.00       0.00            #\n"
     "  prefill p1                10.00      10.00            ##########\n"
     "    of it computing                     2.50\n"
     "  transfer tail             19.00       1.00                     #\n"
     "  decode                    20.00      20.00                      ####################\n"
     "  all                        0.00      40.00\n"},
    {"nothing has happened", "{\"state\":\"tokenizing\"}", "choice 0: 0 tokens, tokenizing\n"},
    {"no object", "[]", "choice 0: 0 tokens, \n"},
};

static char *printed(const json_t *choice)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    timeline_print(out, choice);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void events_become_phases_with_bars(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        json_t *choice = json_loads(rows[i].choice, 0, NULL);
        assert_non_null(choice);
        char *text = printed(choice);
        if (strcmp(text, rows[i].want) != 0)
            fail_msg("%s:\n%s\nwanted:\n%s", rows[i].name, text, rows[i].want);
        free(text);
        json_decref(choice);
    }
}

static void any_number_and_order_of_events_is_shown(void **state)
{
    (void)state;
    static const char *const names[] = {"queued",  "reserve", "reserved",  "backfill",
                                        "prefill", "first",   "prefilled", "stream",
                                        "lost",    "failed",  "ended",     "new"};
    uint32_t random = 1;
    for (int round = 0; round < 200; round++) {
        json_t *events = json_array();
        for (int i = 0; i < round; i++) {
            random = random * 1664525 + 1013904223;
            json_array_append_new(
                events, json_pack("{s:f,s:s,s:s}", "at_ms", (double)(random >> 16) - 1000, "event",
                                  names[(random >> 8) % 12], "node",
                                  "a-name-that-is-longer-than-any-name-may-be-in-this-cluster"));
        }
        json_t *choice = json_pack("{s:o,s:{s:f,s:f}}", "events", events, "timing_ms", "prefill",
                                   1.0, "transfer_tail", 1e9);
        free(printed(choice));
        json_decref(choice);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_become_phases_with_bars),
        cmocka_unit_test(any_number_and_order_of_events_is_shown),
    };
    return cmocka_run_group_tests_name("timeline", tests, NULL, NULL);
}
