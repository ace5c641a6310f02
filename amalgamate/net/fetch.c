/* net/fetch.c -- origins, their connections, and exchanges that wait for one or run on one */

#include "net/dial.h"
#include "net/fetch.h"

/* Connections of a pool that are being set up at once: those in use should keep their pace, and a
 * TLS handshake costs 0.2 to 6 ms of CPU. */
enum { LK__MAX_OPENING = 64 };

typedef enum lk__conn_state {
    LK__CONN_DIALLING,
    LK__CONN_SHAKING, /* TLS handshake */
    LK__CONN_IDLE,
    LK__CONN_BUSY,
    LK__CONN_DEAD /* waiting to be freed */
} lk__conn_state;

typedef struct lk__conn {
    lk__wire         wire;
    lk__http         http;
    lk__origin      *origin;
    lk__dial        *dial;
    lk__fetch       *fetch;
    struct lk__conn *next, *prev;           /* all of the origin's */
    struct lk__conn *idle_next, *idle_prev; /* most recently used first */
    lk__timer        timer;                 /* connect, TLS or keep-alive */
    lk__task         reap;
    int64_t          born_ns, idle_ns;
    uint32_t         served;
    bool             heard; /* a byte of the present response has come */
    bool             starved; /* there was no memory for the rest of the request */
    uint8_t          state;
} lk__conn;

typedef enum lk__fetch_state {
    LK__FETCH_OFF,
    LK__FETCH_WAITING,  /* for a connection */
    LK__FETCH_SENT,     /* for the first byte */
    LK__FETCH_RECEIVING
} lk__fetch_state;

struct lk__origin {
    lk__origin  *next;
    lk__pool    *pool;
    char        *host, *unix_path;
    char        *name; /* the Host field */
    uint16_t     port;
    bool         tls;
    bool         proven;  /* a connection has been made, so that more can be made at once */
    bool         splits;  /* sends head and body apart: see quick_ack */
    bool         resolved; /* addrs are from the last lookup, which was at resolved_ns */
    uint32_t     num, opening;
    uint32_t     warm;    /* connections asked for ahead of need */
    lk__conn    *conns, *idle, *idle_last;
    lk__fetch   *waiting, *waiting_last;
    uint32_t     num_waiting, num_untimed;
    lk__task     work;    /* opens connections where some are wanted */
    lk__lookup   lookup;
    lk__addrs    addrs;
    int64_t      resolved_ns;
};

struct lk__pool {
    llmkit_env       env;
    lk__pool_desc    desc;
    lk__origin      *origins;
    uint32_t         opening;
    lk__pool_stats   stats;
};

LK__PRIV bool lk__conn_serve_next(lk__conn *c);
LK__PRIV void lk__conn_close(lk__conn *c);
LK__PRIV void lk__fetch_fail(lk__fetch *f, const llmkit_error *error);

LK__PRIV int64_t lk__origin_now(const lk__origin *o) {
    return lk__loop_now(o->pool->desc.loop);
}

LK__PRIV int64_t lk__deadline(int64_t now, int64_t after) { /* 0: none */
    return after ? now + after : LK__NEVER_NS;
}

/* Connections are opened from a task of their own, so that no failure is reported from inside
 * lk__fetch_start or in the middle of another's end. */
LK__PRIV void lk__origin_wake(lk__origin *o) {
    if (o->num_waiting || o->warm) lk__defer(o->pool->desc.loop, &o->work);
}

/* ---- the list of fetches that wait ----------------------------------------------------------- */

LK__PRIV void lk__waiting_add(lk__origin *o, lk__fetch *f, bool front) {
    lk__fetch *after = front ? NULL : o->waiting_last;
    f->prev = after;
    f->next = after ? after->next : o->waiting;
    *(f->prev ? &f->prev->next : &o->waiting) = f;
    *(f->next ? &f->next->prev : &o->waiting_last) = f;
    f->state = LK__FETCH_WAITING;
    o->num_waiting++;
}

LK__PRIV void lk__waiting_remove(lk__origin *o, lk__fetch *f) {
    *(f->prev ? &f->prev->next : &o->waiting) = f->next;
    *(f->next ? &f->next->prev : &o->waiting_last) = f->prev;
    f->next = f->prev = NULL;
    f->state = LK__FETCH_OFF;
    o->num_waiting--;
    o->num_untimed -= f->untimed;
    f->untimed = false;
}

/* ---- the life of a connection ---------------------------------------------------------------- */

/* Without a timer to end it a connection is not kept. */
LK__PRIV void lk__idle_add(lk__conn *c) {
    lk__origin *o = c->origin;
    c->idle_prev = NULL;
    c->idle_next = o->idle;
    *(o->idle ? &o->idle->idle_prev : &o->idle_last) = c;
    o->idle = c;
    c->state = LK__CONN_IDLE;
    c->idle_ns = lk__origin_now(o);
    o->pool->stats.idle++;
    int64_t until = lk__deadline(c->idle_ns, o->pool->desc.keep_alive_ns);
    if (lk__timer_set(o->pool->desc.loop, &c->timer, until)) lk__conn_close(c);
}

/* The timer is left running: it looks at what the connection does when it fires. */
LK__PRIV void lk__idle_remove(lk__conn *c) {
    lk__origin *o = c->origin;
    *(c->idle_prev ? &c->idle_prev->idle_next : &o->idle) = c->idle_next;
    *(c->idle_next ? &c->idle_next->idle_prev : &o->idle_last) = c->idle_prev;
    o->pool->stats.idle--;
}

LK__PRIV void lk__conn_free(lk__conn *c) {
    lk__origin *o = c->origin;
    *(c->prev ? &c->prev->next : &o->conns) = c->next;
    if (c->next) c->next->prev = c->prev;
    lk__undefer(o->pool->desc.loop, &c->reap);
    lk__http_free(&c->http);
    lk__free(&o->pool->env, c, sizeof *c);
}

/* A dead connection goes; one that found no memory for its request fails it first. */
LK__PRIV void lk__conn_on_reap(lk__task *task) {
    lk__conn *c = LK__CONTAINER(task, lk__conn, reap);
    if (c->state == LK__CONN_DEAD) {
        lk__conn_free(c);
    } else if (c->fetch && c->starved) {
        llmkit_error error;
        lk__fail(&error, LLMKIT_E_NOMEM, "no memory to send a request to %s", c->origin->name);
        lk__fetch_fail(c->fetch, &error);
    }
}

/* Set up or given up: the place among those under way is any origin's. */
LK__PRIV void lk__conn_opened(lk__conn *c) {
    c->origin->opening--;
    c->origin->pool->opening--;
    for (lk__origin *o = c->origin->pool->origins; o; o = o->next) lk__origin_wake(o);
}

/* Closes at once, frees later: a callback of the connection's may be running. */
LK__PRIV void lk__conn_close(lk__conn *c) {
    lk__origin *o = c->origin;
    if (c->state == LK__CONN_DEAD) return;
    if (c->state == LK__CONN_DIALLING || c->state == LK__CONN_SHAKING) lk__conn_opened(c);
    if (c->state == LK__CONN_IDLE) lk__idle_remove(c);
    c->state = LK__CONN_DEAD;
    o->num--;
    o->pool->stats.open--;
    lk__dial_stop(c->dial);
    c->dial = NULL;
    lk__wire_close(&c->wire);
    lk__timer_stop(o->pool->desc.loop, &c->timer);
    lk__defer(o->pool->desc.loop, &c->reap);
    lk__origin_wake(o);
}

/* ---- the end of a fetch ---------------------------------------------------------------------- */

LK__PRIV void lk__fetch_detach(lk__fetch *f) {
    lk__timer_stop(f->origin->pool->desc.loop, &f->timer);
    if (f->conn) {
        f->conn->fetch = NULL;
        lk__wire_resume(&f->conn->wire); /* the pause was the fetch's own */
    }
    f->conn = NULL;
    f->state = LK__FETCH_OFF;
}

LK__PRIV void lk__fetch_fail(lk__fetch *f, const llmkit_error *error) {
    if (f->state == LK__FETCH_WAITING) lk__waiting_remove(f->origin, f);
    lk__conn *c = f->conn;
    lk__fetch_detach(f);
    if (c) lk__conn_close(c);
    f->on_done(f, error);
}

/* How long a fetch waits where no connection comes to be; 0: for ever. */
LK__PRIV int64_t lk__origin_patience(const lk__origin *o) {
    const lk__pool_desc *desc = &o->pool->desc;
    if (!o->tls || o->lookup.job || !desc->connect_ns) return desc->connect_ns;
    return desc->tls_ns ? desc->connect_ns + desc->tls_ns : 0;
}

LK__PRIV void lk__fetch_timeout(lk__fetch *f, llmkit_deadline which, int64_t after_ns) {
    static const char *const what[] = {
        [LLMKIT_DEADLINE_CONNECT] = "no connection to %s within %lld ms (connect_ms)",
        [LLMKIT_DEADLINE_FIRST_BYTE] = "no reply from %s within %lld ms (first_byte_ms)",
        [LLMKIT_DEADLINE_IDLE] = "nothing more from %s for %lld ms (idle_ms)",
    };
    llmkit_error error;
    const char *format = what[which];
    char text[sizeof error.message];
    snprintf(text, sizeof text, format, f->origin->name, (long long)(after_ns / LK__NS_PER_MS));
    lk__fail(&error, LLMKIT_E_TIMEOUT, "%s", text);
    error.deadline = which;
    lk__fetch_fail(f, &error);
}

/* Deadlines move with what happens; the timer stays where it is and finds out when it fires. */
LK__PRIV void lk__fetch_on_timer(lk__timer *timer) {
    lk__fetch *f = LK__CONTAINER(timer, lk__fetch, timer);
    lk__origin *o = f->origin;
    int64_t now = lk__origin_now(o), due = LK__NEVER_NS, after = 0;
    llmkit_deadline which = LLMKIT_DEADLINE_IDLE;
    if (f->paused) return;
    if (f->state == LK__FETCH_WAITING) {
        /* Not while the origin works and is merely full: then the wait is a queue. */
        after = lk__origin_patience(o);
        due = lk__deadline(o->num > o->opening ? now : f->asked_ns, after);
        which = LLMKIT_DEADLINE_CONNECT;
        lk__origin_wake(o);
    } else if (f->state == LK__FETCH_SENT) {
        /* A large request on a slow line is not sent yet; the server is silent only after. */
        size_t unsent = lk__wire_unsent(&f->conn->wire);
        if (unsent < f->unsent) f->sent_ns = now;
        f->unsent = unsent;
        after = f->first_byte_ns;
        due = lk__deadline(f->sent_ns, after);
        which = LLMKIT_DEADLINE_FIRST_BYTE;
    } else if (f->state == LK__FETCH_RECEIVING) {
        after = f->idle_ns;
        due = lk__deadline(f->heard_ns, after);
    }
    if (due > now)
        lk__timer_set(o->pool->desc.loop, timer, due);
    else
        lk__fetch_timeout(f, which, after);
}

/* The response is complete: the connection first, so that what done starts can use it. */
LK__PRIV void lk__fetch_finish(lk__fetch *f, bool reusable) {
    lk__conn *c = f->conn;
    lk__origin *o = f->origin;
    lk__fetch_detach(f);
    int64_t now = lk__origin_now(o);
    reusable = reusable && !c->wire.broken && lk__wire_unsent(&c->wire) == 0;
    if (!reusable || now - c->born_ns >= o->pool->desc.max_age_ns)
        lk__conn_close(c);
    else if (!lk__conn_serve_next(c))
        lk__idle_add(c);
    f->on_done(f, NULL);
}

LK__PRIV void lk__fetch_wait(lk__fetch *f, bool front) {
    lk__origin *o = f->origin;
    f->asked_ns = lk__origin_now(o);
    lk__waiting_add(o, f, front);
    /* The first look is after connect_ns: a lookup may take no longer. */
    f->untimed = lk__timer_set(o->pool->desc.loop, &f->timer,
                               lk__deadline(f->asked_ns, o->pool->desc.connect_ns)) != LLMKIT_OK;
    o->num_untimed += f->untimed;
    lk__origin_wake(o);
}

/* A kept-alive connection that dies before a byte of the reply was closed by the server while the
 * request was under way: it is sent again at once, on a new connection, and not counted. */
LK__PRIV void lk__fetch_again(lk__fetch *f) {
    lk__origin *o = f->origin;
    lk__conn_close(f->conn);
    lk__fetch_detach(f);
    f->fresh = true;
    o->pool->stats.resent++;
    lk__fetch_wait(f, true);
}

/* ---- a connection at work -------------------------------------------------------------------- */

LK__PRIV void lk__conn_assign(lk__conn *c, lk__fetch *f) {
    lk__pool *pool = c->origin->pool;
    int64_t now = lk__loop_now(pool->desc.loop);
    c->state = LK__CONN_BUSY;
    c->fetch = f;
    c->heard = c->starved = false;
    c->http.no_body = f->head_only;
    c->wire.quick_ack = c->origin->splits;
    if (c->served++) pool->stats.reused++;
    f->conn = c;
    f->state = LK__FETCH_SENT;
    f->sent_ns = now;
    f->first_ns = f->heard_ns = 0;
    llmkit_str pieces[2] = { f->head, f->body };
    c->starved = lk__timer_set(pool->desc.loop, &f->timer, lk__deadline(now, f->first_byte_ns)) ||
                 lk__wire_write(&c->wire, pieces, 2);
    f->unsent = lk__wire_unsent(&c->wire);
    if (c->starved)
        lk__defer(pool->desc.loop, &c->reap);
    else if (f->paused)
        lk__wire_pause(&c->wire);
}

/* Gives the connection to the first that waits; one that was sent before wants a new one. */
LK__PRIV bool lk__conn_serve_next(lk__conn *c) {
    lk__fetch *f = c->origin->waiting;
    while (f && f->fresh && c->served > 0) f = f->next;
    if (!f) return false;
    lk__waiting_remove(c->origin, f);
    lk__conn_assign(c, f);
    return true;
}

/* Where it is set up: to work, or to wait for some. */
LK__PRIV void lk__conn_set_up(lk__conn *c) {
    lk__origin *o = c->origin;
    lk__conn_opened(c);
    o->proven = true;
    if (!lk__conn_serve_next(c)) lk__idle_add(c);
    lk__origin_wake(o);
}

LK__PRIV void lk__origin_fail(lk__origin *o, uint32_t victims, const llmkit_error *error) {
    while (victims-- > 0 && o->waiting) lk__fetch_fail(o->waiting, error);
}

/* A connection could not be set up: the one that waits longest hears of it; all of them, where the
 * next attempt would end the same way. */
LK__PRIV void lk__conn_failed(lk__conn *c, const llmkit_error *error) {
    lk__origin *o = c->origin;
    uint32_t victims = error->code == LLMKIT_E_CERT || error->code == LLMKIT_E_DISABLED
                           ? o->num_waiting : 1;
    lk__conn_close(c);
    o->warm = 0;
    o->resolved = false; /* the host may have moved */
    lk__origin_fail(o, victims, error);
}

LK__PRIV void lk__conn_broken(lk__conn *c, const llmkit_error *why) {
    lk__fetch *f = c->fetch;
    if (c->state == LK__CONN_SHAKING) {
        llmkit_error error;
        if (!why) lk__fail(&error, LLMKIT_E_TLS, "%s closed the connection", c->origin->name);
        lk__conn_failed(c, why ? why : &error);
        return;
    }
    if (!f) { /* idle */
        lk__conn_close(c);
        return;
    }
    if (!c->heard && c->served > 1 && !f->fresh) {
        lk__fetch_again(f);
        return;
    }
    if (lk__http_eof(&c->http) == LK__HTTP_END && !why) {
        lk__fetch_finish(f, false);
        return;
    }
    llmkit_error error;
    lk__fail(&error, why && c->heard ? why->code : LLMKIT_E_TRUNCATED,
             "%s ended the connection %s%s%s", c->origin->name,
             c->heard ? "in the middle of its reply" : "without a reply", why ? ": " : "",
             why ? why->message : "");
    if (why) error.os_errno = why->os_errno;
    lk__fetch_fail(f, &error);
}

LK__PRIV void lk__conn_on_closed(lk__wire *w, const llmkit_error *error) {
    lk__conn_broken(LK__CONTAINER(w, lk__conn, wire), error);
}

LK__PRIV void lk__conn_on_tls(lk__wire *w) {
    lk__conn_set_up(LK__CONTAINER(w, lk__conn, wire));
}

LK__PRIV void lk__conn_first_byte(lk__conn *c, lk__fetch *f) {
    c->heard = true;
    f->state = LK__FETCH_RECEIVING;
    f->first_ns = f->heard_ns;
    int64_t due = lk__deadline(f->heard_ns, f->idle_ns);
    lk__timer_set(c->origin->pool->desc.loop, &f->timer, due);
}

/* Only 1xx responses have come so far: the reply itself is awaited as before. */
LK__PRIV void lk__conn_interim(lk__conn *c, lk__fetch *f) {
    f->state = LK__FETCH_SENT;
    f->first_ns = 0;
    int64_t due = lk__deadline(f->sent_ns, f->first_byte_ns);
    lk__timer_set(c->origin->pool->desc.loop, &f->timer, due);
}

LK__PRIV void lk__conn_on_bytes(lk__wire *w, llmkit_str bytes) {
    lk__conn *c = LK__CONTAINER(w, lk__conn, wire);
    lk__fetch *f = c->fetch;
    if (!f) { /* nobody asked */
        lk__conn_close(c);
        return;
    }
    f->heard_ns = lk__origin_now(c->origin);
    if (f->state == LK__FETCH_SENT) lk__conn_first_byte(c, f);
    lk__head head;
    llmkit_str piece;
    while (c->fetch == f) { /* a callback may stop the fetch, and free it */
        switch (lk__http_feed(&c->http, &bytes, &head, &piece)) {
        case LK__HTTP_MORE:
            if (c->http.interim > 0) lk__conn_interim(c, f);
            return;
        case LK__HTTP_HEAD:
            if (bytes.len == 0 && head.length > 0) c->origin->splits = c->wire.quick_ack = true;
            f->on_head(f, &head);
            break;
        case LK__HTTP_BODY:
            f->on_body(f, piece);
            break;
        case LK__HTTP_END:
            lk__fetch_finish(f, c->http.keep_alive && bytes.len == 0);
            return;
        case LK__HTTP_ERROR: {
            llmkit_error error;
            lk__fail(&error, c->http.error, "%s broke HTTP: %s", c->origin->name, c->http.reason);
            lk__fetch_fail(f, &error);
            return;
        }
        }
    }
}

LK__PRIV const lk__wire_ops *lk__conn_ops(void) {
    static const lk__wire_ops ops = {
        .ready = lk__conn_on_tls, .read = lk__conn_on_bytes, .closed = lk__conn_on_closed
    };
    return &ops;
}

/* ---- setting up connections ------------------------------------------------------------------ */

LK__PRIV void lk__conn_timed_out(lk__conn *c, llmkit_deadline which, int64_t after_ns) {
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_TIMEOUT, which == LLMKIT_DEADLINE_TLS
             ? "no TLS handshake with %s within %lld ms (tls_ms)"
             : "no connection to %s within %lld ms (connect_ms)",
             c->origin->name, (long long)(after_ns / LK__NS_PER_MS));
    error.deadline = which;
    lk__conn_failed(c, &error);
}

LK__PRIV void lk__conn_on_timer(lk__timer *timer) {
    lk__conn *c = LK__CONTAINER(timer, lk__conn, timer);
    const lk__pool_desc *desc = &c->origin->pool->desc;
    if (c->state == LK__CONN_DIALLING)
        lk__conn_timed_out(c, LLMKIT_DEADLINE_CONNECT, desc->connect_ns);
    else if (c->state == LK__CONN_SHAKING)
        lk__conn_timed_out(c, LLMKIT_DEADLINE_TLS, desc->tls_ns);
    else if (c->state == LK__CONN_IDLE)
        lk__conn_close(c);
}

LK__PRIV void lk__conn_on_dialled(void *user, int fd, const llmkit_error *why) {
    lk__conn *c = user;
    lk__origin *o = c->origin;
    const lk__pool_desc *desc = &o->pool->desc;
    llmkit_error error;
    c->dial = NULL;
    if (fd < 0) {
        lk__conn_failed(c, why);
        return;
    }
    if (lk__wire_open(&c->wire, desc->loop, fd, lk__conn_ops(), o->tls ? desc->tls : NULL, o->host,
                      o->port, &error)) {
        lk__conn_failed(c, &error);
        return;
    }
    o->pool->stats.connects++;
    if (o->tls) {
        c->state = LK__CONN_SHAKING;
        lk__timer_set(desc->loop, &c->timer, lk__deadline(lk__loop_now(desc->loop), desc->tls_ns));
    } else {
        lk__conn_set_up(c);
    }
}

LK__PRIV bool lk__origin_open_one(lk__origin *o) {
    lk__pool *pool = o->pool;
    llmkit_loop *loop = pool->desc.loop;
    lk__conn *c = lk__alloc(&pool->env, sizeof *c);
    if (!c) return false;
    c->origin = o;
    c->timer.fn = lk__conn_on_timer;
    c->reap.fn = lk__conn_on_reap;
    c->born_ns = lk__loop_now(loop);
    int64_t due = lk__deadline(c->born_ns, pool->desc.connect_ns);
    c->dial = lk__dial_start(loop, &o->addrs, lk__conn_on_dialled, c);
    if (!c->dial || lk__timer_set(loop, &c->timer, due)) {
        lk__dial_stop(c->dial);
        lk__free(&pool->env, c, sizeof *c);
        return false;
    }
    lk__http_init(&c->http, &pool->env, false, LLMKIT_MAX_HEAD_BYTES);
    c->next = o->conns;
    if (c->next) c->next->prev = c;
    o->conns = c;
    o->num++;
    o->opening++;
    pool->opening++;
    pool->stats.open++;
    return true;
}

/* How many should be under way now.  Until one has succeeded only one is: a server that does not
 * answer is not asked a thousand times, and what TLS session it grants serves all that follow. */
LK__PRIV uint32_t lk__origin_wants(const lk__origin *o) {
    uint32_t ready = o->num - o->opening;
    uint32_t warm = o->warm > ready ? o->warm - ready : 0;
    uint32_t wants = o->num_waiting > warm ? o->num_waiting : warm;
    return o->tls && !o->proven && wants > 1 ? 1 : wants;
}

/* Where others are there or under way, those that wait can go on waiting. */
LK__PRIV void lk__origin_no_memory(lk__origin *o) {
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_NOMEM, "no memory for a connection to %s", o->name);
    o->warm = 0;
    if (o->opening > 0 || !o->waiting || (o->num > 0 && !o->waiting->fresh)) return;
    lk__origin_fail(o, 1, &error);
    lk__origin_wake(o);
}

/* Those that would wait without a deadline. */
LK__PRIV void lk__origin_fail_untimed(lk__origin *o) {
    llmkit_error error;
    while (o->num_untimed > 0) {
        lk__fetch *f = o->waiting;
        while (!f->untimed) f = f->next;
        lk__fail(&error, LLMKIT_E_NOMEM, "no memory to wait for a connection to %s", o->name);
        lk__fetch_fail(f, &error);
    }
}

LK__PRIV void lk__origin_on_lookup(lk__lookup *lookup, const lk__addrs *addrs,
                                   const llmkit_error *error) {
    lk__origin *o = LK__CONTAINER(lookup, lk__origin, lookup);
    if (!error) o->addrs = *addrs;
    if (o->addrs.num > 0 && (!error || error->retryable)) { /* the old ones while DNS is down */
        o->resolved = true;
        o->resolved_ns = lk__origin_now(o);
        lk__origin_wake(o);
        return;
    }
    o->warm = 0;
    o->addrs.num = 0;
    lk__origin_fail(o, o->num_waiting, error);
}

/* True: the addresses are there and new enough.  Old ones are used when a new lookup fails to
 * start. */
LK__PRIV bool lk__origin_resolved(lk__origin *o) {
    int64_t now = lk__origin_now(o);
    if (o->unix_path) return true;
    if (o->lookup.job) return false;
    if (o->resolved && now - o->resolved_ns < o->pool->desc.dns_ns) return true;
    llmkit_error error;
    if (!lk__lookup_start(o->pool->desc.loop, &o->lookup, lk__str_z(o->host), o->port, &error))
        return false;
    if (o->addrs.num > 0) return true;
    o->warm = 0;
    lk__origin_fail(o, o->num_waiting, &error);
    return false;
}

LK__PRIV void lk__origin_on_work(lk__task *task) {
    lk__origin *o = LK__CONTAINER(task, lk__origin, work);
    lk__pool *pool = o->pool;
    lk__origin_fail_untimed(o);
    if (o->num - o->opening >= o->warm) o->warm = 0;
    while (o->opening < lk__origin_wants(o) && o->num < pool->desc.max_connections &&
           pool->opening < LK__MAX_OPENING && lk__origin_resolved(o)) {
        if (!lk__origin_open_one(o)) {
            lk__origin_no_memory(o);
            return;
        }
    }
}

LK__PRIV void lk__origin_warm(lk__origin *o, uint32_t count) {
    o->warm = count < o->pool->desc.max_connections ? count : o->pool->desc.max_connections;
    lk__origin_wake(o);
}

LK__PRIV bool lk__origin_is_warming(const lk__origin *o) {
    return o->warm > 0;
}

/* ---- the fetch's own calls ------------------------------------------------------------------- */

LK__PRIV lk__conn *lk__origin_take_idle(lk__origin *o) {
    int64_t now = lk__origin_now(o);
    while (o->idle) {
        lk__conn *c = o->idle;
        if (now - c->born_ns < o->pool->desc.max_age_ns) {
            lk__idle_remove(c);
            return c;
        }
        lk__conn_close(c);
    }
    return NULL;
}

LK__PRIV void lk__fetch_start(lk__fetch *f) {
    f->timer.fn = lk__fetch_on_timer;
    f->fresh = false;
    f->asked_ns = lk__origin_now(f->origin);
    f->sent_ns = f->first_ns = f->heard_ns = 0;
    /* While one is idle, only those wait that were sent again and want a new one. */
    lk__conn *c = lk__origin_take_idle(f->origin);
    if (c)
        lk__conn_assign(c, f);
    else
        lk__fetch_wait(f, false);
}

LK__PRIV void lk__fetch_stop(lk__fetch *f) {
    if (f->state == LK__FETCH_OFF) return;
    if (f->state == LK__FETCH_WAITING) lk__waiting_remove(f->origin, f);
    lk__conn *c = f->conn;
    lk__fetch_detach(f);
    if (c) lk__conn_close(c); /* what is left of the reply would be in the way of the next */
}

LK__PRIV void lk__fetch_pause(lk__fetch *f) {
    f->paused = true;
    if (f->conn) lk__wire_pause(&f->conn->wire);
}

LK__PRIV void lk__fetch_resume(lk__fetch *f) {
    if (!f->paused) return;
    f->paused = false;
    int64_t now = lk__origin_now(f->origin);
    if (f->state == LK__FETCH_WAITING) f->asked_ns = now;
    if (f->state == LK__FETCH_SENT) f->sent_ns = now;
    f->heard_ns = now;
    if (f->state != LK__FETCH_OFF) lk__timer_set(f->origin->pool->desc.loop, &f->timer, now);
    if (f->conn) lk__wire_resume(&f->conn->wire);
}

LK__PRIV void lk__fetch_set_idle(lk__fetch *f, int64_t idle_ns) {
    llmkit_loop *loop = f->origin->pool->desc.loop;
    f->idle_ns = idle_ns;
    if (f->state == LK__FETCH_RECEIVING)
        lk__timer_set(loop, &f->timer, lk__deadline(lk__loop_now(loop), idle_ns));
}

/* ---- pool and origins ------------------------------------------------------------------------ */

LK__PRIV lk__pool *lk__pool_create(const lk__pool_desc *desc, llmkit_error *error) {
    lk__pool *pool = lk__alloc(desc->env, sizeof *pool);
    if (!pool) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a connection pool");
        return NULL;
    }
    pool->env = *desc->env;
    pool->desc = *desc;
    if (desc->tls) lk__tls_retain(desc->tls);
    return pool;
}

LK__PRIV void lk__origin_free(lk__origin *o) {
    const llmkit_env *env = &o->pool->env;
    llmkit_loop *loop = o->pool->desc.loop;
    lk__lookup_cancel(loop, &o->lookup);
    while (o->conns) {
        lk__conn_close(o->conns);
        lk__conn_free(o->conns);
    }
    lk__undefer(loop, &o->work);
    lk__strfree(env, o->host);
    lk__strfree(env, o->unix_path);
    lk__strfree(env, o->name);
    lk__free(env, o, sizeof *o);
}

LK__PRIV void lk__pool_destroy(lk__pool *pool) {
    if (!pool) return;
    while (pool->origins) {
        lk__origin *o = pool->origins;
        o->warm = 0;
        pool->origins = o->next;
        lk__origin_free(o);
    }
    llmkit_env env = pool->env;
    llmkit_tls_release(pool->desc.tls);
    lk__free(&env, pool, sizeof *pool);
}

LK__PRIV lk__pool_stats lk__pool_read(const lk__pool *pool) {
    return pool->stats;
}

LK__PRIV llmkit_str lk__origin_name(const lk__origin *o) {
    return lk__str_z(o->name);
}

LK__PRIV bool lk__origin_is(const lk__origin *o, const lk__url *url, llmkit_str name) {
    return o->tls == url->tls && lk__str_ieq(lk__str_z(o->name), name) &&
           lk__str_eq(lk__str_z(o->unix_path), url->unix_path);
}

LK__PRIV char *lk__dup_view(const llmkit_env *env, llmkit_str text) {
    char *copy = lk__alloc(env, text.len + 1); /* which lk__strfree gives back: no NUL inside */
    if (copy && text.len) memcpy(copy, text.ptr, text.len);
    return copy;
}

LK__PRIV llmkit_err lk__origin_set_unix(lk__origin *o, llmkit_str path, llmkit_error *error) {
    lk__addr *addr = &o->addrs.addr[0];
    if (path.len >= sizeof addr->at.un.sun_path)
        return lk__fail(error, LLMKIT_E_ARG, "the socket path is over %zu bytes: %.*s",
                        sizeof addr->at.un.sun_path - 1, LK__ARG(path));
    addr->at.un.sun_family = AF_UNIX;
    memcpy(addr->at.un.sun_path, path.ptr, path.len);
    addr->len = sizeof addr->at.un;
    o->addrs.num = 1;
    return LLMKIT_OK;
}

LK__PRIV lk__origin *lk__origin_create(lk__pool *pool, const lk__url *url, llmkit_str name,
                                       llmkit_error *error) {
    lk__origin *o = lk__alloc(&pool->env, sizeof *o);
    if (!o) goto no_memory;
    o->pool = pool;
    o->tls = url->tls;
    o->port = url->port;
    o->work.fn = lk__origin_on_work;
    o->lookup.fn = lk__origin_on_lookup;
    o->host = lk__dup_view(&pool->env, url->host);
    o->name = lk__dup_view(&pool->env, name);
    o->unix_path = url->unix_path.len ? lk__dup_view(&pool->env, url->unix_path) : NULL;
    if (!o->host || !o->name || (url->unix_path.len && !o->unix_path)) goto no_memory;
    if (o->unix_path && lk__origin_set_unix(o, url->unix_path, error)) {
        lk__origin_free(o);
        return NULL;
    }
    o->next = pool->origins;
    pool->origins = o;
    return o;
no_memory:
    lk__fail(error, LLMKIT_E_NOMEM, "no memory for a host");
    if (o) lk__origin_free(o);
    return NULL;
}

LK__PRIV lk__origin *lk__pool_origin(lk__pool *pool, const lk__url *url, llmkit_error *error) {
    if (url->tls && !pool->desc.tls) {
        llmkit_tls_desc desc = { .env = pool->env };
        pool->desc.tls = llmkit_tls_create(&desc, error);
        if (!pool->desc.tls) return NULL;
    }
    lk__buf name;
    lk__buf_init(&name, &pool->env, 0);
    lk__url_host_field(url, &name);
    lk__origin *o = pool->origins;
    while (o && !lk__origin_is(o, url, lk__buf_view(&name))) o = o->next;
    if (!o && name.failed) lk__fail(error, name.failed, "no memory for a host");
    if (!o && !name.failed) o = lk__origin_create(pool, url, lk__buf_view(&name), error);
    lk__buf_free(&name);
    return o;
}
