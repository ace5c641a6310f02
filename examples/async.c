/* examples/async.c -- a hundred calls at once, on one thread and one loop
 *
 *     cc -I. examples/async.c -lbearssl -o async
 *     OPENAI_API_KEY=... ./async
 */
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"

#include <stdio.h>

enum { NUM_CALLS = 100 };

typedef struct question {
    int  number;
    bool answered;
} question;

/* Called once for each call, in order of completion.  The reply is gone when this returns. */
static void on_reply(void *user, const llmkit_reply *reply) {
    question *q = user;
    if (reply->error.code) {
        fprintf(stderr, "%d: %s\n", q->number, reply->error.message);
        return;
    }
    q->answered = true;
    printf("%3d  %6.1f ms  %s\n", q->number, (double)reply->total_ns / 1e6, reply->text.ptr);
}

int main(void) {
    static question questions[NUM_CALLS];
    llmkit_error error;
    llmkit_client *client = llmkit_client_create(NULL, &error);
    if (!client) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    for (int i = 0; i < NUM_CALLS; i++) {
        char prompt[64];
        questions[i].number = i;
        snprintf(prompt, sizeof prompt, "How much is %d squared?", i);
        const llmkit_request request = { .model = "gpt-4o-mini", .prompt = prompt };
        if (llmkit_submit_whole(client, &request, on_reply, &questions[i], NULL, &error))
            fprintf(stderr, "%d: %s\n", i, error.message);
    }
    llmkit_loop_run(llmkit_client_loop(client)); /* until nothing is left to wait for */
    llmkit_client_destroy(client);

    int answered = 0;
    for (int i = 0; i < NUM_CALLS; i++) answered += questions[i].answered;
    printf("%d of %d answered\n", answered, NUM_CALLS);
    return answered == NUM_CALLS ? 0 : 1;
}
