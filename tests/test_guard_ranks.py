# SPDX-License-Identifier: Apache-2.0
"""Guard on two gloo ranks, replicated and sharded: what one rank finds, both act on."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from ranks import leave, meet
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from toy_trainer import CLASSES, Recorder, ToyData, ToyGenerator, clone_weights, toy_trainer

from ahpa_scale.algorithms import EMA, GradClip, Guard
from ahpa_scale.algorithms.engine import engine_algorithms
from ahpa_scale.algorithms.zero import ZeroFront
from ahpa_scale.checkpoint.pieces import model_pieces
from ahpa_scale.exits import RunStoppedError
from benchmarks.ranks import start_ranks, whole_tensors

#: Composer's own FSDP2, which a plain Trainer may have, and the engines of this package.
COMPOSERS = "composer's fsdp2"
ENGINES = ("ddp", COMPOSERS, "fsdp2", "zero2", "zero3")
BATCHES, BATCH = 6, 4


class Numbered(ToyData):
    """Pictures with their numbers, of which some are not finite."""

    def __init__(self, *bad: int) -> None:
        super().__init__(BATCHES * BATCH)
        self.bad = bad

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = self.x[index] * (float("nan") if index in self.bad else 1.0)
        return {"x": x, "label": index % CLASSES, "index": index}


class Noted(Recorder):
    """Copies weights, whole, and, after each batch, the optimizer's state."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[list[torch.Tensor]] = []
        self.sharded = False

    def fit_start(self, state, logger):
        named = clone_weights(state.model)
        self.sharded = any(isinstance(value, DTensor) for value in named.values())

    def batch_end(self, state, logger):
        if isinstance(state.model, ZeroFront):
            self.weights.append(whole_tensors(model_pieces(state)))
        else:
            named = clone_weights(state.model).items()
            self.weights.append({name: whole(value) for name, value in named})
        (optimizer,) = state.optimizers
        states = [value for one in optimizer.state.values() for value in one.values()]
        self.moments.append([whole(value).clone() for value in states])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def make(engine: str, guard: Guard, *bad: int, **settings: Any) -> Any:
    data = Numbered(*bad)
    sharded = {"parallelism_config": {"fsdp": FSDP2Config()}} if engine == COMPOSERS else {}
    model = ToyGenerator()
    groups = [
        {"params": [p for p in half if p.requires_grad]}
        for half in (model.backbone_parameters(), model.attachment_parameters())
    ]
    plugins = [GradClip(1.0)] if engine == COMPOSERS else engine_algorithms(engine, max_norm=1.0)
    return toy_trainer(
        f"{BATCHES}ba",
        model=model,
        optimizers=torch.optim.AdamW(groups, lr=0.05, fused=True),
        algorithms=[guard, *plugins, EMA(decay=0.5)],
        train_dataloader=DataLoader(
            data, BATCH // 2, sampler=dist.get_sampler(data, shuffle=False)
        ),
        **sharded,
        **settings,
    )


def bad_batch(engine: str, folder: Path) -> dict[str, Any]:
    """Samples alternate between the ranks: number 9 is rank 1's alone, in the third batch."""
    noted = Noted()
    trainer = make(engine, Guard(folder), 9, callbacks=[noted])
    trainer.fit()
    ema = trainer.state.algorithms[-1]
    trainer.close()
    return {
        "weights": noted.weights,
        "moments": noted.moments,
        "ema": {k: whole(v) for k, v in ema.shadow.items()},
        "sharded": noted.sharded,
    }


def out_of_time(engine: str) -> dict[str, int]:
    """Each rank's own clock in turn says that the time is over."""
    batches = {}
    for name, late in (("rank 0", 0), ("rank 1", 1)):
        limit = 0.001 if dist.get_global_rank() == late else 1e9
        trainer = make(engine, Guard(time_limit=limit))
        trainer.fit()
        batches[name] = trainer.state.timestamp.batch.value
        trainer.close()
    return batches


def stopped(engine: str, folder: Path) -> int:
    """Every rank gets the error, after rank 0 has written the line."""
    trainer = make(engine, Guard(folder / "stop", nonfinite="stop"), 9)
    try:
        trainer.fit()
    except RunStoppedError as stop:
        return stop.exit_code * int((folder / "stop" / "guard.jsonl").exists())
    finally:
        trainer.close()
    return 0


class Collectives(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts messages between the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def messages(engine: str) -> dict[str, int]:
    """Messages of a whole run with a guard, and with a guard and a time limit."""
    counts = {}
    guards = {"off": Guard(nonfinite="none"), "on": Guard(), "timed": Guard(time_limit=1e9)}
    for name, guard in guards.items():
        trainer = make(engine, guard)
        with Collectives() as collectives:
            trainer.fit()
        counts[name] = sum(collectives.seen.values())
        trainer.close()
    return counts


def _on_rank(rank: int, port: int, folder: str) -> None:
    meet(rank, port)
    for engine in ENGINES:
        here = Path(folder) / engine
        results = bad_batch(engine, here)
        results["time"] = out_of_time(engine)
        results["stopped"] = stopped(engine, here)
        results["messages"] = messages(engine)
        torch.save(results, here / f"rank{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for engine in ENGINES:
        (folder / engine).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    start_ranks(_on_rank, (port, str(folder)))
    return folder


@pytest.fixture(params=ENGINES)
def ranks(request, folder) -> tuple[Path, list[dict[str, Any]]]:
    here = folder / request.param
    found = [torch.load(here / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(one["sharded"] == (request.param in (COMPOSERS, "fsdp2")) for one in found)
    return here, found


def test_one_ranks_bad_picture_changes_nothing_on_either(ranks):
    for one in ranks[1]:
        weights, moments = one["weights"], one["moments"]
        for name, value in weights[1].items():
            assert torch.equal(weights[2][name], value), name
            assert value.isfinite().all()
        assert moments[1]
        for before, after in zip(moments[1], moments[2], strict=True):
            assert torch.equal(before, after)
        assert not torch.equal(weights[3]["dit.mix.weight"], weights[2]["dit.mix.weight"])
        assert all(value.isfinite().all() for value in one["ema"].values())
    first, second = ranks[1]
    for name, value in first["weights"][-1].items():
        assert torch.equal(second["weights"][-1][name], value), name


def test_the_line_names_the_samples_of_both_ranks_and_whose_loss_it_was(ranks):
    (told,) = [json.loads(line) for line in (ranks[0] / "guard.jsonl").read_text().splitlines()]
    assert told["batch"] == 3
    assert told["samples"] == [8, 10, 9, 11]
    assert told["losses"][0] > 0
    assert told["losses"][1] is None


def test_rank_0s_clock_decides_for_both(ranks):
    assert [one["time"] for one in ranks[1]] == [{"rank 0": 1, "rank 1": BATCHES}] * 2


def test_a_stop_reaches_both_ranks_after_it_is_written(ranks):
    assert [one["stopped"] for one in ranks[1]] == [70, 70]


def test_one_message_a_batch_answers_both_questions(ranks):
    for one in ranks[1]:
        counts = one["messages"]
        assert counts["on"] - counts["off"] == counts["timed"] - counts["off"] == BATCHES
