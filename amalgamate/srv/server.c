/* srv/server.c -- the HTTP/1.1 server: listening, connections, exchanges, deadlines */

#include "net/http1.h"
#include "net/wire.h"

#if LLMKIT_WITH_SERVER

enum {
    LK__SERVER_ACCEPTS = 64,     /* connections taken in one wake-up, before others have a turn */
    LK__SERVER_RETRY_MS = 100,   /* without descriptors or memory to accept, try again after */
    LK__SERVER_LINGER_MS = 2000, /* for the peer to read the last reply before the socket closes */
    LK__SERVER_STALLS = 4,       /* steps in which send_ms passes */
    LK__SERVER_AHEAD = 16384,    /* input of later requests, before reading stops */
    LK__SERVER_CORK = 16384,     /* pieces of one turn gathered into one write; a TLS record */
    LK__SERVER_SPARE = 512,      /* ended exchanges kept for the next ones */
    LK__SERVER_KEEP = 8192,      /* of each of their buffers */
};

/* What a connection is doing.  Up to LK__PEER_BODY it takes input. */
typedef enum lk__peer_phase { /*  Ends with                    Deadline           */
    LK__PEER_HANDSHAKE,       /*  TLS is ready                 head_ms            */
    LK__PEER_IDLE,            /*  a first byte                 keep_alive_ms      */
    LK__PEER_HEAD,            /*  the head is complete         head_ms            */
    LK__PEER_BODY,            /*  the body is complete         body_ms            */
    LK__PEER_EXCHANGE,        /*  the reply is written         send_ms, if unsent */
    LK__PEER_FLUSH,           /*  the reply is sent            send_ms            */
    LK__PEER_LINGER           /*  the peer closes              LK__SERVER_LINGER_MS */
} lk__peer_phase;

typedef struct lk__peer {
    lk__wire         wire;
    lk__http         http;
    lk__timer        timer;
    lk__task         task; /* sends what was corked, goes on with pending, closes the doomed */
    lk__buf          pending; /* input of later requests that came during an exchange */
    size_t           pending_at;
    llmkit_server   *server;
    llmkit_exchange *exchange; /* from a request's head to the end of its reply */
    struct lk__peer *next, **prev;
    uint64_t         written; /* bytes given to the wire */
    uint64_t         taken;   /* of these, gone at the last step of send_ms */
    lk__peer_phase   phase;
    uint8_t          stalls;  /* steps without progress */
    bool             sending; /* send_ms runs */
    bool             keep;    /* in LK__PEER_FLUSH: another request may follow */
    bool             doomed;  /* out of memory: closed at the end of the turn */
    bool            *gone;    /* set by lk__peer_close while the handler runs */
} lk__peer;

struct llmkit_exchange {
    llmkit_server   *server;
    lk__peer        *peer; /* NULL: the connection is gone */
    llmkit_exchange *next, **prev;
    lk__buf          text; /* method, path, query, then names and values, each with a NUL */
    lk__buf          body;
    lk__buf          out;  /* fields of the reply; once it has begun, what is corked */
    llmkit_str       method, path, query;
    size_t           fields_at; /* in text */
    void           (*closed)(void *user);
    void            *closed_user;
    void           (*writable)(void *user);
    void            *writable_user;
    bool             handed; /* the program has it */
    bool             keep_alive, is_head, is_1_0;
    bool             begun, chunked, bodiless;
    bool             blocked; /* a piece was refused */
    bool             over;    /* inside its closed callback */
    bool            *gone;    /* set when it is freed there */
};

struct llmkit_server {
    llmkit_env          env;
    llmkit_server_desc  desc; /* filled; its pointers are not used */
    llmkit_loop        *loop;
    llmkit_tls         *tls;
    lk__io              listener;
    lk__timer           retry; /* of accepting */
    lk__buf             head;  /* of the reply being written */
    lk__peer           *peers;
    llmkit_exchange    *exchanges, *spare;
    uint32_t            num_spare;
    llmkit_server_stats stats;
    uint16_t            port;
    char               *unix_path;
    dev_t               unix_dev; /* of the socket file, so that only our own is removed */
    ino_t               unix_ino;
    bool                draining, holding;
};

LK__PRIV void lk__peer_close(lk__peer *p);
LK__PRIV void lk__peer_flushed(lk__peer *p);

/* ---- exchanges ------------------------------------------------------------------------------- */

LK__PRIV void lk__exchange_free(llmkit_exchange *x) {
    const llmkit_env *env = &x->server->env;
    lk__buf_free(&x->text);
    lk__buf_free(&x->body);
    lk__buf_free(&x->out);
    lk__free(env, x, sizeof *x);
}

LK__PRIV void lk__exchange_unlink(llmkit_exchange *x) {
    *x->prev = x->next;
    if (x->next) x->next->prev = x->prev;
    if (x->handed) x->server->stats.in_flight--;
    if (x->gone) *x->gone = true;
}

/* Emptied, and without more memory than is worth keeping. */
LK__PRIV void lk__server_trim(lk__buf *b) {
    if (b->cap > LK__SERVER_KEEP) lk__buf_free(b);
    lk__buf_clear(b);
    if (b->ptr) b->ptr[0] = '\0'; /* an empty body is handed out as it is */
}

/* The exchange is over: its memory is kept for another one, up to a bound. */
LK__PRIV void lk__exchange_release(llmkit_exchange *x) {
    llmkit_server *s = x->server;
    lk__exchange_unlink(x);
    if (s->num_spare == LK__SERVER_SPARE) {
        lk__exchange_free(x);
        return;
    }
    lk__server_trim(&x->text);
    lk__server_trim(&x->body);
    lk__server_trim(&x->out);
    *x = (llmkit_exchange){ .server = s, .next = s->spare,
                            .text = x->text, .body = x->body, .out = x->out };
    s->spare = x;
    s->num_spare++;
}

LK__PRIV llmkit_exchange *lk__exchange_create(llmkit_server *s) {
    llmkit_exchange *x = s->spare;
    if (x) {
        s->spare = x->next;
        s->num_spare--;
    } else {
        x = lk__alloc(&s->env, sizeof *x);
        if (!x) return NULL;
        x->server = s;
        lk__buf_init(&x->text, &s->env, 0);
        lk__buf_init(&x->body, &s->env, s->desc.max_body_bytes);
        lk__buf_init(&x->out, &s->env, 0);
    }
    x->next = s->exchanges;
    x->prev = &s->exchanges;
    if (x->next) x->next->prev = &x->next;
    s->exchanges = x;
    return x;
}

/* Path and query of a target: "/a?b", "http://host/a?b" (a server must understand it too, RFC 9112
 * 3.2.2) or "*". */
LK__PRIV void lk__target_split(llmkit_str target, llmkit_str *path, llmkit_str *query) {
    if (target.len && target.ptr[0] != '/') {
        for (size_t at = lk__str_find(target, ':'); at + 2 < target.len;) {
            if (memcmp(target.ptr + at, "://", 3) != 0) break;
            target = lk__str_from(target, at + 3);
            target = lk__str_from(target, lk__str_find(target, '/'));
            break;
        }
    }
    size_t mark = lk__str_find(target, '?');
    *path = target.len ? lk__str(target.ptr, mark) : LK__STR("/");
    *query = mark < target.len ? lk__str_from(target, mark + 1) : LK__STR("");
}

LK__PRIV llmkit_str lk__exchange_keep(llmkit_exchange *x, llmkit_str s) {
    llmkit_str kept = { x->text.ptr + x->text.len, s.len };
    lk__buf_str(&x->text, s);
    x->text.len++; /* the NUL stays as an end */
    return kept;
}

/* A copy of the head, since the request outlives the bytes it was read from.  false: no memory. */
LK__PRIV bool lk__exchange_read_head(llmkit_exchange *x, const lk__head *head) {
    llmkit_str path, query;
    lk__target_split(head->target, &path, &query);
    size_t need = head->method.len + path.len + query.len + 4;
    for (uint32_t i = 0; i < head->num; i++)
        need += head->fields[i].name.len + head->fields[i].value.len + 2;
    if (!lk__buf_more(&x->text, need)) return false;
    x->method = lk__exchange_keep(x, head->method);
    x->path = lk__exchange_keep(x, path);
    x->query = lk__exchange_keep(x, query);
    x->fields_at = x->text.len;
    for (uint32_t i = 0; i < head->num; i++) {
        lk__exchange_keep(x, head->fields[i].name);
        lk__exchange_keep(x, head->fields[i].value);
    }
    x->keep_alive = head->keep_alive;
    x->is_head = lk__str_eq(head->method, LK__STR("HEAD"));
    x->is_1_0 = head->minor == 0;
    return true;
}

/* The connection is gone.  Without a closed callback the program keeps the handle, and the calls on
 * it do nothing, until it ends the exchange. */
LK__PRIV void lk__exchange_lost(llmkit_exchange *x) {
    x->peer = NULL;
    if (!x->handed) {
        lk__exchange_release(x);
        return;
    }
    if (!x->closed) return;
    bool gone = false;
    x->gone = &gone;
    x->over = true;
    x->closed(x->closed_user);
    if (!gone) lk__exchange_release(x);
}

/* ---- deadlines ------------------------------------------------------------------------------- */

/* For failures inside a call of the program's, where no callback may be made. */
LK__PRIV void lk__peer_doom(lk__peer *p) {
    p->doomed = true;
    lk__defer(p->server->loop, &p->task);
}

LK__PRIV void lk__peer_within(lk__peer *p, uint32_t ms) {
    llmkit_loop *loop = p->server->loop;
    int64_t due_ns = lk__loop_now(loop) + (int64_t)ms * LK__NS_PER_MS;
    if (lk__timer_set(loop, &p->timer, due_ns)) lk__peer_doom(p);
}

LK__PRIV uint64_t lk__peer_taken(const lk__peer *p) {
    return p->written - lk__wire_unsent(&p->wire);
}

/* send_ms runs in steps: the wire does not say when the peer takes a little, but each step can see
 * whether it has. */
LK__PRIV void lk__peer_send_step(lk__peer *p) {
    p->taken = lk__peer_taken(p);
    lk__peer_within(p, p->server->desc.send_ms / LK__SERVER_STALLS + 1);
}

LK__PRIV void lk__peer_send(lk__peer *p, const llmkit_str *pieces, size_t num) {
    for (size_t i = 0; i < num; i++) p->written += pieces[i].len;
    if (lk__wire_write(&p->wire, pieces, num)) lk__peer_doom(p);
    if (p->sending || lk__wire_unsent(&p->wire) == 0) return;
    p->sending = true;
    p->stalls = 0;
    lk__peer_send_step(p);
}

/* ---- replies --------------------------------------------------------------------------------- */

/* 204 and 304 have no body, and 204 not even its length (RFC 9110 8.6, 15.3.5, 15.4.5). */
LK__PRIV bool lk__status_is_bodiless(int status) {
    return status == 204 || status == 304;
}

/* Starts a head in s->head.  There is no Date: the env has no wall clock, and a server without one
 * must not send it (RFC 9110 6.6.1). */
LK__PRIV void lk__server_head(llmkit_server *s, int status, const char *content_type) {
    lk__server_trim(&s->head);
    lk__http_status_line(&s->head, status);
    if (content_type) lk__http_field(&s->head, LK__STR("Content-Type"), lk__str_z(content_type));
}

/* HTTP/1.1 goes on by itself, 1.0 only where the reply says so (RFC 9112 9.3, C.2.2). */
LK__PRIV void lk__server_head_end(llmkit_server *s, bool keep, bool is_1_0, llmkit_str fields) {
    if (!keep) lk__buf_str(&s->head, LK__STR("Connection: close\r\n"));
    if (keep && is_1_0) lk__buf_str(&s->head, LK__STR("Connection: keep-alive\r\n"));
    lk__buf_str(&s->head, fields);
    lk__buf_str(&s->head, LK__STR("\r\n"));
}

/* The reply is written: the next request, or the end of the connection, once it is sent. */
LK__PRIV void lk__peer_replied(lk__peer *p, bool keep) {
    p->exchange = NULL;
    p->keep = keep;
    p->phase = LK__PEER_FLUSH;
    if (!keep) lk__wire_shut(&p->wire);
    if (lk__wire_unsent(&p->wire) == 0) lk__peer_flushed(p);
}

/* All that was written is sent.  Before a last close the peer gets time to read the reply: closing
 * with its bytes unread would reset the connection, and the reset can overtake the reply (RFC 9112
 * 9.6). */
LK__PRIV void lk__peer_flushed(lk__peer *p) {
    p->sending = false;
    if (p->keep) {
        p->phase = LK__PEER_IDLE;
        lk__peer_within(p, p->server->desc.keep_alive_ms);
        if (p->pending.len) lk__defer(p->server->loop, &p->task);
        return;
    }
    p->phase = LK__PEER_LINGER;
    lk__buf_free(&p->pending);
    lk__wire_resume(&p->wire);
    lk__peer_within(p, LK__SERVER_LINGER_MS);
}

LK__PRIV const char *lk__status_type(int status) {
    switch (status) {
    case 404: return "not_found_error";
    case 408: return "timeout_error";
    case 413: return "request_too_large";
    default: return status < 500 ? "invalid_request_error" : "server_error";
    }
}

/* The server's own answer to what never became an exchange, and the last of its connection. */
LK__PRIV void lk__peer_refuse(lk__peer *p, int status, const char *message) {
    llmkit_server *s = p->server;
    char body[256];
    int len = snprintf(body, sizeof body, "{\"error\":{\"message\":\"%s\",\"type\":\"%s\"}}",
                       message, lk__status_type(status));
    s->stats.refused++;
    if (p->exchange) lk__exchange_release(p->exchange);
    lk__server_head(s, status, "application/json");
    lk__http_field_u64(&s->head, LK__STR("Content-Length"), (uint64_t)len);
    lk__server_head_end(s, false, false, LK__STR(""));
    if (s->head.failed) lk__peer_doom(p);
    llmkit_str pieces[2] = { lk__buf_view(&s->head), lk__str(body, (size_t)len) };
    lk__peer_send(p, pieces, s->head.failed ? 0 : 2);
    lk__peer_replied(p, false);
}

/* ---- requests -------------------------------------------------------------------------------- */

LK__PRIV void lk__peer_on_head(lk__peer *p, const lk__head *head, bool more_came) {
    llmkit_server *s = p->server;
    p->phase = LK__PEER_BODY;
    p->exchange = lk__exchange_create(s);
    if (p->exchange) p->exchange->peer = p;
    if (!p->exchange || !lk__exchange_read_head(p->exchange, head)) {
        lk__peer_refuse(p, 503, "out of memory");
    } else if (head->has_length && head->length > s->desc.max_body_bytes) {
        lk__peer_refuse(p, 413, "the request body is too large");
    } else if (head->expect_continue && head->minor > 0 && !more_came &&
               (head->chunked || head->length > 0)) {
        llmkit_str go_on = LK__STR("HTTP/1.1 100 Continue\r\n\r\n");
        lk__peer_send(p, &go_on, 1);
    }
}

LK__PRIV void lk__peer_on_body(lk__peer *p, llmkit_str piece) {
    lk__buf *body = &p->exchange->body;
    lk__buf_str(body, piece);
    if (body->failed == LLMKIT_E_TOO_BIG)
        lk__peer_refuse(p, 413, "the request body is too large");
    else if (body->failed)
        lk__peer_refuse(p, 503, "out of memory");
}

/* A request is whole.  False: the handler ended the connection, or the server. */
LK__PRIV bool lk__peer_on_request(lk__peer *p) {
    llmkit_server *s = p->server;
    llmkit_exchange *x = p->exchange;
    s->stats.requests++;
    s->stats.in_flight++;
    x->handed = true;
    p->phase = LK__PEER_EXCHANGE;
    bool gone = false;
    p->gone = &gone;
    bool taken = s->desc.handle(s->desc.user, x);
    if (gone) return false;
    p->gone = NULL;
    if (!taken && p->exchange == x) {
        llmkit_str body = LK__STR("{\"error\":{\"message\":\"there is nothing at this path\","
                                  "\"type\":\"not_found_error\"}}");
        llmkit_exchange_reply(x, 404, "application/json", body);
    }
    return true;
}

LK__PRIV void lk__peer_on_bad_request(lk__peer *p) {
    const lk__http *h = &p->http;
    if (h->error == LLMKIT_E_TOO_BIG)
        lk__peer_refuse(p, 431, h->reason);
    else if (h->error == LLMKIT_E_NOMEM)
        lk__peer_refuse(p, 503, "out of memory");
    else
        lk__peer_refuse(p, h->unknown_coding ? 501 : 400, h->reason); /* RFC 9112 6.1 */
}

/* All input is parsed and more must come. */
LK__PRIV void lk__peer_await_input(lk__peer *p) {
    if (p->phase == LK__PEER_IDLE) {
        p->phase = LK__PEER_HEAD;
        lk__peer_within(p, p->server->desc.head_ms);
    } else if (p->phase == LK__PEER_BODY) {
        lk__peer_within(p, p->server->desc.body_ms);
    }
}

/* Takes requests from the front of *in, and leaves there what came after one that is not answered
 * yet.  False: the connection is gone. */
LK__PRIV bool lk__peer_parse(lk__peer *p, llmkit_str *in) {
    lk__head head;
    llmkit_str piece;
    while (p->phase <= LK__PEER_BODY && (in->len > 0 || p->phase == LK__PEER_BODY)) {
        switch (lk__http_feed(&p->http, in, &head, &piece)) {
        case LK__HTTP_MORE: lk__peer_await_input(p); return true;
        case LK__HTTP_HEAD: lk__peer_on_head(p, &head, in->len > 0); break;
        case LK__HTTP_BODY: lk__peer_on_body(p, piece); break;
        case LK__HTTP_END:
            if (!lk__peer_on_request(p)) return false;
            break;
        case LK__HTTP_ERROR: lk__peer_on_bad_request(p); break;
        }
    }
    return true;
}

/* ---- what the wire reports ------------------------------------------------------------------- */

LK__PRIV void lk__peer_on_ready(lk__wire *w) {
    lk__peer *p = LK__CONTAINER(w, lk__peer, wire);
    p->phase = LK__PEER_IDLE;
    lk__peer_within(p, p->server->desc.keep_alive_ms);
}

/* Input is read during an exchange too, since that is how it is noticed that the peer goes.  What
 * comes for later requests is set aside; once that is a lot, no more is read. */
LK__PRIV void lk__peer_on_read(lk__wire *w, llmkit_str bytes) {
    lk__peer *p = LK__CONTAINER(w, lk__peer, wire);
    if (p->pending.len == 0 && !lk__peer_parse(p, &bytes)) return;
    bool ending = p->phase == LK__PEER_LINGER || (p->phase == LK__PEER_FLUSH && !p->keep);
    if (bytes.len == 0 || ending) return;
    lk__buf_drop(&p->pending, p->pending_at);
    p->pending_at = 0;
    lk__buf_str(&p->pending, bytes);
    if (p->pending.len > LK__SERVER_AHEAD) lk__wire_pause(w);
    if (p->pending.failed) lk__peer_close(p);
}

LK__PRIV void lk__peer_on_closed(lk__wire *w, const llmkit_error *error) {
    (void)error; /* how it went makes no difference to a server */
    lk__peer_close(LK__CONTAINER(w, lk__peer, wire));
}

LK__PRIV void lk__peer_on_drained(lk__wire *w) {
    lk__peer *p = LK__CONTAINER(w, lk__peer, wire);
    llmkit_exchange *x = p->exchange;
    if (w->broken) return; /* nothing was sent: closed comes next */
    p->sending = false;
    if (p->phase == LK__PEER_FLUSH) {
        lk__peer_flushed(p);
    } else if (p->phase == LK__PEER_EXCHANGE && x->blocked) {
        x->blocked = false;
        if (x->writable) x->writable(x->writable_user);
    }
}

static const lk__wire_ops lk__peer_ops = {
    .ready = lk__peer_on_ready,
    .read = lk__peer_on_read,
    .closed = lk__peer_on_closed,
    .drained = lk__peer_on_drained,
};

LK__PRIV void lk__peer_on_stall(lk__peer *p) {
    if (!p->sending) return; /* left over from an earlier phase */
    p->stalls = lk__peer_taken(p) == p->taken ? (uint8_t)(p->stalls + 1) : 0;
    if (p->stalls >= LK__SERVER_STALLS)
        lk__peer_close(p);
    else
        lk__peer_send_step(p);
}

LK__PRIV void lk__peer_on_timer(lk__timer *timer) {
    lk__peer *p = LK__CONTAINER(timer, lk__peer, timer);
    switch (p->phase) {
    case LK__PEER_IDLE: lk__wire_shut(&p->wire); lk__peer_close(p); break;
    case LK__PEER_HEAD: lk__peer_refuse(p, 408, "the request head did not come in time"); break;
    case LK__PEER_BODY: lk__peer_refuse(p, 408, "the request body did not come in time"); break;
    case LK__PEER_EXCHANGE:
    case LK__PEER_FLUSH: lk__peer_on_stall(p); break;
    case LK__PEER_HANDSHAKE:
    case LK__PEER_LINGER: lk__peer_close(p); break;
    }
}

/* Requests that came before they could be taken.  False: the connection is gone. */
LK__PRIV bool lk__peer_take_pending(lk__peer *p) {
    llmkit_str in = lk__str_from(lk__buf_view(&p->pending), p->pending_at);
    if (!lk__peer_parse(p, &in)) return false;
    if (p->pending.len == 0) return true; /* dropped with the connection's last reply */
    p->pending_at = p->pending.len - in.len;
    if (in.len > 0) return true;
    lk__buf_free(&p->pending);
    p->pending_at = 0;
    lk__wire_resume(&p->wire);
    return true;
}

LK__PRIV void lk__exchange_uncork(llmkit_exchange *x) {
    llmkit_str corked = lk__buf_view(&x->out);
    lk__peer_send(x->peer, &corked, 1);
    lk__buf_clear(&x->out);
}

LK__PRIV void lk__peer_on_task(lk__task *task) {
    lk__peer *p = LK__CONTAINER(task, lk__peer, task);
    if (p->phase == LK__PEER_EXCHANGE && p->exchange->begun) lk__exchange_uncork(p->exchange);
    if (p->pending.len && !lk__peer_take_pending(p)) return;
    if (p->doomed) lk__peer_close(p);
}

/* ---- accepting ------------------------------------------------------------------------------- */

/* Where accepting fails the listener stays readable: without a pause the loop would spin. */
LK__PRIV void lk__server_back_off(llmkit_server *s) {
    int64_t due_ns = lk__loop_now(s->loop) + LK__SERVER_RETRY_MS * LK__NS_PER_MS;
    lk__timer_set(s->loop, &s->retry, due_ns);
}

/* Tells the poller whether new connections are wanted now. */
LK__PRIV void lk__server_watch(llmkit_server *s) {
    if (s->listener.fd < 0) return;
    bool room = s->stats.open < s->desc.max_connections && s->retry.place == 0;
    unsigned events = room ? LLMKIT_READ : 0;
    if (events != s->listener.events && lk__io_set(s->loop, &s->listener, events))
        lk__server_back_off(s);
}

LK__PRIV void lk__server_on_retry(lk__timer *timer) {
    lk__server_watch(LK__CONTAINER(timer, llmkit_server, retry));
}

LK__PRIV void lk__server_add(llmkit_server *s, int fd) {
    llmkit_error error;
    lk__peer *p = lk__alloc(&s->env, sizeof *p);
    if (!p) {
        lk__loop_sys(s->loop)->close(fd);
        return;
    }
    if (lk__wire_open(&p->wire, s->loop, fd, &lk__peer_ops, s->tls, NULL, 0, &error)) {
        lk__free(&s->env, p, sizeof *p);
        return;
    }
    p->server = s;
    p->timer.fn = lk__peer_on_timer;
    p->task.fn = lk__peer_on_task;
    lk__http_init(&p->http, &s->env, true, s->desc.max_head_bytes);
    lk__buf_init(&p->pending, &s->env, 0);
    p->next = s->peers;
    p->prev = &s->peers;
    if (p->next) p->next->prev = &p->next;
    s->peers = p;
    s->stats.open++;
    s->stats.connections++;
    p->phase = s->tls ? LK__PEER_HANDSHAKE : LK__PEER_IDLE;
    lk__peer_within(p, s->tls ? s->desc.head_ms : s->desc.keep_alive_ms);
}

LK__PRIV void lk__server_on_accept(lk__io *io, unsigned ready) {
    llmkit_server *s = LK__CONTAINER(io, llmkit_server, listener);
    (void)ready;
    for (int i = 0; i < LK__SERVER_ACCEPTS && s->stats.open < s->desc.max_connections; i++) {
        int fd = lk__loop_sys(s->loop)->accept(s->listener.fd);
        if (fd >= 0) {
            lk__server_add(s, fd);
        } else if (errno != ECONNABORTED && errno != EINTR) {
            if (errno != EAGAIN && errno != EWOULDBLOCK) lk__server_back_off(s);
            break;
        }
    }
    lk__server_watch(s);
}

/* ---- the end of connections and of listening ------------------------------------------------- */

LK__PRIV void lk__server_unhold(llmkit_server *s) {
    if (!s->holding || !s->draining || s->peers) return;
    s->holding = false;
    lk__loop_unhold(s->loop);
}

/* Anything may have happened to the server when this returns: it can call the program. */
LK__PRIV void lk__peer_close(lk__peer *p) {
    llmkit_server *s = p->server;
    llmkit_exchange *x = p->exchange;
    *p->prev = p->next;
    if (p->next) p->next->prev = p->prev;
    s->stats.open--;
    lk__timer_stop(s->loop, &p->timer);
    lk__undefer(s->loop, &p->task);
    lk__wire_close(&p->wire);
    lk__http_free(&p->http);
    lk__buf_free(&p->pending);
    if (p->gone) *p->gone = true;
    lk__free(&s->env, p, sizeof *p);
    lk__server_watch(s);
    lk__server_unhold(s);
    if (x) lk__exchange_lost(x);
}

LK__PRIV void lk__server_remove_file(llmkit_server *s) {
    struct stat st;
    bool ours = s->unix_path && lstat(s->unix_path, &st) == 0 && st.st_dev == s->unix_dev &&
                st.st_ino == s->unix_ino;
    if (ours) unlink(s->unix_path);
    lk__strfree(&s->env, s->unix_path);
    s->unix_path = NULL;
}

LK__PRIV void lk__server_stop_listening(llmkit_server *s) {
    lk__timer_stop(s->loop, &s->retry);
    if (s->listener.fd < 0) return;
    int fd = s->listener.fd;
    lk__io_stop(s->loop, &s->listener);
    s->listener.fd = -1;
    lk__server_remove_file(s);
    lk__loop_sys(s->loop)->close(fd);
}

/* ---- the listening socket -------------------------------------------------------------------- */

typedef struct lk__bind_addr {
    union {
        struct sockaddr     any;
        struct sockaddr_un  un;
    } at;
    lk__addr ip;
    bool     is_unix;
} lk__bind_addr;

LK__PRIV const struct sockaddr *lk__bind_sockaddr(const lk__bind_addr *a, socklen_t *len) {
    *len = a->is_unix ? (socklen_t)sizeof a->at.un : a->ip.len;
    return a->is_unix ? &a->at.any : &a->ip.at.any;
}

LK__PRIV llmkit_err lk__listen_parse_unix(lk__bind_addr *a, llmkit_str path, llmkit_error *error) {
    if (path.len == 0 || path.len >= sizeof a->at.un.sun_path)
        return lk__fail(error, LLMKIT_E_ARG, "listen: a socket path has 1 to %zu bytes",
                        sizeof a->at.un.sun_path - 1);
    memset(a, 0, sizeof *a);
    a->is_unix = true;
    a->at.un.sun_family = AF_UNIX;
    memcpy(a->at.un.sun_path, path.ptr, path.len);
    return LLMKIT_OK;
}

/* "host:port", "[v6]:port" or "unix:/path".  Names but localhost are not looked up: that would
 * block, and which address is meant should be plain to see. */
LK__PRIV llmkit_err lk__listen_parse(lk__bind_addr *a, llmkit_str text, llmkit_error *error) {
    if (lk__str_starts(text, LK__STR("unix:")))
        return lk__listen_parse_unix(a, lk__str_from(text, 5), error);
    size_t colon = text.len;
    while (colon > 0 && text.ptr[colon - 1] != ':') colon--;
    uint64_t port;
    llmkit_str host = lk__str(text.ptr, colon ? colon - 1 : 0);
    if (!lk__parse_u64(lk__str_from(text, colon), &port) || port > UINT16_MAX || colon == 0)
        return lk__fail(error, LLMKIT_E_ARG, "listen: '%.*s' does not end in :PORT", LK__ARG(text));
    if (host.len > 2 && host.ptr[0] == '[' && host.ptr[host.len - 1] == ']')
        host = lk__str(host.ptr + 1, host.len - 2);
    if (lk__str_eq(host, LK__STR("localhost"))) host = LK__STR("127.0.0.1");
    a->is_unix = false;
    if (!lk__addr_parse(&a->ip, host, (uint16_t)port))
        return lk__fail(error, LLMKIT_E_ARG, "listen: '%.*s' is no IP address", LK__ARG(host));
    return LLMKIT_OK;
}

/* A socket file that nobody serves any more, left by a process that crashed, may go. */
LK__PRIV bool lk__listen_remove_stale(llmkit_server *s, const lk__bind_addr *a) {
    struct stat st;
    if (!a->is_unix || lstat(a->at.un.sun_path, &st) != 0 || !S_ISSOCK(st.st_mode)) return false;
    int fd = lk__socket_open(s->loop, AF_UNIX);
    if (fd < 0) return false;
    socklen_t len;
    const struct sockaddr *addr = lk__bind_sockaddr(a, &len);
    bool stale = lk__loop_sys(s->loop)->connect(fd, addr, len) != 0 && errno == ECONNREFUSED;
    lk__loop_sys(s->loop)->close(fd);
    return stale && unlink(a->at.un.sun_path) == 0;
}

LK__PRIV bool lk__listen_bind(llmkit_server *s, int fd, const lk__bind_addr *a) {
    socklen_t len;
    const struct sockaddr *addr = lk__bind_sockaddr(a, &len);
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, addr, len) == 0) return true;
    if (errno != EADDRINUSE || !lk__listen_remove_stale(s, a)) return false;
    return bind(fd, addr, len) == 0;
}

/* Remembers the port that the kernel chose, or the file that is ours to remove. */
LK__PRIV llmkit_err lk__listen_note(llmkit_server *s, int fd, const lk__bind_addr *a) {
    if (!a->is_unix) {
        lk__addr bound = { .len = sizeof bound.at };
        if (getsockname(fd, &bound.at.any, &bound.len)) return LLMKIT_E_IO;
        bool is_v6 = bound.at.any.sa_family == AF_INET6;
        s->port = ntohs(is_v6 ? bound.at.v6.sin6_port : bound.at.v4.sin_port);
        return LLMKIT_OK;
    }
    struct stat st;
    s->unix_path = lk__strdup(&s->env, a->at.un.sun_path);
    if (!s->unix_path) return LLMKIT_E_NOMEM;
    if (lstat(s->unix_path, &st) == 0) {
        s->unix_dev = st.st_dev;
        s->unix_ino = st.st_ino;
    }
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__server_listen(llmkit_server *s, const char *listen_at,
                                      llmkit_error *error) {
    lk__bind_addr a;
    llmkit_str text = listen_at ? lk__str_z(listen_at) : LK__STR("127.0.0.1:0");
    if (lk__listen_parse(&a, text, error)) return LLMKIT_E_ARG;
    int fd = lk__socket_open(s->loop, a.is_unix ? AF_UNIX : a.ip.at.any.sa_family);
    if (fd < 0) return lk__fail_os(error, LLMKIT_E_IO, errno, "no socket to listen on");
    llmkit_err err;
    if (!lk__listen_bind(s, fd, &a) || listen(fd, (int)s->desc.backlog) != 0)
        err = lk__fail_os(error, LLMKIT_E_IO, errno, "cannot listen on %.*s", LK__ARG(text));
    else if ((err = lk__listen_note(s, fd, &a)) != LLMKIT_OK ||
             (err = lk__io_start(s->loop, &s->listener, fd, LLMKIT_READ, lk__server_on_accept)))
        lk__fail(error, err, "no memory to listen");
    if (!err) return LLMKIT_OK;
    s->listener.fd = -1;
    lk__server_remove_file(s);
    lk__loop_sys(s->loop)->close(fd);
    return err;
}

/* ---- >>public: the server -------------------------------------------------------------------- */

LK__PRIV uint32_t lk__server_or(uint32_t value, uint32_t otherwise) {
    return value ? value : otherwise;
}

LK__PRIV void lk__server_defaults(llmkit_server_desc *d) {
    d->backlog = lk__server_or(d->backlog, 4096);
    d->max_connections = lk__server_or(d->max_connections, 16384);
    d->max_head_bytes = lk__server_or(d->max_head_bytes, LLMKIT_MAX_HEAD_BYTES);
    if (d->max_head_bytes > LLMKIT_MAX_HEAD_BYTES) d->max_head_bytes = LLMKIT_MAX_HEAD_BYTES;
    if (d->backlog > INT_MAX) d->backlog = INT_MAX;
    d->max_body_bytes = lk__server_or(d->max_body_bytes, 16U << 20);
    d->max_unsent_bytes = lk__server_or(d->max_unsent_bytes, 1U << 20);
    d->head_ms = lk__server_or(d->head_ms, 10000);
    d->body_ms = lk__server_or(d->body_ms, 30000);
    d->send_ms = lk__server_or(d->send_ms, 60000);
    d->keep_alive_ms = lk__server_or(d->keep_alive_ms, 75000);
}

LLMKIT_API llmkit_server *llmkit_server_create(const llmkit_server_desc *desc,
                                               llmkit_error *error) {
    if (!desc || !desc->loop || !desc->handle) {
        lk__fail(error, LLMKIT_E_ARG, "llmkit_server_desc: loop and handle are required");
        return NULL;
    }
    if (lk__check_guards(error, desc->_guard0, desc->_guard1, "llmkit_server_desc")) return NULL;
    if (desc->tls && !lk__tls_has_identity(desc->tls)) {
        lk__fail(error, LLMKIT_E_ARG, "llmkit_server_desc.tls has no certificate to serve with");
        return NULL;
    }
    llmkit_env env = lk__env_fill(&desc->env);
    llmkit_server *s = lk__alloc(&env, sizeof *s);
    if (!s) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a server");
        return NULL;
    }
    s->env = env;
    s->desc = *desc;
    lk__server_defaults(&s->desc);
    s->loop = desc->loop;
    s->retry.fn = lk__server_on_retry;
    lk__buf_init(&s->head, &s->env, 0);
    if (lk__server_listen(s, desc->listen, error)) {
        lk__free(&env, s, sizeof *s);
        return NULL;
    }
    s->tls = desc->tls ? lk__tls_retain(desc->tls) : NULL;
    s->holding = true;
    lk__loop_hold(s->loop);
    return s;
}

LLMKIT_API void llmkit_server_drain(llmkit_server *s) {
    if (!s || s->draining) return;
    s->draining = true;
    lk__server_stop_listening(s);
    for (lk__peer *p = s->peers, *next; p; p = next) {
        next = p->next;
        if (p->phase > LK__PEER_IDLE) continue;
        lk__wire_shut(&p->wire); /* TLS says goodbye */
        lk__peer_close(p);
    }
    lk__server_unhold(s);
}

LLMKIT_API void llmkit_server_destroy(llmkit_server *s) {
    if (!s) return;
    s->draining = true;
    lk__server_stop_listening(s);
    while (s->peers) lk__peer_close(s->peers);
    lk__server_unhold(s);
    while (s->exchanges) {
        llmkit_exchange *x = s->exchanges;
        lk__exchange_unlink(x);
        lk__exchange_free(x);
    }
    for (llmkit_exchange *x = s->spare, *next; x; x = next) {
        next = x->next;
        lk__exchange_free(x);
    }
    lk__buf_free(&s->head);
    llmkit_tls_release(s->tls);
    llmkit_env env = s->env;
    lk__free(&env, s, sizeof *s);
}

LLMKIT_API uint16_t llmkit_server_port(const llmkit_server *s) {
    return s ? s->port : 0;
}

LLMKIT_API llmkit_server_stats llmkit_server_read(const llmkit_server *s) {
    return s ? s->stats : (llmkit_server_stats){ 0 };
}

/* ---- >>public: the request ------------------------------------------------------------------- */

LLMKIT_API llmkit_str llmkit_exchange_method(const llmkit_exchange *x) {
    return x->method;
}

LLMKIT_API llmkit_str llmkit_exchange_path(const llmkit_exchange *x) {
    return x->path;
}

LLMKIT_API llmkit_str llmkit_exchange_query(const llmkit_exchange *x) {
    return x->query;
}

LLMKIT_API llmkit_str llmkit_exchange_body(const llmkit_exchange *x) {
    return lk__buf_view(&x->body);
}

LLMKIT_API llmkit_str llmkit_exchange_header(const llmkit_exchange *x, const char *name) {
    llmkit_str wanted = lk__str_z(name);
    const char *at = x->text.ptr + x->fields_at, *end = x->text.ptr + x->text.len;
    while (at < end) {
        llmkit_str field = lk__str_z(at);
        llmkit_str value = lk__str_z(at + field.len + 1);
        if (lk__str_ieq(field, wanted)) return value;
        at = value.ptr + value.len + 1;
    }
    return (llmkit_str){ NULL, 0 };
}

/* ---- >>public: the reply --------------------------------------------------------------------- */

LLMKIT_API void llmkit_exchange_closed(llmkit_exchange *x, void (*closed)(void *user), void *user) {
    if (x->over) return;
    x->closed = closed;
    x->closed_user = user;
}

LLMKIT_API void llmkit_exchange_writable(llmkit_exchange *x, void (*writable)(void *user),
                                         void *user) {
    if (x->over) return;
    x->writable = writable;
    x->writable_user = user;
}

LLMKIT_API llmkit_err llmkit_exchange_set(llmkit_exchange *x, const char *name, const char *value) {
    static const char *const own[] = { "Content-Length", "Transfer-Encoding", "Connection" };
    if (!x->peer) return LLMKIT_E_STALE;
    if (!name || !value || x->begun) return LLMKIT_E_ARG;
    for (size_t i = 0; i < LK__COUNT(own); i++)
        if (lk__str_ieq(lk__str_z(name), lk__str_z(own[i]))) return LLMKIT_E_ARG;
    if (strlen(name) + strlen(value) + x->out.len > LLMKIT_MAX_HEAD_BYTES) return LLMKIT_E_TOO_BIG;
    llmkit_err err = lk__http_field(&x->out, lk__str_z(name), lk__str_z(value));
    return err ? err : x->out.failed;
}

/* False: there is nobody to answer.  An exchange whose peer is gone ends here, except inside its
 * closed callback, where it ends afterwards. */
LK__PRIV bool lk__exchange_is_live(llmkit_exchange *x) {
    if (x->peer) return true;
    if (!x->over) lk__exchange_release(x);
    return false;
}

LK__PRIV void lk__exchange_finish(llmkit_exchange *x, const llmkit_str *pieces, size_t num) {
    lk__peer *p = x->peer;
    bool keep = x->keep_alive && !x->server->draining && (x->chunked || !x->begun || x->bodiless);
    lk__peer_send(p, pieces, num);
    lk__exchange_release(x);
    lk__peer_replied(p, keep);
}

LLMKIT_API void llmkit_exchange_reply(llmkit_exchange *x, int status, const char *content_type,
                                      llmkit_str body) {
    LK__ASSERT(!x->begun);
    if (!lk__exchange_is_live(x)) return;
    llmkit_server *s = x->server;
    lk__server_head(s, status, content_type);
    bool bodiless = lk__status_is_bodiless(status);
    if (!bodiless) lk__http_field_u64(&s->head, LK__STR("Content-Length"), body.len);
    bool keep = x->keep_alive && !s->draining;
    lk__server_head_end(s, keep, x->is_1_0, lk__buf_view(&x->out));
    if (s->head.failed) lk__peer_doom(x->peer);
    llmkit_str pieces[2] = { lk__buf_view(&s->head), body };
    size_t num = s->head.failed ? 0 : bodiless || x->is_head ? 1 : 2;
    lk__exchange_finish(x, pieces, num);
}

/* The head waits for the first piece, or the end of the turn: one system call for both. */
LLMKIT_API llmkit_err llmkit_exchange_begin(llmkit_exchange *x, int status,
                                            const char *content_type) {
    if (!x->peer) return LLMKIT_E_STALE;
    LK__ASSERT(!x->begun);
    llmkit_server *s = x->server;
    lk__server_head(s, status, content_type);
    x->bodiless = x->is_head || lk__status_is_bodiless(status);
    x->chunked = !x->is_1_0 && !lk__status_is_bodiless(status);
    if (x->chunked) lk__buf_str(&s->head, LK__STR("Transfer-Encoding: chunked\r\n"));
    bool keep = x->keep_alive && !s->draining && (x->chunked || x->bodiless);
    lk__server_head_end(s, keep, x->is_1_0, lk__buf_view(&x->out));
    if (s->head.failed) return s->head.failed;
    lk__buf_clear(&x->out);
    lk__buf_str(&x->out, lk__buf_view(&s->head));
    if (x->out.failed) return x->out.failed;
    x->begun = true;
    lk__defer(s->loop, &x->peer->task);
    return LLMKIT_OK;
}

/* Whether a piece may still be taken; what is corked goes out first where it matters. */
LK__PRIV bool lk__exchange_has_room(llmkit_exchange *x, size_t len) {
    size_t most = x->server->desc.max_unsent_bytes;
    size_t unsent = lk__wire_unsent(&x->peer->wire);
    if (len <= most && unsent + x->out.len <= most - len) return true;
    lk__exchange_uncork(x);
    unsent = lk__wire_unsent(&x->peer->wire);
    return unsent == 0 || (len <= most && unsent <= most - len);
}

/* Small pieces of one turn leave together. */
LK__PRIV void lk__exchange_cork(llmkit_exchange *x, llmkit_str piece) {
    if (x->chunked)
        lk__http_chunk(&x->out, piece);
    else
        lk__buf_str(&x->out, piece);
    if (x->out.failed)
        lk__peer_doom(x->peer);
    else if (x->out.len >= LK__SERVER_CORK)
        lk__exchange_uncork(x);
    else
        lk__defer(x->server->loop, &x->peer->task);
}

/* Large ones go with what is corked, and are not copied. */
LK__PRIV void lk__exchange_send_large(llmkit_exchange *x, llmkit_str piece) {
    if (x->chunked) lk__buf_fmt(&x->out, "%zx\r\n", piece.len);
    if (x->out.failed) {
        lk__peer_doom(x->peer);
        return;
    }
    llmkit_str pieces[3] = { lk__buf_view(&x->out), piece, LK__STR("\r\n") };
    lk__peer_send(x->peer, pieces, x->chunked ? 3 : 2);
    lk__buf_clear(&x->out);
}

LLMKIT_API bool llmkit_exchange_write(llmkit_exchange *x, llmkit_str piece) {
    if (!x->peer) return true;
    LK__ASSERT(x->begun);
    if (x->bodiless || piece.len == 0) return true;
    if (!lk__exchange_has_room(x, piece.len)) {
        x->blocked = true;
        return false;
    }
    if (piece.len < LK__SERVER_CORK / 2)
        lk__exchange_cork(x, piece);
    else
        lk__exchange_send_large(x, piece);
    return !x->out.failed;
}

LLMKIT_API void llmkit_exchange_end(llmkit_exchange *x) {
    if (!lk__exchange_is_live(x)) return;
    LK__ASSERT(x->begun);
    if (x->chunked && !x->is_head) lk__http_last_chunk(&x->out);
    if (x->out.failed) lk__peer_doom(x->peer);
    llmkit_str corked = lk__buf_view(&x->out);
    lk__exchange_finish(x, &corked, 1);
}

LLMKIT_API void llmkit_exchange_abort(llmkit_exchange *x) {
    if (!lk__exchange_is_live(x)) return;
    lk__peer *p = x->peer;
    lk__exchange_release(x);
    p->exchange = NULL;
    lk__peer_close(p);
}

#else /* LLMKIT_WITH_SERVER */

LLMKIT_API llmkit_server *llmkit_server_create(const llmkit_server_desc *desc,
                                               llmkit_error *error) {
    (void)desc;
    lk__fail_disabled(error, "LLMKIT_WITH_SERVER");
    return NULL;
}

LLMKIT_API void llmkit_server_drain(llmkit_server *s) {
    (void)s;
}

LLMKIT_API void llmkit_server_destroy(llmkit_server *s) {
    (void)s;
}

LLMKIT_API uint16_t llmkit_server_port(const llmkit_server *s) {
    (void)s;
    return 0;
}

LLMKIT_API llmkit_server_stats llmkit_server_read(const llmkit_server *s) {
    (void)s;
    return (llmkit_server_stats){ 0 };
}

LLMKIT_API llmkit_str llmkit_exchange_method(const llmkit_exchange *x) {
    (void)x;
    return LK__STR("");
}

LLMKIT_API llmkit_str llmkit_exchange_path(const llmkit_exchange *x) {
    (void)x;
    return LK__STR("");
}

LLMKIT_API llmkit_str llmkit_exchange_query(const llmkit_exchange *x) {
    (void)x;
    return LK__STR("");
}

LLMKIT_API llmkit_str llmkit_exchange_body(const llmkit_exchange *x) {
    (void)x;
    return LK__STR("");
}

LLMKIT_API llmkit_str llmkit_exchange_header(const llmkit_exchange *x, const char *name) {
    (void)x, (void)name;
    return (llmkit_str){ NULL, 0 };
}

LLMKIT_API void llmkit_exchange_closed(llmkit_exchange *x, void (*closed)(void *user), void *user) {
    (void)x, (void)closed, (void)user;
}

LLMKIT_API void llmkit_exchange_writable(llmkit_exchange *x, void (*writable)(void *user),
                                         void *user) {
    (void)x, (void)writable, (void)user;
}

LLMKIT_API llmkit_err llmkit_exchange_set(llmkit_exchange *x, const char *name, const char *value) {
    (void)x, (void)name, (void)value;
    return LLMKIT_E_DISABLED;
}

LLMKIT_API void llmkit_exchange_reply(llmkit_exchange *x, int status, const char *content_type,
                                      llmkit_str body) {
    (void)x, (void)status, (void)content_type, (void)body;
}

LLMKIT_API llmkit_err llmkit_exchange_begin(llmkit_exchange *x, int status,
                                            const char *content_type) {
    (void)x, (void)status, (void)content_type;
    return LLMKIT_E_DISABLED;
}

LLMKIT_API bool llmkit_exchange_write(llmkit_exchange *x, llmkit_str piece) {
    (void)x, (void)piece;
    return false;
}

LLMKIT_API void llmkit_exchange_end(llmkit_exchange *x) {
    (void)x;
}

LLMKIT_API void llmkit_exchange_abort(llmkit_exchange *x) {
    (void)x;
}

#endif /* LLMKIT_WITH_SERVER */
