/* llm/client.h -- a client, its providers, and one call from submission to its last event */
#pragma once

#include "llm/codec.h"
#include "llm/retry.h"
#include "net/fetch.h"
#include "net/sse.h"

typedef struct lk__provider {
    const lk__codec *codec;
    lk__origin      *origin;
    char            *name, *model;
    lk__buf          head; /* of every request, up to the fields that differ; ends with the key */
    size_t           key_at; /* in head, up to its last CRLF; head.len: none */
    bool             completion_tokens; /* the token limit is called max_completion_tokens here */
} lk__provider;

typedef enum lk__call_state {
    LK__CALL_FREE,
    LK__CALL_TRYING,  /* an attempt is running */
    LK__CALL_RESTING, /* until the next one */
    LK__CALL_OVER     /* its last callback is running, or has run */
} lk__call_state;

typedef struct lk__call {
    lk__fetch        fetch;
    llmkit_client   *client;
    struct lk__call *next, *prev; /* among the live, or the free */
    uint64_t         id;          /* generation << 32 | slot + 1 */
    uint8_t          state;
    bool             stream;
    bool             committed; /* something of the reply has been handed on: no silent retry */
    bool             events;    /* the response is an event stream */
    lk__provider    *provider;
    lk__timer        timer; /* the next attempt, or the total deadline */
    int64_t          begun_ns, total_due_ns, retry_ns;
    lk__retry_policy retry;
    uint32_t         attempts;
    uint64_t         received; /* bytes of the body */
    uint16_t         status;   /* of this attempt's response, 0 before it */
    lk__buf          head, body;   /* of the request */
    lk__buf          input;        /* the reply's body, where it is collected */
    lk__buf          arena, tools; /* what a whole reply's views point to */
    char             model[256];   /* as the provider named it */
    lk__sse          sse;
    lk__answer       answer;
    llmkit_error     error; /* of this attempt */
    char             request_id[64];
    llmkit_event_fn  on_event;
    llmkit_reply_fn  on_reply;
    void            *user;
} lk__call;

struct llmkit_client {
    llmkit_env       env;
    llmkit_loop     *loop;
    bool             own_loop;
    bool             dying;  /* destroyed inside a callback: the memory goes when that is over */
    lk__task         burial;
    lk__pool        *pool;
    lk__provider    *providers;
    size_t           num_providers;
    lk__retry_policy retry;
    int64_t          first_byte_ns, idle_ns, total_ns; /* 0: the default, which depends */
    uint32_t         max_calls, max_reply_bytes;
    lk__call       **slots;
    uint32_t         num_slots, cap_slots;
    lk__call        *live, *free;
    lk__json         json;    /* these two for one response at a time, */
    lk__buf          scratch;
    lk__json         draft;   /* and this for requests: a callback may submit one */
    llmkit_client_stats stats;
    lk__mutex        cancel_lock;
    lk__buf          cancelled; /* ids, from any thread; under the lock */
    lk__post         cancel_post;
};

/* Pull streams pause the calls they read. */
LK__PRIV lk__call *lk__client_find(const llmkit_client *client, llmkit_call call);
LK__PRIV void lk__call_cancel_now(lk__call *c);
LK__PRIV void lk__buf_wipe(lk__buf *b); /* frees a buffer that holds a secret */
