/* test_wire.c -- byte streams over socket pairs, plain and TLS, with both ends in the test */
#include "test.h"

typedef struct end {
    lk__wire     wire;
    lk__buf      in;
    int          ready, closed, drained;
    bool         failed;
    llmkit_error error;
    void       (*on_read)(struct end *e, llmkit_str bytes);
    bool         close_when_drained;
} end;

typedef struct pair {
    lk_world     world;
    llmkit_loop *loop;
    llmkit_tls  *client_tls, *server_tls;
    end          a, b; /* a is the client */
} pair;

static void on_ready(lk__wire *w) {
    LK__CONTAINER(w, end, wire)->ready++;
}

static void on_read(lk__wire *w, llmkit_str bytes) {
    end *e = LK__CONTAINER(w, end, wire);
    assert_true(bytes.len > 0);
    lk__buf_str(&e->in, bytes);
    if (e->on_read) e->on_read(e, bytes);
}

static void on_closed(lk__wire *w, const llmkit_error *error) {
    end *e = LK__CONTAINER(w, end, wire);
    assert_false(lk__wire_is_open(w));
    e->closed++;
    e->failed = error != NULL;
    if (error) e->error = *error;
}

static void on_drained(lk__wire *w) {
    end *e = LK__CONTAINER(w, end, wire);
    e->drained++;
    assert_int_equal(lk__wire_unsent(w), 0);
    if (e->close_when_drained) lk__wire_close(w);
}

static const lk__wire_ops ops = { on_ready, on_read, on_closed, on_drained };

static void load_tls(pair *p) {
    char cert[600], key[600], ca[600], command[1400];
    const char *dir = getenv("LK_CERTS");
    llmkit_error error;
    if (!dir) dir = "build/certs";
    snprintf(command, sizeof command, "tests/make_certs '%s'", dir);
    snprintf(cert, sizeof cert, "%s/rsa.pem", dir);
    snprintf(key, sizeof key, "%s/rsa.key", dir);
    snprintf(ca, sizeof ca, "%s/bundle.pem", dir);
    assert_int_equal(system(command), 0);
    p->client_tls = llmkit_tls_create(&(llmkit_tls_desc){ .ca_file = ca }, &error);
    p->server_tls = llmkit_tls_create(&(llmkit_tls_desc){ .cert_file = cert, .key_file = key },
                                      &error);
    assert_non_null(p->client_tls);
    assert_non_null(p->server_tls);
}

static void turns(pair *p, int n) {
    for (int i = 0; i < n; i++) llmkit_loop_poll(p->loop, 0);
}

static void make_sockets(int fds[2]) {
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_true(lk__sys_prepare(fds[0]) >= 0);
    assert_true(lk__sys_prepare(fds[1]) >= 0);
}

static void pair_connect(pair *p) {
    int fds[2];
    llmkit_error error;
    make_sockets(fds);
    assert_ok(lk__wire_open(&p->a.wire, p->loop, fds[0], &ops, p->client_tls, "localhost", 1,
                            &error));
    assert_ok(lk__wire_open(&p->b.wire, p->loop, fds[1], &ops, p->server_tls, NULL, 0, &error));
    for (int i = 0; i < 1000 && p->client_tls && !(p->a.ready && p->b.ready); i++) turns(p, 1);
    assert_int_equal(p->a.ready, p->client_tls != NULL);
}

static void pair_open(pair *p, bool tls) {
    memset(p, 0, sizeof *p);
    lk_world_init(&p->world);
    p->loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = p->world.env }, NULL);
    lk__buf_init(&p->a.in, &p->world.env, 0);
    lk__buf_init(&p->b.in, &p->world.env, 0);
    if (tls) load_tls(p);
    pair_connect(p);
}

static void pair_close(pair *p) {
    lk__wire_close(&p->a.wire);
    lk__wire_close(&p->b.wire);
    lk__wire_close(&p->b.wire); /* twice is fine */
    lk__buf_free(&p->a.in);
    lk__buf_free(&p->b.in);
    llmkit_tls_release(p->client_tls);
    llmkit_tls_release(p->server_tls);
    llmkit_loop_destroy(p->loop);
    assert_no_leak(&p->world);
}

static void say(end *e, const char *text) {
    llmkit_str piece = lk__str_z(text);
    assert_ok(lk__wire_write(&e->wire, &piece, 1));
}

/* Bytes that show their place, so that nothing is lost, doubled or out of order. */
static llmkit_str numbers(size_t n) {
    static char text[4000000];
    assert_true(n <= sizeof text);
    for (size_t i = 0; i + 8 <= n; i += 8) {
        char word[9];
        snprintf(word, sizeof word, "%08zx", i);
        memcpy(text + i, word, 8);
    }
    return (llmkit_str){ text, n };
}

static void bytes_go_both_ways(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        say(&p.a, "hello");
        say(&p.b, "world");
        turns(&p, 20);
        assert_str(lk__buf_view(&p.b.in), "hello");
        assert_str(lk__buf_view(&p.a.in), "world");
        const llmkit_str pieces[12] = { LK__STR("a"), { NULL, 0 }, LK__STR("b"), LK__STR("c"),
            LK__STR("d"), LK__STR("e"), LK__STR("f"), LK__STR("g"), LK__STR("h"), LK__STR("i"),
            LK__STR("j"), LK__STR("k") };
        assert_ok(lk__wire_write(&p.a.wire, pieces, 12));
        assert_ok(lk__wire_write(&p.a.wire, pieces, 3));
        assert_ok(lk__wire_write(&p.a.wire, pieces, 0));
        turns(&p, 20);
        assert_str(lk__buf_view(&p.b.in), "helloabcdefghijkab");
        assert_int_equal(lk__wire_unsent(&p.a.wire), 0);
        pair_close(&p);
    }
}

static void megabytes_go_both_ways_at_once(void **state) {
    (void)state;
    const size_t n = 3000000;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        llmkit_str all = numbers(n);
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        assert_ok(lk__wire_write(&p.b.wire, &all, 1));
        assert_true(lk__wire_unsent(&p.a.wire) > 0);
        for (int i = 0; i < 100000 && (p.a.in.len < n || p.b.in.len < n); i++) turns(&p, 1);
        assert_int_equal(p.a.in.len, n);
        assert_int_equal(p.b.in.len, n);
        assert_memory_equal(p.a.in.ptr, all.ptr, n);
        assert_memory_equal(p.b.in.ptr, all.ptr, n);
        turns(&p, 3);
        assert_true(p.a.drained > 0);
        assert_true(p.b.drained > 0);
        assert_int_equal(p.a.wire.io.events, LLMKIT_READ);
        pair_close(&p);
    }
}

/* Every write that does not go at once is followed by drained, or the writer waits for ever. */
static void refill(lk__wire *w) {
    end *e = LK__CONTAINER(w, end, wire);
    static char piece[30000];
    if (++e->drained < 100) {
        llmkit_str all = { piece, sizeof piece };
        while (lk__wire_unsent(w) == 0 && e->drained < 100) {
            assert_ok(lk__wire_write(w, &all, 1));
            e->drained++;
        }
    }
}

static void drained_comes_whenever_something_waited(void **state) {
    (void)state;
    static const lk__wire_ops refilling = { on_ready, on_read, on_closed, refill };
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        p.a.wire.ops = p.b.wire.ops = &refilling;
        p.a.drained = p.b.drained = 0;
        refill(&p.a.wire);
        refill(&p.b.wire);
        for (int i = 0; i < 100000 && (p.a.drained < 100 || p.b.drained < 100); i++) turns(&p, 1);
        assert_true(p.a.drained >= 100);
        assert_true(p.b.drained >= 100);
        pair_close(&p);
    }
}

static void echo(end *e, llmkit_str bytes) {
    assert_ok(lk__wire_write(&e->wire, &bytes, 1));
}

/* Also over TLS, where the engine's one buffer is in use when the callback runs. */
static void writing_inside_read_goes_out(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        p.b.on_read = echo;
        for (int i = 0; i < 50; i++) {
            say(&p.a, "ping");
            for (int k = 0; k < 100 && p.a.in.len < 4 * ((size_t)i + 1); k++) turns(&p, 1);
            assert_int_equal(p.a.in.len, 4 * (i + 1));
        }
        pair_close(&p);
        pair_open(&p, tls);
        p.b.on_read = echo;
        llmkit_str all = numbers(1000000);
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        for (int i = 0; i < 100000 && p.a.in.len < all.len; i++) turns(&p, 1);
        assert_int_equal(p.a.in.len, all.len);
        assert_memory_equal(p.a.in.ptr, all.ptr, all.len);
        pair_close(&p);
    }
}

static void close_inside(end *e, llmkit_str bytes) {
    (void)bytes;
    lk__wire_close(&e->wire);
    memset(&e->wire, 0xa5, sizeof e->wire); /* it may be freed memory after that */
}

static void closing_inside_read_is_the_end(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        p.b.on_read = close_inside;
        llmkit_str all = numbers(200000);
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        for (int i = 0; i < 100 && !p.a.closed; i++) turns(&p, 1);
        assert_int_equal(p.b.closed, 0);
        assert_true(p.b.in.len > 0);
        assert_int_equal(p.a.closed, 1);
        memset(&p.b.wire, 0, sizeof p.b.wire);
        pair_close(&p);
    }
}

static void closing_inside_drained_is_the_end(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        p.a.close_when_drained = true;
        llmkit_str all = numbers(2000000);
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        for (int i = 0; i < 100000 && !p.b.closed; i++) turns(&p, 1);
        assert_int_equal(p.b.closed, 1);
        assert_int_equal(p.b.failed, tls); /* TLS misses its close_notify */
        if (tls) assert_err(p.b.error.code, LLMKIT_E_TRUNCATED);
        assert_int_equal(p.b.in.len, all.len);
        pair_close(&p);
    }
}

static void shut_says_so_once_all_is_sent(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        llmkit_str all = numbers(1000000);
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        lk__wire_shut(&p.a.wire);
        lk__wire_shut(&p.a.wire);
        for (int i = 0; i < 100000 && !p.b.closed; i++) turns(&p, 1);
        assert_int_equal(p.b.closed, 1);
        assert_false(p.b.failed);
        assert_int_equal(p.b.in.len, all.len);
        lk__wire_shut(&p.b.wire); /* a closed one: nothing */
        say(&p.b, "nobody");
        pair_close(&p);
    }
}

static void a_paused_wire_reads_nothing(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        llmkit_str all = numbers(2000000);
        lk__wire_pause(&p.b.wire);
        lk__wire_pause(&p.b.wire);
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        turns(&p, 100);
        assert_int_equal(p.b.in.len, 0);
        assert_true(lk__wire_unsent(&p.a.wire) > 1000000);
        for (int i = 0; i < 100000 && p.b.in.len < all.len; i++) { /* on and off */
            lk__wire_resume(&p.b.wire);
            turns(&p, 1);
            lk__wire_pause(&p.b.wire);
            turns(&p, 1);
        }
        assert_int_equal(p.b.in.len, all.len);
        assert_memory_equal(p.b.in.ptr, all.ptr, all.len);
        lk__wire_close(&p.b.wire);
        lk__wire_pause(&p.b.wire);
        lk__wire_resume(&p.b.wire);
        pair_close(&p);
    }
}

static void pause_inside(end *e, llmkit_str bytes) {
    (void)bytes;
    lk__wire_pause(&e->wire);
}

static void pausing_inside_read_loses_nothing(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        p.b.on_read = pause_inside;
        llmkit_str all = numbers(800000);
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        for (int i = 0; i < 100000 && p.b.in.len < all.len; i++) {
            turns(&p, 1);
            size_t before = p.b.in.len;
            turns(&p, 1);
            if (p.b.wire.paused) assert_int_equal(p.b.in.len, before);
            lk__wire_resume(&p.b.wire);
        }
        assert_int_equal(p.b.in.len, all.len);
        assert_memory_equal(p.b.in.ptr, all.ptr, all.len);
        pair_close(&p);
    }
}

/* A server that has had enough says so and closes, while the client still sends. */
static void what_came_before_a_broken_write_is_read(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        pair_open(&p, tls);
        llmkit_str all = numbers(3000000);
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        if (tls) turns(&p, 5);
        lk__wire_pause(&p.b.wire);
        say(&p.b, "413, goodbye");
        if (tls) lk__wire_shut(&p.b.wire);
        lk__wire_close(&p.b.wire);
        for (int i = 0; i < 1000 && !p.a.closed; i++) turns(&p, 1);
        assert_int_equal(p.a.closed, 1);
        assert_str(lk__buf_view(&p.a.in), "413, goodbye");
        pair_close(&p);
    }
}

static void a_handshake_cut_short_is_a_tls_error(void **state) {
    (void)state;
    pair p;
    int fds[2];
    llmkit_error error;
    memset(&p, 0, sizeof p);
    lk_world_init(&p.world);
    p.loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = p.world.env }, NULL);
    lk__buf_init(&p.a.in, &p.world.env, 0);
    lk__buf_init(&p.b.in, &p.world.env, 0);
    load_tls(&p);
    make_sockets(fds);
    assert_ok(lk__wire_open(&p.a.wire, p.loop, fds[0], &ops, p.client_tls, "localhost", 1, &error));
    say(&p.a, "waits for the handshake");
    assert_int_equal(lk__wire_unsent(&p.a.wire), 23);
    turns(&p, 3);
    char hello[4096];
    assert_true(read(fds[1], hello, sizeof hello) > 0);
    close(fds[1]);
    turns(&p, 3);
    assert_int_equal(p.a.closed, 1);
    assert_err(p.a.error.code, LLMKIT_E_TLS);
    pair_close(&p);
}

static void what_is_written_early_goes_after_the_handshake(void **state) {
    (void)state;
    pair p;
    int fds[2];
    llmkit_error error;
    pair_open(&p, true);
    lk__wire_close(&p.a.wire);
    lk__wire_close(&p.b.wire);
    make_sockets(fds);
    p.a.ready = p.b.ready = 0;
    assert_ok(lk__wire_open(&p.a.wire, p.loop, fds[0], &ops, p.client_tls, "localhost", 1, &error));
    assert_ok(lk__wire_open(&p.b.wire, p.loop, fds[1], &ops, p.server_tls, NULL, 0, &error));
    say(&p.a, "early");
    say(&p.b, "bird");
    for (int i = 0; i < 100; i++) turns(&p, 1);
    assert_str(lk__buf_view(&p.b.in), "early");
    assert_str(lk__buf_view(&p.a.in), "bird");
    pair_close(&p);
}

static void a_wrong_host_is_a_certificate_error(void **state) {
    (void)state;
    pair p;
    int fds[2];
    llmkit_error error;
    pair_open(&p, true);
    lk__wire_close(&p.a.wire);
    lk__wire_close(&p.b.wire);
    make_sockets(fds);
    assert_ok(lk__wire_open(&p.a.wire, p.loop, fds[0], &ops, p.client_tls, "other", 1, &error));
    assert_ok(lk__wire_open(&p.b.wire, p.loop, fds[1], &ops, p.server_tls, NULL, 0, &error));
    for (int i = 0; i < 100; i++) turns(&p, 1);
    assert_int_equal(p.a.closed, 1);
    assert_err(p.a.error.code, LLMKIT_E_CERT);
    assert_int_equal(p.b.closed, 1);
    assert_true(p.b.failed); /* it got the alert */
    pair_close(&p);
}

/* ---- faults -----------------------------------------------------------------------------------*/

static int faults_left, fault_errno;
static size_t most_bytes;

static ssize_t faulty_send(int fd, const struct iovec *iov, int count) {
    if (faults_left > 0 && --faults_left == 0) {
        errno = fault_errno;
        return -1;
    }
    if (!most_bytes) return lk__sys_default()->send(fd, iov, count);
    struct iovec one = *iov;
    if (one.iov_len > most_bytes) one.iov_len = most_bytes;
    return lk__sys_default()->send(fd, &one, 1);
}

static ssize_t faulty_recv(int fd, void *buf, size_t len) {
    if (most_bytes && len > most_bytes) len = most_bytes;
    return lk__sys_default()->recv(fd, buf, len);
}

static void a_failed_send_ends_the_wire_by_itself(void **state) {
    (void)state;
    static const int numbers_of[] = { EPIPE, ECONNRESET, ENOBUFS, EPERM };
    for (size_t i = 0; i < 2 * LK__COUNT(numbers_of); i++) {
        pair p;
        lk__sys sys = *lk__sys_default();
        sys.send = faulty_send;
        pair_open(&p, i % 2);
        lk__loop_set_sys(p.loop, &sys);
        most_bytes = 0;
        faults_left = 1;
        fault_errno = numbers_of[i / 2];
        say(&p.a, "lost");
        assert_int_equal(p.a.closed, 0); /* not from inside */
        turns(&p, 3);
        assert_int_equal(p.a.closed, 1);
        assert_err(p.a.error.code, LLMKIT_E_IO);
        assert_int_equal(p.a.error.os_errno, fault_errno);
        pair_close(&p);
    }
}

static void sockets_may_take_and_give_single_bytes(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        pair p;
        lk__sys sys = *lk__sys_default();
        sys.send = faulty_send;
        sys.recv = faulty_recv;
        pair_open(&p, tls);
        lk__loop_set_sys(p.loop, &sys);
        faults_left = 0;
        most_bytes = 1;
        llmkit_str all = numbers(3000);
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        assert_ok(lk__wire_write(&p.b.wire, &all, 1));
        for (int i = 0; i < 100000 && (p.a.in.len < all.len || p.b.in.len < all.len); i++)
            turns(&p, 1);
        assert_memory_equal(p.a.in.ptr, all.ptr, all.len);
        assert_memory_equal(p.b.in.ptr, all.ptr, all.len);
        pair_close(&p);
    }
    most_bytes = 0;
}

static void a_socket_that_is_full_for_a_moment_holds_nothing_up(void **state) {
    (void)state;
    for (int nth = 1; nth <= 12; nth++) {
        pair p;
        lk__sys sys = *lk__sys_default();
        sys.send = faulty_send;
        pair_open(&p, nth % 2);
        lk__loop_set_sys(p.loop, &sys);
        llmkit_str all = numbers(100000);
        faults_left = (nth + 1) / 2;
        fault_errno = EAGAIN;
        assert_ok(lk__wire_write(&p.a.wire, &all, 1));
        for (int i = 0; i < 10000 && p.b.in.len < all.len; i++) turns(&p, 1);
        assert_int_equal(p.b.in.len, all.len);
        pair_close(&p);
    }
    faults_left = 0;
}

/* The engine takes nothing in the middle of a record from the peer. */
static void what_is_written_in_the_middle_of_a_record_goes_after_it(void **state) {
    (void)state;
    pair p;
    lk__sys sys = *lk__sys_default();
    sys.recv = faulty_recv;
    pair_open(&p, true);
    lk__loop_set_sys(p.loop, &sys);
    most_bytes = 7;
    say(&p.a, "a question of some length");
    turns(&p, 1);
    assert_int_equal(p.b.in.len, 0);
    say(&p.b, "the answer");
    turns(&p, 100);
    assert_str(lk__buf_view(&p.b.in), "a question of some length");
    assert_str(lk__buf_view(&p.a.in), "the answer");
    pair_close(&p);
    most_bytes = 0;
}

static void no_memory_while_sending_loses_nothing_unsaid(void **state) {
    (void)state;
    for (unsigned long nth = 1; nth < 8; nth++) {
        pair p;
        pair_open(&p, true);
        llmkit_str all = numbers(1000000);
        p.world.fail_at = p.world.calls + nth;
        if (!lk__wire_write(&p.a.wire, &all, 1)) {
            for (int i = 0; i < 10000 && p.b.in.len < all.len && !p.b.in.failed; i++) turns(&p, 1);
            if (!p.b.in.failed) {
                assert_int_equal(p.b.in.len, all.len);
                assert_memory_equal(p.b.in.ptr, all.ptr, all.len);
            }
        }
        pair_close(&p);
    }
}

static void no_memory_to_keep_bytes_is_told(void **state) {
    (void)state;
    pair p;
    pair_open(&p, false);
    llmkit_str all = numbers(3000000);
    p.world.fail_at = p.world.calls + 1;
    assert_err(lk__wire_write(&p.a.wire, &all, 1), LLMKIT_E_NOMEM);
    pair_close(&p);
}

static void opening_survives_every_refusal(void **state) {
    (void)state;
    pair p;
    pair_open(&p, true);
    lk__wire_close(&p.a.wire);
    lk__wire_close(&p.b.wire);
    LK_EACH_REFUSAL(&p.world) {
        int fds[2];
        llmkit_error error;
        make_sockets(fds);
        llmkit_err err = lk__wire_open(&p.a.wire, p.loop, fds[0], &ops, p.client_tls, "localhost",
                                       1, &error);
        if (err) {
            assert_err(err, LLMKIT_E_NOMEM);
            assert_int_equal(fcntl(fds[0], F_GETFD), -1); /* closed */
            assert_false(lk__wire_is_open(&p.a.wire));
        }
        close(fds[1]);
        lk__wire_close(&p.a.wire);
    }
    pair_close(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(bytes_go_both_ways),
    cmocka_unit_test(megabytes_go_both_ways_at_once),
    cmocka_unit_test(drained_comes_whenever_something_waited),
    cmocka_unit_test(writing_inside_read_goes_out),
    cmocka_unit_test(closing_inside_read_is_the_end),
    cmocka_unit_test(closing_inside_drained_is_the_end),
    cmocka_unit_test(shut_says_so_once_all_is_sent),
    cmocka_unit_test(a_paused_wire_reads_nothing),
    cmocka_unit_test(pausing_inside_read_loses_nothing),
    cmocka_unit_test(what_came_before_a_broken_write_is_read),
    cmocka_unit_test(a_handshake_cut_short_is_a_tls_error),
    cmocka_unit_test(what_is_written_early_goes_after_the_handshake),
    cmocka_unit_test(a_wrong_host_is_a_certificate_error),
    cmocka_unit_test(a_failed_send_ends_the_wire_by_itself),
    cmocka_unit_test(sockets_may_take_and_give_single_bytes),
    cmocka_unit_test(a_socket_that_is_full_for_a_moment_holds_nothing_up),
    cmocka_unit_test(what_is_written_in_the_middle_of_a_record_goes_after_it),
    cmocka_unit_test(no_memory_while_sending_loses_nothing_unsaid),
    cmocka_unit_test(no_memory_to_keep_bytes_is_told),
    cmocka_unit_test(opening_survives_every_refusal),
};

LK_TEST_MAIN(tests)
