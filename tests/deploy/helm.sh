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

# The adapter's rules are YAML and ask for the metrics that the autoscalers name.
"$TOOLS/python" - "$SOURCE/deploy/helm/prometheus-adapter.yaml" <<'PY' || fail "prometheus-adapter.yaml"
import sys, yaml
rules = yaml.safe_load(open(sys.argv[1]))["rules"]
assert [r["name"]["as"] for r in rules["external"]] == ["tandem_router_queue_seconds_p90"]
assert [r["name"]["as"] for r in rules["custom"]] == ["tandem_node_kv_use_ratio"]
PY

if command -v helm >/dev/null; then
    helm lint --strict "$chart" >"$WORK/said" || fail "helm lint: $(cat "$WORK/said")"
    helm template demo "$chart" >/dev/null || fail "helm template"
fi
echo "helm: rendered"
