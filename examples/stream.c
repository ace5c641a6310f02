/* examples/stream.c -- an answer as it is written, in a conversation
 *
 *     cc -I. examples/stream.c -lbearssl -o stream
 *     OPENAI_API_KEY=... ./stream
 */
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"

#include <stdio.h>

static bool print_event(const llmkit_event *e) {
    switch (e->type) {
    case LLMKIT_EV_TEXT:
        fwrite(e->text.ptr, 1, e->text.len, stdout);
        fflush(stdout);
        return true;
    case LLMKIT_EV_DONE:
        if (e->error) {
            fprintf(stderr, "\n%s\n", e->error->message);
            return false;
        }
        printf("\n\n%lld tokens in, %lld out\n", (long long)e->usage.input,
               (long long)e->usage.output);
        return true;
    default: return true; /* what a program does not know it may pass over */
    }
}

int main(void) {
    const llmkit_message messages[] = {
        { .role = LLMKIT_USER, .text = "Name a programming language." },
        { .role = LLMKIT_ASSISTANT, .text = "C." },
        { .role = LLMKIT_USER, .text = "In one sentence: why that one?" },
    };
    const llmkit_request request = {
        .model = "gpt-4o-mini",
        .system = "You are brief.",
        .messages = messages,
        .num_messages = sizeof messages / sizeof messages[0],
        .temperature = LLMKIT_OPT(0),
    };
    llmkit_error error;
    llmkit_client *client = llmkit_client_create(NULL, &error);
    llmkit_stream *stream = client ? llmkit_stream_open(client, &request, &error) : NULL;
    bool good = false;
    if (!stream) fprintf(stderr, "%s\n", error.message);
    for (llmkit_event e; stream && llmkit_stream_next(stream, &e);) good = print_event(&e);
    llmkit_stream_close(stream); /* NULL is fine, here and below */
    llmkit_client_destroy(client);
    return good ? 0 : 1;
}
