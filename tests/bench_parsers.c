/* bench_parsers.c -- what reading HTTP heads, chunked bodies and event streams costs
 *
 * All inputs are the size of what model servers send; time is CPU time of this thread. */
#include "bench.h"

enum { NUM_EVENTS = 256 };

static const char small_head[] = /* nginx's, as in the client benchmark */
    "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 22 Nov 2026 04:00:00 GMT\r\n"
    "Content-Type: application/json\r\nContent-Length: 631\r\nConnection: keep-alive\r\n\r\n";

static const char large_head[] = /* the shape of a hosted model's, behind a CDN */
    "HTTP/1.1 200 OK\r\nDate: Sun, 22 Nov 2026 04:00:00 GMT\r\n"
    "Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    "Connection: keep-alive\r\naccess-control-expose-headers: X-Request-ID\r\n"
    "organization: an-organization-of-users\r\nprocessing-ms: 213\r\nversion: 2020-10-01\r\n"
    "x-ratelimit-limit-requests: 10000\r\nx-ratelimit-limit-tokens: 30000000\r\n"
    "x-ratelimit-remaining-requests: 9999\r\nx-ratelimit-remaining-tokens: 29999979\r\n"
    "x-ratelimit-reset-requests: 6ms\r\nx-ratelimit-reset-tokens: 0s\r\n"
    "x-request-id: req_0123456789abcdef0123456789abcdef\r\n"
    "strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n"
    "cf-cache-status: DYNAMIC\r\nset-cookie: __cf=0123456789abcdefghijklmnopqrstuvwxyz0123456789"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH; path=/; "
    "expires=Sun, 22-Nov-26 04:30:00 GMT; domain=.example.com; HttpOnly; Secure; SameSite=None\r\n"
    "X-Content-Type-Options: nosniff\r\nServer: cloudflare\r\nCF-RAY: 0123456789abcdef-FRA\r\n"
    "alt-svc: h3=\":443\"; ma=86400\r\n\r\n";

static const char request_head[] =
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:8080\r\n"
    "Authorization: Bearer sk-0123456789abcdef0123456789abcdef\r\n"
    "Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: 0\r\n\r\n";

static const char chunk_json[] =
    "{\"id\":\"chatcmpl-0123456789abcdefghijklmno\",\"object\":\"chat.completion.chunk\","
    "\"created\":1700000000,\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,"
    "\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}";

/* One input that is read over and over. */
typedef struct input {
    llmkit_env env;
    lk__http   http;
    lk__sse    sse;
    lk__buf    text;
    size_t     cut; /* fed in two pieces; 0: whole */
    size_t     num; /* events, pieces or heads that must be found */
} input;

static void expect(const input *in, size_t num) {
    if (num == in->num) return;
    fprintf(stderr, "%zu found, not %zu\n", num, in->num);
    exit(1);
}

static size_t feed_http(input *in, llmkit_str text, lk__http_event counted) {
    lk__head   head;
    llmkit_str body;
    size_t     num = 0;
    for (;;) {
        lk__http_event event = lk__http_feed(&in->http, &text, &head, &body);
        num += event == counted;
        if (event == LK__HTTP_ERROR) expect(in, SIZE_MAX);
        if (event == LK__HTTP_MORE || (event == LK__HTTP_END && text.len == 0)) return num;
    }
}

static void read_heads(void *user) {
    input     *in = user;
    llmkit_str text = lk__buf_view(&in->text);
    size_t     num = in->cut ? feed_http(in, lk__str(text.ptr, in->cut), LK__HTTP_HEAD) : 0;
    expect(in, num + feed_http(in, lk__str_from(text, in->cut), LK__HTTP_HEAD));
}

static void read_chunks(void *user) {
    input *in = user;
    expect(in, feed_http(in, lk__buf_view(&in->text), LK__HTTP_BODY));
}

static void read_events(void *user) {
    input        *in = user;
    llmkit_str    text = lk__buf_view(&in->text);
    lk__sse_event event;
    size_t        num = 0;
    while (lk__sse_feed(&in->sse, &text, &event)) {
        lk_keep(event);
        num++;
    }
    expect(in, num);
}

/* Head by head: each is followed by the end of its message. */
static double head_ns(const char *head, bool request, bool cut) {
    input in = { .env = lk__env_fill(NULL), .num = 1, .cut = cut ? strlen(head) / 2 : 0 };
    lk__http_init(&in.http, &in.env, request, 0);
    in.http.no_body = true;
    lk__buf_init(&in.text, &in.env, 0);
    lk__buf_z(&in.text, head);
    double ns = lk_time_ns(read_heads, &in, 50000);
    lk__http_free(&in.http);
    lk__buf_free(&in.text);
    return ns;
}

/* A stream of chunks with one event each; without what one head costs. */
static double chunk_ns(void) {
    input in = { .env = lk__env_fill(NULL), .num = NUM_EVENTS };
    lk__http_init(&in.http, &in.env, false, 0);
    lk__buf_init(&in.text, &in.env, 0);
    lk__buf_z(&in.text, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < NUM_EVENTS; i++) lk__http_chunk(&in.text, lk__str_z(chunk_json));
    lk__http_last_chunk(&in.text);
    double ns = lk_time_ns(read_chunks, &in, 1000) / NUM_EVENTS;
    lk__http_free(&in.http);
    lk__buf_free(&in.text);
    return ns;
}

static double event_ns(const char *before, const char *end) {
    input in = { .env = lk__env_fill(NULL), .num = NUM_EVENTS };
    lk__sse_init(&in.sse, &in.env, 0);
    lk__buf_init(&in.text, &in.env, 0);
    for (int i = 0; i < NUM_EVENTS; i++)
        lk__buf_fmt(&in.text, "%s%sdata: %s%s%s", before, *before ? end : "", chunk_json, end, end);
    double ns = lk_time_ns(read_events, &in, 1000) / NUM_EVENTS;
    lk__sse_free(&in.sse);
    lk__buf_free(&in.text);
    return ns;
}

int main(void) {
    printf("parsers: heads of %zu, %zu and %zu bytes, chunks and events of %zu\n",
           strlen(small_head), strlen(large_head), strlen(request_head), strlen(chunk_json));
    lk_figure("parsers.response_head_ns", head_ns(small_head, false, false), "ns", NULL, 0, NULL);
    lk_figure("parsers.large_head_ns", head_ns(large_head, false, false), "ns", NULL, 0, NULL);
    lk_figure("parsers.split_head_ns", head_ns(large_head, false, true), "ns", NULL, 0, NULL);
    lk_figure("parsers.request_head_ns", head_ns(request_head, true, false), "ns", NULL, 0, NULL);
    lk_figure("parsers.chunk_ns", chunk_ns(), "ns", NULL, 0, NULL);
    lk_figure("parsers.event_ns", event_ns("", "\n"), "ns", "<=", 30, NULL);
    lk_figure("parsers.named_event_ns", event_ns("event: content_block_delta", "\n"), "ns", NULL, 0,
              NULL);
    lk_figure("parsers.crlf_event_ns", event_ns("", "\r\n"), "ns", NULL, 0, NULL);
    lk_figure("parsers.event_with_comment_ns", event_ns(": x", "\n"), "ns", NULL, 0, NULL);
    lk_figure("parsers.event_with_cr_ns", event_ns("", "\r"), "ns", NULL, 0, NULL);
    return 0;
}
