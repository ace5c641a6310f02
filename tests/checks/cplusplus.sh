# cplusplus.sh -- the declarations serve C++11 to C++20, and link with the implementation in C
# cases: g++ clang++
. tests/checks/setup
cxx=${1:-g++}
have "$cxx"

program unit.c <<'END'
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
END
program main.cc <<'END'
#include "llmkit.h"
#include <cstring>
#include "llmkit.h"

int main() {
    llmkit_request request = llmkit_request();
    request.model = "m";
    request.temperature = LLMKIT_OPT(0);
    llmkit_str text = LLMKIT_STR("text");
    return request.temperature.set && text.len == 4 && llmkit_version() != 0 &&
                   std::strcmp(llmkit_err_name(LLMKIT_E_TLS), "E_TLS") == 0 ? 0 : 1;
}
END
gcc -std=c11 -O0 -I. -c -o "$TMP/unit.o" "$TMP/unit.c"
for standard in 11 14 17 20; do
    $cxx -std=c++$standard -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror -I. \
        -o "$TMP/main" "$TMP/main.cc" "$TMP/unit.o" -lbearssl -pthread
    "$TMP/main"
done
