/* peer.h -- a scripted HTTP server on a loop, for the tests of the client's side
 *
 * Each request that has come whole goes to answer(), which says what it likes on the connection:
 * bytes at once, or later, or none; it may hang up or reset.  A peer may have a loop of its own, so
 * that faults injected into the client's loop do not hit it. */
#pragma once

#include "test.h"

enum { PEER_CONNS = 1100 };

typedef struct peer_conn {
    lk__wire     wire;
    struct peer *peer;
    lk__buf      in;       /* what has come and is no whole request yet */
    int          requests; /* answered on this connection */
    bool         used;
} peer_conn;

typedef struct peer {
    llmkit_loop *loop;
    llmkit_env   env; /* all defaults, so that nothing of it fails */
    llmkit_tls  *tls; /* NULL: plain */
    lk__io       io;  /* listens */
    uint16_t     port;
    char         path[64]; /* of a Unix socket */
    bool         mute;     /* accepts, and then neither reads nor writes */
    int          muted[16], num_muted;
    bool         deaf;     /* does not read requests, but say works */
    bool         early;    /* calls answer once the head is there, however much of the body is */
    int          accepted, closed, requests;
    void       (*answer)(peer_conn *c, llmkit_str request);
    void        *user;
    char         seen[8192]; /* the last request */
    peer_conn   *last;
    peer_conn   *conns[PEER_CONNS];
} peer;

LK_UNUSED static void peer_say(peer_conn *c, const char *text) {
    llmkit_str piece = lk__str_z(text);
    lk__wire_write(&c->wire, &piece, 1);
}

LK_UNUSED static void peer_hang_up(peer_conn *c) {
    if (!lk__wire_is_open(&c->wire)) return;
    lk__wire_close(&c->wire);
    c->peer->closed++;
}

/* An orderly end: what was said arrives, TLS says goodbye. */
LK_UNUSED static void peer_finish(peer_conn *c) {
    lk__wire_shut(&c->wire);
}

LK_UNUSED static void peer_reset(peer_conn *c) {
    struct linger now = { 1, 0 };
    if (!lk__wire_is_open(&c->wire)) return;
    setsockopt(c->wire.io.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    peer_hang_up(c);
}

LK_UNUSED static void peer_reply(peer_conn *c, int status, const char *fields, const char *body) {
    char head[2048];
    snprintf(head, sizeof head, "HTTP/1.1 %d X\r\nContent-Length: %zu\r\n%s\r\n", status,
             strlen(body), fields);
    llmkit_str pieces[2] = { lk__str_z(head), lk__str_z(body) };
    lk__wire_write(&c->wire, pieces, 2);
}

LK_UNUSED static void peer_json(peer_conn *c, const char *body) {
    peer_reply(c, 200, "Content-Type: application/json\r\nX-Request-Id: req-1\r\n", body);
}

LK_UNUSED static void peer_start_stream(peer_conn *c) {
    peer_say(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
             "X-Request-Id: req-2\r\nTransfer-Encoding: chunked\r\n\r\n");
}

LK_UNUSED static void peer_chunk(peer_conn *c, const char *text) {
    char size[32];
    if (!*text) return;
    snprintf(size, sizeof size, "%zx\r\n", strlen(text));
    llmkit_str pieces[3] = { lk__str_z(size), lk__str_z(text), LK__STR("\r\n") };
    lk__wire_write(&c->wire, pieces, 3);
}

LK_UNUSED static void peer_event(peer_conn *c, const char *data) {
    char text[4096];
    snprintf(text, sizeof text, "data: %s\n\n", data);
    peer_chunk(c, text);
}

LK_UNUSED static void peer_end_stream(peer_conn *c) {
    peer_say(c, "0\r\n\r\n");
}

static size_t peer_request_len(const peer *p, llmkit_str in) {
    const char *end = in.len ? strstr(in.ptr, "\r\n\r\n") : NULL;
    const char *length = end ? strstr(in.ptr, "Content-Length: ") : NULL;
    if (!end) return 0;
    size_t head = (size_t)(end - in.ptr) + 4;
    size_t body = length && length < end ? (size_t)atol(length + 16) : 0;
    if (p->early) return in.len < head + body ? in.len : head + body;
    return in.len < head + body ? 0 : head + body;
}

static void peer_on_read(lk__wire *w, llmkit_str bytes) {
    peer_conn *c = LK__CONTAINER(w, peer_conn, wire);
    peer *p = c->peer;
    if (p->deaf) return;
    lk__buf_str(&c->in, bytes);
    for (size_t n; lk__wire_is_open(w) && (n = peer_request_len(p, lk__buf_view(&c->in))) > 0;) {
        llmkit_str request = { c->in.ptr, n };
        size_t shown = n < sizeof p->seen - 1 ? n : sizeof p->seen - 1;
        memcpy(p->seen, request.ptr, shown);
        p->seen[shown] = '\0';
        p->requests++;
        p->last = c;
        if (p->answer) p->answer(c, request);
        c->requests++;
        lk__buf_drop(&c->in, n);
    }
}

static void peer_on_closed(lk__wire *w, const llmkit_error *error) {
    (void)error;
    LK__CONTAINER(w, peer_conn, wire)->peer->closed++;
}

static const lk__wire_ops peer_ops = { .read = peer_on_read, .closed = peer_on_closed };

static void peer_take(peer *p, int fd) {
    llmkit_error error;
    size_t i = 0;
    while (i < PEER_CONNS && p->conns[i] && lk__wire_is_open(&p->conns[i]->wire)) i++;
    assert_true(i < PEER_CONNS);
    if (!p->conns[i]) p->conns[i] = calloc(1, sizeof(peer_conn));
    peer_conn *c = p->conns[i];
    lk__buf_free(&c->in);
    c->peer = p;
    c->requests = 0;
    lk__buf_init(&c->in, &p->env, 0);
    if (lk__wire_open(&c->wire, p->loop, fd, &peer_ops, p->tls, NULL, 0, &error)) return;
    p->last = c;
}

static void peer_on_accept(lk__io *io, unsigned ready) {
    peer *p = LK__CONTAINER(io, peer, io);
    (void)ready;
    for (int fd; (fd = lk__sys_default()->accept(io->fd)) >= 0;) {
        p->accepted++;
        if (!p->mute) {
            peer_take(p, fd);
        } else {
            assert_true(p->num_muted < 16);
            p->muted[p->num_muted++] = fd;
        }
    }
}

static void peer_listen(peer *p, int family, const struct sockaddr *at, socklen_t len) {
    int fd = lk__sys_default()->socket(family, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, at, len), 0);
    assert_int_equal(listen(fd, 1024), 0);
    assert_ok(lk__io_start(p->loop, &p->io, fd, LLMKIT_READ, peer_on_accept));
}

LK_UNUSED static void peer_open(peer *p, llmkit_loop *loop) {
    lk__addr at = { .len = sizeof at.at.v4 };
    at.at.v4.sin_family = AF_INET;
    at.at.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    p->loop = loop;
    p->env = lk__env_fill(NULL);
    peer_listen(p, AF_INET, &at.at.any, at.len);
    assert_int_equal(getsockname(p->io.fd, &at.at.any, &at.len), 0);
    p->port = ntohs(at.at.v4.sin_port);
}

LK_UNUSED static void peer_open_unix(peer *p, llmkit_loop *loop) {
    static int nth;
    lk__addr at = { .len = sizeof at.at.un };
    at.at.un.sun_family = AF_UNIX;
    snprintf(p->path, sizeof p->path, "/tmp/llmkit-test-%ld-%d", (long)getpid(), nth++);
    memcpy(at.at.un.sun_path, p->path, strlen(p->path) + 1);
    p->loop = loop;
    p->env = lk__env_fill(NULL);
    unlink(p->path);
    peer_listen(p, AF_UNIX, &at.at.any, at.len);
}

/* New connections are refused from here on. */
LK_UNUSED static void peer_deafen(peer *p) {
    int fd = p->io.fd;
    if (!p->io.fn) return;
    lk__io_stop(p->loop, &p->io);
    close(fd);
    if (p->path[0]) unlink(p->path);
}

LK_UNUSED static void peer_close(peer *p) {
    peer_deafen(p);
    for (size_t i = 0; i < PEER_CONNS; i++) {
        if (!p->conns[i]) continue;
        lk__wire_close(&p->conns[i]->wire);
        lk__buf_free(&p->conns[i]->in);
        free(p->conns[i]);
    }
    for (int i = 0; i < p->num_muted; i++) close(p->muted[i]);
    llmkit_tls_release(p->tls);
    memset(p, 0, sizeof *p);
}

/* Connections that are open now. */
LK_UNUSED static int peer_open_conns(const peer *p) {
    int n = 0;
    for (size_t i = 0; i < PEER_CONNS; i++)
        if (p->conns[i] && lk__wire_is_open(&p->conns[i]->wire)) n++;
    return n;
}

/* A few turns of both loops, enough for whatever needs no time to pass. */
LK_UNUSED static void peer_turns(peer *p, llmkit_loop *loop, int turns) {
    for (int i = 0; i < turns; i++) {
        llmkit_loop_poll(loop, 0);
        if (p->loop != loop) llmkit_loop_poll(p->loop, 0);
    }
}

/* Turns until *done, which must come without the clock's help. */
LK_UNUSED static void peer_until(peer *p, llmkit_loop *loop, const bool *done) {
    for (int i = 0; i < 100000 && !*done; i++) peer_turns(p, loop, 1);
    assert_true(*done);
}
