# warnings.sh -- the implementation is free of warnings, optimised and not, on 64 and 32 bits
# cases: gcc clang
. tests/checks/setup
cc=${1:-gcc}

program unit.c <<'END'
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
END
$cc $STRICT -O2 -I. -c -o "$TMP/unit.o" "$TMP/unit.c"
$cc $STRICT -Os -DNDEBUG -I. -c -o "$TMP/unit.o" "$TMP/unit.c"
for standard in c11 gnu11 c17 gnu17; do
    $cc $STRICT -std=$standard -I. -fsyntax-only "$TMP/unit.c"
done

# Headers of the other word size are not installed; the two files that differ by name can be empty.
mkdir -p "$TMP/32/gnu"
: > "$TMP/32/gnu/stubs-32.h"
where=$(echo '#include <bits/wordsize.h>' | $cc -M -x c - | tr ' ' '\n' | sed -n 's|/bits/wordsize.h$||p')
$cc $STRICT -m32 "-I$TMP/32" ${where:+-isystem "$where"} -I. -fsyntax-only "$TMP/unit.c"
