/* core/atomic.h -- the few atomic words and locks that threads share */
#pragma once

#include "core/platform.h"

/* Reference counts, flags and counters.  Plain words without LLMKIT_WITH_THREADS. */

#if LLMKIT_WITH_THREADS

typedef _Atomic(uint32_t) lk__atomic_u32;
typedef _Atomic(uint64_t) lk__atomic_u64;
typedef _Atomic(void *)   lk__atomic_ptr;
typedef pthread_mutex_t   lk__mutex;

#define lk__load_relaxed(a)     atomic_load_explicit((a), memory_order_relaxed)
#define lk__load_acquire(a)     atomic_load_explicit((a), memory_order_acquire)
#define lk__store_relaxed(a, v) atomic_store_explicit((a), (v), memory_order_relaxed)
#define lk__store_release(a, v) atomic_store_explicit((a), (v), memory_order_release)
#define lk__add_relaxed(a, v)   atomic_fetch_add_explicit((a), (v), memory_order_relaxed)
#define lk__sub_acq_rel(a, v)   atomic_fetch_sub_explicit((a), (v), memory_order_acq_rel)
/* Weak: may fail for no reason; *old is then what was there. */
#define lk__cas(a, old, v)                                                                         \
    atomic_compare_exchange_weak_explicit((a), (old), (v), memory_order_acq_rel,                   \
                                          memory_order_acquire)

LK__INLINE void *lk__exchange_ptr(lk__atomic_ptr *a, void *v) {
    return atomic_exchange_explicit(a, v, memory_order_acq_rel);
}
LK__INLINE uint32_t lk__exchange_u32(lk__atomic_u32 *a, uint32_t v) {
    return atomic_exchange_explicit(a, v, memory_order_acq_rel);
}

LK__INLINE void lk__mutex_init(lk__mutex *m) { pthread_mutex_init(m, NULL); }
LK__INLINE void lk__mutex_free(lk__mutex *m) { pthread_mutex_destroy(m); }
LK__INLINE void lk__lock(lk__mutex *m) { pthread_mutex_lock(m); }
LK__INLINE void lk__unlock(lk__mutex *m) { pthread_mutex_unlock(m); }

#else

typedef uint32_t lk__atomic_u32;
typedef uint64_t lk__atomic_u64;
typedef void    *lk__atomic_ptr;
typedef int      lk__mutex;

#define lk__load_relaxed(a)     (*(a))
#define lk__load_acquire(a)     (*(a))
#define lk__store_relaxed(a, v) ((void)(*(a) = (v)))
#define lk__store_release(a, v) ((void)(*(a) = (v)))
#define lk__cas(a, old, v)      (*(a) == *(old) ? (*(a) = (v), true) : (*(old) = *(a), false))

#define lk__add_relaxed(a, v)   ((*(a) += (v)) - (v))
#define lk__sub_acq_rel(a, v)   ((*(a) -= (v)) + (v))

LK__INLINE void *lk__exchange_ptr(lk__atomic_ptr *a, void *v) {
    void *old = *a;
    *a = v;
    return old;
}
LK__INLINE uint32_t lk__exchange_u32(lk__atomic_u32 *a, uint32_t v) {
    uint32_t old = *a;
    *a = v;
    return old;
}

LK__INLINE void lk__mutex_init(lk__mutex *m) { *m = 0; }
LK__INLINE void lk__mutex_free(lk__mutex *m) { (void)m; }
LK__INLINE void lk__lock(lk__mutex *m) { (void)m; }
LK__INLINE void lk__unlock(lk__mutex *m) { (void)m; }

#endif
