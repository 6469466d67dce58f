# SPDX-License-Identifier: Apache-2.0
"""Options of `ahpa-scale sample`, checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

from ahpa_scale.config.checks.data import PLACEHOLDER
from ahpa_scale.config.errors import choices
from ahpa_scale.config.evaluation import KINDS
from ahpa_scale.errors import UserError
from ahpa_scale.sampling.settings import SamplerOptions

FORMATS = ("folder", "npz", "mds", "grid")
#: Whose code trained the weights of a ``.pt`` file.
LAYOUTS = ("dit", "sit", "repa")
PRECISIONS = ("fp32", "amp_bf16")
_BY_ENDING = {".npz": "npz", ".png": "grid"}
#: More than this and a grid is no picture to look at.
MOST_IN_A_GRID = 1024


@dataclass(frozen=True)
class Drawing:
    """What to draw, and where to put it.

    Attributes:
        checkpoint: folder, file or URL of a model, see `run.drawable.open_model`.
        out: folder, file or URL.
        num: pictures.
        classes: class names or numbers, separated by commas; None: all.
        format: one of FORMATS; None goes by the ending of `out`.
        weights: one of KINDS; None: the averages if there are any.
        layout: one of LAYOUTS, for an official file that does not tell it.
        vae: the autoencoder; None: the model's own.
        sampler: changes of the run's own sampler.
        batch_size: pictures per forward pass.
        precision: ``fp32``, in which a picture doesn't depend on batch size or ranks; ``amp_bf16``
            is faster on a GPU.
        device: torch device; None: a GPU where there is one.
        overwrite: replace what is there.
        progress: whether to show rate and time left on stderr.

    Raises:
        UserError: a wrong value, or options that don't go together.
    """

    checkpoint: str
    out: str
    num: int = 64
    classes: str | None = None
    format: str | None = None
    weights: str | None = None
    layout: str | None = None
    vae: str | None = None
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    batch_size: int = 64
    precision: str = "fp32"
    device: str | None = None
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        problem = next(self._problems(), None)
        if problem is not None:
            raise UserError(problem)

    @property
    def kind(self) -> Literal["ema", "model"] | None:
        """`weights`, as a type that `open_model` accepts."""
        return cast("Literal['ema', 'model'] | None", self.weights)

    @property
    def written(self) -> str:
        """The format that is written."""
        ending = next((kind for end, kind in _BY_ENDING.items() if self.out.endswith(end)), None)
        return self.format or ending or "folder"

    def _problems(self) -> Iterator[str]:
        for place in (self.checkpoint, self.out):
            if PLACEHOLDER in place:
                yield f"put your own bucket in place of {PLACEHOLDER} in {place}"
        for name in ("num", "batch_size"):
            if getattr(self, name) < 1:
                yield f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}"
        known = {"format": FORMATS, "weights": KINDS, "precision": PRECISIONS, "layout": LAYOUTS}
        for name, words in known.items():
            value = getattr(self, name)
            if value is not None and value not in words:
                option = "as" if name == "layout" else name
                yield f"unknown --{option} {value!r}; {choices(value, words)}"
        for ending, kind in _BY_ENDING.items():
            if self.written == kind and not self.out.endswith(ending):
                yield f"--format {kind} writes one file: OUT must end in {ending}, not {self.out}"
            if self.written != kind and self.out.endswith(ending):
                yield f"{self.out} ends in {ending}, and --format {self.written} makes a folder"
        if self.written == "grid" and self.num > MOST_IN_A_GRID:
            yield f"a grid holds at most {MOST_IN_A_GRID} pictures, not {self.num}: name a folder"
