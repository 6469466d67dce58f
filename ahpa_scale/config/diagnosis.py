# SPDX-License-Identifier: Apache-2.0
"""Options of a diagnosis, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

from ahpa_scale.config.errors import choices
from ahpa_scale.errors import UserError
from ahpa_scale.level_names import SOURCES


@dataclass(frozen=True)
class Diagnosis:
    """What to diagnose.

    Attributes:
        checkpoint: a run's checkpoint, its output folder, or safetensors of a DiT.
        data: the data set, a folder or a URL.
        config: the run's configuration; None looks near the checkpoint.
        levels: names of levels; empty: those of the source.
        source: one of `level_names.SOURCES`; None: all that the data set has.
        pictures: at most this many, from the data set's beginning.
        bins: equal bins of t.
        device: torch device.
        progress: whether to show rate and time left on stderr.
    """

    checkpoint: str
    data: str
    config: str | None = None
    levels: tuple[str, ...] = ()
    source: str | None = None
    pictures: int = 2048
    bins: int = 10
    device: str = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("pictures", "bins"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.source is not None and self.source not in SOURCES:
            raise UserError(f"unknown source {self.source!r}; {choices(self.source, SOURCES)}")
        if self.source is not None and self.levels:
            raise UserError("give levels or source, not both: levels already say where from")
