/* fuzz_sse.c -- any bytes, cut anywhere: the event decoder says the same, and reads what it writes
 *
 * The first byte of an input chooses the ceiling, the second where the rest is cut. */
#define LLMKIT_IMPLEMENTATION
#define LLMKIT__KEEP_MACROS
#include "llmkit.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x) ((x) ? (void)0 : abort())

/* Events as text, one after another, and as a stream written anew. */
static llmkit_err run(lk__buf *said, lk__buf *written, const char *data, size_t size, size_t step,
                      size_t max) {
    lk__sse d;
    lk__sse_init(&d, said->env, max);
    for (size_t at = 0; at < size && !d.error; at += step) {
        size_t n = size - at < step ? size - at : step;
        char  *piece = malloc(n); /* of its own, so that the sanitizer sees a byte too far */
        CHECK(piece);
        memcpy(piece, data + at, n);
        llmkit_str    in = { piece, n };
        lk__sse_event event;
        size_t        before = n + 1;
        while (lk__sse_feed(&d, &in, &event)) {
            CHECK(in.len < before);
            before = in.len;
            lk__buf_u64(said, event.name.len);
            lk__buf_str(said, event.name);
            lk__buf_u64(said, event.data.len);
            lk__buf_str(said, event.data);
            lk__sse_write(written, event.name, event.data);
        }
        CHECK(d.error || in.len == 0);
        free(piece);
    }
    llmkit_err error = d.error;
    lk__sse_free(&d);
    return error;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    llmkit_env  env = lk__env_fill(NULL);
    const char *text = (const char *)data + 2;
    size_t      max = data[0] % 4 ? 0 : data[0];
    lk__buf     whole, cut, again, written, ignored;
    lk__buf_init(&whole, &env, 0);
    lk__buf_init(&cut, &env, 0);
    lk__buf_init(&again, &env, 0);
    lk__buf_init(&written, &env, 0);
    lk__buf_init(&ignored, &env, 0);
    llmkit_err error = run(&whole, &written, text, size - 2, size, max);
    CHECK(run(&cut, &ignored, text, size - 2, 1 + data[1] % 64u, max) == error);
    CHECK(lk__str_eq(lk__buf_view(&whole), lk__buf_view(&cut)));
    CHECK(run(&again, &ignored, lk__buf_view(&written).ptr, written.len, size, 0) == LLMKIT_OK);
    CHECK(lk__str_eq(lk__buf_view(&whole), lk__buf_view(&again)));
    lk__buf_free(&whole);
    lk__buf_free(&cut);
    lk__buf_free(&again);
    lk__buf_free(&written);
    lk__buf_free(&ignored);
    return 0;
}
