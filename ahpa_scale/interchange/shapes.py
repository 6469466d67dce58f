# SPDX-License-Identifier: Apache-2.0
"""Tells a transformer's geometry by the shapes of its weights, for files that hold nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ahpa_scale.errors import UserError
from ahpa_scale.models.description import ModelDescription
from ahpa_scale.models.dit_config import DIT_SIZES

Shapes = Mapping[str, tuple[int, ...]]
_PATCHES, _POSITIONS = "x_embedder.proj.weight", "pos_embed"
_LABELS, _OUTPUT = "y_embedder.embedding_table.weight", "final_layer.linear.weight"
_QUERY_NORM = "blocks.0.attn.q_norm.weight"
_BLOCK = re.compile(r"blocks\.(\d{1,4})\.", re.ASCII)


def infer_model(
    shapes: Shapes, where: str, *, classes: int | None = None, heads: int | None = None
) -> ModelDescription:
    """Describes the transformer that weights of these shapes belong to.

    Args:
        shapes: by the official DiT's names.
        where: the file, for messages.
        classes: number of classes. None takes one less than the label table has rows: official
            models have a null class.
        heads: attention heads. None takes them from the norm of the queries, or from the published
            size with this width (`DIT_SIZES`).

    Raises:
        UserError: the weights are no transformer's of this kind, or do not tell the heads.
    """
    patches, positions = _shape(shapes, _PATCHES, 4, where), _shape(shapes, _POSITIONS, 3, where)
    rows, width = _shape(shapes, _LABELS, 2, where)
    outputs = _shape(shapes, _OUTPUT, 2, where)[0]
    _, channels, patch, _ = patches
    grid = math.isqrt(positions[1])
    if grid * grid != positions[1] or min(*patches, grid, rows, width) < 1:
        raise UserError(f"{where} is no square transformer: {_POSITIONS} is {positions}")
    expected = patch * patch * channels
    if outputs not in (expected, 2 * expected):
        raise UserError(
            f"{where} predicts {outputs} numbers for a patch of {expected}: no model is known that "
            "does"
        )
    number = rows - 1 if classes is None else classes
    if number < 1 or rows - number not in (0, 1):
        raise UserError(f"{where} has a label table of {rows} rows for {number} classes")
    blocks = {int(match[1]) for name in shapes if (match := _BLOCK.match(name))}
    described = ModelDescription(
        depth=len(blocks),
        width=width,
        heads=_heads(shapes, width, heads, where),
        patch_size=patch,
        input_size=grid * patch,
        in_channels=channels,
        num_classes=number,
        qk_norm=_QUERY_NORM in shapes,
        learn_sigma=outputs == 2 * expected,
        null_class=rows == number + 1,
    )
    problem = described.contradiction()
    if problem is not None:
        raise UserError(f"{where} is no model that can be built: {problem}")
    return described


def _shape(shapes: Shapes, name: str, sides: int, where: str) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != sides:
        raise UserError(f"{where} holds no weights of DiT, SiT or REPA: it lacks {name!r}")
    return shape


def _heads(shapes: Shapes, width: int, told: int | None, where: str) -> int:
    normed = shapes.get(_QUERY_NORM)
    if normed is not None and len(normed) == 1 and normed[0] and width % normed[0] == 0:
        return width // normed[0]
    if told is not None:
        return told
    known = {size.width: size.heads for size in DIT_SIZES.values()}
    if width not in known:
        raise UserError(
            f"{where} does not tell its attention heads, and no published size has the width "
            f"{width}: name them with --heads"
        )
    return known[width]
