/* examples/foreign_loop.c -- a guest in the program's own poll(2) loop
 *
 *     cc -I. examples/foreign_loop.c -lbearssl -o foreign_loop
 *     printf 'Why C?\nWhy not?\n' | OPENAI_API_KEY=... ./foreign_loop
 *
 * The loop watches standard input; each line there is a question, asked while earlier ones are
 * still being answered.  Any event loop that accepts a descriptor and a timeout is served like
 * this; one that does not is told what to watch by llmkit_loop_desc.watch.
 */
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct program {
    llmkit_client *client;
    char           line[4096];
    size_t         len;
    bool           input_over;
    int            asked, answered, failed;
} program;

static void on_reply(void *user, const llmkit_reply *reply) {
    program *p = user;
    if (reply->error.code) {
        p->failed++;
        fprintf(stderr, "%s\n", reply->error.message);
    } else {
        p->answered++;
        printf("%s\n", reply->text.ptr);
        fflush(stdout);
    }
}

static void ask(program *p, const char *question) {
    llmkit_error error;
    const llmkit_request request = { .model = "gpt-4o-mini", .prompt = question };
    p->asked++;
    if (llmkit_submit_whole(p->client, &request, on_reply, p, NULL, &error)) {
        p->failed++;
        fprintf(stderr, "%s\n", error.message);
    }
}

/* Standard input is readable, or at its end. */
static void read_questions(program *p) {
    ssize_t n = read(STDIN_FILENO, p->line + p->len, sizeof p->line - 1 - p->len);
    if (n > 0) p->len += (size_t)n;
    p->input_over = n <= 0 || p->len == sizeof p->line - 1;
    p->line[p->len] = '\0';
    char *start = p->line;
    for (char *end; (end = strchr(start, '\n')); start = end + 1) {
        *end = '\0';
        if (end > start) ask(p, start);
    }
    if (p->input_over && *start) ask(p, start);
    p->len = strlen(start);
    memmove(p->line, start, p->len);
}

/* This loop is the program's.  llmkit has one descriptor in it and a say in the timeout. */
static void run(program *p) {
    llmkit_loop *loop = llmkit_client_loop(p->client);
    while (!p->input_over || p->answered + p->failed < p->asked) {
        struct pollfd fds[2] = {
            { .fd = llmkit_loop_fd(loop), .events = POLLIN },
            { .fd = p->input_over ? -1 : STDIN_FILENO, .events = POLLIN }, /* -1: left out */
        };
        int64_t wait_ns = llmkit_loop_wait_ns(loop);
        poll(fds, 2, wait_ns < 0 ? -1 : (int)((wait_ns + 999999) / 1000000));
        if (fds[1].revents) read_questions(p);
        llmkit_loop_poll(loop, 0); /* does what is due, calls on_reply, never waits */
    }
}

int main(void) {
    static program p;
    llmkit_error error;
    p.client = llmkit_client_create(NULL, &error);
    if (!p.client) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    run(&p);
    llmkit_client_destroy(p.client);
    return p.failed ? 1 : 0;
}
