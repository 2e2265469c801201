#!/usr/bin/env bash
# Fills a folder with all that run.sh needs on a machine with a GPU, without network, compiler or packages.
#
#     tests/gpu/pack.sh BUILD FOLDER           then, there: FOLDER/run.sh FOLDER
#
# On a machine that gives a command ten minutes: FOLDER/run.sh FOLDER --seconds 560 --report DIR --archive.
#
# It lies as a build folder does (bin/, gpu/, tests/, lib/tandem/), and besides has the data of the source tree
# (source/) and the shared libraries of this system (lib-system/) but glibc's, CUDA's and NCCL's. glibc must be as new
# there as the number that is said at the end. FOLDER must be new or a pack, which is replaced.
set -euo pipefail

MIB_MAX=44 # what takes it along may be held to 64, with a source tree beside it
TESTS=(backend_any_test engine_device_test golden_test)
SOURCES=(deploy/demo.sh examples/demo_model/model tests/golden/data)

[ $# -eq 2 ] || { sed -n '4p' "$0" | cut -c3- >&2; exit 2; }
build=$(cd "$1" && pwd)
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
say() { printf '%s\n' "$*" >&2; }
die() { say "pack: $*"; exit 1; }

[ -f "$build/lib/tandem/libtandem_cuda.so" ] || die "$build has no CUDA plugin: configure with TANDEM_CUDA=ON"
if [ -e "$2" ]; then
    [ -z "$(ls -A "$2")" ] || [ -f "$2/revision" ] || die "$2 is no empty folder and no pack"
    rm -rf "$2"
fi
mkdir -p "$2"/{bin,gpu,tests/fake,lib/tandem,lib-system,source}
folder=$(cd "$2" && pwd)

cp "$build"/bin/tandem* "$folder/bin"
cp "$build"/gpu/* "$folder/gpu"
cp "${TESTS[@]/#/$build/tests/}" "$folder/tests"
cp "$build"/tests/fake/lib*.so "$folder/tests/fake"
cp "$build"/lib/tandem/libtandem_*.so "$folder/lib/tandem"
cp "$source"/tests/gpu/{run.sh,links.sh,torch_side.py} "$folder"
for path in "${SOURCES[@]}"; do
    mkdir -p "$folder/source/$(dirname "$path")"
    cp -r "$source/$path" "$folder/source/$path"
done
# The stories, where they are: golden_test says that it skips them elsewhere.
stories=${TANDEM_SHARED_DATA:-$source/../shared/data}/models/stories260K
if [ -d "$stories" ]; then
    mkdir -p "$folder/shared/data/models"
    cp -r "$stories" "$folder/shared/data/models"
fi
git -C "$source" describe --always --dirty >"$folder/revision" 2>/dev/null || echo unknown >"$folder/revision"

mapfile -t binaries < <(find "$folder"/{bin,gpu,tests,lib} -type f)
strip --strip-unneeded "${binaries[@]}"

needed() { # FILE...: paths of the shared libraries that come along
    ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
        grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|libcuda|libcudart|libcublas|libcublasLt|libnccl)\.so'
}
needed "${binaries[@]}" | xargs cp -Lt "$folder/lib-system"
mkdir "$folder/lib-system/else" # where the system has none of its own
for file in libstdc++.so.6 libgcc_s.so.1; do
    [ ! -e "$folder/lib-system/$file" ] || mv "$folder/lib-system/$file" "$folder/lib-system/else"
done

mib=$(($(du -sk "$folder" | cut -f1) / 1024 + 1))
glibc=$(objdump -T "${binaries[@]}" "$folder"/lib-system/*.so* "$folder"/lib-system/else/* | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -n 1)
[ "$mib" -le "$MIB_MAX" ] || die "$folder has $mib MiB; $MIB_MAX are the most"
say "$folder: $mib MiB, for glibc ${glibc#GLIBC_} and later; take it along and run FOLDER/run.sh FOLDER"
