/* api/chat.h -- one request, reply and stream of events for every provider */
#pragma once

typedef enum llmkit_role {
    LLMKIT_USER,
    LLMKIT_ASSISTANT,
    LLMKIT_SYSTEM,
    LLMKIT_TOOL
} llmkit_role;

typedef enum llmkit_part_kind { /* Part                           Set besides kind */
    LLMKIT_TEXT,                /* Words                          text */
    LLMKIT_IMAGE,               /* A picture                      url, or data (bytes) and mime */
    LLMKIT_TOOL_CALL,           /* What the assistant asked for   id, text: name, data: arguments */
    LLMKIT_TOOL_RESULT          /* The answer to it               id, text */
} llmkit_part_kind;

typedef struct llmkit_part {
    llmkit_part_kind kind;
    llmkit_str       text, data, mime, url, id;
} llmkit_part;

typedef struct llmkit_message {
    llmkit_role        role;
    const char        *text; /* short for one LLMKIT_TEXT part, before the others */
    const llmkit_part *parts;
    size_t             num_parts;
} llmkit_message;

typedef struct llmkit_tool {
    const char *name, *description;
    const char *schema; /* JSON Schema of its arguments; default: none are taken */
} llmkit_tool;

/* All zero but model and prompt is a whole request.  Strings are UTF-8.  Everything it points to is
 * copied before the call returns. */
typedef struct llmkit_request {
    uint32_t              _guard0;
    const char           *model;    /* required unless the provider's desc has one */
    const char           *provider; /* a provider's name: only that one; default: the first */
    const char           *system;
    const llmkit_message *messages; /* at least one, or a prompt */
    size_t                num_messages;
    const char           *prompt;   /* short for one LLMKIT_USER message at the end */
    const llmkit_tool    *tools;
    size_t                num_tools;
    const char           *tool_choice; /* "auto", "none", "required" or a tool's name */
    const char           *schema;   /* JSON Schema that the reply must meet */
    const char           *extra;    /* JSON object; its members replace or join the body's */
    llmkit_opt            temperature, top_p, seed;
    uint32_t              max_tokens; /* default: the model's */
    const char *const    *headers;  /* more HTTP fields: name, value, ..., NULL */
    /* 0: as the client's desc says */
    uint32_t              first_byte_ms, idle_ms, total_ms, max_tries;
    uint32_t              _guard1;
} llmkit_request;

/* Tokens.  -1 was not reported: absent is not zero. */
typedef struct llmkit_usage {
    int64_t input, output, cache_read, reasoning;
} llmkit_usage;

typedef enum llmkit_finish {
    LLMKIT_UNFINISHED, /* the reply broke off: see the error */
    LLMKIT_STOP,       /* the model was done */
    LLMKIT_LENGTH,     /* max_tokens or the model's limit */
    LLMKIT_TOOL_USE,   /* it waits for the results of its tool calls */
    LLMKIT_FILTER,     /* the provider withheld the rest */
    LLMKIT_OTHER       /* finish_text has the provider's own word */
} llmkit_finish;

typedef struct llmkit_tool_call {
    llmkit_str id, name, arguments; /* arguments: JSON, as the model wrote it */
    uint32_t   index;
} llmkit_tool_call;

typedef struct llmkit_call {
    uint64_t id; /* 0 is none; that of an ended call is harmless */
} llmkit_call;

/* An event of a streamed call.  Its views end with the callback, or at the next
 * llmkit_stream_next.  What one type does not set is zero. */
typedef enum llmkit_event_type { /* Event                         Set besides type and call */
    LLMKIT_EV_NONE,
    LLMKIT_EV_START,             /* A provider took the call      provider, model, request_id */
    LLMKIT_EV_TEXT,              /* A piece of the answer         text */
    LLMKIT_EV_REFUSAL,           /* A piece of a refusal          text */
    LLMKIT_EV_TOOL_BEGIN,        /* A tool call starts            tool: id, name, index */
    LLMKIT_EV_TOOL_DELTA,        /* A piece of its arguments      tool: index; text */
    LLMKIT_EV_TOOL_END,          /* It is complete                tool, whole */
    LLMKIT_EV_USAGE,             /* Tokens so far                 usage */
    LLMKIT_EV_DONE               /* Over: last of every call      finish, usage, attempts, error */
} llmkit_event_type;

typedef struct llmkit_event {
    llmkit_event_type   type;
    llmkit_call         call;
    llmkit_str          text, provider, model, request_id, finish_text;
    llmkit_tool_call    tool;
    llmkit_finish       finish;
    llmkit_usage        usage;
    uint32_t            attempts;
    const llmkit_error *error; /* NULL if the call went well */
} llmkit_event;

typedef void (*llmkit_event_fn)(void *user, const llmkit_event *event);

/* A whole reply.  llmkit_reply_free ends every view in it. */
typedef struct llmkit_reply {
    llmkit_str              text, refusal, model, provider, request_id, finish_text;
    llmkit_str              raw; /* the provider's JSON */
    const llmkit_tool_call *tool_calls;
    size_t                  num_tool_calls;
    llmkit_finish           finish;
    llmkit_usage            usage;
    uint32_t                attempts;
    int64_t                 first_byte_ns, total_ns; /* from submission */
    llmkit_error            error; /* error.code is what llmkit_complete returned */
    void                   *_memory;
} llmkit_reply;

typedef void (*llmkit_reply_fn)(void *user, const llmkit_reply *reply);

LLMKIT_API void llmkit_reply_free(llmkit_reply *reply);
