/* same_user: whether the other end of a unix socket belongs to our own user; an abstract name has no
 * permissions of its own.
 *
 *     if ((e = link_same_user(fd, "shm")) != OK) return e;      // ERR_UNSUPPORTED: another one; ERR_IO
 *
 * Any thread. */
#ifndef TANDEM_XFER_SAME_USER_H
#define TANDEM_XFER_SAME_USER_H

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/err.h"

/* `link` is the link's name, for the text. */
static inline enum err link_same_user(int fd, const char *link)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
        return err_set(ERR_IO, "%s link: %s", link, strerror(errno));
    if (peer.uid != geteuid())
        return err_set(ERR_UNSUPPORTED, "%s link: the other side runs as user %u", link, peer.uid);
    return OK;
}

#endif
