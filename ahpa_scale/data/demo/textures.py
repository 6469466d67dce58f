# SPDX-License-Identifier: Apache-2.0
"""The fine structure of demo pictures: textures and backgrounds as smooth functions of place.

A texture maps an object's own coordinates (u, v) and an angular frequency w to values in [-1, 1].
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: Hue families by name (fractions of the colour circle), in the order classes take them.
HUES: dict[str, float] = {
    "red": 0.0,
    "blue": 0.62,
    "green": 0.34,
    "yellow": 0.15,
    "purple": 0.77,
    "orange": 0.075,
    "pink": 0.9,
    "cyan": 0.5,
}
HUE_NAMES = tuple(HUES)


def _plain(u: Array, v: Array, w: float) -> Array:
    return np.zeros(np.broadcast_shapes(u.shape, v.shape), np.float32)


def _shade(u: Array, v: Array, w: float) -> Array:
    return np.clip(0.5 * u + 0.8 * v, -1.0, 1.0)


def _stripes(u: Array, v: Array, w: float) -> Array:
    return np.sin(w * (0.8 * u + 0.6 * v))


def _dots(u: Array, v: Array, w: float) -> Array:
    return np.clip(np.cos(w * u) + np.cos(w * v), -1.0, 1.0)


def _checks(u: Array, v: Array, w: float) -> Array:
    return np.clip(2.5 * np.sin(0.7 * w * u) * np.sin(0.7 * w * v), -1.0, 1.0)


def _rings(u: Array, v: Array, w: float) -> Array:
    return np.cos(w * np.hypot(u, v))


def _waves(u: Array, v: Array, w: float) -> Array:
    return np.sin(w * v + 1.6 * np.sin(0.6 * w * u))


def _zigzag(u: Array, v: Array, w: float) -> Array:
    # arcsin(sin) is a triangle wave: the stripes run up and down along u.
    return np.sin(w * v + 1.8 * np.arcsin(np.sin(0.6 * w * u)))


def _net(u: Array, v: Array, w: float) -> Array:
    lines = np.maximum(np.cos(0.8 * w * u), np.cos(0.8 * w * v))
    return np.clip(3.0 * lines - 2.0, -1.0, 1.0)


def _mottle(u: Array, v: Array, w: float) -> Array:
    first = np.sin(w * (0.9 * u + 0.3 * v) + 2.0 * np.sin(0.7 * w * v))
    second = np.sin(w * (0.7 * v - 0.5 * u) + 2.0 * np.cos(0.5 * w * u))
    return 0.5 * (first + second)


#: Textures by name, the smoothest first.
TEXTURES: dict[str, Callable[[Array, Array, float], Array]] = {
    "plain": _plain,
    "shade": _shade,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "rings": _rings,
    "waves": _waves,
    "zigzag": _zigzag,
    "net": _net,
    "mottle": _mottle,
}
TEXTURE_NAMES = tuple(TEXTURES)


def colour(hue: float, saturation: float, value: float) -> Array:
    """HSV in [0, 1] -> RGB in [0, 1], float32 [3]."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def background(x: Array, y: Array, richness: int, draws: NDArray[np.float64]) -> Array:
    """Paint a background behind the objects.

    Args:
        x: picture coordinates in [0, 1], float32 [1, W].
        y: the same, float32 [H, 1].
        richness: 0 flat, 1 a gradient, 2 a gradient with soft blobs, 3 with ripples as well.
        draws: 24 uniform numbers in [0, 1); all randomness comes from here.

    Returns:
        RGB in [0, 1], float32 [H, W, 3].
    """
    hue, tilt = draws[0], 2.0 * np.pi * draws[1]
    near = colour(hue, 0.15 + 0.3 * draws[2], 0.14 + 0.3 * draws[3])
    far = colour(hue + 0.3 * (draws[4] - 0.5), 0.15 + 0.3 * draws[5], 0.14 + 0.34 * draws[6])
    ramp = 0.5 + (x - 0.5) * np.cos(tilt) + (y - 0.5) * np.sin(tilt)
    if richness == 0:
        ramp = np.zeros_like(ramp)
    canvas = near + (far - near) * ramp[..., None]
    if richness >= 2:
        for px, py, width, tone in draws[8:20].reshape(3, 4):
            spread = 0.1 + 0.15 * width
            blob = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2.0 * spread**2))
            canvas = canvas + 0.7 * blob[..., None] * (colour(tone, 0.45, 0.5) - canvas)
    if richness >= 3:
        turn, pitch = np.pi * draws[20], 25.0 + 20.0 * draws[21]
        ripple = np.sin(pitch * (x * np.cos(turn) + y * np.sin(turn)) + 6.0 * draws[22])
        canvas = canvas + 0.06 * ripple[..., None]
    return np.clip(canvas, 0.0, 1.0).astype(np.float32)
