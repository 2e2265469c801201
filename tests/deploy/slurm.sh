#!/usr/bin/env bash
# The Slurm script without Slurm: srun and scontrol of tests/deploy/slurm start the real programs here, each
# host being a loopback address. A job with a command serves it and drains; one without drains on SIGTERM;
# one that cannot start says why.
#
#     tests/deploy/slurm.sh BIN
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bin=$(cd "$1" && pwd)
script=$SOURCE/deploy/slurm/tandem.sbatch
command -v shellcheck >/dev/null || skip "shellcheck is not installed: ./dev test installs it"
(cd "$SOURCE" && shellcheck "$script" deploy/*.sh deploy/*/*.sh tests/deploy/*.sh tests/deploy/slurm/*) || fail "shellcheck"

# Addresses of our own: nobody else listens on these of 127.0.0.0/8.
net=127.$((RANDOM % 200 + 20)).$((RANDOM % 254 + 1))
unset TANDEM_ROUTER
export PATH=$SOURCE/tests/deploy/slurm:$PATH SLURM_JOB_ID=$$ DEVICE=cpu BIN=$bin READY_SECONDS=60
export MODEL=$SOURCE/examples/demo_model/model TANDEM_THREADS=1 TANDEM_BLOCKS=64 TANDEM_CACHE_DIR=$WORK/cache

# Every process of a job has this in its environment; none may be left.
nobody_left() {
    local left=()
    mapfile -t left < <(grep -lzs "^TANDEM_CACHE_DIR=$WORK/cache\$" /proc/[0-9]*/environ | cut -d/ -f3 |
        while read -r pid; do [ "$(readlink "/proc/$pid/exe")" = "$bin/${1:-none}" ] && echo "$pid"; done || true)
    [ ${#left[@]} = 0 ] || { kill -KILL "${left[@]}" && fail "$1 runs on after the job"; }
}

# Three hosts: a router, one prefill node and two decode nodes, and a completion.
SLURM_JOB_NODELIST="$net.[1-3]" timeout 100 "$script" tandem generate --max-tokens 8 --temperature 0 --json "ROMEO:" \
    >"$WORK/out" 2>"$WORK/err" || fail "the job: $(tail -n 20 "$WORK/out" "$WORK/err")"
grep -q "^clients: tcp://$net.1:" "$WORK/out" || fail "no address for clients: $(cat "$WORK/out")"
grep -q '^ready: 3 nodes on 3 hosts$' "$WORK/out" || fail "not ready: $(cat "$WORK/out")"
grep -q '"completion_tokens": *8' "$WORK/out" || fail "no completion: $(cat "$WORK/out")"
for program in tandem-router tandem-prefill tandem-decode; do nobody_left $program; done

# The same tokens as one cluster of one host gives: both roles on each of two hosts.
text=$(grep -o '"tokens":[^]]*]' "$WORK/out")
SLURM_JOB_NODELIST=$net.11,$net.12 PREFILL_HOSTS=0 NODES_PER_HOST=2 timeout 100 "$script" \
    tandem generate --max-tokens 8 --temperature 0 --json "ROMEO:" >"$WORK/out2" 2>"$WORK/err" ||
    fail "both roles on a host: $(tail -n 20 "$WORK/out2" "$WORK/err")"
grep -q '^ready: 4 nodes on 2 hosts$' "$WORK/out2" || fail "not ready: $(cat "$WORK/out2")"
[ "$(grep -o '"tokens":[^]]*]' "$WORK/out2")" = "$text" ] || fail "other tokens: $(cat "$WORK/out2")"

# SIGTERM drains a job that has no command.
mkfifo "$WORK/lines"
SLURM_JOB_NODELIST="$net.[21-22]" "$script" >"$WORK/lines" 2>"$WORK/err" &
job=$!
while read -r -t 60 line; do case $line in ready:*) break ;; esac; done <>"$WORK/lines"
[[ ${line:-} == ready:* ]] || fail "the job without a command is not ready: $(tail -n 20 "$WORK/err")"
kill -TERM "$job"
timeout 60 tail --pid="$job" -f /dev/null || { kill -KILL "$job" && fail "the job did not drain"; }
wait "$job" || fail "the drained job ended with $?"
for program in tandem-router tandem-prefill tandem-decode; do nobody_left $program; done

# What cannot work is said at once.
SLURM_JOB_NODELIST=$net.31 timeout 20 "$script" >"$WORK/out" 2>&1 && fail "no host for decode passed"
grep -q 'leaves none of 1 hosts for decode' "$WORK/out" || fail "not said: $(cat "$WORK/out")"
SLURM_JOB_NODELIST="$net.[31-32]" MODEL=$WORK/nowhere timeout 60 "$script" >"$WORK/out" 2>&1 &&
    fail "a model that is not there passed"
grep -q 'nowhere' "$WORK/out" || fail "not said: $(cat "$WORK/out")"
for program in tandem-router tandem-prefill tandem-decode; do nobody_left $program; done
echo "slurm: three jobs served, drained; two refused"
