/* What the command shows of a cluster, out of a file or as a router answered: any JSON is examined and printed,
 * whatever is missing in it, of another type or out of all bounds. */
#include <stdint.h>
#include <stdio.h>

#include "client/doctor.h"
#include "client/kv_show.h"
#include "client/layers.h"
#include "client/timeline.h"

static void examine(const json_t *samples)
{
    static struct diagnosis d;
    struct facts f;
    if (facts_read(&f, samples) != OK) {
        CHECK(err_text()[0] != '\0');
        return;
    }
    doctor_examine(&f, &d);
    CHECK(d.findings_count <= DOCTOR_FINDINGS_MAX);
    CHECK(d.dropped == 0 || d.findings_count == DOCTOR_FINDINGS_MAX);
    for (size_t i = 0; i < d.findings_count; i++)
        CHECK(d.finding[i].what[0] && d.finding[i].why[0] && d.finding[i].advice[0]);
    facts_fini(&f);
}

static void show(FILE *out, const json_t *answer)
{
    const json_t *choice = json_array_get(json_object_get(answer, "choices"), 0);
    kv_show(out, answer);
    kv_plot(out, answer);
    timeline_print(out, choice);
    layers_print(out, choice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static FILE *out;
    json_t *root = json_loadb((const char *)data, size, 0, NULL);
    if (!root) return 0;
    if (!out) out = fopen("/dev/null", "w");
    CHECK(out);
    json_t *kv = json_pack("{s:[{s:O},{s:O}]}", "samples", "kv", root, "kv", root);
    json_t *status = json_pack("{s:[{s:O},{s:O}]}", "samples", "status", root, "status", root);
    examine(root);
    examine(kv);
    examine(status);
    show(out, root);
    json_decref(kv);
    json_decref(status);
    json_decref(root);
    return 0;
}
