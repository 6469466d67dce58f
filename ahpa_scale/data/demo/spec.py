# SPDX-License-Identifier: Apache-2.0
"""What a set of demo pictures is like: knobs from easy to hard, and what its classes mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from ahpa_scale.data.demo.shapes import SHAPE_NAMES
from ahpa_scale.data.demo.textures import HUE_NAMES, TEXTURE_NAMES
from ahpa_scale.errors import UserError

#: Rules that bind the second object to the first, in the order classes take them.
RULES = ("mirrored across", "same hue", "mirrored down", "half size", "opposite hue", "same size")
MAX_OBJECTS = 8
MAX_PLACES = 16


@dataclass(frozen=True)
class DemoSpec:
    """Knobs of the demo pictures.

    Attributes:
        size: pixels per side, at least 16.
        num_classes: labels; each names a pair of shape and hue, or a place (see label_informative).
        objects: fewest and most objects in a picture; the first one carries the label.
        num_shapes: how many of the shapes occur.
        num_textures: how many of the textures occur, smoothest first.
        texture_contrast: strength of the textures, 0 (none) to 1.
        background: 0 flat, 1 gradient, 2 gradient and blobs, 3 ripples as well.
        rotation: largest turn of an object to either side, in degrees.
        relations: 'none', or 'label': a rule chosen by the label binds the second object's place,
            hue or size to the first's.
        label_informative: True: the label says shape and hue of the first object; False: the label
            says only in which part of the picture its centre lies.
    """

    size: int = 32
    num_classes: int = 8
    objects: tuple[int, int] = (1, 1)
    num_shapes: int = 8
    num_textures: int = 3
    texture_contrast: float = 0.35
    background: int = 1
    rotation: float = 15.0
    relations: str = "none"
    label_informative: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        _within("size", self.size, 16, 4096)
        _within("num_shapes", self.num_shapes, 1, len(SHAPE_NAMES))
        _within("num_textures", self.num_textures, 1, len(TEXTURE_NAMES))
        _within("texture_contrast", self.texture_contrast, 0.0, 1.0)
        _within("background", self.background, 0, 3)
        _within("rotation", self.rotation, 0.0, 180.0)
        pairs = self.num_shapes * len(HUE_NAMES)
        _within("num_classes", self.num_classes, 1, pairs if self.label_informative else MAX_PLACES)
        if len(self.objects) != 2 or not 1 <= self.objects[0] <= self.objects[1] <= MAX_OBJECTS:
            raise UserError(
                f"objects must be (fewest, most) within 1 to {MAX_OBJECTS}, not {self.objects}"
            )
        if self.relations not in ("none", "label"):
            raise UserError(f"relations must be 'none' or 'label', not {self.relations!r}")
        if self.relations == "label" and self.objects[0] < 2:
            raise UserError("relations 'label' needs at least 2 objects: set objects to (2, 2)")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DemoSpec:
        """A named starting point: 'easy', 'medium' or 'hard', with fields replaced by changes.

        Raises:
            UserError: unknown preset, or a value out of range.
        """
        if name not in PRESETS:
            close = get_close_matches(name, PRESETS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(PRESETS)}"
            raise UserError(f"unknown demo preset {name!r}: {hint}")
        return replace(PRESETS[name], **changes)

    def shape_and_hue(self, label: int) -> tuple[int, int]:
        """Indices of the shape and the hue family that an informative label names."""
        # Each further round over the shapes moves the hues on by one, so that no pair repeats.
        shape = label % self.num_shapes
        return shape, (shape + label // self.num_shapes) % len(HUE_NAMES)

    def place(self, label: int) -> tuple[int, int, int, int]:
        """Row, column, rows and columns of the part of the picture that a coarse label names."""
        columns = math.ceil(math.sqrt(self.num_classes))
        return label // columns, label % columns, math.ceil(self.num_classes / columns), columns


def _within(name: str, value: float, low: float, high: float) -> None:
    whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise UserError(f"{name} must be a {'whole ' if whole else ''}number, not {value!r}")
    if not low <= value <= high:
        raise UserError(f"{name} must be within {low} to {high}, not {value}")


PRESETS: dict[str, DemoSpec] = {
    "easy": DemoSpec(),
    "medium": DemoSpec(
        objects=(1, 2), num_textures=5, texture_contrast=0.5, background=2, rotation=25.0
    ),
    "hard": DemoSpec(
        num_classes=24,
        objects=(2, 4),
        num_shapes=12,
        num_textures=10,
        texture_contrast=0.6,
        background=3,
        rotation=45.0,
        relations="label",
    ),
}


def class_names(spec: DemoSpec) -> list[str]:
    """One name per label, such as 'red circle', or 'row 1, column 2' when labels are coarse."""
    if not spec.label_informative:
        places = [spec.place(label) for label in range(spec.num_classes)]
        return [f"row {row + 1}, column {column + 1}" for row, column, _, _ in places]
    pairs = [spec.shape_and_hue(label) for label in range(spec.num_classes)]
    return [f"{HUE_NAMES[hue]} {SHAPE_NAMES[shape]}" for shape, hue in pairs]
