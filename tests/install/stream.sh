#!/usr/bin/env bash
# The installed programs and model at work: a cluster, one completion by the example program, a drain.
#
#     tests/install/stream.sh PREFIX STREAM
set -euo pipefail
bin=$1/bin stream=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/tandem-stream-XXXXXX")
cluster=
clean_up() {
    [ -z "$cluster" ] || kill -KILL "$cluster" 2>/dev/null || true # its processes die with it
    rm -rf "$work"
}
trap clean_up EXIT

mkfifo "$work/ready"
"$bin/tandem" up --zmq tcp://127.0.0.1:0 >"$work/ready" &
cluster=$!
line=
read -r -t 60 line <"$work/ready" || true
address=$(sed -n 's/^ready clients=\([^ ]*\).*/\1/p' <<<"$line")
[ -n "$address" ] || { echo "no cluster came up" >&2; exit 1; }

"$stream" "$address" ROMEO: </dev/null >"$work/text"
[ -s "$work/text" ] || { echo "no text came" >&2; exit 1; }

kill -INT "$cluster"
wait "$cluster"
cluster=
