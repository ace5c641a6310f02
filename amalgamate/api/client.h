/* api/client.h -- calls to models: whole, streamed and asynchronous */
#pragma once

typedef struct llmkit_provider_desc {
    const char *name;     /* default: the host of base_url, or "openai" */
    const char *base_url; /* as official clients take it: "https://host/v1", "unix:/run/x.sock:/v1";
                             default: OPENAI_BASE_URL, then https://api.openai.com/v1 */
    const char *api_key;  /* default: OPENAI_API_KEY, for "openai" alone; "": none is sent */
    const char *model;    /* for requests that name none */
} llmkit_provider_desc;

/* Belongs to the thread that runs its loop.  After a fork it is the parent's. */
typedef struct llmkit_client llmkit_client;

typedef struct llmkit_client_desc {
    uint32_t                    _guard0;
    llmkit_env                  env;
    const llmkit_provider_desc *providers; /* default: OpenAI, from the environment */
    size_t                      num_providers;
    llmkit_loop                *loop; /* default: a private one */
    llmkit_tls                 *tls;  /* default: one of its own, with the system's trust */
    uint32_t max_calls;          /* in flight at once; default 16384 */
    uint32_t max_connections;    /* to each provider; default 16384 */
    uint32_t max_tries;          /* of one call, the first included; default 3 */
    uint32_t backoff_ms;         /* before the first retry, doubled for each further; default 500 */
    uint32_t max_backoff_ms;     /* default 8000 */
    uint32_t max_retry_after_ms; /* a provider that asks for more fails the call; default 120000 */
    uint32_t max_reply_bytes;    /* default 64 MiB */
    uint32_t connect_ms;         /* default 10000 */
    uint32_t tls_ms;             /* default 10000 */
    uint32_t first_byte_ms;      /* default 60000 for streams, 600000 for whole replies */
    uint32_t idle_ms;            /* default 60000 */
    uint32_t total_ms;           /* default 600000 for whole replies, none for streams */
    uint32_t keep_alive_ms;      /* an idle connection is closed after; default 60000 */
    uint32_t max_age_ms;         /* no connection serves longer; default 600000 */
    uint32_t dns_ms;             /* addresses are looked up anew after; default 60000 */
    uint32_t _guard1;
} llmkit_client_desc;

typedef struct llmkit_client_stats {
    uint64_t calls, attempts, retries;
    uint64_t resent;                /* at once, since a kept connection was stale */
    uint64_t connects, reused;      /* connections opened; requests on a used one */
    uint32_t open, idle, in_flight; /* now: connections, those unused, calls */
} llmkit_client_stats;

/* desc NULL: all defaults.  NULL on failure, with the reason in error, which may be NULL. */
LLMKIT_API llmkit_client *llmkit_client_create(const llmkit_client_desc *desc, llmkit_error *error);
/* Live calls end first, each with E_CANCELLED.  Inside a callback of its own it waits until that
 * returns. */
LLMKIT_API void llmkit_client_destroy(llmkit_client *client);
LLMKIT_API llmkit_loop *llmkit_client_loop(llmkit_client *client);
LLMKIT_API llmkit_client_stats llmkit_client_read(const llmkit_client *client);
/* Opens connections to a provider (NULL: the first) until it has count of them, ahead of need. */
LLMKIT_API llmkit_err llmkit_client_warm(llmkit_client *client, const char *provider,
                                         uint32_t count, llmkit_error *error);

/* Whole: blocks until the reply is complete, and returns reply->error.code.  Free the reply in
 * either case.  Inside a callback of the same loop: E_BUSY; on a loop with desc.watch: E_ARG. */
LLMKIT_API llmkit_err llmkit_complete(llmkit_client *client, const llmkit_request *request,
                                      llmkit_reply *reply);

/* Pull: for (llmkit_event e; llmkit_stream_next(s, &e);) ...  The last event is EV_DONE.  NULL on
 * failure, and on a loop with desc.watch.  Inside a callback of the same loop _next does not wait:
 * false where no event is there yet. */
typedef struct llmkit_stream llmkit_stream;
LLMKIT_API llmkit_stream *llmkit_stream_open(llmkit_client *client, const llmkit_request *request,
                                             llmkit_error *error);
LLMKIT_API bool llmkit_stream_next(llmkit_stream *stream, llmkit_event *event);
LLMKIT_API void llmkit_stream_close(llmkit_stream *stream); /* early: cancels */

/* Push: fn runs on the loop's thread, never inside llmkit_submit, and gets exactly one EV_DONE if
 * this returns OK, none if not.  call and error may be NULL. */
LLMKIT_API llmkit_err llmkit_submit(llmkit_client *client, const llmkit_request *request,
                                    llmkit_event_fn fn, void *user, llmkit_call *call,
                                    llmkit_error *error);
/* The same for a whole reply: fn runs once.  The reply is freed when it returns. */
LLMKIT_API llmkit_err llmkit_submit_whole(llmkit_client *client, const llmkit_request *request,
                                          llmkit_reply_fn fn, void *user, llmkit_call *call,
                                          llmkit_error *error);
/* Any thread.  Unless it ends before, the call ends with E_CANCELLED on a later turn. */
LLMKIT_API llmkit_err llmkit_cancel(llmkit_client *client, llmkit_call call);
/* Stops and resumes reading the reply: TCP pushes back.  Events of what was read before still come.
 * While it is paused no deadline but the total one runs. */
LLMKIT_API llmkit_err llmkit_pause(llmkit_client *client, llmkit_call call);
LLMKIT_API llmkit_err llmkit_resume(llmkit_client *client, llmkit_call call);
