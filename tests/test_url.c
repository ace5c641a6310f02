/* test_url.c -- URLs: what is read, and what is refused without repeating it */
#include "test.h"

static void parsed(const char *text, bool tls, const char *host, uint16_t port, const char *path,
                   const char *host_field) {
    lk__url      url;
    llmkit_error error;
    llmkit_env   env = lk__env_fill(NULL);
    lk__buf      field;
    assert_ok(lk__url_parse(&url, lk_guarded_str(text), &error));
    assert_int_equal(url.tls, tls);
    assert_str(url.host, host);
    assert_int_equal(url.port, port);
    assert_str(url.path, path);
    assert_str(url.unix_path, "");
    lk__buf_init(&field, &env, 0);
    lk__url_host_field(&url, &field);
    assert_str(lk__buf_view(&field), host_field);
    lk__buf_free(&field);
}

static void urls_are_read(void **state) {
    (void)state;
    parsed("https://api.openai.com/v1", true, "api.openai.com", 443, "/v1", "api.openai.com");
    parsed("http://localhost:8080", false, "localhost", 8080, "", "localhost:8080");
    parsed("HTTPS://A-b_c.D:443/", true, "A-b_c.D", 443, "/", "A-b_c.D");
    parsed("http://127.0.0.1:80/a/b/?x=1&y=%20@:", false, "127.0.0.1", 80, "/a/b/?x=1&y=%20@:",
           "127.0.0.1");
    parsed("http://a:443//", false, "a", 443, "//", "a:443");
    parsed("https://a:80/", true, "a", 80, "/", "a:80");
    parsed("http://a:/x", false, "a", 80, "/x", "a");
    parsed("http://a:65535", false, "a", 65535, "", "a:65535");
    parsed("http://a:1", false, "a", 1, "", "a:1");
}

static void ipv6_addresses_stand_in_brackets(void **state) {
    (void)state;
    parsed("http://[::1]", false, "::1", 80, "", "[::1]");
    parsed("http://[::1]:8080/v1", false, "::1", 8080, "/v1", "[::1]:8080");
    parsed("https://[2001:DB8::ffff:1.2.3.4]:/", true, "2001:DB8::ffff:1.2.3.4", 443, "/",
           "[2001:DB8::ffff:1.2.3.4]");
}

static void unix_sockets_end_at_the_last_colon_before_a_slash(void **state) {
    static const struct {
        const char *text, *socket, *path;
    } vectors[] = {
        { "unix:/tmp/a.sock", "/tmp/a.sock", "" },
        { "unix:/tmp/a.sock:", "/tmp/a.sock", "" },
        { "unix:/tmp/a.sock:/v1", "/tmp/a.sock", "/v1" },
        { "unix:/tmp/a:/b.sock:/v1/", "/tmp/a:/b.sock", "/v1/" },
        { "UNIX:/a:b:/v1?x=1", "/a:b", "/v1?x=1" },
        { "unix:/a:b", "/a:b", "" },
    };
    (void)state;
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        lk__url    url;
        llmkit_env env = lk__env_fill(NULL);
        lk__buf    field;
        assert_ok(lk__url_parse(&url, lk_guarded_str(vectors[i].text), NULL));
        assert_str(url.unix_path, vectors[i].socket);
        assert_str(url.path, vectors[i].path);
        assert_str(url.host, "localhost");
        assert_int_equal(url.port, 0);
        assert_false(url.tls);
        lk__buf_init(&field, &env, 0);
        lk__url_host_field(&url, &field);
        assert_str(lk__buf_view(&field), "localhost");
        lk__buf_free(&field);
    }
}

static void malformed_urls_are_refused_with_the_reason(void **state) {
    static const struct {
        const char *text, *message;
    } vectors[] = {
        { "", "the URL does not begin with https://, http:// or unix:/" },
        { "localhost:8080", "the URL does not begin with https://, http:// or unix:/" },
        { "ftp://a", "the URL does not begin with https://, http:// or unix:/" },
        { "http:/a", "the URL does not begin with https://, http:// or unix:/" },
        { "http", "the URL does not begin with https://, http:// or unix:/" },
        { "http://", "the URL has no host" },
        { "http:///v1", "the URL has no host" },
        { "http://:80/v1", "the URL has no host" },
        { "http://a b", "the URL holds a space" },
        { "http://a/\r\nX: y", "the URL holds a control byte" },
        { "http://a/\x7f", "the URL holds a control byte" },
        { "http://\xc3\xa4.de", "the URL holds a byte outside ASCII; percent-encode it" },
        { "http://a/#top", "the URL has a fragment ('#'); leave it out" },
        { "http://a?x=1", "the URL has a query, but no '/' before it" },
        { "http://a:0", "the URL's port is not a number from 1 to 65535" },
        { "http://a:65536", "the URL's port is not a number from 1 to 65535" },
        { "http://a:99999999999999999999", "the URL's port is not a number from 1 to 65535" },
        { "http://a:x/", "the URL's port is not a number from 1 to 65535" },
        { "http://a:-1", "the URL's port is not a number from 1 to 65535" },
        { "http://a:1:2", "the URL's port is not a number from 1 to 65535" },
        { "http://::1/", "the URL has no host" },
        { "http://fe80::1/", "the URL's port is not a number from 1 to 65535" },
        { "http://a%41", "the URL's host is not a valid name" },
        { "http://a\\b", "the URL's host is not a valid name" },
        { "http://a,b", "the URL's host is not a valid name" },
        { "http://[::1", "the URL's '[' has no ']'" },
        { "http://[::1/]", "the URL's '[' has no ']'" },
        { "http://[]", "the URL's brackets hold no IPv6 address" },
        { "http://[1.2.3.4]", "the URL's brackets hold no IPv6 address" },
        { "http://[::1%25lo]", "the URL's brackets hold no IPv6 address" },
        { "http://[1111:2222:3333:4444:5555:6666:7777:8888:9999:0000]",
          "the URL's brackets hold no IPv6 address" },
        { "http://[::1]80", "the URL has something between ']' and ':'" },
        { "unix:a.sock", "the URL's socket path does not begin with '/'" },
        { "unix:", "the URL's socket path does not begin with '/'" },
        { "unix::/v1", "the URL's socket path does not begin with '/'" },
    };
    (void)state;
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        lk__url      url;
        llmkit_error error;
        assert_err(lk__url_parse(&url, lk_guarded_str(vectors[i].text), &error), LLMKIT_E_ARG);
        assert_string_equal(error.message, vectors[i].message);
        assert_err(lk__url_parse(&url, lk_guarded_str(vectors[i].text), NULL), LLMKIT_E_ARG);
    }
}

static void secrets_in_urls_are_not_repeated(void **state) {
    static const char *const texts[] = { "https://user:hunter2@a/v1", "https://hunter2@a",
                                         "https://u:hunter2/x@a/", "https://a:hunter2/",
                                         "https://[hunter2]/", "https://a/?k=hunter2 ",
                                         "hunter2://a", "unix:hunter2" };
    (void)state;
    for (size_t i = 0; i < LK__COUNT(texts); i++) {
        lk__url      url;
        llmkit_error error;
        assert_err(lk__url_parse(&url, lk_guarded_str(texts[i]), &error), LLMKIT_E_ARG);
        assert_null(strstr(error.message, "hunter2"));
        if (i < 2) assert_non_null(strstr(error.message, "user name or password"));
    }
}

static void names_and_socket_paths_have_a_ceiling(void **state) {
    (void)state;
    struct sockaddr_un address;
    lk__url url;
    char    text[300];
    for (int extra = 0; extra < 2; extra++) {
        llmkit_err expected = extra ? LLMKIT_E_ARG : LLMKIT_OK;
        snprintf(text, sizeof text, "http://%0*d/", 253 + extra, 0);
        assert_err(lk__url_parse(&url, lk_guarded_str(text), NULL), expected);
        snprintf(text, sizeof text, "unix:/%0*d:/", (int)sizeof address.sun_path - 2 + extra, 0);
        assert_err(lk__url_parse(&url, lk_guarded_str(text), NULL), expected);
    }
}

static void brackets_of_any_length_are_refused(void **state) {
    (void)state;
    lk__url url;
    char    text[100];
    for (int n = 1; n < 80; n++) {
        snprintf(text, sizeof text, "http://[%0*d]", n, 0);
        assert_err(lk__url_parse(&url, lk_guarded_str(text), NULL), LLMKIT_E_ARG);
    }
}

static bool is_within(llmkit_str view, const char *text, size_t n) {
    return view.len == 0 || (view.ptr >= text && view.ptr + view.len <= text + n);
}

static void garbage_never_leads_outside(void **state) {
    (void)state;
    static const char *const words[] = { "http://", "https://", "unix:", "a", "[", "]", "::1", ":",
                                         "/", "?", "@", "80", "65536", ".", "\x80", "%", "/tmp/x" };
    llmkit_env env = { .seed = 3 };
    lk__rand   rand;
    lk__rand_init(&rand, &env);
    for (int round = 0; round < 100000; round++) {
        char   text[128];
        size_t n = 0;
        for (uint64_t num = lk__rand_u64(&rand) % 9; num > 0; num--) {
            uint64_t    r = lk__rand_u64(&rand);
            const char *word = words[(r >> 8) % (n ? LK__COUNT(words) : 3)];
            if (r % 32 == 0) text[n++] = (char)(r >> 32);
            memcpy(text + n, word, strlen(word));
            n += strlen(word);
        }
        char   *copy = lk_guarded(text, n);
        lk__url url;
        if (lk__url_parse(&url, lk__str(copy, n), NULL)) continue;
        assert_true(is_within(url.path, copy, n) && is_within(url.unix_path, copy, n));
        assert_true(url.unix_path.len > 0 || (is_within(url.host, copy, n) && url.host.len > 0));
        assert_true(url.path.len == 0 || url.path.ptr[0] == '/');
        assert_true((url.port == 0) == (url.unix_path.len > 0));
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(urls_are_read),
    cmocka_unit_test(ipv6_addresses_stand_in_brackets),
    cmocka_unit_test(unix_sockets_end_at_the_last_colon_before_a_slash),
    cmocka_unit_test(malformed_urls_are_refused_with_the_reason),
    cmocka_unit_test(secrets_in_urls_are_not_repeated),
    cmocka_unit_test(names_and_socket_paths_have_a_ceiling),
    cmocka_unit_test(brackets_of_any_length_are_refused),
    cmocka_unit_test(garbage_never_leads_outside),
};

LK_TEST_MAIN(tests)
