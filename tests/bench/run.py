#!/usr/bin/env python3
"""Runs benchmarks and shows their figures (./dev bench).

    tests/bench/run.py [NAME...] [--json]      NAME: of one benchmark, or the beginning of several
    tests/bench/run.py --list

A benchmark is a program build/bench/NAME (tandem_bench in cmake/tandem.cmake) or a script
tests/bench/NAME.bench.py or .bench.sh. It prints one JSON object {figure: value} as the last line of stdout;
whatever it says to people goes to stderr. Figures carry their unit at the end of the name:
ttft_p50_ms, read_gb_s, of_peak_percent.
"""
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SECONDS_MAX = 1800


def benchmarks():
    found = {}
    for path in sorted((ROOT / "build/bench").glob("*")):
        if os.access(path, os.X_OK) and path.is_file():
            found[path.name] = [str(path)]
    for path in sorted((ROOT / "tests/bench").glob("*.bench.*")):
        runner = {".py": [sys.executable], ".sh": ["bash"]}[path.suffix]
        found[path.name.split(".")[0]] = runner + [str(path)]
    return found


def run(command):
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=SECONDS_MAX)
    lines = done.stdout.strip().split("\n")
    if done.returncode != 0:
        raise RuntimeError(f"exit status {done.returncode}")
    figures = json.loads(lines[-1])
    if not isinstance(figures, dict):
        raise RuntimeError("its last line is no JSON object")
    return figures


def table(name, figures):
    width = max((len(f) for f in figures), default=0)
    print(name)
    for figure, value in figures.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"    {figure:<{width}}  {text:>12}")
    sys.stdout.flush()


def main():
    known, wanted = benchmarks(), [a for a in sys.argv[1:] if not a.startswith("--")]
    options = [a for a in sys.argv[1:] if a.startswith("--")]
    if set(options) - {"--json", "--list"}:
        sys.exit("usage: ./dev bench [NAME...] [--json | --list]")
    if "--list" in options:
        print("\n".join(known))
        return 0
    chosen = [n for n in known if not wanted or any(n.startswith(w) for w in wanted)]
    if not chosen:
        print(f"no benchmark {' '.join(wanted)}; there are: {' '.join(known)}", file=sys.stderr)
        return 2
    results, failed = {}, False
    for name in chosen:
        try:
            results[name] = run(known[name])
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as problem:
            print(f"bench {name}: {problem}", file=sys.stderr)
            failed = True
            continue
        if "--json" not in options:
            table(name, results[name])
    if "--json" in options:
        print(json.dumps(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
