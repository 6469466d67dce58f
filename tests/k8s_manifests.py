# SPDX-License-Identifier: Apache-2.0
"""The manifests of k8s/, as files and as kustomize renders them, and what one is by its schema."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from job import BIN, ROOT
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
from kubeflow_trainer_api.models.trainer_v1alpha1_training_runtime import (
    TrainerV1alpha1TrainingRuntime,
)
from pydantic import ValidationError

Document = dict[str, Any]

K8S = ROOT / "k8s"
KUBECTL = BIN / "kubectl"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
#: The oldest Kubernetes that is supported, one that differs from both ends, and the newest known.
VERSIONS = ("1.29", "1.32", kubernetes_validate.latest_version())
#: Each is a custom resource: no part of Kubernetes, so its own package has its schema.
CUSTOM: dict[tuple[str, str], Any] = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): JobsetV1alpha2JobSet,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): TrainerV1alpha1TrainJob,
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): TrainerV1alpha1TrainingRuntime,
}

# It would read megabytes of JSON anew for each object.
_utils = kubernetes_validate.utils
_utils.schema_contents = functools.lru_cache(None)(_utils.schema_contents)


def applied(folder: Path = K8S) -> list[Path]:
    """The files that `kubectl apply -f FOLDER` sends."""
    return sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".yml", ".json"))


def documents(*paths: Path) -> list[Document]:
    """All objects of some files."""
    return [doc for path in paths for doc in yaml.safe_load_all(path.read_text()) if doc]


@functools.cache
def _rendered(folder: Path) -> str:
    done = subprocess.run(
        [KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Deprecated fields work until they don't.
    assert not done.stderr, done.stderr
    return done.stdout


def rendered(folder: Path) -> list[Document]:
    """All objects of a folder, as kustomize renders them."""
    return [doc for doc in yaml.safe_load_all(_rendered(folder)) if doc]


def overlay(name: str) -> list[Document]:
    """All objects of an overlay, as kustomize renders them."""
    return rendered(K8S / "overlays" / name)


def base() -> list[Document]:
    """All objects of the base, as kustomize renders them."""
    return rendered(K8S / "base")


def schema_problems(doc: Document, versions: tuple[str, ...] = VERSIONS) -> Iterator[str]:
    """What the API server of each version would say to an object: unknown fields, wrong types."""
    title = f"{doc.get('kind')} {doc.get('metadata', {}).get('name')}"
    model = CUSTOM.get((str(doc.get("apiVersion")), str(doc.get("kind"))))
    if model is not None:
        yield from (f"{title}: {problem}" for problem in _model_problems(doc, model))
        return
    for version in versions:
        try:
            kubernetes_validate.validate(doc, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(map(str, error.absolute_path))
            yield f"{title}: {version}: {place}: {error.message}"
        except (kubernetes_validate.SchemaNotFoundError, KeyError) as error:
            yield f"{title}: {version}: unknown kind: {error}"


def _model_problems(doc: Document, model: Any) -> Iterator[str]:
    """The models drop what they don't know, so what comes out is compared with what went in."""
    try:
        known = model.from_dict(doc).to_dict()
    except (ValidationError, ValueError, TypeError, AttributeError) as error:
        yield f"{model.__name__}: {' '.join(str(error).split())}"
        return
    yield from _lost(doc, known, "")


def _lost(given: Any, known: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key not in known:
                yield f"unknown field {path}.{key}".replace(" .", " ")
            else:
                yield from _lost(value, known[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for index, (value, other) in enumerate(zip(given, known, strict=True)):
            yield from _lost(value, other, f"{path}.{index}")
    elif given != known:
        yield f"{path.lstrip('.')}: {given!r} is read as {known!r}"


def named(docs: list[Document], kind: str, name: str | None = None) -> Document:
    """The one object of a kind (and name)."""
    found = [d for d in docs if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]
