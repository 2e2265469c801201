#!/usr/bin/env bash
# The chart, linted and rendered by Helm's engine (helm-python-sdk has it as a library; Debian has no
# helm), each object held against Kubernetes' schemas; its settings are settings of the programs. Where a
# helm command is installed it has its say, too.
#
#     tests/deploy/helm.sh BIN
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bin=$(cd "$1" && pwd)
chart=$SOURCE/deploy/helm/tandem
"$TOOLS/python" -c 'import helm_python, kubernetes_validate, yaml' 2>/dev/null ||
    skip "helm-python-sdk and kubernetes-validate are not installed: ./dev test installs them where there is a network"

"$TOOLS/python" "$SOURCE/tests/deploy/helm.py" "$chart" >"$WORK/settings" || exit 1
for program in tandem-router tandem-prefill tandem-decode; do
    sed -n "s/^$program //p" "$WORK/settings" | tr a-z- A-Z_ | known_settings "$bin" "$program"
done

# The adapter's rules are YAML and give the metrics that the autoscalers name, which the programs have.
"$TOOLS/python" - "$SOURCE/deploy/helm/prometheus-adapter.yaml" >"$WORK/metrics" <<'PY' || fail "prometheus-adapter.yaml"
import sys, yaml
rules = yaml.safe_load(open(sys.argv[1]))["rules"]
for rule in rules["external"] + rules["custom"]:
    assert rule["seriesQuery"].startswith(rule["name"]["as"] + "{")
    print(rule["name"]["as"])
PY
while IFS= read -r metric; do
    grep -q "$metric" "$chart/templates/autoscaling.yaml" || fail "no autoscaler asks for $metric"
    grep -qs "\"$metric\"" "$SOURCE"/router/*.c "$SOURCE"/node/*.c || fail "no program has $metric"
done <"$WORK/metrics"

if command -v helm >/dev/null; then
    helm lint --strict "$chart" >"$WORK/said" || fail "helm lint: $(cat "$WORK/said")"
    helm template demo "$chart" >/dev/null || fail "helm template"
fi
echo "helm: rendered"
