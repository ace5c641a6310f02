# split.sh -- `make split`: a small header and one .c file from the same pieces
. tests/checks/setup

make -s -o llmkit.h split
program main.c <<'END'
#include "llmkit.h"
int main(void) { return llmkit_version() == 0; }
END
gcc $STRICT -Ibuild/split -c -o "$TMP/llmkit.o" build/split/llmkit.c
gcc $STRICT -Ibuild/split -o "$TMP/main" "$TMP/main.c" "$TMP/llmkit.o" -lbearssl -pthread
"$TMP/main"
[ "$(grep -c . build/split/llmkit.h)" -lt 2000 ] || fail "the header holds the implementation"
