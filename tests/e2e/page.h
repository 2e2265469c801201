/* page: what a process shows over HTTP.
 *
 *     char text[PAGE_MAX];
 *     int status = page_get("127.0.0.1:9100", "/readyz", text);     // 503, "draining\n"
 *     page_await("127.0.0.1:9100", "/readyz", 200, "ok\n");
 *
 * Rules: waits CLUSTER_WAIT_MS at most and fails the test then. Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_PAGE_H
#define TANDEM_TESTS_E2E_PAGE_H

enum { PAGE_MAX = 1 << 17 };

int page_get(const char *address, const char *path, char text[PAGE_MAX]);
/* Asks again until this is the answer. */
void page_await(const char *address, const char *path, int status, const char *text);

#endif
