/* api/base.h -- strings, errors, and what the library asks of its surroundings */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A view of bytes.  It never owns them.  What comes out of the library is also NUL-terminated. */
typedef struct llmkit_str {
    const char *ptr;
    size_t      len;
} llmkit_str;

/* A number for which zero means something, such as a temperature: LLMKIT_OPT(0) sets it to 0, and
 * {0} leaves it to the provider. */
typedef struct llmkit_opt {
    bool   set;
    double value;
} llmkit_opt;

#ifdef __cplusplus
#define LLMKIT_STR(literal) (llmkit_str{ "" literal, sizeof(literal) - 1 })
#define LLMKIT_OPT(x)       (llmkit_opt{ true, (x) })
#else
#define LLMKIT_STR(literal) ((llmkit_str){ "" literal, sizeof(literal) - 1 })
#define LLMKIT_OPT(x)       ((llmkit_opt){ true, (x) })
#endif

#define LLMKIT_ERRORS(X)                                                                           \
    X(OK,           "no error")                                                                    \
    X(E_NOMEM,      "the allocator returned NULL")                                                 \
    X(E_ARG,        "an argument is missing or out of range")                                      \
    X(E_NOT_ZEROED, "a desc struct was not zero-initialised")                                      \
    X(E_STALE,      "the handle's call has already ended")                                         \
    X(E_BUSY,       "not possible at this moment, or a fixed-size pool is full")                   \
    X(E_DNS,        "the host name did not resolve")                                               \
    X(E_CONNECT,    "the connection was refused or unreachable")                                   \
    X(E_TLS,        "the TLS handshake or a record failed")                                        \
    X(E_CERT,       "the peer's certificate was not accepted")                                     \
    X(E_IO,         "a socket or a file failed")                                                   \
    X(E_TRUNCATED,  "the peer ended the message early")                                            \
    X(E_PROTOCOL,   "the peer broke HTTP or event-stream framing")                                 \
    X(E_TOO_BIG,    "a message is over its configured limit")                                      \
    X(E_JSON,       "malformed or unexpected JSON")                                                \
    X(E_TIMEOUT,    "a deadline passed; error.deadline says which")                                \
    X(E_CANCELLED,  "the call was cancelled")                                                      \
    X(E_LIMITED,    "a rate limit refused the call")                                               \
    X(E_QUOTA,      "the account's quota is used up")                                              \
    X(E_AUTH,       "the provider refused the key")                                                \
    X(E_REQUEST,    "the provider refused the request")                                            \
    X(E_OVERLOADED, "the provider is overloaded")                                                  \
    X(E_SERVER,     "the provider failed")                                                         \
    X(E_ROUTE,      "no provider serves this request")                                             \
    X(E_DISABLED,   "compiled out by a LLMKIT_WITH_ macro")

#define LLMKIT_ERROR_ITEM(name, text) LLMKIT_##name,
typedef enum llmkit_err { LLMKIT_ERRORS(LLMKIT_ERROR_ITEM) LLMKIT_NUM_ERRORS } llmkit_err;
#undef LLMKIT_ERROR_ITEM

/* Which deadline passed, with LLMKIT_E_TIMEOUT.  Each has a field of the same name, ending in _ms,
 * in llmkit_client_desc. */
typedef enum llmkit_deadline {
    LLMKIT_DEADLINE_NONE,
    LLMKIT_DEADLINE_CONNECT,    /* name resolution and TCP */
    LLMKIT_DEADLINE_TLS,        /* the handshake */
    LLMKIT_DEADLINE_FIRST_BYTE, /* from the request sent to the first byte of the reply */
    LLMKIT_DEADLINE_IDLE,       /* between two bytes of the reply */
    LLMKIT_DEADLINE_TOTAL       /* the whole call, retries included */
} llmkit_deadline;

/* Everything known about a failure, by value: valid as long as the struct that holds it.  A call
 * that succeeds may leave anything in it: look at what the call returned. */
typedef struct llmkit_error {
    llmkit_err      code;
    llmkit_deadline deadline;
    bool            retryable;      /* the same request may succeed later */
    uint16_t        http_status;    /* 0 if the failure came before a status line */
    int             os_errno;       /* errno where one was set; E_DNS: getaddrinfo's code */
    int             tls_code;       /* BearSSL's own code, with E_TLS and E_CERT */
    uint32_t        retry_after_ms; /* 0 unless the provider said so */
    char            provider[32];   /* "" if none was chosen */
    char            type[48];       /* the provider's error type or code, "" if it gave none */
    char            request_id[64]; /* the provider's, "" if it gave none */
    char            message[256];   /* one line, for people: names the thing to change */
} llmkit_error;

LLMKIT_API const char *llmkit_err_name(llmkit_err err); /* "E_TIMEOUT" */
LLMKIT_API const char *llmkit_err_text(llmkit_err err); /* "a deadline passed; ..." */

/* What the library asks of its surroundings.  All zero: malloc, silence, CLOCK_MONOTONIC, entropy
 * of the operating system.  A test passes a failing allocator, a virtual clock and a fixed seed.
 * Objects that threads share need an alloc that threads may share. */
typedef enum llmkit_level {
    LLMKIT_ERROR,
    LLMKIT_WARN,
    LLMKIT_INFO,
    LLMKIT_DEBUG
} llmkit_level;

typedef struct llmkit_env {
    /* ptr NULL: allocate; new_size 0: free; else resize, keeping ptr on failure */
    void   *(*alloc)(void *user, void *ptr, size_t old_size, size_t new_size);
    void    (*log)(void *user, llmkit_level level, llmkit_err code, const char *text);
    int64_t (*now_ns)(void *user); /* never goes back */
    void     *user;
    uint64_t  seed; /* of backoff jitter and the like; 0: entropy of the operating system */
} llmkit_env;

/* Of the implementation: major << 16 | minor << 8 | patch, and all that was compiled in, such as
 * "0.1.0 src:8ae7... tls:bearssl loop:epoll ...". */
LLMKIT_API uint32_t llmkit_version(void);
LLMKIT_API const char *llmkit_build_info(void);
