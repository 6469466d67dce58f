# SPDX-License-Identifier: Apache-2.0
"""One data set made by several processes; each encodes its share of the pictures.

Every part has its own folder with its index and its statistics. A part is complete once its
`part.json` exists. The process that finds all parts complete writes the index over all shards, the
statistics, and last the card. Pictures keep the order of a preparation in one process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import safetensors.torch as safetensors
from safetensors import SafetensorError

from ahpa_scale import storage, typed_json
from ahpa_scale.data.card import CARD_NAME, DatasetCard, read_card
from ahpa_scale.data.codec_file import CODEC_NAME
from ahpa_scale.data.codec_making import MadeCodec, share_codec
from ahpa_scale.data.encode import BatchEncoder
from ahpa_scale.data.index import INDEX_LIMIT, INDEX_NAME, parse_index
from ahpa_scale.data.making import Written, make_shards, rejects_of
from ahpa_scale.data.origin import Origin
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.planning import check_device, open_all
from ahpa_scale.data.prepare import finish
from ahpa_scale.data.reading import report
from ahpa_scale.data.settings import Part, PrepareSettings
from ahpa_scale.data.shard_plan import ShardPlan, layout
from ahpa_scale.data.sources.some import SomeOf
from ahpa_scale.data.team import Team
from ahpa_scale.data.workplace import working_for, write_index
from ahpa_scale.disk_errors import naming
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae import FrozenVAE

PART_NAME = "part.json"
_STATISTICS = "statistics.safetensors"
#: Most bytes of `part.json`.
_PART_LIMIT = 1 << 26
#: Most bytes of the statistics.
_STATISTICS_LIMIT = 4 << 30


def prepare_part(
    source: str,
    out: str,
    part: Part,
    *,
    tell: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> DatasetCard | None:
    """Prepares one part, and finishes the set if it is the last one; a complete part is kept.

    Args:
        source: as for :func:`ahpa_scale.data.prepare.prepare`.
        out: place of the whole data set, the same for all parts.
        part: which part to prepare.
        tell: gets lines at the end about what was left out.
        options: further fields of PrepareSettings, the same for all parts.

    Returns:
        The whole set's card; None while other parts are missing.

    Raises:
        UserError: options, pictures or VAE do not fit, or are not those of another part.
        FileExistsError: `out` holds something else.
        OSError: the disk or the store refused.
    """
    settings = PrepareSettings(source=source, out=out, **options)
    if settings.overwrite:
        raise UserError("overwrite is for sets made in one piece: with parts, choose another out")
    _check_place(out, part)
    devices = settings.all_devices
    for device in devices:
        check_device(device)
    settings = replace(settings, device=devices[0], devices=None)
    card, pictures, vae = open_all(settings)
    if part.count > len(pictures):
        raise UserError(f"{len(pictures)} pictures make no {part.count} parts")
    origin = Origin.of(settings, card, pictures)
    parts = [Part(index, part.count) for index in range(part.count)]
    # Check all parts: one of another preparation would keep the set from being finished.
    made = [_made(out, each, origin) for each in parts]
    team = Team(part, asdict(origin), out)
    level_codec = share_codec(settings, card, vae, pictures, team.identity, out)
    if level_codec.info is not None:
        origin = replace(origin, codec=level_codec.info.digest)
    card = level_codec.on_card(card)
    if not made[part.index]:
        share = SomeOf(pictures, part.span(len(pictures)))
        rejects = _write(settings, devices, card, vae, share, origin, level_codec, team)
        report(share, rejects, storage.join(out, part.folder), tell)
    if storage.exists(storage.join(out, CARD_NAME)):
        return read_card(out)
    if not all(_made(out, each, origin) for each in parts):
        return None
    written = _merge(settings, card, vae, parts, level_codec)
    whole = finish(out, card, written)
    report(pictures, written.rejects, out, tell)
    return whole


def _check_place(out: str, part: Part) -> None:
    """Refuses a folder that holds another data set, or something else."""
    mine = storage.exists(storage.join(out, part.folder, PART_NAME))
    if storage.exists(storage.join(out, CARD_NAME)) and not mine:
        raise FileExistsError(f"{out} holds a data set already: choose another place")
    if storage.is_remote(out) or mine:
        return
    folder = storage.local_path(out)
    ending = part.folder.partition("-of-")[2]
    others = storage.entries(folder) if folder.is_dir() else ()
    if folder.is_file() or any(
        f"-of-{ending}" not in each.name and CODEC_NAME not in each.name for each in others
    ):
        raise FileExistsError(f"{folder} holds something else: choose another place")


def _made(out: str, part: Part, origin: Origin) -> bool:
    """Whether a part is complete.

    Raises:
        UserError: it is, but was made from something else.
    """
    where = storage.join(out, part.folder, PART_NAME)
    if not storage.exists(where):
        return False
    content = storage.read_bytes(where, _PART_LIMIT)
    origin.check(typed_json.parse_as(Origin, content, where, _PART_LIMIT), where)
    return True


def _write(
    settings: PrepareSettings,
    devices: Sequence[str],
    card: DatasetCard,
    vae: FrozenVAE,
    share: SomeOf,
    origin: Origin,
    made: MadeCodec,
    team: Team,
) -> Rejects:
    assert team.part is not None
    place = storage.join(settings.out, team.part.folder)
    plan = ShardPlan.of(settings, card, len(share))

    def complete(folder: str) -> Rejects:
        write_index(folder, written.notes)
        written.rejects.write(folder)
        state = safetensors.save(written.encoder.state())
        storage.write_bytes(storage.join(folder, _STATISTICS), state)
        storage.write_text(storage.join(folder, PART_NAME), json.dumps(asdict(origin)))
        return written.rejects

    with naming(place), working_for(place) as workplace:
        if not workplace.goes_on(origin, layout(settings), anew=False):
            workplace.begin(origin, layout(settings))
        written = make_shards(settings, devices, card, vae, share, plan, workplace, made, team)
        return workplace.publish(place, written.names, complete, replace=False, marker=PART_NAME)


def _merge(
    settings: PrepareSettings,
    card: DatasetCard,
    vae: FrozenVAE,
    parts: Sequence[Part],
    made: MadeCodec,
) -> Written:
    """Writes the whole set's index; two processes at once write the same bytes."""
    encoder = BatchEncoder(settings, card, vae, made.codec)
    rejects, shards = rejects_of(settings, card), []
    for part in parts:
        folder = storage.join(settings.out, part.folder)
        if rejects.add_part(folder) == len(part.span(card.num_samples)):
            continue  # no picture of it could be read
        _add_statistics(encoder, storage.join(folder, _STATISTICS))
        where = storage.join(folder, INDEX_NAME)
        index = parse_index(storage.read_bytes(where, INDEX_LIMIT), where)
        for shard in index.model_dump()["shards"]:
            shard["raw_data"]["basename"] = f"{part.folder}/{shard['raw_data']['basename']}"
            shards.append(shard)
    whole = json.dumps({"version": 2, "shards": shards}, sort_keys=True)
    storage.write_text(storage.join(settings.out, INDEX_NAME), whole)
    return Written(encoder, rejects, ())


def _add_statistics(encoder: BatchEncoder, where: str) -> None:
    content = storage.read_bytes(where, _STATISTICS_LIMIT)
    try:
        encoder.merge_state(safetensors.load(content))
    except (SafetensorError, UserError) as error:
        raise UserError(f"{where} cannot be read ({error}): remove its folder") from None
