#include "common/progress.h"

#include <unistd.h>

#include "common/clock.h"

enum { WIDTH = 24 };
#define QUIET_NS (2 * NS_PER_S)
#define APART_NS (NS_PER_S / 2)
#define ERASE "\r\033[K"

void progress_begin(struct progress *p, FILE *to, uint64_t now_ns)
{
    *p = (struct progress){.to = to, .next_ns = now_ns + QUIET_NS};
    p->screen = isatty(fileno(to)) == 1;
}

static void print_bar(FILE *to, uint64_t done, uint64_t all)
{
    double share = done < all ? (double)done / (double)all : 1;
    int full = (int)(share * WIDTH);
    fputc('[', to);
    for (int i = 0; i < WIDTH; i++)
        fputc(i < full ? '#' : '-', to);
    fprintf(to, "] %3d %%  ", (int)(share * 100));
}

void progress_show(struct progress *p, uint64_t now_ns, uint64_t done, uint64_t all,
                   const char *text)
{
    if (!p->screen || now_ns < p->next_ns) return;
    fputs(ERASE, p->to);
    if (all > 0) print_bar(p->to, done, all);
    fputs(text, p->to);
    fflush(p->to);
    p->shown = true;
    p->next_ns = now_ns + APART_NS;
}

void progress_end(struct progress *p)
{
    if (p->shown) fputs(ERASE, p->to);
    p->shown = false;
}
