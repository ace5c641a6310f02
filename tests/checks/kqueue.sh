# kqueue.sh -- the backend of macOS and the BSDs compiles against declarations of our own
# cases: gcc clang
. tests/checks/setup
cc=${1:-gcc}

program unit.c <<'END'
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
END
$cc $STRICT -O1 -DLLMKIT_LOOP=2 -Itests/checks/kqueue -I. -c -o "$TMP/unit.o" "$TMP/unit.c"
nm -u "$TMP/unit.o" | grep -qw kevent || fail "the backend is not in"
