# SPDX-License-Identifier: Apache-2.0
"""Two ranks open one model: a node downloads it once, and both ranks have it."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest
import torch
from evaluated_run import model_of
from ranks import leave, meet
from s3_server import BUCKET, free_ports, s3_server
from test_drawable import exported, velocities

from ahpa_scale.errors import UserError
from ahpa_scale.run.drawable import open_model
from benchmarks.ranks import start_ranks


def _open_on_rank(rank: int, port: int, room: str) -> None:
    os.environ["TMPDIR"] = room
    meet(rank, port)
    places = [f"s3://{BUCKET}/checkpoints", f"s3://{BUCKET}/w.safetensors"]
    made = {place: velocities(open_model(place).backbone) for place in places}
    with pytest.raises(UserError, match="there is nothing at"):
        open_model(f"s3://{BUCKET}/none.pt")
    torch.save(made, f"{room}/{rank}.pt")
    leave()


def test_both_ranks_have_the_model_of_a_store(trained: Path, tmp_path, monkeypatch):
    for name in ("store", "room"):
        (tmp_path / name).mkdir()
    run = trained / "run"
    file = exported(run / "checkpoints", tmp_path / "w.safetensors")
    with s3_server(tmp_path / "store") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = fsspec.filesystem("s3", endpoint_url=server.endpoint)
        store.put(str(run / "checkpoints"), f"{BUCKET}/checkpoints", recursive=True)
        store.put(str(file), f"{BUCKET}/w.safetensors")
        start_ranks(_open_on_rank, (free_ports(1)[0], str(tmp_path / "room")))
    expected = velocities(model_of(run / "checkpoints" / "ba6", trained / "data").dit)
    for rank in range(2):
        made = torch.load(tmp_path / "room" / f"{rank}.pt", weights_only=True)
        assert len(made) == 2
        for found in made.values():
            torch.testing.assert_close(found, expected)
    left = [path.name for path in (tmp_path / "room").iterdir()]
    assert sorted(left) == ["0.pt", "1.pt"], "the copies are gone"
