/* fuzz_openai.c -- reading replies, errors and events of OpenAI's dialect
 *
 * Each line of the input is read as a reply, as an error, and as one event of a stream.  The events
 * are read twice, once with all that is remembered of earlier ones wiped out between them: what
 * comes out must be the same. */
#define LLMKIT_IMPLEMENTATION
#define LLMKIT__KEEP_MACROS
#include "llmkit.h"

static llmkit_env env;

static void check(bool good) {
    if (!good) abort();
}

static void check_view(llmkit_str s) {
    check(!s.ptr || s.ptr[s.len] == '\0');
    for (size_t i = 0; i < s.len;) { /* what comes out is UTF-8 */
        size_t n = lk__utf8_size(s.ptr + i, s.ptr + s.len);
        check(n > 0);
        i += n;
    }
}

typedef struct sink {
    lk__answer answer;
    lk__json   json;
    lk__buf    scratch, out;
    bool       over;
} sink;

static bool emit(void *user, llmkit_event *e) {
    sink *s = user;
    check(!s->over);
    const llmkit_str views[] = { e->text, e->model, e->tool.id, e->tool.name, e->tool.arguments };
    lk__buf_fmt(&s->out, "%d %u", (int)e->type, e->tool.index);
    for (size_t i = 0; i < LK__COUNT(views); i++) {
        check_view(views[i]);
        lk__buf_ch(&s->out, ' ');
        lk__buf_str(&s->out, views[i]);
    }
    lk__buf_ch(&s->out, '\n');
    return true;
}

static void sink_init(sink *s) {
    memset(s, 0, sizeof *s);
    lk__json_init(&s->json, &env);
    lk__buf_init(&s->scratch, &env, 0);
    lk__buf_init(&s->out, &env, 0);
    lk__answer_init(&s->answer, &env);
    s->answer.json = &s->json;
    s->answer.scratch = &s->scratch;
    s->answer.max_bytes = 4096;
    s->answer.emit = emit;
    s->answer.user = s;
    lk__answer_reset(&s->answer);
}

static void sink_free(sink *s) {
    lk__answer_free(&s->answer);
    lk__json_free(&s->json);
    lk__buf_free(&s->scratch);
    lk__buf_free(&s->out);
}

/* forget: nothing of earlier events may help to read the next one. */
static void read_events(sink *s, llmkit_str all, bool forget) {
    while (all.len > 0 && !s->over) {
        size_t n = lk__str_find(all, '\n');
        llmkit_error error = { .code = LLMKIT_OK };
        if (forget) lk__buf_clear(&s->answer.pattern);
        s->over = !lk__codec_openai()->read_event(&s->answer, lk__str(all.ptr, n), &error);
        if (s->over) {
            check(error.code != LLMKIT_OK);
            lk__buf_fmt(&s->out, "error %d\n", (int)error.code);
        }
        all = lk__str_from(all, n < all.len ? n + 1 : n);
    }
    if (!s->over) lk__answer_end_tools(&s->answer);
}

static void read_document(llmkit_str text) {
    lk__json json;
    lk__buf arena, tools, scratch;
    llmkit_error error = { .code = LLMKIT_OK };
    lk__json_init(&json, &env);
    lk__buf_init(&arena, &env, 0);
    lk__buf_init(&tools, &env, 0);
    lk__buf_init(&scratch, &env, 0);
    if (lk__json_parse(&json, text) == LLMKIT_OK) {
        llmkit_reply reply;
        memset(&reply, 0, sizeof reply);
        check(lk__buf_more(&arena, text.len + 1) != NULL);
        const char *before = arena.ptr;
        if (!lk__codec_openai()->read(&json, &reply, &arena, &tools, &error)) {
            check(arena.ptr == before);
            check_view(reply.text);
            check_view(reply.refusal);
            check_view(reply.model);
            check_view(reply.finish_text);
            for (size_t i = 0; i < reply.num_tool_calls; i++) {
                check_view(reply.tool_calls[i].id);
                check_view(reply.tool_calls[i].name);
                check_view(reply.tool_calls[i].arguments);
            }
        }
        lk__codec_openai()->read_error(&json, &error, &scratch);
    }
    lk__json_free(&json);
    lk__buf_free(&arena);
    lk__buf_free(&tools);
    lk__buf_free(&scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    llmkit_str all = { (const char *)data, size };
    sink one, two;
    env = lk__env_fill(NULL);
    sink_init(&one);
    sink_init(&two);
    read_events(&one, all, false);
    read_events(&two, all, true);
    check(lk__str_eq(lk__buf_view(&one.out), lk__buf_view(&two.out)));
    sink_free(&one);
    sink_free(&two);
    while (all.len > 0) {
        size_t n = lk__str_find(all, '\n');
        read_document(lk__str(all.ptr, n));
        all = lk__str_from(all, n < all.len ? n + 1 : n);
    }
    return 0;
}
