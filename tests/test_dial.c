/* test_dial.c -- the race to connect, among addresses that answer, refuse or are silent */
#include "test.h"

static const int64_t MS = LK__NS_PER_MS;

typedef struct track {
    lk_world     world;
    llmkit_loop *loop;
    lk__addrs    addrs;
    lk__dial    *dial;
    int          results, fd;
    llmkit_error error;
    int          listeners[8], num_listeners;
    int          fillers[32], num_fillers;
    char         path[64];
} track;

static void on_result(void *user, int fd, const llmkit_error *error) {
    track *t = user;
    t->results++;
    t->fd = fd;
    t->dial = NULL;
    assert_int_equal(fd < 0, error != NULL);
    if (error) t->error = *error;
}

static void track_open(track *t) {
    memset(t, 0, sizeof *t);
    lk_world_init_virtual(&t->world, 0);
    t->loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = t->world.env }, NULL);
    t->fd = -1;
}

static void track_close(track *t) {
    lk__dial_stop(t->dial);
    if (t->fd >= 0) close(t->fd);
    for (int i = 0; i < t->num_listeners; i++) close(t->listeners[i]);
    for (int i = 0; i < t->num_fillers; i++) close(t->fillers[i]);
    if (t->path[0]) unlink(t->path);
    llmkit_loop_destroy(t->loop);
    assert_no_leak(&t->world);
}

static lk__addr *add(track *t) {
    return &t->addrs.addr[t->addrs.num++];
}

/* A listener on a new port of its own; its address is added. */
static void add_listener(track *t, int backlog) {
    lk__addr *a = add(t);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    a->at.v4 = (struct sockaddr_in){ .sin_family = AF_INET,
                                     .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    a->len = sizeof a->at.v4;
    assert_int_equal(bind(fd, &a->at.any, a->len), 0);
    assert_int_equal(listen(fd, backlog), 0);
    assert_int_equal(getsockname(fd, &a->at.any, &a->len), 0);
    t->listeners[t->num_listeners++] = fd;
}

/* One that refuses: nobody listens there any more. */
static void add_refusal(track *t) {
    add_listener(t, 1);
    close(t->listeners[--t->num_listeners]);
}

/* One that never answers: its queue is full. */
static void add_silence(track *t) {
    add_listener(t, 0);
    const lk__addr *a = &t->addrs.addr[t->addrs.num - 1];
    for (int i = 0; i < 4; i++) {
        int fd = lk__sys_default()->socket(AF_INET, SOCK_STREAM, 0);
        connect(fd, &a->at.any, a->len);
        t->fillers[t->num_fillers++] = fd;
    }
}

static void add_unix(track *t, int backlog) {
    lk__addr *a = add(t);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(t->path, sizeof t->path, "/tmp/llmkit-dial-%ld", (long)getpid());
    unlink(t->path);
    a->at.un.sun_family = AF_UNIX;
    memcpy(a->at.un.sun_path, t->path, strlen(t->path) + 1);
    a->len = sizeof a->at.un;
    assert_int_equal(bind(fd, &a->at.any, a->len), 0);
    assert_int_equal(listen(fd, backlog), 0);
    t->listeners[t->num_listeners++] = fd;
}

static void start(track *t) {
    t->dial = lk__dial_start(t->loop, &t->addrs, on_result, t);
    assert_non_null(t->dial);
    assert_int_equal(t->results, 0);
}

static void turns(track *t, int n) {
    for (int i = 0; i < n; i++) llmkit_loop_poll(t->loop, 0);
}

static void pass(track *t, int64_t ms) {
    t->world.now_ns += ms * MS;
    turns(t, 5);
}

static uint16_t peer_port(int fd) {
    lk__addr a = { .len = sizeof a.at };
    assert_int_equal(getpeername(fd, &a.at.any, &a.len), 0);
    return a.at.v4.sin_port;
}

static void connected_to(track *t, uint32_t i) {
    for (int n = 0; n < 1000 && !t->results; n++) turns(t, 1);
    assert_int_equal(t->results, 1);
    assert_true(t->fd >= 0);
    assert_int_equal(peer_port(t->fd), t->addrs.addr[i].at.v4.sin_port);
    assert_int_equal(fcntl(t->fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    assert_int_equal(fcntl(t->fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

static void the_first_address_that_answers_wins(void **state) {
    (void)state;
    track t;
    track_open(&t);
    add_listener(&t, 5);
    add_listener(&t, 5);
    start(&t);
    connected_to(&t, 0);
    track_close(&t);
}

static void a_refusal_moves_on_at_once(void **state) {
    (void)state;
    track t;
    track_open(&t);
    add_refusal(&t);
    add_refusal(&t);
    add_listener(&t, 5);
    start(&t);
    connected_to(&t, 2); /* without the clock having moved */
    track_close(&t);
}

static void silence_moves_on_after_250_ms(void **state) {
    (void)state;
    track t;
    track_open(&t);
    add_silence(&t);
    add_silence(&t);
    add_listener(&t, 5);
    start(&t);
    turns(&t, 10);
    pass(&t, 249);
    pass(&t, 1);
    pass(&t, 249);
    assert_int_equal(t.results, 0);
    pass(&t, 1);
    connected_to(&t, 2);
    track_close(&t);
}

static void all_refusals_are_one_error(void **state) {
    (void)state;
    track t;
    track_open(&t);
    add_refusal(&t);
    add_refusal(&t);
    start(&t);
    for (int n = 0; n < 1000 && !t.results; n++) turns(&t, 1);
    assert_int_equal(t.results, 1);
    assert_err(t.error.code, LLMKIT_E_CONNECT);
    assert_int_equal(t.error.os_errno, ECONNREFUSED);
    char port[16];
    snprintf(port, sizeof port, "port %d", ntohs(t.addrs.addr[1].at.v4.sin_port));
    assert_non_null(strstr(t.error.message, "127.0.0.1"));
    assert_non_null(strstr(t.error.message, port));
    assert_non_null(strstr(t.error.message, "refused"));
    assert_true(t.error.retryable);
    track_close(&t);
}

static void a_family_without_a_route_is_passed_over(void **state) {
    (void)state;
    track t;
    track_open(&t);
    lk__addr *a = add(&t);
    assert_true(lk__addr_parse(a, LK__STR("2001:db8::1"), 9)); /* documentation: RFC 3849 */
    a->at.v6.sin6_family = 250;                                /* no such family here */
    add_listener(&t, 5);
    start(&t);
    connected_to(&t, 1);
    track_close(&t);
}

static void ipv6_errors_name_the_address(void **state) {
    (void)state;
    track t;
    track_open(&t);
    add_refusal(&t);
    uint16_t port = ntohs(t.addrs.addr[0].at.v4.sin_port);
    assert_true(lk__addr_parse(&t.addrs.addr[0], LK__STR("::1"), port));
    start(&t);
    for (int n = 0; n < 1000 && !t.results; n++) turns(&t, 1);
    assert_non_null(strstr(t.error.message, "::1"));
    track_close(&t);
}

static void stopping_is_silent_at_every_stage(void **state) {
    (void)state;
    for (int n = 0; n < 4; n++) {
        track t;
        track_open(&t);
        add_silence(&t);
        add_silence(&t);
        start(&t);
        turns(&t, n);
        if (n == 3) pass(&t, 251);
        lk__dial_stop(t.dial);
        t.dial = NULL;
        pass(&t, 1000);
        assert_int_equal(t.results, 0);
        track_close(&t);
    }
    lk__dial_stop(NULL);
}

static void a_unix_socket_connects_at_once(void **state) {
    (void)state;
    track t;
    track_open(&t);
    add_unix(&t, 5);
    start(&t);
    turns(&t, 1);
    assert_int_equal(t.results, 1);
    assert_true(t.fd >= 0);
    track_close(&t);
}

static void a_missing_unix_socket_is_named(void **state) {
    (void)state;
    track t;
    track_open(&t);
    add_unix(&t, 5);
    unlink(t.path);
    start(&t);
    turns(&t, 2);
    assert_err(t.error.code, LLMKIT_E_CONNECT);
    assert_non_null(strstr(t.error.message, t.path));
    assert_int_equal(t.error.os_errno, ENOENT);
    track_close(&t);
}

static void a_full_unix_socket_is_asked_again(void **state) {
    (void)state;
    track t;
    track_open(&t);
    add_unix(&t, 0);
    const lk__addr *a = &t.addrs.addr[0];
    int fd = -1;
    do { /* until it says EAGAIN */
        fd = lk__sys_default()->socket(AF_UNIX, SOCK_STREAM, 0);
        t.fillers[t.num_fillers++] = fd;
        assert_true(t.num_fillers < 30);
    } while (connect(fd, &a->at.any, a->len) == 0);
    assert_int_equal(errno, EAGAIN);
    start(&t);
    turns(&t, 5);
    pass(&t, 20);
    pass(&t, 20);
    assert_int_equal(t.results, 0);
    for (int i = t.num_fillers - 1; i > 0; i--)
        t.fillers[t.num_fillers++] = accept(t.listeners[0], NULL, NULL);
    pass(&t, 11);
    assert_int_equal(t.results, 1);
    assert_true(t.fd >= 0);
    track_close(&t);
}

/* ---- faults -----------------------------------------------------------------------------------*/

static int failing_left, failing_errno;

static int failing_socket(int domain, int type, int protocol) {
    if (failing_left-- > 0) {
        errno = failing_errno;
        return -1;
    }
    return lk__sys_default()->socket(domain, type, protocol);
}

static int failing_connect(int fd, const struct sockaddr *addr, socklen_t len) {
    if (failing_left-- > 0) {
        errno = failing_errno;
        return -1;
    }
    return lk__sys_default()->connect(fd, addr, len);
}

static void failing_calls_move_on(void **state) {
    (void)state;
    for (int which = 0; which < 2; which++) {
        for (int times = 1; times <= 2; times++) {
            track t;
            lk__sys sys = *lk__sys_default();
            track_open(&t);
            if (which == 0) sys.socket = failing_socket;
            if (which == 1) sys.connect = failing_connect;
            failing_left = times;
            failing_errno = which ? ENETUNREACH : EMFILE;
            lk__loop_set_sys(t.loop, &sys);
            add_listener(&t, 5);
            add_listener(&t, 5);
            start(&t);
            if (times == 1) connected_to(&t, 1);
            turns(&t, 2);
            assert_int_equal(t.results, 1);
            if (times == 2) assert_int_equal(t.error.os_errno, failing_errno);
            track_close(&t);
        }
    }
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    track t;
    track_open(&t);
    add_silence(&t);
    add_silence(&t);
    add_listener(&t, 5);
    llmkit_loop_destroy(t.loop);
    LK_EACH_REFUSAL(&t.world) {
        t.results = 0;
        t.loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = t.world.env }, NULL);
        if (!t.loop) continue;
        t.dial = lk__dial_start(t.loop, &t.addrs, on_result, &t);
        turns(&t, 2);
        for (int i = 0; i < 4 && t.dial; i++) pass(&t, 251);
        for (int i = 0; i < 1000 && t.dial; i++) turns(&t, 1);
        if (t.results) {
            assert_true(t.fd >= 0);
            close(t.fd);
        }
        t.fd = -1;
        llmkit_loop_destroy(t.loop);
        t.loop = NULL;
    }
    track_close(&t);
}

/* ---- a guest's host may report what is not so -------------------------------------------------*/

static int watched_fd;

static void note_watch(void *user, int fd, unsigned events) {
    (void)user;
    if (events & LLMKIT_WRITE) watched_fd = fd;
}

static void readiness_without_a_connection_is_no_connection(void **state) {
    (void)state;
    track t;
    track_open(&t);
    llmkit_loop_destroy(t.loop);
    t.loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = t.world.env, .watch = note_watch },
                                NULL);
    add_silence(&t);
    watched_fd = -1;
    start(&t);
    turns(&t, 2);
    assert_true(watched_fd >= 0);
    llmkit_loop_ready(t.loop, watched_fd, LLMKIT_WRITE);
    turns(&t, 2);
    assert_int_equal(t.results, 0);
    track_close(&t);
}

static void an_earlier_attempt_may_still_win(void **state) {
    (void)state;
    track t;
    track_open(&t);
    llmkit_loop_destroy(t.loop);
    t.loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = t.world.env, .watch = note_watch },
                                NULL);
    add_listener(&t, 5);
    add_listener(&t, 5);
    start(&t);
    turns(&t, 2);
    int first = watched_fd;
    pass(&t, 251);
    int second = watched_fd;
    assert_true(second != first);
    llmkit_loop_ready(t.loop, first, LLMKIT_WRITE); /* both are connected; this one is told first */
    llmkit_loop_ready(t.loop, second, LLMKIT_WRITE);
    turns(&t, 2);
    connected_to(&t, 0);
    assert_int_equal(t.fd, first);
    assert_int_equal(fcntl(second, F_GETFD), -1); /* the other was closed */
    track_close(&t);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_first_address_that_answers_wins),
    cmocka_unit_test(a_refusal_moves_on_at_once),
    cmocka_unit_test(silence_moves_on_after_250_ms),
    cmocka_unit_test(all_refusals_are_one_error),
    cmocka_unit_test(a_family_without_a_route_is_passed_over),
    cmocka_unit_test(ipv6_errors_name_the_address),
    cmocka_unit_test(stopping_is_silent_at_every_stage),
    cmocka_unit_test(a_unix_socket_connects_at_once),
    cmocka_unit_test(a_missing_unix_socket_is_named),
    cmocka_unit_test(a_full_unix_socket_is_asked_again),
    cmocka_unit_test(failing_calls_move_on),
    cmocka_unit_test(every_allocation_may_fail),
    cmocka_unit_test(readiness_without_a_connection_is_no_connection),
    cmocka_unit_test(an_earlier_attempt_may_still_win),
};

LK_TEST_MAIN(tests)
