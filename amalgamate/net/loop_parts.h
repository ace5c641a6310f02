/* net/loop_parts.h -- what the loop is put together from: queues, pollers, the timer heap */
#pragma once

#include "net/loop.h"

/* Tasks in the order in which they came. */
typedef struct lk__queue {
    lk__task *first, **tail;
    lk__task *batch; /* taken out by lk__queue_run, and still to be called */
} lk__queue;

LK__PRIV void lk__queue_init(lk__queue *q);
LK__PRIV void lk__queue_add(lk__queue *q, lk__task *task); /* does nothing where it waits already */
LK__PRIV void lk__queue_remove(lk__queue *q, lk__task *task); /* from the batch, too */
/* Calls each task that waits now; those that come meanwhile are left for the next run.  The number
 * of calls. */
LK__PRIV int lk__queue_run(lk__queue *q);

/* Where readiness comes from.  Each backend is a whole file that defines these four calls over this
 * struct; one of them is compiled.  An io that asks for nothing is unknown to the poller, since
 * epoll and poll would go on reporting a hang-up to it. */
typedef struct lk__poller {
    const llmkit_env *env;
    lk__queue        *ready; /* where ready ios go */
    int               fd;    /* epoll, kqueue */
    struct pollfd    *polls; /* poll: polls[i] belongs to ios[i] */
    lk__io          **ios;   /* a guest: ios[fd] */
    uint32_t          num, cap;
} lk__poller;

LK__PRIV llmkit_err lk__poller_open(lk__poller *p, llmkit_error *error);
LK__PRIV void lk__poller_close(lk__poller *p);
/* From io->events to events.  Dropping all interest never fails. */
LK__PRIV llmkit_err lk__poller_set(lk__poller *p, lk__io *io, unsigned events);
/* Waits at most wait_ns (-1: for ever), rounded up to what the system can count, and notes what is
 * ready.  A signal ends it early. */
LK__PRIV llmkit_err lk__poller_wait(lk__poller *p, int64_t wait_ns);
/* wait_ns as epoll and poll want it. */
LK__PRIV int lk__poller_ms(int64_t wait_ns);
/* Notes that io is ready, unless it does not ask for any of these events. */
LK__PRIV void lk__poller_note(lk__poller *p, lk__io *io, unsigned events);

/* A guest's poller: its host waits. */
LK__PRIV llmkit_err lk__guest_add(lk__poller *p, lk__io *io);
LK__PRIV void lk__guest_remove(lk__poller *p, const lk__io *io);
LK__PRIV void lk__guest_note(lk__poller *p, int fd, unsigned events);
LK__PRIV void lk__guest_close(lk__poller *p);

/* Makes a new descriptor non-blocking and close-on-exec, and returns it; closes it on failure. */
LK__PRIV int lk__sys_prepare(int fd);

/* The timers that are set, in a 4-ary heap: half as deep as a binary one, and the four children of
 * a node are neighbours in memory.  The keys stand beside the pointers, so that sifting does not
 * touch the timers that it compares. */
typedef struct lk__timer_slot {
    int64_t    key_ns; /* timer->key_ns */
    lk__timer *timer;
} lk__timer_slot;

typedef struct lk__timers {
    const llmkit_env *env;
    lk__timer_slot   *slots;
    uint32_t          num, cap;
} lk__timers;

LK__PRIV llmkit_err lk__timers_set(lk__timers *h, lk__timer *timer, int64_t due_ns);
LK__PRIV void lk__timers_remove(lk__timers *h, lk__timer *timer);
LK__PRIV lk__timer *lk__timers_first(lk__timers *h); /* the one that is due first, or NULL */
LK__PRIV void lk__timers_free(lk__timers *h);
