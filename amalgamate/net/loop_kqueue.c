/* net/loop_kqueue.c -- readiness on the BSDs and macOS */

#include "net/loop_parts.h"

#if LLMKIT_LOOP == LLMKIT_LOOP_KQUEUE

enum { LK__KQUEUE_BATCH = 256 }; /* 8 KB of stack; what does not fit is reported next time */

LK__PRIV llmkit_err lk__poller_open(lk__poller *p, llmkit_error *error) {
    p->fd = kqueue();
    if (p->fd >= 0 && fcntl(p->fd, F_SETFD, FD_CLOEXEC) == 0) return LLMKIT_OK;
    llmkit_err err = lk__fail_os(error, LLMKIT_E_IO, errno, "cannot open a kqueue descriptor");
    if (p->fd >= 0) close(p->fd);
    return err;
}

LK__PRIV void lk__poller_close(lk__poller *p) {
    close(p->fd);
}

/* Reading and writing are two filters here. */
LK__PRIV int lk__kqueue_filter(lk__poller *p, lk__io *io, short filter, bool on) {
    struct kevent change;
    EV_SET(&change, (uintptr_t)io->fd, filter, on ? EV_ADD : EV_DELETE, 0, 0, (void *)io);
    return kevent(p->fd, &change, 1, NULL, 0, NULL);
}

LK__PRIV llmkit_err lk__poller_set(lk__poller *p, lk__io *io, unsigned events) {
    static const struct {
        unsigned event;
        short filter;
    } filters[] = {
        { LLMKIT_READ, EVFILT_READ },
        { LLMKIT_WRITE, EVFILT_WRITE },
    };
    for (size_t i = 0; i < LK__COUNT(filters); i++) {
        bool was = (io->events & filters[i].event) != 0, on = (events & filters[i].event) != 0;
        if (was == on || lk__kqueue_filter(p, io, filters[i].filter, on) == 0 || !on) continue;
        int os_errno = errno;
        /* What was added before this failed must not stay behind. */
        if (i > 0 && !(io->events & LLMKIT_READ)) lk__kqueue_filter(p, io, EVFILT_READ, false);
        return os_errno == ENOMEM ? LLMKIT_E_NOMEM : LLMKIT_E_IO;
    }
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__poller_wait(lk__poller *p, int64_t wait_ns) {
    struct kevent e[LK__KQUEUE_BATCH];
    struct timespec wait = { 0 };
    if (wait_ns > 0) {
        wait.tv_sec = (time_t)(wait_ns / LK__NS_PER_S);
        wait.tv_nsec = (long)(wait_ns % LK__NS_PER_S);
    }
    int n = kevent(p->fd, NULL, 0, e, LK__KQUEUE_BATCH, wait_ns < 0 ? NULL : &wait);
    if (n < 0) return errno == EINTR ? LLMKIT_OK : LLMKIT_E_IO;
    for (int i = 0; i < n; i++) {
        /* An error or a hang-up comes as EV_EOF on each filter that is there. */
        unsigned event = e[i].filter == EVFILT_WRITE ? LLMKIT_WRITE : LLMKIT_READ;
        lk__poller_note(p, (lk__io *)e[i].udata, event);
    }
    return LLMKIT_OK;
}

#endif
