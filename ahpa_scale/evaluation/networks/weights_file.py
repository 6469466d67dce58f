# SPDX-License-Identifier: Apache-2.0
"""Reads a weights file that is not trusted: safetensors, or a pickle whose hash is known."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ahpa_scale.errors import UserError


def read_weights(path: Path, what: str, known: str, advice: str) -> tuple[dict[str, Tensor], str]:
    """Weights by name, and the first 8 digits of the SHA-256 of the bytes that they came from.

    Args:
        path: ``.safetensors``, or any other name for a pickle.
        what: whose weights they should be, for the message.
        known: SHA-256 of the only pickle that is opened; empty: none.
        advice: what to name instead of another pickle.

    Raises:
        UserError: a damaged file, or a pickle with another hash. It has not been opened.
        OSError: the file can't be read.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load(content)), digest[:8]
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{path} holds no weights of {what}: {error}") from None
    if not known or digest != known:
        raise UserError(f"{path} holds no weights of {what} that are known by their hash: {advice}")
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return dict(weights), digest[:8]
