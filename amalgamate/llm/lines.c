/* llm/lines.c -- files of lines: buffering, and what is left of a file when the disk is full */

#include "llm/lines.h"

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
