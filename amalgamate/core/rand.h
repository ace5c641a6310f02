/* core/rand.h -- random numbers for jitter, ids and hash keys; not for secrets */
#pragma once

#include "core/mem.h"

/* xoshiro256** (Blackman and Vigna, 2018), seeded through splitmix64. */
typedef struct lk__rand {
    uint64_t s[4];
} lk__rand;

LK__PRIV void lk__rand_init(lk__rand *r, const llmkit_env *env); /* env.seed, or lk__entropy */
LK__PRIV uint64_t lk__rand_u64(lk__rand *r);
LK__PRIV double lk__rand_unit(lk__rand *r); /* [0, 1) */
LK__PRIV bool lk__entropy(void *out, size_t n); /* of the operating system; false: there is none */
