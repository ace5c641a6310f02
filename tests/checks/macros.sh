# macros.sh -- the including unit finds no macro that does not begin with LLMKIT_
# cases: gcc clang
. tests/checks/setup
cc=${1:-gcc}

macros() { $cc -std=c11 -dM -E -x c "$1" -I. | awk '{ print $2 }' | sed 's/(.*//' | sort -u; }

# What the system headers define by themselves.
{
    echo '#define _POSIX_C_SOURCE 200809L'
    echo '#define _DEFAULT_SOURCE 1'
    grep -h '^#include <' amalgamate/api/*.h amalgamate/core/platform.h |
        grep -v -e sys/event.h -e jsmn.h
} > "$TMP/system.h"
for mode in '#define LLMKIT_IMPLEMENTATION' '#define LLMKIT_STATIC'; do
    printf '#include "system.h"\n%s\n#include "llmkit.h"\n' "$mode" > "$TMP/unit.c"
    macros "$TMP/system.h" > "$TMP/before"
    macros "$TMP/unit.c" > "$TMP/after"
    extra=$(comm -13 "$TMP/before" "$TMP/after" | grep -v '^LLMKIT_' || true)
    [ -z "$extra" ] || fail "macros left behind: $(echo $extra)"
    private=$(grep '^LLMKIT__' "$TMP/after" || true)
    [ -z "$private" ] || fail "private macros left behind: $private"
done
