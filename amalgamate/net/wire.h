/* net/wire.h -- a byte stream over a socket, plain or TLS, client or server */
#pragma once

#include "net/dns.h"
#include "net/loop.h"
#include "net/tls.h"

/* A connected socket with its buffers, embedded in its owner.  Callbacks come from the loop alone,
 * never from inside a call of the owner's; any of them may close and free the wire. */
typedef struct lk__wire lk__wire;

typedef struct lk__wire_ops {
    /* The TLS handshake is done.  Not called for plain sockets. */
    void (*ready)(lk__wire *w);
    /* Bytes have come, at least one; the view ends with the call. */
    void (*read)(lk__wire *w, llmkit_str bytes);
    /* The peer closed in order (error NULL), or the connection failed.  The wire is closed by then,
     * and nothing is called after. */
    void (*closed)(lk__wire *w, const llmkit_error *error);
    /* What waited to be sent has been handed to the kernel.  May be NULL. */
    void (*drained)(lk__wire *w);
} lk__wire_ops;

struct lk__wire {
    lk__io              io;
    lk__task            again; /* looks at the socket without being told to */
    llmkit_loop        *loop;
    const lk__wire_ops *ops;
    lk__buf             out;       /* bytes written that neither socket nor engine took yet */
    size_t              out_sent;  /* how many of them went since */
    bool                ready;     /* application bytes can flow */
    bool                paused;    /* the owner wants no bytes now */
    bool                shut;      /* say so to the peer once everything is sent */
    int                 broken;    /* errno of a write that failed; what is left to read may say
                                      more about it */
    bool                quick_ack; /* set by the owner: acknowledge at once (Linux) */
    bool               *gone;      /* set by lk__wire_close while a callback runs */
#if LLMKIT_WITH_TLS
    lk__tls            *tls;       /* NULL: plain */
    lk__buf             in;        /* of the peer's, received while the engine could take no more */
    lk__buf             record;    /* taken out of the engine while the socket was full */
    size_t              record_sent;
#endif
};

/* fd is connected, non-blocking, and the wire's from here on; on failure it is closed.  tls NULL:
 * plain.  host NULL: we are the server. */
LK__PRIV llmkit_err lk__wire_open(lk__wire *w, llmkit_loop *loop, int fd, const lk__wire_ops *ops,
                                  llmkit_tls *tls, const char *host, uint16_t port,
                                  llmkit_error *error);
/* Closes at once and drops what is unsent.  Safe in any callback and when already closed. */
LK__PRIV void lk__wire_close(lk__wire *w);
LK__INLINE bool lk__wire_is_open(const lk__wire *w) { return w->loop != NULL; }
/* Sends, or keeps what the socket does not take now: the pieces are the caller's again after the
 * call.  A connection that fails here is reported by closed, like any other.  E_NOMEM: what went
 * out may be a part of a piece, so that the wire is of no more use. */
LK__PRIV llmkit_err lk__wire_write(lk__wire *w, const llmkit_str *pieces, size_t num);
/* Bytes written that are still here; a TLS record that the engine is sending counts as sent. */
LK__PRIV size_t lk__wire_unsent(const lk__wire *w);
/* Nothing more will be written: once all is sent the peer is told so.  Reading goes on. */
LK__PRIV void lk__wire_shut(lk__wire *w);
LK__PRIV void lk__wire_pause(lk__wire *w);
LK__PRIV void lk__wire_resume(lk__wire *w);
