#!/usr/bin/env bash
# Whether run.sh ends by the time that it is given, with what was measured until then, and leaves two files.
#
#     tests/gpu/in_time.sh BUILD REPORT_FOLDER
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$1 report=$2

# run SECONDS PARTS: exit 1 if it does not end in time, or without its two files
run() {
    rm -rf "$report"
    timeout $(($1 + 10)) "$here/run.sh" "$build" --emulated --seconds "$1" --parts "$2" --archive --report "$report"
    [ "$(cd "$report" && echo *)" = "logs.tar.gz report.md" ] || { echo "in $report: $(ls "$report")"; exit 1; }
}

run 11 "tests cluster bench links deterministic" # too little for anything
[ "$(grep -c 'no time was left' "$report/report.md")" -ge 6 ]
grep -q '^0 failed, [1-9]' "$report/report.md"

run 19 bench # for all of it, or for a part, whose figures are there
grep -q '^| copy_gb_s | [0-9]' "$report/report.md"
tar -xzOf "$report/logs.tar.gz" --wildcards '*/toy.json' | grep -q '^{"copy_gb_s": [0-9.e+]*[,}]'
