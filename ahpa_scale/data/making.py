# SPDX-License-Identifier: Apache-2.0
"""Makes all shards of a preparation, or those that are left of it, and gathers what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.codec_making import MadeCodec
from ahpa_scale.data.encode import BatchEncoder
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.settings import PrepareSettings
from ahpa_scale.data.shard_maker import ShardMaker
from ahpa_scale.data.shard_plan import ShardPlan
from ahpa_scale.data.sources import Source
from ahpa_scale.data.team import Team, make_together
from ahpa_scale.data.workplace import Note, Workplace
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.progress import progress_bar


@dataclass(frozen=True)
class Written:
    """The results of a pass over the pictures, besides the shards.

    Attributes:
        encoder: holds the pictures' statistics.
        rejects: pictures that could not be read.
        notes: of the shards, in order.
    """

    encoder: BatchEncoder
    rejects: Rejects
    notes: Sequence[Note]

    @property
    def names(self) -> list[str]:
        """Names of the shards."""
        return [note.shard.raw_data.basename for note in self.notes if note.shard is not None]


def make_shards(
    settings: PrepareSettings,
    devices: Sequence[str],
    card: DatasetCard,
    vae: FrozenVAE,
    pictures: Source,
    plan: ShardPlan,
    workplace: Workplace,
    made: MadeCodec,
    team: Team,
) -> Written:
    """Makes the shards that are not done yet, on all devices.

    Args:
        settings: of the preparation.
        devices: torch devices; with one, this process makes them.
        card: counts all pictures, of other parts too.
        vae: the frozen autoencoder, on the settings' device.
        pictures: the source, or a part's share of it.
        plan: which pictures each shard holds.
        workplace: takes the shards.
        made: the codec of the levels.
        team: what other processes must know.

    Raises:
        UserError: too many pictures can't be read.
        OSError: the disk or the store refused.
        TeamError: a process failed.
    """
    rejects, done = rejects_of(settings, card), workplace.done()
    left = [number for number in range(plan.shards) if number not in done]
    bar = progress_bar(total=len(pictures), unit="picture", desc="prepare", shown=settings.progress)

    def told(count: int, reasons: Mapping[str, str]) -> None:
        rejects.add_all(reasons)
        bar.update(count + len(reasons))

    with bar:
        for number in done:
            rejects.add_all(workplace.note(number).rejects)
            bar.update(len(plan.positions(number)))
        if len(devices) == 1 or len(left) <= 1:
            spans = ((number, plan.positions(number)) for number in left)
            maker = ShardMaker(settings, card, vae, pictures, workplace, made.codec)
            maker.make(spans, told)
        else:
            make_together(settings, devices, plan, workplace.folder, team, left, told)
    return _gather(settings, card, vae, plan, workplace, made)


def _gather(
    settings: PrepareSettings,
    card: DatasetCard,
    vae: FrozenVAE,
    plan: ShardPlan,
    workplace: Workplace,
    made: MadeCodec,
) -> Written:
    """What all shards of a workplace say together, in their order."""
    encoder = BatchEncoder(settings, card, vae, made.codec)
    rejects = rejects_of(settings, card)
    notes = []
    for number in range(plan.shards):
        note = workplace.note(number)
        rejects.add_all(note.rejects)
        rejects.firsts += note.firsts
        if note.shard is not None:
            encoder.merge_state(workplace.statistics(number))
        notes.append(note)
    return Written(encoder, rejects, notes)


def rejects_of(settings: PrepareSettings, card: DatasetCard) -> Rejects:
    """An empty list of rejects, for all pictures that the set is planned to have."""
    advice = "mend them, or allow more with --rejects"
    return Rejects(card.num_samples, settings.rejects, advice)
