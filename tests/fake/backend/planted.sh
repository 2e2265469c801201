#!/usr/bin/env bash
# Whether tests find a mistake that is planted in what they test (plants.txt, race_plants.txt). Run in build/tests.
#
#     planted.sh NAME PROGRAM/TEST     exit 0 if the test fails with NAME planted, in some order of threads
#     planted.sh none PROGRAM/TEST...  exit 0 if all tests pass in all orders with nothing planted
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$1
shift
export TANDEM_PLANT=$name TANDEM_PLUGIN_DIR=$PWD/planted
said=$(mktemp)
trap 'rm -f "$said"' EXIT

# Tests of kernels and host files are built with the mistakes, and choose orders of threads themselves;
# others take the planted plugin.
orders_of() {
    [ -x "planted/$1" ] && echo own || echo seed=1 seed=2,stream_delay_us=200 stream_delay_us=1000
}

# run PROGRAM TEST ORDER
run() {
    local program=planted/$1 arguments=()
    [ -x "$program" ] || program=./$1 arguments=(cuda)
    [ "$3" = own ] || export TANDEM_FAKE_CUDA=$3
    TANDEM_TEST=$2 "$program" "${arguments[@]}" >"$said" 2>&1
}

for test in "$@"; do
    for order in $(orders_of "${test%/*}"); do
        if run "${test%/*}" "${test#*/}" "$order"; then
            grep -q '\[  *OK \]' "$said" || { echo "there is no $test"; exit 1; }
            continue
        fi
        grep -m 1 'fake cuda' "$said" || true
        grep -m 1 -e '\[  ERROR ' -e Sanitizer: "$said" || { cat "$said"; echo "$test is not even run"; exit 1; }
        [ "$name" != none ] || { echo "$test fails ($order) with nothing planted"; exit 1; }
        echo "found ($order)"
        exit 0
    done
done
[ "$name" = none ] || { echo "$name is not found by $*"; exit 1; }

root=$here/../../..
mapfile -t planted < <(grep -oh 'PLANTED("[a-z0-9_]*")' "$root"/kernels/cuda/* "$root"/xfer/device/{ipc,nccl,reaper}.c | cut -d '"' -f 2)
for name in "${planted[@]}"; do
    grep -q "^$name " "$here"/*plants.txt || { echo "$name is in no list of plants"; exit 1; }
done
