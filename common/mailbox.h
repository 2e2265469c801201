/* mailbox: messages of one fixed size, from any thread to one.
 *
 *     struct mailbox *m;
 *     if ((e = mailbox_new(&m, sizeof(struct step), 64)) != OK) return e;
 *     // any thread
 *     if ((e = mailbox_send(m, &step)) == ERR_FULL) ...;    // copied; back-pressure is the
 * caller's
 *     // the receiver, in its event loop: when mailbox_fd(m) is readable
 *     while ((e = mailbox_receive(m, &step)) == OK) run(&step);   // ERR_AGAIN: drained
 *     // or a receiver that is no loop
 *     while ((e = mailbox_wait(m, &step, TIME_NEVER)) == OK) run(&step);
 *     // the end: close, join the receiver's thread, free
 *     mailbox_close(m);
 *
 * Rules: a message is copied in and out; pointers inside it change owner with it. Messages of one
 * sender arrive in its order. The fd is readable while something may be waiting and falls silent
 * when mailbox_receive has said ERR_AGAIN, so many sends cost one wake-up. mailbox_close refuses
 * new sends and returns at once; what was sent before is still received, then receive and wait say
 * ERR_CANCELLED and the fd stays readable. Nothing is allocated after mailbox_new.
 * Owner: send, close: any thread. receive, wait: one thread. free: after all of them. */
#ifndef TANDEM_COMMON_MAILBOX_H
#define TANDEM_COMMON_MAILBOX_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct mailbox;

enum err mailbox_new(struct mailbox **out, size_t message_bytes, uint32_t messages_max);
void mailbox_free(struct mailbox *m);

/* ERR_FULL: messages_max are waiting. ERR_CANCELLED: closed. */
enum err mailbox_send(struct mailbox *m, const void *message);
/* ERR_AGAIN: none now. ERR_CANCELLED: closed and drained. */
enum err mailbox_receive(struct mailbox *m, void *message);
/* Blocks up to timeout_ns (TIME_NEVER: for ever). ERR_TIMEOUT: none came. ERR_CANCELLED as above.
 */
enum err mailbox_wait(struct mailbox *m, void *message, uint64_t timeout_ns);
void mailbox_close(struct mailbox *m);

/* For poll, epoll or libevent: readable, level-triggered; never read it yourself. */
int mailbox_fd(const struct mailbox *m);

#endif
