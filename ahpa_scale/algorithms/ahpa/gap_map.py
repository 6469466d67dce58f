# SPDX-License-Identifier: Apache-2.0
"""Reads the recoverability map that `ahpa-scale diagnose` writes."""

from __future__ import annotations

import json
import os

import torch

from ahpa_scale import storage
from ahpa_scale.errors import UserError
from ahpa_scale.method import GapMap


def read_gap_map(url: str | os.PathLike[str]) -> GapMap:
    """Read a ``recoverability.json`` at a local path or any fsspec URL.

    Raises:
        UserError: there is none, or it is not a whole map of numbers.
    """
    try:
        content = json.loads(storage.read_text(url))
        levels = tuple(str(name) for name in content["levels"])
        blocks = tuple(int(block) for block in content["blocks"])
        r2_LDT = torch.tensor(content["r2_LDT"], dtype=torch.float32)
        shape = (len(levels), len(blocks), int(content["bins"]))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"there is no file {url}; write one with ahpa-scale diagnose") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{url} is not a recoverability map: {error!r}") from None
    if 0 in shape or tuple(r2_LDT.shape) != shape or not bool(r2_LDT.isfinite().all()):
        raise UserError(
            f"{url} is not a recoverability map: r2_LDT must hold {list(shape)} finite numbers"
        )
    return GapMap(levels, blocks, r2_LDT)
