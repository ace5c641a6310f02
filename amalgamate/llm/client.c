/* llm/client.c -- attempts, retries and the end of a call */

#include "llm/client.h"

#define LK__CALL_FIRST_BYTE_MS 60000U  /* of a stream */
#define LK__CALL_WHOLE_MS      600000U /* reasoning models are silent for minutes */
#define LK__CALL_GRACE_NS      LK__NS_PER_S /* for the end of a body after the end of the stream */

enum {
    LK__ERROR_BODY_BYTES = 65536, /* of an error's body that are read */
    LK__CALL_KEEP_BYTES = 65536,  /* larger buffers are not kept for the next call */
    LK__CALL_KEY_BYTES = 8,       /* of a key, or more, are struck out of messages */
};

/* ---- telling the caller ---------------------------------------------------------------------- */

LK__PRIV void lk__call_release(lk__call *c);

/* False: the call ended inside the callback, and may be another one by now. */
LK__PRIV bool lk__call_tell(lk__call *c, llmkit_event *e) {
    uint64_t id = c->id;
    e->call.id = id;
    c->on_event(c->user, e);
    return c->id == id;
}

LK__PRIV bool lk__call_start_event(lk__call *c) {
    c->committed = true;
    llmkit_event e = { .type = LLMKIT_EV_START };
    e.provider = lk__str_z(c->provider->name);
    e.model = lk__str_z(c->model);
    e.request_id = lk__str_z(c->request_id);
    return lk__call_tell(c, &e);
}

/* Where the dialect's events come out.  START waits for the first piece of content: until then
 * another attempt can take the place of this one unseen. */
LK__PRIV bool lk__call_emit(void *user, llmkit_event *e) {
    lk__call *c = user;
    if (e->type == LLMKIT_EV_START) {
        lk__str_copy(c->model, sizeof c->model, e->model);
        return true;
    }
    if (!c->committed && !lk__call_start_event(c)) return false;
    return lk__call_tell(c, e);
}

LK__PRIV void lk__call_last_event(lk__call *c, const llmkit_error *error) {
    if (!error && !c->committed) lk__call_start_event(c);
    llmkit_event e = { .type = LLMKIT_EV_DONE, .call = { c->id }, .error = error };
    e.finish = error ? LLMKIT_UNFINISHED : c->answer.finish;
    e.finish_text = lk__str_z(c->answer.finish_text);
    e.usage = c->answer.usage;
    e.attempts = c->attempts;
    e.provider = lk__str_z(c->provider->name);
    e.model = lk__str_z(c->model);
    e.request_id = lk__str_z(c->request_id);
    c->on_event(c->user, &e);
}

LK__PRIV void lk__call_last_reply(lk__call *c, llmkit_reply *reply, const llmkit_error *error) {
    if (error) reply->error = *error;
    reply->provider = lk__str_z(c->provider->name);
    reply->request_id = lk__str_z(c->request_id);
    reply->raw = lk__buf_view(&c->input);
    reply->attempts = c->attempts;
    reply->total_ns = lk__loop_now(c->client->loop) - c->begun_ns;
    reply->first_byte_ns = c->fetch.first_ns ? c->fetch.first_ns - c->begun_ns : 0;
    c->on_reply(c->user, reply);
}

/* The end: exactly one last callback, and then the call is another's. */
LK__PRIV void lk__call_end(lk__call *c, llmkit_reply *reply, const llmkit_error *error) {
    llmkit_client *client = c->client;
    llmkit_reply failed;
    if (!reply) {
        memset(&failed, 0, sizeof failed);
        failed.usage = (llmkit_usage){ -1, -1, -1, -1 };
        failed.text = failed.refusal = failed.model = failed.finish_text = LK__STR("");
        reply = &failed;
    }
    c->state = LK__CALL_OVER;
    lk__fetch_stop(&c->fetch);
    lk__timer_stop(client->loop, &c->timer);
    if (c->next) c->next->prev = c->prev;
    *(c->prev ? &c->prev->next : &client->live) = c->next;
    client->stats.in_flight--;
    if (c->stream)
        lk__call_last_event(c, error);
    else
        lk__call_last_reply(c, reply, error);
    lk__loop_unhold(client->loop);
    lk__call_release(c);
}

/* ---- attempts -------------------------------------------------------------------------------- */

/* E_NOMEM only where the timer was not set. */
LK__PRIV llmkit_err lk__call_wait(lk__call *c) {
    bool rests = c->state == LK__CALL_RESTING && c->retry_ns < c->total_due_ns;
    int64_t due = rests ? c->retry_ns : c->total_due_ns;
    if (due != LK__NEVER_NS) return lk__timer_set(c->client->loop, &c->timer, due);
    lk__timer_stop(c->client->loop, &c->timer);
    return LLMKIT_OK;
}

LK__PRIV void lk__call_try(lk__call *c) {
    c->state = LK__CALL_TRYING;
    c->attempts++;
    c->client->stats.attempts++;
    c->events = false;
    c->received = 0;
    c->status = 0;
    c->request_id[0] = '\0';
    memset(&c->error, 0, sizeof c->error);
    lk__buf_clear(&c->input);
    c->model[0] = '\0';
    if (c->stream) {
        lk__answer_reset(&c->answer);
        lk__sse_reset(&c->sse);
    }
    lk__fetch_start(&c->fetch);
}

/* Providers quote what they were sent: a key that comes back, or the beginning of one where the
 * message is cut off, is struck out. */
LK__PRIV void lk__redact(char *text, llmkit_str key) {
    size_t left = strlen(text);
    for (char *p = text; left >= LK__CALL_KEY_BYTES; p++, left--) {
        size_t n = key.len < left ? key.len : left;
        if (n >= LK__CALL_KEY_BYTES && memcmp(p, key.ptr, n) == 0) memset(p, '*', n);
    }
}

/* Where an error happened.  Its message may be the provider's, which is made one line of. */
LK__PRIV void lk__call_place(const lk__call *c, llmkit_error *error) {
    lk__str_copy(error->provider, sizeof error->provider, lk__str_z(c->provider->name));
    if (!error->http_status) error->http_status = c->status;
    if (!error->request_id[0]) memcpy(error->request_id, c->request_id, sizeof c->request_id);
    for (char *p = error->message; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f) *p = ' ';
    llmkit_str key = lk__str_from(lk__buf_view(&c->provider->head), c->provider->key_at);
    key.len = key.len < 2 ? 0 : key.len - 2; /* CRLF */
    lk__redact(error->message, key);
    lk__redact(error->type, key);
}

LK__PRIV void lk__call_on_timer(lk__timer *timer) {
    lk__call *c = LK__CONTAINER(timer, lk__call, timer);
    if (c->state == LK__CALL_RESTING && c->retry_ns < c->total_due_ns) {
        c->state = LK__CALL_TRYING;
        lk__call_wait(c); /* a timer that has just fired finds memory */
        lk__call_try(c);
        return;
    }
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_TIMEOUT, "the call took over %lld ms (total_ms)",
             (long long)((c->total_due_ns - c->begun_ns) / LK__NS_PER_MS));
    error.deadline = LLMKIT_DEADLINE_TOTAL;
    lk__call_place(c, &error);
    lk__call_end(c, NULL, &error);
}

/* This attempt came to nothing: another one, later, or the end. */
LK__PRIV void lk__call_failed(lk__call *c, const llmkit_error *why) {
    llmkit_client *client = c->client;
    llmkit_error error = *why;
    lk__fetch_stop(&c->fetch);
    lk__call_place(c, &error);
    int64_t delay = -1; /* what has been handed on is not ours to repeat */
    if (!c->committed)
        delay = lk__retry_delay(&c->retry, c->attempts, &error, lk__loop_rand(client->loop));
    int64_t now = lk__loop_now(client->loop);
    if (delay < 0 || now + delay >= c->total_due_ns) {
        lk__call_end(c, NULL, &error);
        return;
    }
    lk__log(&client->env, LLMKIT_INFO, error.code, "%s: %s; again in %lld ms", error.provider,
            error.message, (long long)(delay / LK__NS_PER_MS));
    client->stats.retries++;
    c->state = LK__CALL_RESTING;
    c->retry_ns = now + delay;
    if (lk__call_wait(c)) lk__call_end(c, NULL, &error); /* no memory to wait */
}

/* ---- a response ------------------------------------------------------------------------------ */

LK__PRIV bool lk__type_is(const lk__head *head, llmkit_str type) {
    llmkit_str value = lk__head_get(head, LK__STR("content-type"));
    value.len = lk__str_find(value, ';');
    return lk__str_ieq(lk__str_trim(value), type);
}

LK__PRIV void lk__call_on_head(lk__fetch *f, const lk__head *head) {
    lk__call *c = LK__CONTAINER(f, lk__call, fetch);
    c->status = head->status;
    lk__str_copy(c->request_id, sizeof c->request_id, lk__request_id(head));
    if (head->status < 200 || head->status > 299) {
        lk__retry_read_head(&c->error, head, (int64_t)time(NULL));
        c->input.max = LK__ERROR_BODY_BYTES;
        return;
    }
    c->events = c->stream && lk__type_is(head, LK__STR("text/event-stream"));
    c->input.max = c->client->max_reply_bytes;
    if (head->has_length && head->length < LK__CALL_KEEP_BYTES)
        lk__buf_more(&c->input, (size_t)head->length);
}

LK__PRIV void lk__call_on_events(lk__call *c, llmkit_str bytes) {
    lk__sse_event event;
    llmkit_error error;
    uint64_t id = c->id;
    while (!c->answer.complete && lk__sse_feed(&c->sse, &bytes, &event)) {
        if (c->provider->codec->read_event(&c->answer, event.data, &error)) continue;
        if (c->id != id) return;
        lk__call_failed(c, &error);
        return;
    }
    if (c->answer.complete) {
        lk__fetch_set_idle(&c->fetch, LK__CALL_GRACE_NS);
    } else if (c->sse.error) {
        lk__fail(&error, c->sse.error, c->sse.error == LLMKIT_E_NOMEM
                 ? "no memory for an event of the stream"
                 : "an event of the stream is over %d bytes", LLMKIT_MAX_EVENT_BYTES);
        lk__call_failed(c, &error);
    }
}

/* The body of a failure, for its message and type.  c->error has what the head said. */
LK__PRIV void lk__call_refused(lk__call *c) {
    lk__json *json = &c->client->json;
    llmkit_error *error = &c->error;
    if (lk__json_parse(json, lk__buf_view(&c->input)) == LLMKIT_OK)
        c->provider->codec->read_error(json, error, &c->client->scratch);
    lk__call_failed(c, error);
}

LK__PRIV void lk__call_on_body(lk__fetch *f, llmkit_str piece) {
    lk__call *c = LK__CONTAINER(f, lk__call, fetch);
    llmkit_error error;
    c->received += piece.len;
    if (c->error.code) { /* the status was bad */
        lk__buf_str(&c->input, piece);
        if (c->received > LK__ERROR_BODY_BYTES) lk__call_refused(c);
    } else if (c->received > c->client->max_reply_bytes) {
        lk__fail(&error, LLMKIT_E_TOO_BIG, "the reply is over %u bytes (max_reply_bytes)",
                 c->client->max_reply_bytes);
        lk__call_failed(c, &error);
    } else if (c->events) {
        if (!c->answer.complete) lk__call_on_events(c, piece);
    } else {
        lk__buf_str(&c->input, piece);
        if (!c->input.failed) return;
        lk__fail(&error, c->input.failed, "no memory for the reply");
        lk__call_failed(c, &error);
    }
}

/* 200 with something else than what was asked for.  An error object is the provider's word. */
LK__PRIV void lk__call_unexpected(lk__call *c, const char *what) {
    lk__json *json = &c->client->json;
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_SERVER, "the provider reported an error with HTTP status 200");
    if (lk__json_parse(json, lk__buf_view(&c->input)) ||
        !c->provider->codec->read_error(json, &error, &c->client->scratch)) {
        llmkit_str text = lk__buf_view(&c->input);
        lk__fail(&error, LLMKIT_E_JSON, "%s; it begins: %.*s", what,
                 (int)(text.len < 60 ? text.len : 60), text.ptr);
    }
    lk__call_failed(c, &error);
}

LK__PRIV void lk__call_whole(lk__call *c) {
    lk__json *json = &c->client->json;
    llmkit_reply reply;
    memset(&reply, 0, sizeof reply);
    llmkit_err err = lk__json_parse(json, lk__buf_view(&c->input));
    lk__node failure = lk__json_get(json, 0, LK__STR("error"));
    if (err == LLMKIT_E_JSON || (!err && lk__json_type_of(json, failure) > LK__JSON_NULL &&
                                 lk__json_get(json, 0, LK__STR("choices")) < 0)) {
        lk__call_unexpected(c, "the reply is not JSON: is base_url that of an API?");
        return;
    }
    lk__buf_clear(&c->arena);
    lk__buf_clear(&c->tools);
    if (!err && !lk__buf_more(&c->arena, c->input.len + 1)) err = LLMKIT_E_NOMEM;
    if (err)
        lk__fail(&c->error, err, "no memory for the reply");
    else
        err = c->provider->codec->read(json, &reply, &c->arena, &c->tools, &c->error);
    if (err)
        lk__call_failed(c, &c->error);
    else
        lk__call_end(c, &reply, NULL);
}

/* The body of a stream has ended, in order or not. */
LK__PRIV void lk__call_streamed(lk__call *c, const llmkit_error *error) {
    bool ended = c->answer.complete || (!error && c->answer.finish != LLMKIT_UNFINISHED);
    bool whole = ended && c->answer.started; /* [DONE] alone is no reply */
    if (!whole) {
        llmkit_error cut;
        lk__fail(&cut, LLMKIT_E_TRUNCATED, "the stream ended before the reply was complete");
        lk__call_failed(c, error ? error : &cut);
        return;
    }
    if (lk__answer_end_tools(&c->answer)) lk__call_end(c, NULL, NULL);
}

LK__PRIV void lk__call_on_done(lk__fetch *f, const llmkit_error *error) {
    lk__call *c = LK__CONTAINER(f, lk__call, fetch);
    if (c->error.code != LLMKIT_OK) { /* the status says more than how the body ended */
        lk__call_refused(c);
    } else if (c->events) {
        lk__call_streamed(c, error);
    } else if (error) {
        lk__call_failed(c, error);
    } else if (c->stream) {
        lk__call_unexpected(c, "asked for a stream, the provider sent something else");
    } else {
        lk__call_whole(c);
    }
}

/* ---- calls and their slots ------------------------------------------------------------------- */

LK__PRIV void lk__buf_trim(lk__buf *b) {
    if (b->cap > LK__CALL_KEEP_BYTES) lk__buf_free(b);
    lk__buf_clear(b);
}

/* Back to the free ones, warm for the next call. */
LK__PRIV void lk__call_release(lk__call *c) {
    llmkit_client *client = c->client;
    if (c->stream) lk__answer_reset(&c->answer);
    lk__buf_trim(&c->body);
    lk__buf_trim(&c->input);
    lk__buf_trim(&c->arena);
    lk__buf_trim(&c->tools);
    c->fetch.paused = false;
    c->id += UINT64_C(1) << 32;
    c->state = LK__CALL_FREE;
    c->next = client->free;
    client->free = c;
}

LK__PRIV void lk__call_free(lk__call *c) {
    const llmkit_env *env = &c->client->env;
    lk__answer_free(&c->answer);
    lk__sse_free(&c->sse);
    lk__buf_wipe(&c->head);
    lk__buf_free(&c->body);
    lk__buf_free(&c->input);
    lk__buf_free(&c->arena);
    lk__buf_free(&c->tools);
    lk__free(env, c, sizeof *c);
}

LK__PRIV bool lk__client_more_slots(llmkit_client *client) {
    uint32_t cap = client->cap_slots ? 2 * client->cap_slots : 16;
    lk__call **more = lk__resize(&client->env, client->slots,
                                 client->cap_slots * sizeof *more, cap * sizeof *more);
    if (!more) return false;
    client->slots = more;
    client->cap_slots = cap;
    return true;
}

LK__PRIV lk__call *lk__call_new(llmkit_client *client) {
    const llmkit_env *env = &client->env;
    if (client->num_slots == client->cap_slots && !lk__client_more_slots(client)) return NULL;
    lk__call *c = lk__alloc(env, sizeof *c);
    if (!c) return NULL;
    client->slots[client->num_slots++] = c;
    c->client = client;
    c->id = (UINT64_C(1) << 32) | client->num_slots;
    c->timer.fn = lk__call_on_timer;
    c->fetch.on_head = lk__call_on_head;
    c->fetch.on_body = lk__call_on_body;
    c->fetch.on_done = lk__call_on_done;
    lk__buf_init(&c->head, env, LLMKIT_MAX_HEAD_BYTES);
    lk__buf_init(&c->body, env, 0);
    lk__buf_init(&c->input, env, 0);
    lk__buf_init(&c->arena, env, 0);
    lk__buf_init(&c->tools, env, 0);
    lk__sse_init(&c->sse, env, LLMKIT_MAX_EVENT_BYTES);
    lk__answer_init(&c->answer, env);
    c->answer.json = &client->json;
    c->answer.scratch = &client->scratch;
    c->answer.max_bytes = client->max_reply_bytes;
    c->answer.emit = lk__call_emit;
    c->answer.user = c;
    return c;
}

LK__PRIV lk__call *lk__call_take(llmkit_client *client, llmkit_error *error) {
    lk__call *c = client->free;
    if (c) {
        client->free = c->next;
        return c;
    }
    if (client->num_slots >= client->max_calls) {
        lk__fail(error, LLMKIT_E_BUSY, "%u calls are in flight (max_calls)", client->max_calls);
        return NULL;
    }
    c = lk__call_new(client);
    if (!c) lk__fail(error, LLMKIT_E_NOMEM, "no memory for a call");
    return c;
}

LK__PRIV lk__call *lk__client_find(const llmkit_client *client, llmkit_call call) {
    uint32_t slot = (uint32_t)call.id;
    if (slot == 0 || slot > client->num_slots) return NULL;
    lk__call *c = client->slots[slot - 1];
    bool live = c->state == LK__CALL_TRYING || c->state == LK__CALL_RESTING;
    return live && c->id == call.id ? c : NULL;
}

/* ---- submitting ------------------------------------------------------------------------------ */

LK__PRIV llmkit_err lk__request_check(const llmkit_request *r, llmkit_error *error) {
    if (!r) return lk__fail(error, LLMKIT_E_ARG, "the request is NULL");
    llmkit_err err = lk__check_guards(error, r->_guard0, r->_guard1, "llmkit_request");
    if (err) return err;
    if (!r->prompt && r->num_messages == 0 && !r->extra)
        return lk__fail(error, LLMKIT_E_ARG, "the request has neither prompt nor messages");
    if ((r->num_messages && !r->messages) || (r->num_tools && !r->tools))
        return lk__fail(error, LLMKIT_E_ARG, "messages or tools is NULL but counted");
    for (size_t i = 0; i < r->num_messages; i++)
        if (r->messages[i].num_parts ? !r->messages[i].parts : !r->messages[i].text)
            return lk__fail(error, LLMKIT_E_ARG, "messages[%zu] has neither text nor parts", i);
    return LLMKIT_OK;
}

LK__PRIV lk__provider *lk__client_provider(const llmkit_client *client, const char *name,
                                           llmkit_error *error) {
    if (!name) return &client->providers[0];
    for (size_t i = 0; i < client->num_providers; i++)
        if (strcmp(client->providers[i].name, name) == 0) return &client->providers[i];
    lk__fail(error, LLMKIT_E_ROUTE, "the client has no provider named %s", name);
    return NULL;
}

/* Fields that are the library's: a second one would break the message. */
LK__PRIV bool lk__field_is_ours(const lk__provider *p, llmkit_str name) {
    static const char *const ours[] = { "host", "content-length", "content-type",
                                        "transfer-encoding", "connection" };
    for (size_t i = 0; i < LK__COUNT(ours); i++)
        if (lk__str_ieq(name, lk__str_z(ours[i]))) return true;
    return p->key_at < p->head.len && lk__str_ieq(name, LK__STR("authorization"));
}

/* Room for n more bytes in a buffer that holds a secret: what it outgrows is wiped. */
LK__PRIV void lk__secret_room(lk__buf *b, size_t n) {
    if (b->cap - b->len > n || b->failed) return;
    lk__buf larger;
    lk__buf_init(&larger, b->env, b->max);
    lk__buf_more(&larger, lk__add(b->len, n));
    lk__buf_str(&larger, lk__buf_view(b));
    lk__buf_wipe(b);
    *b = larger;
}

/* E_ARG where it cannot be sent. */
LK__PRIV llmkit_err lk__secret_field(lk__buf *b, llmkit_str name, llmkit_str value) {
    lk__secret_room(b, lk__add(lk__add(name.len, value.len), sizeof ": \r\n"));
    return lk__http_field(b, name, value);
}

LK__PRIV llmkit_err lk__call_write_head(lk__call *c, const llmkit_request *r,
                                        llmkit_error *error) {
    lk__buf *head = &c->head;
    lk__buf_clear(head);
    lk__secret_room(head, c->provider->head.len + 256); /* the rest, but for headers */
    lk__buf_str(head, lk__buf_view(&c->provider->head));
    lk__http_field(head, LK__STR("Accept"),
                   c->stream ? LK__STR("text/event-stream") : LK__STR("application/json"));
    for (const char *const *h = r->headers; h && h[0]; h += 2) {
        llmkit_str name = lk__str_z(h[0]);
        if (!h[1] || lk__field_is_ours(c->provider, name) ||
            lk__secret_field(head, name, lk__str_z(h[1])))
            return lk__fail(error, LLMKIT_E_ARG, "headers: \"%s\" is not a field that can be sent",
                            h[0]);
    }
    lk__secret_room(head, 64);
    lk__http_field_u64(head, LK__STR("Content-Length"), c->body.len);
    lk__buf_z(head, "\r\n");
    return head->failed ? lk__fail(error, head->failed, "no room for the request's head")
                        : LLMKIT_OK;
}

LK__PRIV llmkit_err lk__call_write(lk__call *c, const llmkit_request *r, llmkit_error *error) {
    const char *model = r->model ? r->model : c->provider->model;
    if (!model) return lk__fail(error, LLMKIT_E_ARG, "the request names no model");
    lk__buf_clear(&c->body);
    lk__draft draft = { .request = r, .model = lk__str_z(model), .stream = c->stream,
                        .completion_tokens = c->provider->completion_tokens,
                        .json = &c->client->draft, .body = &c->body };
    llmkit_err err = c->provider->codec->write(&draft, error);
    return err ? err : lk__call_write_head(c, r, error);
}

LK__PRIV int64_t lk__ms_or(uint32_t ms, int64_t ns, uint32_t default_ms) {
    if (ms) return ms * LK__NS_PER_MS;
    return ns ? ns : default_ms * LK__NS_PER_MS;
}

LK__PRIV void lk__call_set_deadlines(lk__call *c, const llmkit_request *r) {
    const llmkit_client *client = c->client;
    uint32_t first = c->stream ? LK__CALL_FIRST_BYTE_MS : LK__CALL_WHOLE_MS;
    uint32_t total = c->stream ? 0 : LK__CALL_WHOLE_MS;
    c->fetch.first_byte_ns = lk__ms_or(r->first_byte_ms, client->first_byte_ns, first);
    c->fetch.idle_ns = lk__ms_or(r->idle_ms, client->idle_ns, 60000);
    int64_t after = lk__ms_or(r->total_ms, client->total_ns, total);
    c->total_due_ns = after ? c->begun_ns + after : LK__NEVER_NS;
    c->retry = client->retry;
    if (r->max_tries) c->retry.max_tries = r->max_tries;
}

/* A call that is ready to go, or NULL. */
LK__PRIV lk__call *lk__call_prepare(llmkit_client *client, const llmkit_request *r, bool stream,
                                    llmkit_error *error) {
    if (lk__request_check(r, error)) return NULL;
    if (client->dying) {
        lk__fail(error, LLMKIT_E_CANCELLED, "the client is being destroyed");
        return NULL;
    }
    lk__provider *provider = lk__client_provider(client, r->provider, error);
    if (!provider) return NULL;
    lk__call *c = lk__call_take(client, error);
    if (!c) return NULL;
    c->provider = provider;
    c->stream = stream;
    c->committed = false;
    c->attempts = 0;
    c->begun_ns = lk__loop_now(client->loop);
    if (lk__call_write(c, r, error)) {
        lk__call_release(c);
        return NULL;
    }
    lk__call_set_deadlines(c, r);
    return c;
}

LK__PRIV llmkit_err lk__call_go(lk__call *c, llmkit_event_fn on_event, llmkit_reply_fn on_reply,
                                void *user, llmkit_call *call, llmkit_error *error) {
    llmkit_client *client = c->client;
    c->state = LK__CALL_TRYING;
    if (lk__call_wait(c)) {
        lk__call_release(c);
        return lk__fail(error, LLMKIT_E_NOMEM, "no memory for a deadline");
    }
    c->on_event = on_event;
    c->on_reply = on_reply;
    c->user = user;
    c->fetch.origin = c->provider->origin;
    c->fetch.head = lk__buf_view(&c->head);
    c->fetch.body = lk__buf_view(&c->body);
    c->prev = NULL;
    c->next = client->live;
    if (c->next) c->next->prev = c;
    client->live = c;
    client->stats.calls++;
    client->stats.in_flight++;
    lk__loop_hold(client->loop);
    if (call) call->id = c->id;
    memset(error, 0, sizeof *error);
    lk__call_try(c);
    return LLMKIT_OK;
}

LLMKIT_API llmkit_err llmkit_submit(llmkit_client *client, const llmkit_request *request,
                                    llmkit_event_fn fn, void *user, llmkit_call *call,
                                    llmkit_error *error) {
    llmkit_error local;
    if (call) call->id = 0;
    if (!error) error = &local;
    lk__call *c = lk__call_prepare(client, request, true, error);
    return c ? lk__call_go(c, fn, NULL, user, call, error) : error->code;
}

LLMKIT_API llmkit_err llmkit_submit_whole(llmkit_client *client, const llmkit_request *request,
                                          llmkit_reply_fn fn, void *user, llmkit_call *call,
                                          llmkit_error *error) {
    llmkit_error local;
    if (call) call->id = 0;
    if (!error) error = &local;
    lk__call *c = lk__call_prepare(client, request, false, error);
    return c ? lk__call_go(c, NULL, fn, user, call, error) : error->code;
}

/* ---- cancelling, pausing --------------------------------------------------------------------- */

LK__PRIV void lk__call_cancel_now(lk__call *c) {
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_CANCELLED, "the call was cancelled");
    lk__call_place(c, &error);
    lk__call_end(c, NULL, &error);
}

LK__PRIV void lk__client_on_cancels(lk__post *post) {
    llmkit_client *client = LK__CONTAINER(post, llmkit_client, cancel_post);
    lk__buf ids;
    lk__lock(&client->cancel_lock);
    ids = client->cancelled;
    lk__buf_init(&client->cancelled, &client->env, 0);
    lk__unlock(&client->cancel_lock);
    for (size_t at = 0; at < ids.len && !client->dying; at += sizeof(uint64_t)) {
        llmkit_call call;
        memcpy(&call.id, ids.ptr + at, sizeof call.id);
        lk__call *c = lk__client_find(client, call);
        if (c) lk__call_cancel_now(c);
    }
    lk__buf_free(&ids);
}

LLMKIT_API llmkit_err llmkit_cancel(llmkit_client *client, llmkit_call call) {
    lk__lock(&client->cancel_lock);
    bool first = client->cancelled.len == 0;
    lk__buf_add(&client->cancelled, &call.id, sizeof call.id);
    llmkit_err err = client->cancelled.failed;
    client->cancelled.failed = LLMKIT_OK;
    lk__unlock(&client->cancel_lock);
    if (first && !err) lk__post_send(client->loop, &client->cancel_post);
    return err;
}

LLMKIT_API llmkit_err llmkit_pause(llmkit_client *client, llmkit_call call) {
    lk__call *c = lk__client_find(client, call);
    if (!c) return LLMKIT_E_STALE;
    lk__fetch_pause(&c->fetch);
    return LLMKIT_OK;
}

LLMKIT_API llmkit_err llmkit_resume(llmkit_client *client, llmkit_call call) {
    lk__call *c = lk__client_find(client, call);
    if (!c) return LLMKIT_E_STALE;
    lk__fetch_resume(&c->fetch);
    return LLMKIT_OK;
}

/* ---- providers ------------------------------------------------------------------------------- */

LK__PRIV const char *lk__getenv(const char *name) {
#if LLMKIT_WITH_GETENV
    const char *value = getenv(name);
    return value && *value ? value : NULL;
#else
    (void)name;
    return NULL;
#endif
}

typedef struct lk__provider_text {
    const char *base_url, *api_key;
    llmkit_str  name;
} lk__provider_text;

/* A key belongs to one provider: that of the environment goes to OpenAI, or to what OPENAI_BASE_URL
 * names, and to nobody else. */
LK__PRIV llmkit_err lk__provider_defaults(const llmkit_provider_desc *d, lk__provider_text *text,
                                          lk__url *url, llmkit_error *error) {
    bool implied = !d->base_url;
    text->base_url = d->base_url;
    text->api_key = d->api_key;
    if (!text->base_url) text->base_url = lk__getenv("OPENAI_BASE_URL");
    if (!text->base_url) text->base_url = "https://api.openai.com/v1";
    llmkit_err err = lk__url_parse(url, lk__str_z(text->base_url), error);
    if (err) return err;
    bool openai = lk__str_ieq(url->host, LK__STR("api.openai.com"));
    text->name = d->name ? lk__str_z(d->name) : openai ? LK__STR("openai") : url->host;
    if (!text->api_key && (implied || openai)) text->api_key = lk__getenv("OPENAI_API_KEY");
    if (!text->api_key && openai)
        return lk__fail(error, LLMKIT_E_AUTH, "no key for %.*s: set OPENAI_API_KEY, or api_key in "
                        "llmkit_provider_desc", LK__ARG(text->name));
    return LLMKIT_OK;
}

/* The key comes last, so that no growth leaves a copy of it behind. */
LK__PRIV llmkit_err lk__provider_write_head(lk__provider *p, const lk__url *url,
                                            const char *api_key) {
    lk__buf *head = &p->head;
    size_t path_len = lk__str_find(url->path, '?');
    llmkit_str path = { url->path.ptr, path_len }, query = lk__str_from(url->path, path_len);
    while (path.len && path.ptr[path.len - 1] == '/') path.len--;
    lk__buf_z(head, "POST ");
    lk__buf_str(head, path);
    lk__buf_z(head, p->codec->path);
    lk__buf_str(head, query);
    lk__buf_z(head, " HTTP/1.1\r\n");
    lk__http_field(head, LK__STR("Host"), lk__origin_name(p->origin));
    lk__buf_fmt(head, "User-Agent: llmkit/%d.%d.%d\r\n", LLMKIT_VERSION_MAJOR,
                LLMKIT_VERSION_MINOR, LLMKIT_VERSION_PATCH);
    lk__http_field(head, LK__STR("Content-Type"), LK__STR("application/json"));
    p->key_at = head->len;
    if (!api_key || !*api_key) return head->failed;
    lk__buf bearer;
    lk__buf_init(&bearer, head->env, LLMKIT_MAX_HEAD_BYTES / 2);
    lk__buf_more(&bearer, lk__add(strlen(api_key), sizeof "Bearer "));
    lk__buf_z(&bearer, "Bearer ");
    lk__buf_z(&bearer, api_key);
    llmkit_err err = bearer.failed;
    if (!err) err = lk__secret_field(head, LK__STR("Authorization"), lk__buf_view(&bearer));
    p->key_at = head->len - strlen(api_key) - 2;
    lk__buf_wipe(&bearer);
    return err ? err : head->failed;
}

LK__PRIV llmkit_err lk__provider_init(llmkit_client *client, lk__provider *p,
                                      const llmkit_provider_desc *d, llmkit_error *error) {
    lk__provider_text text;
    lk__url url;
    p->codec = lk__codec_openai();
    if (!p->codec) return lk__fail_disabled(error, "LLMKIT_WITH_OPENAI");
    llmkit_err err = lk__provider_defaults(d, &text, &url, error);
    if (err) return err;
    p->origin = lk__pool_origin(client->pool, &url, error);
    if (!p->origin) return error->code;
    p->completion_tokens = lk__str_ieq(url.host, LK__STR("api.openai.com"));
    lk__buf_init(&p->head, &client->env, LLMKIT_MAX_HEAD_BYTES / 2);
    err = lk__provider_write_head(p, &url, text.api_key);
    if (err == LLMKIT_E_ARG)
        return lk__fail(error, err, "the key of %.*s holds a byte that no HTTP field can",
                        LK__ARG(text.name));
    if (err)
        return lk__fail(error, err, "no room for base_url and key of %.*s", LK__ARG(text.name));
    lk__buf name;
    lk__buf_init(&name, &client->env, 0);
    lk__buf_str(&name, text.name);
    p->name = name.failed ? NULL : lk__strdup(&client->env, lk__buf_view(&name).ptr);
    lk__buf_free(&name);
    p->model = d->model ? lk__strdup(&client->env, d->model) : NULL;
    if (!p->name || (d->model && !p->model))
        return lk__fail(error, LLMKIT_E_NOMEM, "no memory for a provider");
    return LLMKIT_OK;
}

LK__PRIV void lk__provider_free(llmkit_client *client, lk__provider *p) {
    lk__strfree(&client->env, p->name);
    lk__strfree(&client->env, p->model);
    lk__buf_wipe(&p->head);
}

/* ---- the client ------------------------------------------------------------------------------ */

LK__PRIV void lk__client_set(llmkit_client *c, const llmkit_client_desc *d) {
    c->max_calls = lk__def(d->max_calls, 16384);
    c->max_reply_bytes = lk__def(d->max_reply_bytes, 64U << 20);
    c->first_byte_ns = d->first_byte_ms * LK__NS_PER_MS;
    c->idle_ns = d->idle_ms * LK__NS_PER_MS;
    c->total_ns = d->total_ms * LK__NS_PER_MS;
    c->retry = lk__retry_fill((lk__retry_policy){ d->max_tries, d->backoff_ms, d->max_backoff_ms,
                                                  d->max_retry_after_ms });
    c->cancel_post.fn = lk__client_on_cancels;
    lk__json_init(&c->json, &c->env);
    lk__json_init(&c->draft, &c->env);
    lk__buf_init(&c->scratch, &c->env, 0);
    lk__buf_init(&c->cancelled, &c->env, 0);
    lk__mutex_init(&c->cancel_lock);
}

LK__PRIV llmkit_err lk__client_open(llmkit_client *c, const llmkit_client_desc *d,
                                    llmkit_error *error) {
    llmkit_loop_desc loop_desc = { .env = d->env };
    c->loop = d->loop ? d->loop : llmkit_loop_create(&loop_desc, error);
    c->own_loop = !d->loop;
    if (!c->loop) return error->code;
    c->pool = lk__pool_create(&(lk__pool_desc){
        .env = &c->env, .loop = c->loop, .tls = d->tls,
        .max_connections = lk__def(d->max_connections, 16384),
        .keep_alive_ns = lk__def(d->keep_alive_ms, 60000) * LK__NS_PER_MS,
        .max_age_ns = lk__def(d->max_age_ms, 600000) * LK__NS_PER_MS,
        .dns_ns = lk__def(d->dns_ms, 60000) * LK__NS_PER_MS,
        .connect_ns = lk__def(d->connect_ms, 10000) * LK__NS_PER_MS,
        .tls_ns = lk__def(d->tls_ms, 10000) * LK__NS_PER_MS,
    }, error);
    if (!c->pool) return error->code;
    static const llmkit_provider_desc by_default = { 0 };
    size_t num = d->num_providers ? d->num_providers : 1;
    const llmkit_provider_desc *list = d->num_providers ? d->providers : &by_default;
    if (!list) return lk__fail(error, LLMKIT_E_ARG, "providers is NULL but counted");
    c->providers = lk__alloc(&c->env, lk__mul(num, sizeof *c->providers));
    if (!c->providers) return lk__fail(error, LLMKIT_E_NOMEM, "no memory for %zu providers", num);
    c->num_providers = num;
    llmkit_err err = LLMKIT_OK;
    for (size_t i = 0; i < num && !err; i++)
        err = lk__provider_init(c, &c->providers[i], &list[i], error);
    return err;
}

LLMKIT_API llmkit_client *llmkit_client_create(const llmkit_client_desc *desc,
                                               llmkit_error *error) {
    static const llmkit_client_desc by_default = { 0 };
    llmkit_error local;
    if (!error) error = &local;
    if (!desc) desc = &by_default;
    if (lk__check_guards(error, desc->_guard0, desc->_guard1, "llmkit_client_desc")) return NULL;
    llmkit_env env = lk__env_fill(&desc->env);
    llmkit_client *c = lk__alloc(&env, sizeof *c);
    if (!c) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a client");
        return NULL;
    }
    c->env = env;
    lk__client_set(c, desc);
    if (lk__client_open(c, desc, error)) {
        llmkit_client_destroy(c);
        return NULL;
    }
    memset(error, 0, sizeof *error);
    return c;
}

LK__PRIV void lk__client_bury(llmkit_client *c) {
    llmkit_env env = c->env;
    for (uint32_t i = 0; i < c->num_slots; i++) lk__call_free(c->slots[i]);
    lk__free(&env, c->slots, c->cap_slots * sizeof *c->slots);
    for (size_t i = 0; i < c->num_providers; i++) lk__provider_free(c, &c->providers[i]);
    lk__free(&env, c->providers, c->num_providers * sizeof *c->providers);
    lk__pool_destroy(c->pool);
    if (c->loop) lk__post_cancel(c->loop, &c->cancel_post);
    if (c->own_loop) llmkit_loop_destroy(c->loop);
    lk__json_free(&c->json);
    lk__json_free(&c->draft);
    lk__buf_free(&c->scratch);
    lk__buf_free(&c->cancelled);
    lk__mutex_free(&c->cancel_lock);
    lk__free(&env, c, sizeof *c);
}

LK__PRIV void lk__client_on_burial(lk__task *task) {
    lk__client_bury(LK__CONTAINER(task, llmkit_client, burial));
}

LLMKIT_API void llmkit_client_destroy(llmkit_client *client) {
    if (!client || client->dying) return;
    client->dying = true;
    while (client->live) lk__call_cancel_now(client->live);
    if (!client->loop || !lk__loop_inside(client->loop)) {
        lk__client_bury(client);
        return;
    }
    client->burial.fn = lk__client_on_burial;
    lk__defer_last(client->loop, &client->burial);
}

LLMKIT_API llmkit_loop *llmkit_client_loop(llmkit_client *client) {
    return client->loop;
}

LLMKIT_API llmkit_client_stats llmkit_client_read(const llmkit_client *client) {
    llmkit_client_stats s = client->stats;
    lk__pool_stats pool = lk__pool_read(client->pool);
    s.connects = pool.connects;
    s.reused = pool.reused;
    s.resent = pool.resent;
    s.open = pool.open;
    s.idle = pool.idle;
    return s;
}

LLMKIT_API llmkit_err llmkit_client_warm(llmkit_client *client, const char *provider,
                                         uint32_t count, llmkit_error *error) {
    llmkit_error local;
    lk__provider *p = lk__client_provider(client, provider, error ? error : &local);
    if (!p) return LLMKIT_E_ROUTE;
    lk__origin_warm(p->origin, count);
    return LLMKIT_OK;
}

#undef LK__CALL_FIRST_BYTE_MS
#undef LK__CALL_GRACE_NS
#undef LK__CALL_WHOLE_MS
