/* failpoint: places where a process crashes, stops or waits when a test of whole clusters wants it to.
 *
 *     FAILPOINT("commit");                            // in the product's code
 *     FAILPOINT_KIND("send", msg_kind_name(m->kind)); // "send_reserve", "send_tokens" …
 *
 *     TANDEM_FAILPOINT=send_first=crash@3             // in the environment: at the third time
 *     TANDEM_FAILPOINT=commit=stop@1                  // SIGSTOP; whoever watches sends SIGCONT
 *     TANDEM_FAILPOINT=push=delay:200@2               // milliseconds
 *
 * Rules: without TANDEM_FAILPOINTS, which only the preset `chaos` defines (./dev chaos), and link plugins
 * that are built for tests (tests/fake), nothing of it is left. A crash is SIGKILL: nothing is tidied up.
 * Each point acts once per process. Any thread. */
#ifndef TANDEM_COMMON_FAILPOINT_H
#define TANDEM_COMMON_FAILPOINT_H

#ifdef TANDEM_FAILPOINTS
void failpoint_hit(const char *prefix, const char *name); /* prefix "": none */
#define FAILPOINT(name) failpoint_hit("", name)
#define FAILPOINT_KIND(prefix, kind) failpoint_hit(prefix, kind)
#else
#define FAILPOINT(name) ((void)0)
#define FAILPOINT_KIND(prefix, kind) ((void)0)
#endif

#endif
