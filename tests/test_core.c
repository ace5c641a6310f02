/* test_core.c -- memory, strings, numbers, buffers, errors, random numbers, the sketch */
#include "test.h"

#include <locale.h>

/* Memory and the log. */

static void env_is_filled_in(void **state) {
    (void)state;
    llmkit_env env = lk__env_fill(NULL);
    assert_non_null(env.alloc);
    assert_null(env.log);
    int64_t before = lk__now(&env);
    assert_true(before > 0 && lk__now(&env) >= before);
    lk_world world;
    lk_world_init_virtual(&world, 42);
    env = lk__env_fill(&world.env);
    assert_ptr_equal(env.alloc, world.env.alloc);
    assert_int_equal(lk__now(&env), 42);
}

static void allocations_are_zeroed_counted_and_refused(void **state) {
    (void)state;
    lk_world world;
    lk_world_init(&world);
    unsigned char *p = lk__alloc(&world.env, 100);
    for (int i = 0; i < 100; i++) assert_int_equal(p[i], 0);
    p = lk__resize(&world.env, p, 100, 200);
    assert_int_equal(p[99], 0);
    lk__free(&world.env, p, 200);
    lk__free(&world.env, NULL, 10);
    assert_null(lk__alloc(&world.env, SIZE_MAX));
    assert_null(lk__alloc(&world.env, lk__mul(SIZE_MAX / 2, 3)));
    assert_null(lk__alloc(&world.env, lk__add(SIZE_MAX, 1)));
    assert_null(lk__resize(&world.env, NULL, 0, SIZE_MAX));
    LK_EACH_REFUSAL(&world) {
        char *text = lk__strdup(&world.env, "a text");
        if (!world.refused) assert_string_equal(text, "a text");
        lk__strfree(&world.env, text);
    }
    lk__strfree(&world.env, NULL);
    assert_no_leak(&world);
}

static void checked_arithmetic_saturates(void **state) {
    (void)state;
    assert_true(lk__mul(0, SIZE_MAX) == 0 && lk__mul(SIZE_MAX, 0) == 0);
    assert_true(lk__mul(SIZE_MAX / 2, 2) == SIZE_MAX - 1);
    assert_true(lk__mul(SIZE_MAX / 2 + 1, 2) == SIZE_MAX);
    assert_true(lk__add(SIZE_MAX, 0) == SIZE_MAX && lk__add(SIZE_MAX - 1, 1) == SIZE_MAX);
    assert_true(lk__add(SIZE_MAX, SIZE_MAX) == SIZE_MAX && lk__add(2, 3) == 5);
}

static void wiped_memory_is_zero(void **state) {
    (void)state;
    char secret[] = "sk-secret";
    lk__wipe(secret, sizeof secret);
    for (size_t i = 0; i < sizeof secret; i++) assert_int_equal(secret[i], 0);
    lk__wipe(NULL, 0);
}

static void log_is_bounded_and_silent_without_a_hook(void **state) {
    (void)state;
    lk_world world;
    lk_world_init(&world);
    lk__log(&world.env, LLMKIT_WARN, LLMKIT_E_IO, "%s %d", "disk", 7);
    assert_string_equal(world.log, "1 E_IO disk 7");
    char big[2000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    lk__log(&world.env, LLMKIT_INFO, LLMKIT_OK, "%s", big);
    assert_int_equal(world.log[0], '2');
    world.env.log = NULL;
    lk__log(&world.env, LLMKIT_INFO, LLMKIT_OK, "nobody hears this");
}

/* Strings. */

static void views_compare(void **state) {
    (void)state;
    assert_true(lk__str_eq(LK__STR(""), lk__str(NULL, 0)));
    assert_true(lk__str_eq(LK__STR("ab"), lk__str_z("ab")));
    assert_false(lk__str_eq(LK__STR("ab"), LK__STR("aB")));
    assert_false(lk__str_eq(LK__STR("ab"), LK__STR("abc")));
    assert_true(lk__str_ieq(LK__STR("Content-Type"), LK__STR("cONTENT-tYPE")));
    assert_false(lk__str_ieq(LK__STR("@"), LK__STR("`")));
    assert_false(lk__str_ieq(LK__STR("["), LK__STR("{")));
    assert_false(lk__str_ieq(LK__STR("a"), LK__STR("ab")));
    assert_true(lk__str_starts(LK__STR("abc"), LK__STR("ab")));
    assert_true(lk__str_starts(lk__str(NULL, 0), LK__STR("")));
    assert_false(lk__str_starts(LK__STR("a"), LK__STR("ab")));
    assert_true(lk__str_ends(LK__STR("x.jsonl"), LK__STR(".jsonl")));
    assert_false(lk__str_ends(LK__STR("l"), LK__STR(".jsonl")));
    assert_false(lk__str_ends(LK__STR("x.jsonm"), LK__STR(".jsonl")));
}

static void views_are_cut(void **state) {
    (void)state;
    assert_int_equal(lk__str_find(LK__STR("a:b:c"), ':'), 1);
    assert_int_equal(lk__str_find(LK__STR("abc"), ':'), 3);
    assert_int_equal(lk__str_find(lk__str(NULL, 0), ':'), 0);
    assert_str(lk__str_trim(LK__STR(" \t a b\t ")), "a b");
    assert_str(lk__str_trim(LK__STR(" \t ")), "");
    assert_str(lk__str_trim(LK__STR("\n")), "\n");
    assert_str(lk__str_from(LK__STR("abc"), 1), "bc");
    assert_str(lk__str_from(LK__STR("abc"), 9), "");
    assert_null(lk__str_from(lk__str(NULL, 0), 0).ptr);
    assert_str(lk__str_z(NULL), "");
}

static void copies_end_between_characters(void **state) {
    (void)state;
    char out[6];
    lk__str_copy(out, sizeof out, LK__STR("abc"));
    assert_string_equal(out, "abc");
    lk__str_copy(out, sizeof out, LK__STR("abcde"));
    assert_string_equal(out, "abcde");
    lk__str_copy(out, sizeof out, LK__STR("abcdef"));
    assert_string_equal(out, "abcde");
    lk__str_copy(out, sizeof out, LK__STR("abcd\xC3\xA9")); /* e with acute: 2 bytes */
    assert_string_equal(out, "abcd");
    lk__str_copy(out, sizeof out, LK__STR("abc\xF0\x9F\x98\x80")); /* a smiling face: 4 bytes */
    assert_string_equal(out, "abc");
    lk__str_copy(out, sizeof out, LK__STR("a\xF0\x9F\x98\x80z"));
    assert_string_equal(out, "a\xF0\x9F\x98\x80");
    lk__str_copy(out, sizeof out, LK__STR("\x80\x80\x80\x80\x80\x80\x80\x80"));
    assert_int_equal(strlen(out), 5);
    lk__str_copy(out, 1, LK__STR("abc"));
    assert_string_equal(out, "");
    lk__str_copy(out, 0, LK__STR("abc"));
    lk__str_copy(out, sizeof out, lk__str(NULL, 0));
    assert_string_equal(out, "");
}

static void base64_of_rfc_4648(void **state) {
    (void)state;
    static const char *const vectors[][2] = {
        { "", "" },
        { "f", "Zg==" },
        { "fo", "Zm8=" },
        { "foo", "Zm9v" },
        { "foob", "Zm9vYg==" },
        { "fooba", "Zm9vYmE=" },
        { "foobar", "Zm9vYmFy" },
        { "\xFF\xFE\xFD\xFB", "//79+w==" },
    };
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        char out[16];
        llmkit_str in = lk_guarded_str(vectors[i][0]);
        size_t n = lk__base64(out, in.ptr, in.len);
        assert_str(lk__str(out, n), vectors[i][1]);
    }
}

static void utf8_is_told_from_what_is_not(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
    } vectors[] = {
        { "a", 1 },
        { "\x7F", 1 },
        { "\xC2\x80", 2 },
        { "\xDF\xBF", 2 },
        { "\xE0\xA0\x80", 3 },
        { "\xED\x9F\xBF", 3 },
        { "\xEE\x80\x80", 3 },
        { "\xEF\xBF\xBF", 3 },
        { "\xF0\x90\x80\x80", 4 },
        { "\xF4\x8F\xBF\xBF", 4 },
        { "\x80", 0 },
        { "\xBF", 0 },
        { "\xC0\x80", 0 },
        { "\xC1\xBF", 0 },
        { "\xC2", 0 },
        { "\xC2 ", 0 },
        { "\xC2\xC0", 0 },
        { "\xE0\x9F\xBF", 0 },
        { "\xE1\x80", 0 },
        { "\xE1\x80 ", 0 },
        { "\xED\xA0\x80", 0 },
        { "\xF0\x8F\xBF\xBF", 0 },
        { "\xF0\x90\x80", 0 },
        { "\xF0\x90\x80 ", 0 },
        { "\xF4\x90\x80\x80", 0 },
        { "\xF5\x80\x80\x80", 0 },
        { "\xFF", 0 },
        { "\xFE", 0 },
    };
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        llmkit_str s = lk_guarded_str(vectors[i].bytes);
        assert_int_equal(lk__utf8_size(s.ptr, s.ptr + s.len), vectors[i].size);
    }
    for (uint32_t c = 0; c <= 0x10FFFF; c += c < 0x900 ? 1 : 61) {
        char out[4];
        if (c >= 0xD800 && c <= 0xDFFF) continue;
        size_t n = lk__utf8_put(out, c);
        assert_int_equal(lk__utf8_size(out, out + n), n);
    }
}

/* Numbers. */

static void u64_takes_digits_only(void **state) {
    (void)state;
    uint64_t value = 1;
    assert_true(lk__parse_u64(LK__STR("0"), &value) && value == 0);
    assert_true(lk__parse_u64(LK__STR("0017"), &value) && value == 17);
    assert_true(lk__parse_u64(LK__STR("18446744073709551615"), &value) && value == UINT64_MAX);
    static const char *const bad[] = {
        "", "-1", "+1", " 1", "1 ", "1.0", "0x1", "18446744073709551616", "99999999999999999999999"
    };
    for (size_t i = 0; i < LK__COUNT(bad); i++) {
        assert_false(lk__parse_u64(lk_guarded_str(bad[i]), &value));
    }
}

static void f64_is_read_in_jsons_grammar(void **state) {
    (void)state;
    static const char *const bad[] = { "",    "-",     "+1",   ".5",  "5.",   "01",    "-01",
                                       "1e",  "1e+",   "1.e1", "0x1", "1 ",   " 1",    "inf",
                                       "nan", "1e5.0", "--1",  "1-",  "1..2", "1e999", "-1e999" };
    double value;
    for (size_t i = 0; i < LK__COUNT(bad); i++) {
        if (lk__parse_f64(lk_guarded_str(bad[i]), &value)) fail_msg("took %s", bad[i]);
    }
}

static void f64_is_rounded_correctly(void **state) {
    (void)state;
    static const struct {
        const char *text;
        double value;
    } vectors[] = {
        { "0", 0.0 },
        { "-0", -0.0 },
        { "1", 1.0 },
        { "0.1", 0x1.999999999999ap-4 },
        { "0.70", 0.7 },
        { "1e22", 1e22 },
        { "1e23", 0x1.52d02c7e14af6p+76 },
        { "123456789012345678", 0x1.b69b4ba630f35p+56 },
        { "9007199254740993", 0x1p53 },
        { "9007199254740993.0000000000000000001", 0x1.0000000000001p53 },
        { "1.7976931348623157e308", 0x1.fffffffffffffp+1023 },
        { "17976931348623157e292", 0x1.fffffffffffffp+1023 },
        { "2.2250738585072014e-308", 0x1p-1022 },
        { "4.9e-324", 0x1p-1074 },
        { "2e-324", 0.0 },
        { "1e-400", 0.0 },
        { "0e999999999999999999999", 0.0 },
        { "0.000e-5", 0.0 },
        { "1e-99999999999999999999999", 0.0 },
        { "0.000000000000000000000000000000000000000000001e45", 1.0 },
        { "100000000000000000000000000000000000000000000e-44", 1.0 },
    };
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        double value = 5;
        assert_true(lk__parse_f64(lk_guarded_str(vectors[i].text), &value));
        if (memcmp(&value, &vectors[i].value, sizeof value) != 0)
            fail_msg("%s became %a", vectors[i].text, value);
    }
}

/* The digit that decides stands far behind the 17th. */
static void f64_sees_digits_far_behind(void **state) {
    (void)state;
    char text[3000];
    memset(text, '0', sizeof text);
    memcpy(text, "9007199254740993.", 17); /* halfway between two doubles */
    double value = 0;
    assert_true(lk__parse_f64(lk__str(text, sizeof text), &value));
    assert_true(value >= 0x1p53 && value <= 0x1p53);
    text[sizeof text - 1] = '1';
    assert_true(lk__parse_f64(lk__str(text, sizeof text), &value));
    assert_true(value >= 0x1.0000000000001p53 && value <= 0x1.0000000000001p53);
}

static void check_round_trip(double value) {
    char text[32];
    double back = 0;
    size_t n = lk__format_f64(text, value);
    assert_int_equal(text[n], '\0');
    assert_int_equal(strlen(text), n);
    assert_true(lk__parse_f64(lk__str(text, n), &back));
    if (memcmp(&value, &back, sizeof value) != 0) fail_msg("%a became %s", value, text);
}

static void f64_survives_a_round_trip(void **state) {
    (void)state;
    static const double values[] = { 0.0,     -0.0,    1,         -1,     0.1,    1e15, 1e16,
                                     1e17,    1e18,    1e21,      1e-4,   1e-5,   1e-6, 123456.789,
                                     DBL_MAX, DBL_MIN, 0x1p-1074, 5e-324, 1.0 / 3 };
    for (size_t i = 0; i < LK__COUNT(values); i++) check_round_trip(values[i]);
    lk__rand r;
    lk__rand_init(&r, &(llmkit_env){ .seed = 5 });
    for (int i = 0; i < 30000; i++) {
        uint64_t bits = lk__rand_u64(&r);
        double value;
        memcpy(&value, &bits, sizeof value);
        if (value >= -DBL_MAX && value <= DBL_MAX) check_round_trip(value);
    }
}

static void f64_is_written_short(void **state) {
    (void)state;
    static const struct {
        double value;
        const char *text;
    } vectors[] = {
        { 0, "0" },
        { 0.7, "0.7" },
        { 1, "1" },
        { -2.5, "-2.5" },
        { 100, "100" },
        { 0.001, "0.001" },
        { 1234567, "1234567" },
        { 1e21, "1e21" },
        { 1.5e-7, "1.5e-7" },
        { 1.0 / 3, "0.3333333333333333" },
        { 1e16, "10000000000000000" },
        { 0.00001, "0.00001" },
    };
    char text[32];
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        lk__format_f64(text, vectors[i].value);
        assert_string_equal(text, vectors[i].text);
    }
    lk__format_f64(text, strtod("nan", NULL));
    assert_string_equal(text, "null");
    lk__format_f64(text, -strtod("inf", NULL));
    assert_string_equal(text, "null");
}

static void numbers_do_not_know_the_locale(void **state) {
    (void)state;
    static const char *const names[] = { "de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8",
                                         "ps_AF.UTF-8" };
    char text[32];
    double value = 0;
    for (size_t i = 0; i < LK__COUNT(names); i++) {
        if (!setlocale(LC_ALL, names[i])) continue; /* where it is not installed */
        lk__format_f64(text, 0.30000000000000004);
        assert_string_equal(text, "0.30000000000000004");
        assert_true(lk__parse_f64(LK__STR("123456789.123456789012345"), &value));
        assert_true(value > 123456789.12 && value < 123456789.13);
    }
    setlocale(LC_ALL, "C");
}

static void bits_are_found(void **state) {
    (void)state;
    for (unsigned i = 0; i < 64; i++) {
        uint64_t word = UINT64_C(1) << i;
        assert_int_equal(lk__low_bit(word), i);
        assert_int_equal(lk__high_bit(word), i);
        assert_int_equal(lk__low_bit(word | UINT64_C(1) << 63), i);
        assert_int_equal(lk__high_bit(word | 1), i);
    }
}

/* Buffers. */

static void buffers_grow_and_stay_terminated(void **state) {
    (void)state;
    lk_world world;
    lk_world_init(&world);
    lk__buf b;
    lk__buf_init(&b, &world.env, 0);
    assert_str(lk__buf_view(&b), "");
    lk__buf_add(&b, NULL, 0);
    assert_string_equal(b.ptr, "");
    for (int i = 0; i < 10000; i++) lk__buf_ch(&b, (char)('a' + i % 26));
    assert_int_equal(b.len, 10000);
    assert_int_equal(b.ptr[10000], '\0');
    assert_int_equal(b.ptr[9999], 'a' + 9999 % 26);
    assert_true(world.calls < 30); /* not one for each byte */
    lk__buf_clear(&b);
    lk__buf_z(&b, "n=");
    lk__buf_u64(&b, 0);
    lk__buf_str(&b, LK__STR(" max="));
    lk__buf_u64(&b, UINT64_MAX);
    lk__buf_fmt(&b, " %s %d", "fmt", -5);
    assert_str(lk__buf_view(&b), "n=0 max=18446744073709551615 fmt -5");
    lk__buf_drop(&b, 4);
    assert_string_equal(b.ptr, "max=18446744073709551615 fmt -5");
    lk__buf_drop(&b, 1000);
    assert_string_equal(b.ptr, "");
    char *room = lk__buf_more(&b, 100000);
    memset(room, 'z', 5);
    lk__buf_wrote(&b, 5);
    assert_str(lk__buf_view(&b), "zzzzz");
    lk__buf_free(&b);
    lk__buf_free(&b);
    assert_no_leak(&world);
}

static void buffers_stop_at_their_ceiling(void **state) {
    (void)state;
    llmkit_env env = lk__env_fill(NULL);
    volatile size_t huge = SIZE_MAX; /* volatile: no warning that it is */
    for (size_t max = 1; max < 200; max++) {
        lk__buf b;
        lk__buf_init(&b, &env, max);
        for (size_t i = 0; i < max; i++) lk__buf_ch(&b, 'x');
        assert_ok(b.failed);
        assert_int_equal(b.len, max);
        assert_true(b.cap <= max + 1 || b.cap == 64);
        lk__buf_ch(&b, 'y');
        assert_err(b.failed, LLMKIT_E_TOO_BIG);
        assert_int_equal(b.len, max);
        assert_null(lk__buf_more(&b, 0));
        lk__buf_free(&b);
        lk__buf_fmt(&b, "%*s", (int)max, "x");
        assert_ok(b.failed);
        lk__buf_fmt(&b, "more");
        assert_err(b.failed, LLMKIT_E_TOO_BIG);
        assert_int_equal(strlen(b.ptr), max);
        lk__buf_add(&b, "zz", huge); /* sticks, and reads nothing */
        lk__buf_clear(&b);
        assert_ok(b.failed);
        lk__buf_add(&b, "zz", huge);
        assert_err(b.failed, LLMKIT_E_TOO_BIG);
        lk__buf_free(&b);
    }
}

static void buffers_survive_refused_allocations(void **state) {
    (void)state;
    lk_world world;
    lk_world_init(&world);
    LK_EACH_REFUSAL(&world) {
        lk__buf b;
        lk__buf_init(&b, &world.env, 0);
        for (int i = 0; i < 50; i++) lk__buf_fmt(&b, "line %d of fifty\n", i);
        assert_int_equal(b.failed, world.refused ? LLMKIT_E_NOMEM : LLMKIT_OK);
        if (!world.refused) assert_int_equal(b.len, 50 * 16 + 40);
        lk__buf_free(&b);
    }
    assert_no_leak(&world);
}

/* Errors. */

static void errors_have_names_and_sentences(void **state) {
    (void)state;
    assert_string_equal(llmkit_err_name(LLMKIT_OK), "OK");
    assert_string_equal(llmkit_err_name(LLMKIT_E_TIMEOUT), "E_TIMEOUT");
    assert_string_equal(llmkit_err_text(LLMKIT_E_NOMEM), "the allocator returned NULL");
    for (int i = 0; i < LLMKIT_NUM_ERRORS; i++) {
        assert_true(strlen(llmkit_err_name((llmkit_err)i)) >= 2);
        assert_true(strlen(llmkit_err_text((llmkit_err)i)) >= 8);
    }
    assert_string_equal(llmkit_err_name(LLMKIT_NUM_ERRORS), "E_UNKNOWN");
    assert_non_null(llmkit_err_text((llmkit_err)-1));
}

static void the_build_says_what_it_is(void **state) {
    (void)state;
    assert_int_equal(llmkit_version(),
                     LLMKIT_VERSION_MAJOR << 16 | LLMKIT_VERSION_MINOR << 8 | LLMKIT_VERSION_PATCH);
    char start[32];
    snprintf(start, sizeof start, "%d.%d.%d src:", LLMKIT_VERSION_MAJOR, LLMKIT_VERSION_MINOR,
             LLMKIT_VERSION_PATCH);
    assert_int_equal(strncmp(llmkit_build_info(), start, strlen(start)), 0);
    assert_non_null(strstr(llmkit_build_info(), LLMKIT_WITH_TLS ? "tls:bearssl" : "tls:none"));
}

static void failures_are_written_down(void **state) {
    (void)state;
    llmkit_error e;
    memset(&e, 0x5a, sizeof e);
    assert_err(lk__fail(&e, LLMKIT_E_DNS, "no %s", "name"), LLMKIT_E_DNS);
    assert_string_equal(e.message, "no name");
    assert_true(e.retryable);
    assert_int_equal(e.http_status, 0);
    assert_string_equal(e.provider, "");
    lk__fail(&e, LLMKIT_E_CERT, "again: %s", e.message); /* from itself */
    assert_string_equal(e.message, "again: no name");
    assert_false(e.retryable);
    lk__fail_os(&e, LLMKIT_E_CONNECT, ECONNREFUSED, "host:1");
    assert_string_equal(e.message, "host:1: Connection refused");
    assert_int_equal(e.os_errno, ECONNREFUSED);
    lk__fail_os(&e, LLMKIT_E_DNS, EAI_NONAME, "host");
    assert_string_equal(e.message, "host: There is no such name");
    lk__fail_os(&e, LLMKIT_E_IO, 98765, "file");
    assert_string_equal(e.message, "file: system error 98765");
    assert_err(lk__fail_disabled(&e, "LLMKIT_WITH_TLS"), LLMKIT_E_DISABLED);
    assert_non_null(strstr(e.message, "LLMKIT_WITH_TLS"));
    assert_err(lk__fail(NULL, LLMKIT_E_ARG, "nobody reads this"), LLMKIT_E_ARG);
    assert_err(lk__fail_os(NULL, LLMKIT_E_IO, EIO, "nor this"), LLMKIT_E_IO);
}

static void long_messages_end_between_characters(void **state) {
    (void)state;
    for (int lead = 0; lead < 4; lead++) {
        char text[400];
        llmkit_error e;
        memset(text, 'x', (size_t)lead);
        for (int i = lead; i < 396; i += 2) memcpy(text + i, "\xC3\xA9", 2);
        text[396] = '\0';
        lk__fail(&e, LLMKIT_E_IO, "%s", text);
        size_t n = strlen(e.message);
        assert_true(n == sizeof e.message - 1 || n == sizeof e.message - 2);
        assert_int_equal((n - (size_t)lead) % 2, 0);
        lk__fail_os(&e, LLMKIT_E_IO, EIO, "%s", text);
        assert_true(strlen(e.message) >= sizeof e.message - 4);
    }
}

static void guards_that_are_not_zero_are_told(void **state) {
    (void)state;
    llmkit_error e;
    assert_ok(lk__check_guards(&e, 0, 0, "llmkit_tls_desc"));
    assert_err(lk__check_guards(&e, 1, 0, "llmkit_tls_desc"), LLMKIT_E_NOT_ZEROED);
    assert_err(lk__check_guards(&e, 0, 1, "llmkit_tls_desc"), LLMKIT_E_NOT_ZEROED);
    assert_non_null(strstr(e.message, "llmkit_tls_desc"));
}

/* Random numbers. */

static void seeds_repeat_and_differ(void **state) {
    (void)state;
    lk__rand a, b;
    lk__rand_init(&a, &(llmkit_env){ .seed = 1 });
    lk__rand_init(&b, &(llmkit_env){ .seed = 1 });
    for (int i = 0; i < 100; i++) assert_true(lk__rand_u64(&a) == lk__rand_u64(&b));
    lk__rand_init(&b, &(llmkit_env){ .seed = 2 });
    assert_true(lk__rand_u64(&a) != lk__rand_u64(&b));
    lk__rand_init(&a, &(llmkit_env){ 0 });
    lk__rand_init(&b, &(llmkit_env){ 0 });
    assert_true(lk__rand_u64(&a) != lk__rand_u64(&b));
}

/* The state {1, 2, 3, 4} of the generator's authors' reference implementation. */
static void generator_gives_the_known_numbers(void **state) {
    (void)state;
    static const uint64_t known[] = { 11520, 0, 1509978240, 1215971899390074240 };
    lk__rand r = { { 1, 2, 3, 4 } };
    for (size_t i = 0; i < LK__COUNT(known); i++) assert_true(lk__rand_u64(&r) == known[i]);
}

static void unit_numbers_stay_below_one(void **state) {
    (void)state;
    lk__rand r;
    lk__rand_init(&r, &(llmkit_env){ .seed = 9 });
    double sum = 0, least = 1, most = 0;
    for (int i = 0; i < 100000; i++) {
        double u = lk__rand_unit(&r);
        assert_true(u >= 0 && u < 1);
        sum += u;
        if (u < least) least = u;
        if (u > most) most = u;
    }
    assert_true(sum > 49500 && sum < 50500);
    assert_true(least < 0.001 && most > 0.999);
}

/* The sketch. */

static double off_by(int64_t got, int64_t want) {
    double d = (double)got - (double)want;
    return (d < 0 ? -d : d) / (double)want;
}

static void sketch_is_within_two_percent_over_its_range(void **state) {
    (void)state;
    static lk__sketch s;
    double worst = 0;
    for (double v = 1000; v <= 1e12; v *= 1.0005) {
        for (int64_t ns = (int64_t)v - 1; ns <= (int64_t)v + 1; ns++) {
            if (ns < 1000) continue;
            memset(&s, 0, sizeof s);
            lk__sketch_add(&s, ns);
            lk__sketch_add(&s, ns);
            lk__sketch_add(&s, INT64_C(2000000000000));
            double off = off_by(lk__sketch_quantile(&s, 0.4), ns);
            if (off > worst) worst = off;
        }
    }
    if (worst > 0.02 || worst < 0.015) fail_msg("off by %g", worst);
}

static void sketch_buckets_lie_in_order(void **state) {
    (void)state;
    uint32_t last = 0;
    for (int64_t ns = 1; ns < 3000000; ns++) {
        uint32_t index = lk__sketch_index((uint64_t)ns);
        assert_true(index == last || index == last + 1);
        last = index;
    }
    assert_int_equal(lk__sketch_index(UINT64_MAX), LK__SKETCH_BUCKETS - 1);
    assert_true(lk__sketch_index(UINT64_C(1000000000000)) < LK__SKETCH_BUCKETS - 1);
    assert_true(sizeof(lk__sketch) <= 3072);
}

static void sketch_quantiles_are_those_of_the_sorted_values(void **state) {
    (void)state;
    static lk__sketch s;
    memset(&s, 0, sizeof s);
    assert_int_equal(lk__sketch_quantile(&s, 0.5), 0);
    for (int i = 1; i <= 1000; i++) lk__sketch_add(&s, i * LK__NS_PER_MS);
    assert_true(off_by(lk__sketch_quantile(&s, 0.5), 500 * LK__NS_PER_MS) <= 0.021);
    assert_true(off_by(lk__sketch_quantile(&s, 0.99), 990 * LK__NS_PER_MS) <= 0.021);
    assert_true(off_by(lk__sketch_quantile(&s, 0), LK__NS_PER_MS) <= 0.02);
    assert_true(off_by(lk__sketch_quantile(&s, -3), LK__NS_PER_MS) <= 0.02);
    assert_int_equal(lk__sketch_quantile(&s, 1), 1000 * LK__NS_PER_MS);
    assert_int_equal(lk__sketch_quantile(&s, 7), 1000 * LK__NS_PER_MS);
    assert_int_equal(s.total, 1000);
}

static void sketch_takes_what_is_outside(void **state) {
    (void)state;
    static lk__sketch s;
    memset(&s, 0, sizeof s);
    lk__sketch_add(&s, -5);
    lk__sketch_add(&s, 0);
    lk__sketch_add(&s, 10);
    assert_int_equal(s.count[0], 3);
    assert_true(lk__sketch_quantile(&s, 0.5) <= 10);
    lk__sketch_add(&s, INT64_MAX);
    lk__sketch_add(&s, INT64_MAX);
    assert_int_equal(s.count[LK__SKETCH_BUCKETS - 1], 2);
    assert_true(lk__sketch_quantile(&s, 1) == INT64_MAX);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(env_is_filled_in),
    cmocka_unit_test(allocations_are_zeroed_counted_and_refused),
    cmocka_unit_test(checked_arithmetic_saturates),
    cmocka_unit_test(wiped_memory_is_zero),
    cmocka_unit_test(log_is_bounded_and_silent_without_a_hook),
    cmocka_unit_test(views_compare),
    cmocka_unit_test(views_are_cut),
    cmocka_unit_test(copies_end_between_characters),
    cmocka_unit_test(base64_of_rfc_4648),
    cmocka_unit_test(utf8_is_told_from_what_is_not),
    cmocka_unit_test(u64_takes_digits_only),
    cmocka_unit_test(f64_is_read_in_jsons_grammar),
    cmocka_unit_test(f64_is_rounded_correctly),
    cmocka_unit_test(f64_sees_digits_far_behind),
    cmocka_unit_test(f64_survives_a_round_trip),
    cmocka_unit_test(f64_is_written_short),
    cmocka_unit_test(numbers_do_not_know_the_locale),
    cmocka_unit_test(bits_are_found),
    cmocka_unit_test(buffers_grow_and_stay_terminated),
    cmocka_unit_test(buffers_stop_at_their_ceiling),
    cmocka_unit_test(buffers_survive_refused_allocations),
    cmocka_unit_test(errors_have_names_and_sentences),
    cmocka_unit_test(the_build_says_what_it_is),
    cmocka_unit_test(failures_are_written_down),
    cmocka_unit_test(long_messages_end_between_characters),
    cmocka_unit_test(guards_that_are_not_zero_are_told),
    cmocka_unit_test(seeds_repeat_and_differ),
    cmocka_unit_test(generator_gives_the_known_numbers),
    cmocka_unit_test(unit_numbers_stay_below_one),
    cmocka_unit_test(sketch_is_within_two_percent_over_its_range),
    cmocka_unit_test(sketch_buckets_lie_in_order),
    cmocka_unit_test(sketch_quantiles_are_those_of_the_sorted_values),
    cmocka_unit_test(sketch_takes_what_is_outside),
};
LK_TEST_MAIN(tests)
