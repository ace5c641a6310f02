/* api/limits.h -- token buckets */
#pragma once

/* per_s tokens arrive each second, at most burst of them wait.  per_s 0: no limit; burst 0: one
 * second's worth, at least 1. */
typedef struct llmkit_rate {
    double per_s, burst;
} llmkit_rate;

/* A token bucket in GCRA form (ITU-T I.371): what it knows is one 64-bit word, the theoretical
 * arrival time, moved by compare-and-swap.  Any thread, lock-free, 64 bytes.  now_ns is any clock,
 * the same for all calls; where it steps back, nothing is granted until it has caught up.  Law: in
 * any window of length T all threads together are granted at most burst + per_s * T. */
typedef struct llmkit_bucket llmkit_bucket;

/* env may be NULL.  NULL: no memory, or a rate or burst that is negative or no number, or compiled
 * out by LLMKIT_WITH_LIMITER, where all that is asked for is granted. */
LLMKIT_API llmkit_bucket *llmkit_bucket_create(const llmkit_env *env, llmkit_rate rate);
LLMKIT_API void llmkit_bucket_release(llmkit_bucket *bucket);
/* 0: cost tokens were taken; else nothing was, and in that many ns they could be.  INT64_MAX:
 * never, since cost is over the burst, negative or no number. */
LLMKIT_API int64_t llmkit_bucket_take(llmkit_bucket *bucket, double cost, int64_t now_ns);
/* After an estimated cost was taken: positive charges more, negative gives back. */
LLMKIT_API void llmkit_bucket_settle(llmkit_bucket *bucket, double difference, int64_t now_ns);
/* Tokens there now; negative while a debt is being paid off; DBL_MAX without a limit. */
LLMKIT_API double llmkit_bucket_level(const llmkit_bucket *bucket, int64_t now_ns);
LLMKIT_API void llmkit_bucket_reset(llmkit_bucket *bucket); /* full again */
