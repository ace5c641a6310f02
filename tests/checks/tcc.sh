# tcc.sh -- the small compiler: as a script, and as a program
. tests/checks/setup
have tcc

program main.c <<'END'
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
int main(void) {
    llmkit_error error;
    llmkit_loop *loop = llmkit_loop_create(NULL, &error);
    if (!loop) return puts(error.message), 1;
    llmkit_loop_destroy(loop);
    return puts(llmkit_build_info()) < 0;
}
END
tcc -Wall -Werror -I. -lbearssl -run "$TMP/main.c" 2> "$TMP/message" || { cat "$TMP/message"; exit 1; }
[ ! -s "$TMP/message" ] || fail "$(cat "$TMP/message")"
tcc -Wall -Werror -I. -o "$TMP/main" "$TMP/main.c" -lbearssl
"$TMP/main"
