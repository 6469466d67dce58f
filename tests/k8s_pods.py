# SPDX-License-Identifier: Apache-2.0
"""What is wrong with one pod's specification that its schema lets through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

Spec = dict[str, Any]

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?", re.ASCII)
_UNITS = {"": Decimal(1), "m": Decimal(1) / 1000}
_UNITS.update({unit: Decimal(1000) ** n for n, unit in enumerate("kMGTPE", 1)})
_UNITS.update({f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", 1)})

#: Allowed words, by key and the key above it (None: anywhere).
_WORDS: dict[tuple[str | None, str], set[str]] = {
    (None, "imagePullPolicy"): {"Always", "IfNotPresent", "Never"},
    (None, "terminationMessagePolicy"): {"File", "FallbackToLogsOnError"},
    (None, "protocol"): {"TCP", "UDP", "SCTP"},
    (None, "whenUnsatisfiable"): {"DoNotSchedule", "ScheduleAnyway"},
    (None, "medium"): {"", "Memory"},
    (None, "fsGroupChangePolicy"): {"OnRootMismatch", "Always"},
    (None, "completionMode"): {"Indexed", "NonIndexed"},
    (None, "podReplacementPolicy"): {"Failed", "TerminatingOrFailed"},
    (None, "unhealthyPodEvictionPolicy"): {"IfHealthyBudget", "AlwaysAllow"},
    ("seccompProfile", "type"): {"RuntimeDefault", "Localhost"},
    ("tolerations", "operator"): {"Exists", "Equal"},
    ("tolerations", "effect"): {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    ("onExitCodes", "operator"): {"In", "NotIn"},
    ("onPodConditions", "status"): {"True", "False", "Unknown"},
    ("podFailurePolicy.rules", "action"): {"FailJob", "Ignore", "Count", "FailIndex"},
    ("failurePolicy", "restartStrategy"): {"Recreate", "BlockingRecreate", "InPlaceRestart"},
    ("failurePolicy.rules", "action"): {
        "FailJobSet",
        "RestartJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
        "RestartJob",
        "RestartJobAndIgnoreMaxRestarts",
    },
}


def quantity(text: object) -> Decimal | None:
    """A Kubernetes quantity as a number; None for what is none."""
    match = _QUANTITY.fullmatch(str(text))
    return None if match is None else Decimal(match[1]) * _UNITS[match[2] or ""]


def word_problems(node: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Values outside of what their keys may hold; quantities of volumes among them."""
    if isinstance(node, list):
        for item in node:
            yield from word_problems(item, path)
    elif isinstance(node, dict):
        for key, value in node.items():
            for (above, name), words in _WORDS.items():
                here = above is None or f".{'.'.join(path)}".endswith(f".{above}")
                if key == name and here and value not in words:
                    yield f"{key}: {value!r} is none of {sorted(words)}"
            if key == "sizeLimit" and quantity(value) is None:
                yield f"sizeLimit: {value!r} is no quantity"
            # A label or a ConfigMap's text may hold anything.
            if key not in ("data", "labels", "annotations", "matchLabels"):
                yield from word_problems(value, (*path, key))


def pod_problems(spec: Spec) -> Iterator[str]:
    """Everything about one pod that needs nothing but its specification."""
    yield from _security(spec)
    yield from _volumes(spec)
    for container in spec["containers"]:
        yield from (f"container {container['name']}: {p}" for p in _container(container, spec))


def _security(spec: Spec) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(key):
            yield f"{key} is not for a restricted pod"
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false: no pod talks to the API server"
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "securityContext: runAsNonRoot and a fixed runAsUser above 0 are needed"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext: seccompProfile must be RuntimeDefault"
    if not context.get("fsGroup"):
        yield "securityContext: without fsGroup the user can't write to its volumes"
    for container in spec["containers"]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield "securityContext: allowPrivilegeEscalation must be false"
        if own.get("readOnlyRootFilesystem") is not True:
            yield "securityContext: readOnlyRootFilesystem must be true"
        if own.get("capabilities") != {"drop": ["ALL"]}:
            yield "securityContext: capabilities must drop ALL and add none"
        if {"runAsUser", "runAsNonRoot", "seccompProfile"} & own.keys():
            yield "securityContext: a container's own user or seccomp overrides the pod's"


def _volumes(spec: Spec) -> Iterator[str]:
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    mounts = [m for c in spec["containers"] for m in c.get("volumeMounts", [])]
    for name in {name for name in volumes if volumes.count(name) > 1}:
        yield f"volume {name} is there twice"
    for name in {mount["name"] for mount in mounts} - set(volumes):
        yield f"volumeMounts: there is no volume {name}"
    for name in set(volumes) - {mount["name"] for mount in mounts}:
        yield f"volume {name} is mounted nowhere"
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if len(kinds) != 1 or not kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}:
            yield f"volume {volume['name']}: {sorted(kinds)} is not for a restricted pod"
        elif "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']}: without a sizeLimit it may fill the node"


def _container(container: Spec, spec: Spec) -> Iterator[str]:
    _, _, tag = container["image"].rpartition("/")[2].partition(":")
    if tag in ("", "latest") and "@sha256:" not in container["image"]:
        yield f"image {container['image']} says no version"
    yield from _twice("env", [one["name"] for one in container.get("env", [])])
    yield from _twice("mountPath", [one["mountPath"] for one in container.get("volumeMounts", [])])
    ports = container.get("ports", [])
    yield from _twice("port name", [one["name"] for one in ports])
    yield from _twice("port", [f"{one['containerPort']}/{one['protocol']}" for one in ports])
    for port in ports:
        if not 1 <= port["containerPort"] <= 65535:
            yield f"containerPort {port['containerPort']} is no port"
    yield from _resources(container.get("resources", {}), spec)
    yield from _writes(container, spec)


def _twice(what: str, values: list[Any]) -> Iterator[str]:
    for value in sorted({str(one) for one in values if values.count(one) > 1}):
        yield f"{what} {value} is there twice"


def _resources(resources: Spec, spec: Spec) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name, value in [*requests.items(), *limits.items()]:
        if quantity(value) is None:
            yield f"resources: {name}: {value!r} is no quantity"
            return
    for name in ("cpu", "memory", "ephemeral-storage"):
        if name not in requests or name not in limits:
            yield f"resources: {name} needs a request and a limit"
            return
    for name in sorted(requests.keys() | limits.keys()):
        least, most = quantity(requests.get(name, 0)), quantity(limits.get(name, 0))
        assert least is not None
        assert most is not None
        if least > most:
            yield f"resources: {name}: the request {least} is above the limit {most}"
        elif ("/" in name or name.startswith("hugepages-")) and (least != most or least % 1):
            yield f"resources: {name}: devices can't be overcommitted: request and limit differ"
    disk, memory = (_room(spec, medium) for medium in ("", "Memory"))
    if disk > (quantity(limits["ephemeral-storage"]) or 0):
        yield "resources: ephemeral-storage is less than the volumes on disk may hold"
    if memory > (quantity(limits["memory"]) or 0) / 2:
        yield "resources: memory: the volumes in memory may take more than half of it"


def _room(spec: Spec, medium: str) -> Decimal:
    """What the volumes on disk, or in memory, may hold together."""
    dirs = [volume["emptyDir"] for volume in spec.get("volumes", []) if "emptyDir" in volume]
    sizes = [quantity(one.get("sizeLimit", 0)) for one in dirs if one.get("medium", "") == medium]
    return sum((size or Decimal(0) for size in sizes), Decimal(0))


def _writes(container: Spec, spec: Spec) -> Iterator[str]:
    """Folders that a program writes to must lie on a volume: the image is read-only."""
    frozen = {v["name"] for v in spec.get("volumes", []) if "configMap" in v}
    roots = [
        mount["mountPath"]
        for mount in container.get("volumeMounts", [])
        if not mount.get("readOnly") and mount["name"] not in frozen
    ]
    if "/tmp" not in roots:
        yield "nothing is mounted on /tmp, and the image is read-only"
    folders = {e["name"]: e.get("value", "") for e in container.get("env", [])}
    wanted = [folders.get("HOME", "missing"), folders.get("HF_HOME", "/tmp")]
    for word in container.get("args", []):
        key, _, value = word.partition("=")
        if key in ("data.local", "output_dir"):
            wanted.append(value)
    for folder in wanted:
        if not any(f"{folder}/".startswith(f"{root}/") for root in roots):
            yield f"{folder} lies on no volume that can be written to"
