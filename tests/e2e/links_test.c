/* Links that break under a cluster: streams go on as if nothing had happened, over the next link, and
 * status says why; the better link is used again when its time has come. */
#include "tests/e2e/command.h"
#include "tests/e2e/links.h"
#include "tests/e2e/rig.h"

#include <string.h>

enum { SEED = 23, ASKS = 12 };
#define ALWAYS "--disaggregate always"

static int learn(void **state)
{
    (void)state;
    return rig_learn(SEED, ASKS);
}

/* In the middle of all streams. */
static void cut_and_expect_the_rest(struct rig *rig)
{
    rig_ask_half(rig);
    assert_true(links_cut_shm(cluster_process(rig->cluster, "d0")) > 0);
    rig_expect_rest(rig);
}

/* The link of this kind from p0 to d0, borrowed; NULL: none is known. */
static json_t *link_of(json_t *status, const char *kind)
{
    json_t *p;
    size_t i;
    json_array_foreach(json_object_get(status, "paths"), i, p)
    {
        const char *found = json_string_value(json_object_get(p, "kind"));
        if (found && strcmp(found, kind) == 0) return p;
    }
    return NULL;
}

static bool is_in_state(json_t *status, const char *kind, const char *state)
{
    const char *said = json_string_value(json_object_get(link_of(status, kind), "state"));
    return said && strcmp(said, state) == 0;
}

static bool shm_carries(struct cluster *c, json_t *status)
{
    (void)c;
    json_t *shm = link_of(status, "shm");
    return is_in_state(status, "shm", "ready") &&
           json_integer_value(json_object_get(shm, "bytes")) > 0 && !link_of(status, "tcp");
}

static bool tcp_carries(struct cluster *c, json_t *status)
{
    (void)c;
    json_t *shm = link_of(status, "shm"), *tcp = link_of(status, "tcp");
    return is_in_state(status, "shm", "broken") && is_in_state(status, "tcp", "ready") &&
           json_number_value(json_object_get(shm, "failed_s")) >= 0 &&
           json_integer_value(json_object_get(tcp, "bytes")) > 0;
}

static bool shm_carries_again(struct cluster *c, json_t *status)
{
    (void)c;
    json_t *shm = link_of(status, "shm");
    return is_in_state(status, "shm", "ready") &&
           json_number_value(json_object_get(shm, "failed_s")) >= 0;
}

static void a_broken_link_is_left_for_the_next_one_and_status_says_why(void **state)
{
    struct rig *rig = *state;
    struct command r;
    rig_start(rig, 1, 1, ALWAYS, "--link-retry 60s");
    rig_expect_wanted(rig);
    cluster_await(rig->cluster, shm_carries, "shm carries");
    streams_free(rig->streams);
    rig_connect(rig);
    cut_and_expect_the_rest(rig);
    rig_expect_wanted(rig);
    cluster_await(rig->cluster, tcp_carries, "tcp carries");
    command_run(&r, "tandem", "status --router %s", rig->cluster->addresses);
    assert_int_equal(r.status, 0);
    if (!strstr(r.out, "fell back to tcp: shm link")) fail_msg("%s", r.out);
    rig_finish(rig);
}

static void the_better_link_is_used_again(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 1, ALWAYS, "--link-retry 100ms");
    cut_and_expect_the_rest(rig);
    for (bool again = false; !again;) { /* each ask is an occasion to try it */
        rig_expect_wanted(rig);
        json_t *status = cluster_status(rig->cluster);
        again = shm_carries_again(rig->cluster, status);
        json_decref(status);
    }
    rig_finish(rig);
}

static void a_forced_link_is_made_again_at_once(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 1, ALWAYS, "--link shm --link-retry 60s");
    cut_and_expect_the_rest(rig);
    rig_expect_wanted(rig);
    cluster_await(rig->cluster, shm_carries_again, "shm carries again");
    rig_finish(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(a_broken_link_is_left_for_the_next_one_and_status_says_why),
        RIG_TEST(the_better_link_is_used_again),
        RIG_TEST(a_forced_link_is_made_again_at_once),
    };
    return cmocka_run_group_tests_name("e2e/links", tests, learn, rig_forget);
}
