/* net/sse.c -- event streams: lines into events, events into lines */
#include "net/sse.h"

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
