/* core/end.h -- leaves no private macro behind */
#pragma once

/* The including unit goes on after this.  Tests define LLMKIT__KEEP_MACROS, since they use them. */
#ifndef LLMKIT__KEEP_MACROS

#undef LK__SOURCE_SUM

/* core/platform.h */
#undef LK__ASSERT
#undef LK__CONTAINER
#undef LK__COUNT
#undef LK__HAS_EVENTFD
#undef LK__INLINE
#undef LK__LIKELY
#undef LK__NEVER
#undef LK__NEVER_NS
#undef LK__NS_PER_MS
#undef LK__NS_PER_S
#undef LK__PRINTF
#undef LK__PRIV
#undef LK__UNLIKELY
#undef LK__UNUSED

/* core/atomic.h */
#undef lk__add_relaxed
#undef lk__cas
#undef lk__load_acquire
#undef lk__load_relaxed
#undef lk__store_relaxed
#undef lk__store_release
#undef lk__sub_acq_rel

/* core/str.h */
#undef LK__ARG
#undef LK__STR

#endif
