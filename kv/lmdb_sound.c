/* The format, of 64-bit little-endian machines; offsets and sizes in bytes:
 *
 *     page     0  8  its number          10  2  flags          12  2  lower: end of the node offsets
 *             14  2  upper: first node   12  4  in overflow pages: how many pages
 *             16  2  offsets of the nodes, each
 *     meta    16  4  magic               20  4  version         24  8  address    32  8  map size
 *    (0, 1)   40 48  database of free pages      88 48  the unnamed database
 *            136  8  last page used     144  8  transaction: the newer of the two pages is read
 *     db       0  4  (page size)          4  2  flags            6  2  depth       8  8  branch pages
 *             16  8  leaf pages          24  8  overflow pages  32  8  entries    40  8  root, or ~0
 *     node     0  2  low, 2  2  high: bytes of data in leaves, page of the child in branches, where 4  2
 *              flags are its highest bits; 6  2  bytes of the key; 8  key, data
 *
 * A record of free pages has a transaction as its key, and a count and so many page numbers as data, the
 * highest first; too long for a leaf, its data are on overflow pages and the leaf has their first page. */
#include "kv/lmdb_sound.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"

enum {
    PAGE = 4096,
    PAGE_HEADER = 16,
    NODE_HEADER = 8,
    BRANCH = 1,
    LEAF = 2,
    OVERFLOW_PAGE = 4,
    META = 8,
    BIG_DATA = 1,
    DEPTH_MAX = 16,
    FREE_FLAGS = 0x4008, /* MDB_NOSUBDIR of the file, MDB_INTEGERKEY */
};
#define NO_PAGE UINT64_MAX

struct page {
    _Alignas(8) unsigned char b[PAGE];
};

/* One of the two databases, as the meta page tells it and as it is found. */
struct tree {
    bool free_pages;
    uint64_t flags, depth, branches, leaves, overflows, entries, root;
    uint64_t branches_found, leaves_found, overflows_found, entries_found;
    size_t key_bytes, data_bytes;
    unsigned char last[32]; /* the key before */
    bool any, at_least;     /* there is one; the next may be equal to it */
};

struct walk {
    int fd;
    uint64_t pages_max, last_page, transaction;
    unsigned char *seen; /* a bit for each page */
    struct page page[DEPTH_MAX];
};

static uint64_t number(const unsigned char *at, uint32_t bytes)
{
    uint64_t v = 0;
    memcpy(&v, at, bytes);
    return v;
}

__attribute__((format(printf, 1, 2))) static bool wrong(const char *format, ...)
{
    char text[128];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    err_set(ERR_FORMAT, "index: %s", text);
    return false;
}

static bool read_page(struct walk *w, uint64_t number_of, struct page *page)
{
    if (pread(w->fd, page->b, PAGE, (off_t)(number_of * PAGE)) == PAGE) return true;
    return wrong("page %llu cannot be read", (unsigned long long)number_of);
}

/* Each page is one thing only. */
static bool see(struct walk *w, uint64_t page)
{
    if (page < 2 || page > w->last_page)
        return wrong("page %llu of %llu", (unsigned long long)page,
                     (unsigned long long)w->last_page);
    unsigned char bit = (unsigned char)(1 << page % 8);
    if (w->seen[page / 8] & bit) return wrong("page %llu twice", (unsigned long long)page);
    w->seen[page / 8] |= bit;
    return true;
}

static int compare(const struct tree *t, const unsigned char *a, const unsigned char *b)
{
    if (!t->free_pages) return memcmp(a, b, t->key_bytes);
    uint64_t x = number(a, 8), y = number(b, 8);
    return x < y ? -1 : x > y;
}

/* Keys ascend through the whole tree; a branch's key is no greater than the first below it. */
static bool key_follows(struct tree *t, const unsigned char *key, bool separator)
{
    int order = t->any ? compare(t, t->last, key) : -1;
    if (order > 0 || (order == 0 && !t->at_least)) return wrong("keys out of order");
    memcpy(t->last, key, t->key_bytes);
    t->any = true;
    t->at_least = separator;
    return true;
}

/* --- the list of free pages --- */

struct list {
    uint64_t count, done, last; /* done: numbers read, the count included */
};

static bool list_add(struct walk *w, struct list *l, const unsigned char *bytes, uint64_t numbers)
{
    for (uint64_t i = 0; i < numbers && l->done <= l->count; i++, l->done++) {
        uint64_t v = number(bytes + 8 * i, 8);
        if (l->done == 0) {
            l->count = v;
            continue;
        }
        if (v >= l->last) return wrong("free pages out of order");
        l->last = v;
        if (!see(w, v)) return false;
    }
    return true;
}

static bool free_record(struct walk *w, struct tree *t, const unsigned char *key,
                        const unsigned char *data, uint64_t bytes, bool big)
{
    struct list list = {.last = UINT64_MAX};
    if (number(key, 8) == 0 || number(key, 8) > w->transaction)
        return wrong("free pages of a transaction to come");
    if (bytes < 8 || bytes % 8 != 0)
        return wrong("%llu bytes of free pages", (unsigned long long)bytes);
    if (!big) {
        if (!list_add(w, &list, data, bytes / 8)) return false;
    } else {
        uint64_t first = number(data, 8), pages = (PAGE_HEADER + bytes + PAGE - 1) / PAGE;
        struct page page;
        for (uint64_t i = 0; i < pages; i++) {
            if (!see(w, first + i) || !read_page(w, first + i, &page)) return false;
            size_t skip = i == 0 ? PAGE_HEADER : 0;
            if (i == 0 && (number(page.b, 8) != first || number(page.b + 10, 2) != OVERFLOW_PAGE ||
                           number(page.b + 12, 4) != pages))
                return wrong("page %llu is no overflow page", (unsigned long long)first);
            uint64_t left = bytes + PAGE_HEADER - i * PAGE;
            uint64_t here = (left < PAGE ? left : PAGE) - skip;
            if (!list_add(w, &list, page.b + skip, here / 8)) return false;
        }
        t->overflows_found += pages;
    }
    return list.done > list.count ? true : wrong("a list of free pages that is cut off");
}

/* --- trees --- */

static bool leaf_node(struct walk *w, struct tree *t, const unsigned char *node, size_t room)
{
    uint64_t flags = number(node + 4, 2), key_bytes = number(node + 6, 2);
    uint64_t data_bytes = number(node, 4);
    bool big = t->free_pages && flags == BIG_DATA;
    if (flags != 0 && !big) return wrong("a node with flags %llu", (unsigned long long)flags);
    if (key_bytes != t->key_bytes || (!t->free_pages && data_bytes != t->data_bytes))
        return wrong("a node with a key of %llu and %llu bytes", (unsigned long long)key_bytes,
                     (unsigned long long)data_bytes);
    if (data_bytes > w->pages_max * PAGE || NODE_HEADER + key_bytes + (big ? 8 : data_bytes) > room)
        return wrong("a node beyond its page");
    t->entries_found++;
    const unsigned char *key = node + NODE_HEADER;
    if (!key_follows(t, key, false)) return false;
    return !t->free_pages || free_record(w, t, key, key + key_bytes, data_bytes, big);
}

static bool visit(struct walk *w, struct tree *t, uint64_t page_number, uint64_t depth);

static bool branch_node(struct walk *w, struct tree *t, const unsigned char *node, size_t room,
                        bool first, uint64_t depth)
{
    uint64_t key_bytes = number(node + 6, 2);
    if (NODE_HEADER + key_bytes > room || (key_bytes != t->key_bytes && !(first && key_bytes == 0)))
        return wrong("a branch with a key of %llu bytes", (unsigned long long)key_bytes);
    if (!first && !key_follows(t, node + NODE_HEADER, true)) return false;
    return visit(w, t, number(node, 4) | number(node + 4, 2) << 32, depth + 1);
}

/* The page's own header, for this depth; *nodes: how many it has. */
static bool page_is(const struct tree *t, const struct page *p, uint64_t page_number,
                    uint64_t depth, size_t *nodes)
{
    bool leaf = depth == t->depth;
    uint64_t lower = number(p->b + 12, 2), upper = number(p->b + 14, 2);
    if (number(p->b, 8) != page_number || number(p->b + 10, 2) != (leaf ? LEAF : BRANCH))
        return wrong("page %llu is no %s", (unsigned long long)page_number,
                     leaf ? "leaf" : "branch");
    if (lower < PAGE_HEADER || lower % 2 != 0 || lower > upper || upper > PAGE)
        return wrong("page %llu from %llu to %llu", (unsigned long long)page_number,
                     (unsigned long long)lower, (unsigned long long)upper);
    *nodes = (lower - PAGE_HEADER) / 2;
    if (*nodes < (leaf || t->free_pages ? 1 : 2))
        return wrong("page %llu is empty", (unsigned long long)page_number);
    return true;
}

/* Which pairs of a page's bytes a node lies in. LMDB moves all that is from `upper` on, so the nodes must fill
 * it and not overlap. */
struct cover {
    bool pair[PAGE / 2];
    size_t bytes;
};

static bool cover(struct cover *c, const unsigned char *node, size_t at, bool leaf)
{
    size_t bytes = NODE_HEADER + number(node + 6, 2);
    if (leaf) bytes += number(node + 4, 2) == BIG_DATA ? 8 : number(node, 4);
    bytes = (bytes + 1) & ~(size_t)1;
    for (size_t i = at / 2; i < (at + bytes) / 2; i++) {
        if (i >= PAGE / 2 || c->pair[i]) return wrong("nodes over each other");
        c->pair[i] = true;
    }
    c->bytes += bytes;
    return true;
}

static bool visit(struct walk *w, struct tree *t, uint64_t page_number, uint64_t depth)
{
    if (!see(w, page_number)) return false;
    struct page *p = &w->page[depth - 1];
    struct cover covered = {.bytes = 0};
    size_t nodes = 0;
    bool leaf = depth == t->depth;
    if (!read_page(w, page_number, p) || !page_is(t, p, page_number, depth, &nodes)) return false;
    size_t upper = number(p->b + 14, 2);
    *(leaf ? &t->leaves_found : &t->branches_found) += 1;
    for (size_t i = 0; i < nodes; i++) {
        size_t at = number(p->b + PAGE_HEADER + 2 * i, 2);
        if (at < upper || at % 2 != 0 || at + NODE_HEADER > PAGE)
            return wrong("a node outside its page");
        if (leaf ? !leaf_node(w, t, p->b + at, PAGE - at)
                 : !branch_node(w, t, p->b + at, PAGE - at, i == 0, depth))
            return false;
        if (!cover(&covered, p->b + at, at, leaf)) return false;
    }
    return covered.bytes == PAGE - upper ? true : wrong("a gap between nodes");
}

static bool tree_sound(struct walk *w, struct tree *t, const unsigned char *db)
{
    t->flags = number(db + 4, 2);
    t->depth = number(db + 6, 2);
    t->branches = number(db + 8, 8);
    t->leaves = number(db + 16, 8);
    t->overflows = number(db + 24, 8);
    t->entries = number(db + 32, 8);
    t->root = number(db + 40, 8);
    if (t->flags != (t->free_pages ? FREE_FLAGS : 0))
        return wrong("flags %llu", (unsigned long long)t->flags);
    if (t->depth > DEPTH_MAX || (t->depth == 0) != (t->root == NO_PAGE))
        return wrong("a tree of depth %llu", (unsigned long long)t->depth);
    if (t->depth > 0 && !visit(w, t, t->root, 1)) return false;
    bool agree = t->branches == t->branches_found && t->leaves == t->leaves_found &&
                 t->overflows == t->overflows_found && t->entries == t->entries_found;
    return agree ? true : wrong("counts that do not agree");
}

static bool meta_sound(const struct walk *w, const struct page *p, uint64_t page_number)
{
    static const uint32_t magic = 0xbeefc0de, version = 1;
    if (number(p->b, 8) != page_number || number(p->b + 10, 2) != META ||
        number(p->b + 16, 4) != magic || number(p->b + 20, 4) != version ||
        number(p->b + 24, 8) != 0 || number(p->b + 40, 4) != PAGE)
        return wrong("no file of LMDB 0.9");
    uint64_t last = number(p->b + 136, 8);
    if (last < 1 || last >= w->pages_max || number(p->b + 144, 8) > UINT64_MAX / 2)
        return wrong("%llu pages", (unsigned long long)last);
    return true;
}

static enum err walk_sound(struct walk *w, size_t key_bytes, size_t data_bytes)
{
    struct page meta[2];
    for (uint64_t i = 0; i < 2; i++)
        if (!read_page(w, i, &meta[i]) || !meta_sound(w, &meta[i], i)) return ERR_FORMAT;
    bool second = number(meta[0].b + 144, 8) < number(meta[1].b + 144, 8);
    const unsigned char *m = meta[second].b;
    w->last_page = number(m + 136, 8);
    w->transaction = number(m + 144, 8);
    w->seen = mem_new(w->last_page / 8 + 1);
    if (!w->seen) return ERR_MEMORY;
    struct tree entries = {.key_bytes = key_bytes, .data_bytes = data_bytes};
    struct tree free_pages = {.free_pages = true, .key_bytes = 8};
    bool sound = tree_sound(w, &entries, m + 88) && tree_sound(w, &free_pages, m + 40);
    return sound ? OK : ERR_FORMAT;
}

enum err lmdb_sound(int fd, uint64_t bytes_max, size_t key_bytes, size_t data_bytes)
{
    CHECK(key_bytes <= sizeof((struct tree *)NULL)->last);
    if (sysconf(_SC_PAGESIZE) != PAGE)
        return err_set(ERR_UNSUPPORTED, "index: pages of %ld bytes here", sysconf(_SC_PAGESIZE));
    struct walk *w = mem_new(sizeof *w);
    if (!w) return ERR_MEMORY;
    w->fd = fd;
    w->pages_max = bytes_max / PAGE;
    enum err e = walk_sound(w, key_bytes, data_bytes);
    mem_free(w->seen);
    mem_free(w);
    return e;
}
