/* tests/bench_json.c -- nanoseconds for one chunk of a stream: our check, jsmn, lookups */
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"

/* The yardstick: jsmn as a program of its own would use it. */
#define JSMN_STATIC
#define JSMN_STRICT
#define JSMN_PARENT_LINKS
#include <jsmn.h>

#if __has_include("bench.h")
#include "bench.h"
#endif

enum { NUM_ROUNDS = 2000, NUM_TRIES = 200 };

static const char chunk[] =
    "{\"id\":\"chatcmpl-9xYzAbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\","
    "\"created\":1715000000,\"model\":\"gpt-4o-mini-2024-07-18\",\"system_fingerprint\":\"fp_abc\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" tok\"},\"logprobs\":null,"
    "\"finish_reason\":null}]}";

static volatile size_t sink;

static bool do_check(lk__json *j) {
    lk__json_check check = { .end = chunk + sizeof chunk - 1 };
    (void)j;
    return lk__json_check_text(&check, chunk) != NULL;
}

static bool do_jsmn(lk__json *j) {
    static jsmntok_t tokens[64];
    jsmn_parser parser;
    (void)j;
    jsmn_init(&parser);
    return jsmn_parse(&parser, chunk, sizeof chunk - 1, tokens, LK__COUNT(tokens)) > 0;
}

static bool do_parse(lk__json *j) {
    return lk__json_parse(j, lk__str(chunk, sizeof chunk - 1)) == LLMKIT_OK;
}

static bool do_lookups(lk__json *j) {
    lk__node choices = lk__json_get(j, 0, LK__STR("choices"));
    lk__node choice = lk__json_at(j, choices, 0);
    lk__node delta = lk__json_get(j, choice, LK__STR("delta"));
    llmkit_str text = lk__json_view(j, lk__json_get(j, delta, LK__STR("content")), NULL);
    lk__node finish = lk__json_get(j, choice, LK__STR("finish_reason"));
    lk__node usage = lk__json_get(j, 0, LK__STR("usage"));
    sink += text.len;
    return text.len == 4 && lk__json_type_of(j, finish) == LK__JSON_NULL && usage == -1;
}

static bool do_both(lk__json *j) {
    return do_parse(j) && do_lookups(j);
}

/* Of this process only: other programs on the machine do not count. */
static double cpu_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

typedef struct row {
    const char *name;
    bool      (*work)(lk__json *j);
    double      best_ns;
} row;

/* The best of many short tries, in turn: what disturbs a measurement only ever makes it longer. */
static void measure(row *rows, size_t num, lk__json *j) {
    for (size_t i = 0; i < num * NUM_TRIES; i++) {
        row *r = &rows[i % num];
        double start = cpu_ns();
        for (int n = 0; n < NUM_ROUNDS; n++) {
            if (!r->work(j)) abort();
        }
        double ns = (cpu_ns() - start) / NUM_ROUNDS;
        if (i < num || ns < r->best_ns) r->best_ns = ns;
    }
}

int main(void) {
    row rows[] = { { "jsmn alone", do_jsmn, 0 },
                   { "our check alone", do_check, 0 },
                   { "parse: check, then jsmn", do_parse, 0 },
                   { "six lookups", do_lookups, 0 },
                   { "parse and lookups", do_both, 0 } };
    llmkit_env env = lk__env_fill(NULL);
    lk__json j;
    lk__json_init(&j, &env);
    if (!do_parse(&j)) return 1;
    measure(rows, LK__COUNT(rows), &j);
    printf("one stream chunk of %zu bytes, %u tokens\n", sizeof chunk - 1, (unsigned)j.num);
    for (size_t i = 0; i < LK__COUNT(rows); i++) {
        printf("  %-24s %7.1f ns\n", rows[i].name, rows[i].best_ns);
    }
    lk__json_free(&j);
    return 0;
}
