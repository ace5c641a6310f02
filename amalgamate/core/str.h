/* core/str.h -- views of bytes, growing buffers, numbers to and from text */
#pragma once

#include "core/mem.h"

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
