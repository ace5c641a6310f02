# lint.sh -- text files outside amalgamate/ (the tool reads those) keep to the same plain layout
. tests/checks/setup

code="amalgamate/*.c tests/*.[ch] tests/checks/*.c examples/*.c examples/*/*.[ch]"
scripts="Makefile .ci/run tests/deps tests/run tests/sizes tests/checks/* tests/*.py"
status=0
complain() { printf '%s:\n%s\n' "$1" "$2"; status=1; }

for file in $code $scripts; do
    [ -f "$file" ] || continue
    case $file in
        *.py) bad=' +$' ;; # tests of Unicode may hold some
        *) bad=' +$|[^ -~	]' ;;
    esac
    found=$(LC_ALL=C grep -nE "$bad" "$file" || true)
    [ -z "$found" ] || complain "blanks at the end, or bytes that are not ASCII, in $file" "$found"
    [ -z "$(tail -c 1 "$file")" ] || complain "$file" "the last line does not end"
done
for file in $code; do
    [ -f "$file" ] || continue
    found=$(grep -nE '^.{101}|	' "$file" || true)
    [ -z "$found" ] || complain "over 100 columns, or a tab, in $file" "$found"
done
exit $status
