/* test_sse.c -- event streams: each line of the conformance table, at every split */
#include "test.h"

/* ---- A transcript of the events --------------------------------------------------------------*/

typedef struct transcript {
    lk__sse    decoder;
    lk__buf    text;
    llmkit_env env;
} transcript;

/* Feeds a piece that ends at a guard page, and spoils it afterwards: no view may outlive it. */
static void feed(transcript *t, const char *data, size_t n) {
    char         *piece = lk_guarded(data, n);
    llmkit_str    in = { piece, n };
    lk__sse_event event;
    size_t        before = n + 1;
    while (lk__sse_feed(&t->decoder, &in, &event)) {
        assert_true(in.len < before); /* it goes on */
        before = in.len;
        lk__buf_ch(&t->text, '[');
        lk__buf_str(&t->text, event.name);
        lk__buf_ch(&t->text, '|');
        lk__buf_str(&t->text, event.data);
        lk__buf_ch(&t->text, ']');
    }
    if (!t->decoder.error) assert_int_equal(in.len, 0);
    memset(piece, '!', n);
}

static void begin(transcript *t, size_t max) {
    *t = (transcript){ .env = lk__env_fill(NULL) };
    lk__sse_init(&t->decoder, &t->env, max);
    lk__buf_init(&t->text, &t->env, 0);
}

static void finish(transcript *t, llmkit_str expected) {
    if (t->decoder.error) lk__buf_z(&t->text, llmkit_err_name(t->decoder.error));
    assert_int_equal(t->text.failed, LLMKIT_OK);
    assert_int_equal(t->text.len, expected.len);
    assert_memory_equal(lk__buf_view(&t->text).ptr, expected.ptr, expected.len);
    lk__sse_free(&t->decoder);
    lk__buf_free(&t->text);
}

static void check_split(llmkit_str s, size_t i, size_t j, size_t max, llmkit_str expected) {
    transcript t;
    begin(&t, max);
    feed(&t, s.ptr, i);
    feed(&t, s.ptr + i, j - i);
    feed(&t, s.ptr + j, s.len - j);
    finish(&t, expected);
}

static void check_bytes(llmkit_str s, size_t max, llmkit_str expected) {
    transcript t;
    begin(&t, max);
    for (size_t i = 0; i < s.len; i++) feed(&t, s.ptr + i, 1);
    finish(&t, expected);
}

static void check_str(llmkit_str s, size_t max, llmkit_str expected) {
    check_bytes(s, max, expected);
    for (size_t i = 0; i <= s.len; i++) {
        for (size_t j = i; j <= s.len; j++) {
            if (s.len <= 64 || j == s.len) check_split(s, i, j, max, expected);
        }
    }
}

static void check(const char *stream, const char *expected) {
    check_str(lk__str_z(stream), 0, lk__str_z(expected));
}

/* The same with each LF of stream as CR, and as CRLF. */
static void check_ends(const char *stream, const char *expected) {
    char   cr[256], crlf[512];
    size_t n = 0, len = strlen(stream);
    assert_true(len < sizeof cr);
    check(stream, expected);
    for (size_t i = 0; i <= len; i++) {
        cr[i] = stream[i] == '\n' ? '\r' : stream[i];
        if (stream[i] == '\n') crlf[n++] = '\r';
        crlf[n++] = stream[i];
    }
    check(cr, expected);
    check(crlf, expected);
}

/* ---- WHATWG HTML 9.2 -------------------------------------------------------------------------*/

static void events_end_at_empty_lines(void **state) {
    (void)state;
    check_ends("data: a\n\n", "[|a]");
    check_ends("data: a\n\ndata: b\n\n\n\ndata: c\n\n", "[|a][|b][|c]");
    check_ends("event: x\ndata: a\n\ndata: b\n\n", "[x|a][|b]");
    check_ends("data: a\nevent: x\n\n", "[x|a]");
    check_ends("event: x\nevent: y\ndata: a\n\n", "[y|a]");
    check_ends("event: x\nevent\ndata: a\n\n", "[|a]");
    check_ends("event:\ndata: a\n\n", "[|a]");
}

static void line_ends_may_be_mixed(void **state) {
    (void)state;
    check("data: a\r\n\ndata: b\n\r\ndata: c\r\r\ndata: d\r\n\r\ndata: e\n\rdata: f\r\r",
          "[|a][|b][|c][|d][|e][|f]");
    check("\r\n\r\n\n\n\r\r: x\rdata: a\r\ndata: b\rdata: c\n\r", "[|a\nb\nc]");
    check("data: a\rdata: b\n\ndata: c\n\n", "[|a\nb][|c]");
}

static void an_event_is_not_held_back_for_the_lf_of_a_crlf(void **state) {
    (void)state;
    transcript t;
    begin(&t, 0);
    feed(&t, "data: a\r\n\r", 10);
    assert_str(lk__buf_view(&t.text), "[|a]");
    feed(&t, "\n", 1);
    feed(&t, "data: b\r\r", 9);
    assert_str(lk__buf_view(&t.text), "[|a][|b]");
    finish(&t, LK__STR("[|a][|b]"));
}

static void u2028_and_other_separators_are_data(void **state) {
    (void)state;
    check("data: a\xe2\x80\xa8" "b\xe2\x80\xa9" "c\x0b" "d\x0c" "e\xc2\x85" "f\n\n",
          "[|a\xe2\x80\xa8" "b\xe2\x80\xa9" "c\x0b" "d\x0c" "e\xc2\x85" "f]");
}

static void a_byte_order_mark_is_dropped_at_the_start_only(void **state) {
    (void)state;
    check("\xef\xbb\xbf" "data: a\n\n", "[|a]");
    check("\xef\xbb\xbf\xef\xbb\xbf" "data: a\n\ndata: b\n\n", "[|b]");
    check("\n\xef\xbb\xbf" "data: a\n\ndata: \xef\xbb\xbf\n\n", "[|\xef\xbb\xbf]");
    check("\xef\xbb" "data: a\n\ndata: b\n\n", "[|b]");
    check("\xef" "data: a\n\ndata: b\n\n", "[|b]");
    check("\xef\xbb\xbf", "");
}

static void one_blank_after_the_colon_is_dropped(void **state) {
    (void)state;
    check_ends("data:a\n\ndata: a\n\ndata:  a\n\ndata:\ta\n\ndata: a \n\n",
               "[|a][|a][| a][|\ta][|a ]");
    check_ends("event:x\ndata:{}\n\nevent:  x\ndata:{}\n\n", "[x|{}][ x|{}]");
}

static void data_lines_are_joined_by_lf(void **state) {
    (void)state;
    check_ends("data: a\ndata: b\ndata:c\n\n", "[|a\nb\nc]");
    check_ends("data: a\ndata\ndata: \ndata: b\n\n", "[|a\n\n\nb]");
    check_ends("data\n\n", "[|]");
    check_ends("data:\n\ndata: \n\n", "[|][|]");
    check_ends("data\ndata\n\ndata:\n", "[|\n]");
}

static void comments_are_dropped(void **state) {
    (void)state;
    check_ends(": keepalive\n\n: OPENROUTER PROCESSING\n\n:\n\n", "");
    check_ends(": a\ndata: x\n:\ndata: y\n:data: z\n\n", "[|x\ny]");
}

static void fields_have_exact_names(void **state) {
    (void)state;
    check_ends("Data: a\ndata : b\n data: c\ndatax: d\ndat: e\n\n", "");
    check_ends("data: a\nfoo\nfoo: bar\nEvent: x\ndata: b:c\n\n", "[|a\nb:c]");
}

static void ids_are_dropped_even_with_nul(void **state) {
    (void)state;
    check_ends("id: 1\ndata: a\n\nid\ndata: b\n\n", "[|a][|b]");
    check_str(LK__STR("id: 1\0002\ndata: a\0b\n\n"), 0, LK__STR("[|a\0b]"));
}

static void an_event_without_data_is_not_dispatched(void **state) {
    (void)state;
    check_ends("event: x\n\ndata: a\n\n", "[|a]");
    check_ends("id: 7\nevent: x\nretry: 9\n\n", "");
}

static void an_unterminated_event_is_not_dispatched(void **state) {
    (void)state;
    check_ends("data: a\n\ndata: b\n", "[|a]");
    check_ends("data: a\n\ndata: b", "[|a]");
    check_ends("data: a\n\nevent: x\ndata: b", "[|a]");
}

static void retry_takes_digits_only(void **state) {
    static const struct {
        const char *stream;
        int64_t     ms;
    } vectors[] = {
        { "retry: 1500\n", 1500 },     { "retry:0\r\n", 0 },        { "retry: 1 \n", -1 },
        { "retry: -1\n", -1 },         { "retry: 1.5\n", -1 },      { "retry\n", -1 },
        { "retry: 5\nretry: x\n", 5 }, { "retry: 1", -1 },
        { "retry: 9223372036854775807\n", INT64_MAX },
        { "retry: 9223372036854775808\n", -1 },
    };
    (void)state;
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        transcript t;
        begin(&t, 0);
        feed(&t, vectors[i].stream, strlen(vectors[i].stream));
        assert_true(t.decoder.retry_ms == vectors[i].ms);
        finish(&t, LK__STR(""));
    }
}

static void what_providers_send_is_read(void **state) {
    (void)state;
    check("data: {\"choices\":[{\"delta\":{\"content\":\"h\xc3\xa4\"}}]}\n\ndata: [DONE]\n\n",
          "[|{\"choices\":[{\"delta\":{\"content\":\"h\xc3\xa4\"}}]}][|[DONE]]");
    check("event: ping\ndata: {\"type\": \"ping\"}\n\nevent: message_stop\n"
          "data: {\"type\":\"message_stop\"}\n\n",
          "[ping|{\"type\": \"ping\"}][message_stop|{\"type\":\"message_stop\"}]");
    check("data: {\"text\": \"a\"}\r\n\r\ndata: {\"text\": \"b\"}\r\n\r\n",
          "[|{\"text\": \"a\"}][|{\"text\": \"b\"}]");
}

/* ---- Ceilings and cost -----------------------------------------------------------------------*/

static void events_have_a_ceiling(void **state) {
    (void)state;
    check_str(LK__STR("data: 45678\n\n"), 11, LK__STR("[|45678]"));
    check_str(LK__STR("data: 45678\n\n"), 10, LK__STR("E_TOO_BIG"));
    check_str(LK__STR("data: 45678"), 10, LK__STR("E_TOO_BIG"));
    check_str(LK__STR("data: a\n\n: 23456789\ndata: b\n\n"), 10, LK__STR("[|a][|b]"));
    check_str(LK__STR("data: a\n\n: 234567890\ndata: b\n\n"), 10, LK__STR("[|a]E_TOO_BIG"));
    check_str(LK__STR("data:123\ndata:567\ndata:90\n\n"), 10, LK__STR("[|123\n567\n90]"));
    check_str(LK__STR("data:123\ndata:567\ndata:901\n\n"), 10, LK__STR("E_TOO_BIG"));
    check_str(LK__STR("data:12345\nevent:6789\n\n"), 10, LK__STR("[6789|12345]"));
    check_str(LK__STR("event:6789\ndata:12345\n\n"), 10, LK__STR("[6789|12345]"));
}

static void an_error_sticks_until_reset(void **state) {
    (void)state;
    transcript t;
    begin(&t, 10);
    feed(&t, "event: x\rdata: much too long", 28);
    assert_int_equal(t.decoder.error, LLMKIT_E_TOO_BIG);
    feed(&t, "\n\ndata: a\n\n", 11);
    assert_int_equal(t.decoder.error, LLMKIT_E_TOO_BIG);
    lk__sse_reset(&t.decoder);
    feed(&t, "\xef\xbb\xbf" "data: a\n\n", 12);
    finish(&t, LK__STR("[|a]"));
}

/* 10,000 lines in one event, whole and in pieces.  Joining anew for each would take seconds. */
static void many_data_lines_cost_linear_time(void **state) {
    (void)state;
    enum { NUM = 10000 };
    static char stream[NUM * 9 + 2], joined[NUM * 3 + 8];
    for (size_t i = 0; i < NUM; i++) {
        memcpy(stream + i * 9, "data: ab\n", 9);
        memcpy(joined + 2 + i * 3, "ab\n", 3);
    }
    memcpy(joined, "[|", 2);
    joined[NUM * 3 + 1] = ']';
    stream[NUM * 9] = '\n';
    llmkit_str s = { stream, NUM * 9 + 1 }, expected = { joined, NUM * 3 + 2 };
    check_split(s, 0, s.len, 0, expected);
    check_split(s, 12345, 54321, 0, expected);
    check_bytes(s, 0, expected);
}

/* A search for the next LF that looks at the whole rest for each line would take seconds here. */
static void streams_without_lf_cost_linear_time(void **state) {
    (void)state;
    enum { NUM = 1000000 };
    llmkit_env env = lk__env_fill(NULL);
    char      *stream = malloc(NUM * 8);
    lk__sse    d;
    assert_non_null(stream);
    for (int crs = 1; crs <= 2; crs++) {
        const char *part = crs == 2 ? "data:a\r\r" : "event:\r:";
        for (size_t i = 0; i < NUM; i++) memcpy(stream + i * 8, part, 8);
        llmkit_str    in = { stream, NUM * 8 };
        lk__sse_event event;
        size_t        num = 0;
        lk__sse_init(&d, &env, 0);
        while (lk__sse_feed(&d, &in, &event)) num++;
        assert_int_equal(num, crs == 2 ? NUM : 0);
        assert_int_equal(d.error, LLMKIT_OK);
        lk__sse_free(&d);
    }
    free(stream);
}

/* ---- Memory ----------------------------------------------------------------------------------*/

static void a_whole_event_is_a_view_and_allocates_nothing(void **state) {
    (void)state;
    lk_world world;
    lk_world_init(&world);
    llmkit_env    env = lk__env_fill(&world.env);
    lk__sse       d;
    lk__sse_event event;
    llmkit_str    text = lk_guarded_str("event: x\ndata: abc\n\n\r\ndata: d\r\n\r\ndata:e\n\n");
    llmkit_str    in = text;
    lk__sse_init(&d, &env, 0);
    assert_true(lk__sse_feed(&d, &in, &event));
    assert_ptr_equal(event.name.ptr, text.ptr + 7);
    assert_ptr_equal(event.data.ptr, text.ptr + 15);
    assert_str(event.data, "abc");
    assert_true(lk__sse_feed(&d, &in, &event));
    assert_str(event.name, "");
    assert_str(event.data, "d");
    assert_true(lk__sse_feed(&d, &in, &event));
    assert_ptr_equal(event.data.ptr, text.ptr + text.len - 3);
    assert_false(lk__sse_feed(&d, &in, &event));
    assert_int_equal((unsigned long)world.calls, 0);
    lk__sse_free(&d);
}

static void a_warm_decoder_allocates_nothing(void **state) {
    (void)state;
    static const char stream[] = "event: x\ndata: abc\ndata: def\n\ndata: unfin";
    lk_world world;
    lk_world_init(&world);
    llmkit_env    env = lk__env_fill(&world.env);
    lk__sse       d;
    lk__sse_event event;
    unsigned long calls = 0;
    lk__sse_init(&d, &env, 0);
    for (int i = 0; i < 3; i++) {
        llmkit_str in = lk__str_z(stream);
        assert_true(lk__sse_feed(&d, &in, &event));
        assert_str(event.data, "abc\ndef");
        assert_false(lk__sse_feed(&d, &in, &event));
        if (i > 0) assert_int_equal((unsigned long)world.calls, calls);
        calls = world.calls;
        lk__sse_reset(&d);
    }
    lk__sse_free(&d);
    assert_no_leak(&world);
}

static void a_refused_allocation_is_an_error(void **state) {
    (void)state;
    static const char stream[] = "event: x\ndata: abc\ndata: 0123456789012345678901234567890123456"
                                 "78901234567890123456789012345678901234567890123456789\n\n"
                                 "\xef\xbb" "event: y\ndata: z\n\n";
    lk_world world;
    lk_world_init(&world);
    for (size_t step = 1; step < sizeof stream; step += 9) {
        LK_EACH_REFUSAL(&world) {
            llmkit_env    env = lk__env_fill(&world.env);
            lk__sse       d;
            lk__sse_event event;
            size_t        num = 0;
            lk__sse_init(&d, &env, 0);
            for (size_t at = 0; at < sizeof stream - 1; at += step) {
                size_t     left = sizeof stream - 1 - at;
                llmkit_str in = { stream + at, left < step ? left : step };
                while (lk__sse_feed(&d, &in, &event)) num++;
            }
            assert_int_equal(d.error, world.refused ? LLMKIT_E_NOMEM : LLMKIT_OK);
            assert_true(world.refused ? num < 2 : num == 2);
            lk__sse_free(&d);
        }
    }
}

/* ---- Garbage ---------------------------------------------------------------------------------*/

/* The specification written down a second time, slowly: over the whole stream, with no splits and
 * no fast way. */
static void decode_slowly(const char *s, size_t n, lk__buf *out) {
    char   data[512], name[512];
    size_t data_len = 0, name_len = 0, at = 0;
    if (n >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0) at = 3;
    for (;;) {
        size_t end = at;
        while (end < n && s[end] != '\r' && s[end] != '\n') end++;
        if (end == n) return;
        size_t len = end - at, colon = at;
        const char *line = s + at;
        while (colon < end && s[colon] != ':') colon++;
        size_t value = colon < end ? colon + 1 : end;
        if (value < end && s[value] == ' ') value++;
        if (len == 0 && data_len > 0) {
            lk__buf_fmt(out, "[%.*s|", (int)name_len, name);
            lk__buf_add(out, data, data_len - 1);
            lk__buf_ch(out, ']');
        }
        if (len == 0) data_len = name_len = 0;
        if (colon - at == 4 && memcmp(line, "data", 4) == 0) {
            memcpy(data + data_len, s + value, end - value);
            data_len += end - value;
            data[data_len++] = '\n';
        } else if (colon - at == 5 && memcmp(line, "event", 5) == 0) {
            memcpy(name, s + value, name_len = end - value);
        }
        at = end + (s[end] == '\r' && end + 1 < n && s[end + 1] == '\n' ? 2 : 1);
    }
}

static void garbage_is_read_as_the_specification_says(void **state) {
    (void)state;
    static const char *const words[] = { "data", "data: a", "data:", "event", "event: x", ":",
                                         ": c", " ", "id: 1", "\r", "\n", "\r\n", "\n\n",
                                         "\r\n\r\n", "\r\r", "\xef\xbb\xbf", "\xef\xbb",
                                         "a\xe2\x80\xa8",
                                         "data: 0123456789", "retry: 1" };
    llmkit_env env = { .seed = 11 };
    lk__rand   rand;
    lk__rand_init(&rand, &env);
    for (int round = 0; round < 20000; round++) {
        char   text[256];
        size_t n = 0;
        transcript t;
        begin(&t, 0);
        for (uint64_t num = lk__rand_u64(&rand) % 12; num > 0; num--) {
            uint64_t    r = lk__rand_u64(&rand);
            const char *word = r % 3 == 0 ? "\n" : words[(r >> 8) % LK__COUNT(words)];
            memcpy(text + n, word, strlen(word));
            n += strlen(word);
        }
        decode_slowly(text, n, &t.text);
        llmkit_str s = { text, n }, expected = lk__buf_view(&t.text);
        size_t i = lk__rand_u64(&rand) % (n + 1), j = i + lk__rand_u64(&rand) % (n - i + 1);
        check_split(s, 0, n, 0, expected);
        check_split(s, i, j, 0, expected);
        check_bytes(s, 0, expected);
        lk__sse_free(&t.decoder);
        lk__buf_free(&t.text);
    }
}

/* ---- Writing ---------------------------------------------------------------------------------*/

static void what_is_written_is_read_back(void **state) {
    static const struct {
        const char *name, *data, *wire, *read;
    } vectors[] = {
        { "", "a", "data: a\n\n", "[|a]" },
        { "x", "{}", "event: x\ndata: {}\n\n", "[x|{}]" },
        { "", "", "data: \n\n", "[|]" },
        { "", " a", "data:  a\n\n", "[| a]" },
        { "", "a\nb\rc\r\nd", "data: a\ndata: b\ndata: c\ndata: d\n\n", "[|a\nb\nc\nd]" },
        { "", "\n", "data: \ndata: \n\n", "[|\n]" },
        { "", "a\r\n\r\n", "data: a\ndata: \ndata: \n\n", "[|a\n\n]" },
        { "", "a\n\revent: b", "data: a\ndata: \ndata: event: b\n\n", "[|a\n\nevent: b]" },
    };
    (void)state;
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        llmkit_env env = lk__env_fill(NULL);
        lk__buf    out;
        lk__buf_init(&out, &env, 0);
        lk__sse_write(&out, lk__str_z(vectors[i].name), lk_guarded_str(vectors[i].data));
        assert_str(lk__buf_view(&out), vectors[i].wire);
        check(out.ptr, vectors[i].read);
        lk__buf_free(&out);
    }
}

static void a_name_with_a_line_end_is_refused(void **state) {
    (void)state;
    llmkit_env env = lk__env_fill(NULL);
    lk__buf    out;
    lk__buf_init(&out, &env, 0);
    lk__sse_write(&out, LK__STR("x\ndata: forged"), LK__STR("a"));
    assert_int_equal(out.failed, LLMKIT_E_ARG);
    assert_int_equal(out.len, 0);
    out.failed = LLMKIT_OK;
    lk__sse_write(&out, LK__STR("x\r"), LK__STR("a"));
    assert_int_equal(out.failed, LLMKIT_E_ARG);
    lk__buf_free(&out);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(events_end_at_empty_lines),
    cmocka_unit_test(line_ends_may_be_mixed),
    cmocka_unit_test(an_event_is_not_held_back_for_the_lf_of_a_crlf),
    cmocka_unit_test(u2028_and_other_separators_are_data),
    cmocka_unit_test(a_byte_order_mark_is_dropped_at_the_start_only),
    cmocka_unit_test(one_blank_after_the_colon_is_dropped),
    cmocka_unit_test(data_lines_are_joined_by_lf),
    cmocka_unit_test(comments_are_dropped),
    cmocka_unit_test(fields_have_exact_names),
    cmocka_unit_test(ids_are_dropped_even_with_nul),
    cmocka_unit_test(an_event_without_data_is_not_dispatched),
    cmocka_unit_test(an_unterminated_event_is_not_dispatched),
    cmocka_unit_test(retry_takes_digits_only),
    cmocka_unit_test(what_providers_send_is_read),
    cmocka_unit_test(events_have_a_ceiling),
    cmocka_unit_test(an_error_sticks_until_reset),
    cmocka_unit_test(many_data_lines_cost_linear_time),
    cmocka_unit_test(streams_without_lf_cost_linear_time),
    cmocka_unit_test(a_whole_event_is_a_view_and_allocates_nothing),
    cmocka_unit_test(a_warm_decoder_allocates_nothing),
    cmocka_unit_test(a_refused_allocation_is_an_error),
    cmocka_unit_test(garbage_is_read_as_the_specification_says),
    cmocka_unit_test(what_is_written_is_read_back),
    cmocka_unit_test(a_name_with_a_line_end_is_refused),
};

LK_TEST_MAIN(tests)
