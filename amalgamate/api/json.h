/* api/json.h -- just enough JSON to read tool arguments and write replies */
#pragma once

/* Finds the value at a path such as "choices[0].delta.content" ("" is the whole document).  value
 * is its raw text inside json: of a string, what stands between the quotes, still escaped.  E_JSON
 * if json is not one valid JSON document (RFC 8259) of at most LLMKIT_MAX_JSON_DEPTH levels or
 * nothing is there; E_ARG if the path makes no sense. */
LLMKIT_API llmkit_err llmkit_json_find(llmkit_str json, const char *path, llmkit_str *value);

/* The raw text of a number, "true" as 1, "false" as 0; else E_JSON. */
LLMKIT_API llmkit_err llmkit_json_number(llmkit_str value, double *out);

/* Both write at most size bytes, the last of them a NUL, and return the length that the whole
 * result has, as snprintf does.  unescape: raw string text to UTF-8.  escape: any bytes to what
 * may stand between JSON's quotes; invalid UTF-8 becomes U+FFFD. */
LLMKIT_API size_t llmkit_json_unescape(llmkit_str value, char *buf, size_t size);
LLMKIT_API size_t llmkit_json_escape(llmkit_str text, char *buf, size_t size);
