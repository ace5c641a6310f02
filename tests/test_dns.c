/* test_dns.c -- addresses and names, with a resolver that answers what the test says */

#include "test.h"
#ifdef LLMKIT__SPLIT
#include "core/error.c"
#include "net/dns.c"
#endif

#include <pthread.h>
#include <sched.h>

/* ---- Helpers ---------------------------------------------------------------------------------*/

/* What the replaced getaddrinfo does.  While closed it does not return. */
typedef struct oracle {
    pthread_mutex_t mutex;
    pthread_cond_t  moved;
    bool            closed;
    int             asked, inside, most_inside, done, freed;
    int             code;
    struct addrinfo *list;
    sigset_t        blocked; /* in the thread that asked last */
} oracle;

static oracle oracle_at = { .mutex = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER };

static int ask_oracle(const char *node, const char *service, const struct addrinfo *hints,
                      struct addrinfo **list) {
    oracle *o = &oracle_at;
    assert_true(node[0] != '\0' && !service && hints->ai_socktype == SOCK_STREAM);
    pthread_mutex_lock(&o->mutex);
    o->asked++;
    if (++o->inside > o->most_inside) o->most_inside = o->inside;
    pthread_sigmask(SIG_SETMASK, NULL, &o->blocked);
    pthread_cond_broadcast(&o->moved);
    while (o->closed) pthread_cond_wait(&o->moved, &o->mutex);
    o->inside--;
    o->done++;
    *list = o->list;
    int code = o->code;
    pthread_cond_broadcast(&o->moved);
    pthread_mutex_unlock(&o->mutex);
    errno = EACCES; /* for EAI_SYSTEM */
    return code;
}

static void free_oracles_list(struct addrinfo *list) {
    pthread_mutex_lock(&oracle_at.mutex);
    assert_ptr_equal(list, oracle_at.list);
    oracle_at.freed++;
    pthread_mutex_unlock(&oracle_at.mutex);
}

static void oracle_init(bool closed, int code, struct addrinfo *list) {
    oracle *o = &oracle_at;
    pthread_mutex_lock(&o->mutex);
    o->closed = closed;
    o->asked = o->inside = o->most_inside = o->done = o->freed = 0;
    o->code = code;
    o->list = list;
    pthread_mutex_unlock(&o->mutex);
}

LK_UNUSED static void oracle_open(void) {
    pthread_mutex_lock(&oracle_at.mutex);
    oracle_at.closed = false;
    pthread_cond_broadcast(&oracle_at.moved);
    pthread_mutex_unlock(&oracle_at.mutex);
}

LK_UNUSED static void wait_until(const int *count, int at_least) {
    pthread_mutex_lock(&oracle_at.mutex);
    while (*count < at_least) pthread_cond_wait(&oracle_at.moved, &oracle_at.mutex);
    pthread_mutex_unlock(&oracle_at.mutex);
}

static const lk__sys *oracle_sys(void) {
    static lk__sys sys;
    sys = *lk__sys_default();
    sys.getaddrinfo = ask_oracle;
    sys.freeaddrinfo = free_oracles_list;
    return &sys;
}

/* The resolver outlives its loop by a moment.  To see its threads end, a test holds it, too. */
static lk__resolver *hold_resolver(llmkit_loop *loop) {
    lk__resolver *r = lk__resolver_of(loop);
    assert_non_null(r);
    lk__lock(&r->mutex);
    r->refs++;
    lk__unlock(&r->mutex);
    return r;
}

static void drop_resolver(lk__resolver *r) {
    for (;;) {
        lk__lock(&r->mutex);
        if (r->refs == 1) break;
        lk__unlock(&r->mutex);
        sched_yield();
    }
    assert_int_equal(r->threads, 0);
    lk__resolver_unref(r);
}

typedef struct query {
    lk__lookup   lookup;
    llmkit_loop *loop;
    int          answers;
    bool         failed;
    lk__addrs    addrs;
    llmkit_error error;
    void       (*then)(struct query *q);
    struct query *other;
} query;

static void query_fn(lk__lookup *lookup, const lk__addrs *addrs, const llmkit_error *error) {
    query *q = LK__CONTAINER(lookup, query, lookup);
    assert_true(lk__loop_inside(q->loop));
    assert_null(lookup->job);
    q->answers++;
    q->failed = error != NULL;
    if (error) q->error = *error;
    if (!error) assert_in_range(addrs->num, 1, LK__MAX_ADDRS);
    if (!error) q->addrs = *addrs;
    if (q->then) q->then(q);
    lk__loop_unhold(q->loop);
}

static void query_start(query *q, llmkit_loop *loop, const char *host) {
    llmkit_error error;
    *q = (query){ .lookup = { .fn = query_fn }, .loop = loop };
    lk__loop_hold(loop);
    llmkit_err err = lk__lookup_start(loop, &q->lookup, lk__str_z(host), 443, &error);
    if (err) fail_msg("%s", error.message);
    assert_int_equal(q->answers, 0);
}

static llmkit_loop *open_loop(const lk__sys *sys) {
    llmkit_loop *loop = llmkit_loop_create(NULL, NULL);
    assert_non_null(loop);
    if (sys) lk__loop_set_sys(loop, sys);
    return loop;
}

static const char *show(const lk__addr *addr) {
    static char text[INET6_ADDRSTRLEN + 16];
    char ip[INET6_ADDRSTRLEN];
    bool v6 = addr->at.any.sa_family == AF_INET6;
    const void *from = v6 ? (const void *)&addr->at.v6.sin6_addr : &addr->at.v4.sin_addr;
    assert_non_null(inet_ntop(addr->at.any.sa_family, from, ip, sizeof ip));
    assert_int_equal(addr->len, v6 ? sizeof addr->at.v6 : sizeof addr->at.v4);
    snprintf(text, sizeof text, "%s:%d", ip, ntohs(v6 ? addr->at.v6.sin6_port
                                                      : addr->at.v4.sin_port));
    return text;
}

/* A list such as getaddrinfo makes: each letter of families is '4' or '6', or '?' for another
 * family; the last byte of an address is its place from 1 on. */
typedef struct made {
    struct addrinfo ai[40];
    lk__addr        addr[40];
} made;

static struct addrinfo *make_list(made *m, const char *families) {
    memset(m, 0, sizeof *m);
    for (size_t i = 0; families[i]; i++) {
        lk__addr *addr = &m->addr[i];
        struct addrinfo *ai = &m->ai[i];
        bool v6 = families[i] == '6';
        if (v6) {
            addr->at.v6.sin6_family = AF_INET6;
            addr->at.v6.sin6_addr.s6_addr[15] = (uint8_t)(i + 1);
        } else {
            addr->at.v4.sin_family = AF_INET;
            addr->at.v4.sin_addr.s_addr = htonl((uint32_t)i + 1);
        }
        ai->ai_family = families[i] == '?' ? AF_UNIX : v6 ? AF_INET6 : AF_INET;
        ai->ai_addr = &addr->at.any;
        ai->ai_addrlen = v6 ? sizeof addr->at.v6 : sizeof addr->at.v4;
        if (families[i + 1]) ai->ai_next = &m->ai[i + 1];
    }
    return families[0] ? m->ai : NULL;
}

/* The places in the list, in the order to try. */
static void assert_order(const char *families, const char *order) {
    made m;
    lk__addrs out;
    char text[64] = "";
    lk__addrs_fill(&out, make_list(&m, families), 443);
    for (uint32_t i = 0; i < out.num; i++) {
        bool v6 = out.addr[i].at.any.sa_family == AF_INET6;
        unsigned place = v6 ? out.addr[i].at.v6.sin6_addr.s6_addr[15]
                            : ntohl(out.addr[i].at.v4.sin_addr.s_addr);
        assert_int_equal(ntohs(v6 ? out.addr[i].at.v6.sin6_port : out.addr[i].at.v4.sin_port), 443);
        text[i] = (char)(place < 10 ? '0' + place : 'a' + place - 10);
    }
    assert_string_equal(text, order);
}

/* ---- Addresses -------------------------------------------------------------------------------*/

static void address_is_read(const char *text, const char *as) {
    lk__addr addr;
    assert_true(lk__addr_parse(&addr, lk_guarded_str(text), 80));
    assert_string_equal(show(&addr), as);
}

static void addresses_are_told_from_names(void **state) {
    static const char *const names[] = {
        "", "localhost", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.4 ", "127.1", "0x7f.0.0.1",
        "[::1]", "::1]", "1::2::3", ":::", "::1%", "::1%no-such-interface", "1.2.3.4%lo", "%",
        "a%b",
        "example.com", "1.2.3.4:80",
    };
    lk__addr addr;
    (void)state;
    address_is_read("192.0.2.1", "192.0.2.1:80");
    address_is_read("2001:db8::1", "2001:db8::1:80");
    address_is_read("::", ":::80");
    address_is_read("::ffff:192.0.2.1", "::ffff:192.0.2.1:80");
    for (size_t i = 0; i < LK__COUNT(names); i++)
        assert_false(lk__addr_parse(&addr, lk_guarded_str(names[i]), 80));
    assert_false(lk__addr_parse(&addr, lk__str("1.2.3.4\0x", 9), 80));
    char longer[300];
    memset(longer, '1', sizeof longer);
    assert_false(lk__addr_parse(&addr, lk__str(longer, sizeof longer), 80));
    if (lk__addr_parse(&addr, LLMKIT_STR("fe80::1%lo"), 80)) /* not where there is no "lo" */
        assert_true(addr.at.v6.sin6_scope_id != 0);
}

static void families_take_turns_in_the_order_of_the_list(void **state) {
    (void)state;
    assert_order("", "");
    assert_order("4", "1");
    assert_order("6", "1");
    assert_order("444", "123");
    assert_order("6644", "1324");
    assert_order("4466", "1324");
    assert_order("4666", "1234");
    assert_order("66664", "15234");
    assert_order("464646", "123456");
    assert_order("?6?4", "24");
    assert_order("???", "");
    assert_order("6666666666666666666644", "1l2m3456789abcde"); /* 16 of 22, and both of the few */
}

static void addresses_that_are_repeated_count_once(void **state) {
    made m;
    lk__addrs out;
    (void)state;
    struct addrinfo *list = make_list(&m, "4444");
    m.addr[1] = m.addr[3] = m.addr[0];
    lk__addrs_fill(&out, list, 1);
    assert_int_equal(out.num, 2);
}

/* ---- Lookups ---------------------------------------------------------------------------------*/

static void literal_is_answered_in_a_turn_without_a_thread(void **state) {
    llmkit_loop *loop = open_loop(oracle_sys());
    query q;
    (void)state;
    oracle_init(false, EAI_FAIL, NULL);
    query_start(&q, loop, "192.0.2.7");
    assert_ok(llmkit_loop_run(loop));
    assert_int_equal(q.answers, 1);
    assert_false(q.failed);
    assert_string_equal(show(&q.addrs.addr[0]), "192.0.2.7:443");
    query_start(&q, loop, "2001:db8::7");
    assert_ok(llmkit_loop_run(loop));
    assert_string_equal(show(&q.addrs.addr[0]), "2001:db8::7:443");
    assert_int_equal(oracle_at.asked, 0);
    llmkit_loop_destroy(loop);
}

static void name_is_answered_with_all_its_addresses(void **state) {
    llmkit_loop *loop = open_loop(oracle_sys());
    lk__resolver *r = hold_resolver(loop);
    made m;
    query q;
    (void)state;
    oracle_init(false, 0, make_list(&m, "6644"));
    query_start(&q, loop, "api.example");
    assert_ok(llmkit_loop_run(loop));
    assert_int_equal(q.answers, 1);
    assert_int_equal(q.addrs.num, 4);
    assert_string_equal(show(&q.addrs.addr[0]), "::1:443");
    assert_string_equal(show(&q.addrs.addr[1]), "0.0.0.3:443");
    assert_int_equal(oracle_at.freed, 1);
    llmkit_loop_destroy(loop);
    drop_resolver(r);
}

static void real_resolver_knows_localhost(void **state) {
    llmkit_loop *loop = open_loop(NULL);
    lk__resolver *r = hold_resolver(loop);
    query q;
    (void)state;
    query_start(&q, loop, "localhost");
    assert_ok(llmkit_loop_run(loop));
    assert_int_equal(q.answers, 1);
    if (q.failed) fail_msg("%s", q.error.message);
    const char *text = show(&q.addrs.addr[0]);
    assert_true(strcmp(text, "127.0.0.1:443") == 0 || strcmp(text, "::1:443") == 0);
    llmkit_loop_destroy(loop);
    drop_resolver(r);
}

static void assert_failure(llmkit_loop *loop, int code, llmkit_err err, bool retryable,
                           const char *part) {
    query q;
    oracle_init(false, code, NULL);
    query_start(&q, loop, "api.example");
    assert_ok(llmkit_loop_run(loop));
    assert_int_equal(q.answers, 1);
    assert_true(q.failed);
    assert_err(q.error.code, err);
    assert_int_equal(q.error.os_errno, code);
    assert_int_equal(q.error.retryable, retryable);
    if (!strstr(q.error.message, "api.example")) fail_msg("no host: %s", q.error.message);
    if (!strstr(q.error.message, part)) fail_msg("%s", q.error.message);
}

static void failure_says_which_host_and_why(void **state) {
    llmkit_loop *loop = open_loop(oracle_sys());
    lk__resolver *r = hold_resolver(loop);
    (void)state;
    const char *no_name = lk__error_os_text(LLMKIT_E_DNS, EAI_NONAME);
    const char *again = lk__error_os_text(LLMKIT_E_DNS, EAI_AGAIN);
    assert_failure(loop, EAI_NONAME, LLMKIT_E_DNS, false, no_name);
    assert_failure(loop, EAI_AGAIN, LLMKIT_E_DNS, true, again);
    assert_failure(loop, EAI_SYSTEM, LLMKIT_E_DNS, true, lk__error_os_text(LLMKIT_E_IO, EACCES));
    assert_failure(loop, EAI_MEMORY, LLMKIT_E_NOMEM, true, "");
    assert_failure(loop, 0, LLMKIT_E_DNS, true, "neither");
    llmkit_loop_destroy(loop);
    drop_resolver(r);
}

static void names_that_cannot_be_are_refused_at_once(void **state) {
    llmkit_loop *loop = open_loop(oracle_sys());
    lk__lookup lookup = { .fn = query_fn };
    llmkit_error error;
    char longer[256];
    (void)state;
    oracle_init(false, 0, NULL);
    memset(longer, 'a', sizeof longer);
    assert_err(lk__lookup_start(loop, &lookup, LLMKIT_STR(""), 1, &error), LLMKIT_E_ARG);
    assert_err(lk__lookup_start(loop, &lookup, lk__str("a\0b", 3), 1, &error), LLMKIT_E_ARG);
    assert_err(lk__lookup_start(loop, &lookup, lk__str(longer, 256), 1, NULL), LLMKIT_E_ARG);
    assert_null(lookup.job);
    lk__lookup_cancel(loop, &lookup);
    assert_int_equal(oracle_at.asked, 0);
    llmkit_loop_destroy(loop);
}

/* ---- Cancelling ------------------------------------------------------------------------------*/

static void cancel_query(query *q) {
    lk__lookup_cancel(q->loop, &q->lookup);
    lk__loop_unhold(q->loop);
}

static void cancel_other(query *q) {
    cancel_query(q->other);
}

static void cancelled_literal_is_not_answered(void **state) {
    llmkit_loop *loop = open_loop(oracle_sys());
    query q[2];
    (void)state;
    query_start(&q[0], loop, "::1");
    cancel_query(&q[0]);
    assert_null(q[0].lookup.job);
    llmkit_loop_poll(loop, 0);
    assert_int_equal(q[0].answers, 0);
    for (int i = 0; i < 2; i++) query_start(&q[i], loop, "::1");
    q[0].then = cancel_other; /* both have arrived */
    q[0].other = &q[1];
    assert_ok(llmkit_loop_run(loop));
    assert_int_equal(q[0].answers, 1);
    assert_int_equal(q[1].answers, 0);
    query_start(&q[0], loop, "::1");
    llmkit_loop_destroy(loop); /* with one under way */
    assert_int_equal(q[0].answers, 0);
}

#if LLMKIT_WITH_THREADS

static void at_most_eight_names_are_asked_at_once_and_the_rest_wait(void **state) {
    enum { NUM = 20 };
    llmkit_loop *loop = open_loop(oracle_sys());
    lk__resolver *r = hold_resolver(loop);
    query q[NUM];
    made m;
    (void)state;
    oracle_init(true, 0, make_list(&m, "4"));
    for (int i = 0; i < NUM; i++) query_start(&q[i], loop, "api.example");
    wait_until(&oracle_at.inside, LK__MAX_RESOLVING);
    cancel_query(&q[0]);       /* is being asked */
    cancel_query(&q[NUM - 1]); /* waits */
    llmkit_loop_poll(loop, 0);
    oracle_open();
    assert_ok(llmkit_loop_run(loop));
    for (int i = 0; i < NUM; i++) assert_int_equal(q[i].answers, i != 0 && i != NUM - 1);
    llmkit_loop_destroy(loop);
    drop_resolver(r);
    assert_int_equal(oracle_at.most_inside, LK__MAX_RESOLVING);
    assert_int_equal(oracle_at.asked, NUM - 1);
    assert_int_equal(oracle_at.freed, NUM - 1);
}

static void loop_may_be_destroyed_while_names_are_asked(void **state) {
    enum { NUM = 10 };
    llmkit_loop *loop = open_loop(oracle_sys());
    lk__resolver *r = hold_resolver(loop);
    query q[NUM];
    made m;
    (void)state;
    oracle_init(true, 0, make_list(&m, "4"));
    for (int i = 0; i < NUM; i++) query_start(&q[i], loop, "api.example");
    wait_until(&oracle_at.inside, LK__MAX_RESOLVING);
    cancel_query(&q[0]);
    llmkit_loop_destroy(loop);
    oracle_open();
    drop_resolver(r);
    for (int i = 0; i < NUM; i++) assert_int_equal(q[i].answers, 0);
    assert_int_equal(oracle_at.asked, LK__MAX_RESOLVING);
    assert_int_equal(oracle_at.freed, LK__MAX_RESOLVING);
}

static void answer_that_nobody_read_goes_with_the_loop(void **state) {
    llmkit_loop *loop = open_loop(oracle_sys());
    lk__resolver *r = hold_resolver(loop);
    query q;
    made m;
    (void)state;
    oracle_init(false, 0, make_list(&m, "4"));
    query_start(&q, loop, "api.example");
    while (llmkit_loop_wait_ns(loop) != 0) sched_yield(); /* it is there */
    llmkit_loop_destroy(loop);
    drop_resolver(r);
    assert_int_equal(q.answers, 0);
}

static void resolving_threads_take_no_signals(void **state) {
    llmkit_loop *loop = open_loop(oracle_sys());
    lk__resolver *r = hold_resolver(loop);
    sigset_t before, after;
    query q;
    made m;
    (void)state;
    oracle_init(false, 0, make_list(&m, "4"));
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    query_start(&q, loop, "api.example");
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    assert_int_equal(sigismember(&after, SIGINT), sigismember(&before, SIGINT));
    assert_ok(llmkit_loop_run(loop));
    assert_true(sigismember(&oracle_at.blocked, SIGINT) == 1);
    assert_true(sigismember(&oracle_at.blocked, SIGTERM) == 1);
    llmkit_loop_destroy(loop);
    drop_resolver(r);
}

static int fail_thread(void *(*fn)(void *arg), void *arg) {
    (void)fn;
    (void)arg;
    return EAGAIN;
}

static void thread_that_cannot_be_started_is_an_error_unless_others_run(void **state) {
    lk__sys sys = *oracle_sys();
    llmkit_loop *loop = open_loop(&sys);
    lk__resolver *r = hold_resolver(loop);
    lk__lookup lookup = { .fn = query_fn };
    query q, second;
    llmkit_error error;
    made m;
    (void)state;
    oracle_init(true, 0, make_list(&m, "4"));
    sys.thread = fail_thread;
    assert_err(lk__lookup_start(loop, &lookup, LLMKIT_STR("api.example"), 1, &error), LLMKIT_E_IO);
    assert_null(lookup.job);
    assert_int_equal(error.os_errno, EAGAIN);
    if (!strstr(error.message, "thread to resolve api.example")) fail_msg("%s", error.message);
    sys.thread = lk__sys_default()->thread;
    query_start(&q, loop, "api.example");
    wait_until(&oracle_at.inside, 1);
    sys.thread = fail_thread;
    query_start(&second, loop, "api.example");
    oracle_open();
    assert_ok(llmkit_loop_run(loop));
    assert_int_equal(q.answers, 1);
    assert_int_equal(second.answers, 1);
    llmkit_loop_destroy(loop);
    drop_resolver(r);
    assert_int_equal(oracle_at.most_inside, 1);
}

#endif

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(addresses_are_told_from_names),
    cmocka_unit_test(families_take_turns_in_the_order_of_the_list),
    cmocka_unit_test(addresses_that_are_repeated_count_once),
    cmocka_unit_test(literal_is_answered_in_a_turn_without_a_thread),
    cmocka_unit_test(name_is_answered_with_all_its_addresses),
    cmocka_unit_test(real_resolver_knows_localhost),
    cmocka_unit_test(failure_says_which_host_and_why),
    cmocka_unit_test(names_that_cannot_be_are_refused_at_once),
    cmocka_unit_test(cancelled_literal_is_not_answered),
#if LLMKIT_WITH_THREADS
    cmocka_unit_test(at_most_eight_names_are_asked_at_once_and_the_rest_wait),
    cmocka_unit_test(loop_may_be_destroyed_while_names_are_asked),
    cmocka_unit_test(answer_that_nobody_read_goes_with_the_loop),
    cmocka_unit_test(resolving_threads_take_no_signals),
    cmocka_unit_test(thread_that_cannot_be_started_is_an_error_unless_others_run),
#endif
};

LK_TEST_MAIN(tests)
