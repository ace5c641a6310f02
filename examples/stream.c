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
        if (e->error) fprintf(stderr, "\n%s\n", e->error->message);
        else printf("\n\n%lld tokens in, %lld out\n", (long long)e->usage.input,
                    (long long)e->usage.output);
        return !e->error;
    default: return true; /* what one does not know does not matter */
    }
}

int main(void) {
    const llmkit_message messages[] = {
        { .role = LLMKIT_USER, .text = "Name a programming language." },
        { .role = LLMKIT_ASSISTANT, .text = "C." },
        { .role = LLMKIT_USER, .text = "In one sentence: why that one?" },
    };
    llmkit_error error;
    bool good = false;
    llmkit_client *client = llmkit_client_create(NULL, &error);
    llmkit_stream *stream = NULL;
    if (client)
        stream = llmkit_stream_open(client, &(llmkit_request){
            .model = "gpt-4o-mini",
            .system = "You are brief.",
            .messages = messages,
            .num_messages = sizeof messages / sizeof messages[0],
            .temperature = LLMKIT_OPT(0),
        }, &error);
    if (!stream) fprintf(stderr, "%s\n", error.message);
    for (llmkit_event e; stream && llmkit_stream_next(stream, &e);) good = print_event(&e);
    llmkit_stream_close(stream); /* NULL is fine, here and below */
    llmkit_client_destroy(client);
    return good ? 0 : 1;
}
