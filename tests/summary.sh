#!/usr/bin/env bash
# Reads ctest's log and prints what failed and was skipped, then the line `N passed, N failed`.
#
#     tests/summary.sh BUILD_DIR [BUILD_DIR...]
#
# A cmocka program counts with each of its tests, any other test as one. A program that died before
# its own tally counts one failure more.
set -euo pipefail

# shellcheck disable=SC2016
TALLY='
# The test that the log was about until here.
function end_of_test() {
    if (name == "") return
    if (passed + failed + skipped == 0) {
        passed = verdict == "Passed"
        failed = verdict == "Failed"
        skipped = verdict == "Skipped"
    } else if (verdict == "Failed" && !failed) failed = 1
    if (failed) print "failed: " name " (" build ")"
    if (skipped) print "skipped: " skipped " of " name
    seen[build, name] = 1
    sum_passed += passed; sum_failed += failed; sum_skipped += skipped
    name = ""
}
FNR == 1 {
    end_of_test()
    build = FILENAME
    of_failed = sub(/\/Testing\/Temporary\/LastTestsFailed\.log$/, "", build)
    sub(/\/Testing\/Temporary\/LastTest\.log$/, "", build)
}
of_failed { # names tests, too, that could not be started
    if (sub(/^[0-9]+:/, "") && !((build, $0) in seen)) {
        sum_failed++
        print "not run: " $0 " (" build ")"
    }
    next
}
/^[0-9]+\/[0-9]+ Test: / {
    end_of_test()
    name = $0
    sub(/^[0-9]+\/[0-9]+ Test: /, "", name)
    verdict = "Failed"
    passed = failed = skipped = 0
}
/^Test (Passed|Failed|Skipped)\.$/ { verdict = substr($2, 1, length($2) - 1) }
/^Test Pass Reason:$/ { verdict = "Passed" } # by what it printed
match($0, /\[  (PASSED |FAILED |SKIPPED) \] [0-9]+ test/) {
    split(substr($0, RSTART, RLENGTH), word, " ")
    if (word[2] == "PASSED") passed += word[4]
    if (word[2] == "FAILED") failed += word[4]
    if (word[2] == "SKIPPED") skipped += word[4]
}
END {
    end_of_test()
    printf "%d passed, %d failed%s\n", sum_passed, sum_failed, sum_skipped ? ", " sum_skipped " skipped" : ""
    exit sum_failed || !sum_passed
}
'

logs=()
for build in "$@"; do
    logs+=("$build/Testing/Temporary/LastTest.log")
    failed=$build/Testing/Temporary/LastTestsFailed.log
    [ ! -f "$failed" ] || logs+=("$failed")
done
awk "$TALLY" "${logs[@]}"
