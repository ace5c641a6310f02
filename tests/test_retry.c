/* test_retry.c -- what statuses, fields and error types mean for another try */
#include "test.h"
#ifdef LLMKIT__SPLIT
#include "llm/retry.c"
#endif

static llmkit_error read_head(int status, const char *name, const char *value) {
    static lk__head head;
    llmkit_error error;
    memset(&head, 0, sizeof head);
    head.status = (uint16_t)status;
    if (name) head.fields[head.num++] = (lk__field){ lk__str_z(name), lk_guarded_str(value) };
    lk__retry_read_head(&error, &head, 784111777);
    return error;
}

static uint32_t wait_of(const char *name, const char *value) {
    return read_head(429, name, value).retry_after_ms;
}

static void retry_after_has_three_forms(void **state) {
    (void)state;
    assert_int_equal(wait_of(NULL, NULL), 0);
    assert_int_equal(wait_of("Retry-After", "3"), 3000);
    assert_int_equal(wait_of("retry-after", "0.5"), 500);
    assert_int_equal(wait_of("retry-after", "0.0001"), 1);
    assert_int_equal(wait_of("retry-after-ms", "250"), 250);
    assert_int_equal(wait_of("retry-after-ms", "0.1"), 1);
    assert_int_equal(wait_of("Retry-After", "Sun, 06 Nov 1994 08:49:47 GMT"), 10000);
    assert_int_equal(wait_of("Retry-After", "Sun, 06 Nov 1994 08:49:38 GMT"), 1000);
    assert_int_equal(wait_of("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT"), 0);
    assert_int_equal(wait_of("Retry-After", "Sat, 05 Nov 1994 08:49:37 GMT"), 0);
}

static void useless_waits_are_none(void **state) {
    (void)state;
    static const char *const useless[] = {
        "", " ", "-1", "-0.5", "0", "0.0", "nan", "NaN", "inf", "Infinity", "1e", "+1", "0x1",
        "soon", "1 s", "1,5", "Sun, 06 Nov 1994 08:49:47", "Sun, 06 Nov 1994 08:49:47 CET",
        "Sun, 06 Foo 1994 08:49:47 GMT", "Sun, xx Nov 1994 08:49:47 GMT",
        "Sun, 06 Nov 199x 08:49:47 GMT", "Sun, 06 Nov 1994 24:49:47 GMT",
        "Sun, 06 Nov 1994 08:60:47 GMT", "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Nov 1994 08-49-47 GMT", "Sunday 06 Nov 1994 08:49:47 GMT",
        "Sun, 06 Nov 100000 08:49:47 GMT", "Sun, 06 Nov 0000 08:49:47 GMT",
    };
    for (size_t i = 0; i < LK__COUNT(useless); i++) {
        if (wait_of("Retry-After", useless[i])) print_error("%s\n", useless[i]);
        assert_int_equal(wait_of("Retry-After", useless[i]), 0);
        assert_int_equal(wait_of("retry-after-ms", useless[i]), 0);
    }
}

static void enormous_waits_stay_enormous(void **state) {
    (void)state;
    assert_int_equal(wait_of("Retry-After", "4294967"), 4294967000u);
    assert_int_equal(wait_of("Retry-After", "4294968"), UINT32_MAX);
    assert_int_equal(wait_of("Retry-After", "1e300"), UINT32_MAX);
    assert_int_equal(wait_of("Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"), UINT32_MAX);
}

static void milliseconds_come_before_seconds(void **state) {
    (void)state;
    static lk__head head = { .status = 429, .num = 2 };
    llmkit_error error;
    head.fields[0] = (lk__field){ LK__STR("Retry-After"), LK__STR("9") };
    head.fields[1] = (lk__field){ LK__STR("Retry-After-Ms"), LK__STR("20") };
    lk__retry_read_head(&error, &head, 0);
    assert_int_equal(error.retry_after_ms, 20);
    head.fields[1].value = LK__STR("garbage");
    lk__retry_read_head(&error, &head, 0);
    assert_int_equal(error.retry_after_ms, 9000);
}

static void dates_agree_with_the_calendar(void **state) {
    (void)state;
    static lk__head head = { .status = 429, .num = 1 };
    for (time_t t = -86400 * 400; t < (time_t)86400 * 366 * 60; t += 86399) {
        struct tm tm;
        char date[64];
        llmkit_error error;
        assert_non_null(gmtime_r(&t, &tm));
        strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
        head.fields[0] = (lk__field){ LK__STR("Retry-After"), lk__str_z(date) };
        lk__retry_read_head(&error, &head, (int64_t)t - 5);
        assert_int_equal(error.retry_after_ms, 5000);
    }
}

static void x_should_retry_has_the_last_word(void **state) {
    (void)state;
    assert_true(read_head(400, "x-should-retry", "true").retryable);
    assert_false(read_head(500, "x-should-retry", "false").retryable);
    assert_true(read_head(500, "x-should-retry", "maybe").retryable);
    assert_false(read_head(404, "x-should-retry", "1").retryable);
}

static void request_ids_have_two_names(void **state) {
    (void)state;
    assert_string_equal(read_head(500, "X-Request-ID", "a").request_id, "a");
    assert_string_equal(read_head(500, "request-id", "b").request_id, "b");
    assert_string_equal(read_head(500, NULL, NULL).request_id, "");
    char longer[200];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(strlen(read_head(500, "request-id", longer).request_id), 63);
}

static void redirects_name_their_target(void **state) {
    (void)state;
    llmkit_error error = read_head(301, "Location", "https://b.example/v1");
    assert_non_null(strstr(error.message, "https://b.example/v1"));
    assert_non_null(strstr(error.message, "301"));
    assert_int_equal(error.http_status, 301);
    assert_false(error.retryable);
    assert_string_equal(read_head(304, NULL, NULL).message, "HTTP status 304");
}

static void the_backoff_is_that_of_the_official_clients(void **state) {
    (void)state;
    lk_world w;
    lk__rand rand;
    lk_world_init(&w);
    lk__rand_init(&rand, &w.env);
    lk__retry_policy p = lk__retry_fill((lk__retry_policy){ .max_tries = 100 });
    assert_int_equal(p.backoff_ms, 500);
    assert_int_equal(p.max_backoff_ms, 8000);
    assert_int_equal(p.max_retry_after_ms, 120000);
    assert_int_equal(lk__retry_fill((lk__retry_policy){ 0 }).max_tries, 3);
    llmkit_error error;
    lk__fail(&error, LLMKIT_E_SERVER, "x");
    int64_t low = INT64_MAX, high = 0;
    for (uint32_t tries = 1; tries < 100; tries++) {
        int64_t most = tries < 6 ? (500 * LK__NS_PER_MS) << (tries - 1) : 8000 * LK__NS_PER_MS;
        if (most > 8000 * LK__NS_PER_MS) most = 8000 * LK__NS_PER_MS;
        int64_t ns = lk__retry_delay(&p, tries, &error, &rand);
        assert_true(ns > most / 4 * 3 && ns <= most);
        if (tries > 5 && ns < low) low = ns;
        if (tries > 5 && ns > high) high = ns;
    }
    assert_true(high - low > 1500 * LK__NS_PER_MS); /* it is spread over its quarter */
    assert_int_equal(lk__retry_delay(&p, 100, &error, &rand), -1);
    error.retry_after_ms = 120000;
    assert_int_equal(lk__retry_delay(&p, 1, &error, &rand), 120000 * LK__NS_PER_MS);
    error.retry_after_ms = 120001;
    assert_int_equal(lk__retry_delay(&p, 1, &error, &rand), -1);
    error.retry_after_ms = 0;
    error.retryable = false;
    assert_int_equal(lk__retry_delay(&p, 1, &error, &rand), -1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(retry_after_has_three_forms),
    cmocka_unit_test(useless_waits_are_none),
    cmocka_unit_test(enormous_waits_stay_enormous),
    cmocka_unit_test(milliseconds_come_before_seconds),
    cmocka_unit_test(dates_agree_with_the_calendar),
    cmocka_unit_test(x_should_retry_has_the_last_word),
    cmocka_unit_test(request_ids_have_two_names),
    cmocka_unit_test(redirects_name_their_target),
    cmocka_unit_test(the_backoff_is_that_of_the_official_clients),
};

LK_TEST_MAIN(tests)
