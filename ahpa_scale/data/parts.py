# SPDX-License-Identifier: Apache-2.0
"""One data set made by several processes, each of which encodes its share of the pictures.

Every part lies in a folder of its own, with its index and what it has measured, and counts once its
`part.json` is there. Whichever process then finds all of them writes the index over all shards, the
statistics, and at last the card. Pictures keep the order that one process would have given them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from typing import Any

import safetensors.torch as safetensors

from ahpa_scale import storage, typed_json
from ahpa_scale.data.card import CARD_NAME, DatasetCard, read_card
from ahpa_scale.data.encode import BatchEncoder
from ahpa_scale.data.index import INDEX_NAME, parse_index
from ahpa_scale.data.prepare import check_device, finish, plan, write_shards
from ahpa_scale.data.settings import Part, PrepareSettings
from ahpa_scale.data.sources import Picture, Source
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae import FrozenVAE

PART_NAME = "part.json"
_STATISTICS = "statistics.safetensors"
#: Bytes of `part.json`.
_PART_LIMIT = 1 << 16


class _Share:
    """The pictures of one part, as a source."""

    def __init__(self, whole: Source, span: range) -> None:
        self.whole, self.span = whole, span
        self.classes, self.description = whole.classes, whole.description
        self.external_channels = whole.external_channels

    def __len__(self) -> int:
        return len(self.span)

    def read(self, position: int) -> Picture:
        return self.whole.read(self.span[position])


def prepare_part(source: str, out: str, part: Part, **options: Any) -> DatasetCard | None:
    """Prepares one part, and the whole where it is the last one; a part that is there is kept.

    Args:
        source: as for :func:`ahpa_scale.data.prepare.prepare`.
        out: of the whole data set, the same for all parts.
        part: which one.
        options: further fields of PrepareSettings, the same for all parts.

    Returns:
        The whole set's card; None while other parts are missing.

    Raises:
        UserError: options, pictures or VAE that do not fit, or that are not those of another part.
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
    identity = _identity(settings, card)
    # All of them, because one of another preparation would keep the whole from being made.
    made = [_made(out, Part(index, part.count), identity) for index in range(part.count)]
    if not made[part.index]:
        share = _Share(pictures, part.span(len(pictures)))
        _write(settings, card, vae.to(settings.device), share, part, identity)
    if storage.exists(storage.join(out, CARD_NAME)):
        return read_card(out)
    return _merge(settings, card, vae, part.count, identity)


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
    if folder.is_file() or any(f"-of-{ending}" not in each.name for each in others):
        raise FileExistsError(f"{folder} holds something else: choose another place")


def _identity(settings: PrepareSettings, card: DatasetCard) -> str:
    """Digest of all that parts of one set must have in common."""
    content = [card.to_json(), settings.scaling, settings.shuffle_seed, repr(settings.demo)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _made(out: str, part: Part, identity: str) -> bool:
    """Whether a part is there.

    Raises:
        UserError: it is, and was made of something else.
    """
    where = storage.join(out, part.folder, PART_NAME)
    if not storage.exists(where):
        return False
    told = typed_json.parse(storage.read_bytes(where, _PART_LIMIT), where, _PART_LIMIT)
    if told != {"identity": identity}:
        raise UserError(
            f"{where} belongs to a preparation with other options, pictures or VAE: "
            "remove its folder, or choose another out"
        )
    return True


def _write(
    settings: PrepareSettings,
    card: DatasetCard,
    vae: FrozenVAE,
    share: _Share,
    part: Part,
    identity: str,
) -> None:
    place = storage.join(settings.out, part.folder)

    def complete(folder: str, encoder: BatchEncoder) -> None:
        state = safetensors.save(encoder.state())
        storage.write_bytes(storage.join(folder, _STATISTICS), state)
        storage.write_text(storage.join(folder, PART_NAME), json.dumps({"identity": identity}))

    if storage.is_remote(place):
        with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
            complete(place, write_shards(settings, card, vae, share, (room, place)))
        return
    with storage.atomic_folder(place, marker=PART_NAME) as folder:
        complete(str(folder), write_shards(settings, card, vae, share, str(folder)))


def _merge(
    settings: PrepareSettings, card: DatasetCard, vae: FrozenVAE, count: int, identity: str
) -> DatasetCard | None:
    """Makes the whole of its parts; two processes at once would write the same bytes."""
    parts = [Part(index, count) for index in range(count)]
    if not all(_made(settings.out, part, identity) for part in parts):
        return None
    encoder, shards = BatchEncoder(settings, card, vae), []
    for part in parts:
        folder = storage.join(settings.out, part.folder)
        encoder.merge_state(safetensors.load(storage.read_bytes(storage.join(folder, _STATISTICS))))
        where = storage.join(folder, INDEX_NAME)
        for shard in parse_index(storage.read_bytes(where), where).model_dump()["shards"]:
            shard["raw_data"]["basename"] = f"{part.folder}/{shard['raw_data']['basename']}"
            shards.append(shard)
    whole = json.dumps({"version": 2, "shards": shards}, sort_keys=True)
    storage.write_text(storage.join(settings.out, INDEX_NAME), whole)
    return finish(settings.out, card, encoder)
