# bundle.sh -- `make bundle` needs no jsmn to compile and keeps jsmn's licence
. tests/checks/setup

make -s -o llmkit.h bundle
cp build/llmkit.h "$TMP/llmkit.h"
! grep -q 'include <jsmn.h>' "$TMP/llmkit.h" || fail "jsmn is still included"
grep -q 'Serge Zaitsev' "$TMP/llmkit.h" || fail "the licence of jsmn is gone"
program main.c <<'END'
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
int main(void) {
    llmkit_str value;
    return llmkit_json_find(LLMKIT_STR("[1]"), "[0]", &value);
}
END
gcc $STRICT -Wno-error "-I$TMP" -o "$TMP/main" "$TMP/main.c" -lbearssl -pthread
"$TMP/main"
