# SPDX-License-Identifier: Apache-2.0
"""The data set's card, the file `dataset.json` beside the shards. Does not import torch.

The card is written last: a data set is complete once its card exists.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ahpa_scale import storage, typed_json
from ahpa_scale.data.codec_info import CodecInfo
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import EXTERNAL
from ahpa_scale.models.vae_config import LatentScaling

if TYPE_CHECKING:
    from torch import Tensor

CARD_NAME = "dataset.json"
PRIOR_STATISTICS = "prior_statistics.safetensors"
FORMAT = 1
KINDS = ("latents", "images")
#: Hash algorithm that the shard index uses.
SHARD_HASH = "xxh64"
PRIOR_DTYPES = ("int8", "float16", "bfloat16")

#: Most bytes of the statistics file. 5 levels with 1024 channels take 21 million.
_STATISTICS_LIMIT = 2 << 30


def _one_of(words: tuple[str, ...]) -> Any:
    return Field(pattern=f"^({'|'.join(words)})$")


# Bounds on a card's values, because a reader allocates memory by them.
_Count = Annotated[int, Field(ge=1, le=10**10)]
_Side = Annotated[int, Field(ge=1, le=1 << 14)]
_Text = Annotated[str, Field(max_length=4096)]
_LevelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=200)]
#: Also the name of the cache folder of the set's shards.
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]


@dataclass(frozen=True)
class VaeInfo:
    """The frozen autoencoder that a data set belongs to.

    Attributes:
        path: folder, hub id or 'demo', as given to `prepare`.
        identity: digest of its configuration and weights.
        downsample: picture pixels per latent pixel, along one side.
        latent_channels: channels of the latent.
    """

    __pydantic_config__ = typed_json.STRICT

    path: _Text
    identity: _Text
    downsample: _Side
    latent_channels: _Side


@dataclass(frozen=True)
class LevelInfo:
    """One encoder level: its diffusers module path and its channels."""

    __pydantic_config__ = typed_json.STRICT

    name: _LevelName
    channels: _Side


@dataclass(frozen=True)
class DatasetCard:
    """What a reader must know about a data set before it opens a shard.

    Attributes:
        kind: 'latents' (moments and priors are stored) or 'images' (encoded while training).
        num_samples: pictures in the set.
        classes: class names; the label is the position.
        image_size: side of the square pictures, in pixels.
        latent_shape: (C, H, W) of the latent.
        grid: tokens per side of stored priors.
        vae: the autoencoder.
        scaling: how latents are normalised for training.
        levels: stored encoder levels, fine to coarse (kind 'images': those of the VAE).
        prior_dtype: number format of the encoder's levels, one of PRIOR_DTYPES.
        external_channels: channels of `prior.external`, or None if it is not stored.
        source: where the pictures came from, as text for the user.
        fingerprint: digest of the shard index; sets with equal fingerprints hold the same bytes.
        version: version of the package that wrote the set.
        torch: version of torch that encoded it, empty if not known. Another one gives other bits.
        codec: how levels were reduced; None: they are mean-pooled.
    """

    __pydantic_config__ = typed_json.STRICT

    kind: Annotated[str, _one_of(KINDS)]
    num_samples: _Count
    classes: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=10**6)]
    image_size: _Side
    latent_shape: tuple[_Side, _Side, _Side]
    grid: _Side
    vae: VaeInfo
    scaling: LatentScaling
    levels: Annotated[tuple[LevelInfo, ...], Field(max_length=64)]
    prior_dtype: Annotated[str, _one_of(PRIOR_DTYPES)]
    external_channels: _Side | None
    source: _Text
    fingerprint: _Digest
    version: _Text
    torch: _Text = ""
    codec: CodecInfo | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the levels, fine to coarse."""
        return tuple(level.name for level in self.levels)

    @property
    def prior_channels(self) -> dict[str, int]:
        """Level -> channels of every level that batches can bring, fine to coarse. The VAE makes
        the encoder's levels of a set of kind 'images'.
        """
        channels = {level.name: level.channels for level in self.levels}
        if self.codec is not None:
            channels = {level.name: level.dims for level in self.codec.levels}
        external = {} if self.external_channels is None else {EXTERNAL: self.external_channels}
        return {**channels, **external}

    @property
    def prior_columns(self) -> tuple[str, ...]:
        """The levels of `prior_channels` that have a column in the shards."""
        encoded = () if self.kind == "latents" else self.level_names
        return tuple(level for level in self.prior_channels if level not in encoded)

    @property
    def mixture(self) -> dict[str, Any]:
        """What is mixed and left out, ready for JSON: nothing, for a single set that is read
        whole.
        """
        return {"sets": None, "shares": None, "skipped": None}

    def to_json(self) -> str:
        """The text of `dataset.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = CARD_NAME) -> DatasetCard:
        """Read a card's text.

        Raises:
            UserError: the text is not JSON, has another format, or has a wrong key or value.
        """
        content = typed_json.parse(text, where)
        if not isinstance(content, dict):
            raise UserError(f"{where} is not a card of a data set: it is not a JSON object")
        _check_format(content.pop("format", None), where)
        card = typed_json.fit(cls, content, f"{where} is not a card of a data set")
        _check_sense(card, where)
        return card


def read_card(url: str | os.PathLike[str]) -> DatasetCard:
    """Read the card of the data set at a local path or any fsspec URL.

    Raises:
        UserError: there is no complete data set, or its card cannot be read.
    """
    where = storage.join(url, CARD_NAME)
    try:
        text = storage.read_bytes(where, typed_json.LIMIT)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(_missing(str(url))) from error
    return DatasetCard.from_json(text, where)


def read_prior_statistics(url: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read mean and covariance of the data set's prior levels over all tokens of all pictures.

    Returns:
        float32 ``<level>.mean`` [C] and ``<level>.covariance`` [C, C] for every stored level and
        for ``latent`` (scaled, and folded into patches if the grid divides its side). Empty if the
        data set has none: kind 'images', or a set of an older version.

    Raises:
        UserError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    where = storage.join(url, PRIOR_STATISTICS)
    try:
        content = storage.read_bytes(where, _STATISTICS_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        statistics = dict(load(content))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} cannot be read ({reason}): prepare the data again") from None
    for name, value in statistics.items():
        level, _, kind = name.rpartition(".")
        mean = statistics.get(f"{level}.mean")
        sides = {"mean": 1, "covariance": 2}.get(kind, 0)
        shape = () if mean is None else (mean.numel(),) * sides
        if not shape or value.shape != shape or str(value.dtype) != "torch.float32":
            raise UserError(
                f"{where} cannot be used: {name!r:.80} is no level's mean or covariance"
            )
        if not bool(value.isfinite().all()):
            raise UserError(f"{where} cannot be used: {name!r:.80} is not finite")
    return statistics


def write_card(url: str | os.PathLike[str], card: DatasetCard) -> None:
    """Write the card beside its shards, atomically; the last step of a preparation."""
    storage.write_text(storage.join(url, CARD_NAME), card.to_json())


def _missing(url: str) -> str:
    text = f"no data set at {url}: run `ahpa-scale prepare SOURCE --out {url}`"
    if not storage.is_remote(url):
        folder = storage.local_path(url)
        for place in (folder.parent, *sorted(folder.glob("*/"))):
            if (place / CARD_NAME).is_file():
                return f"{text} (there is one at {place})"
    return text


def _check_format(stored: Any, where: str) -> None:
    if stored != FORMAT:
        raise UserError(
            f"{where} has data format {stored!r}, and this version reads {FORMAT}: "
            "prepare the data again, or use the version of ahpa_scale that wrote it"
        )


def _check_sense(card: DatasetCard, where: str) -> None:
    """Refuses fields that contradict each other."""
    channels, height, width = card.latent_shape
    side = card.image_size // card.vae.downsample
    names = [level.name for level in card.levels]
    problem = None
    if (height, width) != (side, side):
        problem = f"pictures of {card.image_size} have no latent of {height}x{width}"
    elif card.grid > side:
        problem = f"grid {card.grid} is finer than the latent of {side}x{side}"
    elif not channels == card.vae.latent_channels == len(card.scaling.shift):
        problem = "latent_shape, vae and scaling differ in the latent's channels"
    elif len(set(names)) != len(names) or EXTERNAL in names:
        problem = "a level comes twice, or is called external"
    elif card.codec is None and card.prior_dtype == "int8":
        problem = "levels of int8 without a codec"
    elif card.codec is not None and names != [level.name for level in card.codec.levels]:
        problem = "levels and codec differ"
    if problem is not None:
        raise UserError(f"{where} is not a card of a data set: {problem}")
