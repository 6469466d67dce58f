# SPDX-License-Identifier: Apache-2.0
"""Composer's checkpoint files, read and written safely.

Reading refuses anything but tensors, numbers and text. Writing is atomic: a job that is killed
while it saves leaves the checkpoint before, not half of a new one under its name.
"""

from __future__ import annotations

import datetime
import os
import pickle
from pathlib import Path
from typing import Any

import composer.utils.checkpoint
import numpy as np
import torch
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]
from torch.torch_version import TorchVersion

# Everything that a Composer 0.32.1 checkpoint holds beyond tensors: clocks, numpy's random state, a
# version.
_PLAIN_TYPES = [
    datetime.timedelta,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    _reconstruct,
    TorchVersion,
]


class CheckpointError(ValueError):
    """A checkpoint that can't or mustn't be loaded.

    The message doesn't name the file, because Composer hands over a copy under another name.
    """


def load_plain(checkpoint_filepath: Path | str, map_location: str) -> Any:
    """Loads a checkpoint file with ``weights_only`` and a short list of harmless types.

    Raises:
        CheckpointError: the file holds another type (which could run code), or is cut or damaged.
    """
    try:
        with torch.serialization.safe_globals(_PLAIN_TYPES):
            return torch.load(checkpoint_filepath, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # Raised from nothing: torch's text goes on to explain how to switch the protection off.
        detail = str(error).split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL" in str(error) else ""
        raise CheckpointError(
            f"the checkpoint holds {detail or 'something'}, which is more than "
            "tensors, numbers and text; it was not loaded"
        ) from None
    except (RuntimeError, EOFError) as error:
        first_line = str(error).splitlines()[0] if str(error) else "unexpected end"
        raise CheckpointError(f"the checkpoint can't be read ({first_line})") from None


def write_atomically(state_dict: dict[str, Any], filename: str) -> None:
    """Writes a checkpoint file beside its place and renames it once it is whole and on disk."""
    partial = f"{filename}.partial"
    try:
        with open(partial, "wb") as file:
            torch.save(state_dict, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, filename)
    finally:
        Path(partial).unlink(missing_ok=True)


def protect_composer() -> None:
    """Replaces the two functions of Composer 0.32.1 that read and write checkpoint files.

    Its reader unpickles without restriction (hardened upstream after the last release), its writer
    writes in place, and no option changes either.
    """
    composer.utils.checkpoint._torch_load_with_validation = load_plain
    composer.utils.checkpoint._write_checkpoint_file = write_atomically
