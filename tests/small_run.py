# SPDX-License-Identifier: Apache-2.0
"""A small valid run for the tests of the configuration, and the two things done with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ahpa_scale.config.load import ConfigError, load_yaml
from ahpa_scale.config.schema import Config
from ahpa_scale.models.vae_config import KNOWN_VAES, encoder_levels

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(ROOT.glob("yamls/*.yaml"))
SD_VAE = KNOWN_VAES["stabilityai/sd-vae-ft-mse"]
LEVELS = tuple(level.name for level in encoder_levels(SD_VAE))
SMALL = "run_name: a\nmax_duration: 100ba\ndata: {local: set}\n"


class SmallRun:
    """Loads a small valid run with overrides, or any other text, from a file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.yaml"

    def __call__(self, *overrides: str, text: str = SMALL) -> Config:
        self.path.write_text(text)
        return load_yaml(self.path, overrides)

    def complaint(self, *overrides: str, text: str = SMALL) -> str:
        """The one line that a bad configuration earns."""
        with pytest.raises(ConfigError) as caught:
            self(*overrides, text=text)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def load(tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return SmallRun(tmp_path)


@pytest.fixture
def complaint(load):
    return load.complaint


@pytest.fixture
def alone(load: SmallRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One rank, whatever a test before this one has left of torch.distributed. Nothing of it is
    left to the next one: without these variables Composer would refuse to go on.
    """
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "NODE_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
