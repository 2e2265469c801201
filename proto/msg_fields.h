/* msg_fields: one table that says how each field of each struct msg lies in memory, how it is called on
 * the wire and what it may hold. msg_encode.c, msg_decode.c and msg_copy.c walk it, so a field is
 * described once. Private to msg.
 *
 *     const struct part *part = msg_part(MSG_RESERVE);      // struct msg_reserve <-> Tandem__Reserve
 *     for (i < part->fields_count) ... part->fields[i] ...
 *
 * Rules: `c` and `c_count` are offsets in the C struct, `w` and `w_count` in protobuf-c's. min and max
 * bound a number's value, a string's bytes or an array's count. Constant: any thread. */
#ifndef TANDEM_PROTO_MSG_FIELDS_H
#define TANDEM_PROTO_MSG_FIELDS_H

#include <protobuf-c/protobuf-c.h>

#include "proto/cluster.pb-c.h"
#include "proto/msg.h"

enum field_type {
    FIELD_BOOL,
    FIELD_U32,
    FIELD_I32,
    FIELD_U64,
    FIELD_FLOAT, /* finite; its range depends on the request and is job_check's */
    FIELD_ENUM,
    FIELD_CHOICE,  /* below JOB_CHOICES_MAX, or CHOICE_ALL */
    FIELD_NAME,    /* [A-Za-z0-9._-] */
    FIELD_STRING,  /* UTF-8 without control characters */
    FIELD_PROSE,   /* for people: cut at max when sent; what is no such text becomes some */
    FIELD_BYTES,   /* pointer and count; may hold zero bytes; one is put behind it when decoded */
    FIELD_IDS,     /* pointer to uint32_t, and count */
    FIELD_FLOATS,  /* pointer to float, and count; none is above 1, nor NaN */
    FIELD_HASHES,  /* pointer to uint64_t, and count */
    FIELD_STRINGS, /* pointer to strings (not empty, each of at most `min` bytes), and count */
    FIELD_ID,      /* struct id128; absent: none */
    FIELD_PART,    /* an embedded struct; min 1: must be there */
    FIELD_BIAS,    /* pointer to struct logit_bias, and count: BiasColumns */
    FIELD_KEYS,    /* pointer to struct job_key, and count: KeyColumns */
    FIELD_TOKENS,  /* pointer to struct token_info, and count: TokenColumns */
    FIELD_TOKEN,   /* one embedded struct token_info: TokenColumns */
    FIELD_RUNS,    /* pointer to struct token_run, and count: all fields of message Tokens */
};

struct part;

struct field {
    const char *name;
    enum field_type type;
    uint16_t c, c_count, w, w_count;
    uint32_t min, max;
    const struct part *part;
};

struct part {
    const char *name;
    const ProtobufCMessageDescriptor *wire;
    const struct field *fields;
    uint32_t fields_count;
    uint32_t c; /* of a message: its offset in struct msg */
};

const struct part *msg_part(enum msg_kind kind); /* kind is valid */

/* The checks that both directions share; `bad` is what they return and set. The first is of a number of any
 * type but FIELD_BOOL. */
enum err field_copy_number(const struct field *f, const char *from, char *to, enum err bad);
enum err field_check_string(const struct field *f, const char *s, enum err bad);
enum err field_check_items(const struct field *f, char *const *items, size_t count, enum err bad);
enum err field_check_choice(uint32_t choice, enum err bad);
enum err field_check_token(const struct token_info *t, enum err bad);
enum err field_check_floats(const struct field *f, const float *v, size_t count, enum err bad);
/* What spans fields: SUBMIT has one prompt. */
enum err msg_check_whole(const struct msg *m, enum err bad);

#endif
