/* cc -I. examples/hello.c -lbearssl -o hello */
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
#include <stdio.h>
int main(void) {
    llmkit_request request = { .model = "gpt-4o-mini", .prompt = "Say hello." };
    llmkit_reply reply = { 0 };
    llmkit_client *client = llmkit_client_create(NULL, &reply.error);
    int failed = !client || llmkit_complete(client, &request, &reply);
    puts(failed ? reply.error.message : reply.text.ptr);
    llmkit_reply_free(&reply);
    llmkit_client_destroy(client);
    return failed;
}
