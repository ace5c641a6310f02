#!/bin/sh
# demo.sh -- what `make demo` runs: 10,000 requests a second over TLS, against two mock servers here
set -eu
cd "$(dirname "$0")/.."
llmkit=${LLMKIT:-build/llmkit}
dir=${DEMO_DIR:-build/demo}
lines=10000
rate=10000

bold='' plain=''
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); fi
heading() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
die() { echo "demo: $1" >&2; exit 1; }

# ---- servers: what is started here ends here, however the script ends ----------------------------

started=''
stop_servers() {
    for pid in $started; do kill "$pid" 2>/dev/null || :; done
    for pid in $started; do wait "$pid" 2>/dev/null || :; done
    started=''
}
trap stop_servers EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

start_mock() { # NAME FLAGS...: sets $url
    name=$1
    shift
    : > "$dir/$name.out"
    "$llmkit" mock --listen 127.0.0.1:0 --tls --cert "$dir/cert.pem" --key "$dir/key.pem" "$@" \
        > "$dir/$name.out" 2> "$dir/$name.err" &
    started="$started $!"
    tries=0
    until url=$(sed -n 's/^listening on //p' "$dir/$name.out") && [ -n "$url" ]; do
        kill -0 "$!" 2>/dev/null || { cat "$dir/$name.err" >&2; die "the mock has not started"; }
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || die "the mock says nothing"
        sleep 0.1
    done
    url=$url/v1
}

# ---- accounting: with nothing of ours ------------------------------------------------------------

numbers() { sed 's/^{"line":\([0-9]*\),.*}$/\1/' "$@"; }
check() {
    numbers "$dir/results.jsonl" "$dir/errors.jsonl" | sort -n > "$dir/lines"
    awk -v n="$lines" 'BEGIN { for (i = 1; i <= n; i++) print i }' > "$dir/expected"
    cmp "$dir/lines" "$dir/expected" || die "a line is lost, or there twice"
    saved=$(grep -c . "$dir/results.jsonl" || :)
    failed=$(grep -c . "$dir/errors.jsonl" || :)
    own=$(grep -c '"input":"\(.*\)","response":"echo: \1"' "$dir/results.jsonl" || :)
    [ "$own" -eq "$saved" ] || die "$((saved - own)) answers belong to another question"
    echo "all $lines lines are there exactly once: $saved in results.jsonl, $failed in errors.jsonl"
    echo "all $own answers belong to their questions"
}

# ---- the demo ------------------------------------------------------------------------------------

rm -rf "$dir"
mkdir -p "$dir"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -sha256 \
    -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
    -keyout "$dir/key.pem" -out "$dir/cert.pem" 2> "$dir/openssl.err" ||
    { cat "$dir/openssl.err" >&2; die "openssl made no certificate"; }
awk -v n="$lines" 'BEGIN { for (i = 1; i <= n; i++)
    printf "{\"input\": \"How much is %d times %d?\"}\n", i, i + 1 }' > "$dir/requests.jsonl"

heading "Two models, over TLS"
start_mock large --latency_dist uniform --latency_ms 30 --latency_jitter 10 --error_rate 0.01
large=$url
start_mock small --latency_dist uniform --latency_ms 30 --latency_jitter 10 --error_rate 0.01 \
    --rate_limit 2400 --rate_burst 50 --seed 2
small=$url
echo "large  $large  takes 3 of 4 requests"
echo "small  $small  takes 1 of 4, and answers 429 over 2,400 a second"
echo "both answer in 30 +- 10 ms, and every hundredth time with status 500"

heading "10,000 requests at 10,000 a second"
echo "(the goal: all first attempts sent within 1.02 s)"
status=0
"$llmkit" batch --requests_filepath "$dir/requests.jsonl" --save_filepath "$dir/results.jsonl" \
    --max_requests_per_second "$rate" --max_attempts 2 --backoff_ms 100 --max_in_flight 1500 \
    --ca "$dir/cert.pem" --model mock --endpoint "$large,weight=3,name=large" \
    --endpoint "$small,weight=1,name=small" || status=$?
[ "$status" -ne 1 ] || die "the batch could not run"

heading "Accounted for, by sort, grep and cmp"
check

heading "The first results"
head -n 3 "$dir/results.jsonl"
if [ -s "$dir/errors.jsonl" ]; then
    heading "The first line that failed twice"
    head -n 1 "$dir/errors.jsonl"
fi

heading "One chat, streamed"
start_mock chat --token_ms 40
"$llmkit" chat --base-url "$url" --ca "$dir/cert.pem" \
    "this reply comes in word by word, over TLS, as the model writes it"
[ -t 1 ] || echo

heading "The same against the real thing"
if [ -z "${OPENAI_API_KEY:-}" ]; then echo "Put your key into OPENAI_API_KEY, and:"; fi
cat <<END
$llmkit chat "Why C?"
head -n 100 $dir/requests.jsonl > sample.jsonl
$llmkit batch --requests_filepath sample.jsonl --max_requests_per_second 20 --max_attempts 3 \\
    --endpoint https://api.openai.com/v1 --model gpt-4o-mini
END
