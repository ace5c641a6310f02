# features.sh -- compiles and links with each part off alone, all off, and each loop
# cases: gcc clang
. tests/checks/setup
cc=${1:-gcc}

program unit.c <<'END'
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
END
# A program that names every public function: each is there whatever is off.
{
    echo '#include "llmkit.h"'
    echo 'typedef void (*any)(void);'
    echo 'any all[] = {'
    $cc -E -P -DLLMKIT_API=PUBLIC -I. llmkit.h | tr '\n' ' ' | grep -oE 'PUBLIC [^;]*;' |
        sed -E 's/^PUBLIC [^(]*[ *](llmkit_[a-z0-9_]+)\(.*/    (any)\1,/'
    echo '};'
    echo 'int main(void) { return all[0] == 0 || llmkit_build_info()[0] == 0; }'
} > "$TMP/main.c"
[ "$(grep -c '(any)' "$TMP/main.c")" -ge 40 ] || fail "the list of functions is too short"

try() {
    echo "with $*"
    $cc $STRICT -O0 "$@" -I. -c -o "$TMP/unit.o" "$TMP/unit.c"
    case "$*" in *WITH_TLS=0*) library= ;; *) library=-lbearssl ;; esac
    $cc -std=c11 -I. -o "$TMP/main" "$TMP/main.c" "$TMP/unit.o" $library -pthread
    "$TMP/main"
}
all=
for feature in $(sed -n 's/^#ifndef \(LLMKIT_WITH_[A-Z_]*\)$/\1/p' amalgamate/api/config.h); do
    try "-D$feature=0"
    all="$all -D$feature=0"
done
try $all
try -DLLMKIT_LOOP=3
