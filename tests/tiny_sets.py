# SPDX-License-Identifier: Apache-2.0
"""Prepared data sets of tiny latents, made without a VAE: for tests of their order and mixture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter

from ahpa_scale.data.card import SHARD_HASH, DatasetCard, LevelInfo, VaeInfo, write_card
from ahpa_scale.data.codec import columns
from ahpa_scale.data.index import index_digest
from ahpa_scale.models.vae_config import LatentScaling

CARD = DatasetCard(
    kind="latents",
    num_samples=1,
    classes=("ant", "bee", "cow"),
    image_size=16,
    latent_shape=(4, 4, 4),
    grid=2,
    vae=VaeInfo("/vae", "0" * 16, 4, 4),
    scaling=LatentScaling("config", (0.0,) * 4, (1.0,) * 4),
    levels=(LevelInfo("encoder.a", 2), LevelInfo("encoder.b", 3)),
    prior_dtype="float16",
    external_channels=None,
    source="test",
    fingerprint="0" * 16,
    version="0",
)


def save_set(folder: Path, count: int, *, value: float = 0, **facts: Any) -> str:
    """Writes a set whose moments are `value` plus a thousandth of the index, and whose labels go
    round its classes. A shard holds about 100 samples.

    Args:
        folder: where to.
        count: its samples.
        value: of its moments.
        facts: fields of the card that differ from `CARD`.
    """
    card = replace(CARD, num_samples=count, **facts)
    encodings = columns(card)
    with MDSWriter(
        out=str(folder), columns=encodings, hashes=[SHARD_HASH], size_limit=30_000
    ) as out:
        for index in range(count):
            sample: dict[str, Any] = {"label": index % len(card.classes)}
            for name, encoding in encodings.items():
                if encoding.startswith("ndarray"):
                    _, dtype, sides = encoding.split(":")
                    shape = tuple(map(int, sides.split(",")))
                    sample[name] = np.full(shape, value + index / 1000, dtype)
            out.write(sample)
    content = (folder / "index.json").read_bytes()
    write_card(folder, replace(card, fingerprint=index_digest(content)))
    return str(folder)
