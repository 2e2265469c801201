#!/usr/bin/env python3
"""Reads ctest's log and prints what failed and was skipped, then the line `N passed, N failed`.

    tests/summary.py BUILD_DIR [BUILD_DIR...]

A cmocka program counts with each of its tests, any other test as one. A program that died before
its own tally counts one failure more.
"""
import pathlib
import re
import sys

TALLY = re.compile(r"\[  (PASSED |FAILED |SKIPPED) \] (\d+) test")


def count(output, verdict):
    tally = {"PASSED": 0, "FAILED": 0, "SKIPPED": 0}
    for word, number in TALLY.findall(output):
        tally[word.strip()] += int(number)
    if sum(tally.values()) == 0:
        tally[verdict.upper()] = 1
    elif verdict == "Failed" and tally["FAILED"] == 0:
        tally["FAILED"] = 1
    return tally


def main():
    total = {"PASSED": 0, "FAILED": 0, "SKIPPED": 0}
    for build in sys.argv[1:]:
        logs = pathlib.Path(build, "Testing/Temporary")
        log = (logs / "LastTest.log").read_text(errors="replace")
        seen = set()
        for part in re.split(r"^(?=\d+/\d+ Test: )", log, flags=re.M)[1:]:
            name = part.split("\n", 1)[0].split("Test: ", 1)[1]
            seen.add(name)
            verdicts = re.findall(r"^Test (Passed|Failed|Skipped)\.$", part, re.M)
            verdict = verdicts[-1] if verdicts else "Failed"
            tally = count(part, verdict)
            for word in total:
                total[word] += tally[word]
            if tally["FAILED"]:
                print(f"failed: {name} ({build})")
            if tally["SKIPPED"]:
                print(f"skipped: {tally['SKIPPED']} of {name}")
        failed = logs / "LastTestsFailed.log"  # names tests, too, that could not be started
        for name in re.findall(r"^\d+:(\S+)$", failed.read_text() if failed.exists() else "", re.M):
            if name not in seen:
                total["FAILED"] += 1
                print(f"not run: {name} ({build})")
    line = f"{total['PASSED']} passed, {total['FAILED']} failed"
    print(line + (f", {total['SKIPPED']} skipped" if total["SKIPPED"] else ""))
    sys.exit(1 if total["FAILED"] or not total["PASSED"] else 0)


if __name__ == "__main__":
    main()
