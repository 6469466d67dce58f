# SPDX-License-Identifier: Apache-2.0
"""Every engine trains what a single process trains: weights, averages, norms, losses, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.engine_parity import AVERAGE_BOUND, BOUNDS, LOG_BOUND, compare, distance
from benchmarks.ranks import ENGINES, Task, run_tasks

STEPS = 5
ALONE = [
    Task("alone", "sgd", None, STEPS, microbatches=2),
    Task("alone", "adamw", 0.05, STEPS, microbatches=2),
]
TOGETHER = [replace(task, engine=engine) for engine in ENGINES for task in ALONE]
#: Recomputed blocks must give the same gradients under each way of holding the weights.
RECOMPUTED = [
    replace(ALONE[1], engine=engine, activation_checkpointing=2)
    for engine in ("ddp", "fsdp2", "zero3")
]
#: Stage 3 can't: `parallelism.compile` is refused there.
COMPILED = [replace(ALONE[1], engine=engine, compile=True) for engine in ("zero1", "zero2")]
#: Near float32, not equal to it: products alone are rounded to float16.
HALVED = [
    replace(task, engine=engine, autocast="float16")
    for engine in ("zero1", "zero2", "zero3")
    for task in ALONE
]
OFFLOADED = [
    replace(ALONE[1], engine="zero2", offload="optimizer"),
    replace(ALONE[1], engine="zero3", offload="parameters"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Task, dict[str, Any]]:
    """Each task's results; one launch for a single process and one for two ranks."""
    folder = tmp_path_factory.mktemp("engines")
    two = [*TOGETHER, *RECOMPUTED, *OFFLOADED, *COMPILED, *HALVED]
    return {
        **dict(zip(ALONE, run_tasks(ALONE, 1, folder / "one"), strict=True)),
        **dict(zip(two, run_tasks(two, 2, folder / "two"), strict=True)),
    }


def name(task: Task) -> str:
    recomputed = "-recomputed" if task.activation_checkpointing else ""
    offloaded = "-offloaded" if task.offload else ""
    compiled = "-compiled" if task.compile else ""
    return f"{task.engine}-{task.optimizer}{recomputed}{offloaded}{compiled}"


def plain(task: Task) -> Task:
    """The single process that a task must equal."""
    return replace(
        task,
        engine="alone",
        activation_checkpointing=None,
        offload=None,
        compile=False,
        autocast=None,
    )


@pytest.mark.parametrize("task", [*TOGETHER, *RECOMPUTED, *OFFLOADED, *COMPILED], ids=name)
def test_two_ranks_of_any_engine_equal_one_process(task, results):
    alone = plain(task)
    row = compare(task, results[alone], results[task])
    assert row.weights <= BOUNDS[task.optimizer], row.worst
    assert row.average <= AVERAGE_BOUND
    assert row.norms <= LOG_BOUND
    assert row.losses <= LOG_BOUND
    torch.testing.assert_close(
        results[task]["samples"], results[alone]["samples"], rtol=0, atol=1e-3
    )
    # A run that trained nothing would agree as well.
    assert distance(results[task]["average"]["dit.final_layer.linear.weight"], start()) > 1e-2


@pytest.mark.parametrize("task", HALVED, ids=name)
def test_zero_in_float16_trains_what_float32_trains(task, results):
    """Losses and norms unscaled; clipped or not, by their true size."""
    row = compare(task, results[plain(task)], results[task])
    assert 1e-6 < row.norms <= 1e-2  # what float16 rounds off, and no more
    assert row.losses <= 1e-4
    assert row.samples <= 1e-3
    learnt = "dit.final_layer.linear.weight"
    moved = distance(results[task]["weights"][learnt], start())
    assert distance(results[task]["weights"][learnt], results[plain(task)]["weights"][learnt]) < (
        0.05 * moved
    )


def start() -> torch.Tensor:
    """The initial weight of a layer that learns."""
    from benchmarks.ranks import build_generator

    return build_generator(Task("alone")).dit.final_layer.linear.weight.detach()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_line_tells_the_engine_and_what_a_rank_holds(engine, results):
    task = replace(ALONE[1], engine=engine)
    told, memory = results[task]["line"], results[task]["memory"]
    assert told.startswith(f"engine {engine}: 2 ranks, ")
    assert f"{sum(memory.values()) / 1e6:.1f} MB" in told
    whole = results[replace(task, engine="ddp")]["memory"]
    halved = {
        "ddp": (),
        "hsdp": (),  # two copies of one shard
        "fsdp2": ("weights", "gradients", "optimizer", "average"),
        "zero1": ("average",),
        "zero2": ("gradients", "average"),
        "zero3": ("weights", "gradients", "optimizer", "average"),
    }[engine]
    for kind, count in memory.items():
        if kind in halved:
            assert count == pytest.approx(whole[kind] / 2, rel=0.02), kind
        elif engine in ("ddp", "hsdp"):
            assert count == whole[kind], kind
