/* llm/retry.h -- which failures are tried again, and when */
#pragma once

#include "core/rand.h"
#include "net/http1.h"

typedef struct lk__retry_policy {
    uint32_t max_tries;
    uint32_t backoff_ms, max_backoff_ms, max_retry_after_ms;
} lk__retry_policy;

LK__PRIV lk__retry_policy lk__retry_fill(lk__retry_policy policy); /* zeroes become defaults */
/* Nanoseconds to wait before the next try after tries attempts, the last of which ended with error;
 * -1: do not try again. */
LK__PRIV int64_t lk__retry_delay(const lk__retry_policy *policy, uint32_t tries,
                                 const llmkit_error *error, lk__rand *rand);

/* What a response other than 2xx says in its status line and fields: code, retryable, retry-after
 * and request id.  wall_s is the time of day, for a Retry-After that names one. */
LK__PRIV void lk__retry_read_head(llmkit_error *error, const lk__head *head, int64_t wall_s);
LK__PRIV llmkit_str lk__request_id(const lk__head *head);
