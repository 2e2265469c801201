/* death: a run that ends by a broken promise, a crash, a hang or a sanitizer says its seed all the same, which
 * nobody else knows then.
 *
 *     death_watch(say_replay);
 */
#ifndef TANDEM_TESTS_SIM_DEATH_H
#define TANDEM_TESTS_SIM_DEATH_H

void death_watch(void (*say)(void));

#endif
