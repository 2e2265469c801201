#!/usr/bin/env bash
# What ./dev does about packages that are missing: as root it installs them, else through sudo, and without either
# it prints the one command to run. Where nothing is missing it asks nobody, so that it needs no network.
# Package manager and cmake are stand-ins that note how they were called.
# shellcheck disable=SC2015,SC2016
set -euo pipefail
dev=$(dirname "${BASH_SOURCE[0]}")/../../dev
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

stand_in() { # NAME: the script on stdin
    { echo '#!/usr/bin/env bash'; echo "work=$work"; cat; } >"$work/$1"
    chmod +x "$work/$1"
}
stand_in id <<<'echo "$USER_ID"'
stand_in dpkg-query <<<'[[ " $MISSING " != *" ${*: -1} "* ]] && printf installed'
stand_in cmake <<<'echo "cmake $*" >>"$work/called"'
stand_in apt-get <<<'echo "apt-get $*" >>"$work/called"; [ "$NETWORK" = yes ]'
stand_in sudo <<<'[ "$SUDO" = yes ] || exit 1; [ "$1" = -n ] && exit; [ "${1#*=}" = "$1" ] || shift; echo sudo >>"$work/called"; "$@"'

# dev_build USER_ID SUDO NETWORK MISSING: its status, what was called, what it said.
dev_build() {
    : >"$work/called"
    status=0
    USER_ID=$1 SUDO=$2 NETWORK=$3 MISSING=$4 PATH="$work:$PATH" "$dev" build >"$work/out" 2>"$work/err" || status=$?
    called=$(cat "$work/called")
    said=$(cat "$work/err")
}
fail() {
    printf '%s: status %s, called:\n%s\nsaid:\n%s\n' "$1" "$status" "$called" "$said"
    exit 1
}

dev_build 1000 no no ""
[ $status = 0 ] && [[ $called == "cmake --preset release"*"cmake --build"* && $called != *apt-get* ]] ||
    fail "nothing is missing, and there is no network"

dev_build 0 no yes "libzmq3-dev ninja-build"
[ $status = 0 ] && [[ $called == *"install"*" ninja-build libzmq3-dev -qq"*"cmake --build"* && $called != *sudo* ]] ||
    fail "as root"

dev_build 1000 yes yes libzmq3-dev
[ $status = 0 ] && [[ $called == sudo*"apt-get update"*sudo*"apt-get install"*" libzmq3-dev -qq"*"cmake --build"* ]] ||
    fail "through sudo"

dev_build 1000 no yes "libzmq3-dev ninja-build"
[ $status = 1 ] && [ -z "$called" ] && [ "$(grep -c apt-get <<<"$said")" = 1 ] &&
    grep -qx ' *sudo apt-get update && sudo apt-get install .* ninja-build libzmq3-dev' <<<"$said" ||
    fail "neither root nor sudo"

dev_build 0 no no libzmq3-dev
[ $status = 1 ] && [[ $called != *cmake* && $said == *"is there a network?"*libzmq3-dev* ]] || fail "no network"
