/* rig.h -- a client, the scripted peer it talks to, and a log of what its callbacks were told */
#pragma once

#include "peer.h"

#define WHOLE                                                                                      \
    "{\"id\":\"c1\",\"model\":\"m-1\",\"choices\":[{\"index\":0,\"message\":{\"role\":"            \
    "\"assistant\",\"content\":\"Hello\"},\"finish_reason\":\"stop\"}],\"usage\":"                 \
    "{\"prompt_tokens\":3,\"completion_tokens\":2}}"
#define CHUNK(delta) "data: {\"model\":\"m-1\",\"choices\":[{\"index\":0,\"delta\":" delta "}]}\n\n"
#define FINISH(reason)                                                                             \
    "data: {\"model\":\"m-1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":"         \
    "\"" reason "\"}]}\n\n"
#define TEXT(text) CHUNK("{\"content\":\"" text "\"}")
#define DONE_LINE  "data: [DONE]\n\n"
#define HELLO      "S|" TEXT("Hel") TEXT("lo") FINISH("stop") DONE_LINE

static const int64_t MS = LK__NS_PER_MS;

typedef struct rig {
    lk_world             world;
    llmkit_loop         *loop, *peer_loop;
    peer                 peer;
    llmkit_client       *client;
    llmkit_client_desc   desc;
    llmkit_provider_desc provider;
    bool                 own_loop, unix_socket, tls;
    const char          *host;
    char                 url[128];
    const char *const   *script; /* what the nth request gets: see rig_answer */
    int                  scripted;
    llmkit_call          call;
    char                 log[4096];
    int                  dones;
    bool                 done;
    llmkit_error         error; /* of the last one */
    uint32_t             attempts;
    void               (*hook)(struct rig *r, const llmkit_event *e); /* called inside */
} rig;

/* An entry of a script: STATUS|FIELDS|BODY, a reply;  S|EVENTS, a stream that ends in order;
 * C|EVENTS, one that is cut;  H|EVENTS, one that goes on for ever;  R|BYTES, as they are;
 * X|BYTES, likewise and then it hangs up;  -, nothing;  !, a reset. */
static void rig_say(peer_conn *c, const char *entry) {
    const char *bar = strchr(entry, '|');
    if (strcmp(entry, "-") == 0) return;
    if (strcmp(entry, "!") == 0) {
        peer_reset(c);
    } else if (*entry == 'R' || *entry == 'X') {
        peer_say(c, bar + 1);
        if (*entry == 'X') peer_finish(c);
    } else if (strchr("SCH", *entry)) {
        peer_start_stream(c);
        peer_chunk(c, bar + 1);
        if (*entry == 'S') peer_end_stream(c);
        if (*entry == 'C') peer_finish(c);
    } else {
        const char *body = strchr(bar + 1, '|');
        char fields[1024];
        snprintf(fields, sizeof fields, "%.*s", (int)(body - bar - 1), bar + 1);
        peer_reply(c, atoi(entry), fields, body + 1);
    }
}

static void rig_answer(peer_conn *c, llmkit_str request) {
    rig *r = c->peer->user;
    (void)request;
    assert_non_null(r->script);
    const char *entry = r->script[r->scripted];
    assert_non_null(entry);
    if (r->script[r->scripted + 1]) r->scripted++; /* the last one is for all that follow */
    rig_say(c, entry);
}

LK_UNUSED static void rig_script(rig *r, const char *const *script) {
    r->script = script;
    r->scripted = 0;
}

LK_UNUSED static void rig_make_tls(rig *r, const char *leaf) {
    static char cert[600], key[600], ca[600];
    const char *dir = getenv("LK_CERTS");
    char command[1400];
    if (!dir) dir = "build/certs";
    snprintf(command, sizeof command, "tests/make_certs '%s'", dir);
    snprintf(cert, sizeof cert, "%s/%s.pem", dir, leaf);
    snprintf(key, sizeof key, "%s/%s.key", dir, leaf);
    snprintf(ca, sizeof ca, "%s/bundle.pem", dir);
    assert_int_equal(system(command), 0);
    llmkit_error error;
    r->peer.tls = llmkit_tls_create(&(llmkit_tls_desc){ .cert_file = cert, .key_file = key },
                                    &error);
    assert_non_null(r->peer.tls);
    r->desc.tls = llmkit_tls_create(&(llmkit_tls_desc){ .env = r->world.env, .ca_file = ca },
                                    &error);
    assert_non_null(r->desc.tls);
}

LK_UNUSED static void rig_open_client(rig *r) {
    llmkit_error error;
    if (r->unix_socket)
        snprintf(r->url, sizeof r->url, "unix:%s:/v1", r->peer.path);
    else
        snprintf(r->url, sizeof r->url, "%s://%s:%d/v1", r->tls ? "https" : "http",
                 r->host ? r->host : "127.0.0.1", r->peer.port);
    if (!r->provider.base_url) r->provider.base_url = r->url;
    if (!r->provider.api_key) r->provider.api_key = "sk-test";
    if (!r->provider.model) r->provider.model = "m";
    r->desc.env = r->world.env;
    r->desc.providers = &r->provider;
    r->desc.num_providers = 1;
    r->desc.loop = r->own_loop ? NULL : r->loop;
    r->client = llmkit_client_create(&r->desc, &error);
    if (!r->client) print_error("%s\n", error.message);
    assert_non_null(r->client);
    if (r->own_loop) r->loop = llmkit_client_loop(r->client);
}

LK_UNUSED static void rig_open_peer(rig *r) {
    llmkit_error error;
    if (!r->world.env.alloc) lk_world_init_virtual(&r->world, 0);
    r->peer_loop = llmkit_loop_create(NULL, &error);
    r->peer.answer = rig_answer;
    r->peer.user = r;
    if (r->tls) rig_make_tls(r, "rsa");
    if (r->unix_socket)
        peer_open_unix(&r->peer, r->peer_loop);
    else
        peer_open(&r->peer, r->peer_loop);
}

/* r->desc and the flags are set before by the test, where it wants them different. */
LK_UNUSED static void rig_open(rig *r) {
    llmkit_error error;
    rig_open_peer(r);
    if (!r->own_loop)
        r->loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = r->world.env }, &error);
    rig_open_client(r);
}

LK_UNUSED static void rig_close_client(rig *r) {
    llmkit_client_destroy(r->client);
    r->client = NULL;
    if (r->own_loop) r->loop = NULL;
}

LK_UNUSED static void rig_close(rig *r) {
    if (r->client) rig_close_client(r);
    llmkit_loop_destroy(r->loop);
    peer_close(&r->peer);
    llmkit_loop_destroy(r->peer_loop);
    llmkit_tls_release(r->desc.tls);
    assert_no_leak(&r->world);
}

LK_UNUSED static void rig_turns(rig *r, int turns) {
    for (int i = 0; i < turns; i++) {
        if (r->loop) llmkit_loop_poll(r->loop, 0);
        llmkit_loop_poll(r->peer_loop, 0);
    }
}

LK_UNUSED static void rig_pass(rig *r, int64_t ms) {
    r->world.now_ns += ms * MS;
    rig_turns(r, 8);
}

LK_UNUSED static void rig_wait(rig *r) {
    for (int i = 0; i < 100000 && !r->done; i++) rig_turns(r, 1);
    if (!r->done) print_error("no end after: %s\n", r->log);
    assert_true(r->done);
}

/* Waits for the end, letting the clock run by step_ms whenever nothing happens for a while. */
LK_UNUSED static void rig_wait_passing(rig *r, int64_t step_ms) {
    for (int i = 0; i < 1000 && !r->done; i++) {
        rig_turns(r, 20);
        if (!r->done) r->world.now_ns += step_ms * MS;
    }
    if (!r->done) print_error("no end after: %s\n", r->log);
    assert_true(r->done);
}

static void rig_note(rig *r, const char *format, ...) {
    size_t at = strlen(r->log);
    va_list args;
    va_start(args, format);
    if (at) r->log[at++] = ' ';
    vsnprintf(r->log + at, sizeof r->log - at, format, args);
    va_end(args);
}

static void rig_check_view(llmkit_str s) {
    if (s.ptr) assert_int_equal(s.ptr[s.len], 0);
    assert_true(s.ptr || s.len == 0);
}

static void rig_note_end(rig *r, const llmkit_error *error, uint32_t attempts) {
    rig_note(r, "DONE(%s)", llmkit_err_name(error ? error->code : LLMKIT_OK));
    r->dones++;
    r->done = true;
    r->attempts = attempts;
    if (error) r->error = *error;
    else memset(&r->error, 0, sizeof r->error);
}

static void rig_note_event(rig *r, const llmkit_event *e) {
    static const char *const finishes[] = { "-", "stop", "length", "tool", "filter", "other" };
    switch (e->type) {
    case LLMKIT_EV_NONE: rig_note(r, "NONE"); break;
    case LLMKIT_EV_START: rig_note(r, "START(%s)", e->model.ptr); break;
    case LLMKIT_EV_TEXT: rig_note(r, "TEXT(%s)", e->text.ptr); break;
    case LLMKIT_EV_REFUSAL: rig_note(r, "REFUSAL(%s)", e->text.ptr); break;
    case LLMKIT_EV_TOOL_BEGIN:
        rig_note(r, "BEGIN(%u %s %s)", e->tool.index, e->tool.id.ptr, e->tool.name.ptr);
        break;
    case LLMKIT_EV_TOOL_DELTA: rig_note(r, "DELTA(%u %s)", e->tool.index, e->text.ptr); break;
    case LLMKIT_EV_TOOL_END:
        rig_note(r, "END(%u %s %s %s)", e->tool.index, e->tool.id.ptr, e->tool.name.ptr,
                 e->tool.arguments.ptr);
        break;
    case LLMKIT_EV_USAGE:
        rig_note(r, "USAGE(%d %d)", (int)e->usage.input, (int)e->usage.output);
        break;
    case LLMKIT_EV_DONE:
        if (!e->error) rig_note(r, "%s", finishes[e->finish]);
        rig_note_end(r, e->error, e->attempts);
        break;
    }
}

LK_UNUSED static void rig_on_event(void *user, const llmkit_event *e) {
    rig *r = user;
    const llmkit_str views[] = { e->text, e->provider, e->model, e->request_id, e->finish_text,
                                 e->tool.id, e->tool.name, e->tool.arguments };
    for (size_t i = 0; i < LK__COUNT(views); i++) rig_check_view(views[i]);
    rig_note_event(r, e);
    if (r->hook) r->hook(r, e);
}

LK_UNUSED static void rig_on_reply(void *user, const llmkit_reply *reply) {
    rig *r = user;
    const llmkit_str views[] = { reply->text, reply->refusal, reply->model, reply->provider,
                                 reply->request_id, reply->finish_text, reply->raw };
    for (size_t i = 0; i < LK__COUNT(views); i++) {
        assert_non_null(views[i].ptr);
        rig_check_view(views[i]);
    }
    if (!reply->error.code) rig_note(r, "REPLY(%s)", reply->text.ptr);
    rig_note_end(r, reply->error.code ? &reply->error : NULL, reply->attempts);
    if (r->hook) r->hook(r, &(llmkit_event){ .type = LLMKIT_EV_DONE });
}

LK_UNUSED static void rig_clear(rig *r) {
    r->log[0] = '\0';
    r->done = false;
    r->dones = 0;
    memset(&r->error, 0, sizeof r->error);
}

LK_UNUSED static llmkit_err rig_try(rig *r, const llmkit_request *request, bool stream) {
    llmkit_error error;
    rig_clear(r);
    llmkit_err err = stream
        ? llmkit_submit(r->client, request, rig_on_event, r, &r->call, &error)
        : llmkit_submit_whole(r->client, request, rig_on_reply, r, &r->call, &error);
    assert_int_equal(err, error.code);
    assert_int_equal(r->dones, 0); /* no callback from inside */
    if (err) r->error = error;
    assert_true(err ? r->call.id == 0 : r->call.id != 0);
    return err;
}

LK_UNUSED static void rig_ask(rig *r, bool stream) {
    assert_ok(rig_try(r, &(llmkit_request){ .prompt = "Hi" }, stream));
}

LK_UNUSED static void rig_expect(rig *r, const char *log) {
    if (strcmp(r->log, log) != 0) print_error("error: %s\n", r->error.message);
    assert_string_equal(r->log, log);
    assert_true(r->dones <= 1);
}

/* One call against a script, from submission to its end. */
LK_UNUSED static void rig_run(rig *r, const char *const *script, bool stream, const char *log) {
    rig_script(r, script);
    rig_ask(r, stream);
    rig_wait_passing(r, 500);
    rig_expect(r, log);
    assert_int_equal(r->dones, 1);
}

#define SCRIPT(...) ((const char *const[]){ __VA_ARGS__, NULL })
