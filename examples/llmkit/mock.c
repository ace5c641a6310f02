/* examples/llmkit/mock.c -- llmkit mock: an OpenAI-shaped server for tests and benchmarks */
#define _POSIX_C_SOURCE 200809L

#include "llmkit.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "args.h"
#include "command.h"

enum { FIXED, UNIFORM, LOGNORMAL }; /* --latency_dist */

typedef struct options {
    const char *listen, *cert, *key, *api_key;
    bool        tls, quiet;
    lk_texts    models;
    uint32_t    tokens;
    double      token_ms, latency_ms, jitter_ms;
    unsigned    latency_dist;
    double      error_rate, cut_rate, stall_rate, rate_limit, rate_burst;
    uint32_t    error_status, fail_first;
    uint64_t    seed;
} options;

/* ---- flags ----------------------------------------------------------------------------------- */

#define FIELD(name) .field = offsetof(options, name)

static const lk_flag flags[] = {
    { .name = "listen", .kind = LK_FLAG_TEXT, FIELD(listen), .value = "HOST:PORT",
      .help = "or unix:/path; port 0 takes a free one, printed at the start (127.0.0.1:8080)" },
    { .name = "tls", .kind = LK_FLAG_BOOL, FIELD(tls),
      .help = "serve https; needs --cert and --key" },
    { .name = "cert", .kind = LK_FLAG_TEXT, FIELD(cert), .value = "FILE", .help = "PEM chain" },
    { .name = "key", .kind = LK_FLAG_TEXT, FIELD(key), .value = "FILE", .help = "PEM key" },
    { .name = "api_key", .kind = LK_FLAG_TEXT, FIELD(api_key), .value = "K",
      .help = "answer 401 to requests that do not carry it (any key will do)" },
    { .name = "model", .kind = LK_FLAG_TEXTS, FIELD(models), .value = "NAME",
      .help = "serve this model, may be repeated; others get 404 (any will do)" },
    { .name = "quiet", .kind = LK_FLAG_BOOL, FIELD(quiet), .letter = 'q',
      .help = "no counts at the end" },
    { .kind = LK_FLAG_HEADING, .help = "Replies" },
    { .name = "tokens", .kind = LK_FLAG_COUNT, FIELD(tokens), .value = "N",
      .help = "words in each reply, filled up after the echo (as many as the echo has)" },
    { .name = "token_ms", .kind = LK_FLAG_NUMBER, FIELD(token_ms), .value = "MS",
      .help = "time between two words; a whole reply takes as long in all (0)" },
    { .name = "latency_ms", .kind = LK_FLAG_NUMBER, FIELD(latency_ms), .value = "MS",
      .help = "before the first byte (0)" },
    { .name = "latency_jitter", .kind = LK_FLAG_NUMBER, FIELD(jitter_ms), .value = "MS",
      .help = "uniform: at most so much more or less; lognormal: --latency_ms is the median, and "
              "one standard deviation above it adds this (0)" },
    { .name = "latency_dist", .kind = LK_FLAG_CHOICE, FIELD(latency_dist),
      .value = "fixed|uniform|lognormal", .help = "(fixed)" },
    { .kind = LK_FLAG_HEADING, .help = "Faults, of /v1/chat/completions" },
    { .name = "error_rate", .kind = LK_FLAG_NUMBER, FIELD(error_rate), .value = "P", .max = 1,
      .help = "share of requests that fail with --error_status (0)" },
    { .name = "error_status", .kind = LK_FLAG_COUNT, FIELD(error_status), .value = "N", .min = 400,
      .max = 599, .help = "(500)" },
    { .name = "fail_first", .kind = LK_FLAG_COUNT, FIELD(fail_first), .value = "N",
      .help = "the first N requests fail with --error_status (0)" },
    { .name = "cut_rate", .kind = LK_FLAG_NUMBER, FIELD(cut_rate), .value = "P", .max = 1,
      .help = "share of replies that break off in the middle (0)" },
    { .name = "stall_rate", .kind = LK_FLAG_NUMBER, FIELD(stall_rate), .value = "P", .max = 1,
      .help = "share of replies that stop in the middle without an end (0)" },
    { .name = "rate_limit", .kind = LK_FLAG_NUMBER, FIELD(rate_limit), .value = "N",
      .help = "requests a second; over it 429, Retry-After and retry-after-ms (none)" },
    { .name = "rate_burst", .kind = LK_FLAG_NUMBER, FIELD(rate_burst), .value = "N",
      .help = "how many may come at once (one second's worth)" },
    { .name = "seed", .kind = LK_FLAG_COUNT64, FIELD(seed), .value = "S",
      .help = "of everything random; the same seed and requests give the same faults (1)" },
};

static const lk_args args = {
    .command = "llmkit mock",
    .operands = "",
    .about =
        "Serves POST /v1/chat/completions (whole and streamed), GET /v1/models and GET /healthz\n"
        "as OpenAI does.  Each reply is \"echo: \" and the last user message.  Where the request\n"
        "has tools, a tool_choice of \"required\" or a name, or the words \"use the tool\" in\n"
        "that message, make it a tool call with {\"input\": the message}.",
    .flags = flags,
    .num_flags = sizeof flags / sizeof flags[0],
    .notes =
        "A request can ask for a fault of its own by header:\n"
        "  x-mock-status: N           fail with this status\n"
        "  x-mock-retry-after: TEXT   and this Retry-After\n"
        "  x-mock-delay-ms: N         in place of --latency_ms\n"
        "  x-mock-cut: N              cut the connection after N chunks of a stream, or N bytes\n"
        "                             of a whole reply's body; 0: without any reply\n"
        "  x-mock-stall: N            send nothing more after as many\n"
        "  x-mock-error-in-stream: N  an error object after N chunks of a stream, and its end",
};

/* ---- text ------------------------------------------------------------------------------------ */

/* A growing buffer, NUL-terminated. */
typedef struct text {
    char  *ptr;
    size_t len, cap;
} text;

static void text_reserve(text *t, size_t more) {
    if (t->cap - t->len > more) return;
    size_t cap = 2 * t->cap + more + 64;
    char *ptr = realloc(t->ptr, cap);
    if (!ptr) {
        lk_say("out of memory");
        exit(1);
    }
    t->ptr = ptr;
    t->cap = cap;
}

static void text_add(text *t, llmkit_str s) {
    text_reserve(t, s.len);
    if (s.len) memcpy(t->ptr + t->len, s.ptr, s.len);
    t->len += s.len;
    t->ptr[t->len] = '\0';
}

static void text_fmt(text *t, const char *format, ...) {
    va_list list;
    text_reserve(t, 127);
    size_t room = t->cap - t->len;
    va_start(list, format);
    size_t len = (size_t)vsnprintf(t->ptr + t->len, room, format, list);
    va_end(list);
    if (len >= room) {
        text_reserve(t, len);
        va_start(list, format);
        vsnprintf(t->ptr + t->len, len + 1, format, list);
        va_end(list);
    }
    t->len += len;
}

static void text_escape(text *t, llmkit_str s) {
    size_t len = llmkit_json_escape(s, NULL, 0);
    text_reserve(t, len);
    llmkit_json_escape(s, t->ptr + t->len, len + 1);
    t->len += len;
}

static llmkit_str text_view(const text *t) {
    return (llmkit_str){ t->ptr ? t->ptr : "", t->len };
}

static bool str_is(llmkit_str s, const char *literal) {
    return s.len == strlen(literal) && memcmp(s.ptr, literal, s.len) == 0;
}

/* ---- state ----------------------------------------------------------------------------------- */

typedef struct job job;

typedef struct mock {
    options        options;
    llmkit_loop   *loop;
    llmkit_server *server;
    llmkit_tls    *tls;
    llmkit_bucket *bucket; /* NULL: no limit */
    uint64_t       random;
    uint64_t       asked; /* chat requests so far; numbers them, too */
    uint64_t       answered, failed, refused, limited, broken;
    job           *free_jobs, *all_jobs;
    text           scratch; /* the chunk being written */
} mock;

typedef enum stage { AT_ROLE, AT_WORDS, AT_FINISH, AT_USAGE, AT_DONE, AT_END } stage;

enum { NOWHERE = -1 };

/* One chat request, from its arrival to the end of its reply. */
struct job {
    mock            *mock;
    llmkit_exchange *exchange; /* NULL: the client is gone, or the reply is complete */
    job             *next_free, *next_all;
    uint64_t         number;
    bool             posted;   /* a post will call this job */
    bool             stalled;
    int64_t          due_ns;   /* when the next thing happens */
    void           (*next)(job *j);
    /* The request: views that live as long as the exchange. */
    llmkit_str       model, tool; /* as they stand between JSON's quotes; tool "": none is called */
    size_t           prompt_tokens;
    bool             stream, include_usage;
    /* The reply. */
    int              status;
    text             words; /* the content, or the tool's arguments, escaped for a JSON string */
    text             frame; /* what comes before the choices in every object of the reply */
    size_t           num_words, word_at;
    const char      *finish;
    stage            stage;
    /* Faults, counted in chunks or bytes; NOWHERE: none. */
    long             sent, cut_at, stall_at, error_at;
    long             delay_ms;
};

static job *job_create(mock *m, llmkit_exchange *x) {
    job *j = m->free_jobs;
    if (j) {
        m->free_jobs = j->next_free;
    } else {
        j = calloc(1, sizeof *j);
        if (!j) return NULL;
        j->next_all = m->all_jobs;
        m->all_jobs = j;
    }
    text words = j->words, frame = j->frame;
    words.len = frame.len = 0;
    *j = (job){ .mock = m, .exchange = x, .next_all = j->next_all, .number = ++m->asked,
                .due_ns = llmkit_loop_now_ns(m->loop), .words = words, .frame = frame,
                .status = 200, .finish = "stop", .cut_at = NOWHERE, .stall_at = NOWHERE,
                .error_at = NOWHERE, .delay_ms = NOWHERE };
    return j;
}

static void job_free(job *j) {
    j->exchange = NULL;
    j->next_free = j->mock->free_jobs;
    j->mock->free_jobs = j;
}

static void job_on_closed(void *user) {
    job *j = user;
    j->exchange = NULL;
    if (!j->posted) job_free(j);
}

static void job_on_post(void *user) {
    job *j = user;
    j->posted = false;
    if (j->exchange)
        j->next(j);
    else
        job_free(j);
}

/* next is due ms after the last thing that was.  True: it will be called then; false: that is now.
 * Keeping to the intended times, a reply of many words does not drift. */
static bool job_waits(job *j, double ms, void (*next)(job *j)) {
    j->due_ns += (int64_t)(ms * 1e6);
    int64_t wait_ns = j->due_ns - llmkit_loop_now_ns(j->mock->loop);
    if (wait_ns <= 0) return false;
    uint32_t wait_ms = (uint32_t)((wait_ns + 999999) / 1000000);
    j->next = next;
    j->posted = llmkit_loop_post(j->mock->loop, wait_ms, job_on_post, j) == LLMKIT_OK;
    return j->posted;
}

static void job_later(job *j, double ms, void (*next)(job *j)) {
    if (!job_waits(j, ms, next)) next(j);
}

/* ---- chance ---------------------------------------------------------------------------------- */

static uint64_t next_random(mock *m) { /* splitmix64 (Steele, Lea and Flood, 2014) */
    uint64_t z = m->random += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static double next_unit(mock *m) {
    return (double)(next_random(m) >> 11) * 0x1p-53;
}

static bool happens(mock *m, double rate) {
    return rate > 0 && next_unit(m) < rate;
}

/* base to the power z, for base >= 1 and |z| <= 6: the whole part by multiplication, each further
 * bit by a square root, so that no libm is needed. */
static double square_root(double x) {
    double root = x > 1 ? x : 1;
    for (int i = 0; i < 40; i++) root = (root + x / root) / 2;
    return root;
}

static double power(double base, double z) {
    double result = 1, factor = z < 0 ? 1 / base : base;
    double left = z < 0 ? -z : z;
    for (; left >= 1; left -= 1) result *= factor;
    for (int i = 0; i < 10; i++) {
        factor = square_root(factor);
        left *= 2;
        if (left < 1) continue;
        result *= factor;
        left -= 1;
    }
    return result;
}

static double next_latency_ms(mock *m) {
    const options *o = &m->options;
    if (o->latency_dist == FIXED) return o->latency_ms;
    if (o->latency_dist == UNIFORM) {
        double ms = o->latency_ms + o->jitter_ms * (2 * next_unit(m) - 1);
        return ms > 0 ? ms : 0;
    }
    double z = -6; /* twelve uniform numbers are nearly a normal one */
    for (int i = 0; i < 12; i++) z += next_unit(m);
    return o->latency_ms > 0 ? o->latency_ms * power(1 + o->jitter_ms / o->latency_ms, z) : 0;
}

/* ---- errors ---------------------------------------------------------------------------------- */

typedef struct problem {
    int         status;
    const char *message;
    const char *type, *param, *code; /* param and code may be NULL */
} problem;

static void add_nullable(text *t, const char *name, const char *value) {
    if (value)
        text_fmt(t, ",\"%s\":\"%s\"", name, value);
    else
        text_fmt(t, ",\"%s\":null", name);
}

static void write_problem(text *t, const problem *p) {
    text_fmt(t, "{\"error\":{\"message\":\"%s\",\"type\":\"%s\"", p->message, p->type);
    add_nullable(t, "param", p->param);
    add_nullable(t, "code", p->code);
    text_fmt(t, "}}");
}

static void reply_problem(mock *m, llmkit_exchange *x, const problem *p) {
    m->scratch.len = 0;
    write_problem(&m->scratch, p);
    llmkit_exchange_reply(x, p->status, "application/json", text_view(&m->scratch));
}

static problem problem_of_status(int status) {
    switch (status) {
    case 401:
        return (problem){ 401, "Incorrect API key provided.", "invalid_request_error", NULL,
                          "invalid_api_key" };
    case 429:
        return (problem){ 429, "Rate limit reached for requests.", "requests", NULL,
                          "rate_limit_exceeded" };
    default: break;
    }
    if (status < 500)
        return (problem){ status, "The mock was asked to refuse this request.",
                          "invalid_request_error", NULL, NULL };
    return (problem){ status, "The server had an error while processing your request.",
                      "server_error", NULL, NULL };
}

static void set_milliseconds(llmkit_exchange *x, const char *name, int64_t ns) {
    char value[32];
    snprintf(value, sizeof value, "%" PRId64, (ns + 999999) / 1000000);
    llmkit_exchange_set(x, name, value);
}

static void refuse_limited(mock *m, llmkit_exchange *x, int64_t wait_ns) {
    char seconds[32];
    problem p = problem_of_status(429);
    snprintf(seconds, sizeof seconds, "%" PRId64, (wait_ns + 999999999) / 1000000000);
    m->limited++;
    llmkit_exchange_set(x, "retry-after", seconds);
    set_milliseconds(x, "retry-after-ms", wait_ns);
    reply_problem(m, x, &p);
}

/* ---- reading a request ----------------------------------------------------------------------- */

/* Walking JSON that llmkit_json_find has found valid, without parsing it again.  A value is its raw
 * text, quotes and brackets included. */
static size_t skip_blank(llmkit_str json, size_t at) {
    while (at < json.len && strchr(" \t\r\n,:", json.ptr[at])) at++;
    return at;
}

static size_t skip_string(llmkit_str json, size_t at) {
    for (at++; json.ptr[at] != '"'; at++)
        if (json.ptr[at] == '\\') at++;
    return at + 1;
}

static size_t skip_value(llmkit_str json, size_t at) {
    int depth = 0;
    do {
        char c = json.ptr[at];
        if (c == '"') {
            at = skip_string(json, at);
            continue;
        }
        if (c == '{' || c == '[') depth++;
        if (c == '}' || c == ']') depth--;
        at++;
        if (depth == 0 && c != '}' && c != ']') at += strcspn(json.ptr + at, ",]} \t\r\n");
    } while (depth > 0);
    return at;
}

/* The next element of an array, or the next member of an object (key NULL, else its name without
 * quotes).  *at begins as 1, after the bracket. */
static bool next_child(llmkit_str json, size_t *at, llmkit_str *key, llmkit_str *value) {
    size_t start = skip_blank(json, *at);
    if (start >= json.len || json.ptr[start] == ']' || json.ptr[start] == '}') return false;
    if (key) {
        size_t end = skip_string(json, start);
        *key = (llmkit_str){ json.ptr + start + 1, end - start - 2 };
        start = skip_blank(json, end);
    }
    *at = skip_value(json, start);
    *value = (llmkit_str){ json.ptr + start, *at - start };
    return true;
}

static llmkit_str member(llmkit_str object, const char *name) {
    llmkit_str key, value;
    if (object.len == 0 || object.ptr[0] != '{') return LLMKIT_STR("");
    for (size_t at = 1; next_child(object, &at, &key, &value);)
        if (str_is(key, name)) return value;
    return LLMKIT_STR("");
}

/* What stands between the quotes of a string, "" of anything else. */
static llmkit_str inside(llmkit_str value) {
    if (value.len < 2 || value.ptr[0] != '"') return LLMKIT_STR("");
    return (llmkit_str){ value.ptr + 1, value.len - 2 };
}

/* The last user message: its string, or the first of its parts that is text. */
static llmkit_str last_user_text(llmkit_str messages) {
    llmkit_str message, part, content = LLMKIT_STR("");
    for (size_t at = 1; next_child(messages, &at, NULL, &message);)
        if (str_is(member(message, "role"), "\"user\"")) content = member(message, "content");
    if (content.len == 0 || content.ptr[0] != '[') return inside(content);
    for (size_t at = 1; next_child(content, &at, NULL, &part);)
        if (str_is(member(part, "type"), "\"text\"")) return inside(member(part, "text"));
    return LLMKIT_STR("");
}

static bool is_served(const mock *m, llmkit_str model) {
    const lk_texts *models = &m->options.models;
    for (size_t i = 0; i < models->num; i++)
        if (str_is(model, models->item[i])) return true;
    return models->num == 0;
}

/* What a request says that matters here, as raw values. */
typedef struct asked {
    llmkit_str model, messages, stream, stream_options, tools, tool_choice, max_tokens;
} asked;

static asked read_members(llmkit_str body) {
    asked a = { 0 };
    llmkit_str key, value;
    for (size_t at = 1; next_child(body, &at, &key, &value);) {
        if (str_is(key, "model")) a.model = inside(value);
        if (str_is(key, "messages")) a.messages = value;
        if (str_is(key, "stream")) a.stream = value;
        if (str_is(key, "stream_options")) a.stream_options = value;
        if (str_is(key, "tools")) a.tools = value;
        if (str_is(key, "tool_choice")) a.tool_choice = value;
        if (str_is(key, "max_tokens") || str_is(key, "max_completion_tokens")) a.max_tokens = value;
    }
    return a;
}

static bool mentions(llmkit_str prompt, const char *words) {
    size_t len = strlen(words);
    for (size_t at = 0; at + len <= prompt.len; at++)
        if (memcmp(prompt.ptr + at, words, len) == 0) return true;
    return false;
}

/* The name of the tool to call, "" for none. */
static llmkit_str chosen_tool(const asked *a, llmkit_str prompt) {
    llmkit_str tool;
    size_t at = 1;
    if (a->tools.len == 0 || a->tools.ptr[0] != '[') return LLMKIT_STR("");
    llmkit_str named = inside(member(member(a->tool_choice, "function"), "name"));
    if (named.len) return named;
    bool wanted = str_is(a->tool_choice, "\"required\"") || mentions(prompt, "use the tool");
    if (!wanted || !next_child(a->tools, &at, NULL, &tool)) return LLMKIT_STR("");
    return inside(member(member(tool, "function"), "name"));
}

static size_t word_end(llmkit_str words, size_t at) {
    while (at < words.len && words.ptr[at] == ' ') at++;
    while (at < words.len && words.ptr[at] != ' ') at++;
    return at;
}

static size_t count_words(llmkit_str words) {
    size_t num = 0;
    for (size_t at = 0; at < words.len; at = word_end(words, at)) num++;
    return num;
}

static void write_echo(job *j, llmkit_str prompt) {
    text_add(&j->words, LLMKIT_STR("echo: "));
    text_add(&j->words, prompt);
    j->num_words = count_words(text_view(&j->words));
    for (; j->num_words < j->mock->options.tokens; j->num_words++)
        text_add(&j->words, LLMKIT_STR(" word"));
}

/* A JSON text inside a JSON string: escaped once more. */
static void write_arguments(job *j, llmkit_str prompt) {
    text inner = { 0 };
    text_fmt(&inner, "{\"input\":\"");
    text_add(&inner, prompt);
    text_fmt(&inner, "\"}");
    text_escape(&j->words, text_view(&inner));
    free(inner.ptr);
    j->num_words = count_words(text_view(&j->words));
    j->finish = "tool_calls";
}

static void apply_max_tokens(job *j, llmkit_str max_tokens) {
    double most;
    if (max_tokens.len == 0 || llmkit_json_number(max_tokens, &most)) return;
    if (most < 1 || (double)j->num_words <= most) return;
    size_t at = 0;
    for (j->num_words = 0; j->num_words < (size_t)most; j->num_words++)
        at = word_end(text_view(&j->words), at);
    j->words.len = at;
    j->finish = "length";
}

static problem problem_of_request(const char *message) {
    return (problem){ 400, message, "invalid_request_error", NULL, NULL };
}

/* Fills the job; false: *p says what is wrong. */
static bool read_request(job *j, llmkit_str body, problem *p) {
    llmkit_str document, first;
    *p = problem_of_request("We could not parse the JSON body of your request.");
    if (llmkit_json_find(body, "", &document) || document.ptr[0] != '{') return false;
    if (document.ptr > body.ptr && document.ptr[-1] == '"') return false; /* "{": a string */
    asked a = read_members(document);
    j->model = a.model;
    *p = problem_of_request("you must provide a model parameter");
    if (a.model.len == 0) return false;
    *p = (problem){ 404, "The model does not exist or you do not have access to it.",
                    "invalid_request_error", NULL, "model_not_found" };
    if (!is_served(j->mock, a.model)) return false;
    *p = (problem){ 400, "Missing required parameter: 'messages'.", "invalid_request_error",
                    "messages", "missing_required_parameter" };
    size_t at = 1;
    if (a.messages.len == 0 || a.messages.ptr[0] != '[' ||
        !next_child(a.messages, &at, NULL, &first))
        return false;
    llmkit_str prompt = last_user_text(a.messages);
    j->prompt_tokens = (a.messages.len + 3) / 4; /* the usual rule of thumb: four bytes a token */
    j->stream = str_is(a.stream, "true");
    j->include_usage = j->stream && str_is(member(a.stream_options, "include_usage"), "true");
    j->tool = chosen_tool(&a, prompt);
    if (j->tool.len)
        write_arguments(j, prompt);
    else
        write_echo(j, prompt);
    apply_max_tokens(j, a.max_tokens);
    return true;
}

static long header_number(const llmkit_exchange *x, const char *name) {
    llmkit_str value = llmkit_exchange_header(x, name);
    return value.len ? strtol(value.ptr, NULL, 10) : NOWHERE;
}

static void plan_faults(job *j) {
    mock *m = j->mock;
    const options *o = &m->options;
    const llmkit_exchange *x = j->exchange;
    long middle = j->stream ? (long)j->num_words / 2 + 1 : 100;
    bool fails = j->number <= o->fail_first || happens(m, o->error_rate);
    if (fails) j->status = (int)o->error_status;
    if (happens(m, o->cut_rate)) j->cut_at = middle;
    if (happens(m, o->stall_rate)) j->stall_at = middle;
    long status = header_number(x, "x-mock-status");
    if (status >= 200 && status <= 599) j->status = (int)status;
    j->delay_ms = header_number(x, "x-mock-delay-ms");
    long cut = header_number(x, "x-mock-cut"), stall = header_number(x, "x-mock-stall");
    if (cut >= 0) j->cut_at = cut;
    if (stall >= 0) j->stall_at = stall;
    j->error_at = header_number(x, "x-mock-error-in-stream");
}

/* ---- writing a reply ------------------------------------------------------------------------- */

static void write_frame(job *j, const char *object) {
    text_fmt(&j->frame,
             "{\"id\":\"chatcmpl-mock-%08" PRIx64 "\",\"object\":\"%s\",\"created\":%" PRId64
             ",\"model\":\"",
             j->number, object, (int64_t)time(NULL));
    text_add(&j->frame, j->model);
    text_add(&j->frame, LLMKIT_STR("\",\"service_tier\":\"default\","
                                   "\"system_fingerprint\":\"fp_llmkit_mock\""));
}

static void write_usage(text *t, const job *j) {
    text_fmt(t,
             "{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,\"total_tokens\":%zu,"
             "\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},"
             "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0,"
             "\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}}",
             j->prompt_tokens, j->num_words, j->prompt_tokens + j->num_words);
}

static void write_tool_call(text *t, const job *j, llmkit_str arguments) {
    text_fmt(t, "\"id\":\"call_mock_%08" PRIx64 "\",\"type\":\"function\",", j->number);
    text_add(t, LLMKIT_STR("\"function\":{\"name\":\""));
    text_add(t, j->tool);
    text_fmt(t, "\",\"arguments\":\"");
    text_add(t, arguments);
    text_fmt(t, "\"}}]");
}

static void write_whole(text *t, const job *j) {
    text_add(t, text_view(&j->frame));
    text_add(t, LLMKIT_STR(",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                           "\"content\":"));
    if (j->tool.len) {
        text_add(t, LLMKIT_STR("null,\"tool_calls\":[{"));
        write_tool_call(t, j, text_view(&j->words));
    } else {
        text_add(t, LLMKIT_STR("\""));
        text_add(t, text_view(&j->words));
        text_add(t, LLMKIT_STR("\""));
    }
    text_add(t, LLMKIT_STR(",\"refusal\":null,\"annotations\":[]},\"logprobs\":null,"));
    text_fmt(t, "\"finish_reason\":\"%s\"}],\"usage\":", j->finish);
    write_usage(t, j);
    text_add(t, LLMKIT_STR("}"));
}

static void write_delta(text *t, const job *j) {
    llmkit_str words = text_view(&j->words);
    llmkit_str word = { words.ptr + j->word_at, word_end(words, j->word_at) - j->word_at };
    if (j->stage == AT_ROLE) {
        text_fmt(t, "{\"role\":\"assistant\",\"content\":%s", j->tool.len ? "null" : "\"\"");
        if (j->tool.len) {
            text_fmt(t, ",\"tool_calls\":[{\"index\":0,");
            write_tool_call(t, j, LLMKIT_STR(""));
        }
        text_fmt(t, ",\"refusal\":null}");
    } else if (j->stage == AT_FINISH) {
        text_fmt(t, "{}");
    } else {
        text_add(t, j->tool.len
                        ? LLMKIT_STR("{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"")
                        : LLMKIT_STR("{\"content\":\""));
        text_add(t, word);
        text_add(t, j->tool.len ? LLMKIT_STR("\"}}]}") : LLMKIT_STR("\"}"));
    }
}

/* The chunk of this stage into scratch, as an event. */
static void write_chunk(text *t, const job *j) {
    t->len = 0;
    text_add(t, LLMKIT_STR("data: "));
    if (j->stage == AT_DONE) {
        text_add(t, LLMKIT_STR("[DONE]\n\n"));
        return;
    }
    text_add(t, text_view(&j->frame));
    if (j->stage == AT_USAGE) {
        text_add(t, LLMKIT_STR(",\"choices\":[],\"usage\":"));
        write_usage(t, j);
        text_add(t, LLMKIT_STR("}\n\n"));
        return;
    }
    text_add(t, LLMKIT_STR(",\"choices\":[{\"index\":0,\"delta\":"));
    write_delta(t, j);
    if (j->stage == AT_FINISH)
        text_fmt(t, ",\"logprobs\":null,\"finish_reason\":\"%s\"}]", j->finish);
    else
        text_add(t, LLMKIT_STR(",\"logprobs\":null,\"finish_reason\":null}]"));
    if (j->include_usage) text_add(t, LLMKIT_STR(",\"usage\":null"));
    text_add(t, LLMKIT_STR("}\n\n"));
}

static void advance(job *j) {
    j->sent++;
    if (j->stage == AT_WORDS) j->word_at = word_end(text_view(&j->words), j->word_at);
    if (j->stage == AT_WORDS && j->word_at < j->words.len) return;
    j->stage++;
    if (j->stage == AT_WORDS && j->words.len == 0) j->stage++;
    if (j->stage == AT_USAGE && !j->include_usage) j->stage++;
}

/* ---- sending it ------------------------------------------------------------------------------ */

static void cut(job *j) {
    j->mock->broken++;
    llmkit_exchange_abort(j->exchange);
    job_free(j);
}

static void stall(job *j) {
    j->mock->broken++;
    j->stalled = true;
}

static void end_stream(job *j) {
    llmkit_exchange_end(j->exchange);
    job_free(j);
}

static void send_stream_error(job *j) {
    text *t = &j->mock->scratch;
    problem p = problem_of_status(500);
    j->mock->failed++;
    t->len = 0;
    text_add(t, LLMKIT_STR("data: "));
    write_problem(t, &p);
    text_add(t, LLMKIT_STR("\n\n"));
    llmkit_exchange_write(j->exchange, text_view(t));
    end_stream(j);
}

static void send_chunks(job *j);

static void on_writable(void *user) {
    send_chunks(user);
}

/* Chunks until the end, a pause, a fault or a client that does not read. */
static void send_chunks(job *j) {
    text *t = &j->mock->scratch;
    while (j->stage != AT_END) {
        if (j->sent == j->cut_at) {
            job_later(j, 1, cut); /* what was written gets out first */
            return;
        }
        if (j->sent == j->stall_at) {
            stall(j);
            return;
        }
        if (j->sent == j->error_at) {
            send_stream_error(j);
            return;
        }
        write_chunk(t, j);
        if (!llmkit_exchange_write(j->exchange, text_view(t))) {
            llmkit_exchange_writable(j->exchange, on_writable, j);
            return;
        }
        bool paced = j->stage == AT_WORDS && j->mock->options.token_ms > 0;
        advance(j);
        if (paced && job_waits(j, j->mock->options.token_ms, send_chunks)) return;
    }
    j->mock->answered++;
    end_stream(j);
}

/* A part of the body in chunks, and then nothing, or the cut. */
static void send_part(job *j, llmkit_str body, long len, void (*then)(job *j)) {
    if ((size_t)len < body.len) body.len = (size_t)len;
    if (llmkit_exchange_begin(j->exchange, 200, "application/json") == LLMKIT_OK)
        llmkit_exchange_write(j->exchange, body);
    if (then == cut)
        job_later(j, 1, cut);
    else
        then(j);
}

static void send_whole(job *j) {
    text *t = &j->mock->scratch;
    t->len = 0;
    write_whole(t, j);
    if (j->cut_at != NOWHERE) {
        send_part(j, text_view(t), j->cut_at, cut);
    } else if (j->stall_at != NOWHERE) {
        send_part(j, text_view(t), j->stall_at, stall);
    } else {
        j->mock->answered++;
        llmkit_exchange_reply(j->exchange, 200, "application/json", text_view(t));
        job_free(j);
    }
}

static void send_failure(job *j) {
    problem p = problem_of_status(j->status);
    llmkit_str after = llmkit_exchange_header(j->exchange, "x-mock-retry-after");
    if (after.ptr) llmkit_exchange_set(j->exchange, "retry-after", after.ptr);
    j->mock->failed++;
    reply_problem(j->mock, j->exchange, &p);
    job_free(j);
}

/* The latency has passed. */
static void answer(job *j) {
    if (j->cut_at == 0) {
        cut(j);
        return;
    }
    if (j->status != 200) {
        send_failure(j);
        return;
    }
    write_frame(j, j->stream ? "chat.completion.chunk" : "chat.completion");
    if (!j->stream) {
        double rest_ms = j->mock->options.token_ms * (double)j->num_words;
        job_later(j, rest_ms, send_whole);
        return;
    }
    llmkit_exchange_set(j->exchange, "cache-control", "no-cache");
    if (llmkit_exchange_begin(j->exchange, 200, "text/event-stream; charset=utf-8"))
        cut(j);
    else
        send_chunks(j);
}

/* ---- requests -------------------------------------------------------------------------------- */

static void set_limit_fields(mock *m, llmkit_exchange *x) {
    const options *o = &m->options;
    char value[48];
    double burst = o->rate_burst > 0 ? o->rate_burst : o->rate_limit < 1 ? 1 : o->rate_limit;
    double level = llmkit_bucket_level(m->bucket, llmkit_loop_now_ns(m->loop));
    snprintf(value, sizeof value, "%.0f", burst);
    llmkit_exchange_set(x, "x-ratelimit-limit-requests", value);
    snprintf(value, sizeof value, "%.0f", level > 0.5 ? level - 0.5 : 0); /* whole ones, down */
    llmkit_exchange_set(x, "x-ratelimit-remaining-requests", value);
    snprintf(value, sizeof value, "%.0fms", (burst - level) / o->rate_limit * 1000);
    llmkit_exchange_set(x, "x-ratelimit-reset-requests", value);
}

static bool chat(mock *m, llmkit_exchange *x) {
    job *j = job_create(m, x);
    if (!j) return false;
    char id[32];
    problem p;
    snprintf(id, sizeof id, "req_mock_%08" PRIx64, j->number);
    llmkit_exchange_set(x, "x-request-id", id);
    int64_t wait_ns = 0;
    if (m->bucket) {
        wait_ns = llmkit_bucket_take(m->bucket, 1, j->due_ns);
        set_limit_fields(m, x);
    }
    if (wait_ns > 0) {
        refuse_limited(m, x, wait_ns);
        job_free(j);
    } else if (!read_request(j, llmkit_exchange_body(x), &p)) {
        m->refused++;
        reply_problem(m, x, &p);
        job_free(j);
    } else {
        plan_faults(j);
        llmkit_exchange_closed(x, job_on_closed, j);
        job_later(j, j->delay_ms >= 0 ? (double)j->delay_ms : next_latency_ms(m), answer);
    }
    return true;
}

static bool list_models(mock *m, llmkit_exchange *x) {
    const lk_texts *models = &m->options.models;
    text *t = &m->scratch;
    t->len = 0;
    text_fmt(t, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < models->num || i == 0; i++) {
        const char *name = models->num ? models->item[i] : "mock";
        text_fmt(t, "%s{\"id\":\"", i ? "," : "");
        text_escape(t, (llmkit_str){ name, strlen(name) });
        text_fmt(t, "\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"llmkit\"}");
    }
    text_fmt(t, "]}");
    llmkit_exchange_reply(x, 200, "application/json", text_view(t));
    return true;
}

static bool is_authorised(const mock *m, const llmkit_exchange *x) {
    static const char scheme[] = "Bearer ";
    const char *key = m->options.api_key;
    llmkit_str value = llmkit_exchange_header(x, "authorization");
    size_t len = sizeof scheme - 1;
    if (!key) return true;
    return value.len > len && memcmp(value.ptr, scheme, len) == 0 &&
           strcmp(value.ptr + len, key) == 0;
}

static bool reply_unknown(mock *m, llmkit_exchange *x) {
    problem p = { 404, "Invalid URL.", "invalid_request_error", NULL, NULL };
    m->refused++;
    reply_problem(m, x, &p);
    return true;
}

static bool handle(void *user, llmkit_exchange *x) {
    mock *m = user;
    llmkit_str path = llmkit_exchange_path(x);
    bool get = str_is(llmkit_exchange_method(x), "GET");
    bool post = str_is(llmkit_exchange_method(x), "POST");
    if (get && str_is(path, "/healthz")) {
        llmkit_exchange_reply(x, 200, "application/json", LLMKIT_STR("{\"status\":\"ok\"}"));
        return true;
    }
    if (!is_authorised(m, x)) {
        problem p = problem_of_status(401);
        m->refused++;
        reply_problem(m, x, &p);
        return true;
    }
    if (post && str_is(path, "/v1/chat/completions")) return chat(m, x);
    if (get && str_is(path, "/v1/models")) return list_models(m, x);
    return reply_unknown(m, x);
}

/* ---- the command ----------------------------------------------------------------------------- */

static llmkit_loop *running; /* for the signal handler alone */

static void on_stop(int signal) {
    (void)signal;
    llmkit_loop_stop(running);
}

static bool open_tls(mock *m, llmkit_error *error) {
    const options *o = &m->options;
    if (!o->tls) return true;
    if (!o->cert || !o->key) {
        snprintf(error->message, sizeof error->message, "--tls needs --cert and --key");
        return false;
    }
    llmkit_tls_desc desc = { .cert_file = o->cert, .key_file = o->key };
    m->tls = llmkit_tls_create(&desc, error);
    return m->tls != NULL;
}

static bool open_all(mock *m, llmkit_error *error) {
    const options *o = &m->options;
    if (o->rate_limit > 0) {
        m->bucket = llmkit_bucket_create(NULL, (llmkit_rate){ o->rate_limit, o->rate_burst });
        if (!m->bucket) {
            snprintf(error->message, sizeof error->message, "no memory for --rate_limit");
            return false;
        }
    }
    if (!open_tls(m, error)) return false;
    m->loop = llmkit_loop_create(NULL, error);
    if (!m->loop) return false;
    m->server = llmkit_server_create(
        &(llmkit_server_desc){ .loop = m->loop, .tls = m->tls, .listen = o->listen,
                               .max_connections = 1 << 20, .handle = handle, .user = m },
        error);
    return m->server != NULL;
}

static void print_address(const mock *m) {
    const char *listen = m->options.listen;
    if (strncmp(listen, "unix:", 5) == 0) {
        printf("listening on %s\n", listen);
    } else {
        int len = (int)(strrchr(listen, ':') - listen);
        printf("listening on http%s://%.*s:%u\n", m->tls ? "s" : "", len, listen,
               (unsigned)llmkit_server_port(m->server));
    }
    fflush(stdout);
}

/* First what is being answered is finished; a second signal ends that. */
static void run(mock *m) {
    llmkit_loop_run(m->loop);
    llmkit_server_drain(m->server);
    for (job *j = m->all_jobs; j; j = j->next_all) {
        if (!j->exchange || !j->stalled) continue;
        llmkit_exchange_abort(j->exchange);
        job_free(j);
    }
    llmkit_loop_run(m->loop);
}

static void print_counts(const mock *m) {
    llmkit_server_stats s = llmkit_server_read(m->server);
    lk_say("mock: %" PRIu64 " requests on %" PRIu64 " connections: %" PRIu64 " answered, %" PRIu64
           " failed on purpose, %" PRIu64 " over the limit, %" PRIu64 " cut or stalled, %" PRIu64
           " refused",
           s.requests, s.connections, m->answered, m->failed, m->limited, m->broken,
           m->refused + s.refused);
}

static void close_all(mock *m) {
    llmkit_server_destroy(m->server);
    if (m->loop) llmkit_loop_destroy(m->loop);
    if (m->tls) llmkit_tls_release(m->tls);
    if (m->bucket) llmkit_bucket_release(m->bucket);
    while (m->all_jobs) {
        job *j = m->all_jobs;
        m->all_jobs = j->next_all;
        free(j->words.ptr);
        free(j->frame.ptr);
        free(j);
    }
    free(m->scratch.ptr);
}

int lk_mock_main(int argc, char **argv) {
    static mock m; /* its options hold room for hundreds of --model */
    int status;
    m.options = (options){ .listen = "127.0.0.1:8080", .error_status = 500, .seed = 1 };
    if (!lk_args_parse(&args, &m.options, &argc, argv, &status)) return status;
    m.random = m.options.seed;
    llmkit_error error = { 0 };
    lk_raise_descriptor_limit();
    if (open_all(&m, &error)) {
        print_address(&m);
        running = m.loop;
        lk_catch_stop(on_stop);
        run(&m);
        lk_catch_stop(SIG_IGN); /* what the handler would stop is going */
        if (!m.options.quiet) print_counts(&m);
    } else {
        lk_say("%s", error.message);
        status = 1;
    }
    close_all(&m);
    return status;
}
