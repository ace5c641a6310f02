/* test_codec.c -- reading a stream by difference says what reading each event in full says */
#include "test.h"

enum { ROUNDS = 60, EVENTS = 120 };

/* What a decoder has reported, as text. */
typedef struct record {
    lk__answer answer;
    lk__json   json;
    lk__buf    scratch, log;
    size_t     texts;
} record;

static bool note(void *user, llmkit_event *e) {
    record *r = user;
    lk__buf_fmt(&r->log, "%d:", (int)e->type);
    lk__buf_str(&r->log, e->text);
    lk__buf_ch(&r->log, ';');
    r->texts += e->type == LLMKIT_EV_TEXT;
    return true;
}

static void record_init(record *r, const llmkit_env *env) {
    memset(r, 0, sizeof *r);
    lk__json_init(&r->json, env);
    lk__buf_init(&r->scratch, env, 0);
    lk__buf_init(&r->log, env, 0);
    lk__answer_init(&r->answer, env);
    r->answer.json = &r->json;
    r->answer.scratch = &r->scratch;
    r->answer.max_bytes = 1 << 20;
    r->answer.emit = note;
    r->answer.user = r;
    lk__answer_reset(&r->answer);
}

static void record_free(record *r) {
    lk__answer_free(&r->answer);
    lk__json_free(&r->json);
    lk__buf_free(&r->scratch);
    lk__buf_free(&r->log);
}

static void feed(record *r, llmkit_str data) {
    llmkit_error error = { .code = LLMKIT_OK };
    bool more = lk__codec_openai()->read_event(&r->answer, data, &error);
    lk__buf_fmt(&r->log, "%d %d;", more, (int)error.code);
}

static const char *const templates[] = {
    "{\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"},"
    "\"finish_reason\":null}]}",
    "{\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"},"
    "\"finish_reason\":null}],\"usage\":null,\"obfuscation\":\"%s\"}",
    "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null}}],"
    "\"padding\":\"%s\",\"model\":\"m\"}",
    "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\",\"content\":\"%s\"}}]}",
    "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"},\"finish_reason\":\"%s\"}]}",
    "{\"choices\":[{\"index\":0,\"delta\":{\"refusal\":\"%s\"}}],\"x\":\"%s\"}",
    "{\"choices\":[{\"index\":1,\"delta\":{\"content\":\"%s\"}}],\"x\":\"%s\"}",
    "{\"choices\":[],\"usage\":{\"prompt_tokens\":1},\"x\":\"%s%s\"}",
    "{\"choices\":[{\"delta\":{\"content\":\"%s\"}}],\"error\":null,\"z\":\"%s\"}",
    "{\"choices\":[{\"delta\":{\"content\":\"%s\"}}],\"error\":\"%s\"}",
    "{\"choices\":[{\"delta\":{\"content\":\"a\",\"tool_calls\":[{\"index\":0,\"id\":\"i\","
    "\"function\":{\"name\":\"f\",\"arguments\":\"%s\"}}]}}],\"x\":\"%s\"}",
};

static const char *const words[] = {
    "", " token", "a", "\\\"", "\\\\", "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "\xc3\xa9", "\\n",
    "\",\"x\":\"", "\"", "\\", "\x01", "\xff", "\xc3", "stop", "\\x", "}}]}",
    "a longer piece of text than the others",
};

/* With other strings than the one before, and now and then a wrong byte or an early end. */
static size_t make_event(char *out, size_t size, lk__rand *rand, const char *template) {
    const char *a = words[lk__rand_u64(rand) % LK__COUNT(words)];
    const char *b = words[lk__rand_u64(rand) % LK__COUNT(words)];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    int n = snprintf(out, size, template, a, b);
#pragma GCC diagnostic pop
    assert_true(n > 0 && (size_t)n < size);
    if (lk__rand_u64(rand) % 8 == 0)
        out[lk__rand_u64(rand) % (uint64_t)n] = (char)lk__rand_u64(rand);
    if (lk__rand_u64(rand) % 16 == 0) n -= (int)(lk__rand_u64(rand) % (uint64_t)n);
    return (size_t)n;
}

static void by_difference_or_in_full_the_events_are_the_same(void **state) {
    (void)state;
    llmkit_env env = lk__env_fill(NULL);
    size_t texts = 0;
    for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
        record differs, full;
        lk__rand rand;
        llmkit_env seeded = { .seed = seed };
        lk__rand_init(&rand, &seeded);
        record_init(&differs, &env);
        record_init(&full, &env);
        const char *template = templates[0];
        for (int i = 0; i < EVENTS; i++) {
            char text[512];
            if (i % 12 == 0) template = templates[lk__rand_u64(&rand) % LK__COUNT(templates)];
            size_t n = make_event(text, sizeof text, &rand, template);
            char *event = lk_guarded(text, n);
            lk__buf_clear(&full.answer.pattern);
            feed(&differs, lk__str(event, n));
            feed(&full, lk__str(event, n));
            if (differs.log.len != full.log.len ||
                memcmp(differs.log.ptr, full.log.ptr, full.log.len) != 0) {
                fail_msg("seed %llu, event %d: %.*s\n%s\n%s", (unsigned long long)seed, i, (int)n,
                         text, differs.log.ptr, full.log.ptr);
            }
            lk__buf_clear(&differs.log);
            lk__buf_clear(&full.log);
        }
        texts += differs.texts;
        record_free(&differs);
        record_free(&full);
    }
    assert_true(texts > ROUNDS * EVENTS / 8); /* most of it made sense */
}

static void an_event_like_the_last_is_not_parsed(void **state) {
    (void)state;
    llmkit_env env = lk__env_fill(NULL);
    record r;
    record_init(&r, &env);
    const char *first = "{\"choices\":[{\"delta\":{\"content\":\"one\"}}],\"o\":\"abc\"}";
    const char *second = "{\"choices\":[{\"delta\":{\"content\":\" and two\"}}],\"o\":\"defghi\"}";
    feed(&r, lk__str_z(first));
    uint32_t tokens = r.json.num;
    r.json.num = 77; /* which a parse would set */
    feed(&r, lk__str_z(second));
    assert_int_equal(r.json.num, 77);
    assert_true(tokens > 0);
    assert_str(lk__buf_view(&r.log), "1:;2:one;1 0;2: and two;1 0;");
    record_free(&r);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(by_difference_or_in_full_the_events_are_the_same),
    cmocka_unit_test(an_event_like_the_last_is_not_parsed),
};
LK_TEST_MAIN(tests)
