/* test_client.c -- whole calls against a scripted server: retries, deadlines, cancelling, faults */
#include "rig.h"

#include <pthread.h>

#define REFUSED(code, type)                                                                        \
    "{\"error\":{\"message\":\"no\",\"type\":\"" type "\",\"code\":" code "}}"

/* ---- what goes well ---------------------------------------------------------------------------*/

static void a_whole_reply_comes_once(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_run(&r, SCRIPT("200||" WHOLE), false, "REPLY(Hello) DONE(OK)");
    assert_int_equal(r.attempts, 1);
    assert_non_null(strstr(r.peer.seen, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:"));
    assert_non_null(strstr(r.peer.seen, "\r\nAuthorization: Bearer sk-test\r\n"));
    assert_non_null(strstr(r.peer.seen, "\r\nContent-Type: application/json\r\n"));
    assert_non_null(strstr(r.peer.seen, "\r\nAccept: application/json\r\n"));
    assert_non_null(strstr(r.peer.seen, "\r\n\r\n{\"model\":\"m\","));
    rig_close(&r);
}

static void a_stream_starts_flows_and_ends_once(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_run(&r, SCRIPT(HELLO), true, "START(m-1) TEXT(Hel) TEXT(lo) stop DONE(OK)");
    assert_non_null(strstr(r.peer.seen, "\"stream\":true"));
    assert_non_null(strstr(r.peer.seen, "\r\nAccept: text/event-stream\r\n"));
    rig_close(&r);
}

static void connections_are_kept_and_used_again(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    for (int i = 0; i < 5; i++) {
        rig_run(&r, SCRIPT("200||" WHOLE), false, "REPLY(Hello) DONE(OK)");
        rig_run(&r, SCRIPT(HELLO), true, "START(m-1) TEXT(Hel) TEXT(lo) stop DONE(OK)");
    }
    llmkit_client_stats s = llmkit_client_read(r.client);
    assert_int_equal(s.connects, 1);
    assert_int_equal(s.reused, 9);
    assert_int_equal(s.calls, 10);
    assert_int_equal(s.attempts, 10);
    assert_int_equal(s.idle, 1);
    assert_int_equal(s.open, 1);
    assert_int_equal(s.in_flight, 0);
    rig_close(&r);
}

static void unix_sockets_and_private_loops_work(void **state) {
    (void)state;
    rig r = { .unix_socket = true, .own_loop = true };
    rig_open(&r);
    rig_run(&r, SCRIPT("200||" WHOLE), false, "REPLY(Hello) DONE(OK)");
    assert_non_null(strstr(r.peer.seen, "\r\nHost: localhost\r\n"));
    rig_close(&r);
}

static void the_query_of_base_url_stays_behind_the_path(void **state) {
    (void)state;
    rig r = { 0 };
    char url[128];
    rig_open_peer(&r);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/openai/?api-version=1", r.peer.port);
    r.provider.base_url = url;
    r.loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = r.world.env }, NULL);
    rig_open_client(&r);
    rig_run(&r, SCRIPT("200||" WHOLE), false, "REPLY(Hello) DONE(OK)");
    assert_non_null(strstr(r.peer.seen, "POST /openai/chat/completions?api-version=1 HTTP/1.1"));
    rig_close(&r);
}

typedef struct counter {
    int  left, order[1000], num;
    rig *r;
} counter;

typedef struct counted {
    counter *all;
    int      nth;
} counted;

static void on_counted(void *user, const llmkit_reply *reply) {
    counted *one = user;
    assert_ok(reply->error.code);
    one->all->order[one->all->num++] = one->nth;
    if (--one->all->left == 0) one->all->r->done = true;
}

static void run_1000(rig *r, uint32_t max_connections, bool in_order) {
    static counter all;
    static counted one[1000];
    r->desc.max_connections = max_connections;
    rig_open(r);
    rig_script(r, SCRIPT("200||" WHOLE));
    all = (counter){ .left = 1000, .r = r };
    for (int i = 0; i < 1000; i++) {
        one[i] = (counted){ &all, i };
        assert_ok(llmkit_submit_whole(r->client, &(llmkit_request){ .prompt = "Hi" }, on_counted,
                                      &one[i], NULL, NULL));
    }
    assert_int_equal(llmkit_client_read(r->client).in_flight, 1000);
    rig_wait(r);
    for (int i = 0; i < 1000 && in_order; i++) assert_int_equal(all.order[i], i);
    llmkit_client_stats s = llmkit_client_read(r->client);
    assert_int_equal(s.connects, r->peer.accepted);
    assert_true(s.connects <= max_connections);
    assert_int_equal(s.connects + s.reused, 1000);
    rig_close(r);
}

static void a_thousand_calls_share_few_connections(void **state) {
    (void)state;
    rig r = { 0 };
    run_1000(&r, 8, false);
}

static void calls_that_wait_are_served_in_order(void **state) {
    (void)state;
    rig r = { 0 };
    run_1000(&r, 1, true);
}

static void a_thousand_calls_share_few_tls_connections(void **state) {
    (void)state;
    rig r = { .tls = true, .host = "localhost" };
    lk_world_init(&r.world);
    run_1000(&r, 4, false);
}

static void max_calls_bounds_what_is_in_flight(void **state) {
    (void)state;
    rig r = { .desc = { .max_calls = 2 } };
    rig_open(&r);
    rig_script(&r, SCRIPT("-"));
    rig_ask(&r, false);
    rig_ask(&r, true);
    assert_err(rig_try(&r, &(llmkit_request){ .prompt = "Hi" }, false), LLMKIT_E_BUSY);
    assert_non_null(strstr(r.error.message, "max_calls"));
    rig_close(&r);
}

/* ---- requests that are refused at once -------------------------------------------------------*/

static void requests_that_make_no_sense_are_refused(void **state) {
    (void)state;
    static const char *const ours[] = { "Content-Length", "3", NULL };
    static const char *const split[] = { "X", "a\r\nb", NULL };
    static const char *const key[] = { "authorization", "Bearer x", NULL };
    static const char *const odd[] = { "X", NULL };
    const llmkit_message empty = { .role = LLMKIT_USER };
    const llmkit_message counted = { .text = "x", .num_parts = 1 };
    const llmkit_request bad[] = {
        { 0 },
        { .num_messages = 1 },
        { .messages = &empty, .num_messages = 1 },
        { .messages = &counted, .num_messages = 1 },
        { .prompt = "x", .num_tools = 1 },
        { .prompt = "x", .headers = ours },
        { .prompt = "x", .headers = split },
        { .prompt = "x", .headers = key },
        { .prompt = "x", .headers = odd },
        { .prompt = "x", .extra = "{\"stream\":true}" },
        { .prompt = "x", .extra = "[]" },
        { .prompt = "x", .schema = "{" },
    };
    rig r = { 0 };
    rig_open(&r);
    for (size_t i = 0; i < LK__COUNT(bad); i++)
        assert_err(rig_try(&r, &bad[i], i % 2), LLMKIT_E_ARG);
    assert_err(rig_try(&r, &(llmkit_request){ .prompt = "x", ._guard1 = 1 }, true),
               LLMKIT_E_NOT_ZEROED);
    assert_err(rig_try(&r, &(llmkit_request){ .prompt = "x", .provider = "y" }, true),
               LLMKIT_E_ROUTE);
    assert_int_equal(llmkit_client_read(r.client).in_flight, 0);
    rig_run(&r, SCRIPT("200||" WHOLE), false, "REPLY(Hello) DONE(OK)"); /* nothing is stuck */
    rig_close(&r);
}

static void headers_of_a_request_are_sent(void **state) {
    (void)state;
    static const char *const more[] = { "X-One", "1", "api-key", "k", NULL };
    char big[6000];
    memset(big, 'b', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    const char *const large[] = { "X-Big", big, NULL };
    rig r = { 0 };
    rig_open(&r);
    rig_script(&r, SCRIPT("200||" WHOLE));
    assert_ok(rig_try(&r, &(llmkit_request){ .prompt = "x", .headers = more }, false));
    rig_wait(&r);
    assert_non_null(strstr(r.peer.seen, "\r\nX-One: 1\r\napi-key: k\r\n"));
    assert_ok(rig_try(&r, &(llmkit_request){ .prompt = "x", .headers = large }, false));
    rig_wait(&r);
    assert_non_null(strstr(r.peer.seen, "\r\nAuthorization: Bearer sk-test\r\n"));
    assert_non_null(strstr(r.peer.seen, big));
    rig_close(&r);
}

/* Gives memory back only after a look for the key in it. */
static void *watchful_alloc(void *user, void *ptr, size_t old_size, size_t new_size) {
    static const char key[] = "sk-very-secret";
    void *moved = new_size ? lk_world_alloc(user, NULL, 0, new_size) : NULL;
    if (new_size && !moved) return NULL;
    if (ptr && new_size) memcpy(moved, ptr, old_size < new_size ? old_size : new_size);
    for (size_t i = 0; ptr && i + sizeof key - 1 <= old_size; i++)
        assert_int_not_equal(memcmp((char *)ptr + i, key, sizeof key - 1), 0);
    if (ptr) lk_world_alloc(user, ptr, old_size, 0);
    return moved;
}

static void no_key_is_left_in_freed_memory(void **state) {
    (void)state;
    char big[9000];
    memset(big, 'b', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    const char *const large[] = { "X-Big", big, NULL };
    rig r = { .provider = { .api_key = "sk-very-secret" } };
    lk_world_init_virtual(&r.world, 0);
    r.world.env.alloc = watchful_alloc;
    rig_open(&r);
    rig_run(&r, SCRIPT("503||", "200||" WHOLE), false, "REPLY(Hello) DONE(OK)");
    assert_ok(rig_try(&r, &(llmkit_request){ .prompt = "x", .headers = large }, false));
    rig_wait(&r);
    rig_run(&r, SCRIPT("401||" REFUSED("\"c\"", "t")), true, "DONE(E_AUTH)");
    assert_null(strstr(r.world.log, "sk-very"));
    rig_close(&r);
}

/* ---- clients that cannot be -------------------------------------------------------------------*/

static void bad_descs_are_refused(void **state) {
    (void)state;
    llmkit_error error;
    const llmkit_provider_desc bad_url = { .base_url = "ftp://x" }, no_key = { 0 },
        odd_key = { .base_url = "http://x", .api_key = "a\nb" };
    unsetenv("OPENAI_API_KEY");
    unsetenv("OPENAI_BASE_URL");
    assert_null(llmkit_client_create(&(llmkit_client_desc){ ._guard0 = 1 }, &error));
    assert_err(error.code, LLMKIT_E_NOT_ZEROED);
    assert_null(llmkit_client_create(&(llmkit_client_desc){ .num_providers = 1 }, &error));
    assert_err(error.code, LLMKIT_E_ARG);
    assert_null(llmkit_client_create(
        &(llmkit_client_desc){ .providers = &bad_url, .num_providers = 1 }, &error));
    assert_err(error.code, LLMKIT_E_ARG);
    assert_null(llmkit_client_create(
        &(llmkit_client_desc){ .providers = &odd_key, .num_providers = 1 }, &error));
    assert_err(error.code, LLMKIT_E_ARG);
    assert_null(strstr(error.message, "a\nb"));
    assert_null(llmkit_client_create(
        &(llmkit_client_desc){ .providers = &no_key, .num_providers = 1 }, &error));
    assert_err(error.code, LLMKIT_E_AUTH);
    assert_non_null(strstr(error.message, "OPENAI_API_KEY"));
    assert_null(llmkit_client_create(NULL, NULL));
}

static void the_environment_names_key_and_host(void **state) {
    (void)state;
    rig r = { 0 };
    llmkit_error error;
    char url[64];
    rig_open_peer(&r);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/v1/", r.peer.port);
    setenv("OPENAI_BASE_URL", url, 1);
    setenv("OPENAI_API_KEY", "sk-env", 1);
    r.loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = r.world.env }, NULL);
    r.client = llmkit_client_create(&(llmkit_client_desc){ .env = r.world.env, .loop = r.loop },
                                    &error);
    unsetenv("OPENAI_BASE_URL");
    unsetenv("OPENAI_API_KEY");
    assert_non_null(r.client);
    rig_script(&r, SCRIPT("200||" WHOLE));
    assert_err(rig_try(&r, &(llmkit_request){ .prompt = "x" }, false), LLMKIT_E_ARG); /* model */
    assert_ok(rig_try(&r, &(llmkit_request){ .prompt = "x", .model = "y" }, false));
    rig_wait(&r);
    assert_non_null(strstr(r.peer.seen, "POST /v1/chat/completions "));
    assert_non_null(strstr(r.peer.seen, "Bearer sk-env\r\n"));
    rig_close(&r);
}

/* ---- retries ----------------------------------------------------------------------------------*/

static void some_statuses_are_tried_again(void **state) {
    (void)state;
    static const struct {
        int         status;
        bool        again;
        llmkit_err  code;
    } table[] = {
        { 400, false, LLMKIT_E_REQUEST }, { 401, false, LLMKIT_E_AUTH },
        { 402, false, LLMKIT_E_QUOTA },   { 403, false, LLMKIT_E_AUTH },
        { 404, false, LLMKIT_E_REQUEST }, { 408, true, LLMKIT_E_REQUEST },
        { 409, true, LLMKIT_E_REQUEST },  { 422, false, LLMKIT_E_REQUEST },
        { 429, true, LLMKIT_E_LIMITED },  { 500, true, LLMKIT_E_SERVER },
        { 502, true, LLMKIT_E_SERVER },   { 503, true, LLMKIT_E_OVERLOADED },
        { 504, true, LLMKIT_E_SERVER },   { 529, true, LLMKIT_E_OVERLOADED },
        { 301, false, LLMKIT_E_REQUEST },
    };
    for (size_t i = 0; i < LK__COUNT(table); i++) {
        char entry[256];
        rig r = { 0 };
        rig_open(&r);
        snprintf(entry, sizeof entry, "%d|X-Request-Id: r-%d\r\n|" REFUSED("\"c\"", "t"),
                 table[i].status, table[i].status);
        rig_script(&r, SCRIPT(entry));
        rig_ask(&r, i % 2);
        rig_wait_passing(&r, 500);
        assert_int_equal(r.attempts, table[i].again ? 3 : 1);
        assert_int_equal(r.peer.requests, r.attempts);
        assert_int_equal(r.peer.accepted, 1); /* on one connection */
        assert_err(r.error.code, table[i].code);
        assert_int_equal(r.error.http_status, table[i].status);
        assert_int_equal(r.error.retryable, table[i].again);
        assert_string_equal(r.error.message, "no");
        assert_string_equal(r.error.type, "c");
        assert_string_equal(r.error.request_id, strstr(entry, "r-") ? r.error.request_id : "");
        assert_int_equal(strncmp(r.error.request_id, "r-", 2), 0);
        assert_string_equal(r.error.provider, "127.0.0.1");
        llmkit_client_stats s = llmkit_client_read(r.client);
        assert_int_equal(s.retries, table[i].again ? 2 : 0);
        rig_close(&r);
    }
}

static void a_retry_may_succeed(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_run(&r, SCRIPT("503||", "200||" WHOLE), false, "REPLY(Hello) DONE(OK)");
    assert_int_equal(r.attempts, 2);
    rig_run(&r, SCRIPT("500||x", "!", HELLO), true,
            "START(m-1) TEXT(Hel) TEXT(lo) stop DONE(OK)");
    rig_close(&r);
}

static void the_server_may_say_whether_to_retry(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_run(&r, SCRIPT("500|X-Should-Retry: false\r\n|"), false, "DONE(E_SERVER)");
    assert_int_equal(r.attempts, 1);
    rig_run(&r, SCRIPT("400|x-should-retry: true\r\n|", "200||" WHOLE), false,
            "REPLY(Hello) DONE(OK)");
    assert_int_equal(r.attempts, 2);
    rig_close(&r);
}

/* The retry comes not before, and right after. */
static void waits_between(rig *r, const char *entry, int64_t least_ms, int64_t most_ms) {
    rig_script(r, SCRIPT(entry, "200||" WHOLE));
    int before = r->peer.requests;
    rig_ask(r, false);
    for (int i = 0; i < 100 && r->peer.requests == before; i++) rig_turns(r, 1);
    rig_turns(r, 20);
    rig_pass(r, least_ms - 1);
    if (r->peer.requests != before + 1) print_error("too early: %s\n", entry);
    assert_int_equal(r->peer.requests, before + 1);
    assert_false(r->done);
    rig_pass(r, most_ms - least_ms + 1);
    rig_turns(r, 50);
    if (!r->done) print_error("too late: %s\n", entry);
    rig_expect(r, "REPLY(Hello) DONE(OK)");
}

static void retry_after_is_kept(void **state) {
    (void)state;
    rig r = { .desc = { .keep_alive_ms = 10000000, .max_age_ms = 10000000 } };
    char date[64], entry[128];
    rig_open(&r);
    waits_between(&r, "429|Retry-After: 7\r\n|", 7000, 7000);
    waits_between(&r, "429|Retry-After: 0.25\r\n|", 250, 250);
    waits_between(&r, "503|retry-after-ms: 1500\r\nRetry-After: 7\r\n|", 1500, 1500);
    waits_between(&r, "429|retry-after-ms: x\r\nRetry-After: 7\r\n|", 7000, 7000);
    waits_between(&r, "429|Retry-After: 120\r\n|", 120000, 120000);
    time_t then = time(NULL) + 30;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&then));
    snprintf(entry, sizeof entry, "429|Retry-After: %s\r\n|", date);
    waits_between(&r, entry, 28000, 30000);
    static const char *const useless[] = { "0", "-1", "nan", "inf", "soon", "1e", "0x10", "",
                                           "Fri, 31 Dec 1999 23:59:59 GMT",
                                           "Fri, 31 Dec 100000 23:59:59 GMT" };
    for (size_t i = 0; i < LK__COUNT(useless); i++) {
        snprintf(entry, sizeof entry, "429|Retry-After: %s\r\n|", useless[i]);
        waits_between(&r, entry, 375, 500);
    }
    rig_close(&r);
}

static void a_longer_wait_than_allowed_fails_with_the_wait(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_run(&r, SCRIPT("429|Retry-After: 121\r\n|"), false, "DONE(E_LIMITED)");
    assert_int_equal(r.attempts, 1);
    assert_int_equal(r.error.retry_after_ms, 121000);
    assert_true(r.error.retryable);
    rig_run(&r, SCRIPT("429|Retry-After: 1e12\r\n|"), false, "DONE(E_LIMITED)");
    assert_int_equal(r.attempts, 1);
    rig_run(&r, SCRIPT("429|Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n|"), false,
            "DONE(E_LIMITED)");
    assert_int_equal(r.attempts, 1);
    rig_close(&r);
}

static void backoff_doubles_to_its_cap(void **state) {
    (void)state;
    rig r = { .desc = { .max_tries = 7, .backoff_ms = 100, .max_backoff_ms = 1000 } };
    static const int64_t most[] = { 100, 200, 400, 800, 1000, 1000 };
    rig_open(&r);
    rig_script(&r, SCRIPT("500||"));
    rig_ask(&r, false);
    rig_turns(&r, 20);
    for (size_t i = 0; i < LK__COUNT(most); i++) {
        assert_int_equal(r.peer.requests, i + 1);
        rig_pass(&r, most[i] * 3 / 4 - 1);
        assert_int_equal(r.peer.requests, i + 1);
        rig_pass(&r, most[i] / 4 + 2);
        rig_turns(&r, 10);
    }
    assert_true(r.done);
    assert_int_equal(r.attempts, 7);
    rig_close(&r);
}

static void a_used_up_quota_is_not_tried_again(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_run(&r, SCRIPT("429||" REFUSED("\"insufficient_quota\"", "insufficient_quota")), false,
            "DONE(E_QUOTA)");
    assert_int_equal(r.attempts, 1);
    assert_false(r.error.retryable);
    rig_run(&r, SCRIPT("429||" REFUSED("null", "insufficient_quota")), true, "DONE(E_QUOTA)");
    assert_int_equal(r.attempts, 1);
    rig_close(&r);
}

static void a_stale_connection_is_replaced_and_not_counted(void **state) {
    (void)state;
    static const char *const deaths[] = { "!", "X|" };
    for (int tls = 0; tls < 2; tls++) {
        rig r = { .tls = tls, .host = tls ? "localhost" : NULL, .desc = { .max_tries = 1 } };
        if (tls) lk_world_init(&r.world);
        rig_open(&r);
        for (size_t i = 0; i < LK__COUNT(deaths); i++) {
            rig_run(&r, SCRIPT("200||" WHOLE, deaths[i], "200||" WHOLE), false,
                    "REPLY(Hello) DONE(OK)");
            rig_script(&r, SCRIPT(deaths[i], "200||" WHOLE));
            rig_ask(&r, false);
            rig_wait(&r);
            rig_expect(&r, "REPLY(Hello) DONE(OK)");
            assert_int_equal(r.attempts, 1);
            assert_int_equal(llmkit_client_read(r.client).resent, i + 1);
            assert_int_equal(llmkit_client_read(r.client).retries, 0);
        }
        rig_close(&r);
    }
}

static void many_stale_connections_are_replaced_at_once(void **state) {
    (void)state;
    rig r = { .desc = { .max_connections = 4, .max_tries = 1 } };
    static const char *const good[] = { "200||" WHOLE, NULL };
    static const char *const stale[] = { "!", "!", "!", "!", "200||" WHOLE, NULL };
    static counter all;
    static counted one[4];
    rig_open(&r);
    for (int round = 0; round < 2; round++) {
        rig_script(&r, round == 0 ? good : stale);
        r.done = false;
        all = (counter){ .left = 4, .r = &r };
        for (int i = 0; i < 4; i++) {
            one[i] = (counted){ &all, i };
            assert_ok(llmkit_submit_whole(r.client, &(llmkit_request){ .prompt = "Hi" },
                                          on_counted, &one[i], NULL, NULL));
        }
        rig_wait(&r);
    }
    assert_int_equal(llmkit_client_read(r.client).resent, 4);
    rig_close(&r);
}

static void nothing_is_tried_again_after_the_first_content(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_run(&r, SCRIPT("C|" TEXT("Hel"), HELLO), true, "START(m-1) TEXT(Hel) DONE(E_TRUNCATED)");
    assert_int_equal(r.attempts, 1);
    assert_true(r.error.retryable); /* by the caller */
    assert_int_equal(r.error.http_status, 200);
    assert_string_equal(r.error.request_id, "req-2");
    rig_run(&r, SCRIPT("C|" CHUNK("{\"role\":\"assistant\",\"content\":\"\"}"), HELLO), true,
            "START(m-1) TEXT(Hel) TEXT(lo) stop DONE(OK)");
    assert_int_equal(r.attempts, 2);
    rig_close(&r);
}

static void a_refused_connection_is_tried_again(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    peer_deafen(&r.peer);
    rig_ask(&r, true);
    rig_wait_passing(&r, 500);
    rig_expect(&r, "DONE(E_CONNECT)");
    assert_int_equal(r.attempts, 3);
    assert_int_equal(r.error.os_errno, ECONNREFUSED);
    assert_non_null(strstr(r.error.message, "127.0.0.1"));
    rig_close(&r);
}

/* ---- errors -----------------------------------------------------------------------------------*/

static void error_bodies_come_in_many_shapes(void **state) {
    (void)state;
    static const struct {
        const char *body, *message, *type;
    } table[] = {
        { REFUSED("\"c\"", "t"), "no", "c" },
        { REFUSED("null", "t"), "no", "t" },
        { REFUSED("400", "t"), "no", "t" },
        { "{\"error\":\"just words\"}", "just words", "" },
        { "[{\"error\":{\"message\":\"google\",\"code\":400}}]", "google", "" },
        { "{\"object\":\"error\",\"message\":\"vllm\",\"type\":\"Bad\",\"code\":400}", "vllm",
          "Bad" },
        { "{\"detail\":\"fast\"}", "fast", "" },
        { "{\"error\":{\"message\":\"two\\nlines \\u001b[31mred\"}}", "two lines  [31mred", "" },
        { "{\"error\":{\"code\":\"only_code\"}}", "HTTP status 400", "" },
        { "{\"error\":null}", "HTTP status 400", "" },
        { "<html>", "HTTP status 400", "" },
        { "", "HTTP status 400", "" },
        { "[]", "HTTP status 400", "" },
        { "\"x\"", "HTTP status 400", "" },
    };
    rig r = { 0 };
    rig_open(&r);
    for (size_t i = 0; i < LK__COUNT(table); i++) {
        char entry[512];
        snprintf(entry, sizeof entry, "400||%s", table[i].body);
        rig_run(&r, SCRIPT(entry), i % 2, "DONE(E_REQUEST)");
        assert_string_equal(r.error.message, table[i].message);
        if (*table[i].type) assert_string_equal(r.error.type, table[i].type);
    }
    assert_int_equal(r.peer.accepted, 1);
    rig_close(&r);
}

static void an_error_body_of_64_kb_is_read_and_a_longer_one_cut(void **state) {
    (void)state;
    enum { LIMIT = 65536 };
    static char entry[LIMIT * 2];
    for (int more = 0; more < 2; more++) {
        rig r = { 0 };
        rig_open(&r);
        int n = snprintf(entry, sizeof entry, "400||{\"error\":{\"message\":\"long\"},\"x\":\"");
        size_t body = (size_t)n - 5, fill = LIMIT - body - 2 + (size_t)more;
        memset(entry + n, 'x', fill);
        memcpy(entry + n + fill, "\"}", 3);
        rig_run(&r, SCRIPT(entry), false, "DONE(E_REQUEST)");
        assert_string_equal(r.error.message, more ? "HTTP status 400" : "long");
        rig_close(&r);
    }
}

static void an_endless_error_body_ends_the_call(void **state) {
    (void)state;
    static char bytes[70000];
    rig r = { 0 };
    memcpy(bytes, "R|HTTP/1.1 400 X\r\n\r\n", 20);
    memset(bytes + 20, 'x', sizeof bytes - 21);
    rig_open(&r);
    rig_script(&r, SCRIPT(bytes));
    rig_ask(&r, true);
    rig_wait(&r);
    rig_expect(&r, "DONE(E_REQUEST)");
    rig_close(&r);
}

static void redirects_are_errors_that_say_where_to(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_run(&r, SCRIPT("308|Location: https://new.example/v1/chat/completions\r\n"
                       "X-Request-Id: r1\r\n|"), false, "DONE(E_REQUEST)");
    assert_int_equal(r.error.http_status, 308);
    assert_string_equal(r.error.request_id, "r1");
    assert_non_null(strstr(r.error.message, "https://new.example/v1"));
    rig_run(&r, SCRIPT("304||"), false, "DONE(E_REQUEST)");
    rig_close(&r);
}

static void broken_http_is_an_error(void **state) {
    (void)state;
    rig r = { .desc = { .max_tries = 1 } };
    rig_open(&r);
    rig_run(&r, SCRIPT("R|SMTP ready\r\n\r\n"), false, "DONE(E_PROTOCOL)");
    rig_run(&r, SCRIPT("X|HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"), false,
            "DONE(E_TRUNCATED)");
    rig_run(&r, SCRIPT("X|HTTP/1.1 200"), false, "DONE(E_TRUNCATED)");
    rig_run(&r, SCRIPT("X|"), false, "DONE(E_TRUNCATED)");
    rig_run(&r, SCRIPT("!"), false, "DONE(E_TRUNCATED)");
    rig_run(&r, SCRIPT("R|HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), true,
            "DONE(E_PROTOCOL)");
    rig_close(&r);
}

static void replies_that_are_no_replies_are_errors(void **state) {
    (void)state;
    rig r = { .desc = { .max_tries = 1 } };
    rig_open(&r);
    rig_run(&r, SCRIPT("200||<html>hello"), false, "DONE(E_JSON)");
    assert_non_null(strstr(r.error.message, "<html>hello"));
    assert_int_equal(r.error.http_status, 200);
    rig_run(&r, SCRIPT("200||{}"), false, "DONE(E_JSON)");
    rig_run(&r, SCRIPT("200||"), false, "DONE(E_JSON)");
    rig_run(&r, SCRIPT("200||" REFUSED("null", "t")), false, "DONE(E_SERVER)");
    assert_string_equal(r.error.message, "no");
    rig_run(&r, SCRIPT("200||" REFUSED("\"invalid_request_error\"", "x")), false,
            "DONE(E_REQUEST)");
    rig_run(&r, SCRIPT("200|Content-Type: application/json\r\n|"
                       REFUSED("null", "rate_limit_error")), true, "DONE(E_LIMITED)");
    rig_run(&r, SCRIPT("200|Content-Type: application/json\r\n|" WHOLE), true, "DONE(E_JSON)");
    rig_close(&r);
}

static void close_delimited_bodies_are_read(void **state) {
    (void)state;
    rig r = { .desc = { .max_tries = 1 } };
    rig_open(&r);
    rig_run(&r, SCRIPT("X|HTTP/1.1 200 OK\r\n\r\n" WHOLE), false, "REPLY(Hello) DONE(OK)");
    rig_run(&r, SCRIPT("X|HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" TEXT("a")
                       FINISH("stop")), true, "START(m-1) TEXT(a) stop DONE(OK)");
    assert_int_equal(llmkit_client_read(r.client).reused, 0);
    rig_close(&r);
}

static void a_reply_over_its_limit_is_refused(void **state) {
    (void)state;
    rig r = { .desc = { .max_reply_bytes = sizeof WHOLE - 1, .max_tries = 1 } };
    rig_open(&r);
    rig_run(&r, SCRIPT("200||" WHOLE), false, "REPLY(Hello) DONE(OK)");
    rig_run(&r, SCRIPT("200||" WHOLE " "), false, "DONE(E_TOO_BIG)");
    assert_non_null(strstr(r.error.message, "max_reply_bytes"));
    rig_run(&r, SCRIPT("S|" TEXT("aaaaaaaaaaaaaaaaaaaaaaaa") TEXT("bbbbbbbbbbbbbbbbbbbbbbbbbbb")
                       TEXT("cccccccccccccccccccccccccccccc")), true, "DONE(E_TOO_BIG)");
    rig_close(&r);
}

/* ---- streams ----------------------------------------------------------------------------------*/

static void streams_come_in_many_shapes(void **state) {
    (void)state;
    static const struct {
        const char *script, *log;
    } table[] = {
        { "S|: ping\n\nevent: ping\ndata: {}\n\n: OPENROUTER PROCESSING\n\n" TEXT("a")
          FINISH("stop") DONE_LINE, "START() TEXT(a) stop DONE(OK)" },
        { "S|" TEXT("a") FINISH("stop"), "START(m-1) TEXT(a) stop DONE(OK)" },
        { "S|" TEXT("a") DONE_LINE, "START(m-1) TEXT(a) - DONE(OK)" },
        { "S|" DONE_LINE, "DONE(E_TRUNCATED)" }, /* that alone is no reply */
        { "S|" TEXT("a") FINISH("stop") "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,"
          "\"completion_tokens\":2}}\n\n" DONE_LINE,
          "START(m-1) TEXT(a) USAGE(3 2) stop DONE(OK)" },
        { "S|" TEXT("a") "data: [DONE]", "START(m-1) TEXT(a) DONE(E_TRUNCATED)" },
        { "S|" TEXT("a") "data: {\"error\":{\"message\":\"no\",\"type\":\"overloaded_error\"}}\n\n",
          "START(m-1) TEXT(a) DONE(E_OVERLOADED)" },
        { "S|data: {\"error\":\"no\"}\n\n" TEXT("a"), "DONE(E_SERVER)" },
        { "S|" TEXT("a") "data: {oops\n\n", "START(m-1) TEXT(a) DONE(E_JSON)" },
        { "S|" TEXT("a"), "START(m-1) TEXT(a) DONE(E_TRUNCATED)" },
        { "S|", "DONE(E_TRUNCATED)" },
        { "C|" TEXT("a") FINISH("stop"), "START(m-1) TEXT(a) DONE(E_TRUNCATED)" },
        { "C|" TEXT("a") FINISH("stop") DONE_LINE, "START(m-1) TEXT(a) stop DONE(OK)" },
        { "S|" TEXT("a") FINISH("length") DONE_LINE TEXT("late"),
          "START(m-1) TEXT(a) length DONE(OK)" },
        { "S|" CHUNK("{\"content\":null,\"refusal\":\"I\"}") CHUNK("{\"refusal\":\" won't\"}")
          FINISH("stop") DONE_LINE, "START(m-1) REFUSAL(I) REFUSAL( won't) stop DONE(OK)" },
        { "S|data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"}},{\"index\":0,"
          "\"delta\":{\"content\":\"a\"}}]}\n\n"
          "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"B\"},"
          "\"finish_reason\":\"stop\"}]}\n\n" FINISH("content_filter") DONE_LINE,
          "START() TEXT(a) filter DONE(OK)" },
        { "S|" TEXT("a") FINISH("eos") DONE_LINE, "START(m-1) TEXT(a) other DONE(OK)" },
        { "S|data: 1\n\n" TEXT("a") FINISH("stop"), "DONE(E_JSON)" },
        { "S|data: [\"choices\",{}]\n\n" TEXT("a") FINISH("stop"), "DONE(E_JSON)" },
        { "S|data: {\"choices\":{\"a\":1}}\n\n" CHUNK("[\"content\",\"x\"]") TEXT("a")
          FINISH("stop"), "START() TEXT(a) stop DONE(OK)" },
        { "S|" CHUNK("{\"tool_calls\":[{\"index\":0,\"id\":\"i0\",\"function\":{\"name\":\"f\","
          "\"arguments\":\"\"}}]}")
          CHUNK("{\"tool_calls\":[{\"index\":1,\"id\":\"i1\",\"function\":{\"name\":\"g\","
          "\"arguments\":\"{\"}}]}")
          CHUNK("{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"a\\\":\"}}]}")
          CHUNK("{\"tool_calls\":[{\"index\":1,\"function\":{\"arguments\":\"}\"}},"
          "{\"index\":0,\"function\":{\"arguments\":\"1}\"}}]}")
          FINISH("tool_calls") DONE_LINE,
          "START(m-1) BEGIN(0 i0 f) BEGIN(1 i1 g) DELTA(1 {) DELTA(0 {\"a\":) DELTA(1 })"
          " DELTA(0 1}) END(0 i0 f {\"a\":1}) END(1 i1 g {}) tool DONE(OK)" },
        { "S|" CHUNK("{\"tool_calls\":[{\"id\":\"i0\",\"function\":{\"name\":\"f\",\"arguments\":"
          "\"{}\"}},{\"id\":\"i1\",\"function\":{\"name\":\"g\",\"arguments\":\"{\"}}]}")
          CHUNK("{\"tool_calls\":[{\"function\":{\"arguments\":\"}\"}}]}") DONE_LINE,
          "START(m-1) BEGIN(0 i0 f) DELTA(0 {}) BEGIN(1 i1 g) DELTA(1 {) DELTA(1 })"
          " END(0 i0 f {}) END(1 i1 g {}) - DONE(OK)" },
    };
    for (size_t i = 0; i < LK__COUNT(table); i++) {
        rig r = { .desc = { .max_tries = 1 } };
        rig_open(&r);
        rig_run(&r, SCRIPT(table[i].script), true, table[i].log);
        rig_close(&r);
    }
}

static void every_split_of_a_stream_means_the_same(void **state) {
    (void)state;
    static const char stream[] = TEXT("Hel\\u00e9") TEXT("\xf0\x9f\x99\x82") TEXT("") FINISH("stop")
        DONE_LINE;
    rig r = { 0 };
    rig_open(&r);
    rig_script(&r, SCRIPT("-"));
    for (size_t cut = 1; cut < sizeof stream - 1; cut++) {
        char piece[sizeof stream];
        rig_ask(&r, true);
        int before = r.peer.requests;
        for (int i = 0; i < 1000 && r.peer.requests == before; i++) rig_turns(&r, 1);
        peer_start_stream(r.peer.last);
        memcpy(piece, stream, cut);
        piece[cut] = '\0';
        peer_chunk(r.peer.last, piece);
        rig_turns(&r, 2);
        peer_chunk(r.peer.last, stream + cut);
        peer_end_stream(r.peer.last);
        rig_wait(&r);
        rig_expect(&r, "START(m-1) TEXT(Hel\xc3\xa9) TEXT(\xf0\x9f\x99\x82) stop DONE(OK)");
    }
    assert_int_equal(r.peer.accepted, 1);
    rig_close(&r);
}

static void a_stream_ends_soon_after_its_last_event(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_script(&r, SCRIPT("H|" TEXT("a") FINISH("stop") DONE_LINE));
    rig_ask(&r, true);
    rig_turns(&r, 50);
    assert_false(r.done);
    rig_pass(&r, 1000); /* the body is kept open: that is no reason to wait longer */
    rig_expect(&r, "START(m-1) TEXT(a) stop DONE(OK)");
    rig_close(&r);
}

/* ---- deadlines --------------------------------------------------------------------------------*/

static void times_out(rig *r, bool stream, int64_t after_ms, llmkit_deadline which,
                      const char *field) {
    rig_turns(r, 50);
    assert_false(r->done);
    rig_pass(r, after_ms - 1);
    assert_false(r->done);
    rig_pass(r, 2);
    (void)stream;
    assert_true(r->done);
    assert_err(r->error.code, LLMKIT_E_TIMEOUT);
    assert_int_equal(r->error.deadline, which);
    if (!strstr(r->error.message, field)) print_error("%s\n", r->error.message);
    assert_non_null(strstr(r->error.message, field));
    assert_true(r->error.retryable);
}

static void silence_before_the_reply_times_out(void **state) {
    (void)state;
    rig r = { .desc = { .first_byte_ms = 300, .max_tries = 1 } };
    rig_open(&r);
    rig_script(&r, SCRIPT("-"));
    rig_ask(&r, false);
    times_out(&r, false, 300, LLMKIT_DEADLINE_FIRST_BYTE, "first_byte_ms");
    assert_ok(rig_try(&r, &(llmkit_request){ .prompt = "x", .first_byte_ms = 50 }, true));
    times_out(&r, true, 50, LLMKIT_DEADLINE_FIRST_BYTE, "first_byte_ms");
    rig_close(&r);
}

static void the_defaults_of_the_deadlines_are_those_documented(void **state) {
    (void)state;
    rig r = { .desc = { .max_tries = 1 } };
    rig_open(&r);
    rig_script(&r, SCRIPT("-"));
    rig_ask(&r, true);
    times_out(&r, true, 60000, LLMKIT_DEADLINE_FIRST_BYTE, "first_byte_ms");
    r.desc.first_byte_ms = 700000;
    rig_close_client(&r);
    rig_open_client(&r);
    rig_ask(&r, false);
    times_out(&r, true, 600000, LLMKIT_DEADLINE_TOTAL, "total_ms");
    rig_close(&r);
}

static void silence_in_the_middle_times_out(void **state) {
    (void)state;
    rig r = { .desc = { .idle_ms = 300, .max_tries = 1 } };
    rig_open(&r);
    rig_script(&r, SCRIPT("H|" TEXT("a")));
    rig_ask(&r, true);
    times_out(&r, true, 300, LLMKIT_DEADLINE_IDLE, "idle_ms");
    assert_int_equal(r.error.http_status, 200);
    rig_script(&r, SCRIPT("R|HTTP/1.1 200 OK\r\nConte")); /* in the head */
    rig_ask(&r, true);
    times_out(&r, true, 300, LLMKIT_DEADLINE_IDLE, "idle_ms");
    rig_script(&r, SCRIPT("R|HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"));
    rig_ask(&r, false);
    times_out(&r, true, 300, LLMKIT_DEADLINE_IDLE, "idle_ms");
    rig_close(&r);
}

static void bytes_that_come_move_the_idle_deadline(void **state) {
    (void)state;
    rig r = { .desc = { .idle_ms = 300, .max_tries = 1 } };
    rig_open(&r);
    rig_script(&r, SCRIPT("H|" TEXT("a")));
    rig_ask(&r, true);
    rig_turns(&r, 50);
    for (int i = 0; i < 10; i++) {
        rig_pass(&r, 299);
        assert_false(r.done);
        peer_chunk(r.peer.last, ": still here\n");
        rig_turns(&r, 4);
    }
    times_out(&r, true, 300, LLMKIT_DEADLINE_IDLE, "idle_ms");
    rig_close(&r);
}

static void the_total_deadline_covers_retries(void **state) {
    (void)state;
    rig r = { .desc = { .total_ms = 5000, .first_byte_ms = 2000, .max_tries = 10 } };
    rig_open(&r);
    rig_script(&r, SCRIPT("-"));
    rig_ask(&r, false); /* 2 s, 0.4-0.5 s, 2 s, 0.75-1 s: the third would begin after it */
    rig_wait_passing(&r, 100);
    assert_err(r.error.code, LLMKIT_E_TIMEOUT);
    assert_true(r.world.now_ns <= 5200 * MS);
    rig_clear(&r);
    assert_ok(rig_try(&r, &(llmkit_request){ .prompt = "x", .total_ms = 100 }, true));
    times_out(&r, true, 100, LLMKIT_DEADLINE_TOTAL, "total_ms");
    rig_close(&r);
}

static void a_connection_that_does_not_come_times_out(void **state) {
    (void)state;
    rig r = { .desc = { .connect_ms = 300, .max_tries = 1 } };
    int fds[8];
    rig_open(&r);
    peer_deafen(&r.peer);
    int full = socket(AF_INET, SOCK_STREAM, 0);
    lk__addr at = { .len = sizeof at.at.v4 };
    at.at.v4 = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(r.peer.port),
                                     .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int on = 1;
    setsockopt(full, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    assert_int_equal(bind(full, &at.at.any, at.len), 0);
    assert_int_equal(listen(full, 0), 0);
    for (int i = 0; i < 8; i++) { /* until its queue takes no more */
        fds[i] = lk__sys_default()->socket(AF_INET, SOCK_STREAM, 0);
        connect(fds[i], &at.at.any, at.len);
    }
    rig_ask(&r, true);
    times_out(&r, true, 300, LLMKIT_DEADLINE_CONNECT, "connect_ms");
    rig_ask(&r, true); /* and it can be cancelled meanwhile */
    rig_turns(&r, 5);
    assert_ok(llmkit_cancel(r.client, r.call));
    rig_wait(&r);
    rig_expect(&r, "DONE(E_CANCELLED)");
    for (int i = 0; i < 8; i++) close(fds[i]);
    close(full);
    rig_close(&r);
}

static void a_handshake_that_does_not_end_times_out(void **state) {
    (void)state;
    rig r = { .tls = true, .desc = { .tls_ms = 300, .max_tries = 1 } };
    rig_open(&r);
    r.peer.mute = true;
    rig_ask(&r, true);
    times_out(&r, true, 300, LLMKIT_DEADLINE_TLS, "tls_ms");
    rig_ask(&r, true);
    rig_turns(&r, 20);
    assert_ok(llmkit_cancel(r.client, r.call));
    rig_wait(&r);
    rig_expect(&r, "DONE(E_CANCELLED)");
    rig_close(&r);
}

/* A resolver that waits until it is let go. */
static int resolver_gate[2];

static int gated_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                             struct addrinfo **list) {
    char c;
    (void)node;
    if (read(resolver_gate[0], &c, 1) != 1) return EAI_FAIL;
    return getaddrinfo("127.0.0.1", service, hints, list);
}

static void a_name_that_does_not_resolve_times_out(void **state) {
    (void)state;
#if LLMKIT_WITH_THREADS
    rig r = { .host = "somewhere.test", .desc = { .connect_ms = 300, .max_tries = 1 } };
    lk__sys sys = *lk__sys_default();
    assert_int_equal(pipe(resolver_gate), 0);
    sys.getaddrinfo = gated_getaddrinfo;
    rig_open(&r);
    lk__loop_set_sys(r.loop, &sys);
    rig_ask(&r, true);
    times_out(&r, true, 300, LLMKIT_DEADLINE_CONNECT, "connect_ms");
    rig_ask(&r, true);
    rig_turns(&r, 5);
    assert_ok(llmkit_cancel(r.client, r.call));
    rig_wait(&r);
    rig_expect(&r, "DONE(E_CANCELLED)");
    rig_script(&r, SCRIPT("200||" WHOLE)); /* once the name is there, the next call goes well */
    assert_ok(rig_try(&r, &(llmkit_request){ .prompt = "x" }, false));
    assert_int_equal(write(resolver_gate[1], "..", 2), 2);
    while (!r.done) {
        llmkit_loop_poll(r.loop, 1);
        rig_turns(&r, 1);
    }
    rig_expect(&r, "REPLY(Hello) DONE(OK)");
    rig_close(&r);
    close(resolver_gate[0]);
    close(resolver_gate[1]);
#endif
}

static int failing_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                               struct addrinfo **list) {
    (void)node, (void)service, (void)hints, (void)list;
    return EAI_NONAME;
}

static void a_name_that_does_not_exist_is_an_error(void **state) {
    (void)state;
    rig r = { .host = "nowhere.test" };
    lk__sys sys = *lk__sys_default();
    sys.getaddrinfo = failing_getaddrinfo;
    rig_open(&r);
    lk__loop_set_sys(r.loop, &sys);
    rig_ask(&r, true);
    while (!r.done) llmkit_loop_poll(r.loop, 1);
    rig_expect(&r, "DONE(E_DNS)");
    assert_int_equal(r.attempts, 1);
    assert_non_null(strstr(r.error.message, "nowhere.test"));
    rig_close(&r);
}

/* ---- cancelling -------------------------------------------------------------------------------*/

static void cancel_ends_a_call_at_every_stage(void **state) {
    (void)state;
    static const char *const stages[] = {
        "-", "R|HTTP/1.1 200 OK\r\nContent-", "R|HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        "H|" TEXT("a"), "H|" TEXT("a") FINISH("stop") DONE_LINE, "503||",
        "R|HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\n{"
    };
    for (size_t i = 0; i < LK__COUNT(stages); i++) {
        for (int turns = 0; turns < 12; turns++) {
            rig r = { .own_loop = i % 2 };
            rig_open(&r);
            rig_script(&r, SCRIPT(stages[i]));
            rig_ask(&r, turns % 2);
            rig_turns(&r, turns);
            assert_false(r.done);
            assert_ok(llmkit_cancel(r.client, r.call));
            assert_ok(llmkit_cancel(r.client, r.call)); /* twice is no more than once */
            assert_false(r.done);
            rig_wait(&r);
            assert_err(r.error.code, LLMKIT_E_CANCELLED);
            assert_false(r.error.retryable);
            assert_ok(llmkit_cancel(r.client, r.call));
            assert_err(llmkit_pause(r.client, r.call), LLMKIT_E_STALE);
            rig_turns(&r, 5);
            assert_int_equal(r.dones, 1);
            rig_run(&r, SCRIPT("200||" WHOLE), false, "REPLY(Hello) DONE(OK)");
            rig_close(&r);
        }
    }
}

static void cancel_inside(rig *r, const llmkit_event *e) {
    if (e->type == LLMKIT_EV_TEXT) assert_ok(llmkit_cancel(r->client, e->call));
}

static void cancel_works_inside_a_callback(void **state) {
    (void)state;
    rig r = { .hook = cancel_inside };
    rig_open(&r);
    rig_run(&r, SCRIPT("H|" TEXT("a")), true, "START(m-1) TEXT(a) DONE(E_CANCELLED)");
    rig_run(&r, SCRIPT(HELLO), true, r.log); /* it may have ended before */
    rig_close(&r);
}

static void *cancel_from_elsewhere(void *arg) {
    rig *r = arg;
    llmkit_cancel(r->client, r->call);
    return NULL;
}

static void cancel_works_from_another_thread(void **state) {
    (void)state;
    rig r = { 0 };
    lk_world_init(&r.world);
    rig_open(&r);
    rig_script(&r, SCRIPT("-"));
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        rig_ask(&r, i % 2);
        rig_turns(&r, i);
        assert_int_equal(pthread_create(&thread, NULL, cancel_from_elsewhere, &r), 0);
        while (!r.done) llmkit_loop_poll(r.loop, -1); /* the cancel must wake it */
        pthread_join(thread, NULL);
        rig_expect(&r, "DONE(E_CANCELLED)");
    }
    rig_close(&r);
}

/* ---- destroying -------------------------------------------------------------------------------*/

static void destroy_ends_live_calls(void **state) {
    (void)state;
    for (int own = 0; own < 2; own++) {
        for (int turns = 0; turns < 10; turns++) {
            rig r = { .own_loop = own };
            rig_open(&r);
            rig_script(&r, SCRIPT("H|" TEXT("a")));
            rig_ask(&r, turns % 2);
            rig_turns(&r, turns);
            rig_close_client(&r);
            assert_int_equal(r.dones, 1);
            assert_err(r.error.code, LLMKIT_E_CANCELLED);
            rig_close(&r);
        }
    }
}

static int destroy_at;

static void destroy_inside(rig *r, const llmkit_event *e) {
    (void)e;
    if (--destroy_at != 0) return;
    llmkit_client *client = r->client;
    r->client = NULL;
    llmkit_client_destroy(client);
    llmkit_client_destroy(client); /* it is still there, since we are inside, and stays one */
    assert_err(llmkit_submit(client, &(llmkit_request){ .prompt = "x" }, rig_on_event, r, NULL,
                             NULL), LLMKIT_E_CANCELLED);
}

#define TOOLS                                                                                      \
    "S|" CHUNK("{\"content\":\"t\",\"refusal\":\"r\",\"tool_calls\":[{\"index\":0,\"id\":\"i\","   \
    "\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}},{\"index\":1,\"id\":\"i\",\"function\":"  \
    "{\"name\":\"f\",\"arguments\":\"{}\"}}]}") FINISH("tool_calls")                               \
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n" DONE_LINE

static void destroy_works_inside_every_callback(void **state) {
    (void)state;
    for (int own = 0; own < 2; own++) {
        for (int at = 1; at <= 11; at++) {
            rig r = { .own_loop = own, .hook = destroy_inside };
            rig_open(&r);
            rig_script(&r, SCRIPT(TOOLS));
            destroy_at = at;
            rig_ask(&r, true);
            while (!r.done) rig_turns(&r, 1);
            assert_int_equal(r.dones, 1);
            assert_true(destroy_at <= 0);
            assert_err(r.error.code, at < 11 ? LLMKIT_E_CANCELLED : LLMKIT_OK);
            if (own) {
                r.loop = NULL;
                rig_turns(&r, 3);
            }
            rig_close(&r);
        }
        rig r = { .own_loop = own, .hook = destroy_inside };
        rig_open(&r);
        rig_script(&r, SCRIPT("200||" WHOLE));
        destroy_at = 1;
        rig_ask(&r, false);
        while (!r.done) rig_turns(&r, 1);
        rig_expect(&r, "REPLY(Hello) DONE(OK)");
        if (own) r.loop = NULL;
        rig_close(&r);
    }
}

/* A callback may begin a call whose request has to be parsed, in the middle of an event. */
static void submit_inside(rig *r, const llmkit_event *e) {
    if (e->type != LLMKIT_EV_TEXT) return;
    r->hook = NULL;
    rig saved = *r;
    llmkit_call call;
    assert_ok(llmkit_submit(r->client, &(llmkit_request){ .prompt = "x",
                            .extra = "{\"a\":[1,2,3,{\"b\":\"c\"}],\"d\":\"e\"}",
                            .schema = "{\"type\":\"object\"}" }, rig_on_event, r, &call, NULL));
    assert_string_equal(saved.log, r->log);
    llmkit_cancel(r->client, call);
}

static void a_callback_may_submit_in_the_middle_of_an_event(void **state) {
    (void)state;
    rig r = { .hook = submit_inside };
    rig_open(&r);
    rig_script(&r, SCRIPT(TOOLS));
    rig_ask(&r, true);
    while (r.dones < 2) rig_turns(&r, 1);
    rig_turns(&r, 5);
    assert_int_equal(r.dones, 2);
    assert_non_null(strstr(r.log, "TEXT(t) REFUSAL(r) BEGIN(0 i f) DELTA(0 {}) BEGIN(1 i f) "
                           "DELTA(1 {}) END(0 i f {}) END(1 i f {}) USAGE(1 -1)"));
    rig_close(&r);
}

/* ---- pausing ----------------------------------------------------------------------------------*/

static void a_paused_call_pushes_back_and_has_no_deadline(void **state) {
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        rig r = { .tls = tls, .host = "localhost", .desc = { .idle_ms = 1000, .max_tries = 1 } };
        static char text[60000];
        rig_open(&r);
        rig_script(&r, SCRIPT("H|" TEXT("a")));
        rig_ask(&r, true);
        for (int i = 0; i < 2000 && !strstr(r.log, "TEXT"); i++) {
            llmkit_loop_poll(r.loop, 1);
            rig_turns(&r, 1);
        }
        assert_non_null(strstr(r.log, "TEXT"));
        assert_ok(llmkit_pause(r.client, r.call));
        assert_ok(llmkit_pause(r.client, r.call));
        memset(text, ' ', sizeof text - 1);
        text[0] = ':';
        text[sizeof text - 2] = '\n';
        size_t stuck = 0;
        for (int i = 0; i < 400; i++) {
            peer_chunk(r.peer.last, text);
            rig_turns(&r, 2);
            stuck = lk__wire_unsent(&r.peer.last->wire);
        }
        assert_true(stuck > 1000000);
        rig_pass(&r, 100000);
        assert_false(r.done);
        assert_ok(llmkit_resume(r.client, r.call));
        peer_chunk(r.peer.last, TEXT("b") FINISH("stop") DONE_LINE);
        peer_end_stream(r.peer.last);
        for (int i = 0; i < 100000 && !r.done; i++) rig_turns(&r, 1);
        rig_expect(&r, "START(m-1) TEXT(a) TEXT(b) stop DONE(OK)");
        rig_close(&r);
    }
}

static void pause_inside(rig *r, const llmkit_event *e) {
    if (e->type == LLMKIT_EV_TEXT) assert_ok(llmkit_pause(r->client, e->call));
}

static void a_call_that_ends_while_paused_leaves_its_connection_usable(void **state) {
    (void)state;
    rig r = { .hook = pause_inside };
    rig_open(&r);
    for (int i = 0; i < 3; i++)
        rig_run(&r, SCRIPT(HELLO), true, "START(m-1) TEXT(Hel) TEXT(lo) stop DONE(OK)");
    assert_int_equal(r.peer.accepted, 1);
    rig_close(&r);
}

static void a_pause_lasts_over_a_retry(void **state) {
    (void)state;
    rig r = { 0 };
    rig_open(&r);
    rig_script(&r, SCRIPT("500||", HELLO));
    rig_ask(&r, true);
    rig_turns(&r, 20);
    assert_ok(llmkit_pause(r.client, r.call));
    rig_pass(&r, 500);
    rig_pass(&r, 100000);
    assert_int_equal(r.peer.requests, 2);
    rig_expect(&r, "");
    assert_ok(llmkit_resume(r.client, r.call));
    rig_wait(&r);
    rig_expect(&r, "START(m-1) TEXT(Hel) TEXT(lo) stop DONE(OK)");
    rig_close(&r);
}

/* ---- faults -----------------------------------------------------------------------------------*/

static void whole_call_under_faults(rig *r, bool stream) {
    rig_script(r, SCRIPT("500||" REFUSED("\"c\"", "t"), stream ? TOOLS : "200||" WHOLE));
    if (rig_try(r, &(llmkit_request){ .prompt = "Hi", .extra = "{\"x\":\"y\"}" }, stream)) {
        assert_err(r->error.code, LLMKIT_E_NOMEM);
        assert_int_equal(r->dones, 0);
        return;
    }
    rig_wait_passing(r, 500);
    assert_int_equal(r->dones, 1);
    if (!stream && !r->error.code) assert_string_equal(r->log, "REPLY(Hello) DONE(OK)");
    if (stream && !r->error.code)
        assert_non_null(strstr(r->log, "START(m-1) TEXT(t) REFUSAL(r) BEGIN(0 i f) DELTA(0 {}) "
                               "BEGIN(1 i f) DELTA(1 {}) END(0 i f {}) END(1 i f {}) USAGE(1 -1)"));
}

static void every_allocation_may_fail_once(void **state) {
    (void)state;
    for (int stream = 0; stream < 2; stream++) {
        rig r = { 0 };
        rig_open_peer(&r);
        LK_EACH_REFUSAL(&r.world) {
            llmkit_error error;
            snprintf(r.url, sizeof r.url, "http://127.0.0.1:%d/v1", r.peer.port);
            r.provider = (llmkit_provider_desc){ .base_url = r.url, .api_key = "k", .model = "m" };
            r.desc = (llmkit_client_desc){ .env = r.world.env, .providers = &r.provider,
                                           .num_providers = 1 };
            r.client = llmkit_client_create(&r.desc, &error);
            if (!r.client) {
                assert_err(error.code, LLMKIT_E_NOMEM);
                continue;
            }
            r.loop = llmkit_client_loop(r.client);
            whole_call_under_faults(&r, stream);
            if (r.error.code) assert_err(r.error.code, LLMKIT_E_NOMEM);
            rig_clear(&r);
            llmkit_client_destroy(r.client);
            r.client = NULL;
            r.loop = NULL;
            rig_turns(&r, 3);
        }
        rig_close(&r);
    }
}

/* Fails the nth system call of the client's loop. */
static struct {
    int  left;
    int  os_errno;
    bool failed;
} fault;

static bool fault_now(void) {
    if (--fault.left != 0) return false;
    fault.failed = true;
    errno = fault.os_errno;
    return true;
}

static int fault_socket(int domain, int type, int protocol) {
    return fault_now() ? -1 : lk__sys_default()->socket(domain, type, protocol);
}

static int fault_connect(int fd, const struct sockaddr *addr, socklen_t len) {
    return fault_now() ? -1 : lk__sys_default()->connect(fd, addr, len);
}

static ssize_t fault_recv(int fd, void *buf, size_t len) {
    return fault_now() ? -1 : lk__sys_default()->recv(fd, buf, len);
}

static ssize_t fault_send(int fd, const struct iovec *iov, int count) {
    return fault_now() ? -1 : lk__sys_default()->send(fd, iov, count);
}

static void faults_of(bool tls, int os_errno) {
    lk__sys sys = *lk__sys_default();
    sys.socket = fault_socket;
    sys.connect = fault_connect;
    sys.recv = fault_recv;
    sys.send = fault_send;
    for (int nth = 1;; nth++) {
        rig r = { .tls = tls };
        rig_open(&r);
        lk__loop_set_sys(r.loop, &sys);
        fault.left = nth;
        fault.os_errno = os_errno;
        fault.failed = false;
        rig_script(&r, SCRIPT("200||" WHOLE));
        rig_ask(&r, false);
        rig_wait_passing(&r, 1); /* no deadline is needed for it to end */
        assert_true(r.world.now_ns < 2000 * MS);
        rig_expect(&r, "REPLY(Hello) DONE(OK)"); /* by a retry */
        bool failed = fault.failed;
        fault.left = 0;
        rig_close(&r);
        if (!failed) break;
        assert_true(nth < 100);
    }
}

static void every_system_call_may_fail_once(void **state) {
    (void)state;
    faults_of(false, ECONNRESET);
    faults_of(false, ENOBUFS);
    faults_of(false, EACCES);
}

static void every_system_call_under_tls_may_fail_once(void **state) {
    (void)state;
    faults_of(true, ECONNRESET);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_whole_reply_comes_once),
    cmocka_unit_test(a_stream_starts_flows_and_ends_once),
    cmocka_unit_test(connections_are_kept_and_used_again),
    cmocka_unit_test(unix_sockets_and_private_loops_work),
    cmocka_unit_test(the_query_of_base_url_stays_behind_the_path),
    cmocka_unit_test(a_thousand_calls_share_few_connections),
    cmocka_unit_test(calls_that_wait_are_served_in_order),
    cmocka_unit_test(a_thousand_calls_share_few_tls_connections),
    cmocka_unit_test(max_calls_bounds_what_is_in_flight),
    cmocka_unit_test(requests_that_make_no_sense_are_refused),
    cmocka_unit_test(headers_of_a_request_are_sent),
    cmocka_unit_test(no_key_is_left_in_freed_memory),
    cmocka_unit_test(bad_descs_are_refused),
    cmocka_unit_test(the_environment_names_key_and_host),
    cmocka_unit_test(some_statuses_are_tried_again),
    cmocka_unit_test(a_retry_may_succeed),
    cmocka_unit_test(the_server_may_say_whether_to_retry),
    cmocka_unit_test(retry_after_is_kept),
    cmocka_unit_test(a_longer_wait_than_allowed_fails_with_the_wait),
    cmocka_unit_test(backoff_doubles_to_its_cap),
    cmocka_unit_test(a_used_up_quota_is_not_tried_again),
    cmocka_unit_test(a_stale_connection_is_replaced_and_not_counted),
    cmocka_unit_test(many_stale_connections_are_replaced_at_once),
    cmocka_unit_test(nothing_is_tried_again_after_the_first_content),
    cmocka_unit_test(a_refused_connection_is_tried_again),
    cmocka_unit_test(error_bodies_come_in_many_shapes),
    cmocka_unit_test(an_error_body_of_64_kb_is_read_and_a_longer_one_cut),
    cmocka_unit_test(an_endless_error_body_ends_the_call),
    cmocka_unit_test(redirects_are_errors_that_say_where_to),
    cmocka_unit_test(broken_http_is_an_error),
    cmocka_unit_test(replies_that_are_no_replies_are_errors),
    cmocka_unit_test(close_delimited_bodies_are_read),
    cmocka_unit_test(a_reply_over_its_limit_is_refused),
    cmocka_unit_test(streams_come_in_many_shapes),
    cmocka_unit_test(every_split_of_a_stream_means_the_same),
    cmocka_unit_test(a_stream_ends_soon_after_its_last_event),
    cmocka_unit_test(silence_before_the_reply_times_out),
    cmocka_unit_test(the_defaults_of_the_deadlines_are_those_documented),
    cmocka_unit_test(silence_in_the_middle_times_out),
    cmocka_unit_test(bytes_that_come_move_the_idle_deadline),
    cmocka_unit_test(the_total_deadline_covers_retries),
    cmocka_unit_test(a_connection_that_does_not_come_times_out),
    cmocka_unit_test(a_handshake_that_does_not_end_times_out),
    cmocka_unit_test(a_name_that_does_not_resolve_times_out),
    cmocka_unit_test(a_name_that_does_not_exist_is_an_error),
    cmocka_unit_test(cancel_ends_a_call_at_every_stage),
    cmocka_unit_test(cancel_works_inside_a_callback),
    cmocka_unit_test(cancel_works_from_another_thread),
    cmocka_unit_test(destroy_ends_live_calls),
    cmocka_unit_test(destroy_works_inside_every_callback),
    cmocka_unit_test(a_callback_may_submit_in_the_middle_of_an_event),
    cmocka_unit_test(a_paused_call_pushes_back_and_has_no_deadline),
    cmocka_unit_test(a_call_that_ends_while_paused_leaves_its_connection_usable),
    cmocka_unit_test(a_pause_lasts_over_a_retry),
    cmocka_unit_test(every_allocation_may_fail_once),
    cmocka_unit_test(every_system_call_may_fail_once),
    cmocka_unit_test(every_system_call_under_tls_may_fail_once),
};

LK_TEST_MAIN(tests)
