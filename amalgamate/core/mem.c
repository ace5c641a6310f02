/* core/mem.c -- the allocator hook, the clock, the log, and wiping of secrets */

#include "core/mem.h"

LK__PRIV void *lk__mem_alloc(void *user, void *ptr, size_t old_size, size_t new_size) {
    (void)user;
    (void)old_size;
    if (new_size == 0) {
        free(ptr);
        return NULL;
    }
    return realloc(ptr, new_size);
}

LK__PRIV int64_t lk__mem_now(void *user) {
    struct timespec ts = { 0, 0 };
    (void)user;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * LK__NS_PER_S + (int64_t)ts.tv_nsec;
}

LK__PRIV llmkit_env lk__env_fill(const llmkit_env *env) {
    llmkit_env filled = { 0 };
    if (env) filled = *env;
    if (!filled.alloc) filled.alloc = lk__mem_alloc;
    if (!filled.now_ns) filled.now_ns = lk__mem_now;
    return filled;
}

/* Sizes that no object can have are refused here, so that a hook may add a header of its own to the
 * size without checking. */
LK__PRIV void *lk__alloc(const llmkit_env *env, size_t size) {
    if (size == 0) size = 1;
    if (size > PTRDIFF_MAX / 2) return NULL;
    void *ptr = env->alloc(env->user, NULL, 0, size);
    if (ptr) memset(ptr, 0, size);
    return ptr;
}

LK__PRIV void *lk__resize(const llmkit_env *env, void *ptr, size_t old_size, size_t new_size) {
    LK__ASSERT(new_size > 0);
    if (new_size == 0 || new_size > PTRDIFF_MAX / 2) return NULL;
    return env->alloc(env->user, ptr, old_size, new_size);
}

LK__PRIV void lk__free(const llmkit_env *env, void *ptr, size_t size) {
    if (ptr) env->alloc(env->user, ptr, size, 0);
}

LK__PRIV char *lk__strdup(const llmkit_env *env, const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = lk__alloc(env, size);
    if (copy) memcpy(copy, text, size);
    return copy;
}

LK__PRIV void lk__strfree(const llmkit_env *env, char *text) {
    if (text) lk__free(env, text, strlen(text) + 1);
}

/* The call goes through a volatile pointer: the compiler cannot know that it is memset, so it may
 * not drop it as a store to memory that is dead. */
LK__PRIV void lk__wipe(void *ptr, size_t size) {
    void *(*const volatile fill)(void *, int, size_t) = memset;
    if (size) fill(ptr, 0, size);
}

LK__PRIV void lk__log(const llmkit_env *env, llmkit_level level, llmkit_err code,
                      const char *format, ...) {
    if (!env->log) return;
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= 0) env->log(env->user, level, code, text);
}
