#!/usr/bin/env bash
# What each kernel of the plugin takes of an SM, for each architecture: compared with resources.txt,
# so that a change that costs registers or spills is seen in review. Shared memory that a launch asks
# for is not in it; the kernels' comments have that.
#
#     resources.sh check BUILD_FOLDER     exit 1 and the difference; another nvcc: new spills only
#     resources.sh renew BUILD_FOLDER     writes resources.txt
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=${2:?usage: resources.sh check|renew BUILD_FOLDER}
listed=$here/resources.txt

# A line a kernel and architecture, from the objects' .ptxas files.
table() {
    local source name
    for source in "$here"/*.cu; do
        name=$(basename "$source" .cu)
        awk -v file="$name" '
            match($0, /entry function .* for /) {
                split($0, part, "\047")
                kernel = part[2]
                arch = part[4]
            }
            kernel && /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
            kernel && / Used [0-9]+ registers/ {
                registers = shared = 0
                for (i = 1; i < NF; i++) {
                    if ($(i + 1) ~ /^registers/) registers = $i
                    if ($(i + 1) == "bytes" && $(i + 2) ~ /^smem/) shared = $i
                }
                printf "%-7s %9d %6d %5d %6d %5d  %s: %s\n", arch, registers, shared, stack, stores,
                       loads, file, kernel
                kernel = ""
            }' "$build/kernels/cuda/$name.o.ptxas"
    done | c++filt | sed -E 's/: void /: /; s/\(anonymous namespace\)::|\((unsigned int|bool|int)\)//g
                             s/\(([^()]|\([^()]*\))*\)$//' | LC_ALL=C sort -k7 -k1,1
}

compiler() { cat "$build/kernels/cuda/nvcc.version"; }

whole() {
    echo "# Kernels of libtandem_cuda.so, made by kernels/cuda/resources.sh; nvcc $(compiler)"
    printf '#%-6s %9s %6s %5s %6s %5s  %s\n' arch registers shared stack stores loads kernel
    table
}

# Spills that are not listed, or larger than listed: stores and loads in bytes.
spills() {
    table | awk 'FILENAME != "-" { if ($1 !~ /^#/) listed[key($0)] = $5 + $6; next }
        function key(line) {
            sub(/ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+ +/, " ", line)
            return line
        }
        $5 + $6 > listed[key($0)] { print "spills: " $0; found = 1 }
        END { exit found }' "$listed" -
}

case ${1:-} in
renew) whole >"$listed.new" && mv "$listed.new" "$listed" ;;
check)
    [ -f "$build/kernels/cuda/nvcc.version" ] || { echo "skipped: the CUDA plugin is not built here"; exit 77; }
    status=0
    if ! grep -q "; nvcc $(compiler)\$" "$listed"; then
        echo "resources.txt is of another nvcc than $(compiler): only spills are compared"
        spills || status=1
    elif ! whole | diff -u "$listed" -; then
        status=1
    fi
    [ $status = 0 ] || echo "renew the list with: kernels/cuda/resources.sh renew $build"
    exit $status
    ;;
*) echo "usage: resources.sh check|renew BUILD_FOLDER" >&2; exit 2 ;;
esac
