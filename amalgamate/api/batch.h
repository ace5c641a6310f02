/* api/batch.h -- many requests at a steady rate: JSONL in, JSONL out */
#pragma once

typedef struct llmkit_endpoint {
    const char *base_url; /* "https://host/v1" */
    const char *name;     /* in results and the summary; default: host:port */
    const char *model;    /* default: the batch's */
    const char *api_key;  /* default: none is sent */
    double      weight;   /* its share of the requests; default 1 */
} llmkit_endpoint;

typedef struct llmkit_endpoint_stats {
    const char *name;
    uint64_t    attempts, saved, failed; /* failed attempts, retried ones included */
} llmkit_endpoint_stats;

/* Latency is measured from the intended send time (start + n / rate), service time from the start
 * of the attempt that was saved, its wait for a connection included. */
typedef struct llmkit_batch_stats {
    uint64_t started, saved, failed;  /* lines; failed: in the errors file, malformed included */
    uint64_t malformed, attempts, retries;
    uint64_t in_flight, waiting;      /* now: sent and unanswered; waiting for a retry */
    uint64_t total_bytes, read_bytes; /* of the input; a guess at what is left */
    uint64_t read_lines; /* of it, blank and skipped ones too: skip_lines of a run that goes on */
    int64_t  elapsed_ns, warm_ns;     /* since the clock started; spent before it on warming */
    int64_t  first_attempts_ns;       /* when the last first attempt was sent */
    double   lateness_p50_ms, lateness_p99_ms, lateness_max_ms; /* of first attempts' sending */
    double   latency_p50_ms, latency_p90_ms, latency_p99_ms, latency_max_ms;
    double   service_p50_ms, service_p99_ms;
    uint64_t input_tokens, output_tokens;
    uint64_t errors[LLMKIT_NUM_ERRORS]; /* failed attempts by code; E_JSON: malformed lines too */
    const char *save_path, *errors_path;    /* until llmkit_batch_destroy, */
    const llmkit_endpoint_stats *endpoints; /* as these */
    size_t   num_endpoints;
    bool     finished; /* the whole input was read and answered */
    llmkit_client_stats client;
} llmkit_batch_stats;

/* Lines in are {"input": "..."}.  Every line that is started ends as one line in exactly one of
 * two files:
 *   save:   {"line":7,"input":"...","response":"...","endpoint":"...","model":"...",
 *            "finish":"stop","attempts":1,"latency_ms":41.8,"usage":{...}}
 *   errors: {"line":8,"input":"...","error":"...","code":"E_SERVER","status":500,"attempts":3,
 *            "endpoint":"...","request_id":"...","latency_ms":...}
 * in order of completion.  Malformed lines go to errors, with their number and "raw" for input. */
typedef struct llmkit_batch_desc {
    uint32_t               _guard0;
    llmkit_env             env;
    const char            *requests_path; /* a file: a pipe that stalls would hold up everything */
    const char            *save_path;   /* default: requests_path, its .jsonl made _results.jsonl */
    const char            *errors_path; /* default: errors.jsonl beside save_path */
    bool                   append;      /* add to output files; else they must be new or empty */
    uint64_t               skip_lines;  /* of the input: where an earlier run stopped */
    const llmkit_endpoint *endpoints;
    size_t                 num_endpoints;
    const char            *model, *system;
    llmkit_tls            *tls;
    double   max_requests_per_s; /* retries included; at most 1e9; default: no limit */
    uint32_t max_attempts;       /* for each line, the first included; default 3 */
    uint32_t max_in_flight;      /* default 4096; what waits for a retry counts */
    uint32_t warm;               /* connections opened before the clock starts; default: 50 ms'
                                    worth of requests, at most max_in_flight and 512 */
    uint32_t max_line_bytes;     /* default 16 MiB */
    uint32_t max_tokens;         /* of each reply; default: the model's */
    uint32_t backoff_ms, max_backoff_ms, max_retry_after_ms;  /* as in llmkit_client_desc */
    uint32_t connect_ms, tls_ms, first_byte_ms, idle_ms, total_ms; /* likewise, for one attempt */
    /* Called on the batch's thread every progress_ms (default 200) and once at the end.  It may
     * stop the batch, and must not destroy it. */
    void   (*progress)(void *user, const llmkit_batch_stats *stats);
    uint32_t progress_ms;
    void    *user;
    uint32_t _guard1;
} llmkit_batch_desc;

/* One run.  It belongs to one thread, and runs its own loop and client there. */
typedef struct llmkit_batch llmkit_batch;

/* Opens the files and checks the desc: what is wrong is said here, before anything is sent. */
LLMKIT_API llmkit_batch *llmkit_batch_create(const llmkit_batch_desc *desc, llmkit_error *error);
/* Blocks until all lines are answered, or the stop has taken effect.  OK even if lines failed; else
 * the reason why the run could not go on (a full disk): what was in flight is recorded first where
 * that is possible. */
LLMKIT_API llmkit_err llmkit_batch_run(llmkit_batch *batch, llmkit_error *error);
/* Any thread, and signal handlers.  First call: start no more lines, retry none, finish what is in
 * flight.  Second: record it as E_CANCELLED at once. */
LLMKIT_API void llmkit_batch_stop(llmkit_batch *batch);
LLMKIT_API llmkit_batch_stats llmkit_batch_read(const llmkit_batch *batch);
LLMKIT_API void llmkit_batch_destroy(llmkit_batch *batch); /* not while it runs; NULL is fine */
