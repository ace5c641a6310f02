/* net/loop.h -- readiness, timers and deferred work, for the pieces above */
#pragma once

#include "core/atomic.h"
#include "core/error.h"
#include "core/rand.h"

/* The system calls that the network pieces make, so that a test can fail each of them. */
typedef struct lk__sys {
    int (*socket)(int domain, int type, int protocol);
    int (*connect)(int fd, const struct sockaddr *addr, socklen_t len);
    int (*accept)(int fd); /* non-blocking, close-on-exec */
    ssize_t (*recv)(int fd, void *buf, size_t len);
    ssize_t (*send)(int fd, const struct iovec *iov, int count); /* never raises SIGPIPE */
    int (*close)(int fd);
    int (*getaddrinfo)(const char *node, const char *service, const struct addrinfo *hints,
                       struct addrinfo **list);
    void (*freeaddrinfo)(struct addrinfo *list);
    int (*thread)(void *(*fn)(void *arg), void *arg); /* detached, signals blocked; 0 or errno */
} lk__sys;

LK__PRIV const lk__sys *lk__sys_default(void);
/* A stream, non-blocking, close-on-exec; -1 and errno. */
LK__PRIV int lk__socket_open(llmkit_loop *loop, int family);

/* Work for later in this turn or the next, never inside lk__defer.  Adding one that is already
 * waiting does nothing.  FIFO. */
typedef struct lk__task {
    struct lk__task *next, **prev; /* prev NULL: not waiting */
    void (*fn)(struct lk__task *task);
} lk__task;

LK__PRIV void lk__defer(llmkit_loop *loop, lk__task *task);
LK__PRIV void lk__undefer(llmkit_loop *loop, lk__task *task);
/* For the last thing in this turn, even where a task calls it: the loop may end with the turn. */
LK__PRIV void lk__defer_last(llmkit_loop *loop, lk__task *task);

/* A descriptor that is watched.  Level-triggered: fn is called again while it stays ready, and at
 * times without need, so that a read may find nothing (EAGAIN).  Errors and hang-ups are reported
 * as whatever is asked for.  fn may stop and free any lk__io, its own too; a stopped one is not
 * called, even if its readiness is already known.  The descriptor is closed after lk__io_stop, by
 * its owner.  Zero is a stopped one. */
typedef struct lk__io {
    int      fd; /* -1 once it is stopped */
    unsigned events;
    unsigned ready; /* known, and still to be told */
    uint32_t index; /* of the poll backend */
    lk__task told;  /* waits in the loop while ready is not 0 */
    void   (*fn)(struct lk__io *io, unsigned ready); /* NULL: stopped */
} lk__io;

LK__PRIV llmkit_err lk__io_start(llmkit_loop *loop, lk__io *io, int fd, unsigned events,
                                 void (*fn)(lk__io *io, unsigned ready));
/* events 0: none for now. */
LK__PRIV llmkit_err lk__io_set(llmkit_loop *loop, lk__io *io, unsigned events);
LK__PRIV void lk__io_stop(llmkit_loop *loop, lk__io *io);

/* A timer.  Zero is a stopped one.  Moving a set timer to a later time is cheap (no heap work until
 * it would have fired).  fn may set, stop and free any timer; one that it sets to now or to the
 * past fires in the next turn. */
typedef struct lk__timer {
    int64_t  due_ns;  /* when it is to fire */
    int64_t  key_ns;  /* its place in the heap, at or before due_ns */
    uint32_t place;   /* 1-based; 0: not set */
    void   (*fn)(struct lk__timer *timer);
} lk__timer;

/* E_NOMEM is possible only where more timers are set at once than ever before, so never for one
 * that is set already, nor for one that its own fn sets again first of all. */
LK__PRIV llmkit_err lk__timer_set(llmkit_loop *loop, lk__timer *timer, int64_t due_ns);
LK__PRIV void lk__timer_stop(llmkit_loop *loop, lk__timer *timer);

/* A message in its owner's memory, from any thread: fn is called on the loop's thread, in the order
 * of sending.  The memory must stay until then, or until the loop is destroyed. */
typedef struct lk__post {
    struct lk__post *next;
    void (*fn)(struct lk__post *post);
} lk__post;

LK__PRIV void lk__post_send(llmkit_loop *loop, lk__post *post);
/* On the loop's thread, and while no other sends it: fn will not be called.  For endings, since it
 * looks through all that waits. */
LK__PRIV void lk__post_cancel(llmkit_loop *loop, lk__post *post);

/* llmkit_loop_run goes on while anything that holds the loop is alive.  Timers, ios and idle
 * connections by themselves do not hold it; posts and deferred tasks do. */
LK__PRIV void lk__loop_hold(llmkit_loop *loop);
LK__PRIV void lk__loop_unhold(llmkit_loop *loop);

/* The time of this turn, read once when its waiting ended; outside callbacks read afresh. */
LK__PRIV int64_t lk__loop_now(const llmkit_loop *loop);
LK__PRIV bool lk__loop_inside(const llmkit_loop *loop); /* a callback of it is running */
LK__PRIV bool lk__loop_can_wait(const llmkit_loop *loop); /* false: only its host can */
LK__PRIV const llmkit_env *lk__loop_env(const llmkit_loop *loop);
LK__PRIV const lk__sys *lk__loop_sys(const llmkit_loop *loop);
LK__PRIV void lk__loop_set_sys(llmkit_loop *loop, const lk__sys *sys); /* for tests */
LK__PRIV lk__rand *lk__loop_rand(llmkit_loop *loop);
/* LLMKIT_READ_BYTES for the callback that is running, and behind them LK__RECORD_BYTES for what it
 * decrypts.  Loops do not nest, so nobody else writes there until it returns. */
enum { LK__RECORD_BYTES = 16384 }; /* of plain text in one TLS record (RFC 5246 6.2.1) */
LK__PRIV uint8_t *lk__loop_scratch(llmkit_loop *loop);
/* What the resolver keeps with the loop: a slot, NULL at first; llmkit_loop_destroy calls close. */
typedef struct lk__annex {
    void (*close)(struct lk__annex *annex);
} lk__annex;
LK__PRIV lk__annex **lk__loop_annex(llmkit_loop *loop);
