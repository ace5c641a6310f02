/* core/mem.h -- the surroundings filled in: allocation, clock, log */
#pragma once

#include "core/platform.h"

/* A copy of env with every hook set, so that callers need not ask.  NULL: all defaults. */
LK__PRIV llmkit_env lk__env_fill(const llmkit_env *env);

/* Zeroed memory, or NULL.  Sizes that come from multiplication go through lk__mul, which answers
 * SIZE_MAX on overflow; no allocator grants that. */
LK__PRIV void *lk__alloc(const llmkit_env *env, size_t size);
LK__PRIV void *lk__resize(const llmkit_env *env, void *ptr, size_t old_size, size_t new_size);
LK__PRIV void lk__free(const llmkit_env *env, void *ptr, size_t size); /* ptr NULL is fine */
LK__PRIV char *lk__strdup(const llmkit_env *env, const char *text);    /* freed with: */
LK__PRIV void lk__strfree(const llmkit_env *env, char *text);
LK__PRIV void lk__wipe(void *ptr, size_t size); /* zeroes that no compiler drops: for secrets */

LK__INLINE size_t lk__mul(size_t a, size_t b) {
    return b != 0 && a > SIZE_MAX / b ? SIZE_MAX : a * b;
}
LK__INLINE size_t lk__add(size_t a, size_t b) {
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}

LK__INLINE uint32_t lk__def(uint32_t value, uint32_t by_default) { /* of a desc's field */
    return value ? value : by_default;
}

LK__INLINE int64_t lk__now(const llmkit_env *env) {
    return env->now_ns(env->user);
}

LK__PRIV void lk__log(const llmkit_env *env, llmkit_level level, llmkit_err code,
                      const char *format, ...) LK__PRINTF(4, 5);
