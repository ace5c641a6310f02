/* policy/bucket.c -- token buckets: GCRA in one word */

#include "core/mem.h"
#include "core/atomic.h"

#if LLMKIT_WITH_LIMITER

/* Units of time that one token takes: at least, and where the burst leaves room for it. */
static const double lk__bucket_min_token = 0x1p16;
static const double lk__bucket_good_token = 0x1p26;
/* Most units that may be missing, or be asked for: two such numbers add up without overflow. */
static const int64_t lk__bucket_max = INT64_C(1) << 60;

enum { LK__BUCKET_FULL = 0 }; /* an arrival time for "long ago" on every clock */

/* The bucket is full when the theoretical arrival time lies in the past, and lacks as many tokens
 * as fit between now and it otherwise.  Times are in units of 2^-shift ns, modulo 2^64: fast rates
 * need fractions of a nanosecond, and bursts that last for centuries need coarse units.  A bucket
 * left idle for a quarter of the span that 64 bits hold would come round to look empty; seen_ns,
 * which moves a few times in a span, tells that it is full.
 *
 * The length of a token is rounded up, so the rate is never exceeded; that loses at most 2^-16 of
 * it.  A cost that is no whole number is rounded to the nearest unit, up and down alike, so that
 * what was taken is given back exactly. */
struct llmkit_bucket {
    lk__atomic_u64 arrival; /* or LK__BUCKET_FULL */
    lk__atomic_u64 seen_ns; /* near the time of the last change */
    double token;           /* units that one token takes to arrive, whole; 0: no limit */
    int64_t capacity;       /* burst, in units */
    int64_t stale_ns;       /* idle for longer: full */
    int32_t shift;
    void *(*alloc)(void *user, void *ptr, size_t old_size, size_t new_size);
    void *user;
};

LK__PRIV uint64_t lk__bucket_time(const llmkit_bucket *b, int64_t now_ns) {
    if (b->shift >= 0) return (uint64_t)now_ns << b->shift;
    /* Halved towards minus infinity: the complement of a negative number is not negative. */
    return now_ns >= 0 ? (uint64_t)(now_ns >> -b->shift) : ~(uint64_t)(~now_ns >> -b->shift);
}

/* So many units as a wait in whole ns: long enough, and never INT64_MAX. */
LK__PRIV int64_t lk__bucket_wait(const llmkit_bucket *b, int64_t units) {
    if (b->shift >= 0) {
        int64_t ns = units >> b->shift;
        return ns << b->shift < units ? ns + 1 : ns;
    }
    return units > (INT64_MAX >> -b->shift) - 1 ? INT64_MAX - 1 : units << -b->shift;
}

/* Signed and rounded symmetrically; more than anything the bucket can hold becomes that. */
LK__PRIV int64_t lk__bucket_units(const llmkit_bucket *b, double tokens) {
    double units = tokens * b->token;
    if (units >= (double)lk__bucket_max) return lk__bucket_max;
    if (units <= -(double)lk__bucket_max) return -lk__bucket_max;
    if (units < 0) return -(int64_t)(0.5 - units);
    return units > 0 ? (int64_t)(units + 0.5) : 0; /* NaN is 0 */
}

/* Units that are missing from a full bucket. */
LK__PRIV int64_t lk__bucket_missing(const llmkit_bucket *b, uint64_t arrival, int64_t now_ns) {
    if (arrival == LK__BUCKET_FULL) return 0;
    int64_t idle = (int64_t)((uint64_t)now_ns - lk__load_relaxed(&b->seen_ns));
    if (LK__UNLIKELY(idle > b->stale_ns)) return 0;
    int64_t missing = (int64_t)(arrival - lk__bucket_time(b, now_ns));
    return missing > 0 ? missing : 0;
}

/* Moves the arrival time so that so many units are missing now.  seen_ns goes first: who reads the
 * new arrival time sees it too, and takes a bucket for stale only together with the old one, from
 * which the change fails. */
LK__PRIV bool lk__bucket_change(llmkit_bucket *b, uint64_t *arrival, int64_t missing,
                                int64_t now_ns) {
    uint64_t next = lk__bucket_time(b, now_ns) + (uint64_t)missing;
    if (next == LK__BUCKET_FULL) next++;
    int64_t idle = (int64_t)((uint64_t)now_ns - lk__load_relaxed(&b->seen_ns));
    if (*arrival == LK__BUCKET_FULL || idle > b->stale_ns / 8) {
        lk__store_relaxed(&b->seen_ns, (uint64_t)now_ns);
    }
    return lk__cas(&b->arrival, arrival, next);
}

/* Units fine enough for a precise token come first, then units coarse enough for the burst.  What
 * does not fit even so, more than 2^44 ns' worth at 10^9 a second, is cut off the burst. */
LK__PRIV void lk__bucket_scale(llmkit_bucket *b, llmkit_rate rate) {
    double token = 1e9 / rate.per_s; /* in ns for now */
    double most = (double)lk__bucket_max / 4;
    b->shift = 0;
    while (b->shift < 26 && (token < lk__bucket_min_token ||
                             (token < lk__bucket_good_token && token * rate.burst * 2 < most))) {
        token *= 2;
        b->shift++;
    }
    while (b->shift > -20 && token > lk__bucket_good_token && token * rate.burst > most) {
        token /= 2;
        b->shift--;
    }
    if (token > most) token = most;
    double whole = (double)(int64_t)token;
    b->token = whole < token ? whole + 1 : whole;
    b->capacity = lk__bucket_units(b, rate.burst);
    b->stale_ns = (INT64_C(1) << 62) >> (b->shift > 0 ? b->shift : 0);
}

LLMKIT_API llmkit_bucket *llmkit_bucket_create(const llmkit_env *env, llmkit_rate rate) {
    llmkit_env filled = lk__env_fill(env);
    if (!(rate.per_s >= 0 && rate.burst >= 0)) return NULL; /* NaN is neither */
    llmkit_bucket *b = lk__alloc(&filled, sizeof *b);
    if (!b) return NULL;
    b->alloc = filled.alloc;
    b->user = filled.user;
    if (!(rate.burst > 0)) rate.burst = rate.per_s > 1 ? rate.per_s : 1;
    if (rate.per_s > 0 && rate.per_s <= DBL_MAX) lk__bucket_scale(b, rate);
    return b;
}

LLMKIT_API void llmkit_bucket_release(llmkit_bucket *b) {
    if (b) b->alloc(b->user, b, sizeof *b, 0);
}

LLMKIT_API int64_t llmkit_bucket_take(llmkit_bucket *b, double cost, int64_t now_ns) {
    if (!(cost >= 0)) return INT64_MAX;
    int64_t units = lk__bucket_units(b, cost);
    if (units == 0) return 0;
    if (units > b->capacity) return INT64_MAX;
    uint64_t arrival = lk__load_acquire(&b->arrival);
    for (;;) {
        int64_t missing = lk__bucket_missing(b, arrival, now_ns) + units;
        if (missing > b->capacity) return lk__bucket_wait(b, missing - b->capacity);
        if (LK__LIKELY(lk__bucket_change(b, &arrival, missing, now_ns))) return 0;
    }
}

LLMKIT_API void llmkit_bucket_settle(llmkit_bucket *b, double difference, int64_t now_ns) {
    int64_t units = lk__bucket_units(b, difference);
    if (units == 0) return;
    uint64_t arrival = lk__load_acquire(&b->arrival);
    for (;;) {
        int64_t missing = lk__bucket_missing(b, arrival, now_ns) + units;
        if (missing < 0) missing = 0;
        if (missing > lk__bucket_max) missing = lk__bucket_max;
        if (LK__LIKELY(lk__bucket_change(b, &arrival, missing, now_ns))) return;
    }
}

LLMKIT_API double llmkit_bucket_level(const llmkit_bucket *b, int64_t now_ns) {
    if (!(b->token > 0)) return DBL_MAX;
    int64_t missing = lk__bucket_missing(b, lk__load_acquire(&b->arrival), now_ns);
    return (double)(b->capacity - missing) / b->token;
}

LLMKIT_API void llmkit_bucket_reset(llmkit_bucket *b) {
    lk__store_release(&b->arrival, LK__BUCKET_FULL);
}

#else

LLMKIT_API llmkit_bucket *llmkit_bucket_create(const llmkit_env *env, llmkit_rate rate) {
    (void)env;
    (void)rate;
    return NULL;
}

LLMKIT_API void llmkit_bucket_release(llmkit_bucket *b) {
    (void)b;
}

LLMKIT_API int64_t llmkit_bucket_take(llmkit_bucket *b, double cost, int64_t now_ns) {
    (void)b;
    (void)cost;
    (void)now_ns;
    return 0;
}

LLMKIT_API void llmkit_bucket_settle(llmkit_bucket *b, double difference, int64_t now_ns) {
    (void)b;
    (void)difference;
    (void)now_ns;
}

LLMKIT_API double llmkit_bucket_level(const llmkit_bucket *b, int64_t now_ns) {
    (void)b;
    (void)now_ns;
    return 0;
}

LLMKIT_API void llmkit_bucket_reset(llmkit_bucket *b) {
    (void)b;
}

#endif
