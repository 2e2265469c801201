#!/usr/bin/env bash
# The units: systemd-analyze has no word to say about them, nor about what deploy/host/install.sh makes of
# them for eight GPUs; a planted mistake is found. The settings in the examples are settings.
#
#     tests/deploy/systemd.sh BIN
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bin=$(cd "$1" && pwd)
tool systemd-analyze

# verify ROOT UNIT...: the programs are those of BIN. systemd only warns of names that it does not know.
verify() {
    local folder=$1 unit units=()
    shift
    rm -rf "$WORK/units" && cp -R "$folder" "$WORK/units"
    find "$WORK/units" -name '*.service' -type f -exec sed -i "s|/usr/bin/tandem-|$bin/tandem-|" {} +
    for unit in "$@"; do # an instance is verified as a file of its name
        [ -e "$WORK/units/$unit" ] || cp "$WORK/units/${unit%%@*}@.service" "$WORK/units/$unit"
        units+=("$WORK/units/$unit")
    done
    SYSTEMD_UNIT_PATH=$WORK/units: systemd-analyze verify --man=no "${units[@]}" >"$WORK/verified" 2>&1 ||
        echo "exit status $?" >>"$WORK/verified"
    [ ! -s "$WORK/verified" ] || { cat "$WORK/verified" && return 1; }
}

verify "$SOURCE/deploy/systemd" tandem.target tandem-router.service tandem-prefill@0.service \
    tandem-decode@4.service || fail "systemd-analyze verify"

# Each exposure is at most this, of 100: what is left open is said in the unit with its reason.
for limit in router:30 prefill@:45 decode@:45; do
    SYSTEMD_UNIT_PATH=$WORK/units: systemd-analyze security --offline=yes --no-pager \
        --threshold="${limit#*:}" "$WORK/units/tandem-${limit%:*}.service" >"$WORK/exposure" ||
        fail "tandem-${limit%:*}: $(tail -n 1 "$WORK/exposure")"
done

# What the units promise for draining and restarts.
for unit in tandem-router tandem-prefill@ tandem-decode@; do
    for line in KillSignal=SIGTERM KillMode=mixed RestartPreventExitStatus=2 OOMPolicy=stop; do
        grep -qx "$line" "$SOURCE/deploy/systemd/$unit.service" || fail "$unit has no $line"
    done
done

# On systemd 254 and later the drop-in for growing pauses is verified with them.
cp -R "$SOURCE/deploy/systemd" "$WORK/dropped"
if [ "$(systemd-analyze --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')" -ge 254 ]; then
    mkdir "$WORK/dropped/tandem-decode@.service.d"
    cp "$SOURCE/deploy/systemd/back-off.conf" "$WORK/dropped/tandem-decode@.service.d/"
    verify "$WORK/dropped" tandem-decode@1.service || fail "back-off.conf"
fi

# A mistake is seen.
sed -i 's/^TasksMax=/TaskMax=/' "$WORK/dropped/tandem-router.service"
verify "$WORK/dropped" tandem-router.service >"$WORK/said" && fail "an unknown name passed"
grep -q TaskMax "$WORK/said" || fail "the unknown name is not said: $(cat "$WORK/said")"

# An eight-GPU host, installed into a folder, twice: the second time nothing of the first is touched.
host() {
    "$SOURCE/deploy/host/install.sh" --root "$WORK/host" --config "$SOURCE/deploy/host/tandem.yaml" --router \
        --prefill 0-3 --decode 4,5,6,7 2>"$WORK/said"
}
host >"$WORK/enabled" || fail "install.sh: $(cat "$WORK/said")"
echo "TANDEM_BATCH=7" >>"$WORK/host/etc/tandem/decode-4.env"
host >/dev/null || fail "install.sh, again: $(cat "$WORK/said")"
grep -qx TANDEM_BATCH=7 "$WORK/host/etc/tandem/decode-4.env" || fail "install.sh overwrote an environment file"
wants=$WORK/host/etc/systemd/system/tandem.target.wants
[ "$(find "$wants" -name 'tandem-*@*.service' | wc -l)" = 8 ] || fail "not eight nodes: $(ls "$wants")"
[ "$(cat "$WORK"/host/etc/tandem/*-?.env | grep -o '^TANDEM_METRICS=.*' | sort | uniq -d)" = "" ] ||
    fail "two nodes have one port"
for unit in "$wants"/*; do
    verify "$WORK/host/etc/systemd/system" "$(basename "$unit")" || fail "install.sh: $unit"
done
for wrong in "--prefill x" "--decode 5-2" "--config nowhere.yaml" "--nonsense"; do
    # shellcheck disable=SC2086
    "$SOURCE/deploy/host/install.sh" --root "$WORK/wrong" $wrong >/dev/null 2>&1 && fail "install.sh took $wrong"
done

# Each name in the examples is a setting of its program.
for file in "$SOURCE"/deploy/systemd/env/*.env; do
    program=$(basename "$file" .env) && program=tandem-${program%-[0-9]}
    [ "$program" != tandem-tandem ] || program=tandem-decode
    sed -n 's/^#\{0,1\}TANDEM_\([A-Z_]*\)=.*/\1/p' "$file" | known_settings "$bin" "$program"
done
echo "units, host: verified"
