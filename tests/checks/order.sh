# order.sh -- after system headers that hide POSIX there is an #error that says what to do
# cases: gcc clang
. tests/checks/setup
cc=${1:-gcc}

program late.c <<'END'
#include <time.h>
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
END
if $cc -std=c11 -I. -fsyntax-only "$TMP/late.c" 2> "$TMP/message"; then
    fail "compiled after a system header"
fi
grep -q 'include llmkit.h before any system' "$TMP/message" || fail "$(head "$TMP/message")"

$cc $STRICT -D_POSIX_C_SOURCE=200809L -I. -fsyntax-only "$TMP/late.c"
$cc $STRICT -D_GNU_SOURCE -I. -fsyntax-only "$TMP/late.c"
$cc $STRICT -std=gnu11 -I. -fsyntax-only "$TMP/late.c"

# Before them it needs nothing.
program early.c <<'END'
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
#include <time.h>
END
$cc $STRICT -I. -fsyntax-only "$TMP/early.c"
