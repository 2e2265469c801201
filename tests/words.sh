#!/usr/bin/env bash
# Checks the text of all tracked files: words that promise later work, tabs and trailing blanks,
# missing header guards; says which files and functions have grown long (a warning, no failure).
#
#     tests/words.sh [SOURCE_DIR]
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/..}"

# What git tracks; in a tree without git, every file outside build folders.
listed() {
    git ls-files 2>/dev/null || find . -path './build*' -prune -o -path ./.git -prune -o -type f -printf '%P\n'
}

# The words are written so that this file does not find itself.
# shellcheck disable=SC2016
CHECK='
function say(what) { print what; found = 1 }
function end_of_file() {
    if (name == "") return
    if (is_c && lines > FILE_LINES) print "long: " name ": " lines " lines: is it two modules?"
    if (name ~ /\.(h|cuh)$/ && !guarded && name !~ /(^|\/)body[^\/]*$/)
        say(name ": no include guard (files made to be included several times are named body*.h)")
}
FNR == 1 {
    end_of_file()
    name = FILENAME
    is_c = name ~ /\.(c|h|cu|cuh)$/
    guarded = start = 0
}
{ lines = FNR }
match($0, /(^|[^A-Za-z0-9_])(TO[D]O|FIX[M]E|XX[X]|HA[C]K|not (yet )?imple[m]ented|for n[o]w)($|[^A-Za-z0-9_])/) {
    word = substr($0, RSTART, RLENGTH)
    gsub(/^[^A-Za-z]|[^A-Za-z]$/, "", word)
    say(name ":" FNR ": \"" word "\"")
}
is_c && /\t/ { say(name ":" FNR ": a tab") }
/[ \t]$/ && name !~ /\.txt$/ { say(name ":" FNR ": blanks at the end of the line") }
/^#ifndef TANDEM_|^#pragma once/ { guarded = 1 }
is_c && /^[A-Za-z_].*\)[ \t]*\{?$/ { start = FNR }
is_c && $0 == "}" && start {
    if (FNR - start > FUNCTION_LINES)
        print "long: " name ":" start ": a function of " FNR - start " lines"
    start = 0
}
END { end_of_file(); exit found }
'

mapfile -t files < <(listed | grep -E '(^dev|^\.ci/run|\.(c|h|cu|cuh|py|sh|proto|cmake|md|txt))$' |
    while IFS= read -r file; do [ -f "$file" ] && printf '%s\n' "$file"; done)
[ ${#files[@]} -gt 0 ] || { echo "no files"; exit 1; }
awk -v FILE_LINES=800 -v FUNCTION_LINES=80 "$CHECK" "${files[@]}"
