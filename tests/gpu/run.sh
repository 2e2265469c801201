#!/usr/bin/env bash
# Tests and measures the CUDA backend on the machine that it is started on, and writes a report.
#
#     tests/gpu/run.sh FOLDER [--report DIR] [--shapes "1b 8b"] [--skip-bench] [--emulated]
#
# FOLDER is a build folder, or one that ./dev gpu pack has filled: it needs no network and no compiler, only a
# driver and CUDA 13's libcudart and libcublasLt (CUDA_HOME, the loader's path or PyTorch's own). The report is
# DIR/report.md (here: gpu-report/), beside it the logs and figures. Exit 1 if a test failed.
# --emulated tries all of this on the emulator, in toy sizes: what it prints are no figures of any device.
set -euo pipefail

usage() { sed -n '2,10p' "$0" | cut -c3- >&2; exit 2; }

report=gpu-report shapes="1b 8b" bench=yes emulated=
[ $# -gt 0 ] || usage
[ -d "$1" ] || { echo "gpu: no folder $1: ./dev gpu builds one, ./dev gpu pack fills one" >&2; exit 2; }
folder=$(cd "$1" && pwd)
shift
while [ $# -gt 0 ]; do
    case $1 in
    --report) report=$2; shift ;;
    --shapes) shapes=$2; shift ;;
    --skip-bench) bench= ;;
    --emulated) emulated=yes shapes=toy ;;
    *) usage ;;
    esac
    shift
done
mkdir -p "$report"
report=$(cd "$report" && pwd)
: >"$report/report.md"

# --- where the libraries are ---

find_libraries() {
    local place torch
    torch=$(python3 -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' 2>/dev/null || true)
    for place in "${CUDA_HOME:-/usr/local/cuda}/lib64" "$torch"/nvidia/cu13/lib "$torch"/nvidia/cublas/lib \
        "$torch"/nvidia/cuda_runtime/lib; do
        [ -d "$place" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$place
    done
    [ -d "$folder/lib-system" ] && LD_LIBRARY_PATH=$folder/lib-system${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
}

say() { printf '%s\n' "$*" | tee -a "$report/report.md"; }

# --- tests ---

failed=0
run_test() { # NAME COMMAND...
    local name=$1 log=$report/$1.log status=0
    shift
    timeout 900 "$@" >"$log" 2>&1 || status=$?
    case $status in
    0) say "| $name | passed |" ;;
    77) say "| $name | skipped: $(tail -n 1 "$log") |" ;;
    *)
        failed=$((failed + 1))
        say "| $name | **failed** ($status): $(grep -m 1 -E 'ERROR|error|Failure' "$log" | tr '|' ' ' || tail -n 1 "$log") |"
        ;;
    esac
}

run_tests() {
    local test suffix=
    [ -z "$emulated" ] || suffix=_emulated
    say ""
    say "## Tests"
    say ""
    say "| test | result |"
    say "| --- | --- |"
    run_test backend_any "$folder/tests/backend_any_test" cuda
    for test in rows product attend sample lt upload; do
        [ -x "$folder/tests/cuda_$test$suffix" ] && run_test "cuda_$test" "$folder/tests/cuda_$test$suffix"
    done
    run_test golden "$folder/tests/golden_test" cuda ${emulated:+32}
}

# Where it works: it refuses some virtual machines.
run_sanitizer() {
    local tool
    tool=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
    if [ -n "$emulated" ]; then return; fi
    if [ ! -x "$tool" ]; then say "| compute-sanitizer | not measured: it is not on this machine |"; return; fi
    if ! "$tool" --tool memcheck "$folder/tests/backend_any_test" cuda >"$report/sanitizer-probe.log" 2>&1 &&
        grep -q "Device not supported" "$report/sanitizer-probe.log"; then
        say "| compute-sanitizer | not measured: it does not support this device here |"
        return
    fi
    for check in memcheck racecheck synccheck initcheck; do
        run_test "sanitizer_$check" "$tool" --tool "$check" --error-exitcode 1 "$folder/tests/backend_any_test" cuda
    done
}

# --- figures ---

table() { # JSON
    tr -d '{}" ' <<<"$1" | tr ',' '\n' | awk -F: 'NF == 2 { printf "| %s | %s |\n", $1, $2 }' | tee -a "$report/report.md"
}

run_bench() { # NAME COMMAND...
    local name=$1 said status=0
    shift
    say ""
    say "## $name"
    say ""
    said=$(timeout 1500 "$@" 2>"$report/$name.log") || status=$?
    printf '%s\n' "${said##*$'\n'}" >"$report/$name.json"
    grep '^gpu_bench' "$report/$name.log" | sed 's/^gpu_bench: /    /' | tee -a "$report/report.md" || true
    if [ "$status" -ne 0 ]; then
        failed=$((failed + 1))
        say "**failed** ($status): $(tail -n 1 "$report/$name.log")"
        return
    fi
    say ""
    say "| figure | value |"
    say "| --- | --- |"
    table "${said##*$'\n'}"
    grep 'not measured' "$report/$name.log" | tee -a "$report/report.md" || true
}

run_benches() {
    local shape program=$folder/bench/gpu
    [ -z "$emulated" ] || program=$folder/bench/gpu_emulated
    for shape in $shapes; do
        run_bench "$shape" "$program" --shape "$shape"
        run_bench "$shape-deterministic" "$program" --shape "$shape" --deterministic
        if [ -n "$emulated" ]; then continue; fi
        if python3 -c 'import torch' 2>/dev/null; then
            run_bench "$shape-torch" python3 "$folder/torch_side.py" "$shape"
        else
            say "PyTorch is not on this machine: not measured."
        fi
    done
}

# --- all ---

find_libraries
[ -z "$emulated" ] || export TANDEM_PLUGIN_DIR=$folder/tests/fake
say "# The CUDA backend on this machine"
say ""
say "$(date -u +%Y-%m-%d), $(uname -srm)"
if [ -n "$emulated" ]; then
    say "The emulator: it shows that these commands work. Nothing here is a figure of a device."
else
    say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi')"
fi
run_tests
run_sanitizer
[ -z "$bench" ] || run_benches
say ""
say "$failed failed"
[ "$failed" -eq 0 ]
