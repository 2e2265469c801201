/* list: a doubly linked ring whose links live in the members; the head is a link too.
 *
 *     struct request { struct list_link queue; ... };
 *     struct list_link head;
 *     list_init(&head);
 *     list_push_back(&head, &r->queue);
 *     for (struct list_link *l = head.next, *next; l != &head; l = next) {
 *         next = l->next;                                  // the member may leave or die
 *         serve(list_member(l, struct request, queue));
 *     }
 *     list_remove(&r->queue);                              // also if it is in no list
 *
 * Rules: nothing is allocated; a link is in one list at a time and is list_init-ed before its first
 * use. Owner: that of the members. */
#ifndef TANDEM_COMMON_LIST_H
#define TANDEM_COMMON_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list_link {
    struct list_link *next, *previous;
};

#define list_member(link, type, field) ((type *)(void *)((char *)(link)-offsetof(type, field)))

static inline void list_init(struct list_link *l)
{
    l->next = l->previous = l;
}
/* Of a head: nothing is in the list. Of a member: it is in none. */
static inline bool list_empty(const struct list_link *l)
{
    return l->next == l;
}
static inline void list_insert_before(struct list_link *place, struct list_link *l)
{
    l->next = place;
    l->previous = place->previous;
    place->previous->next = l;
    place->previous = l;
}
static inline void list_push_back(struct list_link *head, struct list_link *l)
{
    list_insert_before(head, l);
}
static inline void list_remove(struct list_link *l)
{
    l->previous->next = l->next;
    l->next->previous = l->previous;
    list_init(l);
}
/* The first link, taken out; NULL: the list is empty. */
static inline struct list_link *list_pop_front(struct list_link *head)
{
    if (list_empty(head)) return NULL;
    struct list_link *l = head->next;
    list_remove(l);
    return l;
}

#endif
