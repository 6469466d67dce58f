# SPDX-License-Identifier: Apache-2.0
"""Names of an alignment's levels, and of a batch's columns that hold them. What each source of
levels needs.

A level is named by the path of a module of the VAE's encoder, ``latent``, ``velocity`` (what the
backbone itself is to predict), ``external`` (features that came with the data) or ``self.<k>``
(tokens after block k, from 1, of the model's own moving average). A new source is declared here; a
`PriorSource` of the same name makes its levels. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ahpa_scale.models.backbone import Backbone

LATENT = "latent"
VELOCITY = "velocity"
EXTERNAL = "external"
#: A level's column in a batch and in a data set.
PRIOR_PREFIX = "prior."


@dataclass(frozen=True)
class LevelSource:
    """Where levels come from: how they are called, how wide they are, what they need.

    Attributes:
        name: name of its only level; with `unit`, the levels are ``<name>.<k>``.
        channels: gives a level's channels for a backbone; such levels are made in each step. None:
            they come from the data set's columns or the VAE, and the card tells their channels.
        unit: what k counts, from 1, fine to coarse. Such levels are not grouped by default.
        count: the largest k; None: the backbone's depth.
        averaged: made by blocks behind the tap, in the whole model's moving average.
        statistics: whether the data set's statistics cover it, so that it can be whitened.
        online: whether it exists where pictures are encoded while training.
        patched: maps become tokens in the backbone's own patches and are not averaged.
    """

    name: str
    channels: Callable[[Backbone], int] | None = None
    unit: str = ""
    count: int | None = None
    averaged: bool = False
    statistics: bool = True
    online: bool = True
    patched: bool = False

    def level(self, number: int) -> str:
        """The name of its level k = `number`."""
        return f"{self.name}.{number}"

    def levels(self, depth: int) -> list[str]:
        """The names of its numbered levels for a backbone of `depth` blocks, fine to coarse."""
        return [self.level(number) for number in range(1, (self.count or depth) + 1)]

    def number(self, level: str) -> int | None:
        """The k of its level ``<name>.<k>``; None for any other name."""
        name, _, text = level.partition(".")
        own = self.unit and name == self.name and text.isascii() and text.isdecimal()
        return int(text) if own else None


SOURCES: dict[str, LevelSource] = {}


def declare(source: LevelSource) -> LevelSource:
    """Makes a source known by its name."""
    SOURCES[source.name] = source
    return source


def source_of(level: str) -> LevelSource:
    """The source that a level's name belongs to. The level itself need not exist."""
    name, dot, _ = level.partition(".")
    source = SOURCES.get(name, ENCODER)
    return source if bool(source.unit) == bool(dot) else ENCODER


def single_levels(held: Collection[str] | None = None) -> list[str]:
    """The levels named as their source: all, or those made in each step and those in `held`."""
    single = (source for source in SOURCES.values() if not source.unit and source != ENCODER)
    return [s.name for s in single if held is None or s.channels is not None or s.name in held]


#: Paths of modules of the VAE's encoder: every name that no other source owns.
ENCODER = declare(LevelSource("vae"))


def _patch_channels(model: Backbone) -> int:
    return model.in_channels * (model.input_size // model.grid) ** 2


declare(LevelSource(LATENT, _patch_channels, patched=True))
#: It depends on the noise, so nothing is known of it before training.
declare(LevelSource(VELOCITY, _patch_channels, statistics=False, patched=True))
declare(LevelSource(EXTERNAL, online=False))
#: Blocks of the model's own moving average.
OWN_BLOCKS = declare(
    LevelSource("self", lambda model: model.width, "block", averaged=True, statistics=False)
)
