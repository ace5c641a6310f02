/* core/str.c -- views of bytes, growing buffers, numbers to and from text */

#include "core/str.h"

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
