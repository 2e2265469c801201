#!/usr/bin/env bash
# The demo behind ./dev run: a router, a prefill node and a decode node as processes of their own on
# the bundled model, one streamed completion, where its time went, and a clean end.
#
#     deploy/demo.sh [PROMPT]
#
# MODEL, TOKENS, DEVICE, BLOCKS (tandem up --help) and BIN in the environment say otherwise. Exit status 0: all of it worked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BIN=${BIN:-build/bin}
MODEL=${MODEL:-examples/demo_model/model}
TOKENS=${TOKENS:-160}
DEVICE=${DEVICE:-cpu}
BLOCKS=${BLOCKS:-0}
PROMPT=${1:-ROMEO:}
READY_SECONDS=60
DRAIN_SECONDS=30

work=$(mktemp -d "${TMPDIR:-/tmp}/tandem-demo-XXXXXX")
cluster=
say() { printf '\n== %s\n' "$*" >&2; }

# Whatever happens, no process and no folder stays behind. SIGTERM: a script's background jobs begin deaf
# to SIGINT.
clean_up() {
    local status=$?
    trap '' INT TERM
    if [ -n "$cluster" ] && kill -TERM "$cluster" 2>/dev/null; then
        timeout -s KILL "$DRAIN_SECONDS" tail --pid="$cluster" -f /dev/null || kill -KILL "$cluster" || true
    fi
    if [ $status != 0 ] && [ -s "$work/log" ]; then
        say "the cluster's last lines"
        tail -n 20 "$work/log" >&2
    fi
    rm -rf "$work"
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say "starting a router, a prefill node and a decode node (model: $MODEL)"
mkfifo "$work/ready"
"$BIN/tandem" up --model "$MODEL" --device "$DEVICE" --blocks "$BLOCKS" --prefill 1 --decode 1 \
    --zmq tcp://127.0.0.1:0 >"$work/ready" 2>"$work/log" &
cluster=$!
line=
read -r -t "$READY_SECONDS" line <"$work/ready" || true
TANDEM_ROUTER=$(sed -n 's/^ready clients=\([^ ]*\).*/\1/p' <<<"$line")
[ -n "$TANDEM_ROUTER" ] || { say "the cluster did not start"; exit 1; }
export TANDEM_ROUTER
"$BIN/tandem" status

say "tandem generate --max-tokens $TOKENS \"$PROMPT\""
"$BIN/tandem" generate --max-tokens "$TOKENS" --temperature 0.8 --seed 7 --summary "$PROMPT" \
    2>"$work/generate"
printf '\n\n'
cat "$work/generate" >&2

say "where the time went"
"$BIN/tandem" explain "$(grep -oE '[0-9a-f]{32}' "$work/generate" | tail -n 1)"

say "draining"
kill -INT "$cluster"
wait "$cluster"
cluster=
say "done"
