/* test_fetch.c -- exchanges on a pool of connections: reuse, limits, ages, deadlines, faults */
#include "peer.h"

static const int64_t MS = LK__NS_PER_MS;

typedef struct get {
    lk__fetch    fetch;
    int          heads, dones, status;
    char         body[256];
    bool         done, stop_in_head, stop_in_body, again;
    llmkit_error error;
    struct get  *next; /* started when this one is done */
} get;

typedef struct bench {
    lk_world     world;
    llmkit_loop *loop, *peer_loop;
    peer         peer;
    lk__pool_desc desc;
    lk__pool    *pool;
    lk__origin  *origin;
    char         url[64];
    const char  *reply; /* to each request; NULL: none */
} bench;

static const char *const good = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

static void on_head(lk__fetch *f, const lk__head *head) {
    get *g = LK__CONTAINER(f, get, fetch);
    g->heads++;
    g->status = head->status;
    if (g->stop_in_head) lk__fetch_stop(f);
}

static void on_body(lk__fetch *f, llmkit_str piece) {
    get *g = LK__CONTAINER(f, get, fetch);
    size_t at = strlen(g->body);
    assert_int_equal(g->heads, 1);
    if (at + piece.len < sizeof g->body) memcpy(g->body + at, piece.ptr, piece.len);
    if (g->stop_in_body) lk__fetch_stop(f);
}

static void on_done(lk__fetch *f, const llmkit_error *error) {
    get *g = LK__CONTAINER(f, get, fetch);
    g->dones++;
    g->done = true;
    if (error) g->error = *error;
    if (g->next) lk__fetch_start(&g->next->fetch);
}

static void answer(peer_conn *c, llmkit_str request) {
    bench *b = c->peer->user;
    (void)request;
    if (b->reply) peer_say(c, b->reply);
}

static void bench_open_pool(bench *b) {
    lk__url url;
    llmkit_error error;
    snprintf(b->url, sizeof b->url, "http://127.0.0.1:%d/", b->peer.port);
    b->desc.env = &b->world.env;
    b->desc.loop = b->loop;
    if (!b->desc.max_connections) b->desc.max_connections = 100;
    if (!b->desc.keep_alive_ns) b->desc.keep_alive_ns = 60000 * MS;
    if (!b->desc.max_age_ns) b->desc.max_age_ns = 600000 * MS;
    if (!b->desc.dns_ns) b->desc.dns_ns = 60000 * MS;
    b->pool = lk__pool_create(&b->desc, &error);
    if (!b->pool) return;
    assert_ok(lk__url_parse(&url, lk__str_z(b->url), &error));
    b->origin = lk__pool_origin(b->pool, &url, &error);
}

static void bench_open(bench *b) {
    lk_world_init_virtual(&b->world, 0);
    b->peer_loop = llmkit_loop_create(NULL, NULL);
    b->loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = b->world.env }, NULL);
    b->peer.answer = answer;
    b->peer.user = b;
    if (!b->reply) b->reply = good;
    peer_open(&b->peer, b->peer_loop);
    bench_open_pool(b);
    assert_non_null(b->origin);
}

static void bench_close(bench *b) {
    lk__pool_destroy(b->pool);
    llmkit_loop_destroy(b->loop);
    peer_close(&b->peer);
    llmkit_loop_destroy(b->peer_loop);
    assert_no_leak(&b->world);
}

static void turns(bench *b, int n) {
    peer_turns(&b->peer, b->loop, n);
}

static void pass(bench *b, int64_t ms) {
    b->world.now_ns += ms * MS;
    turns(b, 5);
}

static const char *const head = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

static void get_init(bench *b, get *g) {
    memset(g, 0, sizeof *g);
    g->fetch.origin = b->origin;
    g->fetch.head = lk__str_z(head);
    g->fetch.on_head = on_head;
    g->fetch.on_body = on_body;
    g->fetch.on_done = on_done;
}

static void get_start(bench *b, get *g) {
    get_init(b, g);
    lk__fetch_start(&g->fetch);
    assert_int_equal(g->dones, 0);
}

static void get_wait(bench *b, get *g) {
    peer_until(&b->peer, b->loop, &g->done);
    assert_int_equal(g->dones, 1);
}

static void get_ok(bench *b) {
    get g;
    get_start(b, &g);
    get_wait(b, &g);
    assert_ok(g.error.code);
    assert_string_equal(g.body, "ok");
}

/* ---- the life of connections ------------------------------------------------------------------*/

static void an_idle_connection_is_closed_after_keep_alive(void **state) {
    (void)state;
    bench b = { .desc = { .keep_alive_ns = 1000 * 1000000LL } };
    bench_open(&b);
    get_ok(&b);
    assert_int_equal(lk__pool_read(b.pool).idle, 1);
    pass(&b, 999);
    get_ok(&b);
    assert_int_equal(lk__pool_read(b.pool).reused, 1);
    pass(&b, 999);
    assert_int_equal(lk__pool_read(b.pool).open, 1);
    pass(&b, 2);
    assert_int_equal(lk__pool_read(b.pool).open, 0);
    assert_int_equal(lk__pool_read(b.pool).idle, 0);
    turns(&b, 5);
    assert_int_equal(peer_open_conns(&b.peer), 0);
    get_ok(&b);
    assert_int_equal(lk__pool_read(b.pool).connects, 2);
    bench_close(&b);
}

static void an_old_connection_is_retired(void **state) {
    (void)state;
    bench b = { .desc = { .max_age_ns = 3000 * 1000000LL } };
    bench_open(&b);
    for (int i = 0; i < 4; i++) {
        get_ok(&b);
        pass(&b, 1000);
    }
    assert_int_equal(lk__pool_read(b.pool).connects, 2); /* the fourth found it too old */
    b.reply = NULL;
    get g;
    get_start(&b, &g);
    turns(&b, 10);
    pass(&b, 5000); /* it grows old while it works, and goes when that is done */
    peer_say(b.peer.last, good);
    get_wait(&b, &g);
    assert_int_equal(lk__pool_read(b.pool).open, 0);
    bench_close(&b);
}

static void a_server_may_close_an_idle_connection(void **state) {
    (void)state;
    bench b = { .loop = NULL };
    bench_open(&b);
    get_ok(&b);
    peer_hang_up(b.peer.last);
    turns(&b, 5);
    assert_int_equal(lk__pool_read(b.pool).open, 0);
    get_ok(&b);
    peer_say(b.peer.last, "HTTP/1.1 408 Too Late\r\n\r\n"); /* what nobody asked for */
    turns(&b, 5);
    assert_int_equal(lk__pool_read(b.pool).open, 0);
    get_ok(&b);
    assert_int_equal(lk__pool_read(b.pool).connects, 3);
    assert_int_equal(lk__pool_read(b.pool).resent, 0);
    bench_close(&b);
}

static void a_server_may_ask_for_the_end(void **state) {
    (void)state;
    bench b = { .reply = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok" };
    bench_open(&b);
    get_ok(&b);
    get_ok(&b);
    assert_int_equal(lk__pool_read(b.pool).connects, 2);
    bench_close(&b);
}

static void bytes_behind_a_response_end_its_connection(void **state) {
    (void)state;
    bench b = { .reply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore" };
    bench_open(&b);
    get_ok(&b);
    assert_int_equal(lk__pool_read(b.pool).open, 0);
    bench_close(&b);
}

static void warming_opens_connections_ahead(void **state) {
    (void)state;
    bench b = { .desc = { .max_connections = 10 } };
    bench_open(&b);
    lk__origin_warm(b.origin, 4);
    assert_true(lk__origin_is_warming(b.origin));
    for (int i = 0; i < 100 && lk__origin_is_warming(b.origin); i++) turns(&b, 1);
    assert_int_equal(lk__pool_read(b.pool).idle, 4);
    lk__origin_warm(b.origin, 1000); /* no more than there may be */
    for (int i = 0; i < 100 && lk__origin_is_warming(b.origin); i++) turns(&b, 1);
    assert_false(lk__origin_is_warming(b.origin));
    assert_int_equal(lk__pool_read(b.pool).open, 10);
    get_ok(&b);
    assert_int_equal(lk__pool_read(b.pool).connects, 10);
    bench_close(&b);
}

static void warming_ends_where_nobody_listens(void **state) {
    (void)state;
    bench b = { .loop = NULL };
    bench_open(&b);
    peer_deafen(&b.peer);
    lk__origin_warm(b.origin, 4);
    for (int i = 0; i < 100 && lk__origin_is_warming(b.origin); i++) turns(&b, 1);
    assert_false(lk__origin_is_warming(b.origin));
    assert_int_equal(lk__pool_read(b.pool).open, 0);
    bench_close(&b);
}

static void origins_are_told_apart(void **state) {
    (void)state;
    bench b = { .loop = NULL };
    bench_open(&b);
    static const char *const urls[] = { "http://a", "https://a", "http://a:81", "unix:/a:/",
                                        "unix:/b:/", "http://localhost", "https://a:81" };
    lk__origin *seen[LK__COUNT(urls)];
    for (size_t i = 0; i < LK__COUNT(urls); i++) {
        lk__url url;
        llmkit_error error;
        assert_ok(lk__url_parse(&url, lk__str_z(urls[i]), &error));
        seen[i] = lk__pool_origin(b.pool, &url, &error);
        assert_non_null(seen[i]);
        assert_ptr_equal(lk__pool_origin(b.pool, &url, &error), seen[i]);
        for (size_t k = 0; k < i; k++) assert_ptr_not_equal(seen[i], seen[k]);
    }
    lk__url url;
    llmkit_error error;
    assert_ok(lk__url_parse(&url, LK__STR("http://A:80/other"), &error));
    assert_ptr_equal(lk__pool_origin(b.pool, &url, &error), seen[0]);
    bench_close(&b);
}

/* ---- waiting ----------------------------------------------------------------------------------*/

static void those_that_wait_are_served_in_order_and_may_leave(void **state) {
    (void)state;
    bench b = { .desc = { .max_connections = 1 } };
    bench_open(&b);
    b.reply = NULL;
    get g[5];
    for (int i = 0; i < 5; i++) get_start(&b, &g[i]);
    turns(&b, 10);
    assert_int_equal(b.peer.accepted, 1);
    lk__fetch_stop(&g[2].fetch);
    for (int i = 0; i < 5; i++) {
        if (i == 2) continue;
        for (int k = 0; k < 5; k++) assert_int_equal(g[k].done, k < i && k != 2);
        peer_say(b.peer.last, good);
        get_wait(&b, &g[i]);
        turns(&b, 3);
    }
    assert_int_equal(g[2].dones, 0);
    assert_int_equal(b.peer.requests, 4);
    bench_close(&b);
}

static void an_idle_connection_serves_while_another_is_opened(void **state) {
    (void)state;
    bench b = { .loop = NULL };
    bench_open(&b);
    get one, two;
    b.reply = NULL;
    get_start(&b, &one);
    get_start(&b, &two);
    turns(&b, 10);
    assert_int_equal(b.peer.accepted, 2);
    for (size_t i = 0; i < 2; i++) peer_say(b.peer.conns[i], good);
    get_wait(&b, &one);
    get_wait(&b, &two);
    assert_int_equal(lk__pool_read(b.pool).idle, 2);
    get_start(&b, &one); /* its connection dies unheard: it waits for a new one, */
    turns(&b, 3);
    peer_reset(b.peer.last);
    peer_deafen(&b.peer);
    b.reply = good;
    llmkit_loop_poll(b.loop, 0);
    assert_int_equal(lk__pool_read(b.pool).resent, 1);
    get_start(&b, &two); /* which does not keep this one from the other, that is idle */
    get_wait(&b, &two);
    assert_ok(two.error.code);
    get_wait(&b, &one);
    assert_err(one.error.code, LLMKIT_E_CONNECT);
    bench_close(&b);
}

static void what_done_starts_uses_the_same_connection(void **state) {
    (void)state;
    bench b = { .desc = { .max_connections = 1 } };
    bench_open(&b);
    get one, two;
    get_init(&b, &two);
    get_init(&b, &one);
    one.next = &two;
    lk__fetch_start(&one.fetch);
    get_wait(&b, &two);
    assert_int_equal(b.peer.accepted, 1);
    bench_close(&b);
}

/* ---- responses --------------------------------------------------------------------------------*/

static void a_fetch_may_stop_in_any_callback(void **state) {
    (void)state;
    for (int where = 0; where < 2; where++) {
        bench b = { .loop = NULL };
        bench_open(&b);
        get g;
        get_init(&b, &g);
        g.stop_in_head = where == 0;
        g.stop_in_body = where == 1;
        lk__fetch_start(&g.fetch);
        turns(&b, 20);
        assert_int_equal(g.dones, 0);
        assert_int_equal(g.heads, 1);
        assert_int_equal(lk__pool_read(b.pool).open, 0);
        lk__fetch_stop(&g.fetch);
        bench_close(&b);
    }
}

static void interim_responses_and_head_requests_are_understood(void **state) {
    (void)state;
    bench b = { .reply = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"
                         "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" };
    bench_open(&b);
    get_ok(&b);
    b.reply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    get g;
    get_init(&b, &g);
    g.fetch.head_only = true;
    lk__fetch_start(&g.fetch);
    get_wait(&b, &g);
    assert_ok(g.error.code);
    b.reply = good;
    get_ok(&b);
    assert_int_equal(b.peer.accepted, 1);
    bench_close(&b);
}

/* A server that answers before it has read all, and reads no more. */
static void early_answer(peer_conn *c, llmkit_str request) {
    (void)request;
    if (c->requests > 0) return;
    peer_say(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
    lk__wire_pause(&c->wire);
    c->peer->last = c;
}

static void an_early_response_is_heard(void **state) {
    (void)state;
    static char body[8000000];
    for (int end = 0; end < 2; end++) {
        bench b = { .loop = NULL };
        bench_open(&b);
        b.peer.early = true;
        b.peer.answer = early_answer;
        get g;
        get_init(&b, &g);
        memset(body, 'x', sizeof body);
        g.fetch.head = LK__STR("POST / HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n");
        g.fetch.body = (llmkit_str){ body, sizeof body };
        lk__fetch_start(&g.fetch);
        for (int i = 0; i < 1000 && !b.peer.requests; i++) turns(&b, 1);
        if (end) peer_hang_up(b.peer.last); /* with a reset, since much is unread */
        get_wait(&b, &g);
        assert_ok(g.error.code);
        assert_int_equal(g.status, 413);
        assert_string_equal(g.body, "no");
        assert_int_equal(lk__pool_read(b.pool).open, 0); /* it cannot serve another */
        bench_close(&b);
    }
}

static void a_large_request_goes_out_whole(void **state) {
    (void)state;
    static char body[3000000];
    bench b = { .loop = NULL };
    bench_open(&b);
    for (int i = 0; i < 3; i++) {
        get g;
        get_init(&b, &g);
        memset(body, 'x', sizeof body);
        g.fetch.head = LK__STR("POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n");
        g.fetch.body = (llmkit_str){ body, sizeof body };
        lk__fetch_start(&g.fetch);
        get_wait(&b, &g);
        assert_ok(g.error.code);
    }
    assert_int_equal(b.peer.accepted, 1);
    bench_close(&b);
}

/* ---- deadlines --------------------------------------------------------------------------------*/

static void a_slow_upload_is_not_silence(void **state) {
    (void)state;
    static char body[24000000]; /* much more than the kernel holds */
    bench b = { .loop = NULL };
    int rcvbuf = 100000;
    bench_open(&b);
    setsockopt(b.peer.io.fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof rcvbuf);
    get g;
    get_init(&b, &g);
    memset(body, 'x', sizeof body);
    g.fetch.head = LK__STR("POST / HTTP/1.1\r\nContent-Length: 24000000\r\n\r\n");
    g.fetch.body = (llmkit_str){ body, sizeof body };
    g.fetch.first_byte_ns = 1000 * MS;
    b.reply = NULL;
    lk__fetch_start(&g.fetch);
    turns(&b, 5);
    lk__wire *w = &b.peer.last->wire;
    for (int i = 0; i < 5; i++) { /* a part of it each 999 ms */
        size_t before = b.peer.last->in.len;
        lk__wire_pause(w);
        pass(&b, 999);
        assert_false(g.done);
        lk__wire_resume(w);
        while (b.peer.last->in.len < before + 3000000) turns(&b, 1);
    }
    for (int i = 0; i < 10000 && !b.peer.requests; i++) turns(&b, 1);
    assert_int_equal(b.peer.requests, 1);
    pass(&b, 999);
    assert_false(g.done);
    pass(&b, 1001);
    pass(&b, 2);
    assert_err(g.error.code, LLMKIT_E_TIMEOUT);
    assert_int_equal(g.error.deadline, LLMKIT_DEADLINE_FIRST_BYTE);
    bench_close(&b);
}

static void without_deadlines_nothing_times_out(void **state) {
    (void)state;
    bench b = { .desc = { .max_connections = 1 } };
    bench_open(&b);
    b.reply = NULL;
    get one, two;
    get_start(&b, &one);
    get_start(&b, &two);
    turns(&b, 10);
    lk__fetch_pause(&two.fetch);
    pass(&b, 100000000);
    lk__fetch_resume(&two.fetch);
    pass(&b, 100000000);
    assert_false(one.done || two.done);
    peer_say(b.peer.last, good);
    get_wait(&b, &one);
    turns(&b, 5);
    peer_say(b.peer.last, good);
    get_wait(&b, &two);
    bench_close(&b);
}

static void a_queue_behind_busy_connections_is_no_timeout(void **state) {
    (void)state;
    bench b = { .desc = { .max_connections = 1, .connect_ns = 100 * 1000000LL } };
    bench_open(&b);
    b.reply = NULL;
    get one, two;
    get_start(&b, &one);
    get_start(&b, &two);
    turns(&b, 10);
    for (int i = 0; i < 20; i++) pass(&b, 99);
    assert_false(one.done || two.done);
    peer_say(b.peer.last, good);
    get_wait(&b, &one);
    turns(&b, 5);
    peer_say(b.peer.last, good);
    get_wait(&b, &two);
    bench_close(&b);
}

/* ---- names ------------------------------------------------------------------------------------*/

static int lookups;
static int lookup_result;

static int counted_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                               struct addrinfo **list) {
    (void)node;
    lookups++;
    if (lookup_result) return lookup_result;
    return getaddrinfo("127.0.0.1", service, hints, list);
}

static void name_ok(bench *b, llmkit_err code) {
    get g;
    get_start(b, &g);
    while (!g.done) { /* the resolver is a thread */
        llmkit_loop_poll(b->loop, 1);
        turns(b, 1);
    }
    assert_err(g.error.code, code);
}

static void addresses_are_looked_up_anew_and_old_ones_bridge_a_failure(void **state) {
    (void)state;
    bench b = { .desc = { .dns_ns = 1000 * 1000000LL } };
    lk__sys sys = *lk__sys_default();
    lk__url url;
    llmkit_error error;
    char text[64];
    sys.getaddrinfo = counted_getaddrinfo;
    lookups = lookup_result = 0;
    bench_open(&b);
    lk__loop_set_sys(b.loop, &sys);
    snprintf(text, sizeof text, "http://some.test:%d", b.peer.port);
    assert_ok(lk__url_parse(&url, lk__str_z(text), &error));
    b.origin = lk__pool_origin(b.pool, &url, &error);
    b.reply = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    name_ok(&b, LLMKIT_OK);
    name_ok(&b, LLMKIT_OK);
    assert_int_equal(lookups, 1);
    pass(&b, 1001);
    name_ok(&b, LLMKIT_OK);
    assert_int_equal(lookups, 2);
    pass(&b, 1001);
    lookup_result = EAI_AGAIN;
    name_ok(&b, LLMKIT_OK);
    assert_int_equal(lookups, 3);
    pass(&b, 1001);
    lookup_result = EAI_NONAME; /* it is gone for good */
    name_ok(&b, LLMKIT_E_DNS);
    name_ok(&b, LLMKIT_E_DNS);
    assert_int_equal(lookups, 5);
    lookup_result = 0;
    name_ok(&b, LLMKIT_OK);
    bench_close(&b);
}

/* ---- faults -----------------------------------------------------------------------------------*/

static void every_allocation_may_fail(void **state) {
    (void)state;
    static char body[3000000];
    bench b = { .reply = good };
    lk_world_init_virtual(&b.world, 0);
    b.peer_loop = llmkit_loop_create(NULL, NULL);
    b.peer.answer = answer;
    b.peer.user = &b;
    peer_open(&b.peer, b.peer_loop);
    memset(body, 'x', sizeof body);
    LK_EACH_REFUSAL(&b.world) {
        get g[3] = { { .dones = 0 } };
        b.loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = b.world.env }, NULL);
        if (!b.loop) continue;
        bench_open_pool(&b);
        if (b.pool && b.origin) {
            for (int i = 0; i < 3; i++) {
                get_init(&b, &g[i]);
                g[i].fetch.first_byte_ns = g[i].fetch.idle_ns = 1000 * MS;
                if (i == 1) {
                    g[i].fetch.head = LK__STR("POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n");
                    g[i].fetch.body = (llmkit_str){ body, sizeof body };
                }
                lk__fetch_start(&g[i].fetch);
            }
            for (int i = 0; i < 3; i++) {
                for (int k = 0; k < 10000 && !g[i].done; k++) turns(&b, 1);
                assert_int_equal(g[i].dones, 1); /* without waiting for a deadline */
                if (g[i].error.code) assert_err(g[i].error.code, LLMKIT_E_NOMEM);
            }
        }
        lk__pool_destroy(b.pool);
        llmkit_loop_destroy(b.loop);
        b.loop = b.peer_loop;
        turns(&b, 5);
        b.loop = NULL;
    }
    b.pool = NULL;
    bench_close(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(an_idle_connection_is_closed_after_keep_alive),
    cmocka_unit_test(an_old_connection_is_retired),
    cmocka_unit_test(a_server_may_close_an_idle_connection),
    cmocka_unit_test(a_server_may_ask_for_the_end),
    cmocka_unit_test(bytes_behind_a_response_end_its_connection),
    cmocka_unit_test(warming_opens_connections_ahead),
    cmocka_unit_test(warming_ends_where_nobody_listens),
    cmocka_unit_test(origins_are_told_apart),
    cmocka_unit_test(those_that_wait_are_served_in_order_and_may_leave),
    cmocka_unit_test(an_idle_connection_serves_while_another_is_opened),
    cmocka_unit_test(what_done_starts_uses_the_same_connection),
    cmocka_unit_test(a_fetch_may_stop_in_any_callback),
    cmocka_unit_test(interim_responses_and_head_requests_are_understood),
    cmocka_unit_test(an_early_response_is_heard),
    cmocka_unit_test(a_large_request_goes_out_whole),
    cmocka_unit_test(a_slow_upload_is_not_silence),
    cmocka_unit_test(without_deadlines_nothing_times_out),
    cmocka_unit_test(a_queue_behind_busy_connections_is_no_timeout),
    cmocka_unit_test(addresses_are_looked_up_anew_and_old_ones_bridge_a_failure),
    cmocka_unit_test(every_allocation_may_fail),
};

LK_TEST_MAIN(tests)
