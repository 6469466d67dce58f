# SPDX-License-Identifier: Apache-2.0
"""One data set made by several processes; each encodes its share of the pictures.

Every part has its own folder with its index and its statistics. A part is complete once its
`part.json` exists. The process that finds all parts complete writes the index over all shards, the
statistics, and last the card. Pictures keep the order of a preparation in one process.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import safetensors.torch as safetensors
from safetensors import SafetensorError

from ahpa_scale import storage, typed_json
from ahpa_scale.data.card import CARD_NAME, DatasetCard, read_card
from ahpa_scale.data.codec_file import CODEC_NAME
from ahpa_scale.data.codec_making import MadeCodec, share_codec
from ahpa_scale.data.encode import BatchEncoder
from ahpa_scale.data.index import INDEX_LIMIT, INDEX_NAME, parse_index
from ahpa_scale.data.level_sample import Sampled
from ahpa_scale.data.pictures.files import shown
from ahpa_scale.data.pictures.rejects import REJECTS_NAME, Rejects
from ahpa_scale.data.prepare import (
    Written,
    check_device,
    finish,
    plan,
    rejects_of,
    write_shards,
)
from ahpa_scale.data.reading import report
from ahpa_scale.data.settings import Part, PrepareSettings
from ahpa_scale.data.sources import FolderSource, Source
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
    check_device(settings.device)
    vae = FrozenVAE.from_pretrained(settings.vae_path)
    card, pictures = plan(settings, vae, None)
    if part.count > len(pictures):
        raise UserError(f"{len(pictures)} pictures make no {part.count} parts")
    identity = _Identity.of(settings, card, pictures)
    parts = [Part(index, part.count) for index in range(part.count)]
    # Check all parts: one of another preparation would keep the set from being finished.
    made = [_made(out, each, identity) for each in parts]
    vae = vae.to(settings.device)
    level_codec = share_codec(settings, card, vae, pictures, asdict(identity))
    if level_codec.info is not None:
        identity = replace(identity, codec=level_codec.info.digest)
    card = level_codec.on_card(card)
    if not made[part.index]:
        share = Sampled(pictures, part.span(len(pictures)))
        rejects = _write(settings, card, vae, share, part, identity, level_codec)
        report(share, rejects, storage.join(out, part.folder), tell)
    if storage.exists(storage.join(out, CARD_NAME)):
        return read_card(out)
    if not all(_made(out, each, identity) for each in parts):
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


@dataclass(frozen=True)
class _Identity:
    """What parts of one set must have in common.

    Attributes:
        options: digest of the card and the options.
        pictures: per class of a folder, the number and digest of the files that this machine sees.
        codec: digest of the levels' codec; empty while it is not known, and with pooled levels.
    """

    options: str
    pictures: dict[str, str]
    codec: str = ""

    @classmethod
    def of(cls, settings: PrepareSettings, card: DatasetCard, pictures: Source) -> _Identity:
        content = [card.to_json(), settings.scaling, settings.shuffle_seed, repr(settings.demo)]
        options = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        if not isinstance(pictures, FolderSource):
            return cls(options, {})
        return cls(options, pictures.listing.digests(settings.workers))

    def check(self, told: _Identity, where: str) -> None:
        """Refuses a part that was made from something else.

        Raises:
            UserError: it was; the message names the difference if it is known.
        """
        for name in {**told.pictures, **self.pictures}:
            there, here = (each.pictures.get(name, "no pictures") for each in (told, self))
            if there != here:
                raise UserError(
                    f"{where} was made of other files: class {shown(name)} had {there}, and this "
                    f"machine sees {here}; give all machines the same files, or remove its folder"
                )
        if self.codec and told.codec != self.codec:
            raise UserError(f"{where} was encoded with another {CODEC_NAME}: remove its folder")
        if told.options != self.options:
            raise UserError(
                f"{where} belongs to a preparation with other options, pictures, VAE or torch: "
                "remove its folder, or choose another out"
            )


def _made(out: str, part: Part, identity: _Identity) -> bool:
    """Whether a part is complete.

    Raises:
        UserError: it is, but was made from something else.
    """
    where = storage.join(out, part.folder, PART_NAME)
    if not storage.exists(where):
        return False
    content = storage.read_bytes(where, _PART_LIMIT)
    identity.check(typed_json.parse_as(_Identity, content, where, _PART_LIMIT), where)
    return True


def _write(
    settings: PrepareSettings,
    card: DatasetCard,
    vae: FrozenVAE,
    share: Sampled,
    part: Part,
    identity: _Identity,
    made: MadeCodec,
) -> Rejects:
    place = storage.join(settings.out, part.folder)

    def complete(folder: str, written: Written) -> Rejects:
        written.rejects.write(folder)
        state = safetensors.save(written.encoder.state())
        storage.write_bytes(storage.join(folder, _STATISTICS), state)
        storage.write_text(storage.join(folder, PART_NAME), json.dumps(asdict(identity)))
        return written.rejects

    if storage.is_remote(place):
        # An earlier attempt that was interrupted may have left it.
        storage.remove(storage.join(place, REJECTS_NAME))
        with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
            return complete(
                place, write_shards(settings, card, vae, share, (room, place), made.codec)
            )
    with storage.atomic_folder(place, marker=PART_NAME) as folder:
        return complete(
            str(folder), write_shards(settings, card, vae, share, str(folder), made.codec)
        )


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
    return Written(encoder, rejects)


def _add_statistics(encoder: BatchEncoder, where: str) -> None:
    content = storage.read_bytes(where, _STATISTICS_LIMIT)
    try:
        encoder.merge_state(safetensors.load(content))
    except (SafetensorError, UserError) as error:
        raise UserError(f"{where} cannot be read ({error}): remove its folder") from None
