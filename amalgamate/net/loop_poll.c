/* net/loop_poll.c -- readiness on any POSIX system */

#include "net/loop_parts.h"

#if LLMKIT_LOOP == LLMKIT_LOOP_POLL

LK__PRIV llmkit_err lk__poller_open(lk__poller *p, llmkit_error *error) {
    (void)error;
    p->fd = -1;
    return LLMKIT_OK;
}

LK__PRIV void lk__poller_close(lk__poller *p) {
    lk__free(p->env, p->polls, p->cap * sizeof(*p->polls));
    lk__free(p->env, p->ios, p->cap * sizeof(*p->ios));
}

/* Both arrays are made anew, so that nothing has changed where there is memory for one of them. */
LK__PRIV bool lk__poller_grow(lk__poller *p) {
    uint32_t cap = p->cap ? 2 * p->cap : 64;
    struct pollfd *polls = lk__alloc(p->env, lk__mul(cap, sizeof(*polls)));
    lk__io **ios = lk__alloc(p->env, lk__mul(cap, sizeof(*ios)));
    if (cap < p->cap || !polls || !ios) {
        lk__free(p->env, polls, lk__mul(cap, sizeof(*polls)));
        lk__free(p->env, ios, lk__mul(cap, sizeof(*ios)));
        return false;
    }
    if (p->num) memcpy(polls, p->polls, p->num * sizeof(*polls));
    if (p->num) memcpy(ios, p->ios, p->num * sizeof(lk__io *));
    lk__poller_close(p);
    p->polls = polls;
    p->ios = ios;
    p->cap = cap;
    return true;
}

LK__PRIV void lk__poller_drop(lk__poller *p, uint32_t i) {
    p->num--;
    p->polls[i] = p->polls[p->num];
    p->ios[i] = p->ios[p->num];
    p->ios[i]->index = i;
}

LK__PRIV llmkit_err lk__poller_set(lk__poller *p, lk__io *io, unsigned events) {
    if (events == 0) {
        lk__poller_drop(p, io->index);
        return LLMKIT_OK;
    }
    if (io->events == 0) {
        if (p->num == p->cap && !lk__poller_grow(p)) return LLMKIT_E_NOMEM;
        io->index = p->num++;
        p->ios[io->index] = io;
    }
    struct pollfd *poll = &p->polls[io->index];
    *poll = (struct pollfd){ .fd = io->fd };
    if (events & LLMKIT_READ) poll->events |= POLLIN;
    if (events & LLMKIT_WRITE) poll->events |= POLLOUT;
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__poller_wait(lk__poller *p, int64_t wait_ns) {
    const int failed = POLLHUP | POLLERR | POLLNVAL;
    int left = poll(p->polls, (nfds_t)p->num, lk__poller_ms(wait_ns));
    if (left < 0) return errno == EINTR ? LLMKIT_OK : LLMKIT_E_IO;
    for (uint32_t i = 0; i < p->num && left > 0; i++) {
        int revents = p->polls[i].revents;
        if (revents == 0) continue;
        left--;
        unsigned events = 0;
        if (revents & (POLLIN | failed)) events |= LLMKIT_READ;
        if (revents & (POLLOUT | failed)) events |= LLMKIT_WRITE;
        lk__poller_note(p, p->ios[i], events);
    }
    return LLMKIT_OK;
}

#endif
