/* test_loop.c -- readiness, timers, tasks, posts, guests */

#include "test.h"
#ifdef LLMKIT__SPLIT
#include "net/loop.c"
#endif

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

/* ---- Helpers ---------------------------------------------------------------------------------*/

static llmkit_loop *open_loop(lk_world *w) {
    llmkit_error error;
    llmkit_loop *loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = w->env }, &error);
    if (!loop) fail_msg("%s", error.message);
    return loop;
}

static llmkit_loop *open_frozen(lk_world *w) {
    lk_world_init_virtual(w, 1000);
    return open_loop(w);
}

static void close_loop(llmkit_loop *loop, lk_world *w) {
    llmkit_loop_destroy(loop);
    assert_no_leak(w);
}

static int num_open_fds(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* A connected pair, one end of it watched. */
typedef struct end {
    lk__io       io;
    int          peer;
    llmkit_loop *loop;
    int          calls;
    unsigned     ready; /* of the last call */
    void       (*then)(struct end *end);
    struct end  *other;
} end;

static void end_fn(lk__io *io, unsigned ready) {
    end *e = LK__CONTAINER(io, end, io);
    e->calls++;
    e->ready = ready;
    if (e->then) e->then(e);
}

static void end_open(end *e, llmkit_loop *loop, unsigned events) {
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    *e = (end){ .loop = loop, .peer = fds[1] };
    assert_ok(lk__io_start(loop, &e->io, fds[0], events, end_fn));
}

static void end_close(end *e) {
    int fd = e->io.fd;
    lk__io_stop(e->loop, &e->io);
    if (fd >= 0) close(fd);
    if (e->peer >= 0) close(e->peer);
    e->peer = -1;
}

static void tell(end *e) {
    assert_int_equal(write(e->peer, "x", 1), 1);
}

/* A timer, task or post that writes its number down. */
typedef struct note {
    lk__timer    timer;
    lk__task     task;
    llmkit_loop *loop;
    int          number;
    void       (*then)(struct note *note);
    struct note *other;
} note;

static int notes[64], num_notes;

static void take_note(note *n) {
    if (num_notes < 64) notes[num_notes] = n->number;
    num_notes++;
    if (n->then) n->then(n);
}

static void note_timer_fn(lk__timer *timer) {
    take_note(LK__CONTAINER(timer, note, timer));
}

static void note_task_fn(lk__task *task) {
    take_note(LK__CONTAINER(task, note, task));
}

static void note_post_fn(void *user) {
    take_note(user);
}

static void notes_init(note *n, int count, llmkit_loop *loop) {
    memset(n, 0, (size_t)count * sizeof *n);
    for (int i = 0; i < count; i++) {
        n[i].timer.fn = note_timer_fn;
        n[i].task.fn = note_task_fn;
        n[i].loop = loop;
        n[i].number = i;
    }
    num_notes = 0;
}

/* The numbers noted since the last time, as digits. */
static void assert_notes(const char *digits) {
    char text[65] = { 0 };
    for (int i = 0; i < num_notes && i < 64; i++) text[i] = (char)('0' + notes[i]);
    assert_string_equal(text, digits);
    num_notes = 0;
}

/* ---- Timers ----------------------------------------------------------------------------------*/

static void timers_fire_in_the_order_of_their_times(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[4];
    (void)state;
    notes_init(n, 4, loop);
    assert_ok(lk__timer_set(loop, &n[0].timer, 1030));
    assert_ok(lk__timer_set(loop, &n[1].timer, 1010));
    assert_ok(lk__timer_set(loop, &n[2].timer, 1040));
    assert_ok(lk__timer_set(loop, &n[3].timer, 1020));
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    w.now_ns = 1009;
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    w.now_ns = 1010;
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_notes("1");
    w.now_ns = 1100;
    assert_int_equal(llmkit_loop_poll(loop, 0), 3);
    assert_notes("302");
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    close_loop(loop, &w);
}

static void timer_that_moves_later_stays_in_its_place_until_it_is_first(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[2];
    (void)state;
    notes_init(n, 2, loop);
    assert_ok(lk__timer_set(loop, &n[0].timer, 1010));
    assert_ok(lk__timer_set(loop, &n[1].timer, 1020));
    assert_ok(lk__timer_set(loop, &n[0].timer, 1015));
    assert_ok(lk__timer_set(loop, &n[0].timer, 1050));
    assert_int_equal(n[0].timer.key_ns, 1010);
    assert_int_equal(n[0].timer.place, 1);
    assert_int_equal(llmkit_loop_wait_ns(loop), 20);
    assert_int_equal(n[0].timer.key_ns, 1050);
    assert_int_equal(n[0].timer.place, 2);
    w.now_ns = 1049;
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_notes("1");
    w.now_ns = 1050;
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_notes("0");
    close_loop(loop, &w);
}

static void timer_can_move_earlier_and_be_stopped(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[3];
    (void)state;
    notes_init(n, 3, loop);
    for (int i = 0; i < 3; i++) assert_ok(lk__timer_set(loop, &n[i].timer, 2000 + i));
    assert_ok(lk__timer_set(loop, &n[2].timer, 1001));
    lk__timer_stop(loop, &n[0].timer);
    lk__timer_stop(loop, &n[0].timer);
    assert_int_equal(n[0].timer.place, 0);
    assert_int_equal(llmkit_loop_wait_ns(loop), 1);
    w.now_ns = 3000;
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_notes("21");
    close_loop(loop, &w);
}

static void free_other(note *n) {
    lk__timer_stop(n->loop, &n->other->timer);
    free(n->other);
    n->other = NULL;
}

static void free_self(note *n) {
    free(n);
}

static void timer_callback_may_free_itself_and_others(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note *n[3];
    (void)state;
    for (int i = 0; i < 3; i++) {
        n[i] = malloc(sizeof *n[i]);
        assert_non_null(n[i]);
        notes_init(n[i], 1, loop);
        n[i]->number = i;
        assert_ok(lk__timer_set(loop, &n[i]->timer, 1001 + i));
    }
    n[0]->then = free_other;
    n[0]->other = n[1]; /* would be called next in the same turn */
    n[2]->then = free_self;
    w.now_ns = 2000;
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_notes("02");
    free(n[0]);
    close_loop(loop, &w);
}

static void set_to_the_past(note *n) {
    assert_ok(lk__timer_set(n->loop, &n->timer, 0));
}

static void timer_that_is_always_due_fires_once_a_turn(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[2];
    (void)state;
    notes_init(n, 2, loop);
    n[0].then = set_to_the_past;
    assert_ok(lk__timer_set(loop, &n[0].timer, 0));
    assert_ok(lk__timer_set(loop, &n[1].timer, 1000));
    for (int i = 0; i < 3; i++) {
        assert_int_equal(llmkit_loop_poll(loop, 0), i == 0 ? 2 : 1);
        assert_notes(i == 0 ? "01" : "0");
        w.now_ns++;
    }
    close_loop(loop, &w);
}

enum { NUM_TIMERS = 10000 };
static int64_t last_due_ns;
static int     num_fired;

static void many_fn(lk__timer *timer) {
    assert_true(timer->due_ns >= last_due_ns);
    last_due_ns = timer->due_ns;
    num_fired++;
}

static void ten_thousand_timers_fire_in_order_through_every_change(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    lk__timer *timers = calloc(NUM_TIMERS, sizeof *timers);
    lk__rand r = { { 1, 2, 3, 4 } };
    (void)state;
    assert_non_null(timers);
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < NUM_TIMERS; i++) {
            uint64_t x = lk__rand_u64(&r);
            timers[i].fn = many_fn;
            if (x % 4 == 0)
                lk__timer_stop(loop, &timers[i]);
            else
                assert_ok(lk__timer_set(loop, &timers[i], 2000 + (int64_t)(x >> 40)));
        }
    int left = 0;
    for (int i = 0; i < NUM_TIMERS; i++) left += timers[i].place != 0;
    assert_true(left > NUM_TIMERS / 2 && left < NUM_TIMERS);
    last_due_ns = 0;
    num_fired = 0;
    for (int i = 0; i <= 16; i++) { /* 24 bits of times, in 16 turns */
        w.now_ns = 2000 + ((int64_t)i << 20);
        llmkit_loop_poll(loop, 0);
        assert_true(last_due_ns <= w.now_ns);
    }
    assert_int_equal(num_fired, left);
    assert_int_equal(llmkit_loop_wait_ns(loop), -1);
    free(timers);
    close_loop(loop, &w);
}

static void waiting_is_rounded_up_to_milliseconds(void **state) {
    (void)state;
    assert_int_equal(lk__poller_ms(-1), -1);
    assert_int_equal(lk__poller_ms(0), 0);
    assert_int_equal(lk__poller_ms(1), 1);
    assert_int_equal(lk__poller_ms(LK__NS_PER_MS), 1);
    assert_int_equal(lk__poller_ms(LK__NS_PER_MS + 1), 2);
    assert_int_equal(lk__poller_ms(INT64_MAX), INT_MAX);
    assert_int_equal(lk__poller_ms(INT_MAX * LK__NS_PER_MS), INT_MAX);
}

static void timer_does_not_fire_early_by_the_real_clock(void **state) {
    lk_world w;
    lk_world_init(&w);
    llmkit_loop *loop = open_loop(&w);
    note n[1];
    (void)state;
    notes_init(n, 1, loop);
    int64_t due_ns = llmkit_loop_now_ns(loop) + 1500000;
    assert_ok(lk__timer_set(loop, &n[0].timer, due_ns));
    assert_int_equal(llmkit_loop_poll(loop, -1), 1); /* one wait suffices */
    assert_true(llmkit_loop_now_ns(loop) >= due_ns);
    assert_int_equal(llmkit_loop_poll(loop, 1), 0); /* nothing to wait for but the limit */
    close_loop(loop, &w);
}

/* ---- Readiness -------------------------------------------------------------------------------*/

static void readiness_is_told_as_long_as_it_lasts(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end e;
    char c;
    (void)state;
    end_open(&e, loop, LLMKIT_READ);
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    tell(&e);
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_int_equal(e.ready, LLMKIT_READ);
    assert_ok(lk__io_set(loop, &e.io, LLMKIT_READ | LLMKIT_WRITE));
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_int_equal(e.ready, LLMKIT_READ | LLMKIT_WRITE);
    assert_int_equal(read(e.io.fd, &c, 1), 1);
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_int_equal(e.ready, LLMKIT_WRITE);
    assert_int_equal(e.calls, 4);
    end_close(&e);
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    close_loop(loop, &w);
}

static void hang_up_is_told_as_what_is_asked_for(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end e[2];
    (void)state;
    end_open(&e[0], loop, LLMKIT_READ);
    end_open(&e[1], loop, LLMKIT_WRITE);
    for (int i = 0; i < 2; i++) {
        close(e[i].peer);
        e[i].peer = -1;
    }
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_int_equal(e[0].ready, LLMKIT_READ);
    assert_int_equal(e[1].ready, LLMKIT_WRITE);
    for (int i = 0; i < 2; i++) end_close(&e[i]);
    close_loop(loop, &w);
}

static void end_of_a_pipe_is_told_without_data(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end e = { .loop = loop };
    int fds[2];
    (void)state;
    assert_int_equal(pipe(fds), 0);
    e.peer = fds[1];
    assert_ok(lk__io_start(loop, &e.io, fds[0], LLMKIT_READ, end_fn));
    close(e.peer);
    e.peer = -1;
    assert_int_equal(llmkit_loop_poll(loop, 0), 1); /* POLLHUP, and no POLLIN */
    assert_int_equal(e.ready, LLMKIT_READ);
    end_close(&e);
    close_loop(loop, &w);
}

static void hang_up_is_not_told_to_one_that_asks_for_nothing(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end e;
    (void)state;
    end_open(&e, loop, LLMKIT_READ);
    assert_ok(lk__io_set(loop, &e.io, 0));
    close(e.peer);
    e.peer = -1;
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    struct pollfd p = { .fd = llmkit_loop_fd(loop), .events = POLLIN };
    if (p.fd >= 0) assert_int_equal(poll(&p, 1, 0), 0); /* nor does it keep the host awake */
    assert_ok(lk__io_set(loop, &e.io, LLMKIT_READ));
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    end_close(&e);
    end_close(&e);
    close_loop(loop, &w);
}

static void close_other(end *e) {
    end_close(e->other);
}

static void drop_interest_of_other(end *e) {
    assert_ok(lk__io_set(e->loop, &e->other->io, LLMKIT_READ));
}

static void one_stopped_in_the_same_turn_is_not_called(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end e[2];
    (void)state;
    for (int i = 0; i < 2; i++) {
        end_open(&e[i], loop, LLMKIT_READ);
        e[i].then = close_other;
        e[i].other = &e[1 - i];
        tell(&e[i]);
    }
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_int_equal(e[0].calls + e[1].calls, 1);
    for (int i = 0; i < 2; i++) end_close(&e[i]);
    close_loop(loop, &w);
}

/* The classic trap: the other one is freed and its descriptor closed, and a new connection gets
 * both the memory and the number, before the other's turn in the batch comes. */
static void replace_other(end *e) {
    int fd = e->other->io.fd;
    end_close(e->other);
    end_open(e->other, e->loop, LLMKIT_READ);
    if (e->other->io.fd != fd) { /* make sure of the number */
        int old = e->other->io.fd;
        lk__io_stop(e->loop, &e->other->io);
        if (e->other->peer == fd) {
            e->other->peer = dup(fd);
            assert_true(e->other->peer >= 0);
        }
        assert_int_equal(dup2(old, fd), fd);
        close(old);
        assert_ok(lk__io_start(e->loop, &e->other->io, fd, LLMKIT_READ, end_fn));
    }
    e->then = NULL;
}

static void readiness_of_a_closed_descriptor_does_not_reach_its_successor(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end e[2];
    (void)state;
    for (int i = 0; i < 2; i++) {
        end_open(&e[i], loop, LLMKIT_READ);
        e[i].then = replace_other;
        e[i].other = &e[1 - i];
        tell(&e[i]);
    }
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    int replaced = e[0].calls == 1 ? 1 : 0;
    assert_int_equal(e[replaced].calls, 0);
    tell(&e[replaced]); /* the new one is watched all right */
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_int_equal(e[replaced].calls, 1);
    for (int i = 0; i < 2; i++) end_close(&e[i]);
    close_loop(loop, &w);
}

static void interest_dropped_in_the_same_turn_is_not_told(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end e[2];
    (void)state;
    for (int i = 0; i < 2; i++) {
        end_open(&e[i], loop, LLMKIT_WRITE);
        e[i].then = drop_interest_of_other;
        e[i].other = &e[1 - i];
    }
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    for (int i = 0; i < 2; i++) end_close(&e[i]);
    close_loop(loop, &w);
}

static void more_ready_descriptors_than_one_batch_holds_are_all_told(void **state) {
    enum { NUM = 600 };
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end one, *e = calloc(NUM, sizeof *e);
    (void)state;
    assert_non_null(e);
    end_open(&one, loop, 0);
    tell(&one);
    for (int i = 0; i < NUM; i++) { /* all of them the same socket */
        int fd = dup(one.io.fd);
        assert_true(fd >= 0);
        assert_ok(lk__io_start(loop, &e[i].io, fd, LLMKIT_READ, end_fn));
        e[i].loop = loop;
        e[i].peer = -1;
    }
    for (int turn = 0; turn < 4; turn++) llmkit_loop_poll(loop, 0);
    for (int i = 0; i < NUM; i++) {
        assert_true(e[i].calls > 0);
        end_close(&e[i]);
    }
    end_close(&one);
    free(e);
    close_loop(loop, &w);
}

/* ---- Tasks -----------------------------------------------------------------------------------*/

static void defer_again(note *n) {
    lk__defer(n->loop, &n->task);
}

static void defer_other(note *n) {
    lk__defer(n->loop, &n->other->task);
}

static void undefer_other(note *n) {
    lk__undefer(n->loop, &n->other->task);
}

static void tasks_run_in_order_and_their_own_tasks_the_turn_after(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[4];
    (void)state;
    notes_init(n, 4, loop);
    n[0].then = defer_other;
    n[0].other = &n[3];
    n[1].then = defer_again;
    for (int i = 0; i < 3; i++) lk__defer(loop, &n[i].task);
    lk__defer(loop, &n[0].task); /* waits already */
    assert_int_equal(num_notes, 0);
    assert_int_equal(llmkit_loop_wait_ns(loop), 0);
    assert_int_equal(llmkit_loop_poll(loop, -1), 3); /* without waiting */
    assert_notes("012");
    assert_int_equal(llmkit_loop_poll(loop, -1), 2);
    assert_notes("31");
    lk__undefer(loop, &n[1].task);
    lk__undefer(loop, &n[1].task);
    assert_int_equal(llmkit_loop_wait_ns(loop), -1);
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    close_loop(loop, &w);
}

static void task_withdrawn_from_the_running_batch_is_not_called(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[4];
    (void)state;
    notes_init(n, 4, loop);
    n[0].then = undefer_other;
    n[0].other = &n[2];
    n[1].then = undefer_other;
    n[1].other = &n[3]; /* the last one of the batch */
    for (int i = 0; i < 4; i++) lk__defer(loop, &n[i].task);
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_notes("01");
    lk__defer(loop, &n[2].task);
    lk__defer(loop, &n[3].task);
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_notes("23");
    close_loop(loop, &w);
}

static void task_deferred_by_a_timer_runs_in_the_same_turn(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[2];
    (void)state;
    notes_init(n, 2, loop);
    n[0].then = defer_other;
    n[0].other = &n[1];
    assert_ok(lk__timer_set(loop, &n[0].timer, 1));
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_notes("01");
    close_loop(loop, &w);
}

/* ---- Posts -----------------------------------------------------------------------------------*/

static void post_again(note *n) {
    if (n->number-- > 0) assert_ok(llmkit_loop_post(n->loop, 0, note_post_fn, n));
}

static void posts_are_called_in_order_and_hold_the_loop(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[3];
    (void)state;
    notes_init(n, 3, loop);
    for (int i = 0; i < 3; i++) assert_ok(llmkit_loop_post(loop, 0, note_post_fn, &n[i]));
    n[2].then = post_again;
    n[2].number = 5;
    assert_int_equal(llmkit_loop_wait_ns(loop), 0);
    assert_ok(llmkit_loop_run(loop));
    assert_notes("01543210");
    assert_err(llmkit_loop_post(loop, 0, NULL, NULL), LLMKIT_E_ARG);
    assert_err(llmkit_loop_post(NULL, 0, note_post_fn, n), LLMKIT_E_ARG);
    close_loop(loop, &w);
}

static void delayed_post_waits_for_its_time(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[3];
    (void)state;
    notes_init(n, 3, loop);
    assert_ok(llmkit_loop_post(loop, 20, note_post_fn, &n[0]));
    assert_ok(llmkit_loop_post(loop, 10, note_post_fn, &n[1]));
    assert_ok(llmkit_loop_post(loop, 0, note_post_fn, &n[2]));
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_notes("2");
    assert_int_equal(llmkit_loop_wait_ns(loop), 10 * LK__NS_PER_MS);
    w.now_ns += 20 * LK__NS_PER_MS - 1;
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_notes("1");
    w.now_ns += 1;
    assert_ok(llmkit_loop_run(loop)); /* it holds the loop until it was called */
    assert_notes("0");
    close_loop(loop, &w);
}

static void delayed_post_is_kept_when_there_is_no_memory_for_its_timer(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[1];
    (void)state;
    notes_init(n, 1, loop);
    assert_ok(llmkit_loop_post(loop, 1, note_post_fn, &n[0]));
    w.fail_at = w.calls + 1; /* the heap */
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    assert_true(w.refused);
    assert_int_equal(llmkit_loop_wait_ns(loop), 0);
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    w.now_ns += LK__NS_PER_MS;
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_notes("0");
    close_loop(loop, &w);
}

static void posts_from_inside_allocate_nothing_once_warm(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[1];
    (void)state;
    notes_init(n, 1, loop);
    n[0].then = post_again;
    n[0].number = 1000;
    assert_ok(llmkit_loop_post(loop, 0, note_post_fn, &n[0]));
    unsigned long calls = w.calls;
    assert_ok(llmkit_loop_run(loop));
    assert_int_equal(num_notes, 1001);
    assert_int_equal((unsigned long)w.calls, calls);
    close_loop(loop, &w);
}

/* A post in the test's memory that may cancel, and spoil, another. */
typedef struct letter {
    lk__post       post;
    llmkit_loop   *loop;
    int            number;
    struct letter *victim;
} letter;

static void cancel_letter(letter *l) {
    lk__post_cancel(l->loop, &l->post);
    memset(&l->post, 0xa5, sizeof l->post);
}

static void letter_fn(lk__post *post) {
    letter *l = LK__CONTAINER(post, letter, post);
    notes[num_notes++] = l->number;
    if (l->victim) cancel_letter(l->victim);
}

static void send_letters(letter *l, int count, llmkit_loop *loop) {
    for (int i = 0; i < count; i++) {
        l[i] = (letter){ .post = { .fn = letter_fn }, .loop = loop, .number = i };
        lk__post_send(loop, &l[i].post);
    }
    num_notes = 0;
}

static void cancelled_post_is_not_called_and_the_others_keep_their_order(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    letter l[5];
    (void)state;
    send_letters(l, 5, loop);
    cancel_letter(&l[2]);
    cancel_letter(&l[4]);
    lk__post_cancel(loop, &l[4].post); /* not there */
    assert_int_equal(llmkit_loop_wait_ns(loop), 0);
    l[4].post.fn = letter_fn;
    lk__post_send(loop, &l[4].post);
    assert_ok(llmkit_loop_run(loop));
    assert_notes("0134");
    send_letters(l, 4, loop);
    l[0].victim = &l[1]; /* the next one, and the last one, of the running batch */
    l[2].victim = &l[3];
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_notes("02");
    send_letters(l, 2, loop);
    cancel_letter(&l[0]);
    close_loop(loop, &w); /* the other one is forgotten */
}

static void kept_posts_are_bounded(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[1];
    (void)state;
    notes_init(n, 1, loop);
    long before = w.blocks;
    for (int i = 0; i < 1000; i++) assert_ok(llmkit_loop_post(loop, 0, note_post_fn, &n[0]));
    assert_int_equal(llmkit_loop_poll(loop, 0), 1000);
    assert_int_equal((long)w.blocks - before, 256);
    close_loop(loop, &w);
}

static void destroyed_loop_drops_what_is_posted(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[1];
    (void)state;
    notes_init(n, 1, loop);
    assert_ok(llmkit_loop_post(loop, 5, note_post_fn, &n[0]));
    assert_ok(lk__timer_set(loop, &n[0].timer, 9999));
    assert_int_equal(llmkit_loop_poll(loop, 0), 0); /* it has a timer now */
    assert_ok(llmkit_loop_post(loop, 5, note_post_fn, &n[0]));
    assert_ok(llmkit_loop_post(loop, 0, note_post_fn, &n[0]));
    close_loop(loop, &w);
    llmkit_loop_destroy(NULL);
    assert_notes("");
}

#if LLMKIT_WITH_THREADS

enum { NUM_SENDERS = 4, NUM_SENT = 2000 };

typedef struct sender {
    llmkit_loop *loop;
    pthread_t    thread;
    int          index, next; /* next: touched on the loop's thread only */
    struct sent { struct sender *sender; int number; } sent[NUM_SENT];
} sender;

static int num_received;

static void receive(void *user) {
    struct sent *s = user;
    assert_int_equal(s->number, s->sender->next);
    s->sender->next++;
    if (++num_received == NUM_SENDERS * NUM_SENT) lk__loop_unhold(s->sender->loop);
}

static void *send_all(void *arg) {
    sender *s = arg;
    for (int i = 0; i < NUM_SENT; i++) {
        s->sent[i] = (struct sent){ s, i };
        while (llmkit_loop_post(s->loop, 0, receive, &s->sent[i])) sched_yield();
    }
    return NULL;
}

static void posts_of_four_threads_arrive_each_in_order_and_none_is_lost(void **state) {
    lk_world w;
    lk_world_init(&w);
    llmkit_loop *loop = open_loop(&w);
    sender *s = calloc(NUM_SENDERS, sizeof *s);
    (void)state;
    assert_non_null(s);
    num_received = 0;
    lk__loop_hold(loop);
    for (int i = 0; i < NUM_SENDERS; i++) {
        s[i].loop = loop;
        assert_int_equal(pthread_create(&s[i].thread, NULL, send_all, &s[i]), 0);
    }
    assert_ok(llmkit_loop_run(loop));
    for (int i = 0; i < NUM_SENDERS; i++) {
        assert_int_equal(pthread_join(s[i].thread, NULL), 0);
        assert_int_equal(s[i].next, NUM_SENT);
    }
    free(s);
    close_loop(loop, &w);
}

#endif

/* ---- Running and stopping --------------------------------------------------------------------*/

static void run_ends_when_nothing_holds_the_loop(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end e;
    note n[1];
    (void)state;
    notes_init(n, 1, loop);
    end_open(&e, loop, LLMKIT_READ);
    assert_ok(lk__timer_set(loop, &n[0].timer, 1 << 30));
    assert_ok(llmkit_loop_run(loop)); /* neither of them does */
    lk__timer_stop(loop, &n[0].timer);
    lk__defer(loop, &n[0].task);
    assert_ok(llmkit_loop_run(loop));
    assert_notes("0");
    end_close(&e);
    close_loop(loop, &w);
}

static void stop_it(note *n) {
    llmkit_loop_stop(n->loop);
}

static void stop_ends_the_present_or_the_next_run(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[2];
    (void)state;
    notes_init(n, 2, loop);
    lk__loop_hold(loop);
    llmkit_loop_stop(loop);
    llmkit_loop_stop(loop);
    lk__defer(loop, &n[0].task);
    assert_ok(llmkit_loop_run(loop));
    assert_notes(""); /* before anything was called */
    n[0].then = stop_it;
    n[1].then = defer_again;
    lk__defer(loop, &n[1].task);
    assert_ok(llmkit_loop_run(loop)); /* the first stop is used up, so this one took place */
    assert_notes("01");
    lk__undefer(loop, &n[1].task);
    lk__loop_unhold(loop);
    close_loop(loop, &w);
}

#if LLMKIT_WITH_THREADS

static llmkit_loop *signalled;

static void on_signal(int number) {
    (void)number;
    llmkit_loop_stop(signalled);
}

static void *signal_it(void *arg) {
    pthread_t *thread = arg;
    pthread_kill(*thread, SIGUSR1);
    return NULL;
}

static void stop_from_a_signal_handler_ends_a_run_that_sleeps(void **state) {
    lk_world w;
    lk_world_init(&w);
    llmkit_loop *loop = open_loop(&w);
    struct sigaction action = { .sa_handler = on_signal }, before;
    pthread_t self = pthread_self(), thread;
    (void)state;
    signalled = loop;
    assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
    lk__loop_hold(loop);
    assert_int_equal(pthread_create(&thread, NULL, signal_it, &self), 0);
    assert_ok(llmkit_loop_run(loop)); /* or the alarm of test.h ends it all */
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(sigaction(SIGUSR1, &before, NULL), 0);
    lk__loop_unhold(loop);
    close_loop(loop, &w);
}

#endif

static void nest(note *n) {
    assert_true(lk__loop_inside(n->loop));
    assert_int_equal(llmkit_loop_poll(n->loop, -1), 0);
    assert_err(llmkit_loop_run(n->loop), LLMKIT_E_BUSY);
}

static void loop_cannot_be_run_from_inside(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[2];
    (void)state;
    notes_init(n, 2, loop);
    n[0].then = nest;
    lk__defer(loop, &n[0].task);
    lk__defer(loop, &n[1].task);
    assert_false(lk__loop_inside(loop));
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_notes("01");
    assert_false(lk__loop_inside(loop));
    close_loop(loop, &w);
}

static void destroy_it(note *n) {
    llmkit_loop_destroy(n->loop);
}

static void loop_destroyed_inside_a_callback_goes_after_the_turn(void **state) {
    lk_world w;
    note n[2];
    (void)state;
    for (int i = 0; i < 2; i++) {
        llmkit_loop *loop = open_frozen(&w);
        notes_init(n, 2, loop);
        n[0].then = destroy_it;
        lk__defer(loop, &n[0].task);
        lk__defer(loop, &n[1].task);
        if (i == 0)
            assert_int_equal(llmkit_loop_poll(loop, 0), 2);
        else
            assert_ok(llmkit_loop_run(loop));
        assert_notes("01");
        assert_no_leak(&w);
    }
}

static int64_t seen_ns;

static void move_clock(void *user) {
    lk_world *w = user;
    w->now_ns += 100;
}

static void see_clock(note *n) {
    seen_ns = lk__loop_now(n->loop);
}

static void time_stands_still_within_a_turn(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[1];
    (void)state;
    notes_init(n, 1, loop);
    n[0].then = see_clock;
    assert_ok(llmkit_loop_post(loop, 0, move_clock, &w));
    lk__defer(loop, &n[0].task);
    assert_int_equal(llmkit_loop_poll(loop, 0), 2);
    assert_int_equal(seen_ns, 1000);
    assert_int_equal(lk__loop_now(loop), 1100); /* outside it is the clock's */
    assert_int_equal(llmkit_loop_now_ns(loop), 1100);
    close_loop(loop, &w);
}

static void wait_is_as_long_as_the_first_timer_allows(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    note n[1];
    (void)state;
    notes_init(n, 1, loop);
    assert_int_equal(llmkit_loop_wait_ns(loop), -1);
    assert_ok(lk__timer_set(loop, &n[0].timer, 1500));
    assert_int_equal(llmkit_loop_wait_ns(loop), 500);
    w.now_ns = 1600;
    assert_int_equal(llmkit_loop_wait_ns(loop), 0);
    assert_ok(lk__timer_set(loop, &n[0].timer, LK__NEVER_NS));
    assert_int_equal(llmkit_loop_wait_ns(loop), -1);
    lk__timer_stop(loop, &n[0].timer);
    close_loop(loop, &w);
}

/* ---- In other loops --------------------------------------------------------------------------*/

static void *post_one(void *arg) {
    note *n = arg;
    assert_ok(llmkit_loop_post(n->loop, 0, note_post_fn, n));
    return NULL;
}

/* From another thread, where that is allowed. */
static void post_elsewhere(note *n) {
    pthread_t thread;
    if (!LLMKIT_WITH_THREADS) {
        post_one(n);
        return;
    }
    assert_int_equal(pthread_create(&thread, NULL, post_one, n), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static void descriptor_of_the_loop_stands_for_all_of_it(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    end e;
    note n[1];
    char c;
    (void)state;
    struct pollfd p = { .fd = llmkit_loop_fd(loop), .events = POLLIN };
    if (LLMKIT_LOOP == LLMKIT_LOOP_POLL) {
        assert_int_equal(p.fd, -1);
        close_loop(loop, &w);
        return;
    }
    notes_init(n, 1, loop);
    end_open(&e, loop, LLMKIT_READ);
    assert_int_equal(poll(&p, 1, 0), 0);
    tell(&e);
    assert_int_equal(poll(&p, 1, -1), 1);
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_int_equal(read(e.io.fd, &c, 1), 1);
    assert_int_equal(poll(&p, 1, 0), 0);
    post_elsewhere(&n[0]);
    assert_int_equal(poll(&p, 1, -1), 1);
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    assert_notes("0");
    assert_int_equal(poll(&p, 1, 0), 0);
    end_close(&e);
    close_loop(loop, &w);
}

/* A host with nothing but poll(2). */
typedef struct host {
    unsigned events[256];
    int      calls;
} host;

static void host_watch(void *user, int fd, unsigned events) {
    host *h = user;
    assert_in_range(fd, 0, 255);
    assert_true(h->events[fd] != events);
    h->events[fd] = events;
    h->calls++;
}

static int host_turn(host *h, llmkit_loop *loop, bool sleep) {
    struct pollfd p[256];
    nfds_t n = 0;
    for (int fd = 0; fd < 256; fd++) {
        if (!h->events[fd]) continue;
        p[n].fd = fd;
        p[n].events = (short)((h->events[fd] & LLMKIT_READ ? POLLIN : 0) |
                              (h->events[fd] & LLMKIT_WRITE ? POLLOUT : 0));
        n++;
    }
    int ready = poll(p, n, sleep ? lk__poller_ms(llmkit_loop_wait_ns(loop)) : 0);
    for (nfds_t i = 0; ready > 0 && i < n; i++) {
        bool failed = (p[i].revents & (POLLHUP | POLLERR)) != 0;
        unsigned events = 0;
        if ((p[i].revents & POLLIN) || failed) events |= LLMKIT_READ;
        if ((p[i].revents & POLLOUT) || failed) events |= LLMKIT_WRITE;
        if (events) llmkit_loop_ready(loop, p[i].fd, events);
    }
    return llmkit_loop_poll(loop, -1);
}

static llmkit_loop *open_guest(lk_world *w, host *h) {
    llmkit_error error;
    memset(h, 0, sizeof *h);
    lk_world_init_virtual(w, 1000);
    llmkit_loop_desc desc = { .env = w->env, .watch = host_watch, .watch_user = h };
    llmkit_loop *loop = llmkit_loop_create(&desc, &error);
    if (!loop) fail_msg("%s", error.message);
    return loop;
}

static void close_guest(llmkit_loop *loop, lk_world *w, const host *h) {
    close_loop(loop, w);
    for (int fd = 0; fd < 256; fd++) assert_int_equal(h->events[fd], 0);
}

static void guest_is_driven_by_its_host(void **state) {
    lk_world w;
    host h;
    llmkit_loop *loop = open_guest(&w, &h);
    end e;
    note n[1];
    char c;
    (void)state;
    notes_init(n, 1, loop);
    assert_int_equal(llmkit_loop_fd(loop), -1);
    assert_err(llmkit_loop_run(loop), LLMKIT_E_ARG);
    end_open(&e, loop, LLMKIT_READ);
    assert_int_equal(h.events[e.io.fd], LLMKIT_READ);
    assert_int_equal(host_turn(&h, loop, false), 0);
    tell(&e);
    assert_int_equal(host_turn(&h, loop, true), 1);
    assert_int_equal(e.ready, LLMKIT_READ);
    assert_int_equal(read(e.io.fd, &c, 1), 1);
    assert_ok(lk__io_set(loop, &e.io, LLMKIT_WRITE));
    assert_int_equal(host_turn(&h, loop, true), 1);
    assert_int_equal(e.ready, LLMKIT_WRITE);
    assert_ok(lk__io_set(loop, &e.io, 0));
    assert_int_equal(host_turn(&h, loop, false), 0);
    post_elsewhere(&n[0]);
    assert_int_equal(host_turn(&h, loop, false), 1);
    assert_notes("0");
    assert_int_equal(host_turn(&h, loop, false), 0); /* the wake-up is used up */
    assert_ok(lk__timer_set(loop, &n[0].timer, 1000));
    assert_int_equal(host_turn(&h, loop, true), 1);
    end_close(&e);
    close_guest(loop, &w, &h);
}

static void guest_ignores_reports_of_what_it_does_not_watch(void **state) {
    lk_world w;
    host h;
    llmkit_loop *loop = open_guest(&w, &h);
    end e;
    (void)state;
    end_open(&e, loop, LLMKIT_READ);
    llmkit_loop_ready(loop, -1, LLMKIT_READ);
    llmkit_loop_ready(loop, 100000, LLMKIT_READ);
    llmkit_loop_ready(loop, e.peer, LLMKIT_READ);
    llmkit_loop_ready(loop, e.io.fd, LLMKIT_WRITE);
    assert_int_equal(llmkit_loop_wait_ns(loop), -1);
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    llmkit_loop_ready(loop, e.io.fd, LLMKIT_READ);
    llmkit_loop_ready(loop, e.io.fd, LLMKIT_READ); /* told once */
    assert_int_equal(llmkit_loop_wait_ns(loop), 0);
    assert_int_equal(llmkit_loop_poll(loop, 0), 1);
    llmkit_loop_ready(loop, e.io.fd, LLMKIT_READ);
    int fd = e.io.fd;
    end_close(&e);
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    e.io = (lk__io){ .events = LLMKIT_READ, .told = { .fn = lk__io_tell }, .fn = end_fn };
    llmkit_loop_ready(loop, fd, LLMKIT_READ);
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    close_guest(loop, &w, &h);
    loop = open_frozen(&w);
    end_open(&e, loop, LLMKIT_READ);
    llmkit_loop_ready(loop, e.io.fd, LLMKIT_READ); /* not a guest */
    assert_int_equal(llmkit_loop_poll(loop, 0), 0);
    end_close(&e);
    close_loop(loop, &w);
}

static void guest_finds_descriptors_of_any_number(void **state) {
    lk_world w;
    host h;
    llmkit_loop *loop = open_guest(&w, &h);
    end e[2];
    (void)state;
    end_open(&e[0], loop, LLMKIT_READ);
    int high = dup2(e[0].io.fd, 255);
    assert_int_equal(high, 255);
    e[1] = (end){ .loop = loop, .peer = -1 };
    assert_ok(lk__io_start(loop, &e[1].io, high, LLMKIT_READ, end_fn));
    tell(&e[0]);
    assert_int_equal(host_turn(&h, loop, true), 2);
    for (int i = 0; i < 2; i++) end_close(&e[i]);
    close_guest(loop, &w, &h);
}

/* ---- Failures --------------------------------------------------------------------------------*/

enum { NUM_IOS = 100 };

static bool use_everything(llmkit_loop *loop, lk__io *ios, note *n, int fd) {
    bool good = true;
    for (int i = 0; i < NUM_IOS; i++) {
        int copy = dup(fd);
        assert_true(copy >= 0);
        if (lk__io_start(loop, &ios[i], copy, LLMKIT_READ, end_fn)) {
            assert_int_equal(ios[i].fd, -1);
            close(copy);
            good = false;
        }
        if (lk__timer_set(loop, &n[i].timer, 5000 + i)) good = false;
        if (llmkit_loop_post(loop, (uint32_t)i % 2, note_post_fn, &n[i])) good = false;
    }
    llmkit_loop_poll(loop, 0);
    for (int i = 0; i < NUM_IOS; i++) {
        int copy = ios[i].fd;
        lk__io_stop(loop, &ios[i]);
        if (copy >= 0) close(copy);
        lk__timer_stop(loop, &n[i].timer);
    }
    return good;
}

static void refused_allocations_are_reported(lk_world *w, const llmkit_loop_desc *desc) {
    static lk__io ios[NUM_IOS];
    static note n[NUM_IOS];
    int fds[2], before = num_open_fds();
    bool last = false;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    LK_EACH_REFUSAL(w) {
        llmkit_error error = { 0 };
        llmkit_loop *loop = llmkit_loop_create(desc, &error);
        last = loop != NULL;
        if (!loop) {
            assert_err(error.code, LLMKIT_E_NOMEM);
            continue;
        }
        notes_init(n, NUM_IOS, loop);
        last = use_everything(loop, ios, n, fds[0]);
        llmkit_loop_destroy(loop);
    }
    assert_true(last);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(num_open_fds(), before);
}

static void every_allocation_may_fail(void **state) {
    lk_world w;
    (void)state;
    lk_world_init_virtual(&w, 1000);
    refused_allocations_are_reported(&w, &(llmkit_loop_desc){ .env = w.env });
}

static void every_allocation_of_a_guest_may_fail(void **state) {
    lk_world w;
    host h = { 0 };
    (void)state;
    lk_world_init_virtual(&w, 1000);
    llmkit_loop_desc desc = { .env = w.env, .watch = host_watch, .watch_user = &h };
    refused_allocations_are_reported(&w, &desc);
}

static void every_descriptor_may_be_refused(void **state) {
    lk_world w;
    struct rlimit limit, none;
    int refused = 0, before = num_open_fds();
    (void)state;
    lk_world_init(&w);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    for (rlim_t n = 0;; n++) {
        llmkit_error error = { 0 };
        none = (struct rlimit){ n, limit.rlim_max };
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
        llmkit_loop *loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = w.env }, &error);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        if (loop) {
            close_loop(loop, &w);
            break;
        }
        refused++;
        assert_err(error.code, LLMKIT_E_IO);
        assert_int_equal(error.os_errno, EMFILE);
        assert_no_leak(&w);
        assert_int_equal(num_open_fds(), before);
    }
    assert_true(refused > 0);
    assert_int_equal(num_open_fds(), before);
}

static void descriptor_that_cannot_be_watched_is_refused(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    lk__io io;
    (void)state;
    if (LLMKIT_LOOP == LLMKIT_LOOP_EPOLL) { /* poll(2) takes any */
        int fd = open("/proc/self/exe", O_RDONLY); /* a file is always ready, says epoll: EPERM */
        assert_true(fd >= 0);
        assert_err(lk__io_start(loop, &io, fd, LLMKIT_READ, end_fn), LLMKIT_E_IO);
        assert_int_equal(io.fd, -1);
        lk__io_stop(loop, &io);
        close(fd);
    }
    close_loop(loop, &w);
}

static void wait_that_fails_ends_the_run(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    (void)state;
    if (LLMKIT_LOOP == LLMKIT_LOOP_EPOLL) {
        int fd = llmkit_loop_fd(loop), copy = dup(fd), zero = open("/dev/zero", O_RDONLY);
        assert_true(copy >= 0 && zero >= 0);
        assert_int_equal(dup2(zero, fd), fd); /* not an epoll descriptor any more */
        lk__loop_hold(loop);
        assert_err(llmkit_loop_run(loop), LLMKIT_E_IO);
        assert_int_equal(llmkit_loop_poll(loop, 0), 0);
        assert_string_equal(w.log, "0 E_IO the loop cannot wait for readiness");
        lk__loop_unhold(loop);
        assert_int_equal(dup2(copy, fd), fd);
        close(copy);
        close(zero);
    }
    close_loop(loop, &w);
}

static void desc_that_is_not_zeroed_is_refused(void **state) {
    llmkit_error error;
    (void)state;
    assert_null(llmkit_loop_create(&(llmkit_loop_desc){ ._guard1 = 1 }, &error));
    assert_err(error.code, LLMKIT_E_NOT_ZEROED);
    llmkit_loop *loop = llmkit_loop_create(NULL, NULL);
    assert_non_null(loop);
    llmkit_loop_destroy(loop);
}

/* ---- System calls ----------------------------------------------------------------------------*/

static int listen_on_loopback(llmkit_loop *loop, struct sockaddr_in *addr) {
    socklen_t len = sizeof *addr;
    int fd = lk__socket_open(loop, AF_INET);
    assert_true(fd >= 0);
    *addr = (struct sockaddr_in){ .sin_family = AF_INET };
    addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)addr, len), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)addr, &len), 0);
    return fd;
}

static void assert_prepared(int fd) {
    assert_true(fd >= 0);
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
}

static void sockets_are_non_blocking_and_raise_no_signal(void **state) {
    lk_world w;
    lk_world_init(&w);
    llmkit_loop *loop = open_loop(&w);
    const lk__sys *sys = lk__loop_sys(loop);
    struct sockaddr_in addr;
    end e = { .loop = loop, .peer = -1 };
    char in[16];
    (void)state;
    int server = listen_on_loopback(loop, &addr), client = lk__socket_open(loop, AF_INET);
    assert_prepared(server);
    assert_prepared(client);
    assert_int_equal(sys->accept(server), -1);
    assert_true(errno == EAGAIN || errno == EWOULDBLOCK);
    int rc = sys->connect(client, (struct sockaddr *)&addr, sizeof addr);
    assert_true(rc == 0 || errno == EINPROGRESS);
    assert_ok(lk__io_start(loop, &e.io, server, LLMKIT_READ, end_fn));
    while (e.calls == 0) llmkit_loop_poll(loop, -1);
    lk__io_stop(loop, &e.io);
    int peer = sys->accept(server);
    assert_prepared(peer);

    struct iovec iov[2] = { { (char[]){ "abc" }, 3 }, { (char[]){ "de" }, 2 } };
    assert_int_equal(sys->recv(client, in, sizeof in), -1);
    assert_true(errno == EAGAIN || errno == EWOULDBLOCK);
    assert_int_equal(sys->send(peer, iov, 2), 5);
    assert_ok(lk__io_start(loop, &e.io, client, LLMKIT_READ, end_fn));
    while (e.calls == 1) llmkit_loop_poll(loop, -1);
    lk__io_stop(loop, &e.io);
    assert_int_equal(sys->recv(client, in, sizeof in), 5);
    assert_memory_equal(in, "abcde", 5);
    assert_int_equal(shutdown(peer, SHUT_WR), 0);
    assert_int_equal(sys->send(peer, iov, 1), -1); /* SIGPIPE would end the test */
    assert_int_equal(errno, EPIPE);
    assert_int_equal(sys->close(peer), 0);
    assert_int_equal(sys->close(client), 0);
    assert_int_equal(sys->close(server), 0);
    close_loop(loop, &w);
}

static int no_socket(int domain, int type, int protocol) {
    (void)domain;
    (void)type;
    (void)protocol;
    errno = ENFILE;
    return -1;
}

static void system_calls_of_a_loop_can_be_replaced(void **state) {
    lk_world w;
    llmkit_loop *loop = open_frozen(&w);
    lk__sys sys = *lk__sys_default();
    (void)state;
    sys.socket = no_socket;
    lk__loop_set_sys(loop, &sys);
    assert_int_equal(lk__socket_open(loop, AF_INET), -1);
    assert_int_equal(errno, ENFILE);
    assert_int_equal(lk__sys_prepare(-1), -1);
    assert_int_equal(lk__sys_prepare(100000), -1);
    assert_int_equal(errno, EBADF);
    assert_ptr_equal(lk__loop_env(loop)->user, &w);
    assert_non_null(lk__loop_rand(loop));
    memset(lk__loop_scratch(loop), 1, LLMKIT_READ_BYTES);
    close_loop(loop, &w);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(timers_fire_in_the_order_of_their_times),
    cmocka_unit_test(timer_that_moves_later_stays_in_its_place_until_it_is_first),
    cmocka_unit_test(timer_can_move_earlier_and_be_stopped),
    cmocka_unit_test(timer_callback_may_free_itself_and_others),
    cmocka_unit_test(timer_that_is_always_due_fires_once_a_turn),
    cmocka_unit_test(ten_thousand_timers_fire_in_order_through_every_change),
    cmocka_unit_test(waiting_is_rounded_up_to_milliseconds),
    cmocka_unit_test(timer_does_not_fire_early_by_the_real_clock),
    cmocka_unit_test(readiness_is_told_as_long_as_it_lasts),
    cmocka_unit_test(hang_up_is_told_as_what_is_asked_for),
    cmocka_unit_test(end_of_a_pipe_is_told_without_data),
    cmocka_unit_test(hang_up_is_not_told_to_one_that_asks_for_nothing),
    cmocka_unit_test(one_stopped_in_the_same_turn_is_not_called),
    cmocka_unit_test(readiness_of_a_closed_descriptor_does_not_reach_its_successor),
    cmocka_unit_test(interest_dropped_in_the_same_turn_is_not_told),
    cmocka_unit_test(more_ready_descriptors_than_one_batch_holds_are_all_told),
    cmocka_unit_test(tasks_run_in_order_and_their_own_tasks_the_turn_after),
    cmocka_unit_test(task_withdrawn_from_the_running_batch_is_not_called),
    cmocka_unit_test(task_deferred_by_a_timer_runs_in_the_same_turn),
    cmocka_unit_test(posts_are_called_in_order_and_hold_the_loop),
    cmocka_unit_test(delayed_post_waits_for_its_time),
    cmocka_unit_test(delayed_post_is_kept_when_there_is_no_memory_for_its_timer),
    cmocka_unit_test(posts_from_inside_allocate_nothing_once_warm),
    cmocka_unit_test(cancelled_post_is_not_called_and_the_others_keep_their_order),
    cmocka_unit_test(kept_posts_are_bounded),
    cmocka_unit_test(destroyed_loop_drops_what_is_posted),
#if LLMKIT_WITH_THREADS
    cmocka_unit_test(posts_of_four_threads_arrive_each_in_order_and_none_is_lost),
    cmocka_unit_test(stop_from_a_signal_handler_ends_a_run_that_sleeps),
#endif
    cmocka_unit_test(run_ends_when_nothing_holds_the_loop),
    cmocka_unit_test(stop_ends_the_present_or_the_next_run),
    cmocka_unit_test(loop_cannot_be_run_from_inside),
    cmocka_unit_test(loop_destroyed_inside_a_callback_goes_after_the_turn),
    cmocka_unit_test(time_stands_still_within_a_turn),
    cmocka_unit_test(wait_is_as_long_as_the_first_timer_allows),
    cmocka_unit_test(descriptor_of_the_loop_stands_for_all_of_it),
    cmocka_unit_test(guest_is_driven_by_its_host),
    cmocka_unit_test(guest_ignores_reports_of_what_it_does_not_watch),
    cmocka_unit_test(guest_finds_descriptors_of_any_number),
    cmocka_unit_test(every_allocation_may_fail),
    cmocka_unit_test(every_allocation_of_a_guest_may_fail),
    cmocka_unit_test(every_descriptor_may_be_refused),
    cmocka_unit_test(descriptor_that_cannot_be_watched_is_refused),
    cmocka_unit_test(wait_that_fails_ends_the_run),
    cmocka_unit_test(desc_that_is_not_zeroed_is_refused),
    cmocka_unit_test(sockets_are_non_blocking_and_raise_no_signal),
    cmocka_unit_test(system_calls_of_a_loop_can_be_replaced),
};

LK_TEST_MAIN(tests)
