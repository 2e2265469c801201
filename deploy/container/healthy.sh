#!/usr/bin/env bash
# Asks a program of tandem whether it is well: status 0 when GET PATH on its metrics port says 200. For
# images without curl.
#
#     healthy.sh [HOST:]PORT [PATH]          # /readyz unless told
set -euo pipefail
host=${1%:*} port=${1##*:}
[ "$host" != "$1" ] || host=127.0.0.1
exec 3<>"/dev/tcp/$host/$port"
printf 'GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "${2:-/readyz}" "$host" >&3
IFS= read -r -t 5 line <&3
[[ $line == HTTP/1.?\ 200* ]]
