/* counterpart.c -- one call by the library, told as lines: whole|stream URL PROMPT [CA [TIMES]]
 *
 * What tests/test_counterparts.py runs against the servers of others. */
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"

static void tell_end(llmkit_finish finish, const llmkit_usage *usage, uint32_t attempts,
                     const llmkit_error *error) {
    static const char *const finishes[] = { "-", "stop", "length", "tool", "filter", "other" };
    printf("usage %lld %lld\n", (long long)usage->input, (long long)usage->output);
    printf("attempts %u\n", attempts);
    if (!error || !error->code) {
        printf("done %s\n", finishes[finish]);
        return;
    }
    printf("failed %s %u %s\n", llmkit_err_name(error->code), error->http_status,
           error->type[0] ? error->type : "-");
    printf("deadline %d\nretry-after %u\n", (int)error->deadline, error->retry_after_ms);
    printf("message %s\n", error->message);
}

static void tell_tool(const llmkit_tool_call *call) {
    printf("tool %s %s\n", call->name.ptr, call->arguments.ptr);
}

static void whole(llmkit_client *client, const llmkit_request *request) {
    llmkit_reply reply;
    llmkit_complete(client, request, &reply);
    if (reply.text.len) printf("text %s\n", reply.text.ptr);
    for (size_t i = 0; i < reply.num_tool_calls; i++) tell_tool(&reply.tool_calls[i]);
    tell_end(reply.finish, &reply.usage, reply.attempts, &reply.error);
    llmkit_reply_free(&reply);
}

static void stream(llmkit_client *client, const llmkit_request *request) {
    llmkit_stream *s = llmkit_stream_open(client, request, NULL);
    if (!s) return;
    for (llmkit_event e; llmkit_stream_next(s, &e);) {
        if (e.type == LLMKIT_EV_START) printf("start %s\n", e.model.ptr);
        if (e.type == LLMKIT_EV_TEXT) printf("text %s\n", e.text.ptr);
        if (e.type == LLMKIT_EV_TOOL_END) tell_tool(&e.tool);
        if (e.type == LLMKIT_EV_DONE) tell_end(e.finish, &e.usage, e.attempts, e.error);
    }
    llmkit_stream_close(s);
}

int main(int argc, char **argv) {
    llmkit_error error;
    if (argc < 4) return 1;
    llmkit_provider_desc provider = { .base_url = argv[2], .api_key = "k",
                                      .model = getenv("MODEL") ? getenv("MODEL") : "gpt-4-mock" };
    const char *patience = getenv("FIRST_BYTE_MS");
    llmkit_tls *tls = NULL;
    if (argc > 4 && *argv[4] &&
        !(tls = llmkit_tls_create(&(llmkit_tls_desc){ .ca_file = argv[4] }, &error)))
        return 1;
    llmkit_client *client = llmkit_client_create(
        &(llmkit_client_desc){ .providers = &provider, .num_providers = 1, .tls = tls,
                               .backoff_ms = 1, .max_backoff_ms = 1, .max_retry_after_ms = 100,
                               .first_byte_ms = patience ? (uint32_t)atoi(patience) : 10000,
                               .idle_ms = 10000 }, &error);
    if (!client) return 1;
    const llmkit_request request = { .prompt = argv[3] };
    for (int i = argc > 5 ? atoi(argv[5]) : 1; i > 0; i--)
        (argv[1][0] == 'w' ? whole : stream)(client, &request);
    llmkit_client_stats stats = llmkit_client_read(client);
    printf("connects %llu reused %llu\n", (unsigned long long)stats.connects,
           (unsigned long long)stats.reused);
    llmkit_client_destroy(client);
    llmkit_tls_release(tls);
    return 0;
}
