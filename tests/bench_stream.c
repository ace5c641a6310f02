/* bench_stream.c -- what an event of a stream costs, from the socket to the caller's callback
 *
 * A server in a process of its own sends as fast as it can, so that reads are full of events.  Time
 * is user time of the client, since the kernel's share depends on how much a read brings.  Events
 * that differ in their text and padding alone are read by difference; "full" are those that differ
 * in more. */
#include "load.h"

enum { NUM_EVENTS = 400000, EVENTS_A_WRITE = 128 };

static const char event[] =
    "data: {\"id\":\"chatcmpl-9xYzAbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\","
    "\"created\":1715000000,\"model\":\"gpt-4o-mini-2024-07-18\",\"system_fingerprint\":"
    "\"fp_0123456789\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},"
    "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null,\"obfuscation\":\"aB3dE\"}\n\n";

static const char last_events[] =
    "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

static void send_all(int fd, llmkit_str text) {
    while (text.len) {
        ssize_t n = write(fd, text.ptr, text.len);
        if (n <= 0) _exit(1);
        text = lk__str_from(text, (size_t)n);
    }
}

/* One connection, one request, one long reply.  Chunks as servers make them: one for each event. */
static void serve(int listener, bool alike) {
    char request[8192];
    llmkit_env env = lk__env_fill(NULL);
    lk__buf out;
    lk__buf_init(&out, &env, 0);
    int fd = accept(listener, NULL, NULL);
    if (fd < 0 || read(fd, request, sizeof request) <= 0) _exit(1);
    send_all(fd, LK__STR("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                         "Transfer-Encoding: chunked\r\n\r\n"));
    char other[sizeof event];
    memcpy(other, event, sizeof event);
    memcpy(strstr(other, " token"), " other", 6);
    memcpy(strstr(other, "aB3dE"), "fGh4i", 5);
    if (!alike) memcpy(strstr(other, "1715000000"), "1715000001", 10);
    for (int i = 0; i < EVENTS_A_WRITE; i++)
        lk__http_chunk(&out, lk__str_z(i % 2 ? event : other));
    for (int i = 0; i < NUM_EVENTS / EVENTS_A_WRITE; i++) send_all(fd, lk__buf_view(&out));
    lk__buf_clear(&out);
    lk__http_chunk(&out, lk__str_z(last_events));
    lk__http_last_chunk(&out);
    send_all(fd, lk__buf_view(&out));
    read(fd, request, sizeof request);
    _exit(0);
}

typedef struct seen {
    size_t texts, bytes;
    bool   done;
} seen;

static void on_event(void *user, const llmkit_event *event) {
    seen *s = user;
    if (event->type == LLMKIT_EV_TEXT) {
        s->texts++;
        s->bytes += event->text.len;
    }
    if (event->type != LLMKIT_EV_DONE) return;
    if (event->error) lk_die(event->error->message);
    s->done = true;
}

static double stream_ns(bool alike) {
    char url[64];
    llmkit_error error;
    seen s = { 0 };
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof at;
    if (bind(listener, (struct sockaddr *)&at, len) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&at, &len))
        lk_die("no socket");
    pid_t pid = fork();
    if (pid == 0) {
        lk_pin(1);
        serve(listener, alike);
    }
    snprintf(url, sizeof url, "http://127.0.0.1:%d/v1", ntohs(at.sin_port));
    llmkit_client *client = llmkit_client_create(&(llmkit_client_desc){
        .providers = &(llmkit_provider_desc){ .base_url = url }, .num_providers = 1,
        .max_reply_bytes = 1U << 30 }, &error);
    if (!client) lk_die(error.message);
    double user = lk_user_s();
    if (llmkit_submit(client, &(llmkit_request){ .model = "m", .prompt = "Go on." }, on_event, &s,
                      NULL, &error))
        lk_die(error.message);
    while (!s.done) llmkit_loop_poll(llmkit_client_loop(client), -1);
    user = lk_user_s() - user;
    llmkit_client_destroy(client);
    close(listener);
    waitpid(pid, NULL, 0);
    if (s.texts != NUM_EVENTS / EVENTS_A_WRITE * EVENTS_A_WRITE) lk_die("events are missing");
    return user / (double)s.texts * 1e9;
}

int main(void) {
    double tries[5];
    lk_pin(0);
    printf("stream: %d events of %zu bytes, %d in a write\n", NUM_EVENTS, sizeof event - 1,
           EVENTS_A_WRITE);
    for (size_t i = 0; i < LK__COUNT(tries); i++) tries[i] = stream_ns(true);
    lk_figure("stream.event_user_ns", lk_best(tries, LK__COUNT(tries)), "ns", "<=", 400,
              "LLMKit 0.1.3: about 900");
    lk_figure("stream.event_user_median_ns", lk_median(tries, LK__COUNT(tries)), "ns", NULL, 0,
              NULL);
    for (size_t i = 0; i < LK__COUNT(tries); i++) tries[i] = stream_ns(false);
    lk_figure("stream.event_full_user_ns", lk_best(tries, LK__COUNT(tries)), "ns", NULL, 0, NULL);
    return 0;
}
