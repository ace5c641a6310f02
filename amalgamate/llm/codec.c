/* llm/codec.c -- what all dialects share in reading a stream */

#include "llm/codec.h"

enum { LK__PATTERN_BYTES = 2048 }; /* longer events are read in full each time */

LK__PRIV void lk__answer_init(lk__answer *a, const llmkit_env *env) {
    memset(a, 0, sizeof *a);
    a->env = env;
    lk__buf_init(&a->pattern, env, LK__PATTERN_BYTES);
}

LK__PRIV void lk__answer_reset(lk__answer *a) {
    for (uint32_t i = 0; i < a->num_tools; i++) {
        lk__buf_free(&a->tools[i].id);
        lk__buf_free(&a->tools[i].name);
        lk__buf_free(&a->tools[i].arguments);
    }
    lk__free(a->env, a->tools, a->cap_tools * sizeof *a->tools);
    a->tools = NULL;
    a->num_tools = a->cap_tools = 0;
    a->usage = (llmkit_usage){ -1, -1, -1, -1 };
    a->finish = LLMKIT_UNFINISHED;
    a->finish_text[0] = '\0';
    a->complete = a->started = false;
    lk__buf_clear(&a->pattern);
}

LK__PRIV void lk__answer_free(lk__answer *a) {
    lk__answer_reset(a);
    lk__buf_free(&a->pattern);
}

LK__PRIV bool lk__answer_emit(lk__answer *a, llmkit_event *event) {
    a->told++;
    return a->emit(a->user, event);
}

LK__PRIV void lk__answer_learn(lk__answer *a, llmkit_str data, llmkit_str raw,
                               llmkit_str padding) {
    lk__buf_clear(&a->pattern);
    a->hole[0] = (size_t)(raw.ptr - data.ptr) - 1; /* with the quotes */
    a->hole_len[0] = raw.len + 2;
    a->hole[1] = padding.ptr ? (size_t)(padding.ptr - data.ptr) - 1 : data.len;
    a->hole_len[1] = padding.ptr ? padding.len + 2 : 0;
    if (data.len < LK__PATTERN_BYTES) lk__buf_str(&a->pattern, data);
}

/* The bytes of the pattern from at to end, and then a string in place of the one there. */
LK__PRIV bool lk__answer_step(const lk__answer *a, size_t at, size_t end, llmkit_str *data,
                              llmkit_str *string) {
    size_t len = end - at;
    if (data->len < len || memcmp(data->ptr, a->pattern.ptr + at, len) != 0) return false;
    *data = lk__str_from(*data, len);
    string->ptr = data->ptr;
    string->len = lk__json_string_len(*data);
    *data = lk__str_from(*data, string->len);
    return true;
}

LK__PRIV bool lk__answer_fits(const lk__answer *a, llmkit_str data, llmkit_str *raw) {
    llmkit_str text, other;
    size_t first = a->hole[0], behind = first + a->hole_len[0];
    size_t second = a->hole[1], rest = second + a->hole_len[1];
    if (a->pattern.len == 0 || !lk__answer_step(a, 0, first, &data, &text) || text.len == 0)
        return false;
    if (!lk__answer_step(a, behind, second, &data, &other)) return false;
    if ((other.len == 0) != (a->hole_len[1] == 0)) return false;
    size_t tail = a->pattern.len - rest;
    if (data.len != tail || (tail && memcmp(data.ptr, a->pattern.ptr + rest, tail) != 0))
        return false;
    *raw = lk__str(text.ptr + 1, text.len - 2);
    return true;
}

LK__PRIV lk__tool_part *lk__answer_tool(lk__answer *a, uint32_t index, llmkit_error *error) {
    for (uint32_t i = 0; i < a->num_tools; i++)
        if (a->tools[i].index == index) return &a->tools[i];
    if (a->num_tools == LK__MAX_TOOL_PARTS) {
        lk__fail(error, LLMKIT_E_TOO_BIG, "over %d tool calls in one reply", LK__MAX_TOOL_PARTS);
        return NULL;
    }
    if (a->num_tools == a->cap_tools) {
        uint32_t cap = a->cap_tools ? 2 * a->cap_tools : 4;
        lk__tool_part *more = lk__resize(a->env, a->tools, a->cap_tools * sizeof *more,
                                         cap * sizeof *more);
        if (!more) {
            lk__fail(error, LLMKIT_E_NOMEM, "no memory for a tool call");
            return NULL;
        }
        a->tools = more;
        a->cap_tools = cap;
    }
    lk__tool_part *t = &a->tools[a->num_tools++];
    memset(t, 0, sizeof *t);
    t->index = index;
    lk__buf_init(&t->id, a->env, 4096);
    lk__buf_init(&t->name, a->env, 4096);
    lk__buf_init(&t->arguments, a->env, a->max_bytes);
    return t;
}

LK__PRIV bool lk__answer_end_tools(lk__answer *a) {
    for (uint32_t i = 0; i < a->num_tools; i++) {
        lk__tool_part *t = &a->tools[i];
        if (t->ended) continue;
        t->ended = true;
        llmkit_event e = { .type = LLMKIT_EV_TOOL_END };
        e.tool = (llmkit_tool_call){ lk__buf_view(&t->id), lk__buf_view(&t->name),
                                     lk__buf_view(&t->arguments), t->index };
        if (!lk__answer_emit(a, &e)) return false;
    }
    return true;
}
