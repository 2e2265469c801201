#!/usr/bin/env bash
# tests/summary.sh counts each kind of verdict that ctest's log has.
set -euo pipefail
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/Testing/Temporary"
cat >"$folder/Testing/Temporary/LastTest.log" <<'END'
1/5 Test: lint/words
Test Passed.
2/5 Test: sim/finds_something
Test Pass Reason:
Required regular expression found. Regex=[found]
3/5 Test: unit/two
[  PASSED  ] 2 test(s).
[  FAILED  ] 1 test(s), listed below:
Test Failed.
4/5 Test: sim/finds_nothing_there
Test Fail Reason:
Required regular expression not found. Regex=[found]
5/5 Test: unit/none
Test Skipped.
END
said=$(./summary.sh "$folder") && { echo "a failure ends with 0"; exit 1; }
[ "${said##*$'\n'}" = "4 passed, 2 failed, 1 skipped" ] || { echo "$said"; exit 1; }
