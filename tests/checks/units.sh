# units.sh -- several units of one program, repeated includes, settings that differ between units
. tests/checks/setup

program one.c <<'END'
#include "llmkit.h"
#include "llmkit.h"
int two(void);
int three(void);
int main(void) { return two() + three() + (llmkit_version() == 0); }
END
program two.c <<'END'
#include <stdio.h>
#include "llmkit.h"
#include "llmkit.h"
int two(void);
int two(void) { return llmkit_err_name(LLMKIT_OK)[0] != 'O'; }
END
# As if this unit had its own configuration: layouts must not depend on it.
program three.c <<'END'
#define LLMKIT_WITH_TLS 0
#define LLMKIT_MAX_HEADERS 16
#include "llmkit.h"
int three(void);
int three(void) {
    llmkit_error error;
    return llmkit_client_create(&(llmkit_client_desc){ ._guard0 = 1 }, &error) != NULL ||
           error.code != LLMKIT_E_NOT_ZEROED;
}
END
program implementation.c <<'END'
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
END
gcc $STRICT -I. -o "$TMP/units" "$TMP/one.c" "$TMP/two.c" "$TMP/three.c" "$TMP/implementation.c" \
    -lbearssl -pthread
"$TMP/units"

# Declarations first, then the implementation in the same unit; and once more, which does nothing.
program first.c <<'END'
#define _POSIX_C_SOURCE 200809L
#define _DEFAULT_SOURCE 1
#include "llmkit.h"
#define LLMKIT_IMPLEMENTATION
#include "llmkit.h"
#include "llmkit.h"
int main(void) { return llmkit_version() == 0; }
END
gcc $STRICT -I. -o "$TMP/first" "$TMP/first.c" -lbearssl -pthread
"$TMP/first"
