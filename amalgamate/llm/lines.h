/* llm/lines.h -- files of lines, read and written in large pieces */
#pragma once

#include "core/error.h"

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
