/* net/loop_epoll.c -- readiness on Linux */

#include "net/loop_parts.h"

#if LLMKIT_LOOP == LLMKIT_LOOP_EPOLL

enum { LK__EPOLL_BATCH = 256 }; /* 3 KB of stack; what does not fit is reported next time */

LK__PRIV llmkit_err lk__poller_open(lk__poller *p, llmkit_error *error) {
    p->fd = epoll_create1(EPOLL_CLOEXEC);
    if (p->fd >= 0) return LLMKIT_OK;
    return lk__fail_os(error, LLMKIT_E_IO, errno, "cannot open an epoll descriptor");
}

LK__PRIV void lk__poller_close(lk__poller *p) {
    close(p->fd);
}

LK__PRIV llmkit_err lk__poller_set(lk__poller *p, lk__io *io, unsigned events) {
    struct epoll_event e = { .data = { .ptr = io } };
    if (events & LLMKIT_READ) e.events |= EPOLLIN;
    if (events & LLMKIT_WRITE) e.events |= EPOLLOUT;
    int op = EPOLL_CTL_MOD;
    if (io->events == 0) op = EPOLL_CTL_ADD;
    if (events == 0) op = EPOLL_CTL_DEL;
    if (epoll_ctl(p->fd, op, io->fd, &e) == 0 || events == 0) return LLMKIT_OK;
    return errno == ENOMEM ? LLMKIT_E_NOMEM : LLMKIT_E_IO;
}

LK__PRIV llmkit_err lk__poller_wait(lk__poller *p, int64_t wait_ns) {
    struct epoll_event e[LK__EPOLL_BATCH];
    int n = epoll_wait(p->fd, e, LK__EPOLL_BATCH, lk__poller_ms(wait_ns));
    if (n < 0) return errno == EINTR ? LLMKIT_OK : LLMKIT_E_IO;
    for (int i = 0; i < n; i++) {
        unsigned events = 0;
        if (e[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) events |= LLMKIT_READ;
        if (e[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) events |= LLMKIT_WRITE;
        lk__poller_note(p, e[i].data.ptr, events);
    }
    return LLMKIT_OK;
}

#endif
