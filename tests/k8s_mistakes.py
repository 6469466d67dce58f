# SPDX-License-Identifier: Apache-2.0
"""Mistakes that people make in manifests, each to be planted into the ones that are shipped."""

from __future__ import annotations

import copy
from typing import Any

from k8s_network import COMPONENT, INSTANCE

#: In the place of a value: the key is taken away.
GONE = object()

_POD = "spec.template.spec"
_MAIN = f"{_POD}.containers.0"
_RULES = "spec.podFailurePolicy.rules"
_SERVICE = "Service ahpa-scale"
_DENY, _RANKS = "NetworkPolicy ahpa-scale", "NetworkPolicy ahpa-scale-ranks"
_SCRAPED, _SCRAPER = "Service ahpa-scale-metrics", "NetworkPolicy ahpa-scale-metrics"
_PEER = "spec.ingress.0.from.0.podSelector.matchLabels"
_SPACES = "spec.ingress.0.from.0.namespaceSelector"

#: Object, path, value that is planted, and what the refusal must name. Numbers index lists; a path
#: that ends in `+` appends.
MISTAKES: list[tuple[str, str, Any, str]] = [
    # What schemas know, in one version or another.
    ("Job", "spec.parallelisms", 8, "parallelisms"),
    ("Job", "spec.completions", "eight", "is not of type 'integer'"),
    ("Job", "apiVersion", "batch/v2", "unknown kind"),
    ("Job", "kind", "Jobs", "unknown kind"),
    ("Job", f"{_MAIN}.env.0.value", 8, "is not of type 'string'"),
    ("Job", f"{_RULES}.1.onPodConditions.0.status", GONE, "1.29"),
    (_DENY, "spec.podSelectors", {}, "podSelectors"),
    # Words and quantities.
    ("Job", f"{_POD}.restartPolicy", "Always", "restartPolicy"),
    ("Job", f"{_POD}.restartPolicy", "OnFailure", "restartPolicy"),
    ("Job", f"{_MAIN}.imagePullPolicy", "Sometimes", "imagePullPolicy"),
    ("Job", f"{_MAIN}.image", "registry.example.com/ahpa_scale", "says no version"),
    ("Job", f"{_MAIN}.resources.limits.memory", "900GB", "no quantity"),
    ("Job", f"{_POD}.volumes.2.emptyDir.sizeLimit", "64 Gi", "no quantity"),
    ("Job", f"{_POD}.volumes.2.emptyDir.medium", "memory", "medium"),
    ("Job", f"{_POD}.tolerations.0.effect", "NoSchedules", "effect"),
    ("Job", f"{_RULES}.0.action", "Fail", "action"),
    ("Job", "spec.podReplacementPolicy", "TerminatingOrFailed", "podReplacementPolicy"),
    # Numbers that must fit one another.
    ("Job", "spec.parallelism", 4, "parallelism"),
    ("Job", "spec.completionMode", "NonIndexed", "Indexed"),
    ("Job", f"{_MAIN}.env.0.value", "4", "node 4"),
    ("Job", f"{_MAIN}.args.3", "4", "8 GPUs"),
    ("Job", f"{_MAIN}.env.2.value", "29400", "host and port"),
    ("Job", f"{_MAIN}.env.1.value", "ahpa-scale-0", "host and port"),
    ("Job", f"{_MAIN}.resources.requests.nvidia.com/gpu", "4", "request and limit differ"),
    ("Job", f"{_MAIN}.resources.requests.cpu", "200", "above the limit"),
    ("Job", f"{_MAIN}.resources.limits.memory", GONE, "memory needs"),
    ("Job", f"{_POD}.volumes.2.emptyDir.sizeLimit", "600Gi", "more than half"),
    ("Job", f"{_POD}.volumes.1.emptyDir.sizeLimit", "1Ti", "cache_limit"),
    ("Job", f"{_POD}.terminationGracePeriodSeconds", 120, "terminationGracePeriodSeconds"),
    ("Job", f"{_POD}.terminationGracePeriodSeconds", GONE, "terminationGracePeriodSeconds"),
    ("Job", f"{_MAIN}.args.+", "checkpoint.grace=10m", "terminationGracePeriodSeconds"),
    # References.
    ("Job", f"{_POD}.volumes.0.configMap.name", "ahpa-config", "no ConfigMap"),
    ("Job", f"{_MAIN}.volumeMounts.2.name", "sham", "no volume sham"),
    ("Job", f"{_POD}.serviceAccountName", "trainer", "service account"),
    ("Job", f"{_POD}.subdomain", "ranks", "no Service"),
    ("Job", "metadata.namespace", "ahpa", "no namespace"),
    ("Job", f"{_MAIN}.ports.1.name", "wacht", "targetPort"),
    ("Job", f"{_RULES}.0.onExitCodes.containerName", "trainer", "no container"),
    ("Job", "spec.template.metadata.labels.app.kubernetes.io/component", "ranks", "selector"),
    (_SERVICE, "spec.selector.app.kubernetes.io/name", "ahpa", "selector"),
    (_SERVICE, "spec.ports.1.protocol", "TCP", "watch"),
    (_SERVICE, "spec.clusterIP", GONE, "clusterIP"),
    (_SERVICE, "spec.publishNotReadyAddresses", False, "publishNotReadyAddresses"),
    ("PodDisruptionBudget", "spec.selector.matchLabels.app.kubernetes.io/name", "x", "0 Pod"),
    ("PodDisruptionBudget", "spec.minAvailable", "90%", "only a number"),
    ("PodDisruptionBudget", "spec.minAvailable", 8, "drained"),
    # Exit codes.
    ("Job", f"{_RULES}.0.onExitCodes.values", [2], "exit code 70"),
    ("Job", f"{_RULES}.2.onExitCodes.values", [75, 76, 79], "exit code 80"),
    ("Job", f"{_RULES}.2.onExitCodes.values", [74, 75, 76, 79, 80], "exit code 74"),
    ("Job", f"{_RULES}.0.onExitCodes.operator", "NotIn", "exit code 2 "),
    ("Job", f"{_RULES}.1", GONE, "exit code 143"),
    ("Job", "spec.backoffLimit", 0, "backoffLimit"),
    ("Job", "spec.backoffLimit", GONE, "backoffLimit"),
    # The network.
    (_RANKS, "spec.ingress.0.ports.1", GONE, "UDP 29500"),
    (_RANKS, "spec.ingress.0.ports.2", GONE, "TCP 32768"),
    (_RANKS, "spec.ingress.0.from.0.podSelector", {}, "others than the ranks"),
    (_RANKS, f"{_PEER}.{INSTANCE}", GONE, "others than the ranks"),
    (_RANKS, "spec.podSelector.matchLabels", {COMPONENT: "train"}, "lets in another job's"),
    ("Job", f"spec.template.metadata.labels.{INSTANCE}", "another", "must be the job's name"),
    (_RANKS, "spec.ingress.0.from", GONE, "others than the ranks"),
    (_DENY, "spec.policyTypes", ["Ingress"], "closes all"),
    (_DENY, "spec.egress.0", GONE, "names"),
    (_DENY, "spec.egress.1", GONE, "stores"),
    (_DENY, "spec.egress.1.ports", GONE, "opens everything"),
    # Metrics and probes.
    ("Job", f"{_MAIN}.args.13", "logging.metrics_port=9401", "logging.metrics_port is 9401"),
    ("Job", f"{_MAIN}.args.13", "logging.metrics_port=null", "logging.metrics_port is None"),
    ("Job", f"{_MAIN}.args.12", "logging.format=jsonl", "logging.format"),
    ("Job", f"{_MAIN}.args.+", "watch.hang=null", "never fails"),
    ("Job", f"{_MAIN}.ports.2.containerPort", 9090, "port metrics is (9090"),
    ("Job", f"{_MAIN}.ports.2", GONE, "port metrics is None"),
    ("Job", f"{_MAIN}.startupProbe", GONE, "startupProbe is missing"),
    ("Job", f"{_MAIN}.startupProbe.failureThreshold", 30, "kills after 300 s"),
    ("Job", f"{_MAIN}.livenessProbe", GONE, "livenessProbe is missing"),
    ("Job", f"{_MAIN}.livenessProbe.httpGet.path", "/health", "must get /healthz"),
    ("Job", f"{_MAIN}.livenessProbe.httpGet.port", "rendezvous", "must get /healthz"),
    ("Job", f"{_MAIN}.livenessProbe.httpGet.scheme", "HTTPS", "TLS"),
    ("Job", f"{_MAIN}.livenessProbe.failureThreshold", 1, "kills after 60 s"),
    ("Job", f"{_MAIN}.livenessProbe.timeoutSeconds", GONE, "timeoutSeconds 1"),
    ("Job", f"{_MAIN}.livenessProbe.failureThresholds", 5, "failureThresholds"),
    ("Job", f"{_MAIN}.readinessProbe", {"httpGet": {"port": "metrics"}}, "readinessProbe"),
    (_SCRAPED, "spec.selector.app.kubernetes.io/component", "ranks", "selector"),
    (_SCRAPED, "spec.ports.0.port", 9401, "its one port"),
    (_SCRAPED, "spec.ports.0.targetPort", "metric", "its one port"),
    (_SCRAPED, "spec.clusterIP", GONE, "each pod is read"),
    (_SCRAPED, "metadata.name", "metrics", "0 Services"),
    (_SCRAPER, "spec.ingress.0.ports.0.port", 29500, "others than the ranks"),
    (_SCRAPER, "spec.ingress.0.ports", GONE, "others than the ranks"),
    (_SCRAPER, "spec.ingress.0.ports.0.endPort", 9500, "others than the ranks"),
    (_SCRAPER, _SPACES, {}, "others than the ranks"),
    (_SCRAPER, f"{_SPACES}.matchLabels", {"team": "ops"}, "others than the ranks"),
    (_SCRAPER, "spec.ingress.0.from.+", {"podSelector": {}}, "others than the ranks"),
    (_SCRAPER, "spec.ingress.0", GONE, "0 rules let a namespace in"),
    # Security.
    ("Namespace", "metadata.labels.pod-security.kubernetes.io/enforce", "baseline", "restricted"),
    ("Job", f"{_POD}.hostNetwork", True, "hostNetwork"),
    ("Job", f"{_POD}.securityContext.runAsUser", 0, "runAsUser"),
    ("Job", f"{_POD}.securityContext.seccompProfile", GONE, "seccompProfile"),
    ("Job", f"{_MAIN}.securityContext.readOnlyRootFilesystem", False, "readOnlyRootFilesystem"),
    ("Job", f"{_MAIN}.securityContext.capabilities.add", ["IPC_LOCK"], "capabilities"),
    ("Job", f"{_MAIN}.securityContext.allowPrivilegeEscalation", True, "allowPrivilege"),
    ("Job", f"{_POD}.volumes.1", {"name": "local", "hostPath": {"path": "/mnt"}}, "hostPath"),
    ("Job", f"{_MAIN}.envFrom.0.secretRef.optional", False, "must be optional"),
    ("Job", f"{_MAIN}.env.5.valueFrom.secretKeyRef.optional", False, "must be optional"),
    ("Job", f"{_MAIN}.env.+", {"name": "WANDB_API_KEY", "value": "x"}, "belongs into a Secret"),
    ("Job", f"{_POD}.automountServiceAccountToken", True, "automountServiceAccountToken"),
    # Commands and configuration.
    ("Job", f"{_MAIN}.args.1", "lunch", "no such command"),
    ("Job", f"{_MAIN}.args.5", "/config/dit-xl.yaml", "has no dit-xl.yaml"),
    ("Job", f"{_MAIN}.args.5", "/configs/dit-xl-ahpa.yaml", "no ConfigMap is mounted"),
    ("Job", f"{_MAIN}.args.+", "optimizer.lrr=1e-4", "optimizer.lrr"),
    ("Job", f"{_MAIN}.args.+", "global_train_batch_size=100", "shared evenly"),
    ("Job", f"{_MAIN}.args.11", "checkpoint.autoresume=false", "autoresume"),
    ("Job", f"{_MAIN}.args.10", "checkpoint.save_folder=/local/x", "goes away"),
    ("Job", f"{_MAIN}.args.9", "output_dir=/runs", "/runs lies on no volume"),
    ("Job", f"{_MAIN}.command", ["ahpa-scale"], "entry point"),
]


def planted(docs: list[dict[str, Any]], target: str, path: str, value: Any) -> list[dict[str, Any]]:
    """A copy of the objects with one mistake."""
    docs = copy.deepcopy(docs)
    kind, _, name = target.partition(" ")
    (node,) = [d for d in docs if d["kind"] == kind and name in ("", d["metadata"]["name"])]
    words = _split(path)
    for word in words[:-1]:
        node = node[int(word)] if isinstance(node, list) else node[word]
    last: Any = words[-1]
    if last == "+":
        node.append(value)
        return docs
    if isinstance(node, list):
        last = int(last)
    if value is GONE:
        del node[last]
    else:
        node[last] = value
    return docs


def _split(path: str) -> list[str]:
    """Dots separate, but for those of a label's or resource's prefix, which ends in a slash."""
    words: list[str] = []
    head, slash, tail = path.partition("/")
    if not slash:
        return path.split(".")
    for mark in ("app.kubernetes.io", "pod-security.kubernetes.io", "nvidia.com"):
        if head.endswith(mark):
            words = [*head[: -len(mark) - 1].split("."), f"{mark}/{tail}"]
    assert words, path
    return words
