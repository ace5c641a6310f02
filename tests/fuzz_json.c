/* fuzz_json.c -- any bytes: what is taken can be walked, and written again means the same
 *
 * That jsmn finds the tokens that our own pass has counted is asserted inside lk__json_parse. */
#define LLMKIT_IMPLEMENTATION
#define LLMKIT__KEEP_MACROS
#include "llmkit.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x) ((x) ? (void)0 : abort())

/* The value at n, written anew.  Depth is bounded, so recursion is. */
static void rewrite(const lk__json *j, lk__node n, lk__jsonw *w) {
    lk__buf scratch;
    lk__buf_init(&scratch, j->env, 0);
    uint32_t seen = 0;
    switch (lk__json_type_of(j, n)) {
    case LK__JSON_STRING: lk__jsonw_str(w, lk__json_view(j, n, &scratch)); break;
    case LK__JSON_ARRAY:
        lk__jsonw_open(w, '[');
        for (lk__node e = lk__json_first(j, n); e != -1; e = lk__json_next(j, e), seen++) {
            rewrite(j, e, w);
        }
        CHECK(seen == lk__json_size(j, n));
        CHECK(seen == 0 || lk__json_at(j, n, seen - 1) != -1);
        lk__jsonw_close(w, ']');
        break;
    case LK__JSON_OBJECT:
        lk__jsonw_open(w, '{');
        for (lk__node k = lk__json_first(j, n); k != -1; k = lk__json_next(j, k), seen++) {
            llmkit_str key = lk__json_view(j, k, &scratch);
            lk__node found = lk__json_get(j, n, key);
            CHECK(found != -1 && found <= lk__json_value_of(j, k));
            lk__jsonw_str(w, key);
            lk__buf_ch(w->out, ':');
            w->comma = false;
            rewrite(j, lk__json_value_of(j, k), w);
        }
        CHECK(seen == lk__json_size(j, n));
        lk__jsonw_close(w, '}');
        break;
    default: CHECK(lk__json_type_of(j, n) != LK__JSON_NONE); lk__jsonw_raw(w, lk__json_raw(j, n));
    }
    lk__buf_free(&scratch);
}

static void check_number(const lk__json *j) {
    double value = 0, back = 0;
    char text[32];
    if (!lk__json_f64(j, 0, &value)) return;
    CHECK(lk__parse_f64(lk__str(text, lk__format_f64(text, value)), &back));
    CHECK(memcmp(&value, &back, sizeof value) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    llmkit_env env = lk__env_fill(NULL);
    lk__json j, again;
    lk__buf once, twice;
    lk__json_init(&j, &env);
    lk__json_init(&again, &env);
    lk__buf_init(&once, &env, 0);
    lk__buf_init(&twice, &env, 0);
    if (lk__json_parse(&j, lk__str((const char *)data, size)) == LLMKIT_OK) {
        rewrite(&j, 0, &(lk__jsonw){ .out = &once });
        CHECK(once.failed == LLMKIT_OK);
        CHECK(lk__json_parse(&again, lk__buf_view(&once)) == LLMKIT_OK);
        CHECK(again.num == j.num);
        rewrite(&again, 0, &(lk__jsonw){ .out = &twice });
        CHECK(lk__str_eq(lk__buf_view(&once), lk__buf_view(&twice)));
        check_number(&j);
    } else {
        CHECK(j.error_at <= size && j.num == 0);
    }
    /* Any bytes, escaped, are a string. */
    lk__buf_clear(&once);
    lk__jsonw_str(&(lk__jsonw){ .out = &once }, lk__str((const char *)data, size));
    CHECK(lk__json_parse(&again, lk__buf_view(&once)) == LLMKIT_OK);
    lk__buf_clear(&twice);
    lk__json_unescape_to(&twice,
                         lk__str((const char *)data, size)); /* not checked: still harmless */
    lk__json_free(&j);
    lk__json_free(&again);
    lk__buf_free(&once);
    lk__buf_free(&twice);
    return 0;
}
