/* net/http1.c -- HTTP/1.1 messages: heads, bodies and chunks in, heads and chunks out */
#include "net/http1.h"

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
