/* llm/retry.c -- statuses, Retry-After and backoff, as the official clients do it */

#include "llm/retry.h"

/* The same set, factor and jitter as the OpenAI and Anthropic clients: their users know them. */

LK__PRIV lk__retry_policy lk__retry_fill(lk__retry_policy p) {
    if (!p.max_tries) p.max_tries = 3;
    if (!p.backoff_ms) p.backoff_ms = 500;
    if (!p.max_backoff_ms) p.max_backoff_ms = 8000;
    if (!p.max_retry_after_ms) p.max_retry_after_ms = 120000;
    return p;
}

/* Doubled for each failure, a quarter of it by chance. */
LK__PRIV int64_t lk__retry_backoff(const lk__retry_policy *p, uint32_t tries, lk__rand *rand) {
    double ms = p->backoff_ms;
    for (uint32_t i = 1; i < tries && ms < p->max_backoff_ms; i++) ms *= 2;
    if (ms > p->max_backoff_ms) ms = p->max_backoff_ms;
    return (int64_t)(ms * (1 - 0.25 * lk__rand_unit(rand)) * (double)LK__NS_PER_MS);
}

LK__PRIV int64_t lk__retry_delay(const lk__retry_policy *p, uint32_t tries,
                                 const llmkit_error *error, lk__rand *rand) {
    if (!error->retryable || tries >= p->max_tries) return -1;
    if (error->retry_after_ms == 0) return lk__retry_backoff(p, tries, rand);
    if (error->retry_after_ms > p->max_retry_after_ms) return -1;
    return error->retry_after_ms * LK__NS_PER_MS;
}

/* ---- Retry-After ----------------------------------------------------------------------------- */

/* Days since 1970 of a date in the Gregorian calendar (proleptic), months from 1. */
LK__PRIV int64_t lk__days(int64_t year, int64_t month, int64_t day) {
    year -= month <= 2; /* a year that begins in March has its leap day at the end */
    int64_t era = year / 400, of_era = year % 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

/* "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110 5.6.7) as seconds since 1970. */
LK__PRIV bool lk__http_date(llmkit_str s, int64_t *out) {
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    uint64_t day, year, hour, minute, second;
    if (s.len != 29 || s.ptr[3] != ',' || s.ptr[19] != ':' || s.ptr[22] != ':' ||
        !lk__str_ends(s, LK__STR(" GMT")))
        return false;
    if (!lk__parse_u64(lk__str(s.ptr + 5, 2), &day) ||
        !lk__parse_u64(lk__str(s.ptr + 12, 4), &year) ||
        !lk__parse_u64(lk__str(s.ptr + 17, 2), &hour) ||
        !lk__parse_u64(lk__str(s.ptr + 20, 2), &minute) ||
        !lk__parse_u64(lk__str(s.ptr + 23, 2), &second) || hour > 23 || minute > 59 || second > 60)
        return false;
    for (int m = 0; m < 12; m++) {
        if (memcmp(months + 3 * m, s.ptr + 8, 3) != 0) continue;
        *out = lk__days((int64_t)year, m + 1, (int64_t)day) * 86400 +
               (int64_t)(hour * 3600 + minute * 60 + second);
        return true;
    }
    return false;
}

/* Milliseconds, or 0 where the value is unusable: then one's own backoff applies.  What is longer
 * than can be counted stays longer than anybody waits. */
LK__PRIV uint32_t lk__retry_ms(double ms) {
    if (!(ms > 0)) return 0;
    return ms < UINT32_MAX ? (uint32_t)(ms < 1 ? 1 : ms) : UINT32_MAX;
}

LK__PRIV uint32_t lk__retry_after(const lk__head *head, int64_t wall_s) {
    double value;
    int64_t date;
    llmkit_str ms = lk__head_get(head, LK__STR("retry-after-ms"));
    llmkit_str after = lk__head_get(head, LK__STR("retry-after"));
    if (ms.len && lk__parse_f64(ms, &value) && lk__retry_ms(value)) return lk__retry_ms(value);
    if (after.len && lk__parse_f64(after, &value)) return lk__retry_ms(value * 1000);
    if (after.len && lk__http_date(after, &date))
        return lk__retry_ms((double)(date - wall_s) * 1000);
    return 0;
}

/* ---- statuses -------------------------------------------------------------------------------- */

LK__PRIV llmkit_err lk__status_code(int status) {
    switch (status) {
    case 401:
    case 403: return LLMKIT_E_AUTH;
    case 429: return LLMKIT_E_LIMITED;
    case 402: return LLMKIT_E_QUOTA;
    case 503:
    case 529: return LLMKIT_E_OVERLOADED; /* 529: Anthropic's own */
    default:  return status >= 500 ? LLMKIT_E_SERVER : LLMKIT_E_REQUEST;
    }
}

LK__PRIV llmkit_str lk__request_id(const lk__head *head) {
    llmkit_str id = lk__head_get(head, LK__STR("x-request-id"));
    return id.ptr ? id : lk__head_get(head, LK__STR("request-id"));
}

LK__PRIV void lk__retry_read_head(llmkit_error *error, const lk__head *head, int64_t wall_s) {
    int status = head->status;
    llmkit_str location = lk__head_get(head, LK__STR("location"));
    if (status >= 300 && status < 400 && location.len)
        lk__fail(error, LLMKIT_E_REQUEST, "HTTP status %d: redirects are not followed; base_url "
                 "should lead to %.*s", status, LK__ARG(location));
    else
        lk__fail(error, lk__status_code(status), "HTTP status %d", status);
    error->http_status = head->status;
    error->retryable = status == 408 || status == 409 || status == 429 || status >= 500;
    llmkit_str should = lk__head_get(head, LK__STR("x-should-retry"));
    if (lk__str_eq(should, LK__STR("true"))) error->retryable = true;
    if (lk__str_eq(should, LK__STR("false"))) error->retryable = false;
    error->retry_after_ms = lk__retry_after(head, wall_s);
    lk__str_copy(error->request_id, sizeof error->request_id, lk__request_id(head));
}
