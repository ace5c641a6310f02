/* test_bucket.c -- the law of token buckets: never more, and not systematically fewer */
#include "test.h"

#define DAY_NS (INT64_C(86400) * LK__NS_PER_S)

static llmkit_bucket *bucket(double per_s, double burst) {
    llmkit_bucket *b = llmkit_bucket_create(NULL, (llmkit_rate){ per_s, burst });
    assert_non_null(b);
    return b;
}

/* Takes as often as it is granted, going from one wait to the next, until end_ns. */
static double drain(llmkit_bucket *b, double cost, int64_t start_ns, int64_t end_ns) {
    double granted = 0;
    int64_t now = start_ns;
    while (now <= end_ns) {
        int64_t wait = llmkit_bucket_take(b, cost, now);
        if (wait == 0) {
            granted += cost;
        } else {
            assert_true(wait > 0 && wait < INT64_MAX);
            if (wait > end_ns - now) break;
            now += wait;
        }
    }
    return granted;
}

static void a_full_bucket_grants_its_burst_and_no_more(void **state) {
    (void)state;
    static const double bursts[] = { 1, 3, 7, 10, 100, 1000 };
    static const double rates[] = { 1.0 / 86400, 0.3, 1, 3, 7, 10, 1e6, 3e8, 1e9 };
    for (size_t i = 0; i < LK__COUNT(bursts); i++) {
        for (size_t k = 0; k < LK__COUNT(rates); k++) {
            llmkit_bucket *b = bucket(rates[k], bursts[i]);
            for (int n = 0; n < (int)bursts[i]; n++) {
                assert_int_equal(llmkit_bucket_take(b, 1, 1000), 0);
            }
            assert_true(llmkit_bucket_take(b, 1, 1000) > 0);
            llmkit_bucket_release(b);
        }
    }
}

static void burst_defaults_to_one_second_and_at_least_one(void **state) {
    (void)state;
    llmkit_bucket *fast = bucket(100, 0), *slow = bucket(0.01, 0);
    assert_true(llmkit_bucket_level(fast, 5) >= 99.99 && llmkit_bucket_level(fast, 5) <= 100.01);
    assert_true(llmkit_bucket_level(slow, 5) >= 0.99 && llmkit_bucket_level(slow, 5) <= 1.01);
    llmkit_bucket_release(fast);
    llmkit_bucket_release(slow);
}

static void rate_is_held_from_one_a_day_to_a_thousand_million_a_second(void **state) {
    (void)state;
    static const double rates[] = { 1.0 / 86400, 0.5, 1,     3,   100,       999,    12345.6,
                                    1e6,         3e6, 7.7e6, 1e8, 123456789, 3.33e8, 1e9 };
    for (size_t i = 0; i < LK__COUNT(rates); i++) {
        llmkit_bucket *b = bucket(rates[i], 1 + rates[i] * 1e-8);
        double t = 20000 / rates[i] * 1e9;
        double granted = drain(b, 1, 77, 77 + (int64_t)t);
        assert_true(granted <= 1 + rates[i] * 1e-8 + 20000);
        assert_true(granted >= 20000 * 0.999);
        llmkit_bucket_release(b);
    }
}

static void the_wait_is_enough_and_not_too_long(void **state) {
    (void)state;
    static const double rates[] = { 1e-3, 1, 13, 1e3, 1e6, 7e8 };
    for (size_t i = 0; i < LK__COUNT(rates); i++) {
        llmkit_bucket *b = bucket(rates[i], 5);
        int64_t now = INT64_C(123456789012345);
        for (int n = 0; n < 1000; n++) {
            int64_t wait = llmkit_bucket_take(b, 2.5, now);
            if (wait == 0) continue;
            if (wait > 1) assert_true(llmkit_bucket_take(b, 2.5, now + wait - 2) > 0);
            assert_int_equal(llmkit_bucket_take(b, 2.5, now + wait), 0);
            now += wait;
        }
        llmkit_bucket_release(b);
    }
}

static void a_refusal_changes_nothing(void **state) {
    (void)state;
    llmkit_bucket *b = bucket(10, 10);
    assert_int_equal(llmkit_bucket_take(b, 9, 0), 0);
    int64_t wait = llmkit_bucket_take(b, 5, 0);
    for (int i = 0; i < 100; i++) assert_int_equal(llmkit_bucket_take(b, 5, 0), wait);
    assert_int_equal(llmkit_bucket_take(b, 1, 0), 0);
    llmkit_bucket_release(b);
}

static void costs_over_the_burst_are_never_granted(void **state) {
    (void)state;
    llmkit_bucket *b = bucket(10, 5);
    assert_int_equal(llmkit_bucket_take(b, 5.5, 0), INT64_MAX);
    assert_int_equal(llmkit_bucket_take(b, 1e300, 0), INT64_MAX);
    assert_int_equal(llmkit_bucket_take(b, -1, 0), INT64_MAX);
    assert_int_equal(llmkit_bucket_take(b, strtod("nan", NULL), 0), INT64_MAX);
    assert_int_equal(llmkit_bucket_take(b, strtod("inf", NULL), 0), INT64_MAX);
    assert_int_equal(llmkit_bucket_take(b, 0, 0), 0);
    assert_int_equal(llmkit_bucket_take(b, 5, 0), 0);
    llmkit_bucket_release(b);
}

static void no_rate_is_no_limit(void **state) {
    (void)state;
    llmkit_bucket *none = bucket(0, 0), *infinite = bucket(strtod("inf", NULL), 1);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(llmkit_bucket_take(none, 1e9, 0), 0);
        assert_int_equal(llmkit_bucket_take(infinite, 1e9, 0), 0);
    }
    llmkit_bucket_settle(none, 1e9, 0);
    assert_int_equal(llmkit_bucket_take(none, 1, 0), 0);
    assert_true(llmkit_bucket_level(none, 0) >= DBL_MAX);
    llmkit_bucket_release(none);
    llmkit_bucket_release(infinite);
}

static void senseless_rates_make_no_bucket(void **state) {
    (void)state;
    double nan = strtod("nan", NULL);
    assert_null(llmkit_bucket_create(NULL, (llmkit_rate){ -1, 1 }));
    assert_null(llmkit_bucket_create(NULL, (llmkit_rate){ 1, -1 }));
    assert_null(llmkit_bucket_create(NULL, (llmkit_rate){ nan, 1 }));
    assert_null(llmkit_bucket_create(NULL, (llmkit_rate){ 1, nan }));
    llmkit_bucket_release(NULL);
}

static void what_was_taken_is_given_back_exactly(void **state) {
    (void)state;
    static const double costs[] = { 1, 0.1, 0.3, 2.7, 1234.5, 0.001 };
    static const double rates[] = { 0.1, 10, 3e5, 9e8 };
    for (size_t i = 0; i < LK__COUNT(costs); i++) {
        for (size_t k = 0; k < LK__COUNT(rates); k++) {
            llmkit_bucket *b = bucket(rates[k], 5000);
            assert_int_equal(llmkit_bucket_take(b, 3000, 10), 0);
            double before = llmkit_bucket_level(b, 10);
            for (int n = 0; n < 1000; n++) {
                assert_int_equal(llmkit_bucket_take(b, costs[i], 10), 0);
                llmkit_bucket_settle(b, -costs[i], 10);
            }
            double after = llmkit_bucket_level(b, 10);
            assert_memory_equal(&before, &after, sizeof before);
            llmkit_bucket_release(b);
        }
    }
}

static void giving_back_never_fills_over_the_burst(void **state) {
    (void)state;
    llmkit_bucket *b = bucket(10, 10);
    llmkit_bucket_settle(b, -1e9, 50);
    assert_int_equal(llmkit_bucket_take(b, 3, 50), 0);
    llmkit_bucket_settle(b, -100, 50);
    for (int i = 0; i < 10; i++) assert_int_equal(llmkit_bucket_take(b, 1, 50), 0);
    assert_true(llmkit_bucket_take(b, 1, 50) > 0);
    llmkit_bucket_release(b);
}

static void a_debt_is_paid_off_at_the_rate(void **state) {
    (void)state;
    llmkit_bucket *b = bucket(10, 10);
    assert_int_equal(llmkit_bucket_take(b, 10, 0), 0);
    llmkit_bucket_settle(b, 20, 0);
    llmkit_bucket_settle(b, strtod("nan", NULL), 0); /* is nothing */
    double level = llmkit_bucket_level(b, 0);
    assert_true(level > -20.001 && level < -19.999);
    int64_t wait = llmkit_bucket_take(b, 1, 0);
    assert_true(wait >= 2100 * LK__NS_PER_MS && wait < 2101 * LK__NS_PER_MS);
    assert_int_equal(llmkit_bucket_take(b, 1, wait), 0);
    llmkit_bucket_settle(b, 1e300, wait); /* no overflow, and the bucket can still say how long */
    wait = llmkit_bucket_take(b, 1, wait);
    assert_true(wait > 0 && wait < INT64_MAX);
    llmkit_bucket_release(b);
}

static void reset_fills_the_bucket(void **state) {
    (void)state;
    llmkit_bucket *b = bucket(1, 4);
    llmkit_bucket_settle(b, 1000, 0);
    assert_true(llmkit_bucket_take(b, 1, 0) > 0);
    llmkit_bucket_reset(b);
    assert_int_equal(llmkit_bucket_take(b, 4, 0), 0);
    assert_true(llmkit_bucket_take(b, 1, 0) > 0);
    llmkit_bucket_release(b);
}

/* Fast rates count in fractions of a nanosecond, so that 64 bits come round sooner. */
static void an_idle_bucket_is_full_after_any_time(void **state) {
    (void)state;
    static const double rates[] = { 1.0 / 86400, 1, 1e3, 1e6, 1e9, 1e12 };
    for (size_t i = 0; i < LK__COUNT(rates); i++) {
        for (int64_t start = -5; start < INT64_C(1) << 57; start = start < 0 ? 3 : start * 37) {
            for (int bits = 1; bits <= 62; bits++) {
                llmkit_bucket *b = bucket(rates[i], 2);
                assert_int_equal(llmkit_bucket_take(b, 2, start), 0);
                int64_t idle = (INT64_C(1) << bits) + 1;
                double due = (double)idle * 1e-9 * rates[i];
                if (idle > INT64_MAX - 5 - start) break;
                if (due > 2.01) {
                    if (llmkit_bucket_take(b, 2, start + idle) != 0) {
                        fail_msg("rate %g, idle for %lld ns from %lld on: not full", rates[i],
                                 (long long)idle, (long long)start);
                    }
                }
                llmkit_bucket_release(b);
            }
        }
    }
}

static void long_bursts_of_slow_rates_hold(void **state) {
    (void)state;
    llmkit_bucket *b = bucket(1.0 / 86400, 1e6); /* 2,700 years' worth */
    assert_int_equal(llmkit_bucket_take(b, 999999, 1000), 0);
    assert_int_equal(llmkit_bucket_take(b, 1, 1000), 0);
    int64_t wait = llmkit_bucket_take(b, 1, 1000);
    assert_true(wait > DAY_NS * 999 / 1000 && wait < DAY_NS * 1001 / 1000);
    assert_int_equal(llmkit_bucket_take(b, 1, 1000 + wait), 0);
    wait = llmkit_bucket_take(b, 1e6, 1000 + wait);
    assert_true(wait > 0 && wait < INT64_MAX); /* longer than an int64_t can say, but not never */
    llmkit_bucket_release(b);
}

static void extreme_rates_do_not_overflow(void **state) {
    (void)state;
    static const double values[] = { 1e-300, 1e-9, 1, 1e9, 1e18, 1e300 };
    for (size_t i = 0; i < LK__COUNT(values); i++) {
        for (size_t k = 0; k < LK__COUNT(values); k++) {
            llmkit_bucket *b = bucket(values[i], values[k]);
            for (int64_t now = 0; now < INT64_MAX / 4; now = now * 3 + 1) {
                int64_t wait = llmkit_bucket_take(b, values[k] / 3, now);
                assert_true(wait >= 0);
                llmkit_bucket_settle(b, values[i], now);
                llmkit_bucket_settle(b, -values[k], now);
                assert_true(llmkit_bucket_level(b, now) <= values[k] * 1.001);
            }
            llmkit_bucket_release(b);
        }
    }
}

static void clocks_at_either_end_work(void **state) {
    (void)state;
    static const int64_t starts[] = { INT64_MIN, INT64_MIN + 1,
                                      -1,        0,
                                      1,         INT64_MAX - 3 * LK__NS_PER_S };
    for (size_t i = 0; i < LK__COUNT(starts); i++) {
        llmkit_bucket *b = bucket(1000, 10);
        double granted = drain(b, 1, starts[i], starts[i] + 2 * LK__NS_PER_S);
        assert_true(granted >= 2000 && granted <= 2010);
        llmkit_bucket_release(b);
    }
}

static void a_clock_that_steps_back_grants_no_more(void **state) {
    (void)state;
    lk__rand r;
    llmkit_env env = lk__env_fill(&(llmkit_env){ .seed = 7 });
    lk__rand_init(&r, &env);
    llmkit_bucket *b = bucket(1e6, 50);
    int64_t now = INT64_C(5) * LK__NS_PER_S, latest = now, first = now;
    double granted = 0;
    for (int i = 0; i < 500000; i++) {
        now += (int64_t)(lk__rand_u64(&r) % 1000);
        if (lk__rand_u64(&r) % 64 == 0) now -= (int64_t)(lk__rand_u64(&r) % 20000);
        if (now > latest) latest = now;
        if (llmkit_bucket_take(b, 1, now) == 0) granted++;
        double span = (double)(latest - first) * 1e-9;
        assert_true(granted <= 50 + 1e6 * span);
    }
    llmkit_bucket_release(b);
}

/* The law over every window: a ledger of grants, and the least of "grants minus rate * time" seen
 * so far, from which no later point may be more than the burst above. */
static void law_holds_for_random_costs_and_refunds(void **state) {
    (void)state;
    static const double rates[] = { 2, 1000, 1e6, 2.5e8 };
    for (size_t k = 0; k < LK__COUNT(rates); k++) {
        double rate = rates[k], burst = 100;
        lk__rand r;
        llmkit_env env = lk__env_fill(&(llmkit_env){ .seed = k + 1 });
        lk__rand_init(&r, &env);
        llmkit_bucket *b = bucket(rate, burst);
        int64_t now = 1;
        double net = 0, least = 0, interval = 1e9 / rate;
        for (int i = 0; i < 100000; i++) {
            double cost = (double)(1 + lk__rand_u64(&r) % 20) + lk__rand_unit(&r);
            double excess = net - rate * (double)now * 1e-9;
            if (excess < least) least = excess;
            if (llmkit_bucket_take(b, cost, now) == 0) {
                net += cost;
                assert_true(net - rate * (double)now * 1e-9 - least <= burst + 1e-6 * burst);
                if (lk__rand_u64(&r) % 2) {
                    double back = (cost - 1) * lk__rand_unit(&r);
                    llmkit_bucket_settle(b, -back, now);
                    net -= back;
                }
            }
            now += (int64_t)(lk__rand_unit(&r) * 10 * interval);
        }
        llmkit_bucket_release(b);
    }
}

static void demand_gets_the_rate_with_random_costs(void **state) {
    (void)state;
    lk__rand r;
    llmkit_env env = lk__env_fill(&(llmkit_env){ .seed = 3 });
    lk__rand_init(&r, &env);
    llmkit_bucket *b = bucket(1e5, 200);
    int64_t now = 0;
    double granted = 0;
    while (now < 10 * LK__NS_PER_S) {
        double cost = 1 + 150 * lk__rand_unit(&r);
        for (int64_t wait; (wait = llmkit_bucket_take(b, cost, now)) > 0;) now += wait;
        granted += cost;
    }
    double due = 1e5 * (double)now * 1e-9;
    assert_true(granted >= due * 0.999 && granted <= due + 200);
    llmkit_bucket_release(b);
}

static void create_survives_a_refused_allocation(void **state) {
    (void)state;
    lk_world world;
    lk_world_init(&world);
    LK_EACH_REFUSAL(&world) {
        llmkit_bucket *b = llmkit_bucket_create(&world.env, (llmkit_rate){ 10, 1 });
        assert_int_equal(b == NULL, world.refused);
        llmkit_bucket_release(b);
    }
    assert_no_leak(&world);
}

static void a_bucket_takes_64_bytes_at_most(void **state) {
    (void)state;
    lk_world world;
    lk_world_init(&world);
    llmkit_bucket *b = llmkit_bucket_create(&world.env, (llmkit_rate){ 10, 1 });
    assert_true(world.bytes <= 64);
    llmkit_bucket_release(b);
}

#if LLMKIT_WITH_THREADS
typedef struct racer {
    llmkit_bucket *bucket;
    atomic_int *go;
    double net;
    uint64_t seed;
} racer;

/* Flat out for a number of tries, on the real clock, with random costs and refunds. */
static void *race(void *user) {
    racer *me = user;
    lk__rand r;
    llmkit_env env = lk__env_fill(&(llmkit_env){ .seed = me->seed });
    lk__rand_init(&r, &env);
    while (!atomic_load(me->go)) {
    }
    for (int i = 0; i < 150000; i++) {
        double cost = 1 + (double)(lk__rand_u64(&r) % 8);
        int64_t now = lk__now(&env);
        if (llmkit_bucket_take(me->bucket, cost, now) != 0) continue;
        me->net += cost;
        if (lk__rand_u64(&r) % 4 == 0 && cost > 1) {
            llmkit_bucket_settle(me->bucket, -(cost - 1), now);
            me->net -= cost - 1;
        }
    }
    return NULL;
}

/* Empty at first, and with room for a second's worth: grants and what is left make up the rate to
 * the token, whenever the threads were running. */
static void two_threads_flat_out_keep_the_law(void **state) {
    (void)state;
    static const double rates[] = { 1e4, 1e6, 2e8 };
    for (size_t k = 0; k < LK__COUNT(rates); k++) {
        llmkit_env env = lk__env_fill(NULL);
        llmkit_bucket *b = bucket(rates[k], 30 * rates[k]);
        atomic_int go = 0;
        pthread_t threads[2];
        racer racers[2];
        int64_t start = lk__now(&env);
        llmkit_bucket_settle(b, 30 * rates[k], start);
        for (size_t i = 0; i < 2; i++) {
            racers[i] = (racer){ b, &go, 0, 10 * k + i + 1 };
            assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
        }
        atomic_store(&go, 1);
        for (size_t i = 0; i < 2; i++) pthread_join(threads[i], NULL);
        int64_t end = lk__now(&env);
        double net = racers[0].net + racers[1].net;
        double due = rates[k] * (double)(end - start) * 1e-9;
        double level = llmkit_bucket_level(b, end);
        assert_true(net > 0 && level > -0.001);
        assert_true(net + level <= due + 0.001);
        assert_true(net + level >= due * 0.9999 - 0.001);
        llmkit_bucket_release(b);
    }
}
#endif

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_full_bucket_grants_its_burst_and_no_more),
    cmocka_unit_test(burst_defaults_to_one_second_and_at_least_one),
    cmocka_unit_test(rate_is_held_from_one_a_day_to_a_thousand_million_a_second),
    cmocka_unit_test(the_wait_is_enough_and_not_too_long),
    cmocka_unit_test(a_refusal_changes_nothing),
    cmocka_unit_test(costs_over_the_burst_are_never_granted),
    cmocka_unit_test(no_rate_is_no_limit),
    cmocka_unit_test(senseless_rates_make_no_bucket),
    cmocka_unit_test(what_was_taken_is_given_back_exactly),
    cmocka_unit_test(giving_back_never_fills_over_the_burst),
    cmocka_unit_test(a_debt_is_paid_off_at_the_rate),
    cmocka_unit_test(reset_fills_the_bucket),
    cmocka_unit_test(an_idle_bucket_is_full_after_any_time),
    cmocka_unit_test(long_bursts_of_slow_rates_hold),
    cmocka_unit_test(extreme_rates_do_not_overflow),
    cmocka_unit_test(clocks_at_either_end_work),
    cmocka_unit_test(a_clock_that_steps_back_grants_no_more),
    cmocka_unit_test(law_holds_for_random_costs_and_refunds),
    cmocka_unit_test(demand_gets_the_rate_with_random_costs),
    cmocka_unit_test(create_survives_a_refused_allocation),
    cmocka_unit_test(a_bucket_takes_64_bytes_at_most),
#if LLMKIT_WITH_THREADS
    cmocka_unit_test(two_threads_flat_out_keep_the_law),
#endif
};
LK_TEST_MAIN(tests)
