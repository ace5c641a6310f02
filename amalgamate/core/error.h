/* core/error.h -- filling in a llmkit_error */
#pragma once

#include "core/str.h"

LK__PRIV bool lk__err_retryable(llmkit_err code); /* the same request may succeed later */

/* Sets code, retryable as the code implies, and the message; clears the rest.  Returns the code;
 * error may be NULL. */
LK__PRIV llmkit_err lk__fail(llmkit_error *error, llmkit_err code, const char *format, ...)
    LK__PRINTF(3, 4);
/* The same with what errno said: ": Connection refused" is added to the message.  With E_DNS the
 * number is getaddrinfo's. */
LK__PRIV llmkit_err lk__fail_os(llmkit_error *error, llmkit_err code, int os_errno,
                                const char *format, ...) LK__PRINTF(4, 5);
LK__PRIV llmkit_err lk__fail_disabled(llmkit_error *error, const char *macro);
/* E_NOT_ZEROED, with the name of the struct, where a guard is not 0. */
LK__PRIV llmkit_err lk__check_guards(llmkit_error *error, uint32_t guard0, uint32_t guard1,
                                     const char *type);
