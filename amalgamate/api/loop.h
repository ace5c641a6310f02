/* api/loop.h -- the event loop: our own, or a guest in yours */
#pragma once

/* A loop, and every client and server on it, belongs to the thread that runs it.  Only
 * llmkit_loop_post, llmkit_loop_stop and llmkit_cancel may be called from other threads. */
typedef struct llmkit_loop llmkit_loop;

enum { LLMKIT_READ = 1, LLMKIT_WRITE = 2 };

/* With watch set the loop makes no descriptor of its own to wait on: it tells you what to watch,
 * and you report what became ready, an error or a hang-up as both events, with llmkit_loop_ready.
 * The first watch comes from inside llmkit_loop_create.  This works inside any other event loop;
 * llmkit_loop_fd is simpler where a descriptor that stands for all is accepted.
 *
 * With env.now_ns set, a wait is as long as that clock says.  If it stands still, as in a test, use
 * llmkit_loop_poll(loop, 0).  After fork a loop is the parent's: the child may not touch it. */
typedef struct llmkit_loop_desc {
    uint32_t   _guard0;
    llmkit_env env;
    void     (*watch)(void *user, int fd, unsigned events); /* events 0: forget the descriptor */
    void      *watch_user;
    uint32_t   _guard1;
} llmkit_loop_desc;

/* desc NULL: all defaults.  NULL on failure; error may be NULL. */
LLMKIT_API llmkit_loop *llmkit_loop_create(const llmkit_loop_desc *desc, llmkit_error *error);
/* Clients and servers on it go first.  Inside a callback it goes once that turn is over. */
LLMKIT_API void llmkit_loop_destroy(llmkit_loop *loop);
/* Runs until nothing is left to wait for, or llmkit_loop_stop.  E_BUSY inside a callback; E_ARG
 * with desc.watch, where only the host can wait. */
LLMKIT_API llmkit_err llmkit_loop_run(llmkit_loop *loop);
/* One turn, waiting at most max_ms (-1: as long as it takes; with desc.watch not at all).  The
 * number of callbacks it made; 0 inside a callback. */
LLMKIT_API int llmkit_loop_poll(llmkit_loop *loop, int max_ms);
/* Any thread, and signal handlers: ends the present, or the next, llmkit_loop_run. */
LLMKIT_API void llmkit_loop_stop(llmkit_loop *loop);
/* Any thread: calls fn on the loop's thread, delay_ms from now (by env.now_ns, which is called
 * here).  A destroyed loop drops what is still posted without calling it. */
LLMKIT_API llmkit_err llmkit_loop_post(llmkit_loop *loop, uint32_t delay_ms,
                                       void (*fn)(void *user), void *user);
/* Readable when llmkit_loop_poll has work; -1 with desc.watch and with LLMKIT_LOOP_POLL. */
LLMKIT_API int llmkit_loop_fd(const llmkit_loop *loop);
/* The longest sleep allowed before the next llmkit_loop_poll; -1: for ever. */
LLMKIT_API int64_t llmkit_loop_wait_ns(llmkit_loop *loop);
/* With desc.watch: events became ready on fd.  Handled in the next llmkit_loop_poll. */
LLMKIT_API void llmkit_loop_ready(llmkit_loop *loop, int fd, unsigned events);
/* The loop's clock (env.now_ns or CLOCK_MONOTONIC), read afresh. */
LLMKIT_API int64_t llmkit_loop_now_ns(const llmkit_loop *loop);
