/* plan_print: a plan with its sums, for people and as JSON.
 *
 *     plan_print(&plan, &files, stdout);               // files: what the headers said; zero: nothing
 *     json_t *json = plan_json(&plan, &files);         // NULL: no memory; the caller's to free
 * Any thread. */
#ifndef TANDEM_CLIENT_PLAN_PRINT_H
#define TANDEM_CLIENT_PLAN_PRINT_H

#include <jansson.h>
#include <stdio.h>

#include "client/plan.h"

void plan_print(const struct plan *p, const struct model_files *files, FILE *out);
json_t *plan_json(const struct plan *p, const struct model_files *files);

#endif
