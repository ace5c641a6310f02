/* examples/llmkit/chat.c -- llmkit chat: asks a model and streams its reply to standard output */
#define _POSIX_C_SOURCE 200809L

#include "llmkit.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "args.h"
#include "command.h"

enum { MAX_PROMPT_BYTES = 16 << 20 };

typedef struct options {
    const char *model, *base_url, *system, *ca;
} options;

#define FIELD(name) .field = offsetof(options, name)

static const lk_flag flags[] = {
    { .name = "model", .letter = 'm', .kind = LK_FLAG_TEXT, FIELD(model), .value = "MODEL",
      .help = "(gpt-4o-mini)" },
    { .name = "base_url", .kind = LK_FLAG_TEXT, FIELD(base_url), .value = "URL",
      .help = "as official clients take it, such as https://host/v1 (OPENAI_BASE_URL, then "
              "OpenAI's own)" },
    { .name = "system", .kind = LK_FLAG_TEXT, FIELD(system), .value = "TEXT",
      .help = "what the model is told before the prompt" },
    { .name = "ca", .kind = LK_FLAG_TEXT, FIELD(ca), .value = "FILE",
      .help = "PEM certificates to trust (the system's)" },
};

static const lk_args args = {
    .command = "llmkit chat",
    .operands = "[PROMPT | -]",
    .max_operands = 1,
    .about = "Asks a model and streams its reply, and only the reply, to standard output.\n"
             "Without a PROMPT, or with \"-\", the prompt is read from standard input.",
    .flags = flags,
    .num_flags = sizeof flags / sizeof flags[0],
    .notes = "The key is taken from OPENAI_API_KEY and sent to whichever URL is asked.\n"
             "Exit status: 0 if the reply came whole, else 1.",
};

/* ---- the prompt ------------------------------------------------------------------------------ */

static char *refuse_input(char *text, const char *why) {
    lk_say("chat: %s", why);
    free(text);
    return NULL;
}

/* All of standard input, to be freed; NULL: what is wrong has been said. */
static char *read_input(void) {
    size_t len = 0, cap = 4096;
    char *text = malloc(cap);
    while (text) {
        len += fread(text + len, 1, cap - len - 1, stdin);
        if (len < cap - 1) break;
        if (cap >= MAX_PROMPT_BYTES) return refuse_input(text, "the prompt is over 16 MiB");
        char *more = realloc(text, cap *= 2);
        if (!more) free(text);
        text = more;
    }
    if (!text) return refuse_input(NULL, "no memory for the prompt");
    if (ferror(stdin)) return refuse_input(text, "standard input cannot be read");
    if (memchr(text, '\0', len)) return refuse_input(text, "the prompt has a NUL byte in it");
    text[len] = '\0';
    return text;
}

static bool check_prompt(const char *prompt) {
    if (prompt[strspn(prompt, " \t\r\n")] != '\0') return true;
    lk_say("chat: the prompt is empty");
    return false;
}

/* ---- the reply ------------------------------------------------------------------------------- */

/* Each piece is written out at once: people read along.  A reader that has gone away, such as
 * `head`, needs no message. */
static bool write_piece(llmkit_str text) {
    bool written = fwrite(text.ptr, 1, text.len, stdout) == text.len && fflush(stdout) == 0;
    if (!written && errno != EPIPE) lk_say("chat: cannot write the reply: %s", strerror(errno));
    return written;
}

static void say_error(const llmkit_error *e) {
    const char *before = e->request_id[0] ? " (request id " : "";
    const char *after = e->request_id[0] ? ")" : "";
    lk_say("chat: %s%s%s%s", e->message, before, e->request_id, after);
}

/* What ended a reply that is not whole. */
static bool check_finish(const llmkit_event *done) {
    if (done->error)
        say_error(done->error);
    else if (done->finish == LLMKIT_LENGTH)
        lk_say("chat: the reply was cut off at the model's limit of tokens");
    else if (done->finish == LLMKIT_FILTER)
        lk_say("chat: the provider withheld the rest of the reply");
    else
        return true;
    return false;
}

static bool print_reply(llmkit_stream *stream) {
    bool whole = false, written = true;
    char last = '\n';
    for (llmkit_event e; written && llmkit_stream_next(stream, &e);) {
        if (e.type == LLMKIT_EV_DONE) {
            if (last != '\n' && isatty(STDOUT_FILENO)) write_piece(LLMKIT_STR("\n"));
            whole = check_finish(&e);
        } else if ((e.type == LLMKIT_EV_TEXT || e.type == LLMKIT_EV_REFUSAL) && e.text.len) {
            last = e.text.ptr[e.text.len - 1];
            written = write_piece(e.text);
        }
    }
    return whole && written;
}

/* ---- the command ----------------------------------------------------------------------------- */

static llmkit_client *open_client(const options *o, llmkit_tls *tls, llmkit_error *error) {
    const char *key = getenv("OPENAI_API_KEY");
    llmkit_provider_desc provider = {
        .base_url = o->base_url,
        .api_key = key && *key ? key : NULL,
    };
    return llmkit_client_create(
        &(llmkit_client_desc){ .providers = &provider, .num_providers = 1, .tls = tls }, error);
}

static bool ask(const options *o, const char *prompt) {
    llmkit_error error;
    llmkit_request request = { .model = o->model, .system = o->system, .prompt = prompt };
    llmkit_tls *tls = NULL;
    llmkit_client *client = NULL;
    llmkit_stream *stream = NULL;
    bool whole = false;

    if (o->ca && !(tls = llmkit_tls_create(&(llmkit_tls_desc){ .ca_file = o->ca }, &error)))
        goto end;
    client = open_client(o, tls, &error);
    if (client) stream = llmkit_stream_open(client, &request, &error);
    if (stream) whole = print_reply(stream);
end:
    if (!stream) say_error(&error);
    llmkit_stream_close(stream);
    llmkit_client_destroy(client);
    llmkit_tls_release(tls);
    return whole;
}

int lk_chat_main(int argc, char **argv) {
    options o = { .model = "gpt-4o-mini" };
    int status;
    if (!lk_args_parse(&args, &o, &argc, argv, &status)) return status;
    signal(SIGPIPE, SIG_IGN); /* writing says EPIPE instead */
    bool from_input = argc == 0 || strcmp(argv[0], "-") == 0;
    char *input = from_input ? read_input() : NULL;
    const char *prompt = from_input ? input : argv[0];
    bool whole = prompt && check_prompt(prompt) && ask(&o, prompt);
    free(input);
    return whole ? 0 : 1;
}
