/* parse_dump.c -- what our parsers make of a file of cases, for test_parsers_diff.py
 *
 *     parse_dump request|response|sse <CASES
 *
 * A case is its length in decimal, LF, and its bytes.  For each one line of JSON: what was read, or
 * the error. */
#define LLMKIT_IMPLEMENTATION
#define LLMKIT__KEEP_MACROS
#include "llmkit.h"

/* Bytes as a string of JSON, one code point for each byte. */
static void put_bytes(lk__buf *out, llmkit_str s) {
    lk__buf_ch(out, '"');
    for (size_t i = 0; i < s.len; i++) lk__buf_fmt(out, "\\u%04x", (unsigned)(uint8_t)s.ptr[i]);
    lk__buf_ch(out, '"');
}

static void put_head(lk__buf *out, const lk__head *head) {
    lk__buf_z(out, "[");
    if (head->status) lk__buf_u64(out, head->status);
    else put_bytes(out, head->method);
    lk__buf_ch(out, ',');
    put_bytes(out, head->status ? LK__STR("") : head->target);
    lk__buf_fmt(out, ",%s,[", head->keep_alive ? "true" : "false");
    for (uint32_t i = 0; i < head->num; i++) {
        if (i) lk__buf_ch(out, ',');
        put_bytes(out, head->fields[i].name);
        lk__buf_ch(out, ',');
        put_bytes(out, head->fields[i].value);
    }
    lk__buf_z(out, "],");
}

/* {"messages":[[method or status, target, keep-alive, [name, value, ...], body, ended], ...]} */
static void dump_http(lk__buf *out, llmkit_str in, bool request) {
    lk__http   h;
    lk__head   head;
    llmkit_str piece = { NULL, 0 };
    lk__buf    body;
    bool       open = false;
    size_t     num = 0;
    lk__http_init(&h, out->env, request, 0);
    lk__buf_init(&body, out->env, 0);
    lk__buf_z(out, "{\"messages\":[");
    lk__http_event event;
    do {
        event = lk__http_feed(&h, &in, &head, &piece);
        if (event == LK__HTTP_MORE) event = lk__http_eof(&h);
        if (event == LK__HTTP_HEAD) {
            if (num++) lk__buf_ch(out, ',');
            put_head(out, &head);
            lk__buf_clear(&body);
            open = true;
        }
        if (event == LK__HTTP_BODY) lk__buf_str(&body, piece);
        if (open && event != LK__HTTP_HEAD && event != LK__HTTP_BODY) {
            put_bytes(out, lk__buf_view(&body));
            lk__buf_z(out, event == LK__HTTP_END ? ",true]" : ",false]");
            open = false;
        }
    } while (event != LK__HTTP_ERROR && event != LK__HTTP_MORE);
    lk__buf_fmt(out, "],\"error\":\"%s\"}\n", h.reason ? h.reason : "");
    lk__buf_free(&body);
    lk__http_free(&h);
}

/* {"events":[[name, data], ...]} */
static void dump_sse(lk__buf *out, llmkit_str in) {
    lk__sse       d;
    lk__sse_event event;
    size_t        num = 0;
    lk__sse_init(&d, out->env, 0);
    lk__buf_z(out, "{\"events\":[");
    while (lk__sse_feed(&d, &in, &event)) {
        lk__buf_z(out, num++ ? ",[" : "[");
        put_bytes(out, event.name);
        lk__buf_ch(out, ',');
        put_bytes(out, event.data);
        lk__buf_ch(out, ']');
    }
    lk__buf_z(out, "]}\n");
    lk__sse_free(&d);
}

int main(int argc, char **argv) {
    llmkit_env  env = lk__env_fill(NULL);
    lk__buf     out;
    const char *kind = argc > 1 ? argv[1] : "";
    size_t      n;
    lk__buf_init(&out, &env, 0);
    while (scanf("%zu", &n) == 1 && getchar() == '\n') {
        char *text = malloc(n + 1);
        if (!text || fread(text, 1, n, stdin) != n) return 1;
        lk__buf_clear(&out);
        if (strcmp(kind, "sse") == 0) dump_sse(&out, lk__str(text, n));
        else dump_http(&out, lk__str(text, n), strcmp(kind, "request") == 0);
        fwrite(out.ptr, 1, out.len, stdout);
        free(text);
    }
    lk__buf_free(&out);
    return 0;
}
