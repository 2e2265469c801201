#!/usr/bin/env bash
# Compiles one .cu file and keeps what ptxas says of its kernels (see resources.sh); warnings and
# errors are shown.
#
#     compile.sh OBJECT NVCC ARGUMENT...      OBJECT, OBJECT.ptxas
set -euo pipefail
object=$1
shift
said=$(mktemp)
trap 'rm -f "$said"' EXIT
status=0
"$@" -Xptxas -v -o "$object" >"$said" 2>&1 || status=$?
grep '^ptxas info \|bytes stack frame' "$said" >"$object.ptxas" || true
grep -v '^ptxas info \|bytes stack frame' "$said" >&2 || true
exit $status
