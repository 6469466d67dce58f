# SPDX-License-Identifier: Apache-2.0
"""Pictures -> frozen VAE -> MDS shards with latent moments and reduced encoder levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

import safetensors.torch as safetensors

from ahpa_scale import storage
from ahpa_scale.data.array_source import ArraySource
from ahpa_scale.data.card import CARD_NAME, PRIOR_STATISTICS, DatasetCard, write_card
from ahpa_scale.data.codec_making import share_codec
from ahpa_scale.data.index import INDEX_NAME, index_digest
from ahpa_scale.data.making import Written, make_shards
from ahpa_scale.data.origin import Origin
from ahpa_scale.data.pictures.rejects import REJECTS_NAME
from ahpa_scale.data.planning import check_device, open_all
from ahpa_scale.data.reading import report
from ahpa_scale.data.settings import PrepareSettings
from ahpa_scale.data.shard_plan import ShardPlan, layout
from ahpa_scale.data.team import Team
from ahpa_scale.data.workplace import Workplace, working_for, write_index
from ahpa_scale.disk_errors import naming


def prepare(
    source: str | ArraySource,
    out: str,
    *,
    tell: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> DatasetCard:
    """Write a data set; options are the fields of PrepareSettings. Returns its card.

    Pictures in memory come as an ArraySource, which fixes their size, order and features. `tell`
    gets lines at the end about what was left out; `rejects.jsonl` lists unreadable pictures.

    The data set appears whole or not at all: locally by one rename, in an object store because
    readers need the card, which is written last.

    Raises:
        UserError: options, pictures or VAE do not fit; the message is one line.
        FileExistsError: `out` holds something that may not be replaced.
        OSError: the disk or the store refused.
    """
    given = source if isinstance(source, ArraySource) else None
    if isinstance(source, ArraySource):
        settings = source.settings(out, options)
    else:
        settings = PrepareSettings(source=source, out=out, **options)
    _check_target(settings)
    devices = settings.all_devices
    for device in devices:
        check_device(device)
    settings = replace(settings, device=devices[0], devices=None)
    card, pictures, vae = open_all(settings, given)
    # Pictures in memory are gone after an interruption, and no other process has them.
    origin = Origin.of(settings, card, pictures) if given is None else Origin(uuid4().hex, {})
    with naming(out), working_for(out) as workplace:
        _begin(settings, origin, workplace, anew=settings.overwrite or given is not None)
        team = Team(None, asdict(origin), workplace.folder)
        made = share_codec(settings, card, vae, pictures, team.identity, team.codec_place)
        card = made.on_card(card)
        plan = ShardPlan.of(settings, card, len(pictures))
        written = make_shards(settings, devices, card, vae, pictures, plan, workplace, made, team)

        def complete(folder: str) -> DatasetCard:
            write_index(folder, written.notes)
            made.write(folder)
            return finish(folder, card, written)

        whole = workplace.publish(
            out, written.names, complete, replace=settings.overwrite, marker=CARD_NAME
        )
    report(pictures, written.rejects, out, tell)
    return whole


def _begin(settings: PrepareSettings, origin: Origin, workplace: Workplace, *, anew: bool) -> None:
    if workplace.goes_on(origin, layout(settings), anew=anew):
        return
    if workplace.is_remote:
        # The old set becomes incomplete now, and must not look complete.
        for name in (CARD_NAME, INDEX_NAME, PRIOR_STATISTICS, REJECTS_NAME):
            storage.remove(storage.join(settings.out, name))
    workplace.begin(origin, layout(settings))


def _check_target(settings: PrepareSettings) -> None:
    card_there = storage.exists(storage.join(settings.out, CARD_NAME))
    if card_there and not settings.overwrite:
        raise FileExistsError(
            f"{settings.out} holds a data set already: pass --overwrite to replace"
        )
    if storage.is_remote(settings.out) or card_there:
        return
    folder = storage.local_path(settings.out)
    if not storage.is_free(folder):
        raise FileExistsError(
            f"{folder} holds something else than a data set: choose another place"
        )


def finish(out: str, card: DatasetCard, written: Written) -> DatasetCard:
    """Write the rejects and the priors' statistics, then the card, which completes the set."""
    written.rejects.write(out)
    statistics = written.encoder.prior_statistics()
    if statistics:
        storage.write_bytes(storage.join(out, PRIOR_STATISTICS), safetensors.save(statistics))
    index = storage.read_bytes(storage.join(out, INDEX_NAME))
    card = replace(
        card,
        num_samples=card.num_samples - len(written.rejects),
        scaling=written.encoder.scaling(),
        fingerprint=index_digest(index),
    )
    write_card(out, card)
    return card
