/* core/json.c -- JSON: validation, jsmn's tokens, lookups, escapes, writing */

#include "core/json.h"

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
