/* net/fetch.h -- one HTTP exchange with its deadlines, on a pool of kept-alive connections */
#pragma once

#include "net/http1.h"
#include "net/url.h"
#include "net/wire.h"

typedef struct lk__pool   lk__pool;   /* the connections of one client */
typedef struct lk__origin lk__origin; /* one scheme, host and port in it */
typedef struct lk__fetch  lk__fetch;

typedef struct lk__pool_desc {
    const llmkit_env *env;
    llmkit_loop      *loop;
    llmkit_tls       *tls; /* a reference is taken; NULL: made at the first https origin */
    uint32_t          max_connections; /* to each origin */
    int64_t           keep_alive_ns, max_age_ns, dns_ns;
    int64_t           connect_ns, tls_ns; /* deadlines of each connection attempt; 0: none */
} lk__pool_desc;

typedef struct lk__pool_stats {
    uint64_t connects, reused, resent;
    uint32_t open, idle;
} lk__pool_stats;

LK__PRIV lk__pool *lk__pool_create(const lk__pool_desc *desc, llmkit_error *error);
LK__PRIV void lk__pool_destroy(lk__pool *pool); /* no fetch is running; NULL is fine */
LK__PRIV lk__pool_stats lk__pool_read(const lk__pool *pool);
/* The origin of a URL; lives as long as the pool.  The same answer for the same origin. */
LK__PRIV lk__origin *lk__pool_origin(lk__pool *pool, const lk__url *url, llmkit_error *error);
LK__PRIV llmkit_str lk__origin_name(const lk__origin *origin); /* as in the Host field */
/* Opens connections until count are open, or one of them fails. */
LK__PRIV void lk__origin_warm(lk__origin *origin, uint32_t count);
LK__PRIV bool lk__origin_is_warming(const lk__origin *origin);

/* One exchange, embedded in its owner.  Zero is none.  The owner fills the first block and keeps
 * what it points to until done.  No callback comes from inside lk__fetch_start; any may call
 * lk__fetch_stop, and free the fetch after it. */
struct lk__fetch {
    lk__origin *origin;
    llmkit_str  head, body; /* of the request, ready for the wire */
    bool        head_only;  /* the method is HEAD: the response has no body */
    int64_t     first_byte_ns, idle_ns; /* 0: no such deadline */
    void      (*on_head)(lk__fetch *f, const lk__head *head);
    void      (*on_body)(lk__fetch *f, llmkit_str piece);
    /* The last callback: error NULL if the response came whole. */
    void      (*on_done)(lk__fetch *f, const llmkit_error *error);

    /* The fetch's own.  Times are the loop's, 0 where it has not come to that. */
    struct lk__conn *conn;
    lk__fetch       *next, *prev; /* among those that wait for a connection */
    lk__timer        timer;
    int64_t          asked_ns, sent_ns, first_ns, heard_ns;
    size_t           unsent; /* of the request, when the timer looked last */
    uint8_t          state;
    bool             fresh;   /* sent again, on a connection of its own */
    bool             untimed; /* there was no memory to set the timer: it fails soon */
    bool             paused;  /* for further exchanges too, until resumed */
};

LK__PRIV void lk__fetch_start(lk__fetch *f);
LK__PRIV void lk__fetch_stop(lk__fetch *f); /* no callback comes after; safe when it is over */
/* Stops reading; what has been read already still comes, so that a paused fetch may even end.  Its
 * deadlines stand still.  Safe when it is not running. */
LK__PRIV void lk__fetch_pause(lk__fetch *f);
LK__PRIV void lk__fetch_resume(lk__fetch *f);
/* Changes idle_ns of a running fetch: from now on. */
LK__PRIV void lk__fetch_set_idle(lk__fetch *f, int64_t idle_ns);
