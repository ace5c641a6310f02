/* net/url.h -- the URLs of providers and endpoints */
#pragma once

#include "core/error.h"

/* Views into the text it was parsed from.  http, https (RFC 9110 4.2) and "unix:/socket:/path".
 * User information, fragments, and what is not visible ASCII are refused; a message says why, and
 * repeats none of the text, which may hold a secret.  Host names are compared in any case. */
typedef struct lk__url {
    bool       tls;
    llmkit_str host; /* without the brackets of an IPv6 address; of a Unix socket "localhost" */
    uint16_t   port; /* the scheme's own where the text has none; 0 for a Unix socket */
    llmkit_str unix_path; /* "" but for a Unix socket */
    llmkit_str path;      /* with its leading '/', query included; "" where there is none */
} lk__url;

LK__PRIV llmkit_err lk__url_parse(lk__url *url, llmkit_str text, llmkit_error *error);
/* The value of the Host field: brackets for IPv6, the port where it is not the scheme's own. */
LK__PRIV void lk__url_host_field(const lk__url *url, lk__buf *out);
