#!/usr/bin/env bash
# Runs benchmarks and shows their figures (./dev bench).
#
#     tests/bench/run.sh [NAME...] [--json | --list]    NAME: of one benchmark, or the beginning of several
#
# A benchmark is a program build/bench/NAME (tandem_bench in cmake/tandem.cmake). It prints one JSON object
# {"figure": value, ...} as the last line of stdout; what it says to people goes to stderr. Figures carry their
# unit at the end of the name: ttft_p50_ms, read_gb_s, of_peak_percent.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

SECONDS_MAX=1800
output=table names=()
for word in "$@"; do
    case $word in
    --json | --list) output=${word#--} ;;
    --*)
        echo "usage: ./dev bench [NAME...] [--json | --list]" >&2
        exit 2
        ;;
    *) names+=("$word") ;;
    esac
done

is_chosen() {
    local name
    [ ${#names[@]} -gt 0 ] || return 0
    for name in "${names[@]}"; do [[ $1 == "$name"* ]] && return 0; done
    return 1
}

show() { # NAME OBJECT
    echo "$1"
    tr -d '{}" ' <<<"$2" | tr ',' '\n' | awk -F: '{ printf "    %-52s %12s\n", $1, $2 }'
}

failed=0 chosen=0 joined=
complain() { echo "bench $1: $2" >&2; failed=1; }

for program in build/bench/*; do
    name=${program##*/}
    if [ ! -f "$program" ] || ! is_chosen "$name"; then continue; fi
    chosen=$((chosen + 1))
    if [ "$output" = list ]; then echo "$name"; continue; fi
    said=$(timeout --foreground "$SECONDS_MAX" "$program") || { complain "$name" "exit status $?"; continue; }
    figures=${said##*$'\n'}
    [[ $figures == \{*\} ]] || { complain "$name" "its last line is no JSON object"; continue; }
    [ "$output" = json ] || show "$name" "$figures"
    joined+="${joined:+, }\"$name\": $figures"
done
if [ $chosen -eq 0 ]; then
    echo "no benchmark ${names[*]}; --list names them" >&2
    exit 2
fi
[ "$output" != json ] || echo "{$joined}"
exit $failed
