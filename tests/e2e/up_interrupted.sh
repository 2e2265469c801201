#!/usr/bin/env bash
# Ctrl-C while a node of `tandem up` still loads its model: nobody waits for it, and it ends with 0.
#
#     tests/e2e/up_interrupted.sh BIN
set -euo pipefail
bin=$1
model=$(dirname "${BASH_SOURCE[0]}")/../../examples/demo_model/model
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkfifo "$work/began" "$work/never"
exec 3<>"$work/began"
cp "$bin/tandem" "$bin/tandem-router" "$work"
cat >"$work/tandem-decode" <<NODE
#!/usr/bin/env bash
echo began >"$work/began"
read -r _ <>"$work/never"
NODE
chmod +x "$work/tandem-decode"

env --default-signal=INT "$work/tandem" up --model "$model" --prefill 0 --zmq tcp://127.0.0.1:0 \
    >"$work/out" 2>&1 &
read -r _ <&3
kill -INT $!
status=0
wait $! || status=$?
if [ $status != 0 ] || grep -qE 'have not left|was killed' "$work/out"; then
    echo "status $status; it said:"
    cat "$work/out"
    exit 1
fi
