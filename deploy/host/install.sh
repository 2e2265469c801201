#!/usr/bin/env bash
# Puts tandem's systemd units on this host: a router, and one node for each GPU that is named.
#
#     deploy/host/install.sh --config deploy/host/tandem.yaml --router --prefill 0,1,2,3 --decode 4,5,6,7
#     deploy/host/install.sh --config cluster.yaml --decode 0-7          # a host with nodes alone
#
#     --config FILE     becomes /etc/tandem/cluster.yaml, unless there is one already
#     --router          this host has a router
#     --prefill GPUS    a prefill node on each of these GPUs: numbers and ranges, like 0,1 or 0-3
#     --decode GPUS     the same for decode nodes
#     --root DIR        into this folder instead of / (an image, a test)
#
# Nothing that lies in /etc/tandem is overwritten, and nothing is started: it ends with what to run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { echo "install.sh: $*" >&2; exit 2; }

# "0,2-4" as "0 2 3 4".
gpus() {
    local part first last
    for part in ${1//,/ }; do
        [[ $part =~ ^[0-9]{1,4}(-[0-9]{1,4})?$ ]] || die "\"$1\": GPUs are numbers and ranges, like 0,1 or 0-3"
        first=$((10#${part%-*})) last=$((10#${part#*-}))
        [ "$first" -le "$last" ] || die "\"$part\": the range ends before it begins"
        seq "$first" "$last"
    done
}

config='' root='' router=0 prefill='' decode=''
while [ $# -gt 0 ]; do
    case $1 in
    --config | --prefill | --decode | --root)
        [ $# -ge 2 ] || die "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --router) router=1 && shift ;;
    --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) die "\"$1\" is no option: --help lists them" ;;
    esac
done
prefill_gpus=$(gpus "$prefill")
decode_gpus=$(gpus "$decode")
[ "$router" = 1 ] || [ -n "$prefill_gpus$decode_gpus" ] || die "nothing to install: --router, --prefill, --decode"
[ -n "$config" ] || [ -e "$root/etc/tandem/cluster.yaml" ] || die "--config is not given"
shared=$(comm -12 <(sort -u <<<"$prefill_gpus") <(sort -u <<<"$decode_gpus") | grep . | paste -sd, || true)
[ -z "$shared" ] || echo "install.sh: GPU $shared has a node of each role: give each a kv-share of 0.45 or less" >&2

install -d "$root/etc/tandem" "$root/etc/systemd/system" "$root/usr/lib/sysusers.d"
install -m 0644 "$here"/systemd/tandem*.service "$here/systemd/tandem.target" "$root/etc/systemd/system/"
install -m 0644 "$here/systemd/tandem.sysusers" "$root/usr/lib/sysusers.d/tandem.conf"
keep() { # FILE TARGET: not over what is there
    [ -e "$root$2" ] || install -m 0644 "$1" "$root$2"
}
[ -z "$config" ] || keep "$config" /etc/tandem/cluster.yaml
keep "$here/systemd/env/tandem.env" /etc/tandem/tandem.env

units=()
[ "$router" = 0 ] || { units+=(tandem-router.service) && keep "$here/systemd/env/router.env" /etc/tandem/router.env; }
# Each instance has a port of its own for metrics, in the order given.
port=9410
for gpu in $prefill_gpus; do units+=("tandem-prefill@$gpu.service"); done
for gpu in $decode_gpus; do units+=("tandem-decode@$gpu.service"); done
for unit in "${units[@]}"; do
    [[ $unit == *@* ]] || continue
    instance=${unit#tandem-} && instance=${instance%.service}
    file=/etc/tandem/${instance/@/-}.env
    if [ ! -e "$root$file" ]; then
        printf '# The instance %s alone; docs/deploy.md.\nTANDEM_METRICS=127.0.0.1:%s\n' "$instance" "$port" >"$root$file"
        chmod 0644 "$root$file"
    fi
    port=$((port + 1))
done

systemctl ${root:+--root="$root"} enable tandem.target "${units[@]}" >&2
echo "enabled: ${units[*]}"
if [ -z "$root" ]; then
    systemd-sysusers tandem.conf
    systemctl daemon-reload
    echo "look at /etc/tandem, then: systemctl start tandem.target"
fi
