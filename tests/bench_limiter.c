/* bench_limiter.c -- a token bucket against the floor: a clock read and a compare-and-swap */
#include "bench.h"

enum { NUM_ROUNDS = 200000 };

static llmkit_env env;
static lk__atomic_u64 word;

/* As the bucket does: reads a clock, and moves one word on. */
static void use_floor(void *user) {
    (void)user;
    uint64_t now = (uint64_t)lk__now(&env), old = lk__load_acquire(&word);
    while (!lk__cas(&word, &old, now)) {
    }
}

static void use_take(void *user) {
    int64_t wait = llmkit_bucket_take(user, 1, lk__now(&env));
    lk_keep(wait);
}

#if LLMKIT_WITH_THREADS
typedef struct racer {
    llmkit_bucket *bucket;
    uint64_t granted;
    double cpu_ns; /* for one take */
} racer;

static void *race(void *user) {
    racer *me = user;
    double start = lk_clock_s(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < 10 * NUM_ROUNDS; i++) {
        me->granted += llmkit_bucket_take(me->bucket, 1, lk__now(&env)) == 0;
    }
    me->cpu_ns = (lk_clock_s(CLOCK_THREAD_CPUTIME_ID) - start) * 1e9 / (10 * NUM_ROUNDS);
    return NULL;
}

/* Two threads on one bucket: what a take costs, and whether grants and what is left make up the
 * rate. It is empty at first and holds a second's worth, so that no pause of both threads loses
 * any. */
static void contend(double per_s) {
    llmkit_bucket *b = llmkit_bucket_create(NULL, (llmkit_rate){ per_s, per_s });
    racer racers[2] = { { b, 0, 0 }, { b, 0, 0 } };
    pthread_t threads[2];
    int64_t start = lk__now(&env);
    llmkit_bucket_settle(b, per_s, start);
    for (int i = 0; i < 2; i++) {
        if (pthread_create(&threads[i], NULL, race, &racers[i]) != 0) exit(1);
    }
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    int64_t end = lk__now(&env);
    double due = per_s * (double)(end - start) * 1e-9;
    double granted = (double)(racers[0].granted + racers[1].granted);
    char peer[64];
    snprintf(peer, sizeof peer, "2 threads flat out, %.3g a second", per_s);
    lk_figure("limiter.take_contended_ns", (racers[0].cpu_ns + racers[1].cpu_ns) / 2, "ns", NULL, 0,
              peer);
    lk_figure("limiter.share_of_rate", (granted + llmkit_bucket_level(b, end)) / due, "",
              ">=", 0.999, peer);
    lk_figure("limiter.excess_tokens", granted - due, "", "<=", 0, peer);
    llmkit_bucket_release(b);
}
#endif

int main(void) {
    env = lk__env_fill(NULL);
    llmkit_bucket *open = llmkit_bucket_create(NULL, (llmkit_rate){ 1e9, 1e9 });
    llmkit_bucket *shut = llmkit_bucket_create(NULL, (llmkit_rate){ 1e-3, 1 });
    if (!open || !shut) return 1;
    llmkit_bucket_take(shut, 1, lk__now(&env));
    double floor = 1e9, granted = 1e9, refused = 1e9;
    for (int i = 0; i < 5; i++) { /* in turn, so that all meet the same machine */
        double f = lk_time_ns(use_floor, NULL, NUM_ROUNDS);
        double g = lk_time_ns(use_take, open, NUM_ROUNDS);
        double r = lk_time_ns(use_take, shut, NUM_ROUNDS);
        floor = f < floor ? f : floor;
        granted = g < granted ? g : granted;
        refused = r < refused ? r : refused;
    }
    char peer[64];
    snprintf(peer, sizeof peer, "clock read and CAS: %.1f ns", floor);
    lk_figure("limiter.take_over_floor_ns", granted - floor, "ns", "<=", 10, peer);
    lk_figure("limiter.take_ns", granted, "ns", NULL, 0, peer);
    lk_figure("limiter.refuse_ns", refused, "ns", NULL, 0, peer);
#if LLMKIT_WITH_THREADS
    contend(1e5);
    contend(1e9);
#endif
    llmkit_bucket_release(open);
    llmkit_bucket_release(shut);
    return 0;
}
