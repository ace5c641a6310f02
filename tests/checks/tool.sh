# tool.sh -- amalgamate.c: what it makes, what it refuses, the same by every compiler
. tests/checks/setup

tool=build/amalgamate
make_tree() {
    rm -rf "$TMP/tree"
    mkdir -p "$TMP/tree/api" "$TMP/tree/core" "$TMP/tree/net" "$TMP/tree/obs"
    printf '/* llmkit.h -- an umbrella\n *\n * @toc\n */\n#include "api/config.h"\n#include "api/a.h"\n\n/* @sum is the sum. */\n#include "core/platform.h"\n#include "net/b.h"\n#include "obs/c.c"\n' \
        > "$TMP/tree/llmkit.h"
    printf '/* api/config.h -- macros */\n#pragma once\n\n#if A\n#endif\n' > "$TMP/tree/api/config.h"
    printf '/* api/a.h -- declarations */\n#pragma once\n\nint a(void);\n' > "$TMP/tree/api/a.h"
    printf '/* core/platform.h -- uses jsmn */\n#include "api/a.h"\n\n#include <jsmn.h>\n' \
        > "$TMP/tree/core/platform.h"
    printf '/* net/b.h -- a middle layer */\n#pragma once\n\nint b(void);\n' > "$TMP/tree/net/b.h"
    printf '/* obs/c.c -- another one */\n\nint c(void) {\n    return 2;\n}\n' > "$TMP/tree/obs/c.c"
}
join() { $tool "$TMP/tree" "$TMP/out.h"; }

# refused PIECE:LINE: MESSAGE, after the tree was spoilt
refused() {
    if join 2> "$TMP/message"; then fail "accepted: $1"; fi
    grep -qF "$TMP/tree/$1" "$TMP/message" || fail "expected $1, got: $(cat "$TMP/message")"
    make_tree
}

make_tree
join
head -n 1 "$TMP/out.h" | grep -q 'generated from amalgamate/'
grep -qx ' \*   core/platform.h    uses jsmn' "$TMP/out.h" || fail "no contents"
grep -qx '/\* ==== >>net/b.h =* \*/' "$TMP/out.h" || fail "no banner"
grep -qxE '#define LK__SOURCE_SUM "[0-9a-f]{16}"' "$TMP/out.h" || fail "no sum"
! grep -q 'include "' "$TMP/out.h" || fail "a quoted include is left"
! grep -q 'pragma once' "$TMP/out.h" || fail "a pragma is left"

line=$(grep -n '^int c(void)' "$TMP/out.h" | cut -d: -f1)
[ "$($tool --where "$line" "$TMP/tree")" = "$TMP/tree/obs/c.c:3" ] || fail "--where is wrong"
$tool --check "$TMP/tree" "$TMP/out.h" || fail "fresh, but called stale"
sed 's/return 2/return 3/' "$TMP/out.h" > "$TMP/stale.h"
! $tool --check "$TMP/tree" "$TMP/stale.h" > "$TMP/message" || fail "stale, but called fresh"
grep -q 'stale from line [0-9]*: .*/obs/c.c:4' "$TMP/message" || fail "$(cat "$TMP/message")"
sed '$d' "$TMP/out.h" > "$TMP/stale.h"
! $tool --check "$TMP/tree" "$TMP/stale.h" > "$TMP/message" || fail "shortened, but called fresh"

printf '/* a licence */\nint jsmn;\n' > "$TMP/jsmn.h"
$tool --bundle "$TMP/jsmn.h" "$TMP/tree" "$TMP/bundle.h"
grep -q 'a licence' "$TMP/bundle.h" && ! grep -q '<jsmn.h>' "$TMP/bundle.h" || fail "no bundle"

tree=$TMP/tree
printf '\n#include "obs/c.c"\n' >> "$tree/net/b.h"
refused 'net/b.h:6: list "obs/c.c" in the umbrella, above this file'
printf '/* obs/c.c -- another one */\n#include "net/b.h"\n' > "$tree/obs/c.c"
refused 'obs/c.c:2: a piece of this layer must not use "net/b.h"'
printf '/* core/platform.h -- x */\n#include "core/platform.h"\n' > "$tree/core/platform.h"
refused 'core/platform.h:2: list "core/platform.h" in the umbrella'
printf '#include "api/a.h"\n' >> "$tree/obs/c.c"
refused 'obs/c.c:6: includes stand above the code'
printf '#include <stdio.h>\n' >> "$tree/obs/c.c"
refused 'obs/c.c:6: <stdio.h> belongs into core/platform.h'
sed -i 's/obs.c.c --/obs\/d.c --/' "$tree/obs/c.c"
refused 'obs/c.c:1: begin with: /* obs/c.c -- a summary of one line'
printf '#if LLMKIT_WITH_X\n#endif\n' >> "$tree/api/a.h"
refused 'api/a.h:5: no conditions in api/'
printf '#include "obs/c.c"\n' >> "$tree/llmkit.h"
refused 'llmkit.h:12: "obs/c.c" is listed twice'
printf 'int d; \n' >> "$tree/obs/c.c"
refused 'obs/c.c:6: blanks at the end'
printf '\tint d;\n' >> "$tree/obs/c.c"
refused 'obs/c.c:6: byte 0x09 in column 1'
printf 'int d;\r\n' >> "$tree/obs/c.c"
refused 'obs/c.c:6: byte 0x0d in column 7'
printf '/* \303\244 */\n' >> "$tree/obs/c.c"
refused 'obs/c.c:6: byte 0xc3 in column 4'
printf 'int d;' >> "$tree/obs/c.c"
refused 'obs/c.c:6: the last line does not end'
printf '/* %097d */\n' 0 >> "$tree/obs/c.c"
refused 'obs/c.c:6: over 100 columns'
sed -i '/@sum/d' "$tree/llmkit.h"
if join 2>/dev/null; then fail "accepted an umbrella without @sum"; fi

for cc in gcc clang tcc; do
    command -v $cc >/dev/null || continue
    flags=$STRICT
    [ $cc = tcc ] && flags=
    $cc $flags -o "$TMP/tool-$cc" amalgamate/amalgamate.c
    "$TMP/tool-$cc" amalgamate "$TMP/$cc.h"
    $tool amalgamate "$TMP/ours.h"
    cmp "$TMP/$cc.h" "$TMP/ours.h"
done
