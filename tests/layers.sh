#!/usr/bin/env bash
# Checks who includes whom (docs/architecture.md, section 3) and that cores do no I/O (section 5).
#
#     tests/layers.sh [SOURCE_DIR]      exit 1 and one line per violation
#     tests/layers.sh --self-test       the checker finds what it must find
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# A folder may include its own headers and those of the folders that it stands on, and so on down.
ON='
common
text common
kernels common
kv common
proto common
engine kernels
xfer common
node engine kv xfer proto
prefill_node node
decode_node node
router proto text common
replay kv common
client proto text common
'

# shellcheck disable=SC2016
CHECK='
function stand(top, folder,    n, i, below) {
    if ((top, folder) in allowed) return
    allowed[top, folder] = 1
    n = split(on[folder], below, " ")
    for (i = 1; i <= n; i++) stand(top, below[i])
}
# The line without its comments; a comment may go on over lines.
function code(line,    out, at) {
    out = ""
    while (1) {
        if (in_comment) {
            if (!(at = index(line, "*/"))) return out
            line = substr(line, at + 2)
            in_comment = 0
        }
        if (!match(line, /\/[\/*]/)) return out line
        out = out substr(line, 1, RSTART - 1)
        if (substr(line, RSTART + 1, 1) == "/") return out
        line = substr(line, RSTART + 2)
        in_comment = 1
    }
}
BEGIN {
    n = split(ON, row, "\n")
    for (i = 1; i <= n; i++) if (split(row[i], part, " ")) {
        folder = part[1]
        on[folder] = substr(row[i], length(folder) + 2)
    }
    for (folder in on) stand(folder, folder)
}
FNR == 1 {
    split(FILENAME, part, "/")
    folder = part[1]
    # Cores and decisions take the time as an argument and touch nothing outside.
    pure = FILENAME ~ /[\/_](core|sched|evict|chunk|policy)(_[A-Za-z0-9_]+)?\.[ch]$/
    in_comment = 0
}
/^[ \t]*#[ \t]*include[ \t]*"[a-z_]+\// {
    split($0, part, "\"")
    sub(/\/.*/, "", part[2])
    if (!((folder, part[2]) in allowed))
        say(FILENAME ":" FNR ": " folder " may not include " part[2] "/")
}
pure {
    rest = code($0)
    while (match(rest, /(^|[^A-Za-z0-9_])(clock_now_ns|clock_gettime|gettimeofday|time\(|getrandom|id128_mint|rand\(|random\(|fopen|open\(|socket\(|pthread_|zmq_|event_base|usleep|nanosleep)/)) {
        word = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
        gsub(/[^a-z0-9_]/, "", word)
        say(FILENAME ":" FNR ": " word " in a core: time and I/O belong to the shell")
    }
}
function say(what) { print what; found = 1 }
END { exit found }
'

# check ROOT: prints what is wrong, fails if something is.
check() {
    local folders
    cd "$1"
    mapfile -t folders < <(awk 'NF { print $1 }' <<<"$ON")
    mapfile -t files < <(find "${folders[@]}" -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null | LC_ALL=C sort)
    [ ${#files[@]} -gt 0 ] || { echo "no source files in $1"; return 1; }
    awk -v ON="$ON" "$CHECK" "${files[@]}"
}

# try WANTED PATH TEXT: a tree of this one file is found good, or bad.
try() {
    local got=good
    rm -rf "$tree"
    mkdir -p "$tree/${2%/*}"
    printf '%b' "$3" >"$tree/$2"
    (check "$tree") >/dev/null || got=bad
    [ "$got" = "$1" ] || { echo "$2 should be $1, is found $got"; failed=1; }
}

self_test() {
    failed=0
    tree=$(mktemp -d)
    trap 'rm -rf "$tree"' EXIT
    try bad router/a.c '#include "kv/pool.h"\n'
    try bad common/a.h '# include "text/bpe.h"'
    try bad kernels/a.c 'int x;\n#include "kv/pool.h"'
    try bad client/a.c '#include "router/core.h"'
    try bad node/core.c 'uint64_t now = clock_now_ns();'
    try bad router/sched.c 'int fd = socket(1, 2, 3);'
    try bad node/core_decode.c 'pthread_mutex_lock(&m);'
    try bad node/core.c '/* not\nthis */ x = time(NULL);'
    try bad kernels/cuda/a.cuh '#include "engine/sampler.h"'
    try bad kernels/cuda/a.cu '#include "kv/pool.h"'
    try bad client/a.c '#include "replay/trace.h"'
    try bad replay/a.c '#include "node/core.h"'
    try good replay/a.c '#include "kv/prefix.h"'
    try good node/a.c '#include "kernels/backend.h"\n#include "common/err.h"'
    try bad engine/a.c '#include "kv/pool.h"'
    try bad xfer/a.c '#include "proto/msg.h"'
    try good engine/a.c '#include "kernels/backend.h"\n#include <zmq.h>'
    try good node/a.c '#include "kv/pool.h"'
    try good node/core.c '/* never calls clock_now_ns */ int f(uint64_t now_ns);'
    try good node/core.c '/* nor\n usleep */ // nor zmq_send\nint runtime(int);'
    try good node/shell.c 'uint64_t now = clock_now_ns();'
    try good router/score.c 'uint64_t now = clock_now_ns();'
    return $failed
}

if [ "${1:-}" = --self-test ]; then
    self_test
else
    check "${1:-$here/..}"
fi
