#!/usr/bin/env bash
# A router, a prefill and a decode node with a network each, as containers and pods have one, that listen on
# all their addresses and say so: each finds the others. Network namespaces, without root.
#
#     tests/deploy/apart.sh BIN
set -euo pipefail
if [ "${APART:-}" != inside ]; then
    # Whatever is started in here ends with it.
    into=(unshare --map-root-user --net --pid --fork --kill-child --mount --mount-proc)
    if ! "${into[@]}" ip link set lo up 2>/dev/null; then
        echo "skipped: no network namespaces for this user, or no ip (iproute2)"
        exit 77
    fi
    APART=inside exec "${into[@]}" "$0" "$@"
fi
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bin=$(cd "$1" && pwd)
unset TANDEM_ROUTER
export TANDEM_MODEL=$SOURCE/examples/demo_model/model TANDEM_CACHE=$WORK/cache TANDEM_TRUSTED_NETWORK=true

# until COMMAND...: it succeeds within 30 s.
until_it() {
    for _ in $(seq 300); do
        ! "$@" || return 0
        sleep 0.1
    done
    fail "in vain: $*: $(tail -n 5 "$WORK"/*.log)"
}
is_apart() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
has_nodes() { [ "$("$bin/tandem" status 2>/dev/null | grep -cE ' (prefill|decode) +up ')" = 2 ]; }

ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
"$bin/tandem-router" --listen-clients tcp://0.0.0.0:5700 --listen-nodes tcp://0.0.0.0:5701 \
    --listen-lifeline 0.0.0.0:5702 >"$WORK/router.log" 2>&1 &
n=0
for role in prefill decode; do
    n=$((n + 1))
    unshare --net sleep 300 &
    net=$!
    until_it is_apart $net
    ip link add $role type veth peer name eth0 netns $net
    ip addr add 10.77.$n.1/24 dev $role
    ip link set $role up
    nsenter --target $net --net sh -c "ip link set lo up && ip addr add 10.77.$n.2/24 dev eth0 &&
        ip link set eth0 up && ip route add default via 10.77.$n.1"
    nsenter --target $net --net "$bin/tandem-$role" --name $role --router tcp://10.77.$n.1:5701 --blocks 64 \
        --threads 1 --link tcp --listen-kv 0.0.0.0:5710 >"$WORK/$role.log" 2>&1 &
done
until_it has_nodes
"$bin/tandem" generate --max-tokens 8 --temperature 0 --json "ROMEO:" >"$WORK/out" 2>"$WORK/err" ||
    fail "no completion: $(cat "$WORK/err" "$WORK"/*.log)"
grep -q '"completion_tokens": *8' "$WORK/out" || fail "another completion: $(cat "$WORK/out")"
! grep session_down "$WORK"/*.log || fail "a node was lost"
echo "apart: found each other"
