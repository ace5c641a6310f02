# static.sh -- LLMKIT_STATIC: private copies in several units, without warnings
# cases: gcc clang
. tests/checks/setup
cc=${1:-gcc}

for name in one two; do
    program $name.c <<END
#define LLMKIT_IMPLEMENTATION
#define LLMKIT_STATIC
#include "llmkit.h"
int $name(void);
int $name(void) { return llmkit_version() == 0; }
END
done
program main.c <<'END'
int one(void);
int two(void);
int main(void) { return one() + two(); }
END
$cc $STRICT -O1 -I. -o "$TMP/main" "$TMP/main.c" "$TMP/one.c" "$TMP/two.c" -lbearssl -pthread
"$TMP/main"
others=$(nm -g --defined-only "$TMP/main" | awk '{ print $3 }' | grep '^llmkit_' || true)
[ -z "$others" ] || fail "not static: $others"
