#!/usr/bin/env bash
# What `tandem up --json` says while its nodes come, die, come again and leave: one JSON object in each line.
#
#     tests/e2e/up_json.sh BIN           ... and that all of it is said
#     tests/e2e/up_json.sh BIN unread    ... and that nobody needs to read it
set -euo pipefail
bin=$1
work=$(mktemp -d)
mkfifo "$work/said"
trap 'kill -INT "$up" 2>/dev/null || true; rm -rf "$work"' EXIT

env --default-signal=INT "$bin/tandem" up --json --zmq tcp://127.0.0.1:0 --blocks 64 \
    >"$work/said" 2>"$work/err" &
up=$!
exec 3<"$work/said"

# Reads on until all of these have come, in any order; the lines are in $said.
said=
await() { # PATTERN…
    local line pattern
    while IFS= read -r line <&3; do
        case $line in
        '{"event":"'*'}') said+=$line$'\n' ;;
        *) echo "no event: $line" && exit 1 ;;
        esac
        for pattern; do [[ $said =~ $pattern ]] || continue 2; done
        return 0
    done
    echo "no $* in:" "$said" "$(cat "$work/err")"
    exit 1
}

await '"event":"plan","node":"p0","device":"cpu"' '"event":"plan","node":"d0"' \
    '"event":"process_ready","process":"r0"' '"process_ready","process":"p0"' '"process_ready","process":"d0"' \
    '"event":"ready","clients":"tcp://127.0.0.1:[0-9]+","nodes":"tcp://127.0.0.1:[0-9]+","prefill":1,"decode":1,"seconds":'
[[ $said =~ \"ready\",\"clients\":\"([^\"]*)\" ]]
router=${BASH_REMATCH[1]}
"$bin/tandem" generate --router "$router" --max-tokens 2 "Once" >"$work/out"

[[ $said =~ \"process\":\"d0\",\"pid\":([0-9]+) ]]
said=
kill -KILL "${BASH_REMATCH[1]}"
await '"event":"process_ended","process":"d0","pid":'"${BASH_REMATCH[1]}"',"signal":9' '"process_ready","process":"d0"'

if [ "${2:-}" != unread ]; then
    said=
    kill -INT $up
    await '"event":"draining"' '"event":"process_ended","process":"p0","pid":[0-9]+,"status":0' '"event":"ended","code":0'
    wait $up
    exit 0
fi

# Nobody reads any more: the cluster stays, and that something was lost is told at the end.
[[ $said =~ \"process_ready\",\"process\":\"d0\",\"pid\":([0-9]+) ]]
exec 3<&-
kill -KILL "${BASH_REMATCH[1]}"
"$bin/tandem" generate --router "$router" --max-tokens 2 "Once" >"$work/out"
kill -INT $up
status=0
wait $up || status=$?
if [ $status != 1 ] || ! grep -q "stdout could not be written" "$work/err"; then
    echo "status $status; it said:"
    cat "$work/err"
    exit 1
fi
