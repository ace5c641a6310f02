/* bench_json.c -- one chunk of a stream: our check, jsmn, lookups */
#include "bench.h"

/* The yardstick: jsmn as a program of its own uses it, beside ours. */
#define JSMN_STATIC
#define JSMN_STRICT
#define JSMN_PARENT_LINKS
#include <jsmn.h>

enum { NUM_ROUNDS = 100000 };

static const char chunk[] =
    "{\"id\":\"chatcmpl-9xYzAbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\","
    "\"created\":1715000000,\"model\":\"gpt-4o-mini-2024-07-18\",\"system_fingerprint\":\"fp_abc\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" tok\"},\"logprobs\":null,"
    "\"finish_reason\":null}]}";

static void fail(const char *what) {
    fprintf(stderr, "%s failed\n", what);
    exit(1);
}

static void use_jsmn(void *user) {
    jsmntok_t tokens[64];
    jsmn_parser parser;
    (void)user;
    jsmn_init(&parser);
    int num = jsmn_parse(&parser, chunk, sizeof chunk - 1, tokens, LK__COUNT(tokens));
    if (num <= 0) fail("jsmn");
    lk_keep(tokens);
}

static void use_parse(void *user) {
    if (lk__json_parse(user, lk__str(chunk, sizeof chunk - 1)) != LLMKIT_OK) fail("parse");
}

/* What a codec asks of every chunk. */
static void use_lookups(void *user) {
    lk__json *j = user;
    lk__node choice = lk__json_at(j, lk__json_get(j, 0, LK__STR("choices")), 0);
    lk__node delta = lk__json_get(j, choice, LK__STR("delta"));
    llmkit_str text = lk__json_view(j, lk__json_get(j, delta, LK__STR("content")), NULL);
    lk__node finish = lk__json_get(j, choice, LK__STR("finish_reason"));
    lk__node usage = lk__json_get(j, 0, LK__STR("usage"));
    if (text.len != 4 || lk__json_type_of(j, finish) != LK__JSON_NULL || usage != -1)
        fail("lookup");
    lk_keep(text);
}

static void use_both(void *user) {
    use_parse(user);
    use_lookups(user);
}

int main(void) {
    llmkit_env env = lk__env_fill(NULL);
    lk__json j;
    char peer[64];
    lk__json_init(&j, &env);
    use_parse(&j);
    printf("one stream chunk of %zu bytes, %u tokens\n", sizeof chunk - 1, (unsigned)j.num);
    double jsmn = lk_time_ns(use_jsmn, NULL, NUM_ROUNDS);
    snprintf(peer, sizeof peer, "jsmn alone, unchecked: %.0f ns", jsmn);
    lk_figure("parsers.json_chunk_parse_ns", lk_time_ns(use_parse, &j, NUM_ROUNDS), "ns", NULL, 0,
              peer);
    lk_figure("parsers.json_chunk_lookups_ns", lk_time_ns(use_lookups, &j, NUM_ROUNDS), "ns", NULL,
              0, "six lookups");
    lk_figure("parsers.json_chunk_ns", lk_time_ns(use_both, &j, NUM_ROUNDS), "ns", NULL, 0, peer);
    lk__json_free(&j);
    return 0;
}
