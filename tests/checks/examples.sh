# examples.sh -- the one cc line in the first comment of each example compiles it, as it stands
. tests/checks/setup

for example in examples/*.c; do
    line=$(sed -n '1,/\*\//s/^[ /*]*\(cc .*\.c.*\)$/\1/p' "$example" | sed 's/ *\*\/$//' | head -n 1)
    [ -n "$line" ] || fail "$example: no cc line in its first comment"
    name=$(basename "$example" .c)
    command="$(echo "$line" | sed -E "s| -o +[^ ]+||") -o $TMP/$name"
    case $line in
        *examples/*) sh -c "$command" || fail "$example: $line" ;;
        *) (cd examples && sh -c "$(echo "$line" | sed -E 's| -o +[^ ]+||') -o ../$TMP/$name") ||
            fail "$example: $line" ;;
    esac
done
