/* llm/stream.c -- the two blocking ways to call: whole replies, streams one event at a time */

#include "llm/client.h"

/* ---- whole ----------------------------------------------------------------------------------- */

/* Lays the strings of a reply out in one block, each terminated. */
typedef struct lk__packer {
    char  *at;    /* NULL: only count */
    size_t bytes;
} lk__packer;

LK__PRIV llmkit_str lk__pack(lk__packer *p, llmkit_str s) {
    llmkit_str copy = { "", s.len };
    if (p->at) {
        char *to = p->at + p->bytes;
        if (s.len) memcpy(to, s.ptr, s.len);
        to[s.len] = '\0';
        copy.ptr = to;
    }
    p->bytes += s.len + 1;
    return copy;
}

LK__PRIV void lk__pack_reply(lk__packer *p, llmkit_reply *to, const llmkit_reply *from,
                             llmkit_tool_call *calls) {
    to->text = lk__pack(p, from->text);
    to->refusal = lk__pack(p, from->refusal);
    to->model = lk__pack(p, from->model);
    to->provider = lk__pack(p, from->provider);
    to->request_id = lk__pack(p, from->request_id);
    to->finish_text = lk__pack(p, from->finish_text);
    to->raw = lk__pack(p, from->raw);
    for (size_t i = 0; i < from->num_tool_calls; i++) {
        llmkit_tool_call call = from->tool_calls[i];
        call.id = lk__pack(p, call.id);
        call.name = lk__pack(p, call.name);
        call.arguments = lk__pack(p, call.arguments);
        if (calls) calls[i] = call;
    }
}

LK__PRIV void lk__reply_clear(llmkit_reply *reply) {
    memset(reply, 0, sizeof *reply);
    reply->usage = (llmkit_usage){ -1, -1, -1, -1 };
    reply->text = reply->refusal = reply->model = reply->provider = reply->request_id =
        reply->finish_text = reply->raw = LK__STR("");
}

/* What _memory points to: the allocator that made it, then tool calls and strings. */
typedef struct lk__reply_memory {
    llmkit_env env;
    size_t     size;
} lk__reply_memory;

LK__PRIV llmkit_err lk__reply_copy(llmkit_reply *to, const llmkit_reply *from,
                                   const llmkit_env *env) {
    lk__packer count = { NULL, 0 };
    size_t calls_bytes = from->num_tool_calls * sizeof(llmkit_tool_call);
    *to = *from;
    lk__pack_reply(&count, to, from, NULL);
    size_t size = sizeof(lk__reply_memory) + calls_bytes + count.bytes;
    lk__reply_memory *memory = lk__alloc(env, size);
    if (!memory) {
        lk__reply_clear(to);
        to->usage = from->usage;
        to->attempts = from->attempts;
        to->error = from->error;
        if (!to->error.code) lk__fail(&to->error, LLMKIT_E_NOMEM, "no memory for the reply");
        return to->error.code;
    }
    memory->env = *env;
    memory->size = size;
    llmkit_tool_call *calls = (llmkit_tool_call *)(void *)(memory + 1);
    lk__packer fill = { (char *)(memory + 1) + calls_bytes, 0 };
    lk__pack_reply(&fill, to, from, calls);
    to->tool_calls = from->num_tool_calls ? calls : NULL;
    to->_memory = memory;
    return to->error.code;
}

LLMKIT_API void llmkit_reply_free(llmkit_reply *reply) {
    lk__reply_memory *memory = reply->_memory;
    if (memory) {
        llmkit_env env = memory->env;
        lk__free(&env, memory, memory->size);
    }
    memset(reply, 0, sizeof *reply);
}

typedef struct lk__whole {
    const llmkit_env *env;
    llmkit_reply     *reply;
    bool              done;
} lk__whole;

LK__PRIV void lk__whole_done(void *user, const llmkit_reply *reply) {
    lk__whole *w = user;
    lk__reply_copy(w->reply, reply, w->env);
    w->done = true;
}

LLMKIT_API llmkit_err llmkit_complete(llmkit_client *client, const llmkit_request *request,
                                      llmkit_reply *reply) {
    llmkit_env env = client->env; /* a callback may destroy the client meanwhile */
    lk__whole w = { .env = &env, .reply = reply };
    llmkit_loop *loop = client->loop;
    lk__reply_clear(reply);
    if (!lk__loop_can_wait(loop))
        return lk__fail(&reply->error, LLMKIT_E_ARG, "llmkit_complete cannot wait on a loop with "
                        "desc.watch: use llmkit_submit_whole");
    if (lk__loop_inside(loop))
        return lk__fail(&reply->error, LLMKIT_E_BUSY,
                        "llmkit_complete cannot wait inside a callback: use llmkit_submit_whole");
    if (llmkit_submit_whole(client, request, lk__whole_done, &w, NULL, &reply->error))
        return reply->error.code;
    while (!w.done) llmkit_loop_poll(loop, -1);
    return reply->error.code;
}

/* ---- streams --------------------------------------------------------------------------------- */

enum { LK__STREAM_AHEAD = 262144 }; /* bytes of events that wait for the reader; then TCP does */

/* Events wait in a buffer, each as its struct followed by its strings; views are offsets into the
 * buffer until the event is handed out.  The reader has a buffer of its own, which takes the place
 * of the other one when all of it is read: so views stay whatever else runs on the loop. */
struct llmkit_stream {
    llmkit_env     env;
    llmkit_client *client;
    llmkit_loop   *loop;
    llmkit_call    call;  /* 0 once it has ended */
    lk__buf        queue; /* what comes */
    lk__buf        front; /* what is handed out, */
    size_t         read;  /* up to here */
    bool           paused;
    bool           cut;   /* there was no memory for an event: error is to be the last one, */
    bool           told;  /* and has been */
    llmkit_error   error; /* of the last event */
};

LK__PRIV llmkit_str lk__stream_keep(lk__buf *q, llmkit_str s) {
    llmkit_str kept = { (const char *)(uintptr_t)q->len, s.len };
    lk__buf_add(q, s.ptr, s.len);
    lk__buf_ch(q, '\0');
    return kept;
}

LK__PRIV void lk__stream_place(const lk__buf *q, llmkit_str *s) {
    s->ptr = q->ptr + (uintptr_t)s->ptr;
}

LK__PRIV void lk__stream_push(lk__buf *q, const llmkit_event *event) {
    llmkit_event e = *event;
    size_t at = q->len;
    lk__buf_add(q, &e, sizeof e);
    e.text = lk__stream_keep(q, e.text);
    e.provider = lk__stream_keep(q, e.provider);
    e.model = lk__stream_keep(q, e.model);
    e.request_id = lk__stream_keep(q, e.request_id);
    e.finish_text = lk__stream_keep(q, e.finish_text);
    e.tool.id = lk__stream_keep(q, e.tool.id);
    e.tool.name = lk__stream_keep(q, e.tool.name);
    e.tool.arguments = lk__stream_keep(q, e.tool.arguments); /* the last: see lk__stream_pop */
    if (q->failed)
        q->len = at;
    else
        memcpy(q->ptr + at, &e, sizeof e);
}

LK__PRIV void lk__stream_pop(llmkit_stream *s, llmkit_event *event) {
    memcpy(event, s->front.ptr + s->read, sizeof *event);
    llmkit_str *const views[] = { &event->text, &event->provider, &event->model,
                                  &event->request_id, &event->finish_text, &event->tool.id,
                                  &event->tool.name, &event->tool.arguments };
    for (size_t i = 0; i < LK__COUNT(views); i++) lk__stream_place(&s->front, views[i]);
    const char *end = event->tool.arguments.ptr + event->tool.arguments.len + 1;
    s->read = (size_t)(end - s->front.ptr);
    if (event->error) event->error = &s->error;
}

LK__PRIV void lk__stream_on_event(void *user, const llmkit_event *event) {
    llmkit_stream *s = user;
    bool last = event->type == LLMKIT_EV_DONE;
    if (last && event->error && !s->cut) s->error = *event->error;
    if (!s->cut) lk__stream_push(&s->queue, event);
    if (s->queue.failed && !s->cut) {
        s->cut = true;
        lk__fail(&s->error, LLMKIT_E_NOMEM, "no memory for the events of a stream");
        if (!last) llmkit_cancel(s->client, s->call);
    }
    if (last) {
        s->call.id = 0;
    } else if (s->queue.len > LK__STREAM_AHEAD && !s->paused) {
        s->paused = true;
        llmkit_pause(s->client, s->call);
    }
}

LLMKIT_API llmkit_stream *llmkit_stream_open(llmkit_client *client, const llmkit_request *request,
                                             llmkit_error *error) {
    llmkit_error local;
    if (!error) error = &local;
    if (!lk__loop_can_wait(client->loop)) {
        lk__fail(error, LLMKIT_E_ARG, "a stream cannot wait on a loop with desc.watch: use "
                 "llmkit_submit");
        return NULL;
    }
    llmkit_stream *s = lk__alloc(&client->env, sizeof *s);
    if (!s) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a stream");
        return NULL;
    }
    s->env = client->env;
    s->client = client;
    s->loop = client->loop;
    lk__buf_init(&s->queue, &s->env, 0);
    lk__buf_init(&s->front, &s->env, 0);
    if (llmkit_submit(client, request, lk__stream_on_event, s, &s->call, error)) {
        lk__free(&client->env, s, sizeof *s);
        return NULL;
    }
    return s;
}

LK__PRIV void lk__stream_refill(llmkit_stream *s) {
    if (s->paused && s->call.id) {
        s->paused = false;
        llmkit_resume(s->client, s->call);
    }
    /* Inside a callback of the same loop waiting would be for ever. */
    while (s->queue.len == 0 && s->call.id && !s->cut && !lk__loop_inside(s->loop))
        llmkit_loop_poll(s->loop, -1);
    lk__buf handed = s->front;
    s->front = s->queue;
    s->queue = handed;
    s->queue.len = s->read = 0; /* what was handed out ends here */
}

LLMKIT_API bool llmkit_stream_next(llmkit_stream *s, llmkit_event *event) {
    if (s->read == s->front.len) lk__stream_refill(s);
    if (s->read < s->front.len) {
        lk__stream_pop(s, event);
        return true;
    }
    memset(event, 0, sizeof *event);
    if (!s->cut || s->told) return false;
    event->type = LLMKIT_EV_DONE;
    event->usage = (llmkit_usage){ -1, -1, -1, -1 };
    event->error = &s->error;
    s->told = true;
    return true;
}

LLMKIT_API void llmkit_stream_close(llmkit_stream *s) {
    if (!s) return;
    lk__call *c = s->call.id ? lk__client_find(s->client, s->call) : NULL;
    if (c) lk__call_cancel_now(c);
    llmkit_env env = s->env;
    lk__buf_free(&s->queue);
    lk__buf_free(&s->front);
    lk__free(&env, s, sizeof *s);
}
