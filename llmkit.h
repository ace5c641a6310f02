/* llmkit.h -- generated from amalgamate/ by `make`: edit the pieces there. */
/* llmkit.h -- call language models from C.  One header over BearSSL, jsmn and POSIX.
 *
 * In one C11 file of your program:
 *
 *     #define LLMKIT_IMPLEMENTATION
 *     #include "llmkit.h"
 *
 * and in all others just the second line.  Link with -lbearssl.
 *
 *   api/config.h       every macro a program may set, its default and what it saves
 *   api/base.h         strings, errors, and what the library asks of its surroundings
 *   api/json.h         just enough JSON to read tool arguments and write replies
 *   api/loop.h         the event loop: our own, or a guest in yours
 *   api/tls.h          trust, identity and TLS sessions, shared by clients, servers and threads
 *   api/limits.h       token buckets
 *   api/chat.h         one request, reply and stream of events for every provider
 *   api/client.h       calls to models: whole, streamed and asynchronous
 *   api/batch.h        many requests at a steady rate: JSONL in, JSONL out
 *   api/server.h       an HTTP/1.1 server on the loop
 *   core/platform.h    system headers, and what the platform and the compiler have
 *   core/atomic.h      the few atomic words and locks that threads share
 *   core/mem.h         the surroundings filled in: allocation, clock, log
 *   core/mem.c         the allocator hook, the clock, the log, and wiping of secrets
 *   core/str.h         views of bytes, growing buffers, numbers to and from text
 *   core/str.c         views of bytes, growing buffers, numbers to and from text
 *   core/error.h       filling in a llmkit_error
 *   core/error.c       names of errors, and filling in a llmkit_error
 *   core/rand.h        random numbers for jitter, ids and hash keys; not for secrets
 *   core/rand.c        random numbers for jitter, ids and hash keys; not for secrets
 *   core/json.h        reading JSON through jsmn, and writing it
 *   core/json.c        JSON: validation, jsmn's tokens, lookups, escapes, writing
 *   core/sketch.h      quantiles of durations in a fixed space
 *   core/sketch.c      quantiles of durations in a fixed space
 *   policy/bucket.c    token buckets: GCRA in one word
 *   net/url.h          the URLs of providers and endpoints
 *   net/url.c          the URLs of providers and endpoints
 *   net/http1.h        HTTP/1.1 messages, both directions (RFC 9112)
 *   net/http1.c        HTTP/1.1 messages: heads, bodies and chunks in, heads and chunks out
 *   net/sse.h          event streams, both directions (WHATWG HTML 9.2)
 *   net/sse.c          event streams: lines into events, events into lines
 *   net/loop.h         readiness, timers and deferred work, for the pieces above
 *   net/loop_parts.h   what the loop is put together from: queues, pollers, the timer heap
 *   net/loop_epoll.c   readiness on Linux
 *   net/loop_kqueue.c  readiness on the BSDs and macOS
 *   net/loop_poll.c    readiness on any POSIX system
 *   net/loop_guest.c   readiness that another event loop reports
 *   net/loop_timer.c   the heap of timers
 *   net/loop_sys.c     the socket calls, with the differences between systems evened out
 *   net/loop.c         the event loop: turns, readiness, timers, deferred tasks, posts from threads
 *   net/dns.h          name resolution off the loop's thread
 *   net/dns.c          getaddrinfo in threads of its own, a few at a time
 *   net/tls.h          one TLS connection as a state machine without sockets
 *   net/tls_trust.c    what TLS connections share: trust anchors, an identity, sessions
 *   net/tls.c          one TLS connection: profile, verification, handshake, errors in words
 *   net/wire.h         a byte stream over a socket, plain or TLS, client or server
 *   net/wire.c         moving bytes between a socket, a TLS engine and the owner of both
 *   net/dial.h         a TCP or Unix connection to the first of several addresses that answers
 *   net/dial.c         connection attempts, staggered and raced (RFC 8305)
 *   net/fetch.h        one HTTP exchange with its deadlines, on a pool of kept-alive connections
 *   net/fetch.c        origins, their connections, and exchanges that wait for one or run on one
 *   llm/codec.h        a dialect: how a request is written and a reply is read, without sockets
 *   llm/codec.c        what all dialects share in reading a stream
 *   llm/openai.c       the dialect of OpenAI's chat completions, and of all that speak it
 *   llm/retry.h        which failures are tried again, and when
 *   llm/retry.c        statuses, Retry-After and backoff, as the official clients do it
 *   llm/client.h       a client, its providers, and one call from submission to its last event
 *   llm/client.c       attempts, retries and the end of a call
 *   llm/stream.c       the two blocking ways to call: whole replies, streams one event at a time
 *   llm/lines.h        files of lines, read and written in large pieces
 *   llm/lines.c        files of lines: buffering, and what is left of a file when the disk is full
 *   llm/batch.c        the batch requester: pacing, endpoints, retries, and one line out for one in
 *   srv/server.c       the HTTP/1.1 server: listening, connections, exchanges, deadlines
 *   core/end.h         leaves no private macro behind
 *
 * MIT licence, see the end of this file.
 */

/* ==== >>api/config.h ========================================================================== */
/* api/config.h -- every macro a program may set, its default and what it saves */

/* Set them before including llmkit.h in the file that defines LLMKIT_IMPLEMENTATION, or on the
 * compiler's command line.  Only LLMKIT_API and LLMKIT_STATIC matter to the declarations; no macro
 * changes the layout of a public struct, so units compiled with different settings can be linked
 * together.  This piece stands outside the include guard and may be read twice: first for the
 * declarations, then for the implementation.
 *
 * LLMKIT_IMPLEMENTATION   not set    this unit holds the code (one C11 file per program)
 * LLMKIT_STATIC           not set    the whole API is static in this unit: a private copy
 * LLMKIT_API              extern     linkage of the public functions */

#define LLMKIT_VERSION_MAJOR 0
#define LLMKIT_VERSION_MINOR 1
#define LLMKIT_VERSION_PATCH 0

#ifndef LLMKIT_API
#if defined(LLMKIT_STATIC) && defined(__GNUC__)
#define LLMKIT_API static __attribute__((unused))
#elif defined(LLMKIT_STATIC)
#define LLMKIT_API static
#else
#define LLMKIT_API extern
#endif
#endif

#ifdef LLMKIT_IMPLEMENTATION

/* -std=c11 hides POSIX unless it is asked for before the first system header of the unit.  These
 * are what -std=gnu11 has anyway, so nothing is hidden from the rest of the unit. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1 /* glibc, musl */
#endif
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE 1
#endif
#if defined(__FreeBSD__) && !defined(__BSD_VISIBLE)
#define __BSD_VISIBLE 1
#endif
#if defined(__NetBSD__) && !defined(_NETBSD_SOURCE)
#define _NETBSD_SOURCE 1
#endif

/* Parts.  1: in, 0: out.  What is out costs nothing; its functions stay declared and fail with
 * LLMKIT_E_DISABLED.  `make sizes` prints what each one saves. */

#ifndef LLMKIT_WITH_TLS
#define LLMKIT_WITH_TLS 1 /* https: through BearSSL; 0: http: and unix: only, no -lbearssl */
#endif
#ifndef LLMKIT_WITH_THREADS
#if defined(__STDC_NO_ATOMICS__) || defined(__TINYC__)
#define LLMKIT_WITH_THREADS 0 /* plain words for atomics, blocking name resolution */
#else
#define LLMKIT_WITH_THREADS 1 /* C11 atomics, POSIX mutexes, a resolver thread for each lookup */
#endif
#endif
#ifndef LLMKIT_WITH_GETENV
#define LLMKIT_WITH_GETENV 1 /* keys and base URLs from the environment */
#endif
#ifndef LLMKIT_WITH_OPENAI
#define LLMKIT_WITH_OPENAI 1 /* the dialect of OpenAI's chat completions */
#endif
#ifndef LLMKIT_WITH_LIMITER
#define LLMKIT_WITH_LIMITER 1 /* token buckets */
#endif
#ifndef LLMKIT_WITH_BATCH
#define LLMKIT_WITH_BATCH LLMKIT_WITH_LIMITER /* JSONL in, JSONL out; paced by a token bucket */
#endif
#ifndef LLMKIT_WITH_SERVER
#define LLMKIT_WITH_SERVER 1 /* the HTTP server */
#endif

/* How the loop waits.  The default is the best the platform has. */

#define LLMKIT_LOOP_EPOLL  1
#define LLMKIT_LOOP_KQUEUE 2
#define LLMKIT_LOOP_POLL   3
#ifndef LLMKIT_LOOP
#if defined(__linux__)
#define LLMKIT_LOOP LLMKIT_LOOP_EPOLL
#elif defined(__APPLE__) || defined(__FreeBSD__) || defined(__OpenBSD__) || defined(__NetBSD__) || \
    defined(__DragonFly__)
#define LLMKIT_LOOP LLMKIT_LOOP_KQUEUE
#else
#define LLMKIT_LOOP LLMKIT_LOOP_POLL
#endif
#endif

/* Ceilings. */

#ifndef LLMKIT_MAX_HEADERS
#define LLMKIT_MAX_HEADERS 96 /* fields in one HTTP message; 32 bytes of stack each */
#endif
#ifndef LLMKIT_MAX_HEAD_BYTES
#define LLMKIT_MAX_HEAD_BYTES 32768 /* start line and fields of one HTTP message */
#endif
#ifndef LLMKIT_MAX_EVENT_BYTES
#define LLMKIT_MAX_EVENT_BYTES 8388608 /* one server-sent event */
#endif
#ifndef LLMKIT_MAX_JSON_DEPTH
#define LLMKIT_MAX_JSON_DEPTH 128 /* nesting of arrays and objects we read */
#endif
#ifndef LLMKIT_READ_BYTES
#define LLMKIT_READ_BYTES 65536 /* one buffer per loop, shared by all its connections */
#endif
#ifndef LLMKIT_TLS_BUFFER
#define LLMKIT_TLS_BUFFER 16709 /* per TLS connection; less only if the peer's records are small */
#endif

#ifndef LLMKIT_ASSERT
#include <assert.h>
#define LLMKIT_ASSERT(x) assert(x) /* broken contracts, never broken worlds */
#endif

#endif /* LLMKIT_IMPLEMENTATION */

#ifndef LLMKIT_H
#define LLMKIT_H

#ifdef __cplusplus
extern "C" {
#endif

/* ==== >>api/base.h ============================================================================ */
/* api/base.h -- strings, errors, and what the library asks of its surroundings */

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

/* ==== >>api/json.h ============================================================================ */
/* api/json.h -- just enough JSON to read tool arguments and write replies */

/* Finds the value at a path such as "choices[0].delta.content" ("" is the whole document).  value
 * is its raw text inside json: of a string, what stands between the quotes, still escaped.  E_JSON
 * if json is not one valid JSON document (RFC 8259) of at most LLMKIT_MAX_JSON_DEPTH levels or
 * nothing is there; E_ARG if the path makes no sense. */
LLMKIT_API llmkit_err llmkit_json_find(llmkit_str json, const char *path, llmkit_str *value);

/* The raw text of a number, "true" as 1, "false" as 0; else E_JSON. */
LLMKIT_API llmkit_err llmkit_json_number(llmkit_str value, double *out);

/* Both write at most size bytes, the last of them a NUL, and return the length that the whole
 * result has, as snprintf does.  unescape: raw string text to UTF-8.  escape: any bytes to what
 * may stand between JSON's quotes; invalid UTF-8 becomes U+FFFD. */
LLMKIT_API size_t llmkit_json_unescape(llmkit_str value, char *buf, size_t size);
LLMKIT_API size_t llmkit_json_escape(llmkit_str text, char *buf, size_t size);

/* ==== >>api/loop.h ============================================================================ */
/* api/loop.h -- the event loop: our own, or a guest in yours */

/* A loop, and every client and server on it, belongs to the thread that runs it.  Only
 * llmkit_loop_post, llmkit_loop_stop and llmkit_cancel may be called from other threads. */
typedef struct llmkit_loop llmkit_loop;

enum { LLMKIT_READ = 1, LLMKIT_WRITE = 2 };

/* With watch set the loop makes no descriptor of its own to wait on: it tells you what to watch,
 * and you report what became ready, an error or a hang-up as both events, with llmkit_loop_ready.
 * The first watch comes from inside llmkit_loop_create.  This works inside any other event loop;
 * llmkit_loop_fd is simpler where a descriptor that stands for all is accepted.
 *
 * With env.now_ns set, a wait is as long as that clock says.  If it stands still, as in a test, use
 * llmkit_loop_poll(loop, 0).  After fork a loop is the parent's: the child may not touch it. */
typedef struct llmkit_loop_desc {
    uint32_t   _guard0;
    llmkit_env env;
    void     (*watch)(void *user, int fd, unsigned events); /* events 0: forget the descriptor */
    void      *watch_user;
    uint32_t   _guard1;
} llmkit_loop_desc;

/* desc NULL: all defaults.  NULL on failure; error may be NULL. */
LLMKIT_API llmkit_loop *llmkit_loop_create(const llmkit_loop_desc *desc, llmkit_error *error);
/* Clients and servers on it go first.  Inside a callback it goes once that turn is over. */
LLMKIT_API void llmkit_loop_destroy(llmkit_loop *loop);
/* Runs until nothing is left to wait for, or llmkit_loop_stop.  E_BUSY inside a callback; E_ARG
 * with desc.watch, where only the host can wait. */
LLMKIT_API llmkit_err llmkit_loop_run(llmkit_loop *loop);
/* One turn, waiting at most max_ms (-1: as long as it takes; with desc.watch not at all).  The
 * number of callbacks it made; 0 inside a callback. */
LLMKIT_API int llmkit_loop_poll(llmkit_loop *loop, int max_ms);
/* Any thread, and signal handlers: ends the present, or the next, llmkit_loop_run. */
LLMKIT_API void llmkit_loop_stop(llmkit_loop *loop);
/* Any thread: calls fn on the loop's thread, delay_ms from now (by env.now_ns, which is called
 * here).  A destroyed loop drops what is still posted without calling it. */
LLMKIT_API llmkit_err llmkit_loop_post(llmkit_loop *loop, uint32_t delay_ms,
                                       void (*fn)(void *user), void *user);
/* Readable when llmkit_loop_poll has work; -1 with desc.watch and with LLMKIT_LOOP_POLL. */
LLMKIT_API int llmkit_loop_fd(const llmkit_loop *loop);
/* The longest sleep allowed before the next llmkit_loop_poll; -1: for ever. */
LLMKIT_API int64_t llmkit_loop_wait_ns(llmkit_loop *loop);
/* With desc.watch: events became ready on fd.  Handled in the next llmkit_loop_poll. */
LLMKIT_API void llmkit_loop_ready(llmkit_loop *loop, int fd, unsigned events);
/* The loop's clock (env.now_ns or CLOCK_MONOTONIC), read afresh. */
LLMKIT_API int64_t llmkit_loop_now_ns(const llmkit_loop *loop);

/* ==== >>api/tls.h ============================================================================= */
/* api/tls.h -- trust, identity and TLS sessions, shared by clients, servers and threads */

/* Reference-counted: create gives one reference, each client or server that is given one takes its
 * own, release drops one.  Any thread.
 *
 * TLS 1.2 (RFC 5246) through BearSSL, with ECDHE and AES-GCM or ChaCha20-Poly1305 only.  A server's
 * chain is verified in full, for its name or its IP address.  What BearSSL does not do: TLS 1.3,
 * revocation (CRL, OCSP), name constraints, RSA-PSS and Ed25519 certificates, chains out of order;
 * a certificate without subjectAltName is matched by its common name. */
typedef struct llmkit_tls llmkit_tls;

/* All zero: the system's trust anchors, no certificate of our own.  Files are read and copied in
 * llmkit_tls_create, but for the system's bundle: that is read at the first handshake. */
typedef struct llmkit_tls_desc {
    uint32_t    _guard0;
    llmkit_env  env;
    const char *ca_file;   /* PEM trust anchors; default: SSL_CERT_FILE, then the system's */
    const char *ca_pem;    /* or its text */
    const char *cert_file; /* PEM chain, leaf first: a server's identity, or a client's */
    const char *key_file;  /* PEM private key, PKCS#1, SEC1 or PKCS#8, not encrypted */
    const char *cert_pem, *key_pem; /* or their texts */
    /* Remembered for resumption; default 1024 hosts (client), 4096 clients (server). */
    uint32_t    max_sessions;
    uint32_t    _guard1;
} llmkit_tls_desc;

typedef struct llmkit_tls_stats {
    uint64_t handshakes; /* completed, resumed ones included */
    uint64_t resumed;
    uint64_t failed;  /* ended before they were complete; counted when the connection is freed */
    uint32_t anchors; /* trust anchors loaded so far */
} llmkit_tls_stats;

/* desc NULL: all defaults.  NULL on failure; error may be NULL. */
LLMKIT_API llmkit_tls *llmkit_tls_create(const llmkit_tls_desc *desc, llmkit_error *error);
LLMKIT_API void llmkit_tls_release(llmkit_tls *tls); /* NULL is fine */
LLMKIT_API llmkit_tls_stats llmkit_tls_read(const llmkit_tls *tls);

/* ==== >>api/limits.h ========================================================================== */
/* api/limits.h -- token buckets */

/* per_s tokens arrive each second, at most burst of them wait.  per_s 0: no limit; burst 0: one
 * second's worth, at least 1. */
typedef struct llmkit_rate {
    double per_s, burst;
} llmkit_rate;

/* A token bucket in GCRA form (ITU-T I.371): what it knows is one 64-bit word, the theoretical
 * arrival time, moved by compare-and-swap.  Any thread, lock-free, 64 bytes.  now_ns is any clock,
 * the same for all calls; where it steps back, nothing is granted until it has caught up.  Law: in
 * any window of length T all threads together are granted at most burst + per_s * T. */
typedef struct llmkit_bucket llmkit_bucket;

/* env may be NULL.  NULL: no memory, or a rate or burst that is negative or no number, or compiled
 * out by LLMKIT_WITH_LIMITER, where all that is asked for is granted. */
LLMKIT_API llmkit_bucket *llmkit_bucket_create(const llmkit_env *env, llmkit_rate rate);
LLMKIT_API void llmkit_bucket_release(llmkit_bucket *bucket);
/* 0: cost tokens were taken; else nothing was, and in that many ns they could be.  INT64_MAX:
 * never, since cost is over the burst, negative or no number. */
LLMKIT_API int64_t llmkit_bucket_take(llmkit_bucket *bucket, double cost, int64_t now_ns);
/* After an estimated cost was taken: positive charges more, negative gives back. */
LLMKIT_API void llmkit_bucket_settle(llmkit_bucket *bucket, double difference, int64_t now_ns);
/* Tokens there now; negative while a debt is being paid off; DBL_MAX without a limit. */
LLMKIT_API double llmkit_bucket_level(const llmkit_bucket *bucket, int64_t now_ns);
LLMKIT_API void llmkit_bucket_reset(llmkit_bucket *bucket); /* full again */

/* ==== >>api/chat.h ============================================================================ */
/* api/chat.h -- one request, reply and stream of events for every provider */

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

/* ==== >>api/client.h ========================================================================== */
/* api/client.h -- calls to models: whole, streamed and asynchronous */

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

/* ==== >>api/batch.h =========================================================================== */
/* api/batch.h -- many requests at a steady rate: JSONL in, JSONL out */

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

/* ==== >>api/server.h ========================================================================== */
/* api/server.h -- an HTTP/1.1 server on the loop */

/* Belongs to its loop's thread.  Everything is bounded: a slow or hostile peer costs at most the
 * sizes below, and is closed when it has made no progress for the times below. */
typedef struct llmkit_server   llmkit_server;
typedef struct llmkit_exchange llmkit_exchange; /* one HTTP request being answered */

typedef struct llmkit_server_desc {
    uint32_t     _guard0;
    llmkit_env   env;
    llmkit_loop *loop;      /* required */
    llmkit_tls  *tls;       /* set: TLS, with its certificate */
    const char  *listen;    /* "127.0.0.1:8080", "[::1]:0", "unix:/path"; default "127.0.0.1:0" */
    uint32_t     backlog;         /* default 4096 */
    uint32_t     max_connections; /* default 16384; over it, new ones wait in the backlog */
    uint32_t     max_head_bytes;  /* default and most: LLMKIT_MAX_HEAD_BYTES */
    uint32_t     max_body_bytes;  /* of a request; default 16 MiB; over it: 413 */
    uint32_t     max_unsent_bytes; /* of a reply, waiting for a slow peer; default 1 MiB; a whole
                                      reply in one piece may be larger */
    uint32_t     head_ms;         /* TLS handshake; from first byte to whole head; default 10000 */
    uint32_t     body_ms;         /* between two bytes of a request body; default 30000 */
    uint32_t     send_ms;         /* a peer that takes nothing of its reply; default 60000 */
    uint32_t     keep_alive_ms;   /* default 75000 */
    /* A request is there, whole.  Answer it now or later on this thread.  false: 404. */
    bool       (*handle)(void *user, llmkit_exchange *exchange);
    void        *user;
    uint32_t     _guard1;
} llmkit_server_desc;

typedef struct llmkit_server_stats {
    uint64_t requests, connections;
    uint64_t refused;         /* bad requests, answered by the server itself */
    uint32_t open, in_flight; /* now */
} llmkit_server_stats;

LLMKIT_API llmkit_server *llmkit_server_create(const llmkit_server_desc *desc, llmkit_error *error);
/* Stops listening and closes idle connections; exchanges that are being answered go on, each the
 * last of its connection. */
LLMKIT_API void llmkit_server_drain(llmkit_server *server);
/* Closes everything; each exchange still open is told by its closed callback. */
LLMKIT_API void llmkit_server_destroy(llmkit_server *server);
LLMKIT_API uint16_t llmkit_server_port(const llmkit_server *server); /* with listen "127.0.0.1:0" */
LLMKIT_API llmkit_server_stats llmkit_server_read(const llmkit_server *server);

/* Views of the request: valid until the exchange ends. */
LLMKIT_API llmkit_str llmkit_exchange_method(const llmkit_exchange *exchange);
LLMKIT_API llmkit_str llmkit_exchange_path(const llmkit_exchange *exchange);  /* before any '?' */
LLMKIT_API llmkit_str llmkit_exchange_query(const llmkit_exchange *exchange); /* after it */
LLMKIT_API llmkit_str llmkit_exchange_body(const llmkit_exchange *exchange);
/* The field's value, {NULL, 0} where there is none; name in any case. */
LLMKIT_API llmkit_str llmkit_exchange_header(const llmkit_exchange *exchange, const char *name);

/* The exchange is the program's until it calls _reply, _end or _abort.  If the peer goes first (one
 * that closes its sending side counts as gone), or the server is destroyed, closed is called, once,
 * and the exchange is gone with its return; a call inside it does nothing.  Without a closed
 * callback the handle stays valid, and calls on it do nothing, until it is ended or the server is
 * destroyed. */
LLMKIT_API void llmkit_exchange_closed(llmkit_exchange *exchange, void (*closed)(void *user),
                                       void *user);
/* A field of the reply, before _reply or _begin.  Content-Length, Transfer-Encoding and Connection
 * are the server's own. */
LLMKIT_API llmkit_err llmkit_exchange_set(llmkit_exchange *exchange, const char *name,
                                          const char *value);
/* All at once; ends the exchange. */
LLMKIT_API void llmkit_exchange_reply(llmkit_exchange *exchange, int status,
                                      const char *content_type, llmkit_str body);
/* Or piece by piece.  _write: false if the piece would go over max_unsent_bytes and was not taken
 * (one alone may); writable is called when there is room again.  E_STALE: the peer is gone. */
LLMKIT_API llmkit_err llmkit_exchange_begin(llmkit_exchange *exchange, int status,
                                            const char *content_type);
LLMKIT_API bool llmkit_exchange_write(llmkit_exchange *exchange, llmkit_str piece);
LLMKIT_API void llmkit_exchange_writable(llmkit_exchange *exchange, void (*writable)(void *user),
                                         void *user);
LLMKIT_API void llmkit_exchange_end(llmkit_exchange *exchange);
/* Ends it by cutting the connection: what a crash looks like to the peer. */
LLMKIT_API void llmkit_exchange_abort(llmkit_exchange *exchange);

#ifdef __cplusplus
}
#endif

#endif /* LLMKIT_H */

#if defined(LLMKIT_IMPLEMENTATION) && !defined(LLMKIT_IMPLEMENTED)
#define LLMKIT_IMPLEMENTED
#define LK__SOURCE_SUM "78294886a86e3814"

/* ==== >>core/platform.h ======================================================================= */
/* core/platform.h -- system headers, and what the platform and the compiler have */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef CLOCK_MONOTONIC
#error "llmkit: in the file that defines LLMKIT_IMPLEMENTATION include llmkit.h before any system" \
       " header, or compile with -D_POSIX_C_SOURCE=200809L"
#endif

#if LLMKIT_LOOP == LLMKIT_LOOP_EPOLL
#include <sys/epoll.h>
#elif LLMKIT_LOOP == LLMKIT_LOOP_KQUEUE
#include <sys/event.h>
#endif
#if defined(__linux__)
#include <sys/eventfd.h>
#define LK__HAS_EVENTFD 1
#else
#define LK__HAS_EVENTFD 0
#endif

#if LLMKIT_WITH_THREADS
#include <pthread.h>
#include <stdatomic.h>
#endif

#if LLMKIT_WITH_TLS
#include <bearssl.h>
#endif

/* jsmn is one header of static functions.  Under names of our own it cannot meet another copy: the
 * program may include jsmn before or after us, with any of its macros set. */
#pragma push_macro("JSMN_H")
#pragma push_macro("JSMN_API")
#pragma push_macro("JSMN_STATIC")
#pragma push_macro("JSMN_HEADER")
#pragma push_macro("JSMN_STRICT")
#pragma push_macro("JSMN_PARENT_LINKS")
#undef JSMN_H
#undef JSMN_API
#undef JSMN_STATIC
#undef JSMN_HEADER
#undef JSMN_STRICT
#undef JSMN_PARENT_LINKS
#define JSMN_STATIC
#define JSMN_STRICT
#define JSMN_PARENT_LINKS
#define jsmntype_t           lk__jsmntype
#define jsmnerr              lk__jsmnerr
#define jsmntok_t            lk__jsmntok
#define jsmn_parser          lk__jsmn_parser
#define jsmn_init            lk__jsmn_init
#define jsmn_parse           lk__jsmn_parse
#define jsmn_alloc_token     lk__jsmn_alloc_token
#define jsmn_fill_token      lk__jsmn_fill_token
#define jsmn_parse_primitive lk__jsmn_parse_primitive
#define jsmn_parse_string    lk__jsmn_parse_string
#define JSMN_UNDEFINED       LK__JSMN_UNDEFINED
#define JSMN_OBJECT          LK__JSMN_OBJECT
#define JSMN_ARRAY           LK__JSMN_ARRAY
#define JSMN_STRING          LK__JSMN_STRING
#define JSMN_PRIMITIVE       LK__JSMN_PRIMITIVE
#define JSMN_ERROR_NOMEM     LK__JSMN_ERROR_NOMEM
#define JSMN_ERROR_INVAL     LK__JSMN_ERROR_INVAL
#define JSMN_ERROR_PART      LK__JSMN_ERROR_PART
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include <jsmn.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#undef jsmntype_t
#undef jsmnerr
#undef jsmntok_t
#undef jsmn_parser
#undef jsmn_init
#undef jsmn_parse
#undef jsmn_alloc_token
#undef jsmn_fill_token
#undef jsmn_parse_primitive
#undef jsmn_parse_string
#undef JSMN_UNDEFINED
#undef JSMN_OBJECT
#undef JSMN_ARRAY
#undef JSMN_STRING
#undef JSMN_PRIMITIVE
#undef JSMN_ERROR_NOMEM
#undef JSMN_ERROR_INVAL
#undef JSMN_ERROR_PART
#undef JSMN_H
#undef JSMN_API
#undef JSMN_STATIC
#undef JSMN_STRICT
#undef JSMN_PARENT_LINKS
#pragma pop_macro("JSMN_PARENT_LINKS")
#pragma pop_macro("JSMN_STRICT")
#pragma pop_macro("JSMN_HEADER")
#pragma pop_macro("JSMN_STATIC")
#pragma pop_macro("JSMN_API")
#pragma pop_macro("JSMN_H")

/* What the compiler has. */

#if defined(__GNUC__) || defined(__clang__) || defined(__TINYC__)
#define LK__UNUSED __attribute__((unused))
#else
#define LK__UNUSED
#endif
#if defined(__GNUC__) || defined(__clang__)
#define LK__LIKELY(x)     __builtin_expect(!!(x), 1)
#define LK__UNLIKELY(x)   __builtin_expect(!!(x), 0)
#define LK__PRINTF(at, n) __attribute__((format(printf, at, n)))
#else
#define LK__LIKELY(x)     (!!(x))
#define LK__UNLIKELY(x)   (!!(x))
#define LK__PRINTF(at, n)
#endif

/* Private functions: static in one unit, hidden where each piece is an object of its own. */
#ifdef LLMKIT__SPLIT
#define LK__PRIV __attribute__((visibility("hidden")))
#else
#define LK__PRIV static LK__UNUSED
#endif
#define LK__INLINE static inline LK__UNUSED

#define LK__ASSERT(x) LLMKIT_ASSERT(x)
/* Branches believed to be impossible: taken care of all the same, and left out of coverage. */
#ifndef NDEBUG
#define LK__NEVER(x) ((x) ? (LK__ASSERT(!(x)), true) : false)
#else
#define LK__NEVER(x) LK__UNLIKELY(x)
#endif

#define LK__COUNT(array)            (sizeof(array) / sizeof((array)[0]))
#define LK__CONTAINER(ptr, type, m) ((type *)(void *)((char *)(ptr) - offsetof(type, m)))

#define LK__NS_PER_MS 1000000LL
#define LK__NS_PER_S  1000000000LL
#define LK__NEVER_NS  INT64_MAX

_Static_assert(CHAR_BIT == 8, "bytes of 8 bits");
_Static_assert(sizeof(int) >= 4, "int of 32 bits or more");
_Static_assert(LLMKIT_MAX_HEADERS >= 16 && LLMKIT_MAX_HEADERS <= 1024, "LLMKIT_MAX_HEADERS");
_Static_assert(LLMKIT_MAX_HEAD_BYTES >= 1024, "LLMKIT_MAX_HEAD_BYTES");
_Static_assert(LLMKIT_MAX_JSON_DEPTH >= 16 && LLMKIT_MAX_JSON_DEPTH <= 1024,
               "LLMKIT_MAX_JSON_DEPTH");
_Static_assert(LLMKIT_READ_BYTES >= 4096, "LLMKIT_READ_BYTES");

/* ==== >>core/atomic.h ========================================================================= */
/* core/atomic.h -- the few atomic words and locks that threads share */

/* Reference counts, flags and counters.  Plain words without LLMKIT_WITH_THREADS. */

#if LLMKIT_WITH_THREADS

typedef _Atomic(uint32_t) lk__atomic_u32;
typedef _Atomic(uint64_t) lk__atomic_u64;
typedef _Atomic(void *)   lk__atomic_ptr;
typedef pthread_mutex_t   lk__mutex;

#define lk__load_relaxed(a)     atomic_load_explicit((a), memory_order_relaxed)
#define lk__load_acquire(a)     atomic_load_explicit((a), memory_order_acquire)
#define lk__store_relaxed(a, v) atomic_store_explicit((a), (v), memory_order_relaxed)
#define lk__store_release(a, v) atomic_store_explicit((a), (v), memory_order_release)
#define lk__add_relaxed(a, v)   atomic_fetch_add_explicit((a), (v), memory_order_relaxed)
#define lk__sub_acq_rel(a, v)   atomic_fetch_sub_explicit((a), (v), memory_order_acq_rel)
/* Weak: may fail for no reason; *old is then what was there. */
#define lk__cas(a, old, v)                                                                         \
    atomic_compare_exchange_weak_explicit((a), (old), (v), memory_order_acq_rel,                   \
                                          memory_order_acquire)

LK__INLINE void *lk__exchange_ptr(lk__atomic_ptr *a, void *v) {
    return atomic_exchange_explicit(a, v, memory_order_acq_rel);
}
LK__INLINE uint32_t lk__exchange_u32(lk__atomic_u32 *a, uint32_t v) {
    return atomic_exchange_explicit(a, v, memory_order_acq_rel);
}

LK__INLINE void lk__mutex_init(lk__mutex *m) { pthread_mutex_init(m, NULL); }
LK__INLINE void lk__mutex_free(lk__mutex *m) { pthread_mutex_destroy(m); }
LK__INLINE void lk__lock(lk__mutex *m) { pthread_mutex_lock(m); }
LK__INLINE void lk__unlock(lk__mutex *m) { pthread_mutex_unlock(m); }

#else

typedef uint32_t lk__atomic_u32;
typedef uint64_t lk__atomic_u64;
typedef void    *lk__atomic_ptr;
typedef int      lk__mutex;

#define lk__load_relaxed(a)     (*(a))
#define lk__load_acquire(a)     (*(a))
#define lk__store_relaxed(a, v) ((void)(*(a) = (v)))
#define lk__store_release(a, v) ((void)(*(a) = (v)))
#define lk__cas(a, old, v)      (*(a) == *(old) ? (*(a) = (v), true) : (*(old) = *(a), false))

#define lk__add_relaxed(a, v)   ((*(a) += (v)) - (v))
#define lk__sub_acq_rel(a, v)   ((*(a) -= (v)) + (v))

LK__INLINE void *lk__exchange_ptr(lk__atomic_ptr *a, void *v) {
    void *old = *a;
    *a = v;
    return old;
}
LK__INLINE uint32_t lk__exchange_u32(lk__atomic_u32 *a, uint32_t v) {
    uint32_t old = *a;
    *a = v;
    return old;
}

LK__INLINE void lk__mutex_init(lk__mutex *m) { *m = 0; }
LK__INLINE void lk__mutex_free(lk__mutex *m) { (void)m; }
LK__INLINE void lk__lock(lk__mutex *m) { (void)m; }
LK__INLINE void lk__unlock(lk__mutex *m) { (void)m; }

#endif

/* ==== >>core/mem.h ============================================================================ */
/* core/mem.h -- the surroundings filled in: allocation, clock, log */

/* A copy of env with every hook set, so that callers need not ask.  NULL: all defaults. */
LK__PRIV llmkit_env lk__env_fill(const llmkit_env *env);

/* Zeroed memory, or NULL.  Sizes that come from multiplication go through lk__mul, which answers
 * SIZE_MAX on overflow; no allocator grants that. */
LK__PRIV void *lk__alloc(const llmkit_env *env, size_t size);
LK__PRIV void *lk__resize(const llmkit_env *env, void *ptr, size_t old_size, size_t new_size);
LK__PRIV void lk__free(const llmkit_env *env, void *ptr, size_t size); /* ptr NULL is fine */
LK__PRIV char *lk__strdup(const llmkit_env *env, const char *text);    /* freed with: */
LK__PRIV void lk__strfree(const llmkit_env *env, char *text);
LK__PRIV void lk__wipe(void *ptr, size_t size); /* zeroes that no compiler drops: for secrets */

LK__INLINE size_t lk__mul(size_t a, size_t b) {
    return b != 0 && a > SIZE_MAX / b ? SIZE_MAX : a * b;
}
LK__INLINE size_t lk__add(size_t a, size_t b) {
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}

LK__INLINE uint32_t lk__def(uint32_t value, uint32_t by_default) { /* of a desc's field */
    return value ? value : by_default;
}

LK__INLINE int64_t lk__now(const llmkit_env *env) {
    return env->now_ns(env->user);
}

LK__PRIV void lk__log(const llmkit_env *env, llmkit_level level, llmkit_err code,
                      const char *format, ...) LK__PRINTF(4, 5);

/* ==== >>core/mem.c ============================================================================ */
/* core/mem.c -- the allocator hook, the clock, the log, and wiping of secrets */

LK__PRIV void *lk__mem_alloc(void *user, void *ptr, size_t old_size, size_t new_size) {
    (void)user;
    (void)old_size;
    if (new_size == 0) {
        free(ptr);
        return NULL;
    }
    return realloc(ptr, new_size);
}

LK__PRIV int64_t lk__mem_now(void *user) {
    struct timespec ts = { 0, 0 };
    (void)user;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * LK__NS_PER_S + (int64_t)ts.tv_nsec;
}

LK__PRIV llmkit_env lk__env_fill(const llmkit_env *env) {
    llmkit_env filled = { 0 };
    if (env) filled = *env;
    if (!filled.alloc) filled.alloc = lk__mem_alloc;
    if (!filled.now_ns) filled.now_ns = lk__mem_now;
    return filled;
}

/* Sizes that no object can have are refused here, so that a hook may add a header of its own to the
 * size without checking. */
LK__PRIV void *lk__alloc(const llmkit_env *env, size_t size) {
    if (size == 0) size = 1;
    if (size > PTRDIFF_MAX / 2) return NULL;
    void *ptr = env->alloc(env->user, NULL, 0, size);
    if (ptr) memset(ptr, 0, size);
    return ptr;
}

LK__PRIV void *lk__resize(const llmkit_env *env, void *ptr, size_t old_size, size_t new_size) {
    LK__ASSERT(new_size > 0);
    if (new_size == 0 || new_size > PTRDIFF_MAX / 2) return NULL;
    return env->alloc(env->user, ptr, old_size, new_size);
}

LK__PRIV void lk__free(const llmkit_env *env, void *ptr, size_t size) {
    if (ptr) env->alloc(env->user, ptr, size, 0);
}

LK__PRIV char *lk__strdup(const llmkit_env *env, const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = lk__alloc(env, size);
    if (copy) memcpy(copy, text, size);
    return copy;
}

LK__PRIV void lk__strfree(const llmkit_env *env, char *text) {
    if (text) lk__free(env, text, strlen(text) + 1);
}

/* The call goes through a volatile pointer: the compiler cannot know that it is memset, so it may
 * not drop it as a store to memory that is dead. */
LK__PRIV void lk__wipe(void *ptr, size_t size) {
    void *(*const volatile fill)(void *, int, size_t) = memset;
    if (size) fill(ptr, 0, size);
}

LK__PRIV void lk__log(const llmkit_env *env, llmkit_level level, llmkit_err code,
                      const char *format, ...) {
    if (!env->log) return;
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= 0) env->log(env->user, level, code, text);
}

/* ==== >>core/str.h ============================================================================ */
/* core/str.h -- views of bytes, growing buffers, numbers to and from text */

#define LK__STR(literal) ((llmkit_str){ "" literal, sizeof(literal) - 1 })
#define LK__ARG(s)       (int)(s).len, (s).ptr /* for "%.*s" */

LK__INLINE llmkit_str lk__str(const char *ptr, size_t len) {
    return (llmkit_str){ ptr, len };
}
LK__INLINE llmkit_str lk__str_z(const char *text) { /* NULL is empty */
    return (llmkit_str){ text, text ? strlen(text) : 0 };
}
LK__INLINE bool lk__str_eq(llmkit_str a, llmkit_str b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}
LK__INLINE char lk__lower(char c) { /* ASCII only, in any locale */
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}
LK__PRIV bool lk__str_ieq(llmkit_str a, llmkit_str b); /* ASCII letters in any case */
LK__PRIV bool lk__str_starts(llmkit_str s, llmkit_str prefix);
LK__PRIV bool lk__str_ends(llmkit_str s, llmkit_str suffix);
LK__PRIV size_t lk__str_find(llmkit_str s, char c); /* s.len where it is not in there */
LK__PRIV llmkit_str lk__str_trim(llmkit_str s);     /* spaces and tabs at both ends */
LK__PRIV llmkit_str lk__str_from(llmkit_str s, size_t at);
LK__PRIV bool lk__parse_u64(llmkit_str s, uint64_t *out); /* decimal digits only, no overflow */
/* A number in JSON's grammar (RFC 8259 section 6), correctly rounded, in any locale.  false also
 * for one that is too large for a double. */
LK__PRIV bool lk__parse_f64(llmkit_str s, double *out);
/* At most 32 bytes with the NUL; the shortest text of 15 to 17 digits that reads back the same, in
 * any locale.  Not for NaN and infinities: those become "null". */
LK__PRIV size_t lk__format_f64(char out[32], double value);
/* Copies what fits into a fixed array, whole UTF-8 characters only, and terminates it. */
LK__PRIV void lk__str_copy(char *out, size_t size, llmkit_str s);
/* Bytes of the UTF-8 character at p (RFC 3629): 1 to 4, or 0 where there is none.  p < end. */
LK__PRIV size_t lk__utf8_size(const char *p, const char *end);
LK__PRIV size_t lk__utf8_put(char out[4], uint32_t code_point); /* the number of bytes */
LK__PRIV size_t lk__base64(char *out, const void *data, size_t len); /* 4 * ceil(len / 3), no NUL */

/* The index of the lowest and the highest bit that is set; word is not 0. */
LK__INLINE unsigned lk__low_bit(uint64_t word) {
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(word);
#else
    unsigned n = 0;
    for (; !(word & 1); word >>= 1) n++;
    return n;
#endif
}
LK__INLINE unsigned lk__high_bit(uint64_t word) {
#if defined(__GNUC__)
    return 63u - (unsigned)__builtin_clzll(word);
#else
    unsigned n = 0;
    for (; word >>= 1; n++) {}
    return n;
#endif
}

/* A growing buffer with a ceiling.  The first failure sticks: write on, and look at failed once at
 * the end.  Zero but for env and max is an empty one; ptr is NUL-terminated from the first byte
 * on. */
typedef struct lk__buf {
    char             *ptr;
    size_t            len, cap;
    size_t            max;    /* most bytes it may hold; 0: no ceiling but SIZE_MAX / 2 */
    llmkit_err        failed; /* OK, E_NOMEM or E_TOO_BIG */
    const llmkit_env *env;
} lk__buf;

LK__PRIV void lk__buf_init(lk__buf *b, const llmkit_env *env, size_t max);
LK__PRIV void lk__buf_free(lk__buf *b);
LK__PRIV void lk__buf_wipe(lk__buf *b); /* frees one that held a secret */
/* n writable bytes at the end, or NULL; lk__buf_wrote then counts those that were written. */
LK__PRIV char *lk__buf_more(lk__buf *b, size_t n);
LK__PRIV void lk__buf_grow(lk__buf *b, size_t n);  /* slow path of the calls below */
LK__PRIV void lk__buf_fmt(lk__buf *b, const char *format, ...) LK__PRINTF(2, 3);
LK__PRIV void lk__buf_u64(lk__buf *b, uint64_t value);
LK__PRIV void lk__buf_drop(lk__buf *b, size_t n); /* the first n bytes; the rest moves down */

LK__INLINE void lk__buf_clear(lk__buf *b) { /* keeps the memory */
    b->len = 0;
    b->failed = LLMKIT_OK;
    if (b->cap) b->ptr[0] = '\0';
}
LK__INLINE void lk__buf_wrote(lk__buf *b, size_t n) {
    b->len += n;
    b->ptr[b->len] = '\0';
}
LK__INLINE void lk__buf_add(lk__buf *b, const void *data, size_t n) {
    if (LK__UNLIKELY(b->cap - b->len <= n)) {
        lk__buf_grow(b, n);
        if (b->failed) return;
    }
    if (n) memcpy(b->ptr + b->len, data, n);
    lk__buf_wrote(b, n);
}
LK__INLINE void lk__buf_str(lk__buf *b, llmkit_str s) {
    lk__buf_add(b, s.ptr, s.len);
}
LK__INLINE void lk__buf_z(lk__buf *b, const char *text) {
    lk__buf_add(b, text, strlen(text));
}
LK__INLINE void lk__buf_ch(lk__buf *b, char c) {
    lk__buf_add(b, &c, 1);
}
LK__INLINE llmkit_str lk__buf_view(const lk__buf *b) {
    return (llmkit_str){ b->ptr ? b->ptr : "", b->len };
}

/* ==== >>core/str.c ============================================================================ */
/* core/str.c -- views of bytes, growing buffers, numbers to and from text */

/* Halfway points between doubles have at most 767 significant digits, so one digit more, not zero
 * where anything follows, decides every rounding. */
enum { LK__F64_DIGITS = 768 };

/* Exponents beyond this cannot matter: they make any number of digits that fits into memory 0 or
 * infinite, and their sum with a count of digits fits into 64 bits. */
static const int64_t lk__f64_max_exponent = INT64_C(1) << 50;

LK__PRIV bool lk__str_ieq(llmkit_str a, llmkit_str b) {
    if (a.len != b.len) return false;
    for (size_t i = 0; i < a.len; i++) {
        if (lk__lower(a.ptr[i]) != lk__lower(b.ptr[i])) return false;
    }
    return true;
}

LK__PRIV bool lk__str_starts(llmkit_str s, llmkit_str prefix) {
    return s.len >= prefix.len && (prefix.len == 0 || memcmp(s.ptr, prefix.ptr, prefix.len) == 0);
}

LK__PRIV bool lk__str_ends(llmkit_str s, llmkit_str suffix) {
    return s.len >= suffix.len && lk__str_eq(lk__str_from(s, s.len - suffix.len), suffix);
}

LK__PRIV size_t lk__str_find(llmkit_str s, char c) {
    const char *at = s.len ? memchr(s.ptr, c, s.len) : NULL;
    return at ? (size_t)(at - s.ptr) : s.len;
}

LK__PRIV llmkit_str lk__str_trim(llmkit_str s) {
    while (s.len > 0 && (s.ptr[0] == ' ' || s.ptr[0] == '\t')) s = lk__str_from(s, 1);
    while (s.len > 0 && (s.ptr[s.len - 1] == ' ' || s.ptr[s.len - 1] == '\t')) s.len--;
    return s;
}

LK__PRIV llmkit_str lk__str_from(llmkit_str s, size_t at) {
    if (at > s.len) at = s.len;
    return at ? lk__str(s.ptr + at, s.len - at) : s;
}

/* The longest prefix of at most max bytes that does not end inside a UTF-8 character. */
LK__PRIV size_t lk__str_whole(llmkit_str s, size_t max) {
    if (s.len <= max) return s.len;
    size_t n = max;
    while (n > 0 && max - n < 4 && ((unsigned char)s.ptr[n] & 0xC0) == 0x80) n--;
    return ((unsigned char)s.ptr[n] & 0xC0) == 0x80 ? max : n; /* no UTF-8 at all: cut anywhere */
}

LK__PRIV void lk__str_copy(char *out, size_t size, llmkit_str s) {
    if (size == 0) return;
    size_t n = lk__str_whole(s, size - 1);
    if (n) memcpy(out, s.ptr, n);
    out[n] = '\0';
}

LK__PRIV size_t lk__utf8_size(const char *p, const char *end) {
    unsigned char c = (unsigned char)*p;
    unsigned char least = 0x80, most = 0xBF; /* of the second byte: RFC 3629 section 4 */
    size_t n;
    if (c < 0x80) return 1;
    if (c < 0xC2 || c > 0xF4) return 0;
    n = c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if ((size_t)(end - p) < n) return 0;
    if (c == 0xE0) least = 0xA0;
    if (c == 0xED) most = 0x9F;
    if (c == 0xF0) least = 0x90;
    if (c == 0xF4) most = 0x8F;
    if ((unsigned char)p[1] < least || (unsigned char)p[1] > most) return 0;
    for (size_t i = 2; i < n; i++) {
        if (((unsigned char)p[i] & 0xC0) != 0x80) return 0;
    }
    return n;
}

LK__PRIV size_t lk__utf8_put(char out[4], uint32_t code_point) {
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    size_t n = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code_point >>= 6) {
        out[i] = (char)(0x80 | (code_point & 0x3F));
    }
    out[0] = (char)((0xF00u >> n & 0xF0) | code_point);
    return n;
}

LK__PRIV size_t lk__base64(char *out, const void *data, size_t len) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *in = data;
    char *p = out;
    for (; len >= 3; len -= 3, in += 3) {
        uint32_t word = (uint32_t)in[0] << 16 | (uint32_t)in[1] << 8 | in[2];
        *p++ = digits[word >> 18];
        *p++ = digits[word >> 12 & 63];
        *p++ = digits[word >> 6 & 63];
        *p++ = digits[word & 63];
    }
    if (len > 0) {
        uint32_t word = (uint32_t)in[0] << 16 | (len == 2 ? (uint32_t)in[1] << 8 : 0);
        *p++ = digits[word >> 18];
        *p++ = digits[word >> 12 & 63];
        *p++ = len == 2 ? digits[word >> 6 & 63] : '=';
        *p++ = '=';
    }
    return (size_t)(p - out);
}

/* Numbers to and from text. */

LK__PRIV bool lk__str_digit(char c) {
    return c >= '0' && c <= '9';
}

LK__PRIV bool lk__parse_u64(llmkit_str s, uint64_t *out) {
    uint64_t value = 0;
    if (s.len == 0) return false;
    for (size_t i = 0; i < s.len; i++) {
        if (!lk__str_digit(s.ptr[i])) return false;
        uint64_t digit = (uint64_t)(s.ptr[i] - '0');
        if (value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *out = value;
    return true;
}

/* A number taken apart: digits * 10^exponent, without leading zeros. */
typedef struct lk__decimal {
    bool negative;
    bool more; /* digits that are not zero follow those that are kept */
    int num_digits;
    int64_t exponent;
    char digits[LK__F64_DIGITS + 1];
} lk__decimal;

LK__PRIV void lk__decimal_push(lk__decimal *d, char digit) {
    if (d->num_digits == 0 && digit == '0') return;
    if (d->num_digits < LK__F64_DIGITS) {
        d->digits[d->num_digits++] = digit;
    } else {
        d->exponent++;
        d->more |= digit != '0';
    }
}

/* The digits from p to end, or to the first byte that is none; returns where that is. */
LK__PRIV const char *lk__decimal_digits(lk__decimal *d, const char *p, const char *end,
                                        int64_t shift) {
    for (; p < end && lk__str_digit(*p); p++) {
        d->exponent += shift;
        lk__decimal_push(d, *p);
    }
    return p;
}

LK__PRIV const char *lk__decimal_exponent(lk__decimal *d, const char *p, const char *end) {
    bool negative = p < end && *p == '-';
    int64_t value = 0;
    if (p < end && (*p == '-' || *p == '+')) p++;
    for (; p < end && lk__str_digit(*p); p++) {
        if (value < lk__f64_max_exponent) value = value * 10 + (*p - '0');
    }
    d->exponent += negative ? -value : value;
    return p;
}

/* false where the text is not in JSON's grammar. */
LK__PRIV bool lk__decimal_read(lk__decimal *d, llmkit_str s) {
    const char *p = s.ptr, *end = s.ptr + s.len, *part;
    d->negative = d->more = false;
    d->num_digits = 0;
    d->exponent = 0;
    if (p < end && *p == '-') {
        d->negative = true;
        p++;
    }
    part = p;
    p = lk__decimal_digits(d, p, end, 0);
    if (p == part || (*part == '0' && p - part > 1)) return false;
    if (p < end && *p == '.') {
        part = ++p;
        p = lk__decimal_digits(d, p, end, -1);
        if (p == part) return false;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p = lk__decimal_exponent(d, p + 1, end);
        if (!lk__str_digit(p[-1])) return false;
    }
    return p == end;
}

#if FLT_EVAL_METHOD == 0
/* A significand below 2^53 and a power of ten up to 10^22 are both exact, so that one division or
 * multiplication rounds once (Clinger, PLDI 1990).  Not where intermediate results are wider. */
LK__PRIV bool lk__decimal_fast(const lk__decimal *d, double *out) {
    static const double powers[] = { 1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                     1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                     1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22 };
    if (d->num_digits > 19 || d->exponent < -22 || d->exponent > 22) return false;
    uint64_t value = 0;
    for (int i = 0; i < d->num_digits; i++) value = value * 10 + (uint64_t)(d->digits[i] - '0');
    if (value > UINT64_C(1) << 53) return false;
    *out = d->exponent < 0 ? (double)value / powers[-d->exponent]
                           : (double)value * powers[d->exponent];
    return true;
}
#else
LK__PRIV bool lk__decimal_fast(const lk__decimal *d, double *out) {
    (void)d;
    (void)out;
    return false;
}
#endif

/* strtod sees digits and an exponent only: no decimal point, hence no locale. */
LK__PRIV double lk__decimal_slow(lk__decimal *d) {
    char text[LK__F64_DIGITS + 32];
    int64_t exponent = d->exponent;
    int n = d->num_digits;
    memcpy(text, d->digits, (size_t)n);
    if (d->more) {
        text[n++] = '1';
        exponent--;
    }
    if (exponent > 99999) exponent = 99999;
    if (exponent < -99999) exponent = -99999;
    snprintf(text + n, sizeof text - (size_t)n, "e%d", (int)exponent);
    return strtod(text, NULL);
}

LK__PRIV bool lk__parse_f64(llmkit_str s, double *out) {
    lk__decimal d;
    double value = 0;
    if (!lk__decimal_read(&d, s)) return false;
    if (d.num_digits > 0 && !lk__decimal_fast(&d, &value)) value = lk__decimal_slow(&d);
    if (value > DBL_MAX) return false;
    *out = d.negative ? -value : value;
    return true;
}

/* Writes digits * 10^exponent, the first digit being the units, as people do: 0.001 to 17 digits
 * before the point in full, the rest with an exponent. */
LK__PRIV size_t lk__format_decimal(char *out, const char *digits, int n, int exponent) {
    char *p = out;
    if (exponent < -5 || exponent > 16) {
        *p++ = digits[0];
        if (n > 1) *p++ = '.';
        for (int i = 1; i < n; i++) *p++ = digits[i];
        p += snprintf(p, 8, "e%d", exponent);
        return (size_t)(p - out);
    }
    if (exponent < 0) {
        *p++ = '0';
        *p++ = '.';
        for (int i = -1; i > exponent; i--) *p++ = '0';
    }
    for (int i = 0; i < n || i <= exponent; i++) {
        if (i == exponent + 1 && exponent >= 0) *p++ = '.';
        *p++ = i < n ? digits[i] : '0';
    }
    *p = '\0';
    return (size_t)(p - out);
}

/* printf's digits, whatever the locale puts between the first and the second. */
LK__PRIV size_t lk__format_digits(char *out, double value, int precision) {
    char text[48], digits[20];
    int n = 0;
    snprintf(text, sizeof text, "%.*e", precision - 1, value);
    const char *p = text;
    for (; *p != 'e'; p++) {
        if (lk__str_digit(*p) && n < (int)sizeof digits) digits[n++] = *p;
    }
    int exponent = atoi(p + 1);
    while (n > 1 && digits[n - 1] == '0') n--;
    return lk__format_decimal(out, digits, n, exponent);
}

LK__PRIV size_t lk__format_f64(char out[32], double value) {
    char *p = out;
    size_t len = 0;
    double back = 0;
    if (!(value >= -DBL_MAX && value <= DBL_MAX)) { /* NaN compares with nothing */
        memcpy(out, "null", 5);
        return 4;
    }
    if (value < 0 || (value == 0 && 1 / value < 0)) {
        *p++ = '-';
        value = -value;
    }
    for (int precision = 15; precision <= 17; precision++) {
        len = lk__format_digits(p, value, precision);
        if (lk__parse_f64(lk__str(p, len), &back) && !(back < value) && !(back > value)) break;
    }
    return (size_t)(p - out) + len;
}

/* Buffers. */

LK__PRIV void lk__buf_init(lk__buf *b, const llmkit_env *env, size_t max) {
    *b = (lk__buf){ .max = max, .env = env };
}

LK__PRIV void lk__buf_free(lk__buf *b) {
    lk__free(b->env, b->ptr, b->cap);
    lk__buf_init(b, b->env, b->max);
}

/* Room for n bytes and the NUL.  Growing by half as much again keeps appending linear, and lets an
 * allocator reuse what earlier sizes have left. */
LK__PRIV void lk__buf_grow(lk__buf *b, size_t n) {
    size_t max = b->max ? b->max : SIZE_MAX / 2;
    if (b->failed || b->cap - b->len > n) return;
    if (b->len > max || n > max - b->len) {
        b->failed = LLMKIT_E_TOO_BIG;
        return;
    }
    size_t need = b->len + n + 1;
    size_t cap = lk__add(b->cap, b->cap / 2);
    if (cap > max) cap = lk__add(max, 1);
    if (cap < 64 && max >= 63) cap = 64;
    if (cap < need) cap = need;
    char *ptr = lk__resize(b->env, b->ptr, b->cap, cap);
    if (!ptr) {
        b->failed = LLMKIT_E_NOMEM;
        return;
    }
    b->ptr = ptr;
    b->cap = cap;
    b->ptr[b->len] = '\0';
}

LK__PRIV void lk__buf_wipe(lk__buf *b) {
    if (b->ptr) lk__wipe(b->ptr, b->cap);
    lk__buf_free(b);
}

LK__PRIV char *lk__buf_more(lk__buf *b, size_t n) {
    lk__buf_grow(b, n);
    return b->failed ? NULL : b->ptr + b->len;
}

LK__PRIV void lk__buf_fmt(lk__buf *b, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    size_t room = b->cap - b->len;
    int n = vsnprintf(room ? b->ptr + b->len : NULL, room, format, args);
    if (n >= 0 && (size_t)n >= room) {
        if (room) b->ptr[b->len] = '\0'; /* what fitted in part is no part of it */
        lk__buf_grow(b, (size_t)n);
        if (!b->failed) vsnprintf(b->ptr + b->len, (size_t)n + 1, format, again);
    }
    if (n >= 0 && !b->failed) b->len += (size_t)n;
    va_end(again);
    va_end(args);
}

LK__PRIV void lk__buf_u64(lk__buf *b, uint64_t value) {
    char text[20];
    size_t at = sizeof text;
    do {
        text[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    lk__buf_add(b, text + at, sizeof text - at);
}

LK__PRIV void lk__buf_drop(lk__buf *b, size_t n) {
    if (n >= b->len) n = b->len;
    if (n == 0) return;
    b->len -= n;
    memmove(b->ptr, b->ptr + n, b->len + 1); /* with the NUL */
}

/* ==== >>core/error.h ========================================================================== */
/* core/error.h -- filling in a llmkit_error */

LK__PRIV bool lk__err_retryable(llmkit_err code); /* the same request may succeed later */

/* Sets code, retryable as the code implies, and the message; clears the rest.  Returns the code;
 * error may be NULL. */
LK__PRIV llmkit_err lk__fail(llmkit_error *error, llmkit_err code, const char *format, ...)
    LK__PRINTF(3, 4);
/* The same with what errno said: ": Connection refused" is added to the message.  With E_DNS the
 * number is getaddrinfo's. */
LK__PRIV llmkit_err lk__fail_os(llmkit_error *error, llmkit_err code, int os_errno,
                                const char *format, ...) LK__PRINTF(4, 5);
LK__PRIV llmkit_err lk__fail_disabled(llmkit_error *error, const char *macro);
/* E_NOT_ZEROED, with the name of the struct, where a guard is not 0. */
LK__PRIV llmkit_err lk__check_guards(llmkit_error *error, uint32_t guard0, uint32_t guard1,
                                     const char *type);

/* ==== >>core/error.c ========================================================================== */
/* core/error.c -- names of errors, and filling in a llmkit_error */

#ifndef LK__SOURCE_SUM
#define LK__SOURCE_SUM "tree" /* the amalgamated header has a hash of its pieces here */
#endif

#define LK__TEXT_OF(x) #x
#define LK__TEXT(x)    LK__TEXT_OF(x)
#define LK__VERSION \
    LK__TEXT(LLMKIT_VERSION_MAJOR) \
    "." LK__TEXT(LLMKIT_VERSION_MINOR) "." LK__TEXT(LLMKIT_VERSION_PATCH)

#if LLMKIT_WITH_TLS
#define LK__INFO_TLS "bearssl"
#else
#define LK__INFO_TLS "none"
#endif
#if LLMKIT_LOOP == LLMKIT_LOOP_EPOLL
#define LK__INFO_LOOP "epoll"
#elif LLMKIT_LOOP == LLMKIT_LOOP_KQUEUE
#define LK__INFO_LOOP "kqueue"
#else
#define LK__INFO_LOOP "poll"
#endif
#if LLMKIT_WITH_THREADS
#define LK__INFO_ATOMICS "c11"
#else
#define LK__INFO_ATOMICS "none"
#endif

typedef struct lk__error_row {
    int code;
    const char *text;
} lk__error_row;

/* Our own sentences: strerror is not safe among threads, strerror_r has two incompatible shapes,
 * and both speak the language of the locale. */
static const lk__error_row lk__error_os_rows[] = {
    { EACCES, "Permission denied" },
    { EADDRINUSE, "Address already in use" },
    { EADDRNOTAVAIL, "Address not available" },
    { EAFNOSUPPORT, "Address family not supported" },
    { EAGAIN, "Resource temporarily unavailable" },
    { EBADF, "Bad file descriptor" },
    { ECONNABORTED, "Connection aborted" },
    { ECONNREFUSED, "Connection refused" },
    { ECONNRESET, "Connection reset by peer" },
    { EDQUOT, "Disk quota exceeded" },
    { EEXIST, "File exists" },
    { EFBIG, "File too large" },
    { EHOSTUNREACH, "No route to host" },
    { EINTR, "Interrupted by a signal" },
    { EINVAL, "Invalid argument" },
    { EIO, "Input/output error" },
    { EISDIR, "Is a directory" },
    { ELOOP, "Too many symbolic links" },
    { EMFILE, "Too many open files in this process" },
    { ENAMETOOLONG, "File name too long" },
    { ENETDOWN, "Network is down" },
    { ENETUNREACH, "Network is unreachable" },
    { ENFILE, "Too many open files in the system" },
    { ENOBUFS, "No buffer space available" },
    { ENOENT, "No such file or directory" },
    { ENOMEM, "Out of memory" },
    { ENOSPC, "No space left on device" },
    { ENOTCONN, "Not connected" },
    { ENOTDIR, "Not a directory" },
    { ENOTSOCK, "Not a socket" },
    { EPERM, "Operation not permitted" },
    { EPIPE, "The peer has closed the connection" },
    { EPROTONOSUPPORT, "Protocol not supported" },
    { EROFS, "Read-only file system" },
    { ETIMEDOUT, "Connection timed out" },
};

static const lk__error_row lk__error_dns_rows[] = {
    { EAI_AGAIN, "The name server did not answer" },
    { EAI_BADFLAGS, "Invalid lookup flags" },
    { EAI_FAIL, "The name server failed" },
    { EAI_FAMILY, "Address family not supported" },
    { EAI_MEMORY, "Out of memory" },
    { EAI_NONAME, "There is no such name" },
    { EAI_SERVICE, "There is no such service" },
    { EAI_SOCKTYPE, "Socket type not supported" },
#ifdef EAI_NODATA
    { EAI_NODATA, "The name has no address" },
#endif
};

LK__PRIV const char *lk__error_find(const lk__error_row *rows, size_t n, int code) {
    for (size_t i = 0; i < n; i++) {
        if (rows[i].code == code) return rows[i].text;
    }
    return NULL;
}

LK__PRIV const char *lk__error_os_text(llmkit_err code, int os_errno) {
    return code == LLMKIT_E_DNS
               ? lk__error_find(lk__error_dns_rows, LK__COUNT(lk__error_dns_rows), os_errno)
               : lk__error_find(lk__error_os_rows, LK__COUNT(lk__error_os_rows), os_errno);
}

/* What may pass by itself.  Whoever knows better (a status, x-should-retry, a handshake refused for
 * lack of a common cipher) sets the field after lk__fail. */
LK__PRIV bool lk__err_retryable(llmkit_err code) {
    switch (code) {
    case LLMKIT_E_DNS:
    case LLMKIT_E_CONNECT:
    case LLMKIT_E_TLS:
    case LLMKIT_E_IO:
    case LLMKIT_E_TRUNCATED:
    case LLMKIT_E_TIMEOUT:
    case LLMKIT_E_LIMITED:
    case LLMKIT_E_OVERLOADED:
    case LLMKIT_E_SERVER: return true;
    default: return false;
    }
}

/* The text is made apart first, since an argument may point into the error that is rewritten, and
 * in a longer array, so that what is cut off is cut by lk__str_copy, between characters. */
LK__PRIV llmkit_err lk__error_set(llmkit_error *error, llmkit_err code, int os_errno,
                                  const char *format, va_list args) {
    if (!error) return code;
    char text[sizeof error->message + 8] = "";
    int n = vsnprintf(text, sizeof text, format, args);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    if (os_errno != 0) {
        const char *why = lk__error_os_text(code, os_errno);
        if (why) {
            snprintf(text + len, sizeof text - len, ": %s", why);
        } else {
            snprintf(text + len, sizeof text - len, ": system error %d", os_errno);
        }
    }
    memset(error, 0, sizeof *error);
    error->code = code;
    error->retryable = lk__err_retryable(code);
    error->os_errno = os_errno;
    lk__str_copy(error->message, sizeof error->message, lk__str_z(text));
    return code;
}

LK__PRIV llmkit_err lk__fail(llmkit_error *error, llmkit_err code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    lk__error_set(error, code, 0, format, args);
    va_end(args);
    return code;
}

LK__PRIV llmkit_err lk__fail_os(llmkit_error *error, llmkit_err code, int os_errno,
                                const char *format, ...) {
    va_list args;
    va_start(args, format);
    lk__error_set(error, code, os_errno, format, args);
    va_end(args);
    return code;
}

LK__PRIV llmkit_err lk__fail_disabled(llmkit_error *error, const char *macro) {
    return lk__fail(error, LLMKIT_E_DISABLED, "this build has %s 0", macro);
}

LK__PRIV llmkit_err lk__check_guards(llmkit_error *error, uint32_t guard0, uint32_t guard1,
                                     const char *type) {
    if (guard0 == 0 && guard1 == 0) return LLMKIT_OK;
    return lk__fail(error, LLMKIT_E_NOT_ZEROED, "initialise %s with = { 0 } or by its fields",
                    type);
}

#define LK__ERROR_NAME(name, text) #name,
#define LK__ERROR_TEXT(name, text) text,

LLMKIT_API const char *llmkit_err_name(llmkit_err err) {
    static const char *const names[] = { LLMKIT_ERRORS(LK__ERROR_NAME) };
    return (size_t)err < LK__COUNT(names) ? names[err] : "E_UNKNOWN";
}

LLMKIT_API const char *llmkit_err_text(llmkit_err err) {
    static const char *const texts[] = { LLMKIT_ERRORS(LK__ERROR_TEXT) };
    return (size_t)err < LK__COUNT(texts) ? texts[err] : "no such error code";
}

LLMKIT_API uint32_t llmkit_version(void) {
    return (uint32_t)LLMKIT_VERSION_MAJOR << 16 | (uint32_t)LLMKIT_VERSION_MINOR << 8 |
           (uint32_t)LLMKIT_VERSION_PATCH;
}

LLMKIT_API const char *llmkit_build_info(void) {
    return LK__VERSION " src:" LK__SOURCE_SUM " tls:" LK__INFO_TLS " loop:" LK__INFO_LOOP
                       " atomics:" LK__INFO_ATOMICS " json:jsmn";
}

#undef LK__TEXT_OF
#undef LK__TEXT
#undef LK__VERSION
#undef LK__INFO_TLS
#undef LK__INFO_LOOP
#undef LK__INFO_ATOMICS
#undef LK__ERROR_NAME
#undef LK__ERROR_TEXT

/* ==== >>core/rand.h =========================================================================== */
/* core/rand.h -- random numbers for jitter, ids and hash keys; not for secrets */

/* xoshiro256** (Blackman and Vigna, 2018), seeded through splitmix64. */
typedef struct lk__rand {
    uint64_t s[4];
} lk__rand;

LK__PRIV void lk__rand_init(lk__rand *r, const llmkit_env *env); /* env.seed, or lk__entropy */
LK__PRIV uint64_t lk__rand_u64(lk__rand *r);
LK__PRIV double lk__rand_unit(lk__rand *r); /* [0, 1) */
LK__PRIV bool lk__entropy(void *out, size_t n); /* of the operating system; false: there is none */

/* ==== >>core/rand.c =========================================================================== */
/* core/rand.c -- random numbers for jitter, ids and hash keys; not for secrets */

/* The device file rather than getentropy or getrandom: it is the one name that all our platforms
 * share under every feature macro, and it is read once per object, not per number. */
LK__PRIV bool lk__entropy(void *out, size_t n) {
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    size_t done = 0;
    while (done < n) {
        ssize_t got = read(fd, (char *)out + done, n - done);
        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0 || errno != EINTR) {
            break;
        }
    }
    close(fd);
    return done == n;
}

/* splitmix64 (Steele, Lea and Flood, 2014): spreads a word over a state that is never all zero. */
LK__PRIV uint64_t lk__rand_split(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Without entropy of the system the address and the time still keep two processes apart. */
LK__PRIV void lk__rand_init(lk__rand *r, const llmkit_env *env) {
    uint64_t seed = env->seed;
    if (seed == 0 && !lk__entropy(&seed, sizeof seed)) {
        seed = (uint64_t)lk__now(env) ^ (uint64_t)(uintptr_t)r ^ (uint64_t)getpid() << 32;
    }
    for (size_t i = 0; i < LK__COUNT(r->s); i++) r->s[i] = lk__rand_split(&seed);
}

LK__PRIV uint64_t lk__rand_rotate(uint64_t x, unsigned by) {
    return x << by | x >> (64 - by);
}

LK__PRIV uint64_t lk__rand_u64(lk__rand *r) {
    uint64_t *s = r->s;
    uint64_t result = lk__rand_rotate(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = lk__rand_rotate(s[3], 45);
    return result;
}

/* The upper 53 bits: as many as a double holds, so that 1 is never reached by rounding. */
LK__PRIV double lk__rand_unit(lk__rand *r) {
    return (double)(lk__rand_u64(r) >> 11) * 0x1p-53;
}

/* ==== >>core/json.h =========================================================================== */
/* core/json.h -- reading JSON through jsmn, and writing it */

/* A parsed document over text that must outlive it.  Nodes are indices into jsmn's tokens.  A
 * parser may be reused for any number of texts and keeps its token array, so that a warm one
 * allocates nothing.
 *
 * jsmn tokenises but does not validate (see reference notes in docs/design.md), and its cost grows
 * with the square of the nesting.  So one pass of our own goes first: it checks the whole grammar
 * of RFC 8259, UTF-8 included, bounds the depth, and counts the tokens. */
typedef struct lk__json {
    const char       *text;
    lk__jsmntok      *tokens;
    uint32_t          num, cap;
    bool              escaped_keys; /* some key has a backslash: keys are not what their text is */
    size_t            error_at;     /* byte position, after E_JSON */
    const llmkit_env *env;
} lk__json;

typedef int32_t lk__node; /* -1: none; 0: the root */

typedef enum lk__json_type {
    LK__JSON_NONE, /* of node -1 */
    LK__JSON_NULL,
    LK__JSON_BOOL,
    LK__JSON_NUMBER,
    LK__JSON_STRING,
    LK__JSON_ARRAY,
    LK__JSON_OBJECT
} lk__json_type;

LK__PRIV void lk__json_init(lk__json *j, const llmkit_env *env);
LK__PRIV void lk__json_free(lk__json *j);
/* OK, E_JSON, E_NOMEM; E_TOO_BIG for text over 2 GiB.  After a failure there is no node. */
LK__PRIV llmkit_err lk__json_parse(lk__json *j, llmkit_str text);

/* Every reader takes node -1 and answers none, empty or false, so that lookups chain. */
LK__PRIV lk__json_type lk__json_type_of(const lk__json *j, lk__node n);
/* Of members with the same name the first one counts. */
LK__PRIV lk__node lk__json_get(const lk__json *j, lk__node object, llmkit_str key);
LK__PRIV lk__node lk__json_at(const lk__json *j, lk__node array, uint32_t index);
LK__PRIV uint32_t lk__json_size(const lk__json *j, lk__node n); /* members or elements */
/* Walks children: first, then next until -1.  Of an object these are keys; value_of takes a key. */
LK__PRIV lk__node lk__json_first(const lk__json *j, lk__node parent);
LK__PRIV lk__node lk__json_next(const lk__json *j, lk__node child);
LK__PRIV lk__node lk__json_value_of(const lk__json *j, lk__node key);
/* Raw text: of a string what stands between the quotes. */
LK__PRIV llmkit_str lk__json_raw(const lk__json *j, lk__node n);
LK__PRIV bool lk__json_i64(const lk__json *j, lk__node n, int64_t *out); /* integers, 3.0 too */
LK__PRIV bool lk__json_f64(const lk__json *j, lk__node n, double *out);
LK__PRIV bool lk__json_is_true(const lk__json *j, lk__node n);
/* Appends a string's text, unescaped; false if it is no string.  Lone surrogates become U+FFFD. */
LK__PRIV bool lk__json_text(const lk__json *j, lk__node n, lk__buf *out);
/* The text of a string as a view: into the document where nothing is escaped, else into scratch,
 * which is cleared first. */
LK__PRIV llmkit_str lk__json_view(const lk__json *j, lk__node n, lk__buf *scratch);

/* Bytes of the valid JSON string that the text begins with, quotes included; 0: there is none. */
LK__PRIV size_t lk__json_string_len(llmkit_str text);
/* Unescapes raw string text (validated before) to the end of out. */
LK__PRIV void lk__json_unescape_to(lk__buf *out, llmkit_str raw);
/* Appends text escaped for between the quotes; invalid UTF-8 becomes U+FFFD. */
LK__PRIV void lk__json_escape_to(lk__buf *out, llmkit_str text);

/* The writer: commas by itself, the rest is the caller's word.  Errors stick in out. */
typedef struct lk__jsonw {
    lk__buf *out;
    bool     comma; /* the next member or element needs one */
} lk__jsonw;

LK__PRIV void lk__jsonw_open(lk__jsonw *w, char bracket);  /* '{' or '[' */
LK__PRIV void lk__jsonw_close(lk__jsonw *w, char bracket); /* '}' or ']' */
LK__PRIV void lk__jsonw_key(lk__jsonw *w, const char *key); /* a literal without escapes */
LK__PRIV void lk__jsonw_str(lk__jsonw *w, llmkit_str text);
LK__PRIV void lk__jsonw_raw(lk__jsonw *w, llmkit_str json); /* a whole value, as it is */
LK__PRIV void lk__jsonw_f64(lk__jsonw *w, double value);
LK__PRIV void lk__jsonw_i64(lk__jsonw *w, int64_t value);
LK__PRIV void lk__jsonw_bool(lk__jsonw *w, bool value);

/* ==== >>core/json.c =========================================================================== */
/* core/json.c -- JSON: validation, jsmn's tokens, lookups, escapes, writing */

/* A token array above this many is given back when a document no longer needs the half of it. */
enum { LK__JSON_KEEP_TOKENS = 8192 };

/* Strings: the bytes between two quotes. */

/* Little-endian on every machine; compilers make one load of it. */
LK__INLINE uint64_t lk__json_load(const char *p) {
    const unsigned char *b = (const unsigned char *)p;
    return (uint64_t)b[0] | (uint64_t)b[1] << 8 | (uint64_t)b[2] << 16 | (uint64_t)b[3] << 24 |
           (uint64_t)b[4] << 32 | (uint64_t)b[5] << 40 | (uint64_t)b[6] << 48 |
           (uint64_t)b[7] << 56;
}

LK__INLINE bool lk__json_is_plain(unsigned char c) {
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* The first byte from p on that is a quote, a backslash, a control or not ASCII; or end.  Eight
 * bytes at a time: a subtraction sets the top bit of the bytes that are too small.  Its borrow can
 * only mark bytes above one that is marked rightly, so the lowest mark is right.  Bytes from 0x80
 * on may be marked by any of the terms, as they are by the last. */
LK__INLINE const char *lk__json_plain(const char *p, const char *end) {
    const uint64_t ones = UINT64_C(0x0101010101010101);
    for (; end - p >= 8; p += 8) {
        uint64_t word = lk__json_load(p);
        uint64_t quote = (word ^ ones * '"') - ones;
        uint64_t slash = (word ^ ones * '\\') - ones;
        uint64_t marks = (quote | slash | (word - ones * 0x20) | word) & ones * 0x80;
        if (marks) return p + lk__low_bit(marks) / 8;
    }
    while (p < end && lk__json_is_plain((unsigned char)*p)) p++;
    return p;
}

LK__PRIV int lk__json_hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = lk__lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The value of \uXXXX at p, or -1. */
LK__PRIV int32_t lk__json_hex4(const char *p, const char *end) {
    int32_t value = 0;
    if (end - p < 6 || p[0] != '\\' || p[1] != 'u') return -1;
    for (int i = 2; i < 6; i++) {
        int digit = lk__json_hex(p[i]);
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* What the letter after a backslash stands for, or 0. */
LK__PRIV char lk__json_unescaped(char letter) {
    switch (letter) {
    case '"':
    case '\\':
    case '/': return letter;
    case 'b': return '\b';
    case 'f': return '\f';
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    default: return 0;
    }
}

/* Bytes of the escape sequence at p, or 0. */
LK__PRIV size_t lk__json_escape_size(const char *p, const char *end) {
    if (end - p >= 2 && lk__json_unescaped(p[1])) return 2;
    return lk__json_hex4(p, end) >= 0 ? 6 : 0;
}

/* Takes one character, escaped or not, from *at and puts it into out, as at most 4 bytes of UTF-8.
 * Half a surrogate pair becomes U+FFFD, and so does a backslash that begins no escape. */
LK__PRIV size_t lk__json_unescape_one(const char **at, const char *end, char out[4]) {
    const char *p = *at;
    if (*p != '\\') {
        size_t n = lk__utf8_size(p, end);
        if (n == 0) n = 1;
        memcpy(out, p, n);
        *at = p + n;
        return n;
    }
    size_t n = lk__json_escape_size(p, end);
    *at = p + (n ? n : 1);
    if (n == 2) {
        out[0] = lk__json_unescaped(p[1]);
        return 1;
    }
    int32_t high = lk__json_hex4(p, end);
    if (high < 0 || (high >= 0xDC00 && high <= 0xDFFF)) return lk__utf8_put(out, 0xFFFD);
    if (high < 0xD800 || high > 0xDBFF) return lk__utf8_put(out, (uint32_t)high);
    int32_t low = lk__json_hex4(p + 6, end);
    if (low < 0xDC00 || low > 0xDFFF) return lk__utf8_put(out, 0xFFFD);
    *at = p + 12;
    return lk__utf8_put(out,
                        0x10000 + ((uint32_t)(high - 0xD800) << 10) + (uint32_t)(low - 0xDC00));
}

/* Takes one character that cannot stand as it is (or can: never mind) from *at; what stands for it
 * is at most 6 bytes. */
LK__PRIV size_t lk__json_escape_one(const char **at, const char *end, char out[6]) {
    static const char hex[] = "0123456789abcdef";
    static const char letters[] = "btn\0fr"; /* for 8 to 13; there is none for 11 */
    unsigned char c = (unsigned char)**at;
    if (c >= 0x80) {
        size_t n = lk__utf8_size(*at, end);
        if (n == 0) {
            *at += 1;
            return lk__utf8_put(out, 0xFFFD);
        }
        memcpy(out, *at, n);
        *at += n;
        return n;
    }
    *at += 1;
    if (lk__json_is_plain(c)) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = '\\';
    out[1] = c >= 0x20 ? (char)c : c >= 8 && c <= 13 ? letters[c - 8] : 0;
    if (out[1]) return 2;
    memcpy(out + 1, "u00", 3);
    out[4] = hex[c >> 4];
    out[5] = hex[c & 15];
    return 6;
}

LK__PRIV void lk__json_unescape_to(lk__buf *out, llmkit_str raw) {
    if (raw.len == 0) return;
    const char *p = raw.ptr, *end = raw.ptr + raw.len;
    while (p < end) {
        const char *slash = memchr(p, '\\', (size_t)(end - p));
        if (!slash) slash = end;
        lk__buf_add(out, p, (size_t)(slash - p));
        for (p = slash; p < end && *p == '\\';) {
            char piece[4];
            lk__buf_add(out, piece, lk__json_unescape_one(&p, end, piece));
        }
    }
}

LK__PRIV void lk__json_escape_to(lk__buf *out, llmkit_str text) {
    if (text.len == 0) return;
    const char *p = text.ptr, *end = text.ptr + text.len, *done = p;
    while ((p = lk__json_plain(p, end)) < end) {
        size_t n = (unsigned char)*p >= 0x80 ? lk__utf8_size(p, end) : 0;
        if (n > 0) {
            p += n;
            continue;
        }
        char piece[6];
        lk__buf_add(out, done, (size_t)(p - done));
        lk__buf_add(out, piece, lk__json_escape_one(&p, end, piece));
        done = p;
    }
    lk__buf_add(out, done, (size_t)(end - done));
}

/* Validation: the grammar of RFC 8259, with no recursion.  Each step goes from p to behind what it
 * checks; NULL where that is wrong, and then check->bad is set. */

typedef struct lk__json_check {
    const char *end;
    const char *bad;   /* the byte that is wrong */
    uint32_t tokens;   /* as jsmn counts: values and keys */
    bool escaped_keys; /* some key may have a backslash */
} lk__json_check;

LK__PRIV const char *lk__json_bad(lk__json_check *c, const char *at) {
    c->bad = at;
    return NULL;
}

/* From the first byte of a string that is not plain on. */
LK__PRIV const char *lk__json_check_rest(lk__json_check *c, const char *p) {
    while (p < c->end && *p != '"') {
        size_t n = 0;
        if ((unsigned char)*p >= 0x80) n = lk__utf8_size(p, c->end);
        if (*p == '\\') n = lk__json_escape_size(p, c->end);
        if (n == 0) return lk__json_bad(c, p);
        p = lk__json_plain(p + n, c->end);
    }
    return p < c->end ? p + 1 : lk__json_bad(c, p);
}

/* From behind the opening quote to behind the closing one. */
LK__INLINE const char *lk__json_check_string(lk__json_check *c, const char *p) {
    p = lk__json_plain(p, c->end);
    if (LK__LIKELY(p < c->end && *p == '"')) return p + 1;
    return lk__json_check_rest(c, p);
}

LK__PRIV size_t lk__json_string_len(llmkit_str text) {
    lk__json_check c = { .end = text.ptr + text.len };
    if (text.len == 0 || *text.ptr != '"') return 0;
    const char *end = lk__json_check_string(&c, text.ptr + 1);
    return end ? (size_t)(end - text.ptr) : 0;
}

/* Digits: at least one. */
LK__INLINE const char *lk__json_check_digits(lk__json_check *c, const char *p) {
    const char *start = p;
    while (p < c->end && *p >= '0' && *p <= '9') p++;
    return p > start ? p : lk__json_bad(c, p);
}

LK__PRIV const char *lk__json_check_number(lk__json_check *c, const char *p) {
    if (*p == '-') p++;
    const char *first = p;
    p = lk__json_check_digits(c, p);
    if (!p) return NULL;
    if (*first == '0' && p - first > 1) return lk__json_bad(c, first + 1);
    if (p < c->end && *p == '.') {
        p = lk__json_check_digits(c, p + 1);
        if (!p) return NULL;
    }
    if (p < c->end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < c->end && (*p == '+' || *p == '-')) p++;
        p = lk__json_check_digits(c, p);
    }
    return p;
}

LK__INLINE const char *lk__json_check_word(lk__json_check *c, const char *p, const char *word,
                                           size_t len) {
    if ((size_t)(c->end - p) >= len && memcmp(p, word, len) == 0) return p + len;
    return lk__json_bad(c, p);
}

LK__INLINE bool lk__json_is_space(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

LK__INLINE const char *lk__json_skip_space(const char *p, const char *end) {
    while (p < end && lk__json_is_space(*p)) p++;
    return p;
}

/* The byte at p, or NUL at the end: NUL is valid nowhere. */
LK__INLINE char lk__json_peek(const char *p, const char *end) {
    return LK__LIKELY(p < end) ? *p : '\0';
}

/* A key and its colon. */
LK__INLINE const char *lk__json_check_key(lk__json_check *c, const char *p) {
    p = lk__json_skip_space(p, c->end);
    if (lk__json_peek(p, c->end) != '"') return lk__json_bad(c, p);
    p = lk__json_plain(p + 1, c->end);
    if (LK__LIKELY(p < c->end && *p == '"')) {
        p++;
    } else {
        c->escaped_keys = true;
        p = lk__json_check_rest(c, p);
        if (!p) return NULL;
    }
    p = lk__json_skip_space(p, c->end);
    return lk__json_peek(p, c->end) == ':' ? p + 1 : lk__json_bad(c, p);
}

LK__INLINE const char *lk__json_check_scalar(lk__json_check *c, const char *p) {
    char first = lk__json_peek(p, c->end);
    switch (first) {
    case '"': return lk__json_check_string(c, p + 1);
    case 't': return lk__json_check_word(c, p, "true", 4);
    case 'f': return lk__json_check_word(c, p, "false", 5);
    case 'n': return lk__json_check_word(c, p, "null", 4);
    case '-': return lk__json_check_number(c, p);
    default:
        if (first >= '0' && first <= '9') return lk__json_check_number(c, p);
        return lk__json_bad(c, p);
    }
}

/* The whole document, from p on. */
LK__PRIV const char *lk__json_check_text(lk__json_check *c, const char *p) {
    char close[LLMKIT_MAX_JSON_DEPTH]; /* the bracket that ends each open level */
    size_t depth = 0;
    uint32_t tokens = 0;
    const char *end = c->end;
    for (;;) {
        p = lk__json_skip_space(p, end);
        char first = lk__json_peek(p, end);
        tokens++;
        if (first == '{' || first == '[') {
            if (depth == LLMKIT_MAX_JSON_DEPTH) return lk__json_bad(c, p);
            close[depth++] = first == '{' ? '}' : ']';
            p = lk__json_skip_space(p + 1, end);
            if (lk__json_peek(p, end) != close[depth - 1]) {
                if (first == '[') continue;
                tokens++;
                p = lk__json_check_key(c, p);
                if (!p) return NULL;
                continue;
            }
        } else {
            p = lk__json_check_scalar(c, p);
            if (!p) return NULL;
            p = lk__json_skip_space(p, end);
        }
        /* Behind a value, or before the end of an empty array or object. */
        while (depth > 0 && lk__json_peek(p, end) == close[depth - 1]) {
            depth--;
            p = lk__json_skip_space(p + 1, end);
        }
        if (depth == 0) break;
        if (lk__json_peek(p, end) != ',') return lk__json_bad(c, p);
        p++;
        if (close[depth - 1] == '}') {
            tokens++;
            p = lk__json_check_key(c, p);
            if (!p) return NULL;
        }
    }
    c->tokens = tokens;
    return p == end ? p : lk__json_bad(c, p);
}

/* Documents. */

LK__PRIV void lk__json_init(lk__json *j, const llmkit_env *env) {
    *j = (lk__json){ .env = env };
}

LK__PRIV void lk__json_free(lk__json *j) {
    lk__free(j->env, j->tokens, lk__mul(j->cap, sizeof *j->tokens));
    lk__json_init(j, j->env);
}

LK__PRIV bool lk__json_reserve(lk__json *j, uint32_t n) {
    bool fits = n <= j->cap && (j->cap <= LK__JSON_KEEP_TOKENS || n >= j->cap / 2);
    if (fits) return true;
    uint32_t cap = n < 32 ? 32 : n < LK__JSON_KEEP_TOKENS / 2 ? n + n / 2 : n;
    size_t old_size = lk__mul(j->cap, sizeof *j->tokens);
    size_t new_size = lk__mul(cap, sizeof *j->tokens);
    lk__jsmntok *tokens = lk__resize(j->env, j->tokens, old_size, new_size);
    if (!tokens) return n <= j->cap; /* not even smaller: then it stays as it is */
    j->tokens = tokens;
    j->cap = cap;
    return true;
}

/* jsmn wants something after a number or a word: a document that is nothing else is done here. */
LK__PRIV bool lk__json_lone_scalar(lk__json *j, llmkit_str text) {
    size_t start = 0, end = text.len;
    while (lk__json_is_space(text.ptr[start])) start++;
    if (text.ptr[start] == '{' || text.ptr[start] == '[' || text.ptr[start] == '"') return false;
    while (lk__json_is_space(text.ptr[end - 1])) end--;
    j->tokens[0] = (lk__jsmntok){ LK__JSMN_PRIMITIVE, (int)start, (int)end, 0, -1 };
    return true;
}

LK__PRIV llmkit_err lk__json_parse(lk__json *j, llmkit_str text) {
    lk__jsmn_parser parser;
    j->num = 0;
    j->error_at = 0;
    if (text.len == 0) return LLMKIT_E_JSON;
    if (text.len > INT32_MAX) return LLMKIT_E_TOO_BIG;
    lk__json_check check = { .end = text.ptr + text.len };
    if (!lk__json_check_text(&check, text.ptr)) {
        j->error_at = (size_t)(check.bad - text.ptr);
        return LLMKIT_E_JSON;
    }
    if (!lk__json_reserve(j, check.tokens)) return LLMKIT_E_NOMEM;
    j->text = text.ptr;
    j->escaped_keys = check.escaped_keys;
    if (!(check.tokens == 1 && lk__json_lone_scalar(j, text))) {
        lk__jsmn_init(&parser);
        int found = lk__jsmn_parse(&parser, text.ptr, text.len, j->tokens, check.tokens);
        if (LK__NEVER(found < 0 || (uint32_t)found != check.tokens)) return LLMKIT_E_JSON;
    }
    j->num = check.tokens;
    return LLMKIT_OK;
}

/* The token of a node, or NULL. */
LK__INLINE const lk__jsmntok *lk__json_token(const lk__json *j, lk__node n) {
    return n >= 0 && (uint32_t)n < j->num ? &j->tokens[n] : NULL;
}

LK__PRIV lk__json_type lk__json_type_of(const lk__json *j, lk__node n) {
    const lk__jsmntok *token = lk__json_token(j, n);
    if (!token) return LK__JSON_NONE;
    switch (token->type) {
    case LK__JSMN_OBJECT: return LK__JSON_OBJECT;
    case LK__JSMN_ARRAY: return LK__JSON_ARRAY;
    case LK__JSMN_STRING: return LK__JSON_STRING;
    default: break;
    }
    switch (j->text[token->start]) {
    case 'n': return LK__JSON_NULL;
    case 't':
    case 'f': return LK__JSON_BOOL;
    default: return LK__JSON_NUMBER;
    }
}

/* The first token after the value n and all that is in it.  Tokens are in the order of the text, so
 * it is found in steps of twice the length, then by halves. */
LK__INLINE uint32_t lk__json_after(const lk__json *j, uint32_t n) {
    if (j->tokens[n].size == 0) return n + 1;
    int end = j->tokens[n].end;
    uint32_t inside = n, step = 2;
    while (step < j->num - inside && j->tokens[inside + step].start < end) {
        inside += step;
        step *= 2;
    }
    uint32_t after = step < j->num - inside ? inside + step : j->num;
    while (after - inside > 1) {
        uint32_t middle = inside + (after - inside) / 2;
        if (j->tokens[middle].start < end) {
            inside = middle;
        } else {
            after = middle;
        }
    }
    return after;
}

/* Whether a key with escapes means the same as key. */
LK__PRIV bool lk__json_same_key(llmkit_str raw, llmkit_str key) {
    const char *p = raw.ptr, *end = raw.ptr + raw.len;
    size_t at = 0;
    while (p < end) {
        char piece[4];
        size_t n = lk__json_unescape_one(&p, end, piece);
        if (n > key.len - at || memcmp(piece, key.ptr + at, n) != 0) return false;
        at += n;
    }
    return at == key.len;
}

LK__INLINE bool lk__json_key_is(const lk__json *j, const lk__jsmntok *name, llmkit_str key) {
    llmkit_str raw = { j->text + name->start, (size_t)(name->end - name->start) };
    if (LK__UNLIKELY(j->escaped_keys)) return lk__json_same_key(raw, key);
    return raw.len == key.len && memcmp(raw.ptr, key.ptr, raw.len) == 0;
}

LK__PRIV lk__node lk__json_get(const lk__json *j, lk__node object, llmkit_str key) {
    const lk__jsmntok *token = lk__json_token(j, object);
    if (!token || token->type != LK__JSMN_OBJECT) return -1;
    uint32_t at = (uint32_t)object + 1;
    for (int left = token->size; left > 0; left--) {
        if (lk__json_key_is(j, &j->tokens[at], key)) return (lk__node)(at + 1);
        at = lk__json_after(j, at + 1);
    }
    return -1;
}

LK__PRIV lk__node lk__json_at(const lk__json *j, lk__node array, uint32_t index) {
    const lk__jsmntok *token = lk__json_token(j, array);
    if (!token || token->type != LK__JSMN_ARRAY || index >= (uint32_t)token->size) return -1;
    uint32_t at = (uint32_t)array + 1;
    for (; index > 0; index--) at = lk__json_after(j, at);
    return (lk__node)at;
}

LK__PRIV uint32_t lk__json_size(const lk__json *j, lk__node n) {
    const lk__jsmntok *token = lk__json_token(j, n);
    bool parent = token && (token->type == LK__JSMN_OBJECT || token->type == LK__JSMN_ARRAY);
    return parent ? (uint32_t)token->size : 0;
}

LK__PRIV lk__node lk__json_first(const lk__json *j, lk__node parent) {
    return lk__json_size(j, parent) > 0 ? parent + 1 : -1;
}

/* A key and its value go together: jsmn makes the value a child of the key. */
LK__PRIV lk__node lk__json_next(const lk__json *j, lk__node child) {
    const lk__jsmntok *token = lk__json_token(j, child);
    if (!token || token->parent < 0) return -1;
    bool is_key = j->tokens[token->parent].type == LK__JSMN_OBJECT;
    uint32_t next = lk__json_after(j, (uint32_t)child + (is_key ? 1 : 0));
    return next < j->num && j->tokens[next].parent == token->parent ? (lk__node)next : -1;
}

LK__PRIV lk__node lk__json_value_of(const lk__json *j, lk__node key) {
    const lk__jsmntok *token = lk__json_token(j, key);
    bool is_key = token && token->parent >= 0 && j->tokens[token->parent].type == LK__JSMN_OBJECT;
    return is_key ? key + 1 : -1;
}

LK__PRIV llmkit_str lk__json_raw(const lk__json *j, lk__node n) {
    const lk__jsmntok *token = lk__json_token(j, n);
    if (!token) return LK__STR("");
    return lk__str(j->text + token->start, (size_t)(token->end - token->start));
}

LK__PRIV bool lk__json_f64(const lk__json *j, lk__node n, double *out) {
    return lk__json_type_of(j, n) == LK__JSON_NUMBER && lk__parse_f64(lk__json_raw(j, n), out);
}

LK__PRIV bool lk__json_i64(const lk__json *j, lk__node n, int64_t *out) {
    if (lk__json_type_of(j, n) != LK__JSON_NUMBER) return false;
    llmkit_str text = lk__json_raw(j, n);
    bool negative = text.ptr[0] == '-';
    uint64_t digits = 0;
    double value = 0;
    if (lk__parse_u64(lk__str_from(text, negative ? 1 : 0), &digits)) {
        if (digits > (uint64_t)INT64_MAX) return false;
        *out = negative ? -(int64_t)digits : (int64_t)digits;
        return true;
    }
    /* 3.0 and 1e3 are integers too, up to where doubles hold each of them. */
    if (!lk__parse_f64(text, &value) || !(value >= -0x1p53 && value <= 0x1p53)) return false;
    int64_t whole = (int64_t)value;
    if ((double)whole < value || (double)whole > value) return false;
    *out = whole;
    return true;
}

LK__PRIV bool lk__json_is_true(const lk__json *j, lk__node n) {
    return lk__str_eq(lk__json_raw(j, n), LK__STR("true")) &&
           lk__json_type_of(j, n) == LK__JSON_BOOL;
}

LK__PRIV bool lk__json_text(const lk__json *j, lk__node n, lk__buf *out) {
    const lk__jsmntok *token = lk__json_token(j, n);
    if (!token || token->type != LK__JSMN_STRING) return false;
    lk__json_unescape_to(out, lk__json_raw(j, n));
    return true;
}

LK__PRIV llmkit_str lk__json_view(const lk__json *j, lk__node n, lk__buf *scratch) {
    const lk__jsmntok *token = lk__json_token(j, n);
    if (!token || token->type != LK__JSMN_STRING) return LK__STR("");
    llmkit_str raw = lk__json_raw(j, n);
    if (lk__str_find(raw, '\\') == raw.len) return raw;
    lk__buf_clear(scratch);
    lk__json_unescape_to(scratch, raw);
    return lk__buf_view(scratch);
}

/* Writing. */

LK__INLINE void lk__jsonw_comma(lk__jsonw *w, bool next) {
    if (w->comma) lk__buf_ch(w->out, ',');
    w->comma = next;
}

LK__PRIV void lk__jsonw_open(lk__jsonw *w, char bracket) {
    lk__jsonw_comma(w, false);
    lk__buf_ch(w->out, bracket);
}

LK__PRIV void lk__jsonw_close(lk__jsonw *w, char bracket) {
    lk__buf_ch(w->out, bracket);
    w->comma = true;
}

LK__PRIV void lk__jsonw_key(lk__jsonw *w, const char *key) {
    lk__jsonw_comma(w, false);
    lk__buf_ch(w->out, '"');
    lk__buf_z(w->out, key);
    lk__buf_z(w->out, "\":");
}

LK__PRIV void lk__jsonw_str(lk__jsonw *w, llmkit_str text) {
    lk__jsonw_comma(w, true);
    lk__buf_ch(w->out, '"');
    lk__json_escape_to(w->out, text);
    lk__buf_ch(w->out, '"');
}

LK__PRIV void lk__jsonw_raw(lk__jsonw *w, llmkit_str json) {
    lk__jsonw_comma(w, true);
    lk__buf_str(w->out, json);
}

LK__PRIV void lk__jsonw_f64(lk__jsonw *w, double value) {
    char text[32];
    size_t n = lk__format_f64(text, value);
    lk__jsonw_raw(w, lk__str(text, n));
}

LK__PRIV void lk__jsonw_i64(lk__jsonw *w, int64_t value) {
    lk__jsonw_comma(w, true);
    if (value < 0) lk__buf_ch(w->out, '-');
    lk__buf_u64(w->out, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
}

LK__PRIV void lk__jsonw_bool(lk__jsonw *w, bool value) {
    lk__jsonw_raw(w, value ? LK__STR("true") : LK__STR("false"));
}

/* The public part. */

/* One step of a path: ".name", "name" at its start, or "[7]".  A path that makes no sense sets
 * *bad. Steps from no node lead to no node, so that the rest of the path is still read. */
LK__PRIV lk__node lk__json_step(const lk__json *j, lk__node n, llmkit_str *path, bool first,
                                bool *bad) {
    llmkit_str rest = *path;
    uint64_t index = 0;
    if (rest.ptr[0] == '[') {
        size_t close = lk__str_find(rest, ']');
        *path = lk__str_from(rest, close + 1);
        *bad = close == rest.len || !lk__parse_u64(lk__str(rest.ptr + 1, close - 1), &index);
        return index > UINT32_MAX ? -1 : lk__json_at(j, n, (uint32_t)index);
    }
    if (rest.ptr[0] == '.') {
        rest = lk__str_from(rest, 1);
        *bad = first;
    } else {
        *bad = !first;
    }
    size_t len = 0;
    while (len < rest.len && rest.ptr[len] != '.' && rest.ptr[len] != '[') len++;
    *path = lk__str_from(rest, len);
    *bad |= len == 0;
    return lk__json_get(j, n, lk__str(rest.ptr, len));
}

LLMKIT_API llmkit_err llmkit_json_find(llmkit_str json, const char *path, llmkit_str *value) {
    llmkit_env env = lk__env_fill(NULL);
    llmkit_str rest = lk__str_z(path);
    lk__node n = 0;
    bool bad = false;
    lk__json j;
    lk__json_init(&j, &env);
    llmkit_err err = lk__json_parse(&j, json);
    for (bool first = true; !err && rest.len > 0 && !bad; first = false) {
        n = lk__json_step(&j, n, &rest, first, &bad);
    }
    if (!err && bad) err = LLMKIT_E_ARG;
    if (!err && n < 0) err = LLMKIT_E_JSON;
    *value = err ? LK__STR("") : lk__json_raw(&j, n);
    lk__json_free(&j);
    return err;
}

LLMKIT_API llmkit_err llmkit_json_number(llmkit_str value, double *out) {
    if (lk__parse_f64(value, out)) return LLMKIT_OK;
    *out = 0;
    if (lk__str_eq(value, LK__STR("false"))) return LLMKIT_OK;
    if (!lk__str_eq(value, LK__STR("true"))) return LLMKIT_E_JSON;
    *out = 1;
    return LLMKIT_OK;
}

/* Both walk character by character, so that a buffer that is too small never ends inside one. */
LK__PRIV size_t lk__json_convert(llmkit_str in, char *buf, size_t size,
                                 size_t (*one)(const char **at, const char *end, char *out)) {
    const char *p = in.ptr, *end = lk__str_from(in, in.len).ptr;
    size_t len = 0, written = 0;
    bool room = size > 0;
    while (p < end) {
        char piece[6];
        size_t n = one(&p, end, piece);
        room = room && n < size - written;
        if (room) memcpy(buf + written, piece, n);
        if (room) written += n;
        len += n;
    }
    if (size > 0) buf[written] = '\0';
    return len;
}

LLMKIT_API size_t llmkit_json_unescape(llmkit_str value, char *buf, size_t size) {
    return lk__json_convert(value, buf, size, lk__json_unescape_one);
}

LLMKIT_API size_t llmkit_json_escape(llmkit_str text, char *buf, size_t size) {
    return lk__json_convert(text, buf, size, lk__json_escape_one);
}

/* ==== >>core/sketch.h ========================================================================= */
/* core/sketch.h -- quantiles of durations in a fixed space */

/* A histogram of exponential buckets (as DDSketch: Masson, Rim and Lee, VLDB 2019) over nanoseconds
 * from 1 us to 1000 s: a quantile is off by at most 2 % of its value.  What is outside falls into
 * the first and the last bucket.  Zero is an empty one. */
enum { LK__SKETCH_BUCKETS = 544 };

typedef struct lk__sketch {
    uint64_t total;
    int64_t  max_ns;
    uint32_t count[LK__SKETCH_BUCKETS];
} lk__sketch;

LK__PRIV uint32_t lk__sketch_index(uint64_t ns); /* the bucket of a duration over 0 */
LK__PRIV void lk__sketch_add(lk__sketch *s, int64_t ns);
LK__PRIV int64_t lk__sketch_quantile(const lk__sketch *s, double q); /* 0 while it is empty */

/* ==== >>core/sketch.c ========================================================================= */
/* core/sketch.c -- quantiles of durations in a fixed space */

/* Bucket boundaries are the powers of g = 2^(1/18).  A bucket from a to b = g a answers with
 * 2 a b / (a + b).  Of the values in it a and b are furthest from that, both by (g - 1) / (g + 1)
 * of themselves, which is 1.926 %.  Boundaries kept in 31 bits add less than 10^-9 to this, and an
 * answer rounded to whole nanoseconds at most 0.5 in 985, or 0.051 %: together less than 2 %. */
enum {
    LK__SKETCH_OCTAVE = 18,
    LK__SKETCH_FIRST = 9 * LK__SKETCH_OCTAVE + 17 /* of 2^(9 + 17/18) = 985 ns */
};

/* 2^(k/18) with 31 bits behind the point. */
static const uint32_t lk__sketch_bounds[LK__SKETCH_OCTAVE] = {
    0x80000000, 0x85067242, 0x8a3f65c4, 0x8facd61e, 0x9550d2d5, 0x9b2d8025,
    0xa14517cc, 0xa799e9ec, 0xae2e5de2, 0xb504f334, 0xbc204285, 0xc382fe8f,
    0xcb2ff52a, 0xd32a105c, 0xdb745777, 0xe411f03a, 0xed062009, 0xf6544d27,
};

/* From the top four bits behind the leading one: the bucket where the search begins.  A sixteenth
 * of an octave spans at most two boundaries, so it ends soon. */
LK__PRIV uint32_t lk__sketch_index(uint64_t ns) {
    static const uint8_t starts[16] = { 0, 1, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17 };
    unsigned exponent = lk__high_bit(ns);
    uint32_t mantissa = (uint32_t)(ns << (63 - exponent) >> 32);
    uint32_t part = starts[mantissa >> 27 & 15];
    while (part + 1 < LK__SKETCH_OCTAVE && mantissa >= lk__sketch_bounds[part + 1]) part++;
    uint32_t index = exponent * LK__SKETCH_OCTAVE + part;
    if (index < LK__SKETCH_FIRST) return 0;
    index -= LK__SKETCH_FIRST;
    return index < LK__SKETCH_BUCKETS ? index : LK__SKETCH_BUCKETS - 1;
}

LK__PRIV int64_t lk__sketch_value(uint32_t index) {
    uint32_t place = index + LK__SKETCH_FIRST;
    unsigned exponent = place / LK__SKETCH_OCTAVE, part = place % LK__SKETCH_OCTAVE;
    uint64_t a = lk__sketch_bounds[part];
    uint64_t b = part + 1 < LK__SKETCH_OCTAVE ? lk__sketch_bounds[part + 1] : UINT64_C(1) << 32;
    uint64_t middle = a + a * (b - a) / (a + b); /* 2 a b / (a + b), below 2^32 */
    return (int64_t)(((middle << 31 >> (61 - exponent)) + 1) / 2);
}

LK__PRIV void lk__sketch_add(lk__sketch *s, int64_t ns) {
    uint32_t *count = &s->count[lk__sketch_index(ns > 0 ? (uint64_t)ns : 1)];
    if (*count == UINT32_MAX) return; /* full: what is left out is one in four thousand million */
    *count += 1;
    s->total++;
    if (ns > s->max_ns) s->max_ns = ns;
}

LK__PRIV int64_t lk__sketch_quantile(const lk__sketch *s, double q) {
    if (s->total == 0) return 0;
    uint64_t last = s->total - 1; /* ranks count from 0 */
    uint64_t rank = q > 0 ? (uint64_t)(q < 1 ? q * (double)last : (double)last) : 0;
    if (rank >= last) return s->max_ns;
    uint64_t seen = 0;
    uint32_t index = 0;
    for (; index < LK__SKETCH_BUCKETS - 1; index++) {
        seen += s->count[index];
        if (seen > rank) break;
    }
    int64_t value = lk__sketch_value(index);
    return value < s->max_ns ? value : s->max_ns;
}

/* ==== >>policy/bucket.c ======================================================================= */
/* policy/bucket.c -- token buckets: GCRA in one word */

#if LLMKIT_WITH_LIMITER

/* Units of time that one token takes: at least, and where the burst leaves room for it. */
static const double lk__bucket_min_token = 0x1p16;
static const double lk__bucket_good_token = 0x1p26;
/* Most units that may be missing, or be asked for: two such numbers add up without overflow. */
static const int64_t lk__bucket_max = INT64_C(1) << 60;

enum { LK__BUCKET_FULL = 0 }; /* an arrival time for "long ago" on every clock */

/* The bucket is full when the theoretical arrival time lies in the past, and lacks as many tokens
 * as fit between now and it otherwise.  Times are in units of 2^-shift ns, modulo 2^64: fast rates
 * need fractions of a nanosecond, and bursts that last for centuries need coarse units.  A bucket
 * left idle for a quarter of the span that 64 bits hold would come round to look empty; seen_ns,
 * which moves a few times in a span, tells that it is full.
 *
 * The length of a token is rounded up, so the rate is never exceeded; that loses at most 2^-16 of
 * it.  A cost that is no whole number is rounded to the nearest unit, up and down alike, so that
 * what was taken is given back exactly. */
struct llmkit_bucket {
    lk__atomic_u64 arrival; /* or LK__BUCKET_FULL */
    lk__atomic_u64 seen_ns; /* near the time of the last change */
    double token;           /* units that one token takes to arrive, whole; 0: no limit */
    int64_t capacity;       /* burst, in units */
    int64_t stale_ns;       /* idle for longer: full */
    int32_t shift;
    void *(*alloc)(void *user, void *ptr, size_t old_size, size_t new_size);
    void *user;
};

LK__PRIV uint64_t lk__bucket_time(const llmkit_bucket *b, int64_t now_ns) {
    if (b->shift >= 0) return (uint64_t)now_ns << b->shift;
    /* Halved towards minus infinity: the complement of a negative number is not negative. */
    return now_ns >= 0 ? (uint64_t)(now_ns >> -b->shift) : ~(uint64_t)(~now_ns >> -b->shift);
}

/* So many units as a wait in whole ns: long enough, and never INT64_MAX. */
LK__PRIV int64_t lk__bucket_wait(const llmkit_bucket *b, int64_t units) {
    if (b->shift >= 0) {
        int64_t ns = units >> b->shift;
        return ns << b->shift < units ? ns + 1 : ns;
    }
    return units > (INT64_MAX >> -b->shift) - 1 ? INT64_MAX - 1 : units << -b->shift;
}

/* Signed and rounded symmetrically; more than anything the bucket can hold becomes that. */
LK__PRIV int64_t lk__bucket_units(const llmkit_bucket *b, double tokens) {
    double units = tokens * b->token;
    if (units >= (double)lk__bucket_max) return lk__bucket_max;
    if (units <= -(double)lk__bucket_max) return -lk__bucket_max;
    if (units < 0) return -(int64_t)(0.5 - units);
    return units > 0 ? (int64_t)(units + 0.5) : 0; /* NaN is 0 */
}

/* Units that are missing from a full bucket. */
LK__PRIV int64_t lk__bucket_missing(const llmkit_bucket *b, uint64_t arrival, int64_t now_ns) {
    if (arrival == LK__BUCKET_FULL) return 0;
    int64_t idle = (int64_t)((uint64_t)now_ns - lk__load_relaxed(&b->seen_ns));
    if (LK__UNLIKELY(idle > b->stale_ns)) return 0;
    int64_t missing = (int64_t)(arrival - lk__bucket_time(b, now_ns));
    return missing > 0 ? missing : 0;
}

/* Moves the arrival time so that so many units are missing now.  seen_ns goes first: who reads the
 * new arrival time sees it too, and takes a bucket for stale only together with the old one, from
 * which the change fails. */
LK__PRIV bool lk__bucket_change(llmkit_bucket *b, uint64_t *arrival, int64_t missing,
                                int64_t now_ns) {
    uint64_t next = lk__bucket_time(b, now_ns) + (uint64_t)missing;
    if (next == LK__BUCKET_FULL) next++;
    int64_t idle = (int64_t)((uint64_t)now_ns - lk__load_relaxed(&b->seen_ns));
    if (*arrival == LK__BUCKET_FULL || idle > b->stale_ns / 8) {
        lk__store_relaxed(&b->seen_ns, (uint64_t)now_ns);
    }
    return lk__cas(&b->arrival, arrival, next);
}

/* Units fine enough for a precise token come first, then units coarse enough for the burst.  What
 * does not fit even so, more than 2^44 ns' worth at 10^9 a second, is cut off the burst. */
LK__PRIV void lk__bucket_scale(llmkit_bucket *b, llmkit_rate rate) {
    double token = 1e9 / rate.per_s; /* in ns for now */
    double most = (double)lk__bucket_max / 4;
    b->shift = 0;
    while (b->shift < 26 && (token < lk__bucket_min_token ||
                             (token < lk__bucket_good_token && token * rate.burst * 2 < most))) {
        token *= 2;
        b->shift++;
    }
    while (b->shift > -20 && token > lk__bucket_good_token && token * rate.burst > most) {
        token /= 2;
        b->shift--;
    }
    if (token > most) token = most;
    double whole = (double)(int64_t)token;
    b->token = whole < token ? whole + 1 : whole;
    b->capacity = lk__bucket_units(b, rate.burst);
    b->stale_ns = (INT64_C(1) << 62) >> (b->shift > 0 ? b->shift : 0);
}

LLMKIT_API llmkit_bucket *llmkit_bucket_create(const llmkit_env *env, llmkit_rate rate) {
    llmkit_env filled = lk__env_fill(env);
    if (!(rate.per_s >= 0 && rate.burst >= 0)) return NULL; /* NaN is neither */
    llmkit_bucket *b = lk__alloc(&filled, sizeof *b);
    if (!b) return NULL;
    b->alloc = filled.alloc;
    b->user = filled.user;
    if (!(rate.burst > 0)) rate.burst = rate.per_s > 1 ? rate.per_s : 1;
    if (rate.per_s > 0 && rate.per_s <= DBL_MAX) lk__bucket_scale(b, rate);
    return b;
}

LLMKIT_API void llmkit_bucket_release(llmkit_bucket *b) {
    if (b) b->alloc(b->user, b, sizeof *b, 0);
}

LLMKIT_API int64_t llmkit_bucket_take(llmkit_bucket *b, double cost, int64_t now_ns) {
    if (!(cost >= 0)) return INT64_MAX;
    int64_t units = lk__bucket_units(b, cost);
    if (units == 0) return 0;
    if (units > b->capacity) return INT64_MAX;
    uint64_t arrival = lk__load_acquire(&b->arrival);
    for (;;) {
        int64_t missing = lk__bucket_missing(b, arrival, now_ns) + units;
        if (missing > b->capacity) return lk__bucket_wait(b, missing - b->capacity);
        if (LK__LIKELY(lk__bucket_change(b, &arrival, missing, now_ns))) return 0;
    }
}

LLMKIT_API void llmkit_bucket_settle(llmkit_bucket *b, double difference, int64_t now_ns) {
    int64_t units = lk__bucket_units(b, difference);
    if (units == 0) return;
    uint64_t arrival = lk__load_acquire(&b->arrival);
    for (;;) {
        int64_t missing = lk__bucket_missing(b, arrival, now_ns) + units;
        if (missing < 0) missing = 0;
        if (missing > lk__bucket_max) missing = lk__bucket_max;
        if (LK__LIKELY(lk__bucket_change(b, &arrival, missing, now_ns))) return;
    }
}

LLMKIT_API double llmkit_bucket_level(const llmkit_bucket *b, int64_t now_ns) {
    if (!(b->token > 0)) return DBL_MAX;
    int64_t missing = lk__bucket_missing(b, lk__load_acquire(&b->arrival), now_ns);
    return (double)(b->capacity - missing) / b->token;
}

LLMKIT_API void llmkit_bucket_reset(llmkit_bucket *b) {
    lk__store_release(&b->arrival, LK__BUCKET_FULL);
}

#else

LLMKIT_API llmkit_bucket *llmkit_bucket_create(const llmkit_env *env, llmkit_rate rate) {
    (void)env;
    (void)rate;
    return NULL;
}

LLMKIT_API void llmkit_bucket_release(llmkit_bucket *b) {
    (void)b;
}

LLMKIT_API int64_t llmkit_bucket_take(llmkit_bucket *b, double cost, int64_t now_ns) {
    (void)b;
    (void)cost;
    (void)now_ns;
    return 0;
}

LLMKIT_API void llmkit_bucket_settle(llmkit_bucket *b, double difference, int64_t now_ns) {
    (void)b;
    (void)difference;
    (void)now_ns;
}

LLMKIT_API double llmkit_bucket_level(const llmkit_bucket *b, int64_t now_ns) {
    (void)b;
    (void)now_ns;
    return 0;
}

LLMKIT_API void llmkit_bucket_reset(llmkit_bucket *b) {
    (void)b;
}

#endif

/* ==== >>net/url.h ============================================================================= */
/* net/url.h -- the URLs of providers and endpoints */

/* Views into the text it was parsed from.  http, https (RFC 9110 4.2) and "unix:/socket:/path".
 * User information, fragments, and what is not visible ASCII are refused; a message says why, and
 * repeats none of the text, which may hold a secret.  Host names are compared in any case. */
typedef struct lk__url {
    bool       tls;
    llmkit_str host; /* without the brackets of an IPv6 address; of a Unix socket "localhost" */
    uint16_t   port; /* the scheme's own where the text has none; 0 for a Unix socket */
    llmkit_str unix_path; /* "" but for a Unix socket */
    llmkit_str path;      /* with its leading '/', query included; "" where there is none */
} lk__url;

LK__PRIV llmkit_err lk__url_parse(lk__url *url, llmkit_str text, llmkit_error *error);
/* The value of the Host field: brackets for IPv6, the port where it is not the scheme's own. */
LK__PRIV void lk__url_host_field(const lk__url *url, lk__buf *out);

/* ==== >>net/url.c ============================================================================= */
/* net/url.c -- the URLs of providers and endpoints */

/* No message repeats any of the text: a URL may hold a secret where it should not. */

enum { LK__URL_MAX_HOST = 253 }; /* RFC 1035 2.3.4, written out without the final dot */

/* What is not visible ASCII can stand in no URL (RFC 3986 2). */
LK__PRIV llmkit_err lk__url_check_bytes(llmkit_str text, llmkit_error *error) {
    for (size_t i = 0; i < text.len; i++) {
        uint8_t c = (uint8_t)text.ptr[i];
        if (c == ' ') return lk__fail(error, LLMKIT_E_ARG, "the URL holds a space");
        if (c < 0x20 || c == 0x7f)
            return lk__fail(error, LLMKIT_E_ARG, "the URL holds a control byte");
        if (c > 0x7f)
            return lk__fail(error, LLMKIT_E_ARG,
                            "the URL holds a byte outside ASCII; percent-encode it");
        if (c == '#')
            return lk__fail(error, LLMKIT_E_ARG, "the URL has a fragment ('#'); leave it out");
    }
    return LLMKIT_OK;
}

LK__PRIV bool lk__url_is_ipv6(llmkit_str host) {
    char text[INET6_ADDRSTRLEN];
    struct in6_addr address;
    if (host.len >= sizeof(text)) return false;
    memcpy(text, host.ptr, host.len);
    text[host.len] = '\0';
    return inet_pton(AF_INET6, text, &address) == 1;
}

/* Letters, digits, '-', '.' and '_': what resolvers take, less than RFC 3986 3.2.2 allows. */
LK__PRIV bool lk__url_is_name(llmkit_str host) {
    for (size_t i = 0; i < host.len; i++) {
        char c = lk__lower(host.ptr[i]);
        bool good =
            (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
        if (!good) return false;
    }
    return host.len <= LK__URL_MAX_HOST;
}

/* An empty port is the scheme's own (RFC 3986 3.2.3). */
LK__PRIV llmkit_err lk__url_port(lk__url *url, llmkit_str text, llmkit_error *error) {
    uint64_t port = 0;
    if (text.len == 0) return LLMKIT_OK;
    if (!lk__parse_u64(text, &port) || port < 1 || port > 65535)
        return lk__fail(error, LLMKIT_E_ARG, "the URL's port is not a number from 1 to 65535");
    url->port = (uint16_t)port;
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__url_authority(lk__url *url, llmkit_str text, llmkit_error *error) {
    if (lk__str_find(text, '@') < text.len)
        return lk__fail(error, LLMKIT_E_ARG,
                        "the URL holds a user name or password; give a key as api_key instead");
    if (text.len > 0 && text.ptr[0] == '[') {
        size_t close = lk__str_find(text, ']');
        if (close == text.len) return lk__fail(error, LLMKIT_E_ARG, "the URL's '[' has no ']'");
        url->host = lk__str(text.ptr + 1, close - 1);
        if (!lk__url_is_ipv6(url->host))
            return lk__fail(error, LLMKIT_E_ARG, "the URL's brackets hold no IPv6 address");
        text = lk__str_from(text, close + 1);
        if (text.len > 0 && text.ptr[0] != ':')
            return lk__fail(error, LLMKIT_E_ARG, "the URL has something between ']' and ':'");
    } else {
        url->host = lk__str(text.ptr, lk__str_find(text, ':'));
        if (url->host.len == 0) return lk__fail(error, LLMKIT_E_ARG, "the URL has no host");
        if (!lk__url_is_name(url->host))
            return lk__fail(error, LLMKIT_E_ARG, "the URL's host is not a valid name");
        text = lk__str_from(text, url->host.len);
    }
    return text.len > 0 ? lk__url_port(url, lk__str_from(text, 1), error) : LLMKIT_OK;
}

/* "/socket", "/socket:" or "/socket:/path".  A socket's own path may hold ':', hence the last. */
LK__PRIV llmkit_err lk__url_unix(lk__url *url, llmkit_str text, llmkit_error *error) {
    struct sockaddr_un address;
    size_t at = text.len;
    while (at > 0 && !(text.ptr[at - 1] == ':' && (at == text.len || text.ptr[at] == '/'))) at--;
    url->unix_path = at > 0 ? lk__str(text.ptr, at - 1) : text;
    if (at > 0) url->path = lk__str_from(text, at);
    url->host = LK__STR("localhost");
    if (url->unix_path.len == 0 || url->unix_path.ptr[0] != '/')
        return lk__fail(error, LLMKIT_E_ARG, "the URL's socket path does not begin with '/'");
    if (url->unix_path.len >= sizeof(address.sun_path))
        return lk__fail(error, LLMKIT_E_ARG, "the URL's socket path is longer than %d bytes",
                        (int)sizeof(address.sun_path) - 1);
    return LLMKIT_OK;
}

LK__PRIV bool lk__url_scheme(llmkit_str *text, llmkit_str scheme) {
    if (text->len < scheme.len || !lk__str_ieq(lk__str(text->ptr, scheme.len), scheme))
        return false;
    *text = lk__str_from(*text, scheme.len);
    return true;
}

LK__PRIV llmkit_err lk__url_parse(lk__url *url, llmkit_str text, llmkit_error *error) {
    *url = (lk__url){ .host = LK__STR(""), .unix_path = LK__STR(""), .path = LK__STR("") };
    llmkit_err err = lk__url_check_bytes(text, error);
    if (err) return err;
    if (lk__url_scheme(&text, LK__STR("unix:"))) return lk__url_unix(url, text, error);
    url->tls = lk__url_scheme(&text, LK__STR("https://"));
    if (!url->tls && !lk__url_scheme(&text, LK__STR("http://")))
        return lk__fail(error, LLMKIT_E_ARG,
                        "the URL does not begin with https://, http:// or unix:/");
    url->port = url->tls ? 443 : 80;

    size_t end = 0;
    while (end < text.len && text.ptr[end] != '/' && text.ptr[end] != '?') end++;
    if (end < text.len && text.ptr[end] == '?')
        return lk__fail(error, LLMKIT_E_ARG, "the URL has a query, but no '/' before it");
    if (end < text.len) url->path = lk__str_from(text, end);
    return lk__url_authority(url, lk__str(text.ptr, end), error);
}

LK__PRIV void lk__url_host_field(const lk__url *url, lk__buf *out) {
    bool ipv6 = lk__str_find(url->host, ':') < url->host.len;
    if (ipv6) lk__buf_ch(out, '[');
    lk__buf_str(out, url->host);
    if (ipv6) lk__buf_ch(out, ']');
    if (url->port != 0 && url->port != (url->tls ? 443 : 80)) {
        lk__buf_ch(out, ':');
        lk__buf_u64(out, url->port);
    }
}

/* ==== >>net/http1.h =========================================================================== */
/* net/http1.h -- HTTP/1.1 messages, both directions (RFC 9112) */

typedef struct lk__field {
    llmkit_str name, value;
} lk__field;

/* One parsed head.  Views into the input or the parser, valid until the next lk__http_feed. */
typedef struct lk__head {
    llmkit_str method, target; /* of a request */
    uint16_t   status;         /* of a response */
    llmkit_str reason;
    uint8_t    minor;          /* of HTTP/1.minor */
    bool       keep_alive;     /* the connection may serve another message after this one */
    bool       chunked, has_length;
    bool       expect_continue; /* Expect: 100-continue */
    uint64_t   length;          /* Content-Length */
    uint32_t   num;
    lk__field  fields[LLMKIT_MAX_HEADERS];
} lk__head;

LK__PRIV llmkit_str lk__head_get(const lk__head *head, llmkit_str name); /* {NULL, 0}: not there */

enum {
    LK__HTTP_MAX_BLANK = 8,         /* CR and LF before a head (RFC 9112 2.2) */
    LK__HTTP_MAX_INTERIM = 16,      /* 1xx responses before the final one */
    LK__HTTP_MAX_CHUNK_LINE = 1024, /* a chunk's size with its extensions, which we skip (7.1.1) */
    LK__HTTP_KEEP_BYTES = 2048      /* of a partial head's memory, for the next one */
};

typedef enum lk__http_event {
    LK__HTTP_MORE, /* all of the input is consumed */
    LK__HTTP_HEAD, /* a head is complete */
    LK__HTTP_BODY, /* a piece of the body, not empty */
    LK__HTTP_END,  /* the message is complete; what is left of the input belongs to the next */
    LK__HTTP_ERROR /* parser.error says why; nothing more can be parsed */
} lk__http_event;

/* A parser for one direction of one connection: no sockets, no clock.  Feed it until MORE, END or
 * ERROR, also when a HEAD or BODY has used up the input: END may follow.  What it says depends on
 * the bytes alone and not on where the input was cut, but for the pieces of bodies.  1xx responses
 * are skipped (101 is an error: nothing here upgrades).  After END it is ready for the next one.
 * Small and plain memory: it allocates only to hold a head that arrives in pieces, or a response's
 * whose fields are folded. */
typedef struct lk__http {
    bool       request;   /* parses requests, else responses */
    bool       no_body;   /* set by the caller before each head: the response is to HEAD */
    uint8_t    state;
    bool       keep_alive;
    uint64_t   left;      /* of the body or the chunk */
    uint32_t   line;      /* bytes of the present chunk-size line, or blank ones before a head */
    uint32_t   trailer;   /* bytes of the trailer section so far */
    uint32_t   max_head;  /* bytes of a head, and of a trailer section */
    uint8_t    interim;   /* 1xx responses skipped since the last message */
    lk__buf    partial;   /* a head that has arrived in part */
    llmkit_err error;     /* E_PROTOCOL, E_TOO_BIG, E_NOMEM or E_TRUNCATED */
    bool       unknown_coding; /* with E_PROTOCOL: a Transfer-Encoding other than chunked */
    const char *reason;   /* in words, a literal */
} lk__http;

/* max_head 0: LLMKIT_MAX_HEAD_BYTES. */
LK__PRIV void lk__http_init(lk__http *h, const llmkit_env *env, bool request, uint32_t max_head);
LK__PRIV void lk__http_free(lk__http *h);
/* Consumes from the front of *in.  head is filled on HEAD, body on BODY. */
LK__PRIV lk__http_event lk__http_feed(lk__http *h, llmkit_str *in, lk__head *head,
                                      llmkit_str *body);
/* The peer closed the connection: END for a body that ends so, MORE between two messages, else
 * ERROR with E_TRUNCATED. */
LK__PRIV lk__http_event lk__http_eof(lk__http *h);

LK__PRIV bool lk__http_is_token_char(char c);     /* RFC 9110 5.6.2 */
LK__PRIV bool lk__http_has_control(llmkit_str s); /* other than HTAB: no value may (5.5) */

/* Writing.  Nothing a caller passes can split a message.  A method that is no token, or a target
 * that is empty or holds more than visible ASCII, adds nothing and makes out->failed E_ARG, as does
 * a status that is not from 100 to 599. */
LK__PRIV void lk__http_request_line(lk__buf *out, llmkit_str method, llmkit_str target);
LK__PRIV void lk__http_status_line(lk__buf *out, int status);
/* E_ARG, and nothing is added, where name is no token or value holds a control byte but HTAB. */
LK__PRIV llmkit_err lk__http_field(lk__buf *out, llmkit_str name, llmkit_str value);
LK__PRIV void lk__http_field_u64(lk__buf *out, llmkit_str name, uint64_t value); /* a literal */
LK__PRIV void lk__http_chunk(lk__buf *out, llmkit_str piece); /* empty: nothing */
LK__PRIV void lk__http_last_chunk(lk__buf *out);

/* ==== >>net/http1.c =========================================================================== */
/* net/http1.c -- HTTP/1.1 messages: heads, bodies and chunks in, heads and chunks out */

/* Sections are those of RFC 9112 unless another RFC is named.  Requests are read strictly: what two
 * parsers could understand differently lets an attacker hide one request in another (11.2).  In
 * responses, which come from the server that we chose, LF without CR ends a line too (2.2), since
 * there are model servers that write it. */

/* Where in a message the next byte stands. */
enum {
    LK__HTTP_AT_HEAD,
    LK__HTTP_AT_LENGTH,  /* in a body of which left bytes are to come; 0: at its end */
    LK__HTTP_AT_CLOSE,   /* in a body that ends with the connection */
    LK__HTTP_AT_SIZE,    /* in the digits of a chunk's size */
    LK__HTTP_AT_PAD,     /* in blanks after them */
    LK__HTTP_AT_EXT,     /* in a chunk extension */
    LK__HTTP_AT_SIZE_LF, /* after the CR of that line */
    LK__HTTP_AT_DATA,    /* in a chunk of which left bytes are to come */
    LK__HTTP_AT_DATA_CR, /* after a chunk */
    LK__HTTP_AT_DATA_LF,
    LK__HTTP_AT_TRAILER, /* at the start of a trailer line */
    LK__HTTP_AT_TRAILER_LINE,
    LK__HTTP_AT_TRAILER_LF,
    LK__HTTP_AT_LAST_LF, /* after the CR of the empty line that ends a chunked body */
    LK__HTTP_AT_ERROR
};

/* What a head's fields say about the connection, until the last of them is read. */
typedef struct lk__http_facts {
    uint32_t hosts, codings;
    bool close, keep_alive;
} lk__http_facts;

LK__PRIV lk__http_event lk__http_fail(lk__http *h, llmkit_err error, const char *reason) {
    h->state = LK__HTTP_AT_ERROR;
    h->error = error;
    h->reason = reason;
    return LK__HTTP_ERROR;
}

/* false, for parts of the parser that answer whether they went well. */
LK__PRIV bool lk__http_refuse(lk__http *h, const char *reason) {
    lk__http_fail(h, LLMKIT_E_PROTOCOL, reason);
    return false;
}

LK__PRIV bool lk__http_is_token_char(char c) { /* RFC 9110 5.6.2; 32 of ASCII in each row */
    static const char table[] = "................................"
                                ".x.xxxxx..xx.xx.xxxxxxxxxx......"
                                ".xxxxxxxxxxxxxxxxxxxxxxxxxx...xx"
                                "xxxxxxxxxxxxxxxxxxxxxxxxxxx.x.x.";
    uint8_t u = (uint8_t)c;
    return u < 128 && table[u] == 'x';
}

LK__PRIV size_t lk__http_token_len(llmkit_str s) {
    size_t n = 0;
    while (n < s.len && lk__http_is_token_char(s.ptr[n])) n++;
    return n;
}

LK__PRIV bool lk__http_is_target(llmkit_str s) { /* visible ASCII: what a URI is made of (3.2) */
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] <= ' ' || s.ptr[i] > '~') return false;
    }
    return s.len > 0;
}

/* No byte of eight is below 0x20 or is 0x7f.  Subtracting borrows into the top bit of a byte that
 * is smaller; those that had it set already are let through. */
LK__PRIV bool lk__http_is_plain8(const char *p) {
    const uint64_t ones = UINT64_MAX / 255;
    uint64_t w;
    memcpy(&w, p, 8);
    uint64_t del = w ^ ones * 0x7f;
    uint64_t low = (w - ones * 0x20) & ~w;
    return ((((del - ones) & ~del) | low) & ones * 0x80) == 0;
}

LK__PRIV bool lk__http_has_control8(const char *p, size_t n) {
    if (n == 8 && lk__http_is_plain8(p)) return false;
    for (size_t i = 0; i < n; i++) {
        uint8_t c = (uint8_t)p[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f) return true;
    }
    return false;
}

/* A control byte other than HTAB, which no value may hold (RFC 9110 5.5).  The last eight bytes
 * overlap with those before. */
LK__PRIV bool lk__http_has_control(llmkit_str s) {
    if (s.len < 8) return lk__http_has_control8(s.ptr, s.len);
    for (size_t i = 0; s.len - i >= 8; i += 8) {
        if (lk__http_has_control8(s.ptr + i, 8)) return true;
    }
    return lk__http_has_control8(s.ptr + s.len - 8, 8);
}

LK__PRIV void lk__http_init(lk__http *h, const llmkit_env *env, bool request, uint32_t max_head) {
    *h = (lk__http){ .request = request };
    h->max_head = max_head ? max_head : LLMKIT_MAX_HEAD_BYTES;
    lk__buf_init(&h->partial, env, h->max_head);
}

LK__PRIV void lk__http_free(lk__http *h) {
    lk__buf_free(&h->partial);
}

LK__PRIV llmkit_str lk__head_get(const lk__head *head, llmkit_str name) {
    for (uint32_t i = 0; i < head->num; i++) {
        if (lk__str_ieq(head->fields[i].name, name)) return head->fields[i].value;
    }
    return lk__str(NULL, 0);
}

/* ---- Heads ----------------------------------------------------------------------------------- */

/* Takes a line off the front of a whole head, which always ends in one. */
LK__PRIV bool lk__http_line(lk__http *h, llmkit_str *text, llmkit_str *line) {
    const char *lf = memchr(text->ptr, '\n', text->len);
    if (LK__NEVER(!lf)) return lk__http_refuse(h, "a line does not end");
    size_t n = (size_t)(lf - text->ptr);
    *line = lk__str(text->ptr, n);
    *text = lk__str_from(*text, n + 1);
    if (n > 0 && line->ptr[n - 1] == '\r')
        line->len--;
    else if (h->request)
        return lk__http_refuse(h, "a line ends in LF without CR");
    return true;
}

/* "GET /path HTTP/1.1" (3). */
LK__PRIV bool lk__http_parse_request_line(lk__http *h, llmkit_str line, lk__head *head) {
    size_t method = lk__http_token_len(line);
    if (method == 0 || method == line.len || line.ptr[method] != ' ')
        return lk__http_refuse(h, "the request line has no valid method");
    llmkit_str rest = lk__str_from(line, method + 1);
    size_t target = lk__str_find(rest, ' ');
    head->method = lk__str(line.ptr, method);
    head->target = lk__str(rest.ptr, target);
    if (!lk__http_is_target(head->target))
        return lk__http_refuse(h, "the request target is no visible ASCII");
    rest = lk__str_from(rest, target);
    if (rest.len != 9 || memcmp(rest.ptr, " HTTP/1.", 8) != 0 || rest.ptr[8] < '0' ||
        rest.ptr[8] > '9')
        return lk__http_refuse(h, "the request line does not end in HTTP/1.0 or HTTP/1.1");
    head->minor = (uint8_t)(rest.ptr[8] - '0');
    return true;
}

/* "HTTP/1.1 200 OK" (4); servers are known to leave out the reason and the blank before it. */
LK__PRIV bool lk__http_parse_status_line(lk__http *h, llmkit_str line, lk__head *head) {
    static const char shape[] = "HTTP/1.# ###";
    unsigned status = 0;
    for (size_t i = 0; i < 12; i++) {
        char c = i < line.len ? line.ptr[i] : '\0';
        bool digit = c >= '0' && c <= '9';
        if (shape[i] == '#' ? !digit : c != shape[i])
            return lk__http_refuse(h, "the status line is malformed");
        if (i > 8) status = status * 10 + (unsigned)(c - '0');
    }
    if (status < 100 || status > 599 || (line.len > 12 && line.ptr[12] != ' '))
        return lk__http_refuse(h, "the status code is not a number from 100 to 599");
    head->minor = (uint8_t)(line.ptr[7] - '0');
    head->status = (uint16_t)status;
    head->reason = lk__str_from(line, line.len > 12 ? 13 : 12);
    if (lk__http_has_control(head->reason))
        return lk__http_refuse(h, "the reason phrase holds a control byte");
    return true;
}

LK__PRIV void lk__http_note_connection(lk__http_facts *facts, llmkit_str list) {
    while (list.len > 0) {
        size_t n = lk__str_find(list, ',');
        llmkit_str option = lk__str_trim(lk__str(list.ptr, n));
        if (lk__str_ieq(option, LK__STR("close"))) facts->close = true;
        if (lk__str_ieq(option, LK__STR("keep-alive"))) facts->keep_alive = true;
        list = lk__str_from(list, n < list.len ? n + 1 : n);
    }
}

LK__PRIV bool lk__http_note_length(lk__http *h, lk__head *head, llmkit_str value) {
    uint64_t length = 0;
    if (!lk__parse_u64(value, &length))
        return lk__http_refuse(h, "Content-Length is not a number of 64 bits");
    if (head->has_length && (h->request || head->length != length))
        return lk__http_refuse(h, "Content-Length is given twice"); /* 6.3; RFC 9110 8.6 */
    head->has_length = true;
    head->length = length;
    return true;
}

/* The five fields that rule framing and the connection.  Lengths first: most fields are others. */
LK__PRIV bool lk__http_note(lk__http *h, lk__head *head, lk__http_facts *facts,
                            const lk__field *field) {
    llmkit_str name = field->name, value = field->value;
    if (name.len == 4 && lk__str_ieq(name, LK__STR("Host"))) {
        facts->hosts++;
    } else if (name.len == 6 && lk__str_ieq(name, LK__STR("Expect"))) {
        if (lk__str_ieq(value, LK__STR("100-continue"))) head->expect_continue = true;
    } else if (name.len == 10 && lk__str_ieq(name, LK__STR("Connection"))) {
        lk__http_note_connection(facts, value);
    } else if (name.len == 14 && lk__str_ieq(name, LK__STR("Content-Length"))) {
        return lk__http_note_length(h, head, value);
    } else if (name.len == 17 && lk__str_ieq(name, LK__STR("Transfer-Encoding"))) {
        h->unknown_coding = facts->codings++ > 0 || !lk__str_ieq(value, LK__STR("chunked"));
        if (h->unknown_coding)
            return lk__http_refuse(h, "a Transfer-Encoding other than chunked is not understood");
        head->chunked = true;
    }
    return true;
}

LK__PRIV bool lk__http_parse_field(lk__http *h, llmkit_str line, lk__head *head,
                                   lk__http_facts *facts) {
    size_t n = lk__http_token_len(line);
    if (n == 0 && (line.ptr[0] == ' ' || line.ptr[0] == '\t'))
        return lk__http_refuse(h, "a field is folded over two lines"); /* 5.2; or 2.2 */
    if (n < line.len && (line.ptr[n] == ' ' || line.ptr[n] == '\t'))
        return lk__http_refuse(h, "white space stands before the colon of a field"); /* 5.1 */
    if (n == 0 || n == line.len || line.ptr[n] != ':')
        return lk__http_refuse(h, "the name of a field is malformed");
    if (head->num == LLMKIT_MAX_HEADERS) {
        lk__http_fail(h, LLMKIT_E_TOO_BIG, "there are more than LLMKIT_MAX_HEADERS fields");
        return false;
    }
    lk__field *field = &head->fields[head->num++];
    field->name = lk__str(line.ptr, n);
    field->value = lk__str_trim(lk__str_from(line, n + 1));
    if (lk__http_has_control(field->value))
        return lk__http_refuse(h, "the value of a field holds a control byte");
    return lk__http_note(h, head, facts, field);
}

/* Where the body ends (6.3), and whether another message can follow it (9.3). */
LK__PRIV bool lk__http_frame(lk__http *h, lk__head *head, const lk__http_facts *facts) {
    bool close = facts->close || (head->minor == 0 && !facts->keep_alive);
    if (h->request && (facts->hosts > 1 || (facts->hosts == 0 && head->minor > 0)))
        return lk__http_refuse(h, "the request has not exactly one Host field"); /* 3.2 */
    if (head->chunked && (head->has_length || head->minor == 0)) {               /* 6.1 */
        if (h->request && head->has_length)
            return lk__http_refuse(h, "there are both Content-Length and Transfer-Encoding");
        if (h->request) return lk__http_refuse(h, "a request in HTTP/1.0 has a Transfer-Encoding");
        head->has_length = false; /* the coding wins, and the connection is not used again */
        head->length = 0;
        close = true;
    }
    h->left = 0;
    h->line = 0;
    h->state = LK__HTTP_AT_LENGTH;
    if (!h->request && (h->no_body || head->status == 204 || head->status == 304)) {
        /* No body, whatever the fields say. */
    } else if (head->chunked) {
        h->state = LK__HTTP_AT_SIZE;
    } else if (head->has_length || h->request) {
        h->left = head->length;
    } else {
        h->state = LK__HTTP_AT_CLOSE;
        close = true;
    }
    head->keep_alive = h->keep_alive = !close;
    return true;
}

LK__PRIV bool lk__http_parse_head(lk__http *h, llmkit_str text, lk__head *head) {
    lk__http_facts facts = { 0 };
    llmkit_str line;
    head->method = head->target = head->reason = LK__STR("");
    head->status = 0;
    head->chunked = head->has_length = head->expect_continue = false;
    head->length = 0;
    head->num = 0;
    if (!lk__http_line(h, &text, &line)) return false;
    if (!(h->request ? lk__http_parse_request_line(h, line, head)
                     : lk__http_parse_status_line(h, line, head)))
        return false;
    for (;;) {
        if (!lk__http_line(h, &text, &line)) return false;
        if (line.len == 0) return lk__http_frame(h, head, &facts);
        if (!lk__http_parse_field(h, line, head, &facts)) return false;
    }
}

/* The length of the head that text begins with, its empty line included; 0 where that is not there
 * yet.  *folded: a line begins with a blank. */
LK__PRIV size_t lk__http_head_len(const char *text, size_t len, bool *folded) {
    const char *end = text + len;
    const char *p = text;
    while ((p = memchr(p, '\n', (size_t)(end - p))) != NULL) {
        if (++p == end) return 0;
        if (*p == '\n') return (size_t)(p + 1 - text);
        if (*p == '\r' && end - p > 1 && p[1] == '\n') return (size_t)(p + 2 - text);
        if (*p == ' ' || *p == '\t') *folded = true;
    }
    return 0;
}

/* Moves bytes to h->partial, a line at a time so that nothing is looked at twice and nothing after
 * the head is moved.  true: the head is whole. */
LK__PRIV bool lk__http_gather(lk__http *h, llmkit_str *in) {
    lk__buf *b = &h->partial;
    while (in->len > 0) {
        const char *lf = memchr(in->ptr, '\n', in->len);
        size_t n = lf ? (size_t)(lf + 1 - in->ptr) : in->len;
        size_t room = h->max_head - b->len;
        lk__buf_add(b, in->ptr, n < room ? n : room);
        if (b->failed)
            lk__http_fail(h, b->failed, "there is no memory for a head");
        else if (n > room)
            lk__http_fail(h, LLMKIT_E_TOO_BIG, "the head is too long");
        if (h->error) return false;
        *in = lk__str_from(*in, n);
        if (lf && b->ptr[b->len - 2] == '\n') return true; /* no head begins with LF */
        if (lf && b->len > 2 && memcmp(b->ptr + b->len - 3, "\n\r", 2) == 0) return true;
    }
    return false;
}

/* What folds a field of a response over two lines becomes blanks (5.2).  After the start line there
 * is nothing to fold; that stays, to be refused. */
LK__PRIV void lk__http_unfold(lk__buf *b) {
    char *end = b->ptr + b->len;
    char *p = memchr(b->ptr, '\n', b->len);
    while (p && (p = memchr(p + 1, '\n', (size_t)(end - p - 1))) != NULL) {
        if (p + 1 == end || (p[1] != ' ' && p[1] != '\t')) continue;
        if (p[-1] == '\r') p[-1] = ' ';
        *p = ' ';
    }
}

/* The first bytes tell a peer that speaks another protocol, long before its first line ends. */
LK__PRIV bool lk__http_is_plausible(lk__http *h, llmkit_str text) {
    if (h->request)
        return lk__http_is_token_char(text.ptr[0]) || lk__http_refuse(h, "this is no HTTP request");
    size_t n = text.len < 7 ? text.len : 7;
    return memcmp(text.ptr, "HTTP/1.", n) == 0 || lk__http_refuse(h, "this is no HTTP/1 response");
}

LK__PRIV bool lk__http_skip_blank(lk__http *h, llmkit_str *in) {
    while (in->len > 0 && (in->ptr[0] == '\r' || in->ptr[0] == '\n')) {
        if (++h->line > LK__HTTP_MAX_BLANK)
            return lk__http_refuse(h, "there are empty lines where a message should begin");
        *in = lk__str_from(*in, 1);
    }
    return true;
}

/* Finds the end of a head.  HEAD: it is *text; it stays in the input where it lies whole there and
 * need not be changed. */
LK__PRIV lk__http_event lk__http_find_head(lk__http *h, llmkit_str *in, llmkit_str *text) {
    if (h->partial.len == 0) {
        if (!lk__http_skip_blank(h, in)) return LK__HTTP_ERROR;
        if (in->len == 0) return LK__HTTP_MORE;
        if (!lk__http_is_plausible(h, *in)) return LK__HTTP_ERROR;
        bool folded = false;
        size_t most = in->len < h->max_head ? in->len : h->max_head;
        size_t n = lk__http_head_len(in->ptr, most, &folded);
        if (n > 0 && !(folded && !h->request)) {
            *text = lk__str(in->ptr, n);
            *in = lk__str_from(*in, n);
            return LK__HTTP_HEAD;
        }
    }
    bool whole = lk__http_gather(h, in);
    llmkit_str partial = lk__buf_view(&h->partial);
    if (partial.len > 0 && !lk__http_is_plausible(h, partial)) return LK__HTTP_ERROR;
    if (h->error) return LK__HTTP_ERROR;
    if (!whole) return LK__HTTP_MORE;
    if (!h->request) lk__http_unfold(&h->partial);
    *text = partial;
    return LK__HTTP_HEAD;
}

/* The next head that is not of a 1xx response (RFC 9110 15.2). */
LK__PRIV lk__http_event lk__http_feed_head(lk__http *h, llmkit_str *in, lk__head *head) {
    for (;;) {
        llmkit_str text;
        lk__http_event event = lk__http_find_head(h, in, &text);
        if (event != LK__HTTP_HEAD) return event;
        if (!lk__http_parse_head(h, text, head)) return LK__HTTP_ERROR;
        if (h->request || head->status >= 200) {
            h->interim = 0;
            return LK__HTTP_HEAD;
        }
        if (head->status == 101)
            return lk__http_fail(h, LLMKIT_E_PROTOCOL, "the server switches protocols unasked");
        if (++h->interim > LK__HTTP_MAX_INTERIM)
            return lk__http_fail(h, LLMKIT_E_PROTOCOL, "there are too many 1xx responses");
        h->state = LK__HTTP_AT_HEAD;
        lk__buf_clear(&h->partial);
    }
}

/* ---- Bodies ---------------------------------------------------------------------------------- */

LK__PRIV int lk__http_hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = lk__lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The end of a line of chunked framing, at its LF: on to next. */
LK__PRIV bool lk__http_framing_lf(lk__http *h, bool after_cr, uint8_t next) {
    if (!after_cr && h->request) return lk__http_refuse(h, "a line ends in LF without CR");
    h->line = 0;
    h->state = next;
    return true;
}

/* One byte of a chunk's size line (7.1). */
LK__PRIV bool lk__http_size_byte(lk__http *h, char c) {
    int digit = h->state == LK__HTTP_AT_SIZE ? lk__http_hex(c) : -1;
    if (++h->line > LK__HTTP_MAX_CHUNK_LINE) {
        lk__http_fail(h, LLMKIT_E_TOO_BIG, "the line of a chunk's size is too long");
        return false;
    }
    if (digit >= 0) {
        if (h->left >> 60) return lk__http_refuse(h, "chunk size is over 64 bits");
        h->left = h->left << 4 | (unsigned)digit;
        return true;
    }
    if (h->line == 1) return lk__http_refuse(h, "chunk size is not hexadecimal");
    if (c == '\n') {
        h->trailer = 0;
        return lk__http_framing_lf(h, h->state == LK__HTTP_AT_SIZE_LF,
                                   h->left ? LK__HTTP_AT_DATA : LK__HTTP_AT_TRAILER);
    }
    if (h->state == LK__HTTP_AT_SIZE_LF)
        return lk__http_refuse(h, "a chunk's size line holds CR without LF");
    if (c == '\r' && !(h->request && h->state == LK__HTTP_AT_PAD)) {
        h->state = LK__HTTP_AT_SIZE_LF;
    } else if (h->state == LK__HTTP_AT_EXT) {
        if (lk__http_has_control(lk__str(&c, 1)))
            return lk__http_refuse(h, "a chunk extension holds a control byte");
    } else if (c == ';') {
        h->state = LK__HTTP_AT_EXT;
    } else if (c == ' ' || c == '\t') {
        h->state = LK__HTTP_AT_PAD;
    } else {
        return lk__http_refuse(h, "chunk size is not hexadecimal");
    }
    return true;
}

/* One byte of the trailer section (7.1.2).  Nothing in it means anything to us: it is dropped. */
LK__PRIV bool lk__http_trailer_byte(lk__http *h, char c) {
    bool empty = h->state == LK__HTTP_AT_TRAILER || h->state == LK__HTTP_AT_LAST_LF;
    bool after_cr = h->state == LK__HTTP_AT_TRAILER_LF || h->state == LK__HTTP_AT_LAST_LF;
    if (++h->trailer > h->max_head) {
        lk__http_fail(h, LLMKIT_E_TOO_BIG, "the trailer section is too long");
        return false;
    }
    if (c == '\n')
        return lk__http_framing_lf(h, after_cr, empty ? LK__HTTP_AT_LENGTH : LK__HTTP_AT_TRAILER);
    if (after_cr) return lk__http_refuse(h, "the trailer section holds CR without LF");
    if (c == '\r')
        h->state = empty ? LK__HTTP_AT_LAST_LF : LK__HTTP_AT_TRAILER_LF;
    else if (lk__http_has_control(lk__str(&c, 1)))
        return lk__http_refuse(h, "the trailer section holds a control byte");
    else
        h->state = LK__HTTP_AT_TRAILER_LINE;
    return true;
}

/* One byte of what stands around the data of chunks. */
LK__PRIV bool lk__http_framing_byte(lk__http *h, char c) {
    if (h->state <= LK__HTTP_AT_SIZE_LF) return lk__http_size_byte(h, c);
    if (h->state >= LK__HTTP_AT_TRAILER) return lk__http_trailer_byte(h, c);
    if (h->state == LK__HTTP_AT_DATA_CR && c == '\r') {
        h->state = LK__HTTP_AT_DATA_LF;
        return true;
    }
    if (c == '\n') return lk__http_framing_lf(h, h->state == LK__HTTP_AT_DATA_LF, LK__HTTP_AT_SIZE);
    return lk__http_refuse(h, "a chunk is not followed by CRLF");
}

LK__PRIV lk__http_event lk__http_take(lk__http *h, llmkit_str *in, llmkit_str *body, bool bounded) {
    size_t n = bounded && h->left < in->len ? (size_t)h->left : in->len;
    if (n == 0) return LK__HTTP_MORE;
    *body = lk__str(in->ptr, n);
    *in = lk__str_from(*in, n);
    if (bounded) h->left -= n;
    return LK__HTTP_BODY;
}

LK__PRIV lk__http_event lk__http_finish(lk__http *h) {
    h->state = LK__HTTP_AT_HEAD;
    h->line = 0;
    if (h->partial.cap > LK__HTTP_KEEP_BYTES) lk__buf_free(&h->partial);
    return LK__HTTP_END;
}

LK__PRIV lk__http_event lk__http_feed(lk__http *h, llmkit_str *in, lk__head *head,
                                      llmkit_str *body) {
    if (h->state == LK__HTTP_AT_HEAD) return lk__http_feed_head(h, in, head);
    lk__buf_clear(&h->partial); /* the head's views end here */
    for (;;) {
        switch (h->state) {
        case LK__HTTP_AT_LENGTH:
            return h->left ? lk__http_take(h, in, body, true) : lk__http_finish(h);
        case LK__HTTP_AT_CLOSE: return lk__http_take(h, in, body, false);
        case LK__HTTP_AT_DATA:
            if (h->left) return lk__http_take(h, in, body, true);
            h->state = LK__HTTP_AT_DATA_CR;
            break;
        case LK__HTTP_AT_ERROR: return LK__HTTP_ERROR;
        default:
            if (in->len == 0) return LK__HTTP_MORE;
            if (!lk__http_framing_byte(h, in->ptr[0])) return LK__HTTP_ERROR;
            *in = lk__str_from(*in, 1);
        }
    }
}

LK__PRIV lk__http_event lk__http_eof(lk__http *h) {
    switch (h->state) {
    case LK__HTTP_AT_HEAD:
        if (h->partial.len == 0 && h->interim == 0) return LK__HTTP_MORE;
        return lk__http_fail(h, LLMKIT_E_TRUNCATED, "the connection closed inside a head");
    case LK__HTTP_AT_CLOSE: return lk__http_finish(h);
    case LK__HTTP_AT_ERROR: return LK__HTTP_ERROR;
    default:
        if (h->state == LK__HTTP_AT_LENGTH && h->left == 0) return lk__http_finish(h);
        return lk__http_fail(h, LLMKIT_E_TRUNCATED, "the connection closed inside a body");
    }
}

/* ---- Writing --------------------------------------------------------------------------------- */

LK__PRIV void lk__http_request_line(lk__buf *out, llmkit_str method, llmkit_str target) {
    if (method.len == 0 || lk__http_token_len(method) != method.len ||
        !lk__http_is_target(target)) {
        out->failed = LLMKIT_E_ARG;
        return;
    }
    lk__buf_str(out, method);
    lk__buf_ch(out, ' ');
    lk__buf_str(out, target);
    lk__buf_str(out, LK__STR(" HTTP/1.1\r\n"));
}

/* RFC 9110 15, and 429 and 431 of RFC 6585.  Nobody reads it but people. */
LK__PRIV const char *lk__http_reason(int status) {
    static const struct {
        int status;
        const char *reason;
    } table[] = {
        { 100, "Continue" },
        { 200, "OK" },
        { 201, "Created" },
        { 202, "Accepted" },
        { 204, "No Content" },
        { 301, "Moved Permanently" },
        { 302, "Found" },
        { 303, "See Other" },
        { 304, "Not Modified" },
        { 307, "Temporary Redirect" },
        { 308, "Permanent Redirect" },
        { 400, "Bad Request" },
        { 401, "Unauthorized" },
        { 402, "Payment Required" },
        { 403, "Forbidden" },
        { 404, "Not Found" },
        { 405, "Method Not Allowed" },
        { 406, "Not Acceptable" },
        { 408, "Request Timeout" },
        { 409, "Conflict" },
        { 411, "Length Required" },
        { 413, "Content Too Large" },
        { 415, "Unsupported Media Type" },
        { 417, "Expectation Failed" },
        { 422, "Unprocessable Content" },
        { 429, "Too Many Requests" },
        { 431, "Request Header Fields Too Large" },
        { 500, "Internal Server Error" },
        { 501, "Not Implemented" },
        { 502, "Bad Gateway" },
        { 503, "Service Unavailable" },
        { 504, "Gateway Timeout" },
        { 505, "HTTP Version Not Supported" },
    };
    for (size_t i = 0; i < LK__COUNT(table); i++) {
        if (table[i].status == status) return table[i].reason;
    }
    return "";
}

LK__PRIV void lk__http_status_line(lk__buf *out, int status) {
    if (status < 100 || status > 599) {
        out->failed = LLMKIT_E_ARG;
        return;
    }
    lk__buf_str(out, LK__STR("HTTP/1.1 "));
    lk__buf_u64(out, (uint64_t)status);
    lk__buf_ch(out, ' '); /* stays where there is no reason (4) */
    lk__buf_z(out, lk__http_reason(status));
    lk__buf_str(out, LK__STR("\r\n"));
}

LK__PRIV llmkit_err lk__http_field(lk__buf *out, llmkit_str name, llmkit_str value) {
    if (name.len == 0 || lk__http_token_len(name) != name.len || lk__http_has_control(value))
        return LLMKIT_E_ARG;
    lk__buf_str(out, name);
    lk__buf_str(out, LK__STR(": "));
    lk__buf_str(out, value);
    lk__buf_str(out, LK__STR("\r\n"));
    return out->failed;
}

LK__PRIV void lk__http_field_u64(lk__buf *out, llmkit_str name, uint64_t value) {
    lk__buf_str(out, name);
    lk__buf_str(out, LK__STR(": "));
    lk__buf_u64(out, value);
    lk__buf_str(out, LK__STR("\r\n"));
}

LK__PRIV void lk__http_chunk(lk__buf *out, llmkit_str piece) {
    char size[18];
    size_t at = sizeof(size);
    size[--at] = '\n';
    size[--at] = '\r';
    for (uint64_t n = piece.len; n != 0; n >>= 4) size[--at] = "0123456789abcdef"[n & 15];
    if (piece.len == 0) return; /* an empty chunk would end the body */
    lk__buf_add(out, size + at, sizeof(size) - at);
    lk__buf_str(out, piece);
    lk__buf_str(out, LK__STR("\r\n"));
}

LK__PRIV void lk__http_last_chunk(lk__buf *out) {
    lk__buf_str(out, LK__STR("0\r\n\r\n"));
}

/* ==== >>net/sse.h ============================================================================= */
/* net/sse.h -- event streams, both directions (WHATWG HTML 9.2) */

/* Views valid until the next lk__sse_feed: into the input where an event lies whole and on one data
 * line in it, else into the decoder. */
typedef struct lk__sse_event {
    llmkit_str name; /* "" is the default, "message" */
    llmkit_str data;
} lk__sse_event;

typedef struct lk__sse {
    lk__buf  line;       /* a line that has arrived in part */
    lk__buf  data, name; /* of the event being assembled */
    bool     has_data;   /* a data line was seen, even an empty one */
    bool     handed;     /* the buffers hold the event that was handed out last */
    bool     skip_lf;    /* the last byte was the CR of a possible CRLF */
    bool     bare_cr;    /* CR alone has ended a line: memchr for LF might look far in vain */
    bool     started;    /* past a byte order mark, or known to have none */
    uint8_t  bom;        /* bytes of it seen so far */
    int64_t  retry_ms;   /* the last retry field, -1 if there was none */
    llmkit_err error;    /* E_TOO_BIG or E_NOMEM; sticks */
} lk__sse;

/* max_event_bytes bounds each line and the joined data of an event; 0: LLMKIT_MAX_EVENT_BYTES. */
LK__PRIV void lk__sse_init(lk__sse *d, const llmkit_env *env, size_t max_event_bytes);
LK__PRIV void lk__sse_free(lk__sse *d);
LK__PRIV void lk__sse_reset(lk__sse *d); /* a new stream; keeps the memory */
/* Consumes from the front of *in up to the next event.  false: all is consumed, or d->error. */
LK__PRIV bool lk__sse_feed(lk__sse *d, llmkit_str *in, lk__sse_event *event);

/* name "" for the default; one that holds CR or LF adds nothing and makes out->failed E_ARG.  data
 * may hold line ends, and arrives with LF for each of them. */
LK__PRIV void lk__sse_write(lk__buf *out, llmkit_str name, llmkit_str data);

/* ==== >>net/sse.c ============================================================================= */
/* net/sse.c -- event streams: lines into events, events into lines */

/* Sections are those of WHATWG HTML.  We do not reconnect, so the id field is of no use to us: it
 * is dropped like any unknown one.  Text is handed on as it came; who reads it checks the UTF-8. */

static const char lk__sse_bom[3] = { '\xef', '\xbb', '\xbf' };

LK__PRIV void lk__sse_init(lk__sse *d, const llmkit_env *env, size_t max_event_bytes) {
    size_t max = max_event_bytes ? max_event_bytes : LLMKIT_MAX_EVENT_BYTES;
    *d = (lk__sse){ .retry_ms = -1 };
    lk__buf_init(&d->line, env, max);
    lk__buf_init(&d->data, env, max);
    lk__buf_init(&d->name, env, max);
}

LK__PRIV void lk__sse_free(lk__sse *d) {
    lk__buf_free(&d->line);
    lk__buf_free(&d->data);
    lk__buf_free(&d->name);
}

LK__PRIV void lk__sse_forget(lk__sse *d) {
    lk__buf_clear(&d->data);
    lk__buf_clear(&d->name);
    d->has_data = d->handed = false;
}

LK__PRIV void lk__sse_reset(lk__sse *d) {
    lk__sse_forget(d);
    lk__buf_clear(&d->line);
    d->skip_lf = d->bare_cr = d->started = false;
    d->bom = 0;
    d->retry_ms = -1;
    d->error = LLMKIT_OK;
}

/* ---- The general way: any line ends, cut anywhere -------------------------------------------- */

/* Drops a byte order mark at the start (9.2.5).  true: past it.  Bytes that only begin like one
 * belong to the first line. */
LK__PRIV bool lk__sse_start(lk__sse *d, llmkit_str *in) {
    while (in->len > 0 && d->bom < sizeof(lk__sse_bom) && in->ptr[0] == lk__sse_bom[d->bom]) {
        *in = lk__str_from(*in, 1);
        d->bom++;
    }
    if (in->len == 0 && d->bom < sizeof(lk__sse_bom)) return false;
    if (d->bom > 0 && d->bom < sizeof(lk__sse_bom)) {
        lk__buf_add(&d->line, lk__sse_bom, d->bom);
        d->error = d->line.failed;
    }
    return d->started = true;
}

/* The first CR or LF of s, or s.len.  Eight bytes at a time: a byte that is equal becomes zero, and
 * only from a zero does subtracting 1 reach the top bit of a byte that did not have it. */
LK__PRIV size_t lk__sse_line_len(llmkit_str s) {
    const uint64_t ones = UINT64_MAX / 255;
    size_t i = 0;
    for (; s.len - i >= 8; i += 8) {
        uint64_t w;
        memcpy(&w, s.ptr + i, 8);
        uint64_t lf = w ^ ones * '\n', cr = w ^ ones * '\r';
        if ((((lf - ones) & ~lf) | ((cr - ones) & ~cr)) & ones * 0x80) break;
    }
    while (i < s.len && s.ptr[i] != '\n' && s.ptr[i] != '\r') i++;
    return i;
}

LK__PRIV void lk__sse_retry(lk__sse *d, llmkit_str digits) {
    uint64_t ms;
    if (lk__parse_u64(digits, &ms) && ms <= INT64_MAX) d->retry_ms = (int64_t)ms;
}

/* A field, or a comment, whose line begins with the colon (9.2.6). */
LK__PRIV void lk__sse_field(lk__sse *d, llmkit_str line) {
    size_t colon = lk__str_find(line, ':');
    llmkit_str name = lk__str(line.ptr, colon);
    llmkit_str value = lk__str_from(line, colon < line.len ? colon + 1 : colon);
    if (value.len > 0 && value.ptr[0] == ' ') value = lk__str_from(value, 1);
    if (lk__str_eq(name, LK__STR("data"))) {
        if (d->has_data) lk__buf_ch(&d->data, '\n');
        lk__buf_str(&d->data, value);
        d->has_data = true;
    } else if (lk__str_eq(name, LK__STR("event"))) {
        lk__buf_clear(&d->name);
        lk__buf_str(&d->name, value);
    } else if (lk__str_eq(name, LK__STR("retry"))) {
        lk__sse_retry(d, value);
    }
    d->error = d->data.failed ? d->data.failed : d->name.failed;
}

/* A whole line.  true: it was the empty one that ends an event with data. */
LK__PRIV bool lk__sse_line(lk__sse *d, llmkit_str line, lk__sse_event *event) {
    if (line.len > d->line.max) {
        d->error = LLMKIT_E_TOO_BIG;
    } else if (line.len > 0) {
        lk__sse_field(d, line);
    } else if (d->has_data) {
        *event = (lk__sse_event){ .name = lk__buf_view(&d->name), .data = lk__buf_view(&d->data) };
        return d->handed = true;
    } else {
        lk__buf_clear(&d->name);
    }
    return false;
}

/* At the byte after a CR. */
LK__PRIV void lk__sse_skip_lf(lk__sse *d, llmkit_str *in) {
    d->skip_lf = false;
    if (in->ptr[0] == '\n')
        *in = lk__str_from(*in, 1);
    else
        d->bare_cr = true;
}

/* Takes one line, or what there is of it.  A CR ends a line at once, so that an event is not held
 * back until the LF that may follow. */
LK__PRIV bool lk__sse_step(lk__sse *d, llmkit_str *in, lk__sse_event *event) {
    size_t n = lk__sse_line_len(*in);
    bool whole = n < in->len;
    llmkit_str line = lk__str(in->ptr, n);
    if (d->line.len > 0 || !whole) {
        lk__buf_str(&d->line, line);
        d->error = d->line.failed;
        line = lk__buf_view(&d->line);
    }
    if (whole) d->skip_lf = in->ptr[n] == '\r';
    *in = lk__str_from(*in, whole ? n + 1 : n);
    if (!whole || d->error) return false;
    bool ended = lk__sse_line(d, line, event);
    lk__buf_clear(&d->line);
    return ended;
}

/* ---- The fast way: an event that lies whole in the input ------------------------------------- */

/* Takes a line that begins with prefix and ends in LF or CRLF; *value is what stands between, less
 * one leading blank. */
LK__PRIV bool lk__sse_plain_line(llmkit_str *in, const char *prefix, size_t prefix_len,
                                 llmkit_str *value) {
    if (in->len <= prefix_len || memcmp(in->ptr, prefix, prefix_len) != 0) return false;
    const char *p = in->ptr + prefix_len;
    const char *end = in->ptr + in->len;
    const char *lf = memchr(p, '\n', (size_t)(end - p));
    if (!lf) return false;
    const char *cr = memchr(p, '\r', (size_t)(lf - p));
    if (cr && cr + 1 != lf) return false;
    p += *p == ' ';
    *value = lk__str(p, (size_t)((cr ? cr : lf) - p));
    *in = lk__str(lf + 1, (size_t)(end - lf - 1));
    return true;
}

/* "data: ...", with or without an "event: ..." before it, and an empty line: what model servers
 * send.  false: nothing was taken. */
LK__PRIV bool lk__sse_whole(const lk__sse *d, llmkit_str *in, lk__sse_event *event) {
    llmkit_str rest = *in, name = LK__STR(""), data;
    if (rest.ptr[0] == 'e' && !lk__sse_plain_line(&rest, "event:", 6, &name)) return false;
    if (!lk__sse_plain_line(&rest, "data:", 5, &data)) return false;
    if ((size_t)(rest.ptr - in->ptr) > d->data.max) return false; /* the other way measures it */
    if (rest.len > 0 && rest.ptr[0] == '\n')
        *in = lk__str_from(rest, 1);
    else if (rest.len > 1 && rest.ptr[0] == '\r' && rest.ptr[1] == '\n')
        *in = lk__str_from(rest, 2);
    else
        return false;
    *event = (lk__sse_event){ .name = name, .data = data };
    return true;
}

LK__PRIV bool lk__sse_feed(lk__sse *d, llmkit_str *in, lk__sse_event *event) {
    if (d->error) return false;
    if (d->handed) lk__sse_forget(d);
    if (!d->started && !lk__sse_start(d, in)) return false;
    while (in->len > 0 && !d->error) {
        if (d->skip_lf) {
            lk__sse_skip_lf(d, in);
            continue;
        }
        bool between = !d->has_data && d->name.len == 0 && d->line.len == 0;
        if (between && !d->bare_cr && lk__sse_whole(d, in, event)) return true;
        if (lk__sse_step(d, in, event)) return true;
    }
    return false;
}

LK__PRIV void lk__sse_write(lk__buf *out, llmkit_str name, llmkit_str data) {
    if (lk__sse_line_len(name) < name.len) {
        out->failed = LLMKIT_E_ARG;
        return;
    }
    if (name.len > 0) {
        lk__buf_str(out, LK__STR("event: "));
        lk__buf_str(out, name);
        lk__buf_ch(out, '\n');
    }
    for (;;) {
        size_t n = lk__sse_line_len(data);
        lk__buf_str(out, LK__STR("data: "));
        lk__buf_add(out, data.ptr, n);
        lk__buf_ch(out, '\n');
        if (n == data.len) break;
        bool crlf = data.len - n > 1 && data.ptr[n] == '\r' && data.ptr[n + 1] == '\n';
        data = lk__str_from(data, n + (crlf ? 2 : 1));
    }
    lk__buf_ch(out, '\n');
}

/* ==== >>net/loop.h ============================================================================ */
/* net/loop.h -- readiness, timers and deferred work, for the pieces above */

/* The system calls that the network pieces make, so that a test can fail each of them. */
typedef struct lk__sys {
    int (*socket)(int domain, int type, int protocol);
    int (*connect)(int fd, const struct sockaddr *addr, socklen_t len);
    int (*accept)(int fd); /* non-blocking, close-on-exec */
    ssize_t (*recv)(int fd, void *buf, size_t len);
    ssize_t (*send)(int fd, const struct iovec *iov, int count); /* never raises SIGPIPE */
    int (*close)(int fd);
    int (*getaddrinfo)(const char *node, const char *service, const struct addrinfo *hints,
                       struct addrinfo **list);
    void (*freeaddrinfo)(struct addrinfo *list);
    int (*thread)(void *(*fn)(void *arg), void *arg); /* detached, signals blocked; 0 or errno */
} lk__sys;

LK__PRIV const lk__sys *lk__sys_default(void);
/* A stream, non-blocking, close-on-exec; -1 and errno. */
LK__PRIV int lk__socket_open(llmkit_loop *loop, int family);

/* Work for later in this turn or the next, never inside lk__defer.  Adding one that is already
 * waiting does nothing.  FIFO. */
typedef struct lk__task {
    struct lk__task *next, **prev; /* prev NULL: not waiting */
    void (*fn)(struct lk__task *task);
} lk__task;

LK__PRIV void lk__defer(llmkit_loop *loop, lk__task *task);
LK__PRIV void lk__undefer(llmkit_loop *loop, lk__task *task);
/* For the last thing in this turn, even where a task calls it: the loop may end with the turn. */
LK__PRIV void lk__defer_last(llmkit_loop *loop, lk__task *task);

/* A descriptor that is watched.  Level-triggered: fn is called again while it stays ready, and at
 * times without need, so that a read may find nothing (EAGAIN).  Errors and hang-ups are reported
 * as whatever is asked for.  fn may stop and free any lk__io, its own too; a stopped one is not
 * called, even if its readiness is already known.  The descriptor is closed after lk__io_stop, by
 * its owner.  Zero is a stopped one. */
typedef struct lk__io {
    int      fd; /* -1 once it is stopped */
    unsigned events;
    unsigned ready; /* known, and still to be told */
    uint32_t index; /* of the poll backend */
    lk__task told;  /* waits in the loop while ready is not 0 */
    void   (*fn)(struct lk__io *io, unsigned ready); /* NULL: stopped */
} lk__io;

LK__PRIV llmkit_err lk__io_start(llmkit_loop *loop, lk__io *io, int fd, unsigned events,
                                 void (*fn)(lk__io *io, unsigned ready));
/* events 0: none for now. */
LK__PRIV llmkit_err lk__io_set(llmkit_loop *loop, lk__io *io, unsigned events);
LK__PRIV void lk__io_stop(llmkit_loop *loop, lk__io *io);

/* A timer.  Zero is a stopped one.  Moving a set timer to a later time is cheap (no heap work until
 * it would have fired).  fn may set, stop and free any timer; one that it sets to now or to the
 * past fires in the next turn. */
typedef struct lk__timer {
    int64_t  due_ns;  /* when it is to fire */
    int64_t  key_ns;  /* its place in the heap, at or before due_ns */
    uint32_t place;   /* 1-based; 0: not set */
    void   (*fn)(struct lk__timer *timer);
} lk__timer;

/* E_NOMEM is possible only where more timers are set at once than ever before, so never for one
 * that is set already, nor for one that its own fn sets again first of all. */
LK__PRIV llmkit_err lk__timer_set(llmkit_loop *loop, lk__timer *timer, int64_t due_ns);
LK__PRIV void lk__timer_stop(llmkit_loop *loop, lk__timer *timer);

/* A message in its owner's memory, from any thread: fn is called on the loop's thread, in the order
 * of sending.  The memory must stay until then, or until the loop is destroyed. */
typedef struct lk__post {
    struct lk__post *next;
    void (*fn)(struct lk__post *post);
} lk__post;

LK__PRIV void lk__post_send(llmkit_loop *loop, lk__post *post);
/* On the loop's thread, and while no other sends it: fn will not be called.  For endings, since it
 * looks through all that waits. */
LK__PRIV void lk__post_cancel(llmkit_loop *loop, lk__post *post);

/* llmkit_loop_run goes on while anything that holds the loop is alive.  Timers, ios and idle
 * connections by themselves do not hold it; posts and deferred tasks do. */
LK__PRIV void lk__loop_hold(llmkit_loop *loop);
LK__PRIV void lk__loop_unhold(llmkit_loop *loop);

/* The time of this turn, read once when its waiting ended; outside callbacks read afresh. */
LK__PRIV int64_t lk__loop_now(const llmkit_loop *loop);
LK__PRIV bool lk__loop_inside(const llmkit_loop *loop); /* a callback of it is running */
LK__PRIV bool lk__loop_can_wait(const llmkit_loop *loop); /* false: only its host can */
LK__PRIV const llmkit_env *lk__loop_env(const llmkit_loop *loop);
LK__PRIV const lk__sys *lk__loop_sys(const llmkit_loop *loop);
LK__PRIV void lk__loop_set_sys(llmkit_loop *loop, const lk__sys *sys); /* for tests */
LK__PRIV lk__rand *lk__loop_rand(llmkit_loop *loop);
/* LLMKIT_READ_BYTES for the callback that is running, and behind them LK__RECORD_BYTES for what it
 * decrypts.  Loops do not nest, so nobody else writes there until it returns. */
enum { LK__RECORD_BYTES = 16384 }; /* of plain text in one TLS record (RFC 5246 6.2.1) */
LK__PRIV uint8_t *lk__loop_scratch(llmkit_loop *loop);
/* What the resolver keeps with the loop: a slot, NULL at first; llmkit_loop_destroy calls close. */
typedef struct lk__annex {
    void (*close)(struct lk__annex *annex);
} lk__annex;
LK__PRIV lk__annex **lk__loop_annex(llmkit_loop *loop);

/* ==== >>net/loop_parts.h ====================================================================== */
/* net/loop_parts.h -- what the loop is put together from: queues, pollers, the timer heap */

/* Tasks in the order in which they came. */
typedef struct lk__queue {
    lk__task *first, **tail;
    lk__task *batch; /* taken out by lk__queue_run, and still to be called */
} lk__queue;

LK__PRIV void lk__queue_init(lk__queue *q);
LK__PRIV void lk__queue_add(lk__queue *q, lk__task *task); /* does nothing where it waits already */
LK__PRIV void lk__queue_remove(lk__queue *q, lk__task *task); /* from the batch, too */
/* Calls each task that waits now; those that come meanwhile are left for the next run.  The number
 * of calls. */
LK__PRIV int lk__queue_run(lk__queue *q);

/* Where readiness comes from.  Each backend is a whole file that defines these four calls over this
 * struct; one of them is compiled.  An io that asks for nothing is unknown to the poller, since
 * epoll and poll would go on reporting a hang-up to it. */
typedef struct lk__poller {
    const llmkit_env *env;
    lk__queue        *ready; /* where ready ios go */
    int               fd;    /* epoll, kqueue */
    struct pollfd    *polls; /* poll: polls[i] belongs to ios[i] */
    lk__io          **ios;   /* a guest: ios[fd] */
    uint32_t          num, cap;
} lk__poller;

LK__PRIV llmkit_err lk__poller_open(lk__poller *p, llmkit_error *error);
LK__PRIV void lk__poller_close(lk__poller *p);
/* From io->events to events.  Dropping all interest never fails. */
LK__PRIV llmkit_err lk__poller_set(lk__poller *p, lk__io *io, unsigned events);
/* Waits at most wait_ns (-1: for ever), rounded up to what the system can count, and notes what is
 * ready.  A signal ends it early. */
LK__PRIV llmkit_err lk__poller_wait(lk__poller *p, int64_t wait_ns);
/* wait_ns as epoll and poll want it. */
LK__PRIV int lk__poller_ms(int64_t wait_ns);
/* Notes that io is ready, unless it does not ask for any of these events. */
LK__PRIV void lk__poller_note(lk__poller *p, lk__io *io, unsigned events);

/* A guest's poller: its host waits. */
LK__PRIV llmkit_err lk__guest_add(lk__poller *p, lk__io *io);
LK__PRIV void lk__guest_remove(lk__poller *p, const lk__io *io);
LK__PRIV void lk__guest_note(lk__poller *p, int fd, unsigned events);
LK__PRIV void lk__guest_close(lk__poller *p);

/* Makes a new descriptor non-blocking and close-on-exec, and returns it; closes it on failure. */
LK__PRIV int lk__sys_prepare(int fd);

/* The timers that are set, in a 4-ary heap: half as deep as a binary one, and the four children of
 * a node are neighbours in memory.  The keys stand beside the pointers, so that sifting does not
 * touch the timers that it compares. */
typedef struct lk__timer_slot {
    int64_t    key_ns; /* timer->key_ns */
    lk__timer *timer;
} lk__timer_slot;

typedef struct lk__timers {
    const llmkit_env *env;
    lk__timer_slot   *slots;
    uint32_t          num, cap;
} lk__timers;

LK__PRIV llmkit_err lk__timers_set(lk__timers *h, lk__timer *timer, int64_t due_ns);
LK__PRIV void lk__timers_remove(lk__timers *h, lk__timer *timer);
LK__PRIV lk__timer *lk__timers_first(lk__timers *h); /* the one that is due first, or NULL */
LK__PRIV void lk__timers_free(lk__timers *h);

/* ==== >>net/loop_epoll.c ====================================================================== */
/* net/loop_epoll.c -- readiness on Linux */

#if LLMKIT_LOOP == LLMKIT_LOOP_EPOLL

enum { LK__EPOLL_BATCH = 256 }; /* 3 KB of stack; what does not fit is reported next time */

LK__PRIV llmkit_err lk__poller_open(lk__poller *p, llmkit_error *error) {
    p->fd = epoll_create1(EPOLL_CLOEXEC);
    if (p->fd >= 0) return LLMKIT_OK;
    return lk__fail_os(error, LLMKIT_E_IO, errno, "cannot open an epoll descriptor");
}

LK__PRIV void lk__poller_close(lk__poller *p) {
    close(p->fd);
}

LK__PRIV llmkit_err lk__poller_set(lk__poller *p, lk__io *io, unsigned events) {
    struct epoll_event e = { .data = { .ptr = io } };
    if (events & LLMKIT_READ) e.events |= EPOLLIN;
    if (events & LLMKIT_WRITE) e.events |= EPOLLOUT;
    int op = EPOLL_CTL_MOD;
    if (io->events == 0) op = EPOLL_CTL_ADD;
    if (events == 0) op = EPOLL_CTL_DEL;
    if (epoll_ctl(p->fd, op, io->fd, &e) == 0 || events == 0) return LLMKIT_OK;
    return errno == ENOMEM ? LLMKIT_E_NOMEM : LLMKIT_E_IO;
}

LK__PRIV llmkit_err lk__poller_wait(lk__poller *p, int64_t wait_ns) {
    struct epoll_event e[LK__EPOLL_BATCH];
    int n = epoll_wait(p->fd, e, LK__EPOLL_BATCH, lk__poller_ms(wait_ns));
    if (n < 0) return errno == EINTR ? LLMKIT_OK : LLMKIT_E_IO;
    for (int i = 0; i < n; i++) {
        unsigned events = 0;
        if (e[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) events |= LLMKIT_READ;
        if (e[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) events |= LLMKIT_WRITE;
        lk__poller_note(p, e[i].data.ptr, events);
    }
    return LLMKIT_OK;
}

#endif

/* ==== >>net/loop_kqueue.c ===================================================================== */
/* net/loop_kqueue.c -- readiness on the BSDs and macOS */

#if LLMKIT_LOOP == LLMKIT_LOOP_KQUEUE

enum { LK__KQUEUE_BATCH = 256 }; /* 8 KB of stack; what does not fit is reported next time */

LK__PRIV llmkit_err lk__poller_open(lk__poller *p, llmkit_error *error) {
    p->fd = kqueue();
    if (p->fd >= 0 && fcntl(p->fd, F_SETFD, FD_CLOEXEC) == 0) return LLMKIT_OK;
    llmkit_err err = lk__fail_os(error, LLMKIT_E_IO, errno, "cannot open a kqueue descriptor");
    if (p->fd >= 0) close(p->fd);
    return err;
}

LK__PRIV void lk__poller_close(lk__poller *p) {
    close(p->fd);
}

/* Reading and writing are two filters here. */
LK__PRIV int lk__kqueue_filter(lk__poller *p, lk__io *io, short filter, bool on) {
    struct kevent change;
    EV_SET(&change, (uintptr_t)io->fd, filter, on ? EV_ADD : EV_DELETE, 0, 0, (void *)io);
    return kevent(p->fd, &change, 1, NULL, 0, NULL);
}

LK__PRIV llmkit_err lk__poller_set(lk__poller *p, lk__io *io, unsigned events) {
    static const struct {
        unsigned event;
        short filter;
    } filters[] = {
        { LLMKIT_READ, EVFILT_READ },
        { LLMKIT_WRITE, EVFILT_WRITE },
    };
    for (size_t i = 0; i < LK__COUNT(filters); i++) {
        bool was = (io->events & filters[i].event) != 0, on = (events & filters[i].event) != 0;
        if (was == on || lk__kqueue_filter(p, io, filters[i].filter, on) == 0 || !on) continue;
        int os_errno = errno;
        /* What was added before this failed must not stay behind. */
        if (i > 0 && !(io->events & LLMKIT_READ)) lk__kqueue_filter(p, io, EVFILT_READ, false);
        return os_errno == ENOMEM ? LLMKIT_E_NOMEM : LLMKIT_E_IO;
    }
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__poller_wait(lk__poller *p, int64_t wait_ns) {
    struct kevent e[LK__KQUEUE_BATCH];
    struct timespec wait = { 0 };
    if (wait_ns > 0) {
        wait.tv_sec = (time_t)(wait_ns / LK__NS_PER_S);
        wait.tv_nsec = (long)(wait_ns % LK__NS_PER_S);
    }
    int n = kevent(p->fd, NULL, 0, e, LK__KQUEUE_BATCH, wait_ns < 0 ? NULL : &wait);
    if (n < 0) return errno == EINTR ? LLMKIT_OK : LLMKIT_E_IO;
    for (int i = 0; i < n; i++) {
        /* An error or a hang-up comes as EV_EOF on each filter that is there. */
        unsigned event = e[i].filter == EVFILT_WRITE ? LLMKIT_WRITE : LLMKIT_READ;
        lk__poller_note(p, (lk__io *)e[i].udata, event);
    }
    return LLMKIT_OK;
}

#endif

/* ==== >>net/loop_poll.c ======================================================================= */
/* net/loop_poll.c -- readiness on any POSIX system */

#if LLMKIT_LOOP == LLMKIT_LOOP_POLL

LK__PRIV llmkit_err lk__poller_open(lk__poller *p, llmkit_error *error) {
    (void)error;
    p->fd = -1;
    return LLMKIT_OK;
}

LK__PRIV void lk__poller_close(lk__poller *p) {
    lk__free(p->env, p->polls, p->cap * sizeof(*p->polls));
    lk__free(p->env, p->ios, p->cap * sizeof(*p->ios));
}

/* Both arrays are made anew, so that nothing has changed where there is memory for one of them. */
LK__PRIV bool lk__poller_grow(lk__poller *p) {
    uint32_t cap = p->cap ? 2 * p->cap : 64;
    struct pollfd *polls = lk__alloc(p->env, lk__mul(cap, sizeof(*polls)));
    lk__io **ios = lk__alloc(p->env, lk__mul(cap, sizeof(*ios)));
    if (cap < p->cap || !polls || !ios) {
        lk__free(p->env, polls, lk__mul(cap, sizeof(*polls)));
        lk__free(p->env, ios, lk__mul(cap, sizeof(*ios)));
        return false;
    }
    if (p->num) memcpy(polls, p->polls, p->num * sizeof(*polls));
    if (p->num) memcpy(ios, p->ios, p->num * sizeof(lk__io *));
    lk__poller_close(p);
    p->polls = polls;
    p->ios = ios;
    p->cap = cap;
    return true;
}

LK__PRIV void lk__poller_drop(lk__poller *p, uint32_t i) {
    p->num--;
    p->polls[i] = p->polls[p->num];
    p->ios[i] = p->ios[p->num];
    p->ios[i]->index = i;
}

LK__PRIV llmkit_err lk__poller_set(lk__poller *p, lk__io *io, unsigned events) {
    if (events == 0) {
        lk__poller_drop(p, io->index);
        return LLMKIT_OK;
    }
    if (io->events == 0) {
        if (p->num == p->cap && !lk__poller_grow(p)) return LLMKIT_E_NOMEM;
        io->index = p->num++;
        p->ios[io->index] = io;
    }
    struct pollfd *poll = &p->polls[io->index];
    *poll = (struct pollfd){ .fd = io->fd };
    if (events & LLMKIT_READ) poll->events |= POLLIN;
    if (events & LLMKIT_WRITE) poll->events |= POLLOUT;
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__poller_wait(lk__poller *p, int64_t wait_ns) {
    const int failed = POLLHUP | POLLERR | POLLNVAL;
    int left = poll(p->polls, (nfds_t)p->num, lk__poller_ms(wait_ns));
    if (left < 0) return errno == EINTR ? LLMKIT_OK : LLMKIT_E_IO;
    for (uint32_t i = 0; i < p->num && left > 0; i++) {
        int revents = p->polls[i].revents;
        if (revents == 0) continue;
        left--;
        unsigned events = 0;
        if (revents & (POLLIN | failed)) events |= LLMKIT_READ;
        if (revents & (POLLOUT | failed)) events |= LLMKIT_WRITE;
        lk__poller_note(p, p->ios[i], events);
    }
    return LLMKIT_OK;
}

#endif

/* ==== >>net/loop_guest.c ====================================================================== */
/* net/loop_guest.c -- readiness that another event loop reports */

/* The host knows descriptors; this finds their ios.  The kernel hands out the lowest free number,
 * so a table is as small as anything cleverer. */
LK__PRIV bool lk__guest_grow(lk__poller *p, uint32_t fd) {
    if (fd < p->cap) return true;
    uint32_t cap = p->cap ? p->cap : 64;
    while (cap <= fd) cap *= 2; /* fd is at most INT_MAX */
    size_t size = sizeof(*p->ios);
    void *ios = lk__resize(p->env, p->ios, p->cap * size, lk__mul(cap, size));
    if (!ios) return false;
    p->ios = ios;
    for (uint32_t i = p->cap; i < cap; i++) p->ios[i] = NULL;
    p->cap = cap;
    return true;
}

LK__PRIV llmkit_err lk__guest_add(lk__poller *p, lk__io *io) {
    if (!lk__guest_grow(p, (uint32_t)io->fd)) return LLMKIT_E_NOMEM;
    p->ios[io->fd] = io;
    return LLMKIT_OK;
}

LK__PRIV void lk__guest_remove(lk__poller *p, const lk__io *io) {
    p->ios[io->fd] = NULL;
}

LK__PRIV void lk__guest_note(lk__poller *p, int fd, unsigned events) {
    if (fd < 0 || (uint32_t)fd >= p->cap || !p->ios[fd]) return;
    lk__poller_note(p, p->ios[fd], events);
}

LK__PRIV void lk__guest_close(lk__poller *p) {
    lk__free(p->env, p->ios, p->cap * sizeof(*p->ios));
}

/* ==== >>net/loop_timer.c ====================================================================== */
/* net/loop_timer.c -- the heap of timers */

LK__PRIV void lk__timers_put(lk__timers *h, uint32_t i, lk__timer_slot slot) {
    h->slots[i] = slot;
    slot.timer->place = i + 1;
}

LK__PRIV void lk__timers_up(lk__timers *h, uint32_t i, lk__timer_slot slot) {
    while (i > 0) {
        uint32_t parent = (i - 1) / 4;
        if (h->slots[parent].key_ns <= slot.key_ns) break;
        lk__timers_put(h, i, h->slots[parent]);
        i = parent;
    }
    lk__timers_put(h, i, slot);
}

LK__PRIV void lk__timers_down(lk__timers *h, uint32_t i, lk__timer_slot slot) {
    for (;;) {
        uint32_t child = 4 * i + 1, end = child + 4 < h->num ? child + 4 : h->num;
        if (child >= end) break;
        uint32_t least = child;
        while (++child < end)
            if (h->slots[child].key_ns < h->slots[least].key_ns) least = child;
        if (slot.key_ns <= h->slots[least].key_ns) break;
        lk__timers_put(h, i, h->slots[least]);
        i = least;
    }
    lk__timers_put(h, i, slot);
}

LK__PRIV bool lk__timers_grow(lk__timers *h) {
    if (h->num < h->cap) return true;
    if (h->cap > UINT32_MAX / 8) return false; /* so that 4 * i + 5 is in range */
    uint32_t cap = h->cap ? 2 * h->cap : 64;
    size_t size = sizeof(*h->slots);
    void *slots = lk__resize(h->env, h->slots, h->cap * size, lk__mul(cap, size));
    if (!slots) return false;
    h->slots = slots;
    h->cap = cap;
    return true;
}

/* A timer that moves to a later time stays where it is in the heap; lk__timers_first puts it right
 * when it comes to the top.  Idle deadlines move with each byte that arrives, and seldom fire. */
LK__PRIV llmkit_err lk__timers_set(lk__timers *h, lk__timer *timer, int64_t due_ns) {
    if (timer->place == 0 && !lk__timers_grow(h)) return LLMKIT_E_NOMEM;
    timer->due_ns = due_ns;
    if (timer->place != 0 && due_ns >= timer->key_ns) return LLMKIT_OK;
    uint32_t i = timer->place != 0 ? timer->place - 1 : h->num++;
    timer->key_ns = due_ns;
    lk__timers_up(h, i, (lk__timer_slot){ due_ns, timer });
    return LLMKIT_OK;
}

LK__PRIV void lk__timers_remove(lk__timers *h, lk__timer *timer) {
    if (timer->place == 0) return;
    uint32_t i = timer->place - 1;
    timer->place = 0;
    if (i == --h->num) return;
    lk__timer_slot last = h->slots[h->num];
    if (last.key_ns < timer->key_ns)
        lk__timers_up(h, i, last);
    else
        lk__timers_down(h, i, last);
}

LK__PRIV lk__timer *lk__timers_first(lk__timers *h) {
    while (h->num > 0) {
        lk__timer *timer = h->slots[0].timer;
        if (timer->key_ns == timer->due_ns) return timer;
        timer->key_ns = timer->due_ns;
        lk__timers_down(h, 0, (lk__timer_slot){ timer->key_ns, timer });
    }
    return NULL;
}

LK__PRIV void lk__timers_free(lk__timers *h) {
    lk__free(h->env, h->slots, h->cap * sizeof(*h->slots));
}

/* ==== >>net/loop_sys.c ======================================================================== */
/* net/loop_sys.c -- the socket calls, with the differences between systems evened out */

#ifdef MSG_NOSIGNAL
#define LK__SEND_FLAGS MSG_NOSIGNAL
#else
#define LK__SEND_FLAGS 0
#endif

/* For getaddrinfo: glibc takes 64 KB of stack and more, and musl's default is 128 KB. */
enum { LK__THREAD_STACK = 512 * 1024 };

/* accept4, pipe2 and SOCK_NONBLOCK would say this at once, but are hidden without _GNU_SOURCE or
 * absent in places; two more calls for each new connection do not show. */
LK__PRIV int lk__sys_prepare(int fd) {
    if (fd < 0) return fd;
    bool good = fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
#ifdef SO_NOSIGPIPE
    int on = 1; /* where there is no MSG_NOSIGNAL; refused by what is no socket, which needs none */
    (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
    if (good) return fd;
    int os_errno = errno;
    close(fd);
    errno = os_errno;
    return -1;
}

LK__PRIV int lk__sys_socket(int domain, int type, int protocol) {
    return lk__sys_prepare(socket(domain, type, protocol));
}

/* An interrupted connect goes on by itself (POSIX), like one that would block. */
LK__PRIV int lk__sys_connect(int fd, const struct sockaddr *addr, socklen_t len) {
    int rc = connect(fd, addr, len);
    if (rc < 0 && errno == EINTR) errno = EINPROGRESS;
    return rc;
}

LK__PRIV int lk__sys_accept(int fd) {
    int peer;
    do {
        peer = accept(fd, NULL, NULL);
    } while (peer < 0 && errno == EINTR);
    return lk__sys_prepare(peer);
}

LK__PRIV ssize_t lk__sys_recv(int fd, void *buf, size_t len) {
    ssize_t n;
    do {
        n = recv(fd, buf, len, 0);
    } while (n < 0 && errno == EINTR);
    return n;
}

LK__PRIV ssize_t lk__sys_send(int fd, const struct iovec *iov, int count) {
    LK__ASSERT(count > 0 && count <= UINT8_MAX);
    struct msghdr msg = { .msg_iov = (struct iovec *)(uintptr_t)iov };
    msg.msg_iovlen = (uint8_t)count; /* a size_t here and an int there: this converts to both */
    ssize_t n;
    do {
        n = sendmsg(fd, &msg, LK__SEND_FLAGS);
    } while (n < 0 && errno == EINTR);
    return n;
}

/* Never tried again after EINTR: the number may belong to somebody else by then. */
LK__PRIV int lk__sys_close(int fd) {
    return close(fd);
}

#if LLMKIT_WITH_THREADS

/* Signals are for the program's own threads. */
LK__PRIV int lk__sys_thread(void *(*fn)(void *arg), void *arg) {
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    int rc = pthread_attr_init(&attr);
    if (rc != 0) return rc;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, LK__THREAD_STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&thread, &attr, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return rc;
}

#else

LK__PRIV int lk__sys_thread(void *(*fn)(void *arg), void *arg) {
    (void)fn;
    (void)arg;
    return ENOSYS;
}

#endif

LK__PRIV const lk__sys *lk__sys_default(void) {
    static const lk__sys sys = {
        .socket = lk__sys_socket,
        .connect = lk__sys_connect,
        .accept = lk__sys_accept,
        .recv = lk__sys_recv,
        .send = lk__sys_send,
        .close = lk__sys_close,
        .getaddrinfo = getaddrinfo,
        .freeaddrinfo = freeaddrinfo,
        .thread = lk__sys_thread,
    };
    return &sys;
}

LK__PRIV int lk__socket_open(llmkit_loop *loop, int family) {
    return lk__loop_sys(loop)->socket(family, SOCK_STREAM, 0);
}

#undef LK__SEND_FLAGS

/* ==== >>net/loop.c ============================================================================ */
/* net/loop.c -- the event loop: turns, readiness, timers, deferred tasks, posts from threads */

enum {
    LK__SPARE_ERRANDS = 256, /* 18 KB at most */
    LK__SCRATCH_BYTES = LLMKIT_READ_BYTES + LK__RECORD_BYTES
};

#if LLMKIT_WITH_THREADS
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "llmkit_loop_stop is called by signal handlers");
#endif

/* What llmkit_loop_post has allocated. */
typedef struct lk__errand {
    lk__post post;
    lk__timer timer; /* fn is set if it is delayed */
    llmkit_loop *loop;
    void (*fn)(void *user);
    void *user;
} lk__errand;

struct llmkit_loop {
    llmkit_env env;
    const lk__sys *sys;
    void (*watch)(void *user, int fd, unsigned events); /* set: we are a guest */
    void *watch_user;
    lk__poller poller;
    lk__timers timers;
    lk__queue ready, tasks, last;
    int64_t now_ns;
    int calls;   /* made in this turn */
    bool firing; /* timers are being called */
    bool doomed; /* destroyed inside a callback: it goes when the turn is over */
    uint32_t holds;
    lk__post *spare; /* errands done, kept for the next post from inside */
    uint32_t num_spare;
    lk__rand rand;
    uint8_t *scratch;
    lk__annex *annex;
    lk__io wake;     /* readable when another thread wants to be heard */
    int wake_fd;     /* where it says so */
    lk__post *inbox; /* taken from posts, the first one first */
    lk__post *batch; /* taken from the inbox, and still to be called */

    lk__atomic_ptr owner; /* address of the errno of the thread that is inside a turn */
    lk__atomic_ptr posts; /* of lk__post, the latest first */
    lk__atomic_u32 stop;
};

/* Queues of tasks. */

LK__PRIV void lk__queue_init(lk__queue *q) {
    *q = (lk__queue){ .tail = &q->first };
}

LK__PRIV void lk__queue_add(lk__queue *q, lk__task *task) {
    if (task->prev) return;
    task->next = NULL;
    task->prev = q->tail;
    *q->tail = task;
    q->tail = &task->next;
}

LK__PRIV void lk__queue_remove(lk__queue *q, lk__task *task) {
    if (!task->prev) return;
    if (q->tail == &task->next) q->tail = task->prev;
    *task->prev = task->next;
    if (task->next) task->next->prev = task->prev;
    task->prev = NULL;
}

LK__PRIV int lk__queue_run(lk__queue *q) {
    int calls = 0;
    if (!q->first) return 0;
    q->batch = q->first;
    q->batch->prev = &q->batch;
    q->first = NULL;
    q->tail = &q->first;
    for (lk__task *task; (task = q->batch) != NULL; calls++) {
        lk__queue_remove(q, task);
        task->fn(task);
    }
    return calls;
}

LK__PRIV void lk__defer(llmkit_loop *loop, lk__task *task) {
    lk__queue_add(&loop->tasks, task);
}

LK__PRIV void lk__undefer(llmkit_loop *loop, lk__task *task) {
    lk__queue_remove(&loop->tasks, task);
}

LK__PRIV void lk__defer_last(llmkit_loop *loop, lk__task *task) {
    LK__ASSERT(lk__loop_inside(loop));
    lk__queue_add(&loop->last, task);
}

/* Readiness. */

/* What is ready waits as a task, so that stopping an io takes it out: nobody looks at what the
 * kernel said about a descriptor that has been closed, or given out again, in the meantime. */
LK__PRIV void lk__poller_note(lk__poller *p, lk__io *io, unsigned events) {
    io->ready |= events & io->events;
    if (io->ready) lk__queue_add(p->ready, &io->told);
}

LK__PRIV int lk__poller_ms(int64_t wait_ns) {
    if (wait_ns < 0) return -1;
    if (wait_ns > (int64_t)INT_MAX * LK__NS_PER_MS - LK__NS_PER_MS) return INT_MAX;
    return (int)((wait_ns + LK__NS_PER_MS - 1) / LK__NS_PER_MS);
}

LK__PRIV void lk__io_tell(lk__task *task) {
    lk__io *io = LK__CONTAINER(task, lk__io, told);
    unsigned ready = io->ready;
    io->ready = 0;
    io->fn(io, ready);
}

LK__PRIV llmkit_err lk__io_start(llmkit_loop *loop, lk__io *io, int fd, unsigned events,
                                 void (*fn)(lk__io *io, unsigned ready)) {
    LK__ASSERT(fd >= 0 && fn);
    *io = (lk__io){ .fd = fd, .told = { .fn = lk__io_tell }, .fn = fn };
    llmkit_err err = loop->watch ? lk__guest_add(&loop->poller, io) : LLMKIT_OK;
    if (!err) err = lk__io_set(loop, io, events);
    if (err) *io = (lk__io){ .fd = -1 };
    return err;
}

LK__PRIV llmkit_err lk__io_set(llmkit_loop *loop, lk__io *io, unsigned events) {
    LK__ASSERT(io->fn);
    if (events == io->events) return LLMKIT_OK;
    llmkit_err err = LLMKIT_OK;
    if (loop->watch)
        loop->watch(loop->watch_user, io->fd, events);
    else
        err = lk__poller_set(&loop->poller, io, events);
    if (err) return err;
    io->events = events;
    io->ready &= events;
    if (!io->ready) lk__queue_remove(&loop->ready, &io->told);
    return LLMKIT_OK;
}

LK__PRIV void lk__io_stop(llmkit_loop *loop, lk__io *io) {
    if (!io->fn) return;
    (void)lk__io_set(loop, io, 0);
    if (loop->watch) lk__guest_remove(&loop->poller, io);
    io->fd = -1;
    io->fn = NULL;
}

LLMKIT_API void llmkit_loop_ready(llmkit_loop *loop, int fd, unsigned events) {
    if (loop->watch) lk__guest_note(&loop->poller, fd, events);
}

/* Timers. */

LK__PRIV llmkit_err lk__timer_set(llmkit_loop *loop, lk__timer *timer, int64_t due_ns) {
    LK__ASSERT(timer->fn);
    /* A timer that is always due must not keep the turn from ending. */
    if (loop->firing && due_ns <= loop->now_ns) due_ns = loop->now_ns + 1;
    return lk__timers_set(&loop->timers, timer, due_ns);
}

LK__PRIV void lk__timer_stop(llmkit_loop *loop, lk__timer *timer) {
    lk__timers_remove(&loop->timers, timer);
}

LK__PRIV void lk__loop_fire(llmkit_loop *loop) {
    loop->firing = true;
    for (lk__timer *timer; (timer = lk__timers_first(&loop->timers)) != NULL; loop->calls++) {
        if (timer->due_ns > loop->now_ns) break;
        lk__timers_remove(&loop->timers, timer);
        timer->fn(timer);
    }
    loop->firing = false;
}

/* Posts.  Any thread pushes to the front of a list by compare-and-swap; the loop takes the whole
 * list and turns it round.  Whoever finds the list empty wakes the loop: for all others somebody
 * else has. */

/* Async-signal-safe.  A pipe that is full has woken the loop already. */
LK__PRIV void lk__loop_wake(llmkit_loop *loop) {
    const uint64_t one = 1;
    int os_errno = errno;
    while (write(loop->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    errno = os_errno;
}

LK__PRIV void lk__loop_woken(lk__io *io, unsigned ready) {
    char bytes[256];
    (void)ready;
    while (read(io->fd, bytes, sizeof(bytes)) == (ssize_t)sizeof(bytes)) {
    }
    LK__CONTAINER(io, llmkit_loop, wake)->calls--; /* this one is nobody's callback */
}

LK__PRIV void lk__post_send(llmkit_loop *loop, lk__post *post) {
    /* The loop looks at the list before it waits: from inside there is nobody to wake. */
    bool inside = lk__loop_inside(loop);
    void *head = lk__load_relaxed(&loop->posts);
    do {
        post->next = head;
    } while (!lk__cas(&loop->posts, &head, (void *)post));
    if (!head && !inside) lk__loop_wake(loop);
}

/* Moves what was sent to the end of the inbox. */
LK__PRIV void lk__posts_take(llmkit_loop *loop) {
    lk__post *first = NULL, **end = &loop->inbox;
    if (!lk__load_relaxed(&loop->posts)) return;
    for (lk__post *post = lk__exchange_ptr(&loop->posts, NULL), *next; post; post = next) {
        next = post->next;
        post->next = first;
        first = post;
    }
    while (*end) end = &(*end)->next; /* empty but after a lk__post_cancel */
    *end = first;
}

LK__PRIV bool lk__posts_wait(const llmkit_loop *loop) {
    return loop->inbox || lk__load_relaxed(&loop->posts);
}

LK__PRIV bool lk__posts_unlink(lk__post **at, const lk__post *post) {
    while (*at && *at != post) at = &(*at)->next;
    if (!*at) return false;
    *at = post->next;
    return true;
}

LK__PRIV void lk__post_cancel(llmkit_loop *loop, lk__post *post) {
    lk__posts_take(loop);
    if (!lk__posts_unlink(&loop->batch, post)) (void)lk__posts_unlink(&loop->inbox, post);
}

LK__PRIV void lk__posts_run(llmkit_loop *loop) {
    lk__posts_take(loop);
    loop->batch = loop->inbox;
    loop->inbox = NULL;
    for (lk__post *post; (post = loop->batch) != NULL;) {
        loop->batch = post->next;
        loop->calls++;
        post->fn(post);
    }
}

LK__PRIV void lk__errand_run(lk__errand *errand) {
    llmkit_loop *loop = errand->loop;
    void (*fn)(void *user) = errand->fn;
    void *user = errand->user;
    if (loop->num_spare < LK__SPARE_ERRANDS) {
        errand->post.next = loop->spare;
        loop->spare = &errand->post;
        loop->num_spare++;
    } else {
        lk__free(&loop->env, errand, sizeof(*errand));
    }
    fn(user);
}

LK__PRIV void lk__errand_due(lk__timer *timer) {
    lk__errand *errand = LK__CONTAINER(timer, lk__errand, timer);
    lk__loop_unhold(errand->loop);
    lk__errand_run(errand);
}

LK__PRIV void lk__errand_arrived(lk__post *post) {
    lk__errand *errand = LK__CONTAINER(post, lk__errand, post);
    llmkit_loop *loop = errand->loop;
    if (!errand->timer.fn) {
        lk__errand_run(errand);
        return;
    }
    loop->calls--; /* it is only put aside */
    /* Its sender was told that all is well, so without memory it is tried again each turn. */
    if (lk__timer_set(loop, &errand->timer, errand->timer.due_ns))
        lk__post_send(loop, post);
    else
        lk__loop_hold(loop);
}

LK__PRIV lk__errand *lk__errand_take(llmkit_loop *loop) {
    if (!lk__loop_inside(loop) || !loop->spare) return lk__alloc(&loop->env, sizeof(lk__errand));
    lk__errand *errand = LK__CONTAINER(loop->spare, lk__errand, post);
    loop->spare = errand->post.next;
    loop->num_spare--;
    *errand = (lk__errand){ 0 };
    return errand;
}

LLMKIT_API llmkit_err llmkit_loop_post(llmkit_loop *loop, uint32_t delay_ms, void (*fn)(void *user),
                                       void *user) {
    if (!loop || !fn) return LLMKIT_E_ARG;
    lk__errand *errand = lk__errand_take(loop);
    if (!errand) return LLMKIT_E_NOMEM;
    errand->post.fn = lk__errand_arrived;
    errand->loop = loop;
    errand->fn = fn;
    errand->user = user;
    if (delay_ms > 0) {
        errand->timer.fn = lk__errand_due;
        errand->timer.due_ns = lk__now(&loop->env) + delay_ms * LK__NS_PER_MS;
    }
    lk__post_send(loop, &errand->post);
    return LLMKIT_OK;
}

/* A post that is not an errand lies in somebody else's memory. */
LK__PRIV void lk__posts_drop(llmkit_loop *loop) {
    lk__posts_take(loop);
    for (lk__post *post; (post = loop->inbox) != NULL;) {
        loop->inbox = post->next;
        if (post->fn == lk__errand_arrived)
            lk__free(&loop->env, LK__CONTAINER(post, lk__errand, post), sizeof(lk__errand));
    }
    for (uint32_t i = 0; i < loop->timers.num; i++) {
        lk__timer *timer = loop->timers.slots[i].timer;
        if (timer->fn == lk__errand_due)
            lk__free(&loop->env, LK__CONTAINER(timer, lk__errand, timer), sizeof(lk__errand));
    }
    for (lk__post *post; (post = loop->spare) != NULL;) {
        loop->spare = post->next;
        lk__free(&loop->env, LK__CONTAINER(post, lk__errand, post), sizeof(lk__errand));
    }
}

LLMKIT_API void llmkit_loop_stop(llmkit_loop *loop) {
    if (lk__exchange_u32(&loop->stop, 1) == 0) lk__loop_wake(loop);
}

/* Turns. */

LK__PRIV void lk__loop_hold(llmkit_loop *loop) {
    loop->holds++;
}

LK__PRIV void lk__loop_unhold(llmkit_loop *loop) {
    LK__ASSERT(loop->holds > 0);
    loop->holds--;
}

LLMKIT_API int64_t llmkit_loop_wait_ns(llmkit_loop *loop) {
    if (loop->ready.first || loop->tasks.first || lk__posts_wait(loop)) return 0;
    const lk__timer *timer = lk__timers_first(&loop->timers);
    if (!timer || timer->due_ns == LK__NEVER_NS) return -1;
    int64_t now_ns = lk__now(&loop->env);
    return timer->due_ns > now_ns ? timer->due_ns - now_ns : 0;
}

LK__PRIV llmkit_err lk__loop_wait(llmkit_loop *loop, int max_ms) {
    if (loop->watch) return LLMKIT_OK;
    int64_t wait_ns = max_ms == 0 ? 0 : llmkit_loop_wait_ns(loop), max_ns = max_ms * LK__NS_PER_MS;
    if (max_ms > 0 && (wait_ns < 0 || wait_ns > max_ns)) wait_ns = max_ns;
    return lk__poller_wait(&loop->poller, wait_ns);
}

/* What has arrived goes before the deadlines that it may have met. */
LK__PRIV llmkit_err lk__loop_turn(llmkit_loop *loop, int max_ms) {
    lk__store_relaxed(&loop->owner, (void *)&errno);
    llmkit_err err = lk__loop_wait(loop, max_ms);
    loop->now_ns = lk__now(&loop->env);
    loop->calls = 0;
    loop->calls += lk__queue_run(&loop->ready);
    lk__loop_fire(loop);
    lk__posts_run(loop);
    loop->calls += lk__queue_run(&loop->tasks);
    (void)lk__queue_run(&loop->last);
    lk__store_relaxed(&loop->owner, NULL);
    return err;
}

LLMKIT_API int llmkit_loop_poll(llmkit_loop *loop, int max_ms) {
    if (lk__loop_inside(loop)) return 0;
    llmkit_err err = lk__loop_turn(loop, max_ms);
    if (err) lk__log(&loop->env, LLMKIT_ERROR, err, "the loop cannot wait for readiness");
    int calls = loop->calls;
    if (loop->doomed) llmkit_loop_destroy(loop);
    return calls;
}

LLMKIT_API llmkit_err llmkit_loop_run(llmkit_loop *loop) {
    if (lk__loop_inside(loop)) return LLMKIT_E_BUSY;
    if (!lk__loop_can_wait(loop)) return LLMKIT_E_ARG;
    llmkit_err err = LLMKIT_OK;
    while (!err && lk__exchange_u32(&loop->stop, 0) == 0) {
        if (loop->holds == 0 && !loop->tasks.first && !lk__posts_wait(loop)) break;
        err = lk__loop_turn(loop, -1);
        if (!loop->doomed) continue;
        llmkit_loop_destroy(loop);
        return err;
    }
    return err;
}

/* Making and ending one. */

LK__PRIV llmkit_err lk__wake_open(llmkit_loop *loop, llmkit_error *error) {
    int fds[2];
#if LK__HAS_EVENTFD
    fds[0] = fds[1] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    bool good = fds[0] >= 0;
#else
    bool good = pipe(fds) == 0 && lk__sys_prepare(fds[0]) >= 0 && lk__sys_prepare(fds[1]) >= 0;
#endif
    if (!good) return lk__fail_os(error, LLMKIT_E_IO, errno, "cannot open the loop's wake-up");
    loop->wake_fd = fds[1];
    llmkit_err err = lk__io_start(loop, &loop->wake, fds[0], LLMKIT_READ, lk__loop_woken);
    if (!err) return LLMKIT_OK;
    if (fds[1] != fds[0]) close(fds[1]);
    close(fds[0]);
    return lk__fail(error, err, "cannot watch the loop's wake-up");
}

LK__PRIV void lk__wake_close(llmkit_loop *loop) {
    int fd = loop->wake.fd;
    lk__io_stop(loop, &loop->wake);
    if (loop->wake_fd != fd) close(loop->wake_fd);
    close(fd);
}

LK__PRIV void lk__loop_close_poller(llmkit_loop *loop) {
    if (loop->watch)
        lk__guest_close(&loop->poller);
    else
        lk__poller_close(&loop->poller);
}

LLMKIT_API llmkit_loop *llmkit_loop_create(const llmkit_loop_desc *desc, llmkit_error *error) {
    static const llmkit_loop_desc none = { 0 };
    if (!desc) desc = &none;
    if (lk__check_guards(error, desc->_guard0, desc->_guard1, "llmkit_loop_desc")) return NULL;
    llmkit_env env = lk__env_fill(&desc->env);
    llmkit_loop *loop = lk__alloc(&env, sizeof(*loop));
    uint8_t *scratch = lk__alloc(&env, LK__SCRATCH_BYTES);
    if (!loop || !scratch) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a loop");
        goto fail;
    }
    loop->env = env;
    loop->sys = lk__sys_default();
    loop->watch = desc->watch;
    loop->watch_user = desc->watch_user;
    loop->scratch = scratch;
    loop->timers.env = &loop->env;
    loop->poller = (lk__poller){ .env = &loop->env, .ready = &loop->ready, .fd = -1 };
    lk__queue_init(&loop->ready);
    lk__queue_init(&loop->tasks);
    lk__queue_init(&loop->last);
    lk__rand_init(&loop->rand, &loop->env);
    if (!loop->watch && lk__poller_open(&loop->poller, error)) goto fail;
    if (!lk__wake_open(loop, error)) return loop;
    lk__loop_close_poller(loop);
fail:
    lk__free(&env, scratch, LK__SCRATCH_BYTES);
    lk__free(&env, loop, sizeof(*loop));
    return NULL;
}

LLMKIT_API void llmkit_loop_destroy(llmkit_loop *loop) {
    if (!loop) return;
    if (lk__loop_inside(loop)) {
        loop->doomed = true;
        return;
    }
    /* In this order: a resolver's thread may send until close has returned, but only what lies in
     * its own memory, which nobody looks at any more. */
    lk__posts_drop(loop);
    if (loop->annex) loop->annex->close(loop->annex);
    lk__wake_close(loop);
    lk__loop_close_poller(loop);
    lk__timers_free(&loop->timers);
    lk__free(&loop->env, loop->scratch, LK__SCRATCH_BYTES);
    llmkit_env env = loop->env;
    lk__free(&env, loop, sizeof(*loop));
}

/* What it knows. */

/* Each thread has an errno of its own (C11 7.5), so its address tells threads apart without a type
 * or a call that differs between systems. */
LK__PRIV bool lk__loop_inside(const llmkit_loop *loop) {
    return lk__load_relaxed(&loop->owner) == (void *)&errno;
}

LK__PRIV bool lk__loop_can_wait(const llmkit_loop *loop) {
    return !loop->watch;
}

LK__PRIV int64_t lk__loop_now(const llmkit_loop *loop) {
    return lk__loop_inside(loop) ? loop->now_ns : lk__now(&loop->env);
}

LLMKIT_API int64_t llmkit_loop_now_ns(const llmkit_loop *loop) {
    return lk__now(&loop->env);
}

LLMKIT_API int llmkit_loop_fd(const llmkit_loop *loop) {
    return loop->poller.fd;
}

LK__PRIV const llmkit_env *lk__loop_env(const llmkit_loop *loop) {
    return &loop->env;
}

LK__PRIV const lk__sys *lk__loop_sys(const llmkit_loop *loop) {
    return loop->sys;
}

LK__PRIV void lk__loop_set_sys(llmkit_loop *loop, const lk__sys *sys) {
    loop->sys = sys;
}

LK__PRIV lk__rand *lk__loop_rand(llmkit_loop *loop) {
    return &loop->rand;
}

LK__PRIV uint8_t *lk__loop_scratch(llmkit_loop *loop) {
    return loop->scratch;
}

LK__PRIV lk__annex **lk__loop_annex(llmkit_loop *loop) {
    return &loop->annex;
}

/* ==== >>net/dns.h ============================================================================= */
/* net/dns.h -- name resolution off the loop's thread */

typedef struct lk__addr {
    union {
        struct sockaddr     any;
        struct sockaddr_in  v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un  un; /* never from a lookup */
    } at;
    socklen_t len;
} lk__addr;

enum { LK__MAX_ADDRS = 16 };

typedef struct lk__addrs {
    lk__addr addr[LK__MAX_ADDRS]; /* in the order to try: families alternate (RFC 8305 section 4) */
    uint32_t num;
} lk__addrs;

/* One lookup, embedded in its owner.  Zero is none. */
typedef struct lk__lookup {
    struct lk__lookup_job *job; /* NULL: not running */
    /* error NULL: addrs has at least one; else why not (E_DNS, E_NOMEM) */
    void (*fn)(struct lk__lookup *lookup, const lk__addrs *addrs, const llmkit_error *error);
} lk__lookup;

/* IP addresses and, without threads, all names are answered without a thread; fn is called on the
 * loop's thread, never inside this. */
LK__PRIV llmkit_err lk__lookup_start(llmkit_loop *loop, lk__lookup *lookup, llmkit_str host,
                                     uint16_t port, llmkit_error *error);
LK__PRIV void lk__lookup_cancel(llmkit_loop *loop, lk__lookup *lookup); /* fn is not called */
/* "192.0.2.1", "2001:db8::1" (no brackets, scope ids allowed); false: it is a name. */
LK__PRIV bool lk__addr_parse(lk__addr *addr, llmkit_str text, uint16_t port);

/* ==== >>net/dns.c ============================================================================= */
/* net/dns.c -- getaddrinfo in threads of its own, a few at a time */

enum {
    LK__MAX_HOST = 255,   /* RFC 1035 section 3.1, and more than any address with its scope */
    LK__MAX_RESOLVING = 8 /* threads at once for each loop; further names wait */
};

/* getaddrinfo cannot be interrupted: it may go on for half a minute after its lookup was cancelled
 * and its loop destroyed.  So what its thread touches belongs to neither, and comes from the
 * default allocator, since the caller's may be gone as well. */
typedef struct lk__resolver {
    lk__annex annex;   /* in the loop */
    lk__post post;     /* tells the loop of answers */
    lk__queue arrived; /* answers that the loop's thread has taken */
    llmkit_env env;    /* all defaults */

    lk__mutex mutex;   /* guards the rest, and lookup in all jobs that wait or run */
    llmkit_loop *loop; /* NULL: destroyed */
    lk__queue waiting, answered;
    uint32_t threads;
    uint32_t refs; /* of the loop and of each thread */
    bool sent;     /* post is on its way */
} lk__resolver;

typedef struct lk__lookup_job {
    lk__task task;
    lk__resolver *resolver;
    lk__lookup *lookup; /* NULL: cancelled */
    int (*getaddrinfo)(const char *node, const char *service, const struct addrinfo *hints,
                       struct addrinfo **list);
    void (*freeaddrinfo)(struct addrinfo *list);
    lk__addrs addrs;
    int code, os_errno; /* of getaddrinfo */
    uint16_t port;
    char host[LK__MAX_HOST + 1];
} lk__lookup_job;

/* Addresses. */

LK__PRIV void lk__addr_set(lk__addr *addr, const void *from, size_t len, uint16_t port) {
    memset(addr, 0, sizeof(*addr));
    memcpy(&addr->at, from, len);
    addr->len = (socklen_t)len;
    if (addr->at.any.sa_family == AF_INET6)
        addr->at.v6.sin6_port = htons(port);
    else
        addr->at.v4.sin_port = htons(port);
}

/* A scope is the name of an interface, which getaddrinfo knows how to look up. */
LK__PRIV bool lk__addr_parse_scoped(lk__addr *addr, const char *text, uint16_t port) {
    struct addrinfo hints = { .ai_flags = AI_NUMERICHOST, .ai_family = AF_INET6 }, *list;
    if (getaddrinfo(text, NULL, &hints, &list) != 0) return false;
    lk__addr_set(addr, list->ai_addr, sizeof(addr->at.v6), port);
    freeaddrinfo(list);
    return true;
}

LK__PRIV bool lk__addr_parse(lk__addr *addr, llmkit_str text, uint16_t port) {
    char copy[LK__MAX_HOST + 1];
    struct sockaddr_in v4 = { .sin_family = AF_INET };
    struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };
    if (text.len > LK__MAX_HOST || lk__str_find(text, '\0') < text.len) return false;
    lk__str_copy(copy, sizeof(copy), text);
    if (inet_pton(AF_INET, copy, &v4.sin_addr) == 1) {
        lk__addr_set(addr, &v4, sizeof(v4), port);
        return true;
    }
    if (inet_pton(AF_INET6, copy, &v6.sin6_addr) == 1) {
        lk__addr_set(addr, &v6, sizeof(v6), port);
        return true;
    }
    return strchr(copy, ':') && strchr(copy, '%') && lk__addr_parse_scoped(addr, copy, port);
}

/* The next entry whose family is, or is not, this one. */
LK__PRIV const struct addrinfo *lk__addrs_seek(const struct addrinfo *ai, int family, bool same) {
    for (; ai; ai = ai->ai_next) {
        bool usable = ai->ai_family == AF_INET || ai->ai_family == AF_INET6;
        if (usable && (ai->ai_family == family) == same) break;
    }
    return ai;
}

/* An /etc/hosts with several lines for a name makes glibc repeat itself. */
LK__PRIV void lk__addrs_add(lk__addrs *out, const struct addrinfo *ai, uint16_t port) {
    bool v6 = ai->ai_family == AF_INET6;
    lk__addr *addr = &out->addr[out->num];
    lk__addr_set(addr, ai->ai_addr, v6 ? sizeof(addr->at.v6) : sizeof(addr->at.v4), port);
    for (uint32_t i = 0; i < out->num; i++)
        if (memcmp(&out->addr[i], addr, sizeof(*addr)) == 0) return;
    out->num++;
}

/* RFC 8305 section 4: the family of the first address begins, then the families take turns, each in
 * the order of the list (which getaddrinfo has sorted by RFC 6724). */
LK__PRIV void lk__addrs_fill(lk__addrs *out, const struct addrinfo *list, uint16_t port) {
    const struct addrinfo *first = lk__addrs_seek(list, AF_UNSPEC, false);
    int family = first ? first->ai_family : AF_UNSPEC;
    const struct addrinfo *next[2] = { first, lk__addrs_seek(first, family, false) };
    out->num = 0;
    for (unsigned turn = 0; out->num < LK__MAX_ADDRS && (next[0] || next[1]); turn ^= 1) {
        const struct addrinfo *ai = next[turn];
        if (!ai) continue;
        lk__addrs_add(out, ai, port);
        next[turn] = lk__addrs_seek(ai->ai_next, family, turn == 0);
    }
}

/* The resolver. */

LK__PRIV void lk__job_free(lk__lookup_job *job) {
    lk__free(&job->resolver->env, job, sizeof(*job));
}

LK__PRIV void lk__job_resolve(lk__lookup_job *job) {
    /* Without AI_ADDRCONFIG: it drops ::1 and 127.0.0.1 on a host that has only these.  Where there
     * is no route for a family, connect says so at once, and the race goes on with the other. */
    struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM }, *list = NULL;
    job->code = job->getaddrinfo(job->host, NULL, &hints, &list);
    job->os_errno = errno;
    if (job->code != 0) return;
    lk__addrs_fill(&job->addrs, list, job->port);
    job->freeaddrinfo(list);
}

LK__PRIV void lk__resolver_unref(lk__resolver *r) { /* unlocks it, too */
    bool last = --r->refs == 0;
    lk__unlock(&r->mutex);
    if (!last) return;
    lk__mutex_free(&r->mutex);
    llmkit_env env = r->env;
    lk__free(&env, r, sizeof(*r));
}

LK__PRIV void lk__resolver_answer(lk__resolver *r, lk__lookup_job *job) {
    lk__lock(&r->mutex);
    if (!r->loop) {
        lk__job_free(job);
    } else {
        lk__queue_add(&r->answered, &job->task);
        if (!r->sent) lk__post_send(r->loop, &r->post);
        r->sent = true;
    }
    lk__unlock(&r->mutex);
}

LK__PRIV void lk__job_explain(const lk__lookup_job *job, llmkit_error *error) {
    llmkit_err err = job->code == EAI_MEMORY ? LLMKIT_E_NOMEM : LLMKIT_E_DNS;
    if (job->code == 0)
        lk__fail(error, err, "%s has neither an IPv4 nor an IPv6 address", job->host);
    else if (job->code == EAI_SYSTEM) /* the words for errno are those of E_IO */
        lk__fail_os(error, LLMKIT_E_IO, job->os_errno, "cannot resolve %s", job->host);
    else
        lk__fail_os(error, LLMKIT_E_DNS, job->code, "cannot resolve %s", job->host);
    error->code = err;
    error->os_errno = job->code;
    error->retryable = job->code != EAI_NONAME; /* a name that is misspelt stays so */
}

LK__PRIV void lk__job_deliver(lk__task *task) {
    lk__lookup_job *job = LK__CONTAINER(task, lk__lookup_job, task);
    lk__lookup *lookup = job->lookup;
    if (lookup) {
        llmkit_error error;
        lookup->job = NULL;
        if (job->addrs.num == 0) lk__job_explain(job, &error);
        lookup->fn(lookup, &job->addrs, job->addrs.num == 0 ? &error : NULL);
    }
    lk__job_free(job);
}

LK__PRIV void lk__resolver_mail(lk__post *post) {
    lk__resolver *r = LK__CONTAINER(post, lk__resolver, post);
    lk__lock(&r->mutex);
    r->sent = false;
    for (lk__task *task; (task = r->answered.first) != NULL;) {
        lk__queue_remove(&r->answered, task);
        lk__queue_add(&r->arrived, task);
    }
    lk__unlock(&r->mutex);
    lk__queue_run(&r->arrived);
}

LK__PRIV void lk__resolver_clear(lk__queue *q) {
    for (lk__task *task; (task = q->first) != NULL;) {
        lk__queue_remove(q, task);
        lk__job_free(LK__CONTAINER(task, lk__lookup_job, task));
    }
}

LK__PRIV void lk__resolver_close(lk__annex *annex) {
    lk__resolver *r = LK__CONTAINER(annex, lk__resolver, annex);
    lk__lock(&r->mutex);
    r->loop = NULL;
    lk__resolver_clear(&r->waiting);
    lk__resolver_clear(&r->answered);
    lk__resolver_unref(r);
}

LK__PRIV lk__resolver *lk__resolver_of(llmkit_loop *loop) {
    lk__annex **annex = lk__loop_annex(loop);
    if (*annex) return LK__CONTAINER(*annex, lk__resolver, annex);
    llmkit_env env = lk__env_fill(NULL);
    lk__resolver *r = lk__alloc(&env, sizeof(*r));
    if (!r) return NULL;
    r->env = env;
    r->loop = loop;
    r->refs = 1;
    r->annex.close = lk__resolver_close;
    r->post.fn = lk__resolver_mail;
    lk__queue_init(&r->arrived);
    lk__queue_init(&r->waiting);
    lk__queue_init(&r->answered);
    lk__mutex_init(&r->mutex);
    *annex = &r->annex;
    return r;
}

#if LLMKIT_WITH_THREADS

/* The next name to resolve; NULL: none is left, and r may be gone. */
LK__PRIV lk__lookup_job *lk__resolver_next(lk__resolver *r) {
    lk__lock(&r->mutex);
    for (lk__task *task; (task = r->waiting.first) != NULL;) {
        lk__lookup_job *job = LK__CONTAINER(task, lk__lookup_job, task);
        lk__queue_remove(&r->waiting, task);
        if (job->lookup) {
            lk__unlock(&r->mutex);
            return job;
        }
        lk__job_free(job); /* cancelled before its turn came */
    }
    r->threads--;
    lk__resolver_unref(r);
    return NULL;
}

LK__PRIV void *lk__resolver_work(void *arg) {
    lk__resolver *r = arg;
    for (lk__lookup_job *job; (job = lk__resolver_next(r)) != NULL;) {
        lk__job_resolve(job);
        lk__resolver_answer(r, job);
    }
    return NULL;
}

/* A thread ends when nothing waits, so all that are there are busy. */
LK__PRIV llmkit_err lk__resolver_ask(llmkit_loop *loop, lk__resolver *r, lk__lookup_job *job,
                                     llmkit_error *error) {
    lk__lock(&r->mutex);
    lk__queue_add(&r->waiting, &job->task);
    bool spawn = r->threads < LK__MAX_RESOLVING;
    r->threads += spawn;
    r->refs += spawn;
    lk__unlock(&r->mutex);
    int rc = spawn ? lk__loop_sys(loop)->thread(lk__resolver_work, r) : 0;
    if (rc == 0) return LLMKIT_OK;
    lk__lock(&r->mutex);
    bool others = --r->threads > 0; /* they will come to it */
    if (!others) lk__queue_remove(&r->waiting, &job->task);
    lk__resolver_unref(r);
    if (others) return LLMKIT_OK;
    lk__fail_os(error, LLMKIT_E_IO, rc, "cannot start a thread to resolve %s", job->host);
    lk__job_free(job);
    return LLMKIT_E_IO;
}

#else

LK__PRIV llmkit_err lk__resolver_ask(llmkit_loop *loop, lk__resolver *r, lk__lookup_job *job,
                                     llmkit_error *error) {
    (void)loop;
    (void)error;
    lk__job_resolve(job);
    lk__resolver_answer(r, job);
    return LLMKIT_OK;
}

#endif

LK__PRIV llmkit_err lk__lookup_start(llmkit_loop *loop, lk__lookup *lookup, llmkit_str host,
                                     uint16_t port, llmkit_error *error) {
    LK__ASSERT(lookup->fn && !lookup->job);
    if (host.len == 0 || host.len > LK__MAX_HOST || lk__str_find(host, '\0') < host.len)
        return lk__fail(error, LLMKIT_E_ARG, "\"%.*s\" is not a host name",
                        (int)(host.len > 64 ? 64 : host.len), host.ptr);
    lk__resolver *r = lk__resolver_of(loop);
    lk__lookup_job *job = r ? lk__alloc(&r->env, sizeof(*job)) : NULL;
    if (!job) return lk__fail(error, LLMKIT_E_NOMEM, "no memory to resolve %.*s", LK__ARG(host));
    job->task.fn = lk__job_deliver;
    job->resolver = r;
    job->lookup = lookup;
    job->port = port;
    job->getaddrinfo = lk__loop_sys(loop)->getaddrinfo;
    job->freeaddrinfo = lk__loop_sys(loop)->freeaddrinfo;
    lk__str_copy(job->host, sizeof(job->host), host);
    if (lk__addr_parse(&job->addrs.addr[0], host, port)) {
        job->addrs.num = 1;
        lk__resolver_answer(r, job);
    } else {
        llmkit_err err = lk__resolver_ask(loop, r, job, error);
        if (err) return err;
    }
    lookup->job = job; /* the answer comes in a turn of the loop, not before this */
    return LLMKIT_OK;
}

/* The job ends by itself, and finds nobody to tell. */
LK__PRIV void lk__lookup_cancel(llmkit_loop *loop, lk__lookup *lookup) {
    lk__lookup_job *job = lookup->job;
    (void)loop;
    if (!job) return;
    lk__lock(&job->resolver->mutex);
    job->lookup = NULL;
    lk__unlock(&job->resolver->mutex);
    lookup->job = NULL;
}

/* ==== >>net/tls.h ============================================================================= */
/* net/tls.h -- one TLS connection as a state machine without sockets */

#if LLMKIT_WITH_TLS

/* BearSSL's engine, prepared: bytes of the wire go in and out on one side, the application's on the
 * other.  Half-duplex buffer: nothing can be sent while a record has been received in part. */
typedef struct lk__tls lk__tls;

enum { /* what lk__tls_wants answers, and the four channels */
    LK__TLS_SEND_WIRE = 1, /* bytes for the peer are waiting */
    LK__TLS_RECV_WIRE = 2, /* it can take bytes from the peer */
    LK__TLS_SEND_APP  = 4, /* it can take bytes from the application: the handshake is done */
    LK__TLS_RECV_APP  = 8, /* bytes for the application are waiting */
    LK__TLS_CLOSED    = 16 /* closed, cleanly or not: see lk__tls_why */
};

/* host: whom to verify (a name or an IP address, without brackets); NULL: we are the server.  port
 * tells sessions of one host apart.  Takes its own reference to shared; env pays for the memory and
 * is the loop's, which outlives the connection. */
LK__PRIV lk__tls *lk__tls_open(llmkit_tls *shared, const llmkit_env *env, const char *host,
                               uint16_t port, llmkit_error *error);
LK__PRIV void lk__tls_free(lk__tls *t); /* NULL is fine; keys are wiped */
LK__PRIV unsigned lk__tls_wants(const lk__tls *t);
/* The buffer of one channel, and how much of it was used; exactly as BearSSL's _buf and _ack, but
 * that an ack of 0 bytes does nothing. */
LK__PRIV uint8_t *lk__tls_buf(lk__tls *t, unsigned channel, size_t *len);
LK__PRIV void lk__tls_ack(lk__tls *t, unsigned channel, size_t len);
LK__PRIV void lk__tls_flush(lk__tls *t);  /* what was written becomes a record */
LK__PRIV void lk__tls_finish(lk__tls *t); /* sends close_notify */
/* Once true, stays true.  The lk__tls_ack that makes it true notes the session for resumption and
 * gives handshake memory back. */
LK__PRIV bool lk__tls_ready(lk__tls *t);
LK__PRIV bool lk__tls_resumed(const lk__tls *t);
/* After CLOSED: OK if the peer closed with close_notify, else E_TLS or E_CERT in words (E_NOMEM
 * where a certificate found no memory). */
LK__PRIV llmkit_err lk__tls_why(const lk__tls *t, llmkit_error *error);
/* A session for this host is known, so that the next handshake may be short. */
LK__PRIV bool lk__tls_knows(llmkit_tls *shared, const char *host, uint16_t port);

/* What net/tls_trust.c keeps and net/tls.c uses. */

/* The host of a connection in the form that is verified: a lower-case name without a trailing dot,
 * or an address. */
typedef struct lk__tls_peer {
    char    name[256]; /* also of an address, for messages; "" for a server's connection */
    uint8_t ip[16];
    uint8_t ip_len; /* 0 for names, 4 or 16 */
} lk__tls_peer;

typedef struct lk__anchors {
    br_x509_trust_anchor *list; /* each one's name and key lie in one block, at dn.data */
    size_t                num, cap;
} lk__anchors;

/* A certificate chain and its key, in blocks of their own. */
typedef struct lk__identity {
    br_x509_certificate *chain; /* leaf first; NULL: there is none */
    size_t               chain_len;
    br_skey_decoder_context *key; /* holds the decoded key */
} lk__identity;

enum { LK__SESSION_WAYS = 8, LK__SESSION_KEY = 32 };

/* One host's session.  The key is SHA-256 over the host and the port. */
typedef struct lk__session {
    uint8_t  key[LK__SESSION_KEY];
    uint64_t used;    /* 0: empty; the lowest of a set is replaced first */
    int64_t  born_ns; /* when the full handshake was */
    br_ssl_session_parameters params;
} lk__session;

struct llmkit_tls {
    lk__atomic_u32 refs;
    llmkit_env     env;
    char          *bundle; /* SSL_CERT_FILE as it was at creation, NULL: not set */
    lk__identity   identity;

    lk__mutex      trust_lock;
    lk__atomic_u32 trust_ready; /* anchors is complete and does not change any more */
    lk__anchors    anchors;

    lk__mutex      session_lock;
    uint32_t       max_sessions; /* 0: the defaults */
    lk__session   *sessions; /* sets of LK__SESSION_WAYS; NULL before the first one is kept */
    size_t         num_sessions;
    uint64_t       session_clock;
    uint8_t       *served; /* sessions of our clients, for BearSSL's cache; NULL before the first */
    size_t         served_bytes;
    br_ssl_session_cache_lru served_lru;
    const br_ssl_session_cache_class *served_class; /* the same behind session_lock */

    lk__atomic_u64 handshakes, resumed, failed;

    br_ssl_client_context client; /* prepared, to be copied for each connection */
    br_ssl_server_context server; /* likewise, if there is an identity */
};

/* Sets up the contexts that connections start from. */
LK__PRIV llmkit_err lk__tls_prepare(llmkit_tls *tls, llmkit_error *error);
/* Reads the trust anchors if that has not been done yet. */
LK__PRIV llmkit_err lk__tls_trust(llmkit_tls *tls, llmkit_error *error);
/* Makes room for sessions of our clients if that has not been done yet. */
LK__PRIV llmkit_err lk__tls_serve_sessions(llmkit_tls *tls, llmkit_error *error);
LK__PRIV llmkit_err lk__tls_peer_set(lk__tls_peer *peer, const char *host, llmkit_error *error);
LK__PRIV void lk__session_key(uint8_t key[LK__SESSION_KEY], const lk__tls_peer *peer,
                              uint16_t port);
/* out NULL: only asks. */
LK__PRIV bool lk__session_find(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY],
                               br_ssl_session_parameters *out);
LK__PRIV void lk__session_keep(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY],
                               const br_ssl_session_parameters *params);
LK__PRIV void lk__session_forget(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY]);

/* DER (X.690): takes the next element off the front of *in.  False, and *in as it was, where there
 * is none, or it is cut short, of indefinite length, or has a tag of more than one byte. */
typedef struct lk__der {
    uint8_t    tag;
    llmkit_str body;
    llmkit_str whole; /* with tag and length */
} lk__der;

LK__PRIV bool lk__der_next(llmkit_str *in, lk__der *out);
/* The next element, if its tag is this one. */
LK__PRIV bool lk__der_expect(llmkit_str *in, uint8_t tag, lk__der *out);

/* What we need of a certificate (RFC 5280 4.1), as views into its DER. */
typedef struct lk__cert {
    llmkit_str issuer, subject; /* Names, with their tags */
    llmkit_str key;             /* inside of SubjectPublicKeyInfo */
    llmkit_str alt_names;       /* inside of subjectAltName's sequence; empty where there is none */
    bool       is_ca;
} lk__cert;

LK__PRIV bool lk__cert_parse(llmkit_str der, lk__cert *out);
/* The public key, pointing into the DER; false: of a kind that BearSSL does not know. */
LK__PRIV bool lk__cert_pkey(const lk__cert *cert, br_x509_pkey *out);
/* A subjectAltName of type iPAddress holds exactly these bytes (RFC 5280 4.2.1.6). */
LK__PRIV bool lk__cert_has_ip(const lk__cert *cert, const uint8_t *ip, size_t ip_len);

/* PEM (RFC 7468): the next object of *text, decoded to out, which has room for text->len bytes. */
typedef struct lk__pem {
    llmkit_str label; /* "CERTIFICATE" */
    llmkit_str der;
    bool       broken; /* not Base64 throughout, such as an encrypted key in the old form */
} lk__pem;

LK__PRIV bool lk__pem_next(llmkit_str *text, uint8_t *out, lk__pem *pem);
#endif

/* References of shared trust; also without TLS, where they do nothing. */
LK__PRIV llmkit_tls *lk__tls_retain(llmkit_tls *tls);
LK__PRIV bool lk__tls_has_identity(const llmkit_tls *tls); /* a certificate to serve with */

/* ==== >>net/tls_trust.c ======================================================================= */
/* net/tls_trust.c -- what TLS connections share: trust anchors, an identity, sessions */

#if LLMKIT_WITH_TLS

enum {
    LK__TRUST_MAX_FILE = 8 << 20, /* the system bundles have 0.2 to 0.4 MB */
    LK__TRUST_MAX_CHAIN = 16,     /* certificates in an identity */
    LK__SESSION_CLIENT = 1024,    /* defaults of desc.max_sessions */
    LK__SESSION_SERVER = 4096,
    LK__SESSION_SERVED = 100 /* bytes of one entry in br_ssl_session_cache_lru */
};

/* RFC 5246 F.1.4 suggests 24 hours as the longest life of a session. */
#define LK__SESSION_MAX_NS (24 * 3600 * LK__NS_PER_S)

/* ---- DER and certificates --------------------------------------------------------------------*/

enum { /* tags that certificates use */
    LK__DER_BOOLEAN = 0x01,
    LK__DER_INTEGER = 0x02,
    LK__DER_BITS = 0x03,
    LK__DER_OCTETS = 0x04,
    LK__DER_OID = 0x06,
    LK__DER_SEQUENCE = 0x30,
    LK__DER_CONTEXT_0 = 0xa0,
    LK__DER_CONTEXT_3 = 0xa3,
    LK__DER_IP_ADDRESS = 0x87 /* GeneralName: [7] IMPLICIT OCTET STRING */
};

LK__PRIV bool lk__der_next(llmkit_str *in, lk__der *out) {
    const uint8_t *p = (const uint8_t *)in->ptr;
    if (in->len < 2 || (p[0] & 0x1f) == 0x1f) return false;
    size_t at = 2, len = p[1];
    if (len & 0x80) {
        size_t num = len & 0x7f;
        if (num == 0 || num > 3 || num > in->len - at) return false; /* 16 MiB are enough */
        for (len = 0; num > 0; num--) len = len << 8 | p[at++];
    }
    if (len > in->len - at) return false;
    *out = (lk__der){ p[0], lk__str(in->ptr + at, len), lk__str(in->ptr, at + len) };
    *in = lk__str_from(*in, at + len);
    return true;
}

LK__PRIV bool lk__der_expect(llmkit_str *in, uint8_t tag, lk__der *out) {
    return in->len > 0 && (uint8_t)in->ptr[0] == tag && lk__der_next(in, out);
}

/* Extension ::= SEQUENCE { extnID, critical DEFAULT FALSE, extnValue OCTET STRING } */
LK__PRIV bool lk__cert_extension(llmkit_str in, lk__cert *out) {
    lk__der id, flag, value, list;
    if (!lk__der_expect(&in, LK__DER_OID, &id)) return false;
    lk__der_expect(&in, LK__DER_BOOLEAN, &flag);
    if (!lk__der_expect(&in, LK__DER_OCTETS, &value)) return false;
    bool names = lk__str_eq(id.body, LK__STR("\x55\x1d\x11"));       /* subjectAltName */
    bool constraints = lk__str_eq(id.body, LK__STR("\x55\x1d\x13")); /* basicConstraints */
    if (!names && !constraints) return true;
    if (!lk__der_expect(&value.body, LK__DER_SEQUENCE, &list)) return false;
    if (names) out->alt_names = list.body;
    if (constraints && lk__der_expect(&list.body, LK__DER_BOOLEAN, &flag))
        out->is_ca = flag.body.len == 1 && flag.body.ptr[0] != 0;
    return true;
}

LK__PRIV bool lk__cert_extensions(llmkit_str in, lk__cert *out) {
    lk__der item;
    while (in.len > 0) {
        if (!lk__der_next(&in, &item)) return false;
        if (item.tag != LK__DER_CONTEXT_3) continue; /* the unique identifiers of version 2 */
        lk__der list, extension;
        if (!lk__der_expect(&item.body, LK__DER_SEQUENCE, &list)) return false;
        while (list.body.len > 0) {
            if (!lk__der_expect(&list.body, LK__DER_SEQUENCE, &extension)) return false;
            if (!lk__cert_extension(extension.body, out)) return false;
        }
    }
    return true;
}

LK__PRIV bool lk__cert_parse(llmkit_str der, lk__cert *out) {
    lk__der cert, tbs, skip, issuer, subject, key;
    memset(out, 0, sizeof *out);
    if (!lk__der_expect(&der, LK__DER_SEQUENCE, &cert) || der.len > 0) return false;
    if (!lk__der_expect(&cert.body, LK__DER_SEQUENCE, &tbs)) return false;
    llmkit_str in = tbs.body;
    lk__der_expect(&in, LK__DER_CONTEXT_0, &skip); /* the version; version 1 has none */
    if (!lk__der_expect(&in, LK__DER_INTEGER, &skip) ||  /* serial number */
        !lk__der_expect(&in, LK__DER_SEQUENCE, &skip) || /* signature algorithm */
        !lk__der_expect(&in, LK__DER_SEQUENCE, &issuer) ||
        !lk__der_expect(&in, LK__DER_SEQUENCE, &skip) || /* validity */
        !lk__der_expect(&in, LK__DER_SEQUENCE, &subject) ||
        !lk__der_expect(&in, LK__DER_SEQUENCE, &key))
        return false;
    out->issuer = issuer.whole;
    out->subject = subject.whole;
    out->key = key.body;
    return lk__cert_extensions(in, out);
}

/* An unsigned number without the leading zeros that DER or a careless issuer put there. */
LK__PRIV bool lk__cert_number(llmkit_str *in, llmkit_str *out) {
    lk__der number;
    if (!lk__der_expect(in, LK__DER_INTEGER, &number)) return false;
    *out = number.body;
    while (out->len > 0 && out->ptr[0] == 0) *out = lk__str_from(*out, 1);
    return out->len > 0;
}

LK__PRIV bool lk__cert_pkey_rsa(llmkit_str bits, br_rsa_public_key *out) {
    lk__der list;
    llmkit_str n, e;
    if (!lk__der_expect(&bits, LK__DER_SEQUENCE, &list) || !lk__cert_number(&list.body, &n) ||
        !lk__cert_number(&list.body, &e))
        return false;
    if (n.len + e.len > BR_X509_BUFSIZE_KEY) return false; /* BearSSL's limit: RSA-4096 */
    *out = (br_rsa_public_key){ (unsigned char *)n.ptr, n.len, (unsigned char *)e.ptr, e.len };
    return true;
}

LK__PRIV bool lk__cert_pkey_ec(llmkit_str oid, llmkit_str bits, br_ec_public_key *out) {
    int curve = 0;
    size_t width = 0; /* of a coordinate */
    if (lk__str_eq(oid, LK__STR("\x2a\x86\x48\xce\x3d\x03\x01\x07")))
        curve = BR_EC_secp256r1, width = 32;
    else if (lk__str_eq(oid, LK__STR("\x2b\x81\x04\x00\x22")))
        curve = BR_EC_secp384r1, width = 48;
    else if (lk__str_eq(oid, LK__STR("\x2b\x81\x04\x00\x23")))
        curve = BR_EC_secp521r1, width = 66;
    if (curve == 0 || bits.len != 1 + 2 * width || bits.ptr[0] != 4) return false;
    *out = (br_ec_public_key){ curve, (unsigned char *)bits.ptr, bits.len };
    return true;
}

/* RFC 3279 2.3.1 and RFC 5480 2.1.1 */
LK__PRIV bool lk__cert_pkey(const lk__cert *cert, br_x509_pkey *out) {
    llmkit_str in = cert->key;
    lk__der algorithm, id, curve, bits;
    if (!lk__der_expect(&in, LK__DER_SEQUENCE, &algorithm) ||
        !lk__der_expect(&in, LK__DER_BITS, &bits) ||
        !lk__der_expect(&algorithm.body, LK__DER_OID, &id))
        return false;
    if (bits.body.len == 0 || bits.body.ptr[0] != 0) return false; /* unused bits */
    bits.body = lk__str_from(bits.body, 1);
    if (lk__str_eq(id.body, LK__STR("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"))) {
        out->key_type = BR_KEYTYPE_RSA;
        return lk__cert_pkey_rsa(bits.body, &out->key.rsa);
    }
    out->key_type = BR_KEYTYPE_EC;
    return lk__str_eq(id.body, LK__STR("\x2a\x86\x48\xce\x3d\x02\x01")) &&
           lk__der_expect(&algorithm.body, LK__DER_OID, &curve) &&
           lk__cert_pkey_ec(curve.body, bits.body, &out->key.ec);
}

LK__PRIV bool lk__cert_has_ip(const lk__cert *cert, const uint8_t *ip, size_t ip_len) {
    llmkit_str names = cert->alt_names;
    lk__der name;
    while (lk__der_next(&names, &name)) {
        if (name.tag == LK__DER_IP_ADDRESS && name.body.len == ip_len &&
            memcmp(name.body.ptr, ip, ip_len) == 0)
            return true;
    }
    return false;
}

/* ---- PEM -------------------------------------------------------------------------------------*/

/* BearSSL's own decoder takes 56 ms for a system bundle of 144 roots, and its decoder of
 * certificates 14 ms more; this and lk__cert_parse take less than 2 ms together. */

/* All ones if lo <= c <= hi, without a branch or a table: the text may be a private key's. */
LK__PRIV uint32_t lk__pem_within(uint32_t c, uint32_t lo, uint32_t hi) {
    return (((c - lo) | (hi - c)) >> 31) - 1;
}

/* The six bits of a Base64 digit, plus one; 0 for everything else. */
LK__PRIV uint32_t lk__pem_digit(uint32_t c) {
    return (lk__pem_within(c, 'A', 'Z') & (c - 'A' + 1)) |
           (lk__pem_within(c, 'a', 'z') & (c - 'a' + 27)) |
           (lk__pem_within(c, '0', '9') & (c - '0' + 53)) |
           (lk__pem_within(c, '+', '+') & 63) | (lk__pem_within(c, '/', '/') & 64);
}

LK__PRIV llmkit_str lk__pem_line(llmkit_str *text) {
    size_t end = lk__str_find(*text, '\n');
    llmkit_str line = lk__str(text->ptr, end);
    *text = lk__str_from(*text, end < text->len ? end + 1 : end);
    while (line.len > 0 && (uint8_t)line.ptr[line.len - 1] <= ' ') line.len--;
    return line;
}

LK__PRIV bool lk__pem_begins(llmkit_str line, llmkit_str *label) {
    llmkit_str begin = LK__STR("-----BEGIN "), end = LK__STR("-----");
    if (!lk__str_starts(line, begin) || !lk__str_ends(line, end)) return false;
    if (line.len < begin.len + end.len) return false;
    *label = lk__str(line.ptr + begin.len, line.len - begin.len - end.len);
    return true;
}

typedef struct lk__pem_bits {
    uint8_t *out;
    size_t   len;
    uint32_t bits, num; /* num bits are not yet written */
    bool     padded, broken;
} lk__pem_bits;

LK__PRIV void lk__pem_add(lk__pem_bits *b, llmkit_str line) {
    for (size_t i = 0; i < line.len; i++) {
        uint8_t c = (uint8_t)line.ptr[i];
        uint32_t digit = lk__pem_digit(c);
        if (digit == 0 || b->padded) {
            if (c == '=')
                b->padded = true;
            else if (c > ' ')
                b->broken = true;
            continue;
        }
        b->bits = b->bits << 6 | (digit - 1);
        b->num += 6;
        if (b->num >= 8) {
            b->num -= 8;
            b->out[b->len++] = (uint8_t)(b->bits >> b->num);
        }
    }
}

LK__PRIV bool lk__pem_next(llmkit_str *text, uint8_t *out, lk__pem *pem) {
    memset(pem, 0, sizeof *pem);
    while (text->len > 0 && !lk__pem_begins(lk__pem_line(text), &pem->label)) {}
    if (pem->label.len == 0) return false;
    lk__pem_bits bits = { .out = out };
    while (text->len > 0) {
        llmkit_str line = lk__pem_line(text);
        if (lk__str_starts(line, LK__STR("-----END "))) {
            pem->broken = bits.broken || bits.len == 0;
            pem->der = lk__str((char *)out, bits.len);
            return true;
        }
        lk__pem_add(&bits, line);
    }
    pem->broken = true; /* no end */
    return true;
}

/* ---- Texts from files ------------------------------------------------------------------------*/

/* A PEM text: the caller's, or a file's, which is wiped and freed. */
typedef struct lk__pem_text {
    llmkit_str  text;
    const char *name; /* for messages: the path, or the field of the desc */
    char       *owned;
    size_t      owned_size;
} lk__pem_text;

LK__PRIV void lk__pem_text_free(lk__pem_text *t, const llmkit_env *env) {
    if (!t->owned) return;
    lk__wipe(t->owned, t->owned_size);
    lk__free(env, t->owned, t->owned_size);
    t->owned = NULL;
}

/* Doubles the room.  Not by lk__resize: that may leave a copy of a key behind. */
LK__PRIV bool lk__pem_text_grow(lk__pem_text *t, const llmkit_env *env) {
    size_t size = t->owned ? t->owned_size * 2 : 4096;
    char *more = lk__alloc(env, size);
    if (!more) return false;
    if (t->text.len > 0) memcpy(more, t->owned, t->text.len);
    lk__pem_text_free(t, env);
    t->owned = more;
    t->owned_size = size;
    t->text.ptr = more;
    return true;
}

/* Reads to the end rather than by the file's size: a key may come through a pipe. */
LK__PRIV llmkit_err lk__pem_text_fill(lk__pem_text *t, const llmkit_env *env, int fd,
                                      llmkit_error *error) {
    for (;;) {
        if (t->text.len == t->owned_size) {
            if (t->text.len >= LK__TRUST_MAX_FILE)
                return lk__fail(error, LLMKIT_E_TOO_BIG, "%s is larger than %d MiB", t->name,
                                LK__TRUST_MAX_FILE >> 20);
            if (!lk__pem_text_grow(t, env))
                return lk__fail(error, LLMKIT_E_NOMEM, "no memory to read %s", t->name);
        }
        ssize_t n = read(fd, t->owned + t->text.len, t->owned_size - t->text.len);
        if (n == 0) return LLMKIT_OK;
        if (n > 0)
            t->text.len += (size_t)n;
        else if (errno != EINTR)
            return lk__fail_os(error, LLMKIT_E_IO, errno, "reading %s", t->name);
    }
}

LK__PRIV llmkit_err lk__pem_text_read(lk__pem_text *t, const llmkit_env *env, const char *path,
                                      llmkit_error *error) {
    *t = (lk__pem_text){ .name = path };
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return lk__fail_os(error, LLMKIT_E_IO, errno, "opening %s", path);
    llmkit_err err = lk__pem_text_fill(t, env, fd, error);
    close(fd);
    if (err) lk__pem_text_free(t, env);
    return err;
}

/* One of the two is not NULL. */
LK__PRIV llmkit_err lk__pem_text_open(lk__pem_text *t, const llmkit_env *env, const char *path,
                                      const char *pem, const char *pem_field,
                                      llmkit_error *error) {
    if (path) return lk__pem_text_read(t, env, path, error);
    *t = (lk__pem_text){ .text = lk__str_z(pem), .name = pem_field };
    return LLMKIT_OK;
}

/* ---- Trust anchors ---------------------------------------------------------------------------*/

LK__PRIV size_t lk__anchor_size(const br_x509_trust_anchor *a) {
    const br_x509_pkey *k = &a->pkey;
    return a->dn.len + (k->key_type == BR_KEYTYPE_RSA ? k->key.rsa.nlen + k->key.rsa.elen
                                                      : k->key.ec.qlen);
}

LK__PRIV void lk__anchors_free(lk__anchors *a, const llmkit_env *env) {
    for (size_t i = 0; i < a->num; i++)
        lk__free(env, a->list[i].dn.data, lk__anchor_size(&a->list[i]));
    lk__free(env, a->list, a->cap * sizeof *a->list);
    *a = (lk__anchors){ 0 };
}

/* Copies the name and the key, which still point into the certificate, into a block of its own. */
LK__PRIV bool lk__anchor_own(br_x509_trust_anchor *a, const llmkit_env *env) {
    uint8_t *p = lk__alloc(env, lk__anchor_size(a));
    if (!p) return false;
    memcpy(p, a->dn.data, a->dn.len);
    a->dn.data = p;
    p += a->dn.len;
    if (a->pkey.key_type == BR_KEYTYPE_RSA) {
        br_rsa_public_key *k = &a->pkey.key.rsa;
        memcpy(p, k->n, k->nlen);
        k->n = p;
        memcpy(p + k->nlen, k->e, k->elen);
        k->e = p + k->nlen;
    } else {
        br_ec_public_key *k = &a->pkey.key.ec;
        memcpy(p, k->q, k->qlen);
        k->q = p;
    }
    return true;
}

/* A certificate that is no CA's is trusted itself, if a server presents just that one. */
LK__PRIV llmkit_err lk__anchors_add(lk__anchors *a, const llmkit_env *env, llmkit_str der) {
    lk__cert cert;
    br_x509_trust_anchor anchor = { 0 };
    if (!lk__cert_parse(der, &cert) || !lk__cert_pkey(&cert, &anchor.pkey)) return LLMKIT_E_CERT;
    if (a->num == a->cap) {
        size_t cap = a->cap ? a->cap * 2 : 16;
        void *list = lk__resize(env, a->list, a->cap * sizeof *a->list, cap * sizeof *a->list);
        if (!list) return LLMKIT_E_NOMEM;
        a->list = list;
        a->cap = cap;
    }
    anchor.flags = cert.is_ca ? BR_X509_TA_CA : 0;
    anchor.dn = (br_x500_name){ (unsigned char *)cert.subject.ptr, cert.subject.len };
    if (!lk__anchor_own(&anchor, env)) return LLMKIT_E_NOMEM;
    a->list[a->num++] = anchor;
    return LLMKIT_OK;
}

LK__PRIV bool lk__pem_is_cert(const lk__pem *pem) {
    return lk__str_eq(pem->label, LK__STR("CERTIFICATE")) ||
           lk__str_eq(pem->label, LK__STR("X509 CERTIFICATE"));
}

/* Bundles hold a certificate now and then that BearSSL cannot use (an Ed25519 key): those are left
 * out.  A text without a single usable one is a mistake. */
LK__PRIV llmkit_err lk__anchors_load(llmkit_tls *tls, const lk__pem_text *t, llmkit_error *error) {
    const llmkit_env *env = &tls->env;
    lk__anchors anchors = { 0 };
    llmkit_err err = LLMKIT_OK;
    llmkit_str text = t->text;
    lk__pem pem;
    unsigned nth = 0;
    size_t size = text.len + 1;
    uint8_t *der = lk__alloc(env, size);
    if (!der) err = LLMKIT_E_NOMEM;
    while (!err && lk__pem_next(&text, der, &pem)) {
        if (!lk__pem_is_cert(&pem)) continue;
        nth++;
        err = pem.broken ? LLMKIT_E_CERT : lk__anchors_add(&anchors, env, pem.der);
        if (err != LLMKIT_E_CERT) continue;
        lk__log(env, LLMKIT_DEBUG, err, "%s: certificate %u is left out: BearSSL cannot use it",
                t->name, nth);
        err = LLMKIT_OK;
    }
    lk__free(env, der, size);
    if (err == LLMKIT_OK && anchors.num == 0)
        err = lk__fail(error, LLMKIT_E_ARG, "%s has no certificate in PEM that can be used",
                       t->name);
    else if (err)
        lk__fail(error, err, "no memory for the trust anchors in %s", t->name);
    if (err) {
        lk__anchors_free(&anchors, env);
        return err;
    }
    tls->anchors = anchors;
    lk__store_release(&tls->trust_ready, (uint32_t)anchors.num);
    return LLMKIT_OK;
}

static const char *const lk__trust_paths[] = {
    "/etc/ssl/certs/ca-certificates.crt",                /* Debian, Alpine, Arch */
    "/etc/pki/tls/certs/ca-bundle.crt",                  /* Fedora, RHEL */
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", /* newer RHEL */
    "/etc/ssl/ca-bundle.pem",                            /* SUSE */
    "/etc/ssl/cert.pem",                                 /* macOS, BSDs, Alpine */
    "/usr/local/share/certs/ca-root-nss.crt",            /* FreeBSD with the package */
    "/etc/openssl/certs/ca-certificates.crt"             /* NetBSD */
};

LK__PRIV const char *lk__trust_path(const llmkit_tls *tls) {
    if (tls->bundle) return tls->bundle;
    for (size_t i = 0; i < LK__COUNT(lk__trust_paths); i++)
        if (access(lk__trust_paths[i], R_OK) == 0) return lk__trust_paths[i];
    return NULL;
}

LK__PRIV llmkit_err lk__trust_load(llmkit_tls *tls, llmkit_error *error) {
    lk__pem_text text;
    const char *path = lk__trust_path(tls);
    if (!path)
        return lk__fail(error, LLMKIT_E_CERT,
                        "this system has no bundle of trust anchors where one is usually kept; name"
                        " one with ca_file");
    llmkit_err err = lk__pem_text_read(&text, &tls->env, path, error);
    if (err) return err;
    err = lk__anchors_load(tls, &text, error);
    lk__pem_text_free(&text, &tls->env);
    return err;
}

/* Whoever comes second waits for the first: loading takes milliseconds, once.  What failed is tried
 * again by the next handshake. */
LK__PRIV llmkit_err lk__tls_trust(llmkit_tls *tls, llmkit_error *error) {
    if (lk__load_acquire(&tls->trust_ready)) return LLMKIT_OK;
    llmkit_err err = LLMKIT_OK;
    lk__lock(&tls->trust_lock);
    if (!lk__load_acquire(&tls->trust_ready)) err = lk__trust_load(tls, error);
    lk__unlock(&tls->trust_lock);
    if (err && error && err != LLMKIT_E_NOMEM) error->retryable = false;
    return err;
}

/* ---- Identity --------------------------------------------------------------------------------*/

LK__PRIV void lk__identity_free(lk__identity *id, const llmkit_env *env) {
    for (size_t i = 0; i < id->chain_len; i++)
        lk__free(env, id->chain[i].data, id->chain[i].data_len);
    lk__free(env, id->chain, LK__TRUST_MAX_CHAIN * sizeof *id->chain);
    if (id->key) lk__wipe(id->key, sizeof *id->key);
    lk__free(env, id->key, sizeof *id->key);
    *id = (lk__identity){ 0 };
}

LK__PRIV llmkit_err lk__identity_cert(lk__identity *id, const llmkit_env *env, const lk__pem *pem,
                                      const char *name, llmkit_error *error) {
    if (pem->broken)
        return lk__fail(error, LLMKIT_E_ARG, "%s: certificate %u is not valid PEM", name,
                        (unsigned)id->chain_len + 1);
    if (id->chain_len == LK__TRUST_MAX_CHAIN)
        return lk__fail(error, LLMKIT_E_TOO_BIG, "%s has more than %d certificates", name,
                        LK__TRUST_MAX_CHAIN);
    unsigned char *copy = lk__alloc(env, pem->der.len);
    if (!copy) return lk__fail(error, LLMKIT_E_NOMEM, "no memory for the certificates in %s", name);
    memcpy(copy, pem->der.ptr, pem->der.len);
    id->chain[id->chain_len++] = (br_x509_certificate){ copy, pem->der.len };
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__identity_chain(lk__identity *id, const llmkit_env *env,
                                       const lk__pem_text *t, llmkit_error *error) {
    llmkit_err err = LLMKIT_OK;
    llmkit_str text = t->text;
    lk__pem pem;
    size_t size = t->text.len + 1;
    uint8_t *der = lk__alloc(env, size);
    id->chain = lk__alloc(env, LK__TRUST_MAX_CHAIN * sizeof *id->chain);
    if (!der || !id->chain)
        err = lk__fail(error, LLMKIT_E_NOMEM, "no memory for the certificates in %s", t->name);
    while (!err && lk__pem_next(&text, der, &pem))
        if (lk__pem_is_cert(&pem)) err = lk__identity_cert(id, env, &pem, t->name, error);
    if (!err && id->chain_len == 0)
        err = lk__fail(error, LLMKIT_E_ARG, "%s has no certificate in PEM", t->name);
    lk__free(env, der, size);
    return err;
}

LK__PRIV llmkit_err lk__identity_decode(lk__identity *id, const lk__pem *pem, const char *name,
                                        llmkit_error *error) {
    if (pem->broken || lk__str_starts(pem->label, LK__STR("ENCRYPTED")))
        return lk__fail(error, LLMKIT_E_ARG,
                        "the private key in %s is encrypted or damaged; decrypt it with: openssl"
                        " pkey -in FILE", name);
    br_skey_decoder_init(id->key);
    br_skey_decoder_push(id->key, pem->der.ptr, pem->der.len);
    if (br_skey_decoder_last_error(id->key) != 0)
        return lk__fail(error, LLMKIT_E_ARG,
                        "the private key in %s is none that BearSSL knows: RSA up to 4096 bits, or"
                        " EC on P-256, P-384 or P-521", name);
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__identity_key(lk__identity *id, const llmkit_env *env,
                                     const lk__pem_text *t, llmkit_error *error) {
    llmkit_err err = LLMKIT_OK;
    llmkit_str text = t->text;
    lk__pem pem = { 0 };
    size_t size = t->text.len + 1;
    uint8_t *der = lk__alloc(env, size);
    id->key = lk__alloc(env, sizeof *id->key);
    bool found = false;
    if (!der || !id->key)
        err = lk__fail(error, LLMKIT_E_NOMEM, "no memory for the private key in %s", t->name);
    while (!err && !found && lk__pem_next(&text, der, &pem))
        found = lk__str_ends(pem.label, LK__STR("PRIVATE KEY"));
    if (!err && !found)
        err = lk__fail(error, LLMKIT_E_ARG, "%s has no private key in PEM", t->name);
    if (!err) err = lk__identity_decode(id, &pem, t->name, error);
    if (der) lk__wipe(der, size);
    lk__free(env, der, size);
    return err;
}

/* The public key that belongs to the private one is the one in the certificate. */
LK__PRIV bool lk__identity_matches(const lk__identity *id) {
    lk__cert cert;
    br_x509_pkey have = { 0 };
    const br_rsa_private_key *rsa = br_skey_decoder_get_rsa(id->key);
    const br_ec_private_key *ec = br_skey_decoder_get_ec(id->key);
    llmkit_str der = lk__str((char *)id->chain[0].data, id->chain[0].data_len);
    if (!lk__cert_parse(der, &cert) || !lk__cert_pkey(&cert, &have)) return false;
    if (rsa && have.key_type == BR_KEYTYPE_RSA) {
        unsigned char n[BR_X509_BUFSIZE_SIG];
        br_rsa_compute_modulus compute = br_rsa_compute_modulus_get_default();
        size_t len = compute(NULL, rsa);
        return len == have.key.rsa.nlen && len <= sizeof n && compute(n, rsa) == len &&
               memcmp(n, have.key.rsa.n, len) == 0;
    }
    if (ec && have.key_type == BR_KEYTYPE_EC && ec->curve == have.key.ec.curve) {
        unsigned char point[BR_EC_KBUF_PUB_MAX_SIZE];
        size_t len = br_ec_compute_pub(br_ec_get_default(), NULL, point, ec);
        return len > 0 && len == have.key.ec.qlen && memcmp(point, have.key.ec.q, len) == 0;
    }
    return false;
}

LK__PRIV llmkit_err lk__identity_load(lk__identity *id, const llmkit_env *env,
                                      const llmkit_tls_desc *d, llmkit_error *error) {
    lk__pem_text text;
    llmkit_err err =
        lk__pem_text_open(&text, env, d->cert_file, d->cert_pem, "cert_pem", error);
    if (err) return err;
    err = lk__identity_chain(id, env, &text, error);
    lk__pem_text_free(&text, env);
    if (err) return err;
    err = lk__pem_text_open(&text, env, d->key_file, d->key_pem, "key_pem", error);
    if (err) return err;
    err = lk__identity_key(id, env, &text, error);
    if (!err && !lk__identity_matches(id))
        err = lk__fail(error, LLMKIT_E_ARG,
                       "the private key in %s does not belong to the first certificate in %s",
                       text.name, d->cert_file ? d->cert_file : "cert_pem");
    lk__pem_text_free(&text, env);
    return err;
}

/* ---- Peers and sessions ----------------------------------------------------------------------*/

LK__PRIV llmkit_err lk__tls_peer_set(lk__tls_peer *peer, const char *host, llmkit_error *error) {
    memset(peer, 0, sizeof *peer);
    llmkit_str name = lk__str_z(host);
    bool is_v6 = lk__str_find(name, ':') < name.len;
    if (is_v6) name.len = lk__str_find(name, '%'); /* the zone is ours, not the certificate's */
    if (!is_v6 && lk__str_ends(name, LK__STR("."))) name.len--;
    if (name.len == 0 || name.len >= sizeof peer->name)
        return lk__fail(error, LLMKIT_E_ARG, "a TLS host name has 1 to %d bytes, not %u",
                        (int)sizeof peer->name - 1, (unsigned)name.len);
    for (size_t i = 0; i < name.len; i++) peer->name[i] = lk__lower(name.ptr[i]);
    if (inet_pton(is_v6 ? AF_INET6 : AF_INET, peer->name, peer->ip) == 1)
        peer->ip_len = is_v6 ? 16 : 4;
    return LLMKIT_OK;
}

LK__PRIV void lk__session_key(uint8_t key[LK__SESSION_KEY], const lk__tls_peer *peer,
                              uint16_t port) {
    uint8_t end[3] = { 0, (uint8_t)(port >> 8), (uint8_t)port };
    br_sha256_context hash;
    br_sha256_init(&hash);
    br_sha256_update(&hash, peer->name, strlen(peer->name));
    br_sha256_update(&hash, end, sizeof end);
    br_sha256_out(&hash, key);
}

/* The set of LK__SESSION_WAYS entries in which the key belongs.  The key is a hash already. */
LK__PRIV lk__session *lk__session_set(const llmkit_tls *tls, const uint8_t *key) {
    uint32_t hash = 0;
    memcpy(&hash, key, sizeof hash);
    return &tls->sessions[hash % (tls->num_sessions / LK__SESSION_WAYS) * LK__SESSION_WAYS];
}

LK__PRIV lk__session *lk__session_at(const llmkit_tls *tls, const uint8_t *key) {
    if (!tls->sessions) return NULL;
    lk__session *set = lk__session_set(tls, key);
    for (int i = 0; i < LK__SESSION_WAYS; i++)
        if (set[i].used && memcmp(set[i].key, key, LK__SESSION_KEY) == 0) return &set[i];
    return NULL;
}

LK__PRIV bool lk__session_find(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY],
                               br_ssl_session_parameters *out) {
    lk__lock(&tls->session_lock);
    lk__session *s = lk__session_at(tls, key);
    if (s && lk__now(&tls->env) - s->born_ns > LK__SESSION_MAX_NS) {
        lk__wipe(s, sizeof *s);
        s = NULL;
    }
    if (s) s->used = ++tls->session_clock;
    if (s && out) *out = s->params;
    lk__unlock(&tls->session_lock);
    return s != NULL;
}

/* The table is made with the first session: whoever connects to no https: server pays nothing. */
LK__PRIV bool lk__session_table(llmkit_tls *tls) {
    if (tls->sessions) return true;
    size_t num = tls->max_sessions ? tls->max_sessions : LK__SESSION_CLIENT;
    num = lk__add(num, LK__SESSION_WAYS - 1) / LK__SESSION_WAYS * LK__SESSION_WAYS;
    tls->sessions = lk__alloc(&tls->env, lk__mul(num, sizeof *tls->sessions));
    if (tls->sessions) tls->num_sessions = num;
    return tls->sessions != NULL;
}

/* Without memory the session is not kept: the next handshake is a full one. */
LK__PRIV void lk__session_keep(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY],
                               const br_ssl_session_parameters *params) {
    lk__lock(&tls->session_lock);
    if (lk__session_table(tls)) {
        lk__session *s = lk__session_at(tls, key), *set = lk__session_set(tls, key);
        if (!s) {
            s = set; /* the one that was not used for the longest time, or never */
            for (int i = 1; i < LK__SESSION_WAYS; i++)
                if (set[i].used < s->used) s = &set[i];
        }
        memcpy(s->key, key, LK__SESSION_KEY);
        s->params = *params;
        s->born_ns = lk__now(&tls->env);
        s->used = ++tls->session_clock;
    }
    lk__unlock(&tls->session_lock);
}

LK__PRIV void lk__session_forget(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY]) {
    lk__lock(&tls->session_lock);
    lk__session *s = lk__session_at(tls, key);
    if (s) lk__wipe(s, sizeof *s);
    lk__unlock(&tls->session_lock);
}

LK__PRIV llmkit_err lk__tls_serve_sessions(llmkit_tls *tls, llmkit_error *error) {
    lk__lock(&tls->session_lock);
    if (!tls->served) {
        size_t num = tls->max_sessions ? tls->max_sessions : LK__SESSION_SERVER;
        size_t bytes = lk__mul(num, LK__SESSION_SERVED);
        if (bytes > UINT32_MAX) bytes = UINT32_MAX; /* BearSSL's limit */
        tls->served = lk__alloc(&tls->env, bytes);
        if (tls->served) {
            tls->served_bytes = bytes;
            br_ssl_session_cache_lru_init(&tls->served_lru, tls->served, bytes);
        }
    }
    bool made = tls->served != NULL;
    lk__unlock(&tls->session_lock);
    return made ? LLMKIT_OK : lk__fail(error, LLMKIT_E_NOMEM, "no memory for max_sessions");
}

/* ---- The shared object -----------------------------------------------------------------------*/

LK__PRIV void lk__tls_destroy(llmkit_tls *tls) {
    llmkit_env env = tls->env;
    size_t bytes = tls->num_sessions * sizeof *tls->sessions;
    if (tls->sessions) lk__wipe(tls->sessions, bytes);
    lk__free(&env, tls->sessions, bytes);
    if (tls->served) lk__wipe(tls->served, tls->served_bytes);
    lk__free(&env, tls->served, tls->served_bytes);
    lk__anchors_free(&tls->anchors, &env);
    lk__identity_free(&tls->identity, &env);
    lk__strfree(&env, tls->bundle);
    lk__mutex_free(&tls->trust_lock);
    lk__mutex_free(&tls->session_lock);
    lk__wipe(tls, sizeof *tls); /* the state of random numbers */
    lk__free(&env, tls, sizeof *tls);
}

LK__PRIV llmkit_err lk__tls_check(const llmkit_tls_desc *d, llmkit_error *error) {
    llmkit_err err = lk__check_guards(error, d->_guard0, d->_guard1, "llmkit_tls_desc");
    if (err) return err;
    const char *wrong = NULL;
    bool cert = d->cert_file || d->cert_pem, key = d->key_file || d->key_pem;
    if (cert && !key) wrong = "a certificate needs its private key: key_file or key_pem";
    if (key && !cert) wrong = "a private key needs its certificate: cert_file or cert_pem";
    if (d->ca_file && d->ca_pem) wrong = "ca_file and ca_pem exclude each other";
    if (d->cert_file && d->cert_pem) wrong = "cert_file and cert_pem exclude each other";
    if (d->key_file && d->key_pem) wrong = "key_file and key_pem exclude each other";
    return wrong ? lk__fail(error, LLMKIT_E_ARG, "%s", wrong) : LLMKIT_OK;
}

/* The environment is read here and not at the first handshake, which may be in another thread. */
LK__PRIV llmkit_err lk__tls_bundle(llmkit_tls *tls, llmkit_error *error) {
    const char *path = NULL;
#if LLMKIT_WITH_GETENV
    path = getenv("SSL_CERT_FILE");
#endif
    if (!path || !path[0]) return LLMKIT_OK;
    tls->bundle = lk__strdup(&tls->env, path);
    return tls->bundle ? LLMKIT_OK : lk__fail(error, LLMKIT_E_NOMEM, "no memory for SSL_CERT_FILE");
}

LK__PRIV llmkit_err lk__tls_load(llmkit_tls *tls, const llmkit_tls_desc *d, llmkit_error *error) {
    llmkit_err err = LLMKIT_OK;
    if (d->ca_file || d->ca_pem) {
        lk__pem_text text;
        err = lk__pem_text_open(&text, &tls->env, d->ca_file, d->ca_pem, "ca_pem", error);
        if (err) return err;
        err = lk__anchors_load(tls, &text, error);
        lk__pem_text_free(&text, &tls->env);
    } else {
        err = lk__tls_bundle(tls, error);
    }
    if (!err && (d->cert_file || d->cert_pem))
        err = lk__identity_load(&tls->identity, &tls->env, d, error);
    return err ? err : lk__tls_prepare(tls, error);
}

LLMKIT_API llmkit_tls *llmkit_tls_create(const llmkit_tls_desc *desc, llmkit_error *error) {
    static const llmkit_tls_desc defaults = { 0 };
    if (!desc) desc = &defaults;
    if (lk__tls_check(desc, error)) return NULL;
    llmkit_env env = lk__env_fill(&desc->env);
    llmkit_tls *tls = lk__alloc(&env, sizeof *tls);
    if (!tls) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a llmkit_tls");
        return NULL;
    }
    tls->env = env;
    tls->max_sessions = desc->max_sessions;
    lk__store_relaxed(&tls->refs, 1);
    lk__mutex_init(&tls->trust_lock);
    lk__mutex_init(&tls->session_lock);
    if (lk__tls_load(tls, desc, error)) {
        lk__tls_destroy(tls);
        return NULL;
    }
    return tls;
}

LK__PRIV llmkit_tls *lk__tls_retain(llmkit_tls *tls) {
    if (tls) (void)lk__add_relaxed(&tls->refs, 1);
    return tls;
}

LLMKIT_API void llmkit_tls_release(llmkit_tls *tls) {
    if (tls && lk__sub_acq_rel(&tls->refs, 1) == 1) lk__tls_destroy(tls);
}

LK__PRIV bool lk__tls_has_identity(const llmkit_tls *tls) {
    return tls && tls->identity.chain_len > 0;
}

LLMKIT_API llmkit_tls_stats llmkit_tls_read(const llmkit_tls *tls) {
    return (llmkit_tls_stats){
        .handshakes = lk__load_relaxed(&tls->handshakes),
        .resumed = lk__load_relaxed(&tls->resumed),
        .failed = lk__load_relaxed(&tls->failed),
        .anchors = lk__load_acquire(&tls->trust_ready),
    };
}

#undef LK__SESSION_MAX_NS

#else

LLMKIT_API llmkit_tls *llmkit_tls_create(const llmkit_tls_desc *desc, llmkit_error *error) {
    (void)desc;
    lk__fail_disabled(error, "LLMKIT_WITH_TLS");
    return NULL;
}

LLMKIT_API void llmkit_tls_release(llmkit_tls *tls) {
    (void)tls;
}

LLMKIT_API llmkit_tls_stats llmkit_tls_read(const llmkit_tls *tls) {
    (void)tls;
    return (llmkit_tls_stats){ 0 };
}

LK__PRIV llmkit_tls *lk__tls_retain(llmkit_tls *tls) {
    return tls;
}

LK__PRIV bool lk__tls_has_identity(const llmkit_tls *tls) {
    (void)tls;
    return false;
}

#endif

/* ==== >>net/tls.c ============================================================================= */
/* net/tls.c -- one TLS connection: profile, verification, handshake, errors in words */

#if LLMKIT_WITH_TLS

enum {
    LK__VERIFY_MAX_CHAIN = 65536, /* bytes; chains of the web have 3 to 6 KB */
    LK__VERIFY_MAX_CERTS = 16,
    LK__VERIFY_MAX_ANCHORS = 16,
    LK__VERIFY_MIN_RSA = 256 /* bytes: 2048 bits, as CAs have had to require since 2014 */
};

_Static_assert(LLMKIT_TLS_BUFFER >= 512 + 325, "LLMKIT_TLS_BUFFER: BearSSL's smallest records");

/* ---- Profile ---------------------------------------------------------------------------------*/

/* Suites with forward secrecy and authenticated encryption only (RFC 9325 4.2).  A short list is
 * also a quick one: BearSSL takes 200 us to write a ClientHello with its full list, 40 with this.
 * AES-GCM runs at 3 GB/s where the processor helps; where not, ChaCha20 is the faster one. */
static const uint16_t lk__tls_suites_aes[] = {
    BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
};
static const uint16_t lk__tls_suites_chacha[] = {
    BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
};

LK__PRIV void lk__tls_profile(br_ssl_engine_context *eng) {
    bool aes = br_aes_x86ni_ctr_get_vtable() || br_aes_pwr8_ctr_get_vtable();
    br_ssl_engine_set_versions(eng, BR_TLS12, BR_TLS12);
    br_ssl_engine_set_suites(eng, aes ? lk__tls_suites_aes : lk__tls_suites_chacha,
                             LK__COUNT(lk__tls_suites_aes));
    br_ssl_engine_add_flags(eng, BR_OPT_NO_RENEGOTIATION);
    br_ssl_engine_set_hash(eng, br_sha256_ID, &br_sha256_vtable);
    br_ssl_engine_set_hash(eng, br_sha384_ID, &br_sha384_vtable);
    br_ssl_engine_set_hash(eng, br_sha512_ID, &br_sha512_vtable);
    br_ssl_engine_set_prf_sha256(eng, &br_tls12_sha256_prf);
    br_ssl_engine_set_prf_sha384(eng, &br_tls12_sha384_prf);
    br_ssl_engine_set_default_aes_gcm(eng);
    br_ssl_engine_set_default_chapol(eng);
    br_ssl_engine_set_default_rsavrfy(eng);
    /* A BearSSL client lists its groups by number, X25519 (29) after P-256 (23), and nothing in its
     * interface changes that: a server that goes by the client's order takes the slower P-256. */
    br_ssl_engine_set_default_ecdsa(eng);
}

/* ---- Verification of a server's chain --------------------------------------------------------*/

/* A class of BearSSL's around its own br_x509_minimal, for two reasons.  That one matches no IP
 * addresses.  And it hashes the names of all trust anchors anew several times for each certificate,
 * which takes 2.7 ms for a chain of two with a system bundle of 144: so the chain is collected
 * first, and it sees only those anchors whose names occur in it. */
typedef struct lk__verifier {
    const br_x509_class *vtable; /* first, as BearSSL wants it */
    br_x509_minimal_context minimal;
    const llmkit_tls   *shared;
    const lk__tls_peer *peer;
    lk__buf             chain; /* certificates one after the other */
    size_t              ends[LK__VERIFY_MAX_CERTS];
    size_t              num_certs; /* also those beyond the maximum */
    br_x509_trust_anchor anchors[LK__VERIFY_MAX_ANCHORS];
    size_t              num_anchors;
} lk__verifier;

LK__PRIV lk__verifier *lk__verifier_of(const br_x509_class **ctx) {
    return LK__CONTAINER(ctx, lk__verifier, vtable);
}

/* The name comes with the peer. */
LK__PRIV void lk__verifier_start_chain(const br_x509_class **ctx, const char *server_name) {
    lk__verifier *v = lk__verifier_of(ctx);
    (void)server_name;
    lk__buf_clear(&v->chain);
    v->num_certs = 0;
}

LK__PRIV void lk__verifier_start_cert(const br_x509_class **ctx, uint32_t length) {
    (void)ctx;
    (void)length;
}

LK__PRIV void lk__verifier_append(const br_x509_class **ctx, const unsigned char *buf,
                                  size_t len) {
    lk__buf_add(&lk__verifier_of(ctx)->chain, buf, len);
}

LK__PRIV void lk__verifier_end_cert(const br_x509_class **ctx) {
    lk__verifier *v = lk__verifier_of(ctx);
    if (v->num_certs < LK__VERIFY_MAX_CERTS) v->ends[v->num_certs] = v->chain.len;
    v->num_certs++;
}

LK__PRIV llmkit_str lk__verifier_cert(const lk__verifier *v, size_t i) {
    size_t start = i > 0 ? v->ends[i - 1] : 0;
    return lk__str(v->chain.ptr + start, v->ends[i] - start);
}

/* Anchors that issued a certificate of the chain, or are its leaf. */
LK__PRIV void lk__verifier_choose(lk__verifier *v) {
    llmkit_str names[LK__VERIFY_MAX_CERTS + 1];
    size_t num = 0;
    lk__cert cert;
    for (size_t i = 0; i < v->num_certs; i++) {
        if (!lk__cert_parse(lk__verifier_cert(v, i), &cert)) continue;
        names[num++] = cert.issuer;
        if (i == 0) names[num++] = cert.subject;
    }
    const lk__anchors *all = &v->shared->anchors;
    v->num_anchors = 0;
    for (size_t a = 0; a < all->num && v->num_anchors < LK__VERIFY_MAX_ANCHORS; a++) {
        llmkit_str dn = lk__str((char *)all->list[a].dn.data, all->list[a].dn.len);
        size_t i = 0;
        while (i < num && !lk__str_eq(names[i], dn)) i++;
        if (i < num) v->anchors[v->num_anchors++] = all->list[a];
    }
}

LK__PRIV void lk__verifier_prepare(lk__verifier *v) {
    br_x509_minimal_context *m = &v->minimal;
    int64_t now = (int64_t)time(NULL);
    br_x509_minimal_init(m, &br_sha256_vtable, v->anchors, v->num_anchors);
    br_x509_minimal_set_rsa(m, br_rsa_pkcs1_vrfy_get_default());
    br_x509_minimal_set_ecdsa(m, br_ec_get_default(), br_ecdsa_vrfy_asn1_get_default());
    br_x509_minimal_set_hash(m, br_sha256_ID, &br_sha256_vtable);
    br_x509_minimal_set_hash(m, br_sha384_ID, &br_sha384_vtable);
    br_x509_minimal_set_hash(m, br_sha512_ID, &br_sha512_vtable);
    br_x509_minimal_set_minrsa(m, LK__VERIFY_MIN_RSA);
    /* BearSSL counts days from the year 0; 1970 began 719528 days later. */
    br_x509_minimal_set_time(m, (uint32_t)(now / 86400 + 719528), (uint32_t)(now % 86400));
}

/* RFC 9110 4.3.5: an address is matched by iPAddress entries of the leaf only, never by a dNSName
 * or a common name that looks like it. */
LK__PRIV bool lk__verifier_has_ip(const lk__verifier *v) {
    lk__cert leaf;
    return lk__cert_parse(lk__verifier_cert(v, 0), &leaf) &&
           lk__cert_has_ip(&leaf, v->peer->ip, v->peer->ip_len);
}

LK__PRIV unsigned lk__verifier_end_chain(const br_x509_class **ctx) {
    lk__verifier *v = lk__verifier_of(ctx);
    if (v->chain.failed || v->num_certs > LK__VERIFY_MAX_CERTS) return BR_ERR_X509_LIMIT_EXCEEDED;
    lk__verifier_choose(v);
    lk__verifier_prepare(v);
    const br_x509_class **m = &v->minimal.vtable;
    bool is_name = v->peer->ip_len == 0;
    (*m)->start_chain(m, is_name ? v->peer->name : NULL);
    for (size_t i = 0; i < v->num_certs; i++) {
        llmkit_str der = lk__verifier_cert(v, i);
        (*m)->start_cert(m, (uint32_t)der.len);
        if (der.len > 0) (*m)->append(m, (const unsigned char *)der.ptr, der.len);
        (*m)->end_cert(m);
    }
    unsigned err = (*m)->end_chain(m);
    if (!err && !is_name && !lk__verifier_has_ip(v)) err = BR_ERR_X509_BAD_SERVER_NAME;
    return err;
}

LK__PRIV const br_x509_pkey *lk__verifier_get_pkey(const br_x509_class *const *ctx,
                                                   unsigned *usages) {
    const lk__verifier *v = lk__verifier_of((const br_x509_class **)(uintptr_t)ctx);
    return v->minimal.vtable->get_pkey(&v->minimal.vtable, usages);
}

static const br_x509_class lk__verifier_class = {
    .context_size = sizeof(lk__verifier),
    .start_chain = lk__verifier_start_chain,
    .start_cert = lk__verifier_start_cert,
    .append = lk__verifier_append,
    .end_cert = lk__verifier_end_cert,
    .end_chain = lk__verifier_end_chain,
    .get_pkey = lk__verifier_get_pkey,
};

/* ---- One connection --------------------------------------------------------------------------*/

struct lk__tls {
    llmkit_tls            *shared;
    const llmkit_env      *env;
    br_ssl_engine_context *eng;      /* of the client's or the server's context below */
    lk__verifier          *verifier; /* NULL for servers, and once ready */
    bool                   is_server, ready, resumed;
    uint8_t                offered_len; /* of the session we asked to resume; 0: none */
    uint8_t                offered[32];
    uint8_t                session_key[LK__SESSION_KEY];
    lk__tls_peer           peer;
    union {
        br_ssl_client_context client;
        br_ssl_server_context server;
    } ctx;
    uint8_t buffer[LLMKIT_TLS_BUFFER];
};

/* BearSSL's cache of a server's sessions knows no threads.  A hit may still be turned down, if the
 * client has dropped the suite; then a new session follows and is saved. */
LK__PRIV void lk__served_save(const br_ssl_session_cache_class **ctx, br_ssl_server_context *server,
                              const br_ssl_session_parameters *params) {
    llmkit_tls *tls = LK__CONTAINER(ctx, llmkit_tls, served_class);
    LK__CONTAINER(server, lk__tls, ctx.server)->resumed = false;
    lk__lock(&tls->session_lock);
    tls->served_lru.vtable->save(&tls->served_lru.vtable, server, params);
    lk__unlock(&tls->session_lock);
}

LK__PRIV int lk__served_load(const br_ssl_session_cache_class **ctx, br_ssl_server_context *server,
                             br_ssl_session_parameters *params) {
    llmkit_tls *tls = LK__CONTAINER(ctx, llmkit_tls, served_class);
    lk__lock(&tls->session_lock);
    int found = tls->served_lru.vtable->load(&tls->served_lru.vtable, server, params);
    lk__unlock(&tls->session_lock);
    LK__CONTAINER(server, lk__tls, ctx.server)->resumed = found != 0;
    return found;
}

static const br_ssl_session_cache_class lk__served_class = {
    .context_size = sizeof(br_ssl_session_cache_class *),
    .save = lk__served_save,
    .load = lk__served_load,
};

/* Connections start as copies of these contexts.  Building one anew asks the processor for its
 * features nine times, and each such CPUID traps under a hypervisor: 75 us in all.  The reset seeds
 * the random numbers from the system once; each copy adds fresh bytes of its own. */
LK__PRIV llmkit_err lk__tls_prepare(llmkit_tls *tls, llmkit_error *error) {
    unsigned char room[1024]; /* a reset wants some buffer */
    tls->served_class = &lk__served_class;
    br_ssl_client_zero(&tls->client);
    lk__tls_profile(&tls->client.eng);
    br_ssl_engine_set_buffer(&tls->client.eng, room, sizeof room, 0);
    bool good = br_ssl_client_reset(&tls->client, NULL, 0) != 0;
    if (good && lk__tls_has_identity(tls)) {
        br_ssl_server_zero(&tls->server);
        lk__tls_profile(&tls->server.eng);
        br_ssl_engine_add_flags(&tls->server.eng, BR_OPT_ENFORCE_SERVER_PREFERENCES);
        br_ssl_engine_set_buffer(&tls->server.eng, room, sizeof room, 0);
        good = br_ssl_server_reset(&tls->server) != 0;
    }
    lk__wipe(room, sizeof room);
    if (good) return LLMKIT_OK;
    return lk__fail(error, LLMKIT_E_TLS, "the system has no random numbers for TLS");
}

/* Fresh bytes for every connection: two that start from the same copied state, even on both sides
 * of a fork, never draw the same numbers. */
LK__PRIV llmkit_err lk__tls_seed(lk__tls *t, llmkit_error *error) {
    uint8_t seed[32];
    if (!lk__entropy(seed, sizeof seed))
        return lk__fail(error, LLMKIT_E_TLS, "the system has no random numbers for TLS");
    br_ssl_engine_inject_entropy(t->eng, seed, sizeof seed);
    lk__wipe(seed, sizeof seed);
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__tls_verify_with(lk__tls *t, llmkit_error *error) {
    lk__verifier *v = lk__alloc(t->env, sizeof *v);
    if (!v) return lk__fail(error, LLMKIT_E_NOMEM, "no memory for a TLS handshake");
    v->vtable = &lk__verifier_class;
    v->shared = t->shared;
    v->peer = &t->peer;
    lk__buf_init(&v->chain, t->env, LK__VERIFY_MAX_CHAIN);
    t->verifier = v;
    br_ssl_engine_set_x509(t->eng, &v->vtable);
    return LLMKIT_OK;
}

LK__PRIV void lk__tls_identify_client(lk__tls *t) {
    const lk__identity *id = &t->shared->identity;
    br_ssl_client_context *c = &t->ctx.client;
    if (br_skey_decoder_key_type(id->key) == BR_KEYTYPE_RSA)
        br_ssl_client_set_single_rsa(c, id->chain, id->chain_len, br_skey_decoder_get_rsa(id->key),
                                     br_rsa_pkcs1_sign_get_default());
    else
        br_ssl_client_set_single_ec(c, id->chain, id->chain_len, br_skey_decoder_get_ec(id->key),
                                    BR_KEYTYPE_SIGN, BR_KEYTYPE_EC, br_ec_get_default(),
                                    br_ecdsa_sign_asn1_get_default());
}

LK__PRIV llmkit_err lk__tls_start_client(lk__tls *t, const char *host, uint16_t port,
                                         llmkit_error *error) {
    br_ssl_client_context *c = &t->ctx.client;
    llmkit_err err = lk__tls_peer_set(&t->peer, host, error);
    if (!err) err = lk__tls_trust(t->shared, error);
    if (err) return err;
    memcpy(c, &t->shared->client, sizeof *c);
    t->eng = &c->eng;
    br_ssl_engine_set_buffer(t->eng, t->buffer, sizeof t->buffer, 0);
    err = lk__tls_verify_with(t, error);
    if (!err) err = lk__tls_seed(t, error);
    if (err) return err;
    if (lk__tls_has_identity(t->shared)) lk__tls_identify_client(t);
    lk__session_key(t->session_key, &t->peer, port);
    br_ssl_session_parameters session;
    if (lk__session_find(t->shared, t->session_key, &session)) {
        br_ssl_engine_set_session_parameters(t->eng, &session);
        t->offered_len = session.session_id_len;
        memcpy(t->offered, session.session_id, sizeof t->offered);
        lk__wipe(&session, sizeof session);
    }
    /* RFC 6066 3: an address is not sent as a server name. */
    br_ssl_client_reset(c, t->peer.ip_len > 0 ? NULL : t->peer.name, t->offered_len > 0);
    return lk__tls_why(t, error);
}

LK__PRIV void lk__tls_identify_server(lk__tls *t) {
    const lk__identity *id = &t->shared->identity;
    br_ssl_server_context *s = &t->ctx.server;
    if (br_skey_decoder_key_type(id->key) == BR_KEYTYPE_RSA)
        br_ssl_server_set_single_rsa(s, id->chain, id->chain_len, br_skey_decoder_get_rsa(id->key),
                                     BR_KEYTYPE_SIGN, br_rsa_private_get_default(),
                                     br_rsa_pkcs1_sign_get_default());
    else
        br_ssl_server_set_single_ec(s, id->chain, id->chain_len, br_skey_decoder_get_ec(id->key),
                                    BR_KEYTYPE_SIGN, BR_KEYTYPE_EC, br_ec_get_default(),
                                    br_ecdsa_sign_asn1_get_default());
}

LK__PRIV llmkit_err lk__tls_start_server(lk__tls *t, llmkit_error *error) {
    br_ssl_server_context *s = &t->ctx.server;
    t->is_server = true;
    if (!lk__tls_has_identity(t->shared))
        return lk__fail(error, LLMKIT_E_ARG, "a TLS server needs cert_file and key_file");
    llmkit_err err = lk__tls_serve_sessions(t->shared, error);
    if (err) return err;
    memcpy(s, &t->shared->server, sizeof *s);
    t->eng = &s->eng;
    br_ssl_engine_set_buffer(t->eng, t->buffer, sizeof t->buffer, 0);
    err = lk__tls_seed(t, error);
    if (err) return err;
    lk__tls_identify_server(t);
    br_ssl_server_set_cache(s, &t->shared->served_class);
    br_ssl_server_reset(s);
    return lk__tls_why(t, error);
}

LK__PRIV lk__tls *lk__tls_open(llmkit_tls *shared, const llmkit_env *env, const char *host,
                               uint16_t port, llmkit_error *error) {
    lk__tls *t = lk__alloc(env, sizeof *t);
    if (!t) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a TLS connection");
        return NULL;
    }
    t->env = env;
    t->shared = lk__tls_retain(shared);
    llmkit_err err = host ? lk__tls_start_client(t, host, port, error)
                          : lk__tls_start_server(t, error);
    if (!err) return t;
    lk__tls_free(t);
    return NULL;
}

LK__PRIV void lk__tls_drop_verifier(lk__tls *t) {
    lk__verifier *v = t->verifier;
    if (!v) return;
    br_ssl_engine_set_x509(t->eng, NULL);
    lk__buf_free(&v->chain);
    lk__free(t->env, v, sizeof *v);
    t->verifier = NULL;
}

/* RFC 5246 7.2.2: a session whose connection ended in an error is not resumed again. */
LK__PRIV void lk__tls_free(lk__tls *t) {
    if (!t) return;
    llmkit_tls *shared = t->shared;
    const llmkit_env *env = t->env;
    if (t->eng && !t->is_server && br_ssl_engine_last_error(t->eng) != BR_ERR_OK)
        lk__session_forget(shared, t->session_key);
    if (!t->ready) (void)lk__add_relaxed(&shared->failed, 1);
    lk__tls_drop_verifier(t);
    lk__wipe(t, sizeof *t);
    lk__free(env, t, sizeof *t);
    llmkit_tls_release(shared);
}

LK__PRIV void lk__tls_note_session(lk__tls *t) {
    br_ssl_session_parameters now;
    br_ssl_engine_get_session_parameters(t->eng, &now);
    t->resumed = t->offered_len > 0 && t->offered_len == now.session_id_len &&
                 memcmp(t->offered, now.session_id, t->offered_len) == 0;
    if (!t->resumed && now.session_id_len > 0)
        lk__session_keep(t->shared, t->session_key, &now);
    else if (!t->resumed && t->offered_len > 0)
        lk__session_forget(t->shared, t->session_key);
    lk__wipe(&now, sizeof now);
}

LK__PRIV void lk__tls_complete(lk__tls *t) {
    t->ready = true;
    if (!t->is_server) lk__tls_note_session(t);
    (void)lk__add_relaxed(&t->shared->handshakes, 1);
    if (t->resumed) (void)lk__add_relaxed(&t->shared->resumed, 1);
    lk__tls_drop_verifier(t);
}

/* Our bits stand in BearSSL's order, but for the lowest. */
_Static_assert(BR_SSL_SENDREC == LK__TLS_SEND_WIRE << 1, "BearSSL's state bits");
_Static_assert(BR_SSL_RECVREC == LK__TLS_RECV_WIRE << 1, "BearSSL's state bits");
_Static_assert(BR_SSL_SENDAPP == LK__TLS_SEND_APP << 1, "BearSSL's state bits");
_Static_assert(BR_SSL_RECVAPP == LK__TLS_RECV_APP << 1, "BearSSL's state bits");
_Static_assert(BR_SSL_CLOSED == 1, "BearSSL's state bits");

LK__PRIV unsigned lk__tls_wants(const lk__tls *t) {
    unsigned state = br_ssl_engine_current_state(t->eng);
    return state >> 1 | (state & BR_SSL_CLOSED ? (unsigned)LK__TLS_CLOSED : 0);
}

LK__PRIV uint8_t *lk__tls_buf(lk__tls *t, unsigned channel, size_t *len) {
    switch (channel) {
    case LK__TLS_SEND_WIRE: return br_ssl_engine_sendrec_buf(t->eng, len);
    case LK__TLS_RECV_WIRE: return br_ssl_engine_recvrec_buf(t->eng, len);
    case LK__TLS_SEND_APP: return br_ssl_engine_sendapp_buf(t->eng, len);
    case LK__TLS_RECV_APP: return br_ssl_engine_recvapp_buf(t->eng, len);
    default: *len = 0; return NULL;
    }
}

LK__PRIV void lk__tls_ack(lk__tls *t, unsigned channel, size_t len) {
    if (len == 0) return; /* BearSSL must not see that */
    switch (channel) {
    case LK__TLS_SEND_WIRE: br_ssl_engine_sendrec_ack(t->eng, len); break;
    case LK__TLS_RECV_WIRE: br_ssl_engine_recvrec_ack(t->eng, len); break;
    case LK__TLS_SEND_APP: br_ssl_engine_sendapp_ack(t->eng, len); break;
    case LK__TLS_RECV_APP: br_ssl_engine_recvapp_ack(t->eng, len); break;
    default: break;
    }
    /* Looked at after each step: with the first bytes of the next record the engine would take no
     * application's bytes for a while. */
    if (!t->ready && (lk__tls_wants(t) & (LK__TLS_SEND_APP | LK__TLS_RECV_APP)))
        lk__tls_complete(t);
}

LK__PRIV void lk__tls_flush(lk__tls *t) {
    br_ssl_engine_flush(t->eng, 0);
}

LK__PRIV void lk__tls_finish(lk__tls *t) {
    br_ssl_engine_close(t->eng);
}

LK__PRIV bool lk__tls_ready(lk__tls *t) {
    return t->ready;
}

LK__PRIV bool lk__tls_resumed(const lk__tls *t) {
    return t->resumed;
}

LK__PRIV bool lk__tls_knows(llmkit_tls *shared, const char *host, uint16_t port) {
    lk__tls_peer peer;
    uint8_t key[LK__SESSION_KEY];
    if (lk__tls_peer_set(&peer, host, NULL)) return false;
    lk__session_key(key, &peer, port);
    return lk__session_find(shared, key, NULL);
}

/* ---- Errors in words -------------------------------------------------------------------------*/

typedef struct lk__tls_row {
    int         code;
    bool        retryable;
    const char *text;
} lk__tls_row;

/* "the certificate of HOST ..." */
static const lk__tls_row lk__tls_cert_rows[] = {
    { BR_ERR_WRONG_KEY_USAGE, false, "must not be used for this cipher suite, says its key usage" },
    { BR_ERR_X509_EMPTY_CHAIN, false, "is missing: the server sent none" },
    { BR_ERR_X509_UNSUPPORTED, false,
      "has a kind of key or signature that BearSSL does not know, such as Ed25519 or RSA-PSS" },
    { BR_ERR_X509_LIMIT_EXCEEDED, false,
      "or its chain is too large: RSA keys have up to 4096 bits, chains up to 16 certificates" },
    { BR_ERR_X509_WRONG_KEY_TYPE, false, "has a key that does not fit the cipher suite" },
    { BR_ERR_X509_BAD_SIGNATURE, false, "or one in its chain has a bad signature" },
    { BR_ERR_X509_TIME_UNKNOWN, false, "cannot be checked: this machine does not know the time" },
    { BR_ERR_X509_EXPIRED, false, "expired or is not yet valid; check the clock of this machine" },
    { BR_ERR_X509_DN_MISMATCH, false,
      "is not followed by its issuer's: the server's chain is out of order" },
    { BR_ERR_X509_BAD_SERVER_NAME, false, "is for other names; check the host in the URL" },
    { BR_ERR_X509_CRITICAL_EXTENSION, false,
      "has a critical extension that BearSSL does not know" },
    { BR_ERR_X509_NOT_CA, false, "was issued by a certificate that is not a CA's" },
    { BR_ERR_X509_FORBIDDEN_KEY_USAGE, false, "or one in its chain is used against its key usage" },
    { BR_ERR_X509_WEAK_PUBLIC_KEY, false, "or one in its chain has an RSA key under 2048 bits" },
    { BR_ERR_X509_NOT_TRUSTED, false,
      "was issued by a CA that is not in the trust bundle; name one with ca_file" },
};

/* "TLS with HOST failed: ..." */
static const lk__tls_row lk__tls_error_rows[] = {
    { BR_ERR_BAD_PARAM, false, "BearSSL refused a parameter" },
    { BR_ERR_UNSUPPORTED_VERSION, false, "the peer's version is not TLS 1.2, the one we have" },
    { BR_ERR_BAD_VERSION, false, "the answer is not TLS 1.2; is this port one for https:?" },
    { BR_ERR_BAD_LENGTH, false, "a record has an impossible length; is this port one for https:?" },
    { BR_ERR_TOO_LARGE, false, "a record is too large for LLMKIT_TLS_BUFFER" },
    { BR_ERR_BAD_MAC, true, "a record was damaged on the way" },
    { BR_ERR_NO_RANDOM, true, "the system has no random numbers" },
    { BR_ERR_UNKNOWN_TYPE, false, "the answer is not TLS; is this port one for https:?" },
    { BR_ERR_UNEXPECTED, false, "the peer sent a message out of turn" },
    { BR_ERR_BAD_CIPHER_SUITE, false, "the server chose a cipher suite that was not offered" },
    { BR_ERR_BAD_SECRENEG, false, "the peer's renegotiation info is wrong" },
    { BR_ERR_EXTRA_EXTENSION, false, "the server answered an extension that was not sent" },
    { BR_ERR_BAD_FINISHED, false, "the handshake was tampered with" },
    { BR_ERR_RESUME_MISMATCH, true, "the server resumed a session with other parameters" },
    { BR_ERR_INVALID_ALGORITHM, false,
      "the server uses a signature or curve that was not offered, such as RSA-PSS" },
    { BR_ERR_BAD_SIGNATURE, false, "the server's key exchange has a bad signature" },
    { BR_ERR_NO_CLIENT_AUTH, false, "the client sent no certificate" },
    { BR_ERR_IO, true, "the transport failed" },
};

/* "TLS with HOST failed: alert N: ..." (RFC 5246 7.2.2, RFC 6066, RFC 8446 6) */
static const lk__tls_row lk__tls_alert_rows[] = {
    { BR_ALERT_UNEXPECTED_MESSAGE, false, "unexpected message" },
    { BR_ALERT_BAD_RECORD_MAC, true, "a record was damaged on the way" },
    { BR_ALERT_RECORD_OVERFLOW, false, "a record is too large" },
    { BR_ALERT_HANDSHAKE_FAILURE, false,
      "nothing in common (we have TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305), or a client"
      " certificate is wanted (cert_file)" },
    { BR_ALERT_BAD_CERTIFICATE, false, "the certificate was found bad" },
    { BR_ALERT_UNSUPPORTED_CERTIFICATE, false, "the kind of certificate is not supported" },
    { BR_ALERT_CERTIFICATE_REVOKED, false, "the certificate is revoked" },
    { BR_ALERT_CERTIFICATE_EXPIRED, false, "the certificate has expired" },
    { BR_ALERT_CERTIFICATE_UNKNOWN, false, "the certificate was not accepted" },
    { BR_ALERT_ILLEGAL_PARAMETER, false, "illegal parameter" },
    { BR_ALERT_UNKNOWN_CA, false, "the certificate was issued by an unknown CA" },
    { BR_ALERT_ACCESS_DENIED, false, "access denied" },
    { BR_ALERT_DECODE_ERROR, false, "a message could not be decoded" },
    { BR_ALERT_DECRYPT_ERROR, false, "a signature or a Finished message did not verify" },
    { BR_ALERT_PROTOCOL_VERSION, false,
      "no version in common: the peer wants another, such as TLS 1.3; this library has TLS 1.2" },
    { BR_ALERT_INSUFFICIENT_SECURITY, false, "the peer wants stronger cipher suites" },
    { BR_ALERT_INTERNAL_ERROR, true, "internal error" },
    { BR_ALERT_USER_CANCELED, true, "cancelled" },
    { 112, false, "the server does not know this host name" },
    { 116, false, "a client certificate is required (cert_file)" },
    { BR_ALERT_NO_APPLICATION_PROTOCOL, false, "no application protocol in common" },
};

LK__PRIV const lk__tls_row *lk__tls_row_find(const lk__tls_row *rows, size_t num, int code) {
    for (size_t i = 0; i < num; i++)
        if (rows[i].code == code) return &rows[i];
    return NULL;
}

LK__PRIV llmkit_err lk__tls_why_alert(const char *who, int code, llmkit_error *error) {
    bool sent = code >= BR_ERR_SEND_FATAL_ALERT;
    int alert = code - (sent ? BR_ERR_SEND_FATAL_ALERT : BR_ERR_RECV_FATAL_ALERT);
    const lk__tls_row *row =
        lk__tls_row_find(lk__tls_alert_rows, LK__COUNT(lk__tls_alert_rows), alert);
    lk__fail(error, LLMKIT_E_TLS, "TLS with %s failed: alert %d %s: %s", who, alert,
             sent ? "sent" : "received", row ? row->text : "no known meaning");
    if (error) error->retryable = row && row->retryable;
    return LLMKIT_E_TLS;
}

LK__PRIV llmkit_err lk__tls_why_code(const char *who, int code, llmkit_error *error) {
    const lk__tls_row *row =
        lk__tls_row_find(lk__tls_cert_rows, LK__COUNT(lk__tls_cert_rows), code);
    if (row) return lk__fail(error, LLMKIT_E_CERT, "the certificate of %s %s", who, row->text);
    if (code >= BR_ERR_X509_INVALID_VALUE && code < BR_ERR_RECV_FATAL_ALERT)
        return lk__fail(error, LLMKIT_E_CERT,
                        "the certificate of %s is malformed: BearSSL error %d", who, code);
    row = lk__tls_row_find(lk__tls_error_rows, LK__COUNT(lk__tls_error_rows), code);
    if (row)
        lk__fail(error, LLMKIT_E_TLS, "TLS with %s failed: %s", who, row->text);
    else
        lk__fail(error, LLMKIT_E_TLS,
                 "TLS with %s failed: the peer broke the protocol: BearSSL error %d", who, code);
    if (error) error->retryable = row && row->retryable;
    return LLMKIT_E_TLS;
}

LK__PRIV llmkit_err lk__tls_why(const lk__tls *t, llmkit_error *error) {
    int code = br_ssl_engine_last_error(t->eng);
    const char *who = t->is_server ? "a client" : t->peer.name;
    if (code == BR_ERR_OK) return LLMKIT_OK;
    llmkit_err err;
    if (t->verifier && t->verifier->chain.failed == LLMKIT_E_NOMEM)
        err = lk__fail(error, LLMKIT_E_NOMEM, "no memory for the certificates of %s", who);
    else if (code >= BR_ERR_RECV_FATAL_ALERT)
        err = lk__tls_why_alert(who, code, error);
    else
        err = lk__tls_why_code(who, code, error);
    if (error) error->tls_code = code;
    return err;
}

#endif

/* ==== >>net/wire.h ============================================================================ */
/* net/wire.h -- a byte stream over a socket, plain or TLS, client or server */

/* A connected socket with its buffers, embedded in its owner.  Callbacks come from the loop alone,
 * never from inside a call of the owner's; any of them may close and free the wire. */
typedef struct lk__wire lk__wire;

typedef struct lk__wire_ops {
    /* The TLS handshake is done.  Not called for plain sockets. */
    void (*ready)(lk__wire *w);
    /* Bytes have come, at least one; the view ends with the call. */
    void (*read)(lk__wire *w, llmkit_str bytes);
    /* The peer closed in order (error NULL), or the connection failed.  The wire is closed by then,
     * and nothing is called after. */
    void (*closed)(lk__wire *w, const llmkit_error *error);
    /* What waited to be sent has been handed to the kernel.  May be NULL. */
    void (*drained)(lk__wire *w);
} lk__wire_ops;

struct lk__wire {
    lk__io              io;
    lk__task            again; /* looks at the socket without being told to */
    llmkit_loop        *loop;
    const lk__wire_ops *ops;
    lk__buf             out;       /* bytes written that neither socket nor engine took yet */
    size_t              out_sent;  /* how many of them went since */
    bool                ready;     /* application bytes can flow */
    bool                paused;    /* the owner wants no bytes now */
    bool                shut;      /* say so to the peer once everything is sent */
    int                 broken;    /* errno of a write that failed; what is left to read may say
                                      more about it */
    bool                quick_ack; /* set by the owner: acknowledge at once (Linux) */
    bool               *gone;      /* set by lk__wire_close while a callback runs */
#if LLMKIT_WITH_TLS
    lk__tls            *tls;       /* NULL: plain */
    lk__buf             in;        /* of the peer's, received while the engine could take no more */
    lk__buf             record;    /* taken out of the engine while the socket was full */
    size_t              record_sent;
#endif
};

/* fd is connected, non-blocking, and the wire's from here on; on failure it is closed.  tls NULL:
 * plain.  host NULL: we are the server. */
LK__PRIV llmkit_err lk__wire_open(lk__wire *w, llmkit_loop *loop, int fd, const lk__wire_ops *ops,
                                  llmkit_tls *tls, const char *host, uint16_t port,
                                  llmkit_error *error);
/* Closes at once and drops what is unsent.  Safe in any callback and when already closed. */
LK__PRIV void lk__wire_close(lk__wire *w);
LK__INLINE bool lk__wire_is_open(const lk__wire *w) { return w->loop != NULL; }
/* Sends, or keeps what the socket does not take now: the pieces are the caller's again after the
 * call.  A connection that fails here is reported by closed, like any other.  E_NOMEM: what went
 * out may be a part of a piece, so that the wire is of no more use. */
LK__PRIV llmkit_err lk__wire_write(lk__wire *w, const llmkit_str *pieces, size_t num);
/* Bytes written that are still here; a TLS record that the engine is sending counts as sent. */
LK__PRIV size_t lk__wire_unsent(const lk__wire *w);
/* Nothing more will be written: once all is sent the peer is told so.  Reading goes on. */
LK__PRIV void lk__wire_shut(lk__wire *w);
LK__PRIV void lk__wire_pause(lk__wire *w);
LK__PRIV void lk__wire_resume(lk__wire *w);

/* ==== >>net/wire.c ============================================================================ */
/* net/wire.c -- moving bytes between a socket, a TLS engine and the owner of both */

enum {
    LK__WIRE_READS = 4,  /* of one wire in a row, before others get their turn */
    LK__WIRE_PIECES = 8, /* gathered into one system call */
};

/* Bytes that neither the socket nor the engine has taken. */
LK__PRIV size_t lk__wire_waiting(const lk__wire *w) {
    return w->out.len - w->out_sent;
}

LK__PRIV size_t lk__wire_unsent(const lk__wire *w) {
#if LLMKIT_WITH_TLS
    return lk__wire_waiting(w) + (w->record.len - w->record_sent);
#else
    return lk__wire_waiting(w);
#endif
}

/* ---- what the poller is asked for ------------------------------------------------------------ */

LK__PRIV bool lk__wire_waits_to_send(const lk__wire *w) {
    if (w->broken) return false;
#if LLMKIT_WITH_TLS
    if (w->tls) {
        unsigned wants = lk__tls_wants(w->tls);
        return w->record.len > 0 || (wants & LK__TLS_SEND_WIRE) ||
               ((wants & LK__TLS_SEND_APP) && lk__wire_waiting(w) > 0);
    }
#endif
    return lk__wire_waiting(w) > 0;
}

/* What the engine could not take yet must be gone before more is read. */
LK__PRIV bool lk__wire_waits_to_read(const lk__wire *w) {
#if LLMKIT_WITH_TLS
    if (w->in.len > 0) return false;
#endif
    return !w->paused;
}

/* A poller that finds no memory now is asked again in the next turn. */
LK__PRIV void lk__wire_watch(lk__wire *w) {
    unsigned events = (lk__wire_waits_to_read(w) ? (unsigned)LLMKIT_READ : 0U) |
                      (lk__wire_waits_to_send(w) ? (unsigned)LLMKIT_WRITE : 0U);
    if (events != w->io.events && lk__io_set(w->loop, &w->io, events))
        lk__defer(w->loop, &w->again);
}

/* ---- callbacks, any of which may end the wire ------------------------------------------------ */

/* False: the owner closed the wire, which may be freed memory by now. */
LK__PRIV bool lk__wire_deliver(lk__wire *w, llmkit_str bytes) {
    bool gone = false;
    w->gone = &gone;
    w->ops->read(w, bytes);
    if (gone) return false;
    w->gone = NULL;
    return true;
}

LK__PRIV bool lk__wire_tell(lk__wire *w, void (*fn)(lk__wire *w)) {
    bool gone = false;
    w->gone = &gone;
    fn(w);
    if (gone) return false;
    w->gone = NULL;
    return true;
}

/* ---- sending --------------------------------------------------------------------------------- */

/* Bytes the socket took, 0 where it is full.  After a failure the read side goes on: a server that
 * refuses a request while it is being sent has said why before it closed. */
LK__PRIV size_t lk__wire_send(lk__wire *w, const struct iovec *iov, int count) {
    if (w->broken) return 0;
    ssize_t n = lk__loop_sys(w->loop)->send(w->io.fd, iov, count);
    if (n >= 0) return (size_t)n;
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
        w->broken = errno;
        lk__defer(w->loop, &w->again);
    }
    return 0;
}

/* A request's head may be among the bytes, and a key in it. */
LK__PRIV void lk__wire_drop_out(lk__wire *w) {
    lk__buf_wipe(&w->out);
    w->out_sent = 0;
}

/* Notes that n more bytes of out have gone; an emptied buffer goes back to the allocator, since an
 * idle connection should hold none. */
LK__PRIV void lk__wire_sent(lk__wire *w, size_t n) {
    w->out_sent += n;
    if (w->out_sent == w->out.len) lk__wire_drop_out(w);
}

/* Keeps, in order, what is left of the pieces behind the bytes that were taken.  Room for all of it
 * at once: growing piece by piece would leave copies of a key behind. */
LK__PRIV llmkit_err lk__wire_keep(lk__wire *w, const llmkit_str *pieces, size_t num, size_t taken) {
    size_t bytes = 0;
    for (size_t i = 0; i < num; i++) bytes = lk__add(bytes, pieces[i].len);
    if (w->broken || bytes == taken) return LLMKIT_OK;
    lk__buf_more(&w->out, bytes - taken);
    for (size_t i = 0; i < num; i++) {
        size_t skip = taken < pieces[i].len ? taken : pieces[i].len;
        taken -= skip;
        lk__buf_str(&w->out, lk__str_from(pieces[i], skip));
    }
    return w->out.failed;
}

#if LLMKIT_WITH_TLS
/* False: the socket is full.  What a broken one does not take is dropped. */
LK__PRIV bool lk__wire_send_record(lk__wire *w) {
    while (w->record.len > w->record_sent) {
        struct iovec iov = { w->record.ptr + w->record_sent, w->record.len - w->record_sent };
        size_t n = lk__wire_send(w, &iov, 1);
        if (n == 0 && !w->broken) return false;
        w->record_sent += w->broken ? iov.iov_len : n;
    }
    lk__buf_free(&w->record);
    w->record_sent = 0;
    return true;
}

/* Engine to socket.  False: the socket is full.  The engine's buffer serves both directions and is
 * busy until its record is out, so a record that must wait is put aside: two peers that both write
 * more than their sockets hold would wait for each other for ever. */
LK__PRIV bool lk__wire_flush_records(lk__wire *w) {
    if (!lk__wire_send_record(w)) return false;
    while (lk__tls_wants(w->tls) & LK__TLS_SEND_WIRE) {
        size_t len;
        uint8_t *bytes = lk__tls_buf(w->tls, LK__TLS_SEND_WIRE, &len);
        struct iovec iov = { bytes, len };
        size_t n = lk__wire_send(w, &iov, 1);
        if (n == 0 && !w->broken) {
            lk__buf_add(&w->record, bytes, len);
            if (!w->record.failed) lk__tls_ack(w->tls, LK__TLS_SEND_WIRE, len);
            w->record.failed = LLMKIT_OK; /* without memory it waits in the engine */
            return false;
        }
        lk__tls_ack(w->tls, LK__TLS_SEND_WIRE, w->broken ? len : n);
    }
    return true;
}

/* Application bytes into the engine, records to the socket whenever one is full. */
LK__PRIV size_t lk__wire_encrypt(lk__wire *w, llmkit_str bytes) {
    size_t done = 0;
    while (w->ready && w->record.len == 0 && done < bytes.len) {
        size_t room = 0;
        uint8_t *at = NULL;
        if (lk__tls_wants(w->tls) & LK__TLS_SEND_APP)
            at = lk__tls_buf(w->tls, LK__TLS_SEND_APP, &room);
        if (room == 0) {
            if (!(lk__tls_wants(w->tls) & LK__TLS_SEND_WIRE) || !lk__wire_flush_records(w)) break;
            continue;
        }
        size_t n = room < bytes.len - done ? room : bytes.len - done;
        memcpy(at, bytes.ptr + done, n);
        lk__tls_ack(w->tls, LK__TLS_SEND_APP, n);
        done += n;
    }
    return done;
}

LK__PRIV void lk__wire_push_tls(lk__wire *w) {
    lk__wire_flush_records(w);
    while (lk__wire_waiting(w) > 0) {
        llmkit_str rest = lk__str_from(lk__buf_view(&w->out), w->out_sent);
        size_t n = lk__wire_encrypt(w, rest);
        lk__wire_sent(w, n);
        if (n < rest.len) break;
    }
    lk__tls_flush(w->tls);
    if (w->shut && w->ready && lk__wire_waiting(w) == 0) lk__tls_finish(w->tls);
    lk__wire_flush_records(w);
}

LK__PRIV llmkit_err lk__wire_write_tls(lk__wire *w, const llmkit_str *pieces, size_t num) {
    size_t taken = 0;
    for (size_t i = 0; i < num && lk__wire_waiting(w) == 0; i++) {
        size_t done = lk__wire_encrypt(w, pieces[i]);
        taken += done;
        if (done < pieces[i].len) break;
    }
    llmkit_err err = lk__wire_keep(w, pieces, num, taken);
    lk__tls_flush(w->tls);
    lk__wire_flush_records(w);
    return err;
}
#endif

LK__PRIV void lk__wire_push_plain(lk__wire *w) {
    while (lk__wire_waiting(w) > 0 && !w->broken) {
        struct iovec iov = { w->out.ptr + w->out_sent, lk__wire_waiting(w) };
        size_t n = lk__wire_send(w, &iov, 1);
        if (n == 0) return;
        lk__wire_sent(w, n);
    }
}

/* One gathered call; what it did not take is kept, in order. */
LK__PRIV llmkit_err lk__wire_write_plain(lk__wire *w, const llmkit_str *pieces, size_t num) {
    size_t taken = 0;
    if (lk__wire_waiting(w) == 0 && num <= LK__WIRE_PIECES) {
        struct iovec iov[LK__WIRE_PIECES];
        int count = 0;
        for (size_t i = 0; i < num; i++)
            if (pieces[i].len)
                iov[count++] = (struct iovec){ (void *)(uintptr_t)pieces[i].ptr, pieces[i].len };
        if (count) taken = lk__wire_send(w, iov, count);
    }
    return lk__wire_keep(w, pieces, num, taken);
}

LK__PRIV void lk__wire_push(lk__wire *w) {
#if LLMKIT_WITH_TLS
    if (w->tls) {
        lk__wire_push_tls(w);
        return;
    }
#endif
    lk__wire_push_plain(w);
}

/* FIN, once everything before it is with the kernel. */
LK__PRIV void lk__wire_half_close(lk__wire *w) {
    if (!w->shut || lk__wire_waiting(w) > 0 || lk__wire_waits_to_send(w)) return;
    shutdown(w->io.fd, SHUT_WR);
}

/* False: the wire is gone. */
LK__PRIV bool lk__wire_on_writable(lk__wire *w) {
    lk__wire_push(w);
    if (w->broken) lk__wire_drop_out(w);
    lk__wire_half_close(w);
    if (lk__wire_waiting(w) > 0 || lk__wire_waits_to_send(w)) return true;
    return !w->ready || !w->ops->drained || lk__wire_tell(w, w->ops->drained);
}

LK__PRIV llmkit_err lk__wire_write(lk__wire *w, const llmkit_str *pieces, size_t num) {
    if (!lk__wire_is_open(w) || w->broken) return LLMKIT_OK;
    llmkit_err err;
#if LLMKIT_WITH_TLS
    if (w->tls)
        err = lk__wire_write_tls(w, pieces, num);
    else
#endif
        err = lk__wire_write_plain(w, pieces, num);
    if (w->broken) lk__wire_drop_out(w);
    lk__wire_watch(w);
    return err;
}

LK__PRIV void lk__wire_shut(lk__wire *w) {
    if (!lk__wire_is_open(w) || w->shut) return;
    w->shut = true;
    lk__wire_push(w);
    lk__wire_half_close(w);
    lk__wire_watch(w);
}

/* ---- receiving ------------------------------------------------------------------------------- */

typedef enum lk__pulled {
    LK__PULL_GONE, /* the wire is closed, and may be freed memory */
    LK__PULL_DONE, /* nothing more now */
    LK__PULL_MORE
} lk__pulled;

LK__PRIV lk__pulled lk__wire_fail(lk__wire *w, const llmkit_error *error) {
    lk__wire_close(w);
    w->ops->closed(w, error);
    return LK__PULL_GONE;
}

/* Into scratch; 0 at the end of the stream, -1 with errno. */
LK__PRIV ssize_t lk__wire_recv(lk__wire *w) {
#if defined(__linux__) && defined(TCP_QUICKACK)
    int on = 1; /* the kernel falls back by itself, so it is said each time: Linux tcp(7) */
    if (w->quick_ack) setsockopt(w->io.fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
#endif
    return lk__loop_sys(w->loop)->recv(w->io.fd, lk__loop_scratch(w->loop), LLMKIT_READ_BYTES);
}

LK__PRIV lk__pulled lk__wire_no_bytes(lk__wire *w) {
    bool empty = errno == EAGAIN || errno == EWOULDBLOCK;
    if (empty && !w->broken) return LK__PULL_DONE;
    llmkit_error error;
    lk__fail_os(&error, LLMKIT_E_IO, empty ? w->broken : errno, "the connection broke");
    return lk__wire_fail(w, &error);
}

LK__PRIV lk__pulled lk__wire_pull_plain(lk__wire *w) {
    ssize_t n = lk__wire_recv(w);
    if (n < 0) return lk__wire_no_bytes(w);
    if (n == 0) return lk__wire_fail(w, NULL);
    if (!lk__wire_deliver(w, lk__str((const char *)lk__loop_scratch(w->loop), (size_t)n)))
        return LK__PULL_GONE;
    return n == LLMKIT_READ_BYTES ? LK__PULL_MORE : LK__PULL_DONE;
}

#if LLMKIT_WITH_TLS
LK__PRIV lk__pulled lk__wire_tls_closed(lk__wire *w) {
    llmkit_error error;
    bool failed = lk__tls_why(w->tls, &error) != LLMKIT_OK;
    lk__wire_flush_records(w); /* the alert that says why, if it goes out at once */
    return lk__wire_fail(w, failed ? &error : NULL);
}

/* Everything the engine can do without more input.  False: the wire is gone. */
LK__PRIV bool lk__wire_turn(lk__wire *w) {
    for (;;) {
        if (!w->ready && lk__tls_ready(w->tls)) {
            w->ready = true;
            if (w->ops->ready && !lk__wire_tell(w, w->ops->ready)) return false;
            lk__wire_push_tls(w);
        }
        unsigned wants = lk__tls_wants(w->tls);
        if (wants & LK__TLS_CLOSED) return lk__wire_tls_closed(w) != LK__PULL_GONE;
        if ((wants & LK__TLS_SEND_WIRE) && lk__wire_flush_records(w)) continue;
        if (!(wants & LK__TLS_RECV_APP) || w->paused) return true;
        /* Out of the engine's only buffer first, so that the owner can answer at once. */
        size_t len;
        const uint8_t *bytes = lk__tls_buf(w->tls, LK__TLS_RECV_APP, &len);
        uint8_t *plain = lk__loop_scratch(w->loop) + LLMKIT_READ_BYTES;
        if (len > LK__RECORD_BYTES) len = LK__RECORD_BYTES;
        memcpy(plain, bytes, len);
        lk__tls_ack(w->tls, LK__TLS_RECV_APP, len);
        if (!lk__wire_deliver(w, lk__str((const char *)plain, len))) return false;
    }
}

/* Feeds the engine and keeps what it cannot take now.  False: the wire is gone. */
LK__PRIV bool lk__wire_decrypt(lk__wire *w, llmkit_str bytes) {
    while (bytes.len > 0 && (lk__tls_wants(w->tls) & LK__TLS_RECV_WIRE)) {
        size_t room;
        uint8_t *at = lk__tls_buf(w->tls, LK__TLS_RECV_WIRE, &room);
        size_t n = room < bytes.len ? room : bytes.len;
        memcpy(at, bytes.ptr, n);
        lk__tls_ack(w->tls, LK__TLS_RECV_WIRE, n);
        bytes = lk__str_from(bytes, n);
        if (!lk__wire_turn(w)) return false;
    }
    if (bytes.len == 0) return true;
    lk__buf_str(&w->in, bytes);
    if (!w->in.failed) return true;
    llmkit_error error;
    lk__fail(&error, w->in.failed, "no memory for bytes received early");
    return lk__wire_fail(w, &error) != LK__PULL_GONE;
}

/* What was kept while the engine was busy goes before anything newer.  False: the wire is gone. */
LK__PRIV bool lk__wire_replay(lk__wire *w) {
    if (!lk__wire_turn(w)) return false;
    if (w->in.len == 0) return true;
    lk__buf kept = w->in;
    lk__buf_init(&w->in, kept.env, kept.max);
    bool open = lk__wire_decrypt(w, lk__buf_view(&kept));
    lk__buf_free(&kept);
    return open;
}

LK__PRIV lk__pulled lk__wire_pull_tls(lk__wire *w) {
    if (!lk__wire_replay(w)) return LK__PULL_GONE;
    if (w->in.len > 0) return LK__PULL_DONE;
    ssize_t n = lk__wire_recv(w);
    if (n < 0) return lk__wire_no_bytes(w);
    if (n == 0) {
        llmkit_error error;
        lk__fail(&error, w->ready ? LLMKIT_E_TRUNCATED : LLMKIT_E_TLS,
                 "the peer closed the connection %s",
                 w->ready ? "without TLS close_notify" : "in the TLS handshake");
        return lk__wire_fail(w, &error);
    }
    if (!lk__wire_decrypt(w, lk__str((const char *)lk__loop_scratch(w->loop), (size_t)n)))
        return LK__PULL_GONE;
    return n == LLMKIT_READ_BYTES ? LK__PULL_MORE : LK__PULL_DONE;
}
#endif

LK__PRIV lk__pulled lk__wire_pull(lk__wire *w) {
#if LLMKIT_WITH_TLS
    if (w->tls) return lk__wire_pull_tls(w);
#endif
    return lk__wire_pull_plain(w);
}

LK__PRIV void lk__wire_pull_some(lk__wire *w) {
    lk__pulled pulled = LK__PULL_MORE;
    for (int i = 0; i < LK__WIRE_READS && pulled == LK__PULL_MORE && !w->paused; i++)
        if ((pulled = lk__wire_pull(w)) == LK__PULL_GONE) return;
#if LLMKIT_WITH_TLS
    /* What was written while the engine was in the middle of a record from the peer. */
    if (w->tls && lk__wire_waiting(w) > 0 && !lk__wire_on_writable(w)) return;
#endif
    lk__wire_watch(w);
}

/* ---- the loop's side ------------------------------------------------------------------------- */

LK__PRIV void lk__wire_on_io(lk__io *io, unsigned events) {
    lk__wire *w = LK__CONTAINER(io, lk__wire, io);
    if ((events & LLMKIT_WRITE) && (w->io.events & LLMKIT_WRITE) && !lk__wire_on_writable(w))
        return;
    lk__wire_pull_some(w);
}

LK__PRIV void lk__wire_on_again(lk__task *task) {
    lk__wire *w = LK__CONTAINER(task, lk__wire, again);
    lk__wire_pull_some(w);
}

/* ---- opening and closing --------------------------------------------------------------------- */

LK__PRIV llmkit_err lk__wire_open(lk__wire *w, llmkit_loop *loop, int fd, const lk__wire_ops *ops,
                                  llmkit_tls *tls, const char *host, uint16_t port,
                                  llmkit_error *error) {
    const llmkit_env *env = lk__loop_env(loop);
    memset(w, 0, sizeof *w);
    w->ops = ops;
    w->ready = !tls;
    w->io.fd = fd;
    w->again.fn = lk__wire_on_again;
    lk__buf_init(&w->out, env, 0);
    int on = 1; /* replies and requests are written whole; waiting for more only delays them */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    llmkit_err err = LLMKIT_OK;
#if LLMKIT_WITH_TLS
    lk__buf_init(&w->in, env, 2 * (size_t)LLMKIT_READ_BYTES);
    lk__buf_init(&w->record, env, 0);
    if (tls && !(w->tls = lk__tls_open(tls, env, host, port, error))) err = error->code;
#else
    (void)host, (void)port;
    if (tls) err = lk__fail_disabled(error, "LLMKIT_WITH_TLS");
#endif
    if (!err && (err = lk__io_start(loop, &w->io, fd, LLMKIT_READ, lk__wire_on_io)))
        lk__fail(error, err, "the socket could not be watched");
    if (err) {
#if LLMKIT_WITH_TLS
        lk__tls_free(w->tls);
#endif
        lk__loop_sys(loop)->close(fd);
        return err;
    }
    w->loop = loop;
    lk__wire_push(w); /* a client's first flight */
    lk__wire_watch(w);
    return LLMKIT_OK;
}

LK__PRIV void lk__wire_close(lk__wire *w) {
    if (!lk__wire_is_open(w)) return;
    int fd = w->io.fd;
    lk__undefer(w->loop, &w->again);
    lk__io_stop(w->loop, &w->io);
    lk__loop_sys(w->loop)->close(fd);
    lk__wire_drop_out(w);
#if LLMKIT_WITH_TLS
    lk__buf_free(&w->in);
    lk__buf_free(&w->record);
    lk__tls_free(w->tls);
    w->tls = NULL;
#endif
    if (w->gone) *w->gone = true;
    w->gone = NULL;
    w->loop = NULL;
}

LK__PRIV void lk__wire_pause(lk__wire *w) {
    if (!lk__wire_is_open(w) || w->paused) return;
    w->paused = true;
    lk__wire_watch(w);
}

LK__PRIV void lk__wire_resume(lk__wire *w) {
    if (!lk__wire_is_open(w) || !w->paused) return;
    w->paused = false;
    lk__wire_watch(w);
#if LLMKIT_WITH_TLS
    if (w->tls) lk__defer(w->loop, &w->again); /* the engine may hold what no socket announces */
#endif
    if (w->broken) lk__defer(w->loop, &w->again);
}

/* ==== >>net/dial.h ============================================================================ */
/* net/dial.h -- a TCP or Unix connection to the first of several addresses that answers */

/* Addresses are tried in their order, the next one after 250 ms or as soon as one fails, while the
 * earlier ones go on (RFC 8305 section 5).  One dial, on the heap while it runs. */
typedef struct lk__dial lk__dial;

/* fn is called once, from the loop, unless the dial is stopped: with a connected non-blocking
 * descriptor, or -1 and the error of the address that failed last. */
LK__PRIV lk__dial *lk__dial_start(llmkit_loop *loop, const lk__addrs *addrs,
                                  void (*fn)(void *user, int fd, const llmkit_error *error),
                                  void *user);
LK__PRIV void lk__dial_stop(lk__dial *dial); /* NULL is fine */

/* ==== >>net/dial.c ============================================================================ */
/* net/dial.c -- connection attempts, staggered and raced (RFC 8305) */

#define LK__DIAL_STAGGER_NS (250 * LK__NS_PER_MS) /* RFC 8305 section 5, Connection Attempt Delay */
#define LK__DIAL_FULL_NS    (10 * LK__NS_PER_MS)  /* see lk__dial_try */

typedef struct lk__racer {
    lk__io    io;
    lk__dial *dial;
} lk__racer;

struct lk__dial {
    llmkit_loop *loop;
    lk__timer    stagger;
    lk__task     start;  /* the first attempt, so that no result comes from inside lk__dial_start */
    uint32_t     next;   /* address */
    uint32_t     racing; /* attempts that have not failed */
    llmkit_error error;  /* of the last one that did */
    lk__addrs    addrs;
    lk__racer    racers[LK__MAX_ADDRS];
    void       (*fn)(void *user, int fd, const llmkit_error *error);
    void        *user;
};

LK__PRIV void lk__dial_drop(lk__racer *racer) {
    if (racer->io.fd < 0) return;
    int fd = racer->io.fd;
    lk__io_stop(racer->dial->loop, &racer->io);
    lk__loop_sys(racer->dial->loop)->close(fd);
    racer->io.fd = -1;
    racer->dial->racing--;
}

LK__PRIV void lk__dial_stop(lk__dial *d) {
    if (!d) return;
    for (uint32_t i = 0; i < d->addrs.num; i++) lk__dial_drop(&d->racers[i]);
    lk__timer_stop(d->loop, &d->stagger);
    lk__undefer(d->loop, &d->start);
    lk__free(lk__loop_env(d->loop), d, sizeof *d);
}

LK__PRIV void lk__dial_finish(lk__dial *d, int fd) {
    void (*fn)(void *user, int fd, const llmkit_error *error) = d->fn;
    void *user = d->user;
    llmkit_error error = d->error;
    LK__ASSERT(fd >= 0 || error.code);
    lk__dial_stop(d);
    fn(user, fd, fd < 0 ? &error : NULL);
}

LK__PRIV void lk__dial_failed(lk__dial *d, const lk__addr *addr, int os_errno) {
    char text[INET6_ADDRSTRLEN] = "";
    if (addr->at.any.sa_family == AF_UNIX) {
        lk__fail_os(&d->error, LLMKIT_E_CONNECT, os_errno, "no connection to the socket %s",
                    addr->at.un.sun_path);
        return;
    }
    bool v6 = addr->at.any.sa_family == AF_INET6;
    uint16_t port = ntohs(v6 ? addr->at.v6.sin6_port : addr->at.v4.sin_port);
    inet_ntop(addr->at.any.sa_family,
              v6 ? (const void *)&addr->at.v6.sin6_addr : (const void *)&addr->at.v4.sin_addr, text,
              sizeof text);
    lk__fail_os(&d->error, LLMKIT_E_CONNECT, os_errno, "no connection to %s port %u", text, port);
}

LK__PRIV void lk__dial_go_on(lk__dial *d);

/* errno of a connection attempt: 0, it is connected; EINPROGRESS, neither that nor failed. */
LK__PRIV int lk__dial_outcome(int fd) {
    int failure = 0;
    socklen_t len = sizeof failure;
    lk__addr peer = { .len = sizeof peer.at };
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &len)) return errno;
    if (failure) return failure;
    if (getpeername(fd, &peer.at.any, &peer.len) == 0) return 0;
    return errno == ENOTCONN ? EINPROGRESS : errno;
}

/* Writable, or called without need. */
LK__PRIV void lk__dial_on_io(lk__io *io, unsigned ready) {
    (void)ready;
    lk__racer *racer = LK__CONTAINER(io, lk__racer, io);
    lk__dial *d = racer->dial;
    int failure = lk__dial_outcome(io->fd);
    if (failure == EINPROGRESS) return;
    if (failure) {
        lk__dial_failed(d, &d->addrs.addr[racer - d->racers], failure);
        lk__dial_drop(racer);
        lk__dial_go_on(d);
        return;
    }
    int fd = io->fd;
    lk__io_stop(d->loop, io);
    io->fd = -1;
    d->racing--;
    lk__dial_finish(d, fd);
}

/* True: an attempt is under way, or has won at once, in which case *won is its descriptor.  A Unix
 * socket does not queue where its backlog is full but answers EAGAIN (Linux connect(2)): then *full
 * is set, and the attempt is to be made again a little later. */
LK__PRIV bool lk__dial_try(lk__dial *d, uint32_t i, int *won, bool *full) {
    const lk__addr *addr = &d->addrs.addr[i];
    const lk__sys *sys = lk__loop_sys(d->loop);
    int fd = lk__socket_open(d->loop, addr->at.any.sa_family);
    int failure = fd < 0 || sys->connect(fd, &addr->at.any, addr->len) ? errno : 0;
    if (fd >= 0 && failure == 0) {
        *won = fd;
        return true;
    }
    if (fd >= 0 && failure == EINPROGRESS) {
        if (!lk__io_start(d->loop, &d->racers[i].io, fd, LLMKIT_WRITE, lk__dial_on_io)) {
            d->racing++;
            return true;
        }
        failure = ENOMEM; /* all that a poller needs */
        d->racers[i].io.fd = -1;
    }
    *full = fd >= 0 && failure == EAGAIN && addr->at.any.sa_family == AF_UNIX;
    lk__dial_failed(d, addr, failure);
    if (fd >= 0) sys->close(fd);
    return false;
}

/* Starts the next attempt, or ends the dial where none is left.  The stagger timer goes on; where
 * there is no memory for it, the attempts follow one another without a pause. */
LK__PRIV void lk__dial_go_on(lk__dial *d) {
    int won = -1;
    while (d->next < d->addrs.num && won < 0) {
        bool full = false;
        bool racing = lk__dial_try(d, d->next, &won, &full);
        int64_t pause = full ? LK__DIAL_FULL_NS : LK__DIAL_STAGGER_NS;
        if (!full) d->next++;
        if (!racing && !full) continue;
        if (won >= 0 || d->next == d->addrs.num) break;
        if (!lk__timer_set(d->loop, &d->stagger, lk__loop_now(d->loop) + pause)) return;
        if (full) break;
    }
    if (won >= 0 || d->racing == 0) lk__dial_finish(d, won);
}

LK__PRIV void lk__dial_on_stagger(lk__timer *timer) {
    lk__dial_go_on(LK__CONTAINER(timer, lk__dial, stagger));
}

LK__PRIV void lk__dial_on_start(lk__task *task) {
    lk__dial_go_on(LK__CONTAINER(task, lk__dial, start));
}

LK__PRIV lk__dial *lk__dial_start(llmkit_loop *loop, const lk__addrs *addrs,
                                  void (*fn)(void *user, int fd, const llmkit_error *error),
                                  void *user) {
    lk__dial *d = lk__alloc(lk__loop_env(loop), sizeof *d);
    if (!d) return NULL;
    d->loop = loop;
    d->addrs = *addrs;
    d->fn = fn;
    d->user = user;
    d->stagger.fn = lk__dial_on_stagger;
    d->start.fn = lk__dial_on_start;
    for (uint32_t i = 0; i < LK__MAX_ADDRS; i++) {
        d->racers[i].dial = d;
        d->racers[i].io.fd = -1;
    }
    lk__defer(loop, &d->start);
    return d;
}

#undef LK__DIAL_FULL_NS
#undef LK__DIAL_STAGGER_NS

/* ==== >>net/fetch.h =========================================================================== */
/* net/fetch.h -- one HTTP exchange with its deadlines, on a pool of kept-alive connections */

typedef struct lk__pool   lk__pool;   /* the connections of one client */
typedef struct lk__origin lk__origin; /* one scheme, host and port in it */
typedef struct lk__fetch  lk__fetch;

typedef struct lk__pool_desc {
    const llmkit_env *env;
    llmkit_loop      *loop;
    llmkit_tls       *tls; /* a reference is taken; NULL: made at the first https origin */
    uint32_t          max_connections; /* to each origin */
    int64_t           keep_alive_ns, max_age_ns, dns_ns;
    int64_t           connect_ns, tls_ns; /* deadlines of each connection attempt; 0: none */
} lk__pool_desc;

typedef struct lk__pool_stats {
    uint64_t connects, reused, resent;
    uint32_t open, idle;
} lk__pool_stats;

LK__PRIV lk__pool *lk__pool_create(const lk__pool_desc *desc, llmkit_error *error);
LK__PRIV void lk__pool_destroy(lk__pool *pool); /* no fetch is running; NULL is fine */
LK__PRIV lk__pool_stats lk__pool_read(const lk__pool *pool);
/* The origin of a URL; lives as long as the pool.  The same answer for the same origin. */
LK__PRIV lk__origin *lk__pool_origin(lk__pool *pool, const lk__url *url, llmkit_error *error);
LK__PRIV llmkit_str lk__origin_name(const lk__origin *origin); /* as in the Host field */
/* Opens connections until count are open, or one of them fails. */
LK__PRIV void lk__origin_warm(lk__origin *origin, uint32_t count);
LK__PRIV bool lk__origin_is_warming(const lk__origin *origin);

/* One exchange, embedded in its owner.  Zero is none.  The owner fills the first block and keeps
 * what it points to until done.  No callback comes from inside lk__fetch_start; any may call
 * lk__fetch_stop, and free the fetch after it. */
struct lk__fetch {
    lk__origin *origin;
    llmkit_str  head, body; /* of the request, ready for the wire */
    bool        head_only;  /* the method is HEAD: the response has no body */
    int64_t     first_byte_ns, idle_ns; /* 0: no such deadline */
    void      (*on_head)(lk__fetch *f, const lk__head *head);
    void      (*on_body)(lk__fetch *f, llmkit_str piece);
    /* The last callback: error NULL if the response came whole. */
    void      (*on_done)(lk__fetch *f, const llmkit_error *error);

    /* The fetch's own.  Times are the loop's, 0 where it has not come to that. */
    struct lk__conn *conn;
    lk__fetch       *next, *prev; /* among those that wait for a connection */
    lk__timer        timer;
    int64_t          asked_ns, sent_ns, first_ns, heard_ns;
    size_t           unsent; /* of the request, when the timer looked last */
    uint8_t          state;
    bool             fresh;   /* sent again, on a connection of its own */
    bool             untimed; /* there was no memory to set the timer: it fails soon */
    bool             paused;  /* for further exchanges too, until resumed */
};

LK__PRIV void lk__fetch_start(lk__fetch *f);
LK__PRIV void lk__fetch_stop(lk__fetch *f); /* no callback comes after; safe when it is over */
/* Stops reading; what has been read already still comes, so that a paused fetch may even end.  Its
 * deadlines stand still.  Safe when it is not running. */
LK__PRIV void lk__fetch_pause(lk__fetch *f);
LK__PRIV void lk__fetch_resume(lk__fetch *f);
/* Changes idle_ns of a running fetch: from now on. */
LK__PRIV void lk__fetch_set_idle(lk__fetch *f, int64_t idle_ns);

/* ==== >>net/fetch.c =========================================================================== */
/* net/fetch.c -- origins, their connections, and exchanges that wait for one or run on one */

/* Connections of a pool that are being set up at once: those in use should keep their pace, and a
 * TLS handshake costs 0.2 to 6 ms of CPU. */
enum { LK__MAX_OPENING = 64 };

typedef enum lk__conn_state {
    LK__CONN_DIALLING,
    LK__CONN_SHAKING, /* TLS handshake */
    LK__CONN_IDLE,
    LK__CONN_BUSY,
    LK__CONN_DEAD /* waiting to be freed */
} lk__conn_state;

typedef struct lk__conn {
    lk__wire         wire;
    lk__http         http;
    lk__origin      *origin;
    lk__dial        *dial;
    lk__fetch       *fetch;
    struct lk__conn *next, *prev;           /* all of the origin's */
    struct lk__conn *idle_next, *idle_prev; /* most recently used first */
    lk__timer        timer;                 /* connect, TLS or keep-alive */
    lk__task         reap;
    int64_t          born_ns, idle_ns;
    uint32_t         served;
    bool             heard; /* a byte of the present response has come */
    bool             starved; /* there was no memory for the rest of the request */
    uint8_t          state;
} lk__conn;

typedef enum lk__fetch_state {
    LK__FETCH_OFF,
    LK__FETCH_WAITING,  /* for a connection */
    LK__FETCH_SENT,     /* for the first byte */
    LK__FETCH_RECEIVING
} lk__fetch_state;

struct lk__origin {
    lk__origin  *next;
    lk__pool    *pool;
    char        *host, *unix_path;
    char        *name; /* the Host field */
    uint16_t     port;
    bool         tls;
    bool         proven;  /* a connection has been made, so that more can be made at once */
    bool         splits;  /* sends head and body apart: see quick_ack */
    bool         resolved; /* addrs are from the last lookup, which was at resolved_ns */
    uint32_t     num, opening;
    uint32_t     warm;    /* connections asked for ahead of need */
    lk__conn    *conns, *idle, *idle_last;
    lk__fetch   *waiting, *waiting_last;
    uint32_t     num_waiting, num_untimed;
    lk__task     work;    /* opens connections where some are wanted */
    lk__lookup   lookup;
    lk__addrs    addrs;
    int64_t      resolved_ns;
};

struct lk__pool {
    llmkit_env       env;
    lk__pool_desc    desc;
    lk__origin      *origins;
    uint32_t         opening;
    lk__pool_stats   stats;
};

LK__PRIV bool lk__conn_serve_next(lk__conn *c);
LK__PRIV void lk__conn_close(lk__conn *c);
LK__PRIV void lk__fetch_fail(lk__fetch *f, const llmkit_error *error);

LK__PRIV int64_t lk__origin_now(const lk__origin *o) {
    return lk__loop_now(o->pool->desc.loop);
}

LK__PRIV int64_t lk__deadline(int64_t now, int64_t after) { /* 0: none */
    return after ? now + after : LK__NEVER_NS;
}

/* Connections are opened from a task of their own, so that no failure is reported from inside
 * lk__fetch_start or in the middle of another's end. */
LK__PRIV void lk__origin_wake(lk__origin *o) {
    if (o->num_waiting || o->warm) lk__defer(o->pool->desc.loop, &o->work);
}

/* ---- the list of fetches that wait ----------------------------------------------------------- */

LK__PRIV void lk__waiting_add(lk__origin *o, lk__fetch *f, bool front) {
    lk__fetch *after = front ? NULL : o->waiting_last;
    f->prev = after;
    f->next = after ? after->next : o->waiting;
    *(f->prev ? &f->prev->next : &o->waiting) = f;
    *(f->next ? &f->next->prev : &o->waiting_last) = f;
    f->state = LK__FETCH_WAITING;
    o->num_waiting++;
}

LK__PRIV void lk__waiting_remove(lk__origin *o, lk__fetch *f) {
    *(f->prev ? &f->prev->next : &o->waiting) = f->next;
    *(f->next ? &f->next->prev : &o->waiting_last) = f->prev;
    f->next = f->prev = NULL;
    f->state = LK__FETCH_OFF;
    o->num_waiting--;
    o->num_untimed -= f->untimed;
    f->untimed = false;
}

/* ---- the life of a connection ---------------------------------------------------------------- */

/* Without a timer to end it a connection is not kept. */
LK__PRIV void lk__idle_add(lk__conn *c) {
    lk__origin *o = c->origin;
    c->idle_prev = NULL;
    c->idle_next = o->idle;
    *(o->idle ? &o->idle->idle_prev : &o->idle_last) = c;
    o->idle = c;
    c->state = LK__CONN_IDLE;
    c->idle_ns = lk__origin_now(o);
    o->pool->stats.idle++;
    int64_t until = lk__deadline(c->idle_ns, o->pool->desc.keep_alive_ns);
    if (lk__timer_set(o->pool->desc.loop, &c->timer, until)) lk__conn_close(c);
}

/* The timer is left running: it looks at what the connection does when it fires. */
LK__PRIV void lk__idle_remove(lk__conn *c) {
    lk__origin *o = c->origin;
    *(c->idle_prev ? &c->idle_prev->idle_next : &o->idle) = c->idle_next;
    *(c->idle_next ? &c->idle_next->idle_prev : &o->idle_last) = c->idle_prev;
    o->pool->stats.idle--;
}

LK__PRIV void lk__conn_free(lk__conn *c) {
    lk__origin *o = c->origin;
    *(c->prev ? &c->prev->next : &o->conns) = c->next;
    if (c->next) c->next->prev = c->prev;
    lk__undefer(o->pool->desc.loop, &c->reap);
    lk__http_free(&c->http);
    lk__free(&o->pool->env, c, sizeof *c);
}

/* A dead connection goes; one that found no memory for its request fails it first. */
LK__PRIV void lk__conn_on_reap(lk__task *task) {
    lk__conn *c = LK__CONTAINER(task, lk__conn, reap);
    if (c->state == LK__CONN_DEAD) {
        lk__conn_free(c);
    } else if (c->fetch && c->starved) {
        llmkit_error error;
        lk__fail(&error, LLMKIT_E_NOMEM, "no memory to send a request to %s", c->origin->name);
        lk__fetch_fail(c->fetch, &error);
    }
}

/* Set up or given up: the place among those under way is any origin's. */
LK__PRIV void lk__conn_opened(lk__conn *c) {
    c->origin->opening--;
    c->origin->pool->opening--;
    for (lk__origin *o = c->origin->pool->origins; o; o = o->next) lk__origin_wake(o);
}

/* Closes at once, frees later: a callback of the connection's may be running. */
LK__PRIV void lk__conn_close(lk__conn *c) {
    lk__origin *o = c->origin;
    if (c->state == LK__CONN_DEAD) return;
    if (c->state == LK__CONN_DIALLING || c->state == LK__CONN_SHAKING) lk__conn_opened(c);
    if (c->state == LK__CONN_IDLE) lk__idle_remove(c);
    c->state = LK__CONN_DEAD;
    o->num--;
    o->pool->stats.open--;
    lk__dial_stop(c->dial);
    c->dial = NULL;
    lk__wire_close(&c->wire);
    lk__timer_stop(o->pool->desc.loop, &c->timer);
    lk__defer(o->pool->desc.loop, &c->reap);
    lk__origin_wake(o);
}

/* ---- the end of a fetch ---------------------------------------------------------------------- */

LK__PRIV void lk__fetch_detach(lk__fetch *f) {
    lk__timer_stop(f->origin->pool->desc.loop, &f->timer);
    if (f->conn) {
        f->conn->fetch = NULL;
        lk__wire_resume(&f->conn->wire); /* the pause was the fetch's own */
    }
    f->conn = NULL;
    f->state = LK__FETCH_OFF;
}

LK__PRIV void lk__fetch_fail(lk__fetch *f, const llmkit_error *error) {
    if (f->state == LK__FETCH_WAITING) lk__waiting_remove(f->origin, f);
    lk__conn *c = f->conn;
    lk__fetch_detach(f);
    if (c) lk__conn_close(c);
    f->on_done(f, error);
}

/* How long a fetch waits where no connection comes to be; 0: for ever. */
LK__PRIV int64_t lk__origin_patience(const lk__origin *o) {
    const lk__pool_desc *desc = &o->pool->desc;
    if (!o->tls || o->lookup.job || !desc->connect_ns) return desc->connect_ns;
    return desc->tls_ns ? desc->connect_ns + desc->tls_ns : 0;
}

LK__PRIV void lk__fetch_timeout(lk__fetch *f, llmkit_deadline which, int64_t after_ns) {
    static const char *const what[] = {
        [LLMKIT_DEADLINE_CONNECT] = "no connection to %s within %lld ms (connect_ms)",
        [LLMKIT_DEADLINE_FIRST_BYTE] = "no reply from %s within %lld ms (first_byte_ms)",
        [LLMKIT_DEADLINE_IDLE] = "nothing more from %s for %lld ms (idle_ms)",
    };
    llmkit_error error;
    const char *format = what[which];
    char text[sizeof error.message];
    snprintf(text, sizeof text, format, f->origin->name, (long long)(after_ns / LK__NS_PER_MS));
    lk__fail(&error, LLMKIT_E_TIMEOUT, "%s", text);
    error.deadline = which;
    lk__fetch_fail(f, &error);
}

/* Deadlines move with what happens; the timer stays where it is and finds out when it fires. */
LK__PRIV void lk__fetch_on_timer(lk__timer *timer) {
    lk__fetch *f = LK__CONTAINER(timer, lk__fetch, timer);
    lk__origin *o = f->origin;
    int64_t now = lk__origin_now(o), due = LK__NEVER_NS, after = 0;
    llmkit_deadline which = LLMKIT_DEADLINE_IDLE;
    if (f->paused) return;
    if (f->state == LK__FETCH_WAITING) {
        /* Not while the origin works and is merely full: then the wait is a queue. */
        after = lk__origin_patience(o);
        due = lk__deadline(o->num > o->opening ? now : f->asked_ns, after);
        which = LLMKIT_DEADLINE_CONNECT;
        lk__origin_wake(o);
    } else if (f->state == LK__FETCH_SENT) {
        /* A large request on a slow line is not sent yet; the server is silent only after. */
        size_t unsent = lk__wire_unsent(&f->conn->wire);
        if (unsent < f->unsent) f->sent_ns = now;
        f->unsent = unsent;
        after = f->first_byte_ns;
        due = lk__deadline(f->sent_ns, after);
        which = LLMKIT_DEADLINE_FIRST_BYTE;
    } else if (f->state == LK__FETCH_RECEIVING) {
        after = f->idle_ns;
        due = lk__deadline(f->heard_ns, after);
    }
    if (due > now)
        lk__timer_set(o->pool->desc.loop, timer, due);
    else
        lk__fetch_timeout(f, which, after);
}

/* The response is complete: the connection first, so that what done starts can use it. */
LK__PRIV void lk__fetch_finish(lk__fetch *f, bool reusable) {
    lk__conn *c = f->conn;
    lk__origin *o = f->origin;
    lk__fetch_detach(f);
    int64_t now = lk__origin_now(o);
    reusable = reusable && !c->wire.broken && lk__wire_unsent(&c->wire) == 0;
    if (!reusable || now - c->born_ns >= o->pool->desc.max_age_ns)
        lk__conn_close(c);
    else if (!lk__conn_serve_next(c))
        lk__idle_add(c);
    f->on_done(f, NULL);
}

LK__PRIV void lk__fetch_wait(lk__fetch *f, bool front) {
    lk__origin *o = f->origin;
    f->asked_ns = lk__origin_now(o);
    lk__waiting_add(o, f, front);
    /* The first look is after connect_ns: a lookup may take no longer. */
    f->untimed = lk__timer_set(o->pool->desc.loop, &f->timer,
                               lk__deadline(f->asked_ns, o->pool->desc.connect_ns)) != LLMKIT_OK;
    o->num_untimed += f->untimed;
    lk__origin_wake(o);
}

/* A kept-alive connection that dies before a byte of the reply was closed by the server while the
 * request was under way: it is sent again at once, on a new connection, and not counted. */
LK__PRIV void lk__fetch_again(lk__fetch *f) {
    lk__origin *o = f->origin;
    lk__conn_close(f->conn);
    lk__fetch_detach(f);
    f->fresh = true;
    o->pool->stats.resent++;
    lk__fetch_wait(f, true);
}

/* ---- a connection at work -------------------------------------------------------------------- */

LK__PRIV void lk__conn_assign(lk__conn *c, lk__fetch *f) {
    lk__pool *pool = c->origin->pool;
    int64_t now = lk__loop_now(pool->desc.loop);
    c->state = LK__CONN_BUSY;
    c->fetch = f;
    c->heard = c->starved = false;
    c->http.no_body = f->head_only;
    c->wire.quick_ack = c->origin->splits;
    if (c->served++) pool->stats.reused++;
    f->conn = c;
    f->state = LK__FETCH_SENT;
    f->sent_ns = now;
    f->first_ns = f->heard_ns = 0;
    llmkit_str pieces[2] = { f->head, f->body };
    c->starved = lk__timer_set(pool->desc.loop, &f->timer, lk__deadline(now, f->first_byte_ns)) ||
                 lk__wire_write(&c->wire, pieces, 2);
    f->unsent = lk__wire_unsent(&c->wire);
    if (c->starved)
        lk__defer(pool->desc.loop, &c->reap);
    else if (f->paused)
        lk__wire_pause(&c->wire);
}

/* Gives the connection to the first that waits; one that was sent before wants a new one. */
LK__PRIV bool lk__conn_serve_next(lk__conn *c) {
    lk__fetch *f = c->origin->waiting;
    while (f && f->fresh && c->served > 0) f = f->next;
    if (!f) return false;
    lk__waiting_remove(c->origin, f);
    lk__conn_assign(c, f);
    return true;
}

/* Where it is set up: to work, or to wait for some. */
LK__PRIV void lk__conn_set_up(lk__conn *c) {
    lk__origin *o = c->origin;
    lk__conn_opened(c);
    o->proven = true;
    if (!lk__conn_serve_next(c)) lk__idle_add(c);
    lk__origin_wake(o);
}

LK__PRIV void lk__origin_fail(lk__origin *o, uint32_t victims, const llmkit_error *error) {
    while (victims-- > 0 && o->waiting) lk__fetch_fail(o->waiting, error);
}

/* A connection could not be set up: the one that waits longest hears of it; all of them, where the
 * next attempt would end the same way. */
LK__PRIV void lk__conn_failed(lk__conn *c, const llmkit_error *error) {
    lk__origin *o = c->origin;
    uint32_t victims = error->code == LLMKIT_E_CERT || error->code == LLMKIT_E_DISABLED
                           ? o->num_waiting : 1;
    lk__conn_close(c);
    o->warm = 0;
    o->resolved = false; /* the host may have moved */
    lk__origin_fail(o, victims, error);
}

LK__PRIV void lk__conn_broken(lk__conn *c, const llmkit_error *why) {
    lk__fetch *f = c->fetch;
    if (c->state == LK__CONN_SHAKING) {
        llmkit_error error;
        if (!why) lk__fail(&error, LLMKIT_E_TLS, "%s closed the connection", c->origin->name);
        lk__conn_failed(c, why ? why : &error);
        return;
    }
    if (!f) { /* idle */
        lk__conn_close(c);
        return;
    }
    if (!c->heard && c->served > 1 && !f->fresh) {
        lk__fetch_again(f);
        return;
    }
    if (lk__http_eof(&c->http) == LK__HTTP_END && !why) {
        lk__fetch_finish(f, false);
        return;
    }
    llmkit_error error;
    lk__fail(&error, why && c->heard ? why->code : LLMKIT_E_TRUNCATED,
             "%s ended the connection %s%s%s", c->origin->name,
             c->heard ? "in the middle of its reply" : "without a reply", why ? ": " : "",
             why ? why->message : "");
    if (why) error.os_errno = why->os_errno;
    lk__fetch_fail(f, &error);
}

LK__PRIV void lk__conn_on_closed(lk__wire *w, const llmkit_error *error) {
    lk__conn_broken(LK__CONTAINER(w, lk__conn, wire), error);
}

LK__PRIV void lk__conn_on_tls(lk__wire *w) {
    lk__conn_set_up(LK__CONTAINER(w, lk__conn, wire));
}

LK__PRIV void lk__conn_first_byte(lk__conn *c, lk__fetch *f) {
    c->heard = true;
    f->state = LK__FETCH_RECEIVING;
    f->first_ns = f->heard_ns;
    int64_t due = lk__deadline(f->heard_ns, f->idle_ns);
    lk__timer_set(c->origin->pool->desc.loop, &f->timer, due);
}

/* Only 1xx responses have come so far: the reply itself is awaited as before. */
LK__PRIV void lk__conn_interim(lk__conn *c, lk__fetch *f) {
    f->state = LK__FETCH_SENT;
    f->first_ns = 0;
    int64_t due = lk__deadline(f->sent_ns, f->first_byte_ns);
    lk__timer_set(c->origin->pool->desc.loop, &f->timer, due);
}

LK__PRIV void lk__conn_on_bytes(lk__wire *w, llmkit_str bytes) {
    lk__conn *c = LK__CONTAINER(w, lk__conn, wire);
    lk__fetch *f = c->fetch;
    if (!f) { /* nobody asked */
        lk__conn_close(c);
        return;
    }
    f->heard_ns = lk__origin_now(c->origin);
    if (f->state == LK__FETCH_SENT) lk__conn_first_byte(c, f);
    lk__head head;
    llmkit_str piece;
    while (c->fetch == f) { /* a callback may stop the fetch, and free it */
        switch (lk__http_feed(&c->http, &bytes, &head, &piece)) {
        case LK__HTTP_MORE:
            if (c->http.interim > 0) lk__conn_interim(c, f);
            return;
        case LK__HTTP_HEAD:
            if (bytes.len == 0 && head.length > 0) c->origin->splits = c->wire.quick_ack = true;
            f->on_head(f, &head);
            break;
        case LK__HTTP_BODY:
            f->on_body(f, piece);
            break;
        case LK__HTTP_END:
            lk__fetch_finish(f, c->http.keep_alive && bytes.len == 0);
            return;
        case LK__HTTP_ERROR: {
            llmkit_error error;
            lk__fail(&error, c->http.error, "%s broke HTTP: %s", c->origin->name, c->http.reason);
            lk__fetch_fail(f, &error);
            return;
        }
        }
    }
}

LK__PRIV const lk__wire_ops *lk__conn_ops(void) {
    static const lk__wire_ops ops = {
        .ready = lk__conn_on_tls, .read = lk__conn_on_bytes, .closed = lk__conn_on_closed
    };
    return &ops;
}

/* ---- setting up connections ------------------------------------------------------------------ */

LK__PRIV void lk__conn_timed_out(lk__conn *c, llmkit_deadline which, int64_t after_ns) {
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_TIMEOUT, which == LLMKIT_DEADLINE_TLS
             ? "no TLS handshake with %s within %lld ms (tls_ms)"
             : "no connection to %s within %lld ms (connect_ms)",
             c->origin->name, (long long)(after_ns / LK__NS_PER_MS));
    error.deadline = which;
    lk__conn_failed(c, &error);
}

LK__PRIV void lk__conn_on_timer(lk__timer *timer) {
    lk__conn *c = LK__CONTAINER(timer, lk__conn, timer);
    const lk__pool_desc *desc = &c->origin->pool->desc;
    if (c->state == LK__CONN_DIALLING)
        lk__conn_timed_out(c, LLMKIT_DEADLINE_CONNECT, desc->connect_ns);
    else if (c->state == LK__CONN_SHAKING)
        lk__conn_timed_out(c, LLMKIT_DEADLINE_TLS, desc->tls_ns);
    else if (c->state == LK__CONN_IDLE)
        lk__conn_close(c);
}

LK__PRIV void lk__conn_on_dialled(void *user, int fd, const llmkit_error *why) {
    lk__conn *c = user;
    lk__origin *o = c->origin;
    const lk__pool_desc *desc = &o->pool->desc;
    llmkit_error error;
    c->dial = NULL;
    if (fd < 0) {
        lk__conn_failed(c, why);
        return;
    }
    if (lk__wire_open(&c->wire, desc->loop, fd, lk__conn_ops(), o->tls ? desc->tls : NULL, o->host,
                      o->port, &error)) {
        lk__conn_failed(c, &error);
        return;
    }
    o->pool->stats.connects++;
    if (o->tls) {
        c->state = LK__CONN_SHAKING;
        lk__timer_set(desc->loop, &c->timer, lk__deadline(lk__loop_now(desc->loop), desc->tls_ns));
    } else {
        lk__conn_set_up(c);
    }
}

LK__PRIV bool lk__origin_open_one(lk__origin *o) {
    lk__pool *pool = o->pool;
    llmkit_loop *loop = pool->desc.loop;
    lk__conn *c = lk__alloc(&pool->env, sizeof *c);
    if (!c) return false;
    c->origin = o;
    c->timer.fn = lk__conn_on_timer;
    c->reap.fn = lk__conn_on_reap;
    c->born_ns = lk__loop_now(loop);
    int64_t due = lk__deadline(c->born_ns, pool->desc.connect_ns);
    c->dial = lk__dial_start(loop, &o->addrs, lk__conn_on_dialled, c);
    if (!c->dial || lk__timer_set(loop, &c->timer, due)) {
        lk__dial_stop(c->dial);
        lk__free(&pool->env, c, sizeof *c);
        return false;
    }
    lk__http_init(&c->http, &pool->env, false, LLMKIT_MAX_HEAD_BYTES);
    c->next = o->conns;
    if (c->next) c->next->prev = c;
    o->conns = c;
    o->num++;
    o->opening++;
    pool->opening++;
    pool->stats.open++;
    return true;
}

/* How many should be under way now.  Until one has succeeded only one is: a server that does not
 * answer is not asked a thousand times, and what TLS session it grants serves all that follow. */
LK__PRIV uint32_t lk__origin_wants(const lk__origin *o) {
    uint32_t ready = o->num - o->opening;
    uint32_t warm = o->warm > ready ? o->warm - ready : 0;
    uint32_t wants = o->num_waiting > warm ? o->num_waiting : warm;
    return o->tls && !o->proven && wants > 1 ? 1 : wants;
}

/* Where others are there or under way, those that wait can go on waiting. */
LK__PRIV void lk__origin_no_memory(lk__origin *o) {
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_NOMEM, "no memory for a connection to %s", o->name);
    o->warm = 0;
    if (o->opening > 0 || !o->waiting || (o->num > 0 && !o->waiting->fresh)) return;
    lk__origin_fail(o, 1, &error);
    lk__origin_wake(o);
}

/* Those that would wait without a deadline. */
LK__PRIV void lk__origin_fail_untimed(lk__origin *o) {
    llmkit_error error;
    while (o->num_untimed > 0) {
        lk__fetch *f = o->waiting;
        while (!f->untimed) f = f->next;
        lk__fail(&error, LLMKIT_E_NOMEM, "no memory to wait for a connection to %s", o->name);
        lk__fetch_fail(f, &error);
    }
}

LK__PRIV void lk__origin_on_lookup(lk__lookup *lookup, const lk__addrs *addrs,
                                   const llmkit_error *error) {
    lk__origin *o = LK__CONTAINER(lookup, lk__origin, lookup);
    if (!error) o->addrs = *addrs;
    if (o->addrs.num > 0 && (!error || error->retryable)) { /* the old ones while DNS is down */
        o->resolved = true;
        o->resolved_ns = lk__origin_now(o);
        lk__origin_wake(o);
        return;
    }
    o->warm = 0;
    o->addrs.num = 0;
    lk__origin_fail(o, o->num_waiting, error);
}

/* True: the addresses are there and new enough.  Old ones are used when a new lookup fails to
 * start. */
LK__PRIV bool lk__origin_resolved(lk__origin *o) {
    int64_t now = lk__origin_now(o);
    if (o->unix_path) return true;
    if (o->lookup.job) return false;
    if (o->resolved && now - o->resolved_ns < o->pool->desc.dns_ns) return true;
    llmkit_error error;
    if (!lk__lookup_start(o->pool->desc.loop, &o->lookup, lk__str_z(o->host), o->port, &error))
        return false;
    if (o->addrs.num > 0) return true;
    o->warm = 0;
    lk__origin_fail(o, o->num_waiting, &error);
    return false;
}

LK__PRIV void lk__origin_on_work(lk__task *task) {
    lk__origin *o = LK__CONTAINER(task, lk__origin, work);
    lk__pool *pool = o->pool;
    lk__origin_fail_untimed(o);
    if (o->num - o->opening >= o->warm) o->warm = 0;
    while (o->opening < lk__origin_wants(o) && o->num < pool->desc.max_connections &&
           pool->opening < LK__MAX_OPENING && lk__origin_resolved(o)) {
        if (!lk__origin_open_one(o)) {
            lk__origin_no_memory(o);
            return;
        }
    }
}

LK__PRIV void lk__origin_warm(lk__origin *o, uint32_t count) {
    o->warm = count < o->pool->desc.max_connections ? count : o->pool->desc.max_connections;
    lk__origin_wake(o);
}

LK__PRIV bool lk__origin_is_warming(const lk__origin *o) {
    return o->warm > 0;
}

/* ---- the fetch's own calls ------------------------------------------------------------------- */

LK__PRIV lk__conn *lk__origin_take_idle(lk__origin *o) {
    int64_t now = lk__origin_now(o);
    while (o->idle) {
        lk__conn *c = o->idle;
        if (now - c->born_ns < o->pool->desc.max_age_ns) {
            lk__idle_remove(c);
            return c;
        }
        lk__conn_close(c);
    }
    return NULL;
}

LK__PRIV void lk__fetch_start(lk__fetch *f) {
    f->timer.fn = lk__fetch_on_timer;
    f->fresh = false;
    f->asked_ns = lk__origin_now(f->origin);
    f->sent_ns = f->first_ns = f->heard_ns = 0;
    /* While one is idle, only those wait that were sent again and want a new one. */
    lk__conn *c = lk__origin_take_idle(f->origin);
    if (c)
        lk__conn_assign(c, f);
    else
        lk__fetch_wait(f, false);
}

LK__PRIV void lk__fetch_stop(lk__fetch *f) {
    if (f->state == LK__FETCH_OFF) return;
    if (f->state == LK__FETCH_WAITING) lk__waiting_remove(f->origin, f);
    lk__conn *c = f->conn;
    lk__fetch_detach(f);
    if (c) lk__conn_close(c); /* what is left of the reply would be in the way of the next */
}

LK__PRIV void lk__fetch_pause(lk__fetch *f) {
    f->paused = true;
    if (f->conn) lk__wire_pause(&f->conn->wire);
}

LK__PRIV void lk__fetch_resume(lk__fetch *f) {
    if (!f->paused) return;
    f->paused = false;
    int64_t now = lk__origin_now(f->origin);
    if (f->state == LK__FETCH_WAITING) f->asked_ns = now;
    if (f->state == LK__FETCH_SENT) f->sent_ns = now;
    f->heard_ns = now;
    if (f->state != LK__FETCH_OFF) lk__timer_set(f->origin->pool->desc.loop, &f->timer, now);
    if (f->conn) lk__wire_resume(&f->conn->wire);
}

LK__PRIV void lk__fetch_set_idle(lk__fetch *f, int64_t idle_ns) {
    llmkit_loop *loop = f->origin->pool->desc.loop;
    f->idle_ns = idle_ns;
    if (f->state == LK__FETCH_RECEIVING)
        lk__timer_set(loop, &f->timer, lk__deadline(lk__loop_now(loop), idle_ns));
}

/* ---- pool and origins ------------------------------------------------------------------------ */

LK__PRIV lk__pool *lk__pool_create(const lk__pool_desc *desc, llmkit_error *error) {
    lk__pool *pool = lk__alloc(desc->env, sizeof *pool);
    if (!pool) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a connection pool");
        return NULL;
    }
    pool->env = *desc->env;
    pool->desc = *desc;
    if (desc->tls) lk__tls_retain(desc->tls);
    return pool;
}

LK__PRIV void lk__origin_free(lk__origin *o) {
    const llmkit_env *env = &o->pool->env;
    llmkit_loop *loop = o->pool->desc.loop;
    lk__lookup_cancel(loop, &o->lookup);
    while (o->conns) {
        lk__conn_close(o->conns);
        lk__conn_free(o->conns);
    }
    lk__undefer(loop, &o->work);
    lk__strfree(env, o->host);
    lk__strfree(env, o->unix_path);
    lk__strfree(env, o->name);
    lk__free(env, o, sizeof *o);
}

LK__PRIV void lk__pool_destroy(lk__pool *pool) {
    if (!pool) return;
    while (pool->origins) {
        lk__origin *o = pool->origins;
        o->warm = 0;
        pool->origins = o->next;
        lk__origin_free(o);
    }
    llmkit_env env = pool->env;
    llmkit_tls_release(pool->desc.tls);
    lk__free(&env, pool, sizeof *pool);
}

LK__PRIV lk__pool_stats lk__pool_read(const lk__pool *pool) {
    return pool->stats;
}

LK__PRIV llmkit_str lk__origin_name(const lk__origin *o) {
    return lk__str_z(o->name);
}

LK__PRIV bool lk__origin_is(const lk__origin *o, const lk__url *url, llmkit_str name) {
    return o->tls == url->tls && lk__str_ieq(lk__str_z(o->name), name) &&
           lk__str_eq(lk__str_z(o->unix_path), url->unix_path);
}

LK__PRIV char *lk__dup_view(const llmkit_env *env, llmkit_str text) {
    char *copy = lk__alloc(env, text.len + 1); /* which lk__strfree gives back: no NUL inside */
    if (copy && text.len) memcpy(copy, text.ptr, text.len);
    return copy;
}

LK__PRIV llmkit_err lk__origin_set_unix(lk__origin *o, llmkit_str path, llmkit_error *error) {
    lk__addr *addr = &o->addrs.addr[0];
    if (path.len >= sizeof addr->at.un.sun_path)
        return lk__fail(error, LLMKIT_E_ARG, "the socket path is over %zu bytes: %.*s",
                        sizeof addr->at.un.sun_path - 1, LK__ARG(path));
    addr->at.un.sun_family = AF_UNIX;
    memcpy(addr->at.un.sun_path, path.ptr, path.len);
    addr->len = sizeof addr->at.un;
    o->addrs.num = 1;
    return LLMKIT_OK;
}

LK__PRIV lk__origin *lk__origin_create(lk__pool *pool, const lk__url *url, llmkit_str name,
                                       llmkit_error *error) {
    lk__origin *o = lk__alloc(&pool->env, sizeof *o);
    if (!o) goto no_memory;
    o->pool = pool;
    o->tls = url->tls;
    o->port = url->port;
    o->work.fn = lk__origin_on_work;
    o->lookup.fn = lk__origin_on_lookup;
    o->host = lk__dup_view(&pool->env, url->host);
    o->name = lk__dup_view(&pool->env, name);
    o->unix_path = url->unix_path.len ? lk__dup_view(&pool->env, url->unix_path) : NULL;
    if (!o->host || !o->name || (url->unix_path.len && !o->unix_path)) goto no_memory;
    if (o->unix_path && lk__origin_set_unix(o, url->unix_path, error)) {
        lk__origin_free(o);
        return NULL;
    }
    o->next = pool->origins;
    pool->origins = o;
    return o;
no_memory:
    lk__fail(error, LLMKIT_E_NOMEM, "no memory for a host");
    if (o) lk__origin_free(o);
    return NULL;
}

LK__PRIV lk__origin *lk__pool_origin(lk__pool *pool, const lk__url *url, llmkit_error *error) {
    if (url->tls && !pool->desc.tls) {
        llmkit_tls_desc desc = { .env = pool->env };
        pool->desc.tls = llmkit_tls_create(&desc, error);
        if (!pool->desc.tls) return NULL;
    }
    lk__buf name;
    lk__buf_init(&name, &pool->env, 0);
    lk__url_host_field(url, &name);
    lk__origin *o = pool->origins;
    while (o && !lk__origin_is(o, url, lk__buf_view(&name))) o = o->next;
    if (!o && name.failed) lk__fail(error, name.failed, "no memory for a host");
    if (!o && !name.failed) o = lk__origin_create(pool, url, lk__buf_view(&name), error);
    lk__buf_free(&name);
    return o;
}

/* ==== >>llm/codec.h =========================================================================== */
/* llm/codec.h -- a dialect: how a request is written and a reply is read, without sockets */

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

/* ==== >>llm/codec.c =========================================================================== */
/* llm/codec.c -- what all dialects share in reading a stream */

enum { LK__PATTERN_BYTES = 2048 }; /* longer events are read in full each time */

LK__PRIV void lk__answer_init(lk__answer *a, const llmkit_env *env) {
    memset(a, 0, sizeof *a);
    a->env = env;
    lk__buf_init(&a->pattern, env, LK__PATTERN_BYTES);
}

LK__PRIV void lk__answer_reset(lk__answer *a) {
    for (uint32_t i = 0; i < a->num_tools; i++) {
        lk__buf_free(&a->tools[i].id);
        lk__buf_free(&a->tools[i].name);
        lk__buf_free(&a->tools[i].arguments);
    }
    lk__free(a->env, a->tools, a->cap_tools * sizeof *a->tools);
    a->tools = NULL;
    a->num_tools = a->cap_tools = 0;
    a->usage = (llmkit_usage){ -1, -1, -1, -1 };
    a->finish = LLMKIT_UNFINISHED;
    a->finish_text[0] = '\0';
    a->complete = a->started = false;
    lk__buf_clear(&a->pattern);
}

LK__PRIV void lk__answer_free(lk__answer *a) {
    lk__answer_reset(a);
    lk__buf_free(&a->pattern);
}

LK__PRIV bool lk__answer_emit(lk__answer *a, llmkit_event *event) {
    a->told++;
    return a->emit(a->user, event);
}

LK__PRIV void lk__answer_learn(lk__answer *a, llmkit_str data, llmkit_str raw,
                               llmkit_str padding) {
    lk__buf_clear(&a->pattern);
    a->hole[0] = (size_t)(raw.ptr - data.ptr) - 1; /* with the quotes */
    a->hole_len[0] = raw.len + 2;
    a->hole[1] = padding.ptr ? (size_t)(padding.ptr - data.ptr) - 1 : data.len;
    a->hole_len[1] = padding.ptr ? padding.len + 2 : 0;
    if (data.len < LK__PATTERN_BYTES) lk__buf_str(&a->pattern, data);
}

/* The bytes of the pattern from at to end, and then a string in place of the one there. */
LK__PRIV bool lk__answer_step(const lk__answer *a, size_t at, size_t end, llmkit_str *data,
                              llmkit_str *string) {
    size_t len = end - at;
    if (data->len < len || memcmp(data->ptr, a->pattern.ptr + at, len) != 0) return false;
    *data = lk__str_from(*data, len);
    string->ptr = data->ptr;
    string->len = lk__json_string_len(*data);
    *data = lk__str_from(*data, string->len);
    return true;
}

LK__PRIV bool lk__answer_fits(const lk__answer *a, llmkit_str data, llmkit_str *raw) {
    llmkit_str text, other;
    size_t first = a->hole[0], behind = first + a->hole_len[0];
    size_t second = a->hole[1], rest = second + a->hole_len[1];
    if (a->pattern.len == 0 || !lk__answer_step(a, 0, first, &data, &text) || text.len == 0)
        return false;
    if (!lk__answer_step(a, behind, second, &data, &other)) return false;
    if ((other.len == 0) != (a->hole_len[1] == 0)) return false;
    size_t tail = a->pattern.len - rest;
    if (data.len != tail || (tail && memcmp(data.ptr, a->pattern.ptr + rest, tail) != 0))
        return false;
    *raw = lk__str(text.ptr + 1, text.len - 2);
    return true;
}

LK__PRIV lk__tool_part *lk__answer_tool(lk__answer *a, uint32_t index, llmkit_error *error) {
    for (uint32_t i = 0; i < a->num_tools; i++)
        if (a->tools[i].index == index) return &a->tools[i];
    if (a->num_tools == LK__MAX_TOOL_PARTS) {
        lk__fail(error, LLMKIT_E_TOO_BIG, "over %d tool calls in one reply", LK__MAX_TOOL_PARTS);
        return NULL;
    }
    if (a->num_tools == a->cap_tools) {
        uint32_t cap = a->cap_tools ? 2 * a->cap_tools : 4;
        lk__tool_part *more = lk__resize(a->env, a->tools, a->cap_tools * sizeof *more,
                                         cap * sizeof *more);
        if (!more) {
            lk__fail(error, LLMKIT_E_NOMEM, "no memory for a tool call");
            return NULL;
        }
        a->tools = more;
        a->cap_tools = cap;
    }
    lk__tool_part *t = &a->tools[a->num_tools++];
    memset(t, 0, sizeof *t);
    t->index = index;
    lk__buf_init(&t->id, a->env, 4096);
    lk__buf_init(&t->name, a->env, 4096);
    lk__buf_init(&t->arguments, a->env, a->max_bytes);
    return t;
}

LK__PRIV bool lk__answer_end_tools(lk__answer *a) {
    for (uint32_t i = 0; i < a->num_tools; i++) {
        lk__tool_part *t = &a->tools[i];
        if (t->ended) continue;
        t->ended = true;
        llmkit_event e = { .type = LLMKIT_EV_TOOL_END };
        e.tool = (llmkit_tool_call){ lk__buf_view(&t->id), lk__buf_view(&t->name),
                                     lk__buf_view(&t->arguments), t->index };
        if (!lk__answer_emit(a, &e)) return false;
    }
    return true;
}

/* ==== >>llm/openai.c ========================================================================== */
/* llm/openai.c -- the dialect of OpenAI's chat completions, and of all that speak it */

/* Fields and events: platform.openai.com/docs/api-reference/chat. */

#if LLMKIT_WITH_OPENAI

/* ---- writing a request ----------------------------------------------------------------------- */

typedef struct lk__oai_writer {
    lk__jsonw  json;
    lk__json  *extra; /* parsed; its members win over ours */
    lk__node   extra_root;
} lk__oai_writer;

/* A member of the body; false: the caller's extra has it, so ours is left out. */
LK__PRIV bool lk__oai_member(lk__oai_writer *w, const char *key) {
    if (lk__json_get(w->extra, w->extra_root, lk__str_z(key)) >= 0) return false;
    lk__jsonw_key(&w->json, key);
    return true;
}

LK__PRIV void lk__oai_str(lk__jsonw *w, const char *key, llmkit_str value) {
    lk__jsonw_key(w, key);
    lk__jsonw_str(w, value);
}

LK__PRIV void lk__oai_open_message(lk__jsonw *w, const char *role) {
    lk__jsonw_open(w, '{');
    lk__oai_str(w, "role", lk__str_z(role));
}

LK__PRIV void lk__oai_message(lk__jsonw *w, const char *role, llmkit_str text) {
    lk__oai_open_message(w, role);
    lk__oai_str(w, "content", text);
    lk__jsonw_close(w, '}');
}

/* A picture as it stands in the text of the request: a URL, or its bytes in base64 (RFC 2397). */
LK__PRIV void lk__oai_image(lk__jsonw *w, const llmkit_part *p) {
    lk__jsonw_open(w, '{');
    lk__oai_str(w, "type", LK__STR("image_url"));
    lk__jsonw_key(w, "image_url");
    lk__jsonw_open(w, '{');
    if (p->url.len) {
        lk__oai_str(w, "url", p->url);
    } else {
        lk__jsonw_key(w, "url");
        lk__buf_z(w->out, "\"data:");
        lk__json_escape_to(w->out, p->mime.len ? p->mime : LK__STR("image/png"));
        lk__buf_z(w->out, ";base64,");
        size_t n = 4 * ((p->data.len + 2) / 3);
        char *at = lk__buf_more(w->out, n);
        if (at) lk__buf_wrote(w->out, lk__base64(at, p->data.ptr, p->data.len));
        lk__buf_ch(w->out, '"');
        w->comma = true;
    }
    lk__jsonw_close(w, '}');
    lk__jsonw_close(w, '}');
}

LK__PRIV void lk__oai_text_part(lk__jsonw *w, llmkit_str text) {
    lk__jsonw_open(w, '{');
    lk__oai_str(w, "type", LK__STR("text"));
    lk__oai_str(w, "text", text);
    lk__jsonw_close(w, '}');
}

LK__PRIV size_t lk__oai_count(const llmkit_message *m, llmkit_part_kind kind) {
    size_t n = 0;
    for (size_t i = 0; i < m->num_parts; i++) n += m->parts[i].kind == kind;
    return n;
}

LK__PRIV void lk__oai_content(lk__jsonw *w, const llmkit_message *m) {
    size_t texts = lk__oai_count(m, LLMKIT_TEXT) + (m->text != NULL);
    size_t images = lk__oai_count(m, LLMKIT_IMAGE);
    lk__jsonw_key(w, "content");
    if (texts + images == 0) {
        lk__jsonw_raw(w, LK__STR("null"));
        return;
    }
    if (texts == 1 && images == 0) { /* what every server understands */
        size_t i = 0;
        while (!m->text && m->parts[i].kind != LLMKIT_TEXT) i++;
        lk__jsonw_str(w, m->text ? lk__str_z(m->text) : m->parts[i].text);
        return;
    }
    lk__jsonw_open(w, '[');
    if (m->text) lk__oai_text_part(w, lk__str_z(m->text));
    for (size_t i = 0; i < m->num_parts; i++) {
        if (m->parts[i].kind == LLMKIT_TEXT) lk__oai_text_part(w, m->parts[i].text);
        if (m->parts[i].kind == LLMKIT_IMAGE) lk__oai_image(w, &m->parts[i]);
    }
    lk__jsonw_close(w, ']');
}

LK__PRIV void lk__oai_tool_calls(lk__jsonw *w, const llmkit_message *m) {
    if (lk__oai_count(m, LLMKIT_TOOL_CALL) == 0) return;
    lk__jsonw_key(w, "tool_calls");
    lk__jsonw_open(w, '[');
    for (size_t i = 0; i < m->num_parts; i++) {
        const llmkit_part *p = &m->parts[i];
        if (p->kind != LLMKIT_TOOL_CALL) continue;
        lk__jsonw_open(w, '{');
        lk__oai_str(w, "id", p->id);
        lk__oai_str(w, "type", LK__STR("function"));
        lk__jsonw_key(w, "function");
        lk__jsonw_open(w, '{');
        lk__oai_str(w, "name", p->text);
        lk__oai_str(w, "arguments", p->data.len ? p->data : LK__STR("{}"));
        lk__jsonw_close(w, '}');
        lk__jsonw_close(w, '}');
    }
    lk__jsonw_close(w, ']');
}

/* Results of tools are messages of their own in this dialect, one for each. */
LK__PRIV void lk__oai_tool_results(lk__jsonw *w, const llmkit_message *m) {
    for (size_t i = 0; i < m->num_parts; i++) {
        const llmkit_part *p = &m->parts[i];
        if (p->kind != LLMKIT_TOOL_RESULT) continue;
        lk__oai_open_message(w, "tool");
        lk__oai_str(w, "tool_call_id", p->id);
        lk__oai_str(w, "content", p->text);
        lk__jsonw_close(w, '}');
    }
}

LK__PRIV void lk__oai_any_message(lk__jsonw *w, const llmkit_message *m) {
    static const char *const roles[] = { "user", "assistant", "system", "tool" };
    size_t results = lk__oai_count(m, LLMKIT_TOOL_RESULT);
    lk__oai_tool_results(w, m);
    if (results > 0 && results == m->num_parts && !m->text) return;
    lk__oai_open_message(w, roles[m->role]);
    lk__oai_content(w, m);
    lk__oai_tool_calls(w, m);
    lk__jsonw_close(w, '}');
}

LK__PRIV void lk__oai_messages(lk__oai_writer *w, const llmkit_request *r) {
    if (!lk__oai_member(w, "messages")) return;
    lk__jsonw_open(&w->json, '[');
    if (r->system) lk__oai_message(&w->json, "system", lk__str_z(r->system));
    for (size_t i = 0; i < r->num_messages; i++) lk__oai_any_message(&w->json, &r->messages[i]);
    if (r->prompt) lk__oai_message(&w->json, "user", lk__str_z(r->prompt));
    lk__jsonw_close(&w->json, ']');
}

LK__PRIV void lk__oai_tools(lk__oai_writer *w, const llmkit_request *r) {
    lk__jsonw *json = &w->json;
    if (r->num_tools == 0 || !lk__oai_member(w, "tools")) return;
    lk__jsonw_open(json, '[');
    for (size_t i = 0; i < r->num_tools; i++) {
        const llmkit_tool *t = &r->tools[i];
        lk__jsonw_open(json, '{');
        lk__oai_str(json, "type", LK__STR("function"));
        lk__jsonw_key(json, "function");
        lk__jsonw_open(json, '{');
        lk__oai_str(json, "name", lk__str_z(t->name));
        if (t->description) lk__oai_str(json, "description", lk__str_z(t->description));
        if (t->schema) {
            lk__jsonw_key(json, "parameters");
            lk__jsonw_raw(json, lk__str_z(t->schema));
        }
        lk__jsonw_close(json, '}');
        lk__jsonw_close(json, '}');
    }
    lk__jsonw_close(json, ']');
}

LK__PRIV void lk__oai_tool_choice(lk__oai_writer *w, const llmkit_request *r) {
    if (!r->tool_choice || !lk__oai_member(w, "tool_choice")) return;
    llmkit_str choice = lk__str_z(r->tool_choice);
    if (lk__str_eq(choice, LK__STR("auto")) || lk__str_eq(choice, LK__STR("none")) ||
        lk__str_eq(choice, LK__STR("required"))) {
        lk__jsonw_str(&w->json, choice);
        return;
    }
    lk__jsonw_raw(&w->json, LK__STR("{\"type\":\"function\",\"function\":{\"name\":"));
    w->json.comma = false;
    lk__jsonw_str(&w->json, choice);
    lk__buf_z(w->json.out, "}}");
}

LK__PRIV void lk__oai_schema(lk__oai_writer *w, const llmkit_request *r) {
    if (!r->schema || !lk__oai_member(w, "response_format")) return;
    lk__jsonw_raw(&w->json, LK__STR("{\"type\":\"json_schema\",\"json_schema\":"
                                    "{\"name\":\"reply\",\"strict\":true,\"schema\":"));
    lk__buf_z(w->json.out, r->schema);
    lk__buf_z(w->json.out, "}}");
}

LK__PRIV void lk__oai_option(lk__oai_writer *w, const char *key, llmkit_opt option) {
    if (option.set && lk__oai_member(w, key)) lk__jsonw_f64(&w->json, option.value);
}

LK__PRIV void lk__oai_options(lk__oai_writer *w, const lk__draft *d) {
    const llmkit_request *r = d->request;
    const char *limit = d->completion_tokens ? "max_completion_tokens" : "max_tokens";
    lk__oai_option(w, "temperature", r->temperature);
    lk__oai_option(w, "top_p", r->top_p);
    lk__oai_option(w, "seed", r->seed);
    if (r->max_tokens && lk__oai_member(w, limit)) lk__jsonw_i64(&w->json, r->max_tokens);
    if (!d->stream) return;
    if (lk__oai_member(w, "stream")) lk__jsonw_bool(&w->json, true);
    if (lk__oai_member(w, "stream_options"))
        lk__jsonw_raw(&w->json, LK__STR("{\"include_usage\":true}"));
}

/* "stream" is not the caller's to change: the reply could not be read. */
LK__PRIV void lk__oai_extra(lk__oai_writer *w) {
    lk__node key = lk__json_first(w->extra, w->extra_root);
    for (; key >= 0; key = lk__json_next(w->extra, key)) {
        lk__node value = lk__json_value_of(w->extra, key);
        llmkit_str raw = lk__json_raw(w->extra, value);
        bool text = lk__json_type_of(w->extra, value) == LK__JSON_STRING;
        lk__jsonw_raw(&w->json, LK__STR("\""));
        lk__buf_str(w->json.out, lk__json_raw(w->extra, key));
        lk__buf_z(w->json.out, text ? "\":\"" : "\":");
        lk__buf_str(w->json.out, raw);
        if (text) lk__buf_ch(w->json.out, '"');
        w->json.comma = true;
    }
}

LK__PRIV llmkit_err lk__oai_check_json(lk__json *json, const char *text, lk__json_type type,
                                       const char *field, llmkit_error *error) {
    llmkit_err err = lk__json_parse(json, lk__str_z(text));
    if (err == LLMKIT_E_NOMEM) return lk__fail(error, err, "no memory to parse %s", field);
    if (err || lk__json_type_of(json, 0) != type)
        return lk__fail(error, LLMKIT_E_ARG, "%s is not a JSON object", field);
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__oai_check(const lk__draft *d, llmkit_error *error) {
    const llmkit_request *r = d->request;
    llmkit_err err = LLMKIT_OK;
    for (size_t i = 0; i < r->num_messages && !err; i++)
        if ((unsigned)r->messages[i].role > LLMKIT_TOOL)
            err = lk__fail(error, LLMKIT_E_ARG, "messages[%zu].role is none of llmkit_role", i);
    for (size_t i = 0; i < r->num_tools && !err; i++) {
        if (!r->tools[i].name || !*r->tools[i].name)
            err = lk__fail(error, LLMKIT_E_ARG, "tools[%zu].name is missing", i);
        else if (r->tools[i].schema)
            err = lk__oai_check_json(d->json, r->tools[i].schema, LK__JSON_OBJECT,
                                     "a tool's schema", error);
    }
    if (!err && r->schema)
        err = lk__oai_check_json(d->json, r->schema, LK__JSON_OBJECT, "schema", error);
    return err;
}

LK__PRIV llmkit_err lk__oai_write(lk__draft *d, llmkit_error *error) {
    lk__oai_writer w = { .json = { .out = d->body }, .extra = d->json, .extra_root = -1 };
    llmkit_err err = lk__oai_check(d, error);
    if (!err && d->request->extra) {
        err = lk__oai_check_json(d->json, d->request->extra, LK__JSON_OBJECT, "extra", error);
        w.extra_root = 0;
        if (!err && lk__json_get(d->json, 0, LK__STR("stream")) >= 0)
            err = lk__fail(error, LLMKIT_E_ARG, "extra must not set \"stream\": call llmkit_submit "
                           "or llmkit_stream_open for a stream");
    }
    if (err) return err;
    lk__jsonw_open(&w.json, '{');
    if (lk__oai_member(&w, "model")) lk__jsonw_str(&w.json, d->model);
    lk__oai_messages(&w, d->request);
    lk__oai_tools(&w, d->request);
    lk__oai_tool_choice(&w, d->request);
    lk__oai_schema(&w, d->request);
    lk__oai_options(&w, d);
    lk__oai_extra(&w);
    lk__jsonw_close(&w.json, '}');
    return d->body->failed ? lk__fail(error, d->body->failed, "no room for the request's body")
                           : LLMKIT_OK;
}

/* ---- reading a reply ------------------------------------------------------------------------- */

LK__PRIV llmkit_finish lk__oai_finish(llmkit_str reason) {
    static const struct {
        llmkit_str    reason;
        llmkit_finish finish;
    } table[] = {
        { { "stop", 4 }, LLMKIT_STOP },
        { { "length", 6 }, LLMKIT_LENGTH },
        { { "tool_calls", 10 }, LLMKIT_TOOL_USE },
        { { "function_call", 13 }, LLMKIT_TOOL_USE },
        { { "content_filter", 14 }, LLMKIT_FILTER },
    };
    for (size_t i = 0; i < LK__COUNT(table); i++)
        if (lk__str_eq(reason, table[i].reason)) return table[i].finish;
    return LLMKIT_OTHER;
}

LK__PRIV int64_t lk__oai_tokens(const lk__json *j, lk__node object, llmkit_str key) {
    int64_t n;
    return lk__json_i64(j, lk__json_get(j, object, key), &n) && n >= 0 ? n : -1;
}

LK__PRIV llmkit_usage lk__oai_usage(const lk__json *j, lk__node usage) {
    lk__node prompt = lk__json_get(j, usage, LK__STR("prompt_tokens_details"));
    lk__node completion = lk__json_get(j, usage, LK__STR("completion_tokens_details"));
    return (llmkit_usage){
        .input = lk__oai_tokens(j, usage, LK__STR("prompt_tokens")),
        .output = lk__oai_tokens(j, usage, LK__STR("completion_tokens")),
        .cache_read = lk__oai_tokens(j, prompt, LK__STR("cached_tokens")),
        .reasoning = lk__oai_tokens(j, completion, LK__STR("reasoning_tokens")),
    };
}

/* A string of the document at the end of the arena, NUL-terminated; the arena never moves, since it
 * has room for all of them. */
LK__PRIV llmkit_str lk__oai_keep(const lk__json *j, lk__node n, lk__buf *arena) {
    size_t at = arena->len;
    if (!lk__json_text(j, n, arena)) return (llmkit_str){ "", 0 };
    llmkit_str text = { arena->ptr + at, arena->len - at };
    lk__buf_ch(arena, '\0');
    return text;
}

LK__PRIV void lk__oai_read_tools(const lk__json *j, lk__node calls, llmkit_reply *reply,
                                 lk__buf *arena, lk__buf *tools) {
    uint32_t num = 0;
    for (lk__node n = lk__json_first(j, calls); n >= 0; n = lk__json_next(j, n), num++) {
        lk__node function = lk__json_get(j, n, LK__STR("function"));
        llmkit_tool_call call = {
            .id = lk__oai_keep(j, lk__json_get(j, n, LK__STR("id")), arena),
            .name = lk__oai_keep(j, lk__json_get(j, function, LK__STR("name")), arena),
            .arguments = lk__oai_keep(j, lk__json_get(j, function, LK__STR("arguments")), arena),
            .index = num,
        };
        lk__buf_add(tools, &call, sizeof call);
    }
    if (num == 0 || tools->failed) return;
    reply->tool_calls = (const llmkit_tool_call *)(const void *)tools->ptr;
    reply->num_tool_calls = num;
}

LK__PRIV llmkit_err lk__oai_read(const lk__json *j, llmkit_reply *reply, lk__buf *arena,
                                 lk__buf *tools, llmkit_error *error) {
    lk__node choice = lk__json_at(j, lk__json_get(j, 0, LK__STR("choices")), 0);
    lk__node message = lk__json_get(j, choice, LK__STR("message"));
    lk__node finish = lk__json_get(j, choice, LK__STR("finish_reason"));
    if (lk__json_type_of(j, message) != LK__JSON_OBJECT)
        return lk__fail(error, LLMKIT_E_JSON, "the reply has no choices[0].message: is base_url "
                        "that of an OpenAI-compatible API?");
    reply->text = lk__oai_keep(j, lk__json_get(j, message, LK__STR("content")), arena);
    reply->refusal = lk__oai_keep(j, lk__json_get(j, message, LK__STR("refusal")), arena);
    reply->model = lk__oai_keep(j, lk__json_get(j, 0, LK__STR("model")), arena);
    reply->finish_text = lk__oai_keep(j, finish, arena);
    reply->finish = finish >= 0 && reply->finish_text.len ? lk__oai_finish(reply->finish_text)
                                                          : LLMKIT_OTHER;
    reply->usage = lk__oai_usage(j, lk__json_get(j, 0, LK__STR("usage")));
    lk__oai_read_tools(j, lk__json_get(j, message, LK__STR("tool_calls")), reply, arena, tools);
    if (arena->failed || tools->failed)
        return lk__fail(error, LLMKIT_E_NOMEM, "no memory for the reply's strings");
    return LLMKIT_OK;
}

/* What a type or a code means: OpenAI's, and those that servers of its dialect took over from
 * Anthropic.  A quota that is used up has the status of a rate limit. */
LK__PRIV void lk__oai_classify(llmkit_error *error, llmkit_str word) {
    static const struct {
        const char *word;
        llmkit_err  code;
    } table[] = {
        { "insufficient_quota", LLMKIT_E_QUOTA },
        { "invalid_request_error", LLMKIT_E_REQUEST },
        { "context_length_exceeded", LLMKIT_E_REQUEST },
        { "model_not_found", LLMKIT_E_REQUEST },
        { "not_found_error", LLMKIT_E_REQUEST },
        { "invalid_api_key", LLMKIT_E_AUTH },
        { "authentication_error", LLMKIT_E_AUTH },
        { "permission_error", LLMKIT_E_AUTH },
        { "rate_limit_exceeded", LLMKIT_E_LIMITED },
        { "rate_limit_error", LLMKIT_E_LIMITED },
        { "overloaded_error", LLMKIT_E_OVERLOADED },
    };
    for (size_t i = 0; i < LK__COUNT(table); i++) {
        bool decides = error->http_status == 0 || table[i].code == LLMKIT_E_QUOTA;
        if (!decides || !lk__str_eq(word, lk__str_z(table[i].word))) continue;
        error->code = table[i].code;
        error->retryable = lk__err_retryable(error->code);
    }
}

/* {"error":{"message","type","code"}}; some servers give a string, an array around the object
 * (Google), or no object around its members (vLLM, FastAPI's "detail"). */
LK__PRIV bool lk__oai_read_error(const lk__json *j, llmkit_error *error, lk__buf *scratch) {
    lk__node root = lk__json_type_of(j, 0) == LK__JSON_ARRAY ? lk__json_at(j, 0, 0) : 0;
    lk__node e = lk__json_get(j, root, LK__STR("error"));
    if (e < 0) e = root;
    lk__node text = lk__json_get(j, e, LK__STR("message"));
    if (text < 0) text = lk__json_get(j, e, LK__STR("detail"));
    if (text < 0 && e != root) text = e;
    if (text < 0 || lk__json_type_of(j, e) == LK__JSON_NULL) return false;
    static const char *const names[] = { "type", "code" }; /* the code is more exact */
    for (size_t i = 0; i < LK__COUNT(names); i++) {
        lk__node n = lk__json_get(j, e, lk__str_z(names[i]));
        llmkit_str word = lk__json_view(j, n, scratch);
        lk__oai_classify(error, word);
        if (word.len) lk__str_copy(error->type, sizeof error->type, word);
    }
    llmkit_str message = lk__json_view(j, text, scratch);
    if (message.len) lk__str_copy(error->message, sizeof error->message, message);
    return true;
}

/* ---- reading a stream ------------------------------------------------------------------------ */

LK__PRIV bool lk__oai_no_room(llmkit_err why, const char *what, llmkit_error *error) {
    if (why)
        lk__fail(error, why, why == LLMKIT_E_NOMEM ? "no memory for %s of the stream"
                                                   : "%s of the stream is too long", what);
    return why != LLMKIT_OK;
}

LK__PRIV bool lk__oai_piece(lk__answer *a, llmkit_event_type type, lk__node n,
                            llmkit_error *error) {
    lk__buf_clear(a->scratch);
    if (!lk__json_text(a->json, n, a->scratch)) return true;
    if (lk__oai_no_room(a->scratch->failed, "a piece", error)) return false;
    if (a->scratch->len == 0) return true;
    llmkit_event e = { .type = type, .text = lk__buf_view(a->scratch) };
    return lk__answer_emit(a, &e);
}

/* The index of a piece.  Some servers leave it out: then a piece with an id begins a call, and one
 * without goes on with the last. */
LK__PRIV uint32_t lk__oai_tool_index(const lk__answer *a, lk__node n) {
    const lk__json *j = a->json;
    int64_t index;
    if (lk__json_i64(j, lk__json_get(j, n, LK__STR("index")), &index) && index >= 0 &&
        index <= INT32_MAX)
        return (uint32_t)index;
    uint32_t next = 0;
    for (uint32_t i = 0; i < a->num_tools; i++)
        if (a->tools[i].index >= next) next = a->tools[i].index + 1;
    bool begins = lk__json_type_of(j, lk__json_get(j, n, LK__STR("id"))) == LK__JSON_STRING;
    return begins || next == 0 ? next : next - 1;
}

LK__PRIV bool lk__oai_tool_begin(lk__answer *a, lk__tool_part *t, lk__node n, lk__node name,
                                 llmkit_error *error) {
    lk__json_text(a->json, lk__json_get(a->json, n, LK__STR("id")), &t->id);
    lk__json_text(a->json, name, &t->name);
    if (lk__oai_no_room(t->id.failed ? t->id.failed : t->name.failed, "a tool call", error))
        return false;
    llmkit_event e = { .type = LLMKIT_EV_TOOL_BEGIN };
    e.tool = (llmkit_tool_call){ lk__buf_view(&t->id), lk__buf_view(&t->name), { "", 0 },
                                 t->index };
    return lk__answer_emit(a, &e);
}

/* One element of delta.tool_calls: the first of an index has id and name, the others only more of
 * the arguments; calls interleave by index. */
LK__PRIV bool lk__oai_tool_piece(lk__answer *a, lk__node n, llmkit_error *error) {
    const lk__json *j = a->json;
    lk__node function = lk__json_get(j, n, LK__STR("function"));
    lk__node name = lk__json_get(j, function, LK__STR("name"));
    uint32_t known = a->num_tools;
    lk__tool_part *t = lk__answer_tool(a, lk__oai_tool_index(a, n), error);
    if (!t) return false;
    if (t->ended) return true;
    if (a->num_tools > known && !lk__oai_tool_begin(a, t, n, name, error)) return false;
    size_t before = t->arguments.len;
    lk__json_text(j, lk__json_get(j, function, LK__STR("arguments")), &t->arguments);
    if (lk__oai_no_room(t->arguments.failed, "a tool call", error)) return false;
    if (t->arguments.len == before) return true;
    llmkit_event e = { .type = LLMKIT_EV_TOOL_DELTA };
    e.tool.index = t->index;
    e.text = lk__str_from(lk__buf_view(&t->arguments), before);
    return lk__answer_emit(a, &e);
}

LK__PRIV bool lk__oai_delta(lk__answer *a, lk__node delta, llmkit_error *error) {
    const lk__json *j = a->json;
    for (lk__node key = lk__json_first(j, delta); key >= 0; key = lk__json_next(j, key)) {
        llmkit_str name = lk__json_raw(j, key);
        lk__node value = lk__json_value_of(j, key);
        if (lk__str_eq(name, LK__STR("content"))) {
            /* Of two members of one name either might be the one that speaks next time. */
            a->only_text = a->only_text == -1 && lk__json_type_of(j, value) == LK__JSON_STRING
                               ? value : -2;
            if (!lk__oai_piece(a, LLMKIT_EV_TEXT, value, error)) return false;
        } else if (lk__str_eq(name, LK__STR("refusal"))) {
            if (!lk__oai_piece(a, LLMKIT_EV_REFUSAL, value, error)) return false;
        } else if (lk__str_eq(name, LK__STR("tool_calls"))) {
            for (lk__node n = lk__json_first(j, value); n >= 0; n = lk__json_next(j, n))
                if (!lk__oai_tool_piece(a, n, error)) return false;
        }
    }
    return true;
}

LK__PRIV bool lk__oai_choice(lk__answer *a, lk__node choice, llmkit_error *error) {
    const lk__json *j = a->json;
    int64_t index;
    if (lk__json_i64(j, lk__json_get(j, choice, LK__STR("index")), &index) && index != 0)
        return true; /* extra asked for several choices; a stream has the first */
    lk__node reason = lk__json_get(j, choice, LK__STR("finish_reason"));
    bool finished = lk__json_type_of(j, reason) == LK__JSON_STRING;
    if (finished) { /* before the delta's events, which may end the call */
        llmkit_str text = lk__json_view(j, reason, a->scratch);
        a->finish = lk__oai_finish(text);
        lk__str_copy(a->finish_text, sizeof a->finish_text, text);
    }
    if (!lk__oai_delta(a, lk__json_get(j, choice, LK__STR("delta")), error)) return false;
    return !finished || lk__answer_end_tools(a);
}

LK__PRIV bool lk__oai_start(lk__answer *a, lk__node model, llmkit_error *error) {
    a->started = true;
    lk__buf_clear(a->scratch);
    lk__json_text(a->json, model, a->scratch);
    if (lk__oai_no_room(a->scratch->failed, "the model's name", error)) return false;
    llmkit_event e = { .type = LLMKIT_EV_START, .model = lk__buf_view(a->scratch) };
    return lk__answer_emit(a, &e);
}

/* The members of an event that matter, found in one walk. */
typedef struct lk__oai_chunk {
    lk__node model, choices, usage, error;
    lk__node padding; /* a string behind the choices that is not read: OpenAI sends one */
} lk__oai_chunk;

LK__PRIV lk__oai_chunk lk__oai_members(const lk__json *j) {
    lk__oai_chunk c = { -1, -1, -1, -1, -1 };
    for (lk__node key = lk__json_first(j, 0); key >= 0; key = lk__json_next(j, key)) {
        llmkit_str name = lk__json_raw(j, key);
        lk__node value = lk__json_value_of(j, key);
        if (lk__str_eq(name, LK__STR("choices"))) c.choices = value;
        else if (lk__str_eq(name, LK__STR("model"))) c.model = value;
        else if (lk__str_eq(name, LK__STR("usage"))) c.usage = value;
        else if (lk__str_eq(name, LK__STR("error"))) c.error = value;
        else if (c.choices >= 0 && lk__json_type_of(j, value) == LK__JSON_STRING) c.padding = value;
    }
    return c;
}

/* An event like the one before, but for its text. */
LK__PRIV bool lk__oai_another(lk__answer *a, llmkit_str raw, llmkit_error *error) {
    if (raw.len == 0) return true;
    lk__buf_clear(a->scratch);
    lk__json_unescape_to(a->scratch, raw);
    if (lk__oai_no_room(a->scratch->failed, "a piece", error)) return false;
    llmkit_event e = { .type = LLMKIT_EV_TEXT, .text = lk__buf_view(a->scratch) };
    return lk__answer_emit(a, &e);
}

LK__PRIV bool lk__oai_read_event(lk__answer *a, llmkit_str data, llmkit_error *error) {
    llmkit_str raw, none = { NULL, 0 };
    if (lk__answer_fits(a, data, &raw)) return lk__oai_another(a, raw, error);
    if (lk__str_eq(data, LK__STR("[DONE]"))) {
        a->complete = true;
        return true;
    }
    llmkit_err err = lk__json_parse(a->json, data);
    if (err) {
        lk__fail(error, err, err == LLMKIT_E_JSON
                 ? "an event of the stream is not JSON, at byte %zu"
                 : "no memory for an event of the stream (byte %zu)", a->json->error_at);
        return false;
    }
    if (lk__json_type_of(a->json, 0) != LK__JSON_OBJECT) {
        lk__fail(error, LLMKIT_E_JSON, "an event of the stream is not a JSON object");
        return false;
    }
    lk__oai_chunk c = lk__oai_members(a->json);
    if (c.error >= 0 && lk__json_type_of(a->json, c.error) != LK__JSON_NULL) {
        lk__fail(error, LLMKIT_E_SERVER, "the provider reported an error in the stream");
        lk__oai_read_error(a->json, error, a->scratch);
        return false;
    }
    if (!a->started && !lk__oai_start(a, c.model, error)) return false;
    uint32_t told = a->told;
    a->only_text = -1;
    for (lk__node n = lk__json_first(a->json, c.choices); n >= 0; n = lk__json_next(a->json, n))
        if (!lk__oai_choice(a, n, error)) return false;
    if (lk__json_type_of(a->json, c.usage) != LK__JSON_OBJECT) {
        bool finished = a->finish != LLMKIT_UNFINISHED;
        if (a->only_text >= 0 && a->told == told + 1 && !finished)
            lk__answer_learn(a, data, lk__json_raw(a->json, a->only_text),
                             c.padding >= 0 ? lk__json_raw(a->json, c.padding) : none);
        return true;
    }
    a->usage = lk__oai_usage(a->json, c.usage);
    llmkit_event e = { .type = LLMKIT_EV_USAGE, .usage = a->usage };
    return lk__answer_emit(a, &e);
}

LK__PRIV const lk__codec *lk__codec_openai(void) {
    static const lk__codec codec = {
        .path = "/chat/completions",
        .write = lk__oai_write,
        .read = lk__oai_read,
        .read_event = lk__oai_read_event,
        .read_error = lk__oai_read_error,
    };
    return &codec;
}

#else

LK__PRIV const lk__codec *lk__codec_openai(void) {
    return NULL;
}

#endif

/* ==== >>llm/retry.h =========================================================================== */
/* llm/retry.h -- which failures are tried again, and when */

typedef struct lk__retry_policy {
    uint32_t max_tries;
    uint32_t backoff_ms, max_backoff_ms, max_retry_after_ms;
} lk__retry_policy;

LK__PRIV lk__retry_policy lk__retry_fill(lk__retry_policy policy); /* zeroes become defaults */
/* Nanoseconds to wait before the next try after tries attempts, the last of which ended with error;
 * -1: do not try again. */
LK__PRIV int64_t lk__retry_delay(const lk__retry_policy *policy, uint32_t tries,
                                 const llmkit_error *error, lk__rand *rand);

/* What a response other than 2xx says in its status line and fields: code, retryable, retry-after
 * and request id.  wall_s is the time of day, for a Retry-After that names one. */
LK__PRIV void lk__retry_read_head(llmkit_error *error, const lk__head *head, int64_t wall_s);
LK__PRIV llmkit_str lk__request_id(const lk__head *head);

/* ==== >>llm/retry.c =========================================================================== */
/* llm/retry.c -- statuses, Retry-After and backoff, as the official clients do it */

/* The same set, factor and jitter as the OpenAI and Anthropic clients: their users know them. */

LK__PRIV lk__retry_policy lk__retry_fill(lk__retry_policy p) {
    if (!p.max_tries) p.max_tries = 3;
    if (!p.backoff_ms) p.backoff_ms = 500;
    if (!p.max_backoff_ms) p.max_backoff_ms = 8000;
    if (!p.max_retry_after_ms) p.max_retry_after_ms = 120000;
    return p;
}

/* Doubled for each failure, a quarter of it by chance. */
LK__PRIV int64_t lk__retry_backoff(const lk__retry_policy *p, uint32_t tries, lk__rand *rand) {
    double ms = p->backoff_ms;
    for (uint32_t i = 1; i < tries && ms < p->max_backoff_ms; i++) ms *= 2;
    if (ms > p->max_backoff_ms) ms = p->max_backoff_ms;
    return (int64_t)(ms * (1 - 0.25 * lk__rand_unit(rand)) * (double)LK__NS_PER_MS);
}

LK__PRIV int64_t lk__retry_delay(const lk__retry_policy *p, uint32_t tries,
                                 const llmkit_error *error, lk__rand *rand) {
    if (!error->retryable || tries >= p->max_tries) return -1;
    if (error->retry_after_ms == 0) return lk__retry_backoff(p, tries, rand);
    if (error->retry_after_ms > p->max_retry_after_ms) return -1;
    return error->retry_after_ms * LK__NS_PER_MS;
}

/* ---- Retry-After ----------------------------------------------------------------------------- */

/* Days since 1970 of a date in the Gregorian calendar (proleptic), months from 1. */
LK__PRIV int64_t lk__days(int64_t year, int64_t month, int64_t day) {
    year -= month <= 2; /* a year that begins in March has its leap day at the end */
    int64_t era = year / 400, of_era = year % 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

/* "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110 5.6.7) as seconds since 1970. */
LK__PRIV bool lk__http_date(llmkit_str s, int64_t *out) {
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    uint64_t day, year, hour, minute, second;
    if (s.len != 29 || s.ptr[3] != ',' || s.ptr[19] != ':' || s.ptr[22] != ':' ||
        !lk__str_ends(s, LK__STR(" GMT")))
        return false;
    if (!lk__parse_u64(lk__str(s.ptr + 5, 2), &day) ||
        !lk__parse_u64(lk__str(s.ptr + 12, 4), &year) ||
        !lk__parse_u64(lk__str(s.ptr + 17, 2), &hour) ||
        !lk__parse_u64(lk__str(s.ptr + 20, 2), &minute) ||
        !lk__parse_u64(lk__str(s.ptr + 23, 2), &second) || hour > 23 || minute > 59 || second > 60)
        return false;
    for (int m = 0; m < 12; m++) {
        if (memcmp(months + 3 * m, s.ptr + 8, 3) != 0) continue;
        *out = lk__days((int64_t)year, m + 1, (int64_t)day) * 86400 +
               (int64_t)(hour * 3600 + minute * 60 + second);
        return true;
    }
    return false;
}

/* Milliseconds, or 0 where the value is unusable: then one's own backoff applies.  What is longer
 * than can be counted stays longer than anybody waits. */
LK__PRIV uint32_t lk__retry_ms(double ms) {
    if (!(ms > 0)) return 0;
    return ms < UINT32_MAX ? (uint32_t)(ms < 1 ? 1 : ms) : UINT32_MAX;
}

LK__PRIV uint32_t lk__retry_after(const lk__head *head, int64_t wall_s) {
    double value;
    int64_t date;
    llmkit_str ms = lk__head_get(head, LK__STR("retry-after-ms"));
    llmkit_str after = lk__head_get(head, LK__STR("retry-after"));
    if (ms.len && lk__parse_f64(ms, &value) && lk__retry_ms(value)) return lk__retry_ms(value);
    if (after.len && lk__parse_f64(after, &value)) return lk__retry_ms(value * 1000);
    if (after.len && lk__http_date(after, &date))
        return lk__retry_ms((double)(date - wall_s) * 1000);
    return 0;
}

/* ---- statuses -------------------------------------------------------------------------------- */

LK__PRIV llmkit_err lk__status_code(int status) {
    switch (status) {
    case 401:
    case 403: return LLMKIT_E_AUTH;
    case 429: return LLMKIT_E_LIMITED;
    case 402: return LLMKIT_E_QUOTA;
    case 503:
    case 529: return LLMKIT_E_OVERLOADED; /* 529: Anthropic's own */
    default:  return status >= 500 ? LLMKIT_E_SERVER : LLMKIT_E_REQUEST;
    }
}

LK__PRIV llmkit_str lk__request_id(const lk__head *head) {
    llmkit_str id = lk__head_get(head, LK__STR("x-request-id"));
    return id.ptr ? id : lk__head_get(head, LK__STR("request-id"));
}

LK__PRIV void lk__retry_read_head(llmkit_error *error, const lk__head *head, int64_t wall_s) {
    int status = head->status;
    llmkit_str location = lk__head_get(head, LK__STR("location"));
    if (status >= 300 && status < 400 && location.len)
        lk__fail(error, LLMKIT_E_REQUEST, "HTTP status %d: redirects are not followed; base_url "
                 "should lead to %.*s", status, LK__ARG(location));
    else
        lk__fail(error, lk__status_code(status), "HTTP status %d", status);
    error->http_status = head->status;
    error->retryable = status == 408 || status == 409 || status == 429 || status >= 500;
    llmkit_str should = lk__head_get(head, LK__STR("x-should-retry"));
    if (lk__str_eq(should, LK__STR("true"))) error->retryable = true;
    if (lk__str_eq(should, LK__STR("false"))) error->retryable = false;
    error->retry_after_ms = lk__retry_after(head, wall_s);
    lk__str_copy(error->request_id, sizeof error->request_id, lk__request_id(head));
}

/* ==== >>llm/client.h ========================================================================== */
/* llm/client.h -- a client, its providers, and one call from submission to its last event */

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

/* ==== >>llm/client.c ========================================================================== */
/* llm/client.c -- attempts, retries and the end of a call */

#define LK__CALL_FIRST_BYTE_MS 60000U  /* of a stream */
#define LK__CALL_WHOLE_MS      600000U /* reasoning models are silent for minutes */
#define LK__CALL_GRACE_NS      LK__NS_PER_S /* for the end of a body after the end of the stream */

enum {
    LK__ERROR_BODY_BYTES = 65536, /* of an error's body that are read */
    LK__CALL_KEEP_BYTES = 65536,  /* larger buffers are not kept for the next call */
    LK__CALL_KEY_BYTES = 8,       /* of a key, or more, are struck out of messages */
};

/* ---- telling the caller ---------------------------------------------------------------------- */

LK__PRIV void lk__call_release(lk__call *c);

/* False: the call ended inside the callback, and may be another one by now. */
LK__PRIV bool lk__call_tell(lk__call *c, llmkit_event *e) {
    uint64_t id = c->id;
    e->call.id = id;
    c->on_event(c->user, e);
    return c->id == id;
}

LK__PRIV bool lk__call_start_event(lk__call *c) {
    c->committed = true;
    llmkit_event e = { .type = LLMKIT_EV_START };
    e.provider = lk__str_z(c->provider->name);
    e.model = lk__str_z(c->model);
    e.request_id = lk__str_z(c->request_id);
    return lk__call_tell(c, &e);
}

/* Where the dialect's events come out.  START waits for the first piece of content: until then
 * another attempt can take the place of this one unseen. */
LK__PRIV bool lk__call_emit(void *user, llmkit_event *e) {
    lk__call *c = user;
    if (e->type == LLMKIT_EV_START) {
        lk__str_copy(c->model, sizeof c->model, e->model);
        return true;
    }
    if (!c->committed && !lk__call_start_event(c)) return false;
    return lk__call_tell(c, e);
}

LK__PRIV void lk__call_last_event(lk__call *c, const llmkit_error *error) {
    if (!error && !c->committed) lk__call_start_event(c);
    llmkit_event e = { .type = LLMKIT_EV_DONE, .call = { c->id }, .error = error };
    e.finish = error ? LLMKIT_UNFINISHED : c->answer.finish;
    e.finish_text = lk__str_z(c->answer.finish_text);
    e.usage = c->answer.usage;
    e.attempts = c->attempts;
    e.provider = lk__str_z(c->provider->name);
    e.model = lk__str_z(c->model);
    e.request_id = lk__str_z(c->request_id);
    c->on_event(c->user, &e);
}

LK__PRIV void lk__call_last_reply(lk__call *c, llmkit_reply *reply, const llmkit_error *error) {
    if (error) reply->error = *error;
    reply->provider = lk__str_z(c->provider->name);
    reply->request_id = lk__str_z(c->request_id);
    reply->raw = lk__buf_view(&c->input);
    reply->attempts = c->attempts;
    reply->total_ns = lk__loop_now(c->client->loop) - c->begun_ns;
    reply->first_byte_ns = c->fetch.first_ns ? c->fetch.first_ns - c->begun_ns : 0;
    c->on_reply(c->user, reply);
}

/* The end: exactly one last callback, and then the call is another's. */
LK__PRIV void lk__call_end(lk__call *c, llmkit_reply *reply, const llmkit_error *error) {
    llmkit_client *client = c->client;
    llmkit_reply failed;
    if (!reply) {
        memset(&failed, 0, sizeof failed);
        failed.usage = (llmkit_usage){ -1, -1, -1, -1 };
        failed.text = failed.refusal = failed.model = failed.finish_text = LK__STR("");
        reply = &failed;
    }
    c->state = LK__CALL_OVER;
    lk__fetch_stop(&c->fetch);
    lk__timer_stop(client->loop, &c->timer);
    if (c->next) c->next->prev = c->prev;
    *(c->prev ? &c->prev->next : &client->live) = c->next;
    client->stats.in_flight--;
    if (c->stream)
        lk__call_last_event(c, error);
    else
        lk__call_last_reply(c, reply, error);
    lk__loop_unhold(client->loop);
    lk__call_release(c);
}

/* ---- attempts -------------------------------------------------------------------------------- */

/* E_NOMEM only where the timer was not set. */
LK__PRIV llmkit_err lk__call_wait(lk__call *c) {
    bool rests = c->state == LK__CALL_RESTING && c->retry_ns < c->total_due_ns;
    int64_t due = rests ? c->retry_ns : c->total_due_ns;
    if (due != LK__NEVER_NS) return lk__timer_set(c->client->loop, &c->timer, due);
    lk__timer_stop(c->client->loop, &c->timer);
    return LLMKIT_OK;
}

LK__PRIV void lk__call_try(lk__call *c) {
    c->state = LK__CALL_TRYING;
    c->attempts++;
    c->client->stats.attempts++;
    c->events = false;
    c->received = 0;
    c->status = 0;
    c->request_id[0] = '\0';
    memset(&c->error, 0, sizeof c->error);
    lk__buf_clear(&c->input);
    c->model[0] = '\0';
    if (c->stream) {
        lk__answer_reset(&c->answer);
        lk__sse_reset(&c->sse);
    }
    lk__fetch_start(&c->fetch);
}

/* Providers quote what they were sent: a key that comes back, or the beginning of one where the
 * message is cut off, is struck out. */
LK__PRIV void lk__redact(char *text, llmkit_str key) {
    size_t left = strlen(text);
    for (char *p = text; left >= LK__CALL_KEY_BYTES; p++, left--) {
        size_t n = key.len < left ? key.len : left;
        if (n >= LK__CALL_KEY_BYTES && memcmp(p, key.ptr, n) == 0) memset(p, '*', n);
    }
}

/* Where an error happened.  Its message may be the provider's, which is made one line of. */
LK__PRIV void lk__call_place(const lk__call *c, llmkit_error *error) {
    lk__str_copy(error->provider, sizeof error->provider, lk__str_z(c->provider->name));
    if (!error->http_status) error->http_status = c->status;
    if (!error->request_id[0]) memcpy(error->request_id, c->request_id, sizeof c->request_id);
    for (char *p = error->message; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f) *p = ' ';
    llmkit_str key = lk__str_from(lk__buf_view(&c->provider->head), c->provider->key_at);
    key.len = key.len < 2 ? 0 : key.len - 2; /* CRLF */
    lk__redact(error->message, key);
    lk__redact(error->type, key);
}

LK__PRIV void lk__call_on_timer(lk__timer *timer) {
    lk__call *c = LK__CONTAINER(timer, lk__call, timer);
    if (c->state == LK__CALL_RESTING && c->retry_ns < c->total_due_ns) {
        c->state = LK__CALL_TRYING;
        lk__call_wait(c); /* a timer that has just fired finds memory */
        lk__call_try(c);
        return;
    }
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_TIMEOUT, "the call took over %lld ms (total_ms)",
             (long long)((c->total_due_ns - c->begun_ns) / LK__NS_PER_MS));
    error.deadline = LLMKIT_DEADLINE_TOTAL;
    lk__call_place(c, &error);
    lk__call_end(c, NULL, &error);
}

/* This attempt came to nothing: another one, later, or the end. */
LK__PRIV void lk__call_failed(lk__call *c, const llmkit_error *why) {
    llmkit_client *client = c->client;
    llmkit_error error = *why;
    lk__fetch_stop(&c->fetch);
    lk__call_place(c, &error);
    int64_t delay = -1; /* what has been handed on is not ours to repeat */
    if (!c->committed)
        delay = lk__retry_delay(&c->retry, c->attempts, &error, lk__loop_rand(client->loop));
    int64_t now = lk__loop_now(client->loop);
    if (delay < 0 || now + delay >= c->total_due_ns) {
        lk__call_end(c, NULL, &error);
        return;
    }
    lk__log(&client->env, LLMKIT_INFO, error.code, "%s: %s; again in %lld ms", error.provider,
            error.message, (long long)(delay / LK__NS_PER_MS));
    client->stats.retries++;
    c->state = LK__CALL_RESTING;
    c->retry_ns = now + delay;
    if (lk__call_wait(c)) lk__call_end(c, NULL, &error); /* no memory to wait */
}

/* ---- a response ------------------------------------------------------------------------------ */

LK__PRIV bool lk__type_is(const lk__head *head, llmkit_str type) {
    llmkit_str value = lk__head_get(head, LK__STR("content-type"));
    value.len = lk__str_find(value, ';');
    return lk__str_ieq(lk__str_trim(value), type);
}

LK__PRIV void lk__call_on_head(lk__fetch *f, const lk__head *head) {
    lk__call *c = LK__CONTAINER(f, lk__call, fetch);
    c->status = head->status;
    lk__str_copy(c->request_id, sizeof c->request_id, lk__request_id(head));
    if (head->status < 200 || head->status > 299) {
        lk__retry_read_head(&c->error, head, (int64_t)time(NULL));
        c->input.max = LK__ERROR_BODY_BYTES;
        return;
    }
    c->events = c->stream && lk__type_is(head, LK__STR("text/event-stream"));
    c->input.max = c->client->max_reply_bytes;
    if (head->has_length && head->length < LK__CALL_KEEP_BYTES)
        lk__buf_more(&c->input, (size_t)head->length);
}

LK__PRIV void lk__call_on_events(lk__call *c, llmkit_str bytes) {
    lk__sse_event event;
    llmkit_error error;
    uint64_t id = c->id;
    while (!c->answer.complete && lk__sse_feed(&c->sse, &bytes, &event)) {
        if (c->provider->codec->read_event(&c->answer, event.data, &error)) continue;
        if (c->id != id) return;
        lk__call_failed(c, &error);
        return;
    }
    if (c->answer.complete) {
        lk__fetch_set_idle(&c->fetch, LK__CALL_GRACE_NS);
    } else if (c->sse.error) {
        lk__fail(&error, c->sse.error, c->sse.error == LLMKIT_E_NOMEM
                 ? "no memory for an event of the stream"
                 : "an event of the stream is over %d bytes", LLMKIT_MAX_EVENT_BYTES);
        lk__call_failed(c, &error);
    }
}

/* The body of a failure, for its message and type.  c->error has what the head said. */
LK__PRIV void lk__call_refused(lk__call *c) {
    lk__json *json = &c->client->json;
    llmkit_error *error = &c->error;
    if (lk__json_parse(json, lk__buf_view(&c->input)) == LLMKIT_OK)
        c->provider->codec->read_error(json, error, &c->client->scratch);
    lk__call_failed(c, error);
}

LK__PRIV void lk__call_on_body(lk__fetch *f, llmkit_str piece) {
    lk__call *c = LK__CONTAINER(f, lk__call, fetch);
    llmkit_error error;
    c->received += piece.len;
    if (c->error.code) { /* the status was bad */
        lk__buf_str(&c->input, piece);
        if (c->received > LK__ERROR_BODY_BYTES) lk__call_refused(c);
    } else if (c->received > c->client->max_reply_bytes) {
        lk__fail(&error, LLMKIT_E_TOO_BIG, "the reply is over %u bytes (max_reply_bytes)",
                 c->client->max_reply_bytes);
        lk__call_failed(c, &error);
    } else if (c->events) {
        if (!c->answer.complete) lk__call_on_events(c, piece);
    } else {
        lk__buf_str(&c->input, piece);
        if (!c->input.failed) return;
        lk__fail(&error, c->input.failed, "no memory for the reply");
        lk__call_failed(c, &error);
    }
}

/* 200 with something else than what was asked for.  An error object is the provider's word. */
LK__PRIV void lk__call_unexpected(lk__call *c, const char *what) {
    lk__json *json = &c->client->json;
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_SERVER, "the provider reported an error with HTTP status 200");
    if (lk__json_parse(json, lk__buf_view(&c->input)) ||
        !c->provider->codec->read_error(json, &error, &c->client->scratch)) {
        llmkit_str text = lk__buf_view(&c->input);
        lk__fail(&error, LLMKIT_E_JSON, "%s; it begins: %.*s", what,
                 (int)(text.len < 60 ? text.len : 60), text.ptr);
    }
    lk__call_failed(c, &error);
}

LK__PRIV void lk__call_whole(lk__call *c) {
    lk__json *json = &c->client->json;
    llmkit_reply reply;
    memset(&reply, 0, sizeof reply);
    llmkit_err err = lk__json_parse(json, lk__buf_view(&c->input));
    lk__node failure = lk__json_get(json, 0, LK__STR("error"));
    if (err == LLMKIT_E_JSON || (!err && lk__json_type_of(json, failure) > LK__JSON_NULL &&
                                 lk__json_get(json, 0, LK__STR("choices")) < 0)) {
        lk__call_unexpected(c, "the reply is not JSON: is base_url that of an API?");
        return;
    }
    lk__buf_clear(&c->arena);
    lk__buf_clear(&c->tools);
    if (!err && !lk__buf_more(&c->arena, c->input.len + 1)) err = LLMKIT_E_NOMEM;
    if (err)
        lk__fail(&c->error, err, "no memory for the reply");
    else
        err = c->provider->codec->read(json, &reply, &c->arena, &c->tools, &c->error);
    if (err)
        lk__call_failed(c, &c->error);
    else
        lk__call_end(c, &reply, NULL);
}

/* The body of a stream has ended, in order or not. */
LK__PRIV void lk__call_streamed(lk__call *c, const llmkit_error *error) {
    bool ended = c->answer.complete || (!error && c->answer.finish != LLMKIT_UNFINISHED);
    bool whole = ended && c->answer.started; /* [DONE] alone is no reply */
    if (!whole) {
        llmkit_error cut;
        lk__fail(&cut, LLMKIT_E_TRUNCATED, "the stream ended before the reply was complete");
        lk__call_failed(c, error ? error : &cut);
        return;
    }
    if (lk__answer_end_tools(&c->answer)) lk__call_end(c, NULL, NULL);
}

LK__PRIV void lk__call_on_done(lk__fetch *f, const llmkit_error *error) {
    lk__call *c = LK__CONTAINER(f, lk__call, fetch);
    if (c->error.code != LLMKIT_OK) { /* the status says more than how the body ended */
        lk__call_refused(c);
    } else if (c->events) {
        lk__call_streamed(c, error);
    } else if (error) {
        lk__call_failed(c, error);
    } else if (c->stream) {
        lk__call_unexpected(c, "asked for a stream, the provider sent something else");
    } else {
        lk__call_whole(c);
    }
}

/* ---- calls and their slots ------------------------------------------------------------------- */

LK__PRIV void lk__buf_trim(lk__buf *b) {
    if (b->cap > LK__CALL_KEEP_BYTES) lk__buf_free(b);
    lk__buf_clear(b);
}

/* Back to the free ones, warm for the next call. */
LK__PRIV void lk__call_release(lk__call *c) {
    llmkit_client *client = c->client;
    if (c->stream) lk__answer_reset(&c->answer);
    lk__buf_trim(&c->body);
    lk__buf_trim(&c->input);
    lk__buf_trim(&c->arena);
    lk__buf_trim(&c->tools);
    c->fetch.paused = false;
    c->id += UINT64_C(1) << 32;
    c->state = LK__CALL_FREE;
    c->next = client->free;
    client->free = c;
}

LK__PRIV void lk__call_free(lk__call *c) {
    const llmkit_env *env = &c->client->env;
    lk__answer_free(&c->answer);
    lk__sse_free(&c->sse);
    lk__buf_wipe(&c->head);
    lk__buf_free(&c->body);
    lk__buf_free(&c->input);
    lk__buf_free(&c->arena);
    lk__buf_free(&c->tools);
    lk__free(env, c, sizeof *c);
}

LK__PRIV bool lk__client_more_slots(llmkit_client *client) {
    uint32_t cap = client->cap_slots ? 2 * client->cap_slots : 16;
    lk__call **more = lk__resize(&client->env, client->slots,
                                 client->cap_slots * sizeof *more, cap * sizeof *more);
    if (!more) return false;
    client->slots = more;
    client->cap_slots = cap;
    return true;
}

LK__PRIV lk__call *lk__call_new(llmkit_client *client) {
    const llmkit_env *env = &client->env;
    if (client->num_slots == client->cap_slots && !lk__client_more_slots(client)) return NULL;
    lk__call *c = lk__alloc(env, sizeof *c);
    if (!c) return NULL;
    client->slots[client->num_slots++] = c;
    c->client = client;
    c->id = (UINT64_C(1) << 32) | client->num_slots;
    c->timer.fn = lk__call_on_timer;
    c->fetch.on_head = lk__call_on_head;
    c->fetch.on_body = lk__call_on_body;
    c->fetch.on_done = lk__call_on_done;
    lk__buf_init(&c->head, env, LLMKIT_MAX_HEAD_BYTES);
    lk__buf_init(&c->body, env, 0);
    lk__buf_init(&c->input, env, 0);
    lk__buf_init(&c->arena, env, 0);
    lk__buf_init(&c->tools, env, 0);
    lk__sse_init(&c->sse, env, LLMKIT_MAX_EVENT_BYTES);
    lk__answer_init(&c->answer, env);
    c->answer.json = &client->json;
    c->answer.scratch = &client->scratch;
    c->answer.max_bytes = client->max_reply_bytes;
    c->answer.emit = lk__call_emit;
    c->answer.user = c;
    return c;
}

LK__PRIV lk__call *lk__call_take(llmkit_client *client, llmkit_error *error) {
    lk__call *c = client->free;
    if (c) {
        client->free = c->next;
        return c;
    }
    if (client->num_slots >= client->max_calls) {
        lk__fail(error, LLMKIT_E_BUSY, "%u calls are in flight (max_calls)", client->max_calls);
        return NULL;
    }
    c = lk__call_new(client);
    if (!c) lk__fail(error, LLMKIT_E_NOMEM, "no memory for a call");
    return c;
}

LK__PRIV lk__call *lk__client_find(const llmkit_client *client, llmkit_call call) {
    uint32_t slot = (uint32_t)call.id;
    if (slot == 0 || slot > client->num_slots) return NULL;
    lk__call *c = client->slots[slot - 1];
    bool live = c->state == LK__CALL_TRYING || c->state == LK__CALL_RESTING;
    return live && c->id == call.id ? c : NULL;
}

/* ---- submitting ------------------------------------------------------------------------------ */

LK__PRIV llmkit_err lk__request_check(const llmkit_request *r, llmkit_error *error) {
    if (!r) return lk__fail(error, LLMKIT_E_ARG, "the request is NULL");
    llmkit_err err = lk__check_guards(error, r->_guard0, r->_guard1, "llmkit_request");
    if (err) return err;
    if (!r->prompt && r->num_messages == 0 && !r->extra)
        return lk__fail(error, LLMKIT_E_ARG, "the request has neither prompt nor messages");
    if ((r->num_messages && !r->messages) || (r->num_tools && !r->tools))
        return lk__fail(error, LLMKIT_E_ARG, "messages or tools is NULL but counted");
    for (size_t i = 0; i < r->num_messages; i++)
        if (r->messages[i].num_parts ? !r->messages[i].parts : !r->messages[i].text)
            return lk__fail(error, LLMKIT_E_ARG, "messages[%zu] has neither text nor parts", i);
    return LLMKIT_OK;
}

LK__PRIV lk__provider *lk__client_provider(const llmkit_client *client, const char *name,
                                           llmkit_error *error) {
    if (!name) return &client->providers[0];
    for (size_t i = 0; i < client->num_providers; i++)
        if (strcmp(client->providers[i].name, name) == 0) return &client->providers[i];
    lk__fail(error, LLMKIT_E_ROUTE, "the client has no provider named %s", name);
    return NULL;
}

/* Fields that are the library's: a second one would break the message. */
LK__PRIV bool lk__field_is_ours(const lk__provider *p, llmkit_str name) {
    static const char *const ours[] = { "host", "content-length", "content-type",
                                        "transfer-encoding", "connection" };
    for (size_t i = 0; i < LK__COUNT(ours); i++)
        if (lk__str_ieq(name, lk__str_z(ours[i]))) return true;
    return p->key_at < p->head.len && lk__str_ieq(name, LK__STR("authorization"));
}

/* Room for n more bytes in a buffer that holds a secret: what it outgrows is wiped. */
LK__PRIV void lk__secret_room(lk__buf *b, size_t n) {
    if (b->cap - b->len > n || b->failed) return;
    lk__buf larger;
    lk__buf_init(&larger, b->env, b->max);
    lk__buf_more(&larger, lk__add(b->len, n));
    lk__buf_str(&larger, lk__buf_view(b));
    lk__buf_wipe(b);
    *b = larger;
}

/* E_ARG where it cannot be sent. */
LK__PRIV llmkit_err lk__secret_field(lk__buf *b, llmkit_str name, llmkit_str value) {
    lk__secret_room(b, lk__add(lk__add(name.len, value.len), sizeof ": \r\n"));
    return lk__http_field(b, name, value);
}

LK__PRIV llmkit_err lk__call_write_head(lk__call *c, const llmkit_request *r,
                                        llmkit_error *error) {
    lk__buf *head = &c->head;
    lk__buf_clear(head);
    lk__secret_room(head, c->provider->head.len + 256); /* the rest, but for headers */
    lk__buf_str(head, lk__buf_view(&c->provider->head));
    lk__http_field(head, LK__STR("Accept"),
                   c->stream ? LK__STR("text/event-stream") : LK__STR("application/json"));
    for (const char *const *h = r->headers; h && h[0]; h += 2) {
        llmkit_str name = lk__str_z(h[0]);
        if (!h[1] || lk__field_is_ours(c->provider, name) ||
            lk__secret_field(head, name, lk__str_z(h[1])))
            return lk__fail(error, LLMKIT_E_ARG, "headers: \"%s\" is not a field that can be sent",
                            h[0]);
    }
    lk__secret_room(head, 64);
    lk__http_field_u64(head, LK__STR("Content-Length"), c->body.len);
    lk__buf_z(head, "\r\n");
    return head->failed ? lk__fail(error, head->failed, "no room for the request's head")
                        : LLMKIT_OK;
}

LK__PRIV llmkit_err lk__call_write(lk__call *c, const llmkit_request *r, llmkit_error *error) {
    const char *model = r->model ? r->model : c->provider->model;
    if (!model) return lk__fail(error, LLMKIT_E_ARG, "the request names no model");
    lk__buf_clear(&c->body);
    lk__draft draft = { .request = r, .model = lk__str_z(model), .stream = c->stream,
                        .completion_tokens = c->provider->completion_tokens,
                        .json = &c->client->draft, .body = &c->body };
    llmkit_err err = c->provider->codec->write(&draft, error);
    return err ? err : lk__call_write_head(c, r, error);
}

LK__PRIV int64_t lk__ms_or(uint32_t ms, int64_t ns, uint32_t default_ms) {
    if (ms) return ms * LK__NS_PER_MS;
    return ns ? ns : default_ms * LK__NS_PER_MS;
}

LK__PRIV void lk__call_set_deadlines(lk__call *c, const llmkit_request *r) {
    const llmkit_client *client = c->client;
    uint32_t first = c->stream ? LK__CALL_FIRST_BYTE_MS : LK__CALL_WHOLE_MS;
    uint32_t total = c->stream ? 0 : LK__CALL_WHOLE_MS;
    c->fetch.first_byte_ns = lk__ms_or(r->first_byte_ms, client->first_byte_ns, first);
    c->fetch.idle_ns = lk__ms_or(r->idle_ms, client->idle_ns, 60000);
    int64_t after = lk__ms_or(r->total_ms, client->total_ns, total);
    c->total_due_ns = after ? c->begun_ns + after : LK__NEVER_NS;
    c->retry = client->retry;
    if (r->max_tries) c->retry.max_tries = r->max_tries;
}

/* A call that is ready to go, or NULL. */
LK__PRIV lk__call *lk__call_prepare(llmkit_client *client, const llmkit_request *r, bool stream,
                                    llmkit_error *error) {
    if (lk__request_check(r, error)) return NULL;
    if (client->dying) {
        lk__fail(error, LLMKIT_E_CANCELLED, "the client is being destroyed");
        return NULL;
    }
    lk__provider *provider = lk__client_provider(client, r->provider, error);
    if (!provider) return NULL;
    lk__call *c = lk__call_take(client, error);
    if (!c) return NULL;
    c->provider = provider;
    c->stream = stream;
    c->committed = false;
    c->attempts = 0;
    c->begun_ns = lk__loop_now(client->loop);
    if (lk__call_write(c, r, error)) {
        lk__call_release(c);
        return NULL;
    }
    lk__call_set_deadlines(c, r);
    return c;
}

LK__PRIV llmkit_err lk__call_go(lk__call *c, llmkit_event_fn on_event, llmkit_reply_fn on_reply,
                                void *user, llmkit_call *call, llmkit_error *error) {
    llmkit_client *client = c->client;
    c->state = LK__CALL_TRYING;
    if (lk__call_wait(c)) {
        lk__call_release(c);
        return lk__fail(error, LLMKIT_E_NOMEM, "no memory for a deadline");
    }
    c->on_event = on_event;
    c->on_reply = on_reply;
    c->user = user;
    c->fetch.origin = c->provider->origin;
    c->fetch.head = lk__buf_view(&c->head);
    c->fetch.body = lk__buf_view(&c->body);
    c->prev = NULL;
    c->next = client->live;
    if (c->next) c->next->prev = c;
    client->live = c;
    client->stats.calls++;
    client->stats.in_flight++;
    lk__loop_hold(client->loop);
    if (call) call->id = c->id;
    memset(error, 0, sizeof *error);
    lk__call_try(c);
    return LLMKIT_OK;
}

LLMKIT_API llmkit_err llmkit_submit(llmkit_client *client, const llmkit_request *request,
                                    llmkit_event_fn fn, void *user, llmkit_call *call,
                                    llmkit_error *error) {
    llmkit_error local;
    if (call) call->id = 0;
    if (!error) error = &local;
    lk__call *c = lk__call_prepare(client, request, true, error);
    return c ? lk__call_go(c, fn, NULL, user, call, error) : error->code;
}

LLMKIT_API llmkit_err llmkit_submit_whole(llmkit_client *client, const llmkit_request *request,
                                          llmkit_reply_fn fn, void *user, llmkit_call *call,
                                          llmkit_error *error) {
    llmkit_error local;
    if (call) call->id = 0;
    if (!error) error = &local;
    lk__call *c = lk__call_prepare(client, request, false, error);
    return c ? lk__call_go(c, NULL, fn, user, call, error) : error->code;
}

/* ---- cancelling, pausing --------------------------------------------------------------------- */

LK__PRIV void lk__call_cancel_now(lk__call *c) {
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_CANCELLED, "the call was cancelled");
    lk__call_place(c, &error);
    lk__call_end(c, NULL, &error);
}

LK__PRIV void lk__client_on_cancels(lk__post *post) {
    llmkit_client *client = LK__CONTAINER(post, llmkit_client, cancel_post);
    lk__buf ids;
    lk__lock(&client->cancel_lock);
    ids = client->cancelled;
    lk__buf_init(&client->cancelled, &client->env, 0);
    lk__unlock(&client->cancel_lock);
    for (size_t at = 0; at < ids.len && !client->dying; at += sizeof(uint64_t)) {
        llmkit_call call;
        memcpy(&call.id, ids.ptr + at, sizeof call.id);
        lk__call *c = lk__client_find(client, call);
        if (c) lk__call_cancel_now(c);
    }
    lk__buf_free(&ids);
}

LLMKIT_API llmkit_err llmkit_cancel(llmkit_client *client, llmkit_call call) {
    lk__lock(&client->cancel_lock);
    bool first = client->cancelled.len == 0;
    lk__buf_add(&client->cancelled, &call.id, sizeof call.id);
    llmkit_err err = client->cancelled.failed;
    client->cancelled.failed = LLMKIT_OK;
    lk__unlock(&client->cancel_lock);
    if (first && !err) lk__post_send(client->loop, &client->cancel_post);
    return err;
}

LLMKIT_API llmkit_err llmkit_pause(llmkit_client *client, llmkit_call call) {
    lk__call *c = lk__client_find(client, call);
    if (!c) return LLMKIT_E_STALE;
    lk__fetch_pause(&c->fetch);
    return LLMKIT_OK;
}

LLMKIT_API llmkit_err llmkit_resume(llmkit_client *client, llmkit_call call) {
    lk__call *c = lk__client_find(client, call);
    if (!c) return LLMKIT_E_STALE;
    lk__fetch_resume(&c->fetch);
    return LLMKIT_OK;
}

/* ---- providers ------------------------------------------------------------------------------- */

LK__PRIV const char *lk__getenv(const char *name) {
#if LLMKIT_WITH_GETENV
    const char *value = getenv(name);
    return value && *value ? value : NULL;
#else
    (void)name;
    return NULL;
#endif
}

typedef struct lk__provider_text {
    const char *base_url, *api_key;
    llmkit_str  name;
} lk__provider_text;

/* A key belongs to one provider: that of the environment goes to OpenAI, or to what OPENAI_BASE_URL
 * names, and to nobody else. */
LK__PRIV llmkit_err lk__provider_defaults(const llmkit_provider_desc *d, lk__provider_text *text,
                                          lk__url *url, llmkit_error *error) {
    bool implied = !d->base_url;
    text->base_url = d->base_url;
    text->api_key = d->api_key;
    if (!text->base_url) text->base_url = lk__getenv("OPENAI_BASE_URL");
    if (!text->base_url) text->base_url = "https://api.openai.com/v1";
    llmkit_err err = lk__url_parse(url, lk__str_z(text->base_url), error);
    if (err) return err;
    bool openai = lk__str_ieq(url->host, LK__STR("api.openai.com"));
    text->name = d->name ? lk__str_z(d->name) : openai ? LK__STR("openai") : url->host;
    if (!text->api_key && (implied || openai)) text->api_key = lk__getenv("OPENAI_API_KEY");
    if (!text->api_key && openai)
        return lk__fail(error, LLMKIT_E_AUTH, "no key for %.*s: set OPENAI_API_KEY, or api_key in "
                        "llmkit_provider_desc", LK__ARG(text->name));
    return LLMKIT_OK;
}

/* The key comes last, so that no growth leaves a copy of it behind. */
LK__PRIV llmkit_err lk__provider_write_head(lk__provider *p, const lk__url *url,
                                            const char *api_key) {
    lk__buf *head = &p->head;
    size_t path_len = lk__str_find(url->path, '?');
    llmkit_str path = { url->path.ptr, path_len }, query = lk__str_from(url->path, path_len);
    while (path.len && path.ptr[path.len - 1] == '/') path.len--;
    lk__buf_z(head, "POST ");
    lk__buf_str(head, path);
    lk__buf_z(head, p->codec->path);
    lk__buf_str(head, query);
    lk__buf_z(head, " HTTP/1.1\r\n");
    lk__http_field(head, LK__STR("Host"), lk__origin_name(p->origin));
    lk__buf_fmt(head, "User-Agent: llmkit/%d.%d.%d\r\n", LLMKIT_VERSION_MAJOR,
                LLMKIT_VERSION_MINOR, LLMKIT_VERSION_PATCH);
    lk__http_field(head, LK__STR("Content-Type"), LK__STR("application/json"));
    p->key_at = head->len;
    if (!api_key || !*api_key) return head->failed;
    lk__buf bearer;
    lk__buf_init(&bearer, head->env, LLMKIT_MAX_HEAD_BYTES / 2);
    lk__buf_more(&bearer, lk__add(strlen(api_key), sizeof "Bearer "));
    lk__buf_z(&bearer, "Bearer ");
    lk__buf_z(&bearer, api_key);
    llmkit_err err = bearer.failed;
    if (!err) err = lk__secret_field(head, LK__STR("Authorization"), lk__buf_view(&bearer));
    p->key_at = head->len - strlen(api_key) - 2;
    lk__buf_wipe(&bearer);
    return err ? err : head->failed;
}

LK__PRIV llmkit_err lk__provider_init(llmkit_client *client, lk__provider *p,
                                      const llmkit_provider_desc *d, llmkit_error *error) {
    lk__provider_text text;
    lk__url url;
    p->codec = lk__codec_openai();
    if (!p->codec) return lk__fail_disabled(error, "LLMKIT_WITH_OPENAI");
    llmkit_err err = lk__provider_defaults(d, &text, &url, error);
    if (err) return err;
    p->origin = lk__pool_origin(client->pool, &url, error);
    if (!p->origin) return error->code;
    p->completion_tokens = lk__str_ieq(url.host, LK__STR("api.openai.com"));
    lk__buf_init(&p->head, &client->env, LLMKIT_MAX_HEAD_BYTES / 2);
    err = lk__provider_write_head(p, &url, text.api_key);
    if (err == LLMKIT_E_ARG)
        return lk__fail(error, err, "the key of %.*s holds a byte that no HTTP field can",
                        LK__ARG(text.name));
    if (err)
        return lk__fail(error, err, "no room for base_url and key of %.*s", LK__ARG(text.name));
    lk__buf name;
    lk__buf_init(&name, &client->env, 0);
    lk__buf_str(&name, text.name);
    p->name = name.failed ? NULL : lk__strdup(&client->env, lk__buf_view(&name).ptr);
    lk__buf_free(&name);
    p->model = d->model ? lk__strdup(&client->env, d->model) : NULL;
    if (!p->name || (d->model && !p->model))
        return lk__fail(error, LLMKIT_E_NOMEM, "no memory for a provider");
    return LLMKIT_OK;
}

LK__PRIV void lk__provider_free(llmkit_client *client, lk__provider *p) {
    lk__strfree(&client->env, p->name);
    lk__strfree(&client->env, p->model);
    lk__buf_wipe(&p->head);
}

/* ---- the client ------------------------------------------------------------------------------ */

LK__PRIV void lk__client_set(llmkit_client *c, const llmkit_client_desc *d) {
    c->max_calls = lk__def(d->max_calls, 16384);
    c->max_reply_bytes = lk__def(d->max_reply_bytes, 64U << 20);
    c->first_byte_ns = d->first_byte_ms * LK__NS_PER_MS;
    c->idle_ns = d->idle_ms * LK__NS_PER_MS;
    c->total_ns = d->total_ms * LK__NS_PER_MS;
    c->retry = lk__retry_fill((lk__retry_policy){ d->max_tries, d->backoff_ms, d->max_backoff_ms,
                                                  d->max_retry_after_ms });
    c->cancel_post.fn = lk__client_on_cancels;
    lk__json_init(&c->json, &c->env);
    lk__json_init(&c->draft, &c->env);
    lk__buf_init(&c->scratch, &c->env, 0);
    lk__buf_init(&c->cancelled, &c->env, 0);
    lk__mutex_init(&c->cancel_lock);
}

LK__PRIV llmkit_err lk__client_open(llmkit_client *c, const llmkit_client_desc *d,
                                    llmkit_error *error) {
    llmkit_loop_desc loop_desc = { .env = d->env };
    c->loop = d->loop ? d->loop : llmkit_loop_create(&loop_desc, error);
    c->own_loop = !d->loop;
    if (!c->loop) return error->code;
    c->pool = lk__pool_create(&(lk__pool_desc){
        .env = &c->env, .loop = c->loop, .tls = d->tls,
        .max_connections = lk__def(d->max_connections, 16384),
        .keep_alive_ns = lk__def(d->keep_alive_ms, 60000) * LK__NS_PER_MS,
        .max_age_ns = lk__def(d->max_age_ms, 600000) * LK__NS_PER_MS,
        .dns_ns = lk__def(d->dns_ms, 60000) * LK__NS_PER_MS,
        .connect_ns = lk__def(d->connect_ms, 10000) * LK__NS_PER_MS,
        .tls_ns = lk__def(d->tls_ms, 10000) * LK__NS_PER_MS,
    }, error);
    if (!c->pool) return error->code;
    static const llmkit_provider_desc by_default = { 0 };
    size_t num = d->num_providers ? d->num_providers : 1;
    const llmkit_provider_desc *list = d->num_providers ? d->providers : &by_default;
    if (!list) return lk__fail(error, LLMKIT_E_ARG, "providers is NULL but counted");
    c->providers = lk__alloc(&c->env, lk__mul(num, sizeof *c->providers));
    if (!c->providers) return lk__fail(error, LLMKIT_E_NOMEM, "no memory for %zu providers", num);
    c->num_providers = num;
    llmkit_err err = LLMKIT_OK;
    for (size_t i = 0; i < num && !err; i++)
        err = lk__provider_init(c, &c->providers[i], &list[i], error);
    return err;
}

LLMKIT_API llmkit_client *llmkit_client_create(const llmkit_client_desc *desc,
                                               llmkit_error *error) {
    static const llmkit_client_desc by_default = { 0 };
    llmkit_error local;
    if (!error) error = &local;
    if (!desc) desc = &by_default;
    if (lk__check_guards(error, desc->_guard0, desc->_guard1, "llmkit_client_desc")) return NULL;
    llmkit_env env = lk__env_fill(&desc->env);
    llmkit_client *c = lk__alloc(&env, sizeof *c);
    if (!c) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a client");
        return NULL;
    }
    c->env = env;
    lk__client_set(c, desc);
    if (lk__client_open(c, desc, error)) {
        llmkit_client_destroy(c);
        return NULL;
    }
    memset(error, 0, sizeof *error);
    return c;
}

LK__PRIV void lk__client_bury(llmkit_client *c) {
    llmkit_env env = c->env;
    for (uint32_t i = 0; i < c->num_slots; i++) lk__call_free(c->slots[i]);
    lk__free(&env, c->slots, c->cap_slots * sizeof *c->slots);
    for (size_t i = 0; i < c->num_providers; i++) lk__provider_free(c, &c->providers[i]);
    lk__free(&env, c->providers, c->num_providers * sizeof *c->providers);
    lk__pool_destroy(c->pool);
    if (c->loop) lk__post_cancel(c->loop, &c->cancel_post);
    if (c->own_loop) llmkit_loop_destroy(c->loop);
    lk__json_free(&c->json);
    lk__json_free(&c->draft);
    lk__buf_free(&c->scratch);
    lk__buf_free(&c->cancelled);
    lk__mutex_free(&c->cancel_lock);
    lk__free(&env, c, sizeof *c);
}

LK__PRIV void lk__client_on_burial(lk__task *task) {
    lk__client_bury(LK__CONTAINER(task, llmkit_client, burial));
}

LLMKIT_API void llmkit_client_destroy(llmkit_client *client) {
    if (!client || client->dying) return;
    client->dying = true;
    while (client->live) lk__call_cancel_now(client->live);
    if (!client->loop || !lk__loop_inside(client->loop)) {
        lk__client_bury(client);
        return;
    }
    client->burial.fn = lk__client_on_burial;
    lk__defer_last(client->loop, &client->burial);
}

LLMKIT_API llmkit_loop *llmkit_client_loop(llmkit_client *client) {
    return client->loop;
}

LLMKIT_API llmkit_client_stats llmkit_client_read(const llmkit_client *client) {
    llmkit_client_stats s = client->stats;
    lk__pool_stats pool = lk__pool_read(client->pool);
    s.connects = pool.connects;
    s.reused = pool.reused;
    s.resent = pool.resent;
    s.open = pool.open;
    s.idle = pool.idle;
    return s;
}

LLMKIT_API llmkit_err llmkit_client_warm(llmkit_client *client, const char *provider,
                                         uint32_t count, llmkit_error *error) {
    llmkit_error local;
    lk__provider *p = lk__client_provider(client, provider, error ? error : &local);
    if (!p) return LLMKIT_E_ROUTE;
    lk__origin_warm(p->origin, count);
    return LLMKIT_OK;
}

#undef LK__CALL_FIRST_BYTE_MS
#undef LK__CALL_GRACE_NS
#undef LK__CALL_WHOLE_MS

/* ==== >>llm/stream.c ========================================================================== */
/* llm/stream.c -- the two blocking ways to call: whole replies, streams one event at a time */

/* ---- whole ----------------------------------------------------------------------------------- */

/* Lays the strings of a reply out in one block, each terminated. */
typedef struct lk__packer {
    char  *at;    /* NULL: only count */
    size_t bytes;
} lk__packer;

LK__PRIV llmkit_str lk__pack(lk__packer *p, llmkit_str s) {
    llmkit_str copy = { "", s.len };
    if (p->at) {
        char *to = p->at + p->bytes;
        if (s.len) memcpy(to, s.ptr, s.len);
        to[s.len] = '\0';
        copy.ptr = to;
    }
    p->bytes += s.len + 1;
    return copy;
}

LK__PRIV void lk__pack_reply(lk__packer *p, llmkit_reply *to, const llmkit_reply *from,
                             llmkit_tool_call *calls) {
    to->text = lk__pack(p, from->text);
    to->refusal = lk__pack(p, from->refusal);
    to->model = lk__pack(p, from->model);
    to->provider = lk__pack(p, from->provider);
    to->request_id = lk__pack(p, from->request_id);
    to->finish_text = lk__pack(p, from->finish_text);
    to->raw = lk__pack(p, from->raw);
    for (size_t i = 0; i < from->num_tool_calls; i++) {
        llmkit_tool_call call = from->tool_calls[i];
        call.id = lk__pack(p, call.id);
        call.name = lk__pack(p, call.name);
        call.arguments = lk__pack(p, call.arguments);
        if (calls) calls[i] = call;
    }
}

LK__PRIV void lk__reply_clear(llmkit_reply *reply) {
    memset(reply, 0, sizeof *reply);
    reply->usage = (llmkit_usage){ -1, -1, -1, -1 };
    reply->text = reply->refusal = reply->model = reply->provider = reply->request_id =
        reply->finish_text = reply->raw = LK__STR("");
}

/* What _memory points to: the allocator that made it, then tool calls and strings. */
typedef struct lk__reply_memory {
    llmkit_env env;
    size_t     size;
} lk__reply_memory;

LK__PRIV llmkit_err lk__reply_copy(llmkit_reply *to, const llmkit_reply *from,
                                   const llmkit_env *env) {
    lk__packer count = { NULL, 0 };
    size_t calls_bytes = from->num_tool_calls * sizeof(llmkit_tool_call);
    *to = *from;
    lk__pack_reply(&count, to, from, NULL);
    size_t size = sizeof(lk__reply_memory) + calls_bytes + count.bytes;
    lk__reply_memory *memory = lk__alloc(env, size);
    if (!memory) {
        lk__reply_clear(to);
        to->usage = from->usage;
        to->attempts = from->attempts;
        to->error = from->error;
        if (!to->error.code) lk__fail(&to->error, LLMKIT_E_NOMEM, "no memory for the reply");
        return to->error.code;
    }
    memory->env = *env;
    memory->size = size;
    llmkit_tool_call *calls = (llmkit_tool_call *)(void *)(memory + 1);
    lk__packer fill = { (char *)(memory + 1) + calls_bytes, 0 };
    lk__pack_reply(&fill, to, from, calls);
    to->tool_calls = from->num_tool_calls ? calls : NULL;
    to->_memory = memory;
    return to->error.code;
}

LLMKIT_API void llmkit_reply_free(llmkit_reply *reply) {
    lk__reply_memory *memory = reply->_memory;
    if (memory) {
        llmkit_env env = memory->env;
        lk__free(&env, memory, memory->size);
    }
    memset(reply, 0, sizeof *reply);
}

typedef struct lk__whole {
    const llmkit_env *env;
    llmkit_reply     *reply;
    bool              done;
} lk__whole;

LK__PRIV void lk__whole_done(void *user, const llmkit_reply *reply) {
    lk__whole *w = user;
    lk__reply_copy(w->reply, reply, w->env);
    w->done = true;
}

LLMKIT_API llmkit_err llmkit_complete(llmkit_client *client, const llmkit_request *request,
                                      llmkit_reply *reply) {
    llmkit_env env = client->env; /* a callback may destroy the client meanwhile */
    lk__whole w = { .env = &env, .reply = reply };
    llmkit_loop *loop = client->loop;
    lk__reply_clear(reply);
    if (!lk__loop_can_wait(loop))
        return lk__fail(&reply->error, LLMKIT_E_ARG, "llmkit_complete cannot wait on a loop with "
                        "desc.watch: use llmkit_submit_whole");
    if (lk__loop_inside(loop))
        return lk__fail(&reply->error, LLMKIT_E_BUSY,
                        "llmkit_complete cannot wait inside a callback: use llmkit_submit_whole");
    if (llmkit_submit_whole(client, request, lk__whole_done, &w, NULL, &reply->error))
        return reply->error.code;
    while (!w.done) llmkit_loop_poll(loop, -1);
    return reply->error.code;
}

/* ---- streams --------------------------------------------------------------------------------- */

enum { LK__STREAM_AHEAD = 262144 }; /* bytes of events that wait for the reader; then TCP does */

/* Events wait in a buffer, each as its struct followed by its strings; views are offsets into the
 * buffer until the event is handed out.  The reader has a buffer of its own, which takes the place
 * of the other one when all of it is read: so views stay whatever else runs on the loop. */
struct llmkit_stream {
    llmkit_env     env;
    llmkit_client *client;
    llmkit_loop   *loop;
    llmkit_call    call;  /* 0 once it has ended */
    lk__buf        queue; /* what comes */
    lk__buf        front; /* what is handed out, */
    size_t         read;  /* up to here */
    bool           paused;
    bool           cut;   /* there was no memory for an event: error is to be the last one, */
    bool           told;  /* and has been */
    llmkit_error   error; /* of the last event */
};

LK__PRIV llmkit_str lk__stream_keep(lk__buf *q, llmkit_str s) {
    llmkit_str kept = { (const char *)(uintptr_t)q->len, s.len };
    lk__buf_add(q, s.ptr, s.len);
    lk__buf_ch(q, '\0');
    return kept;
}

LK__PRIV void lk__stream_place(const lk__buf *q, llmkit_str *s) {
    s->ptr = q->ptr + (uintptr_t)s->ptr;
}

LK__PRIV void lk__stream_push(lk__buf *q, const llmkit_event *event) {
    llmkit_event e = *event;
    size_t at = q->len;
    lk__buf_add(q, &e, sizeof e);
    e.text = lk__stream_keep(q, e.text);
    e.provider = lk__stream_keep(q, e.provider);
    e.model = lk__stream_keep(q, e.model);
    e.request_id = lk__stream_keep(q, e.request_id);
    e.finish_text = lk__stream_keep(q, e.finish_text);
    e.tool.id = lk__stream_keep(q, e.tool.id);
    e.tool.name = lk__stream_keep(q, e.tool.name);
    e.tool.arguments = lk__stream_keep(q, e.tool.arguments); /* the last: see lk__stream_pop */
    if (q->failed)
        q->len = at;
    else
        memcpy(q->ptr + at, &e, sizeof e);
}

LK__PRIV void lk__stream_pop(llmkit_stream *s, llmkit_event *event) {
    memcpy(event, s->front.ptr + s->read, sizeof *event);
    llmkit_str *const views[] = { &event->text, &event->provider, &event->model,
                                  &event->request_id, &event->finish_text, &event->tool.id,
                                  &event->tool.name, &event->tool.arguments };
    for (size_t i = 0; i < LK__COUNT(views); i++) lk__stream_place(&s->front, views[i]);
    const char *end = event->tool.arguments.ptr + event->tool.arguments.len + 1;
    s->read = (size_t)(end - s->front.ptr);
    if (event->error) event->error = &s->error;
}

LK__PRIV void lk__stream_on_event(void *user, const llmkit_event *event) {
    llmkit_stream *s = user;
    bool last = event->type == LLMKIT_EV_DONE;
    if (last && event->error && !s->cut) s->error = *event->error;
    if (!s->cut) lk__stream_push(&s->queue, event);
    if (s->queue.failed && !s->cut) {
        s->cut = true;
        lk__fail(&s->error, LLMKIT_E_NOMEM, "no memory for the events of a stream");
        if (!last) llmkit_cancel(s->client, s->call);
    }
    if (last) {
        s->call.id = 0;
    } else if (s->queue.len > LK__STREAM_AHEAD && !s->paused) {
        s->paused = true;
        llmkit_pause(s->client, s->call);
    }
}

LLMKIT_API llmkit_stream *llmkit_stream_open(llmkit_client *client, const llmkit_request *request,
                                             llmkit_error *error) {
    llmkit_error local;
    if (!error) error = &local;
    if (!lk__loop_can_wait(client->loop)) {
        lk__fail(error, LLMKIT_E_ARG, "a stream cannot wait on a loop with desc.watch: use "
                 "llmkit_submit");
        return NULL;
    }
    llmkit_stream *s = lk__alloc(&client->env, sizeof *s);
    if (!s) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a stream");
        return NULL;
    }
    s->env = client->env;
    s->client = client;
    s->loop = client->loop;
    lk__buf_init(&s->queue, &s->env, 0);
    lk__buf_init(&s->front, &s->env, 0);
    if (llmkit_submit(client, request, lk__stream_on_event, s, &s->call, error)) {
        lk__free(&client->env, s, sizeof *s);
        return NULL;
    }
    return s;
}

LK__PRIV void lk__stream_refill(llmkit_stream *s) {
    if (s->paused && s->call.id) {
        s->paused = false;
        llmkit_resume(s->client, s->call);
    }
    /* Inside a callback of the same loop waiting would be for ever. */
    while (s->queue.len == 0 && s->call.id && !s->cut && !lk__loop_inside(s->loop))
        llmkit_loop_poll(s->loop, -1);
    lk__buf handed = s->front;
    s->front = s->queue;
    s->queue = handed;
    s->queue.len = s->read = 0; /* what was handed out ends here */
}

LLMKIT_API bool llmkit_stream_next(llmkit_stream *s, llmkit_event *event) {
    if (s->read == s->front.len) lk__stream_refill(s);
    if (s->read < s->front.len) {
        lk__stream_pop(s, event);
        return true;
    }
    memset(event, 0, sizeof *event);
    if (!s->cut || s->told) return false;
    event->type = LLMKIT_EV_DONE;
    event->usage = (llmkit_usage){ -1, -1, -1, -1 };
    event->error = &s->error;
    s->told = true;
    return true;
}

LLMKIT_API void llmkit_stream_close(llmkit_stream *s) {
    if (!s) return;
    lk__call *c = s->call.id ? lk__client_find(s->client, s->call) : NULL;
    if (c) lk__call_cancel_now(c);
    llmkit_env env = s->env;
    lk__buf_free(&s->queue);
    lk__buf_free(&s->front);
    lk__free(&env, s, sizeof *s);
}

/* ==== >>llm/lines.h =========================================================================== */
/* llm/lines.h -- files of lines, read and written in large pieces */

/* Reads one file from its start.  Lines end in LF or CRLF; the last may end without.  A line over
 * max_bytes is cut to its first bytes and the rest of it is skipped. */
typedef struct lk__line_reader {
    int      fd; /* -1: not open */
    lk__buf  buf;
    size_t   at;       /* of the next line in buf */
    size_t   max_bytes;
    bool     eof;
    bool     skipping; /* the rest of a line that was too long */
    uint64_t number;   /* of the line returned last, from 1 */
    uint64_t total_bytes, read_bytes;
} lk__line_reader;

typedef enum lk__line_kind {
    LK__LINE,
    LK__LINE_TOO_LONG, /* the view has its beginning */
    LK__LINE_NONE,     /* the end of the file */
    LK__LINE_FAILED    /* errno, or 0 for a lack of memory */
} lk__line_kind;

LK__PRIV llmkit_err lk__line_reader_open(lk__line_reader *r, const llmkit_env *env,
                                         const char *path, size_t max_bytes, llmkit_error *error);
LK__PRIV void lk__line_reader_close(lk__line_reader *r);
/* The view ends with the next call. */
LK__PRIV lk__line_kind lk__line_next(lk__line_reader *r, llmkit_str *line);

/* Appends whole lines.  They gather in memory until lk__line_flush; a failed flush takes what was
 * written of a broken line back out of the file, so that it always holds whole lines. */
typedef struct lk__line_writer {
    int         fd;
    const char *path;
    lk__buf     buf;
    size_t      whole;   /* bytes of whole lines in it */
    bool        regular; /* a file that can be cut back */
    uint64_t    size;    /* of whole lines in the file */
} lk__line_writer;

/* append false: the file must be new or empty. */
LK__PRIV llmkit_err lk__line_writer_open(lk__line_writer *w, const llmkit_env *env,
                                         const char *path, bool append, llmkit_error *error);
LK__PRIV void lk__line_writer_close(lk__line_writer *w); /* drops what is not flushed */
/* After a line was written to buf, its LF too: one that found no memory is taken back whole. */
LK__PRIV llmkit_err lk__line_close(lk__line_writer *w, llmkit_error *error);
LK__PRIV llmkit_err lk__line_flush(lk__line_writer *w, llmkit_error *error);

/* ==== >>llm/lines.c =========================================================================== */
/* llm/lines.c -- files of lines: buffering, and what is left of a file when the disk is full */

enum { LK__LINE_READ_BYTES = 262144 };

/* ---- reading --------------------------------------------------------------------------------- */

LK__PRIV llmkit_err lk__line_reader_open(lk__line_reader *r, const llmkit_env *env,
                                         const char *path, size_t max_bytes, llmkit_error *error) {
    memset(r, 0, sizeof *r);
    r->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0)
        return lk__fail_os(error, LLMKIT_E_IO, errno, "cannot read the requests file %s", path);
    struct stat st;
    if (fstat(r->fd, &st) == 0 && S_ISREG(st.st_mode)) r->total_bytes = (uint64_t)st.st_size;
    if (fstat(r->fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        lk__line_reader_close(r);
        return lk__fail(error, LLMKIT_E_IO, "the requests file %s is a directory", path);
    }
    r->max_bytes = max_bytes;
    lk__buf_init(&r->buf, env, max_bytes + LK__LINE_READ_BYTES + 1);
    return LLMKIT_OK;
}

LK__PRIV void lk__line_reader_close(lk__line_reader *r) {
    if (r->fd >= 0) close(r->fd);
    r->fd = -1;
    lk__buf_free(&r->buf);
}

/* More bytes behind those that are there.  False: failed. */
LK__PRIV bool lk__line_fill(lk__line_reader *r) {
    lk__buf_drop(&r->buf, r->at);
    r->at = 0;
    char *to = lk__buf_more(&r->buf, LK__LINE_READ_BYTES);
    if (!to) {
        errno = 0;
        return false;
    }
    ssize_t n;
    do n = read(r->fd, to, LK__LINE_READ_BYTES);
    while (n < 0 && errno == EINTR);
    if (n < 0) return false;
    r->eof = n == 0;
    r->buf.len += (size_t)n;
    r->read_bytes += (uint64_t)n;
    return true;
}

LK__PRIV llmkit_str lk__line_take(lk__line_reader *r, size_t len, size_t skip) {
    llmkit_str line = { r->buf.ptr + r->at, len };
    r->at += skip;
    if (line.len && line.ptr[line.len - 1] == '\r') line.len--;
    return line;
}

LK__PRIV lk__line_kind lk__line_next(lk__line_reader *r, llmkit_str *line) {
    size_t scanned = 0;
    for (;;) {
        size_t left = r->buf.len - r->at;
        const char *start = left ? r->buf.ptr + r->at : NULL;
        const char *lf = left ? memchr(start + scanned, '\n', left - scanned) : NULL;
        if (lf && r->skipping) {
            r->at += (size_t)(lf - start) + 1;
            r->skipping = false;
            scanned = 0;
            continue;
        }
        if (lf || (r->eof && left && !r->skipping)) {
            size_t len = lf ? (size_t)(lf - start) : left;
            r->number++;
            *line = lk__line_take(r, len, len + (lf != NULL));
            return len > r->max_bytes ? LK__LINE_TOO_LONG : LK__LINE;
        }
        if (r->eof) return LK__LINE_NONE;
        if (r->skipping) {
            r->at = r->buf.len;
        } else if (left > r->max_bytes) {
            r->number++;
            r->skipping = true;
            *line = lk__line_take(r, left, left);
            return LK__LINE_TOO_LONG;
        }
        scanned = r->skipping ? 0 : left;
        if (!lk__line_fill(r)) return LK__LINE_FAILED;
    }
}

/* ---- writing --------------------------------------------------------------------------------- */

/* A run that was killed may have left a part of its last line, which ours must not run into. */
LK__PRIV bool lk__line_is_torn(const char *path, uint64_t size) {
    char last = '\n';
    int fd = size ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return false;
    bool torn = pread(fd, &last, 1, (off_t)(size - 1)) == 1 && last != '\n';
    close(fd);
    return torn;
}

LK__PRIV llmkit_err lk__line_writer_open(lk__line_writer *w, const llmkit_env *env,
                                         const char *path, bool append, llmkit_error *error) {
    memset(w, 0, sizeof *w);
    w->path = path;
    w->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (w->fd < 0) return lk__fail_os(error, LLMKIT_E_IO, errno, "cannot write %s", path);
    struct stat st;
    memset(&st, 0, sizeof st);
    w->regular = fstat(w->fd, &st) == 0 && S_ISREG(st.st_mode);
    w->size = w->regular ? (uint64_t)st.st_size : 0;
    lk__buf_init(&w->buf, env, 0);
    if (append && lk__line_is_torn(path, w->size)) lk__buf_ch(&w->buf, '\n');
    w->whole = w->buf.len;
    if (append || w->size == 0) return LLMKIT_OK;
    lk__line_writer_close(w);
    return lk__fail(error, LLMKIT_E_ARG, "%s exists and is not empty: name another file, or append "
                    "to it", path);
}

LK__PRIV void lk__line_writer_close(lk__line_writer *w) {
    if (w->fd >= 0) close(w->fd);
    w->fd = -1;
    lk__buf_free(&w->buf);
}

/* Cuts a line that was written in part back out of the file, and keeps whole lines that are not in
 * it at the front of the buffer. */
LK__PRIV void lk__line_undo(lk__line_writer *w, size_t written) {
    size_t whole = written;
    while (whole > 0 && w->buf.ptr[whole - 1] != '\n') whole--;
    w->size += whole;
    lk__buf_drop(&w->buf, w->regular ? whole : written);
    w->whole = w->buf.len;
    if (w->regular && whole < written && ftruncate(w->fd, (off_t)w->size)) w->regular = false;
}

LK__PRIV llmkit_err lk__line_close(lk__line_writer *w, llmkit_error *error) {
    llmkit_err err = w->buf.failed;
    if (err) w->buf.len = w->whole;
    w->buf.failed = LLMKIT_OK;
    w->whole = w->buf.len;
    return err ? lk__fail(error, err, "no memory for a line of %s", w->path) : LLMKIT_OK;
}

LK__PRIV llmkit_err lk__line_flush(lk__line_writer *w, llmkit_error *error) {
    size_t done = 0;
    while (done < w->buf.len) {
        ssize_t n = write(w->fd, w->buf.ptr + done, w->buf.len - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            int why = n < 0 ? errno : ENOSPC;
            lk__line_undo(w, done);
            return lk__fail_os(error, LLMKIT_E_IO, why, "cannot write to %s", w->path);
        }
        done += (size_t)n;
    }
    w->size += done;
    w->whole = 0;
    lk__buf_clear(&w->buf);
    return LLMKIT_OK;
}

/* ==== >>llm/batch.c =========================================================================== */
/* llm/batch.c -- the batch requester: pacing, endpoints, retries, and one line out for one in */

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

/* ==== >>srv/server.c ========================================================================== */
/* srv/server.c -- the HTTP/1.1 server: listening, connections, exchanges, deadlines */

#if LLMKIT_WITH_SERVER

enum {
    LK__SERVER_ACCEPTS = 64,     /* connections taken in one wake-up, before others have a turn */
    LK__SERVER_RETRY_MS = 100,   /* without descriptors or memory to accept, try again after */
    LK__SERVER_LINGER_MS = 2000, /* for the peer to read the last reply before the socket closes */
    LK__SERVER_STALLS = 4,       /* steps in which send_ms passes */
    LK__SERVER_AHEAD = 16384,    /* input of later requests, before reading stops */
    LK__SERVER_CORK = 16384,     /* pieces of one turn gathered into one write; a TLS record */
    LK__SERVER_SPARE = 512,      /* ended exchanges kept for the next ones */
    LK__SERVER_KEEP = 8192,      /* of each of their buffers */
};

/* What a connection is doing.  Up to LK__PEER_BODY it takes input. */
typedef enum lk__peer_phase { /*  Ends with                    Deadline           */
    LK__PEER_HANDSHAKE,       /*  TLS is ready                 head_ms            */
    LK__PEER_IDLE,            /*  a first byte                 keep_alive_ms      */
    LK__PEER_HEAD,            /*  the head is complete         head_ms            */
    LK__PEER_BODY,            /*  the body is complete         body_ms            */
    LK__PEER_EXCHANGE,        /*  the reply is written         send_ms, if unsent */
    LK__PEER_FLUSH,           /*  the reply is sent            send_ms            */
    LK__PEER_LINGER           /*  the peer closes              LK__SERVER_LINGER_MS */
} lk__peer_phase;

typedef struct lk__peer {
    lk__wire         wire;
    lk__http         http;
    lk__timer        timer;
    lk__task         task; /* sends what was corked, goes on with pending, closes the doomed */
    lk__buf          pending; /* input of later requests that came during an exchange */
    size_t           pending_at;
    llmkit_server   *server;
    llmkit_exchange *exchange; /* from a request's head to the end of its reply */
    struct lk__peer *next, **prev;
    uint64_t         written; /* bytes given to the wire */
    uint64_t         taken;   /* of these, gone at the last step of send_ms */
    lk__peer_phase   phase;
    uint8_t          stalls;  /* steps without progress */
    bool             sending; /* send_ms runs */
    bool             keep;    /* in LK__PEER_FLUSH: another request may follow */
    bool             doomed;  /* out of memory: closed at the end of the turn */
    bool            *gone;    /* set by lk__peer_close while the handler runs */
} lk__peer;

struct llmkit_exchange {
    llmkit_server   *server;
    lk__peer        *peer; /* NULL: the connection is gone */
    llmkit_exchange *next, **prev;
    lk__buf          text; /* method, path, query, then names and values, each with a NUL */
    lk__buf          body;
    lk__buf          out;  /* fields of the reply; once it has begun, what is corked */
    llmkit_str       method, path, query;
    size_t           fields_at; /* in text */
    void           (*closed)(void *user);
    void            *closed_user;
    void           (*writable)(void *user);
    void            *writable_user;
    bool             handed; /* the program has it */
    bool             keep_alive, is_head, is_1_0;
    bool             begun, chunked, bodiless;
    bool             blocked; /* a piece was refused */
    bool             over;    /* inside its closed callback */
    bool            *gone;    /* set when it is freed there */
};

struct llmkit_server {
    llmkit_env          env;
    llmkit_server_desc  desc; /* filled; its pointers are not used */
    llmkit_loop        *loop;
    llmkit_tls         *tls;
    lk__io              listener;
    lk__timer           retry; /* of accepting */
    lk__buf             head;  /* of the reply being written */
    lk__peer           *peers;
    llmkit_exchange    *exchanges, *spare;
    uint32_t            num_spare;
    llmkit_server_stats stats;
    uint16_t            port;
    char               *unix_path;
    dev_t               unix_dev; /* of the socket file, so that only our own is removed */
    ino_t               unix_ino;
    bool                draining, holding;
};

LK__PRIV void lk__peer_close(lk__peer *p);
LK__PRIV void lk__peer_flushed(lk__peer *p);

/* ---- exchanges ------------------------------------------------------------------------------- */

LK__PRIV void lk__exchange_free(llmkit_exchange *x) {
    const llmkit_env *env = &x->server->env;
    lk__buf_free(&x->text);
    lk__buf_free(&x->body);
    lk__buf_free(&x->out);
    lk__free(env, x, sizeof *x);
}

LK__PRIV void lk__exchange_unlink(llmkit_exchange *x) {
    *x->prev = x->next;
    if (x->next) x->next->prev = x->prev;
    if (x->handed) x->server->stats.in_flight--;
    if (x->gone) *x->gone = true;
}

/* Emptied, and without more memory than is worth keeping. */
LK__PRIV void lk__server_trim(lk__buf *b) {
    if (b->cap > LK__SERVER_KEEP) lk__buf_free(b);
    lk__buf_clear(b);
    if (b->ptr) b->ptr[0] = '\0'; /* an empty body is handed out as it is */
}

/* The exchange is over: its memory is kept for another one, up to a bound. */
LK__PRIV void lk__exchange_release(llmkit_exchange *x) {
    llmkit_server *s = x->server;
    lk__exchange_unlink(x);
    if (s->num_spare == LK__SERVER_SPARE) {
        lk__exchange_free(x);
        return;
    }
    lk__server_trim(&x->text);
    lk__server_trim(&x->body);
    lk__server_trim(&x->out);
    *x = (llmkit_exchange){ .server = s, .next = s->spare,
                            .text = x->text, .body = x->body, .out = x->out };
    s->spare = x;
    s->num_spare++;
}

LK__PRIV llmkit_exchange *lk__exchange_create(llmkit_server *s) {
    llmkit_exchange *x = s->spare;
    if (x) {
        s->spare = x->next;
        s->num_spare--;
    } else {
        x = lk__alloc(&s->env, sizeof *x);
        if (!x) return NULL;
        x->server = s;
        lk__buf_init(&x->text, &s->env, 0);
        lk__buf_init(&x->body, &s->env, s->desc.max_body_bytes);
        lk__buf_init(&x->out, &s->env, 0);
    }
    x->next = s->exchanges;
    x->prev = &s->exchanges;
    if (x->next) x->next->prev = &x->next;
    s->exchanges = x;
    return x;
}

/* Path and query of a target: "/a?b", "http://host/a?b" (a server must understand it too, RFC 9112
 * 3.2.2) or "*". */
LK__PRIV void lk__target_split(llmkit_str target, llmkit_str *path, llmkit_str *query) {
    if (target.len && target.ptr[0] != '/') {
        for (size_t at = lk__str_find(target, ':'); at + 2 < target.len;) {
            if (memcmp(target.ptr + at, "://", 3) != 0) break;
            target = lk__str_from(target, at + 3);
            target = lk__str_from(target, lk__str_find(target, '/'));
            break;
        }
    }
    size_t mark = lk__str_find(target, '?');
    *path = target.len ? lk__str(target.ptr, mark) : LK__STR("/");
    *query = mark < target.len ? lk__str_from(target, mark + 1) : LK__STR("");
}

LK__PRIV llmkit_str lk__exchange_keep(llmkit_exchange *x, llmkit_str s) {
    llmkit_str kept = { x->text.ptr + x->text.len, s.len };
    lk__buf_str(&x->text, s);
    x->text.len++; /* the NUL stays as an end */
    return kept;
}

/* A copy of the head, since the request outlives the bytes it was read from.  false: no memory. */
LK__PRIV bool lk__exchange_read_head(llmkit_exchange *x, const lk__head *head) {
    llmkit_str path, query;
    lk__target_split(head->target, &path, &query);
    size_t need = head->method.len + path.len + query.len + 4;
    for (uint32_t i = 0; i < head->num; i++)
        need += head->fields[i].name.len + head->fields[i].value.len + 2;
    if (!lk__buf_more(&x->text, need)) return false;
    x->method = lk__exchange_keep(x, head->method);
    x->path = lk__exchange_keep(x, path);
    x->query = lk__exchange_keep(x, query);
    x->fields_at = x->text.len;
    for (uint32_t i = 0; i < head->num; i++) {
        lk__exchange_keep(x, head->fields[i].name);
        lk__exchange_keep(x, head->fields[i].value);
    }
    x->keep_alive = head->keep_alive;
    x->is_head = lk__str_eq(head->method, LK__STR("HEAD"));
    x->is_1_0 = head->minor == 0;
    return true;
}

/* The connection is gone.  Without a closed callback the program keeps the handle, and the calls on
 * it do nothing, until it ends the exchange. */
LK__PRIV void lk__exchange_lost(llmkit_exchange *x) {
    x->peer = NULL;
    if (!x->handed) {
        lk__exchange_release(x);
        return;
    }
    if (!x->closed) return;
    bool gone = false;
    x->gone = &gone;
    x->over = true;
    x->closed(x->closed_user);
    if (!gone) lk__exchange_release(x);
}

/* ---- deadlines ------------------------------------------------------------------------------- */

/* For failures inside a call of the program's, where no callback may be made. */
LK__PRIV void lk__peer_doom(lk__peer *p) {
    p->doomed = true;
    lk__defer(p->server->loop, &p->task);
}

LK__PRIV void lk__peer_within(lk__peer *p, uint32_t ms) {
    llmkit_loop *loop = p->server->loop;
    int64_t due_ns = lk__loop_now(loop) + (int64_t)ms * LK__NS_PER_MS;
    if (lk__timer_set(loop, &p->timer, due_ns)) lk__peer_doom(p);
}

LK__PRIV uint64_t lk__peer_taken(const lk__peer *p) {
    return p->written - lk__wire_unsent(&p->wire);
}

/* send_ms runs in steps: the wire does not say when the peer takes a little, but each step can see
 * whether it has. */
LK__PRIV void lk__peer_send_step(lk__peer *p) {
    p->taken = lk__peer_taken(p);
    lk__peer_within(p, p->server->desc.send_ms / LK__SERVER_STALLS + 1);
}

LK__PRIV void lk__peer_send(lk__peer *p, const llmkit_str *pieces, size_t num) {
    for (size_t i = 0; i < num; i++) p->written += pieces[i].len;
    if (lk__wire_write(&p->wire, pieces, num)) lk__peer_doom(p);
    if (p->sending || lk__wire_unsent(&p->wire) == 0) return;
    p->sending = true;
    p->stalls = 0;
    lk__peer_send_step(p);
}

/* ---- replies --------------------------------------------------------------------------------- */

/* 204 and 304 have no body, and 204 not even its length (RFC 9110 8.6, 15.3.5, 15.4.5). */
LK__PRIV bool lk__status_is_bodiless(int status) {
    return status == 204 || status == 304;
}

/* Starts a head in s->head.  There is no Date: the env has no wall clock, and a server without one
 * must not send it (RFC 9110 6.6.1). */
LK__PRIV void lk__server_head(llmkit_server *s, int status, const char *content_type) {
    lk__server_trim(&s->head);
    lk__http_status_line(&s->head, status);
    if (content_type) lk__http_field(&s->head, LK__STR("Content-Type"), lk__str_z(content_type));
}

/* HTTP/1.1 goes on by itself, 1.0 only where the reply says so (RFC 9112 9.3, C.2.2). */
LK__PRIV void lk__server_head_end(llmkit_server *s, bool keep, bool is_1_0, llmkit_str fields) {
    if (!keep) lk__buf_str(&s->head, LK__STR("Connection: close\r\n"));
    if (keep && is_1_0) lk__buf_str(&s->head, LK__STR("Connection: keep-alive\r\n"));
    lk__buf_str(&s->head, fields);
    lk__buf_str(&s->head, LK__STR("\r\n"));
}

/* The reply is written: the next request, or the end of the connection, once it is sent. */
LK__PRIV void lk__peer_replied(lk__peer *p, bool keep) {
    p->exchange = NULL;
    p->keep = keep;
    p->phase = LK__PEER_FLUSH;
    if (!keep) lk__wire_shut(&p->wire);
    if (lk__wire_unsent(&p->wire) == 0) lk__peer_flushed(p);
}

/* All that was written is sent.  Before a last close the peer gets time to read the reply: closing
 * with its bytes unread would reset the connection, and the reset can overtake the reply (RFC 9112
 * 9.6). */
LK__PRIV void lk__peer_flushed(lk__peer *p) {
    p->sending = false;
    if (p->keep) {
        p->phase = LK__PEER_IDLE;
        lk__peer_within(p, p->server->desc.keep_alive_ms);
        if (p->pending.len) lk__defer(p->server->loop, &p->task);
        return;
    }
    p->phase = LK__PEER_LINGER;
    lk__buf_free(&p->pending);
    lk__wire_resume(&p->wire);
    lk__peer_within(p, LK__SERVER_LINGER_MS);
}

LK__PRIV const char *lk__status_type(int status) {
    switch (status) {
    case 404: return "not_found_error";
    case 408: return "timeout_error";
    case 413: return "request_too_large";
    default: return status < 500 ? "invalid_request_error" : "server_error";
    }
}

/* The server's own answer to what never became an exchange, and the last of its connection. */
LK__PRIV void lk__peer_refuse(lk__peer *p, int status, const char *message) {
    llmkit_server *s = p->server;
    char body[256];
    int len = snprintf(body, sizeof body, "{\"error\":{\"message\":\"%s\",\"type\":\"%s\"}}",
                       message, lk__status_type(status));
    s->stats.refused++;
    if (p->exchange) lk__exchange_release(p->exchange);
    lk__server_head(s, status, "application/json");
    lk__http_field_u64(&s->head, LK__STR("Content-Length"), (uint64_t)len);
    lk__server_head_end(s, false, false, LK__STR(""));
    if (s->head.failed) lk__peer_doom(p);
    llmkit_str pieces[2] = { lk__buf_view(&s->head), lk__str(body, (size_t)len) };
    lk__peer_send(p, pieces, s->head.failed ? 0 : 2);
    lk__peer_replied(p, false);
}

/* ---- requests -------------------------------------------------------------------------------- */

LK__PRIV void lk__peer_on_head(lk__peer *p, const lk__head *head, bool more_came) {
    llmkit_server *s = p->server;
    p->phase = LK__PEER_BODY;
    p->exchange = lk__exchange_create(s);
    if (p->exchange) p->exchange->peer = p;
    if (!p->exchange || !lk__exchange_read_head(p->exchange, head)) {
        lk__peer_refuse(p, 503, "out of memory");
    } else if (head->has_length && head->length > s->desc.max_body_bytes) {
        lk__peer_refuse(p, 413, "the request body is too large");
    } else if (head->expect_continue && head->minor > 0 && !more_came &&
               (head->chunked || head->length > 0)) {
        llmkit_str go_on = LK__STR("HTTP/1.1 100 Continue\r\n\r\n");
        lk__peer_send(p, &go_on, 1);
    }
}

LK__PRIV void lk__peer_on_body(lk__peer *p, llmkit_str piece) {
    lk__buf *body = &p->exchange->body;
    lk__buf_str(body, piece);
    if (body->failed == LLMKIT_E_TOO_BIG)
        lk__peer_refuse(p, 413, "the request body is too large");
    else if (body->failed)
        lk__peer_refuse(p, 503, "out of memory");
}

/* A request is whole.  False: the handler ended the connection, or the server. */
LK__PRIV bool lk__peer_on_request(lk__peer *p) {
    llmkit_server *s = p->server;
    llmkit_exchange *x = p->exchange;
    s->stats.requests++;
    s->stats.in_flight++;
    x->handed = true;
    p->phase = LK__PEER_EXCHANGE;
    bool gone = false;
    p->gone = &gone;
    bool taken = s->desc.handle(s->desc.user, x);
    if (gone) return false;
    p->gone = NULL;
    if (!taken && p->exchange == x) {
        llmkit_str body = LK__STR("{\"error\":{\"message\":\"there is nothing at this path\","
                                  "\"type\":\"not_found_error\"}}");
        llmkit_exchange_reply(x, 404, "application/json", body);
    }
    return true;
}

LK__PRIV void lk__peer_on_bad_request(lk__peer *p) {
    const lk__http *h = &p->http;
    if (h->error == LLMKIT_E_TOO_BIG)
        lk__peer_refuse(p, 431, h->reason);
    else if (h->error == LLMKIT_E_NOMEM)
        lk__peer_refuse(p, 503, "out of memory");
    else
        lk__peer_refuse(p, h->unknown_coding ? 501 : 400, h->reason); /* RFC 9112 6.1 */
}

/* All input is parsed and more must come. */
LK__PRIV void lk__peer_await_input(lk__peer *p) {
    if (p->phase == LK__PEER_IDLE) {
        p->phase = LK__PEER_HEAD;
        lk__peer_within(p, p->server->desc.head_ms);
    } else if (p->phase == LK__PEER_BODY) {
        lk__peer_within(p, p->server->desc.body_ms);
    }
}

/* Takes requests from the front of *in, and leaves there what came after one that is not answered
 * yet.  False: the connection is gone. */
LK__PRIV bool lk__peer_parse(lk__peer *p, llmkit_str *in) {
    lk__head head;
    llmkit_str piece;
    while (p->phase <= LK__PEER_BODY && (in->len > 0 || p->phase == LK__PEER_BODY)) {
        switch (lk__http_feed(&p->http, in, &head, &piece)) {
        case LK__HTTP_MORE: lk__peer_await_input(p); return true;
        case LK__HTTP_HEAD: lk__peer_on_head(p, &head, in->len > 0); break;
        case LK__HTTP_BODY: lk__peer_on_body(p, piece); break;
        case LK__HTTP_END:
            if (!lk__peer_on_request(p)) return false;
            break;
        case LK__HTTP_ERROR: lk__peer_on_bad_request(p); break;
        }
    }
    return true;
}

/* ---- what the wire reports ------------------------------------------------------------------- */

LK__PRIV void lk__peer_on_ready(lk__wire *w) {
    lk__peer *p = LK__CONTAINER(w, lk__peer, wire);
    p->phase = LK__PEER_IDLE;
    lk__peer_within(p, p->server->desc.keep_alive_ms);
}

/* Input is read during an exchange too, since that is how it is noticed that the peer goes.  What
 * comes for later requests is set aside; once that is a lot, no more is read. */
LK__PRIV void lk__peer_on_read(lk__wire *w, llmkit_str bytes) {
    lk__peer *p = LK__CONTAINER(w, lk__peer, wire);
    if (p->pending.len == 0 && !lk__peer_parse(p, &bytes)) return;
    bool ending = p->phase == LK__PEER_LINGER || (p->phase == LK__PEER_FLUSH && !p->keep);
    if (bytes.len == 0 || ending) return;
    lk__buf_drop(&p->pending, p->pending_at);
    p->pending_at = 0;
    lk__buf_str(&p->pending, bytes);
    if (p->pending.len > LK__SERVER_AHEAD) lk__wire_pause(w);
    if (p->pending.failed) lk__peer_close(p);
}

LK__PRIV void lk__peer_on_closed(lk__wire *w, const llmkit_error *error) {
    (void)error; /* how it went makes no difference to a server */
    lk__peer_close(LK__CONTAINER(w, lk__peer, wire));
}

LK__PRIV void lk__peer_on_drained(lk__wire *w) {
    lk__peer *p = LK__CONTAINER(w, lk__peer, wire);
    llmkit_exchange *x = p->exchange;
    if (w->broken) return; /* nothing was sent: closed comes next */
    p->sending = false;
    if (p->phase == LK__PEER_FLUSH) {
        lk__peer_flushed(p);
    } else if (p->phase == LK__PEER_EXCHANGE && x->blocked) {
        x->blocked = false;
        if (x->writable) x->writable(x->writable_user);
    }
}

static const lk__wire_ops lk__peer_ops = {
    .ready = lk__peer_on_ready,
    .read = lk__peer_on_read,
    .closed = lk__peer_on_closed,
    .drained = lk__peer_on_drained,
};

LK__PRIV void lk__peer_on_stall(lk__peer *p) {
    if (!p->sending) return; /* left over from an earlier phase */
    p->stalls = lk__peer_taken(p) == p->taken ? (uint8_t)(p->stalls + 1) : 0;
    if (p->stalls >= LK__SERVER_STALLS)
        lk__peer_close(p);
    else
        lk__peer_send_step(p);
}

LK__PRIV void lk__peer_on_timer(lk__timer *timer) {
    lk__peer *p = LK__CONTAINER(timer, lk__peer, timer);
    switch (p->phase) {
    case LK__PEER_IDLE: lk__wire_shut(&p->wire); lk__peer_close(p); break;
    case LK__PEER_HEAD: lk__peer_refuse(p, 408, "the request head did not come in time"); break;
    case LK__PEER_BODY: lk__peer_refuse(p, 408, "the request body did not come in time"); break;
    case LK__PEER_EXCHANGE:
    case LK__PEER_FLUSH: lk__peer_on_stall(p); break;
    case LK__PEER_HANDSHAKE:
    case LK__PEER_LINGER: lk__peer_close(p); break;
    }
}

/* Requests that came before they could be taken.  False: the connection is gone. */
LK__PRIV bool lk__peer_take_pending(lk__peer *p) {
    llmkit_str in = lk__str_from(lk__buf_view(&p->pending), p->pending_at);
    if (!lk__peer_parse(p, &in)) return false;
    if (p->pending.len == 0) return true; /* dropped with the connection's last reply */
    p->pending_at = p->pending.len - in.len;
    if (in.len > 0) return true;
    lk__buf_free(&p->pending);
    p->pending_at = 0;
    lk__wire_resume(&p->wire);
    return true;
}

LK__PRIV void lk__exchange_uncork(llmkit_exchange *x) {
    llmkit_str corked = lk__buf_view(&x->out);
    lk__peer_send(x->peer, &corked, 1);
    lk__buf_clear(&x->out);
}

LK__PRIV void lk__peer_on_task(lk__task *task) {
    lk__peer *p = LK__CONTAINER(task, lk__peer, task);
    if (p->phase == LK__PEER_EXCHANGE && p->exchange->begun) lk__exchange_uncork(p->exchange);
    if (p->pending.len && !lk__peer_take_pending(p)) return;
    if (p->doomed) lk__peer_close(p);
}

/* ---- accepting ------------------------------------------------------------------------------- */

/* Where accepting fails the listener stays readable: without a pause the loop would spin. */
LK__PRIV void lk__server_back_off(llmkit_server *s) {
    int64_t due_ns = lk__loop_now(s->loop) + LK__SERVER_RETRY_MS * LK__NS_PER_MS;
    lk__timer_set(s->loop, &s->retry, due_ns);
}

/* Tells the poller whether new connections are wanted now. */
LK__PRIV void lk__server_watch(llmkit_server *s) {
    if (s->listener.fd < 0) return;
    bool room = s->stats.open < s->desc.max_connections && s->retry.place == 0;
    unsigned events = room ? LLMKIT_READ : 0;
    if (events != s->listener.events && lk__io_set(s->loop, &s->listener, events))
        lk__server_back_off(s);
}

LK__PRIV void lk__server_on_retry(lk__timer *timer) {
    lk__server_watch(LK__CONTAINER(timer, llmkit_server, retry));
}

LK__PRIV void lk__server_add(llmkit_server *s, int fd) {
    llmkit_error error;
    lk__peer *p = lk__alloc(&s->env, sizeof *p);
    if (!p) {
        lk__loop_sys(s->loop)->close(fd);
        return;
    }
    if (lk__wire_open(&p->wire, s->loop, fd, &lk__peer_ops, s->tls, NULL, 0, &error)) {
        lk__free(&s->env, p, sizeof *p);
        return;
    }
    p->server = s;
    p->timer.fn = lk__peer_on_timer;
    p->task.fn = lk__peer_on_task;
    lk__http_init(&p->http, &s->env, true, s->desc.max_head_bytes);
    lk__buf_init(&p->pending, &s->env, 0);
    p->next = s->peers;
    p->prev = &s->peers;
    if (p->next) p->next->prev = &p->next;
    s->peers = p;
    s->stats.open++;
    s->stats.connections++;
    p->phase = s->tls ? LK__PEER_HANDSHAKE : LK__PEER_IDLE;
    lk__peer_within(p, s->tls ? s->desc.head_ms : s->desc.keep_alive_ms);
}

LK__PRIV void lk__server_on_accept(lk__io *io, unsigned ready) {
    llmkit_server *s = LK__CONTAINER(io, llmkit_server, listener);
    (void)ready;
    for (int i = 0; i < LK__SERVER_ACCEPTS && s->stats.open < s->desc.max_connections; i++) {
        int fd = lk__loop_sys(s->loop)->accept(s->listener.fd);
        if (fd >= 0) {
            lk__server_add(s, fd);
        } else if (errno != ECONNABORTED && errno != EINTR) {
            if (errno != EAGAIN && errno != EWOULDBLOCK) lk__server_back_off(s);
            break;
        }
    }
    lk__server_watch(s);
}

/* ---- the end of connections and of listening ------------------------------------------------- */

LK__PRIV void lk__server_unhold(llmkit_server *s) {
    if (!s->holding || !s->draining || s->peers) return;
    s->holding = false;
    lk__loop_unhold(s->loop);
}

/* Anything may have happened to the server when this returns: it can call the program. */
LK__PRIV void lk__peer_close(lk__peer *p) {
    llmkit_server *s = p->server;
    llmkit_exchange *x = p->exchange;
    *p->prev = p->next;
    if (p->next) p->next->prev = p->prev;
    s->stats.open--;
    lk__timer_stop(s->loop, &p->timer);
    lk__undefer(s->loop, &p->task);
    lk__wire_close(&p->wire);
    lk__http_free(&p->http);
    lk__buf_free(&p->pending);
    if (p->gone) *p->gone = true;
    lk__free(&s->env, p, sizeof *p);
    lk__server_watch(s);
    lk__server_unhold(s);
    if (x) lk__exchange_lost(x);
}

LK__PRIV void lk__server_remove_file(llmkit_server *s) {
    struct stat st;
    bool ours = s->unix_path && lstat(s->unix_path, &st) == 0 && st.st_dev == s->unix_dev &&
                st.st_ino == s->unix_ino;
    if (ours) unlink(s->unix_path);
    lk__strfree(&s->env, s->unix_path);
    s->unix_path = NULL;
}

LK__PRIV void lk__server_stop_listening(llmkit_server *s) {
    lk__timer_stop(s->loop, &s->retry);
    if (s->listener.fd < 0) return;
    int fd = s->listener.fd;
    lk__io_stop(s->loop, &s->listener);
    s->listener.fd = -1;
    lk__server_remove_file(s);
    lk__loop_sys(s->loop)->close(fd);
}

/* ---- the listening socket -------------------------------------------------------------------- */

typedef struct lk__bind_addr {
    union {
        struct sockaddr     any;
        struct sockaddr_un  un;
    } at;
    lk__addr ip;
    bool     is_unix;
} lk__bind_addr;

LK__PRIV const struct sockaddr *lk__bind_sockaddr(const lk__bind_addr *a, socklen_t *len) {
    *len = a->is_unix ? (socklen_t)sizeof a->at.un : a->ip.len;
    return a->is_unix ? &a->at.any : &a->ip.at.any;
}

LK__PRIV llmkit_err lk__listen_parse_unix(lk__bind_addr *a, llmkit_str path, llmkit_error *error) {
    if (path.len == 0 || path.len >= sizeof a->at.un.sun_path)
        return lk__fail(error, LLMKIT_E_ARG, "listen: a socket path has 1 to %zu bytes",
                        sizeof a->at.un.sun_path - 1);
    memset(a, 0, sizeof *a);
    a->is_unix = true;
    a->at.un.sun_family = AF_UNIX;
    memcpy(a->at.un.sun_path, path.ptr, path.len);
    return LLMKIT_OK;
}

/* "host:port", "[v6]:port" or "unix:/path".  Names but localhost are not looked up: that would
 * block, and which address is meant should be plain to see. */
LK__PRIV llmkit_err lk__listen_parse(lk__bind_addr *a, llmkit_str text, llmkit_error *error) {
    if (lk__str_starts(text, LK__STR("unix:")))
        return lk__listen_parse_unix(a, lk__str_from(text, 5), error);
    size_t colon = text.len;
    while (colon > 0 && text.ptr[colon - 1] != ':') colon--;
    uint64_t port;
    llmkit_str host = lk__str(text.ptr, colon ? colon - 1 : 0);
    if (!lk__parse_u64(lk__str_from(text, colon), &port) || port > UINT16_MAX || colon == 0)
        return lk__fail(error, LLMKIT_E_ARG, "listen: '%.*s' does not end in :PORT", LK__ARG(text));
    if (host.len > 2 && host.ptr[0] == '[' && host.ptr[host.len - 1] == ']')
        host = lk__str(host.ptr + 1, host.len - 2);
    if (lk__str_eq(host, LK__STR("localhost"))) host = LK__STR("127.0.0.1");
    a->is_unix = false;
    if (!lk__addr_parse(&a->ip, host, (uint16_t)port))
        return lk__fail(error, LLMKIT_E_ARG, "listen: '%.*s' is no IP address", LK__ARG(host));
    return LLMKIT_OK;
}

/* A socket file that nobody serves any more, left by a process that crashed, may go. */
LK__PRIV bool lk__listen_remove_stale(llmkit_server *s, const lk__bind_addr *a) {
    struct stat st;
    if (!a->is_unix || lstat(a->at.un.sun_path, &st) != 0 || !S_ISSOCK(st.st_mode)) return false;
    int fd = lk__socket_open(s->loop, AF_UNIX);
    if (fd < 0) return false;
    socklen_t len;
    const struct sockaddr *addr = lk__bind_sockaddr(a, &len);
    bool stale = lk__loop_sys(s->loop)->connect(fd, addr, len) != 0 && errno == ECONNREFUSED;
    lk__loop_sys(s->loop)->close(fd);
    return stale && unlink(a->at.un.sun_path) == 0;
}

LK__PRIV bool lk__listen_bind(llmkit_server *s, int fd, const lk__bind_addr *a) {
    socklen_t len;
    const struct sockaddr *addr = lk__bind_sockaddr(a, &len);
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, addr, len) == 0) return true;
    if (errno != EADDRINUSE || !lk__listen_remove_stale(s, a)) return false;
    return bind(fd, addr, len) == 0;
}

/* Remembers the port that the kernel chose, or the file that is ours to remove. */
LK__PRIV llmkit_err lk__listen_note(llmkit_server *s, int fd, const lk__bind_addr *a) {
    if (!a->is_unix) {
        lk__addr bound = { .len = sizeof bound.at };
        if (getsockname(fd, &bound.at.any, &bound.len)) return LLMKIT_E_IO;
        bool is_v6 = bound.at.any.sa_family == AF_INET6;
        s->port = ntohs(is_v6 ? bound.at.v6.sin6_port : bound.at.v4.sin_port);
        return LLMKIT_OK;
    }
    struct stat st;
    s->unix_path = lk__strdup(&s->env, a->at.un.sun_path);
    if (!s->unix_path) return LLMKIT_E_NOMEM;
    if (lstat(s->unix_path, &st) == 0) {
        s->unix_dev = st.st_dev;
        s->unix_ino = st.st_ino;
    }
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__server_listen(llmkit_server *s, const char *listen_at,
                                      llmkit_error *error) {
    lk__bind_addr a;
    llmkit_str text = listen_at ? lk__str_z(listen_at) : LK__STR("127.0.0.1:0");
    if (lk__listen_parse(&a, text, error)) return LLMKIT_E_ARG;
    int fd = lk__socket_open(s->loop, a.is_unix ? AF_UNIX : a.ip.at.any.sa_family);
    if (fd < 0) return lk__fail_os(error, LLMKIT_E_IO, errno, "no socket to listen on");
    llmkit_err err;
    if (!lk__listen_bind(s, fd, &a) || listen(fd, (int)s->desc.backlog) != 0)
        err = lk__fail_os(error, LLMKIT_E_IO, errno, "cannot listen on %.*s", LK__ARG(text));
    else if ((err = lk__listen_note(s, fd, &a)) != LLMKIT_OK ||
             (err = lk__io_start(s->loop, &s->listener, fd, LLMKIT_READ, lk__server_on_accept)))
        lk__fail(error, err, "no memory to listen");
    if (!err) return LLMKIT_OK;
    s->listener.fd = -1;
    lk__server_remove_file(s);
    lk__loop_sys(s->loop)->close(fd);
    return err;
}

/* ---- >>public: the server -------------------------------------------------------------------- */

LK__PRIV uint32_t lk__server_or(uint32_t value, uint32_t otherwise) {
    return value ? value : otherwise;
}

LK__PRIV void lk__server_defaults(llmkit_server_desc *d) {
    d->backlog = lk__server_or(d->backlog, 4096);
    d->max_connections = lk__server_or(d->max_connections, 16384);
    d->max_head_bytes = lk__server_or(d->max_head_bytes, LLMKIT_MAX_HEAD_BYTES);
    if (d->max_head_bytes > LLMKIT_MAX_HEAD_BYTES) d->max_head_bytes = LLMKIT_MAX_HEAD_BYTES;
    if (d->backlog > INT_MAX) d->backlog = INT_MAX;
    d->max_body_bytes = lk__server_or(d->max_body_bytes, 16U << 20);
    d->max_unsent_bytes = lk__server_or(d->max_unsent_bytes, 1U << 20);
    d->head_ms = lk__server_or(d->head_ms, 10000);
    d->body_ms = lk__server_or(d->body_ms, 30000);
    d->send_ms = lk__server_or(d->send_ms, 60000);
    d->keep_alive_ms = lk__server_or(d->keep_alive_ms, 75000);
}

LLMKIT_API llmkit_server *llmkit_server_create(const llmkit_server_desc *desc,
                                               llmkit_error *error) {
    if (!desc || !desc->loop || !desc->handle) {
        lk__fail(error, LLMKIT_E_ARG, "llmkit_server_desc: loop and handle are required");
        return NULL;
    }
    if (lk__check_guards(error, desc->_guard0, desc->_guard1, "llmkit_server_desc")) return NULL;
    if (desc->tls && !lk__tls_has_identity(desc->tls)) {
        lk__fail(error, LLMKIT_E_ARG, "llmkit_server_desc.tls has no certificate to serve with");
        return NULL;
    }
    llmkit_env env = lk__env_fill(&desc->env);
    llmkit_server *s = lk__alloc(&env, sizeof *s);
    if (!s) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a server");
        return NULL;
    }
    s->env = env;
    s->desc = *desc;
    lk__server_defaults(&s->desc);
    s->loop = desc->loop;
    s->retry.fn = lk__server_on_retry;
    lk__buf_init(&s->head, &s->env, 0);
    if (lk__server_listen(s, desc->listen, error)) {
        lk__free(&env, s, sizeof *s);
        return NULL;
    }
    s->tls = desc->tls ? lk__tls_retain(desc->tls) : NULL;
    s->holding = true;
    lk__loop_hold(s->loop);
    return s;
}

LLMKIT_API void llmkit_server_drain(llmkit_server *s) {
    if (!s || s->draining) return;
    s->draining = true;
    lk__server_stop_listening(s);
    for (lk__peer *p = s->peers, *next; p; p = next) {
        next = p->next;
        if (p->phase > LK__PEER_IDLE) continue;
        lk__wire_shut(&p->wire); /* TLS says goodbye */
        lk__peer_close(p);
    }
    lk__server_unhold(s);
}

LLMKIT_API void llmkit_server_destroy(llmkit_server *s) {
    if (!s) return;
    s->draining = true;
    lk__server_stop_listening(s);
    while (s->peers) lk__peer_close(s->peers);
    lk__server_unhold(s);
    while (s->exchanges) {
        llmkit_exchange *x = s->exchanges;
        lk__exchange_unlink(x);
        lk__exchange_free(x);
    }
    for (llmkit_exchange *x = s->spare, *next; x; x = next) {
        next = x->next;
        lk__exchange_free(x);
    }
    lk__buf_free(&s->head);
    llmkit_tls_release(s->tls);
    llmkit_env env = s->env;
    lk__free(&env, s, sizeof *s);
}

LLMKIT_API uint16_t llmkit_server_port(const llmkit_server *s) {
    return s ? s->port : 0;
}

LLMKIT_API llmkit_server_stats llmkit_server_read(const llmkit_server *s) {
    return s ? s->stats : (llmkit_server_stats){ 0 };
}

/* ---- >>public: the request ------------------------------------------------------------------- */

LLMKIT_API llmkit_str llmkit_exchange_method(const llmkit_exchange *x) {
    return x->method;
}

LLMKIT_API llmkit_str llmkit_exchange_path(const llmkit_exchange *x) {
    return x->path;
}

LLMKIT_API llmkit_str llmkit_exchange_query(const llmkit_exchange *x) {
    return x->query;
}

LLMKIT_API llmkit_str llmkit_exchange_body(const llmkit_exchange *x) {
    return lk__buf_view(&x->body);
}

LLMKIT_API llmkit_str llmkit_exchange_header(const llmkit_exchange *x, const char *name) {
    llmkit_str wanted = lk__str_z(name);
    const char *at = x->text.ptr + x->fields_at, *end = x->text.ptr + x->text.len;
    while (at < end) {
        llmkit_str field = lk__str_z(at);
        llmkit_str value = lk__str_z(at + field.len + 1);
        if (lk__str_ieq(field, wanted)) return value;
        at = value.ptr + value.len + 1;
    }
    return (llmkit_str){ NULL, 0 };
}

/* ---- >>public: the reply --------------------------------------------------------------------- */

LLMKIT_API void llmkit_exchange_closed(llmkit_exchange *x, void (*closed)(void *user), void *user) {
    if (x->over) return;
    x->closed = closed;
    x->closed_user = user;
}

LLMKIT_API void llmkit_exchange_writable(llmkit_exchange *x, void (*writable)(void *user),
                                         void *user) {
    if (x->over) return;
    x->writable = writable;
    x->writable_user = user;
}

LLMKIT_API llmkit_err llmkit_exchange_set(llmkit_exchange *x, const char *name, const char *value) {
    static const char *const own[] = { "Content-Length", "Transfer-Encoding", "Connection" };
    if (!x->peer) return LLMKIT_E_STALE;
    if (!name || !value || x->begun) return LLMKIT_E_ARG;
    for (size_t i = 0; i < LK__COUNT(own); i++)
        if (lk__str_ieq(lk__str_z(name), lk__str_z(own[i]))) return LLMKIT_E_ARG;
    if (strlen(name) + strlen(value) + x->out.len > LLMKIT_MAX_HEAD_BYTES) return LLMKIT_E_TOO_BIG;
    llmkit_err err = lk__http_field(&x->out, lk__str_z(name), lk__str_z(value));
    return err ? err : x->out.failed;
}

/* False: there is nobody to answer.  An exchange whose peer is gone ends here, except inside its
 * closed callback, where it ends afterwards. */
LK__PRIV bool lk__exchange_is_live(llmkit_exchange *x) {
    if (x->peer) return true;
    if (!x->over) lk__exchange_release(x);
    return false;
}

LK__PRIV void lk__exchange_finish(llmkit_exchange *x, const llmkit_str *pieces, size_t num) {
    lk__peer *p = x->peer;
    bool keep = x->keep_alive && !x->server->draining && (x->chunked || !x->begun || x->bodiless);
    lk__peer_send(p, pieces, num);
    lk__exchange_release(x);
    lk__peer_replied(p, keep);
}

LLMKIT_API void llmkit_exchange_reply(llmkit_exchange *x, int status, const char *content_type,
                                      llmkit_str body) {
    LK__ASSERT(!x->begun);
    if (!lk__exchange_is_live(x)) return;
    llmkit_server *s = x->server;
    lk__server_head(s, status, content_type);
    bool bodiless = lk__status_is_bodiless(status);
    if (!bodiless) lk__http_field_u64(&s->head, LK__STR("Content-Length"), body.len);
    bool keep = x->keep_alive && !s->draining;
    lk__server_head_end(s, keep, x->is_1_0, lk__buf_view(&x->out));
    if (s->head.failed) lk__peer_doom(x->peer);
    llmkit_str pieces[2] = { lk__buf_view(&s->head), body };
    size_t num = s->head.failed ? 0 : bodiless || x->is_head ? 1 : 2;
    lk__exchange_finish(x, pieces, num);
}

/* The head waits for the first piece, or the end of the turn: one system call for both. */
LLMKIT_API llmkit_err llmkit_exchange_begin(llmkit_exchange *x, int status,
                                            const char *content_type) {
    if (!x->peer) return LLMKIT_E_STALE;
    LK__ASSERT(!x->begun);
    llmkit_server *s = x->server;
    lk__server_head(s, status, content_type);
    x->bodiless = x->is_head || lk__status_is_bodiless(status);
    x->chunked = !x->is_1_0 && !lk__status_is_bodiless(status);
    if (x->chunked) lk__buf_str(&s->head, LK__STR("Transfer-Encoding: chunked\r\n"));
    bool keep = x->keep_alive && !s->draining && (x->chunked || x->bodiless);
    lk__server_head_end(s, keep, x->is_1_0, lk__buf_view(&x->out));
    if (s->head.failed) return s->head.failed;
    lk__buf_clear(&x->out);
    lk__buf_str(&x->out, lk__buf_view(&s->head));
    if (x->out.failed) return x->out.failed;
    x->begun = true;
    lk__defer(s->loop, &x->peer->task);
    return LLMKIT_OK;
}

/* Whether a piece may still be taken; what is corked goes out first where it matters. */
LK__PRIV bool lk__exchange_has_room(llmkit_exchange *x, size_t len) {
    size_t most = x->server->desc.max_unsent_bytes;
    size_t unsent = lk__wire_unsent(&x->peer->wire);
    if (len <= most && unsent + x->out.len <= most - len) return true;
    lk__exchange_uncork(x);
    unsent = lk__wire_unsent(&x->peer->wire);
    return unsent == 0 || (len <= most && unsent <= most - len);
}

/* Small pieces of one turn leave together. */
LK__PRIV void lk__exchange_cork(llmkit_exchange *x, llmkit_str piece) {
    if (x->chunked)
        lk__http_chunk(&x->out, piece);
    else
        lk__buf_str(&x->out, piece);
    if (x->out.failed)
        lk__peer_doom(x->peer);
    else if (x->out.len >= LK__SERVER_CORK)
        lk__exchange_uncork(x);
    else
        lk__defer(x->server->loop, &x->peer->task);
}

/* Large ones go with what is corked, and are not copied. */
LK__PRIV void lk__exchange_send_large(llmkit_exchange *x, llmkit_str piece) {
    if (x->chunked) lk__buf_fmt(&x->out, "%zx\r\n", piece.len);
    if (x->out.failed) {
        lk__peer_doom(x->peer);
        return;
    }
    llmkit_str pieces[3] = { lk__buf_view(&x->out), piece, LK__STR("\r\n") };
    lk__peer_send(x->peer, pieces, x->chunked ? 3 : 2);
    lk__buf_clear(&x->out);
}

LLMKIT_API bool llmkit_exchange_write(llmkit_exchange *x, llmkit_str piece) {
    if (!x->peer) return true;
    LK__ASSERT(x->begun);
    if (x->bodiless || piece.len == 0) return true;
    if (!lk__exchange_has_room(x, piece.len)) {
        x->blocked = true;
        return false;
    }
    if (piece.len < LK__SERVER_CORK / 2)
        lk__exchange_cork(x, piece);
    else
        lk__exchange_send_large(x, piece);
    return !x->out.failed;
}

LLMKIT_API void llmkit_exchange_end(llmkit_exchange *x) {
    if (!lk__exchange_is_live(x)) return;
    LK__ASSERT(x->begun);
    if (x->chunked && !x->is_head) lk__http_last_chunk(&x->out);
    if (x->out.failed) lk__peer_doom(x->peer);
    llmkit_str corked = lk__buf_view(&x->out);
    lk__exchange_finish(x, &corked, 1);
}

LLMKIT_API void llmkit_exchange_abort(llmkit_exchange *x) {
    if (!lk__exchange_is_live(x)) return;
    lk__peer *p = x->peer;
    lk__exchange_release(x);
    p->exchange = NULL;
    lk__peer_close(p);
}

#else /* LLMKIT_WITH_SERVER */

LLMKIT_API llmkit_server *llmkit_server_create(const llmkit_server_desc *desc,
                                               llmkit_error *error) {
    (void)desc;
    lk__fail_disabled(error, "LLMKIT_WITH_SERVER");
    return NULL;
}

LLMKIT_API void llmkit_server_drain(llmkit_server *s) {
    (void)s;
}

LLMKIT_API void llmkit_server_destroy(llmkit_server *s) {
    (void)s;
}

LLMKIT_API uint16_t llmkit_server_port(const llmkit_server *s) {
    (void)s;
    return 0;
}

LLMKIT_API llmkit_server_stats llmkit_server_read(const llmkit_server *s) {
    (void)s;
    return (llmkit_server_stats){ 0 };
}

LLMKIT_API llmkit_str llmkit_exchange_method(const llmkit_exchange *x) {
    (void)x;
    return LK__STR("");
}

LLMKIT_API llmkit_str llmkit_exchange_path(const llmkit_exchange *x) {
    (void)x;
    return LK__STR("");
}

LLMKIT_API llmkit_str llmkit_exchange_query(const llmkit_exchange *x) {
    (void)x;
    return LK__STR("");
}

LLMKIT_API llmkit_str llmkit_exchange_body(const llmkit_exchange *x) {
    (void)x;
    return LK__STR("");
}

LLMKIT_API llmkit_str llmkit_exchange_header(const llmkit_exchange *x, const char *name) {
    (void)x, (void)name;
    return (llmkit_str){ NULL, 0 };
}

LLMKIT_API void llmkit_exchange_closed(llmkit_exchange *x, void (*closed)(void *user), void *user) {
    (void)x, (void)closed, (void)user;
}

LLMKIT_API void llmkit_exchange_writable(llmkit_exchange *x, void (*writable)(void *user),
                                         void *user) {
    (void)x, (void)writable, (void)user;
}

LLMKIT_API llmkit_err llmkit_exchange_set(llmkit_exchange *x, const char *name, const char *value) {
    (void)x, (void)name, (void)value;
    return LLMKIT_E_DISABLED;
}

LLMKIT_API void llmkit_exchange_reply(llmkit_exchange *x, int status, const char *content_type,
                                      llmkit_str body) {
    (void)x, (void)status, (void)content_type, (void)body;
}

LLMKIT_API llmkit_err llmkit_exchange_begin(llmkit_exchange *x, int status,
                                            const char *content_type) {
    (void)x, (void)status, (void)content_type;
    return LLMKIT_E_DISABLED;
}

LLMKIT_API bool llmkit_exchange_write(llmkit_exchange *x, llmkit_str piece) {
    (void)x, (void)piece;
    return false;
}

LLMKIT_API void llmkit_exchange_end(llmkit_exchange *x) {
    (void)x;
}

LLMKIT_API void llmkit_exchange_abort(llmkit_exchange *x) {
    (void)x;
}

#endif /* LLMKIT_WITH_SERVER */

/* ==== >>core/end.h ============================================================================ */
/* core/end.h -- leaves no private macro behind */

/* The including unit goes on after this.  Tests define LLMKIT__KEEP_MACROS, since they use them. */
#ifndef LLMKIT__KEEP_MACROS

#undef LK__SOURCE_SUM

/* core/platform.h */
#undef LK__ASSERT
#undef LK__CONTAINER
#undef LK__COUNT
#undef LK__HAS_EVENTFD
#undef LK__INLINE
#undef LK__LIKELY
#undef LK__NEVER
#undef LK__NEVER_NS
#undef LK__NS_PER_MS
#undef LK__NS_PER_S
#undef LK__PRINTF
#undef LK__PRIV
#undef LK__UNLIKELY
#undef LK__UNUSED

/* core/atomic.h */
#undef lk__add_relaxed
#undef lk__cas
#undef lk__load_acquire
#undef lk__load_relaxed
#undef lk__store_relaxed
#undef lk__store_release
#undef lk__sub_acq_rel

/* core/str.h */
#undef LK__ARG
#undef LK__STR

#endif

#endif /* LLMKIT_IMPLEMENTATION */

/* MIT licence
 *
 * Copyright (c) 2026 the llmkit.h authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy
 * of this software and associated documentation files (the "Software"), to deal
 * in the Software without restriction, including without limitation the rights
 * to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 * copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 */
