# SPDX-License-Identifier: Apache-2.0
"""Finds a trained run: its configuration, and the weights for sampling."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import StoredCheckpoint, find_checkpoint
from ahpa_scale.checkpoint.local_copy import open_checkpoint
from ahpa_scale.checkpoint.weights import read_weights
from ahpa_scale.config.checks.data import read_data_card
from ahpa_scale.config.fitted import fitted
from ahpa_scale.config.load import load_mapping, load_yaml
from ahpa_scale.config.schema import Alignment, Config
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.errors import UserError
from ahpa_scale.models.backbone import BACKBONE, Backbone
from ahpa_scale.run_files import CONFIG_FILE


def find_run(place: str, config: str | None = None) -> tuple[Config, str]:
    """The configuration and the checkpoint of a run.

    Args:
        place: folder or URL of a checkpoint; folder or URL of checkpoints, or a run's output
            folder, to use the newest; or a safetensors file of a backbone's weights.
        config: the run's resolved configuration. None takes the one in the checkpoint, or looks in
            the folder of the safetensors file and in its parent.

    Raises:
        UserError: there is nothing, or a part is missing; the line says which.
    """
    named = None if config is None else _load(config)
    if not storage.is_remote(place):
        path = storage.local_path(place)
        if not path.exists():
            raise UserError(f"there is nothing at {path}")
        if path.is_file():
            return named or _load(_config_near(path)), str(path)
        if (path / CONFIG_FILE).is_file():
            named = named or _load(path / CONFIG_FILE)
            return named, _newest(path, named).url
    checkpoint = find_checkpoint(place)
    if named is None:
        named = told_config(checkpoint)
        if named is None:
            raise UserError(
                f"{checkpoint.url} does not tell its configuration: name it with --config"
            )
    return named, checkpoint.url


def _load(path: str | Path) -> Config:
    """A run's YAML. What it leaves to its data set is read from there, as training does."""
    config = load_yaml(path, elsewhere=True)
    model = config.model
    if None not in (model.input_size, model.in_channels, model.num_classes):
        return config
    try:
        return fitted(config, read_data_card(config))
    except (UserError, OSError) as error:
        raise UserError(
            f"{path} leaves sizes of the model to its data set, which can't be read: {error}; name "
            f"the {CONFIG_FILE} of the run's output folder, which holds them"
        ) from None


def told_config(checkpoint: StoredCheckpoint) -> Config | None:
    """The resolved configuration in a checkpoint's manifest; None if it holds none.

    Raises:
        ConfigError: it is not a valid configuration.
    """
    assert checkpoint.manifest is not None
    told: dict[str, Any] = checkpoint.manifest.config
    if not told:
        return None
    engine = told.get("parallelism") or {}
    if engine.get("engine") == "hsdp":
        # hsdp's copies on several nodes don't fit one device. fsdp2 is hsdp with a single copy.
        alone = {**engine, "engine": "fsdp2", "replicate_degree": None}
        told = {**told, "parallelism": alone}
    return load_mapping(told)


def told_data(place: str) -> dict[str, Any] | None:
    """The identity of the data set that a checkpoint was trained on; None if it has none.

    Args:
        place: as returned by `find_run`.
    """
    if not storage.is_remote(place) and storage.local_path(place).is_file():
        return None
    manifest = find_checkpoint(place).manifest
    return None if manifest is None else manifest.data_set


def unaligned(config: Config, card: DatasetCard) -> Config:
    """The run's configuration without alignment, to check its backbone against another data set.
    That set may hold other levels, or images.
    """
    data = config.data.model_copy(update={"online": card.kind == "images"})
    return config.model_copy(update={"alignment": Alignment(), "data": data})


def load_backbone(backbone: Backbone, place: str) -> None:
    """Loads a checkpoint's EMA into the backbone, or trained weights where there is no EMA.

    Args:
        backbone: built from the run's configuration.
        place: a checkpoint's folder or URL, or a safetensors file.

    Raises:
        UserError: the weights are unreadable, damaged, or of another model.
    """
    take_weights(backbone, _backbone(place), place)


def take_weights(
    backbone: Backbone, weights: Mapping[str, Tensor], place: str, *, assign: bool = False
) -> None:
    """Loads weights by the backbone's own names.

    Args:
        backbone: the model, on any device.
        weights: whole tensors.
        place: where they came from, for the message.
        assign: the backbone takes the tensors themselves, with their device and dtype.

    Raises:
        UserError: the weights belong to another model.
    """
    try:
        result = backbone.load_state_dict(weights, strict=False, assign=assign)
    except RuntimeError as error:
        shapes = str(error).splitlines()[-1].strip()
        raise UserError(f"{place} belongs to another configuration: {shapes}") from None
    for kind, names in (("lacks", result.missing_keys), ("has a strange", result.unexpected_keys)):
        if names:
            raise UserError(f"{place} {kind} {names[0]!r}: it belongs to another configuration")


def _config_near(file: Path) -> Path:
    for folder in (file.parent, file.parent.parent):
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    looked = f"{file.parent} or {file.parent.parent}"
    raise UserError(f"no {CONFIG_FILE} in {looked}: name the run's own with --config")


def _newest(folder: Path, config: Config) -> StoredCheckpoint:
    places = [str(folder), str(folder / "checkpoints")]
    if config.checkpoint.save_folder is not None:
        places.append(config.checkpoint.save_folder)
    for place in places:
        try:
            return find_checkpoint(place)
        except CheckpointError:
            continue
    raise UserError(f"no checkpoint in {', '.join(places)}: name the checkpoint itself")


def _backbone(place: str) -> dict[str, Tensor]:
    if not storage.is_remote(place) and storage.local_path(place).is_file():
        try:
            weights: dict[str, Tensor] = load_file(storage.local_path(place))
        except SafetensorError as error:
            raise UserError(f"{place} is no safetensors file: {error}") from None
        return {name.removeprefix(BACKBONE): value for name, value in weights.items()}
    with tempfile.TemporaryDirectory() as cache:
        copy = open_checkpoint(place, Path(cache))
        try:
            weights = read_weights(copy.folder)
        except CheckpointError as error:
            raise UserError(f"{place}: {error}") from None
        # Clone, because tensors are read lazily from files that are about to be removed.
        return {name: value.clone() for name, value in backbone_of(weights).items()}


def backbone_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights out of a whole model's, under its own names."""
    inner = ((name, value) for name, value in weights.items() if name.startswith(BACKBONE))
    return {name.removeprefix(BACKBONE): value for name, value in inner}
