# musl.sh -- a fully static program with TLS, by musl: build/hello-static
. tests/checks/setup
have musl-gcc

# musl-gcc looks at no other headers than musl's: give it the packages' own.
mkdir -p "$TMP/include"
for header in bearssl.h jsmn.h; do
    path=$(echo "#include <$header>" | cc -M -x c - | tr ' ' '\n' | grep -m 1 "/$header\$")
    cp -r "$(dirname "$path")/${header%.h}"* "$TMP/include"
done
library=$(cc -print-file-name=libbearssl.a)

# Debian compiles BearSSL with fortified memory functions, which only glibc has.
musl-gcc -std=c11 -Os -static -I. "-I$TMP/include" -o build/hello-static examples/hello.c \
    tests/checks/fortify.c "$library"
strip build/hello-static
! ldd build/hello-static 2>/dev/null | grep -q '=>' || fail "not static"
echo "build/hello-static: $(wc -c < build/hello-static) bytes"
