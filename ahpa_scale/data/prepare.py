# SPDX-License-Identifier: Apache-2.0
"""Pictures -> frozen VAE -> MDS shards with latent moments and reduced encoder levels.

Shapes: B batch, H W picture sides, C channels, g the token grid's side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import safetensors.torch as safetensors
import torch

from ahpa_scale import __version__, storage
from ahpa_scale.data import codec
from ahpa_scale.data.array_source import ArraySource
from ahpa_scale.data.card import (
    CARD_NAME,
    PRIOR_STATISTICS,
    SHARD_HASH,
    DatasetCard,
    LevelInfo,
    VaeInfo,
    write_card,
)
from ahpa_scale.data.codec_file import CODEC_NAME
from ahpa_scale.data.codec_making import MadeCodec, make_codec
from ahpa_scale.data.encode import BatchEncoder
from ahpa_scale.data.index import INDEX_LIMIT, INDEX_NAME, index_digest, parse_index
from ahpa_scale.data.pictures.rejects import REJECTS_NAME, Rejects
from ahpa_scale.data.reading import batches, report
from ahpa_scale.data.settings import DEMO, PrepareSettings
from ahpa_scale.data.sources import DemoSource, FolderSource, Source
from ahpa_scale.data.writing import ShardWriter
from ahpa_scale.disk_errors import naming
from ahpa_scale.errors import UserError
from ahpa_scale.method.level_codec import LevelCodec
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.progress import progress_bar


@dataclass(frozen=True)
class Written:
    """The results of a pass over the pictures, besides the shards.

    Attributes:
        encoder: holds the pictures' statistics.
        rejects: pictures that could not be read.
    """

    encoder: BatchEncoder
    rejects: Rejects


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
    check_device(settings.device)
    vae = FrozenVAE.from_pretrained(settings.vae_path)
    card, pictures = plan(settings, vae, given)
    vae = vae.to(settings.device)
    made = make_codec(settings, card, vae, pictures)
    card = made.on_card(card)
    if storage.is_remote(out):
        card, rejects = _write_remote(settings, card, vae, pictures, made)
    else:
        with (
            naming(out),
            storage.atomic_folder(out, replace=settings.overwrite, marker=CARD_NAME) as folder,
        ):
            written = write_shards(settings, card, vae, pictures, str(folder), made.codec)
            made.write(str(folder))
            card, rejects = finish(str(folder), card, written), written.rejects
    report(pictures, rejects, out, tell)
    return card


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


def plan(
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
        seed = settings.shuffle_seed or 0
        return FolderSource(
            settings.source,
            size=size,
            grid=grid,
            features=settings.features,
            shuffle_seed=seed,
            limit=limit,
        )
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


def _write_remote(
    settings: PrepareSettings,
    card: DatasetCard,
    vae: FrozenVAE,
    pictures: Source,
    made: MadeCodec,
) -> tuple[DatasetCard, Rejects]:
    """Upload shards as they fill, then the index, then the card.

    The local disk holds only the shard being filled and those being uploaded.
    """
    out = settings.out
    old = _shard_names(out) if storage.exists(storage.join(out, CARD_NAME)) else set()
    # From here on the old set is incomplete, and must not look complete.
    for name in (CARD_NAME, CODEC_NAME, PRIOR_STATISTICS, REJECTS_NAME):
        storage.remove(storage.join(out, name))
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
        written = write_shards(settings, card, vae, pictures, (room, out), made.codec)
    made.write(out)
    card = finish(out, card, written)
    for name in old - _shard_names(out):
        storage.remove(storage.join(out, name))
    return card, written.rejects


def write_shards(
    settings: PrepareSettings,
    card: DatasetCard,
    vae: FrozenVAE,
    pictures: Source,
    out: str | tuple[str, str],
    level_codec: LevelCodec | None,
) -> Written:
    """Encode and write every readable picture; `card` counts all pictures, of other parts too."""
    encoder = BatchEncoder(settings, card, vae, level_codec)
    rejects = rejects_of(settings, card)
    room, url = (out, None) if isinstance(out, str) else out
    writer = ShardWriter(
        room, url, columns=codec.columns(card), hashes=[SHARD_HASH], size_limit=settings.shard_size
    )
    bar = progress_bar(total=len(pictures), unit="picture", desc="prepare", shown=settings.progress)
    try:
        with bar:
            count = 0
            for batch in batches(pictures, settings, rejects):
                for sample in encoder.samples(batch):
                    writer.write(sample)
                count += len(batch)
                bar.update(count + len(rejects) - bar.n)
        writer.finish()
    except BaseException:
        # The writer's own context manager would write an index of the incomplete set here.
        writer.cancel_future_jobs()
        if writer.failure is not None:
            raise writer.failure from None
        raise
    return Written(encoder, rejects)


def rejects_of(settings: PrepareSettings, card: DatasetCard) -> Rejects:
    """An empty list of rejects, for all pictures that the set is planned to have."""
    advice = "mend them, or allow more with --rejects"
    return Rejects(card.num_samples, settings.rejects, advice)


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


def _shard_names(out: str) -> set[str]:
    where = storage.join(out, INDEX_NAME)
    return {
        shard.raw_data.basename
        for shard in parse_index(storage.read_bytes(where, INDEX_LIMIT), where).shards
    }
