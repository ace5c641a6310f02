/* llm/openai.c -- the dialect of OpenAI's chat completions, and of all that speak it */

/* Fields and events: platform.openai.com/docs/api-reference/chat. */

#include "llm/codec.h"

#if LLMKIT_WITH_OPENAI

/* ---- writing a request ----------------------------------------------------------------------- */

typedef struct lk__oai_writer {
    lk__jsonw  json;
    lk__json  *extra; /* parsed; its members win over ours */
    lk__node   extra_root;
} lk__oai_writer;

/* A member of the body; false: the caller's extra has it, so ours is left out. */
LK__PRIV bool lk__oai_member(lk__oai_writer *w, const char *key) {
    if (lk__json_get(w->extra, w->extra_root, lk__str_z(key)) >= 0) return false;
    lk__jsonw_key(&w->json, key);
    return true;
}

LK__PRIV void lk__oai_str(lk__jsonw *w, const char *key, llmkit_str value) {
    lk__jsonw_key(w, key);
    lk__jsonw_str(w, value);
}

LK__PRIV void lk__oai_open_message(lk__jsonw *w, const char *role) {
    lk__jsonw_open(w, '{');
    lk__oai_str(w, "role", lk__str_z(role));
}

LK__PRIV void lk__oai_message(lk__jsonw *w, const char *role, llmkit_str text) {
    lk__oai_open_message(w, role);
    lk__oai_str(w, "content", text);
    lk__jsonw_close(w, '}');
}

/* A picture as it stands in the text of the request: a URL, or its bytes in base64 (RFC 2397). */
LK__PRIV void lk__oai_image(lk__jsonw *w, const llmkit_part *p) {
    lk__jsonw_open(w, '{');
    lk__oai_str(w, "type", LK__STR("image_url"));
    lk__jsonw_key(w, "image_url");
    lk__jsonw_open(w, '{');
    if (p->url.len) {
        lk__oai_str(w, "url", p->url);
    } else {
        lk__jsonw_key(w, "url");
        lk__buf_z(w->out, "\"data:");
        lk__json_escape_to(w->out, p->mime.len ? p->mime : LK__STR("image/png"));
        lk__buf_z(w->out, ";base64,");
        size_t n = 4 * ((p->data.len + 2) / 3);
        char *at = lk__buf_more(w->out, n);
        if (at) lk__buf_wrote(w->out, lk__base64(at, p->data.ptr, p->data.len));
        lk__buf_ch(w->out, '"');
        w->comma = true;
    }
    lk__jsonw_close(w, '}');
    lk__jsonw_close(w, '}');
}

LK__PRIV void lk__oai_text_part(lk__jsonw *w, llmkit_str text) {
    lk__jsonw_open(w, '{');
    lk__oai_str(w, "type", LK__STR("text"));
    lk__oai_str(w, "text", text);
    lk__jsonw_close(w, '}');
}

LK__PRIV size_t lk__oai_count(const llmkit_message *m, llmkit_part_kind kind) {
    size_t n = 0;
    for (size_t i = 0; i < m->num_parts; i++) n += m->parts[i].kind == kind;
    return n;
}

LK__PRIV void lk__oai_content(lk__jsonw *w, const llmkit_message *m) {
    size_t texts = lk__oai_count(m, LLMKIT_TEXT) + (m->text != NULL);
    size_t images = lk__oai_count(m, LLMKIT_IMAGE);
    lk__jsonw_key(w, "content");
    if (texts + images == 0) {
        lk__jsonw_raw(w, LK__STR("null"));
        return;
    }
    if (texts == 1 && images == 0) { /* what every server understands */
        size_t i = 0;
        while (!m->text && m->parts[i].kind != LLMKIT_TEXT) i++;
        lk__jsonw_str(w, m->text ? lk__str_z(m->text) : m->parts[i].text);
        return;
    }
    lk__jsonw_open(w, '[');
    if (m->text) lk__oai_text_part(w, lk__str_z(m->text));
    for (size_t i = 0; i < m->num_parts; i++) {
        if (m->parts[i].kind == LLMKIT_TEXT) lk__oai_text_part(w, m->parts[i].text);
        if (m->parts[i].kind == LLMKIT_IMAGE) lk__oai_image(w, &m->parts[i]);
    }
    lk__jsonw_close(w, ']');
}

LK__PRIV void lk__oai_tool_calls(lk__jsonw *w, const llmkit_message *m) {
    if (lk__oai_count(m, LLMKIT_TOOL_CALL) == 0) return;
    lk__jsonw_key(w, "tool_calls");
    lk__jsonw_open(w, '[');
    for (size_t i = 0; i < m->num_parts; i++) {
        const llmkit_part *p = &m->parts[i];
        if (p->kind != LLMKIT_TOOL_CALL) continue;
        lk__jsonw_open(w, '{');
        lk__oai_str(w, "id", p->id);
        lk__oai_str(w, "type", LK__STR("function"));
        lk__jsonw_key(w, "function");
        lk__jsonw_open(w, '{');
        lk__oai_str(w, "name", p->text);
        lk__oai_str(w, "arguments", p->data.len ? p->data : LK__STR("{}"));
        lk__jsonw_close(w, '}');
        lk__jsonw_close(w, '}');
    }
    lk__jsonw_close(w, ']');
}

/* Results of tools are messages of their own in this dialect, one for each. */
LK__PRIV void lk__oai_tool_results(lk__jsonw *w, const llmkit_message *m) {
    for (size_t i = 0; i < m->num_parts; i++) {
        const llmkit_part *p = &m->parts[i];
        if (p->kind != LLMKIT_TOOL_RESULT) continue;
        lk__oai_open_message(w, "tool");
        lk__oai_str(w, "tool_call_id", p->id);
        lk__oai_str(w, "content", p->text);
        lk__jsonw_close(w, '}');
    }
}

LK__PRIV void lk__oai_any_message(lk__jsonw *w, const llmkit_message *m) {
    static const char *const roles[] = { "user", "assistant", "system", "tool" };
    size_t results = lk__oai_count(m, LLMKIT_TOOL_RESULT);
    lk__oai_tool_results(w, m);
    if (results > 0 && results == m->num_parts && !m->text) return;
    lk__oai_open_message(w, roles[m->role]);
    lk__oai_content(w, m);
    lk__oai_tool_calls(w, m);
    lk__jsonw_close(w, '}');
}

LK__PRIV void lk__oai_messages(lk__oai_writer *w, const llmkit_request *r) {
    if (!lk__oai_member(w, "messages")) return;
    lk__jsonw_open(&w->json, '[');
    if (r->system) lk__oai_message(&w->json, "system", lk__str_z(r->system));
    for (size_t i = 0; i < r->num_messages; i++) lk__oai_any_message(&w->json, &r->messages[i]);
    if (r->prompt) lk__oai_message(&w->json, "user", lk__str_z(r->prompt));
    lk__jsonw_close(&w->json, ']');
}

LK__PRIV void lk__oai_tools(lk__oai_writer *w, const llmkit_request *r) {
    lk__jsonw *json = &w->json;
    if (r->num_tools == 0 || !lk__oai_member(w, "tools")) return;
    lk__jsonw_open(json, '[');
    for (size_t i = 0; i < r->num_tools; i++) {
        const llmkit_tool *t = &r->tools[i];
        lk__jsonw_open(json, '{');
        lk__oai_str(json, "type", LK__STR("function"));
        lk__jsonw_key(json, "function");
        lk__jsonw_open(json, '{');
        lk__oai_str(json, "name", lk__str_z(t->name));
        if (t->description) lk__oai_str(json, "description", lk__str_z(t->description));
        if (t->schema) {
            lk__jsonw_key(json, "parameters");
            lk__jsonw_raw(json, lk__str_z(t->schema));
        }
        lk__jsonw_close(json, '}');
        lk__jsonw_close(json, '}');
    }
    lk__jsonw_close(json, ']');
}

LK__PRIV void lk__oai_tool_choice(lk__oai_writer *w, const llmkit_request *r) {
    if (!r->tool_choice || !lk__oai_member(w, "tool_choice")) return;
    llmkit_str choice = lk__str_z(r->tool_choice);
    if (lk__str_eq(choice, LK__STR("auto")) || lk__str_eq(choice, LK__STR("none")) ||
        lk__str_eq(choice, LK__STR("required"))) {
        lk__jsonw_str(&w->json, choice);
        return;
    }
    lk__jsonw_raw(&w->json, LK__STR("{\"type\":\"function\",\"function\":{\"name\":"));
    w->json.comma = false;
    lk__jsonw_str(&w->json, choice);
    lk__buf_z(w->json.out, "}}");
}

LK__PRIV void lk__oai_schema(lk__oai_writer *w, const llmkit_request *r) {
    if (!r->schema || !lk__oai_member(w, "response_format")) return;
    lk__jsonw_raw(&w->json, LK__STR("{\"type\":\"json_schema\",\"json_schema\":"
                                    "{\"name\":\"reply\",\"strict\":true,\"schema\":"));
    lk__buf_z(w->json.out, r->schema);
    lk__buf_z(w->json.out, "}}");
}

LK__PRIV void lk__oai_option(lk__oai_writer *w, const char *key, llmkit_opt option) {
    if (option.set && lk__oai_member(w, key)) lk__jsonw_f64(&w->json, option.value);
}

LK__PRIV void lk__oai_options(lk__oai_writer *w, const lk__draft *d) {
    const llmkit_request *r = d->request;
    const char *limit = d->completion_tokens ? "max_completion_tokens" : "max_tokens";
    lk__oai_option(w, "temperature", r->temperature);
    lk__oai_option(w, "top_p", r->top_p);
    lk__oai_option(w, "seed", r->seed);
    if (r->max_tokens && lk__oai_member(w, limit)) lk__jsonw_i64(&w->json, r->max_tokens);
    if (!d->stream) return;
    if (lk__oai_member(w, "stream")) lk__jsonw_bool(&w->json, true);
    if (lk__oai_member(w, "stream_options"))
        lk__jsonw_raw(&w->json, LK__STR("{\"include_usage\":true}"));
}

/* "stream" is not the caller's to change: the reply could not be read. */
LK__PRIV void lk__oai_extra(lk__oai_writer *w) {
    lk__node key = lk__json_first(w->extra, w->extra_root);
    for (; key >= 0; key = lk__json_next(w->extra, key)) {
        lk__node value = lk__json_value_of(w->extra, key);
        llmkit_str raw = lk__json_raw(w->extra, value);
        bool text = lk__json_type_of(w->extra, value) == LK__JSON_STRING;
        lk__jsonw_raw(&w->json, LK__STR("\""));
        lk__buf_str(w->json.out, lk__json_raw(w->extra, key));
        lk__buf_z(w->json.out, text ? "\":\"" : "\":");
        lk__buf_str(w->json.out, raw);
        if (text) lk__buf_ch(w->json.out, '"');
        w->json.comma = true;
    }
}

LK__PRIV llmkit_err lk__oai_check_json(lk__json *json, const char *text, lk__json_type type,
                                       const char *field, llmkit_error *error) {
    llmkit_err err = lk__json_parse(json, lk__str_z(text));
    if (err == LLMKIT_E_NOMEM) return lk__fail(error, err, "no memory to parse %s", field);
    if (err || lk__json_type_of(json, 0) != type)
        return lk__fail(error, LLMKIT_E_ARG, "%s is not a JSON object", field);
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__oai_check(const lk__draft *d, llmkit_error *error) {
    const llmkit_request *r = d->request;
    llmkit_err err = LLMKIT_OK;
    for (size_t i = 0; i < r->num_messages && !err; i++)
        if ((unsigned)r->messages[i].role > LLMKIT_TOOL)
            err = lk__fail(error, LLMKIT_E_ARG, "messages[%zu].role is none of llmkit_role", i);
    for (size_t i = 0; i < r->num_tools && !err; i++) {
        if (!r->tools[i].name || !*r->tools[i].name)
            err = lk__fail(error, LLMKIT_E_ARG, "tools[%zu].name is missing", i);
        else if (r->tools[i].schema)
            err = lk__oai_check_json(d->json, r->tools[i].schema, LK__JSON_OBJECT,
                                     "a tool's schema", error);
    }
    if (!err && r->schema)
        err = lk__oai_check_json(d->json, r->schema, LK__JSON_OBJECT, "schema", error);
    return err;
}

LK__PRIV llmkit_err lk__oai_write(lk__draft *d, llmkit_error *error) {
    lk__oai_writer w = { .json = { .out = d->body }, .extra = d->json, .extra_root = -1 };
    llmkit_err err = lk__oai_check(d, error);
    if (!err && d->request->extra) {
        err = lk__oai_check_json(d->json, d->request->extra, LK__JSON_OBJECT, "extra", error);
        w.extra_root = 0;
        if (!err && lk__json_get(d->json, 0, LK__STR("stream")) >= 0)
            err = lk__fail(error, LLMKIT_E_ARG, "extra must not set \"stream\": call llmkit_submit "
                           "or llmkit_stream_open for a stream");
    }
    if (err) return err;
    lk__jsonw_open(&w.json, '{');
    if (lk__oai_member(&w, "model")) lk__jsonw_str(&w.json, d->model);
    lk__oai_messages(&w, d->request);
    lk__oai_tools(&w, d->request);
    lk__oai_tool_choice(&w, d->request);
    lk__oai_schema(&w, d->request);
    lk__oai_options(&w, d);
    lk__oai_extra(&w);
    lk__jsonw_close(&w.json, '}');
    return d->body->failed ? lk__fail(error, d->body->failed, "no room for the request's body")
                           : LLMKIT_OK;
}

/* ---- reading a reply ------------------------------------------------------------------------- */

LK__PRIV llmkit_finish lk__oai_finish(llmkit_str reason) {
    static const struct {
        llmkit_str    reason;
        llmkit_finish finish;
    } table[] = {
        { { "stop", 4 }, LLMKIT_STOP },
        { { "length", 6 }, LLMKIT_LENGTH },
        { { "tool_calls", 10 }, LLMKIT_TOOL_USE },
        { { "function_call", 13 }, LLMKIT_TOOL_USE },
        { { "content_filter", 14 }, LLMKIT_FILTER },
    };
    for (size_t i = 0; i < LK__COUNT(table); i++)
        if (lk__str_eq(reason, table[i].reason)) return table[i].finish;
    return LLMKIT_OTHER;
}

LK__PRIV int64_t lk__oai_tokens(const lk__json *j, lk__node object, llmkit_str key) {
    int64_t n;
    return lk__json_i64(j, lk__json_get(j, object, key), &n) && n >= 0 ? n : -1;
}

LK__PRIV llmkit_usage lk__oai_usage(const lk__json *j, lk__node usage) {
    lk__node prompt = lk__json_get(j, usage, LK__STR("prompt_tokens_details"));
    lk__node completion = lk__json_get(j, usage, LK__STR("completion_tokens_details"));
    return (llmkit_usage){
        .input = lk__oai_tokens(j, usage, LK__STR("prompt_tokens")),
        .output = lk__oai_tokens(j, usage, LK__STR("completion_tokens")),
        .cache_read = lk__oai_tokens(j, prompt, LK__STR("cached_tokens")),
        .reasoning = lk__oai_tokens(j, completion, LK__STR("reasoning_tokens")),
    };
}

/* A string of the document at the end of the arena, NUL-terminated; the arena never moves, since it
 * has room for all of them. */
LK__PRIV llmkit_str lk__oai_keep(const lk__json *j, lk__node n, lk__buf *arena) {
    size_t at = arena->len;
    if (!lk__json_text(j, n, arena)) return (llmkit_str){ "", 0 };
    llmkit_str text = { arena->ptr + at, arena->len - at };
    lk__buf_ch(arena, '\0');
    return text;
}

LK__PRIV void lk__oai_read_tools(const lk__json *j, lk__node calls, llmkit_reply *reply,
                                 lk__buf *arena, lk__buf *tools) {
    uint32_t num = 0;
    for (lk__node n = lk__json_first(j, calls); n >= 0; n = lk__json_next(j, n), num++) {
        lk__node function = lk__json_get(j, n, LK__STR("function"));
        llmkit_tool_call call = {
            .id = lk__oai_keep(j, lk__json_get(j, n, LK__STR("id")), arena),
            .name = lk__oai_keep(j, lk__json_get(j, function, LK__STR("name")), arena),
            .arguments = lk__oai_keep(j, lk__json_get(j, function, LK__STR("arguments")), arena),
            .index = num,
        };
        lk__buf_add(tools, &call, sizeof call);
    }
    if (num == 0 || tools->failed) return;
    reply->tool_calls = (const llmkit_tool_call *)(const void *)tools->ptr;
    reply->num_tool_calls = num;
}

LK__PRIV llmkit_err lk__oai_read(const lk__json *j, llmkit_reply *reply, lk__buf *arena,
                                 lk__buf *tools, llmkit_error *error) {
    lk__node choice = lk__json_at(j, lk__json_get(j, 0, LK__STR("choices")), 0);
    lk__node message = lk__json_get(j, choice, LK__STR("message"));
    lk__node finish = lk__json_get(j, choice, LK__STR("finish_reason"));
    if (lk__json_type_of(j, message) != LK__JSON_OBJECT)
        return lk__fail(error, LLMKIT_E_JSON, "the reply has no choices[0].message: is base_url "
                        "that of an OpenAI-compatible API?");
    reply->text = lk__oai_keep(j, lk__json_get(j, message, LK__STR("content")), arena);
    reply->refusal = lk__oai_keep(j, lk__json_get(j, message, LK__STR("refusal")), arena);
    reply->model = lk__oai_keep(j, lk__json_get(j, 0, LK__STR("model")), arena);
    reply->finish_text = lk__oai_keep(j, finish, arena);
    reply->finish = finish >= 0 && reply->finish_text.len ? lk__oai_finish(reply->finish_text)
                                                          : LLMKIT_OTHER;
    reply->usage = lk__oai_usage(j, lk__json_get(j, 0, LK__STR("usage")));
    lk__oai_read_tools(j, lk__json_get(j, message, LK__STR("tool_calls")), reply, arena, tools);
    if (arena->failed || tools->failed)
        return lk__fail(error, LLMKIT_E_NOMEM, "no memory for the reply's strings");
    return LLMKIT_OK;
}

/* What a type or a code means: OpenAI's, and those that servers of its dialect took over from
 * Anthropic.  A quota that is used up has the status of a rate limit. */
LK__PRIV void lk__oai_classify(llmkit_error *error, llmkit_str word) {
    static const struct {
        const char *word;
        llmkit_err  code;
    } table[] = {
        { "insufficient_quota", LLMKIT_E_QUOTA },
        { "invalid_request_error", LLMKIT_E_REQUEST },
        { "context_length_exceeded", LLMKIT_E_REQUEST },
        { "model_not_found", LLMKIT_E_REQUEST },
        { "not_found_error", LLMKIT_E_REQUEST },
        { "invalid_api_key", LLMKIT_E_AUTH },
        { "authentication_error", LLMKIT_E_AUTH },
        { "permission_error", LLMKIT_E_AUTH },
        { "rate_limit_exceeded", LLMKIT_E_LIMITED },
        { "rate_limit_error", LLMKIT_E_LIMITED },
        { "overloaded_error", LLMKIT_E_OVERLOADED },
    };
    for (size_t i = 0; i < LK__COUNT(table); i++) {
        bool decides = error->http_status == 0 || table[i].code == LLMKIT_E_QUOTA;
        if (!decides || !lk__str_eq(word, lk__str_z(table[i].word))) continue;
        error->code = table[i].code;
        error->retryable = lk__err_retryable(error->code);
    }
}

/* {"error":{"message","type","code"}}; some servers give a string, an array around the object
 * (Google), or no object around its members (vLLM, FastAPI's "detail"). */
LK__PRIV bool lk__oai_read_error(const lk__json *j, llmkit_error *error, lk__buf *scratch) {
    lk__node root = lk__json_type_of(j, 0) == LK__JSON_ARRAY ? lk__json_at(j, 0, 0) : 0;
    lk__node e = lk__json_get(j, root, LK__STR("error"));
    if (e < 0) e = root;
    lk__node text = lk__json_get(j, e, LK__STR("message"));
    if (text < 0) text = lk__json_get(j, e, LK__STR("detail"));
    if (text < 0 && e != root) text = e;
    if (text < 0 || lk__json_type_of(j, e) == LK__JSON_NULL) return false;
    static const char *const names[] = { "type", "code" }; /* the code is more exact */
    for (size_t i = 0; i < LK__COUNT(names); i++) {
        lk__node n = lk__json_get(j, e, lk__str_z(names[i]));
        llmkit_str word = lk__json_view(j, n, scratch);
        lk__oai_classify(error, word);
        if (word.len) lk__str_copy(error->type, sizeof error->type, word);
    }
    llmkit_str message = lk__json_view(j, text, scratch);
    if (message.len) lk__str_copy(error->message, sizeof error->message, message);
    return true;
}

/* ---- reading a stream ------------------------------------------------------------------------ */

LK__PRIV bool lk__oai_no_room(llmkit_err why, const char *what, llmkit_error *error) {
    if (why)
        lk__fail(error, why, why == LLMKIT_E_NOMEM ? "no memory for %s of the stream"
                                                   : "%s of the stream is too long", what);
    return why != LLMKIT_OK;
}

LK__PRIV bool lk__oai_piece(lk__answer *a, llmkit_event_type type, lk__node n,
                            llmkit_error *error) {
    lk__buf_clear(a->scratch);
    if (!lk__json_text(a->json, n, a->scratch)) return true;
    if (lk__oai_no_room(a->scratch->failed, "a piece", error)) return false;
    if (a->scratch->len == 0) return true;
    llmkit_event e = { .type = type, .text = lk__buf_view(a->scratch) };
    return lk__answer_emit(a, &e);
}

/* The index of a piece.  Some servers leave it out: then a piece with an id begins a call, and one
 * without goes on with the last. */
LK__PRIV uint32_t lk__oai_tool_index(const lk__answer *a, lk__node n) {
    const lk__json *j = a->json;
    int64_t index;
    if (lk__json_i64(j, lk__json_get(j, n, LK__STR("index")), &index) && index >= 0 &&
        index <= INT32_MAX)
        return (uint32_t)index;
    uint32_t next = 0;
    for (uint32_t i = 0; i < a->num_tools; i++)
        if (a->tools[i].index >= next) next = a->tools[i].index + 1;
    bool begins = lk__json_type_of(j, lk__json_get(j, n, LK__STR("id"))) == LK__JSON_STRING;
    return begins || next == 0 ? next : next - 1;
}

LK__PRIV bool lk__oai_tool_begin(lk__answer *a, lk__tool_part *t, lk__node n, lk__node name,
                                 llmkit_error *error) {
    lk__json_text(a->json, lk__json_get(a->json, n, LK__STR("id")), &t->id);
    lk__json_text(a->json, name, &t->name);
    if (lk__oai_no_room(t->id.failed ? t->id.failed : t->name.failed, "a tool call", error))
        return false;
    llmkit_event e = { .type = LLMKIT_EV_TOOL_BEGIN };
    e.tool = (llmkit_tool_call){ lk__buf_view(&t->id), lk__buf_view(&t->name), { "", 0 },
                                 t->index };
    return lk__answer_emit(a, &e);
}

/* One element of delta.tool_calls: the first of an index has id and name, the others only more of
 * the arguments; calls interleave by index. */
LK__PRIV bool lk__oai_tool_piece(lk__answer *a, lk__node n, llmkit_error *error) {
    const lk__json *j = a->json;
    lk__node function = lk__json_get(j, n, LK__STR("function"));
    lk__node name = lk__json_get(j, function, LK__STR("name"));
    uint32_t known = a->num_tools;
    lk__tool_part *t = lk__answer_tool(a, lk__oai_tool_index(a, n), error);
    if (!t) return false;
    if (t->ended) return true;
    if (a->num_tools > known && !lk__oai_tool_begin(a, t, n, name, error)) return false;
    size_t before = t->arguments.len;
    lk__json_text(j, lk__json_get(j, function, LK__STR("arguments")), &t->arguments);
    if (lk__oai_no_room(t->arguments.failed, "a tool call", error)) return false;
    if (t->arguments.len == before) return true;
    llmkit_event e = { .type = LLMKIT_EV_TOOL_DELTA };
    e.tool.index = t->index;
    e.text = lk__str_from(lk__buf_view(&t->arguments), before);
    return lk__answer_emit(a, &e);
}

LK__PRIV bool lk__oai_delta(lk__answer *a, lk__node delta, llmkit_error *error) {
    const lk__json *j = a->json;
    for (lk__node key = lk__json_first(j, delta); key >= 0; key = lk__json_next(j, key)) {
        llmkit_str name = lk__json_raw(j, key);
        lk__node value = lk__json_value_of(j, key);
        if (lk__str_eq(name, LK__STR("content"))) {
            /* Of two members of one name either might be the one that speaks next time. */
            a->only_text = a->only_text == -1 && lk__json_type_of(j, value) == LK__JSON_STRING
                               ? value : -2;
            if (!lk__oai_piece(a, LLMKIT_EV_TEXT, value, error)) return false;
        } else if (lk__str_eq(name, LK__STR("refusal"))) {
            if (!lk__oai_piece(a, LLMKIT_EV_REFUSAL, value, error)) return false;
        } else if (lk__str_eq(name, LK__STR("tool_calls"))) {
            for (lk__node n = lk__json_first(j, value); n >= 0; n = lk__json_next(j, n))
                if (!lk__oai_tool_piece(a, n, error)) return false;
        }
    }
    return true;
}

LK__PRIV bool lk__oai_choice(lk__answer *a, lk__node choice, llmkit_error *error) {
    const lk__json *j = a->json;
    int64_t index;
    if (lk__json_i64(j, lk__json_get(j, choice, LK__STR("index")), &index) && index != 0)
        return true; /* extra asked for several choices; a stream has the first */
    lk__node reason = lk__json_get(j, choice, LK__STR("finish_reason"));
    bool finished = lk__json_type_of(j, reason) == LK__JSON_STRING;
    if (finished) { /* before the delta's events, which may end the call */
        llmkit_str text = lk__json_view(j, reason, a->scratch);
        a->finish = lk__oai_finish(text);
        lk__str_copy(a->finish_text, sizeof a->finish_text, text);
    }
    if (!lk__oai_delta(a, lk__json_get(j, choice, LK__STR("delta")), error)) return false;
    return !finished || lk__answer_end_tools(a);
}

LK__PRIV bool lk__oai_start(lk__answer *a, lk__node model, llmkit_error *error) {
    a->started = true;
    lk__buf_clear(a->scratch);
    lk__json_text(a->json, model, a->scratch);
    if (lk__oai_no_room(a->scratch->failed, "the model's name", error)) return false;
    llmkit_event e = { .type = LLMKIT_EV_START, .model = lk__buf_view(a->scratch) };
    return lk__answer_emit(a, &e);
}

/* The members of an event that matter, found in one walk. */
typedef struct lk__oai_chunk {
    lk__node model, choices, usage, error;
    lk__node padding; /* a string behind the choices that is not read: OpenAI sends one */
} lk__oai_chunk;

LK__PRIV lk__oai_chunk lk__oai_members(const lk__json *j) {
    lk__oai_chunk c = { -1, -1, -1, -1, -1 };
    for (lk__node key = lk__json_first(j, 0); key >= 0; key = lk__json_next(j, key)) {
        llmkit_str name = lk__json_raw(j, key);
        lk__node value = lk__json_value_of(j, key);
        if (lk__str_eq(name, LK__STR("choices"))) c.choices = value;
        else if (lk__str_eq(name, LK__STR("model"))) c.model = value;
        else if (lk__str_eq(name, LK__STR("usage"))) c.usage = value;
        else if (lk__str_eq(name, LK__STR("error"))) c.error = value;
        else if (c.choices >= 0 && lk__json_type_of(j, value) == LK__JSON_STRING) c.padding = value;
    }
    return c;
}

/* An event like the one before, but for its text. */
LK__PRIV bool lk__oai_another(lk__answer *a, llmkit_str raw, llmkit_error *error) {
    if (raw.len == 0) return true;
    lk__buf_clear(a->scratch);
    lk__json_unescape_to(a->scratch, raw);
    if (lk__oai_no_room(a->scratch->failed, "a piece", error)) return false;
    llmkit_event e = { .type = LLMKIT_EV_TEXT, .text = lk__buf_view(a->scratch) };
    return lk__answer_emit(a, &e);
}

LK__PRIV bool lk__oai_read_event(lk__answer *a, llmkit_str data, llmkit_error *error) {
    llmkit_str raw, none = { NULL, 0 };
    if (lk__answer_fits(a, data, &raw)) return lk__oai_another(a, raw, error);
    if (lk__str_eq(data, LK__STR("[DONE]"))) {
        a->complete = true;
        return true;
    }
    llmkit_err err = lk__json_parse(a->json, data);
    if (err) {
        lk__fail(error, err, err == LLMKIT_E_JSON
                 ? "an event of the stream is not JSON, at byte %zu"
                 : "no memory for an event of the stream (byte %zu)", a->json->error_at);
        return false;
    }
    if (lk__json_type_of(a->json, 0) != LK__JSON_OBJECT) {
        lk__fail(error, LLMKIT_E_JSON, "an event of the stream is not a JSON object");
        return false;
    }
    lk__oai_chunk c = lk__oai_members(a->json);
    if (c.error >= 0 && lk__json_type_of(a->json, c.error) != LK__JSON_NULL) {
        lk__fail(error, LLMKIT_E_SERVER, "the provider reported an error in the stream");
        lk__oai_read_error(a->json, error, a->scratch);
        return false;
    }
    if (!a->started && !lk__oai_start(a, c.model, error)) return false;
    uint32_t told = a->told;
    a->only_text = -1;
    for (lk__node n = lk__json_first(a->json, c.choices); n >= 0; n = lk__json_next(a->json, n))
        if (!lk__oai_choice(a, n, error)) return false;
    if (lk__json_type_of(a->json, c.usage) != LK__JSON_OBJECT) {
        bool finished = a->finish != LLMKIT_UNFINISHED;
        if (a->only_text >= 0 && a->told == told + 1 && !finished)
            lk__answer_learn(a, data, lk__json_raw(a->json, a->only_text),
                             c.padding >= 0 ? lk__json_raw(a->json, c.padding) : none);
        return true;
    }
    a->usage = lk__oai_usage(a->json, c.usage);
    llmkit_event e = { .type = LLMKIT_EV_USAGE, .usage = a->usage };
    return lk__answer_emit(a, &e);
}

LK__PRIV const lk__codec *lk__codec_openai(void) {
    static const lk__codec codec = {
        .path = "/chat/completions",
        .write = lk__oai_write,
        .read = lk__oai_read,
        .read_event = lk__oai_read_event,
        .read_error = lk__oai_read_error,
    };
    return &codec;
}

#else

LK__PRIV const lk__codec *lk__codec_openai(void) {
    return NULL;
}

#endif
