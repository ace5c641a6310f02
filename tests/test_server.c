/* test_server.c -- the HTTP server over loopback sockets, with a clock that the test moves */
#include "test.h"

/* ---- a server, and what its handler does --------------------------------------------------------
 *
 * The path says how a request is answered; "/later" keeps the exchange for the test to answer. */

typedef struct rig {
    lk_world           world;
    llmkit_loop       *loop;
    llmkit_server     *server;
    llmkit_server_desc desc;
    llmkit_exchange   *held;
    char               seen[512]; /* what the handler saw of the last request */
    int                handled, closed, writable;
    bool               destroy_when_closed, destroy_when_writable, reply_when_closed;
    size_t             left; /* of the body that "/big" streams */
    size_t             piece;
} rig;

static const int64_t MS = LK__NS_PER_MS;

static void rig_destroy_server(rig *r) {
    llmkit_server_destroy(r->server);
    r->server = NULL;
}

static void on_closed(void *user) {
    rig *r = user;
    llmkit_exchange *x = r->held;
    r->held = NULL;
    r->closed++;
    if (r->reply_when_closed) {
        assert_err(llmkit_exchange_set(x, "a", "b"), LLMKIT_E_STALE);
        assert_err(llmkit_exchange_begin(x, 200, NULL), LLMKIT_E_STALE);
        assert_true(llmkit_exchange_write(x, LLMKIT_STR("x")));
        llmkit_exchange_reply(x, 200, "text/plain", LLMKIT_STR("nobody reads this"));
        llmkit_exchange_end(x);
        llmkit_exchange_abort(x);
    }
    if (r->destroy_when_closed) rig_destroy_server(r);
}

static void hold(rig *r, llmkit_exchange *x) {
    r->held = x;
    llmkit_exchange_closed(x, on_closed, r);
}

/* Writes "/big" until the server takes no more. */
static void write_big(rig *r) {
    static char bytes[200000];
    memset(bytes, 'x', sizeof bytes);
    while (r->left > 0) {
        size_t n = r->left < r->piece ? r->left : r->piece;
        if (!llmkit_exchange_write(r->held, (llmkit_str){ bytes, n })) return;
        r->left -= n;
    }
    llmkit_exchange *x = r->held;
    r->held = NULL;
    llmkit_exchange_end(x);
}

static void on_writable(void *user) {
    rig *r = user;
    r->writable++;
    if (r->destroy_when_writable)
        rig_destroy_server(r);
    else
        write_big(r);
}

static void start_big(rig *r, llmkit_exchange *x) {
    hold(r, x);
    assert_ok(llmkit_exchange_begin(x, 200, "text/plain"));
    llmkit_exchange_writable(x, on_writable, r);
    write_big(r);
}

static void stream_three(llmkit_exchange *x) {
    if (llmkit_exchange_begin(x, 200, "text/plain")) {
        llmkit_exchange_abort(x);
        return;
    }
    llmkit_exchange_write(x, LLMKIT_STR("one"));
    llmkit_exchange_write(x, LLMKIT_STR(""));
    llmkit_exchange_write(x, LLMKIT_STR("twenty"));
    llmkit_exchange_end(x);
}

static void note_request(rig *r, llmkit_exchange *x) {
    llmkit_str method = llmkit_exchange_method(x), path = llmkit_exchange_path(x);
    llmkit_str query = llmkit_exchange_query(x), body = llmkit_exchange_body(x);
    llmkit_str probe = llmkit_exchange_header(x, "x-probe");
    snprintf(r->seen, sizeof r->seen, "%s %s ? %s [%s] %s", method.ptr, path.ptr, query.ptr,
             probe.ptr ? probe.ptr : "-", body.len < 100 ? body.ptr : "...");
    assert_int_equal(method.ptr[method.len] | path.ptr[path.len] | query.ptr[query.len], 0);
    assert_int_equal(body.ptr[body.len], 0);
}

static bool handle(void *user, llmkit_exchange *x) {
    rig *r = user;
    llmkit_str path = llmkit_exchange_path(x);
    note_request(r, x);
    r->handled++;
    if (lk__str_eq(path, LK__STR("/hello"))) {
        llmkit_exchange_set(x, "X-Kind", "greeting");
        llmkit_exchange_reply(x, 200, "text/plain", LLMKIT_STR("hello"));
    } else if (lk__str_eq(path, LK__STR("/echo"))) {
        llmkit_exchange_reply(x, 200, NULL, llmkit_exchange_body(x));
    } else if (lk__str_eq(path, LK__STR("/stream"))) {
        stream_three(x);
    } else if (lk__str_eq(path, LK__STR("/later"))) {
        hold(r, x);
    } else if (lk__str_eq(path, LK__STR("/orphan"))) {
        r->held = x;
    } else if (lk__str_eq(path, LK__STR("/big"))) {
        start_big(r, x);
    } else if (lk__str_eq(path, LK__STR("/nothing"))) {
        llmkit_exchange_reply(x, 204, NULL, LLMKIT_STR(""));
    } else if (lk__str_eq(path, LK__STR("/abort"))) {
        llmkit_exchange_abort(x);
    } else if (lk__str_eq(path, LK__STR("/destroy"))) {
        rig_destroy_server(r);
    } else {
        return false;
    }
    return true;
}

/* r->desc holds what a test wants to be different. */
static void rig_open(rig *r) {
    if (!r->world.env.alloc) lk_world_init_virtual(&r->world, 1000 * LK__NS_PER_S);
    llmkit_error error;
    r->loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = r->world.env }, &error);
    assert_non_null(r->loop);
    r->desc.env = r->world.env;
    r->desc.loop = r->loop;
    r->desc.handle = handle;
    r->desc.user = r;
    r->server = llmkit_server_create(&r->desc, &error);
    if (!r->server) print_error("%s\n", error.message);
    assert_non_null(r->server);
}

static void rig_close(rig *r) {
    llmkit_server_destroy(r->server);
    llmkit_loop_destroy(r->loop);
    assert_no_leak(&r->world);
}

static void turn(rig *r) {
    llmkit_loop_poll(r->loop, 0);
}

static void pass_ms(rig *r, int64_t ms) {
    r->world.now_ns += ms * MS;
    for (int i = 0; i < 3; i++) turn(r);
}

/* ---- a client: a plain socket in the same thread --------------------------------------------- */

typedef struct client {
    int    fd;
    char   in[8192];
    size_t len;
    size_t total; /* bytes received, those no longer in "in" included */
    bool   eof, reset;
} client;

static void dial_nowhere(client *c, int family) {
    memset(c, 0, sizeof *c);
    c->fd = socket(family, SOCK_STREAM, 0);
    assert_true(c->fd >= 0);
}

static bool try_dial(rig *r, client *c) {
    int on = 1; /* small pieces are to arrive as such */
    dial_nowhere(c, AF_INET);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                              .sin_port = htons(llmkit_server_port(r->server)) };
    bool open = connect(c->fd, (struct sockaddr *)(void *)&to, sizeof to) == 0;
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    return open;
}

static void dial(rig *r, client *c) {
    assert_true(try_dial(r, c));
}

static void hang_up(client *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void hang_up_with_reset(client *c) {
    struct linger now = { 1, 0 };
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    hang_up(c);
}

static void say_bytes(client *c, const char *bytes, size_t len) {
    assert_int_equal(send(c->fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

static void say(client *c, const char *text) {
    say_bytes(c, text, strlen(text));
}

/* What the first bytes are is kept; the rest is counted. */
static void hear(client *c) {
    char bytes[16384];
    ssize_t n;
    while (!c->eof && !c->reset && (n = recv(c->fd, bytes, sizeof bytes, 0)) != -1) {
        size_t room = sizeof c->in - 1 - c->len;
        size_t kept = (size_t)n < room ? (size_t)n : room;
        memcpy(c->in + c->len, bytes, kept);
        c->len += kept;
        c->total += (size_t)n;
        c->in[c->len] = '\0';
        c->eof = n == 0;
    }
    if (!c->eof && errno == ECONNRESET) c->reset = true;
}

/* Turns the loop until the condition holds; a real second is for ever here. */
#define UNTIL(r, c, condition)                                                                     \
    do {                                                                                           \
        int turns_ = 0;                                                                            \
        while (turn(r), hear(c), !(condition)) {                                                   \
            if (++turns_ == 2000) fail_msg("never: %s; heard: %s", #condition, (c)->in);           \
            if (turns_ > 100) usleep(500);                                                         \
        }                                                                                          \
    } while (0)

static void expect(rig *r, client *c, const char *text) {
    UNTIL(r, c, strstr(c->in, text) || c->eof || c->reset);
    if (!strstr(c->in, text)) fail_msg("\"%s\" is not in \"%s\"", text, c->in);
}

static void expect_all(rig *r, client *c, const char *text) {
    UNTIL(r, c, c->len >= strlen(text) || c->eof || c->reset);
    assert_string_equal(c->in, text);
}

static void expect_end(rig *r, client *c) {
    UNTIL(r, c, c->eof || c->reset);
    assert_true(c->eof);
}

static void forget(client *c) {
    c->len = 0;
    c->in[0] = '\0';
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: h\r\n\r\n"
#define POST(path, fields, body) "POST " path " HTTP/1.1\r\nHost: h\r\n" fields "\r\n" body
#define HELLO                                                                                      \
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n"                         \
    "X-Kind: greeting\r\n\r\nhello"

/* ---- replies --------------------------------------------------------------------------------- */

static void request_is_answered_to_the_byte(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, "GET /hello?a=1&b=2 HTTP/1.1\r\nHost: h\r\nX-PROBE:  yes \r\n\r\n");
    expect_all(&r, &c, HELLO);
    assert_string_equal(r.seen, "GET /hello ? a=1&b=2 [yes] ");
    hang_up(&c);
    rig_close(&r);
}

static void connection_is_kept_for_the_next_request(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    for (int i = 0; i < 5; i++) {
        say(&c, GET("/hello"));
        expect_all(&r, &c, HELLO);
        forget(&c);
    }
    llmkit_server_stats stats = llmkit_server_read(r.server);
    assert_int_equal(stats.requests, 5);
    assert_int_equal(stats.connections, 1);
    assert_int_equal(stats.open, 1);
    assert_int_equal(stats.in_flight, 0);
    hang_up(&c);
    UNTIL(&r, &c, llmkit_server_read(r.server).open == 0);
    rig_close(&r);
}

static void request_may_be_split_anywhere(void **state) {
    (void)state;
    static const char request[] = POST("/echo?q", "Content-Length: 4\r\n", "body");
    static const char chunked[] = "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
                                  "\r\n3\r\nbod\r\n1;x\r\ny\r\n0\r\nT: 1\r\n\r\n";
    static const char *const each[] = { request, chunked };
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    for (size_t k = 0; k < 2; k++) {
        size_t len = strlen(each[k]);
        for (size_t at = 1; at < len; at++) {
            int turns = 0;
            say_bytes(&c, each[k], at);
            while (llmkit_loop_poll(r.loop, 10) == 0 && ++turns < 100) continue;
            say_bytes(&c, each[k] + at, len - at);
            expect_all(&r, &c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody");
            forget(&c);
        }
    }
    hang_up(&c);
    rig_close(&r);
}

static void request_may_come_byte_by_byte(void **state) {
    (void)state;
    static const char request[] = POST("/echo", "Content-Length: 4\r\n", "body");
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    for (size_t i = 0; i + 1 < sizeof request; i++) {
        say_bytes(&c, request + i, 1);
        turn(&r);
        hear(&c);
        assert_true(i + 2 == sizeof request || c.len == 0);
    }
    expect_all(&r, &c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody");
    hang_up(&c);
    rig_close(&r);
}

static void unknown_path_is_404(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, GET("/who"));
    expect(&r, &c, "HTTP/1.1 404 Not Found\r\n");
    expect(&r, &c, "{\"error\":{\"message\":\"there is nothing at this path\","
                   "\"type\":\"not_found_error\"}}");
    forget(&c);
    say(&c, GET("/hello"));
    expect_all(&r, &c, HELLO);
    hang_up(&c);
    rig_close(&r);
}

static void head_is_answered_without_a_body(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, "HEAD /hello HTTP/1.1\r\nHost: h\r\n\r\n"
            "HEAD /stream HTTP/1.1\r\nHost: h\r\n\r\n" GET("/nothing") GET("/hello"));
    expect_all(&r, &c,
               "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n"
               "X-Kind: greeting\r\n\r\n"
               "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
               "HTTP/1.1 204 No Content\r\n\r\n" HELLO);
    hang_up(&c);
    rig_close(&r);
}

static void stream_is_chunked(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, GET("/stream") GET("/hello"));
    expect_all(&r, &c,
               "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
               "3\r\none\r\n6\r\ntwenty\r\n0\r\n\r\n" HELLO);
    hang_up(&c);
    rig_close(&r);
}

static void streamed_piece_leaves_before_the_next_one(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, GET("/later"));
    UNTIL(&r, &c, r.held);
    assert_ok(llmkit_exchange_begin(r.held, 200, NULL));
    expect(&r, &c, "chunked\r\n\r\n");
    assert_true(llmkit_exchange_write(r.held, LLMKIT_STR("now")));
    expect(&r, &c, "3\r\nnow\r\n");
    llmkit_exchange_end(r.held);
    expect(&r, &c, "0\r\n\r\n");
    hang_up(&c);
    rig_close(&r);
}

static void http_1_0_ends_with_the_connection(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, "GET /stream HTTP/1.0\r\n\r\n");
    expect_end(&r, &c);
    assert_string_equal(c.in, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                              "\r\nonetwenty");
    hang_up(&c);
    dial(&r, &c);
    say(&c, "GET /echo HTTP/1.0\r\n\r\n");
    expect_end(&r, &c);
    assert_string_equal(c.in, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    hang_up(&c);
    rig_close(&r);
}

static void http_1_0_connection_is_kept_where_it_asks(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    for (int i = 0; i < 2; i++) {
        say(&c, "GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        expect_all(&r, &c,
                   "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n");
        forget(&c);
    }
    hang_up(&c);
    rig_close(&r);
}

static void connection_closes_where_the_client_asks(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, "GET /stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    expect_end(&r, &c);
    assert_non_null(strstr(c.in, "Connection: close\r\n"));
    assert_non_null(strstr(c.in, "0\r\n\r\n"));
    hang_up(&c);
    UNTIL(&r, &c, llmkit_server_read(r.server).open == 0);
    rig_close(&r);
}

static void absolute_target_is_understood(void **state) {
    (void)state;
    static const struct { const char *target, *seen; } each[] = {
        { "http://h:1/a/b?c=d", "GET /a/b ? c=d [-] " },
        { "http://h", "GET / ?  [-] " },
        { "*", "GET * ?  [-] " },
        { "/a?b?c", "GET /a ? b?c [-] " },
        { "/x://y", "GET /x://y ?  [-] " },
        { "/?", "GET / ?  [-] " },
    };
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    for (size_t i = 0; i < LK__COUNT(each); i++) {
        char request[128];
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", each[i].target);
        say(&c, request);
        expect(&r, &c, "404");
        assert_string_equal(r.seen, each[i].seen);
        UNTIL(&r, &c, strstr(c.in, "}}"));
        forget(&c);
    }
    hang_up(&c);
    rig_close(&r);
}

static void own_and_malformed_fields_are_refused(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, GET("/later"));
    UNTIL(&r, &c, r.held);
    assert_err(llmkit_exchange_set(r.held, "content-length", "1"), LLMKIT_E_ARG);
    assert_err(llmkit_exchange_set(r.held, "Transfer-Encoding", "chunked"), LLMKIT_E_ARG);
    assert_err(llmkit_exchange_set(r.held, "CONNECTION", "close"), LLMKIT_E_ARG);
    assert_err(llmkit_exchange_set(r.held, "A", "b\r\nC: d"), LLMKIT_E_ARG);
    assert_err(llmkit_exchange_set(r.held, "A b", "c"), LLMKIT_E_ARG);
    assert_err(llmkit_exchange_set(r.held, NULL, "c"), LLMKIT_E_ARG);
    static char long_value[LLMKIT_MAX_HEAD_BYTES + 1];
    memset(long_value, 'v', sizeof long_value - 1);
    assert_err(llmkit_exchange_set(r.held, "A", long_value), LLMKIT_E_TOO_BIG);
    assert_ok(llmkit_exchange_set(r.held, "A", "b"));
    llmkit_exchange_reply(r.held, 200, "text/plain\r\nX: y", LLMKIT_STR(""));
    expect_all(&r, &c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: b\r\n\r\n");
    hang_up(&c);
    rig_close(&r);
}

/* ---- system calls and memory ----------------------------------------------------------------- */

static struct {
    lk__sys sys;
    int     sends, accepts, accept_errno;
} calls;

static ssize_t counting_send(int fd, const struct iovec *iov, int count) {
    calls.sends++;
    return lk__sys_default()->send(fd, iov, count);
}

static int failing_accept(int fd) {
    calls.accepts++;
    if (calls.accept_errno == 0) return lk__sys_default()->accept(fd);
    errno = calls.accept_errno;
    return -1;
}

static void watch_calls(rig *r) {
    memset(&calls, 0, sizeof calls);
    calls.sys = *lk__sys_default();
    calls.sys.send = counting_send;
    calls.sys.accept = failing_accept;
    lk__loop_set_sys(r->loop, &calls.sys);
}

static void reply_takes_one_system_call(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    watch_calls(&r);
    dial(&r, &c);
    say(&c, GET("/hello"));
    expect_all(&r, &c, HELLO);
    assert_int_equal(calls.sends, 1);
    forget(&c);
    say(&c, GET("/stream"));
    expect(&r, &c, "0\r\n\r\n");
    assert_int_equal(calls.sends, 2);
    hang_up(&c);
    rig_close(&r);
}

static void warm_connection_allocates_nothing(void **state) {
    (void)state;
    static const char *const each[] = {
        GET("/hello"), GET("/stream"), POST("/echo", "Content-Length: 4\r\n", "body")
    };
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    unsigned long before = 0;
    for (int i = 0; i < 60; i++) {
        if (i == 6) before = r.world.calls;
        say(&c, each[i % 3]);
        expect(&r, &c, i % 3 == 0 ? "hello" : i % 3 == 1 ? "0\r\n\r\n" : "\r\n\r\nbody");
        forget(&c);
    }
    assert_int_equal(r.world.calls, before);
    hang_up(&c);
    rig_close(&r);
}

static void idle_connection_costs_little(void **state) {
    (void)state;
    static client c[20];
    rig r = { 0 };
    rig_open(&r);
    long before = r.world.bytes;
    for (int i = 0; i < 20; i++) {
        dial(&r, &c[i]);
        say(&c[i], GET("/hello"));
        expect_all(&r, &c[i], HELLO);
    }
    assert_true(r.world.bytes - before < 20 * 1024 + 4096); /* what is spare is the server's */
    for (int i = 0; i < 20; i++) hang_up(&c[i]);
    rig_close(&r);
}

/* A post, a stream and a held exchange, whatever of it can be had. */
static void whole_life(rig *r) {
    client c;
    llmkit_error error;
    r->loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = r->world.env }, &error);
    if (!r->loop) return;
    r->server = llmkit_server_create(
        &(llmkit_server_desc){ .env = r->world.env, .loop = r->loop, .handle = handle, .user = r },
        &error);
    if (r->server) {
        dial(r, &c);
        say(&c, POST("/echo", "Content-Length: 4\r\n", "bo"));
        for (int i = 0; i < 5; i++) turn(r);
        static const char rest[] = "dy" GET("/stream") GET("/later") GET("/hello");
        send(c.fd, rest, sizeof rest - 1, MSG_NOSIGNAL); /* it may be closed by now */
        for (int i = 0; i < 8; i++) turn(r);
        if (r->held) llmkit_exchange_reply(r->held, 200, "text/plain", LLMKIT_STR("held"));
        r->held = NULL;
        for (int i = 0; i < 8; i++) turn(r);
        hear(&c);
        hang_up(&c);
    } else {
        assert_true(error.code == LLMKIT_E_NOMEM);
    }
    llmkit_server_destroy(r->server);
    llmkit_loop_destroy(r->loop);
    r->server = NULL;
    r->held = NULL;
}

static void each_allocation_may_fail(void **state) {
    (void)state;
    rig r = { 0 };
    lk_world_init_virtual(&r.world, 1000 * LK__NS_PER_S);
    int passes = 0;
    LK_EACH_REFUSAL(&r.world) {
        r.handled = 0;
        whole_life(&r);
        passes++;
    }
    assert_true(passes > 10);
    assert_int_equal(r.handled, 4);
}

/* ---- one exchange at a time ------------------------------------------------------------------ */

static void pipelined_requests_are_answered_in_order(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, GET("/hello") GET("/later") POST("/echo", "Content-Length: 3\r\n", "abc")
            GET("/later") GET("/hello"));
    expect_all(&r, &c, HELLO);
    assert_int_equal(r.handled, 2);
    forget(&c);
    llmkit_exchange_reply(r.held, 200, NULL, LLMKIT_STR("x"));
    expect_all(&r, &c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
                       "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
    assert_int_equal(r.handled, 4);
    forget(&c);
    llmkit_exchange_reply(r.held, 200, NULL, LLMKIT_STR("y"));
    expect_all(&r, &c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\ny" HELLO);
    forget(&c);
    say(&c, GET("/hello")); /* it reads again after what was pipelined */
    expect_all(&r, &c, HELLO);
    hang_up(&c);
    rig_close(&r);
}

static void pipelined_input_is_bounded(void **state) {
    (void)state;
    static char junk[100000];
    rig r = { 0 };
    client c;
    memset(junk, 'j', sizeof junk);
    rig_open(&r);
    dial(&r, &c);
    say(&c, GET("/later"));
    UNTIL(&r, &c, r.held);
    for (int i = 0; i < 50; i++) {
        send(c.fd, junk, sizeof junk, MSG_NOSIGNAL); /* in the end the kernel takes none */
        turn(&r);
    }
    assert_true(r.world.bytes < 4 * LLMKIT_READ_BYTES);
    llmkit_exchange_reply(r.held, 200, NULL, LLMKIT_STR("x"));
    expect(&r, &c, "431 Request Header Fields Too Large");
    hang_up(&c);
    rig_close(&r);
}

static void expect_continue_is_answered(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, POST("/echo", "Expect: 100-continue\r\nContent-Length: 4\r\n", ""));
    expect_all(&r, &c, "HTTP/1.1 100 Continue\r\n\r\n");
    forget(&c);
    say(&c, "body");
    expect_all(&r, &c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody");
    forget(&c); /* not where the body is on its way, or there is none */
    say(&c, POST("/echo", "Expect: 100-continue\r\nContent-Length: 4\r\n", "body"));
    expect_all(&r, &c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody");
    forget(&c);
    say(&c, "GET /hello HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n");
    expect_all(&r, &c, HELLO);
    hang_up(&c);
    rig_close(&r);
}

/* ---- limits ---------------------------------------------------------------------------------- */

static void refused(rig *r, const char *request, const char *status, const char *body) {
    client c;
    uint64_t before = llmkit_server_read(r->server).refused;
    dial(r, &c);
    say(&c, request);
    expect_end(r, &c);
    if (strncmp(c.in, status, strlen(status)) != 0) fail_msg("%s, not %s", c.in, status);
    if (!strstr(c.in, body)) fail_msg("\"%s\" is not in \"%s\"", body, c.in);
    assert_non_null(strstr(c.in, "Connection: close\r\n"));
    assert_int_equal(llmkit_server_read(r->server).refused, before + 1);
    hang_up(&c);
}

static void bad_requests_are_refused(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    refused(&r, "GET /hello HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n",
            "{\"error\":{\"message\":\"the request has not exactly one Host field\","
            "\"type\":\"invalid_request_error\"}}");
    refused(&r, "GET  HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 400 ", "}}");
    refused(&r, "\x16\x03\x01 a TLS hello", "HTTP/1.1 400 ", "}}");
    refused(&r, POST("/", "Content-Length: 1\r\nContent-Length: 2\r\n", ""),
            "HTTP/1.1 400 ", "Content-Length");
    refused(&r, POST("/", "Transfer-Encoding: chunked\r\n", "zz\r\n"),
            "HTTP/1.1 400 ", "}}");
    assert_int_equal(r.handled, 0);
    rig_close(&r);
}

static void unknown_transfer_coding_is_501(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    refused(&r, POST("/", "Transfer-Encoding: gzip, chunked\r\n", ""),
            "HTTP/1.1 501 Not Implemented\r\n", "chunked");
    rig_close(&r);
}

static void large_head_is_431(void **state) {
    (void)state;
    rig r = { .desc.max_head_bytes = 1024 };
    char request[2048];
    rig_open(&r);
    snprintf(request, sizeof request, "GET /hello HTTP/1.1\r\nHost: h\r\nX: %01500d\r\n\r\n", 0);
    refused(&r, request, "HTTP/1.1 431 Request Header Fields Too Large\r\n", "too long");
    request[1030] = '\0'; /* its end need not come for that */
    refused(&r, request, "HTTP/1.1 431 ", "too long");
    rig_close(&r);
}

static void many_fields_are_431(void **state) {
    (void)state;
    rig r = { 0 };
    char request[4096] = "GET /hello HTTP/1.1\r\nHost: h\r\n";
    rig_open(&r);
    for (int i = 0; i < LLMKIT_MAX_HEADERS; i++) strcat(request, "a: b\r\n");
    refused(&r, strcat(request, "\r\n"), "HTTP/1.1 431 ", "LLMKIT_MAX_HEADERS");
    rig_close(&r);
}

static void large_body_is_413(void **state) {
    (void)state;
    rig r = { .desc.max_body_bytes = 8 };
    client c;
    rig_open(&r);
    refused(&r, POST("/echo", "Content-Length: 9\r\n", ""),
            "HTTP/1.1 413 Content Too Large\r\n", "\"type\":\"request_too_large\"");
    refused(&r, POST("/echo", "Content-Length: 9\r\nExpect: 100-continue\r\n", ""),
            "HTTP/1.1 413 ", "}}");
    refused(&r, POST("/echo", "Transfer-Encoding: chunked\r\n", "9\r\n123456789"),
            "HTTP/1.1 413 ", "}}");
    dial(&r, &c);
    say(&c, POST("/echo", "Content-Length: 8\r\n", "12345678"));
    expect(&r, &c, "\r\n\r\n12345678");
    hang_up(&c);
    rig_close(&r);
}

/* Closing with unread input would send a reset, which takes the reply away from the reader. */
static void refusal_survives_the_rest_of_the_request(void **state) {
    (void)state;
    static char body[50000];
    rig r = { .desc.max_body_bytes = 8 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, POST("/echo", "Content-Length: 1000000\r\n", ""));
    for (int i = 0; i < 10; i++) {
        say_bytes(&c, body, sizeof body);
        turn(&r);
    }
    expect_end(&r, &c);
    assert_non_null(strstr(c.in, "413"));
    assert_false(c.reset);
    assert_int_equal(llmkit_server_read(r.server).open, 1);
    pass_ms(&r, 2001); /* the client never closes, and is not waited for any longer */
    assert_int_equal(llmkit_server_read(r.server).open, 0);
    hang_up(&c);
    rig_close(&r);
}

static void connections_over_the_limit_wait(void **state) {
    (void)state;
    rig r = { .desc.max_connections = 2 };
    client c[3];
    rig_open(&r);
    for (int i = 0; i < 3; i++) {
        dial(&r, &c[i]);
        say(&c[i], GET("/hello"));
    }
    expect_all(&r, &c[0], HELLO);
    expect_all(&r, &c[1], HELLO);
    for (int i = 0; i < 20; i++) assert_int_equal(llmkit_loop_poll(r.loop, 0), 0); /* no spinning */
    hear(&c[2]);
    assert_int_equal(c[2].len, 0);
    assert_int_equal(llmkit_server_read(r.server).open, 2);
    hang_up(&c[0]);
    expect_all(&r, &c[2], HELLO);
    hang_up(&c[1]);
    hang_up(&c[2]);
    rig_close(&r);
}

static void accepting_pauses_without_descriptors(void **state) {
    (void)state;
    static const int each[] = { EMFILE, ENFILE, ENOBUFS };
    rig r = { 0 };
    client c;
    rig_open(&r);
    watch_calls(&r);
    for (size_t i = 0; i < LK__COUNT(each); i++) {
        calls.accept_errno = each[i];
        calls.accepts = 0;
        dial(&r, &c);
        for (int k = 0; k < 50; k++) turn(&r);
        assert_int_equal(calls.accepts, 1);
        pass_ms(&r, 101);
        assert_int_equal(calls.accepts, 2);
        calls.accept_errno = 0;
        pass_ms(&r, 101);
        say(&c, GET("/hello"));
        expect_all(&r, &c, HELLO);
        hang_up(&c);
        UNTIL(&r, &c, llmkit_server_read(r.server).open == 0);
    }
    rig_close(&r);
}

/* ---- deadlines ------------------------------------------------------------------------------- */

static void open_and_say(rig *r, client *c, const char *text) {
    int before = (int)llmkit_server_read(r->server).open;
    dial(r, c);
    UNTIL(r, c, (int)llmkit_server_read(r->server).open == before + 1);
    if (!text) return;
    say(c, text);
    int turns = 0;
    while (llmkit_loop_poll(r->loop, 10) == 0 && ++turns < 100) continue;
}

static void head_has_a_deadline(void **state) {
    (void)state;
    rig r = { .desc.head_ms = 50 };
    client c;
    rig_open(&r);
    open_and_say(&r, &c, "GET /hello HTTP/1.1\r\n");
    pass_ms(&r, 40);
    say(&c, "Host:"); /* a byte now and then does not move it */
    turn(&r);
    hear(&c);
    assert_int_equal(c.len, 0);
    pass_ms(&r, 11);
    expect_end(&r, &c);
    assert_non_null(strstr(c.in, "HTTP/1.1 408 Request Timeout\r\n"));
    assert_non_null(strstr(c.in, "\"type\":\"timeout_error\""));
    hang_up(&c);
    rig_close(&r);
}

static void body_has_a_deadline_between_bytes(void **state) {
    (void)state;
    rig r = { .desc.body_ms = 50 };
    client c;
    rig_open(&r);
    open_and_say(&r, &c, POST("/echo", "Content-Length: 9\r\n", "1"));
    for (int i = 0; i < 5; i++) {
        pass_ms(&r, 40);
        say(&c, "2");
        while (llmkit_loop_poll(r.loop, 10) == 0) continue;
    }
    hear(&c);
    assert_int_equal(c.len, 0);
    pass_ms(&r, 51);
    expect_end(&r, &c);
    assert_non_null(strstr(c.in, "HTTP/1.1 408 "));
    hang_up(&c);
    rig_close(&r);
}

static void idle_connection_is_closed_in_silence(void **state) {
    (void)state;
    rig r = { .desc.keep_alive_ms = 50 };
    client fresh, used;
    rig_open(&r);
    open_and_say(&r, &fresh, NULL);
    open_and_say(&r, &used, GET("/hello"));
    expect_all(&r, &used, HELLO);
    pass_ms(&r, 30);
    assert_int_equal(llmkit_server_read(r.server).open, 2);
    say(&used, GET("/hello"));
    UNTIL(&r, &used, r.handled == 2);
    pass_ms(&r, 30);
    assert_int_equal(llmkit_server_read(r.server).open, 1);
    expect_end(&r, &fresh);
    assert_int_equal(fresh.len, 0);
    pass_ms(&r, 21);
    expect_end(&r, &used);
    hang_up(&fresh);
    hang_up(&used);
    rig_close(&r);
}

static void exchange_has_no_deadline_of_its_own(void **state) {
    (void)state;
    rig r = { .desc = { .keep_alive_ms = 50, .head_ms = 50, .body_ms = 50, .send_ms = 50 } };
    client c;
    rig_open(&r);
    open_and_say(&r, &c, GET("/later"));
    for (int i = 0; i < 10; i++) pass_ms(&r, 1000);
    assert_int_equal(r.closed, 0);
    llmkit_exchange_reply(r.held, 200, NULL, LLMKIT_STR("late"));
    expect(&r, &c, "late");
    hang_up(&c);
    rig_close(&r);
}

/* Small buffers in the kernel, so that a reader who does not read is noticed soon. */
static void dial_slow_reader(rig *r, client *c) {
    int small = 4096;
    dial_nowhere(c, AF_INET);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                              .sin_port = htons(llmkit_server_port(r->server)) };
    assert_int_equal(connect(c->fd, (struct sockaddr *)(void *)&to, sizeof to), 0);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static void peer_that_takes_nothing_is_cut(void **state) {
    (void)state;
    rig r = { .desc.send_ms = 100, .left = 64 << 20, .piece = 10000 };
    client c;
    rig_open(&r);
    dial_slow_reader(&r, &c);
    say(&c, GET("/big"));
    for (int i = 0; i < 1000 && (r.handled == 0 || r.left == 64 << 20); i++) turn(&r);
    pass_ms(&r, 60);
    assert_int_equal(r.closed, 0);
    for (int i = 0; i < 5; i++) pass_ms(&r, 30);
    assert_int_equal(r.closed, 1);
    assert_int_equal(llmkit_server_read(r.server).in_flight, 0);
    hang_up(&c);
    rig_close(&r);
}

static void slow_reader_gets_everything(void **state) {
    (void)state;
    enum { ALL = 8 << 20 };
    rig r = { .desc.send_ms = 100, .desc.max_unsent_bytes = 65536, .left = ALL, .piece = 5000 };
    client c;
    rig_open(&r);
    dial_slow_reader(&r, &c);
    say(&c, "GET /big HTTP/1.0\r\n\r\n");
    for (int i = 0; i < 100000 && !c.eof; i++) {
        turn(&r);
        assert_true(r.world.bytes < 4 * 65536 + 65536);
        if (i % 4 == 0) r.world.now_ns += 5 * MS;
        hear(&c);
    }
    assert_true(c.eof);
    assert_int_equal(c.total, ALL + strlen("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                                           "Connection: close\r\n\r\n"));
    assert_true(r.writable > 0);
    assert_int_equal(r.closed, 0);
    hang_up(&c);
    rig_close(&r);
}

/* ---- bounds of a streamed reply -------------------------------------------------------------- */

static void piece_over_the_bound_is_taken_when_nothing_waits(void **state) {
    (void)state;
    enum { PIECE = 150000, ALL = 20 * PIECE };
    rig r = { .desc.max_unsent_bytes = 1000, .left = ALL, .piece = PIECE };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, "GET /big HTTP/1.0\r\n\r\n");
    for (int i = 0; i < 100000 && !c.eof; i++) {
        turn(&r);
        hear(&c);
    }
    assert_true(c.eof);
    assert_true(c.total > ALL && c.total < ALL + 200);
    assert_true(r.world.bytes < 2 * PIECE + 4 * LLMKIT_READ_BYTES);
    hang_up(&c);
    rig_close(&r);
}

static void whole_reply_may_be_larger_than_the_bound(void **state) {
    (void)state;
    enum { ALL = 8 << 20 };
    static char body[ALL];
    rig r = { .desc.max_unsent_bytes = 1000 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, GET("/later") GET("/hello"));
    UNTIL(&r, &c, r.held);
    llmkit_exchange_reply(r.held, 200, NULL, (llmkit_str){ body, ALL });
    assert_int_equal(r.handled, 1); /* the next one waits until it is sent */
    UNTIL(&r, &c, c.total > ALL && r.handled == 2);
    hang_up(&c);
    rig_close(&r);
}

/* ---- peers that go, servers that go ---------------------------------------------------------- */

static void peer_that_goes_is_reported_once(void **state) {
    (void)state;
    rig r = { .reply_when_closed = true };
    client c;
    rig_open(&r);
    for (int reset = 0; reset < 2; reset++) {
        open_and_say(&r, &c, GET("/later"));
        assert_non_null(r.held);
        assert_int_equal(llmkit_server_read(r.server).in_flight, 1);
        if (reset)
            hang_up_with_reset(&c);
        else
            hang_up(&c);
        UNTIL(&r, &c, r.closed == reset + 1);
        for (int i = 0; i < 5; i++) turn(&r);
        assert_int_equal(r.closed, reset + 1);
        assert_int_equal(llmkit_server_read(r.server).in_flight, 0);
        assert_int_equal(llmkit_server_read(r.server).open, 0);
    }
    rig_close(&r);
}

static void reset_during_a_stream_is_reported(void **state) {
    (void)state;
    rig r = { .left = 64 << 20, .piece = 10000 };
    client c;
    rig_open(&r);
    dial_slow_reader(&r, &c);
    say(&c, GET("/big"));
    UNTIL(&r, &c, c.total > 10000);
    hang_up_with_reset(&c);
    UNTIL(&r, &c, r.closed == 1);
    assert_int_equal(llmkit_server_read(r.server).open, 0);
    rig_close(&r);
}

static void handle_stays_good_without_a_closed_callback(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    for (int way = 0; way < 4; way++) {
        open_and_say(&r, &c, GET("/orphan"));
        hang_up(&c);
        UNTIL(&r, &c, llmkit_server_read(r.server).open == 0);
        assert_int_equal(llmkit_server_read(r.server).in_flight, 1);
        assert_str(llmkit_exchange_path(r.held), "/orphan");
        assert_err(llmkit_exchange_begin(r.held, 200, NULL), LLMKIT_E_STALE);
        assert_true(llmkit_exchange_write(r.held, LLMKIT_STR("x")));
        if (way == 0) llmkit_exchange_reply(r.held, 200, NULL, LLMKIT_STR("x"));
        if (way == 1) llmkit_exchange_end(r.held);
        if (way == 2) llmkit_exchange_abort(r.held);
        if (way < 3) assert_int_equal(llmkit_server_read(r.server).in_flight, 0);
    }
    rig_close(&r); /* the last one is the server's to free */
}

static void server_may_be_destroyed_anywhere(void **state) {
    (void)state;
    enum { IN_HANDLER, WHEN_CLOSED, WHEN_WRITABLE, OUTSIDE, WAYS };
    for (int way = 0; way < WAYS; way++) {
        rig r = { .destroy_when_closed = way == WHEN_CLOSED,
                  .destroy_when_writable = way == WHEN_WRITABLE,
                  .left = 64 << 20, .piece = 10000 };
        client c, other;
        rig_open(&r);
        dial(&r, &other);
        say(&other, "GET /hel");
        dial_slow_reader(&r, &c);
        say(&c, way == IN_HANDLER      ? GET("/hello") GET("/destroy") GET("/hello")
                : way == WHEN_WRITABLE ? GET("/big")
                                       : GET("/later") GET("/hello"));
        if (way == WHEN_CLOSED || way == OUTSIDE) UNTIL(&r, &c, r.held);
        if (way == WHEN_CLOSED) hang_up(&c);
        if (way == OUTSIDE) rig_destroy_server(&r);
        UNTIL(&r, &c, !r.server);
        assert_int_equal(r.closed, way != IN_HANDLER);
        for (int i = 0; i < 5; i++) turn(&r);
        hang_up(&c);
        hang_up(&other);
        rig_close(&r);
    }
}

static void abort_cuts_the_connection(void **state) {
    (void)state;
    rig r = { 0 };
    client c;
    rig_open(&r);
    dial(&r, &c);
    say(&c, GET("/abort"));
    expect_end(&r, &c);
    assert_int_equal(c.len, 0);
    hang_up(&c);
    open_and_say(&r, &c, GET("/later"));
    assert_ok(llmkit_exchange_begin(r.held, 200, NULL));
    llmkit_exchange_write(r.held, LLMKIT_STR("part"));
    expect(&r, &c, "4\r\npart\r\n");
    llmkit_exchange_abort(r.held);
    expect_end(&r, &c);
    assert_null(strstr(c.in, "0\r\n\r\n"));
    assert_int_equal(r.closed, 0);
    hang_up(&c);
    rig_close(&r);
}

static void drain_finishes_what_is_being_answered(void **state) {
    (void)state;
    rig r = { 0 };
    client idle, busy, late;
    rig_open(&r);
    uint16_t port = llmkit_server_port(r.server);
    open_and_say(&r, &idle, GET("/hello"));
    expect_all(&r, &idle, HELLO);
    open_and_say(&r, &busy, GET("/later"));
    llmkit_server_drain(r.server);
    llmkit_server_drain(r.server);
    expect_end(&r, &idle);
    assert_int_equal(llmkit_server_port(r.server), port);
    assert_false(try_dial(&r, &late));
    hang_up(&late);
    assert_int_equal(llmkit_server_read(r.server).in_flight, 1);
    llmkit_exchange_reply(r.held, 200, NULL, LLMKIT_STR("last"));
    expect_end(&r, &busy);
    assert_string_equal(busy.in,
                        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlast");
    hang_up(&busy);
    hang_up(&idle);
    assert_ok(llmkit_loop_run(r.loop)); /* nothing holds it any more */
    assert_int_equal(llmkit_server_read(r.server).open, 0);
    rig_close(&r);
}

/* ---- where it listens ------------------------------------------------------------------------ */

static void unix_path(char *path, size_t size, const char *name) {
    snprintf(path, size, "/tmp/lk_test_server_%d_%s", (int)getpid(), name);
    unlink(path);
}

static llmkit_err listen_error(rig *r, const char *where, char *message) {
    llmkit_error error;
    llmkit_server *s = llmkit_server_create(
        &(llmkit_server_desc){ .env = r->world.env, .loop = r->loop, .listen = where,
                               .handle = handle, .user = r },
        &error);
    if (s) {
        llmkit_server_destroy(s);
        return LLMKIT_OK;
    }
    strcpy(message, error.message);
    return error.code;
}

static void unix_socket_is_served_and_removed(void **state) {
    (void)state;
    char path[100], where[110];
    unix_path(path, sizeof path, "served");
    snprintf(where, sizeof where, "unix:%s", path);
    rig r = { .desc.listen = where };
    client c;
    rig_open(&r);
    assert_int_equal(llmkit_server_port(r.server), 0);
    dial_nowhere(&c, AF_UNIX);
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    strcpy(to.sun_path, path);
    assert_int_equal(connect(c.fd, (struct sockaddr *)(void *)&to, sizeof to), 0);
    fcntl(c.fd, F_SETFL, O_NONBLOCK);
    say(&c, GET("/hello"));
    expect_all(&r, &c, HELLO);
    hang_up(&c);
    rig_close(&r);
    assert_int_equal(access(path, F_OK), -1);
}

static void only_a_dead_socket_file_is_replaced(void **state) {
    (void)state;
    char path[100], where[110], message[256];
    unix_path(path, sizeof path, "stale");
    snprintf(where, sizeof where, "unix:%s", path);
    rig r = { 0 };
    rig_open(&r);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    strcpy(at.sun_path, path);
    assert_int_equal(bind(fd, (struct sockaddr *)(void *)&at, sizeof at), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_err(listen_error(&r, where, message), LLMKIT_E_IO); /* somebody serves it */
    close(fd);
    assert_ok(listen_error(&r, where, message)); /* it is dead */
    assert_int_equal(access(path, F_OK), -1);
    fd = open(path, O_CREAT | O_WRONLY, 0600);
    close(fd);
    assert_err(listen_error(&r, where, message), LLMKIT_E_IO); /* no socket at all */
    assert_int_equal(access(path, F_OK), 0);
    unlink(path);
    rig_close(&r);
}

static void bad_places_to_listen_are_named(void **state) {
    (void)state;
    static const struct { const char *where, *message; } each[] = {
        { "", "listen: '' does not end in :PORT" },
        { "127.0.0.1", "listen: '127.0.0.1' does not end in :PORT" },
        { "127.0.0.1:", "listen: '127.0.0.1:' does not end in :PORT" },
        { "127.0.0.1:65536", "listen: '127.0.0.1:65536' does not end in :PORT" },
        { "127.0.0.1:+80", "listen: '127.0.0.1:+80' does not end in :PORT" },
        { "example.org:80", "listen: 'example.org' is no IP address" },
        { "unix:", "listen: a socket path has 1 to 107 bytes" },
    };
    char message[256], taken[64];
    rig r = { 0 };
    rig_open(&r);
    for (size_t i = 0; i < LK__COUNT(each); i++) {
        assert_err(listen_error(&r, each[i].where, message), LLMKIT_E_ARG);
        assert_string_equal(message, each[i].message);
    }
    snprintf(taken, sizeof taken, "127.0.0.1:%d", llmkit_server_port(r.server));
    assert_err(listen_error(&r, taken, message), LLMKIT_E_IO);
    assert_non_null(strstr(message, taken));
    assert_ok(listen_error(&r, "localhost:0", message));
    rig_close(&r);
}

static void bad_descs_are_refused(void **state) {
    (void)state;
    rig r = { 0 };
    llmkit_error error;
    rig_open(&r);
    assert_null(llmkit_server_create(NULL, &error));
    assert_err(error.code, LLMKIT_E_ARG);
    assert_null(llmkit_server_create(&(llmkit_server_desc){ .handle = handle }, &error));
    assert_err(error.code, LLMKIT_E_ARG);
    assert_null(llmkit_server_create(&(llmkit_server_desc){ .loop = r.loop }, NULL));
    assert_null(llmkit_server_create(
        &(llmkit_server_desc){ ._guard1 = 1, .loop = r.loop, .handle = handle }, &error));
    assert_err(error.code, LLMKIT_E_NOT_ZEROED);
    llmkit_server_destroy(NULL);
    llmkit_server_drain(NULL);
    assert_int_equal(llmkit_server_port(NULL), 0);
    rig_close(&r);
}

/* ---- TLS ------------------------------------------------------------------------------------- */

#if LLMKIT_WITH_TLS

/* LK_CERTS, or build/certs, made by tests/make_certs where it is not there yet. */
static const char *cert(const char *name) {
    static char path[4][512];
    static unsigned next;
    const char *dir = getenv("LK_CERTS");
    char command[600];
    if (!dir) dir = "build/certs";
    const char *slash = strrchr(__FILE__, '/');
    snprintf(command, sizeof command, "%.*s/make_certs '%s'", slash ? (int)(slash - __FILE__) : 1,
             slash ? __FILE__ : ".", dir);
    if (next == 0) assert_int_equal(system(command), 0);
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}

typedef struct tls_client {
    lk__wire wire;
    client   c; /* what was heard */
    bool     ready;
} tls_client;

static void tls_ready(lk__wire *w) {
    LK__CONTAINER(w, tls_client, wire)->ready = true;
}

static void tls_read(lk__wire *w, llmkit_str bytes) {
    client *c = &LK__CONTAINER(w, tls_client, wire)->c;
    size_t room = sizeof c->in - 1 - c->len;
    size_t kept = bytes.len < room ? bytes.len : room;
    memcpy(c->in + c->len, bytes.ptr, kept);
    c->len += kept;
    c->total += bytes.len;
    c->in[c->len] = '\0';
}

static void tls_closed(lk__wire *w, const llmkit_error *error) {
    client *c = &LK__CONTAINER(w, tls_client, wire)->c;
    if (error) print_message("%s\n", error->message);
    c->eof = !error;
    c->reset = error != NULL;
}

static const lk__wire_ops tls_ops = { tls_ready, tls_read, tls_closed, NULL };

static void tls_dial(rig *r, tls_client *t, llmkit_tls *trust) {
    memset(t, 0, sizeof *t);
    dial(r, &t->c);
    int fd = t->c.fd;
    t->c.fd = -1;
    assert_ok(lk__wire_open(&t->wire, r->loop, fd, &tls_ops, trust, "localhost", 0, NULL));
    UNTIL(r, &t->c, t->ready || t->c.eof || t->c.reset);
    assert_true(t->ready);
}

static void tls_say(tls_client *t, const char *text) {
    llmkit_str piece = lk__str_z(text);
    assert_ok(lk__wire_write(&t->wire, &piece, 1));
}

static void tls_rig_open(rig *r, llmkit_tls **trust) {
    lk_world_init_virtual(&r->world, 1000 * LK__NS_PER_S);
    llmkit_tls_desc server = { .env = r->world.env, .cert_file = cert("ec.pem"),
                               .key_file = cert("ec.key") };
    llmkit_tls_desc peer = { .env = r->world.env, .ca_file = cert("bundle.pem") };
    r->desc.tls = llmkit_tls_create(&server, NULL);
    *trust = llmkit_tls_create(&peer, NULL);
    assert_non_null(r->desc.tls);
    assert_non_null(*trust);
    rig_open(r);
    llmkit_tls_release(r->desc.tls); /* the server has its own reference */
}

static void tls_replies_are_whole_and_streamed(void **state) {
    (void)state;
    rig r = { .left = 4 << 20, .piece = 30000 };
    llmkit_tls *trust;
    tls_client t;
    tls_rig_open(&r, &trust);
    tls_dial(&r, &t, trust);
    for (int i = 0; i < 3; i++) {
        tls_say(&t, GET("/hello"));
        expect_all(&r, &t.c, HELLO);
        forget(&t.c);
        tls_say(&t, POST("/echo", "Content-Length: 4\r\n", "body") GET("/stream"));
        expect_all(&r, &t.c,
                   "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
                   "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked"
                   "\r\n\r\n3\r\none\r\n6\r\ntwenty\r\n0\r\n\r\n");
        forget(&t.c);
    }
    t.c.total = 0;
    tls_say(&t, "GET /big HTTP/1.0\r\n\r\n");
    UNTIL(&r, &t.c, t.c.eof || t.c.reset);
    assert_true(t.c.eof); /* with close_notify: it was not cut short */
    assert_true(t.c.total > 4 << 20 && t.c.total < (4 << 20) + 200);
    lk__wire_close(&t.wire);
    UNTIL(&r, &t.c, llmkit_server_read(r.server).open == 0);
    llmkit_server_destroy(r.server);
    llmkit_loop_destroy(r.loop);
    llmkit_tls_release(trust);
    assert_no_leak(&r.world);
}

static void tls_handshake_has_a_deadline(void **state) {
    (void)state;
    rig r = { .desc.head_ms = 50 };
    llmkit_tls *trust;
    client c;
    tls_rig_open(&r, &trust);
    open_and_say(&r, &c, "\x16\x03\x01");
    pass_ms(&r, 40);
    assert_int_equal(llmkit_server_read(r.server).open, 1);
    pass_ms(&r, 11);
    assert_int_equal(llmkit_server_read(r.server).open, 0);
    hang_up(&c);
    llmkit_tls_release(trust);
    rig_close(&r);
}

static void tls_without_a_certificate_is_refused(void **state) {
    (void)state;
    rig r = { 0 };
    llmkit_error error;
    llmkit_tls *trust;
    tls_rig_open(&r, &trust);
    llmkit_server_desc desc = { .loop = r.loop, .handle = handle, .tls = trust };
    assert_null(llmkit_server_create(&desc, &error));
    assert_err(error.code, LLMKIT_E_ARG);
    assert_string_equal(error.message, "llmkit_server_desc.tls has no certificate to serve with");
    llmkit_tls_release(trust);
    rig_close(&r);
}

#endif

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(request_is_answered_to_the_byte),
    cmocka_unit_test(connection_is_kept_for_the_next_request),
    cmocka_unit_test(request_may_be_split_anywhere),
    cmocka_unit_test(request_may_come_byte_by_byte),
    cmocka_unit_test(unknown_path_is_404),
    cmocka_unit_test(head_is_answered_without_a_body),
    cmocka_unit_test(stream_is_chunked),
    cmocka_unit_test(streamed_piece_leaves_before_the_next_one),
    cmocka_unit_test(http_1_0_ends_with_the_connection),
    cmocka_unit_test(http_1_0_connection_is_kept_where_it_asks),
    cmocka_unit_test(connection_closes_where_the_client_asks),
    cmocka_unit_test(absolute_target_is_understood),
    cmocka_unit_test(own_and_malformed_fields_are_refused),
    cmocka_unit_test(reply_takes_one_system_call),
    cmocka_unit_test(warm_connection_allocates_nothing),
    cmocka_unit_test(idle_connection_costs_little),
    cmocka_unit_test(each_allocation_may_fail),
    cmocka_unit_test(pipelined_requests_are_answered_in_order),
    cmocka_unit_test(pipelined_input_is_bounded),
    cmocka_unit_test(expect_continue_is_answered),
    cmocka_unit_test(bad_requests_are_refused),
    cmocka_unit_test(unknown_transfer_coding_is_501),
    cmocka_unit_test(large_head_is_431),
    cmocka_unit_test(many_fields_are_431),
    cmocka_unit_test(large_body_is_413),
    cmocka_unit_test(refusal_survives_the_rest_of_the_request),
    cmocka_unit_test(connections_over_the_limit_wait),
    cmocka_unit_test(accepting_pauses_without_descriptors),
    cmocka_unit_test(head_has_a_deadline),
    cmocka_unit_test(body_has_a_deadline_between_bytes),
    cmocka_unit_test(idle_connection_is_closed_in_silence),
    cmocka_unit_test(exchange_has_no_deadline_of_its_own),
    cmocka_unit_test(peer_that_takes_nothing_is_cut),
    cmocka_unit_test(slow_reader_gets_everything),
    cmocka_unit_test(piece_over_the_bound_is_taken_when_nothing_waits),
    cmocka_unit_test(whole_reply_may_be_larger_than_the_bound),
    cmocka_unit_test(peer_that_goes_is_reported_once),
    cmocka_unit_test(reset_during_a_stream_is_reported),
    cmocka_unit_test(handle_stays_good_without_a_closed_callback),
    cmocka_unit_test(server_may_be_destroyed_anywhere),
    cmocka_unit_test(abort_cuts_the_connection),
    cmocka_unit_test(drain_finishes_what_is_being_answered),
    cmocka_unit_test(unix_socket_is_served_and_removed),
    cmocka_unit_test(only_a_dead_socket_file_is_replaced),
    cmocka_unit_test(bad_places_to_listen_are_named),
    cmocka_unit_test(bad_descs_are_refused),
#if LLMKIT_WITH_TLS
    cmocka_unit_test(tls_replies_are_whole_and_streamed),
    cmocka_unit_test(tls_handshake_has_a_deadline),
    cmocka_unit_test(tls_without_a_certificate_is_refused),
#endif
};

LK_TEST_MAIN(tests)
