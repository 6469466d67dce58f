# SPDX-License-Identifier: Apache-2.0
"""The middle structure of demo pictures: shapes as inside tests in their own coordinates.

u points right and v points down; every shape lies inside the disc of radius 1.1 around (0, 0).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Radius of the disc that holds every shape, in units of the object's size.
REACH = 1.1


def _circle(u: Array, v: Array) -> Mask:
    return u * u + v * v <= 0.81


def _square(u: Array, v: Array) -> Mask:
    return np.maximum(np.abs(u), np.abs(v)) <= 0.76


def _triangle(u: Array, v: Array) -> Mask:
    return (v <= 0.68) & (np.abs(u) <= 0.58 * (v + 0.98))


def _star(u: Array, v: Array) -> Mask:
    # Fold the plane onto one half of one of the five points; there the star has a single edge.
    fifth = 2.0 * np.pi / 5.0
    angle = np.abs((np.arctan2(u, -v) + fifth / 2.0) % fifth - fifth / 2.0)
    radius = np.hypot(u, v)
    inner_x, inner_y = 0.46 * np.cos(fifth / 2.0), 0.46 * np.sin(fifth / 2.0)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    inside: Mask = (along - 1.0) * inner_y + across * (1.0 - inner_x) <= 0.0
    return inside


def _ring(u: Array, v: Array) -> Mask:
    radius2 = u * u + v * v
    return (radius2 <= 0.9) & (radius2 >= 0.25)


def _cross(u: Array, v: Array) -> Mask:
    u, v = np.abs(u), np.abs(v)
    return (np.minimum(u, v) <= 0.3) & (np.maximum(u, v) <= 0.93)


def _heart(u: Array, v: Array) -> Mask:
    x2, y = (1.25 * u) ** 2, 0.12 - 1.25 * v
    return (x2 + y * y - 1.0) ** 3 <= x2 * y**3


def _diamond(u: Array, v: Array) -> Mask:
    return np.abs(u) / 0.66 + np.abs(v) <= 1.0


def _crescent(u: Array, v: Array) -> Mask:
    return (u * u + v * v <= 0.9) & ((u - 0.5) ** 2 + v * v >= 0.5)


def _hexagon(u: Array, v: Array) -> Mask:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(v, 0.5 * v + 0.866 * u) <= 0.82


def _arrow(u: Array, v: Array) -> Mask:
    v = np.abs(v)
    shaft = (v <= 0.26) & (np.abs(u + 0.4) <= 0.55)
    head = (u >= 0.05) & (v <= 0.8 * (1.0 - u))
    return shaft | head


def _drop(u: Array, v: Array) -> Mask:
    bowl = u * u + (v - 0.3) ** 2 <= 0.38
    tip = (v <= 0.1) & (np.abs(u) <= 0.53 * (v + 1.02))
    return bowl | tip


def _half_disc(u: Array, v: Array) -> Mask:
    return (u * u + (v - 0.4) ** 2 <= 0.95) & (v <= 0.4)


def _bar(u: Array, v: Array) -> Mask:
    return (np.abs(u) <= 1.0) & (np.abs(v) <= 0.3)


#: Inside tests by name, the easiest to tell apart first.
SHAPES: dict[str, Callable[[Array, Array], Mask]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "diamond": _diamond,
    "crescent": _crescent,
    "hexagon": _hexagon,
    "arrow": _arrow,
    "drop": _drop,
    "half disc": _half_disc,
    "bar": _bar,
}
SHAPE_NAMES = tuple(SHAPES)
