# SPDX-License-Identifier: Apache-2.0
"""Services, budgets and network policies against the pods that they are about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from k8s_checks import Work

PORT = 29500
#: Finds the pods for Prometheus; every overlay has it.
METRICS = "ahpa-scale-metrics"
#: The job's name: pods of another one carry another.
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
_SPACE = "kubernetes.io/metadata.name"


def network_problems(docs: list[dict[str, Any]], works: list[Work]) -> Iterator[str]:
    """What is wrong around the pods of a training."""
    ranks = [work for work in works if work.spec["containers"][0]["args"][1:2] == ["launch"]]
    for work in ranks:
        yield from _names(docs, work)
        yield from _metrics(docs, work)
        yield from _budget(docs, work)
        yield from _policies(docs, work)


def _names(docs: list[dict[str, Any]], work: Work) -> Iterator[str]:
    """The Service that gives pods their host names; a JobSet makes one by itself."""
    services = [doc for doc in docs if doc["kind"] == "Service"]
    services = [service for service in services if service["metadata"]["name"] != METRICS]
    if work.owner["kind"] != "Job":
        if services or "subdomain" in work.spec:
            yield f"{work.title}: a Service or subdomain beside that of the JobSet"
        return
    subdomain = work.spec.get("subdomain")
    service = next((s for s in services if s["metadata"]["name"] == subdomain), None)
    if service is None:
        yield f"{work.title}: subdomain: there is no Service {subdomain}"
        return
    spec = service["spec"]
    if not spec.get("selector") or spec["selector"].items() - work.labels.items():
        yield f"Service {subdomain}: selector does not select the pods"
    if spec.get("clusterIP") != "None":
        yield f"Service {subdomain}: clusterIP must be None, or pods have no names"
    if spec.get("publishNotReadyAddresses") is not True:
        yield f"Service {subdomain}: publishNotReadyAddresses: ranks meet before pods are ready"
    (container,) = work.spec["containers"]
    named = {p["name"]: (p["containerPort"], p["protocol"]) for p in container.get("ports", [])}
    for port in spec["ports"]:
        target = named.get(port["targetPort"])
        if target is None:
            yield f"Service {subdomain}: targetPort: the pod has no port {port['targetPort']}"
        elif target != (port["port"], port["protocol"]):
            yield f"Service {subdomain}: port {port['name']} is not the pod's {target}"
    if {(p["port"], p["protocol"]) for p in spec["ports"]} != {(PORT, "TCP"), (PORT, "UDP")}:
        yield f"Service {subdomain}: ports must be {PORT} by TCP, and by UDP for the watch"


def _metrics(docs: list[dict[str, Any]], work: Work) -> Iterator[str]:
    """The Service that Prometheus finds the pods by."""
    found = [d for d in docs if d["kind"] == "Service" and d["metadata"]["name"] == METRICS]
    if len(found) != 1:
        yield f"{len(found)} Services {METRICS}"
        return
    spec = found[0]["spec"]
    if not spec.get("selector") or spec["selector"].items() - work.labels.items():
        yield f"Service {METRICS}: selector does not select the pods"
    if spec.get("clusterIP") != "None":
        yield f"Service {METRICS}: clusterIP must be None: each pod is read, and not one of them"
    port = _metrics_port(work)
    wanted = [{"name": "metrics", "port": port, "targetPort": "metrics", "protocol": "TCP"}]
    if spec["ports"] != wanted:
        yield f"Service {METRICS}: its one port must be the pod's, metrics, {port}"


def _metrics_port(work: Work) -> int | None:
    ports = work.spec["containers"][0].get("ports", [])
    return next((one["containerPort"] for one in ports if one["name"] == "metrics"), None)


def _others(rules: list[dict[str, Any]], work: Work) -> Iterator[str]:
    """Who gets in beside the ranks: one namespace, to the port of the metrics alone."""
    wanted = [{"protocol": "TCP", "port": _metrics_port(work)}]
    scrapers = [r for r in rules if r.get("ports") == wanted and _one_space(r.get("from", []))]
    if len(scrapers) != 1:
        yield f"NetworkPolicy: ingress: {len(scrapers)} rules let a namespace in to the metrics"
    if len(rules) != len(scrapers):
        yield "NetworkPolicy: ingress: others than the ranks get in"


def _one_space(peers: list[dict[str, Any]]) -> bool:
    """Whether these are one namespace, by its name."""
    if len(peers) != 1 or peers[0].keys() != {"namespaceSelector"}:
        return False
    selector = peers[0]["namespaceSelector"]
    return selector.keys() == {"matchLabels"} and selector["matchLabels"].keys() == {_SPACE}


def _budget(docs: list[dict[str, Any]], work: Work) -> Iterator[str]:
    budgets = [doc["spec"] for doc in docs if doc["kind"] == "PodDisruptionBudget"]
    mine = [b for b in budgets if _selects(b.get("selector"), work.labels)]
    if len(mine) != 1:
        yield f"{work.title}: {len(mine)} PodDisruptionBudgets select its pods"
        return
    least = mine[0].get("minAvailable")
    nodes = (work.job or {}).get("completions", 1)
    if "maxUnavailable" in mine[0] or not isinstance(least, int):
        yield "PodDisruptionBudget: a Job's pods have no scale: only a number as minAvailable works"
    elif not 1 <= least < max(nodes, 2):
        yield f"PodDisruptionBudget: minAvailable {least} of {nodes} pods: no node could be drained"


def _selects(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """An empty selector selects all; none selects nothing."""
    return selector is not None and not selector.get("matchLabels", {}).items() - labels.items()


def _policies(docs: list[dict[str, Any]], work: Work) -> Iterator[str]:
    policies = [doc["spec"] for doc in docs if doc["kind"] == "NetworkPolicy"]
    name = work.owner["metadata"]["name"]
    if work.labels.get(INSTANCE) != name:
        yield f"{work.title}: label {INSTANCE} must be the job's name, {name}"
    for policy in policies:
        for word in set(policy["policyTypes"]) - {"Ingress", "Egress"}:
            yield f"NetworkPolicy: policyTypes: {word} is none"
    whole = [p for p in policies if p["podSelector"] == {}]
    if not any({"Ingress", "Egress"} == set(p["policyTypes"]) for p in whole):
        yield "NetworkPolicy: none closes all pods, inwards and outwards"
    mine = [p for p in policies if _selects(p["podSelector"], work.labels)]
    for way, side in (("ingress", "from"), ("egress", "to")):
        for policy in mine:
            among = any(_between(rule.get(side, []), work.labels) for rule in policy.get(way, []))
            if among and INSTANCE not in policy["podSelector"].get("matchLabels", {}):
                yield f"NetworkPolicy: {way}: it lets in another job's ranks as well"
        rules = [rule for policy in mine for rule in policy.get(way, [])]
        among = [rule for rule in rules if _between(rule.get(side, []), work.labels)]
        for port, protocol in ((PORT, "TCP"), (PORT, "UDP"), (32768, "TCP"), (60999, "TCP")):
            if not any(_open(rule, port, protocol) for rule in among):
                yield f"NetworkPolicy: {way}: {protocol} {port} is closed between the ranks"
        if way == "ingress":
            yield from _others([rule for rule in rules if rule not in among], work)
    out = [rule for policy in mine for rule in policy.get("egress", [])]
    for what, port, protocol in (
        ("names", 53, "UDP"),
        ("names", 53, "TCP"),
        ("stores", 443, "TCP"),
    ):
        if not any(_open(rule, port, protocol) for rule in out):
            yield f"NetworkPolicy: egress: {what} can't be reached by {protocol} {port}"
    if any("ports" not in rule or not rule.get("to") for rule in out):
        yield "NetworkPolicy: egress: a rule without ports or ends opens everything"


def _between(peers: list[dict[str, Any]], labels: dict[str, str]) -> bool:
    """Whether all these are the pods of this very job, and no others of the namespace."""
    return bool(peers) and all(
        peer.keys() == {"podSelector"}
        and peer["podSelector"].get("matchLabels", {}).keys() >= {COMPONENT, INSTANCE}
        and _selects(peer["podSelector"], labels)
        for peer in peers
    )


def _open(rule: dict[str, Any], port: int, protocol: str) -> bool:
    return any(
        one["protocol"] == protocol and one["port"] <= port <= one.get("endPort", one["port"])
        for one in rule.get("ports", [])
    )
