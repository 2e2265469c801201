#!/usr/bin/env bash
# The Containerfile under hadolint, the compose files against the compose specification's schema; the
# packages in both are those that ./dev and the programs need; names of settings are settings; the health
# check tells 200 from the rest. Mistakes that are planted are found. No image is built.
#
#     tests/deploy/container.sh BIN
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bin=$(cd "$1" && pwd)
container=$SOURCE/deploy/container
tool hadolint && hadolint=$TOOL
tool check-jsonschema && schema=$TOOL

lint() { "$hadolint" --no-color -c "$container/hadolint.yaml" "$1" >"$WORK/said" 2>&1; }
lint "$container/Containerfile" || fail "hadolint: $(cat "$WORK/said")"
sed 's/^WORKDIR .*/RUN cd \/src/' "$container/Containerfile" >"$WORK/Containerfile"
lint "$WORK/Containerfile" && fail "a planted mistake passed hadolint"

for file in "$container"/compose*.yaml; do
    "$schema" --builtin-schema vendor.compose-spec "$file" >"$WORK/said" 2>&1 || fail "$file: $(cat "$WORK/said")"
done
sed 's/stop_grace_period/stop_grace/' "$container/compose.yaml" >"$WORK/compose.yaml"
"$schema" --builtin-schema vendor.compose-spec "$WORK/compose.yaml" >"$WORK/said" 2>&1 &&
    fail "a planted mistake passed the schema"

# The build stage installs what ./dev installs for a build.
build=$(sed -n '/^PACKAGES_BUILD=(/,/)/p' "$SOURCE/dev" | sed 's/^PACKAGES_BUILD=(//; s/)$//')
for package in $build; do
    grep -qE "(^| )$package( |\$)" "$container/Containerfile" || fail "the Containerfile does not install $package"
done

# What the run-time image gets covers what the programs load, and every name in it is a package.
mkdir -p "$WORK/usr/bin"
cp "$bin/tandem" "$bin"/tandem-{router,prefill,decode} "$WORK/usr/bin"
"$container/needs.sh" "$WORK/usr" >"$WORK/packages" || fail "needs.sh"
for package in libzmq5 libjansson4 libprotobuf-c1; do
    grep -qx "$package" "$WORK/packages" || fail "needs.sh leaves out $package: $(cat "$WORK/packages")"
done
xargs dpkg-query -W <"$WORK/packages" >/dev/null || fail "needs.sh names what is no package"
"$container/needs.sh" "$WORK/nothing" 2>/dev/null && fail "needs.sh takes an empty folder"

sed -n 's/^ *TANDEM_\([A-Z_]*\): .*/\1/p' "$container"/compose*.yaml | known_settings "$bin" tandem-router tandem-decode

# The health check against a server that knows one page.
mkdir "$WORK/pages" && touch "$WORK/pages/readyz"
python3 -u -m http.server --bind 127.0.0.1 --directory "$WORK/pages" 0 >"$WORK/port" 2>/dev/null &
server=$!
trap 'kill "$server"; rm -rf "$WORK"' EXIT
for _ in $(seq 100); do
    port=$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$WORK/port")
    [ -z "$port" ] || break
    sleep 0.1
done
[ -n "$port" ] || fail "the server did not start"
"$container/healthy.sh" "$port" || fail "200 is not healthy"
"$container/healthy.sh" "127.0.0.1:$port" /readyz || fail "200 is not healthy, with a host"
"$container/healthy.sh" "$port" /livez && fail "404 is healthy"
kill "$server"
wait "$server" 2>/dev/null || true
"$container/healthy.sh" "$port" 2>/dev/null && fail "no server is healthy"
trap 'rm -rf "$WORK"' EXIT
echo "container: linted; health check tried"
