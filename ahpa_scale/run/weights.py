# SPDX-License-Identifier: Apache-2.0
"""Reads a model's weights from whatever people have, together with what the model tells about
itself. No data set is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ahpa_scale import storage, typed_json
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import StoredCheckpoint
from ahpa_scale.checkpoint.local_copy import open_checkpoint
from ahpa_scale.checkpoint.node import local_file, node_folder
from ahpa_scale.checkpoint.weights import Kind, read_backbone
from ahpa_scale.config.schema import Config
from ahpa_scale.data.card import read_card
from ahpa_scale.data.identity import identity, told_classes
from ahpa_scale.errors import UserError
from ahpa_scale.interchange.diffusers_dit import is_diffusers, read_diffusers
from ahpa_scale.interchange.official import Told, read_official
from ahpa_scale.interchange.stored import StoredModel
from ahpa_scale.models.backbone import BACKBONE
from ahpa_scale.models.description import DESCRIPTION, ModelDescription
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.run.trained import find_run, told_config
from ahpa_scale.tensor_files import read_safetensors

#: Endings of weights' files in a store, where nothing is read to tell what they are.
_FILES = (".safetensors", ".pt", ".pth")
#: The first bytes of a zip archive, and of a pickle.
_NOT_SAFETENSORS = (b"PK", b"\x80")


def open_weights(place: str, kind: Kind | None = None, told: Told | None = None) -> StoredModel:
    """The weights of a model, and what it is. Every rank must call it.

    Args:
        place: folder or URL of a checkpoint; a folder of checkpoints or a run's output folder, of
            which the newest is taken; a file that this package exported; a ``.pt`` file of the
            official DiT, SiT, REPA or iREPA code; or a folder of diffusers with a DiT in it.
        kind: 'ema' or 'model'; None takes the averages where there are any.
        told: what the user tells about a ``.pt`` file that does not tell it.

    Raises:
        UserError: there is nothing, the weights are damaged, or nothing tells what model it is.
        UnreachableError: a store does not answer.
    """
    if _is_file(place):
        with node_folder() as room:
            file = _brought(place, room)
            with file.open("rb") as opened:
                begin = opened.read(2)
            if begin.startswith(_NOT_SAFETENSORS):
                return read_official(file, place, kind, told)
            _refuse_hints(place, told)
            return _of_exported(place, file, kind)
    _refuse_hints(place, told)
    if holds_checkpoints(place):
        return _of_checkpoint(place, kind)
    return read_diffusers(storage.local_path(place), place, kind)


def holds_checkpoints(place: str) -> bool:
    """Whether a place is no file and no folder of diffusers, but one for checkpoints."""
    if _is_file(place):
        return False
    return storage.is_remote(place) or not is_diffusers(storage.local_path(place))


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
    _, in_channels, num_classes = model.sizes()
    facts = _own_data(config) if told is None else told
    classes = tuple(told_classes(facts)) if facts and not model.unconditional else ()
    return ModelDescription(
        depth=geometry.depth,
        width=geometry.width,
        heads=geometry.heads,
        patch_size=geometry.patch_size,
        input_size=geometry.input_size,
        in_channels=in_channels,
        num_classes=num_classes,
        qk_norm=model.qk_norm,
        null_class=not model.unconditional and model.label_dropout > 0,
        path=config.flow.path,
        classes=classes if len(classes) == num_classes else (),
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
        return identity(read_card(config.data.places[0]))
    except (UserError, OSError):
        return None


def _scaling(facts: Mapping[str, Any] | None) -> LatentScaling | None:
    if facts is None or facts.get("scaling") is None:
        return None
    return typed_json.fit(LatentScaling, facts["scaling"], "the checkpoint's data_set")


def _is_file(place: str) -> bool:
    if storage.is_remote(place):
        return place.endswith(_FILES)
    return storage.local_path(place).is_file()


def _refuse_hints(place: str, told: Told | None) -> None:
    if told not in (None, Told()):
        raise UserError(f"{place} is no .pt file: it tells itself what it holds")


def _brought(place: str, room: Path) -> Path:
    try:
        return local_file(place, room)
    except FileNotFoundError:
        raise UserError(f"there is nothing at {place}") from None


def _of_exported(place: str, file: Path, kind: Kind | None) -> StoredModel:
    weights, facts = read_safetensors(file, place)
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
    description.check_kind(kind, place)
    named = {name.removeprefix(BACKBONE): value for name, value in weights.items()}
    return StoredModel(description, named, place)


def _of_checkpoint(place: str, kind: Kind | None) -> StoredModel:
    config, url = find_run(place)
    with node_folder() as room:
        copy = open_checkpoint(url, room)
        try:
            chosen, read = read_backbone(copy.folder, kind)
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
