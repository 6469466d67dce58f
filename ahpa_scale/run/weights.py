# SPDX-License-Identifier: Apache-2.0
"""Reads a model's weights from whatever people have, together with what the model tells about
itself. No data set is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ahpa_scale import storage, typed_json
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import StoredCheckpoint
from ahpa_scale.checkpoint.local_copy import open_checkpoint
from ahpa_scale.checkpoint.node import local_file, node_folder
from ahpa_scale.checkpoint.weights import Kind, chosen_kind, read_weights
from ahpa_scale.config.schema import Config
from ahpa_scale.data.card import read_card
from ahpa_scale.data.identity import identity, told_classes
from ahpa_scale.errors import UserError
from ahpa_scale.models.backbone import BACKBONE
from ahpa_scale.models.description import DESCRIPTION, ModelDescription
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.run.trained import backbone_of, find_run, told_config

#: The ending of files that this package exports.
EXPORTED = ".safetensors"


@dataclass(frozen=True)
class StoredModel:
    """A model's weights and description.

    Attributes:
        description: what the model is.
        weights: tensors by the backbone's own names, on the CPU, in the dtype of the file.
        place: where they came from.
        remarks: what was left out on the way, one line each.
    """

    description: ModelDescription
    weights: Mapping[str, Tensor]
    place: str
    remarks: tuple[str, ...] = ()


def open_weights(place: str, kind: Kind | None = None) -> StoredModel:
    """The weights of a model, and what it is. Every rank must call it.

    Args:
        place: folder or URL of a checkpoint; a folder of checkpoints or a run's output folder, of
            which the newest is taken; or a safetensors file that this package exported.
        kind: 'ema' or 'model'; None takes the averages where there are any.

    Raises:
        UserError: there is nothing, the weights are damaged, or nothing tells what model it is.
        UnreachableError: a store does not answer.
    """
    if _is_file(place):
        with node_folder() as room:
            return _of_exported(place, _brought(place, room), kind)
    return _of_checkpoint(place, kind)


def describe(
    config: Config, told: Mapping[str, Any] | None, kind: Kind, batch: int | None
) -> ModelDescription:
    """Describes a model that this package trained.

    Args:
        config: the run's configuration.
        told: identity of the run's data set, from the checkpoint. None, as in older checkpoints,
            reads the card of that set; if it is gone, classes and scaling stay unknown.
        kind: which weights are meant.
        batch: batches trained; None if not known.
    """
    model, geometry = config.model, config.model.geometry()
    facts = _own_data(config) if told is None else told
    classes = tuple(told_classes(facts)) if facts and not model.unconditional else ()
    return ModelDescription(
        depth=geometry.depth,
        width=geometry.width,
        heads=geometry.heads,
        patch_size=geometry.patch_size,
        input_size=geometry.input_size,
        in_channels=model.in_channels,
        num_classes=model.num_classes,
        qk_norm=model.qk_norm,
        null_class=not model.unconditional and model.label_dropout > 0,
        path=config.flow.path,
        classes=classes if len(classes) == model.num_classes else (),
        scaling=_scaling(facts),
        vae=config.vae.path,
        vae_identity=str((facts or {}).get("vae") or ""),
        batch=batch,
        kind=kind,
        run_name=config.run_name,
        sampler=config.sampling.sampler().told(),
    )


def describe_checkpoint(checkpoint: StoredCheckpoint, kind: Kind) -> ModelDescription | None:
    """What a checkpoint's model is; None if the checkpoint does not hold its configuration."""
    config = told_config(checkpoint)
    if config is None or checkpoint.manifest is None:
        return None
    return describe(config, checkpoint.manifest.data_set, kind, checkpoint.batch)


def _own_data(config: Config) -> Mapping[str, Any] | None:
    try:
        return identity(read_card(config.data.remote or str(config.data.local)))
    except (UserError, OSError):
        return None


def _scaling(facts: Mapping[str, Any] | None) -> LatentScaling | None:
    if facts is None or facts.get("scaling") is None:
        return None
    return typed_json.fit(LatentScaling, facts["scaling"], "the checkpoint's data_set")


def _is_file(place: str) -> bool:
    if storage.is_remote(place):
        return place.endswith(EXPORTED)
    return storage.local_path(place).is_file()


def _brought(place: str, room: Path) -> Path:
    try:
        return local_file(place, room)
    except FileNotFoundError:
        raise UserError(f"there is nothing at {place}") from None


def _of_exported(place: str, file: Path, kind: Kind | None) -> StoredModel:
    try:
        with safe_open(str(file), framework="pt") as opened:
            facts: dict[str, str] = opened.metadata() or {}
        # Cloned, because the file may be removed while it is mapped into memory.
        weights = {name: value.clone() for name, value in load_file(file).items()}
    except SafetensorError as error:
        raise UserError(f"{place} is no safetensors file: {error}") from None
    told = facts.get(DESCRIPTION)
    if told is not None:
        description = ModelDescription.from_json(told, place)
    elif storage.is_remote(place):
        raise UserError(f"{place} does not describe its model: export it again")
    else:
        config, _ = find_run(place)
        written: Kind = "model" if facts.get("kind") == "model" else "ema"
        batch = facts.get("batch", "")
        count = int(batch) if batch.isascii() and batch.isdigit() else None
        description = describe(config, None, written, count)
    if kind is not None and kind != description.kind:
        raise UserError(f"{place} holds the kind {description.kind!r} only, not {kind!r}")
    named = {name.removeprefix(BACKBONE): value for name, value in weights.items()}
    return StoredModel(description, named, place)


def _of_checkpoint(place: str, kind: Kind | None) -> StoredModel:
    config, url = find_run(place)
    with node_folder() as room:
        copy = open_checkpoint(url, room)
        try:
            chosen = chosen_kind(copy.folder, kind)
            read = backbone_of(read_weights(copy.folder, chosen))
        except CheckpointError as error:
            raise CheckpointError(f"{copy.url}: {error}") from None
        weights = {name: value.clone() for name, value in read.items()}
    manifest = copy.manifest
    return StoredModel(
        describe(config, manifest.data_set, chosen, manifest.batch), weights, copy.url
    )


def as_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float32; other kinds of numbers stay as they are."""
    return {
        name: value.to(torch.float32) if value.is_floating_point() else value
        for name, value in weights.items()
    }
