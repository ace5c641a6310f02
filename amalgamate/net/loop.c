/* net/loop.c -- the event loop: turns, readiness, timers, deferred tasks, posts from threads */

#include "net/loop_parts.h"

enum {
    LK__SPARE_ERRANDS = 256, /* 18 KB at most */
    LK__SCRATCH_BYTES = LLMKIT_READ_BYTES + LK__RECORD_BYTES
};

#if LLMKIT_WITH_THREADS
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "llmkit_loop_stop is called by signal handlers");
#endif

/* What llmkit_loop_post has allocated. */
typedef struct lk__errand {
    lk__post post;
    lk__timer timer; /* fn is set if it is delayed */
    llmkit_loop *loop;
    void (*fn)(void *user);
    void *user;
} lk__errand;

struct llmkit_loop {
    llmkit_env env;
    const lk__sys *sys;
    void (*watch)(void *user, int fd, unsigned events); /* set: we are a guest */
    void *watch_user;
    lk__poller poller;
    lk__timers timers;
    lk__queue ready, tasks, last;
    int64_t now_ns;
    int calls;   /* made in this turn */
    bool firing; /* timers are being called */
    bool doomed; /* destroyed inside a callback: it goes when the turn is over */
    uint32_t holds;
    lk__post *spare; /* errands done, kept for the next post from inside */
    uint32_t num_spare;
    lk__rand rand;
    uint8_t *scratch;
    lk__annex *annex;
    lk__io wake;     /* readable when another thread wants to be heard */
    int wake_fd;     /* where it says so */
    lk__post *inbox; /* taken from posts, the first one first */
    lk__post *batch; /* taken from the inbox, and still to be called */

    lk__atomic_ptr owner; /* address of the errno of the thread that is inside a turn */
    lk__atomic_ptr posts; /* of lk__post, the latest first */
    lk__atomic_u32 stop;
};

/* Queues of tasks. */

LK__PRIV void lk__queue_init(lk__queue *q) {
    *q = (lk__queue){ .tail = &q->first };
}

LK__PRIV void lk__queue_add(lk__queue *q, lk__task *task) {
    if (task->prev) return;
    task->next = NULL;
    task->prev = q->tail;
    *q->tail = task;
    q->tail = &task->next;
}

LK__PRIV void lk__queue_remove(lk__queue *q, lk__task *task) {
    if (!task->prev) return;
    if (q->tail == &task->next) q->tail = task->prev;
    *task->prev = task->next;
    if (task->next) task->next->prev = task->prev;
    task->prev = NULL;
}

LK__PRIV int lk__queue_run(lk__queue *q) {
    int calls = 0;
    if (!q->first) return 0;
    q->batch = q->first;
    q->batch->prev = &q->batch;
    q->first = NULL;
    q->tail = &q->first;
    for (lk__task *task; (task = q->batch) != NULL; calls++) {
        lk__queue_remove(q, task);
        task->fn(task);
    }
    return calls;
}

LK__PRIV void lk__defer(llmkit_loop *loop, lk__task *task) {
    lk__queue_add(&loop->tasks, task);
}

LK__PRIV void lk__undefer(llmkit_loop *loop, lk__task *task) {
    lk__queue_remove(&loop->tasks, task);
}

LK__PRIV void lk__defer_last(llmkit_loop *loop, lk__task *task) {
    LK__ASSERT(lk__loop_inside(loop));
    lk__queue_add(&loop->last, task);
}

/* Readiness. */

/* What is ready waits as a task, so that stopping an io takes it out: nobody looks at what the
 * kernel said about a descriptor that has been closed, or given out again, in the meantime. */
LK__PRIV void lk__poller_note(lk__poller *p, lk__io *io, unsigned events) {
    io->ready |= events & io->events;
    if (io->ready) lk__queue_add(p->ready, &io->told);
}

LK__PRIV int lk__poller_ms(int64_t wait_ns) {
    if (wait_ns < 0) return -1;
    if (wait_ns > (int64_t)INT_MAX * LK__NS_PER_MS - LK__NS_PER_MS) return INT_MAX;
    return (int)((wait_ns + LK__NS_PER_MS - 1) / LK__NS_PER_MS);
}

LK__PRIV void lk__io_tell(lk__task *task) {
    lk__io *io = LK__CONTAINER(task, lk__io, told);
    unsigned ready = io->ready;
    io->ready = 0;
    io->fn(io, ready);
}

LK__PRIV llmkit_err lk__io_start(llmkit_loop *loop, lk__io *io, int fd, unsigned events,
                                 void (*fn)(lk__io *io, unsigned ready)) {
    LK__ASSERT(fd >= 0 && fn);
    *io = (lk__io){ .fd = fd, .told = { .fn = lk__io_tell }, .fn = fn };
    llmkit_err err = loop->watch ? lk__guest_add(&loop->poller, io) : LLMKIT_OK;
    if (!err) err = lk__io_set(loop, io, events);
    if (err) *io = (lk__io){ .fd = -1 };
    return err;
}

LK__PRIV llmkit_err lk__io_set(llmkit_loop *loop, lk__io *io, unsigned events) {
    LK__ASSERT(io->fn);
    if (events == io->events) return LLMKIT_OK;
    llmkit_err err = LLMKIT_OK;
    if (loop->watch)
        loop->watch(loop->watch_user, io->fd, events);
    else
        err = lk__poller_set(&loop->poller, io, events);
    if (err) return err;
    io->events = events;
    io->ready &= events;
    if (!io->ready) lk__queue_remove(&loop->ready, &io->told);
    return LLMKIT_OK;
}

LK__PRIV void lk__io_stop(llmkit_loop *loop, lk__io *io) {
    if (!io->fn) return;
    (void)lk__io_set(loop, io, 0);
    if (loop->watch) lk__guest_remove(&loop->poller, io);
    io->fd = -1;
    io->fn = NULL;
}

LLMKIT_API void llmkit_loop_ready(llmkit_loop *loop, int fd, unsigned events) {
    if (loop->watch) lk__guest_note(&loop->poller, fd, events);
}

/* Timers. */

LK__PRIV llmkit_err lk__timer_set(llmkit_loop *loop, lk__timer *timer, int64_t due_ns) {
    LK__ASSERT(timer->fn);
    /* A timer that is always due must not keep the turn from ending. */
    if (loop->firing && due_ns <= loop->now_ns) due_ns = loop->now_ns + 1;
    return lk__timers_set(&loop->timers, timer, due_ns);
}

LK__PRIV void lk__timer_stop(llmkit_loop *loop, lk__timer *timer) {
    lk__timers_remove(&loop->timers, timer);
}

LK__PRIV void lk__loop_fire(llmkit_loop *loop) {
    loop->firing = true;
    for (lk__timer *timer; (timer = lk__timers_first(&loop->timers)) != NULL; loop->calls++) {
        if (timer->due_ns > loop->now_ns) break;
        lk__timers_remove(&loop->timers, timer);
        timer->fn(timer);
    }
    loop->firing = false;
}

/* Posts.  Any thread pushes to the front of a list by compare-and-swap; the loop takes the whole
 * list and turns it round.  Whoever finds the list empty wakes the loop: for all others somebody
 * else has. */

/* Async-signal-safe.  A pipe that is full has woken the loop already. */
LK__PRIV void lk__loop_wake(llmkit_loop *loop) {
    const uint64_t one = 1;
    int os_errno = errno;
    while (write(loop->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    errno = os_errno;
}

LK__PRIV void lk__loop_woken(lk__io *io, unsigned ready) {
    char bytes[256];
    (void)ready;
    while (read(io->fd, bytes, sizeof(bytes)) == (ssize_t)sizeof(bytes)) {
    }
    LK__CONTAINER(io, llmkit_loop, wake)->calls--; /* this one is nobody's callback */
}

LK__PRIV void lk__post_send(llmkit_loop *loop, lk__post *post) {
    /* The loop looks at the list before it waits: from inside there is nobody to wake. */
    bool inside = lk__loop_inside(loop);
    void *head = lk__load_relaxed(&loop->posts);
    do {
        post->next = head;
    } while (!lk__cas(&loop->posts, &head, (void *)post));
    if (!head && !inside) lk__loop_wake(loop);
}

/* Moves what was sent to the end of the inbox. */
LK__PRIV void lk__posts_take(llmkit_loop *loop) {
    lk__post *first = NULL, **end = &loop->inbox;
    if (!lk__load_relaxed(&loop->posts)) return;
    for (lk__post *post = lk__exchange_ptr(&loop->posts, NULL), *next; post; post = next) {
        next = post->next;
        post->next = first;
        first = post;
    }
    while (*end) end = &(*end)->next; /* empty but after a lk__post_cancel */
    *end = first;
}

LK__PRIV bool lk__posts_wait(const llmkit_loop *loop) {
    return loop->inbox || lk__load_relaxed(&loop->posts);
}

LK__PRIV bool lk__posts_unlink(lk__post **at, const lk__post *post) {
    while (*at && *at != post) at = &(*at)->next;
    if (!*at) return false;
    *at = post->next;
    return true;
}

LK__PRIV void lk__post_cancel(llmkit_loop *loop, lk__post *post) {
    lk__posts_take(loop);
    if (!lk__posts_unlink(&loop->batch, post)) (void)lk__posts_unlink(&loop->inbox, post);
}

LK__PRIV void lk__posts_run(llmkit_loop *loop) {
    lk__posts_take(loop);
    loop->batch = loop->inbox;
    loop->inbox = NULL;
    for (lk__post *post; (post = loop->batch) != NULL;) {
        loop->batch = post->next;
        loop->calls++;
        post->fn(post);
    }
}

LK__PRIV void lk__errand_run(lk__errand *errand) {
    llmkit_loop *loop = errand->loop;
    void (*fn)(void *user) = errand->fn;
    void *user = errand->user;
    if (loop->num_spare < LK__SPARE_ERRANDS) {
        errand->post.next = loop->spare;
        loop->spare = &errand->post;
        loop->num_spare++;
    } else {
        lk__free(&loop->env, errand, sizeof(*errand));
    }
    fn(user);
}

LK__PRIV void lk__errand_due(lk__timer *timer) {
    lk__errand *errand = LK__CONTAINER(timer, lk__errand, timer);
    lk__loop_unhold(errand->loop);
    lk__errand_run(errand);
}

LK__PRIV void lk__errand_arrived(lk__post *post) {
    lk__errand *errand = LK__CONTAINER(post, lk__errand, post);
    llmkit_loop *loop = errand->loop;
    if (!errand->timer.fn) {
        lk__errand_run(errand);
        return;
    }
    loop->calls--; /* it is only put aside */
    /* Its sender was told that all is well, so without memory it is tried again each turn. */
    if (lk__timer_set(loop, &errand->timer, errand->timer.due_ns))
        lk__post_send(loop, post);
    else
        lk__loop_hold(loop);
}

LK__PRIV lk__errand *lk__errand_take(llmkit_loop *loop) {
    if (!lk__loop_inside(loop) || !loop->spare) return lk__alloc(&loop->env, sizeof(lk__errand));
    lk__errand *errand = LK__CONTAINER(loop->spare, lk__errand, post);
    loop->spare = errand->post.next;
    loop->num_spare--;
    *errand = (lk__errand){ 0 };
    return errand;
}

LLMKIT_API llmkit_err llmkit_loop_post(llmkit_loop *loop, uint32_t delay_ms, void (*fn)(void *user),
                                       void *user) {
    if (!loop || !fn) return LLMKIT_E_ARG;
    lk__errand *errand = lk__errand_take(loop);
    if (!errand) return LLMKIT_E_NOMEM;
    errand->post.fn = lk__errand_arrived;
    errand->loop = loop;
    errand->fn = fn;
    errand->user = user;
    if (delay_ms > 0) {
        errand->timer.fn = lk__errand_due;
        errand->timer.due_ns = lk__now(&loop->env) + delay_ms * LK__NS_PER_MS;
    }
    lk__post_send(loop, &errand->post);
    return LLMKIT_OK;
}

/* A post that is not an errand lies in somebody else's memory. */
LK__PRIV void lk__posts_drop(llmkit_loop *loop) {
    lk__posts_take(loop);
    for (lk__post *post; (post = loop->inbox) != NULL;) {
        loop->inbox = post->next;
        if (post->fn == lk__errand_arrived)
            lk__free(&loop->env, LK__CONTAINER(post, lk__errand, post), sizeof(lk__errand));
    }
    for (uint32_t i = 0; i < loop->timers.num; i++) {
        lk__timer *timer = loop->timers.slots[i].timer;
        if (timer->fn == lk__errand_due)
            lk__free(&loop->env, LK__CONTAINER(timer, lk__errand, timer), sizeof(lk__errand));
    }
    for (lk__post *post; (post = loop->spare) != NULL;) {
        loop->spare = post->next;
        lk__free(&loop->env, LK__CONTAINER(post, lk__errand, post), sizeof(lk__errand));
    }
}

LLMKIT_API void llmkit_loop_stop(llmkit_loop *loop) {
    if (lk__exchange_u32(&loop->stop, 1) == 0) lk__loop_wake(loop);
}

/* Turns. */

LK__PRIV void lk__loop_hold(llmkit_loop *loop) {
    loop->holds++;
}

LK__PRIV void lk__loop_unhold(llmkit_loop *loop) {
    LK__ASSERT(loop->holds > 0);
    loop->holds--;
}

LLMKIT_API int64_t llmkit_loop_wait_ns(llmkit_loop *loop) {
    if (loop->ready.first || loop->tasks.first || lk__posts_wait(loop)) return 0;
    const lk__timer *timer = lk__timers_first(&loop->timers);
    if (!timer || timer->due_ns == LK__NEVER_NS) return -1;
    int64_t now_ns = lk__now(&loop->env);
    return timer->due_ns > now_ns ? timer->due_ns - now_ns : 0;
}

LK__PRIV llmkit_err lk__loop_wait(llmkit_loop *loop, int max_ms) {
    if (loop->watch) return LLMKIT_OK;
    int64_t wait_ns = max_ms == 0 ? 0 : llmkit_loop_wait_ns(loop), max_ns = max_ms * LK__NS_PER_MS;
    if (max_ms > 0 && (wait_ns < 0 || wait_ns > max_ns)) wait_ns = max_ns;
    return lk__poller_wait(&loop->poller, wait_ns);
}

/* What has arrived goes before the deadlines that it may have met. */
LK__PRIV llmkit_err lk__loop_turn(llmkit_loop *loop, int max_ms) {
    lk__store_relaxed(&loop->owner, (void *)&errno);
    llmkit_err err = lk__loop_wait(loop, max_ms);
    loop->now_ns = lk__now(&loop->env);
    loop->calls = 0;
    loop->calls += lk__queue_run(&loop->ready);
    lk__loop_fire(loop);
    lk__posts_run(loop);
    loop->calls += lk__queue_run(&loop->tasks);
    (void)lk__queue_run(&loop->last);
    lk__store_relaxed(&loop->owner, NULL);
    return err;
}

LLMKIT_API int llmkit_loop_poll(llmkit_loop *loop, int max_ms) {
    if (lk__loop_inside(loop)) return 0;
    llmkit_err err = lk__loop_turn(loop, max_ms);
    if (err) lk__log(&loop->env, LLMKIT_ERROR, err, "the loop cannot wait for readiness");
    int calls = loop->calls;
    if (loop->doomed) llmkit_loop_destroy(loop);
    return calls;
}

LLMKIT_API llmkit_err llmkit_loop_run(llmkit_loop *loop) {
    if (lk__loop_inside(loop)) return LLMKIT_E_BUSY;
    if (!lk__loop_can_wait(loop)) return LLMKIT_E_ARG;
    llmkit_err err = LLMKIT_OK;
    while (!err && lk__exchange_u32(&loop->stop, 0) == 0) {
        if (loop->holds == 0 && !loop->tasks.first && !lk__posts_wait(loop)) break;
        err = lk__loop_turn(loop, -1);
        if (!loop->doomed) continue;
        llmkit_loop_destroy(loop);
        return err;
    }
    return err;
}

/* Making and ending one. */

LK__PRIV llmkit_err lk__wake_open(llmkit_loop *loop, llmkit_error *error) {
    int fds[2];
#if LK__HAS_EVENTFD
    fds[0] = fds[1] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    bool good = fds[0] >= 0;
#else
    bool good = pipe(fds) == 0 && lk__sys_prepare(fds[0]) >= 0 && lk__sys_prepare(fds[1]) >= 0;
#endif
    if (!good) return lk__fail_os(error, LLMKIT_E_IO, errno, "cannot open the loop's wake-up");
    loop->wake_fd = fds[1];
    llmkit_err err = lk__io_start(loop, &loop->wake, fds[0], LLMKIT_READ, lk__loop_woken);
    if (!err) return LLMKIT_OK;
    if (fds[1] != fds[0]) close(fds[1]);
    close(fds[0]);
    return lk__fail(error, err, "cannot watch the loop's wake-up");
}

LK__PRIV void lk__wake_close(llmkit_loop *loop) {
    int fd = loop->wake.fd;
    lk__io_stop(loop, &loop->wake);
    if (loop->wake_fd != fd) close(loop->wake_fd);
    close(fd);
}

LK__PRIV void lk__loop_close_poller(llmkit_loop *loop) {
    if (loop->watch)
        lk__guest_close(&loop->poller);
    else
        lk__poller_close(&loop->poller);
}

LLMKIT_API llmkit_loop *llmkit_loop_create(const llmkit_loop_desc *desc, llmkit_error *error) {
    static const llmkit_loop_desc none = { 0 };
    if (!desc) desc = &none;
    if (lk__check_guards(error, desc->_guard0, desc->_guard1, "llmkit_loop_desc")) return NULL;
    llmkit_env env = lk__env_fill(&desc->env);
    llmkit_loop *loop = lk__alloc(&env, sizeof(*loop));
    uint8_t *scratch = lk__alloc(&env, LK__SCRATCH_BYTES);
    if (!loop || !scratch) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a loop");
        goto fail;
    }
    loop->env = env;
    loop->sys = lk__sys_default();
    loop->watch = desc->watch;
    loop->watch_user = desc->watch_user;
    loop->scratch = scratch;
    loop->timers.env = &loop->env;
    loop->poller = (lk__poller){ .env = &loop->env, .ready = &loop->ready, .fd = -1 };
    lk__queue_init(&loop->ready);
    lk__queue_init(&loop->tasks);
    lk__queue_init(&loop->last);
    lk__rand_init(&loop->rand, &loop->env);
    if (!loop->watch && lk__poller_open(&loop->poller, error)) goto fail;
    if (!lk__wake_open(loop, error)) return loop;
    lk__loop_close_poller(loop);
fail:
    lk__free(&env, scratch, LK__SCRATCH_BYTES);
    lk__free(&env, loop, sizeof(*loop));
    return NULL;
}

LLMKIT_API void llmkit_loop_destroy(llmkit_loop *loop) {
    if (!loop) return;
    if (lk__loop_inside(loop)) {
        loop->doomed = true;
        return;
    }
    /* In this order: a resolver's thread may send until close has returned, but only what lies in
     * its own memory, which nobody looks at any more. */
    lk__posts_drop(loop);
    if (loop->annex) loop->annex->close(loop->annex);
    lk__wake_close(loop);
    lk__loop_close_poller(loop);
    lk__timers_free(&loop->timers);
    lk__free(&loop->env, loop->scratch, LK__SCRATCH_BYTES);
    llmkit_env env = loop->env;
    lk__free(&env, loop, sizeof(*loop));
}

/* What it knows. */

/* Each thread has an errno of its own (C11 7.5), so its address tells threads apart without a type
 * or a call that differs between systems. */
LK__PRIV bool lk__loop_inside(const llmkit_loop *loop) {
    return lk__load_relaxed(&loop->owner) == (void *)&errno;
}

LK__PRIV bool lk__loop_can_wait(const llmkit_loop *loop) {
    return !loop->watch;
}

LK__PRIV int64_t lk__loop_now(const llmkit_loop *loop) {
    return lk__loop_inside(loop) ? loop->now_ns : lk__now(&loop->env);
}

LLMKIT_API int64_t llmkit_loop_now_ns(const llmkit_loop *loop) {
    return lk__now(&loop->env);
}

LLMKIT_API int llmkit_loop_fd(const llmkit_loop *loop) {
    return loop->poller.fd;
}

LK__PRIV const llmkit_env *lk__loop_env(const llmkit_loop *loop) {
    return &loop->env;
}

LK__PRIV const lk__sys *lk__loop_sys(const llmkit_loop *loop) {
    return loop->sys;
}

LK__PRIV void lk__loop_set_sys(llmkit_loop *loop, const lk__sys *sys) {
    loop->sys = sys;
}

LK__PRIV lk__rand *lk__loop_rand(llmkit_loop *loop) {
    return &loop->rand;
}

LK__PRIV uint8_t *lk__loop_scratch(llmkit_loop *loop) {
    return loop->scratch;
}

LK__PRIV lk__annex **lk__loop_annex(llmkit_loop *loop) {
    return &loop->annex;
}
