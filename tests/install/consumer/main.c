/* A program outside the project: sees the installed header and library, nothing else. */
#include <stdio.h>
#include <string.h>

#include <tandem.h>

int main(void)
{
    struct tandem *t = NULL;
    if (tandem_open(&t, "no address") != TANDEM_INVALID || strlen(tandem_error_text()) == 0)
        return 1;
    if (tandem_open(&t, "tcp://127.0.0.1:1") != TANDEM_OK || tandem_fd(t) < 0) return 1;
    tandem_close(t);
    puts("libtandem is here");
    return 0;
}
