#!/usr/bin/env bash
# Tests and measures the CUDA backend on the machine that it is started on, and writes a report.
#
#     tests/gpu/run.sh FOLDER [--seconds N] [--report DIR] [--archive] [--shapes "1b 8b"] [--scratch DIR]
#                      [--parts "tests cluster bench torch links deterministic sanitizer"] [--emulated]
#
# FOLDER is a build folder, or one that ./dev gpu pack has filled: it needs no network and no compiler, only a
# driver and CUDA 13's libcudart and libcublasLt (of CUDA_HOME, of the loader's path, or those that PyTorch
# brings), and libnccl for the link of that name. The report is DIR/report.md (here: gpu-report/), beside it
# logs/, which has the figures too; with --archive logs.tar.gz is all that is beside it. Both are whole after
# every test. --parts runs some parts only. Models are made in the scratch folder (the temporary one).
# --seconds: all of it ends by then. Parts run in the order above, each as far as time is left for it; what was
# cut off or not begun is said and is no failure. Exit status 1: something failed.
# --emulated tries all of this on the emulator, in toy sizes; what it prints are no figures of any device.
set -euo pipefail

usage() { sed -n '4,5p' "$0" | cut -c3- >&2; exit 2; }

report=gpu-report parts="tests cluster bench torch links deterministic sanitizer" shapes="1b 8b"
scratch=${TMPDIR:-/tmp} seconds=0 archive='' emulated=''
[ $# -gt 0 ] || usage
[ -d "$1" ] || { echo "gpu: no folder $1: ./dev gpu builds one, ./dev gpu pack fills one" >&2; exit 2; }
folder=$(cd "$1" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
shift
while [ $# -gt 0 ]; do
    case $1 in
    --emulated) emulated=yes shapes=toy parts=${parts/ sanitizer/} ;;
    --archive) archive=yes ;;
    --report | --parts | --shapes | --scratch | --seconds)
        [ $# -gt 1 ] || usage
        declare "${1#--}=$2"
        shift
        ;;
    *) usage ;;
    esac
    shift
done
mkdir -p "$report"
report=$(cd "$report" && pwd)
: >"$report/report.md"
logs=$report/logs
[ -z "$archive" ] || logs=$(mktemp -d "$scratch/tandem-gpu-logs-XXXXXX")
mkdir -p "$logs"

# A pack has the sources' data in it; a build folder lies in its source tree.
if [ -d "$folder/source" ]; then
    export TANDEM_SOURCE_DIR=$folder/source TANDEM_BIN_DIR=$folder/bin
else
    TANDEM_SOURCE_DIR=$(cd "$here/../.." && pwd)
fi

failed=0 cut=0
say() { printf '%s\n' "$*" | tee -a "$report/report.md"; }
fail() { failed=$((failed + 1)); say "$@"; }
wants() { [[ " $parts " == *" $1 "* ]]; }

# --- time ---

KILL_SECONDS=10 # from a program's TERM to its KILL
LEAST_SECONDS=5

# What a program that may take so many seconds gets of those that are left; 0: too little to begin.
seconds_of() {
    local left=$((seconds - SECONDS - KILL_SECONDS))
    [ "$seconds" -gt 0 ] || left=$1
    [ "$left" -ge "$LEAST_SECONDS" ] || left=0
    echo $((left < $1 ? left : $1))
}
in_time() { # SECONDS COMMAND...: 124: it was not done by then
    local status=0 after=$1
    shift
    timeout -k "$KILL_SECONDS" "$after" "$@" || status=$?
    [ "$status" -ne 137 ] || status=124
    return $status
}
cut_off() { cut=$((cut + 1)); say "$@"; }

keep_logs() {
    [ -z "$archive" ] || tar -C "$(dirname "$logs")" -czf "$report/logs.tar.gz" "$(basename "$logs")" || true
}
scratch_models=()
clean_up() {
    keep_logs
    rm -rf "${scratch_models[@]}"
    [ -z "$archive" ] || rm -rf "$logs"
}
trap clean_up EXIT
trap 'say "Ended from outside: what is above was done."; exit 130' INT TERM

# --- libraries ---

# For our programs only: Python has its own.
libraries=${LD_LIBRARY_PATH:-}
find_libraries() {
    local file place places=("${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/local/cuda-13*/lib64) nvidia
    while IFS= read -r nvidia; do
        places+=("$nvidia"/cu13/lib "$nvidia"/*/lib)
    done < <(python3 -c 'import importlib.util as u
for place in u.find_spec("nvidia").submodule_search_locations: print(place)' 2>/dev/null || true)
    ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1' || places+=(/usr/local/nvidia/lib64 /usr/lib/wsl/lib)
    for file in libcudart.so.13 libcublasLt.so.13 libnccl.so.2 libcuda.so.1; do
        for place in "${places[@]}"; do
            [ -e "$place/$file" ] || continue
            [[ ":$libraries:" == *":$place:"* ]] || libraries=${libraries:+$libraries:}$place
            say "$file: $(basename "$(readlink -f "$place/$file")") in $place"
            break
        done
    done
    [ -d "$folder/lib-system" ] || return 0
    libraries=$folder/lib-system${libraries:+:$libraries}
    # CUDA's own libraries may want this system's, which is newer.
    ldconfig -p 2>/dev/null | grep -q 'libstdc++\.so\.6' || libraries=$libraries:$folder/lib-system/else
}

with_libraries() { LD_LIBRARY_PATH=$libraries "$@"; }

# --- tests ---

# Lines of a table: passed with how many, skipped, or failed with which, and the first line that says why.
run_test() { # NAME SECONDS COMMAND...
    local name=$1 most=$2 log=$logs/$1.log status=0 given why which
    shift 2
    given=$(seconds_of "$most")
    [ "$given" -gt 0 ] || { cut_off "| $name | not run: no time was left |"; return; }
    with_libraries in_time "$given" "$@" >"$log" 2>&1 || status=$?
    keep_logs
    [ "$status" -ne 124 ] || [ "$given" -eq "$most" ] || { cut_off "| $name | cut off after $given s |"; return; }
    case $status in
    0) say "| $name | passed, $(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1) tests |" ;;
    77) say "| $name | skipped: $(tail -n 1 "$log" | tr '|' ' ') |" ;;
    124) fail "| $name | **failed**: not done after $most s |" ;;
    *)
        why=$(grep -m 1 -E '^ERROR|^\[ +ERROR +\] ---|error|Failure|Could not' "$log" || tail -n 1 "$log")
        which=$(sed -n 's/^\[  FAILED  \] \([a-z][a-z0-9_]*\)$/\1/p' "$log" | sort -u | tr '\n' ' ')
        fail "| $name | **failed** ($status): $which${which:+- }${why//|/ } |"
        ;;
    esac
}

kernel_tests() { find "$folder/gpu" -name 'cuda_*' -printf '%f\n' | sort; }

run_tests() {
    local name
    say ""
    say "## Tests"
    say ""
    say "| test | result |"
    say "| --- | --- |"
    if [ -z "$emulated" ]; then
        for name in $(kernel_tests); do
            run_test "$name" 90 "$folder/gpu/$name"
        done
    fi
    run_test backend_any 150 "$folder/tests/backend_any_test" cuda
    run_test engine_device 100 "$folder/tests/engine_device_test" cuda
    if [ -z "$emulated" ]; then
        run_test golden 200 "$folder/tests/golden_test" cuda
    else # takes long on the emulator, and ctest has it
        run_test golden_cpu 300 "$folder/tests/golden_test" cpu 32
    fi
}

sanitize() { # CHECK NAME COMMAND...
    local check=$1 name=$2
    shift 2
    run_test "${check}_$name" 300 "$sanitizer" --tool "$check" --report-api-errors no --error-exitcode 86 "$@"
}

# Where it works: it refuses some virtual machines.
run_sanitizer() {
    local sanitizer name check
    sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
    say ""
    say "## compute-sanitizer"
    say ""
    if [ ! -x "$sanitizer" ]; then
        say "Not run: it is not on this machine."
        return
    fi
    if [ "$(seconds_of 60)" -lt 60 ]; then
        cut_off "Not run: no time was left."
        return
    fi
    with_libraries in_time "$(seconds_of 120)" "$sanitizer" "$folder/gpu/cuda_upload" >"$logs/sanitizer.log" 2>&1 || true
    if grep -q "Device not supported" "$logs/sanitizer.log"; then
        say "Not run: it says that it does not support the device here."
        return
    fi
    say "| check | result |"
    say "| --- | --- |"
    for check in memcheck racecheck synccheck initcheck; do
        for name in $(kernel_tests); do
            sanitize "$check" "$name" "$folder/gpu/$name"
        done
        [ "$check" != memcheck ] || sanitize memcheck backend_any "$folder/tests/backend_any_test" cuda
    done
}

# --- a cluster ---

# Router, prefill and decode node as processes of their own, all on GPU 0.
run_cluster() {
    local log=$logs/cluster.log demo=$TANDEM_SOURCE_DIR/deploy/demo.sh status=0 given
    export BIN=$folder/bin MODEL=$TANDEM_SOURCE_DIR/examples/demo_model/model DEVICE=cuda
    [ -z "$emulated" ] || export TOKENS=6 BLOCKS=64
    say ""
    say "## A cluster: tandem up --device cuda"
    say ""
    given=$(seconds_of 200)
    [ "$given" -gt 0 ] || { cut_off "Not run: no time was left."; return; }
    with_libraries in_time "$given" bash "$demo" "ROMEO:" >"$log" 2>&1 || status=$?
    keep_logs
    [ "$status" -eq 0 ] || fail "**failed** ($status): $(tail -n 1 "$log")"
    [ "$(grep -c '^[pd]0 .* cuda ' "$log")" -eq 2 ] || fail "**failed**: not both nodes say that they compute on cuda"
    say '```'
    sed -n '/^node \|^[pd]0 /p; /^choice 0/,/^  all/p' "$log" | tee -a "$report/report.md"
    say '```'
}

# --- figures ---

figures() { # FILE: lines of name and value; PyTorch's have our names
    [ -e "$1" ] || return 0
    tr -d '{}" ' <"$1" | tr ',' '\n' | awk -F: 'NF == 2 { sub(/^torch_/, "", $1); print $1, $2 }'
}

# The figures that a program has told in its log, as JSON: of one that did not come to its end, too.
json_of() { # LOG
    awk 'NF == 2 && $1 ~ /^[a-z][a-z0-9_]*$/ && $2 ~ /^-?[0-9.]+(e[-+][0-9]+)?$/ {
            printf "%s\"%s\": %s", count++ ? ", " : "{", $1, $2
        }
        END { print count ? "}" : "{}" }' "$1"
}

run_figures() { # NAME COMMAND...
    local name=$1 status=0 given
    shift
    given=$(seconds_of 1500)
    [ "$given" -gt 0 ] || { cut_off "$name: not measured: no time was left"; return; }
    in_time "$given" "$@" >/dev/null 2>"$logs/$name.log" || status=$?
    json_of "$logs/$name.log" >"$logs/$name.json"
    keep_logs
    sed -n 's/^gpu_bench: cuda //p; /^PyTorch /p' "$logs/$name.log" | tee -a "$report/report.md"
    grep -E '^[a-z0-9_]*: not measured' "$logs/$name.log" | tee -a "$report/report.md" || true
    case $status in
    0) : >"$logs/$name.whole" ;;
    124) cut_off "$name: cut off after $given s: figures are missing" ;;
    *) fail "$name **failed** ($status): $(tail -n 1 "$logs/$name.log")" ;;
    esac
    say ""
}

# All figures of a shape; beside those of another run, what both have.
print_figures() { # SHAPE [OTHER NAME_OF_OTHER]
    say ""
    say "| figure | tandem |${2:+ $3 |}"
    say "| --- | --- |${2:+ --- |}"
    awk -v both="${2:-}" '!($1 in seen) { seen[$1]; name[++count] = $1 }
        { value[$1, column] = $2 }
        END {
            for (i = 1; i <= count; i++)
                if (!both)
                    print "| " name[i] " | " value[name[i], 1] " |"
                else if ((name[i], 1) in value && (name[i], 2) in value)
                    print "| " name[i] " | " value[name[i], 1] " | " value[name[i], 2] " |"
        }' column=1 <(figures "$logs/$1.json") column=2 <([ -z "${2:-}" ] || figures "$logs/$2.json") |
        tee -a "$report/report.md"
}

# What the worst of all figures that fit a pattern is held to.
aim() { # SHAPE WHAT PATTERN least|most LIMIT UNIT
    local worst verdict
    worst=$(figures "$logs/$1.json" | awk -v pattern="^$3\$" -v most="$4" '
        $1 ~ pattern && (!count++ || (most == "most" ? $2 > worst : $2 < worst)) { worst = $2 }
        END { if (count) print worst }')
    if [ -z "$worst" ]; then
        verdict="not measured"
        [ -z "$emulated" ] || [ "$cut" -gt 0 ] || failed=$((failed + 1))
    elif [ -n "$emulated" ]; then
        verdict="no figure of a device"
    elif awk -v most="$4" -v got="$worst" -v limit="$5" \
        'BEGIN { exit !(most == "most" ? got + 0 <= limit + 0 : got + 0 >= limit + 0) }'; then
        verdict=reached
    else
        verdict="**not reached**"
    fi
    say "| $2 | $4 $5 $6 | ${worst:--} | $verdict |"
}

print_aims() { # SHAPE
    local long='(2048|8192|32768)' batch='32_behind_8192'
    [ "$1" != toy ] || long=24 batch=3_behind_40
    say ""
    say "| aim | wanted | worst | |"
    say "| --- | --- | --- | --- |"
    aim "$1" "decode, batch 1: share of copy bandwidth" 'decode_1_behind_[0-9]+_of_copy_percent' least 85 %
    aim "$1" "prefill from 2k tokens: share of matmul peak" "prefill_${long}_of_peak_percent" least 60 %
    aim "$1" "decode attention, 32 behind 8192: share of copy" "attend_decode_${batch}_of_copy_percent" least 85 %
    aim "$1" "ready after the weights' copy" start_rest_ms most 2000 ms
    aim "$1" "host gap between decode steps" 'decode_[0-9]+_behind_[0-9]+_host_gap_us' most 10 us
    say ""
}

# So that no figure gets lost.
check_families() { # SHAPE
    local family
    for family in copy_gb_s peak_tflop_s launch_us prefill_.*_tflop_s decode_.*_tokens_s \
        attend_decode_.*_gb_s attend_prefill_.*_tflop_s rms_norm_.* silu_mul_.* rope_append_.* \
        products_.*_tflop_s draw_.*_us step_recorded_host_us step_between_us start_ms; do
        figures "$logs/$1.json" | grep -qE "^$family [-0-9.]" || fail "**missing**: $family of $1"
    done
}

# A model of its own, which goes even if the program is killed.
run_program() { # NAME SHAPE [ARGUMENT...]
    local models name=$1 shape=$2
    shift 2
    models=$(mktemp -d "$scratch/tandem-gpu-XXXXXX")
    scratch_models+=("$models")
    run_figures "$name" env "LD_LIBRARY_PATH=$libraries" "$program" --shape "$shape" --folder "$models" "$@"
    rm -rf "$models"
}

run_bench() { # SHAPE
    run_program "$1" "$1"
    [ -e "$logs/$1.json" ] || return 0
    print_aims "$1"
    print_figures "$1"
    [ ! -e "$logs/$1.whole" ] || check_families "$1"
}

run_deterministic() { # SHAPE
    run_program "$1-deterministic" "$1" --deterministic
    [ -e "$logs/$1-deterministic.json" ] || return 0
    print_figures "$1" "$1-deterministic" deterministic
}

run_torch() { # SHAPE
    if [ -n "$emulated" ]; then
        say "PyTorch is not compared on the emulator."
    elif python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        run_figures "$1-torch" python3 "$here/torch_side.py" "$1"
        print_figures "$1" "$1-torch" PyTorch
    else
        say "PyTorch that sees a GPU is not on this machine: not measured."
    fi
}

run_shapes() { # PART TITLE
    local shape
    wants "$1" || return 0
    # On the emulator most of the time would go into a big pool.
    [ -z "$emulated" ] || export TANDEM_FAKE_CUDA=device_bytes=134217728
    for shape in $shapes; do
        say ""
        say "## $shape$2"
        say ""
        "run_$1" "$shape"
    done
    unset TANDEM_FAKE_CUDA
}

# shellcheck source=tests/gpu/links.sh
. "$here/links.sh"

# --- all ---

say "# The CUDA backend and the links between GPUs on this machine"
say ""
say "$(date -u +%Y-%m-%d), $(uname -srm), tandem $(cat "$folder/revision" 2>/dev/null ||
    git -C "$TANDEM_SOURCE_DIR" describe --always --dirty 2>/dev/null || echo of unknown revision)"
if [ -n "$emulated" ]; then
    program=$folder/gpu/bench_emulated
    export TANDEM_PLUGIN_DIR=$folder/tests/fake
    say "The emulator: it shows that these commands work. Nothing here is a figure of a device."
else
    program=$folder/gpu/bench
    say "$(nvidia-smi --query-gpu=name,driver_version,memory.total,ecc.mode.current,mig.mode.current,power.limit \
        --format=csv,noheader 2>/dev/null || echo "no nvidia-smi")"
fi
say "$(nproc) CPUs, $(sed -n 's/^MemTotal: *\([0-9]*\)[0-9]\{6\} kB/\1 GB/p' /proc/meminfo) of memory, $(df -h --output=avail "$scratch" | tail -n 1 | tr -d ' ') free in $scratch"
find_libraries
if ! with_libraries "$program" --probe >"$logs/probe.log" 2>&1; then
    say ""
    say "No GPU can be used here, nothing was tested or measured: $(tail -n 1 "$logs/probe.log")"
    exit 1
fi
say "$(sed -n 's/^gpu_bench: //p' "$logs/probe.log")"
if wants tests; then run_tests; fi
if wants cluster; then run_cluster; fi
run_shapes bench ""
run_shapes torch ", PyTorch"
if wants links; then run_links; fi
run_shapes deterministic ", deterministic"
if wants sanitizer; then run_sanitizer; fi
say ""
say "$failed failed, $cut cut off or not run for want of time"
[ "$failed" -eq 0 ]
