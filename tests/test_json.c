/* test_json.c -- JSON: what is valid, what it means, and how it is written */
#include "test.h"

static lk_world world;
static lk__json doc;

static int set_up(void **state) {
    (void)state;
    lk_world_init(&world);
    lk__json_init(&doc, &world.env);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    lk__json_free(&doc);
    return world.blocks != 0;
}

static llmkit_err parse(const char *text) {
    return lk__json_parse(&doc, lk_guarded_str(text));
}

static llmkit_err parse_bytes(const void *bytes, size_t n) {
    return lk__json_parse(&doc, lk__str(lk_guarded(bytes, n), n));
}

/* Every text ends at a page that must not be read; so does every beginning of it. */

static const char *const valid[] = {
    "{}",
    "[]",
    "\"\"",
    "0",
    "-0",
    "true",
    "false",
    "null",
    " null ",
    "\t\r\n [ \t\r\n ] \t\r\n",
    "[1]",
    "[1,2,3]",
    "[[]]",
    "[[],[]]",
    "[{}]",
    "[{},{}]",
    "{\"a\":{}}",
    "{\"a\":[]}",
    "{\"\":0}",
    "{\"a\":1,\"b\":2}",
    "{\"a\":1,\"a\":2}",
    "{ \"a\" : 1 , \"b\" : [ ] }",
    "{\"a\":{\"b\":{\"c\":[1,{\"d\":null}]}}}",
    "[[[[[[]]]]],[[[]]]]",
    "1",
    "-1",
    "10",
    "1.5",
    "-1.5",
    "0.5",
    "-0.0",
    "1e5",
    "1E5",
    "1e+5",
    "1e-5",
    "1.25e-5",
    "0e0",
    "0E+1",
    "123456789012345678901234567890",
    "1e999",
    "-1e-999",
    "3.141592653589793238462643",
    "\"a\"",
    "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
    "\"\\u0041\"",
    "\"\\u00e9\"",
    "\"\\uD83D\\uDE00\"",
    "\"\\ud83d\\ude00\"",
    "\"\\uD800\"",
    "\"\\uDC00\\uD800\"",
    "\"\\u0000\"",
    "\"\\uABCD\\uabcd\"",
    "\"/\"",
    "\"\x7f\"",
    "\"\xC3\xA9\"",
    "\"\xE2\x82\xAC\"",
    "\"\xF0\x9F\x98\x80\"",
    "\"\xE2\x80\xA8\"",
    "\"\xEF\xBB\xBF\"",
    "\"\xEF\xBF\xBF\"",
    "\"\xF4\x8F\xBF\xBF\"",
    "\"seven b\"",
    "\"eight by\"",
    "\"nine byte\"",
    "\"fifteen bytes..\"",
    "\"sixteen bytes...\"",
    "\"seventeen bytes..\"",
    "\"1234567\\n\"",
    "\"12345678\\n9\"",
    "\"123456\xC3\xA9\"",
    "\"1234567\xC3\xA9\"",
    "[\"a\",\"b\"]",
    "[true,false,null]",
    "[ 1 ]",
    "[1 , 2]",
    "{\"a\" :1}",
    "{\"\\u0061\":1}",
    "{\"\xC3\xA9\":1}",
    "[1.0,2.50,3e3]",
    "[\"\",\"\"]",
    "[null]",
};

static const char *const invalid[] = {
    "",
    " ",
    "\t\n",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "[,]",
    "[,1]",
    "[1,]",
    "[1,,2]",
    "[1 2]",
    "[1;2]",
    "[1]]",
    "[[1]",
    "{]",
    "[}",
    "{\"a\"}",
    "{\"a\":}",
    "{\"a\":1,}",
    "{,}",
    "{\"a\":1 \"b\":2}",
    "{\"a\" 1}",
    "{\"a\"::1}",
    "{\"a\":1:2}",
    "{a:1}",
    "{'a':1}",
    "{1:1}",
    "{null:1}",
    "{[]:1}",
    "{{}:1}",
    "{\"a\":1",
    "{\"a\"",
    "{\"a\":",
    "[1",
    "[1,",
    "{}{}",
    "[][]",
    "{},",
    "1 2",
    "1,",
    "\"a\"\"b\"",
    "nul",
    "nulll",
    "nullx",
    "Null",
    "NULL",
    "tru",
    "truee",
    "[tru]",
    "fals",
    "[fals]",
    "True",
    "[nul]",
    "undefined",
    "NaN",
    "-NaN",
    "Infinity",
    "-Infinity",
    "inf",
    "+1",
    "[+1]",
    "-",
    "[-]",
    "--1",
    "-a",
    "01",
    "[01]",
    "-01",
    "00",
    "1.",
    "[1.]",
    ".5",
    "-.5",
    "1.e5",
    "1e",
    "1e+",
    "1e-",
    "[1e]",
    "1e1.5",
    "1e1e1",
    "0x1",
    "1_000",
    "1a",
    "1.5.5",
    "1..5",
    "[1-]",
    "2e",
    "0.",
    "0e",
    "[1+2]",
    "1 000",
    "'a'",
    "`a`",
    "\"a",
    "\"a\\",
    "\"a\\\"",
    "\"\\x41\"",
    "\"\\a\"",
    "\"\\'\"",
    "\"\\v\"",
    "\"\\0\"",
    "\"\\U0041\"",
    "\"\\u\"",
    "\"\\u1\"",
    "\"\\u12\"",
    "\"\\u123\"",
    "\"\\u123g\"",
    "\"\\uG000\"",
    "\"\\u 041\"",
    "\"\\u-041\"",
    "\"\\",
    "\"\\u004",
    "\"\\ \"",
    "\"\\\n\"",
    "\"\\\xC3\xA9\"",
    "\"\n\"",
    "\"\t\"",
    "\"\r\"",
    "\"\x01\"",
    "\"\x1f\"",
    "\"1234567\x1f\"",
    "\"12345678\x1f\"",
    "\"\x80\"",
    "\"\xBF\"",
    "\"\xC0\x80\"",
    "\"\xC1\xBF\"",
    "\"\xC3\"",
    "\"\xC3(\"",
    "\"\xE2\x82\"",
    "\"\xE0\x80\x80\"",
    "\"\xED\xA0\x80\"",
    "\"\xED\xBF\xBF\"",
    "\"\xF0\x80\x80\x80\"",
    "\"\xF0\x9F\x98\"",
    "\"\xF4\x90\x80\x80\"",
    "\"\xF5\x80\x80\x80\"",
    "\"\xFE\"",
    "\"\xFF\"",
    "\"1234567\xFF\"",
    "\"12345678\xFF\"",
    "\xEF\xBB\xBF{}",
    "\xC3\xA9",
    "[\xC3\xA9]",
    "\xFF",
    "\f1",
    "\v1",
    "[1\f]",
    ("\xC2\xA0"
     "1"),
    "//\n1",
    "/**/1",
    "1 // x",
    "[1/**/]",
    "#1",
    "<null>",
    "[\"a\",\n4\n,1,",
    "*",
    "{\"a\":\"b\",//c\n}",
    "[\x01]",
    "{\"a\":1}#",
    "{\"a\":/*b*/1}",
    "\\u0031",
    "{\"a\\\":1}",
};

static void valid_texts_are_taken(void **state) {
    (void)state;
    for (size_t i = 0; i < LK__COUNT(valid); i++) {
        if (parse(valid[i]) != LLMKIT_OK) fail_msg("refused %s", valid[i]);
        assert_int_not_equal(lk__json_type_of(&doc, 0), LK__JSON_NONE);
    }
}

static void invalid_texts_are_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < LK__COUNT(invalid); i++) {
        if (parse(invalid[i]) != LLMKIT_E_JSON) fail_msg("took %s", invalid[i]);
        assert_int_equal(lk__json_type_of(&doc, 0), LK__JSON_NONE);
        assert_true(doc.error_at <= strlen(invalid[i]));
    }
}

/* A valid object, array or string has no valid beginning but itself. */
static void beginnings_are_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < LK__COUNT(valid); i++) {
        size_t len = strlen(valid[i]);
        char last = valid[i][len - 1];
        if (last != '}' && last != ']' && last != '"') continue;
        for (size_t n = 0; n < len; n++) {
            if (parse_bytes(valid[i], n) != LLMKIT_E_JSON) fail_msg("took %zu of %s", n, valid[i]);
        }
    }
}

static void nul_is_valid_nowhere(void **state) {
    (void)state;
    static const char text[] = "{ \"key\" : [ 1.5e3 , true , \"text and more text\" ] } ";
    for (size_t i = 0; i < sizeof text; i++) {
        char broken[sizeof text];
        memcpy(broken, text, i);
        broken[i] = '\0';
        memcpy(broken + i + 1, text + i, sizeof text - 1 - i);
        assert_err(parse_bytes(broken, sizeof broken), LLMKIT_E_JSON);
        assert_true(doc.error_at <= i &&
                    i - doc.error_at < 4); /* words are wrong from their start */
    }
}

/* jsmn would go on at each of these, so nothing but our own pass stands between. */
static void errors_say_where(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t at;
    } vectors[] = {
        { "{\"a\":1,}", 7 }, { "[01]", 2 },     { "[tru]", 1 },
        { "[1 2]", 3 },      { "{}{}", 2 },     { "{\"a\":1 \"b\":2}", 7 },
        { "[\"a\nb\"]", 3 }, { "[1.x]", 3 },    { "[1e]", 3 },
        { "[", 1 },          { "\"abc", 4 },    { "\"a\\q\"", 2 },
        { "[1,2", 4 },       { "{\"a\"1}", 4 }, { "  ", 2 },
    };
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        assert_err(parse(vectors[i].text), LLMKIT_E_JSON);
        assert_int_equal(doc.error_at, vectors[i].at);
    }
}

/* Depth and size. */

static size_t nested(char *out, size_t depth, const char *open, const char *middle,
                     const char *close) {
    char *p = out;
    for (size_t i = 0; i < depth; i++) p = stpcpy(p, open);
    p = stpcpy(p, middle);
    for (size_t i = 0; i < depth; i++) p = stpcpy(p, close);
    return (size_t)(p - out);
}

static void depth_is_bounded(void **state) {
    (void)state;
    static char text[16 * LLMKIT_MAX_JSON_DEPTH];
    static const char *const shapes[][3] = {
        { "[", "", "]" }, { "[", "1", "]" }, { "{\"k\":", "{}", "}" }, { "[{\"k\":", "0", "}]" }
    };
    for (size_t i = 0; i < LK__COUNT(shapes); i++) {
        size_t levels = i == 3 ? 2 : 1, extra = i == 2 ? 1 : 0;
        size_t most = (LLMKIT_MAX_JSON_DEPTH - extra) / levels;
        nested(text, most, shapes[i][0], shapes[i][1], shapes[i][2]);
        assert_ok(parse(text));
        nested(text, most + 1, shapes[i][0], shapes[i][1], shapes[i][2]);
        assert_err(parse(text), LLMKIT_E_JSON);
    }
}

/* jsmn alone takes seconds for this. */
static void a_hundred_thousand_brackets_are_refused_at_once(void **state) {
    (void)state;
    static char text[200000];
    memset(text, '[', 100000);
    memset(text + 100000, ']', 100000);
    assert_err(parse_bytes(text, sizeof text), LLMKIT_E_JSON);
    assert_int_equal(doc.error_at, LLMKIT_MAX_JSON_DEPTH);
    assert_int_equal(world.calls, 0);
}

/* The refusal comes before the text is looked at. */
static void texts_over_two_gibibytes_are_refused(void **state) {
    (void)state;
    if (SIZE_MAX > INT32_MAX) {
        volatile size_t huge = (size_t)INT32_MAX + 1;
        assert_err(lk__json_parse(&doc, lk__str("1", huge)), LLMKIT_E_TOO_BIG);
    }
}

static void a_warm_parser_allocates_nothing(void **state) {
    (void)state;
    assert_ok(
        parse("[1,2,3,4,5,6,7,8,9,{\"a\":[1,2,3]},\"x\",null,true,1,2,3,4,5,6,7,8,9,0,1,2,3]"));
    unsigned long calls = world.calls;
    for (int i = 0; i < 100; i++) assert_ok(parse("{\"a\":[1,2,{\"b\":\"c\"}]}"));
    assert_int_equal(world.calls, calls);
}

static void a_large_document_does_not_keep_its_memory(void **state) {
    (void)state;
    static char text[400002];
    for (size_t i = 0; i < sizeof text - 2; i += 2) memcpy(text + 1 + i, "1,", 2);
    text[0] = '[';
    text[sizeof text - 2] = ' '; /* in place of the last comma */
    text[sizeof text - 1] = ']';
    assert_ok(parse_bytes(text, sizeof text));
    assert_int_equal(lk__json_size(&doc, 0), 200000);
    assert_true(world.bytes > 200000);
    assert_ok(parse("[1]"));
    assert_true(world.bytes < 10000);
}

static void refused_allocations_are_reported(void **state) {
    (void)state;
    lk_world mine;
    lk_world_init(&mine);
    LK_EACH_REFUSAL(&mine) {
        lk__json j;
        lk__json_init(&j, &mine.env);
        llmkit_err err = lk__json_parse(&j, LK__STR("{\"a\":[1,2]}"));
        assert_err(err, mine.refused ? LLMKIT_E_NOMEM : LLMKIT_OK);
        assert_int_equal(lk__json_type_of(&j, 0), mine.refused ? LK__JSON_NONE : LK__JSON_OBJECT);
        lk__json_free(&j);
    }
    assert_no_leak(&mine);
}

/* Reading. */

static void members_are_found(void **state) {
    (void)state;
    assert_ok(
        parse("{\"id\":\"x\",\"ie\":[{\"a\":1,\"b\":[true,{}]},7],\"usage\":{\"n\":12},\"\":3}"));
    lk__node list = lk__json_get(&doc, 0, LK__STR("ie"));
    assert_int_equal(lk__json_type_of(&doc, list), LK__JSON_ARRAY);
    assert_int_equal(lk__json_size(&doc, list), 2);
    assert_str(lk__json_raw(&doc, lk__json_at(&doc, list, 1)), "7");
    assert_int_equal(lk__json_at(&doc, list, 2), -1);
    lk__node b = lk__json_get(&doc, lk__json_at(&doc, list, 0), LK__STR("b"));
    assert_str(lk__json_raw(&doc, b), "[true,{}]");
    assert_true(lk__json_is_true(&doc, lk__json_at(&doc, b, 0)));
    lk__node n = lk__json_get(&doc, lk__json_get(&doc, 0, LK__STR("usage")), LK__STR("n"));
    int64_t value = 0;
    assert_true(lk__json_i64(&doc, n, &value) && value == 12);
    assert_str(lk__json_raw(&doc, lk__json_get(&doc, 0, LK__STR(""))), "3");
    assert_int_equal(lk__json_get(&doc, 0, LK__STR("i")), -1);
    assert_int_equal(lk__json_get(&doc, 0, LK__STR("idd")), -1);
    assert_int_equal(lk__json_get(&doc, 0, LK__STR("x")), -1); /* a value is no key */
}

static void readers_of_no_node_answer_nothing(void **state) {
    (void)state;
    int64_t i = 5;
    double f = 5;
    lk__buf out;
    lk__buf_init(&out, &world.env, 0);
    assert_ok(parse("{\"a\":1}"));
    for (lk__node n = -1; n < 100; n += 50) { /* -1, 49 and 99: none of them is there */
        assert_int_equal(lk__json_type_of(&doc, n), LK__JSON_NONE);
        assert_int_equal(lk__json_get(&doc, n, LK__STR("a")), -1);
        assert_int_equal(lk__json_at(&doc, n, 0), -1);
        assert_int_equal(lk__json_size(&doc, n), 0);
        assert_int_equal(lk__json_first(&doc, n), -1);
        assert_int_equal(lk__json_next(&doc, n), -1);
        assert_int_equal(lk__json_value_of(&doc, n), -1);
        assert_str(lk__json_raw(&doc, n), "");
        assert_false(lk__json_i64(&doc, n, &i));
        assert_false(lk__json_f64(&doc, n, &f));
        assert_false(lk__json_is_true(&doc, n));
        assert_false(lk__json_text(&doc, n, &out));
        assert_str(lk__json_view(&doc, n, &out), "");
    }
    assert_int_equal(lk__json_at(&doc, 0, 0), -1);            /* an object is no array */
    assert_int_equal(lk__json_get(&doc, 2, LK__STR("")), -1); /* nor is a number an object */
    assert_int_equal(lk__json_next(&doc, 0), -1);
    assert_int_equal(lk__json_next(&doc, 2), -1);
    assert_int_equal(lk__json_value_of(&doc, 2), -1);
    assert_int_equal(lk__json_first(&doc, 1), -1); /* a key has no children of its own */
    assert_int_equal(lk__json_size(&doc, 1), 0);
}

static void scalars_alone_are_documents(void **state) {
    (void)state;
    static const struct {
        const char *text;
        lk__json_type type;
        const char *raw;
    } vectors[] = {
        { "17", LK__JSON_NUMBER, "17" },       { " -1e5 \n", LK__JSON_NUMBER, "-1e5" },
        { "true", LK__JSON_BOOL, "true" },     { "\tfalse", LK__JSON_BOOL, "false" },
        { "null\r\n", LK__JSON_NULL, "null" }, { " \"a b\" ", LK__JSON_STRING, "a b" },
        { "\"\"", LK__JSON_STRING, "" },
    };
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        assert_ok(parse(vectors[i].text));
        assert_int_equal(lk__json_type_of(&doc, 0), vectors[i].type);
        assert_str(lk__json_raw(&doc, 0), vectors[i].raw);
        assert_int_equal(lk__json_first(&doc, 0), -1);
        assert_int_equal(lk__json_next(&doc, 0), -1);
    }
}

static void the_first_of_equal_names_counts(void **state) {
    (void)state;
    assert_ok(parse("{\"a\":1,\"b\":2,\"a\":3}"));
    assert_str(lk__json_raw(&doc, lk__json_get(&doc, 0, LK__STR("a"))), "1");
}

static void keys_mean_what_their_escapes_mean(void **state) {
    (void)state;
    assert_ok(
        parse("{\"b\\u0061d\":1,\"a\\nb\":2,\"plain\":3,\"\\uD83D\\uDE00\":4,\"\xC3\xA9\":5}"));
    assert_str(lk__json_raw(&doc, lk__json_get(&doc, 0, LK__STR("bad"))), "1");
    assert_str(lk__json_raw(&doc, lk__json_get(&doc, 0, LK__STR("a\nb"))), "2");
    assert_str(lk__json_raw(&doc, lk__json_get(&doc, 0, LK__STR("plain"))), "3");
    assert_str(lk__json_raw(&doc, lk__json_get(&doc, 0, LK__STR("\xF0\x9F\x98\x80"))), "4");
    assert_str(lk__json_raw(&doc, lk__json_get(&doc, 0, LK__STR("\xC3\xA9"))), "5");
    assert_int_equal(lk__json_get(&doc, 0, LK__STR("a\\nb")), -1);
    assert_int_equal(lk__json_get(&doc, 0, LK__STR("b\\u0061d")), -1);
    assert_int_equal(lk__json_get(&doc, 0, LK__STR("ba")), -1);
    assert_int_equal(lk__json_get(&doc, 0, LK__STR("badd")), -1);
}

static void children_are_walked(void **state) {
    (void)state;
    assert_ok(parse("[{\"a\":[1,[2,3]],\"b\":{},\"c\":{\"d\":{\"e\":0}}},[],\"s\",[[]],4]"));
    static const char *const elements[] = { NULL, "[]", "s", "[[]]", "4" };
    size_t i = 0;
    for (lk__node n = lk__json_first(&doc, 0); n != -1; n = lk__json_next(&doc, n), i++) {
        if (elements[i]) assert_str(lk__json_raw(&doc, n), elements[i]);
        assert_int_equal(lk__json_at(&doc, 0, (uint32_t)i), n);
    }
    assert_int_equal(i, LK__COUNT(elements));
    static const char *const members[][2] = { { "a", "[1,[2,3]]" },
                                              { "b", "{}" },
                                              { "c", "{\"d\":{\"e\":0}}" } };
    i = 0;
    for (lk__node k = lk__json_first(&doc, 1); k != -1; k = lk__json_next(&doc, k), i++) {
        assert_str(lk__json_raw(&doc, k), members[i][0]);
        assert_str(lk__json_raw(&doc, lk__json_value_of(&doc, k)), members[i][1]);
        assert_int_equal(lk__json_next(&doc, lk__json_value_of(&doc, k)), -1);
    }
    assert_int_equal(i, LK__COUNT(members));
}

/* Lists of lists of every length, so that the search for the next sibling meets every distance. */
static void siblings_are_found_at_any_distance(void **state) {
    (void)state;
    lk__buf text;
    lk__buf_init(&text, &world.env, 0);
    lk__buf_ch(&text, '[');
    for (int i = 0; i < 70; i++) {
        lk__buf_z(&text, i ? ",[" : "[");
        for (int k = 0; k < i; k++) lk__buf_z(&text, k ? ",{\"x\":1}" : "{\"x\":1}");
        lk__buf_ch(&text, ']');
    }
    lk__buf_ch(&text, ']');
    assert_ok(lk__json_parse(&doc, lk__buf_view(&text)));
    lk__node n = lk__json_first(&doc, 0);
    for (uint32_t i = 0; i < 70; i++, n = lk__json_next(&doc, n)) {
        assert_int_equal(lk__json_type_of(&doc, n), LK__JSON_ARRAY);
        assert_int_equal(lk__json_size(&doc, n), i);
        assert_int_equal(lk__json_at(&doc, 0, i), n);
    }
    assert_int_equal(n, -1);
    lk__buf_free(&text);
}

static void integers_are_read(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool good;
        int64_t value;
    } vectors[] = {
        { "[0]", true, 0 },
        { "[-0]", true, 0 },
        { "[9223372036854775807]", true, INT64_MAX },
        { "[-9223372036854775807]", true, -INT64_MAX },
        { "[9223372036854775808]", false, 0 },
        { "[3.0]", true, 3 },
        { "[1e3]", true, 1000 },
        { "[-2.50e1]", true, -25 },
        { "[2.5]", false, 0 },
        { "[1e18]", false, 0 },
        { "[1e400]", false, 0 },
        { "[\"1\"]", false, 0 },
        { "[true]", false, 0 },
        { "[null]", false, 0 },
        { "[[1]]", false, 0 },
        { "[1e-400]", true, 0 },
        { "[99999999999999999999]", false, 0 },
    };
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        int64_t value = 77;
        assert_ok(parse(vectors[i].text));
        bool good = lk__json_i64(&doc, 1, &value);
        if (good != vectors[i].good || (good && value != vectors[i].value))
            fail_msg("%s gave %d, %lld", vectors[i].text, good, (long long)value);
    }
}

/* Escapes. */

static void escapes_are_undone(void **state) {
    (void)state;
    static const char *const vectors[][2] = {
        { "plain", "plain" },
        { "", "" },
        { "\\\"\\\\\\/\\b\\f\\n\\r\\t", "\"\\/\b\f\n\r\t" },
        { "\\u0041\\u00e9\\u20AC", "A\xC3\xA9\xE2\x82\xAC" },
        { "\\uD83D\\uDE00", "\xF0\x9F\x98\x80" },
        { "\\uDBFF\\uDFFF", "\xF4\x8F\xBF\xBF" },
        { "\\uD800\\uDC00", "\xF0\x90\x80\x80" },
        { "\\uD83D", "\xEF\xBF\xBD" },
        { "\\uDE00", "\xEF\xBF\xBD" },
        { "\\uD83Dx", "\xEF\xBF\xBDx" },
        { "\\uD83D\\n", "\xEF\xBF\xBD\n" },
        { "\\uD83D\\u0041", "\xEF\xBF\xBD"
                            "A" },
        { "\\uD83D\\uD83D\\uDE00", "\xEF\xBF\xBD\xF0\x9F\x98\x80" },
        { "\\uDE00\\uD83D", "\xEF\xBF\xBD\xEF\xBF\xBD" },
        { "\xC3\xA9\\n\xE2\x82\xAC", "\xC3\xA9\n\xE2\x82\xAC" },
        { "a\\nb\\nc", "a\nb\nc" },
        { "\\\\n", "\\n" },
        { "\\\\\\\\", "\\\\" },
    };
    lk__buf out;
    lk__buf_init(&out, &world.env, 0);
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        char text[128], want[128];
        snprintf(text, sizeof text, "[\"%s\"]", vectors[i][0]);
        assert_ok(parse(text));
        assert_str(lk__json_view(&doc, 1, &out), vectors[i][1]);
        lk__buf_clear(&out);
        assert_true(lk__json_text(&doc, 1, &out));
        assert_str(lk__buf_view(&out), vectors[i][1]);
        llmkit_str raw = lk_guarded_str(vectors[i][0]);
        size_t n = strlen(vectors[i][1]);
        assert_int_equal(llmkit_json_unescape(raw, want, sizeof want), n);
        assert_string_equal(want, vectors[i][1]);
    }
    lk__buf_free(&out);
}

static void unescape_bears_what_find_never_returns(void **state) {
    (void)state;
    static const char *const vectors[][2] = {
        { "\\", "\xEF\xBF\xBD" },
        { "\\x", "\xEF\xBF\xBDx" },
        { "\\u12", "\xEF\xBF\xBDu12" },
        { "\\uD83D\\u", "\xEF\xBF\xBD\xEF\xBF\xBDu" },
        { "\xFF", "\xFF" },
        { "a\\", "a\xEF\xBF\xBD" },
    };
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        char out[32];
        llmkit_json_unescape(lk_guarded_str(vectors[i][0]), out, sizeof out);
        assert_string_equal(out, vectors[i][1]);
    }
}

static void text_is_escaped(void **state) {
    (void)state;
    static const char *const vectors[][2] = {
        { "", "" },
        { "plain", "plain" },
        { "\"\\/", "\\\"\\\\/" },
        { "\b\f\n\r\t", "\\b\\f\\n\\r\\t" },
        { "\x01\x0B\x1F\x7F", "\\u0001\\u000b\\u001f\x7F" },
        { "\xC3\xA9", "\xC3\xA9" },
        { "\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80" },
        { "a\xFF"
          "b",
          "a\xEF\xBF\xBD"
          "b" },
        { "\xC3", "\xEF\xBF\xBD" },
        { "\xE2\x82", "\xEF\xBF\xBD\xEF\xBF\xBD" },
        { "\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD" },
        { "twelve bytes\nand more of it\"", "twelve bytes\\nand more of it\\\"" },
    };
    lk__buf out;
    lk__buf_init(&out, &world.env, 0);
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        llmkit_str text = lk_guarded_str(vectors[i][0]);
        lk__buf_clear(&out);
        lk__json_escape_to(&out, text);
        assert_str(lk__buf_view(&out), vectors[i][1]);
        char small[64];
        assert_int_equal(llmkit_json_escape(text, small, sizeof small), strlen(vectors[i][1]));
        assert_string_equal(small, vectors[i][1]);
    }
    lk__buf_free(&out);
}

/* Any bytes, escaped, are a valid JSON string, and valid UTF-8 comes back as it was. */
static void escaped_text_reads_back(void **state) {
    (void)state;
    lk__rand r;
    lk__rand_init(&r, &(llmkit_env){ .seed = 11 });
    lk__buf json, back;
    lk__buf_init(&json, &world.env, 0);
    lk__buf_init(&back, &world.env, 0);
    for (int round = 0; round < 3000; round++) {
        char text[64];
        size_t n = 0;
        bool clean = round % 2 == 0;
        while (n < 40) {
            uint64_t bits = lk__rand_u64(&r);
            uint32_t c = (uint32_t)(bits >> 8) % (bits % 4 == 0 ? 0x110000 : 0x80);
            if (clean && !(c >= 0xD800 && c <= 0xDFFF)) n += lk__utf8_put(text + n, c);
            if (!clean) text[n++] = (char)bits;
        }
        lk__buf_clear(&json);
        lk__buf_ch(&json, '"');
        lk__json_escape_to(&json, lk__str(lk_guarded(text, n), n));
        lk__buf_ch(&json, '"');
        assert_ok(parse_bytes(json.ptr, json.len));
        llmkit_str got = lk__json_view(&doc, 0, &back);
        if (clean) assert_true(lk__str_eq(got, lk__str(text, n)));
    }
    lk__buf_free(&json);
    lk__buf_free(&back);
}

static void small_buffers_end_between_characters(void **state) {
    (void)state;
    char out[16];
    memset(out, 'x', sizeof out);
    assert_int_equal(llmkit_json_unescape(LK__STR("ab\\u20ACcd"), NULL, 0), 7);
    assert_int_equal(llmkit_json_unescape(LK__STR("ab\\u20ACcd"), out, 1), 7);
    assert_string_equal(out, "");
    assert_int_equal(llmkit_json_unescape(LK__STR("ab\\u20ACcd"), out, 5), 7);
    assert_string_equal(out, "ab"); /* and not "abcd" */
    assert_int_equal(llmkit_json_unescape(LK__STR("ab\\u20ACcd"), out, 6), 7);
    assert_string_equal(out, "ab\xE2\x82\xAC");
    assert_int_equal(out[6], 'x');
    assert_int_equal(llmkit_json_escape(LK__STR("a\n\n"), out, 4), 5);
    assert_string_equal(out, "a\\n");
    assert_int_equal(llmkit_json_escape(lk__str(NULL, 0), out, 4), 0);
    assert_string_equal(out, "");
}

/* Paths. */

static void paths_lead_to_values(void **state) {
    (void)state;
    llmkit_str json =
        LK__STR("{\"choices\":[{\"delta\":{\"content\":\"hi\\n\"}},{\"x\":[[5,6]]}],\"n\":1.5}");
    static const char *const vectors[][2] = {
        { "choices[0].delta.content", "hi\\n" },
        { "n", "1.5" },
        { "choices[1].x[0][1]", "6" },
        { "choices[1].x[0]", "[5,6]" },
        { "choices[0].delta", "{\"content\":\"hi\\n\"}" },
    };
    llmkit_str value;
    for (size_t i = 0; i < LK__COUNT(vectors); i++) {
        assert_ok(llmkit_json_find(json, vectors[i][0], &value));
        assert_str(value, vectors[i][1]);
    }
    assert_ok(llmkit_json_find(json, "", &value));
    assert_true(value.ptr == json.ptr && value.len == json.len);
    assert_ok(llmkit_json_find(LK__STR("[[1,2],3]"), "[0][1]", &value));
    assert_str(value, "2");
    static const char *const missing[] = { "x",
                                           "choices[2]",
                                           "choices.x",
                                           "n.x",
                                           "n[0]",
                                           "[0]",
                                           "choices[0].delta.content.x",
                                           "choices[99999999999]",
                                           "choices[4294967296]" };
    for (size_t i = 0; i < LK__COUNT(missing); i++) {
        assert_err(llmkit_json_find(json, missing[i], &value), LLMKIT_E_JSON);
        assert_str(value, "");
    }
    assert_err(llmkit_json_find(LK__STR("{"), "a", &value), LLMKIT_E_JSON);
    assert_err(llmkit_json_find(lk__str(NULL, 0), "a", &value), LLMKIT_E_JSON);
}

static void senseless_paths_are_refused(void **state) {
    (void)state;
    static const char *const bad[] = { ".",    ".n",  "n.",   "n..x", "[",
                                       "[]",   "[x]", "[0",   "[-1]", "n[0]x",
                                       "[0].", "a[",  "a]b[", "[0]]", "[99999999999999999999]",
                                       "[ 0]" };
    for (size_t i = 0; i < LK__COUNT(bad); i++) {
        llmkit_str value;
        if (llmkit_json_find(LK__STR("{\"n\":[[0]]}"), bad[i], &value) != LLMKIT_E_ARG)
            fail_msg("%s is no path", bad[i]);
    }
}

static void numbers_are_read_from_raw_text(void **state) {
    (void)state;
    double value = 5;
    assert_ok(llmkit_json_number(LK__STR("-1.5e3"), &value));
    assert_true(value >= -1500 && value <= -1500);
    assert_ok(llmkit_json_number(LK__STR("true"), &value));
    assert_true(value >= 1 && value <= 1);
    assert_ok(llmkit_json_number(LK__STR("false"), &value));
    assert_true(value >= 0 && value <= 0);
    static const char *const bad[] = { "null", "", "abc", "\"1\"", "[1]", "True", "1 " };
    for (size_t i = 0; i < LK__COUNT(bad); i++) {
        assert_err(llmkit_json_number(lk_guarded_str(bad[i]), &value), LLMKIT_E_JSON);
    }
}

/* Writing. */

static void the_writer_sets_commas(void **state) {
    (void)state;
    lk__buf out;
    lk__buf_init(&out, &world.env, 0);
    lk__jsonw w = { .out = &out };
    lk__jsonw_open(&w, '{');
    lk__jsonw_key(&w, "a");
    lk__jsonw_open(&w, '[');
    lk__jsonw_close(&w, ']');
    lk__jsonw_key(&w, "b");
    lk__jsonw_open(&w, '[');
    lk__jsonw_i64(&w, INT64_MIN);
    lk__jsonw_i64(&w, 7);
    lk__jsonw_f64(&w, 0.7);
    lk__jsonw_bool(&w, true);
    lk__jsonw_str(&w, LK__STR("q\"\n"));
    lk__jsonw_open(&w, '{');
    lk__jsonw_close(&w, '}');
    lk__jsonw_raw(&w, LK__STR("{\"r\":null}"));
    lk__jsonw_close(&w, ']');
    lk__jsonw_key(&w, "c");
    lk__jsonw_bool(&w, false);
    lk__jsonw_close(&w, '}');
    assert_str(lk__buf_view(&out),
               "{\"a\":[],\"b\":[-9223372036854775808,7,0.7,true,\"q\\\"\\n\",{},"
               "{\"r\":null}],\"c\":false}");
    assert_ok(parse(out.ptr));
    lk__buf_free(&out);
}

/* Whatever jsmn and our own pass are given, they agree on the tokens (lk__json_parse asserts it),
 * and bytes changed at random break nothing but the document. */
static void damaged_texts_do_no_harm(void **state) {
    (void)state;
    static const char text[] =
        "{\"id\":\"chat\\u00e9\",\"n\":[1,-2.5e3,true,null,{\"k\":\"v\xC3\xA9\"}],"
        "\"choices\":[{\"delta\":{\"content\":\" tok\"},\"x\":[]}]}";
    lk__rand r;
    lk__rand_init(&r, &(llmkit_env){ .seed = 21 });
    int taken = 0;
    for (int round = 0; round < 60000; round++) {
        char copy[sizeof text];
        memcpy(copy, text, sizeof text);
        for (uint64_t n = 1 + lk__rand_u64(&r) % 3; n > 0; n--) {
            static const char marks[] = "{}[]\",:\\ 0e-tfnu\x80\x00\x1f";
            copy[lk__rand_u64(&r) % (sizeof text - 1)] = marks[lk__rand_u64(&r) % sizeof marks];
        }
        if (parse_bytes(copy, sizeof text - 1) == LLMKIT_OK) taken++;
    }
    assert_true(taken > 100);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
static const struct CMUnitTest tests[] = {
    TEST(valid_texts_are_taken),
    TEST(invalid_texts_are_refused),
    TEST(beginnings_are_refused),
    TEST(nul_is_valid_nowhere),
    TEST(errors_say_where),
    TEST(depth_is_bounded),
    TEST(a_hundred_thousand_brackets_are_refused_at_once),
    TEST(texts_over_two_gibibytes_are_refused),
    TEST(a_warm_parser_allocates_nothing),
    TEST(a_large_document_does_not_keep_its_memory),
    TEST(refused_allocations_are_reported),
    TEST(members_are_found),
    TEST(readers_of_no_node_answer_nothing),
    TEST(scalars_alone_are_documents),
    TEST(the_first_of_equal_names_counts),
    TEST(keys_mean_what_their_escapes_mean),
    TEST(children_are_walked),
    TEST(siblings_are_found_at_any_distance),
    TEST(integers_are_read),
    TEST(escapes_are_undone),
    TEST(unescape_bears_what_find_never_returns),
    TEST(text_is_escaped),
    TEST(escaped_text_reads_back),
    TEST(small_buffers_end_between_characters),
    TEST(paths_lead_to_values),
    TEST(senseless_paths_are_refused),
    TEST(numbers_are_read_from_raw_text),
    TEST(the_writer_sets_commas),
    TEST(damaged_texts_do_no_harm),
};
LK_TEST_MAIN(tests)
