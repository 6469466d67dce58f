# SPDX-License-Identifier: Apache-2.0
"""Every Python snippet of a method card runs; every card has its metadata and its sections."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LEVELS, ToyLatents
from torch.utils.data import DataLoader

import ahpa_scale

ALGORITHMS = Path(ahpa_scale.__file__).parent / "algorithms"
CARDS = sorted(ALGORITHMS.glob("*/README.md"))
SECTIONS = [
    "## How to use",
    "## Suggested hyper-parameters",
    "## Technical details",
    "## Attribution",
    "## API",
]


def test_there_are_cards():
    assert {card.parent.name for card in CARDS} == {
        "ahpa",
        "ema",
        "fully_shard",
        "grad_clip",
        "guard",
        "zero",
    }


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_snippets_run_in_order(card: Path, make_generator: Callable[..., Any], toy_batch: Any):
    model = make_generator()
    namespace: dict[str, Any] = {
        "model": model,
        "make_generator": make_generator,
        "batch": toy_batch,
        "levels": LEVELS,
        "scaling": model.scaling,
        "loader": DataLoader(ToyLatents(), batch_size=16),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
    }
    snippets = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert len(snippets) >= 2
    for snippet in snippets:
        exec(compile(snippet, str(card), "exec"), namespace)
    namespace["trainer"].close()


def test_the_snippet_on_checkpoints_saves_and_goes_on(
    make_generator: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    text = (ALGORITHMS.parent / "checkpoint" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for max_duration, taken_up in (("2ba", None), ("3ba", 2)):
        model = make_generator()
        namespace: dict[str, Any] = {
            "model": model,
            "loader": DataLoader(ToyLatents(), batch_size=16),
            "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
            "max_duration": max_duration,
        }
        exec(compile(snippet, "README.md", "exec"), namespace)
        namespace["trainer"].close()
        start = namespace["start"]
        assert (start and start.manifest.batch) == taken_up
        assert (tmp_path / "runs/x/checkpoints" / f"ba{max_duration[0]}/manifest.json").exists()


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_cards_follow_one_order_and_name_their_class(card: Path):
    text = card.read_text()
    places = [text.index(section) for section in SECTIONS]
    assert places == sorted(places)
    (metadata,) = json.loads((card.parent / "metadata.json").read_text()).values()
    assert metadata["class_name"] in text
    assert metadata["functional"] in text


def test_a_warning_from_our_own_code_is_an_error():
    code = compile("import warnings; warnings.warn('ours')", "ours.py", "exec")
    with pytest.raises(UserWarning, match="ours"):
        exec(code, {"__name__": "ahpa_scale.anything"})
