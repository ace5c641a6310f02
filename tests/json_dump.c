/* json_dump.c -- for test_json_diff.py: documents in, each written anew, or "-" where it is refused
 *
 * Standard input: the length in decimal, LF, so many bytes; and so on.  Output: a line for each. */
#define LLMKIT_IMPLEMENTATION
#define LLMKIT__KEEP_MACROS
#include "llmkit.h"

static void dump(const lk__json *j, lk__node n, lk__jsonw *w, lk__buf *scratch) {
    lk__json_type type = lk__json_type_of(j, n);
    if (type == LK__JSON_STRING) {
        lk__jsonw_str(w, lk__json_view(j, n, scratch));
    } else if (type == LK__JSON_ARRAY || type == LK__JSON_OBJECT) {
        bool object = type == LK__JSON_OBJECT;
        lk__jsonw_open(w, object ? '{' : '[');
        for (lk__node c = lk__json_first(j, n); c != -1; c = lk__json_next(j, c)) {
            if (object) {
                dump(j, c, w, scratch);
                lk__buf_ch(w->out, ':');
                w->comma = false;
            }
            dump(j, object ? lk__json_value_of(j, c) : c, w, scratch);
        }
        lk__jsonw_close(w, object ? '}' : ']');
    } else {
        lk__jsonw_raw(w, lk__json_raw(j, n));
    }
}

int main(void) {
    llmkit_env env = lk__env_fill(NULL);
    lk__json j;
    lk__buf text, out, scratch;
    size_t len;
    lk__json_init(&j, &env);
    lk__buf_init(&text, &env, 0);
    lk__buf_init(&out, &env, 0);
    lk__buf_init(&scratch, &env, 0);
    while (scanf("%zu", &len) == 1 && getchar() == '\n') {
        lk__buf_clear(&text);
        char *room = lk__buf_more(&text, len);
        if (!room || fread(room, 1, len, stdin) != len) return 1;
        lk__buf_wrote(&text, len);
        lk__buf_clear(&out);
        if (lk__json_parse(&j, lk__buf_view(&text)) == LLMKIT_OK) {
            dump(&j, 0, &(lk__jsonw){ .out = &out }, &scratch);
        } else {
            lk__buf_ch(&out, '-');
        }
        if (out.failed) return 1;
        puts(out.ptr);
    }
    lk__json_free(&j);
    lk__buf_free(&text);
    lk__buf_free(&out);
    lk__buf_free(&scratch);
    return 0;
}
