/* llm/batch.c -- the batch requester: pacing, endpoints, retries, and one line out for one in */

#include "core/sketch.h"
#include "llm/client.h"
#include "llm/lines.h"

#if LLMKIT_WITH_BATCH

enum {
    LK__BATCH_IN_FLIGHT = 4096,
    LK__BATCH_LINE_BYTES = 16 << 20,
    LK__BATCH_MALFORMED = 1000,      /* lines in a row that are put aside in one turn */
    LK__BATCH_RAW_BYTES = 1024,      /* of a line that is too long, in errors.jsonl */
    LK__BATCH_WARM_MS = 50,          /* of requests whose connections are opened beforehand */
    LK__BATCH_WARM_MOST = 512,
    LK__BATCH_WARM_LIMIT_MS = 10000, /* then the clock starts all the same */
    LK__BATCH_FLUSH_BYTES = 65536,
    LK__BATCH_NEVER_S = 2000000000, /* 63 years: in nanoseconds still far from the end of 64 bits */
};

typedef struct lk__batch_endpoint {
    char                 *name, *model;
    double                weight, credit;
    llmkit_endpoint_stats stats;
} lk__batch_endpoint;

/* A line that has been started and is in neither file yet. */
typedef struct lk__job {
    llmkit_batch   *batch;
    struct lk__job *next;    /* among the free, or those due for a retry */
    lk__timer       timer;   /* until its retry */
    uint64_t        line;
    lk__buf         input;   /* the JSON string as it stands in the line, without quotes */
    int64_t         intended_ns;
    uint32_t        attempts;
    size_t          endpoint; /* of the last attempt */
    llmkit_call     call;
    bool            resting;
    llmkit_error    error;   /* of the last attempt */
} lk__job;

struct llmkit_batch {
    llmkit_env          env;
    llmkit_loop        *loop;
    llmkit_client      *client;
    llmkit_bucket      *bucket;
    lk__line_reader     in;
    lk__line_writer     save, errors;
    char               *requests_path, *save_path, *errors_path, *system;
    lk__batch_endpoint *endpoints;
    size_t              num_endpoints;
    llmkit_endpoint_stats *endpoint_stats;
    lk__retry_policy    retry;
    double              rate;
    uint32_t            max_in_flight, warm, max_tokens;
    void              (*progress)(void *user, const llmkit_batch_stats *stats);
    void               *user;
    int64_t             progress_ns;

    lk__atomic_u32      stops;     /* how often llmkit_batch_stop was called */
    uint32_t            obeyed;    /* and how many of these have been acted upon */
    lk__job            *jobs;      /* max_in_flight of them */
    lk__job            *free;
    lk__job            *due, **due_end; /* for a retry: first come, first served */
    uint32_t            num_jobs;  /* that are used */
    uint32_t            busy, resting;
    uint64_t            sequence;  /* of first attempts */
    int64_t             start_ns, warm_ns;
    bool                warming, started, ended;
    bool                eof;       /* no line will be started any more */
    bool                whole;     /* because the file has ended */
    llmkit_error        error;     /* why the run cannot go on */
    lk__timer           pace, tick;
    lk__task            pump, flush;
    lk__json            json;
    lk__buf             prompt;
    llmkit_batch_stats  stats;
    lk__sketch          latency, service, lateness;
};

LK__PRIV void lk__batch_pump(llmkit_batch *b);
LK__PRIV void lk__batch_start(llmkit_batch *b);
LK__PRIV void lk__batch_stop_soon(llmkit_batch *b);

LK__PRIV int64_t lk__batch_now(const llmkit_batch *b) {
    return lk__loop_now(b->loop);
}

/* ---- lines out ------------------------------------------------------------------------------- */

LK__PRIV void lk__batch_give_up(llmkit_batch *b, const llmkit_error *error) {
    if (!b->error.code) b->error = *error;
    b->eof = true;
    lk__defer(b->loop, &b->pump);
}

LK__PRIV void lk__batch_write_out(llmkit_batch *b) {
    llmkit_error error;
    if (b->save.buf.len && lk__line_flush(&b->save, &error)) lk__batch_give_up(b, &error);
    if (b->errors.buf.len && lk__line_flush(&b->errors, &error)) lk__batch_give_up(b, &error);
}

LK__PRIV void lk__batch_on_flush(lk__task *task) {
    lk__batch_write_out(LK__CONTAINER(task, llmkit_batch, flush));
}

/* What a turn of the loop has finished goes out with one write. */
LK__PRIV void lk__batch_line_done(llmkit_batch *b, lk__line_writer *w) {
    llmkit_error error;
    lk__buf_ch(&w->buf, '\n');
    if (lk__line_close(w, &error)) lk__batch_give_up(b, &error);
    if (w->buf.len >= LK__BATCH_FLUSH_BYTES)
        lk__batch_write_out(b);
    else
        lk__defer(b->loop, &b->flush);
}

LK__PRIV void lk__batch_key_str(lk__jsonw *w, const char *key, llmkit_str value) {
    lk__jsonw_key(w, key);
    lk__jsonw_str(w, value);
}

LK__PRIV void lk__batch_key_i64(lk__jsonw *w, const char *key, int64_t value) {
    lk__jsonw_key(w, key);
    lk__jsonw_i64(w, value);
}

LK__PRIV void lk__batch_key_ms(lk__jsonw *w, const char *key, int64_t ns) {
    lk__jsonw_key(w, key);
    lk__jsonw_f64(w, (double)(ns / 1000) / 1e3);
}

/* The members that both files begin with. */
LK__PRIV lk__jsonw lk__batch_open_line(lk__line_writer *file, const lk__job *job) {
    lk__jsonw w = { .out = &file->buf };
    lk__jsonw_open(&w, '{');
    lk__batch_key_i64(&w, "line", (int64_t)job->line);
    lk__jsonw_key(&w, "input");
    lk__buf_ch(w.out, '"');
    lk__buf_str(w.out, lk__buf_view(&job->input));
    lk__buf_ch(w.out, '"');
    w.comma = true;
    return w;
}

LK__PRIV void lk__batch_usage(lk__jsonw *w, const llmkit_usage *u) {
    lk__jsonw_key(w, "usage");
    lk__jsonw_open(w, '{');
    if (u->input >= 0) lk__batch_key_i64(w, "input", u->input);
    if (u->output >= 0) lk__batch_key_i64(w, "output", u->output);
    if (u->cache_read >= 0) lk__batch_key_i64(w, "cache_read", u->cache_read);
    if (u->reasoning >= 0) lk__batch_key_i64(w, "reasoning", u->reasoning);
    lk__jsonw_close(w, '}');
}

LK__PRIV const char *lk__finish_name(llmkit_finish finish) {
    static const char *const names[] = { "unfinished", "stop",   "length",
                                         "tool_use",   "filter", "other" };
    return names[finish];
}

LK__PRIV void lk__batch_write_saved(llmkit_batch *b, lk__job *job, const llmkit_reply *r,
                                    int64_t latency_ns) {
    lk__jsonw w = lk__batch_open_line(&b->save, job);
    lk__batch_key_str(&w, "response", r->text);
    if (r->refusal.len) lk__batch_key_str(&w, "refusal", r->refusal);
    lk__batch_key_str(&w, "endpoint", lk__str_z(b->endpoints[job->endpoint].name));
    lk__batch_key_str(&w, "model", r->model);
    lk__batch_key_str(&w, "finish", lk__str_z(lk__finish_name(r->finish)));
    lk__batch_key_i64(&w, "attempts", job->attempts);
    lk__batch_key_ms(&w, "latency_ms", latency_ns);
    lk__batch_usage(&w, &r->usage);
    lk__jsonw_close(&w, '}');
    lk__batch_line_done(b, &b->save);
}

LK__PRIV void lk__batch_write_failed(llmkit_batch *b, lk__job *job, int64_t latency_ns) {
    const llmkit_error *e = &job->error;
    lk__jsonw w = lk__batch_open_line(&b->errors, job);
    lk__batch_key_str(&w, "error", lk__str_z(e->message));
    lk__batch_key_str(&w, "code", lk__str_z(llmkit_err_name(e->code)));
    if (e->http_status) lk__batch_key_i64(&w, "status", e->http_status);
    if (e->type[0]) lk__batch_key_str(&w, "type", lk__str_z(e->type));
    lk__batch_key_i64(&w, "attempts", job->attempts);
    if (job->attempts)
        lk__batch_key_str(&w, "endpoint", lk__str_z(b->endpoints[job->endpoint].name));
    if (e->request_id[0]) lk__batch_key_str(&w, "request_id", lk__str_z(e->request_id));
    lk__batch_key_ms(&w, "latency_ms", latency_ns);
    lk__jsonw_close(&w, '}');
    lk__batch_line_done(b, &b->errors);
}

/* A line that comes to no attempt: it is malformed, or there is no memory for it. */
LK__PRIV void lk__batch_write_unsent(llmkit_batch *b, llmkit_str line, llmkit_err code,
                                     const char *why) {
    lk__jsonw w = { .out = &b->errors.buf };
    lk__jsonw_open(&w, '{');
    lk__batch_key_i64(&w, "line", (int64_t)b->in.number);
    lk__jsonw_key(&w, "input");
    lk__jsonw_raw(&w, LK__STR("null"));
    lk__batch_key_str(&w, "error", lk__str_z(why));
    lk__batch_key_str(&w, "code", lk__str_z(llmkit_err_name(code)));
    lk__batch_key_i64(&w, "attempts", 0);
    lk__batch_key_str(&w, "raw", line);
    lk__jsonw_close(&w, '}');
    b->stats.started++;
    b->stats.failed++;
    b->stats.malformed += code == LLMKIT_E_JSON;
    b->stats.errors[code]++;
    lk__batch_line_done(b, &b->errors);
}

/* ---- jobs ------------------------------------------------------------------------------------ */

LK__PRIV lk__job *lk__job_take(llmkit_batch *b) {
    lk__job *job = b->free;
    if (job)
        b->free = job->next;
    else
        job = &b->jobs[b->num_jobs++];
    lk__buf_clear(&job->input);
    job->attempts = 0;
    job->resting = false;
    return job;
}

/* Its line has been written to one of the files. */
LK__PRIV void lk__job_done(lk__job *job) {
    llmkit_batch *b = job->batch;
    if (job->input.cap > 65536) lk__buf_free(&job->input);
    job->next = b->free;
    b->free = job;
    b->busy--;
    lk__defer(b->loop, &b->pump);
}

LK__PRIV void lk__job_fail(lk__job *job) {
    llmkit_batch *b = job->batch;
    int64_t latency_ns = lk__batch_now(b) - job->intended_ns;
    lk__sketch_add(&b->latency, latency_ns);
    b->stats.failed++;
    lk__batch_write_failed(b, job, latency_ns);
    lk__job_done(job);
}

LK__PRIV void lk__job_on_timer(lk__timer *timer) {
    lk__job *job = LK__CONTAINER(timer, lk__job, timer);
    llmkit_batch *b = job->batch;
    job->next = NULL;
    *b->due_end = job;
    b->due_end = &job->next;
    lk__batch_pump(b);
}

/* An attempt has failed: another one, later, or the end of the line. */
LK__PRIV void lk__job_failed(lk__job *job, const llmkit_error *error) {
    llmkit_batch *b = job->batch;
    job->error = *error;
    b->stats.errors[error->code]++;
    b->endpoint_stats[job->endpoint].failed++;
    lk__rand *rand = lk__loop_rand(b->loop);
    int64_t delay = lk__retry_delay(&b->retry, job->attempts, error, rand);
    /* Lines that were refused together with one Retry-After must not come back together. */
    if (error->retry_after_ms && delay > 0)
        delay += (int64_t)((double)delay * lk__rand_unit(rand) / 4);
    if (delay < 0 || b->obeyed || b->error.code ||
        lk__timer_set(b->loop, &job->timer, lk__batch_now(b) + delay)) {
        lk__job_fail(job);
        return;
    }
    job->resting = true;
    b->resting++;
}

LK__PRIV void lk__job_on_reply(void *user, const llmkit_reply *r) {
    lk__job *job = user;
    llmkit_batch *b = job->batch;
    job->call.id = 0;
    if (r->error.code) {
        lk__job_failed(job, &r->error);
        return;
    }
    int64_t latency_ns = lk__batch_now(b) - job->intended_ns;
    lk__sketch_add(&b->latency, latency_ns);
    lk__sketch_add(&b->service, r->total_ns);
    b->stats.saved++;
    b->endpoint_stats[job->endpoint].saved++;
    if (r->usage.input > 0) b->stats.input_tokens += (uint64_t)r->usage.input;
    if (r->usage.output > 0) b->stats.output_tokens += (uint64_t)r->usage.output;
    lk__batch_write_saved(b, job, r, latency_ns);
    lk__job_done(job);
}

/* Smooth weighted round robin: each gains its weight, the richest pays for all.  A retry goes
 * elsewhere than the attempt that failed, where there is an elsewhere. */
LK__PRIV size_t lk__batch_choose(llmkit_batch *b, const lk__job *job) {
    size_t best = b->num_endpoints;
    double total = 0;
    for (size_t i = 0; i < b->num_endpoints; i++) {
        lk__batch_endpoint *e = &b->endpoints[i];
        if (job->attempts && b->num_endpoints > 1 && i == job->endpoint) continue;
        total += e->weight;
        e->credit += e->weight;
        if (best == b->num_endpoints || e->credit > b->endpoints[best].credit) best = i;
    }
    b->endpoints[best].credit -= total;
    return best;
}

LK__PRIV void lk__job_send(lk__job *job) {
    llmkit_batch *b = job->batch;
    llmkit_error error;
    job->endpoint = lk__batch_choose(b, job);
    const lk__batch_endpoint *e = &b->endpoints[job->endpoint];
    lk__buf_clear(&b->prompt);
    lk__json_unescape_to(&b->prompt, lk__buf_view(&job->input));
    const llmkit_part part = { .kind = LLMKIT_TEXT, .text = lk__buf_view(&b->prompt) };
    const llmkit_message message = { .role = LLMKIT_USER, .parts = &part, .num_parts = 1 };
    const llmkit_request request = {
        .model = e->model, .provider = e->name, .system = b->system, .messages = &message,
        .num_messages = 1, .max_tokens = b->max_tokens, .max_tries = 1,
    };
    if (job->attempts++) b->stats.retries++;
    b->stats.attempts++;
    b->endpoint_stats[job->endpoint].attempts++;
    if (b->prompt.failed)
        lk__fail(&error, b->prompt.failed, "no memory for the prompt");
    else if (!llmkit_submit_whole(b->client, &request, lk__job_on_reply, job, &job->call, &error))
        return;
    lk__job_failed(job, &error);
}

/* ---- lines in -------------------------------------------------------------------------------- */

/* OK: the line is a request, with the string's raw text in *input; else *why it is none. */
LK__PRIV llmkit_err lk__batch_parse(llmkit_batch *b, llmkit_str line, llmkit_str *input,
                                    const char **why) {
    llmkit_err err = lk__json_parse(&b->json, line);
    *why = err == LLMKIT_E_NOMEM ? "no memory to parse the line" : "the line is not valid JSON";
    if (err) return err == LLMKIT_E_NOMEM ? err : LLMKIT_E_JSON;
    lk__node n = lk__json_get(&b->json, 0, LK__STR("input"));
    if (lk__json_type_of(&b->json, 0) != LK__JSON_OBJECT) {
        *why = "the line is not a JSON object";
    } else if (n < 0) {
        *why = "the line has no \"input\"";
    } else if (lk__json_type_of(&b->json, n) != LK__JSON_STRING) {
        *why = "\"input\" is not a string";
    } else {
        *input = lk__json_raw(&b->json, n);
        return LLMKIT_OK;
    }
    return LLMKIT_E_JSON;
}

LK__PRIV bool lk__batch_is_blank(llmkit_str line) {
    return lk__str_trim(line).len == 0;
}

LK__PRIV void lk__batch_read_failed(llmkit_batch *b) {
    llmkit_error error;
    lk__fail_os(&error, errno ? LLMKIT_E_IO : LLMKIT_E_NOMEM, errno, "cannot read %s at line %llu",
                b->requests_path, (unsigned long long)b->in.number + 1);
    lk__batch_give_up(b, &error);
}

/* A job for the line that was read last; NULL: no memory. */
LK__PRIV lk__job *lk__job_begin(llmkit_batch *b, llmkit_str input) {
    lk__job *job = lk__job_take(b);
    lk__buf_str(&job->input, input);
    if (job->input.failed) {
        job->next = b->free;
        b->free = job;
        return NULL;
    }
    job->line = b->in.number;
    b->stats.started++;
    b->busy++;
    return job;
}

/* The next request as a job, or NULL at the end.  Malformed lines go straight to errors. */
LK__PRIV lk__job *lk__batch_next_job(llmkit_batch *b) {
    llmkit_str line, input;
    for (int n = 0; !b->eof; n++) {
        if (n == LK__BATCH_MALFORMED) { /* others want a turn, too */
            lk__defer(b->loop, &b->pump);
            break;
        }
        lk__line_kind kind = lk__line_next(&b->in, &line);
        if (kind == LK__LINE_FAILED) lk__batch_read_failed(b);
        if (kind == LK__LINE_NONE) b->eof = b->whole = true;
        if (b->eof) break;
        if (b->in.number == 1 && lk__str_starts(line, LK__STR("\xEF\xBB\xBF")))
            line = lk__str_from(line, 3);
        if (lk__batch_is_blank(line)) continue;
        const char *why = "the line is too long (max_line_bytes)";
        llmkit_err err = LLMKIT_E_JSON;
        if (kind == LK__LINE) err = lk__batch_parse(b, line, &input, &why);
        lk__job *job = err ? NULL : lk__job_begin(b, input);
        if (job) return job;
        if (kind == LK__LINE_TOO_LONG && line.len > LK__BATCH_RAW_BYTES)
            line.len = LK__BATCH_RAW_BYTES;
        lk__batch_write_unsent(b, line, err ? err : LLMKIT_E_NOMEM,
                               err ? why : "no memory for the line");
    }
    return NULL;
}

/* ---- pacing ---------------------------------------------------------------------------------- */

/* When first attempt n is meant to go out. */
LK__PRIV int64_t lk__batch_intended(const llmkit_batch *b, uint64_t n) {
    if (b->rate <= 0) return lk__batch_now(b);
    double after_s = (double)n / b->rate;
    if (after_s > LK__BATCH_NEVER_S) after_s = LK__BATCH_NEVER_S;
    return b->start_ns + (int64_t)(after_s * (double)LK__NS_PER_S);
}

/* 0: a request may go now; else when to ask again.  Retries go before new lines: they are late. */
LK__PRIV int64_t lk__batch_may_send(llmkit_batch *b, bool retry) {
    int64_t now = lk__batch_now(b);
    int64_t intended = retry ? now : lk__batch_intended(b, b->sequence);
    if (intended > now) return intended;
    int64_t wait = b->bucket ? llmkit_bucket_take(b->bucket, 1, now) : 0;
    if (wait > LK__NEVER_NS - now) return LK__NEVER_NS;
    return wait ? now + wait : 0;
}

LK__PRIV void lk__batch_send_retry(llmkit_batch *b) {
    lk__job *job = b->due;
    b->due = job->next;
    if (!b->due) b->due_end = &b->due;
    job->resting = false;
    b->resting--;
    lk__job_send(job);
}

/* The place and the tokens are there. */
LK__PRIV void lk__batch_send_first(llmkit_batch *b, lk__job *job) {
    int64_t now = lk__now(&b->env); /* not the turn's: it may have been a long one */
    job->intended_ns = lk__batch_intended(b, b->sequence++);
    lk__sketch_add(&b->lateness, now - job->intended_ns);
    b->stats.first_attempts_ns = now - b->start_ns;
    lk__job_send(job);
}

LK__PRIV void lk__batch_finish(llmkit_batch *b) {
    if (b->ended) return;
    b->ended = true;
    b->stats.elapsed_ns = lk__batch_now(b) - b->start_ns;
    llmkit_loop_stop(b->loop);
}

/* Sends whatever may be sent now.  Nothing is read from the file before there is a place for it. */
LK__PRIV void lk__batch_pump(llmkit_batch *b) {
    if (!b->started || b->ended) return;
    int64_t again = 0;
    lk__job *job = NULL;
    while (b->due && !again)
        if (!(again = lk__batch_may_send(b, true))) lk__batch_send_retry(b);
    while (!again && !b->eof && b->busy < b->max_in_flight) {
        if ((again = lk__batch_may_send(b, false))) break;
        if (!(job = lk__batch_next_job(b))) break;
        lk__batch_send_first(b, job);
    }
    if (again) lk__timer_set(b->loop, &b->pace, again);
    if (b->error.code && b->resting) lk__batch_stop_soon(b); /* no use in trying again */
    if (b->eof && b->busy == 0) lk__batch_finish(b);
}

LK__PRIV void lk__batch_on_pace(lk__timer *timer) {
    lk__batch_pump(LK__CONTAINER(timer, llmkit_batch, pace));
}

LK__PRIV void lk__batch_on_pump(lk__task *task) {
    lk__batch_pump(LK__CONTAINER(task, llmkit_batch, pump));
}

/* ---- stopping -------------------------------------------------------------------------------- */

/* No new lines, no retries: those that rest are recorded with the error they have. */
LK__PRIV void lk__batch_stop_soon(llmkit_batch *b) {
    b->eof = true;
    b->due = NULL;
    b->due_end = &b->due;
    for (uint32_t i = 0; i < b->num_jobs; i++) {
        lk__job *job = &b->jobs[i];
        if (!job->resting) continue;
        lk__timer_stop(b->loop, &job->timer);
        job->resting = false;
        b->resting--;
        lk__job_fail(job);
    }
}

LK__PRIV void lk__batch_stop_now(llmkit_batch *b) {
    for (uint32_t i = 0; i < b->num_jobs; i++)
        if (b->jobs[i].call.id) llmkit_cancel(b->client, b->jobs[i].call);
}

LK__PRIV void lk__batch_obey(llmkit_batch *b) {
    uint32_t stops = lk__load_acquire(&b->stops);
    if (stops && !b->obeyed) {
        b->obeyed = 1;
        lk__batch_stop_soon(b);
        if (b->warming) lk__batch_start(b);
    }
    if (stops > 1 && b->obeyed == 1) {
        b->obeyed = 2;
        lk__batch_stop_now(b);
    }
    lk__batch_pump(b);
}

LLMKIT_API void llmkit_batch_stop(llmkit_batch *b) {
    (void)lk__add_relaxed(&b->stops, 1);
    llmkit_loop_stop(b->loop);
}

/* ---- progress -------------------------------------------------------------------------------- */

LK__PRIV double lk__sketch_ms(const lk__sketch *s, double q) {
    return (double)lk__sketch_quantile(s, q) / (double)LK__NS_PER_MS;
}

LLMKIT_API llmkit_batch_stats llmkit_batch_read(const llmkit_batch *b) {
    llmkit_batch_stats s = b->stats;
    if (b->started && !b->ended) s.elapsed_ns = lk__batch_now(b) - b->start_ns;
    s.warm_ns = b->warm_ns;
    s.in_flight = b->busy - b->resting;
    s.waiting = b->resting;
    s.total_bytes = b->in.total_bytes;
    s.read_bytes = b->in.read_bytes - (b->in.buf.len - b->in.at);
    s.read_lines = b->in.number;
    s.lateness_p50_ms = lk__sketch_ms(&b->lateness, 0.5);
    s.lateness_p99_ms = lk__sketch_ms(&b->lateness, 0.99);
    s.lateness_max_ms = (double)b->lateness.max_ns / (double)LK__NS_PER_MS;
    s.latency_p50_ms = lk__sketch_ms(&b->latency, 0.5);
    s.latency_p90_ms = lk__sketch_ms(&b->latency, 0.9);
    s.latency_p99_ms = lk__sketch_ms(&b->latency, 0.99);
    s.latency_max_ms = (double)b->latency.max_ns / (double)LK__NS_PER_MS;
    s.service_p50_ms = lk__sketch_ms(&b->service, 0.5);
    s.service_p99_ms = lk__sketch_ms(&b->service, 0.99);
    s.save_path = b->save_path;
    s.errors_path = b->errors_path;
    s.endpoints = b->endpoint_stats;
    s.num_endpoints = b->num_endpoints;
    s.finished = b->ended && b->whole && !b->error.code;
    s.client = llmkit_client_read(b->client);
    return s;
}

LK__PRIV void lk__batch_tell(llmkit_batch *b) {
    if (!b->progress) return;
    llmkit_batch_stats s = llmkit_batch_read(b);
    b->progress(b->user, &s);
}

LK__PRIV bool lk__batch_is_warm(llmkit_batch *b) {
    for (size_t i = 0; i < b->num_endpoints; i++)
        if (lk__origin_is_warming(b->client->providers[i].origin)) return false;
    return true;
}

LK__PRIV void lk__batch_start(llmkit_batch *b) {
    int64_t now = lk__batch_now(b);
    b->warm_ns = now - b->start_ns;
    b->warming = false;
    b->started = true;
    b->start_ns = now;
    lk__timer_set(b->loop, &b->tick, now + b->progress_ns);
    lk__batch_pump(b);
}

/* While connections are being warmed it looks every millisecond whether they are; then it is the
 * clock of the progress calls. */
LK__PRIV void lk__batch_on_tick(lk__timer *timer) {
    llmkit_batch *b = LK__CONTAINER(timer, llmkit_batch, tick);
    int64_t now = lk__batch_now(b);
    if (!b->warming) {
        lk__batch_tell(b);
        lk__timer_set(b->loop, timer, now + b->progress_ns);
        lk__batch_pump(b); /* in case there was no memory for the pace timer */
    } else if (lk__batch_is_warm(b) ||
               now - b->start_ns > LK__BATCH_WARM_LIMIT_MS * LK__NS_PER_MS) {
        lk__batch_start(b);
    } else {
        lk__timer_set(b->loop, timer, now + LK__NS_PER_MS);
    }
}

/* Connections for the first requests, shared out as the requests will be. */
LK__PRIV void lk__batch_warm(llmkit_batch *b) {
    double total = 0;
    for (size_t i = 0; i < b->num_endpoints; i++) total += b->endpoints[i].weight;
    for (size_t i = 0; i < b->num_endpoints; i++) {
        lk__origin *origin = b->client->providers[i].origin;
        double weight = 0; /* of all endpoints that are there */
        for (size_t j = 0; j < b->num_endpoints; j++)
            if (b->client->providers[j].origin == origin) weight += b->endpoints[j].weight;
        lk__origin_warm(origin, (uint32_t)(b->warm * weight / total + 0.5));
    }
}

/* ---- a run ----------------------------------------------------------------------------------- */

LK__PRIV llmkit_err lk__batch_skip(llmkit_batch *b, uint64_t lines) {
    llmkit_str line;
    while (b->in.number < lines) {
        lk__line_kind kind = lk__line_next(&b->in, &line);
        if (kind == LK__LINE_FAILED) lk__batch_read_failed(b);
        if (kind == LK__LINE_FAILED || kind == LK__LINE_NONE) break;
    }
    return b->error.code;
}

LLMKIT_API llmkit_err llmkit_batch_run(llmkit_batch *b, llmkit_error *error) {
    llmkit_error local;
    if (!error) error = &local;
    if (b->started) return lk__fail(error, LLMKIT_E_BUSY, "a batch runs once");
    llmkit_err err = LLMKIT_OK;
    lk__loop_hold(b->loop);
    b->warming = true;
    b->start_ns = lk__batch_now(b);
    lk__batch_warm(b);
    err = lk__timer_set(b->loop, &b->tick, b->start_ns);
    while (!err && !b->ended) {
        err = llmkit_loop_run(b->loop);
        lk__batch_obey(b);
    }
    lk__loop_unhold(b->loop);
    if (err) {
        lk__fail(&b->error, err, "the loop failed");
        b->ended = true;
    }
    lk__batch_write_out(b);
    lk__batch_tell(b);
    *error = b->error;
    return b->error.code;
}

/* ---- making one ------------------------------------------------------------------------------ */

/* given, or the start of another path with a new end. */
LK__PRIV char *lk__batch_path(const llmkit_env *env, const char *given, llmkit_str start,
                              const char *end) {
    if (given) return lk__strdup(env, given);
    lk__buf path;
    lk__buf_init(&path, env, 0);
    lk__buf_str(&path, start);
    lk__buf_z(&path, end);
    char *copy = path.failed ? NULL : lk__strdup(env, path.ptr);
    lk__buf_free(&path);
    return copy;
}

LK__PRIV void lk__batch_set_paths(llmkit_batch *b, const llmkit_batch_desc *d) {
    llmkit_str start = lk__str_z(d->requests_path);
    if (lk__str_ends(start, LK__STR(".jsonl"))) start.len -= 6;
    b->requests_path = lk__strdup(&b->env, d->requests_path);
    b->save_path = lk__batch_path(&b->env, d->save_path, start, "_results.jsonl");
    if (!b->save_path) return;
    const char *slash = strrchr(b->save_path, '/');
    llmkit_str folder = { b->save_path, slash ? (size_t)(slash - b->save_path) + 1 : 0 };
    b->errors_path = lk__batch_path(&b->env, d->errors_path, folder, "errors.jsonl");
}

LK__PRIV llmkit_err lk__batch_check(const llmkit_batch_desc *d, llmkit_error *error) {
    llmkit_err err = lk__check_guards(error, d->_guard0, d->_guard1, "llmkit_batch_desc");
    if (err) return err;
    if (!d->requests_path) return lk__fail(error, LLMKIT_E_ARG, "requests_path is missing");
    if (d->num_endpoints == 0 || !d->endpoints)
        return lk__fail(error, LLMKIT_E_ARG, "endpoints: at least one is needed");
    if (!(d->max_requests_per_s >= 0 && d->max_requests_per_s <= 1e9))
        return lk__fail(error, LLMKIT_E_ARG, "max_requests_per_s is not from 0 to 1000000000");
    for (size_t i = 0; i < d->num_endpoints; i++) {
        const llmkit_endpoint *e = &d->endpoints[i];
        if (!e->base_url)
            return lk__fail(error, LLMKIT_E_ARG, "endpoints[%zu].base_url is missing", i);
        if (!(e->weight >= 0) || e->weight > 1e9)
            return lk__fail(error, LLMKIT_E_ARG, "endpoints[%zu].weight is out of range", i);
        if (!e->model && !d->model)
            return lk__fail(error, LLMKIT_E_ARG, "endpoints[%zu] has no model, and the batch none "
                            "for it", i);
    }
    return LLMKIT_OK;
}

LK__PRIV uint32_t lk__batch_warm_count(const llmkit_batch *b, uint32_t asked) {
    double count = b->rate > 0 ? b->rate * LK__BATCH_WARM_MS / 1000 : LK__BATCH_WARM_MOST;
    uint64_t lines = b->in.total_bytes / 16 + 1; /* at most: a short line */
    if (count > LK__BATCH_WARM_MOST) count = LK__BATCH_WARM_MOST;
    uint32_t warm = asked ? asked : (uint32_t)count;
    if (warm > b->max_in_flight) warm = b->max_in_flight;
    return b->in.total_bytes && warm > lines ? (uint32_t)lines : warm;
}

LK__PRIV void lk__batch_set(llmkit_batch *b, const llmkit_batch_desc *d) {
    b->retry = lk__retry_fill((lk__retry_policy){ d->max_attempts, d->backoff_ms,
                                                  d->max_backoff_ms, d->max_retry_after_ms });
    b->rate = d->max_requests_per_s;
    b->max_in_flight = lk__def(d->max_in_flight, LK__BATCH_IN_FLIGHT);
    b->max_tokens = d->max_tokens;
    b->progress = d->progress;
    b->user = d->user;
    b->progress_ns = lk__def(d->progress_ms, 200) * LK__NS_PER_MS;
    b->due_end = &b->due;
    b->pace.fn = lk__batch_on_pace;
    b->tick.fn = lk__batch_on_tick;
    b->pump.fn = lk__batch_on_pump;
    b->flush.fn = lk__batch_on_flush;
    b->in.fd = b->save.fd = b->errors.fd = -1;
    lk__json_init(&b->json, &b->env);
    lk__buf_init(&b->prompt, &b->env, 0);
}

/* Its own name, or host:port; with a number where another has the same. */
LK__PRIV char *lk__batch_name(llmkit_batch *b, const llmkit_endpoint *e, size_t nth,
                              llmkit_error *error) {
    lk__url url;
    lk__buf name;
    if (lk__url_parse(&url, lk__str_z(e->base_url), error)) return NULL;
    lk__buf_init(&name, &b->env, 0);
    if (e->name)
        lk__buf_z(&name, e->name);
    else
        lk__url_host_field(&url, &name);
    for (size_t i = 0; i < nth && !name.failed; i++) {
        if (strcmp(b->endpoints[i].name, name.ptr) != 0) continue;
        lk__buf_fmt(&name, "#%zu", nth + 1);
        break;
    }
    char *copy = name.failed ? NULL : lk__strdup(&b->env, name.ptr);
    lk__buf_free(&name);
    if (!copy) lk__fail(error, LLMKIT_E_NOMEM, "no memory for an endpoint");
    return copy;
}

LK__PRIV llmkit_err lk__batch_open_client(llmkit_batch *b, const llmkit_batch_desc *d,
                                          const llmkit_provider_desc *providers,
                                          llmkit_error *error) {
    b->loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = d->env }, error);
    if (!b->loop) return error->code;
    b->client = llmkit_client_create(&(llmkit_client_desc){
        .env = d->env, .providers = providers, .num_providers = d->num_endpoints,
        .loop = b->loop, .tls = d->tls, .max_calls = b->max_in_flight,
        .connect_ms = d->connect_ms, .tls_ms = d->tls_ms, .first_byte_ms = d->first_byte_ms,
        .idle_ms = d->idle_ms, .total_ms = d->total_ms,
    }, error);
    return b->client ? LLMKIT_OK : error->code;
}

LK__PRIV llmkit_err lk__batch_set_endpoints(llmkit_batch *b, const llmkit_batch_desc *d,
                                            llmkit_error *error) {
    size_t num = d->num_endpoints, bytes = lk__mul(num, sizeof(llmkit_provider_desc));
    llmkit_provider_desc *providers = lk__alloc(&b->env, bytes);
    b->endpoints = lk__alloc(&b->env, lk__mul(num, sizeof *b->endpoints));
    b->endpoint_stats = lk__alloc(&b->env, lk__mul(num, sizeof *b->endpoint_stats));
    b->num_endpoints = num;
    llmkit_err err = providers && b->endpoints && b->endpoint_stats ? LLMKIT_OK
                     : lk__fail(error, LLMKIT_E_NOMEM, "no memory for %zu endpoints", num);
    for (size_t i = 0; i < num && !err; i++) {
        const llmkit_endpoint *from = &d->endpoints[i];
        lk__batch_endpoint *e = &b->endpoints[i];
        e->weight = from->weight > 0 ? from->weight : 1;
        e->name = lk__batch_name(b, from, i, error);
        e->model = e->name ? lk__strdup(&b->env, from->model ? from->model : d->model) : NULL;
        if (!e->name) err = error->code;
        else if (!e->model) err = lk__fail(error, LLMKIT_E_NOMEM, "no memory for an endpoint");
        b->endpoint_stats[i].name = e->name;
        providers[i] = (llmkit_provider_desc){
            .name = e->name, .base_url = from->base_url, .model = e->model,
            .api_key = from->api_key ? from->api_key : "",
        };
    }
    if (!err) err = lk__batch_open_client(b, d, providers, error);
    lk__free(&b->env, providers, bytes);
    return err;
}

/* One file under two names, by a link. */
LK__PRIV bool lk__batch_is_same(int a, int b) {
    struct stat x, y;
    if (fstat(a, &x) || fstat(b, &y) || !S_ISREG(x.st_mode)) return false;
    return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* The outputs last: nothing is created where the rest is wrong. */
LK__PRIV llmkit_err lk__batch_open_files(llmkit_batch *b, const llmkit_batch_desc *d,
                                         llmkit_error *error) {
    size_t max_line = lk__def(d->max_line_bytes, LK__BATCH_LINE_BYTES);
    lk__batch_set_paths(b, d);
    if (!b->requests_path || !b->save_path || !b->errors_path)
        return lk__fail(error, LLMKIT_E_NOMEM, "no memory for the names of files");
    if (strcmp(b->save_path, b->errors_path) == 0 ||
        strcmp(b->save_path, b->requests_path) == 0 ||
        strcmp(b->errors_path, b->requests_path) == 0)
        return lk__fail(error, LLMKIT_E_ARG, "requests, results and errors need three files, not "
                        "%s twice", strcmp(b->save_path, b->errors_path) == 0 ? b->save_path
                                                                              : b->requests_path);
    llmkit_err err = lk__line_reader_open(&b->in, &b->env, b->requests_path, max_line, error);
    if (!err && lk__batch_skip(b, d->skip_lines)) {
        *error = b->error;
        err = error->code;
    }
    if (!err) err = lk__line_writer_open(&b->save, &b->env, b->save_path, d->append, error);
    if (!err) err = lk__line_writer_open(&b->errors, &b->env, b->errors_path, d->append, error);
    if (!err && (lk__batch_is_same(b->in.fd, b->save.fd) ||
                 lk__batch_is_same(b->in.fd, b->errors.fd) ||
                 lk__batch_is_same(b->save.fd, b->errors.fd)))
        err = lk__fail(error, LLMKIT_E_ARG, "requests, results and errors need three files, and "
                       "two of these are one: %s, %s, %s", b->requests_path, b->save_path,
                       b->errors_path);
    return err;
}

LK__PRIV llmkit_err lk__batch_init(llmkit_batch *b, const llmkit_batch_desc *d,
                                   llmkit_error *error) {
    lk__batch_set(b, d);
    b->system = d->system ? lk__strdup(&b->env, d->system) : NULL;
    b->jobs = lk__alloc(&b->env, lk__mul(b->max_in_flight, sizeof *b->jobs));
    if (!b->jobs || (d->system && !b->system))
        return lk__fail(error, LLMKIT_E_NOMEM, "no memory for %u requests in flight",
                        b->max_in_flight);
    for (uint32_t i = 0; i < b->max_in_flight; i++) {
        b->jobs[i].batch = b;
        b->jobs[i].timer.fn = lk__job_on_timer;
        lk__buf_init(&b->jobs[i].input, &b->env, 0);
    }
    if (b->rate > 0) {
        /* A tenth of a second's worth may be caught up after a stall. */
        llmkit_rate rate = { b->rate, b->rate / 10 > 1 ? b->rate / 10 : 1 };
        b->bucket = llmkit_bucket_create(&b->env, rate);
        if (!b->bucket) return lk__fail(error, LLMKIT_E_NOMEM, "no memory for a token bucket");
    }
    llmkit_err err = lk__batch_set_endpoints(b, d, error);
    if (!err) err = lk__batch_open_files(b, d, error);
    b->warm = lk__batch_warm_count(b, d->warm);
    return err;
}

LLMKIT_API llmkit_batch *llmkit_batch_create(const llmkit_batch_desc *desc, llmkit_error *error) {
    llmkit_error local;
    if (!error) error = &local;
    if (lk__batch_check(desc, error)) return NULL;
    llmkit_env env = lk__env_fill(&desc->env);
    llmkit_batch *b = lk__alloc(&env, sizeof *b);
    if (!b) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a batch");
        return NULL;
    }
    b->env = env;
    if (lk__batch_init(b, desc, error)) {
        llmkit_batch_destroy(b);
        return NULL;
    }
    return b;
}

LK__PRIV void lk__batch_free_endpoints(llmkit_batch *b) {
    for (size_t i = 0; b->endpoints && i < b->num_endpoints; i++) {
        lk__strfree(&b->env, b->endpoints[i].name);
        lk__strfree(&b->env, b->endpoints[i].model);
    }
    lk__free(&b->env, b->endpoints, b->num_endpoints * sizeof *b->endpoints);
    lk__free(&b->env, b->endpoint_stats, b->num_endpoints * sizeof *b->endpoint_stats);
}

LLMKIT_API void llmkit_batch_destroy(llmkit_batch *b) {
    if (!b) return;
    b->ended = true; /* calls that the client ends now are nobody's */
    llmkit_client_destroy(b->client);
    if (b->loop) {
        lk__undefer(b->loop, &b->pump);
        lk__undefer(b->loop, &b->flush);
    }
    llmkit_loop_destroy(b->loop);
    llmkit_bucket_release(b->bucket);
    for (uint32_t i = 0; b->jobs && i < b->max_in_flight; i++) lk__buf_free(&b->jobs[i].input);
    lk__free(&b->env, b->jobs, b->max_in_flight * sizeof *b->jobs);
    lk__batch_free_endpoints(b);
    lk__line_reader_close(&b->in);
    lk__line_writer_close(&b->save);
    lk__line_writer_close(&b->errors);
    lk__strfree(&b->env, b->requests_path);
    lk__strfree(&b->env, b->save_path);
    lk__strfree(&b->env, b->errors_path);
    lk__strfree(&b->env, b->system);
    lk__json_free(&b->json);
    lk__buf_free(&b->prompt);
    llmkit_env env = b->env;
    lk__free(&env, b, sizeof *b);
}

#else

LLMKIT_API llmkit_batch *llmkit_batch_create(const llmkit_batch_desc *desc, llmkit_error *error) {
    (void)desc;
    lk__fail_disabled(error, "LLMKIT_WITH_BATCH");
    return NULL;
}

LLMKIT_API llmkit_err llmkit_batch_run(llmkit_batch *b, llmkit_error *error) {
    (void)b;
    return lk__fail_disabled(error, "LLMKIT_WITH_BATCH");
}

LLMKIT_API void llmkit_batch_stop(llmkit_batch *b) {
    (void)b;
}

LLMKIT_API llmkit_batch_stats llmkit_batch_read(const llmkit_batch *b) {
    llmkit_batch_stats none;
    (void)b;
    memset(&none, 0, sizeof none);
    return none;
}

LLMKIT_API void llmkit_batch_destroy(llmkit_batch *b) {
    (void)b;
}

#endif
