# stale.sh -- llmkit.h is what amalgamate/ makes, and the umbrella lists every piece
. tests/checks/setup

build/amalgamate --check amalgamate llmkit.h || fail "edit amalgamate/, run make, commit both"

for piece in $(cd amalgamate && ls */*.h */*.c); do
    grep -q "^#include \"$piece\"" amalgamate/llmkit.h || fail "the umbrella does not list $piece"
done
