/* core/sketch.h -- quantiles of durations in a fixed space */
#pragma once

#include "core/str.h"

/* A histogram of exponential buckets (as DDSketch: Masson, Rim and Lee, VLDB 2019) over nanoseconds
 * from 1 us to 1000 s: a quantile is off by at most 2 % of its value.  What is outside falls into
 * the first and the last bucket.  Zero is an empty one. */
enum { LK__SKETCH_BUCKETS = 544 };

typedef struct lk__sketch {
    uint64_t total;
    int64_t  max_ns;
    uint32_t count[LK__SKETCH_BUCKETS];
} lk__sketch;

LK__PRIV uint32_t lk__sketch_index(uint64_t ns); /* the bucket of a duration over 0 */
LK__PRIV void lk__sketch_add(lk__sketch *s, int64_t ns);
LK__PRIV int64_t lk__sketch_quantile(const lk__sketch *s, double q); /* 0 while it is empty */
