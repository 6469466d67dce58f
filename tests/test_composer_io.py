# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are data: resuming works, and nothing planted in one ever runs."""

from __future__ import annotations

import os
from pathlib import Path

import composer.utils.checkpoint
import pytest
import torch

from ahpa_scale.checkpoint.composer_io import CheckpointError, protect_composer


class Planted:
    """Unpickling this touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def checkpoint(make_trainer, tmp_path) -> Path:
    make_trainer(max_duration="2ba", save_folder=str(tmp_path), save_filename="two.pt").fit()
    return tmp_path / "two.pt"


@pytest.fixture(autouse=True)
def _protected(monkeypatch):
    for name in ("_torch_load_with_validation", "_write_checkpoint_file"):
        original = getattr(composer.utils.checkpoint, name)
        monkeypatch.setattr(composer.utils.checkpoint, name, original)
    protect_composer()


def test_a_trainers_own_checkpoint_resumes(checkpoint: Path, make_trainer):
    trainer = make_trainer(load_path=str(checkpoint))
    assert trainer.state.timestamp.batch == 2


def test_planted_code_is_refused_by_name_and_never_runs(checkpoint: Path, make_trainer, tmp_path):
    marker = tmp_path / "executed"
    content = torch.load(checkpoint, weights_only=False)
    content["state"]["run_name"] = Planted(marker)
    torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match=r"posix\.system.*not loaded"):
        make_trainer(load_path=str(checkpoint))
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_checkpoint_is_one_clear_error(damage: str, checkpoint: Path, make_trainer):
    content = checkpoint.read_bytes()
    broken = {"cut": content[: len(content) // 2], "empty": b"", "text": b"not a checkpoint"}[
        damage
    ]
    checkpoint.write_bytes(broken)
    with pytest.raises(CheckpointError, match=r"the checkpoint (can't be read|holds)"):
        make_trainer(load_path=str(checkpoint))


def test_a_save_that_fails_half_way_leaves_the_checkpoint_before(
    checkpoint: Path, make_trainer, monkeypatch
):
    before = checkpoint.read_bytes()

    def full_disk(state_dict, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    trainer = make_trainer()
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_checkpoint(str(checkpoint))
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.glob("*.partial")] == []
