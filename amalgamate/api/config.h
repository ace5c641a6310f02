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
