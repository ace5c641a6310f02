/* net/sse.h -- event streams, both directions (WHATWG HTML 9.2) */
#pragma once

#include "core/error.h"

/* Views valid until the next lk__sse_feed: into the input where an event lies whole and on one data
 * line in it, else into the decoder. */
typedef struct lk__sse_event {
    llmkit_str name; /* "" is the default, "message" */
    llmkit_str data;
} lk__sse_event;

typedef struct lk__sse {
    lk__buf  line;       /* a line that has arrived in part */
    lk__buf  data, name; /* of the event being assembled */
    bool     has_data;   /* a data line was seen, even an empty one */
    bool     handed;     /* the buffers hold the event that was handed out last */
    bool     skip_lf;    /* the last byte was the CR of a possible CRLF */
    bool     bare_cr;    /* CR alone has ended a line: memchr for LF might look far in vain */
    bool     started;    /* past a byte order mark, or known to have none */
    uint8_t  bom;        /* bytes of it seen so far */
    int64_t  retry_ms;   /* the last retry field, -1 if there was none */
    llmkit_err error;    /* E_TOO_BIG or E_NOMEM; sticks */
} lk__sse;

/* max_event_bytes bounds each line and the joined data of an event; 0: LLMKIT_MAX_EVENT_BYTES. */
LK__PRIV void lk__sse_init(lk__sse *d, const llmkit_env *env, size_t max_event_bytes);
LK__PRIV void lk__sse_free(lk__sse *d);
LK__PRIV void lk__sse_reset(lk__sse *d); /* a new stream; keeps the memory */
/* Consumes from the front of *in up to the next event.  false: all is consumed, or d->error. */
LK__PRIV bool lk__sse_feed(lk__sse *d, llmkit_str *in, lk__sse_event *event);

/* name "" for the default; one that holds CR or LF adds nothing and makes out->failed E_ARG.  data
 * may hold line ends, and arrives with LF for each of them. */
LK__PRIV void lk__sse_write(lk__buf *out, llmkit_str name, llmkit_str data);
