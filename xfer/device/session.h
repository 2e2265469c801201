/* session: the two ends of a device link, as one state machine without sockets, devices or clock.
 *
 *     OPENING    dialler: OPEN is out, ACCEPT awaited       ACCEPTING  acceptor: OPEN awaited
 *     OFFERING   what the other side has to offer is awaited (NCCL: the unique id)
 *     JOINING    the transport connects (ncclCommInitRank)
 *     WARMING    operation 0 is under way, so that what is set up lazily is paid for before traffic
 *     READY      frames go; the dialler numbers the operations, the acceptor grants slots
 *     DRAINING   no new operation; those announced still run on both sides
 *     ABORTED    the transport is being thrown away; with tries left the dialler opens the next epoch
 *     CLOSED     only dslink_free is left
 *
 *     dslink_start(s, now)                        both sides, the control channel stands
 *     dslink_message(s, bytes, size, now)         what came over the control channel
 *     dslink_joined(s, e, now)                    the transport is connected, or broken with e
 *     dslink_ended(s, now)                        the transport's oldest operation is over
 *     dslink_broken(s, e, text, now)              the transport failed
 *     dslink_timer(s, now)                        at dslink_wake_at at the latest
 *     dslink_drain(s, now)                        the owner wants to close
 *     while (dslink_next(s, &act)) …;             TELL bytes, OPEN/JOIN/CLOSE transport, BEGIN operation, …
 *
 * Rules:
 *  - Each state that waits has a deadline, and ends in ABORTED at it. Each message carries the epoch of its
 *    try; one of an older epoch is dropped and counted, one of a newer one than the peer may have is an
 *    error of the peer. Bytes of a peer are never trusted: whatever it says, the answer is ERR_FORMAT.
 *  - Operation k is announced (PUSH k, slot, payload bytes, the frame's head) only into a granted slot and
 *    after the payload lies in the dialler's; an announced operation is begun by both sides, always, in the
 *    order of the numbers, whatever became of the ticket: the session does not know of tickets.
 *  - A slot is granted again only after its frame was released (the scatter is complete).
 *  - Frames without payload travel in the control channel, in their place between the others: the acceptor
 *    hands out frame n+1 only after n.
 *  - Turns: where operations are posted, BEGIN waits until the owner gives the turn of its direction
 *    (dslink_turn), of which there is one for a device over all its sessions.
 *  - No memory grows with a peer's behaviour: at most slots_count announcements are open; frames between
 *    them are bounded by the control channel's own flow control (they are read only when there is room).
 * One thread drives a session; pure otherwise. */
#ifndef TANDEM_XFER_DEVICE_SESSION_H
#define TANDEM_XFER_DEVICE_SESSION_H
#endif
