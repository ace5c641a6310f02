/* test_openai.c -- OpenAI's dialect without sockets: bodies written, replies and events read */
#include "test.h"

/* ---- writing ----------------------------------------------------------------------------------*/

typedef struct draft {
    lk_world     world;
    lk__json     json;
    lk__buf      body;
    llmkit_error error;
} draft;

static void draft_init(draft *d) {
    lk_world_init(&d->world);
    lk__json_init(&d->json, &d->world.env);
    lk__buf_init(&d->body, &d->world.env, 0);
}

static void draft_free(draft *d) {
    lk__json_free(&d->json);
    lk__buf_free(&d->body);
    assert_no_leak(&d->world);
}

static llmkit_err draft_write(draft *d, const llmkit_request *r, bool stream, bool newer) {
    lk__draft what = { .request = r, .model = lk__str_z(r->model ? r->model : "m"),
                       .stream = stream, .completion_tokens = newer, .json = &d->json,
                       .body = &d->body };
    lk__buf_clear(&d->body);
    llmkit_err err = lk__codec_openai()->write(&what, &d->error);
    if (err) assert_int_equal(d->error.code, err);
    return err;
}

static void writes(const llmkit_request *r, bool stream, const char *golden) {
    draft d;
    draft_init(&d);
    assert_ok(draft_write(&d, r, stream, false));
    assert_str(lk__buf_view(&d.body), golden);
    assert_ok(lk__json_parse(&d.json, lk__buf_view(&d.body)));
    draft_free(&d);
}

static void a_prompt_is_the_smallest_body(void **state) {
    (void)state;
    writes(&(llmkit_request){ .prompt = "Hi" }, false,
           "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}");
    writes(&(llmkit_request){ .prompt = "Hi" }, true,
           "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],"
           "\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    writes(&(llmkit_request){ .prompt = "", .system = "a \"b\"\n\x01 \xff" }, false,
           "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":"
           "\"a \\\"b\\\"\\n\\u0001 \xef\xbf\xbd\"},{\"role\":\"user\",\"content\":\"\"}]}");
}

static void every_option_has_its_member(void **state) {
    (void)state;
    writes(&(llmkit_request){ .prompt = "x", .model = "gpt", .temperature = LLMKIT_OPT(0),
                              .top_p = LLMKIT_OPT(0.25), .seed = LLMKIT_OPT(42),
                              .max_tokens = 7, .tool_choice = "auto" }, false,
           "{\"model\":\"gpt\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
           "\"tool_choice\":\"auto\",\"temperature\":0,\"top_p\":0.25,\"seed\":42,"
           "\"max_tokens\":7}");
    draft d;
    draft_init(&d);
    assert_ok(draft_write(&d, &(llmkit_request){ .prompt = "x", .max_tokens = 7 }, false, true));
    assert_non_null(strstr(d.body.ptr, "\"max_completion_tokens\":7"));
    assert_null(strstr(d.body.ptr, "\"max_tokens\""));
    draft_free(&d);
}

static void messages_have_parts(void **state) {
    (void)state;
    static const llmkit_part picture[] = {
        { .kind = LLMKIT_TEXT, .text = { "a\0b", 3 } },
        { .kind = LLMKIT_IMAGE, .url = { "https://x/y.png", 15 } },
        { .kind = LLMKIT_IMAGE, .data = { "\xff\xd8\xff", 3 }, .mime = { "image/jpeg", 10 } },
        { .kind = LLMKIT_IMAGE, .data = { "GIF8", 4 } },
    };
    static const llmkit_part call[] = {
        { .kind = LLMKIT_TOOL_CALL, .id = { "c1", 2 }, .text = { "f", 1 },
          .data = { "{\"a\":1}", 7 } },
        { .kind = LLMKIT_TOOL_CALL, .id = { "c2", 2 }, .text = { "g", 1 } },
    };
    static const llmkit_part results[] = {
        { .kind = LLMKIT_TOOL_RESULT, .id = { "c1", 2 }, .text = { "one", 3 } },
        { .kind = LLMKIT_TOOL_RESULT, .id = { "c2", 2 }, .text = { "two", 3 } },
    };
    static const llmkit_part mixed[] = {
        { .kind = LLMKIT_TOOL_RESULT, .id = { "c1", 2 }, .text = { "one", 3 } },
        { .kind = LLMKIT_TEXT, .text = { "and?", 4 } },
    };
    static const llmkit_message messages[] = {
        { .role = LLMKIT_USER, .text = "look", .parts = picture, .num_parts = 4 },
        { .role = LLMKIT_ASSISTANT, .parts = call, .num_parts = 2 },
        { .role = LLMKIT_TOOL, .parts = results, .num_parts = 2 },
        { .role = LLMKIT_ASSISTANT, .text = "hm" },
        { .role = LLMKIT_USER, .parts = mixed, .num_parts = 2 },
        { .role = LLMKIT_SYSTEM, .parts = picture, .num_parts = 1 },
    };
    writes(&(llmkit_request){ .messages = messages, .num_messages = 6, .prompt = "end" }, false,
           "{\"model\":\"m\",\"messages\":["
           "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"look\"},"
           "{\"type\":\"text\",\"text\":\"a\\u0000b\"},"
           "{\"type\":\"image_url\",\"image_url\":{\"url\":\"https://x/y.png\"}},"
           "{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/jpeg;base64,/9j/\"}},"
           "{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,R0lGOA==\"}}]},"
           "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":["
           "{\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":"
           "\"{\\\"a\\\":1}\"}},"
           "{\"id\":\"c2\",\"type\":\"function\",\"function\":{\"name\":\"g\",\"arguments\":"
           "\"{}\"}}]},"
           "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"one\"},"
           "{\"role\":\"tool\",\"tool_call_id\":\"c2\",\"content\":\"two\"},"
           "{\"role\":\"assistant\",\"content\":\"hm\"},"
           "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"one\"},"
           "{\"role\":\"user\",\"content\":\"and?\"},"
           "{\"role\":\"system\",\"content\":\"a\\u0000b\"},"
           "{\"role\":\"user\",\"content\":\"end\"}]}");
}

static void tools_and_schema_go_in_as_they_are(void **state) {
    (void)state;
    static const llmkit_tool tools[] = {
        { .name = "f", .description = "does", .schema = "{ \"type\": \"object\" }" },
        { .name = "g" },
    };
    writes(&(llmkit_request){ .prompt = "x", .tools = tools, .num_tools = 2, .tool_choice = "f" },
           false, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
           "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\","
           "\"description\":\"does\","
           "\"parameters\":{ \"type\": \"object\" }}},"
           "{\"type\":\"function\",\"function\":{\"name\":\"g\"}}],"
           "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}}");
    writes(&(llmkit_request){ .prompt = "x", .schema = "{\"type\":\"object\"}", .max_tokens = 1 },
           false, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
           "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"reply\","
           "\"strict\":true,\"schema\":{\"type\":\"object\"}}},\"max_tokens\":1}");
}

static void extra_replaces_and_joins_members(void **state) {
    (void)state;
    writes(&(llmkit_request){ .prompt = "x", .max_tokens = 5, .temperature = LLMKIT_OPT(1),
                              .extra = " { \"t\\u0065mperature\" : 2, \"user\":\"\\u0041\\n\","
                                       "\"stop\":[ \"a\" ], \"n\":null , \"deep\":{\"a\":[1]}} " },
           true, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
           "\"max_tokens\":5,\"stream\":true,\"stream_options\":{\"include_usage\":true},"
           "\"t\\u0065mperature\":2,\"user\":\"\\u0041\\n\",\"stop\":[ \"a\" ],\"n\":null,"
           "\"deep\":{\"a\":[1]}}");
    writes(&(llmkit_request){ .extra = "{\"model\":\"y\",\"messages\":[]}" }, false,
           "{\"model\":\"y\",\"messages\":[]}");
    writes(&(llmkit_request){ .prompt = "x", .extra = "{}" }, false,
           "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    writes(&(llmkit_request){ .prompt = "x", .extra = "{\"stream_options\":null}" }, true,
           "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true,"
           "\"stream_options\":null}");
}

static void what_cannot_be_written_is_refused(void **state) {
    (void)state;
    static const llmkit_message odd = { .role = (llmkit_role)9, .text = "x" };
    static const llmkit_tool nameless = { .name = "" }, bad = { .name = "f", .schema = "[1]" };
    const llmkit_request refused[] = {
        { .messages = &odd, .num_messages = 1 },
        { .prompt = "x", .tools = &nameless, .num_tools = 1 },
        { .prompt = "x", .tools = &bad, .num_tools = 1 },
        { .prompt = "x", .schema = "true" },
        { .prompt = "x", .schema = "{} {}" },
        { .prompt = "x", .extra = "[]" },
        { .prompt = "x", .extra = "" },
        { .prompt = "x", .extra = "{\"str\\u0065am\":false}" },
    };
    static const char *const names[] = { "messages[0].role", "tools[0].name", "schema", "schema",
                                         "schema", "extra", "extra", "stream" };
    draft d;
    draft_init(&d);
    for (size_t i = 0; i < LK__COUNT(refused); i++) {
        assert_err(draft_write(&d, &refused[i], false, false), LLMKIT_E_ARG);
        assert_non_null(strstr(d.error.message, names[i]));
    }
    draft_free(&d);
}

static void writing_survives_every_refusal(void **state) {
    (void)state;
    static const llmkit_part image = { .kind = LLMKIT_IMAGE, .data = { "GIF89a..........", 16 } };
    static const llmkit_message message = { .parts = &image, .num_parts = 1 };
    draft d;
    lk_world_init(&d.world);
    LK_EACH_REFUSAL(&d.world) {
        lk__json_init(&d.json, &d.world.env);
        lk__buf_init(&d.body, &d.world.env, 0);
        llmkit_err err = draft_write(&d, &(llmkit_request){ .messages = &message, .num_messages = 1,
                                     .schema = "{}", .extra = "{\"a\":1}" }, true, false);
        assert_err(err, d.world.refused ? LLMKIT_E_NOMEM : LLMKIT_OK);
        lk__json_free(&d.json);
        lk__buf_free(&d.body);
    }
}

/* ---- reading a whole reply --------------------------------------------------------------------*/

typedef struct reading {
    lk_world     world;
    lk__json     json;
    lk__buf      arena, tools;
    llmkit_reply reply;
    llmkit_error error;
} reading;

static llmkit_err read_reply(reading *r, const char *text) {
    lk_world_init(&r->world);
    memset(&r->reply, 0, sizeof r->reply);
    memset(&r->error, 0, sizeof r->error);
    lk__json_init(&r->json, &r->world.env);
    lk__buf_init(&r->arena, &r->world.env, 0);
    lk__buf_init(&r->tools, &r->world.env, 0);
    llmkit_str guarded = lk_guarded_str(text);
    assert_ok(lk__json_parse(&r->json, guarded));
    assert_non_null(lk__buf_more(&r->arena, guarded.len + 1));
    const char *before = r->arena.ptr;
    llmkit_err err = lk__codec_openai()->read(&r->json, &r->reply, &r->arena, &r->tools, &r->error);
    assert_ptr_equal(r->arena.ptr, before); /* or all views would be stale */
    return err;
}

static void read_free(reading *r) {
    lk__json_free(&r->json);
    lk__buf_free(&r->arena);
    lk__buf_free(&r->tools);
    assert_no_leak(&r->world);
}

static void a_whole_reply_has_all_its_parts(void **state) {
    (void)state;
    reading r;
    assert_ok(read_reply(&r, "{\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":20.0,"
        "\"prompt_tokens_details\":{\"cached_tokens\":4},\"completion_tokens_details\":"
        "{\"reasoning_tokens\":5}},\"choices\":[{\"message\":{\"content\":"
        "\"a\\u0000\\ud83d\\ude42\",\"refusal\":null,\"tool_calls\":[{\"id\":\"c1\",\"function\":"
        "{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\"}},{\"function\":{}},{}]},"
        "\"finish_reason\":\"tool_calls\"},"
        "{\"message\":{\"content\":\"other\"}}],\"model\":\"m-2\"}"));
    assert_int_equal(r.reply.text.len, 6);
    assert_memory_equal(r.reply.text.ptr, "a\0\xf0\x9f\x99\x82", 7);
    assert_str(r.reply.refusal, "");
    assert_str(r.reply.model, "m-2");
    assert_str(r.reply.finish_text, "tool_calls");
    assert_int_equal(r.reply.finish, LLMKIT_TOOL_USE);
    assert_int_equal(r.reply.usage.input, 10);
    assert_int_equal(r.reply.usage.output, 20);
    assert_int_equal(r.reply.usage.cache_read, 4);
    assert_int_equal(r.reply.usage.reasoning, 5);
    assert_int_equal(r.reply.num_tool_calls, 3);
    assert_str(r.reply.tool_calls[0].id, "c1");
    assert_str(r.reply.tool_calls[0].name, "f");
    assert_str(r.reply.tool_calls[0].arguments, "{\"x\":1}");
    assert_int_equal(r.reply.tool_calls[2].index, 2);
    assert_str(r.reply.tool_calls[2].id, "");
    read_free(&r);
}

static void what_a_reply_leaves_out_is_not_zero(void **state) {
    (void)state;
    reading r;
    assert_ok(read_reply(&r, "{\"choices\":[{\"message\":{\"content\":null,\"refusal\":\"no\"}}],"
                         "\"usage\":{\"prompt_tokens\":-3,\"completion_tokens\":null}}"));
    assert_str(r.reply.text, "");
    assert_str(r.reply.refusal, "no");
    assert_int_equal(r.reply.finish, LLMKIT_OTHER);
    assert_int_equal(r.reply.usage.input, -1);
    assert_int_equal(r.reply.usage.output, -1);
    assert_int_equal(r.reply.num_tool_calls, 0);
    assert_null(r.reply.tool_calls);
    read_free(&r);
}

static void all_finish_reasons_are_known(void **state) {
    (void)state;
    static const struct {
        const char   *reason;
        llmkit_finish finish;
    } table[] = {
        { "stop", LLMKIT_STOP }, { "length", LLMKIT_LENGTH }, { "tool_calls", LLMKIT_TOOL_USE },
        { "function_call", LLMKIT_TOOL_USE }, { "content_filter", LLMKIT_FILTER },
        { "eos", LLMKIT_OTHER }, { "", LLMKIT_OTHER },
    };
    for (size_t i = 0; i < LK__COUNT(table); i++) {
        char text[200];
        reading r;
        snprintf(text, sizeof text, "{\"choices\":[{\"message\":{},\"finish_reason\":\"%s\"}]}",
                 table[i].reason);
        assert_ok(read_reply(&r, text));
        assert_int_equal(r.reply.finish, table[i].finish);
        assert_str(r.reply.finish_text, table[i].reason);
        read_free(&r);
    }
}

static void documents_of_another_shape_are_no_replies(void **state) {
    (void)state;
    static const char *const texts[] = {
        "{}", "[]", "1", "\"choices\"", "{\"choices\":[]}", "{\"choices\":{}}", "{\"choices\":[1]}",
        "{\"choices\":[{\"message\":null}]}", "{\"choices\":[{\"message\":[]}]}",
        "{\"choices\":[{\"text\":\"completion\"}]}", "[{\"choices\":[{\"message\":{}}]}]",
    };
    for (size_t i = 0; i < LK__COUNT(texts); i++) {
        reading r;
        assert_err(read_reply(&r, texts[i]), LLMKIT_E_JSON);
        assert_non_null(strstr(r.error.message, "base_url"));
        read_free(&r);
    }
    reading r;
    assert_ok(read_reply(&r, "{\"choices\":[{\"message\":{\"content\":[1],\"tool_calls\":"
                         "{\"a\":1}},\"finish_reason\":7}],\"usage\":3,\"model\":null}"));
    read_free(&r);
}

/* ---- reading an error -------------------------------------------------------------------------*/

static llmkit_error read_error(const char *type, const char *code, uint16_t status) {
    llmkit_error error;
    reading r;
    char text[200];
    lk__buf scratch;
    snprintf(text, sizeof text, "{\"error\":{\"code\":\"%s\",\"type\":\"%s\",\"message\":\"m\"}}",
             code, type);
    (void)read_reply(&r, text);
    lk__buf_init(&scratch, &r.world.env, 0);
    lk__fail(&error, LLMKIT_E_SERVER, "x");
    error.http_status = status;
    assert_true(lk__codec_openai()->read_error(&r.json, &error, &scratch));
    lk__buf_free(&scratch);
    read_free(&r);
    return error;
}

static void types_and_codes_say_what_kind_of_error_it_is(void **state) {
    (void)state;
    assert_err(read_error("", "insufficient_quota", 429).code, LLMKIT_E_QUOTA);
    assert_err(read_error("insufficient_quota", "", 0).code, LLMKIT_E_QUOTA);
    assert_false(read_error("insufficient_quota", "", 429).retryable);
    assert_err(read_error("invalid_request_error", "", 0).code, LLMKIT_E_REQUEST);
    assert_err(read_error("invalid_request_error", "invalid_model", 0).code, LLMKIT_E_REQUEST);
    assert_err(read_error("invalid_request_error", "invalid_api_key", 0).code, LLMKIT_E_AUTH);
    assert_false(read_error("invalid_request_error", "", 0).retryable);
    assert_err(read_error("invalid_request_error", "", 500).code, LLMKIT_E_SERVER);
    assert_true(read_error("invalid_request_error", "", 500).retryable);
    assert_err(read_error("requests", "rate_limit_exceeded", 0).code, LLMKIT_E_LIMITED);
    assert_true(read_error("requests", "rate_limit_exceeded", 0).retryable);
    assert_err(read_error("overloaded_error", "", 0).code, LLMKIT_E_OVERLOADED);
    assert_err(read_error("something", "else", 0).code, LLMKIT_E_SERVER);
    assert_string_equal(read_error("something", "else", 0).type, "else");
    assert_string_equal(read_error("something", "", 0).type, "something");
    assert_string_equal(read_error("something", "", 0).message, "m");
}

/* ---- reading a stream -------------------------------------------------------------------------*/

typedef struct feed {
    lk_world  world;
    lk__json  json;
    lk__buf   scratch;
    lk__answer answer;
    char      log[2048];
    int       stop_at; /* the event in which the call ends */
    llmkit_error error;
} feed;

static bool feed_emit(void *user, llmkit_event *e) {
    feed *f = user;
    size_t at = strlen(f->log);
    const llmkit_str views[] = { e->text, e->model, e->tool.id, e->tool.name, e->tool.arguments };
    for (size_t i = 0; i < LK__COUNT(views); i++)
        if (views[i].ptr) assert_int_equal(views[i].ptr[views[i].len], 0);
    snprintf(f->log + at, sizeof f->log - at, "%d(%u %s %s) ", (int)e->type, e->tool.index,
             e->text.ptr ? e->text.ptr : "", e->tool.name.ptr ? e->tool.name.ptr : "");
    return --f->stop_at != 0;
}

static void feed_init(feed *f) {
    lk__json_init(&f->json, &f->world.env);
    lk__buf_init(&f->scratch, &f->world.env, 0);
    lk__answer_init(&f->answer, &f->world.env);
    f->answer.json = &f->json;
    f->answer.scratch = &f->scratch;
    f->answer.max_bytes = 1000;
    f->answer.emit = feed_emit;
    f->answer.user = f;
    f->log[0] = '\0';
    f->stop_at = 0;
    memset(&f->error, 0, sizeof f->error);
    lk__answer_reset(&f->answer);
}

static void feed_free(feed *f) {
    lk__answer_free(&f->answer);
    lk__json_free(&f->json);
    lk__buf_free(&f->scratch);
}

static bool feed_event(feed *f, const char *data) {
    return lk__codec_openai()->read_event(&f->answer, lk_guarded_str(data), &f->error);
}

#define DELTA(x)                                                                                   \
    "{\"choices\":[{\"index\":0,\"delta\":{" x "},\"finish_reason\":null}],\"model\":\"m\"}"

/* The fast way of events that differ in their text alone must say what the slow one says. */
static void events_alike_are_read_alike(void **state) {
    (void)state;
    static const char *const texts[] = { "a", "b", "", "long and longer", "\\u00e9\\n", "\\\"",
                                         "\xc3\xa9", "c\"},\\" };
    feed f = { 0 };
    lk_world_init(&f.world);
    feed_init(&f);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i + 1 < LK__COUNT(texts); i++) {
            char data[400];
            f.log[0] = '\0';
            snprintf(data, sizeof data, DELTA("\"content\":\"%s\""), texts[i]);
            assert_true(feed_event(&f, data));
            if (round == 0 && i == 0) continue; /* START comes first */
            static const char *const logs[] = {
                "2(0 a ) ", "2(0 b ) ", "", "2(0 long and longer ) ", "2(0 \xc3\xa9\n ) ",
                "2(0 \" ) ", "2(0 \xc3\xa9 ) "
            };
            assert_string_equal(f.log, logs[i]);
        }
    }
    assert_false(feed_event(&f, DELTA("\"content\":\"c\"},\\\"")));
    assert_err(f.error.code, LLMKIT_E_JSON);
    assert_false(feed_event(&f, DELTA("\"content\":\"\xff\"")));
    assert_false(feed_event(&f, DELTA("\"content\":\"\n\"")));
    assert_false(feed_event(&f, DELTA("\"content\":\"a\" ") "}"));
    f.log[0] = '\0';
    assert_true(feed_event(&f, DELTA("\"content\":\"a\",\"content\":\"b\"")));
    assert_true(feed_event(&f, DELTA("\"content\":\"a\",\"refusal\":\"b\"")));
    assert_true(feed_event(&f, DELTA("\"content\":\"c\",\"refusal\":\"d\"")));
    assert_true(feed_event(&f, DELTA("\"refusal\":\"e\"")));
    assert_true(feed_event(&f, DELTA("\"refusal\":\"f\"")));
    assert_non_null(strstr(f.log, "2(0 c ) 3(0 d ) 3(0 e ) 3(0 f ) "));
    feed_free(&f);
    assert_no_leak(&f.world);
}

#define LONG "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const char *const long_stream[] = {
    DELTA("\"content\":\"a\""), DELTA("\"content\":\"b\\n\""), DELTA("\"content\":\"c\\n\""),
    DELTA("\"content\":\"" LONG "\\n\""), /* more than before: the text needs room */
    DELTA("\"refusal\":\"" LONG LONG LONG "\\n\""),
    DELTA("\"refusal\":\"r\""),
    DELTA("\"tool_calls\":[{\"index\":1,\"id\":\"i\",\"function\":{\"name\":\"f\"}},"
          "{\"index\":0,\"id\":\"j\",\"function\":{\"name\":\"g\",\"arguments\":\"{\"}}]"),
    DELTA("\"tool_calls\":[{\"index\":1,\"function\":{\"arguments\":\"12\"}}]"),
    "{\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}",
    "{\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}",
    DELTA("\"tool_calls\":[{\"index\":1,\"function\":{\"arguments\":\"late\"}}]"), /* nothing */
    "{\"choices\":[],\"usage\":{\"prompt_tokens\":1}}", "[DONE]",
};

static void a_call_may_end_in_any_event(void **state) {
    (void)state;
    for (int stop = 1; stop <= 15; stop++) {
        feed f = { 0 };
        lk_world_init(&f.world);
        feed_init(&f);
        f.stop_at = stop;
        bool going = true;
        for (size_t i = 0; i < LK__COUNT(long_stream) && going; i++)
            going = feed_event(&f, long_stream[i]);
        assert_int_equal(going, stop == 15);
        assert_ok(f.error.code);
        feed_free(&f);
        assert_no_leak(&f.world);
    }
}

static void reading_a_stream_survives_every_refusal(void **state) {
    (void)state;
    feed f = { 0 };
    lk_world_init(&f.world);
    LK_EACH_REFUSAL(&f.world) {
        feed_init(&f);
        bool going = true;
        for (size_t i = 0; i < LK__COUNT(long_stream) && going; i++)
            going = feed_event(&f, long_stream[i]);
        if (!going) assert_err(f.error.code, LLMKIT_E_NOMEM);
        if (going)
            assert_string_equal(f.log, "1(0  ) 2(0 a ) 2(0 b\n ) 2(0 c\n ) 2(0 " LONG "\n ) "
                                "3(0 " LONG LONG LONG "\n ) 3(0 r ) 4(1  f) 4(0  g) "
                                "5(0 { ) 5(1 12 ) 6(1  f) 6(0  g) 7(0  ) ");
        feed_free(&f);
    }
}

static void tool_calls_are_bounded(void **state) {
    (void)state;
    feed f = { 0 };
    char data[2400];
    lk_world_init(&f.world);
    feed_init(&f);
    for (int i = 0; i < LK__MAX_TOOL_PARTS; i++) {
        snprintf(data, sizeof data, DELTA("\"tool_calls\":[{\"index\":%d,\"id\":\"x\"}]"), i * 7);
        assert_true(feed_event(&f, data));
        f.log[0] = '\0';
    }
    assert_false(feed_event(&f, DELTA("\"tool_calls\":[{\"index\":1,\"id\":\"x\"}]")));
    assert_err(f.error.code, LLMKIT_E_TOO_BIG);
    feed_free(&f);
    feed_init(&f);
    char big[1100];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    snprintf(data, sizeof data, DELTA("\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":"
             "\"%s\"}}]"), big);
    assert_false(feed_event(&f, data));
    assert_err(f.error.code, LLMKIT_E_TOO_BIG);
    feed_free(&f);
    assert_no_leak(&f.world);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_prompt_is_the_smallest_body),
    cmocka_unit_test(every_option_has_its_member),
    cmocka_unit_test(messages_have_parts),
    cmocka_unit_test(tools_and_schema_go_in_as_they_are),
    cmocka_unit_test(extra_replaces_and_joins_members),
    cmocka_unit_test(what_cannot_be_written_is_refused),
    cmocka_unit_test(writing_survives_every_refusal),
    cmocka_unit_test(a_whole_reply_has_all_its_parts),
    cmocka_unit_test(what_a_reply_leaves_out_is_not_zero),
    cmocka_unit_test(all_finish_reasons_are_known),
    cmocka_unit_test(documents_of_another_shape_are_no_replies),
    cmocka_unit_test(types_and_codes_say_what_kind_of_error_it_is),
    cmocka_unit_test(events_alike_are_read_alike),
    cmocka_unit_test(a_call_may_end_in_any_event),
    cmocka_unit_test(reading_a_stream_survives_every_refusal),
    cmocka_unit_test(tool_calls_are_bounded),
};

LK_TEST_MAIN(tests)
