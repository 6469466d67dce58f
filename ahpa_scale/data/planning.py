# SPDX-License-Identifier: Apache-2.0
"""Opens what a preparation needs, and writes the card as far as it is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import torch

from ahpa_scale import __version__
from ahpa_scale.data.array_source import ArraySource
from ahpa_scale.data.card import DatasetCard, LevelInfo, VaeInfo
from ahpa_scale.data.pictures.files import shown
from ahpa_scale.data.settings import DEMO, PrepareSettings
from ahpa_scale.data.sources import (
    DecodeOptions,
    DemoSource,
    Source,
    SourceOptions,
    open_source,
)
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import LatentScaling


def check_device(name: str) -> None:
    """Check that torch can use a device here.

    Raises:
        UserError: it cannot; the message says why.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error


def open_all(
    settings: PrepareSettings, given: ArraySource | None = None
) -> tuple[DatasetCard, Source, FrozenVAE]:
    """The card, without the values that are known only after the pass; the opened source; and the
    VAE on the settings' device.
    """
    vae = FrozenVAE.from_pretrained(settings.vae_path)
    card, pictures = plan_set(settings, vae, given)
    return card, pictures, vae.to(settings.device)


def plan_set(
    settings: PrepareSettings, vae: FrozenVAE, given: ArraySource | None
) -> tuple[DatasetCard, Source]:
    """The card, without the values that are known only after the pass, and the opened source."""
    if settings.size % vae.downsample:
        near = max(1, round(settings.size / vae.downsample)) * vae.downsample
        raise UserError(
            f"size {settings.size} is no multiple of the VAE's downsampling {vae.downsample}: "
            f"the nearest is {near}"
        )
    side = settings.size // vae.downsample
    grid = settings.grid if settings.grid is not None else max(1, side // 2)
    if grid > side:
        raise UserError(f"grid {grid} is finer than the latent of {side}x{side}")
    pictures = _open_source(settings, grid) if given is None else given.on_grid(grid)
    card = DatasetCard(
        kind=settings.kind,
        num_samples=len(pictures),
        classes=pictures.classes,
        image_size=settings.size,
        latent_shape=(vae.latent_channels, side, side),
        grid=grid,
        vae=VaeInfo(settings.vae_path, vae.identity, vae.downsample, vae.latent_channels),
        scaling=LatentScaling.from_config(vae.config),
        levels=_chosen_levels(settings.levels, vae),
        prior_dtype=settings.stored_dtype,
        external_channels=pictures.external_channels,
        source=pictures.description,
        fingerprint="",
        version=__version__,
        torch=torch.__version__.partition("+")[0],
    )
    return card, pictures


def _open_source(settings: PrepareSettings, grid: int) -> Source:
    size, limit = settings.size, settings.limit
    if settings.source != DEMO:
        how = DecodeOptions(exif=settings.exif is not False, least_side=settings.least_side or 1)
        options = SourceOptions(
            size=size,
            grid=grid,
            features=settings.features,
            shuffle_seed=settings.shuffle_seed or 0,
            limit=limit,
            decode=how,
            classes_from=settings.classes_from,
            class_depth=settings.class_depth,
            image_column=settings.image_column,
            label_column=settings.label_column,
        )
        source = open_source(settings.source, options)
        _refuse_one_class(settings, source.classes)
        return source
    demo = settings.demo
    return DemoSource(
        demo.preset,
        size=size,
        grid=grid,
        num_samples=demo.num_samples if limit is None else min(limit, demo.num_samples),
        seed=demo.seed,
        start=demo.start,
        oracle=settings.features is not None,
    )


def _refuse_one_class(settings: PrepareSettings, classes: Sequence[str]) -> None:
    """Labels of one class teach nothing, and most often a folder above that of the classes was
    named.
    """
    if len(classes) == 1 and settings.class_depth is None:
        raise UserError(
            f"{settings.source} has one class only, {shown(classes[0])}: if that is meant, give "
            "--class-depth 0; if deeper folders are the classes, --class-depth 2"
        )


def _chosen_levels(names: Sequence[str] | None, vae: FrozenVAE) -> tuple[LevelInfo, ...]:
    known = [level.name for level in vae.levels]
    for name in names or ():
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UserError(f"the VAE has no level {name!r}: did you mean {near}?")
    return tuple(
        LevelInfo(level.name, level.channels)
        for level in vae.levels
        if names is None or level.name in names
    )
