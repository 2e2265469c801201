#!/usr/bin/env bash
# tandem sim over a made-up load of conversations prints what it printed when it was found right.
#
#     tests/golden/kvsim.sh BIN [--write]
set -euo pipefail
bin=$(cd "$1" && pwd)
data=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/data/kvsim
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$bin/tandem" sim --kv "$data/conversations.jsonl" --blocks 4096,1024,256 --evict-ttl 30s \
    --plot "$out/plot.svg" >"$out/table.txt"
{
    "$bin/tandem" sim --kv "$data/tenants.jsonl" --blocks 256 --policy lru,lfu
    "$bin/tandem" sim --kv "$data/tenants.jsonl" --blocks 256 --policy lru --tenant-weights light=4 --tenant-quota 40
} >"$out/tenants.txt"
"$bin/tandem" sim --kv "$data/tenants.jsonl" --blocks 256 --policy lru --json | python3 -c '
import json, sys
row = json.load(sys.stdin)["pools"][0]["policies"]["lru"]
rows = row["tenants"] + [row["other_tenants"]]
assert sum(t["hit_blocks"] for t in rows) == row["hit_blocks"] and rows[-1]["requests"] == 0, row'
"$bin/tandem" sim --kv "$data/conversations.jsonl" --blocks 512 --policy lru,cost --json |
    python3 -c 'import json, sys; json.load(sys.stdin)'
python3 -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' "$out/plot.svg"
for wrong in "--blocks 0" "--blocks 12x" "--policy mru" "--policy ," "--tenant-weights light=0"; do
    code=0
    # shellcheck disable=SC2086
    "$bin/tandem" sim --kv "$data/conversations.jsonl" $wrong >"$out/no" 2>"$out/why" || code=$?
    if [ $code != 2 ] || ! grep -q -e "${wrong%% *}" "$out/why"; then
        echo "$wrong: $code"
        cat "$out/why"
        exit 1
    fi
done
if [ "${2:-}" = --write ]; then
    cp "$out/table.txt" "$out/tenants.txt" "$data/"
fi
diff "$data/table.txt" "$out/table.txt"
diff "$data/tenants.txt" "$out/tenants.txt"
