# symbols.sh -- the implementation defines llmkit_* alone, and needs libc, BearSSL and pthread alone
# cases: gcc clang
. tests/checks/setup
cc=${1:-gcc}

program unit.c <<'END'
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
END
$cc -std=c11 -O1 -I. -c -o "$TMP/unit.o" "$TMP/unit.c"

others=$(nm -g --defined-only "$TMP/unit.o" | awk '{ print $3 }' | grep -v '^llmkit_' || true)
[ -z "$others" ] || fail "defines more than llmkit_*: $others"

# Nothing that can be written to survives a call: no mutable globals.
mutable=$(nm "$TMP/unit.o" | awk '$2 ~ /^[bBdDcC]$/ { print $3 }' | grep -v '^\.' || true)
mutable=$(for s in $mutable; do
    # Tables of pointers are constant, but relocated.
    objdump -t "$TMP/unit.o" | grep -w "$s" | grep -q 'data\.rel\.ro' || echo "$s"
done)
[ -z "$mutable" ] || fail "mutable globals: $mutable"

# No -lm: glibc keeps the mathematics in a library of its own, and plain cc lines must do.
program main.c <<'END'
int main(void) { return 0; }
END
$cc -o "$TMP/main" "$TMP/main.c" "$TMP/unit.o" -lbearssl -pthread ||
    fail "needs more than libc, BearSSL and pthread"
