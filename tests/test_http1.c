/* test_http1.c -- HTTP/1.1 messages: what is read, what is refused, at every split */
#include "test.h"

/* ---- A transcript of what the parser says ----------------------------------------------------*/

enum { REQUEST = 1, HEAD_ONLY = 2, CLOSES = 4, SMALL = 8 /* heads of at most 64 bytes */ };

typedef struct transcript {
    lk__http    parser;
    lk__buf     text;
    llmkit_env  env;
    bool        in_body;
    size_t      feeds;
} transcript;

static void say_head(transcript *t, const lk__head *head) {
    lk__buf *b = &t->text;
    if (t->parser.request)
        lk__buf_fmt(b, "%.*s %.*s", LK__ARG(head->method), LK__ARG(head->target));
    else
        lk__buf_fmt(b, "%d '%.*s'", head->status, LK__ARG(head->reason));
    lk__buf_fmt(b, " 1.%d%s%s%s", head->minor, head->keep_alive ? " keep" : "",
                head->chunked ? " chunked" : "", head->expect_continue ? " expect" : "");
    if (head->has_length) lk__buf_fmt(b, " length=%llu", (unsigned long long)head->length);
    for (uint32_t i = 0; i < head->num; i++) {
        lk__buf_fmt(b, " | %.*s=", LK__ARG(head->fields[i].name));
        lk__buf_str(b, head->fields[i].value);
    }
    lk__buf_z(b, "\n");
}

static void say(transcript *t, lk__http_event event, const lk__head *head, llmkit_str body) {
    lk__buf *b = &t->text;
    if (t->in_body && event != LK__HTTP_BODY && event != LK__HTTP_MORE) {
        lk__buf_z(b, "\n");
        t->in_body = false;
    }
    if (event == LK__HTTP_HEAD) say_head(t, head);
    if (event == LK__HTTP_BODY) {
        assert_true(body.len > 0);
        if (!t->in_body) lk__buf_z(b, "body ");
        lk__buf_str(b, body);
        t->in_body = true;
    }
    if (event == LK__HTTP_END) lk__buf_z(b, t->parser.keep_alive ? "end keep\n" : "end\n");
    if (event == LK__HTTP_ERROR)
        lk__buf_fmt(b, "%s: %s\n", llmkit_err_name(t->parser.error), t->parser.reason);
}

/* Feeds a piece that ends at a guard page, and spoils it afterwards: no view may outlive it. */
static bool feed(transcript *t, const char *data, size_t n) {
    char      *piece = lk_guarded(data, n);
    llmkit_str in = { piece, n }, body = { NULL, 0 };
    lk__head   head;
    for (;;) {
        lk__http_event event = lk__http_feed(&t->parser, &in, &head, &body);
        say(t, event, &head, body);
        assert_true(++t->feeds < 10000000);
        if (event == LK__HTTP_ERROR) {
            assert_int_equal(lk__http_feed(&t->parser, &in, &head, &body), LK__HTTP_ERROR);
            return false;
        }
        if (event == LK__HTTP_MORE) assert_int_equal(in.len, 0);
        if (event == LK__HTTP_MORE || (event == LK__HTTP_END && in.len == 0)) break;
    }
    memset(piece, '!', n);
    return true;
}

static void begin(transcript *t, int flags) {
    *t = (transcript){ .env = lk__env_fill(NULL) };
    lk__http_init(&t->parser, &t->env, flags & REQUEST, flags & SMALL ? 64 : 0);
    lk__buf_init(&t->text, &t->env, 0);
    t->parser.no_body = (flags & HEAD_ONLY) != 0;
}

static void finish(transcript *t, int flags, const char *expected) {
    if ((flags & CLOSES) && !t->parser.error) {
        lk__http_event event = lk__http_eof(&t->parser);
        if (event == LK__HTTP_MORE) lk__buf_z(&t->text, "more\n");
        say(t, event, NULL, LK__STR(""));
        if (event != LK__HTTP_ERROR) assert_int_equal(lk__http_eof(&t->parser), LK__HTTP_MORE);
        else assert_int_equal(lk__http_eof(&t->parser), LK__HTTP_ERROR);
    } else if (t->in_body) {
        lk__buf_z(&t->text, "\n");
    }
    assert_int_equal(t->text.failed, LLMKIT_OK);
    assert_str(lk__buf_view(&t->text), expected);
    lk__http_free(&t->parser);
    lk__buf_free(&t->text);
}

/* In pieces [0, i), [i, j), [j, n). */
static void check_split(int flags, const char *data, size_t n, size_t i, size_t j,
                        const char *expected) {
    transcript t;
    begin(&t, flags);
    (void)(feed(&t, data, i) && feed(&t, data + i, j - i) && feed(&t, data + j, n - j));
    finish(&t, flags, expected);
}

static void check_n(int flags, const char *data, size_t n, const char *expected) {
    transcript t;
    begin(&t, flags);
    for (size_t i = 0; i < n && feed(&t, data + i, 1); i++) continue;
    finish(&t, flags, expected);
    for (size_t i = 0; i <= n; i++) {
        check_split(flags, data, n, i, n, expected);
        for (size_t j = i + 1; n <= 96 && j < n; j++) check_split(flags, data, n, i, j, expected);
    }
}

static void check(int flags, const char *data, const char *expected) {
    check_n(flags, data, strlen(data), expected);
}

/* A request, or with flags 0 a response, that is refused for this reason. */
static void refused(int flags, const char *data, const char *reason) {
    char expected[256];
    snprintf(expected, sizeof expected, "E_PROTOCOL: %s\n", reason);
    check(flags, data, expected);
}

/* ---- Requests --------------------------------------------------------------------------------*/

static void requests_are_read(void **state) {
    (void)state;
    check(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / 1.1 keep | Host=a\nend keep\n");
    check(REQUEST,
          "POST /v1/chat/completions?x=1 HTTP/1.1\r\nhost:localhost:80\r\nCONTENT-LENGTH:  5 \t\r\n"
          "Empty:\r\nX-\x21#$%&'*+.^_`|~9: a\tb \xc3\xa4\r\n\r\nhello",
          "POST /v1/chat/completions?x=1 1.1 keep length=5 | host=localhost:80 | CONTENT-LENGTH=5 "
          "| Empty= | X-!#$%&'*+.^_`|~9=a\tb \xc3\xa4\nbody hello\nend keep\n");
    check(REQUEST, "OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n", "OPTIONS * 1.1 keep | Host=\nend keep\n");
    check(REQUEST, "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 0\r\n\r\n",
          "PUT / 1.1 keep expect length=0 | Host=a | Expect=100-Continue | Content-Length=0\n"
          "end keep\n");
}

static void fields_of_other_names_mean_nothing(void **state) {
    (void)state;
    check(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\nHosu: 1\r\nExpecu: 100-continue\r\n"
          "Connectioo: close\r\nContent-Lengti: 7\r\nTransfer-Encodinh: chunked\r\n\r\n",
          "GET / 1.1 keep | Host=a | Hosu=1 | Expecu=100-continue | Connectioo=close"
          " | Content-Lengti=7 | Transfer-Encodinh=chunked\nend keep\n");
    check(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\nExpect: else\r\n\r\n",
          "GET / 1.1 keep | Host=a | Expect=else\nend keep\n");
}

static void requests_follow_one_another(void **state) {
    (void)state;
    check(REQUEST,
          "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
          "\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
          "3\r\nabc\r\n0\r\n\r\n"
          "GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
          "POST /1 1.1 keep length=2 | Host=a | Content-Length=2\nbody hi\nend keep\n"
          "POST /2 1.1 keep chunked | Host=a | Transfer-Encoding=Chunked\nbody abc\nend keep\n"
          "GET /3 1.1 | Host=a | Connection=close\nend\n");
}

static void keep_alive_follows_version_and_connection(void **state) {
    (void)state;
    check(REQUEST, "GET / HTTP/1.0\r\n\r\n", "GET / 1.0\nend\n");
    check(REQUEST, "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
          "GET / 1.0 keep | Connection=Keep-Alive\nend keep\n");
    check(REQUEST, "GET / HTTP/1.0\r\nConnection: close, keep-alive\r\n\r\n",
          "GET / 1.0 | Connection=close, keep-alive\nend\n");
    check(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\nConnection: x,, CLOSE ,y\r\n\r\n",
          "GET / 1.1 | Host=a | Connection=x,, CLOSE ,y\nend\n");
    check(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\nConnection: closed\r\n\r\n",
          "GET / 1.1 keep | Host=a | Connection=closed\nend keep\n");
    check(REQUEST, "GET / HTTP/1.9\r\nHost: a\r\nConnection: a\r\nConnection: close\r\n\r\n",
          "GET / 1.9 | Host=a | Connection=a | Connection=close\nend\n");
}

static void malformed_request_lines_are_refused(void **state) {
    (void)state;
    refused(REQUEST, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "the request target is no visible ASCII");
    refused(REQUEST, "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "the request line does not end in HTTP/1.0 or HTTP/1.1");
    refused(REQUEST, "GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n",
            "the request target is no visible ASCII");
    refused(REQUEST, "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n",
            "the request target is no visible ASCII");
    refused(REQUEST, "GET /\r\nHost: a\r\n\r\n",
            "the request line does not end in HTTP/1.0 or HTTP/1.1");
    refused(REQUEST, "GET\r\nHost: a\r\n\r\n", "the request line has no valid method");
    refused(REQUEST, "G@T / HTTP/1.1\r\n\r\n", "the request line has no valid method");
    static const char *const versions[] = { "HTTP/2.0", "HTTP/1.", "HTTP/1.x", "http/1.1",
                                            "HTTP/1.10", "HTTP/1.1 " };
    for (size_t i = 0; i < LK__COUNT(versions); i++) {
        char text[64];
        snprintf(text, sizeof text, "GET / %s\r\nHost: a\r\n\r\n", versions[i]);
        refused(REQUEST, text, "the request line does not end in HTTP/1.0 or HTTP/1.1");
    }
}

static void another_protocol_is_told_by_its_first_bytes(void **state) {
    (void)state;
    refused(REQUEST, "\x16\x03\x01", "this is no HTTP request");
    refused(REQUEST, " GET", "this is no HTTP request");
    refused(0, "\x15\x03", "this is no HTTP/1 response");
    refused(0, "SSH-2.0-x", "this is no HTTP/1 response");
    refused(0, "HTTP/2", "this is no HTTP/1 response");
}

static void requests_that_can_be_read_in_two_ways_are_refused(void **state) {
    (void)state;
    refused(REQUEST, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "there are both Content-Length and Transfer-Encoding");
    refused(REQUEST, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            "Content-Length: 5\r\n\r\n",
            "there are both Content-Length and Transfer-Encoding");
    refused(REQUEST, "P / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "Content-Length is given twice");
    refused(REQUEST, "P / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "Content-Length is given twice");
    refused(REQUEST, "P / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "a request in HTTP/1.0 has a Transfer-Encoding");
    static const char *const codings[] = { "gzip, chunked", "chunked, gzip", "identity", "xchunked",
                                           "", "chunked\r\nTransfer-Encoding: chunked",
                                           "\"chunked\"", "chunked;q=1" };
    for (size_t i = 0; i < LK__COUNT(codings); i++) {
        char text[128];
        snprintf(text, sizeof text, "P / HTTP/1.1\r\nTransfer-Encoding: %s\r\n\r\n", codings[i]);
        refused(REQUEST, text, "a Transfer-Encoding other than chunked is not understood");
    }
    refused(REQUEST, "P / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n",
            "white space stands before the colon of a field");
    refused(REQUEST, "P / HTTP/1.1\r\nTransfer-Encoding: \x0b" "chunked\r\n\r\n",
            "the value of a field holds a control byte");
}

static void lines_of_requests_end_in_crlf_only(void **state) {
    (void)state;
    refused(REQUEST, "GET / HTTP/1.1\nHost: a\r\n\r\n", "a line ends in LF without CR");
    refused(REQUEST, "GET / HTTP/1.1\r\nHost: a\n\r\n", "a line ends in LF without CR");
    refused(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\n\n", "a line ends in LF without CR");
    refused(REQUEST, "GET / HTTP/1.1\n\n", "a line ends in LF without CR");
    refused(REQUEST, "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            "the value of a field holds a control byte");
    refused(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
            "the value of a field holds a control byte");
    refused(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
            "a field is folded over two lines");
    refused(REQUEST, "GET / HTTP/1.1\r\n Host: a\r\n\r\n", "a field is folded over two lines");
}

static void malformed_fields_are_refused(void **state) {
    (void)state;
    static const char *const names[] = { ": b", "a", "a\xc3\xa4: b", "a(: b", "a/b: c", "\x01: b",
                                         "\r: b" };
    for (size_t i = 0; i < LK__COUNT(names); i++) {
        char text[64];
        snprintf(text, sizeof text, "GET / HTTP/1.1\r\n%s\r\n\r\n", names[i]);
        refused(REQUEST, text, "the name of a field is malformed");
        snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\n%s\r\n\r\n", names[i]);
        refused(0, text, "the name of a field is malformed");
    }
    refused(REQUEST, "GET / HTTP/1.1\r\nA\t: b\r\n\r\n",
            "white space stands before the colon of a field");
    refused(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "the request has not exactly one Host field");
    refused(REQUEST, "GET / HTTP/1.1\r\nHost2: a\r\n\r\n",
            "the request has not exactly one Host field");
}

static void values_hold_no_control_byte_but_tab(void **state) {
    (void)state;
    for (int c = 0; c < 256; c++) {
        for (size_t at = 0; at < 20; at++) {
            char value[20];
            memset(value, 'v', sizeof value);
            value[at] = (char)c;
            bool control = (c < 32 && c != '\t') || c == 127;
            assert_int_equal(lk__http_has_control(lk__str(lk_guarded(value, 20), 20)), control);
        }
    }
    static const char nul[] = "GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n";
    check_n(REQUEST, nul, sizeof nul - 1,
            "E_PROTOCOL: the value of a field holds a control byte\n");
}

static void token_characters_are_those_of_rfc_9110(void **state) {
    (void)state;
    static const char tokens[] = "!#$%&'*+-.^_`|~0123456789"
                                 "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for (int c = 0; c < 256; c++)
        assert_int_equal(lk__http_is_token_char((char)c), c != 0 && strchr(tokens, c) != NULL);
}

static void lengths_are_decimal_and_fit(void **state) {
    (void)state;
    static const char *const bad[] = { "", "-1", "+1", "0x10", "1 2", "5, 5", "1e3", "5;",
                                       "18446744073709551616", "99999999999999999999999" };
    for (size_t i = 0; i < LK__COUNT(bad); i++) {
        char text[96];
        snprintf(text, sizeof text, "P / HTTP/1.1\r\nContent-Length: %s\r\n\r\n", bad[i]);
        refused(REQUEST, text, "Content-Length is not a number of 64 bits");
    }
    check(CLOSES, "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nx",
          "200 'OK' 1.1 keep length=18446744073709551615 | Content-Length=18446744073709551615\n"
          "body x\nE_TRUNCATED: the connection closed inside a body\n");
    check(0, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 03\r\n\r\nabc",
          "200 'OK' 1.1 keep length=3 | Content-Length=3 | Content-Length=03\n"
          "body abc\nend keep\n");
    refused(0, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
            "Content-Length is given twice");
}

/* ---- Responses -------------------------------------------------------------------------------*/

static void responses_are_read(void **state) {
    (void)state;
    check(0, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
          "200 'OK' 1.1 keep length=2 | Content-Length=2\nbody hi\nend keep\n");
    check(0, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
          "429 'Too Many Requests' 1.1 keep length=0 | Retry-After=1 | Content-Length=0\n"
          "end keep\n");
    check(0, "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.0 204 \r\n\r\n",
          "200 'OK' 1.0 length=1 | Content-Length=1\nbody x\nend\n204 '' 1.0\nend\n");
}

static void the_reason_phrase_may_be_missing(void **state) {
    (void)state;
    check(0, "HTTP/1.1 204\r\n\r\n", "204 '' 1.1 keep\nend keep\n");
    check(0, "HTTP/1.1 204 \r\n\r\n", "204 '' 1.1 keep\nend keep\n");
    check(0, "HTTP/1.1 204 \xc3\xa4 \t x\r\n\r\n", "204 '\xc3\xa4 \t x' 1.1 keep\nend keep\n");
}

static void malformed_status_lines_are_refused(void **state) {
    (void)state;
    static const char *const bad[] = { "HTTP/1.1", "HTTP/1.1 ", "HTTP/1.1 20", "HTTP/1.1  200",
                                       "HTTP/1.x 200", "HTTP/1.1\t200 OK", "HTTP/1.1 -20 OK" };
    for (size_t i = 0; i < LK__COUNT(bad); i++) {
        char text[64];
        snprintf(text, sizeof text, "%s\r\n\r\n", bad[i]);
        refused(0, text, "the status line is malformed");
    }
    refused(0, "HTTP/1.1 099 X\r\n\r\n", "the status code is not a number from 100 to 599");
    refused(0, "HTTP/1.1 600 X\r\n\r\n", "the status code is not a number from 100 to 599");
    refused(0, "HTTP/1.1 2000\r\n\r\n", "the status code is not a number from 100 to 599");
    refused(0, "HTTP/1.1 200 a\rb\r\n\r\n", "the reason phrase holds a control byte");
}

static void lines_of_responses_may_end_in_lf(void **state) {
    (void)state;
    check(0, "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
          "200 'OK' 1.1 keep length=2 | Content-Length=2\nbody hi\nend keep\n");
    check(0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\n\r\n2\nhi\n0;x\nT: 1\n\n",
          "200 'OK' 1.1 keep chunked | Transfer-Encoding=chunked\nbody hi\nend keep\n");
}

static void folded_fields_of_responses_are_joined_by_blanks(void **state) {
    (void)state;
    check(0, "HTTP/1.1 204 OK\r\nA: b\r\n c\r\n\td\r\nE: f\r\n \r\n\r\n",
          "204 'OK' 1.1 keep | A=b   c  \td | E=f\nend keep\n");
    check(0, "HTTP/1.1 200 OK\nContent-Length:\n 2\n\nhi",
          "200 'OK' 1.1 keep length=2 | Content-Length=2\nbody hi\nend keep\n");
    refused(0, "HTTP/1.1 204 OK\r\n A: b\r\n\r\n", "a field is folded over two lines");
}

static void interim_responses_are_skipped(void **state) {
    (void)state;
    check(0,
          "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n"
          "Content-Length: 7\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
          "200 'OK' 1.1 keep length=1 | Content-Length=1\nbody x\nend keep\n");
    check(CLOSES, "HTTP/1.1 100 Continue\r\n\r\n",
          "E_TRUNCATED: the connection closed inside a head\n");
    refused(0, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "the server switches protocols unasked");
}

static void endless_interim_responses_are_refused(void **state) {
    (void)state;
    transcript t;
    begin(&t, 0);
    for (int i = 0; i < LK__HTTP_MAX_INTERIM; i++)
        assert_true(feed(&t, "HTTP/1.1 102 Processing\r\n\r\n", 27));
    assert_false(feed(&t, "HTTP/1.1 102 Processing\r\n\r\n", 27));
    finish(&t, 0, "E_PROTOCOL: there are too many 1xx responses\n");
}

static void some_responses_have_no_body(void **state) {
    (void)state;
    check(HEAD_ONLY, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.1 404 X\r\n\r\n",
          "200 'OK' 1.1 keep length=9 | Content-Length=9\nend keep\n404 'X' 1.1 keep\nend keep\n");
    check(HEAD_ONLY, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
          "200 'OK' 1.1 keep chunked | Transfer-Encoding=chunked\nend keep\n");
    check(0, "HTTP/1.1 304 X\r\nContent-Length: 9\r\n\r\nHTTP/1.1 204 X\r\n\r\n",
          "304 'X' 1.1 keep length=9 | Content-Length=9\nend keep\n204 'X' 1.1 keep\nend keep\n");
}

static void a_body_without_length_ends_with_the_connection(void **state) {
    (void)state;
    check(CLOSES, "HTTP/1.1 200 OK\r\n\r\nabc\r\n\r\nHTTP/1.1 2",
          "200 'OK' 1.1\nbody abc\r\n\r\nHTTP/1.1 2\nend\n");
    check(CLOSES, "HTTP/1.1 200 OK\r\n\r\n", "200 'OK' 1.1\nend\n");
}

static void the_coding_wins_over_the_length_and_the_connection_ends(void **state) {
    (void)state;
    check(0, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n"
          "1\r\nx\r\n0\r\n\r\n",
          "200 'OK' 1.1 chunked | Content-Length=99 | Transfer-Encoding=chunked\nbody x\nend\n");
    check(0, "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
          "0\r\n\r\n",
          "200 'OK' 1.0 chunked | Connection=keep-alive | Transfer-Encoding=chunked\nend\n");
    refused(0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "a Transfer-Encoding other than chunked is not understood");
}

static void a_connection_that_closes_early_is_an_error(void **state) {
    (void)state;
    check(CLOSES, "", "more\n");
    check(CLOSES, "\r\n", "more\n");
    check(CLOSES | REQUEST, "G", "E_TRUNCATED: the connection closed inside a head\n");
    check(CLOSES, "HTTP/1.1 200 OK\r\nA: b\r\n",
          "E_TRUNCATED: the connection closed inside a head\n");
    check(CLOSES, "HTTP/1.1 204 OK\r\n\r\n", "204 'OK' 1.1 keep\nend keep\nmore\n");
    check(CLOSES, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
          "200 'OK' 1.1 keep length=3 | Content-Length=3\nbody ab\n"
          "E_TRUNCATED: the connection closed inside a body\n");
    static const char *const parts[] = { "", "3", "3;x", "3\r", "3\r\n", "3\r\nab", "3\r\nabc",
                                         "3\r\nabc\r", "3\r\nabc\r\n", "0\r\n", "0\r\nA",
                                         "0\r\nA\r", "0\r\nA\r\n", "0\r\n\r" };
    for (size_t i = 0; i < LK__COUNT(parts); i++) {
        transcript t;
        begin(&t, 0);
        assert_true(feed(&t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 47));
        assert_true(feed(&t, parts[i], strlen(parts[i])));
        assert_int_equal(lk__http_eof(&t.parser), LK__HTTP_ERROR);
        assert_int_equal(t.parser.error, LLMKIT_E_TRUNCATED);
        lk__http_free(&t.parser);
        lk__buf_free(&t.text);
    }
}

static void the_end_can_come_between_head_and_eof(void **state) {
    (void)state;
    llmkit_env env = lk__env_fill(NULL);
    lk__http   h;
    lk__head   head;
    llmkit_str in = LK__STR("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), body;
    lk__http_init(&h, &env, false, 0);
    assert_int_equal(lk__http_feed(&h, &in, &head, &body), LK__HTTP_HEAD);
    assert_int_equal(lk__http_eof(&h), LK__HTTP_END);
    assert_int_equal(lk__http_eof(&h), LK__HTTP_MORE);
    lk__http_free(&h);
}

/* ---- Chunks ----------------------------------------------------------------------------------*/

#define CHUNKED_HEAD     "P / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
#define CHUNKED_RESPONSE "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
#define CHUNKED_SAID     "P / 1.1 keep chunked | Host=a | Transfer-Encoding=chunked\n"
#define CHUNKED_ANSWER   "200 'OK' 1.1 keep chunked | Transfer-Encoding=chunked\n"

static void chunks_are_joined(void **state) {
    (void)state;
    check(REQUEST, CHUNKED_HEAD "5\r\nhello\r\n00b\r\n, chunked !\r\n000\r\n\r\n",
          CHUNKED_SAID "body hello, chunked !\nend keep\n");
    check(REQUEST, CHUNKED_HEAD "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
          CHUNKED_SAID "body 01234567890123456789\nend keep\n");
    check(REQUEST, CHUNKED_HEAD "0\r\n\r\n", CHUNKED_SAID "end keep\n");
}

static void chunk_extensions_and_trailers_are_dropped(void **state) {
    (void)state;
    check(REQUEST, CHUNKED_HEAD "2;a=b;c=\"d\t\xc3\xa4\"\r\nhi\r\n0 ; x\r\nContent-Length: 9\r\n"
          "Any thing\r\n\r\n",
          CHUNKED_SAID "body hi\nend keep\n");
    check(0, CHUNKED_RESPONSE "2  \r\nhi\r\n0\t\r\n\r\n", CHUNKED_ANSWER "body hi\nend keep\n");
}

static void malformed_chunks_are_refused(void **state) {
    static const struct {
        const char *chunks, *reason;
    } vectors[] = {
        { "\r\n", "chunk size is not hexadecimal" },
        { "g\r\n", "chunk size is not hexadecimal" },
        { "-1\r\n", "chunk size is not hexadecimal" },
        { " 1\r\n", "chunk size is not hexadecimal" },
        { ";a\r\n", "chunk size is not hexadecimal" },
        { "0x1\r\n", "chunk size is not hexadecimal" },
        { "1 1\r\n", "chunk size is not hexadecimal" },
        { "1 \r\n", "chunk size is not hexadecimal" },
        { "1\n", "a line ends in LF without CR" },
        { "1;a\n", "a line ends in LF without CR" },
        { "1\r\r\n", "a chunk's size line holds CR without LF" },
        { "1;a\rb\r\n", "a chunk's size line holds CR without LF" },
        { "1;\x01\r\n", "a chunk extension holds a control byte" },
        { "10000000000000000\r\n", "chunk size is over 64 bits" },
        { "fffffffffffffffff\r\n", "chunk size is over 64 bits" },
        { "0\r\n\n", "a line ends in LF without CR" },
        { "0\r\nA: b\n", "a line ends in LF without CR" },
        { "0\r\nA: b\rc", "the trailer section holds CR without LF" },
        { "0\r\n\rA", "the trailer section holds CR without LF" },
        { "0\r\nA\x7f", "the trailer section holds a control byte" },
    };
    (void)state;
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        char text[128], expected[256];
        snprintf(text, sizeof text, CHUNKED_HEAD "%s", vectors[i].chunks);
        snprintf(expected, sizeof expected, CHUNKED_SAID "E_PROTOCOL: %s\n", vectors[i].reason);
        check(REQUEST, text, expected);
    }
    check(REQUEST, CHUNKED_HEAD "1\r\nxy\r\n",
          CHUNKED_SAID "body x\nE_PROTOCOL: a chunk is not followed by CRLF\n");
    check(REQUEST, CHUNKED_HEAD "1\r\nx\n",
          CHUNKED_SAID "body x\nE_PROTOCOL: a line ends in LF without CR\n");
    check(REQUEST, CHUNKED_HEAD "1\r\nx\r\r",
          CHUNKED_SAID "body x\nE_PROTOCOL: a chunk is not followed by CRLF\n");
}

static void chunk_size_overflow_is_rejected(void **state) {
    (void)state;
    check(CLOSES, CHUNKED_RESPONSE "ffffffffffffffff\r\nx", CHUNKED_ANSWER
          "body x\nE_TRUNCATED: the connection closed inside a body\n");
    check(0, CHUNKED_RESPONSE "1ffffffffffffffff\r\nx",
          CHUNKED_ANSWER "E_PROTOCOL: chunk size is over 64 bits\n");
}

/* ---- Ceilings --------------------------------------------------------------------------------*/

static void heads_have_a_ceiling(void **state) {
    (void)state;
    char fits[65], over[66];
    snprintf(fits, sizeof fits, "HTTP/1.1 204 %047d\r\n\r\n", 0);
    snprintf(over, sizeof over, "HTTP/1.1 204 %048d\r\n\r\n", 0);
    assert_int_equal(strlen(fits), 64);
    char expected[128];
    snprintf(expected, sizeof expected, "204 '%047d' 1.1 keep\nend keep\n", 0);
    check(SMALL, fits, expected);
    check(SMALL, over, "E_TOO_BIG: the head is too long\n");
    over[64] = '\0'; /* and without its end */
    over[63] = 'x';
    check(SMALL, over, "");
    check(SMALL, "HTTP/1.1 204 OK\r\n"
          "A: 0123456789012345678901234567890123456789012345678901234567890123456789",
          "E_TOO_BIG: the head is too long\n");
}

static void another_protocol_is_told_before_the_ceiling(void **state) {
    (void)state;
    refused(SMALL, "HTTX/1.1 204 0123456789012345678901234567890123456789012345678901234567",
            "this is no HTTP/1 response");
}

static void empty_lines_before_a_message_have_a_ceiling(void **state) {
    (void)state;
    check(REQUEST, "\r\n\r\n\r\n\r\nGET / HTTP/1.0\r\n\r\n", "GET / 1.0\nend\n");
    refused(REQUEST, "\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.0\r\n\r\n",
            "there are empty lines where a message should begin");
    check(REQUEST, "GET / HTTP/1.0\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.0\r\n\r\n",
          "GET / 1.0\nend\nGET / 1.0\nend\n");
}

static void fields_have_a_ceiling(void **state) {
    (void)state;
    for (int extra = 0; extra < 2; extra++) {
        transcript t;
        begin(&t, 0);
        assert_true(feed(&t, "HTTP/1.1 204 OK\r\n", 17));
        for (int i = 0; i < LLMKIT_MAX_HEADERS + extra; i++) assert_true(feed(&t, "A: b\r\n", 6));
        assert_int_equal(feed(&t, "\r\n", 2), !extra);
        assert_int_equal(t.parser.error, extra ? LLMKIT_E_TOO_BIG : LLMKIT_OK);
        lk__http_free(&t.parser);
        lk__buf_free(&t.text);
    }
}

static void chunk_extensions_have_a_ceiling(void **state) {
    (void)state;
    for (int extra = 0; extra < 2; extra++) {
        transcript t;
        begin(&t, REQUEST);
        assert_true(feed(&t, CHUNKED_HEAD, strlen(CHUNKED_HEAD)));
        assert_true(feed(&t, "1;", 2));
        for (int i = 0; i < LK__HTTP_MAX_CHUNK_LINE - 4; i++) assert_true(feed(&t, "x", 1));
        assert_int_equal(feed(&t, extra ? "x\r\n" : "\r\n", extra ? 3 : 2), !extra);
        assert_int_equal(t.parser.error, extra ? LLMKIT_E_TOO_BIG : LLMKIT_OK);
        lk__http_free(&t.parser);
        lk__buf_free(&t.text);
    }
}

static void trailers_have_a_ceiling(void **state) {
    (void)state;
    transcript t;
    begin(&t, REQUEST);
    assert_true(feed(&t, CHUNKED_HEAD "0\r\n", strlen(CHUNKED_HEAD) + 3));
    size_t n = 0;
    while (feed(&t, "A: b\r\n", 6)) assert_true((n += 6) <= LLMKIT_MAX_HEAD_BYTES);
    assert_true(n + 6 > LLMKIT_MAX_HEAD_BYTES);
    assert_int_equal(t.parser.error, LLMKIT_E_TOO_BIG);
    lk__http_free(&t.parser);
    lk__buf_free(&t.text);
}

static void each_message_has_a_trailer_ceiling_of_its_own(void **state) {
    (void)state;
    static const char text[] = CHUNKED_RESPONSE
        "0\r\nA: 0123456789012345678901234567890123456\r\n\r\n";
    transcript t;
    begin(&t, SMALL);
    for (int i = 0; i < 3; i++) assert_true(feed(&t, text, sizeof text - 1));
    finish(&t, SMALL, CHUNKED_ANSWER "end keep\n" CHUNKED_ANSWER "end keep\n" CHUNKED_ANSWER
                      "end keep\n");
}

/* Byte by byte a head of 32 KB must cost 32 K steps, not 32 K squared: that would be seconds. */
static void a_head_in_single_bytes_costs_linear_time(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        llmkit_env env = lk__env_fill(NULL);
        lk__http   h;
        lk__head   head;
        llmkit_str body;
        lk__http_init(&h, &env, false, 0);
        llmkit_str start = LK__STR("HTTP/1.1 204 OK\r\nA: ");
        assert_int_equal(lk__http_feed(&h, &start, &head, &body), LK__HTTP_MORE);
        for (int i = 0; i < LLMKIT_MAX_HEAD_BYTES - 24; i++) {
            llmkit_str in = LK__STR("x");
            assert_int_equal(lk__http_feed(&h, &in, &head, &body), LK__HTTP_MORE);
        }
        llmkit_str end = LK__STR("\r\n\r\n");
        assert_int_equal(lk__http_feed(&h, &end, &head, &body), LK__HTTP_HEAD);
        assert_int_equal(head.fields[0].value.len, LLMKIT_MAX_HEAD_BYTES - 24);
        lk__http_free(&h);
    }
}

/* ---- Memory ----------------------------------------------------------------------------------*/

static void a_whole_head_is_read_in_place_and_allocates_nothing(void **state) {
    (void)state;
    lk_world world;
    lk_world_init(&world);
    llmkit_env env = lk__env_fill(&world.env);
    lk__http   h;
    lk__head   head;
    llmkit_str body, text = lk_guarded_str("GET /path HTTP/1.1\r\nHost: a\r\n\r\n"), in = text;
    lk__http_init(&h, &env, true, 0);
    assert_int_equal(lk__http_feed(&h, &in, &head, &body), LK__HTTP_HEAD);
    assert_ptr_equal(head.target.ptr, text.ptr + 4);
    assert_ptr_equal(head.fields[0].value.ptr, text.ptr + 26);
    assert_int_equal(lk__http_feed(&h, &in, &head, &body), LK__HTTP_END);
    assert_int_equal((unsigned long)world.calls, 0);
    lk__http_free(&h);
}

static void memory_of_partial_heads_is_kept_while_it_is_small(void **state) {
    (void)state;
    lk_world world;
    lk_world_init(&world);
    llmkit_env env = lk__env_fill(&world.env);
    lk__http   h;
    lk__http_init(&h, &env, true, 0);
    for (int size = 10; size <= 10000; size *= 10) {
        char text[10100];
        lk__head head;
        llmkit_str body;
        int n = snprintf(text, sizeof text, "GET / HTTP/1.0\r\nA: %0*d\r\n\r\n", size, 0);
        llmkit_str a = { text, 5 }, b = { text + 5, (size_t)n - 5 };
        assert_int_equal(lk__http_feed(&h, &a, &head, &body), LK__HTTP_MORE);
        assert_int_equal(lk__http_feed(&h, &b, &head, &body), LK__HTTP_HEAD);
        assert_int_equal(head.fields[0].value.len, size);
        assert_int_equal(lk__http_feed(&h, &b, &head, &body), LK__HTTP_END);
        assert_true((long)world.bytes <= LK__HTTP_KEEP_BYTES);
        assert_int_equal((long)world.blocks, size < 10000);
    }
    lk__http_free(&h);
    assert_no_leak(&world);
}

static void a_refused_allocation_is_an_error(void **state) {
    (void)state;
    static const char text[] = "HTTP/1.1 200 OK\r\nA: 0123456789012345678901234567890123456789\r\n"
                               " 0123456789012345678901234567890123456789\r\n"
                               "Content-Length: 2\r\n\r\nhi";
    lk_world world;
    lk_world_init(&world);
    for (size_t step = 1; step < sizeof text; step += 7) {
        LK_EACH_REFUSAL(&world) {
            llmkit_env env = lk__env_fill(&world.env);
            lk__http   h;
            lk__head   head;
            llmkit_str body;
            lk__http_event event = LK__HTTP_MORE;
            lk__http_init(&h, &env, false, 0);
            for (size_t at = 0; at < sizeof text - 1 && event != LK__HTTP_ERROR; at += step) {
                size_t     n = sizeof text - 1 - at < step ? sizeof text - 1 - at : step;
                llmkit_str in = { text + at, n };
                do event = lk__http_feed(&h, &in, &head, &body);
                while (event == LK__HTTP_HEAD || event == LK__HTTP_BODY);
            }
            assert_int_equal(event, world.refused ? LK__HTTP_ERROR : LK__HTTP_END);
            assert_int_equal(h.error, world.refused ? LLMKIT_E_NOMEM : LLMKIT_OK);
            lk__http_free(&h);
        }
    }
}

static void fields_are_found_in_any_case(void **state) {
    (void)state;
    llmkit_env env = lk__env_fill(NULL);
    lk__http   h;
    lk__head   head;
    llmkit_str in = LK__STR("HTTP/1.1 204 OK\r\nX-Request-ID: 7\r\nx-request-id: 8\r\nE:\r\n\r\n");
    llmkit_str body;
    lk__http_init(&h, &env, false, 0);
    assert_int_equal(lk__http_feed(&h, &in, &head, &body), LK__HTTP_HEAD);
    assert_str(lk__head_get(&head, LK__STR("x-request-id")), "7");
    assert_non_null(lk__head_get(&head, LK__STR("e")).ptr);
    assert_null(lk__head_get(&head, LK__STR("x-request")).ptr);
    lk__http_free(&h);
}

/* ---- Garbage ---------------------------------------------------------------------------------*/

/* What is said about any bytes is the same however they are cut, and each feed goes on. */
static void garbage_is_read_the_same_at_any_split(void **state) {
    (void)state;
    static const char *const words[] = {
        "HTTP/1.1 200 OK", "GET / HTTP/1.1", "\r\n", "\n", "\r", "\r\n\r\n", "Host: a", " ",
        "\t", ":", "Content-Length: 3", "Transfer-Encoding: chunked", "Connection: close", "3", "0",
        "abc", ";", "A: b", "\x80", "HTTP/1.1 100 C\r\n\r\n", "0\r\n\r\n", "\1", "fffffffff"
    };
    llmkit_env env = { .seed = 7 };
    lk__rand   rand;
    lk__rand_init(&rand, &env);
    for (int round = 0; round < 20000; round++) {
        char   text[256];
        size_t n = 0;
        for (uint64_t num = lk__rand_u64(&rand) % 12; num > 0; num--) {
            uint64_t    r = lk__rand_u64(&rand);
            const char *word = r % 3 == 0 ? "\r\n" : words[(r >> 8) % LK__COUNT(words)];
            memcpy(text + n, word, strlen(word));
            n += strlen(word);
        }
        int        flags = (int)(lk__rand_u64(&rand) % 16);
        transcript t;
        begin(&t, flags);
        feed(&t, text, n);
        if (t.in_body && !(flags & CLOSES)) lk__buf_z(&t.text, "\n");
        if ((flags & CLOSES) && !t.parser.error) {
            lk__http_event event = lk__http_eof(&t.parser);
            if (event == LK__HTTP_MORE) lk__buf_z(&t.text, "more\n");
            say(&t, event, NULL, LK__STR(""));
        }
        char expected[4096];
        snprintf(expected, sizeof expected, "%.*s", LK__ARG(lk__buf_view(&t.text)));
        lk__http_free(&t.parser);
        lk__buf_free(&t.text);

        if (memchr(expected, '\0', t.text.len)) continue;
        size_t i = lk__rand_u64(&rand) % (n + 1), j = i + lk__rand_u64(&rand) % (n - i + 1);
        check_split(flags, text, n, i, j, expected);
        begin(&t, flags);
        for (i = 0; i < n && feed(&t, text + i, 1); i++) continue;
        finish(&t, flags, expected);
    }
}

/* ---- Writing ---------------------------------------------------------------------------------*/

static void what_is_written_is_read_back(void **state) {
    (void)state;
    llmkit_env env = lk__env_fill(NULL);
    lk__buf    out;
    lk__buf_init(&out, &env, 0);
    lk__http_request_line(&out, LK__STR("POST"), LK__STR("/v1?a=b"));
    assert_ok(lk__http_field(&out, LK__STR("Host"), LK__STR("a:8080")));
    assert_ok(lk__http_field(&out, LK__STR("X"), LK__STR("")));
    assert_ok(lk__http_field(&out, LK__STR("Transfer-Encoding"), LK__STR("chunked")));
    lk__buf_z(&out, "\r\n");
    lk__http_chunk(&out, LK__STR("hello"));
    lk__http_chunk(&out, LK__STR(""));
    lk__http_chunk(&out, LK__STR("0123456789abcdefghi"));
    lk__http_last_chunk(&out);
    assert_str(lk__buf_view(&out),
               "POST /v1?a=b HTTP/1.1\r\nHost: a:8080\r\nX: \r\nTransfer-Encoding: chunked\r\n\r\n"
               "5\r\nhello\r\n13\r\n0123456789abcdefghi\r\n0\r\n\r\n");
    check(REQUEST, out.ptr,
          "POST /v1?a=b 1.1 keep chunked | Host=a:8080 | X= | Transfer-Encoding=chunked\n"
          "body hello0123456789abcdefghi\nend keep\n");
    lk__buf_clear(&out);
    lk__http_status_line(&out, 429);
    lk__http_field_u64(&out, LK__STR("Content-Length"), 0);
    lk__buf_z(&out, "\r\n");
    lk__http_status_line(&out, 299);
    assert_str(lk__buf_view(&out), "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
                                   "HTTP/1.1 299 \r\n");
    lk__buf_free(&out);
}

static void nothing_written_splits_a_message(void **state) {
    (void)state;
    llmkit_env env = lk__env_fill(NULL);
    lk__buf    out;
    static const char *const names[] = { "", "a b", "a:", "a\r\n", "a\n", "\xc3\xa4" };
    static const char *const values[] = { "a\r\nb", "a\n", "\r", "\x7f", "\x01" };
    static const char *const targets[] = { "", "/a b", "/\r\n", "/\n", "/\x7f", "/\xc3\xa4" };
    lk__buf_init(&out, &env, 0);
    for (size_t i = 0; i < LK__COUNT(names); i++) {
        assert_err(lk__http_field(&out, lk__str_z(names[i]), LK__STR("v")), LLMKIT_E_ARG);
        assert_int_equal(out.failed, LLMKIT_OK);
        lk__http_request_line(&out, lk__str_z(names[i]), LK__STR("/"));
        assert_int_equal(out.failed, LLMKIT_E_ARG);
        out.failed = LLMKIT_OK;
    }
    for (size_t i = 0; i < LK__COUNT(values); i++)
        assert_err(lk__http_field(&out, LK__STR("n"), lk__str_z(values[i])), LLMKIT_E_ARG);
    assert_err(lk__http_field(&out, LK__STR("n"), LK__STR("a\0b")), LLMKIT_E_ARG);
    for (size_t i = 0; i < LK__COUNT(targets); i++) {
        lk__http_request_line(&out, LK__STR("GET"), lk__str_z(targets[i]));
        assert_int_equal(out.failed, LLMKIT_E_ARG);
        out.failed = LLMKIT_OK;
    }
    lk__http_status_line(&out, 99);
    assert_int_equal(out.failed, LLMKIT_E_ARG);
    out.failed = LLMKIT_OK;
    lk__http_status_line(&out, 600);
    assert_int_equal(out.failed, LLMKIT_E_ARG);
    assert_int_equal(out.len, 0);
    lk__buf_free(&out);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(requests_are_read),
    cmocka_unit_test(fields_of_other_names_mean_nothing),
    cmocka_unit_test(requests_follow_one_another),
    cmocka_unit_test(keep_alive_follows_version_and_connection),
    cmocka_unit_test(malformed_request_lines_are_refused),
    cmocka_unit_test(another_protocol_is_told_by_its_first_bytes),
    cmocka_unit_test(requests_that_can_be_read_in_two_ways_are_refused),
    cmocka_unit_test(lines_of_requests_end_in_crlf_only),
    cmocka_unit_test(malformed_fields_are_refused),
    cmocka_unit_test(values_hold_no_control_byte_but_tab),
    cmocka_unit_test(token_characters_are_those_of_rfc_9110),
    cmocka_unit_test(lengths_are_decimal_and_fit),
    cmocka_unit_test(responses_are_read),
    cmocka_unit_test(the_reason_phrase_may_be_missing),
    cmocka_unit_test(malformed_status_lines_are_refused),
    cmocka_unit_test(lines_of_responses_may_end_in_lf),
    cmocka_unit_test(folded_fields_of_responses_are_joined_by_blanks),
    cmocka_unit_test(interim_responses_are_skipped),
    cmocka_unit_test(endless_interim_responses_are_refused),
    cmocka_unit_test(some_responses_have_no_body),
    cmocka_unit_test(a_body_without_length_ends_with_the_connection),
    cmocka_unit_test(the_coding_wins_over_the_length_and_the_connection_ends),
    cmocka_unit_test(a_connection_that_closes_early_is_an_error),
    cmocka_unit_test(the_end_can_come_between_head_and_eof),
    cmocka_unit_test(chunks_are_joined),
    cmocka_unit_test(chunk_extensions_and_trailers_are_dropped),
    cmocka_unit_test(malformed_chunks_are_refused),
    cmocka_unit_test(chunk_size_overflow_is_rejected),
    cmocka_unit_test(heads_have_a_ceiling),
    cmocka_unit_test(another_protocol_is_told_before_the_ceiling),
    cmocka_unit_test(empty_lines_before_a_message_have_a_ceiling),
    cmocka_unit_test(fields_have_a_ceiling),
    cmocka_unit_test(chunk_extensions_have_a_ceiling),
    cmocka_unit_test(trailers_have_a_ceiling),
    cmocka_unit_test(each_message_has_a_trailer_ceiling_of_its_own),
    cmocka_unit_test(a_head_in_single_bytes_costs_linear_time),
    cmocka_unit_test(a_whole_head_is_read_in_place_and_allocates_nothing),
    cmocka_unit_test(memory_of_partial_heads_is_kept_while_it_is_small),
    cmocka_unit_test(a_refused_allocation_is_an_error),
    cmocka_unit_test(fields_are_found_in_any_case),
    cmocka_unit_test(garbage_is_read_the_same_at_any_split),
    cmocka_unit_test(what_is_written_is_read_back),
    cmocka_unit_test(nothing_written_splits_a_message),
};

LK_TEST_MAIN(tests)
