/* fuzz_http1.c -- any bytes, cut anywhere: the HTTP parser says the same, and writes what it reads
 *
 * The first byte of an input chooses the direction, the second where the rest is cut. */
#define LLMKIT_IMPLEMENTATION
#define LLMKIT__KEEP_MACROS
#include "llmkit.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x) ((x) ? (void)0 : abort())

/* Everything that a run says, as one text. */
static void say(lk__buf *out, const lk__http *h, lk__http_event event, const lk__head *head,
                llmkit_str body, bool *in_body) {
    if (event != LK__HTTP_BODY && event != LK__HTTP_MORE) *in_body = false;
    if (event == LK__HTTP_HEAD) {
        lk__buf_fmt(out, "\n%d %d %d %d %d %d", head->status, head->minor, head->keep_alive,
                    head->chunked, head->has_length, head->expect_continue);
        lk__buf_u64(out, head->length);
        lk__buf_str(out, head->method);
        lk__buf_str(out, head->target);
        lk__buf_str(out, head->reason);
        for (uint32_t i = 0; i < head->num; i++) {
            lk__buf_str(out, head->fields[i].name);
            lk__buf_str(out, head->fields[i].value);
            /* What was read may be written. */
            lk__buf field;
            lk__buf_init(&field, out->env, 0);
            CHECK(lk__http_field(&field, head->fields[i].name, head->fields[i].value) == LLMKIT_OK);
            lk__buf_free(&field);
        }
    }
    if (event == LK__HTTP_BODY) {
        CHECK(body.len > 0);
        if (!*in_body) lk__buf_z(out, "\nbody ");
        lk__buf_str(out, body);
        *in_body = true;
    }
    if (event == LK__HTTP_END) lk__buf_z(out, "\nend");
    if (event == LK__HTTP_ERROR) lk__buf_fmt(out, "\n%d %s", (int)h->error, h->reason);
}

static void run(lk__buf *out, const uint8_t *data, size_t size, size_t step, uint8_t flags) {
    lk__http h;
    bool     in_body = false;
    lk__http_init(&h, out->env, flags & 1, flags & 2 ? 64 : 0);
    h.no_body = (flags & 4) != 0;
    lk__http_event event = LK__HTTP_MORE;
    for (size_t at = 0; at < size && event != LK__HTTP_ERROR;) {
        size_t n = size - at < step ? size - at : step;
        char  *piece = malloc(n); /* of its own, so that the sanitizer sees a byte too far */
        CHECK(piece);
        memcpy(piece, data + at, n);
        llmkit_str in = { piece, n }, body = { NULL, 0 };
        lk__head   head;
        size_t     feeds = 0;
        do {
            event = lk__http_feed(&h, &in, &head, &body);
            say(out, &h, event, &head, body, &in_body);
            CHECK(++feeds <= 4 * n + 4);
        } while (event != LK__HTTP_ERROR && event != LK__HTTP_MORE &&
                 (event != LK__HTTP_END || in.len > 0));
        free(piece);
        at += n;
    }
    if (event != LK__HTTP_ERROR) {
        event = lk__http_eof(&h);
        say(out, &h, event, NULL, LK__STR(""), &in_body);
    }
    lk__http_free(&h);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    llmkit_env env = lk__env_fill(NULL);
    lk__buf    whole, cut;
    lk__buf_init(&whole, &env, 0);
    lk__buf_init(&cut, &env, 0);
    run(&whole, data + 2, size - 2, size, data[0]);
    run(&cut, data + 2, size - 2, 1 + data[1] % 64u, data[0]);
    CHECK(lk__str_eq(lk__buf_view(&whole), lk__buf_view(&cut)));
    lk__buf_free(&whole);
    lk__buf_free(&cut);
    return 0;
}
