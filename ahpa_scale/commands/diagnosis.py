# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale diagnose`: the recoverability map of a checkpoint, before GPU weeks are spent.

Legend: L levels, D blocks, T bins of t.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ahpa_scale import console, storage
from ahpa_scale.algorithms.ahpa import self_groups
from ahpa_scale.config.brought import Brought, bring
from ahpa_scale.config.checks.data import check_data, check_vae_weights
from ahpa_scale.config.diagnosis import Diagnosis
from ahpa_scale.config.errors import choices
from ahpa_scale.config.schema import Config
from ahpa_scale.data.card import DatasetCard, read_card
from ahpa_scale.data.codec_file import read_codec
from ahpa_scale.data.planning import check_device
from ahpa_scale.data.stream import build_loader
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.figures import draw_recoverability
from ahpa_scale.evaluation.recoverability import RecoverabilityMap, recoverability
from ahpa_scale.level_names import OWN_BLOCKS, SOURCES, single_levels, source_of
from ahpa_scale.method import AlignmentSettings
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.run.build import build_generator
from ahpa_scale.run.trained import find_run, load_backbone, told_data, unaligned
from ahpa_scale.writable import try_to_write

NAMES = ("recoverability.json", "recoverability.png")
_BATCH = 64


def diagnose(wanted: Diagnosis, out: str) -> RecoverabilityMap:
    """Measure the map and write ``recoverability.json`` and ``recoverability.png`` to `out`.

    Raises:
        UserError: checkpoint, configuration, data set, levels or device do not fit.
        OSError: `out` can't be written to.
    """
    check_device(wanted.device)
    try_to_write(out)
    config, place = find_run(wanted.checkpoint, wanted.config)
    card = read_card(wanted.data)
    brought = bring(config, card, wanted.data, told_data(place), _tell)
    card = brought.card
    check_data(unaligned(config, card), card)
    generator = _load(config, card, place, wanted)
    levels = wanted.levels or _levels_of(wanted.source, card, generator.dit.depth)
    _check_levels(levels, card, generator.dit.depth)
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
        local = room if storage.is_remote(wanted.data) else None
        device = torch.device(wanted.device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            recoverability_map = recoverability(
                generator,
                _pictures(wanted, brought, levels, local),
                levels,
                wanted.bins,
                device,
                lead=AlignmentSettings.self_lead,
                progress=wanted.progress,
            )
    _write(recoverability_map, wanted, place, out)
    return recoverability_map


def _load(config: Config, card: DatasetCard, place: str, wanted: Diagnosis) -> DiffusionGenerator:
    vae = codec = None
    if card.kind == "images":
        vae = FrozenVAE.from_pretrained(config.vae.path)
        check_vae_weights(config, card, vae.identity)
        vae, codec = vae.to(wanted.device), read_codec(wanted.data, card)
        codec = None if codec is None else codec.to(wanted.device)
    generator = build_generator(config, card, vae, codec)
    load_backbone(generator.dit, place)
    return generator


def _levels_of(source: str | None, card: DatasetCard, depth: int) -> tuple[str, ...]:
    if source == OWN_BLOCKS.name:
        return tuple(self_groups(depth, 0))
    if source is not None and SOURCES[source].unit:
        return tuple(SOURCES[source].levels(depth))
    levels = [name for name in _known_levels(card) if source in (None, source_of(name).name)]
    if not levels:
        raise UserError(f"the data set has no levels of source {source!r}; prepare it with them")
    return tuple(levels)


def _known_levels(card: DatasetCard) -> list[str]:
    others = single_levels(held=card.prior_channels)
    return [*card.level_names, *(name for name in others if source_of(name).statistics)]


def _check_levels(levels: Sequence[str], card: DatasetCard, depth: int) -> None:
    known = _known_levels(card)
    for level in levels:
        source = source_of(level)
        names = source.levels(depth) if source.unit else known
        if source.unit and level not in names:
            raise UserError(f"no {source.unit} {level!r}; choose one of {names[0]} to {names[-1]}")
        if level not in names:
            raise UserError(f"the data set has no level {level!r}; {choices(level, known)}")
    twice = [level for level in levels if levels.count(level) > 1]
    if twice:
        raise UserError(f"the level {twice[0]!r} is named twice")


def _pictures(
    wanted: Diagnosis, brought: Brought, levels: Sequence[str], local: str | None
) -> Iterator[Mapping[str, Tensor]]:
    """The data set's first pictures, in order: `prepare` has shuffled them already."""
    card = brought.card
    labels = None if brought.labels is None else torch.tensor(brought.labels)
    loader = build_loader(
        wanted.data,
        local=local,
        batch_size=min(_BATCH, wanted.pictures, card.num_samples),
        levels=tuple(level for level in levels if level in card.prior_columns),
        shuffle=False,
        drop_last=False,
    )
    left = wanted.pictures
    for batch in loader:
        if labels is not None:
            batch["label"] = labels[batch["label"]]
        yield {name: value[:left] for name, value in batch.items()}
        left -= len(batch["index"])
        if left <= 0:
            return


def _tell(line: str) -> None:
    console.say(line, level=logging.WARNING)


def _write(recoverability_map: RecoverabilityMap, wanted: Diagnosis, place: str, out: str) -> None:
    content = {
        **recoverability_map.to_dict(),
        "checkpoint": place,
        "data": wanted.data,
        "pictures": recoverability_map.pictures,
        "source": "levels" if wanted.levels else wanted.source or "all",
    }
    name = place.rstrip("/").rsplit("/", 1)[-1]
    figure = draw_recoverability(
        recoverability_map, f"{name}, {recoverability_map.pictures} pictures"
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    storage.write_text(storage.join(out, NAMES[0]), json.dumps(content, indent=1) + "\n")
    storage.write_bytes(storage.join(out, NAMES[1]), picture.getvalue())
