/* net/dial.c -- connection attempts, staggered and raced (RFC 8305) */

#include "net/dial.h"

#define LK__DIAL_STAGGER_NS (250 * LK__NS_PER_MS) /* RFC 8305 section 5, Connection Attempt Delay */
#define LK__DIAL_FULL_NS    (10 * LK__NS_PER_MS)  /* see lk__dial_try */

typedef struct lk__racer {
    lk__io    io;
    lk__dial *dial;
} lk__racer;

struct lk__dial {
    llmkit_loop *loop;
    lk__timer    stagger;
    lk__task     start;  /* the first attempt, so that no result comes from inside lk__dial_start */
    uint32_t     next;   /* address */
    uint32_t     racing; /* attempts that have not failed */
    llmkit_error error;  /* of the last one that did */
    lk__addrs    addrs;
    lk__racer    racers[LK__MAX_ADDRS];
    void       (*fn)(void *user, int fd, const llmkit_error *error);
    void        *user;
};

LK__PRIV void lk__dial_drop(lk__racer *racer) {
    if (racer->io.fd < 0) return;
    int fd = racer->io.fd;
    lk__io_stop(racer->dial->loop, &racer->io);
    lk__loop_sys(racer->dial->loop)->close(fd);
    racer->io.fd = -1;
    racer->dial->racing--;
}

LK__PRIV void lk__dial_stop(lk__dial *d) {
    if (!d) return;
    for (uint32_t i = 0; i < d->addrs.num; i++) lk__dial_drop(&d->racers[i]);
    lk__timer_stop(d->loop, &d->stagger);
    lk__undefer(d->loop, &d->start);
    lk__free(lk__loop_env(d->loop), d, sizeof *d);
}

LK__PRIV void lk__dial_finish(lk__dial *d, int fd) {
    void (*fn)(void *user, int fd, const llmkit_error *error) = d->fn;
    void *user = d->user;
    llmkit_error error = d->error;
    LK__ASSERT(fd >= 0 || error.code);
    lk__dial_stop(d);
    fn(user, fd, fd < 0 ? &error : NULL);
}

LK__PRIV void lk__dial_failed(lk__dial *d, const lk__addr *addr, int os_errno) {
    char text[INET6_ADDRSTRLEN] = "";
    if (addr->at.any.sa_family == AF_UNIX) {
        lk__fail_os(&d->error, LLMKIT_E_CONNECT, os_errno, "no connection to the socket %s",
                    addr->at.un.sun_path);
        return;
    }
    bool v6 = addr->at.any.sa_family == AF_INET6;
    uint16_t port = ntohs(v6 ? addr->at.v6.sin6_port : addr->at.v4.sin_port);
    inet_ntop(addr->at.any.sa_family,
              v6 ? (const void *)&addr->at.v6.sin6_addr : (const void *)&addr->at.v4.sin_addr, text,
              sizeof text);
    lk__fail_os(&d->error, LLMKIT_E_CONNECT, os_errno, "no connection to %s port %u", text, port);
}

LK__PRIV void lk__dial_go_on(lk__dial *d);

/* errno of a connection attempt: 0, it is connected; EINPROGRESS, neither that nor failed. */
LK__PRIV int lk__dial_outcome(int fd) {
    int failure = 0;
    socklen_t len = sizeof failure;
    lk__addr peer = { .len = sizeof peer.at };
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &len)) return errno;
    if (failure) return failure;
    if (getpeername(fd, &peer.at.any, &peer.len) == 0) return 0;
    return errno == ENOTCONN ? EINPROGRESS : errno;
}

/* Writable, or called without need. */
LK__PRIV void lk__dial_on_io(lk__io *io, unsigned ready) {
    (void)ready;
    lk__racer *racer = LK__CONTAINER(io, lk__racer, io);
    lk__dial *d = racer->dial;
    int failure = lk__dial_outcome(io->fd);
    if (failure == EINPROGRESS) return;
    if (failure) {
        lk__dial_failed(d, &d->addrs.addr[racer - d->racers], failure);
        lk__dial_drop(racer);
        lk__dial_go_on(d);
        return;
    }
    int fd = io->fd;
    lk__io_stop(d->loop, io);
    io->fd = -1;
    d->racing--;
    lk__dial_finish(d, fd);
}

/* True: an attempt is under way, or has won at once, in which case *won is its descriptor.  A Unix
 * socket does not queue where its backlog is full but answers EAGAIN (Linux connect(2)): then *full
 * is set, and the attempt is to be made again a little later. */
LK__PRIV bool lk__dial_try(lk__dial *d, uint32_t i, int *won, bool *full) {
    const lk__addr *addr = &d->addrs.addr[i];
    const lk__sys *sys = lk__loop_sys(d->loop);
    int fd = lk__socket_open(d->loop, addr->at.any.sa_family);
    int failure = fd < 0 || sys->connect(fd, &addr->at.any, addr->len) ? errno : 0;
    if (fd >= 0 && failure == 0) {
        *won = fd;
        return true;
    }
    if (fd >= 0 && failure == EINPROGRESS) {
        if (!lk__io_start(d->loop, &d->racers[i].io, fd, LLMKIT_WRITE, lk__dial_on_io)) {
            d->racing++;
            return true;
        }
        failure = ENOMEM; /* all that a poller needs */
        d->racers[i].io.fd = -1;
    }
    *full = fd >= 0 && failure == EAGAIN && addr->at.any.sa_family == AF_UNIX;
    lk__dial_failed(d, addr, failure);
    if (fd >= 0) sys->close(fd);
    return false;
}

/* Starts the next attempt, or ends the dial where none is left.  The stagger timer goes on; where
 * there is no memory for it, the attempts follow one another without a pause. */
LK__PRIV void lk__dial_go_on(lk__dial *d) {
    int won = -1;
    while (d->next < d->addrs.num && won < 0) {
        bool full = false;
        bool racing = lk__dial_try(d, d->next, &won, &full);
        int64_t pause = full ? LK__DIAL_FULL_NS : LK__DIAL_STAGGER_NS;
        if (!full) d->next++;
        if (!racing && !full) continue;
        if (won >= 0 || d->next == d->addrs.num) break;
        if (!lk__timer_set(d->loop, &d->stagger, lk__loop_now(d->loop) + pause)) return;
        if (full) break;
    }
    if (won >= 0 || d->racing == 0) lk__dial_finish(d, won);
}

LK__PRIV void lk__dial_on_stagger(lk__timer *timer) {
    lk__dial_go_on(LK__CONTAINER(timer, lk__dial, stagger));
}

LK__PRIV void lk__dial_on_start(lk__task *task) {
    lk__dial_go_on(LK__CONTAINER(task, lk__dial, start));
}

LK__PRIV lk__dial *lk__dial_start(llmkit_loop *loop, const lk__addrs *addrs,
                                  void (*fn)(void *user, int fd, const llmkit_error *error),
                                  void *user) {
    lk__dial *d = lk__alloc(lk__loop_env(loop), sizeof *d);
    if (!d) return NULL;
    d->loop = loop;
    d->addrs = *addrs;
    d->fn = fn;
    d->user = user;
    d->stagger.fn = lk__dial_on_stagger;
    d->start.fn = lk__dial_on_start;
    for (uint32_t i = 0; i < LK__MAX_ADDRS; i++) {
        d->racers[i].dial = d;
        d->racers[i].io.fd = -1;
    }
    lk__defer(loop, &d->start);
    return d;
}

#undef LK__DIAL_FULL_NS
#undef LK__DIAL_STAGGER_NS
