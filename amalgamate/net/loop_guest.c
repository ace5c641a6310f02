/* net/loop_guest.c -- readiness that another event loop reports */

#include "net/loop_parts.h"

/* The host knows descriptors; this finds their ios.  The kernel hands out the lowest free number,
 * so a table is as small as anything cleverer. */
LK__PRIV bool lk__guest_grow(lk__poller *p, uint32_t fd) {
    if (fd < p->cap) return true;
    uint32_t cap = p->cap ? p->cap : 64;
    while (cap <= fd) cap *= 2; /* fd is at most INT_MAX */
    size_t size = sizeof(*p->ios);
    void *ios = lk__resize(p->env, p->ios, p->cap * size, lk__mul(cap, size));
    if (!ios) return false;
    p->ios = ios;
    for (uint32_t i = p->cap; i < cap; i++) p->ios[i] = NULL;
    p->cap = cap;
    return true;
}

LK__PRIV llmkit_err lk__guest_add(lk__poller *p, lk__io *io) {
    if (!lk__guest_grow(p, (uint32_t)io->fd)) return LLMKIT_E_NOMEM;
    p->ios[io->fd] = io;
    return LLMKIT_OK;
}

LK__PRIV void lk__guest_remove(lk__poller *p, const lk__io *io) {
    p->ios[io->fd] = NULL;
}

LK__PRIV void lk__guest_note(lk__poller *p, int fd, unsigned events) {
    if (fd < 0 || (uint32_t)fd >= p->cap || !p->ios[fd]) return;
    lk__poller_note(p, p->ios[fd], events);
}

LK__PRIV void lk__guest_close(lk__poller *p) {
    lk__free(p->env, p->ios, p->cap * sizeof(*p->ios));
}
