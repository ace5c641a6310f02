# jsmn.sh -- a program's own jsmn beside ours: before and after the include, with other macros
# cases: gcc clang
. tests/checks/setup
cc=${1:-gcc}

program use.h <<'END'
static int count(void) {
    jsmn_parser parser;
    jsmntok_t tokens[8];
    jsmn_init(&parser);
    return jsmn_parse(&parser, "{\"a\":[1,2]}", 11, tokens, 8);
}
static int ours(void) {
    llmkit_str value;
    return llmkit_json_find(LLMKIT_STR("{\"a\":[1,2]}"), "a[1]", &value) || value.ptr[0] != '2';
}
int main(void) { return count() != 5 || ours(); }
END
try() {
    $cc -std=c11 -Wall -Wextra -Werror "$@" -D_POSIX_C_SOURCE=200809L -I. \
        -o "$TMP/main" "$TMP/main.c" -lbearssl -pthread
    "$TMP/main" || fail "$*: wrong answers"
}
for order in before after; do
    {
        [ $order = after ] || echo '#include <jsmn.h>'
        printf '#define LLMKIT_IMPLEMENTATION\n#include "llmkit.h"\n'
        [ $order = before ] || echo '#include <jsmn.h>'
        echo '#include "use.h"'
    } > "$TMP/main.c"
    for macros in "" -DJSMN_STATIC "-DJSMN_STRICT -DJSMN_PARENT_LINKS"; do
        try $macros
    done
done

# And as a unit of its own, the way its documentation says.
program own.c <<'END'
#include <jsmn.h>
END
printf '#define LLMKIT_IMPLEMENTATION\n#include "llmkit.h"\n#define JSMN_HEADER\n#include <jsmn.h>\n#include "use.h"\n' \
    > "$TMP/main.c"
$cc -std=c11 -I. -o "$TMP/main" "$TMP/main.c" "$TMP/own.c" -lbearssl -pthread
"$TMP/main"
