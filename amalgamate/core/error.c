/* core/error.c -- names of errors, and filling in a llmkit_error */

#include "core/error.h"

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
