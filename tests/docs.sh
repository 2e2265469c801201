#!/usr/bin/env bash
# Keeps the pages true where a program can tell.
#
#     tests/docs.sh                         links lead somewhere; named tests exist; promises name a test
#     tests/docs.sh --settings BIN          docs/settings.md is what the programs in BIN print
#     tests/docs.sh --settings BIN --write  ... and is written so (./dev docs)
#
# A page names a test as `tests/unit/x_test.c` or, one function of it, `tests/unit/x_test.c#name`.
set -euo pipefail
bin=${2:-}
[ -z "$bin" ] || bin=$(cd "$bin" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PROGRAMS=(tandem-router tandem-prefill tandem-decode "tandem up" "tandem generate" "tandem status"
    "tandem kv" "tandem pin" "tandem unpin" "tandem pins" "tandem doctor" "tandem score" "tandem embed" "tandem warm"
    "tandem explain" "tandem drain" "tandem plan" "tandem sim" "tandem tokenize" "tandem detokenize")

broken_links() { # PAGE
    local target
    while IFS= read -r target; do
        [ -e "$(dirname "$1")/$target" ] || echo "$1: no $target"
    done < <(grep -oE '\]\([^)#:]+\)' "$1" | sed 's/^](//; s/)$//' | sort -u)
}

# shellcheck disable=SC2016
broken_tests() { # PAGE
    local path name
    while IFS='#' read -r path name; do
        if [ ! -e "$path" ]; then
            echo "$1: no $path"
        elif [ -n "$name" ] && ! grep -qw -- "$name" "$path"; then
            echo "$1: no $name in $path"
        fi
    done < <(grep -oE '`tests/[A-Za-z0-9_./]*\.[A-Za-z0-9_]+(#[A-Za-z0-9_]+)?`' "$1" | tr -d '\140' | sort -u)
}

# Each row of a table that says what shows a promise names a test.
untested_promises() { # PAGE
    awk -v page="$1" -F ' *[|] *' '
        /^[|] promise [|]/ { table = 1; next }
        !/^[|]/ { table = 0 }
        table && $2 !~ /^-+$/ && $3 !~ /tests\// { print page ": no test is named for: " $2 }' "$1"
}

check_pages() {
    local page found
    found=$(for page in README.md CONTRIBUTING.md SPEED.md docs/*.md; do
        broken_links "$page"
        broken_tests "$page"
        untested_promises "$page"
    done)
    [ -z "$found" ] || { printf '%s\n' "$found"; return 1; }
}

settings_page() {
    local program words text first=1
    cat <<'HEAD'
# Settings

Printed from the programs' tables by `./dev docs`; change the tables, not this page. Each setting is read
from the config file (`--config FILE`, YAML), then from the environment, `some-name` as `TANDEM_SOME_NAME`,
then from the arguments, `--some-name VALUE`. Sizes are written like 64K, 64KiB or 1.5G, times like 200ms or 3s.

HEAD
    for program in "${PROGRAMS[@]}"; do
        read -ra words <<<"$program"
        text=$(timeout 10 "$bin/${words[0]}" "${words[@]:1}" --help-markdown && echo .) || {
            echo "$program --help-markdown failed" >&2
            return 1
        }
        [[ $text == '## '* ]] || { echo "$program --help-markdown begins with no heading" >&2; return 1; }
        [ $first = 1 ] || echo
        first=0
        printf '%s' "${text%.}"
    done
}

check_settings() { # [--write]
    page=$(mktemp)
    trap 'rm -f "$page"' EXIT
    settings_page >"$page"
    if [ "${1:-}" = --write ]; then
        cat "$page" >docs/settings.md
    elif ! cmp -s "$page" docs/settings.md; then
        echo "docs/settings.md is not what the programs in $bin print: run ./dev docs, or build them anew"
        diff "$page" docs/settings.md | head -n 20
        return 1
    fi
}

if [ "${1:-}" = --settings ]; then
    check_settings "${3:-}"
else
    check_pages
fi
