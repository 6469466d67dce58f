# SPDX-License-Identifier: Apache-2.0
"""A trained run, found again: its configuration and the weights that its samples are drawn with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.algorithms.ema.parameters import plain_name
from ahpa_scale.checkpoint.composer_io import CheckpointError, load_plain
from ahpa_scale.checkpoint.resume import find_latest
from ahpa_scale.config.load import load_yaml
from ahpa_scale.config.main import RESOLVED
from ahpa_scale.config.schema import Config
from ahpa_scale.models.dit import DiT

BACKBONE = "dit."


def find_run(place: str, config: str | None = None) -> tuple[Config, Path]:
    """The configuration and the checkpoint file of a run.

    Args:
        place: a checkpoint (``ba*.pt``), safetensors of a DiT's weights, or a run's output folder,
            whose newest checkpoint is meant.
        config: the run's resolved configuration; None looks beside the checkpoint and above it.

    Raises:
        ValueError: there is nothing, or a part of it is missing; the line says which.
    """
    if storage.is_remote(place):
        raise ValueError(f"{place} lies in an object store: copy it here first")
    path = storage.local_path(place)
    if not path.exists():
        raise ValueError(f"there is nothing at {path}")
    found = Path(config) if config is not None else _config_near(path)
    loaded = load_yaml(found)
    return loaded, _newest(path, loaded) if path.is_dir() else path


def load_backbone(dit: DiT, path: Path) -> None:
    """Load a checkpoint's averages into the DiT, its trained weights where it has no averages.

    Args:
        dit: the backbone, built from the run's configuration.
        path: a Composer checkpoint or a safetensors file.

    Raises:
        ValueError: unreadable, or of another model.
    """
    weights = _safe_weights(path) if path.suffix == ".safetensors" else _composer_weights(path)
    result = dit.load_state_dict(weights, strict=False)
    for kind, names in (("lacks", result.missing_keys), ("has a strange", result.unexpected_keys)):
        if names:
            raise ValueError(f"{path} {kind} {names[0]!r}: it belongs to another configuration")


def _config_near(path: Path) -> Path:
    places = [path] if path.is_dir() else [path.parent, path.parent.parent]
    for folder in places:
        if (folder / RESOLVED).is_file():
            return folder / RESOLVED
    looked = " or ".join(str(folder) for folder in places)
    raise ValueError(f"no {RESOLVED} in {looked}: name the run's own with --config")


def _newest(folder: Path, config: Config) -> Path:
    saved = config.checkpoint.save_folder
    places = [str(folder), str(folder / "checkpoints")]
    if saved is not None and not storage.is_remote(saved):
        places.append(saved)
    for place in places:
        found = find_latest(place)
        if found is not None:
            return Path(found)
    raise ValueError(f"no checkpoint in {', '.join(places)}: name the file itself")


def _safe_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None
    return {name.removeprefix(BACKBONE): value for name, value in weights.items()}


def _composer_weights(path: Path) -> dict[str, Tensor]:
    try:
        state: Any = load_plain(path, "cpu")
    except CheckpointError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        inner = state["state"]
        weights = _backbone(inner["model"])
        for name, content in inner["algorithms"]:
            if name == "EMA":
                weights.update(_backbone(content["shadow"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is no checkpoint of a training run") from None
    return weights


def _backbone(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {plain_name(name): value for name, value in named.items()}
    return {k.removeprefix(BACKBONE): v for k, v in plain.items() if k.startswith(BACKBONE)}
