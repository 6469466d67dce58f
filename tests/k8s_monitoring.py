# SPDX-License-Identifier: Apache-2.0
"""What is wrong with ServiceMonitor, rules and dashboard, which Kubernetes has no schema of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from k8s_manifests import Document
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ahpa_scale.exporter import Board, BoardCollector, Newest, Saved
from ahpa_scale.watch import Pulse

#: The fields that are used of each kind, with their types; a list stands for a list of its first
#: item, and `...` for a map from words to words.
_SHAPES: dict[str, Any] = {
    "ServiceMonitor": {
        "selector": {"matchLabels": ...},
        "endpoints": [{"port": str, "path": str, "interval": "duration",
                       "scrapeTimeout": "duration"}],
    },
    "PrometheusRule": {
        "groups": [{"name": str, "rules": [{"alert": str, "expr": str, "for": "duration",
                                            "labels": ..., "annotations": ...}]}],
    },
}  # fmt: skip
_OPTIONAL = {"for"}
_DURATION = re.compile(r"([0-9]+h)?([0-9]+m)?([0-9]+s)?", re.ASCII)
_SELECTED = re.compile(r"\b(\w+)\{([^}]*)\}")
_WORD = re.compile(r"\b(ahpa_\w+|up)\b")
#: Labels that Prometheus adds to what it reads by a ServiceMonitor.
_ADDED = {"namespace", "pod", "service", "job", "endpoint", "instance", "container"}


def served() -> dict[str, set[str]]:
    """Every metric that a run may serve, with its labels."""
    board = Board({"run": "r", "version": "0", "engine": "ddp", "ranks": "8", "node": "0"})
    for name in vars(board):
        if getattr(board, name) is None:
            setattr(board, name, 1)
    board.newest = Newest(*(1 for _ in Newest._fields))._replace(losses={"total": 1.0})
    board.logged["router/x"] = 1.0
    board.saved = lambda: Saved(1, 1.0)
    pulse = Pulse()
    pulse.mark("batch_end", 1)
    registry = CollectorRegistry()
    registry.register(BoardCollector(board, pulse))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {one.name: set(one.labels) for family in families for one in family.samples}


def monitoring_problems(docs: list[Document], service: Document) -> Iterator[str]:
    """What is wrong with the objects of extras/monitoring, beside the Service that they select."""
    for doc in docs:
        shape = _SHAPES.get(doc["kind"])
        if shape is None:
            continue
        title = f"{doc['kind']} {doc['metadata'].get('name')}"
        if doc["apiVersion"] != "monitoring.coreos.com/v1":
            yield f"{title}: apiVersion {doc['apiVersion']}"
        if doc.keys() != {"apiVersion", "kind", "metadata", "spec"}:
            yield f"{title}: unknown fields beside spec"
        if doc["metadata"].get("namespace") != service["metadata"]["namespace"]:
            yield f"{title}: it looks in its own namespace, and the pods are in another"
        found = list(_shape(doc["spec"], shape, "spec"))
        yield from (f"{title}: {problem}" for problem in found)
        if not found:
            check = _monitor if doc["kind"] == "ServiceMonitor" else _rules
            yield from (f"{title}: {problem}" for problem in check(doc["spec"], service))


def _shape(value: Any, shape: Any, path: str) -> Iterator[str]:
    if shape is ...:
        words = isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
        if not words:
            yield f"{path} must map words to words"
    elif shape == "duration":
        if not (isinstance(value, str) and value and _DURATION.fullmatch(value)):
            yield f"{path}: {value!r} is no duration"
    elif isinstance(shape, list):
        if not (isinstance(value, list) and value):
            yield f"{path} must be a list"
            return
        for number, one in enumerate(value):
            yield from _shape(one, shape[0], f"{path}.{number}")
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{path} must be an object"
            return
        yield from (f"{path}: unknown field {one}" for one in sorted(value.keys() - shape.keys()))
        missing = shape.keys() - value.keys() - _OPTIONAL
        yield from (f"{path}: {one} is missing" for one in sorted(missing))
        for name in sorted(shape.keys() & value.keys()):
            yield from _shape(value[name], shape[name], f"{path}.{name}")
    elif not isinstance(value, shape):
        yield f"{path} must be {shape.__name__}"


def _monitor(spec: dict[str, Any], service: Document) -> Iterator[str]:
    labels = service["metadata"]["labels"]
    if (
        not spec["selector"]["matchLabels"]
        or spec["selector"]["matchLabels"].items() - labels.items()
    ):
        yield "selector does not select the Service"
    ports = {port["name"] for port in service["spec"]["ports"]}
    for endpoint in spec["endpoints"]:
        if endpoint["port"] not in ports:
            yield f"port {endpoint['port']} is none of the Service's"
        if endpoint["path"] != "/metrics":
            yield f"path {endpoint['path']} is not served"
        if _seconds(endpoint["scrapeTimeout"]) > _seconds(endpoint["interval"]):
            yield "scrapeTimeout is longer than interval"


def _rules(spec: dict[str, Any], service: Document) -> Iterator[str]:
    rules = [rule for group in spec["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in rules]
    yield from (f"alert {name} is there twice" for name in set(names) if names.count(name) > 1)
    for rule in rules:
        told = rule["alert"]
        yield from (f"{told}: {p}" for p in expression_problems(rule["expr"], service))
        if rule["labels"].get("severity") not in ("critical", "warning"):
            yield f"{told}: severity must be critical or warning"
        if rule["annotations"].keys() != {"summary", "description"}:
            yield f"{told}: annotations must be summary and description"


def expression_problems(expression: str, service: Document) -> Iterator[str]:
    """Names and labels of a PromQL expression that nobody serves."""
    known = {**served(), "up": set()}
    found = set(_WORD.findall(expression))
    if not found:
        yield f"{expression!r} names no metric"
    yield from (f"nobody serves {name}" for name in sorted(found - known.keys()))
    for name, inside in _SELECTED.findall(expression):
        for matcher in filter(None, inside.split(",")):
            match = re.fullmatch(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"', matcher)
            if match is None or match[1] not in known.get(name, set()) | _ADDED:
                yield f"{name} has no label {matcher}"
            elif match[1] == "job" and match[2] != service["metadata"]["name"]:
                yield f"{name}: the job is named as the Service, {service['metadata']['name']}"
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        every = set().union(_ADDED, *(known.get(name, set()) for name in found))
        for label in labels.split(","):
            if label.strip() not in every:
                yield f"no metric of {expression!r} has the label {label.strip()}"


def dashboard_problems(board: dict[str, Any], service: Document) -> Iterator[str]:
    """What is wrong with a Grafana dashboard: queries, variables, places."""
    if not (board.get("uid") and board.get("title") and board.get("schemaVersion", 0) >= 36):
        yield "a dashboard needs uid, title and a schemaVersion that file provisioning knows"
    variables = {one["name"] for one in board["templating"]["list"]}
    taken: dict[tuple[int, int], str] = {}
    ids = [panel["id"] for panel in board["panels"]]
    if len(set(ids)) != len(ids):
        yield "two panels have one id"
    for panel in board["panels"]:
        title, place = panel["title"], panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"{title}: wider than the grid"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if taken.setdefault((x, y), title) != title:
                    yield f"{title} lies over {taken[x, y]}"
                    return
        if not panel["targets"]:
            yield f"{title} asks nothing"
        for target in panel["targets"]:
            if target["datasource"]["uid"] != "${datasource}":
                yield f"{title}: a data source of somebody's own"
            for name in re.findall(r"\$\{?(\w+)", target["expr"]):
                if name not in variables:
                    yield f"{title}: no variable {name}"
            yield from (f"{title}: {p}" for p in expression_problems(target["expr"], service))


def _seconds(duration: str) -> int:
    numbers = (int(part[:-1]) if part else 0 for part in _DURATION.fullmatch(duration).groups())  # type: ignore[union-attr]
    return sum(number * unit for number, unit in zip(numbers, (3600, 60, 1), strict=True))
