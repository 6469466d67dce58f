# SPDX-License-Identifier: Apache-2.0
"""Draw one demo picture from (spec, seed, index), with its factors and per-pixel maps.

Every random number comes from (seed, index) alone, so pictures do not depend on the order or the
process they are drawn in. Shapes: H W the picture's sides, both equal to spec.size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahpa_scale.data.demo.shapes import REACH, SHAPE_NAMES, SHAPES
from ahpa_scale.data.demo.spec import RULES, DemoSpec, class_names
from ahpa_scale.data.demo.textures import HUE_NAMES, HUES, TEXTURE_NAMES, TEXTURES, background
from ahpa_scale.data.demo.textures import colour as to_rgb
from ahpa_scale.errors import UserError

Array = NDArray[np.float32]

# Sub-pixels per side: a pixel is the mean of 3 x 3 points, which smooths the edges.
_OVERSAMPLING = 3
_DRAWS_PER_OBJECT = 32
_TRIES = 8


@dataclass(frozen=True)
class DemoPicture:
    """A demo picture and everything that is known about it.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        label: class index.
        factors: JSON-able record: label, class, relation, background and one entry per object
            (places and sizes as fractions of the picture's side, hues of the colour circle,
            orientation in degrees, visible in pixels).
        maps: 'object' (0 background, then object numbers), 'shape' and 'texture' (0 background,
            then 1 + index into the name lists), each uint8 [H, W].
    """

    image: NDArray[np.uint8]
    label: int
    factors: dict[str, Any]
    maps: dict[str, NDArray[np.uint8]]


def render(spec: DemoSpec, seed: int, index: int) -> DemoPicture:
    """Draw picture number index of the endless set that (spec, seed) names.

    Args:
        spec: what the pictures are like.
        seed: which set of such pictures, 0 or more.
        index: which picture of the set, 0 or more.

    Raises:
        UserError: negative seed or index.
    """
    if seed < 0 or index < 0:
        raise UserError(f"seed and index must be 0 or more, not {seed} and {index}")
    generator = np.random.Generator(np.random.PCG64([seed, index]))
    head = generator.random(32)
    label = int(head[0] * spec.num_classes)
    low, high = spec.objects
    count = low + int(head[1] * (high - low + 1))
    bodies = generator.random((count, _DRAWS_PER_OBJECT))
    relation = RULES[label % len(RULES)] if spec.relations == "label" else None
    objects = _arrange(spec, label, relation, bodies)
    image, owner = _paint(spec, objects, head[8:])
    for item in objects:
        item["visible"] = int((owner == item["id"]).sum())
    factors = {
        "seed": seed,
        "index": index,
        "label": label,
        "class": _names(spec)[label],
        "relation": relation,
        "background": {"richness": spec.background, "hue": round(float(head[8]), 6)},
        "objects": objects,
    }
    maps = {"object": owner}
    for kind, names in (("shape", SHAPE_NAMES), ("texture", TEXTURE_NAMES)):
        ids = [0, *(1 + names.index(item[kind]) for item in objects)]
        maps[kind] = np.array(ids, np.uint8)[owner]
    return DemoPicture(image, label, factors, maps)


@lru_cache(maxsize=32)
def _names(spec: DemoSpec) -> tuple[str, ...]:
    return tuple(class_names(spec))


def _arrange(
    spec: DemoSpec, label: int, relation: str | None, bodies: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Choose every object's factors; the label and the relation override the free choices."""
    crowd = 1.0 / (1.0 + 0.12 * (spec.objects[1] - 1))
    objects: list[dict[str, Any]] = []
    for number, draw in enumerate(bodies):
        size = crowd * (0.28 + 0.12 * draw[0]) * (1.0 if number == 0 else 0.55 + 0.3 * draw[1])
        shape, family = int(draw[2] * spec.num_shapes), int(draw[3] * len(HUES))
        if number == 0 and spec.label_informative:
            shape, family = spec.shape_and_hue(label)
        item: dict[str, Any] = {
            "id": number + 1,
            "shape": SHAPE_NAMES[shape],
            "texture": TEXTURE_NAMES[int(draw[4] * spec.num_textures)],
            "size": size,
            "hue": (HUES[HUE_NAMES[family]] + 0.04 * (draw[5] - 0.5)) % 1.0,
            "orientation": spec.rotation * (2.0 * draw[6] - 1.0),
            "saturation": 0.7 + 0.25 * draw[7],
            "value": 0.82 + 0.18 * draw[8],
            "frequency": 6.0 + 4.0 * draw[9],
        }
        if number == 1 and relation is not None:
            _bind_look(relation, objects[0], item)
        item["x"], item["y"] = _place(spec, label, item["size"], objects, draw[10:])
        if number == 1 and relation is not None:
            _bind_place(relation, objects[0], item)
        objects.append(item)
    for item in objects:
        item.update({k: round(float(v), 6) for k, v in item.items() if isinstance(v, float)})
    return objects


def _bind_look(relation: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    if relation == "same hue":
        second["hue"] = first["hue"]
    elif relation == "opposite hue":
        second["hue"] = (first["hue"] + 0.5) % 1.0
    elif relation == "same size":
        second["size"] = first["size"]
    elif relation == "half size":
        second["size"] = 0.5 * first["size"]


def _bind_place(relation: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    if relation == "mirrored across":
        second["x"], second["y"] = 1.0 - first["x"], first["y"]
    elif relation == "mirrored down":
        second["x"], second["y"] = first["x"], 1.0 - first["y"]


def _place(
    spec: DemoSpec,
    label: int,
    size: float,
    others: list[dict[str, Any]],
    draws: NDArray[np.float64],
) -> tuple[float, float]:
    """Pick a centre that keeps the object in the picture and off the others as far as possible."""
    x_T = size + (1.0 - 2.0 * size) * draws[:_TRIES]
    y_T = size + (1.0 - 2.0 * size) * draws[_TRIES : 2 * _TRIES]
    if not others:
        if spec.label_informative:
            return x_T[0], y_T[0]
        row, column, rows, columns = spec.place(label)
        return (column + draws[0]) / columns, (row + draws[_TRIES]) / rows
    room_T = np.full(_TRIES, np.inf)
    for other in others:
        gap_T = np.hypot(x_T - other["x"], y_T - other["y"]) - 0.9 * (size + other["size"])
        # Once objects do not touch, more room is no better: all free places count the same.
        room_T = np.minimum(room_T, np.minimum(gap_T, 0.0))
    best = int(np.argmax(room_T))
    return x_T[best], y_T[best]


@lru_cache(maxsize=8)
def _axis(points: int) -> Array:
    return ((np.arange(points) + 0.5) / points).astype(np.float32)


def _paint(
    spec: DemoSpec, objects: list[dict[str, Any]], draws: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw large objects first and average the sub-pixels.

    Returns:
        The picture, uint8 [H, W, 3], and the number of the object that covers most of each pixel.
    """
    points = spec.size * _OVERSAMPLING
    axis = _axis(points)
    canvas = background(axis[None, :], axis[:, None], spec.background, draws)
    owner = np.zeros((points, points), np.uint8)
    # Small ones lie in front, so that no single neighbour hides an object.
    for item in sorted(objects, key=lambda item: (-item["size"], -item["id"])):
        rows, columns = (_extent(item[side], item["size"], points) for side in ("y", "x"))
        inside, rgb = _stamp(spec, item, axis[columns][None, :], axis[rows][:, None])
        canvas[rows, columns][inside] = rgb[inside]
        owner[rows, columns][inside] = item["id"]
    blocks = (spec.size, _OVERSAMPLING, spec.size, _OVERSAMPLING)
    image = np.rint(255.0 * canvas.reshape(*blocks, 3).mean(axis=(1, 3))).astype(np.uint8)
    votes = [(owner == k).reshape(blocks).sum(axis=(1, 3)) for k in range(len(objects) + 1)]
    return image, np.argmax(votes, axis=0).astype(np.uint8)


def _extent(centre: float, size: float, points: int) -> slice:
    low, high = (centre - REACH * size) * points, (centre + REACH * size) * points
    return slice(max(0, int(low)), min(points, int(high) + 1))


def _stamp(
    spec: DemoSpec, item: dict[str, Any], x: Array, y: Array
) -> tuple[NDArray[np.bool_], Array]:
    """Inside test and colours of one object on a patch of sub-pixels, [h, w] and [h, w, 3]."""
    turn = np.deg2rad(item["orientation"])
    dx, dy = (x - item["x"]) / item["size"], (y - item["y"]) / item["size"]
    u = (dx * np.cos(turn) + dy * np.sin(turn)).astype(np.float32)
    v = (dy * np.cos(turn) - dx * np.sin(turn)).astype(np.float32)
    pattern = TEXTURES[item["texture"]](u, v, item["frequency"])
    base = to_rgb(item["hue"], item["saturation"], item["value"])
    # Textures only darken, so that a bright colour keeps its hue instead of turning white.
    tone = 1.0 - 0.5 * spec.texture_contrast * (1.0 - pattern)
    if item["texture"] == "plain":
        tone = np.ones_like(pattern)
    return SHAPES[item["shape"]](u, v), (base * tone[..., None]).astype(np.float32)
