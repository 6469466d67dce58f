# SPDX-License-Identifier: Apache-2.0
"""The codec of one preparation: fitted once, before any picture is encoded, and then frozen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ahpa_scale import storage, typed_json
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.codec_file import (
    CODEC_LIMIT,
    CODEC_NAME,
    codec_bytes,
    codec_digest,
    codec_header,
    parse_codec,
)
from ahpa_scale.data.codec_fit import fit_codec, level_dims, measure_codec
from ahpa_scale.data.codec_info import POOLED, CodecInfo
from ahpa_scale.data.level_sample import take_sample
from ahpa_scale.data.settings import LEVEL_DIMS, PrepareSettings
from ahpa_scale.data.sources import Source
from ahpa_scale.errors import UserError
from ahpa_scale.method.level_codec import LevelCodec
from ahpa_scale.models.vae import FrozenVAE


@dataclass(frozen=True)
class MadeCodec:
    """A preparation's codec; all None with pooled levels.

    Attributes:
        codec: the codec.
        info: what the card tells of it.
        content: its file.
    """

    codec: LevelCodec | None = None
    info: CodecInfo | None = None
    content: bytes = b""

    def on_card(self, card: DatasetCard) -> DatasetCard:
        """The card with the codec on it."""
        return replace(card, codec=self.info)

    def write(self, out: str) -> None:
        """Writes the file into a data set's folder."""
        if self.content:
            storage.write_bytes(storage.join(out, CODEC_NAME), self.content)


def make_codec(
    settings: PrepareSettings,
    card: DatasetCard,
    vae: FrozenVAE,
    pictures: Source,
    identity: dict[str, Any] | None = None,
) -> MadeCodec:
    """Fits a codec to a sample of the pictures.

    Args:
        settings: settings of the preparation.
        card: its planned card.
        vae: the frozen autoencoder, on the settings' device.
        pictures: all pictures of the data set.
        identity: what the file tells of the preparation, ready for JSON.

    Raises:
        UserError: no sampled picture can be read, or a level never varies.
    """
    if settings.codec == POOLED or not card.levels:
        return MadeCodec()
    sample = take_sample(settings, card, vae, pictures)
    dims = level_dims(card.level_names, settings.level_dims or LEVEL_DIMS)
    device, recipe = settings.device, settings.codec
    codec = fit_codec(sample, card.grid, dims, recipe, card.prior_dtype, device)
    levels = measure_codec(codec, sample, device)
    info = CodecInfo(recipe, "0" * 64, sample.pictures, levels)
    content = codec_bytes(codec, {"info": asdict(info), "identity": identity or {}})
    return MadeCodec(codec, replace(info, digest=codec_digest(content)), content)


def share_codec(
    settings: PrepareSettings,
    card: DatasetCard,
    vae: FrozenVAE,
    pictures: Source,
    identity: dict[str, Any],
    place: str,
) -> MadeCodec:
    """The one codec of a preparation: the first process to fit one decides for all, and for those
    that go on with it.

    Args:
        settings: settings of the preparation.
        card: its planned card.
        vae: the frozen autoencoder, on the settings' device.
        pictures: all pictures of the data set.
        identity: of the preparation, ready for JSON.
        place: folder or URL that keeps the codec.

    Raises:
        UserError: the codec that is there belongs to another preparation or is damaged; and as
            `make_codec`.
    """
    if settings.codec == POOLED or not card.levels:
        return MadeCodec()
    where = storage.join(place, CODEC_NAME)
    if not storage.exists(where):
        made = make_codec(settings, card, vae, pictures, identity)
        storage.write_new(where, made.content)
    content = storage.read_bytes(where, CODEC_LIMIT)
    header = codec_header(content, where)
    if header.get("identity") != identity:
        raise UserError(
            f"{where} belongs to a preparation with other options, pictures, VAE or torch: remove "
            "it with all parts, or choose another out"
        )
    info = typed_json.fit(CodecInfo, header.get("info"), where)
    info = replace(info, digest=codec_digest(content))
    codec = parse_codec(content, replace(card, codec=info), where)
    return MadeCodec(codec, info, content)
