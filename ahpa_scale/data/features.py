# SPDX-License-Identifier: Apache-2.0
"""Features of another encoder, one `.npy` file per picture.

Shapes: C feature channels, g the token grid's side.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahpa_scale.data.pictures.files import open_regular
from ahpa_scale.errors import UserError

# What numpy raises on damaged files, depending on where the damage is.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError)
# numpy parses the header with `ast`. CPython 3.11 counts its depth for all threads together, and
# raises SystemError if two threads parse at once (python/cpython#106905).
_PARSING = threading.Lock()


def read_features(path: Path, grid: int) -> NDArray[np.float32]:
    """Read one picture's features, [C, g, g] or [g*g, C], as float32 [C, g, g].

    Raises:
        UserError: the file is missing, not a plain float array, or not on this grid.
    """
    try:
        with open_regular(path) as file:
            content = io.BytesIO(file.read())
        with _PARSING:
            features = np.load(content, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"no features at {path}: each picture needs one .npy") from error
    except _BROKEN as error:
        raise UserError(f"cannot read the features {path}: {error}") from error
    if not isinstance(features, np.ndarray) or features.dtype.kind != "f":
        raise UserError(f"{path} must hold one array of floating-point numbers")
    if features.ndim == 2 and features.shape[0] == grid * grid:
        features = features.T.reshape(-1, grid, grid)
    if features.ndim != 3 or features.shape[1:] != (grid, grid):
        raise UserError(
            f"{path} has shape {list(features.shape)}; a grid of {grid} needs [C, {grid}, {grid}] "
            f"or [{grid * grid}, C]"
        )
    return np.ascontiguousarray(features, dtype=np.float32)
