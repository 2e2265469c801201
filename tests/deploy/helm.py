"""Renders deploy/helm/tandem with Helm's engine for several values and looks at what comes out.

    helm.py CHART                 all checks; the names of settings that the chart gives go to stdout

Each object is held against Kubernetes' schemas (those of custom resources are not known there), selectors
against the labels that they are to find, probes and ports against each other."""
import sys

import helm_python as helm
import kubernetes_validate
import yaml

VERSIONS = ("1.25", "1.30", "1.37")
CUSTOM = ("PodMonitor", "ScaledObject")
SCALING = {"nodes": {"autoscaling": {"enabled": True}}}
CASES = {
    "as it is": {},
    "cpu": {
        "image": {"tag": "cpu"},
        "nodes": {"device": "cpu", "gpus": 0, "nccl": {}, "settings": {"kv-bytes": "16G"}},
        "networkPolicy": {"enabled": False},
    },
    "two routers, scaled by the metrics API": {"router": {"count": 2, "settings": {"exact": False}}, **SCALING},
    "scaled by KEDA, with a PodMonitor": {"autoscaling": {"kind": "keda"}, "podMonitor": {"enabled": True}, **SCALING},
    "RDMA on the host's network": {
        "nodes": {
            "hostNetwork": True, "hostIPC": True, "hostPID": True, "capabilities": ["IPC_LOCK"], "extraResources": {"rdma/hca": 1},
            "nccl": {"NCCL_IB_HCA": "=mlx5_0:1", "NCCL_NET_GDR_LEVEL": "PIX"}, "runtimeClassName": "nvidia",
            "nodeSelector": {"gpu": "h100"}, "affinity": {"nodeAffinity": {}}, "podAnnotations": {"a": "b"},
            "env": [{"name": "A", "value": "b"}], "settings": {"kv-share": 0.92},
        },
        "model": {"volume": {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}},
        "imagePullSecrets": [{"name": "registry"}],
    },
}
WRONG = [
    {"nodes": {"gpu": 1}}, {"metricsPort": 0}, {"decode": {"replicas": -1}}, {"autoscaling": {"kind": "guess"}},
    {"prefill": {"settings": {"Chunk": 1}}}, {"router": {"count": 0}}, {"image": {"tag": ""}},
]


def fail(text):
    sys.exit(f"FAILED: {text}")


def objects(chart, values):
    rendered = chart.render(values, name="demo", namespace="llm")
    notes = [text for name, text in rendered.items() if name.endswith("NOTES.txt")]
    if notes and "Nothing is encrypted" not in notes[0]:
        fail("the notes do not say that nothing is encrypted")
    return [o for name, text in sorted(rendered.items()) if name.endswith(".yaml")
            for o in yaml.safe_load_all(text) if o]


def validate(o):
    if o["kind"] in CUSTOM:
        return
    for version in VERSIONS:
        kubernetes_validate.validate(o, version, strict=True)


def matches(selector, labels):
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    return all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))


def workload(o, settings):
    name, spec = o["metadata"]["name"], o["spec"]["template"]["spec"]
    if not matches(o["spec"]["selector"], o["spec"]["template"]["metadata"]["labels"]):
        fail(f"{name} does not select its own pods")
    (container,) = spec["containers"]
    ports = {p["name"] for p in container["ports"]}
    for probe in ("livenessProbe", "readinessProbe"):
        get = container[probe]["httpGet"]
        if get["port"] not in ports or get["path"] != ("/readyz" if probe == "readinessProbe" else "/healthz"):
            fail(f"{name}: {probe} asks {get}")
    if spec["terminationGracePeriodSeconds"] < 60:
        fail(f"{name} has no time to drain")
    if {m["name"] for m in container["volumeMounts"]} != {v["name"] for v in spec["volumes"]}:
        fail(f"{name}: volumes and mounts differ")
    program = container["command"][0]
    for arg in container["args"]:
        if "e+" in arg or "map[" in arg or "<no value>" in arg:
            fail(f"{name}: {arg}")
        settings.add((program, arg.split("=")[0].lstrip("-")))


def check(what, found, settings):
    for o in found:
        try:
            validate(o)
        except kubernetes_validate.ValidationError as e:
            fail(f"{what}: {o['kind']} {o['metadata']['name']}: {e}")
    pods = {o["metadata"]["name"]: o["spec"]["template"] for o in found if o["kind"] == "Deployment"}
    for o in found:
        kind, name, spec = o["kind"], o["metadata"]["name"], o.get("spec", {})
        if kind == "Deployment":
            workload(o, settings)
        if kind == "Service":
            (pod,) = [p for p in pods.values() if matches({"matchLabels": spec["selector"]}, p["metadata"]["labels"])]
            named = {p["name"] for p in pod["spec"]["containers"][0]["ports"]}
            if not {p["targetPort"] for p in spec["ports"]} <= named:
                fail(f"{what}: service {name} has a port that its pod has not")
        if kind in ("PodDisruptionBudget", "NetworkPolicy"):
            selector = spec["selector"] if kind == "PodDisruptionBudget" else spec["podSelector"]
            if not any(matches(selector, p["metadata"]["labels"]) for p in pods.values()):
                fail(f"{what}: {kind} {name} selects nothing")
        if kind in ("HorizontalPodAutoscaler", "ScaledObject"):
            if spec["scaleTargetRef"]["name"] not in pods:
                fail(f"{what}: {kind} {name} scales nothing")
            hpa = spec if kind == "HorizontalPodAutoscaler" else spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
            if hpa.get("behavior", {}).get("scaleDown", {}).get("policies") != [{"type": "Pods", "value": 1, "periodSeconds": 120}]:
                fail(f"{what}: {kind} {name} takes more than one pod at a time")
    return pods


def arguments(pods, name):
    return pods[name]["spec"]["containers"][0]["args"]


def main(folder):
    lint = helm.lint(folder)
    worse = [m for m in lint["messages"] if m["severity"] > 1]
    if lint["errors"] or worse:
        fail(f"helm lint: {lint['errors'] or worse}")
    settings, kinds = set(), {}
    with helm.Chart.load(folder) as chart:
        for what, values in CASES.items():
            chart.validate_schema(values)
            found = objects(chart, values)
            pods = check(what, found, settings)
            kinds[what] = sorted(o["kind"] for o in found)
            if what == "as it is":
                if sorted(pods) != ["demo-tandem-decode", "demo-tandem-prefill", "demo-tandem-router-0"]:
                    fail(f"workloads: {sorted(pods)}")
                limits = pods["demo-tandem-decode"]["spec"]["containers"][0]["resources"]["limits"]
                if limits.get("nvidia.com/gpu") != 1 or "--chunk=8192" not in arguments(pods, "demo-tandem-prefill"):
                    fail("a node without a GPU, or without its settings")
            if what == "cpu" and "nvidia.com/gpu" in str(found).replace("'key': 'nvidia.com/gpu'", ""):
                fail("a CPU node asks for a GPU")
            if what.startswith("two routers"):
                if sum(a.startswith("--router=") for a in arguments(pods, "demo-tandem-decode")) != 2:
                    fail("nodes do not dial both routers")
                if any("replicas" in o["spec"] for o in found if o["metadata"]["name"].endswith(("prefill", "decode"))
                       and o["kind"] == "Deployment"):
                    fail("the chart and the autoscaler both set replicas")
            if what.startswith("scaled by KEDA"):
                if sorted(t["metadata"]["threshold"] for o in found if o["kind"] == "ScaledObject"
                          for t in o["spec"]["triggers"]) != ["0.5", "0.7"]:
                    fail("thresholds")
        for what, kind, count in (("as it is", "PodDisruptionBudget", 2), ("as it is", "NetworkPolicy", 2),
                                  ("cpu", "NetworkPolicy", 0), ("cpu", "HorizontalPodAutoscaler", 0),
                                  ("two routers, scaled by the metrics API", "HorizontalPodAutoscaler", 2),
                                  ("scaled by KEDA, with a PodMonitor", "ScaledObject", 2),
                                  ("scaled by KEDA, with a PodMonitor", "PodMonitor", 1)):
            if kinds[what].count(kind) != count:
                fail(f"{what}: {kinds[what].count(kind)} of {kind}, not {count}")
        for values in WRONG:
            try:
                chart.validate_schema(values)
            except helm.HelmError:
                continue
            fail(f"the schema takes {values}")
        planted = objects(chart, {})[0]
        planted["spec"]["replcas"] = 1
        try:
            validate(planted)
        except kubernetes_validate.ValidationError:
            pass
        else:
            fail("a planted mistake passed Kubernetes' schema")
    for program, name in sorted(settings):
        print(program, name)


main(sys.argv[1])
