/* llm/codec.h -- a dialect: how a request is written and a reply is read, without sockets */
#pragma once

#include "core/json.h"

/* A request on its way to JSON. */
typedef struct lk__draft {
    const llmkit_request *request;
    llmkit_str            model;
    bool                  stream;
    bool                  completion_tokens; /* the limit is called max_completion_tokens */
    lk__json             *json;  /* to parse what the caller wrote in JSON */
    lk__buf              *body;  /* where it goes */
} lk__draft;

/* A tool call as its pieces arrive. */
typedef struct lk__tool_part {
    uint32_t index;
    bool     ended;
    lk__buf  id, name, arguments;
} lk__tool_part;

enum { LK__MAX_TOOL_PARTS = 256 }; /* in one reply */

/* A streamed reply as its events arrive: decoded events go to emit at once, and what later events
 * need is kept. */
typedef struct lk__answer {
    const llmkit_env *env;
    lk__json         *json;    /* scratch, for one event at a time */
    lk__buf          *scratch; /* the text of one event */
    size_t            max_bytes;
    lk__tool_part    *tools;
    uint32_t          num_tools, cap_tools;
    llmkit_usage      usage;
    llmkit_finish     finish;
    char              finish_text[32];
    bool              complete; /* the dialect's own end was seen */
    bool              started;
    uint32_t          told;     /* events emitted */
    lk__buf           pattern;  /* the last event that was nothing but a piece of text, */
    size_t            hole[2], hole_len[2]; /* and where in it the strings stand that may differ */
    lk__node          only_text; /* the text, while an event is read; -1: none, -2: several */
    /* Fills in the call; false: the call ended inside the callback, touch nothing. */
    bool            (*emit)(void *user, llmkit_event *event);
    void             *user;
} lk__answer;

typedef struct lk__codec {
    const char *path; /* after the base URL */
    /* The body; E_ARG where the request makes no sense, with the field to change. */
    llmkit_err (*write)(lk__draft *draft, llmkit_error *error);
    /* A whole reply, parsed: fills text, refusal, tool calls, finish, usage and model.  arena has
     * room for all strings of the document; tool calls go to tools, which may grow. */
    llmkit_err (*read)(const lk__json *doc, llmkit_reply *reply, lk__buf *arena, lk__buf *tools,
                       llmkit_error *error);
    /* One event of a stream.  False: the call ended inside a callback, or *error is set. */
    bool (*read_event)(lk__answer *answer, llmkit_str data, llmkit_error *error);
    /* The provider's error object, if there is one in the document: type and message.  They also
     * say what kind of error it is, where error->http_status is 0 since no status has said so. */
    bool (*read_error)(const lk__json *doc, llmkit_error *error, lk__buf *scratch);
} lk__codec;

LK__PRIV const lk__codec *lk__codec_openai(void); /* NULL: compiled out */

LK__PRIV void lk__answer_init(lk__answer *a, const llmkit_env *env);
LK__PRIV void lk__answer_reset(lk__answer *a); /* for another attempt or call */
LK__PRIV void lk__answer_free(lk__answer *a);
LK__PRIV bool lk__answer_emit(lk__answer *a, llmkit_event *event);

/* The events of a stream mostly differ in one string, the text, and some servers add another that
 * nobody reads.  learn notes an event that was nothing but a piece of text: raw is that string in
 * it, padding one behind it that may differ as well, or {NULL, 0}.  fits tells whether another
 * event is the same but for these strings, byte for byte: then it is as valid, says the same, and
 * need not be parsed. */
LK__PRIV void lk__answer_learn(lk__answer *a, llmkit_str data, llmkit_str raw,
                               llmkit_str padding);
LK__PRIV bool lk__answer_fits(const lk__answer *a, llmkit_str data, llmkit_str *raw);

/* The part with this index, begun anew if there is none; NULL with *error set. */
LK__PRIV lk__tool_part *lk__answer_tool(lk__answer *a, uint32_t index, llmkit_error *error);
/* EV_TOOL_END for all that have not had theirs. */
LK__PRIV bool lk__answer_end_tools(lk__answer *a);
