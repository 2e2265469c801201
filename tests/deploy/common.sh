# Sourced by the tests of deploy/: SOURCE (the tree), WORK (a folder that goes away), and words.
# shellcheck shell=bash disable=SC2034
SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
WORK=$(mktemp -d "${TMPDIR:-/tmp}/tandem-deploy-XXXXXX")
trap 'rm -rf "$WORK"' EXIT
# What ./dev test installs from PyPI (tests/deploy/tools.txt).
TOOLS=${TANDEM_TOOLS:-$SOURCE/build-tools/deploy/bin}

fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
skip() { printf 'skipped: %s\n' "$*"; exit 77; }

# tool NAME: its path, from the tools' folder or PATH; the test is skipped where it is in neither.
tool() {
    if [ -x "$TOOLS/$1" ]; then
        TOOL=$TOOLS/$1
    elif ! TOOL=$(command -v "$1"); then
        skip "$1 is not installed: ./dev test installs it where there is a network"
    fi
}

# known_settings BIN PROGRAM...: each name on stdin, like LISTEN_KV, is a setting of one of them.
known_settings() {
    local bin=$1 name program help=''
    shift
    for program in "$@"; do help+=$("$bin/$program" --help); done
    while IFS= read -r name; do
        name=$(tr 'A-Z_' 'a-z-' <<<"$name")
        grep -qwE -- "--(\[no-\])?$name" <<<"$help" || fail "$* have no setting $name"
    done
}
