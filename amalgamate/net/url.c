/* net/url.c -- the URLs of providers and endpoints */
#include "net/url.h"

/* No message repeats any of the text: a URL may hold a secret where it should not. */

enum { LK__URL_MAX_HOST = 253 }; /* RFC 1035 2.3.4, written out without the final dot */

/* What is not visible ASCII can stand in no URL (RFC 3986 2). */
LK__PRIV llmkit_err lk__url_check_bytes(llmkit_str text, llmkit_error *error) {
    for (size_t i = 0; i < text.len; i++) {
        uint8_t c = (uint8_t)text.ptr[i];
        if (c == ' ') return lk__fail(error, LLMKIT_E_ARG, "the URL holds a space");
        if (c < 0x20 || c == 0x7f)
            return lk__fail(error, LLMKIT_E_ARG, "the URL holds a control byte");
        if (c > 0x7f)
            return lk__fail(error, LLMKIT_E_ARG,
                            "the URL holds a byte outside ASCII; percent-encode it");
        if (c == '#')
            return lk__fail(error, LLMKIT_E_ARG, "the URL has a fragment ('#'); leave it out");
    }
    return LLMKIT_OK;
}

LK__PRIV bool lk__url_is_ipv6(llmkit_str host) {
    char text[INET6_ADDRSTRLEN];
    struct in6_addr address;
    if (host.len >= sizeof(text)) return false;
    memcpy(text, host.ptr, host.len);
    text[host.len] = '\0';
    return inet_pton(AF_INET6, text, &address) == 1;
}

/* Letters, digits, '-', '.' and '_': what resolvers take, less than RFC 3986 3.2.2 allows. */
LK__PRIV bool lk__url_is_name(llmkit_str host) {
    for (size_t i = 0; i < host.len; i++) {
        char c = lk__lower(host.ptr[i]);
        bool good =
            (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
        if (!good) return false;
    }
    return host.len <= LK__URL_MAX_HOST;
}

/* An empty port is the scheme's own (RFC 3986 3.2.3). */
LK__PRIV llmkit_err lk__url_port(lk__url *url, llmkit_str text, llmkit_error *error) {
    uint64_t port = 0;
    if (text.len == 0) return LLMKIT_OK;
    if (!lk__parse_u64(text, &port) || port < 1 || port > 65535)
        return lk__fail(error, LLMKIT_E_ARG, "the URL's port is not a number from 1 to 65535");
    url->port = (uint16_t)port;
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__url_authority(lk__url *url, llmkit_str text, llmkit_error *error) {
    if (lk__str_find(text, '@') < text.len)
        return lk__fail(error, LLMKIT_E_ARG,
                        "the URL holds a user name or password; give a key as api_key instead");
    if (text.len > 0 && text.ptr[0] == '[') {
        size_t close = lk__str_find(text, ']');
        if (close == text.len) return lk__fail(error, LLMKIT_E_ARG, "the URL's '[' has no ']'");
        url->host = lk__str(text.ptr + 1, close - 1);
        if (!lk__url_is_ipv6(url->host))
            return lk__fail(error, LLMKIT_E_ARG, "the URL's brackets hold no IPv6 address");
        text = lk__str_from(text, close + 1);
        if (text.len > 0 && text.ptr[0] != ':')
            return lk__fail(error, LLMKIT_E_ARG, "the URL has something between ']' and ':'");
    } else {
        url->host = lk__str(text.ptr, lk__str_find(text, ':'));
        if (url->host.len == 0) return lk__fail(error, LLMKIT_E_ARG, "the URL has no host");
        if (!lk__url_is_name(url->host))
            return lk__fail(error, LLMKIT_E_ARG, "the URL's host is not a valid name");
        text = lk__str_from(text, url->host.len);
    }
    return text.len > 0 ? lk__url_port(url, lk__str_from(text, 1), error) : LLMKIT_OK;
}

/* "/socket", "/socket:" or "/socket:/path".  A socket's own path may hold ':', hence the last. */
LK__PRIV llmkit_err lk__url_unix(lk__url *url, llmkit_str text, llmkit_error *error) {
    struct sockaddr_un address;
    size_t at = text.len;
    while (at > 0 && !(text.ptr[at - 1] == ':' && (at == text.len || text.ptr[at] == '/'))) at--;
    url->unix_path = at > 0 ? lk__str(text.ptr, at - 1) : text;
    if (at > 0) url->path = lk__str_from(text, at);
    url->host = LK__STR("localhost");
    if (url->unix_path.len == 0 || url->unix_path.ptr[0] != '/')
        return lk__fail(error, LLMKIT_E_ARG, "the URL's socket path does not begin with '/'");
    if (url->unix_path.len >= sizeof(address.sun_path))
        return lk__fail(error, LLMKIT_E_ARG, "the URL's socket path is longer than %d bytes",
                        (int)sizeof(address.sun_path) - 1);
    return LLMKIT_OK;
}

LK__PRIV bool lk__url_scheme(llmkit_str *text, llmkit_str scheme) {
    if (text->len < scheme.len || !lk__str_ieq(lk__str(text->ptr, scheme.len), scheme))
        return false;
    *text = lk__str_from(*text, scheme.len);
    return true;
}

LK__PRIV llmkit_err lk__url_parse(lk__url *url, llmkit_str text, llmkit_error *error) {
    *url = (lk__url){ .host = LK__STR(""), .unix_path = LK__STR(""), .path = LK__STR("") };
    llmkit_err err = lk__url_check_bytes(text, error);
    if (err) return err;
    if (lk__url_scheme(&text, LK__STR("unix:"))) return lk__url_unix(url, text, error);
    url->tls = lk__url_scheme(&text, LK__STR("https://"));
    if (!url->tls && !lk__url_scheme(&text, LK__STR("http://")))
        return lk__fail(error, LLMKIT_E_ARG,
                        "the URL does not begin with https://, http:// or unix:/");
    url->port = url->tls ? 443 : 80;

    size_t end = 0;
    while (end < text.len && text.ptr[end] != '/' && text.ptr[end] != '?') end++;
    if (end < text.len && text.ptr[end] == '?')
        return lk__fail(error, LLMKIT_E_ARG, "the URL has a query, but no '/' before it");
    if (end < text.len) url->path = lk__str_from(text, end);
    return lk__url_authority(url, lk__str(text.ptr, end), error);
}

LK__PRIV void lk__url_host_field(const lk__url *url, lk__buf *out) {
    bool ipv6 = lk__str_find(url->host, ':') < url->host.len;
    if (ipv6) lk__buf_ch(out, '[');
    lk__buf_str(out, url->host);
    if (ipv6) lk__buf_ch(out, ']');
    if (url->port != 0 && url->port != (url->tls ? 443 : 80)) {
        lk__buf_ch(out, ':');
        lk__buf_u64(out, url->port);
    }
}
