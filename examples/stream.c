/* stream: a completion in an event loop of one's own, here epoll with two descriptors. The text is
 * printed as it comes; Enter cancels it.
 *
 *     cc examples/stream.c $(pkg-config --cflags --libs tandem) -o stream
 *     ./stream tcp://127.0.0.1:5700 "Once upon a time"
 *
 * Exit status: 0 done, 1 failed or cancelled, 2 wrong usage. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <tandem.h>
#include <unistd.h>

struct stream {
    struct tandem_request *request;
    bool over, failed;
};

static void on_event(void *ctx, const struct tandem_event *e)
{
    struct stream *s = ctx;
    switch (e->kind) {
    case TANDEM_EVENT_ACCEPTED:
        fprintf(stderr, "request %s, %u prompt tokens\n", e->id, e->prompt_tokens);
        break;
    case TANDEM_EVENT_TOKENS: /* the ids, for whoever wants them; their text comes by itself */
        break;
    case TANDEM_EVENT_TEXT:
        fwrite(e->text, 1, e->text_bytes, stdout);
        fflush(stdout);
        break;
    case TANDEM_EVENT_DONE:
        fprintf(stderr, "\n%s after %u tokens, the first after %.2f ms\n",
                tandem_finish_name(e->finish), e->completion_tokens,
                (double)e->timing.ttft / 1000.0);
        s->failed = e->finish == TANDEM_FINISH_CANCELLED;
        break;
    case TANDEM_EVENT_ERROR:
        fprintf(stderr, "%s\n", e->reason);
        s->failed = true;
        break;
    }
    if (e->kind == TANDEM_EVENT_DONE || e->kind == TANDEM_EVENT_ERROR)
        s->over = e->choices_left == 0;
}

static void loop(struct tandem *t, struct stream *s, int epoll)
{
    struct epoll_event ready[2];
    while (!s->over) {
        int n = epoll_wait(epoll, ready, 2, -1);
        for (int i = 0; i < n; i++) {
            char typed[256];
            if (ready[i].data.fd == tandem_fd(t)) {
                tandem_process(t); /* calls on_event */
            } else if (read(STDIN_FILENO, typed, sizeof typed) > 0) {
                tandem_cancel(s->request);
            } else { /* the end of input is no wish to cancel */
                epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
            }
        }
    }
}

int main(int argc, char **argv)
{
    struct tandem *t = NULL;
    struct stream s = {.failed = true};
    if (argc != 3) {
        fprintf(stderr, "usage: stream tcp://HOST:PORT PROMPT\n");
        return 2;
    }
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (tandem_open(&t, argv[1]) != TANDEM_OK) goto fail;
    if (!(s.request = tandem_request_new(t, on_event, &s))) goto fail;
    if (tandem_set_text(s.request, argv[2], strlen(argv[2])) != TANDEM_OK) goto fail;
    tandem_set_max_tokens(s.request, 200);
    if (tandem_submit(s.request) != TANDEM_OK) goto fail;

    struct epoll_event in = {.events = EPOLLIN, .data.fd = STDIN_FILENO};
    struct epoll_event ours = {.events = EPOLLIN, .data.fd = tandem_fd(t)};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO,
              &in); /* fails for a file: then nothing is typed */
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, tandem_fd(t), &ours) == 0)
        loop(t, &s, epoll);
    else
        perror("epoll_ctl");
    goto end;
fail:
    fprintf(stderr, "stream: %s\n", tandem_error_text());
end:
    tandem_request_free(s.request);
    tandem_close(t);
    if (epoll >= 0) close(epoll);
    return s.failed ? 1 : 0;
}
