# SPDX-License-Identifier: Apache-2.0
"""What is wrong with manifests that belong together: references, numbers, exit codes, commands."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from k8s_jobs import policy_problems, train_job_problems
from k8s_manifests import Document, schema_problems
from k8s_network import network_problems
from k8s_pods import pod_problems, quantity, word_problems
from k8s_probes import probe_problems

from ahpa_scale.cli import app
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.load import load_config
from ahpa_scale.config.schema import parse_duration
from ahpa_scale.launch.environment import from_environment
from ahpa_scale.launch.placement import LaunchError

_LABEL = re.compile(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_SIZE = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
#: Seconds that processes may take to go once they have saved; see watch.guard and the launcher.
_FAREWELL = 30


@dataclass(frozen=True)
class Work:
    """A pod's specification, and the object it came from."""

    owner: Document
    labels: dict[str, str]
    spec: dict[str, Any]
    job: dict[str, Any] | None  # of the Job around it

    @property
    def title(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"


def works(docs: list[Document]) -> Iterator[Work]:
    """Every pod that the objects would make."""
    for doc in docs:
        kind, spec = doc["kind"], doc.get("spec", {})
        if kind == "Pod":
            yield Work(doc, doc["metadata"].get("labels", {}), spec, None)
        elif kind == "Job":
            yield _of_job(doc, spec)
        elif kind == "JobSet":
            yield from (_of_job(doc, one["template"]["spec"]) for one in spec["replicatedJobs"])
        elif kind == "TrainingRuntime":
            jobs = spec["template"]["spec"]["replicatedJobs"]
            yield from (_of_job(doc, one["template"]["spec"]) for one in jobs)


def _of_job(owner: Document, job: dict[str, Any]) -> Work:
    template = job["template"]
    return Work(owner, template.get("metadata", {}).get("labels", {}), template["spec"], job)


def problems(docs: list[Document], configs: list[Document] | None = None) -> list[str]:
    """Everything that is wrong with objects that are applied together.

    Args:
        docs: the objects.
        configs: what they may refer to besides, such as the base's for one of the extras.
    """
    found = [problem for doc in docs for problem in schema_problems(doc)]
    if found:  # what follows relies on the shape
        return found
    around = [*docs, *(configs or [])]
    found += [f"{d['kind']}: {problem}" for d in docs for problem in word_problems(d)]
    found += _objects(docs, around)
    for work in works(docs):
        if work.job is not None and work.owner["kind"] != "Job":
            wrapped = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
            found += schema_problems({**wrapped, "spec": work.job})
        checks = (pod_problems(work.spec), _references(work, around), _command(work, around))
        found += [f"{work.title}: {problem}" for check in checks for problem in check]
        if work.job is not None:
            found += [f"{work.title}: {p}" for p in policy_problems(work.owner, work.job)]
    found += train_job_problems(docs)
    found += network_problems(docs, list(works(docs)))
    return found


def _objects(docs: list[Document], around: list[Document]) -> Iterator[str]:
    spaces = {d["metadata"]["name"] for d in around if d["kind"] == "Namespace"}
    seen = set()
    for doc in docs:
        meta = doc["metadata"]
        title = f"{doc['kind']} {meta['name']}"
        if title in seen:
            yield f"{title} is there twice"
        seen.add(title)
        if not _NAME.fullmatch(meta["name"]):
            yield f"{title}: not a name: small letters, digits and -"
        if doc["kind"] != "Namespace" and meta.get("namespace") not in spaces:
            yield f"{title}: there is no namespace {meta.get('namespace')}"
        for key, value in meta.get("labels", {}).items():
            if not _LABEL.fullmatch(value):
                yield f"{title}: label {key}: {value!r} is no label"
        if doc["kind"] == "Namespace":
            mode = meta.get("labels", {}).get("pod-security.kubernetes.io/enforce")
            if mode != "restricted":
                yield f"{title}: pod security is {mode} and not restricted"


def _references(work: Work, around: list[Document]) -> Iterator[str]:
    names = {(d["kind"], d["metadata"]["name"]) for d in around}
    account = work.spec.get("serviceAccountName")
    if ("ServiceAccount", account) not in names:
        yield f"there is no service account {account}"
    for volume in work.spec.get("volumes", []):
        source = volume.get("configMap")
        if source and ("ConfigMap", source["name"]) not in names:
            yield f"volume {volume['name']}: there is no ConfigMap {source['name']}"
    for container in work.spec["containers"]:
        for one in container.get("envFrom", []):
            reference = one.get("secretRef") or one.get("configMapRef") or {}
            if "secretRef" in one and reference.get("optional") is not True:
                yield f"envFrom: Secret {reference.get('name')} must be optional: none is shipped"
        for one in container.get("env", []):
            reference = one.get("valueFrom", {}).get("secretKeyRef")
            if reference and reference.get("optional") is not True:
                yield f"env: Secret {reference.get('name')} must be optional: none is shipped"
            if not reference and re.search("key|secret|token|password", one["name"], re.I):
                yield f"env: {one['name']} belongs into a Secret"
    for constraint in work.spec.get("topologySpreadConstraints", []):
        wanted = constraint.get("labelSelector", {}).get("matchLabels", {})
        if not wanted or wanted.items() - work.labels.items():
            yield "topologySpreadConstraints: labelSelector does not select the pods themselves"


def environment(work: Work, index: int = 0, nodes: int = 1) -> dict[str, str]:
    """A pod's variables, with those that its controller adds."""
    (container,) = work.spec["containers"]
    found = {one["name"]: one.get("value", "") for one in container.get("env", [])}
    name = work.owner["metadata"]["name"]
    if work.job is not None and work.job.get("completionMode") == "Indexed":
        found["JOB_COMPLETION_INDEX"] = str(index)
    if work.owner["kind"] == "JobSet":
        (one,) = work.owner["spec"]["replicatedJobs"]
        labels = {
            "jobset-name": name,
            "replicatedjob-name": one["name"],
            "replicatedjob-replicas": str(one["replicas"]),
            "job-index": "0",
        }
        for variable in container["env"]:
            path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            match = re.fullmatch(r"metadata\.annotations\['jobset\.sigs\.k8s\.io/(.+)'\]", path)
            found[variable["name"]] = labels[match[1]] if match else variable.get("value", "")
    if work.owner["kind"] == "TrainingRuntime":
        found["PET_NNODES"], found["PET_NODE_RANK"] = str(nodes), str(index)
        found["PET_MASTER_ADDR"] = f"{name}-node-0-0.{name}"
        found["PET_MASTER_PORT"] = "29500"
        found["PET_NPROC_PER_NODE"] = "auto"
    return found


def _command(work: Work, around: list[Document]) -> Iterator[str]:
    """The real command line reads it, and the real configuration loads."""
    (container,) = work.spec["containers"]
    words = [*container.get("command", []), *container.get("args", [])]
    if work.job is not None and work.job.get("completionMode") == "Indexed":
        words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in words]
    if container.get("command"):
        yield "command replaces the image's entry point, tini; use args"
    if words[:1] == ["sleep"]:
        return
    if words[:1] != ["ahpa-scale"]:
        yield f"{words[:1]}: not a command of this project"
        return
    try:
        given = _parsed(words[1:])
    except (Exception, SystemExit) as error:  # click and typer have many
        yield f"{' '.join(words[:3])}: {getattr(error, 'message', error)}"
        return
    if words[1] == "launch":
        yield from _launch(work, given, around)
    if given.get("parts") is not None:
        yield from _parts(work, given["parts"], container["args"])


def _parsed(words: list[str]) -> dict[str, Any]:
    program, command = "ahpa-scale", typer.main.get_command(app)
    while hasattr(command, "get_command"):
        context = command.make_context(program, list(words), resilient_parsing=True)
        program, *words = words
        found = command.get_command(context, program)
        if found is None:
            raise ValueError(f"no such command: {program}")
        command = found
    return dict(command.make_context(program, list(words)).params)


def _launch(work: Work, given: dict[str, Any], around: list[Document]) -> Iterator[str]:
    assert work.job is not None
    nodes, nproc = work.job.get("completions", 0), given["nproc"]
    gpus = work.spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    if work.job.get("parallelism") != nodes:
        yield f"parallelism {work.job.get('parallelism')} and completions {nodes} differ"
    if work.job.get("completionMode") != "Indexed":
        yield "completionMode must be Indexed: nodes have numbers"
    if gpus is not None and int(gpus) != nproc:
        yield f"--nproc {nproc}, and the pod has {gpus} GPUs"
    places = set()
    for index in range(nodes):
        try:
            found = from_environment(environment(work, index, nodes), nproc)
        except LaunchError as error:
            yield f"node {index}: {error}"
            return
        places.add((found.nnodes, found.master_addr, found.master_port))
    name, kind = work.owner["metadata"]["name"], work.owner["kind"]
    host = f"{name}-0" if kind == "Job" else f"{name}-node-0-0"
    if places != {(nodes, f"{host}.{name}", 29500)}:
        yield f"nodes, host and port of node 0 are {sorted(places)}, and the pods are {nodes}"
    yield from _config(work, given["arguments"], nodes * nproc, nproc, around)


def _parts(work: Work, parts: int, words: list[str]) -> Iterator[str]:
    job = work.job or {}
    if (job.get("completions"), job.get("parallelism")) != (parts, parts):
        yield f"--parts {parts}, completions {job.get('completions')} and parallelism differ"
    if "--part=$(JOB_COMPLETION_INDEX)" not in words:
        yield "--part must be the pod's index, or all pods make the same part"


def _config(
    work: Work, arguments: list[str], world: int, local: int, around: list[Document]
) -> Iterator[str]:
    (container,) = work.spec["containers"]
    path = Path(arguments[0])
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in work.spec["volumes"]}
    source = volumes.get(mounts.get(str(path.parent), ""), {}).get("configMap")
    if source is None:
        yield f"{path}: no ConfigMap is mounted there"
        return
    maps = {d["metadata"]["name"]: d["data"] for d in around if d["kind"] == "ConfigMap"}
    text = maps.get(source["name"], {}).get(path.name)
    if text is None:
        yield f"{path}: ConfigMap {source['name']} has no {path.name}"
        return
    ranks = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local)}
    with tempfile.TemporaryDirectory() as room, mock.patch.dict(os.environ, ranks):
        path = Path(room) / path.name
        path.write_text(text)
        try:
            config = load_config([str(path), *arguments[1:]])
        except ConfigError as error:
            yield f"configuration: {error}"
            return
    yield from probe_problems(container, config)
    if not config.checkpoint.autoresume:
        yield "checkpoint.autoresume must be true: pods are started again"
    if not re.match("(s3|gs)://", config.checkpoint.save_folder or ""):
        yield f"checkpoint.save_folder: {config.checkpoint.save_folder} goes away with the pod"
    grace = parse_duration(config.checkpoint.grace or "1000000h") + _FAREWELL
    if work.spec.get("terminationGracePeriodSeconds", 30) < grace:
        yield f"terminationGracePeriodSeconds is less than checkpoint.grace needs, {grace:g}"
    if config.data.cache_limit is not None:
        number, unit = re.fullmatch(r"(\d+)(\w+)", config.data.cache_limit).groups()  # type: ignore[union-attr]
        size = volumes["local"].get("emptyDir", {}).get("sizeLimit")
        if int(number) * _SIZE[unit] >= (quantity(size) or 0):
            yield f"data.cache_limit fills the volume ({size}), and the pod is evicted"
