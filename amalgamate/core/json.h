/* core/json.h -- reading JSON through jsmn, and writing it */
#pragma once

#include "core/error.h"

/* A parsed document over text that must outlive it.  Nodes are indices into jsmn's tokens.  A
 * parser may be reused for any number of texts and keeps its token array, so that a warm one
 * allocates nothing.
 *
 * jsmn tokenises but does not validate (see reference notes in docs/design.md), and its cost grows
 * with the square of the nesting.  So one pass of our own goes first: it checks the whole grammar
 * of RFC 8259, UTF-8 included, bounds the depth, and counts the tokens. */
typedef struct lk__json {
    const char       *text;
    lk__jsmntok      *tokens;
    uint32_t          num, cap;
    bool              escaped_keys; /* some key has a backslash: keys are not what their text is */
    size_t            error_at;     /* byte position, after E_JSON */
    const llmkit_env *env;
} lk__json;

typedef int32_t lk__node; /* -1: none; 0: the root */

typedef enum lk__json_type {
    LK__JSON_NONE, /* of node -1 */
    LK__JSON_NULL,
    LK__JSON_BOOL,
    LK__JSON_NUMBER,
    LK__JSON_STRING,
    LK__JSON_ARRAY,
    LK__JSON_OBJECT
} lk__json_type;

LK__PRIV void lk__json_init(lk__json *j, const llmkit_env *env);
LK__PRIV void lk__json_free(lk__json *j);
/* OK, E_JSON, E_NOMEM; E_TOO_BIG for text over 2 GiB.  After a failure there is no node. */
LK__PRIV llmkit_err lk__json_parse(lk__json *j, llmkit_str text);

/* Every reader takes node -1 and answers none, empty or false, so that lookups chain. */
LK__PRIV lk__json_type lk__json_type_of(const lk__json *j, lk__node n);
/* Of members with the same name the first one counts. */
LK__PRIV lk__node lk__json_get(const lk__json *j, lk__node object, llmkit_str key);
LK__PRIV lk__node lk__json_at(const lk__json *j, lk__node array, uint32_t index);
LK__PRIV uint32_t lk__json_size(const lk__json *j, lk__node n); /* members or elements */
/* Walks children: first, then next until -1.  Of an object these are keys; value_of takes a key. */
LK__PRIV lk__node lk__json_first(const lk__json *j, lk__node parent);
LK__PRIV lk__node lk__json_next(const lk__json *j, lk__node child);
LK__PRIV lk__node lk__json_value_of(const lk__json *j, lk__node key);
/* Raw text: of a string what stands between the quotes. */
LK__PRIV llmkit_str lk__json_raw(const lk__json *j, lk__node n);
LK__PRIV bool lk__json_i64(const lk__json *j, lk__node n, int64_t *out); /* integers, 3.0 too */
LK__PRIV bool lk__json_f64(const lk__json *j, lk__node n, double *out);
LK__PRIV bool lk__json_is_true(const lk__json *j, lk__node n);
/* Appends a string's text, unescaped; false if it is no string.  Lone surrogates become U+FFFD. */
LK__PRIV bool lk__json_text(const lk__json *j, lk__node n, lk__buf *out);
/* The text of a string as a view: into the document where nothing is escaped, else into scratch,
 * which is cleared first. */
LK__PRIV llmkit_str lk__json_view(const lk__json *j, lk__node n, lk__buf *scratch);

/* Bytes of the valid JSON string that the text begins with, quotes included; 0: there is none. */
LK__PRIV size_t lk__json_string_len(llmkit_str text);
/* Unescapes raw string text (validated before) to the end of out. */
LK__PRIV void lk__json_unescape_to(lk__buf *out, llmkit_str raw);
/* Appends text escaped for between the quotes; invalid UTF-8 becomes U+FFFD. */
LK__PRIV void lk__json_escape_to(lk__buf *out, llmkit_str text);

/* The writer: commas by itself, the rest is the caller's word.  Errors stick in out. */
typedef struct lk__jsonw {
    lk__buf *out;
    bool     comma; /* the next member or element needs one */
} lk__jsonw;

LK__PRIV void lk__jsonw_open(lk__jsonw *w, char bracket);  /* '{' or '[' */
LK__PRIV void lk__jsonw_close(lk__jsonw *w, char bracket); /* '}' or ']' */
LK__PRIV void lk__jsonw_key(lk__jsonw *w, const char *key); /* a literal without escapes */
LK__PRIV void lk__jsonw_str(lk__jsonw *w, llmkit_str text);
LK__PRIV void lk__jsonw_raw(lk__jsonw *w, llmkit_str json); /* a whole value, as it is */
LK__PRIV void lk__jsonw_f64(lk__jsonw *w, double value);
LK__PRIV void lk__jsonw_i64(lk__jsonw *w, int64_t value);
LK__PRIV void lk__jsonw_bool(lk__jsonw *w, bool value);
