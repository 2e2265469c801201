#!/usr/bin/env bash
# Ctrl-C while the demo's cluster has hardly begun: `tandem up` does not listen to it yet, and as a job in
# the background of a script it is born deaf to SIGINT. The demo ends at once all the same, without SIGKILL.
set -euo pipefail
demo=$(dirname "${BASH_SOURCE[0]}")/../../deploy/demo.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkfifo "$work/began" "$work/never"
exec 3<>"$work/began"
cat >"$work/tandem" <<TANDEM
#!/usr/bin/env bash
echo began >"$work/began"
read -r _ <>"$work/never"
TANDEM
chmod +x "$work/tandem"

BIN=$work TMPDIR=$work env --default-signal=INT "$demo" >"$work/out" 2>&1 &
read -r _ <&3
kill -INT $!
status=0
wait $! || status=$?
if [ $status != 130 ] || grep -q Killed "$work/out"; then
    echo "status $status; it said:"
    cat "$work/out"
    exit 1
fi
[ -z "$(find "$work" -name 'tandem-demo-*')" ] || { echo "its folder is still there"; exit 1; }
