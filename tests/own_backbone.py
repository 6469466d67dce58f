# SPDX-License-Identifier: Apache-2.0
"""The backbone of AHPA's method card, run from there, for tests and their ranks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import ahpa_scale
from ahpa_scale.models.vae_config import LatentScaling

CARD = Path(ahpa_scale.__file__).parent / "algorithms/ahpa/README.md"


def own_generator(seed: int = 0) -> Any:
    """A generator around three of diffusers' blocks, as the card builds it."""
    text = CARD.read_text()
    section = text[text.index("### A backbone of your own") : text.index("### Details")]
    namespace: dict[str, Any] = {"scaling": LatentScaling("config", (0.0,) * 4, (1.0,) * 4)}
    torch.manual_seed(seed)
    for snippet in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(snippet, str(CARD), "exec"), namespace)
    return namespace["model"]
