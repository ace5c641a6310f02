/* test_stream.c -- the two blocking ways to call, against a scripted server on the same loop */
#include "rig.h"

/* Waiting needs a clock that runs, so retries come after a millisecond. */
static void stream_rig_open(rig *r) {
    llmkit_error error;
    lk_world_init(&r->world);
    r->desc.backoff_ms = r->desc.max_backoff_ms = 1;
    r->peer_loop = r->loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = r->world.env }, &error);
    r->peer.answer = rig_answer;
    r->peer.user = r;
    peer_open(&r->peer, r->loop);
    rig_open_client(r);
}

static void stream_rig_close(rig *r) {
    llmkit_client_destroy(r->client);
    peer_close(&r->peer);
    llmkit_loop_destroy(r->loop);
    assert_no_leak(&r->world);
}

static const llmkit_request hi = { .prompt = "Hi" };

/* ---- whole ------------------------------------------------------------------------------------*/

static void check_terminated(llmkit_str s) {
    assert_non_null(s.ptr);
    assert_int_equal(s.ptr[s.len], 0);
}

static void check_reply(const llmkit_reply *reply) {
    check_terminated(reply->text);
    check_terminated(reply->refusal);
    check_terminated(reply->model);
    check_terminated(reply->provider);
    check_terminated(reply->request_id);
    check_terminated(reply->finish_text);
    check_terminated(reply->raw);
    for (size_t i = 0; i < reply->num_tool_calls; i++) {
        check_terminated(reply->tool_calls[i].id);
        check_terminated(reply->tool_calls[i].name);
        check_terminated(reply->tool_calls[i].arguments);
    }
}

static void complete_waits_for_the_whole_reply(void **state) {
    (void)state;
    rig r = { 0 };
    llmkit_reply reply;
    stream_rig_open(&r);
    rig_script(&r, SCRIPT("503||", "200|X-Request-Id: q\r\n|" WHOLE));
    assert_ok(llmkit_complete(r.client, &hi, &reply));
    check_reply(&reply);
    assert_str(reply.text, "Hello");
    assert_str(reply.model, "m-1");
    assert_str(reply.provider, "127.0.0.1");
    assert_str(reply.request_id, "q");
    assert_str(reply.finish_text, "stop");
    assert_str(reply.raw, WHOLE);
    assert_int_equal(reply.finish, LLMKIT_STOP);
    assert_int_equal(reply.usage.input, 3);
    assert_int_equal(reply.usage.output, 2);
    assert_int_equal(reply.usage.cache_read, -1);
    assert_int_equal(reply.attempts, 2);
    assert_true(reply.first_byte_ns > 0 && reply.first_byte_ns <= reply.total_ns);
    assert_ok(reply.error.code);
    llmkit_reply_free(&reply);
    llmkit_reply_free(&reply);
    stream_rig_close(&r);
}

static void a_reply_outlives_its_client(void **state) {
    (void)state;
    rig r = { 0 };
    llmkit_reply reply;
    stream_rig_open(&r);
    rig_script(&r, SCRIPT("200||{\"choices\":[{\"message\":{\"tool_calls\":[{\"id\":\"i\","
                          "\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}},{\"id\":\"j\","
                          "\"function\":{\"name\":\"g\",\"arguments\":\"[]\"}}]}}]}"));
    assert_ok(llmkit_complete(r.client, &hi, &reply));
    llmkit_client_destroy(r.client);
    r.client = NULL;
    check_reply(&reply);
    assert_int_equal(reply.num_tool_calls, 2);
    assert_str(reply.tool_calls[0].arguments, "{}");
    assert_str(reply.tool_calls[1].name, "g");
    llmkit_reply_free(&reply);
    peer_close(&r.peer);
    llmkit_loop_destroy(r.loop);
    assert_no_leak(&r.world);
}

static void a_failed_reply_can_be_read_and_freed(void **state) {
    (void)state;
    rig r = { 0 };
    llmkit_reply reply;
    stream_rig_open(&r);
    rig_script(&r, SCRIPT("401||{\"error\":{\"message\":\"bad key\","
                          "\"code\":\"invalid_api_key\"}}"));
    assert_err(llmkit_complete(r.client, &hi, &reply), LLMKIT_E_AUTH);
    check_reply(&reply);
    assert_string_equal(reply.error.message, "bad key");
    assert_int_equal(reply.error.http_status, 401);
    assert_non_null(strstr(reply.raw.ptr, "invalid_api_key"));
    llmkit_reply_free(&reply);
    assert_err(llmkit_complete(r.client, &(llmkit_request){ 0 }, &reply), LLMKIT_E_ARG);
    check_reply(&reply);
    llmkit_reply_free(&reply);
    stream_rig_close(&r);
}

static void complete_inside(rig *r, const llmkit_event *e) {
    llmkit_reply reply;
    llmkit_event event;
    if (e->type != LLMKIT_EV_TEXT) return;
    assert_err(llmkit_complete(r->client, &hi, &reply), LLMKIT_E_BUSY);
    check_reply(&reply);
    llmkit_reply_free(&reply);
    llmkit_stream *s = llmkit_stream_open(r->client, &hi, NULL);
    assert_non_null(s);
    assert_false(llmkit_stream_next(s, &event)); /* it cannot wait in here */
    llmkit_stream_close(s);
}

static void waiting_inside_a_callback_is_refused(void **state) {
    (void)state;
    rig r = { .hook = complete_inside };
    stream_rig_open(&r);
    rig_script(&r, SCRIPT(HELLO));
    rig_ask(&r, true);
    while (!r.done) llmkit_loop_poll(r.loop, -1);
    rig_expect(&r, "START(m-1) TEXT(Hel) TEXT(lo) stop DONE(OK)");
    stream_rig_close(&r);
}

/* ---- streams ----------------------------------------------------------------------------------*/

static void read_all(rig *r, llmkit_stream *s) {
    rig_clear(r);
    for (llmkit_event e; llmkit_stream_next(s, &e);) {
        assert_false(r->done);
        rig_on_event(r, &e);
    }
    assert_true(r->done);
}

static llmkit_stream *open_stream(rig *r) {
    llmkit_error error;
    llmkit_stream *s = llmkit_stream_open(r->client, &hi, &error);
    if (!s) print_error("%s\n", error.message);
    assert_non_null(s);
    return s;
}

#define TOOLS                                                                                      \
    "S|" CHUNK("{\"tool_calls\":[{\"index\":0,\"id\":\"i\",\"function\":{\"name\":\"f\","          \
    "\"arguments\":\"{}\"}}]}") FINISH("tool_calls") DONE_LINE

static void a_stream_hands_out_its_events_in_order(void **state) {
    (void)state;
    rig r = { 0 };
    stream_rig_open(&r);
    for (int i = 0; i < 3; i++) {
        rig_script(&r, SCRIPT("500||", HELLO, TOOLS));
        llmkit_stream *s = open_stream(&r);
        read_all(&r, s);
        rig_expect(&r, "START(m-1) TEXT(Hel) TEXT(lo) stop DONE(OK)");
        assert_int_equal(r.attempts, 2);
        llmkit_event e;
        assert_false(llmkit_stream_next(s, &e));
        llmkit_stream_close(s);
        s = open_stream(&r);
        read_all(&r, s);
        rig_expect(&r, "START(m-1) BEGIN(0 i f) DELTA(0 {}) END(0 i f {}) tool DONE(OK)");
        llmkit_stream_close(s);
    }
    llmkit_stream_close(NULL);
    stream_rig_close(&r);
}

static void the_error_of_a_stream_comes_with_its_last_event(void **state) {
    (void)state;
    rig r = { .desc = { .max_tries = 1 } };
    stream_rig_open(&r);
    rig_script(&r, SCRIPT("C|" TEXT("a")));
    llmkit_stream *s = open_stream(&r);
    read_all(&r, s);
    rig_expect(&r, "START(m-1) TEXT(a) DONE(E_TRUNCATED)");
    assert_true(strlen(r.error.message) > 0);
    llmkit_stream_close(s);
    assert_null(llmkit_stream_open(r.client, &(llmkit_request){ 0 }, &r.error));
    assert_err(r.error.code, LLMKIT_E_ARG);
    assert_null(llmkit_stream_open(r.client, &(llmkit_request){ 0 }, NULL));
    stream_rig_close(&r);
}

static void closing_early_cancels(void **state) {
    (void)state;
    rig r = { 0 };
    stream_rig_open(&r);
    rig_script(&r, SCRIPT("H|" TEXT("a")));
    for (int events = 0; events < 3; events++) {
        llmkit_event e;
        llmkit_stream *s = open_stream(&r);
        for (int i = 0; i < events; i++) assert_true(llmkit_stream_next(s, &e));
        assert_int_equal(llmkit_client_read(r.client).in_flight, 1);
        llmkit_stream_close(s);
        assert_int_equal(llmkit_client_read(r.client).in_flight, 0);
    }
    stream_rig_close(&r);
}

/* The views of an event stay until the next one is asked for, whatever else the loop does. */
static void views_stay_while_other_calls_run(void **state) {
    (void)state;
    static char many[40000];
    rig r = { 0 };
    llmkit_event e;
    llmkit_reply reply;
    stream_rig_open(&r);
    strcpy(many, "S|" TEXT("first"));
    while (strlen(many) < 38000) strcat(many, TEXT("more and more"));
    strcat(many, FINISH("stop") DONE_LINE);
    rig_script(&r, SCRIPT("H|" TEXT("first"), "200||" WHOLE));
    llmkit_stream *s = open_stream(&r);
    assert_true(llmkit_stream_next(s, &e)); /* START */
    peer_conn *c = r.peer.last;
    assert_true(llmkit_stream_next(s, &e));
    assert_str(e.text, "first");
    peer_chunk(c, many + 2);
    assert_ok(llmkit_complete(r.client, &hi, &reply));
    llmkit_reply_free(&reply);
    for (int i = 0; i < 20; i++) llmkit_loop_poll(r.loop, 0);
    assert_str(e.text, "first");
    assert_str(e.provider, "");
    int n = 0;
    while (llmkit_stream_next(s, &e)) n += e.type == LLMKIT_EV_TEXT;
    assert_true(n > 300);
    llmkit_stream_close(s);
    stream_rig_close(&r);
}

static void a_slow_reader_pushes_back(void **state) {
    (void)state;
    static char many[60000];
    rig r = { 0 };
    llmkit_event e;
    size_t events = 0, stuck = 0, lines = 0;
    stream_rig_open(&r);
    rig_script(&r, SCRIPT("H|" TEXT("first")));
    llmkit_stream *s = open_stream(&r);
    while (strlen(many) < 58000) {
        strcat(many, TEXT("more"));
        lines++;
    }
    assert_true(llmkit_stream_next(s, &e));
    for (int i = 0; i < 200; i++) {
        peer_chunk(r.peer.last, many);
        for (int k = 0; k < 3; k++) llmkit_loop_poll(r.loop, 0);
        stuck = lk__wire_unsent(&r.peer.last->wire);
    }
    assert_true(stuck > 1000000); /* the stream has stopped reading */
    peer_chunk(r.peer.last, FINISH("stop") DONE_LINE);
    peer_end_stream(r.peer.last);
    while (llmkit_stream_next(s, &e)) events += e.type == LLMKIT_EV_TEXT;
    assert_int_equal(events, 200 * lines + 1);
    assert_null(e.error);
    llmkit_stream_close(s);
    stream_rig_close(&r);
}

static void a_stream_survives_its_client(void **state) {
    (void)state;
    for (int events = 0; events < 4; events++) {
        rig r = { 0 };
        llmkit_event e;
        stream_rig_open(&r);
        rig_script(&r, SCRIPT("H|" TEXT("a") TEXT("b")));
        llmkit_stream *s = open_stream(&r);
        for (int i = 0; i < events && i < 3; i++) assert_true(llmkit_stream_next(s, &e));
        llmkit_client_destroy(r.client);
        r.client = NULL;
        llmkit_event_type last = LLMKIT_EV_NONE;
        while (llmkit_stream_next(s, &e)) {
            last = e.type;
            if (e.type == LLMKIT_EV_DONE) assert_err(e.error->code, LLMKIT_E_CANCELLED);
        }
        assert_int_equal(last, LLMKIT_EV_DONE);
        llmkit_stream_close(s);
        peer_close(&r.peer);
        llmkit_loop_destroy(r.loop);
        assert_no_leak(&r.world);
    }
}

static void a_paused_stream_survives_its_client(void **state) {
    (void)state;
    static char many[60000];
    rig r = { 0 };
    llmkit_event e;
    stream_rig_open(&r);
    rig_script(&r, SCRIPT("H|" TEXT("first")));
    llmkit_stream *s = open_stream(&r);
    while (strlen(many) < 58000) strcat(many, TEXT("more"));
    assert_true(llmkit_stream_next(s, &e));
    for (int i = 0; i < 50; i++) {
        peer_chunk(r.peer.last, many);
        for (int k = 0; k < 3; k++) llmkit_loop_poll(r.loop, 0);
    }
    llmkit_client_destroy(r.client);
    r.client = NULL;
    while (llmkit_stream_next(s, &e)) {}
    llmkit_stream_close(s);
    peer_close(&r.peer);
    llmkit_loop_destroy(r.loop);
    assert_no_leak(&r.world);
}

static void blocking_calls_survive_every_refusal(void **state) {
    (void)state;
    rig r = { 0 };
    llmkit_reply reply;
    stream_rig_open(&r);
    rig_script(&r, SCRIPT("200||" WHOLE)); /* the loop keeps what it allocates now */
    assert_ok(llmkit_complete(r.client, &hi, &reply));
    llmkit_reply_free(&reply);
    LK_EACH_REFUSAL(&r.world) {
        llmkit_client *client = llmkit_client_create(&r.desc, &r.error);
        if (!client) {
            assert_err(r.error.code, LLMKIT_E_NOMEM);
            continue;
        }
        rig_script(&r, SCRIPT("200||" WHOLE, "200||" WHOLE, TOOLS));
        llmkit_err err = llmkit_complete(client, &hi, &reply);
        check_reply(&reply);
        if (!err) assert_str(reply.text, "Hello");
        llmkit_reply_free(&reply);
        rig_script(&r, SCRIPT(TOOLS));
        llmkit_stream *s = llmkit_stream_open(client, &hi, &r.error);
        if (s) {
            read_all(&r, s);
            assert_int_equal(r.dones, 1);
            if (!r.error.code)
                rig_expect(&r, "START(m-1) BEGIN(0 i f) DELTA(0 {}) END(0 i f {}) tool DONE(OK)");
        }
        llmkit_stream_close(s);
        llmkit_client_destroy(client);
        for (int i = 0; i < 5 || peer_open_conns(&r.peer) > 1; i++) llmkit_loop_poll(r.loop, 0);
    }
    stream_rig_close(&r);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(complete_waits_for_the_whole_reply),
    cmocka_unit_test(a_reply_outlives_its_client),
    cmocka_unit_test(a_failed_reply_can_be_read_and_freed),
    cmocka_unit_test(waiting_inside_a_callback_is_refused),
    cmocka_unit_test(a_stream_hands_out_its_events_in_order),
    cmocka_unit_test(the_error_of_a_stream_comes_with_its_last_event),
    cmocka_unit_test(closing_early_cancels),
    cmocka_unit_test(views_stay_while_other_calls_run),
    cmocka_unit_test(a_slow_reader_pushes_back),
    cmocka_unit_test(a_stream_survives_its_client),
    cmocka_unit_test(a_paused_stream_survives_its_client),
    cmocka_unit_test(blocking_calls_survive_every_refusal),
};

LK_TEST_MAIN(tests)
