/* net/wire.c -- moving bytes between a socket, a TLS engine and the owner of both */

#include "net/wire.h"

enum {
    LK__WIRE_READS = 4,  /* of one wire in a row, before others get their turn */
    LK__WIRE_PIECES = 8, /* gathered into one system call */
};

/* Bytes that neither the socket nor the engine has taken. */
LK__PRIV size_t lk__wire_waiting(const lk__wire *w) {
    return w->out.len - w->out_sent;
}

LK__PRIV size_t lk__wire_unsent(const lk__wire *w) {
#if LLMKIT_WITH_TLS
    return lk__wire_waiting(w) + (w->record.len - w->record_sent);
#else
    return lk__wire_waiting(w);
#endif
}

/* ---- what the poller is asked for ------------------------------------------------------------ */

LK__PRIV bool lk__wire_waits_to_send(const lk__wire *w) {
    if (w->broken) return false;
#if LLMKIT_WITH_TLS
    if (w->tls) {
        unsigned wants = lk__tls_wants(w->tls);
        return w->record.len > 0 || (wants & LK__TLS_SEND_WIRE) ||
               ((wants & LK__TLS_SEND_APP) && lk__wire_waiting(w) > 0);
    }
#endif
    return lk__wire_waiting(w) > 0;
}

/* What the engine could not take yet must be gone before more is read. */
LK__PRIV bool lk__wire_waits_to_read(const lk__wire *w) {
#if LLMKIT_WITH_TLS
    if (w->in.len > 0) return false;
#endif
    return !w->paused;
}

/* A poller that finds no memory now is asked again in the next turn. */
LK__PRIV void lk__wire_watch(lk__wire *w) {
    unsigned events = (lk__wire_waits_to_read(w) ? (unsigned)LLMKIT_READ : 0U) |
                      (lk__wire_waits_to_send(w) ? (unsigned)LLMKIT_WRITE : 0U);
    if (events != w->io.events && lk__io_set(w->loop, &w->io, events))
        lk__defer(w->loop, &w->again);
}

/* ---- callbacks, any of which may end the wire ------------------------------------------------ */

/* False: the owner closed the wire, which may be freed memory by now. */
LK__PRIV bool lk__wire_deliver(lk__wire *w, llmkit_str bytes) {
    bool gone = false;
    w->gone = &gone;
    w->ops->read(w, bytes);
    if (gone) return false;
    w->gone = NULL;
    return true;
}

LK__PRIV bool lk__wire_tell(lk__wire *w, void (*fn)(lk__wire *w)) {
    bool gone = false;
    w->gone = &gone;
    fn(w);
    if (gone) return false;
    w->gone = NULL;
    return true;
}

/* ---- sending --------------------------------------------------------------------------------- */

/* Bytes the socket took, 0 where it is full.  After a failure the read side goes on: a server that
 * refuses a request while it is being sent has said why before it closed. */
LK__PRIV size_t lk__wire_send(lk__wire *w, const struct iovec *iov, int count) {
    if (w->broken) return 0;
    ssize_t n = lk__loop_sys(w->loop)->send(w->io.fd, iov, count);
    if (n >= 0) return (size_t)n;
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
        w->broken = errno;
        lk__defer(w->loop, &w->again);
    }
    return 0;
}

/* A request's head may be among the bytes, and a key in it. */
LK__PRIV void lk__wire_drop_out(lk__wire *w) {
    lk__buf_wipe(&w->out);
    w->out_sent = 0;
}

/* Notes that n more bytes of out have gone; an emptied buffer goes back to the allocator, since an
 * idle connection should hold none. */
LK__PRIV void lk__wire_sent(lk__wire *w, size_t n) {
    w->out_sent += n;
    if (w->out_sent == w->out.len) lk__wire_drop_out(w);
}

/* Keeps, in order, what is left of the pieces behind the bytes that were taken.  Room for all of it
 * at once: growing piece by piece would leave copies of a key behind. */
LK__PRIV llmkit_err lk__wire_keep(lk__wire *w, const llmkit_str *pieces, size_t num, size_t taken) {
    size_t bytes = 0;
    for (size_t i = 0; i < num; i++) bytes = lk__add(bytes, pieces[i].len);
    if (w->broken || bytes == taken) return LLMKIT_OK;
    lk__buf_more(&w->out, bytes - taken);
    for (size_t i = 0; i < num; i++) {
        size_t skip = taken < pieces[i].len ? taken : pieces[i].len;
        taken -= skip;
        lk__buf_str(&w->out, lk__str_from(pieces[i], skip));
    }
    return w->out.failed;
}

#if LLMKIT_WITH_TLS
/* False: the socket is full.  What a broken one does not take is dropped. */
LK__PRIV bool lk__wire_send_record(lk__wire *w) {
    while (w->record.len > w->record_sent) {
        struct iovec iov = { w->record.ptr + w->record_sent, w->record.len - w->record_sent };
        size_t n = lk__wire_send(w, &iov, 1);
        if (n == 0 && !w->broken) return false;
        w->record_sent += w->broken ? iov.iov_len : n;
    }
    lk__buf_free(&w->record);
    w->record_sent = 0;
    return true;
}

/* Engine to socket.  False: the socket is full.  The engine's buffer serves both directions and is
 * busy until its record is out, so a record that must wait is put aside: two peers that both write
 * more than their sockets hold would wait for each other for ever. */
LK__PRIV bool lk__wire_flush_records(lk__wire *w) {
    if (!lk__wire_send_record(w)) return false;
    while (lk__tls_wants(w->tls) & LK__TLS_SEND_WIRE) {
        size_t len;
        uint8_t *bytes = lk__tls_buf(w->tls, LK__TLS_SEND_WIRE, &len);
        struct iovec iov = { bytes, len };
        size_t n = lk__wire_send(w, &iov, 1);
        if (n == 0 && !w->broken) {
            lk__buf_add(&w->record, bytes, len);
            if (!w->record.failed) lk__tls_ack(w->tls, LK__TLS_SEND_WIRE, len);
            w->record.failed = LLMKIT_OK; /* without memory it waits in the engine */
            return false;
        }
        lk__tls_ack(w->tls, LK__TLS_SEND_WIRE, w->broken ? len : n);
    }
    return true;
}

/* Application bytes into the engine, records to the socket whenever one is full. */
LK__PRIV size_t lk__wire_encrypt(lk__wire *w, llmkit_str bytes) {
    size_t done = 0;
    while (w->ready && w->record.len == 0 && done < bytes.len) {
        size_t room = 0;
        uint8_t *at = NULL;
        if (lk__tls_wants(w->tls) & LK__TLS_SEND_APP)
            at = lk__tls_buf(w->tls, LK__TLS_SEND_APP, &room);
        if (room == 0) {
            if (!(lk__tls_wants(w->tls) & LK__TLS_SEND_WIRE) || !lk__wire_flush_records(w)) break;
            continue;
        }
        size_t n = room < bytes.len - done ? room : bytes.len - done;
        memcpy(at, bytes.ptr + done, n);
        lk__tls_ack(w->tls, LK__TLS_SEND_APP, n);
        done += n;
    }
    return done;
}

LK__PRIV void lk__wire_push_tls(lk__wire *w) {
    lk__wire_flush_records(w);
    while (lk__wire_waiting(w) > 0) {
        llmkit_str rest = lk__str_from(lk__buf_view(&w->out), w->out_sent);
        size_t n = lk__wire_encrypt(w, rest);
        lk__wire_sent(w, n);
        if (n < rest.len) break;
    }
    lk__tls_flush(w->tls);
    if (w->shut && w->ready && lk__wire_waiting(w) == 0) lk__tls_finish(w->tls);
    lk__wire_flush_records(w);
}

LK__PRIV llmkit_err lk__wire_write_tls(lk__wire *w, const llmkit_str *pieces, size_t num) {
    size_t taken = 0;
    for (size_t i = 0; i < num && lk__wire_waiting(w) == 0; i++) {
        size_t done = lk__wire_encrypt(w, pieces[i]);
        taken += done;
        if (done < pieces[i].len) break;
    }
    llmkit_err err = lk__wire_keep(w, pieces, num, taken);
    lk__tls_flush(w->tls);
    lk__wire_flush_records(w);
    return err;
}
#endif

LK__PRIV void lk__wire_push_plain(lk__wire *w) {
    while (lk__wire_waiting(w) > 0 && !w->broken) {
        struct iovec iov = { w->out.ptr + w->out_sent, lk__wire_waiting(w) };
        size_t n = lk__wire_send(w, &iov, 1);
        if (n == 0) return;
        lk__wire_sent(w, n);
    }
}

/* One gathered call; what it did not take is kept, in order. */
LK__PRIV llmkit_err lk__wire_write_plain(lk__wire *w, const llmkit_str *pieces, size_t num) {
    size_t taken = 0;
    if (lk__wire_waiting(w) == 0 && num <= LK__WIRE_PIECES) {
        struct iovec iov[LK__WIRE_PIECES];
        int count = 0;
        for (size_t i = 0; i < num; i++)
            if (pieces[i].len)
                iov[count++] = (struct iovec){ (void *)(uintptr_t)pieces[i].ptr, pieces[i].len };
        if (count) taken = lk__wire_send(w, iov, count);
    }
    return lk__wire_keep(w, pieces, num, taken);
}

LK__PRIV void lk__wire_push(lk__wire *w) {
#if LLMKIT_WITH_TLS
    if (w->tls) {
        lk__wire_push_tls(w);
        return;
    }
#endif
    lk__wire_push_plain(w);
}

/* FIN, once everything before it is with the kernel. */
LK__PRIV void lk__wire_half_close(lk__wire *w) {
    if (!w->shut || lk__wire_waiting(w) > 0 || lk__wire_waits_to_send(w)) return;
    shutdown(w->io.fd, SHUT_WR);
}

/* False: the wire is gone. */
LK__PRIV bool lk__wire_on_writable(lk__wire *w) {
    lk__wire_push(w);
    if (w->broken) lk__wire_drop_out(w);
    lk__wire_half_close(w);
    if (lk__wire_waiting(w) > 0 || lk__wire_waits_to_send(w)) return true;
    return !w->ready || !w->ops->drained || lk__wire_tell(w, w->ops->drained);
}

LK__PRIV llmkit_err lk__wire_write(lk__wire *w, const llmkit_str *pieces, size_t num) {
    if (!lk__wire_is_open(w) || w->broken) return LLMKIT_OK;
    llmkit_err err;
#if LLMKIT_WITH_TLS
    if (w->tls)
        err = lk__wire_write_tls(w, pieces, num);
    else
#endif
        err = lk__wire_write_plain(w, pieces, num);
    if (w->broken) lk__wire_drop_out(w);
    lk__wire_watch(w);
    return err;
}

LK__PRIV void lk__wire_shut(lk__wire *w) {
    if (!lk__wire_is_open(w) || w->shut) return;
    w->shut = true;
    lk__wire_push(w);
    lk__wire_half_close(w);
    lk__wire_watch(w);
}

/* ---- receiving ------------------------------------------------------------------------------- */

typedef enum lk__pulled {
    LK__PULL_GONE, /* the wire is closed, and may be freed memory */
    LK__PULL_DONE, /* nothing more now */
    LK__PULL_MORE
} lk__pulled;

LK__PRIV lk__pulled lk__wire_fail(lk__wire *w, const llmkit_error *error) {
    lk__wire_close(w);
    w->ops->closed(w, error);
    return LK__PULL_GONE;
}

/* Into scratch; 0 at the end of the stream, -1 with errno. */
LK__PRIV ssize_t lk__wire_recv(lk__wire *w) {
#if defined(__linux__) && defined(TCP_QUICKACK)
    int on = 1; /* the kernel falls back by itself, so it is said each time: Linux tcp(7) */
    if (w->quick_ack) setsockopt(w->io.fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
#endif
    return lk__loop_sys(w->loop)->recv(w->io.fd, lk__loop_scratch(w->loop), LLMKIT_READ_BYTES);
}

LK__PRIV lk__pulled lk__wire_no_bytes(lk__wire *w) {
    bool empty = errno == EAGAIN || errno == EWOULDBLOCK;
    if (empty && !w->broken) return LK__PULL_DONE;
    llmkit_error error;
    lk__fail_os(&error, LLMKIT_E_IO, empty ? w->broken : errno, "the connection broke");
    return lk__wire_fail(w, &error);
}

LK__PRIV lk__pulled lk__wire_pull_plain(lk__wire *w) {
    ssize_t n = lk__wire_recv(w);
    if (n < 0) return lk__wire_no_bytes(w);
    if (n == 0) return lk__wire_fail(w, NULL);
    if (!lk__wire_deliver(w, lk__str((const char *)lk__loop_scratch(w->loop), (size_t)n)))
        return LK__PULL_GONE;
    return n == LLMKIT_READ_BYTES ? LK__PULL_MORE : LK__PULL_DONE;
}

#if LLMKIT_WITH_TLS
LK__PRIV lk__pulled lk__wire_tls_closed(lk__wire *w) {
    llmkit_error error;
    bool failed = lk__tls_why(w->tls, &error) != LLMKIT_OK;
    lk__wire_flush_records(w); /* the alert that says why, if it goes out at once */
    return lk__wire_fail(w, failed ? &error : NULL);
}

/* Everything the engine can do without more input.  False: the wire is gone. */
LK__PRIV bool lk__wire_turn(lk__wire *w) {
    for (;;) {
        if (!w->ready && lk__tls_ready(w->tls)) {
            w->ready = true;
            if (w->ops->ready && !lk__wire_tell(w, w->ops->ready)) return false;
            lk__wire_push_tls(w);
        }
        unsigned wants = lk__tls_wants(w->tls);
        if (wants & LK__TLS_CLOSED) return lk__wire_tls_closed(w) != LK__PULL_GONE;
        if ((wants & LK__TLS_SEND_WIRE) && lk__wire_flush_records(w)) continue;
        if (!(wants & LK__TLS_RECV_APP) || w->paused) return true;
        /* Out of the engine's only buffer first, so that the owner can answer at once. */
        size_t len;
        const uint8_t *bytes = lk__tls_buf(w->tls, LK__TLS_RECV_APP, &len);
        uint8_t *plain = lk__loop_scratch(w->loop) + LLMKIT_READ_BYTES;
        if (len > LK__RECORD_BYTES) len = LK__RECORD_BYTES;
        memcpy(plain, bytes, len);
        lk__tls_ack(w->tls, LK__TLS_RECV_APP, len);
        if (!lk__wire_deliver(w, lk__str((const char *)plain, len))) return false;
    }
}

/* Feeds the engine and keeps what it cannot take now.  False: the wire is gone. */
LK__PRIV bool lk__wire_decrypt(lk__wire *w, llmkit_str bytes) {
    while (bytes.len > 0 && (lk__tls_wants(w->tls) & LK__TLS_RECV_WIRE)) {
        size_t room;
        uint8_t *at = lk__tls_buf(w->tls, LK__TLS_RECV_WIRE, &room);
        size_t n = room < bytes.len ? room : bytes.len;
        memcpy(at, bytes.ptr, n);
        lk__tls_ack(w->tls, LK__TLS_RECV_WIRE, n);
        bytes = lk__str_from(bytes, n);
        if (!lk__wire_turn(w)) return false;
    }
    if (bytes.len == 0) return true;
    lk__buf_str(&w->in, bytes);
    if (!w->in.failed) return true;
    llmkit_error error;
    lk__fail(&error, w->in.failed, "no memory for bytes received early");
    return lk__wire_fail(w, &error) != LK__PULL_GONE;
}

/* What was kept while the engine was busy goes before anything newer.  False: the wire is gone. */
LK__PRIV bool lk__wire_replay(lk__wire *w) {
    if (!lk__wire_turn(w)) return false;
    if (w->in.len == 0) return true;
    lk__buf kept = w->in;
    lk__buf_init(&w->in, kept.env, kept.max);
    bool open = lk__wire_decrypt(w, lk__buf_view(&kept));
    lk__buf_free(&kept);
    return open;
}

LK__PRIV lk__pulled lk__wire_pull_tls(lk__wire *w) {
    if (!lk__wire_replay(w)) return LK__PULL_GONE;
    if (w->in.len > 0) return LK__PULL_DONE;
    ssize_t n = lk__wire_recv(w);
    if (n < 0) return lk__wire_no_bytes(w);
    if (n == 0) {
        llmkit_error error;
        lk__fail(&error, w->ready ? LLMKIT_E_TRUNCATED : LLMKIT_E_TLS,
                 "the peer closed the connection %s",
                 w->ready ? "without TLS close_notify" : "in the TLS handshake");
        return lk__wire_fail(w, &error);
    }
    if (!lk__wire_decrypt(w, lk__str((const char *)lk__loop_scratch(w->loop), (size_t)n)))
        return LK__PULL_GONE;
    return n == LLMKIT_READ_BYTES ? LK__PULL_MORE : LK__PULL_DONE;
}
#endif

LK__PRIV lk__pulled lk__wire_pull(lk__wire *w) {
#if LLMKIT_WITH_TLS
    if (w->tls) return lk__wire_pull_tls(w);
#endif
    return lk__wire_pull_plain(w);
}

LK__PRIV void lk__wire_pull_some(lk__wire *w) {
    lk__pulled pulled = LK__PULL_MORE;
    for (int i = 0; i < LK__WIRE_READS && pulled == LK__PULL_MORE && !w->paused; i++)
        if ((pulled = lk__wire_pull(w)) == LK__PULL_GONE) return;
#if LLMKIT_WITH_TLS
    /* What was written while the engine was in the middle of a record from the peer. */
    if (w->tls && lk__wire_waiting(w) > 0 && !lk__wire_on_writable(w)) return;
#endif
    lk__wire_watch(w);
}

/* ---- the loop's side ------------------------------------------------------------------------- */

LK__PRIV void lk__wire_on_io(lk__io *io, unsigned events) {
    lk__wire *w = LK__CONTAINER(io, lk__wire, io);
    if ((events & LLMKIT_WRITE) && (w->io.events & LLMKIT_WRITE) && !lk__wire_on_writable(w))
        return;
    lk__wire_pull_some(w);
}

LK__PRIV void lk__wire_on_again(lk__task *task) {
    lk__wire *w = LK__CONTAINER(task, lk__wire, again);
    lk__wire_pull_some(w);
}

/* ---- opening and closing --------------------------------------------------------------------- */

LK__PRIV llmkit_err lk__wire_open(lk__wire *w, llmkit_loop *loop, int fd, const lk__wire_ops *ops,
                                  llmkit_tls *tls, const char *host, uint16_t port,
                                  llmkit_error *error) {
    const llmkit_env *env = lk__loop_env(loop);
    memset(w, 0, sizeof *w);
    w->ops = ops;
    w->ready = !tls;
    w->io.fd = fd;
    w->again.fn = lk__wire_on_again;
    lk__buf_init(&w->out, env, 0);
    int on = 1; /* replies and requests are written whole; waiting for more only delays them */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    llmkit_err err = LLMKIT_OK;
#if LLMKIT_WITH_TLS
    lk__buf_init(&w->in, env, 2 * (size_t)LLMKIT_READ_BYTES);
    lk__buf_init(&w->record, env, 0);
    if (tls && !(w->tls = lk__tls_open(tls, env, host, port, error))) err = error->code;
#else
    (void)host, (void)port;
    if (tls) err = lk__fail_disabled(error, "LLMKIT_WITH_TLS");
#endif
    if (!err && (err = lk__io_start(loop, &w->io, fd, LLMKIT_READ, lk__wire_on_io)))
        lk__fail(error, err, "the socket could not be watched");
    if (err) {
#if LLMKIT_WITH_TLS
        lk__tls_free(w->tls);
#endif
        lk__loop_sys(loop)->close(fd);
        return err;
    }
    w->loop = loop;
    lk__wire_push(w); /* a client's first flight */
    lk__wire_watch(w);
    return LLMKIT_OK;
}

LK__PRIV void lk__wire_close(lk__wire *w) {
    if (!lk__wire_is_open(w)) return;
    int fd = w->io.fd;
    lk__undefer(w->loop, &w->again);
    lk__io_stop(w->loop, &w->io);
    lk__loop_sys(w->loop)->close(fd);
    lk__wire_drop_out(w);
#if LLMKIT_WITH_TLS
    lk__buf_free(&w->in);
    lk__buf_free(&w->record);
    lk__tls_free(w->tls);
    w->tls = NULL;
#endif
    if (w->gone) *w->gone = true;
    w->gone = NULL;
    w->loop = NULL;
}

LK__PRIV void lk__wire_pause(lk__wire *w) {
    if (!lk__wire_is_open(w) || w->paused) return;
    w->paused = true;
    lk__wire_watch(w);
}

LK__PRIV void lk__wire_resume(lk__wire *w) {
    if (!lk__wire_is_open(w) || !w->paused) return;
    w->paused = false;
    lk__wire_watch(w);
#if LLMKIT_WITH_TLS
    if (w->tls) lk__defer(w->loop, &w->again); /* the engine may hold what no socket announces */
#endif
    if (w->broken) lk__defer(w->loop, &w->again);
}
