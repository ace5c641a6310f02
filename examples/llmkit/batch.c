/* examples/llmkit/batch.c -- llmkit batch: a file of requests at a chosen rate */
#define _POSIX_C_SOURCE 200809L

#include "llmkit.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "args.h"
#include "command.h"

typedef struct options {
    const char *requests, *save, *errors, *model, *system, *ca;
    lk_texts    endpoints;
    bool        append, quiet;
    uint64_t    skip;
    double      rate;
    uint32_t    max_attempts, max_in_flight, warm, max_tokens, max_line_bytes;
    uint32_t    backoff_ms, max_backoff_ms, max_retry_after_ms;
    uint32_t    connect_ms, tls_ms, first_byte_ms, idle_ms, total_ms;
} options;

/* ---- flags ----------------------------------------------------------------------------------- */

#define FIELD(name) .field = offsetof(options, name)
#define MS          .kind = LK_FLAG_COUNT, .value = "MS", .min = 1, .max = UINT32_MAX

static const lk_flag flags[] = {
    { .name = "requests_filepath", .kind = LK_FLAG_TEXT, FIELD(requests), .value = "FILE",
      .required = true, .help = "one {\"input\": \"...\"} on each line" },
    { .name = "save_filepath", .kind = LK_FLAG_TEXT, FIELD(save), .value = "FILE",
      .help = "for replies (the requests' name with _results.jsonl at its end)" },
    { .name = "errors_filepath", .kind = LK_FLAG_TEXT, FIELD(errors), .value = "FILE",
      .help = "for lines that failed (errors.jsonl beside the replies)" },
    { .name = "append", .kind = LK_FLAG_BOOL, FIELD(append),
      .help = "add to these two files; else they must be new or empty" },
    { .name = "skip", .kind = LK_FLAG_COUNT64, FIELD(skip), .value = "N",
      .help = "leave out the first N lines, which an earlier run has done" },
    { .name = "max_line_bytes", .kind = LK_FLAG_COUNT, FIELD(max_line_bytes), .value = "N",
      .min = 1, .max = 1 << 30, .help = "longer lines are errors (16 MiB)" },
    { .name = "quiet", .letter = 'q', .kind = LK_FLAG_BOOL, FIELD(quiet),
      .help = "no progress and no summary" },
    { .kind = LK_FLAG_HEADING, .help = "Requests" },
    { .name = "endpoint", .kind = LK_FLAG_TEXTS, FIELD(endpoints),
      .value = "URL[,weight=N][,model=M][,key_env=NAME][,name=NAME]", .required = true,
      .help = "such as https://host/v1; may be repeated, each gets requests by its weight (1)" },
    { .name = "model", .letter = 'm', .kind = LK_FLAG_TEXT, FIELD(model), .value = "M",
      .help = "for endpoints without one of their own (gpt-4o-mini)" },
    { .name = "system", .kind = LK_FLAG_TEXT, FIELD(system), .value = "TEXT",
      .help = "what the model is told before each input" },
    { .name = "max_tokens", .kind = LK_FLAG_COUNT, FIELD(max_tokens), .value = "N", .min = 1,
      .max = UINT32_MAX, .help = "of each reply (the model's own limit)" },
    { .name = "ca", .kind = LK_FLAG_TEXT, FIELD(ca), .value = "FILE",
      .help = "PEM certificates to trust (the system's)" },
    { .kind = LK_FLAG_HEADING, .help = "Pace" },
    { .name = "max_requests_per_second", .kind = LK_FLAG_NUMBER, FIELD(rate), .value = "N",
      .help = "retries included (no limit)" },
    { .name = "max_attempts", .kind = LK_FLAG_COUNT, FIELD(max_attempts), .value = "N", .min = 1,
      .max = 1000, .help = "for each line, the first included (3)" },
    { .name = "max_in_flight", .kind = LK_FLAG_COUNT, FIELD(max_in_flight), .value = "N", .min = 1,
      .max = 1000000, .help = "requests at once, those that wait for a retry included (4096)" },
    { .name = "warm", .kind = LK_FLAG_COUNT, FIELD(warm), .value = "N", .min = 1, .max = 1000000,
      .help = "connections opened before the clock starts (50 ms' worth of requests, at most "
              "512)" },
    { .name = "backoff_ms", MS, FIELD(backoff_ms),
      .help = "before the first retry, doubled for each further (500)" },
    { .name = "max_backoff_ms", MS, FIELD(max_backoff_ms), .help = "(8000)" },
    { .name = "max_retry_after_ms", MS, FIELD(max_retry_after_ms),
      .help = "an endpoint that asks for a longer wait fails the line (120000)" },
    { .kind = LK_FLAG_HEADING, .help = "Deadlines of one attempt" },
    { .name = "connect_ms", MS, FIELD(connect_ms), .help = "name and connection (10000)" },
    { .name = "tls_ms", MS, FIELD(tls_ms), .help = "handshake (10000)" },
    { .name = "first_byte_ms", MS, FIELD(first_byte_ms), .help = "of the reply (600000)" },
    { .name = "idle_ms", MS, FIELD(idle_ms), .help = "between two bytes of it (60000)" },
    { .name = "total_ms", MS, FIELD(total_ms), .help = "(600000)" },
};

static const lk_args args = {
    .command = "llmkit batch",
    .operands = "",
    .about = "Sends each line of a file to a model, at a steady rate and over any number of\n"
             "endpoints, and writes each as one line to one of two files, in order of completion.",
    .flags = flags,
    .num_flags = sizeof flags / sizeof flags[0],
    .notes =
        "An endpoint's key is the value of its key_env; without one, OPENAI_API_KEY is sent to\n"
        "https://api.openai.com alone, and no key to any other.\n"
        "Interrupted once, it finishes what is in flight; twice, it records that as cancelled.\n"
        "Exit status: 0 if every line was saved, 2 if some were not, 1 if it could not run.",
};

/* ---- endpoints ------------------------------------------------------------------------------- */

/* Sets one ",name=value" of an endpoint. */
static bool set_part(llmkit_endpoint *e, const char *name, const char *value) {
    if (strcmp(name, "weight") == 0) {
        char *end;
        e->weight = strtod(value, &end);
        if (end != value && *end == '\0' && e->weight > 0 && e->weight <= 1e6) return true;
        lk_say("batch: %s: weight must be above 0 and at most 1000000, not '%s'", e->base_url,
               value);
        return false;
    }
    if (strcmp(name, "key_env") == 0) {
        e->api_key = getenv(value);
        if (e->api_key && e->api_key[0]) return true;
        lk_say("batch: %s: there is no %s in the environment", e->base_url, value);
        return false;
    }
    if (strcmp(name, "model") == 0) {
        e->model = value;
    } else if (strcmp(name, "name") == 0) {
        e->name = value;
    } else {
        lk_say("batch: %s: '%s' is not one of weight, model, key_env and name", e->base_url, name);
        return false;
    }
    return true;
}

/* A key goes only where it is meant to. */
static bool is_openai(const char *url) {
    static const char start[] = "https://api.openai.com";
    size_t len = sizeof start - 1;
    return strncasecmp(url, start, len) == 0 && (url[len] == '/' || url[len] == '\0');
}

/* Cuts text at its commas; the endpoint points into it. */
static bool read_endpoint(llmkit_endpoint *e, char *text) {
    char *part = strchr(text, ',');
    e->base_url = text;
    while (part) {
        *part++ = '\0';
        char *name = part, *value = strchr(part, '=');
        part = strchr(part, ',');
        if (part) *part = '\0';
        if (value) *value++ = '\0';
        if (!set_part(e, name, value ? value : "")) return false;
    }
    if (!e->api_key && is_openai(e->base_url)) e->api_key = getenv("OPENAI_API_KEY");
    return true;
}

typedef struct endpoints {
    llmkit_endpoint item[LK_MAX_TEXTS];
    char           *text[LK_MAX_TEXTS];
    size_t          num;
} endpoints;

static bool read_endpoints(endpoints *all, const lk_texts *given) {
    for (size_t i = 0; i < given->num; i++) {
        char *text = strdup(given->item[i]);
        if (!text) {
            lk_say("batch: no memory for the endpoints");
            return false;
        }
        all->text[all->num] = text;
        if (!read_endpoint(&all->item[all->num++], text)) return false;
    }
    return true;
}

static void free_endpoints(endpoints *all) {
    for (size_t i = 0; i < all->num; i++) free(all->text[i]);
}

/* ---- words for numbers ----------------------------------------------------------------------- */

typedef struct words {
    char text[32];
} words;

/* 1234567: "1,234,567" */
static words count_of(uint64_t n) {
    char digits[24];
    words w;
    char *out = w.text;
    int len = snprintf(digits, sizeof digits, "%" PRIu64, n);
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) *out++ = ',';
        *out++ = digits[i];
    }
    *out = '\0';
    return w;
}

static words time_of(double ms) {
    words w;
    if (ms < 950)
        snprintf(w.text, sizeof w.text, "%.1f ms", ms);
    else if (ms < 100000)
        snprintf(w.text, sizeof w.text, "%.3f s", ms / 1000);
    else
        snprintf(w.text, sizeof w.text, "%.0f s", ms / 1000);
    return w;
}

/* 3725: "1:02:05" */
static words clock_of(double seconds) {
    words w;
    uint64_t s = seconds < 1e9 ? (uint64_t)(seconds + 0.5) : 1000000000;
    if (s < 3600)
        snprintf(w.text, sizeof w.text, "%" PRIu64 ":%02" PRIu64, s / 60, s % 60);
    else
        snprintf(w.text, sizeof w.text, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, s / 3600,
                 s / 60 % 60, s % 60);
    return w;
}

static double per_second(uint64_t n, int64_t ns) {
    return ns > 0 ? (double)n * 1e9 / (double)ns : 0;
}

static double ms_of(int64_t ns) {
    return (double)ns / 1e6;
}

/* ---- progress -------------------------------------------------------------------------------- */

/* For the signal handler. */
static llmkit_batch *running;
static volatile sig_atomic_t interrupts;

static void on_stop(int signal) {
    (void)signal;
    interrupts++;
    llmkit_batch_stop(running);
}

enum { BAR_WIDTH = 10, LINE_BYTES = 256 };

/* What the progress line remembers from one call to the next. */
typedef struct progress {
    bool     terminal;
    bool     shown; /* there is a line to draw over */
    bool     told;  /* of the interrupt */
    uint64_t skipped_bytes;
    uint64_t done;    /* lines, at the last call, */
    int64_t  at_ns;   /* which was then */
    double   rate;    /* lines a second of late */
    int64_t  next_ns; /* when the next plain line is due */
} progress;

/* Lines that are left, as far as the size of the file tells. */
static double guess_left(const progress *p, const llmkit_batch_stats *s) {
    uint64_t here = s->read_bytes - p->skipped_bytes;
    double unread = 0;
    if (s->total_bytes > s->read_bytes && here && !interrupts)
        unread = (double)(s->total_bytes - s->read_bytes) * (double)s->started / (double)here;
    return unread + (double)(s->in_flight + s->waiting);
}

static void measure_rate(progress *p, const llmkit_batch_stats *s) {
    uint64_t done = s->saved + s->failed;
    double now = per_second(done - p->done, s->elapsed_ns - p->at_ns);
    p->rate = p->at_ns ? 0.7 * p->rate + 0.3 * now : now;
    p->done = done;
    p->at_ns = s->elapsed_ns;
}

static void write_bar(char *out, double share) {
    int full = (int)(share * BAR_WIDTH);
    *out++ = '[';
    for (int i = 0; i < BAR_WIDTH; i++) *out++ = i < full ? '#' : '.';
    memcpy(out, "] ", 3);
}

/* What matters least comes last: a narrow terminal cuts it off. */
static void write_progress(const progress *p, const llmkit_batch_stats *s, char *out) {
    double left = guess_left(p, s);
    char bar[BAR_WIDTH + 4] = "", until[48] = "";
    if (s->total_bytes && p->terminal && s->started)
        write_bar(bar, (double)p->done / ((double)p->done + left + 1e-9));
    if (s->total_bytes && p->rate > 0)
        snprintf(until, sizeof until, ", %s left", clock_of(left / p->rate).text);
    snprintf(out, LINE_BYTES, "%s%s done, %s/s%s, %s errors, %s retries, %s in flight", bar,
             count_of(p->done).text, count_of((uint64_t)(p->rate + 0.5)).text, until,
             count_of(s->failed).text, count_of(s->retries).text, count_of(s->in_flight).text);
}

static int terminal_width(void) {
#ifdef TIOCGWINSZ
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col) return size.ws_col;
#endif
    return 80;
}

static void clear_line(progress *p) {
    if (p->shown) fputs("\r\033[K", stderr);
    p->shown = false;
}

static void tell_stopping(progress *p, const llmkit_batch_stats *s) {
    if (!interrupts || p->told) return;
    clear_line(p);
    lk_say("stopping: %s in flight will be finished; interrupt again to cancel them",
           count_of(s->in_flight).text);
    p->told = true;
}

/* On a terminal one line, drawn again and again; elsewhere lines at growing distances, as logs
 * are read later. */
static void on_progress(void *user, const llmkit_batch_stats *s) {
    progress *p = user;
    char line[LINE_BYTES];
    measure_rate(p, s);
    tell_stopping(p, s);
    if (!p->terminal && s->elapsed_ns < p->next_ns) return;
    write_progress(p, s, line);
    if (p->terminal) {
        fprintf(stderr, "\r%.*s\033[K", terminal_width() - 1, line);
        fflush(stderr);
        p->shown = true;
    } else {
        lk_say("%s", line);
        p->next_ns += s->elapsed_ns < 10000000000 ? s->elapsed_ns : 10000000000;
    }
}

/* ---- the summary ----------------------------------------------------------------------------- */

static void row(const char *label, const char *format, ...) {
    va_list list;
    fprintf(stderr, "  %-11s ", label);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
}

static void print_lines(const llmkit_batch_stats *s) {
    char malformed[64] = "";
    if (s->malformed)
        snprintf(malformed, sizeof malformed, " (%s malformed)", count_of(s->malformed).text);
    row("lines", "%s: %s saved, %s failed%s", count_of(s->started).text, count_of(s->saved).text,
        count_of(s->failed).text, malformed);
}

/* The first attempts keep the pace; retries and the last replies only make the run longer. */
static void print_pace(const options *o, const llmkit_batch_stats *s) {
    uint64_t first = s->attempts - s->retries;
    char asked[64] = "";
    if (!first) return;
    if (o->rate > 0)
        snprintf(asked, sizeof asked, ", intended %s",
                 time_of((double)(first - 1) / o->rate * 1000).text);
    row("sent", "%s first attempts in %s%s", count_of(first).text,
        time_of(ms_of(s->first_attempts_ns)).text, asked);
    if (o->rate > 0)
        row("late by", "%s p50, %s p99, %s max", time_of(s->lateness_p50_ms).text,
            time_of(s->lateness_p99_ms).text, time_of(s->lateness_max_ms).text);
}

static void print_times(const llmkit_batch_stats *s) {
    row("time", "%s, after %s of opening connections", time_of(ms_of(s->elapsed_ns)).text,
        time_of(ms_of(s->warm_ns)).text);
    row("throughput", "%s lines/s, %s retries",
        count_of((uint64_t)(per_second(s->saved + s->failed, s->elapsed_ns) + 0.5)).text,
        count_of(s->retries).text);
}

static void print_latency(const llmkit_batch_stats *s) {
    if (s->attempts == 0) return;
    row("latency", "%s p50, %s p90, %s p99, %s max, since the intended time",
        time_of(s->latency_p50_ms).text, time_of(s->latency_p90_ms).text,
        time_of(s->latency_p99_ms).text, time_of(s->latency_max_ms).text);
    if (s->saved)
        row("service", "%s p50, %s p99, of the attempts that were saved",
            time_of(s->service_p50_ms).text, time_of(s->service_p99_ms).text);
    row("tokens", "%s in, %s out", count_of(s->input_tokens).text,
        count_of(s->output_tokens).text);
}

static void print_endpoints(const llmkit_batch_stats *s) {
    int width = 0;
    for (size_t i = 0; i < s->num_endpoints; i++) {
        int len = (int)strlen(s->endpoints[i].name);
        if (len > width) width = len;
    }
    for (size_t i = 0; i < s->num_endpoints && s->attempts; i++) {
        const llmkit_endpoint_stats *e = &s->endpoints[i];
        row(i ? "" : "endpoints", "%-*s  %5.1f%%  %10s attempts  %10s saved  %8s failed", width,
            e->name, 100.0 * (double)e->attempts / (double)s->attempts, count_of(e->attempts).text,
            count_of(e->saved).text, count_of(e->failed).text);
    }
}

/* Of all attempts, those that a retry has mended included. */
static void print_errors(const llmkit_batch_stats *s) {
    const char *label = "errors";
    for (int i = 0; i < LLMKIT_NUM_ERRORS; i++) {
        if (!s->errors[i]) continue;
        row(label, "%8s  %-12s %s", count_of(s->errors[i]).text, llmkit_err_name((llmkit_err)i),
            llmkit_err_text((llmkit_err)i));
        label = "";
    }
}

static void print_files(const llmkit_batch_stats *s) {
    row("replies", "%s", s->save_path);
    row("failures", "%s", s->errors_path);
    if (!s->finished)
        row("the rest", "the same command with: --skip %" PRIu64 " --append", s->read_lines);
}

static void print_summary(const options *o, const llmkit_batch_stats *s) {
    fputc('\n', stderr);
    print_lines(s);
    print_pace(o, s);
    print_times(s);
    print_latency(s);
    print_endpoints(s);
    print_errors(s);
    print_files(s);
}

/* ---- the command ----------------------------------------------------------------------------- */

static llmkit_batch *open_batch(const options *o, const endpoints *e, llmkit_tls *tls, progress *p,
                                llmkit_error *error) {
    return llmkit_batch_create(&(llmkit_batch_desc){
        .requests_path = o->requests,
        .save_path = o->save,
        .errors_path = o->errors,
        .append = o->append,
        .skip_lines = o->skip,
        .endpoints = e->item,
        .num_endpoints = e->num,
        .model = o->model,
        .system = o->system,
        .tls = tls,
        .max_requests_per_s = o->rate,
        .max_attempts = o->max_attempts,
        .max_in_flight = o->max_in_flight,
        .warm = o->warm,
        .max_line_bytes = o->max_line_bytes,
        .max_tokens = o->max_tokens,
        .backoff_ms = o->backoff_ms,
        .max_backoff_ms = o->max_backoff_ms,
        .max_retry_after_ms = o->max_retry_after_ms,
        .connect_ms = o->connect_ms,
        .tls_ms = o->tls_ms,
        .first_byte_ms = o->first_byte_ms,
        .idle_ms = o->idle_ms,
        .total_ms = o->total_ms,
        .progress = o->quiet ? NULL : on_progress,
        .user = p,
    }, error);
}

static int run(const options *o, llmkit_batch *batch, progress *p) {
    llmkit_error error;
    p->terminal = isatty(STDERR_FILENO);
    p->next_ns = 1000000000;
    p->skipped_bytes = llmkit_batch_read(batch).read_bytes;
    running = batch;
    lk_catch_stop(on_stop);
    llmkit_err err = llmkit_batch_run(batch, &error);
    lk_catch_stop(SIG_IGN); /* what the handler would stop is going */
    llmkit_batch_stats s = llmkit_batch_read(batch);
    clear_line(p);
    if (!o->quiet) print_summary(o, &s);
    if (err) lk_say("batch: %s", error.message);
    if (err) return 1;
    return s.finished && s.failed == 0 ? 0 : 2;
}

int lk_batch_main(int argc, char **argv) {
    options o = { .model = "gpt-4o-mini" };
    int status;
    if (!lk_args_parse(&args, &o, &argc, argv, &status)) return status;
    static endpoints all; /* room for hundreds */
    progress p = { 0 };
    llmkit_error error;
    llmkit_tls *tls = NULL;
    llmkit_batch *batch = NULL;
    status = 1;
    if (!read_endpoints(&all, &o.endpoints)) goto end;
    lk_raise_descriptor_limit();
    if (o.ca) tls = llmkit_tls_create(&(llmkit_tls_desc){ .ca_file = o.ca }, &error);
    if (tls || !o.ca) batch = open_batch(&o, &all, tls, &p, &error);
    if (batch)
        status = run(&o, batch, &p);
    else
        lk_say("batch: %s", error.message);
end:
    llmkit_batch_destroy(batch);
    llmkit_tls_release(tls);
    free_endpoints(&all);
    return status;
}
