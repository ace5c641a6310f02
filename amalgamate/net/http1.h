/* net/http1.h -- HTTP/1.1 messages, both directions (RFC 9112) */
#pragma once

#include "core/error.h"

typedef struct lk__field {
    llmkit_str name, value;
} lk__field;

/* One parsed head.  Views into the input or the parser, valid until the next lk__http_feed. */
typedef struct lk__head {
    llmkit_str method, target; /* of a request */
    uint16_t   status;         /* of a response */
    llmkit_str reason;
    uint8_t    minor;          /* of HTTP/1.minor */
    bool       keep_alive;     /* the connection may serve another message after this one */
    bool       chunked, has_length;
    bool       expect_continue; /* Expect: 100-continue */
    uint64_t   length;          /* Content-Length */
    uint32_t   num;
    lk__field  fields[LLMKIT_MAX_HEADERS];
} lk__head;

LK__PRIV llmkit_str lk__head_get(const lk__head *head, llmkit_str name); /* {NULL, 0}: not there */

enum {
    LK__HTTP_MAX_BLANK = 8,         /* CR and LF before a head (RFC 9112 2.2) */
    LK__HTTP_MAX_INTERIM = 16,      /* 1xx responses before the final one */
    LK__HTTP_MAX_CHUNK_LINE = 1024, /* a chunk's size with its extensions, which we skip (7.1.1) */
    LK__HTTP_KEEP_BYTES = 2048      /* of a partial head's memory, for the next one */
};

typedef enum lk__http_event {
    LK__HTTP_MORE, /* all of the input is consumed */
    LK__HTTP_HEAD, /* a head is complete */
    LK__HTTP_BODY, /* a piece of the body, not empty */
    LK__HTTP_END,  /* the message is complete; what is left of the input belongs to the next */
    LK__HTTP_ERROR /* parser.error says why; nothing more can be parsed */
} lk__http_event;

/* A parser for one direction of one connection: no sockets, no clock.  Feed it until MORE, END or
 * ERROR, also when a HEAD or BODY has used up the input: END may follow.  What it says depends on
 * the bytes alone and not on where the input was cut, but for the pieces of bodies.  1xx responses
 * are skipped (101 is an error: nothing here upgrades).  After END it is ready for the next one.
 * Small and plain memory: it allocates only to hold a head that arrives in pieces, or a response's
 * whose fields are folded. */
typedef struct lk__http {
    bool       request;   /* parses requests, else responses */
    bool       no_body;   /* set by the caller before each head: the response is to HEAD */
    uint8_t    state;
    bool       keep_alive;
    uint64_t   left;      /* of the body or the chunk */
    uint32_t   line;      /* bytes of the present chunk-size line, or blank ones before a head */
    uint32_t   trailer;   /* bytes of the trailer section so far */
    uint32_t   max_head;  /* bytes of a head, and of a trailer section */
    uint8_t    interim;   /* 1xx responses skipped since the last message */
    lk__buf    partial;   /* a head that has arrived in part */
    llmkit_err error;     /* E_PROTOCOL, E_TOO_BIG, E_NOMEM or E_TRUNCATED */
    bool       unknown_coding; /* with E_PROTOCOL: a Transfer-Encoding other than chunked */
    const char *reason;   /* in words, a literal */
} lk__http;

/* max_head 0: LLMKIT_MAX_HEAD_BYTES. */
LK__PRIV void lk__http_init(lk__http *h, const llmkit_env *env, bool request, uint32_t max_head);
LK__PRIV void lk__http_free(lk__http *h);
/* Consumes from the front of *in.  head is filled on HEAD, body on BODY. */
LK__PRIV lk__http_event lk__http_feed(lk__http *h, llmkit_str *in, lk__head *head,
                                      llmkit_str *body);
/* The peer closed the connection: END for a body that ends so, MORE between two messages, else
 * ERROR with E_TRUNCATED. */
LK__PRIV lk__http_event lk__http_eof(lk__http *h);

LK__PRIV bool lk__http_is_token_char(char c);     /* RFC 9110 5.6.2 */
LK__PRIV bool lk__http_has_control(llmkit_str s); /* other than HTAB: no value may (5.5) */

/* Writing.  Nothing a caller passes can split a message.  A method that is no token, or a target
 * that is empty or holds more than visible ASCII, adds nothing and makes out->failed E_ARG, as does
 * a status that is not from 100 to 599. */
LK__PRIV void lk__http_request_line(lk__buf *out, llmkit_str method, llmkit_str target);
LK__PRIV void lk__http_status_line(lk__buf *out, int status);
/* E_ARG, and nothing is added, where name is no token or value holds a control byte but HTAB. */
LK__PRIV llmkit_err lk__http_field(lk__buf *out, llmkit_str name, llmkit_str value);
LK__PRIV void lk__http_field_u64(lk__buf *out, llmkit_str name, uint64_t value); /* a literal */
LK__PRIV void lk__http_chunk(lk__buf *out, llmkit_str piece); /* empty: nothing */
LK__PRIV void lk__http_last_chunk(lk__buf *out);
