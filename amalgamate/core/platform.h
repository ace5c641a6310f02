/* core/platform.h -- system headers, and what the platform and the compiler have */
#pragma once

#include "api/config.h"
#include "api/base.h"
#include "api/json.h"
#include "api/loop.h"
#include "api/tls.h"
#include "api/limits.h"
#include "api/chat.h"
#include "api/client.h"
#include "api/batch.h"
#include "api/server.h"

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
