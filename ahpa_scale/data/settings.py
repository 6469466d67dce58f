# SPDX-License-Identifier: Apache-2.0
"""Settings of a preparation, checked before heavy imports. Does not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from ahpa_scale import storage
from ahpa_scale.data.card import KINDS, PRIOR_DTYPES
from ahpa_scale.data.codec_info import CODECS, POOLED, RESIDUAL
from ahpa_scale.errors import UserError

DEMO = "demo"
_DEVICES = re.compile(r"(cpu|cuda):[1-9]\d{0,2}", re.ASCII)
#: Share of all pictures that may be unreadable before a pass fails.
REJECTS = 0.01
ORACLE = "oracle"
#: Dimensions of a token that a group of levels gets. Three groups on 16x16 tokens take 48 KiB.
LEVEL_DIMS = 64


@dataclass(frozen=True)
class DemoChoice:
    """Which demo pictures: `num_samples` of them, from index `start` on."""

    preset: str = "easy"
    num_samples: int = 10_000
    seed: int = 0
    start: int = 0


@dataclass(frozen=True)
class Part:
    """One of several processes that prepare a data set together.

    Attributes:
        index: number of this part, from 0.
        count: number of parts.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 10_000:
            raise UserError(f"parts must be 1 to 10000, not {self.count}")
        if not 0 <= self.index < self.count:
            raise UserError(
                f"part must be 0 to {self.count - 1} with {self.count} parts, not {self.index}"
            )

    def span(self, total: int) -> range:
        """The part's share of `total` pictures, in their order."""
        return range(self.index * total // self.count, (self.index + 1) * total // self.count)

    @property
    def folder(self) -> str:
        """Folder of the part's shards, inside the data set's folder."""
        return f"part-{self.index:05d}-of-{self.count:05d}"


def chosen_part(index: int | None, count: int | None) -> Part | None:
    """The part that two options name; None if the set is made in one piece.

    Raises:
        UserError: one option is missing, or they don't fit each other.
    """
    if count is None and index is None:
        return None
    if count is None:
        raise UserError(f"part {index} of how many? give parts")
    if index is None:
        raise UserError(f"which of the {count} parts? give part, 0 to {count - 1}")
    return Part(index, count)


#: Options of pictures that are stored, and not drawn.
STORED_OPTIONS = (
    *("shuffle_seed", "exif", "least_side", "classes_from", "class_depth"),
    *("image_column", "label_column"),
)
DEMO_OPTIONS = tuple(option.name for option in fields(DemoChoice))
#: Options that count something, from 1.
_COUNTS = (
    *("size", "grid", "batch_size", "limit", "num_samples", "workers"),
    *("level_dims", "sample", "least_side"),
)


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What to prepare and where to.

    Attributes:
        source: pictures that `ahpa_scale.data.sources.open_source` opens, or 'demo'.
        out: local folder, or s3:// or gs:// URL.
        vae_path: diffusers folder, hub id, or 'demo'.
        size: side of the cropped pictures, in pixels.
        grid: tokens per side for stored maps; None is half the latent's side (patch 2).
        kind: 'latents' stores moments and maps, 'images' the pictures for online encoding.
        scaling: 'config' takes the VAE's published factors, 'channel' measures the pictures.
        levels: encoder levels to store; None stores all.
        codec: how a level is brought to the token grid, one of CODECS.
        level_dims: dimensions of a token for each default group of levels; None is LEVEL_DIMS.
        sample: pictures that the codec is fitted to and measured on.
        prior_dtype: 'int8', 'float16' or 'bfloat16'; None is int8, and float16 for pooled levels.
        features: folder of `.npy` features of another encoder, or 'oracle' for the demo.
        batch_size: pictures per encoder call.
        limit: at most this many pictures.
        rejects: share of the pictures that may be left out as unreadable; one picture always may,
            unless the share is 0.
        shuffle_seed: order of stored pictures; None is 0.
        exif, least_side: as for DecodeOptions; None is its default.
        classes_from, class_depth, image_column, label_column: as for SourceOptions.
        preset, num_samples, seed, start: the demo pictures; None is DemoChoice's default.
        overwrite: replace a complete data set that is there already.
        device: torch device of the encoder.
        devices: several, a process on each: kind and number, such as 'cuda:8' or 'cpu:2'.
        shard_size: bytes of a shard, or text such as '64mb'.
        workers: threads that read and crop.
        progress: whether to draw a progress bar on stderr.
    """

    source: str
    out: str
    vae_path: str
    size: int
    grid: int | None = None
    kind: str = "latents"
    scaling: str = "config"
    levels: tuple[str, ...] | None = None
    codec: str = RESIDUAL
    level_dims: int | None = None
    sample: int = 512
    prior_dtype: str | None = None
    features: str | None = None
    batch_size: int = 64
    limit: int | None = None
    rejects: float = REJECTS
    shuffle_seed: int | None = None
    exif: bool | None = None
    least_side: int | None = None
    classes_from: str | None = None
    class_depth: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    preset: str | None = None
    num_samples: int | None = None
    seed: int | None = None
    start: int | None = None
    overwrite: bool = False
    device: str = "cpu"
    devices: str | None = None
    shard_size: int | str = "64mb"
    workers: int = 4
    progress: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (
            ("kind", KINDS),
            ("scaling", ("config", "channel")),
            ("codec", CODECS),
            ("prior_dtype", PRIOR_DTYPES),
        ):
            optional = name == "prior_dtype" and self.prior_dtype is None
            if getattr(self, name) not in allowed and not optional:
                raise UserError(
                    f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        for name in _COUNTS:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("start", "seed", "class_depth"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.rejects < 1:
            raise UserError(f"rejects must be a share from 0 to below 1, not {self.rejects}")
        if not _is_shard_size(str(self.shard_size)):
            raise UserError(
                f"shard_size {self.shard_size!r} is not below 4gb: write a whole number and b, kb, "
                "mb or gb, as in '64mb'"
            )
        if self.codec == POOLED and self.level_dims is not None:
            raise UserError("codec 'pooled' keeps all channels: leave level_dims out")
        if self.codec == POOLED and self.prior_dtype == "int8":
            raise UserError("codec 'pooled' has no int8: choose prior_dtype float16 or bfloat16")
        if self.kind == "images" and self.levels is not None:
            raise UserError("kind 'images' stores no levels: leave levels out")
        if storage.scheme(self.out) not in ("", "s3", "gs", "az", "abfs"):
            raise UserError(
                f"data sets go to a local folder, s3://, gs:// or az://, not {self.out}"
            )
        if self.devices is not None and not _DEVICES.fullmatch(self.devices):
            raise UserError(
                f"devices is {self.devices!r}: give a kind and how many, such as cuda:8 or cpu:2"
            )
        if self.devices is not None and self.device != "cpu":
            raise UserError(f"device {self.device} and devices {self.devices}: give one of them")
        self._check_source_options()

    @property
    def all_devices(self) -> list[str]:
        """A torch device for each process."""
        if self.devices is None:
            return [self.device]
        kind, _, number = self.devices.partition(":")
        return [kind if kind == "cpu" else f"{kind}:{each}" for each in range(int(number))]

    @property
    def stored_dtype(self) -> str:
        """Number format of the encoder's levels, default filled in."""
        return self.prior_dtype or ("float16" if self.codec == POOLED else "int8")

    @property
    def demo(self) -> DemoChoice:
        """The demo pictures asked for, defaults filled in."""
        given = {name: getattr(self, name) for name in DEMO_OPTIONS}
        return DemoChoice(**{name: value for name, value in given.items() if value is not None})

    def _check_source_options(self) -> None:
        demo = self.source == DEMO
        foreign = STORED_OPTIONS if demo else DEMO_OPTIONS
        for name in foreign:
            if getattr(self, name) is not None:
                raise UserError(
                    f"{name} is for {'stored pictures' if demo else 'the demo source'}, "
                    f"and the source is {self.source}"
                )
        if self.features is not None and demo != (self.features == ORACLE):
            raise UserError(
                f"features of the demo source can only be '{ORACLE}'"
                if demo
                else f"features '{ORACLE}' exist for the demo source only"
            )


def _is_shard_size(text: str) -> bool:
    """Whether streaming's writer accepts this size; offsets in a shard have 32 bits."""
    match = re.fullmatch(r"(\d{1,10})(b|kb|mb|gb)?", text, re.ASCII)
    if match is None:
        return False
    unit = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}.get(match[2], 1)
    return 0 < int(match[1]) * unit < 1 << 32
