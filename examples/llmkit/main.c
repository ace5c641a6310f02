/* examples/llmkit/main.c -- the llmkit command: chat, batch, mock */
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "command.h"

typedef struct command {
    const char *name;
    int       (*run)(int argc, char **argv);
    const char *about;
} command;

static const command commands[] = {
    { "chat", lk_chat_main, "asks a model and streams its reply to standard output" },
    { "batch", lk_batch_main, "sends a file of requests at a chosen rate and keeps the results" },
    { "mock", lk_mock_main, "serves an OpenAI-shaped API for tests and benchmarks" },
};

static const size_t num_commands = sizeof commands / sizeof commands[0];

void lk_say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("llmkit: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

void lk_catch_stop(void (*stop)(int signal)) {
    struct sigaction action = { .sa_handler = stop, .sa_flags = SA_RESTART };
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void lk_raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void print_usage(FILE *out) {
    fputs("usage: llmkit COMMAND [flags]\n\n", out);
    for (size_t i = 0; i < num_commands; i++) {
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].about);
    }
    fputs("\n'llmkit COMMAND --help' says more; 'llmkit --version' prints the version.\n", out);
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    for (size_t i = 0; i < num_commands; i++) {
        if (strcmp(name, commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    }
    if (strcmp(name, "--version") == 0) {
        printf("llmkit %s\n", llmkit_build_info());
        return 0;
    }
    bool asked = strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;
    if (!asked && *name) lk_say("'%s' is not a command", name);
    print_usage(asked ? stdout : stderr);
    return asked ? 0 : 1;
}
