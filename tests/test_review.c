/* test_review.c -- what ends inside a task, waits on a loop that cannot, or finds no memory */
#include "rig.h"
#ifdef LLMKIT__SPLIT
#include "llm/batch.c"
#endif

#include <math.h>

/* ---- a client and its loop destroyed inside a callback that a task makes --------------------- */

static void destroy_both(rig *r, const llmkit_event *e) {
    if (e->type != LLMKIT_EV_DONE || !r->client) return;
    llmkit_client_destroy(r->client);
    if (!r->own_loop) llmkit_loop_destroy(r->loop);
    r->client = NULL;
    r->loop = NULL;
}

/* A Unix socket that is not there fails in the task that begins the connection attempt. */
static void open_to_nowhere(rig *r) {
    rig_open_peer(r);
    r->provider.base_url = "unix:/nonexistent/socket";
    r->desc.max_tries = 1;
    if (!r->own_loop)
        r->loop = llmkit_loop_create(&(llmkit_loop_desc){ .env = r->world.env }, NULL);
    rig_open_client(r);
}

static void destroy_in_a_callback_of_a_task_leaves_nothing(void **state) {
    (void)state;
    for (int own = 0; own < 2; own++) {
        rig r = { .own_loop = own, .hook = destroy_both };
        open_to_nowhere(&r);
        rig_ask(&r, false);
        for (int i = 0; i < 100 && !r.done; i++) rig_turns(&r, 1);
        rig_expect(&r, "DONE(E_CONNECT)");
        rig_close(&r);
    }
}

/* ---- loops that only a host can wait for ----------------------------------------------------- */

static void watch_nothing(void *user, int fd, unsigned events) {
    (void)user, (void)fd, (void)events;
}

static void blocking_calls_refuse_a_loop_that_cannot_wait(void **state) {
    (void)state;
    llmkit_error error;
    llmkit_reply reply;
    llmkit_loop *loop = llmkit_loop_create(&(llmkit_loop_desc){ .watch = watch_nothing }, &error);
    llmkit_client *client = llmkit_client_create(&(llmkit_client_desc){
        .loop = loop, .num_providers = 1,
        .providers = &(llmkit_provider_desc){ .base_url = "unix:/nonexistent/socket" } }, &error);
    assert_non_null(client);
    const llmkit_request request = { .model = "m", .prompt = "Hi" };
    assert_err(llmkit_complete(client, &request, &reply), LLMKIT_E_ARG);
    assert_non_null(strstr(reply.error.message, "watch"));
    llmkit_reply_free(&reply);
    assert_null(llmkit_stream_open(client, &request, &error));
    assert_err(error.code, LLMKIT_E_ARG);
    llmkit_client_destroy(client);
    llmkit_loop_destroy(loop);
}

/* ---- deadlines ------------------------------------------------------------------------------- */

/* RFC 8297: hints come early, and the reply takes as long as it did before. */
static void an_interim_response_leaves_the_first_byte_deadline(void **state) {
    (void)state;
    rig r = { .desc = { .first_byte_ms = 5000, .idle_ms = 1000, .max_tries = 1 } };
    rig_open(&r);
    rig_script(&r, SCRIPT("R|HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"));
    rig_ask(&r, false);
    rig_turns(&r, 50);
    for (int ms = 0; ms < 4500; ms += 500) rig_pass(&r, 500);
    assert_false(r.done);
    rig_pass(&r, 1000);
    assert_true(r.done);
    assert_err(r.error.code, LLMKIT_E_TIMEOUT);
    assert_int_equal(r.error.deadline, LLMKIT_DEADLINE_FIRST_BYTE);
    rig_close(&r);
}

/* ---- the batch ------------------------------------------------------------------------------- */

static char batch_dir[] = "/tmp/llmkit-review-XXXXXX";

static const char *batch_file(const char *name) {
    static char paths[4][128];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", batch_dir, name);
    return path;
}

static size_t batch_read(const char *name, char *out, size_t size) {
    FILE *f = fopen(batch_file(name), "r");
    size_t n = f ? fread(out, 1, size - 1, f) : 0;
    if (f) fclose(f);
    out[n] = '\0';
    return n;
}

static void batch_make(const char *text) {
    assert_non_null(mkdtemp(batch_dir));
    FILE *f = fopen(batch_file("in.jsonl"), "w");
    fputs(text, f);
    fclose(f);
}

static void batch_remove(void) {
    unlink(batch_file("in.jsonl"));
    unlink(batch_file("save.jsonl"));
    unlink(batch_file("errors.jsonl"));
    rmdir(batch_dir);
    memcpy(batch_dir + sizeof batch_dir - 7, "XXXXXX", 6);
}

static llmkit_batch *batch_open(const llmkit_env *env, double rate, llmkit_error *error) {
    return llmkit_batch_create(&(llmkit_batch_desc){
        .env = *env, .requests_path = batch_file("in.jsonl"),
        .save_path = batch_file("save.jsonl"), .errors_path = batch_file("errors.jsonl"),
        .endpoints = &(llmkit_endpoint){ .base_url = "unix:/nonexistent/socket" },
        .num_endpoints = 1, .model = "m", .max_attempts = 1, .max_in_flight = 4, .warm = 1,
        .max_requests_per_s = rate }, error);
}

/* Whatever is refused: a line that was started is there once, with its own input. */
static void a_batch_without_memory_invents_nothing(void **state) {
    (void)state;
    static char text[65536];
    lk_world world;
    llmkit_error error;
    lk_world_init(&world);
    batch_make("{\"input\":\"one\"}\n{\"input\":\"two\"}\n{\"input\":\"three\"}\n");
    LK_EACH_REFUSAL(&world) {
        unlink(batch_file("save.jsonl"));
        unlink(batch_file("errors.jsonl"));
        llmkit_batch *b = batch_open(&world.env, 0, &error);
        if (!b) {
            assert_true(world.refused);
            continue;
        }
        llmkit_err err = llmkit_batch_run(b, &error);
        llmkit_batch_stats s = llmkit_batch_read(b);
        llmkit_batch_destroy(b);
        assert_int_equal(batch_read("save.jsonl", text, sizeof text), 0);
        batch_read("errors.jsonl", text, sizeof text);
        size_t lines = 0;
        for (const char *p = text; (p = strchr(p, '\n')); p++) lines++;
        assert_null(strstr(text, "\"input\":\"\""));
        if (!err) assert_int_equal(lines, s.started);
        if (!err) assert_int_equal(s.started, 3);
        assert_int_equal(s.malformed, 0);
        if (!err && !strstr(text, "\"input\":null")) {
            assert_non_null(strstr(text, "\"input\":\"one\""));
            assert_non_null(strstr(text, "\"input\":\"two\""));
            assert_non_null(strstr(text, "\"input\":\"three\""));
        }
    }
    batch_remove();
}

/* Times beyond what 64 bits of nanoseconds hold are no reason to send at once. */
static void a_rate_of_one_in_a_century_sends_one(void **state) {
    (void)state;
    llmkit_batch *b;
    lk_world world;
    llmkit_error error;
    lk_world_init(&world);
    batch_make("{\"input\":\"one\"}\n");
    b = batch_open(&world.env, 1e-12, &error);
    assert_non_null(b);
    assert_true(lk__batch_intended(b, 1) > INT64_C(1) << 59);
    llmkit_batch_destroy(b);
    assert_null(batch_open(&world.env, HUGE_VAL, &error));
    assert_err(error.code, LLMKIT_E_ARG);
    assert_no_leak(&world);
    batch_remove();
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(destroy_in_a_callback_of_a_task_leaves_nothing),
    cmocka_unit_test(blocking_calls_refuse_a_loop_that_cannot_wait),
    cmocka_unit_test(an_interim_response_leaves_the_first_byte_deadline),
    cmocka_unit_test(a_batch_without_memory_invents_nothing),
    cmocka_unit_test(a_rate_of_one_in_a_century_sends_one),
};

LK_TEST_MAIN(tests)
