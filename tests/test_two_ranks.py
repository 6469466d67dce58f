# SPDX-License-Identifier: Apache-2.0
"""EMA, clipping, metrics and sample grids: two ranks, replicated or sharded, equal one process."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from composer import Algorithm, Event
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from ranks import leave, meet
from torch.distributed.tensor import DTensor
from toy_trainer import clone_weights, read_rows, toy_grid, toy_trainer

from ahpa_scale.algorithms.ema import EMA
from ahpa_scale.algorithms.grad_clip import GradClip
from ahpa_scale.callbacks import MetricsFile
from benchmarks.ranks import start_ranks

ENGINES = ("ddp", "fsdp2")
GLOO_SUMS = torch.__version__.startswith("2.7.")


class GlooAverage(Algorithm):
    """Divides gradients by the number of ranks, before anything else after the backward pass.

    Gloo's reduce-scatter (torch 2.7) sums where FSDP2 asks for the mean; NCCL's does not. Ours is
    mended (ahpa_scale.torch_version), Composer's is not.
    """

    def match(self, event, state):
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event, state, logger):
        for parameter in state.model.parameters():
            if parameter.requires_grad:
                parameter.grad.div_(dist.get_world_size())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _train_on_rank(rank: int, port: int, folder: str) -> None:
    meet(rank, port)
    for engine in ENGINES:
        ranks_worker(Path(folder) / engine, engine)
    leave()


def ranks_worker(folder: Path, engine: str) -> None:
    """Two ranks train, clip and sample; rank 0 writes what came out."""
    folder.mkdir(exist_ok=True)
    sharded = engine == "fsdp2"
    options = {"parallelism_config": {"fsdp": FSDP2Config()}} if sharded else {}
    ema, grid, clip = EMA(decay=0.7), toy_grid(folder), GradClip(0.5, "1ba")
    trainer = toy_trainer(
        "4ba",
        algorithms=[ema, clip, *([GlooAverage()] if sharded and GLOO_SUMS else [])],
        callbacks=[grid],
        loggers=[MetricsFile(folder)],
        **options,
    )
    trainer.fit()
    assert isinstance(ema.shadow["dit.mix.weight"], DTensor) == sharded

    def whole(tensors):
        return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in tensors.items()}

    results = {
        "ema": whole(ema.shadow),
        "weights": whole(clone_weights(trainer.state.model)),
        "pictures": grid.draw(trainer.state),
    }
    with ema.applied(trainer.state.model):
        results["lent"] = whole(clone_weights(trainer.state.model))
    if dist.get_global_rank() == 0:
        torch.save(results, folder / "results.pt")
    trainer.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """One run in this process and, on two ranks, one per engine."""
    folder = tmp_path_factory.mktemp("runs")
    ranks_worker(folder / "alone", "alone")
    start_ranks(_train_on_rank, (_free_port(), str(folder)))
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_equal_one(runs, engine):
    alone, together = runs / "alone", runs / engine
    one = torch.load(alone / "results.pt", weights_only=True)
    two = torch.load(together / "results.pt", weights_only=True)
    for key in ("ema", "weights", "lent"):
        assert list(one[key]) == list(two[key])
        for name in one[key]:
            torch.testing.assert_close(
                two[key][name], one[key][name], rtol=1e-5, atol=1e-6, msg=name
            )
    assert not torch.equal(two["ema"]["dit.mix.weight"], two["weights"]["dit.mix.weight"])
    assert two["pictures"].shape == one["pictures"].shape
    assert (two["pictures"].int() - one["pictures"].int()).abs().max() <= 1
    for row_one, row_two in zip(read_rows(alone), read_rows(together), strict=True):
        for key in ("loss/train/total", "grad_norm/backbone", "grad_norm/attachments"):
            assert row_two[key] == pytest.approx(row_one[key], rel=1e-4)
        assert row_two["num_images"] == row_one["num_images"]
