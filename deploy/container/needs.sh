#!/usr/bin/env bash
# Prints the packages, one a line, whose shared libraries the programs and plugins below PREFIX need. Those
# that no package owns (CUDA's, our own) are left out; one that is not found at all is an error.
#
#     deploy/container/needs.sh PREFIX
set -euo pipefail
prefix=${1:?where the programs are installed}

objects() {
    find "$prefix/bin" "$prefix"/lib* -type f \( -perm -u+x -o -name '*.so*' \) 2>/dev/null |
        while IFS= read -r file; do [ "$(head -c 4 "$file" | tail -c 3)" = ELF ] && echo "$file"; done
}

mapfile -t objects < <(objects || true)
[ ${#objects[@]} -gt 0 ] || { echo "needs.sh: no programs in $prefix" >&2; exit 1; }
libraries=$(LD_LIBRARY_PATH=$(find "$prefix" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:) ldd "${objects[@]}")
# libcuda.so.1 is the driver's, which the host brings at run time.
missing=$(awk '/not found/ && $1 != "libcuda.so.1" { print $1 }' <<<"$libraries" | sort -u)
[ -z "$missing" ] || { echo "needs.sh: not found: $missing" >&2; exit 1; }
awk '$2 == "=>" && $3 ~ /^\// { print $3 }' <<<"$libraries" | sort -u |
    while IFS= read -r library; do
        # /lib may be /usr/lib: packages know one of the two names.
        real=$(realpath "$library")
        { dpkg-query -S "$library" "$real" "${real#/usr}" "/usr$library" 2>/dev/null || true; }
    done | sed -n 's/^\([^:,]*\)[:,].*/\1/p' | grep -vE '^(cuda|libcu|libnccl|diversion)' | sort -u
